//! Clients that come back to their servers.

use super::*;
use crate::service::Persistence;
use crate::table::FLAG_REPLIED;

const PERSISTENCE: Persistence = Persistence { seconds: 300, prefix: 32, expire_quiescent: false };

fn rig(protocol: Protocol, persistence: Persistence, weights: &[u32]) -> Rig {
    let mut rig = Rig::new(protocol, Mode::Nat, weights);
    rig.spec.persistence = Some(persistence);
    rig.publish();
    rig
}

impl Rig {
    /// A client opens a connection; its server.
    fn open(&self, from: &str) -> usize {
        let client = socket(from);
        let mut syn = packet(self.spec.protocol, WAN_MAC, from, VIP, SYN);
        assert_eq!(self.push(WAN, &mut syn), Verdict::Forward(LAN), "{from}");
        let of_client =
            |(known, _, state): &(SocketAddrV4, usize, State)| *known == client && *state != State::Template;
        let [(_, dest, _)] = self.connections().into_iter().filter(of_client).collect::<Vec<_>>()[..] else {
            panic!("one connection of {from}: {:?}", self.connections());
        };
        dest
    }

    /// And gets an answer, which it acknowledges.
    fn open_wholly(&self, from: &str) -> usize {
        let dest = self.open(from);
        let mut reply = packet(self.spec.protocol, LAN_MAC, &format!("10.0.0.{dest}:8080"), from, SYN | ACK);
        assert_eq!(self.push(LAN, &mut reply), Verdict::Forward(WAN));
        self.go_on(from);
        dest
    }

    fn go_on(&self, from: &str) {
        let mut ack = packet(self.spec.protocol, WAN_MAC, from, VIP, ACK);
        assert_eq!(self.push(WAN, &mut ack), Verdict::Forward(LAN), "{from}");
    }

    /// Clients that have a template, and the number of its server.
    fn templates(&self) -> Vec<(String, usize)> {
        let templates = self.connections().into_iter().filter(|(.., state)| *state == State::Template);
        // In the port's place is the service's mark.
        templates.map(|(client, dest, _)| (format!("{}:0", client.ip()), dest)).collect()
    }

    fn counted(&self) -> Vec<u32> {
        self.spec.dests.iter().map(|dest| dest.gauge.templates()).collect()
    }

    /// So many seconds pass, with a sweep each four.
    fn live_through(&mut self, seconds: u64, mut meanwhile: impl FnMut(&Rig)) {
        for _ in 0..seconds / 4 {
            self.wait(4);
            meanwhile(self);
            self.engine.sweep(&self.snapshot, self.now, 0..self.engine.table.buckets());
        }
    }
}

#[test]
fn a_client_comes_back_to_its_server_and_others_are_scheduled() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rig = rig(protocol, PERSISTENCE, &[1, 1]);
        let server = rig.open("198.51.100.7:40000");
        for port in 40001..40020 {
            assert_eq!(rig.open(&format!("198.51.100.7:{port}")), server);
        }
        assert_eq!(rig.open("198.51.100.8:40000"), 3 - server, "round robin");
        assert_eq!(rig.templates().len(), 2);
        assert_eq!(rig.counted(), [1, 1], "and none of them is a connection:");
        let live: u32 = [1, 2].map(|n| rig.live(n)).iter().map(|(active, inactive)| active + inactive).sum();
        assert_eq!(live, 21);
    }
}

#[test]
fn clients_of_a_network_are_one_if_it_is_wished() {
    let rig = rig(Protocol::Tcp, Persistence { prefix: 24, ..PERSISTENCE }, &[1, 1]);
    let server = rig.open("198.51.100.7:40000");
    assert_eq!(rig.open("198.51.100.200:40000"), server);
    assert_eq!(rig.open("198.51.101.7:40000"), 3 - server);
    assert!(rig.templates().contains(&("198.51.100.0:0".to_owned(), server)), "{:?}", rig.templates());

    let all = self::rig(Protocol::Tcp, Persistence { prefix: 0, ..PERSISTENCE }, &[1, 1]);
    assert_eq!(all.open("198.51.100.7:40000"), all.open("203.0.113.9:40000"));
}

