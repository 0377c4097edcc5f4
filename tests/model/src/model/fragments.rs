//! Fragments go where the first of their datagram goes, and wait for it if they are earlier.

use std::net::{IpAddr, SocketAddr};

use dataplane::service::{Mode, Protocol};

use super::headers::{ends, flow_of, has_sound_header, header_of};
use super::local::readdress;
use super::sending::{has_gone_on, send, send_to};
use super::{Fate, Frame, Mapped, Model, Observed, TICKS_PER_SECOND};
use crate::packet::{End, Fragment, Packet, SCTP, TCP};
use crate::world::{self, Flow, Service};

/// Which datagram a fragment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) id: u32,
}

/// What is known of a datagram's first fragment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    pub(super) datagram: Datagram,
    /// When it came.
    pub(super) seen: u64,
    /// Its ports.
    pub(super) ports: (u16, u16),
    pub(super) went: Went,
}

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Went {
    /// With a connection of this service and server, in this direction.
    With(usize, usize, End, Flow),
    /// By source NAT.
    Translated,
    ToLinux,
    Nowhere,
}

/// A fragment that waits.
pub(super) struct Held {
    pub(super) since: u64,
    pub(super) port: u16,
    pub(super) frame: Vec<u8>,
}

impl Model {
    /// What becomes of the fragments that wait: those that wait no more.
    pub fn settle(&mut self, now: u64, mapped: &[Mapped]) -> Vec<Fate> {
        self.now = now;
        let observed = Observed { mapped: (mapped.to_vec(), mapped.to_vec()), ..Observed::default() };
        let mut settled = Vec::new();
        for held in std::mem::take(&mut self.held) {
            if now > held.since + TICKS_PER_SECOND {
                settled.push(Fate::Drop("fragment_expired"));
                continue;
            }
            match self.look_at(held.port, &held.frame, &observed) {
                Fate::Hold => self.held.push(held),
                fate => settled.push(fate),
            }
        }
        settled
    }

    /// A part of a datagram. The first has the ports and goes as any packet does; the others go where it has gone.
    pub(super) fn fragment(&mut self, frame: &Frame<'_>) -> Fate {
        let packet = &frame.packet;
        let Some(fragment) = packet.fragment else { unreachable!("it is one") };
        let length = packet.segment().len();
        // The header of the datagram is part of its length, which that of an IPv6 packet and of a fragment is not.
        let header = packet.at - if packet.is_six() { 48 } else { 0 };
        if !self.concerns(packet) {
            return Fate::Punt("fragment");
        }
        if fragment.more && !length.is_multiple_of(8) || header + fragment.offset + length > 65_535 {
            return Fate::Drop("bad_fragment");
        }
        if fragment.offset > 0 {
            return self.later_fragment(frame);
        }
        let Some(protocol) = Protocol::from_number(packet.protocol) else { unreachable!("it has a header") };
        if length < header_of(packet.protocol) || !has_whole_header(packet) {
            return Fate::Drop("fragment_tiny");
        }
        if !has_sound_header(packet) {
            return Fate::Drop("bad_transport_header");
        }
        let (source, destination) = ends(packet);
        let ports = (source.port(), destination.port());
        let (datagram, note) = self.note_of(packet, fragment);
        let young = note.filter(|note| self.is_young(note));
        if let Some(note) = young {
            let is_ours = self.is_clients(frame, protocol)
                || self.is_endpoint(source, protocol)
                || self.claim_at(source, destination, protocol).is_some();
            let may_arrive = self.may_be_for_here(frame, flow_of(packet, protocol));
            let runs_out = is_ours && packet.hops() <= 1 && !may_arrive;
            // The same number, and other ports; or of IPv6, whose numbers are those of all protocols, another one.
            let is_another = matches!(note.went, Went::With(.., flow) if flow.protocol != protocol);
            if (note.ports != ports || is_another) && !runs_out {
                return Fate::Drop("fragment_overlap");
            }
        }
        let fate = self.classify(frame, protocol);
        // What is translated, though it has come by a service, has a note of that.
        let is_translated = note.is_some_and(|note| note.went == Went::Translated);
        if young.is_some() || is_translated && matches!(fate, Fate::Punt(_)) {
            return fate;
        }
        let went = match &fate {
            fate if has_gone_on(fate) => self.placed,
            Fate::Punt(_) | Fate::Route(..) => Went::ToLinux,
            _ => Went::Nowhere,
        };
        self.notes.retain(|note| note.datagram != datagram);
        self.notes.push(Note { datagram, seen: self.now, ports, went });
        fate
    }

