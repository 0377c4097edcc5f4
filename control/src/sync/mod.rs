//! Connections, and mappings of source NAT, that outlive their router: peers tell each other of what is established.
//!
//! ```text
//!   workers -- slots that have changed (dataplane::changes) --> thread --+--> peer --> session --> UDP
//!   table <----- adopt (dataplane::engine) ------------------- store <---+
//! ```
//!
//! `peer` is the protocol, without clock and socket; `session` is who may speak; `flight` is what has come; `wire` is how
//! it is written; `walk` is what is told again; `flushes` is what is forgotten everywhere. [`ipvs`] is the protocol of Linux directors, for a migration; it shares thread, notes and store.

mod flight;
mod flushes;
pub mod ipvs;
mod peer;
pub mod session;
mod status;
mod store;
mod thread;
mod walk;
mod wire;

pub use self::peer::Standing;
pub use self::status::{PeerStatus, Shared, Status};
pub use self::store::identity;
pub use self::thread::{Synchroniser, bind};
