//! What is remembered of callers, of whom, how long and how much.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::backend::Revision;

/// A process beside this one, until dropped: `cat` ends with its input.
struct Neighbour(Child);

impl Neighbour {
    fn start() -> Self {
        Self(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap())
    }

    fn caller(&self) -> Caller {
        Caller::new(0, 0, self.0.id())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn this_thread() -> Caller {
    Caller::new(0, 0, nix::unistd::gettid().as_raw().try_into().unwrap())
}

fn unseen() -> Caller {
    Caller::new(0, 0, 0)
}

fn version(number: u64) -> Version {
    Version { number, written: Revision(number), created: Revision(1) }
}

fn record_of(value: &'static str) -> Record {
    Record { value: value.into(), version: version(1), modified: SystemTime::UNIX_EPOCH }
}

fn names() -> (CellName, TopoPath, FileId) {
    let (cell, path) = (CellName::global(), TopoPath::parse("keyspaces/ks/Keyspace").unwrap());
    (cell.clone(), path.clone(), FileId::Record(CellPath { cell, path }, Form::Text))
}

fn too_old() -> Instant {
    Instant::now().checked_sub(REMOVAL_TIME).unwrap()
}

#[test]
fn what_a_thread_has_read_its_process_knows_and_no_other() {
    let (recent, (cell, path, _), neighbour) = (Memory::default(), names(), Neighbour::start());
    let reader = std::thread::spawn(this_thread).join().unwrap();
    // A thread that has ended cannot be seen.
    let living = this_thread();
    assert_ne!(reader.thread, living.thread);
    std::thread::scope(|scope| {
        let (recent, cell, path) = (&recent, &cell, &path);
        scope.spawn(move || recent.read(this_thread().process(), (cell, path), version(3), Reading::Apart));
    });
    assert_eq!(recent.last_known(&living, &cell, &path), Some(version(3)));
    assert_eq!(recent.last_known(&neighbour.caller(), &cell, &path), None);
    recent.forget_read(&living, &cell, &path);
    assert_eq!(recent.last_known(&living, &cell, &path), None);
}

#[test]
fn those_who_cannot_be_seen_share_nothing_even_among_themselves() {
    let (recent, (cell, path, node)) = (Memory::default(), names());
    recent.read(None, (&cell, &path), version(1), Reading::Apart);
    recent.stored(None, &cell, &path, version(1));
    recent.deleted(None, &cell, &path, &record_of("x"));
    recent.not_saved(None, &node);
    recent.removed(None, node.clone(), Removal::Ghost(Instant::now()));
    assert_eq!(recent.last_known(&unseen(), &cell, &path), None);
    assert_eq!(recent.take_deleted(None, &cell, &path), None);
    assert!(!recent.take_unsaved(&unseen(), &node) && recent.removal(&unseen(), &node).is_none());
    assert!(!recent.is_disputed(&node), "nobody sees the name otherwise than the rest");
}

#[test]
fn a_version_is_ones_own_until_another_is_read() {
    let (recent, (cell, path, _), me) = (Memory::default(), names(), this_thread());
    let process = me.process().unwrap();
    let owns = |number| recent.has_stored(process, &cell, &path, version(number));
    recent.stored(me.process(), &cell, &path, version(1));
    assert!(owns(1) && !owns(2));
    assert_eq!(recent.last_read(&me, &cell, &path, Reading::ToWrite), None, "storing is not reading");
    recent.read(me.process(), (&cell, &path), version(1), Reading::ToWrite);
    assert!(owns(1), "one reads what one has stored");
    assert_eq!(recent.last_read(&me, &cell, &path, Reading::ToWrite), Some(version(1)));
    assert_eq!(recent.last_read(&me, &cell, &path, Reading::Apart), None);
    recent.read(me.process(), (&cell, &path), version(2), Reading::Apart);
    assert!(!owns(1) && !owns(2), "that is somebody else's");
    recent.stored(me.process(), &cell, &path, version(3));
    assert_eq!(recent.last_read(&me, &cell, &path, Reading::Apart), Some(version(3)), "how it was read stays");
}

#[test]
fn a_record_that_was_made_is_known_by_its_newest_version_until_it_is_deleted() {
    let (recent, (cell, path, _), me) = (Memory::default(), names(), this_thread());
    let process = me.process().unwrap();
    let made = || recent.made_by(&me, &cell, &path).map(|made| (made.version, made.replaces));
    recent.made(process, (&cell, &path), (Form::Text, version(1)), false);
    recent.stored(me.process(), &cell, &path, version(2));
    assert_eq!(made(), Some((version(2), false)));
    let earlier = Instant::now().checked_sub(REMOVAL_TIME / 2).unwrap();
    let known = Made { when: earlier, ..recent.made_by(&me, &cell, &path).unwrap() };
    recent.made.insert(concern(process, &cell, &path), known);
    recent.made_again(&me, &cell, &path);
    assert_eq!(made(), Some((version(2), true)));
    assert!(recent.made_by(&me, &cell, &path).unwrap().when > earlier, "the time begins anew");
    recent.deleted(me.process(), &cell, &path, &record_of("x"));
    assert_eq!(made(), None);
    recent.made(process, (&cell, &path), (Form::Text, version(3)), true);
    assert_eq!(recent.take_deleted(me.process(), &cell, &path), None, "it is not put back any more");
    let old = Made { version: version(3), form: Form::Text, replaces: true, when: too_old() };
    recent.made.insert(concern(process, &cell, &path), old);
    recent.made_again(&me, &cell, &path);
    assert_eq!(made(), None, "what is too old does not become young again");
}

#[test]
fn what_was_deleted_is_given_back_once_and_only_for_a_while() {
    let (recent, (cell, path, _), me) = (Memory::default(), names(), this_thread());
    recent.deleted(me.process(), &cell, &path, &record_of("old"));
    assert_eq!(recent.take_deleted(Neighbour::start().caller().process(), &cell, &path), None);
    assert_eq!(recent.take_deleted(me.process(), &cell, &path).as_deref(), Some(&b"old"[..]));
    assert_eq!(recent.take_deleted(me.process(), &cell, &path), None);
    let deleted = Deleted { value: "old".into(), modified: SystemTime::UNIX_EPOCH, when: too_old() };
    recent.deleted.insert(concern(me.process().unwrap(), &cell, &path), deleted);
    assert_eq!(recent.take_deleted(me.process(), &cell, &path), None);
}

#[test]
fn a_backup_of_an_editor_remembers_the_version_that_it_took_away() {
    let (recent, (_, _, node), me) = (Memory::default(), names(), this_thread());
    recent.moved_away(&me, &node, version(4));
    assert!(matches!(recent.removal(&me, &node), Some(Removal::MovedAway(_, known)) if known == version(4)));
    assert!(recent.is_disputed(&node) && !recent.is_disputed(&FileId::Root), "no other name");
    recent.disputed.insert(node.clone(), too_old());
    assert!(!recent.is_disputed(&node));
}

#[test]
fn a_name_that_is_gone_answers_to_whoever_removed_the_record_for_a_while() {
    let (recent, (cell, path, node), me) = (Memory::default(), names(), this_thread());
    let neighbour = Neighbour::start();
    recent.deleted(me.process(), &cell, &path, &record_of("old"));
    assert!(recent.ghost_of(&me, &node).is_none(), "the name that was removed is gone");
    recent.removed(me.process(), node.clone(), Removal::Ghost(Instant::now()));
    assert_eq!(recent.ghost_of(&me, &node).unwrap().value, "old");
    assert!(recent.is_ghost(&me, &node) && recent.is_disputed(&node) && !recent.is_freed_for(&me, &node));
    assert!(!recent.is_ghost(&neighbour.caller(), &node) && recent.removal(&neighbour.caller(), &node).is_none());
    recent.settle(&neighbour.caller(), &node);
    assert!(recent.is_ghost(&me, &node), "the other has nothing to settle");
    recent.removed(me.process(), node.clone(), Removal::Ghost(too_old()));
    assert!(!recent.is_ghost(&me, &node) && recent.removal(&me, &node).is_none());
    for (removal, is_ghost, is_freed) in [
        (Removal::Moved(Instant::now(), path.clone()), true, false),
        (Removal::Freed(Instant::now()), false, true),
        (Removal::MovedAway(Instant::now(), version(1)), false, false),
        (Removal::MovedByFiles(Instant::now()), false, false),
        (Removal::Appeared(Instant::now()), false, false),
    ] {
        recent.removed(me.process(), node.clone(), removal.clone());
        assert_eq!((recent.is_ghost(&me, &node), recent.is_freed_for(&me, &node)), (is_ghost, is_freed), "{removal:?}");
    }
    recent.settle(&me, &node);
    assert!(recent.removal(&me, &node).is_none());
}

#[test]
fn a_refused_save_is_told_once_unless_something_was_stored_since() {
    let (recent, (cell, path, node), me) = (Memory::default(), names(), this_thread());
    recent.not_saved(me.process(), &node);
    assert!(!recent.take_unsaved(&Neighbour::start().caller(), &node));
    assert!(recent.take_unsaved(&me, &node) && !recent.take_unsaved(&me, &node));
    recent.not_saved(me.process(), &node);
    recent.stored(me.process(), &cell, &path, version(1));
    assert!(!recent.take_unsaved(&me, &node), "storing any form makes it good");
    recent.unsaved.insert((me.process().unwrap(), node.clone()), too_old());
    assert!(!recent.take_unsaved(&me, &node));
}

#[test]
fn a_refusal_is_repeated_once_to_the_same_thread_and_user() {
    let (recent, (_, _, node)) = (Memory::default(), names());
    let stale = |reason: &str| Error::new(crate::error::Kind::Conflict, reason.to_owned());
    recent.refused(&Caller::new(1, 1, 7), &node, &stale("first"));
    recent.refused(&Caller::new(1, 1, 7), &node, &stale("second"));
    for other in [Caller::new(2, 1, 7), Caller::new(1, 1, 8)] {
        assert!(recent.repeated(&other, &node).is_none());
    }
    assert!(recent.repeated(&Caller::new(1, 1, 7), &FileId::Root).is_none());
    assert_eq!(recent.repeated(&Caller::new(1, 1, 7), &node).unwrap().to_string(), stale("second").to_string());
    assert!(recent.repeated(&Caller::new(1, 1, 7), &node).is_none());
    recent.refused(&Caller::new(1, 1, 7), &node, &stale("old"));
    recent.refusals.lock()[0].when = Instant::now().checked_sub(REPEAT_TIME).unwrap();
    assert!(recent.repeated(&Caller::new(1, 1, 7), &node).is_none(), "the kernel repeats at once");
}

#[test]
fn the_oldest_refusal_gives_way_to_a_new_one() {
    let (recent, (_, _, node)) = (Memory::default(), names());
    let caller = |thread: usize| Caller::new(0, 0, thread.try_into().unwrap());
    let refuse = |thread| recent.refused(&caller(thread), &node, &Error::not_found());
    (0..REPEATS).for_each(refuse);
    // An answer makes room for one. Those that are left keep their order.
    assert!(recent.repeated(&caller(0), &node).is_some());
    refuse(REPEATS);
    refuse(REPEATS + 1);
    assert!(recent.repeated(&caller(1), &node).is_none(), "the oldest");
    assert!((2..REPEATS + 2).all(|thread| recent.repeated(&caller(thread), &node).is_some()));
}

#[test]
fn what_is_remembered_of_callers_is_bounded() {
    let (recent, (cell, path, node), me) = (Memory::default(), names(), this_thread());
    let process = me.process().unwrap();
    for number in 0..2 * READS {
        let path = path.join(&number.to_string()).unwrap();
        recent.read(me.process(), (&cell, &path), version(1), Reading::Apart);
        if number < 2 * REMOVALS {
            let node = FileId::Dir(CellPath { cell: cell.clone(), path: path.clone() });
            recent.removed(me.process(), node.clone(), Removal::Ghost(Instant::now()));
            recent.not_saved(me.process(), &node);
            recent.deleted(me.process(), &cell, &path, &record_of("x"));
            let other = path.join("made").unwrap();
            recent.made(process, (&cell, &other), (Form::Raw, version(1)), false);
        }
        if number < 2 * REPEATS {
            let caller = Caller::new(0, 0, number.try_into().unwrap());
            recent.refused(&caller, &node, &Error::not_found());
        }
    }
    let Memory { known, removals, disputed, made, deleted, unsaved, refusals } = &recent;
    let sizes = [known.len(), removals.len(), disputed.len(), unsaved.len(), made.len(), deleted.len()];
    assert_eq!(sizes, [READS, REMOVALS, REMOVALS, REMOVALS, REMOVALS, DELETED]);
    assert!(refusals.lock().len() == REPEATS && recent.repeated(&Caller::new(0, 0, 0), &node).is_none());
}

#[test]
fn a_caller_may_what_its_bits_say_and_what_all_groups_say_if_it_may_be_in_any() {
    const READ: u32 = 4;
    const WRITE: u32 = 2;
    let (root, owner, member, stranger) =
        (Caller::new(0, 0, 0), Caller::new(1, 1, 0), Caller::new(2, 1, 0), Caller::new(2, 2, 0));
    assert!(root.may(READ | WRITE, (1, 1, 0)));
    assert!(owner.may(READ | WRITE, (1, 1, 0o600)) && !owner.may(WRITE, (1, 1, 0o466)));
    assert!(member.may(READ, (1, 1, 0o040)) && !member.may(WRITE, (1, 1, 0o646)));
    assert!(stranger.may(READ, (1, 1, 0o044)));
    assert!(!stranger.may(READ, (1, 1, 0o004)) && !stranger.may(READ, (1, 1, 0o040)));
}
