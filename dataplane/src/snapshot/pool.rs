//! The local addresses and ports as which a service's real servers see its clients ([`Mode::Fullnat`](crate::service::Mode::Fullnat)).

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::{Family, Snapshot};
use crate::service::Protocol;
use crate::table::{Hash, Identity, Local, LocalAddress, Stream};

/// Places that are tried for a connection. With nineteen of twenty ports taken one connection in 700 finds none.
const TRIES: usize = 128;

/// Claims in a cache line.
const LINE: usize = 4;

/// A service's pool. Services may share addresses and ports.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The addresses.
    pub locals: Vec<Arc<LocalAddress>>,
    /// The ports of each of them.
    pub ports: RangeInclusive<u16>,
    /// Whether a header tells servers who their clients are ([`crate::wire::proxy`]), of connections that begin.
    pub proxy: bool,
    /// Whether nothing is taken: to try a packet.
    pub is_rehearsal: bool,
}

impl Pool {
    /// How many connections of a protocol it is for.
    pub fn size(&self) -> usize {
        self.locals.len() * self.ports.len()
    }

    /// A port for a connection that begins, with this stream, and of IPv6 with this client's address: its own, if it has one.
    pub fn claim(
        &self,
        protocol: Protocol,
        owner: Identity,
        hash: Hash,
        stream: Option<Stream>,
        client: Option<u128>,
    ) -> Option<Local> {
        self.first(owner, hash, |address, port| {
            if self.is_rehearsal {
                return address.owner(protocol, port).is_none_or(|other| other == owner);
            }
            let is_taken = address.take(protocol, port, owner, stream);
            if let Some(client) = client.filter(|_| is_taken) {
                address.note_client(protocol, port, client);
            }
            is_taken
        })
    }

    /// The port that a connection has, if it is one of those that were tried for it.
    pub fn find(&self, protocol: Protocol, owner: Identity, hash: Hash) -> Option<Local> {
        self.first(owner, hash, |address, port| address.owner(protocol, port) == Some(owner))
    }

    fn first(
        &self,
        owner: Identity,
        hash: Hash,
        is_it: impl Fn(&LocalAddress, u16) -> bool,
    ) -> Option<Local> {
        places(hash.salted(owner.word().dest_number() as u64), self.size()).find_map(|place| {
            let address = self.locals.get(place / self.ports.len())?;
            let port = self.ports.start() + (place % self.ports.len()) as u16;
            is_it(address, port).then_some(Local { number: address.number, port })
        })
    }
}

/// Where a connection's port may be, of so many: a line of claims, then another one far from it, and so on. A client that comes again to
/// the same server has the same port, as behind no NAT at all; all others have one that nobody has had for long. Of a small pool it is
/// every place.
fn places(hash: u64, size: usize) -> impl Iterator<Item = usize> {
    let (start, stride) = match size {
        0..=TRIES => (hash as usize / LINE, LINE),
        _ => (hash as usize / LINE * LINE, (hash >> 32) as usize / LINE * LINE + LINE),
    };
    (0..TRIES.min(size)).map(move |n| start.wrapping_add(n / LINE * stride + n % LINE) % size)
}

impl Snapshot {
    /// The same with these local addresses as well, of which connections may have ports.
    pub fn with_locals(mut self, locals: impl IntoIterator<Item = Arc<LocalAddress>>) -> Self {
        for local in locals {
            self.add_local(local);
        }
        self
    }

    pub(super) fn add_local(&mut self, local: Arc<LocalAddress>) {
        let number = usize::from(local.number);
        match local.address {
            IpAddr::V4(four) => self.four.add_local(u32::from(four), local.number),
            IpAddr::V6(six) => self.six.add_local(u128::from(six), local.number),
        }
        if self.locals.len() <= number {
            self.locals.resize(number + 1, None);
        }
        self.locals[number] = Some(local);
    }

    /// The local address with this number.
    #[inline]
    pub fn local(&self, number: u16) -> Option<&LocalAddress> {
        self.locals.get(usize::from(number))?.as_deref()
    }

