//! The order of this mount's own saves that need a lock.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::name::{CellName, TopoPath};

/// The turn to save under one lock.
type Turn = tokio::sync::Mutex<()>;

/// One turn for each lock that a save of this mount needs now. Unused turns are forgotten, so there are never more
/// turns than saves under way.
#[derive(Debug, Default)]
pub(super) struct SaveTurns(Mutex<HashMap<(CellName, TopoPath), Weak<Turn>>>);

impl SaveTurns {
    /// The turn for the lock of a directory.
    pub fn of(&self, key: (CellName, TopoPath)) -> Arc<Turn> {
        let mut turns = self.0.lock();
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(key, Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(dir: &str) -> (CellName, TopoPath) {
        (CellName::global(), TopoPath::parse(dir).unwrap())
    }

    #[test]
    fn saves_under_one_lock_take_turns_and_a_turn_that_nobody_has_is_forgotten() {
        let turns = SaveTurns::default();
        let first = turns.of(key("a"));
        let has_turn = first.clone().try_lock_owned().unwrap();
        assert!(turns.of(key("a")).try_lock_owned().is_err(), "the same lock");
        assert!(turns.of(key("b")).try_lock_owned().is_ok(), "another one");
        assert!(turns.of((CellName::new("zone1").unwrap(), TopoPath::parse("a").unwrap())).try_lock().is_ok());
        drop((first, has_turn));
        for number in 0..100 {
            turns.of(key(&number.to_string()));
        }
        assert_eq!(turns.0.lock().len(), 1, "only the last, until the next comes");
    }
}