#[test]
fn a_client_is_forgotten_some_time_after_its_last_connection_began() {
    let mut rig = rig(Protocol::Udp, PERSISTENCE, &[1, 1]);
    rig.spec.timeouts.0[State::Udp as usize] = 10;
    rig.publish();
    let server = rig.open("198.51.100.7:40000");
    rig.live_through(280, |_| {});
    assert_eq!(rig.open("198.51.100.7:40001"), server, "which begins the time anew");
    rig.live_through(280, |_| {});
    assert_eq!(rig.open("198.51.100.7:40002"), server);
    rig.live_through(320, |_| {});
    assert_eq!((rig.connections().len(), rig.counted()), (0, vec![0, 0]));
    assert_eq!(rig.open("198.51.100.7:40003"), 3 - server, "round robin goes on");
}

#[test]
fn a_client_is_known_as_long_as_one_of_its_connections_lives_and_a_minute_more() {
    for persistence in [PERSISTENCE, Persistence { prefix: 24, seconds: 20, ..PERSISTENCE }] {
        let mut rig = rig(Protocol::Tcp, persistence, &[1, 1]);
        let server = rig.open_wholly("198.51.100.7:40000");
        rig.live_through(3_600, |rig| rig.go_on("198.51.100.7:40000"));
        assert_eq!(rig.templates().len(), 1, "{persistence:?}");
        assert_eq!(rig.open("198.51.100.7:40001"), server);
        // Nobody goes on: 900 seconds until the connection is forgotten, and then the template.
        rig.live_through(1_400, |_| {});
        assert_eq!((rig.connections().len(), rig.counted()), (0, vec![0, 0]));
    }
}

#[test]
fn a_client_leaves_a_server_that_is_down_and_one_of_weight_0_only_if_it_is_wished() {
    let mut rig = rig(Protocol::Tcp, PERSISTENCE, &[1, 1]);
    let server = rig.open_wholly("198.51.100.7:40000");
    rig.spec.dests[server - 1].weight = 0;
    rig.publish();
    assert_eq!(rig.open("198.51.100.7:40001"), server, "weight 0");

    rig.spec.persistence = Some(Persistence { expire_quiescent: true, ..PERSISTENCE });
    rig.publish();
    assert_eq!(rig.open("198.51.100.7:40002"), 3 - server);
    rig.spec.dests[server - 1].weight = 1;
    rig.publish();
    assert_eq!(rig.open("198.51.100.7:40003"), 3 - server, "it has moved");
    assert_eq!(rig.counted()[server - 1], 0);

    rig.spec.dests[2 - server].up = false;
    rig.publish();
    assert_eq!(rig.open("198.51.100.7:40004"), server, "the other one is down");
    assert_eq!(rig.templates(), [("198.51.100.7:0".to_owned(), server)]);
    rig.go_on("198.51.100.7:40000");

    rig.spec.dests.iter_mut().for_each(|dest| dest.up = false);
    rig.publish();
    let mut syn = packet(Protocol::Tcp, WAN_MAC, "198.51.100.7:40005", VIP, SYN);
    assert_eq!(rig.push(WAN, &mut syn), Verdict::Drop(Drop::NoServer));
}

#[test]
fn a_flood_of_clients_that_never_go_on_pushes_no_other_out() {
    let rig = rig(Protocol::Tcp, PERSISTENCE, &[1, 1]);
    let server = rig.open_wholly("198.51.100.7:40000");
    let is_confirmed = |flags: u8| flags & FLAG_REPLIED != 0;
    let words = || rig.engine.table.words(0..rig.engine.table.buckets());
    let confirmed = words().filter(|word| word.state() == State::Template && is_confirmed(word.flags()));
    assert_eq!(confirmed.count(), 1);
    for n in 0..5_000u32 {
        let mut syn = packet(Protocol::Tcp, WAN_MAC, &format!("203.0.{}.{}:1024", n >> 8, n & 255), VIP, SYN);
        assert_eq!(rig.push(WAN, &mut syn), Verdict::Forward(LAN));
    }
    assert_eq!(rig.open("198.51.100.7:40001"), server);
    let templates = rig.templates();
    for n in [1, 2] {
        let of_server = templates.iter().filter(|(_, dest)| *dest == n).count();
        assert_eq!(of_server as u32, rig.counted()[n - 1]);
    }
}

