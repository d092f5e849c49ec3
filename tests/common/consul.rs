//! A real Consul, started by scripts/consul.

use std::process::Command;
use std::sync::LazyLock;

use super::eventually;
use super::server::{Server, free_port};

pub struct Consul(pub Server);

impl std::ops::Deref for Consul {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.0
    }
}

impl std::ops::DerefMut for Consul {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.0
    }
}

/// The one that the tests of a program share.
pub fn shared() -> &'static Consul {
    static SHARED: LazyLock<Consul> = LazyLock::new(Consul::start);
    &SHARED
}

impl Consul {
    pub fn start() -> Self {
        Self::with(Vec::new())
    }

    /// With flags of its own.
    pub fn with(flags: Vec<String>) -> Self {
        let mut server = Self(Server::new("consul", flags));
        let ports: Vec<String> = (0..3).map(|_| free_port().to_string()).collect();
        std::fs::write(server.dir().join("ports"), ports.join("\n")).unwrap();
        server.restart();
        server
    }

    /// Starts it again on its data and its port.
    pub fn restart(&mut self) {
        self.0.launch();
        eventually("Consul has a leader", || {
            self.0.look_after();
            self.curl(&["-f"], "status/leader").filter(|leader| leader.len() > 2)
        });
    }

    /// The answer of its HTTP API; `None` if there is none.
    pub fn curl(&self, args: &[&str], path: &str) -> Option<String> {
        let url = format!("http://{}/v1/{path}", self.endpoint());
        let output = Command::new("curl").args(["-s", "-m", "5"]).args(args).arg(url).output().expect("curl runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
