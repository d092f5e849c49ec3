package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	topodatapb "vitess.io/vitess/go/vt/proto/topodata"
	vschemapb "vitess.io/vitess/go/vt/proto/vschema"
	workflowpb "vitess.io/vitess/go/vt/proto/workflow"
	"vitess.io/vitess/go/vt/topo"
	"vitess.io/vitess/go/vt/topo/topoproto"
)

// kind is a kind of record, as Vitess's own functions create, update and read it.
type kind struct {
	// What names a record of it.
	args    []string
	message proto.Message
	create  func(ctx context.Context, ts *topo.Server, args []string, message proto.Message) error
	update  func(ctx context.Context, ts *topo.Server, args []string, message proto.Message) error
	read    func(ctx context.Context, ts *topo.Server, args []string) (proto.Message, error)
}

// of makes a kind of functions that know its message.
func of[M proto.Message](
	empty M,
	create, update func(context.Context, *topo.Server, []string, M) error,
	read func(context.Context, *topo.Server, []string) (M, error),
	args ...string,
) kind {
	typed := func(
		body func(context.Context, *topo.Server, []string, M) error,
	) func(context.Context, *topo.Server, []string, proto.Message) error {
		return func(ctx context.Context, ts *topo.Server, args []string, message proto.Message) error {
			return body(ctx, ts, args, message.(M))
		}
	}
	untyped := func(ctx context.Context, ts *topo.Server, args []string) (proto.Message, error) {
		message, err := read(ctx, ts, args)
		return message, err
	}
	return kind{args: args, message: empty, create: typed(create), update: typed(update), read: untyped}
}

// become makes one message of another, whatever it was.
func become(message, other proto.Message) {
	proto.Reset(message)
	proto.Merge(message, other)
}

