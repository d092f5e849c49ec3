//! Random changes from here and elsewhere, while the kernel's caches are full: at every quiet point, what a reader sees
//! is what the service has. One's own changes are seen at once.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::common::eventually;
use crate::common::mount::{Mount, write_knowingly};
use crate::common::world::{Service, runtime};
use topofs::backend::{Action, Change, Guard};
use topofs::name::TopoPath;

/// Records with three forms, and some with one, in directories that come and go with them.
const KEYS: [&str; 5] =
    ["keyspaces/p/VSchema", "keyspaces/p/Keyspace", "keyspaces/q/VSchema", "metadata/a", "metadata/b"];
const DIRS: [&str; 5] = ["", "keyspaces", "keyspaces/p", "keyspaces/q", "metadata"];

#[derive(Debug, Clone, Copy)]
enum Op {
    /// By another mount's tools or Vitess's own.
    Remote {
        key: usize,
        value: Option<u8>,
    },
    /// Through a form.
    Write {
        key: usize,
        form: usize,
        value: u8,
    },
    /// By renaming a new file over it.
    Replace {
        key: usize,
        form: usize,
        value: u8,
    },
    Remove {
        key: usize,
        form: usize,
    },
    /// Reads everything, so that the kernel has it.
    Fill,
}

fn op() -> impl Strategy<Value = Op> {
    let (key, form, value) = (0..KEYS.len(), 0_usize..3, 0_u8..6);
    prop_oneof![
        3 => (key.clone(), proptest::option::weighted(0.7, value.clone()))
            .prop_map(|(key, value)| Op::Remote { key, value }),
        3 => (key.clone(), form.clone(), value.clone()).prop_map(|(key, form, value)| Op::Write { key, form, value }),
        2 => (key.clone(), form.clone(), value).prop_map(|(key, form, value)| Op::Replace { key, form, value }),
        2 => (key, form).prop_map(|(key, form)| Op::Remove { key, form }),
        2 => Just(Op::Fill),
    ]
}

fn is_decoded(key: &str) -> bool {
    !key.starts_with("metadata")
}

/// What a form of a record with a value shows.
fn content(key: &str, form: usize, value: u8) -> Vec<u8> {
    // Longer and shorter ones, so that sizes change.
    let name = "n".repeat(1 + 7 * value as usize);
    match (key.rsplit('/').next().unwrap(), form) {
        _ if !is_decoded(key) => name.into_bytes(),
        ("VSchema", 0) => {
            let mut bytes = vec![0x1a, name.len() as u8 + 4, 0x0a, name.len() as u8];
            bytes.extend(name.bytes());
            bytes.extend([0x12, 0x00]);
            bytes
        }
        ("VSchema", 1) => format!("tables {{\n  key: \"{name}\"\n  value {{\n  }}\n}}\n").into_bytes(),
        ("VSchema", _) => format!("{{\n  \"tables\": {{\n    \"{name}\": {{}}\n  }}\n}}\n").into_bytes(),
        (_, 0) => [&[0x52, name.len() as u8][..], name.as_bytes()].concat(),
        (_, 1) => format!("sidecar_db_name: \"{name}\"\n").into_bytes(),
        (_, _) => format!("{{\n  \"sidecar_db_name\": \"{name}\"\n}}\n").into_bytes(),
    }
}

fn forms(key: &str) -> Vec<String> {
    let suffixes = if is_decoded(key) { &["", ".txt", ".json"][..] } else { &[""] };
    suffixes.iter().map(|suffix| format!("global/{key}{suffix}")).collect()
}

type Stored = BTreeMap<&'static str, u8>;

/// How what a mount shows differs from what is stored.
fn mistake(mount: &Mount, stored: &Stored) -> Option<String> {
    for key in KEYS {
        for (form, path) in forms(key).iter().enumerate() {
            let wanted = stored.get(key).map(|value| content(key, form, *value));
            let shown = std::fs::read(mount.path(path)).ok();
            let size = std::fs::metadata(mount.path(path)).ok().map(|known| known.len());
            if shown != wanted || size != wanted.as_ref().map(|wanted| wanted.len() as u64) {
                let text =
                    |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
                return Some(format!("{path}: {:?} of {size:?} bytes for {:?}", text(&shown), text(&wanted)));
            }
        }
    }
    for dir in DIRS {
        let mut wanted: Vec<String> = stored
            .keys()
            .flat_map(|key| forms(key))
            .filter_map(|path| {
                let rest = path.strip_prefix("global/")?.strip_prefix(dir)?.trim_start_matches('/').to_owned();
                Some(rest.split('/').next()?.to_owned())
            })
            .collect();
        wanted.push("keep".to_owned());
        wanted.sort();
        wanted.dedup();
        let mut shown: Vec<String> = std::fs::read_dir(mount.path(&format!("global/{dir}")))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".lock")
            .collect();
        shown.sort();
        if dir != "metadata" {
            wanted.retain(|name| name != "keep");
        }
        if dir.is_empty() {
            wanted.extend(["metadata".to_owned()]);
            wanted.sort();
            wanted.dedup();
        }
        // A directory whose last record was removed here stays for a while.
        shown.retain(|name| wanted.contains(name) || name.len() > 1 && name != "keyspaces");
        if shown != wanted {
            return Some(format!("{dir}: {shown:?} for {wanted:?}"));
        }
    }
    None
}

