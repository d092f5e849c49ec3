//! What has happened: events, refused operations, requests of the kernel; and the names of the metrics. Knows only
//! names and errors. The other modules write here what they do, and `.topofs` shows it.

use serde_json::json;

mod events;
pub mod metrics;
mod refusals;
mod requests;

pub use events::{EventLog, Reader};
pub use refusals::{Refusal, RefusalLog};
pub use requests::{Op, Requests};

/// RFC 3339 in UTC with milliseconds.
pub(crate) fn timestamp(time: std::time::SystemTime) -> serde_json::Value {
    json!(humantime::format_rfc3339_millis(time).to_string())
}
