//! The map of docs/architecture.md is true: every `use` line of src/ is an arrow, and arrows go down the map. Who needs
//! another one changes the map, and says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module as `tree::records::open`; the crate itself is empty.
type Module = String;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// All modules of src/ that are files, but for those of tests.
fn modules() -> BTreeMap<Module, PathBuf> {
    let (src, mut files) = (root().join("src"), Vec::new());
    files_below(&src, &mut files);
    let named = files.into_iter().map(|path| {
        let name = path.strip_prefix(&src).unwrap().with_extension("").display().to_string().replace('/', "::");
        let name = name.strip_suffix("::mod").unwrap_or(&name).to_owned();
        (if name == "lib" { String::new() } else { name }, path)
    });
    named.filter(|(name, _)| name != "tests" && !name.ends_with("::tests") && !name.ends_with("conformance")).collect()
}

/// `a::{b, c::{d, e as f}}` as `a::b`, `a::c::d`, `a::c::e`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((before, inside)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap().trim().to_owned()];
    };
    let inside = &inside[..inside.rfind('}').unwrap()];
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for letter in inside.chars() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        match letter {
            ',' if depth == 0 => parts.push(String::new()),
            letter => parts.last_mut().unwrap().push(letter),
        }
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| expand(&format!("{}{}", before.trim(), part.trim()))).collect()
}

/// The paths that the `use` lines of a file name, its tests left out.
fn used(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find("use ") {
        let before = rest[..start].rsplit('\n').next().unwrap().trim();
        let is_statement = before.is_empty() || before.starts_with("pub");
        rest = &rest[start + "use ".len()..];
        let Some(end) = rest.find(';') else { break };
        if is_statement {
            paths.extend(expand(&rest[..end]));
            rest = &rest[end..];
        }
    }
    paths
}

/// The module that a path in a module leads to; `None` if it is none of ours.
fn target(modules: &BTreeMap<Module, PathBuf>, module: &str, path: &str) -> Option<Module> {
    let mut parts: Vec<&str> = path.split("::").map(str::trim).collect();
    let mut base: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    let full: Vec<&str> = match *parts.first()? {
        "crate" => parts.split_off(1),
        "self" => [base, parts.split_off(1)].concat(),
        "super" => {
            let ups = parts.iter().take_while(|part| **part == "super").count();
            base.truncate(base.len().saturating_sub(ups));
            [base, parts.split_off(ups)].concat()
        }
        // A module of this one's own.
        first if modules.contains_key(&[&base[..], &[first]].concat().join("::")) => [base, parts].concat(),
        "topofs" => parts.split_off(1),
        _ => return None,
    };
    let longest = (1..=full.len()).rev().map(|count| full[..count].join("::"));
    longest.into_iter().find(|name| modules.contains_key(name))
}

/// Every module with those that it imports from. A module may name the folder that it is in.
fn arrows(modules: &BTreeMap<Module, PathBuf>) -> BTreeMap<Module, BTreeSet<Module>> {
    let of = |module: &Module, path: &PathBuf| {
        let paths = used(&fs::read_to_string(path).unwrap());
        let targets = paths.iter().filter_map(|path| target(modules, module, path));
        targets.filter(|to| to != module && !module.starts_with(&format!("{to}::"))).collect()
    };
    modules.iter().map(|(module, path)| (module.clone(), of(module, path))).collect()
}

/// The rooms of the map, each with its line: from the top down.
fn map() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (_, after) = text.split_once("<!-- map: read by tests/architecture.rs -->\n").expect("the map is marked");
    let lines = after.lines().skip_while(|line| line.is_empty()).take_while(|line| line.starts_with("    "));
    let rooms = lines.enumerate().flat_map(|(index, line)| {
        // What a room is for stands two spaces behind its name.
        let names = line.trim().split("  ").next().unwrap();
        names.split(' ').map(move |name| (name.trim_end_matches('/').replace('/', "::"), index)).collect::<Vec<_>>()
    });
    rooms.collect()
}

fn room<'a>(map: &'a BTreeMap<String, usize>, module: &str) -> Option<(&'a str, usize)> {
    let is_in = |name: &str| module == name || module.starts_with(&format!("{name}::"));
    let rooms = map.iter().filter(|(name, _)| is_in(name));
    rooms.max_by_key(|(name, _)| name.len()).map(|(name, line)| (name.as_str(), *line))
}

#[test]
fn every_arrow_goes_down_the_map() {
    let (modules, map) = (modules(), map());
    let mut wrong = Vec::new();
    for (from, targets) in arrows(&modules).iter().filter(|(from, _)| !from.is_empty()) {
        let Some((own, line)) = room(&map, from) else {
            wrong.push(format!("{from} is in no room of the map"));
            continue;
        };
        for to in targets {
            match room(&map, to) {
                Some((other, below)) if other == own || below > line => {}
                Some((other, _)) => wrong.push(format!("{from} imports {to}: no arrow leads from {own} to {other}")),
                None => wrong.push(format!("{to} is in no room of the map")),
            }
        }
    }
    assert!(wrong.is_empty(), "docs/architecture.md forbids:\n{}", wrong.join("\n"));
}

#[test]
fn every_room_of_the_map_is_there() {
    let modules = modules();
    let map = map();
    assert!(map.len() > 10, "{map:?}");
    let missing: Vec<&String> = map.keys().filter(|room| !modules.contains_key(*room)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn no_file_imports_in_a_circle() {
    let arrows = arrows(&modules());
    let mut left: BTreeMap<&Module, BTreeSet<&Module>> =
        arrows.iter().map(|(from, targets)| (from, targets.iter().collect())).collect();
    loop {
        // What imports nothing that is left, or is imported by nothing that is left, cannot be part of a circle.
        let imported: BTreeSet<&Module> = left.values().flatten().copied().collect();
        let is_outside = |from: &&Module, targets: &BTreeSet<&Module>| targets.is_empty() || !imported.contains(from);
        let outside: Vec<&Module> =
            left.iter().filter(|(from, to)| is_outside(from, to)).map(|(from, _)| *from).collect();
        if outside.is_empty() {
            break;
        }
        outside.iter().for_each(|module| drop(left.remove(module)));
        left.values_mut().for_each(|targets| targets.retain(|to| !outside.contains(to)));
    }
    assert!(left.is_empty(), "in circles: {left:#?}");
}

#[test]
fn use_lines_are_read() {
    assert_eq!(expand("a::{b, c::{d, e as f}}"), ["a::b", "a::c::d", "a::c::e"]);
    let text =
        "use a::b;\npub(crate) use c;\nfn f() {\n    use d::{\n        e,\n    };\n    let x = \"because of \";\n}\n";
    assert_eq!(used(text), ["a::b", "c", "d::e"]);
    assert!(used("use a;\n#[cfg(test)]\nmod tests {\n    use b;\n}\n").len() == 1);
}
