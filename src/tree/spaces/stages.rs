//! What tells of a stage, and takes its commands: `.diff`, `.conflicts`, `.check`, `.control`, `.undo`. Must never
//! compute on the thread that answers the kernel, nor for all readers at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use tokio::sync::Mutex;

use super::about::{self, Missing, Tells};
use super::commands::{self, Command, HELP, parse};
use crate::alive;
use crate::backend::Limits;
use crate::cells::Cells;
use crate::control::Problems;
use crate::error::{Error, Kind, Result};
use crate::journal::Op;
use crate::mirror::Snapshot;
use crate::name::{CellName, CellPath};
use crate::process::Actor;
use crate::store::{ChangeSet, Conflict, LiveCells, Seen, Stage, Store, Stored, conflict_lines, find_out};
use crate::topology::validate::Sight;
use crate::tree::file::{About, FileId, SpaceId};
use crate::tree::namespace::Rest;
use crate::tree::records::RecordFiles;

/// How many staged records are read from their services before a rebase, and how many at the same time. With more, what
/// the mirrors have counts: no transaction takes so many.
const READ: usize = 1_000;
const AT_ONCE: usize = 16;
/// How many records an error names.
const NAMED: usize = 20;
/// How many scratch files an error names.
const SCRATCH_NAMED: usize = 10;
/// The largest patch that is kept for the next reader, in bytes. Others are made anew.
const KEPT: usize = 1 << 20;

/// What all stages share.
#[derive(Debug)]
pub(super) struct Shared {
    pub cells: Arc<Cells>,
    pub live: Arc<LiveCells>,
    /// The live tree.
    pub records: Arc<RecordFiles>,
    /// Held while something is computed for a stage: one at a time, so that no number of stages takes more than one
    /// processor. Keeps what was found out last, and for which stage.
    pub checked: Mutex<Option<(SpaceId, Problems)>>,
}

/// `.diff` and `.undo`, each with the generation of the stage that it is of.
type Patches = [Option<(u64, Bytes)>; 2];

/// What becomes of a stage besides its records.
#[derive(Debug, Default)]
struct Life {
    /// The files of the stage, as soon as there are any.
    files: OnceLock<Arc<RecordFiles>>,
    is_removed: AtomicBool,
    /// Whether the log has what was given up.
    is_given_up: AtomicBool,
    /// A commit of which nobody has heard the outcome, and who has made it.
    doubt: parking_lot::Mutex<Option<(Actor, ChangeSet)>>,
}

impl Life {
    fn refuse_removed(&self) -> Result<()> {
        match self.is_removed.load(Ordering::SeqCst) {
            true => Err(Error::new(Kind::NotFound, "the stage was removed")),
            false => Ok(()),
        }
    }

    /// Fails if files stand in the stage that a commit would silently not store.
    fn refuse_scratch(&self) -> Result<()> {
        let (scratch, _) = self.files.get().map(|files| files.scratch.survey()).unwrap_or_default();
        match scratch.is_empty() {
            true => Ok(()),
            false => Err(no_records(&scratch)),
        }
    }

    /// The doubt about this set; `None` if other changes are staged by now.
    fn doubt_about(&self, set: &ChangeSet) -> Option<Actor> {
        let doubt = self.doubt.lock();
        let (actor, lost) = doubt.as_ref()?;
        let now = |set: &ChangeSet| -> Vec<_> {
            set.changes.iter().map(|staged| (staged.at.clone(), staged.now.clone())).collect()
        };
        (now(lost) == now(set)).then_some(*actor)
    }
}

/// The error of a commit that would leave out files.
fn no_records(scratch: &[CellPath]) -> Error {
    let named = named(scratch, SCRATCH_NAMED);
    let reason = format!("{named} are no records and would not be stored: remove them, or mount with --record");
    Error::new(Kind::Invalid, reason)
}

/// Some paths, for an error.
fn named(paths: &[CellPath], most: usize) -> String {
    let named: Vec<String> = paths.iter().take(most).map(ToString::to_string).collect();
    let more = match paths.len().saturating_sub(most) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    named.join(", ") + &more
}

/// What tells of one stage.
#[derive(Debug, Clone)]
pub(super) struct OfStage {
    id: SpaceId,
    stage: Arc<Stage>,
    /// Its user.
    uid: u32,
    missing: Bytes,
    shared: Arc<Shared>,
    life: Arc<Life>,
    /// Held while something is computed for this stage, so that its readers wait for each other before they wait with
    /// those of others. Keeps the last patches, and of which generation they are.
    patches: Arc<Mutex<Patches>>,
}

