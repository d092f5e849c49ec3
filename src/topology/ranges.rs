//! Names of shards and key ranges: Vitess's order, and what is wrong with a set of ranges. Only computes; knows no
//! records and must never ask anybody.
//!
//! Sources: go/vt/topo/shard.go (names), go/vt/key/key.go (order), go/vt/topo/srv_keyspace.go (gaps and overlaps).

use std::cmp::Ordering;
use std::fmt;

use crate::record::is_vitess_name;
use crate::record::messages::topodata::KeyRange;

/// The key range in the name of a shard; `None` for a name without a dash, which names no range. Fails, in words, on
/// the names that Vitess refuses.
pub fn of_name(shard: &str) -> Result<Option<KeyRange>, String> {
    if !is_vitess_name(shard) {
        return Err("a shard name has 1 to 64 letters, digits, dashes and underscores".to_owned());
    }
    let mut parts = shard.split('-');
    let (start, end) = match (parts.next(), parts.next(), parts.next()) {
        (Some(start), Some(end), None) => (bytes(start)?, bytes(end)?),
        (_, Some(_), Some(_)) => return Err("a key range has one dash".to_owned()),
        _ => return Ok(None),
    };
    if !end.is_empty() && start >= end {
        return Err("the key range ends before it starts".to_owned());
    }
    Ok(Some(KeyRange { start, end }))
}

fn bytes(hex: &str) -> Result<Vec<u8>, String> {
    let digit = |digit: &u8| char::from(*digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let whole = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(whole).collect();
    bytes.ok_or_else(|| format!("{hex:?} in its key range is not a whole number of bytes in hexadecimal"))
}

/// A key range as Vitess names it; all keys if there is none.
pub fn name(range: Option<&KeyRange>) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match range.filter(|_| !is_complete(range)) {
        Some(range) => format!("{}-{}", hex(&range.start), hex(&range.end)),
        None => "-".to_owned(),
    }
}

/// Whether the name of a shard means its key range. A name without a dash means all keys, or that the application
/// chooses the shard: there is no key range then.
pub fn fits_name(shard: &str, range: Option<&KeyRange>) -> bool {
    of_name(shard).is_ok_and(|named| compare(named.as_ref(), range).is_eq())
}

/// Zeros at the end mean nothing: 80 is 8000.
fn meaning(mut key: &[u8]) -> &[u8] {
    while let [rest @ .., 0] = key {
        key = rest;
    }
    key
}

fn start(range: Option<&KeyRange>) -> &[u8] {
    range.map_or(&[], |range| meaning(&range.start))
}

fn end(range: Option<&KeyRange>) -> &[u8] {
    range.map_or(&[], |range| meaning(&range.end))
}

/// The order of Vitess: by start, then by end. No end is the greatest, and no range is all keys.
pub fn compare(a: Option<&KeyRange>, b: Option<&KeyRange>) -> Ordering {
    let by_end = || match (end(a), end(b)) {
        ([], []) => Ordering::Equal,
        ([], _) => Ordering::Greater,
        (_, []) => Ordering::Less,
        (a, b) => a.cmp(b),
    };
    start(a).cmp(start(b)).then_with(by_end)
}

/// Whether a range is all keys.
pub fn is_complete(range: Option<&KeyRange>) -> bool {
    start(range).is_empty() && end(range).is_empty()
}

/// Whether some key is in both ranges.
pub fn intersect(a: Option<&KeyRange>, b: Option<&KeyRange>) -> bool {
    let begins_before_end = |a, b| end(a).is_empty() || start(b) < end(a);
    is_complete(a) || is_complete(b) || (begins_before_end(a, b) && begins_before_end(b, a))
}

/// A shard and its range.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranged {
    /// Its name.
    pub shard: String,
    /// Its key range, if it has one.
    pub range: Option<KeyRange>,
}

impl Ranged {
    /// Its key range, if it has one.
    pub fn range(&self) -> Option<&KeyRange> {
        self.range.as_ref()
    }

    /// By range, then by name.
    pub fn compare(&self, other: &Self) -> Ordering {
        compare(self.range(), other.range()).then_with(|| self.shard.cmp(&other.shard))
    }
}

/// Sorts shards by their ranges, and equal ranges by name. (Vitess leaves equal ranges in random order.)
pub fn sort(shards: &mut [Ranged]) {
    shards.sort_by(Ranged::compare);
}

