//! Source NAT ([`crate::snat`]): packets of IPv4 that leave from inside, and what comes back to the pool.
//!
//! As with routing, a packet comes here when it would be Linux' otherwise: services and their real servers' replies go before. What is
//! neither from inside to the outside nor to a port of the pool that has a mapping is none of ours.
//!
//! ```text
//!   out      inside > X             becomes   pool > X
//!   in       X > pool               becomes   X > inside
//!   hairpin  inside > pool          becomes   pool > another inside
//!   an error about what went out:   X > pool, quoted pool > Y      becomes  X > inside, quoted inside > Y
//!   an error about what came in:    inside > Y, quoted Y > inside  becomes  pool > Y, quoted Y > pool
//!   and both in one where hosts inside have met (RFC 5508, REQ-7)
//! ```
//!
//! An error changes no mapping and keeps none alive (RFC 5508, section 4). What has no ports does not leave, nor does the answer to a ping:
//! nobody outside can have asked.
//!
//! Fragments follow the first of their datagram, in whatever order they come (RFC 4787, REQ-14), by a note of its ports
//! ([`crate::fragments`]): these lead to the same mappings, so that there is nothing else to remember.
//!
//! Anybody may write an inside address into a packet. So one from inside must have come in on the port that leads back to its source
//! (strict reverse path: RFC 3704, section 2.2), or a few packets from outside would take all blocks of the pool.

use super::packet::Piece;
use super::resolve::Path;
use super::{Frame, Verdict, fragments, route};
use crate::counters::Drop;
use crate::fib::NextHop;
use crate::fragments::{Fate, Note, Ports};
use crate::service::Protocol;
use crate::snat::{Class, Mapping, Refused, Snats};
use crate::table::Client;
use crate::wire::checksum::Delta;
use crate::wire::icmp::{self, End};
use crate::wire::transport::{self, Transport};
use crate::wire::version::{Ip, Version};
use crate::wire::{ethernet, ipv4};

/// What a packet is, as far as it can be translated.
enum Kind {
    /// One with ports, or who asks for an echo, with an identifier in the place of the sender's, and to nobody's port 0.
    Packet { class: Class, source: u16, destination: u16, flags: u8 },
    /// The answer to such a one, with its identifier.
    Reply(u16),
    /// A later fragment of either, whose first had these ports.
    Later(Class, Ports),
    /// An error about a packet of this class, which it quotes with the ends of it.
    Error { class: Class, source: (u32, u16), destination: (u32, u16) },
    /// Another one.
    Other,
}

/// What becomes of an IPv4 packet if source NAT has to do with it.
pub(super) fn translate(path: &Path<'_>, frame: &mut impl Frame) -> Option<Verdict> {
    let snapshot = path.snapshot;
    let snats: &Snats = &snapshot.snats;
    let packet = frame.bytes().get(ethernet::HEADER..)?;
    let ip = u32::parse(packet)?;
    let (is_out, is_back) = (snats.has_inside(ip.source), snats.has_outside(ip.destination));
    if !is_back
        && (!is_out || snats.has_inside(ip.destination) || !route::is_foreign(snapshot, ip.destination))
    {
        return None;
    }
    if u32::is_for_routers(packet) || !route::is_foreign(snapshot, ip.source) {
        return None;
    }
    let segment = packet.get(ip.header_length..usize::from(ip.total_length))?;
    let kind = kind(&ip, segment);
    match header_length(ip.protocol) {
        Some(header) if ip.fragment.is_some() => {
            let piece = fragments::place(&ip, segment.len(), header);
            follow(path, frame, &ip, kind, piece)
        }
        _ => carry(path, frame, &ip, &kind),
    }
}

/// What the header takes that has a packet's ports; none if it has none.
fn header_length(protocol: u8) -> Option<usize> {
    match Protocol::from_number(protocol) {
        Some(protocol) => Class::of_protocol(protocol).map(|_| transport::header_length(protocol)),
        None => (protocol == u32::ICMP).then_some(icmp::HEADER),
    }
}

