//! Going to the background: the parent waits until the mount answers or the child has said why it does not. Must never
//! fork a process that has threads.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};
use parking_lot::Mutex;

/// Which process returned from [`detach`].
#[derive(Debug)]
pub enum Side {
    /// The caller's process. The child of this pid is ready, or has ended.
    Parent(Result<Pid, Failed>),
    /// The daemon, which must say when it is ready.
    Child(Readiness),
}

/// How a child has ended before its mount answered.
#[derive(Debug)]
pub struct Failed {
    /// Its exit status.
    pub status: u8,
    /// What it has said.
    pub reason: String,
}

/// What the child sends when the mount answers.
const READY: u8 = b'1';
/// What it sends before its reason.
const FAILED: u8 = b'0';
/// The longest reason: it fits into a pipe, so the child never waits for its parent.
const LONGEST: usize = 16 << 10;

/// Reports to the parent that the mount answers, or why it does not. If all of them are dropped without a report, the
/// parent learns that the mount does not answer.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<Option<OwnedFd>>>);

impl Readiness {
    /// For a daemon that stays in the foreground: nobody waits.
    pub fn nobody_waits() -> Self {
        Self(Arc::default())
    }

    /// Whether somebody waits at a terminal that the log does not lead to.
    pub fn is_awaited(&self) -> bool {
        self.0.lock().is_some()
    }

    /// The mount answers. Closes the terminal, so that a pipeline that waits for its end continues. Call this in the
    /// main thread.
    pub fn report(&self) -> std::io::Result<()> {
        let Some(pipe) = self.0.lock().take() else { return Ok(()) };
        let null = File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(&null)?;
        // Only now: while an automount waits for this mount, autofs lets only the process group of mount(8) pass.
        setsid()?;
        // From here on, the daemon lives without its parent.
        set_pdeathsig(None)?;
        nix::unistd::write(&pipe, &[READY])?;
        Ok(())
    }

    /// The mount does not answer. False if nobody waits for it any more.
    pub fn fail(&self, reason: &str) -> bool {
        let Some(pipe) = self.0.lock().take() else { return false };
        let reason = reason.as_bytes();
        let message = [&[FAILED], reason.get(..LONGEST).unwrap_or(reason)].concat();
        File::from(pipe).write_all(&message).is_ok()
    }
}

/// Makes a child, which gets a session of its own when its mount answers. Call this before any thread is started.
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
            // If somebody interrupts the command, there must not be a mount some time later.
            set_pdeathsig(Signal::SIGTERM)?;
            // A daemon must not keep anybody's directory busy.
            std::env::set_current_dir("/")?;
            Ok(Side::Child(Readiness(Arc::new(Mutex::new(Some(write))))))
        }
    }
}

fn wait_for(child: Pid, pipe: OwnedFd, failure: u8) -> Result<Pid, Failed> {
    let mut pipe = File::from(pipe);
    let (mut kind, mut reason) = ([0], Vec::new());
    match pipe.read(&mut kind) {
        Ok(1) if kind == [READY] => return Ok(child),
        // What cannot be read is not known.
        Ok(1) => drop(pipe.take(LONGEST as u64).read_to_end(&mut reason)),
        _ => {}
    }
    let (status, how) = match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, 0)) | Err(_) => (failure, "the daemon has ended".to_owned()),
        Ok(WaitStatus::Signaled(_, signal, _)) => (failure, format!("the daemon was killed by {signal}")),
        Ok(WaitStatus::Exited(_, status)) => {
            (u8::try_from(status).unwrap_or(failure), format!("the daemon has ended with exit status {status}"))
        }
        Ok(_) => (failure, "the daemon was stopped".to_owned()),
    };
    let said = String::from_utf8_lossy(&reason).into_owned();
    let reason = if said.is_empty() { format!("{how} before the mount answered") } else { said };
    Err(Failed { status, reason })
}
