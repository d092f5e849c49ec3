//! Topology services. `contract` says what topofs needs from a service. Each service has a folder or a file that
//! implements it and knows no other service; `open` chooses between them. `faulty` wraps any of them, for tests;
//! `metered` counts and times the calls of each connection; `tee` makes one of two; `inspect` asks what a user may do.
//! The other files are for all services: `keys` (spelling), `lock` (the layout of locks, and keeping them alive),
//! `location` and `servers` (where a cell is, and which servers get credentials), `loading` (how far a list has come),
//! `mark` (where a comparison goes on).

pub mod consul;
mod contract;
pub mod etcd2;
pub mod faulty;
mod files;
pub mod inspect;
mod keys;
mod loading;
mod location;
pub mod lock;
mod mark;
pub mod memory;
mod metered;
mod open;
mod options;
mod places;
mod servers;
pub mod tee;
mod together;
pub mod zk2;

pub use contract::*;
pub use loading::{Loading, Progress, Step};
pub use location::{Implementation, Location};
pub use mark::Mark;
pub use metered::{Errors, Meter, Metered};
pub use open::{inspect, open};
pub use options::{ConnectOptions, TeeOptions, Wrap};
pub use places::Places;
pub use servers::{CellServers, Named};
pub use together::apply_together;
