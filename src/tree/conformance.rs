//! One test over every namespace: what is listed can be looked up, attributes are those of what is read, absent names
//! are not found, and a refused change changes nothing.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use super::file::PastFile;
use super::namespace::{At, Inode, Name, Namespace, Part};
use super::{Caller, FileId, FileKind, OpenMode, RespectLocks, SetAttr, SpaceKind, Tree, TreeOptions, Views};
use crate::backend::{Action, Backend, Change, ConnectOptions, Guard, Implementation, Location};
use crate::cells::{CellOptions, Cells};
use crate::control::{Control, ControlFile};
use crate::error::Kind;
use crate::mirror::MirrorOptions;
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::{Codec, Form, Kinds, Records};
use crate::topology::links::View;

/// What is stored in the topology of [`tree`].
pub(crate) const RECORDS: [(&str, &[u8]); 6] = [
    ("keyspaces/commerce/Keyspace", b""),
    ("metadata/note", b"a note\n"),
    // Both a record and a directory.
    ("metadata/both", b"both\n"),
    ("metadata/both/below", b"below\n"),
    // Links lead to the primary, zone1-0000000100, and to the cell zone1.
    ("keyspaces/commerce/shards/0/Shard", b"\x0a\x09\x0a\x05zone1\x10\x64"),
    ("cells_aliases/all/CellsAlias", b"\x12\x05zone1"),
];

/// A tree over a topology in memory.
pub(crate) async fn tree() -> Arc<Tree> {
    tree_with(false).await
}

async fn tree_with(read_only: bool) -> Arc<Tree> {
    tree_over(ConnectOptions::default(), read_only).await.0
}

/// The same over a service that is opened so, with the service itself.
pub(crate) async fn tree_over(connect: ConnectOptions, read_only: bool) -> (Arc<Tree>, Arc<dyn Backend>) {
    let location =
        Location { implementation: Implementation::Memory, server: "conformance".to_owned(), root: "/g".to_owned() };
    let backend: Arc<dyn Backend> = Arc::new(connect.memory.open(&location).unwrap());
    let put = |(path, value): &(&str, &'static [u8])| Change {
        path: TopoPath::parse(path).unwrap(),
        guard: Guard::Any,
        action: Action::Put((*value).into()),
    };
    backend.apply(&RECORDS.iter().map(put).collect::<Vec<_>>()).await.unwrap();
    let mirror = MirrorOptions {
        resync_interval: Duration::from_secs(3600),
        stale_after: Duration::from_secs(10),
        serve_stale: false,
    };
    let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
    let cells = CellOptions::new(location, connect, mirror);
    let cells = Cells::start(cells, records.clone()).await.unwrap();
    let options = TreeOptions {
        read_only,
        no_delete: false,
        force_cell_removal: false,
        forms: Form::ALL.to_vec(),
        list: Form::ALL.to_vec(),
        views: Views::List,
        uid: 0,
        gid: 0,
        umask: 0o022,
        scratch_quota: 1 << 20,
        respect_locks: RespectLocks::Keyspace,
        request_timeout: None,
        direct_io: false,
        allow_unseen_writers: true,
    };
    let control = Arc::new(Control::new(serde_json::Value::Null, Box::new(|_| Ok(()))));
    let tree = Tree::new(cells.clone(), records, control, options);
    for cell in cells.all() {
        cell.snapshot().await.unwrap();
    }
    (tree, backend)
}

fn caller() -> Caller {
    Caller::new(0, 0, std::process::id())
}

