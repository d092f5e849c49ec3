//! `.topofs` as a namespace: a fixed directory of files in which the mount describes itself. Must never make up their
//! content: `control/` owns that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::caller::Caller;
use super::file::{Attr, Caching, Defaults, DirEntry, FileId, OpenMode};
use super::kernel::Kernel;
use super::namespace::{At, Inode, Keep, Namespace, Open, OpenFile, Part, Rest};
use super::room::{Charge, Room};
use crate::cells::Cells;
use crate::control::{Control, ControlFile, Order, TreeCounts};
use crate::error::{Error, Kind, Result};
use crate::journal::{Op, Reader};
use crate::locks::Locks;
use crate::process::Actor;
use crate::store::own::OwnCommits;

/// Counts what a file shows of the tree.
pub(crate) type Count = Arc<dyn Fn(ControlFile) -> TreeCounts + Send + Sync>;

/// How many pollers of `events` are remembered, where the kernel opens files without asking.
const POLLERS: usize = 1_000;

/// The files of `.topofs`.
pub(crate) struct ControlFiles {
    control: Arc<Control>,
    cells: Arc<Cells>,
    locks: Arc<Locks>,
    own: Arc<OwnCommits>,
    kernel: Arc<Kernel>,
    defaults: Defaults,
    room: Room,
    count: Count,
    /// The content of files that the kernel has opened without asking.
    rendered: Mutex<HashMap<ControlFile, (Bytes, SystemTime)>>,
    /// How far each poller of `events` has been notified, where the kernel opens files without asking.
    pollers: Mutex<HashMap<u64, u64>>,
}

impl std::fmt::Debug for ControlFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlFiles").field("control", &self.control).finish_non_exhaustive()
    }
}

impl ControlFiles {
    /// The files of one mount. Their open contents are charged to `room`; `count` is called only if its result is
    /// shown.
    pub fn new(
        (control, cells, locks, own): (Arc<Control>, Arc<Cells>, Arc<Locks>, Arc<OwnCommits>),
        (kernel, defaults): (Arc<Kernel>, Defaults),
        room: Room,
        count: Count,
    ) -> Arc<Self> {
        let (rendered, pollers) = (Mutex::default(), Mutex::default());
        Arc::new(Self { control, cells, locks, own, kernel, defaults, room, count, rendered, pollers })
    }

    /// The metrics now, made on a thread that nobody waits for but their readers.
    pub async fn metrics(&self) -> Result<Bytes> {
        let (cells, count) = (self.cells.clone(), self.count.clone());
        self.control.metrics(cells, move || count(ControlFile::Metrics)).await
    }

    async fn content(&self, file: ControlFile) -> Result<Bytes> {
        Ok(match file {
            ControlFile::Metrics => self.metrics().await?,
            ControlFile::Locks => self.locks.report(&self.cells).await,
            ControlFile::Problems => self.control.problems.content(&self.cells).await?,
            _ => self.control.read(file, &self.cells, || (self.count)(file)),
        })
    }

    fn attr_of(&self, file: ControlFile, size: usize, modified: SystemTime) -> Attr {
        match file {
            ControlFile::Control => self.defaults.file(size, modified),
            _ => self.defaults.read_only_file(size, modified),
        }
    }

    fn attr_now(&self, file: &FileId) -> Result<Attr> {
        match file {
            FileId::Control => Ok(self.defaults.dir()),
            FileId::ControlFile(file) => {
                Ok(self.attr_of(*file, self.control.size(*file, &self.cells), SystemTime::now()))
            }
            _ => Err(Error::not_found()),
        }
    }

    /// The content of a file that the kernel has opened without asking. The kernel asks for its size and then for its
    /// content, perhaps in pieces, and all of these must fit each other.
    async fn rendered(&self, file: ControlFile) -> Result<(Bytes, SystemTime)> {
        /// How long a file shows the same.
        const TIME: Duration = Duration::from_millis(200);
        let known = self.rendered.lock().get(&file).cloned();
        if let Some((content, when)) = known.filter(|(_, when)| when.elapsed().is_ok_and(|age| age < TIME)) {
            return Ok((content, when));
        }
        let shown = (self.content(file).await?, SystemTime::now());
        self.rendered.lock().insert(file, shown.clone());
        Ok(shown)
    }

    /// Whether a file that the kernel has opened without asking has more to read; true once for all new events
    /// together. `poller` is the kernel's number for the open file.
    pub fn is_readable_unopened(&self, file: ControlFile, poller: u64) -> bool {
        if file != ControlFile::Events {
            return true;
        }
        let end = self.control.events.size() as u64;
        let mut pollers = self.pollers.lock();
        // A poller that is forgotten is notified once more.
        if pollers.len() >= POLLERS && !pollers.contains_key(&poller) {
            pollers.clear();
        }
        pollers.insert(poller, end).unwrap_or(0) < end
    }
}

