//! The log: JSON, the journal, levels.

use serde_json::Value;

use crate::common::mount::{Mount, TOPOFS};
use crate::common::{bash_in, eventually, text};

/// Has a save refused whose text wants to draw on a terminal.
fn refused(mount: &Mount) {
    mount.bash("printf 'bogus\\033[2J\\302\\233: 1' > global/keyspaces/commerce/Keyspace.txt");
    eventually("it is refused", || (!mount.errors().is_empty()).then_some(()));
}

fn objects(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

#[test]
fn each_line_is_a_json_object_with_what_the_event_has() {
    let mount = Mount::new(&["demo", "--log-format=json", "--log-level=info,topofs::mirror=debug"]);
    refused(&mount);
    let log = mount.stop();
    assert!(!log.contains(|character: char| character.is_control() && character != '\n'), "{log:?}");
    let lines = objects(&log);
    let refusal = lines.iter().find(|line| line["errno"] == "EBADMSG").unwrap();
    for (member, value) in
        [("level", "warn"), ("target", "topofs::journal::refusals"), ("path", "global/keyspaces/commerce/Keyspace.txt")]
    {
        assert_eq!(refusal[member], value, "{refusal}");
    }
    assert!(refusal["op"].is_string() && refusal["pid"].is_u64(), "{refusal}");
    assert!(lines.iter().all(|line| line["time"].is_string() && line["message"].is_string()), "{log}");
    // Only that part of topofs is more talkative.
    let talkative = |line: &&Value| line["level"] == "debug";
    let targets: Vec<&str> = lines.iter().filter(talkative).map(|line| line["target"].as_str().unwrap()).collect();
    assert!(targets.iter().all(|target| target.starts_with("topofs::mirror")), "{targets:?}");
}

#[test]
fn a_file_and_the_environment_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("mkdir m; TOPOFS_LOG_FORMAT=json {TOPOFS} demo --log-file log m && umount m");
    let output = bash_in(dir.path(), &script);
    assert!(output.status.success(), "{}", text(&output));
    eventually("it has ended", || {
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        objects(&log).iter().any(|line| line["message"] == "unmounted").then_some(())
    });
}

#[test]
fn the_journal_gets_priorities_and_no_time() {
    let dir = tempfile::tempdir().unwrap();
    // systemd names the file that standard error is.
    let script = format!(
        "mkdir m; exec 2> log; export JOURNAL_STREAM=$(stat -c %d:%i log)\n\
         {TOPOFS} demo -f m & until [ -e m/global ]; do sleep 0.1; done\n\
         ! echo 'bogus: 1' > m/global/keyspaces/commerce/Keyspace.txt; kill $!; wait $!"
    );
    let output = bash_in(dir.path(), &script);
    assert!(output.status.success(), "{}", text(&output));
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let topofs: Vec<&str> = log.lines().filter(|line| line.starts_with('<')).collect();
    assert!(topofs.iter().any(|line| line.starts_with("<6>mounted")), "{log}");
    assert!(topofs.iter().any(|line| line.starts_with("<4>") && line.contains("bogus")), "{log}");
    assert!(!log.contains("INFO") && !log.contains("WARN"), "{log}");
}
