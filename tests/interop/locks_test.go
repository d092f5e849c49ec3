package interop

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// resource is something that Vitess locks.
type resource struct {
	// As vtopo names it.
	name string
	dir  string
	// Vitess has a TryLock for it.
	try bool
	// Vitess lets it live for a day on etcd and Consul.
	longLived bool
}

var resources = []resource{
	{"keyspace ks", "global/keyspaces/ks", true, false},
	{"shard ks 0", "global/keyspaces/ks/shards/0", true, false},
	{"routing-rules", "global/routing_rules", true, false},
	{"name ks/flow", "global/internal/named_locks/ks/flow", false, true},
}

// lockWorld is a topology in which all resources are there. Locks of the dead end soon.
func lockWorld(t *testing.T, b *backend) *world {
	w := newWorld(t, b, "", strings.Fields(impatient)...)
	w.sh(`mkdir -p global/keyspaces/ks/shards/0 global/routing_rules/keyspace
		echo 'durability_policy: "none"' > global/keyspaces/ks/Keyspace.txt
		echo 'is_primary_serving: true' > global/keyspaces/ks/shards/0/Shard.txt
		echo 'rules { from_keyspace: "a" to_keyspace: "b" }' > global/routing_rules/keyspace/Rules.txt`)
	return w
}

// impatient are flags, of mounts and of vtopo, with which the locks of the dead end soon.
const impatient = " --topo-etcd-lease-ttl 3 --topo-zk-base-timeout 3s" +
	" --topo-consul-lock-session-ttl 10s --topo-consul-lock-delay 1s"

// vitess starts a Vitess process that locks.
func (w *world) vitess(r resource, flags string) *running {
	w.t.Helper()
	return start(w.t, w.command("lock "+r.name+" "+flags+impatient, ""))
}

// flock starts a shell that locks, says `acquired`, and holds it until its input ends.
func (w *world) flock(r resource, section string) *running {
	w.t.Helper()
	return start(w.t, w.shell(fmt.Sprintf(
		`exec 9> %s/.lock; echo "flock $$" >&9; flock 9; echo acquired; `+
			`echo enter $$ >> %[2]s; read || true; echo leave $$ >> %[2]s; echo released`,
		r.dir, section)))
}

// line is a line of `.topofs/locks`.
type line struct {
	Path   string
	Holder json.RawMessage
	Queue  []json.RawMessage
	Left   *int `json:"time_left"`
}

// lockLine is what the mount says of a lock.
func (w *world) lockLine(r resource) (line, bool) {
	w.t.Helper()
	for _, text := range strings.Split(strings.TrimSpace(w.read(".topofs/locks")), "\n") {
		var l line
		if json.Unmarshal([]byte(text), &l) == nil && l.Path == r.dir+"/.lock" {
			return l, true
		}
	}
	return line{}, false
}

func (w *world) isFree(r resource) bool {
	l, known := w.lockLine(r)
	return !known || string(l.Holder) == "null" && len(l.Queue) == 0
}

// sections are the names of those who were inside, in their order; never are two inside at once.
func sections(t *testing.T, file string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	var all []string
	for _, text := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		what, who, _ := strings.Cut(text, " ")
		switch {
		case what == "enter" && inside == "":
			inside = who
			all = append(all, who)
		case what == "leave" && inside == who:
			inside = ""
		default:
			t.Fatalf("%q while %q is inside", text, inside)
		}
	}
	return all
}

// TestExclusion lets 8 lockers, half Vitess and half flock, take a lock 200 times.
func TestExclusion(t *testing.T) {
	const lockers, times = 8, 25
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := lockWorld(t, b)
		for _, r := range resources {
			t.Run(strings.Fields(r.name)[0], func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "sections")
				var all []*running
				for range lockers / 2 {
					all = append(all, w.vitess(r, fmt.Sprintf("--times %d --hold 2ms --section %s --lock-timeout 5m", times, file)))
					all = append(all, start(t, w.shell(fmt.Sprintf(
						`for i in $(seq %d); do flock %s/.lock `+
							`bash -c 'echo enter $$ >> %[3]s; sleep 0.002; echo leave $$ >> %[3]s'; done`,
						times, r.dir, file))))
				}
				for _, one := range all {
					one.ends()
				}
				if got := len(sections(t, file)); got != lockers*times {
					t.Errorf("%d sections", got)
				}
				eventually(t, "the lock is free", func() bool { return w.isFree(r) })
			})
		}
	})
}

// TestOrder lets Vitess and flock wait in turn: they are served as they came, where the service has a line.
func TestOrder(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := lockWorld(t, b)
		for _, r := range resources {
			t.Run(strings.Fields(r.name)[0], func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "sections")
				first := w.flock(r, file)
				first.until("acquired")
				wanted := []string{fmt.Sprint(first.cmd.Process.Pid)}
				var waiters []*running
				for number := range 6 {
					var waiter *running
					if number%2 == 0 {
						waiter = w.vitess(r, "--section "+file)
					} else {
						waiter = w.flock(r, file)
						waiter.input.Close()
					}
					waiters = append(waiters, waiter)
					wanted = append(wanted, fmt.Sprint(waiter.cmd.Process.Pid))
					if b.inOrder {
						eventually(t, "the waiter stands in the line", func() bool {
							l, _ := w.lockLine(r)
							return len(l.Queue) == number+1
						})
					}
				}
				first.input.Close()
				for _, waiter := range waiters {
					waiter.ends()
				}
				got := sections(t, file)
				if !b.inOrder {
					slices.Sort(got)
					slices.Sort(wanted)
				}
				if !slices.Equal(got, wanted) {
					t.Errorf("served %v, came %v", got, wanted)
				}
			})
		}
	})
}

