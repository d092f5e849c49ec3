//! Whether servers can be reached at all: their names, and a connection. Sends nothing.

use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::Finding;
use crate::backend::{ConnectOptions, Location};

const STEP: &str = "reach";
/// The longest time for one connection: a server that answers takes milliseconds.
const CONNECT: Duration = Duration::from_secs(5);
/// Most servers of one location to try.
const SERVERS: usize = 32;

/// Tries every server of a location. Returns whether one can be reached.
pub(super) async fn reach(subject: &str, location: &Location, options: &ConnectOptions) -> (Vec<Finding>, bool) {
    let Some(servers) = location.endpoints(options).filter(|servers| !servers.is_empty()) else {
        let text = "is not a list of servers: HOST:PORT,...";
        return (
            vec![Finding::failed(STEP, format!("{subject} at {}", location.server), text, "correct the address")],
            false,
        );
    };
    let hint = location.untold_port(options);
    let patience = options.timeout.min(CONNECT);
    let tried = servers.iter().take(SERVERS).map(|server| connect(subject, server, patience));
    let mut found = futures::future::join_all(tried).await;
    let is_reached = found.iter().any(|(_, is_reached)| *is_reached);
    for (finding, _) in found.iter_mut().filter(|(_, is_reached)| !is_reached) {
        if is_reached {
            // The others do its work.
            finding.outcome = super::Outcome::Warning;
        }
        if let Some(hint) = &hint {
            finding.text += &format!(" ({hint})");
        }
    }
    (found.into_iter().map(|(finding, _)| finding).collect(), is_reached)
}

async fn connect(of: &str, (host, port): &(String, u16), patience: Duration) -> (Finding, bool) {
    let subject =
        if host.contains(':') { format!("{of} at [{host}]:{port}") } else { format!("{of} at {host}:{port}") };
    let waited = humantime::format_duration(patience);
    let failed = |text: String, advice: &str| (Finding::failed(STEP, subject.clone(), text, advice), false);
    let addresses = match timeout(patience, lookup_host((host.as_str(), *port))).await {
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
        Ok(Err(error)) => {
            return failed(format!("the name is not known: {error}"), "correct the name, or look at the name servers");
        }
        Err(_) => return failed(format!("no name server has answered within {waited}"), "look at the name servers"),
    };
    let mut last = None;
    for address in &addresses {
        match timeout(patience, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return (Finding::ok(STEP, subject, format!("a server listens at {address}")), true),
            Ok(Err(error)) => {
                last = Some((format!("{address}: {error}"), "is the server running, and is this its port?"))
            }
            Err(_) => {
                last = Some((
                    format!("{address}: no answer within {waited}"),
                    "is there a firewall or a wrong route on the way?",
                ));
            }
        }
    }
    let (text, advice) = last.unwrap_or_else(|| ("the name has no address".to_owned(), "correct the name"));
    failed(text, advice)
}
