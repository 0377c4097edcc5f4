//! The compiled configuration: all that a worker knows of services.
//!
//! A snapshot is immutable. Control compiles a new one when the configuration, the health of a server, a
//! route or a neighbour changes, and publishes it by one pointer swap ([`Publisher`]). A worker looks at
//! the pointer once per loop. Control keeps the old snapshots until no worker holds them, so that memory
//! is always freed on control's side.
//!
//! What has to outlive snapshots (counters, gauges, round-robin positions) is shared by reference from one
//! to the next, found again by the identity of the service and the server.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::net::SocketAddrV4;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::clock::Timeout;
use crate::counters::{Gauge, TrafficCounters};
use crate::fib::{Fib, NextHop};
use crate::key::KeyHasher;
use crate::scheduler::{Candidate, Cursor, Picker};
use crate::service::{Mode, Protocol, Scheduler, SchedulerFlag, State, Timeouts};
use crate::table::{DestId, Word};
use crate::wire::checksum::Delta;
use crate::wire::ethernet::Mac;

/// An index into [`Snapshot::services`].
pub type ServiceIndex = u32;
/// A NAT real server's (address, port, protocol); several services may share one.
pub type EndpointIndex = u32;

/// A service, as control describes it.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Virtual address and port.
    pub address: SocketAddrV4,
    /// Protocol.
    pub protocol: Protocol,
    /// Forwarding mode.
    pub mode: Mode,
    /// Scheduler.
    pub scheduler: Scheduler,
    /// Its flags.
    pub flags: Vec<SchedulerFlag>,
    /// Its round-robin position.
    pub cursor: Cursor,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// Real servers in the order of the configuration.
    pub dests: Vec<DestSpec>,
}

/// A real server in a service, as control describes it.
#[derive(Clone, Debug)]
pub struct DestSpec {
    /// Its id, stable as long as service and server exist.
    pub id: DestId,
    /// Its address and port.
    pub address: SocketAddrV4,
    /// Its weight.
    pub weight: u32,
    /// See [`Candidate::last_weight`].
    pub last_weight: u32,
    /// Whether it takes connections as far as its health goes.
    pub up: bool,
    /// Its traffic, a counter set for each worker.
    pub traffic: Arc<[TrafficCounters]>,
    /// Its live connections.
    pub gauge: Arc<Gauge>,
}

/// A service, compiled.
#[derive(Debug)]
pub struct Service {
    /// Protocol.
    pub protocol: Protocol,
    /// Forwarding mode.
    pub mode: Mode,
    /// Chooses servers.
    pub picker: Picker,
    timeouts: [Timeout; State::COUNT],
}

impl Service {
    /// How long a connection in this state may be silent.
    #[inline]
    pub fn timeout(&self, state: State) -> Timeout {
        self.timeouts[state as usize]
    }
}

/// A real server in a service, compiled: everything that a packet of its connections needs.
#[derive(Debug)]
pub struct Dest {
    /// Its service.
    pub service: ServiceIndex,
    /// Its endpoint; `None` with direct routing, whose replies do not come this way.
    pub endpoint: Option<EndpointIndex>,
    /// The virtual address.
    pub virtual_address: u32,
    /// The virtual port.
    pub virtual_port: u16,
    /// The real server's port.
    pub port: u16,
    /// The real server's address.
    pub address: u32,
    /// The checksum's change when the virtual address becomes the real one.
    pub address_delta: Delta,
    /// The same with the ports.
    pub transport_delta: Delta,
    /// Whether it takes connections as far as its health goes.
    pub up: bool,
    /// The way to it.
    pub next_hop: NextHop,
    /// Its traffic, a counter set for each worker.
    pub traffic: Arc<[TrafficCounters]>,
    /// Its live connections.
    pub gauge: Arc<Gauge>,
}

/// A port, as far as the packet path has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Its MAC: frames to others are not ours.
    pub mac: Mac,
}

