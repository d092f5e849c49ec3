//! docs/security.md: the rights that the page tells administrators to give are enough for what it promises, refuse what
//! it says is refused, and none of them can be left out. Commands, policies and promises are read from the page.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::common::consul::{Guarded, MASTER};
use crate::common::etcd::Etcd;
use crate::common::mount::{TOPOFS, lines};
use crate::common::server::{Server, free_port};
use crate::common::world::{connect_options, load};
use crate::common::zookeeper::Zookeeper;
use crate::common::{bash_in, eventually, text};
use crate::page::blocks;
use topofs::backend::{ConnectOptions, Implementation, Location};
use topofs::name::CellName;
use topofs::sample::Cluster;

const PAGE: &str = include_str!("../../docs/security.md");

/// A service with the sample cluster, and the directories of its administrator.
struct Site {
    work: TempDir,
    /// Begins the names of the page's blocks for this service.
    service: &'static str,
    /// Words of the page, and what stands for them here.
    words: Vec<(&'static str, String)>,
}

impl Site {
    fn new(service: &'static str, words: &[(&'static str, &str)]) -> Self {
        let work = tempfile::tempdir().unwrap();
        let mut words: Vec<_> = words.iter().map(|(word, here)| (*word, (*here).to_owned())).collect();
        words.push(("/etc/topofs", work.path().join("etc").display().to_string()));
        let site = Self { work, service, words };
        site.run(&blocks(PAGE, "sh passwords"));
        site
    }

    fn here(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (word, here)| text.replace(word, here))
    }

    /// What a script of the page prints. It must succeed.
    fn run(&self, script: &str) -> String {
        let script = self.here(script);
        let output = bash_in(self.work.path(), &format!("set -eu\n{}\n{script}", path()));
        assert!(output.status.success(), "{script}\n{}", text(&output));
        text(&output)
    }

    fn block(&self, name: &str) -> String {
        blocks(PAGE, &format!("sh {}-{name}", self.service))
    }

    /// Mounts with an account, as the page says, or returns what topofs says.
    fn mount(&self, account: &str, read_only: bool) -> Result<Mounted, String> {
        let block = self.block("mount").replace("topofs-reader", account);
        assert!(block.contains("--read-only "), "{block}");
        self.mounted(&if read_only { block } else { block.replace("--read-only ", "") })
    }

    /// Runs a block that mounts.
    fn mounted(&self, block: &str) -> Result<Mounted, String> {
        let point = tempfile::tempdir_in(self.work.path()).unwrap();
        let block = self.here(block).replace("/mnt/topo", &point.path().display().to_string());
        let output = bash_in(self.work.path(), &format!("{}\n{block}", path()));
        let flags: Vec<&str> = block.lines().filter(|line| line.starts_with("export ")).collect();
        let mounted = Mounted { flags: flags.join("\n"), point };
        match output.status.code() {
            Some(0) => Ok(mounted),
            code => {
                assert_eq!(code, Some(32), "{}", text(&output));
                Err(text(&output))
            }
        }
    }

    /// Something that the page promises to a kind of account must fail for this one, because the service refuses.
    fn falls_short(&self, role: &str, account: &str, without: &str) {
        let outcome = match self.mount(account, false) {
            Ok(mounted) => mounted.may(role),
            Err(message) => Err(message),
        };
        let failed = outcome.expect_err(without).to_lowercase();
        assert!(failed.contains("permission denied") || failed.contains("not authorized"), "{without}: {failed}");
    }

    /// The account is for this topology only.
    fn operator_sees_nothing_else(&self) {
        let block = self.block("mount").replace("topofs-reader", "topofs-operator");
        let outcome = self.mounted(&block.replace("vitess/global", "other"));
        let said = outcome.map(drop).expect_err("another root is refused");
        assert!(said.to_lowercase().contains("permission denied"), "{said}");
    }

    /// What holds for all services: each account has what the page says, and not more.
    fn accounts_are_as_the_page_says(&self) {
        let operator = self.mount("topofs-operator", false).unwrap();
        operator.may("operator").unwrap();
        for role in ["editor", "reader"] {
            let mounted = self.mount(&format!("topofs-{role}"), false).unwrap();
            mounted.may(role).unwrap();
            mounted.may_not(role, DENIED);
        }
        let reader = self.mount("topofs-reader", true).unwrap();
        reader.may("reader").unwrap();
        reader.may_not("reader", "Read-only file system");
        reader.hears(&operator);
    }
}

/// What a shell says when the service refuses.
const DENIED: &str = "Permission denied";

/// topofs and the services' own tools, by their names.
fn path() -> String {
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/consul/usr/bin");
    let ours = Path::new(TOPOFS).parent().unwrap().display();
    format!("export PATH={ours}:$PATH:{tools}:/usr/share/zookeeper/bin")
}

/// A mount that goes with its directory.
struct Mounted {
    point: TempDir,
    /// The flags of the mount, for other commands.
    flags: String,
}

impl Mounted {
    fn root(&self) -> PathBuf {
        self.point.path().to_owned()
    }

