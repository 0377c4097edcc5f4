//! Services that span addresses, ports and protocols, as those of firewall marks do.

use std::ops::RangeInclusive;

use super::fragments::{in_every_order, large};
use super::related::{error, hop, message};
use super::six::{CLIENT6, fibs, packet6, server as server6, socket6};
use super::*;
use crate::admission::{Kept, Limit, Rate};
use crate::snapshot::Part;

const FIRST: &str = "192.0.2.10";
const SECOND: &str = "192.0.2.11";

/// What the mark has of these addresses: protocol, address and ports.
pub(super) type Faces<'a> = &'a [(Protocol, &'a str, RangeInclusive<u16>)];

/// A service of a mark: its home, and behind it what the mark has. The n-th server has the id n at home and 10 * f + n in the f-th face.
pub(super) fn marked(rig: &Rig, faces: Faces<'_>) -> Vec<ServiceSpec> {
    let mut home = ServiceSpec { part: Some(Part::Home), ..rig.spec.clone() };
    home.address = "0.0.0.10:0".parse().unwrap();
    home.dests.iter_mut().for_each(|dest| dest.address.set_port(0));
    let face = |((protocol, address, ports), f): (&(Protocol, &str, RangeInclusive<u16>), u32)| {
        let dest = |dest: &DestSpec| DestSpec {
            id: DestId::new(10 * f + dest.id.index() as u32).unwrap(),
            home: Some(dest.id),
            ..dest.clone()
        };
        ServiceSpec {
            address: std::net::SocketAddr::new(address.parse().unwrap(), 0),
            ports: vec![ports.clone()],
            protocol: *protocol,
            part: Some(Part::Face(0)),
            dests: home.dests.iter().map(dest).collect(),
            ..home.clone()
        }
    };
    let faces: Vec<ServiceSpec> = faces.iter().zip(1..).map(face).collect();
    [vec![home], faces].concat()
}

fn rig(mode: Mode, persistent: bool, faces: Faces<'_>) -> Rig {
    let mut rig = Rig::new(Protocol::Tcp, mode, &[1, 1]);
    let persistence = Persistence { seconds: 300, prefix: 32, expire_quiescent: false };
    rig.spec.persistence = persistent.then_some(persistence);
    rig.snapshot = compile(2, &marked(&rig, faces), []);
    rig
}

const FACES: Faces<'static> = &[
    (Protocol::Tcp, FIRST, 80..=80),
    (Protocol::Tcp, SECOND, 8080..=8090),
    (Protocol::Udp, FIRST, 5000..=5010),
];

/// A client's first packet; the server that got it at the very port, unless it went elsewhere.
fn to(rig: &Rig, protocol: Protocol, client: &str, virtual_: &str) -> Option<u32> {
    let mut frame = packet(protocol, WAN_MAC, client, virtual_, SYN);
    if rig.push(WAN, &mut frame) != Verdict::Forward(LAN) {
        return None;
    }
    let port = socket(virtual_).port();
    (1..=2).find(|&n| {
        let server = format!("10.0.0.{n}:{port}");
        frame == expect(protocol, (server_mac(n), LAN_MAC), client, &server, SYN)
    })
}

#[test]
fn one_turn_goes_over_all_addresses_ports_and_protocols_and_replies_come_from_where_the_client_asked() {
    let rig = rig(Mode::Nat, false, FACES);
    let ends = [
        (Protocol::Tcp, "192.0.2.10:80"),
        (Protocol::Tcp, "192.0.2.11:8080"),
        (Protocol::Udp, "192.0.2.10:5000"),
        (Protocol::Tcp, "192.0.2.11:8090"),
    ];
    let mut servers = Vec::new();
    for (protocol, end) in ends {
        let server = to(&rig, protocol, CLIENT, end).unwrap();
        let from = format!("10.0.0.{server}:{}", socket(end).port());
        let mut reply = packet(protocol, LAN_MAC, &from, CLIENT, SYN | ACK);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, expect(protocol, (CLIENT_MAC, WAN_MAC), end, CLIENT, SYN | ACK));
        servers.push(server);
    }
    assert_eq!(servers, [2, 1, 2, 1]);
    let live: u32 = [1, 2].map(|n| rig.live(n)).iter().map(|(active, inactive)| active + inactive).sum();
    assert_eq!(live, 4, "one gauge for all of it");
    for (protocol, end) in [
        (Protocol::Tcp, "192.0.2.10:81"),
        (Protocol::Tcp, "192.0.2.11:80"),
        (Protocol::Udp, "192.0.2.11:5000"),
    ] {
        let mut frame = packet(protocol, WAN_MAC, CLIENT, end, SYN);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::NoService), "{end}");
    }
}

