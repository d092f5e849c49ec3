//! A mount point that is mounted on already: by the living, by the dead, and by others.

use super::Host;

#[test]
fn a_living_mount_is_not_mounted_over_and_not_asked_for_long() {
    Host::new().run(
        r#"
        mount -t topofs demo "$M"
        refused 32 "mount.topofs: cannot mount $M: topofs is mounted there already (demo)" mount -t topofs memory "$M"
        refused 32 "topofs: cannot mount $M: topofs is mounted there already (demo)" "$W/topofs" demo "$M"
        # Elsewhere, and below it, there is room.
        mount -t topofs memory:x/r "$W/m2"
        mount -t topofs memory:y/r "$M/global/keyspaces"
        umount "$M/global/keyspaces" "$W/m2"

        # Whether a mount that does not answer is dead is not known: it stays.
        daemon=$(daemon_of "$M")
        kill -STOP "$daemon"
        refused 32 "mount.topofs: cannot mount $M: topofs is mounted there already, and does not answer (demo)" \
            mount.topofs demo "$M"
        kill -CONT "$daemon"
        mounted 1 "$M"
        "#,
    );
}

#[test]
fn a_dead_mount_is_replaced_only_if_it_is_one_of_ours() {
    Host::new().run(
        r#"
        mount -t topofs demo "$M" -o ro
        daemon=$(daemon_of "$M")
        kill -KILL "$daemon"
        until_true gone "$daemon"
        until_true is_dead "$M"
        mount -t topofs demo "$M"
        mounted 1 "$M"
        ls "$M/global" > /dev/null

        # A dead mount of another program: a daemon that has never answered.
        cat > "$W/dead.py" <<'END'
import ctypes, os, sys
device = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
sys.exit(ctypes.CDLL(None).mount(b"other", sys.argv[1].encode(), b"fuse.other", 0, data))
END
        /usr/bin/python3 "$W/dead.py" "$W/m2"
        words="cannot mount $W/m2: it holds a dead mount of another kind (fuse.other): unmount that first"
        refused 32 "mount.topofs: $words" mount.topofs demo "$W/m2"
        grep -q " $W/m2 fuse.other " /proc/mounts
        "#,
    );
}
