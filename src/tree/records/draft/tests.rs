//! Drafts, against what a program expects of a file that it writes to.

use proptest::prelude::*;

use super::*;
use crate::backend::Revision;
use crate::tree::records::exclusive::{ExclusiveMakers, Taken};
use crate::tree::room::Room;

const LIMIT: usize = 100;

fn start(content: &[u8], room: &Room) -> Start {
    Start {
        content: content.to_vec(),
        base: None,
        dirty: false,
        append: false,
        exclusive: None,
        value_limit: LIMIT,
        room: room.charge(1),
    }
}

fn open(form: Form, start: Start) -> Result<Draft> {
    Draft::new((CellName::global(), TopoPath::parse("x").unwrap(), form), (None, 1), start)
}

/// A draft of a raw record, for tests of other rooms, too.
pub(in crate::tree) fn draft(content: &[u8], dirty: bool) -> Draft {
    open(Form::Raw, Start { dirty, ..start(content, &Room::default()) }).unwrap()
}

fn base(number: u64) -> Base {
    let version = Version { number, written: Revision(number), created: Revision(1) };
    Base { version, value: Bytes::new() }
}

fn error(kind: Kind) -> Error {
    Error::new(kind, "for a test")
}

fn kind<T>(result: Result<T>) -> Option<Kind> {
    result.err().map(|error| error.kind)
}

#[derive(Debug, Clone)]
enum Step {
    Write { offset: usize, data: Vec<u8>, refused: bool },
    Truncate(usize),
    Begin(Occasion),
    Finish { refused: bool },
    Abandon,
}

fn step() -> impl Strategy<Value = Step> {
    let occasion = prop_oneof![Just(Occasion::Flush), Just(Occasion::Sync), Just(Occasion::Release)];
    let data = prop::collection::vec(any::<u8>(), 0..60);
    prop_oneof![
        6 => (0..60usize, data, prop::bool::weighted(0.2))
            .prop_map(|(offset, data, refused)| Step::Write { offset, data, refused }),
        2 => (0..=LIMIT + 10).prop_map(Step::Truncate),
        4 => occasion.prop_map(Step::Begin),
        4 => prop::bool::weighted(0.3).prop_map(|refused| Step::Finish { refused }),
        1 => Just(Step::Abandon),
    ]
}

/// What a program expects of a file that it writes to.
#[derive(Debug, Default)]
struct Plain {
    content: Vec<u8>,
    /// Written, and not stored since.
    wrote: bool,
    /// Written or truncated, and not stored since.
    dirty: bool,
    /// The errors that it got for a write, and for a save.
    write_failed: Option<Kind>,
    save_failed: Option<Kind>,
    abandoned: bool,
    /// A hole, or overwritten bytes: nothing is checked early.
    patched: bool,
    stored: Option<u64>,
    /// A save in flight, and whether the content is still what it saves.
    job: Option<bool>,
}

impl Plain {
    fn edited(&mut self) {
        (self.dirty, self.save_failed) = (true, None);
        self.job = self.job.map(|_| false);
    }

    fn write(&mut self, offset: usize, data: &[u8], refused: bool) -> Option<Kind> {
        if self.write_failed.is_some() {
            return self.write_failed;
        }
        let end = offset + data.len();
        if end > LIMIT {
            self.write_failed = Some(Kind::TooLarge);
            return self.write_failed;
        }
        self.patched |= offset != self.content.len();
        self.content.resize(end.max(self.content.len()), 0);
        self.content[offset..end].copy_from_slice(data);
        self.wrote = true;
        self.edited();
        self.write_failed = (refused && !self.patched).then_some(Kind::BadMessage);
        self.write_failed
    }

    fn begin(&self, occasion: Occasion) -> std::result::Result<bool, Kind> {
        let error = self.write_failed.or(self.save_failed);
        let unsaved = if occasion == Occasion::Flush { self.wrote } else { self.dirty };
        match error {
            _ if self.abandoned || !unsaved => Ok(false),
            // Nobody gets the answer to a release, so nothing is tried again.
            Some(_) if occasion == Occasion::Release => Ok(false),
            Some(kind) => Err(kind),
            None => Ok(true),
        }
    }
}

