package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"vitess.io/vitess/go/vt/key"
	"vitess.io/vitess/go/vt/logutil"
	topodatapb "vitess.io/vitess/go/vt/proto/topodata"
	vschemapb "vitess.io/vitess/go/vt/proto/vschema"
	"vitess.io/vitess/go/vt/topo"
	"vitess.io/vitess/go/vt/topo/memorytopo"
	"vitess.io/vitess/go/vt/topotools"
)

// topologies is how many random topologies are rebuilt.
const topologies = 500

// topology is a random one: its records, and what is asked of both.
type topology struct {
	cells     []string
	keyspaces []string
	// By cell, then by path.
	records map[string]map[string][]byte
	// The flags of both commands.
	only         []string
	allowPartial bool
}

// builder makes topologies from a seed.
type builder struct {
	*rand.Rand
	t *topology
}

func (b *builder) one(n int) bool { return b.IntN(n) == 0 }

func pick[T any](b *builder, of ...T) T { return of[b.IntN(len(of))] }

// put stores a message, sometimes with a field of a newer Vitess, and sometimes bytes that are no message.
func (b *builder) put(cell, file string, m proto.Message) {
	if b.one(4) {
		b.unknown(m)
	}
	data, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	if b.one(150) {
		data = []byte{0xff}
	}
	b.t.records[cell][file] = data
}

// unknown adds field 2000 with one byte.
func (b *builder) unknown(m proto.Message) {
	m.ProtoReflect().SetUnknown([]byte{0x82, 0x7d, 0x01, byte('a' + b.IntN(26))})
}

func newTopology(seed uint64) *topology {
	b := &builder{rand.New(rand.NewPCG(seed, 2)), &topology{records: map[string]map[string][]byte{"global": {}}}}
	t := b.t
	for n := range 1 + b.IntN(3) {
		cell := fmt.Sprintf("zone%d", n+1)
		t.cells = append(t.cells, cell)
		t.records[cell] = map[string][]byte{}
	}
	if b.one(20) {
		t.records["global"]["cells/ghost/Notes"] = []byte("a directory without a CellInfo")
	}
	if b.one(3) {
		t.only = slices.Clone(t.cells[:1+b.IntN(len(t.cells))])
		if b.one(4) {
			t.only = append(t.only, "gone")
		}
	}
	t.allowPartial = b.one(2)
	for n := range 1 + b.IntN(4) {
		b.keyspace(pick(b, "ks", "a-b", "Shard", "UPPER_case", strings.Repeat("k", 60), "odd.name") + strconv.Itoa(n))
	}
	b.rules()
	if b.one(20) {
		t.records["global"]["keyspaces/stray"] = []byte("a file among keyspaces")
	}
	return t
}

func (b *builder) keyspace(name string) {
	b.t.keyspaces = append(b.t.keyspaces, name)
	dir := "keyspaces/" + name
	if !b.one(4) {
		b.put("global", dir+"/VSchema", b.vschema())
	}
	if b.one(30) {
		b.t.records["global"][dir+"/notes"] = []byte("not a keyspace")
		return
	}
	ks := &topodatapb.Keyspace{DurabilityPolicy: "none", SidecarDbName: "_vt"}
	if b.one(3) {
		ks.KeyspaceType = topodatapb.KeyspaceType_SNAPSHOT
		ks.BaseKeyspace = "base"
	}
	if b.one(2) {
		ks.ThrottlerConfig = &topodatapb.ThrottlerConfig{Enabled: b.one(2), Threshold: b.Float64()}
		if b.one(2) {
			ks.ThrottlerConfig.AppCheckedMetrics = map[string]*topodatapb.ThrottlerConfig_MetricNames{
				"vreplication": {Names: []string{"lag", "loadavg"}}, "online-ddl": {},
			}
		}
		if b.one(2) {
			b.unknown(ks.ThrottlerConfig)
		}
	}
	b.put("global", dir+"/Keyspace", ks)
	for shard, record := range b.shards() {
		b.put("global", dir+"/shards/"+shard+"/Shard", record)
	}
	if b.one(10) {
		b.t.records["global"][dir+"/shards/no-shard/notes"] = []byte("a directory without a Shard")
	}
	for _, cell := range b.t.cells {
		if b.one(2) {
			b.put(cell, dir+"/SrvKeyspace", b.before())
		}
	}
}

