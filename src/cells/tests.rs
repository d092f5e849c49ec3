use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::backend::{Failure, Listing, Node, WatchStream};
use crate::backend::{Implementation, SharedPlace};

/// A service whose first list never comes.
#[derive(Debug)]
struct Never;

#[async_trait::async_trait]
impl Backend for Never {
    fn limits(&self) -> Limits {
        Limits { value: 0, changes: 0 }
    }
    async fn list(&self, _: &TopoPath) -> std::result::Result<Listing, BackendError> {
        std::future::pending().await
    }
    async fn get(&self, _: &TopoPath) -> std::result::Result<Fetched, BackendError> {
        std::future::pending().await
    }
    async fn apply(&self, _: &[Change]) -> std::result::Result<Applied, BackendError> {
        std::future::pending().await
    }
    async fn follow(&self) -> std::result::Result<(Listing, WatchStream), BackendError> {
        std::future::pending().await
    }
    fn locked_dir(&self, _: &TopoPath) -> Option<TopoPath> {
        None
    }
    async fn enter(&self, _: &TopoPath, _: &Bytes) -> std::result::Result<SharedPlace, BackendError> {
        Err(BackendError::new(Failure::Other, "there are no locks"))
    }
    async fn break_lock(&self, _: &Node) -> std::result::Result<(), BackendError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_loads_for_ever_is_not_waited_for_for_ever() {
    for serve_stale in [false, true] {
        let backend = Arc::new(Never);
        let options = MirrorOptions {
            resync_interval: Duration::from_secs(3600),
            stale_after: Duration::from_secs(10),
            serve_stale,
        };
        let mirror = Mirror::new(backend.clone(), options);
        let stop = CancellationToken::new();
        tokio::spawn(mirror.clone().run("the mirror", stop.clone()));
        let cell = Cell {
            name: CellName::global(),
            location: Location {
                implementation: Implementation::Memory,
                server: "never".to_owned(),
                root: "/x".to_owned(),
            },
            mirror,
            backend,
            turns: lock::Turns::default(),
            timeout: Duration::from_secs(15),
            stop,
            serve_stale,
            untold_port: None,
            holds_global: true,
        };
        // Whoever comes later is kept no longer than the first.
        for _ in 0..2 {
            let waited = tokio::time::timeout(Duration::from_secs(16), cell.snapshot()).await;
            let error = waited.expect("it ends in time").unwrap_err();
            assert_eq!(error.kind, Kind::Unreachable);
            assert!(error.reason.contains("not loaded within 15s"), "{error}");
        }
        assert!(cell.snapshot_now().is_err(), "what was never loaded is not shown as empty");
    }
}
