package mounttopo

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"vitess.io/vitess/go/vt/topo"
)

// held is a locked `.lock`.
type held struct {
	file *os.File
	dir  string
	over atomic.Bool
}

func (c *conn) lock(ctx context.Context, dir, contents string, try bool) (topo.LockDescriptor, error) {
	// What the mount wants to be told is the action; the rest it knows itself.
	var known struct{ Action string }
	if json.Unmarshal([]byte(contents), &known) == nil && known.Action != "" {
		contents = known.Action
	}
	f, err := c.openLock(dir, contents)
	if err != nil {
		return nil, err
	}
	if try {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	} else {
		err = wait(ctx, f)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, topo.NewError(topo.NodeExists, "lock already exists at path "+dir)
		}
		return nil, convert(err, dir)
	}
	return &held{file: f, dir: dir}, nil
}

// openLock opens the lock of a directory, and says why.
func (c *conn) openLock(dir, reason string) (*os.File, error) {
	f, err := os.OpenFile(c.file(dir)+"/"+lockFile, os.O_RDWR, 0)
	if err != nil {
		return nil, convert(err, dir)
	}
	if _, err := f.WriteString(reason + "\n"); err != nil {
		f.Close()
		return nil, convert(err, dir)
	}
	return f, nil
}

// wait waits for a lock until ctx ends. A thread of its own waits, so that a signal can end its call.
func wait(ctx context.Context, f *os.File) error {
	const again = 20 * time.Millisecond
	thread, done := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// A thread that ends would take along the children that were started from it and are bound to their parent.
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if err != unix.EINTR || ctx.Err() != nil {
				done <- err
				return
			}
		}
	}()
	waiter := <-thread
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	for {
		select {
		case err := <-done:
			if err == nil {
				// It came at the same moment. The file is closed on an error, and the lock goes with it.
				err = ctx.Err()
			}
			return errors.Join(ctx.Err(), err)
		case <-time.After(again):
			// Go's own signal for such things: handled, and nothing else happens. The thread may be gone by now.
			_ = unix.Tgkill(unix.Getpid(), waiter, unix.SIGURG)
		}
	}
}

// Check is part of topo.LockDescriptor.
func (h *held) Check(context.Context) error {
	_, err := h.file.ReadAt(make([]byte, 1), 0)
	if errors.Is(err, unix.EIO) {
		return topo.NewError(topo.NoNode, h.dir+"/"+lockFile)
	}
	return nil
}

// Unlock is part of topo.LockDescriptor.
func (h *held) Unlock(context.Context) error {
	if h.over.Swap(true) {
		return topo.NewError(topo.NoNode, h.dir+"/"+lockFile)
	}
	err := unix.Flock(int(h.file.Fd()), unix.LOCK_UN)
	return convert(errors.Join(err, h.file.Close()), h.dir)
}
