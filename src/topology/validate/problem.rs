//! What a check finds: problems, each about one record, in an order that depends on the topology alone. Keeps no more
//! than a bounded number of them, and counts the others. Must never print names as they are: anybody may have chosen
//! them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::name::{CellName, CellPath, LOCK_FILE, TopoPath};
use crate::plain::{short, shown_json};

/// Problems of one kind that a report keeps. The others are counted: a topology may have a million faults, and nobody
/// reads that many lines.
const MOST_OF_A_KIND: usize = 2_000;

/// Longest description of a fault, in characters: records contain texts of any length.
const LONGEST: usize = 2_000;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Vitess's tools fail, or queries go wrong, now or at the next change.
    Error,
    /// Something that is not needed, or that somebody should look at.
    Warning,
    /// No problem: something that nobody knows.
    Note,
}

impl Severity {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $word:literal $severity:ident,)*) => {
        /// What is wrong. The words are stable: scripts may look for them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Kind] = &[$(Kind::$name),*];

            /// The word for it.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$name => $word),* }
            }

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self { $(Kind::$name => Severity::$severity),* }
            }
        }
    };
}

kinds! {
    /// A cell that does not answer. Nothing is said about its records.
    CellUnreachable "cell-unreachable" Error,
    /// A cell that nobody has used since the mount began. Nothing is said about its records, and that is no problem.
    CellNotKnown "cell-not-known" Note,
    /// A CellInfo record from which no cell can be connected.
    CellNotUsable "cell-not-usable" Error,
    /// Two cells with the same server and root.
    CellSharesPlace "cell-shares-place" Error,
    /// A cell in two aliases.
    AliasOverlap "alias-overlap" Error,
    /// An alias with a cell that has no CellInfo record.
    AliasMissingCell "alias-missing-cell" Warning,
    /// An alias without cells.
    AliasEmpty "alias-empty" Warning,
    /// A record whose bytes are not its message.
    Undecodable "undecodable" Error,
    /// A key that is no record of Vitess.
    StrayKey "stray-key" Warning,
    /// Keys whose names cannot be file names.
    UnnameableKeys "unnameable-keys" Warning,
    /// A keyspace without Keyspace record, of which something is left.
    KeyspaceWithoutRecord "keyspace-without-record" Error,
    /// A shard without Shard record, of which something is left.
    ShardWithoutRecord "shard-without-record" Error,
    /// A shard whose name does not mean its key range.
    ShardName "shard-name" Error,
    /// Keys that no serving shard has.
    ShardGap "shard-gap" Error,
    /// Keys that two serving shards have.
    ShardOverlap "shard-overlap" Error,
    /// A primary without Tablet record.
    DanglingPrimary "dangling-primary" Error,
    /// A primary whose Tablet record has another type.
    PrimaryNotPrimary "primary-not-primary" Error,
    /// A primary that is a tablet of another shard.
    PrimaryElsewhere "primary-elsewhere" Error,
    /// A tablet of type PRIMARY that its Shard does not name.
    UnnamedPrimary "unnamed-primary" Error,
    /// One more tablet of type PRIMARY in a shard.
    TwoPrimaries "two-primaries" Error,
    /// A tablet whose directory is not that of its alias.
    TabletMisplaced "tablet-misplaced" Error,
    /// A Tablet record that does not say to which shard the tablet belongs.
    TabletEmpty "tablet-empty" Error,
    /// A tablet whose keyspace or shard does not exist.
    TabletWithoutShard "tablet-without-shard" Error,
    /// A tablet that was shut down, and has no address any more.
    TabletBlanked "tablet-blanked" Warning,
    /// A tablet that its ShardReplication does not name.
    TabletNotInReplication "tablet-not-in-replication" Error,
    /// A ShardReplication that names something else than a tablet of its shard.
    ReplicationWithoutTablet "replication-without-tablet" Error,
    /// A ShardReplication of a shard that does not exist.
    ReplicationLeftOver "replication-left-over" Warning,
    /// A keyspace that has tablets in a cell, but no SrvKeyspace.
    SrvKeyspaceMissing "srv-keyspace-missing" Error,
    /// A SrvKeyspace that a rebuild would change.
    SrvKeyspaceOutdated "srv-keyspace-outdated" Error,
    /// A SrvKeyspace that keeps its keyspace from being rebuilt.
    RebuildRefused "rebuild-refused" Error,
    /// A SrvKeyspace of a keyspace that does not exist.
    SrvKeyspaceLeftOver "srv-keyspace-left-over" Error,
    /// A cell with tablets, but without SrvVSchema.
    SrvVSchemaMissing "srv-vschema-missing" Error,
    /// A SrvVSchema that a rebuild would change.
    SrvVSchemaOutdated "srv-vschema-outdated" Error,
    /// A rule that leads to a keyspace that does not exist.
    RuleToMissingKeyspace "rule-to-missing-keyspace" Error,
    /// A rule that leads to a shard that does not exist.
    RuleToMissingShard "rule-to-missing-shard" Error,
    /// A rule that leads to a table that is not in the VSchema of its sharded keyspace.
    RuleToMissingTable "rule-to-missing-table" Error,
    /// A lock that no lease and no session keeps: it blocks everybody for ever.
    LockWithoutOwner "lock-without-owner" Error,
    /// What a lock has left behind. It blocks nobody, but keeps its directory.
    LockLeftOver "lock-left-over" Warning,
    /// A lock that is older than the locks of Vitess's tools get.
    LockTooOld "lock-too-old" Warning,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub kind: Kind,
    /// The record with the fault. For a lock: its directory.
    pub at: CellPath,
    /// The fault in words.
    pub fault: String,
    /// The command that mends it, with a comment. Names in it are quoted for a shell.
    pub mend: String,
}

