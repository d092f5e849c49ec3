//! Credentials go where the administrator sent them: not to servers that somebody's record names, not over redirects,
//! not in clear.

use std::path::Path;

use crate::access::certificates;
use crate::common::consul::{self, Consul};
use crate::common::etcd::Etcd;
use crate::common::eventually;
use crate::common::http::{Http, Listener, Reply};
use crate::common::mount::Mount;
use crate::common::server::{free_port, fresh_root};
use crate::common::world::{cell, put, runtime};
use crate::common::zookeeper;
use topofs::backend::Implementation;

const SECRET: &str = "hunter2";

/// A service with credentials, and how a mount gives them.
struct Case {
    implementation: Implementation,
    server: String,
    root: String,
    flags: Vec<String>,
    /// What runs as long as the case.
    _etcd: Option<Etcd>,
    _dir: tempfile::TempDir,
}

impl Case {
    fn all() -> Vec<Self> {
        vec![Self::etcd(), Self::zookeeper(), Self::consul()]
    }

    fn new(
        implementation: Implementation,
        server: String,
        etcd: Option<Etcd>,
        flags: impl Fn(&str) -> Vec<String>,
        file: &str,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, file).unwrap();
        let flags = flags(&path.display().to_string());
        Self { implementation, server, root: fresh_root(), flags, _etcd: etcd, _dir: dir }
    }

    fn etcd() -> Self {
        let etcd = Etcd::start();
        etcd.ctl(&["user", "add", &format!("root:{SECRET}")]);
        etcd.ctl(&["user", "grant-role", "root", "root"]);
        etcd.ctl(&["auth", "enable"]);
        let flags = |file: &str| vec!["--topo-etcd-user=root".to_owned(), format!("--topo-etcd-password-file={file}")];
        Self::new(Implementation::Etcd2, etcd.endpoint(), Some(etcd), flags, SECRET)
    }

    fn zookeeper() -> Self {
        let flags = |file: &str| vec![format!("--topo-zk-auth-file={file}")];
        let file = format!("digest:vitess:{SECRET}");
        let case = Self::new(Implementation::Zk2, zookeeper::shared().endpoint(), None, flags, &file);
        runtime()
            .block_on(cell(case.implementation, &case.server, &case.root).apply(&[put("global/metadata/x", "x")]))
            .unwrap();
        case
    }

    fn consul() -> Self {
        let flags = |file: &str| vec![format!("--consul-auth-static-file={file}")];
        let file = format!(r#"{{"global": {{"acl_token": "{SECRET}"}}, "evil": {{"acl_token": "{SECRET}"}}}}"#);
        // One without ACLs takes any token.
        Self::new(Implementation::Consul, consul::shared().endpoint(), None, flags, &file)
    }

    fn mount(&self, more: &[&str]) -> Mount {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Mount::of(&self.implementation.to_string(), &self.server, &self.root, &flags)
    }
}

fn name_cell(mount: &Mount, name: &str, server: &str, root: &str) {
    let info = format!("server_address: \"{server}\" root: \"{root}\"");
    mount.sh(&format!("mkdir -p global/cells/{name}; echo '{info}' | tee global/cells/{name}/CellInfo.txt"));
}

