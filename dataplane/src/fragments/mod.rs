//! Fragments follow the first of their datagram, without being put together.
//!
//! Only the first fragment of a datagram has the ports, and so a connection. It goes its way as any packet does, and leaves
//! a *note* for the others: where the first has gone, the rest goes. Of them only addresses are changed. The transport
//! checksum is in the first one, and covers nothing that the others would have to know of.
//!
//! ```text
//!   first    -> its connection, as a packet without fragments    -> leaves a note
//!   later    -> a note?    yes: as it says
//!                          no:  waits ([`Waiting`]) for the first, a second at the most
//! ```
//!
//! Notes are shared by all workers, in the manner of the connection table: one atomic word each, in a bucket that is a cache line.
//! Most NICs give all fragments of a pair of hosts to one queue, since they look at their addresses only, but not all, and two of a
//! datagram may come by two ports. What waits is a worker's own, since a packet has one owner; it asks for the note until there
//! is one.
//!
//! # What a flood of fragments can do
//!
//! All memory is there from the start, and what is new takes the place of what is oldest. A pair of hosts has its notes
//! in one of 64 regions, and what waits of it in one of eight groups, by a keyed hash: so whoever sends many fragments pushes out its
//! own. With forged sources a flood reaches all of them. Then a note lasts for the time in which as many datagrams begin as
//! there are notes (65 536: at a million a second 65 ms, when a datagram's fragments come within one or two), and unfragmented
//! packets meet none of this.
//!
//! # What is not believed
//!
//! * A first fragment without a whole TCP or UDP header, and a later one that would be written over it: those who send them want
//!   to be taken for somebody else (RFC 1858, RFC 3128).
//! * A second first fragment of a datagram, with other ports (RFC 5722 has all overlaps dropped). A sender of IPv4 that has used up all
//!   65 536 numbers begins anew, so this is so for half a second at the most; then it is another datagram.
//!
//! Of an IPv6 datagram with extensions behind the fragment header a later fragment may be written over the transport header: this and
//! other overlaps are the real server's to judge, who puts the datagram together.

mod notes;
mod waiting;

pub use self::notes::{Fate, Flow, Note, Notes, Ports, Tag};
pub use self::waiting::{ROOM, Waiting};

/// What the fragments of a datagram have in common (RFC 791, section 2.3; RFC 8200, section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Datagram {
    /// From whom; an address of IPv4 as IPv6 writes it.
    pub source: u128,
    /// To whom.
    pub destination: u128,
    /// Protocol number; 0 of IPv6.
    pub protocol: u8,
    /// The number that the sender has given it.
    pub identification: u32,
}
