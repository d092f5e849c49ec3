package interop

import (
	"context"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"vitess.io/vitess/go/protoutil"
	"vitess.io/vitess/go/vt/logutil"
	topodatapb "vitess.io/vitess/go/vt/proto/topodata"
	vschemapb "vitess.io/vitess/go/vt/proto/vschema"
	"vitess.io/vitess/go/vt/topo"
	_ "vitess.io/vitess/go/vt/topo/consultopo"
	_ "vitess.io/vitess/go/vt/topo/etcd2topo"
	"vitess.io/vitess/go/vt/topo/topoproto"
	_ "vitess.io/vitess/go/vt/topo/zk2topo"
	"vitess.io/vitess/go/vt/topotools"
)

// day is the topology of a cluster, with what its operators do in a day, by Vitess's own functions: those that the
// commands of vtctld call, in the same order.
type day struct {
	*world
	ts  *topo.Server
	ctx context.Context
}

func newDay(t *testing.T, b *backend) *day {
	w := newWorld(t, b, "")
	ts, err := topo.OpenServer(b.name, w.server, w.root+"/global")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ts.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 2*deadline)
	t.Cleanup(cancel)
	return &day{w, ts, ctx}
}

// must names what has failed.
func (d *day) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// isSound fails if topofs finds anything.
func (d *day) isSound(after string) {
	d.t.Helper()
	cmd := bound(exec.Command(program(d.t, "TOPOFS"), "validate", "--json", "--topo-implementation", d.backend.name,
		"--topo-global-server-address", d.server, "--topo-global-root", d.root+"/global"))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		d.t.Errorf("after %s: %v\n%s", after, err, out)
	}
}

func (d *day) cell(name string) {
	d.must(d.ts.CreateCellInfo(d.ctx, name, &topodatapb.CellInfo{ServerAddress: d.server, Root: d.root + "/" + name}))
}

func (d *day) keyspace(name string, ks *topodatapb.Keyspace) {
	d.must(d.ts.CreateKeyspace(d.ctx, name, ks))
	d.must(d.ts.EnsureVSchema(d.ctx, name))
	d.must(d.ts.RebuildSrvVSchema(d.ctx, nil))
}

func (d *day) tablet(
	cell string, uid uint32, keyspace, shard string, kind topodatapb.TabletType,
) *topodatapb.TabletAlias {
	tablet := topo.NewTablet(uid, cell, fmt.Sprintf("host%d", uid))
	tablet.Keyspace, tablet.Shard, tablet.Type = keyspace, shard, kind
	tablet.PortMap["vt"], tablet.PortMap["grpc"] = 15000, 16000
	d.must(d.ts.InitTablet(d.ctx, tablet, false, true, false))
	return tablet.Alias
}

// tablets makes a primary and two others, as when they are started.
func (d *day) tablets(uid uint32, keyspace, shard string) {
	primary := d.tablet("zone1", uid, keyspace, shard, topodatapb.TabletType_REPLICA)
	d.tablet("zone2", uid+1, keyspace, shard, topodatapb.TabletType_REPLICA)
	d.tablet("zone2", uid+2, keyspace, shard, topodatapb.TabletType_RDONLY)
	d.primary(keyspace, shard, primary)
}

// primary is what a reparenting does.
func (d *day) primary(keyspace, shard string, alias *topodatapb.TabletAlias) {
	old, err := d.ts.GetShard(d.ctx, keyspace, shard)
	d.must(err)
	term := time.Now()
	stamp := protoutil.TimeToProto(term)
	_, err = topotools.ChangeType(d.ctx, d.ts, alias, topodatapb.TabletType_PRIMARY, stamp)
	d.must(err)
	_, err = d.ts.UpdateShardFields(d.ctx, keyspace, shard, func(si *topo.ShardInfo) error {
		si.PrimaryAlias = alias
		si.PrimaryTermStartTime = stamp
		return nil
	})
	d.must(err)
	if old.HasPrimary() && !topoproto.TabletAliasEqual(old.PrimaryAlias, alias) {
		_, err = topotools.ChangeType(d.ctx, d.ts, old.PrimaryAlias, topodatapb.TabletType_REPLICA, nil)
		d.must(err)
	}
}

func (d *day) rebuild(keyspace string) {
	d.must(topotools.RebuildKeyspace(d.ctx, logutil.NewMemoryLogger(), d.ts, keyspace, nil, false))
}

