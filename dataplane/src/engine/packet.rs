//! What one stage tells the next about a packet.

use crate::service::Protocol;
use crate::snapshot::{EndpointIndex, ServiceIndex};
use crate::table::{Client, Hash};

/// What the later stages need to know of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
    /// Length of the IP packet.
    pub length: u16,
    /// Where the transport header is in the frame.
    pub transport: u16,
    pub protocol: Protocol,
    pub ttl: u8,
    /// TCP flags.
    pub flags: u8,
    /// Filled in by stage 2.
    pub lookup: Lookup,
}

impl Default for Packet {
    fn default() -> Self {
        Packet {
            source: 0,
            destination: 0,
            source_port: 0,
            destination_port: 0,
            length: 0,
            transport: 0,
            protocol: Protocol::Tcp,
            ttl: 0,
            flags: 0,
            lookup: Lookup::default(),
        }
    }
}

/// What a packet hit in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A service: the packet is a client's.
    Service(ServiceIndex),
    /// An endpoint: the packet is a real server's.
    Endpoint(EndpointIndex),
}

/// What stage 3 looks up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookup {
    pub side: Side,
    pub client: Client,
    pub hash: Hash,
}

impl Default for Lookup {
    fn default() -> Self {
        Lookup { side: Side::Service(0), client: Client::new(0, 0), hash: Hash::default() }
    }
}
