//! `.topofs/locks`, and breaking locks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};

use super::held::Locks;
use super::names::{lock_path, process_of_here};
use super::times_left::is_abandoned;
use crate::backend::Node;
use crate::backend::Owner;
use crate::cells::lock_text::{shown, since};
use crate::cells::{Cell, Cells};
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, TopoPath};
use crate::plain::shown_json;
use crate::process::Actor;

impl Locks {
    /// All locks of the connected cells, one JSON line each.
    pub async fn report(&self, cells: &Cells) -> Bytes {
        self.tidied().await;
        let mut text = String::new();
        for cell in cells.all().into_iter().filter(|cell| cell.mirror.is_loaded()) {
            let snapshot = cell.mirror.snapshot();
            for dir in cell.locked_dirs(&snapshot) {
                let line = self.line(&cell, &dir, &cell.line(&snapshot, &dir)).await;
                text += &format!("{}\n", shown_json(&line.to_string()));
            }
        }
        let lost: Vec<Value> = self
            .held
            .lock()
            .iter()
            .filter_map(|held| {
                let (cell, dir) = (held.place.cell(), held.place.dir());
                let path = format!("{}/{}", cell.name, lock_path(dir));
                held.lost.get().map(|reason| json!({ "path": path, "lost": reason, "pid": held.pid }))
            })
            .collect();
        lost.into_iter().fold(text, |text, line| format!("{text}{}\n", shown_json(&line.to_string()))).into()
    }

    async fn line(&self, cell: &Cell, dir: &TopoPath, line: &[Node]) -> Value {
        let path = format!("{}/{}", cell.name, lock_path(dir));
        let Some((first, queue)) = line.split_first() else { return json!({ "path": path }) };
        let time_left = self.times_left.of(cell, first.owner()).await;
        json!({
            "path": path,
            "holder": if first.owner() == Owner::NOBODY { Value::Null } else { shown(&first.value) },
            // Somebody left it or copied it: it does not end by itself.
            "abandoned": is_abandoned(first.owner()),
            "age": age(first).map(|age| age.as_secs()),
            "time_left": time_left.map(|left| left.as_secs()),
            "queue": queue.iter().map(|node| shown(&node.value)).collect::<Vec<_>>(),
            "pid": self.pid_of(first),
            "key": first.path.as_str(),
        })
    }

    /// Takes the lock with this key away from its holder, if it is still there. `-` stands for what is left of a lock
    /// without a holder, if anything; `--` means the same, but something must be left.
    pub async fn break_lock(self: &Arc<Self>, cells: &Cells, path: &str, key: &str, by: Actor) -> Result<()> {
        let wrong = |reason: String| Error::new(Kind::Invalid, reason);
        let path = path.trim_matches('/');
        let path = path.strip_suffix("/.lock").unwrap_or(path);
        let (cell, dir) = path.split_once('/').unwrap_or((path, ""));
        let (name, dir) = (CellName::new(cell)?, TopoPath::parse(dir)?);
        let cell = cells.get(&name).ok_or_else(|| wrong(format!("no cell {name}")))?;
        let snapshot = cell.snapshot().await?;
        let found = cell.line(&snapshot, &dir).into_iter().find(|node| node.path.as_str() == key);
        match found {
            Some(node) => {
                // The process that gives the command may be gone afterwards.
                let mut who = process_of_here(by.process);
                // Not the owner of the process, but the user who has asked.
                who.as_object_mut().map(|who| who.insert("uid".to_owned(), json!(by.uid)));
                cell.break_lock(&node).await?;
                let (uid, pid, command) = (by.uid, by.process, who.get("command").and_then(Value::as_str));
                tracing::warn!(cell = %name, %dir, key, uid, pid, command, "a lock was broken by force");
                self.tell(&cell, &dir, "lock-broken", &[("holder", shown(&node.value)), ("by", who)]);
            }
            None if key != "-" && key != "--" => {
                return Err(Error::new(Kind::NotFound, format!("{name}/{dir}: the lock {key} is gone")));
            }
            None => {}
        }
        match cell.sweep_locks(&dir).await? {
            Some(removed) => {
                let Actor { uid, process } = by;
                tracing::warn!(cell = %name, removed, uid, pid = process, "an empty directory of locks was removed");
                Ok(())
            }
            None if key == "--" => Err(Error::new(Kind::NotFound, format!("{name}/{dir}: no lock is left there"))),
            None => Ok(()),
        }
    }
}

/// How long a lock has existed: as its text says, else since the service or this mount first saw it.
fn age(node: &Node) -> Option<Duration> {
    SystemTime::now().duration_since(since(&node.value).or(node.modified)?).ok()
}
