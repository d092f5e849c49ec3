//! What can be mounted, and is probably not what was meant: whoever mounts should know. Must never stop a mount.

use super::{Readiness, Settings};
use crate::backend::Implementation;
use crate::cells::Cells;
use crate::name::CellName;

/// Who could look into a mount if nobody else may, although the files belong to somebody else. `None` if all is well.
pub fn shut_out(uid: u32, gid: u32, allow_other: bool) -> Option<String> {
    let (own_uid, own_gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    if allow_other || (uid, gid) == (own_uid, own_gid) {
        return None;
    }
    Some(format!(
        "only uid {own_uid} can look in, although the files belong to uid {uid} and gid {gid}: add allow_other"
    ))
}

/// Before the mount: what the settings alone say.
pub(super) fn of_settings(settings: &Settings, ready: &Readiness) {
    if let Some(warning) = shut_out(settings.tree.uid, settings.tree.gid, settings.allow_other) {
        tracing::warn!("{warning}");
        tell(&warning, ready);
    }
}

/// Once the global topology is known.
pub(super) fn of_cells(cells: &Cells, settings: &Settings, ready: &Readiness) {
    // A wrong root is an empty topology. That is legal.
    if let Some(global) = cells.get(&CellName::global())
        && global.location.implementation != Implementation::Memory
        && global.mirror.snapshot().records.is_empty()
    {
        let warning = format!("{global}: nothing is stored there (is the root right?)");
        tracing::warn!("{warning}");
        tell(&warning, ready);
    }
    let hidden = cells.hidden();
    for (name, reason) in settings.cells.only.iter().flatten().filter_map(|name| hidden.get_key_value(name.as_str())) {
        // The log has it.
        tell(&format!("cell {name} cannot be shown: {reason}"), ready);
    }
}

/// Tells the terminal, if somebody waits there and does not see the log. If it is closed, nothing is lost.
fn tell(warning: &str, ready: &Readiness) {
    if ready.is_awaited() {
        // A reason may hold words of a record.
        let line = format!("topofs: {}\n", crate::plain::shown(warning));
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }
}
