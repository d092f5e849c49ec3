// Package mounttopo is a Vitess topology implementation that works only through the files of a topofs mount: whatever
// Vitess does over it, a script could do. The address of the global server is the mount point.
package mounttopo

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"vitess.io/vitess/go/vt/topo"
)

const (
	// Implementation is the name under which Vitess finds it.
	Implementation = "mount"
	lockFile       = ".lock"
	versionXattr   = "user.topo.version"
)

func init() {
	topo.RegisterFactory(Implementation, &Factory{})
}

// Factory makes connections to the cells of one mount.
type Factory struct {
	mu    sync.Mutex
	mount string
}

// HasGlobalReadOnlyCell is part of topo.Factory.
func (*Factory) HasGlobalReadOnlyCell(string, string) bool { return false }

// Create is part of topo.Factory. The global topology comes first, and its address is the mount point; where the other
// cells are, the mount knows.
func (f *Factory) Create(cell, serverAddr, _ string) (topo.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if cell == topo.GlobalCell {
		f.mount = serverAddr
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &conn{root: filepath.Join(f.mount, cell), closed: ctx, close: cancel}
	if _, err := os.Stat(c.root); err != nil {
		cancel()
		return nil, convert(err, cell)
	}
	return c, nil
}

type conn struct {
	root   string
	closed context.Context
	close  context.CancelFunc
}

// Version is what the extended attribute says.
type Version string

func (v Version) String() string { return string(v) }

func (c *conn) file(name string) string { return filepath.Join(c.root, name) }

// convert turns what a system call says into what Vitess says.
func convert(err error, node string) error {
	var code topo.ErrorCode
	switch {
	case err == nil:
		return nil
	// An open file whose record is gone has no version any more.
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENODATA):
		code = topo.NoNode
	case errors.Is(err, unix.EEXIST):
		code = topo.NodeExists
	case errors.Is(err, unix.ESTALE):
		code = topo.BadVersion
	case errors.Is(err, unix.ENOTEMPTY):
		code = topo.NodeNotEmpty
	case errors.Is(err, unix.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded):
		code = topo.Timeout
	case errors.Is(err, unix.EINTR), errors.Is(err, context.Canceled):
		code = topo.Interrupted
	default:
		return err
	}
	return topo.NewError(code, node)
}

func version(f *os.File) (Version, error) {
	value := make([]byte, 64)
	n, err := unix.Fgetxattr(int(f.Fd()), versionXattr, value)
	if err != nil {
		return "", err
	}
	return Version(value[:n]), nil
}

