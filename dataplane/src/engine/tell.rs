//! Tells the sender of a packet that goes no further: an ICMP error (RFC 792; RFC 1812, section 4.3; RFC 4443).
//!
//! Control does this, with packets that a worker has dropped and handed over; it is not the packet path. A worker hands over
//! so many a second and no more ([`Allowance`]): whoever floods it is not answered one by one.
//!
//! | dropped as | told as | from |
//! |---|---|---|
//! | `ttl_expired` | time exceeded | the router, so that it shows in a traceroute |
//! | `too_big`, with "don't fragment" | fragmentation needed (packet too big), with the MTU | the router |
//! | `no_server` | port unreachable, as IPVS says it for TCP, too; or a RST, if the service wants that | the virtual address, which was asked |
//!
//! Of a server whose MAC is not known yet nothing is said: the client asks again in a second, and by then it is.

use std::net::IpAddr;

use super::fullnat::{self, View};
use super::ipsec;
use super::packet::Side;
use super::reset;
use super::resolve::Judgement;
use crate::clock::Tick;
use crate::counters::Drop;
use crate::fib::NextHop;
use crate::service::Protocol;
use crate::snapshot::{Dest, Family, ServiceIndex, Snapshot};
use crate::snat::Class;
use crate::table::Table;
use crate::wire::transport::Transport;
use crate::wire::version::{Ip, Version};
use crate::wire::{icmp, proxy};

/// Packets that a worker hands over in a tick, of each kind: 128 a second.
const IN_A_TICK: u32 = 32;

/// How much a worker has left to say: of packets that are too long, and of all others. Connections hang without the first, and whoever
/// sends packets that run out of hops must not use it up.
#[derive(Debug, Default)]
pub struct Allowance {
    tick: Tick,
    used: [u32; 2],
}

impl Allowance {
    /// Whether the sender of a packet that was dropped now is to be told. Each yes counts.
    #[inline]
    pub fn take(&mut self, reason: Drop, now: Tick) -> bool {
        if !matches!(reason, Drop::TtlExpired | Drop::TooBig | Drop::NoServer) {
            return false;
        }
        if self.tick != now {
            *self = Allowance { tick: now, used: [0; 2] };
        }
        let used = &mut self.used[usize::from(reason == Drop::TooBig)];
        *used += u32::from(*used <= IN_A_TICK);
        *used <= IN_A_TICK
    }
}

/// What to tell of a packet that was dropped: a packet, whose source is 0 where Linux is to fill it in, which it does for IPv4. None if there
/// is nothing to be told, or nobody.
pub fn error(table: &Table, snapshot: &Snapshot, now: Tick, reason: Drop, packet: &[u8]) -> Option<Vec<u8>> {
    let way = Way { table, snapshot, now };
    match packet.first()? >> 4 {
        4 => way.error::<u32>(reason, packet, |_| Some(0)),
        6 => way.error::<u128>(reason, packet, |client| own_towards(snapshot, client)),
        _ => None,
    }
}

/// An IPv6 address of the router's own to speak from: on the way to the client, else any (RFC 4443, section 2.2), since a port may have
/// only a link-local one. Virtual addresses are the last resort: another router may have them next.
pub(super) fn own_towards(snapshot: &Snapshot, client: u128) -> Option<u128> {
    let (fib, is_own) = (&snapshot.fibs.six, |address| !snapshot.is_virtual(address));
    fib.source_among(client, is_own)
        .or_else(|| fib.own().find(|&own| is_own(own)))
        .or_else(|| fib.own().next())
}

/// What is known of where packets go.
struct Way<'a> {
    table: &'a Table,
    snapshot: &'a Snapshot,
    now: Tick,
}