    /// The local address that this is.
    #[inline]
    pub fn local_at<A: Family>(&self, address: A) -> Option<&LocalAddress> {
        if self.locals.is_empty() {
            return None;
        }
        self.local(A::directory(self).local(address)?)
    }

    /// All local addresses.
    pub fn locals(&self) -> impl Iterator<Item = &LocalAddress> {
        self.locals.iter().flatten().map(|local| &**local)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::table::{Client, DestId, HashKey, Word};

    const KEY: HashKey = HashKey { blind: 0x5EED, factor: 0x9E37_79B9 };

    fn pool(addresses: u16, ports: RangeInclusive<u16>) -> Pool {
        let local = |number| Arc::new(LocalAddress::new(number, [10, 0, 0, number as u8].into()).unwrap());
        Pool { locals: (0..addresses).map(local).collect(), ports, proxy: false, is_rehearsal: false }
    }

    fn connection(n: u32, dest: u32) -> (Identity, Hash) {
        let client = Client::new(0x0A00_0000 + n, 1000);
        (Word::new(client, DestId::new(dest).unwrap()).identity(), KEY.hash(client, Protocol::Tcp))
    }

    #[test]
    fn a_small_pool_is_used_to_its_last_port() {
        let pool = pool(3, 65_530..=65_535);
        let claim = |n| {
            let (owner, hash) = connection(n, 1);
            pool.claim(Protocol::Tcp, owner, hash, None, None)
        };
        let taken: HashSet<Local> = (0..18).map(|n| claim(n).unwrap()).collect();
        assert_eq!(taken.len(), 18);
        assert!((18..40).all(|n| claim(n).is_none()));
        assert!((0..18).all(|n| taken.contains(&claim(n).unwrap())), "who has one keeps it");
    }

    #[test]
    fn a_large_pool_is_used_nearly_to_its_last_port() {
        let pool = pool(2, 1024..=65_535);
        let full = pool.size() as u32 * 19 / 20;
        let claims = (0..full).filter_map(|n| {
            let (owner, hash) = connection(n, 1 + n % 7);
            pool.claim(Protocol::Tcp, owner, hash, None, None)
        });
        let taken: HashSet<Local> = claims.collect();
        assert!(taken.len() as u32 > full - full / 1000, "{} of {full}", taken.len());
        assert_eq!(pool.locals.iter().map(|local| local.taken(Protocol::Tcp)).sum::<usize>(), taken.len());
    }

    #[test]
    fn trying_takes_nothing() {
        let pool = Pool { is_rehearsal: true, ..pool(1, 1024..=65_535) };
        let (owner, hash) = connection(1, 1);
        assert!(pool.claim(Protocol::Tcp, owner, hash, None, None).is_some());
        assert_eq!(pool.locals[0].taken(Protocol::Tcp), 0);
    }

    proptest! {
        #[test]
        fn every_port_is_of_one_connection(
            claims in prop::collection::vec((0u32..40, 1u32..4, any::<bool>()), 0..200),
            addresses in 1u16..4,
            ports in 1u16..20,
        ) {
            let pool = pool(addresses, 2000..=2000 + (ports - 1));
            let mut model = std::collections::HashMap::new();
            for (n, dest, tcp) in claims {
                let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
                let (owner, hash) = connection(n, dest);
                let known = model.iter().find(|&(_, &other)| other == (n, dest, protocol)).map(|(&at, _)| at);
                match pool.claim(protocol, owner, hash, None, None) {
                    Some(local) => {
                        prop_assert!(pool.ports.contains(&local.port) && local.number < addresses);
                        if let Some(known) = known {
                            prop_assert_eq!((local, protocol), known);
                        }
                        let before = model.insert((local, protocol), (n, dest, protocol));
                        prop_assert!(before.is_none_or(|before| before == (n, dest, protocol)));
                        prop_assert_eq!(pool.find(protocol, owner, hash), Some(local));
                    }
                    None => {
                        let taken = model.keys().filter(|(_, of)| *of == protocol).count();
                        prop_assert!(known.is_none() && taken == pool.size());
                    }
                }
            }
        }
    }
}
