//! How the command line spells values, and the help for each choice. The modules that own the values do not know the
//! command line.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::backend::faulty::{self, Call};
use crate::backend::{Failure, Implementation};
use crate::name::CellName;
use crate::record::Form;
use crate::tree::{RespectLocks, Views};

impl ValueEnum for Implementation {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Implementation::Etcd2 => "etcd, version 3 of its protocol",
            Implementation::Zk2 => "ZooKeeper, 3.6 or newer",
            Implementation::Consul => "Consul",
            Implementation::Memory => "In this process, for trials and tests",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

/// A kind of service, or two services as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Service {
    One(Implementation),
    Tee,
}

impl ValueEnum for Service {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Service; 5] = [
            Service::One(Implementation::Etcd2),
            Service::One(Implementation::Zk2),
            Service::One(Implementation::Consul),
            Service::One(Implementation::Memory),
            Service::Tee,
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Service::One(implementation) => implementation.to_possible_value(),
            Service::Tee => Some(PossibleValue::new("tee").help("Two of these: every update goes to both (--tee-*)")),
        }
    }
}

impl ValueEnum for Form {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Form::Raw => "The stored bytes",
            Form::Text => "Protobuf text format",
            Form::Json => "Proto3 JSON",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

impl ValueEnum for RespectLocks {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            RespectLocks::None => "None",
            RespectLocks::Keyspace => "Keyspace records, as Vitess insists, and the routing rules of keyspaces",
            RespectLocks::All => "Shard records, too",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

impl ValueEnum for Views {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Views::Off => "There are none",
            Views::On => "They open by name",
            Views::List => "Directory listings show them, too",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

pub(in crate::cli) fn any_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "must be a duration such as 30s or 5m".to_owned())
}

/// The longest time to look for requests: waking up takes a hundredth of it, so more would only take processor time.
const LONGEST_SPIN: Duration = Duration::from_millis(1);

/// How long to look for requests. A plain 0 is valid.
pub(super) fn spin(text: &str) -> Result<Duration, String> {
    let parsed = match text {
        "0" => Duration::ZERO,
        _ => humantime::parse_duration(text).map_err(|_| "must be a duration such as 100us or 1ms".to_owned())?,
    };
    if parsed > LONGEST_SPIN {
        return Err(format!("must be at most {}", humantime::format_duration(LONGEST_SPIN)));
    }
    Ok(parsed)
}

/// A time that must not be zero: with zero, nothing would ever work.
pub(in crate::cli) fn duration(text: &str) -> Result<Duration, String> {
    match any_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than zero".to_owned()),
        parsed => parsed,
    }
}

/// A duration in whole seconds; a plain number is also valid.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => duration(text)?,
    };
    if parsed.as_secs() == 0 { Err("must be at least one second".to_owned()) } else { Ok(parsed) }
}

pub(super) fn session_ttl(text: &str) -> Result<Duration, String> {
    const RANGE: std::ops::RangeInclusive<u64> = 10..=86_400;
    let parsed = seconds(text)?;
    if RANGE.contains(&parsed.as_secs()) { Ok(parsed) } else { Err("Consul accepts 10s to 24h".to_owned()) }
}

pub(super) fn lock_delay(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(60);
    match any_duration(text)? {
        delay if delay <= LONGEST => Ok(delay),
        _ => Err("Consul accepts at most 60s".to_owned()),
    }
}

pub(super) fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("must be an octal number up to 777".to_owned()),
    }
}

/// A user, by name or by number.
pub(super) fn user(text: &str) -> Result<u32, String> {
    id(text, "user", |name| Ok(nix::unistd::User::from_name(name)?.map(|user| user.uid.as_raw())))
}

/// A group, by name or by number.
pub(super) fn group(text: &str) -> Result<u32, String> {
    id(text, "group", |name| Ok(nix::unistd::Group::from_name(name)?.map(|group| group.gid.as_raw())))
}

fn id(text: &str, what: &str, find: impl FnOnce(&str) -> nix::Result<Option<u32>>) -> Result<u32, String> {
    match text.parse() {
        // For the kernel, this is nobody.
        Ok(u32::MAX) => Err(format!("not a {what}")),
        Ok(number) => Ok(number),
        Err(_) => match find(text) {
            Ok(Some(number)) => Ok(number),
            Ok(None) => Err(format!("there is no such {what}")),
            Err(error) => Err(format!("the {what} cannot be looked up: {error}")),
        },
    }
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>();
    size.map(|size| size.as_u64()).map_err(|_| "must be a size such as 64MiB or 500k".to_owned())
}

/// A plain number.
pub(super) fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "must be a whole number such as 100".to_owned())
}

/// A fault for a cell, for tests: CELL:CALL:NTH:FAULT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Fault {
    pub cell: CellName,
    pub call: Call,
    /// Which call of its kind, from 1.
    pub nth: u64,
    pub fault: faulty::Fault,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let [cell, call, nth, fault] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err("must have the form CELL:CALL:NTH:FAULT".to_owned());
        };
        let call = match call {
            "apply" => Call::Apply,
            "enter" => Call::Enter,
            "follow" => Call::Follow,
            "get" => Call::Get,
            "keep" => Call::Keep,
            "watch" => Call::Watch,
            _ => return Err(format!("no kind of call: {call}")),
        };
        let fault = match fault {
            "fail" => faulty::Fault::Fail(Failure::Unreachable),
            "hang" => faulty::Fault::Hang,
            "lost" => faulty::Fault::Lost,
            "panic" => faulty::Fault::Panic,
            _ => return Err(format!("no kind of fault: {fault}")),
        };
        let cell = CellName::new(cell).map_err(|error| error.to_string())?;
        let nth = nth.parse().map_err(|_| format!("not a number: {nth}"))?;
        Ok(Self { cell, call, nth, fault })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_have_one_spelling_on_the_command_line_and_in_the_configuration() {
        for choice in RespectLocks::ALL {
            assert_eq!(<RespectLocks as ValueEnum>::from_str(choice.name(), false), Ok(choice));
            assert_eq!(serde_json::json!(choice), choice.name());
        }
        for form in Form::ALL {
            assert_eq!(<Form as ValueEnum>::from_str(form.name(), false), Ok(form));
            assert_eq!(serde_json::json!(form), form.name());
        }
    }

    #[test]
    fn users_and_groups_have_names_and_numbers() {
        assert_eq!((user("root"), group("root"), user("1234")), (Ok(0), Ok(0), Ok(1234)));
        assert_eq!(user("no such user"), Err("there is no such user".to_owned()));
        assert!(user("-1").is_err() && group("4294967295").is_err() && user("").is_err());
    }

    #[test]
    fn faults_are_spelled_out() {
        let fault: Fault = "zone1:watch:2:panic".parse().unwrap();
        assert_eq!((fault.cell.as_str(), fault.call, fault.nth), ("zone1", Call::Watch, 2));
        assert_eq!(fault.fault, faulty::Fault::Panic);
        for wrong in
            ["zone1:watch:2", "zone1:look:2:panic", "zone1:watch:x:panic", "zone1:watch:2:burn", "/:get:1:fail"]
        {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}
