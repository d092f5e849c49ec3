//! The last refused operations, each with its reason.

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;

use super::{Op, timestamp};
use crate::error::{Error, Kind};

/// Errors kept.
const KEPT: usize = 1_000;

/// What was refused, and to whom.
#[derive(Debug)]
pub struct Refusal<'a> {
    /// The operation.
    pub op: Op,
    /// The path below the mount.
    pub path: &'a str,
    /// The caller's user.
    pub uid: u32,
    /// The caller's process or thread.
    pub pid: u32,
    /// Why.
    pub error: &'a Error,
}

/// A bounded log, newest last.
#[derive(Debug, Default)]
pub struct ErrorLog(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    /// What was refused last, to whom: the kernel repeats what fails with ESTALE, and once is enough to say so.
    last: Option<(Op, String, u32, Error)>,
}

impl ErrorLog {
    /// Adds a refusal to the log, and to the daemon's own.
    pub fn record(&self, refusal: &Refusal<'_>) {
        let Refusal { op, path, uid, pid, error } = refusal;
        let mut kept = self.0.lock();
        let this = (*op, (*path).to_owned(), *pid, (*error).clone());
        if error.kind == Kind::Conflict && kept.last.as_ref() == Some(&this) {
            kept.last = None;
            return;
        }
        kept.last = Some(this);
        let errno = error.kind.errno_name();
        tracing::warn!(%op, path, uid, pid, errno, "{}", error.reason);
        let mut line = json!({
            "time": timestamp(SystemTime::now()),
            "path": path,
            "operation": op.to_string(),
            "errno": errno,
            "reason": error.reason,
            "uid": uid,
            "pid": pid,
        });
        if let (Some(object), Some(position)) = (line.as_object_mut(), error.position) {
            object.insert("line".to_owned(), json!(position.line));
            object.insert("column".to_owned(), json!(position.column));
        }
        if kept.lines.len() >= KEPT {
            kept.lines.pop_front();
        }
        kept.lines.push_back(format!("{line}\n"));
    }

    /// All lines.
    pub fn lines(&self) -> Bytes {
        self.0.lock().lines.iter().fold(String::new(), |all, line| all + line).into()
    }
}
