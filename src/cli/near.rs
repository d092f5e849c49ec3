//! The known word that somebody meant who has written another one. Must never guess: a wrong hint leads astray.

/// The known word that is most like a word: a few letters are wrong, or the end is missing.
pub(super) fn nearest(word: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    /// One letter in so many may be wrong.
    const LETTERS: usize = 4;
    let folded = |word: &str| word.to_ascii_lowercase().replace('-', "_");
    let word = folded(word);
    let far = |known: &str| {
        let (known, distance) = (folded(known), strsim::damerau_levenshtein(&word, &folded(known)));
        let longer = word.chars().count().max(known.chars().count());
        // Of short words, everything is a neighbour.
        (longer > 2 && distance <= (longer / LETTERS).max(1)).then_some(distance)
    };
    let rated = known.into_iter().filter_map(|known| Some((far(&known)?, known)));
    rated.min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_near_is_meant() {
        let known = || ["foreground", "forms", "ro", "etcd2", "demo", "topo_etcd_password_file"].map(str::to_owned);
        for (word, meant) in [
            ("etcd", Some("etcd2")),
            ("Demo", Some("demo")),
            ("froms", Some("forms")),
            ("topo-etcd-password", Some("topo_etcd_password_file")),
            ("foo", None),
            ("fore", None),
            ("rw", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known()).as_deref(), meant, "{word}");
        }
    }
}
