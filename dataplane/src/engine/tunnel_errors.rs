//! ICMP errors about a tunnel's packets, from between here and the real server: the client whose packet was inside is told, as RFC 2003
//! (section 4) and RFC 2473 (section 8) want it, in its own family.
//!
//! | reported of the outer packet | told of the packet inside |
//! |---|---|
//! | fragmentation needed, packet too big | the same, with what the tunnel's headers leave of the MTU |
//! | network unreachable, no route | the same |
//! | any other destination unreachable, but a failed source route; an unknown next header | host (address) unreachable |
//! | time exceeded on the way | host (address) unreachable |
//! | anything else | nothing; it is Linux' |
//!
//! Whose packet it was tells the quote, if it is long enough to have its ports: 60 bytes with IP in IP over IPv4, where RFC 792 wants 28 and RFC
//! 1812, section 4.3.2.3, as many as fit into 576. It has to be of a connection, to the server that this connection has, from the source and
//! in the way that its tunnel has: whoever forges one has to know all that, as with TCP itself.
//!
//! A worker only finds out whether it is about a tunnel. Control makes the message; it is not the packet path.

use super::at_risk;
use super::resolve::Path;
use super::tell::{self, Asked};
use crate::clock::Tick;
use crate::snapshot::{Family, Snapshot, Tunnel};
use crate::table::Table;
use crate::wire::ethernet;
use crate::wire::icmp::{self, Kind};
use crate::wire::tunnel::{Inside, Wrapped};

/// What to tell of a packet that reports an error about a tunnel's packet: a packet to the client, whose source is 0 where Linux is to fill
/// it in, which it does for IPv4.
pub fn error(table: &Table, snapshot: &Snapshot, now: Tick, packet: &[u8]) -> Option<Vec<u8>> {
    let told = match packet.first()? >> 4 {
        4 => read::<u32>(table, snapshot, now, packet),
        6 => read::<u128>(table, snapshot, now, packet),
        _ => None,
    }?;
    match told.inside.first()? >> 4 {
        4 => told.message::<u32>(|_| Some(0)),
        _ => told.message::<u128>(|client| tell::own_towards(snapshot, client)),
    }
}

/// Whether the packet of a frame, of this family, reports an error about a tunnel's packet that its client is to be told.
pub(super) fn is_told<A: Family>(path: &Path<'_>, frame: &[u8]) -> bool {
    let packet = frame.get(ethernet::HEADER..).unwrap_or_default();
    read::<A>(&path.engine.table, path.snapshot, path.now, packet).is_some()
}

/// What is wrong on the way, in either family's words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    TooBig,
    NoRoute,
    Unreachable,
}

impl Trouble {
    /// What is told of the packet inside when this is reported of the outer one. A port or a protocol that nobody listens at is the
    /// tunnel's, not the one that the client has asked for.
    fn of<A: Family>(kind: Kind) -> Option<Trouble> {
        match kind {
            _ if kind == A::TOO_BIG => Some(Trouble::TooBig),
            _ if kind == A::NO_ROUTE => Some(Trouble::NoRoute),
            _ if kind == A::TTL_EXCEEDED || A::is_unreachable(kind) => Some(Trouble::Unreachable),
            _ => None,
        }
    }

    fn kind<A: Family>(self) -> Kind {
        match self {
            Trouble::TooBig => A::TOO_BIG,
            Trouble::NoRoute => A::NO_ROUTE,
            Trouble::Unreachable => A::HOST_UNREACHABLE,
        }
    }
}

/// What a client is told.
struct Told<'a> {
    trouble: Trouble,
    /// What the tunnel's headers leave of the MTU, if there is one to tell.
    room: u16,
    /// Its packet, as far as it is quoted.
    inside: &'a [u8],
}

impl Told<'_> {
    fn message<A: Family>(&self, own_towards: impl Fn(A) -> Option<A>) -> Option<Vec<u8>> {
        let client = icmp::quote::<A>(self.inside)?.source;
        let mtu = if self.trouble == Trouble::TooBig { self.room.max(A::LEAST_MTU) } else { 0 };
        Some(icmp::error(own_towards(client)?, client, self.trouble.kind::<A>(), mtu, self.inside))
    }
}

fn read<'a, A: Family>(table: &Table, snapshot: &Snapshot, now: Tick, packet: &'a [u8]) -> Option<Told<'a>> {
    let ip = A::parse(packet).filter(|ip| ip.protocol == A::ICMP && ip.fragment.is_none())?;
    let message = &packet[ip.header_length..usize::from(ip.total_length)];
    let (kind, mtu, quote) = icmp::told(message)?;
    let trouble = Trouble::of::<A>(kind)?;
    let wrapped = Wrapped::parse(quote).filter(|wrapped| wrapped.outer.source() == ip.destination.ip())?;
    let tunnel = match wrapped.inside.first()? >> 4 {
        4 => tunnel_of::<u32>(table, snapshot, now, wrapped.inside),
        _ => tunnel_of::<u128>(table, snapshot, now, wrapped.inside),
    };
    let is_its =
        |tunnel: &Tunnel| (tunnel.encapsulation, tunnel.outer) == (wrapped.encapsulation, wrapped.outer);
    let tunnel = tunnel.filter(is_its)?;
    if !icmp::is_intact(ip.source, ip.destination, message) {
        return None;
    }
    // A router that does not tell an MTU means what every host takes (RFC 1191, section 5), as long as the longest error.
    let outer = if mtu == 0 { A::LONGEST_ERROR as u16 } else { mtu };
    // What may stand behind the quoted packet (RFC 4884) is about the outer one.
    let length = usize::from(Inside::read(wrapped.inside)?.length);
    let inside = &wrapped.inside[..wrapped.inside.len().min(length)];
    Some(Told { trouble, room: outer.saturating_sub(tunnel.overhead), inside })
}

/// The tunnel of the connection that a quoted packet is of.
fn tunnel_of<A: Family>(table: &Table, snapshot: &Snapshot, now: Tick, packet: &[u8]) -> Option<Tunnel> {
    let quoted = icmp::quote::<A>(packet)?;
    let ports = |_| Some([quoted.source_port, quoted.destination_port]);
    let asked = Asked::of(snapshot, quoted.destination, quoted.protocol, ports)?;
    let (client, virtual_) =
        ((quoted.source, quoted.source_port), (quoted.destination, quoted.destination_port));
    let known = asked.dest(table, snapshot, now, quoted.source);
    known.or_else(|| at_risk::without_word(snapshot, now, asked.service, client, virtual_))?.tunnel
}