#[test]
fn what_answers_a_datagram_that_nobody_remembers_comes_from_the_address_that_has_its_port() {
    let mut rig = Rig::new(Protocol::Udp, Mode::Nat, &[1, 1]);
    rig.spec.one_packet = true;
    rig.snapshot =
        compile(2, &marked(&rig, &[(Protocol::Udp, FIRST, 80..=89), (Protocol::Udp, SECOND, 90..=99)]), []);
    for virtual_ in ["192.0.2.10:80", "192.0.2.11:90", "192.0.2.10:89"] {
        let from = format!("10.0.0.1:{}", socket(virtual_).port());
        let mut reply = packet(Protocol::Udp, LAN_MAC, &from, CLIENT, 0);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN), "{virtual_}");
        assert_eq!(reply, expect(Protocol::Udp, (CLIENT_MAC, WAN_MAC), virtual_, CLIENT, 0));
    }
    let mut of_nobody = packet(Protocol::Udp, LAN_MAC, "10.0.0.1:100", CLIENT, 0);
    assert!(matches!(rig.push(LAN, &mut of_nobody), Verdict::Punt(_)));
}

#[test]
fn a_persistent_client_has_one_server_for_all_of_a_mark_and_its_template_is_held() {
    for mode in [Mode::Nat, Mode::Dr] {
        let mut rig = rig(mode, true, FACES);
        let to = |rig: &Rig, protocol, client: &str, end: &str| {
            let mut frame = packet(protocol, WAN_MAC, client, end, SYN);
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN), "{client} {end}");
            frame[5]
        };
        for n in 1..=4 {
            let client = format!("198.51.100.{n}:40112");
            let server = to(&rig, Protocol::Tcp, &client, "192.0.2.10:80");
            for (protocol, end) in [
                (Protocol::Udp, "192.0.2.10:5010"),
                (Protocol::Tcp, "192.0.2.11:8080"),
                (Protocol::Tcp, "192.0.2.11:8081"),
            ] {
                assert_eq!(to(&rig, protocol, &client, end), server, "{mode} {client} {end}");
            }
        }
        let of_home = |known: &&(SocketAddrV4, usize, State)| known.2 == State::Template && known.1 < 10;
        assert_eq!(rig.connections().iter().filter(of_home).count(), 4);
        let templates: u32 = rig.spec.dests.iter().map(|dest| dest.gauge.templates()).sum();
        assert_eq!(templates, 4);

        // A connection by one of the faces keeps its client's template beyond the time of persistence. Those of UDP last for 300 s, and are
        // held for a minute after that.
        let client = "198.51.100.1:40112";
        for _ in 0..=(300 + 60) / 4 + 1 {
            rig.wait(4);
            let mut ack = packet(Protocol::Tcp, WAN_MAC, client, "192.0.2.11:8080", ACK);
            assert_eq!(rig.push(WAN, &mut ack), Verdict::Forward(LAN));
            rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
        }
        let left: Vec<_> = rig.connections().into_iter().filter(|known| of_home(&known)).collect();
        assert_eq!(left.len(), 1, "{mode} {left:?}");
    }
}