#[test]
fn a_packet_from_port_0_is_no_template() {
    let rig = rig(Protocol::Tcp, PERSISTENCE, &[1, 1]);
    let server = rig.open_wholly("198.51.100.7:40000");
    let mut ack = packet(Protocol::Tcp, WAN_MAC, "198.51.100.7:0", VIP, ACK);
    assert_eq!(rig.push(WAN, &mut ack), Verdict::Punt(Punt::NoConnection));
    assert_eq!(rig.open_wholly("198.51.100.7:0"), server);
    assert_eq!(rig.templates().len(), 1, "beside the connection");
    let mut reply = packet(Protocol::Tcp, LAN_MAC, "10.0.0.9:8080", "198.51.100.7:0", ACK);
    assert_eq!(rig.push(LAN, &mut reply), Verdict::Punt(Punt::NoService));
}

#[test]
fn a_client_of_many_services_comes_back_to_a_server_of_each() {
    let mut rig = rig(Protocol::Tcp, PERSISTENCE, &[]);
    const SERVICES: u32 = 48;
    let table = Arc::new(Table::new(1024, HashKey { blind: 1, factor: 3 }));
    rig.engine = Engine::new(0, table, Arc::default());
    let vip = |n: u32| format!("192.0.2.10:{}", 1000 + n);
    let spec = |n: u32| ServiceSpec {
        address: socket(&vip(n)).into(),
        dests: [1, 2]
            .map(|server| {
                let id = DestId::new(2 * n + server).unwrap();
                DestSpec::new(id, socket(&format!("10.0.0.{server}:{}", 1000 + n)))
            })
            .into(),
        kept: Default::default(),
        ..rig.spec.clone()
    };
    rig.snapshot = compile(9, &(0..SERVICES).map(spec).collect::<Vec<_>>(), []);
    let open = |port: u16| {
        let servers = (0..SERVICES).map(|n| {
            // Connections of one port share their places with each other.
            let from = format!("198.51.100.7:{}", port + n as u16);
            let mut syn = packet(Protocol::Tcp, WAN_MAC, &from, &vip(n), SYN);
            assert_eq!(rig.push(WAN, &mut syn), Verdict::Forward(LAN));
            syn[33]
        });
        servers.collect::<Vec<_>>()
    };
    let first = open(40_000);
    assert_eq!((open(41_000), open(42_000)), (first.clone(), first));
    assert_eq!(rig.templates().len(), SERVICES as usize);
}

#[test]
fn without_persistence_there_are_no_templates_and_old_ones_go() {
    let mut rig = rig(Protocol::Tcp, PERSISTENCE, &[1, 1]);
    rig.open_wholly("198.51.100.7:40000");
    rig.spec.persistence = None;
    rig.publish();
    assert_ne!(rig.open("198.51.100.7:40001"), rig.open("198.51.100.7:40002"));
    rig.live_through(8, |_| {});
    assert_eq!(rig.templates(), []);
    assert_eq!(rig.counted(), [0, 0]);
}

#[test]
fn an_explanation_names_the_template() {
    let rig = rig(Protocol::Tcp, PERSISTENCE, &[1, 1]);
    let server = rig.open_wholly("198.51.100.7:40000");
    let explained = |from: &str| {
        let syn = packet(Protocol::Tcp, WAN_MAC, from, VIP, SYN);
        let explanation = explain(&rig.snapshot, &rig.engine.table, rig.now, WAN, &syn).unwrap();
        (explanation.reason, explanation.afterwards.map(|connection| connection.dest.index()))
    };
    assert_eq!(explained("198.51.100.7:40001"), (Some(crate::scheduler::Reason::Template), Some(server)));
    let (reason, dest) = explained("198.51.100.8:40001");
    assert!(matches!(reason, Some(crate::scheduler::Reason::Turn { .. })), "{reason:?}");
    assert_eq!(dest, Some(3 - server));
    assert_eq!(rig.templates().len(), 1, "nothing has changed");
}
