//! The codec: every message, generated, through every form; the text against protoc; hostile input.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod spellings;
mod unknown;
mod wire;

use std::io::Write;
use std::process::{Command, Stdio};

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MapKey, MessageDescriptor, Value};
use topofs::cli::normalize;
use topofs::name::{CellName, TopoPath};
use topofs::record::{Codec, Form, Kinds};

/// The messages of facts about Vitess's key layout.
const MESSAGES: &[&str] = &[
    "topodata.CellInfo",
    "topodata.CellsAlias",
    "topodata.Keyspace",
    "vschema.Keyspace",
    "topodata.Shard",
    "vschema.RoutingRules",
    "vschema.ShardRoutingRules",
    "vschema.KeyspaceRoutingRules",
    "vschema.MirrorRules",
    "topodata.ExternalVitessCluster",
    "topodata.Tablet",
    "topodata.ShardReplication",
    "topodata.SrvKeyspace",
    "vschema.SrvVSchema",
    "workflow.Workflow",
];

fn proto_dir() -> String {
    format!("{}/proto", env!("CARGO_MANIFEST_DIR"))
}

fn pool() -> DescriptorPool {
    let files = ["topodata.proto", "vschema.proto", "workflow.proto"];
    DescriptorPool::from_file_descriptor_set(protox::compile(files, [proto_dir()]).unwrap()).unwrap()
}

fn descriptor(name: &str) -> MessageDescriptor {
    static POOL: std::sync::LazyLock<DescriptorPool> = std::sync::LazyLock::new(pool);
    POOL.get_message_by_name(name).unwrap_or_else(|| panic!("no message {name}"))
}

/// A sequence of numbers from a seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn string(&mut self) -> String {
        const LETTERS: &[char] = &[
            'a', 'B', '0', ' ', '"', '\'', '\\', '\n', '\t', '\r', '\0', '\u{7f}', 'ü', '€', '😀', '{', '#', '/', '<',
            '&',
        ];
        (0..self.below(9)).map(|_| LETTERS[self.below(LETTERS.len() as u64) as usize]).collect()
    }

    fn integer(&mut self) -> i64 {
        match self.below(6) {
            0 => 0,
            1 => -1,
            2 => i64::MAX,
            3 => i64::MIN,
            4 => self.below(1000) as i64,
            _ => self.next() as i64,
        }
    }

    fn float(&mut self) -> f64 {
        match self.below(8) {
            0 => 0.1,
            1 => -0.0,
            2 => 1e300,
            3 => 1.5e-7,
            4 => f64::INFINITY,
            5 => 123_456.0,
            6 => self.below(1_000_000) as f64 / 1000.0,
            _ => Some(f64::from_bits(self.next())).filter(|v| v.is_finite()).unwrap_or(1e15),
        }
    }

    fn scalar(&mut self, kind: &Kind, depth: u32) -> Value {
        match kind {
            Kind::Bool => Value::Bool(self.below(2) == 0),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.integer() as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.integer()),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.integer() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.integer() as u64),
            Kind::Float => Value::F32(Some(self.float() as f32).filter(|v| !v.is_nan()).unwrap_or(1.0)),
            Kind::Double => Value::F64(self.float()),
            Kind::String => Value::String(self.string()),
            Kind::Bytes => Value::Bytes((0..self.below(6)).map(|_| self.next() as u8).collect::<Vec<_>>().into()),
            // Numbers without a name, too: a newer Vitess may have one for them.
            Kind::Enum(_) => Value::EnumNumber(self.below(9) as i32),
            Kind::Message(message) => Value::Message(self.message(message, depth + 1)),
        }
    }

    fn key(&mut self, kind: &Kind) -> MapKey {
        match self.scalar(kind, 0) {
            Value::String(v) => MapKey::String(v),
            other => panic!("a map key that Vitess does not use: {other:?}"),
        }
    }

    fn message(&mut self, descriptor: &MessageDescriptor, depth: u32) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields() {
            if depth > 4 || self.below(3) == 0 {
                continue;
            }
            let value = if field.is_map() {
                let Kind::Message(entry) = field.kind() else { unreachable!() };
                let (key, item) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
                Value::Map((0..self.below(4)).map(|_| (self.key(&key), self.scalar(&item, depth))).collect())
            } else if field.is_list() {
                Value::List((0..self.below(4)).map(|_| self.scalar(&field.kind(), depth)).collect())
            } else {
                self.scalar(&field.kind(), depth)
            };
            message.set_field(&field, value);
        }
        message
    }
}