#[test]
fn two_marks_and_all_other_ports_share_an_address() {
    let rig = rig(Mode::Nat, false, &[(Protocol::Tcp, FIRST, 80..=80)]);
    let mut specs = marked(&rig, &[(Protocol::Tcp, FIRST, 80..=80)]);
    // All ports of the address first, to be asked last.
    let dests = |id, address: &str| vec![DestSpec::new(DestId::new(id).unwrap(), socket(address))];
    let rest = ServiceSpec {
        dests: dests(30, "10.0.0.3:0"),
        ..ServiceSpec::new(socket("192.0.2.10:0"), Protocol::Tcp, Mode::Nat)
    };
    let other = ServiceSpec {
        part: Some(Part::Home),
        dests: dests(40, "10.0.0.4:0"),
        ..ServiceSpec::new(socket("0.0.0.20:0"), Protocol::Tcp, Mode::Nat)
    };
    specs.insert(1, rest);
    specs.insert(2, other.clone());
    let mut face = dests(41, "10.0.0.4:0");
    face[0].home = DestId::new(40);
    let face = ServiceSpec { ports: vec![443..=443], part: Some(Part::Face(2)), dests: face, ..other };
    specs.push(ServiceSpec { address: socket("192.0.2.10:0").into(), ..face });
    let snapshot = compile(3, &specs, []);
    let rig = Rig { snapshot, ..rig };
    for (port, servers) in [(80, &[1, 2][..]), (443, &[4]), (22, &[3])] {
        let end = format!("{FIRST}:{port}");
        let mut frame = packet(Protocol::Tcp, WAN_MAC, CLIENT, &end, SYN);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN), "{end}");
        assert!(servers.contains(&frame[5]), "{end} {}", frame[5]);
        // Replies find their way by what the server is, whose port is the client's.
        let mut reply =
            packet(Protocol::Tcp, LAN_MAC, &format!("10.0.0.{}:{port}", frame[5]), CLIENT, SYN | ACK);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, expect(Protocol::Tcp, (CLIENT_MAC, WAN_MAC), &end, CLIENT, SYN | ACK));
        let explained = explain(
            &rig.snapshot,
            &rig.engine.table,
            rig.now,
            WAN,
            &packet(Protocol::Tcp, WAN_MAC, CLIENT, &end, ACK),
        )
        .unwrap();
        assert_eq!(explained.verdict, Verdict::Forward(LAN), "{end}");
    }
}

#[test]
fn what_is_explained_is_what_happens_and_moves_no_turn() {
    for persistent in [false, true] {
        let rig = rig(Mode::Nat, persistent, FACES);
        for (n, (protocol, end, _)) in FACES.iter().enumerate() {
            let (client, end) =
                (format!("198.51.100.7:{}", 40_000 + n), format!("{end}:{}", FACES[n].2.start()));
            let frame = packet(*protocol, WAN_MAC, &client, &end, SYN);
            let explained = explain(&rig.snapshot, &rig.engine.table, rig.now, WAN, &frame).unwrap();
            let server = to(&rig, *protocol, &client, &end).unwrap();
            assert_eq!(explained.frame[5], server as u8, "{persistent} {end}");
            assert!(explained.reason.is_some());
        }
    }
}

#[test]
fn the_connections_of_a_face_that_has_gone_leave_the_servers_gauge() {
    let mut rig = rig(Mode::Nat, false, FACES);
    for (client, end) in [(CLIENT, "192.0.2.10:80"), (CLIENT, "192.0.2.11:8080")] {
        to(&rig, Protocol::Tcp, client, end).unwrap();
    }
    let live = |rig: &Rig| [1, 2].map(|n| rig.live(n).0).iter().sum::<u32>();
    assert_eq!(live(&rig), 2);
    let removed = (1..=2).map(|n| {
        let gauge = Some(rig.spec.dests[n - 1].gauge.clone());
        (DestId::new(20 + n as u32).unwrap(), Removed { limiter: None, gauge })
    });
    rig.snapshot = compile(3, &marked(&rig, &FACES[..1]), removed.collect::<Vec<_>>());
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    assert_eq!(live(&rig), 1);
}

