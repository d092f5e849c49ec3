//! Two topologies, and what is copied from one to the other. The names are those of Vitess's topo2topo.

use anyhow::Context;
use clap::builder::BoolishValueParser;
use clap::{Args, FromArgMatches};

use super::connect::ConnectArgs;
use crate::backend::{Implementation, Location};
use crate::cli::options::expand;
use crate::cli::source::refuse_credentials;
use crate::name::CellName;
use crate::topology::copy::{Mapping, Options, Rule, Selection, Side};

/// Where the global topology of a side is if nothing else was said: in Consul, keys begin without a slash.
const DEFAULT_ROOT: &str = "/vitess/global";

/// The two topologies.
#[derive(Debug, Args)]
#[command(next_help_heading = "Topologies")]
pub(in crate::cli) struct SidesArgs {
    /// The kind of service that is read
    #[arg(long, value_name = "NAME")]
    pub from_implementation: Implementation,
    /// Servers of the global topology that is read, separated by commas [default: as for a mount]
    #[arg(long, value_name = "SERVERS")]
    pub from_server: Option<String>,
    /// The root of the global topology that is read [default: /vitess/global]
    #[arg(long, value_name = "PATH")]
    pub from_root: Option<String>,
    /// Flags for the services that are read, if they need others than those of the target: OPTION=VALUE,...
    ///
    /// For example `topo-etcd-user=reader,topo-etcd-password-file=/etc/reader`: the flags of --help's section
    /// `Services`, without their dashes. Write a comma in a value as `\,`.
    #[arg(long, value_name = "OPTION,...")]
    pub from_options: Option<String>,
    /// The kind of service that is filled
    #[arg(long, value_name = "NAME")]
    pub to_implementation: Implementation,
    /// Servers of the global topology that is filled, separated by commas [default: as for a mount]
    #[arg(long, value_name = "SERVERS")]
    pub to_server: Option<String>,
    /// The root of the global topology that is filled [default: /vitess/global, vitess/global on Consul]
    #[arg(long, value_name = "PATH")]
    pub to_root: Option<String>,
    /// The same as --from-options, for the services that are filled
    #[arg(long, value_name = "OPTION,...")]
    pub to_options: Option<String>,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// What is copied.
#[derive(Debug, Args)]
#[command(next_help_heading = "Records")]
pub(in crate::cli) struct ScopeArgs {
    /// Copy Keyspace and VSchema records
    #[arg(long, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub do_keyspaces: bool,
    /// Copy Shard records
    #[arg(long, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub do_shards: bool,
    /// Copy the ShardReplication records of all cells
    #[arg(long, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub do_shard_replications: bool,
    /// Copy the Tablet records of all cells
    #[arg(long, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub do_tablets: bool,
    /// Copy the rules: routing rules of tables, shards and keyspaces, and mirror rules
    #[arg(long, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub do_routing_rules: bool,
    /// Copy only these cells, and the global topology; leave out the CellInfo records of the others
    #[arg(long, value_name = "CELL,...", value_delimiter = ',')]
    pub cells: Option<Vec<String>>,
    /// Where a CellInfo record names the servers OLD, name NEW at the target; can be given more than once
    ///
    /// OLD is a whole server address, as in the record. The rule is for cells that have no CellInfo record at the
    /// target.
    #[arg(long, value_name = "OLD=NEW", value_parser = Rule::of_servers)]
    pub map_server: Vec<Rule>,
    /// Where a CellInfo record has the root OLD, or one below it, use NEW at the target; can be given more than once
    ///
    /// `/vitess=vitess` makes vitess/zone1 of /vitess/zone1. If there are several such rules, the longest OLD counts.
    #[arg(long, value_name = "OLD=NEW", value_parser = Rule::of_roots)]
    pub map_root: Vec<Rule>,
}

impl SidesArgs {
    /// The topology that is read.
    pub fn source(&self) -> anyhow::Result<Side> {
        let root = self.from_root.clone().unwrap_or_else(|| default_root(self.from_implementation));
        self.side(self.from_implementation, &self.from_server, root, &self.from_options).context("--from-options")
    }

