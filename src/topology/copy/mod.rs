//! Copies a topology to another service, and compares the two. Knows records, cells and backends; must never know
//! files, and must never change anything in the source.
//!
//! `route` decides where each cell goes (by the rules of `map`), `place` reads it at one point, `plan` says what has to
//! be done (in the order of `sort`), `write` does it with guards, around the locks of others (`locked`), `differ` shows
//! what is different, and `words` has how far a copy is.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::{join_all, try_join_all};
use tokio_util::sync::CancellationToken;

use crate::backend::{BackendError, Failure};
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::Records;

mod differ;
mod locked;
mod map;
mod place;
mod plan;
mod route;
mod sort;
mod words;
mod write;

use locked::Locks;
pub use map::{Mapping, Rule};
use place::{Contents, Place};
pub use place::{End, Side};
use plan::{Difference, Earlier, Found, Plan, Wanted, differences, plan};
use route::{Routes, Wish};
pub use sort::{Selection, Sort};
pub use words::{Progress, counted};
use words::{not_begun, unnamed};
use write::Writer;

/// How often a copy looks whether the source has changed meanwhile, and copies what has.
const PASSES: usize = 4;
/// What is read at first.
const BOTH: &str = "the source and the target";

/// What is copied, and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which records.
    pub selection: Selection,
    /// Where cells go that the target does not know.
    pub mapping: Mapping,
    /// If given, only these cells, and the global topology.
    pub cells: Option<Vec<CellName>>,
    /// Also remove what only the target has.
    pub delete: bool,
    /// Copy everything else if something cannot be copied.
    pub keep_going: bool,
    /// Change nothing, only say what would be changed.
    pub dry_run: bool,
}

/// A source, a target, and what is between them.
#[derive(Debug)]
pub struct Transfer {
    /// What is read.
    pub source: Side,
    /// What is filled.
    pub target: Side,
    /// What is copied.
    pub options: Options,
    /// How records are decoded.
    pub records: Arc<Records>,
    /// How far it is.
    pub progress: Progress,
    /// Ends the copy: nothing new begins.
    pub stop: CancellationToken,
}

/// What has to be done for a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// The cell, with its places.
    pub cell: String,
    /// Its records in the source.
    pub records: usize,
    /// Those that were the same already.
    pub same: usize,
    /// Those that the target did not have.
    pub created: usize,
    /// Those that were different.
    pub updated: usize,
    /// Those that only the target had, and that were removed.
    pub deleted: usize,
    /// Those that only the target has.
    pub only_target: usize,
}

/// The outcome of a copy.
#[derive(Debug, Default)]
pub struct Copied {
    /// What a person should know.
    pub notes: Vec<String>,
    /// What a dry run would change.
    pub planned: Vec<String>,
    /// What was not copied, with the reasons.
    pub failed: Vec<String>,
    /// Whether the copy was stopped.
    pub is_stopped: bool,
    /// Records that were not stored because of that, as far as they were known.
    pub stopped: usize,
}

/// The outcome of a comparison.
#[derive(Debug, Default)]
pub struct Compared {
    /// Records that are different, or that only one side has.
    pub differences: usize,
    /// Records that were compared.
    pub records: usize,
    /// What a person should know.
    pub notes: Vec<String>,
    /// What could not be compared, with the reasons.
    pub failed: Vec<String>,
}

/// A cell at both ends.
struct Pair {
    source: Arc<Place>,
    target: Arc<Place>,
    from: Contents,
    to: Contents,
}

/// Everything that is known before anything is changed.
struct Ready {
    pairs: Vec<Pair>,
    routes: Routes,
    /// What cannot be copied or compared.
    troubles: Vec<String>,
}

/// What has changed in the source during a copy.
struct Changes {
    /// Records that are new or have other values.
    stored: usize,
    /// Records that are gone.
    deleted: usize,
    /// Words on cells that came or moved.
    cells: Vec<String>,
}

impl Transfer {
    /// Copies, and tells of each cell what has to be done. Fails, before anything is changed, if not everything can be
    /// copied, unless it is to keep going.
    pub async fn copy(&self, told: impl FnMut(Tally)) -> Result<Copied> {
        let Some(ready) = self.unless_stopped(self.ready(false)).await? else {
            return Ok(Copied { is_stopped: true, ..Copied::default() });
        };
        self.progress.planning();
        let Ready { mut pairs, routes, mut troubles } = ready;
        let mut plans = self.plans(&pairs, &routes, &[]);
        troubles.extend(refuse(&pairs, &mut plans));
        if self.stop.is_cancelled() {
            return Ok(Copied { is_stopped: true, ..Copied::default() });
        }
        if !troubles.is_empty() && !self.options.keep_going {
            return Err(Error::new(Kind::Invalid, not_begun(&troubles)));
        }
        let mut copied = Copied { notes: routes.notes.clone(), failed: troubles, ..Copied::default() };
        pairs.iter().zip(&plans).map(|(pair, (wanted, plan))| tally(pair, wanted, plan)).for_each(told);
        if self.options.dry_run {
            copied.planned = planned(&pairs, &plans);
            return Ok(copied);
        }
        self.follow(&mut pairs, plans, &routes, &mut copied).await;
        copied.is_stopped = self.stop.is_cancelled();
        Ok(copied)
    }

