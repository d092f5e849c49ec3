//! A mount that is there already: what it says of itself, and the flags that it was made with, to try them once more
//! from outside.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Finding;
use crate::cli::ask::{NoAnswer, ask};
use crate::cli::health::{in_one_line, judge, summary};
use crate::cli::host::Host;
use crate::control::ControlFile;
use crate::mount::Entry;

/// Settings that are not flags of a check.
const NOT_FLAGS: [&str; 1] = ["mountpoint"];

/// A living mount.
pub(in crate::cli) struct Living {
    /// Its effective settings.
    pub config: Value,
    /// How it is.
    pub finding: Finding,
}

/// What is at a place.
pub(in crate::cli) enum There {
    /// A mount.
    Living(Living),
    /// A mount without its daemon, of this source.
    Dead(String),
    /// No mount of topofs.
    Nothing,
}

/// The mount at a mount point. Fails if it cannot be asked.
pub(in crate::cli) fn there(path: &Path, host: &Host, patience: Duration) -> anyhow::Result<There> {
    let place = host.find(path, true)?;
    let Some(mount) = place.mount.filter(|mount| mount.mountpoint == place.path) else { return Ok(There::Nothing) };
    is_own(mount)?;
    let said = |file| match ask(mount, file, patience) {
        Ok(text) => Ok(Some(serde_json::from_str::<Value>(&text)?)),
        Err(NoAnswer::Dead) => Ok(None),
        Err(reason) => Err(anyhow::anyhow!("{}: {reason}", mount.mountpoint.display())),
    };
    let (Some(config), Some(status)) = (said(ControlFile::Config)?, said(ControlFile::Status)?) else {
        return Ok(There::Dead(mount.source.to_string_lossy().into_owned()));
    };
    // The mount may have gone meanwhile, and another user's have come to its place with its number.
    let now = Host::read()?;
    if now.find(path, true)?.mount != Some(mount) {
        anyhow::bail!("{}: another mount has come to its place", mount.mountpoint.display());
    }
    let subject = mount.mountpoint.display().to_string();
    let verdict = judge(&status);
    let finding = match verdict.problems.as_slice() {
        [] => Finding::ok("mount", subject, format!("says that all is well: {}", summary(&status))),
        problems => {
            Finding::failed("mount", subject, in_one_line(problems), "compare with what follows; see topofs status")
        }
    };
    Ok(There::Living(Living { config, finding }))
}

/// Another user's mount may say what that user likes: its settings could name this user's files, and servers of the
/// other one, to which they would be sent.
fn is_own(mount: &Entry) -> anyhow::Result<()> {
    let own = nix::unistd::geteuid().as_raw();
    let maker = match mount.user() {
        Some(user) if user == own => return Ok(()),
        Some(user) => format!("uid {user}: check it as that user, or name the flags"),
        None => "an unknown user: name the flags".to_owned(),
    };
    anyhow::bail!("{}: its settings are not believed, because it was made by {maker}", mount.mountpoint.display())
}

/// The flags that settings stand for.
pub(in crate::cli) fn flags_of(config: &Value) -> Vec<String> {
    let all = config.as_object().into_iter().flatten().filter(|(name, _)| !NOT_FLAGS.contains(&name.as_str()));
    all.flat_map(|(name, value)| match value {
        Value::Null | Value::Bool(false) => Vec::new(),
        Value::Bool(true) => vec![format!("--{name}")],
        Value::String(text) => vec![format!("--{name}={text}")],
        // Globs stand alone: they may hold a comma.
        Value::Array(many) if name == "record" => many.iter().map(|one| format!("--{name}={}", plain(one))).collect(),
        Value::Array(many) if many.is_empty() => Vec::new(),
        Value::Array(many) => vec![format!("--{name}={}", many.iter().map(plain).collect::<Vec<_>>().join(","))],
        Value::Number(_) | Value::Object(_) => vec![format!("--{name}={value}")],
    })
    .collect()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_become_the_flags_that_they_came_from() {
        let config = json!({
            "mountpoint": "/m", "topo-implementation": "etcd2", "topo-global-server-address": "a:1,b:2",
            "topo-etcd-user": null, "read-only": true, "no-delete": false, "forms": ["raw", "txt"],
            "record": ["global/{a,b}", "x/y"], "cells": [], "history": 100,
        });
        let expected = [
            "--topo-implementation=etcd2",
            "--topo-global-server-address=a:1,b:2",
            "--read-only",
            "--forms=raw,txt",
            "--record=global/{a,b}",
            "--record=x/y",
            "--history=100",
        ];
        assert_eq!(flags_of(&config), expected);
        assert!(flags_of(&Value::Null).is_empty());
    }
}
