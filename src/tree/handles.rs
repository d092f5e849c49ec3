//! Owns the table of what is open. Must never know a kind of open file.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::namespace::{At, OpenFile};
use crate::error::{Error, Kind, Result};

/// Files that may be open at once, in all and for one user. Each costs memory here, but none of the daemon's
/// descriptors.
const IN_ALL: usize = 131_072;
const PER_USER: usize = 32_768;

/// What is open.
#[derive(Debug, Default)]
pub(crate) struct Handles(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    open: HashMap<u64, Handle>,
    by_inode: HashMap<u64, BTreeSet<u64>>,
    /// Those that are drafts: every opening looks for them.
    drafts: HashMap<u64, BTreeSet<u64>>,
    by_user: HashMap<u32, usize>,
}

#[derive(Debug)]
struct Handle {
    ino: u64,
    uid: u32,
    file: Arc<dyn OpenFile>,
}

fn bad_handle() -> Error {
    Error::new(Kind::BadDescriptor, "no such open file")
}

/// Casts an open file to a kind, if it is of that kind.
pub(crate) fn as_kind<T: OpenFile>(file: Arc<dyn OpenFile>) -> Option<Arc<T>> {
    let file: Arc<dyn Any + Send + Sync> = file;
    file.downcast().ok()
}

impl Table {
    fn note_draft(&mut self, number: u64) {
        if let Some(Handle { ino, file, .. }) = self.open.get(&number)
            && file.is_draft()
        {
            self.drafts.entry(*ino).or_default().insert(number);
        }
    }

    fn of<'a, T: OpenFile>(&'a self, numbers: Option<&'a BTreeSet<u64>>) -> impl Iterator<Item = (u64, Arc<T>)> {
        let open = numbers.into_iter().flatten();
        open.filter_map(|number| Some((*number, as_kind(self.open.get(number)?.file.clone())?)))
    }
}

impl Handles {
    /// Adds what a user has opened. Fails with EMFILE if too much is open.
    pub fn add(&self, uid: u32, ino: u64, file: Arc<dyn OpenFile>) -> Result<u64> {
        let mut table = self.0.lock();
        let own = table.by_user.get(&uid).copied().unwrap_or(0);
        if table.open.len() >= IN_ALL || own >= PER_USER {
            let reason = format!("{own} files are open for this user, {} for all", table.open.len());
            return Err(Error::new(Kind::TooManyOpen, reason));
        }
        table.last += 1;
        let number = table.last;
        table.by_user.insert(uid, own + 1);
        table.open.insert(number, Handle { ino, uid, file });
        table.by_inode.entry(ino).or_default().insert(number);
        table.note_draft(number);
        Ok(number)
    }

    /// Whether a file is open.
    pub fn is_open(&self, ino: u64) -> bool {
        self.0.lock().by_inode.contains_key(&ino)
    }

    /// The open file of a handle.
    pub fn get(&self, number: u64) -> Result<Arc<dyn OpenFile>> {
        self.0.lock().open.get(&number).map(|handle| handle.file.clone()).ok_or_else(bad_handle)
    }

    /// The open file of a handle, and where it is open.
    pub fn get_at(&self, number: u64) -> Result<(At, Arc<dyn OpenFile>)> {
        let table = self.0.lock();
        let Handle { ino, file, .. } = table.open.get(&number).ok_or_else(bad_handle)?;
        Ok((At { ino: *ino, handle: number }, file.clone()))
    }

    /// The inode of a handle.
    pub fn inode(&self, number: u64) -> Result<u64> {
        self.0.lock().open.get(&number).map(|handle| handle.ino).ok_or_else(bad_handle)
    }

