//! Two real tables: busy connections are kept by the peer for as long as they are busy, and what was flushed stays away.

use std::sync::Arc;

use dataplane::clock::{TICKS_PER_SECOND, Tick};
use dataplane::counters::Gauge;
use dataplane::scheduler::Cursor;
use dataplane::service::{Scheduler, Timeouts};
use dataplane::snapshot::{DestSpec, ServiceSpec, Snapshot};
use dataplane::table::{DestId, HashKey, Table};

use super::*;
use crate::flush;
use crate::sync::flushes::Flushes;
use crate::sync::store::{Adoptions, Numbers, View};

const STEP: Duration = Duration::from_millis(5);

/// A router with a service of UDP by NAT, and one of TCP.
struct Side {
    peer: Peer,
    table: Table,
    snapshot: Snapshot,
    numbers: Numbers,
    flushes: Flushes,
    adoptions: Adoptions,
    /// The numbers of its two dests, which are not those of the other router.
    dests: [u32; 2],
}

struct Two {
    now: Duration,
    sides: [Side; 2],
}

fn service(protocol: Protocol, id: u32, seconds: u32) -> ServiceSpec {
    let dest = DestSpec {
        id: DestId::new(id).unwrap(),
        address: "10.0.0.11:8080".parse().unwrap(),
        weight: 1,
        last_weight: 1,
        up: true,
        listed: true,
        reset: false,
        traffic: Arc::new([]),
        gauge: Arc::<Gauge>::default(),
    };
    let mut timeouts = Timeouts::default();
    timeouts.0[State::Udp as usize] = seconds;
    timeouts.0[State::CloseWait as usize] = seconds;
    ServiceSpec {
        address: "192.0.2.10:80".parse().unwrap(),
        protocol,
        mode: Mode::Nat,
        scheduler: Scheduler::Rr,
        flags: Vec::new(),
        cursor: Cursor::default(),
        timeouts,
        live: true,
        sloppy_tcp: false,
        dests: vec![dest],
    }
}

impl Side {
    fn new(index: u32, seconds: u32) -> Side {
        let dests = [10 * index + 3, 10 * index + 4];
        let specs = [service(Protocol::Udp, dests[0], seconds), service(Protocol::Tcp, dests[1], seconds)];
        let snapshot = Snapshot::new(1, Vec::new(), &specs, [], Default::default());
        let mut numbers = Numbers::default();
        numbers.follow(&snapshot);
        Side {
            peer: Peer::new(Key([9; 32]), index == 0, 100 * index as u16),
            table: Table::new(64, HashKey { blind: 5, factor: 7 + 2 * u64::from(index) }),
            snapshot,
            numbers,
            flushes: Flushes::default(),
            adoptions: Adoptions::default(),
            dests,
        }
    }

    /// What there is to speak with, and what it speaks of.
    fn parts(&mut self, now: Duration) -> (&mut Peer, View<'_>) {
        let Side { peer, table, snapshot, numbers, flushes, adoptions, .. } = self;
        let now = tick(now);
        (peer, View { table, snapshot, now, numbers, states: State::ALL, flushes, adoptions })
    }

    /// A packet of a connection has come.
    fn pass(&mut self, now: Duration, port: u16, state: State) {
        let number = self.dests[usize::from(state != State::Udp)];
        let record = Record { dest: number, client: client(port), state, replied: true, age: 0 };
        self.parts(now).1.take(DestId::new(number).unwrap(), &record, 0);
    }

    /// A packet of a connection has come that changes its state.
    fn change(&mut self, now: Duration, port: u16, state: State) {
        self.pass(now, port, state);
        let mut entries = self.table.entries(0..self.table.buckets());
        let (slot, _) = entries.find(|(_, word)| word.client().socket().port() == port).unwrap();
        self.peer.note(now, slot);
    }

    /// The connections that have not expired, by the client's port.
    fn known(&self, now: Duration) -> BTreeSet<u16> {
        let is_live = |word: &dataplane::table::Word| {
            let dest = self.snapshot.dest_of(*word).unwrap();
            !self.snapshot.timeout(dest, word.state()).has_passed(word.age(tick(now)))
        };
        let words = self.table.words(0..self.table.buckets()).filter(is_live);
        words.map(|word| word.client().socket().port()).collect()
    }
}

fn tick(now: Duration) -> Tick {
    Tick(100_000 + (now.as_millis() * u128::from(TICKS_PER_SECOND) / 1000) as u64)
}

impl Two {
    fn new(seconds: u32) -> Two {
        let mut two = Two { now: Duration::ZERO, sides: [0, 1].map(|index| Side::new(index, seconds)) };
        two.run(Duration::from_secs(1), |_| {});
        assert!(two.sides.iter().all(|side| side.peer.standing() == Standing::Together));
        two
    }

