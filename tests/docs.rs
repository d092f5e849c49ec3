//! What README.md and docs/ say: each command of an example is run, and prints what the page says; flags exist; links
//! lead somewhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::mount::{Mount, TOPOFS};
use common::page::{Example, examples};
use common::{etcd, text, world, zookeeper};
use topofs::sample::Cluster;

/// Where the examples have their mount.
const SHOWN: &str = "/tmp/topo";

/// The pages with examples, each with a test of its own below.
const WITH_EXAMPLES: [&str; 6] =
    ["README.md", "docs/locks.md", "docs/maintenance.md", "docs/migration.md", "docs/recipes.md", "docs/semantics.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md, CHANGELOG.md and everything below docs/, with the content.
fn pages() -> Vec<(String, String)> {
    fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => collect(&path, found),
                Some(extension) if extension == "md" => found.push(path),
                _ => {}
            }
        }
    }
    let mut found = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    collect(&root().join("docs"), &mut found);
    found.sort();
    let named = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    found.into_iter().map(named).collect()
}

/// A page without its blocks of code.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// The name that a link gives to a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

fn anchors(page: &str) -> BTreeSet<String> {
    let prose = prose(page);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

fn run(page: &str) {
    let mount = Mount::new(&["demo"]);
    let root = mount.root().display().to_string();
    let before = mount.outside().join("before").display().to_string();
    play(page, &[(SHOWN, &root), ("/tmp/before", &before)]);
}

/// Runs the commands of a page, with other words in place of those that stand there.
fn play(page: &str, words: &[(&str, &str)]) {
    play_as(page, words, &Reader::default());
}

/// How a reader uses a page.
#[derive(Default)]
struct Reader<'a> {
    /// Has told the shell to end when a command fails: so each must succeed.
    is_strict: bool,
    /// Has these variables, and a service beside the mount.
    service: Option<&'a [(&'a str, &'a str)]>,
}

fn play_as(page: &str, words: &[(&str, &str)], reader: &Reader<'_>) {
    let examples = examples(&std::fs::read_to_string(root().join(page)).unwrap(), reader.service.is_some());
    assert!(examples.len() > 5, "{page} has examples");
    let ours = |text: &str| words.iter().fold(text.to_owned(), |text, (shown, real)| text.replace(shown, real));
    let shown = |text: &str| words.iter().fold(text.to_owned(), |text, (shown, real)| text.replace(real, shown));
    // One shell for all, as a reader has; a line between the outputs.
    let separator = "=-=-=";
    let script = examples.iter().map(|example| format!("{}\necho {separator}\n", ours(&example.command)));
    let options = if reader.is_strict { "set -euo pipefail\n" } else { "" };
    let script = format!("exec 2>&1\n{options}{}", script.collect::<String>());
    let path = format!("{}:{}", Path::new(TOPOFS).parent().unwrap().display(), std::env::var("PATH").unwrap());
    // Not a pipe: what a page has left running in the background must not keep us.
    let mut file = tempfile::tempfile().unwrap();
    let mut command = Command::new("timeout");
    command.args(["100", "bash", "-c", &script]).env("PATH", path).envs(reader.service.into_iter().flatten().copied());
    let status = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).status().unwrap();
    let mut printed = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut printed).unwrap();
    let printed = shown(&printed);
    let outputs: Vec<&str> = printed.split(&format!("{separator}\n")).collect();
    for (Example { line, command, output: expected }, printed) in examples.iter().zip(&outputs) {
        // A shell that reads a script names the line.
        let mut lines: Vec<String> = Vec::new();
        for line in printed.lines() {
            lines.push(match line.strip_prefix("bash: line ").and_then(|rest| rest.split_once(": ")) {
                Some((_, rest)) => format!("bash: {rest}"),
                None => without_time(line),
            });
        }
        let shown: String = lines.iter().map(|line| format!("{line}\n")).collect();
        assert_eq!(&shown, expected, "{page}:{line}: $ {command}");
    }
    // The shell has come to its end: the last output is that after the last command.
    let last = outputs.len().min(examples.len()) - 1;
    let Example { line, command, .. } = &examples[last];
    let ended = outputs.len() == examples.len() + 1 && status.success();
    assert!(ended, "{page}:{line}: $ {command}: {}, after {} of {} commands", status, last, examples.len());
}

