//! Whether the records of a cell can be shown.

use super::Finding;
use crate::backend::{Node, Role};
use crate::name::CellName;
use crate::record::Records;

const STEP: &str = "schema";

/// Decodes all records of a cell.
pub(super) fn records(cell: &CellName, subject: &str, nodes: &[Node], records: &Records) -> Vec<Finding> {
    let (mut good, mut broken, mut newer) = (0_u64, Examples::default(), Examples::default());
    for node in nodes.iter().filter(|node| node.role == Role::Record) {
        let Some(message) = records.kinds.message(cell, &node.path) else { continue };
        if !records.codec.knows(message) {
            newer.add(|| format!("{} ({message})", node.path));
            continue;
        }
        match records.codec.has_unknown_fields(message, &node.value) {
            Ok(false) => good += 1,
            Ok(true) => newer.add(|| node.path.to_string()),
            Err(error) => broken.add(|| format!("{}: {error}", node.path)),
        }
    }
    let mut found = Vec::new();
    if let Some(examples) = broken.told() {
        let text = format!("records that do not decode: {examples}");
        found.push(Finding::failed(
            STEP,
            subject,
            text,
            "topofs validate shows all; are they of another Vitess (--descriptor-set)?",
        ));
    }
    if let Some(examples) = newer.told() {
        let text = format!("a newer Vitess has written records with fields that are not shown, and kept: {examples}");
        found.push(Finding::warning(STEP, subject, text, "name the messages of that Vitess with --descriptor-set"));
    }
    if found.is_empty() && good > 0 {
        found.push(Finding::ok(
            STEP,
            subject,
            match good {
                1 => "the only record of Vitess decodes".to_owned(),
                _ => format!("all {good} records of Vitess decode"),
            },
        ));
    }
    found
}

/// How many there are, and some of them.
#[derive(Default)]
struct Examples {
    count: u64,
    first: Vec<String>,
}

impl Examples {
    fn add(&mut self, example: impl FnOnce() -> String) {
        /// How many are named.
        const NAMED: usize = 2;
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(example());
        }
    }

    fn told(&self) -> Option<String> {
        let more = self.count.saturating_sub(self.first.len() as u64);
        let more = if more == 0 { String::new() } else { format!("; and {more} more") };
        (self.count > 0).then(|| format!("{} ({}{more})", self.count, self.first.join("; ")))
    }
}
