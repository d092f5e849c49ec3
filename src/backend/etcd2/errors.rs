//! The errors of etcd and its client, and their meaning.

use etcd_client::WatchResponse;

use crate::backend::contract::{BackendError, Failure};

// tonic's numbers: https://grpc.io/docs/guides/status-codes
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;
const UNAUTHENTICATED: i32 = 16;

/// Messages of an endpoint that cannot serve now and has done nothing: another one may serve.
const CANNOT_SERVE: [&str; 5] = [
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: not capable",
    "rpc not supported for learner",
    "etcdserver: too many requests",
];

/// The message of a server's transport if a request is too large.
const LARGER_THAN_TAKEN: &str = "received message larger than max";

/// The message of our own transport if an answer is too large.
const LARGER_THAN_WE_TAKE: &str = "decoded message length too large";

/// The class of a failure, and its text for people.
pub(super) fn classify(error: &etcd_client::Error) -> BackendError {
    let etcd_client::Error::GRpcStatus(status) = error else {
        let failure = match error {
            etcd_client::Error::IoError(_)
            | etcd_client::Error::TransportError(_)
            | etcd_client::Error::WatchError(_) => Failure::Unreachable,
            _ => Failure::Other,
        };
        return BackendError::new(failure, with_sources(error));
    };
    let mut text = with_sources(status);
    if status.message().contains("user name is empty") {
        text.push_str(" (it asks for a user: --topo-etcd-user and --topo-etcd-password-file)");
    }
    BackendError::new(class(status.code() as i32, status.message()), text)
}

/// gRPC codes as etcd uses them.
fn class(code: i32, message: &str) -> Failure {
    match code {
        _ if cannot_serve(message) => Failure::Unreachable,
        // The answer is not from etcd, or only from a part of it.
        UNAVAILABLE | DEADLINE_EXCEEDED | CANCELLED | UNIMPLEMENTED => Failure::Unreachable,
        // The server's own message; without one, the transport has broken.
        UNKNOWN | INTERNAL if !message.starts_with("etcdserver") => Failure::Unreachable,
        PERMISSION_DENIED | UNAUTHENTICATED => Failure::Denied,
        NOT_FOUND => Failure::NoNode,
        INVALID_ARGUMENT if message.contains("too large") => Failure::TooLarge,
        INVALID_ARGUMENT if message.contains("too many operations") => Failure::TooMany,
        INVALID_ARGUMENT if message.contains("authentication") || message.contains("user name") => Failure::Denied,
        FAILED_PRECONDITION if message.contains("authentication") => Failure::Denied,
        RESOURCE_EXHAUSTED if message.contains(LARGER_THAN_TAKEN) => Failure::TooLarge,
        RESOURCE_EXHAUSTED if message.contains("space exceeded") => Failure::NoSpace,
        OUT_OF_RANGE | RESOURCE_EXHAUSTED if message.contains(LARGER_THAN_WE_TAKE) => Failure::TooLarge,
        OUT_OF_RANGE if message.contains("compacted") => Failure::Compacted,
        OUT_OF_RANGE if message.contains("future revision") => Failure::NotKept,
        _ => Failure::Other,
    }
}

fn cannot_serve(message: &str) -> bool {
    CANNOT_SERVE.iter().any(|words| message.contains(words))
}

/// Whether the request was certainly not carried out: it did not reach a server, or the server has refused it.
pub(super) fn is_refusal(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return never_sent(error) };
    refuses(status.code() as i32, status.message()) || never_sent(error)
}

fn refuses(code: i32, message: &str) -> bool {
    match code {
        _ if cannot_serve(message) => true,
        PERMISSION_DENIED | UNAUTHENTICATED | INVALID_ARGUMENT | NOT_FOUND | ALREADY_EXISTS | FAILED_PRECONDITION
        | UNIMPLEMENTED => true,
        // The transport's message about an answer that is too large for us is not one of them: the server has carried
        // out the request.
        RESOURCE_EXHAUSTED => message.starts_with("etcdserver") || message.contains(LARGER_THAN_TAKEN),
        OUT_OF_RANGE => message.starts_with("etcdserver"),
        _ => false,
    }
}

