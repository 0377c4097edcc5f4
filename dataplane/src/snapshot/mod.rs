//! The compiled configuration: all that a worker knows of services.
//!
//! A snapshot is immutable. Control compiles a new one when the configuration, the health of a server, a
//! route or a neighbour changes, and publishes it by one pointer swap ([`Publisher`]). A worker looks at
//! the pointer once per loop. Control keeps the old snapshots until no worker holds them, so that memory
//! is always freed on control's side.
//!
//! What has to outlive snapshots (counters, gauges, round-robin positions) is shared by reference from one
//! to the next, found again by the identity of the service and the server.

mod family;
mod incoming;
mod index;
mod pool;
mod publish;
mod rehearsal;
mod transform;
mod tunnel;

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use self::family::{Directory, WideIndex};
pub use self::family::{Family, fold, folded};
pub use self::incoming::{Incoming, covers};
use self::index::Index;
pub use self::pool::Pool;
pub use self::publish::{Publisher, Subscriber};
pub use self::transform::{RENEW_AFTER, Transform};
pub use self::tunnel::{MssClamp, Tunnel, TunnelSpec};
use crate::admission::{Limiter, Sources};
use crate::clock::Timeout;
use crate::counters::{Gauge, TrafficCounters};
use crate::fib::{Address, Fibs, NextHop, PortIndex};
use crate::key::{KeyHasher, WideKey};
use crate::quic;
use crate::scheduler::{AtRisk, Candidate, FLOW_KEY, Flow, Kept, Picker, Rosters};
use crate::service::{
    Helper, Limits, Mode, Persistence, Protocol, Scheduler, SchedulerFlag, State, Timeouts,
};
use crate::snat::Snats;
use crate::table::{DestId, LocalAddress, Word};
use crate::wire::checksum::Delta;
use crate::wire::ethernet::Mac;

/// An index into [`Snapshot::services`].
pub type ServiceIndex = u32;
/// A NAT real server's (address, port, protocol); several services may share one.
pub type EndpointIndex = u32;

/// A service, as control describes it.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Virtual address and port, 0 if it is of all ports that no other service has: its servers' are 0, too, and packets keep
    /// theirs. All its servers' addresses are of the same family, but with [`Mode::Tunnel`].
    pub address: SocketAddr,
    /// Of a service of all ports: those that it has of them, if not all. In ascending order, without touching each other.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Of a service of all ports: which of them it has of what comes in where, if that makes a difference.
    pub incoming: Option<Incoming>,
    /// Protocol.
    pub protocol: Protocol,
    /// Forwarding mode.
    pub mode: Mode,
    /// Scheduler.
    pub scheduler: Scheduler,
    /// Its flags.
    pub flags: Vec<SchedulerFlag>,
    /// What its scheduler keeps from one snapshot to the next.
    pub kept: Kept,
    /// The key by which its scheduler hashes flows.
    pub flow_key: u64,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// Whether connections begin here. If not, another router has the address: what would begin one is Linux'. Packets of
    /// connections that are known are forwarded all the same, since whoever sent them believes that the address is here,
    /// and that moves with ARP, a moment before or after control hears of it.
    pub live: bool,
    /// Whether a TCP connection may begin with any packet but a RST, and not only with a SYN.
    pub sloppy: bool,
    /// Whether who finds no server is told by a RST, if it asks by TCP, and not by ICMP.
    pub resets: bool,
    /// Whether clients come back to their servers.
    pub persistence: Option<Persistence>,
    /// Whether each datagram is one of its own, and no connection is remembered (IPVS' one-packet scheduling).
    pub one_packet: bool,
    /// If not each of its connections has a word: by whom the others go. For TCP that is one way, without persistence and helper.
    pub rosters: Option<Rosters>,
    /// What ties its connections together. FTP: with persistence and all ports, over TCP and by NAT. IPsec: over UDP, and not by full NAT.
    pub helper: Option<Helper>,
    /// Whose connections may begin, if not everybody's.
    pub sources: Option<Arc<Sources>>,
    /// How many connections may begin, if there is a limit.
    pub limiter: Option<Limiter>,
    /// How its servers write their ids into the connection ids of QUIC.
    pub quic: Vec<quic::Config>,
    /// How packets are put into others, with [`Mode::Tunnel`].
    pub tunnel: TunnelSpec,
    /// As whom real servers see clients, with [`Mode::Fullnat`].
    pub pool: Option<Pool>,
    /// Which part it is of a service that spans addresses, if it is one.
    pub part: Option<Part>,
    /// Real servers in the order of the configuration.
    pub dests: Vec<DestSpec>,
}