/// How long something takes is another time each time.
fn without_time(line: &str) -> String {
    match line.split_once(" records were changed in ") {
        Some((records, _)) => format!("{records} records were changed in 0.1 s."),
        None => line.to_owned(),
    }
}

#[test]
fn migration() {
    let (old, new) = (etcd::shared().endpoint(), zookeeper::shared().endpoint());
    world::load(&*world::etcd_cell(&old, "/vitess"), &Cluster::demo(&old));
    play("docs/migration.md", &[("old:2379", &old), ("new:2181", &new)]);
}

#[test]
fn readme() {
    run("README.md");
}

#[test]
fn semantics() {
    run("docs/semantics.md");
}

#[test]
fn locks() {
    run("docs/locks.md");
}

#[test]
fn maintenance() {
    run("docs/maintenance.md");
}

/// Runs the recipes on two topologies. They must do what they say in a script, too.
fn cook(mount: &Mount, other: &Mount, service: Option<&[(&str, &str)]>) {
    let [root, other] = [mount, other].map(|mount| mount.root().display().to_string());
    let backup = mount.outside().join("backup");
    std::fs::create_dir(&backup).unwrap();
    let words = [(SHOWN, root.as_str()), ("/tmp/other", &other), ("/tmp/backup", backup.to_str().unwrap())];
    play_as("docs/recipes.md", &words, &Reader { is_strict: true, service });
}

#[test]
fn recipes_do_what_they_say_in_the_demo() {
    cook(&Mount::new(&["demo"]), &Mount::new(&["demo"]), None);
}

#[test]
fn recipes_do_what_they_say_on_etcd() {
    // A server of its own: the cells are at /vitess.
    let etcd = etcd::Etcd::start();
    let endpoint = etcd.endpoint();
    for root in ["/vitess", "/other"] {
        let cluster = Cluster { root: root.to_owned(), ..Cluster::demo(&endpoint) };
        world::load(&*world::etcd_cell(&endpoint, root), &cluster);
    }
    let [mount, other] = ["/vitess", "/other"].map(|root| Mount::etcd(&endpoint, root, &[]));
    let service = [
        ("TOPOFS_TOPO_IMPLEMENTATION", "etcd2"),
        ("TOPOFS_TOPO_GLOBAL_SERVER_ADDRESS", &endpoint),
        ("TOPOFS_TOPO_GLOBAL_ROOT", "/vitess/global"),
    ];
    cook(&mount, &other, Some(&service));
}

#[test]
fn every_page_with_examples_is_run() {
    let with_examples = pages().into_iter().filter(|(_, content)| content.contains("```console"));
    assert_eq!(with_examples.map(|(page, _)| page).collect::<Vec<_>>(), WITH_EXAMPLES);
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let mut looked_at = 0;
    for (page, content) in &pages {
        let content = prose(content);
        let targets = content.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => root().join(page),
                file => root().join(page).parent().unwrap().join(file),
            };
            assert!(path.exists(), "{page} links to {target}");
            if !fragment.is_empty() {
                let linked = std::fs::read_to_string(&path).unwrap();
                assert!(anchors(&linked).contains(fragment), "{page} links to {target}");
            }
            looked_at += 1;
        }
    }
    assert!(looked_at > 30, "{looked_at} links");
}

