//! The lines.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::backend::{Revision, Version};
use crate::mirror::{Past, Record};
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::Actor;
use crate::record::{Codec, Kinds, Records};

fn state(seconds: u64, at: u64, value: Option<&[u8]>, by: Option<Maker>) -> Past {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let version = Version { number: at, written: Revision(at), created: Revision(3) };
    let record = value.map(|value| Record { value: Bytes::copy_from_slice(value), version, modified: time });
    Past { at: Revision(at), record, time, is_exact: true, follows: true, by, is_watched: true }
}

fn log(path: &str, states: Vec<Past>) -> String {
    let codec = Records::new(Codec::builtin().unwrap(), Kinds::default());
    let at = CellPath { cell: CellName::global(), path: TopoPath::parse(path).unwrap() };
    let makers = BTreeMap::from([(1, "root (uid 0) pid 7 vim".to_owned())]);
    let words = |old: Option<&Bytes>, new: &Bytes| codec.changes(&at.cell, &at.path, old, new);
    lines(&words, &States::new(states, None, &[]), &makers)
}

#[test]
fn each_state_has_a_line() {
    let set: Arc<str> = "move primaries".into();
    let by = Maker { actor: Actor { uid: 0, process: 7 }, command: None, change_set: Some(set) };
    let mut missed = state(40, 9, Some(b"\x0a\x03a:3\x12\x02/b"), None);
    (missed.follows, missed.is_exact, missed.is_watched) = (false, false, false);
    let states = vec![
        state(10, 3, Some(b"\x0a\x03a:1"), None),
        state(20, 4, Some(b"\x0a\x03a:1\x12\x02/b"), Some(by)),
        missed,
        state(50, 12, None, None),
    ];
    let expected = "1970-01-01T00:00:10.000Z 3 elsewhere: created: server_address set to \"a:1\"\n\
                    1970-01-01T00:00:20.000Z 4 root (uid 0) pid 7 vim in \"move primaries\": root set to \"/b\"\n\
                    <=1970-01-01T00:00:40.000Z 9 unknown: in one or more steps: server_address \"a:1\" -> \"a:3\"\n\
                    1970-01-01T00:00:50.000Z 12 elsewhere: deleted\n";
    assert_eq!(log("cells/zone1/CellInfo", states), expected);
}

#[test]
fn a_hostile_record_has_one_line_for_each_state_and_commands_no_terminal() {
    let states = vec![
        state(10, 4, Some(b"\n\x1b[2J\xc2\x9b\n"), None),
        state(20, 5, Some(b"\xff\n"), None),
        state(30, 6, Some("\u{202e}\n".as_bytes()), None),
    ];
    let log = log("metadata/x", states);
    assert_eq!(log.lines().count(), 3, "{log}");
    assert!(log.chars().all(|letter| letter == '\n' || letter == ' ' || letter.is_ascii_graphic()), "{log:?}");
}

#[tokio::test]
async fn a_program_with_a_hostile_name_is_quoted() {
    let by = |command: &str| Maker {
        actor: Actor { uid: 4_000_000_000, process: 5 },
        command: Some(command.into()),
        change_set: None,
    };
    assert_eq!(who(&by("a\nb")).await, "uid 4000000000 pid 5 \"a\\nb\"");
    assert_eq!(who(&by("sed")).await, "uid 4000000000 pid 5 sed");
}
