//! Other spellings of flags: the `-o` lists of mount(8), and the underscores of older Vitess. Must never show the value
//! of an option that it does not know: it may be a password.

use std::ffi::{OsStr, OsString};

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

mod list;
mod meaning;

pub(super) use meaning::{Caller, IGNORED, REFUSED, STAY};
use meaning::{Meaning, meaning};

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
    /// A number that no byte has.
    #[error("no byte in the mount options is more than \\\\377")]
    NotAByte,
    /// A value that holds a control character.
    #[error("the value of mount option {0:?} must not hold control characters")]
    Control(String),
    /// A quote without its end.
    #[error("a quote in the mount options has no end (a quote itself is written \\\")")]
    OpenQuote,
    /// `=value` without a name, or a name that cannot be one.
    #[error("not a mount option: {0:?}")]
    Malformed(String),
    /// No flag, and nothing that mount(8) knows.
    #[error("unknown mount option {name:?}{}", Self::hint(near.as_deref(), *after_value))]
    Unknown {
        /// As it was written.
        name: String,
        /// The known name that is most like it.
        near: Option<String>,
        /// The option before it has a value, which the name may belong to.
        after_value: bool,
    },
    /// An option that must not be used here.
    #[error("mount option {name:?} cannot be used: {reason}")]
    Refused {
        /// As it was written.
        name: String,
        /// And what to do instead.
        reason: &'static str,
    },
    /// A name alone.
    #[error("mount option {0:?} needs a value: {0}=VALUE")]
    NeedsValue(String),
    /// A value for an option that is there or not.
    #[error("mount option {0:?} takes no value")]
    TakesNoValue(String),
}

impl OptionError {
    fn hint(near: Option<&str>, after_value: bool) -> String {
        let near = near.map(|near| format!(": did you mean {near:?}?")).unwrap_or_default();
        let comma = if after_value { " (a comma in a value is written \\,)" } else { "" };
        format!("{near}{comma}")
    }
}

/// A command line in which all options are flags.
#[derive(Debug)]
pub(super) struct Line {
    /// The words of the line.
    pub words: Vec<OsString>,
    /// The options of `-o` lists.
    options: Vec<Opt>,
}

/// An option of a list.
#[derive(Debug)]
struct Opt {
    /// The name as it was written.
    name: String,
    /// The flag that it sets; empty if it means nothing.
    flag: String,
    /// Earlier ones count, too.
    adds_up: bool,
    /// The flag as a word of the line; `None` if it takes the flag back.
    word: Option<String>,
}

enum Part {
    Word(OsString),
    /// A number among the options.
    Option(usize),
}

