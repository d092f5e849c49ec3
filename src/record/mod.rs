//! What records mean: the message at a path, and its forms (raw, text, JSON). Knows nothing about files or backends.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::CacheCount;
use crate::error::Result;
use crate::name::{CellName, DATA_FILE, TopoPath};

mod cell_info;
mod changes;
mod codec;
mod early;
mod encode;
mod flaw;
mod json;
mod kind;
pub mod layout;
mod merge;
pub mod messages;
mod parse;
mod parse_json;
mod parse_text;
mod scalar;
mod text;
mod unknown;
mod wire;

pub use cell_info::CellInfo;
pub use changes::quoted;
pub use codec::Codec;
pub use kind::{Kinds, is_editor_file, is_vitess_name};

/// Room for printed forms and their values, in bytes: a few large VSchemas and some ten thousand small records.
const CACHE_BYTES: u64 = 64 << 20;
/// Parts of the cache, each with its share of the room: few enough that a large VSchema fits into one of them. (The
/// library would make four for each processor.)
const CACHE_SHARDS: usize = 4;
/// The number of entries that the cache expects.
const CACHE_ENTRIES: usize = 100_000;

/// The form of a record in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// The stored bytes.
    Raw,
    /// Protobuf text format.
    #[serde(rename = "txt")]
    Text,
    /// Proto3 JSON.
    Json,
}

