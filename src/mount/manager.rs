//! What the service manager (systemd) is told of the mount, by sd_notify(3). Must never fail a mount, or delay one,
//! because nobody listens.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sd_notify::NotifyState;

use crate::cells::Cells;
use crate::mirror::Health;

/// The variables by which systemd tells a process where to answer. No process of ours may answer in our place.
pub(super) const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
/// The pid of the process that systemd itself has started.
const STARTED: &str = "SYSTEMD_EXEC_PID";
/// How long the service manager waits on after each sign that the start goes on.
const EXTENSION: Duration = Duration::from_secs(30);
/// How often it gets one.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
/// How often to look whether the state in words is another one.
const LOOK: Duration = Duration::from_secs(2);
/// Longest state in words, in characters: it may quote a service.
const LONGEST: usize = 300;

/// The service manager, if there is one that wants to hear from this process.
#[derive(Debug, Clone)]
pub struct Manager {
    listens: bool,
    /// The process that was started says that the mount answers.
    in_background: bool,
    watchdog: Option<Duration>,
    /// The last state in words.
    said: Arc<Mutex<String>>,
}

impl Manager {
    /// As the environment says. Call this in the process that was started, before it goes to the background: systemd
    /// names that process. A mount that a program of some service makes in the background is none of that service.
    pub fn of_environment(stays: bool) -> Self {
        let own = std::process::id().to_string();
        let is_of_other = !stays && std::env::var(STARTED).is_ok_and(|pid| pid != own);
        let listens = !is_of_other && std::env::var_os("NOTIFY_SOCKET").is_some();
        let watchdog = if listens { sd_notify::watchdog_enabled() } else { None };
        Self { listens, in_background: !stays, watchdog, said: Arc::default() }
    }

    /// How often it wants to hear that the mount is alive.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The daemon is in the background now, and its mount answers. Only this process, which systemd has started, may
    /// say so.
    pub fn handed_over(&self, daemon: u32) {
        self.tell(&[NotifyState::MainPid(daemon), NotifyState::Ready]);
    }

    /// The mount answers.
    pub(super) fn ready(&self) {
        if !self.in_background {
            self.tell(&[NotifyState::Ready]);
        }
    }

    /// Everything is compared with the services again, and passwords are read again.
    pub(super) fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.tell(&[NotifyState::Reloading, now]);
        }
    }

    /// That is done.
    pub(super) fn reloaded(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// The mount is ending.
    pub(super) fn stopping(&self) {
        self.say("ending: changes in flight are finished, locks are given back");
        self.tell(&[NotifyState::Stopping]);
    }

    /// The mount is alive.
    pub(super) fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// The state in words. Says nothing twice.
    pub fn say(&self, words: &str) {
        if !self.listens {
            return;
        }
        let words = in_one_line(words);
        {
            let mut said = self.said.lock();
            if *said == words {
                return;
            }
            said.clone_from(&words);
        }
        self.tell(&[NotifyState::Status(&words)]);
    }

    /// Does the work of the start. Keeps the service manager waiting meanwhile, for as long as that may take.
    pub(super) async fn starting<T>(&self, longest: Duration, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
        let end = tokio::time::Instant::now() + longest;
        while self.listens && tokio::time::Instant::now() < end {
            self.tell(&[NotifyState::ExtendTimeoutUsec(extension)]);
            if let Ok(done) = tokio::time::timeout(EXTEND_EVERY, &mut work).await {
                return done;
            }
        }
        work.await
    }

    /// Says in words how the cells are, for as long as the mount lives.
    pub(super) async fn follow(&self, cells: &Cells) {
        if !self.listens {
            return;
        }
        if self.in_background {
            // It hears us only when it knows our pid.
            tokio::time::sleep(LOOK).await;
        }
        loop {
            self.say(&in_words(cells));
            tokio::time::sleep(LOOK).await;
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if !self.listens {
            return;
        }
        if let Err(error) = sd_notify::notify(states) {
            tracing::debug!(%error, "the service manager cannot be told");
        }
    }
}

/// How the cells are: those that nobody uses do not count.
fn in_words(cells: &Cells) -> String {
    let (mut live, mut trouble) = (0, Vec::new());
    for cell in cells.all() {
        let state = match cell.mirror.health() {
            Health::Idle => continue,
            Health::Live => {
                live += 1;
                continue;
            }
            Health::Loading => "is loading",
            Health::Shaky => "is reconnecting",
            Health::Down if cell.serves_stale() => "is down: old records are shown",
            Health::Down => "is down",
            Health::Denied => "may not be read",
        };
        let cause = cell.mirror.trouble().map_or_else(String::new, |(cause, _)| format!(": {cause}"));
        trouble.push(format!("{} {state}{cause}", cell.name));
    }
    let cells = |count: usize| if count == 1 { "1 cell".to_owned() } else { format!("{count} cells") };
    match trouble.first() {
        None => format!("mounted; {} in use, all live", cells(live)),
        Some(first) if trouble.len() == 1 => format!("mounted; {first}; {} live", cells(live)),
        Some(first) => format!("mounted; {first}, and {} more in trouble; {} live", trouble.len() - 1, cells(live)),
    }
}

/// Words that neither forge another message nor move the cursor of a terminal.
fn in_one_line(words: &str) -> String {
    let shown = words.chars().take(LONGEST).flat_map(|character| {
        let escaped = character.is_control().then(|| character.escape_default());
        let plain = escaped.is_none().then_some(character);
        escaped.into_iter().flatten().chain(plain)
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_service_forge_no_message() {
        assert_eq!(in_one_line("down: a\nREADY=1\u{1b}[2J\u{9b}"), "down: a\\nREADY=1\\u{1b}[2J\\u{9b}");
        assert_eq!(in_one_line(&"\u{e4}".repeat(1_000)).chars().count(), LONGEST);
    }
}
