//! Two routers on a bad wire.

mod flushed;
mod hostile;
mod kept;
mod mappings;
mod partition;
mod rates;
mod three;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};

use dataplane::clock::Timeout;
use dataplane::service::{Mode, Protocol, State};
use proptest::prelude::*;

use super::talk::DATAGRAM;
use super::*;
use crate::ids::{ServerKey, ServiceKey};
use crate::sync::session::VERSION;
use crate::sync::walk::HEAL;

const MS: Duration = Duration::from_millis(1);

/// Mappings of source NAT that a router has room for.
const MAPPINGS: usize = 16;

fn identity(n: u8) -> Identity {
    let service = ServiceKey { address: ([192, 0, 2, 10], 80).into(), protocol: Protocol::Tcp };
    let address = ([10, 0, 0, n], 8080).into();
    Identity { service, server: ServerKey { address, mode: Mode::Nat }, face: None }
}

fn client(n: u16) -> SocketAddr {
    // Of a few, some are of IPv6; of many, whose bytes are counted, nearly none.
    let is_wide = n < 64 && !n.is_multiple_of(2);
    if is_wide { ([0x2001, 0xDB8, 0, 0, 0, 0, 0, 7], n).into() } else { ([198, 51, 100, 7], n).into() }
}

/// A connection as it was at some time: client, dest, state.
type Moment = (SocketAddr, u32, u8);

/// The same of a mapping of source NAT, whose port outside is in the place of the dest.
fn moment_of(mapping: &Mapping) -> Moment {
    (mapping.inside.into(), mapping.outside.port().into(), mapping.state as u8)
}

/// A table: a slot a connection. Dest `n` is numbered `n + offset`, so that both routers number differently.
struct Router {
    offset: u32,
    slots: Vec<Option<Record>>,
    /// Behind these, one a port inside.
    mappings: BTreeMap<u32, Mapping>,
    /// All that it was ever told, and how many times.
    told: BTreeSet<Moment>,
    tellings: usize,
    /// It does not take over what it is told, as if it did not know the services.
    is_deaf: bool,
    /// What it was told to forget, and how many ticks ago that was ordered.
    forgets: Vec<(Filter, u32)>,
    /// It has not come to an end with that.
    is_sweeping: bool,
    /// Connections are being removed that were flushed here.
    is_flushing: bool,
    /// What it took over from one that had carried out all orders, and from one that had not.
    tellings_after: [usize; 2],
}

impl Router {
    fn new(offset: u32) -> Router {
        Router {
            offset,
            slots: vec![None; 64],
            mappings: BTreeMap::new(),
            told: BTreeSet::new(),
            tellings: 0,
            is_deaf: false,
            forgets: Vec::new(),
            is_sweeping: false,
            is_flushing: false,
            tellings_after: [0, 0],
        }
    }

    fn set(&mut self, slot: usize, dest: u32, state: State) {
        let dest = dest + self.offset;
        self.slots[slot] = Some(Record {
            dest,
            client: client(slot as u16),
            virtual_port: 0,
            state,
            replied: false,
            age: 0,
            local: None,
        });
    }

    fn known(&self) -> BTreeMap<SocketAddr, (u32, State)> {
        let known = self.slots.iter().flatten();
        known.map(|record| (record.client, (record.dest - self.offset, record.state))).collect()
    }
}

impl Store for Router {
    fn record(&self, slot: Slot) -> Option<Record> {
        self.slots.get(slot.number() as usize).copied().flatten()
    }

    fn mapping(&self, slot: Slot) -> Option<Mapping> {
        self.mappings.get(&slot.number().checked_sub(self.slots.len() as u32)?).copied()
    }

    fn identity(&self, dest: u32) -> Option<Identity> {
        Some(identity((dest - self.offset) as u8))
    }

    fn buckets(&self) -> usize {
        (self.slots.len() + MAPPINGS) / 4
    }

