//! The connection table, as peers see it: by who the dests are, not by their numbers; and behind it mappings of source NAT, by their addresses.

use dataplane::changes::{is_shared, is_told};
use dataplane::clock::{Tick, Timeout};
use dataplane::engine::{News, adopt};
use dataplane::service::State;
use dataplane::snapshot::{Dest, Snapshot};
use dataplane::snat::Placed;
use dataplane::table::{DestId, FLAG_REPLIED, Slot, Table, Word};
use dataplane::told::Adopted;
use foldhash::HashMap;

use super::flushes::{Flushes, Seen, Teller};
use super::peer::Store;
use super::walk::{Pace, Turn};
use super::wire::{Identity, Mapping, Record};
pub use crate::admin::api::Adopted as Adoptions;
use crate::flush::Filter;
use crate::ids::{Face, ServerKey, ServiceKey};

/// Ticks that a change may take from there to here: two seconds.
pub const ON_THE_WAY: u32 = 8;

/// What is found out of a snapshot once: which of our dests an identity is, and how often peers have to hear of busy
/// connections.
#[derive(Debug)]
pub struct Numbers {
    /// The snapshot that it is of.
    generation: Option<u64>,
    by_identity: HashMap<Identity, DestId>,
    pace: Pace,
}

impl Default for Numbers {
    fn default() -> Self {
        let pace = Pace::for_all(std::iter::empty());
        Numbers { generation: None, by_identity: HashMap::default(), pace }
    }
}

impl Numbers {
    /// Follows the snapshot.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        if self.generation != Some(snapshot.generation) {
            self.generation = Some(snapshot.generation);
            self.by_identity.clear();
            self.by_identity.extend(snapshot.dests().map(|dest| (identity(snapshot, dest), dest.id)));
            self.pace = Pace::for_all(timeouts(snapshot).chain(snapshot.snats.timeouts()));
        }
    }

    /// Our dest of this identity.
    pub fn dest(&self, identity: &Identity) -> Option<DestId> {
        self.by_identity.get(identity).copied()
    }
}

/// The timeouts of connections that have to be kept as long as they are busy.
fn timeouts(snapshot: &Snapshot) -> impl Iterator<Item = Timeout> {
    snapshot.services.iter().flat_map(|service| {
        let template = service.persistent.map(|_| State::Template);
        let kept = State::of_protocol(service.protocol).filter(|&state| is_kept(state)).chain(template);
        kept.map(|state| service.timeout(state))
    })
}

/// Whether a connection in this state is told of, and has to be as long as it goes on.
fn is_kept(state: State) -> bool {
    is_told(state, true) && !matches!(state, State::TimeWait | State::Close)
}

/// The table, at one moment and under one snapshot.
pub struct View<'a> {
    /// The connections.
    pub table: &'a Table,
    /// Services and servers.
    pub snapshot: &'a Snapshot,
    /// The moment.
    pub now: Tick,
    /// Has followed the snapshot.
    pub numbers: &'a Numbers,
    /// The states that peers are told of.
    pub states: &'a [State],
    /// Which peer it is that tells and is told.
    pub peer: usize,
    /// What is not taken over, since it has been flushed.
    pub flushes: &'a mut Flushes,
    /// Counts what peers tell.
    pub adoptions: &'a mut Adoptions,
}

