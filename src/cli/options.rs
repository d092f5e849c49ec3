//! Other spellings of flags: the `-o` lists of mount(8), and the underscores of older Vitess.

use std::ffi::{OsStr, OsString};

/// Options for mount(8), which mean nothing to topofs.
pub(super) const IGNORED: &[&str] = &[
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "group",
    "owner",
    "_netdev",
    "nofail",
    "defaults",
    "rw",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "async",
];

/// Beginnings of Vitess's flags that topofs also has. None of them is a group of short flags, so one dash means the
/// same as two.
const VITESS: &[&str] = &[
    "topo_",
    "topo-",
    "remote_operation_",
    "remote-operation-",
    "consul_auth_",
    "consul-auth-",
    "lock_timeout",
    "lock-timeout",
    // Those of topo2topo.
    "from_",
    "from-",
    "to_",
    "to-",
    "do_",
    "do-",
];

/// A mount option that topofs does not understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// `-o` at the end of the line.
    #[error("-o needs a list of options")]
    Missing,
    /// Bytes that are not UTF-8.
    #[error("mount options must be UTF-8")]
    NotText,
    /// `=value` without a name, or a name that cannot be one.
    #[error("not a mount option: {0:?}")]
    Malformed(String),
}

/// Rewrites a command line: `-o a,b=c` becomes `--a --b=c`, `--a_b=c` becomes `--a-b=c`.
pub fn normalize(args: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, OptionError> {
    let mut args = args.into_iter();
    let mut line: Vec<OsString> = args.by_ref().take(1).collect();
    while let Some(arg) = args.next() {
        if arg == "--" {
            line.push(arg);
            line.extend(args.by_ref());
            break;
        }
        match arg.to_str() {
            Some("-o") => line.extend(expand(&args.next().ok_or(OptionError::Missing)?)?),
            Some(text) => match text.strip_prefix("-o") {
                Some(list) => line.extend(expand(OsStr::new(list))?),
                None => line.push(dashed(text).into()),
            },
            None => line.push(arg),
        }
    }
    Ok(line)
}

/// The flag with dashes in its name. Values, and arguments that are not flags, stay as they are.
fn dashed(arg: &str) -> String {
    // Up to v14, Vitess's flags had one dash, as in Go.
    let one_dash = arg.strip_prefix('-').is_some_and(|name| VITESS.iter().any(|flag| name.starts_with(flag)));
    let arg = if one_dash { &format!("-{arg}") } else { arg };
    match (arg.starts_with("--"), arg.split_once('=')) {
        (true, Some((name, value))) => format!("{}={value}", name.replace('_', "-")),
        (true, None) => arg.replace('_', "-"),
        (false, _) => arg.to_owned(),
    }
}

/// A list of options as flags: `a,b_c=d` becomes `--a --b-c=d`.
pub(super) fn expand(list: &OsStr) -> Result<Vec<OsString>, OptionError> {
    let list = list.to_str().ok_or(OptionError::NotText)?;
    let options = split(list).into_iter().filter(|option| !option.is_empty() && !is_ignored(option));
    options
        .map(|option| {
            let name = option.split('=').next().unwrap_or("");
            let valid = !name.is_empty() && !name.starts_with('-') && !name.contains(char::is_whitespace);
            if valid { Ok(dashed(&format!("--{option}")).into()) } else { Err(OptionError::Malformed(option)) }
        })
        .collect()
}

fn is_ignored(option: &str) -> bool {
    option.starts_with("x-") || IGNORED.contains(&option)
}

/// Splits at commas; a backslash takes the next character as it is.
fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match (c, options.last_mut()) {
            (',', _) => options.push(String::new()),
            ('\\', Some(option)) => option.extend(chars.next()),
            (c, Some(option)) => option.push(c),
            (_, None) => {}
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(args: &[&str]) -> Result<Vec<String>, OptionError> {
        let args = std::iter::once("topofs").chain(args.iter().copied()).map(OsString::from);
        Ok(normalize(args)?.into_iter().skip(1).map(|arg| arg.into_string().unwrap()).collect())
    }

    #[test]
    fn options_become_flags() {
        let expected = ["mount", "--ro", "--topo-global-server-address=a:1,b:2", "--umask=022", "dir"];
        let list = r"ro,noauto,_netdev,x-systemd.automount,topo_global_server_address=a:1\,b:2,,umask=022";
        assert_eq!(line(&["mount", "-o", list, "dir"]).unwrap(), expected);
        assert_eq!(line(&["mount", &format!("-o{list}"), "dir"]).unwrap(), expected);
    }

    #[test]
    fn underscores_are_accepted_in_names_only() {
        let args = ["mount", "--topo_global_root=/a_b", "--serve_stale", "my_dir", "--", "--x_y"];
        let expected = ["mount", "--topo-global-root=/a_b", "--serve-stale", "my_dir", "--", "--x_y"];
        assert_eq!(line(&args).unwrap(), expected);
    }

    #[test]
    fn old_flags_of_vitess_have_one_dash() {
        let args = [
            "mount",
            "-topo_global_root=/a_b",
            "-topo_implementation",
            "zk2",
            "-remote_operation_timeout=5s",
            "-r",
            "-o",
            "ro",
        ];
        let expected = [
            "mount",
            "--topo-global-root=/a_b",
            "--topo-implementation",
            "zk2",
            "--remote-operation-timeout=5s",
            "-r",
            "--ro",
        ];
        assert_eq!(line(&args).unwrap(), expected);
    }

    #[test]
    fn what_is_no_option_is_refused() {
        assert_eq!(line(&["mount", "-o"]), Err(OptionError::Missing));
        assert!(line(&["mount", "-o", "=x"]).is_err());
        assert!(line(&["mount", "-o", "--help"]).is_err());
    }
}