fn apply(service: &Service, mount: &Mount, stored: &mut Stored, op: Op) {
    let place = |key: usize, form: usize| {
        let forms = forms(KEYS[key]);
        let form = form % forms.len();
        (KEYS[key], form, mount.path(&forms[form]))
    };
    match op {
        Op::Remote { key, value } => {
            let key = KEYS[key];
            let path = TopoPath::parse(&format!("global/{key}")).unwrap();
            let action = match value {
                Some(value) => Action::Put(content(key, 0, value).into()),
                None if stored.contains_key(key) => Action::Delete,
                None => return,
            };
            runtime().block_on(service.cell().apply(&[Change { path, guard: Guard::Any, action }])).unwrap();
            match value {
                Some(value) => drop(stored.insert(key, value)),
                None => drop(stored.remove(key)),
            }
            eventually(&format!("{op:?} is seen: {:?}", mistake(mount, stored)), || {
                mistake(mount, stored).is_none().then_some(())
            });
        }
        Op::Write { key, form, value } => {
            let (key, form, path) = place(key, form);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            write_knowingly(path, content(key, form, value));
            stored.insert(key, value);
        }
        Op::Replace { key, form, value } => {
            let (key, form, path) = place(key, form);
            let scratch = path.with_file_name(".new");
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&scratch, content(key, form, value)).unwrap();
            // What has changed since this process has read it is not replaced unseen; what has gone, it hears of once.
            let _ = std::fs::read(&path);
            if std::fs::rename(&scratch, &path).is_err_and(|error| error.raw_os_error() == Some(libc::ESTALE)) {
                std::fs::rename(&scratch, &path).unwrap();
            }
            stored.insert(key, value);
        }
        Op::Remove { key, form } => {
            let (key, _, path) = place(key, form);
            match stored.remove(key) {
                Some(_) => std::fs::remove_file(path).unwrap(),
                None => return,
            }
            // The process that has removed one name may remove the others, too: for itself they are there still.
            for path in forms(key) {
                let _ = std::fs::remove_file(mount.path(&path));
            }
        }
        Op::Fill => {}
    }
    if let Some(mistake) = mistake(mount, stored) {
        panic!("{op:?}: {mistake}");
    }
}

fn what_is_kept_is_true(service: &Service, cases: u32) {
    let (mount, looking) = (service.mount(&["--respect-locks=none"]), service.mount(&["--read-only"]));
    service.put("global/metadata/keep", b"x");
    let all = service.keys();
    for key in all.iter().filter(|key| key.starts_with("global/") && *key != "global/metadata/keep") {
        service.delete(key);
    }
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, max_shrink_iters: 0, ..Config::default() });
    let stored = std::cell::RefCell::new(Stored::new());
    eventually("the mount knows what is left", || mistake(&mount, &stored.borrow()).is_none().then_some(()));
    runner
        .run(&proptest::collection::vec(op(), 1..12), |ops| {
            let mut stored = stored.borrow_mut();
            for op in ops {
                apply(service, &mount, &mut stored, op);
            }
            // A mount that only looks has heard of all that.
            eventually(&format!("the same everywhere: {:?}", mistake(&looking, &stored)), || {
                mistake(&looking, &stored).is_none().then_some(())
            });
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_is_kept_is_true_on_etcd2() {
    what_is_kept_is_true(&Service::etcd2(), 64);
}

#[test]
fn what_is_kept_is_true_on_zk2() {
    what_is_kept_is_true(&Service::zk2(), 24);
}

#[test]
fn what_is_kept_is_true_on_consul() {
    what_is_kept_is_true(&Service::consul(), 12);
}
