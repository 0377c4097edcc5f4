//! Services whose servers come and go.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Duration;

use super::*;
use crate::services::tests::services;

/// A service with servers .11, .12 and .13 of the weights 1, 2 and 3.
struct Rig {
    service: Service,
    effects: Effects,
    down: RefCell<HashSet<u8>>,
    asks: Option<u32>,
    start: Instant,
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::new([10, 0, 0, last].into(), 80)
}

/// The reverse of it.
fn last(address: SocketAddr) -> u8 {
    let SocketAddr::V4(address) = address else { unreachable!() };
    address.ip().octets()[3]
}

impl Rig {
    fn new(settings: &str) -> Rig {
        let mut text = format!("[[service]]\naddress = '192.0.2.10:80'\nmode = 'nat'\n{settings}\n");
        for n in 1..4 {
            text += &format!("[[service.server]]\naddress = '10.0.0.1{n}:80'\nweight = {n}\n");
        }
        let service = services(&text).remove(0);
        let mut rig = Rig {
            service,
            effects: Effects::default(),
            down: RefCell::default(),
            asks: None,
            start: Instant::now(),
        };
        assert_eq!(rig.at(0), [""; 0]);
        rig
    }

    /// Judges at this second: what has happened.
    fn at(&mut self, second: u64) -> Vec<String> {
        let health = |_: &Service, server: &Server| Health {
            up: !self.down.borrow().contains(&last(server.address)),
            weight: self.asks.filter(|_| server.address == address(11)),
        };
        let now = self.start + Duration::from_secs(second);
        let services = [self.service.clone()];
        let (happenings, _) = self.effects.judge(&services, health, now);
        let show = |happening: &Happening| match happening {
            Happening::Server { server, up, .. } => format!("{} {up}", last(*server)),
            Happening::Held { server, .. } => format!("{} held", last(*server)),
            Happening::Quorum { up, weight, .. } => format!("quorum {up} {weight}"),
        };
        happenings.iter().map(show).collect()
    }

    fn set(&mut self, down: &[u8]) {
        self.down = RefCell::new(down.iter().copied().collect());
    }

    fn weights(&self) -> Vec<u32> {
        let key = ServiceKey::of(&self.service);
        [11, 12, 13].map(|last| self.effects.duty(key, address(last)).weight).to_vec()
    }

    fn up(&self, last: u8) -> bool {
        self.effects.duty(ServiceKey::of(&self.service), address(last)).up
    }
}

#[test]
fn down_and_up() {
    let mut rig = Rig::new("");
    assert_eq!(rig.weights(), [1, 2, 3]);
    rig.set(&[12]);
    assert_eq!(rig.at(1), ["12 false"]);
    assert_eq!((rig.weights(), rig.up(12)), (vec![1, 0, 3], false));
    assert_eq!(rig.at(2), [""; 0]);
    rig.set(&[]);
    assert_eq!(rig.at(3), ["12 true"]);
    assert_eq!(rig.weights(), [1, 2, 3]);
}

#[test]
fn quiesced_it_keeps_what_it_has() {
    let mut rig = Rig::new("on_down = 'quiesce'");
    rig.set(&[12]);
    rig.at(1);
    assert_eq!((rig.weights(), rig.up(12)), (vec![1, 0, 3], true));
}

#[test]
fn a_check_asks_for_a_weight_and_an_operator_drains() {
    let mut rig = Rig::new("");
    rig.asks = Some(9);
    rig.at(1);
    assert_eq!(rig.weights(), [9, 2, 3]);
    rig.service.servers[0].state = ServerState::Drained;
    rig.at(2);
    assert_eq!((rig.weights(), rig.up(11)), (vec![0, 2, 3], true));
    let key = ServiceKey::of(&rig.service);
    assert!(rig.effects.has_quorum(key));
    rig.service.servers.iter_mut().for_each(|server| server.state = ServerState::Drained);
    rig.at(3);
    assert!(!rig.effects.has_quorum(key), "drained, none is enough");
}

