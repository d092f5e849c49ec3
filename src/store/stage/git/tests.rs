use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

type Files = BTreeMap<String, Vec<u8>>;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

fn patch(before: &Files, after: &Files) -> String {
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    changed.fold("# Not a part of it.\n".to_owned(), |patch, name| {
        let [before, after] = [before, after].map(|files| files.get(name).map(Vec::as_slice));
        patch + &FileChange { name, before, after }.patch(soon())
    })
}

fn write(dir: &Path, files: &Files) {
    for (name, content) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

fn read(dir: &Path) -> Files {
    let mut files = Files::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => {
                    let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                    files.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
    }
    files
}

/// What a tool makes of the files.
fn applied(tool: &[&str], before: &Files, patch: &str) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    write(&tree, before);
    let file = dir.path().join("patch");
    std::fs::write(&file, patch).unwrap();
    let input = std::fs::File::open(&file).unwrap();
    // Not the repository that the temporary directory may be in.
    let done = Command::new(tool[0])
        .args(&tool[1..])
        .current_dir(&tree)
        .env("GIT_CEILING_DIRECTORIES", dir.path())
        .stdin(input)
        .output()
        .unwrap();
    assert!(done.status.success(), "{tool:?}: {done:?}\n{patch}");
    read(&tree)
}

const GIT: [&str; 2] = ["git", "apply"];
const PATCH: [&str; 4] = ["patch", "-p1", "--force", "--no-backup-if-mismatch"];

fn files(of: &[(&str, &[u8])]) -> Files {
    of.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect()
}

