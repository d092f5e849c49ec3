//! `topofs man`: the manual page.

use std::io::Write;
use std::process::ExitCode;

use super::Ended;

/// One page for all commands: nobody could find separate pages of subcommands by name.
pub(in crate::cli) fn run(mut command: clap::Command) -> Ended {
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    let is_told =
        |sub: &&clap::Command| !sub.is_hide_set() && !matches!(sub.get_name(), "completions" | "man" | "help");
    for sub in command.get_subcommands().filter(is_told) {
        let name = sub.get_name().to_uppercase();
        writeln!(page, ".SH \"{name}\"")?;
        let sub = clap_mangen::Man::new(sub.clone());
        sub.render_synopsis_section(&mut page)?;
        sub.render_description_section(&mut page)?;
        sub.render_options_section(&mut page)?;
    }
    std::io::stdout().write_all(&page)?;
    Ok(ExitCode::SUCCESS)
}
