//! Finds out how large a request the servers accept.
//!
//! A client cannot ask for ZooKeeper's limit (jute.maxbuffer). A server closes the connection of a larger request, and
//! so ends all other calls on it. So a large request is first tried on a separate connection, with a question that
//! changes nothing.

use zookeeper_client::Error as ZkError;

use super::session::{CallError, Sessions};

/// The default limit of a server, in bytes. It is tried first, so that most servers are asked only once.
const DEFAULT: usize = 0xf_ffff;
/// Bytes of the question besides its path: xid, operation, length of the path, no watch.
const AROUND: usize = 4 + 4 + 4 + 1;
/// After so many closed connections, the size is the reason, if small requests get answers in between.
const TRIES: usize = 2;

impl Sessions {
    /// Fails with [`CallError::TooLarge`] if the servers accept no request of so many bytes. `doubtful` means that a
    /// request was lost on the way.
    pub async fn admit(&self, bytes: usize, doubtful: bool) -> Result<(), CallError> {
        match self.sizes.admits(bytes, doubtful) {
            Some(true) => return Ok(()),
            Some(false) => return Err(CallError::TooLarge(bytes)),
            None => {}
        }
        if bytes < DEFAULT && self.takes(DEFAULT).await? || self.takes(bytes).await? {
            return Ok(());
        }
        tracing::warn!(
            bytes,
            "the servers close the connection on a request of this size: their jute.maxbuffer is smaller"
        );
        Err(CallError::TooLarge(bytes))
    }

    async fn takes(&self, bytes: usize) -> Result<bool, CallError> {
        // No node has this name, and the answer says so.
        let question = format!("/{}", "x".repeat(bytes.saturating_sub(AROUND + 1)));
        for _ in 0..TRIES {
            let client = self.open().await?;
            match self.bounded(client.check_stat(&question)).await {
                Err(CallError::Client(error)) if is_closed(&error) => {}
                Err(error @ (CallError::NoAnswer | CallError::Unreachable(_))) => return Err(error),
                // Any answer means that the server has read the request.
                Ok(_) | Err(_) => {
                    self.sizes.accept(bytes);
                    return Ok(true);
                }
            }
        }
        // A server that has just died also closes connections.
        let client = self.open().await?;
        self.bounded(client.check_stat("/")).await?;
        self.sizes.refuse(bytes);
        Ok(false)
    }
}

/// Whether the connection has ended before the answer.
fn is_closed(error: &ZkError) -> bool {
    matches!(error, ZkError::ConnectionLoss | ZkError::Custom(_) | ZkError::ClientClosed | ZkError::SessionExpired)
}
