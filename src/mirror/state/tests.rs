//! The rules of merging, one by one.

use super::*;
use crate::backend::Owner;

fn node(path: &str, value: &str, written: u64) -> Node {
    Node {
        path: TopoPath::parse(path).unwrap(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        version: Version { number: written, written: Revision(written), created: Revision(1) },
        role: Role::Record,
        modified: None,
    }
}

#[test]
fn an_older_report_never_replaces_a_newer_one() {
    let mut state = State::default();
    let now = SystemTime::now();
    assert!(state.put(node("a", "2", 2), now).is_some());
    assert!(state.put(node("a", "1", 1), now).is_none());
    assert!(state.delete(&TopoPath::parse("a").unwrap(), Revision(1)).is_none());
    assert!(state.delete(&TopoPath::parse("a").unwrap(), Revision(3)).is_some());
    assert!(state.put(node("a", "2", 2), now).is_none(), "a deleted record must not come back");
    assert!(state.put(node("a", "4", 4), now).is_some());
}

#[test]
fn a_list_that_was_overtaken_changes_nothing() {
    let mut state = State::default();
    let now = SystemTime::now();
    state.put(node("kept", "new", 9), now);
    state.put(node("gone", "x", 3), now);
    state.delete(&TopoPath::parse("gone").unwrap(), Revision(8));
    let nodes = vec![node("kept", "old", 2), node("gone", "x", 3)];
    assert!(state.reconcile(Compared::Whole(Listing { nodes, at: Revision(5), ..Listing::default() }), now).is_empty());
    let updates =
        state.reconcile(Compared::Whole(Listing { nodes: vec![], at: Revision(10), ..Listing::default() }), now);
    assert_eq!(updates.len(), 1);
    assert!(state.snapshot.records.is_empty());
}

#[test]
fn a_restored_service_is_believed() {
    let mut state = State::default();
    let now = SystemTime::now();
    state.put(node("a", "newer", 9), now);
    state.put(node("gone", "x", 8), now);
    state.delete(&TopoPath::parse("back").unwrap(), Revision(7));
    state.begin_list();
    let nodes = vec![node("a", "restored", 2), node("back", "restored", 3)];
    let updates = state.restart(Listing { nodes, at: Revision(5), ..Listing::default() }, true, now).unwrap();
    assert_eq!(updates.len(), 3);
    let shown: Vec<_> =
        state.snapshot.records.iter().map(|(path, record)| (path.as_str(), &record.value[..])).collect();
    assert_eq!(shown, [("a", &b"restored"[..]), ("back", b"restored")]);
    assert!(state.put(node("a", "after", 6), now).is_some());
}

#[test]
fn an_own_save_during_a_list_stands() {
    let mut state = State::default();
    let now = SystemTime::now();
    state.begin_list();
    state.put(node("mine", "saved", 9), now);
    state.note_own(&TopoPath::parse("mine").unwrap());
    state
        .restart(Listing { nodes: vec![node("mine", "old", 2)], at: Revision(8), ..Listing::default() }, true, now)
        .unwrap();
    assert_eq!(state.snapshot.records[&TopoPath::parse("mine").unwrap()].value, "saved");
}

fn path(path: &str) -> TopoPath {
    TopoPath::parse(path).unwrap()
}

fn lock(path: &str, value: &str, written: u64, owner: u128) -> Node {
    Node { role: Role::Lock(Owner(owner)), ..node(path, value, written) }
}

fn list(at: u64, nodes: Vec<Node>) -> Listing {
    Listing { nodes, at: Revision(at), ..Listing::default() }
}

/// Path, old value, new value.
type Difference<'a> = (&'a str, Option<&'a [u8]>, Option<&'a [u8]>);

fn changes(updates: &[Update]) -> Vec<Difference<'_>> {
    fn value(record: Option<&Record>) -> Option<&[u8]> {
        record.map(|record| &record.value[..])
    }
    updates
        .iter()
        .map(|update| (update.path.as_str(), value(update.old.as_ref()), value(update.new.as_ref())))
        .collect()
}

