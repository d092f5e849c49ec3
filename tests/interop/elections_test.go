package interop

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestElections lets leaders alternate between Vitess and `elections/NAME/.lock`.
func TestElections(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := lockWorld(t, b)
		r := resource{name: "boss", dir: "global/elections/boss"}
		vitess := func(id string) *running { return start(t, w.command("elect boss "+id+" --hold 5m", "")) }
		ours := func(id string) *running {
			return start(t, w.shell(fmt.Sprintf(
				`exec 9> %s/.lock; echo %s >&9; flock 9; echo leader; read || true; exec 9>&-; echo stopped`,
				r.dir, id)))
		}
		// Both sides name the same leader.
		leads := func(id string) {
			t.Helper()
			eventually(t, id+" leads", func() bool {
				return strings.TrimSpace(w.read(r.dir+"/.lock")) == id && strings.TrimSpace(w.vtopo("leader boss", "")) == id
			})
		}
		waits := func(count int) {
			t.Helper()
			if b.inOrder {
				eventually(t, "somebody waits", func() bool {
					l, _ := w.lockLine(r)
					return len(l.Queue) == count
				})
			}
		}
		leader := vitess("vitess-0:1")
		leader.until("leader")
		leads("vitess-0:1")
		for round := 1; round <= 3; round++ {
			id := fmt.Sprintf("mount-%d:1", round)
			next := ours(id)
			waits(1)
			leader.kill(unix.SIGTERM)
			leader.ends()
			next.until("leader")
			leads(id)

			id = fmt.Sprintf("vitess-%d:1", round)
			leader = vitess(id)
			waits(1)
			next.input.Close()
			next.ends()
			leader.until("leader")
			leads(id)
		}
		leader.kill(unix.SIGTERM)
		leader.ends()
	})
}
