//! The lines for fstab in docs/operations.md, and what mount(8) and umount(8) do with them.

use super::{Host, blocks, page};
use crate::common::server::fresh_root;
use crate::common::world::{cell, etcd_cell, load};
use crate::common::{etcd, zookeeper};
use topofs::backend::Implementation;
use topofs::sample::Cluster;

/// A host on which alice and vitess have accounts, and fstab has one line.
const ACCOUNTS: &str = r#"
for name in alice vitess; do
    echo "$name:x:47${#name}:47${#name}::/home/$name:/bin/sh" >> /etc/passwd
    echo "$name:x:47${#name}:" >> /etc/group
done
mkdir -p "$W/alice/topo" /etc/topofs
chown -R alice:alice "$W/alice"
# This script is in the arguments of a process: the secret is not in one piece here.
(umask 077; echo digest:app:ge""heim > /etc/topofs/zk-auth)
as() { local user=$1; shift; setpriv --reuid "$user" --regid "$user" --clear-groups "$@"; }
no_secret() {
    grep --files-with-matches 'ge[h]eim' /proc/[0-9]*/cmdline /proc/[0-9]*/mountinfo "$1/.topofs/config" && fail secret
    true
}
"#;

/// The lines of the page, with the addresses and directories of a test.
fn lines(words: &[(&str, &str)]) -> Vec<String> {
    let page = page("operations.md");
    let lines: Vec<&str> = blocks(&page, "fstab").into_iter().flat_map(str::lines).collect();
    assert!(lines.len() >= 5, "{lines:?}");
    lines.iter().map(|line| words.iter().fold((*line).to_owned(), |line, (a, b)| line.replace(a, b))).collect()
}

#[test]
fn each_line_of_the_page_is_mounted_once_and_unmounted() {
    let root = fresh_root();
    let (endpoint, keeper) = (etcd::shared().endpoint(), zookeeper::shared().endpoint());
    load(&*etcd_cell(&endpoint, &root), &Cluster { root: root.clone(), ..Cluster::demo(&endpoint) });
    load(&*cell(Implementation::Zk2, &keeper, &root), &Cluster { root: root.clone(), ..Cluster::demo(&keeper) });
    let host = Host::new();
    let dir = host.0.path().to_str().unwrap();
    let lines = lines(&[
        ("topo1:2379", &endpoint),
        ("topo2:2379", &endpoint),
        ("zk1:2181", &keeper),
        ("/vitess/", &format!("{root}/")),
        ("/mnt/topo", &format!("{dir}/m")),
        ("/home", dir),
        ("/var/log/", &format!("{dir}/")),
    ]);
    let each: String = lines.iter().map(|line| format!("each_line '{line}'\n")).collect();
    host.run(&format!(
        r#"{ACCOUNTS}
        each_line() {{
            echo "$1" > /etc/fstab
            local source dir kind options by=root
            read -r source dir kind options _ <<< "$1"
            # What systemd makes of it, at boot.
            mkdir -p "$W/units"
            /usr/lib/systemd/system-generators/systemd-fstab-generator "$W/units" "$W/units" "$W/units"
            unit=$(systemd-escape --path "$dir")
            grep -qxF "What=$source" "$W/units/$unit.mount" || fail "$(cat "$W/units/$unit.mount")"
            case $options in *x-systemd.automount*) [ -f "$W/units/$unit.automount" ] ;; esac
            cat "$W/units/$unit.mount" "$W/units/$unit.mount.d"/* > "$W/limits" 2> /dev/null || true
            rm -r "$W/units"

            case $options in *user,*) by=alice ;; esac
            case $options in
                *noauto*) mount -a; mounted 0 "$dir"; as $by mount "$dir" ;;
                *) mount -a -t topofs ;;
            esac
            mounted 1 "$dir"
            [ "$(source_of "$dir")" = "$source" ] || fail "$(source_of "$dir")"
            as $by ls "$dir/zone1/tablets" | grep -q zone1-
            # Whoever the page says that it is for.
            case $options in
                *uid=vitess*)
                    as vitess ls "$dir/zone1/tablets" | grep -q zone1-
                    as vitess cat "$dir/global/keyspaces/commerce/Keyspace.txt" > /dev/null
                    as alice ls "$dir/zone1" 2> /dev/null && fail "alice may look in"
                    ;;
                *allow_other*) as_nobody cat "$dir/global/keyspaces/commerce/Keyspace.txt" > /dev/null ;;
            esac
            case $options in *retry=2m*) grep -qxF "TimeoutSec=3min" "$W/limits" ;; esac
            # Once more is not twice.
            mount -a
            mount -a -t "$kind"
            mounted 1 "$dir"
            case $options in
                *topo_zk_auth_file*)
                    no_secret "$dir"
                    [ "$(stat -c %U:%G "$dir/zone1")" = vitess:vitess ]
                    [ "$(jq -c .cells "$dir/.topofs/config")" = '["zone1","zone2"]' ]
                    ;;
                *log_file*) grep -q mounted "$W/topo fs.log" ;;
            esac
            umount -a -t topofs
            mounted 1 "$dir"
            case $by in
                root) umount -a -t fuse.topofs ;;
                *) as $by umount "$dir" ;;
            esac
            mounted 0 "$dir"
        }}
        {each}
        "#
    ));
}

#[test]
fn an_ordinary_user_mounts_on_a_directory_that_is_theirs() {
    Host::new().run(&format!(
        r#"{ACCOUNTS}
        printf 'demo %s topofs user,noauto 0 0\n' "$W/alice" "$M" > /etc/fstab
        as alice mount "$W/alice"
        [ "$(as alice jq .uid "$W/alice/.topofs/config")" = "$(id -u alice)" ]
        as alice ls "$W/alice/global" > /dev/null
        refused 32 "mount.topofs: cannot mount $W/alice: topofs is mounted there already (demo)" \
            as alice mount.topofs memory "$W/alice"
        as alice umount "$W/alice"
        mounted 0 "$W/alice"
        why="fusermount3: user has no write access to mountpoint $M"
        refused 32 "mount.topofs: cannot mount $M: $why" as alice mount "$M"
        "#
    ));
}

#[test]
fn what_is_dead_is_replaced_by_name_and_left_alone_by_all() {
    Host::new().run(
        r#"
        printf 'demo %s topofs ro 0 0\n' "$M" > /etc/fstab
        mount -a
        daemon=$(daemon_of "$M")
        kill -KILL "$daemon"
        until_true gone "$daemon"
        until_true is_dead "$M"
        mount -a
        is_dead "$M"
        mount "$M"
        mounted 1 "$M"
        ls "$M/global" > /dev/null
        "#,
    );
}

#[test]
fn updatedb_is_told_once() {
    let page = page("operations.md");
    let block = blocks(&page, "sh").into_iter().find(|block| block.contains("PRUNEFS")).unwrap();
    let printed = Host::new().run(&format!(
        r#"
        printf '# PRUNEFS="commented"\nPRUNEPATHS="/tmp"\nPRUNEFS = "NFS afs fuse.sshfs"\n' > /etc/updatedb.conf
        {block}
        {block}
        cat /etc/updatedb.conf
        "#
    ));
    let expected = "# PRUNEFS=\"commented\"\nPRUNEPATHS=\"/tmp\"\nPRUNEFS = \"NFS afs fuse.sshfs fuse.topofs\"\n";
    assert_eq!(printed, expected);
}
