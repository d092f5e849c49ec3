//! The last refused operations, each with its reason.

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;

use super::{Op, timestamp};
use crate::error::{Error, Kind};
use crate::plain::shown_json;
use crate::process::Actor;

/// Number of errors to keep. One more error pushes out the oldest; the daemon's log has all of them.
const KEPT: usize = 1_000;

/// One refused operation.
#[derive(Debug)]
pub struct Refusal<'a> {
    /// The operation.
    pub op: Op,
    /// The open file, if the operation had one.
    pub handle: Option<u64>,
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
pub struct RefusalLog(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<Entry>,
    /// Bytes of all lines.
    size: usize,
    /// The last refusal. The kernel repeats an operation that fails with ESTALE, and one line is enough for both.
    last: Option<(Op, String, u32, Error)>,
}

#[derive(Debug)]
struct Entry {
    line: String,
    handle: Option<u64>,
    path: String,
    uid: u32,
    error: Error,
}

impl Kept {
    /// Whether the log has this refusal already.
    fn knows(&mut self, refusal: &Refusal<'_>) -> bool {
        let Refusal { op, handle, path, uid, pid, error } = refusal;
        let this = (*op, (*path).to_owned(), *pid, (*error).clone());
        if error.kind == Kind::Conflict && self.last.as_ref() == Some(&this) {
            self.last = None;
            return true;
        }
        self.last = Some(this);
        self.entries.iter().rev().any(|entry| {
            // A refused save fails in write, fsync, flush and release.
            let same_file = handle.is_some() && entry.handle == *handle;
            // flock(1) always tries a descriptor that is open for reading first.
            let habit = error.kind == Kind::BadDescriptor && entry.path == *path && entry.uid == *uid;
            (same_file || habit) && entry.error == **error
        })
    }
}

impl RefusalLog {
    /// Adds a refusal here, and to the daemon's log.
    pub fn record(&self, refusal: &Refusal<'_>) {
        let mut kept = self.0.lock();
        if kept.knows(refusal) {
            return;
        }
        let Refusal { op, handle, path, uid, pid, error } = refusal;
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
        if kept.entries.len() >= KEPT {
            let oldest = kept.entries.pop_front();
            kept.size -= oldest.map_or(0, |oldest| oldest.line.len());
        }
        let line = format!("{}\n", shown_json(&line.to_string()));
        kept.size += line.len();
        let (path, error) = ((*path).to_owned(), (*error).clone());
        kept.entries.push_back(Entry { line, handle: *handle, path, uid: *uid, error });
    }

    /// Adds a refusal that is not explained otherwise: its errno is an everyday answer, but what is wrong is not to be
    /// guessed.
    pub fn explain(&self, op: Op, path: &str, by: Actor, error: &Error) {
        if !error.kind.needs_explaining() {
            self.record(&Refusal { op, handle: None, path, uid: by.uid, pid: by.process, error });
        }
    }

    /// All lines.
    pub fn lines(&self) -> Bytes {
        let kept = self.0.lock();
        let mut all = String::with_capacity(kept.size);
        kept.entries.iter().for_each(|entry| all.push_str(&entry.line));
        all.into()
    }

    /// Their size in bytes.
    pub fn size(&self) -> usize {
        self.0.lock().size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(log: &RefusalLog, op: Op, handle: Option<u64>, uid: u32, kind: Kind, reason: &str) {
        let error = Error::new(kind, reason);
        log.record(&Refusal { op, handle, path: "global/keyspaces/ks/Keyspace.txt", uid, pid: 1, error: &error });
    }

    fn count(log: &RefusalLog) -> usize {
        let lines = log.lines();
        assert_eq!(lines.len(), log.size());
        String::from_utf8_lossy(&lines).lines().count()
    }

    #[test]
    fn a_refused_save_is_one_line_whatever_repeats_it() {
        let log = RefusalLog::default();
        for op in [Op::Write, Op::Fsync, Op::Flush, Op::Release] {
            refuse(&log, op, Some(7), 0, Kind::BadMessage, "line 1, column 1: no such field");
        }
        assert_eq!(count(&log), 1);
        // Another reason, another open file, and an operation without one are separate lines.
        refuse(&log, Op::Flush, Some(7), 0, Kind::Conflict, "somebody was faster");
        refuse(&log, Op::Write, Some(8), 0, Kind::BadMessage, "line 1, column 1: no such field");
        refuse(&log, Op::Rename, None, 0, Kind::BadMessage, "line 1, column 1: no such field");
        refuse(&log, Op::Rename, None, 0, Kind::BadMessage, "line 1, column 1: no such field");
        assert_eq!(count(&log), 5);
        // Also when something else was refused in between.
        refuse(&log, Op::Release, Some(7), 0, Kind::BadMessage, "line 1, column 1: no such field");
        assert_eq!(count(&log), 5);
    }

    #[test]
    fn what_the_kernel_repeats_is_one_line() {
        let log = RefusalLog::default();
        for _ in 0..4 {
            refuse(&log, Op::Open, None, 0, Kind::Conflict, "has changed");
        }
        assert_eq!(count(&log), 2, "two opens, each tried twice");
    }

    #[test]
    fn a_habit_of_flock_is_told_once_for_each_user_and_file() {
        let log = RefusalLog::default();
        for uid in [0, 1, 0, 1, 1] {
            for handle in 0..3 {
                refuse(&log, Op::Setlk, Some(handle), uid, Kind::BadDescriptor, "open for reading only");
            }
        }
        assert_eq!(count(&log), 2);
    }

    #[test]
    fn the_log_is_bounded() {
        let log = RefusalLog::default();
        (0..KEPT + 10).for_each(|n| refuse(&log, Op::Rename, None, 0, Kind::Io, &n.to_string()));
        assert_eq!(count(&log), KEPT);
    }
}
