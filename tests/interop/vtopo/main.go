// vtopo is a command line over Vitess's own topology library: what Vitess does and sees, from a shell. With
// `--topo-implementation mount` and a mount point as the address it works through the files of a topofs mount.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"vitess.io/vitess/go/vt/logutil"
	"vitess.io/vitess/go/vt/servenv"
	"vitess.io/vitess/go/vt/topo"
	_ "vitess.io/vitess/go/vt/topo/consultopo"
	_ "vitess.io/vitess/go/vt/topo/etcd2topo"
	_ "vitess.io/vitess/go/vt/topo/zk2topo"
	"vitess.io/vitess/go/vt/topotools"

	_ "topofs/interop/mounttopo"
)

// run is what a command does with an open topology.
type run func(ctx context.Context, ts *topo.Server, args []string) error

func command(use, short string, args cobra.PositionalArgs, body run) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		ts := topo.Open()
		defer ts.Close()
		return body(cmd.Context(), ts, args)
	}}
}

func main() {
	root := &cobra.Command{Use: "vtopo", SilenceUsage: true, Short: "Vitess's own topology library, from a shell"}
	// The flags of all its parts, under the names that they have in Vitess's programs.
	root.PersistentFlags().AddFlagSet(servenv.GetFlagSetFor("vtctld"))
	root.AddCommand(recordCommands()...)
	root.AddCommand(lockCommand(), electCommand(), leaderCommand(), watchCommand(), watchRecursiveCommand())
	root.AddCommand(
		command("list CELL DIR", "lists a directory", cobra.ExactArgs(2), list),
		command("get CELL PATH", "prints what is stored, as it is", cobra.ExactArgs(2), get),
		command("version CELL PATH", "prints the version", cobra.ExactArgs(2), version),
		command("put CELL PATH", "stores standard input, as it is", cobra.ExactArgs(2), put),
		command("delete CELL PATH", "deletes", cobra.ExactArgs(2), remove),
		catCommand(),
		command("rebuild-keyspace-graph KEYSPACE", "RebuildKeyspaceGraph", cobra.ExactArgs(1), rebuildKeyspace),
		command("rebuild-vschema-graph", "RebuildVSchemaGraph", cobra.NoArgs, rebuildVSchema),
		command("delete-cell-info CELL", "DeleteCellInfo", cobra.ExactArgs(1), deleteCellInfo),
		command("cells", "GetCellInfoNames", cobra.NoArgs, cells),
	)
	if err := root.ExecuteContext(context.Background()); err != nil {
		os.Exit(1)
	}
}

func list(ctx context.Context, ts *topo.Server, args []string) error {
	conn, err := ts.ConnForCell(ctx, args[0])
	if err != nil {
		return err
	}
	entries, err := conn.ListDir(ctx, args[1], true)
	for _, entry := range entries {
		fmt.Println(entry.Name)
	}
	return err
}

func get(ctx context.Context, ts *topo.Server, args []string) error {
	data, _, err := stored(ctx, ts, args)
	if err == nil {
		_, err = os.Stdout.Write(data)
	}
	return err
}

func version(ctx context.Context, ts *topo.Server, args []string) error {
	_, version, err := stored(ctx, ts, args)
	if err == nil {
		fmt.Println(version)
	}
	return err
}

func stored(ctx context.Context, ts *topo.Server, args []string) ([]byte, topo.Version, error) {
	conn, err := ts.ConnForCell(ctx, args[0])
	if err != nil {
		return nil, nil, err
	}
	return conn.Get(ctx, args[1])
}

func put(ctx context.Context, ts *topo.Server, args []string) error {
	conn, err := ts.ConnForCell(ctx, args[0])
	if err != nil {
		return err
	}
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	_, err = conn.Update(ctx, args[1], data, nil)
	return err
}

func remove(ctx context.Context, ts *topo.Server, args []string) error {
	conn, err := ts.ConnForCell(ctx, args[0])
	if err != nil {
		return err
	}
	return conn.Delete(ctx, args[1], nil)
}

func catCommand() *cobra.Command {
	var asJSON bool
	cmd := command("cat CELL PATH", "prints what Vitess's own DecodeContent makes of it", cobra.ExactArgs(2),
		func(ctx context.Context, ts *topo.Server, args []string) error {
			data, _, err := stored(ctx, ts, args)
			if err != nil {
				return err
			}
			text, err := topo.DecodeContent("/"+args[1], data, asJSON)
			if err == nil {
				fmt.Println(text)
			}
			return err
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON, not as text")
	return cmd
}

func rebuildKeyspace(ctx context.Context, ts *topo.Server, args []string) error {
	return topotools.RebuildKeyspace(ctx, logutil.NewConsoleLogger(), ts, args[0], nil, false)
}

func rebuildVSchema(ctx context.Context, ts *topo.Server, _ []string) error {
	return ts.RebuildSrvVSchema(ctx, nil)
}

func deleteCellInfo(ctx context.Context, ts *topo.Server, args []string) error {
	return ts.DeleteCellInfo(ctx, args[0], false)
}

func cells(ctx context.Context, ts *topo.Server, _ []string) error {
	names, err := ts.GetCellInfoNames(ctx)
	for _, name := range names {
		fmt.Println(name)
	}
	return err
}
