//! The global topology and its cells: whether they answer, are what they should be, and may be used.

use std::sync::Arc;

use futures::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::reach::reach;
use super::records::records;
use super::rights::rights;
use super::{Finding, Report};
use crate::backend::inspect::Inspect;
use crate::backend::{
    BackendError, ConnectOptions, Failure, Implementation, Listing, Location, Node, Role, inspect, open,
};
use crate::cells::CellOptions;
use crate::name::{CellName, TopoPath};
use crate::record::layout::{CELL_INFO, CELLS, Key, cell_of_info};
use crate::record::{CellInfo, Records};
use crate::topology::copy::counted;

/// Cells that are looked at together.
const AT_A_TIME: usize = 8;
/// Most other roots to name.
const ROOTS: usize = 5;
/// How much longer than an operation timeout a step may take.
const MARGIN: std::time::Duration = std::time::Duration::from_secs(1);

/// What is looked at, and how.
pub(in crate::cli) struct Looking {
    pub options: CellOptions,
    pub records: Arc<Records>,
    /// Nothing will be written.
    pub read_only: bool,
    /// When it must be over.
    pub deadline: Instant,
}

/// Looks at everything, and tells it as it comes.
pub(in crate::cli) async fn look(looking: &Looking, report: &mut Report<'_>) {
    let second = looking.options.connect.tee.as_ref().map(|tee| tee.secondary.clone());
    if let Some(second) = second.as_ref().filter(|second| looking.options.global.overlaps(second)) {
        let text = format!("{second} has keys in common with the primary, {}", looking.options.global);
        report.add(Finding::failed("flags", "--tee-secondary", text, "name another place"));
        return;
    }
    for (global, name) in [(Some(looking.options.global.clone()), "global"), (second, "global (secondary)")] {
        let Some(global) = global else { continue };
        let work = look_at_global(looking, &global, name, report);
        if timeout_at(looking.deadline, work).await.is_err() {
            report.add(out_of_time(name));
        }
    }
}

async fn look_at_global(looking: &Looking, global: &Location, name: &str, report: &mut Report<'_>) {
    let (found, nodes) = look_at_place(looking, &CellName::global(), global, name).await;
    report.extend(found);
    let Some(nodes) = nodes else { return };
    let (cells, unusable) = cells_of(looking, global, &nodes);
    report.extend(unusable);
    let looks = cells.into_iter().map(|(cell, location)| async move {
        let subject = if name == "global" { format!("cell {cell}") } else { format!("cell {cell} (secondary)") };
        let look = look_at_cell(looking, global, (&cell, &location), &subject);
        timeout_at(looking.deadline, look).await.unwrap_or_else(|_| vec![out_of_time(&subject)])
    });
    let mut looks = futures::stream::iter(looks).buffered(AT_A_TIME);
    while let Some(found) = looks.next().await {
        report.extend(found);
    }
}

fn out_of_time(subject: &str) -> Finding {
    Finding::failed(
        "service",
        subject,
        "not looked at to the end: the time is over",
        "check it again by itself, with --cells",
    )
}

/// The cells that the records of a global topology name, and why others cannot be looked at.
fn cells_of(looking: &Looking, global: &Location, nodes: &[Node]) -> (Vec<(CellName, Location)>, Vec<Finding>) {
    let (mut cells, mut unusable) = (Vec::new(), Vec::new());
    let only = looking.options.only.as_deref();
    for node in nodes.iter().filter(|node| node.role == Role::Record) {
        let Some((called, name)) = cell_of_info(&node.path) else { continue };
        let mut refuse = |text: &str, advice: &str| {
            unusable.push(Finding::failed("cell", format!("cell {called}"), text, advice));
        };
        match (name, looking.records.cell_info(&node.value)) {
            (Err(reason), _) => refuse(&format!("is not shown: {reason}"), "remove the record"),
            (Ok(name), _) if only.is_some_and(|only| !only.contains(&name)) => {}
            (Ok(_), None) => refuse("is not shown: its CellInfo record cannot be decoded", "write it anew"),
            (Ok(name), Some(CellInfo { server, root })) => {
                cells.push((name, Location { implementation: global.implementation, server, root }));
            }
        }
    }
    for name in only.into_iter().flatten().filter(|name| !name.is_global()) {
        let path = Key::CellInfo(name.as_str()).to_string();
        if !nodes.iter().any(|node| node.path.as_str() == path) {
            let advice = "correct --cells, or make the record";
            unusable.push(Finding::failed("cell", format!("cell {name}"), "has no CellInfo record", advice));
        }
    }
    (cells, unusable)
}