    fn bash(&self, script: &str) -> std::process::Output {
        bash_in(&self.root(), &format!("{}\n{}\n{script}", path(), self.flags))
    }

    /// Does what the page promises to a kind of account, up to the first line that fails.
    fn may(&self, role: &str) -> Result<(), String> {
        let promised = blocks(PAGE, &format!("sh {role}-may"));
        let steps = promised.lines().map(|line| format!("(\n{line}\n) || exit 1\n"));
        let output = self.bash(&format!("set -x\n{}", steps.collect::<String>()));
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{}\n{}", text(&output), self.errors())),
        }
    }

    /// What the page says is refused to a kind of account fails with these words.
    fn may_not(&self, role: &str, words: &str) {
        for line in blocks(PAGE, &format!("sh {role}-may-not")).lines() {
            let before = self.errors().lines().count();
            let output = self.bash(line);
            assert!(!output.status.success() && text(&output).contains(words), "{line}: {}", text(&output));
            if words == DENIED {
                self.gives_a_reason(line, before);
            }
        }
    }

    /// `.topofs/errors` says what the service has said.
    fn gives_a_reason(&self, command: &str, before: usize) {
        let errors = self.errors();
        assert!(errors.lines().count() > before, "{command}: {errors}");
        let newest: serde_json::Value = serde_json::from_str(errors.lines().last().unwrap()).unwrap();
        let reason = newest["reason"].as_str().unwrap().to_lowercase();
        let is_the_services = reason.contains("permission denied") || reason.contains("not authorized");
        assert!(newest["errno"] == "EACCES" && is_the_services, "{command}: {newest}");
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.root().join(".topofs/errors")).unwrap()
    }

    /// Events of what another mount changes.
    fn hears(&self, other: &Self) {
        let mut command = std::process::Command::new("inotifywait");
        command.args(["-m", "-q", "-e", "modify", "--format", "%f"]).arg(self.root().join("global/metadata"));
        let heard = lines(command);
        // It takes a moment until it listens.
        eventually("the reader hears of a change", || {
            let changed = other.bash("echo $RANDOM > global/metadata/owner");
            assert!(changed.status.success(), "{}", text(&changed));
            heard.try_next().filter(|name| name == "owner")
        });
        let told = self.bash("jq -r 'select(.path == \"metadata/owner\") | .by' .topofs/events");
        assert!(text(&told).contains("remote"), "{}", text(&told));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Its daemon ends with it.
        let _ = nix::mount::umount2(self.point.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Stores the sample as the page has it; cells of Consul have roots without a slash in front.
fn load_sample(implementation: Implementation, server: &str, root: &str, options: &ConnectOptions) {
    let cluster = Cluster { root: root.to_owned(), ..Cluster::demo(server) };
    let location = Location { implementation, server: server.to_owned(), root: root.to_owned() };
    load(&*topofs::backend::open(&CellName::global(), &location, options).unwrap(), &cluster);
}

#[test]
fn rights_of_etcd_are_enough_and_none_is_too_many() {
    // Passwords are not what is tried here, and checking them is made slow on purpose.
    let etcd = Etcd::with(vec!["--bcrypt-cost=4".to_owned()]);
    load_sample(Implementation::Etcd2, &etcd.endpoint(), "/vitess", &connect_options());
    let site = Site::new("etcd", &[("etcd1:2379", &etcd.endpoint())]);
    site.run(&site.block("begin"));
    let root = site.block("root");
    for role in ["reader", "editor", "operator"] {
        site.run(&format!("{root}\n{}", site.block(role)));
    }
    site.accounts_are_as_the_page_says();
    for role in ["reader", "editor", "operator"] {
        let block = site.block(role);
        let is_right =
            |line: &&str| line.contains(" grant-permission ") || line.ends_with("topofs-editor topofs-reader");
        for (number, right) in block.lines().filter(is_right).enumerate() {
            let account = format!("topofs-{role}-less-{number}");
            let less: String = block.lines().filter(|line| *line != right).map(|line| format!("{line}\n")).collect();
            let less = less.replace(&format!("topofs-{role}"), &account);
            let password = format!("cp /etc/topofs/topofs-{role}.password /etc/topofs/{account}.password");
            site.run(&format!("{root}\n{password}\n{less}"));
            site.falls_short(role, &account, right);
        }
    }
    site.operator_sees_nothing_else();
}

#[test]
fn rights_of_consul_are_enough_and_none_is_too_many() {
    let consul = Guarded::start();
    let endpoint = consul.server.endpoint();
    let site = Site::new("consul", &[("consul1:8500", &endpoint), ("consul1", "development")]);
    consul.auth("master", MASTER);
    let mut options = connect_options();
    options.consul.auth_file = Some(consul.server.dir().join("master"));
    load_sample(Implementation::Consul, &endpoint, "vitess", &options);
    let administrator = format!("export CONSUL_HTTP_ADDR={endpoint} CONSUL_HTTP_TOKEN={MASTER}");
    let account = site.block("account");
    let make = |account_of: &str, policy: &str| {
        std::fs::write(site.work.path().join(format!("{account_of}.hcl")), site.here(policy)).unwrap();
        site.run(&format!("{administrator}\n{}", account.replace("topofs-reader", account_of)));
    };
    let policies = ["reader", "editor", "operator"].map(|role| (role, blocks(PAGE, &format!("hcl consul-{role}"))));
    for (role, policy) in &policies {
        make(&format!("topofs-{role}"), policy);
    }
    site.accounts_are_as_the_page_says();
    site.operator_sees_nothing_else();
    for (role, policy) in &policies {
        // What the editor may read is what the reader may read.
        let is_right = |line: &&str| *role != "editor" || line.contains("\"write\"");
        for (number, right) in policy.lines().filter(is_right).enumerate() {
            let account = format!("topofs-{role}-less-{number}");
            let less: String = policy.lines().filter(|line| *line != right).map(|line| format!("{line}\n")).collect();
            make(&account, &less);
            site.falls_short(role, &account, right);
        }
    }
}

#[test]
fn rights_of_zookeeper_are_enough_and_none_is_too_many() {
    let server = Zookeeper::start();
    load_sample(Implementation::Zk2, &server.endpoint(), "/vitess", &connect_options());
    let site = Site::new("zk", &[("zk1:2181", &server.endpoint())]);
    site.run(&site.block("accounts"));
    let rights = site.block("rights");
    site.run(&rights);
    site.accounts_are_as_the_page_says();
    let without: [&[(&str, &str, &str)]; 4] = [
        &[
            ("operator", "topofs-operator:cdrw", "topofs-operator:drw"),
            ("editor", "topofs-editor:r ", ""),
            ("reader", " topofs-reader:r", ""),
        ],
        &[
            ("operator", "topofs-operator:cdrw", "topofs-operator:crw"),
            ("editor", "topofs-editor:rw", "topofs-editor:r"),
        ],
        &[("operator", "topofs-operator:cdrw", "topofs-operator:cdw")],
        &[("operator", "topofs-operator:cdrw", "topofs-operator:cdr")],
    ];
    for changes in without {
        let less = changes.iter().fold(rights.clone(), |script, (_, right, less)| {
            assert!(script.contains(right), "{right}");
            script.replace(right, less)
        });
        site.run(&less);
        for (role, right, less) in changes {
            site.falls_short(role, &format!("topofs-{role}"), &format!("{right} -> {less}"));
        }
    }
}

/// Certificates of an authority: `server`, `root`, and `cert` with the name of the reader.
const CERTIFICATES: &str = r#"
cd /etc/topofs
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' > ext
while read -r file name; do
  openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$file.key" -out "$file.req"
  openssl x509 -req -in "$file.req" -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out "$file.pem"
done <<< "server server
administrator root
cert topofs-reader"
mv cert.key key.pem
"#;

#[test]
fn an_account_of_etcd_may_be_a_certificate() {
    let port = free_port();
    let endpoint = format!("127.0.0.1:{port}");
    let site =
        Site::new("etcd", &[("etcd1:2379,etcd2:2379", &endpoint), ("etcd1:2379", &format!("https://{endpoint}"))]);
    site.run(CERTIFICATES);
    let file = |name: &str| site.here(&format!("/etc/topofs/{name}"));
    let mut server = Server::new(
        "etcd",
        vec![
            format!("--listen-client-urls=https://{endpoint}"),
            format!("--advertise-client-urls=https://{endpoint}"),
            format!("--cert-file={}", file("server.pem")),
            format!("--key-file={}", file("server.key")),
            format!("--trusted-ca-file={}", file("ca.pem")),
            "--client-cert-auth".to_owned(),
        ],
    );
    server.port = port;
    server.launch();
    let by_certificate = |block: &str| {
        let lines = block.lines().map(|line| match line.split_once(" --interactive=false") {
            Some((command, _)) => format!("{command} --no-password\n"),
            None => format!("{line}\n"),
        });
        format!(
            "{}export ETCDCTL_CACERT=/etc/topofs/ca.pem\n\
             export ETCDCTL_CERT=/etc/topofs/administrator.pem ETCDCTL_KEY=/etc/topofs/administrator.key\n{}",
            "export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=etcd1:2379\n",
            lines.collect::<String>()
        )
    };
    let store = site.here(&by_certificate("etcdctl put /vitess/global/metadata/owner team"));
    eventually("etcd answers", || {
        server.look_after();
        bash_in(site.work.path(), &store).status.success().then_some(())
    });
    site.run(&by_certificate(&site.block("reader")));
    site.run(&by_certificate(&site.block("begin")));
    let mounted = site.mounted(&blocks(PAGE, "sh tls-etcd")).unwrap();
    let said = mounted.bash("cat global/metadata/owner; cp /etc/hostname global/metadata/owner");
    assert!(text(&said).starts_with("team") && text(&said).contains(DENIED), "{}", text(&said));
}
