//! The mounts of topofs on this host, as far as this process's mount namespace shows them. Must never ask one of them
//! for anything: nobody may answer for it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::bail;
use nix::errno::Errno;

use crate::mount::{Entry, Table};

/// Most symbolic links on the way to a path, as the kernel counts them.
const LINKS: usize = 40;
/// Most mounts to name in one sentence.
const NAMED: usize = 10;

/// The mount table, at one moment.
pub(super) struct Host(Vec<Entry>);

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<'a> {
    /// The path without symbolic links; inside of a mount of topofs as it was written.
    pub path: PathBuf,
    /// The mount of topofs that it is in.
    pub mount: Option<&'a Entry>,
}

impl Place<'_> {
    /// The path below the root of the mount.
    pub fn inside(&self) -> &Path {
        let inside = self.mount.and_then(|mount| self.path.strip_prefix(&mount.mountpoint).ok());
        inside.unwrap_or(Path::new(""))
    }
}

impl Host {
    /// Reads the mount table.
    pub fn read() -> io::Result<Self> {
        Ok(Self(Table::open()?.read()?))
    }

    /// All mounts of topofs, each file system once, with the other places where it is seen.
    pub fn mounts(&self) -> Vec<(&Entry, Vec<&Entry>)> {
        let mut found: Vec<(&Entry, Vec<&Entry>)> = Vec::new();
        // A mount of a part has no `.topofs`.
        let (whole, parts): (Vec<&Entry>, Vec<&Entry>) =
            self.ours().partition(|entry| entry.root == Path::new("/") && !self.is_covered(entry));
        for entry in whole.into_iter().chain(parts) {
            match found.iter_mut().find(|(first, _)| first.device == entry.device) {
                Some((_, others)) => others.push(entry),
                None => found.push((entry, Vec::new())),
            }
        }
        found.sort_by(|(one, _), (other, _)| one.mountpoint.cmp(&other.mountpoint));
        found
    }

    /// Every place where a topology is mounted, the last one first: others may be below it.
    pub fn ours(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.0.iter().filter(|entry| entry.is_ours())
    }

    /// Everything that is mounted in a directory of a mount.
    pub fn below(&self, mount: &Entry) -> impl Iterator<Item = &Entry> {
        let is_below =
            |entry: &&Entry| entry.mountpoint != mount.mountpoint && entry.mountpoint.starts_with(&mount.mountpoint);
        self.0.iter().filter(is_below)
    }

    /// What is mounted topmost at a place.
    pub fn topmost(&self, place: &Path) -> Option<&Entry> {
        self.0.iter().rfind(|entry| entry.mountpoint == place)
    }

    /// Whether something else is mounted over it. (Whether something is mounted over a directory above it, only the
    /// kernel knows.)
    pub fn is_covered(&self, mount: &Entry) -> bool {
        self.topmost(&mount.mountpoint).is_none_or(|topmost| topmost.id != mount.id)
    }

    /// Where a path leads. Symbolic links on the way to a mount are followed, the last one only if `last` says so.
    pub fn find(&self, path: &Path, last: bool) -> io::Result<Place<'_>> {
        let mut place = Place { path: PathBuf::from("/"), mount: self.mount_at(Path::new("/")) };
        let mut left = parts_backwards(&std::path::absolute(path)?);
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                place.path.pop();
                place.mount = place.mount.filter(|mount| place.path.starts_with(&mount.mountpoint));
                continue;
            }
            let there = place.path.join(&name);
            if let Some(mount) = self.mount_at(&there) {
                place = Place { path: there, mount: Some(mount) };
                continue;
            }
            let link = match place.mount {
                None if last || !left.is_empty() => there.read_link().ok(),
                _ => None,
            };
            let Some(target) = link else {
                place.path = there;
                continue;
            };
            links += 1;
            if links > LINKS {
                return Err(Errno::ELOOP.into());
            }
            if target.is_absolute() {
                place = Place { path: PathBuf::from("/"), mount: self.mount_at(Path::new("/")) };
            }
            left.extend(parts_backwards(&target));
        }
        Ok(place)
    }

    /// The mount that a command means if nobody names one: that of the working directory, or else the only one of
    /// this user and of root.
    pub fn usual(&self) -> anyhow::Result<&Entry> {
        // The kernel knows the name, and asks nobody.
        if let Ok(here) = std::env::current_dir()
            && let Some(mount) = self.find(&here, true)?.mount
        {
            return Ok(mount);
        }
        let names = |some: &[&Entry]| {
            let names = some.iter().take(NAMED).map(|mount| mount.mountpoint.display().to_string());
            let more = if some.len() > NAMED { ", ..." } else { "" };
            names.collect::<Vec<_>>().join(", ") + more
        };
        match self.trusted().as_slice() {
            [mount] => Ok(mount),
            [] if self.mounts().is_empty() => bail!("there is no mount of topofs on this host"),
            [] => {
                let all: Vec<&Entry> = self.mounts().into_iter().map(|(mount, _)| mount).collect();
                bail!("all mounts of topofs on this host are of other users: name one of {}", names(&all))
            }
            many => bail!("there are several mounts of topofs on this host: name one of {}", names(many)),
        }
    }

    /// The mounts that count without being named: any user can make others, and say in them what he likes.
    pub fn trusted(&self) -> Vec<&Entry> {
        self.mounts().into_iter().map(|(mount, _)| mount).filter(|mount| is_trusted(mount)).collect()
    }

    fn mount_at(&self, place: &Path) -> Option<&Entry> {
        self.topmost(place).filter(|entry| entry.is_ours())
    }
}