/// All that a worker knows of configuration.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts up with each snapshot.
    pub generation: u64,
    /// The ports.
    pub ports: Vec<PortSpec>,
    /// The services.
    pub services: Vec<Service>,
    /// Routes and neighbours.
    pub fib: Fib,
    dests: Vec<Option<Dest>>,
    removed: HashSet<DestId>,
    by_virtual_address: Index<ServiceIndex>,
    by_endpoint: Index<EndpointIndex>,
    virtual_addresses: AddressSet,
    endpoint_addresses: AddressSet,
}

type AddressSet = HashSet<u32, BuildHasherDefault<KeyHasher>>;
type Index<T> = HashMap<u64, T, BuildHasherDefault<KeyHasher>>;

impl Snapshot {
    /// Compiles services, ports, routes and neighbours. `removed` are the dests that have been removed but may
    /// still be named by connections.
    pub fn new(
        generation: u64,
        ports: Vec<PortSpec>,
        specs: &[ServiceSpec],
        removed: impl IntoIterator<Item = DestId>,
        fib: Fib,
    ) -> Self {
        let mut snapshot = Snapshot {
            generation,
            ports,
            services: Vec::with_capacity(specs.len()),
            fib,
            dests: Vec::new(),
            removed: removed.into_iter().collect(),
            by_virtual_address: Index::default(),
            by_endpoint: Index::default(),
            virtual_addresses: AddressSet::default(),
            endpoint_addresses: AddressSet::default(),
        };
        for spec in specs {
            snapshot.add_service(spec);
        }
        snapshot
    }

    /// The service at a virtual address.
    #[inline]
    pub fn service_at(&self, address: u32, port: u16, protocol: Protocol) -> Option<ServiceIndex> {
        self.by_virtual_address.get(&key(address, port, protocol)).copied()
    }

    /// The endpoint with this address.
    #[inline]
    pub fn endpoint_at(&self, address: u32, port: u16, protocol: Protocol) -> Option<EndpointIndex> {
        self.by_endpoint.get(&key(address, port, protocol)).copied()
    }

    /// Whether this is the address of a service or of an endpoint.
    pub fn concerns(&self, address: u32) -> bool {
        self.is_virtual(address) || self.endpoint_addresses.contains(&address)
    }

    /// Whether this is the address of a service.
    pub fn is_virtual(&self, address: u32) -> bool {
        self.virtual_addresses.contains(&address)
    }

    /// The dest of a connection; `None` if it has been removed, or if it is newer than this snapshot and the
    /// connection one of a worker that uses the next snapshot already. [`Self::has_removed`] tells.
    #[inline]
    pub fn dest_of(&self, word: Word) -> Option<&Dest> {
        self.dests.get(word.dest_number())?.as_ref()
    }

    /// Whether the dest of a connection has been removed.
    pub fn has_removed(&self, word: Word) -> bool {
        DestId::new(word.dest_number() as u32).is_some_and(|id| self.removed.contains(&id))
    }

    /// The dest with this id.
    #[inline]
    pub fn dest(&self, id: DestId) -> Option<&Dest> {
        self.dests.get(id.index())?.as_ref()
    }

    /// How long a connection of this dest in this state may be silent.
    #[inline]
    pub fn timeout(&self, dest: &Dest, state: State) -> Timeout {
        self.services[dest.service as usize].timeout(state)
    }

    fn add_service(&mut self, spec: &ServiceSpec) {
        let index = self.services.len() as ServiceIndex;
        let virtual_address = u32::from(*spec.address.ip());
        for dest in &spec.dests {
            self.add_dest(index, spec, dest);
        }
        let candidate = |dest: &DestSpec| Candidate {
            dest: dest.id,
            address: u32::from(*dest.address.ip()),
            port: dest.address.port(),
            weight: dest.weight,
            last_weight: dest.last_weight,
            gauge: dest.gauge.clone(),
        };
        // A server that is down is not in the list at all, as with keepalived; nor is one whose MAC is not
        // known, since a connection could not reach it.
        let reachable = |dest: &&DestSpec| {
            dest.up && matches!(self.fib.look_up(u32::from(*dest.address.ip())), NextHop::Ready(_))
        };
        let candidates: Vec<Candidate> = spec.dests.iter().filter(reachable).map(candidate).collect();
        self.services.push(Service {
            protocol: spec.protocol,
            mode: spec.mode,
            picker: Picker::new(spec.scheduler, &spec.flags, &candidates, &spec.cursor),
            timeouts: spec.timeouts.0.map(Timeout::from_seconds),
        });
        self.by_virtual_address.insert(key(virtual_address, spec.address.port(), spec.protocol), index);
        self.virtual_addresses.insert(virtual_address);
    }