/// What becomes of a fragment: the first goes as a packet does, and that is noted; another one asks the note, or waits for it.
fn follow(
    path: &Path<'_>,
    frame: &mut impl Frame,
    ip: &Ip<u32>,
    kind: Kind,
    piece: Result<Piece, Drop>,
) -> Option<Verdict> {
    // Whose datagrams these are not must not leave notes about them either.
    if path.snapshot.snats.has_inside(ip.source) && !is_on_its_way(path, ip.source) {
        return Some(Verdict::Drop(Drop::SnatNone));
    }
    let tag = fragments::tag(path.engine, frame)?;
    let (notes, now) = (path.engine.table.fragments(), path.now);
    let note = notes.find(tag, now);
    match piece {
        Err(drop) => return Some(Verdict::Drop(drop)),
        Ok(Piece::Whole | Piece::First) => {}
        Ok(Piece::Later) => {
            return match note.map(|note| note.fate) {
                Some(Fate::Translated(ports)) => {
                    let class = Class::of_number(ip.protocol)?;
                    carry(path, frame, ip, &Kind::Later(class, ports))
                }
                Some(Fate::Nowhere) => Some(Verdict::Drop(Drop::FragmentOrphan)),
                Some(Fate::Linux) if path.snapshot.snats.has_outside(ip.destination) => None,
                // From inside nothing leaves by Linux. One of a real server may be on its way to here from where it was no
                // service's, at another worker.
                Some(Fate::Linux | Fate::With(_)) | None => Some(Verdict::Hold),
            };
        }
    }
    let ports = match kind {
        Kind::Packet { source, destination, .. } => Some(Ports { source, destination }),
        Kind::Reply(identifier) => Some(Ports { source: 0, destination: identifier }),
        Kind::Later(..) | Kind::Error { .. } | Kind::Other => None,
    };
    if let Some(Note { fate: Fate::Translated(first), is_young: true }) = note
        && ports != Some(first)
    {
        return Some(Verdict::Drop(Drop::FragmentOverlap));
    }
    // An error in fragments would have to be put together: what it quotes is in several of them.
    let kind = if ports.is_some() { kind } else { Kind::Other };
    let verdict = carry(path, frame, ip, &kind);
    let fate = match (verdict, ports) {
        (None, _) => Fate::Linux,
        (Some(Verdict::Drop(_)), _) | (_, None) => Fate::Nowhere,
        (Some(_), Some(ports)) => Fate::Translated(ports),
    };
    notes.leave(tag, now, fate);
    path.engine.begun.add(tag);
    verdict
}

/// What becomes of a packet: 1. what it is, is known; 2. who is it really for, 3. may it go there, 4. who is it really from, 5. so it goes.
fn carry(path: &Path<'_>, frame: &mut impl Frame, ip: &Ip<u32>, kind: &Kind) -> Option<Verdict> {
    let (snapshot, now) = (path.snapshot, path.now);
    let snats: &Snats = &snapshot.snats;
    let (is_out, is_back) = (snats.has_inside(ip.source), snats.has_outside(ip.destination));
    // 2.
    let inwards = match (kind, is_back) {
        (_, false) => None,
        (&Kind::Packet { class, destination, .. }, true) => {
            Some(snats.from_outside(now, class, ip.destination, destination)?)
        }
        (&Kind::Later(class, ports), true) => {
            Some(snats.from_outside(now, class, ip.destination, ports.destination)?)
        }
        (&Kind::Reply(identifier), true) => {
            Some(snats.from_outside(now, Class::Icmp, ip.destination, identifier)?)
        }
        (&Kind::Error { class, source, .. }, true) if source.0 == ip.destination => {
            Some(snats.from_outside(now, class, source.0, source.1)?)
        }
        // Linux' own, at this address.
        (Kind::Error { .. } | Kind::Other, true) => return None,
    };
    // 3.
    let destination = inwards.map_or(ip.destination, |mapping| mapping.inside.address());
    let way = match route::way(snapshot, ip, destination)? {
        Ok(way) => way,
        Err(verdict) => return Some(verdict),
    };
    // 4.
    let outwards = match (kind, is_out) {
        (_, false) => Ok(None),
        _ if !is_on_its_way(path, ip.source) => Err(Refused::None),
        (&Kind::Packet { class, source, flags, .. }, true) => {
            let inside = Client::new(ip.source, source);
            let leaves = snats.leaves(now, class, inside, flags, path.engine.worker as u8);
            leaves.map(|(mapping, changed)| {
                if let (Some(place), Some(changes)) = (changed, &path.engine.changes) {
                    changes.note_mapping(path.engine.table.slots() + place);
                }
                Some(mapping)
            })
        }
        (&Kind::Later(class, ports), true) => {
            let inside = Client::new(ip.source, ports.source);
            snats.from_inside(now, class, inside).map(Some).ok_or(Refused::None)
        }
        // Who says it may be a router further inside.
        (&Kind::Error { class, destination: (address, port), .. }, true) => {
            snats.from_inside(now, class, Client::new(address, port)).map(Some).ok_or(Refused::None)
        }
        (Kind::Reply(_) | Kind::Other, true) => Err(Refused::None),
    };
    let outwards = match outwards {
        Ok(mapping) => mapping,
        Err(Refused::None) => return Some(Verdict::Drop(Drop::SnatNone)),
        Err(Refused::Full) => return Some(Verdict::Drop(Drop::SnatFull)),
    };
    // 5.
    write(frame, ip, kind, inwards, outwards)?;
    way.send::<u32>(path, ip, frame)
}

