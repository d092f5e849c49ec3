package main

import (
	"context"

	"github.com/spf13/cobra"
	"vitess.io/vitess/go/vt/topo"
)

func printWatched(path string, data *topo.WatchData) {
	switch {
	case data.Err != nil:
		say("error", path, data.Err)
	default:
		say("value", path, data.Version, string(data.Contents))
	}
}

func watchCommand() *cobra.Command {
	return command("watch CELL PATH", "prints each value of a record: `value PATH VERSION CONTENT`", cobra.ExactArgs(2),
		func(ctx context.Context, ts *topo.Server, args []string) error {
			conn, err := ts.ConnForCell(ctx, args[0])
			if err != nil {
				return err
			}
			first, changes, err := conn.Watch(ctx, args[1])
			if err != nil {
				return err
			}
			printWatched(args[1], first)
			for data := range changes {
				printWatched(args[1], data)
			}
			return nil
		})
}

func watchRecursiveCommand() *cobra.Command {
	return command("watch-recursive CELL DIR", "prints each value of all records below a directory", cobra.ExactArgs(2),
		func(ctx context.Context, ts *topo.Server, args []string) error {
			conn, err := ts.ConnForCell(ctx, args[0])
			if err != nil {
				return err
			}
			first, changes, err := conn.WatchRecursive(ctx, args[1])
			if err != nil {
				return err
			}
			for _, data := range first {
				printWatched(data.Path, &data.WatchData)
			}
			say("watching")
			for data := range changes {
				printWatched(data.Path, &data.WatchData)
			}
			return nil
		})
}
