//! lblc and lblcr: a virtual address keeps its server, or its set of servers, so that what one has in its cache is asked of it again. For
//! services that have many virtual addresses, such as a firewall mark's in front of proxies.
//!
//! * lblc: an address goes to its server until that takes no connections or is overloaded: it has more active connections than its weight while
//!   another one has less than half as many as its own. Then the server of wlc becomes that of the address.
//! * lblcr: an address has a set, of which the least loaded is taken. When that is overloaded, the server of wlc joins the set; when nobody has
//!   joined or left for a day, the most loaded leaves.
//!
//! As with IPVS, what no connection has come for in a day is forgotten. Unlike there it is an array of 1024 addresses, four in a place, of
//! which the one that nobody has asked for for the longest time goes first; and a set has eight servers at the most. No worker waits for another: an address is one word with the
//! time of its last connection, and its servers are words of their own. Whoever reads them while the address changes may see a server of the
//! one before, which is as good as any: it is a server of the service, and somebody has chosen it a moment ago.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::flow::mixed;
use super::least::{Least, Measure};
use super::{Candidate, Flow, Reason, overhead};
use crate::clock::{TICKS_PER_SECOND, Tick};
use crate::counters::Gauge;
use crate::table::DestId;

/// A compiled lblc or lblcr.
#[derive(Debug)]
pub struct Local {
    kind: Kind,
    servers: Box<[Candidate]>,
    least: Least,
    addresses: Addresses,
}

/// Whether an address has one server or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    One,
    Set,
}

/// What virtual addresses have; made when it is first needed. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses(Arc<OnceLock<Box<[Place]>>>);

const PLACES: usize = 256;

/// Addresses in a place.
const IN_A_PLACE: usize = 4;

/// Servers of an address.
const MOST: usize = 8;

type Place = [Address; IN_A_PLACE];

/// A virtual address with its servers.
#[derive(Debug, Default)]
struct Address {
    /// The address (32 bits below), and the second in which it was last asked for; 0 is nobody.
    owner: AtomicU64,
    /// Its servers' ids, 0 for none.
    servers: [AtomicU32; MOST],
    /// The second in which one has joined or left.
    changed: AtomicU32,
}

/// Seconds after which an address is forgotten, and after which a set becomes smaller.
const DAY: u32 = 24 * 3600;

/// The second of a moment; never 0.
const fn second(now: Tick) -> u32 {
    (now.0 / TICKS_PER_SECOND as u64) as u32 + 1
}

