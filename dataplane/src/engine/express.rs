//! The short way through stages 4 and 5: packets of connections that stay as they are.
//! The rewrite at its end serves every plain packet.
//!
//! A plain packet without SYN, FIN and RST, of an established connection, changes nothing but itself and, once a
//! second, the time when the connection was last seen. What it becomes is in its dest's [`Transform`]. Everything
//! else says so by `None` and takes the long way, which gives the same result for these packets as well
//! (`tests/lanes.rs`). A tunnel's packets go the long way, too, but leave it at its beginning ([`pass_tunnel`]), so that
//! all others have nothing to ask here.

use super::packet::{Direction, Packet};
use super::resolve::Path;
use super::{Frame, tunnel};
use crate::counters::{TrafficCounters, WorkerCounters};
use crate::fib::{Adjacency, PortIndex};
use crate::service::State;
use crate::snapshot::{RENEW_AFTER, Transform};
use crate::table::{FLAG_REPLIED, Slot, Word};
use crate::wire::plain::{Headers, Rewrite};
use crate::wire::prefetch;
use crate::wire::transport::{FIN, RST, SYN};

/// Traffic of a burst, to be counted once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Packets by direction.
    packets: [u64; 2],
    /// Their bytes.
    bytes: [u64; 2],
}

impl Tally {
    /// Adds a packet of so many bytes.
    #[inline(always)]
    pub fn add(&mut self, direction: usize, bytes: u64) {
        self.packets[direction] += 1;
        self.bytes[direction] += bytes;
    }

    /// Adds the burst to the worker's counters.
    #[inline]
    pub fn count(&self, counters: &WorkerCounters) {
        for direction in 0..2 {
            counters.traffic.add(direction, self.packets[direction], self.bytes[direction]);
        }
    }
}

/// Which bits of state and flags concern a packet, by direction: whether a reply was seen is nothing to a client's.
const CONCERNS: [u16; 2] = [!((FLAG_REPLIED as u16) << 8), u16::MAX];

/// Rewrites a packet of an undisturbed connection, and says which port it goes out of. The packet's word is the
/// client's, or empty.
#[inline(always)]
pub(super) fn pass(
    path: &Path<'_>,
    packet: &Packet,
    frame: &mut impl Frame,
    tally: &mut Tally,
) -> Option<PortIndex> {
    let word = packet.word;
    let transform: &Transform = path.snapshot.transform_of(word);
    let age = word.fine_age(path.now);
    if !is_undisturbed(packet, transform, age) {
        return None;
    }
    let way = way(path, packet, transform, frame)?;
    // Last of all: from here on the packet is forwarded.
    if age >= RENEW_AFTER {
        renew(path, packet.slot, word)?;
    }
    Some(way.go(packet, transform, tally))
}

/// The same for a packet that goes through a tunnel, for which [`pass`] finds no way.
#[inline(always)]
pub(super) fn pass_tunnel(path: &Path<'_>, packet: &Packet, frame: &mut impl Frame) -> Option<PortIndex> {
    let word = packet.word;
    if !packet.plain | word.is_empty() {
        return None;
    }
    let age = word.fine_age(path.now);
    if !is_undisturbed(packet, path.snapshot.transform_of(word), age) {
        return None;
    }
    let seen = || {
        if age >= RENEW_AFTER {
            renew(path, packet.slot, word)?;
            path.note_address(packet.slot, packet);
        }
        Some(())
    };
    tunnel::pass(path, packet, frame, seen)
}

/// Whether a packet is plain and its word, of this age, is that of a connection which it leaves as it is.
#[inline(always)]
pub(super) fn is_undisturbed(packet: &Packet, transform: &Transform, age: u16) -> bool {
    let (direction, word) = (packet.direction as usize, packet.word);
    packet.plain
        & (transform.owners[direction] == packet.owner)
        & ((word.state_and_flags() ^ transform.undisturbed) & CONCERNS[direction] == 0)
        & (age <= transform.lifetime)
        & (packet.flags & (SYN | FIN | RST) == 0)
}

/// Starts to load the counters that a packet will be counted in, if it takes the short way.
#[inline(always)]
pub(super) fn prefetch_counters(path: &Path<'_>, packet: &Packet) {
    if let Some(traffic) = path.snapshot.transform_of(packet.word).traffic.get(path.engine.worker) {
        prefetch(traffic);
    }
}

/// All that a plain packet needs to be rewritten and sent.
pub(super) struct Way<'a> {
    adjacency: &'a Adjacency,
    traffic: &'a TrafficCounters,
    headers: &'a mut Headers,
}

/// The way of a plain packet of a connection with this dest; `None` if there is something to say about it.
#[inline(always)]
pub(super) fn way<'a>(
    path: &Path<'a>,
    packet: &Packet,
    transform: &'a Transform,
    frame: &'a mut impl Frame,
) -> Option<Way<'a>> {
    let adjacency = match packet.direction {
        Direction::In => &transform.adjacency,
        Direction::Out => path.snapshot.fibs.four.adjacency(packet.destination)?,
    };
    let traffic = transform.traffic.get(path.engine.worker)?;
    let headers = frame.bytes_mut().first_chunk_mut()?;
    (packet.length <= adjacency.mtu).then_some(Way { adjacency, traffic, headers })
}

impl Way<'_> {
    /// Rewrites and counts the packet, and says which port it goes out of.
    #[inline(always)]
    pub fn go(self, packet: &Packet, transform: &Transform, tally: &mut Tally) -> PortIndex {
        let Way { adjacency, traffic, headers } = self;
        let direction = packet.direction as usize;
        let rewrite = Rewrite {
            direction,
            address: transform.addresses[direction],
            port: transform.ports[direction],
            header_delta: transform.header_deltas[direction],
            transport_delta: transform.transport_deltas[direction],
            macs: &adjacency.addresses,
        };
        rewrite.apply(packet.protocol, headers);
        let bytes = u64::from(packet.length);
        tally.add(direction, bytes);
        traffic.add(direction, 1, bytes);
        adjacency.port
    }
}

/// Notes that the connection was seen now. If more has to be noted, since with direct routing it may count as answered from now
/// on, that is for the long way.
#[inline(never)]
pub(super) fn renew(path: &Path<'_>, slot: Slot, word: Word) -> Option<()> {
    if word.state() == State::Udp
        && word.flags() & FLAG_REPLIED == 0
        && path.snapshot.dest_of(word).is_some_and(|dest| dest.endpoint.is_none())
    {
        return None;
    }
    path.engine.table.replace(slot, word, word.seen(path.now, false)).ok()
}
