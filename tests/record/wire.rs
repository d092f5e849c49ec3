//! Raw input: what no Vitess would read is refused, as a whole and while it is written.

use bytes::Bytes;
use topofs::error::Kind;
use topofs::record::{Codec, Form};

#[test]
fn raw_bytes_of_a_wrong_wire_type_are_refused() {
    let codec = Codec::builtin().unwrap();
    for (message, raw, what) in [
        ("topodata.Tablet", &b"\x20\x00"[..], "a map entry as a varint"),
        ("topodata.Tablet", b"\x12\x01a\x20\x02\x10\x05", "a map entry as a varint after something valid"),
        ("topodata.Tablet", b"\x25\x00\x00\x00\x00", "a map entry as 32 bits"),
        ("topodata.Tablet", b"\x21\x00\x10\x01\x10\x02\x10\x03\x10", "a map entry as 64 bits"),
        ("vschema.Keyspace", b"\x1a\x07\x0a\x01t\x12\x02\x10\x00", "a list in a map as a varint"),
        ("vschema.SrvVSchema", b"\x0a\x06\x0a\x00\x12\x02\x10\x00", "a map in a map as a varint"),
        ("topodata.Tablet", b"\x08\x01", "a message as a varint"),
        ("topodata.Tablet", b"\x12\x02\xff\xff", "a string that is no text"),
        ("topodata.Tablet", b"\x68\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "a varint that is too long"),
        ("topodata.Tablet", b"\x0f", "no wire type"),
        ("topodata.Tablet", b"\x00\x01", "no field number"),
    ] {
        let input = Bytes::from_static(raw);
        let error = codec.store(message, Form::Raw, &input, None).expect_err(what);
        assert_eq!(error.kind, Kind::BadMessage, "{what}");
        // Nothing that follows could repair it: it is refused as it is written, where a shell sees it.
        assert!(codec.refuse_early(message, Form::Raw, &input).is_err(), "{what}");
        // And what is stored all the same is not shown as something that it is not.
        assert!(codec.show(message, Form::Text, &input).is_err(), "{what}");
    }
}
