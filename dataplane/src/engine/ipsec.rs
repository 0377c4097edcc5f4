//! IPsec: what two hosts protect goes where they have agreed on the keys ([`Helper::Ipsec`]).
//!
//! A packet of ESP or AH (RFC 4303, RFC 4302) has no ports, and the number in their place is known to its ends alone. So none begins a connection: as
//! with IPVS they follow that of IKE (RFC 7296), by UDP from port 500 to port 500, of the same client with the same virtual address. They keep it alive,
//! since IKE itself may be silent for hours. Without one they are Linux', as all protocols without ports.
//!
//! ESP does not protect the addresses, so NAT may change them; what they are has no part in any checksum here. AH protects them, and goes on only where packets stay as
//! they are. Neither has to wait for the first of its fragments: none is asked for ports.

use std::slice::from_ref;

use super::packet::{Direction, Owner, Packet, Piece};
use super::resolve::{Judgement, Path};
use super::six::Addresses;
use super::{Frame, Verdict};
use crate::service::{Helper, Mode, Protocol};
use crate::snapshot::{Dest, Family};
use crate::table::{Client, Hash, Slot, Word};
use crate::wire::ethernet;
use crate::wire::ipv6::Ipv6;
use crate::wire::version::{Ip, Version};

/// Protocol number of ESP.
const ESP: u8 = 50;
/// That of AH.
const AH: u8 = 51;
/// The port of IKE, at both ends.
const IKE: u16 = 500;

/// Whether a packet of this protocol may be followed here.
pub(super) fn is_ipsec(protocol: u8) -> bool {
    matches!(protocol, ESP | AH)
}

/// As what the connection is found that a packet of this protocol follows: its protocol, the client's port, the virtual one.
pub(super) fn followed(protocol: u8) -> Option<(Protocol, [u16; 2])> {
    is_ipsec(protocol).then_some((Protocol::Udp, [IKE; 2]))
}

/// What becomes of an IPv4 packet of another protocol than services have; none if that is Linux' to say.
#[cold]
pub(super) fn follow(path: &Path<'_>, frame: &mut impl Frame) -> Option<Verdict> {
    let ip = u32::parse(packet_of(path, frame.bytes())?)?;
    let packet = Packet { source: ip.source, destination: ip.destination, ..Packet::default() };
    go(path, packet, &ip, frame)
}

/// The same for one of IPv6.
#[cold]
pub(super) fn follow_six(path: &Path<'_>, frame: &mut impl Frame) -> Option<Verdict> {
    // The next host on its way is not the service.
    let ip: Ip<u128> = (&Ipv6::parse(packet_of(path, frame.bytes())?).filter(|ip| !ip.is_routed)?).into();
    let addresses = Addresses { source: ip.source, destination: ip.destination };
    let path = Path { addresses: Some(from_ref(&addresses)), ..*path };
    go(&path, Packet::default(), &ip, frame)
}

/// The packet in a frame, if there is a service for it.
fn packet_of<'f>(path: &Path<'_>, frame: &'f [u8]) -> Option<&'f [u8]> {
    path.snapshot.has_ipsec.then(|| frame.get(ethernet::HEADER..))?
}

/// Whose connection of IKE a packet of ESP or AH follows, if any.
pub(super) fn owner<A: Family>(
    path: &Path<'_>,
    frame: &[u8],
    wide: impl Fn(A) -> Option<u128>,
) -> Option<Owner> {
    let ip = A::parse(packet_of(path, frame)?)?;
    let packet = as_ike(path, Packet::default(), &ip)?;
    known(path, &packet, ip.protocol)?;
    let address = if packet.direction == Direction::In { ip.source } else { ip.destination };
    Some(Owner { side: packet.side(), protocol: Protocol::Udp, client: packet.client, wide: wide(address) })
}

/// Where the connection of IKE is, if there is one, that the packet of ESP or AH in a frame follows.
pub(super) fn place(path: &Path<'_>, frame: &[u8]) -> Option<Hash> {
    let packet = packet_of(path, frame)?;
    let as_ike = match packet.first()? >> 4 {
        6 => as_ike(path, Packet::default(), &u128::parse(packet)?),
        _ => as_ike(path, Packet::default(), &u32::parse(packet)?),
    };
    Some(as_ike?.hash)
}

fn go<A: Family>(path: &Path<'_>, packet: Packet, ip: &Ip<A>, frame: &mut impl Frame) -> Option<Verdict> {
    let packet = as_ike(path, packet, ip)?;
    match connection(path, &packet, ip.protocol) {
        Ok(dest) => Some(path.rewrite(&packet, dest?, frame)),
        Err(verdict) => Some(verdict),
    }
}

/// A packet of ESP or AH as one of IKE between the same two, but without ports to be changed.
fn as_ike<A: Family>(path: &Path<'_>, packet: Packet, ip: &Ip<A>) -> Option<Packet> {
    if !is_ipsec(ip.protocol) {
        return None;
    }
    let (direction, owner, client) = whose(path, ip)?;
    Some(Packet {
        source_port: IKE,
        destination_port: IKE,
        length: ip.total_length,
        transport: (ethernet::HEADER + ip.header_length) as u16,
        protocol: Protocol::Udp,
        ttl: ip.ttl,
        piece: Piece::Later,
        direction,
        owner,
        client,
        hash: path.engine.table.hash(client, Protocol::Udp),
        ..packet
    })
}

/// Which way a packet goes, whose it would be if it were one of IKE, and its client.
fn whose<A: Family>(path: &Path<'_>, ip: &Ip<A>) -> Option<(Direction, u32, Client)> {
    let (snapshot, table) = (path.snapshot, &path.engine.table);
    if let Some((service, towards)) = snapshot.service_for(ip.destination, IKE, Protocol::Udp) {
        return Some((Direction::In, service, ip.source.client(IKE, table).towards(towards)));
    }
    let client = ip.destination.client(IKE, table);
    if let Some(endpoint) = snapshot.endpoint_at(ip.source, IKE, Protocol::Udp) {
        return Some((Direction::Out, endpoint, client));
    }
    let endpoint = snapshot.endpoint_of_all_ports(ip.source, Protocol::Udp)?;
    Some((Direction::Out, endpoint, client.towards(IKE)))
}

/// The server of IKE's connection, which is noted as seen.
fn connection<'a>(path: &Path<'a>, packet: &Packet, protocol: u8) -> Result<Option<&'a Dest>, Verdict> {
    // As in `Path::find_or_begin`: each round that fails is one in which another worker got on.
    while let Some((slot, word)) = known(path, packet, protocol) {
        if let Some(dest) = path.advance(slot, word, packet)? {
            return Ok(Some(dest));
        }
    }
    Ok(None)
}

/// IKE's connection, if it is of a service with the helper and this protocol can follow it.
fn known(path: &Path<'_>, packet: &Packet, protocol: u8) -> Option<(Slot, Word)> {
    let judge = Judgement::of_known(path.snapshot, path.now, packet.side(), packet.client);
    let (slot, word) = path.engine.table.find(packet.hash, packet.client, &judge)?;
    let dest = path.snapshot.dest_of(word)?;
    let service = &path.snapshot.services[dest.service as usize];
    let keeps_addresses = service.mode != Mode::Nat || dest.is_here;
    (service.helper == Some(Helper::Ipsec) && (protocol == ESP || keeps_addresses)).then_some((slot, word))
}
