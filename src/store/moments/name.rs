//! What a name says: a moment, or nothing. Must never take one moment for another.

use std::time::{Duration, SystemTime};

use crate::backend::Revision;

/// A moment of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// A revision of the service of the global topology.
    Revision(Revision),
    /// A time, as the clock of this machine tells it.
    Time(SystemTime),
}

/// What a name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// This moment.
    Moment(Moment),
    /// A moment, but not in its one spelling, or none that can be; with the reason.
    Claim(&'static str),
    /// Nothing: people may give it to what they like.
    Free,
}

/// The reason why a number is no revision.
const NO_REVISION: &str = "a revision is written as etcd prints it: a number from 1 on, without zeros before it";
/// The reason why a name that looks like a time is none.
const NO_TIME: &str = "a time is written as in RFC 3339, with seconds and zone: 2026-11-26T10:00:00Z";
/// Fractions of a second beyond this are not told apart.
const LONGEST_FRACTION: usize = 9;

impl Moment {
    /// What a name says. All digits are a revision. A date followed by a time of day is a time.
    pub fn of_name(name: &str) -> Named {
        // A number with a sign or spaces is not a name that anybody gives to something else.
        let unsigned = name.trim().trim_start_matches(['+', '-']);
        if !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
            return revision(name)
                .map_or(Named::Claim(NO_REVISION), |revision| Named::Moment(Moment::Revision(revision)));
        }
        if !begins_like_a_time(name.trim()) {
            return Named::Free;
        }
        time(name).map_or(Named::Claim(NO_TIME), |time| Named::Moment(Moment::Time(time)))
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Moment::Revision(revision) => write!(f, "revision {}", revision.0),
            Moment::Time(time) => humantime::format_rfc3339(*time).fmt(f),
        }
    }
}

/// A revision in its one spelling. Those of etcd are signed numbers of 64 bits.
fn revision(name: &str) -> Option<Revision> {
    let is_canonical = name.bytes().all(|byte| byte.is_ascii_digit()) && !name.starts_with('0');
    let number = is_canonical.then(|| name.parse::<i64>().ok()).flatten()?;
    u64::try_from(number).ok().map(Revision)
}

/// `2026-11-26T10:`, with any of the separators that RFC 3339 knows.
fn begins_like_a_time(name: &str) -> bool {
    const SHAPE: &str = "0000-00-00T00:";
    let fits = |(shape, byte): (u8, u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        b'T' => matches!(byte, b'T' | b't' | b' ' | b'_'),
        shape => byte == shape,
    };
    name.len() >= SHAPE.len() && SHAPE.bytes().zip(name.bytes()).all(fits)
}

fn time(name: &str) -> Option<SystemTime> {
    let (local, ahead, offset) = match name.strip_suffix('Z') {
        Some(local) => (local, true, Duration::ZERO),
        None => {
            let (local, zone) = name.split_at_checked(name.len().checked_sub("+00:00".len())?)?;
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let (hours, minutes) = (two_digits(hours, 23)?, two_digits(minutes, 59)?);
            let ahead = match zone.as_bytes().first()? {
                b'+' => true,
                b'-' => false,
                _ => return None,
            };
            (local, ahead, Duration::from_secs((hours * 60 + minutes) * 60))
        }
    };
    let fraction = local.split_once('.').map_or(Some(""), |(_, fraction)| Some(fraction).filter(|f| !f.is_empty()))?;
    if fraction.len() > LONGEST_FRACTION || !local.contains('T') {
        return None;
    }
    let time = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    if ahead { time.checked_sub(offset) } else { time.checked_add(offset) }
}

fn two_digits(text: &str, most: u64) -> Option<u64> {
    let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|number| *number <= most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64, nanos: u32) -> Named {
        Named::Moment(Moment::Time(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)))
    }

    #[test]
    fn a_number_is_a_revision_in_one_spelling_only() {
        for number in ["1", "9", "1234", "9223372036854775807"] {
            let expected = Named::Moment(Moment::Revision(Revision(number.parse().unwrap())));
            assert_eq!(Moment::of_name(number), expected, "{number}");
        }
        for claim in ["0", "00", "01234", "+1234", "-1", " 1234", "1234 ", "9223372036854775808", &"9".repeat(255)] {
            assert_eq!(Moment::of_name(claim), Named::Claim(NO_REVISION), "{claim:?}");
        }
    }

    #[test]
    fn a_time_has_seconds_and_a_zone() {
        const TEN: u64 = 1_795_687_200;
        for (name, expected) in [
            ("2026-11-26T10:00:00Z", at(TEN, 0)),
            ("2026-11-26T10:00:00.25Z", at(TEN, 250_000_000)),
            ("2026-11-26T10:00:00.000000001Z", at(TEN, 1)),
            ("2026-11-26T12:00:00+02:00", at(TEN, 0)),
            ("2026-11-26T09:30:00-00:30", at(TEN, 0)),
            ("2026-11-25T23:30:00.5-10:30", at(TEN, 500_000_000)),
            ("2026-11-26T10:00:00+00:00", at(TEN, 0)),
            ("1970-01-01T00:00:00Z", at(0, 0)),
        ] {
            assert_eq!(Moment::of_name(name), expected, "{name}");
        }
        for claim in [
            "2026-11-26T10:00:00",
            "2026-11-26T10:00Z",
            "2026-11-26T10:00:00.Z",
            "2026-11-26T10:00:00.0000000001Z",
            "2026-11-26 10:00:00Z",
            "2026-11-26t10:00:00z",
            "2026-11-26_10:00",
            "2026-13-26T10:00:00Z",
            "2026-11-26T25:00:00Z",
            "2026-11-26T10:00:00+2:00",
            "2026-11-26T10:00:00+24:00",
            "2026-11-26T10:00:00*02:00",
            "2026-11-26T10:00:00Z-before",
            " 2026-11-26T10:00:00Z",
        ] {
            assert_eq!(Moment::of_name(claim), Named::Claim(NO_TIME), "{claim:?}");
        }
    }

    #[test]
    fn other_names_are_free() {
        for name in ["before", "2026-11-26", "before-1234", "v1", "20261126T100000Z", "1e3", "0x10", "-", "é-1", "+"] {
            assert_eq!(Moment::of_name(name), Named::Free, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_moment_is_read_as_it_is_printed(seconds in 0u64..250_000_000_000, nanos in 0u32..1_000_000_000) {
            let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
            let name = humantime::format_rfc3339(time).to_string();
            prop_assert_eq!(Moment::of_name(&name), Named::Moment(Moment::Time(time)), "{}", name);
        }

        #[test]
        fn any_name_says_something(name in "[0-9TZ:. +-]{0,30}|.{0,40}") {
            Moment::of_name(&name);
        }
    }
}
