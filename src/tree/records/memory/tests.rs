//! What is remembered of callers: of which, for how long, and how much.

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
    Instant::now().checked_sub(EXCEPTION_TIME).unwrap()
}

#[test]
fn what_a_thread_has_read_its_process_knows_and_no_other() {
    let (memory, (cell, path, _), neighbour) = (Memory::default(), names(), Neighbour::start());
    let reader = std::thread::spawn(this_thread).join().unwrap();
    // A thread that has ended cannot be seen.
    let living = this_thread();
    assert_ne!(reader.thread, living.thread);
    std::thread::scope(|scope| {
        let (memory, cell, path) = (&memory, &cell, &path);
        scope.spawn(move || memory.read(this_thread().process(), (cell, path), version(3), Reading::Apart));
    });
    assert_eq!(memory.last_known(&living, &cell, &path), Some(version(3)));
    assert_eq!(memory.last_known(&neighbour.caller(), &cell, &path), None);
    memory.forget_read(&living, &cell, &path);
    assert_eq!(memory.last_known(&living, &cell, &path), None);
}

#[test]
fn those_who_cannot_be_seen_share_nothing_even_among_themselves() {
    let (memory, (cell, path, file)) = (Memory::default(), names());
    memory.read(None, (&cell, &path), version(1), Reading::Apart);
    memory.stored(None, &cell, &path, version(1));
    memory.deleted(None, &cell, &path, &record_of("x"));
    memory.not_saved(None, &file);
    memory.note_exception(None, file.clone(), Exception::Tombstone(Instant::now()));
    assert_eq!(memory.last_known(&unseen(), &cell, &path), None);
    assert_eq!(memory.take_deleted(None, &cell, &path), None);
    assert!(!memory.take_unsaved(&unseen(), &file) && memory.exception(&unseen(), &file).is_none());
    assert!(!memory.is_disputed(&file), "nobody sees the name differently");
}

#[test]
fn a_version_is_ones_own_until_another_is_read() {
    let (memory, (cell, path, _), me) = (Memory::default(), names(), this_thread());
    let process = me.process().unwrap();
    let owns = |number| memory.has_stored(process, &cell, &path, version(number));
    memory.stored(me.process(), &cell, &path, version(1));
    assert!(owns(1) && !owns(2));
    assert_eq!(memory.last_read(&me, &cell, &path, Reading::ToWrite), None, "storing is not reading");
    memory.read(me.process(), (&cell, &path), version(1), Reading::ToWrite);
    assert!(owns(1), "one reads what one has stored");
    assert_eq!(memory.last_read(&me, &cell, &path, Reading::ToWrite), Some(version(1)));
    assert_eq!(memory.last_read(&me, &cell, &path, Reading::Apart), None);
    memory.read(me.process(), (&cell, &path), version(2), Reading::Apart);
    assert!(!owns(1) && !owns(2), "that is somebody else's");
    memory.stored(me.process(), &cell, &path, version(3));
    assert_eq!(memory.last_read(&me, &cell, &path, Reading::Apart), Some(version(3)), "how it was read stays");
}

#[test]
fn a_record_that_was_made_is_known_by_its_newest_version_until_it_is_deleted() {
    let (memory, (cell, path, _), me) = (Memory::default(), names(), this_thread());
    let process = me.process().unwrap();
    let made = || memory.made_by(&me, &cell, &path).map(|made| (made.version, made.replaces));
    memory.made(process, (&cell, &path), (Form::Text, version(1)), false);
    memory.stored(me.process(), &cell, &path, version(2));
    assert_eq!(made(), Some((version(2), false)));
    let earlier = Instant::now().checked_sub(EXCEPTION_TIME / 2).unwrap();
    let known = Made { when: earlier, ..memory.made_by(&me, &cell, &path).unwrap() };
    memory.made.insert(concern(process, &cell, &path), known);
    memory.made_again(&me, &cell, &path);
    assert_eq!(made(), Some((version(2), true)));
    assert!(memory.made_by(&me, &cell, &path).unwrap().when > earlier, "the time begins anew");
    memory.deleted(me.process(), &cell, &path, &record_of("x"));
    assert_eq!(made(), None);
    memory.made(process, (&cell, &path), (Form::Text, version(3)), true);
    assert_eq!(memory.take_deleted(me.process(), &cell, &path), None, "it is not put back any more");
    let old = Made { version: version(3), form: Form::Text, replaces: true, when: too_old() };
    memory.made.insert(concern(process, &cell, &path), old);
    memory.made_again(&me, &cell, &path);
    assert_eq!(made(), None, "what is too old does not become young again");
}