proptest! {
    #[test]
    fn what_was_written_is_stored_or_refused_and_what_was_told_stays_true(
        dirty in any::<bool>(),
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let draft = draft(b"", dirty);
        let mut plain = Plain { dirty, ..Plain::default() };
        let mut job = None;
        for (number, step) in (1u64..).zip(steps) {
            match step {
                Step::Write { offset, data, refused } => {
                    let check = |_: &[u8]| if refused { Err(error(Kind::BadMessage)) } else { Ok(()) };
                    prop_assert_eq!(kind(draft.write(offset, &data, check)), plain.write(offset, &data, refused));
                }
                Step::Truncate(size) => {
                    let refused = kind(draft.truncate(size));
                    prop_assert_eq!(refused, (size > LIMIT).then_some(Kind::TooLarge));
                    if refused.is_none() {
                        plain.content.resize(size, 0);
                        plain.write_failed = None;
                        plain.patched &= size > 0;
                        plain.edited();
                    }
                }
                // One save at a time: the draft's turn guarantees that.
                Step::Begin(occasion) if plain.job.is_none() => {
                    let begun = draft.begin(occasion);
                    let expected = plain.begin(occasion);
                    prop_assert_eq!(begun.as_ref().map(Option::is_some).map_err(|error| error.kind), expected);
                    job = begun.ok().flatten();
                    plain.job = job.is_some().then_some(true);
                    if let Some(job) = &job {
                        prop_assert_eq!(&job.content[..], &plain.content[..]);
                        prop_assert_eq!(job.base.as_ref().map(|base| base.version.number), plain.stored);
                    }
                }
                Step::Finish { refused } => if let Some(job) = job.take() {
                    let current = plain.job.take() == Some(true);
                    draft.finish(&job, &if refused { Err(error(Kind::Conflict)) } else { Ok(base(number)) });
                    match refused {
                        true if current => plain.save_failed = Some(Kind::Conflict),
                        true => {}
                        false => {
                            (plain.stored, plain.save_failed) = (Some(number), None);
                            plain.wrote &= !current;
                            plain.dirty &= !current;
                        }
                    }
                },
                Step::Abandon => {
                    draft.abandon();
                    plain.abandoned = true;
                }
                Step::Begin(_) => {}
            }
            prop_assert_eq!(draft.content(), plain.content.clone());
            prop_assert_eq!(draft.wrote(), plain.wrote);
            prop_assert_eq!(draft.is_refused(), plain.write_failed.or(plain.save_failed).is_some());
            prop_assert_eq!(draft.is_abandoned(), plain.abandoned);
            prop_assert_eq!(draft.has_made_nothing(), plain.stored.is_none());
            prop_assert_eq!(draft.version().map(|version| version.number), plain.stored);
            let unchanged = plain.stored.filter(|_| !plain.dirty);
            prop_assert_eq!(draft.unchanged().map(|version| version.number), unchanged);
        }
    }
}

#[test]
fn a_file_takes_what_the_service_takes_and_text_takes_more() {
    let unchecked = |_: &[u8]| Ok(());
    let raw = draft(b"", false);
    raw.write(LIMIT - 1, b"x", unchecked).unwrap();
    assert_eq!(kind(raw.truncate(LIMIT + 1)), Some(Kind::TooLarge));
    raw.write(0, b"x", unchecked).unwrap();
    assert_eq!(kind(raw.write(LIMIT, b"x", unchecked)), Some(Kind::TooLarge));
    assert_eq!(kind(raw.write(usize::MAX, b"x", unchecked)), Some(Kind::TooLarge));
    let text = open(Form::Text, start(b"", &Room::default())).unwrap();
    text.truncate(LIMIT + 1).unwrap();
    assert_eq!(kind(text.truncate(CONTENT_LIMIT + 1)), Some(Kind::TooLarge));
}

#[test]
fn an_appending_draft_takes_no_offsets() {
    let draft = open(Form::Raw, Start { append: true, ..start(b"a", &Room::default()) }).unwrap();
    draft.write(0, b"b", |_| Ok(())).unwrap();
    draft.write(90, b"c", |_| Ok(())).unwrap();
    assert_eq!((draft.content(), draft.len()), (Bytes::from("abc"), 3));
    let read = |offset, size| draft.read(offset, size);
    assert_eq!(
        (read(1, 1), read(1, usize::MAX), read(3, 1), read(4, 1)),
        ("b".into(), "bc".into(), "".into(), "".into())
    );
}

