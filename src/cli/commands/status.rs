//! `topofs status`: how the mounts of this host are. Must end, whatever the mounts do, and never call one healthy of
//! which it knows nothing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value, json};

use super::{Ended, complain};
use crate::cli::ask::{NoAnswer, ask, shown_path};
use crate::cli::clock;
use crate::cli::flags::output::ColorArgs;
use crate::cli::flags::values::duration;
use crate::cli::health::{Verdict, in_one_line, judge, number, summary, text};
use crate::cli::host::{Host, is_trusted};
use crate::cli::paint::{BOLD, DIM, GREEN, PLAIN, RED, Table, YELLOW, painted};
use crate::control::ControlFile;
use crate::mount::Entry;
use crate::plain::{shown, shown_json};

/// Exit status: something is wrong.
const UNHEALTHY: u8 = 1;
/// Exit status: nobody knows.
pub(in crate::cli) const UNKNOWN: u8 = 2;
/// Mounts that are asked at a time. Each costs a process.
const AT_A_TIME: usize = 16;
/// The most characters of a list of servers in a table: one long list must not push the columns of all lines apart.
const SERVER_WIDTH: usize = 60;

/// Flags of `topofs status`.
#[derive(Debug, Args)]
pub(in crate::cli) struct StatusArgs {
    /// Only these mounts; any path in a mount will do [default: those of this user and of root]
    #[arg(value_name = "MOUNTPOINT", value_hint = clap::ValueHint::DirPath)]
    mountpoints: Vec<PathBuf>,
    /// Ask the mounts of other users, too, and count them
    #[arg(long, conflicts_with = "mountpoints")]
    all_users: bool,
    /// Print JSON: what .topofs/status says, with mountpoint, source, state, healthy, problems and notes
    ///
    /// One object for one MOUNTPOINT, otherwise a list of objects.
    #[arg(long, conflicts_with_all = ["one_line", "quiet"])]
    json: bool,
    /// Print one line for each mount, for monitoring
    #[arg(long, short = '1')]
    one_line: bool,
    /// Print nothing; the exit status says it all
    #[arg(long, short, conflicts_with = "one_line")]
    quiet: bool,
    /// How long to wait for the answer of a mount
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    color: ColorArgs,
}

/// What is known of a mount.
enum Known {
    /// What it says of itself, and what that means.
    Says(Value, Verdict),
    /// It says nothing.
    Nothing(NoAnswer),
    /// It is another user's, and was not asked.
    NotAsked,
}

/// One mount.
struct Seen<'a> {
    mount: &'a Entry,
    others: Vec<&'a Entry>,
    known: Known,
}

impl StatusArgs {
    /// Shows the mounts. Succeeds if all are healthy.
    pub fn run(&self) -> Ended {
        Ok(self.show().unwrap_or_else(|error| {
            complain(&shown(&format!("{error:#}")));
            UNKNOWN.into()
        }))
    }

    fn show(&self) -> anyhow::Result<ExitCode> {
        let host = Host::read().context("/proc/self/mountinfo")?;
        let mounts = self.wanted(&host)?;
        let mut out = self.color.out();
        if mounts.is_empty() {
            complain("there is no mount of topofs on this host");
            // Whoever reads JSON gets some.
            if self.json {
                out.print("[]\n");
            }
            return Ok(out.end_command(UNKNOWN.into(), UNKNOWN));
        }
        // Anybody can make a mount that says anything, or nothing.
        let is_asked = |mount: &Entry| self.all_users || !self.mountpoints.is_empty() || is_trusted(mount);
        let (asked, others): (Vec<_>, Vec<_>) = mounts.into_iter().partition(|(mount, _)| is_asked(mount));
        let is_known = !asked.is_empty();
        let mut seen: Vec<Seen<'_>> = look_at(asked, &host, self.timeout);
        seen.extend(others.into_iter().map(|(mount, others)| Seen { mount, others, known: Known::NotAsked }));
        let text = match (self.json, self.one_line, self.quiet) {
            (true, ..) => self.json(&seen),
            (_, true, _) => seen.iter().map(Seen::one_line).collect(),
            (.., true) => String::new(),
            _ => seen.iter().map(Seen::for_people).collect::<Vec<_>>().join("\n"),
        };
        out.print(&text);
        if !is_known {
            complain("there is no mount of topofs of this user or of root (--all-users asks those of others)");
            return Ok(out.end_command(UNKNOWN.into(), UNKNOWN));
        }
        let worst = seen.iter().filter_map(Seen::exit_status).min();
        Ok(out.end_command(worst.map_or(ExitCode::SUCCESS, ExitCode::from), UNKNOWN))
    }

