//! ICMP errors about connections go where the connection goes.
//!
//! A router on the way, or the host at its end, says of a packet that it could not be delivered, and quotes it. What it
//! quotes is the packet as it was there: behind a NAT, with the real server's address or the virtual one in the place of
//! the other. So the message is translated inside and out, as RFC 5508 wants it of NATs and Linux IPVS does it:
//!
//! ```text
//!   about a request      server's side --> client     quoted: client > server      becomes: client > virtual address
//!   about a reply        client's side --> server     quoted: virtual > client     becomes: server > client
//! ```
//!
//! With full NAT the server's side knows a local address in the place of the client's, in both.
//!
//! Without it no path MTU is discovered through the router, and clients learn of a closed UDP port by waiting. An error
//! changes no connection and does not keep it alive (RFC 5927): whoever can guess its ports can send one.

use super::packet::{Direction, Owner, Side};
use super::resolve::{Judgement, Path};
use super::rewrite::{Hop, next_hop};
use super::{Engine, Frame, Verdict, at_risk, fullnat, ipsec, route, tunnel};
use crate::clock::Tick;
use crate::counters::{Drop, Punt};
use crate::service::{Mode, Protocol};
use crate::snapshot::{Dest, EndpointIndex, Ends, Family, Snapshot};
use crate::table::Client;
use crate::wire::checksum::Delta;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::icmp::{self, End, Quote};
use crate::wire::proxy;
use crate::wire::version::Ip;

impl Engine {
    /// Whose connection an ICMP error in a frame is about: of a service, if it is about a reply; of an endpoint, if it is about a
    /// request. Of a packet of ESP or AH, the connection of IKE that it follows. None if it is neither, or about something else.
    pub fn related(&self, snapshot: &Snapshot, now: Tick, frame: &[u8]) -> Option<Owner> {
        let path = Path::new(self, snapshot, now);
        match Ethernet::parse(frame)?.ethertype {
            ethernet::IPV4 => of(&path, frame, |_: u32| None),
            ethernet::IPV6 => of(&path, frame, |address: u128| Some(address)),
            _ => None,
        }
    }
}

fn of<A: Family>(path: &Path<'_>, frame: &[u8], wide: impl Fn(A) -> Option<u128> + Copy) -> Option<Owner> {
    owner(path, frame, wide).or_else(|| ipsec::owner(path, frame, wide))
}

fn owner<A: Family>(path: &Path<'_>, frame: &[u8], wide: impl Fn(A) -> Option<u128>) -> Option<Owner> {
    let (ip, quote, protocol) = read::<A>(frame)?;
    let (side, client) = match subject(path, &ip, &quote, protocol) {
        Subject::Reply(side, client) | Subject::Request(side, client) => (side, client),
        Subject::Other => return None,
    };
    let address = if matches!(side, Side::Service(_)) { quote.destination } else { quote.source };
    Some(Owner { side, protocol, client, wide: wide(address) })
}

