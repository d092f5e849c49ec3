package mounttopo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"

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

// wait waits for a lock until ctx ends, as a script would: flock(1) takes it on a file that both have open, and can be
// killed while it waits. Go handles signals so that the kernel starts flock(2) again after them; nothing ends such a
// call in this process.
func wait(ctx context.Context, f *os.File) error {
	done := make(chan error, 1)
	go func() {
		// The child is to die with this process; the kernel takes the thread that started it for its parent.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.CommandContext(ctx, "flock", "3")
		cmd.ExtraFiles = []*os.File{f}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil {
			done <- fmt.Errorf("%w: %s", err, out)
			return
		}
		done <- nil
	}()
	err := <-done
	if ctx.Err() != nil {
		// It may have come at the same moment. The file is closed on an error, and the lock goes with it.
		return ctx.Err()
	}
	return err
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