var kinds = map[string]kind{
	"cell-info": of(&topodatapb.CellInfo{},
		func(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.CellInfo) error {
			return ts.CreateCellInfo(ctx, args[0], m)
		},
		func(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.CellInfo) error {
			return ts.UpdateCellInfoFields(ctx, args[0], func(stored *topodatapb.CellInfo) error {
				become(stored, m)
				return nil
			})
		},
		func(ctx context.Context, ts *topo.Server, args []string) (*topodatapb.CellInfo, error) {
			return ts.GetCellInfo(ctx, args[0], true)
		}, "CELL"),
	"cells-alias": of(&topodatapb.CellsAlias{},
		func(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.CellsAlias) error {
			return ts.CreateCellsAlias(ctx, args[0], m)
		},
		func(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.CellsAlias) error {
			return ts.UpdateCellsAlias(ctx, args[0], func(stored *topodatapb.CellsAlias) error {
				become(stored, m)
				return nil
			})
		},
		func(ctx context.Context, ts *topo.Server, args []string) (*topodatapb.CellsAlias, error) {
			return ts.GetCellsAlias(ctx, args[0], true)
		}, "ALIAS"),
	"keyspace": of(&topodatapb.Keyspace{},
		func(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.Keyspace) error {
			return ts.CreateKeyspace(ctx, args[0], m)
		},
		func(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.Keyspace) (err error) {
			ctx, unlock, err := ts.LockKeyspace(ctx, args[0], "vtopo update")
			if err != nil {
				return err
			}
			defer unlock(&err)
			stored, err := ts.GetKeyspace(ctx, args[0])
			if err != nil {
				return err
			}
			become(stored.Keyspace, m)
			return ts.UpdateKeyspace(ctx, stored)
		},
		func(ctx context.Context, ts *topo.Server, args []string) (*topodatapb.Keyspace, error) {
			stored, err := ts.GetKeyspace(ctx, args[0])
			if err != nil {
				return nil, err
			}
			return stored.Keyspace, nil
		}, "KEYSPACE"),
	"vschema": of(&vschemapb.Keyspace{},
		func(ctx context.Context, ts *topo.Server, args []string, m *vschemapb.Keyspace) error {
			return ts.SaveVSchema(ctx, &topo.KeyspaceVSchemaInfo{Name: args[0], Keyspace: m})
		},
		func(ctx context.Context, ts *topo.Server, args []string, m *vschemapb.Keyspace) error {
			stored, err := ts.GetVSchema(ctx, args[0])
			if err != nil {
				return err
			}
			become(stored.Keyspace, m)
			return ts.SaveVSchema(ctx, stored)
		},
		func(ctx context.Context, ts *topo.Server, args []string) (*vschemapb.Keyspace, error) {
			stored, err := ts.GetVSchema(ctx, args[0])
			if err != nil {
				return nil, err
			}
			return stored.Keyspace, nil
		}, "KEYSPACE"),
	"shard": of(&topodatapb.Shard{},
		func(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.Shard) error {
			if err := ts.CreateShard(ctx, args[0], args[1]); err != nil {
				return err
			}
			return updateShard(ctx, ts, args, m)
		},
		updateShard,
		func(ctx context.Context, ts *topo.Server, args []string) (*topodatapb.Shard, error) {
			stored, err := ts.GetShard(ctx, args[0], args[1])
			if err != nil {
				return nil, err
			}
			return stored.Shard, nil
		}, "KEYSPACE", "SHARD"),
	"tablet": of(&topodatapb.Tablet{},
		func(ctx context.Context, ts *topo.Server, _ []string, m *topodatapb.Tablet) error {
			return ts.CreateTablet(ctx, m)
		},
		func(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.Tablet) error {
			alias, err := topoproto.ParseTabletAlias(args[0])
			if err != nil {
				return err
			}
			_, err = ts.UpdateTabletFields(ctx, alias, func(stored *topodatapb.Tablet) error {
				become(stored, m)
				return nil
			})
			return err
		},
		func(ctx context.Context, ts *topo.Server, args []string) (*topodatapb.Tablet, error) {
			alias, err := topoproto.ParseTabletAlias(args[0])
			if err != nil {
				return nil, err
			}
			stored, err := ts.GetTablet(ctx, alias)
			if err != nil {
				return nil, err
			}
			return stored.Tablet, nil
		}, "ALIAS"),
	"shard-replication": of(&topodatapb.ShardReplication{},
		updateShardReplication, updateShardReplication,
		func(ctx context.Context, ts *topo.Server, args []string) (*topodatapb.ShardReplication, error) {
			stored, err := ts.GetShardReplication(ctx, args[0], args[1], args[2])
			if err != nil {
				return nil, err
			}
			return stored.ShardReplication, nil
		}, "CELL", "KEYSPACE", "SHARD"),
	"srv-keyspace": of(&topodatapb.SrvKeyspace{},
		updateSrvKeyspace, updateSrvKeyspace,
		func(ctx context.Context, ts *topo.Server, args []string) (*topodatapb.SrvKeyspace, error) {
			return ts.GetSrvKeyspace(ctx, args[0], args[1])
		}, "CELL", "KEYSPACE"),
	"srv-vschema": of(&vschemapb.SrvVSchema{},
		updateSrvVSchema, updateSrvVSchema,
		func(ctx context.Context, ts *topo.Server, args []string) (*vschemapb.SrvVSchema, error) {
			return ts.GetSrvVSchema(ctx, args[0])
		}, "CELL"),
	"routing-rules": rules(&vschemapb.RoutingRules{}, (*topo.Server).SaveRoutingRules, (*topo.Server).GetRoutingRules),
	"shard-routing-rules": rules(&vschemapb.ShardRoutingRules{},
		(*topo.Server).SaveShardRoutingRules, (*topo.Server).GetShardRoutingRules),
	"mirror-rules": rules(&vschemapb.MirrorRules{}, (*topo.Server).SaveMirrorRules, (*topo.Server).GetMirrorRules),
	"keyspace-routing-rules": of(&vschemapb.KeyspaceRoutingRules{},
		func(ctx context.Context, ts *topo.Server, _ []string, m *vschemapb.KeyspaceRoutingRules) error {
			return ts.CreateKeyspaceRoutingRules(ctx, m)
		},
		func(ctx context.Context, ts *topo.Server, _ []string, m *vschemapb.KeyspaceRoutingRules) (err error) {
			ctx, unlock, err := ts.LockRoutingRules(ctx, "vtopo update")
			if err != nil {
				return err
			}
			defer unlock(&err)
			return ts.SaveKeyspaceRoutingRules(ctx, m)
		},
		func(ctx context.Context, ts *topo.Server, _ []string) (*vschemapb.KeyspaceRoutingRules, error) {
			return ts.GetKeyspaceRoutingRules(ctx)
		}),
	"external-cluster": of(&topodatapb.ExternalVitessCluster{},
		func(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.ExternalVitessCluster) error {
			return ts.CreateExternalVitessCluster(ctx, args[0], m)
		},
		func(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.ExternalVitessCluster) error {
			stored, err := ts.GetExternalVitessCluster(ctx, args[0])
			if err != nil {
				return err
			}
			become(stored.ExternalVitessCluster, m)
			return ts.UpdateExternalVitessCluster(ctx, stored)
		},
		func(ctx context.Context, ts *topo.Server, args []string) (*topodatapb.ExternalVitessCluster, error) {
			stored, err := ts.GetExternalVitessCluster(ctx, args[0])
			if err != nil {
				return nil, err
			}
			return stored.ExternalVitessCluster, nil
		}, "NAME"),
	"workflow": of(&workflowpb.Workflow{},
		func(ctx context.Context, ts *topo.Server, _ []string, m *workflowpb.Workflow) error {
			_, err := ts.CreateWorkflow(ctx, m)
			return err
		},
		func(ctx context.Context, ts *topo.Server, args []string, m *workflowpb.Workflow) error {
			stored, err := ts.GetWorkflow(ctx, args[0])
			if err != nil {
				return err
			}
			become(stored.Workflow, m)
			return ts.SaveWorkflow(ctx, stored)
		},
		func(ctx context.Context, ts *topo.Server, args []string) (*workflowpb.Workflow, error) {
			stored, err := ts.GetWorkflow(ctx, args[0])
			if err != nil {
				return nil, err
			}
			return stored.Workflow, nil
		}, "UUID"),
}