impl Line {
    /// Rewrites a command line: `-o a,b=c` becomes `--a --b=c`, `--a_b=c` becomes `--a-b=c`. If an option is given
    /// twice, the last one counts.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        program: &Command,
        caller: Caller,
    ) -> Result<Self, OptionError> {
        let mut args = args.into_iter();
        let mut parts: Vec<Part> = args.by_ref().take(1).map(Part::Word).collect();
        let mut options = Vec::new();
        let mut command = None;
        while let Some(arg) = args.next() {
            if arg == "--" {
                parts.push(Part::Word(arg));
                parts.extend(args.by_ref().map(Part::Word));
                break;
            }
            // Only commands that mount have such lists.
            command = command.or_else(|| program.find_subcommand(&arg));
            let with_list = command.filter(|command| command.get_arguments().any(|arg| arg.get_short() == Some('o')));
            let list = match (arg.to_str().and_then(|text| text.strip_prefix("-o")), with_list) {
                (Some(""), Some(command)) => Some((args.next().ok_or(OptionError::Missing)?, command)),
                (Some(list), Some(command)) => Some((list.into(), command)),
                _ => None,
            };
            match (list, arg.to_str()) {
                (Some((list, command)), _) => {
                    let before = options.len();
                    options.extend(read_list(&list, command, caller)?);
                    parts.extend((before..options.len()).map(Part::Option));
                }
                (None, Some(text)) => parts.push(Part::Word(dashed(text).into())),
                (None, None) => parts.push(Part::Word(arg)),
            }
        }
        let word = |part| match part {
            Part::Word(word) => Some(word),
            Part::Option(at) => word_of(&options, at).map(OsString::from),
        };
        Ok(Self { words: parts.into_iter().filter_map(word).collect(), options })
    }

    /// What is wrong with the value of an option, in the words of mount options, or with the value of a variable, which
    /// clap does not name. `None` if it is about something else.
    pub fn complaint(&self, error: &clap::Error, program: &Command) -> Option<String> {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
            _ => None,
        };
        let argument = text(ContextKind::InvalidArg)?;
        let flag = argument.split([' ', '=']).next()?.strip_prefix("--")?;
        let what = match self.option(flag) {
            Some(name) => format!("mount option {name:?}"),
            None => format!("the environment variable {}", self.variable(flag, program)?),
        };
        match error.kind() {
            ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
                let reason = match (std::error::Error::source(error), text(ContextKind::ValidValue)) {
                    (Some(reason), _) => format!(": {reason}"),
                    (None, Some(values)) => format!(": must be one of {values}"),
                    (None, None) => String::new(),
                };
                let value = text(ContextKind::InvalidValue).unwrap_or_default();
                Some(format!("invalid value {value:?} for {what}{reason}"))
            }
            _ => None,
        }
    }

    /// The variable that sets a flag, if no word of the line does.
    fn variable(&self, flag: &str, program: &Command) -> Option<String> {
        let mut words = self.words.iter().filter_map(|word| word.to_str());
        let command = words.by_ref().find_map(|word| program.find_subcommand(word))?;
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag))?;
        let is_set = |word: &str| {
            let long = word.strip_prefix("--").map(|word| word.split('=').next().unwrap_or(word));
            let short = word.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
            long.is_some_and(|long| meaning::spellings(arg).any(|spelling| spelling == long))
                || short.zip(arg.get_short()).is_some_and(|(word, short)| word.contains(short))
        };
        if words.take_while(|word| *word != "--").any(is_set) {
            return None;
        }
        arg.get_env().filter(|name| std::env::var_os(name).is_some()).map(|name| name.to_string_lossy().into_owned())
    }

    /// The name of the option that sets a flag, as it was written.
    pub fn option(&self, flag: &str) -> Option<&str> {
        self.options.iter().rfind(|option| option.flag == flag).map(|option| option.name.as_str())
    }
}

/// What the options of a list mean to a command.
fn read_list(list: &OsStr, command: &Command, caller: Caller) -> Result<Vec<Opt>, OptionError> {
    let mut after_value = false;
    let mut read = Vec::new();
    for option in list::read(list)? {
        let means = meaning(&option, command, caller).map_err(|error| match error {
            OptionError::Unknown { name, near, .. } => OptionError::Unknown { name, near, after_value },
            error => error,
        })?;
        after_value = option.value.is_some();
        let (flag, adds_up, word) = match means {
            Meaning::Nothing => continue,
            Meaning::Writable => (Meaning::READ_ONLY.to_owned(), false, None),
            Meaning::Flag { flag, adds_up } => {
                let value = option.value.map(|value| format!("={value}")).unwrap_or_default();
                let word = format!("--{flag}{value}");
                (flag, adds_up, Some(word))
            }
        };
        read.push(Opt { name: option.name, flag, adds_up, word });
    }
    Ok(read)
}

/// The word of an option, if no later one takes its place.
fn word_of(options: &[Opt], at: usize) -> Option<&str> {
    let option = options.get(at)?;
    let replaced = options.iter().skip(at + 1).any(|later| later.flag == option.flag && !later.adds_up);
    if replaced { None } else { option.word.as_deref() }
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

/// A list of options that are all flags: `a,b_c=d` becomes `--a --b-c=d`.
pub(super) fn expand(list: &OsStr) -> Result<Vec<OsString>, OptionError> {
    Ok(list::read(list)?.iter().map(|option| option.as_flag().into()).collect())
}

#[cfg(test)]
mod tests;