#[async_trait]
impl Namespace for Arc<ControlFiles> {
    async fn lookup(&self, _: &Caller, dir: &FileId, name: &str) -> Result<FileId> {
        match dir {
            FileId::Control => ControlFile::of_name(name).map(FileId::ControlFile).ok_or_else(Error::not_found),
            _ => Err(Error::new(Kind::NotDirectory, "not a directory")),
        }
    }

    async fn attr(&self, _: &Caller, inode: &Inode) -> Result<Attr> {
        match &inode.file {
            FileId::ControlFile(file) if self.kernel.opens_unasked() && *file != ControlFile::Events => {
                let (content, when) = self.rendered(*file).await?;
                Ok(self.attr_of(*file, content.len(), when))
            }
            file => self.attr_now(file),
        }
    }

    fn attr_of_entry(&self, file: &FileId) -> Result<Attr> {
        self.attr_now(file)
    }

    fn keep(&self, file: &FileId) -> Keep {
        if file.is_dir() { Keep::Always } else { Keep::Never }
    }

    async fn list(&self, _: &Caller, dir: &FileId) -> Result<Vec<DirEntry>> {
        match dir {
            FileId::Control => {
                let entry =
                    |file: ControlFile| DirEntry { name: file.name().to_owned(), file: FileId::ControlFile(file) };
                Ok(ControlFile::ALL.into_iter().map(entry).collect())
            }
            _ => Err(Error::new(Kind::NotDirectory, "not a directory")),
        }
    }

    async fn open(&self, caller: &Caller, inode: &Inode, mode: OpenMode) -> Result<Open> {
        let FileId::ControlFile(file) = inode.file else {
            return Err(Error::new(Kind::IsDirectory, "is a directory"));
        };
        if mode.write && file != ControlFile::Control {
            return Err(Error::new(Kind::NotPermitted, format!("{} cannot be written", file.name())));
        }
        let open: Arc<dyn OpenFile> = if file == ControlFile::Events {
            /// It waits no longer, in case the service does not report the change.
            const LONGEST: Duration = Duration::from_millis(200);
            // A program that has just saved looks for its save among the events.
            self.own.all_announced(LONGEST).await;
            Arc::new(OpenEvents { control: self.control.clone(), reader: Mutex::default() })
        } else {
            let content = self.content(file).await?;
            let mut room = self.room.charge(caller.uid);
            room.resize(content.len())?;
            let (files, opener) = (self.clone(), caller.into());
            Arc::new(OpenControl { files, file, opener, content: Mutex::new((content, room)) })
        };
        Ok(Open { file: Some(open), caching: Caching::DIRECT })
    }

    async fn read_unopened(&self, _: &Caller, inode: &Inode, part: Part, _: bool) -> Result<Bytes> {
        match inode.file {
            FileId::ControlFile(ControlFile::Events) => Ok(self.control.events.read_at(part.offset as u64, part.size)),
            FileId::ControlFile(file) => Ok(part.of(&self.rendered(file).await?.0)),
            _ => Err(Error::new(Kind::IsDirectory, "is a directory")),
        }
    }
}

/// An open file: it shows one state, which is charged to its user.
#[derive(Debug)]
struct OpenControl {
    files: Arc<ControlFiles>,
    file: ControlFile,
    opener: Actor,
    content: Mutex<(Bytes, Charge)>,
}

#[async_trait]
impl OpenFile for OpenControl {
    async fn read(&self, _: &Caller, _: At, part: Part) -> Result<Bytes> {
        let mut shown = self.content.lock();
        let (content, room) = &mut *shown;
        // `tail -f` continues at the end.
        if self.file == ControlFile::Errors && part.offset >= content.len() {
            *content = self.files.control.read(self.file, &self.files.cells, || (self.files.count)(self.file));
            room.resize(content.len())?;
        }
        Ok(part.of(content))
    }

    /// Carries out the commands. What waits for a service is returned as the rest.
    fn write(&self, _: At, _: usize, data: &[u8]) -> Result<Rest> {
        let ControlFiles { control, cells, locks, .. } = &*self.files;
        let orders = control.command(data, cells).inspect_err(|error| {
            let path = FileId::ControlFile(self.file).to_string();
            control.errors.explain(Op::Write, &path, self.opener, error);
        })?;
        if orders.is_empty() {
            return Ok(None);
        }
        let (cells, locks, opener) = (cells.clone(), locks.clone(), self.opener);
        Ok(Some(Box::pin(async move {
            for order in orders {
                match order {
                    Order::BreakLock(order) => locks.break_lock(&cells, &order.path, &order.key, opener).await?,
                    Order::Repair(cells) => Order::repair(cells).await?,
                }
            }
            Ok(())
        })))
    }
}

/// `.topofs/events`, open: it grows while it is read.
#[derive(Debug)]
struct OpenEvents {
    control: Arc<Control>,
    reader: Mutex<Reader>,
}

#[async_trait]
impl OpenFile for OpenEvents {
    async fn read(&self, _: &Caller, _: At, part: Part) -> Result<Bytes> {
        Ok(self.control.events.read(&mut self.reader.lock(), part.offset as u64, part.size))
    }

    fn is_readable(&self) -> bool {
        self.control.events.has_more(&self.reader.lock())
    }
}
