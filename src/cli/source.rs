//! The source of a mount, as mount(8) and fstab name it: `etcd2:http://host:2379/vitess/global`. Must never show a
//! source that may hold a password.

use anyhow::{Context, bail};

use super::near::nearest;
use crate::backend::{Implementation, Location};

/// The root of the global topology if no flag says another.
pub(super) const DEFAULT_ROOT: &str = "/vitess/global";

/// What is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// The sample cluster.
    Demo,
    /// One service.
    One(Location),
    /// Two services: the one that decides, and the one that is kept in sync.
    Tee(Location, Location),
}

impl Source {
    /// The name of the sample cluster.
    pub const DEMO: &'static str = "demo";
    /// The word for two services.
    pub const TEE: &'static str = "tee";
    /// What is between the two.
    const BETWEEN: char = ';';

    /// Whether a word looks like a source, and not like a command.
    pub fn is_meant(word: &str) -> bool {
        let kind = word.split_once(':').map(|(kind, _)| kind);
        kind.is_some_and(|kind| kind == Self::TEE || kind.parse::<Implementation>().is_ok())
    }

    /// Whether a word alone is a source: it can be nothing else, or is one unless there is a file of this name.
    pub fn is_alone(word: &str) -> bool {
        let names_all = || word == Self::DEMO || word.parse::<Implementation>().is_ok();
        Self::is_meant(word) || names_all() && std::fs::symlink_metadata(word).is_err()
    }

    /// Reads a source.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        if text.chars().any(char::is_control) {
            bail!("the source {text:?} holds control characters");
        }
        let read = Self::read_unchecked(text);
        match &read {
            Ok(Self::Demo) => {}
            Ok(Self::One(location)) => refuse_credentials([location])?,
            Ok(Self::Tee(primary, secondary)) => refuse_credentials([primary, secondary])?,
            // The message of the parser would show all of it.
            Err(_) if text.contains('@') => {
                bail!("the source is not of the form IMPLEMENTATION:SERVERS/ROOT (it is not shown: it has an @ in it)")
            }
            Err(_) => {}
        }
        read.map_err(|error| match Self::meant(text) {
            Some(meant) => anyhow::anyhow!("{error}: did you mean {meant:?}?"),
            None => error,
        })
    }

    /// The first word of a source that somebody meant who has written another one.
    fn meant(text: &str) -> Option<String> {
        let (kind, is_place) = text.split_once(':').map_or((text, false), |(kind, _)| (kind, true));
        let kinds = Implementation::ALL.map(|kind| kind.name()).into_iter().chain([Self::TEE]);
        let known = || kinds.clone().chain(Some(Self::DEMO).filter(|_| !is_place));
        if known().any(|known| known == kind) {
            return None;
        }
        match kind.to_ascii_lowercase().as_str() {
            "zookeeper" => Some(Implementation::Zk2.name().to_owned()),
            kind => nearest(kind, known().map(str::to_owned)),
        }
    }

    fn read_unchecked(text: &str) -> anyhow::Result<Self> {
        if text == Self::DEMO {
            return Ok(Self::Demo);
        }
        // The name alone: the service of this machine.
        if let Ok(implementation) = text.parse::<Implementation>() {
            let (server, root) = (implementation.default_server().to_owned(), DEFAULT_ROOT.to_owned());
            return Ok(Self::One(Location { implementation, server, root }));
        }
        let location = |text: &str| text.parse::<Location>().map_err(|error| anyhow::anyhow!("the source {error}"));
        if let Some((kind, _)) = text.split_once(':').filter(|(kind, _)| *kind != Self::TEE)
            && kind.parse::<Implementation>().is_err()
        {
            let names = Implementation::ALL.map(Implementation::name).join(", ");
            bail!("the source {kind:?} is not one of {names}, {} (and {} alone)", Self::TEE, Self::DEMO);
        }
        match text.strip_prefix(Self::TEE).and_then(|rest| rest.strip_prefix(':')) {
            Some(places) => {
                let (primary, secondary) = places
                    .split_once(Self::BETWEEN)
                    .with_context(|| format!("the source {text:?} is not of the form tee:PRIMARY;SECONDARY"))?;
                Ok(Self::Tee(location(primary)?, location(secondary)?))
            }
            None => location(text).map(Self::One),
        }
    }
}