impl Form {
    /// All forms, in the order in which they are listed.
    pub const ALL: [Form; 3] = [Form::Raw, Form::Text, Form::Json];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Form::Raw => "raw",
            Form::Text => "txt",
            Form::Json => "json",
        }
    }

    /// The end of a file name of this form.
    pub fn suffix(self) -> &'static str {
        match self {
            Form::Raw => "",
            Form::Text => ".txt",
            Form::Json => ".json",
        }
    }

    /// The directory and the name under which a record is shown in this form. `is_directory`: there are records below
    /// it, so it is shown inside of the directory of its name.
    pub fn place(self, path: &TopoPath, is_directory: bool) -> (Option<TopoPath>, String) {
        let suffix = self.suffix();
        match is_directory {
            true => (Some(path.clone()), format!("{DATA_FILE}{suffix}")),
            false => (path.parent(), format!("{}{suffix}", path.name())),
        }
    }

    /// The decoded form at the end of a name, and the name without it.
    pub fn of_name(name: &str) -> Option<(&str, Form)> {
        [Form::Text, Form::Json]
            .into_iter()
            .find_map(|form| name.strip_suffix(form.suffix()).filter(|base| !base.is_empty()).map(|base| (base, form)))
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Prints and parses records, and caches what it has printed.
#[derive(Debug)]
pub struct Records {
    /// Messages and their forms.
    pub codec: Codec,
    /// Paths and their messages.
    pub kinds: Kinds,
    printed: quick_cache::sync::Cache<Shown, Printed, Weight>,
}

/// One form of a record.
type Shown = (CellName, TopoPath, Form);

/// A printed text, and the value that it shows. The whole value is the key of the cache: versions repeat after a
/// service is restored, and digests can be forged.
#[derive(Debug, Clone)]
struct Printed {
    value: Bytes,
    text: Bytes,
}

#[derive(Debug, Clone)]
struct Weight;

impl quick_cache::Weighter<Shown, Printed> for Weight {
    fn weight(&self, (_, path, _): &Shown, printed: &Printed) -> u64 {
        (path.as_str().len() + printed.value.len() + printed.text.len() + 64) as u64
    }
}

impl Records {
    /// Records with the given messages and paths.
    pub fn new(codec: Codec, kinds: Kinds) -> Arc<Self> {
        Arc::new(Self { codec, kinds, printed: printed_cache() })
    }

    /// The figures of the cache of decoded forms.
    pub fn cache(&self) -> CacheCount {
        CacheCount::of(&self.printed)
    }

    /// The message at a path, if this build can decode it.
    pub fn message(&self, cell: &CellName, path: &TopoPath) -> Option<&'static str> {
        self.kinds.message(cell, path).filter(|name| self.codec.knows(name))
    }

    /// One form of a stored record. Fails with EBADMSG if the bytes do not decode.
    pub fn show(&self, cell: &CellName, path: &TopoPath, value: &Bytes, form: Form) -> Result<Bytes> {
        let message = match (form, self.message(cell, path)) {
            (Form::Raw, _) | (_, None) => return Ok(value.clone()),
            (_, Some(message)) => message,
        };
        let key = (cell.clone(), path.clone(), form);
        if let Some(known) = self.printed.get(&key).filter(|known| known.value == *value) {
            return Ok(known.text);
        }
        let text = self.codec.show(message, form, value)?;
        self.printed.insert(key, Printed { value: value.clone(), text: text.clone() });
        Ok(text)
    }

    /// The same, for a value that is not shown often: what is printed is not kept.
    pub fn show_once(&self, cell: &CellName, path: &TopoPath, value: &Bytes, form: Form) -> Result<Bytes> {
        match self.message(cell, path) {
            Some(message) => self.codec.show(message, form, value),
            None => Ok(value.clone()),
        }
    }

    /// The bytes to store for the text of one form; `old` is the stored value. Returns `None` if that is already the
    /// same record. Fails with EBADMSG and the position if the input is not valid.
    pub fn store(
        &self,
        cell: &CellName,
        path: &TopoPath,
        form: Form,
        input: &Bytes,
        old: Option<&Bytes>,
    ) -> Result<Option<Bytes>> {
        match self.message(cell, path) {
            None => Ok(if old == Some(input) { None } else { Some(input.clone()) }),
            Some(message) => self.codec.store(message, form, input, old),
        }
    }

    /// The bytes that topofs itself would store for the same record; `None` if this is no message, or does not decode.
    pub fn canonical(&self, cell: &CellName, path: &TopoPath, value: &Bytes) -> Option<Bytes> {
        let message = self.codec.decode(self.message(cell, path)?, value).ok()?;
        Some(self.codec.encode(&message))
    }

    /// Whether two values are one record: the same bytes, or the same message in other bytes.
    pub fn is_same(&self, cell: &CellName, path: &TopoPath, one: &Bytes, other: &Bytes) -> bool {
        let canonical = |value| self.canonical(cell, path, value);
        one == other || canonical(one).is_some_and(|one| Some(one) == canonical(other))
    }

    /// What two sides have made of one record, merged by field. Fails with the fields that both have changed
    /// differently; without fields if the record can be compared as a whole only.
    pub fn merge(
        &self,
        cell: &CellName,
        path: &TopoPath,
        base: &Bytes,
        (ours, theirs): (&Bytes, &Bytes),
    ) -> std::result::Result<Bytes, Vec<String>> {
        let decode = |value| self.codec.decode(self.message(cell, path)?, value).ok();
        let (Some(base), Some(ours), Some(theirs)) = (decode(base), decode(ours), decode(theirs)) else {
            return Err(Vec::new());
        };
        let merged = self.codec.encode(&merge::merge(&base, &ours, &theirs)?);
        // It was made of valid messages. If it is none, it must not be stored.
        if decode(&merged).is_none() {
            return Err(Vec::new());
        }
        Ok(merged)
    }

    /// Fails with EBADMSG if a stored value would not decode.
    pub fn check(&self, cell: &CellName, path: &TopoPath, value: &[u8]) -> Result<()> {
        match self.message(cell, path) {
            None => Ok(()),
            Some(message) => self.codec.decode(message, value).map(drop),
        }
    }

    /// Refuses the beginning of an input if no further bytes could make it valid.
    pub fn refuse_early(&self, cell: &CellName, path: &TopoPath, form: Form, input: &[u8]) -> Result<()> {
        match self.message(cell, path) {
            None => Ok(()),
            Some(message) => self.codec.refuse_early(message, form, input),
        }
    }
}

fn printed_cache() -> quick_cache::sync::Cache<Shown, Printed, Weight> {
    let mut options = quick_cache::OptionsBuilder::new();
    options.estimated_items_capacity(CACHE_ENTRIES).weight_capacity(CACHE_BYTES).shards(CACHE_SHARDS);
    match options.build() {
        Ok(options) => quick_cache::sync::Cache::with_options(options, Weight, Default::default(), Default::default()),
        // This fails only for options that are not given.
        Err(_) => quick_cache::sync::Cache::with_weighter(CACHE_ENTRIES, CACHE_BYTES, Weight),
    }
}