    fn slots(&self, bucket: usize) -> Vec<Slot> {
        let slots = (4 * bucket as u32..).take(4).map(Slot::from_number);
        slots.filter(|&slot| self.record(slot).is_some() || self.mapping(slot).is_some()).collect()
    }

    fn pace(&self) -> Pace {
        Pace::for_all([Timeout::from_seconds(900)].into_iter())
    }

    fn due(&self, turn: Turn) -> Vec<Slot> {
        self.slots(turn.bucket)
    }

    fn forget(&mut self, _: u32, filter: &Filter, age: u32) {
        self.forgets.push((*filter, age));
    }

    fn has_forgotten(&self, _: u32) -> bool {
        !self.is_sweeping
    }

    fn is_flushing(&self) -> bool {
        self.is_flushing
    }

    fn adopt_mapping(&mut self, mapping: &Mapping, _: bool) {
        self.told.insert(moment_of(mapping));
        let known = self.mappings.entry(mapping.inside.port().into()).or_insert(*mapping);
        if (known.state as u8) < mapping.state as u8 {
            *known = *mapping;
        }
    }

    fn adopt(&mut self, of: &Identity, record: &Record, _: bool, has_swept: bool) {
        let std::net::IpAddr::V4(server) = of.server.address.ip() else { unreachable!() };
        let n = u32::from(server.octets()[3]);
        assert_eq!(*of, identity(n as u8), "an identity that nobody has");
        self.told.insert((record.client, n, record.state as u8));
        self.tellings += 1;
        self.tellings_after[usize::from(!has_swept)] += 1;
        if self.is_deaf {
            return;
        }
        // What was sent later is in a later state here; the real table goes by age.
        let slot = &mut self.slots[usize::from(record.client.port())];
        if slot.is_none_or(|ours| (ours.state as u8) < record.state as u8) {
            *slot = Some(Record { dest: n + self.offset, ..*record });
        }
    }
}

impl Router {
    fn map(&mut self, port: u16, state: State) -> Slot {
        let inside = SocketAddrV4::new([10, 0, 0, 5].into(), port);
        let outside = SocketAddrV4::new([192, 0, 2, 50].into(), 2000 + port);
        let mapping = Mapping { inside, outside, state, goes_on: false, age: 3 };
        self.mappings.insert(port.into(), mapping);
        Slot::from_number(self.slots.len() as u32 + u32::from(port))
    }
}

/// Two routers, and what is under way between them.
struct Wire {
    now: Duration,
    routers: [Router; 2],
    peers: [Peer; 2],
    /// To the first, to the second.
    under_way: [VecDeque<Vec<u8>>; 2],
    /// All that was ever sent to each.
    recorded: [Vec<Vec<u8>>; 2],
    /// All that has ever been.
    existed: BTreeSet<Moment>,
}

impl Wire {
    fn new() -> Wire {
        let key = Key([9; 32]);
        let peers = [Peer::new(key.clone(), true, 100), Peer::new(key, false, 200)];
        Wire {
            now: Duration::from_secs(1),
            routers: [Router::new(1), Router::new(1000)],
            peers,
            under_way: Default::default(),
            recorded: Default::default(),
            existed: BTreeSet::new(),
        }
    }

    /// A router starts anew: it knows nothing, and numbers its dests otherwise.
    fn restart(&mut self, router: usize, offset: u32) {
        self.routers[router] = Router { told: self.routers[router].told.clone(), ..Router::new(offset) };
        self.peers[router] = Peer::new(Key([9; 32]), router == 0, 1000 + offset as u16);
    }

    /// Whatever a router was told has been so on the other one.
    fn assert_nothing_was_made_up(&self) {
        for router in &self.routers {
            let made_up: Vec<_> = router.told.difference(&self.existed).collect();
            assert!(made_up.is_empty(), "never existed: {made_up:?}");
        }
    }

    fn change(&mut self, router: usize, slot: usize, dest: u32, state: State) {
        self.routers[router].set(slot, dest, state);
        self.existed.insert((client(slot as u16), dest, state as u8));
        self.peers[router].note(self.now, Slot::from_number(slot as u32));
    }

