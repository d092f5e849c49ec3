// Package interop lets Vitess's own topology library judge topofs: on real servers, through real mounts.
// scripts/test-interop runs it.
package interop

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// deadline is how long anything may take that is waited for.
const deadline = 60 * time.Second

// programs are built by scripts/test-interop.
func program(t testing.TB, name string) string {
	t.Helper()
	file := os.Getenv(name)
	if file == "" {
		t.Fatalf("%s is not set: run scripts/test-interop", name)
	}
	return file
}

// eventually polls until it is so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v it is not so that %s", deadline, what)
		}
	}
}

// bound makes a program end with this one, whatever happens.
func bound(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// backend is a kind of service, with one server for all tests.
type backend struct {
	name   string
	script string
	// Whether waiters are served in the order in which they came.
	inOrder bool
	once    sync.Once
	address string
}

var (
	etcd      = &backend{name: "etcd2", script: "etcd", inOrder: true}
	zookeeper = &backend{name: "zk2", script: "zookeeper", inOrder: true}
	consul    = &backend{name: "consul", script: "consul"}
	memory    = &backend{name: "memory"}
	servers   = []*backend{etcd, zookeeper, consul}
	roots     atomic.Int64
	started   []func()
)

func TestMain(m *testing.M) {
	code := m.Run()
	for _, stop := range started {
		stop()
	}
	os.Exit(code)
}

// server is the address of the running server.
func (b *backend) server(t testing.TB) string {
	t.Helper()
	b.once.Do(func() {
		if b.script == "" {
			b.address = "interop"
			return
		}
		dir, err := os.MkdirTemp("", "interop")
		if err != nil {
			t.Fatal(err)
		}
		cmd := bound(exec.Command("../../scripts/"+b.script, dir))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		started = append(started, func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			os.RemoveAll(dir)
		})
		eventually(t, b.name+" answers", func() bool {
			text, err := os.ReadFile(filepath.Join(dir, "endpoint"))
			b.address = strings.TrimSpace(string(text))
			return err == nil && dial(b.address)
		})
	})
	return b.address
}

func dial(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// world is a topology of its own, and a mount of it.
type world struct {
	t       testing.TB
	backend *backend
	server  string
	root    string
	mount   string
	daemon  *exec.Cmd
	log     *bytes.Buffer
}

// newWorld mounts a new topology with one cell.
func newWorld(t testing.TB, b *backend, cell string, flags ...string) *world {
	t.Helper()
	w := &world{t: t, backend: b, server: b.server(t), log: new(bytes.Buffer)}
	w.root = fmt.Sprintf("/interop-%d", roots.Add(1))
	if b == consul {
		w.root = w.root[1:]
	}
	w.mount = t.TempDir()
	args := []string{
		"mount", "--foreground", "--topo-implementation", b.name,
		"--topo-global-server-address", w.server, "--topo-global-root", w.root + "/global",
	}
	w.daemon = bound(exec.Command(program(t, "TOPOFS"), append(append(args, flags...), w.mount)...))
	w.daemon.Stderr = w.log
	if b != memory {
		// It may listen before it serves.
		eventually(t, b.name+" stores", func() bool { return w.try("put global ready", "x") == nil })
		w.vtopo("delete global ready", "")
	}
	if err := w.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.end)
	eventually(t, "the mount answers", func() bool {
		_, err := os.Stat(w.path("global"))
		return err == nil && isMounted(w.mount)
	})
	if cell != "" {
		w.sh(fmt.Sprintf(`mkdir -p global/cells/%[1]s && `+
			`printf 'server_address: "%[2]s"\nroot: "%[3]s/%[1]s"\n' > global/cells/%[1]s/CellInfo.txt`,
			cell, w.server, w.root))
		if _, err := os.Stat(w.path(cell)); err != nil {
			t.Fatalf("the new cell is not there at once: %v", err)
		}
	}
	return w
}

func isMounted(dir string) bool {
	var inside, outside unix.Stat_t
	return unix.Stat(dir, &inside) == nil && unix.Stat(filepath.Dir(dir), &outside) == nil && inside.Dev != outside.Dev
}

