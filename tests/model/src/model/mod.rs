//! The reference model: what a router with these services does with a packet, said as plainly as possible.
//!
//! It follows RFC 791, 792, 768, 9293, 1624, 8200 and 4443, the semantics of LVS, and the documentation of RVS. Connections are a list that is
//! searched from its beginning to its end, checksums are summed over the whole packet, and nothing is shared with the data path but the names in
//! which services are configured.

mod admission;
mod at_risk;
mod connections;
mod counts;
mod flows;
mod fragments;
mod ftp;
mod gate;
mod headers;
mod here;
mod icmp;
mod ipsec;
mod local;
mod persistence;
mod proxy;
mod quic;
mod routing;
mod scheduling;
mod sending;
mod services;
mod snat;
mod snat_fragments;

use std::net::{IpAddr, SocketAddr};

use dataplane::counters::Traffic;
use dataplane::service::Protocol;

use self::admission::Passed;
use self::connections::Connection;
use self::counts::Load;
use self::fragments::{Held, Note, Went};
use self::gate::Gate;
use self::headers::{ends, has_sound_header};
use self::local::Claim;
use self::persistence::Template;
use self::scheduling::Hashed;
use self::snat::Mapping;
pub use self::snat::{Class, Mapped};
use crate::packet::{self, ICMP, ICMPV6, Malformed, Packet, SCTP, TCP, UDP};
use crate::sequence::Sequence;
use crate::world::{Flow, MACS, SERVERS, Service, Snat};

const TICKS_PER_SECOND: u64 = 4;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes out of a port as these bytes.
    Forward(u16, Vec<u8>),
    /// The same, and it is of no service.
    Route(u16, Vec<u8>),
    /// Linux gets it as it came.
    Punt(&'static str),
    /// Linux sends this packet in fragments.
    ToFragment(Vec<u8>),
    /// Linux sends this packet, once it has found the next hop.
    Unresolved(Vec<u8>),
    /// It goes nowhere.
    Drop(&'static str),
    /// It waits for the first fragment of its datagram.
    Hold,
}

/// The router.
pub struct Model {
    services: Vec<Service>,
    connections: Vec<Connection>,
    templates: Vec<Template>,
    claims: Vec<Claim>,
    passed: Vec<Passed>,
    gates: Vec<Gate>,
    is_routing: bool,
    snat: Option<Snat>,
    mappings: Vec<Mapping>,
    /// Packets and bytes.
    routed: (u64, u64),
    /// Replies of FTP that name an address, and went as they came.
    unchanged_replies: u64,
    hashed: Vec<(Hashed, Option<usize>)>,
    loads: Vec<[Load; SERVERS]>,
    /// Where round robin is, if that is known.
    turns: Vec<Option<u64>>,
    /// Where the last packet has gone that had ports.
    placed: Went,
    notes: Vec<Note>,
    held: Vec<Held>,
    total: Traffic,
    begun: u64,
    now: u64,
}

/// A frame on its way through the model.
struct Frame<'a> {
    /// That it came in on.
    port: u16,
    bytes: &'a [u8],
    packet: Packet,
    observed: &'a Observed,
}

/// What of the data path the model has to know, as nobody says how it is: what lot or a secret has decided, and whether a template is still there that a
/// sweep may have held.
#[derive(Default)]
pub struct Observed {
    /// The server of the connection that begins with the packet.
    pub begun: Option<usize>,
    /// Before it: service, client and server.
    pub templates: Vec<(usize, IpAddr, usize)>,
    /// After it, of connections by full NAT with a server: as whom that knows a client.
    pub locals: Vec<(Flow, usize, SocketAddr)>,
    /// Before and after it, of source NAT.
    pub mapped: (Vec<Mapped>, Vec<Mapped>),
}

