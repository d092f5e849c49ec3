//! The mount itself: attaches to the kernel and detaches. Must never leave a mount behind for which nobody answers.
//!
//! root mounts by itself, because fuser's own way leaves the type `fuse` and cannot say `fuse.topofs`. Everybody else
//! mounts through fusermount3.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use tokio::sync::watch;

use super::attach::Attached;
use super::fusermount;
use super::manager::Manager;
use super::point::MountPoint;
use super::spec::MountSpec;
use super::table::Table;
use super::watchdog::Watchdog;
use crate::device::Device;
use crate::fuse::{Adapter, Caches};
use crate::notify;
use crate::notify::helper::{Helpers, Way};
use crate::tree::Tree;

/// A mount that answers.
#[derive(Debug)]
pub(super) struct KernelMount {
    point: MountPoint,
    /// What the mount table calls it.
    number: Device,
    /// Made by root, not by fusermount3.
    own: bool,
    helpers: Arc<Helpers>,
    ended: watch::Receiver<bool>,
}

impl KernelMount {
    /// Mounts and starts answering.
    pub fn start(adapter: Adapter, spec: &MountSpec, point: MountPoint, tree: &Arc<Tree>) -> io::Result<Self> {
        let own = nix::unistd::geteuid().is_root();
        let (mut mount, unseen) =
            if own { Self::attach(adapter, spec, point, tree)? } else { Self::ask(adapter, spec, point, tree)? };
        let started = mount.start_notifier(tree, unseen);
        if started.is_err() {
            // Nobody would ever unmount it. The first error is the one to report.
            let _ = mount.unmount();
        }
        started.map(|()| mount)
    }

    /// The way of root. It also returns the mount that must still be shown.
    fn attach(
        mut adapter: Adapter,
        spec: &MountSpec,
        mut point: MountPoint,
        tree: &Arc<Tree>,
    ) -> io::Result<(Self, Option<OwnedFd>)> {
        point.prepare()?;
        let Attached { device, number, hidden, unseen } = Attached::new(spec, &mut point)?;
        let answering = (|| {
            if spec.read_only && !spec.direct_io {
                tree.open_unasked();
            }
            let config = config(spec);
            let own = device.try_clone()?;
            adapter.spin(device.try_clone()?, spec.spin);
            let session = Session::from_fd(adapter, device, config.acl, config)?;
            let way = match hidden {
                Some(hidden) => Way::Clone(hidden),
                None => way_into(&point, number)?,
            };
            Ok((Helpers::new(way, tree.control().clone()), run(session, own, spec, tree)?))
        })();
        match answering {
            Ok((helpers, ended)) => Ok((Self { point, number, own: true, helpers, ended }, unseen)),
            Err(error) => {
                // The device is closed: what is left, if it was seen at all, is a dead mount. The first error is the
                // one to report.
                let _ = point.unmount(number);
                Err(error)
            }
        }
    }

    /// The way of ordinary users.
    fn ask(
        mut adapter: Adapter,
        spec: &MountSpec,
        mut point: MountPoint,
        tree: &Arc<Tree>,
    ) -> io::Result<(Self, Option<OwnedFd>)> {
        point.prepare()?;
        let before = point.device()?;
        let device = fusermount::mount(spec)?;
        let answering = (|| {
            let number = point.device()?;
            if number == before {
                return Err(io::Error::other("the mount point was moved away while it was mounted on"));
            }
            point.is_mounted(number)?;
            let config = config(spec);
            let own = device.try_clone()?;
            adapter.spin(device.try_clone()?, spec.spin);
            let session = Session::from_fd(adapter, device, config.acl, config)?;
            let helpers = Helpers::new(way_into(&point, number)?, tree.control().clone());
            Ok((number, helpers, run(session, own, spec, tree)?))
        })();
        match answering {
            Ok((number, helpers, ended)) => Ok((Self { point, number, own: false, helpers, ended }, None)),
            Err(error) => {
                // The device is closed: what is left is a dead mount. The first error is the one to report.
                let _ = fusermount::unmount(&["-z"], &spec.mountpoint);
                Err(error)
            }
        }
    }