func (d *day) rules() {
	rules := &vschemapb.RoutingRules{Rules: []*vschemapb.RoutingRule{
		{FromTable: "corder", ToTables: []string{"customer.corder"}},
		{FromTable: "commerce.corder@replica", ToTables: []string{"customer.corder"}},
		{FromTable: "product", ToTables: []string{"commerce.product"}},
	}}
	d.must(d.ts.SaveRoutingRules(d.ctx, rules))
	d.must(d.ts.SaveShardRoutingRules(d.ctx, &vschemapb.ShardRoutingRules{Rules: []*vschemapb.ShardRoutingRule{
		{FromKeyspace: "customer", ToKeyspace: "customer", Shard: "-80"},
	}}))
	d.must(d.ts.CreateKeyspaceRoutingRules(d.ctx, &vschemapb.KeyspaceRoutingRules{Rules: []*vschemapb.KeyspaceRoutingRule{
		{FromKeyspace: "tenant@replica", ToKeyspace: "commerce"},
	}}))
	d.must(d.ts.SaveMirrorRules(d.ctx, &vschemapb.MirrorRules{Rules: []*vschemapb.MirrorRule{
		{FromTable: "commerce.corder", ToTable: "customer.corder", Percent: 12.5},
	}}))
	d.must(d.ts.RebuildSrvVSchema(d.ctx, nil))
}

func (d *day) shards(keyspace string, names ...string) (shards []*topo.ShardInfo) {
	for _, name := range names {
		shard, err := d.ts.GetShard(d.ctx, keyspace, name)
		d.must(err)
		shards = append(shards, shard)
	}
	return shards
}

// locked runs a part of a workflow that needs the lock of the keyspace.
func (d *day) locked(keyspace string, part func(ctx context.Context) error) {
	ctx, unlock, err := d.ts.LockKeyspace(d.ctx, keyspace, "a workflow")
	d.must(err)
	err = part(ctx)
	d.isSound("a step under the lock")
	unlock(&err)
	d.must(err)
}

// reshard moves one shard to two, as the traffic switcher does.
func (d *day) reshard() {
	const keyspace = "customer"
	from, to := []string{"-80"}, []string{"-40", "40-80"}
	for number, shard := range to {
		d.must(d.ts.CreateShard(d.ctx, keyspace, shard))
		d.tablets(uint32(600+100*number), keyspace, shard)
	}
	d.rebuild(keyspace)
	d.isSound("creating the shards of a resharding")
	source, target := d.shards(keyspace, from...), d.shards(keyspace, to...)
	for _, kind := range []topodatapb.TabletType{topodatapb.TabletType_REPLICA, topodatapb.TabletType_RDONLY} {
		d.locked(keyspace, func(ctx context.Context) error {
			d.must(d.ts.UpdateDisableQueryService(ctx, keyspace, source, kind, nil, true))
			d.must(d.ts.UpdateDisableQueryService(ctx, keyspace, target, kind, nil, false))
			return d.ts.MigrateServedType(ctx, keyspace, target, source, kind, nil)
		})
	}
	d.isSound("switching reads")
	d.locked(keyspace, func(ctx context.Context) error {
		for shard, serves := range map[string]bool{"-80": false, "-40": true, "40-80": true} {
			_, err := d.ts.UpdateShardFields(ctx, keyspace, shard, func(si *topo.ShardInfo) error {
				si.IsPrimaryServing = serves
				return nil
			})
			d.must(err)
		}
		return d.ts.MigrateServedType(ctx, keyspace, target, source, topodatapb.TabletType_PRIMARY, nil)
	})
	d.isSound("switching writes")
	// The rules that led to the old shard go with it.
	d.must(d.ts.SaveShardRoutingRules(d.ctx, &vschemapb.ShardRoutingRules{}))
	d.must(d.ts.RebuildSrvVSchema(d.ctx, nil))
	d.deleteShard(keyspace, "-80")
	d.isSound("deleting the old shard")
	d.rebuild(keyspace)
	d.isSound("a rebuild after that")
}

// deleteShard is DeleteShard --recursive.
func (d *day) deleteShard(keyspace, shard string) {
	cells, err := d.ts.GetCellInfoNames(d.ctx)
	d.must(err)
	for _, cell := range cells {
		replication, err := d.ts.GetShardReplication(d.ctx, cell, keyspace, shard)
		if topo.IsErrType(err, topo.NoNode) {
			continue
		}
		d.must(err)
		for _, node := range replication.Nodes {
			d.must(d.ts.DeleteTablet(d.ctx, node.TabletAlias))
		}
		d.must(d.ts.DeleteShardReplication(d.ctx, cell, keyspace, shard))
	}
	d.must(d.ts.DeleteShard(d.ctx, keyspace, shard))
}

