//! What a packet of an undisturbed connection becomes: a dest's part in one cache line, decided in advance.
//!
//! Most packets belong to a connection that is established and stays so. All that the data path needs to know
//! for them is here: whether the connection is theirs, whether it is undisturbed, and the finished rewrite.
//! Both directions and both modes are the same arithmetic, by index instead of by branch; direct routing is a
//! translation of the virtual address to itself. A packet for a tunnel, or with full NAT, is not finished by this rewrite: there is no
//! way here for it, and the engine looks aside.

use std::sync::Arc;

use super::{Dest, Service};
use crate::clock::TICKS_PER_SECOND;
use crate::counters::TrafficCounters;
use crate::fib::{Adjacency, NextHop};
use crate::service::{Mode, Protocol, State};
use crate::table::{FLAG_REPLIED, Word};
use crate::wire::checksum::Delta;
use crate::wire::ipv4;

/// No service and no endpoint.
const NOBODY: u32 = u32::MAX;

/// A dest's part. Arrays are indexed by direction: towards the server, towards the client.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Transform {
    /// The service, and the endpoint: whose packets these are.
    pub owners: [u32; 2],
    /// The new destination, and the new source; of IPv6 they are the dest's ([`Dest::six`]).
    pub addresses: [u32; 2],
    /// Its port.
    pub ports: [u16; 2],
    /// The IP checksum's change, TTL included.
    pub header_deltas: [Delta; 2],
    /// The transport checksum's change.
    pub transport_deltas: [Delta; 2],
    /// State and flags of a connection that a packet without SYN, FIN and RST leaves as it is
    /// ([`Word::state_and_flags`]); to a client's packet the flag of replies is nothing.
    pub undisturbed: u16,
    /// The greatest age, in ticks, at which a packet finds the connection alive and has to renew it at
    /// [`RENEW_AFTER`] or later. 0 under timeouts that are renewed otherwise: very short and very long ones.
    pub lifetime: u16,
    /// The way to the server; one that takes no packet if it is not known, or is a tunnel.
    pub adjacency: Adjacency,
    /// The server's traffic, a counter set for each worker; none if more is to be done than this rewrite.
    pub traffic: Arc<[TrafficCounters]>,
}

const _: () = assert!(size_of::<Transform>() == 64);

/// Age from which a packet renews a connection under the usual timeouts.
pub const RENEW_AFTER: u16 = TICKS_PER_SECOND as u16;

impl Transform {
    /// That of no dest, or of one of a service of all ports: fits no packet.
    pub fn none() -> Self {
        Transform {
            owners: [NOBODY; 2],
            addresses: [0; 2],
            ports: [0; 2],
            header_deltas: [Delta::default(); 2],
            transport_deltas: [Delta::default(); 2],
            undisturbed: 0,
            lifetime: 0,
            adjacency: NOWHERE,
            traffic: Arc::new([]),
        }
    }

    /// That of a dest.
    pub fn new(dest: &Dest, service: &Service) -> Self {
        let (address, port, address_delta, transport_delta) = match service.mode {
            Mode::Nat => (dest.four.address, dest.address.port(), dest.address_delta, dest.transport_delta),
            Mode::Dr | Mode::Tunnel | Mode::Fullnat => {
                (dest.four.virtual_address, dest.virtual_address.port(), Delta::default(), Delta::default())
            }
        };
        let state = match service.protocol {
            Protocol::Tcp | Protocol::Sctp => State::Established,
            Protocol::Udp => State::Udp,
        };
        let timeout = service.timeout(state);
        // Each datagram may name another server.
        let clients = if service.quic.is_some() { NOBODY } else { dest.service };
        Transform {
            owners: [clients, dest.endpoint.unwrap_or(NOBODY)],
            addresses: [address, dest.four.virtual_address],
            ports: [port, dest.virtual_address.port()],
            header_deltas: [address_delta, address_delta.reversed()].map(|delta| delta.and(ipv4::TTL_DELTA)),
            transport_deltas: [transport_delta, transport_delta.reversed()],
            undisturbed: undisturbed(service, dest),
            lifetime: if timeout.renew_after() == u32::from(RENEW_AFTER) {
                timeout.lifetime() as u16
            } else {
                0
            },
            adjacency: match dest.next_hop {
                NextHop::Ready(adjacency) if dest.tunnel.is_none() => adjacency,
                NextHop::Ready(_) | NextHop::Unresolved(_) | NextHop::NoRoute => NOWHERE,
            },
            traffic: match service.mode {
                Mode::Fullnat => Arc::new([]),
                Mode::Nat | Mode::Dr | Mode::Tunnel => dest.traffic.clone(),
            },
        }
    }
}

/// Takes no packet, however short.
const NOWHERE: Adjacency = Adjacency { addresses: [0; 12], port: 0, mtu: 0 };

/// An established TCP connection or SCTP association, or a UDP exchange: to a reply, one whose replies have been seen already. Every
/// datagram of a client may begin a connection anew, and does if the server is dead: none is undisturbed then. Nor is
/// any of a connection that is to be reset.
fn undisturbed(service: &Service, dest: &Dest) -> u16 {
    let empty = Word::EMPTY;
    match (service.protocol, service.mode) {
        (Protocol::Tcp, _) if dest.reset => empty.with_state(State::Established).with_flags(u8::MAX),
        (Protocol::Tcp | Protocol::Sctp, _) => empty.with_state(State::Established),
        (Protocol::Udp, _) if !dest.up => empty.with_state(State::Udp).with_flags(u8::MAX),
        (Protocol::Udp, Mode::Nat | Mode::Fullnat) => empty.with_state(State::Udp).with_flags(FLAG_REPLIED),
        (Protocol::Udp, Mode::Dr | Mode::Tunnel) => empty.with_state(State::Udp),
    }
    .state_and_flags()
}