/// What is to be done for a connection.
enum Choice<'a> {
    /// One of its servers has it.
    Known(&'a Candidate),
    /// Another one is to join them, or takes their place.
    New(&'a Candidate),
}

impl Local {
    pub(super) fn new(kind: Kind, mut servers: Vec<Candidate>, addresses: &Addresses) -> Self {
        servers.retain(|server| server.weight > 0);
        let least = Least::new(Measure::WeightedConnections, servers.clone());
        Local { kind, servers: servers.into(), least, addresses: addresses.clone() }
    }

    pub(super) fn pick(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        let now = second(flow.now);
        let address = self.addresses.take(flow.destination, now);
        if self.kind == Kind::Set {
            self.shrink(address, now);
        }
        match self.choose(Some(address), is_free)? {
            Choice::Known(server) => Some(server.dest),
            Choice::New(server) => {
                self.join(address, server.dest, now);
                Some(server.dest)
            }
        }
    }

    pub(super) fn reason(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Option<Reason> {
        let address = self.addresses.find(flow.destination, second(flow.now));
        let (Choice::Known(server) | Choice::New(server)) = self.choose(address, is_free)?;
        Some(Reason::of_load(server, self.servers.len()))
    }

    fn choose(&self, address: Option<&Address>, is_free: &impl Fn(DestId) -> bool) -> Option<Choice<'_>> {
        let known = address.into_iter().flat_map(|address| self.servers_of(address));
        let least = known
            .filter(|server| is_free(server.dest))
            .reduce(|best, server| if costs_more(best, server) { server } else { best });
        match least.filter(|server| !self.is_overloaded(server)) {
            Some(server) => Some(Choice::Known(server)),
            None => self.least.choose(is_free).map(Choice::New),
        }
    }

    /// Those of an address that there are.
    fn servers_of(&self, address: &Address) -> impl Iterator<Item = &Candidate> {
        let ids: [u32; MOST] = std::array::from_fn(|index| address.servers[index].load(Ordering::Relaxed));
        ids.into_iter().filter_map(|id| self.servers.iter().find(|server| server.dest.index() == id as usize))
    }

    fn is_overloaded(&self, server: &Candidate) -> bool {
        let active = |server: &Candidate| server.gauge.get().0;
        active(server) > server.weight
            && self.servers.iter().any(|other| u64::from(active(other)) * 2 < u64::from(other.weight))
    }

    /// A server becomes that of an address, or joins its set: where nobody is, or in the place of one that is gone, or else of the most loaded.
    fn join(&self, address: &Address, dest: DestId, now: u32) {
        let id = dest.index() as u32;
        let slots = &address.servers;
        if slots.iter().any(|slot| slot.load(Ordering::Relaxed) == id) {
            return;
        }
        let is_there = |slot: &&AtomicU32| self.server(slot).is_some();
        let slot = match self.kind {
            Kind::One => slots.first(),
            Kind::Set => slots.iter().find(|slot| !is_there(slot)).or_else(|| self.most_loaded(address)),
        };
        if let Some(slot) = slot {
            slot.store(id, Ordering::Relaxed);
            address.changed.store(now, Ordering::Relaxed);
        }
    }

    /// The most loaded of a set leaves it, if there has been no change for a day.
    fn shrink(&self, address: &Address, now: u32) {
        let changed = address.changed.load(Ordering::Relaxed);
        if now.saturating_sub(changed) <= DAY || self.servers_of(address).count() < 2 {
            return;
        }
        // Of workers that see it at the same moment one removes somebody.
        let is_ours =
            address.changed.compare_exchange(changed, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if let Some(slot) = self.most_loaded(address).filter(|_| is_ours) {
            slot.store(0, Ordering::Relaxed);
        }
    }

    fn most_loaded<'a>(&self, address: &'a Address) -> Option<&'a AtomicU32> {
        let there = address.servers.iter().filter_map(|slot| Some((slot, self.server(slot)?)));
        let most = there.reduce(|most, other| if costs_more(other.1, most.1) { other } else { most });
        most.map(|(slot, _)| slot)
    }

    fn server(&self, slot: &AtomicU32) -> Option<&Candidate> {
        let id = slot.load(Ordering::Relaxed) as usize;
        self.servers.iter().find(|server| server.dest.index() == id)
    }

    /// A copy with addresses of its own, that looks at other gauges, where there are any.
    pub(super) fn rehearsal(&self, gauge: impl Fn(DestId) -> Option<Arc<Gauge>>) -> Self {
        let servers: Vec<Candidate> = self.servers.iter().map(|server| server.rehearsal(&gauge)).collect();
        Local::new(self.kind, servers, &self.addresses.copy())
    }
}

/// Whether a server's connections cost more for its weight than another's.
fn costs_more(server: &Candidate, other: &Candidate) -> bool {
    overhead(&server.gauge) * u64::from(other.weight) > overhead(&other.gauge) * u64::from(server.weight)
}

impl Addresses {
    fn place(&self, address: u32) -> &Place {
        let places = self.0.get_or_init(|| (0..PLACES).map(|_| Place::default()).collect());
        &places[mixed(address.into()) as usize % PLACES]
    }

    /// What an address has, if it was asked for in the last day.
    fn find(&self, address: u32, now: u32) -> Option<&Address> {
        self.place(address).iter().find(|known| known.is(address, now))
    }

    /// The same, and if there is nothing, a place for it: an empty one, or that of the one that nobody has asked for for the longest time.
    fn take(&self, address: u32, now: u32) -> &Address {
        let place = self.place(address);
        let known = place.iter().find(|known| known.is(address, now));
        let taken =
            known.or_else(|| place.iter().min_by_key(|known| known.owner.load(Ordering::Relaxed) >> 32));
        let taken = taken.unwrap_or(&place[0]);
        let (owner, before) =
            (u64::from(now) << 32 | u64::from(address), taken.owner.load(Ordering::Relaxed));
        if before != owner {
            if known.is_none() {
                taken.servers.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
                taken.changed.store(now, Ordering::Relaxed);
            }
            taken.owner.store(owner, Ordering::Relaxed);
        }
        taken
    }

    fn copy(&self) -> Addresses {
        let copy = |place: &Place| std::array::from_fn(|index| place[index].copy());
        let copies = self.0.get().map(|places| places.iter().map(copy).collect::<Box<[Place]>>());
        Addresses(Arc::new(copies.map_or_else(OnceLock::new, OnceLock::from)))
    }
}

impl Address {
    fn is(&self, address: u32, now: u32) -> bool {
        let owner = self.owner.load(Ordering::Relaxed);
        owner as u32 == address && owner != 0 && now.saturating_sub((owner >> 32) as u32) <= DAY
    }

    fn copy(&self) -> Address {
        Address {
            owner: self.owner.load(Ordering::Relaxed).into(),
            servers: std::array::from_fn(|index| self.servers[index].load(Ordering::Relaxed).into()),
            changed: self.changed.load(Ordering::Relaxed).into(),
        }
    }
}
