//! A directory to mount in, the commands of topofs in it, and another user.

use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::TempDir;

use crate::common::mount::TOPOFS;
use crate::common::{bash_apart, bash_in, eventually, process_has_ended, text};

/// Another user, who can run `./topofs` of a [`Place`] for users.
pub const USER: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

/// A script for a mount namespace of its own, in which no topology is mounted.
pub const ALONE: &str =
    "for m in $(awk '$3 == \"fuse.topofs\" { print $2 }' /proc/mounts | tac); do umount -l \"$m\"; done\n";

/// A directory whose mounts end with the test.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self(dir)
    }

    /// With a mount point `m` of the other user, who can start topofs.
    pub fn for_users() -> Self {
        let place = Self::new();
        place.sh(&format!("mkdir m; chown 65534:65534 m; chmod 0666 /dev/fuse; cp {TOPOFS} topofs"));
        place
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The output of a script that must succeed.
    pub fn sh(&self, script: &str) -> String {
        let output = bash_in(self.dir(), &format!("set -e; {script}"));
        assert!(output.status.success(), "{script}: {}\n{}", output.status, text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `topofs ARGS`.
    pub fn topofs(&self, args: &str) -> (i32, String) {
        told(&bash_in(self.dir(), &format!("{TOPOFS} {args}")))
    }

    /// The number of the daemon of a mount.
    pub fn pid(&self, point: &str) -> u32 {
        self.sh(&format!("jq .pid {point}/.topofs/status")).trim().parse().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mounts = std::fs::read("/proc/self/mounts").unwrap_or_default();
        let dir = self.dir().to_str().unwrap();
        let mounts = String::from_utf8_lossy(&mounts).into_owned();
        for place in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|place| place.starts_with(dir)) {
            let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// The exit status, and all that was printed.
pub fn told(output: &Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), text(output))
}

/// Runs a script of topofs in a mount namespace in which nothing else is mounted. `$T` is the program.
pub fn alone(dir: &Path, script: &str) -> (i32, String) {
    told(&bash_apart(dir, &format!("exec 2>&1\n{ALONE}T={TOPOFS}\n{script}")))
}

pub fn wait_for_end(pid: u32) {
    eventually("the process ends", || process_has_ended(pid).then_some(()));
}
