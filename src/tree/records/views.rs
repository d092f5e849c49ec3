//! Computed links: `.tablets` and `.primary` of a shard, `.cells` of a keyspace and of a cell alias. The rules are in
//! `topology/links.rs`; this file turns them into names, and remembers what watchers were told. Must never store
//! anything, make a link that leaves the mount, or wait for cells longer than [`PATIENCE`].
//!
//! No reply about a link lasts: which links there are depends on several cells, and a save here must be seen at once.
//! The kernel keeps the listing of a directory of links as long as the time of the directory is the same, so that time
//! is made from what the directory holds. A link with another target is another file.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use parking_lot::Mutex;

use super::RecordFiles;
use crate::cache::CacheCount;
use crate::cells::Cell;
use crate::error::{Error, Kind, Result};
use crate::mirror::{Health, Snapshot};
use crate::name::{CellName, CellPath, LINKS, PRIMARY_LINK, TopoPath};
use crate::record::layout::Key;
use crate::store::Store;
use crate::topology::links::{self, Link, View};
use crate::topology::{CellRecords, Topology};
use crate::tree::caller::Caller;
use crate::tree::file::{Attr, DirEntry, FileId};
use crate::tree::kernel::outbox::{Announcement, Happened};
use crate::tree::namespace::Name;
use crate::tree::options::Views;

/// How long a look into a directory of links waits for cells that are not loaded yet. What comes later is an event.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many cells may be connected, in all, because somebody looks at links: more than anybody has. Whoever can write
/// CellInfo records decides how many there are. Further cells are connected when somebody looks into them.
const MOST_CELLS: usize = 128;
/// How many links are remembered for watchers, in all directories together: some for each tablet of a large topology.
/// The links of further directories come and go without events.
const TOLD: usize = 200_000;
/// How many computed links are kept, in all directories together. Others are computed again whenever somebody asks.
const COMPUTED: u64 = 200_000;
/// How many directories are remembered before those that the kernel does not know are looked for.
const DIRS: usize = 1_000;
/// A directory that was looked up so recently may be about to become known to the kernel.
const RECENT: Duration = Duration::from_secs(10);

/// A directory of links: that of the record in the global topology, and the view.
type Place = (TopoPath, View);

/// Where the links of one directory point, and what says so.
#[derive(Debug)]
struct Computed {
    decided_by: Option<Vec<links::State>>,
    targets: BTreeSet<CellPath>,
    /// Of the targets.
    hash: u64,
}

#[derive(Debug, Clone)]
struct Weight;

impl quick_cache::Weighter<Place, Arc<Computed>> for Weight {
    fn weight(&self, _: &Place, computed: &Arc<Computed>) -> u64 {
        1 + computed.targets.len() as u64
    }
}

/// What is remembered about links.
#[derive(Debug)]
pub(crate) struct ViewMemory {
    told: Mutex<Told>,
    /// A record may list thousands of tablets, and each of them is looked up.
    computed: quick_cache::sync::Cache<Place, Arc<Computed>, Weight>,
    /// Since when a cell is waited for.
    waits: Mutex<HashMap<CellName, Instant>>,
}

impl Default for ViewMemory {
    fn default() -> Self {
        let computed = quick_cache::sync::Cache::with_weighter(DIRS, COMPUTED, Weight);
        Self { told: Mutex::default(), computed, waits: Mutex::default() }
    }
}

impl ViewMemory {
    /// The figures of the cache of links.
    pub fn cache(&self) -> CacheCount {
        CacheCount::of(&self.computed)
    }
}

/// What the watchers of directories of links know. While the lock of it is held, the present state is computed and the
/// difference is put into the outbox, so that an older state never follows a newer one.
#[derive(Debug, Default)]
struct Told {
    by_place: HashMap<Place, (BTreeSet<CellPath>, Instant)>,
    /// Of all of them.
    weight: usize,
    /// Look for forgotten directories when there are so many.
    sweep_at: usize,
}

impl Told {
    fn remove_forgotten(&mut self, is_known: impl Fn(&Place) -> bool) {
        self.by_place.retain(|place, (_, since)| since.elapsed() < RECENT || is_known(place));
        self.weight = self.by_place.values().map(|(links, _)| weight(links)).sum();
        self.sweep_at = DIRS.max(2 * self.by_place.len());
    }
}

/// What a directory of links counts among those that are remembered. An empty one takes memory, too.
fn weight(links: &BTreeSet<CellPath>) -> usize {
    1 + links.len()
}