impl Model {
    pub fn new(sequence: &Sequence) -> Model {
        let services = &sequence.services;
        Model {
            services: services.to_vec(),
            connections: Vec::new(),
            templates: Vec::new(),
            claims: Vec::new(),
            passed: Vec::new(),
            gates: vec![Gate::default(); services.len()],
            is_routing: sequence.routing,
            snat: sequence.snat.clone(),
            mappings: Vec::new(),
            routed: (0, 0),
            unchanged_replies: 0,
            hashed: Vec::new(),
            loads: vec![Default::default(); services.len()],
            turns: vec![Some(0); services.len()],
            placed: Went::Nowhere,
            notes: Vec::new(),
            held: Vec::new(),
            total: Traffic::default(),
            begun: 0,
            now: 0,
        }
    }

    /// A service is configured as this one from now on.
    pub fn change(&mut self, number: usize, service: &Service) {
        self.services[number] = service.clone();
    }

    /// What becomes of a frame that comes in on a port.
    pub fn take(&mut self, now: u64, port: u16, frame: &[u8], observed: &Observed) -> Fate {
        self.now = now;
        let fate = self.look_at(port, frame, observed);
        if fate == Fate::Hold {
            self.held.push(Held { since: now, port, frame: frame.to_vec() });
        }
        fate
    }

    fn look_at(&mut self, port: u16, frame: &[u8], observed: &Observed) -> Fate {
        if frame.len() < 14 {
            return Fate::Drop("runt");
        }
        // A wire has that of its number.
        if frame[..6] != MACS[usize::from(port) % 2] {
            return if frame[0] & 1 == 1 { Fate::Punt("multicast") } else { Fate::Drop("other_host") };
        }
        let is_six = match packet::word(frame, 12) {
            0x0800 => false,
            0x86DD => true,
            0x8100 | 0x88A8 => return Fate::Punt("vlan"),
            _ => return Fate::Punt("not_ip"),
        };
        match packet::parse(&frame[14..], is_six) {
            Ok(packet) => {
                let frame = Frame { port, bytes: frame, packet, observed };
                let fate = self.belongs(&frame);
                self.routed_instead(&frame, fate)
            }
            Err(Malformed::Header) => Fate::Drop("bad_ip_header"),
            Err(Malformed::Checksum) => Fate::Drop("bad_ip_checksum"),
        }
    }

    /// What becomes of a packet by its service, if it has one.
    fn belongs(&mut self, frame: &Frame<'_>) -> Fate {
        let packet = &frame.packet;
        if self.is_secured(packet) {
            let fate = self.goes_with_ike(frame).or_else(|| self.first_without_ports(frame));
            return fate.unwrap_or(Fate::Punt("other_protocol"));
        }
        // Of an IPv6 fragment only the first says the protocol (RFC 8200, section 4.5).
        if packet.is_six() && packet.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return self.fragment(frame);
        }
        let protocol = match packet.protocol {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            SCTP => Protocol::Sctp,
            ICMP if !packet.is_six() => return self.message(frame),
            ICMPV6 if packet.is_six() => {
                return self.first_without_ports(frame).unwrap_or_else(|| self.message(frame));
            }
            _ => return self.first_without_ports(frame).unwrap_or(Fate::Punt("other_protocol")),
        };
        if packet.is_source_routed {
            return Fate::Punt("other_protocol");
        }
        match packet.fragment {
            Some(_) => self.fragment(frame),
            None if !has_sound_header(packet) => Fate::Drop("bad_transport_header"),
            None => self.classify(frame, protocol),
        }
    }

    /// A packet with ports.
    fn classify(&mut self, frame: &Frame<'_>, protocol: Protocol) -> Fate {
        let packet = &frame.packet;
        let (source, destination) = ends(packet);
        if self.is_clients(frame, protocol) {
            self.client_sends(frame, protocol)
        } else if self.is_endpoint(source, protocol) || self.claim_at(source, destination, protocol).is_some()
        {
            self.server_sends(frame, protocol)
        } else {
            Fate::Punt("no_service")
        }
    }
}