/// Refuses addresses with a user name or a password, without showing them: everybody can read the command line and the
/// mount table.
pub(super) fn refuse_credentials<'a>(places: impl IntoIterator<Item = &'a Location>) -> anyhow::Result<()> {
    if places.into_iter().any(|place| place.server.contains('@')) {
        bail!(
            "the address of a server holds a user name or a password (before its @), which everybody on this host \
             could read: leave it out, and name a file with it (--topo-etcd-user with --topo-etcd-password-file, \
             --topo-zk-auth-file, --consul-auth-static-file)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(text: &str) -> Location {
        text.parse().unwrap()
    }

    #[test]
    fn every_form_of_a_source_is_read() {
        for (text, source) in [
            (
                "etcd2:http://127.0.0.1:2379/vitess/global",
                Source::One(location("etcd2:http://127.0.0.1:2379/vitess/global")),
            ),
            ("etcd2:https://a:1,https://b:2/v/g", Source::One(location("etcd2:https://a:1,https://b:2/v/g"))),
            ("zk2:a:1,b:2|c:3/v/g", Source::One(location("zk2:a:1,b:2|c:3/v/g"))),
            ("consul", Source::One(location("consul:localhost:8500/vitess/global"))),
            ("memory", Source::One(location("memory:memory/vitess/global"))),
            ("etcd2:h/a@b", Source::One(location("etcd2:h/a@b"))),
            ("tee:etcd2:a:1,b:1/v;zk2:c:1/w", Source::Tee(location("etcd2:a:1,b:1/v"), location("zk2:c:1/w"))),
            ("demo", Source::Demo),
        ] {
            assert_eq!(Source::read(text).unwrap(), source, "{text}");
            assert_eq!(Source::is_meant(text), text.contains(':'), "{text}");
        }
        assert!(!Source::is_meant("umount") && !Source::is_meant("/mnt/a:b"));
    }

    #[test]
    fn what_is_no_source_is_refused_with_the_reason() {
        for (text, reason) in [
            ("none", "\"none\" is not of the form IMPLEMENTATION:SERVERS/ROOT"),
            ("Demo", "IMPLEMENTATION:SERVERS/ROOT: did you mean \"demo\"?"),
            (
                "etcd:h/r",
                "\"etcd\" is not one of etcd2, zk2, consul, memory, tee (and demo alone): did you mean \"etcd2\"?",
            ),
            ("zk:h/r", "did you mean \"zk2\"?"),
            ("zookeeper:h/r", "did you mean \"zk2\"?"),
            ("etcd2:h:2379", "has no root: it must end like etcd2:SERVERS/vitess/global"),
            ("tee:etcd2:h/r", "tee:PRIMARY;SECONDARY"),
            ("tee:etcd2:h/r;zk:i/r", "\"zk\" is not one of"),
            ("etcd2:h/\u{1b}[2J", "control characters"),
        ] {
            let error = format!("{:#}", Source::read(text).unwrap_err());
            assert!(error.contains(reason) && !error.contains('\u{1b}'), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_in_a_source_is_refused_and_not_shown() {
        for text in [
            "etcd2:http://user:geheim@h:2379/vitess/global",
            "etcd2:user:geheim@h:2379/r",
            "etcd2:a:1,http://user:geheim@h/r",
            "tee:etcd2:h/r;consul:http://user:geheim@h/r",
            "tee:etcd2:http://user:geheim@h/r",
            "etcd2:http://user:geheim@h",
            "user:geheim@h/r",
        ] {
            let error = format!("{:#}", Source::read(text).unwrap_err());
            assert!(!error.contains("geheim") && !error.contains("user:"), "{text}: {error}");
        }
        let error = format!("{:#}", Source::read("etcd2:http://user:geheim@h/r").unwrap_err());
        assert!(error.contains("--topo-etcd-password-file"), "{error}");
    }
}
