package interop

import (
	"os"
	"slices"
	"testing"

	topodatapb "vitess.io/vitess/go/vt/proto/topodata"
	"vitess.io/vitess/go/vt/topo"
	"vitess.io/vitess/go/vt/topo/test"

	"topofs/interop/mounttopo"
)

// notThroughFiles are the parts of Vitess's suite that cannot hold through files, with the reason. There is none.
var notThroughFiles = map[string]string{}

// The suite stores files that are no records of Vitess's, and a tablet that is in no shard.
var otherRecords = []string{
	"MyFile", "myfile", "types/**", "some/**", "toplevel/**",
	"keyspaces/*/shards/ShardReplication",
}

// TestConformance runs Vitess's own suite over the files of a mount.
func TestConformance(t *testing.T) {
	flags := []string{"--list", "raw"}
	for _, cell := range []string{"global", test.LocalCellName} {
		for _, record := range otherRecords {
			flags = append(flags, "--record", cell+"/"+record)
		}
	}
	var skipped []string
	for name, reason := range notThroughFiles {
		t.Logf("%s cannot hold: %s", name, reason)
		skipped = append(skipped, name)
	}
	slices.Sort(skipped)
	onEach(t, append(slices.Clone(servers), memory), func(t *testing.T, b *backend) {
		test.TopoServerTestSuite(t, contextOf(t), func() *topo.Server {
			w := newWorld(t, b, "", flags...)
			ts, err := topo.NewWithFactory(&mounttopo.Factory{}, w.mount, "/")
			if err != nil {
				t.Fatal(err)
			}
			info := &topodatapb.CellInfo{ServerAddress: w.server, Root: w.root + "/" + test.LocalCellName}
			if err := ts.CreateCellInfo(contextOf(t), test.LocalCellName, info); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(w.path(test.LocalCellName)); err != nil {
				t.Fatalf("the new cell is not there at once: %v", err)
			}
			return ts
		}, skipped)
	})
}
