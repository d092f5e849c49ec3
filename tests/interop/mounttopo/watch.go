package mounttopo

import (
	"context"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"

	"github.com/fsnotify/fsnotify"
	"vitess.io/vitess/go/vt/topo"
)

// Watch is part of topo.Conn: inotify on the directory.
func (c *conn) Watch(ctx context.Context, name string) (*topo.WatchData, <-chan *topo.WatchData, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, nil, err
	}
	if err := watcher.Add(filepath.Dir(c.file(name))); err != nil {
		watcher.Close()
		return nil, nil, convert(err, name)
	}
	get := func() *topo.WatchData {
		contents, v, err := c.Get(ctx, name)
		return &topo.WatchData{Contents: contents, Version: v, Err: err}
	}
	first := get()
	if first.Err != nil {
		watcher.Close()
		return nil, nil, first.Err
	}
	changes := make(chan *topo.WatchData, 10)
	go func() {
		defer close(changes)
		defer watcher.Close()
		last := first
		for last.Err == nil {
			if !c.next(ctx, watcher) {
				changes <- &topo.WatchData{Err: topo.NewError(topo.Interrupted, name)}
				return
			}
			if now := get(); now.Err != nil || now.Version.String() != last.Version.String() {
				changes <- now
				last = now
			}
		}
	}()
	return first, changes, nil
}

// next waits until something has happened; false if nobody wants to know any more. What was missed is no harm:
// everything is looked at again.
func (c *conn) next(ctx context.Context, watcher *fsnotify.Watcher) bool {
	select {
	case <-ctx.Done():
		return false
	case <-c.closed.Done():
		return false
	case <-watcher.Events:
	case <-watcher.Errors:
	}
	return true
}

// WatchRecursive is part of topo.Conn: inotify on all directories below.
func (c *conn) WatchRecursive(
	ctx context.Context, dir string,
) ([]*topo.WatchDataRecursive, <-chan *topo.WatchDataRecursive, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, nil, err
	}
	// The directories first: what comes after that is an event.
	scan := func() (map[string]*topo.WatchDataRecursive, error) {
		err := filepath.WalkDir(c.file(dir), func(name string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				// One that has gone meanwhile needs none.
				_ = watcher.Add(name)
			}
			return nil
		})
		found := map[string]*topo.WatchDataRecursive{}
		if err != nil {
			return found, err
		}
		err = c.walk(dir, func(name string) error {
			contents, v, err := c.Get(ctx, name)
			if topo.IsErrType(err, topo.NoNode) {
				return nil
			}
			data := topo.WatchData{Contents: contents, Version: v}
			found[name] = &topo.WatchDataRecursive{Path: path.Clean(name), WatchData: data}
			return err
		})
		return found, err
	}
	known, err := scan()
	if err != nil || len(known) == 0 {
		watcher.Close()
		if err == nil {
			err = fs.ErrNotExist
		}
		return nil, nil, convert(err, dir)
	}
	first := slices.Collect(maps.Values(known))
	changes := make(chan *topo.WatchDataRecursive, 10)
	go func() {
		defer close(changes)
		defer watcher.Close()
		for c.next(ctx, watcher) {
			now, err := scan()
			if err != nil {
				changes <- &topo.WatchDataRecursive{Path: dir, WatchData: topo.WatchData{Err: convert(err, dir)}}
				return
			}
			for name, data := range now {
				if before, ok := known[name]; !ok || before.Version.String() != data.Version.String() {
					changes <- data
				}
			}
			for name := range known {
				if _, ok := now[name]; !ok {
					gone := topo.WatchData{Err: topo.NewError(topo.NoNode, name)}
					changes <- &topo.WatchDataRecursive{Path: name, WatchData: gone}
				}
			}
			known = now
		}
		changes <- &topo.WatchDataRecursive{Path: dir, WatchData: topo.WatchData{Err: topo.NewError(topo.Interrupted, dir)}}
	}()
	return first, changes, nil
}