impl OfStage {
    /// A stage of the cells that are known, charged to a user.
    pub fn new(
        id: SpaceId,
        uid: u32,
        (cells, missing): (BTreeMap<CellName, Arc<Snapshot>>, Vec<Missing>),
        shared: Arc<Shared>,
    ) -> Self {
        let seen = |(cell, records): (CellName, Arc<Snapshot>)| {
            let limits = shared.live.live(&cell)?.limits();
            Some(Seen { cell, records: Ok(records), limits })
        };
        let seen: Vec<Seen> = cells.into_iter().filter_map(seen).collect();
        let RecordFiles { codec, quota, .. } = &*shared.records;
        let stage = Arc::new(Stage::new(&id.name, codec.clone(), &seen, (quota.clone(), uid)));
        let missing = about::lines(missing);
        Self { id, stage, uid, missing, shared, life: Arc::default(), patches: Arc::default() }
    }

    /// What a cell takes that does not exist yet: as much as the global topology.
    fn limits_of_new(&self) -> Result<Limits> {
        let global = self.shared.live.live(&CellName::global());
        Ok(global.ok_or_else(Error::not_found)?.limits())
    }

    /// The records of the stage.
    pub fn stage(&self) -> &Arc<Stage> {
        &self.stage
    }

    /// The cells as they are now. What is not known now is an error.
    async fn seen(&self) -> Vec<Seen> {
        let cells = self.shared.cells.all();
        let seen = cells.iter().filter_map(|cell| self.shared.live.live(&cell.name)).map(|live| async move {
            let records = match live.snapshot().await {
                Ok(_) if !live.is_fresh() => {
                    let reason = format!("the watch of {} is broken: nobody knows what has changed", live.cell());
                    Err(Error::new(Kind::Unreachable, reason))
                }
                known => known,
            };
            Seen { cell: live.cell().clone(), records, limits: live.limits() }
        });
        join_all(seen).await
    }

    /// Reads the staged records from their services, so that the mirrors are not older than this.
    async fn read_staged(&self) {
        let staged = self.stage.change_set().changes.into_iter().take(READ).map(|staged| async move {
            let live = self.shared.live.live(&staged.at.cell)?;
            // If it cannot be read, its cell says why.
            live.fetch(&staged.at.path).await.ok()
        });
        futures::stream::iter(staged).buffer_unordered(AT_ONCE).for_each(|_| async {}).await;
    }

