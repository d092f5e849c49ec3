//! Decides which servers topofs connects to and sends credentials to: the servers that the administrator has named, and
//! the servers in CellInfo records that a rule allows. Without the rule, anybody who can write a CellInfo record could
//! get the credentials sent to their own server.

use std::fmt;

use super::contract::{BackendError, Failure};
use super::keys::KeySpace;
use super::location::{Implementation, Location};
use super::options::ConnectOptions;
use crate::name::TopoPath;

/// Which servers in CellInfo records topofs connects to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CellServers {
    /// All servers get the credentials, as in Vitess.
    Any,
    /// All servers if no credentials are configured; otherwise the servers of the global topology, and servers with a
    /// certificate from the configured authority.
    #[default]
    Verified,
    /// The servers of the global topology.
    Global,
    /// The servers of the global topology, and these, each with or without a port.
    These(Vec<Named>),
}

/// A server in the administrator's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    host: String,
    /// `None`: any port.
    port: Option<u16>,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port {
            Some(port) => write!(f, "{host}:{port}"),
            None => f.write_str(&host),
        }
    }
}

impl std::str::FromStr for CellServers {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "any" => return Ok(CellServers::Any),
            "verified" => return Ok(CellServers::Verified),
            "global" => return Ok(CellServers::Global),
            _ => {}
        }
        let servers = text.split(',').map(str::trim).filter(|server| !server.is_empty());
        let named = servers.map(|server| {
            let (scheme, parts) = parts(server).ok_or_else(|| format!("{server:?} is not of the form HOST[:PORT]"))?;
            match scheme {
                Scheme::None => Ok(parts),
                _ => Err(format!("{server:?}: must have the form HOST[:PORT], without a scheme")),
            }
        });
        let named = named.collect::<Result<Vec<_>, _>>()?;
        if named.is_empty() {
            Err("must be any, verified, global, or HOST[:PORT],...".to_owned())
        } else {
            Ok(Self::These(named))
        }
    }
}

