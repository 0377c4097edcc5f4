//! Which ports of the pool are whose: given in blocks to hosts (bulk allocation: RFC 6888), one after the other to their connections.
//!
//! A word for each port says who is behind it, and one for each block whose it is and how many of its ports are in use; both are
//! changed by compare-and-swap, so there is no lock. A port is taken in three steps: a place in a block is reserved by its count, a free port
//! of the block is found, its word is written. To give it back goes the other way round, so who has reserved a place finds a port.
//!
//! A host has all its blocks at one address (RFC 4787, REQ-2), whatever their class: who has a session by TCP and asks by UDP is one host to others
//! (RFC 7857, section 4). A keyed hash chooses it, and so is where its blocks are looked for. Ports keep their parity (REQ-4), and their place in the
//! block if that is free.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Class;
use crate::table::{Client, HashKey};

/// Blocks that are looked at for a host.
const PROBES: usize = 32;

/// A port of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside {
    /// Which of the pool's addresses.
    pub address: u8,
    /// The port; of ICMP, the identifier.
    pub port: u16,
}

impl Outside {
    /// Both in one number, as a mapping's word has it in the place of a dest.
    pub(super) fn number(self) -> u32 {
        u32::from(self.address) << 16 | u32::from(self.port)
    }
}

/// Which of a pool's blocks a router gives before all others: one in so many, so that routers with the same pool do not give one port to two hosts before
/// they have heard of each other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which router this is, from 0 on.
    pub number: usize,
    /// How many there are; not 0.
    pub of: usize,
}

impl Share {
    /// That of a router that has its pools to itself.
    pub const WHOLE: Share = Share { number: 0, of: 1 };

    fn has(self, block: usize) -> bool {
        block % self.of == self.number
    }
}

/// The ports of all addresses of a pool, for each class of packets.
pub(super) struct Ports {
    key: HashKey,
    /// The first port.
    first: u16,
    /// Ports in a block; even, so that a place in it has the parity of its port.
    block: usize,
    /// Blocks at an address.
    blocks: usize,
    addresses: usize,
    /// Blocks of a host, at the most.
    most: usize,
    share: Share,
    /// By class, address and port: 0, or who is behind it.
    taken: Arc<[AtomicU64]>,
    /// By class, address and block: 0, or whose it is and how many of its ports are in use.
    owners: Arc<[AtomicU64]>,
}

/// Beside the client in the word of a port that is taken: none is 0.
const TAKEN: u64 = 1 << 48;

/// In the word of a block: how many of its ports are in use.
const IN_USE: u64 = 0xFFFF_FFFF;

impl Ports {
    /// All of them free. What does not make a whole block is left out.
    pub fn new(
        key: HashKey,
        addresses: usize,
        ports: &RangeInclusive<u16>,
        block: u16,
        limit: u16,
        share: Share,
    ) -> Ports {
        let block = usize::from(block.max(2) & !1);
        let first = ports.start().saturating_add(ports.start() & 1).max(2);
        let count = (usize::from(*ports.end()) + 1).saturating_sub(first.into());
        let blocks = count / block;
        let free = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        let of_all = Class::COUNT * addresses * blocks;
        let (taken, owners) = (free(of_all * block), free(of_all));
        Ports { key, first, block, blocks, addresses, most: 0, share, taken, owners }.limited(limit)
    }

    /// The same ports, with another limit for what hosts take from now on.
    pub fn limited(&self, limit: u16) -> Ports {
        let most = (usize::from(limit) / self.block).max(1);
        Ports { most, taken: self.taken.clone(), owners: self.owners.clone(), ..*self }
    }

    /// Takes a port for a client; none if its host has all that it may have, or there is no block for it. In a rehearsal only says which
    /// it would be.
    pub fn take(&self, class: Class, client: Client, is_rehearsal: bool) -> Option<Outside> {
        let hash = self.key.mix(client.address().into(), 0);
        let address = reduce(hash, self.addresses);
        let begin = reduce(hash.rotate_left(32), self.blocks);
        let base = (class as usize * self.addresses + address) * self.blocks;
        let probes = || (0..PROBES.min(self.blocks)).map(|probe| base + (begin + probe) % self.blocks);
        let port = |block: usize| {
            let found = self.take_in(block, client, is_rehearsal)?;
            let port = usize::from(self.first) + found - base * self.block;
            Some(Outside { address: address as u8, port: port as u16 })
        };
        let word = |block: usize| self.owners[block].load(Ordering::Relaxed);
        let is_own = |&block: &usize| owner(word(block)) == Some(client.address());
        // Workers that give a host its next block at the same moment may each give it one.
        let may_grow = probes().filter(is_own).count() < self.most;
        // What it has goes before what it may get, but not if another router may be giving it ports of that, too.
        [true, false].into_iter().find_map(|is_ours| {
            let blocks = || probes().filter(|&block| self.share.has(block) == is_ours);
            let grow = || blocks().filter(|&block| may_grow && word(block) == 0).find_map(port);
            blocks().filter(is_own).find_map(port).or_else(grow)
        })
    }

