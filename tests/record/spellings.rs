//! What Vitess's parser refuses is refused, with the place; and what is printed is what Vitess prints. The tables were
//! made with Vitess's library, and `tests/interop/spellings` holds them against it.

use bytes::Bytes;
use topofs::error::Kind;
use topofs::record::{Codec, Form};

#[derive(Debug, serde::Deserialize)]
struct Spelling {
    form: String,
    message: String,
    input: String,
    /// Whether Vitess takes it.
    vitess: bool,
    /// Where it is refused here.
    place: Option<(usize, usize)>,
}

#[derive(Debug, serde::Deserialize)]
struct Printed {
    message: String,
    txt: String,
    json: String,
}

#[test]
fn what_vitess_refuses_is_refused_with_its_place() {
    let codec = Codec::builtin().unwrap();
    let table: Vec<Spelling> = serde_json::from_str(include_str!("../interop/spellings/spellings.json")).unwrap();
    let mut wrong = Vec::new();
    for spelling in &table {
        let Spelling { form, message, input, vitess, place } = spelling;
        let form = if form == "json" { Form::Json } else { Form::Text };
        let input = Bytes::from(input.clone());
        let outcome = codec.store(message, form, &input, None);
        let found = outcome.as_ref().err().map(|error| error.position.map_or((0, 0), |at| (at.line, at.column)));
        let kind = outcome.as_ref().err().map(|error| error.kind);
        if found != *place || (!vitess && place.is_none()) || kind.is_some_and(|kind| kind != Kind::BadMessage) {
            wrong.push(format!("{spelling:?}\n    {outcome:?}"));
        }
        // What is refused in the end may be refused while it is written, what is taken must not be, at any point.
        if outcome.is_ok() {
            for end in 0..=input.len() {
                codec.refuse_early(message, form, &input[..end]).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), table.len(), wrong.join("\n"));
}

#[test]
fn what_occurs_twice_is_refused_while_it_is_written() {
    let codec = Codec::builtin().unwrap();
    for (form, message, input) in [
        (Form::Json, "vschema.Keyspace", "{\"tables\":{\"a\":{}},\n\"tables\":{\"c\":{}}}\n"),
        (Form::Json, "vschema.Keyspace", "{\"tables\":{\"a\":{},\"a\":{}}}\n"),
        (Form::Json, "vschema.MirrorRules", "{\"rules\":[{\"percent\":\"1e300\"}]}\n"),
        (Form::Text, "vschema.Keyspace", "tables { key: \"a\" }\ntables { key: \"a\" }\n"),
        (Form::Text, "topodata.Tablet", "mysql_port: 0\nmysql_port: 5\n"),
    ] {
        assert!(codec.refuse_early(message, form, input.as_bytes()).is_err(), "{input}");
    }
    // A number goes on until something else comes.
    codec.refuse_early("topodata.Tablet", Form::Json, b"{\"mysql_port\":10000000000").unwrap();
    codec.store("topodata.Tablet", Form::Json, &"{\"mysql_port\":10000000000e-7}".into(), None).unwrap();
}

#[test]
fn who_writes_a_second_value_hears_that_comments_are_not_kept() {
    let codec = Codec::builtin().unwrap();
    for input in ["cell: \"a\"\ncell: \"b\"", "cell: \"\"\ncell: \"b\""] {
        let error = codec.parse("topodata.TabletAlias", Form::Text, input.as_bytes()).unwrap_err();
        assert!(error.reason.contains("comments"), "{error}");
    }
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_place() {
    let codec = Codec::builtin().unwrap();
    for (form, input) in [
        (Form::Text, &b"hostname: \"a\"\nkeyspace: \"\xff\""[..]),
        (Form::Text, b"hostname: \"a\"\nkeyspace: \"\xed\xa0\x80\""),
        (Form::Json, b"{\"hostname\":\n\"      \xc3(\"}"),
        (Form::Json, b"{\"hostname\":1234\n,\"keysp\xc0\x80\":1}"),
    ] {
        let error = codec.parse("topodata.Tablet", form, input).unwrap_err();
        assert!(error.reason.contains("UTF-8") && error.position.is_some_and(|at| at.line == 2), "{error}");
    }
}

#[test]
fn numbers_print_in_json_as_vitess_prints_them() {
    let codec = Codec::builtin().unwrap();
    let table: Vec<Printed> = serde_json::from_str(include_str!("../interop/spellings/numbers.json")).unwrap();
    for Printed { message, txt, json } in table {
        let raw = codec.store(&message, Form::Text, &txt.into(), None).unwrap().unwrap();
        let shown = codec.show(&message, Form::Json, &raw).unwrap();
        assert_eq!(String::from_utf8_lossy(&shown).split_whitespace().collect::<String>(), json);
        // And what is printed is taken back as the same.
        assert_eq!(codec.store(&message, Form::Json, &shown, Some(&raw)).unwrap(), None, "{json}");
    }
}

/// Fields that no record of Vitess has, of kinds that another Vitess may have.
fn newer(dir: &std::path::Path) -> Codec {
    let proto = std::fs::read_to_string(format!("{}/topodata.proto", crate::proto_dir())).unwrap();
    let import =
        "import \"vttime.proto\";\nimport \"google/protobuf/any.proto\";\nimport \"google/protobuf/struct.proto\";";
    let fields = "message CellInfo {
        google.protobuf.Any any = 91; google.protobuf.Struct free = 92; google.protobuf.Value value = 93;
        oneof one { string this = 94; string that = 95; }
        map<int32, string> numbers = 96; map<bool, string> flags = 97;";
    let newer = proto.replace("import \"vttime.proto\";", import).replace("message CellInfo {", fields);
    assert!(newer.contains(import) && newer.contains(fields));
    for entry in std::fs::read_dir(crate::proto_dir()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    std::fs::write(dir.join("topodata.proto"), newer).unwrap();
    let set = dir.join("set");
    let mut protoc = std::process::Command::new("protoc");
    protoc.arg("-I").arg(dir).args(["--include_imports", "--descriptor_set_out"]).arg(&set).arg("topodata.proto");
    assert!(protoc.status().unwrap().success());
    Codec::from_file(&set).unwrap()
}

#[test]
fn what_another_vitess_may_have_is_read_as_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let codec = newer(dir.path());
    const ANY: &str = "{\"any\":{\"@type\":\"type.googleapis.com/topodata.Tablet\",";
    for (form, input, taken) in [
        (Form::Json, "{\"free\":{\"a\":[1,null,true,\"x\",1.5,{}]},\"value\":null}".to_owned(), true),
        (Form::Json, "{\"free\":{\"a\":1,\"a\":2}}".to_owned(), false),
        (Form::Json, "{\"free\":{\"a\":{\"b\":[{\"c\":1,\"c\":1}]}}}".to_owned(), false),
        (Form::Json, "{\"value\":{\"a\":1,\"\\u0061\":2}}".to_owned(), false),
        (Form::Json, format!("{ANY}\"hostname\":\"a\"}}}}"), true),
        (Form::Json, format!("{ANY}\"hostname\":\"a\",\"hostname\":\"a\"}}}}"), false),
        (Form::Json, format!("{ANY}\"portMap\":{{}},\"port_map\":{{}}}}}}"), false),
        (Form::Json, format!("{ANY}\"mysql_port\":\"2147483648\"}}}}"), false),
        (Form::Json, "{\"this\":\"a\",\"that\":\"b\"}".to_owned(), false),
        (Form::Json, "{\"this\":\"\",\"that\":\"\"}".to_owned(), false),
        (Form::Json, "{\"this\":null,\"that\":\"b\"}".to_owned(), true),
        (Form::Json, "{\"numbers\":{\"1\":\"a\",\"2\":\"b\"}}".to_owned(), true),
        (Form::Json, "{\"numbers\":{\"1\":\"a\",\"01\":\"b\"}}".to_owned(), false),
        (Form::Json, "{\"numbers\":{\"2147483648\":\"a\"}}".to_owned(), false),
        (Form::Json, "{\"flags\":{\"true\":\"a\",\"True\":\"b\"}}".to_owned(), false),
        (Form::Text, "this: \"a\" that: \"b\"".to_owned(), false),
        (Form::Text, "this: \"\" that: \"\"".to_owned(), false),
        (Form::Text, "numbers { key: 1 } numbers { key: 0x1 }".to_owned(), false),
        (Form::Text, "numbers { key: -1 } numbers { key: 1 }".to_owned(), true),
        (Form::Text, "flags { key: true } flags { key: 1 }".to_owned(), false),
        (Form::Text, "any { [a.b/topodata.TabletAlias] { cell: \"\" } }".to_owned(), true),
        (Form::Text, "any { [a.b/topodata.TabletAlias] { cell: \"\" cell: \"x\" } }".to_owned(), false),
        (Form::Text, "any { [a.b/topodata.TabletAlias] { } [a.b/topodata.TabletAlias] { } }".to_owned(), false),
        (Form::Text, "free { fields { key: \"a\" } fields { key: \"a\" } }".to_owned(), false),
    ] {
        let outcome = codec.store("topodata.CellInfo", form, &input.clone().into(), None);
        assert_eq!(outcome.is_ok(), taken, "{input}: {outcome:?}");
        if let Err(error) = outcome {
            assert_eq!(error.position.map(|at| at.line), Some(1), "{input}: {error}");
        }
    }
}