func (w *world) end() {
	_ = unix.Unmount(w.mount, unix.MNT_DETACH)
	_ = w.daemon.Process.Kill()
	_ = w.daemon.Wait()
	if w.t.Failed() {
		w.t.Logf("log of the mount:\n%s", w.log)
	}
}

func (w *world) path(name string) string { return filepath.Join(w.mount, name) }

// read is what a file of the mount holds.
func (w *world) read(name string) string {
	w.t.Helper()
	data, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data)
}

// version is what the mount says of a record.
func (w *world) version(name string) string {
	w.t.Helper()
	value := make([]byte, 64)
	n, err := unix.Getxattr(w.path(name), "user.topo.version", value)
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	return string(value[:n])
}

// sh runs a script in the mount.
func (w *world) sh(script string) string {
	w.t.Helper()
	out, err := w.shell(script).Output()
	if err != nil {
		w.t.Fatalf("%s: %v\n%s", script, err, stderrOf(err))
	}
	return string(out)
}

func stderrOf(err error) string {
	if exit, ok := err.(*exec.ExitError); ok {
		return string(exit.Stderr)
	}
	return ""
}

func (w *world) shell(script string) *exec.Cmd {
	cmd := bound(exec.Command("bash", "-c", "set -e; "+script))
	cmd.Dir = w.mount
	return cmd
}

// command is a call of vtopo; args are separated by spaces.
func (w *world) command(args string, input string) *exec.Cmd {
	flags := []string{
		"--topo-implementation", w.backend.name,
		"--topo-global-server-address", w.server,
		"--topo-global-root", w.root + "/global",
	}
	cmd := bound(exec.Command(program(w.t, "VTOPO"), append(strings.Fields(args), flags...)...))
	cmd.Stdin = strings.NewReader(input)
	return cmd
}

// vtopo is what Vitess answers.
func (w *world) vtopo(args string, input string) string {
	w.t.Helper()
	out, err := w.command(args, input).Output()
	if err != nil {
		w.t.Fatalf("vtopo %s: %v\n%s", args, err, stderrOf(err))
	}
	return string(out)
}

// try is the same, where it may fail.
func (w *world) try(args string, input string) error {
	out, err := w.command(args, input).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// running is a program whose lines are read as they come.
type running struct {
	t     testing.TB
	cmd   *exec.Cmd
	lines chan string
	input io.WriteCloser
}

func start(t testing.TB, cmd *exec.Cmd) *running {
	t.Helper()
	cmd.Stderr = os.Stderr
	return startKeepingStderr(t, cmd)
}

func startKeepingStderr(t testing.TB, cmd *exec.Cmd) *running {
	t.Helper()
	cmd.Stdin = nil
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, cmd: cmd, lines: make(chan string, 10_000), input: input}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(r.lines)
		scanner := bufio.NewScanner(out)
		scanner.Buffer(nil, 1<<22)
		for scanner.Scan() {
			r.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	return r
}

// next is the next line.
func (r *running) next() string {
	r.t.Helper()
	select {
	case line, ok := <-r.lines:
		if !ok {
			r.t.Fatalf("%v has ended", r.cmd.Args)
		}
		return line
	case <-time.After(deadline):
		r.t.Fatalf("%v says nothing more", r.cmd.Args)
	}
	return ""
}

// until reads lines until one begins so.
func (r *running) until(prefix string) string {
	r.t.Helper()
	for {
		if line := r.next(); strings.HasPrefix(line, prefix) {
			return line
		}
	}
}

// ends waits for the end; the exit status must be 0.
func (r *running) ends() {
	r.t.Helper()
	for range r.lines {
	}
	if err := r.cmd.Wait(); err != nil {
		r.t.Fatalf("%v: %v", r.cmd.Args, err)
	}
}

func (r *running) kill(signal syscall.Signal) { _ = r.cmd.Process.Signal(signal) }

// onEach runs a test on each server.
func onEach(t *testing.T, backends []*backend, test func(t *testing.T, b *backend)) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) { test(t, b) })
	}
}

// contextOf ends with the test.
func contextOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
