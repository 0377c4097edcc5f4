//! What a snapshot knows of an address, for both families: whose it is, the way to it.
//!
//! The data path handles the addresses of a family as numbers, `u32` and `u128`, so whatever is the same for both is written
//! once, for a [`Family`].

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::BuildHasherDefault;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::index::{Index, Key};
use super::{Dest, EndpointIndex, Ends, ServiceIndex, Snapshot};
use crate::admission::{Edges, Sources};
use crate::fib::{Fib, PortIndex};
use crate::key::{KeyHasher, WideKey};
use crate::service::{Protocol, State};
use crate::table::{Client, Slot, Table, Word};
use crate::wire::version::Version;

/// The addresses of a family.
pub trait Family: Version + Default + Into<u128> {
    /// A map from (address, port, protocol) to a number.
    type Map: Map;

    /// Its key.
    fn whose(self, port: u16, protocol: Protocol) -> <Self::Map as Map>::Key;
    /// Whose addresses of this family are.
    fn directory(snapshot: &Snapshot) -> &Directory<Self::Map>;
    /// The routes and neighbours of this family.
    fn fib(snapshot: &Snapshot) -> &Fib<Self>;
    /// The lists of sources of this family.
    fn edges(sources: &Sources) -> &Edges<Self>;
    /// Those of a dest's addresses that are of this family.
    fn ends(dest: &Dest) -> &Ends<Self>;
    /// A client with this address, as words of the table know it.
    fn client(self, port: u16, table: &Table) -> Client;
}

impl Family for u32 {
    type Map = Index;

    #[inline(always)]
    fn whose(self, port: u16, protocol: Protocol) -> Key {
        Key::new(self, port, protocol)
    }

    #[inline(always)]
    fn directory(snapshot: &Snapshot) -> &Directory<Index> {
        &snapshot.four
    }

    #[inline(always)]
    fn fib(snapshot: &Snapshot) -> &Fib<u32> {
        &snapshot.fibs.four
    }

    #[inline(always)]
    fn edges(sources: &Sources) -> &Edges<u32> {
        &sources.four
    }

    #[inline(always)]
    fn ends(dest: &Dest) -> &Ends<u32> {
        &dest.four
    }

    #[inline(always)]
    fn client(self, port: u16, _: &Table) -> Client {
        Client::new(self, port)
    }
}

impl Family for u128 {
    type Map = WideIndex;

    #[inline(always)]
    fn whose(self, port: u16, protocol: Protocol) -> WideKey {
        WideKey { address: self, rest: u64::from(port) << 8 | u64::from(protocol.number()) }
    }

    #[inline(always)]
    fn directory(snapshot: &Snapshot) -> &Directory<WideIndex> {
        &snapshot.six
    }

    #[inline(always)]
    fn fib(snapshot: &Snapshot) -> &Fib<u128> {
        &snapshot.fibs.six
    }

    #[inline(always)]
    fn edges(sources: &Sources) -> &Edges<u128> {
        &sources.six
    }

    #[inline(always)]
    fn ends(dest: &Dest) -> &Ends<u128> {
        &dest.six
    }

    #[inline(always)]
    fn client(self, port: u16, table: &Table) -> Client {
        table.wide_client(self, port)
    }
}

/// A map from a key to a number. It is compiled from the configuration, so nobody outside can fill it with collisions.
pub trait Map: Clone + Debug + Default {
    /// The key.
    type Key: Copy;

    /// What is known of a key.
    fn get(&self, key: Self::Key) -> Option<u32>;
    /// Adds a key, or gives it another value.
    fn insert(&mut self, key: Self::Key, value: u32);
}

impl Map for Index {
    type Key = Key;

    #[inline(always)]
    fn get(&self, key: Key) -> Option<u32> {
        Index::get(self, key)
    }

    fn insert(&mut self, key: Key, value: u32) {
        Index::insert(self, key, value);
    }
}

/// The map of IPv6.
pub type WideIndex = HashMap<WideKey, u32, BuildHasherDefault<KeyHasher>>;

impl Map for WideIndex {
    type Key = WideKey;

    #[inline]
    fn get(&self, key: WideKey) -> Option<u32> {
        HashMap::get(self, &key).copied()
    }

    fn insert(&mut self, key: WideKey, value: u32) {
        HashMap::insert(self, key, value);
    }
}

