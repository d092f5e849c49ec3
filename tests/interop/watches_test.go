package interop

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vitess.io/vitess/go/vt/topo"
	_ "vitess.io/vitess/go/vt/topo/consultopo"
	_ "vitess.io/vitess/go/vt/topo/etcd2topo"
	_ "vitess.io/vitess/go/vt/topo/zk2topo"
)

// edits are made in each direction.
const edits = 1000

// TestVitessWatches sees edits through the mount by Vitess's Watch.
func TestVitessWatches(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := newWorld(t, b, "")
		file := w.path("global/metadata/counter")
		w.sh("mkdir -p global/metadata; printf 0 > global/metadata/counter")
		watch := start(t, w.command("watch global metadata/counter", ""))
		watch.until("value metadata/counter")
		versions := map[string]int{}
		for number := 1; number <= edits; number++ {
			if err := os.WriteFile(file, []byte(strconv.Itoa(number)), 0); err != nil {
				t.Fatal(err)
			}
			versions[w.version("global/metadata/counter")] = number
		}
		seen, last := 0, 0
		for last < edits {
			fields := strings.Fields(watch.until("value metadata/counter"))
			number, err := strconv.Atoi(fields[3])
			if err != nil || number < last {
				t.Fatalf("%v after %d", fields, last)
			}
			if number > 0 && versions[fields[2]] != number {
				t.Errorf("Vitess says version %s of %d, which is of %d", fields[2], number, versions[fields[2]])
			}
			if number > last {
				seen++
			}
			last = number
		}
		t.Logf("%d of %d values seen", seen, edits)
		// The others tell of values that follow each other too fast once, as Vitess's interface allows.
		if b == etcd && seen != edits {
			t.Errorf("%d of %d values were seen", seen, edits)
		}
	})
}

// TestVitessWatchesRecursively sees creations and removals, too. Of Vitess's three plugins etcd's alone can.
func TestVitessWatchesRecursively(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := newWorld(t, b, "zone1")
		w.sh(`mkdir -p zone1/keyspaces/a; echo 'partitions {}' > zone1/keyspaces/a/SrvKeyspace.txt`)
		if err := w.try("read srv-keyspace zone1 a", ""); err != nil {
			t.Fatal(err)
		}
		if b != etcd {
			err := w.try("watch-recursive zone1 keyspaces", "")
			if err == nil || !strings.Contains(err.Error(), "no such topology implementation") {
				t.Errorf("Vitess has it here, too: %v", err)
			}
			return
		}
		watch := start(t, w.command("watch-recursive zone1 keyspaces", ""))
		watch.until("watching")
		w.sh(`mkdir -p zone1/keyspaces/b; echo 'throttler_config { enabled: true }' > zone1/keyspaces/b/SrvKeyspace.txt`)
		// It tells of what was there once more.
		for !strings.Contains(watch.until("value"), "keyspaces/b/SrvKeyspace") {
		}
		w.sh("rm zone1/keyspaces/a/SrvKeyspace")
		if line := watch.until("error"); !strings.Contains(line, "keyspaces/a/SrvKeyspace") {
			t.Errorf("%q", line)
		}
	})
}

// TestInotify sees what Vitess does as inotify events: every record, and never an older value.
func TestInotify(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := newWorld(t, b, "")
		ts, err := topo.OpenServer(b.name, w.server, w.root+"/global")
		if err != nil {
			t.Fatal(err)
		}
		defer ts.Close()
		ctx := contextOf(t)
		conn, err := ts.ConnForCell(ctx, topo.GlobalCell)
		if err != nil {
			t.Fatal(err)
		}
		update := func(name string, number int) {
			if _, err := conn.Update(ctx, "metadata/"+name, []byte(strconv.Itoa(number)), nil); err != nil {
				t.Fatal(err)
			}
		}
		update("counter", 0)
		update("k0001", 0)
		eventually(t, "the directory is there", func() bool {
			_, err := os.Stat(w.path("global/metadata/k0001"))
			return err == nil
		})
		inotify := exec.Command("inotifywait", "-m", "-e", "close_write", "--format", "%f", w.path("global/metadata"))
		ready, err := inotify.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		watch := startKeepingStderr(t, bound(inotify))
		for scanner := bufio.NewScanner(ready); scanner.Scan() && !strings.Contains(scanner.Text(), "established"); {
		}
		// Different records, each of which must be told of.
		for number := 1; number <= edits; number++ {
			update(fmt.Sprintf("k%04d", number), number)
		}
		missing := map[string]bool{}
		for number := 1; number <= edits; number++ {
			missing[fmt.Sprintf("k%04d", number)] = true
		}
		defer func() {
			if len(missing) > 0 {
				t.Logf("never told of: %v", slices.Sorted(maps.Keys(missing)))
			}
		}()
		for len(missing) > 0 {
			delete(missing, watch.next())
		}
		// One record: whoever is woken never reads an older value, and in the end the last.
		go func() {
			for number := 1; number <= edits; number++ {
				if _, err := conn.Update(ctx, "metadata/counter", []byte(strconv.Itoa(number)), nil); err != nil {
					t.Error(err)
				}
			}
		}()
		for last := 0; last < edits; {
			watch.until("counter")
			number, err := strconv.Atoi(w.read("global/metadata/counter"))
			if err != nil || number < last {
				t.Fatalf("%d after %d: %v", number, last, err)
			}
			last = number
		}
	})
}
