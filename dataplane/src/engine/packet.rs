//! What one stage tells the next about a packet.

use crate::service::Protocol;
use crate::snapshot::{EndpointIndex, ServiceIndex};
use crate::table::{Client, Hash, Word};

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
    /// Its place in the burst.
    pub index: u8,
    /// Whether the frame is plain ([`crate::wire::plain`]).
    pub plain: bool,
    /// Filled in by stage 2.
    pub lookup: Lookup,
    /// What stage 3 saw at a glance.
    pub glimpse: Word,
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
            index: 0,
            plain: false,
            lookup: Lookup::default(),
            glimpse: Word::EMPTY,
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

impl Side {
    /// 0 towards a server, 1 towards a client: the order of what [`crate::snapshot::Transform`] has two of.
    #[inline]
    pub fn direction(self) -> usize {
        usize::from(matches!(self, Side::Endpoint(_)))
    }

    /// The service or endpoint, as [`crate::snapshot::Transform::owners`] has it.
    #[inline]
    pub fn owner(self) -> u32 {
        match self {
            Side::Service(owner) | Side::Endpoint(owner) => owner,
        }
    }
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
