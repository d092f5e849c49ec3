#!/usr/bin/env bash
# A systemd of its own: boot.sh DIR TOPOFS. In mount, pid, uts, ipc and cgroup namespaces of its own, on a copy of /
# that keeps nothing, with TOPOFS as /usr/bin/topofs, the units of scripts/package, and the fstab of DIR/fstab.
# Nothing of it is left when this process ends. DIR/pid is the pid of systemd, as seen from outside.
set -eu
dir=$1 topofs=$2 here=$(cd "$(dirname "$0")/../.." && pwd)
if [ "${3:-}" != inside ]; then
  # Only here, in a mount namespace of our own.
  mkdir -p "$dir/cgroup" "$dir/new"
  mount -t cgroup2 cgroup2 "$dir/cgroup"
  group=$dir/cgroup/topofs-test-$$
  mkdir "$group"
  pid=
  (
    echo "$BASHPID" > "$group/cgroup.procs"
    exec unshare --cgroup --mount --pid --fork --kill-child --uts --ipc "$0" "$dir" "$topofs" inside
  ) &
  child=$!
  trap 'kill -KILL "$child" 2> /dev/null || true' TERM INT HUP
  # There is no line end.
  until read -r pid _ < "/proc/$child/task/$child/children" || [ -n "$pid" ]; do
    kill -0 "$child" || break
    sleep 0.02
  done
  echo "$pid" > "$dir/pid.new"
  mv "$dir/pid.new" "$dir/pid"
  # A signal ends this wait, too.
  wait "$child" || wait "$child" || true
  for _ in $(seq 600); do
    find "$group" -depth -type d -exec rmdir {} + 2> /dev/null || true
    [ -d "$group" ] || break
    sleep 0.05
  done
  umount "$dir/cgroup" && rm -rf --one-file-system "$dir"
  exit 0
fi

new=$dir/new
mount -t tmpfs tmpfs "$dir/cgroup"
mkdir "$dir/cgroup/upper" "$dir/cgroup/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/cgroup/upper,workdir=$dir/cgroup/work" "$new"
mount -t proc proc "$new/proc"
# systemd sets limits of the whole machine at its start.
mount --bind "$new/proc/sys" "$new/proc/sys"
mount -o remount,ro,bind "$new/proc/sys"
mount -t sysfs -o ro sysfs "$new/sys"
mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup"
mount -t tmpfs tmpfs "$new/run"
mount -t tmpfs tmpfs "$new/tmp"
mount -t tmpfs -o mode=755 tmpfs "$new/dev"
for device in null zero full random urandom tty fuse autofs; do
  touch "$new/dev/$device"
  mount --bind "/dev/$device" "$new/dev/$device"
done
mkdir "$new/dev/pts" "$new/dev/shm"
touch "$new/usr/bin/topofs"
mount --bind "$topofs" "$new/usr/bin/topofs"
ln -s /usr/bin/topofs "$new/sbin/mount.topofs"
# Only what is tested here.
rm -rf "$new"/{etc,usr/lib}/systemd/system/*.wants "$new/etc/systemd/system/default.target"
find "$new/usr/lib/systemd/system-generators" "$new/etc/systemd/system-generators" -mindepth 1 \
  ! -name systemd-fstab-generator -delete 2> /dev/null || true
cp "$dir/fstab" "$new/etc/fstab"
mkdir -p "$new/etc/topofs"
cp "$here"/scripts/package/topofs@.service "$new/usr/lib/systemd/system/"
cp "$here"/scripts/package/examples/*.{path,service,mount,automount} "$new/etc/systemd/system/"
printf '[Unit]\nAllowIsolate=yes\nRequires=basic.target\nAfter=basic.target\n' > "$new/etc/systemd/system/test.target"
mkdir "$new/etc/systemd/system/sysinit.target.wants"
for unit in systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service; do
  ln -s "/usr/lib/systemd/system/$unit" "$new/etc/systemd/system/sysinit.target.wants/$unit"
done
# The journal of these services, and nothing of the machine.
mkdir -p "$new/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\nRateLimitIntervalSec=0\n' \
  > "$new/etc/systemd/journald.conf.d/test.conf"
ln -s /dev/null "$new/etc/systemd/system/systemd-journald-audit.socket"
cd "$new"
mkdir -p tmp/old
pivot_root . tmp/old
umount -l /tmp/old
# As on every machine; systemd itself leaves that alone in a container.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
  /lib/systemd/systemd --system --unit=test.target --log-target=console --show-status=no < /dev/null