/// Whose the addresses of a family are.
#[derive(Clone, Debug, Default)]
pub struct Directory<M> {
    services: M,
    endpoints: M,
    /// What addresses are, whatever the port: [`VIRTUAL`], [`ENDPOINT`], [`LOCAL`], and then its number.
    addresses: M,
    /// Whether there is a service of all ports: its port, and those of its endpoints, are 0.
    has_all_ports: bool,
}

const VIRTUAL: u32 = 1;
const ENDPOINT: u32 = 2;
const LOCAL: u32 = 4;
const NUMBER_SHIFT: u32 = 8;

impl<M: Map> Directory<M> {
    /// Adds a service, whose address is here if it is live. If there is one of all ports at its address already, that stays, and is returned.
    pub(super) fn add_service<A: Family<Map = M>>(
        &mut self,
        (address, port): (A, u16),
        protocol: Protocol,
        index: ServiceIndex,
        live: bool,
    ) -> Option<ServiceIndex> {
        let key = address.whose(port, protocol);
        let first = self.services.get(key).filter(|_| port == 0);
        if first.is_none() {
            self.services.insert(key, index);
        }
        self.has_all_ports |= port == 0;
        if live {
            self.note(address, VIRTUAL);
        }
        first
    }

    /// The endpoint with this address; a new one, with the number `next`, if there is none.
    pub(super) fn endpoint<A: Family<Map = M>>(
        &mut self,
        (address, port): (A, u16),
        protocol: Protocol,
        next: EndpointIndex,
    ) -> EndpointIndex {
        self.note(address, ENDPOINT);
        let key = address.whose(port, protocol);
        self.endpoints.get(key).unwrap_or_else(|| {
            self.endpoints.insert(key, next);
            next
        })
    }

    /// Adds a local address with this number.
    pub(super) fn add_local<A: Family<Map = M>>(&mut self, address: A, number: u16) {
        self.note(address, LOCAL | u32::from(number) << NUMBER_SHIFT);
    }

    /// The number of a local address.
    #[inline]
    pub(super) fn local<A: Family<Map = M>>(&self, address: A) -> Option<u16> {
        let what = self.what(address);
        (what & LOCAL != 0).then_some((what >> NUMBER_SHIFT) as u16)
    }

    fn note<A: Family<Map = M>>(&mut self, address: A, what: u32) {
        let known = self.what(address);
        self.addresses.insert(whole(address), known | what);
    }

    #[inline(always)]
    fn what<A: Family<Map = M>>(&self, address: A) -> u32 {
        self.addresses.get(whole(address)).unwrap_or(0)
    }
}

/// An address without a port.
fn whole<A: Family>(address: A) -> <A::Map as Map>::Key {
    address.whose(0, Protocol::Tcp)
}

impl Snapshot {
    /// The service at a virtual address.
    #[inline]
    pub fn service_at<A: Family>(&self, address: A, port: u16, protocol: Protocol) -> Option<ServiceIndex> {
        A::directory(self).services.get(address.whose(port, protocol))
    }

    /// The endpoint with this address.
    #[inline]
    pub fn endpoint_at<A: Family>(&self, address: A, port: u16, protocol: Protocol) -> Option<EndpointIndex> {
        A::directory(self).endpoints.get(address.whose(port, protocol))
    }

    /// The service that a packet to this address is for, and towards which port its client is known to it ([`Client::towards`]): as in IPVS
    /// that of the very port goes before one of all ports. Where it makes a difference by which port of the router it comes in, one of those it
    /// may be for, by any of which a connection is found ([`Self::may_meet`]).
    pub fn service_for<A: Family>(
        &self,
        address: A,
        port: u16,
        protocol: Protocol,
    ) -> Option<(ServiceIndex, u16)> {
        self.service_for_here(address, port, protocol, None)
    }

    /// The same of what comes in here, if there is one.
    pub fn service_for_here<A: Family>(
        &self,
        address: A,
        port: u16,
        protocol: Protocol,
        incoming: Option<PortIndex>,
    ) -> Option<(ServiceIndex, u16)> {
        match self.service_at(address, port, protocol) {
            Some(service) => Some((service, 0)),
            None => Some((self.service_of_any_place(address, port, protocol, incoming)?, port)),
        }
    }

