//! The PROXY protocol with full NAT: a real server hears in front of the stream whose it is.
//!
//! The header goes with the first segment of the client that acknowledges the server's SYN, as data of its own, in front of what else is
//! there. From then on the client's numbers are too low by its length, and the server's acknowledgements too high; nothing else has to
//! be remembered. A segment that begins with the stream's first byte gets the header again until the server has acknowledged it, so it is as
//! good as sent by the client, whatever is lost: the client sends again what is not acknowledged. The server's maximum segment size is
//! told lower by the header's length, so that a full segment still fits.
//!
//! Whether a connection has a header is settled by its first SYN and kept with its port ([`Stream`]), so that a reload changes nothing
//! for it. Where its stream begins is what the server's SYN acknowledges: a SYN of the client's could be made up by anybody.

use super::Frame;
use super::fullnat::End;
use super::packet::{Direction, Packet, Piece};
use super::resolve::Path;
use crate::service::{Protocol, State};
use crate::snapshot::{Dest, Family, Pool};
use crate::table::Stream;
use crate::wire::transport::{ACK, RST, SYN};
use crate::wire::{ethernet, mss, proxy};

/// What has to be done with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// Nothing.
    None,
    /// It goes no further.
    Refuse,
    /// It begins the stream: the header stands before its data.
    Insert,
    /// It has another sequence number.
    Sequence(u32),
    /// The server's first one: its maximum segment size is lowered.
    Opening,
    /// What it acknowledges is of this stream.
    Acknowledged(Stream),
}

/// Whether a packet has sequence numbers.
pub(super) fn is_numbered(packet: &Packet) -> bool {
    packet.protocol == Protocol::Tcp && packet.piece != Piece::Later
}

/// What has to be done with a packet that is numbered. `near` is its destination; `far` the local address and port of a client's.
pub(super) fn edit<A: Family>(
    path: &Path<'_>,
    packet: &Packet,
    dest: &Dest,
    pool: &Pool,
    (far, near): (End<A>, A),
    frame: &impl Frame,
) -> Edit {
    let segment = frame.bytes().get(usize::from(packet.transport)..).unwrap_or_default();
    let inward = packet.direction == Direction::In;
    let (address, port) = if inward { far } else { (near, packet.destination_port) };
    let numbers = (proxy::sequence(segment), proxy::acknowledged(segment), path.snapshot.local_at(address));
    let (Some(sequence), Some(acknowledged), Some(local)) = numbers else { return Edit::None };
    let (is_syn, stream) = (packet.flags & SYN != 0, local.stream(Protocol::Tcp, port));
    if inward && is_syn {
        // Data that comes with a SYN would be there before the header; the client sends it again without (RFC 7413, 4.1.3).
        let is_early = (pool.proxy || stream.is_some()) && has_data(packet, segment);
        return if is_early { Edit::Refuse } else { Edit::None };
    }
    let Some(stream) = stream else { return Edit::None };
    let note = |stream: Stream| {
        if !pool.is_rehearsal
            && let Some(owner) = local.owner(Protocol::Tcp, port)
        {
            local.note_stream(Protocol::Tcp, port, owner, stream);
        }
    };
    let state = || path.view().find(dest, packet.client).map(|(_, word)| word.state());
    let is_first = !stream.has_passed && sequence == stream.first;
    let is_reset_early =
        inward && !stream.has_passed && packet.flags & RST != 0 && state() == Some(State::SynRecv);
    match (inward, is_syn) {
        (true, _) if is_first && packet.flags & RST == 0 => Edit::Insert,
        // A client that resets what it has not acknowledged yet; or else the header has been on its way.
        (true, _) if is_reset_early => Edit::None,
        (true, _) if is_first => Edit::Sequence(after::<A>(sequence)),
        (true, _) => Edit::Sequence(moved::<A>(stream, sequence)),
        (false, true) => {
            if packet.flags & ACK != 0 && acknowledged != stream.first {
                note(Stream { first: acknowledged, has_passed: false });
            }
            Edit::Opening
        }
        (false, false) if packet.flags & ACK == 0 => Edit::None,
        (false, false) => {
            let added = proxy::length::<A>() as i32;
            let has_passed = stream.has_passed || acknowledged.wrapping_sub(stream.first) as i32 >= added;
            let passed = Stream { has_passed, ..stream };
            if passed != stream {
                note(passed);
            }
            Edit::Acknowledged(passed)
        }
    }
}

/// Where the server has what the client sends with this number, unless the header has not been sent yet.
pub(super) fn moved<A: Family>(stream: Stream, sequence: u32) -> u32 {
    let is_behind = stream.has_passed || sequence.wrapping_sub(stream.first) as i32 > 0;
    if is_behind { after::<A>(sequence) } else { sequence }
}

fn after<A: Family>(sequence: u32) -> u32 {
    sequence.wrapping_add(proxy::length::<A>() as u32)
}

/// Whether a packet has more than its headers.
fn has_data(packet: &Packet, segment: &[u8]) -> bool {
    let headers =
        usize::from(packet.transport) - ethernet::HEADER + proxy::header_length(segment).unwrap_or(0);
    usize::from(packet.length) > headers
}

/// Puts the header into a client's packet, whose frame has become longer in front by its length.
pub(super) fn insert<A: Family>(packet: &Packet, from: End<A>, to: End<A>, frame: &mut impl Frame) -> bool {
    let (transport, added) = (usize::from(packet.transport), proxy::length::<A>());
    let bytes = frame.bytes_mut();
    let Some(header) = bytes.get(transport + added..).and_then(proxy::header_length) else { return false };
    proxy::insert(bytes, transport, transport + header, from, to)
}

impl Edit {
    /// Edits the segment of a packet.
    pub fn apply<A: Family>(self, packet: &Packet, frame: &mut impl Frame) {
        let Some(segment) = frame.bytes_mut().get_mut(usize::from(packet.transport)..) else { return };
        let added = proxy::length::<A>() as u32;
        match self {
            Edit::None | Edit::Refuse | Edit::Insert => {}
            Edit::Sequence(sequence) => proxy::set_sequence(segment, sequence),
            Edit::Opening => mss::lower(segment, added as u16),
            Edit::Acknowledged(Stream { has_passed: true, .. }) => {
                proxy::map_acknowledged(segment, |number| number.wrapping_sub(added));
            }
            // Of the header itself the client knows nothing.
            Edit::Acknowledged(Stream { first, .. }) => proxy::map_acknowledged(segment, |number| {
                let of_header = number.wrapping_sub(first) as i32;
                number.wrapping_sub(of_header.clamp(0, added as i32) as u32)
            }),
        }
    }
}
