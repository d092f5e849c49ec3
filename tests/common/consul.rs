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

/// A Consul that asks everybody for a token.
pub struct Guarded {
    pub server: Consul,
}

/// The token that may do anything.
pub const MASTER: &str = "b1gs3cret";
/// Rules that take nothing away, and such that take much.
pub const EVERYTHING: &str = r#"key_prefix "t/" { policy = "write" } session_prefix "" { policy = "write" }"#;
pub const READING: &str = r#"key_prefix "t/" { policy = "read" }"#;

impl Guarded {
    pub fn start() -> Self {
        let config = format!(
            r#"acl {{ enabled = true default_policy = "deny" tokens {{ master = "{MASTER}" agent = "{MASTER}" }} }}"#
        );
        let guarded = Self { server: Consul::with(vec!["-hcl".to_owned(), config]) };
        eventually("ACLs are there", || guarded.try_put("kv/t/global/metadata/owner", "team"));
        guarded
    }

    fn try_put(&self, path: &str, body: &str) -> Option<()> {
        let token = format!("X-Consul-Token: {MASTER}");
        let answer = self.server.curl(&["-f", "-H", &token, "-X", "PUT", "-d", body], path)?;
        (answer.trim() != "false").then_some(())
    }

    /// A change by the one who may do anything.
    pub fn put(&self, path: &str, body: &str) {
        self.try_put(path, body).unwrap_or_else(|| panic!("PUT {path} {body}"));
    }

    pub fn delete(&self, path: &str) {
        let token = format!("X-Consul-Token: {MASTER}");
        self.server.curl(&["-f", "-H", &token, "-X", "DELETE"], path).unwrap();
    }

    /// Makes a token with rules of its own, or gives it others. The secret is made of the number.
    pub fn rules(&self, number: u32, rules: &str) -> String {
        let secret = format!("{number:08}-1111-2222-3333-444444444444");
        let policy = serde_json::json!({ "Name": format!("p{number}"), "Rules": rules });
        let token = format!("X-Consul-Token: {MASTER}");
        let known = self.server.curl(&["-H", &token], "acl/policies").unwrap();
        let known: serde_json::Value = serde_json::from_str(&known).unwrap();
        let known = known.as_array().unwrap().iter().find(|known| known["Name"] == policy["Name"]);
        match known {
            Some(known) => self.put(&format!("acl/policy/{}", known["ID"].as_str().unwrap()), &policy.to_string()),
            None => {
                self.put("acl/policy", &policy.to_string());
                let body = serde_json::json!({ "SecretID": secret, "Policies": [{ "Name": policy["Name"] }] });
                self.put("acl/token", &body.to_string());
            }
        }
        secret
    }

    /// A file that names the token of the global topology, and the flag for it.
    pub fn auth(&self, name: &str, secret: &str) -> String {
        let path = self.server.dir().join(name);
        std::fs::write(&path, format!(r#"{{"global": {{"acl_token": "{secret}"}}}}"#)).unwrap();
        format!("--consul-auth-static-file={}", path.display())
    }
}
