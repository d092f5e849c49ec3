//! The effort that the past costs: decoding and comparing old versions. Owns who may have it done, and what has been
//! found out already. Must never run on the thread that answers the kernel.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::alive;
use crate::error::{Error, Kind, Result};
use crate::name::CellPath;
use crate::record::{Form, Records};

/// How many calls of one user are worked on at a time; the next ones wait. Other users do not wait for them.
const PER_USER: usize = 2;
/// How many sizes, and how many words of changes, are kept: those of some hundred records, in a few megabytes. One
/// more, and all are forgotten and found out again.
const KNOWN: usize = 4_096;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<u32, Arc<Semaphore>>>);

impl Turns {
    fn of(&self, uid: u32) -> Arc<Semaphore> {
        let mut users = self.0.lock();
        // Who has no call in work, or waiting, needs no entry.
        users.retain(|_, turns| Arc::strong_count(turns) > 1);
        users.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(PER_USER))).clone()
    }

    /// Works for a user, on a thread of its own. A call that nobody waits for any more still counts until its end.
    pub async fn work<T: Send + 'static>(
        &self,
        uid: u32,
        what: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let turn = self.of(uid).acquire_owned().await.map_err(|error| Error::new(Kind::Io, error.to_string()))?;
        alive::blocking(what, move || {
            let _turn = turn;
            work()
        })
        .await
    }
}

/// What has been found out of values. A value is known by its hash, with keys that nobody can guess.
#[derive(Debug, Default)]
pub(super) struct Found {
    hasher: RandomState,
    sizes: Mutex<HashMap<(CellPath, Form, u64), usize>>,
    words: Mutex<HashMap<Step, String>>,
}

/// A change of a record: the hashes of the value before, if there was one, and after.
type Step = (CellPath, Option<u64>, u64);

impl Found {
    /// The size of a form; 0 if there is none.
    pub fn size(&self, codec: &Records, at: &CellPath, value: &Bytes, form: Form) -> usize {
        let key = (at.clone(), form, self.hasher.hash_one(value));
        if let Some(size) = self.sizes.lock().get(&key) {
            return *size;
        }
        // Like a record that cannot be decoded: it has no size, and cannot be opened in this form.
        let size = codec.show_once(&at.cell, &at.path, value, form).map_or(0, |shown| shown.len());
        keep(&self.sizes, key, size);
        size
    }

    /// What changed, in words.
    pub fn words(&self, codec: &Records, at: &CellPath, old: Option<&Bytes>, new: &Bytes) -> String {
        let key = (at.clone(), old.map(|old| self.hasher.hash_one(old)), self.hasher.hash_one(new));
        if let Some(words) = self.words.lock().get(&key) {
            return words.clone();
        }
        let words = codec.changes(&at.cell, &at.path, old, new);
        keep(&self.words, key, words.clone());
        words
    }
}

fn keep<K: std::hash::Hash + Eq, V>(known: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut known = known.lock();
    if known.len() >= KNOWN {
        known.clear();
    }
    known.insert(key, value);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::name::{CellName, TopoPath};
    use crate::record::{Codec, Kinds};

    #[tokio::test]
    async fn a_user_who_reads_much_does_not_keep_others_waiting() {
        let turns = Arc::new(Turns::default());
        let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
        let mut ends = Vec::new();
        let mut greedy = Vec::new();
        for _ in 0..10 {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let (turns, begun) = (turns.clone(), begun.clone());
            greedy.push(tokio::spawn(async move {
                let work = move || {
                    begun.send(()).unwrap();
                    let _ = ended.recv();
                };
                turns.work(1, "test", work).await
            }));
        }
        for _ in 0..PER_USER {
            has_begun.recv().await.unwrap();
        }
        // The others get their turn while all calls of this user hang.
        let other = turns.work(2, "test", || 7);
        assert_eq!(tokio::time::timeout(Duration::from_secs(60), other).await.unwrap().unwrap(), 7);
        assert!(has_begun.try_recv().is_err(), "no third call of the same user");
        drop(ends);
        for call in greedy {
            call.await.unwrap().unwrap();
        }
        assert_eq!(turns.of(1).available_permits(), PER_USER);
        assert_eq!(turns.0.lock().len(), 1, "who is done is forgotten");
    }

    #[test]
    fn what_was_found_is_found_out_once_and_never_of_another_value() {
        let codec = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let at = CellPath { cell: CellName::global(), path: TopoPath::parse("metadata/a").unwrap() };
        let found = Found::default();
        let [one, two] = ["one", "other"].map(|text| Bytes::from_static(text.as_bytes()));
        for _ in 0..2 {
            assert_eq!(found.size(&codec, &at, &one, Form::Raw), 3);
            assert_eq!(found.size(&codec, &at, &two, Form::Raw), 5);
            assert_eq!(found.words(&codec, &at, Some(&one), &two), "\"one\" -> \"other\"");
            assert_eq!(found.words(&codec, &at, None, &two), "\"other\"");
        }
        assert_eq!((found.sizes.lock().len(), found.words.lock().len()), (2, 2));
        for number in 0..2 * KNOWN {
            found.size(&codec, &at, &Bytes::from(number.to_string()), Form::Raw);
        }
        assert!(found.sizes.lock().len() <= KNOWN);
    }
}
