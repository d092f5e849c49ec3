//! Random changes of a stage and of what is underneath, beside a simple reference.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::backend::Version;

/// Places for random changes: records that are compared as a whole, and records with fields.
const PLACES: [&str; 5] = ["metadata/a", "metadata/b", "keyspaces/a/Keyspace", "keyspaces/b/Keyspace", "m/d/e"];

#[derive(Debug, Clone)]
enum Step {
    Save(usize, u8),
    Remove(usize),
    Live(usize, u8),
    LiveRemove(usize),
    Rebase,
}

fn step() -> impl Strategy<Value = Step> {
    let place = 0..PLACES.len();
    prop_oneof![
        4 => (place.clone(), 0_u8..6).prop_map(|(place, value)| Step::Save(place, value)),
        2 => place.clone().prop_map(Step::Remove),
        3 => (place.clone(), 0_u8..6).prop_map(|(place, value)| Step::Live(place, value)),
        1 => place.prop_map(Step::LiveRemove),
        1 => Just(Step::Rebase),
    ]
}

/// A value: for a Keyspace, two fields with three and two values.
fn value(world: &World, place: usize, value: u8) -> Bytes {
    match PLACES[place].ends_with("Keyspace") {
        true => {
            world.text(KEYSPACE, &format!("durability_policy: \"{}\" sidecar_db_name: \"{}\"", value % 3, value / 3))
        }
        false => format!("{value}\n").into(),
    }
}

/// What a rebase makes of a value of each side; `None` if they clash.
fn merged(place: usize, base: Option<u8>, ours: Option<u8>, theirs: Option<u8>) -> Option<Option<u8>> {
    if ours == theirs || base == theirs {
        return Some(ours);
    }
    if base == ours {
        return Some(theirs);
    }
    let (Some(base), Some(ours), Some(theirs)) = (base, ours, theirs) else { return None };
    let pick = |part: fn(u8) -> u8| match (part(base), part(ours), part(theirs)) {
        (b, o, t) if o == t || b == t => Some(o),
        (b, o, t) if b == o => Some(t),
        _ => None,
    };
    let fields = PLACES[place].ends_with("Keyspace").then(|| Some(pick(|v| v % 3)? + 3 * pick(|v| v / 3)?));
    fields.flatten().map(Some)
}

/// What must be true of a stage: the base of each staged record, and what is shown and stored.
#[derive(Default)]
struct Reference {
    base: BTreeMap<usize, Option<u8>>,
    ours: BTreeMap<usize, u8>,
    theirs: BTreeMap<usize, u8>,
    /// What others have stored when the stage last looked.
    seen: BTreeMap<usize, u8>,
}

impl Reference {
    fn stage(&mut self, place: usize, value: Option<u8>) {
        let base = self.base.remove(&place).unwrap_or_else(|| self.seen.get(&place).copied());
        match value {
            Some(value) => drop(self.ours.insert(place, value)),
            None => drop(self.ours.remove(&place)),
        }
        self.base.insert(place, base);
    }

    /// Returns what clashes.
    fn rebase(&mut self) -> BTreeSet<usize> {
        let mut clashes = BTreeSet::new();
        for place in 0..PLACES.len() {
            let theirs = self.theirs.get(&place).copied();
            let ours = self.ours.get(&place).copied();
            let base = self.base.get(&place).copied().unwrap_or(ours);
            let Some(merged) = merged(place, base, ours, theirs) else {
                clashes.insert(place);
                continue;
            };
            match merged {
                Some(value) => drop(self.ours.insert(place, value)),
                None => drop(self.ours.remove(&place)),
            }
            self.base.remove(&place);
            if merged != theirs {
                self.base.insert(place, theirs);
            }
        }
        self.seen = self.theirs.clone();
        clashes
    }

    fn check(&self, world: &World, stage: &Stage) {
        let bytes = |place: usize, known: Option<u8>| known.map(|known| value(world, place, known));
        let global = cell(stage, "global");
        for (place, name) in PLACES.iter().enumerate() {
            let shown = shown(&*global, name).map(|record| record.value);
            assert_eq!(shown, bytes(place, self.ours.get(&place).copied()), "{name}");
        }
        let is_change = |(place, base): &(&usize, &Option<u8>)| **base != self.ours.get(*place).copied();
        let mut expected: Vec<_> = (self.base.iter().filter(is_change))
            .map(|(place, base)| {
                let ours = self.ours.get(place).copied();
                (format!("global/{}", PLACES[*place]), bytes(*place, *base), bytes(*place, ours))
            })
            .collect();
        expected.sort();
        let mut staged = set(stage);
        staged.sort();
        assert_eq!(staged, expected);
    }
}

fn versions(stage: &Stage) -> Vec<Option<Version>> {
    PLACES.iter().map(|place| shown(&*cell(stage, "global"), place).map(|record| record.version)).collect()
}