impl fmt::Display for CellServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CellServers::Any => f.write_str("any"),
            CellServers::Verified => f.write_str("verified"),
            CellServers::Global => f.write_str("global"),
            CellServers::These(named) => {
                f.write_str(&named.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl CellServers {
    /// Fails if topofs must not connect to the servers in a CellInfo record.
    pub fn check(&self, cell: &Location, global: &Location, options: &ConnectOptions) -> Result<(), BackendError> {
        let refused = |reason: &str| {
            let message = format!(
                "the CellInfo record names servers that the global topology does not use; {reason}: topofs does not \
                 connect to them (--cell-servers={self})"
            );
            Err(BackendError::new(Failure::Denied, message))
        };
        let asks_for_tls = |location: &Location| location.addresses().all(|address| scheme(address).0 == Scheme::Tls);
        if asks_for_tls(global)
            && !asks_for_tls(cell)
            && !options.wants_tls(cell.implementation)
            && options.credentials(cell.implementation).is_some()
        {
            let message = format!(
                "the address of the global topology asks for TLS, but {} in the CellInfo record does not: topofs sends \
                 nothing; write https:// there",
                cell.server
            );
            return Err(BackendError::new(Failure::Denied, message));
        }
        if cell.implementation == Implementation::Memory || *self == CellServers::Any || cell.is_served_by(global) {
            return Ok(());
        }
        match self {
            CellServers::Any => Ok(()),
            CellServers::Verified => match options.credentials(cell.implementation) {
                Some(credentials) if !credentials.verified => refused(&format!(
                    "they would get {}, and no authority vouches for them (allow them with --cell-servers, or use TLS \
                     with {})",
                    credentials.what, credentials.authority
                )),
                _ => Ok(()),
            },
            CellServers::Global => refused("only servers of the global topology are allowed"),
            CellServers::These(named) => {
                let known = global.servers();
                let allowed = |server: &Server| {
                    known.iter().flatten().any(|known| known == server)
                        || named
                            .iter()
                            .any(|named| named.host == server.host && named.port.is_none_or(|port| port == server.port))
                };
                let all = cell.servers().is_some_and(|servers| servers.iter().all(allowed));
                if all { Ok(()) } else { refused("not all of them are allowed") }
            }
        }
    }
}

/// The credentials that a server would get.
struct Credentials {
    /// In words.
    what: &'static str,
    /// Whether only a server with a certificate from the configured authority gets them.
    verified: bool,
    /// The flag for that authority.
    authority: &'static str,
}

impl ConnectOptions {
    fn credentials(&self, implementation: Implementation) -> Option<Credentials> {
        let (secret, cert, ca) = match implementation {
            Implementation::Etcd2 => (
                self.etcd.user.as_ref().map(|_| "the password of --topo-etcd-user"),
                &self.etcd.cert,
                (&self.etcd.ca, "--topo-etcd-tls-ca"),
            ),
            Implementation::Zk2 => (
                self.zk.auth_file.as_ref().map(|_| "the credentials in --topo-zk-auth-file"),
                &self.zk.cert,
                (&self.zk.ca, "--topo-zk-tls-ca"),
            ),
            Implementation::Consul => (
                self.consul.auth_file.as_ref().map(|_| "a token from --consul-auth-static-file"),
                &self.consul.cert,
                (&self.consul.ca, "--topo-consul-tls-ca"),
            ),
            Implementation::Memory => return None,
        };
        let what = secret.or_else(|| cert.as_ref().map(|_| "proof of the client certificate"))?;
        Some(Credentials { what, verified: ca.0.is_some(), authority: ca.1 })
    }

    /// Whether connections to a service must use TLS.
    pub fn wants_tls(&self, implementation: Implementation) -> bool {
        let (cert, ca) = match implementation {
            Implementation::Etcd2 => (&self.etcd.cert, &self.etcd.ca),
            Implementation::Zk2 => (&self.zk.cert, &self.zk.ca),
            Implementation::Consul => (&self.consul.cert, &self.consul.ca),
            Implementation::Memory => return false,
        };
        cert.is_some() || ca.is_some()
    }

    /// Fails if an address asks for a connection without TLS and the flags ask for TLS.
    pub(super) fn refuse_clear(&self, location: &Location) -> Result<(), BackendError> {
        if !self.wants_tls(location.implementation) {
            return Ok(());
        }
        for address in location.addresses() {
            if let (Scheme::Clear(scheme), rest) = scheme(address) {
                let message = format!(
                    "the address {address} asks for a connection without TLS, but the flags ask for TLS: topofs sends \
                     nothing; write {rest} without {scheme} (in a CellInfo record, or in --topo-global-server-address)"
                );
                return Err(BackendError::new(Failure::Denied, message));
            }
        }
        Ok(())
    }
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Server {
    /// Lower case, without brackets.
    host: String,
    port: u16,
}

/// The scheme of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    None,
    /// `http://`, and ZooKeeper's `tcp://`.
    Clear(&'static str),
    Tls,
}

/// Splits the scheme from an address, in upper or lower case.
fn scheme(address: &str) -> (Scheme, &str) {
    const ALL: [(&str, Scheme); 4] = [
        ("http://", Scheme::Clear("http://")),
        ("tcp://", Scheme::Clear("tcp://")),
        ("https://", Scheme::Tls),
        ("tcp+tls://", Scheme::Tls),
    ];
    for (prefix, scheme) in ALL {
        if let Some((begin, rest)) = address.split_at_checked(prefix.len())
            && begin.eq_ignore_ascii_case(prefix)
        {
            return (scheme, rest);
        }
    }
    (Scheme::None, address)
}

/// Scheme, host and port of an address. `None` if it has more parts: clients may read it differently.
fn parts(address: &str) -> Option<(Scheme, Named)> {
    let (scheme, rest) = scheme(address);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            let digits = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
            (Some(host).filter(|host| host.chars().all(digits))?, rest)
        }
        None => {
            let end = rest.find(':').unwrap_or(rest.len());
            let (host, port) = rest.split_at_checked(end)?;
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            (Some(host).filter(|host| host.chars().all(plain))?, port)
        }
    };
    let port = match port {
        "" => None,
        port => {
            let digits = port.strip_prefix(':').filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))?;
            Some(digits.parse().ok()?)
        }
    };
    let host = host.to_ascii_lowercase();
    Some((scheme, Named { host, port })).filter(|(_, named)| !named.host.is_empty())
}

