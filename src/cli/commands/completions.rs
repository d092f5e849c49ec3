//! `topofs completions`: a script for a shell.

use std::io::Write;
use std::process::ExitCode;

use clap::{Arg, Args, Command, ValueHint};
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
        if self.shell == Shell::Fish {
            script.extend_from_slice(fish_arguments(&command).as_bytes());
        }
        std::io::stdout().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A command whose words are not optional: for zsh, an optional one and the next would be two ways to complete the same
/// word, and it would take neither.
fn without_choice(command: Command) -> Command {
    command.mut_args(|arg| match arg.is_positional() {
        true => Arg::new(arg.get_id().clone()).required(true).value_hint(arg.get_value_hint()),
        false => arg,
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
                (true, _) => continue,
            };
            let is_used = format!("__fish_{PROGRAM}_using_subcommand {}", sub.get_name());
            script.push_str(&format!("complete -c {PROGRAM} -n \"{is_used}\" -f -a \"{offered}\"\n"));
        }
    }
    script
}
