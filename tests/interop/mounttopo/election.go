package mounttopo

import (
	"context"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"vitess.io/vitess/go/vt/topo"
)

// NewLeaderParticipation is part of topo.Conn.
func (c *conn) NewLeaderParticipation(name, id string) (topo.LeaderParticipation, error) {
	ctx, cancel := context.WithCancel(c.closed)
	return &participation{conn: c, dir: path.Join("elections", name), id: id, ctx: ctx, cancel: cancel}, nil
}

// participation holds the lock of the election while it leads.
type participation struct {
	conn    *conn
	dir     string
	id      string
	ctx     context.Context
	cancel  context.CancelFunc
	leading sync.WaitGroup
}

// WaitForLeadership is part of topo.LeaderParticipation.
func (p *participation) WaitForLeadership() (context.Context, error) {
	const look = 100 * time.Millisecond
	p.leading.Add(1)
	lock, err := p.conn.lock(p.ctx, p.dir, p.id, false)
	if err != nil {
		p.leading.Done()
		return nil, err
	}
	led, end := context.WithCancel(p.ctx)
	go func() {
		defer p.leading.Done()
		defer end()
		for lock.Check(p.ctx) == nil {
			select {
			case <-p.ctx.Done():
				_ = lock.Unlock(context.Background())
				return
			case <-time.After(look):
			}
		}
		_ = lock.Unlock(context.Background())
	}()
	return led, nil
}

// Stop is part of topo.LeaderParticipation.
func (p *participation) Stop() {
	p.cancel()
	p.leading.Wait()
}

// GetCurrentLeaderID is part of topo.LeaderParticipation.
func (p *participation) GetCurrentLeaderID(context.Context) (string, error) {
	id, err := os.ReadFile(p.lockFile())
	return strings.TrimSuffix(string(id), "\n"), convert(err, p.dir)
}

func (p *participation) lockFile() string { return p.conn.file(p.dir) + "/" + lockFile }

// WaitForNewLeader is part of topo.LeaderParticipation: inotify on the lock.
func (p *participation) WaitForNewLeader(ctx context.Context) (<-chan string, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := watcher.Add(p.lockFile()); err != nil {
		watcher.Close()
		return nil, convert(err, p.dir)
	}
	leaders := make(chan string, 8)
	last := ""
	look := func() {
		if id, err := p.GetCurrentLeaderID(ctx); err == nil && id != "" && id != last {
			last = id
			select {
			case leaders <- id:
			case <-ctx.Done():
			}
		}
	}
	// Who leads at the time of the call is told in any case, however soon somebody else does.
	look()
	go func() {
		defer close(leaders)
		defer watcher.Close()
		for p.conn.next(ctx, watcher) {
			look()
		}
	}()
	return leaders, nil
}
