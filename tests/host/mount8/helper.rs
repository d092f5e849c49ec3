//! What mount(8) hands to mount.topofs, and what it gets back.

use super::Host;
use crate::common::server::free_port;
use crate::common::world::{etcd_cell, load};
use crate::common::{etcd, server::fresh_root};
use topofs::sample::Cluster;

#[test]
fn mount_shows_the_source_as_it_was_given() {
    let root = fresh_root();
    let endpoint = etcd::shared().endpoint();
    load(&*etcd_cell(&endpoint, &root), &Cluster { root: root.clone(), ..Cluster::demo(&endpoint) });
    // Two names of one server.
    let port = etcd::shared().port;
    let servers = format!("http://{endpoint},http://127.0.0.1:{port}/");
    Host::new().run(&format!(
        r#"
        S='etcd2:{servers}{root}/global'
        for kind in topofs fuse.topofs; do
            mount -t $kind "$S" "$M" -o ro,allow_other,umask=022,_netdev,noatime,x-systemd.automount
            mounted 1 "$M"
            [ "$(source_of "$M")" = "$S" ] || fail "$(source_of "$M")"
            [ "$(findmnt --noheadings --output FSTYPE "$M")" = fuse.topofs ]
            case $(findmnt --noheadings --output OPTIONS "$M") in
                ro,nosuid,nodev,noexec,*allow_other*) ;;
                *) fail "$(findmnt "$M")" ;;
            esac
            mountpoint -q "$M"
            [ "$(df --output=source "$M" | tail -n 1)" = "$S" ]
            as_nobody ls "$M/global/keyspaces" | grep -q commerce
            refused 1 "touch: cannot touch '$M/global/x': Read-only file system" touch "$M/global/x"
            umount "$M"
            mounted 0 "$M"
        done
        # Without any helper, mount.fuse calls topofs itself.
        rm /sbin/mount.fuse.topofs /sbin/mount.topofs
        ln -s "$W/topofs" /sbin/topofs
        mount -t fuse.topofs "$S" "$M" -o 'rw,forms=raw\,txt'
        [ "$(source_of "$M")" = "$S" ]
        [ "$(jq -c .forms "$M/.topofs/config")" = '["raw","txt"]' ]
        umount "$M"
        # And without mount(8).
        topofs mount "$S" "$M" --read-only
        [ "$(source_of "$M")" = "$S" ]
        umount "$M"
        "#
    ));
}

