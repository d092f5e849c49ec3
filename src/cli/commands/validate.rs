//! `topofs validate`: shows what contradicts what in a topology. Reads a topology directly, or asks a mount for what it
//! has found. Must never print a name as it is: anybody may have chosen it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use super::{Ended, complain};
use crate::cli::flags::topo::TopologyArgs;
use crate::cli::log::Heard;
use crate::cli::mounted::{Mount, resolved};
use crate::cli::out::Out;
use crate::control::ControlFile;
use crate::name::{CellName, CellPath, LOCK_FILE, TopoPath};
use crate::plain::shown;
use crate::record::{Codec, Form, Kinds, Records};
use crate::topology::validate::{Severity, Sight, Within, problems};

/// Exit status: there are problems.
const PROBLEMS: u8 = 1;
/// Exit status: nobody knows whether there are.
pub(in crate::cli) const NOT_CHECKED: u8 = 2;
/// Cells of a mount that are connected at a time.
const AT_A_TIME: usize = 16;

/// Flags of `topofs validate`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ValidateArgs {
    /// Only what is wrong with these records, and with those below [default: all]
    ///
    /// As Vitess's tools write it (global/keyspaces/commerce), or a file or directory of a mount. A path in a mount is
    /// checked through this mount, without the flags of a topology.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// One JSON object a line, as in .topofs/problems
    #[arg(long)]
    json: bool,
    /// Keys that match CELL/PATH are records, too; `*` matches within a name, `**` across directories
    #[arg(long, value_name = "GLOB", env = "TOPOFS_RECORD", value_delimiter = ' ')]
    record: Vec<String>,
    #[command(flatten)]
    topology: TopologyArgs,
}

impl ValidateArgs {
    /// Shows the problems. Succeeds if there are none.
    pub fn run(&self) -> Ended {
        let found = match self.find() {
            Ok(found) => found,
            Err(error) => {
                complain(&format!("{error:#}"));
                return Ok(NOT_CHECKED.into());
            }
        };
        let text = if self.json { found.lines.clone() } else { for_people(&found) };
        let mut out = Out::default();
        out.print(&text);
        let well = if has_problems(&found.lines) { PROBLEMS.into() } else { ExitCode::SUCCESS };
        Ok(out.end_command(well, NOT_CHECKED))
    }

    /// What is wrong. Fails if something that was asked about could not be checked.
    fn find(&self) -> anyhow::Result<Found> {
        let mut mounts = Vec::new();
        for path in &self.paths {
            let path = resolved(&std::path::absolute(path)?);
            mounts.push(Mount::of(&path).ok().map(|mount| (mount, path)));
        }
        if mounts.iter().all(Option::is_none) {
            return Ok(Found { lines: self.find_directly()?, mount: None });
        }
        let inside: Option<Vec<(Mount, PathBuf)>> = mounts.into_iter().collect();
        let inside = inside.context("some of the paths are in a mount and others are not: check them one by one")?;
        let Some((mount, _)) = inside.first() else { bail!("no path is given") };
        if inside.iter().any(|(other, _)| other.root != mount.root) {
            bail!("the paths are in several mounts: check them one by one");
        }
        let paths: Vec<&Path> = inside.iter().map(|(_, path)| path.as_path()).collect();
        Ok(Found { lines: through_mount(mount, &paths)?, mount: Some(mount.root.clone()) })
    }