impl Store for View<'_> {
    fn record(&self, slot: Slot) -> Option<Record> {
        if self.place(slot).is_some() {
            return None;
        }
        let word = self.table.connection(slot).filter(|&word| self.is_told(word))?;
        let client = self.snapshot.client_of(self.table, slot, word)?;
        let (state, age) = (word.state(), word.age(self.now));
        let replied = word.flags() & FLAG_REPLIED != 0;
        let dest = self.snapshot.dest_of(word)?;
        let virtual_port = match dest.is_of_all_ports() {
            true => self.snapshot.virtual_of(self.table, slot, word)?.port(),
            false => 0,
        };
        let local = self.snapshot.local_port_of(self.table, slot, word);
        Some(Record { dest: word.dest_number() as u32, client, virtual_port, state, replied, age, local })
    }

    fn identity(&self, dest: u32) -> Option<Identity> {
        let dest = self.snapshot.dest(DestId::new(dest)?)?;
        Some(identity(self.snapshot, dest))
    }

    fn mapping(&self, slot: Slot) -> Option<Mapping> {
        let told = self.snapshot.snats.at(self.place(slot)?, self.now)?;
        self.states.contains(&told.state).then_some(told)
    }

    fn buckets(&self) -> usize {
        self.table.buckets() + self.snapshot.snats.buckets()
    }

    fn slots(&self, bucket: usize) -> Vec<Slot> {
        if let Some(bucket) = bucket.checked_sub(self.table.buckets()) {
            return self.mappings(bucket, |_| true);
        }
        let entries = self.table.entries(bucket..bucket + 1);
        entries.filter(|&(_, word)| self.is_told(word)).map(|(slot, _)| slot).collect()
    }

    fn adopt(&mut self, identity: &Identity, record: &Record, live: bool, has_swept: bool) {
        let teller = Teller { peer: self.peer, is_live: live, has_swept };
        match self.numbers.dest(identity) {
            Some(dest) if !self.is_flushed(identity, dest, record, teller) => {
                self.take(dest, record, if live { ON_THE_WAY } else { 0 });
            }
            _ => self.adoptions.stale += 1,
        }
    }

    fn adopt_mapping(&mut self, mapping: &Mapping, live: bool) {
        let slack = if live { ON_THE_WAY } else { 0 };
        self.count(self.snapshot.snats.adopt(self.now, mapping, slack));
    }

    fn pace(&self) -> Pace {
        self.numbers.pace
    }

    fn due(&self, turn: Turn) -> Vec<Slot> {
        if let Some(bucket) = turn.bucket.checked_sub(self.table.buckets()) {
            return self.mappings(bucket, |Placed { told, timeout, .. }| {
                let timeout = is_kept(told.state).then_some(*timeout);
                self.numbers.pace.has_come(turn, timeout, told.age)
            });
        }
        let entries = self.table.entries(turn.bucket..turn.bucket + 1);
        let is_due = |word: Word| {
            self.snapshot.dest_of(word).is_some_and(|dest| {
                let (state, age) = (word.state(), word.age(self.now));
                let timeout = is_kept(state).then(|| self.snapshot.timeout(dest, state));
                self.numbers.pace.has_come(turn, timeout, age)
            })
        };
        let due = entries.filter(|&(_, word)| self.is_told(word) && is_due(word));
        due.map(|(slot, _)| slot).collect()
    }

    fn forget(&mut self, number: u32, filter: &Filter, age: u32) {
        let at = Tick(self.now.0.saturating_sub(age.into()));
        self.flushes.obey(self.peer, number, *filter, at, self.table.buckets());
    }

    fn has_forgotten(&self, number: u32) -> bool {
        self.flushes.is_carried_out(self.peer, number)
    }

    fn is_flushing(&self) -> bool {
        self.flushes.is_under_way()
    }
}

impl View<'_> {
    /// Takes over a connection of a dest of ours, unless what is known of it is fresher. `slack` is how many ticks older
    /// the news of its state may be.
    pub fn take(&mut self, dest: DestId, record: &Record, slack: u32) {
        let &Record { client, virtual_port, state, age, local, .. } = record;
        let flags = if record.replied { FLAG_REPLIED } else { 0 };
        let news = News { client, dest, virtual_port, state, flags, age, local, slack };
        self.count(adopt(self.table, self.snapshot, self.now, &news));
    }

    fn count(&mut self, adopted: Adopted) {
        let count = match adopted {
            Adopted::New => &mut self.adoptions.new,
            Adopted::Changed => &mut self.adoptions.changed,
            Adopted::Known => &mut self.adoptions.known,
            Adopted::Stale => &mut self.adoptions.stale,
            Adopted::NoRoom => &mut self.adoptions.no_room,
        };
        *count += 1;
    }
}

impl View<'_> {
    /// Which place of a mapping a slot is, if it is one behind those of connections.
    fn place(&self, slot: Slot) -> Option<usize> {
        (slot.number() as usize).checked_sub(self.table.slots())
    }

    /// Those of the mappings in a bucket of which peers should know.
    fn mappings(&self, bucket: usize, is_due: impl Fn(&Placed) -> bool) -> Vec<Slot> {
        let placed = self.snapshot.snats.in_bucket(bucket, self.now).into_iter();
        let due = placed.filter(|placed| self.states.contains(&placed.told.state) && is_due(placed));
        let slot = |placed: Placed| u32::try_from(self.table.slots() + placed.place).ok();
        due.filter_map(slot).map(Slot::from_number).collect()
    }

    fn is_told(&self, word: Word) -> bool {
        is_shared(word) && self.states.contains(&word.state())
    }

    /// Whether a peer tells of what has been flushed.
    fn is_flushed(&self, identity: &Identity, dest: DestId, record: &Record, teller: Teller) -> bool {
        let dest = self.snapshot.dest(dest);
        let is_coarse = dest.is_some_and(|dest| self.snapshot.timeout(dest, record.state).is_coarse());
        let seen = Seen { at: Tick(self.now.0.saturating_sub(record.age.into())), is_coarse };
        let Identity { service, server, .. } = *identity;
        self.flushes
            .covers(seen, teller, |filter| filter.matches(service, server.address, record.client.ip()))
    }
}

