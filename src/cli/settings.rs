//! From flags to the settings of a mount.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use super::commands::demo::DemoArgs;
use super::commands::mount::{CommonArgs, MountArgs};
use super::flags::Fault;
use super::flags::topo::TopoArgs;
use super::flags::view::ViewArgs;
use super::source::Source;
use crate::backend::faulty::Faulty;
use crate::backend::memory::MemoryServers;
use crate::backend::{ConnectOptions, Implementation, Location, TeeOptions, Wrap};
use crate::cells::CellOptions;
use crate::control::SetLogLevel;
use crate::mirror::{HistoryLimits, MirrorOptions};
use crate::mount::{CannotMount, MountPoint, Settings, operation_timeout, request_timeout, shut_out};
use crate::name::CellName;
use crate::record::{Codec, Kinds, Records};
use crate::sample::Cluster;
use crate::tree::TreeOptions;

/// The name of the demo's service.
const DEMO_SERVER: &str = Source::DEMO;

impl MountArgs {
    /// The settings of a mount of the given topology.
    pub fn settings(&self, set_log_level: SetLogLevel) -> anyhow::Result<Settings> {
        let source = self.source();
        let cells = self.topo.cells(source)?;
        let settings = self.common.settings(self.mountpoint(), cells, self.topo.retry, set_log_level)?;
        // mount(8) knows a mount that it has made by what it was told.
        let source = source.and_then(OsStr::to_str).map_or(settings.source, str::to_owned);
        Ok(Settings { source, ..settings })
    }
}

impl DemoArgs {
    /// The settings of a mount of the sample cluster.
    pub fn settings(&self, set_log_level: SetLogLevel) -> anyhow::Result<Settings> {
        let settings = self.common.settings(&self.mountpoint, demo_cells()?, Duration::ZERO, set_log_level)?;
        // As `mount -t topofs demo` shows it.
        Ok(Settings { source: Source::DEMO.to_owned(), ..settings })
    }
}

impl CommonArgs {
    fn settings(
        &self,
        mountpoint: &Path,
        mut cells: CellOptions,
        retry: Duration,
        set_log_level: SetLogLevel,
    ) -> anyhow::Result<Settings> {
        put_faults_in(&mut cells)?;
        let mut settings = self.view.settings(mountpoint, cells, retry, set_log_level)?;
        settings.metrics = self.process.metrics_address;
        settings.spin = self.process.spin;
        if let Some(config) = settings.config.as_object_mut() {
            config.insert("metrics-address".to_owned(), json!(settings.metrics.map(|address| address.to_string())));
            config.insert("spin".to_owned(), json!(humantime::format_duration(settings.spin).to_string()));
        }
        Ok(settings)
    }
}

/// The sample cluster.
fn demo_cells() -> anyhow::Result<CellOptions> {
    let location = |root: &str| Location {
        implementation: Implementation::Memory,
        server: DEMO_SERVER.to_owned(),
        root: root.to_owned(),
    };
    let memory = MemoryServers::default();
    let cluster = Cluster::demo(DEMO_SERVER);
    for (cell, path, value) in cluster.records(&Codec::builtin()?)? {
        memory.put(&location(&format!("{}/{cell}", cluster.root)), &path, value)?;
    }
    let mirror = MirrorOptions {
        resync_interval: Duration::from_secs(300),
        stale_after: Duration::from_secs(10),
        serve_stale: false,
    };
    let global = location(&format!("{}/{}", cluster.root, CellName::GLOBAL));
    Ok(CellOptions::new(global, ConnectOptions { memory, ..ConnectOptions::default() }, mirror))
}

impl TopoArgs {
    /// How the cells are connected: those of a source, or else of the flags.
    pub(super) fn cells(&self, source: Option<&OsStr>) -> anyhow::Result<CellOptions> {
        let source = source.map(|source| source.to_str().context("the source must be UTF-8")).transpose()?;
        match source.map(Source::read).transpose()? {
            None => self.cell_options(self.global.places()?),
            Some(Source::Demo) => demo_cells(),
            Some(source) => self.cell_options(self.global.places_of(source)?),
        }
    }