/// Checks what every namespace must do. `grows` says which files may grow between a look at their size and their last
/// read. Returns how many symbolic links there were.
pub(crate) async fn check(space: &dyn Namespace, dir: FileId, grows: impl Fn(&FileId) -> bool) -> usize {
    let caller = caller();
    let (mut dirs, mut seen, mut links) = (vec![dir], 0, 0);
    while let Some(dir) = dirs.pop() {
        assert!(dir.is_dir(), "{dir}");
        for absent in ["no such name", "x.txt", "x.json"] {
            let found = space.lookup(&caller, &dir, absent).await;
            assert_eq!(found.unwrap_err().kind, Kind::NotFound, "{dir}/{absent}");
        }
        let refused = space.open(&caller, &known(&dir), OpenMode { read: true, ..OpenMode::default() }).await;
        assert_eq!(refused.unwrap_err().kind, Kind::IsDirectory, "{dir}");
        let entries = space.list(&caller, &dir).await.unwrap();
        let names: HashSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names.len(), entries.len(), "a name of {dir} is listed twice");
        for entry in entries {
            seen += 1;
            let file = space.lookup(&caller, &dir, &entry.name).await.unwrap();
            assert_eq!(file, entry.file, "{dir}/{}", entry.name);
            let (listed, named) =
                (space.attr_of_entry(&file).unwrap(), space.attr_of_name(&caller, &known(&file)).await.unwrap());
            assert_eq!((listed.kind, listed.mode, named.kind), (file.kind(), named.mode, file.kind()), "{file}");
            for name in space.xattr_names(&file).await.unwrap() {
                space.xattr(&file, &name).await.unwrap();
            }
            assert_eq!(space.xattr(&file, "user.none").await.unwrap_err().kind, Kind::NoAttribute, "{file}");
            if file.is_dir() {
                dirs.push(file);
                continue;
            }
            let inside = space.lookup(&caller, &file, "x").await;
            assert_eq!(inside.unwrap_err().kind, Kind::NotDirectory, "{file}");
            let target = space.read_link(&caller, &file).await;
            if file.kind() == FileKind::Symlink {
                links += 1;
                assert_eq!(named.size, target.unwrap().len() as u64, "{file}");
                let opened = space.open(&caller, &known(&file), OpenMode { read: true, ..OpenMode::default() }).await;
                assert_eq!(opened.unwrap_err().kind, Kind::Invalid, "{file}");
                continue;
            }
            assert_eq!(target.unwrap_err().kind, Kind::Invalid, "{file} is no link");
            let open =
                space.open(&caller, &known(&file), OpenMode { read: true, ..OpenMode::default() }).await.unwrap();
            let open = open.file.unwrap();
            let at = At { ino: 7, handle: 7 };
            let whole = open.read(&caller, at, Part { offset: 0, size: usize::MAX }).await.unwrap();
            if !grows(&file) {
                // The size of the problems does not count notes.
                let is_counted = file != FileId::ControlFile(ControlFile::Problems);
                assert_eq!(named.size, if is_counted { whole.len() as u64 } else { 0 }, "{file}");
                let middle = open.read(&caller, at, Part { offset: whole.len() / 2, size: 3 }).await.unwrap();
                assert_eq!(middle, whole.slice(whole.len() / 2..(whole.len() / 2 + 3).min(whole.len())), "{file}");
                let past = open.read(&caller, at, Part { offset: whole.len() + 1, size: 3 }).await.unwrap();
                assert!(past.is_empty(), "{file}");
            }
            open.release().await.unwrap();
            open.closed().await;
        }
    }
    assert!(seen > 5, "only {seen} names were looked at");
    links
}

fn known(file: &FileId) -> Inode {
    Inode { ino: 7, file: file.clone() }
}

#[tokio::test]
async fn every_namespace_lists_what_can_be_looked_up_and_shows_what_is_read() {
    let tree = tree().await;
    let links = check(&tree.records, FileId::Root, |_| false).await;
    assert_eq!(links, 3, "`.primary`, and one in `.tablets` and in `.cells` of the alias");
    // Each read of the status is an operation that the status counts.
    let grows = |file: &FileId| {
        use ControlFile::{Events, Metrics, Status};
        matches!(file, FileId::ControlFile(Status | Metrics | Events))
    };
    assert_eq!(check(&tree.control, FileId::Control, grows).await, 0);
}