    /// Takes this port for a client, if nobody has it, whoever's block it is in.
    pub fn take_this(&self, class: Class, client: Client, outside: Outside) -> bool {
        let Some(at) = self.place(class, outside) else { return false };
        let block = at / self.block;
        let reserve = |old| {
            let (owner, in_use) = (owner(old).unwrap_or(client.address()), old & IN_USE);
            ((in_use as usize) < self.block).then_some(u64::from(owner) << 32 | (in_use + 1))
        };
        if self.owners[block].fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve).is_err() {
            return false;
        }
        let is_taken =
            self.taken[at].compare_exchange(0, taken_by(client), Ordering::AcqRel, Ordering::Relaxed);
        if is_taken.is_err() {
            self.leave(block);
        }
        is_taken.is_ok()
    }

    /// Takes a port in a block that is the client's, or nobody's; its place among all ports.
    fn take_in(&self, block: usize, client: Client, is_rehearsal: bool) -> Option<usize> {
        let word = &self.owners[block];
        let reserve = |old| {
            let in_use = (old & IN_USE) as usize;
            let is_open = owner(old).is_none_or(|owner| owner == client.address()) && in_use < self.block;
            is_open.then(|| u64::from(client.address()) << 32 | (in_use as u64 + 1))
        };
        if is_rehearsal {
            reserve(word.load(Ordering::Relaxed))?;
        } else {
            word.fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve).ok()?;
        }
        let new = taken_by(client);
        // Those of its parity first, from its own place on.
        let own = usize::from(client.port()) % self.block;
        let places = (0..self.block).map(|step| match 2 * step {
            even if even < self.block => (own + even) % self.block,
            odd => (own + odd + 1) % self.block,
        });
        let free = places.map(|place| block * self.block + place).find(|&at| {
            let word = &self.taken[at];
            match is_rehearsal {
                true => word.load(Ordering::Relaxed) == 0,
                false => word.compare_exchange(0, new, Ordering::AcqRel, Ordering::Relaxed).is_ok(),
            }
        });
        if free.is_none() && !is_rehearsal {
            self.leave(block);
        }
        free
    }

    /// Gives a port back.
    pub fn give_back(&self, class: Class, outside: Outside) {
        let Some(at) = self.place(class, outside) else { return };
        if self.taken[at].swap(0, Ordering::AcqRel) != 0 {
            self.leave(at / self.block);
        }
    }

    /// One port less of a block is in use; with the last one it is nobody's.
    fn leave(&self, block: usize) {
        let less = |old: u64| Some(if old & IN_USE <= 1 { 0 } else { old - 1 });
        let _ = self.owners[block].fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// Who is behind a port.
    pub fn behind(&self, class: Class, outside: Outside) -> Option<Client> {
        let word = self.taken[self.place(class, outside)?].load(Ordering::Acquire);
        (word != 0).then(|| Client::new(word as u32, (word >> 32) as u16))
    }

    /// Blocks that are somebody's: by class, which of the addresses, whose, and how many of its ports are in use.
    pub fn owned(&self) -> impl Iterator<Item = (usize, u8, u32, u32)> {
        let of_class = (self.addresses * self.blocks).max(1);
        self.owners.iter().enumerate().filter_map(move |(at, word)| {
            let word = word.load(Ordering::Relaxed);
            let address = at % of_class / self.blocks;
            Some((at / of_class, address as u8, owner(word)?, word as u32))
        })
    }

    /// Blocks at an address, of each class.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// How many ports are in use.
    pub fn in_use(&self) -> u64 {
        self.owners.iter().map(|word| word.load(Ordering::Relaxed) & IN_USE).sum()
    }

    /// Whether this is a port of the pool.
    pub fn has(&self, outside: Outside) -> bool {
        self.place(Class::Tcp, outside).is_some()
    }

    fn place(&self, class: Class, Outside { address, port }: Outside) -> Option<usize> {
        let at = usize::from(port.checked_sub(self.first)?);
        let is_there = at < self.blocks * self.block && usize::from(address) < self.addresses;
        let base = (class as usize * self.addresses + usize::from(address)) * self.blocks * self.block;
        is_there.then_some(base + at)
    }
}

