//! Bounds of one service each, reached: what then happens is what their comments say. Those that need no server are
//! beside the code.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use futures::future::join_all;
use topofs::backend::Failure;

use crate::common::http::{Http, Reply};
use crate::common::world::runtime;
use crate::{Factory, common, path, store};

/// Requests to ZooKeeper beyond those that may be in flight wait for their turn.
#[test]
fn more_requests_than_may_be_in_flight_wait_for_their_turn() {
    let mut factory = Factory::zk2();
    factory.options.zk.max_concurrency = 1;
    runtime().block_on(async {
        let cell = factory.fresh();
        let version = store(&*cell, "f", "1").await;
        let at = path("f");
        for fetched in join_all((0..100).map(|_| cell.get(&at))).await {
            assert_eq!(fetched.unwrap().node.unwrap().version, version);
        }
    });
}

/// The key of a request's path.
fn key_of(line: &str) -> String {
    let rest = line.split_once("/v1/kv/").map_or("", |(_, rest)| rest);
    let encoded = rest.split(['?', ' ']).next().unwrap_or_default().as_bytes();
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < encoded.len() {
        let (byte, length) = match encoded[at] {
            b'%' => (u8::from_str_radix(std::str::from_utf8(&encoded[at + 1..at + 3]).unwrap(), 16).unwrap(), 3),
            byte => (byte, 1),
        };
        bytes.push(byte);
        at += length;
    }
    String::from_utf8(bytes).unwrap()
}

/// A Consul that has more keys wherever one looks is not searched for ever.
#[test]
fn a_search_for_changes_ends_whatever_a_server_answers() {
    let searched = Arc::new(AtomicUsize::new(0));
    let counter = searched.clone();
    let server = Http::alone(move |request| {
        let answer = |status, index: u64, body: String| {
            Reply::Answer(status, format!("Content-Type: application/json\r\nX-Consul-Index: {index}\r\n"), body.into())
        };
        let line = &request.line;
        match line.contains("separator=") {
            // The index of everything, and the end of a wait: something has changed.
            true => answer("200 OK", if line.contains("wait=") { 2 } else { 1 }, "[]".to_owned()),
            false if line.contains("recurse=") => answer("404 Not Found", 1, String::new()),
            false if line.contains("keys=") => {
                counter.fetch_add(1, Ordering::SeqCst);
                let prefix = key_of(line);
                // A hundred ways to go on, with two keys each.
                let ways = (0..100).filter_map(|way| char::from_u32(0x4e00 + way));
                let keys = ways.flat_map(|way| ["x", "y"].map(|end| format!("{prefix}{way}{end}")));
                answer("200 OK", 2, serde_json::to_string(&keys.collect::<Vec<_>>()).unwrap())
            }
            false => answer("404 Not Found", 1, String::new()),
        }
    });
    let factory = Factory { server: server.endpoint(), ..Factory::consul() };
    runtime().block_on(async {
        let cell = factory.fresh();
        let (listing, mut watch) = cell.follow().await.unwrap();
        assert!(listing.nodes.is_empty());
        let next = tokio::time::timeout(common::DEADLINE, watch.next()).await.expect("the search ends").unwrap();
        let error = next.unwrap_err();
        assert_eq!(error.failure, Failure::Compacted, "{error}");
        assert!(error.message.contains("too many changes to search for"), "{error}");
        assert!(watch.next().await.is_none());
    });
    assert_eq!(searched.load(Ordering::SeqCst), 101, "the next ten thousand are not asked for");
}