fn never_sent(error: &etcd_client::Error) -> bool {
    let text = with_sources(error);
    text.contains("Connection refused") || text.contains("dns error") || text.contains("connect error")
}

/// Whether the token of a connection is older than the last change of users or rights; a new connection gets a new
/// token.
pub(super) fn is_of_old_token(error: &BackendError) -> bool {
    error.message.contains("revision of auth store is old")
}

/// The whole chain of causes: the reason for a failed connection is at its end.
fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<etcd_client::Error>() {
        None => String::new(),
        Some(error) => error.to_string(),
    };
    if text.is_empty() {
        text = status_text(error);
    }
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A gRPC status prints its whole metadata; only its message is readable.
fn status_text(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error.to_string();
    match text.split_once("message: \"") {
        Some((_, rest)) => rest.split_once('"').map_or(text.clone(), |(message, _)| message.to_owned()),
        None => text,
    }
}

/// The error of a watch that etcd has cancelled.
pub(super) fn cancelled(response: &WatchResponse) -> BackendError {
    if response.compact_revision() > 0 {
        let message = format!("history before revision {} is compacted", response.compact_revision());
        return BackendError::new(Failure::Compacted, message);
    }
    let failure = if response.cancel_reason().contains("permission") { Failure::Denied } else { Failure::Other };
    BackendError::new(failure, format!("etcd cancelled the watch: {}", response.cancel_reason()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_not_called_uncertain() {
        for (code, message, failure) in [
            (PERMISSION_DENIED, "etcdserver: permission denied", Failure::Denied),
            (UNAUTHENTICATED, "etcdserver: invalid auth token", Failure::Denied),
            (INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password", Failure::Denied),
            (INVALID_ARGUMENT, "etcdserver: request is too large", Failure::TooLarge),
            (INVALID_ARGUMENT, "etcdserver: too many operations in txn request", Failure::TooMany),
            (RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Failure::NoSpace),
            (RESOURCE_EXHAUSTED, "etcdserver: too many requests", Failure::Unreachable),
            (RESOURCE_EXHAUSTED, "grpc: received message larger than max (3 vs. 2)", Failure::TooLarge),
            (OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Failure::Compacted),
            (OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", Failure::NotKept),
            (UNAVAILABLE, "etcdserver: no leader", Failure::Unreachable),
            (FAILED_PRECONDITION, "etcdserver: rpc not supported for learner", Failure::Unreachable),
            (UNAVAILABLE, "etcdserver: rpc not supported for learner", Failure::Unreachable),
            (UNIMPLEMENTED, "unknown service etcdserverpb.KV", Failure::Unreachable),
        ] {
            assert_eq!(class(code, message), failure, "{message}");
            assert!(refuses(code, message), "{message}");
        }
    }

    #[test]
    fn what_may_have_happened_is_called_uncertain() {
        for (code, message, failure) in [
            (UNAVAILABLE, "etcdserver: request timed out", Failure::Unreachable),
            (UNAVAILABLE, "etcdserver: leader changed", Failure::Unreachable),
            (UNAVAILABLE, "etcdserver: server stopped", Failure::Unreachable),
            (UNKNOWN, "h2 protocol error: connection reset", Failure::Unreachable),
            (INTERNAL, "Missing response message.", Failure::Unreachable),
            (CANCELLED, "operation was canceled", Failure::Unreachable),
            (OUT_OF_RANGE, "Error, decoded message length too large: found 5 bytes", Failure::TooLarge),
        ] {
            assert_eq!(class(code, message), failure, "{message}");
            assert!(!refuses(code, message), "{message}");
        }
    }
}