fn values(state: &State) -> Vec<(&str, &[u8])> {
    let sum: usize = state.snapshot.records.iter().map(|(path, record)| size(path, record)).sum();
    assert_eq!(state.bytes(), sum, "all bytes are counted, and once");
    state.snapshot.records.iter().map(|(path, record)| (path.as_str(), &record.value[..])).collect()
}

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

#[test]
fn the_same_revision_is_not_newer() {
    let mut state = State::default();
    assert_eq!(changes(&Vec::from_iter(state.put(node("a", "1", 5), NOW))), [("a", None, Some(&b"1"[..]))]);
    assert!(state.put(node("a", "other", 5), NOW).is_none());
    assert!(state.put(lock("l", "1", 5, 1), NOW).is_none());
    assert!(state.put(lock("l", "other", 5, 1), NOW).is_none());
    assert_eq!(state.snapshot.locks[&path("l")].value, "1");
    assert!(state.delete(&path("d"), Revision(7)).is_none());
    assert!(state.put(node("d", "x", 7), NOW).is_none(), "deleted by then");
    assert!(state.put(node("d", "x", 8), NOW).is_some(), "made anew");
    // A deletion with the known revision counts: the service has not counted further.
    assert_eq!(changes(&Vec::from_iter(state.delete(&path("a"), Revision(5)))), [("a", Some(&b"1"[..]), None)]);
}

#[test]
fn a_new_record_ends_what_is_known_of_its_deletion() {
    let mut state = State::default();
    state.delete(&path("a"), Revision(3));
    state.put(node("a", "4", 4), NOW);
    assert!(state.deleted.is_empty());
}

#[test]
fn the_newest_revision_is_that_of_any_report() {
    let mut state = State::default();
    for (seen, expected) in [(5, 5), (3, 5), (9, 9)] {
        state.put(node(&format!("put{seen}"), "", seen), NOW);
        assert_eq!(state.snapshot.at, Revision(expected));
    }
    state.delete(&path("nothing"), Revision(12));
    assert_eq!(state.snapshot.at, Revision(12));
    state.delete(&path("nothing"), Revision(11));
    assert_eq!(state.snapshot.at, Revision(12));
    state.reconcile(Compared::Whole(list(11, vec![])), NOW);
    assert_eq!(state.snapshot.at, Revision(12));
    state.reconcile(Compared::Whole(list(14, vec![])), NOW);
    assert_eq!(state.snapshot.at, Revision(14));
    // Unless the service has been restored.
    state.begin_list();
    state.restart(list(2, vec![]), true, NOW).unwrap();
    assert_eq!(state.snapshot.at, Revision(2));
}

#[test]
fn a_record_and_a_lock_of_one_name_replace_each_other() {
    let mut state = State::default();
    state.put(node("a", "record", 1), NOW);
    assert!(!state.locks_changed);
    let update = Vec::from_iter(state.put(lock("a", "lock", 2, 1), NOW));
    assert_eq!(changes(&update), [("a", Some(&b"record"[..]), None)]);
    assert!(values(&state).is_empty() && std::mem::take(&mut state.locks_changed));
    let shown = &state.snapshot.locks[&path("a")];
    assert_eq!((&shown.value[..], shown.owner(), shown.modified.is_some()), (&b"lock"[..], Owner(1), true));
    let update = Vec::from_iter(state.put(node("a", "again", 3), NOW));
    assert_eq!(changes(&update), [("a", None, Some(&b"again"[..]))]);
    assert!(state.snapshot.locks.is_empty() && state.locks_changed);
}

#[test]
fn a_lock_goes_by_a_deletion_that_is_no_older() {
    let mut state = State::default();
    state.put(lock("a", "", 5, 1), NOW);
    state.locks_changed = false;
    assert!(state.delete(&path("a"), Revision(4)).is_none());
    assert!(state.snapshot.locks.contains_key(&path("a")) && !state.locks_changed);
    assert!(state.deleted.is_empty(), "what was overtaken is not remembered");
    assert!(state.delete(&path("a"), Revision(5)).is_none(), "no record has changed");
    assert!(state.snapshot.locks.is_empty() && state.locks_changed);
}