    /// Computes on a thread that nobody else waits for.
    async fn compute<T: Send + 'static>(&self, work: impl FnOnce(&Stage) -> T + Send + 'static) -> Result<T> {
        let _turn = self.shared.checked.lock().await;
        let stage = self.stage.clone();
        alive::blocking("a stage", move || work(&stage)).await
    }

    /// The patch, or the one that takes it back.
    async fn patch(&self, undo: bool) -> Result<Bytes> {
        let mut kept = self.patches.lock().await;
        let generation = self.stage.generation();
        let slot = kept.get_mut(usize::from(undo));
        if let Some((of, patch)) = slot.as_ref().and_then(|slot| slot.as_ref())
            && *of == generation
        {
            return Ok(patch.clone());
        }
        let patch = self.compute(move |stage| if undo { stage.undo() } else { Some(stage.diff()) }).await?;
        let patch = patch.ok_or_else(Error::not_found)?;
        if let Some(slot) = slot {
            *slot = Some((generation, patch.clone())).filter(|_| patch.len() <= KEPT);
        }
        Ok(patch)
    }

    async fn conflicts(&self) -> Result<Vec<Conflict>> {
        let seen = self.seen().await;
        let _readers = self.patches.lock().await;
        self.compute(move |stage| stage.conflicts(&seen)).await
    }

    /// What is wrong with the topology as it would be.
    async fn problems(&self) -> Result<Bytes> {
        let _readers = self.patches.lock().await;
        let mut checked = self.shared.checked.lock().await;
        let (_, problems) = match checked.take_if(|(id, _)| *id == self.id) {
            Some(mine) => checked.insert(mine),
            None => checked.insert((self.id.clone(), Problems::default())),
        };
        problems.content_of(|| self.sight()).await
    }

    /// All records as they would be. What the stage does not know is as it is.
    fn sight(&self) -> Result<Sight> {
        let mut sight = Sight::at_hand(&self.shared.cells)?;
        for cell in self.stage.staged_cells() {
            match cell.cell().is_global() {
                true => sight.topology.global = cell.known(),
                false => {
                    sight.idle.remove(cell.cell());
                    sight.topology.cells.insert(cell.cell().clone(), Ok(cell.known()));
                }
            }
        }
        Ok(sight)
    }

    async fn run(&self, actor: Actor, command: Command) -> Result<()> {
        self.life.refuse_removed()?;
        match command {
            Command::Commit => {
                let committed = self.commit(actor).await;
                // The stage was removed meanwhile.
                if self.life.refuse_removed().is_err() {
                    self.give_up();
                }
                committed
            }
            Command::Rebase => self.rebase().await,
            Command::Check => self.check().await,
            Command::Settle(path, keep) => {
                self.read_staged().await;
                let seen = self.seen().await;
                self.stage.settle(&self.staged(&path)?, &seen, keep)
            }
        }
    }

    async fn commit(&self, actor: Actor) -> Result<()> {
        let committing = self.stage.begin_commit()?;
        // If it is removed from now on, this goes on.
        self.life.refuse_removed()?;
        let set = committing.change_set();
        match self.outcome(&set).await? {
            Stored::All => {
                committing.committed();
                return Ok(());
            }
            Stored::Part(paths) => {
                let reason = format!(
                    "the answer to the last commit was lost, and only a part is stored as staged: {}; see .conflicts",
                    named(&paths, NAMED)
                );
                return Err(Error::new(Kind::Conflict, reason));
            }
            Stored::Nothing => {}
        }
        self.life.refuse_scratch()?;
        if set.changes.is_empty() {
            return Ok(());
        }
        let made = self.shared.records.commit_set(&self.shared.live, actor, &set).await;
        match &made {
            Err(error) if error.is_uncertain() => *self.life.doubt.lock() = Some((actor, set)),
            Err(_) => {}
            Ok(_) => {
                *self.life.doubt.lock() = None;
                committing.committed();
            }
        }
        made.map(drop)
    }

    /// What a commit of the same set has stored, if its answer was lost.
    async fn outcome(&self, set: &ChangeSet) -> Result<Stored> {
        let Some(actor) = self.life.doubt_about(set) else { return Ok(Stored::Nothing) };
        let live = |cell: &CellName| self.shared.live.live(cell);
        let stored = find_out(&live, &self.shared.records.codec, set, actor).await?;
        if stored == Stored::All {
            let stage = self.id.name.escape_debug();
            tracing::warn!(%stage, "the answer to a commit was lost, but it was carried out");
            *self.life.doubt.lock() = None;
        }
        Ok(stored)
    }

    /// Says once in the log what is lost with the stage.
    fn give_up(&self) {
        let changes = if self.stage.is_committed() { 0 } else { self.stage.count() };
        if changes > 0 && !self.life.is_given_up.swap(true, Ordering::SeqCst) {
            let name = self.id.name.escape_debug();
            tracing::warn!(uid = self.uid, "stage {name}: {changes} uncommitted changes are given up");
        }
    }

    async fn rebase(&self) -> Result<()> {
        self.stage.refuse_change()?;
        if self.life.doubt.lock().is_some() {
            let committing = self.stage.begin_commit()?;
            if self.outcome(&committing.change_set()).await? == Stored::All {
                committing.committed();
                return Ok(());
            }
        }
        self.read_staged().await;
        let seen = self.seen().await;
        let left = self.compute(move |stage| stage.rebase(&seen)).await??.left;
        if left.is_empty() {
            return Ok(());
        }
        // A cell without anything staged only keeps its old records.
        let kind = if left.iter().any(Conflict::is_known) { Kind::Conflict } else { Kind::Unreachable };
        let paths: Vec<CellPath> = left.into_iter().map(|conflict| conflict.at).collect();
        let reason = format!("not taken in, see .conflicts: {}", named(&paths, NAMED));
        Err(Error::new(kind, reason))
    }

    /// Fails if there are errors that are not there now.
    async fn check(&self) -> Result<()> {
        let (mine, now) =
            (self.problems().await?, self.shared.records.control.problems.content(&self.shared.cells).await?);
        let known = errors(&now);
        let new: Vec<String> = errors(&mine).into_iter().filter(|error| !known.contains(error)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let named = new.get(..NAMED).unwrap_or(&new).join(", ");
        Err(Error::new(Kind::BadMessage, format!("the changes bring {} errors, see .check: {named}", new.len())))
    }

    /// The staged record of a path in the stage, with or without a form.
    fn staged(&self, path: &str) -> Result<CellPath> {
        let staged: BTreeSet<CellPath> = self.stage.change_set().changes.into_iter().map(|staged| staged.at).collect();
        let mut all = commands::meant(path)?.into_iter();
        let found = all.find(|at| staged.contains(at));
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("{path} is not staged")))
    }

    fn explain(&self, actor: Actor, error: &Error) {
        let path = self.id.file(FileId::About(About::Control)).to_string();
        self.shared.records.control.errors.explain(Op::Write, &path, actor, error);
    }
}

