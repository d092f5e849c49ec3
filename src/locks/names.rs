//! The names of locks and their processes in events and reports.

use serde_json::{Value, json};

use crate::name::{LOCK_FILE, TopoPath};
use crate::process;

/// A process of this machine, as events name it; unknown parts are null.
pub(super) fn process_of_here(pid: u32) -> Value {
    if pid == 0 {
        return json!({ "uid": null, "pid": null, "command": null });
    }
    json!({ "uid": process::owner(pid), "pid": pid, "command": process::name(pid) })
}

/// The name of a directory's lock, relative to the cell.
pub(super) fn lock_path(dir: &TopoPath) -> String {
    if dir.is_root() { LOCK_FILE.to_owned() } else { format!("{dir}/{LOCK_FILE}") }
}
