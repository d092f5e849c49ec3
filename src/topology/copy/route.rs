//! Which cell of the source goes to which place of the target, and whether that can be. Must never ask a service.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::map::{Mapped, Mapping, moved};
use super::place::Contents;
use super::plan::Wanted;
use crate::backend::{Implementation, Location};
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, TopoPath};
use crate::record::layout::cell_of_info;
use crate::record::{CellInfo, Records};

/// What happens to a CellInfo record of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// The target gets this.
    Make(Bytes),
    /// The record of the target says where the cell is there.
    Kept,
    /// The same, but it differs in more than the place.
    Differs,
    /// It belongs to a cell that is left out.
    LeftOut,
}

/// A cell that is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub cell: CellName,
    pub from: Location,
    pub to: Location,
}

/// What is known before anything is copied.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// The cells, the global topology first.
    pub routes: Vec<Route>,
    /// The CellInfo records of the source.
    pub fates: BTreeMap<TopoPath, Fate>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// What cannot be copied; everything else can.
    pub troubles: Vec<String>,
    /// Cells whose place at the target nobody has told.
    pub homeless: Vec<String>,
    /// All locations of both topologies.
    pub all: Vec<Location>,
}

/// What decides about the cells.
pub(super) struct Wish<'a> {
    pub records: &'a Records,
    pub mapping: &'a Mapping,
    pub cells: Option<&'a [CellName]>,
    /// Whether records of cells are copied.
    pub with_cells: bool,
    pub from: &'a Location,
    pub to: &'a Location,
}

/// A CellInfo record.
struct Told {
    /// The cell, or why it cannot be used.
    cell: std::result::Result<(CellName, CellInfo), &'static str>,
    value: Bytes,
}

