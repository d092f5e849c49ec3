//! The variables of the environment that are flags. Must never know a name that no definition of a flag has.

use std::ffi::OsStr;

use super::near::nearest;

/// How the names of all variables begin.
const OURS: &str = "TOPOFS_";
/// How those for tests begin: they are no flags.
const TESTS: &str = "TOPOFS_TEST_";

/// What is wrong with the environment: a variable that looks like a flag, and is none. It may be a misspelt one, and
/// the mount would be another one than was wanted.
pub(super) fn wrong(program: &clap::Command) -> Option<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    first_wrong(names, &known(program))
}

fn first_wrong(names: impl Iterator<Item = String>, known: &[String]) -> Option<String> {
    let is_ours = |name: &String| name.starts_with(OURS) && !name.starts_with(TESTS) && !is_of_a_service(name);
    // The same one each time.
    let name = names.filter(|name| is_ours(name) && !known.contains(name)).min()?;
    let hint = nearest(&name, known.iter().cloned())
        .map_or_else(|| " (topofs mount --help has all)".to_owned(), |near| format!(": did you mean {near}?"));
    Some(format!("the environment variable {} belongs to no flag{hint}", name.escape_debug()))
}

/// The variables of all commands.
fn known(program: &clap::Command) -> Vec<String> {
    let args = program.get_subcommands().flat_map(clap::Command::get_arguments);
    args.filter_map(|arg| arg.get_env().and_then(OsStr::to_str)).map(str::to_owned).collect()
}

/// Whether Kubernetes has set it for a service with the name topofs, or one that begins so: TOPOFS_SERVICE_HOST,
/// TOPOFS_METRICS_PORT_9177_TCP_ADDR.
fn is_of_a_service(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_link = |rest: &str| {
        let (port, protocol) = rest.split_once('_').unwrap_or((rest, ""));
        is_number(port) && ["TCP", "UDP", "SCTP"].iter().any(|known| protocol.starts_with(known))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT")
        || name.rsplit_once("_PORT_").is_some_and(|(_, rest)| is_link(rest))
        || name.match_indices("_PORT_").any(|(at, word)| name.get(at + word.len()..).is_some_and(is_link))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_variable_that_is_no_flag_is_wrong_and_the_meant_one_is_named() {
        let known = known(&crate::cli::Cli::command());
        let wrong = |name: &str| first_wrong([name.to_owned()].into_iter(), &known);
        assert_eq!(
            wrong("TOPOFS_REDONLY").unwrap(),
            "the environment variable TOPOFS_REDONLY belongs to no flag: did you mean TOPOFS_READ_ONLY?"
        );
        assert!(wrong("TOPOFS_WHATEVER").unwrap().contains("TOPOFS_WHATEVER belongs to no flag (topofs mount --help"));
        for right in [
            "TOPOFS_READ_ONLY",
            "TOPOFS_LOCK_TIMEOUT",
            "TOPOFS_TEST_FAULTS",
            "TOPOFS_SERVICE_HOST",
            "TOPOFS_METRICS_SERVICE_PORT_HTTP",
            "TOPOFS_PORT",
            "TOPOFS_PORT_9177_TCP_ADDR",
            "READ_ONLY",
            "PATH",
        ] {
            assert_eq!(wrong(right), None, "{right}");
        }
    }
}
