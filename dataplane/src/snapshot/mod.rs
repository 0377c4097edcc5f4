//! The compiled configuration: all that a worker knows of services.
//!
//! A snapshot is immutable. Control compiles a new one when the configuration, the health of a server, a
//! route or a neighbour changes, and publishes it by one pointer swap ([`Publisher`]). A worker looks at
//! the pointer once per loop. Control keeps the old snapshots until no worker holds them, so that memory
//! is always freed on control's side.
//!
//! What has to outlive snapshots (counters, gauges, round-robin positions) is shared by reference from one
//! to the next, found again by the identity of the service and the server.

mod index;
mod publish;
mod rehearsal;
mod transform;
mod tunnel;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddrV4;
use std::sync::Arc;

use self::index::{Index, Key};
pub use self::publish::{Publisher, Subscriber};
pub use self::transform::{RENEW_AFTER, Transform};
pub use self::tunnel::{MssClamp, Tunnel, TunnelSpec};
use crate::clock::Timeout;
use crate::counters::{Gauge, TrafficCounters};
use crate::fib::{Fib, NextHop};
use crate::scheduler::{Candidate, Cursor, Picker};
use crate::service::{Limits, Mode, Persistence, Protocol, Scheduler, SchedulerFlag, State, Timeouts};
use crate::table::{DestId, Word};
use crate::wire::checksum::Delta;
use crate::wire::ethernet::Mac;
use crate::wire::ipv4;

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
    /// Whether connections begin here. If not, another router has the address: what would begin one is Linux'. Packets of
    /// connections that are known are forwarded all the same, since whoever sent them believes that the address is here,
    /// and that moves with ARP, a moment before or after control hears of it.
    pub live: bool,
    /// Whether a TCP connection may begin with any packet but a RST, and not only with a SYN.
    pub sloppy_tcp: bool,
    /// Whether clients come back to their servers.
    pub persistence: Option<Persistence>,
    /// Whether each datagram is one of its own, and no connection is remembered (IPVS' one-packet scheduling).
    pub one_packet: bool,
    /// How packets are put into others, with [`Mode::Tunnel`].
    pub tunnel: TunnelSpec,
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
    /// How many connections it is given.
    pub limits: Option<Limits>,
    /// Whether it takes connections as far as its health goes.
    pub up: bool,
    /// Whether the scheduler knows it. A hashing scheduler has clients for each server that it knows, also for one of
    /// weight 0, and refuses them then.
    pub listed: bool,
    /// Whether its TCP connections are to be ended.
    pub reset: bool,
    /// Whether clients of a persistent service come back to it: it is healthy, and not leaving.
    pub returning: bool,
    /// Its traffic, a counter set for each worker.
    pub traffic: Arc<[TrafficCounters]>,
    /// Its live connections.
    pub gauge: Arc<Gauge>,
}

impl ServiceSpec {
    /// A service as it is if nothing else is said of it, without real servers.
    pub fn new(address: SocketAddrV4, protocol: Protocol, mode: Mode) -> Self {
        ServiceSpec {
            address,
            protocol,
            mode,
            scheduler: Scheduler::Wlc,
            flags: Vec::new(),
            cursor: Cursor::default(),
            timeouts: Timeouts::default(),
            live: true,
            sloppy_tcp: false,
            persistence: None,
            one_packet: false,
            tunnel: TunnelSpec::default(),
            dests: Vec::new(),
        }
    }
}

impl DestSpec {
    /// A healthy real server of weight 1, for one worker.
    pub fn new(id: DestId, address: SocketAddrV4) -> Self {
        DestSpec {
            id,
            address,
            weight: 1,
            last_weight: 1,
            limits: None,
            up: true,
            listed: true,
            reset: false,
            returning: true,
            traffic: Arc::new([TrafficCounters::default()]),
            gauge: Arc::default(),
        }
    }
}

