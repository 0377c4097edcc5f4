//! Who is who across reloads: ids, counters and positions that outlive snapshots.
//!
//! A connection word names its real server by a number. That number has to mean the same server for as long
//! as any word names it: it is given by identity (service, server, mode), kept over reloads, and after the
//! server has been removed it is not given to another before no word can name it any more. That is proven in
//! two steps: every worker uses a snapshot without the server, so no new words are made; then every worker
//! completes a whole sweep over its share of the table, which removes the old ones.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use dataplane::admission::{self, Flood, Key, Limit, Limiter};
use dataplane::clock::Tick;
use dataplane::counters::{Gauge, Traffic, TrafficCounters, WorkerCounters};
use dataplane::scheduler::Kept;
use dataplane::service::{Mode, Protocol};
use dataplane::snapshot::Removed;
use dataplane::table::{DestId, LocalAddress};
use foldhash::{HashMap, HashSet};
use serde::{Deserialize, Serialize};

use crate::config::error::quoted;
use crate::config::value;
use crate::keep::Locals;
use crate::rates::Meter;

/// The largest firewall mark of a service. With these 24 bits a mark is no virtual address, all of which are behind 0.0.0.0/8 (RFC 6890).
pub const MAX_MARK: u32 = (1 << 24) - 1;

/// What makes a service the same after a reload. Shown, and typed, as `tcp/192.0.2.10:80` or `tcp/[2001:db8::10]:80`; that of a mark as
/// `mark/10`, of IPv6 addresses as `mark6/10`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServiceKey {
    /// Virtual address and port, 0 if it is of all ports.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

const MARK: &str = "mark";
const MARK6: &str = "mark6";

impl ServiceKey {
    /// The service of a mark, whose addresses are of IPv6 or not. As in IPVS the mark stands in the address' place: 0.0.0.10:0 for 10.
    pub fn of_mark(mark: u32, is_wide: bool) -> Self {
        let address: IpAddr = match is_wide {
            false => Ipv4Addr::from(mark).into(),
            true => Ipv6Addr::from(u128::from(mark)).into(),
        };
        ServiceKey { address: SocketAddr::new(address, 0), protocol: Protocol::Tcp }
    }

    /// The mark, if it is the service of one.
    pub fn mark(&self) -> Option<u32> {
        let number = match self.address.ip() {
            IpAddr::V4(four) => u128::from(u32::from(four)),
            IpAddr::V6(six) => u128::from(six),
        };
        let number = u32::try_from(number).ok()?;
        (self.address.port() == 0 && (1..=MAX_MARK).contains(&number)).then_some(number)
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mark() {
            Some(mark) => write!(f, "{}/{mark}", if self.address.is_ipv6() { MARK6 } else { MARK }),
            None => write!(f, "{}/{}", self.protocol, self.address),
        }
    }
}

impl FromStr for ServiceKey {
    type Err = String;

    /// Without a protocol it is TCP.
    fn from_str(typed: &str) -> Result<Self, String> {
        let expected = "expected PROTOCOL/ADDRESS:PORT, e.g. tcp/192.0.2.10:80 or tcp/[2001:db8::10]:80";
        let (protocol, address) = typed.split_once('/').unwrap_or(("tcp", typed));
        if [MARK, MARK6].contains(&protocol) {
            let mark = address.parse().ok().filter(|mark| (1..=MAX_MARK).contains(mark));
            let mark = mark.ok_or_else(|| {
                format!("{} is no mark; expected {protocol}/1 to {protocol}/{MAX_MARK}", quoted(address))
            })?;
            return Ok(ServiceKey::of_mark(mark, protocol == MARK6));
        }
        let protocol = Protocol::from_name(protocol)
            .ok_or_else(|| format!("{} is no service; {expected}", quoted(typed)))?;
        let address = value::socket_of_any_port(address).map_err(|wrong| format!("{wrong}; {expected}"))?;
        Ok(ServiceKey { address, protocol })
    }
}

impl From<ServiceKey> for String {
    fn from(key: ServiceKey) -> String {
        key.to_string()
    }
}

impl TryFrom<String> for ServiceKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// An address and a protocol, by which packets come to the service of a mark. Shown as `tcp/192.0.2.10`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Face {
    /// The virtual address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.address)
    }
}

impl FromStr for Face {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let face = parts.and_then(|(protocol, address)| {
            Some(Face { protocol: Protocol::from_name(protocol)?, address: address.parse().ok()? })
        });
        face.ok_or_else(|| format!("{} is no protocol and address", quoted(text)))
    }
}

