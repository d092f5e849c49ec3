//! A manual page as it grows: sections, paragraphs, lists, examples, in the macros of man(7). Must never let a text be
//! taken for a macro: the crate `roff` escapes all of them.

use roff::{Inline, Roff, bold, italic, roman};

/// One page of the manual.
///
/// In texts, `` `word` `` is bold, `*word*` is italic (what a user puts in), and an empty line ends a paragraph.
pub(super) struct Page {
    roff: Roff,
    /// Whether a paragraph has begun in this section: the first one needs no macro.
    is_begun: bool,
}

impl Page {
    /// A page with its title and its NAME section, which apropos(1) reads.
    pub fn new(name: &str, section: &str, manual: &str, about: &str) -> Self {
        let mut roff = Roff::new();
        let version = concat!("topofs ", env!("CARGO_PKG_VERSION"));
        roff.control("TH", [&*name.to_uppercase(), section, RELEASED, version, manual]);
        // Lines are left ragged, and words whole: most words are names.
        roff.control("nh", []).control("ad", ["l"]);
        roff.control("SH", ["NAME"]).text([roman(format!("{name} - {about}"))]);
        Self { roff, is_begun: true }
    }

    /// Begins a section.
    pub fn section(&mut self, title: &str) -> &mut Self {
        self.heading("SH", title)
    }

    /// Begins a part of a section.
    pub fn part(&mut self, title: &str) -> &mut Self {
        self.heading("SS", title)
    }

    fn heading(&mut self, kind: &str, title: &str) -> &mut Self {
        self.roff.control(kind, [title]);
        self.is_begun = false;
        self
    }

    /// Paragraphs.
    pub fn text(&mut self, text: &str) -> &mut Self {
        for paragraph in paragraphs(text) {
            if self.is_begun {
                self.roff.control("PP", []);
            }
            self.roff.text(inlines(&paragraph));
            self.is_begun = true;
        }
        self
    }

    /// One entry of a list: what it is called, and what it is.
    pub fn item(&mut self, term: &str, text: &str) -> &mut Self {
        self.roff.control("TP", []).text(inlines(term));
        self.is_begun = true;
        let mut paragraphs = paragraphs(text).into_iter();
        self.roff.text(inlines(&paragraphs.next().unwrap_or_default()));
        for paragraph in paragraphs {
            self.roff.control("IP", []).text(inlines(&paragraph));
        }
        self
    }

    /// Short entries below an entry, a line for each.
    pub fn choices(&mut self, choices: &[(String, String)]) -> &mut Self {
        self.roff.control("RS", []);
        for (choice, text) in choices {
            self.item(&format!("`{choice}`"), text);
        }
        self.roff.control("RE", []);
        self
    }

    /// Lines that stay as they are.
    pub fn example(&mut self, lines: &str) -> &mut Self {
        if self.is_begun {
            self.roff.control("PP", []);
        }
        self.roff.control("RS", ["4"]).control("nf", []);
        for line in lines.lines() {
            // An empty line is a mistake in the eyes of mandoc(1).
            match line {
                "" => self.roff.control("sp", []),
                line => self.roff.text([roman(line)]),
            };
        }
        self.roff.control("fi", []).control("RE", []);
        self.is_begun = true;
        self
    }

    /// Names with one line each, side by side.
    pub fn rows(&mut self, rows: impl IntoIterator<Item = (String, String)>) -> &mut Self {
        for (name, text) in rows {
            self.item(&name, &text);
        }
        self
    }

    /// The other pages.
    pub fn see_also(&mut self, pages: &[&str]) -> &mut Self {
        self.section("SEE ALSO");
        let mut line = Vec::new();
        for (number, page) in pages.iter().enumerate() {
            let (name, section) = page.split_once('(').unwrap_or((page, ""));
            line.push(roman(if number == 0 { "" } else { ", " }));
            line.push(bold(name));
            line.push(roman(format!("({section}")));
        }
        self.roff.text(line);
        self
    }

    /// The page as text.
    pub fn render(&self) -> String {
        self.roff.render()
    }
}

/// The date in the head of the pages. A page without one is a mistake in the eyes of mandoc(1); the time of building
/// would make two builds differ.
const RELEASED: &str = "2026-11-27";

/// The paragraphs of a text, each in one line.
fn paragraphs(text: &str) -> Vec<String> {
    let blocks = text.trim().split("\n\n");
    let joined = blocks.map(|block| block.split_whitespace().collect::<Vec<_>>().join(" "));
    joined.filter(|block| !block.is_empty()).collect()
}

/// A text with its bold and italic words.
fn inlines(text: &str) -> Vec<Inline> {
    let mut parts = Vec::new();
    for (number, part) in text.split('`').enumerate() {
        if number % 2 == 1 {
            parts.push(bold(part));
            continue;
        }
        for (number, part) in italics(part).into_iter().enumerate() {
            match (number % 2, part) {
                (_, "") => {}
                (0, part) => parts.push(roman(part)),
                (_, part) => parts.push(italic(part)),
            }
        }
    }
    parts
}

/// A text split at the stars around names in capitals. Every other star is a star.
fn italics(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut from = 0;
    while let Some(open) = rest.get(from..).and_then(|text| text.find('*')).map(|at| at + from) {
        let inside = rest.get(open + 1..).unwrap_or_default();
        let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | ',');
        let length = inside.find(|c| !is_name(c)).unwrap_or(inside.len());
        match inside.split_at_checked(length) {
            Some((name, after)) if !name.is_empty() && after.starts_with('*') => {
                parts.push(rest.get(..open).unwrap_or_default());
                parts.push(name);
                rest = after.get(1..).unwrap_or_default();
                from = 0;
            }
            _ => from = open + 1,
        }
    }
    parts.push(rest);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_backticks_are_bold_and_names_between_stars_are_italic() {
        let expected = [roman("write "), bold("log *"), roman(" or "), italic("LEVEL"), roman(" in *.json, **")];
        assert_eq!(inlines("write `log *` or *LEVEL* in *.json, **"), expected);
        assert_eq!(inlines("*CELL*"), [italic("CELL")]);
        assert_eq!(inlines("--topo-*-tls-ca and --TEE-*"), [roman("--topo-*-tls-ca and --TEE-*")]);
    }

    #[test]
    fn no_text_is_a_macro() {
        let mut page = Page::new("x", "1", "manual", "about");
        page.section("S").text(".SH evil\n'evil \\fB").item(".so /etc/passwd", ".evil").example(".evil\n'evil\n\nend");
        let page = page.render();
        let macros: Vec<&str> = page.lines().skip(2).filter(|line| line.starts_with(['.', '\''])).collect();
        let ours = ["TH", "nh", "ad", "SH", "PP", "TP", "RS", "RE", "nf", "fi", "sp"];
        for line in &macros {
            let name = line[1..].split(' ').next().unwrap();
            assert!(ours.contains(&name) && !line.contains("evil"), "{line}");
        }
        assert!(page.contains("\\\\fB"), "{page}");
    }

    #[test]
    fn paragraphs_end_at_empty_lines() {
        assert_eq!(paragraphs("\n a\n b\n\n\n c "), ["a b", "c"]);
        assert_eq!(paragraphs(""), [""; 0]);
    }
}
