//! A real table, under a real snapshot.

use std::net::SocketAddrV4;
use std::sync::Arc;

use dataplane::clock::Tick;
use dataplane::service::{Mode, Protocol, Scheduler};
use dataplane::snapshot::{DestSpec, ServiceSpec, Snapshot};
use dataplane::table::{HashKey, Table};

use super::*;
use crate::ids::{ServerKey, ServiceKey};
use crate::sync::flushes::Flushes;
use crate::sync::store::{Adoptions, Numbers};
use crate::sync::wire::Identity;

struct Rig {
    table: Table,
    snapshot: Snapshot,
    numbers: Numbers,
    flushes: Flushes,
    adoptions: Adoptions,
    now: Tick,
}

fn socket(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

/// A service with one server of this number.
fn service(protocol: Protocol, mode: Mode, live: bool, id: u32) -> ServiceSpec {
    let dest = DestSpec {
        traffic: Arc::new([]),
        ..DestSpec::new(
            DestId::new(id).unwrap(),
            socket(if mode == Mode::Nat { "10.0.0.11:8080" } else { "10.0.0.11:80" }),
        )
    };
    ServiceSpec {
        scheduler: Scheduler::Rr,
        live,
        dests: vec![dest],
        ..ServiceSpec::new(socket("192.0.2.10:80"), protocol, mode)
    }
}

impl Rig {
    /// With a service by NAT over TCP, and one by direct routing over UDP.
    fn new(live: bool) -> Rig {
        let specs = [service(Protocol::Tcp, Mode::Nat, live, 7), service(Protocol::Udp, Mode::Dr, live, 9)];
        let snapshot = Snapshot::new(1, Vec::new(), &specs, [], dataplane::fib::Fibs::default());
        let mut numbers = Numbers::default();
        numbers.follow(&snapshot);
        let table = Table::new(64, HashKey { blind: 5, factor: 7 });
        let (flushes, adoptions) = Default::default();
        Rig { table, snapshot, numbers, flushes, adoptions, now: Tick(100_000) }
    }

    fn view(&mut self) -> View<'_> {
        let Rig { table, snapshot, numbers, flushes, adoptions, now } = self;
        View { table, snapshot, now: *now, numbers, states: State::ALL, peer: 0, flushes, adoptions }
    }

    fn take_over(&mut self, state: State, timeout: u32) {
        assert!(self.view().take_over(&connection(state, timeout)));
    }

    /// All connections, as they would be told of.
    fn told(&mut self) -> Vec<Connection> {
        let view = self.view();
        let slots = (0..Router::buckets(&view)).flat_map(|bucket| view.slots(bucket));
        slots.filter_map(|slot| view.connection(slot)).collect()
    }

    /// States, and the seconds that are left.
    fn known(&self) -> Vec<(State, u32)> {
        let words = self.table.words(0..self.table.buckets());
        let known = words.map(|word| {
            let dest = self.snapshot.dest_of(word).unwrap();
            (word.state(), self.snapshot.timeout(dest, word.state()).remaining(word.age(self.now)))
        });
        known.collect()
    }
}

fn connection(state: State, timeout: u32) -> Connection {
    let (protocol, mode, server) = match state {
        State::Udp => (Protocol::Udp, Mode::Dr, "10.0.0.11:80"),
        _ => (Protocol::Tcp, Mode::Nat, "10.0.0.11:8080"),
    };
    Connection {
        identity: Identity {
            service: ServiceKey { address: socket("192.0.2.10:80").into(), protocol },
            server: ServerKey { address: socket(server).into(), mode },
            face: None,
        },
        client: socket("198.51.100.7:40112"),
        state,
        timeout,
    }
}

#[test]
fn what_is_taken_over_is_told_by_a_router_with_the_address_and_by_no_other() {
    let told = [connection(State::Established, 900), connection(State::Udp, 300)];
    for live in [true, false] {
        let mut rig = Rig::new(live);
        told.iter().for_each(|told| assert!(rig.view().take_over(told)));
        assert_eq!(rig.adoptions, Adoptions { new: 2, ..Adoptions::default() });
        let mut all = rig.told();
        all.sort_by_key(|told| told.state as u8);
        assert_eq!(all, if live { &told[..] } else { &[] });
    }
}

#[test]
fn a_connection_of_a_service_of_all_ports_is_told_with_its_port() {
    let mut rig = Rig::new(true);
    let mut spec = service(Protocol::Tcp, Mode::Nat, true, 7);
    spec.address.set_port(0);
    spec.dests[0].address.set_port(0);
    rig.snapshot = Snapshot::new(2, Vec::new(), &[spec], [], dataplane::fib::Fibs::default());
    rig.numbers.follow(&rig.snapshot);
    let at = |port| {
        let connection = connection(State::Established, 900);
        Connection { identity: at_port(connection.identity, port), ..connection }
    };
    let told = [at(80), at(443)];
    told.iter().for_each(|told| assert!(rig.view().take_over(told)));
    let mut all = rig.told();
    all.sort_by_key(|told| told.identity.service.address);
    assert_eq!(all, told);
    let changes_the_port = connection(State::Established, 900);
    assert!(!rig.view().take_over(&changes_the_port));
}

#[test]
fn it_ends_when_it_would_have_ended_there() {
    let mut rig = Rig::new(true);
    rig.take_over(State::Established, 60);
    assert_eq!(rig.known(), [(State::Established, 60)], "by a timeout that is shorter there");
    rig.now.0 += 4 * 20;
    assert_eq!(rig.known(), [(State::Established, 40)]);
    rig.take_over(State::Established, 60);
    assert_eq!(rig.known(), [(State::Established, 60)], "a packet has come");
    rig.take_over(State::Established, 86_400);
    assert_eq!(rig.known(), [(State::Established, 900)], "by our own at the latest");
}

/// Its state has just changed there, whatever the timeouts are: those of its end may differ more from ours.
#[test]
fn a_change_is_news_however_little_time_it_has_left() {
    let mut rig = Rig::new(true);
    rig.take_over(State::Established, 900);
    rig.take_over(State::FinWait, 10);
    assert_eq!(rig.known(), [(State::FinWait, 10)]);
    assert_eq!(rig.adoptions.changed, 1);
}

#[test]
fn what_is_not_here_is_not_taken_over() {
    let mut rig = Rig::new(true);
    let good = connection(State::Established, 900);
    let Identity { service, server, .. } = good.identity;
    for identity in [
        Identity {
            service: ServiceKey { address: socket("192.0.2.10:81").into(), ..service },
            ..good.identity
        },
        Identity { service: ServiceKey { protocol: Protocol::Udp, ..service }, ..good.identity },
        Identity { server: ServerKey { address: socket("10.0.0.11:80").into(), ..server }, ..good.identity },
        Identity { server: ServerKey { mode: Mode::Dr, ..server }, ..good.identity },
    ] {
        assert!(!rig.view().take_over(&Connection { identity, ..good }), "{identity:?}");
    }
    assert_eq!((rig.known(), rig.adoptions), (vec![], Adoptions::default()));
}