    fn wanted<'a>(&self, host: &'a Host) -> anyhow::Result<Vec<(&'a Entry, Vec<&'a Entry>)>> {
        if self.mountpoints.is_empty() {
            return Ok(host.mounts());
        }
        let named = self.mountpoints.iter().map(|path| {
            let named = || path.display().to_string();
            let mount = host.find(path, true).with_context(named)?.mount;
            let mount = mount.with_context(|| format!("{} is not in a mount of topofs", path.display()))?;
            let others = host.ours().filter(|other| other.device == mount.device && other.id != mount.id).collect();
            Ok((mount, others))
        });
        named.collect()
    }

    fn json(&self, seen: &[Seen<'_>]) -> String {
        let objects: Vec<Value> = seen.iter().map(Seen::json).collect();
        let value = match (objects.as_slice(), self.mountpoints.len()) {
            ([one], 1) => one.clone(),
            _ => Value::Array(objects),
        };
        format!("{value:#}").lines().fold(String::new(), |text, line| format!("{text}{}\n", shown_json(line)))
    }
}

/// Asks all mounts, some at a time.
fn look_at<'a>(mounts: Vec<(&'a Entry, Vec<&'a Entry>)>, host: &Host, patience: Duration) -> Vec<Seen<'a>> {
    let look = |mount: &Entry| match (host.is_covered(mount), mount.root == Path::new("/")) {
        (true, _) => Known::Nothing(NoAnswer::Elsewhere),
        (_, false) => Known::Nothing(NoAnswer::Other("only a part of the topology is mounted here".to_owned())),
        _ => match ask(mount, ControlFile::Status, patience) {
            Err(reason) => Known::Nothing(reason),
            Ok(status) => match serde_json::from_str::<Value>(&status) {
                Ok(status) => {
                    let verdict = judge(&status);
                    Known::Says(status, verdict)
                }
                Err(error) => Known::Nothing(NoAnswer::Other(format!("not a status of topofs: {error}"))),
            },
        },
    };
    let mut seen = Vec::new();
    for some in mounts.chunks(AT_A_TIME) {
        std::thread::scope(|scope| {
            // These threads wait for pipes only.
            let asked: Vec<_> = some.iter().map(|(mount, _)| scope.spawn(|| look(mount))).collect();
            for ((mount, others), known) in some.iter().zip(asked) {
                let known = known.join().unwrap_or_else(|_| Known::Nothing(NoAnswer::Other("a panic".to_owned())));
                seen.push(Seen { mount, others: others.clone(), known });
            }
        });
    }
    seen
}

