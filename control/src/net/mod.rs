//! What Linux knows, and what RVS tells it.
//!
//! RVS has no ARP and no ND, no routing daemon and no address management of its own: Linux keeps links, addresses, routes
//! and neighbours, on the twins ([`Twin`]) that stand for the ports, and control compiles adjacencies from what
//! Linux knows. Whatever changes it there (`ip`, keepalived, BIRD) needs to know nothing of RVS.
//!
//! ```text
//!    multicast groups            requests
//!    link, ifaddr, route, neigh  (dumps, RTM_NEWADDR, RTM_NEWNEIGH, ...)
//!          |                          ^
//!          v                          |
//!       Watcher  --- stale: dump --> Linux <---- addresses of services, use_neighbour
//!          |
//!          v
//!       Mirror  ---- Change ---> the director compiles a new snapshot
//! ```
//!
//! There are two netlink sockets. Events that one's own request causes bear that request's sequence number, and a
//! client that waits for an answer on the same socket takes them for it; and an overrun of the events must not
//! take an answer with it.
//!
//! Everything belongs to the network namespace of the thread that opens it.

mod ipv6;
mod linux;
mod mirror;
#[cfg(test)]
pub(crate) mod tests;
mod twin;
mod watch;

pub use ipv6::NoIpv6;
pub use linux::{Linux, alone};
pub use mirror::{Change, Link, Mirror, Route};
pub use twin::{Twin, TwinError};
pub use watch::Watcher;
