//! The lines of `.topofs/events` and `.topofs/errors` for people: one readable line each. Whatever is in them reaches
//! no terminal as it is.

use serde_json::Value;

use super::clock;
use super::health::{number, text};
use super::paint::{BOLD, CYAN, DIM, GREEN, PLAIN, RED, YELLOW, padded, painted};
use crate::record::Form;

/// Names of users, by their numbers.
pub(super) type Names<'a> = dyn Fn(u32) -> String + 'a;

/// The width of the column with the kind of an event: `lock-broken` is the longest.
const KIND_WIDTH: usize = 11;
/// The width of the column with an errno: `ENAMETOOLONG` is the longest.
const ERRNO_WIDTH: usize = 12;

/// A line of `.topofs/events`.
pub(super) fn event(line: &Value, names: &Names<'_>) -> String {
    if let Some(lost) = number(line, &["lost"]) {
        return lost_events(lost);
    }
    let kind = text(line, "kind").unwrap_or("unknown");
    let style = match kind {
        "created" => GREEN,
        "changed" => YELLOW,
        "deleted" => RED,
        "locked" | "unlocked" => CYAN,
        _ => RED.bold(),
    };
    let mut told = vec![
        painted(DIM, &clock::local(text(line, "time").unwrap_or("at an unknown time"))),
        padded(style, kind, KIND_WIDTH),
        painted(BOLD, &place_of_event(line)),
    ];
    let version = |name: &str| number(line, &[name]);
    match (version("old_version"), version("version")) {
        (Some(old), Some(new)) => told.push(format!("version {old} -> {new}")),
        (None, Some(new)) => told.push(format!("version {new}")),
        (Some(old), None) => told.push(format!("was version {old}")),
        (None, None) => {}
    }
    told.extend(line.get("holder").and_then(holder).map(|holder| format!("held by {}", painted(PLAIN, &holder))));
    told.extend(text(line, "reason").map(|reason| painted(PLAIN, reason)));
    told.extend(text(line, "change_set").map(|set| format!("commit of {}", painted(PLAIN, set))));
    told.extend(line.get("by").map(|by| painted(DIM, &who(by, names))));
    told.join("  ")
}

/// In words how many events a reader has not been given.
fn lost_events(lost: u64) -> String {
    let (events, were) = if lost == 1 { ("event", "was") } else { ("events", "were") };
    painted(YELLOW.bold(), &format!("{lost} {events} {were} lost here: the mount keeps the last 10,000"))
}

/// A line of `.topofs/errors`.
pub(super) fn refusal(line: &Value, names: &Names<'_>) -> String {
    let mut place = text(line, "path").unwrap_or("an unknown path").to_owned();
    for name in ["line", "column"] {
        if let Some(number) = number(line, &[name]) {
            place += &format!(":{number}");
        }
    }
    let operation = text(line, "operation").unwrap_or("unknown");
    [
        painted(DIM, &clock::local(text(line, "time").unwrap_or("at an unknown time"))),
        padded(RED, text(line, "errno").unwrap_or("unknown"), ERRNO_WIDTH),
        format!("{} {}", painted(PLAIN, operation), painted(BOLD, &place)),
        painted(PLAIN, text(line, "reason").unwrap_or("for an unknown reason")),
        painted(DIM, &who(line, names)),
    ]
    .join("  ")
}

/// Who holds a lock, as the lock's text says.
fn holder(holder: &Value) -> Option<String> {
    let field = |name: &str| text(holder, name).filter(|text| !text.is_empty());
    match (field("UserName"), field("HostName"), field("Action")) {
        (Some(user), Some(host), Some(action)) => Some(format!("{user}@{host}: {action}")),
        _ => match holder {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        },
    }
}

/// Who has done something.
fn who(by: &Value, names: &Names<'_>) -> String {
    if by.as_str() == Some("remote") {
        return "by somebody else's client".to_owned();
    }
    let uid = number(by, &["uid"]).and_then(|uid| u32::try_from(uid).ok());
    let user = uid.map_or_else(|| "an unknown user".to_owned(), names);
    let process = match (text(by, "command"), number(by, &["pid"]).filter(|pid| *pid != 0)) {
        (Some(command), Some(pid)) => format!(" ({command}, pid {pid})"),
        (None, Some(pid)) => format!(" (pid {pid})"),
        (Some(command), None) => format!(" ({command})"),
        (None, None) => String::new(),
    };
    format!("by {user}{process}")
}

/// Where an event happened: cell and path.
pub(super) fn place_of_event(line: &Value) -> String {
    let (cell, path) = (text(line, "cell").unwrap_or("unknown"), text(line, "path").unwrap_or_default());
    if path.is_empty() { cell.to_owned() } else { format!("{cell}/{path}") }
}