impl Wish<'_> {
    /// Decides for all cells. Fails if the copy would mix the records of two cells, or is not what anybody can want.
    pub fn decide(&self, source: &Contents, target: &Contents) -> Result<Routes> {
        let (source, target) = (self.told(source), self.told(target));
        let mut routes = Routes::default();
        routes.routes.push(Route { cell: CellName::global(), from: self.from.clone(), to: self.to.clone() });
        let mut refused = Vec::new();
        let mut used = Vec::new();
        for (path, told) in &source {
            if let Err(error) = self.decide_one(path, told, target.get(path), &mut routes, &mut used) {
                refused.push(error);
            }
        }
        for name in self.cells.unwrap_or_default() {
            let known = source.values().any(|told| matches!(&told.cell, Ok((cell, _)) if cell == name));
            if !known && !name.is_global() {
                refused.push(format!("--cells: the source has no cell {name}"));
            }
        }
        if self.with_cells {
            let unused = self.mapping.unused(&used).into_iter();
            refused.extend(unused.map(|flag| format!("{flag}: no CellInfo record of the source says that")));
        }
        let place =
            |implementation, told: &Told| told.cell.as_ref().ok().map(|(_, info)| location(implementation, info));
        let sources: Vec<(String, Location)> = named(
            self.from,
            source.iter().filter_map(|(path, told)| Some((path, place(self.from.implementation, told)?))),
        );
        let targets: Vec<(String, Location)> =
            named(self.to, target.iter().filter_map(|(path, told)| Some((path, place(self.to.implementation, told)?))));
        refused.extend(collisions(&mut routes, &sources, &targets));
        refused.extend(routes.routes.iter().filter_map(slash));
        routes.all = sources.into_iter().chain(targets).map(|(_, location)| location).collect();
        routes.all.extend(routes.routes.iter().map(|route| route.to.clone()));
        if refused.is_empty() { Ok(routes) } else { Err(Error::new(Kind::Invalid, refused.join("\n"))) }
    }

    fn told(&self, contents: &Contents) -> BTreeMap<TopoPath, Told> {
        let told = contents.nodes.iter().filter_map(|(path, node)| {
            let (_, cell) = cell_of_info(path)?;
            let info = || self.records.cell_info(&node.value).ok_or("the record cannot be decoded");
            let cell = cell.and_then(|cell| Ok((cell, info()?)));
            Some((path.clone(), Told { cell, value: node.value.clone() }))
        });
        told.collect()
    }

    fn decide_one(
        &self,
        path: &TopoPath,
        told: &Told,
        at_target: Option<&Told>,
        routes: &mut Routes,
        used: &mut Vec<Mapped>,
    ) -> std::result::Result<(), String> {
        let own = |at_target: &Told| if at_target.value == told.value { Fate::Kept } else { Fate::Differs };
        let (cell, info) = match &told.cell {
            Ok(told) => told,
            Err(reason) => {
                let fate = at_target.map_or_else(|| Fate::Make(told.value.clone()), own);
                routes.fates.insert(path.clone(), fate);
                if self.with_cells {
                    routes.troubles.push(format!("global/{path}: {reason}: the records of the cell are not copied"));
                }
                return Ok(());
            }
        };
        let from = location(self.from.implementation, info);
        let mapped = self.mapping.apply(&from);
        let (wanted, has_server) = (mapped.info.clone(), mapped.server.is_some());
        let has_rule = has_server || mapped.root.is_some();
        used.push(mapped);
        if !self.with_cells || self.cells.is_some_and(|cells| !cells.contains(cell)) {
            routes.fates.insert(path.clone(), Fate::LeftOut);
            return Ok(());
        }
        let to = match at_target.map(|at_target| (at_target, &at_target.cell)) {
            Some((at_target, Ok((_, theirs)))) => {
                let same = moved(&self.records.codec, &told.value, info, theirs);
                let is_same = same.is_ok_and(|same| same == at_target.value);
                routes.fates.insert(path.clone(), if is_same { Fate::Kept } else { Fate::Differs });
                let to = location(self.to.implementation, theirs);
                if has_rule && *theirs != wanted {
                    routes.notes.push(format!(
                        "{cell}: goes to {to}, as its CellInfo record at the target says; --map-server and --map-root \
                         are for cells that the target does not know"
                    ));
                }
                to
            }
            Some((at_target, Err(reason))) => {
                routes.fates.insert(path.clone(), own(at_target));
                routes.troubles.push(format!(
                    "global/{path}: at the target, {reason}: nobody knows where the records of the cell go"
                ));
                return Ok(());
            }
            None if self.from.implementation != self.to.implementation && !has_server => {
                routes.fates.insert(path.clone(), Fate::Make(told.value.clone()));
                routes.homeless.push(homeless(cell, &from, self.to));
                return Ok(());
            }
            None => {
                let value = moved(&self.records.codec, &told.value, info, &wanted).map_err(|error| error.reason)?;
                routes.fates.insert(path.clone(), Fate::Make(value));
                location(self.to.implementation, &wanted)
            }
        };
        if from.is_same_place(&to) {
            routes.notes.push(format!("{cell}: stays where it is, in {from}: both topologies use it there"));
        } else {
            routes.routes.push(Route { cell: cell.clone(), from, to });
        }
        Ok(())
    }
}

impl Routes {
    /// The records of the global topology as the target gets them, and of the target those that are compared with them.
    pub fn settle(&self, wanted: &mut Wanted, at_target: &BTreeMap<TopoPath, Bytes>, comparing: bool) -> Vec<TopoPath> {
        let mut unknown = Vec::new();
        let infos: Vec<TopoPath> = wanted.keys().filter(|path| cell_of_info(path).is_some()).cloned().collect();
        for path in infos {
            let theirs = at_target.get(&path).cloned();
            let value = match (self.fates.get(&path), theirs) {
                (None, _) => {
                    unknown.push(path.clone());
                    None
                }
                (Some(Fate::Make(value)), None) => Some(value.clone()),
                (Some(Fate::Make(value)), Some(_)) if comparing => Some(value.clone()),
                // Its own one at the target, or one that somebody has made meanwhile, says where the cell is.
                (Some(Fate::Make(_) | Fate::Kept), theirs) => theirs,
                (Some(Fate::Differs), theirs) if !comparing => theirs,
                (Some(Fate::Differs), _) => continue,
                (Some(Fate::LeftOut), theirs) => theirs,
            };
            match value {
                Some(value) => drop(wanted.insert(path, value)),
                None => drop(wanted.remove(&path)),
            }
        }
        unknown
    }
}

