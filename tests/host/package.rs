//! The Debian package: what it brings, and that nothing of it is left. It is installed on a machine without Rust: this
//! one, below an overlay, without what a developer has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::common::page::examples;
use crate::common::{bash_apart, bash_in, text};

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The package, of the program that is tested.
pub fn package() -> &'static Path {
    static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| {
        let mut build = Command::new(repository().join("scripts/package/build"));
        // What `cargo test` tells the programs that it runs is not for the Cargo that the script runs.
        let output = build.args(["--profile", "dev", "--no-build"]).env_remove("CARGO").output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let name = String::from_utf8(output.stdout).unwrap();
        repository().join(name.lines().last().expect("the name of the package"))
    });
    &PACKAGE
}

fn sh(script: &str) -> String {
    let output = bash_in(repository(), &format!("set -e; {script}"));
    assert!(output.status.success(), "{script}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_package_says_what_it_needs_and_brings() {
    let package = package().display();
    let depends = sh(&format!("dpkg-deb --field {package} Depends"));
    assert!(depends.contains("libc6 (>= ") && depends.contains("fuse3"), "{depends}");
    let conffiles = sh(&format!("dpkg-deb --info {package} conffiles"));
    assert_eq!(conffiles.trim(), "/etc/topofs/README");
    let listing = sh(&format!("dpkg-deb --contents {package}"));
    let mut names = BTreeSet::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (mode, owner, name) = (words[0], words[1], words[5]);
        assert!(owner == "root/root" || owner == "0/0", "{line}");
        // Nothing runs as somebody else, and only root may change it.
        let is_plain = !mode.contains(['s', 't']) && !mode[4..].contains('w');
        assert!(is_plain || mode.starts_with('l'), "{line}");
        names.insert(name.to_owned());
    }
    for name in [
        "./usr/bin/topofs",
        "./usr/sbin/mount.topofs",
        "./usr/sbin/mount.fuse.topofs",
        "./usr/share/man/man1/topofs.1.gz",
        "./usr/share/man/man5/topofs.5.gz",
        "./usr/share/man/man8/mount.topofs.8.gz",
        "./usr/share/bash-completion/completions/topofs",
        "./usr/share/zsh/vendor-completions/_topofs",
        "./usr/share/fish/vendor_completions.d/topofs.fish",
        "./usr/share/doc/topofs/copyright",
        "./usr/share/doc/topofs/docs/operations.md",
        "./usr/share/doc/topofs/changelog.gz",
        "./etc/topofs/README",
    ] {
        assert!(names.contains(name), "{name} in\n{listing}");
    }
    // All units that are there are in it.
    for unit in std::fs::read_dir(repository().join("scripts/package")).unwrap() {
        let unit = unit.unwrap().file_name().into_string().unwrap();
        if [".service", ".path", ".timer", ".mount"].iter().any(|kind| unit.ends_with(kind)) {
            assert!(names.contains(&format!("./usr/lib/systemd/system/{unit}")), "{unit} in\n{listing}");
        }
    }
}

#[test]
fn every_link_of_the_packaged_pages_leads_somewhere() {
    let package = package().display();
    let work = tempfile::tempdir().unwrap();
    sh(&format!("dpkg-deb --extract {package} {}", work.path().display()));
    let top = work.path().join("usr/share/doc/topofs");
    let mut looked_at = 0;
    for dir in [top.clone(), top.join("docs")] {
        for page in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            if page.extension().is_none_or(|kind| kind != "md") {
                continue;
            }
            let content = std::fs::read_to_string(&page).unwrap();
            let targets = content.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
            for target in targets.filter(|target| !target.starts_with("http") && !target.contains(char::is_whitespace))
            {
                let file = target.split('#').next().unwrap();
                assert!(file.is_empty() || dir.join(file).exists(), "{} links to {target}", page.display());
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 50, "{looked_at} links");
}

/// What is done on the machine. Its output is one line of words for each question.
const MACHINE: &str = r#"
set -eu
exec 2>&1
for tool in cargo rustc topofs; do
  if command -v $tool; then echo "there is a $tool"; fi
done
install() { dpkg --path-include='/usr/share/doc/topofs/*' --path-include='/usr/share/man/*' -i /tmp/topofs.deb; }
install > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }
dpkg --verify topofs
echo "new: $(grep -c '^topofs:' /tmp/log || true)"
echo "helper: $(readlink -f /sbin/mount.topofs) $(readlink -f /sbin/mount.fuse.topofs)"
page() { man -P cat "$@" | head -n 1 | cut -d' ' -f1; }
echo "manual: $(page 8 mount.topofs) $(page 5 topofs)"
echo "fish: $(fish -c 'complete -C "topofs mou"' | cut -f 1)"
echo "zsh: $(zsh -fc 'autoload -Uz compinit; compinit -u -D; print $_comps[topofs]')"
echo "bash: $(bash -c '. /usr/share/bash-completion/completions/topofs; complete -p topofs' | grep -c _topofs)"
mkdir /tmp/topo
topofs demo /tmp/topo
bash /tmp/tour.sh > /tmp/tour 2>&1
topofs demo /tmp/topo
record=/tmp/topo/global/keyspaces/commerce/Keyspace.txt
exec 3< $record
install > /tmp/log 2>&1
echo "upgraded: $(grep -A1 '^topofs:.*go on with the version' /tmp/log | tail -n 1 | xargs)"
echo "open file: $(head -n 1 <&3)"
dpkg -r topofs > /tmp/log 2>&1
echo "removed: $(grep -A1 '^topofs:.*still there' /tmp/log | tail -n 1 | xargs)"
echo "the mount goes on: $(sed -i s/semi_sync/none/ $record; head -n 1 $record)"
exec 3<&-
umount /tmp/topo
echo "settings: $(ls /etc/topofs)"
echo TOPOFS_READ_ONLY=yes > /etc/topofs/main.conf
dpkg -P topofs > /tmp/log 2>&1
files=$(ls -d /etc/topofs /var/lib/dpkg/info/topofs* 2> /dev/null | wc -l)
echo "purged: $(dpkg-query -W topofs 2>&1 | grep -c 'no packages found') $files"
"#;