/// Where an operation was refused.
pub(super) fn place_of_refusal(line: &Value) -> String {
    text(line, "path").unwrap_or_default().to_owned()
}

/// Whether a place is another one, or below it. All forms of a record are one.
pub(super) fn is_below(place: &str, above: &str) -> bool {
    let (place, above) = (without_form(place), without_form(above));
    above.is_empty() || place.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn without_form(place: &str) -> &str {
    let place = place.trim_matches('/');
    Form::of_name(place).map_or(place, |(record, _)| record)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain(text: &str) -> String {
        // The time zone of the machine is not ours.
        anstream::adapter::strip_str(text).to_string().get(25..).unwrap().to_owned()
    }

    fn told(line: Value) -> String {
        plain(&event(&line, &|uid| format!("user{uid}")))
    }

    #[test]
    fn an_event_is_one_readable_line() {
        let by = json!({ "uid": 7, "pid": 42, "command": "vim" });
        let line = |kind: &str, more: Value| {
            let mut line = json!({ "time": "2026-08-19T12:34:29.123Z", "cell": "global", "kind": kind,
                                   "path": "keyspaces/a/Keyspace" });
            line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            line
        };
        assert_eq!(
            told(line("created", json!({ "version": 3, "old_version": null, "by": by }))),
            "created      global/keyspaces/a/Keyspace  version 3  by user7 (vim, pid 42)"
        );
        assert_eq!(
            told(line("changed", json!({ "version": 4, "old_version": 3, "by": "remote", "change_set": "s" }))),
            "changed      global/keyspaces/a/Keyspace  version 3 -> 4  commit of s  by somebody else's client"
        );
        assert_eq!(
            told(line("deleted", json!({ "version": null, "old_version": 4, "by": { "uid": null, "pid": 0 } }))),
            "deleted      global/keyspaces/a/Keyspace  was version 4  by an unknown user"
        );
        let holder = json!({ "UserName": "vitess", "HostName": "h", "Action": "reparent" });
        assert_eq!(
            told(line("lock-broken", json!({ "holder": holder, "by": by }))),
            "lock-broken  global/keyspaces/a/Keyspace  held by vitess@h: reparent  by user7 (vim, pid 42)"
        );
        assert_eq!(
            anstream::adapter::strip_str(&event(&json!({ "lost": 7 }), &|_| String::new())).to_string(),
            "7 events were lost here: the mount keeps the last 10,000"
        );
    }

    #[test]
    fn a_refusal_is_one_readable_line() {
        let line = json!({ "time": "2026-08-19T12:34:29.123Z", "path": "global/keyspaces/a/Keyspace.txt",
                           "operation": "flush", "errno": "EBADMSG", "reason": "no such field", "uid": 7, "pid": 42,
                           "line": 3, "column": 5 });
        let told = refusal(&line, &|uid| format!("user{uid}"));
        assert_eq!(
            plain(&told),
            "EBADMSG       flush global/keyspaces/a/Keyspace.txt:3:5  no such field  by user7 (pid 42)"
        );
    }

    #[test]
    fn nothing_hostile_reaches_a_terminal() {
        let bad = "x\n\u{1b}]0;t\u{7}\u{9b}2J\u{202e}";
        let mut event_line = json!({ "version": 1, "by": { "uid": 1, "pid": 2, "command": bad } });
        for name in ["time", "cell", "path", "kind", "holder", "reason", "change_set"] {
            event_line[name] = json!(bad);
        }
        let mut error_line = json!({ "uid": 1, "pid": 2, "command": bad });
        for name in ["time", "path", "operation", "errno", "reason"] {
            error_line[name] = json!(bad);
        }
        for told in [event(&event_line, &|_| bad.to_owned()), refusal(&error_line, &|_| bad.to_owned())] {
            let plain = anstream::adapter::strip_str(&told).to_string();
            assert!(!plain.chars().any(|c| c.is_control() || c == '\u{202e}'), "{plain:?}");
            assert!(!told.contains("\u{1b}]") && !told.contains('\u{9b}'), "{told:?}");
        }
    }

    #[test]
    fn what_is_below_a_path_is_below_it_in_every_form() {
        for (place, above) in [
            ("global/keyspaces/a/Keyspace", "global/keyspaces/a"),
            ("global/keyspaces/a/Keyspace.txt", "global/keyspaces/a/Keyspace"),
            ("global/keyspaces/a/Keyspace", "global/keyspaces/a/Keyspace.json"),
            ("global/keyspaces/a", "/global/"),
            ("global", ""),
        ] {
            assert!(is_below(place, above), "{place} {above}");
        }
        for (place, above) in
            [("global/keyspaces/ab", "global/keyspaces/a"), ("global", "global/a"), ("zone1/x", "global")]
        {
            assert!(!is_below(place, above), "{place} {above}");
        }
    }
}
