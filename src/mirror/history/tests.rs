//! The memory against a plain one: a list of all changes.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::mirror::state::Snapshot;

const START: u64 = 1_000;

fn moment(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(START + seconds)
}

fn path(name: &str) -> TopoPath {
    TopoPath::parse(name).unwrap()
}

fn record(value: &str, written: u64) -> Record {
    let version = Version { number: written, written: Revision(written), created: Revision(1) };
    Record { value: Bytes::copy_from_slice(value.as_bytes()), version, modified: moment(written) }
}

/// A cell, as its mirror shows it, and what is remembered of it. Each change has the next revision, a second later.
struct Cell {
    history: History,
    now: Snapshot,
    /// What was shown after each change.
    shown: Vec<Snapshot>,
}

impl Cell {
    fn new(all: &Arc<Histories>) -> Self {
        let history = History::new(all.clone());
        history.begins(Revision(0), moment(0));
        Self { history, now: Snapshot::default(), shown: vec![Snapshot::default()] }
    }

    fn time(&self) -> u64 {
        self.shown.len() as u64
    }

    fn change(&mut self, name: &str, value: Option<&str>) {
        let (path, at) = (path(name), self.time());
        let (old, new) = (self.now.records.get(&path).cloned(), value.map(|value| record(value, at)));
        let update = Update { path, old, new, at: Revision(at) };
        update.apply(&mut self.now);
        self.now.at = Revision(at);
        self.history.record(&[update], self.now.at, true, moment(at));
        self.shown.push(self.now.clone());
    }

    fn at(&self, seconds: u64) -> Result<Snapshot, Unknown> {
        self.history.at(moment(seconds), &self.now, moment(1_000_000))
    }

    fn past(&self, name: &str) -> Vec<(u64, Option<String>)> {
        let path = path(name);
        let past = self.history.past(&path, self.now.records.get(&path), false);
        let text = |record: Record| String::from_utf8(record.value.to_vec()).unwrap();
        past.into_iter().map(|past| (past.at.0, past.record.map(text))).collect()
    }
}

fn limits(versions: usize, bytes: usize) -> Arc<Histories> {
    Histories::new(HistoryLimits { versions, bytes })
}

fn states(all: &[(u64, Option<&str>)]) -> Vec<(u64, Option<String>)> {
    all.iter().map(|(at, value)| (*at, value.map(ToOwned::to_owned))).collect()
}

#[test]
fn a_record_keeps_its_past_when_it_is_deleted_and_made_again() {
    let mut cell = Cell::new(&limits(10, 1 << 20));
    for value in [Some("a"), Some("b"), None, Some("c")] {
        cell.change("x", value);
    }
    assert_eq!(cell.past("x"), states(&[(1, Some("a")), (2, Some("b")), (3, None), (4, Some("c"))]));
    assert!(cell.history.gone().is_empty());
    cell.change("x", None);
    assert!(cell.history.gone().contains_key(&path("x")));
    assert_eq!(cell.past("x").last(), Some(&(5, None)));
    assert!(cell.past("y").is_empty());
}

#[test]
fn who_made_a_change_is_said_of_that_change() {
    let mut cell = Cell::new(&limits(10, 1 << 20));
    for value in [Some("a"), Some("b"), None] {
        cell.change("x", value);
    }
    let maker = |uid| Maker { actor: Actor { uid, process: 7 }, command: Some("vim".into()), change_set: None };
    cell.history.made(&path("x"), Revision(1), false, &maker(1));
    // The deletion of version 2.
    cell.history.made(&path("x"), Revision(2), true, &maker(2));
    let by: Vec<Option<u32>> =
        cell.history.past(&path("x"), None, false).into_iter().map(|past| Some(past.by?.actor.uid)).collect();
    assert_eq!(by, [Some(1), None, Some(2)]);
    // It is still known when the change itself is forgotten, and only its result is kept.
    let mut cell = Cell::new(&limits(1, 1 << 20));
    cell.change("x", Some("a"));
    cell.history.made(&path("x"), Revision(1), false, &maker(1));
    cell.change("x", Some("b"));
    let past = cell.history.past(&path("x"), cell.now.records.get(&path("x")), false);
    assert_eq!(past[0].by, Some(maker(1)));
    assert!(past[0].is_exact);
}

