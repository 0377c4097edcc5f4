//! Whether the header of TCP, UDP or SCTP is as it has to be, and what it says.

use std::net::SocketAddr;

use dataplane::service::Protocol;

use crate::packet::{self, Packet, SCTP, TCP, UDP};
use crate::world::Flow;

/// Source and destination with their ports.
pub(super) fn ends(packet: &Packet) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(packet.source, packet.source_port()),
        SocketAddr::new(packet.destination, packet.destination_port()),
    )
}

/// The flow that a client's packet is of.
pub(super) fn flow_of(packet: &Packet, protocol: Protocol) -> Flow {
    let (client, destination) = ends(packet);
    Flow { protocol, client, destination }
}

/// The least length of a header.
pub(super) fn header_of(protocol: u8) -> usize {
    match protocol {
        TCP => 20,
        SCTP => 12,
        _ => 8,
    }
}

/// Whether a header of TCP, UDP or SCTP is all there and agrees with the packet's length.
pub(super) fn has_sound_header(packet: &Packet) -> bool {
    let segment = packet.segment();
    match packet.protocol {
        TCP if segment.len() >= 20 => {
            let header = usize::from(segment[12] >> 4) * 4;
            header >= 20 && header <= segment.len()
        }
        UDP if segment.len() >= 8 => {
            let length = usize::from(packet::word(segment, 4));
            length >= 8 && (length <= segment.len() || packet.fragment.is_some())
        }
        // RFC 9260, section 3.1: its length is the packet's.
        SCTP => segment.len() >= 12,
        _ => false,
    }
}