#[test]
fn only_so_many_deletions_are_remembered() {
    let mut state = State::default();
    let name = |number: usize| path(&format!("d{number}"));
    for number in 0..DELETIONS {
        state.delete(&name(number), Revision(9));
    }
    assert!(state.put(node("d0", "late", 8), NOW).is_none());
    state.delete(&path("one more"), Revision(9));
    assert_eq!(state.deleted.len(), 1);
    assert!(state.put(node("d0", "late", 8), NOW).is_some(), "until the next comparison");
    assert_eq!(changes(&state.reconcile(Compared::Whole(list(9, vec![])), NOW)), [("d0", Some(&b"late"[..]), None)]);
}

#[test]
fn deletions_are_forgotten_up_to_what_has_passed() {
    let mut state = State::default();
    for at in [4, 5, 6] {
        state.delete(&path(&at.to_string()), Revision(at));
    }
    state.forget_deletions(Revision(5));
    assert_eq!(state.deleted.keys().map(TopoPath::as_str).collect::<Vec<_>>(), ["6"]);
}

#[test]
fn a_comparison_takes_away_what_it_does_not_show_and_would_have_to() {
    let mut state = State::default();
    for written in [4, 5, 6] {
        state.put(node(&format!("r{written}"), "x", written), NOW);
        state.put(lock(&format!("l{written}"), "x", written, 1), NOW);
    }
    state.put(node("listed", "x", 1), NOW);
    state.locks_changed = false;
    let nodes = vec![node("listed", "x", 1), node("new", "y", 3), node("r6", "older", 2)];
    let updates = state.reconcile(Compared::Whole(list(5, nodes)), NOW);
    let x = Some(&b"x"[..]);
    assert_eq!(changes(&updates), [("r4", x, None), ("r5", x, None), ("new", None, Some(&b"y"[..]))]);
    assert_eq!(values(&state), [("listed", &b"x"[..]), ("new", b"y"), ("r6", b"x")]);
    assert_eq!(state.snapshot.locks.keys().map(TopoPath::as_str).collect::<Vec<_>>(), ["l6"]);
    assert!(state.locks_changed);
    assert!(state.put(node("r5", "late", 5), NOW).is_none(), "deleted as of the list");
}

#[test]
fn a_list_that_begins_a_watch_changes_only_what_is_different() {
    let mut state = State::default();
    for name in ["same", "version", "value", "role"] {
        state.put(node(name, "x", 5), NOW);
    }
    state.put(lock("lock", "x", 5, 1), NOW);
    state.put(lock("other owner", "x", 5, 1), NOW);
    state.put(lock("gone", "x", 5, 1), NOW);
    state.begin_list();
    state.locks_changed = false;
    let nodes = vec![node("same", "x", 5), lock("lock", "x", 5, 1), lock("other owner", "x", 5, 1)];
    let rest = vec![node("version", "x", 4), node("value", "y", 5), lock("role", "x", 5, 1), lock("gone", "x", 5, 1)];
    let updates = state.restart(list(5, nodes.clone().into_iter().chain(rest.clone()).collect()), true, NOW).unwrap();
    let (x, y) = (Some(&b"x"[..]), Some(&b"y"[..]));
    assert_eq!(changes(&updates), [("version", x, x), ("value", x, y), ("role", x, None)]);
    assert!(std::mem::take(&mut state.locks_changed), "there is one more");
    // Each difference of a lock is one.
    for (lock, is_different) in [
        (lock("lock", "x", 5, 1), false),
        (lock("lock", "y", 5, 1), true),
        (lock("lock", "y", 4, 1), true),
        (lock("lock", "y", 4, 2), true),
    ] {
        state.begin_list();
        let others = nodes.iter().chain(&rest).filter(|node| node.path != lock.path).cloned();
        assert!(state.restart(list(5, others.chain([lock.clone()]).collect()), true, NOW).unwrap().is_empty());
        assert_eq!(std::mem::take(&mut state.locks_changed), is_different, "{lock:?}");
    }
    // A lock that is not listed is gone.
    state.begin_list();
    let kept = nodes.into_iter().chain(rest).filter(|node| node.path != path("gone") && node.path != path("lock"));
    state.restart(list(5, kept.collect()), true, NOW).unwrap();
    assert!(state.locks_changed && !state.snapshot.locks.contains_key(&path("gone")));
}

