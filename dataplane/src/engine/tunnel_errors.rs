//! ICMP errors about a tunnel's packets, from between here and the real server: the client whose packet was inside is told, as RFC 2003
//! wants it (section 4).
//!
//! | reported of the outer packet | told of the packet inside |
//! |---|---|
//! | fragmentation needed | the same, with what the tunnel's headers leave of the MTU |
//! | network unreachable | the same |
//! | any other destination unreachable, but a failed source route | host unreachable |
//! | time exceeded on the way | host unreachable |
//! | anything else | nothing; it is Linux' |
//!
//! Whose packet it was tells the quote, if it is long enough to have its ports: 60 bytes with IP in IP, where RFC 792 wants 28 and RFC
//! 1812, section 4.3.2.3, as many as fit into 576. It has to be of a connection, to the server that this connection has, from the source and
//! in the way that its tunnel has: whoever forges one has to know all that, as with TCP itself.
//!
//! A worker only finds out whether it is about a tunnel. Control makes the message; it is not the packet path.

use super::packet::Side;
use super::resolve::{Judgement, Path};
use crate::clock::Tick;
use crate::service::Protocol;
use crate::snapshot::Snapshot;
use crate::table::{Client, Table};
use crate::wire::ethernet;
use crate::wire::icmp::{self, Kind};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::tunnel::Wrapped;
use crate::wire::version::Version;

const ICMP: u8 = 1;
/// What a router means that does not tell an MTU (RFC 1191, section 5): what every host takes.
const MTU_NOT_TOLD: u16 = 576;
/// What every link takes (RFC 791).
const LEAST_MTU: u16 = 68;

/// What to tell of an IPv4 packet that reports an error about a tunnel's packet: an IPv4 packet to the client, whose source is 0, for Linux
/// to fill it in.
pub fn error(table: &Table, snapshot: &Snapshot, now: Tick, packet: &[u8]) -> Option<Vec<u8>> {
    let Told { client, kind, mtu, inside } = read(table, snapshot, now, packet)?;
    Some(icmp::error(0, client, kind, mtu, inside))
}

/// Whether the packet of a frame reports an error about a tunnel's packet that its client is to be told.
pub(super) fn is_told(path: &Path<'_>, frame: &[u8]) -> bool {
    let packet = frame.get(ethernet::HEADER..).unwrap_or_default();
    read(&path.engine.table, path.snapshot, path.now, packet).is_some()
}

/// What a client is told.
struct Told<'a> {
    client: u32,
    kind: Kind,
    mtu: u16,
    /// Its packet, as far as it is quoted.
    inside: &'a [u8],
}

fn read<'a>(table: &Table, snapshot: &Snapshot, now: Tick, packet: &'a [u8]) -> Option<Told<'a>> {
    let ip = Ipv4::parse(packet).ok().filter(|ip| ip.protocol == ICMP && !ip.is_fragment)?;
    let message = &packet[ip.header_length..usize::from(ip.total_length)];
    let (kind, mtu, quote) = icmp::told(message)?;
    let kind = told_as(kind)?;
    let wrapped = Wrapped::parse(quote).filter(|wrapped| wrapped.source == ip.destination)?;
    let quoted = icmp::quote::<u32>(wrapped.inside)?;
    let protocol = Protocol::from_number(quoted.protocol)?;
    let (service, towards) = snapshot.service_for(quoted.destination, quoted.destination_port, protocol)?;
    let client = Client::new(quoted.source, quoted.source_port).towards(towards);
    let judge = Judgement::of_known(snapshot, now, Side::Service(service), client);
    let (_, word) = table.find(table.hash(client, protocol), client, &judge)?;
    let dest = snapshot.dest_of(word)?;
    let is_ours = |encapsulation, source| {
        let Wrapped { source: quoted, destination, encapsulation: seen, .. } = wrapped;
        (seen, quoted, destination) == (encapsulation, source, dest.four.address)
    };
    let tunnel = dest.tunnel.filter(|tunnel| is_ours(tunnel.encapsulation, tunnel.source))?;
    if !icmp::is_intact(message) {
        return None;
    }
    let mtu = match kind {
        u32::TOO_BIG => {
            let outer = if mtu == 0 { MTU_NOT_TOLD } else { mtu };
            outer.saturating_sub(tunnel.encapsulation.overhead()).max(LEAST_MTU)
        }
        _ => 0,
    };
    // What may stand behind the quoted packet (RFC 4884) is about the outer one.
    let (length, _) = ipv4::extent(wrapped.inside.first_chunk()?);
    let inside = &wrapped.inside[..wrapped.inside.len().min(usize::from(length))];
    Some(Told { client: quoted.source, kind, mtu, inside })
}

/// What is told of the packet inside when this is reported of the outer one. A source route was none of the client's, and a port or a
/// protocol that nobody listens at is the tunnel's, not the one that the client has asked for.
fn told_as(kind: Kind) -> Option<Kind> {
    match kind {
        u32::TOO_BIG | icmp::NET_UNREACHABLE => Some(kind),
        (3, 5) => None,
        (3, _) | u32::TTL_EXCEEDED => Some(icmp::HOST_UNREACHABLE),
        _ => None,
    }
}