    fn cell_options(&self, (global, tee): (Location, Option<TeeOptions>)) -> anyhow::Result<CellOptions> {
        let only = self.cells.as_ref().map(|names| {
            let parsed = names
                .iter()
                .filter(|name| !name.is_empty())
                .map(|name| CellName::new(name).with_context(|| format!("--cells: {name:?}")));
            parsed.collect::<anyhow::Result<Vec<_>>>()
        });
        Ok(CellOptions {
            global,
            connect: ConnectOptions { tee, ..self.connect.options()? },
            servers: self.connect.cell_servers.clone(),
            mirror: MirrorOptions {
                resync_interval: self.resync_interval,
                stale_after: self.stale_after,
                serve_stale: self.serve_stale,
            },
            only: only.transpose()?.filter(|names| !names.is_empty()),
            history: HistoryLimits::default(),
        })
    }
}

impl ViewArgs {
    fn settings(
        &self,
        mountpoint: &Path,
        mut cells: CellOptions,
        retry: Duration,
        set_log_level: SetLogLevel,
    ) -> anyhow::Result<Settings> {
        let timeout = &mut cells.connect.timeout;
        *timeout = operation_timeout(*timeout, request_timeout());
        let bytes = usize::try_from(self.history_memory).unwrap_or(usize::MAX);
        cells.history = HistoryLimits { versions: self.history, bytes };
        let records = self.records()?;
        let mountpoint = MountPoint::open(mountpoint).map_err(|error| CannotMount::new(mountpoint, &error))?;
        Ok(Settings {
            config: self.config(mountpoint.path(), &cells),
            source: cells.source(),
            mountpoint,
            cells,
            records,
            tree: self.tree_options(),
            allow_other: self.allow_other,
            retry,
            set_log_level,
            metrics: None,
            spin: Duration::ZERO,
        })
    }

    /// What records mean. Fails if the flags contradict each other.
    pub(super) fn records(&self) -> anyhow::Result<Arc<Records>> {
        let codec = match &self.descriptor_set {
            Some(file) => Codec::from_file(file)?,
            None => Codec::builtin()?,
        };
        if let Some(glob) = self.record.iter().find(|glob| !glob.trim_start_matches('/').contains('/')) {
            anyhow::bail!("--record {glob}: must have the form CELL/PATH");
        }
        let kinds = Kinds::new(&self.record).context("--record")?;
        if self.tree_options().list.is_empty() {
            anyhow::bail!("--list contains no form from --forms: directories would look empty");
        }
        Ok(Records::new(codec, kinds))
    }

    /// Why those to whom the files belong could not look in.
    pub(super) fn shut_out(&self) -> Option<String> {
        let tree = self.tree_options();
        shut_out(tree.uid, tree.gid, self.allow_other)
    }

    fn tree_options(&self) -> TreeOptions {
        let list = self.list.clone().unwrap_or_else(|| self.forms.clone());
        TreeOptions {
            read_only: self.read_only,
            no_delete: self.no_delete,
            force_cell_removal: self.force_cell_removal,
            list: list.into_iter().filter(|form| self.forms.contains(form)).collect(),
            forms: self.forms.clone(),
            views: self.views,
            uid: self.uid.unwrap_or_else(|| nix::unistd::getuid().as_raw()),
            gid: self.gid.unwrap_or_else(|| nix::unistd::getgid().as_raw()),
            umask: self.umask,
            scratch_quota: self.scratch_quota,
            respect_locks: self.respect_locks,
            request_timeout: request_timeout(),
            direct_io: self.direct_io,
            allow_unseen_writers: self.allow_unseen_writers,
        }
    }