    /// The topology that is filled.
    pub fn target(&self) -> anyhow::Result<Side> {
        let root = self.to_root.clone().unwrap_or_else(|| default_root(self.to_implementation));
        self.side(self.to_implementation, &self.to_server, root, &self.to_options).context("--to-options")
    }

    fn side(
        &self,
        implementation: Implementation,
        server: &Option<String>,
        root: String,
        options: &Option<String>,
    ) -> anyhow::Result<Side> {
        let server = server.clone().unwrap_or_else(|| implementation.default_server().to_owned());
        let connect = match options {
            Some(list) => self.connect.with(list)?,
            None => self.connect.clone(),
        };
        let global = Location { implementation, server, root }.with_default_port();
        refuse_credentials([&global])?;
        Ok(Side { global, connect: connect.options()?, servers: connect.cell_servers })
    }
}

fn default_root(implementation: Implementation) -> String {
    match implementation {
        Implementation::Consul => DEFAULT_ROOT.trim_start_matches('/').to_owned(),
        _ => DEFAULT_ROOT.to_owned(),
    }
}

impl ConnectArgs {
    /// These flags, with those of a list in place of the same ones.
    fn with(&self, list: &str) -> anyhow::Result<Self> {
        let flags = expand(list.as_ref())?;
        let command = clap::Command::new("options").no_binary_name(true).disable_help_flag(true);
        // What the list does not say stays as it is.
        let command = ConnectArgs::augment_args_for_update(command).mut_args(|flag| flag.default_value(None).env(None));
        let matches = command.try_get_matches_from(flags).map_err(|error| {
            let text = error.render().to_string();
            anyhow::anyhow!(text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
        })?;
        let mut connect = self.clone();
        connect.update_from_arg_matches(&matches)?;
        Ok(connect)
    }
}

impl ScopeArgs {
    /// What is copied, without how.
    pub fn options(&self) -> anyhow::Result<Options> {
        let selection = Selection {
            keyspaces: self.do_keyspaces,
            shards: self.do_shards,
            shard_replications: self.do_shard_replications,
            tablets: self.do_tablets,
            routing_rules: self.do_routing_rules,
        };
        let mapping = Mapping { servers: self.map_server.clone(), roots: self.map_root.clone() };
        let named = |name: &String| CellName::new(name).with_context(|| format!("--cells: {name:?}"));
        let cells =
            self.cells.as_ref().map(|cells| cells.iter().map(named).collect::<anyhow::Result<_>>()).transpose()?;
        Ok(Options { selection, mapping, cells, ..Options::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        sides: SidesArgs,
    }

    fn sides(flags: &[&str]) -> SidesArgs {
        let needed = ["x", "--from-implementation=etcd2", "--to-implementation=consul"];
        Line::try_parse_from([&needed[..], flags].concat()).unwrap().sides
    }

    #[test]
    fn each_side_has_the_shared_flags_and_its_own() {
        let sides = sides(&[
            "--remote-operation-timeout=7s",
            "--cell-servers=global",
            "--from-options=cell_servers=any,topo-etcd-tls-ca=/a\\,b",
        ]);
        let (source, target) = (sides.source().unwrap(), sides.target().unwrap());
        assert_eq!((source.servers.to_string().as_str(), target.servers.to_string().as_str()), ("any", "global"));
        assert_eq!(source.connect.timeout, target.connect.timeout);
        assert_eq!(source.connect.timeout.as_secs(), 7, "what the list does not say stays");
        assert_eq!(source.connect.etcd.ca.unwrap().to_str(), Some("/a,b"));
        assert_eq!(target.connect.etcd.ca, None);
        assert_eq!(target.global.root, "vitess/global", "Consul's keys begin without a slash");
        assert_eq!(source.global.root, "/vitess/global");
    }

    #[test]
    fn an_option_of_a_side_that_does_not_exist_is_refused() {
        for wrong in ["no-such=1", "topo-etcd-user=a", "remote-operation-timeout=0s", "=a"] {
            let error = format!("{:#}", sides(&["--to-options", wrong]).target().unwrap_err());
            assert!(error.starts_with("--to-options: "), "{error}");
        }
    }
}
