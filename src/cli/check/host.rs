//! This host: what a mount needs of the kernel, of fusermount3, and of the mount point.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{AccessFlags, access, geteuid};

use super::Finding;
use crate::cli::ask::{NoAnswer, ask};
use crate::cli::host::Host;
use crate::control::ControlFile;
use crate::device::is_dead;
use crate::mount::{operation_timeout, request_timeout};
use crate::scrape::{Listening, MetricsAddress};

/// The configuration of fusermount3.
const FUSE_CONF: &str = "/etc/fuse.conf";
/// What ordinary users mount with.
const PROGRAM: &str = "fusermount3";
/// The kind of what waits for somebody to look, and then has something mounted there.
const AUTOFS: &str = "autofs";

/// What a mount by this user needs.
pub(in crate::cli) fn programs(allow_other: bool) -> Vec<Finding> {
    let mut found = vec![device()];
    if geteuid().is_root() {
        return found;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM)).find(|program| program.is_file());
    found.push(match program.and_then(|program| Some((program.metadata().ok()?, program))) {
        None => Finding::failed("host", PROGRAM, "is not on the PATH, and an ordinary user needs it", "install fuse3"),
        Some((metadata, program)) => {
            const SET_UID: u32 = 0o4000;
            let (is_of_root, subject) =
                (metadata.uid() == 0 && metadata.mode() & SET_UID != 0, program.display().to_string());
            match is_of_root {
                true => Finding::ok("host", subject, "mounts for ordinary users"),
                false => Finding::failed("host", subject, "is not set-uid root", "install the package fuse3 again"),
            }
        }
    });
    if allow_other {
        let text = std::fs::read_to_string(FUSE_CONF).unwrap_or_default();
        found.push(match text.lines().any(|line| line.trim() == "user_allow_other") {
            true => Finding::ok("host", FUSE_CONF, "has user_allow_other"),
            false => Finding::failed(
                "host",
                FUSE_CONF,
                "has no user_allow_other, which --allow-other needs for ordinary users",
                "add the line, mount as root, or leave out --allow-other",
            ),
        });
    }
    found
}

fn device() -> Finding {
    const DEVICE: &str = "/dev/fuse";
    match std::fs::File::options().read(true).write(true).open(DEVICE) {
        Ok(_) => Finding::ok("host", DEVICE, "can be opened"),
        Err(error) => {
            Finding::failed("host", DEVICE, error.to_string(), "modprobe fuse; in a container, pass the device on")
        }
    }
}

/// Whether the kernel limits requests.
pub(in crate::cli) fn kernel(timeout: Duration) -> Option<Finding> {
    let limit = request_timeout()?;
    let effective = humantime::format_duration(operation_timeout(timeout, Some(limit)));
    let text = format!(
        "gives up mounts whose requests take longer than {} s; one call to a service gets {effective}",
        limit.as_secs()
    );
    Some(Finding::warning("host", "the kernel", text, "raise fs.fuse.max_request_timeout and default_request_timeout"))
}

/// Whether the metrics can be served there. Nobody can connect meanwhile: it is given back at once.
pub(in crate::cli) fn port(address: MetricsAddress) -> Finding {
    match Listening::at(address) {
        Ok(_) => Finding::ok("host", format!("--metrics-address {address}"), "is free"),
        // It names the flag.
        Err(error) => {
            Finding::failed("host", "", error.to_string(), "choose another port, or see who has it (ss -tlnp)")
        }
    }
}

/// Whether something can be mounted there.
pub(in crate::cli) fn mount_point(path: &Path, host: &Host, patience: Duration) -> Finding {
    let subject = path.display().to_string();
    let failed = |text: &str, advice: &str| Finding::failed("mountpoint", subject.clone(), text, advice);
    let place = match host.find(path, true) {
        Ok(place) => place,
        Err(error) => return failed(&error.to_string(), "correct the path"),
    };
    if let Some(mount) = place.mount.filter(|mount| mount.mountpoint == place.path) {
        return match ask(mount, ControlFile::Version, patience) {
            Err(NoAnswer::Dead) => {
                Finding::ok("mountpoint", subject, "holds a dead mount of topofs, which a new mount replaces")
            }
            _ => {
                let text = format!("{} is mounted there already", mount.source.to_string_lossy());
                failed(&text, "topofs umount it first, or check it as it is: topofs check without flags")
            }
        };
    }
    if let Some(mount) = place.mount {
        let text = format!("is in a mount of topofs ({})", mount.mountpoint.display());
        return failed(&text, "choose a directory outside");
    }
    if let Some(other) = host.topmost(&place.path).filter(|other| other.kind != AUTOFS && place.path != Path::new("/"))
    {
        if nix::sys::statvfs::statvfs(&place.path).is_err_and(is_dead) {
            return failed(&format!("holds a dead mount ({})", other.kind.display()), "unmount that first");
        }
        let text = format!("a mount of another kind ({}) is there, and would be hidden", other.kind.display());
        return Finding::warning("mountpoint", subject, text, "choose an empty directory");
    }
    directory(&subject, &place.path)
}

fn directory(subject: &str, path: &PathBuf) -> Finding {
    let failed = |text: &str, advice: &str| Finding::failed("mountpoint", subject, text, advice);
    match path.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return failed("does not exist", "make the directory");
        }
        Err(error) => return failed(&error.to_string(), "choose a directory that this user can reach"),
        Ok(found) if !found.is_dir() => return failed("is not a directory", "name a directory"),
        Ok(_) if path == Path::new("/") => {
            return failed("the root directory cannot be a mount point", "name another one");
        }
        Ok(_) => {}
    }
    // As fusermount3 demands it.
    if !geteuid().is_root() && access(path, AccessFlags::W_OK).is_err() {
        return failed("this user may not write there, and so may not mount there", "choose a directory of this user");
    }
    match std::fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Finding::ok("mountpoint", subject, "is an empty directory"),
        Ok(true) => Finding::warning(
            "mountpoint",
            subject,
            "is not empty: what is in it would be hidden",
            "choose an empty directory",
        ),
        Err(error) => {
            Finding::warning("mountpoint", subject, format!("cannot be listed: {error}"), "see that it is empty")
        }
    }
}
