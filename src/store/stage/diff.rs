//! Shows changes of records as changes of files: of their text form if that tells everything, else of the stored bytes.
//! Must never leave a change out.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::git::{self, FileChange};
use crate::mirror::Snapshot;
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::{Form, Records};

/// Longest time for all differences together. After it, a difference is still right, but longer than it had to be.
const PATIENCE: Duration = Duration::from_secs(1);

/// What happens to one record.
#[derive(Debug, Clone)]
pub(super) struct RecordChange {
    /// Which.
    pub path: TopoPath,
    /// The stored bytes before.
    pub before: Option<Bytes>,
    /// The stored bytes afterwards.
    pub after: Option<Bytes>,
}

/// What happens to the records of one cell.
#[derive(Debug, Clone)]
pub(super) struct CellChange {
    /// Which.
    pub cell: CellName,
    /// All records before: which files there are.
    pub before: Snapshot,
    /// All records afterwards.
    pub after: Snapshot,
    /// The changed records, in order.
    pub changes: Vec<RecordChange>,
}

impl CellChange {
    /// The same, from the end to the beginning.
    pub fn undone(self) -> Self {
        let undone = |change: RecordChange| RecordChange { before: change.after, after: change.before, ..change };
        let changes = self.changes.into_iter().map(undone).collect();
        Self { cell: self.cell, before: self.after, after: self.before, changes }
    }
}

/// The patch for the files of a tree. It begins at the root of the tree.
pub(super) fn patch(records: &Records, cells: &[CellChange]) -> Bytes {
    let deadline = Instant::now() + PATIENCE;
    let (mut patch, mut last) = (String::new(), String::new());
    for cell in cells {
        for change in &cell.changes {
            let shown = Shown { records, cell, change, deadline };
            shown.patch(&mut patch, &mut last);
        }
    }
    (patch + &last).into()
}

/// One change, and what is needed to show it.
struct Shown<'a> {
    records: &'a Records,
    cell: &'a CellChange,
    change: &'a RecordChange,
    deadline: Instant,
}

impl Shown<'_> {
    /// Adds the patch of the record. What can be made only after everything else is removed goes to the end.
    fn patch(&self, patch: &mut String, last: &mut String) {
        let RecordChange { before, after, .. } = self.change;
        let form = match self.texts() {
            Some(texts) if self.tells_all(&texts) => Form::Text,
            Some([old, new]) => {
                *patch += &self.comment(old.as_deref().unwrap_or_default(), new.as_deref().unwrap_or_default());
                Form::Raw
            }
            None => Form::Raw,
        };
        let content = |value: &Option<Bytes>| {
            let value = value.as_ref()?;
            self.records.show(&self.cell.cell, &self.change.path, value, form).ok()
        };
        let (before, after) = (content(before), content(after));
        let [from, to] = [&self.cell.before, &self.cell.after].map(|snapshot| self.name(snapshot, form));
        let file = |name, before: Option<&Bytes>, after: Option<&Bytes>| {
            let change = FileChange { name, before: before.map(|b| &**b), after: after.map(|b| &**b) };
            change.patch(self.deadline)
        };
        match (&before, &after) {
            (Some(_), Some(_)) if from != to => {
                // A directory of the record's name comes or goes with other records.
                *patch += &file(&from, before.as_ref(), None);
                *last += &file(&to, None, after.as_ref());
            }
            (Some(_), _) => *patch += &file(&from, before.as_ref(), after.as_ref()),
            (None, _) => *patch += &file(&to, None, after.as_ref()),
        }
    }

    /// The text forms before and afterwards; `None` if there are none, or if the tree does not show one of them.
    fn texts(&self) -> Option<[Option<Bytes>; 2]> {
        let RecordChange { path, before, after } = self.change;
        self.records.message(&self.cell.cell, path)?;
        let text = |value: &Option<Bytes>, snapshot: &Snapshot| match value {
            None => Some(None),
            Some(_) if is_hidden(snapshot, path) => None,
            Some(value) => self.records.show(&self.cell.cell, path, value, Form::Text).ok().map(Some),
        };
        Some([text(before, &self.cell.before)?, text(after, &self.cell.after)?])
    }

    /// Whether who applies the patch of the text forms has the same record afterwards, also in what is not shown.
    fn tells_all(&self, [old, new]: &[Option<Bytes>; 2]) -> bool {
        let RecordChange { path, before, after } = self.change;
        let cell = &self.cell.cell;
        let (Some(after), Some(text)) = (after, new) else { return true };
        if old == new {
            return false;
        }
        let stored = match self.records.store(cell, path, Form::Text, text, before.as_ref()) {
            Ok(stored) => stored.or_else(|| before.clone()),
            Err(_) => None,
        };
        stored.is_some_and(|stored| self.records.is_same(cell, path, &stored, after))
    }

    /// What a patch of the stored bytes means, in lines that no tool takes for a part of a patch.
    fn comment(&self, old: &[u8], new: &[u8]) -> String {
        let (cell, path) = (&self.cell.cell, &self.change.path);
        let [old, new] = [old, new].map(String::from_utf8_lossy);
        let hunks = git::hunks(&old, &new, self.deadline);
        let is_same = match (&self.change.before, &self.change.after) {
            (Some(before), Some(after)) => self.records.is_same(cell, path, before, after),
            _ => false,
        };
        let why = match (hunks.is_empty(), is_same) {
            (_, true) => "the same message in other bytes",
            (true, _) => "the text form shows no difference: it has no fields that this build does not know",
            (false, _) => {
                "the text form shows a part of the difference: it has no fields that this build does not know"
            }
        };
        let name = format!("{:?}", CellPath::new(cell, path).to_string());
        let lines = hunks.lines().fold(String::new(), |lines, line| lines + "#     " + line + "\n");
        format!("# {name}: {why}\n{lines}")
    }

    /// The name of a form of the record.
    fn name(&self, snapshot: &Snapshot, form: Form) -> String {
        let (dir, name) = form.place(&self.change.path, snapshot.has_children(&self.change.path));
        let dir = CellPath::new(&self.cell.cell, &dir.unwrap_or_else(TopoPath::root));
        format!("{dir}/{name}")
    }
}

/// Whether another key has the name of the text form of a record: the tree shows that key instead.
fn is_hidden(snapshot: &Snapshot, path: &TopoPath) -> bool {
    let (dir, name) = Form::Text.place(path, snapshot.has_children(path));
    let other = dir.and_then(|dir| dir.join(&name).ok());
    other.is_some_and(|other| snapshot.records.contains_key(&other) || snapshot.has_children(&other))
}
