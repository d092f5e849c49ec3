//! `topofs completions`: a script for a shell.

use std::io::Write;
use std::process::ExitCode;

use clap::{Arg, ArgAction, Args, Command, ValueHint};
use clap_complete::Shell;

use super::Ended;

/// What the scripts call the program.
const PROGRAM: &str = "topofs";

/// Arguments of `topofs completions`.
#[derive(Debug, Args)]
pub(in crate::cli) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    /// Prints the script for a command line.
    pub fn run(&self, mut command: Command) -> Ended {
        let mut script = Vec::new();
        if self.shell == Shell::Zsh {
            command = command.mut_subcommands(without_choice);
        }
        clap_complete::generate(self.shell, &mut command, PROGRAM, &mut script);
        match self.shell {
            Shell::Fish => script.extend_from_slice(fish_arguments(&command).as_bytes()),
            Shell::Bash => script = bash_arguments(&String::from_utf8(script)?, &command).into_bytes(),
            _ => {}
        }
        std::io::stdout().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A command whose words are not optional: for zsh, an optional one and the next would be two ways to complete the same
/// word, and it would take neither.
fn without_choice(command: Command) -> Command {
    let is_one = |arg: &Arg| {
        let has_choices = !arg.get_possible_values().is_empty();
        arg.is_positional() && !has_choices && !matches!(arg.get_action(), ArgAction::Append)
    };
    command.mut_args(|arg| match is_one(&arg) {
        true => Arg::new(arg.get_id().clone()).required(true).value_hint(arg.get_value_hint()),
        false => arg,
    })
}

/// In bash, clap_complete offers flags also for a word that does not begin with a dash. What stands there is a path, if
/// the command takes one.
fn bash_arguments(script: &str, command: &Command) -> String {
    const AT_ONCE: &str = "if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then";
    const FLAGS: &str = "            COMPREPLY=( $(compgen -W \"${opts}\" -- \"${cur}\") )";
    let mut completed = String::new();
    let mut action = None;
    for line in script.lines() {
        // A line such as `topofs__subcmd__mount)` begins the part of a command.
        if let Some(name) = line.trim().strip_suffix(')').and_then(|line| line.strip_prefix("topofs__subcmd__")) {
            let sub = command.get_subcommands().find(|sub| sub.get_name().replace('-', "__") == name);
            action = sub.and_then(bash_action);
        }
        let line = match action {
            Some(_) if line.trim() == AT_ONCE => line.replace(AT_ONCE, "if [[ ${cur} == -* ]] ; then"),
            Some(action) if line == FLAGS => format!(
                "            compopt -o filenames 2> /dev/null || true\n            \
                 mapfile -t COMPREPLY < <(compgen -A {action} -- \"${{cur}}\")"
            ),
            _ => line.to_owned(),
        };
        completed.push_str(&line);
        completed.push('\n');
    }
    completed
}

/// What bash calls the paths that a command takes.
fn bash_action(command: &Command) -> Option<&'static str> {
    command.get_positionals().find_map(|arg| match arg.get_value_hint() {
        ValueHint::DirPath => Some("directory"),
        ValueHint::AnyPath | ValueHint::FilePath => Some("file"),
        _ => None,
    })
}

/// clap_complete leaves out what stands behind a command without a flag: choices and directories.
fn fish_arguments(command: &Command) -> String {
    let mut script = String::new();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        for arg in sub.get_positionals() {
            let choices = arg.get_possible_values();
            let names: Vec<&str> = choices.iter().map(|choice| choice.get_name()).collect();
            let offered = match (names.is_empty(), arg.get_value_hint()) {
                (false, _) => names.join(" "),
                (true, ValueHint::DirPath) => "(__fish_complete_directories)".to_owned(),
                // Files are what fish offers by itself.
                (true, _) => continue,
            };
            let is_used = format!("__fish_{PROGRAM}_using_subcommand {}", sub.get_name());
            script.push_str(&format!("complete -c {PROGRAM} -n \"{is_used}\" -f -a \"{offered}\"\n"));
        }
    }
    script
}
