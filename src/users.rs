//! Names of users. Their source (LDAP, sssd) may not answer, so no lock and no save depends on it.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// How long to wait for a name; then the number must do.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long an answer stays valid: a name, or that none came in time.
const FRESH: Duration = Duration::from_secs(60);
/// Number of names to keep. One more, and all are forgotten and asked for again.
const KNOWN: usize = 1_024;
/// Number of threads that may hang while they ask for names. If so many hang, all other users have a number instead.
const ASKING: usize = 2;

/// Asks for the name of a user; may take for ever.
type Ask = fn(u32) -> Option<String>;

#[derive(Debug)]
struct Users {
    ask: Ask,
    known: Mutex<HashMap<u32, (String, Instant)>>,
    asking: Arc<Semaphore>,
}

static USERS: LazyLock<Users> = LazyLock::new(|| Users::new(system));

fn system(uid: u32) -> Option<String> {
    Some(nix::unistd::User::from_uid(uid.into()).ok()??.name)
}

/// The name of a user; the number if there is none, or if no answer comes in time.
pub async fn user_name(uid: u32) -> String {
    USERS.name(uid).await
}

impl Users {
    fn new(ask: Ask) -> Self {
        Self { ask, known: Mutex::default(), asking: Arc::new(Semaphore::new(ASKING)) }
    }

    async fn name(&self, uid: u32) -> String {
        if let Some((name, when)) = self.known.lock().get(&uid)
            && when.elapsed() < FRESH
        {
            return name.clone();
        }
        let asked = async {
            // The thread keeps it, so hanging threads are counted.
            let turn = self.asking.clone().acquire_owned().await.ok()?;
            let ask = self.ask;
            tokio::task::spawn_blocking(move || {
                let name = ask(uid);
                drop(turn);
                name
            })
            .await
            .ok()?
        };
        let name = tokio::time::timeout(PATIENCE, asked).await.ok().flatten().unwrap_or_else(|| uid.to_string());
        self.note(uid, name.clone());
        name
    }

    fn note(&self, uid: u32, name: String) {
        let mut known = self.known.lock();
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(uid, (name, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_has_a_name_or_a_number() {
        assert_eq!(user_name(0).await, "root");
        assert_eq!(user_name(3_999_999_999).await, "3999999999");
    }

    #[test]
    fn only_so_many_names_are_kept() {
        let users = Users::new(|_| None);
        (0..KNOWN as u32).for_each(|uid| users.note(uid, uid.to_string()));
        assert_eq!(users.known.lock().len(), KNOWN);
        users.note(KNOWN as u32, "one more".to_owned());
        let known = users.known.lock();
        assert_eq!((known.len(), known.contains_key(&(KNOWN as u32))), (1, true));
    }

    #[test]
    fn nobody_waits_for_a_service_of_names_that_hangs() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let users = Arc::new(Users::new(|_| {
                loop {
                    std::thread::park();
                }
            }));
            let begin = std::time::Instant::now();
            let asked = (1..40).map(|uid| {
                let users = users.clone();
                tokio::spawn(async move { users.name(uid).await })
            });
            for (uid, name) in (1..40).zip(futures::future::join_all(asked).await) {
                assert_eq!(name.unwrap(), uid.to_string());
            }
            assert_eq!(users.asking.available_permits(), 0, "no more threads than that hang");
            // Known for a while: nobody waits again.
            let asked = begin.elapsed();
            for uid in 1..40 {
                users.name(uid).await;
            }
            assert!(begin.elapsed() < asked * 2);
        });
        runtime.shutdown_background();
    }
}
