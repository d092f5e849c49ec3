//! What the log shows: a level, or a filter for parts of the program.

use anyhow::anyhow;
use tracing_subscriber::EnvFilter;

/// fuser logs every reply to a caller that was killed meanwhile; the ZooKeeper client logs every session and attempt.
/// Both also return what matters as an error.
const QUIET: &str = "fuser=off,zookeeper_client=off";

/// A level or a filter that can be used.
pub(in crate::cli) fn log_level(text: &str) -> Result<String, String> {
    parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// The filter that a level or a filter in words stands for.
pub(in crate::cli) fn parse(level: &str) -> anyhow::Result<EnvFilter> {
    /// The words that are a level; EnvFilter would read any other word as the name of a module.
    const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
    let is_filter = level.contains(['=', ',']);
    if !is_filter && !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
        return Err(anyhow!("must be one of {}, or a filter such as warn,topofs::backend=debug", LEVELS.join(", ")));
    }
    // What the filter says of the same modules counts: it comes later.
    Ok(EnvFilter::try_new(format!("{QUIET},{level}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_modules_and_keeps_the_noisy_ones_quiet() {
        let shown = |level: &str| {
            let mut parts: Vec<String> = parse(level).unwrap().to_string().split(',').map(str::to_owned).collect();
            parts.sort();
            parts.join(" ")
        };
        assert_eq!(shown("info"), "fuser=off info zookeeper_client=off");
        assert_eq!(shown("warn,topofs::backend=debug"), "fuser=off topofs::backend=debug warn zookeeper_client=off");
        assert_eq!(shown("info,fuser=debug"), "fuser=debug info zookeeper_client=off");
        for wrong in ["loud", "", "topofs::backend", "topofs=loud"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