    /// Lets both speak over a good wire, and something happen before each step.
    fn run(&mut self, time: Duration, mut each: impl FnMut(&mut Two)) {
        let until = self.now + time;
        while self.now < until {
            each(self);
            self.now += STEP;
            for from in 0..2 {
                let mut datagrams = Vec::new();
                let (peer, view) = self.sides[from].parts(self.now);
                while let Some(datagram) = peer.send(self.now, &view).unwrap() {
                    datagrams.push(datagram);
                }
                let (peer, mut view) = self.sides[1 - from].parts(self.now);
                for datagram in datagrams {
                    peer.receive(self.now, &datagram, &mut view).unwrap();
                }
            }
            for Side { flushes, table, snapshot, .. } in &mut self.sides {
                flushes.go_on(table, snapshot, tick(self.now));
            }
        }
    }
}

#[test]
fn the_peer_keeps_what_is_busy_whatever_the_timeout_and_forgets_what_is_silent() {
    for seconds in [2, 5, 30, 90] {
        let mut two = Two::new(seconds);
        let began = two.now;
        (1..=3).for_each(|port| two.sides[0].pass(began, port, State::Udp));
        two.sides[0].pass(began, 4, State::CloseWait);
        let long = Duration::from_secs(200);
        two.run(long, |two| {
            let (now, since) = (two.now, two.now - began);
            // The others of the client fall silent.
            if since.as_millis().is_multiple_of(1000) {
                two.sides[0].pass(now, 1, State::Udp);
                two.sides[0].pass(now, 4, State::CloseWait);
            }
            let known = two.sides[1].known(now);
            if since > Duration::from_secs(65) {
                assert!(known.contains(&1) && known.contains(&4), "{seconds} s: {known:?} after {since:?}");
            }
            if since > 2 * Duration::from_secs(seconds.into()) {
                assert!(!known.contains(&2) && !known.contains(&3), "{seconds} s: {known:?} after {since:?}");
            }
        });
        let told = two.sides[0].peer.counts().connections_sent;
        let most = 2 * (long.as_secs() * 3 / u64::from(seconds.min(60)) + 8) + 2 * 4;
        assert!(told <= most, "{seconds} s: told {told} times, of {most}");
    }
}

#[test]
fn what_is_flushed_on_one_router_is_gone_on_both_and_what_begins_after_it_stays() {
    let mut two = Two::new(300);
    let second = Duration::from_secs(1);
    (1..=20).for_each(|port| two.sides[0].pass(two.now, port, State::Established));
    two.run(65 * second, |_| {});
    assert_eq!(two.sides[1].known(two.now).len(), 20);

    let filter = Filter { client: Some(*client(1).ip()), ..Filter::default() };
    let now = two.now;
    let Side { table, snapshot, flushes, peer, .. } = &mut two.sides[0];
    flushes.remember(filter, tick(now));
    peer.forget(now, filter);
    let removed =
        flush::remove(table, snapshot, 0..table.buckets(), |word| filter.matches_word(snapshot, word));
    assert_eq!(removed, 20);
    two.run(2 * STEP, |_| {});
    assert_eq!(two.sides[1].known(two.now), BTreeSet::new());
    let gauges = two.sides.iter().flat_map(|side| side.snapshot.dests());
    assert!(gauges.map(|dest| dest.gauge.get()).all(|gauge| gauge == Default::default()));

    // Clients come back, some at once: their connections are others.
    (16..=20).for_each(|port| two.sides[0].change(two.now, port, State::Established));
    two.run(second, |_| {});
    assert_eq!(two.sides[1].known(two.now), (16..=20).collect());
    (11..=15).for_each(|port| two.sides[0].pass(two.now, port, State::Established));
    two.run(130 * second, |_| {});
    let known = [0, 1].map(|side: usize| two.sides[side].known(two.now));
    assert_eq!(known, [(11..=20).collect(), (11..=20).collect()]);
}

#[test]
fn a_peer_that_has_not_heard_of_a_flush_yet_does_not_bring_back_what_is_flushed() {
    let mut two = Two::new(300);
    (1..=20).for_each(|port| two.sides[1].pass(two.now, port, State::Established));
    let now = two.now;
    two.sides[0].flushes.remember(Filter::default(), tick(now));
    two.run(65 * Duration::from_secs(1), |_| {});
    assert_eq!(two.sides[0].known(two.now), BTreeSet::new());
    assert!(two.sides[0].adoptions.stale >= 20);
}
