//! Differences of files in the format of git, as `git apply` and `patch -p1` take them. Knows no records. Must never
//! write a patch that applied to the file before gives anything but the file after.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Range;
use std::time::Instant;

use aws_lc_rs::digest;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use similar::algorithms::{Capture, Compact, DiffHook as _, Replace, diff_slices_deadline};
use similar::{Algorithm, DiffOp, group_diff_ops};

/// Equal lines around a difference, as in git diff.
const AROUND: usize = 3;
/// The mode of every file. Git knows only this one and that of programs.
const MODE: &str = "100644";
/// The name of a file that does not exist.
const NOTHING: &str = "/dev/null";
/// The object that does not exist.
const NO_OBJECT: &str = "0000000000000000000000000000000000000000";
/// Most steps of a difference that are moved together where that is possible: that knows no deadline, and its effort
/// grows with the square of their number.
const MERGED: usize = 2_000;
/// Bytes in one line of a binary patch.
const ROW: usize = 52;
/// Git's digits for base 85.
const DIGITS: &[u8; 85] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

/// What happens to one file; `None`: it does not exist.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileChange<'a> {
    /// Its name from the root.
    pub name: &'a str,
    /// Its content before.
    pub before: Option<&'a [u8]>,
    /// Its content afterwards.
    pub after: Option<&'a [u8]>,
}

impl FileChange<'_> {
    /// The patch. Looking for a short one ends at a deadline.
    pub fn patch(&self, deadline: Instant) -> String {
        let [old, new] = ["a/", "b/"].map(|side| quoted(side, self.name));
        let mut patch = format!("diff --git {old} {new}\n");
        let mode = match (self.before, self.after) {
            (None, _) => format!("new file mode {MODE}\n"),
            (_, None) => format!("deleted file mode {MODE}\n"),
            _ => String::new(),
        };
        patch += &mode;
        let [from, to] = [self.before, self.after].map(|content| content.map_or(NO_OBJECT.to_owned(), object_id));
        let kept = if mode.is_empty() { format!(" {MODE}") } else { String::new() };
        // Without this line, patch does not remove an empty file, and git takes no binary patch. A String takes all.
        let _ = writeln!(patch, "index {from}..{to}{kept}");
        let [before, after] = [self.before, self.after].map(Option::unwrap_or_default);
        let (Some(before), Some(after)) = (as_text(before), as_text(after)) else {
            patch += "GIT binary patch\n";
            patch += &literal(after);
            patch += &literal(before);
            return patch;
        };
        let hunks = hunks(before, after, deadline);
        if !hunks.is_empty() {
            let name = |content: Option<&[u8]>, name: &str| content.map_or(NOTHING.to_owned(), |_| name.to_owned());
            let _ = writeln!(patch, "--- {}\n+++ {}", name(self.before, &old), name(self.after, &new));
        }
        patch + &hunks
    }
}

/// A content that can be shown in lines.
fn as_text(content: &[u8]) -> Option<&str> {
    std::str::from_utf8(content).ok().filter(|text| !text.contains('\0'))
}

/// The differences of two texts, with the lines around them.
pub(super) fn hunks(before: &str, after: &str, deadline: Instant) -> String {
    // Only a line feed ends a line: for git, a carriage return is a character of the line.
    let [old, new] = [before, after].map(|text| text.split_inclusive('\n').collect::<Vec<&str>>());
    let ops = operations(&old, &new, deadline);
    let mut out = String::new();
    for group in group_diff_ops(ops, AROUND) {
        // If it does not begin with equal lines, it begins with the file. (The library's ranges are right for equal
        // lines, and for the side that has the lines.)
        let (from, to) = match group.first() {
            Some(DiffOp::Equal { old_index, new_index, .. }) => (*old_index, *new_index),
            _ => (0, 0),
        };
        let count = |of: fn(&DiffOp) -> Range<usize>| group.iter().map(|op| of(op).len()).sum();
        let (from, to) = (extent(from, count(DiffOp::old_range)), extent(to, count(DiffOp::new_range)));
        let _ = writeln!(out, "@@ -{from} +{to} @@");
        for op in &group {
            match op {
                DiffOp::Equal { .. } => lines(&mut out, ' ', &old, op.old_range()),
                _ => {
                    lines(&mut out, '-', &old, op.old_range());
                    lines(&mut out, '+', &new, op.new_range());
                }
            }
        }
    }
    out
}

