use super::*;
use crate::backend::{Action, Change, Guard};
use crate::mirror::Record;
use crate::name::TopoPath;
use crate::process::Actor;
use crate::record::{Codec, Form, Kinds};
use crate::store::{Plain, Staged, Unheard};

const ACTOR: Actor = Actor { uid: 7, process: 1 };
const LIMITS: Limits = Limits { value: 10_000, changes: 50 };
const KEYSPACE: &str = "keyspaces/ks/Keyspace";

fn path(name: &str) -> TopoPath {
    TopoPath::parse(name).unwrap()
}

fn at(cell: &str, name: &str) -> CellPath {
    CellPath { cell: CellName::new(cell).unwrap(), path: path(name) }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    use futures::FutureExt;
    future.now_or_never().expect("what is in memory is answered at once")
}

fn put(store: &dyn Store, name: &str, value: impl Into<Bytes>) -> Result<()> {
    let change = Change { path: path(name), guard: Guard::Any, action: Action::Put(value.into()) };
    now(store.commit(ACTOR, &[change], &Unheard)).map(drop)
}

fn remove(store: &dyn Store, name: &str) -> Result<()> {
    let change = Change { path: path(name), guard: Guard::Any, action: Action::Delete };
    now(store.commit(ACTOR, &[change], &Unheard)).map(drop)
}

fn shown(store: &dyn Store, name: &str) -> Option<Record> {
    store.snapshot_now().unwrap().records.get(&path(name)).cloned()
}

/// Cells that others change, and stages over them.
struct World {
    live: Vec<Plain>,
    records: Arc<Records>,
    quota: Quota,
}

impl World {
    fn new(cells: &[&str]) -> Self {
        let live = cells.iter().map(|cell| Plain::new(CellName::new(cell).unwrap(), LIMITS, Snapshot::default()));
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        Self { live: live.collect(), records, quota: Quota::new(1 << 20) }
    }

    fn live(&self, cell: &str) -> &Plain {
        self.live.iter().find(|live| live.cell().as_str() == cell).unwrap()
    }

    fn seen(&self) -> Vec<Seen> {
        let seen = |live: &Plain| Seen { cell: live.cell().clone(), records: live.snapshot_now(), limits: LIMITS };
        self.live.iter().map(seen).collect()
    }

    fn stage(&self) -> Arc<Stage> {
        let stage = Stage::new("change", self.records.clone(), &self.seen(), (self.quota.clone(), 7));
        Arc::new(stage)
    }

    fn text(&self, name: &str, text: &str) -> Bytes {
        let text = text.to_owned().into();
        self.records.store(&CellName::global(), &path(name), Form::Text, &text, None).unwrap().unwrap()
    }

    /// Makes the changes of a stage where it came from, all or none.
    fn commit(&self, stage: &Arc<Stage>) -> Result<()> {
        let committing = stage.begin_commit()?;
        let set = committing.change_set();
        for live in &self.live {
            let changes: Vec<Change> =
                set.changes.iter().filter(|staged| staged.at.cell == *live.cell()).filter_map(Staged::change).collect();
            now(live.commit(ACTOR, &changes, &Unheard))?;
        }
        committing.committed();
        Ok(())
    }
}

fn cell(stage: &Stage, name: &str) -> Arc<StagedCell> {
    stage.staged_cell(&CellName::new(name).unwrap()).unwrap()
}

fn set(stage: &Stage) -> Vec<(String, Option<Bytes>, Option<Bytes>)> {
    let staged = |staged: Staged| (staged.at.to_string(), staged.base.map(|base| base.value), staged.now);
    stage.change_set().changes.into_iter().map(staged).collect()
}

fn names(stage: &Stage) -> Vec<String> {
    set(stage).into_iter().map(|(name, ..)| name).collect()
}

