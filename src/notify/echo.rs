//! What the helper sees of the mount: the one call that it is about to make, and the directories on the way. Must never
//! change or store anything.
//!
//! The kernel raises events only for calls that local processes make. So for every remote change the helper makes the
//! matching call through the mount. This namespace answers that call from the announcement alone. By the time of the
//! call the new state is published, so whoever wakes up reads it.
//!
//! A helper's call may hang in the kernel; then another helper continues. If the first helper asks again later, another
//! call is being made: it finds nothing and changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};
use crate::mirror::Record;
use crate::name::{CellPath, TopoPath};
use crate::tree::caller::Caller;
use crate::tree::file::{Attr, Caching, DirEntry, FileId, FileKind, OpenMode, SetAttr};
use crate::tree::kernel::Kernel;
use crate::tree::kernel::outbox::{Announcement, Happened};
use crate::tree::namespace::{Created, Inode, Keep, Name, Namespace, Open, OpenFile, Part};
use crate::tree::records::RecordFiles;
use crate::tree::{Helper, Tree};

/// The most helpers: one makes calls, the others hang.
pub(super) const HELPERS: usize = 4;

/// The namespace of the helpers.
#[derive(Debug)]
pub(super) struct Echo {
    records: Arc<RecordFiles>,
    kernel: Arc<Kernel>,
    /// The pids of the helpers; 0 is none.
    helpers: [AtomicU32; HELPERS],
    now: Mutex<Option<Call>>,
    calls: AtomicU64,
}

/// The call that is being made.
#[derive(Debug)]
struct Call {
    number: u64,
    announcement: Announcement,
    attr: Attr,
    /// What is created exists, what is deleted is gone.
    done: bool,
}

impl Call {
    fn is_in(&self, dir: &FileId) -> bool {
        self.announcement.parent() == *dir
    }
}

impl Echo {
    /// What helpers see of a tree from now on.
    pub fn new(tree: &Tree) -> Arc<Self> {
        let echo = Arc::new(Self {
            records: tree.records().clone(),
            kernel: tree.kernel().clone(),
            helpers: Default::default(),
            now: Mutex::default(),
            calls: AtomicU64::new(0),
        });
        tree.answer_helpers(echo.clone());
        echo
    }

