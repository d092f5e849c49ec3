//! `.topofs/status`.

use serde_json::{Map, Value, json};

use super::Control;
use super::figures::{CellFigures, Figures, MirrorFigures, SecondFigures};
use crate::alive::Panics;
use crate::cache::CacheCount;
use crate::cells::{Cells, SecondPlace};
use crate::journal::timestamp;
use crate::mirror::{HistoryLimits, HistoryUsage};

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
    /// Locks of this mount.
    pub locks: LockCounts,
    /// Caches, by name.
    pub caches: Vec<(&'static str, CacheCount)>,
    /// inotify events that could not be raised.
    pub events_lost: u64,
    /// Time limit of the kernel for a request, if there is one.
    pub request_timeout: Option<std::time::Duration>,
}

/// The locks of the topology that a mount has to do with.
#[derive(Debug, Default, Clone, Copy)]
pub struct LockCounts {
    /// Those that it holds.
    pub held: usize,
    /// Places in which it waits.
    pub waiting: usize,
    /// Those that it has lost.
    pub lost: usize,
    /// For how long it has held the oldest.
    pub longest: std::time::Duration,
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
    let twins = cells.twins();
    let figures = Figures::of(cells);
    let described = figures.cells.iter().map(|cell| {
        let name = &cell.cell.name;
        let mut status = cell_status(cell);
        if let (Some(object), Some(twins)) = (status.as_object_mut(), twins.get(name)) {
            let names: Vec<String> = twins.iter().map(ToString::to_string).collect();
            object.insert("same_place_as".to_owned(), json!(names));
        }
        (name.to_string(), status)
    });
    let described: Map<String, Value> = described.collect();
    let hidden: Map<String, Value> =
        figures.hidden.iter().map(|(name, reason)| (name.to_string(), json!(reason))).collect();
    let requests: Map<String, Value> =
        control.requests.counts().map(|(op, count)| (op.name().to_owned(), json!(count))).collect();
    let (spins, hits) = control.requests.spins();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "mounted": timestamp(control.started),
        "time": timestamp(std::time::SystemTime::now()),
        "cells": described,
        "cells_not_shown": hidden,
        "requests": requests,
        "spins": { "count": spins, "hits": hits },
        "inodes": counts.inodes,
        "handles": counts.handles,
        "scratch": {
            "files": counts.scratch_files,
            "bytes": counts.scratch_bytes.0,
            "quota": counts.scratch_bytes.1,
            "names": counts.scratch,
        },
        "history": history(figures.history),
        "snapshots": spaces(counts, "at"),
        "stages": spaces(counts, "stage"),
        "local_directories": counts.local_directories,
        "shadowed_forms": counts.shadowed_forms,
        "locks": { "held": counts.locks.held, "waiting": counts.locks.waiting, "lost": counts.locks.lost },
        "helper": control.helper.status(),
        "events_lost": counts.events_lost,
        "panics": panics(&figures.panics),
        "request_timeout": counts.request_timeout.map(|limit| limit.as_secs()),
    })
}

/// What is remembered of the past.
fn history((usage, limits): (HistoryUsage, HistoryLimits)) -> Value {
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
fn panics(panics: &Panics) -> Value {
    let known: Vec<Value> = panics
        .known()
        .map(|panic| {
            json!({ "time": timestamp(panic.time), "task": panic.task, "at": panic.at, "message": panic.message })
        })
        .collect();
    json!({ "count": panics.count, "known": known })
}

/// The second place of a cell, and what differs there.
fn second_status(figures: &SecondFigures<'_>) -> (Value, Value) {
    let SecondFigures { state, drift, failing, .. } = figures;
    let mut status = match &figures.second.place {
        SecondPlace::At(location) => json!({
            "implementation": location.implementation.to_string(),
            "server": location.server,
            "root": location.root,
        }),
        SecondPlace::Nowhere(reason) | SecondPlace::Unknown(reason) => json!({ "state": state, "error": reason }),
    };
    if let (Some(object), Some(mirror)) = (status.as_object_mut(), &figures.mirror) {
        object.insert("state".to_owned(), json!(state));
        object.insert("records".to_owned(), json!(mirror.records));
        object.insert("revision".to_owned(), json!(mirror.revision));
        insert_loading(object, mirror);
        insert_trouble(object, mirror);
    }
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

fn insert_loading(object: &mut Map<String, Value>, mirror: &MirrorFigures) {
    if let Some(records) = mirror.loading {
        object.insert("loaded_so_far".to_owned(), json!(records));
    }
}

fn insert_trouble(object: &mut Map<String, Value>, mirror: &MirrorFigures) {
    if let Some((cause, since)) = &mirror.trouble {
        object.insert("error".to_owned(), json!(cause));
        object.insert("broken_for_seconds".to_owned(), json!(since.as_secs()));
    }
}

fn cell_status(figures: &CellFigures) -> Value {
    let (location, mirror) = (&figures.cell.location, &figures.mirror);
    let mut status = json!({
        "implementation": location.implementation.to_string(),
        "server": location.server,
        "root": location.root,
        "state": mirror.state,
        "records": mirror.records,
        "revision": mirror.revision,
        "last_event": figures.last_event.map(timestamp),
        "events": figures.events,
        "resyncs": figures.resyncs,
        "missed": figures.missed,
        "caught_up": figures.caught_up,
        "silences": figures.silences,
        "reconnects": figures.reconnects,
        "skipped_keys": figures.skipped_keys,
    });
    if let Some(object) = status.as_object_mut() {
        insert_loading(object, mirror);
        insert_trouble(object, mirror);
        if let Some(second) = figures.second() {
            let (place, drift) = second_status(&second);
            object.insert("secondary".to_owned(), place);
            object.insert("drift".to_owned(), drift);
        }
    }
    status
}
