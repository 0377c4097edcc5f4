//! From an address to an adjacency: the routes and neighbours that the data path needs for replies.
//!
//! Control compiles it from what Linux knows. A balancer's routing table is small (its own subnets and a
//! default route, or some hundreds of prefixes), so overlapping prefixes are flattened into disjoint
//! ranges. Up to eight of them, the usual router's, are compared at once; more are found by binary search. That takes
//! no memory to speak of. (DIR-24-8 would take 64 MB to save some compares.)

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::key::{KeyHasher, WideKey};
use crate::ranges::flatten;
use crate::wire::ethernet::Mac;

/// A port of the router, as an index into its ports.
pub type PortIndex = u16;

/// Where to send a frame, and as whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjacency {
    /// Destination MAC, then source MAC: the first 12 bytes of the frame.
    pub addresses: [u8; 12],
    /// The port.
    pub port: PortIndex,
    /// The longest IP packet that the port takes.
    pub mtu: u16,
}

impl Adjacency {
    /// Frames from `source` to `destination` on a port.
    pub fn new(port: PortIndex, mtu: u16, destination: Mac, source: Mac) -> Self {
        let mut addresses = [0; 12];
        addresses[..6].copy_from_slice(&destination);
        addresses[6..].copy_from_slice(&source);
        Adjacency { addresses, port, mtu }
    }
}

/// What is known about the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// The neighbour is known.
    Ready(Adjacency),
    /// The neighbour on this port must be resolved first.
    Unresolved(PortIndex),
    /// There is no route over a port of the router.
    NoRoute,
}

/// An address of a family, as a number in host order.
pub trait Address: Copy + Ord + Debug + From<u8> {
    /// Bits of an address.
    const BITS: u8;
    /// The last address.
    const LAST: Self;
    /// A neighbour's address on a port, as a key for `KeyHasher`.
    type Key: Copy + Eq + Hash + Debug;

    /// As one of this family; none if it is of the other one.
    fn of(address: IpAddr) -> Option<Self>;
    /// As one of either family.
    fn ip(self) -> IpAddr;
    /// As such a key.
    fn key(self, port: PortIndex) -> Self::Key;
    /// The first address of its prefix of this length.
    fn first(self, length: u8) -> Self;
    /// The last one.
    fn last(self, length: u8) -> Self;
    /// The address after it.
    fn next(self) -> Option<Self>;
}

macro_rules! address {
    ($type:ty, $variant:ident, $std:ty, $key:ty, $make:expr) => {
        impl Address for $type {
            const BITS: u8 = <$type>::BITS as u8;
            const LAST: Self = <$type>::MAX;
            type Key = $key;

            fn of(address: IpAddr) -> Option<Self> {
                if let IpAddr::$variant(address) = address { Some(address.into()) } else { None }
            }

            fn ip(self) -> IpAddr {
                <$std>::from(self).into()
            }

            #[inline(always)]
            fn key(self, port: PortIndex) -> $key {
                $make(self, port)
            }

            // Shifted by all of its bits a number is nothing: a prefix without length has everybody in it.
            fn first(self, length: u8) -> Self {
                self & !<$type>::MAX.checked_shr(length.into()).unwrap_or(0)
            }

            fn last(self, length: u8) -> Self {
                self | <$type>::MAX.checked_shr(length.into()).unwrap_or(0)
            }

            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
        }
    };
}

address!(u32, V4, Ipv4Addr, u64, |address, port| u64::from(port) << 32 | u64::from(address));
address!(u128, V6, Ipv6Addr, WideKey, |address, port| WideKey { address, rest: u64::from(port) });

/// Where a prefix leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via<A> {
    /// Through a gateway on a port.
    Gateway(PortIndex, A),
    /// The addresses are neighbours on a port.
    OnLink(PortIndex),
    /// The address is the router's own.
    Own,
    /// Nowhere that concerns the data path: an interface that is no port.
    Nowhere,
}

/// A route: a prefix and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<A> {
    /// First address of the prefix.
    pub prefix: A,
    /// Prefix length in bits.
    pub length: u8,
    /// Where it leads.
    pub via: Via<A>,
}

/// Routes and neighbours of a family of addresses.
#[derive(Clone, Debug)]
pub struct Fib<A: Address> {
    /// First addresses of disjoint ranges, ascending; the first is 0 unless there is none.
    starts: Box<[A]>,
    /// The first of them once more, in one place; filled up with the greatest address.
    few: [A; FEW],
    /// Where each range leads.
    legs: Box<[Leg<A>]>,
    /// By port and address.
    neighbours: Neighbours<A>,
    /// The router's own addresses, with the ports that they are on and the lengths of their prefixes.
    own: Vec<(PortIndex, A, u8)>,
}

/// Routes and neighbours of both families.
#[derive(Clone, Debug, Default)]
pub struct Fibs {
    /// IPv4.
    pub four: Fib<u32>,
    /// IPv6.
    pub six: Fib<u128>,
}