#[test]
fn what_was_deleted_is_given_back_once_and_only_for_a_while() {
    let (memory, (cell, path, _), me) = (Memory::default(), names(), this_thread());
    memory.deleted(me.process(), &cell, &path, &record_of("old"));
    assert_eq!(memory.take_deleted(Neighbour::start().caller().process(), &cell, &path), None);
    assert_eq!(memory.take_deleted(me.process(), &cell, &path).as_deref(), Some(&b"old"[..]));
    assert_eq!(memory.take_deleted(me.process(), &cell, &path), None);
    let deleted = Deleted { value: "old".into(), modified: SystemTime::UNIX_EPOCH, when: too_old() };
    memory.deleted.insert(concern(me.process().unwrap(), &cell, &path), deleted);
    assert_eq!(memory.take_deleted(me.process(), &cell, &path), None);
}

#[test]
fn a_backup_of_an_editor_remembers_the_version_that_it_took_away() {
    let (memory, (_, _, file), me) = (Memory::default(), names(), this_thread());
    memory.moved_away(&me, &file, version(4));
    assert!(matches!(memory.exception(&me, &file), Some(Exception::MovedAway(_, known)) if known == version(4)));
    assert!(memory.is_disputed(&file) && !memory.is_disputed(&FileId::Root), "no other name");
    memory.disputed.insert(file.clone(), too_old());
    assert!(!memory.is_disputed(&file));
}

#[test]
fn a_name_that_is_gone_answers_to_whoever_removed_the_record_for_a_while() {
    let (memory, (cell, path, file), me) = (Memory::default(), names(), this_thread());
    let neighbour = Neighbour::start();
    memory.deleted(me.process(), &cell, &path, &record_of("old"));
    assert!(memory.behind_tombstone(&me, &file).is_none(), "the name that was removed is gone");
    memory.note_exception(me.process(), file.clone(), Exception::Tombstone(Instant::now()));
    assert_eq!(memory.behind_tombstone(&me, &file).unwrap().value, "old");
    assert!(memory.has_tombstone(&me, &file) && memory.is_disputed(&file) && !memory.is_freed_for(&me, &file));
    assert!(
        !memory.has_tombstone(&neighbour.caller(), &file) && memory.exception(&neighbour.caller(), &file).is_none()
    );
    memory.end_exception(&neighbour.caller(), &file);
    assert!(memory.has_tombstone(&me, &file), "the exception is not the other's");
    memory.note_exception(me.process(), file.clone(), Exception::Tombstone(too_old()));
    assert!(!memory.has_tombstone(&me, &file) && memory.exception(&me, &file).is_none());
    for (exception, has_tombstone, is_freed) in [
        (Exception::Moved(Instant::now(), path.clone()), true, false),
        (Exception::Freed(Instant::now()), false, true),
        (Exception::MovedAway(Instant::now(), version(1)), false, false),
        (Exception::MovedByFiles(Instant::now()), false, false),
        (Exception::NotYetMade(Instant::now()), false, false),
    ] {
        memory.note_exception(me.process(), file.clone(), exception.clone());
        assert_eq!(
            (memory.has_tombstone(&me, &file), memory.is_freed_for(&me, &file)),
            (has_tombstone, is_freed),
            "{exception:?}"
        );
    }
    memory.end_exception(&me, &file);
    assert!(memory.exception(&me, &file).is_none());
}

