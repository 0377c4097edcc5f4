//! How packets get to the real servers of a service in other packets.

use crate::fib::{Fib, NextHop};
use crate::service::Protocol;
use crate::wire::tunnel::Encapsulation;
use crate::wire::{ipv4, transport};

/// A service's tunnel, as control describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelSpec {
    /// How packets are put into others.
    pub encapsulation: Encapsulation,
    /// Source of the outer packets; `None`: the router's own address on the way to each server.
    pub source: Option<u32>,
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
    /// Source of the outer packets.
    pub source: u32,
    /// What the MSS that a client's SYN tells is lowered to, if it is more.
    pub mss: Option<u16>,
}

/// Of a packet of TCP, without options.
const HEADERS: u16 = (ipv4::HEADER + transport::header_length(Protocol::Tcp)) as u16;

impl TunnelSpec {
    /// The tunnel to a server, and the way. Without an address of its own on it the router has no way.
    pub(super) fn towards(&self, server: u32, fib: &Fib<u32>) -> (NextHop, Option<Tunnel>) {
        let &TunnelSpec { encapsulation, source, mss_clamp } = self;
        let next_hop = fib.look_up(server);
        let Some(source) = source.or_else(|| fib.source_towards(server)) else {
            let tunnel = Tunnel { encapsulation, source: 0, mss: None };
            return (NextHop::NoRoute, Some(tunnel));
        };
        let mss = match (mss_clamp, next_hop) {
            (None, _) => None,
            (Some(MssClamp::To(mss)), _) => Some(mss),
            (Some(MssClamp::Fit), NextHop::Ready(adjacency)) => {
                Some(adjacency.mtu.saturating_sub(encapsulation.overhead() + HEADERS))
            }
            // No connection begins before the way is known.
            (Some(MssClamp::Fit), NextHop::Unresolved(_) | NextHop::NoRoute) => None,
        };
        (next_hop, Some(Tunnel { encapsulation, source, mss }))
    }
}