#[test]
fn every_flag_is_in_the_manual_and_no_other_in_the_docs() {
    let output = |args: &[&str]| text(&Command::new(TOPOFS).args(args).output().unwrap());
    let help = output(&["mount", "--help"]);
    let manual = output(&["man"]).replace('\\', "");
    let definitions = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let flags: Vec<&str> = definitions.flat_map(str::split_whitespace).filter(|word| word.starts_with("--")).collect();
    // A command of another program may stand at the beginning of a line.
    let flags: Vec<&str> = flags.into_iter().filter(|flag| !flag.contains('_')).collect();
    assert!(flags.len() > 20, "{help}");
    for flag in &flags {
        assert!(manual.contains(flag), "{flag} in the manual");
    }
    for (page, content) in pages() {
        let ours = content
            .split('`')
            .skip(1)
            .step_by(2)
            .flat_map(str::split_whitespace)
            .filter(|word| word.starts_with("--topo") || word.starts_with("--remote"));
        for flag in ours {
            let name = flag.split('=').next().unwrap();
            assert!(help.contains(name), "{page} names {name}");
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(output(&["completions", shell]).contains("topo-global-root"), "{shell}");
    }
}

/// The rows of the tables below a heading of a page, as their cells.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let content = std::fs::read_to_string(root().join(page)).unwrap();
    let (_, rest) = content.split_once(&format!("\n## {heading}\n")).expect(heading);
    let section = rest.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    rows.skip(2).map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

#[test]
fn every_errno_is_explained() {
    let explained = rows("docs/troubleshooting.md", "By errno");
    let names: Vec<&str> = explained.iter().map(|row| row[0].as_str()).collect();
    let code = std::fs::read_to_string(root().join("src/error.rs")).unwrap();
    let in_code = code.split("=> \"E").skip(1).filter_map(|rest| rest.split_once('"'));
    let in_code: BTreeSet<String> = in_code.map(|(name, _)| format!("E{name}")).collect();
    assert!(in_code.len() > 20, "{in_code:?}");
    assert_eq!(names, in_code.iter().map(String::as_str).collect::<Vec<_>>());
    for row in &explained {
        let number = (1..200).find(|number| format!("{:?}", nix::errno::Errno::from_raw(*number)) == row[0]);
        let name = if row[0] == "EWOULDBLOCK" { Some(libc::EAGAIN) } else { number };
        let message = std::io::Error::from_raw_os_error(name.expect(&row[0])).to_string();
        assert_eq!(message.split(" (").next(), Some(row[1].as_str()), "{}", row[0]);
        assert!(row[2].len() > 10, "{} has a meaning", row[0]);
    }
}

/// Warnings and errors of the log that the page leaves out: they have no words of their own, or nobody ever needs them.
const NOT_WORTH_A_WORD: [&str; 3] =
    ["...", "it is unknown whether the mount is still there", "cannot show a message as JSON"];

/// The words of all warnings and errors in the code; `...` stands for what they insert.
fn log_messages() -> BTreeSet<String> {
    fn collect(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.file_stem().is_some_and(|name| name == "tests") {
                continue;
            }
            if path.is_dir() {
                collect(&path, found);
                continue;
            }
            let code = std::fs::read_to_string(&path).unwrap();
            let code = code.split("#[cfg(test)]\nmod ").next().unwrap();
            for call in ["warn!(", "error!("].iter().flat_map(|name| code.split(name).skip(1)) {
                found.insert(message(call).unwrap_or_else(|| panic!("{}: {call:.80}", path.display())));
            }
        }
    }
    let mut found = BTreeSet::new();
    collect(&root().join("src"), &mut found);
    found
}

/// The string among the arguments of a call that is the value of no field.
fn message(call: &str) -> Option<String> {
    let (mut depth, mut before) = (0, ',');
    let mut rest = call.chars();
    loop {
        let next = rest.next()?;
        match next {
            '(' => depth += 1,
            ')' => depth -= 1,
            '"' => {
                let text = string(&mut rest)?;
                if depth == 0 && before == ',' {
                    return Some(text);
                }
            }
            _ => {}
        }
        if !next.is_whitespace() {
            before = next;
        }
    }
}

/// The rest of a string in the code, with `...` for what is inserted into it.
fn string(code: &mut std::str::Chars<'_>) -> Option<String> {
    let (mut text, mut is_inserted) = (String::new(), false);
    loop {
        match code.next()? {
            '"' => return Some(text),
            '{' => {
                text.push_str("...");
                is_inserted = true;
            }
            '}' => is_inserted = false,
            // A string goes on in the next line.
            '\\' => match code.next()? {
                '\n' => *code = code.as_str().trim_start().chars(),
                escaped => text.push(escaped),
            },
            character if !is_inserted => text.push(character),
            _ => {}
        }
    }
}

#[test]
fn every_warning_of_the_log_is_explained() {
    let explained = rows("docs/troubleshooting.md", "By the words of the log");
    let explained: BTreeSet<String> = explained.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    let mut logged = log_messages();
    assert!(logged.len() > 40, "{logged:?}");
    for left_out in NOT_WORTH_A_WORD {
        assert!(logged.remove(left_out), "nothing logs: {left_out}");
    }
    let missing: Vec<&String> = logged.difference(&explained).collect();
    assert!(
        missing.is_empty(),
        "say in docs/troubleshooting.md, or in NOT_WORTH_A_WORD, what this means: {missing:#?}"
    );
    let gone: Vec<&String> = explained.difference(&logged).collect();
    assert!(gone.is_empty(), "docs/troubleshooting.md explains what nothing logs: {gone:#?}");
}
