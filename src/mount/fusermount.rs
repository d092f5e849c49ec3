//! The way of ordinary users: fusermount3, which may mount for them and passes on the descriptor that requests come
//! from. Must never pass on a descriptor of ours.
//!
//! fuser could run it, too, but would unmount by name when its session ends, whatever is mounted there by then.

use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

use super::manager::VARIABLES;
use super::spec::MountSpec;
use super::table::KIND;

const PROGRAM: &str = "fusermount3";
/// Where requests come from.
const DEVICE: &str = "/dev/fuse";
/// The variable that names the descriptor of the socket for the answer.
const SOCKET: &str = "_FUSE_COMMFD";

fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// Mounts on a directory, by its name. The program itself checks whether its caller may.
pub(super) fn mount(spec: &MountSpec) -> io::Result<OwnedFd> {
    // The option is a list: a comma in a name would begin another option.
    let source = spec.source.replace('\\', "\\\\").replace(',', "\\,");
    let subtype = KIND.trim_start_matches("fuse.");
    let mut options = format!("nosuid,nodev,noexec,default_permissions,subtype={subtype},fsname={source}");
    if spec.allow_other {
        options.push_str(",allow_other");
    }
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = program();
    command.args(["-o", &options, "--"]).arg(&spec.mountpoint);
    // The socket takes the place of standard input. Nothing else of ours is open for it.
    command.stdin(OwnedFd::from(theirs)).env(SOCKET, "0").stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("{PROGRAM}: {error}")))?;
    // This closes our copy of its end of the socket, so that we read an end when it dies.
    drop(command);
    let device = receive(&ours);
    let outcome = child.wait_with_output()?;
    match device {
        Ok(device) if outcome.status.success() => Ok(device),
        device => {
            let reason = String::from_utf8_lossy(&outcome.stderr);
            let reason = match (reason.trim(), device.err()) {
                ("", Some(error)) => format!("{PROGRAM} has said nothing: {error}"),
                (reason, _) => reason.to_owned(),
            };
            // It says so of the device, and not why.
            let hint = if reason.contains(DEVICE) { " (may you open it?)" } else { "" };
            Err(io::Error::other(format!("{reason}{hint}")))
        }
    }
}

#[allow(unsafe_code)]
fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = loop {
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(nix::errno::Errno::EINTR) => {}
            received => break received?,
        }
    };
    let descriptors = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just given us this descriptor.
    descriptors.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Unmounts. The program itself checks whether the mount is its caller's, and follows no symbolic link.
pub(super) fn unmount(flags: &[&str], path: &Path) -> io::Result<()> {
    let mut command = program();
    command.arg("-u").args(flags).arg("--").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut reason = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        // Why it failed matters less than that it did.
        let _ = pipe.read_to_string(&mut reason);
    }
    if child.wait()?.success() { Ok(()) } else { Err(io::Error::other(format!("cannot unmount: {}", reason.trim()))) }
}