impl Fibs {
    /// The way to an address.
    pub fn look_up(&self, address: IpAddr) -> NextHop {
        match address {
            IpAddr::V4(address) => self.four.look_up(address.into()),
            IpAddr::V6(address) => self.six.look_up(address.into()),
        }
    }

    /// Whether an address is the router's own.
    pub fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.four.is_own(address.into()),
            IpAddr::V6(address) => self.six.is_own(address.into()),
        }
    }

    /// See [`Fib::neighbour_of`].
    pub fn neighbour_of(&self, address: IpAddr) -> Option<(PortIndex, IpAddr)> {
        match address {
            IpAddr::V4(address) => {
                let (port, neighbour) = self.four.neighbour_of(address.into())?;
                Some((port, neighbour.ip()))
            }
            IpAddr::V6(address) => {
                let (port, neighbour) = self.six.neighbour_of(address.into())?;
                Some((port, neighbour.ip()))
            }
        }
    }
}

impl From<Fib<u32>> for Fibs {
    fn from(four: Fib<u32>) -> Fibs {
        Fibs { four, six: Fib::default() }
    }
}

impl<A: Address> Default for Fib<A> {
    fn default() -> Self {
        Fib::new([], [])
    }
}

/// Ranges that are compared at once: what one vector register holds.
const FEW: usize = 8;

/// Where a range leads, with the gateway looked up in advance: the usual reply, through a gateway, takes no
/// hash look-up.
#[derive(Clone, Copy, Debug)]
enum Leg<A> {
    Gateway(PortIndex, A, NextHop),
    OnLink(PortIndex),
    Own,
    Nowhere,
}

/// Neighbours by [`Address::key`]. Clients choose the addresses that are looked up, but not those that are in
/// it: Linux limits its neighbours.
type Neighbours<A> = HashMap<<A as Address>::Key, Adjacency, BuildHasherDefault<KeyHasher>>;

impl<A: Address> Fib<A> {
    /// Compiles routes and neighbours. Of two routes with an equal prefix the first counts.
    pub fn new(
        routes: impl IntoIterator<Item = Route<A>>,
        neighbours: impl IntoIterator<Item = ((PortIndex, A), Adjacency)>,
    ) -> Self {
        let neighbours: Neighbours<A> = neighbours
            .into_iter()
            .map(|((port, address), adjacency)| (address.key(port), adjacency))
            .collect();
        let leg = |via| match via {
            Via::Gateway(port, gateway) => {
                Leg::Gateway(port, gateway, resolve::<A>(&neighbours, port, gateway))
            }
            Via::OnLink(port) => Leg::OnLink(port),
            Via::Own => Leg::Own,
            Via::Nowhere => Leg::Nowhere,
        };
        let routes = routes.into_iter().map(|Route { prefix, length, via }| (prefix, length, via));
        let ranges = flatten(routes.collect(), Via::Nowhere);
        let (starts, legs): (Vec<_>, Vec<_>) =
            ranges.into_iter().map(|(start, via)| (start, leg(via))).unzip();
        let few = std::array::from_fn(|index| starts.get(index).copied().unwrap_or(A::LAST));
        Fib { starts: starts.into(), few, legs: legs.into(), neighbours, own: Vec::new() }
    }

    /// The same, with the router's own addresses: the port of each, and the length of its prefix.
    pub fn with_own(self, own: impl IntoIterator<Item = (PortIndex, A, u8)>) -> Self {
        Fib { own: own.into_iter().collect(), ..self }
    }

    /// The router's own address on the way to another one, among those that may be one: of the port that leads there, the one in the next
    /// hop's network, or else any.
    pub fn source_among(&self, address: A, may_be: impl Fn(A) -> bool) -> Option<A> {
        let (port, neighbour) = self.neighbour_of(address)?;
        let own = || self.own.iter().filter(|&&(of, address, _)| of == port && may_be(address));
        let is_near = |&&(_, own, length): &&(PortIndex, A, u8)| own.first(length) == neighbour.first(length);
        own().find(is_near).or_else(|| own().next()).map(|&(_, address, _)| address)
    }

    /// The router's own addresses, of whatever port.
    pub fn own(&self) -> impl Iterator<Item = A> {
        self.own.iter().map(|&(_, address, _)| address)
    }

    /// The way to an address.
    #[inline]
    pub fn look_up(&self, address: A) -> NextHop {
        match self.leg(address) {
            Some(&Leg::Gateway(_, _, next_hop)) => next_hop,
            Some(&Leg::OnLink(port)) => resolve::<A>(&self.neighbours, port, address),
            Some(Leg::Own | Leg::Nowhere) | None => NextHop::NoRoute,
        }
    }

    /// The adjacency to an address, if it is known.
    #[inline]
    pub fn adjacency(&self, address: A) -> Option<&Adjacency> {
        match self.leg(address)? {
            Leg::Gateway(_, _, NextHop::Ready(adjacency)) => Some(adjacency),
            Leg::OnLink(port) => self.neighbours.get(&address.key(*port)),
            Leg::Gateway(..) | Leg::Own | Leg::Nowhere => None,
        }
    }

