package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"vitess.io/vitess/go/vt/topo"
)

// holding says how long and how often a lock is held.
type holding struct {
	hold, check time.Duration
	times       int
	section     string
}

func (h *holding) flags(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&h.hold, "hold", 0, "how long it is held; a signal ends it earlier")
	cmd.Flags().DurationVar(&h.check, "check", 0, "asks so often whether it is lost; asking renews it on etcd")
	cmd.Flags().IntVar(&h.times, "times", 1, "how often it is taken")
	cmd.Flags().StringVar(&h.section, "section", "",
		"a file to which `enter PID` and `leave PID` are added while it is held")
}

// say prints at once.
func say(what string, more ...any) { fmt.Println(append([]any{what}, more...)...) }

// inside is what is done while a lock is held.
func (h *holding) inside(ctx context.Context, lost func() error) error {
	if err := h.note("enter"); err != nil {
		return err
	}
	end, stop := context.WithTimeout(ctx, h.hold)
	defer stop()
	for h.check > 0 && end.Err() == nil {
		if err := lost(); err != nil {
			say("lost", err)
			return err
		}
		select {
		case <-end.Done():
		case <-time.After(h.check):
		}
	}
	<-end.Done()
	return h.note("leave")
}

func (h *holding) note(what string) error {
	if h.section == "" {
		return nil
	}
	f, err := os.OpenFile(h.section, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, what, os.Getpid())
	return err
}

func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
}

// takeLock takes the lock of a resource; the returned functions tell whether it is lost, and give it back.
func takeLock(
	ctx context.Context, ts *topo.Server, args []string, action string, opts ...topo.LockOption,
) (func() error, func(*error), error) {
	var locked context.Context
	var unlock func(*error)
	var check func(context.Context) error
	var err error
	switch {
	case args[0] == "keyspace" && len(args) == 2:
		locked, unlock, err = ts.LockKeyspace(ctx, args[1], action, opts...)
		check = func(ctx context.Context) error { return topo.CheckKeyspaceLocked(ctx, args[1]) }
	case args[0] == "shard" && len(args) == 3:
		locked, unlock, err = ts.LockShard(ctx, args[1], args[2], action, opts...)
		check = func(ctx context.Context) error { return topo.CheckShardLocked(ctx, args[1], args[2]) }
	case args[0] == "routing-rules" && len(args) == 1:
		locked, unlock, err = ts.LockRoutingRules(ctx, action, opts...)
		check = topo.CheckRoutingRulesLocked
	case args[0] == "name" && len(args) == 2:
		locked, unlock, err = ts.LockName(ctx, args[1], action)
		check = func(ctx context.Context) error { return topo.CheckNameLocked(ctx, args[1]) }
	default:
		return nil, nil, fmt.Errorf("%v: see --help", args)
	}
	return func() error { return check(locked) }, unlock, err
}

func lockCommand() *cobra.Command {
	var h holding
	var try bool
	var action string
	cmd := command("lock keyspace KS | shard KS SHARD | routing-rules | name NAME",
		"takes a lock; prints `acquired`, and `lost` or `released`", cobra.MinimumNArgs(1),
		func(_ context.Context, ts *topo.Server, args []string) (err error) {
			ctx, stop := interruptible()
			defer stop()
			var opts []topo.LockOption
			if try {
				opts = append(opts, topo.WithType(topo.NonBlocking))
			}
			for range h.times {
				lost, unlock, err := takeLock(ctx, ts, args, action, opts...)
				if err != nil {
					return err
				}
				say("acquired")
				err = h.inside(ctx, lost)
				if unlock(&err); err != nil {
					return err
				}
				say("released")
			}
			return nil
		})
	h.flags(cmd)
	cmd.Flags().BoolVar(&try, "try", false, "fails if it is held")
	cmd.Flags().StringVar(&action, "action", "vtopo", "the reason that others see")
	return cmd
}

func electCommand() *cobra.Command {
	var h holding
	cmd := command("elect NAME ID",
		"takes part in an election; prints `leader`, and `lost` or `stopped`",
		cobra.ExactArgs(2),
		func(_ context.Context, ts *topo.Server, args []string) error {
			ctx, stop := interruptible()
			defer stop()
			conn, err := ts.ConnForCell(ctx, topo.GlobalCell)
			if err != nil {
				return err
			}
			for range h.times {
				participation, err := conn.NewLeaderParticipation(args[0], args[1])
				if err != nil {
					return err
				}
				// It must be called once.
				stop := sync.OnceFunc(participation.Stop)
				context.AfterFunc(ctx, stop)
				led, err := participation.WaitForLeadership()
				if err != nil {
					return err
				}
				say("leader")
				err = h.inside(ctx, led.Err)
				stop()
				if err != nil {
					return err
				}
				say("stopped")
			}
			return nil
		})
	h.flags(cmd)
	return cmd
}

func leaderCommand() *cobra.Command {
	return command("leader NAME", "prints who leads", cobra.ExactArgs(1),
		func(ctx context.Context, ts *topo.Server, args []string) error {
			conn, err := ts.ConnForCell(ctx, topo.GlobalCell)
			if err != nil {
				return err
			}
			participation, err := conn.NewLeaderParticipation(args[0], "nobody")
			if err != nil {
				return err
			}
			id, err := participation.GetCurrentLeaderID(ctx)
			if err == nil {
				fmt.Println(id)
			}
			return err
		})
}