    /// The effective settings, without the password.
    fn config(&self, mountpoint: &Path, cells: &CellOptions) -> serde_json::Value {
        let CellOptions { global, connect, servers, mirror, only, history } = cells;
        let tree = self.tree_options();
        let tee = connect.tee.as_ref();
        let one = tee.is_none().then_some(global);
        let duration = |time: Duration| humantime::format_duration(time).to_string();
        // A path may contain any bytes; JSON is text.
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let topology = json!({
            "mountpoint": mountpoint.to_string_lossy(),
            "topo-implementation": if tee.is_some() { "tee" } else { global.implementation.name() },
            "topo-global-server-address": one.map(|global| &global.server),
            "topo-global-root": one.map(|global| &global.root),
            "tee-primary": tee.map(|_| global.to_string()),
            "tee-secondary": tee.map(|tee| tee.secondary.to_string()),
            "tee-reverse-lock-order": tee.map(|tee| tee.reverse_lock_order),
            "topo-etcd-tls-cert": path(&connect.etcd.cert),
            "topo-etcd-tls-key": path(&connect.etcd.key),
            "topo-etcd-tls-ca": path(&connect.etcd.ca),
            "topo-etcd-lease-ttl": duration(connect.etcd.lease_ttl),
            "topo-etcd-max-request-bytes": connect.etcd.max_request_bytes,
            "topo-etcd-user": connect.etcd.user.as_ref().map(|(name, _)| name),
            // The name of the file, as for other secrets: `topofs check` reads it again.
            "topo-etcd-password-file": path(&connect.etcd.password_file),
            "topo-zk-auth-file": path(&connect.zk.auth_file),
            "topo-zk-tls-cert": path(&connect.zk.cert),
            "topo-zk-tls-key": path(&connect.zk.key),
            "topo-zk-tls-ca": path(&connect.zk.ca),
            "topo-zk-max-concurrency": connect.zk.max_concurrency,
            "topo-zk-base-timeout": duration(connect.zk.base_timeout),
            "consul-auth-static-file": path(&connect.consul.auth_file),
            "topo-consul-tls-cert": path(&connect.consul.cert),
            "topo-consul-tls-key": path(&connect.consul.key),
            "topo-consul-tls-ca": path(&connect.consul.ca),
            "topo-consul-watch-poll-duration": duration(connect.consul.poll_duration),
            "topo-consul-lock-session-ttl": duration(connect.consul.lock_session_ttl),
            "topo-consul-lock-session-checks": connect.consul.lock_session_checks,
            "topo-consul-lock-delay": duration(connect.consul.lock_delay),
            "cells": only.as_ref().map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>()),
            "cell-servers": servers.to_string(),
            "remote-operation-timeout": duration(connect.timeout),
        });
        // Two objects, because the macro cannot take more members in one.
        let files = json!({
            "resync-interval": duration(mirror.resync_interval),
            "stale-after": duration(mirror.stale_after),
            "serve-stale": mirror.serve_stale,
            "read-only": tree.read_only,
            "no-delete": tree.no_delete,
            "force-cell-removal": tree.force_cell_removal,
            "forms": tree.forms,
            "list": tree.list,
            "views": tree.views,
            "record": self.record,
            "descriptor-set": path(&self.descriptor_set),
            "uid": tree.uid,
            "gid": tree.gid,
            "umask": format!("{:03o}", tree.umask),
            "direct-io": tree.direct_io,
            "respect-locks": tree.respect_locks,
            "allow-other": self.allow_other,
            "allow-unseen-writers": tree.allow_unseen_writers,
            "scratch-quota": tree.scratch_quota,
            "history": history.versions,
            "history-memory": history.bytes,
        });
        let parts = [topology, files].into_iter().filter_map(|part| match part {
            serde_json::Value::Object(part) => Some(part),
            _ => None,
        });
        parts.flatten().collect()
    }
}

/// Faults for tests, as CELL:CALL:NTH:FAULT, separated by spaces. This is no flag: completions show even hidden ones.
const FAULTS: &str = "TOPOFS_TEST_FAULTS";

/// Adds the faults in the environment to their cells.
fn put_faults_in(cells: &mut CellOptions) -> anyhow::Result<()> {
    let Ok(wanted) = std::env::var(FAULTS) else { return Ok(()) };
    let faults = wanted.split_whitespace().map(str::parse).collect::<Result<Vec<Fault>, String>>();
    let faults = faults.map_err(anyhow::Error::msg).context(FAULTS)?;
    let timeout = cells.connect.timeout;
    cells.connect.wrap = Wrap::new(move |cell, backend| {
        let of_cell = faults.iter().filter(|fault| fault.cell == *cell);
        let faulty = Faulty::new(backend, timeout);
        Arc::new(of_cell.fold(faulty, |faulty, Fault { call, nth, fault, .. }| faulty.on(*call, *nth, *fault)))
    });
    Ok(())
}
