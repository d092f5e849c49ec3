//! The text of a lock, as Vitess writes it: who holds it and why.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;

use crate::name::{CellName, TopoPath};

/// The file as Vitess writes it (go/vt/topo/locks.go, type Lock).
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Lock<'a> {
    action: &'a str,
    host_name: &'a str,
    user_name: &'a str,
    time: String,
    options: Options,
    status: &'a str,
}

/// Vitess keeps the fields of its options private, so its JSON shows an empty object.
#[derive(Serialize)]
struct Options {}

/// Who locks, and why.
#[derive(Debug, Clone, Default)]
pub struct Reason {
    /// What the holder does, for people.
    pub action: String,
    /// The name of the user.
    pub user: String,
}

/// This machine's name.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "unknown".to_owned())
}

/// The content of a new lock.
pub fn contents(reason: &Reason) -> Bytes {
    let lock = Lock {
        action: &reason.action,
        host_name: &host_name(),
        user_name: &reason.user,
        time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        options: Options {},
        status: "Running",
    };
    // Go escapes the special characters of HTML; they occur only in strings.
    let text = serde_json::to_string_pretty(&lock).unwrap_or_default();
    text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026").into()
}

/// The action of a lock for one save.
const SAVE: &str = "topofs: save below ";

/// The reason of a lock for one save.
pub fn save_below(cell: &CellName, dir: &TopoPath) -> String {
    format!("{SAVE}{cell}/{dir}")
}

/// Whether the text of a lock says that it is for one save. Anybody can write that; the only effect is that others wait
/// a little longer.
pub fn says_save(value: &[u8]) -> bool {
    shown(value).get("Action").and_then(serde_json::Value::as_str).is_some_and(|action| action.starts_with(SAVE))
}

/// The holder as events show it: the JSON of a lock, or the text of a candidate.
pub fn shown(value: &[u8]) -> serde_json::Value {
    match serde_json::from_slice(value) {
        Ok(lock @ serde_json::Value::Object(_)) => lock,
        _ => String::from_utf8_lossy(value).into_owned().into(),
    }
}

/// A holder in a few words.
pub fn in_words(value: &[u8]) -> String {
    let shown = shown(value);
    let field = |name: &str| shown.get(name).and_then(serde_json::Value::as_str);
    match (field("UserName"), field("HostName"), field("Action"), field("Time")) {
        (Some(user), Some(host), Some(action), Some(time)) => format!("{user}@{host} ({action}, since {time})"),
        _ => shown.as_str().map_or_else(|| shown.to_string(), ToOwned::to_owned),
    }
}

/// Since when a lock is held, as its text says. Anybody can write that.
pub fn since(value: &[u8]) -> Option<SystemTime> {
    shown(value).get("Time").and_then(serde_json::Value::as_str).and_then(parse_time)
}

/// RFC 3339 in any time zone.
fn parse_time(text: &str) -> Option<SystemTime> {
    /// Length of `+00:00`.
    const OFFSET: usize = 6;
    if text.ends_with('Z') {
        return humantime::parse_rfc3339(text).ok();
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub(OFFSET)?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let offset_by = Duration::from_secs(hours.parse::<u64>().ok()? * 3_600 + minutes.parse::<u64>().ok()? * 60);
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    if offset.starts_with('-') { local.checked_add(offset_by) } else { local.checked_sub(offset_by) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_any_zone_are_understood() {
        let utc = parse_time("2026-08-19T12:34:29Z").unwrap();
        assert_eq!(parse_time("2026-08-19T14:34:29+02:00"), Some(utc));
        assert_eq!(parse_time("2026-08-19T05:04:29-07:30"), Some(utc));
        assert_eq!(parse_time("yesterday"), None);
    }
    #[test]
    fn it_is_the_text_that_vitess_writes() {
        let reason = Reason { action: "move <a> & \"b\"".to_owned(), user: "vitess".to_owned() };
        let text = String::from_utf8(contents(&reason).to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "{");
        assert_eq!(lines[1], r#"  "Action": "move \u003ca\u003e \u0026 \"b\"","#);
        assert!(lines[2].starts_with("  \"HostName\": \""));
        assert_eq!(lines[3], "  \"UserName\": \"vitess\",");
        assert!(lines[4].starts_with("  \"Time\": \"2") && lines[4].ends_with("Z\","));
        assert_eq!(&lines[5..], ["  \"Options\": {},", "  \"Status\": \"Running\"", "}"]);
        assert!(in_words(text.as_bytes()).starts_with("vitess@"));
        assert_eq!(in_words(b"host:15999"), "host:15999");
    }
}