impl Seen<'_> {
    /// `None` if it is healthy.
    fn exit_status(&self) -> Option<u8> {
        match &self.known {
            Known::Says(_, verdict) => (!verdict.problems.is_empty()).then_some(UNHEALTHY),
            Known::NotAsked => None,
            Known::Nothing(NoAnswer::Dead | NoAnswer::Silent(_) | NoAnswer::Unanswered(_)) => Some(UNHEALTHY),
            Known::Nothing(NoAnswer::NotReadable | NoAnswer::Elsewhere | NoAnswer::Other(_)) => Some(UNKNOWN),
        }
    }

    /// In one word.
    fn state(&self) -> &'static str {
        match &self.known {
            Known::Says(_, verdict) if verdict.problems.is_empty() => "healthy",
            Known::Says(..) => "not healthy",
            Known::Nothing(NoAnswer::Dead) => "dead",
            Known::Nothing(NoAnswer::Silent(_) | NoAnswer::Unanswered(_)) => "silent",
            Known::NotAsked => "not asked",
            Known::Nothing(NoAnswer::NotReadable) => "not readable",
            Known::Nothing(NoAnswer::Elsewhere) => "covered",
            Known::Nothing(NoAnswer::Other(_)) => "unknown",
        }
    }

    fn problems(&self) -> Vec<String> {
        match &self.known {
            Known::Says(_, verdict) => verdict.problems.clone(),
            Known::Nothing(reason) => vec![reason.to_string()],
            Known::NotAsked => Vec::new(),
        }
    }

    fn notes(&self) -> &[String] {
        match &self.known {
            Known::Says(_, verdict) => &verdict.notes,
            Known::Nothing(_) | Known::NotAsked => &[],
        }
    }

    fn json(&self) -> Value {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut object = Map::new();
        object.insert("mountpoint".to_owned(), json!(path(&self.mount.mountpoint)));
        object.insert("source".to_owned(), json!(self.mount.source.to_string_lossy()));
        let also: Vec<String> = self.others.iter().map(|other| path(&other.mountpoint)).collect();
        object.insert("also_mounted_at".to_owned(), json!(also));
        object.insert("state".to_owned(), json!(self.state()));
        object.insert("user".to_owned(), json!(self.mount.user()));
        let healthy = match self.exit_status() {
            None if matches!(self.known, Known::NotAsked) => Value::Null,
            None => json!(true),
            Some(UNHEALTHY) => json!(false),
            Some(_) => Value::Null,
        };
        object.insert("healthy".to_owned(), healthy);
        object.insert("problems".to_owned(), json!(self.problems()));
        object.insert("notes".to_owned(), json!(self.notes()));
        if let Known::Says(Value::Object(status), _) = &self.known {
            object.extend(status.clone());
        }
        Value::Object(object)
    }

    fn one_line(&self) -> String {
        let said = match &self.known {
            Known::Says(status, verdict) if verdict.problems.is_empty() => summary(status),
            Known::Says(..) | Known::Nothing(_) => in_one_line(&self.problems()),
            Known::NotAsked => "not counted".to_owned(),
        };
        // The state in one word may be how the reason begins.
        let said = said.strip_prefix(self.state()).map_or(said.as_str(), |rest| rest.trim_start_matches([':', ' ']));
        let said = self.maker().map_or_else(|| said.to_owned(), |maker| format!("{maker}: {said}"));
        format!("{}: {}: {}\n", shown_path(&self.mount.mountpoint), self.painted_state(), shown(&said))
    }

    fn painted_state(&self) -> String {
        let style = match self.exit_status() {
            None if matches!(self.known, Known::NotAsked) => DIM,
            None => GREEN,
            Some(UNHEALTHY) => RED,
            Some(_) => YELLOW,
        };
        painted(style, self.state())
    }

    /// Who has made it, if it is neither this user nor root.
    fn maker(&self) -> Option<String> {
        match self.mount.user() {
            _ if is_trusted(self.mount) => None,
            Some(user) => Some(format!("made by uid {user}")),
            None => Some("made by an unknown user".to_owned()),
        }
    }

    fn for_people(&self) -> String {
        let mut text = format!(
            "{}  {}  {}\n",
            painted(BOLD, &self.mount.mountpoint.to_string_lossy()),
            self.painted_state(),
            painted(DIM, &self.mount.source.to_string_lossy())
        );
        if let Some(maker) = self.maker() {
            text += &format!("  {maker}\n");
        }
        for other in &self.others {
            text += &format!("  also at {}\n", shown_path(&other.mountpoint));
        }
        if let Known::Says(status, _) = &self.known {
            text += &format!("  {}{}\n", shown(&summary(status)), shown(&about(status)));
            text += &cells(status).lines("  ");
        }
        for (style, word, sentences) in [(RED, "problem", self.problems().as_slice()), (YELLOW, "note", self.notes())] {
            for sentence in sentences {
                text += &format!("  {}  {}\n", painted(style, word), shown(sentence));
            }
        }
        if let Known::Nothing(NoAnswer::Dead) = &self.known {
            text += "  mend     topofs umount it, or mount again: a new mount replaces it\n";
        }
        text
    }
}

