//! Fragments: the first as a packet of its connection, the others after it ([`crate::fragments`]).
//!
//! They leave the burst in stage 1, as all that is odd. The first fragment goes through the other stages alone, and what becomes of
//! it is noted; of the others the note is asked. One that finds none waits, and is asked for again when the first has come here
//! ([`Engine::settle`]), and now and then, since it may have come to another worker.

use std::cell::Cell;
use std::slice::from_ref;

use super::packet::{Direction, Packet, Piece};
use super::resolve::Path;
use super::{BURST, Engine, Frame, Verdict, fullnat, parse, route, six};
use crate::clock::Tick;
use crate::counters::{Drop, Punt};
use crate::fib::PortIndex;
use crate::fragments::{Datagram, Fate, Flow, Note, ROOM, Tag, Waiting};
use crate::service::{Mode, Protocol};
use crate::snapshot::{Dest, Ends, Family, Snapshot};
use crate::wire::ethernet;
use crate::wire::transport::{Transport, header_length};
use crate::wire::version::{Fragment, Ip, Version};

/// Places that are looked at after a round in which packets have come: a fraction of what it takes to forward a burst.
const BESIDE_WORK: usize = 16;

/// What a fragment is, and the ports if it is the first; why it is none, if so.
pub(super) fn piece<A: Version>(
    packet: &[u8],
    ip: &Ip<A>,
    protocol: Protocol,
) -> Result<(Piece, Transport), Drop> {
    let none = Transport { source: 0, destination: 0, flags: 0 };
    let data = &packet[ip.header_length..usize::from(ip.total_length)];
    let piece = place(ip, data.len(), header_length(protocol))?;
    if piece != Piece::First {
        return Ok((piece, none));
    }
    // The lengths in its header are the datagram's.
    let transport =
        Transport::parse(protocol, data, usize::from(u16::MAX)).ok_or(Drop::BadTransportHeader)?;
    Ok((piece, transport))
}

/// What of its datagram a packet with so much data is, whose transport header takes so much; why it is none, if so.
pub(super) fn place<A: Version>(ip: &Ip<A>, length: usize, header: usize) -> Result<Piece, Drop> {
    let Some(Fragment { offset, more, .. }) = ip.fragment else { return Ok(Piece::Whole) };
    let end = ip.header_length - A::NOT_COUNTED + usize::from(offset) + length;
    if more && !length.is_multiple_of(8) || end > usize::from(u16::MAX) {
        return Err(Drop::BadFragment);
    }
    match usize::from(offset) {
        0 if length < header => Err(Drop::FragmentTiny),
        0 => Ok(Piece::First),
        // The first has the whole header, so this one would be written over it.
        offset if offset < header => Err(Drop::FragmentTiny),
        _ => Ok(Piece::Later),
    }
}

/// What becomes of a fragment.
pub(super) fn follow(path: &Path<'_>, frame: &mut impl Frame, packet: Packet) -> Verdict {
    let Some(tag) = tag(path.engine, frame) else { return Verdict::Drop(Drop::BadIpHeader) };
    if packet.piece == Piece::Later {
        later(path, frame, packet, tag)
    } else {
        first(path, frame, packet, tag)
    }
}

/// The tag of a fragment's datagram; there is one of whatever [`piece`] takes for a fragment.
pub(super) fn tag(engine: &Engine, frame: &impl Frame) -> Option<Tag> {
    let packet = frame.bytes().get(ethernet::HEADER..)?;
    let datagram = if six::is_six(frame) {
        // Of its fragments only the first says the protocol, if extensions follow (RFC 8200, section 4.5).
        datagram::<u128>(packet, |address| address).map(|datagram| Datagram { protocol: 0, ..datagram })
    } else {
        // As IPv6 writes IPv4's addresses (RFC 4291, 2.5.5.2), which no packet has.
        datagram::<u32>(packet, |address| 0xFFFF_0000_0000 | u128::from(address))
    };
    Some(engine.table.fragments().tag(&datagram?))
}

fn datagram<A: Version>(packet: &[u8], wide: impl Fn(A) -> u128) -> Option<Datagram> {
    let ip = A::parse(packet)?;
    Some(Datagram {
        source: wide(ip.source),
        destination: wide(ip.destination),
        protocol: ip.protocol,
        identification: ip.fragment.map_or(0, |fragment| fragment.identification),
    })
}