#[test]
fn what_is_as_before_is_no_change() {
    let world = World::new(&["global", "zone1"]);
    put(world.live("global"), "metadata/a", "1").unwrap();
    // The entries of the map in another order than topofs writes them, as Vitess may.
    let entries = [&b"\x22\x05\x0a\x01b\x10\x01"[..], b"\x22\x05\x0a\x01a\x10\x02"].concat();
    put(world.live("zone1"), "tablets/zone1-0000000100/Tablet", entries.clone()).unwrap();
    let stage = world.stage();
    let (global, zone) = (cell(&stage, "global"), cell(&stage, "zone1"));
    let before = shown(&*global, "metadata/a").unwrap();
    put(&*global, "metadata/b", "new").unwrap();
    put(&*global, "metadata/a", "2").unwrap();
    put(&*zone, "metadata/c", "3").unwrap();
    assert_eq!(names(&stage), ["global/metadata/a", "global/metadata/b", "zone1/metadata/c"]);
    assert_eq!(stage.count(), 3);
    let changed = stage.change_set().changes.into_iter().next().unwrap();
    assert_eq!((changed.base, changed.now), (Some(before.clone()), Some("2".into())), "as it was when it was staged");
    put(&*global, "metadata/a", "1").unwrap();
    remove(&*global, "metadata/b").unwrap();
    assert_eq!(names(&stage), ["zone1/metadata/c"]);
    let after = shown(&*global, "metadata/a").unwrap();
    assert!(after.version.written > before.version.written && after.modified > before.modified, "a save is a version");
    // Edited as text and back: topofs writes its own order.
    let canonical =
        world.records.canonical(zone.cell(), &path("tablets/zone1-0000000100/Tablet"), &entries.clone().into());
    let canonical = canonical.unwrap();
    assert_ne!(canonical, entries);
    put(&*zone, "tablets/zone1-0000000100/Tablet", canonical).unwrap();
    remove(&*zone, "metadata/c").unwrap();
    assert!(names(&stage).is_empty() && stage.diff().is_empty(), "{:?}", set(&stage));
    remove(&*zone, "tablets/zone1-0000000100/Tablet").unwrap();
    assert_eq!(set(&stage), [("zone1/tablets/zone1-0000000100/Tablet".to_owned(), Some(entries.into()), None)]);
    assert!(shown(world.live("zone1"), "tablets/zone1-0000000100/Tablet").is_some(), "nothing has reached the service");
}

#[test]
fn what_is_staged_is_charged_and_given_back() {
    let world = World::new(&["global"]);
    put(world.live("global"), "metadata/a", "1".repeat(5_000)).unwrap();
    let stage = world.stage();
    let global = cell(&stage, "global");
    assert_eq!((stage.bytes(), world.quota.usage().1), (0, 0));
    let mut known = vec![0];
    for (name, value) in [("metadata/a", 9_000), ("metadata/b", 9_000), ("metadata/b", 10)] {
        put(&*global, name, "2".repeat(value)).unwrap();
        known.push(stage.bytes());
    }
    assert!(known[1] > 9_000 && known[2] > known[1] + 9_000 && known[3] < known[1] + 1_000, "{known:?}");
    put(&*global, "metadata/a", "1".repeat(5_000)).unwrap();
    assert!(stage.bytes() < 2_000, "the bytes of the snapshot cost nothing: {}", stage.bytes());
    assert_eq!(world.quota.usage().1, stage.bytes());
    // A save that does not fit is refused, and changes nothing.
    let refused = (0..1_000).find_map(|n| {
        let before = (stage.bytes(), stage.count());
        let error = put(&*global, &format!("metadata/{n}"), "3".repeat(10_000)).err()?;
        assert_eq!(before, (stage.bytes(), stage.count()));
        Some(error.kind)
    });
    assert_eq!(refused, Some(Kind::NoSpace));
    remove(&*global, "metadata/0").unwrap();
    put(&*global, "metadata/c", "3".repeat(9_000)).unwrap();
    drop((stage, global));
    assert_eq!(world.quota.usage().1, 0);
}