/// Waits until so many states of a record are remembered.
async fn remembered(tree: &Tree, path: &str, states: usize) {
    let (cell, path) = (tree.cells.all().remove(0), TopoPath::parse(path).unwrap());
    let wait = async {
        while cell.mirror.past(&path).len() != states {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the change is seen");
}

/// A tree whose records have a past: a changed one, a deleted one, one that is a directory, and one of two lives.
async fn tree_with_past() -> Arc<Tree> {
    let (tree, backend) = tree_over(ConnectOptions::default(), false).await;
    let change = async |path: &str, action: Action| {
        let path = TopoPath::parse(path).unwrap();
        backend.apply(&[Change { path, guard: Guard::Any, action }]).await.unwrap();
    };
    for path in ["keyspaces/commerce/Keyspace", "metadata/both"] {
        change(path, Action::Put("\x42\x01a".into())).await;
    }
    change("metadata/note", Action::Delete).await;
    change("metadata/both/below", Action::Delete).await;
    change("metadata/both/below", Action::Put("again\n".into())).await;
    remembered(&tree, "metadata/both/below", 3).await;
    tree
}

#[tokio::test]
async fn the_past_lists_what_can_be_looked_up_and_shows_what_is_read() {
    let tree = tree_with_past().await;
    assert_eq!(check(&tree.past, FileId::Past(PastFile::Top), |_| false).await, 0);
    let space: &dyn Namespace = &tree.past;
    let at = |path: &str| CellPath { cell: CellName::global(), path: TopoPath::parse(path).unwrap() };
    let names = async |path: &str| {
        let entries = space.list(&caller(), &FileId::Past(PastFile::Dir(at(path)))).await.unwrap();
        entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    };
    let both = names("metadata/both").await;
    assert!(both.len() == 4 && both[0] == "below" && both[3] == ".log", "{both:?}");
    let note = names("metadata/note").await;
    assert!(note.len() == 3 && note[1].ends_with(".deleted"), "{note:?}");
    assert_eq!(names("keyspaces/commerce/Keyspace").await.len(), 7, "two states in three forms");
    assert_eq!(names("metadata").await, ["both", "note"], "a deleted record is listed");
}

#[tokio::test]
async fn nothing_can_be_changed_in_the_past() {
    let tree = tree_with_past().await;
    let caller = caller();
    let mut dir = super::ROOT;
    for name in [".topofs", "history", "global", "metadata", "note"] {
        dir = tree.lookup(&caller, dir, OsStr::new(name)).await.unwrap().ino;
    }
    let existing = tree.lookup(&caller, dir, OsStr::new(".log")).await.unwrap().ino;
    assert_eq!(changes(&tree, dir, existing, ".log").await, [Kind::ReadOnly; 7]);
}

/// Makes a tree beside the live one.
async fn beside(tree: &Tree, caller: &Caller, kind: SpaceKind) -> (u64, FileId) {
    let control = tree.lookup(caller, super::ROOT, OsStr::new(".topofs")).await.unwrap().ino;
    let kinds = tree.lookup(caller, control, OsStr::new(kind.name())).await.unwrap().ino;
    tree.mkdir(caller, kinds, OsStr::new("mine")).await.unwrap();
    let root = tree.lookup(caller, kinds, OsStr::new("mine")).await.unwrap().ino;
    (root, tree.kernel.inodes.file(root).unwrap())
}

#[tokio::test]
async fn so_does_every_tree_beside_the_live_one() {
    let tree = tree().await;
    for kind in SpaceKind::ALL {
        let (_, root) = beside(&tree, &caller(), kind).await;
        let FileId::Inside(id, _) = &root else { panic!("{root}") };
        let space = tree.spaces.get(id).unwrap();
        assert_eq!(check(&*space, root.clone(), |_| false).await, 3, "{root}");
    }
}

#[tokio::test]
async fn a_snapshot_cannot_be_changed_and_a_stage_only_by_its_owner() {
    let tree = tree().await;
    let (caller, stranger) = (caller(), Caller::new(7, 7, std::process::id()));
    let path = async |caller: &Caller, root: u64, names: &str| {
        let mut ino = root;
        for name in names.split('/') {
            ino = tree.lookup(caller, ino, OsStr::new(name)).await?.ino;
        }
        Ok::<u64, crate::error::Error>(ino)
    };
    let (snapshot, _) = beside(&tree, &caller, SpaceKind::At).await;
    let dir = path(&caller, snapshot, "global/metadata").await.unwrap();
    let note = path(&caller, dir, "note").await.unwrap();
    assert_eq!(changes(&tree, dir, note, "note").await, [Kind::ReadOnly; 7]);
    assert!(path(&stranger, snapshot, "global/metadata/note").await.is_ok(), "whoever may read may read it");
    let (stage, _) = beside(&tree, &caller, SpaceKind::Stage).await;
    assert_eq!(tree.getattr(&caller, stage).await.unwrap().attr.mode, 0o700);
    assert_eq!(path(&stranger, stage, "global").await.unwrap_err().kind, Kind::Denied);
    let dir = path(&caller, stage, "global/metadata").await.unwrap();
    let note = path(&caller, dir, "note").await.unwrap();
    let (write, read) =
        (OpenMode { write: true, ..OpenMode::default() }, OpenMode { read: true, ..OpenMode::default() });
    for mode in [write, read] {
        assert_eq!(tree.open(&stranger, note, mode).await.unwrap_err().kind, Kind::Denied);
        tree.open(&caller, note, mode).await.unwrap();
    }
    // Nobody else removes it, and what is left of it is gone.
    let stages = path(&caller, super::ROOT, ".topofs/stage").await.unwrap();
    assert_eq!(tree.rmdir(&stranger, stages, OsStr::new("mine")).await.unwrap_err().kind, Kind::NotPermitted);
    tree.rmdir(&caller, stages, OsStr::new("mine")).await.unwrap();
    assert_eq!(tree.getattr(&caller, note).await.unwrap_err().kind, Kind::NotFound);
    let (again, _) = beside(&tree, &caller, SpaceKind::Stage).await;
    assert_ne!(again, stage, "a tree of the same name is another one");
}

/// Tries every change to names and files, and returns how each is refused.
async fn changes(tree: &Tree, dir: u64, existing: u64, name: &str) -> Vec<Kind> {
    let (caller, name, new) = (caller(), OsStr::new(name), OsStr::new("new"));
    let write = OpenMode { write: true, ..OpenMode::default() };
    let outcomes = [
        tree.create(&caller, dir, new, 0o600, write).await.map(drop),
        tree.mkdir(&caller, dir, new).await.map(drop),
        tree.unlink(&caller, dir, name).await,
        tree.rmdir(&caller, dir, name).await,
        tree.rename(&caller, (dir, name), (dir, new), false).await,
        tree.setattr(&caller, existing, None, SetAttr { size: Some(0), ..SetAttr::default() }).await.map(drop),
        tree.open(&caller, existing, write).await.map(drop),
    ];
    outcomes.into_iter().map(|outcome| outcome.expect_err("it is refused").kind).collect()
}

#[tokio::test]
async fn read_only_means_erofs_in_every_namespace() {
    let tree = tree_with(true).await;
    let caller = caller();
    let lookup = async |dir, name| tree.lookup(&caller, dir, OsStr::new(name)).await.unwrap().ino;
    let global = lookup(super::ROOT, "global").await;
    let (metadata, control) = (lookup(global, "metadata").await, lookup(super::ROOT, ".topofs").await);
    let (note, status) = (lookup(metadata, "note").await, lookup(control, "control").await);
    let aliases = lookup(lookup(global, "cells_aliases").await, "all").await;
    let cells = lookup(aliases, ".cells").await;
    let link = lookup(cells, "zone1").await;
    let places = [(metadata, note, "note"), (control, status, "control"), (cells, link, "zone1")];
    for (dir, existing, name) in places {
        assert_eq!(changes(&tree, dir, existing, name).await, [Kind::ReadOnly; 7], "{name}");
    }
}

/// Whether every change to a name is refused as not permitted.
async fn refuses_changes(space: &dyn Namespace, name: Name<'_>) {
    let caller = caller();
    let write = OpenMode { write: true, ..OpenMode::default() };
    let outcomes = [
        space.create(&caller, name, 0o600, write).await.map(drop),
        space.mkdir(&caller, name).await.map(drop),
        space.symlink(&caller, name).await.map(drop),
        space.unlink(&caller, name).await,
        space.rmdir(&caller, name).await,
        space.rename(&caller, name, name, false).await,
    ];
    assert!(outcomes.into_iter().all(|outcome| outcome.is_err_and(|error| error.kind == Kind::NotPermitted)));
}

#[tokio::test]
async fn nothing_can_be_made_or_removed_in_topofs() {
    let tree = tree().await;
    let space: &dyn Namespace = &tree.control;
    refuses_changes(space, Name { dir: &FileId::Control, name: "status" }).await;
    let write = OpenMode { write: true, ..OpenMode::default() };
    let opened = space.open(&caller(), &known(&FileId::ControlFile(ControlFile::Status)), write).await;
    assert_eq!(opened.unwrap_err().kind, Kind::NotPermitted);
}

#[tokio::test]
async fn nothing_can_be_made_or_removed_among_links() {
    let tree = tree().await;
    let space: &dyn Namespace = &tree.records;
    let at = |path: &str| CellPath { cell: CellName::global(), path: TopoPath::parse(path).unwrap() };
    let shard = at("keyspaces/commerce/shards/0");
    refuses_changes(space, Name { dir: &FileId::Links(shard.clone(), View::Tablets), name: "zone1-0000000100" }).await;
    let (dir, caller) = (FileId::Dir(shard), caller());
    for name in [".tablets", ".primary", ".cells"] {
        let (here, record) = (Name { dir: &dir, name }, Name { dir: &dir, name: "Shard.txt" });
        let write = OpenMode { write: true, ..OpenMode::default() };
        let outcomes = [
            space.create(&caller, here, 0o600, write).await.map(drop),
            space.rename(&caller, here, record, false).await,
            space.rename(&caller, record, here, false).await,
        ];
        assert!(outcomes.into_iter().all(|outcome| outcome.is_err_and(|error| error.kind == Kind::NotPermitted)));
        let (unlinked, removed) = (space.unlink(&caller, here).await, space.rmdir(&caller, here).await);
        let expected = match name {
            ".tablets" => (Kind::IsDirectory, Kind::NotPermitted),
            ".primary" => (Kind::NotPermitted, Kind::NotDirectory),
            _ => (Kind::NotFound, Kind::NotFound),
        };
        assert_eq!((unlinked.unwrap_err().kind, removed.unwrap_err().kind), expected, "{name}");
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_understood_is_explained() {
    let tree = tree().await;
    let (caller, file) = (caller(), FileId::ControlFile(ControlFile::Control));
    let space: &dyn Namespace = &tree.control;
    let write = OpenMode { write: true, ..OpenMode::default() };
    let open = space.open(&caller, &known(&file), write).await.unwrap().file.unwrap();
    for (command, reason) in [("sing a song", "unknown command"), ("resync nowhere", "no cell nowhere")] {
        let refused = open.write(At { ino: 7, handle: 7 }, 0, command.as_bytes()).err().unwrap();
        assert_eq!(refused.kind, Kind::Invalid);
        let lines = String::from_utf8(tree.journal.errors.lines().to_vec()).unwrap();
        assert!(lines.lines().last().unwrap().contains(reason), "{lines}");
    }
}