#[test]
fn a_large_content_is_looked_at_only_when_it_has_doubled() {
    let draft = open(Form::Text, start(b"", &Room::default())).unwrap();
    let looks = |offset: usize, size: usize| {
        let mut looked = false;
        draft
            .write(offset, &vec![b'x'; size], |content| {
                looked = content.len() == offset + size;
                Ok(())
            })
            .unwrap();
        looked
    };
    assert!(looks(0, 1) && looks(1, CHECK_ALWAYS - 1) && looks(CHECK_ALWAYS, 1));
    let large = CHECK_ALWAYS + 1;
    assert!(!looks(large, large - 1) && looks(2 * large - 1, 1));
    assert!(!looks(0, 1) && !looks(2 * large, 4 * large), "a patched content is not the beginning of anything");
    draft.truncate(0).unwrap();
    assert!(looks(0, 1));
}

#[test]
fn what_there_is_no_room_for_is_refused_and_room_is_given_back() {
    let room = Room::default();
    let mut others = room.charge(1);
    others.resize(crate::tree::room::PER_USER - 10).unwrap();
    assert_eq!(kind(open(Form::Raw, start(b"hello, world", &room))), Some(Kind::NoSpace));
    let draft = open(Form::Raw, start(b"hello", &room)).unwrap();
    draft.truncate(10).unwrap();
    assert_eq!(kind(draft.truncate(11)), Some(Kind::NoSpace));
    draft.write(5, b"world", |_| Ok(())).unwrap();
    assert_eq!(kind(draft.write(10, b"!", |_| Ok(()))), Some(Kind::NoSpace));
    assert_eq!(draft.content(), "helloworld");
    draft.truncate(2).unwrap();
    let mut more = room.charge(1);
    more.resize(8).unwrap();
    assert_eq!(kind(more.resize(9)), Some(Kind::NoSpace));
    drop(draft);
    more.resize(10).unwrap();
}

#[test]
fn a_record_that_is_there_again_is_replaced_by_the_next_save() {
    let draft = draft(b"x", true);
    draft.rebase(base(7));
    let job = draft.begin(Occasion::Release).unwrap().unwrap();
    assert_eq!(job.base.unwrap().version, base(7).version);
    draft.refuse(error(Kind::Conflict));
    assert_eq!(kind(draft.begin(Occasion::Sync)), Some(Kind::Conflict));
}

#[test]
fn a_write_that_panics_leaves_nothing_that_would_be_stored() {
    let draft = draft(b"", false);
    draft.write(0, b"whole", |_| Ok(())).unwrap();
    let write = || draft.write(5, b" half", |_| panic!("the parser was wrong"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(write)).is_err());
    let refused = draft.write(10, b" more", |_| Ok(())).unwrap_err();
    assert_eq!(refused.kind, Kind::Io);
    for occasion in [Occasion::Flush, Occasion::Sync] {
        assert!(draft.begin(occasion).is_err(), "{occasion:?}");
    }
    assert!(draft.begin(Occasion::Release).unwrap().is_none());
    // Who begins anew is heard.
    draft.truncate(0).unwrap();
    draft.write(0, b"new", |_| Ok(())).unwrap();
    assert!(draft.begin(Occasion::Flush).unwrap().is_some());
}

#[test]
fn a_draft_is_exclusive_while_it_has_the_right_to_make_its_record() {
    assert!(!draft(b"", true).is_exclusive());
    let (makers, place) =
        (ExclusiveMakers::default(), CellPath { cell: CellName::global(), path: TopoPath::parse("x").unwrap() });
    let Taken::Now(right) = makers.take(place.clone(), None, Form::Raw) else { panic!("nobody else makes it") };
    let exclusive = open(Form::Raw, Start { exclusive: Some(right), ..start(b"", &Room::default()) }).unwrap();
    assert!(exclusive.is_exclusive());
    assert!(matches!(makers.take(place.clone(), None, Form::Raw), Taken::ByAnother));
    drop(exclusive);
    assert!(matches!(makers.take(place, None, Form::Raw), Taken::Now(_)));
}