/// What a part of a service that spans addresses and protocols is. IPVS has these behind a firewall mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What all of it has in common: the scheduler, and the templates of its clients. No packet is to its address.
    Home,
    /// What comes to one address by one protocol. Its home is the service with this index, which stands before it, and so do the
    /// same servers there.
    Face(ServiceIndex),
}

/// A real server in a service, as control describes it.
#[derive(Clone, Debug)]
pub struct DestSpec {
    /// Its id, stable as long as service and server exist.
    pub id: DestId,
    /// Its id at home, in a [`Part::Face`].
    pub home: Option<DestId>,
    /// Its address and port.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// See [`Candidate::last_weight`].
    pub last_weight: u32,
    /// Its id in the connection ids of QUIC ([`ServiceSpec::quic`]).
    pub quic_id: Option<quic::ServerId>,
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
    pub fn new(address: impl Into<SocketAddr>, protocol: Protocol, mode: Mode) -> Self {
        ServiceSpec {
            address: address.into(),
            ports: Vec::new(),
            incoming: None,
            protocol,
            mode,
            scheduler: Scheduler::Wlc,
            flags: Vec::new(),
            kept: Kept::default(),
            flow_key: FLOW_KEY,
            timeouts: Timeouts::default(),
            live: true,
            sloppy: false,
            resets: false,
            persistence: None,
            one_packet: false,
            rosters: None,
            helper: None,
            sources: None,
            limiter: None,
            quic: Vec::new(),
            tunnel: TunnelSpec::default(),
            pool: None,
            part: None,
            dests: Vec::new(),
        }
    }

    /// Whether SYNs of a flood leave no word in the table.
    fn has_gate(&self) -> bool {
        let limits = self.limiter.as_ref().is_some_and(Limiter::has_gate);
        limits && self.protocol == Protocol::Tcp && self.mode != Mode::Fullnat
    }

    /// See [`Service::is_open`].
    fn is_open(&self) -> bool {
        let all_may_come = self.live && self.sources.is_none() && self.limiter.is_none();
        let to_any_port = self.ports.is_empty() && self.incoming.is_none();
        let has_room = self.pool.is_none() && self.dests.iter().all(|dest| dest.limits.is_none());
        let is_remembered = !self.one_packet && self.rosters.is_none();
        let by_scheduler = self.persistence.is_none() && self.quic.is_empty() && self.part.is_none();
        all_may_come && to_any_port && has_room && is_remembered && by_scheduler
    }
}

