//! Writes events for locks that come, go, and are lost.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::held::Locks;
use super::names::process_of_here;
use crate::alive;
use crate::backend::Node;
use crate::cells::lock_text::shown;
use crate::cells::{Cell, HolderChange, Holders, KnownLocks};

impl Locks {
    /// Writes events for the locks of a cell from now on, whoever takes them. If the cell had another location before,
    /// it writes the differences.
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
        // After a panic, the next start writes the differences.
        let (locks, cell) = (self.clone(), cell.clone());
        let task = format!("the locks of {}", cell.name);
        self.tasks.spawn(alive::restarted(task, move || locks.clone().tell_changes(cell.clone(), known.clone())));
    }

    async fn tell_changes(self: Arc<Self>, cell: Arc<Cell>, known: KnownLocks) {
        let follow = async {
            let mut holders = Holders::of(cell.clone(), &known).await;
            // When a lock is released, its process may already be gone.
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

    /// Whose lock it is: a process of this mount, or somebody elsewhere.
    fn by(&self, node: &Node) -> Value {
        self.pid_of(node).map_or_else(|| json!("remote"), process_of_here)
    }
}