#[test]
fn a_patch_is_as_git_writes_it() {
    let change =
        FileChange { name: "global/a.txt", before: Some(b"1\n2\n3\n4\n5\nx"), after: Some(b"1\n2\n3\n4\n6\nx\n") };
    let expected = "diff --git a/global/a.txt b/global/a.txt\n\
                    index d5abd4aabb66c0e9e4c0a83a7e1a92aa4ba0ed42..73a0a04b02ce0ae5d44f5bd0a1fb2ea5bc2c0d0d 100644\n\
                    --- a/global/a.txt\n+++ b/global/a.txt\n\
                    @@ -2,5 +2,5 @@\n 2\n 3\n 4\n-5\n-x\n\\ No newline at end of file\n+6\n+x\n";
    let without_ids =
        |patch: &str| patch.lines().filter(|line| !line.starts_with("index ")).collect::<Vec<_>>().join("\n");
    assert_eq!(without_ids(&change.patch(soon())), without_ids(expected));
    // As `git hash-object` says it.
    assert_eq!(object_id(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    assert_eq!(object_id(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
    let new = FileChange { name: "a", before: None, after: Some(b"x\n") }.patch(soon());
    assert!(new.contains("new file mode 100644\nindex 0000000000000000000000000000000000000000.."), "{new}");
    assert!(new.contains("--- /dev/null\n+++ b/a\n@@ -0,0 +1 @@\n+x\n"), "{new}");
    let gone = FileChange { name: "a", before: Some(b"x\n"), after: None }.patch(soon());
    assert!(
        gone.contains("deleted file mode 100644\n") && gone.contains("--- a/a\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"),
        "{gone}"
    );
    for (name, expected) in
        [("ä \"b\\", r#""a/\303\244 \"b\\""#), ("a\tb", r#""a/a\011b""#), ("a b", r#""a/a b""#), ("a-b", "a/a-b")]
    {
        assert_eq!(quoted("a/", name), expected);
    }
}

#[test]
fn git_and_patch_take_every_kind_of_change() {
    let long: String = (0..100).map(|n| format!("line {n}\n")).collect();
    let before = files(&[
        ("d/changed", long.as_bytes()),
        ("d/deleted", b"a\nb\n"),
        ("d/deleted empty", b""),
        ("d/emptied", b"a\n"),
        ("d/filled", b""),
        ("d/no newline", b"a\nb"),
        ("e/f/alone", b"1"),
        ("h/return", b"a\rb\r\nc\r"),
    ]);
    let after = files(&[
        ("d/changed", long.replace("line 7\n", "").replace("line 50\n", "50\n51\n").as_bytes()),
        ("d/emptied", b""),
        ("d/filled", b"a\n"),
        ("d/no newline", b"a\nb\nc"),
        ("g/new/\"q\\\u{e4}", b"# diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n"),
        ("g/new/empty \u{1F600}", b""),
        ("g/new/tab\there", b"\tx \n"),
        ("h/return", b"a\rb\rX\nc\r\n"),
    ]);
    let patch = patch(&before, &after);
    for tool in [&GIT[..], &PATCH[..]] {
        assert_eq!(applied(tool, &before, &patch), after, "{tool:?}");
    }
}

#[test]
fn git_takes_bytes_and_both_ways() {
    let bytes = |seed: usize, length: usize| (0..length).map(|n| ((n * n * seed) >> 3) as u8).collect::<Vec<u8>>();
    let all = |seed: usize| [0, 1, 3, 26, 27, 52, 53, 1000, 70_000].map(|length| bytes(seed, length + seed % 2));
    let before: Files = all(3).into_iter().enumerate().map(|(n, content)| (format!("f{n}"), content)).collect();
    let mut after: Files = all(12).into_iter().enumerate().map(|(n, content)| (format!("f{n}"), content)).collect();
    after.remove("f5");
    after.insert("new".to_owned(), b"\0".to_vec());
    after.insert("f1".to_owned(), b"now text\n".to_vec());
    let patch = patch(&before, &after);
    assert_eq!(applied(&GIT, &before, &patch), after);
    assert_eq!(applied(&["git", "apply", "-R"], &after, &patch), before);
}

#[test]
fn what_takes_too_long_to_compare_is_still_right() {
    let text = |seed: u64| (0..30_000_u64).map(|n| format!("{}\n", n * n * seed % 7)).collect::<String>().into_bytes();
    let (before, after) = (files(&[("a", &text(3))]), files(&[("a", &text(5))]));
    let change = FileChange { name: "a", before: Some(&before["a"]), after: Some(&after["a"]) };
    let patch = change.patch(Instant::now());
    assert_eq!(applied(&GIT, &before, &patch), after);
}

#[test]
fn the_effort_ends_with_the_deadline_however_much_there_is_to_compare() {
    // Neither the search nor what follows it goes on: lines of two kinds, without order, on both sides.
    let text = |mut state: u64| {
        let mut line = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if state >> 40 & 1 == 0 { "a\n" } else { "b\n" }
        };
        (0..20_000).map(|_| line()).collect::<String>()
    };
    let (before, after) = (text(1), text(2));
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (lines(&before), lines(&after));
    let [old, new] = [&old, &new].map(|lines| lines.iter().map(String::as_str).collect::<Vec<_>>());
    let ops = operations(&old, &new, Instant::now());
    assert!(ops.len() <= 5, "what is left is replaced as a whole: {}", ops.len());
    // The other way round: many steps are found in time, and are not merged: that takes the square of their number.
    let changed: Vec<&str> = (0..60_000).map(|n| if n % 2 == 0 { "a" } else { "b" }).collect();
    let equal: Vec<&str> = (0..60_000).map(|n| if n % 20 == 0 { "c" } else { changed[n] }).collect();
    let ops = operations(&changed, &equal, Instant::now() + Duration::from_secs(60));
    assert!(ops.len() > MERGED, "{}", ops.len());
    let patch = FileChange { name: "a", before: Some(before.as_bytes()), after: Some(after.as_bytes()) }
        .patch(Instant::now() + Duration::from_millis(200));
    let (before, after) = (files(&[("a", before.as_bytes())]), files(&[("a", after.as_bytes())]));
    assert_eq!(applied(&GIT, &before, &patch), after);
}

fn some_files() -> impl Strategy<Value = Files> {
    let name = prop::sample::select(vec!["a", "b/c", "b/d e", "f/g/h\u{fc}", "i\"", "j"]);
    let line = prop::sample::select(vec!["x\n", "y\n", "\n", "z\r\n", "\u{fc}\n", "no end", "\r"]);
    let content = prop_oneof![
        9 => prop::collection::vec(line, 0..12).prop_map(|lines| lines.concat().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..80),
    ];
    prop::collection::btree_map(name.prop_map(str::to_owned), content, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_patch_gives_what_it_was_made_from(before in some_files(), after in some_files()) {
        let patch = patch(&before, &after);
        if before != after {
            prop_assert_eq!(&applied(&GIT, &before, &patch), &after);
            let is_text = |files: &Files| files.values().all(|content| as_text(content).is_some());
            if is_text(&before) && is_text(&after) {
                prop_assert_eq!(&applied(&PATCH, &before, &patch), &after);
            }
        }
    }
}