impl DestSpec {
    /// A healthy real server of weight 1, for one worker.
    pub fn new(id: DestId, address: impl Into<SocketAddr>) -> Self {
        DestSpec {
            id,
            home: None,
            address: address.into(),
            weight: 1,
            last_weight: 1,
            quic_id: None,
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
    /// See [`ServiceSpec::ports`].
    pub ports: Vec<RangeInclusive<u16>>,
    /// See [`ServiceSpec::incoming`].
    incoming: Option<Incoming>,
    /// Protocol.
    pub protocol: Protocol,
    /// Forwarding mode.
    pub mode: Mode,
    /// Whether connections begin here; see [`ServiceSpec::live`].
    pub live: bool,
    /// Whether anybody's do, from the first packet on, and nothing but the scheduler chooses their servers.
    pub is_open: bool,
    /// Chooses servers.
    pub picker: Picker,
    /// Chooses them by nothing but the flow, if handshakes that are half done are limited ([`Limiter::knock`]).
    pub by_hash: Option<ByHash>,
    /// See [`ServiceSpec::sloppy`].
    pub sloppy: bool,
    /// See [`ServiceSpec::resets`].
    pub resets: bool,
    /// See [`ServiceSpec::one_packet`].
    pub one_packet: bool,
    /// Which of its connections have a word, if it is neither none nor all of them.
    pub at_risk: Option<Arc<AtRisk>>,
    /// Whether each of its connections has a word.
    pub keeps_all: bool,
    /// See [`ServiceSpec::helper`].
    pub helper: Option<Helper>,
    /// See [`ServiceSpec::sources`].
    pub sources: Option<Arc<Sources>>,
    /// See [`ServiceSpec::limiter`].
    pub limiter: Option<Limiter>,
    /// Which of its servers a datagram names itself, if its servers speak QUIC and write that into it.
    pub quic: Option<Box<quic::Ids>>,
    /// Whether there is a server with [`Limits`].
    pub is_limited: bool,
    /// Whether a packet whose time to live is over may have arrived: one of its servers is this router itself.
    pub ends_here: bool,
    /// If clients come back to their servers ([`ServiceSpec::persistence`]): how many bits of their addresses count.
    pub persistent: Option<u8>,
    /// What stands in the place of the client's port in its templates, so that those of one client with several services are in other
    /// slots: sixteen bits of a hash of its address, the same for ever.
    pub mark: u16,
    /// Whether there is a server that would take connections if its next hop were known: soon it will.
    pub waits: bool,
    /// See [`ServiceSpec::pool`].
    pub pool: Option<Pool>,
    /// Who chooses its servers, if it does not do so itself.
    home: Option<Home>,
    /// Another service of all ports at the same address, which is asked for the ports that this one does not have.
    beside: Option<ServiceIndex>,
    /// The first of those at this address, if for one of them it makes a difference where packets come in.
    crossing: Option<ServiceIndex>,
    timeouts: [Timeout; State::COUNT],
}

/// The home of a [`Part::Face`].
#[derive(Clone, Debug)]
struct Home {
    service: ServiceIndex,
    /// Who is here whom the home has chosen.
    dests: HashMap<DestId, DestId>,
}

/// How a service's servers are chosen by nothing but the flow.
#[derive(Debug)]
pub enum ByHash {
    /// Its scheduler does nothing else.
    Scheduler,
    /// Its scheduler looks at something else, too.
    Own(Picker),
}

impl Service {
    /// The server of a flow by its hash alone, full or not: the same for the SYN, its answer and the acknowledgement.
    pub fn hashed(&self, flow: &Flow) -> Option<DestId> {
        match self.by_hash.as_ref()? {
            ByHash::Scheduler => self.picker.pick(flow),
            ByHash::Own(picker) => picker.pick(flow),
        }
    }

    /// Whether it has this port, if it is of all ports, of what comes in here. Without a place: of anything.
    pub fn has_port(&self, port: u16, incoming: Option<PortIndex>) -> bool {
        let comes_here = match (&self.incoming, incoming) {
            (Some(by), Some(incoming)) => by.has(port, incoming),
            _ => true,
        };
        comes_here && (self.ports.is_empty() || covers(&self.ports, port))
    }

    /// How long a connection in this state may be silent.
    #[inline]
    pub fn timeout(&self, state: State) -> Timeout {
        self.timeouts[state as usize]
    }

    /// Whether the streams that begin now begin with a header for the server ([`crate::wire::proxy`]). A mark's UDP has no streams, though its pool is TCP's.
    pub fn has_header(&self) -> bool {
        self.protocol == Protocol::Tcp && self.pool.as_ref().is_some_and(|pool| pool.proxy)
    }
}

/// A real server in a service, compiled: everything that a packet of its connections needs.
#[derive(Clone, Debug)]
pub struct Dest {
    /// Its id.
    pub id: DestId,
    /// The id that its clients' templates name: its own, but in a [`Part::Face`].
    pub home: DestId,
    /// Its service.
    pub service: ServiceIndex,
    /// Its endpoint; `None` if its replies do not come this way. With [`Mode::Fullnat`] one of its own: who replies is told by the
    /// local port.
    pub endpoint: Option<EndpointIndex>,
    /// How packets to it are put into others, with [`Mode::Tunnel`].
    pub tunnel: Option<Tunnel>,
    /// Whether it is this router itself: packets to it are Linux', as they are, whatever the mode. Linux replies to clients, so none of
    /// its replies is seen here (IPVS' LocalNode).
    pub is_here: bool,
    /// The virtual address and port.
    pub virtual_address: SocketAddr,
    /// The real server's address and port.
    pub address: SocketAddr,
    /// Those of the addresses that are of IPv4.
    pub four: Ends<u32>,
    /// Those of the addresses that are of IPv6.
    pub six: Ends<u128>,
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

/// The addresses of a real server in a service, as numbers in host order; 0 where they are of the other family. They are of one family, but
/// with [`Mode::Tunnel`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends<A> {
    /// The virtual one: of the family of clients' packets.
    pub virtual_address: A,
    /// The real server's.
    pub address: A,
}

impl<A: Address> Ends<A> {
    fn of((virtual_address, address): (IpAddr, IpAddr)) -> Self {
        let number = |address| A::of(address).unwrap_or(A::from(0));
        Ends { virtual_address: number(virtual_address), address: number(address) }
    }
}

/// What goes on counting the connections of a dest that has gone.
#[derive(Clone, Debug, Default)]
pub struct Removed {
    /// What limits its service.
    pub limiter: Option<Limiter>,
    /// The server's gauge, if that has not gone with the dest but is that of other parts of the service, too.
    pub gauge: Option<Arc<Gauge>>,
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
    pub fibs: Fibs,
    /// Whose connections may begin at any service, if not everybody's. Those of the service have to allow it as well.
    pub sources: Option<Arc<Sources>>,
    /// Whether packets that concern no service are routed by these; if not, they are Linux'.
    pub routing: bool,
    /// Source NAT of what is routed.
    pub snats: Snats,
    /// Whether there is a service whose clients' ESP and AH follow it ([`Helper::Ipsec`]).
    pub has_ipsec: bool,
    dests: Vec<Option<Dest>>,
    /// By dest number, like `dests`; what most packets need of them. Never empty: 0 is nobody.
    transforms: Vec<Transform>,
    /// Dests that have gone and that connections may still name.
    removed: HashMap<DestId, Removed>,
    four: Directory<Index>,
    six: Directory<WideIndex>,
    endpoints: EndpointIndex,
    /// By number, the local addresses of which connections may have ports.
    locals: Vec<Option<Arc<LocalAddress>>>,
    /// Whom an endpoint may answer of whom nobody knows: dests of services with one-packet scheduling, or with a gate against floods of SYNs.
    answering: HashMap<EndpointIndex, Vec<DestId>>,
    /// The services of FTP in which an endpoint is.
    helped: HashMap<EndpointIndex, Vec<ServiceIndex>>,
}

impl Dest {
    /// Whether it is one of a service of all ports: no packet's port changes.
    #[inline]
    pub fn is_of_all_ports(&self) -> bool {
        self.virtual_address.port() == 0
    }

    /// The real server's port, for a packet to this virtual one.
    #[inline]
    pub fn server_port(&self, virtual_port: u16) -> u16 {
        match self.address.port() {
            0 => virtual_port,
            port => port,
        }
    }

    /// The virtual port, for a packet from this one of the real server.
    #[inline]
    pub fn virtual_port(&self, server_port: u16) -> u16 {
        match self.virtual_address.port() {
            0 => server_port,
            port => port,
        }
    }

    /// Whether a connection would reach it.
    fn is_reachable(&self) -> bool {
        self.is_here || matches!(self.next_hop, NextHop::Ready(_))
    }

    /// Whether its replies do not come this way.
    #[inline]
    pub fn is_one_way(&self) -> bool {
        self.endpoint.is_none()
    }

    /// Whether it has no room for another connection.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.limits.is_some_and(|limits| self.gauge.is_full(limits))
    }
}

impl Snapshot {
    /// Compiles services, ports, routes and neighbours. `removed` are the dests that have been removed but may
    /// still be named by connections, each with what goes on counting these.
    pub fn new(
        generation: u64,
        ports: Vec<PortSpec>,
        specs: &[ServiceSpec],
        removed: impl IntoIterator<Item = (DestId, Removed)>,
        fibs: impl Into<Fibs>,
    ) -> Self {
        let mut snapshot = Snapshot {
            generation,
            ports,
            services: Vec::with_capacity(specs.len()),
            fibs: fibs.into(),
            sources: None,
            routing: false,
            snats: Snats::default(),
            has_ipsec: specs.iter().any(|spec| spec.helper == Some(Helper::Ipsec)),
            dests: Vec::new(),
            transforms: Vec::new(),
            removed: removed.into_iter().collect(),
            four: Directory::default(),
            six: Directory::default(),
            endpoints: 0,
            locals: Vec::new(),
            answering: HashMap::new(),
            helped: HashMap::new(),
        };
        // No tunnel begins at one of them. Only tunnels ask.
        let has_tunnels = specs.iter().any(|spec| spec.mode == Mode::Tunnel);
        let virtuals = specs.iter().filter(|_| has_tunnels).map(|spec| spec.address.ip()).collect();
        for spec in specs {
            snapshot.add_service(spec, &virtuals);
        }
        // As in IPVS a mark goes before all ports of an address.
        let (faces, others): (Vec<_>, Vec<_>) =
            specs.iter().zip(0..).partition(|(spec, _)| matches!(spec.part, Some(Part::Face(_))));
        for (spec, index) in faces.into_iter().chain(others) {
            if spec.part != Some(Part::Home) {
                snapshot.place(spec, index);
            }
        }
        snapshot.cross();
        snapshot.transforms = snapshot.transforms();
        snapshot
    }