/// Where an ICMP packet goes, and the packet rewritten if it goes on. What is no error about a connection is Linux'.
pub(super) fn follow<A: Family>(path: &Path<'_>, frame: &mut impl Frame) -> Verdict {
    let linux = Verdict::Punt(Punt::Icmp);
    let Some((ip, quote, protocol)) = read::<A>(frame.bytes()) else { return linux };
    let (direction, side, client) = match subject(path, &ip, &quote, protocol) {
        Subject::Reply(side, client) => (Direction::In, side, client),
        Subject::Request(side, client) => (Direction::Out, side, client),
        Subject::Other => return linux,
    };
    // Linux would route it to the client, who must not see it: it names the real server.
    let nobodys = if direction == Direction::In { linux } else { Verdict::Drop(Drop::IcmpError) };
    let is_to_another = direction == Direction::Out && ip.destination != quote.source;
    if ip.fragment.is_some() || quote.is_redirect || is_to_another {
        return nobodys;
    }
    let table = &path.engine.table;
    let judge = Judgement::of_known(path.snapshot, path.now, side, client);
    let dest = table
        .find(table.hash(client, protocol), client, &judge)
        .and_then(|(_, word)| path.snapshot.dest_of(word))
        .or_else(|| without_word(path, side, &quote));
    let Some(dest) = dest else {
        // A client may know the server by its own address, if there is a way to it.
        let instead = route::instead(path, frame, linux);
        return if instead == linux { nobodys } else { instead };
    };
    // Who the other side's packets are to.
    let far = match (path.snapshot.services[dest.service as usize].mode, direction) {
        (Mode::Fullnat, Direction::In) => path.view().local(dest, client),
        (Mode::Fullnat, Direction::Out) => path.view().client(dest, client),
        (Mode::Nat | Mode::Dr | Mode::Tunnel, Direction::In) => {
            Some((quote.destination, quote.destination_port))
        }
        (Mode::Nat | Mode::Dr | Mode::Tunnel, Direction::Out) => Some((ip.destination, quote.source_port)),
    };
    let Some(far) = far else { return nobodys };
    if ip.ttl <= 1 && !dest.is_here {
        return Verdict::Drop(Drop::TtlExpired);
    }
    if let Some(tunnel) = &dest.tunnel {
        let verdict = tunnel::encapsulate(path, dest, tunnel, client, None, frame);
        if matches!(verdict, Verdict::Forward(_) | Verdict::Punt(_)) {
            path.count(dest, direction, ip.total_length);
        }
        return verdict;
    }
    let Hop { verdict, addresses } = match next_hop(path, dest, direction, ip.total_length, far.0) {
        Ok(hop) => hop,
        Err(verdict) => return verdict,
    };
    let Some((ethernet, packet)) = frame.bytes_mut().split_first_chunk_mut::<{ ethernet::HEADER }>() else {
        return nobodys;
    };
    if let Some(addresses) = &addresses {
        ethernet::write_addresses(ethernet, addresses);
    }
    rewrite(path, packet, (&ip, &quote, protocol), direction, dest, far);
    path.count(dest, direction, ip.total_length);
    verdict
}

/// With whom a connection is that needs no word, if the error is about a reply of a service that has such.
fn without_word<'a, A: Family>(path: &Path<'a>, side: Side, quote: &Quote<A>) -> Option<&'a Dest> {
    let Side::Service(index) = side else { return None };
    let (client, service) = ((quote.destination, quote.destination_port), (quote.source, quote.source_port));
    at_risk::without_word(path.snapshot, path.now, index, client, service)
}

/// The packet's header and what it quotes, if that is TCP or UDP.
fn read<A: Family>(frame: &[u8]) -> Option<(Ip<A>, Quote<A>, Protocol)> {
    let packet = frame.get(ethernet::HEADER..)?;
    let ip = A::parse(packet).filter(|ip| ip.protocol == A::ICMP)?;
    let quote = icmp::quoted(&packet[ip.header_length..usize::from(ip.total_length)])?;
    Some((ip, quote, Protocol::from_number(quote.protocol)?))
}

/// What an error is about.
enum Subject {
    /// A service's reply to this client.
    Reply(Side, Client),
    /// This client's request, as an endpoint got it.
    Request(Side, Client),
    /// Something else.
    Other,
}