impl Location {
    /// The location with schemes in lower case, as clients expect them.
    pub(super) fn with_lower_schemes(&self) -> Self {
        let lower = |address: &str| {
            let (_, rest) = scheme(address.trim_start());
            let (begin, rest) = address.split_at(address.len() - rest.len());
            format!("{}{rest}", begin.to_ascii_lowercase())
        };
        Self { server: self.server.split_inclusive([',', '|']).map(lower).collect(), ..self.clone() }
    }

    /// The location with the port of the service where an address has none: for what people write. (Records are read as
    /// Vitess reads them.) An https:// address of Consul stays as it is: as for Consul's own tools, it is a proxy's.
    pub fn with_default_port(self) -> Self {
        let Some((_, port)) = self.implementation.default_server().rsplit_once(':') else { return self };
        let told = |piece: &str| {
            let address = piece.trim_end_matches([',', '|']);
            let is_of_a_proxy = |scheme| self.implementation == Implementation::Consul && scheme == Scheme::Tls;
            match parts(address.trim()) {
                Some((scheme, named)) if named.port.is_none() && !is_of_a_proxy(scheme) => {
                    let bare = address.trim().trim_end_matches('/');
                    format!("{bare}:{port}{}", piece.get(address.len()..).unwrap_or_default())
                }
                _ => piece.to_owned(),
            }
        };
        let server = self.server.split_inclusive([',', '|']).map(told).collect();
        Self { server, ..self }
    }

    /// The addresses as written, with observers.
    fn addresses(&self) -> impl Iterator<Item = &str> {
        let parts = self.server.split(move |c| c == ',' || (c == '|' && self.implementation == Implementation::Zk2));
        parts.map(str::trim).filter(|address| !address.is_empty())
    }

    /// The port for an address without one.
    fn port_of(&self, scheme: Scheme, tls: bool) -> u16 {
        const ZOOKEEPER: u16 = 2181;
        // The ports of HTTP, as in Vitess's own clients.
        const HTTP: u16 = 80;
        const HTTPS: u16 = 443;
        match self.implementation {
            Implementation::Zk2 | Implementation::Memory => ZOOKEEPER,
            Implementation::Etcd2 | Implementation::Consul if scheme == Scheme::Tls => HTTPS,
            Implementation::Etcd2 | Implementation::Consul if scheme == Scheme::None && tls => HTTPS,
            Implementation::Etcd2 | Implementation::Consul => HTTP,
        }
    }

    /// `None` if one of the addresses cannot be compared.
    fn servers(&self) -> Option<Vec<Server>> {
        let one = |address: &str| {
            let (scheme, Named { host, port }) = parts(address)?;
            Some(Server { host, port: port.unwrap_or_else(|| self.port_of(scheme, false)) })
        };
        let mut servers = self.addresses().map(one).collect::<Option<Vec<_>>>()?;
        servers.sort();
        servers.dedup();
        Some(servers)
    }

    /// The servers in one spelling: locations with one of them in common are in one service.
    pub(super) fn server_names(&self) -> Vec<String> {
        match self.servers() {
            Some(servers) => servers.iter().map(|Server { host, port }| format!("{host}:{port}")).collect(),
            None => vec![self.server.clone()],
        }
    }