    /// Removes a handle, and returns its open file.
    pub fn remove(&self, number: u64) -> Result<Arc<dyn OpenFile>> {
        let mut table = self.0.lock();
        let Handle { ino, uid, file } = table.open.remove(&number).ok_or_else(bad_handle)?;
        match table.by_user.get_mut(&uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(table.by_user.remove(&uid)),
        }
        let Table { by_inode, drafts, .. } = &mut *table;
        for known in [by_inode, drafts] {
            if let Some(numbers) = known.get_mut(&ino) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    known.remove(&ino);
                }
            }
        }
        Ok(file)
    }

    /// The drafts of an inode, oldest first.
    pub fn drafts<T: OpenFile>(&self, ino: u64) -> Vec<(u64, Arc<T>)> {
        let table = self.0.lock();
        table.of(table.drafts.get(&ino)).collect()
    }

    /// Whether an inode has drafts.
    pub fn has_drafts(&self, ino: u64) -> bool {
        self.0.lock().drafts.contains_key(&ino)
    }

    /// The open files of an inode that are of one kind, oldest first.
    pub fn of_inode<T: OpenFile>(&self, ino: u64) -> Vec<(u64, Arc<T>)> {
        let table = self.0.lock();
        table.of(table.by_inode.get(&ino)).collect()
    }

    /// Puts another open file behind a handle. Returns the one before; `None` if the handle is no longer open.
    pub fn replace(&self, number: u64, file: Arc<dyn OpenFile>) -> Option<Arc<dyn OpenFile>> {
        let mut table = self.0.lock();
        let before = std::mem::replace(&mut table.open.get_mut(&number)?.file, file);
        table.note_draft(number);
        Some(before)
    }

    /// How many files are open.
    pub fn count(&self) -> usize {
        self.0.lock().open.len()
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::tree::Caller;
    use crate::tree::namespace::Part;

    #[derive(Debug)]
    struct Nothing;

    #[derive(Debug)]
    struct Draft(u64);

    #[async_trait]
    impl OpenFile for Nothing {
        async fn read(&self, _: &Caller, _: At, _: Part) -> Result<Bytes> {
            Ok(Bytes::new())
        }
    }

    #[async_trait]
    impl OpenFile for Draft {
        async fn read(&self, _: &Caller, _: At, _: Part) -> Result<Bytes> {
            Ok(Bytes::new())
        }
        fn is_draft(&self) -> bool {
            true
        }
    }

    #[test]
    fn one_user_cannot_open_all_files_that_may_be_open() {
        let handles = Handles::default();
        let open = |uid| handles.add(uid, 1, Arc::new(Nothing));
        let first = open(1).unwrap();
        (1..PER_USER).for_each(|_| assert!(open(1).is_ok()));
        assert_eq!(open(1).unwrap_err().kind, Kind::TooManyOpen);
        open(2).unwrap();
        handles.remove(first).unwrap();
        open(1).unwrap();
        assert_eq!(open(1).unwrap_err().kind, Kind::TooManyOpen);
        // All users together.
        (3..7).for_each(|uid| (0..PER_USER).for_each(|_| drop(open(uid))));
        assert_eq!(handles.count(), IN_ALL);
        assert_eq!(open(9).unwrap_err().kind, Kind::TooManyOpen);
    }

    #[test]
    fn drafts_are_found_by_their_inode_oldest_first_and_whatever_else_is_open() {
        let handles = Handles::default();
        let other = handles.add(0, 1, Arc::new(Nothing)).unwrap();
        let (first, second) =
            (handles.add(0, 1, Arc::new(Draft(1))).unwrap(), handles.add(0, 1, Arc::new(Draft(2))).unwrap());
        handles.add(0, 2, Arc::new(Draft(3))).unwrap();
        let drafts =
            || handles.drafts::<Draft>(1).into_iter().map(|(number, draft)| (number, draft.0)).collect::<Vec<_>>();
        assert_eq!(drafts(), [(first, 1), (second, 2)]);
        assert_eq!(handles.of_inode::<Nothing>(1).len(), 1);
        // What was open as another kind becomes a draft.
        assert!(handles.replace(other, Arc::new(Draft(4))).is_some());
        assert_eq!(drafts(), [(other, 4), (first, 1), (second, 2)]);
        for number in [first, second, other] {
            assert!(handles.has_drafts(1));
            handles.remove(number).unwrap();
        }
        assert!(!handles.has_drafts(1) && !handles.is_open(1) && handles.is_open(2));
        assert!(handles.replace(first, Arc::new(Nothing)).is_none(), "it is no longer open");
        assert_eq!(handles.get(first).unwrap_err().kind, Kind::BadDescriptor);
    }

    #[test]
    fn a_number_stands_for_one_opening_and_never_for_a_later_one() {
        let handles = Handles::default();
        let first = handles.add(1, 5, Arc::new(Nothing)).unwrap();
        let second = handles.add(1, 5, Arc::new(Nothing)).unwrap();
        handles.remove(first).unwrap();
        assert!(handles.is_open(5) && handles.inode(second).unwrap() == 5);
        let third = handles.add(1, 6, Arc::new(Nothing)).unwrap();
        assert!(third != first && third != second);
        for gone in [first, third + 1] {
            let kinds = [handles.get(gone).err(), handles.inode(gone).err(), handles.remove(gone).err()];
            assert!(kinds.into_iter().all(|error| error.unwrap().kind == Kind::BadDescriptor));
        }
        handles.remove(second).unwrap();
        assert!(!handles.is_open(5) && handles.is_open(6) && handles.count() == 1);
        handles.remove(third).unwrap();
        let table = handles.0.lock();
        assert!(table.by_inode.is_empty() && table.by_user.is_empty() && table.drafts.is_empty());
    }
}