#[test]
fn slow_start_after_a_failure_and_for_the_new_but_not_at_the_start() {
    let mut rig = Rig::new("slow_start = '10s'");
    assert_eq!(rig.weights(), [1, 2, 3], "the first to begin begin at once");
    rig.set(&[13]);
    rig.at(1);
    assert_eq!(rig.weights(), [1, 2, 0]);
    rig.set(&[]);
    rig.at(10);
    assert_eq!(rig.weights(), [22, 44, 1], "the others' shares stay");
    rig.at(15);
    assert_eq!(rig.weights(), [22, 44, 33]);
    rig.at(20);
    assert_eq!(rig.weights(), [1, 2, 3]);
    let newcomer = Server { address: address(14), weight: 1, ..rig.service.servers[0] };
    rig.service.servers.push(newcomer);
    rig.at(30);
    assert_eq!(rig.effects.duty(ServiceKey::of(&rig.service), address(14)).weight, 1);
    assert_eq!(rig.weights(), [22, 44, 66]);
}

#[test]
fn where_every_change_of_a_weight_moves_clients_it_does_not_grow() {
    for scheduler in ["sh", "dh"] {
        let mut rig = Rig::new(&format!("slow_start = '10s'\nscheduler = '{scheduler}'"));
        rig.set(&[13]);
        rig.at(1);
        rig.set(&[]);
        rig.at(10);
        assert_eq!(rig.weights(), [1, 2, 3]);
    }
}

#[test]
fn without_quorum_the_sorry_server_serves() {
    let mut rig = Rig::new("quorum = 4\nhysteresis = 1\nsorry_server = '10.0.0.99:80'");
    let sorry = |rig: &Rig| rig.effects.duty(ServiceKey::of(&rig.service), address(99));
    let listed = |rig: &Rig| {
        [11, 12, 13, 99].map(|n| rig.effects.duty(ServiceKey::of(&rig.service), address(n)).listed)
    };
    assert_eq!(sorry(&rig).weight, 0);
    assert_eq!(listed(&rig), [true, true, true, false], "a hashing scheduler has no clients for it");
    rig.set(&[13]);
    assert_eq!(rig.at(1), ["13 false"], "3 = 4 - 1 is enough to keep it");
    rig.set(&[13, 11]);
    assert_eq!(rig.at(2), ["11 false", "quorum false 2"]);
    assert_eq!((rig.weights(), sorry(&rig).weight), (vec![0, 0, 0], 1));
    assert!(rig.up(12), "and its connections stay");
    assert_eq!(listed(&rig), [false, false, false, true], "and no clients for them");
    rig.set(&[11, 12]);
    assert_eq!(rig.at(3), ["12 false", "13 true"], "3 is not enough to gain it");
    rig.set(&[]);
    assert_eq!(rig.at(4), ["11 true", "12 true", "quorum true 6"]);
    assert_eq!((rig.weights(), sorry(&rig).weight, sorry(&rig).up), (vec![1, 2, 3], 0, true));
}

#[test]
fn without_a_sorry_server_the_rest_do_what_they_can() {
    let mut rig = Rig::new("quorum = 4");
    rig.set(&[13, 11]);
    assert_eq!(rig.at(1), ["11 false", "13 false", "quorum false 2"]);
    assert_eq!(rig.weights(), [0, 2, 0]);
}

#[test]
fn held_down_for_flapping() {
    let mut rig = Rig::new("damping = { downs = 2, within = '60s', hold = '30s' }");
    let mut seen = Vec::new();
    for (second, down) in [(1, true), (2, false), (3, true), (4, false), (33, false), (34, false)] {
        rig.set(if down { &[11] } else { &[] });
        seen.push(rig.at(second).join(","));
    }
    assert_eq!(seen, ["11 false", "11 true", "11 false", "11 held", "", "11 true"]);
}
