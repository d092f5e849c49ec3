//! Flags as entries of a list, from the definitions that `--help` shows: on the command line, or as mount options.

use clap::{Arg, Command};

use super::page::Page;

/// How a page spells flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Spelling {
    /// `--read-only`
    Flag,
    /// `read_only`, after `-o`
    Option,
}

/// The flags that people are told of, in the order of their definition.
pub(super) fn told(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_hide_set())
}

/// Whether every command has it, and nobody looks for it.
pub(super) fn is_everywhere(arg: &Arg) -> bool {
    matches!(arg.get_id().as_str(), "help" | "version")
}

/// The headings of groups of flags, in the order of their definition; `None` for flags without one.
pub(super) fn headings<'a>(args: &[&'a Arg]) -> Vec<Option<&'a str>> {
    let mut headings = Vec::new();
    for arg in args {
        if !headings.contains(&arg.get_help_heading()) {
            headings.push(arg.get_help_heading());
        }
    }
    headings
}

/// Adds the entry of one flag.
pub(super) fn add(page: &mut Page, arg: &Arg, spelling: Spelling, command: &Command) {
    let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = spelled(&help, spelling, command);
    let mut more = Vec::new();
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty() && takes_value(arg) {
        more.push(format!("Default: `{}`.", defaults.join(",")));
    }
    if let Some(env) = arg.get_env() {
        more.push(format!("Environment: `{}`.", env.to_string_lossy()));
    }
    if !more.is_empty() {
        text = format!("{text}\n\n{}", more.join(" "));
    }
    page.item(&term(arg, spelling), &text);
    // The two words that a switch can have in the environment are no choice that anybody makes.
    if takes_value(arg) && !arg.is_hide_possible_values_set() {
        let choices = arg.get_possible_values();
        let shown = choices.iter().filter(|choice| !choice.is_hide_set());
        let shown: Vec<(String, String)> = shown
            .map(|choice| {
                let help = choice.get_help().map(ToString::to_string).unwrap_or_default();
                (choice.get_name().to_owned(), spelled(&help, spelling, command))
            })
            .collect();
        if !shown.is_empty() {
            page.choices(&shown);
        }
    }
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// A flag without its values.
pub(super) fn name(arg: &Arg) -> String {
    match (arg.get_long(), arg.get_short()) {
        (Some(long), _) => format!("`--{long}`"),
        (None, Some(short)) => format!("`-{short}`"),
        (None, None) => String::new(),
    }
}

/// What a flag is called, with all its names.
fn term(arg: &Arg, spelling: Spelling) -> String {
    let values = arg.get_value_names().unwrap_or_default();
    let values = values.iter().map(|value| format!("*{value}*")).collect::<Vec<_>>().join(" ");
    let value = if takes_value(arg) { values.as_str() } else { "" };
    let aliases = arg.get_visible_aliases().unwrap_or_default();
    let longs = arg.get_long().into_iter().chain(aliases);
    let names: Vec<String> = match spelling {
        Spelling::Flag => {
            let shorts = arg.get_short().into_iter().map(|short| format!("`-{short}`"));
            shorts.chain(longs.map(|long| format!("`--{long}`"))).collect()
        }
        Spelling::Option => longs.map(|long| format!("`{}`", long.replace('-', "_"))).collect(),
    };
    match (names.is_empty(), value, spelling) {
        // An argument by its place.
        (true, _, _) => values,
        (false, "", _) => names.join(", "),
        (false, value, Spelling::Flag) => format!("{} {value}", names.join(", ")),
        (false, value, Spelling::Option) => {
            names.iter().map(|name| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
        }
    }
}

/// A help text in which the names of our own flags are spelled as the page spells them.
pub(in crate::cli) fn spelled(help: &str, spelling: Spelling, command: &Command) -> String {
    if spelling == Spelling::Flag {
        return help.to_owned();
    }
    let ours: Vec<&str> = command.get_arguments().filter_map(Arg::get_long).collect();
    let is_ours = |name: &str| match name.split_once('*') {
        Some((start, _)) => ours.iter().any(|long| long.starts_with(start)),
        None => ours.contains(&name),
    };
    let mut pieces = help.split("--");
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '*')).unwrap_or(piece.len());
        match piece.split_at_checked(end) {
            Some((name, rest)) if !name.is_empty() && is_ours(name) => {
                text.push_str(&name.replace('-', "_"));
                text.push_str(rest);
            }
            _ => {
                text.push_str("--");
                text.push_str(piece);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let list = Arg::new("list").long("cell-servers").visible_alias("servers").value_name("SERVERS");
        let switch = Arg::new("switch").short('r').long("read-only").action(clap::ArgAction::SetTrue);
        Command::new("x").arg(list).arg(switch)
    }

    #[test]
    fn flags_are_spelled_for_the_command_line_and_for_mount() {
        let mut command = command();
        command.build();
        let args: Vec<&Arg> = told(&command).collect();
        assert_eq!(term(args[0], Spelling::Flag), "`--cell-servers`, `--servers` *SERVERS*");
        assert_eq!(term(args[0], Spelling::Option), "`cell_servers`=*SERVERS*, `servers`=*SERVERS*");
        assert_eq!(term(args[1], Spelling::Flag), "`-r`, `--read-only`");
        assert_eq!(term(args[1], Spelling::Option), "`read_only`");
    }

    #[test]
    fn only_our_own_flags_become_options() {
        let help = "Not with --read-only (or --cell-*), --read-only-bind, `--max-size` of etcd -- nor --";
        let options = "Not with read_only (or cell_*), --read-only-bind, `--max-size` of etcd -- nor --";
        assert_eq!(spelled(help, Spelling::Option, &command()), options);
        assert_eq!(spelled(help, Spelling::Flag, &command()), help);
    }
}