    /// Starts to announce what happens elsewhere, and shows the mount if it has not been seen yet.
    fn start_notifier(&mut self, tree: &Arc<Tree>, unseen: Option<OwnedFd>) -> io::Result<()> {
        notify::serve(self.helpers.clone(), tree, tokio::runtime::Handle::current())?;
        let mut table = Table::open()?;
        if let Some(unseen) = unseen {
            Attached::show(&unseen, self.number, &mut self.point)?;
        }
        let (helpers, number, mut ended) = (self.helpers.clone(), self.number, self.ended.clone());
        if self.own {
            // The helper's way into the mount would keep it alive when nobody sees it any more.
            std::thread::Builder::new().name("mountinfo".to_owned()).spawn(move || {
                table.wait_until_gone(number);
                helpers.end();
            })?;
        } else {
            tokio::spawn(async move {
                let _ = ended.wait_for(|ended| *ended).await;
                helpers.end();
            });
        }
        Ok(())
    }

    /// Tells the service manager that the mount lives, as long as it does, until the returned value is dropped.
    pub fn watch(&self, manager: &Manager) -> io::Result<Watchdog> {
        Watchdog::start(manager, &self.helpers, tokio::runtime::Handle::current())
    }

    /// Waits until the mount is gone.
    pub async fn ended(&mut self) {
        // An error means that the session thread is gone, which is the same.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    /// Unmounts; a busy mount disappears from the tree at once, and its open files end with this process.
    pub fn unmount(&mut self) -> io::Result<()> {
        // While this is held, nobody else gets the device.
        let Some(way) = self.helpers.hold() else { return Ok(()) };
        let outcome = if self.own {
            self.point.unmount(self.number)
        } else {
            // The helper makes its calls through the mount: a call in flight would make it busy.
            self.helpers.end();
            self.unmount_by_fusermount()
        };
        self.helpers.end();
        drop(way);
        outcome
    }

    fn unmount_by_fusermount(&self) -> io::Result<()> {
        if self.point.device().is_ok_and(|topmost| topmost != self.number) {
            tracing::warn!("something else is mounted over the mount point: it is left alone");
            return Ok(());
        }
        fusermount::unmount(&[], self.point.path()).or_else(|error| {
            tracing::warn!(%error, "the mount is busy: files that are still open will fail");
            fusermount::unmount(&["-z"], self.point.path())
        })
    }

    /// Removes the mount if it is still there although nobody answers any more: the session has failed, or somebody has
    /// ended the kernel's connection. What has taken its place since is left alone.
    pub fn clear(&mut self) -> io::Result<()> {
        let mut left = false;
        if let Some(Way::Clone(_)) = self.helpers.hold().as_deref() {
            left = Table::open()?.has(self.number)?;
        }
        if left || self.point.holds_dead(self.number) { self.unmount() } else { Ok(()) }
    }
}

/// The way by path, through the mount point.
fn way_into(point: &MountPoint, device: Device) -> io::Result<Way> {
    let (dir, name) = point.dir_and_name();
    Ok(Way::Path { dir: dir.try_clone_to_owned()?, name: name.to_owned(), device })
}

fn config(spec: &MountSpec) -> Config {
    let mut config = Config::default();
    config.acl = if spec.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(spec.threads);
    config.clone_fd = true;
    config
}

/// Answers from now on. The returned value becomes true when there is nothing more to answer.
fn run(session: Session<Adapter>, own: OwnedFd, spec: &MountSpec, tree: &Tree) -> io::Result<watch::Receiver<bool>> {
    tree.use_caches(Arc::new(Caches::new(session.notifier(), Some(own))), spec.threads);
    let (end, ended) = watch::channel(false);
    std::thread::Builder::new().name("session".to_owned()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::error!(%error, "the session has ended with an error");
        }
        // It is no error if nobody listens.
        let _ = end.send(true);
    })?;
    Ok(ended)
}