/// The program behind a mount.
fn about(status: &Value) -> String {
    let version = text(status, "version").unwrap_or("of unknown version");
    let pid = number(status, &["pid"]).map_or(String::new(), |pid| format!(", process {pid}"));
    format!("; topofs {version}{pid}")
}

/// The cells of a status.
fn cells(status: &Value) -> Table {
    let mut table = Table::default();
    let headings = ["CELL", "STATE", "RECORDS", "LAST EVENT", "SERVER", "ROOT", "TROUBLE"];
    table.row(headings.iter().map(|heading| (BOLD, (*heading).to_owned())).collect());
    let now = text(status, "time");
    for (name, cell) in status.get("cells").and_then(Value::as_object).into_iter().flatten() {
        let state = text(cell, "state").unwrap_or("unknown");
        let style = match state {
            "live" => GREEN,
            "idle" => DIM,
            "loading" | "reconnecting" => YELLOW,
            _ => RED,
        };
        let last = text(cell, "last_event").zip(now).and_then(|(last, now)| clock::between(last, now));
        let last = last.map_or_else(|| "-".to_owned(), |ago| format!("{ago} ago"));
        let so_far = number(cell, &["loaded_so_far"]).filter(|_| state == "loading");
        let so_far = so_far.map(|records| format!("{records} so far"));
        let records = number(cell, &["records"]).filter(|_| state != "idle").map(|records| records.to_string());
        let server = [text(cell, "implementation"), text(cell, "server")].map(Option::unwrap_or_default).join(":");
        table.row(vec![
            (PLAIN, name.clone()),
            (style, state.to_owned()),
            (PLAIN, so_far.or(records).unwrap_or_else(|| "-".to_owned())),
            (PLAIN, last),
            (PLAIN, cut(server)),
            (PLAIN, text(cell, "root").unwrap_or_default().to_owned()),
            (PLAIN, trouble(cell)),
        ]);
    }
    table
}

/// A list of servers that fits into a table; all of it is in the JSON.
fn cut(servers: String) -> String {
    match servers.char_indices().nth(SERVER_WIDTH) {
        None => servers,
        Some(_) => servers.chars().take(SERVER_WIDTH - 1).chain(['\u{2026}']).collect(),
    }
}

/// What is wrong with a cell, in a few words: the sentences come below the table.
fn trouble(cell: &Value) -> String {
    let counted = |name: &str, what: &str| {
        number(cell, &[name]).filter(|count| *count > 0).map(|count| format!("{count} {what}"))
    };
    let broken = number(cell, &["broken_for_seconds"])
        .map(|seconds| format!("broken for {}", clock::roughly(Duration::from_secs(seconds))));
    let drift = number(cell, &["drift", "count"]).filter(|count| *count > 0).map(|count| format!("drift {count}"));
    let all = [broken, counted("missed", "missed"), counted("skipped_keys", "skipped"), drift];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_is_being_loaded_says_how_far_it_is() {
        let cells_of = |cell: Value| cells(&json!({ "cells": { "a": cell } })).lines("");
        let loading = cells_of(json!({ "state": "loading", "records": 0, "loaded_so_far": 4_711 }));
        assert!(loading.contains("4711 so far"), "{loading}");
        // What is shown meanwhile is whole.
        let again = cells_of(json!({ "state": "reconnecting", "records": 12, "loaded_so_far": 4_711 }));
        assert!(again.contains("12") && !again.contains("so far"), "{again}");
    }

    #[test]
    fn a_long_list_of_servers_does_not_push_the_columns_apart() {
        let cells_of = |server: String| {
            let cell = json!({ "state": "live", "implementation": "etcd2", "server": server, "root": "/r" });
            cells(&json!({ "cells": { "a": cell } })).lines("")
        };
        assert!(cells_of("h:1".to_owned()).contains("etcd2:h:1 "));
        let long = cells_of("h:1,".repeat(100));
        assert!(long.contains("\u{2026}"), "{long}");
        assert!(!long.contains(&"h:1,".repeat(20)), "{long}");
    }
}