    /// The port and the neighbour on it that an address is reached through, known or not; `None` if there is
    /// no route.
    pub fn neighbour_of(&self, address: A) -> Option<(PortIndex, A)> {
        match *self.leg(address)? {
            Leg::Gateway(port, gateway, _) => Some((port, gateway)),
            Leg::OnLink(port) => Some((port, address)),
            Leg::Own | Leg::Nowhere => None,
        }
    }

    /// Whether an address is the router's own.
    pub fn is_own(&self, address: A) -> bool {
        matches!(self.leg(address), Some(Leg::Own))
    }

    #[inline]
    fn leg(&self, address: A) -> Option<&Leg<A>> {
        let range = if self.starts.len() <= FEW {
            // The filling counts, too, for the greatest address of all.
            let begun: u32 = self.few.iter().map(|&start| u32::from(start <= address)).sum();
            (begun as usize).min(self.legs.len())
        } else {
            self.starts.partition_point(|&start| start <= address)
        };
        self.legs.get(range.wrapping_sub(1))
    }
}

#[inline]
fn resolve<A: Address>(neighbours: &Neighbours<A>, port: PortIndex, address: A) -> NextHop {
    match neighbours.get(&address.key(port)) {
        Some(&adjacency) => NextHop::Ready(adjacency),
        None => NextHop::Unresolved(port),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The plain way: the longest of all matching prefixes.
    fn longest_match(routes: &[Route<u32>], address: u32) -> Via<u32> {
        let matches = |route: &&Route<u32>| {
            let host = u32::MAX.checked_shr(u32::from(route.length)).unwrap_or(0);
            address & !host == route.prefix
        };
        // `rev` so that of equal prefixes the first one counts.
        let best = routes.iter().rev().filter(matches).max_by_key(|route| route.length);
        best.map_or(Via::Nowhere, |route| route.via)
    }

    fn route(prefix: u32, length: u8, port: PortIndex) -> Route<u32> {
        let host = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
        Route { prefix: prefix & !host, length, via: Via::OnLink(port) }
    }

    #[test]
    fn gateways_and_neighbours() {
        let adjacency = Adjacency::new(0, 1500, [1; 6], [2; 6]);
        let default = Route { prefix: 0, length: 0, via: Via::Gateway(0, 9) };
        let fib = Fib::new([default, route(0x0A00_0000, 24, 1)], [((0, 9), adjacency)]);
        assert_eq!(fib.look_up(0xC000_0201), NextHop::Ready(adjacency));
        assert_eq!(fib.look_up(0x0A00_0007), NextHop::Unresolved(1));
        assert_eq!(Fib::<u32>::default().look_up(1), NextHop::NoRoute);
    }

    #[test]
    fn the_routers_own_address_on_the_way() {
        let routes = [Route { prefix: 0x0A01_0000, length: 16, via: Via::Gateway(1, 0x0A00_0109) }];
        let own = [(0, 0xC000_0201, 24), (1, 0xC000_020A, 32), (1, 0x0A00_0001, 24), (1, 0x0A00_0101, 24)];
        let routes = routes.into_iter().chain([route(0x0A00_0000, 15, 1), route(0xAC10_0000, 16, 1)]);
        let fib = Fib::new(routes, []).with_own(own);
        let source_towards = |address| fib.source_among(address, |_| true);
        assert_eq!(source_towards(0x0A00_0007), Some(0x0A00_0001), "a neighbour");
        assert_eq!(source_towards(0x0A01_0007), Some(0x0A00_0101), "by way of a gateway");
        assert_eq!(source_towards(0xAC10_0007), Some(0xC000_020A), "in nobody's network");
        let no_virtual = fib.source_among(0xAC10_0007, |address| address != 0xC000_020A);
        assert_eq!(no_virtual, Some(0x0A00_0001), "the other was a virtual address");
        assert_eq!(source_towards(0xCB00_7101), None, "no route");
    }

    proptest! {
        #[test]
        fn ranges_equal_the_longest_match(
            prefixes in prop::collection::vec((any::<u32>(), 0u8..=32), 0..24),
            near in prop::collection::vec((any::<prop::sample::Index>(), -2i64..=2), 32),
        ) {
            let routes: Vec<Route<u32>> =
                prefixes.iter().zip(1..).map(|(&(prefix, length), port)| route(prefix & 0xF0F0_00FF, length, port)).collect();
            let fib = Fib::new(routes.clone(), []);
            let mut addresses = vec![0, u32::MAX];
            for (index, offset) in near {
                if routes.is_empty() { break }
                let route = routes[index.index(routes.len())];
                let end = route.prefix | u32::MAX.checked_shr(u32::from(route.length)).unwrap_or(0);
                addresses.push((i64::from(route.prefix) + offset) as u32);
                addresses.push((i64::from(end) + offset) as u32);
            }
            for address in addresses {
                let expected = match longest_match(&routes, address) {
                    Via::OnLink(port) => NextHop::Unresolved(port),
                    _ => NextHop::NoRoute,
                };
                prop_assert_eq!(fib.look_up(address), expected, "{:#x}", address);
            }
        }
    }
}