// shards are a partition of all keys, or something that is not quite one.
func (b *builder) shards() map[string]*topodatapb.Shard {
	shards := map[string]*topodatapb.Shard{}
	add := func(name string, r *topodatapb.KeyRange) {
		s := &topodatapb.Shard{KeyRange: r, IsPrimaryServing: !b.one(25)}
		if b.one(2) {
			s.PrimaryAlias = &topodatapb.TabletAlias{Cell: "zone1", Uid: b.Uint32()}
		}
		if r != nil && b.one(4) {
			b.unknown(r)
		}
		shards[name] = s
	}
	if b.one(4) {
		for n := range b.IntN(4) {
			add(pick(b, "0", "1", "a_b", "Z"+strconv.Itoa(n)), nil)
		}
	} else {
		count := pick(b, 1, 2, 2, 4, 4, 8)
		skipped := -1
		if b.one(5) {
			skipped = b.IntN(count)
		}
		for n := range count {
			border := func(n int) []byte {
				if n == 0 || n == count {
					return nil
				}
				edge := []byte{byte(256 * n / count)}
				if b.one(8) {
					edge = append(edge, 0)
				}
				return edge
			}
			r := &topodatapb.KeyRange{Start: border(n), End: border(n + 1)}
			if b.one(60) {
				r.Start = []byte{0}
			}
			name := key.KeyRangeString(r)
			if b.one(10) {
				name = strings.ToUpper(name)
			}
			if n != skipped {
				add(name, r)
			}
		}
	}
	switch b.IntN(25) {
	case 0: // It overlaps, unless it does not serve.
		add("20-60", &topodatapb.KeyRange{Start: []byte{0x20}, End: []byte{0x60}})
	case 1:
		add("mixed", nil)
	case 2:
		add(pick(b, "40-20", "x-", "-8-", "a.b", "80-80"), &topodatapb.KeyRange{})
	case 3: // Half of a split that does not serve yet.
		add("40-80", &topodatapb.KeyRange{Start: []byte{0x40}, End: []byte{0x80}})
		shards["40-80"].IsPrimaryServing = false
	case 4: // Nothing, but twice.
		empty := &topodatapb.KeyRange{Start: []byte{0x80}, End: []byte{0x80}}
		add("e1", empty)
		add("e2", proto.Clone(empty).(*topodatapb.KeyRange))
	}
	return shards
}

// before is what a cell may have stored from earlier.
func (b *builder) before() *topodatapb.SrvKeyspace {
	served := pick(b, topodatapb.TabletType_PRIMARY, topodatapb.TabletType_REPLICA)
	partition := &topodatapb.SrvKeyspace_KeyspacePartition{
		ServedType:      served,
		ShardReferences: []*topodatapb.ShardReference{{Name: "0"}},
	}
	if b.one(3) {
		partition.ShardTabletControls = []*topodatapb.ShardTabletControl{
			{Name: "0", QueryServiceDisabled: b.one(6)},
		}
	}
	return &topodatapb.SrvKeyspace{Partitions: []*topodatapb.SrvKeyspace_KeyspacePartition{partition}}
}

func (b *builder) vschema() *vschemapb.Keyspace {
	v := &vschemapb.Keyspace{Sharded: b.one(2), Tables: map[string]*vschemapb.Table{}}
	for n := range b.IntN(4) {
		table := &vschemapb.Table{Type: pick(b, "", "sequence", "reference"), Pinned: pick(b, "", "80")}
		if b.one(3) {
			b.unknown(table)
		}
		v.Tables[fmt.Sprintf("t%d", n)] = table
	}
	if v.Sharded {
		v.Vindexes = map[string]*vschemapb.Vindex{"hash": {Type: "hash", Params: map[string]string{"a": "b", "c": ""}}}
	}
	return v
}

func (b *builder) rules() {
	if b.one(2) {
		b.put("global", "RoutingRules", &vschemapb.RoutingRules{Rules: []*vschemapb.RoutingRule{
			{FromTable: "t1", ToTables: []string{"ks0.t1"}}, {FromTable: "t2@replica"},
		}})
	}
	if b.one(2) {
		b.put("global", "ShardRoutingRules", &vschemapb.ShardRoutingRules{Rules: []*vschemapb.ShardRoutingRule{
			{FromKeyspace: "ks0", ToKeyspace: "ks1", Shard: "-80"},
		}})
	}
	if b.one(2) {
		m := &vschemapb.KeyspaceRoutingRules{}
		if b.one(2) {
			m.Rules = []*vschemapb.KeyspaceRoutingRule{{FromKeyspace: "old", ToKeyspace: "ks0"}}
		}
		b.put("global", "routing_rules/keyspace/Rules", m)
	}
	if b.one(2) {
		b.put("global", "MirrorRules", &vschemapb.MirrorRules{Rules: []*vschemapb.MirrorRule{
			{FromTable: "ks0.t1", ToTable: "ks1.t1", Percent: float32(b.Float64())},
		}})
	}
}

