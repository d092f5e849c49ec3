//! The files in the root of a tree beside the live one that tell of the tree, and take its commands.

use std::fmt::Debug;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, Kind, Result};
use crate::name::CellName;
use crate::process::Actor;
use crate::tree::caller::Caller;
use crate::tree::file::{About, Attr, Caching, Defaults, OpenMode};
use crate::tree::namespace::{At, Open, OpenFile, Part, Rest};
use crate::tree::records::RecordFiles;
use crate::tree::room::{Charge, Room};

/// What tells of a tree.
#[async_trait]
pub(crate) trait Tells: Send + Sync + Debug {
    /// The files that there are.
    fn files(&self) -> &'static [About];

    /// What a file shows, if listings show the file, too.
    fn listed(&self, file: About) -> Option<Bytes> {
        let _ = file;
        None
    }

    /// What a file shows now.
    async fn content(&self, file: About) -> Result<Bytes>;

    /// Carries out the commands that are written to [`About::Control`]. Returns what waits for a service.
    fn command(&self, actor: Actor, text: &[u8]) -> Result<Rest> {
        let _ = (actor, text);
        Err(Error::read_only())
    }

    /// Fails if the tree cannot be changed any more.
    fn refuse_change(&self) -> Result<()> {
        Ok(())
    }

    /// Makes a cell that does not exist yet.
    fn make_cell(&self, cell: CellName) -> Result<()> {
        let _ = cell;
        Err(Error::read_only())
    }

    /// Removes such a cell.
    fn remove_cell(&self, cell: &CellName) -> Result<()> {
        let _ = cell;
        Err(Error::read_only())
    }

    /// The tree is shown by these files from now on.
    fn shown_by(&self, files: &Arc<RecordFiles>) {
        let _ = files;
    }

    /// The tree has been removed: its commands fail from now on.
    fn removed(&self) {}

    /// How many records of the tree are changed.
    fn changes(&self) -> usize {
        0
    }

    /// How many saves and removals there were.
    fn saves(&self) -> u64 {
        0
    }
}

/// A cell that a snapshot lacks.
#[derive(Debug, Clone)]
pub(super) struct Missing {
    pub cell: String,
    /// Since when it did not answer then, if that is known.
    pub since: Option<SystemTime>,
    pub why: String,
}

/// What tells of a snapshot.
#[derive(Debug)]
pub(super) struct OfSnapshot {
    missing: Bytes,
}

impl OfSnapshot {
    /// A snapshot that lacks these cells.
    pub fn new(missing: Vec<Missing>) -> Self {
        Self { missing: lines(missing) }
    }
}

/// A line for each cell that is missing, whatever a record or a service says.
pub(super) fn lines(mut missing: Vec<Missing>) -> Bytes {
    missing.sort_by(|one, other| one.cell.cmp(&other.cell));
    let mut text = String::new();
    for Missing { cell, since, why } in missing {
        let since =
            since.map_or_else(String::new, |since| format!("since {}: ", humantime::format_rfc3339_seconds(since)));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}: {since}{}", cell.escape_debug(), why.escape_debug());
    }
    text.into()
}

#[async_trait]
impl Tells for OfSnapshot {
    fn files(&self) -> &'static [About] {
        &[About::Missing]
    }

    /// Whoever lists or archives a snapshot that lacks something meets the file that says so.
    fn listed(&self, file: About) -> Option<Bytes> {
        (file == About::Missing && !self.missing.is_empty()).then(|| self.missing.clone())
    }

    async fn content(&self, file: About) -> Result<Bytes> {
        match file {
            About::Missing => Ok(self.missing.clone()),
            _ => Err(Error::not_found()),
        }
    }
}

/// The attributes of such a file.
pub(super) async fn attr(defaults: &Defaults, tells: &dyn Tells, file: About) -> Result<Attr> {
    let (size, now) = (tells.content(file).await?.len(), SystemTime::now());
    Ok(match file {
        About::Control => defaults.file(size, now),
        // It does not change.
        About::Missing => defaults.read_only_file(size, defaults.mounted),
        _ => defaults.read_only_file(size, now),
    })
}

/// Opens such a file: it shows one state, which is charged to its user.
pub(super) async fn open(
    room: &Room,
    tells: &Arc<dyn Tells>,
    file: About,
    caller: &Caller,
    mode: OpenMode,
) -> Result<Open> {
    if mode.write && file != About::Control {
        return Err(Error::new(Kind::NotPermitted, format!("{} cannot be written", file.name())));
    }
    let content = tells.content(file).await?;
    let mut charge = room.charge(caller.uid);
    charge.resize(content.len())?;
    let open = OpenAbout { tells: tells.clone(), opener: caller.into(), content, _charge: charge };
    Ok(Open { file: Some(Arc::new(open)), caching: Caching::DIRECT })
}

#[derive(Debug)]
struct OpenAbout {
    tells: Arc<dyn Tells>,
    opener: Actor,
    content: Bytes,
    _charge: Charge,
}

#[async_trait]
impl OpenFile for OpenAbout {
    async fn read(&self, _: &Caller, _: At, part: Part) -> Result<Bytes> {
        Ok(part.of(&self.content))
    }

    fn write(&self, _: At, _: usize, data: &[u8]) -> Result<Rest> {
        self.tells.command(self.opener, data)
    }
}