/// Whether a mount is this user's, or root's.
pub(super) fn is_trusted(mount: &Entry) -> bool {
    mount.user().is_some_and(|user| user == 0 || user == nix::unistd::geteuid().as_raw())
}

/// The names of a path, the last one first.
fn parts_backwards(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    });
    let mut names: Vec<OsString> = names.map(ToOwned::to_owned).collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(lines: &[String]) -> Host {
        Host(crate::mount::parse(lines.concat().as_bytes()).unwrap())
    }

    fn line(id: u32, device: &str, root: &str, at: &str, kind: &str) -> String {
        format!("{id} 1 {device} {root} {at} rw shared:1 - {kind} memory:demo/vitess/global rw,user_id=0\n")
    }

    #[test]
    fn a_path_leads_into_the_topmost_mount_that_it_crosses() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let at = |name: &str| top.join(name).display().to_string();
        std::fs::create_dir(top.join("m")).unwrap();
        std::os::unix::fs::symlink("m", top.join("link")).unwrap();
        std::os::unix::fs::symlink(top.join("link"), top.join("far")).unwrap();
        std::os::unix::fs::symlink("loop", top.join("loop")).unwrap();
        let host = host(&[
            line(1, "0:1", "/", "/", "ext4"),
            line(2, "0:2", "/", &at("m"), "fuse.topofs"),
            line(3, "0:3", "/", &at("covered"), "fuse.topofs"),
            line(4, "0:4", "/", &at("covered"), "tmpfs"),
        ]);
        let found = |path: &str, last| {
            let place = host.find(&top.join(path), last).unwrap();
            (place.mount.map(|mount| mount.id), place.inside().display().to_string())
        };
        for (path, inside) in [
            ("m", ""),
            ("m/", ""),
            ("m/global/cells", "global/cells"),
            ("link", ""),
            ("far/zone1", "zone1"),
            ("m/global/../zone1/.", "zone1"),
            ("nothing/../m", ""),
        ] {
            assert_eq!(found(path, true), (Some(2), inside.to_owned()), "{path}");
        }
        for path in ["", "m/..", "m/../other", "covered", "nothing", "mm"] {
            assert_eq!(found(path, true).0, None, "{path}");
        }
        assert_eq!(found("link", false).0, None, "the last link is not followed");
        assert_eq!(found("far/zone1", false).0, Some(2), "others are");
        assert!(host.find(&top.join("loop"), true).is_err());
    }

    #[test]
    fn a_file_system_is_listed_once_and_by_a_place_where_it_can_be_asked() {
        let host = host(&[
            line(1, "0:1", "/", "/", "ext4"),
            line(2, "0:2", "/global", "/part", "fuse.topofs"),
            line(3, "0:2", "/", "/whole", "fuse.topofs"),
            line(4, "0:2", "/", "/copy", "fuse.topofs"),
            line(5, "0:5", "/", "/a", "fuse.topofs"),
            line(6, "0:6", "/", "/whole/x", "tmpfs"),
        ]);
        let found: Vec<(u32, usize)> = host.mounts().iter().map(|(mount, others)| (mount.id, others.len())).collect();
        assert_eq!(found, [(5, 0), (3, 2)]);
        let whole = host.topmost(Path::new("/whole")).unwrap();
        assert_eq!(host.below(whole).map(|entry| entry.id).collect::<Vec<_>>(), [6]);
        assert!(!host.is_covered(whole));
    }
}
