//! Two real tables: busy connections are kept by the peer for as long as they are busy, and what was flushed stays away.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use dataplane::clock::{TICKS_PER_SECOND, Tick};
use dataplane::service::{Persistence, Scheduler, Timeouts};
use dataplane::snapshot::{DestSpec, ServiceSpec, Snapshot};
use dataplane::table::{Client, DestId, HashKey, Slot, Table, Word};

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
    /// What they say is lost.
    is_cut: [bool; 2],
}

fn service(protocol: Protocol, id: u32, seconds: u32) -> ServiceSpec {
    let dest = DestSpec {
        traffic: Arc::new([]),
        ..DestSpec::new(DestId::new(id).unwrap(), "10.0.0.11:8080".parse::<SocketAddr>().unwrap())
    };
    let mut timeouts = Timeouts::default();
    timeouts.0[State::Udp as usize] = seconds;
    timeouts.0[State::CloseWait as usize] = seconds;
    ServiceSpec {
        scheduler: Scheduler::Rr,
        timeouts,
        persistence: (protocol == Protocol::Tcp).then_some(Persistence {
            seconds,
            prefix: 32,
            expire_quiescent: false,
        }),
        dests: vec![dest],
        ..ServiceSpec::new("192.0.2.10:80".parse::<SocketAddr>().unwrap(), protocol, Mode::Nat)
    }
}

impl Side {
    fn new(index: u32, seconds: u32) -> Side {
        let dests = [10 * index + 3, 10 * index + 4];
        let specs = [service(Protocol::Udp, dests[0], seconds), service(Protocol::Tcp, dests[1], seconds)];
        let snapshot = Snapshot::new(1, Vec::new(), &specs, [], dataplane::fib::Fibs::default());
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
        (peer, View { table, snapshot, now, numbers, states: State::ALL, peer: 0, flushes, adoptions })
    }

    /// A packet of a connection has come.
    fn pass(&mut self, now: Duration, port: u16, state: State) {
        let number = self.dests[usize::from(state != State::Udp)];
        let record = Record {
            dest: number,
            client: ([198, 51, 100, 7], port).into(),
            virtual_port: 0,
            state,
            replied: true,
            age: 0,
            local: None,
        };
        self.parts(now).1.take(DestId::new(number).unwrap(), &record, 0);
    }

    /// A packet of a connection has come that changes its state.
    fn change(&mut self, now: Duration, port: u16, state: State) {
        self.pass(now, port, state);
        let mut entries = self.table.entries(0..self.table.buckets());
        let (slot, _) = entries.find(|&(slot, word)| self.port(slot, word) == port).unwrap();
        self.peer.note(now, slot);
    }

    fn port(&self, slot: Slot, word: Word) -> u16 {
        self.snapshot.client_of(&self.table, slot, word).unwrap().port()
    }

    /// The connections that have not expired, by the client's port.
    fn known(&self, now: Duration) -> BTreeSet<u16> {
        let is_live = |word: &Word| {
            let dest = self.snapshot.dest_of(*word).unwrap();
            !self.snapshot.timeout(dest, word.state()).has_passed(word.age(tick(now)))
        };
        let entries = self.table.entries(0..self.table.buckets()).filter(|(_, word)| is_live(word));
        entries.map(|(slot, word)| self.port(slot, word)).collect()
    }
}

fn tick(now: Duration) -> Tick {
    Tick(100_000 + (now.as_millis() * u128::from(TICKS_PER_SECOND) / 1000) as u64)
}

impl Two {
    fn new(seconds: u32) -> Two {
        let sides = [0, 1].map(|index| Side::new(index, seconds));
        let mut two = Two { now: Duration::ZERO, sides, is_cut: [false; 2] };
        two.run(Duration::from_secs(1), |_| {});
        assert!(two.sides.iter().all(|side| side.peer.standing() == Standing::Together));
        two
    }

    /// All is flushed on the first.
    fn flush(&mut self) {
        let Side { table, snapshot, flushes, peer, .. } = &mut self.sides[0];
        flushes.remember(Filter::default(), tick(self.now), Weak::new());
        peer.forget(self.now, Filter::default());
        flush::remove(table, snapshot, 0..table.buckets(), |_, _| true);
    }

    /// What both know.
    fn known(&self) -> [BTreeSet<u16>; 2] {
        [0, 1].map(|side: usize| self.sides[side].known(self.now))
    }

