//! Copies a topology to another service, and compares the two. Knows records, cells and backends; must never know
//! files, and must never change anything in the source.
//!
//! `route` decides where each cell goes (by the rules of `map`), `place` reads it at one point, `plan` says what has to
//! be done (in the order of `sort`), `write` does it with guards, `differ` shows what is different.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::{join_all, try_join_all};
use tokio_util::sync::CancellationToken;

use crate::backend::{BackendError, Failure};
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::Records;

mod differ;
mod map;
mod place;
mod plan;
mod route;
mod sort;
mod write;

pub use map::{Mapping, Rule};
use place::{Contents, Place};
pub use place::{End, Side};
use plan::{Difference, Earlier, Found, Plan, Wanted, differences, plan};
use route::{Routes, Wish};
pub use sort::{Selection, Sort};
pub use write::Progress;
use write::Writer;

/// How often a copy looks whether the source has changed meanwhile, and copies what has.
const PASSES: usize = 4;
/// Most lines of one kind in an error.
const LINES: usize = 20;

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
    /// Records that were not stored because the copy was stopped.
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

impl Transfer {
    /// Copies, and tells of each cell what has to be done. Fails, before anything is changed, if not everything can be
    /// copied, unless it is to keep going.
    pub async fn copy(&self, told: impl FnMut(Tally)) -> Result<Copied> {
        let Some(ready) = self.unless_stopped(self.ready(false)).await? else {
            return Ok(Copied { failed: vec!["stopped before anything was copied".to_owned()], ..Copied::default() });
        };
        let Ready { mut pairs, routes, mut troubles } = ready;
        let mut plans = self.plans(&pairs, &routes, &[]);
        troubles.extend(refuse(&pairs, &mut plans));
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
        Ok(copied)
    }

    /// Stores what is planned, and then what has changed in the source meanwhile.
    async fn follow(&self, pairs: &mut [Pair], mut plans: Vec<(Wanted, Plan)>, routes: &Routes, copied: &mut Copied) {
        for pass in 1.. {
            let wanted = self.write(pairs, plans, copied).await;
            if copied.stopped > 0 || self.stop.is_cancelled() {
                break;
            }
            let again = try_join_all(pairs.iter().map(|pair| pair.source.read()));
            let now = match self.unless_stopped(again).await {
                Ok(Some(now)) => now,
                Ok(None) => break,
                Err(error) => {
                    copied.failed.push(format!("{error}: nobody knows whether it has changed during the copy"));
                    break;
                }
            };
            let (changed, cells) = self.changed(pairs, routes, &wanted, &now);
            copied.failed.extend(cells);
            if changed == 0 {
                break;
            }
            if pass == PASSES {
                copied.failed.push(format!(
                    "the source has changed during the copy, and still does: {changed} records at last. Run the same \
                     command again"
                ));
                break;
            }
            copied.notes.push(format!("the source has changed during the copy: {changed} records are copied again"));
            let earlier: Vec<Earlier> =
                pairs.iter().zip(wanted).map(|(pair, wanted)| Earlier::after(wanted, &found(pair, self))).collect();
            let targets = match try_join_all(pairs.iter().map(|pair| pair.target.read())).await {
                Ok(targets) => targets,
                Err(error) => {
                    copied.failed.push(format!("{error}: what has changed in the source was not copied"));
                    break;
                }
            };
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
        let (from, to) = futures::try_join!(source.read(), target.read())?;
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
        let cells = join_all(routes.routes.iter().filter(|route| !route.cell.is_global()).map(async |route| {
            let source = Place::open(End::Source, &self.source, &route.cell, &route.from)?.beside(&routes.all);
            let target = Place::open(End::Target, &self.target, &route.cell, &route.to)?.beside(&routes.all);
            let (from, to) = futures::try_join!(source.read(), target.read())?;
            Ok(Pair { source: Arc::new(source), target: Arc::new(target), from, to })
        }));
        for cell in cells.await {
            match cell {
                Ok(pair) => pairs.push(pair),
                Err(error) => troubles.push(Error::to_string(&error)),
            }
        }
        let unnamed = pairs.iter().filter(|pair| pair.from.unnamed > 0);
        troubles.extend(unnamed.map(|pair| self::unnamed(&pair.source, End::Source, pair.from.unnamed)));
        Ok(Ready { pairs, routes, troubles })
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
        let steps: usize = plans.iter().map(|plan| plan.steps.len()).sum();
        self.progress.total.fetch_add(steps as u64, std::sync::atomic::Ordering::Relaxed);
        let steps = pairs.iter().zip(plans).map(|(pair, plan)| (pair.target.clone(), plan.steps)).collect();
        let written = Writer::new(&self.progress, &self.stop).write(steps).await;
        let mut failed = written.failed;
        failed.sort();
        copied.failed.extend(failed.into_iter().map(|(path, reason)| format!("{path}: {reason}")));
        let lost = written.lost.into_iter();
        copied.failed.extend(lost.map(|(reason, records)| format!("{reason}: {records} records were not copied")));
        copied.stopped += written.stopped;
        wanted
    }

    /// How many records of the source have changed since they were read, and words on cells that came or moved.
    fn changed(&self, pairs: &[Pair], routes: &Routes, before: &[Wanted], now: &[Contents]) -> (usize, Vec<String>) {
        let (mut changed, mut words) = (0, BTreeSet::new());
        for ((pair, before), now) in pairs.iter().zip(before).zip(now) {
            let (wanted, unknown) = self.wanted(pair, now, routes, false);
            changed += wanted.iter().filter(|(path, value)| before.get(*path) != Some(*value)).count();
            changed += before.keys().filter(|path| !wanted.contains_key(*path)).count();
            let moved = routes.fates.keys().filter(|path| {
                let value = |contents: &Contents| contents.nodes.get(*path).map(|node| node.value.clone());
                pair.source.cell.is_global() && value(now) != value(&pair.from)
            });
            words.extend(unknown.iter().chain(moved).map(|path| {
                format!("global/{path}: it has changed in the source during the copy: run the same command again")
            }));
        }
        (changed, words.into_iter().collect())
    }

    /// `None` if somebody stops the copy first. Nothing was changed then.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        tokio::select! {
            done = work => done.map(Some),
            () = self.stop.cancelled() => Ok(None),
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

fn unnamed(place: &Place, end: End, keys: u64) -> String {
    format!(
        "{end}, {place}: {keys} keys cannot be names of records (a part of the name is empty, too long, or no text)"
    )
}

/// The error of a copy that has not begun.
fn not_begun(troubles: &[String]) -> String {
    let mut lines: Vec<&str> = troubles.iter().take(LINES).map(String::as_str).collect();
    let more = troubles.len().saturating_sub(LINES);
    let rest = format!("and {more} more");
    if more > 0 {
        lines.push(&rest);
    }
    lines.push("nothing was copied; --keep-going copies everything else");
    lines.join("\n")
}