#[test]
fn what_is_refused_says_why_in_one_line_with_an_exit_status() {
    let port = free_port();
    Host::new().run(&format!(
        r#"
        N=mount.topofs
        refused 1 "$N: unknown mount option \"alow_other\": did you mean \"allow_other\"?" \
            mount -t topofs demo "$M" -o ro,alow_other
        refused 1 "$N: mount option \"retry\" needs a value: retry=VALUE" mount -t topofs demo "$M" -o retry
        refused 1 "$N: invalid value \"9\" for mount option \"umask\": must be an octal number up to 777" \
            mount -t topofs demo "$M" -o umask=9
        refused 1 "$N: mount option \"remount\" cannot be used: a mount cannot be changed: unmount it, and mount it \
with other options" mount -t topofs demo "$M" -o remount,ro
        refused 1 "$N: the source says which topology is mounted: leave out topo_global_root" \
            mount -t topofs demo "$M" -o topo_global_root=/r
        refused 1 "$N: the source \"none\" is not of the form IMPLEMENTATION:SERVERS/ROOT" mount -t topofs none "$M"
        refused 1 "$N: the following required arguments were not provided: <DIR>" mount.topofs demo
        refused 32 "$N: cannot mount $M/none: No such file or directory (os error 2)" mount.topofs demo "$M/none"
        refused 32 "topofs: cannot mount $M/none: No such file or directory (os error 2)" "$W/topofs" demo "$M/none"
        refused 1 "$N: the environment variable TOPOFS_REDONLY belongs to no flag: did you mean TOPOFS_READ_ONLY?" \
            env TOPOFS_REDONLY=yes mount.topofs demo "$M"
        refused 1 "$N: invalid value \"xx\" for the environment variable TOPOFS_RETRY: must be a duration \
such as 30s or 5m" \
            env TOPOFS_RETRY=xx mount.topofs demo "$M"
        # Nothing is said to be mounted that is not.
        refused 32 "$N: cannot mount $M/none: No such file or directory (os error 2)" mount.topofs -v demo "$M/none"
        said=$(mount -t topofs etcd2:http://alice:geheim@127.0.0.1:1/r "$M" 2>&1) && fail mounted
        case $said in *alice*|*geheim*) fail "$said" ;; *" topo_etcd_password_file,"*) ;; *) fail "$said" ;; esac

        cell="cell global (etcd2:http://127.0.0.1:{port}/r/global)"
        why="tcp connect error: Connection refused (os error 111)"
        said=$(mount -t topofs etcd2:http://127.0.0.1:{port}/r/global "$M" 2>&1) && fail mounted || status=$?
        [ $status = 32 ] || fail "$status"
        [ "$(wc -l <<< "$said")" = 1 ] || fail "$said"
        case $said in "$N: $cell"*refused*) ;; *) fail "$said" ;; esac
        touch "$W/file"
        refused 32 "$N: cannot mount $W/file: is not a directory" mount.topofs demo "$W/file"
        mounted 0 "$M"

        # Fake: all is read, nothing is mounted. Sloppy: what is not known is tolerated.
        mount -f -t topofs etcd2:127.0.0.1:{port}/r "$M" -o ro,uid=nobody
        mounted 0 "$M"
        refused 1 "$N: invalid value \"x\" for mount option \"umask\": must be an octal number up to 777" \
            mount -f -t topofs demo "$M" -o umask=x
        mount -s -t topofs demo "$M" -o nosuch=1,ro,uid=nobody
        mounted 1 "$M"
        [ "$(jq '[.uid, ."read-only"] | tostring' "$M/.topofs/config")" = "\"[$(id -u nobody),true]\"" ]
        refused 1 "$N: mount option \"remount\" cannot be used: a mount cannot be changed: unmount it, and mount it \
with other options" mount -o remount,rw "$M"
        umount "$M"
        # Mounted, and probably not what was meant.
        said=$(mount.topofs demo "$M" -o uid=nobody,cells=zone7 2>&1)
        nobody=$(id -u nobody)
        warning="topofs: only uid 0 can look in, although the files belong to uid $nobody and gid 0: add allow_other"
        case $said in "$warning"*) ;; *) fail "$said" ;; esac
        umount "$M"
        said=$(mount.topofs memory "$M" -o cells=zone7 2>&1)
        [ "$said" = "topofs: cell zone7 cannot be shown: it has no CellInfo record" ] || fail "$said"
        umount "$M"
        # The same by the commands of topofs.
        "$W/topofs" demo "$M"
        [ "$(source_of "$M")" = demo ] || fail "$(source_of "$M")"
        umount "$M"
        "$W/topofs" check memory --uid nobody | grep -q "warning.*only uid 0 can look in" || fail "check says nothing"
        mount.topofs -V | grep -q '^mount.topofs '
        mount.topofs --help | grep -q IMPLEMENTATION:SERVERS/ROOT
        "#
    ));
}

#[test]
fn an_interrupted_mount_leaves_nothing_and_a_killed_daemon_is_reported() {
    let port = free_port();
    Host::new().run(&format!(
        r#"
        S=etcd2:127.0.0.1:{port}/r
        # The daemon is a child of mount.topofs, in a session of its own.
        waiting() {{ setsid "$@" -t topofs $S "$M" -o retry=1m,log_file="$W/log" 2> "$W/said" & command=$!; }}
        find_daemon() {{ daemon=$(pgrep --parent "$(pgrep --parent $command)"); }}
        : > "$W/log"
        waiting mount
        until_true find_daemon
        until_true grep -q "trying again" "$W/log"
        # As the terminal does. (A shell lets its background processes ignore SIGINT.)
        kill -TERM -- -$command
        wait $command || status=$?
        [ $status = 143 ] || fail $status
        until_true gone $daemon

        : > "$W/log"
        waiting mount
        until_true grep -q "trying again" "$W/log"
        find_daemon
        kill -KILL $daemon
        wait $command && fail "it was killed" || status=$?
        [ $status = 32 ] || fail $status
        [ "$(cat "$W/said")" = "mount.topofs: the daemon was killed by SIGKILL before the mount answered" ] ||
            fail "$(cat "$W/said")"
        "#
    ));
}

#[test]
fn neither_environment_nor_descriptors_are_needed() {
    Host::new().run(
        r#"
        exec 9> "$W/lock"
        flock 9
        env -i /sbin/mount.topofs demo "$M" <&- >&- 2>&-
        mounted 1 "$M"
        ls "$M/zone1/tablets" | grep -q zone1-
        # The daemon holds nothing of its caller.
        exec 9>&-
        flock --nonblock "$W/lock" true
        umount "$M"

        # Another namespace: mount(8) leaves it to the helper to go there.
        unshare --mount --propagation private sleep 60 &
        other=$!
        elsewhere() { [ "$(readlink /proc/self/ns/mnt)" != "$(readlink /proc/$other/ns/mnt)" ]; }
        until_true elsewhere
        mount -N $other -t topofs demo "$M"
        mounted 0 "$M"
        nsenter --mount --target $other mountpoint -q "$M"
        nsenter --mount --target $other umount "$M"
        "#,
    );
}