    /// Lets both speak, and something happen before each step.
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
                for datagram in datagrams.into_iter().filter(|_| !self.is_cut[from]) {
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
fn the_peer_knows_where_clients_come_back_to_for_as_long() {
    for seconds in [5, 90, 300] {
        let mut two = Two::new(seconds);
        two.sides[0].change(two.now, 0, State::Template);
        two.run(Duration::from_secs(1), |_| {});
        assert_eq!(two.known(), [BTreeSet::from([0]), BTreeSet::from([0])]);
        let templates: Vec<u32> = two
            .sides
            .iter()
            .flat_map(|side| side.snapshot.dests())
            .map(|dest| dest.gauge.templates())
            .collect();
        assert_eq!(templates, [0, 1, 0, 1]);
        // Told again and again, it is no younger than it is.
        two.run(Duration::from_secs(u64::from(seconds) + 3), |_| {});
        assert_eq!(two.known(), [BTreeSet::new(), BTreeSet::new()]);
    }
}

#[test]
fn what_is_flushed_on_one_router_is_gone_on_both_and_what_begins_after_it_stays() {
    let mut two = Two::new(300);
    let second = Duration::from_secs(1);
    (1..=20).for_each(|port| two.sides[0].pass(two.now, port, State::Established));
    two.run(65 * second, |_| {});
    assert_eq!(two.sides[1].known(two.now).len(), 20);

    let filter = Filter { client: Some([198, 51, 100, 7].into()), ..Filter::default() };
    let now = two.now;
    let Side { table, snapshot, flushes, peer, .. } = &mut two.sides[0];
    flushes.remember(filter, tick(now), Weak::new());
    peer.forget(now, filter);
    let removed = flush::remove(table, snapshot, 0..table.buckets(), |slot, word| {
        filter.matches_word(table, snapshot, slot, word)
    });
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
    two.run(10 * Duration::from_secs(1), |_| {});
    two.flush();
    two.is_cut[0] = true;
    // It tells of all, of half of them as if they had just changed.
    let Side { peer, table, .. } = &mut two.sides[1];
    peer.missed();
    let slots = table.entries(0..table.buckets()).map(|(slot, _)| slot);
    slots.step_by(2).for_each(|slot| peer.note(two.now, slot));
    two.run(Duration::from_secs(1), |_| {});
    assert_eq!(two.sides[0].known(two.now), BTreeSet::new());
    assert!(two.sides[0].adoptions.stale >= 20);
    two.is_cut[0] = false;
    two.run(Duration::from_secs(1), |_| {});
    assert_eq!(two.known(), [BTreeSet::new(), BTreeSet::new()]);
}

#[test]
fn what_begins_right_after_a_flush_is_known_to_the_peer_however_late_that_hears_of_the_flush() {
    let second = Duration::from_secs(1);
    // All phases of a tick; the order comes at once, once it is sent again, or with the next conversation.
    for phase in (0..250).step_by(25) {
        for late in [0, 300, 2500].map(Duration::from_millis) {
            let mut two = Two::new(300);
            two.run(Duration::from_millis(phase), |_| {});
            (1..=20).for_each(|port| two.sides[0].change(two.now, port, State::Established));
            two.run(second, |_| {});
            assert_eq!(two.sides[1].known(two.now).len(), 20);
            two.flush();
            two.is_cut = [!late.is_zero(); 2];
            // They come back at once, and fall silent.
            (21..=40).for_each(|port| two.sides[0].change(two.now, port, State::Established));
            two.run(late, |_| {});
            two.is_cut = [false; 2];
            two.run(2 * second, |_| {});
            let expected = BTreeSet::from_iter(21..=40);
            assert_eq!(two.known(), [expected.clone(), expected], "{phase} ms, {late:?}");
        }
    }
}

#[test]
fn a_peer_that_starts_anew_learns_what_began_right_after_a_flush() {
    for seconds in [300, 4 * 3600] {
        let mut two = Two::new(seconds);
        two.flush();
        (1..=20).for_each(|port| two.sides[0].change(two.now, port, State::CloseWait));
        two.run(Duration::from_secs(5), |_| {});
        two.sides[1] = Side { peer: Peer::new(Key([9; 32]), false, 5000), ..Side::new(1, seconds) };
        two.run(Duration::from_secs(5), |_| {});
        let expected = BTreeSet::from_iter(1..=20);
        assert_eq!(two.known(), [expected.clone(), expected], "timeout of {seconds} s");
    }
}

#[test]
fn what_counts_in_units_of_a_minute_is_flushed_whatever_the_clocks_show() {
    let phases = [0, 1, 127, 128, 254, 255];
    for (seen, told) in phases.iter().flat_map(|&seen| phases.map(|told| (1 << 20 | seen, 2048 + told))) {
        for (ahead, swept) in phases.iter().flat_map(|&ahead| phases.map(|swept| (ahead, swept))) {
            let mut side = Side::new(1, 4 * 3600);
            let dest = DestId::new(side.dests[1]).unwrap();
            // How the one that has seen it tells of it.
            let word = Word::new(Client::new(1, 1), dest).seen(Tick(seen), true);
            let age = word.age(Tick(seen + told));
            let record = Record {
                local: None,
                dest: side.dests[1],
                client: ([198, 51, 100, 7], 1).into(),
                virtual_port: 0,
                state: State::CloseWait,
                replied: false,
                age,
            };
            let (_, mut view) = side.parts(Duration::ZERO);
            view.now = Tick(seen + told + ahead);
            view.take(dest, &record, 0);
            view.flushes.obey(0, 0, Filter::default(), Tick(seen + ahead), view.table.buckets());
            let now = Tick(seen + told + ahead + swept);
            let removed = view.flushes.go_on(view.table, view.snapshot, now);
            assert_eq!(removed, 1, "seen {seen}, told {told}, ahead {ahead}, swept {swept}");
        }
    }
}