#[test]
fn what_our_own_calls_report_beside_a_list_is_merged_by_its_revision() {
    let mut state = State::default();
    for name in ["kept", "newer", "changed", "vanished"] {
        state.put(node(name, "old", 4), NOW);
    }
    state.delete(&path("dead"), Revision(6));
    state.delete(&path("own dead"), Revision(6));
    state.begin_list();
    state.put(node("kept", "own", 9), NOW);
    state.put(node("newer", "own", 6), NOW);
    state.put(node("made", "own", 9), NOW);
    ["kept", "newer", "made", "own dead"].iter().for_each(|name| state.note_own(&path(name)));
    let nodes = vec![
        node("kept", "listed", 7),
        node("newer", "listed", 7),
        node("changed", "listed", 3),
        node("dead", "listed", 5),
        node("own dead", "listed", 5),
    ];
    let updates = state.restart(list(7, nodes), true, NOW).unwrap();
    let (old, own, listed) = (Some(&b"old"[..]), Some(&b"own"[..]), Some(&b"listed"[..]));
    let expected = [("vanished", old, None), ("newer", own, listed), ("changed", old, listed), ("dead", None, listed)];
    assert_eq!(changes(&updates), expected);
    let expected = [("changed", &b"listed"[..]), ("dead", b"listed"), ("kept", b"own"), ("made", b"own")];
    assert_eq!(values(&state), [&expected[..], &[("newer", b"listed")]].concat());
    // The next list does not count them any more.
    assert!(!state.counts_own());
    state.note_own(&path("kept"));
    state.begin_list();
    state.restart(list(7, vec![]), true, NOW).unwrap();
    assert!(values(&state).is_empty());
}

#[test]
fn a_list_counts_beside_so_many_own_reports_and_no_more() {
    let mut state = State::default();
    for (own, counts) in [(OWN, true), (OWN + 1, false)] {
        state.begin_list();
        // The same record again does not count twice.
        (0..own).for_each(|number| state.note_own(&path(&format!("d{number}"))));
        (0..9).for_each(|_| state.note_own(&path("d0")));
        assert_eq!(state.restart(list(1, vec![]), true, NOW).is_some(), counts, "{own}");
    }
}

#[test]
fn the_time_of_a_record_is_the_services_or_that_of_the_first_sight() {
    let mut state = State::default();
    let (early, late) = (NOW + Duration::from_secs(10), NOW + Duration::from_secs(20));
    let put = |state: &mut State, written, modified, now| {
        let node = Node { modified, ..node("a", "", written) };
        state.put(node, now).unwrap().new.unwrap().modified
    };
    assert_eq!(put(&mut state, 1, None, early), early);
    assert_eq!(put(&mut state, 2, Some(late), early), late);
    assert_eq!(put(&mut state, 3, Some(early), early), late + Duration::from_nanos(1), "a clock that goes wrong");
    assert_eq!(put(&mut state, 4, Some(late), early), late + Duration::from_nanos(2));
}

#[test]
fn an_update_makes_the_same_change_elsewhere() {
    let (mut state, mut copy) = (State::default(), Snapshot::default());
    let mut updates = Vec::from_iter(state.put(node("a", "1", 1), NOW));
    updates.extend(state.put(node("b", "1", 2), NOW));
    updates.iter().for_each(|update| update.apply(&mut copy));
    assert_eq!(copy.records, state.snapshot.records);
    state.delete(&path("a"), Revision(3)).unwrap().apply(&mut copy);
    assert_eq!(copy.records, state.snapshot.records);
    assert_eq!(copy.records.len(), 1);
}

