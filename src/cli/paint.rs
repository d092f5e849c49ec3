//! Text for a terminal: colours, and columns of a table. Every piece of text is made harmless here: anybody may have
//! chosen it.

use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthStr;

use crate::plain::shown;

/// As it is.
pub(super) const PLAIN: Style = Style::new();
/// What matters less.
pub(super) const DIM: Style = Style::new().dimmed();
/// A heading.
pub(super) const BOLD: Style = Style::new().bold();
/// All is well, or something has come.
pub(super) const GREEN: Style = AnsiColor::Green.on_default();
/// Deserves a look.
pub(super) const YELLOW: Style = AnsiColor::Yellow.on_default();
/// Something is wrong, or has gone.
pub(super) const RED: Style = AnsiColor::Red.on_default();
/// Somebody is at work.
pub(super) const CYAN: Style = AnsiColor::Cyan.on_default();

/// A text in a style.
pub(super) fn painted(style: Style, text: &str) -> String {
    // A style without effects prints nothing.
    format!("{style}{}{style:#}", shown(text))
}

/// A text in a style, padded with spaces to a width.
pub(super) fn padded(style: Style, text: &str, width: usize) -> String {
    let text = shown(text);
    let missing = width.saturating_sub(text.width());
    format!("{style}{text}{style:#}{}", " ".repeat(missing))
}

/// Lines of cells, the columns one below another. The last column is not padded.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<Vec<(Style, String)>>);

impl Table {
    /// Adds a line.
    pub fn row(&mut self, cells: Vec<(Style, String)>) {
        self.0.push(cells);
    }

    /// The lines, each behind an indent.
    pub fn lines(&self, indent: &str) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|(_, text)| shown(text).width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut lines = String::new();
        for row in &self.0 {
            let used = row.iter().rposition(|(_, text)| !text.is_empty()).map_or(0, |last| last + 1);
            let cells = row.iter().zip(&widths).take(used).enumerate().map(|(column, ((style, text), width))| {
                padded(*style, text, if column + 1 == used { 0 } else { *width })
            });
            lines += &format!("{indent}{}\n", cells.collect::<Vec<_>>().join("  "));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_one_below_another_whatever_is_in_them() {
        let mut table = Table::default();
        table.row(vec![(BOLD, "CELL".to_owned()), (BOLD, "STATE".to_owned()), (BOLD, "TROUBLE".to_owned())]);
        table.row(vec![(PLAIN, "世界".to_owned()), (RED, "down".to_owned()), (PLAIN, "a\u{1b}[2Jb\nc".to_owned())]);
        table.row(vec![(PLAIN, "x".to_owned()), (GREEN, "live".to_owned()), (PLAIN, String::new())]);
        let text = table.lines("  ");
        assert!(text.contains("\u{1b}[31mdown"), "{text:?}");
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(plain, "  CELL  STATE  TROUBLE\n  世界  down   a\\u{1b}[2Jb\\u{a}c\n  x     live\n");
    }
}