    /// Stores what is planned, and then what has changed in the source meanwhile.
    async fn follow(&self, pairs: &mut [Pair], mut plans: Vec<(Wanted, Plan)>, routes: &Routes, copied: &mut Copied) {
        for pass in 1.. {
            let wanted = self.write(pairs, plans, copied).await;
            if copied.stopped > 0 || self.stop.is_cancelled() {
                break;
            }
            self.progress.reading("the source again", pairs.len());
            let again = try_join_all(pairs.iter().map(|pair| self.read(&pair.source)));
            let now = match self.unless_stopped(again).await {
                Ok(Some(now)) => now,
                Ok(None) => break,
                Err(error) => {
                    copied.failed.push(format!("{error}: nobody knows whether it has changed during the copy"));
                    break;
                }
            };
            self.progress.planning();
            let changes = self.changed(pairs, routes, &wanted, &now);
            let again = self.go_on(changes, pass, copied);
            if again == 0 {
                break;
            }
            let earlier: Vec<Earlier> =
                pairs.iter().zip(wanted).map(|(pair, wanted)| Earlier::after(wanted, &found(pair, self))).collect();
            self.progress.reading("the target again", pairs.len());
            let targets = try_join_all(pairs.iter().map(|pair| self.read(&pair.target)));
            let targets = match self.unless_stopped(targets).await {
                Ok(Some(targets)) => targets,
                Ok(None) => {
                    copied.stopped += again;
                    break;
                }
                Err(error) => {
                    copied.failed.push(format!("{error}: what has changed in the source was not copied"));
                    break;
                }
            };
            self.progress.planning();
            for (pair, (from, to)) in pairs.iter_mut().zip(now.into_iter().zip(targets)) {
                (pair.from, pair.to) = (from, to);
            }
            plans = self.plans(pairs, routes, &earlier);
            copied.failed.extend(refuse(pairs, &mut plans));
            for (pair, (_, plan)) in pairs.iter().zip(&plans) {
                let overtaken = plan.overtaken.iter().map(|path| CellPath::new(&pair.source.cell, path));
                let words = "it has changed in the source and at the target during the copy";
                copied.failed.extend(overtaken.map(|path| format!("{path}: {words}")));
            }
        }
    }

    /// Says what has changed in the source, and returns how many records are copied or deleted because of that.
    fn go_on(&self, changes: Changes, pass: usize, copied: &mut Copied) -> usize {
        let Changes { stored, deleted, cells } = changes;
        copied.failed.extend(cells);
        let was_deleted = counted(deleted, "record was deleted", "records were deleted");
        if deleted > 0 && !self.options.delete {
            let kept = "was copied stays at the target: --delete deletes it there";
            copied.notes.push(format!("{was_deleted} in the source during the copy. What {kept}"));
        }
        let again = stored + if self.options.delete { deleted } else { 0 };
        if again > 0 && pass == PASSES {
            let changed = counted(again, "record", "records");
            copied.failed.push(format!(
                "the source has changed during the copy, and still does: {changed} at last. Run the same command again"
            ));
            return 0;
        }
        if stored > 0 {
            let are = counted(stored, "record is", "records are");
            copied.notes.push(format!("the source has changed during the copy: {are} copied again"));
        }
        if deleted > 0 && self.options.delete {
            copied.notes.push(format!("{was_deleted} in the source during the copy, and so at the target"));
        }
        again
    }

    /// Compares, and hands out each difference in lines.
    pub async fn compare(&self, mut each: impl FnMut(&str)) -> Result<Compared> {
        let Ready { pairs, routes, troubles } = self.ready(true).await?;
        let mut compared = Compared { notes: routes.notes.clone(), failed: troubles, ..Compared::default() };
        for pair in &pairs {
            let (wanted, _) = self.wanted(pair, &pair.from, &routes, true);
            let mut found = found(pair, self);
            if !self.options.selection.is_everything() {
                // Cells that only the target has are none of the wanted kinds.
                found.retain(|path, _| {
                    Sort::of(&pair.source.cell, path) != Sort::CellInfo || wanted.contains_key(*path)
                });
            }
            let all = differences(&wanted, &found);
            let only = all.values().filter(|difference| matches!(difference, Difference::OnlyTarget(_))).count();
            compared.records += wanted.len() + only;
            compared.differences += all.len();
            for (path, difference) in &all {
                each(&differ::describe(&self.records, &pair.source.cell, path, difference));
            }
            if pair.to.unnamed > 0 {
                compared.failed.push(unnamed(&pair.target, End::Target, pair.to.unnamed));
            }
        }
        Ok(compared)
    }

