//! Commits through `.control` of stages on real mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Line, Numbers, Set, Told, history};
use crate::common::mount::Mount;
use crate::common::world::Service;
use crate::common::{etcd, eventually, signal, text};

/// The same through real mounts, whose daemons are killed while a shell commits.
#[test]
fn sets_are_whole_whoever_kills_the_daemon() {
    let service = Service::etcd2();
    let since = etcd::shared().revision();
    let lines = std::thread::scope(|scope| {
        let committing = [0, 1].map(|number| {
            scope.spawn({
                let service = &service;
                move || shells(service, number)
            })
        });
        committing.into_iter().flat_map(|committing| committing.join().unwrap()).collect::<Vec<Line>>()
    });
    let told = Told::new(lines);
    let all = service.cell();
    told.check_end(&*all);
    told.check_history(&history(&*all, &service.root, since));
}

/// Commits in stages of one mount after the other, each of which is killed in the end.
fn shells(service: &Service, number: u64) -> Vec<Line> {
    /// Mounts, and commits in each.
    const ROUNDS: (usize, usize) = (3, 6);
    let (mut numbers, mut told) = (Numbers(number), Vec::new());
    for round in 0..ROUNDS.0 {
        let mount = service.mount(&[]);
        for nth in 1..=ROUNDS.1 {
            let id = format!("s-p{number}-{round}-{nth}-");
            let trace = format!("zone1/keyspaces/{id}/SrvKeyspace");
            let names: BTreeSet<u64> = (0..=numbers.below(12)).map(|_| numbers.below(40)).collect();
            let mut puts: BTreeSet<String> = names.iter().map(|name| format!("global/metadata/r{name}")).collect();
            let write = puts.iter().map(|place| format!("echo {id} > {place}\n")).collect::<String>();
            puts.insert(trace.clone());
            told.push(Line::Begun(Set { id: id.clone(), trace: trace.clone(), puts, deletes: BTreeSet::new() }));
            let script = format!(
                "set -e; mkdir .topofs/stage/{id}; cd .topofs/stage/{id}\n{write}mkdir -p zone1/keyspaces/{id}\n\
                 echo '{{}}' > {trace}.json\necho ready > {ready}; echo commit > .control",
                ready = mount.outside().join(&id).display(),
            );
            let output = std::thread::scope(|scope| {
                let running = scope.spawn(|| mount.bash(&script));
                if nth == ROUNDS.1 {
                    let ready = mount.outside().join(&id);
                    eventually("everything is staged", || ready.exists().then_some(()));
                    std::thread::sleep(Duration::from_micros(numbers.below(30_000)));
                    signal(mount.pid(), Signal::SIGKILL);
                }
                running.join().unwrap()
            });
            match output.status.success() {
                true => told.push(Line::Stored(id)),
                false if text(&output).contains("Stale file handle") => told.push(Line::Refused(id)),
                false => assert_eq!(nth, ROUNDS.1, "{}", text(&output)),
            }
        }
    }
    told
}

/// The lines of `.topofs/events` about some records: what has happened, who, and in which set.
fn events(mount: &Mount, since: &str, paths: &[&str]) -> BTreeMap<String, (String, String, Option<String>)> {
    let text = mount.control("events");
    let lines = text.strip_prefix(since).unwrap_or(&text).lines();
    let lines = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let named = |line: &serde_json::Value, name: &str| line[name].as_str().map(ToOwned::to_owned);
    let line = |line: serde_json::Value| {
        let path = format!("{}/{}", line["cell"].as_str()?, line["path"].as_str()?);
        let by = named(&line, "by").or_else(|| named(&line["by"], "command"))?;
        paths.contains(&path.as_str()).then(|| (path, (named(&line, "kind").unwrap(), by, named(&line, "change_set"))))
    };
    lines.filter_map(line).collect()
}

#[test]
fn the_events_of_a_commit_name_its_set() {
    let service = Service::etcd2();
    let (own, other) = (service.mount(&[]), service.mount(&[]));
    // Both have seen everything.
    for mount in [&own, &other] {
        mount.sh("find . -type f > /dev/null");
    }
    let before = [&own, &other].map(|mount| mount.control("events"));
    own.sh("mkdir .topofs/stage/fix; cd .topofs/stage/fix; echo 1 > global/metadata/made
         sed -i s/semi_sync/none/ global/keyspaces/commerce/Keyspace.txt
         rm zone1/tablets/zone1-0000000102/Tablet.txt; echo commit > .control");
    let paths = ["global/metadata/made", "global/keyspaces/commerce/Keyspace", "zone1/tablets/zone1-0000000102/Tablet"];
    let expected = |by: &str, set: Option<&str>| -> BTreeMap<String, (String, String, Option<String>)> {
        let kinds = ["created", "changed", "deleted"];
        let line = |kind: &str| (kind.to_owned(), by.to_owned(), set.map(ToOwned::to_owned));
        paths.iter().zip(kinds).map(|(path, kind)| ((*path).to_owned(), line(kind))).collect()
    };
    for (mount, before, expected) in
        [(&own, &before[0], expected("bash", Some("fix"))), (&other, &before[1], expected("remote", None))]
    {
        let mut told = BTreeMap::new();
        eventually("all events are there", || {
            told = events(mount, before, &paths);
            (told.len() == paths.len()).then_some(())
        });
        assert_eq!(told, expected);
    }
}
