//! The mount table, /proc/self/mountinfo: which mounts there are, and whether one of them is ours.
//!
//! Anybody's mount point may hold bytes that are not UTF-8. Mount numbers are reused at once, but a file system keeps
//! its device for as long as anything holds it, so devices are compared. A table that cannot be read says nothing: it
//! must never mean that a mount is gone.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::device::Device;

/// The type of a mount in the mount table.
pub(super) const KIND: &str = "fuse.topofs";

/// The open table: it can be read again without another descriptor.
#[derive(Debug)]
pub(crate) struct Table(File);

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The number of the mount. It is used again at once when the mount is gone.
    pub id: u32,
    /// The file system.
    pub device: Device,
    /// What of the file system is mounted: `/` is all of it.
    pub root: PathBuf,
    /// Where it is mounted, as this process sees it.
    pub mountpoint: PathBuf,
    /// Such as `fuse.topofs`.
    pub kind: OsString,
    /// What is mounted, in the words of whoever has mounted it.
    pub source: OsString,
    /// The options of the file system.
    options: OsString,
}

impl Entry {
    /// Whether it is a mount of topofs.
    pub fn is_ours(&self) -> bool {
        self.kind == KIND
    }

    /// The user who has made a FUSE mount.
    pub fn user(&self) -> Option<u32> {
        let options = self.options.as_bytes().split(|byte| *byte == b',');
        options
            .filter_map(|option| option.strip_prefix(b"user_id="))
            .find_map(|uid| str::from_utf8(uid).ok()?.parse().ok())
    }
}

impl Table {
    /// Opens the table of this process's mount namespace.
    pub fn open() -> io::Result<Self> {
        Ok(Self(File::open("/proc/self/mountinfo")?))
    }

    /// What is mounted now, the topmost mount of a place last.
    pub fn read(&mut self) -> io::Result<Vec<Entry>> {
        let mut bytes = Vec::new();
        self.0.rewind()?;
        self.0.read_to_end(&mut bytes)?;
        parse(&bytes)
    }

    /// Whether a file system is mounted anywhere; an error if that is unknown.
    pub fn has(&mut self, device: Device) -> io::Result<bool> {
        Ok(self.read()?.iter().any(|entry| entry.device == device))
    }

    /// Waits until a file system is mounted nowhere any more. If that is unknown, it looks again.
    pub fn wait_until_gone(&mut self, device: Device) {
        /// How often to look even if the kernel reports nothing, in milliseconds.
        const LOOK: u16 = 1_000;
        /// How many looks must agree: the kernel returns the table in pieces, and a mount may move meanwhile.
        const LOOKS: usize = 2;
        while !(0..LOOKS).all(|_| matches!(self.has(device), Ok(false))) {
            // The kernel reports when any mount appears or disappears.
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLPRI)];
            if poll(&mut fds, PollTimeout::from(LOOK)).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(LOOK.into()));
            }
        }
    }
}

/// All lines. A line that cannot be understood makes the whole table unknown, since it might be the wanted one.
pub(crate) fn parse(table: &[u8]) -> io::Result<Vec<Entry>> {
    let lines = table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let entries: Option<Vec<Entry>> = lines.map(entry).collect();
    // There is always a root.
    entries
        .filter(|entries| !entries.is_empty())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the mount table cannot be understood"))
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`: optional fields come before the hyphen. See
/// proc(5).
fn entry(line: &[u8]) -> Option<Entry> {
    let text = |field: &[u8]| OsString::from_vec(unescape(field));
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let (root, mountpoint) = (text(fields.next()?), text(fields.next()?));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Entry {
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: root.into(),
        mountpoint: mountpoint.into(),
        kind: OsStr::from_bytes(rest.next()?).to_owned(),
        source: text(rest.next()?),
        options: text(rest.next()?),
    })
}

/// White space and backslashes are three octal digits in the table.
pub(crate) fn unescape(mut rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((first, others)) = rest.split_first() {
        let digits = others.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, digits.and_then(|digits| u8::from_str_radix(digits, 8).ok())) {
            (b'\\', Some(code)) => {
                bytes.push(code);
                rest = others.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_byte_may_be_in_a_mount_point() {
        let table = b"22 1 0:21 / /proc rw,relatime - proc proc rw\n\
            90 22 0:55 / /tmp/\xff\\040\\134a rw shared:1 master:2 - fuse.topofs memory:a\\040b rw,user_id=0\n\
            91 22 259:3 /x / rw - ext4 /dev/\xfe rw\n";
        let entries = parse(table).unwrap();
        let shown: Vec<_> =
            entries.iter().map(|entry| (entry.device, entry.mountpoint.as_os_str().as_bytes())).collect();
        assert_eq!(shown, [((0, 21), &b"/proc"[..]), ((0, 55), b"/tmp/\xff \\a"), ((259, 3), b"/")]);
        assert_eq!(entries[1].kind, "fuse.topofs");
        let [proc, ours, other] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!((ours.id, ours.source.as_bytes(), ours.user()), (90, &b"memory:a b"[..], Some(0)));
        assert_eq!((proc.user(), other.user()), (None, None), "no user has made it");
        assert!(ours.is_ours() && !other.is_ours());
    }

    #[test]
    fn what_cannot_be_understood_is_unknown() {
        for table in [
            &b""[..],
            b"22 1 0:21 / /proc rw\n",
            b"22 1 x / /proc rw - proc proc rw\n",
            b"22 1 0:21 / /a rw - tmpfs t rw\n9",
        ] {
            assert!(parse(table).is_err(), "{table:?}");
        }
    }

    #[test]
    fn the_table_of_this_machine_is_understood_again_and_again() {
        let mut table = Table::open().unwrap();
        let entries = table.read().unwrap();
        let root = entries.iter().rfind(|entry| entry.mountpoint.as_os_str() == "/").unwrap();
        assert!(table.has(root.device).unwrap());
        assert!(!table.has((u32::MAX, 0)).unwrap());
    }
}
