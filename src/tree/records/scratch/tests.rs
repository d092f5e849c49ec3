//! Scratch space against a plain list of what is there: what is charged is always the sum of what is kept.

use proptest::prelude::*;

use super::*;
use crate::tree::records::draft::tests::draft;

/// Small, so that the bounds are reached all the time.
const QUOTA: u64 = 5_000;
/// What one user may use of it: the quota has eight parts.
const SHARE: u64 = QUOTA / 8 * 7;
/// `-` comes before `/`: in the order of strings, the names below `a` do not come right after `a`.
const PATHS: [&str; 8] = ["a", "a-b", "a/x", "a/x/z", "a/y", "b", "b/x", "c"];

#[derive(Debug, Clone)]
enum Step {
    Open { path: usize, uid: u32, exclusive: bool },
    Replace { path: usize, uid: u32 },
    Edit { file: usize, length: usize },
    Opened { file: usize },
    Closed { file: usize },
    Unlink { path: usize },
    Rename { from: usize, to: usize },
    MakeDir { path: usize, uid: u32 },
    RemoveDir { path: usize },
    Linger { path: usize },
    EndLinger { path: usize },
    MadeReal { path: usize },
    RenameDir { from: usize, to: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let path = 0..PATHS.len();
    let (paths, file, uid) = ((path.clone(), path.clone()), 0..20usize, 1..3u32);
    prop_oneof![
        3 => (path.clone(), uid.clone(), any::<bool>())
            .prop_map(|(path, uid, exclusive)| Step::Open { path, uid, exclusive }),
        1 => (path.clone(), uid.clone()).prop_map(|(path, uid)| Step::Replace { path, uid }),
        4 => (file.clone(), 0..2_000usize).prop_map(|(file, length)| Step::Edit { file, length }),
        2 => file.clone().prop_map(|file| Step::Opened { file }),
        2 => file.prop_map(|file| Step::Closed { file }),
        2 => path.clone().prop_map(|path| Step::Unlink { path }),
        2 => paths.clone().prop_map(|(from, to)| Step::Rename { from, to }),
        2 => (path.clone(), uid).prop_map(|(path, uid)| Step::MakeDir { path, uid }),
        1 => path.clone().prop_map(|path| Step::RemoveDir { path }),
        1 => path.clone().prop_map(|path| Step::Linger { path }),
        1 => path.clone().prop_map(|path| Step::EndLinger { path }),
        1 => path.prop_map(|path| Step::MadeReal { path }),
        2 => paths.prop_map(|(from, to)| Step::RenameDir { from, to }),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Thing {
    Dir(u32),
    Lingers,
    File(usize),
}

/// The reference.
#[derive(Debug, Default)]
struct Plain {
    places: BTreeMap<String, Thing>,
    files: Vec<PlainFile>,
}

#[derive(Debug)]
struct PlainFile {
    uid: u32,
    length: u64,
    handles: usize,
    real: Arc<Scratch>,
}

impl Plain {
    fn has_name(&self, file: usize) -> bool {
        self.places.values().any(|thing| *thing == Thing::File(file))
    }

    fn lives(&self, file: usize) -> bool {
        self.has_name(file) || self.files[file].handles > 0
    }

    /// The sum of what is kept, of one user or of all.
    fn used(&self, uid: Option<u32>) -> u64 {
        let is_of = |of: u32| uid.is_none_or(|uid| uid == of);
        let dirs = self.places.values().filter(|thing| matches!(thing, Thing::Dir(uid) if is_of(*uid))).count() as u64;
        let files = (0..self.files.len()).filter(|file| self.lives(*file) && is_of(self.files[*file].uid));
        dirs * OVERHEAD + files.map(|file| OVERHEAD + self.files[file].length).sum::<u64>()
    }

    fn has_room(&self, uid: u32, bytes: u64) -> bool {
        self.used(None) + bytes <= QUOTA && self.used(Some(uid)) + bytes <= SHARE
    }

    fn is_dir(&self, path: &str) -> bool {
        matches!(self.places.get(path), Some(Thing::Dir(_) | Thing::Lingers))
    }

    fn below(&self, dir: &str) -> Vec<String> {
        self.places
            .keys()
            .filter(|path| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')))
            .cloned()
            .collect()
    }

    fn new_file(&mut self, path: &str, uid: u32, real: Arc<Scratch>) {
        self.places.insert(path.to_owned(), Thing::File(self.files.len()));
        self.files.push(PlainFile { uid, length: 0, handles: 0, real });
    }
}

fn place(path: &str) -> CellPath {
    CellPath { cell: CellName::global(), path: TopoPath::parse(path).unwrap() }
}

fn is_within(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn kind<T>(result: Result<T>) -> Option<Kind> {
    result.err().map(|error| error.kind)
}

/// Does one step to both, and compares the outcomes.
fn take(step: &Step, scratch: &ScratchSpace, plain: &mut Plain) -> std::result::Result<(), TestCaseError> {
    let no_room = |plain: &Plain, uid: u32, bytes: u64| (!plain.has_room(uid, bytes)).then_some(Kind::NoSpace);
    match *step {
        Step::Open { path, uid, exclusive } => {
            let path = PATHS[path];
            let opened = scratch.open_or_create(place(path), Arc::default(), (uid, uid, 0o600), exclusive);
            match plain.places.get(path).copied() {
                Some(Thing::File(file)) if !exclusive => {
                    prop_assert!(opened.is_ok_and(|opened| Arc::ptr_eq(&opened, &plain.files[file].real)));
                }
                Some(Thing::File(_)) => prop_assert_eq!(kind(opened), Some(Kind::Exists)),
                Some(Thing::Dir(_) | Thing::Lingers) => prop_assert_eq!(kind(opened), Some(Kind::IsDirectory)),
                None => {
                    prop_assert_eq!(opened.as_ref().err().map(|error| error.kind), no_room(plain, uid, OVERHEAD));
                    opened.into_iter().for_each(|file| plain.new_file(path, uid, file));
                }
            }
        }
        Step::Replace { path, uid } => {
            let made = scratch.replace(place(PATHS[path]), Arc::default(), (uid, uid, 0o600));
            prop_assert_eq!(made.as_ref().err().map(|error| error.kind), no_room(plain, uid, OVERHEAD));
            made.into_iter().for_each(|file| plain.new_file(PATHS[path], uid, file));
        }
        Step::Edit { file, .. } | Step::Opened { file } if file < plain.files.len() && !plain.lives(file) => {
            // Somebody came with the file when it had just lost its name: it must not be charged again.
            let real = &plain.files[file].real;
            let edited = scratch.edit(real, |_| 9, |content| content.resize(9, 0));
            prop_assert_eq!((kind(edited), kind(scratch.opened(real))), (Some(Kind::NotFound), Some(Kind::NotFound)));
        }
        Step::Edit { file, length } if file < plain.files.len() => {
            let PlainFile { uid, length: before, ref real, .. } = plain.files[file];
            let more = (length as u64).saturating_sub(before);
            let refused = if more > 0 { no_room(plain, uid, more) } else { None };
            prop_assert_eq!(kind(scratch.edit(real, |_| length, |content| content.resize(length, 0))), refused);
            if refused.is_none() {
                plain.files[file].length = length as u64;
            }
        }
        Step::Opened { file } if file < plain.files.len() => {
            scratch.opened(&plain.files[file].real).unwrap();
            plain.files[file].handles += 1;
        }
        Step::Closed { file } if plain.files.get(file).is_some_and(|file| file.handles > 0) => {
            scratch.closed(&plain.files[file].real);
            plain.files[file].handles -= 1;
        }
        Step::Edit { .. } | Step::Opened { .. } | Step::Closed { .. } => {}
        Step::Unlink { path } => {
            scratch.unlink(&place(PATHS[path]));
            if matches!(plain.places.get(PATHS[path]), Some(Thing::File(_))) {
                plain.places.remove(PATHS[path]);
            }
        }
        Step::Rename { from, to } => {
            scratch.rename(&place(PATHS[from]), place(PATHS[to]));
            if let Some(thing) = plain.places.remove(PATHS[from]) {
                plain.places.insert(PATHS[to].to_owned(), thing);
            }
        }
        Step::MakeDir { path, uid } => {
            let path = PATHS[path];
            let expected = match plain.places.get(path) {
                Some(Thing::Dir(_) | Thing::File(_)) => Some(Kind::Exists),
                Some(Thing::Lingers) | None => no_room(plain, uid, OVERHEAD),
            };
            prop_assert_eq!(kind(scratch.make_dir(place(path), uid)), expected);
            if expected.is_none() {
                plain.places.insert(path.to_owned(), Thing::Dir(uid));
            }
        }
        Step::RemoveDir { path } => {
            let there = plain.is_dir(PATHS[path]);
            prop_assert_eq!(scratch.remove_dir(&place(PATHS[path])), there);
            if there {
                plain.places.remove(PATHS[path]);
            }
        }
        Step::Linger { path } => {
            scratch.linger(place(PATHS[path]), 1);
            plain.places.entry(PATHS[path].to_owned()).or_insert(Thing::Lingers);
        }
        Step::EndLinger { path } => {
            let there = plain.places.get(PATHS[path]) == Some(&Thing::Lingers);
            prop_assert_eq!(scratch.end_linger(&place(PATHS[path])), there);
            if there {
                plain.places.remove(PATHS[path]);
            }
        }
        Step::MadeReal { path } => {
            scratch.made_real(&CellName::global(), &TopoPath::parse(PATHS[path]).unwrap());
            for dir in ["a", "a/x", "b"] {
                if PATHS[path].strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')) && plain.is_dir(dir) {
                    plain.places.remove(dir);
                }
            }
        }
        // The kernel refuses to move a directory into itself, or over a directory that it is in.
        Step::RenameDir { from, to } if is_within(PATHS[from], PATHS[to]) || is_within(PATHS[to], PATHS[from]) => {}
        Step::RenameDir { from, to } => {
            scratch.rename_dir(&place(PATHS[from]), &place(PATHS[to])).unwrap();
            let below = plain.below(PATHS[from]);
            for path in std::iter::once(PATHS[from].to_owned()).chain(below) {
                if let Some(thing) = plain.places.remove(&path) {
                    plain.places.insert(path.replacen(PATHS[from], PATHS[to], 1), thing);
                }
            }
        }
    }
    Ok(())
}

/// Compares all that can be asked.
fn compare(scratch: &ScratchSpace, plain: &Plain) -> std::result::Result<(), TestCaseError> {
    prop_assert_eq!(scratch.usage(), (QUOTA, plain.used(None)));
    for path in PATHS {
        let below = plain.below(path);
        prop_assert_eq!(scratch.has_children(&place(path)), !below.is_empty(), "{}", path);
        prop_assert_eq!(scratch.has_dir(&place(path)), plain.is_dir(path) || !below.is_empty(), "{}", path);
        let shown = match scratch.get(&place(path)) {
            Some(Local::Dir { until: None, uid }) => Some(Thing::Dir(uid)),
            Some(Local::Dir { until: Some(_), .. }) => Some(Thing::Lingers),
            Some(Local::Scratch(found)) => {
                plain.files.iter().position(|file| Arc::ptr_eq(&file.real, &found)).map(Thing::File)
            }
            None => None,
        };
        prop_assert_eq!(shown, plain.places.get(path).copied(), "{}", path);
        let mut entries = BTreeMap::new();
        for below in below {
            let rest = &below[path.len() + 1..];
            let file = match plain.places[&below] {
                Thing::File(file) if !rest.contains('/') => Some(plain.files[file].real.id),
                _ => None,
            };
            entries.entry(rest.split('/').next().unwrap_or_default().to_owned()).or_insert(file);
        }
        prop_assert_eq!(scratch.entries(&place(path)), Vec::from_iter(entries), "{}", path);
    }
    for (index, file) in plain.files.iter().enumerate() {
        prop_assert_eq!(scratch.file(file.real.id).is_some(), plain.lives(index));
        let name = plain.places.iter().find(|(_, thing)| **thing == Thing::File(index)).map(|(path, _)| place(path));
        prop_assert_eq!(scratch.place(file.real.id), name);
        let state = file.real.state.lock();
        prop_assert_eq!((state.content.len() as u64, state.handles), (file.length, file.handles));
    }
    let files = plain.places.iter().filter(|(_, thing)| matches!(thing, Thing::File(_)));
    let files: Vec<CellPath> = files.map(|(path, _)| place(path)).collect();
    let (mut shown, dirs) = scratch.survey();
    shown.sort_by_key(|place| place.path.to_string());
    prop_assert_eq!(dirs, plain.places.len() - files.len());
    prop_assert_eq!(shown, files);
    Ok(())
}

proptest! {
    /// The charges of each user show in what is refused: the model predicts every refusal.
    #[test]
    fn scratch_space_is_charged_for_just_what_is_there(steps in prop::collection::vec(step(), 0..40)) {
        let (scratch, mut plain) = (ScratchSpace::new(Quota::new(QUOTA)), Plain::default());
        for step in &steps {
            take(step, &scratch, &mut plain)?;
            compare(&scratch, &plain)?;
        }
    }
}

#[test]
fn a_directory_moves_wholly_or_not_at_all() {
    let scratch = ScratchSpace::new(Quota::new(1 << 20));
    let long = "n".repeat(200);
    let deep = |dir: &str| place(&format!("{dir}/{}", [long.as_str(); 10].join("/")));
    scratch.make_dir(place("a"), 1).unwrap();
    scratch.replace(place("a/x"), Arc::default(), (1, 1, 0o600)).unwrap();
    let file = scratch.replace(deep("a"), Arc::default(), (1, 1, 0o600)).unwrap();
    let before = scratch.survey();
    let mut target = String::from("b");
    // As long as the path of the directory itself may be.
    while TopoPath::parse(&format!("{target}/{long}")).is_ok() {
        target = format!("{target}/{long}");
    }
    assert!(scratch.rename_dir(&place("a"), &place(&target)).is_err(), "the longest path would be too long");
    assert_eq!(scratch.survey(), before);
    assert_eq!(scratch.place(file.id), Some(deep("a")));
}

#[test]
fn a_file_that_becomes_a_record_is_no_longer_edited_here() {
    let scratch = ScratchSpace::new(Quota::new(1 << 20));
    let file = scratch.replace(place("a"), Arc::default(), (1, 1, 0o600)).unwrap();
    let record = Arc::new(draft(b"", false));
    file.state.lock().adopted = Some(record.clone());
    let instead = scratch.edit(&file, |_| 9, |content| content.resize(9, 0)).unwrap();
    assert!(instead.is_some_and(|draft| Arc::ptr_eq(&draft, &record)));
    assert!(file.state.lock().content.is_empty() && scratch.usage().1 == OVERHEAD);
}

#[test]
fn only_the_newest_scratch_files_keep_a_state_of_the_cell() {
    let scratch = ScratchSpace::new(Quota::new(1 << 20));
    let record = TopoPath::parse("metadata/a").unwrap();
    let make = |number: usize| scratch.replace(place(&format!("t{number}")), Arc::default(), (0, 0, 0o600)).unwrap();
    let first = make(0);
    assert_eq!(first.version_then(&record), Ok(None), "there was no such record");
    (1..SEEN).map(make).for_each(drop);
    assert_eq!(first.version_then(&record), Ok(None), "there are not too many yet");
    let last = make(SEEN);
    assert_eq!(first.version_then(&record), Err(()), "that is not known any more");
    first.renew(Arc::default());
    assert!(first.version_then(&record).is_ok() && last.version_then(&record).is_ok(), "it is written anew");
}

#[test]
fn what_is_charged_to_a_user_is_given_back_to_him() {
    let scratch = ScratchSpace::new(Quota::new(8 * 1024));
    let file = scratch.replace(place("big"), Arc::default(), (1, 1, 0o600)).unwrap();
    scratch.edit(&file, |_| 6 * 1024, |content| content.resize(6 * 1024, 0)).unwrap();
    // The owner may change; the user who is charged does not.
    file.state.lock().uid = 2;
    let full = scratch.make_dir(place("dir"), 1).and_then(|()| scratch.make_dir(place("dir2"), 1));
    assert_eq!(full.unwrap_err().kind, Kind::NoSpace);
    scratch.make_dir(place("others"), 2).unwrap();
    for name in ["big", "dir", "dir2", "others"] {
        scratch.unlink(&place(name));
        scratch.remove_dir(&place(name));
    }
    assert!(scratch.usage().1 == 0 && scratch.state.lock().used_by.values().all(|bytes| *bytes == 0));
}

#[test]
fn a_directory_that_lingers_costs_nothing_and_is_gone_after_its_time() {
    let scratch = ScratchSpace::new(Quota::new(1 << 20));
    scratch.linger_if_used(&place("a"), 1);
    assert!(scratch.get(&place("a")).is_none(), "nothing is in it");
    scratch.make_dir(place("a/x"), 1).unwrap();
    scratch.linger_if_used(&place("a"), 1);
    assert!(scratch.get(&place("a")).is_some());
    assert_eq!(scratch.usage().1, OVERHEAD);
    let ended = Local::Dir { until: Some(Instant::now()), uid: 1 };
    scratch.state.lock().places.insert(place("b"), ended);
    assert!(scratch.get(&place("b")).is_none() && !scratch.has_dir(&place("b")));
    assert_eq!(scratch.survey().1, 2);
    scratch.linger(place("c"), 1);
    assert_eq!(scratch.state.lock().places.len(), 3, "what has ended is removed");
}

/// Gives a file a length.
fn resize(scratch: &ScratchSpace, file: &Scratch, length: u64) -> Result<()> {
    let length = usize::try_from(length).unwrap();
    scratch.edit(file, |_| length, |content| content.resize(length, 0)).map(drop)
}

#[test]
fn a_user_has_a_share_of_the_quota_and_all_have_the_quota() {
    let scratch = ScratchSpace::new(Quota::new(QUOTA));
    let make = |name: &str, uid| scratch.replace(place(name), Arc::default(), (uid, uid, 0o600));
    let file = make("a", 1).unwrap();
    let own = resize(&scratch, &file, SHARE - OVERHEAD + 1).unwrap_err();
    assert!(own.kind == Kind::NoSpace && own.reason.contains("share"), "{own}");
    resize(&scratch, &file, SHARE - OVERHEAD).unwrap();
    let other = make("b", 2).unwrap();
    // One byte is left, and it is not for the first user.
    resize(&scratch, &other, QUOTA - SHARE - OVERHEAD - 1).unwrap();
    let own = resize(&scratch, &file, SHARE - OVERHEAD + 1).unwrap_err();
    assert!(own.reason.contains("share"), "{own}");
    resize(&scratch, &other, QUOTA - SHARE - OVERHEAD).unwrap();
    assert_eq!(scratch.usage(), (QUOTA, QUOTA));
    let all = resize(&scratch, &other, QUOTA - SHARE - OVERHEAD + 1).unwrap_err();
    assert!(all.kind == Kind::NoSpace && all.reason.contains("used up;"), "{all}");
    // One byte less makes room for one byte, whoever wants it.
    resize(&scratch, &file, SHARE - OVERHEAD - 1).unwrap();
    resize(&scratch, &other, QUOTA - SHARE - OVERHEAD + 1).unwrap();
    assert_eq!(scratch.usage().1, QUOTA);
}

#[test]
fn a_user_is_charged_for_what_is_left_and_for_nothing_else() {
    let scratch = ScratchSpace::new(Quota::new(1 << 20));
    let charged = || scratch.state.lock().used_by.get(&1).copied();
    let [file, _] = ["a", "b"].map(|name| scratch.replace(place(name), Arc::default(), (1, 1, 0o600)).unwrap());
    for length in [700, 300, 300, 0, 100] {
        resize(&scratch, &file, length).unwrap();
        assert_eq!((charged(), scratch.usage().1), (Some(2 * OVERHEAD + length), 2 * OVERHEAD + length));
    }
    scratch.unlink(&place("b"));
    assert_eq!(charged(), Some(OVERHEAD + 100));
    // The content stays until the last of those who have it open is gone.
    scratch.opened(&file).unwrap();
    scratch.opened(&file).unwrap();
    scratch.unlink(&place("a"));
    scratch.closed(&file);
    assert_eq!(charged(), Some(OVERHEAD + 100));
    scratch.closed(&file);
    assert!(charged().is_none() && scratch.file(file.id).is_none() && scratch.usage().1 == 0);
    // A file that has a name stays when it is closed.
    let file = scratch.replace(place("c"), Arc::default(), (1, 1, 0o600)).unwrap();
    scratch.opened(&file).unwrap();
    scratch.closed(&file);
    assert!(scratch.file(file.id).is_some() && charged() == Some(OVERHEAD));
}

#[test]
fn only_a_directory_that_lingers_can_be_ended() {
    let scratch = ScratchSpace::new(Quota::new(1 << 20));
    scratch.make_dir(place("a"), 1).unwrap();
    scratch.linger(place("b"), 1);
    assert!(!scratch.end_linger(&place("a")) && !scratch.end_linger(&place("c")));
    assert!(scratch.end_linger(&place("b")) && !scratch.end_linger(&place("b")));
    assert!(scratch.has_dir(&place("a")) && !scratch.has_dir(&place("b")));
}
