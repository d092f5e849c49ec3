//! Cells and aliases: which cannot be used, which overlap.

use std::collections::BTreeMap;

use prost::Message;

use super::facts::Facts;
use super::problem::{Kind, Report};
use super::shell::{edit, file, remove_dir_of};
use crate::error::Error;
use crate::name::{CellName, TopoPath};
use crate::plain::shown;
use crate::record::layout::{CELLS_ALIASES, Key, is_among_records};
use crate::record::messages::topodata;

pub(super) fn check(facts: &Facts<'_>, report: &mut Report) {
    unreachable(facts, report);
    unknown(facts, report);
    unusable(facts, report);
    twins(facts, report);
    inside(facts, report);
    aliases(facts, report);
}

fn add(report: &mut Report, kind: Kind, key: Key<'_>, words: impl FnOnce(&CellName, &TopoPath) -> (String, String)) {
    let (global, Ok(path)) = (CellName::global(), key.path()) else { return };
    report.add(kind, (&global, &path), || words(&global, &path));
}

fn unreachable(facts: &Facts<'_>, report: &mut Report) {
    for (cell, records) in &facts.sight.topology.cells {
        let Err(error) = records else { continue };
        add(report, Kind::CellUnreachable, Key::CellInfo(cell.as_str()), |global, path| {
            let fault = format!("nothing is known about the records of cell {cell}: {}", error.reason);
            (fault, edit(global, path, "if its address is wrong; otherwise start its servers"))
        });
    }
}

/// Cells that a mount has not looked at. That is no fault, but nobody should take silence for the best case.
fn unknown(facts: &Facts<'_>, report: &mut Report) {
    for cell in &facts.sight.idle {
        add(report, Kind::CellNotKnown, Key::CellInfo(cell.as_str()), |_, _| {
            let fault =
                format!("nobody has used cell {cell} since the mount began: nothing is known about its records");
            (fault, format!("ls {} > /dev/null", file(cell, &TopoPath::root(), "")))
        });
    }
}

/// What a mount can say that does not reach its global topology.
pub(super) fn global_unreachable(error: &Error, report: &mut Report) {
    report.add(Kind::CellUnreachable, (&CellName::global(), &TopoPath::root()), || {
        let fault = format!("nothing is known about any record: {}", error.reason);
        (fault, "jq .cells.global .topofs/status  # then start the servers".to_owned())
    });
}

fn unusable(facts: &Facts<'_>, report: &mut Report) {
    for (cell, reason) in &*facts.sight.unusable {
        let Ok(path) = Key::CellInfo(cell).path() else { continue };
        // Without a record there is no fault in it. One that cannot be decoded is found with all others.
        let record = facts.global.records.get(&path);
        if record.is_none_or(|record| topodata::CellInfo::decode(&*record.value).is_err()) {
            continue;
        }
        add(report, Kind::CellNotUsable, Key::CellInfo(cell), |global, path| {
            let fault = format!("no cell can be connected from this record: {reason}");
            (fault, format!("{}  # or remove it: {}", edit(global, path, "correct it"), remove_dir_of(global, path)))
        });
    }
}

fn twins(facts: &Facts<'_>, report: &mut Report) {
    for (cell, twins) in &*facts.sight.twins {
        let mut before = twins.iter().filter(|twin| !cell.is_global() && (twin.is_global() || *twin < cell));
        let Some(first) = before.next() else { continue };
        add(report, Kind::CellSharesPlace, Key::CellInfo(cell.as_str()), |global, path| {
            let fault = format!(
                "cell {cell} has the server and root of {first}: the two are one, and what is done to one is done to \
                 the other"
            );
            (fault, edit(global, path, "give the cell a root of its own"))
        });
    }
}

/// A root in a directory of another cell is as good as any, unless Vitess keeps records there.
fn inside(facts: &Facts<'_>, report: &mut Report) {
    for (outer, paths) in &facts.sight.roots_inside {
        for path in paths.iter().filter(|path| is_among_records(path)) {
            report.add(Kind::CellSharesPlace, (outer, path), || {
                let fault = "this directory is the root of another cell, too: what is done to one is done to the other";
                let mend = "grep -H root: global/cells/*/CellInfo.txt  # give that cell a root of its own";
                (fault.to_owned(), mend.to_owned())
            });
        }
    }
}

fn aliases(facts: &Facts<'_>, report: &mut Report) {
    let Ok(dir) = TopoPath::parse(CELLS_ALIASES) else { return };
    let mut alias_of: BTreeMap<String, String> = BTreeMap::new();
    for (path, record) in facts.global.below(&dir) {
        let Some(Key::CellsAlias(alias)) = Key::in_global(path) else { continue };
        let Ok(cells) = topodata::CellsAlias::decode(&*record.value) else { continue };
        let at = (&CellName::global(), path);
        if cells.cells.is_empty() {
            report.add(Kind::AliasEmpty, at, || {
                let fault = "the alias stands for no cell: Vitess refuses to change it while other aliases have cells";
                let remove = remove_dir_of(at.0, path);
                (fault.to_owned(), format!("{}; if nobody needs it: {remove}", edit(at.0, path, "name its cells")))
            });
        }
        for cell in cells.cells {
            if !facts.cells.contains(&cell) {
                report.add(Kind::AliasMissingCell, at, || {
                    let fault = format!("the alias stands for cell {cell}, which has no CellInfo record");
                    (fault, edit(at.0, path, &format!("remove {cell}")))
                });
            }
            match alias_of.get(&cell) {
                Some(other) if other != alias => report.add(Kind::AliasOverlap, at, || {
                    let fault = format!("cell {cell} is in the alias {other}, too: a cell can be in one alias only");
                    (fault, edit(at.0, path, &format!("remove {} here or there", shown(&cell))))
                }),
                _ => drop(alias_of.insert(cell, alias.to_owned())),
            }
        }
    }
}