/// What is wrong with the ranges of the shards that serve together.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault<'a> {
    /// Nobody has the first keys.
    Start(&'a Ranged),
    /// Nobody has the last keys.
    End(&'a Ranged),
    /// Nobody has the keys between two shards.
    Gap(&'a Ranged, &'a Ranged),
    /// Two shards have the same keys.
    Overlap(&'a Ranged, &'a Ranged),
    /// One shard has a key range and the other has none.
    Mixed(&'a Ranged, &'a Ranged),
}

impl<'a> Fault<'a> {
    /// The shards with the fault.
    pub fn shards(&self) -> Vec<&'a Ranged> {
        match self {
            Fault::Start(shard) | Fault::End(shard) => vec![shard],
            Fault::Gap(a, b) | Fault::Overlap(a, b) | Fault::Mixed(a, b) => vec![a, b],
        }
    }
}

impl Fault<'_> {
    /// The keys that nobody has.
    pub fn missing(&self) -> Option<KeyRange> {
        let (start, end) = match self {
            Fault::Start(first) => (&[][..], start(first.range())),
            Fault::End(last) => (end(last.range()), &[][..]),
            Fault::Gap(a, b) => (end(a.range()), start(b.range())),
            Fault::Overlap(..) | Fault::Mixed(..) => return None,
        };
        Some(KeyRange { start: start.to_vec(), end: end.to_vec() })
    }

    /// Those of other shards that have some of the missing keys.
    pub fn having<'b>(&self, others: &'b [Ranged]) -> Vec<&'b Ranged> {
        let Some(missing) = self.missing() else { return Vec::new() };
        // A shard without range may have any keys, but is no part of a sharded keyspace.
        let has = |other: &&Ranged| other.range.is_some() && intersect(other.range(), Some(&missing));
        others.iter().filter(has).collect()
    }
}

impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |ranged: &Ranged| match &ranged.range {
            Some(range) if name(Some(range)) == ranged.shard => ranged.shard.clone(),
            Some(range) => format!("{} ({})", ranged.shard, name(Some(range))),
            None => format!("{} (no key range)", ranged.shard),
        };
        match self {
            Fault::Start(first) => write!(f, "no serving shard has the keys before {}", show(first)),
            Fault::End(last) => write!(f, "no serving shard has the keys after {}", show(last)),
            Fault::Gap(a, b) => write!(f, "no serving shard has the keys between {} and {}", show(a), show(b)),
            Fault::Overlap(a, b) => write!(f, "{} and {} overlap", show(a), show(b)),
            Fault::Mixed(a, b) => write!(f, "{} and {}: either all shards have key ranges or none", show(a), show(b)),
        }
    }
}