#[test]
fn ipv6_over_two_addresses() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 1]);
    let persistence = Persistence { seconds: 300, prefix: 64, expire_quiescent: false };
    rig.spec.persistence = Some(persistence);
    let mut specs = marked(
        &rig,
        &[(Protocol::Tcp, "2001:db8::10", 80..=80), (Protocol::Tcp, "2001:db8::11", 8080..=8090)],
    );
    specs[0].address = "[::a]:0".parse().unwrap();
    for spec in &mut specs {
        for (dest, n) in spec.dests.iter_mut().zip(1..) {
            dest.address = socket6(&server6(n, 0)).into();
        }
    }
    let ports = vec![PortSpec { mac: WAN_MAC }, PortSpec { mac: LAN_MAC }];
    rig.snapshot = Snapshot::new(3, ports, &specs, [], fibs());
    let mut servers = Vec::new();
    for end in ["[2001:db8::10]:80", "[2001:db8::11]:8080", "[2001:db8::11]:8090"] {
        let mut frame = packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), (CLIENT6, end), (SYN, 64), &[]);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN), "{end}");
        servers.push(frame[5]);
        let from = server6(u32::from(frame[5]), socket6(end).port());
        let mut reply = packet6(Protocol::Tcp, (LAN_MAC, CLIENT_MAC), (&from, CLIENT6), (SYN | ACK, 64), &[]);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(
            reply,
            packet6(Protocol::Tcp, (CLIENT_MAC, WAN_MAC), (end, CLIENT6), (SYN | ACK, 63), &[])
        );
    }
    assert!(servers.iter().all(|server| *server == servers[0]), "{servers:?}");
    let templates = rig.connections().iter().filter(|(.., state)| *state == State::Template).count();
    assert_eq!(templates, 1);
}

#[test]
fn a_server_at_an_address_of_the_routers_own_is_the_router_wherever_the_mark_is() {
    for mode in [Mode::Nat, Mode::Dr] {
        let mut rig = rig(mode, true, FACES);
        rig.spec.dests[0].address = socket("10.0.0.254:0").into();
        rig.spec.dests[1].up = false;
        rig.snapshot = compile(3, &marked(&rig, FACES), []);
        for (protocol, virtual_) in [
            (Protocol::Tcp, "192.0.2.10:80"),
            (Protocol::Tcp, "192.0.2.11:8085"),
            (Protocol::Udp, "192.0.2.10:5000"),
        ] {
            let mut frame = packet(protocol, WAN_MAC, CLIENT, virtual_, SYN);
            let came = frame.clone();
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::Local), "{mode} {virtual_}");
            assert_eq!(frame, came);
        }
    }
}

/// The same with limits for all of it.
fn limited(mode: Mode, persistent: bool, limit: Limit) -> (Rig, Kept) {
    let (mut rig, mut kept) = (rig(mode, persistent, FACES), Kept::default());
    rig.engine = Engine::new(0, Arc::new(Table::new(4096, HashKey { blind: 1, factor: 3 })), Arc::default());
    rig.spec.limiter = kept.limiter(Some(limit), [1, 2]);
    rig.snapshot = compile(3, &marked(&rig, FACES), []);
    (rig, kept)
}

const LIMIT: Limit =
    Limit { rate: None, source_rate: None, source_connections: None, half_open: None, source_prefix: 32 };