impl Problem {
    /// The record as Vitess's tools name it; a lock as the mount shows it.
    pub fn record(&self) -> String {
        match self.kind {
            Kind::LockWithoutOwner | Kind::LockLeftOver | Kind::LockTooOld => format!("{}/{LOCK_FILE}", self.at),
            _ => self.at.to_string(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "record": self.record(),
            "kind": self.kind.name(),
            "severity": self.kind.severity().name(),
            "fault": self.fault,
            "mend": self.mend,
        })
    }
}

/// The records that somebody asks about: those at some paths and below them. Without paths, all.
#[derive(Debug, Clone, Default)]
pub struct Within(pub Vec<CellPath>);

impl Within {
    /// Whether a record is meant.
    pub fn has(&self, cell: &CellName, path: &TopoPath) -> bool {
        self.0.is_empty() || self.0.iter().any(|dir| dir.cell == *cell && path.below(&dir.path).is_some())
    }
}

/// All problems of a topology.
#[derive(Debug, Clone, Default)]
pub struct Report {
    within: Within,
    problems: Vec<Problem>,
    counts: BTreeMap<Kind, usize>,
    /// When the same records may have another problem, because time has passed.
    pub until: Option<SystemTime>,
}

impl Report {
    /// An empty report about some records.
    pub fn new(within: Within) -> Self {
        Self { within, ..Self::default() }
    }

    /// Adds a problem, if somebody asks about its record. `words` are the fault and what mends it.
    pub(super) fn add(
        &mut self,
        kind: Kind,
        (cell, path): (&CellName, &TopoPath),
        words: impl FnOnce() -> (String, String),
    ) {
        if !self.within.has(cell, path) {
            return;
        }
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= MOST_OF_A_KIND {
            let (fault, mend) = words();
            self.problems.push(Problem { kind, at: CellPath::new(cell, path), fault: short(&fault, LONGEST), mend });
        }
    }

    /// Puts the problems in order: the global topology first, then by cell and path.
    pub(super) fn finish(mut self) -> Self {
        self.problems.sort_by(|a, b| {
            let key = |problem: &Problem| (!problem.at.cell.is_global(), problem.at.clone(), problem.kind);
            key(a).cmp(&key(b)).then_with(|| a.fault.cmp(&b.fault))
        });
        self
    }

