//! What one stage tells the next about a packet.

use super::BURST;
use crate::scheduler::Flow;
use crate::service::Protocol;
use crate::snapshot::{EndpointIndex, ServiceIndex};
use crate::table::{Client, Hash, Slot, Table, Word};
use crate::wire::ethernet;
use crate::wire::ftp;
use crate::wire::ipv4::Ipv4;
use crate::wire::sctp::Event;
use crate::wire::transport::{RST, SYN, Transport};

/// The packets of a burst that have no verdict yet, from the front.
pub(super) struct Work {
    pub packets: [Packet; BURST],
    pub count: usize,
}

impl Work {
    pub fn new() -> Self {
        Work { packets: [Packet::default(); BURST], count: 0 }
    }
}

/// What the later stages need to know of a packet: a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
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
    /// As in [`Transport`]: TCP flags, or what SCTP says.
    pub flags: u8,
    /// Whether the frame is plain ([`crate::wire::plain`]); of IPv6, whether it is no fragment.
    pub plain: bool,
    /// What of its datagram it is.
    pub piece: Piece,
    /// Its place in the burst.
    pub index: u8,
    /// What is known of its connection beside `word`.
    pub search: Search,
    /// Which way it goes; found by stage 2, like the next three.
    pub direction: Direction,
    /// The service or endpoint that it hit.
    pub owner: u32,
    pub client: Client,
    pub hash: Hash,
    /// Where its connection was seen, or where one may be put, or anything.
    pub slot: Slot,
    /// What stage 3 saw there; empty if it was nothing of this client.
    pub word: Word,
}

const _: () = assert!(size_of::<Packet>() == 64);

/// What of its datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// All of it.
    Whole,
    /// The first of its fragments.
    First,
    /// A fragment that has no ports; its packet's are 0.
    Later,
}

/// How far the search for a packet's connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// What there is to be seen without judging words has been seen.
    Done,
    /// Only its home bucket has been looked at.
    Due,
    /// Nothing of its client was found, and `slot` was empty.
    Vacancy,
}

/// Which way a packet goes. The numbers are those by which [`crate::snapshot::Transform`] has two of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// To a service: the packet is a client's.
    In = 0,
    /// From an endpoint: the packet is a real server's.
    Out = 1,
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
            plain: false,
            piece: Piece::Whole,
            index: 0,
            search: Search::Done,
            direction: Direction::In,
            // Nobody, until stage 2. (All zeros would be written by `rep stosb`, of which a burst waits for the whole 4 kB.)
            owner: u32::MAX,
            client: Client::new(0, 0),
            hash: Hash::default(),
            slot: Slot::default(),
            word: Word::EMPTY,
        }
    }
}

/// What a packet hit in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A service.
    Service(ServiceIndex),
    /// An endpoint.
    Endpoint(EndpointIndex),
}

/// Whose connection a packet concerns.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// What the packet hit.
    pub side: Side,
    /// The connection's protocol.
    pub protocol: Protocol,
    /// Its client.
    pub client: Client,
    /// The client's address, if that is of IPv6.
    pub wide: Option<u128>,
}

/// What is known of a packet once it is known whose it is.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its place in the burst.
    pub index: usize,
    /// Whose it is.
    pub owner: Owner,
    /// What a scheduler would be told of it.
    pub flow: Flow,
}

impl Packet {
    /// One with these headers, in a frame without a tag.
    pub fn new(ip: &Ipv4, protocol: Protocol, transport: Transport) -> Packet {
        Packet {
            source: ip.source,
            destination: ip.destination,
            source_port: transport.source,
            destination_port: transport.destination,
            length: ip.total_length,
            transport: (ethernet::HEADER + ip.header_length) as u16,
            protocol,
            ttl: ip.ttl,
            flags: transport.flags,
            ..Packet::default()
        }
    }

    /// Reads its word again.
    #[inline]
    pub fn look_again(&mut self, table: &Table) {
        let word = table.at(self.slot);
        self.word = if word.client() == self.client { word } else { Word::EMPTY };
    }

    /// Whether it begins a connection if it belongs to none.
    #[inline]
    pub fn may_begin(&self) -> bool {
        self.direction == Direction::In
            && match self.protocol {
                Protocol::Udp => true,
                Protocol::Tcp => self.flags & (SYN | RST) == SYN && !self.is_ftp_data(),
                Protocol::Sctp => Event::of_flags(self.flags) == Event::Init,
            }
    }

    /// Whether it begins a connection if it belongs to none and its service takes connections from the middle on:
    /// another router may have seen the beginning.
    pub fn may_begin_late(&self) -> bool {
        match self.protocol {
            Protocol::Udp => false,
            Protocol::Tcp => self.flags & RST == 0 && !self.is_ftp_data(),
            Protocol::Sctp => Event::of_flags(self.flags) != Event::Abort,
        }
    }

    /// Whether it is from where FTP's servers open data connections: no server of ours takes these (LVS schedules none either).
    #[inline]
    pub fn is_ftp_data(&self) -> bool {
        self.protocol == Protocol::Tcp && self.source_port == ftp::DATA
    }

    /// What is behind the IP header of its frame, without the padding of short frames: SCTP's checksum covers all of it.
    #[inline(always)]
    pub fn segment<'a>(&self, behind: &'a mut [u8]) -> &'a mut [u8] {
        if self.protocol != Protocol::Sctp {
            return behind;
        }
        let end = (ethernet::HEADER + usize::from(self.length)).saturating_sub(usize::from(self.transport));
        let end = end.min(behind.len());
        &mut behind[..end]
    }

    /// What it hit.
    #[inline]
    pub fn side(&self) -> Side {
        match self.direction {
            Direction::In => Side::Service(self.owner),
            Direction::Out => Side::Endpoint(self.owner),
        }
    }
}
