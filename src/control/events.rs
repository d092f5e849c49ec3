//! What happens, as JSON lines, newest last.

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::timestamp;
use crate::name::CellName;

/// Events kept.
const KEPT: usize = 10_000;

/// A bounded log of events.
#[derive(Debug, Default)]
pub struct EventLog(Mutex<VecDeque<String>>);

impl EventLog {
    /// Adds an event.
    pub fn record(&self, cell: &CellName, path: &str, kind: &str, more: &[(&str, Value)]) {
        let mut event = Map::new();
        event.insert("time".to_owned(), timestamp(SystemTime::now()));
        event.insert("cell".to_owned(), json!(cell.as_str()));
        event.insert("path".to_owned(), json!(path));
        event.insert("kind".to_owned(), json!(kind));
        event.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let mut lines = self.0.lock();
        if lines.len() >= KEPT {
            lines.pop_front();
        }
        lines.push_back(format!("{}\n", Value::Object(event)));
    }

    /// All lines.
    pub fn lines(&self) -> Bytes {
        self.0.lock().iter().fold(String::new(), |all, line| all + line).into()
    }
}