    /// The same for these sources only.
    pub fn with_sources(mut self, sources: Option<Arc<Sources>>) -> Self {
        let is_for_all = sources.is_none();
        self.services.iter_mut().for_each(|service| service.is_open &= is_for_all);
        Snapshot { sources, ..self }
    }

    /// The same with source NAT.
    pub fn with_snats(self, snats: Snats) -> Self {
        Snapshot { snats, ..self }
    }

    /// The same, which routes packets that concern no service, or does not.
    pub fn with_routing(self, routing: bool) -> Self {
        Snapshot { routing, ..self }
    }

    /// Whether there are so many dests that their counters are not all in the first cache.
    #[inline]
    pub fn is_large(&self) -> bool {
        self.transforms.len() > 512
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
        self.removed(word).is_some()
    }

    /// Who chooses a service's servers and has its clients' templates: the service itself, but for a [`Part::Face`].
    #[inline]
    pub fn home_of(&self, index: ServiceIndex) -> (ServiceIndex, &Service) {
        let index = self.services[index as usize].home.as_ref().map_or(index, |home| home.service);
        (index, &self.services[index as usize])
    }

    /// The same of a service whose index is not at hand.
    #[inline]
    pub fn home<'s>(&'s self, service: &'s Service) -> &'s Service {
        service.home.as_ref().map_or(service, |home| &self.services[home.service as usize])
    }

