//! The examples of README.md and docs/semantics.md: each command is run, and prints what the page says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;
use std::process::Command;

use common::mount::{Mount, TOPOFS};
use common::text;

/// Where the examples have their mount.
const SHOWN: &str = "/tmp/topo";

/// The commands of a page with what they print.
fn examples(page: &str) -> Vec<(String, String)> {
    let mut examples: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            line => match line.strip_prefix("$ ") {
                Some(command) => examples.push((command.to_owned(), String::new())),
                None => {
                    let (_, output) = examples.last_mut().expect("output follows a command");
                    output.push_str(line);
                    output.push('\n');
                }
            },
        }
    }
    examples
}

fn run(page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let examples = examples(&std::fs::read_to_string(path).unwrap());
    assert!(examples.len() > 5, "{page} has examples");
    let mount = Mount::new(&["demo"]);
    let root = mount.root().display().to_string();
    let before = mount.outside().join("before").display().to_string();
    // One shell for all, as a reader has; a line between the outputs.
    let separator = "=-=-=";
    let script: String = examples
        .iter()
        .map(|(command, _)| {
            format!("{}\necho {separator}\n", command.replace(SHOWN, &root).replace("/tmp/before", &before))
        })
        .collect();
    let output = Command::new("timeout").args(["60", "bash", "-c", &format!("exec 2>&1\n{script}")]).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap().replace(&root, SHOWN).replace(&before, "/tmp/before");
    let outputs: Vec<&str> = printed.split(&format!("{separator}\n")).collect();
    assert_eq!(outputs.len(), examples.len() + 1, "{printed}");
    for ((command, expected), printed) in examples.iter().zip(outputs) {
        // A shell that reads a script names the line.
        let mut lines: Vec<String> = Vec::new();
        for line in printed.lines() {
            lines.push(match line.strip_prefix("bash: line ").and_then(|rest| rest.split_once(": ")) {
                Some((_, rest)) => format!("bash: {rest}"),
                None => line.to_owned(),
            });
        }
        let shown: String = lines.iter().map(|line| format!("{line}\n")).collect();
        assert_eq!(&shown, expected, "{page}: $ {command}");
    }
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
    for page in [
        "README.md",
        "docs/semantics.md",
        "docs/locks.md",
        "docs/backends.md",
        "docs/operations.md",
        "docs/troubleshooting.md",
    ] {
        let content = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
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