fn generated(name: &str, seed: u64) -> DynamicMessage {
    Numbers(seed).message(&descriptor(name), 0)
}

fn protoc(mode: &str, name: &str, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("protoc")
        .args(["-I", &proto_dir(), mode, name, "topodata.proto", "vschema.proto", "workflow.proto"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("protoc is installed");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "protoc {mode} {name}");
    output.stdout
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_form_brings_back_the_message(seed in any::<u64>()) {
        let codec = Codec::builtin().unwrap();
        for name in MESSAGES {
            let message = generated(name, seed);
            let raw = Bytes::from(message.encode_to_vec());
            for form in Form::ALL {
                let shown = codec.show(name, form, &raw).unwrap();
                let stored = codec.store(name, form, &shown, None).unwrap().unwrap();
                prop_assert_eq!(codec.decode(name, &stored).unwrap(), codec.decode(name, &raw).unwrap());
                // The same as what is stored already: no new version.
                prop_assert_eq!(codec.store(name, form, &shown, Some(&raw)).unwrap(), None, "{} {}", name, form);
                // What is stored shows the same, and storing that is the same bytes again.
                prop_assert_eq!(codec.show(name, form, &stored).unwrap(), shown.clone());
                if form != Form::Raw {
                    prop_assert_eq!(codec.store(name, form, &shown, None).unwrap().unwrap(), stored);
                }
                // No beginning of a valid input is refused while it is being written.
                for end in [shown.len() / 3, shown.len() / 2, shown.len().saturating_sub(1), shown.len()] {
                    let begun = &shown[..end];
                    prop_assert!(codec.refuse_early(name, form, begun).is_ok(), "{} {} {:?}", name, form, begun);
                }
            }
        }
    }

    #[test]
    fn unknown_fields_survive_an_edit(seed in any::<u64>()) {
        let codec = Codec::builtin().unwrap();
        for name in MESSAGES {
            let mut raw = generated(name, seed).encode_to_vec();
            prost::encoding::string::encode(1000, &"from the future".to_owned(), &mut raw);
            let raw = Bytes::from(raw);
            for form in [Form::Text, Form::Json] {
                // The edit replaces everything that is shown.
                let other = Bytes::from(generated(name, !seed).encode_to_vec());
                let edited = codec.show(name, form, &other).unwrap();
                let stored = codec.store(name, form, &edited, Some(&raw)).unwrap().unwrap_or(raw.clone());
                let kept = codec.decode(name, &stored).unwrap().unknown_fields().any(|field| field.number() == 1000);
                prop_assert!(kept, "{} {}", name, form);
                prop_assert_eq!(codec.show(name, form, &stored).unwrap(), edited);
            }
        }
    }

    #[test]
    fn every_prefix_of_a_text_may_be_completed(seed in any::<u64>()) {
        let codec = Codec::builtin().unwrap();
        let name = MESSAGES[(seed % MESSAGES.len() as u64) as usize];
        let raw = Bytes::from(generated(name, seed).encode_to_vec());
        for form in Form::ALL {
            let shown = codec.show(name, form, &raw).unwrap();
            for end in 0..shown.len().min(2_000) {
                let begun = &shown[..end];
                prop_assert!(codec.refuse_early(name, form, begun).is_ok(), "{} {} {:?}", name, form, begun);
            }
        }
    }
}

#[test]
fn text_is_what_protoc_prints() {
    let codec = Codec::builtin().unwrap();
    for name in MESSAGES {
        for seed in 0..8 {
            let raw = generated(name, seed).encode_to_vec();
            let shown = codec.show(name, Form::Text, &raw.clone().into()).unwrap();
            let expected = String::from_utf8(protoc("--decode", name, &raw)).unwrap();
            assert_eq!(String::from_utf8_lossy(&shown), expected, "{name} {seed}");
            // protoc takes our text, and we take what it makes of it.
            let encoded = protoc("--encode", name, &shown);
            assert_eq!(codec.show(name, Form::Text, &encoded.into()).unwrap(), shown, "{name} {seed}");
        }
    }
}

#[test]
fn json_is_what_vitess_prints() {
    let codec = Codec::builtin().unwrap();
    let text = r#"alias { cell: "zone1" uid: 100 } port_map { key: "vt" value: 15000 }
        port_map { key: "grpc" value: 16000 } key_range { end: "\x80" }
        type: MASTER primary_term_start_time { seconds: 1700000000 }"#;
    let raw = codec.store("topodata.Tablet", Form::Text, &text.into(), None).unwrap().unwrap();
    let json = codec.show("topodata.Tablet", Form::Json, &raw).unwrap();
    let expected = r#"{
  "alias": {
    "cell": "zone1",
    "uid": 100
  },
  "port_map": {
    "grpc": 16000,
    "vt": 15000
  },
  "key_range": {
    "end": "gA=="
  },
  "type": "PRIMARY",
  "primary_term_start_time": {
    "seconds": "1700000000"
  }
}
"#;
    assert_eq!(json, expected);
    // Both spellings of names, and of enums and 64-bit numbers, are taken.
    for input in [
        r#"{"keyRange": {"end": "gA=="}, "type": 1, "primaryTermStartTime": {"seconds": 5}}"#,
        r#"{"key_range": {"end": "gA=="}, "type": "MASTER", "primary_term_start_time": {"seconds": "5"}}"#,
    ] {
        codec.store("topodata.Tablet", Form::Json, &input.into(), None).unwrap();
    }
}

