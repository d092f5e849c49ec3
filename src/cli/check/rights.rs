//! What the user of a service may do there. Reading has been proved by reading everything; writing is tried by changes
//! that are certainly refused.

use super::Finding;
use crate::backend::inspect::{Inspect, May, WritePlace};
use crate::backend::{Node, Role};
use crate::name::{CellName, TopoPath};
use crate::record::layout::{CELLS, CELLS_ALIASES, KEYSPACES, Key, TABLETS};

const STEP: &str = "rights";
/// Most existing records to try: one for each of the first directories.
const SAMPLES: usize = 8;

/// Tries to write to a cell.
pub(super) async fn rights(cell: &CellName, subject: &str, nodes: &[Node], service: &dyn Inspect) -> Finding {
    let places = places(cell, nodes);
    let mut answers = Vec::new();
    for place in &places {
        answers.push((place, service.may_write(place).await));
    }
    judge(subject, &answers)
}

fn judge(subject: &str, answers: &[(&WritePlace, May)]) -> Finding {
    let named = |wanted: fn(&May) -> bool| -> String {
        let named = answers.iter().filter(|(_, may)| wanted(may)).map(|(place, _)| match place {
            WritePlace::Below(dir) if dir.is_root() => "the root".to_owned(),
            WritePlace::Below(dir) => format!("{dir}/"),
            WritePlace::At(path) => path.to_string(),
        });
        named.collect::<Vec<_>>().join(", ")
    };
    let reason = answers.iter().find_map(|(_, may)| match may {
        May::No(reason) => Some(reason.as_str()),
        May::Yes | May::Unknown(_) => None,
    });
    let unknown = answers.iter().find_map(|(_, may)| match may {
        May::Unknown(reason) => Some(reason.as_str()),
        May::Yes | May::No(_) => None,
    });
    let may = named(|may| *may == May::Yes);
    match (reason, unknown, may.as_str()) {
        (None, None, "") => Finding::warning(STEP, subject, "may read; may write: unknown", "nothing was tried"),
        (None, None, _) => Finding::ok(STEP, subject, "may read; may write (tried without changing anything)"),
        (Some(reason), _, "") => {
            let advice = "give this user the rights to write, or mount with --read-only";
            Finding::failed(STEP, subject, format!("may read; may write: no ({reason})"), advice)
        }
        (Some(reason), _, _) => {
            let text =
                format!("may read; may write {may}, but not {} ({reason})", named(|may| matches!(may, May::No(_))));
            Finding::warning(STEP, subject, text, "give this user the rights to write there, if they are needed")
        }
        (None, Some(reason), _) => {
            let text = format!("may read; may write: unknown ({reason})");
            Finding::warning(STEP, subject, text, "try it with a record that nobody needs")
        }
    }
}

/// Where to try: the directories in which Vitess makes records, and some records that are there.
fn places(cell: &CellName, nodes: &[Node]) -> Vec<WritePlace> {
    let dirs: &[&str] =
        if cell.is_global() { &["", CELLS, CELLS_ALIASES, KEYSPACES] } else { &["", KEYSPACES, TABLETS] };
    let dirs = dirs.iter().filter_map(|dir| TopoPath::parse(dir).ok()).map(WritePlace::Below);
    let mut seen = std::collections::BTreeSet::new();
    let records = nodes.iter().filter(|node| node.role == Role::Record && Key::of(cell, &node.path).is_some());
    let firsts = records.filter(|node| seen.insert(node.path.components().take(2).collect::<Vec<_>>().join("/")));
    let samples = firsts.take(SAMPLES).map(|node| WritePlace::At(node.path.clone()));
    dirs.chain(samples).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Outcome;

    #[test]
    fn an_unknown_right_is_never_a_right() {
        let root = WritePlace::Below(TopoPath::root());
        let cells = WritePlace::Below(TopoPath::parse("cells").unwrap());
        let no = || May::No("permission denied".to_owned());
        let unknown = || May::Unknown("timeout".to_owned());
        for (answers, outcome, words) in [
            ([May::Yes, May::Yes], Outcome::Ok, "may write (tried"),
            ([no(), no()], Outcome::Failed, "may write: no (permission denied)"),
            ([no(), unknown()], Outcome::Failed, "may write: no"),
            ([May::Yes, no()], Outcome::Warning, "may write the root, but not cells/ (permission denied)"),
            ([May::Yes, unknown()], Outcome::Warning, "may write: unknown (timeout)"),
            ([unknown(), unknown()], Outcome::Warning, "may write: unknown"),
        ] {
            let [one, other] = answers;
            let finding = judge("s", &[(&root, one), (&cells, other)]);
            assert_eq!(finding.outcome, outcome, "{finding:?}");
            assert!(finding.text.contains(words), "{finding:?}");
        }
        assert_eq!(judge("s", &[]).outcome, Outcome::Warning);
    }
}
