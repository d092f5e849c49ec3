//! Finding out how large a request the servers take.
//!
//! ZooKeeper's limit (jute.maxbuffer) cannot be asked for: a server closes the connection on which a larger request
//! comes, and so ends what others wait for on it. So what is large is tried first on a connection of its own, by a
//! question that changes nothing.

use zookeeper_client::Error as ZkError;

use super::session::{CallError, Sessions};

/// The default limit of a server, in bytes. Tried first, so that most servers are asked only once.
const DEFAULT: usize = 0xf_ffff;
/// Bytes of the question beside the path in it: xid, operation, length of the path, no watch.
const AROUND: usize = 4 + 4 + 4 + 1;
/// After so many closed connections the size is the reason, if small requests are answered in between.
const TRIES: usize = 2;

impl Sessions {
    /// Fails with [`CallError::TooLarge`] if the servers take no request of so many bytes. `doubtful` if one was lost
    /// on the way.
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
            "the servers close the connection on a request of this size: it is above their jute.maxbuffer"
        );
        Err(CallError::TooLarge(bytes))
    }

    async fn takes(&self, bytes: usize) -> Result<bool, CallError> {
        // A node of this name does not exist: the answer says so.
        let question = format!("/{}", "x".repeat(bytes.saturating_sub(AROUND + 1)));
        for _ in 0..TRIES {
            let client = self.open().await?;
            match self.bounded(client.check_stat(&question)).await {
                Err(CallError::Client(error)) if is_closed(&error) => {}
                Err(error @ (CallError::NoAnswer | CallError::Unreachable(_))) => return Err(error),
                // Any answer means that the request was read.
                Ok(_) | Err(_) => {
                    self.sizes.accept(bytes);
                    return Ok(true);
                }
            }
        }
        // A server that has just died closes connections, too.
        let client = self.open().await?;
        self.bounded(client.check_stat("/")).await?;
        self.sizes.refuse(bytes);
        Ok(false)
    }
}

/// Whether the connection has ended before there was an answer.
fn is_closed(error: &ZkError) -> bool {
    matches!(error, ZkError::ConnectionLoss | ZkError::Custom(_) | ZkError::ClientClosed | ZkError::SessionExpired)
}