/// The relative path from the directory of a link to its target: it holds under any mount point.
fn target(link: &Link) -> String {
    // The cell is a directory, too.
    let own_dir = usize::from(link.view != View::Primary);
    let depth = 1 + link.of.path.components().count() + own_dir;
    format!("{}{}", "../".repeat(depth), link.to)
}

/// The tombstone of a shard's `.primary`, wherever it pointed.
fn primary_tombstone(of: &CellPath) -> FileId {
    FileId::Link(Link { of: of.clone(), view: View::Primary, to: of.clone() })
}

pub(super) fn link_attr(defaults: &crate::tree::file::Defaults, link: &Link) -> Attr {
    defaults.link(target(link).len())
}

/// Where a link points.
pub(super) fn read_link(file: &FileId) -> Result<String> {
    match file {
        FileId::Link(link) => Ok(target(link)),
        _ => Err(Error::new(Kind::Invalid, "not a symbolic link")),
    }
}

impl RecordFiles {
    /// What the name of a link, or of a directory of links, stands for in a directory.
    pub(super) fn view(&self, cell: &CellName, snapshot: &Snapshot, dir: &TopoPath, name: &str) -> Option<FileId> {
        let of = CellPath::new(cell, dir);
        let views = if self.options.views == Views::Off { &[] } else { View::of(&of) };
        match *views.iter().find(|view| view.name() == name)? {
            View::Primary => {
                let to = links::primary(snapshot, dir)?;
                Some(FileId::Link(Link { of, view: View::Primary, to }))
            }
            view => Some(FileId::Links(of, view)),
        }
    }