// rules is a kind of which there is one record.
func rules[M proto.Message](
	empty M,
	save func(*topo.Server, context.Context, M) error,
	get func(*topo.Server, context.Context) (M, error),
) kind {
	write := func(ctx context.Context, ts *topo.Server, _ []string, m M) error { return save(ts, ctx, m) }
	read := func(ctx context.Context, ts *topo.Server, _ []string) (M, error) { return get(ts, ctx) }
	return of(empty, write, write, read)
}

func updateShard(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.Shard) error {
	_, err := ts.UpdateShardFields(ctx, args[0], args[1], func(stored *topo.ShardInfo) error {
		become(stored.Shard, m)
		return nil
	})
	return err
}

func updateShardReplication(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.ShardReplication) error {
	update := func(stored *topodatapb.ShardReplication) error {
		become(stored, m)
		return nil
	}
	return ts.UpdateShardReplicationFields(ctx, args[0], args[1], args[2], update)
}

func updateSrvKeyspace(ctx context.Context, ts *topo.Server, args []string, m *topodatapb.SrvKeyspace) error {
	return ts.UpdateSrvKeyspace(ctx, args[0], args[1], m)
}

func updateSrvVSchema(ctx context.Context, ts *topo.Server, args []string, m *vschemapb.SrvVSchema) error {
	return ts.UpdateSrvVSchema(ctx, args[0], m)
}

func recordCommands() []*cobra.Command {
	names := make([]string, 0, len(kinds))
	for name, kind := range kinds {
		names = append(names, strings.TrimSpace(name+" "+strings.Join(kind.args, " ")))
	}
	slices.Sort(names)
	known := "kinds:\n  " + strings.Join(names, "\n  ") + "\n  metadata KEY (text, not JSON)"
	create := command("create KIND NAME...", "creates a record from the JSON on standard input", cobra.MinimumNArgs(1),
		func(ctx context.Context, ts *topo.Server, args []string) error {
			return write(ctx, ts, args, func(kind kind) writer { return kind.create })
		})
	update := command("update KIND NAME...", "makes a record what the JSON on standard input says", cobra.MinimumNArgs(1),
		func(ctx context.Context, ts *topo.Server, args []string) error {
			return write(ctx, ts, args, func(kind kind) writer { return kind.update })
		})
	read := command("read KIND NAME...", "prints a record as JSON", cobra.MinimumNArgs(1), read)
	for _, cmd := range []*cobra.Command{create, update, read} {
		cmd.Long = cmd.Short + "\n\n" + known
	}
	return []*cobra.Command{create, update, read}
}

type writer = func(ctx context.Context, ts *topo.Server, args []string, message proto.Message) error

const metadata = "metadata"

func find(args []string) (kind, []string, error) {
	kind, ok := kinds[args[0]]
	if !ok || len(args)-1 != len(kind.args) {
		return kind, nil, fmt.Errorf("%s: see --help", strings.Join(args, " "))
	}
	return kind, args[1:], nil
}

func write(ctx context.Context, ts *topo.Server, args []string, how func(kind) writer) error {
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if args[0] == metadata && len(args) == 2 {
		return ts.UpsertMetadata(ctx, args[1], string(data))
	}
	kind, args, err := find(args)
	if err != nil {
		return err
	}
	message := proto.Clone(kind.message)
	if err := protojson.Unmarshal(data, message); err != nil {
		return err
	}
	return how(kind)(ctx, ts, args, message)
}

func read(ctx context.Context, ts *topo.Server, args []string) error {
	if args[0] == metadata && len(args) == 2 {
		values, err := ts.GetMetadata(ctx, args[1])
		fmt.Print(values[args[1]])
		return err
	}
	kind, args, err := find(args)
	if err != nil {
		return err
	}
	message, err := kind.read(ctx, ts, args)
	if err != nil {
		return err
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true, Multiline: true}.Marshal(message)
	if err == nil {
		fmt.Println(string(text))
	}
	return err
}