#[test]
fn below_a_directory_are_neither_itself_nor_its_neighbours() {
    let mut state = State::default();
    for (number, name) in ["a", "a-b", "a/x", "a/x/y", "b"].iter().enumerate() {
        state.put(node(name, "", number as u64 + 1), NOW);
    }
    let below = |dir: &TopoPath| state.snapshot.below(dir).map(|(path, _)| path.to_string()).collect::<Vec<_>>();
    assert_eq!(below(&path("a")), ["a/x", "a/x/y"]);
    assert_eq!(below(&path("a/x")), ["a/x/y"]);
    assert!(below(&path("b")).is_empty() && below(&path("c")).is_empty());
    assert_eq!(below(&TopoPath::root()).len(), 5);
    let has_children = |name: &str| state.snapshot.has_children(&path(name));
    assert!(has_children("a") && has_children("a/x") && !has_children("b") && !has_children("a/x/y"));
    let entries = state.snapshot.entries(&path("a"));
    let found: Vec<_> = entries.iter().map(|e| (e.path.as_str(), &*e.name, e.is_record, e.is_directory)).collect();
    assert_eq!(found, [("a/x", "x", true, true)]);
    assert!(state.snapshot.entries(&path("b")).is_empty());
}

#[test]
fn every_version_has_a_later_time() {
    let mut state = State::default();
    let now = SystemTime::now();
    state.put(node("a", "1", 1), now);
    let update = state.put(node("a", "2", 2), now).unwrap();
    assert!(update.new.unwrap().modified > update.old.unwrap().modified);
}

#[test]
fn entries_seek_past_subtrees() {
    let mut state = State::default();
    for (i, path) in ["foo/Keyspace", "foo/shards/0/Shard", "foo-bar/Keyspace", "top", "top/below"].iter().enumerate() {
        state.put(node(path, "", i as u64 + 1), SystemTime::now());
    }
    let names: Vec<_> =
        state.snapshot.entries(&TopoPath::root()).into_iter().map(|e| (e.name, e.is_record, e.is_directory)).collect();
    assert_eq!(
        names,
        [("foo".to_owned(), false, true), ("foo-bar".to_owned(), false, true), ("top".to_owned(), true, true)]
    );
    let foo = TopoPath::parse("foo").unwrap();
    assert_eq!(state.snapshot.entries(&foo).len(), 2);
    let below = state.snapshot.entries(&path("top"));
    assert!(below.iter().all(|entry| entry.is_record && !entry.is_directory), "nothing is below it");
    assert_eq!(state.snapshot.below(&foo).count(), 2);
}

#[test]
fn a_late_answer_brings_nothing_back_that_a_list_has_shown_to_be_gone() {
    let (mut state, now) = (State::default(), SystemTime::now());
    let gone = TopoPath::parse("gone").unwrap();
    // After a list that begins a watch.
    state.begin_list();
    state.restart(Listing { nodes: vec![], at: Revision(3), ..Listing::default() }, true, now).unwrap();
    assert!(state.put_own(node("gone", "saved", 1), now).is_none());
    // After a comparison, which forgets the deletions that it has passed.
    state.put(node("gone", "again", 4), now);
    state.delete(&gone, Revision(6));
    state.reconcile(Compared::Whole(Listing { nodes: vec![], at: Revision(7), ..Listing::default() }), now);
    state.forget_deletions(Revision(7));
    assert!(state.put_own(node("gone", "saved", 5), now).is_none());
    assert!(state.put_own(node("gone", "new", 8), now).is_some());
    assert!(state.put_own(node("gone", "newer", 9), now).is_some());
    // While a list without it is under way.
    state.begin_list();
    assert!(state.put_own(node("brief", "saved", 10), now).is_some());
    state.note_own(&TopoPath::parse("brief").unwrap());
    let updates = state
        .restart(Listing { nodes: vec![node("gone", "newer", 9)], at: Revision(11), ..Listing::default() }, true, now)
        .unwrap();
    assert_eq!(updates.len(), 1, "what was saved and deleted before the list is gone");
    // A restored service begins again at a lower number, and is believed.
    state.begin_list();
    state.restart(Listing { nodes: vec![], at: Revision(2), ..Listing::default() }, true, now).unwrap();
    assert!(state.put_own(node("gone", "saved", 3), now).is_some());
}