    /// Connects both topologies and reads them, each cell at one point.
    async fn ready(&self, comparing: bool) -> Result<Ready> {
        let global = CellName::global();
        let source = Place::open(End::Source, &self.source, &global, &self.source.global)?;
        let target = Place::open(End::Target, &self.target, &global, &self.target.global)?;
        self.progress.reading(BOTH, 2);
        let (from, to) = futures::try_join!(self.read(&source), self.read(&target))?;
        if from.nodes.is_empty() {
            let words = "there are no records; is that its root?";
            return Err(source.explain(BackendError::new(Failure::Other, words)));
        }
        let wish = Wish {
            records: &self.records,
            mapping: &self.options.mapping,
            cells: self.options.cells.as_deref(),
            with_cells: self.options.selection.wants_cells(),
            from: &self.source.global,
            to: &self.target.global,
        };
        let mut routes = wish.decide(&from, &to)?;
        let mut troubles = std::mem::take(&mut routes.troubles);
        if comparing {
            let homeless = std::mem::take(&mut routes.homeless).into_iter();
            troubles.extend(homeless.map(|words| format!("not compared: {words}")));
        } else if !routes.homeless.is_empty() {
            return Err(Error::new(Kind::Invalid, routes.homeless.join("\n")));
        }
        let (source, target) = (source.beside(&routes.all), target.beside(&routes.all));
        let ours = |place: &Place, mut contents: Contents| {
            contents.nodes.retain(|path, _| place.owns(path));
            contents
        };
        let (from, to) = (ours(&source, from), ours(&target, to));
        let mut pairs = vec![Pair { source: Arc::new(source), target: Arc::new(target), from, to }];
        self.progress.reading(BOTH, 2 * routes.routes.iter().filter(|route| !route.cell.is_global()).count());
        let cells = join_all(routes.routes.iter().filter(|route| !route.cell.is_global()).map(async |route| {
            let source = Place::open(End::Source, &self.source, &route.cell, &route.from)?.beside(&routes.all);
            let target = Place::open(End::Target, &self.target, &route.cell, &route.to)?.beside(&routes.all);
            let (from, to) = futures::try_join!(self.read(&source), self.read(&target))?;
            Ok(Pair { source: Arc::new(source), target: Arc::new(target), from, to })
        }));
        for cell in cells.await {
            match cell {
                Ok(pair) => pairs.push(pair),
                Err(error) => troubles.push(Error::to_string(&error)),
            }
        }
        let odd = pairs.iter().filter(|pair| pair.from.unnamed > 0);
        troubles.extend(odd.map(|pair| unnamed(&pair.source, End::Source, pair.from.unnamed)));
        Ok(Ready { pairs, routes, troubles })
    }

    /// Reads a cell, and says so.
    async fn read(&self, place: &Place) -> Result<Contents> {
        let contents = place.read().await?;
        self.progress.read(contents.nodes.len());
        Ok(contents)
    }

    /// The records of the source as the target gets them, and CellInfo records that nobody has seen before.
    fn wanted(&self, pair: &Pair, from: &Contents, routes: &Routes, comparing: bool) -> (Wanted, Vec<TopoPath>) {
        let cell = &pair.source.cell;
        let meant = from.nodes.iter().filter(|(path, _)| self.options.selection.wants(Sort::of(cell, path)));
        let mut wanted: Wanted = meant.map(|(path, node)| (path.clone(), node.value.clone())).collect();
        let unknown = match cell.is_global() {
            true => {
                let theirs = pair.to.nodes.iter().map(|(path, node)| (path.clone(), node.value.clone())).collect();
                routes.settle(&mut wanted, &theirs, comparing)
            }
            false => Vec::new(),
        };
        (wanted, unknown)
    }

    fn plans(&self, pairs: &[Pair], routes: &Routes, earlier: &[Earlier]) -> Vec<(Wanted, Plan)> {
        let one = |(index, pair): (usize, &Pair)| {
            let (wanted, _) = self.wanted(pair, &pair.from, routes, false);
            let found = found(pair, self);
            let delete = self.options.delete;
            let plan = plan(&pair.source.cell, &wanted, &found, earlier.get(index), delete);
            (wanted, plan)
        };
        pairs.iter().enumerate().map(one).collect()
    }