    /// The service of all ports at a virtual address that has this one, of what comes in here.
    pub fn service_of_all_ports<A: Family>(
        &self,
        address: A,
        port: u16,
        protocol: Protocol,
        incoming: Option<PortIndex>,
    ) -> Option<ServiceIndex> {
        let first = A::directory(self).has_all_ports.then(|| self.service_at(address, 0, protocol))?;
        let next = |&index: &ServiceIndex| self.services[index as usize].beside;
        std::iter::successors(first, next)
            .find(|&index| self.services[index as usize].has_port(port, incoming))
    }

    /// The same, or if no service has what comes in here, one that has what comes in elsewhere: it begins nothing here, but what has begun
    /// there goes on by any port of the router ([`Self::may_meet`]).
    pub fn service_of_any_place<A: Family>(
        &self,
        address: A,
        port: u16,
        protocol: Protocol,
        incoming: Option<PortIndex>,
    ) -> Option<ServiceIndex> {
        let here = self.service_of_all_ports(address, port, protocol, incoming);
        here.or_else(|| self.service_of_all_ports(address, port, protocol, None))
    }

    /// The endpoint of a service of all ports with this address.
    pub fn endpoint_of_all_ports<A: Family>(&self, address: A, protocol: Protocol) -> Option<EndpointIndex> {
        A::directory(self).has_all_ports.then(|| self.endpoint_at(address, 0, protocol))?
    }

    /// Starts to load what tells whose IPv4 packet this is.
    #[inline]
    pub fn prefetch(&self, source: (u32, u16), destination: (u32, u16), protocol: Protocol) {
        self.four.services.prefetch(destination.0.whose(destination.1, protocol));
        self.four.endpoints.prefetch(source.0.whose(source.1, protocol));
    }

    /// Whether this is the address of a service or of an endpoint, or a local one.
    pub fn concerns<A: Family>(&self, address: A) -> bool {
        A::directory(self).what(address) != 0
    }

    /// Whether this is the address of a service.
    #[inline(always)]
    pub fn is_virtual<A: Family>(&self, address: A) -> bool {
        A::directory(self).what(address) & VIRTUAL != 0
    }
}

impl Snapshot {
    /// The client of a word in a slot of the table. `None` if its dest is not in this snapshot, or if its address is one of IPv6 that
    /// nobody has noted yet.
    pub fn client_of(&self, table: &Table, slot: Slot, word: Word) -> Option<SocketAddr> {
        // In that of a template stands the service's mark.
        let port = if word.state() == State::Template { 0 } else { word.client().port() };
        let dest = self.dest_of(word)?;
        // A server at the end of a tunnel may be of the other family.
        Some(match dest.virtual_address {
            SocketAddr::V4(_) => (Ipv4Addr::from(word.client().address()), port).into(),
            SocketAddr::V6(_) => {
                let address = table.address_of(slot, word, dest.is_of_all_ports())?;
                (Ipv6Addr::from(address), port).into()
            }
        })
    }

    /// The virtual address and port of a word in a slot of the table. The port is 0 if the word is a template of a service of all ports, or
    /// nobody has noted the address of its client yet. `None` if its dest is not in this snapshot.
    pub fn virtual_of(&self, table: &Table, slot: Slot, word: Word) -> Option<SocketAddr> {
        let dest = self.dest_of(word)?;
        let mut address = dest.virtual_address;
        if dest.is_of_all_ports() && word.state() != State::Template {
            let client = word.client();
            let without = match address {
                SocketAddr::V4(_) => Some(Client::new(client.address(), client.port())),
                SocketAddr::V6(_) => {
                    let known = table.address_of(slot, word, true);
                    known.map(|known| table.wide_client(known, client.port()))
                }
            };
            address.set_port(without.map_or(0, |without| client.virtual_port(without)));
        }
        Some(address)
    }
}

/// What the schedulers of Linux IPVS make of an address: an IPv6 one is folded into 32 bits.
pub fn folded(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(four) => u32::from(*four.ip()),
        SocketAddr::V6(six) => fold(u128::from(*six.ip())),
    }
}

/// Of an IPv6 address as a number.
#[inline]
pub const fn fold(address: u128) -> u32 {
    (address >> 96) as u32 ^ (address >> 64) as u32 ^ (address >> 32) as u32 ^ address as u32
}
