//! The manual as man(1) shows it, and completions in the shells themselves.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::common::mount::TOPOFS;
use crate::common::{bash_in, text};

const PAGES: [&str; 3] = ["topofs.1", "mount.topofs.8", "topofs.5"];

/// All pages, each in a file.
fn pages() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(TOPOFS).args(["man", "--dir"]).arg(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    dir
}

/// The output of a script that must succeed and complain about nothing.
fn quietly(dir: &Path, script: &str) -> String {
    let output = bash_in(dir, &format!("set -e; export LC_ALL=C.UTF-8; {script}"));
    assert!(output.status.success() && output.stderr.is_empty(), "{script}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_pages_render_without_warnings() {
    let dir = pages();
    for page in PAGES {
        quietly(dir.path(), &format!("man --warnings -E UTF-8 -l -Tutf8 -Z {page} > /dev/null"));
        assert_eq!(quietly(dir.path(), &format!("mandoc -Tlint -W warning {page}")), "", "{page}");
        let printed = Command::new(TOPOFS).args(["man", page]).output().unwrap();
        assert_eq!(printed.stdout, std::fs::read(dir.path().join(page)).unwrap(), "{page}");
    }
}

#[test]
fn the_pages_have_the_sections_that_people_look_for_and_fit_a_terminal() {
    let dir = pages();
    let common = ["NAME", "DESCRIPTION", "SEE ALSO"];
    let of_commands = ["SYNOPSIS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"];
    for page in PAGES {
        // As apropos(1) finds it.
        let about = quietly(dir.path(), &format!("lexgrog {page}"));
        let name = page.rsplit_once('.').unwrap().0;
        assert!(about.contains(&format!("\"{name} - ")), "{about}");
        let shown = quietly(dir.path(), &format!("MANWIDTH=80 man -l {page} | col -bx"));
        let sections: &[&str] =
            if page == "topofs.5" { &["READING", "WRITING", "LOCKS", "ERRORS"] } else { &of_commands };
        for section in common.iter().chain(sections) {
            assert!(shown.lines().any(|line| line == *section), "{page}: {section}\n{shown}");
        }
        for line in shown.lines() {
            // A line of fstab cannot be broken.
            assert!(line.chars().count() <= 80 || line.contains("  topofs  "), "{page}: {line}");
        }
    }
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "source <({TOPOFS} completions bash)
         # What readline does: the words so far, and the function that is registered.
         reply() {{
           COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)) COMPREPLY=()
           _topofs topofs \"${{@: -1}}\" \"${{@: -2:1}}\"
           echo \"${{COMPREPLY[*]}}\"
         }}
         reply topofs mou
         reply topofs mount --serve
         reply topofs mount --topo-implementation z
         reply topofs completions fi
         mkdir mnt; touch mnt.txt
         reply topofs mount --log-file mn
         reply topofs mount ''
         reply topofs umount mn
         reply topofs status --all m
         reply topofs events ''
         complete -p topofs"
    );
    let printed = quietly(dir.path(), &script);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..5], ["mount", "--serve-stale", "zk2", "fish", "mnt mnt.txt"], "{printed}");
    assert_eq!(lines[5..9], ["mnt", "mnt", "mnt", "mnt mnt.txt"], "{printed}");
    // Where the function knows nothing, readline offers files.
    assert!(lines[9].contains("-o default") && lines[9].ends_with("-F _topofs topofs"), "{printed}");
}

#[test]
fn fish_completes_commands_flags_values_and_directories() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mkdir mnt; touch mnt.txt; export HOME=$PWD
         fish --no-config -c '{TOPOFS} completions fish | source
           for line in \"topofs mou\" \"topofs mount --serve\" \"topofs mount --topo-implementation z\" \\
               \"topofs completions fi\" \"topofs mount mn\" \"topofs man --dir mn\"
             echo (complete -C $line | string split -f 1 \\t)
           end'"
    );
    let printed = quietly(dir.path(), &script);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines, ["mount", "--serve-stale", "zk2", "fish", "mnt/", "mnt/"]);
}

#[test]
fn zsh_completes_commands_flags_values_and_directories() {
    let dir = tempfile::tempdir().unwrap();
    // A zsh with a terminal of its own: a key completes, another one tells what the line is now.
    let script = format!(
        "{TOPOFS} completions zsh > _topofs; mkdir mnt; touch mnt.txt ready.zsh
         cat > tell.zsh <<'END'
fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D
tell() {{ print -r -- \"$BUFFER\" > line.new; mv line.new line; BUFFER=; }}
zle -N tell; bindkey '^X' tell; bindkey '^I' complete-word; print > ready
END
         cat > ask.zsh <<'END'
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z 'source ./tell.zsh'
until [[ -e ready ]] do sleep 0.02; done
for line in 'topofs mou' 'topofs mount --serve' 'topofs mount --topo-implementation z' \\
    'topofs completions fi' 'topofs mount mn' 'topofs man --dir mn'; do
  rm -f line
  zpty -w -n z \"$line\"$'\\t\\x18'
  until [[ -e line ]] do sleep 0.02; done
  cat line
done
END
         timeout 30 zsh -f ask.zsh"
    );
    let printed = quietly(dir.path(), &script);
    let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
    let completed = [
        "topofs mount",
        "topofs mount --serve-stale",
        "topofs mount --topo-implementation zk2",
        "topofs completions fish",
        "topofs mount mnt/",
        "topofs man --dir mnt/",
    ];
    assert_eq!(lines, completed);
}