#[test]
fn a_source_has_so_many_connections_over_all_of_a_mark() {
    let (rig, _kept) = limited(Mode::Nat, false, Limit { source_connections: Some(2), ..LIMIT });
    let syn =
        |protocol, client: &str, end: &str| rig.push(WAN, &mut packet(protocol, WAN_MAC, client, end, SYN));
    assert_eq!(syn(Protocol::Tcp, CLIENT, "192.0.2.10:80"), Verdict::Forward(LAN));
    assert_eq!(syn(Protocol::Udp, CLIENT, "192.0.2.10:5000"), Verdict::Forward(LAN));
    for (protocol, end) in [(Protocol::Tcp, "192.0.2.11:8080"), (Protocol::Udp, "192.0.2.10:5001")] {
        assert_eq!(syn(protocol, CLIENT, end), Verdict::Drop(Drop::SourceLimited), "{end}");
        assert_eq!(syn(protocol, "198.51.100.8:1", end), Verdict::Forward(LAN), "another source");
    }
}

#[test]
fn a_source_begins_so_many_a_second_over_all_of_a_mark() {
    let (mut rig, _kept) = limited(Mode::Dr, false, Limit { source_rate: Some(Rate::new(4, 2)), ..LIMIT });
    let syn = |rig: &Rig, port: u16, end: &str| {
        let client = format!("198.51.100.7:{port}");
        rig.push(WAN, &mut packet(Protocol::Tcp, WAN_MAC, &client, end, SYN))
    };
    let ends = ["192.0.2.10:80", "192.0.2.11:8080", "192.0.2.11:8081"];
    let begun = ends.iter().zip(1..).map(|(end, port)| syn(&rig, port, end)).collect::<Vec<_>>();
    assert_eq!(begun[..2], [Verdict::Forward(LAN); 2]);
    assert_eq!(begun[2], Verdict::Drop(Drop::SourceLimited));
    rig.now.0 += 1;
    assert_eq!(syn(&rig, 3, ends[2]), Verdict::Forward(LAN));
}

#[test]
fn a_flood_at_one_address_shuts_the_gate_of_all_and_who_answers_gets_through() {
    const RATE: u32 = 40;
    for (mode, persistent) in [(Mode::Nat, false), (Mode::Nat, true), (Mode::Dr, false), (Mode::Dr, true)] {
        let half_open = Some(Rate::new(RATE, RATE));
        let (rig, _kept) = limited(mode, persistent, Limit { half_open, ..LIMIT });
        let push = |port, client: &str, end: &str, flags| {
            let mut frame = packet(Protocol::Tcp, WAN_MAC, client, end, flags);
            assert_eq!(rig.push(port, &mut frame), Verdict::Forward(LAN), "{mode} {client} {end}");
            frame[5]
        };
        for n in 0..400 {
            push(WAN, &format!("203.0.113.{}:{}", n % 250, 1024 + n), "192.0.2.10:80", SYN);
        }
        let live = |rig: &Rig| {
            rig.connections().iter().filter(|(.., state)| *state != State::Template).count() as u32
        };
        assert_eq!(live(&rig), RATE, "{mode}");
        for n in 0..20 {
            let client = format!("198.51.100.{n}:40112");
            let end = if n % 2 == 0 { "192.0.2.11:8080" } else { "192.0.2.10:80" };
            let server = push(WAN, &client, end, SYN);
            assert_eq!(live(&rig), RATE + n, "no word yet");
            if mode == Mode::Nat {
                let from = format!("10.0.0.{server}:{}", socket(end).port());
                let mut answer = packet(Protocol::Tcp, LAN_MAC, &from, &client, SYN | ACK);
                assert_eq!(rig.push(LAN, &mut answer), Verdict::Forward(WAN));
                assert_eq!(answer, expect(Protocol::Tcp, (CLIENT_MAC, WAN_MAC), end, &client, SYN | ACK));
            }
            assert_eq!(push(WAN, &client, end, ACK), server, "{mode} {persistent}");
            assert_eq!(live(&rig), RATE + n + 1);
        }
        let mut datagram = packet(Protocol::Udp, WAN_MAC, CLIENT, "192.0.2.10:5000", 0);
        assert_eq!(rig.push(WAN, &mut datagram), Verdict::Forward(LAN), "has no handshake");
        assert_eq!(live(&rig), RATE + 21);
    }
}

