//! Topology services. `contract` says what topofs needs of one; each service has a folder or a file that does it and
//! knows no other; `open` chooses between them. `faulty` stands around any of them, for tests. What all of them need is
//! beside: `keys` (spelling), `lock` (the layout of locks, and keeping them alive), `location` and `servers` (where,
//! and who gets credentials).

pub mod consul;
mod contract;
pub mod etcd2;
pub mod faulty;
mod keys;
mod location;
pub mod lock;
pub mod memory;
mod open;
mod options;
mod servers;
pub mod zk2;

pub use contract::*;
pub use location::{Implementation, Location};
pub use open::open;
pub use options::{ConnectOptions, Wrap};
pub use servers::{CellServers, Named};
