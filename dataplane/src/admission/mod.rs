//! Who may begin a connection, before a scheduler is asked.
//!
//! All of it stands where a packet has found no connection: what is established never comes here, and goes on whatever the lists say.

mod bucket;
mod gate;
mod limiter;
mod sketch;
mod sources;

pub use self::bucket::Rate;
pub use self::gate::Flood;
pub use self::limiter::{Kept, Limit, Limiter};
pub use self::sketch::Key;
pub use self::sources::{Edges, Sources};
