//! `.topofs/status`.

use std::sync::atomic::Ordering;

use serde_json::{Map, Value, json};

use super::Control;
use crate::alive;
use crate::cells::{Cell, Cells, Second, SecondPlace};
use crate::journal::timestamp;
use crate::mirror::{Health, Mirror};

/// The most scratch files that the status names; all of them count.
pub const NAMED_SCRATCH: usize = 100;

/// What the tree counts.
#[derive(Debug, Default)]
pub struct TreeCounts {
    /// Inodes that the kernel knows.
    pub inodes: usize,
    /// Open files and directories.
    pub handles: usize,
    /// Scratch files.
    pub scratch_files: usize,
    /// Paths of the first of them.
    pub scratch: Vec<String>,
    /// Bytes that scratch files use, and their limit.
    pub scratch_bytes: (u64, u64),
    /// Trees beside the live one.
    pub spaces: Vec<SpaceCount>,
    /// Directories that exist only in this mount.
    pub local_directories: usize,
    /// Stored keys whose name is that of a decoded form.
    pub shadowed_forms: usize,
    /// Locks that this mount holds, places in which it waits, and locks that it has lost.
    pub locks: (usize, usize, usize),
    /// inotify events that could not be raised.
    pub events_lost: u64,
    /// Time limit of the kernel for a request, if there is one.
    pub request_timeout: Option<std::time::Duration>,
}

/// A tree beside the live one.
#[derive(Debug)]
pub struct SpaceCount {
    /// The directory of `.topofs` that it is in.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Who has made it.
    pub uid: u32,
    /// When.
    pub made: std::time::SystemTime,
    /// How many of its records are changed.
    pub changes: usize,
    /// How many saves and removals there were.
    pub saves: u64,
}

impl TreeCounts {
    /// The same with trees beside the live one, and the scratch files in them.
    pub fn with(mut self, spaces: Vec<SpaceCount>, scratch: Vec<String>) -> Self {
        self.scratch_files += scratch.len();
        let room = NAMED_SCRATCH.saturating_sub(self.scratch.len());
        self.scratch.extend(scratch.into_iter().take(room));
        Self { spaces, ..self }
    }
}

/// The trees of one kind.
fn spaces(counts: &TreeCounts, kind: &str) -> Vec<Value> {
    let spaces = counts.spaces.iter().filter(|space| space.kind == kind);
    let shown = |space: &SpaceCount| {
        let SpaceCount { name, uid, changes, saves, .. } = space;
        json!({ "name": name, "uid": uid, "made": timestamp(space.made), "changes": changes, "saves": saves })
    };
    spaces.map(shown).collect()
}

pub(super) fn status(control: &Control, cells: &Cells, counts: &TreeCounts) -> Value {
    let hidden = cells.hidden();
    let twins = cells.twins();
    let all = cells.all();
    let described = all.iter().map(|cell| {
        let mut status = cell_status(cell);
        if let (Some(object), Some(twins)) = (status.as_object_mut(), twins.get(&cell.name)) {
            let names: Vec<String> = twins.iter().map(ToString::to_string).collect();
            object.insert("same_place_as".to_owned(), json!(names));
        }
        (cell.name.to_string(), status)
    });
    let described: Map<String, Value> = described.collect();
    let hidden: Map<String, Value> = hidden.iter().map(|(name, reason)| (name.to_string(), json!(reason))).collect();
    let requests: Map<String, Value> =
        control.requests.counts().map(|(op, count)| (op.name().to_owned(), json!(count))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "mounted": timestamp(control.started),
        "time": timestamp(std::time::SystemTime::now()),
        "cells": described,
        "cells_not_shown": hidden,
        "requests": requests,
        "inodes": counts.inodes,
        "handles": counts.handles,
        "scratch": {
            "files": counts.scratch_files,
            "bytes": counts.scratch_bytes.0,
            "quota": counts.scratch_bytes.1,
            "names": counts.scratch,
        },
        "history": history(cells),
        "snapshots": spaces(counts, "at"),
        "stages": spaces(counts, "stage"),
        "local_directories": counts.local_directories,
        "shadowed_forms": counts.shadowed_forms,
        "locks": { "held": counts.locks.0, "waiting": counts.locks.1, "lost": counts.locks.2 },
        "helper": control.helper.status(),
        "events_lost": counts.events_lost,
        "panics": panics(),
        "request_timeout": counts.request_timeout.map(|limit| limit.as_secs()),
    })
}

