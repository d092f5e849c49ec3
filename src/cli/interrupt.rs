//! Signals that end a command: the first lets it give back what it holds, a second one ends it at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell reports of a program that Ctrl-C has ended: 128 and the number of SIGINT.
const ENDED_AT_ONCE: i32 = 130;

/// Is cancelled when the user, or the system, asks the command to end. Must be called in a runtime.
pub(super) fn on_signals() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let (mut signals, token) = (signal(kind)?, token.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if token.is_cancelled() {
                    std::process::exit(ENDED_AT_ONCE);
                }
                token.cancel();
            }
        });
    }
    Ok(token)
}

/// Ends the process at Ctrl-C with the status that a shell expects. For a command that has nothing to give back, and
/// may be waiting for anything.
pub(super) fn end_on_interrupt() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        signal(SignalKind::interrupt())?
    };
    std::thread::spawn(move || {
        runtime.block_on(signals.recv());
        std::process::exit(ENDED_AT_ONCE);
    });
    Ok(())
}