/// The word of a port with this client behind it.
fn taken_by(client: Client) -> u64 {
    client.bits() & (TAKEN - 1) | TAKEN
}

/// Whose a block is, by its word.
fn owner(word: u64) -> Option<u32> {
    (word != 0).then_some((word >> 32) as u32)
}

/// Maps a hash onto `0..n`.
fn reduce(hash: u64, n: usize) -> usize {
    ((u128::from(hash) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const KEY: HashKey = HashKey { blind: 7, factor: 0x9E37_79B9_7F4A_7C15 };

    fn ports(addresses: usize, limit: u16) -> Ports {
        Ports::new(KEY, addresses, &(1000..=1099), 10, limit, Share::WHOLE)
    }

    #[test]
    fn a_host_has_its_ports_at_one_address_in_its_blocks_with_their_parity() {
        let ports = ports(3, 20);
        let took: Vec<Outside> =
            (0..20).map(|n| ports.take(Class::Udp, Client::new(9, 40_000 + n), false).unwrap()).collect();
        assert_eq!(ports.take(Class::Udp, Client::new(9, 5), false), None, "that is all it may have");
        assert!(ports.take(Class::Tcp, Client::new(9, 5), false).is_some(), "of this class");
        assert!(took.iter().all(|outside| outside.address == took[0].address));
        assert!(took.iter().zip(0..).all(|(outside, n)| outside.port % 2 == n % 2));
        let blocks: std::collections::HashSet<u16> = took.iter().map(|outside| outside.port / 10).collect();
        assert_eq!((blocks.len(), ports.in_use()), (2, 21));
        for outside in took {
            ports.give_back(Class::Udp, outside);
            ports.give_back(Class::Udp, outside);
        }
        assert_eq!(ports.in_use(), 1);
        // The whole pool is there for another one.
        let others = (0..1000).filter_map(|n| ports.take(Class::Udp, Client::new(n, 5), false)).count();
        assert_eq!(others, 30, "a block for each host");
    }

    #[test]
    fn a_host_has_one_address_for_all_classes() {
        let ports = ports(3, 10);
        let address = |host, class| ports.take(class, Client::new(host, 40_000), false).unwrap().address;
        let addresses: Vec<[u8; Class::COUNT]> =
            (0..9).map(|host| Class::ALL.map(|class| address(host, class))).collect();
        assert!(addresses.iter().all(|[first, others @ ..]| others.iter().all(|other| other == first)));
        assert!(addresses.iter().any(|of_host| *of_host != addresses[0]), "hosts are spread");
    }

    proptest! {
        /// Against a map: no port has two behind it, and a rehearsal foretells the port and takes none.
        #[test]
        fn as_a_map_says(steps in prop::collection::vec((0u32..6, 0u16..40, any::<bool>(), 0usize..3), 1..400)) {
            let ports = ports(2, 30);
            let mut model: HashMap<(usize, u8, u16), Client> = HashMap::new();
            for (host, port, takes, class) in steps {
                let (client, class) = (Client::new(host, port), Class::ALL[class]);
                let held = model.iter().find(|(key, value)| key.0 == class as usize && **value == client).map(|(&key, _)| key);
                match held {
                    None if takes => {
                        let foretold = ports.take(class, client, true);
                        let took = ports.take(class, client, false);
                        prop_assert_eq!(foretold, took);
                        let of_host = model.iter().filter(|(key, value)| key.0 == class as usize && value.address() == host).count();
                        prop_assert!(took.is_some() || of_host >= 30 || model.len() >= 10);
                        if let Some(Outside { address, port }) = took {
                            prop_assert_eq!(model.insert((class as usize, address, port), client), None);
                        }
                    }
                    Some(key @ (_, address, port)) if !takes => {
                        ports.give_back(class, Outside { address, port });
                        model.remove(&key);
                    }
                    _ => {}
                }
                prop_assert_eq!(ports.in_use(), model.len() as u64);
                for class in Class::ALL {
                    for (address, port) in (0..2).flat_map(|address| (990..1110).map(move |port| (address, port))) {
                        let behind = ports.behind(class, Outside { address, port });
                        prop_assert_eq!(behind, model.get(&(class as usize, address, port)).copied());
                    }
                }
            }
        }
    }
}
