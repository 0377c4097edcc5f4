//! How packets get to the real servers of a service in other packets.

use std::net::IpAddr;

use crate::fib::{Address, Fib, Fibs, NextHop};
use crate::service::Protocol;
use crate::wire::tunnel::{Encapsulation, Outer};
use crate::wire::{ipv4, ipv6, transport};

/// A service's tunnel, as control describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelSpec {
    /// How packets are put into others.
    pub encapsulation: Encapsulation,
    /// Source of the outer packets to servers of its family; `None`, and to others: the router's own address on the way to each server.
    pub source: Option<IpAddr>,
    /// What the MSS of clients is lowered to.
    pub mss_clamp: Option<MssClamp>,
}

/// What the maximum segment size that a client tells is lowered to, if it is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MssClamp {
    /// What fits into the tunnel without fragments.
    Fit,
    /// So many bytes.
    To(u16),
}

/// The tunnel to a real server, compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// How packets are put into others.
    pub encapsulation: Encapsulation,
    /// Between whom: of the real server's family, whatever the service's is.
    pub outer: Outer,
    /// Bytes of the headers around a packet.
    pub overhead: u16,
    /// What the MSS that a client's SYN tells is lowered to, if it is more.
    pub mss: Option<u16>,
}

impl TunnelSpec {
    /// The way from a service at a virtual address to a server, and the tunnel. Without an address of its own on it the router has no way;
    /// one that `is_virtual` is not its own: the server has that itself, and takes no packet from it, and another router may have it next.
    pub(super) fn towards(
        &self,
        (virtual_address, server): (IpAddr, IpAddr),
        fibs: &Fibs,
        is_virtual: impl Fn(IpAddr) -> bool,
    ) -> (NextHop, Option<Tunnel>) {
        let outer = match server {
            IpAddr::V4(server) => self
                .source_towards(u32::from(server), &fibs.four, is_virtual)
                .map(|source| Outer::Four { source, destination: server.into() }),
            IpAddr::V6(server) => self
                .source_towards(u128::from(server), &fibs.six, is_virtual)
                .map(|source| Outer::Six { source, destination: server.into() }),
        };
        let Some(outer) = outer else { return (NextHop::NoRoute, None) };
        let (next_hop, encapsulation) = (fibs.look_up(server), self.encapsulation);
        let header = if virtual_address.is_ipv4() { ipv4::HEADER } else { ipv6::HEADER };
        let overhead = encapsulation.overhead(&outer);
        let headers = overhead + (header + transport::header_length(Protocol::Tcp)) as u16;
        let mss = match (self.mss_clamp, next_hop) {
            (None, _) => None,
            (Some(MssClamp::To(mss)), _) => Some(mss),
            (Some(MssClamp::Fit), NextHop::Ready(adjacency)) => Some(adjacency.mtu.saturating_sub(headers)),
            // No connection begins before the way is known.
            (Some(MssClamp::Fit), NextHop::Unresolved(_) | NextHop::NoRoute) => None,
        };
        (next_hop, Some(Tunnel { encapsulation, outer, overhead, mss }))
    }

    fn source_towards<A: Address>(
        &self,
        server: A,
        fib: &Fib<A>,
        is_virtual: impl Fn(IpAddr) -> bool,
    ) -> Option<A> {
        let own = || fib.source_among(server, |own| !is_virtual(own.ip()));
        self.source.and_then(A::of).or_else(own)
    }
}