#[test]
fn a_datagram_in_fragments_arrives_whole_in_every_order_at_each_address() {
    for mode in [Mode::Nat, Mode::Dr] {
        let rig = rig(mode, false, FACES);
        for (protocol, end) in [
            (Protocol::Udp, "192.0.2.10:5005"),
            (Protocol::Tcp, "192.0.2.11:8080"),
            (Protocol::Tcp, "192.0.2.10:80"),
        ] {
            let mut first = packet(protocol, WAN_MAC, CLIENT, end, SYN);
            assert_eq!(rig.push(WAN, &mut first), Verdict::Forward(LAN));
            let server = u32::from(first[5]);
            let near = match mode {
                Mode::Nat => format!("10.0.0.{server}:{}", socket(end).port()),
                _ => end.to_owned(),
            };
            let request = large(&packet(protocol, WAN_MAC, CLIENT, end, SYN), 61);
            let arrives = expect(protocol, (server_mac(server), LAN_MAC), CLIENT, &near, SYN);
            in_every_order(&rig, WAN, &request, 24, &large(&arrives, 61), LAN);
            if mode == Mode::Nat {
                let reply = large(&packet(protocol, LAN_MAC, &near, CLIENT, SYN | ACK), 61);
                let arrives = expect(protocol, (CLIENT_MAC, WAN_MAC), end, CLIENT, SYN | ACK);
                in_every_order(&rig, LAN, &reply, 24, &large(&arrives, 61), WAN);
            }
        }
    }
}

#[test]
fn an_error_is_translated_for_the_address_that_its_connection_came_to() {
    let rig = rig(Mode::Nat, false, FACES);
    let begin = |protocol, end: &str| {
        let request = packet(protocol, WAN_MAC, CLIENT, end, SYN);
        let mut got = request.clone();
        assert_eq!(rig.push(WAN, &mut got), Verdict::Forward(LAN));
        let server = format!("10.0.0.{}:{}", got[5], socket(end).port());
        (request, got, server)
    };
    for (protocol, end) in [
        (Protocol::Tcp, "192.0.2.10:80"),
        (Protocol::Tcp, "192.0.2.11:8080"),
        (Protocol::Udp, "192.0.2.10:5000"),
        (Protocol::Tcp, "192.0.2.11:8081"),
    ] {
        let (request, got, server) = begin(protocol, end);
        let mut inside = error(LAN_MAC, "10.0.0.253:0", CLIENT, 3, &got[14..]);
        assert_eq!(rig.push(LAN, &mut inside), Verdict::Forward(WAN), "{end}");
        assert_eq!(message(&inside, end, CLIENT)[8..], hop(&request), "{end}");

        let sent = packet(protocol, LAN_MAC, &server, CLIENT, SYN | ACK);
        let mut reply = sent.clone();
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        let mut outside = error(WAN_MAC, "203.0.113.1:0", end, 3, &reply[14..]);
        assert_eq!(rig.push(WAN, &mut outside), Verdict::Forward(LAN), "{end}");
        assert_eq!(message(&outside, "203.0.113.1:0", &server)[8..], hop(&sent), "{end}");
        assert_eq!(outside[40..42], [0x05, 0x78], "the MTU");
    }
    // What is quoted has to be of the mark's very port.
    let (_, got, _) = begin(Protocol::Tcp, "192.0.2.10:80");
    let mut quote = got[14..].to_vec();
    quote[22..24].copy_from_slice(&81_u16.to_be_bytes());
    let mut stray = error(LAN_MAC, "10.0.0.253:0", CLIENT, 3, &quote);
    assert_eq!(rig.push(LAN, &mut stray), Verdict::Drop(Drop::IcmpError));
}
