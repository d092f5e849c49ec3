//! The location of a cell: the kind of service, its servers, and the root in it. Does not connect.

use std::fmt;
use std::str::FromStr;

/// The services that topofs can mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Implementation {
    /// etcd, version 3 of its protocol.
    Etcd2,
    /// ZooKeeper, 3.6 or newer.
    Zk2,
    /// Consul.
    Consul,
    /// In this process, for trials and tests.
    Memory,
}

impl Implementation {
    /// All of them, in the order in which help lists them.
    pub const ALL: [Self; 4] = [Self::Etcd2, Self::Zk2, Self::Consul, Self::Memory];

    /// Its name, as Vitess spells it.
    pub fn name(self) -> &'static str {
        match self {
            Implementation::Etcd2 => "etcd2",
            Implementation::Zk2 => "zk2",
            Implementation::Consul => "consul",
            Implementation::Memory => "memory",
        }
    }

    /// Where the service listens by default on this machine.
    pub fn default_server(self) -> &'static str {
        match self {
            Implementation::Etcd2 => "localhost:2379",
            Implementation::Zk2 => "localhost:2181",
            Implementation::Consul => "localhost:8500",
            Implementation::Memory => "memory",
        }
    }
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Implementation {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|implementation| implementation.name().eq_ignore_ascii_case(text));
        named.ok_or_else(|| format!("invalid variant: {text}"))
    }
}

/// The location of one cell: a service, and a root in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// The kind of service.
    pub implementation: Implementation,
    /// Comma-separated servers, as Vitess spells them.
    pub server: String,
    /// The path at the beginning of all keys of the cell.
    pub root: String,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.root.starts_with('/') { "" } else { "/" };
        write!(f, "{}:{}{slash}{}", self.implementation, self.server, self.root)
    }
}

/// Reads what [`Location`] prints: IMPLEMENTATION:SERVERS/ROOT. Servers may be URLs, and ZooKeeper's observers.
impl FromStr for Location {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (implementation, rest) =
            text.split_once(':').ok_or_else(|| format!("{text:?} is not of the form IMPLEMENTATION:SERVERS/ROOT"))?;
        let implementation = implementation.parse().map_err(|_| {
            let names: Vec<&str> = Implementation::ALL.into_iter().map(Implementation::name).collect();
            format!("{implementation:?} is not one of {}", names.join(", "))
        })?;
        let (server, root) = rest.split_at_checked(begin_of_root(rest)).unwrap_or((rest, ""));
        if root.is_empty() {
            return Err(format!("{text:?} has no root: it must end like {implementation}:SERVERS/vitess/global"));
        }
        if server.split([',', '|']).any(|address| address.is_empty()) {
            return Err(format!("{text:?}: a server is missing before {root}"));
        }
        Ok(Self { implementation, server: server.to_owned(), root: root.to_owned() })
    }
}

/// Where the root begins: at the first slash that is not part of an address.
fn begin_of_root(text: &str) -> usize {
    let mut from = 0;
    while let Some((before, rest)) = text.get(from..).and_then(|rest| rest.split_once('/')) {
        let at = from + before.len();
        from = match rest.strip_prefix('/') {
            // A scheme: `http://`. Anything else with two slashes is a root.
            Some(_) if before.ends_with(':') => at + "//".len(),
            // A server's address may end in a slash.
            _ if rest.starts_with([',', '|']) => at + "/".len(),
            _ => return at,
        };
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_location_is_read_as_it_is_written() {
        for (text, implementation, server, root) in [
            ("etcd2:localhost:2379/vitess/global", Implementation::Etcd2, "localhost:2379", "/vitess/global"),
            (
                "etcd2:http://h:2379,https://h2:2379/vitess/global",
                Implementation::Etcd2,
                "http://h:2379,https://h2:2379",
                "/vitess/global",
            ),
            ("etcd2:http://h:1/,http://i:2/r", Implementation::Etcd2, "http://h:1/,http://i:2", "/r"),
            ("zk2:a:1,b:2|c:3,d:4/v/g", Implementation::Zk2, "a:1,b:2|c:3,d:4", "/v/g"),
            ("consul:[::1]:8500/vitess/global", Implementation::Consul, "[::1]:8500", "/vitess/global"),
            ("CONSUL:h/", Implementation::Consul, "h", "/"),
            ("memory:name/a:b//c,d", Implementation::Memory, "name", "/a:b//c,d"),
        ] {
            let location = Location { implementation, server: server.to_owned(), root: root.to_owned() };
            assert_eq!(text.parse(), Ok(location.clone()), "{text}");
            assert_eq!(location.to_string().parse(), Ok(location));
        }
        // Consul's roots have no leading slash; it is left out again when it is connected.
        let relative = Location {
            implementation: Implementation::Consul,
            server: "h:1".to_owned(),
            root: "vitess/global".to_owned(),
        };
        let read: Location = relative.to_string().parse().unwrap();
        assert!(read.is_same_place(&relative) && read.root == "/vitess/global");
        for wrong in [
            "",
            "etcd2",
            "h:2379/vitess/global",
            "etcd2:h:2379",
            "etcd2:/vitess",
            "zk2:a:1,/r",
            "zk2:a|/r",
            "etcd2:http://h",
        ] {
            assert!(wrong.parse::<Location>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_location_is_read_as_it_is_printed(
            number in 0..Implementation::ALL.len(),
            servers in prop::collection::vec("(https?://)?[a-z0-9.]{1,8}(:[0-9]{1,5})?", 1..4),
            root in "/[a-z/,:|]{0,12}",
        ) {
            prop_assume!(!root.starts_with("//") && !root.starts_with("/,") && !root.starts_with("/|"));
            let implementation = Implementation::ALL[number];
            let location = Location { implementation, server: servers.join(","), root };
            prop_assert_eq!(location.to_string().parse(), Ok(location));
        }
    }

    #[test]
    fn a_name_is_read_in_any_case_and_written_as_vitess_does() {
        for implementation in Implementation::ALL {
            assert_eq!(implementation.name().parse(), Ok(implementation));
            assert_eq!(implementation.to_string().to_uppercase().parse(), Ok(implementation));
        }
        assert!("etcd".parse::<Implementation>().is_err());
    }
}