    fn find_directly(&self) -> anyhow::Result<String> {
        let asked = self.paths.iter().map(|path| as_vitess_writes(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let within: Vec<CellPath> = asked.iter().flatten().cloned().collect();
        // The root stands for everything.
        let within = Within(if asked.iter().any(Option::is_none) { Vec::new() } else { within });
        let kinds = Kinds::new(&self.record)?;
        self.topology.with_cells(Heard::Errors, async |cells, _| {
            let mut sight = Sight::load(cells).await?;
            // A wrong root looks like an empty topology, which is not what anybody asks about.
            if let (true, Some(global)) = (sight.topology.global.records.is_empty(), cells.get(&CellName::global())) {
                bail!("{global}: nothing is stored there (is the root right?)");
            }
            sight.records = Records::new(Codec::builtin()?, kinds);
            let report = problems(&sight, within.clone(), SystemTime::now());
            for place in &within.0 {
                let found = report.problems().iter().any(|problem| problem.at.path.below(&place.path).is_some());
                is_known(&sight, place, found)?;
            }
            Ok(report.lines())
        })
    }
}

/// A cell and a path in it; `None` for the root. Any form of a record, and its lock, stand for the record.
fn as_vitess_writes(path: &Path) -> anyhow::Result<Option<CellPath>> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    let text = text.trim_start_matches("./").trim_matches('/');
    if text.is_empty() || text == "." {
        return Ok(None);
    }
    let text = text.strip_suffix(LOCK_FILE).map_or(text, |dir| dir.trim_end_matches('/'));
    let (cell, path) = text.split_once('/').unwrap_or((text, ""));
    let path = Form::of_name(path).map_or(path, |(record, _)| record);
    let wrong = || format!("{} is not a path of a topology", shown(text));
    let (cell, path) = (CellName::new(cell).with_context(wrong)?, TopoPath::parse(path).with_context(wrong)?);
    Ok(Some(CellPath { cell, path }))
}

/// Fails if a place could not be looked at, or does not exist: a mistyped path must not look sound.
fn is_known(sight: &Sight, place: &CellPath, has_problems: bool) -> anyhow::Result<()> {
    let cell = &place.cell;
    let snapshot = match (cell.is_global(), sight.topology.cells.get(cell)) {
        (true, _) => &sight.topology.global,
        (false, Some(Ok(snapshot))) => snapshot,
        (false, Some(Err(error))) => bail!("{}", error.reason),
        (false, None) => bail!("there is no cell {}", shown(cell.as_str())),
    };
    let is_there = |path: &TopoPath| path.below(&place.path).is_some();
    let is_stored = snapshot.records.contains_key(&place.path)
        || snapshot.has_children(&place.path)
        || snapshot.locks.keys().any(is_there);
    if !is_stored && !place.path.is_root() && !has_problems {
        bail!("nothing is stored at {}", shown(&place.to_string()));
    }
    Ok(())
}

/// What a mount has found at some paths in it.
fn through_mount(mount: &Mount, paths: &[&Path]) -> anyhow::Result<String> {
    wake(&mount.root);
    let global = mount.root.join(CellName::GLOBAL);
    if std::fs::read_dir(&global).is_ok_and(|mut entries| entries.next().is_none()) {
        bail!("{}: nothing is stored there (is the root of the mount right?)", shown(&global.display().to_string()));
    }
    let problems = mount.read(ControlFile::Problems)?;
    let mut wanted = Vec::new();
    for path in paths {
        let relative = path.strip_prefix(&mount.root)?;
        let Some(place) = as_vitess_writes(relative)? else { return Ok(problems) };
        let (below, lock) = (format!("{place}/"), place.to_string());
        let is_wanted = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            let record = line.get("record").and_then(Value::as_str);
            record.is_some_and(|record| record == lock || record.starts_with(&below))
        };
        let there: Vec<&str> = problems.lines().filter(|line| is_wanted(line)).collect();
        if there.is_empty() {
            path.symlink_metadata().with_context(|| shown(&path.display().to_string()))?;
        }
        wanted.extend(there);
    }
    let more = problems.lines().any(|line| line.contains("\"more\":"));
    if more {
        complain("the mount keeps only a part of its problems: without a mount, all at these paths are found");
    }
    // Of several paths, one may be above another.
    let mut seen = std::collections::BTreeSet::new();
    wanted.retain(|line| seen.insert(*line));
    Ok(wanted.into_iter().fold(String::new(), |text, line| format!("{text}{line}\n")))
}

/// Lets a mount connect all its cells. A cell that does not answer is a problem that the mount knows.
fn wake(root: &Path) {
    let cells: Vec<PathBuf> =
        std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    for some in cells.chunks(AT_A_TIME) {
        std::thread::scope(|scope| {
            for cell in some {
                scope.spawn(move || std::fs::read_dir(cell).map(|mut entries| drop(entries.next())));
            }
        });
    }
}

/// Lines of problems, and the mount that has found them.
struct Found {
    lines: String,
    mount: Option<PathBuf>,
}

/// Whether there is more than notes.
fn has_problems(lines: &str) -> bool {
    let severity =
        |line: &str| serde_json::from_str::<Value>(line).ok()?.get("severity")?.as_str().map(ToOwned::to_owned);
    lines.lines().any(|line| severity(line).as_deref() != Some(Severity::Note.name()))
}

