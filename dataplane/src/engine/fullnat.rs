//! Full NAT: both addresses of a packet are rewritten.
//!
//! ```text
//!   client:port > virtual:port     becomes     local:port > server:port
//!   server:port > local:port       becomes     virtual:port > client:port
//! ```
//!
//! So a real server answers to the router, wherever its routes lead. Its replies do not tell whose they are; the port that
//! they come to does ([`crate::table::LocalAddress`]). These packets take the long way, and nobody else has anything to ask for it: a reply is
//! looked for where it is no service's packet and no other server's.

use std::net::SocketAddr;

use super::fullnat_proxy::{self, Edit};
use super::packet::{Direction, Packet, Piece};
use super::resolve::{Judgement, Path};
use super::rewrite::{Hop, next_hop};
use super::{Frame, Side, Verdict};
use crate::clock::Tick;
use crate::counters::Drop;
use crate::service::{Mode, Protocol, State};
use crate::snapshot::{Dest, Ends, Family, Snapshot};
use crate::table::{Client, Identity, Local, Slot, Table, Word};
use crate::wire::checksum::Delta;
use crate::wire::{ethernet, proxy, transport};

/// An address and port.
pub(super) type End<A> = (A, u16);

/// Whose packet to a local address is: the connection's dest and client.
#[inline(never)]
pub(super) fn reply<'a, A: Family>(
    snapshot: &'a Snapshot,
    table: &Table,
    (source, source_port): End<A>,
    (destination, destination_port): End<A>,
    protocol: Protocol,
) -> Option<(&'a Dest, Client)> {
    let local = snapshot.local_at(destination)?;
    let owner = local.owner(protocol, destination_port)?;
    let (dest, client) = (snapshot.dest_of(owner.word())?, owner.word().client());
    let service = &snapshot.services[dest.service as usize];
    // A server of all ports answers to each of its connections from one of them, and to nobody from another.
    let server_port = match dest.address.port() {
        0 => local.virtual_port(table, protocol, destination_port, owner)?,
        port => port,
    };
    let is_server = (A::ends(dest).address, server_port) == (source, source_port);
    (is_server && service.mode == Mode::Fullnat && service.protocol == protocol).then_some((dest, client))
}

/// The port by which a later fragment finds the connection of this one's datagram: that of the client, which its packets have in
/// common; to a local address it is the local one.
pub(super) fn port_of_datagram(packet: &Packet, snapshot: &Snapshot, dest: &Dest) -> u16 {
    let is_reply =
        packet.direction == Direction::Out && snapshot.services[dest.service as usize].mode == Mode::Fullnat;
    if is_reply { packet.destination_port } else { packet.client.port() }
}

/// Rewrites a packet with these addresses, of a connection with this dest, and says where it goes.
#[inline(never)]
pub(super) fn send<A: Family>(
    path: &Path<'_>,
    packet: &Packet,
    dest: &Dest,
    (source, destination): (A, A),
    frame: &mut impl Frame,
) -> Verdict {
    let direction = packet.direction;
    let far = match direction {
        Direction::In => path.view().local::<A>(dest, packet.client),
        Direction::Out => {
            let protocol = path.snapshot.services[dest.service as usize].protocol;
            let owner = path.snapshot.local_at(destination).and_then(|local| {
                local.owner(protocol, packet.destination_port).filter(|owner| is_of(*owner, dest))
            });
            owner.and_then(|owner| path.view().client(dest, owner.word().client()))
        }
    };
    // Its connection has ended just now, or its port is lost.
    let Some(far) = far else { return Verdict::Drop(Drop::NoLocalPort) };
    let is_whole = packet.piece == Piece::Whole;
    let edit = match path.snapshot.services[dest.service as usize].pool.as_ref() {
        Some(pool) if fullnat_proxy::is_numbered(packet) => {
            fullnat_proxy::edit(path, packet, dest, pool, (far, destination), frame)
        }
        _ => Edit::None,
    };
    if edit == Edit::Refuse {
        return Verdict::Drop(Drop::BadTransportHeader);
    }
    if edit == Edit::Insert && !is_whole {
        return Verdict::Drop(Drop::BadFragment);
    }
    let added = if edit == Edit::Insert { proxy::length::<A>() } else { 0 };
    let Some(length) = packet.length.checked_add(added as u16) else { return Verdict::Drop(Drop::TooBig) };
    let Hop { verdict, addresses } = match next_hop(path, dest, direction, length, far.0) {
        Ok(hop) => hop,
        Err(verdict) => return verdict,
    };
    let &Ends { virtual_address, address } = A::ends(dest);
    let (from, to) = match direction {
        Direction::In => (far, (address, dest.server_port(packet.destination_port))),
        Direction::Out => ((virtual_address, dest.virtual_port(packet.source_port)), far),
    };
    if added > 0 && !frame.prepend(added) {
        return Verdict::Drop(Drop::NoHeadroom);
    }
    if added > 0 {
        let ends = ((source, packet.source_port), (destination, packet.destination_port));
        if !fullnat_proxy::insert(packet, ends.0, ends.1, frame) {
            return Verdict::Drop(Drop::BadTransportHeader);
        }
    }
    let rewrite = Rewrite { old: (source, destination), new: (from, to) };
    if rewrite.apply(packet, addresses.as_ref(), frame).is_none() {
        return Verdict::Drop(Drop::BadIpHeader);
    }
    edit.apply::<A>(packet, frame);
    path.count(dest, direction, packet.length);
    verdict
}

