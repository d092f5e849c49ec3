//! How a command prints for people.

use clap::{Args, ColorChoice};

/// How to print.
#[derive(Debug, Args)]
pub(in crate::cli) struct ColorArgs {
    /// Colours: auto (on a terminal), always or never; the variable NO_COLOR means never, too
    #[arg(long, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub color: ColorChoice,
}

impl ColorArgs {
    /// Standard output, without colours where they are not wanted.
    pub fn stdout(&self) -> anstream::AutoStream<std::io::Stdout> {
        let choice = match self.color {
            ColorChoice::Auto => anstream::ColorChoice::Auto,
            ColorChoice::Always => anstream::ColorChoice::Always,
            ColorChoice::Never => anstream::ColorChoice::Never,
        };
        anstream::AutoStream::new(std::io::stdout(), choice)
    }
}