/// What makes a real server the same within its service. Another mode makes it another one: its connections
/// would not survive the change anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServerKey {
    /// Address and port.
    pub address: SocketAddr,
    /// How packets reach it.
    pub mode: Mode,
}

/// What lasts of a service.
#[derive(Debug, Default)]
pub struct ServiceRecord {
    /// What its scheduler keeps.
    pub kept: Kept,
    /// What limits its connections.
    limiter: admission::Kept,
    /// Its servers.
    pub servers: HashMap<ServerKey, ServerRecord>,
    /// Rates of all its servers.
    pub meter: Meter,
    /// Traffic of servers that have been removed: a service's counts never go back.
    retired: Traffic,
}

impl ServiceRecord {
    /// Samples the rates of the service and its servers.
    pub fn sample(&mut self) {
        let traffic = self.traffic();
        self.meter.sample(traffic);
        for server in self.servers.values_mut() {
            let traffic = server.traffic();
            server.meter.sample(traffic);
        }
    }

    /// What there is to say of floods of SYNs, if it has a gate against them.
    pub fn flood(&self, now: Tick) -> Option<Flood> {
        self.limiter.last()?.flood(now)
    }

    /// Traffic of all its servers, former ones included.
    pub fn traffic(&self) -> Traffic {
        let mut sum = self.retired;
        self.servers.values().for_each(|server| sum += server.traffic());
        sum
    }
}

/// What lasts of a real server in a service.
#[derive(Debug)]
pub struct ServerRecord {
    /// Its number in connection words. In the service of a mark, in those of templates.
    pub id: DestId,
    /// Its numbers in the words of connections of a mark's service.
    pub faces: HashMap<Face, DestId>,
    /// Its traffic, a set for each worker.
    pub counters: Arc<[TrafficCounters]>,
    /// Its live connections.
    pub gauge: Arc<Gauge>,
    /// Its last weight that was not 0.
    pub last_weight: u32,
    /// Its rates.
    pub meter: Meter,
}

impl ServerRecord {
    fn new(id: DestId, workers: usize, gauge: Gauge, last_weight: u32) -> Self {
        let counters = (0..workers).map(|_| TrafficCounters::default()).collect();
        let faces = HashMap::default();
        ServerRecord { id, faces, counters, gauge: Arc::new(gauge), last_weight, meter: Meter::default() }
    }

    /// Its traffic over all workers.
    pub fn traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        self.counters.iter().for_each(|worker| sum += worker.get());
        sum
    }
}

/// A server with its number, as the next process has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number in connection words.
    pub id: DestId,
    /// Its service.
    pub service: ServiceKey,
    /// Who it is.
    pub server: ServerKey,
    /// In the service of a mark: by which address and protocol connections with this number came.
    pub face: Option<Face>,
    /// Its last weight that was not 0.
    pub last_weight: u32,
}

/// Everything that lasts.
#[derive(Debug)]
pub struct Ids {
    services: HashMap<ServiceKey, ServiceRecord>,
    /// By which sources are counted.
    key: Key,
    workers: usize,
    numbers: Numbers,
    quarantine: VecDeque<Quarantined>,
    /// Local addresses.
    locals: Locals,
    /// Whether members are new, gone, or other than they were.
    changed: bool,
}

/// Ids that nobody has.
#[derive(Debug)]
struct Numbers {
    next: u32,
    free: Vec<DestId>,
}

impl Numbers {
    fn allocate(&mut self) -> Option<DestId> {
        self.free.pop().or_else(|| {
            let id = DestId::new(self.next)?;
            self.next += 1;
            Some(id)
        })
    }
}

/// A service's record, to enter its servers.
pub struct Entered<'a> {
    record: &'a mut ServiceRecord,
    key: Key,
    workers: usize,
    numbers: &'a mut Numbers,
    changed: &'a mut bool,
}

