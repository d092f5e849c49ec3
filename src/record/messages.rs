//! Vitess's messages as types, for code that reads them. Types forget the fields that this build does not know, so
//! whoever changes a stored record uses [`super::Codec`] instead.

#![allow(missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/messages.rs"));