#[test]
fn errors_name_line_and_column() {
    let codec = Codec::builtin().unwrap();
    for (form, input, line, column) in [
        (Form::Text, "hostname: \"a\"\nhostnam: \"b\"\n", 2, 1),
        (Form::Text, "hostname: \"a\"\n  mysql_port: x\n", 2, 15),
        (Form::Text, "hostname: \"ü\" mysql_port: x", 1, 27),
        (Form::Text, "alias {\n", 2, 1),
        (Form::Json, "{\n  \"hostname\": 7\n}", 2, 15),
        (Form::Json, "{} {}", 1, 4),
        (Form::Json, "{\"hostname\": \"a\"", 1, 17),
    ] {
        let error = codec.parse("topodata.Tablet", form, input.as_bytes()).unwrap_err();
        let position = error.position.unwrap();
        assert_eq!((position.line, position.column), (line, column), "{input:?}: {error}");
        assert!(error.reason.contains(&format!("line {line}, column {column}")), "{error}");
    }
    let error = codec.parse("topodata.Tablet", Form::Text, b"hostname: \"\xff\"").unwrap_err();
    assert!(error.reason.contains("UTF-8"), "{error}");
}

#[test]
fn a_descriptor_set_replaces_the_messages() {
    let dir = tempfile::tempdir().unwrap();
    let proto = std::fs::read_to_string(format!("{}/topodata.proto", proto_dir())).unwrap();
    let newer = proto.replace("message CellInfo {", "message CellInfo {\n  string region = 99;");
    for entry in std::fs::read_dir(proto_dir()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    std::fs::write(dir.path().join("topodata.proto"), newer).unwrap();
    let set = dir.path().join("newer.bin");
    let status = Command::new("protoc")
        .args(["-I", dir.path().to_str().unwrap(), "--include_imports", "--descriptor_set_out"])
        .arg(&set)
        .args(["topodata.proto", "vschema.proto"])
        .status()
        .unwrap();
    assert!(status.success());
    let codec = Codec::from_file(&set).unwrap();
    codec.store("topodata.CellInfo", Form::Text, &"region: \"eu\"".into(), None).unwrap();
    assert!(Codec::builtin().unwrap().parse("topodata.CellInfo", Form::Text, b"region: \"eu\"").is_err());
    std::fs::write(&set, b"not a descriptor set").unwrap();
    assert!(Codec::from_file(&set).is_err());
}

/// Inputs tried: a short run by default, TOPOFS_TEST_HOSTILE_INPUTS=1000000 for a long one.
fn hostile_inputs() -> u64 {
    std::env::var("TOPOFS_TEST_HOSTILE_INPUTS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000)
}

/// Bytes that are wrong in every way: noise, pieces of syntax, and valid records with damage.
fn hostile(numbers: &mut Numbers, codec: &Codec, name: &str) -> Vec<u8> {
    const PIECES: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        "<",
        ">",
        "\"",
        "'",
        "\\",
        "\\x",
        "\\u12",
        "#",
        "\n",
        ":",
        ",",
        ";",
        "null",
        "1e999",
        "-0x",
        "nan",
        "alias",
        "port_map",
        "key",
        "value",
        "seconds",
        "type",
        "\0",
        "ü",
        "[a.b/c]",
        "...",
        "99999999999999999999",
        "\"key_range\":",
    ];
    match numbers.below(4) {
        0 => (0..numbers.below(64)).map(|_| numbers.next() as u8).collect(),
        1 => (0..numbers.below(40)).flat_map(|_| PIECES[numbers.below(PIECES.len() as u64) as usize].bytes()).collect(),
        _ => {
            let raw = Bytes::from(numbers.message(&descriptor(name), 2).encode_to_vec());
            let form = Form::ALL[numbers.below(3) as usize];
            let mut bytes = codec.show(name, form, &raw).unwrap().to_vec();
            for _ in 0..=numbers.below(3) {
                if bytes.is_empty() {
                    break;
                }
                let at = numbers.below(bytes.len() as u64) as usize;
                match numbers.below(4) {
                    0 => bytes[at] = numbers.next() as u8,
                    1 => drop(bytes.remove(at)),
                    2 => bytes.truncate(at),
                    _ => bytes.insert(at, b"{}[]\"\\:,<>\x80\xff"[numbers.below(12) as usize]),
                }
            }
            bytes
        }
    }
}

#[test]
fn hostile_input_is_only_refused() {
    let codec = Codec::builtin().unwrap();
    let kinds = Kinds::new(&["global/**/x*".to_owned()]).unwrap();
    let cell = CellName::global();
    let mut numbers = Numbers(std::process::id().into());
    println!("seed {}", numbers.0);
    for _ in 0..hostile_inputs() {
        let name = MESSAGES[numbers.below(MESSAGES.len() as u64) as usize];
        let input = Bytes::from(hostile(&mut numbers, &codec, name));
        for form in Form::ALL {
            let early = codec.refuse_early(name, form, &input);
            let outcome = codec.store(name, form, &input, Some(&input));
            assert!(early.is_ok() || outcome.is_err(), "refused early and taken later: {name} {form} {input:?}");
            if let Ok(Some(stored)) = outcome {
                codec.show(name, Form::Text, &stored).unwrap();
                codec.show(name, Form::Json, &stored).unwrap();
            }
            let _ = codec.show(name, form, &input);
        }
        let text = String::from_utf8_lossy(&input);
        if let Ok(path) = TopoPath::parse(&text) {
            let _ = (
                kinds.message(&cell, &path),
                kinds.is_record(&cell, &path),
                Form::of_name(path.as_str()),
                path.parent(),
            );
        }
        let _ = CellName::new(&text);
        let _ = normalize(["topofs", "mount", "-o", &text].map(Into::into));
        let _ = normalize(["topofs".into(), std::os::unix::ffi::OsStringExt::from_vec(input.to_vec())]);
    }
}

#[test]
fn nesting_is_bounded_in_every_form() {
    let codec = Codec::builtin().unwrap();
    for (form, piece) in [
        (Form::Text, "throttler_config {"),
        (Form::Text, "throttler_config <"),
        (Form::Text, "throttler_config: ["),
        (Form::Json, "{\"throttler_config\":"),
        (Form::Json, "["),
        (Form::Json, "{\"a\":"),
        (Form::Raw, "\u{3}"),
    ] {
        let input = Bytes::from(piece.repeat(100_000));
        let error = codec.store("topodata.Keyspace", form, &input, None).unwrap_err();
        assert_eq!(error.kind, topofs::error::Kind::BadMessage, "{form} {piece}");
        let _ = codec.refuse_early("topodata.Keyspace", form, &input);
    }
}