impl Entered<'_> {
    /// What limits the service's connections, which goes on counting.
    pub fn limiter(&mut self, limit: Option<Limit>) -> Option<Limiter> {
        self.record.limiter.limiter(limit, self.key)
    }

    /// What the service's scheduler keeps.
    pub fn kept(&self) -> &Kept {
        &self.record.kept
    }

    /// The server's number for what comes by this face, made if there is none.
    pub fn face(&mut self, server: ServerKey, face: Face) -> Option<DestId> {
        let Entered { record, numbers, changed, .. } = self;
        let known = record.servers.get_mut(&server)?.faces.entry(face);
        Some(*known.or_insert_with(|| {
            **changed = true;
            numbers.allocate().expect("`room` has been asked before servers are entered")
        }))
    }

    /// The server's record, made if there is none.
    pub fn server(&mut self, server: ServerKey, weight: u32) -> &mut ServerRecord {
        let Entered { record, workers, numbers, changed, .. } = self;
        let record = record.servers.entry(server).or_insert_with(|| {
            **changed = true;
            let id = numbers.allocate().expect("`room` has been asked before servers are entered");
            ServerRecord::new(id, *workers, Gauge::default(), weight)
        });
        if weight > 0 && record.last_weight != weight {
            record.last_weight = weight;
            **changed = true;
        }
        record
    }
}

#[derive(Debug)]
struct Quarantined {
    id: DestId,
    /// In which its connections count as long as they are there.
    counts: Removed,
    /// The first generation without it.
    generation: u64,
    /// Each worker's sweeps when all had reached that generation.
    sweeps: Option<Vec<u64>>,
}

impl Quarantined {
    fn new(id: DestId, counts: Removed, generation: u64) -> Self {
        Quarantined { id, counts, generation, sweeps: None }
    }
}

impl Ids {
    /// For so many workers.
    pub fn new(workers: usize) -> Self {
        Ids::inherit(workers, [])
    }

    /// The same with this key for counting sources, and not a random one.
    pub fn with_key(self, key: Key) -> Self {
        Ids { key, ..self }
    }

    /// The same with these local addresses.
    pub fn with_locals(self, locals: Locals) -> Self {
        Ids { locals, ..self }
    }

    /// For so many workers, with members of an earlier process and the connections that each of them has. No other
    /// numbers may be in the table: those that nobody has here are free.
    pub fn inherit(workers: usize, members: impl IntoIterator<Item = (Member, Gauge)>) -> Self {
        let mut services: HashMap<ServiceKey, ServiceRecord> = HashMap::default();
        let mut taken = HashSet::default();
        // Of a mark's server there may be nothing left but what came by some of its faces: the number of its own is given below.
        let mut incomplete = Vec::new();
        for (Member { id, service, server, face, last_weight }, gauge) in members {
            taken.insert(id);
            match services.entry(service).or_default().servers.entry(server) {
                Entry::Vacant(free) => {
                    let record = free.insert(ServerRecord::new(id, workers, gauge, last_weight));
                    if let Some(face) = face {
                        record.faces.insert(face, id);
                        incomplete.push((service, server));
                    }
                }
                Entry::Occupied(known) => {
                    let record = known.into_mut();
                    record.gauge.add(&gauge);
                    match face {
                        Some(face) => drop(record.faces.insert(face, id)),
                        None => record.id = id,
                    }
                }
            }
        }
        let next = taken.iter().map(|id| id.index() as u32 + 1).max().unwrap_or(1);
        let free = (1..next).rev().filter_map(DestId::new).filter(|id| !taken.contains(id)).collect();
        let mut numbers = Numbers { next, free };
        for (service, server) in incomplete {
            let record = services.get_mut(&service).and_then(|record| record.servers.get_mut(&server));
            if let Some(record) = record.filter(|record| record.faces.values().any(|&id| id == record.id)) {
                record.id = numbers.allocate().expect("there are as many numbers as it takes");
            }
        }
        let key = [(); 2].map(|()| RandomState::new().hash_one(workers));
        let locals = Locals::default();
        Ids { services, key, workers, numbers, quarantine: VecDeque::new(), locals, changed: true }
    }

