//! Telling of locks that come, go, and are lost.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Locks;
use super::contents::shown;
use super::held::Held;
use crate::backend::Node;
use crate::cells::{Cell, HolderChange, Holders};
use crate::name::TopoPath;

impl Locks {
    /// Tells of the locks of a cell from now on, whoever takes them.
    pub fn follow(self: &Arc<Self>, cell: &Arc<Cell>) {
        if self.followed.lock().insert(cell.name.clone()) {
            self.tasks.spawn(self.clone().tell_changes(cell.clone()));
        }
    }

    async fn tell_changes(self: Arc<Self>, cell: Arc<Cell>) {
        let follow = async {
            let mut holders = Holders::of(cell.clone()).await;
            loop {
                let changes = holders.changed().await;
                for HolderChange { dir, now, .. } in &changes {
                    if let Some(node) = now {
                        self.tell(&cell, dir, "locked", &[("holder", shown(&node.value)), ("by", self.by(node))]);
                    }
                }
                for HolderChange { dir, before, now } in &changes {
                    if let (Some(node), None) = (before, now) {
                        self.tell(&cell, dir, "unlocked", &[("holder", shown(&node.value))]);
                    }
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = follow => {}
        }
    }

    pub(super) fn tell_lost(&self, held: &Held, reason: &str) {
        let (cell, dir) = (held.place.cell(), held.place.dir());
        tracing::error!(cell = %cell.name, %dir, pid = held.pid, reason, "a lock is lost");
        let by = json!({ "pid": held.pid });
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
        self.pid_of(node).map_or_else(|| json!("remote"), |pid| json!({ "pid": pid }))
    }

    /// The process of this mount that stands at a node.
    pub(super) fn pid_of(&self, node: &Node) -> Option<u32> {
        let known = self.places.lock().values().find(|(place, _)| place.is(node)).map(|(_, pid)| *pid);
        known.or_else(|| self.entering.lock().iter().find(|(text, _)| *text == node.value).map(|(_, pid)| *pid))
    }
}

/// The name of a directory's lock, relative to the cell.
pub(super) fn lock_path(dir: &TopoPath) -> String {
    if dir.is_root() { ".lock".to_owned() } else { format!("{dir}/.lock") }
}