    fn map(&mut self, router: usize, port: u16, state: State) {
        let slot = self.routers[router].map(port, state);
        self.existed.insert(moment_of(&self.routers[router].mappings[&port.into()]));
        self.peers[router].note(self.now, slot);
    }

    /// Lets both speak.
    fn speak(&mut self) {
        self.now += 2 * MS;
        for from in 0..2 {
            while let Some(datagram) = self.peers[from].send(self.now, &self.routers[from]).unwrap() {
                assert!(datagram.len() <= DATAGRAM, "{} bytes", datagram.len());
                self.recorded[1 - from].push(datagram.clone());
                self.under_way[1 - from].push_back(datagram);
            }
        }
    }

    fn deliver(&mut self, to: usize, datagram: &[u8]) {
        self.peers[to].receive(self.now, datagram, &mut self.routers[to]).unwrap();
    }

    /// Delivers all that is under way, in order.
    fn deliver_all(&mut self) {
        for to in 0..2 {
            while let Some(datagram) = self.under_way[to].pop_front() {
                self.deliver(to, &datagram);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.speak();
            self.deliver_all();
        }
    }

    fn standings(&self) -> [Standing; 2] {
        [self.peers[0].standing(), self.peers[1].standing()]
    }
}

#[test]
fn peers_join_and_tell_each_other_of_all_and_then_of_each_change() {
    let mut wire = Wire::new();
    for slot in 0..20 {
        wire.routers[0].set(slot, slot as u32 % 3, State::Established);
    }
    wire.routers[1].set(40, 7, State::FinWait);
    wire.run(50 * MS);
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert_eq!(wire.routers[0].known(), wire.routers[1].known());
    assert_eq!(wire.routers[0].known().len(), 21);

    let before = wire.peers[0].counts().connections_sent;
    wire.change(0, 50, 2, State::Established);
    wire.run(120 * MS);
    assert_eq!(wire.routers[1].known()[&client(50)], (2, State::Established));
    assert_eq!(wire.peers[0].counts().connections_sent, before + 1, "once, and nothing else");
    assert_eq!(wire.peers[1].counts().not_understood, 0);
}

#[test]
fn a_peer_that_joins_while_changes_are_missed_again_and_again_comes_to_an_end() {
    let mut wire = Wire::new();
    for slot in 0..wire.routers[0].slots.len() {
        wire.routers[0].set(slot, 1, State::Established);
    }
    // More often than a bulk takes.
    for _ in 0..100 {
        wire.speak();
        wire.peers[0].missed();
        wire.deliver_all();
    }
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    let bulks = wire.peers[0].counts().bulks;
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.peers[0].counts().bulks, bulks + 1, "what was missed last is told, once");
    assert_eq!(wire.routers[0].known(), wire.routers[1].known());
}

#[test]
fn a_peer_that_falls_silent_is_away_and_hears_all_when_it_comes_back() {
    let mut wire = Wire::new();
    wire.run(50 * MS);
    for step in 0..1500 {
        wire.speak();
        wire.under_way.iter_mut().for_each(VecDeque::clear);
        if step == 1000 {
            wire.change(0, 1, 1, State::Established);
            wire.change(1, 2, 2, State::Established);
        }
    }
    assert_eq!(wire.standings(), [Standing::Away; 2]);
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert_eq!(wire.routers[0].known(), wire.routers[1].known());
    assert_eq!(wire.routers[0].known().len(), 2);
}

#[test]
fn a_router_that_starts_anew_is_told_of_all() {
    let mut wire = Wire::new();
    (0..30).for_each(|slot| wire.routers[0].set(slot, 1, State::Established));
    wire.run(50 * MS);
    // The callee dies and comes back, unknown, at once.
    wire.restart(1, 500);
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert_eq!(wire.routers[0].known(), wire.routers[1].known());
    // The caller dies and comes back.
    wire.restart(0, 700);
    wire.run(200 * MS);
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert_eq!(wire.routers[0].known(), wire.routers[1].known());
}

