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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_in_any_case_and_written_as_vitess_does() {
        for implementation in Implementation::ALL {
            assert_eq!(implementation.name().parse(), Ok(implementation));
            assert_eq!(implementation.to_string().to_uppercase().parse(), Ok(implementation));
        }
        assert!("etcd".parse::<Implementation>().is_err());
    }
}
