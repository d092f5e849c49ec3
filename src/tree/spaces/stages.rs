//! What tells of a stage, and takes its commands: `.diff`, `.conflicts`, `.check`, `.control`, `.undo`. Must never
//! compute on the thread that answers the kernel, nor for all readers at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use tokio::sync::Mutex;

use super::about::{self, Missing, Tells};
use crate::alive;
use crate::backend::Limits;
use crate::cells::Cells;
use crate::control::Problems;
use crate::error::{Error, Kind, Result};
use crate::journal::{Op, Refusal};
use crate::mirror::Snapshot;
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::Actor;
use crate::record::Form;
use crate::store::{Conflict, LiveCells, Seen, Stage, Store, conflict_lines};
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
/// The largest patch that is kept for the next reader, in bytes. Others are made anew.
const KEPT: usize = 1 << 20;

/// The content of `.control`.
const HELP: &str = "\
# Write one of these commands to this file:
#   commit      store all changes in one transaction, or none of them
#   rebase      take in what others have changed meanwhile; .conflicts has what is left to you
#   check       fail if the changes bring errors into the topology; .check has them
#   keep PATH   keep what is staged, whatever others have made of this record
#   drop PATH   give up what is staged of this record
";

/// A command for a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Command {
    Commit,
    Rebase,
    Check,
    /// Decide about a record: keep what is staged, or give it up.
    Settle(String, bool),
}

/// The commands in a text, without empty lines and comments.
fn parse(text: &[u8]) -> Result<Vec<Command>> {
    let invalid = |reason: String| Error::new(Kind::Invalid, reason);
    let text = std::str::from_utf8(text).map_err(|_| invalid("a command must be UTF-8 text".to_owned()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let command = |line: &str| match line
        .split_once(char::is_whitespace)
        .map_or((line, ""), |(word, rest)| (word, rest.trim()))
    {
        ("commit", "") => Ok(Command::Commit),
        ("rebase", "") => Ok(Command::Rebase),
        ("check", "") => Ok(Command::Check),
        (word @ ("keep" | "drop"), path) if !path.is_empty() => Ok(Command::Settle(path.to_owned(), word == "keep")),
        _ => Err(invalid(format!("unknown command {line:?}: commit, rebase, check, keep PATH or drop PATH"))),
    };
    lines.map(command).collect()
}

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

/// What tells of one stage.
#[derive(Debug, Clone)]
pub(super) struct OfStage {
    id: SpaceId,
    stage: Arc<Stage>,
    missing: Bytes,
    shared: Arc<Shared>,
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
        Self { id, stage, missing: about::lines(missing), shared, patches: Arc::default() }
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
        let done = tokio::task::spawn_blocking(move || {
            futures::executor::block_on(alive::guarded("a stage", async move { work(&stage) }))
        });
        Ok(done.await.map_err(|error| Error::new(Kind::Io, error.to_string()))??)
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
        match command {
            Command::Commit => self.commit(actor).await,
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
        let set = committing.change_set();
        if set.changes.is_empty() {
            return Ok(());
        }
        self.shared.records.commit_set(&self.shared.live, actor, &set).await?;
        committing.committed();
        Ok(())
    }

    async fn rebase(&self) -> Result<()> {
        self.stage.refuse_change()?;
        self.read_staged().await;
        let seen = self.seen().await;
        let left = self.compute(move |stage| stage.rebase(&seen)).await??.left;
        if left.is_empty() {
            return Ok(());
        }
        // A cell without anything staged only keeps its old records.
        let kind = if left.iter().any(Conflict::is_known) { Kind::Conflict } else { Kind::Unreachable };
        let named: Vec<String> = left.iter().take(NAMED).map(|conflict| conflict.at.to_string()).collect();
        let more = match left.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let reason = format!("not taken in, see .conflicts: {}{more}", named.join(", "));
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
        let (cell, rest) = path.split_once('/').ok_or_else(Error::not_found)?;
        let cell = CellName::new(cell)?;
        let rest = rest.trim_end_matches('/');
        let plain = Form::of_name(rest).map_or(rest, |(plain, _)| plain);
        let staged: BTreeSet<CellPath> = self.stage.change_set().changes.into_iter().map(|staged| staged.at).collect();
        let paths = [rest, plain].into_iter().filter_map(|path| TopoPath::parse(path).ok());
        let mut all = paths.map(|path| CellPath { cell: cell.clone(), path });
        let found = all.find(|at| staged.contains(at));
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("{path} is not staged")))
    }

    /// What is wrong with a command is not to be guessed, also if the errno is an everyday one.
    fn explain(&self, actor: Actor, error: &Error) {
        if error.kind.needs_explaining() {
            return;
        }
        let path = self.id.file(FileId::About(About::Control)).to_string();
        let refusal = Refusal { op: Op::Write, handle: None, path: &path, uid: actor.uid, pid: actor.process, error };
        self.shared.records.control.errors.record(&refusal);
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

    #[test]
    fn each_line_is_a_command_and_nothing_is_done_if_one_is_none() {
        let all = parse(b"# first\n rebase \n\ncommit\nkeep global/a b/Keyspace.txt\ndrop  zone1/x\n").unwrap();
        let settle = |path: &str, keep| Command::Settle(path.to_owned(), keep);
        let expected =
            [Command::Rebase, Command::Commit, settle("global/a b/Keyspace.txt", true), settle("zone1/x", false)];
        assert_eq!(all, expected);
        for text in ["commit now", "Commit", "keep", "undo", "commit\nfrobnicate", "\u{0}"] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.kind == Kind::Invalid && error.reason.contains("unknown command"), "{text}: {error}");
        }
        assert_eq!(parse(b"\xff").unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn errors_are_compared_by_record_and_kind() {
        let problems = r#"{"record":"global/a","kind":"shard-gap","severity":"error","fault":"x"}
{"record":"global/b","kind":"stray-key","severity":"warning","fault":"x"}
{"kind":"shard-gap","severity":"error","more":3}
"#;
        assert_eq!(errors(problems.as_bytes()), ["shard-gap of global/a"]);
    }
}
