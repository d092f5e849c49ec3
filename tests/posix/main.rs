//! The Rust ports of pjdfstest and fsx, over the scratch space and over a raw record; and a long mixed run that must
//! leak nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::process::Command;

use common::mount::Mount;
use common::world::World;
use common::{eventually, text};

/// Installed by scripts/test.
fn tool(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(name);
    assert!(path.exists(), "{} is missing: scripts/test installs it", path.display());
    path
}

fn config(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/posix").join(name)
}

#[test]
fn pjdfstest_over_the_scratch_space() {
    let mount = Mount::new(&["demo", "--allow-other", "--umask=022", "--scratch-quota=256MiB"]);
    // Other users must be able to come as far as the mount.
    std::fs::set_permissions(mount.outside(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    mount.sh("mkdir global/scratch");
    let output = Command::new("timeout")
        .arg("300")
        .arg(tool("pjdfstest"))
        .arg("-c")
        .arg(config("pjdfstest.toml"))
        .arg("-p")
        .arg(mount.path("global/scratch"))
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let report = text(&output);
    assert!(output.status.success(), "{report}");
    assert!(report.contains(" 0 failed"), "{report}");
    // Nothing of all that was stored.
    assert_eq!(mount.status()["cells"]["global"]["revision"], 52);
}

fn fsx(mount: &Mount, file: &str, config_file: Option<&str>, operations: u32) {
    for seed in 1..=3 {
        let mut command = Command::new("timeout");
        command.arg("100").arg(tool("fsx")).args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"]);
        command.arg(mount.outside());
        if let Some(name) = config_file {
            command.arg("-f").arg(config(name));
        }
        let output = command.arg(mount.path(file)).output().unwrap();
        assert!(output.status.success(), "seed {seed}: {}\n{}", text(&output), mount.log());
    }
}

#[test]
fn fsx_over_a_scratch_file() {
    let mount = Mount::new(&["demo"]);
    fsx(&mount, "global/scratch", None, 3_000);
}

#[test]
fn fsx_over_a_raw_record() {
    for world in [World::memory(), World::etcd2(), World::zk2(), World::consul()] {
        fsx(&world.mount, "global/metadata/fsx", Some("fsx.toml"), 1_000);
    }
}

/// Operations of the long run: TOPOFS_TEST_MIXED_OPERATIONS for more or fewer.
fn operations() -> usize {
    std::env::var("TOPOFS_TEST_MIXED_OPERATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000)
}

#[test]
fn a_hundred_thousand_mixed_operations_leak_nothing() {
    let mount = Mount::new(&["demo"]);
    let program = r#"
import errno, os, random, sys
random.seed(int(sys.argv[1]))
count = int(sys.argv[2])
base = "global/metadata"
names = ["key%d" % n for n in range(20)] + [".scratch%d" % n for n in range(5)] + ["dir%d" % n for n in range(3)]
expected = {
    errno.ENOENT, errno.EEXIST, errno.ESTALE, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY,
    errno.EBADMSG, errno.EPERM, errno.EXDEV, errno.EINVAL, errno.ENODATA,
}
def save(path):
    f = os.open(path, os.O_WRONLY | os.O_CREAT | random.choice([0, os.O_TRUNC, os.O_EXCL, os.O_APPEND]), 0o600)
    try: os.write(f, os.urandom(random.randrange(200)))
    finally: os.close(f)
def read(path):
    with open(path, "rb") as f: f.read()
operations = [
    (30, lambda p, q: save(p)), (20, lambda p, q: read(p)),
    (10, lambda p, q: os.unlink(p)), (10, lambda p, q: os.rename(p, q)),
    (5, lambda p, q: os.mkdir(p)), (5, lambda p, q: os.rmdir(p)),
    (5, lambda p, q: os.listdir(base)), (10, lambda p, q: os.stat(p)),
    (5, lambda p, q: os.truncate(p, random.randrange(100))), (5, lambda p, q: os.listxattr(p)),
    (5, lambda p, q: read("global/keyspaces/customer/VSchema" + random.choice(["", ".txt", ".json"]))),
    (2, lambda p, q: save("global/keyspaces/customer/Keyspace.txt")),
]
weights = [weight for weight, _ in operations]
for _ in range(count):
    operation = random.choices(operations, weights)[0][1]
    p, q = (os.path.join(base, random.choice(names)) for _ in range(2))
    try: operation(p, q)
    except OSError as e:
        if e.errno not in expected: raise
"#;
    let workers: Vec<_> = (0..4)
        .map(|seed| {
            let mut command = Command::new("timeout");
            command.args(["200", "python3", "-c", program, &seed.to_string(), &(operations() / 4).to_string()]);
            command.current_dir(mount.root());
            std::thread::spawn(move || command.output().unwrap())
        })
        .collect();
    for worker in workers {
        let output = worker.join().unwrap();
        assert!(output.status.success(), "{}\n{}", text(&output), mount.log());
    }
    assert!(!mount.log().contains("panic"), "{}", mount.log());
    // What hid a local directory of the same name may have gone first.
    mount.sh(
        "for i in 1 2 3; do rm -rf global/metadata/* global/metadata/.scratch*; done; ls -A global/metadata | wc -l",
    );
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    eventually("handles are closed and inodes forgotten", || {
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        let status = mount.status();
        let (inodes, handles) = (status["inodes"].as_u64().unwrap(), status["handles"].as_u64().unwrap());
        // The root, .topofs and status, which this reading looks up.
        (handles == 0 && inodes <= 4).then_some(())
    });
    assert_eq!(mount.status()["scratch"]["bytes"], 0);
}
