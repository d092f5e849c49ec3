//! What every backend must do, whatever the service behind it. A new backend adds a factory to `factories!` and nothing
//! else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use common::world::connect_options;
use topofs::backend::faulty::Faulty;
use topofs::backend::tee::{Tee, TeeSettings};
use topofs::backend::{
    Action, Applied, Backend, BackendError, Change, ConnectOptions, Failure, Guard, Implementation, Location, Version,
    Wrap, open,
};
use topofs::name::{CellName, TopoPath};

/// Makes cells of one service. Each root is used by one test.
struct Factory {
    implementation: Implementation,
    server: String,
    options: ConnectOptions,
    /// The service to which every update goes, too.
    secondary: Option<Box<Factory>>,
}

impl Factory {
    fn memory() -> Self {
        Self {
            implementation: Implementation::Memory,
            server: "test".to_owned(),
            options: connect_options(),
            secondary: None,
        }
    }

    fn etcd2() -> Self {
        let server = common::etcd::shared().endpoint();
        Self { implementation: Implementation::Etcd2, server, options: connect_options(), secondary: None }
    }

    fn zk2() -> Self {
        let server = common::zookeeper::shared().endpoint();
        Self { implementation: Implementation::Zk2, server, options: connect_options(), secondary: None }
    }

    fn consul() -> Self {
        let server = common::consul::shared().endpoint();
        Self { implementation: Implementation::Consul, server, options: connect_options(), secondary: None }
    }

    /// The same cells behind a wrapper that does nothing as long as no fault is scripted.
    fn faulty(mut self) -> Self {
        let timeout = self.options.timeout;
        self.options.wrap = Wrap::new(move |_, backend| Arc::new(Faulty::new(backend, timeout)));
        self
    }

    /// The same cells, with a second service behind each of them.
    fn tee(mut self, secondary: Factory) -> Self {
        self.secondary = Some(Box::new(secondary));
        self
    }

    fn cell(&self, root: &str) -> Arc<dyn Backend> {
        let location =
            Location { implementation: self.implementation, server: self.server.clone(), root: root.to_owned() };
        let cell = open(&CellName::global(), &location, &self.options).unwrap();
        let Some(secondary) = &self.secondary else { return cell };
        let settings = TeeSettings {
            secondary: format!("{}:{}{root}", secondary.implementation, secondary.server),
            timeout: self.options.timeout,
            reverse_lock_order: false,
            is_for_save: |_| false,
            in_words: |contents| String::from_utf8_lossy(contents).into_owned(),
            hears: None,
        };
        Arc::new(Tee::new(cell, secondary.cell(root), settings))
    }

    fn fresh(&self) -> Arc<dyn Backend> {
        self.fresh_root().1
    }

    /// A cell, and its root for those who open it again.
    fn fresh_root(&self) -> (String, Arc<dyn Backend>) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let root = format!("/conformance/{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let cell = self.cell(&root);
        (root, cell)
    }
}

macro_rules! conformance {
    ($($(#[$meta:meta])* async fn $name:ident($factory:ident) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            use super::*;
            async fn conforms($factory: Factory) $body
            factories! { conforms }
        }
    )*};
}

macro_rules! factories {
    ($check:ident) => {
        #[test]
        fn memory() {
            crate::common::world::runtime().block_on($check(Factory::memory()));
        }
        #[test]
        fn etcd2() {
            crate::common::world::runtime().block_on($check(Factory::etcd2()));
        }
        #[test]
        fn zk2() {
            crate::common::world::runtime().block_on($check(Factory::zk2()));
        }
        #[test]
        fn faulty_memory() {
            crate::common::world::runtime().block_on($check(Factory::memory().faulty()));
        }
        #[test]
        fn faulty_etcd2() {
            crate::common::world::runtime().block_on($check(Factory::etcd2().faulty()));
        }
        #[test]
        fn tee_memory() {
            crate::common::world::runtime().block_on($check(Factory::memory().tee(Factory::memory())));
        }
        #[test]
        fn tee_etcd2_zk2() {
            crate::common::world::runtime().block_on($check(Factory::etcd2().tee(Factory::zk2())));
        }
        #[test]
        fn consul() {
            crate::common::world::runtime().block_on($check(Factory::consul()));
        }
    };
}

fn path(text: &str) -> TopoPath {
    TopoPath::parse(text).unwrap()
}

fn put(at: &str, guard: Guard, value: impl Into<Bytes>) -> Change {
    Change { path: path(at), guard, action: Action::Put(value.into()) }
}

fn delete(at: &str, guard: Guard) -> Change {
    Change { path: path(at), guard, action: Action::Delete }
}

fn check(at: &str, guard: Guard) -> Change {
    Change { path: path(at), guard, action: Action::Check }
}

async fn apply_one(cell: &dyn Backend, change: Change) -> Result<Applied, BackendError> {
    cell.apply(&[change]).await
}

async fn store(cell: &dyn Backend, at: &str, value: &str) -> Version {
    apply_one(cell, put(at, Guard::Any, value.to_owned())).await.unwrap().versions[0].unwrap()
}

async fn value(cell: &dyn Backend, at: &str) -> Option<Bytes> {
    cell.get(&path(at)).await.unwrap().node.map(|node| node.value)
}

async fn names(cell: &dyn Backend, dir: &str) -> Vec<String> {
    let mut names: Vec<_> =
        cell.list(&path(dir)).await.unwrap().nodes.into_iter().map(|node| node.path.to_string()).collect();
    names.sort();
    names
}

#[track_caller]
fn failure<T: std::fmt::Debug>(result: Result<T, BackendError>) -> Failure {
    result.unwrap_err().failure
}

mod above;
mod bounds;
mod compare;
mod faults;
mod locks;
mod records;
mod tee;
mod together;
