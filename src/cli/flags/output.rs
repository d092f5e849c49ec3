//! How a command prints for people.

use clap::{Args, ColorChoice};

use crate::cli::out::Out;

/// How to print.
#[derive(Debug, Args)]
pub(in crate::cli) struct ColorArgs {
    /// Colours: auto (on a terminal), always or never; the variable NO_COLOR means never, too
    #[arg(long, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub color: ColorChoice,
}

impl ColorArgs {
    /// Standard output, without colours where they are not wanted.
    pub fn out(&self) -> Out {
        let choice = match self.color {
            ColorChoice::Auto => anstream::ColorChoice::Auto,
            ColorChoice::Always => anstream::ColorChoice::Always,
            ColorChoice::Never => anstream::ColorChoice::Never,
        };
        Out::to(anstream::AutoStream::new(std::io::stdout(), choice))
    }
}
