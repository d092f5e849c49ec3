//! A mount by the real program.

use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{DEADLINE, bash_in, bound_command, eventually, eventually_within, spawn_bound, text};

pub const TOPOFS: &str = env!("CARGO_BIN_EXE_topofs");

pub struct Mount {
    work: TempDir,
    daemon: Child,
    /// The directory that a test works in.
    inside: PathBuf,
}

impl Mount {
    /// `topofs ARGS --foreground MOUNTPOINT`, once it answers.
    pub fn new(args: &[&str]) -> Self {
        Self::under(&[TOPOFS], args)
    }

    /// The same by another program, which becomes topofs.
    pub fn under(program: &[&str], args: &[&str]) -> Self {
        let work = tempfile::tempdir().unwrap();
        // For other users, too.
        std::fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir(work.path().join("m")).unwrap();
        let mut command = bound_command(program[0]);
        command.args(&program[1..]);
        let log = std::fs::File::create(work.path().join("log")).unwrap();
        command.args(args).arg("--foreground").arg(work.path().join("m")).stdout(Stdio::null()).stderr(log);
        let daemon = spawn_bound(command);
        let mut mount = Self { work, daemon, inside: PathBuf::new() };
        // A large cell is loaded before it answers; one that has failed ends at once.
        eventually_within(4 * DEADLINE, "the mount answers", || {
            assert!(mount.daemon.try_wait().unwrap().is_none(), "topofs has ended: {}", mount.log());
            mount.root().join("global").exists().then_some(())
        });
        mount
    }

    /// Of a topology in an etcd.
    pub fn etcd(endpoint: &str, root: &str, flags: &[&str]) -> Self {
        Self::of("etcd2", endpoint, root, flags)
    }

    /// Of a topology in any service.
    pub fn of(implementation: &str, server: &str, root: &str, flags: &[&str]) -> Self {
        Self::of_under(&[TOPOFS], implementation, server, root, flags)
    }

    /// The same by another program, which becomes topofs.
    pub fn of_under(program: &[&str], implementation: &str, server: &str, root: &str, flags: &[&str]) -> Self {
        let global = format!("{root}/global");
        let place = ["--topo-global-server-address", server, "--topo-global-root", &global];
        Self::under(program, &[&["mount", "--topo-implementation", implementation], &place[..], flags].concat())
    }

    /// The same, but the test works in a stage.
    pub fn staged(mut self) -> Self {
        self.inside = ".topofs/stage/s".into();
        std::fs::create_dir(self.root()).unwrap();
        self
    }

    pub fn point(&self) -> PathBuf {
        self.work.path().join("m")
    }

    pub fn root(&self) -> PathBuf {
        // Without a slash at the end, if it is the mount itself.
        self.point().join(&self.inside).components().collect()
    }

    /// The content of a file of `.topofs`.
    pub fn control(&self, file: &str) -> String {
        std::fs::read_to_string(self.point().join(".topofs").join(file)).unwrap()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// A directory outside of the mount that goes with it.
    pub fn outside(&self) -> &Path {
        self.work.path()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.work.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    pub fn read(&self, path: &str) -> String {
        let bytes = std::fs::read(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()));
        String::from_utf8(bytes).unwrap()
    }

    /// Runs a script with the mount as its directory.
    pub fn bash(&self, script: &str) -> Output {
        bash_in(&self.root(), script)
    }

    /// The output of a script that must succeed.
    pub fn sh(&self, script: &str) -> String {
        let output = self.bash(&format!("set -e; {script}"));
        assert!(output.status.success(), "{script}: {}\n{}\nlog:\n{}", output.status, text(&output), self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The status. On a read-only mount it may be met in the moment in which it changes.
    pub fn status(&self) -> Value {
        eventually("a whole status", || serde_json::from_str(&self.control("status")).ok())
    }

    /// The lines of `.topofs/errors`.
    pub fn errors(&self) -> Vec<Value> {
        self.control("errors").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn xattr(&self, path: &str, name: &str) -> Option<String> {
        let output = self.bash(&format!("getfattr --only-values -n {name} {path}"));
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    pub fn version(&self, path: &str) -> u64 {
        self.xattr(path, "user.topo.version").expect("the record has a version").parse().unwrap()
    }

    /// Ends the daemon as systemd would, and returns its log.
    pub fn stop(self) -> String {
        super::signal(self.pid(), nix::sys::signal::Signal::SIGTERM);
        self.ended()
    }

    /// Waits until the daemon has ended as it should, and returns its log.
    pub fn ended(mut self) -> String {
        let status = eventually("topofs ends", || self.daemon.try_wait().unwrap());
        assert!(status.success(), "{status}: {}", self.log());
        assert!(!is_mounted(&self.point()), "the mount is left behind");
        self.log()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.point(), nix::mount::MntFlags::MNT_DETACH);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if std::thread::panicking() {
            eprintln!("log of the mount:\n{}", self.log());
        }
    }
}

/// Writes a file whose record this process has read before, perhaps in an older version: that it hears once.
pub fn write_knowingly(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    match std::fs::write(&path, &content) {
        Err(error) if error.raw_os_error() == Some(libc::ESTALE) => std::fs::write(&path, &content).unwrap(),
        outcome => outcome.unwrap(),
    }
}

pub fn is_mounted(path: &Path) -> bool {
    // Anybody's mount point may be any bytes.
    let mounts = std::fs::read("/proc/self/mounts").unwrap();
    String::from_utf8_lossy(&mounts).lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

/// A program whose lines are waited for.
pub struct Lines {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

/// Starts a program that prints lines.
pub fn lines(mut command: std::process::Command) -> Lines {
    use std::io::BufRead;
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let out = std::io::BufReader::new(child.stdout.take().unwrap());
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    Lines { child, lines }
}

impl Lines {
    pub fn next(&self) -> String {
        self.lines.recv_timeout(super::DEADLINE).expect("a line in time")
    }

    /// One that is there already.
    pub fn try_next(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
