//! x-systemd.automount: systemd puts an autofs on the mount point, and mounts when somebody looks into it. Whoever
//! mounts must not look, or both wait for each other.

use super::Host;

#[test]
fn an_autofs_is_mounted_over_without_a_look_into_it() {
    Host::new().run(
        r#"
        cat > "$W/automount.py" <<'END'
import ctypes, os, select, subprocess, sys
point = sys.argv[1]
asked, ask = os.pipe()
os.setpgid(0, 0)
# A direct one, as systemd makes it. The kernel does not stop our own process group.
data = f"fd={ask},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct".encode()
assert ctypes.CDLL(None).mount(b"systemd-1", point.encode(), b"autofs", 0, data) == 0

def run(*command):
    subprocess.run(command, start_new_session=True, timeout=20, check=True, stdout=subprocess.DEVNULL)

def kinds():
    with open("/proc/mounts") as table:
        return [line.split()[2] for line in table if line.split()[1] == point]

def is_asked(patience):
    return bool(select.select([asked], [], [], patience)[0])

run("mount", "-t", "topofs", "demo", point)
assert kinds() == ["autofs", "fuse.topofs"], kinds()
run("ls", point + "/global")
run("bash", "-c", 'kill -KILL $(jq .pid "$0/.topofs/status")', point)
# A dead mount is replaced, and the autofs stays.
run("mount", "-t", "topofs", "demo", point)
assert kinds() == ["autofs", "fuse.topofs"], kinds()
run("umount", point)
assert kinds() == ["autofs"], kinds()
assert not is_asked(0), "somebody has looked into the autofs"

# That would have been heard.
looking = subprocess.Popen(["ls", point + "/"], start_new_session=True)
assert is_asked(20)
looking.kill()
END
        /usr/bin/python3 "$W/automount.py" "$M"
        "#,
    );
}
