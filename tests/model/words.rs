//! What a program may do, and the names that it does it with.

use proptest::prelude::*;
use topofs::error::Kind;

/// Names of records, and of scratch files.
pub const RECORDS: &[&str] = &["a", "b"];
pub const SCRATCH: &[&str] = &[".x", ".y"];
pub const DIR: &str = "metadata";
pub const SERVER: &str = "m";

pub type Name = &'static str;
pub type Outcome<T> = Result<T, Kind>;

/// What another program does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Remote {
    Put(u8),
    Delete,
}

#[derive(Debug, Clone)]
pub enum Op {
    Read(Name),
    /// Opened, written to, closed; somebody else acts in between.
    Save {
        name: Name,
        append: bool,
        content: u8,
        length: usize,
        meanwhile: Option<Remote>,
    },
    /// O_EXCL.
    Make {
        name: Name,
        content: u8,
    },
    Truncate {
        name: Name,
        size: usize,
    },
    Unlink(Name),
    Rename(Name, Name),
    Remote(Name, Remote),
    /// The same, and the mirror hears of it only after the next operation, or before the kernel repeats that.
    Unheard(Name, Remote),
}

pub fn name() -> impl Strategy<Value = Name> {
    prop_oneof![2 => prop::sample::select(RECORDS), 1 => prop::sample::select(SCRATCH)]
}

pub fn remote() -> impl Strategy<Value = Remote> {
    prop_oneof![3 => (0_u8..4).prop_map(Remote::Put), 1 => Just(Remote::Delete)]
}

pub fn op() -> impl Strategy<Value = Op> {
    let meanwhile = prop_oneof![3 => Just(None), 1 => remote().prop_map(Some)];
    prop_oneof![
        2 => name().prop_map(Op::Read),
        4 => (name(), any::<bool>(), 0_u8..4, 0_usize..3, meanwhile)
            .prop_map(|(name, append, content, length, meanwhile)| {
                Op::Save { name, append, content, length, meanwhile }
            }),
        1 => (name(), 0_u8..4).prop_map(|(name, content)| Op::Make { name, content }),
        1 => (name(), 0_usize..4).prop_map(|(name, size)| Op::Truncate { name, size }),
        2 => name().prop_map(Op::Unlink),
        4 => (name(), name()).prop_map(|(from, to)| Op::Rename(from, to)),
        2 => (prop::sample::select(RECORDS), remote()).prop_map(|(name, remote)| Op::Remote(name, remote)),
        2 => (prop::sample::select(RECORDS), remote()).prop_map(|(name, remote)| Op::Unheard(name, remote)),
    ]
}

/// What happens in a stage: nobody else acts.
pub fn op_in_stage() -> impl Strategy<Value = Op> {
    op().prop_filter_map("others", |op| match op {
        Op::Remote(..) | Op::Unheard(..) => None,
        Op::Save { name, append, content, length, .. } => {
            Some(Op::Save { name, append, content, length, meanwhile: None })
        }
        op => Some(op),
    })
}

pub fn bytes(content: u8, length: usize) -> Vec<u8> {
    vec![b'0' + content; length]
}

pub fn is_record(name: Name) -> bool {
    RECORDS.contains(&name)
}