/// Who a dest is.
pub fn identity(snapshot: &Snapshot, dest: &Dest) -> Identity {
    let service = &snapshot.services[dest.service as usize];
    let own = ServiceKey { address: dest.virtual_address, protocol: service.protocol };
    let server = ServerKey { address: dest.address, mode: service.mode };
    // Of the service of a mark this is one of its addresses.
    match snapshot.dest(dest.home).filter(|home| home.id != dest.id) {
        None => Identity { service: own, server, face: None },
        Some(home) => {
            let protocol = snapshot.services[home.service as usize].protocol;
            let face = Face { address: own.address.ip(), protocol: own.protocol };
            Identity {
                service: ServiceKey { address: home.virtual_address, protocol },
                server,
                face: Some(face),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use dataplane::fib::Fibs;
    use dataplane::service::{Mode, Persistence, Protocol};
    use dataplane::snapshot::{DestSpec, Part, ServiceSpec};
    use dataplane::snat::{Class, Share, Snat, SnatSpec, SnatTimeouts, Snats};
    use dataplane::table::{Client, HashKey};
    use dataplane::wire::transport::{ACK, SYN};

    use super::*;

    #[test]
    fn peers_hear_of_the_configured_states_among_those_that_can_be_told() {
        let table = Table::new(16, HashKey { blind: 1, factor: 3 });
        let states = [State::Established, State::TimeWait, State::SynRecv];
        let slots = [0, 1, 2].map(Slot::from_number);
        for (slot, state) in slots.into_iter().zip(states) {
            let word = Word::new(Client::new(slot.number(), 80), DestId::new(1).unwrap()).with_state(state);
            table.replace(slot, Word::EMPTY, word).unwrap();
        }
        let server = |address: &str| address.parse::<SocketAddr>().unwrap();
        let dest = DestSpec::new(DestId::new(1).unwrap(), server("10.0.0.11:8080"));
        let service = ServiceSpec::new(server("192.0.2.10:80"), Protocol::Tcp, Mode::Nat);
        let service = ServiceSpec { dests: vec![dest], ..service };
        let snapshot = Snapshot::new(1, Vec::new(), &[service], [], Fibs::default());
        let (numbers, mut adoptions) = (Numbers::default(), Adoptions::default());
        let mut flushes = Flushes::default();
        let mut told = |states: &[State]| {
            let view = View {
                table: &table,
                snapshot: &snapshot,
                now: Tick(1),
                numbers: &numbers,
                states,
                peer: 0,
                flushes: &mut flushes,
                adoptions: &mut adoptions,
            };
            assert_eq!(
                view.slots(0),
                slots.into_iter().filter(|&slot| view.record(slot).is_some()).collect::<Vec<_>>()
            );
            view.slots(0)
        };
        assert_eq!(told(&states), slots[..2]);
        assert_eq!(told(&[State::Established]), slots[..1]);
    }

    /// A router with a pool of source NAT, as one of two.
    fn of_pool(number: usize) -> Snapshot {
        let spec = SnatSpec {
            inside: vec![(0x0A00_0000, 24)],
            outside: vec![0xC000_0232],
            ports: 2000..=2099,
            block: 10,
            limit: 20,
            mappings: 100,
            timeouts: SnatTimeouts::default(),
        };
        let idle = SnatSpec { inside: vec![(0x0A01_0000, 16)], outside: vec![0xC000_0233], ..spec.clone() };
        let key = HashKey { blind: 1, factor: 3 };
        let snat = |spec| std::sync::Arc::new(Snat::new(spec, key, Share { number, of: 2 }));
        Snapshot::new(1, Vec::new(), &[], [], Fibs::default())
            .with_snats(Snats::new(vec![snat(idle), snat(spec)]))
    }

    #[test]
    fn mappings_are_told_behind_connections_and_taken_over() {
        let table = Table::new(16, HashKey { blind: 1, factor: 3 });
        let (routers, numbers) = ([of_pool(0), of_pool(1)], Numbers::default());
        let (mut flushes, mut adoptions) = (Flushes::default(), Adoptions::default());
        let inside = Client::new(0x0A00_0005, 4000);
        let leaves = |now, flags| routers[0].snats.leaves(now, Class::Tcp, inside, flags, 0).unwrap();
        leaves(Tick(100), SYN);
        let (mapping, place) = leaves(Tick(100), ACK);
        let mut known = |router: usize, told: Option<&Mapping>, states: &[State]| {
            let mut view = View {
                table: &table,
                snapshot: &routers[router],
                now: Tick(104),
                numbers: &numbers,
                states,
                peer: 0,
                flushes: &mut flushes,
                adoptions: &mut adoptions,
            };
            if let Some(told) = told {
                view.adopt_mapping(told, false);
            }
            let slots: Vec<Slot> = (0..view.buckets()).flat_map(|bucket| view.slots(bucket)).collect();
            assert!(slots.iter().all(|&slot| view.record(slot).is_none()));
            slots.into_iter().map(|slot| (slot, view.mapping(slot).unwrap())).collect::<Vec<_>>()
        };
        let told = known(0, None, State::ALL);
        let [(slot, ours)] = told[..] else { panic!("{told:?}") };
        assert_eq!(Some(slot.number() as usize - table.slots()), place);
        assert_eq!((ours.inside, ours.outside.port(), ours.age), (inside.socket(), mapping.port, 4));
        assert_eq!(known(0, None, &[State::Udp]), [], "states leave it out");
        assert_eq!(known(1, None, State::ALL), []);
        assert_eq!(known(1, Some(&ours), State::ALL), [(slot, ours)]);
        assert_eq!((adoptions.new, routers[1].snats.mappings()), (1, vec![0, 1]));
    }

    /// A router with the service of mark 10, at two addresses: its dests are numbered from this one on, at home and then at each address.
    fn of_mark(first: u32) -> Snapshot {
        let number = |n| DestId::new(first + n).unwrap();
        let server = "10.0.0.11:0".parse::<SocketAddr>().unwrap();
        let home = ServiceSpec {
            part: Some(Part::Home),
            persistence: Some(Persistence { seconds: 300, prefix: 32, expire_quiescent: false }),
            dests: vec![DestSpec { traffic: [].into(), ..DestSpec::new(number(0), server) }],
            ..ServiceSpec::new(ServiceKey::of_mark(10, false).address, Protocol::Tcp, Mode::Nat)
        };
        let face = |(address, protocol, n): (&str, Protocol, u32)| ServiceSpec {
            address: address.parse().unwrap(),
            protocol,
            part: Some(Part::Face(0)),
            dests: vec![DestSpec { id: number(n), home: Some(number(0)), ..home.dests[0].clone() }],
            ..home.clone()
        };
        let faces = [
            ("192.0.2.10:0", Protocol::Tcp, 1),
            ("192.0.2.11:0", Protocol::Tcp, 2),
            ("192.0.2.11:0", Protocol::Udp, 3),
        ];
        let specs: Vec<_> = std::iter::once(home.clone()).chain(faces.map(face)).collect();
        Snapshot::new(1, Vec::new(), &specs, [], Fibs::default())
    }

    #[test]
    fn what_is_of_a_mark_is_told_by_its_face_and_templates_by_their_home() {
        let (ours, theirs) = (of_mark(1), of_mark(40));
        let (mut numbers, mut adoptions, mut flushes) = Default::default();
        Numbers::follow(&mut numbers, &ours);
        let table = Table::new(16, HashKey { blind: 1, factor: 3 });
        let mut view = View {
            table: &table,
            snapshot: &ours,
            now: Tick(100),
            numbers: &numbers,
            states: State::ALL,
            peer: 0,
            flushes: &mut flushes,
            adoptions: &mut adoptions,
        };
        let states = [State::Template, State::Established, State::Established, State::Udp];
        for (dest, state) in (40..).zip(states) {
            let identity = identity(&theirs, theirs.dest(DestId::new(dest).unwrap()).unwrap());
            assert_eq!(identity.service.to_string(), "mark/10");
            let is_template = state == State::Template;
            let record = Record {
                dest,
                client: ([198, 51, 100, 7], if is_template { 0 } else { dest as u16 }).into(),
                virtual_port: if is_template { 0 } else { 80 },
                state,
                replied: true,
                age: 0,
                local: None,
            };
            view.adopt(&identity, &record, true, false);
            let mut known = (0..table.buckets()).flat_map(|bucket| view.slots(bucket));
            let told = known.find_map(|slot| view.record(slot).filter(|told| told.dest == dest - 39));
            assert_eq!(told, Some(Record { dest: dest - 39, ..record }));
        }
        let [home, faces @ ..] = [1, 2, 3, 4].map(|id| ours.dest(DestId::new(id).unwrap()).unwrap());
        assert_eq!((home.gauge.templates(), home.gauge.get()), (1, (2, 1)), "one gauge");
        assert!(faces.iter().all(|face| std::sync::Arc::ptr_eq(&face.gauge, &home.gauge)));
    }
}
