//! The `topofs` command: see src/cli.

use std::process::ExitCode;

fn main() -> ExitCode {
    topofs::cli::main(std::env::args_os())
}