async fn look_at_cell(
    looking: &Looking,
    global: &Location,
    (cell, location): (&CellName, &Location),
    subject: &str,
) -> Vec<Finding> {
    if let Err(error) = looking.options.servers.check(location, global, &looking.options.connect) {
        let advice = "allow the servers with --cell-servers, if they are yours";
        return vec![Finding::failed("cell", format!("{subject} at {location}"), error.message, advice)];
    }
    look_at_place(looking, cell, location, subject).await.0
}

/// Looks at one cell, wherever it is. Returns its records, if they could be read.
async fn look_at_place(
    looking: &Looking,
    cell: &CellName,
    location: &Location,
    subject: &str,
) -> (Vec<Finding>, Option<Vec<Node>>) {
    let options = &looking.options.connect;
    let mut found = Vec::new();
    if location.implementation == Implementation::Memory {
        found.push(Finding::ok("service", subject, "is in the memory of the mount, and ends with it"));
        return (found, None);
    }
    let opened = inspect(cell, location, options).and_then(|service| Ok((service, open(cell, location, options)?)));
    let (service, backend) = match opened {
        Ok((Some(service), backend)) => (service, backend),
        Ok((None, _)) => return (found, None),
        Err(error) => {
            found.push(Finding::failed(
                "flags",
                format!("{subject} at {location}"),
                error.message,
                "correct the flags or files",
            ));
            return (found, None);
        }
    };
    let (reached, is_reached) = reach(subject, location, options).await;
    found.extend(reached);
    if !is_reached {
        return (found, None);
    }
    let patience = options.timeout + MARGIN;
    let about = timeout(patience, service.about()).await.unwrap_or_else(|_| Err(late(options.timeout)));
    match about {
        Ok(about) => found.push(Finding::ok("service", format!("{subject} at {location}"), about)),
        Err(error) => {
            found.push(refused("service", subject, location, &error, options));
            return (found, None);
        }
    }
    let listing = match backend.list(&TopoPath::root()).await {
        Ok(listing) => listing,
        Err(error) => {
            found.push(refused("root", subject, location, &error, options));
            return (found, None);
        }
    };
    found.push(root(cell, location, subject, &listing, &*service).await);
    found.extend(records(cell, subject, &listing.nodes, &looking.records));
    if looking.read_only {
        found.push(Finding::ok("rights", subject, "may read; nothing will be written (--read-only)"));
    } else {
        found.push(rights(cell, subject, &listing.nodes, &*service).await);
    }
    (found, Some(listing.nodes))
}

fn late(waited: std::time::Duration) -> BackendError {
    BackendError::new(Failure::Unreachable, format!("no answer within {}", humantime::format_duration(waited)))
}

/// The flags that say who asks, if nobody has said it.
fn missing(implementation: Implementation, options: &ConnectOptions) -> Option<&'static str> {
    match implementation {
        Implementation::Etcd2 if options.etcd.user.is_none() && options.etcd.cert.is_none() => {
            Some("no user was named: name one with --topo-etcd-user and --topo-etcd-password-file")
        }
        Implementation::Zk2 if options.zk.auth_file.is_none() => {
            Some("nobody was named: name a file with a user, --topo-zk-auth-file")
        }
        Implementation::Consul if options.consul.auth_file.is_none() => {
            Some("no token was named: name a file with one, --consul-auth-static-file")
        }
        _ => None,
    }
}