impl Way<'_> {
    fn error<A: Family>(
        &self,
        reason: Drop,
        packet: &[u8],
        own_towards: impl Fn(A) -> Option<A>,
    ) -> Option<Vec<u8>> {
        // Of fragments the first is told of, since the others have no ports to tell whose they are (RFC 792).
        let is_later = |ip: &Ip<A>| ip.fragment.is_some_and(|fragment| fragment.offset > 0);
        let ip = A::parse(packet).filter(|ip| !is_later(ip))?;
        let packet = &packet[..usize::from(ip.total_length)];
        // Of errors nothing is told (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
        let message = packet.get(ip.header_length).filter(|_| ip.protocol == A::ICMP);
        if message.is_some_and(|&kind| A::is_error(kind).is_some()) {
            return None;
        }
        let is_ours = self.snapshot.is_virtual(ip.source) || A::fib(self.snapshot).is_own(ip.source);
        if !ip.source.is_somebody() || is_ours {
            return None;
        }
        let asked = self.asked(&ip, packet);
        let (source, kind, mtu) = match reason {
            Drop::TtlExpired => (own_towards(ip.source)?, A::TTL_EXCEEDED, 0),
            Drop::NoServer => match &self.snapshot.services[asked?.service as usize] {
                service if service.waits => return None,
                service if service.resets && ip.protocol == Protocol::Tcp.number() => {
                    return reset::refusal(&ip, packet);
                }
                _ => (ip.destination, A::PORT_UNREACHABLE, 0),
            },
            Drop::TooBig if ip.dont_fragment => {
                (own_towards(ip.source)?, A::TOO_BIG, self.mtu(&ip, packet, asked)?)
            }
            _ => return None,
        };
        Some(icmp::error(source, ip.source, kind, mtu, packet))
    }

    /// The service that a packet is for; none if it is a reply, or concerns none and was to be routed.
    fn asked<A: Family>(&self, ip: &Ip<A>, packet: &[u8]) -> Option<Asked> {
        Asked::of(self.snapshot, ip.destination, ip.protocol, |protocol| {
            let Transport { source, destination, .. } = ports(ip, protocol, packet)?;
            Some([source, destination])
        })
    }

    /// Whom a packet goes to that is for an address of the router's own: a client, as a reply by full NAT, or who is behind source NAT.
    fn beyond<A: Family>(&self, ip: &Ip<A>, packet: &[u8]) -> Option<A> {
        let Way { table, snapshot, now } = *self;
        let protocol = Protocol::from_number(ip.protocol)?;
        let Transport { source, destination, .. } = ports(ip, protocol, packet)?;
        let ends = ((ip.source, source), (ip.destination, destination));
        if let Some((dest, client)) = fullnat::reply(snapshot, table, ends.0, ends.1, protocol) {
            return Some(View { table, snapshot, now }.client::<A>(dest, client)?.0);
        }
        let IpAddr::V4(outside) = ip.destination.ip() else { return None };
        let class = Class::of_protocol(protocol)?;
        let mapping = snapshot.snats.from_outside(now, class, outside.into(), destination)?;
        A::of(IpAddr::V4(mapping.inside.address().into()))
    }

    /// The MTU of the way that a packet would have gone, without the headers of a tunnel.
    fn mtu<A: Family>(&self, ip: &Ip<A>, packet: &[u8], asked: Option<Asked>) -> Option<u16> {
        let Way { table, snapshot, now } = *self;
        let next_hop = match asked {
            None => A::fib(snapshot).look_up(self.beyond(ip, packet).unwrap_or(ip.destination)),
            // Nobody may remember where it would have gone: what fits on the narrowest way.
            Some(Asked { service, .. }) if !snapshot.services[service as usize].keeps_all => {
                let of_service = snapshot.dests().filter(|dest| dest.service == service);
                return of_service.filter_map(mtu_to::<A>).min();
            }
            Some(asked) => {
                let dest = asked.dest(table, snapshot, now, ip.source)?;
                // There has to be room for the header in front of the stream.
                let has_header = snapshot.services[dest.service as usize].has_header();
                let header = if has_header { proxy::length::<A>() as u16 } else { 0 };
                return Some(icmp::room::<A>(mtu_to::<A>(dest)?, header));
            }
        };
        mtu_of(next_hop)
    }
}

/// The service that a packet is for, and as what its connection is found.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub service: ServiceIndex,
    protocol: Protocol,
    client_port: u16,
    /// By which virtual port the service knows the client.
    towards: u16,
}

impl Asked {
    /// Of a packet to this address, with this protocol number and with these ports: the client's, and the virtual one. Those of ESP and AH are IKE's.
    pub fn of<A: Family>(
        snapshot: &Snapshot,
        destination: A,
        number: u8,
        ports: impl FnOnce(Protocol) -> Option<[u16; 2]>,
    ) -> Option<Asked> {
        let (protocol, [client_port, port]) = match Protocol::from_number(number) {
            Some(protocol) => (protocol, ports(protocol)?),
            None => ipsec::followed(number)?,
        };
        let (service, towards) = snapshot.service_for(destination, port, protocol)?;
        Some(Asked { service, protocol, client_port, towards })
    }

    /// With whom the connection of this client is.
    pub fn dest<'a, A: Family>(
        self,
        table: &Table,
        snapshot: &'a Snapshot,
        now: Tick,
        client: A,
    ) -> Option<&'a Dest> {
        let Asked { service, protocol, client_port, towards } = self;
        let client = client.client(client_port, table).towards(towards);
        let judge = Judgement::of_known(snapshot, now, Side::Service(service), client);
        let (_, word) = table.find(table.hash(client, protocol), client, &judge)?;
        snapshot.dest_of(word)
    }
}

fn ports<A: Family>(ip: &Ip<A>, protocol: Protocol, packet: &[u8]) -> Option<Transport> {
    let segment = &packet[ip.header_length..];
    // The lengths in the header of a first fragment are the datagram's.
    let length = if ip.fragment.is_some() { usize::from(u16::MAX) } else { segment.len() };
    Transport::parse(protocol, segment, length)
}

/// Of the way to a server, without the headers of a tunnel.
fn mtu_to<A: Version>(dest: &Dest) -> Option<u16> {
    let mtu = mtu_of(dest.next_hop)?;
    // What every link takes goes through the tunnel in fragments, if need be.
    Some(dest.tunnel.map_or(mtu, |tunnel| mtu.saturating_sub(tunnel.overhead).max(A::LEAST_MTU)))
}

fn mtu_of(next_hop: NextHop) -> Option<u16> {
    match next_hop {
        NextHop::Ready(adjacency) => Some(adjacency.mtu),
        NextHop::Unresolved(_) | NextHop::NoRoute => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_a_tick_and_no_more() {
        let mut allowance = Allowance::default();
        let mut taken = |now| (0..100_000).filter(|_| allowance.take(Drop::NoServer, Tick(now))).count();
        assert_eq!([taken(7), taken(7), taken(8)], [IN_A_TICK as usize, 0, IN_A_TICK as usize]);
        assert!(allowance.take(Drop::TooBig, Tick(8)), "which has a share of its own");
        assert!(!allowance.take(Drop::Runt, Tick(9)), "of that nobody is told");
    }
}
