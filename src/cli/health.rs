//! What the status of a mount means: what is wrong, and what only deserves a look. Knows the JSON of `.topofs/status`,
//! and nothing else. What is missing there is unknown, and never taken for good.

use serde_json::Value;

use super::clock;

/// States of a cell in which nothing is wrong: nobody has looked into an idle one, and the mount is busy with the
/// others.
const WELL: [&str; 3] = ["idle", "loading", "live"];
/// The most names in one sentence.
const NAMED: usize = 5;

/// What a status says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What is wrong now. The mount is healthy if this is empty.
    pub problems: Vec<String>,
    /// What was wrong, or may be.
    pub notes: Vec<String>,
}

/// What is wrong with a mount, as its status tells.
pub(super) fn judge(status: &Value) -> Verdict {
    let mut verdict = Verdict::default();
    match status.get("cells").and_then(Value::as_object) {
        None => verdict.problems.push("its status tells of no cells".to_owned()),
        Some(cells) => cells.iter().for_each(|(name, cell)| judge_cell(name, cell, &mut verdict)),
    }
    for (name, reason) in status.get("cells_not_shown").and_then(Value::as_object).into_iter().flatten() {
        verdict.problems.push(format!("cell {name} is not shown: {}", reason.as_str().unwrap_or("unknown")));
    }
    match number(status, &["panics", "count"]) {
        Some(0) => {}
        count => {
            let last = status.get("panics").and_then(|panics| panics.get("known")?.as_array()?.last()?.get("message"));
            let last = last.and_then(Value::as_str).map_or(String::new(), |last| format!(" (the last one: {last})"));
            let (panics, them) = match count {
                Some(1) => ("1 panic".to_owned(), "it"),
                Some(count) => (format!("{count} panics"), "them"),
                None => ("an unknown number of panics".to_owned(), "them"),
            };
            verdict.problems.push(format!("{panics} of topofs itself{last}: please report {them}"));
        }
    }
    if let Some(lost @ 1..) = number(status, &["locks", "lost"]) {
        verdict.problems.push(match lost {
            1 => "1 lock is lost, and its holder has not noticed (.topofs/locks)".to_owned(),
            _ => format!("{lost} locks are lost, and their holders have not noticed (.topofs/locks)"),
        });
    }
    if let Some(lost @ 1..) = number(status, &["events_lost"]) {
        verdict.notes.push(format!("{} could not be raised", some(lost, "inotify event")));
    }
    if let Some(restarts @ 1..) = number(status, &["helper", "restarts"]) {
        verdict.notes.push(format!("the helper that raises inotify events was restarted {}", some(restarts, "time")));
    }
    verdict
}

fn judge_cell(name: &str, cell: &Value, verdict: &mut Verdict) {
    let state = text(cell, "state").unwrap_or("unknown");
    if !WELL.contains(&state) {
        verdict.problems.push(format!("cell {name} is {state}{}", cause(cell)));
    }
    if let Some(missed @ 1..) = number(cell, &["missed"]) {
        verdict.notes.push(format!(
            "cell {name}: the watch has missed {}, which a comparison has found",
            some(missed, "change")
        ));
    }
    if let Some(skipped @ 1..) = number(cell, &["skipped_keys"]) {
        verdict.notes.push(format!("cell {name}: {}, not shown: no file can have such a name", some(skipped, "key")));
    }
    // Nobody looks at the second place of a cell that nobody uses.
    let (Some(second), Some(drift)) = (cell.get("secondary"), cell.get("drift").filter(|_| state != "idle")) else {
        return;
    };
    let state = text(second, "state").unwrap_or("unknown");
    if !WELL.contains(&state) {
        verdict.problems.push(format!("cell {name}: its secondary is {state}{}", cause(second)));
    }
    if let Some(failing) = text(drift, "failing") {
        verdict.problems.push(format!("cell {name}: its secondary takes no updates: {failing}"));
    }
    match (number(drift, &["count"]), drift.get("complete").and_then(Value::as_bool)) {
        (Some(0), Some(true)) => {}
        (Some(count @ 1..), _) => {
            let example = text(drift, "example").map_or(String::new(), |example| format!(" ({example})"));
            verdict.problems.push(format!("cell {name}: {} at its secondary{example}", some_differ(count)));
        }
        _ => verdict.notes.push(format!("cell {name}: it is not known yet what differs at its secondary")),
    }
}