#[test]
fn what_was_recorded_moves_nothing() {
    let mut wire = Wire::new();
    wire.change(0, 1, 1, State::Established);
    wire.run(50 * MS);
    let recorded = wire.recorded.clone();
    // Also to a router that has started anew and is empty.
    for fresh in [false, true] {
        if fresh {
            wire.restart(1, 500);
        }
        for (to, datagrams) in recorded.iter().enumerate() {
            datagrams.iter().for_each(|datagram| wire.deliver(to, datagram));
        }
        assert_eq!(wire.routers[1].known().len(), usize::from(!fresh));
    }
    let counts = wire.peers[0].counts();
    assert!(counts.replayed >= recorded[0].len() as u64, "{counts:?}");
    assert_eq!(counts.forged, 0);
    wire.run(Duration::from_secs(4));
    assert_eq!(wire.standings(), [Standing::Together; 2], "and the conversation goes on, or begins anew");
    assert_eq!(wire.routers[1].known().len(), 1);
}

#[test]
fn a_peer_with_another_key_stays_away_and_is_counted() {
    let mut wire = Wire::new();
    wire.routers[0].set(1, 1, State::Established);
    wire.peers[1] = Peer::new(Key([8; 32]), false, 200);
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.standings(), [Standing::Away; 2]);
    assert!(wire.peers[1].counts().forged >= 3);
    assert_eq!(wire.peers[1].counts().sent, 0, "nobody answers");
    // The key of one is put right.
    wire.restart(1, 500);
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert_eq!(wire.routers[1].known().len(), 1);
}

#[test]
fn peers_of_different_versions_know_which_and_understand_each_other_once_one_is_updated() {
    let mut wire = Wire::new();
    wire.change(0, 1, 1, State::Established);
    for _ in 0..500 {
        wire.speak();
        for datagram in wire.under_way.iter_mut().flatten() {
            datagram[1] = VERSION + 1;
        }
        wire.deliver_all();
    }
    assert_eq!(wire.standings(), [Standing::Away; 2]);
    // The callee says nothing to a call that it does not understand.
    assert_eq!([0, 1].map(|peer| wire.peers[peer].other_version()), [None, Some(VERSION + 1)]);
    let counts = wire.peers[1].counts();
    assert_eq!((counts.other_version, counts.forged, counts.sent), (counts.received, 0, 0));
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert_eq!(wire.peers[1].other_version(), None);
    assert_eq!(wire.routers[1].known().len(), 1);
}

#[test]
fn a_bulk_that_does_not_fit_into_the_window_comes_whole() {
    let mut wire = Wire::new();
    wire.routers[0].slots = vec![None; 60_000];
    wire.routers[1].slots = vec![None; 60_000];
    for slot in 0..60_000 {
        wire.routers[0].set(slot, slot as u32 % 200, State::Established);
    }
    wire.run(400 * MS);
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert_eq!(wire.routers[0].known(), wire.routers[1].known());
    let counts = wire.peers[0].counts();
    assert!(counts.sent_bytes < 60_000 * 20, "{} bytes a connection", counts.sent_bytes / 60_000);
}

#[test]
fn a_number_that_stands_for_somebody_else_now_is_named_again() {
    let mut wire = Wire::new();
    wire.change(0, 1, 5, State::Established);
    wire.run(50 * MS);
    // The same number, another server: the offset moves by one, and so does what 6 stands for.
    wire.routers[0].offset = 2;
    wire.routers[0].slots[2] = Some(Record { client: client(2), ..wire.routers[0].slots[1].unwrap() });
    wire.peers[0].note(wire.now, Slot::from_number(2));
    wire.run(150 * MS);
    assert_eq!(wire.routers[1].known()[&client(2)], (4, State::Established));
}