/// Why a service that can be reached is not of use.
fn refused(
    step: &'static str,
    subject: &str,
    location: &Location,
    error: &BackendError,
    options: &ConnectOptions,
) -> Finding {
    let tls = options.wants_tls(location.implementation);
    let missing = missing(location.implementation, options).filter(|_| error.failure == Failure::Denied);
    let usual = match error.failure {
        Failure::Denied if step == "root" => "give this user the rights to read everything below the root",
        Failure::Denied => "correct the user, the password or the token",
        Failure::Unreachable if tls => {
            "name the authority that has signed the server's certificate with --topo-*-tls-ca, or use another one"
        }
        Failure::Unreachable => "is it this kind of service, does it expect TLS, and has it a quorum?",
        _ => "is it this kind of service? see its message",
    };
    let advice = missing.unwrap_or(usual);
    let step = if error.failure == Failure::Denied && step == "service" { "auth" } else { step };
    Finding::failed(step, format!("{subject} at {location}"), error.message.clone(), advice)
}

fn keys(count: u64) -> String {
    counted(usize::try_from(count).unwrap_or(usize::MAX), "key", "keys")
}

/// Whether what is below the root looks like a topology.
async fn root(
    cell: &CellName,
    location: &Location,
    subject: &str,
    listing: &Listing,
    service: &dyn Inspect,
) -> Finding {
    let whole = format!("{subject} at {location}");
    let records: Vec<&Node> = listing.nodes.iter().filter(|node| node.role == Role::Record).collect();
    let known = |wanted: fn(&Key<'_>) -> bool| {
        records.iter().filter_map(|node| Key::of(cell, &node.path)).filter(wanted).count()
    };
    let stored = counted(records.len(), "record", "records");
    if !cell.is_global() {
        let tablets = known(|key| matches!(key, Key::Tablet(_)));
        return Finding::ok("root", whole, format!("{stored}, {}", counted(tablets, "tablet", "tablets")));
    }
    let cells = known(|key| matches!(key, Key::CellInfo(_)));
    let keyspaces = known(|key| matches!(key, Key::Keyspace(_)));
    let called = counted(keyspaces, "keyspace", "keyspaces");
    if cells > 0 {
        return Finding::ok("root", whole, format!("{stored}, {}, {called}", counted(cells, "cell", "cells")));
    }
    let found = service.roots().await.unwrap_or_default();
    let own = location.clean_root();
    let at = |root: &str| Location { root: root.to_owned(), ..location.clone() };
    let clean = |root: &str| at(root).clean_root();
    let is_other = |root: &str| at(root).beginning_of_keys() != location.beginning_of_keys();
    let mut others: Vec<&(String, u64)> = found.iter().filter(|(root, _)| is_other(root)).collect();
    // The source above shows a slash, which the keys of etcd have or not.
    let as_given = match location.implementation {
        Implementation::Etcd2 if !location.root.starts_with('/') => {
            format!(" (the root is {}, without a slash at its beginning)", location.root)
        }
        _ => String::new(),
    };
    // A directory too much or too little is the usual mistake, and `global` the usual name.
    others.sort_by_key(|(root, count)| {
        (clean(root) != own, !clean(root).starts_with(&own), !root.ends_with("/global"), std::cmp::Reverse(*count))
    });
    let named = others.iter().take(ROOTS).map(|(root, count)| format!("{root} has {}", keys(*count)));
    let hint =
        if others.is_empty() { String::new() } else { format!(", but {}", named.collect::<Vec<_>>().join(", ")) };
    let advice = match others.first() {
        Some((root, _)) => format!("is it --topo-global-root {root}?"),
        None => format!("correct --topo-global-root; a new topology begins with a {CELLS}/NAME/{CELL_INFO} record"),
    };
    match records.len() {
        0 => Finding::failed("root", whole, format!("nothing is stored there{as_given}{hint}"), &advice),
        _ => {
            let text = format!("{stored}, no cells, {called}{as_given}{hint}");
            match (keyspaces, others.is_empty()) {
                (0, false) => Finding::failed("root", whole, text, &advice),
                _ => Finding::warning("root", whole, text, &advice),
            }
        }
    }
}