    /// The dest of a service for the one that its home has chosen.
    #[inline]
    pub fn dest_in(&self, service: &Service, chosen: DestId) -> Option<&Dest> {
        match &service.home {
            None => self.dest(chosen),
            Some(home) => self.dest(*home.dests.get(&chosen)?),
        }
    }

    /// Whether what hits a service may be of a connection with this dest: one of its own. Where it makes a difference by which port packets
    /// come in, one of any service there: that decides who gets a connection, as a mark does in IPVS, and not how it goes on.
    #[inline]
    pub fn may_meet(&self, hit: ServiceIndex, dest: &Dest) -> bool {
        let crossing = |index: ServiceIndex| self.services[index as usize].crossing;
        dest.service == hit || crossing(hit).is_some_and(|first| crossing(dest.service) == Some(first))
    }

    /// The dest with this id.
    #[inline]
    pub fn dest(&self, id: DestId) -> Option<&Dest> {
        self.dests.get(id.index())?.as_ref()
    }

    /// The dests whose packets an endpoint may have answered that are of no connection.
    pub fn answered_by(&self, endpoint: EndpointIndex) -> impl Iterator<Item = &Dest> {
        self.answering.get(&endpoint).into_iter().flatten().filter_map(|&id| self.dest(id))
    }

    /// The services of FTP for which an endpoint may begin connections.
    pub fn helped(&self, endpoint: EndpointIndex) -> Option<&[ServiceIndex]> {
        self.helped.get(&endpoint).map(Vec::as_slice)
    }