/// The errors among some problems: which record, and what is wrong with it.
fn errors(problems: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(problems);
    let error = |line: &str| {
        let problem: serde_json::Value = serde_json::from_str(line).ok()?;
        let word = |key: &str| problem.get(key)?.as_str().map(str::to_owned);
        let name = format!("{} of {}", word("kind")?, word("record")?);
        (word("severity")? == "error").then_some(name)
    };
    text.lines().filter_map(error).collect()
}

#[async_trait]
impl Tells for OfStage {
    fn files(&self) -> &'static [About] {
        const OPEN: &[About] = &[About::Missing, About::Diff, About::Conflicts, About::Check, About::Control];
        const COMMITTED: &[About] =
            &[About::Missing, About::Diff, About::Conflicts, About::Check, About::Control, About::Undo];
        if self.stage.is_committed() { COMMITTED } else { OPEN }
    }

    async fn content(&self, file: About) -> Result<Bytes> {
        match file {
            About::Missing => Ok(self.missing.clone()),
            About::Diff => self.patch(false).await,
            About::Undo => self.patch(true).await,
            About::Conflicts => Ok(conflict_lines(&self.conflicts().await?).into()),
            About::Check => self.problems().await,
            About::Control => Ok(Bytes::from_static(HELP.as_bytes())),
        }
    }

    fn make_cell(&self, cell: CellName) -> Result<()> {
        self.stage.make_cell(cell, self.limits_of_new()?)
    }

    fn remove_cell(&self, cell: &CellName) -> Result<()> {
        self.stage.remove_cell(cell)
    }

    fn command(&self, actor: Actor, text: &[u8]) -> Result<Rest> {
        let commands = parse(text).inspect_err(|error| self.explain(actor, error))?;
        if commands.is_empty() {
            return Ok(None);
        }
        let this = self.clone();
        Ok(Some(Box::pin(async move {
            // Not on the thread that answers the kernel.
            tokio::task::yield_now().await;
            for command in commands {
                this.run(actor, command).await.inspect_err(|error| this.explain(actor, error))?;
            }
            Ok(())
        })))
    }

    fn refuse_change(&self) -> Result<()> {
        self.stage.refuse_change()
    }

    fn shown_by(&self, files: &Arc<RecordFiles>) {
        // A stage has one tree.
        let _ = self.life.files.set(files.clone());
    }

    fn removed(&self) {
        self.life.is_removed.store(true, Ordering::SeqCst);
        // A commit that is under way says itself what has become of the changes.
        if !self.stage.is_committing() {
            self.give_up();
        }
    }

    fn changes(&self) -> usize {
        self.stage.count()
    }

    fn saves(&self) -> u64 {
        self.stage.saves()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::TopoPath;

    #[test]
    fn errors_are_compared_by_record_and_kind() {
        let problems = r#"{"record":"global/a","kind":"shard-gap","severity":"error","fault":"x"}
{"record":"global/b","kind":"stray-key","severity":"warning","fault":"x"}
{"kind":"shard-gap","severity":"error","more":3}
"#;
        assert_eq!(errors(problems.as_bytes()), ["shard-gap of global/a"]);
    }

    #[test]
    fn what_a_commit_would_leave_out_is_named_within_bounds() {
        let path =
            |n: usize| CellPath { cell: CellName::global(), path: TopoPath::parse(&format!("f{n:02}")).unwrap() };
        let all: Vec<CellPath> = (0..12).map(path).collect();
        let error = no_records(&all);
        assert_eq!(error.kind, Kind::Invalid);
        assert!(error.reason.starts_with("global/f00, global/f01, "), "{error}");
        assert!(error.reason.contains("global/f09, and 2 more are no records and would not be stored"), "{error}");
        assert!(no_records(&all[..2]).reason.starts_with("global/f00, global/f01 are no records"));
    }

    #[test]
    fn a_doubt_is_about_the_changes_that_were_sent() {
        let staged = |value: &'static str| crate::store::Staged {
            at: CellPath { cell: CellName::global(), path: TopoPath::parse("a").unwrap() },
            base: None,
            now: Some(Bytes::from_static(value.as_bytes())),
        };
        let set = |value| ChangeSet { name: "test".into(), changes: vec![staged(value)] };
        let (life, actor) = (Life::default(), Actor { uid: 7, process: 1 });
        assert_eq!(life.doubt_about(&set("1")), None);
        *life.doubt.lock() = Some((actor, set("1")));
        assert_eq!(life.doubt_about(&set("1")), Some(actor));
        assert_eq!(life.doubt_about(&set("2")), None, "it was edited since");
    }
}