// TestTry fails on each side while the other one holds the lock, and says who.
func TestTry(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := lockWorld(t, b)
		for _, r := range resources {
			t.Run(strings.Fields(r.name)[0], func(t *testing.T) {
				holder := w.vitess(r, "--hold 5m --action because")
				holder.until("acquired")
				eventually(t, "the mount shows the holder", func() bool {
					return strings.Contains(w.read(r.dir+"/.lock"), `"Action": "because"`)
				})
				if err := w.shell(fmt.Sprintf("flock -n %s/.lock true", r.dir)).Run(); err == nil {
					t.Error("flock -n took a lock that Vitess holds")
				}
				holder.kill(unix.SIGTERM)
				holder.ends()
				w.sh(fmt.Sprintf("flock -w 20 %s/.lock true", r.dir))

				ours := w.flock(r, "/dev/null")
				ours.until("acquired")
				if r.try {
					err := w.try("lock --try "+r.name, "")
					expected := "node already exists: lock already exists at path " + strings.TrimPrefix(r.dir, "global/")
					if err == nil || !strings.Contains(err.Error(), expected) {
						t.Errorf("TryLock while flock holds it: %v", err)
					}
				}
				err := w.try("lock --lock-timeout 1s "+r.name, "")
				if err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
					t.Errorf("Lock while flock holds it: %v", err)
				}
				// Of the three, Vitess's ZooKeeper plugin alone tells whom it has waited for.
				if b == zookeeper && !strings.Contains(err.Error(), fmt.Sprintf("flock %d", ours.cmd.Process.Pid)) {
					t.Errorf("it does not name the holder: %v", err)
				}
				ours.input.Close()
				ours.ends()
				if err := w.try("lock --lock-timeout 20s "+r.name, ""); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// TestKill gives the lock to the other side when its holder is killed, by either.
func TestKill(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := lockWorld(t, b)
		for _, r := range resources {
			t.Run(strings.Fields(r.name)[0], func(t *testing.T) {
				vitess := w.vitess(r, "--hold 5m")
				vitess.until("acquired")
				ours := w.flock(r, "/dev/null")
				vitess.kill(unix.SIGKILL)
				if r.longLived && b != zookeeper {
					// It would take a day.
					eventually(t, "the lock is broken", func() bool {
						out, err := exec.Command(program(t, "TOPOFS"), "unlock", "--force", "--yes", w.path(r.dir)).Output()
						return err == nil && strings.Contains(string(out), "taken away")
					})
				}
				ours.until("acquired")

				next := w.vitess(r, "--hold 5m --lock-timeout 1m")
				ours.kill(unix.SIGKILL)
				// The shell's own child holds the descriptor, too, as long as it lives: here there is none.
				next.until("acquired")
				next.kill(unix.SIGTERM)
				next.ends()
			})
		}
		// The whole daemon.
		r := resources[0]
		ours := w.flock(r, "/dev/null")
		ours.until("acquired")
		next := w.vitess(r, "--lock-timeout 1m")
		if err := w.daemon.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		next.until("acquired")
		next.ends()
	})
}

// TestSaves refuses saves and removals while Vitess holds the lock that it makes such changes under.
func TestSaves(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := lockWorld(t, b)
		for r, record := range map[resource]string{resources[0]: "Keyspace", resources[2]: "keyspace/Rules"} {
			t.Run(strings.Fields(r.name)[0], func(t *testing.T) {
				before := w.read(r.dir + "/" + record + ".json")
				holder := w.vitess(r, "--hold 5m")
				holder.until("acquired")
				eventually(t, "the mount shows the holder", func() bool { return w.read(r.dir+"/.lock") != "" })
				for _, script := range []string{"echo '{}' > %s/%s.json", "rm %s/%s"} {
					out, err := w.shell(fmt.Sprintf(script, r.dir, record)).CombinedOutput()
					if err == nil || !strings.Contains(string(out), "busy") {
						t.Errorf("%s: %v: %s", script, err, out)
					}
				}
				holder.kill(unix.SIGTERM)
				holder.ends()
				if after := w.read(r.dir + "/" + record + ".json"); after != before {
					t.Errorf("it is now %s", after)
				}
				w.sh(fmt.Sprintf("flock -w 20 %[1]s/.lock true; echo '{}' > %[1]s/%[2]s.json", r.dir, record))
			})
		}
	})
}

// TestExpiry shows Vitess's own etcd lock running out, as nothing keeps it alive; the next in the line gets it.
func TestExpiry(t *testing.T) {
	w := lockWorld(t, etcd)
	r := resources[0]
	holder := start(t, w.command("lock "+r.name+" --hold 5m --topo-etcd-lease-ttl 6", ""))
	holder.until("acquired")
	ours := w.flock(r, "/dev/null")
	var left []int
	eventually(t, "the lock is the next one's", func() bool {
		l, _ := w.lockLine(r)
		if l.Left != nil && strings.Contains(string(l.Holder), `"vtopo"`) && !slices.Contains(left, *l.Left) {
			left = append(left, *l.Left)
		}
		select {
		case line := <-ours.lines:
			return line == "acquired"
		default:
			return false
		}
	})
	if !slices.IsSortedFunc(left, func(a, b int) int { return b - a }) || len(left) < 3 || left[0] > 6 {
		t.Errorf("time left: %v", left)
	}
	if holder.cmd.ProcessState != nil {
		t.Error("the holder has ended")
	}
	// Ours is kept alive: longer than its time to live, and Vitess has to wait.
	begin := time.Now()
	if err := w.try("lock --lock-timeout 8s "+r.name, ""); err == nil {
		t.Errorf("Vitess has it after %v", time.Since(begin))
	}
}