    /// Whether all servers of this location are among those of another.
    pub fn is_served_by(&self, other: &Location) -> bool {
        if self.server == other.server {
            return true;
        }
        match (self.servers(), other.servers()) {
            (Some(own), Some(others)) => !own.is_empty() && own.iter().all(|server| others.contains(server)),
            _ => false,
        }
    }

    /// The root in its normal spelling.
    pub fn clean_root(&self) -> String {
        KeySpace::new(&format!("/{}", self.root)).prefix().to_owned()
    }

    /// How the keys begin in the service itself. To etcd, a slash at the beginning is a part of the first name.
    pub fn beginning_of_keys(&self) -> String {
        match self.implementation {
            Implementation::Etcd2 => KeySpace::new(&self.root).prefix().to_owned(),
            _ => self.clean_root(),
        }
    }

    /// Whether two locations have the same keys in the same service.
    pub fn is_same_place(&self, other: &Location) -> bool {
        self.clean_root() == other.clean_root() && self.is_same_service(other)
    }

    /// Whether two locations are in the same service. With one server in common, it is the same.
    pub fn is_same_service(&self, other: &Location) -> bool {
        let shared = || match (self.servers(), other.servers()) {
            (Some(own), Some(others)) => own.iter().any(|server| others.contains(server)),
            _ => false,
        };
        self.implementation == other.implementation && (self.server == other.server || shared())
    }

    /// Whether the connection to this location may change keys of another: they are in one service, and nothing that
    /// the other would send through TLS goes there in clear.
    pub fn may_carry(&self, other: &Location) -> bool {
        let tls = |address: &str| scheme(address).0 == Scheme::Tls;
        let as_safe = || self.server == other.server || self.addresses().all(tls) || !other.addresses().any(tls);
        self.is_same_service(other) && as_safe()
    }

    /// The path here of another location's root, if all its keys are here, too: the root for the same place.
    pub fn path_of(&self, inner: &Location) -> Option<TopoPath> {
        let root = inner.clean_root();
        let rest = root.strip_prefix(&self.clean_root())?.trim_end_matches('/');
        let is_here = Location { root: inner.root.clone(), ..self.clone() }.is_same_place(inner);
        is_here.then(|| if rest.is_empty() { Some(TopoPath::root()) } else { TopoPath::parse(rest).ok() }).flatten()
    }

    /// Whether two locations have keys in common: they are the same place, or one is inside the other. To compare many,
    /// use [`super::Places`].
    pub fn overlaps(&self, other: &Location) -> bool {
        let (one, two) = (self.clean_root(), other.clean_root());
        let nested = one.starts_with(&two) || two.starts_with(&one);
        nested && Location { root: other.root.clone(), ..self.clone() }.is_same_place(other)
    }

    /// The servers with the ports at which they are connected; `None` if one of the addresses cannot be read.
    pub fn endpoints(&self, options: &ConnectOptions) -> Option<Vec<(String, u16)>> {
        let tls = options.wants_tls(self.implementation);
        let one = |address: &str| {
            let (scheme, Named { host, port }) = parts(address)?;
            Some((host, port.unwrap_or_else(|| self.port_of(scheme, tls))))
        };
        self.addresses().map(one).collect()
    }

