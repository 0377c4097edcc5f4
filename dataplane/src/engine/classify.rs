//! Stage 2: whose packet it is.

use super::packet::{Direction, Packet, Work};
use super::resolve::Path;
use super::{BURST, Frame, Verdict, fullnat, route};
use crate::counters::{Drop, Punt};
use crate::fib::PortIndex;
use crate::snapshot::{Family, Snapshot};
use crate::table::{Client, Table};

/// Stage 2: every packet that is left; the home buckets of their connections begin to be loaded. In a snapshot that
/// is new to this core, what tells whose they are is loaded first.
#[inline(never)]
pub(super) fn classify_all<F: Frame>(
    path: &Path<'_>,
    is_fresh: bool,
    work: &mut Work,
    burst: &mut [F],
    verdicts: &mut [Verdict; BURST],
) {
    let (snapshot, table) = (path.snapshot, &path.engine.table);
    if is_fresh {
        for packet in &work.packets[..work.count] {
            let Packet { source, source_port, destination, destination_port, protocol, .. } = *packet;
            snapshot.prefetch((source, source_port), (destination, destination_port), protocol);
        }
    }
    let mut count = 0;
    for index in 0..work.count.min(BURST) {
        let packet = &mut work.packets[index];
        match classify(packet, (packet.source, packet.destination), path.port, snapshot, table) {
            Ok(()) => {
                table.prefetch(packet.hash);
                if count < index {
                    work.packets[count] = work.packets[index];
                }
                count += 1;
            }
            Err(verdict) => {
                let place = usize::from(packet.index) % BURST;
                verdicts[place] = route::instead(path, &mut burst[place], verdict);
            }
        }
    }
    work.count = count;
}

/// To a service, else from an endpoint: a packet with these addresses that has come in here.
#[inline(always)]
pub(super) fn classify<A: Family>(
    packet: &mut Packet,
    (source, destination): (A, A),
    incoming: Option<PortIndex>,
    snapshot: &Snapshot,
    table: &Table,
) -> Result<(), Verdict> {
    let Packet { source_port, destination_port, protocol, .. } = *packet;
    let hit = if let Some(service) = snapshot.service_at(destination, destination_port, protocol) {
        (Direction::In, service, source.client(source_port, table))
    } else if let Some(endpoint) = snapshot.endpoint_at(source, source_port, protocol) {
        (Direction::Out, endpoint, destination.client(destination_port, table))
    } else {
        return classify_further(packet, (source, destination), incoming, snapshot, table);
    };
    belongs(packet, hit, destination, incoming, snapshot, table)
}

/// What a packet hit: which way it goes, the service or endpoint, and the client.
type Hit = (Direction, u32, Client);

/// A packet with this destination has hit something.
#[inline(always)]
fn belongs<A: Family>(
    packet: &mut Packet,
    (direction, owner, client): Hit,
    destination: A,
    incoming: Option<PortIndex>,
    snapshot: &Snapshot,
    table: &Table,
) -> Result<(), Verdict> {
    // Before anything is looked up: a packet that goes no further must not move a connection's state.
    if packet.ttl <= 1 {
        at_its_end(packet, (direction, owner), destination, incoming, snapshot)?;
    }
    packet.direction = direction;
    packet.owner = owner;
    packet.client = client;
    packet.hash = table.hash(client, packet.protocol);
    Ok(())
}

/// A packet whose time to live is over has arrived (RFC 1812, section 5.3.1) if a real server sends it to the router itself, as the answer to a
/// check, but not if to a client that it knows by a local address of full NAT; or if it is a client's, and its server the router itself: that
/// is seen when its server is known, for which it takes the long way, as does one that is no service's here unless it has a connection.
#[cold]
fn at_its_end<A: Family>(
    packet: &mut Packet,
    (direction, owner): (Direction, u32),
    destination: A,
    incoming: Option<PortIndex>,
    snapshot: &Snapshot,
) -> Result<(), Verdict> {
    let has_it_here =
        |service: u32| snapshot.services[service as usize].has_port(packet.destination_port, incoming);
    let is_own = || A::fib(snapshot).is_own(destination) && snapshot.local_at(destination).is_none();
    match direction {
        Direction::In if snapshot.services[owner as usize].ends_here || !has_it_here(owner) => {
            packet.plain = false;
            Ok(())
        }
        Direction::Out if is_own() => Err(Verdict::Punt(Punt::ServerReply)),
        Direction::In | Direction::Out => Err(Verdict::Drop(Drop::TtlExpired)),
    }
}

/// The same as [`classify`] for a packet whose addresses nobody has with their very ports.
#[inline(never)]
fn classify_further<A: Family>(
    packet: &mut Packet,
    addresses: (A, A),
    incoming: Option<PortIndex>,
    snapshot: &Snapshot,
    table: &Table,
) -> Result<(), Verdict> {
    let hit = further(packet, addresses, incoming, snapshot, table).ok_or(Verdict::Punt(Punt::NoService))?;
    belongs(packet, hit, addresses.1, incoming, snapshot, table)
}

/// What a packet hit whose addresses nobody has with their very ports: to a service of all ports, a reply to a local address of
/// full NAT, or from an endpoint of a service of all ports. What has a service or an endpoint of its own pays nothing for that.
#[inline(never)]
pub(super) fn further<A: Family>(
    packet: &Packet,
    (source, destination): (A, A),
    incoming: Option<PortIndex>,
    snapshot: &Snapshot,
    table: &Table,
) -> Option<Hit> {
    let Packet { source_port, destination_port, protocol, .. } = *packet;
    if let Some(service) = snapshot.service_of_any_place(destination, destination_port, protocol, incoming) {
        let client = source.client(source_port, table);
        return Some((Direction::In, service, client.towards(destination_port)));
    }
    let ends = ((source, source_port), (destination, destination_port));
    if let Some((dest, client)) = fullnat::reply(snapshot, table, ends.0, ends.1, protocol) {
        return Some((Direction::Out, dest.endpoint?, client));
    }
    let endpoint = snapshot.endpoint_of_all_ports(source, protocol)?;
    let client = destination.client(destination_port, table);
    Some((Direction::Out, endpoint, client.towards(source_port)))
}