/// A service, compiled.
#[derive(Debug)]
pub struct Service {
    /// Protocol.
    pub protocol: Protocol,
    /// Forwarding mode.
    pub mode: Mode,
    /// Whether connections begin here; see [`ServiceSpec::live`].
    pub live: bool,
    /// Chooses servers.
    pub picker: Picker,
    /// See [`ServiceSpec::sloppy_tcp`].
    pub sloppy_tcp: bool,
    /// See [`ServiceSpec::one_packet`].
    pub one_packet: bool,
    /// Whether there is a server with [`Limits`].
    pub is_limited: bool,
    /// If clients come back to their servers ([`ServiceSpec::persistence`]): what of their addresses counts.
    pub persistent: Option<u32>,
    /// Whether there is a server that would take connections if its next hop were known: soon it will.
    pub waits: bool,
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
#[derive(Clone, Debug)]
pub struct Dest {
    /// Its id.
    pub id: DestId,
    /// Its service.
    pub service: ServiceIndex,
    /// Its endpoint; `None` if its replies do not come this way.
    pub endpoint: Option<EndpointIndex>,
    /// How packets to it are put into others, with [`Mode::Tunnel`].
    pub tunnel: Option<Tunnel>,
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
    /// How many connections it is given.
    pub limits: Option<Limits>,
    /// Whether it takes connections as far as its health goes.
    pub up: bool,
    /// Whether its TCP connections are to be ended.
    pub reset: bool,
    /// Whether clients of a persistent service come back to it.
    pub returning: bool,
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
    /// By dest number, like `dests`; what most packets need of them. Never empty: 0 is nobody.
    transforms: Vec<Transform>,
    removed: HashSet<DestId>,
    by_virtual_address: Index,
    by_endpoint: Index,
    /// Whose datagrams an endpoint answers, if nobody remembers: dests of services with one-packet scheduling.
    answering: HashMap<EndpointIndex, DestId>,
    /// What addresses are, whatever the port: [`VIRTUAL`], [`ENDPOINT`] or both.
    addresses: Index,
}

const VIRTUAL: u32 = 1;
const ENDPOINT: u32 = 2;

impl Dest {
    /// Whether it has no room for another connection.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.limits.is_some_and(|limits| self.gauge.is_full(limits))
    }
}

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
            transforms: Vec::new(),
            removed: removed.into_iter().collect(),
            by_virtual_address: Index::default(),
            by_endpoint: Index::default(),
            answering: HashMap::new(),
            addresses: Index::default(),
        };
        if specs.iter().any(|spec| spec.mode == Mode::Tunnel) {
            // A real server takes no packet from an address that it has itself; and another router may have it next.
            let addresses: HashSet<u32> = specs.iter().map(|spec| u32::from(*spec.address.ip())).collect();
            snapshot.fib.disown(|address| addresses.contains(&address));
        }
        for spec in specs {
            snapshot.add_service(spec);
        }
        snapshot.transforms = snapshot.transforms();
        snapshot
    }

    /// The service at a virtual address.
    #[inline]
    pub fn service_at(&self, address: u32, port: u16, protocol: Protocol) -> Option<ServiceIndex> {
        self.by_virtual_address.get(Key::new(address, port, protocol))
    }

    /// The endpoint with this address.
    #[inline]
    pub fn endpoint_at(&self, address: u32, port: u16, protocol: Protocol) -> Option<EndpointIndex> {
        self.by_endpoint.get(Key::new(address, port, protocol))
    }

    /// Starts to load what tells whose packet this is.
    #[inline]
    pub fn prefetch(&self, source: (u32, u16), destination: (u32, u16), protocol: Protocol) {
        self.by_virtual_address.prefetch(Key::new(destination.0, destination.1, protocol));
        self.by_endpoint.prefetch(Key::new(source.0, source.1, protocol));
    }

    /// Whether there are so many dests that their counters are not all in the first cache.
    #[inline]
    pub fn is_large(&self) -> bool {
        self.transforms.len() > 512
    }

    /// Whether this is the address of a service or of an endpoint.
    pub fn concerns(&self, address: u32) -> bool {
        self.addresses.get(whole(address)).is_some()
    }

    /// Whether this is the address of a service.
    pub fn is_virtual(&self, address: u32) -> bool {
        self.addresses.get(whole(address)).is_some_and(|what| what & VIRTUAL != 0)
    }

    /// The dest of a connection; `None` if it has been removed, or if it is newer than this snapshot and the
    /// connection one of a worker that uses the next snapshot already. [`Self::has_removed`] tells.
    #[inline]
    pub fn dest_of(&self, word: Word) -> Option<&Dest> {
        self.dests.get(word.dest_number())?.as_ref()
    }

    /// What a packet of an undisturbed connection becomes; one that fits no packet if the dest is not in this
    /// snapshot.
    #[inline]
    pub fn transform_of(&self, word: Word) -> &Transform {
        self.transforms.get(word.dest_number()).unwrap_or(&self.transforms[0])
    }

    /// The same by id.
    #[inline]
    pub fn transform(&self, id: DestId) -> &Transform {
        self.transforms.get(id.index()).unwrap_or(&self.transforms[0])
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

    /// The dest whose datagrams an endpoint answers that are of no connection.
    pub fn answered_by(&self, endpoint: EndpointIndex) -> Option<&Dest> {
        self.dest(*self.answering.get(&endpoint)?)
    }

    /// Whether a dest has room for another connection.
    pub fn is_free(&self, id: DestId) -> bool {
        self.dest(id).is_some_and(|dest| !dest.is_full())
    }

    /// All dests.
    pub fn dests(&self) -> impl Iterator<Item = &Dest> {
        self.dests.iter().flatten()
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
        let (reachable, unreachable): (Vec<&DestSpec>, Vec<&DestSpec>) =
            spec.dests.iter().filter(|dest| dest.up && dest.listed).partition(|dest| {
                matches!(self.way_to(spec, u32::from(*dest.address.ip())).0, NextHop::Ready(_))
            });
        let waits = unreachable.iter().any(|dest| dest.weight > 0);
        let candidates: Vec<Candidate> = reachable.into_iter().map(candidate).collect();
        let mut timeouts = spec.timeouts;
        timeouts.0[State::Template as usize] = spec.persistence.map_or(0, |persistence| persistence.seconds);
        self.services.push(Service {
            protocol: spec.protocol,
            mode: spec.mode,
            live: spec.live,
            picker: Picker::new(spec.scheduler, &spec.flags, &candidates, &spec.cursor),
            sloppy_tcp: spec.sloppy_tcp,
            one_packet: spec.one_packet,
            is_limited: spec.dests.iter().any(|dest| dest.limits.is_some()),
            persistent: spec.persistence.map(|how| ipv4::mask(how.prefix)),
            waits,
            timeouts: timeouts.0.map(Timeout::from_seconds),
        });
        let key = Key::new(virtual_address, spec.address.port(), spec.protocol);
        self.by_virtual_address.insert(key, index);
        if spec.live {
            self.note(virtual_address, VIRTUAL);
        }
    }

    fn add_dest(&mut self, service: ServiceIndex, spec: &ServiceSpec, dest: &DestSpec) {
        let (virtual_address, virtual_port) = (u32::from(*spec.address.ip()), spec.address.port());
        let (address, port) = (u32::from(*dest.address.ip()), dest.address.port());
        let endpoint = (spec.mode == Mode::Nat).then(|| {
            let key = Key::new(address, port, spec.protocol);
            self.note(address, ENDPOINT);
            self.by_endpoint.get(key).unwrap_or_else(|| {
                let next = self.by_endpoint.len() as EndpointIndex;
                self.by_endpoint.insert(key, next);
                next
            })
        });
        if let Some(endpoint) = endpoint.filter(|_| spec.one_packet) {
            // Of several the first: nothing tells them apart.
            self.answering.entry(endpoint).or_insert(dest.id);
        }
        let address_delta = Delta::double(virtual_address, address);
        if self.dests.len() <= dest.id.index() {
            self.dests.resize_with(dest.id.index() + 1, || None);
        }
        let (next_hop, tunnel) = self.way_to(spec, address);
        self.dests[dest.id.index()] = Some(Dest {
            id: dest.id,
            service,
            endpoint,
            tunnel,
            virtual_address,
            virtual_port,
            port,
            address,
            address_delta,
            transport_delta: address_delta.and(Delta::word(virtual_port, port)),
            limits: dest.limits,
            up: dest.up,
            reset: dest.reset,
            returning: dest.returning
                && dest.up
                && dest.listed
                && !dest.reset
                && !(dest.weight == 0 && spec.persistence.is_some_and(|how| how.expire_quiescent)),
            next_hop,
            traffic: dest.traffic.clone(),
            gauge: dest.gauge.clone(),
        });
    }

    fn way_to(&self, spec: &ServiceSpec, server: u32) -> (NextHop, Option<Tunnel>) {
        match spec.mode {
            Mode::Tunnel => spec.tunnel.towards(server, &self.fib),
            Mode::Nat | Mode::Dr => (self.fib.look_up(server), None),
        }
    }

    fn note(&mut self, address: u32, what: u32) {
        let known = self.addresses.get(whole(address)).unwrap_or(0);
        self.addresses.insert(whole(address), known | what);
    }

    fn transforms(&self) -> Vec<Transform> {
        let none = Transform::none();
        let transform = |dest: &Option<Dest>| match dest {
            Some(dest) => Transform::new(dest, &self.services[dest.service as usize]),
            None => none.clone(),
        };
        [None].iter().chain(self.dests.iter().skip(1)).map(transform).collect()
    }
}

/// An address without a port.
const fn whole(address: u32) -> Key {
    Key::new(address, 0, Protocol::Tcp)
}