    /// The problems that were kept.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many problems there are, also of those that were not kept.
    pub fn count(&self) -> usize {
        self.counts.values().sum()
    }

    /// The kinds of which only a part was kept, with the number of the others.
    pub fn more(&self) -> impl Iterator<Item = (Kind, usize)> {
        let counts = self.counts.iter().map(|(kind, count)| (*kind, count.saturating_sub(MOST_OF_A_KIND)));
        counts.filter(|(_, more)| *more > 0)
    }

    /// The length of the lines that are problems: notes are none.
    pub fn weight(&self) -> usize {
        let is_problem = |line: &&str| !line.contains(r#""severity":"note""#);
        self.lines().lines().filter(is_problem).map(|line| line.len() + 1).sum()
    }

    /// One JSON object a line. The last lines say how many more there are of a kind.
    pub fn lines(&self) -> String {
        let mut lines = String::new();
        let more = self
            .more()
            .map(|(kind, more)| json!({ "kind": kind.name(), "severity": kind.severity().name(), "more": more }));
        for line in self.problems.iter().map(Problem::json).chain(more) {
            lines += &shown_json(&line.to_string());
            lines.push('\n');
        }
        lines
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain::{is_unsafe, shown};

    fn path(text: &str) -> TopoPath {
        TopoPath::parse(text).unwrap()
    }

    #[test]
    fn the_words_of_kinds_are_different_and_in_one_style() {
        let words: std::collections::BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(words.len(), Kind::ALL.len());
        assert!(words.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')));
    }

    #[test]
    fn a_report_keeps_a_part_of_many_problems_and_counts_the_others() {
        let mut report = Report::new(Within::default());
        for number in 0..MOST_OF_A_KIND + 7 {
            let at = path(&format!("keyspaces/{number}"));
            report.add(Kind::StrayKey, (&CellName::global(), &at), || (String::new(), String::new()));
        }
        report.add(Kind::Undecodable, (&CellName::global(), &path("a")), || ("one more".to_owned(), String::new()));
        let report = report.finish();
        assert_eq!((report.problems().len(), report.count()), (MOST_OF_A_KIND + 1, MOST_OF_A_KIND + 8));
        let lines = report.lines();
        assert_eq!(lines.lines().last(), Some(r#"{"kind":"stray-key","severity":"warning","more":7}"#));
        assert!(lines.lines().next().is_some_and(|first| first.contains("one more")), "in the order of paths");
    }

    #[test]
    fn only_what_somebody_asks_about_is_reported() {
        let (global, zone1) = (CellName::global(), CellName::new("zone1").unwrap());
        let within = Within(vec![CellPath::new(&global, &path("keyspaces/a"))]);
        assert!(within.has(&global, &path("keyspaces/a")) && within.has(&global, &path("keyspaces/a/Keyspace")));
        assert!(!within.has(&global, &path("keyspaces/ab")) && !within.has(&zone1, &path("keyspaces/a")));
        assert!(Within::default().has(&zone1, &path("x")));
    }

    #[test]
    fn hostile_names_reach_no_terminal() {
        let hostile = "a\nb\u{1b}[2J\u{9b}31m\u{202e}c\u{7f}\u{e0041}";
        let mut report = Report::new(Within::default());
        let at = path("keyspaces/x\n\u{9b}y");
        report.add(Kind::StrayKey, (&CellName::global(), &at), || (hostile.to_owned(), shown(hostile)));
        let lines = report.finish().lines();
        assert_eq!(lines.lines().count(), 1);
        assert!(!lines.trim_end().chars().any(is_unsafe), "{lines:?}");
        let line: Value = serde_json::from_str(&lines).unwrap();
        assert_eq!(
            (line["fault"].as_str(), line["record"].as_str()),
            (Some(hostile), Some("global/keyspaces/x\n\u{9b}y"))
        );
        assert_eq!(shown(hostile), r"a\u{a}b\u{1b}[2J\u{9b}31m\u{202e}c\u{7f}\u{e0041}");
    }
}
