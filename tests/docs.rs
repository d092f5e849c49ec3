//! What README.md and docs/ say: each command of an example is run, and prints what the page says; flags exist; links
//! lead somewhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::mount::{Mount, TOPOFS};
use common::page::examples;
use common::{etcd, text, world, zookeeper};
use topofs::sample::Cluster;

/// Where the examples have their mount.
const SHOWN: &str = "/tmp/topo";

/// The pages with examples, each with a test of its own below.
const WITH_EXAMPLES: [&str; 5] =
    ["README.md", "docs/locks.md", "docs/maintenance.md", "docs/migration.md", "docs/semantics.md"];

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
    let examples = examples(&std::fs::read_to_string(root().join(page)).unwrap());
    assert!(examples.len() > 5, "{page} has examples");
    let ours = |text: &str| words.iter().fold(text.to_owned(), |text, (shown, real)| text.replace(shown, real));
    let shown = |text: &str| words.iter().fold(text.to_owned(), |text, (shown, real)| text.replace(real, shown));
    // One shell for all, as a reader has; a line between the outputs.
    let separator = "=-=-=";
    let script: String = examples.iter().map(|(command, _)| format!("{}\necho {separator}\n", ours(command))).collect();
    let script = format!("exec 2>&1\n{script}");
    let path = format!("{}:{}", Path::new(TOPOFS).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("timeout").args(["60", "bash", "-c", &script]).env("PATH", path).output().unwrap();
    let printed = shown(&String::from_utf8(output.stdout).unwrap());
    let outputs: Vec<&str> = printed.split(&format!("{separator}\n")).collect();
    assert_eq!(outputs.len(), examples.len() + 1, "{printed}");
    for ((command, expected), printed) in examples.iter().zip(outputs) {
        // A shell that reads a script names the line.
        let mut lines: Vec<String> = Vec::new();
        for line in printed.lines() {
            lines.push(match line.strip_prefix("bash: line ").and_then(|rest| rest.split_once(": ")) {
                Some((_, rest)) => format!("bash: {rest}"),
                None => without_time(line),
            });
        }
        let shown: String = lines.iter().map(|line| format!("{line}\n")).collect();
        assert_eq!(&shown, expected, "{page}: $ {command}");
    }
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