// vitess is the topology in Vitess's own memory.
func (t *topology) vitess(ctx context.Context, tb testing.TB) *topo.Server {
	ts := memorytopo.NewServer(ctx, t.cells...)
	for cell, records := range t.records {
		conn, err := ts.ConnForCell(ctx, cell)
		if err != nil {
			tb.Fatal(err)
		}
		for file, data := range records {
			if _, err := conn.Create(ctx, file, data); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return ts
}

// ours is the same in etcd.
type ours struct {
	tb     testing.TB
	client *clientv3.Client
	server string
	root   string
}

func (o *ours) store(ctx context.Context, t *topology) {
	var ops []clientv3.Op
	put := func(file string, data []byte) {
		ops = append(ops, clientv3.OpPut(path.Join(o.root, file), string(data)))
	}
	for cell, records := range t.records {
		for file, data := range records {
			put(path.Join(cell, file), data)
		}
	}
	for _, cell := range t.cells {
		info, err := proto.Marshal(&topodatapb.CellInfo{ServerAddress: o.server, Root: path.Join(o.root, cell)})
		if err != nil {
			o.tb.Fatal(err)
		}
		put("global/cells/"+cell+"/CellInfo", info)
	}
	if _, err := o.client.Txn(ctx).Then(ops...).Commit(); err != nil {
		o.tb.Fatal(err)
	}
}

// topofs runs a command. It returns what it complains about, and whether it has failed.
func (o *ours) topofs(args ...string) (string, bool) {
	flags := []string{"--topo-global-server-address", o.server, "--topo-global-root", o.root + "/global"}
	cmd := bound(exec.Command(program(o.tb, "TOPOFS"), append(args, flags...)...))
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		o.tb.Fatalf("%v: %v\n%s", cmd.Args, err, complaints.String())
	}
	return complaints.String(), err != nil
}

func (o *ours) get(ctx context.Context, cell, file string) ([]byte, bool) {
	answer, err := o.client.Get(ctx, path.Join(o.root, cell, file))
	if err != nil {
		o.tb.Fatal(err)
	}
	if len(answer.Kvs) == 0 {
		return nil, false
	}
	return answer.Kvs[0].Value, true
}

// sortTies sorts what Vitess leaves in random order: shards with equal ranges, or all of them.
func sortTies(srv *topodatapb.SrvKeyspace, all bool) {
	for _, p := range srv.Partitions {
		refs := p.ShardReferences
		less := func(a, b *topodatapb.ShardReference) int {
			if c := key.KeyRangeCompare(a.KeyRange, b.KeyRange); c != 0 {
				return c
			}
			return strings.Compare(a.Name, b.Name)
		}
		if all {
			slices.SortFunc(refs, less)
			continue
		}
		for from := 0; from < len(refs); {
			to := from + 1
			for to < len(refs) && key.KeyRangeEqual(refs[from].KeyRange, refs[to].KeyRange) {
				to++
			}
			slices.SortFunc(refs[from:to], less)
			from = to
		}
	}
}

// sameMessage compares a record of a cell. `settle` makes the order of what has none the same.
func sameMessage[M proto.Message](
	ctx context.Context, o *ours, ts *topo.Server, cell, file string, empty func() M, settle func(M),
) error {
	conn, err := ts.ConnForCell(ctx, cell)
	if err != nil {
		return err
	}
	want, _, err := conn.Get(ctx, file)
	if err != nil && !topo.IsErrType(err, topo.NoNode) {
		return err
	}
	got, ok := o.get(ctx, cell, file)
	if ok != (err == nil) {
		return fmt.Errorf("%s/%s: it is there for topofs: %v, for Vitess: %v", cell, file, ok, err == nil)
	}
	if bytes.Equal(want, got) {
		return nil
	}
	a, b := empty(), empty()
	if err := errors.Join(proto.Unmarshal(want, a), proto.Unmarshal(got, b)); err != nil {
		return err
	}
	settle(a)
	settle(b)
	if !proto.Equal(a, b) {
		return fmt.Errorf("%s/%s:\nVitess: %s\ntopofs: %s", cell, file, protojson.Format(a), protojson.Format(b))
	}
	return nil
}

// rebuilt is how many keyspaces, and VSchemas, were stored and refused.
type rebuilt struct {
	sync.Mutex
	stored, refused, vschemas, refusedVSchemas int
}

func (r *rebuilt) one(ctx context.Context, o *ours, t *topology) error {
	ts := t.vitess(ctx, o.tb)
	defer ts.Close()
	o.store(ctx, t)
	var flags []string
	if t.only != nil {
		flags = []string{"--cells", strings.Join(t.only, ",")}
	}
	args := append([]string{"rebuild-keyspace-graph"}, flags...)
	if t.allowPartial {
		args = append(args, "--allow-partial")
	}
	complaints, failed := o.topofs(append(args, t.keyspaces...)...)
	anyRefused := false
	for _, ks := range t.keyspaces {
		err := topotools.RebuildKeyspace(ctx, logutil.NewMemoryLogger(), ts, ks, t.only, t.allowPartial)
		refused := strings.Contains(complaints, "keyspace "+ks+": ") || strings.Contains(complaints, "/"+ks+"/SrvKeyspace: ")
		if refused != (err != nil) {
			return fmt.Errorf("keyspace %s: Vitess: %v\ntopofs: %s", ks, err, complaints)
		}
		anyRefused = anyRefused || refused
		r.count(refused, &r.refused, &r.stored)
		for _, cell := range t.cells {
			settle := func(srv *topodatapb.SrvKeyspace) { sortTies(srv, t.allowPartial) }
			empty := func() *topodatapb.SrvKeyspace { return &topodatapb.SrvKeyspace{} }
			if err := sameMessage(ctx, o, ts, cell, "keyspaces/"+ks+"/SrvKeyspace", empty, settle); err != nil {
				return err
			}
		}
	}
	if failed != anyRefused {
		return fmt.Errorf("the exit status is that of a failure: %v, but one was refused: %v", failed, anyRefused)
	}
	complaints, failed = o.topofs(append([]string{"rebuild-vschema-graph"}, flags...)...)
	if err := ts.RebuildSrvVSchema(ctx, t.only); failed != (err != nil) {
		return fmt.Errorf("SrvVSchema: Vitess: %v\ntopofs: %s", err, complaints)
	}
	r.count(failed, &r.refusedVSchemas, &r.vschemas)
	for _, cell := range t.cells {
		empty := func() *vschemapb.SrvVSchema { return &vschemapb.SrvVSchema{} }
		if err := sameMessage(ctx, o, ts, cell, "SrvVSchema", empty, func(*vschemapb.SrvVSchema) {}); err != nil {
			return err
		}
	}
	return nil
}

func (r *rebuilt) count(is bool, yes, no *int) {
	r.Lock()
	defer r.Unlock()
	if is {
		*yes++
	} else {
		*no++
	}
}

// TestRebuildAsVitess: on random topologies, topofs stores what Vitess's own functions store, and refuses what they
// refuse.
func TestRebuildAsVitess(t *testing.T) {
	ctx := contextOf(t)
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("TOPOFS_TEST_REBUILD_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.server(t)}, DialTimeout: deadline})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var done rebuilt
	var workers sync.WaitGroup
	todo := make(chan uint64)
	for range 4 {
		workers.Go(func() {
			for n := range todo {
				o := &ours{t, client, etcd.server(t), fmt.Sprintf("/rebuild-%d", n)}
				if err := done.one(ctx, o, newTopology(n)); err != nil {
					t.Errorf("TOPOFS_TEST_REBUILD_SEED=%d, topology %d: %v", seed, n-seed, err)
				}
			}
		})
	}
	for n := range uint64(topologies) {
		todo <- seed + n
	}
	close(todo)
	workers.Wait()
	t.Logf("SrvKeyspace: %d stored, %d refused; SrvVSchema: %d stored, %d refused",
		done.stored, done.refused, done.vschemas, done.refusedVSchemas)
	if min(done.stored, done.refused, done.vschemas, done.refusedVSchemas) < topologies/20 {
		t.Error("the topologies are too much alike")
	}
}