/// A first fragment: 1. whose is it? 2. unless it contradicts one that has come just now, it goes there, and 3. that is noted.
fn first(path: &Path<'_>, frame: &mut impl Frame, mut packet: Packet, tag: Tag) -> Verdict {
    let notes = path.engine.table.fragments();
    let flow = gone_with(path, tag);
    // 1.
    let classified = path.classify(&mut packet);
    let has_other_ports = flow.is_some_and(|flow| match classified {
        Ok(()) => {
            let further = || path.further(&packet).is_some_and(|packet| is_of(path.snapshot, &packet, flow));
            !is_of(path.snapshot, &packet, flow) && !further()
        }
        Err(verdict) => matches!(verdict, Verdict::Punt(_)),
    });
    if has_other_ports {
        return Verdict::Drop(Drop::FragmentOverlap);
    }
    // 2.
    let mut found = classified.and_then(|()| path.find_or_begin(&packet));
    path.or_further(&mut packet, &mut found);
    let (verdict, fate) = match found {
        Ok(dest) if packet.protocol == Protocol::Sctp && changes_port(path.snapshot, dest) => {
            (Verdict::Drop(Drop::SctpFragment), Fate::Nowhere)
        }
        Ok(dest) => {
            let flow = flow_of(path.snapshot, &packet, dest);
            let verdict = path.rewrite(&packet, dest, frame);
            (verdict, if matches!(verdict, Verdict::Drop(_)) { Fate::Nowhere } else { Fate::With(flow) })
        }
        Err(verdict @ Verdict::Punt(_)) => (verdict, Fate::Linux),
        Err(verdict) => (verdict, Fate::Nowhere),
    };
    // 3. A copy of the first, however it came about, changes nothing; and what source NAT has noted of a datagram is its own to change.
    let is_translated = || matches!(notes.find(tag, path.now), Some(Note { fate: Fate::Translated(_), .. }));
    if flow.is_none() && !(matches!(fate, Fate::Linux) && is_translated()) {
        notes.leave(tag, path.now, fate);
    }
    path.engine.begun.add(tag);
    verdict
}

/// Whether packets of a dest's connections get other ports.
fn changes_port(snapshot: &Snapshot, dest: &Dest) -> bool {
    match snapshot.services[dest.service as usize].mode {
        Mode::Fullnat => true,
        Mode::Nat => dest.address.port() != dest.virtual_address.port(),
        Mode::Dr | Mode::Tunnel => false,
    }
}

/// By what a later fragment finds the connection of this first one, with this dest.
fn flow_of(snapshot: &Snapshot, packet: &Packet, dest: &Dest) -> Flow {
    // A server of all ports has the virtual port itself.
    let virtual_port = match packet.direction {
        _ if !dest.is_of_all_ports() => 0,
        Direction::In => packet.destination_port,
        Direction::Out => packet.source_port,
    };
    let client_port = fullnat::port_of_datagram(packet, snapshot, dest);
    Flow { dest: dest.id, client_port, virtual_port }
}

/// The flow of which a first fragment of this datagram has come just now.
fn gone_with(path: &Path<'_>, tag: Tag) -> Option<Flow> {
    match path.engine.table.fragments().find(tag, path.now) {
        Some(Note { fate: Fate::With(flow), is_young: true }) => Some(flow),
        _ => None,
    }
}

/// Notes that a packet of IPv6 without ports is Linux', if it is a first fragment: those after it need not say what they are parts of, and
/// would wait for one with ports. An error if it contradicts one that has come just now.
pub(super) fn without_ports(path: &Path<'_>, frame: &impl Frame) -> Result<(), Verdict> {
    let is_first = |ip: &Ip<u128>| ip.fragment.is_some_and(|fragment| fragment.offset == 0);
    let concerns =
        |ip: &Ip<u128>| path.snapshot.concerns(ip.destination) || path.snapshot.concerns(ip.source);
    let ip = frame.bytes().get(ethernet::HEADER..).and_then(u128::parse);
    if ip.filter(is_first).is_none_or(|ip| !concerns(&ip)) {
        return Ok(());
    }
    let Some(tag) = tag(path.engine, frame) else { return Ok(()) };
    if gone_with(path, tag).is_some() {
        return Err(Verdict::Drop(Drop::FragmentOverlap));
    }
    path.engine.table.fragments().leave(tag, path.now, Fate::Linux);
    path.engine.begun.add(tag);
    Ok(())
}

/// Whether a packet that has been classified is one of this flow, whose addresses it has.
fn is_of(snapshot: &Snapshot, packet: &Packet, flow: Flow) -> bool {
    let Some(dest) = snapshot.dest(flow.dest) else { return false };
    flow_of(snapshot, packet, dest) == flow
        && match packet.direction {
            Direction::In => snapshot.may_meet(packet.owner, dest),
            Direction::Out => dest.endpoint == Some(packet.owner),
        }
}

