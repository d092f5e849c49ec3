//! `mount -t topofs`, mount.topofs and fstab.
//!
//! Each test is a script in mount and PID namespaces of its own, with its own /sbin and /etc: nothing that it mounts,
//! writes or starts can outlive it.

mod automount;
mod fstab;
mod helper;
mod twice;

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::mount::TOPOFS;
use crate::common::text;

/// A host with mount.topofs.
struct Host(TempDir);

/// What comes before each script: the host, and the words of these tests.
const HOST: &str = r#"
set -eu
fail() { echo "FAILED: $*"; exit 1; }
over() {
    mkdir -p "$W/over$1/upper" "$W/over$1/work"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$W/over$1/upper,workdir=$W/over$1/work" "$1"
}
# The mounts of other tests, which umount -a would find.
awk '$3 == "fuse.topofs" { print $2 }' /proc/mounts | while read -r other; do
    umount --lazy --internal-only --no-canonicalize "$(printf %b "$other")"
done
mount -t tmpfs tmpfs "$W"
chmod 755 "$W"
over "$(realpath /sbin)"
over /etc
touch "$W/topofs"
mount --bind "$TOPOFS" "$W/topofs"
ln -s "$W/topofs" /sbin/mount.topofs
ln -s "$W/topofs" /sbin/mount.fuse.topofs
M=$W/m
mkdir "$M" "$W/m2"

# Runs a command that must fail with this status and say exactly this on one line.
refused() {
    local status=$1 words=$2 said got=0
    shift 2
    said=$("$@" 2>&1) || got=$?
    [ "$got $said" = "$status $words" ] || fail "$*: status $got, and: $said (not: status $status, and: $words)"
}
# The mount table has exactly this many lines with topofs on a directory.
mounted() {
    local count
    count=$(awk -v dir="$2" '$2 == dir && $3 == "fuse.topofs"' /proc/mounts | wc -l)
    [ "$count" = "$1" ] || fail "$2 is mounted on $count times, not $1"
}
source_of() { findmnt --noheadings --raw --output SOURCE --mountpoint "$1" | tail -n 1; }
daemon_of() { jq .pid "$1/.topofs/status"; }
# Waits until a command succeeds.
until_true() {
    for _ in $(seq 500); do if "$@" 2> /dev/null; then return; fi; sleep 0.02; done
    fail "not in time: $*"
}
gone() { ! [ -e "/proc/$1/exe" ]; }
# A process may look gone a moment before its mount is dead.
is_dead() { stat -f "$1" 2>&1 | grep -q 'Transport endpoint is not connected'; }
as_nobody() { setpriv --reuid nobody --regid nogroup --clear-groups "$@"; }
"#;

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Runs a script in which everything must succeed, and returns its output.
    fn run(&self, script: &str) -> String {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60", "unshare", "--mount", "--propagation", "private"]);
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c"]);
        command.arg(format!("{HOST}\n{script}")).stdin(std::process::Stdio::null());
        let output = command.env("W", self.0.path()).env("TOPOFS", TOPOFS).output().expect("a shell runs");
        assert!(output.status.success(), "{}: {}", output.status, text(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn page(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// The blocks of code of a page in this language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    page.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}