    fn add_dest(&mut self, service: ServiceIndex, spec: &ServiceSpec, dest: &DestSpec) {
        let (virtual_address, virtual_port) = (u32::from(*spec.address.ip()), spec.address.port());
        let (address, port) = (u32::from(*dest.address.ip()), dest.address.port());
        let endpoint = (spec.mode == Mode::Nat).then(|| {
            let next = self.by_endpoint.len() as EndpointIndex;
            self.endpoint_addresses.insert(address);
            *self.by_endpoint.entry(key(address, port, spec.protocol)).or_insert(next)
        });
        let address_delta = Delta::double(virtual_address, address);
        if self.dests.len() <= dest.id.index() {
            self.dests.resize_with(dest.id.index() + 1, || None);
        }
        self.dests[dest.id.index()] = Some(Dest {
            service,
            endpoint,
            virtual_address,
            virtual_port,
            port,
            address,
            address_delta,
            transport_delta: address_delta.and(Delta::word(virtual_port, port)),
            up: dest.up,
            next_hop: self.fib.look_up(address),
            traffic: dest.traffic.clone(),
            gauge: dest.gauge.clone(),
        });
    }
}

const fn key(address: u32, port: u16, protocol: Protocol) -> u64 {
    (address as u64) << 32 | (port as u64) << 16 | protocol.number() as u64
}

/// Publishes snapshots to workers.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    retired: Vec<Arc<Snapshot>>,
}

impl Publisher {
    /// Begins with a first snapshot.
    pub fn new(first: Snapshot) -> Self {
        Publisher { current: Arc::new(ArcSwap::from_pointee(first)), retired: Vec::new() }
    }

    /// Makes a snapshot the one that workers use from their next burst on.
    pub fn publish(&mut self, snapshot: Snapshot) {
        self.retired.push(self.current.swap(Arc::new(snapshot)));
        self.reclaim();
    }

    /// Frees the snapshots that no worker uses any more; tells how many are still in use.
    pub fn reclaim(&mut self) -> usize {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        self.retired.len()
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// A worker's view, see [`Subscriber::latest`].
    pub fn subscribe(&self) -> Subscriber {
        Subscriber { cache: arc_swap::Cache::new(self.current.clone()) }
    }
}

/// A worker's view of the published snapshot.
#[derive(Debug)]
pub struct Subscriber {
    cache: arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
}

impl Subscriber {
    /// The latest snapshot: one atomic load, unless it has changed. The publisher holds on to the old one,
    /// so nothing is freed here.
    #[inline]
    pub fn latest(&mut self) -> &Snapshot {
        self.cache.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty(generation: u64) -> Snapshot {
        Snapshot::new(generation, Vec::new(), &[], [], Fib::default())
    }

    #[test]
    fn old_snapshots_are_freed_by_the_publisher_once_all_workers_have_moved_on() {
        let mut publisher = Publisher::new(empty(1));
        let mut worker = publisher.subscribe();
        assert_eq!(worker.latest().generation, 1);
        publisher.publish(empty(2));
        publisher.publish(empty(3));
        assert_eq!(publisher.reclaim(), 1, "the worker still holds the first; nobody ever held the second");
        assert_eq!(worker.latest().generation, 3);
        assert_eq!(publisher.reclaim(), 0);
    }
}
