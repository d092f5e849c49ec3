//! Messages and their forms: decode, print, parse, encode.

use std::path::Path;

use bytes::Bytes;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use super::parse::parse;
use super::{Form, early, encode, json, text, unknown, wire};
use crate::error::{Error, Kind, Result};
use crate::given;

/// The messages that can be decoded.
#[derive(Debug)]
pub struct Codec {
    pool: DescriptorPool,
}

impl Codec {
    /// The messages of the Vitess version of this build.
    pub fn builtin() -> Result<Self> {
        let set: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
        let pool = DescriptorPool::decode(set)
            .map_err(|error| Error::new(Kind::Io, format!("the built-in descriptors cannot be read: {error}")))?;
        Ok(Self { pool })
    }

    /// The messages of a descriptor set file (`protoc --include_imports --descriptor_set_out`).
    pub fn from_file(path: &Path) -> Result<Self> {
        let flaw = |error: String| Error::new(Kind::Invalid, format!("{}: {error}", path.display()));
        let bytes = given::read(path, given::DESCRIPTORS).map_err(|error| flaw(error.to_string()))?;
        let pool = DescriptorPool::decode(bytes.as_slice())
            .map_err(|error| flaw(format!("not a complete descriptor set: {error}")))?;
        if pool.get_message_by_name("topodata.CellInfo").is_none() {
            return Err(flaw("does not contain the message topodata.CellInfo".to_owned()));
        }
        Ok(Self { pool })
    }

    /// Whether a message can be decoded.
    pub fn knows(&self, message: &str) -> bool {
        self.pool.get_message_by_name(message).is_some()
    }

    fn descriptor(&self, message: &str) -> Result<MessageDescriptor> {
        self.pool
            .get_message_by_name(message)
            .ok_or_else(|| Error::new(Kind::BadMessage, format!("no descriptor for {message}")))
    }

    /// Decodes stored bytes.
    pub fn decode(&self, message: &str, raw: &[u8]) -> Result<DynamicMessage> {
        let descriptor = self.descriptor(message)?;
        if let Some(flaw) = wire::flaw(&descriptor, raw) {
            return Err(flaw.explain(message, Form::Raw, raw));
        }
        DynamicMessage::decode(descriptor, raw)
            .map_err(|error| Error::new(Kind::BadMessage, format!("cannot be decoded as {message}: {error}")))
    }

    /// Whether stored bytes contain fields that these messages do not have. Fails if they do not decode.
    pub fn has_unknown_fields(&self, message: &str, raw: &[u8]) -> Result<bool> {
        Ok(unknown::has_unknown(&self.decode(message, raw)?))
    }

    /// An empty message.
    pub fn empty(&self, message: &str) -> Result<DynamicMessage> {
        Ok(DynamicMessage::new(self.descriptor(message)?))
    }

    /// The bytes of a message: equal messages have equal bytes.
    pub fn encode(&self, message: &DynamicMessage) -> Bytes {
        encode::encode(message).into()
    }

    /// A form of stored bytes.
    pub fn show(&self, message: &str, form: Form, raw: &Bytes) -> Result<Bytes> {
        Ok(match form {
            Form::Raw => raw.clone(),
            Form::Text => text::print(&self.decode(message, raw)?).into(),
            Form::Json => json::print(&self.decode(message, raw)?).into(),
        })
    }

    /// The bytes to store for an input; `None` if `old` is already the same record.
    pub fn store(&self, message: &str, form: Form, input: &Bytes, old: Option<&Bytes>) -> Result<Option<Bytes>> {
        if form == Form::Raw {
            self.decode(message, input)?;
            return Ok(if old == Some(input) { None } else { Some(input.clone()) });
        }
        let mut new = self.parse(message, form, input)?;
        // Bytes that do not decode contain nothing to keep.
        let old = old.and_then(|old| self.decode(message, old).ok());
        if let Some(old) = &old {
            unknown::carry_over(old, &mut new);
        }
        let new = encode::encode(&new);
        // Compares the encoded bytes: a field with its default value is the same as no field.
        let same = old.is_some_and(|old| encode::encode(&old) == new);
        Ok(if same { None } else { Some(new.into()) })
    }

    /// Parses a decoded form.
    pub fn parse(&self, message: &str, form: Form, input: &[u8]) -> Result<DynamicMessage> {
        let descriptor = self.descriptor(message)?;
        parse(&descriptor, form, input).map_err(|flaw| flaw.explain(message, form, input))
    }

    /// Refuses the beginning of an input if no further bytes could make it valid.
    pub fn refuse_early(&self, message: &str, form: Form, input: &[u8]) -> Result<()> {
        let descriptor = self.descriptor(message)?;
        match early::flaw(&descriptor, form, input) {
            None => Ok(()),
            Some(flaw) => Err(flaw.explain(message, form, input)),
        }
    }
}
