//! Times for people: local times, and how long ago something was.

use std::time::{Duration, SystemTime};

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

/// Reads the times of `.topofs`.
pub(super) fn parse_stamp(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

/// A time of `.topofs` in the local time zone, with milliseconds; as it is if it is none.
pub(super) fn local(text: &str) -> String {
    local_in(text, &TimeZone::system())
}

fn local_in(text: &str, zone: &TimeZone) -> String {
    let parsed = text.parse::<Timestamp>();
    parsed.map_or_else(
        |_| text.to_owned(),
        |time| format!("{:.3}", time.to_zoned_datetime(zone.clone()).datetime()).replace('T', " "),
    )
}

/// How long ago a time of `.topofs` was, or how much later than another, in at most two units.
pub(super) fn between(earlier: &str, later: &str) -> Option<String> {
    let passed = parse_stamp(later)?.duration_since(parse_stamp(earlier)?).unwrap_or_default();
    Some(roughly(passed))
}

/// A duration in at most two units.
pub(super) fn roughly(duration: Duration) -> String {
    let whole = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Since when: a duration before now (`10m`), a time of today (`14:30`), or a date with or without a time, in the local
/// time zone unless it says another.
pub(super) fn parse_since(text: &str) -> Result<SystemTime, String> {
    since(text, &ZonedDateTime::now())
}

fn since(text: &str, now: &ZonedDateTime) -> Result<SystemTime, String> {
    let text = text.trim();
    // As journalctl has them.
    let day = match text {
        "now" => return system(now.timestamp()),
        "today" => Some(now.date()),
        "yesterday" => Some(now.date().yesterday().map_err(|error| error.to_string())?),
        _ => None,
    };
    if let Some(day) = day {
        let midnight = day
            .to_datetime(Time::midnight())
            .to_zoned_datetime(now.time_zone().clone())
            .map_err(|error| error.to_string())?;
        return system(midnight.timestamp());
    }
    if let Some(time) = text.strip_prefix('@').and_then(|seconds| Timestamp::from_second(seconds.parse().ok()?).ok()) {
        return system(time);
    }
    if let Ok(ago) = humantime::parse_duration(text.strip_prefix('-').unwrap_or(text)) {
        return system(now.timestamp())?.checked_sub(ago).ok_or_else(|| "too long ago".to_owned());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return system(time);
    }
    // A number alone could be an hour, a minute or a year.
    let time = || text.contains(':').then(|| text.parse::<Time>().ok()).flatten();
    let local = match (text.parse::<DateTime>(), time()) {
        (Ok(date), _) => date,
        (_, Some(time)) => now.date().to_datetime(time),
        _ => {
            return Err("neither a duration (10m) nor a time (14:30, 2026-08-19, 2026-08-19 14:30, \
                        2026-08-19T12:30:00Z, today, yesterday, @SECONDS)"
                .to_owned());
        }
    };
    let zoned = local.to_zoned_datetime(now.time_zone().clone()).map_err(|error| error.to_string())?;
    system(zoned.timestamp())
}

fn system(time: Timestamp) -> Result<SystemTime, String> {
    SystemTime::try_from(time).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_as_the_clock_on_the_wall_shows_it() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(local_in("2026-08-19T12:34:29.123Z", &zone), "2026-08-19 14:34:29.123");
        assert_eq!(local_in("2026-08-19T12:34:29Z", &zone), "2026-08-19 14:34:29.000");
        assert_eq!(local_in("never", &zone), "never");
        assert_eq!(between("2026-08-19T12:34:29Z", "2026-08-19T14:34:30.5Z").as_deref(), Some("2h 1s"));
        assert_eq!(between("2026-08-19T12:34:29Z", "2026-08-19T12:34:28Z").as_deref(), Some("0s"));
        assert_eq!(roughly(Duration::from_secs(90_061)), "1day 1h");
    }

    #[test]
    fn since_when_is_a_duration_or_a_time() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let now = "2026-08-19T12:30:00Z".parse::<Timestamp>().unwrap().to_zoned_datetime(zone);
        let read = |text: &str| since(text, &now).map(|time| humantime::format_rfc3339_seconds(time).to_string());
        for (text, expected) in [
            ("10m", "2026-08-19T12:20:00Z"),
            ("-10m", "2026-08-19T12:20:00Z"),
            ("now", "2026-08-19T12:30:00Z"),
            ("today", "2026-08-18T22:00:00Z"),
            ("yesterday", "2026-08-17T22:00:00Z"),
            ("@1787142869", "2026-08-19T12:34:29Z"),
            ("1h 30m", "2026-08-19T11:00:00Z"),
            ("0s", "2026-08-19T12:30:00Z"),
            ("14:00", "2026-08-19T12:00:00Z"),
            ("2026-08-19", "2026-08-18T22:00:00Z"),
            ("2026-08-19 14:00", "2026-08-19T12:00:00Z"),
            ("2026-08-19T14:00:30", "2026-08-19T12:00:30Z"),
            ("2026-08-19T12:00:00Z", "2026-08-19T12:00:00Z"),
            ("2026-08-19T13:00:00+01:00", "2026-08-19T12:00:00Z"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
        for wrong in ["", "soon", "@", "@x", "--1m", "10", "25:00", "2026-13-01"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
