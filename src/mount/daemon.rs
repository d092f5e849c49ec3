//! Going to the background: the parent waits until the mount answers or the child has said why it does not. Must never
//! fork a process that has threads.

use std::io::Read;
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};

/// Which process returned from [`detach`].
#[derive(Debug)]
pub enum Side {
    /// The caller's process. The child of this pid is ready, or has ended with this exit status.
    Parent(Result<Pid, u8>),
    /// The daemon, which must say when it is ready.
    Child(Readiness),
}

/// Reports to the parent that the mount answers. If it is dropped without [`Readiness::report`], the parent learns that
/// the mount does not answer.
#[derive(Debug)]
pub struct Readiness(Option<OwnedFd>);

impl Readiness {
    /// For a daemon that stays in the foreground: nobody waits.
    pub fn nobody_waits() -> Self {
        Self(None)
    }

    /// The mount answers. Closes the terminal, so that a pipeline that waits for its end continues.
    pub fn report(self) -> std::io::Result<()> {
        let Some(pipe) = self.0 else { return Ok(()) };
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(&null)?;
        nix::unistd::write(&pipe, b"1")?;
        Ok(())
    }
}

/// Makes a child in a session of its own. Call this before any thread is started.
#[allow(unsafe_code)]
pub fn detach(failure: u8) -> std::io::Result<Side> {
    // Nothing that the daemon starts may inherit it.
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the process has one thread, so the child may do anything that the parent might.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(write);
            Ok(Side::Parent(wait_for(child, read, failure)))
        }
        ForkResult::Child => {
            drop(read);
            setsid()?;
            // A daemon must not keep anybody's directory busy.
            std::env::set_current_dir("/")?;
            Ok(Side::Child(Readiness(Some(write))))
        }
    }
}

fn wait_for(child: Pid, pipe: OwnedFd, failure: u8) -> Result<Pid, u8> {
    let mut byte = [0];
    if std::fs::File::from(pipe).read(&mut byte).is_ok_and(|count| count == 1) {
        return Ok(child);
    }
    // The child has printed its reason on the terminal that it shares with us.
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, status)) if status != 0 => Err(u8::try_from(status).unwrap_or(failure)),
        _ => Err(failure),
    }
}
