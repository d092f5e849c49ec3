//! Somebody who watches a mount, as a program would.

use std::process::{Child, Command, Stdio};

use crate::common::eventually;
use crate::common::mount::Mount;

/// The event of a file that has been written and closed.
pub const CLOSED: &str = "CLOSE_WRITE,CLOSE";

/// `inotifywait` on a whole mount.
pub struct Watcher {
    child: Child,
    seen: std::path::PathBuf,
    root: String,
}

impl Watcher {
    /// Once it watches.
    pub fn new(mount: &Mount, dir: &str) -> Self {
        let seen = mount.outside().join("seen");
        let root = mount.path(dir).to_str().unwrap().to_owned();
        let (out, err) = (std::fs::File::create(&seen).unwrap(), mount.outside().join("ready"));
        let mut command = Command::new("inotifywait");
        let events = ["modify", "close_write", "create", "delete", "attrib", "moved_to"];
        command
            .args(["-m", "-r", "--format", "%e %w%f"])
            .args(events.iter().flat_map(|event| ["-e", event]))
            .arg(&root);
        let child =
            command.stdin(Stdio::null()).stdout(out).stderr(std::fs::File::create(&err).unwrap()).spawn().unwrap();
        eventually("it watches", || std::fs::read_to_string(&err).unwrap().contains("established").then_some(()));
        Self { child, seen, root }
    }

    /// What it has seen so far: event and path below the watched directory.
    pub fn seen(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(&self.seen).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().filter_map(|line| line.split_once(' '));
        lines.map(|(event, path)| (event.to_owned(), path.replacen(&format!("{}/", self.root), "", 1))).collect()
    }

    /// The events of a path, once there is a certain last one.
    pub fn until(&self, path: &str, last: &str) -> Vec<String> {
        eventually(&format!("{last} of {path}, seen: {:?}", self.seen()), || {
            let events: Vec<String> =
                self.seen().into_iter().filter(|(_, known)| known == path).map(|(event, _)| event).collect();
            (events.last().map(String::as_str) == Some(last)).then_some(events)
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