/// The text forms of all records, as files; those without text form as they are.
fn files(world: &World, store: &dyn Store) -> BTreeMap<String, Bytes> {
    let snapshot = store.snapshot_now().unwrap();
    let file = |(path, record): (&TopoPath, &Record)| {
        let form = if world.records.message(store.cell(), path).is_some() { Form::Text } else { Form::Raw };
        let content = world.records.show(store.cell(), path, &record.value, form).unwrap();
        (format!("{}/{path}{}", store.cell(), form.suffix()), content)
    };
    snapshot.records.iter().map(file).collect()
}

/// What `git apply` makes of files.
fn applied(files: &BTreeMap<String, Bytes>, patch: &Bytes) -> BTreeMap<String, Bytes> {
    if patch.is_empty() {
        return files.clone();
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    for (name, content) in files {
        let path = tree.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    std::fs::create_dir_all(&tree).unwrap();
    let file = dir.path().join("patch");
    std::fs::write(&file, patch).unwrap();
    let ceiling = ("GIT_CEILING_DIRECTORIES", dir.path());
    let done =
        Command::new("git").arg("apply").arg(&file).env(ceiling.0, ceiling.1).current_dir(&tree).output().unwrap();
    assert!(done.status.success(), "{done:?}\n{}", String::from_utf8_lossy(patch));
    let names = PLACES.iter().flat_map(|place| ["", ".txt"].map(|suffix| format!("global/{place}{suffix}")));
    names.filter_map(|name| Some((name.clone(), std::fs::read(tree.join(name)).ok()?.into()))).collect()
}

/// Takes random steps beside the reference, commits what is left, and takes it back.
fn take(begin: Vec<u8>, steps: Vec<Step>) {
    let world = World::new(&["global"]);
    let live = world.live("global");
    let mut reference = Reference::default();
    // Some are there from the beginning.
    for (place, begin) in begin.into_iter().enumerate().filter(|(_, begin)| *begin > 2) {
        put(live, PLACES[place], value(&world, place, begin)).unwrap();
        reference.theirs.insert(place, begin);
    }
    reference.rebase();
    let stage = world.stage();
    let global = cell(&stage, "global");
    for step in steps {
        let before = versions(&stage);
        match step {
            Step::Save(place, saved) => {
                put(&*global, PLACES[place], value(&world, place, saved)).unwrap();
                reference.stage(place, Some(saved));
            }
            Step::Remove(place) => {
                let is_there = reference.ours.contains_key(&place);
                assert_eq!(remove(&*global, PLACES[place]).is_ok(), is_there);
                reference.stage(place, None);
            }
            Step::Live(place, saved) => {
                put(live, PLACES[place], value(&world, place, saved)).unwrap();
                reference.theirs.insert(place, saved);
            }
            Step::LiveRemove(place) => {
                let _ = remove(live, PLACES[place]);
                reference.theirs.remove(&place);
            }
            Step::Rebase => {
                let foretold: Vec<Conflict> =
                    stage.conflicts(&world.seen()).into_iter().filter(Conflict::is_clash).collect();
                let left = stage.rebase(&world.seen()).unwrap().left;
                assert_eq!(&left, &foretold);
                let clashes: BTreeSet<String> = left.iter().map(|left| left.at.path.to_string()).collect();
                let expected = reference.rebase().into_iter().map(|place| PLACES[place].to_owned()).collect();
                assert_eq!(clashes, expected);
            }
        }
        reference.check(&world, &stage);
        for (before, after) in before.into_iter().zip(versions(&stage)).filter_map(|(a, b)| Some((a?, b?))) {
            assert!(after == before || after.written > before.written, "versions go up");
        }
    }
    // What is left is committed as it is shown, and the patch tells it.
    let clashes = reference.rebase();
    stage.rebase(&world.seen()).unwrap();
    assert_eq!(world.commit(&stage).is_err(), !clashes.is_empty());
    for place in clashes {
        stage.settle(&at("global", PLACES[place]), &world.seen(), true).unwrap();
    }
    if !stage.is_committed() {
        world.commit(&stage).unwrap();
    }
    let after = files(&world, live);
    assert_eq!(&files(&world, &*global), &after);
    // A new stage takes it back, and again.
    let undo = stage.undo().unwrap();
    let before = applied(&after, &undo);
    assert_eq!(applied(&before, &stage.diff()), after);
    let bases: BTreeMap<String, Option<Bytes>> = stage
        .change_set()
        .changes
        .into_iter()
        .map(|staged| (staged.at.path.to_string(), staged.base.map(|base| base.value)))
        .collect();
    for (place, base) in bases {
        let suffix = if place.ends_with("Keyspace") { ".txt" } else { "" };
        let base = base.map(|base| world.records.show(&CellName::global(), &path(&place), &base, Form::Text).unwrap());
        assert_eq!(before.get(&format!("global/{place}{suffix}")), base.as_ref());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_stage_is_what_the_reference_says(
        begin in prop::collection::vec(0_u8..6, PLACES.len()),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        take(begin, steps);
    }
}
