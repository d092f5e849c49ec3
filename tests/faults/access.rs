//! Wrong credentials, wrong certificates, wrong roots: one clear message at the start, and the other cells go on.

use crate::common::consul::Consul;
use crate::common::mount::{Mount, TOPOFS};
use crate::common::server::free_port;
use crate::common::world::{cell, put, runtime};
use crate::common::zookeeper::Zookeeper;
use crate::common::{bash_in, eventually, text};
use topofs::backend::Implementation;

/// Makes a CA, a certificate for localhost, and another CA.
pub fn certificates(dir: &std::path::Path) {
    let make = r#"
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out req.pem
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' > ext
        openssl x509 -req -in req.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem
        openssl x509 -req -in req.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days -1 -extfile ext -out expired.pem
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other-ca -keyout other.key -out other.pem
        cat cert.pem ca.pem > chain.pem
        openssl pkcs12 -export -in cert.pem -inkey key.pem -certfile ca.pem -passout pass:secret -out server.p12
        keytool -importcert -noprompt -alias ca -file ca.pem -keystore trust.p12 -storetype PKCS12 -storepass secret
    "#;
    let output = bash_in(dir, &format!("set -e; {make}"));
    assert!(output.status.success(), "{}", text(&output));
}

/// What `topofs mount` says when it fails, in one line.
pub fn refused(implementation: &str, server: &str, flags: &str) -> String {
    let point = tempfile::tempdir().unwrap();
    let args = format!(
        "--topo-implementation {implementation} --topo-global-server-address {server} --topo-global-root /t/global"
    );
    let output = bash_in(point.path(), &format!("{TOPOFS} mount {args} --remote-operation-timeout 15s {flags} ."));
    // A mount that should have failed must not stay.
    let _ = nix::mount::umount2(point.path(), nix::mount::MntFlags::MNT_DETACH);
    assert_eq!(output.status.code(), Some(32), "{flags}: {}", text(&output));
    let message = text(&output);
    assert!(
        message.contains("cell global") && message.contains(implementation) && message.contains("/t/global"),
        "{message}"
    );
    assert_eq!(message.trim().lines().count(), 1, "{message}");
    message
}

#[test]
fn zookeeper_digest() {
    let server = Zookeeper::start();
    // A topology that only its user may read.
    let script = "addauth digest vitess:s3cret\ncreate /t \"\"\ncreate /t/global \"\"\ncreate /t/global/metadata \"\"\n\
        create /t/global/metadata/owner team\n\
        setAcl /t/global/metadata/owner auth::cdrwa\nsetAcl /t/global/metadata auth::cdrwa\n\
        setAcl /t/global auth::cdrwa\nsetAcl /t auth::cdrwa\nquit\n";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("script"), script).unwrap();
    std::fs::write(dir.path().join("auth"), "digest:vitess:s3cret\n").unwrap();
    std::fs::write(dir.path().join("wrong"), "digest:vitess:wr0ng\n").unwrap();
    std::fs::write(dir.path().join("bad"), "no colon\n").unwrap();
    bash_in(dir.path(), &format!("/usr/share/zookeeper/bin/zkCli.sh -server {} < script", server.endpoint()));
    let file = |name: &str| dir.path().join(name).display().to_string();
    for flags in [String::new(), format!("--topo-zk-auth-file {}", file("wrong"))] {
        let message = refused("zk2", &server.endpoint(), &flags);
        assert!(message.contains("not authorized") && !message.contains("wr0ng"), "{message}");
    }
    assert!(
        refused("zk2", &server.endpoint(), &format!("--topo-zk-auth-file {}", file("bad"))).contains("SCHEME:AUTH")
    );
    let mut server = server;
    let auth = format!("--topo-zk-auth-file={}", file("auth"));
    let mount = Mount::of("zk2", &server.endpoint(), "/t", &[&auth, "--stale-after=1s"]);
    assert_eq!(mount.read("global/metadata/owner"), "team");
    // Kept across a reconnect.
    server.kill();
    server.restart();
    eventually("it is there again", || mount.bash("echo new > global/metadata/owner").status.success().then_some(()));
    assert!(!mount.read(".topofs/config").contains("s3cret"));
}