/// An error is sent to whoever has sent the packet: one to another address is about something else, whatever it quotes. So is
/// one to the router itself: a health check waits for it ("port unreachable" is all that one by UDP may have to go by).
fn subject<A: Family>(path: &Path<'_>, ip: &Ip<A>, quote: &Quote<A>, protocol: Protocol) -> Subject {
    let (snapshot, table) = (path.snapshot, &path.engine.table);
    if ip.destination == quote.source
        && let Some((service, towards)) =
            snapshot.service_for_here(quote.source, quote.source_port, protocol, path.port)
    {
        let client = quote.destination.client(quote.destination_port, table);
        return Subject::Reply(Side::Service(service), client.towards(towards));
    }
    let ends = ((quote.destination, quote.destination_port), (quote.source, quote.source_port));
    if ip.destination == quote.source
        && let Some((dest, client)) = fullnat::reply(snapshot, table, ends.0, ends.1, protocol)
        && let Some(endpoint) = dest.endpoint
    {
        return Subject::Request(Side::Endpoint(endpoint), client);
    }
    if A::fib(snapshot).is_own(ip.destination) {
        return Subject::Other;
    }
    let (server, port) = (quote.destination, quote.destination_port);
    let client = quote.source.client(quote.source_port, table);
    let of_port = snapshot.endpoint_at(server, port, protocol).map(|endpoint| (endpoint, client));
    let of_all = || Some((snapshot.endpoint_of_all_ports(server, protocol)?, client.towards(port)));
    let is_known = |&(endpoint, client): &(EndpointIndex, Client)| {
        let judge = Judgement::of_known(snapshot, path.now, Side::Endpoint(endpoint), client);
        table.find(table.hash(client, protocol), client, &judge).is_some()
    };
    match of_port.filter(is_known).or_else(of_all).or(of_port) {
        Some((endpoint, client)) => Subject::Request(Side::Endpoint(endpoint), client),
        None => Subject::Other,
    }
}

/// Translates a packet from its IP header on. Whoever reports, to a client it is the service that does, as all addresses behind
/// it are the router's affair.
fn rewrite<A: Family>(
    path: &Path<'_>,
    packet: &mut [u8],
    (ip, quote, protocol): (&Ip<A>, &Quote<A>, Protocol),
    direction: Direction,
    dest: &Dest,
    far: fullnat::End<A>,
) {
    let Some((header, rest)) = packet.split_at_mut_checked(ip.header_length) else { return };
    let Some(message) = rest.get_mut(..usize::from(ip.total_length) - ip.header_length) else { return };
    A::decrement_ttl(header);
    let &Ends { virtual_address, address } = A::ends(dest);
    match (path.snapshot.services[dest.service as usize].mode, direction) {
        // A tunnel's packets do not come here.
        (Mode::Dr | Mode::Tunnel, _) => {}
        (Mode::Nat, Direction::In) => {
            A::set_destination(header, ip.destination, address);
            let outside = A::delta(ip.destination, address);
            let new = (End::Source, address, dest.server_port(quote.source_port));
            icmp::translate(message, protocol, new, outside);
        }
        (Mode::Nat, Direction::Out) => {
            A::set_source(header, ip.source, virtual_address);
            let outside = A::delta(ip.source, virtual_address);
            let port = dest.virtual_port(quote.destination_port);
            let new = (End::Destination, virtual_address, port);
            icmp::translate(message, protocol, new, outside);
        }
        // The server need not have a way back to whoever reports.
        (Mode::Fullnat, Direction::In) => {
            A::set_source(header, ip.source, far.0);
            A::set_destination(header, ip.destination, address);
            let outside = A::delta(ip.source, far.0).and(A::delta(ip.destination, address));
            let port = dest.server_port(quote.source_port);
            icmp::translate(message, protocol, (End::Source, address, port), outside);
            icmp::translate(message, protocol, (End::Destination, far.0, far.1), Delta::default());
        }
        (Mode::Fullnat, Direction::Out) => {
            A::set_source(header, ip.source, virtual_address);
            A::set_destination(header, ip.destination, far.0);
            let outside = A::delta(ip.source, virtual_address).and(A::delta(ip.destination, far.0));
            icmp::translate(message, protocol, (End::Source, far.0, far.1), outside);
            let new = (End::Destination, virtual_address, dest.virtual_port(quote.destination_port));
            icmp::translate(message, protocol, new, Delta::default());
            if path.snapshot.services[dest.service as usize].has_header() {
                icmp::lower_mtu::<A>(message, proxy::length::<A>() as u16);
            }
        }
    }
}
