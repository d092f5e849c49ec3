//! What Debian's own clients store is seen, and the other way round, byte for byte.

use std::process::{Command, Stdio};

use crate::common::etcd::Etcd;
use crate::common::mount::Mount;
use crate::common::server::fresh_root;
use crate::common::{bash_in, consul, etcd, eventually, text, zookeeper};

/// All bytes that a command line can carry.
const VALUE: &str = "a \"value\" with 'quotes', ünïcode\tand a tab";

fn both_ways(mount: &Mount, put: impl Fn(&str, &str), get: impl Fn(&str) -> String) {
    put("global/metadata/theirs", VALUE);
    eventually("their value is seen", || {
        (std::fs::read(mount.path("global/metadata/theirs")).ok()? == VALUE.as_bytes()).then_some(())
    });
    put("global/metadata/theirs", "changed");
    eventually("their change is seen", || {
        (std::fs::read(mount.path("global/metadata/theirs")).ok()? == b"changed").then_some(())
    });
    std::fs::write(mount.path("global/metadata/ours"), VALUE).unwrap();
    assert_eq!(get("global/metadata/ours"), VALUE);
    // Bytes that are no text, and none at all.
    mount.sh("head -c 4096 /dev/urandom > global/metadata/noise; : > global/metadata/empty");
    assert_eq!(get("global/metadata/empty"), "");
}

#[test]
fn etcdctl() {
    let root = fresh_root();
    let server: &Etcd = etcd::shared();
    let mount = Mount::etcd(&server.endpoint(), &root, &[]);
    server.put(&format!("{root}/global/metadata/first"), b"x");
    eventually("the directory is there", || mount.path("global/metadata").exists().then_some(()));
    let get = |key: &str| String::from_utf8(server.get(&format!("{root}/{key}")).unwrap()).unwrap();
    both_ways(&mount, |key, value| server.put(&format!("{root}/{key}"), value.as_bytes()), get);
    assert_eq!(
        server.get(&format!("{root}/global/metadata/noise")).unwrap(),
        std::fs::read(mount.path("global/metadata/noise")).unwrap()
    );
}

#[test]
fn zk_cli() {
    let root = fresh_root();
    let server = zookeeper::shared();
    let cli = |command: &str| {
        let mut child = Command::new("/usr/share/zookeeper/bin/zkCli.sh")
            .args(["-server", &server.endpoint()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's zookeeper is installed");
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), format!("{command}\nquit\n").as_bytes()).unwrap();
        String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
    };
    let mut path = String::new();
    let mut commands = Vec::new();
    for part in format!("{root}/global/metadata").trim_start_matches('/').split('/') {
        path = format!("{path}/{part}");
        commands.push(format!("create {path} \"\""));
    }
    cli(&commands.join("\n"));
    let mount = Mount::of("zk2", &server.endpoint(), &root, &[]);
    cli(&format!("create {root}/global/metadata/theirs first"));
    eventually("their value is seen", || {
        (std::fs::read(mount.path("global/metadata/theirs")).ok()? == b"first").then_some(())
    });
    cli(&format!("set {root}/global/metadata/theirs changed"));
    eventually("their change is seen", || {
        (std::fs::read(mount.path("global/metadata/theirs")).ok()? == b"changed").then_some(())
    });
    std::fs::write(mount.path("global/metadata/ours"), "our value").unwrap();
    assert!(cli(&format!("get {root}/global/metadata/ours")).contains("our value"));
    // A node with data and children shows both.
    cli(&format!("create {root}/global/metadata/theirs/below \"also\""));
    eventually("the child is seen", || mount.path("global/metadata/theirs/below").exists().then_some(()));
    assert_eq!(mount.sh("ls -A global/metadata/theirs; cat global/metadata/theirs/.data"), ".data\nbelow\nchanged");
    mount.sh("echo new > global/metadata/theirs/.data");
    assert!(cli(&format!("get {root}/global/metadata/theirs")).contains("new"));
    cli(&format!("delete {root}/global/metadata/theirs/below"));
    eventually("it is a file again", || {
        (std::fs::read(mount.path("global/metadata/theirs")).ok()? == b"new\n").then_some(())
    });
    // Directories that our last record leaves empty are collected, as Vitess does.
    mount.sh("mkdir -p global/keyspaces/k/shards/0; \
         echo 'is_primary_serving: true' > global/keyspaces/k/shards/0/Shard.txt; \
         rm -r global/keyspaces");
    assert!(!cli(&format!("ls {root}/global")).contains("keyspaces"));
}

#[test]
fn consul_kv() {
    let root = fresh_root();
    let server = consul::shared();
    let binary = format!("{}/target/tools/consul/usr/bin/consul", env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let kv = |script: String| {
        let path = format!("export CONSUL_HTTP_ADDR={}; PATH=$PATH:$(dirname {binary})", server.endpoint());
        let output = bash_in(dir.path(), &format!("{path}; {script}"));
        assert!(output.status.success(), "{script}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let key = |key: &str| format!("{}/{key}", root.trim_start_matches('/'));
    kv(format!("consul kv put {} x", key("global/metadata/first")));
    let mount = Mount::of("consul", &server.endpoint(), &root, &[]);
    let put = |name: &str, value: &str| {
        std::fs::write(dir.path().join("value"), value).unwrap();
        kv(format!("consul kv put {} @value", key(name)));
    };
    both_ways(&mount, put, |name| kv(format!("consul kv get {} > out; head -c -1 out", key(name))));
    kv(format!("consul kv delete {}", key("global/metadata/theirs")));
    eventually("the deletion is seen", || (!mount.path("global/metadata/theirs").exists()).then_some(()));
}