/// What is wrong with sorted ranges. Vitess accepts exactly those with which nothing is wrong. No shards at all are no
/// fault.
pub fn faults(sorted: &[Ranged]) -> Vec<Fault<'_>> {
    let mut faults = Vec::new();
    // Vitess counts bytes here, so a range that starts with 00 does not start with the first key.
    if let Some(first) = sorted.first().filter(|first| first.range.as_ref().is_some_and(|r| !r.start.is_empty())) {
        faults.push(Fault::Start(first));
    }
    for (a, b) in sorted.iter().zip(sorted.iter().skip(1)) {
        match (a.range.as_ref(), b.range.as_ref()) {
            (None, None) => {}
            (None, _) | (_, None) => faults.push(Fault::Mixed(a, b)),
            (this, next) if is_complete(this) || is_complete(next) => faults.push(Fault::Overlap(a, b)),
            (this, next) if end(this) == start(next) => {}
            (this, next) if !end(this).is_empty() && end(this) < start(next) => faults.push(Fault::Gap(a, b)),
            _ => faults.push(Fault::Overlap(a, b)),
        }
    }
    if let Some(last) = sorted.last().filter(|last| last.range.as_ref().is_some_and(|r| !r.end.is_empty())) {
        faults.push(Fault::End(last));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shards with the ranges in their names.
    fn shards(names: &[&str]) -> Vec<Ranged> {
        let ranged = |name: &&str| Ranged { shard: (*name).to_owned(), range: of_name(name).unwrap() };
        let mut shards: Vec<Ranged> = names.iter().map(ranged).collect();
        sort(&mut shards);
        shards
    }

    fn words(names: &[&str]) -> Vec<String> {
        faults(&shards(names)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_those_that_vitess_accepts() {
        let range = |start: &[u8], end: &[u8]| Some(KeyRange { start: start.to_vec(), end: end.to_vec() });
        for (shard, expected) in [
            ("0", None),
            ("a_b", None),
            ("-", range(b"", b"")),
            ("-80", range(b"", b"\x80")),
            ("80-", range(b"\x80", b"")),
            ("C0-c0ff", range(b"\xc0", b"\xc0\xff")),
        ] {
            assert_eq!(of_name(shard), Ok(expected), "{shard}");
        }
        for shard in ["", "a b", "a/b", "-8", "8-", "-80-", "80-40", "80-80", "x0-", "é", &"a".repeat(65)] {
            assert!(of_name(shard).is_err(), "{shard}");
        }
    }

    #[test]
    fn zeros_at_the_end_of_a_key_mean_nothing() {
        for (a, b, expected) in [
            ("-80", "-8000", Ordering::Equal),
            ("00-80", "-80", Ordering::Equal),
            ("-", "-80", Ordering::Greater),
            ("-40", "-80", Ordering::Less),
            ("-80", "80-", Ordering::Less),
            ("80-90", "80-", Ordering::Less),
        ] {
            let [a_range, b_range] = [a, b].map(|name| of_name(name).unwrap());
            assert_eq!(compare(a_range.as_ref(), b_range.as_ref()), expected, "{a} {b}");
            assert_eq!(compare(b_range.as_ref(), a_range.as_ref()), expected.reverse(), "{b} {a}");
        }
        assert!(compare(None, of_name("-").unwrap().as_ref()).is_eq());
    }

    #[test]
    fn a_name_means_its_range() {
        let range = |name: &str| of_name(name).unwrap();
        for (shard, of, expected) in [
            ("-80", range("-80"), true),
            ("-80", range("-8000"), true),
            ("-80", range("-40"), false),
            ("-80", None, false),
            ("0", None, true),
            ("0", range("-80"), false),
            ("not a name", None, false),
        ] {
            assert_eq!(fits_name(shard, of.as_ref()), expected, "{shard} {of:?}");
        }
    }

    #[test]
    fn gaps_and_overlaps_are_found_and_named() {
        for fine in [&[][..], &["0"], &["0", "1", "b"], &["-"], &["80-", "-80"], &["40-80", "80-", "-40"]] {
            assert_eq!(words(fine), [""; 0], "{fine:?}");
        }
        for (names, expected) in [
            (&["80-"][..], &["no serving shard has the keys before 80-"][..]),
            (&["-80"], &["no serving shard has the keys after -80"]),
            (&["-40", "80-"], &["no serving shard has the keys between -40 and 80-"]),
            (&["-80", "40-"], &["-80 and 40- overlap"]),
            (&["-80", "80-", "-"], &["-80 and - overlap", "- and 80- overlap"]),
            (&["0", "80-"], &["0 (no key range) and 80-: either all shards have key ranges or none"]),
            (&["00-"], &["no serving shard has the keys before 00- (-)"]),
        ] {
            assert_eq!(words(names), expected, "{names:?}");
        }
    }

    #[test]
    fn the_shards_that_have_missing_keys_are_known() {
        for (serving, idle, expected) in [
            (&["80-"][..], &["-40", "40-80", "-80", "80-c0"][..], &["-40", "-80", "40-80"][..]),
            (&["-80"], &["-40", "80-"], &["80-"]),
            (&["-40", "80-"], &["-40", "40-60", "0"], &["40-60"]),
        ] {
            let (serving, idle) = (shards(serving), shards(idle));
            let faults = faults(&serving);
            let having = faults[0].having(&idle);
            assert_eq!(having.iter().map(|shard| &*shard.shard).collect::<Vec<_>>(), expected, "{serving:?}");
        }
    }

    #[test]
    fn ranges_intersect_if_a_key_is_in_both() {
        for (a, b, expected) in
            [("-80", "80-", false), ("-80", "40-", true), ("-", "40-50", true), ("40-80", "80-c0", false)]
        {
            let [a_range, b_range] = [a, b].map(|name| of_name(name).unwrap());
            assert_eq!(intersect(a_range.as_ref(), b_range.as_ref()), expected, "{a} {b}");
            assert_eq!(intersect(b_range.as_ref(), a_range.as_ref()), expected, "{b} {a}");
        }
    }
}
