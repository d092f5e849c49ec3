//! Whether an etcd still has the history that it had: it may have been restored from a backup, or made anew, and its
//! revisions may by now be as high as before. Then they mean something else.

use std::time::Duration;

use tokio::time::timeout;

use super::Etcd;

/// How long to wait for a member's word about itself. Without it, everything is listed.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a cluster is in its own log of all that it has agreed on. In a restored cluster, the log begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lineage {
    pub cluster: u64,
    /// Who says so: others may be behind.
    pub member: u64,
    /// How often a leader was elected.
    pub term: u64,
    pub index: u64,
}

impl Lineage {
    /// Whether this is later in the same history. `None` if that cannot be told: after an election the members' disks
    /// may be those of an earlier day, and another member may be behind.
    pub fn continues(&self, earlier: &Lineage) -> Option<bool> {
        if self.cluster != earlier.cluster || self.term < earlier.term {
            return Some(false);
        }
        match (self.term == earlier.term, self.index >= earlier.index) {
            (true, true) => Some(true),
            (_, false) if self.member == earlier.member => Some(false),
            _ => None,
        }
    }
}

impl Etcd {
    /// What a member says of its cluster; `None` if it does not say anything.
    pub(super) async fn lineage(&self) -> Option<Lineage> {
        let status = self.connection.read(|client| async move { client.maintenance_client().status().await });
        let status = timeout(PATIENCE, status).await.ok()?.ok()?;
        let header = status.header()?;
        Some(Lineage {
            cluster: header.cluster_id(),
            member: header.member_id(),
            term: status.raft_term(),
            index: status.raft_index(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_place_in_the_same_log_goes_on() {
        let earlier = Lineage { cluster: 1, member: 5, term: 3, index: 100 };
        for (later, goes_on) in [
            (Lineage { index: 100, ..earlier }, Some(true)),
            (Lineage { index: 101, member: 6, ..earlier }, Some(true)),
            (Lineage { index: 99, ..earlier }, Some(false)),
            // Behind, or restored.
            (Lineage { index: 99, member: 6, ..earlier }, None),
            (Lineage { index: 200, cluster: 2, ..earlier }, Some(false)),
            (Lineage { index: 200, term: 2, ..earlier }, Some(false)),
            (Lineage { index: 200, term: 4, ..earlier }, None),
            (Lineage { index: 99, term: 4, ..earlier }, Some(false)),
        ] {
            assert_eq!(later.continues(&earlier), goes_on, "{later:?}");
        }
    }
}