#[test]
fn what_is_below_a_directory_is_neither_itself_nor_its_neighbours() {
    let mut state = State::default();
    // The last one is the first name after everything below foo.
    for name in ["foo", "foo/a", "foo/a/b", "foo-bar", "foo.x/c", "foo\u{1}"] {
        state.put(node(name, "x", 1), SystemTime::now());
    }
    let (snapshot, path) = (state.snapshot, |text: &str| TopoPath::parse(text).unwrap());
    let below = |dir: &TopoPath| snapshot.below(dir).map(|(path, _)| path.to_string()).collect::<Vec<_>>();
    assert_eq!(below(&path("foo")), ["foo/a", "foo/a/b"]);
    assert_eq!(below(&TopoPath::root()).len(), 6);
    for (dir, has_children) in [("foo", true), ("foo/a", true), ("foo.x", true), ("foo-bar", false), ("fo", false)] {
        assert_eq!(snapshot.has_children(&path(dir)), has_children, "{dir}");
    }
}

#[test]
fn an_own_answer_about_what_is_shown_is_merged_by_its_revision() {
    let mut state = State::default();
    state.begin_list();
    state.restart(list(9, vec![node("record", "2", 2), lock("lock", "2", 2, 1)]), true, NOW).unwrap();
    assert!(state.put_own(node("record", "1", 1), NOW).is_none());
    assert!(state.put_own(node("record", "3", 3), NOW).is_some());
    state.put_own(lock("lock", "3", 3, 1), NOW);
    assert_eq!(state.snapshot.locks[&path("lock")].value, "3");
}

#[test]
fn a_state_begins_with_what_is_shown_and_its_locks_are_published() {
    let mut known = State::default();
    known.put(node("a", "1", 1), NOW);
    let state = State::of(known.snapshot);
    assert_eq!(values(&state), [("a", &b"1"[..])]);
    assert!(state.locks_changed);
}

#[test]
fn an_own_report_as_old_as_the_list_is_in_it_or_gone() {
    let mut state = State::default();
    state.begin_list();
    for (name, written) in [("older", 4), ("same", 5), ("newer", 6)] {
        state.put_own(node(name, "x", written), NOW);
        state.note_own(&path(name));
    }
    state.restart(list(5, vec![]), true, NOW).unwrap();
    assert_eq!(values(&state), [("newer", &b"x"[..])]);
}

#[test]
fn differences_undo_nothing_that_is_newer() {
    let mut state = State::default();
    for (name, written) in [("changed", 2), ("gone", 3), ("anew", 4), ("kept", 1)] {
        state.put(node(name, "x", written), NOW);
    }
    // These come before the differences of an earlier point are merged.
    state.put(node("changed", "newer", 9), NOW);
    state.put(node("anew", "newer", 8), NOW);
    let changed = list(7, vec![node("changed", "older", 6), node("made", "y", 7)]);
    let updates = state.reconcile(Compared::Differences { changed, gone: vec![path("gone"), path("anew")] }, NOW);
    assert_eq!(changes(&updates), [("gone", Some(&b"x"[..]), None), ("made", None, Some(&b"y"[..]))]);
    assert_eq!(
        values(&state),
        [("anew", &b"newer"[..]), ("changed", b"newer"), ("kept", b"x"), ("made", b"y")],
        "what the differences do not name stays"
    );
}

#[test]
fn after_an_absence_differences_and_own_saves_both_count() {
    let mut state = State::default();
    state.put(node("a", "1", 1), NOW);
    state.put(node("gone", "1", 2), NOW);
    state.delete(&path("before"), Revision(3));
    state.begin_list();
    state.put_own(node("mine", "saved", 9), NOW);
    state.note_own(&path("mine"));
    let updates = state.resume(list(8, vec![node("a", "2", 6)]), vec![path("gone")], NOW);
    assert_eq!(changes(&updates), [("gone", Some(&b"1"[..]), None), ("a", Some(&b"1"[..]), Some(&b"2"[..]))]);
    assert_eq!(values(&state), [("a", &b"2"[..]), ("mine", b"saved")]);
    assert!(state.deleted.is_empty() && !state.counts_own());
    assert!(state.put_own(node("before", "late", 2), NOW).is_none(), "it was gone by then");
}