/// Makes the machine, and lists afterwards what has changed there.
const AROUND: &str = r#"
set -eu
base=$PWD/machine
mkdir "$base"
mount -t tmpfs none "$base"
mkdir "$base"/upper "$base"/work "$base"/root
root=$base/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
# Nothing that a developer has.
for hidden in tmp root home usr/local opt work "${REPOSITORY#/}"; do
  [ ! -d "$root/$hidden" ] || mount -t tmpfs none "$root/$hidden"
done
# The index of manual pages is nobody's concern here, and slow.
rm -f "$root/var/lib/man-db/auto-update"
cp "$PACKAGE" "$root/tmp/topofs.deb"
cp machine.sh tour.sh "$root/tmp/"
chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8 bash /tmp/machine.sh
cp "$root/tmp/tour" tour
cd "$base/upper"
find . -type d | while read -r directory; do [ -d "/$directory" ] || echo "left: $directory"; done
find . ! -type d ! -path './var/lib/dpkg/*' ! -path ./var/log/dpkg.log ! -path './var/log/alternatives.log' \
  ! -path './var/cache/*' ! -path ./var/lib/man-db/auto-update ! -path ./etc/ld.so.cache -printf 'left: %p\n'
"#;

#[test]
fn on_a_machine_without_rust_it_is_installed_toured_upgraded_removed_and_nothing_is_left() {
    let work = tempfile::tempdir().unwrap();
    let examples = examples(&std::fs::read_to_string(repository().join("README.md")).unwrap(), false);
    let tour: String = examples.iter().map(|example| format!("{}\necho =-=-=\n", example.command)).collect();
    std::fs::write(work.path().join("tour.sh"), tour).unwrap();
    std::fs::write(work.path().join("machine.sh"), MACHINE).unwrap();
    let names = format!("REPOSITORY='{}' PACKAGE='{}'\n", repository().display(), package().display());
    let output = bash_apart(work.path(), &format!("{names}{AROUND}"));
    assert!(output.status.success(), "{}", text(&output));
    let expected = [
        "new: 0",
        "helper: /usr/bin/topofs /usr/bin/topofs",
        "manual: MOUNT.TOPOFS(8) TOPOFS(5)",
        "fish: mount",
        "zsh: _topofs",
        "bash: 1",
        "upgraded: /tmp/topo",
        "open file: durability_policy: \"semi_sync\"",
        "removed: /tmp/topo",
        "the mount goes on: durability_policy: \"none\"",
        "settings: README",
        "purged: 1 0",
    ];
    assert_eq!(text(&output).lines().collect::<Vec<_>>(), expected);
    let printed = std::fs::read_to_string(work.path().join("tour")).unwrap();
    // A shell that reads a script names it and the line.
    let said = |line: &str| match line.strip_prefix("/tmp/tour.sh: line ").and_then(|rest| rest.split_once(": ")) {
        Some((_, rest)) => format!("bash: {rest}\n"),
        None => format!("{line}\n"),
    };
    let outputs = printed.split("=-=-=\n").map(|output| output.lines().map(said).collect::<String>());
    for (example, printed) in examples.iter().zip(outputs) {
        assert_eq!(printed, example.output, "$ {}", example.command);
    }
}

#[test]
fn nobody_needs_protoc_to_build() {
    let work = tempfile::tempdir().unwrap();
    let script = format!(
        "protoc=$PWD/scripts/protoc/protoc; dir={}; mkdir $dir/bin
         ln -s $(command -v cp) $dir/bin/cp
         scripts/protoc/update $dir
         export PATH=$dir/bin
         file=$(echo $dir/etcd-client-*); version=${{file#*etcd-client-}}
         CARGO_PKG_NAME=etcd-client CARGO_PKG_VERSION=${{version%.binpb}} $protoc --include_imports -o $dir/said x.proto
         /usr/bin/cmp $dir/said $file
         CARGO_PKG_NAME=etcd-client CARGO_PKG_VERSION=0.0.0 $protoc -o $dir/other x.proto 2>&1 || echo $?",
        work.path().display()
    );
    let printed = sh(&script);
    assert!(printed.contains("apt-get install protobuf-compiler") && printed.ends_with("\n1\n"), "{printed}");
    // And this is what Cargo tells the crate.
    let config = std::fs::read_to_string(repository().join(".cargo/config.toml")).unwrap();
    assert!(config.contains(r#"PROTOC = { value = "scripts/protoc/protoc", relative = true }"#), "{config}");
}