fn is_of(owner: Identity, dest: &Dest) -> bool {
    owner.word().dest_number() == dest.id.index()
}

/// Where connections are looked for.
pub(super) struct View<'a> {
    pub table: &'a Table,
    pub snapshot: &'a Snapshot,
    pub now: Tick,
}

impl<'a> Path<'a> {
    pub fn view(&self) -> View<'a> {
        View { table: &self.engine.table, snapshot: self.snapshot, now: self.now }
    }
}

impl View<'_> {
    /// The local address and port of a client's connection with this dest.
    pub fn local<A: Family>(&self, dest: &Dest, client: Client) -> Option<End<A>> {
        let (slot, word) = self.find(dest, client)?;
        local_end(self.table, self.snapshot, slot, word)
    }

    /// The address and port of a client that has a connection with this dest.
    pub fn client<A: Family>(&self, dest: &Dest, client: Client) -> Option<End<A>> {
        let (slot, word) = self.find(dest, client)?;
        client_end(self.table, self.snapshot, slot, word)
    }

    /// A client's connection with this dest. One port of a client may have several with a service, if its datagrams name their servers.
    pub fn find(&self, dest: &Dest, client: Client) -> Option<(Slot, Word)> {
        let protocol = self.snapshot.services[dest.service as usize].protocol;
        let known = Judgement::of_known(self.snapshot, self.now, Side::Service(dest.service), client);
        let judge = Judgement { named: Some(dest.id), ..known };
        self.table.find(self.table.hash(client, protocol), client, &judge)
    }
}

/// The client of the connection in a slot.
pub(super) fn client_end<A: Family>(
    table: &Table,
    snapshot: &Snapshot,
    slot: Slot,
    word: Word,
) -> Option<End<A>> {
    let client = snapshot.client_of(table, slot, word)?;
    Some((A::of(client.ip())?, client.port()))
}

/// Whom the real server of the connection in a slot takes for its client.
pub(super) fn local_end<A: Family>(
    table: &Table,
    snapshot: &Snapshot,
    slot: Slot,
    word: Word,
) -> Option<End<A>> {
    let Local { number, port } = local_of(table, snapshot, slot, word)?;
    Some((A::of(snapshot.local(number)?.address)?, port))
}

/// The local port of the connection in a slot.
fn local_of(table: &Table, snapshot: &Snapshot, slot: Slot, word: Word) -> Option<Local> {
    let owner = word.identity();
    if let Some(local) = table.local_of(slot, owner) {
        return Some(local);
    }
    // It has not been noted yet, or somebody late has written over it.
    let service = &snapshot.services[snapshot.dest_of(word)?.service as usize];
    let hash = table.hash(word.client(), service.protocol);
    let local = service.pool.as_ref()?.find(service.protocol, owner, hash)?;
    table.note_local(slot, owner, local);
    Some(local)
}

impl Snapshot {
    /// The local address and port of the connection in a slot, with full NAT.
    pub fn local_port_of(&self, table: &Table, slot: Slot, word: Word) -> Option<SocketAddr> {
        let service = &self.services[self.dest_of(word)?.service as usize];
        let is_connection = service.mode == Mode::Fullnat && word.state() != State::Template;
        if !is_connection {
            return None;
        }
        let Local { number, port } = local_of(table, self, slot, word)?;
        Some((self.local(number)?.address, port).into())
    }
}

/// A packet's addresses, and what its source and destination become.
struct Rewrite<A> {
    old: (A, A),
    new: (End<A>, End<A>),
}

impl<A: Family> Rewrite<A> {
    /// Writes all fields; the MACs if they are known. `None` if the frame has no room for the headers that were parsed from it, which
    /// cannot be; nothing is written then.
    fn apply(&self, packet: &Packet, macs: Option<&[u8; 12]>, frame: &mut impl Frame) -> Option<()> {
        let Rewrite { old: (source, destination), new: (from, to) } = *self;
        let (headers, segment) = frame.bytes_mut().split_at_mut_checked(usize::from(packet.transport))?;
        let (ethernet, ip) = headers.split_first_chunk_mut::<{ ethernet::HEADER }>()?;
        let segment = packet.segment(segment);
        let has_ports = packet.piece != Piece::Later;
        if has_ports && segment.len() < transport::header_length(packet.protocol) {
            return None;
        }
        if let Some(macs) = macs {
            ethernet::write_addresses(ethernet, macs);
        }
        A::decrement_ttl(ip);
        A::set_source(ip, source, from.0);
        A::set_destination(ip, destination, to.0);
        if has_ports {
            let of_source = A::delta(source, from.0).and(Delta::word(packet.source_port, from.1));
            let of_destination = A::delta(destination, to.0).and(Delta::word(packet.destination_port, to.1));
            transport::set_source(packet.protocol, segment, from.1, of_source);
            transport::set_destination(packet.protocol, segment, to.1, of_destination);
        }
        Some(())
    }
}