    /// The first fragment of a protocol without ports is Linux', and so are the others: of IPv6 these need not say what they are of. Why it is none, if it
    /// contradicts one that has come just now.
    pub(super) fn first_without_ports(&mut self, frame: &Frame<'_>) -> Option<Fate> {
        let packet = &frame.packet;
        let fragment = packet.fragment.filter(|fragment| packet.is_six() && fragment.offset == 0)?;
        if !self.concerns(packet) {
            return None;
        }
        let (datagram, note) = self.note_of(packet, fragment);
        if note.is_some_and(|note| self.is_young(&note)) {
            return Some(Fate::Drop("fragment_overlap"));
        }
        self.notes.retain(|note| note.datagram != datagram);
        self.notes.push(Note { datagram, seen: self.now, ports: (0, 0), went: Went::ToLinux });
        None
    }

    /// Whether the first fragment has come just now, and gone with a connection.
    fn is_young(&self, note: &Note) -> bool {
        self.now - note.seen <= 1 && matches!(note.went, Went::With(..))
    }

    /// The datagram of a fragment, and what is known of its first.
    pub(super) fn note_of(&self, packet: &Packet, fragment: Fragment) -> (Datagram, Option<Note>) {
        let (source, destination) = (packet.source, packet.destination);
        let protocol = if packet.is_six() { 0 } else { packet.protocol };
        let datagram = Datagram { source, destination, protocol, id: fragment.id };
        let young = |note: &&Note| self.now - note.seen <= 30 * TICKS_PER_SECOND;
        (datagram, self.notes.iter().filter(young).find(|note| note.datagram == datagram).copied())
    }

    pub(super) fn later_fragment(&mut self, frame: &Frame<'_>) -> Fate {
        let packet = &frame.packet;
        let Some(fragment) = packet.fragment else { unreachable!("it is one") };
        if fragment.offset < header_of(packet.protocol) {
            return Fate::Drop("fragment_tiny");
        }
        let (_, note) = self.note_of(packet, fragment);
        let Some(Note { ports, went, .. }) = note else { return Fate::Hold };
        let (service, server, end, flow) = match went {
            // Of source NAT too, which comes after services.
            Went::ToLinux | Went::Translated => return Fate::Punt("fragment"),
            Went::Nowhere => return Fate::Drop("fragment_orphan"),
            Went::With(service, server, end, flow) => (service, server, end, flow),
        };
        if let Err(fate) = self.arrives(packet, service, server) {
            return fate;
        }
        let its = &self.services[service];
        let address = world::server_address(its, server);
        let virtual_address = flow.destination;
        let (source, destination) =
            (SocketAddr::new(packet.source, ports.0), SocketAddr::new(packet.destination, ports.1));
        let mut sent = packet.clone();
        match (its.mode, end) {
            (Mode::Dr | Mode::Tunnel, _) => {}
            (Mode::Nat, End::Destination) => sent.readdress(end, address.ip(), None),
            (Mode::Nat, End::Source) => sent.readdress(end, virtual_address.ip(), None),
            (Mode::Fullnat, End::Destination) => match self.local_of(server, flow) {
                Some(local) => readdress(&mut sent, local, address, false),
                None => return Fate::Drop("no_local_port"),
            },
            (Mode::Fullnat, End::Source) => match self.find_by_local(source, destination, flow.protocol) {
                Some(index) => {
                    readdress(&mut sent, virtual_address, self.connections[index].flow.client, false)
                }
                None => return Fate::Drop("no_local_port"),
            },
        }
        sent.spend_hop();
        let length = sent.bytes.len();
        let fate = match end {
            End::Destination => send_to(&self.services, frame, sent, service, server),
            End::Source => send(&self.services, frame, &sent, sent.destination),
        };
        if has_gone_on(&fate) {
            self.count(service, server, usize::from(end == End::Source), length);
        }
        fate
    }
}

/// Whether the first fragment has all of a TCP header's options.
pub(super) fn has_whole_header(packet: &Packet) -> bool {
    packet.protocol != TCP || usize::from(packet.segment()[12] >> 4) * 4 <= packet.segment().len()
}

/// Whether no checksum of a first fragment could be right: that of SCTP is over the whole datagram, with its ports (RFC 9260, section 6.8).
pub(super) fn is_unsummable(packet: &Packet, service: &Service, server: usize) -> bool {
    let (outside, inside) =
        (world::virtual_address(service.is_six, &service.faces[0]), world::server_address(service, server));
    let changes_port = service.mode == Mode::Fullnat || outside.port() != inside.port();
    packet.protocol == SCTP && packet.fragment.is_some() && changes_port
}