#[test]
fn of_what_was_forgotten_nobody_says_that_it_was_made_elsewhere() {
    let mut cell = Cell::new(&limits(1, 1 << 20));
    let watched = |cell: &Cell| -> Vec<bool> {
        let past = cell.history.past(&path("x"), cell.now.records.get(&path("x")), false);
        past.iter().map(|past| past.is_watched).collect()
    };
    // Loaded with the cell: it was made before.
    cell.now.records.insert(path("x"), record("old", 0));
    assert_eq!(watched(&cell), [false]);
    cell.change("x", Some("a"));
    assert_eq!(watched(&cell), [false, true]);
    cell.change("x", Some("b"));
    assert_eq!(watched(&cell), [true, true]);
    // Its only change is pushed out by others.
    let mut cell = Cell::new(&limits(10, 10_000));
    cell.change("x", Some("a"));
    cell.history.made(&path("x"), Revision(1), false, &Maker::from(Actor { uid: 1, process: 0 }));
    for number in 0..40 {
        cell.change(&format!("y{number}"), Some("b"));
    }
    assert_eq!(watched(&cell), [false]);
}

#[test]
fn a_hot_record_does_not_push_out_the_past_of_the_others() {
    let all = limits(10_000, 64 << 10);
    let mut cell = Cell::new(&all);
    for round in 0..20 {
        cell.change(&format!("quiet{round}"), Some("a"));
        cell.change(&format!("quiet{round}"), Some("b"));
    }
    for _ in 0..2_000 {
        cell.change("hot", Some("0123456789"));
    }
    for round in 0..20 {
        assert_eq!(cell.past(&format!("quiet{round}")).len(), 2, "quiet{round}");
    }
    assert!(cell.past("hot").len() > 5, "what is left is used");
    assert!(all.usage().bytes <= 64 << 10 && all.usage().forgotten > 1_000);
}

#[test]
fn what_is_remembered_goes_with_its_mirror_and_nothing_is_remembered_if_nothing_is_wanted() {
    let all = limits(10, 1 << 20);
    let (mut one, mut other) = (Cell::new(&all), Cell::new(&all));
    one.change("x", Some("a"));
    other.change("x", Some("a"));
    let both = all.usage();
    drop(one);
    assert_eq!((all.usage().records, all.usage().bytes), (1, both.bytes / 2));
    drop(other);
    assert_eq!(all.usage(), HistoryUsage { records: 0, changes: 0, bytes: 0, forgotten: 0 });
    let mut nothing = Cell::new(&Histories::new(HistoryLimits::NOTHING));
    nothing.change("x", Some("a"));
    nothing.change("x", Some("b"));
    assert_eq!(nothing.past("x"), states(&[(2, Some("b"))]));
    assert!(nothing.at(1).unwrap_err().to_string().contains("--history 0"));
}

#[test]
fn a_moment_at_which_the_watch_was_broken_is_unknown() {
    let mut cell = Cell::new(&limits(10, 1 << 20));
    cell.change("x", Some("a"));
    cell.history.breaks(moment(5), moment(6));
    assert!(cell.at(7).unwrap_err().to_string().contains("and now was not seen"));
    cell.history.breaks(moment(6), moment(7));
    cell.history.begins(Revision(1), moment(10));
    for (seconds, is_known) in [(1, true), (4, true), (5, true), (6, false), (9, false), (10, true), (11, true)] {
        assert_eq!(cell.at(seconds).is_ok(), is_known, "{seconds}");
    }
    // A comparison shows that the watch has missed something since the list.
    cell.history.compared(false, moment(20), moment(21));
    cell.history.compared(true, moment(30), moment(31));
    for (seconds, is_known) in [(15, true), (20, true), (25, false), (31, true)] {
        assert_eq!(cell.at(seconds).is_ok(), is_known, "{seconds}");
    }
    // The service was restored.
    cell.history.cut(Revision(0), moment(40));
    assert!(cell.at(35).is_err() && cell.at(41).is_ok());
    assert!(cell.at(2_000_000).unwrap_err().to_string().contains("has not come yet"));
}