#[test]
fn a_stage_that_is_being_committed_or_is_committed_cannot_be_changed() {
    let world = World::new(&["global"]);
    let stage = world.stage();
    let global = cell(&stage, "global");
    put(&*global, "metadata/a", "1").unwrap();
    assert_eq!(stage.undo(), None);
    let committing = stage.begin_commit().unwrap();
    let kind = |outcome: Result<()>| outcome.unwrap_err().kind;
    assert_eq!(kind(put(&*global, "metadata/b", "1")), Kind::Busy);
    assert_eq!(kind(stage.begin_commit().map(drop)), Kind::Busy);
    assert_eq!(kind(stage.rebase(&world.seen()).map(drop)), Kind::Busy);
    assert_eq!(committing.change_set().changes.len(), 1);
    drop(committing);
    put(&*global, "metadata/b", "1").unwrap();
    world.commit(&stage).unwrap();
    assert!(stage.is_committed());
    for outcome in [put(&*global, "metadata/b", "2"), stage.begin_commit().map(drop), stage.rebase(&[]).map(drop)] {
        assert_eq!(kind(outcome), Kind::ReadOnly);
    }
    assert_eq!(kind(now(global.refuse_early(ACTOR, &path("metadata/b")))), Kind::ReadOnly);
    assert_eq!(names(&stage), ["global/metadata/a", "global/metadata/b"], "it says what it was");
    put(world.live("global"), "metadata/a", "3").unwrap();
    assert_eq!(stage.conflicts(&world.seen()), []);
    assert!(stage.undo().is_some());
}

#[test]
fn a_record_is_shown_by_its_text_unless_that_hides_something() {
    let world = World::new(&["global"]);
    let live = world.live("global");
    let ks = |name: &str| format!("keyspaces/{name}/Keyspace");
    // A field that this build does not know.
    let newer = |text: &str, byte: u8| Bytes::from([&world.text(KEYSPACE, text)[..], &[0xa0, 6, byte]].concat());
    put(live, &ks("text"), newer("durability_policy: \"none\"", 1)).unwrap();
    put(live, &ks("hidden"), newer("", 1)).unwrap();
    put(live, &ks("both"), newer("durability_policy: \"none\"", 1)).unwrap();
    put(live, &ks("gone"), newer("", 1)).unwrap();
    put(live, &ks("broken"), &b"\xff"[..]).unwrap();
    put(live, &ks("taken"), world.text(KEYSPACE, "durability_policy: \"none\"")).unwrap();
    put(live, "keyspaces/taken/Keyspace.txt", "a key of this name").unwrap();
    put(live, "metadata/text", "one\n").unwrap();
    let stage = world.stage();
    let global = cell(&stage, "global");
    put(&*global, &ks("text"), newer("durability_policy: \"semi_sync\"", 1)).unwrap();
    put(&*global, &ks("hidden"), newer("", 2)).unwrap();
    put(&*global, &ks("both"), newer("durability_policy: \"semi_sync\"", 2)).unwrap();
    remove(&*global, &ks("gone")).unwrap();
    put(&*global, &ks("broken"), world.text(KEYSPACE, "durability_policy: \"none\"")).unwrap();
    put(&*global, &ks("taken"), world.text(KEYSPACE, "durability_policy: \"semi_sync\"")).unwrap();
    put(&*global, "metadata/text", "two\n").unwrap();
    let diff = String::from_utf8(stage.diff().into()).unwrap();
    let files: Vec<&str> =
        diff.lines().filter_map(|line| line.strip_prefix("diff --git a/global/")?.split(' ').next()).collect();
    let expected = [
        "keyspaces/both/Keyspace",
        "keyspaces/broken/Keyspace",
        "keyspaces/gone/Keyspace.txt",
        "keyspaces/hidden/Keyspace",
        "keyspaces/taken/Keyspace",
        "keyspaces/text/Keyspace.txt",
        "metadata/text",
    ];
    assert_eq!(files, expected, "{diff}");
    for part in [
        "# \"global/keyspaces/both/Keyspace\": the text form shows a part of the difference",
        "#     -durability_policy: \"none\"\n#     +durability_policy: \"semi_sync\"\n",
        "# \"global/keyspaces/hidden/Keyspace\": the text form shows no difference",
        "--- a/global/metadata/text\n+++ b/global/metadata/text\n",
        "\n-durability_policy: \"none\"\n+durability_policy: \"semi_sync\"\n",
    ] {
        assert!(diff.contains(part), "{part}\n{diff}");
    }
}

