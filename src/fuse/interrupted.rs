//! Ends the wait of a caller that a signal has interrupted. Must never give up what may have changed something: whoever
//! asked for that hears what became of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind, Result};
use crate::locks::{Ended, Patience};

/// How long to wait before anybody looks at the caller: most calls of a service are over by then, and a look costs
/// more than they do.
const BEFORE_LOOKING: Duration = Duration::from_millis(100);
/// How long a wait goes on although the caller has a signal that it handles. Some programs handle signals all the time
/// (timers, children that end, Go's own), and do not expect that this ends an open or a read of a file that is here in
/// a moment. A fatal signal is not waited for.
const HANDLED: Duration = Duration::from_secs(1);
/// Pause before looking again at a caller that has such a signal.
const AGAIN: Duration = Duration::from_millis(100);

/// Runs what a thread waits for. Fails with EINTR if the thread is killed meanwhile, is gone, or has had a signal to
/// handle for a while. A thread that cannot be seen waits to the end.
pub(super) async fn unless_interrupted<T>(
    patience: &Patience,
    thread: u32,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        // The first look is at the work alone: most of it is done at once.
        biased;
        outcome = work => outcome,
        () = interrupted(patience, thread) => {
            Err(Error::new(Kind::Interrupted, "interrupted by a signal while the service had not answered"))
        }
    }
}

async fn interrupted(patience: &Patience, thread: u32) {
    if thread == 0 {
        return std::future::pending().await;
    }
    let begun = Instant::now();
    tokio::time::sleep(BEFORE_LOOKING).await;
    loop {
        match patience.ended(thread).await {
            Ended::Gone => return,
            Ended::Signal if begun.elapsed() >= HANDLED => return,
            Ended::Signal => tokio::time::sleep(AGAIN).await,
            // The work has bounds of its own.
            Ended::Limit => return std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Bounds of the test, not of the code.
    const NEVER: Duration = Duration::from_secs(60);

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().unwrap()
    }

    #[tokio::test]
    async fn the_wait_of_a_program_that_is_killed_ends() {
        let mut program = sleeper();
        let patience = Patience::new(None);
        let id = program.id();
        let wait = unless_interrupted(&patience, id, std::future::pending::<Result<()>>());
        tokio::pin!(wait);
        // It lives.
        assert!(tokio::time::timeout(BEFORE_LOOKING * 3, &mut wait).await.is_err());
        program.kill().unwrap();
        let outcome = tokio::time::timeout(NEVER, wait).await.expect("the wait ends");
        assert_eq!(outcome.unwrap_err().kind, Kind::Interrupted);
        program.wait().unwrap();
    }

    #[tokio::test]
    async fn what_is_done_is_not_given_up() {
        let patience = Patience::new(None);
        // No such thread: it is gone.
        let gone = u32::MAX >> 1;
        assert_eq!(unless_interrupted(&patience, gone, async { Ok(1) }).await.unwrap(), 1);
        let slow = async {
            tokio::time::sleep(NEVER).await;
            Ok(1)
        };
        assert_eq!(unless_interrupted(&patience, gone, slow).await.unwrap_err().kind, Kind::Interrupted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_cannot_be_seen_waits_to_the_end() {
        let slow = async {
            tokio::time::sleep(NEVER).await;
            Ok(1)
        };
        assert_eq!(unless_interrupted(&Patience::new(Some(NEVER / 2)), 0, slow).await.unwrap(), 1);
    }
}
