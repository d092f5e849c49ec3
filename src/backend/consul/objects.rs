//! Counts the objects of a JSON text while it comes, before it can be parsed. Judges nothing: the text may be no JSON.

/// How many objects have begun outside of strings.
#[derive(Debug, Default)]
pub(super) struct Objects {
    in_string: bool,
    /// The byte before was a backslash in a string.
    escapes: bool,
}

impl Objects {
    /// How many more begin in the next part of the text.
    pub fn count(&mut self, part: &[u8]) -> usize {
        part.iter().filter(|byte| self.begins(**byte)).count()
    }

    fn begins(&mut self, byte: u8) -> bool {
        match (self.in_string, byte) {
            (true, _) if self.escapes => self.escapes = false,
            (true, b'\\') => self.escapes = true,
            (_, b'"') => self.in_string = !self.in_string,
            (false, b'{') => return true,
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_counted_wherever_the_text_is_cut_and_whatever_stands_in_strings() {
        let text = br#"[{"Key":"a{\"{\\"},{"Key":"{{","Value":null},{"Key":"\\\"{"}]"#;
        assert_eq!(Objects::default().count(text), 3);
        for cut in 0..text.len() {
            let mut objects = Objects::default();
            assert_eq!(objects.count(&text[..cut]) + objects.count(&text[cut..]), 3, "cut at {cut}");
        }
    }
}
