//! `.log`: one line for each state of a record: when, which, who, and what changed in words. The newest is the last.
//! Must never print what a terminal would obey.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;

use super::states::{State, States};
use crate::mirror::Maker;
use crate::record::quoted;

/// Who made the states, by their numbers.
pub(super) async fn makers(states: &States) -> BTreeMap<usize, String> {
    let mut makers = BTreeMap::new();
    for (index, state) in states.all.iter().enumerate() {
        if let Some(by) = &state.by {
            makers.insert(index, who(by).await);
        }
    }
    makers
}

/// Who made a change: user, number, process, program.
pub(super) async fn who(by: &Maker) -> String {
    let uid = by.actor.uid;
    let name = crate::users::user_name(uid).await;
    let mut words = match name == uid.to_string() {
        true => format!("uid {uid}"),
        false => format!("{} (uid {uid})", plain(&name)),
    };
    if by.actor.process != 0 {
        let _ = write!(words, " pid {}", by.actor.process);
    }
    if let Some(command) = &by.command {
        let _ = write!(words, " {}", plain(command));
    }
    words
}

/// A word as it is, or in quotes if it is not plain.
pub(super) fn plain(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.+/@".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { quoted(word) }
}

/// Says what changed from one value to the next; `None`: there was none.
type Changes<'a> = dyn Fn(Option<&Bytes>, &Bytes) -> String + 'a;

/// The lines. `changes` may take its time.
pub(super) fn lines(changes: &Changes<'_>, states: &States, makers: &BTreeMap<usize, String>) -> String {
    let mut lines = String::new();
    if !states.is_whole {
        lines.push_str("# there are older versions: too many, or the service has not told them in time\n");
    }
    let mut before: Option<&State> = None;
    for (index, state) in states.all.iter().enumerate() {
        let time = state.known.map_or_else(
            || "-".to_owned(),
            |(time, is_exact)| {
                let bound = if is_exact { "" } else { "<=" };
                format!("{bound}{}", humantime::format_rfc3339_millis(time))
            },
        );
        let name = state.name.strip_suffix(super::DELETED).unwrap_or(&state.name);
        let nobody = if state.is_watched { "elsewhere" } else { "unknown" };
        let who = makers.get(&index).map_or(nobody, String::as_str);
        let set = state.by.as_ref().and_then(|by| by.change_set.as_ref());
        let set = set.map_or_else(String::new, |set| format!(" in {}", plain(set)));
        let _ = writeln!(lines, "{time} {name} {who}{set}: {}", what(changes, before, state));
        before = Some(state);
    }
    lines
}

/// What happened, in words.
fn what(changes: &Changes<'_>, before: Option<&State>, state: &State) -> String {
    let Some((value, version)) = &state.record else { return "deleted".to_owned() };
    let changes = |old: Option<&Bytes>| changes(old, value);
    match before.map(|before| &before.record) {
        _ if before.is_none_or(|before| before.record.is_none()) && version.written == version.created => {
            format!("created: {}", changes(None))
        }
        None => format!("the oldest version that is known: {}", changes(None)),
        Some(None) => format!("created again, and perhaps changed: {}", changes(None)),
        Some(Some((_, old))) if old.created != version.created => {
            format!("deleted and created again: {}", changes(None))
        }
        Some(Some((old_value, old))) => {
            let is_next = state.follows || version.number == old.number + 1;
            let steps = if is_next { "" } else { "in one or more steps: " };
            format!("{steps}{}", changes(Some(old_value)))
        }
    }
}

#[cfg(test)]
mod tests;