#[test]
fn what_a_call_of_this_mount_has_overtaken_belongs_to_the_moment() {
    let mut cell = Cell::new(&limits(10, 1 << 20));
    let update =
        |name: &str, at: u64| Update { path: path(name), old: None, new: Some(record("new", at)), at: Revision(at) };
    // The answer to our own call comes before the watch tells of somebody else's change before it.
    for (name, revision, seconds) in [("ours", 11, 1), ("theirs", 10, 3), ("later", 12, 5)] {
        let update = update(name, revision);
        update.apply(&mut cell.now);
        cell.now.at = cell.now.at.max(Revision(revision));
        cell.history.record(&[update], cell.now.at, true, moment(seconds));
    }
    let names = |seconds| cell.at(seconds).unwrap().records.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(0), Vec::<String>::new());
    assert_eq!(names(2), ["ours", "theirs"]);
    assert_eq!(cell.at(2).unwrap().at, Revision(11));
    assert_eq!(names(5), ["later", "ours", "theirs"]);
}

#[test]
fn a_clock_that_goes_back_does_not_change_the_order() {
    let all = limits(10, 1 << 20);
    let cell = Cell::new(&all);
    let (old, new) = (record("a", 1), record("b", 2));
    let update = |old: Option<&Record>, new: &Record| Update {
        path: path("x"),
        old: old.cloned(),
        new: Some(new.clone()),
        at: new.version.written,
    };
    cell.history.record(&[update(None, &old)], Revision(1), true, moment(10));
    cell.history.record(&[update(Some(&old), &new)], Revision(2), true, moment(3));
    let mut now = Snapshot::default();
    now.records.insert(path("x"), new);
    let at = |seconds| cell.history.at(moment(seconds), &now, moment(20)).unwrap().records;
    assert!(at(5).is_empty());
    assert_eq!(at(10).len(), 1);
}

/// All states of each record.
type Plain = HashMap<String, Vec<(u64, Option<String>)>>;

/// A change of one of a few records, in one of two cells.
fn change() -> impl Strategy<Value = (usize, usize, Option<String>)> {
    (0..2usize, 0..4usize, prop::option::weighted(0.8, "[a-z]{0,400}"))
}

proptest! {
    #[test]
    fn every_moment_that_is_known_is_as_it_was_and_the_bounds_hold(
        changes in prop::collection::vec(change(), 0..80),
        versions in 1..12usize,
        bytes in 400..20_000usize,
    ) {
        let all = limits(versions, bytes);
        let mut cells = [Cell::new(&all), Cell::new(&all)];
        let mut plain: [Plain; 2] = Default::default();
        for (cell, name, value) in changes {
            let name = format!("record{name}");
            // Deleting nothing is no change.
            if value.is_none() && !cells[cell].now.records.contains_key(&path(&name)) {
                continue;
            }
            plain[cell].entry(name.clone()).or_default().push((cells[cell].time(), value.clone()));
            cells[cell].change(&name, value.as_deref());
            // Time passes in the other cell, too.
            let still = cells[1 - cell].now.clone();
            cells[1 - cell].shown.push(still);
            prop_assert!(all.usage().bytes <= bytes);
        }
        let mut kept = 0;
        for (cell, plain) in cells.iter().zip(&plain) {
            for (name, all_states) in plain {
                let past = cell.past(name);
                // The newest are kept, without a gap, and no more than wanted.
                prop_assert!(past.len() <= versions + 1);
                prop_assert!(all_states.ends_with(&past), "{past:?}");
                kept += past.len();
            }
            let is_known: Vec<bool> = (0..cell.time()).map(|at| cell.at(at).is_ok()).collect();
            // From some moment on, everything.
            prop_assert!(is_known.is_sorted());
            prop_assert_eq!(is_known.last(), Some(&true));
            for (seconds, shown) in cell.shown.iter().enumerate().filter(|(seconds, _)| is_known[*seconds]) {
                let at = cell.at(seconds as u64).unwrap();
                prop_assert_eq!(&at.records, &shown.records, "{}", seconds);
                prop_assert_eq!(at.at, shown.at);
            }
        }
        let usage = all.usage();
        prop_assert!(usage.changes <= kept + usage.records);
        drop(cells);
        prop_assert_eq!((all.usage().records, all.usage().bytes, all.usage().changes), (0, 0, 0));
    }
}