#[cfg(test)]
mod tests {
    use quick_cache::Weighter;

    use super::*;

    #[test]
    fn a_large_record_is_printed_once_on_any_machine() {
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let (cell, path) = (CellName::global(), TopoPath::parse("keyspaces/ks/VSchema").unwrap());
        // Four megabytes raw, more as text: three times the largest that etcd takes.
        let text = (0..60_000).fold(String::new(), |text, n| {
            text + &format!(
                "tables {{ key: \"table_{n}\" value {{ pinned: \"a shard of this keyspace, number {n}\" }} }}\n"
            )
        });
        let value = records.store(&cell, &path, Form::Text, &text.into(), None).unwrap().unwrap();
        for form in [Form::Text, Form::Json] {
            let first = records.show(&cell, &path, &value, form).unwrap();
            let again = records.show(&cell, &path, &value, form).unwrap();
            assert_eq!(first.as_ptr(), again.as_ptr(), "{form} was printed anew: {} bytes", first.len());
        }
    }

    #[test]
    fn what_is_shown_is_of_the_very_value() {
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let (cell, path) = (CellName::global(), TopoPath::parse("keyspaces/ks/Keyspace").unwrap());
        let show = |value: &Bytes| records.show(&cell, &path, value, Form::Text).unwrap();
        let values: Vec<Bytes> = ["none", "semi_sync"]
            .map(|policy| format!("durability_policy: \"{policy}\"\n"))
            .map(|text| records.store(&cell, &path, Form::Text, &text.into(), None).unwrap().unwrap())
            .into();
        for _ in 0..2 {
            assert_eq!(show(&values[0]), "durability_policy: \"none\"\n");
            assert_eq!(show(&values[1]), "durability_policy: \"semi_sync\"\n");
        }
        // One entry for each form of a record: no digest that two values could share.
        assert_eq!(records.printed.len(), 1);
    }

    #[test]
    fn the_form_of_a_file_is_told_by_its_name() {
        for (form, name, suffix) in [(Form::Raw, "raw", ""), (Form::Text, "txt", ".txt"), (Form::Json, "json", ".json")]
        {
            assert_eq!((form.name(), form.suffix(), form.to_string()), (name, suffix, name.to_owned()));
        }
        assert_eq!(Form::of_name("Shard.txt"), Some(("Shard", Form::Text)));
        assert_eq!(Form::of_name("a.txt.json"), Some(("a.txt", Form::Json)));
        for other in ["Shard", "Shard.raw", ".txt", ".json", "Shard.txt~"] {
            assert_eq!(Form::of_name(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_printed_weighs_as_much_as_its_bytes() {
        let weight = |path: &str, value: usize, text: usize| {
            let key = (CellName::global(), TopoPath::parse(path).unwrap(), Form::Text);
            Weight.weight(&key, &Printed { value: vec![0; value].into(), text: vec![0; text].into() })
        };
        let empty = weight("a", 0, 0);
        assert!(empty > 1, "an entry costs memory, too");
        assert_eq!([weight("abc", 0, 0), weight("a", 10, 0), weight("a", 0, 20)], [2, 10, 20].map(|more| empty + more));
        assert_eq!(weight("abc", 10, 20), empty + 32);
    }

    #[test]
    fn a_record_that_nobody_knows_is_stored_as_it_is_and_a_known_one_is_looked_at() {
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let cell = CellName::global();
        let [unknown, known] = ["some/where", "keyspaces/ks/Keyspace"].map(|path| TopoPath::parse(path).unwrap());
        let [one, other] = ["{x and more", "{y"].map(Bytes::from);
        let store = |input: &Bytes, old| records.store(&cell, &unknown, Form::Raw, input, old).unwrap();
        assert_eq!([store(&one, None), store(&one, Some(&other))], [Some(one.clone()), Some(one.clone())]);
        assert_eq!(store(&one, Some(&one)), None, "it is the same");
        assert!(records.refuse_early(&cell, &unknown, Form::Json, &one).is_ok());
        assert!(records.refuse_early(&cell, &known, Form::Json, &one).is_err());
    }
}