fn not_shown(mount: &Mount, name: &str) -> String {
    mount.status()["cells_not_shown"][name].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_record_sends_no_credentials_to_another_server() {
    for case in Case::all() {
        let listener = Listener::start();
        let mount = case.mount(&["--remote-operation-timeout=3s"]);
        name_cell(&mount, "good", &case.server, &format!("{}/good", case.root));
        // Also one of several servers.
        for (name, server) in
            [("evil", listener.endpoint()), ("half", format!("{},{}", case.server, listener.endpoint()))]
        {
            name_cell(&mount, name, &server, "/evil");
            assert!(!mount.bash(&format!("ls {name}")).status.success());
            let reason = not_shown(&mount, name);
            assert!(reason.contains("--cell-servers") && !reason.contains(SECRET), "{}: {reason}", case.implementation);
        }
        // One that was good, and is sent elsewhere while it is in use.
        mount.sh("ls good");
        name_cell(&mount, "good", &listener.endpoint(), "/evil");
        assert!(!mount.bash("ls good").status.success());
        assert_eq!(listener.heard(), "", "{}", case.implementation);
        eventually("the log tells of it", || mount.log().contains("moves the cell to other servers").then_some(()));
        drop(mount);
        // What the rule keeps from them, they would get: it is not that nobody has tried.
        for rule in ["--cell-servers=any".to_owned(), format!("--cell-servers={}", listener.endpoint())] {
            let mount = case.mount(&["--remote-operation-timeout=1s", &rule]);
            let before = listener.heard().len();
            assert!(!mount.bash("ls evil").status.success(), "it does not answer");
            eventually("it was connected", || (listener.heard().len() > before).then_some(()));
            assert!(!mount.status()["cells_not_shown"].as_object().unwrap().contains_key("evil"));
        }
    }
}

#[test]
fn without_credentials_all_servers_are_connected_unless_told_otherwise() {
    let (root, server) = (fresh_root(), consul::shared().endpoint());
    let listener = Listener::start();
    let flags = ["--remote-operation-timeout=1s"];
    let mount = Mount::of("consul", &server, &root, &flags);
    name_cell(&mount, "other", &listener.endpoint(), "/x");
    assert!(!mount.bash("ls other").status.success());
    let before = listener.heard();
    assert!(before.contains("GET"), "{before}");
    drop(mount);
    let mount = Mount::of("consul", &server, &root, &[flags[0], "--cell-servers=global"]);
    assert!(!mount.bash("ls other").status.success());
    assert!(not_shown(&mount, "other").contains("--cell-servers=global"));
    assert_eq!(listener.heard(), before);
    assert_eq!(mount.sh("jq -r '.\"cell-servers\"' .topofs/config"), "global\n");
}

#[test]
fn a_redirect_takes_the_token_nowhere() {
    let listener = Listener::start();
    let target = listener.endpoint();
    let http = Http::alone(move |_| {
        Reply::Answer("307 Temporary Redirect", format!("Location: http://{target}/\r\n"), Vec::new())
    });
    let case = Case { server: http.endpoint(), ..Case::consul() };
    let point = tempfile::tempdir().unwrap();
    let args = format!(
        "mount --topo-implementation consul --topo-global-server-address {} --topo-global-root /t/global {} {}",
        case.server,
        case.flags.join(" "),
        point.path().display()
    );
    let output = crate::common::bash_in(Path::new("/"), &format!("{} {args}", crate::common::mount::TOPOFS));
    let message = crate::common::text(&output);
    assert!(message.contains("307") && message.contains("redirects"), "{message}");
    assert!(http.requests().iter().any(|request| request.contains(SECRET)), "it was the one that is meant to have it");
    assert_eq!(listener.heard(), "");
}

#[test]
fn nothing_goes_in_clear_where_tls_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let port = free_port();
    let config = format!(
        "ports {{ https = {port} }} ca_file = \"{}\" cert_file = \"{}\" key_file = \"{}\"",
        file("ca.pem"),
        file("cert.pem"),
        file("key.pem")
    );
    let server = Consul::with(vec!["-hcl".to_owned(), config]);
    let case = Case::consul();
    let ca = format!("--topo-consul-tls-ca={}", file("ca.pem"));
    let case = Case { server: format!("localhost:{port}"), flags: [case.flags.clone(), vec![ca]].concat(), ..case };
    let mount = case.mount(&["--remote-operation-timeout=3s"]);
    let listener = Listener::start();
    for (name, scheme) in [("lower", "http://"), ("upper", "HTTP://")] {
        name_cell(&mount, name, &format!("{scheme}{}", listener.endpoint()), "/x");
        assert!(!mount.bash(&format!("ls {name}")).status.success());
        let reason = not_shown(&mount, name);
        assert!(reason.contains("without TLS") && reason.contains("without http://"), "{reason}");
    }
    assert_eq!(listener.heard(), "");
    // Without a scheme it is TLS, and whoever has no certificate of that authority hears nothing of a token.
    name_cell(&mount, "evil", &listener.endpoint(), "/x");
    assert!(!mount.bash("ls evil").status.success());
    let heard = listener.heard();
    assert!(heard.contains("connected") && !heard.contains(SECRET), "{heard}");
    // A server that has one is connected: the authority vouches for it.
    name_cell(&mount, "good", &format!("https://127.0.0.1:{port}"), "/t/good");
    mount.sh("mkdir -p good/tablets; ls good");
    drop(server);
}

#[test]
fn zookeeper_is_not_spoken_to_in_clear_where_tls_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let listener = Listener::start();
    let point = tempfile::tempdir().unwrap();
    let script = format!(
        "{} mount --topo-implementation zk2 --topo-global-server-address tcp://{} --topo-global-root /t/global \
         --topo-zk-tls-cert {} --topo-zk-tls-key {} --topo-zk-tls-ca {} {}",
        crate::common::mount::TOPOFS,
        listener.endpoint(),
        file("cert.pem"),
        file("key.pem"),
        file("ca.pem"),
        point.path().display()
    );
    let output = crate::common::bash_in(Path::new("/"), &script);
    let message = crate::common::text(&output);
    assert!(message.contains("without TLS") && message.contains("without tcp://"), "{message}");
    assert_eq!(listener.heard(), "");
}