    /// The names of links that a listing of a directory shows. A directory that was made here, or is only still here
    /// for `rm -r`, is empty.
    pub(super) fn listed_views(&self, cell: &CellName, snapshot: &Snapshot, dir: &TopoPath) -> &'static [View] {
        match self.options.views == Views::List && snapshot.has_children(dir) {
            true => View::of(&CellPath::new(cell, dir)),
            false => &[],
        }
    }

    /// Fails if a name stands for links everywhere: nothing of that name can be made.
    pub(super) fn refuse_link_name(&self, name: &str) -> Result<()> {
        if LINKS.contains(&name) {
            return Err(Error::new(Kind::NotPermitted, format!("{name} is the name of links that are computed")));
        }
        Ok(())
    }

    /// What is known of all cells. Of a cell that does not answer, that is what was known last; of one that may not be
    /// read, nothing.
    fn known(&self) -> Topology {
        let is_global = |store: &Arc<dyn Store>| store.cell().is_global();
        let (global, cells): (Vec<_>, Vec<_>) = self.stores.all().into_iter().partition(is_global);
        let records = |store: &dyn Store| -> CellRecords {
            let is_known = |cell: &Arc<Cell>| cell.mirror.is_loaded() && !cell.mirror.is_denied();
            match store.connected().is_none_or(is_known) {
                true => Ok(store.known()),
                false => store.snapshot_now(),
            }
        };
        let global = global.first().map(|store| store.known()).unwrap_or_default();
        Topology { global, cells: cells.into_iter().map(|store| (store.cell().clone(), records(&*store))).collect() }
    }

    fn links(&self, of: &CellPath, view: View) -> Arc<Computed> {
        self.links_in(&self.known(), &of.path, view)
    }

    fn links_in(&self, topology: &Topology, dir: &TopoPath, view: View) -> Arc<Computed> {
        let decided_by = links::decided_by(topology, dir, view);
        let place = (dir.clone(), view);
        let known = self.views.computed.get(&place).filter(|_| decided_by.is_some());
        if let Some(known) = known.filter(|known| known.decided_by == decided_by) {
            return known;
        }
        let targets = links::targets(topology, dir, view);
        let mut hasher = DefaultHasher::new();
        targets.hash(&mut hasher);
        let computed = Arc::new(Computed { decided_by, targets, hash: hasher.finish() });
        self.views.computed.insert(place, computed.clone());
        computed
    }

    /// Somebody looks up a directory of links, perhaps to watch it: connects the cells that have a part in it, and
    /// remembers what there is.
    pub(super) async fn look_at_links(&self, of: &CellPath, view: View) {
        self.wait_for_cells(of, view).await;
        self.remember_links(of, view);
    }

    /// Waits until all cells are loaded, or have failed. For a cell that does neither, nobody waits twice.
    async fn wait_for_cells(&self, of: &CellPath, view: View) {
        if !view.asks_cells(&of.path) {
            return;
        }
        let all = self.stores.all().into_iter().filter_map(|store| store.connected().cloned());
        let (mut idle, used): (Vec<_>, Vec<_>) = all.partition(|cell| cell.mirror.health() == Health::Idle);
        idle.truncate(MOST_CELLS.saturating_sub(used.len()));
        let loading = used.into_iter().filter(|cell| cell.mirror.health() == Health::Loading);
        let cells: Vec<_> = loading.chain(idle).collect();
        let now = Instant::now();
        let left = {
            let mut waits = self.views.waits.lock();
            waits.retain(|name, _| cells.iter().any(|cell| cell.name == *name));
            let since = cells.iter().map(|cell| *waits.entry(cell.name.clone()).or_insert(now));
            since.max().map(|since| (since + PATIENCE).saturating_duration_since(now))
        };
        let Some(left) = left else { return };
        cells.iter().for_each(|cell| cell.mirror.wake());
        if !left.is_zero() {
            // A cell that takes longer goes on loading.
            let _ = tokio::time::timeout(left, join_all(cells.iter().map(|cell| cell.mirror.load()))).await;
        }
    }

    fn remember_links(&self, of: &CellPath, view: View) {
        let mut told = self.views.told.lock();
        let place = (of.path.clone(), view);
        if told.by_place.contains_key(&place) {
            return;
        }
        let now = self.links(of, view).targets.clone();
        if told.by_place.len() >= told.sweep_at.max(DIRS) || told.weight + weight(&now) > TOLD {
            let known = |(dir, view): &Place| {
                let of = CellPath { cell: CellName::global(), path: dir.clone() };
                self.kernel.known(&FileId::Links(of, *view)).is_some()
            };
            told.remove_forgotten(known);
        }
        if told.weight + weight(&now) <= TOLD {
            told.weight += weight(&now);
            told.by_place.insert(place, (now, Instant::now()));
        }
    }

    /// A record that has a part in a view has changed: announces what is different from what watchers were told.
    pub(crate) fn announce_links(&self, dir: &TopoPath, view: View) {
        let of = CellPath { cell: CellName::global(), path: dir.clone() };
        let mut told = self.views.told.lock();
        let place = (dir.clone(), view);
        let Told { by_place, weight: all, .. } = &mut *told;
        let Some((known, _)) = by_place.get_mut(&place) else { return };
        let topology = self.known();
        let mut now = self.links_in(&topology, dir, view).targets.clone();
        // The records of a cell that may not be read are not gone.
        if topology.cells.values().any(|records| records.as_ref().is_err_and(|error| error.kind == Kind::Denied)) {
            now.extend(known.iter().cloned());
        }
        *all = *all + weight(&now) - weight(known);
        let before = std::mem::replace(known, now.clone());
        if *all > TOLD {
            *all -= weight(&now);
            by_place.remove(&place);
        }
        if self.kernel.known(&FileId::Links(of.clone(), view)).is_none() {
            return;
        }
        let link = |to: &CellPath| Link { of: of.clone(), view, to: to.clone() };
        let gone = before.difference(&now).map(|to| Announcement::of_link(link(to), Happened::Deleted));
        let come = now.difference(&before).map(|to| Announcement::of_link(link(to), Happened::Linked));
        gone.chain(come).for_each(|announcement| self.kernel.announce(announcement));
    }

    /// The same for all directories of links: a cell has come, gone, or been loaded.
    pub(crate) fn announce_all_links(&self) {
        let places: Vec<Place> = self.views.told.lock().by_place.keys().cloned().collect();
        places
            .iter()
            .filter(|(dir, view)| view.asks_cells(dir))
            .for_each(|(dir, view)| self.announce_links(dir, *view));
    }

    /// A name in a directory of links.
    pub(super) async fn find_link(&self, of: &CellPath, view: View, name: &str) -> Result<FileId> {
        self.store(&of.cell)?.snapshot().await?;
        let to = links::target_of_name(&of.path, view, name).ok_or_else(Error::not_found)?;
        if !self.links(of, view).targets.contains(&to) {
            self.wait_for_cells(of, view).await;
            if !self.links(of, view).targets.contains(&to) {
                return Err(Error::not_found());
            }
        }
        Ok(FileId::Link(Link { of: of.clone(), view, to }))
    }

    /// The entries of a directory of links.
    pub(super) async fn list_links(&self, of: &CellPath, view: View) -> Result<Vec<DirEntry>> {
        self.require_dir(&of.cell, &of.path).await?;
        self.store(&of.cell)?.snapshot().await?;
        self.look_at_links(of, view).await;
        let computed = self.links(of, view);
        let links = computed.targets.iter().map(|to| Link { of: of.clone(), view, to: to.clone() });
        Ok(links.map(|link| DirEntry { name: link.name().to_owned(), file: FileId::Link(link) }).collect())
    }

    /// The attributes of a directory of links: another content has another time.
    pub(super) fn links_attr(&self, of: &CellPath, view: View) -> Attr {
        let part = Duration::from_nanos(self.links(of, view).hash % 1_000_000_000);
        let time = self.defaults.mounted.checked_sub(part).unwrap_or(self.defaults.mounted);
        Attr { accessed: time, modified: time, changed: time, ..self.defaults.dir() }
    }

    /// The attributes of a directory of links that a listing shows. The kernel knows it then, without a lookup.
    pub(super) fn listed_links_attr(&self, of: &CellPath, view: View) -> Attr {
        self.remember_links(of, view);
        self.links_attr(of, view)
    }

    /// Links cannot be removed. If their directory has gone, they are gone with it, and `rm -r` may remove what it has
    /// listed before.
    pub(super) async fn remove_view(&self, caller: &Caller, at: Name<'_>, file: &FileId) -> Result<()> {
        let (of, exists) = match file {
            FileId::Links(of, _) => (of, true),
            FileId::Link(link) => (&link.of, *file != primary_tombstone(&link.of)),
            _ => return Err(Error::not_found()),
        };
        if exists && self.store(&of.cell)?.snapshot().await?.has_children(&of.path) {
            let reason = format!("{file} is computed from records: it goes when they say so");
            return Err(Error::new(Kind::NotPermitted, reason));
        }
        tracing::debug!(name = at.name, "a link that has gone is removed");
        match file {
            FileId::Links(..) => self.kernel.retire(file),
            file => self.memory.end_exception(caller, file),
        }
        Ok(())
    }

    /// The tombstone of a shard's `.primary`, if the removal of a record takes that link away.
    pub(super) fn goes_with(&self, cell: &CellName, path: &TopoPath, snapshot: &Snapshot) -> Option<FileId> {
        let Some(Key::Shard(..)) = Key::of(cell, path).filter(|_| cell.is_global()) else { return None };
        let dir = path.parent()?;
        self.view(cell, snapshot, &dir, PRIMARY_LINK)?;
        Some(primary_tombstone(&CellPath { cell: cell.clone(), path: dir }))
    }

    /// The link to the primary of a shard whose record the caller has just removed, until it removes the link, too.
    pub(super) fn removed_primary(
        &self,
        caller: &Caller,
        cell: &CellName,
        dir: &TopoPath,
        name: &str,
    ) -> Option<FileId> {
        let tombstone = (name == PRIMARY_LINK).then(|| primary_tombstone(&CellPath::new(cell, dir)))?;
        self.memory.has_tombstone(caller, &tombstone).then_some(tombstone)
    }

    /// Whether a change of a record may change the listing of its directory: `.primary` is listed there.
    pub(super) fn relists_views(&self, cell: &CellName, path: &TopoPath) -> bool {
        self.options.views == Views::List && matches!(Key::of(cell, path), Some(Key::Shard(..)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TopoPath {
        TopoPath::parse(text).unwrap()
    }

    #[test]
    fn a_target_leads_from_the_directory_of_the_link_to_the_cell() {
        let tablet = ("zone1", "tablets/zone1-0000000100");
        for (dir, view, (cell, to), expected) in [
            ("keyspaces/ks/shards/0", View::Tablets, tablet, "../../../../../../zone1/tablets/zone1-0000000100"),
            ("keyspaces/ks/shards/0", View::Primary, tablet, "../../../../../zone1/tablets/zone1-0000000100"),
            ("keyspaces/ks", View::Cells, ("zone1", "keyspaces/ks"), "../../../../zone1/keyspaces/ks"),
            ("cells_aliases/all", View::Cells, ("zone1", ""), "../../../../zone1"),
        ] {
            let of = CellPath { cell: CellName::global(), path: path(dir) };
            let to = CellPath { cell: CellName::new(cell).unwrap(), path: path(to) };
            let link = Link { of, view, to };
            assert_eq!(target(&link), expected);
            // As the kernel resolves it: from the directory of the link up, and never above the mount.
            let dir = FileId::dir_of_link(&link).to_string();
            assert_eq!(expected.matches("../").count(), dir.split('/').count(), "{dir}");
        }
    }
}