/// What the wire does to what is under way.
#[derive(Clone, Debug)]
enum Event {
    Change { router: usize, slot: usize, state: usize },
    Map { router: usize, port: u16, state: usize },
    Deliver { to: usize },
    Lose { to: usize },
    Delay { to: usize },
    Double { to: usize },
    Forge { to: usize, byte: usize },
    Replay { to: usize, which: usize },
    Speak,
    Missed { router: usize },
    Restart { router: usize, offset: u32 },
}

fn event() -> impl Strategy<Value = Event> {
    let to = 0..2usize;
    prop_oneof![
        4 => (to.clone(), 0..64usize, 0..3usize)
            .prop_map(|(router, slot, state)| Event::Change { router, slot, state }),
        2 => (to.clone(), 0..MAPPINGS as u16, 0..3usize)
            .prop_map(|(router, port, state)| Event::Map { router, port, state }),
        8 => to.clone().prop_map(|to| Event::Deliver { to }),
        2 => to.clone().prop_map(|to| Event::Lose { to }),
        2 => to.clone().prop_map(|to| Event::Delay { to }),
        1 => to.clone().prop_map(|to| Event::Double { to }),
        1 => (to.clone(), any::<usize>()).prop_map(|(to, byte)| Event::Forge { to, byte }),
        1 => (to.clone(), any::<usize>()).prop_map(|(to, which)| Event::Replay { to, which }),
        8 => Just(Event::Speak),
        1 => to.clone().prop_map(|router| Event::Missed { router }),
        1 => (to, 1..3000u32).prop_map(|(router, offset)| Event::Restart { router, offset }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_wire_does_both_know_the_same_in_the_end(events in prop::collection::vec(event(), 0..400)) {
        let mut wire = Wire::new();
        let states = [State::Established, State::FinWait, State::Close];
        for event in events {
            match event {
                // Each router changes connections and mappings of its own, which only go on, as those of one client do.
                Event::Map { router, port, state } => {
                    let (port, state) = (port / 2 * 2 + router as u16, states[state]);
                    let ours = wire.routers[router].mappings.get(&port.into());
                    if ours.is_none_or(|ours| (ours.state as u8) < state as u8) {
                        wire.map(router, port, state);
                    }
                }
                Event::Change { router, slot, state } => {
                    let (slot, state) = (slot / 2 * 2 + router, states[state]);
                    let ours = wire.routers[router].slots[slot];
                    if ours.is_none_or(|ours| (ours.state as u8) < state as u8) {
                        wire.change(router, slot, slot as u32 % 5, state);
                    }
                }
                Event::Deliver { to } => {
                    if let Some(datagram) = wire.under_way[to].pop_front() {
                        wire.deliver(to, &datagram);
                    }
                }
                Event::Lose { to } => drop(wire.under_way[to].pop_front()),
                Event::Delay { to } => {
                    if let Some(datagram) = wire.under_way[to].pop_front() {
                        wire.under_way[to].push_back(datagram);
                    }
                }
                Event::Double { to } => {
                    if let Some(datagram) = wire.under_way[to].front().cloned() {
                        wire.under_way[to].push_back(datagram);
                    }
                }
                Event::Forge { to, byte } => {
                    if let Some(mut datagram) = wire.under_way[to].front().cloned() {
                        let byte = byte % datagram.len();
                        datagram[byte] ^= 0x55;
                        wire.deliver(to, &datagram);
                    }
                }
                Event::Replay { to, which } => {
                    if let Some(length) = wire.recorded[to].len().checked_sub(1) {
                        let datagram = wire.recorded[to][which % (length + 1)].clone();
                        wire.deliver(to, &datagram);
                    }
                }
                Event::Speak => wire.speak(),
                Event::Missed { router } => wire.peers[router].missed(),
                Event::Restart { router, offset } => wire.restart(router, offset),
            }
            wire.assert_nothing_was_made_up();
        }
        wire.run(Duration::from_secs(4));
        prop_assert_eq!(wire.standings(), [Standing::Together; 2]);
        prop_assert_eq!(wire.routers[0].known(), wire.routers[1].known());
        prop_assert_eq!(&wire.routers[0].mappings, &wire.routers[1].mappings);
    }
}