/// What leads from some lines to others. After the deadline, what is left is replaced as a whole.
fn operations(old: &[&str], new: &[&str], deadline: Instant) -> Vec<DiffOp> {
    let mut found = Replace::new(Capture::new());
    // A capture takes everything.
    let Ok(()) = diff_slices_deadline(Algorithm::Myers, &mut found, old, new, Some(deadline));
    let ops = found.into_inner().into_ops();
    if ops.len() > MERGED || Instant::now() >= deadline {
        return ops;
    }
    let mut merged = Compact::new(Replace::new(Capture::new()), old, new);
    for op in &ops {
        let Ok(()) = op.apply_to_hook(&mut merged);
    }
    let Ok(()) = merged.finish();
    merged.into_inner().into_inner().into_ops()
}

/// First line and number of lines, as the head of a hunk tells them.
fn extent(start: usize, count: usize) -> String {
    match count {
        // Behind which line.
        0 => format!("{start},0"),
        1 => (start + 1).to_string(),
        count => format!("{},{count}", start + 1),
    }
}

fn lines(out: &mut String, sign: char, of: &[&str], range: Range<usize>) {
    for line in of.get(range).into_iter().flatten() {
        out.push(sign);
        out.push_str(line);
        if !line.ends_with('\n') {
            out.push_str("\n\\ No newline at end of file\n");
        }
    }
}

/// A name with the side that it is on. Quoted as git does it, and also if it contains a space: patch reads a name
/// without quotes only up to there.
fn quoted(side: &str, name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    if name.bytes().all(is_plain) {
        return format!("{side}{name}");
    }
    let mut out = format!("\"{side}");
    for byte in name.bytes() {
        match byte {
            b' ' => out.push(' '),
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            byte if is_plain(byte) => out.push(char::from(byte)),
            // A String takes all.
            byte => drop(write!(out, "\\{byte:03o}")),
        }
    }
    out.push('"');
    out
}

/// The name that git gives to a content.
fn object_id(content: &[u8]) -> String {
    // It identifies, and protects nothing: git itself uses SHA-1.
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(format!("blob {}\0", content.len()).as_bytes());
    hash.update(content);
    hash.finish().as_ref().iter().fold(String::new(), |mut id, byte| {
        let _ = write!(id, "{byte:02x}");
        id
    })
}

/// A whole content, as a binary patch contains it.
fn literal(content: &[u8]) -> String {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    // Nothing that is written to memory fails.
    let packed = encoder.write_all(content).and_then(|()| encoder.finish()).unwrap_or_default();
    let mut out = format!("literal {}\n", content.len());
    for row in packed.chunks(ROW) {
        let length = u8::try_from(row.len()).unwrap_or_default();
        out.push(char::from(if length <= 26 { b'A' + length - 1 } else { b'a' + length - 27 }));
        row.chunks(4).for_each(|four| base85(&mut out, four));
        out.push('\n');
    }
    out.push('\n');
    out
}

/// Up to four bytes in five digits.
fn base85(out: &mut String, four: &[u8]) {
    let mut number =
        (0..4).fold(0_u32, |number, index| number << 8 | four.get(index).map_or(0, |byte| u32::from(*byte)));
    let mut digits = [b'0'; 5];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS.get((number % 85) as usize).copied().unwrap_or_default();
        number /= 85;
    }
    out.extend(digits.map(char::from));
}

#[cfg(test)]
mod tests;