/// The problems by record, each with what mends it.
fn for_people(found: &Found) -> String {
    let mut text = String::new();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut last = None;
    for line in found.lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let field = |name: &str| shown(line.get(name).and_then(Value::as_str).unwrap_or_default());
        let more = line.get("more").and_then(Value::as_u64);
        *counts.entry(field("severity")).or_default() += more.unwrap_or(1);
        let record = if more.is_some() { String::new() } else { field("record") };
        if last.as_ref() != Some(&record) {
            let gap = if last.is_some() { "\n" } else { "" };
            let _ = writeln!(text, "{gap}{}", if more.is_some() { "And more" } else { &record });
            last = Some(record);
        }
        let _ = match more {
            Some(more) => writeln!(text, "  {:8} {more} more of kind {}", field("severity"), field("kind")),
            None => writeln!(
                text,
                "  {:8} {}: {}\n  {:8} {}",
                field("severity"),
                field("kind"),
                field("fault"),
                "mend",
                field("mend")
            ),
        };
    }
    if counts.is_empty() {
        return "No problems.\n".to_owned();
    }
    let notes = counts.remove(Severity::Note.name()).unwrap_or_default();
    let total: u64 = counts.values().sum();
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    let counted = |(severity, count): (&String, &u64)| format!("{count} {severity}{}", plural(*count));
    let counts: Vec<String> = counts.iter().map(counted).collect();
    let summary = match total {
        0 => "No problems".to_owned(),
        total => format!("{total} problem{}: {}", plural(total), counts.join(", ")),
    };
    let notes = if notes == 0 { String::new() } else { format!("; {notes} note{}", plural(notes)) };
    let place = found.mount.as_ref().map(|root| shown(&root.display().to_string()));
    let place = place.unwrap_or_else(|| "the mount point".to_owned());
    let _ = writeln!(text, "\n{summary}{notes}. Paths are below {place}.");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_vitess_writes_in_any_form() {
        let read = |text: &str| as_vitess_writes(Path::new(text)).unwrap().map(|place| place.to_string());
        for (text, expected) in [
            ("global/keyspaces/a", Some("global/keyspaces/a")),
            ("/global/keyspaces/a/", Some("global/keyspaces/a")),
            ("./zone1", Some("zone1")),
            ("zone1/tablets/zone1-1/Tablet.txt", Some("zone1/tablets/zone1-1/Tablet")),
            ("global/keyspaces/a/.lock", Some("global/keyspaces/a")),
            ("/", None),
            (".", None),
            ("", None),
        ] {
            assert_eq!(read(text).as_deref(), expected, "{text}");
        }
        assert!(as_vitess_writes(Path::new("global/../a")).is_err());
    }

    #[test]
    fn people_see_records_with_their_problems_and_a_count() {
        let lines = r#"{"record":"global/a","kind":"stray-key","severity":"warning","fault":"a\nb","mend":"rm global/a"}
{"record":"global/a","kind":"undecodable","severity":"error","fault":"no message","mend":"rm global/a"}
{"record":"global/b","kind":"undecodable","severity":"error","fault":"no message","mend":"rm global/b"}
{"kind":"undecodable","severity":"error","more":40}
"#;
        let expected = "\
global/a
  warning  stray-key: a\\u{a}b
  mend     rm global/a
  error    undecodable: no message
  mend     rm global/a

global/b
  error    undecodable: no message
  mend     rm global/b

And more
  error    40 more of kind undecodable

43 problems: 42 errors, 1 warning. Paths are below the mount point.
";
        let people = |lines: &str, mount: Option<&str>| {
            for_people(&Found { lines: lines.to_owned(), mount: mount.map(PathBuf::from) })
        };
        assert_eq!(people(lines, None), expected);
        assert!(people(lines, Some("/mnt/topo")).ends_with(". Paths are below /mnt/topo.\n"));
        assert_eq!(people("", None), "No problems.\n");
        let note = r#"{"record":"global/a","kind":"cell-not-known","severity":"note","fault":"f","mend":"ls"}"#;
        assert!(people(note, None).ends_with("\nNo problems; 1 note. Paths are below the mount point.\n"));
        assert!(!has_problems(note) && has_problems(lines) && !has_problems(""));
    }
}
