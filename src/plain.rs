//! Texts of others for terminals: what a terminal would obey, or nobody would see, is escaped. Must never change a text
//! that is plain.

/// How much of a name that nobody knows is repeated in a message.
pub const SHOWN: usize = 64;

/// A text in one line that a terminal shows as it is: without control characters, and without those that turn the
/// direction of what follows.
pub fn shown(text: &str) -> String {
    plain(text, |character| character.escape_unicode().to_string())
}

/// The same for a line of JSON: it stays the same JSON.
pub fn shown_json(line: &str) -> String {
    let escaped = |character: char| {
        let mut units = [0; 2];
        character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
    };
    plain(line, escaped)
}

/// The beginning of a text, up to a number of characters.
pub fn short(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}\u{2026}", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn plain(text: &str, escape: impl Fn(char) -> String) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match is_unsafe(character) {
            true => plain += &escape(character),
            false => plain.push(character),
        }
    }
    plain
}

/// Characters that nobody sees, or that turn the direction of a line: Unicode's Default_Ignorable_Code_Point, and the
/// separators of lines and paragraphs.
const UNSEEN: [std::ops::RangeInclusive<char>; 17] = [
    '\u{ad}'..='\u{ad}',
    '\u{34f}'..='\u{34f}',
    '\u{61c}'..='\u{61c}',
    '\u{115f}'..='\u{1160}',
    '\u{17b4}'..='\u{17b5}',
    '\u{180b}'..='\u{180f}',
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{3164}'..='\u{3164}',
    '\u{fe00}'..='\u{fe0f}',
    '\u{feff}'..='\u{feff}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{fff0}'..='\u{fff8}',
    '\u{1bca0}'..='\u{1bca3}',
    '\u{1d173}'..='\u{1d17a}',
    '\u{e0000}'..='\u{e0fff}',
];

/// Whether a terminal may take a character for something else than a sign.
pub fn is_unsafe(character: char) -> bool {
    character.is_control() || UNSEEN.iter().any(|range| range.contains(&character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_sees_is_not_printed_as_it_is() {
        for hidden in
            ['\u{ad}', '\u{115f}', '\u{202e}', '\u{200b}', '\u{2028}', '\u{3164}', '\u{feff}', '\u{e0041}', '\u{1b}']
        {
            assert!(is_unsafe(hidden), "{hidden:?}");
        }
        assert!("a-\u{e4}\u{4e16}\u{1f600}'\\ ".chars().all(|seen| !is_unsafe(seen)));
    }

    #[test]
    fn a_line_of_json_stays_the_same_json() {
        let value = serde_json::json!({ "a": "\u{9b}31m\u{202e}\u{e0041} \u{1b}\u{e4}" });
        let line = shown_json(&value.to_string());
        assert!(!line.chars().any(is_unsafe), "{line:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
    }
}
