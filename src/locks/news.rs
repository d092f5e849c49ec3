//! Telling of locks that come, go, and are lost.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::contents::shown;
use super::held::Held;
use super::{Locks, Standing};
use crate::backend::Node;
use crate::cells::{Cell, HolderChange, Holders, KnownLocks};
use crate::name::{LOCK_FILE, TopoPath};
use crate::process;

impl Locks {
    /// Tells of the locks of a cell from now on, whoever takes them. One that was another place before is told of with what is different.
    pub fn follow(self: &Arc<Self>, cell: &Arc<Cell>) {
        let known = {
            let mut followed = self.followed.lock();
            let before = followed.get(&cell.name);
            if before.is_some_and(|(known, _)| known.as_ptr() == Arc::as_ptr(cell)) {
                return;
            }
            let known = before.map(|(_, known)| known.clone()).unwrap_or_default();
            followed.insert(cell.name.clone(), (Arc::downgrade(cell), known.clone()));
            known
        };
        self.tasks.spawn(self.clone().tell_changes(cell.clone(), known));
    }

    async fn tell_changes(self: Arc<Self>, cell: Arc<Cell>, known: KnownLocks) {
        let follow = async {
            let mut holders = Holders::of(cell.clone(), &known).await;
            // When a lock is given back, its process may be gone.
            let mut by = HashMap::new();
            loop {
                let changes = holders.changed().await;
                for HolderChange { dir, now, .. } in &changes {
                    if let Some(node) = now {
                        let who = self.by(node);
                        self.tell(&cell, dir, "locked", &[("holder", shown(&node.value)), ("by", who.clone())]);
                        by.insert(dir.clone(), who);
                    }
                }
                for HolderChange { dir, before, now } in &changes {
                    if let (Some(node), None) = (before, now) {
                        let who = by.remove(dir).unwrap_or_else(|| self.by(node));
                        self.tell(&cell, dir, "unlocked", &[("holder", shown(&node.value)), ("by", who)]);
                    }
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = cell.replaced() => {}
            () = follow => {}
        }
    }

    pub(super) fn tell_lost(&self, held: &Held, reason: &str) {
        let (cell, dir) = (held.place.cell(), held.place.dir());
        tracing::error!(cell = %cell.name, %dir, pid = held.pid, reason, "a lock is lost");
        let by = process_of_here(held.pid);
        self.tell(
            cell,
            dir,
            "lock-lost",
            &[("holder", shown(&held.node.value)), ("reason", json!(reason)), ("by", by)],
        );
    }

    pub(super) fn tell(&self, cell: &Cell, dir: &TopoPath, kind: &str, more: &[(&str, Value)]) {
        let path = lock_path(dir);
        self.control.events.record(&cell.name, &path, kind, more);
    }

    /// Whose lock it is: a process of this mount, or somebody elsewhere.
    fn by(&self, node: &Node) -> Value {
        self.pid_of(node).map_or_else(|| json!("remote"), process_of_here)
    }

    /// The process of this mount that stands at a node.
    pub(super) fn pid_of(&self, node: &Node) -> Option<u32> {
        self.of_this_mount(node).map(|(pid, _)| pid)
    }

    /// The same, and whether it does for one save.
    pub(super) fn of_this_mount(&self, node: &Node) -> Option<(u32, bool)> {
        let places = self.places.lock();
        let known = places.values().find(|standing| standing.place.is(node));
        if let Some(Standing { pid, for_save, .. }) = known {
            return Some((*pid, *for_save));
        }
        let entering = self.entering.lock();
        let known = entering.iter().find(|entering| entering.contents == node.value);
        known.map(|entering| (entering.pid, entering.for_save))
    }
}

/// A process of this machine, as events name it; what is not known of it any more is null.
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