    /// All servers with their numbers, but those that have been removed.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        let of_service = |(&service, record): (&ServiceKey, &'_ ServiceRecord)| {
            let members = record.servers.iter().flat_map(move |(&server, record)| {
                let faces = record.faces.iter().map(|(&face, &id)| (id, Some(face)));
                faces.chain([(record.id, None)]).map(move |(id, face)| Member {
                    id,
                    service,
                    server,
                    face,
                    last_weight: record.last_weight,
                })
            });
            members.collect::<Vec<_>>()
        };
        self.services.iter().flat_map(of_service)
    }

    /// Whether members have come, changed or gone since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The record of a service.
    pub fn service(&self, key: &ServiceKey) -> Option<&ServiceRecord> {
        self.services.get(key)
    }

    /// Every service's record, e.g. to sample rates.
    pub fn services_mut(&mut self) -> impl Iterator<Item = &mut ServiceRecord> {
        self.services.values_mut()
    }

    /// The service's record, made if there is none.
    pub fn enter(&mut self, key: ServiceKey) -> Entered<'_> {
        let Ids { services, key: secret, workers, numbers, changed, .. } = self;
        let record = services.entry(key).or_default();
        Entered { record, key: *secret, workers: *workers, numbers, changed }
    }

    /// A local address, made if it is not known. `None` if there is no address space for it, which is logged.
    pub fn local(&mut self, address: IpAddr) -> Option<Arc<LocalAddress>> {
        self.locals.enter(address)
    }

    /// All local addresses there have been.
    pub fn locals(&self) -> impl Iterator<Item = &Arc<LocalAddress>> {
        self.locals.iter()
    }

    /// Servers that have been removed and that connections may still name, each with what counts those for its service.
    pub fn removed(&self) -> impl Iterator<Item = (DestId, Removed)> + '_ {
        self.quarantine.iter().map(|held| (held.id, held.counts.clone()))
    }

    /// How many more servers can be entered now.
    pub fn room(&self) -> usize {
        (DestId::MAX + 1 - self.numbers.next) as usize + self.numbers.free.len()
    }

    /// Forgets what a new configuration does not name: `named` has the servers of a service, if it is there at all.
    /// `generation` is its first snapshot's.
    pub fn retain(&mut self, generation: u64, named: impl Fn(&ServiceKey) -> Option<Vec<ServerKey>>) {
        let Ids { services, quarantine, changed, .. } = self;
        services.retain(|key, record| {
            let named = named(key);
            let servers = named.as_deref().unwrap_or_default();
            let known = servers.iter().filter(|server| record.servers.contains_key(server)).count();
            if known < record.servers.len() {
                let stays: HashSet<&ServerKey> = servers.iter().collect();
                for (_, gone) in record.servers.extract_if(|server, _| !stays.contains(server)) {
                    record.retired += gone.traffic();
                    *changed = true;
                    let counts = Removed { limiter: record.limiter.last().cloned(), gauge: None };
                    let numbers = gone.faces.into_values().chain([gone.id]);
                    quarantine.extend(numbers.map(|id| Quarantined::new(id, counts.clone(), generation)));
                }
            }
            named.is_some()
        });
    }

    /// Forgets the faces that the service of a mark does not have any more; see [`Self::retain`].
    pub fn retain_faces(&mut self, generation: u64, has: impl Fn(&ServiceKey, &Face) -> bool) {
        let Ids { services, quarantine, changed, .. } = self;
        for (key, service) in services.iter_mut().filter(|(key, _)| key.mark().is_some()) {
            let limiter = service.limiter.last().cloned();
            for server in service.servers.values_mut() {
                // Its gauge is that of the faces that stay.
                let counts = Removed { limiter: limiter.clone(), gauge: Some(server.gauge.clone()) };
                for (_, id) in server.faces.extract_if(|face, _| !has(key, face)) {
                    *changed = true;
                    quarantine.push_back(Quarantined::new(id, counts.clone(), generation));
                }
            }
        }
    }

    /// Frees the ids that no connection can name any more. `others` is the oldest generation that somebody uses, beside
    /// the workers, to make connections.
    pub fn release(&mut self, workers: &[Arc<WorkerCounters>], others: u64) {
        let free = &mut self.numbers.free;
        self.quarantine.retain_mut(|held| match &held.sweeps {
            None => {
                let all_use = workers.iter().all(|worker| worker.generation.get() >= held.generation);
                if all_use && others >= held.generation {
                    held.sweeps = Some(workers.iter().map(|worker| worker.sweeps.get()).collect());
                }
                true
            }
            Some(sweeps) => {
                // Two ends of a sweep: the first may be of one that began before.
                let swept = workers.iter().zip(sweeps).all(|(worker, then)| worker.sweeps.get() >= then + 2);
                if swept {
                    free.push(held.id);
                }
                !swept
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use dataplane::counters::Live;
    use dataplane::service::State;
    use dataplane::table::{Client, Word};

    use super::*;

    const WEB: ServiceKey = ServiceKey {
        address: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 10)), 80),
        protocol: Protocol::Tcp,
    };

    fn server(n: u8) -> ServerKey {
        ServerKey { address: SocketAddr::new([10, 0, 0, n].into(), 80), mode: Mode::Nat }
    }

    #[test]
    fn ids_and_counters_stay_with_their_servers() {
        let mut ids = Ids::new(1);
        let first = ids.enter(WEB).server(server(1), 1).id;
        let second = ids.enter(WEB).server(server(2), 1).id;
        assert_ne!(first, second);
        ids.enter(WEB).server(server(1), 1).counters[0].add(0, 1, 7);
        assert_eq!(ids.enter(WEB).server(server(1), 9).id, first);
        assert_eq!(ids.service(&WEB).unwrap().traffic().bytes_in, 7);
        let other_mode = ServerKey { mode: Mode::Dr, ..server(1) };
        assert_ne!(ids.enter(WEB).server(other_mode, 1).id, first);
    }

    #[test]
    fn a_services_counts_survive_its_servers() {
        let mut ids = Ids::new(1);
        ids.enter(WEB).server(server(1), 1).counters[0].add(0, 1, 7);
        ids.retain(2, |_| Some(Vec::new()));
        assert_eq!(ids.service(&WEB).unwrap().traffic().bytes_in, 7);
    }

    #[test]
    fn what_a_removed_server_has_counts_in_its_services_limiter() {
        let limit = Limit {
            rate: None,
            source_rate: None,
            source_connections: Some(1),
            half_open: None,
            source_prefix: 32,
        };
        let mut ids = Ids::new(1);
        let limiter = ids.enter(WEB).limiter(Some(limit)).unwrap();
        let id = ids.enter(WEB).server(server(1), 1).id;
        let word = |port| Word::new(Client::new(7, port), id).with_state(State::SynRecv);
        let counted = limiter.enter(word(1)).unwrap();
        ids.retain(2, |_| Some(Vec::new()));
        let (removed, of_removed) = ids.removed().next().unwrap();
        assert_eq!(removed, id);
        assert!(limiter.enter(word(2)).is_err());
        of_removed.limiter.unwrap().leave(counted);
        assert!(limiter.enter(word(2)).is_ok());
    }

    #[test]
    fn the_last_weight_is_the_last_that_was_not_zero() {
        let mut ids = Ids::new(1);
        for (weight, last) in [(0, 0), (3, 3), (0, 3), (5, 5)] {
            assert_eq!(ids.enter(WEB).server(server(1), weight).last_weight, last);
        }
    }

    #[test]
    fn the_next_process_gives_the_same_numbers() {
        let mut ids = Ids::new(1);
        assert!(ids.take_changed());
        let first: Vec<DestId> = (1..=5).map(|n| ids.enter(WEB).server(server(n), u32::from(n)).id).collect();
        assert!(ids.take_changed() && !ids.take_changed());
        ids.enter(WEB).server(server(3), 3);
        assert!(!ids.take_changed(), "as it was");
        ids.enter(WEB).server(server(3), 4);
        assert!(ids.take_changed(), "another weight");
        ids.enter(WEB).server(server(6), 1);
        assert!(ids.take_changed());
        ids.retain(1, |_| Some((1..=5).map(server).collect()));
        assert!(ids.take_changed(), "one has gone");
        // Two of them are not configured any more, the last among them.
        let stay = ids.members().filter(|member| ![server(2), server(5)].contains(&member.server));
        let mut next = Ids::inherit(
            3,
            stay.map(|member| (member, Gauge::of(Live { active: 7, inactive: 1, templates: 0 }))),
        );
        for n in [1, 3, 4] {
            let id = next.enter(WEB).server(server(n), 0).id;
            let record = &next.service(&WEB).unwrap().servers[&server(n)];
            assert_eq!(id, first[usize::from(n) - 1]);
            assert_eq!((record.id, record.gauge.get(), record.counters.len()), (id, (7, 1), 3));
        }
        assert_eq!(next.enter(WEB).server(server(3), 0).last_weight, 4);
        let new: Vec<DestId> = (6..=8).map(|n| next.enter(WEB).server(server(n), 1).id).collect();
        let number = |n| DestId::new(n).unwrap();
        assert_eq!(new, [number(2), number(5), number(6)], "numbers that nobody has");
        assert_eq!(next.room(), DestId::MAX as usize - 6);
    }

    fn face(n: u8) -> Face {
        Face { address: [192, 0, 2, n].into(), protocol: Protocol::Tcp }
    }

    #[test]
    fn the_faces_of_a_mark_have_numbers_of_their_own_and_one_gauge() {
        let mark = ServiceKey::of_mark(10, false);
        let mut ids = Ids::new(1);
        let home = ids.enter(mark).server(server(1), 1).id;
        let [first, second] = [1, 2].map(|n| ids.enter(mark).face(server(1), face(n)).unwrap());
        assert!(home != first && first != second && second != home);
        assert_eq!(ids.enter(mark).face(server(1), face(1)), Some(first));
        assert_eq!(ids.enter(mark).face(server(2), face(1)), None, "nobody's");
        ids.take_changed();

        // The next process knows who they were, and all their connections are the server's.
        let live = |member: Member| {
            let active = u32::from(member.face.is_some());
            (member, Gauge::of(Live { active, inactive: 0, templates: 1 - active }))
        };
        let mut next = Ids::inherit(1, ids.members().map(live));
        assert_eq!(next.enter(mark).server(server(1), 1).id, home);
        assert_eq!(next.enter(mark).face(server(1), face(2)), Some(second));
        let gauge = next.service(&mark).unwrap().servers[&server(1)].gauge.clone();
        assert_eq!((gauge.get(), gauge.templates()), ((2, 0), 1));
        // Nor does it take more than connections of one face.
        let left = ids.members().filter(|member| member.face == Some(face(2))).map(live);
        let mut next = Ids::inherit(1, left);
        assert_eq!(next.enter(mark).face(server(1), face(2)), Some(second));
        assert_ne!(next.enter(mark).server(server(1), 1).id, second);

        // One that has gone counts on in the server's gauge; with the server all go.
        ids.retain_faces(2, |_, known| *known == face(1));
        assert!(ids.take_changed());
        let removed: Vec<(DestId, bool)> =
            ids.removed().map(|(id, counts)| (id, counts.gauge.is_some())).collect();
        assert_eq!(removed, [(second, true)]);
        ids.retain(3, |_| None);
        assert_eq!(ids.removed().count(), 3);
        assert_eq!(ids.members().count(), 0);
    }

    #[test]
    fn keys_as_they_are_typed() {
        for (typed, shown) in [
            ("tcp/192.0.2.10:80", "tcp/192.0.2.10:80"),
            ("192.0.2.10:80", "tcp/192.0.2.10:80"),
            ("udp/[2001:DB8:0::10]:53", "udp/[2001:db8::10]:53"),
            ("mark/10", "mark/10"),
            ("mark6/16777215", "mark6/16777215"),
        ] {
            let key: ServiceKey = typed.parse().unwrap();
            assert_eq!(key.to_string(), shown);
            assert_eq!(shown.parse(), Ok(key));
        }
        for (typed, why) in [
            ("udp/2001:db8::10", "\"2001:db8::10\" has no port"),
            ("[2001:db8::10]", "\"[2001:db8::10]\" has no port"),
            ("icmp/192.0.2.10:80", "\"icmp/192.0.2.10:80\" is no service"),
            ("tcp/[2001:db8::10%2]:80", "\"2001:db8::10%2\" is "),
        ] {
            let wrong = typed.parse::<ServiceKey>().unwrap_err();
            assert!(wrong.starts_with(why) && wrong.contains("; expected PROTOCOL/ADDRESS:PORT"), "{wrong}");
        }
        let wrong = "mark/0".parse::<ServiceKey>().unwrap_err();
        assert_eq!(wrong, "\"0\" is no mark; expected mark/1 to mark/16777215");
    }

    #[test]
    fn a_removed_servers_id_waits_for_two_sweeps_of_every_worker() {
        let workers: Vec<Arc<WorkerCounters>> = (0..2).map(|_| Arc::default()).collect();
        let mut ids = Ids::new(2);
        let id = ids.enter(WEB).server(server(1), 1).id;
        ids.retain(5, |_| None);
        let reused = |ids: &mut Ids, others: u64| {
            ids.release(&workers, others);
            ids.numbers.free.contains(&id)
        };
        assert!(!reused(&mut ids, 5));
        workers[0].generation.set(5);
        workers.iter().for_each(|worker| worker.sweeps.add(10));
        assert!(!reused(&mut ids, 5), "the second worker still uses an old snapshot");
        workers[1].generation.set(6);
        assert!(!reused(&mut ids, 4), "somebody else does");
        assert!(!reused(&mut ids, 5), "counting of sweeps begins");
        workers.iter().for_each(|worker| worker.sweeps.add(1));
        assert!(!reused(&mut ids, 5), "that sweep may have begun before");
        workers[0].sweeps.add(1);
        assert!(!reused(&mut ids, 5), "the second worker has not finished");
        workers[1].sweeps.add(1);
        assert!(reused(&mut ids, 5));
        assert_eq!(ids.enter(WEB).server(server(9), 1).id, id);
    }
}