    /// Whether a dest has room for another connection.
    pub fn is_free(&self, id: DestId) -> bool {
        self.dest(id).is_some_and(|dest| !dest.is_full())
    }

    /// A connection has left the table, or has not come into it although it was counted.
    pub fn left(&self, word: Word) {
        let (gauge, limiter) = match self.dest_of(word) {
            Some(dest) => (Some(&dest.gauge), self.services[dest.service as usize].limiter.as_ref()),
            // Its gauge has mostly gone with it. Its source is the service's, and has one connection less.
            None => match self.removed(word) {
                Some(Removed { limiter, gauge }) => (gauge.as_ref(), limiter.as_ref()),
                None => (None, None),
            },
        };
        if let Some(gauge) = gauge {
            gauge.leave(word.state());
        }
        if let Some(limiter) = limiter {
            limiter.leave(word);
        }
    }

    fn removed(&self, word: Word) -> Option<&Removed> {
        self.removed.get(&DestId::new(word.dest_number() as u32)?)
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

    fn add_service(&mut self, spec: &ServiceSpec, virtuals: &HashSet<IpAddr>) {
        let index = self.services.len() as ServiceIndex;
        for dest in &spec.dests {
            self.add_dest(index, spec, dest, virtuals);
        }
        let candidate = |dest: &DestSpec| Candidate {
            dest: dest.id,
            address: dest.address,
            weight: dest.weight,
            last_weight: dest.last_weight,
            gauge: dest.gauge.clone(),
        };
        // A server that is down is not in the list at all, as with keepalived; nor is one whose MAC is not
        // known, since a connection could not reach it.
        let (reachable, unreachable): (Vec<&DestSpec>, Vec<&DestSpec>) = spec
            .dests
            .iter()
            .filter(|dest| dest.up && dest.listed)
            .partition(|dest| self.dest(dest.id).is_some_and(Dest::is_reachable));
        let waits = unreachable.iter().any(|dest| dest.weight > 0);
        let home = match spec.part {
            Some(Part::Face(service)) => {
                let dests = spec.dests.iter().filter_map(|dest| Some((dest.home?, dest.id)));
                Some(Home { service, dests: dests.collect() })
            }
            Some(Part::Home) | None => None,
        };
        let candidates: Vec<Candidate> = reachable.into_iter().map(candidate).collect();
        let by_hash = spec.has_gate().then(|| match spec.scheduler.is_by_hash() || home.is_some() {
            true => ByHash::Scheduler,
            false => ByHash::Own(Picker::by_hash(&candidates, &spec.kept, spec.flow_key)),
        });
        let quic_ids = spec.dests.iter().filter_map(|dest| Some((dest.quic_id?, dest.id)));
        let mut timeouts = spec.timeouts;
        timeouts.0[State::Template as usize] = spec.persistence.map_or(0, |persistence| persistence.seconds);
        if spec.rosters.is_some() {
            // Met in its middle, a connection is in no state yet, and may be one that says little.
            timeouts.0[State::None as usize] = timeouts.0[State::Established as usize];
        }
        self.services.push(Service {
            ports: spec.ports.clone(),
            incoming: spec.incoming.clone(),
            protocol: spec.protocol,
            mode: spec.mode,
            live: spec.live,
            is_open: spec.is_open(),
            picker: match home {
                Some(_) => Picker::nobody(),
                None => Picker::new(spec.scheduler, &spec.flags, &candidates, &spec.kept, spec.flow_key),
            },
            by_hash,
            // With rosters each packet that begins nothing has a server already.
            sloppy: spec.sloppy && spec.rosters.is_none(),
            resets: spec.resets,
            one_packet: spec.one_packet,
            at_risk: spec.rosters.as_ref().map(|rosters| Arc::new(AtRisk::new(rosters, &spec.kept))),
            keeps_all: !spec.one_packet && spec.rosters.is_none(),
            helper: spec.helper,
            sources: spec.sources.clone(),
            limiter: spec.limiter.clone(),
            quic: quic::Ids::new(&spec.quic, quic_ids),
            is_limited: spec.dests.iter().any(|dest| dest.limits.is_some()),
            ends_here: spec.dests.iter().any(|dest| self.dest(dest.id).is_some_and(|dest| dest.is_here)),
            persistent: spec.persistence.map(|how| how.prefix),
            mark: mark(spec.address),
            waits,
            pool: spec.pool.clone(),
            home,
            beside: None,
            crossing: None,
            timeouts: timeouts.0.map(Timeout::from_seconds),
        });
        for local in spec.pool.iter().flat_map(|pool| &pool.locals) {
            self.add_local(local.clone());
        }
    }

    /// Makes packets to its address a service's. Of several of all ports each has its own of them, and the one that was first is asked
    /// first.
    fn place(&mut self, spec: &ServiceSpec, index: ServiceIndex) {
        let (port, protocol) = (spec.address.port(), spec.protocol);
        let first = match spec.address.ip() {
            IpAddr::V4(four) => self.four.add_service((u32::from(four), port), protocol, index, spec.live),
            IpAddr::V6(six) => self.six.add_service((u128::from(six), port), protocol, index, spec.live),
        };
        let Some(mut last) = first else { return };
        while let Some(next) = self.services[last as usize].beside {
            last = next;
        }
        self.services[last as usize].beside = Some(index);
    }

    /// Finds [`Service::crossing`], once all services have their places.
    fn cross(&mut self) {
        if self.services.iter().all(|service| service.incoming.is_none()) {
            return;
        }
        let is_beside: HashSet<ServiceIndex> =
            self.services.iter().filter_map(|service| service.beside).collect();
        for first in (0..self.services.len() as ServiceIndex).filter(|index| !is_beside.contains(index)) {
            let next = |&index: &ServiceIndex| self.services[index as usize].beside;
            let chain: Vec<ServiceIndex> = std::iter::successors(Some(first), next).collect();
            if chain.iter().any(|&index| self.services[index as usize].incoming.is_some()) {
                chain.iter().for_each(|&index| self.services[index as usize].crossing = Some(first));
            }
        }
    }

    fn add_dest(
        &mut self,
        service: ServiceIndex,
        spec: &ServiceSpec,
        dest: &DestSpec,
        virtuals: &HashSet<IpAddr>,
    ) {
        let (virtual_address, address, protocol) = (spec.address, dest.address, spec.protocol);
        let ends = (virtual_address.ip(), address.ip());
        let (four, six) = (Ends::of(ends), Ends::of(ends));
        let address_delta = match (virtual_address, address) {
            (SocketAddr::V4(_), SocketAddr::V4(_)) => Delta::double(four.virtual_address, four.address),
            (SocketAddr::V6(_), SocketAddr::V6(_)) => Delta::wide(six.virtual_address, six.address),
            // Through a tunnel, where nobody's address changes.
            (SocketAddr::V4(_), SocketAddr::V6(_)) | (SocketAddr::V6(_), SocketAddr::V4(_)) => {
                Delta::default()
            }
        };
        let Way { next_hop, tunnel, is_here } = self.way_to(spec, address, virtuals);
        let endpoint = match (spec.mode, address) {
            // Nothing is sent there, or nothing comes back.
            _ if is_here || spec.part == Some(Part::Home) => None,
            (Mode::Nat, SocketAddr::V4(_)) => {
                Some(self.four.endpoint((four.address, address.port()), protocol, self.endpoints))
            }
            (Mode::Nat, SocketAddr::V6(_)) => {
                Some(self.six.endpoint((six.address, address.port()), protocol, self.endpoints))
            }
            (Mode::Fullnat, _) => Some(self.endpoints),
            (Mode::Dr | Mode::Tunnel, _) => None,
        };
        self.endpoints += u32::from(endpoint == Some(self.endpoints));
        if let Some(endpoint) = endpoint.filter(|_| spec.one_packet || spec.has_gate()) {
            self.answering.entry(endpoint).or_default().push(dest.id);
        }
        if let Some(endpoint) = endpoint.filter(|_| spec.helper == Some(Helper::Ftp)) {
            self.helped.entry(endpoint).or_default().push(service);
        }
        if self.dests.len() <= dest.id.index() {
            self.dests.resize_with(dest.id.index() + 1, || None);
        }
        self.dests[dest.id.index()] = Some(Dest {
            id: dest.id,
            home: dest.home.unwrap_or(dest.id),
            service,
            endpoint,
            tunnel,
            is_here,
            virtual_address,
            address,
            four,
            six,
            address_delta,
            transport_delta: address_delta.and(Delta::word(virtual_address.port(), address.port())),
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

    fn way_to(&self, spec: &ServiceSpec, server: SocketAddr, virtuals: &HashSet<IpAddr>) -> Way {
        let is_virtual = server.ip() == spec.address.ip();
        let (next_hop, tunnel) = match spec.mode {
            // Also on a router that does not have the address now: it is no way to another one.
            _ if is_virtual => (NextHop::NoRoute, None),
            Mode::Tunnel => {
                let ends = (spec.address.ip(), server.ip());
                spec.tunnel.towards(ends, &self.fibs, |address| virtuals.contains(&address))
            }
            Mode::Nat | Mode::Dr | Mode::Fullnat => (self.fibs.look_up(server.ip()), None),
        };
        // Packets stay as they are, so Linux must listen where clients ask; and with full NAT a connection has a local port.
        let is_here = next_hop == NextHop::NoRoute
            && server.port() == spec.address.port()
            && spec.mode != Mode::Fullnat
            && (is_virtual || self.fibs.is_own(server.ip()));
        Way { next_hop, tunnel: tunnel.filter(|_| !is_here), is_here }
    }

    fn transforms(&self) -> Vec<Transform> {
        let none = Transform::none();
        let transform = |dest: &Option<Dest>| match dest {
            // Of all ports, none can be decided in advance.
            Some(dest) if !dest.is_of_all_ports() => {
                Transform::new(dest, &self.services[dest.service as usize])
            }
            Some(_) | None => none.clone(),
        };
        [None].iter().chain(self.dests.iter().skip(1)).map(transform).collect()
    }
}

/// The way to a real server.
struct Way {
    next_hop: NextHop,
    tunnel: Option<Tunnel>,
    is_here: bool,
}

/// See [`Service::mark`].
fn mark(address: SocketAddr) -> u16 {
    let mut hasher = KeyHasher::default();
    match address.ip() {
        IpAddr::V4(four) => hasher.write_u32(four.into()),
        IpAddr::V6(six) => WideKey { address: six.into(), rest: 0 }.hash(&mut hasher),
    }
    hasher.write_u64(address.port().into());
    (hasher.finish() >> 48) as u16
}