/// What is remembered of the past.
fn history(cells: &Cells) -> Value {
    let (usage, limits) = (cells.histories().usage(), cells.histories().limits());
    json!({
        "records": usage.records,
        "versions": usage.changes,
        "bytes": usage.bytes,
        "limit": limits.bytes,
        "versions_per_record": limits.versions,
        "forgotten": usage.forgotten,
    })
}

/// The tasks that have panicked: their number, and the first and last of them.
fn panics() -> Value {
    let panics = alive::panics();
    let known: Vec<Value> = panics
        .known()
        .map(|panic| {
            json!({ "time": timestamp(panic.time), "task": panic.task, "at": panic.at, "message": panic.message })
        })
        .collect();
    json!({ "count": panics.count, "known": known })
}

/// The second place of a cell, and what differs there.
fn second_status(cell: &Cell, second: &Second) -> (Value, Value) {
    let mut status = match &second.place {
        SecondPlace::At(location) => json!({
            "implementation": location.implementation.to_string(),
            "server": location.server,
            "root": location.root,
        }),
        SecondPlace::Nowhere(reason) => json!({ "state": "missing", "error": reason }),
        SecondPlace::Unknown(reason) => json!({ "state": "unknown", "error": reason }),
    };
    if let (Some(object), Some(mirror)) = (status.as_object_mut(), &second.mirror) {
        object.insert("state".to_owned(), json!(state_of(&mirror.health(), false)));
        object.insert("records".to_owned(), json!(mirror.snapshot().records.len()));
        object.insert("revision".to_owned(), json!(mirror.revision().0));
        insert_trouble(object, mirror);
    }
    let drift = second.drift(&cell.mirror);
    let failing = second.away();
    let drift = json!({
        "count": drift.count(),
        "missing": drift.missing,
        "different": drift.different,
        "left_over": drift.left_over,
        "complete": drift.is_complete,
        "since": drift.since.map(timestamp),
        "example": drift.example,
        "failing_since": failing.as_ref().map(|(since, _)| timestamp(*since)),
        "failing": failing.as_ref().map(|(_, cause)| cause.to_string()),
    });
    (status, drift)
}

fn insert_trouble(object: &mut Map<String, Value>, mirror: &Mirror) {
    if let Some((cause, since)) = mirror.trouble() {
        object.insert("error".to_owned(), json!(cause));
        object.insert("broken_for_seconds".to_owned(), json!(since.as_secs()));
    }
}

fn state_of(health: &Health, serves_stale: bool) -> &'static str {
    match health {
        Health::Idle => "idle",
        Health::Loading => "loading",
        Health::Live => "live",
        Health::Shaky => "reconnecting",
        Health::Down if serves_stale => "stale",
        Health::Down => "down",
        Health::Denied => "denied",
    }
}

fn cell_status(cell: &Cell) -> Value {
    let mirror = &cell.mirror;
    let snapshot = mirror.snapshot();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let mut status = json!({
        "implementation": cell.location.implementation.to_string(),
        "server": cell.location.server,
        "root": cell.location.root,
        "state": state_of(&mirror.health(), cell.serves_stale()),
        "records": snapshot.records.len(),
        "revision": snapshot.at.0,
        "last_event": mirror.last_event().map(timestamp),
        "events": count(&mirror.counters.events),
        "resyncs": count(&mirror.counters.resyncs),
        "missed": count(&mirror.counters.missed),
        "caught_up": count(&mirror.counters.caught_up),
        "silences": count(&mirror.counters.silences),
        "reconnects": count(&mirror.counters.reconnects),
        "skipped_keys": count(&mirror.counters.skipped),
    });
    if let Some(object) = status.as_object_mut() {
        insert_trouble(object, mirror);
        if let Some(second) = &cell.second {
            let (place, drift) = second_status(cell, second);
            object.insert("secondary".to_owned(), place);
            object.insert("drift".to_owned(), drift);
        }
    }
    status
}
