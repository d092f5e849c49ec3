//! What records mean: which message a path holds, and its forms (raw, text, JSON). Knows nothing of files or backends.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::name::{CellName, TopoPath};

mod codec;
mod early;
mod encode;
mod json;
mod kind;
mod text;
mod unknown;

pub use codec::Codec;
pub use kind::{Kinds, is_editor_file};

/// Printed forms kept, in bytes: a few megabyte-sized VSchemas and some ten thousand small records.
const CACHE_BYTES: u64 = 64 << 20;
/// Entries that the cache is laid out for.
const CACHE_ENTRIES: usize = 100_000;

/// How a record is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// The stored bytes.
    Raw,
    /// Protobuf text format.
    #[value(name = "txt")]
    #[serde(rename = "txt")]
    Text,
    /// Proto3 JSON.
    Json,
}

impl Form {
    /// All forms, in the order in which they are listed.
    pub const ALL: [Form; 3] = [Form::Raw, Form::Text, Form::Json];

    /// What a file name of this form ends with.
    pub fn suffix(self) -> &'static str {
        match self {
            Form::Raw => "",
            Form::Text => ".txt",
            Form::Json => ".json",
        }
    }

    /// The decoded form that a name ends with, and the name without it.
    pub fn of_name(name: &str) -> Option<(&str, Form)> {
        [Form::Text, Form::Json]
            .into_iter()
            .find_map(|form| name.strip_suffix(form.suffix()).filter(|base| !base.is_empty()).map(|base| (base, form)))
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Raw => "raw",
            Form::Text => "txt",
            Form::Json => "json",
        })
    }
}

/// Prints and parses records, and remembers what it has printed.
#[derive(Debug)]
pub struct Records {
    /// Messages and their forms.
    pub codec: Codec,
    /// Paths and their messages.
    pub kinds: Kinds,
    printed: quick_cache::sync::Cache<Printed, Bytes, Weight>,
}

/// A form of a value: by its digest, since versions can come again when a service is restored.
type Printed = (CellName, TopoPath, u64, Form);

#[derive(Debug, Clone)]
struct Weight;

impl quick_cache::Weighter<Printed, Bytes> for Weight {
    fn weight(&self, key: &Printed, value: &Bytes) -> u64 {
        (key.1.as_str().len() + value.len() + 64) as u64
    }
}

impl Records {
    /// Over the given messages and paths.
    pub fn new(codec: Codec, kinds: Kinds) -> Arc<Self> {
        let printed = quick_cache::sync::Cache::with_weighter(CACHE_ENTRIES, CACHE_BYTES, Weight);
        Arc::new(Self { codec, kinds, printed })
    }

    /// The message that a path holds, if this build can decode it.
    pub fn message(&self, cell: &CellName, path: &TopoPath) -> Option<&'static str> {
        self.kinds.message(cell, path).filter(|name| self.codec.knows(name))
    }

    /// One form of a stored record. Fails with EBADMSG if the bytes do not decode.
    pub fn show(&self, cell: &CellName, path: &TopoPath, value: &Bytes, form: Form) -> Result<Bytes> {
        let message = match (form, self.message(cell, path)) {
            (Form::Raw, _) | (_, None) => return Ok(value.clone()),
            (_, Some(message)) => message,
        };
        let key = (cell.clone(), path.clone(), digest(value), form);
        if let Some(known) = self.printed.get(&key) {
            return Ok(known);
        }
        let text = self.codec.show(message, form, value)?;
        self.printed.insert(key, text.clone());
        Ok(text)
    }

    /// The bytes to store for what was written to one form of a record; `old` is what is stored now. Returns `None` if
    /// that is the same record already. Fails with EBADMSG and the position if the input is not valid.
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

    /// Refuses the beginning of an input that no further bytes could make valid.
    pub fn refuse_early(&self, cell: &CellName, path: &TopoPath, form: Form, input: &[u8]) -> Result<()> {
        match self.message(cell, path) {
            None => Ok(()),
            Some(message) => self.codec.refuse_early(message, form, input),
        }
    }
}

fn digest(value: &Bytes) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    hasher.finish()
}