#[test]
fn a_record_that_is_a_directory_too_is_shown_inside_of_it() {
    let world = World::new(&["global"]);
    let live = world.live("global");
    for (name, value) in [("m/a", "1\n"), ("m/a/b", "1\n"), ("m/c", "1\n"), ("m/c/d", "1\n")] {
        put(live, name, value).unwrap();
    }
    let stage = world.stage();
    let global = cell(&stage, "global");
    put(&*global, "m/a", "2\n").unwrap();
    put(&*global, "m/c", "2\n").unwrap();
    remove(&*global, "m/c/d").unwrap();
    let files = |patch: Bytes| -> Vec<String> {
        let patch = String::from_utf8(patch.into()).unwrap();
        patch.lines().filter(|line| line.starts_with("--- ") || line.starts_with("+++ ")).map(str::to_owned).collect()
    };
    let expected = [
        ("--- a/global/m/a/.data", "+++ b/global/m/a/.data"),
        ("--- a/global/m/c/.data", "+++ /dev/null"),
        ("--- a/global/m/c/d", "+++ /dev/null"),
        ("--- /dev/null", "+++ b/global/m/c"),
    ];
    assert_eq!(files(stage.diff()), expected.map(|(old, new)| [old, new]).concat());
}

#[test]
fn a_rebase_merges_by_field_and_leaves_what_clashes() {
    let world = World::new(&["global", "zone1"]);
    let live = world.live("global");
    let text = |durability: &str, sidecar: &str| {
        world.text(KEYSPACE, &format!("durability_policy: {durability:?} sidecar_db_name: {sidecar:?}"))
    };
    let ks = |name: &str| format!("keyspaces/{name}/Keyspace");
    for name in ["merged", "clash", "same", "gone", "deleted", "again", "untouched"] {
        put(live, &ks(name), text("none", "_vt")).unwrap();
    }
    let stage = world.stage();
    let global = cell(&stage, "global");
    for name in ["merged", "clash", "same", "gone", "again", "new"] {
        put(&*global, &ks(name), text("semi_sync", "_vt")).unwrap();
    }
    remove(&*global, &ks("deleted")).unwrap();
    assert_eq!(stage.conflicts(&world.seen()), [], "nobody has changed anything");

    put(live, &ks("merged"), text("none", "side")).unwrap();
    put(live, &ks("clash"), text("cross_cell", "_vt")).unwrap();
    put(live, &ks("same"), text("semi_sync", "_vt")).unwrap();
    remove(live, &ks("gone")).unwrap();
    put(live, &ks("deleted"), text("none", "side")).unwrap();
    remove(live, &ks("again")).unwrap();
    put(live, &ks("again"), text("none", "_vt")).unwrap();
    put(live, &ks("new"), text("none", "other")).unwrap();
    put(live, &ks("untouched"), text("cross_cell", "_vt")).unwrap();
    let told = |conflicts: &[Conflict]| -> Vec<serde_json::Value> {
        lines(conflicts).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let line = |name: &str, what: &str, rebase: &str, fields: &[&str]| {
        let version = shown(live, &ks(name)).map(|record| record.version.number);
        let mut line = serde_json::json!({ "path": format!("global/{}", ks(name)), "what": what });
        let object = line.as_object_mut().unwrap();
        object.extend(version.map(|version| ("version".to_owned(), version.into())));
        object.insert("rebase".to_owned(), rebase.into());
        if !fields.is_empty() {
            object.insert("fields".to_owned(), fields.into());
        }
        line
    };
    let clashes = [
        line("clash", "changed", "refuses", &["durability_policy"]),
        line("deleted", "changed", "refuses", &[]),
        line("gone", "deleted", "refuses", &[]),
        line("new", "created", "refuses", &[]),
    ];
    let [clash, deleted, gone, new] = clashes.clone();
    let others = [
        line("again", "changed", "merges", &[]),
        line("merged", "changed", "merges", &[]),
        line("same", "changed", "drops", &[]),
    ];
    let [again, merged, same] = others;
    assert_eq!(told(&stage.conflicts(&world.seen())), [again, clash, deleted, gone, merged, new, same]);
    assert_eq!(world.commit(&stage).unwrap_err().kind, Kind::Conflict);

    let rebased = stage.rebase(&world.seen()).unwrap();
    assert_eq!(told(&rebased.left), clashes);
    assert_eq!(told(&stage.conflicts(&world.seen())), clashes);
    let changed: Vec<String> = rebased.updates.iter().map(|(_, update)| update.path.to_string()).collect();
    assert_eq!(changed, [ks("merged"), ks("untouched")], "what a program sees has changed for these only");
    assert_eq!(shown(&*global, &ks("merged")).unwrap().value, text("semi_sync", "side"));
    assert_eq!(shown(&*global, &ks("untouched")).unwrap().value, text("cross_cell", "_vt"));
    assert_eq!(names(&stage).len(), 6, "the one that others have made, too, is no change any more");
    assert_eq!(world.commit(&stage).unwrap_err().kind, Kind::Conflict, "what clashes is still guarded by what it was");

    // A person decides.
    for (name, keep) in [("clash", true), ("deleted", true), ("gone", false), ("new", false)] {
        stage.settle(&at("global", &ks(name)), &world.seen(), keep).unwrap();
    }
    let error = stage.settle(&at("global", &ks("untouched")), &world.seen(), true).unwrap_err();
    assert!(error.kind == Kind::NotFound && error.reason.contains("not staged"), "{error}");
    assert_eq!(stage.conflicts(&world.seen()), []);
    assert_eq!(names(&stage), ["again", "clash", "deleted", "merged"].map(|name| format!("global/{}", ks(name))));
    world.commit(&stage).unwrap();
    assert_eq!(shown(live, &ks("clash")).unwrap().value, text("semi_sync", "_vt"));
    assert_eq!(shown(live, &ks("new")).unwrap().value, text("none", "other"));
    assert_eq!((shown(live, &ks("deleted")), shown(live, &ks("gone"))), (None, None));
}

#[test]
fn a_cell_that_cannot_be_looked_at_is_never_without_conflict() {
    let world = World::new(&["global", "zone1", "zone2"]);
    let stage = world.stage();
    put(&*cell(&stage, "zone1"), "metadata/a", "1").unwrap();
    let mut seen = world.seen();
    for seen in &mut seen {
        seen.records = Err(Error::new(Kind::Unreachable, "no answer"));
    }
    let [conflict] = &stage.conflicts(&seen)[..] else { panic!("{:?}", stage.conflicts(&seen)) };
    assert_eq!((conflict.at.to_string().as_str(), conflict.is_clash()), ("zone1", true));
    assert!(
        lines(std::slice::from_ref(conflict)).contains(r#"{"path":"zone1","what":"unknown","reason":"no answer"}"#)
    );
    assert_eq!(stage.rebase(&seen).unwrap().left.len(), 3);
    // A cell without CellInfo record: it stays in the stage for as long as something is staged there.
    seen.pop();
    seen.pop();
    assert!(stage.conflicts(&seen)[0].is_clash());
    assert_eq!(stage.rebase(&seen).unwrap().left.len(), 2);
    let cells = |stage: &Stage| stage.staged_cells().iter().map(|cell| cell.cell().to_string()).collect::<Vec<_>>();
    assert_eq!(cells(&stage), ["global", "zone1"]);
    // A cell that comes back, or is new, comes with a rebase.
    assert_eq!(stage.rebase(&world.seen()).unwrap().left, []);
    assert_eq!(cells(&stage), ["global", "zone1", "zone2"]);
    assert_eq!(stage.conflicts(&world.seen()), []);
}

#[test]
fn a_rebase_takes_nothing_away_from_a_program_that_saves_meanwhile() {
    let world = World::new(&["global"]);
    let (stage, live) = (world.stage(), world.live("global"));
    let global = cell(&stage, "global");
    std::thread::scope(|scope| {
        let saver = scope.spawn(|| {
            for n in 0..500 {
                put(&*global, &format!("metadata/{n}"), n.to_string()).unwrap();
            }
        });
        let mut rebases = 0;
        while !saver.is_finished() {
            put(live, "metadata/theirs", rebases.to_string()).unwrap();
            match stage.rebase(&world.seen()) {
                Ok(_) => rebases += 1,
                Err(error) => assert_eq!(error.kind, Kind::Busy, "{error}"),
            }
        }
    });
    stage.rebase(&world.seen()).unwrap();
    assert_eq!(stage.count(), 500);
    assert!((0..500).all(|n| shown(&*global, &format!("metadata/{n}")).unwrap().value == n.to_string()));
    assert_eq!(shown(&*global, "metadata/theirs").unwrap().value, shown(live, "metadata/theirs").unwrap().value);
}

mod model;
