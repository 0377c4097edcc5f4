//! Who may begin a connection, before a scheduler is asked.
//!
//! All of it stands where a packet has found no connection: what is established never comes here, and goes on whatever the lists say.

mod sources;

pub use self::sources::{Edges, Sources};