// deleteKeyspace is DeleteKeyspace --recursive.
func (d *day) deleteKeyspace(keyspace string) {
	names, err := d.ts.GetShardNames(d.ctx, keyspace)
	d.must(err)
	for _, shard := range names {
		d.deleteShard(keyspace, shard)
	}
	cells, err := d.ts.GetKnownCells(d.ctx)
	d.must(err)
	for _, cell := range cells {
		if err := d.ts.DeleteSrvKeyspace(d.ctx, cell, keyspace); !topo.IsErrType(err, topo.NoNode) {
			d.must(err)
		}
	}
	d.must(d.ts.DeleteKeyspace(d.ctx, keyspace))
	d.must(d.ts.RebuildSrvVSchema(d.ctx, nil))
}

// TestADayOfVitessHasNoProblems checks after each step.
func TestADayOfVitessHasNoProblems(t *testing.T) {
	for _, b := range servers {
		t.Run(b.name, func(t *testing.T) {
			d := newDay(t, b)
			d.cell("zone1")
			d.cell("zone2")
			d.must(d.ts.CreateCellsAlias(d.ctx, "region", &topodatapb.CellsAlias{Cells: []string{"zone1", "zone2"}}))
			d.isSound("adding cells")
			d.keyspace("commerce", &topodatapb.Keyspace{})
			d.keyspace("customer", &topodatapb.Keyspace{DurabilityPolicy: "semi_sync", SidecarDbName: "_vt"})
			d.isSound("creating keyspaces")
			for number, shard := range []string{"-80", "80-"} {
				d.must(d.ts.CreateShard(d.ctx, "customer", shard))
				d.tablets(uint32(100+100*number), "customer", shard)
			}
			d.tablets(300, "commerce", "0")
			d.rebuild("customer")
			d.rebuild("commerce")
			d.isSound("starting tablets")
			vschema, err := d.ts.GetVSchema(d.ctx, "customer")
			d.must(err)
			vschema.Sharded = true
			vschema.Tables = map[string]*vschemapb.Table{"corder": {}}
			d.must(d.ts.SaveVSchema(d.ctx, vschema))
			d.must(d.ts.RebuildSrvVSchema(d.ctx, nil))
			d.isSound("ApplyVSchema")
			d.rules()
			d.isSound("rules")
			d.primary("commerce", "0", &topodatapb.TabletAlias{Cell: "zone2", Uid: 301})
			d.isSound("a reparenting")
			d.must(d.ts.UpsertMetadata(d.ctx, "owner", "me"))
			d.must(d.ts.CreateExternalVitessCluster(d.ctx, "other", &topodatapb.ExternalVitessCluster{}))
			_, unlock, err := d.ts.LockName(d.ctx, "customer/move", "a workflow")
			d.must(err)
			d.isSound("metadata, an external cluster, the lock of a name")
			unlock(&err)
			d.must(err)
			d.reshard()
			tablet, err := d.ts.GetTablet(d.ctx, &topodatapb.TabletAlias{Cell: "zone2", Uid: 302})
			d.must(err)
			d.must(topotools.DeleteTablet(d.ctx, d.ts, tablet.Tablet))
			d.isSound("DeleteTablet")
			d.keyspace("archive", &topodatapb.Keyspace{})
			d.tablets(900, "archive", "0")
			d.rebuild("archive")
			d.isSound("one more keyspace")
			d.deleteKeyspace("archive")
			d.isSound("DeleteKeyspace")
			d.cell("zone3")
			d.isSound("one more cell")
			d.must(d.ts.DeleteCellInfo(d.ctx, "zone3", false))
			d.isSound("DeleteCellInfo")
			d.must(d.ts.SaveRoutingRules(d.ctx, &vschemapb.RoutingRules{}))
			d.must(d.ts.RebuildSrvVSchema(d.ctx, nil))
			d.isSound("deleting rules")
			// The mount says the same.
			d.sh("ls zone1 zone2")
			if problems := d.read(".topofs/problems"); problems != "" {
				t.Error(problems)
			}
			// It would say something else.
			d.must(d.ts.DeleteTablet(d.ctx, &topodatapb.TabletAlias{Cell: "zone2", Uid: 301}))
			eventually(t, "the mount sees that a tablet is gone", func() bool { return d.read(".topofs/problems") != "" })
		})
	}
}