    /// Stores what was planned, and returns what the target should hold of the source now.
    async fn write(&self, pairs: &[Pair], plans: Vec<(Wanted, Plan)>, copied: &mut Copied) -> Vec<Wanted> {
        let (wanted, plans): (Vec<Wanted>, Vec<Plan>) = plans.into_iter().unzip();
        self.progress.storing(plans.iter().map(|plan| plan.steps.len()).sum());
        let locks = pairs.iter().zip(&plans).find(|(pair, _)| pair.source.cell.is_global());
        let locks = locks.map(|(pair, plan)| Locks::of(&pair.source.cell, plan, &pair.to)).unwrap_or_default();
        let steps = pairs.iter().zip(plans).map(|(pair, plan)| (pair.target.clone(), plan.steps)).collect();
        let written = Writer::new(&self.progress, &self.stop, locks).write(steps).await;
        let mut failed = written.failed;
        failed.sort();
        copied.failed.extend(failed.into_iter().map(|(path, reason)| format!("{path}: {reason}")));
        let lost = written.lost.into_iter();
        copied.failed.extend(lost.map(|(reason, records)| {
            format!("{reason}: {} not copied", counted(records, "record was", "records were"))
        }));
        copied.stopped += written.stopped;
        wanted
    }

    /// What has changed in the source since it was read.
    fn changed(&self, pairs: &[Pair], routes: &Routes, before: &[Wanted], now: &[Contents]) -> Changes {
        let (mut stored, mut deleted, mut words) = (0, 0, BTreeSet::new());
        for ((pair, before), now) in pairs.iter().zip(before).zip(now) {
            let (wanted, unknown) = self.wanted(pair, now, routes, false);
            stored += wanted.iter().filter(|(path, value)| before.get(*path) != Some(*value)).count();
            let is_gone = |path: &&TopoPath| {
                // A cell is never deleted; there are own words on it.
                !wanted.contains_key(*path) && Sort::of(&pair.source.cell, path) != Sort::CellInfo
            };
            deleted += before.keys().filter(is_gone).count();
            let moved = routes.fates.keys().filter(|path| {
                let value = |contents: &Contents| contents.nodes.get(*path).map(|node| node.value.clone());
                pair.source.cell.is_global() && value(now) != value(&pair.from)
            });
            words.extend(unknown.iter().chain(moved).map(|path| {
                format!("global/{path}: it has changed in the source during the copy: run the same command again")
            }));
        }
        Changes { stored, deleted, cells: words.into_iter().collect() }
    }

    /// `None` if somebody stops the copy first. Nothing was changed then.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Ok(None),
            done = work => done.map(Some),
        }
    }
}

/// The records of the target that count for this copy.
fn found<'a>(pair: &'a Pair, transfer: &Transfer) -> Found<'a> {
    let cell = &pair.source.cell;
    let selection = &transfer.options.selection;
    pair.to.nodes.iter().filter(|(path, _)| selection.wants(Sort::of(cell, path))).collect()
}

/// Takes the records out of the plans that their target cannot hold, and says why.
fn refuse(pairs: &[Pair], plans: &mut [(Wanted, Plan)]) -> Vec<String> {
    let mut refused = Vec::new();
    for (pair, (wanted, plan)) in pairs.iter().zip(plans) {
        let backend = &pair.target.backend;
        plan.steps.retain(|step| {
            let crate::backend::Action::Put(value) = &step.change.action else { return true };
            let below = wanted.range(step.change.path.clone()..step.change.path.after_subtree());
            let holds_others = below.take(2).count() > 1;
            let reason = backend.cannot_hold(&step.change.path, value, holds_others);
            let path = CellPath::new(&pair.source.cell, &step.change.path);
            refused.extend(reason.iter().map(|reason| format!("{path}: {} cannot hold it: {reason}", pair.target)));
            reason.is_none()
        });
    }
    refused
}

/// What would be done, in the order in which it would be done.
fn planned(pairs: &[Pair], plans: &[(Wanted, Plan)]) -> Vec<String> {
    let steps = pairs.iter().zip(plans).flat_map(|(pair, (_, plan))| {
        let path = |step: &plan::Step| CellPath::new(&pair.source.cell, &step.change.path);
        plan.steps.iter().map(move |step| (step.stage(), path(step), step.verb()))
    });
    let mut steps: Vec<_> = steps.collect();
    steps.sort();
    steps.into_iter().map(|(_, path, verb)| format!("{verb} {path}")).collect()
}

fn tally(pair: &Pair, wanted: &Wanted, plan: &Plan) -> Tally {
    let count = |verb: &str| plan.steps.iter().filter(|step| step.verb() == verb).count();
    Tally {
        cell: format!("{} ({} -> {})", pair.source.cell, pair.source.location, pair.target.location),
        records: wanted.len(),
        same: plan.same,
        created: count("create"),
        updated: count("update"),
        deleted: count("delete"),
        only_target: plan.only_target,
    }
}