/// A number of things.
fn some(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn some_differ(count: u64) -> String {
    format!("{} differ{}", some(count, "record"), if count == 1 { "s" } else { "" })
}

/// What a cell says of its trouble.
fn cause(cell: &Value) -> String {
    let since = number(cell, &["broken_for_seconds"])
        .map(|seconds| format!(", for {}", clock::roughly(std::time::Duration::from_secs(seconds))));
    let error = text(cell, "error").map(|error| format!(": {error}"));
    format!("{}{}", since.unwrap_or_default(), error.unwrap_or_default())
}

/// A mount in a few words.
pub(super) fn summary(status: &Value) -> String {
    let cells = status.get("cells").and_then(Value::as_object);
    let count = cells.map_or(0, serde_json::Map::len);
    let records: u64 =
        cells.into_iter().flat_map(|cells| cells.values()).filter_map(|cell| number(cell, &["records"])).sum();
    let locks = |what: &str| number(status, &["locks", what]).unwrap_or(0);
    let (held, waiting) = (locks("held"), locks("waiting"));
    let up = text(status, "mounted").zip(text(status, "time")).and_then(|(from, to)| clock::between(from, to));
    format!(
        "{}, {}; {} held, {waiting} waiting; up {}",
        some(count as u64, "cell"),
        some(records, "record"),
        some(held, "lock"),
        up.unwrap_or_else(|| "unknown".to_owned())
    )
}

/// Several sentences in one line: the first of them, and how many more there are.
pub(super) fn in_one_line(sentences: &[String]) -> String {
    let named = sentences.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
    match sentences.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

/// A text in an object.
pub(super) fn text<'a>(of: &'a Value, name: &str) -> Option<&'a str> {
    of.get(name).and_then(Value::as_str)
}

/// A number in an object, or deeper.
pub(super) fn number(of: &Value, names: &[&str]) -> Option<u64> {
    names.iter().try_fold(of, |of, name| of.get(name)).and_then(Value::as_u64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(cells: Value) -> Value {
        json!({ "cells": cells, "cells_not_shown": {}, "panics": { "count": 0, "known": [] },
                "locks": { "held": 1, "waiting": 2, "lost": 0 }, "events_lost": 0, "helper": { "restarts": 0 },
                "mounted": "2026-08-19T12:00:00.000Z", "time": "2026-08-19T12:00:05.000Z" })
    }

    fn problems(status: &Value) -> Vec<String> {
        judge(status).problems
    }

    #[test]
    fn only_a_cell_that_is_not_well_makes_a_mount_unhealthy() {
        for (state, well) in [
            ("idle", true),
            ("loading", true),
            ("live", true),
            ("reconnecting", false),
            ("down", false),
            ("stale", false),
            ("denied", false),
            ("never heard of", false),
        ] {
            let status = status(json!({ "a": { "state": state, "error": "no route", "broken_for_seconds": 61 } }));
            assert_eq!(problems(&status).is_empty(), well, "{state}");
            if !well {
                assert_eq!(problems(&status), [format!("cell a is {state}, for 1m 1s: no route")]);
            }
        }
        assert_eq!(
            summary(&status(json!({ "a": { "state": "live", "records": 7 } }))),
            "1 cell, 7 records; 1 lock held, 2 waiting; up 5s"
        );
    }

    #[test]
    fn what_a_status_does_not_say_is_not_good() {
        assert_eq!(problems(&json!({})).len(), 2, "neither cells nor panics are known");
        assert_eq!(problems(&status(json!({ "a": {} }))), ["cell a is unknown"]);
        let mut hidden = status(json!({}));
        hidden["cells_not_shown"] = json!({ "b": "its CellInfo record cannot be decoded" });
        hidden["panics"] = json!({ "count": 2, "known": [{ "message": "first" }, { "message": "last" }] });
        hidden["locks"]["lost"] = json!(1);
        assert_eq!(problems(&hidden).len(), 3, "{hidden}");
        assert!(problems(&hidden)[1].contains("(the last one: last)"));
    }

    #[test]
    fn what_was_wrong_deserves_a_look_and_no_alarm() {
        let mut was = status(json!({ "a": { "state": "live", "missed": 3, "skipped_keys": 1 } }));
        was["events_lost"] = json!(4);
        let verdict = judge(&was);
        assert_eq!((verdict.problems.len(), verdict.notes.len()), (0, 3), "{verdict:?}");
    }

    #[test]
    fn a_secondary_that_lags_is_a_problem() {
        let cell = |state: &str, second: &str, count: u64, complete: bool| {
            status(json!({ "a": { "state": state, "secondary": { "state": second },
                                  "drift": { "count": count, "complete": complete, "failing": null } } }))
        };
        assert!(problems(&cell("live", "live", 0, true)).is_empty());
        assert_eq!(judge(&cell("live", "loading", 0, false)).notes.len(), 1);
        assert!(problems(&cell("idle", "missing", 3, false)).is_empty(), "nobody has looked");
        for wrong in [cell("live", "down", 0, true), cell("live", "live", 2, true), cell("live", "missing", 0, true)] {
            assert_eq!(problems(&wrong).len(), 1, "{wrong}");
        }
    }

    #[test]
    fn a_long_list_is_cut() {
        let many: Vec<String> = (0..7).map(|number| number.to_string()).collect();
        assert_eq!(in_one_line(&many), "0; 1; 2; 3; 4; and 2 more");
        assert_eq!(in_one_line(&many[..2]), "0; 1");
    }
}