// ListDir is part of topo.Conn. Locks are no entries; what exists by being locked is ephemeral.
func (c *conn) ListDir(_ context.Context, dir string, full bool) ([]topo.DirEntry, error) {
	found, err := os.ReadDir(c.file(dir))
	if err != nil {
		return nil, convert(err, dir)
	}
	var entries []topo.DirEntry
	for _, entry := range found {
		if entry.Name() == lockFile {
			continue
		}
		e := topo.DirEntry{Name: entry.Name()}
		if full {
			if !entry.IsDir() {
				e.Type = topo.TypeFile
			}
			e.Ephemeral = c.file(dir) == c.root && (entry.Name() == "elections" || entry.Name() == "internal")
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// Create is part of topo.Conn.
func (c *conn) Create(_ context.Context, name string, contents []byte) (topo.Version, error) {
	return c.write(name, contents, os.O_CREATE|os.O_EXCL, nil)
}

// Update is part of topo.Conn.
func (c *conn) Update(_ context.Context, name string, contents []byte, known topo.Version) (topo.Version, error) {
	if known != nil {
		return c.write(name, contents, 0, known)
	}
	for {
		stored, err := c.write(name, contents, os.O_CREATE, nil)
		// Somebody was faster; whatever they stored is to be replaced.
		if !topo.IsErrType(err, topo.BadVersion) {
			return stored, err
		}
	}
}

func (c *conn) write(name string, contents []byte, flags int, known topo.Version) (topo.Version, error) {
	f, err := c.open(name, os.O_RDWR|flags)
	if err != nil {
		return nil, convert(err, name)
	}
	defer f.Close()
	if known != nil {
		// Not older than what the open file will be compared with.
		if now, err := version(f); err != nil || now.String() != known.String() {
			return nil, topo.NewError(topo.BadVersion, name)
		}
	}
	if flags&os.O_EXCL == 0 {
		if err := f.Truncate(0); err != nil {
			return nil, convert(err, name)
		}
	}
	if _, err := f.Write(contents); err != nil {
		return nil, convert(err, name)
	}
	if err := f.Sync(); err != nil {
		return nil, convert(err, name)
	}
	stored, err := version(f)
	if err != nil {
		return nil, convert(err, name)
	}
	return stored, nil
}

// open makes the directories above, too, if the file may be made.
func (c *conn) open(name string, flags int) (*os.File, error) {
	for {
		f, err := os.OpenFile(c.file(name), flags, 0o644)
		if flags&os.O_CREATE == 0 || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		if err := os.MkdirAll(filepath.Dir(c.file(name)), 0o755); err != nil {
			return nil, err
		}
	}
}

// Get is part of topo.Conn.
func (c *conn) Get(_ context.Context, name string) ([]byte, topo.Version, error) {
	for {
		f, err := os.Open(c.file(name))
		if err != nil {
			return nil, nil, convert(err, name)
		}
		contents, v, err := read(f)
		f.Close()
		switch {
		case errors.Is(err, errChanged):
		case errors.Is(err, unix.EISDIR):
			return nil, nil, topo.NewError(topo.NoNode, name)
		case err != nil:
			return nil, nil, convert(err, name)
		default:
			return contents, v, nil
		}
	}
}

var errChanged = errors.New("changed while it was read")

func read(f *os.File) ([]byte, topo.Version, error) {
	before, err := version(f)
	if err != nil {
		if info, statErr := f.Stat(); statErr == nil && info.IsDir() {
			err = unix.EISDIR
		}
		return nil, nil, err
	}
	contents, err := os.ReadFile(f.Name())
	if err != nil {
		return nil, nil, err
	}
	after, err := version(f)
	if err != nil {
		return nil, nil, err
	}
	if before != after {
		return nil, nil, errChanged
	}
	return contents, after, nil
}

// GetVersion is part of topo.Conn.
func (*conn) GetVersion(context.Context, string, int64) ([]byte, error) {
	return nil, topo.NewError(topo.NoImplementation, "GetVersion")
}

// List is part of topo.Conn.
func (c *conn) List(ctx context.Context, prefix string) ([]topo.KVInfo, error) {
	prefix = strings.TrimSuffix(path.Join("/", prefix), "/")
	var all []topo.KVInfo
	err := c.walk("/", func(name string) error {
		if !strings.HasPrefix(name, prefix) {
			return nil
		}
		contents, v, err := c.Get(ctx, name)
		if topo.IsErrType(err, topo.NoNode) {
			return nil
		}
		all = append(all, topo.KVInfo{Key: []byte(name), Value: contents, Version: v})
		return err
	})
	if err != nil {
		return nil, convert(err, prefix)
	}
	if len(all) == 0 {
		return nil, topo.NewError(topo.NoNode, prefix)
	}
	return all, nil
}

// walk goes through all records below a directory, in order of their names.
func (c *conn) walk(dir string, visit func(name string) error) error {
	return filepath.WalkDir(c.file(dir), func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case entry.IsDir() || entry.Name() == lockFile:
			return nil
		}
		return visit(strings.TrimPrefix(name, c.root))
	})
}

// Delete is part of topo.Conn. Directories that it empties go with it.
func (c *conn) Delete(_ context.Context, name string, known topo.Version) error {
	if known != nil {
		f, err := os.Open(c.file(name))
		if err != nil {
			return convert(err, name)
		}
		now, err := version(f)
		f.Close()
		if err != nil || now.String() != known.String() {
			return topo.NewError(topo.BadVersion, name)
		}
	}
	if err := unix.Unlink(c.file(name)); err != nil {
		return convert(err, name)
	}
	for dir := filepath.Dir(c.file(name)); dir != c.root && unix.Rmdir(dir) == nil; dir = filepath.Dir(dir) {
	}
	return nil
}

// Lock is part of topo.Conn.
func (c *conn) Lock(ctx context.Context, dir, contents string) (topo.LockDescriptor, error) {
	return c.lock(ctx, dir, contents, false)
}

// LockWithTTL is part of topo.Conn. How long a lock outlives its holder is a flag of the mount.
func (c *conn) LockWithTTL(ctx context.Context, dir, contents string, _ time.Duration) (topo.LockDescriptor, error) {
	return c.lock(ctx, dir, contents, false)
}

// LockName is part of topo.Conn.
func (c *conn) LockName(ctx context.Context, dir, contents string) (topo.LockDescriptor, error) {
	return c.lock(ctx, dir, contents, false)
}

// TryLock is part of topo.Conn.
func (c *conn) TryLock(ctx context.Context, dir, contents string) (topo.LockDescriptor, error) {
	return c.lock(ctx, dir, contents, true)
}

// Close is part of topo.Conn.
func (c *conn) Close() { c.close() }
