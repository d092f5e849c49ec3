//! Differences of records as people read them. Must never ask a service.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use similar::TextDiff;

use super::plan::Difference;
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::{Form, Records};

/// Longest time for one difference. After it, a difference is still right, but longer than it had to be.
const PATIENCE: Duration = Duration::from_secs(1);
/// Equal lines around a difference, as in diff -u.
const AROUND: usize = 3;
/// Values of up to so many bytes are shown in hexadecimal.
const SHORT: usize = 512;
/// Bytes in one such line.
const ROW: usize = 16;

/// The difference of a record, in lines.
pub(super) fn describe(records: &Records, cell: &CellName, path: &TopoPath, difference: &Difference<'_>) -> String {
    let name = CellPath::new(cell, path);
    match difference {
        Difference::OnlySource(_) => format!("only in source: {name}\n"),
        Difference::OnlyTarget(_) => format!("only at the target: {name}\n"),
        Difference::Both(source, target) => {
            format!("different: {name}\n{}", both(records, cell, path, source, &target.value))
        }
    }
}

fn both(records: &Records, cell: &CellName, path: &TopoPath, source: &Bytes, target: &Bytes) -> String {
    let [old, new] = [source, target].map(|value| text(records, cell, path, value));
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let suffix = records.message(cell, path).map_or("", |_| Form::Text.suffix());
            unified(&format!("{}{suffix}", CellPath::new(cell, path)), &old, &new)
        }
        // Vitess writes the entries of a map in any order.
        (Some(_), Some(_)) if same_message(records, cell, path, source, target) => {
            "The message is the same, its bytes are in another order.\n".to_owned()
        }
        (Some(_), Some(_)) => format!("The text is the same, the bytes are not.\n{}", raw(source, target)),
        _ => raw(source, target),
    }
}

/// Whether two values are one message, also in the fields that this build does not know.
fn same_message(records: &Records, cell: &CellName, path: &TopoPath, source: &Bytes, target: &Bytes) -> bool {
    let Some(name) = records.message(cell, path) else { return false };
    let [source, target] = [source, target].map(|value| records.codec.decode(name, value).ok());
    source.is_some() && source == target
}

/// A value as text; `None` if it is none.
fn text(records: &Records, cell: &CellName, path: &TopoPath, value: &Bytes) -> Option<String> {
    if records.message(cell, path).is_some() {
        let text = records.show(cell, path, value, Form::Text).ok()?;
        return String::from_utf8(text.into()).ok();
    }
    let text = String::from_utf8(value.to_vec()).ok()?;
    // What is printed must not command the terminal.
    text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t')).then_some(text)
}

fn unified(name: &str, old: &str, new: &str) -> String {
    let difference = TextDiff::configure().timeout(PATIENCE).diff_lines(old, new);
    let (source, target) = (format!("source/{name}"), format!("target/{name}"));
    let mut text = difference.unified_diff().context_radius(AROUND).header(&source, &target).to_string();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn raw(source: &Bytes, target: &Bytes) -> String {
    if source.len() <= SHORT && target.len() <= SHORT {
        return unified("hexadecimal", &hexadecimal(source), &hexadecimal(target));
    }
    let same = source.iter().zip(target.iter()).take_while(|(one, other)| one == other).count();
    format!("source: {} bytes, target: {} bytes, the first difference after {same} bytes\n", source.len(), target.len())
}

fn hexadecimal(value: &[u8]) -> String {
    value.chunks(ROW).fold(String::new(), |mut text, row| {
        let bytes: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", bytes.join(" "));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Node, Revision, Role, Version};
    use crate::record::{Codec, Kinds};

    fn described(path: &str, source: &[u8], target: &[u8]) -> String {
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let path = TopoPath::parse(path).unwrap();
        let version = Version { number: 1, written: Revision(1), created: Revision(1) };
        let value = Bytes::copy_from_slice(target);
        let node = Node { path: path.clone(), value, version, role: Role::Record, modified: None };
        let source = Bytes::copy_from_slice(source);
        describe(&records, &CellName::global(), &path, &Difference::Both(&source, &node))
    }

    #[test]
    fn messages_are_compared_as_text() {
        let shown = described("cells/zone1/CellInfo", b"\x0a\x03a:1\x12\x02/b", b"\x0a\x03a:1\x12\x02/c");
        let expected = "different: global/cells/zone1/CellInfo\n--- source/global/cells/zone1/CellInfo.txt\n\
                        +++ target/global/cells/zone1/CellInfo.txt\n@@ -1,2 +1,2 @@\n server_address: \"a:1\"\n\
                        -root: \"/b\"\n+root: \"/c\"\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_no_text_is_compared_by_its_bytes() {
        assert!(described("metadata/a", b"one\n", b"two\n").contains("-one\n+two\n"));
        assert!(described("metadata/a", b"\x1b[2J", b"\xff").contains("-1b 5b 32 4a\n+ff\n"));
        let same_text = described("cells/zone1/CellInfo", b"\x4a\x01a", b"\x4a\x01b");
        assert!(same_text.contains("the bytes are not") && same_text.contains("-4a 01 61\n+4a 01 62\n"), "{same_text}");
        let entries = [&b"\x22\x05\x0a\x01a\x10\x01"[..], b"\x22\x05\x0a\x01b\x10\x02"];
        let tablet = |order: [usize; 2]| order.map(|at| entries[at]).concat();
        let order = described("tablets/zone1-0000000100/Tablet", &tablet([0, 1]), &tablet([1, 0]));
        assert!(order.ends_with("\nThe message is the same, its bytes are in another order.\n"), "{order}");
        let large = described("metadata/a", &[&[0; 600][..], b"x"].concat(), &[0; 700]);
        assert!(
            large.contains("source: 601 bytes, target: 700 bytes, the first difference after 600 bytes"),
            "{large}"
        );
        assert!(described("cells/zone1/CellInfo", b"\x0a", b"").contains("-0a\n"), "it cannot be decoded");
    }
}