fn location(implementation: Implementation, info: &CellInfo) -> Location {
    Location { implementation, server: info.server.clone(), root: info.root.clone() }
}

fn named<'a>(global: &Location, cells: impl Iterator<Item = (&'a TopoPath, Location)>) -> Vec<(String, Location)> {
    let cells = cells.map(|(path, location)| {
        let cell = path.parent().map(|dir| dir.name().to_owned()).unwrap_or_default();
        (format!("cell {cell}"), location)
    });
    std::iter::once(("the global topology".to_owned(), global.clone())).chain(cells).collect()
}

/// What a person has to say about a cell.
fn homeless(cell: &CellName, from: &Location, to: &Location) -> String {
    let (old, new) = (from.implementation, to.implementation);
    format!(
        "cell {cell} is on {old}, in {}{}, and nobody has said where it goes on {new}. Say it with --map-server \
         {}=SERVER (and --map-root {}=ROOT), or make its CellInfo record at the target first, \
         or leave the cell out with --cells",
        from.server,
        if from.root.starts_with('/') { from.root.clone() } else { format!("/{}", from.root) },
        from.server,
        from.root
    )
}

/// Cells whose records would be mixed with those of others. Takes away the routes of cells that share their place at
/// both ends: it is copied once.
fn collisions(routes: &mut Routes, sources: &[(String, Location)], targets: &[(String, Location)]) -> Vec<String> {
    let mut refused = Vec::new();
    let mut kept: Vec<Route> = Vec::new();
    let copied: Vec<String> = routes.routes.iter().map(|route| called(&route.cell)).collect();
    for route in std::mem::take(&mut routes.routes) {
        let name = called(&route.cell);
        if let Some((other, _)) = sources.iter().find(|(_, source)| source.is_same_place(&route.to)) {
            let is_itself = if *other == name { "it".to_owned() } else { format!("{other} of the source") };
            refused.push(format!("{name} would be copied to {}, where {is_itself} is", route.to));
            continue;
        }
        let elsewhere = targets.iter().find(|(other, at)| *other != name && at.is_same_place(&route.from));
        if let Some((other, _)) = elsewhere {
            refused.push(format!("{name} of the source is in {}, where {other} of the target is", route.from));
            continue;
        }
        let twin = kept.iter().find(|other| other.to.is_same_place(&route.to));
        if let Some(twin) = twin {
            if twin.from.is_same_place(&route.from) {
                routes
                    .notes
                    .push(format!("{name}: has the same records as {}, and is copied with it", called(&twin.cell)));
            } else {
                let other = called(&twin.cell);
                refused.push(format!("{name} and {other} would both be copied to {}", route.to));
            }
            continue;
        }
        let theirs = |(other, at): &&(String, Location)| *other != name && at.is_same_place(&route.to);
        if let Some((other, _)) = targets.iter().find(|target| theirs(target) && !copied.contains(&target.0)) {
            refused.push(format!("{name} would be copied to {}, where {other} of the target is", route.to));
            continue;
        }
        kept.push(route);
    }
    routes.routes = kept;
    refused
}

fn called(cell: &CellName) -> String {
    if cell.is_global() { "the global topology".to_owned() } else { format!("cell {cell}") }
}

/// Vitess joins root and path: with such a root, it would look for other keys than those that it can lock.
fn slash(route: &Route) -> Option<String> {
    if route.to.implementation != Implementation::Consul || !route.to.root.starts_with('/') {
        return None;
    }
    let (root, bare) = (&route.to.root, route.to.root.trim_start_matches('/'));
    let flag = match route.cell.is_global() {
        true => format!("--to-root {bare}"),
        false => format!("--map-root {}={bare}, or an own CellInfo record at the target", route.from.root),
    };
    Some(format!(
        "{}: the root {root} begins with a slash, but Consul locks no such keys: give {flag}",
        called(&route.cell)
    ))
}