    /// A hint about the port that is tried for an address without one.
    pub fn untold_port(&self, options: &ConnectOptions) -> Option<String> {
        // It has names, and no addresses.
        if self.implementation == Implementation::Memory {
            return None;
        }
        let tls = options.wants_tls(self.implementation);
        self.addresses().find_map(|address| {
            let (scheme, named) = parts(address)?;
            let port = self.port_of(scheme, tls);
            named.port.is_none().then(|| format!("{address} has no port: trying {port}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(server: &str) -> Location {
        Location { implementation: Implementation::Consul, server: server.to_owned(), root: "/v/zone1".to_owned() }
    }

    fn options(secret: bool, ca: bool) -> ConnectOptions {
        let mut options = ConnectOptions::default();
        options.consul.auth_file = secret.then(|| "tokens".into());
        options.consul.ca = ca.then(|| "ca".into());
        options
    }

    #[test]
    fn an_address_without_a_port_gets_that_of_the_service() {
        for (implementation, written, told) in [
            (Implementation::Etcd2, "127.0.0.1", "127.0.0.1:2379"),
            (Implementation::Etcd2, "http://a/,https://b, c:1", "http://a:2379,https://b:2379, c:1"),
            (Implementation::Zk2, "a,b:1|c", "a:2181,b:1|c:2181"),
            (Implementation::Consul, "localhost", "localhost:8500"),
            (Implementation::Consul, "https://consul.example.com", "https://consul.example.com"),
            (Implementation::Etcd2, "[::1]", "[::1]:2379"),
            (Implementation::Etcd2, "a/b/c", "a/b/c"),
            (Implementation::Memory, "demo", "demo"),
        ] {
            let location = Location { implementation, server: written.to_owned(), root: "/r".to_owned() };
            assert_eq!(location.with_default_port().server, told, "{written}");
        }
    }

    #[test]
    fn only_what_has_a_port_gets_a_hint_about_it() {
        let hint = |implementation| {
            let location = Location { implementation, server: "name".to_owned(), root: "/v".to_owned() };
            location.untold_port(&ConnectOptions::default())
        };
        assert!(hint(Implementation::Consul).is_some_and(|hint| hint.contains("name has no port")));
        assert_eq!(hint(Implementation::Memory), None);
    }

    #[test]
    fn who_gets_the_credentials_is_the_administrators_word() {
        let global = location("consul:8500");
        let allows = |rule: &str, server: &str, secret, ca| {
            let rule: CellServers = rule.parse().unwrap();
            rule.check(&location(server), &global, &options(secret, ca)).is_ok()
        };
        for server in ["consul:8500", "http://consul:8500", "HTTP://Consul:8500/"] {
            assert!(allows("verified", server, true, false), "{server}");
            assert!(allows("global", server, true, false), "{server}");
        }
        let others = [
            "evil:8500",
            "consul:8501",
            "consul",
            "consul:8500@evil:8500",
            "consul:8500#@evil",
            "http://consul:8500\\@evil",
            "evil/consul:8500",
            "consul:8500/../@evil",
            "consul:8500.evil",
            "",
            "consul:8500,evil:8500",
        ];
        for server in others.into_iter().filter(|server| !server.is_empty()) {
            assert!(!allows("verified", server, true, false), "{server}");
            assert!(!allows("global", server, false, false), "{server}");
            assert!(!allows("other:8500", server, true, true), "{server}");
            assert!(allows("any", server, true, false), "{server}");
            assert!(allows("verified", server, false, false), "{server}: there is no secret");
            assert!(allows("verified", server, true, true), "{server}: the authority vouches for it");
        }
        assert!(allows("east, west:8500", "EAST:1", true, false));
        assert!(allows("east,west:8500", "west:8500", true, false));
        assert!(allows("east,west:8500", "consul:8500", true, false), "the global ones are always allowed");
        assert!(!allows("east,west:8500", "west:8501", true, false));
        assert!("http://east".parse::<CellServers>().is_err());
        assert!("".parse::<CellServers>().is_err());
    }

    #[test]
    fn every_kind_of_credentials_counts() {
        type Give = fn(&mut ConnectOptions);
        let all: [(Implementation, Give, Give); 6] = [
            (
                Implementation::Etcd2,
                |options| options.etcd.user = Some(("name".to_owned(), "word".to_owned())),
                |options| options.etcd.ca = Some("ca".into()),
            ),
            (
                Implementation::Etcd2,
                |options| options.etcd.cert = Some("cert".into()),
                |options| options.etcd.ca = Some("ca".into()),
            ),
            (
                Implementation::Zk2,
                |options| options.zk.auth_file = Some("auth".into()),
                |options| options.zk.ca = Some("ca".into()),
            ),
            (
                Implementation::Zk2,
                |options| options.zk.cert = Some("cert".into()),
                |options| options.zk.ca = Some("ca".into()),
            ),
            (
                Implementation::Consul,
                |options| options.consul.auth_file = Some("tokens".into()),
                |options| options.consul.ca = Some("ca".into()),
            ),
            (
                Implementation::Consul,
                |options| options.consul.cert = Some("cert".into()),
                |options| options.consul.ca = Some("ca".into()),
            ),
        ];
        for (implementation, give, vouch) in all {
            let place = |server: &str| Location { implementation, ..location(server) };
            let mut options = options(false, false);
            let check = |options: &ConnectOptions| {
                CellServers::default().check(&place("evil:1"), &place("good:1"), options).is_ok()
            };
            assert!(check(&options));
            give(&mut options);
            assert!(!check(&options), "{implementation}");
            vouch(&mut options);
            assert!(check(&options), "{implementation}");
        }
        // Observers of ZooKeeper are servers, too.
        let zk = |server: &str| Location { implementation: Implementation::Zk2, ..location(server) };
        let mut options = options(false, false);
        options.zk.auth_file = Some("auth".into());
        let check = |server: &str| CellServers::default().check(&zk(server), &zk("a:1,b|c:3"), &options).is_ok();
        assert!(check("a:1") && check("b:2181,c:3") && check("a:1|c:3") && !check("a:1|evil:3"));
    }

    #[test]
    fn what_the_global_address_encrypts_a_record_does_not_uncover() {
        let global = location("https://consul:8501");
        let check =
            |server: &str, secret| CellServers::Any.check(&location(server), &global, &options(secret, false)).is_ok();
        assert!(check("https://consul:8501", true) && check("http://consul:8501", false));
        assert!(!check("http://consul:8501", true) && !check("consul:8501", true));
    }

    #[test]
    fn nothing_goes_in_clear_where_tls_is_asked_for() {
        let mut secure = options(false, true);
        (secure.etcd.cert, secure.zk.cert) = (Some("cert".into()), Some("cert".into()));
        for server in ["http://a:1", "HTTP://a:1", "tcp://a:1", "b:2,Tcp://a:1"] {
            for implementation in [Implementation::Etcd2, Implementation::Zk2, Implementation::Consul] {
                let location = Location { implementation, ..location(server) };
                assert!(secure.refuse_clear(&location).is_err(), "{location}");
                assert!(options(true, false).refuse_clear(&location).is_ok(), "{location}");
            }
        }
        for server in ["a:1", "https://a:1", "tcp+tls://a:1"] {
            assert!(options(true, true).refuse_clear(&location(server)).is_ok(), "{server}");
        }
        let lower = location("HTTP://Host:1/Ab, Https://b|HTTP:1").with_lower_schemes();
        assert_eq!(lower.server, "http://Host:1/Ab, https://b|HTTP:1");
    }

    #[test]
    fn places_are_compared_however_they_are_written() {
        let place = |server: &str, root: &str| Location { root: root.to_owned(), ..location(server) };
        let global = place("one:1,two:2", "/v/global");
        assert!(place("http://TWO:2", "v//x/../global/").is_same_place(&global));
        assert!(!place("two:2", "/v/zone1").is_same_place(&global));
        assert!(!place("three:2", "/v/global").is_same_place(&global));
        assert!(place("localhost", "/x").untold_port(&options(false, false)).unwrap().contains("80"));
        assert!(place("localhost", "/x").untold_port(&options(false, true)).unwrap().contains("443"));
        assert_eq!(place("localhost:1", "/x").untold_port(&options(false, false)), None);
    }
}
