//! The image: a root file system of its own, made from the package.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::package::{package, repository};
use crate::common::{bash_apart, bash_in, etcd, text, world};
use topofs::sample::Cluster;

/// Makes an image.
fn image(target: &Path) -> String {
    let mut script = Command::new(repository().join("scripts/package/image"));
    let output = script.arg("--package").arg(package()).arg(target).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A pod: a container with its own root, mounts and processes, and another container that sees the same volume. In
/// Kubernetes: Bidirectional here, HostToContainer there.
const POD: &str = r#"
set -eu
# A volume of the pod: what one container mounts there, the node and the other containers see.
mkdir volume app
mount --bind volume volume
mount --make-shared volume
mount --rbind /dev root/dev
cat > app.sh <<'END'
mount --rbind volume app
touch ready
exec sleep 50
END
cat > topofs.sh <<'END'
mount -t proc proc root/proc
mount --bind volume root/mnt/topo
exec chroot root /usr/bin/topofs mount --foreground --topo-global-server-address "$1" --topo-global-root /image/global \
  /mnt/topo
END
unshare -m --propagation slave bash app.sh &
app=$!
unshare -m --propagation unchanged -p --fork bash topofs.sh "$SERVER" > log 2>&1 &
container=$!
trap 'umount -l volume/ 2> /dev/null; kill -9 $app ${topofs:-}; cat log' EXIT
# It answers when it is there.
for _ in $(seq 300); do
  [ -e ready ] && [ -d volume/global ] && break
  [ -d "/proc/$container" ] || { echo "it has ended"; exit 1; }
  sleep 0.1
done
topofs=$(tr -d " " < "/proc/$container/task/$container/children")
record=global/keyspaces/commerce/Keyspace.json
within() { nsenter -m -p -t "$topofs" bash -c "$1"; }
policy() { grep -o '"durability_policy".*"'; }
echo "node: $(policy < volume/$record)"
echo "container: $(within "cat $PWD/root/mnt/topo/$record" | policy)"
echo "other container: $(nsenter -m -t $app cat "$PWD/app/$record" | policy)"
echo "unseen writer: $( (echo '{"durability_policy": "none"}' > volume/$record) 2>&1 | sed 's/.*: //')"
tail -n 1 volume/.topofs/errors | grep -o 'mount with --allow-unseen-writers'
within "echo '{\"durability_policy\": \"none\"}' > '$PWD/root/mnt/topo/$record'"
echo "seen writer: $(policy < volume/$record)"
kill -TERM "$topofs"
wait $container
topofs=
echo "after: $(ls volume) $(nsenter -m -t $app ls "$PWD/app")"
trap - EXIT
kill $app
"#;

#[test]
fn an_image_mounts_an_etcd_in_a_root_of_its_own_and_it_is_seen_outside() {
    let work = tempfile::tempdir().unwrap();
    image(&work.path().join("root"));
    let server = etcd::shared().endpoint();
    world::load(&*world::etcd_cell(&server, "/image"), &Cluster::demo(&server));
    let output = bash_apart(work.path(), &format!("SERVER={server}\n{POD}"));
    let expected = [
        "node: \"durability_policy\": \"semi_sync\"",
        "container: \"durability_policy\": \"semi_sync\"",
        "other container: \"durability_policy\": \"semi_sync\"",
        "unseen writer: Operation not permitted",
        "mount with --allow-unseen-writers",
        "seen writer: \"durability_policy\": \"none\"",
        "after:  ",
    ];
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(text(&output).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn an_image_holds_the_program_with_its_libraries_and_little_else() {
    let work = tempfile::tempdir().unwrap();
    image(&work.path().join("root"));
    let listed = bash_in(&work.path().join("root"), "find . ! -type d -printf '%P\n' | sort");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let is_known = |name: &str| {
        let named = ["etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/ssl/certs/ca-certificates.crt"];
        let ours = ["usr/bin/topofs", "usr/sbin/mount.topofs", "usr/sbin/mount.fuse.topofs"];
        named.contains(&name) || ours.contains(&name) || name.contains(".so.")
    };
    for name in listed.lines() {
        assert!(is_known(name), "{name} in\n{listed}");
    }
    assert!(listed.contains("usr/bin/topofs\n") && listed.contains("libc.so.6\n"), "{listed}");
}

/// The file of a blob in an unpacked archive, once its content is what its name says.
fn blob(archive: &Path, digest: &Value) -> PathBuf {
    let (kind, digest) = digest.as_str().unwrap().split_once(':').unwrap();
    let path = archive.join("blobs").join(kind).join(digest);
    let output = Command::new("sha256sum").arg(&path).output().unwrap();
    assert!(text(&output).starts_with(digest), "{}", text(&output));
    path
}

#[test]
fn an_archive_is_an_image_of_oci_that_docker_loads_and_is_always_the_same() {
    let work = tempfile::tempdir().unwrap();
    let (first, second) = (work.path().join("first.tar"), work.path().join("second.tar"));
    let tag = image(&first);
    image(&second);
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "two images of one package");
    let unpacked = bash_in(work.path(), "mkdir a && tar xf first.tar -C a");
    assert!(unpacked.status.success(), "{}", text(&unpacked));
    let archive = work.path().join("a");
    let json = |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    assert_eq!(json(archive.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let manifest = json(blob(&archive, &json(archive.join("index.json"))["manifests"][0]["digest"]));
    let config = json(blob(&archive, &manifest["config"]["digest"]));
    let layer = blob(&archive, &manifest["layers"][0]["digest"]);
    assert_eq!(manifest["layers"][0]["size"], layer.metadata().unwrap().len());
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"], "the layer is not compressed");
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/topofs");
    // What `docker load` reads names the same.
    let docker = json(archive.join("manifest.json"));
    assert_eq!(docker[0]["RepoTags"][0], tag.trim());
    assert_eq!(archive.join(docker[0]["Layers"][0].as_str().unwrap()), layer);
    let program = bash_in(work.path(), &format!("tar tvf {} ./usr/bin/topofs", layer.display()));
    assert!(text(&program).starts_with("-rwxr-xr-x 0/0 "), "{}", text(&program));
}