/// A later fragment: it follows the first, or waits for it.
fn later(path: &Path<'_>, frame: &mut impl Frame, mut packet: Packet, tag: Tag) -> Verdict {
    let flow = match path.engine.table.fragments().find(tag, path.now).map(|note| note.fate) {
        Some(Fate::With(flow)) => flow,
        // Of source NAT too, which comes after services.
        Some(Fate::Linux | Fate::Translated(_)) => return Verdict::Punt(Punt::Fragment),
        Some(Fate::Nowhere) => return Verdict::Drop(Drop::FragmentOrphan),
        None => return Verdict::Hold,
    };
    // Removed; or it is of the next snapshot, which another worker has already.
    let Some(dest) = path.snapshot.dest(flow.dest) else { return Verdict::Hold };
    let Some(direction) = direction(path, &packet, dest) else { return Verdict::Drop(Drop::FragmentOrphan) };
    if packet.ttl <= 1 && !dest.is_here {
        return Verdict::Drop(Drop::TtlExpired);
    }
    packet.direction = direction;
    packet.client = path.client(&packet, flow.client_port).towards(flow.virtual_port);
    if direction == Direction::Out {
        packet.destination_port = flow.client_port;
    }
    path.rewrite(&packet, dest, frame)
}

/// Which way a packet goes; none if the note is of another server, which has had the id before.
fn direction(path: &Path<'_>, packet: &Packet, dest: &Dest) -> Option<Direction> {
    match path.addresses_of(packet) {
        None => between((packet.source, packet.destination), dest),
        Some(six) => between((six.source, six.destination), dest),
    }
}

fn between<A: Family>((source, destination): (A, A), dest: &Dest) -> Option<Direction> {
    let &Ends { virtual_address, address } = A::ends(dest);
    if destination == virtual_address {
        Some(Direction::In)
    } else {
        (dest.endpoint.is_some() && source == address).then_some(Direction::Out)
    }
}

impl Engine {
    /// Has a fragment wait that came in on a port, and got the verdict [`Verdict::Hold`]. The answer is the one that has to go for it,
    /// if one has, and the reason.
    pub fn hold<F: Frame>(
        &self,
        waiting: &mut Waiting<F>,
        now: Tick,
        port: PortIndex,
        frame: F,
    ) -> Option<(F, Drop)> {
        let Some(tag) = tag(self, &frame) else { return Some((frame, Drop::BadIpHeader)) };
        self.counters.held.add(1);
        waiting.hold(tag, now, port, frame).map(|frame| (frame, Drop::FragmentNoRoom))
    }

    /// Asks again about fragments that wait: those whose first was in the last burst here, and others in turn, whose first may
    /// have come to another worker: all of them, or a few if there is other work. `done` gets those that wait no more, with the port
    /// that they came in on, rewritten if they are forwarded.
    pub fn settle<F: Frame>(
        &self,
        snapshot: &Snapshot,
        now: Tick,
        waiting: &mut Waiting<F>,
        is_busy: bool,
        mut done: impl FnMut(PortIndex, F, Verdict),
    ) {
        let path = Path::new(self, snapshot, now);
        let mut ask = |port, mut frame: F, is_over: bool| {
            let verdict = if is_over {
                Verdict::Drop(Drop::FragmentExpired)
            } else {
                again(&Path { port: Some(port), ..path }, &mut frame)
            };
            if verdict == Verdict::Hold {
                return Some(frame);
            }
            done(port, frame, verdict);
            None
        };
        self.begun.tags().for_each(|tag| waiting.of(tag, now, &mut ask));
        self.begun.clear();
        waiting.some(if is_busy { BESIDE_WORK } else { ROOM }, now, &mut ask);
    }
}

/// Datagrams whose first fragment was in a burst.
pub(super) struct Begun {
    tags: [Cell<Tag>; BURST],
    count: Cell<usize>,
}

impl Default for Begun {
    fn default() -> Self {
        Begun { tags: [const { Cell::new(Tag::NONE) }; BURST], count: Cell::new(0) }
    }
}

impl Begun {
    /// Forgets those of the burst before.
    #[inline(always)]
    pub fn clear(&self) {
        self.count.set(0);
    }

    pub fn add(&self, tag: Tag) {
        if let Some(place) = self.tags.get(self.count.get()) {
            place.set(tag);
            self.count.set(self.count.get() + 1);
        }
    }

    fn tags(&self) -> impl Iterator<Item = Tag> {
        self.tags[..self.count.get()].iter().map(Cell::get)
    }
}

/// Asks again about a later fragment, which was well formed when it came.
fn again(path: &Path<'_>, frame: &mut impl Frame) -> Verdict {
    let bytes = frame.bytes().get(ethernet::HEADER..).unwrap_or_default();
    let parsed = if six::is_six(frame) {
        six::packet(bytes, path.snapshot).map(|(packet, addresses)| (packet, Some(addresses)))
    } else {
        parse::packet(bytes, path.snapshot).map(|packet| (packet, None))
    };
    let verdict = match parsed {
        Ok((packet, addresses)) => {
            follow(&Path { addresses: addresses.as_ref().map(from_ref), ..*path }, frame, packet)
        }
        Err(verdict) => verdict,
    };
    route::instead(path, frame, verdict)
}