/// Whether packets to this address leave by the port that the packet in hand came in on.
fn is_on_its_way(path: &Path<'_>, source: u32) -> bool {
    let back = match path.snapshot.fibs.four.look_up(source) {
        NextHop::Ready(adjacency) => adjacency.port,
        NextHop::Unresolved(port) => port,
        NextHop::NoRoute => return false,
    };
    path.port == Some(back)
}

/// What a packet is, whose segment begins so and is as long as it says there if that can be seen.
fn kind(ip: &Ip<u32>, segment: &[u8]) -> Kind {
    // The lengths in a first fragment are the datagram's.
    let length = if ip.fragment.is_some() { usize::from(u16::MAX) } else { segment.len() };
    if let Some(protocol) = Protocol::from_number(ip.protocol) {
        let transport = Transport::parse(protocol, segment, length);
        return match Class::of_protocol(protocol).zip(transport) {
            Some((class, Transport { source, destination, flags })) => {
                Kind::Packet { class, source, destination, flags }
            }
            None => Kind::Other,
        };
    }
    if ip.protocol != u32::ICMP {
        return Kind::Other;
    }
    if let Some((is_request, id)) = icmp::echo(segment) {
        // Only who asks has a mapping.
        return match is_request {
            true => Kind::Packet { class: Class::Icmp, source: id, destination: 0, flags: 0 },
            false => Kind::Reply(id),
        };
    }
    match icmp::quoted::<u32>(segment) {
        Some(quote) if quote.is_redirect => Kind::Other,
        Some(quote) => match Protocol::from_number(quote.protocol).and_then(Class::of_protocol) {
            Some(class) => Kind::Error {
                class,
                source: (quote.source, quote.source_port),
                destination: (quote.destination, quote.destination_port),
            },
            None => match icmp::quoted_echo(segment) {
                Some(id) if quote.protocol == u32::ICMP => Kind::Error {
                    class: Class::Icmp,
                    source: (quote.source, id),
                    destination: (quote.destination, id),
                },
                _ => Kind::Other,
            },
        },
        None => Kind::Other,
    }
}

/// Gives a packet its other ends. None if it has no room for the headers that were parsed from it, which cannot be.
fn write(
    frame: &mut impl Frame,
    ip: &Ip<u32>,
    kind: &Kind,
    inwards: Option<Mapping>,
    outwards: Option<Mapping>,
) -> Option<()> {
    let packet = frame.bytes_mut().get_mut(ethernet::HEADER..)?.get_mut(..ip.total_length.into())?;
    let (header, segment) = packet.split_at_mut_checked(ip.header_length)?;
    let header: &mut [u8; ipv4::HEADER] = header.first_chunk_mut()?;
    // Inside and outside, as the packet has them, and what they become.
    if let Some(Mapping { inside, .. }) = inwards {
        let delta = Delta::double(ip.destination, inside.address());
        ipv4::set_destination(header, inside.address(), delta);
        match *kind {
            Kind::Reply(identifier) => icmp::set_echo(segment, identifier, inside.port()),
            Kind::Packet { destination, .. } => {
                let delta = delta.and(Delta::word(destination, inside.port()));
                let protocol = Protocol::from_number(ip.protocol)?;
                transport::set_destination(protocol, segment, inside.port(), delta);
            }
            Kind::Error { class, .. } => {
                mend_quote(segment, class, (End::Source, inside.address(), inside.port()));
            }
            Kind::Later(..) | Kind::Other => {}
        }
    }
    if let Some(Mapping { address, port, .. }) = outwards {
        let delta = Delta::double(ip.source, address);
        ipv4::set_source(header, address, delta);
        match *kind {
            Kind::Packet { class: Class::Icmp, source, .. } => icmp::set_echo(segment, source, port),
            Kind::Packet { source, .. } => {
                let delta = delta.and(Delta::word(source, port));
                transport::set_source(Protocol::from_number(ip.protocol)?, segment, port, delta);
            }
            Kind::Error { class, .. } => mend_quote(segment, class, (End::Destination, address, port)),
            Kind::Later(..) | Kind::Reply(_) | Kind::Other => {}
        }
    }
    Some(())
}

fn mend_quote(message: &mut [u8], class: Class, new: (End, u32, u16)) {
    match class {
        Class::Tcp => icmp::translate(message, Protocol::Tcp, new, Delta::default()),
        Class::Udp => icmp::translate(message, Protocol::Udp, new, Delta::default()),
        Class::Icmp => icmp::translate_echo(message, new),
    }
}