    /// A process is a helper from now on. False if there are as many as there may be.
    pub fn add_helper(&self, process: u32) -> bool {
        let free =
            |helper: &&AtomicU32| helper.compare_exchange(0, process, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        self.helpers.iter().find(free).is_some()
    }

    /// A helper has ended, but its pid is not free yet: the next process with that pid is a stranger.
    pub fn remove_helper(&self, process: u32) {
        for helper in &self.helpers {
            let _ = helper.compare_exchange(process, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn is_helper(&self, thread: u32) -> bool {
        thread != 0 && self.helpers.iter().any(|helper| helper.load(Ordering::Relaxed) == thread)
    }

    /// Prepares the answers for one call. Returns the number of the call, and the size of the file; `None` if nobody
    /// could notice the call.
    pub fn begin(&self, announcement: &Announcement) -> Option<(u64, u64)> {
        let inodes = &self.kernel.inodes;
        if inodes.known(&announcement.file).is_none() && inodes.known(&announcement.parent()).is_none() {
            return None;
        }
        let records = &self.records;
        let gone = || records.defaults.file(0, SystemTime::now());
        // Looks only at what is loaded: nothing may wait here.
        let attr = match announcement.happened {
            // A directory that exists again must not become a dead inode: callers on their way through it would not
            // arrive.
            _ if self.exists_again(announcement) => return None,
            Happened::DirMade | Happened::DirRemoved => records.defaults.dir(),
            Happened::InvalidateOnly => return None,
            // Where a link points is known without its record.
            Happened::Linked | Happened::Deleted if announcement.file.kind() == FileKind::Symlink => {
                records.attr_now(&announcement.file).ok()?
            }
            Happened::Deleted | Happened::Linked => gone(),
            // If the file is gone again meanwhile, the next announcement says so.
            Happened::Changed => records.attr_now(&announcement.file).ok()?,
            Happened::Created => records.attr_now(&announcement.file).unwrap_or_else(|_| gone()),
        };
        let (size, number) = (attr.size, self.calls.fetch_add(1, Ordering::Relaxed));
        *self.now.lock() = Some(Call { number, announcement: announcement.clone(), attr, done: false });
        Some((number, size))
    }

    /// Whether the end of a directory is to be announced that is there again.
    fn exists_again(&self, announcement: &Announcement) -> bool {
        announcement.happened == Happened::DirRemoved && self.records.is_dir_now(&announcement.file)
    }

    /// A call has been made, or has failed.
    pub fn end(&self, number: u64) {
        // Another may have begun while this one hung.
        self.now.lock().take_if(|now| now.number == number);
    }

    /// The attributes that answer a call. The kernel takes them over, so a record that has changed again since the call
    /// was prepared is shown as it is now.
    fn attr_of(&self, Call { announcement, attr, .. }: &Call) -> Attr {
        let newer = attr.record.as_ref().and_then(|_| self.records.attr_now(&announcement.file).ok());
        newer.unwrap_or_else(|| attr.clone())
    }

    /// Answers the call that creates or removes a name.
    fn done(&self, at: Name<'_>, happened: Happened) -> Result<(FileId, Attr)> {
        let mut now = self.now.lock();
        let now = now.as_mut().ok_or_else(Error::not_found)?;
        if now.announcement.happened != happened || now.announcement.name != at.name || !now.is_in(at.dir) {
            return Err(Error::new(Kind::NotPermitted, "this is not what is to be announced"));
        }
        now.done = true;
        let file = now.announcement.file.clone();
        match happened {
            Happened::Created | Happened::Linked | Happened::DirMade => Ok((file, self.attr_of(now))),
            Happened::DirRemoved => {
                self.kernel.inodes.retire(&file);
                Ok((file, now.attr.clone()))
            }
            Happened::Changed | Happened::Deleted | Happened::InvalidateOnly => Ok((file, now.attr.clone())),
        }
    }

    fn attr_of_known(&self, file: &FileId) -> Result<Attr> {
        match self.now.lock().as_ref() {
            Some(now) if now.announcement.file == *file => Ok(self.attr_of(now)),
            _ if file.is_dir() => Ok(self.records.defaults.dir()),
            _ => Err(Error::not_found()),
        }
    }
}

/// A file that a helper opens. The helper can do nothing with it.
fn opened() -> Open {
    Open { file: None, caching: Caching { cached: false, kept: true, flushed: false } }
}

impl Helper for Echo {
    fn asks(&self, caller: &Caller) -> bool {
        self.is_helper(caller.thread)
    }
}

#[async_trait]
impl Namespace for Echo {
    async fn lookup(&self, _: &Caller, dir: &FileId, name: &str) -> Result<FileId> {
        let now = self.now.lock();
        let now = now.as_ref().ok_or_else(Error::not_found)?;
        if now.is_in(dir) && now.announcement.name == name {
            // It exists again since the call was prepared. The kernel must not hold the directory above while it waits
            // for whoever works in this one: he may wait for the directory above.
            if self.exists_again(&now.announcement) {
                return Err(Error::not_found());
            }
            let creates = matches!(now.announcement.happened, Happened::Created | Happened::Linked | Happened::DirMade);
            return if creates == now.done { Ok(now.announcement.file.clone()) } else { Err(Error::not_found()) };
        }
        // A directory on the way, whether or not it is still there.
        let parent = now.announcement.parent();
        match (dir, &now.announcement.dir) {
            (FileId::Dir(dir), Some(goal)) if dir == goal => match parent {
                FileId::Links(_, view) if view.name() == name => Ok(parent),
                _ => Err(Error::not_found()),
            },
            (FileId::Root, Some(CellPath { cell, .. })) if cell.as_str() == name => {
                Ok(FileId::Dir(CellPath { cell: cell.clone(), path: TopoPath::root() }))
            }
            (FileId::Dir(dir), Some(goal)) => {
                let child = dir.join(name)?;
                let is_on_the_way = child.cell == goal.cell && goal.path.below(&child.path).is_some();
                if is_on_the_way { Ok(FileId::Dir(child)) } else { Err(Error::not_found()) }
            }
            _ => Err(Error::not_found()),
        }
    }

    async fn attr(&self, _: &Caller, inode: &Inode) -> Result<Attr> {
        self.attr_of_known(&inode.file)
    }

    fn attr_of_entry(&self, file: &FileId) -> Result<Attr> {
        self.attr_of_known(file)
    }

    /// Changes nothing.
    async fn set_attr(&self, _: &Caller, _: &Inode, _: Option<Arc<dyn OpenFile>>, _: &SetAttr) -> Result<()> {
        Ok(())
    }

    fn keep(&self, _: &FileId) -> Keep {
        Keep::Never
    }

    fn is_current(&self, file: &FileId, record: &Record) -> bool {
        self.records.is_current(file, record)
    }

    async fn list(&self, _: &Caller, _: &FileId) -> Result<Vec<DirEntry>> {
        Err(Error::not_found())
    }

    async fn open(&self, _: &Caller, _: &Inode, _: OpenMode) -> Result<Open> {
        Ok(opened())
    }

    async fn read_unopened(&self, _: &Caller, _: &Inode, _: Part, _: bool) -> Result<Bytes> {
        Err(Error::not_found())
    }

    async fn create(&self, _: &Caller, at: Name<'_>, _: u32, _: OpenMode) -> Result<Created> {
        self.done(at, Happened::Created).map(|(file, attr)| Created { file, attr, open: opened() })
    }

    async fn mkdir(&self, _: &Caller, at: Name<'_>) -> Result<(FileId, Attr)> {
        self.done(at, Happened::DirMade)
    }

    async fn symlink(&self, _: &Caller, at: Name<'_>) -> Result<(FileId, Attr)> {
        self.done(at, Happened::Linked)
    }

    async fn rmdir(&self, _: &Caller, at: Name<'_>) -> Result<()> {
        self.done(at, Happened::DirRemoved).map(drop)
    }

    async fn unlink(&self, _: &Caller, at: Name<'_>) -> Result<()> {
        self.done(at, Happened::Deleted).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::CellName;
    use crate::record::Form;
    use crate::topology::links::{Link, View};
    use crate::tree::conformance;

    fn at(path: &str) -> CellPath {
        CellPath { cell: CellName::global(), path: TopoPath::parse(path).unwrap() }
    }

    /// An announcement about the raw form of a record.
    fn announcement(path: &str, happened: Happened) -> Announcement {
        let record = at(path);
        let (dir, name) = (record.parent(), record.path.name().to_owned());
        Announcement { happened, file: FileId::Record(record, Form::Raw), dir, name }
    }

    async fn look_up(echo: &Echo, path: &str) -> Result<FileId> {
        let caller = Caller::new(0, 0, 7);
        let mut file = FileId::Root;
        for name in ["global"].into_iter().chain(path.split('/')) {
            file = echo.lookup(&caller, &file, name).await?;
            let inode = Inode { ino: 9, file: file.clone() };
            let attr = echo.attr_of_name(&caller, &inode).await?;
            assert_eq!(attr.kind, file.kind(), "{file}");
            assert!(matches!(echo.keep(&file), Keep::Never), "the kernel keeps nothing of these replies");
        }
        Ok(file)
    }

    #[tokio::test]
    async fn a_link_is_made_and_removed_where_it_is_and_nowhere_else() {
        let tree = conformance::tree().await;
        let (echo, caller) = (Echo::new(&tree), Caller::new(0, 0, 7));
        let shard = at("keyspaces/commerce/shards/0");
        let links = FileId::Links(shard.clone(), View::Tablets);
        let to = CellPath { cell: CellName::new("zone1").unwrap(), path: TopoPath::parse("tablets/zone1-7").unwrap() };
        let link = Link { of: shard.clone(), view: View::Tablets, to };
        let linked = Announcement::of_link(link.clone(), Happened::Linked);
        assert_eq!(linked.path(), "global/keyspaces/commerce/shards/0/.tablets/zone1-7");
        assert!(echo.begin(&linked).is_none(), "nobody could notice");
        tree.kernel().inodes.count_lookup(&links);
        let (_, size) = echo.begin(&linked).unwrap();
        assert_eq!(size, "../../../../../../zone1/tablets/zone1-7".len() as u64);
        assert_eq!(look_up(&echo, "keyspaces/commerce/shards/0/.tablets").await.unwrap(), links);
        assert!(look_up(&echo, "keyspaces/commerce/shards/0/.cells").await.is_err());
        assert!(echo.lookup(&caller, &links, "zone1-7").await.is_err(), "not before it is made");
        let name = Name { dir: &links, name: "zone1-7" };
        let elsewhere = FileId::Dir(shard.clone());
        assert!(echo.symlink(&caller, Name { dir: &elsewhere, name: "zone1-7" }).await.is_err());
        let (made, attr) = echo.symlink(&caller, name).await.unwrap();
        assert_eq!((made, attr.kind, attr.size), (FileId::Link(link.clone()), FileKind::Symlink, size));
        echo.begin(&Announcement::of_link(link.clone(), Happened::Deleted)).unwrap();
        // The kernel would take an inode of another kind for a broken one.
        let found = echo.lookup(&caller, &links, "zone1-7").await.unwrap();
        assert_eq!(echo.attr(&caller, &Inode { ino: 9, file: found }).await.unwrap().kind, FileKind::Symlink);
        echo.unlink(&caller, name).await.unwrap();
        let primary = Link { view: View::Primary, ..link };
        tree.kernel().inodes.count_lookup(&elsewhere);
        echo.begin(&Announcement::of_link(primary.clone(), Happened::Linked)).unwrap();
        let name = Name { dir: &elsewhere, name: ".primary" };
        assert_eq!(echo.symlink(&caller, name).await.unwrap().0, FileId::Link(primary));
    }

    #[tokio::test]
    async fn a_process_is_a_helper_until_it_is_gone() {
        let tree = conformance::tree().await;
        let echo = Echo::new(&tree);
        assert!(echo.add_helper(6) && echo.add_helper(7));
        let is_helper = |thread| echo.asks(&Caller::new(0, 0, thread));
        assert!(!is_helper(0), "a caller that cannot be seen is nobody");
        assert!(is_helper(7) && !is_helper(8));
        echo.remove_helper(7);
        assert!(!is_helper(7) && is_helper(6));
        let more = (100..).take_while(|process| echo.add_helper(*process)).count();
        assert_eq!(more, HELPERS - 1, "there are as many as can be");
    }

    #[tokio::test]
    async fn a_helper_sees_the_file_of_its_call_and_the_way_there_and_nothing_else() {
        let tree = conformance::tree().await;
        let echo = Echo::new(&tree);
        let not_found = async |path: &str| look_up(&echo, path).await.is_err_and(|error| error.kind == Kind::NotFound);
        assert!(not_found("metadata/note").await, "no call is made");
        assert!(echo.begin(&announcement("metadata/note", Happened::Changed)).is_none(), "nobody could notice");
        // The kernel knows the directory.
        let dir = FileId::Dir(at("metadata"));
        tree.kernel().inodes.count_lookup(&dir);
        let (call, size) = echo.begin(&announcement("metadata/note", Happened::Changed)).unwrap();
        let (_, content) = conformance::RECORDS[1];
        assert_eq!(size, content.len() as u64);
        assert_eq!(look_up(&echo, "metadata/note").await.unwrap(), FileId::Record(at("metadata/note"), Form::Raw));
        assert!(not_found("metadata/both").await && not_found("keyspaces").await);
        echo.end(call + 1);
        assert!(!not_found("metadata/note").await, "another call has ended");
        echo.end(call);
        assert!(not_found("metadata/note").await);
    }

    #[tokio::test]
    async fn a_call_makes_or_removes_its_own_name_once_and_changes_nothing() {
        let tree = conformance::tree().await;
        let (echo, caller) = (Echo::new(&tree), Caller::new(0, 0, 7));
        let dir = FileId::Dir(at("metadata"));
        tree.kernel().inodes.count_lookup(&dir);
        let name = |name| Name { dir: &dir, name };
        let write = OpenMode { write: true, ..OpenMode::default() };
        let refused = |outcome: Result<()>| outcome.is_err_and(|error| error.kind == Kind::NotPermitted);

        echo.begin(&announcement("metadata/note", Happened::Created)).unwrap();
        assert!(echo.lookup(&caller, &dir, "note").await.is_err(), "not before it is made");
        assert!(refused(echo.create(&caller, name("other"), 0, write).await.map(drop)));
        assert!(refused(echo.unlink(&caller, name("note")).await));
        let made = echo.create(&caller, name("note"), 0, write).await.unwrap();
        assert!(made.open.file.is_none() && made.attr.kind == FileKind::Regular);
        assert!(echo.lookup(&caller, &dir, "note").await.is_ok());

        echo.begin(&announcement("metadata/note", Happened::Deleted)).unwrap();
        assert!(echo.lookup(&caller, &dir, "note").await.is_ok(), "not before it is removed");
        assert!(refused(echo.rename(&caller, name("note"), name("other"), false).await));
        echo.unlink(&caller, name("note")).await.unwrap();
        assert!(echo.lookup(&caller, &dir, "note").await.is_err());
        // The record is still there: the helper's call only lets the kernel raise an event.
        let space: &dyn Namespace = tree.records();
        assert!(space.lookup(&caller, &dir, "note").await.is_ok());
        assert!(echo.list(&caller, &dir).await.is_err() && echo.xattr_names(&dir).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_directory_that_exists_again_is_not_removed_by_a_call_that_comes_late() {
        let tree = conformance::tree().await;
        let (echo, caller) = (Echo::new(&tree), Caller::new(0, 0, 7));
        let above = FileId::Dir(at("keyspaces"));
        tree.kernel().inodes.count_lookup(&above);
        let gone = at("keyspaces/gone");
        echo.begin(&Announcement::of_dir(&gone.cell, &gone.path, Happened::DirRemoved)).unwrap();
        assert!(echo.lookup(&caller, &above, "gone").await.is_ok());
        let space: &dyn Namespace = tree.records();
        space.mkdir(&caller, Name { dir: &above, name: "gone" }).await.unwrap();
        assert!(echo.lookup(&caller, &above, "gone").await.is_err());
    }
}