#[test]
fn a_refused_save_is_told_once_unless_something_was_stored_since() {
    let (memory, (cell, path, file), me) = (Memory::default(), names(), this_thread());
    memory.not_saved(me.process(), &file);
    assert!(!memory.take_unsaved(&Neighbour::start().caller(), &file));
    assert!(memory.take_unsaved(&me, &file) && !memory.take_unsaved(&me, &file));
    memory.not_saved(me.process(), &file);
    memory.stored(me.process(), &cell, &path, version(1));
    assert!(!memory.take_unsaved(&me, &file), "storing any form makes it good");
    memory.unsaved.insert((me.process().unwrap(), file.clone()), too_old());
    assert!(!memory.take_unsaved(&me, &file));
}

#[test]
fn a_refusal_is_repeated_once_to_the_same_thread_and_user() {
    let (memory, (_, _, file)) = (Memory::default(), names());
    let stale = |reason: &str| Error::new(crate::error::Kind::Conflict, reason.to_owned());
    memory.refused(&Caller::new(1, 1, 7), &file, &stale("first"));
    memory.refused(&Caller::new(1, 1, 7), &file, &stale("second"));
    for other in [Caller::new(2, 1, 7), Caller::new(1, 1, 8)] {
        assert!(memory.repeated(&other, &file).is_none());
    }
    assert!(memory.repeated(&Caller::new(1, 1, 7), &FileId::Root).is_none());
    assert_eq!(memory.repeated(&Caller::new(1, 1, 7), &file).unwrap().to_string(), stale("second").to_string());
    assert!(memory.repeated(&Caller::new(1, 1, 7), &file).is_none());
    memory.refused(&Caller::new(1, 1, 7), &file, &stale("old"));
    memory.refusals.lock()[0].when = Instant::now().checked_sub(REPEAT_TIME).unwrap();
    assert!(memory.repeated(&Caller::new(1, 1, 7), &file).is_none(), "the kernel repeats at once");
}

#[test]
fn the_oldest_refusal_gives_way_to_a_new_one() {
    let (memory, (_, _, file)) = (Memory::default(), names());
    let caller = |thread: usize| Caller::new(0, 0, thread.try_into().unwrap());
    let refuse = |thread| memory.refused(&caller(thread), &file, &Error::not_found());
    (0..REPEATS).for_each(refuse);
    // An answer makes room for one. Those that are left keep their order.
    assert!(memory.repeated(&caller(0), &file).is_some());
    refuse(REPEATS);
    refuse(REPEATS + 1);
    assert!(memory.repeated(&caller(1), &file).is_none(), "the oldest");
    assert!((2..REPEATS + 2).all(|thread| memory.repeated(&caller(thread), &file).is_some()));
}

#[test]
fn what_is_remembered_of_callers_is_bounded() {
    let (memory, (cell, path, file), me) = (Memory::default(), names(), this_thread());
    let process = me.process().unwrap();
    for number in 0..2 * READS {
        let path = path.join(&number.to_string()).unwrap();
        memory.read(me.process(), (&cell, &path), version(1), Reading::Apart);
        if number < 2 * EXCEPTIONS {
            let file = FileId::Dir(CellPath { cell: cell.clone(), path: path.clone() });
            memory.note_exception(me.process(), file.clone(), Exception::Tombstone(Instant::now()));
            memory.not_saved(me.process(), &file);
            memory.deleted(me.process(), &cell, &path, &record_of("x"));
            let other = path.join("made").unwrap();
            memory.made(process, (&cell, &other), (Form::Raw, version(1)), false);
        }
        if number < 2 * REPEATS {
            let caller = Caller::new(0, 0, number.try_into().unwrap());
            memory.refused(&caller, &file, &Error::not_found());
        }
    }
    let Memory { known, exceptions, disputed, made, deleted, unsaved, refusals } = &memory;
    let sizes = [known.len(), exceptions.len(), disputed.len(), unsaved.len(), made.len(), deleted.len()];
    assert_eq!(sizes, [READS, EXCEPTIONS, EXCEPTIONS, EXCEPTIONS, EXCEPTIONS, DELETED]);
    assert!(refusals.lock().len() == REPEATS && memory.repeated(&Caller::new(0, 0, 0), &file).is_none());
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
