//! The HTTP endpoint of `--metrics-address`: what it answers, and that no client hurts the mount.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::metrics::Metrics;
use crate::common::mount::{Mount, TOPOFS, is_mounted};
use crate::common::{DEADLINE, bash_in, eventually, text};

/// The port of a mount that was told to take any.
pub fn port(mount: &Mount) -> u16 {
    let log =
        eventually("the endpoint is there", || Some(mount.log()).filter(|log| log.contains("the metrics are at ")));
    let address = log.split("http://").nth(1).unwrap().split("/metrics").next().unwrap();
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// What a request is answered: head and body.
fn ask(port: u16, request: &str) -> (String, String) {
    let mut stream = connect(port);
    // A server that refuses early does not read all of it.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.to_owned(), body.to_owned())
}

pub fn get(port: u16, path: &str) -> (String, String) {
    ask(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n"))
}

#[test]
fn the_page_is_served_to_this_host_and_nothing_else_is() {
    let mount = Mount::new(&["demo", "-o", "metrics_address=:0"]);
    let port = port(&mount);
    let (head, body) = get(port, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    let page = Metrics::read(body);
    assert_eq!(
        page.get("topofs_cell_records{cell=\"zone1\"}"),
        Metrics::of(&mount).get("topofs_cell_records{cell=\"zone1\"}")
    );
    // It moves.
    let opened = "topofs_requests_total{operation=\"open\"}";
    mount.read("global/keyspaces/commerce/Keyspace");
    eventually("the page is a new one", || {
        (Metrics::read(get(port, "/metrics").1).get(opened) > page.get(opened)).then_some(())
    });

    let request = |line: &str, host: &str| ask(port, &format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    let (head, body) = request("HEAD /metrics", "127.0.0.1");
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}\n{body}");
    for (line, host, status) in [
        ("GET /metrics?x=1", "localhost", 200),
        ("GET /", "localhost", 404),
        ("GET /metrics/../status", "localhost", 404),
        ("GET /.topofs/status", "localhost", 404),
        ("POST /metrics", "localhost", 405),
        ("DELETE /metrics", "localhost", 405),
        ("OPTIONS *", "localhost", 405),
        // A web page of somebody else whose name leads here.
        ("GET /metrics", "rebound.example.com", 421),
        ("GET /metrics", "127.0.0.1.example.com", 421),
    ] {
        let (head, body) = request(line, host);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{line} at {host}: {head}");
        assert_eq!(body.contains("topofs_"), status == 200, "{line}: {body}");
    }
    let (head, _) = ask(port, "GET /metrics HTTP/1.0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.0 200 ") || head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(mount.control("config").contains("\"metrics-address\": \"127.0.0.1:0\""));
    // Nobody else reaches it.
    let addresses = bash_in(mount.outside(), &format!("awk '$4 == \"0A\"' /proc/net/tcp | grep -i ':{port:04X} '"));
    let local = text(&addresses);
    assert_eq!((local.lines().count(), local.contains("0100007F:")), (1, true), "{local}");
    mount.stop();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "it ends with the mount");
}

#[test]
fn an_address_that_cannot_be_had_fails_the_mount_before_it_is_there() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let run = |address: &str, more: &str| {
        bash_in(dir.path(), &format!("mkdir -p m; {TOPOFS} demo --metrics-address={address} {more} m"))
    };
    for more in ["", "--foreground"] {
        let output = run(&address, more);
        assert_eq!(output.status.code(), Some(32), "{}", text(&output));
        assert!(text(&output).contains(&format!("--metrics-address {address}: Address already in use")), "{output:?}");
    }
    let output = run("example.com:9177", "");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(!is_mounted(&dir.path().join("m")));
}

#[test]
fn clients_that_misbehave_neither_hurt_the_mount_nor_keep_others_out() {
    let mount = Mount::new(&["demo", "--metrics-address=0"]);
    let port = port(&mount);
    let files = || Metrics::of(&mount).get("process_open_fds");
    let before = files();
    // More than there may be: some say nothing, some begin a request and go on as slowly as they can, some ask and do
    // not read.
    let mut slow: Vec<TcpStream> = Vec::new();
    for number in 0..400 {
        let mut client = connect(port);
        let _ = match number % 3 {
            0 => Ok(()),
            1 => client.write_all(b"GET /metrics HTTP/1.1\r\nHost: local"),
            _ => client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        };
        slow.push(client);
    }
    assert!(files() < before + 80.0, "at most 64 connections: {before} {}", files());
    let begun = Instant::now();
    for _ in 0..3 {
        assert!(get(port, "/metrics").0.starts_with("HTTP/1.1 200 "), "another client is answered");
        mount.sh("ls > /dev/null; echo 1 > global/metadata/x; cat global/metadata/x");
    }
    // They would be waited for for five seconds.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());

    // Large heads, many headers, nonsense.
    let long = "x".repeat(1 << 20);
    let many = "a: b\r\n".repeat(10_000);
    for request in [
        format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"),
        format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
        format!("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{long}"),
        "\u{0}\u{1}\u{2}\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ] {
        let (head, body) = ask(port, &request);
        let start: String = request.chars().take(60).collect();
        assert!(!head.starts_with("HTTP/1.1 2") && !body.contains("topofs_"), "{start:?}: {head}");
    }
    // Those who are late are closed, though they have sent something.
    let mut late = connect(port);
    late.write_all(b"GET /metrics HT").unwrap();
    let begun = Instant::now();
    let mut answer = Vec::new();
    let _ = late.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 2") && begun.elapsed() < DEADLINE / 2, "{:?}", begun.elapsed());
    drop(slow);
    eventually("all descriptors are given back", || (files() <= before + 2.0).then_some(()));
    assert!(get(port, "/metrics").0.starts_with("HTTP/1.1 200 "));
    let page = Metrics::of(&mount);
    assert_eq!(page.get("topofs_panics_total"), 0.0, "{}", mount.log());
}