#[test]
fn zookeeper_tls() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let port = free_port();
    let settings = vec![
        format!("secureClientPort={port}"),
        format!("ssl.keyStore.location={}", file("server.p12")),
        "ssl.keyStore.password=secret".to_owned(),
        format!("ssl.trustStore.location={}", file("trust.p12")),
        "ssl.trustStore.password=secret".to_owned(),
        "ssl.clientAuth=need".to_owned(),
    ];
    let server = Zookeeper::with(settings);
    let plain = cell(Implementation::Zk2, &server.endpoint(), "/t/global");
    runtime().block_on(plain.apply(&[put("metadata/owner", "team")])).unwrap();
    let secure = format!("localhost:{port}");
    let flags = |cert: &str, ca: &str| {
        [
            format!("--topo-zk-tls-cert={}", file(cert)),
            format!("--topo-zk-tls-key={}", file("key.pem")),
            format!("--topo-zk-tls-ca={}", file(ca)),
        ]
    };
    let right = flags("cert.pem", "ca.pem");
    let mount = Mount::of("zk2", &secure, "/t", &right.each_ref().map(String::as_str));
    mount.sh("echo by TLS > global/metadata/owner");
    assert_eq!(mount.read("global/metadata/owner"), "by TLS\n");
    for wrong in [flags("cert.pem", "other.pem"), flags("expired.pem", "ca.pem")] {
        let message = refused("zk2", &secure, &wrong.join(" "));
        assert!(message.contains("TLS handshake failed"), "{message}");
    }
    assert!(refused("zk2", &secure, "").contains("expects TLS"));
}

#[test]
fn consul_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"acl { enabled = true default_policy = "deny" tokens { master = "b1gs3cret" } }"#;
    let server = Consul::with(vec!["-hcl".to_owned(), config.to_owned()]);
    let token = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        format!("--consul-auth-static-file={}", path.display())
    };
    eventually("ACLs are there", || {
        let stored = server
            .curl(&["-H", "X-Consul-Token: b1gs3cret", "-X", "PUT", "-d", "team"], "kv/t/global/metadata/owner")?;
        (stored.trim() == "true").then_some(())
    });
    let right = token("right", r#"{"global": {"acl_token": "b1gs3cret"}}"#);
    let wrong = token("wrong", r#"{"global": {"acl_token": "wr0ng"}}"#);
    let message = refused("consul", &server.endpoint(), &wrong);
    assert!(message.contains("ACL not found") && !message.contains("wr0ng"), "{message}");
    assert!(refused("consul", &server.endpoint(), &token("bad", "{")).contains("must be a JSON object"));
    assert!(refused("consul", &server.endpoint(), &token("none", "{}")).contains("contains no cell"));
    let mount = Mount::of("consul", &server.endpoint(), "/t", &[&right]);
    assert_eq!(mount.read("global/metadata/owner"), "team");
    mount.sh("echo new > global/metadata/owner");
    let everything = format!("{}{}{}", mount.read(".topofs/config"), mount.read(".topofs/status"), mount.log());
    assert!(!everything.contains("b1gs3cret"), "{everything}");
    // A cell that the file does not name is denied, and the other goes on.
    let info = format!("server_address: \"{}\" root: \"/t/zone1\"", server.endpoint());
    mount.sh(&format!("mkdir -p global/cells/zone1; echo '{info}' > global/cells/zone1/CellInfo.txt"));
    runtime().block_on(async {
        let denied = mount.bash(
            "mkdir -p zone1/tablets/zone1-0000000001; \
             echo 'hostname: \"h\"' > zone1/tablets/zone1-0000000001/Tablet.txt",
        );
        assert!(!denied.status.success(), "{}", text(&denied));
    });
    assert_eq!(mount.read("global/metadata/owner"), "new\n");
}

#[test]
fn consul_tls() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let port = free_port();
    let config = format!(
        "ports {{ https = {port} }} verify_incoming_https = true ca_file = \"{}\" cert_file = \"{}\" key_file = \"{}\"",
        file("ca.pem"),
        file("cert.pem"),
        file("key.pem")
    );
    let server = Consul::with(vec!["-hcl".to_owned(), config]);
    eventually("it stores", || {
        server.curl(&["-X", "PUT", "-d", "team"], "kv/t/global/metadata/owner").filter(|answer| answer.trim() == "true")
    });
    let secure = format!("localhost:{port}");
    let flags = |cert: &str, ca: &str| {
        [
            format!("--topo-consul-tls-cert={}", file(cert)),
            format!("--topo-consul-tls-key={}", file("key.pem")),
            format!("--topo-consul-tls-ca={}", file(ca)),
        ]
    };
    let right = flags("cert.pem", "ca.pem");
    let mount = Mount::of("consul", &secure, "/t", &right.each_ref().map(String::as_str));
    mount.sh("echo by TLS > global/metadata/owner");
    assert_eq!(mount.read("global/metadata/owner"), "by TLS\n");
    for (wrong, cause) in [(flags("cert.pem", "other.pem"), "ertificate"), (flags("expired.pem", "ca.pem"), "")] {
        let message = refused("consul", &secure, &wrong.join(" "));
        assert!(message.contains(cause), "{message}");
    }
}
