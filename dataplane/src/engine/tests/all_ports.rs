//! Services of all ports.

use super::fragments::{in_every_order, large, split};
use super::fullnat;
use super::six::{CLIENT6, packet6, publish as publish6, server as server6, socket6};
use super::*;
use crate::service::Persistence;

const VIRTUAL: &str = "192.0.2.10";
const OTHER: &str = "192.0.2.11:80";

/// The usual router, whose service is of all ports.
fn rig(protocol: Protocol, mode: Mode, weights: &[u32]) -> Rig {
    let mut rig = Rig::new(protocol, mode, weights);
    rig.spec.address.set_port(0);
    rig.spec.dests.iter_mut().for_each(|dest| dest.address.set_port(0));
    rig.publish();
    rig
}

/// Beside it this service, with one server of its own number and this address.
fn beside(rig: &mut Rig, address: &str, server: (u32, &str)) {
    let dest = DestSpec::new(DestId::new(server.0).unwrap(), socket(server.1));
    let spec = ServiceSpec::new(socket(address), rig.spec.protocol, Mode::Nat);
    let spec = ServiceSpec { scheduler: Scheduler::Rr, dests: vec![dest], ..spec };
    rig.generation += 1;
    rig.snapshot = compile(rig.generation, &[rig.spec.clone(), spec], []);
}

fn at(address: &str, port: u16) -> String {
    format!("{address}:{port}")
}

/// A packet of the client to a virtual port; the server that got it at the same port, unless it went elsewhere.
fn to(rig: &Rig, protocol: Protocol, port: u16, flags: u8) -> Option<u32> {
    let mut frame = packet(protocol, WAN_MAC, CLIENT, &at(VIRTUAL, port), flags);
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN), "port {port}");
    (1..=9).find(|&n| {
        let server = at(&format!("10.0.0.{n}"), port);
        frame == expect(protocol, (server_mac(n), LAN_MAC), CLIENT, &server, flags)
    })
}

/// A server's packet from a port to the client, and from where the client got it.
fn from(rig: &Rig, protocol: Protocol, server: u32, port: u16, virtual_: &str) {
    let server = at(&format!("10.0.0.{server}"), port);
    let mut frame = packet(protocol, LAN_MAC, &server, CLIENT, SYN | ACK);
    assert_eq!(rig.push(LAN, &mut frame), Verdict::Forward(WAN), "{server}");
    assert_eq!(frame, expect(protocol, (CLIENT_MAC, WAN_MAC), virtual_, CLIENT, SYN | ACK));
}

#[test]
fn one_client_port_to_several_virtual_ones_is_several_connections_whose_ports_stay() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rig = rig(protocol, Mode::Nat, &[1, 1]);
        let mut servers = Vec::new();
        for port in [80, 443, 8443] {
            let server = to(&rig, protocol, port, SYN).unwrap();
            from(&rig, protocol, server, port, &at(VIRTUAL, port));
            for flags in [ACK, ACK] {
                assert_eq!(to(&rig, protocol, port, flags), Some(server));
                from(&rig, protocol, server, port, &at(VIRTUAL, port));
            }
            servers.push(server);
        }
        assert_eq!(servers, [2, 1, 2], "each by its own turn");
        assert_eq!(rig.connections().len(), 3);
        let table = &rig.engine.table;
        let virtual_of = |(slot, word)| rig.snapshot.virtual_of(table, slot, word).unwrap().port();
        let ports: BTreeSet<u16> = table.entries(0..table.buckets()).map(virtual_of).collect();
        assert_eq!(ports, [80, 443, 8443].into());
    }
}

#[test]
fn full_nat_changes_the_clients_port_alone() {
    let mut rig = rig(Protocol::Tcp, Mode::Fullnat, &[1]);
    let local = Arc::new(crate::table::LocalAddress::new(3, "10.0.0.100".parse().unwrap()).unwrap());
    rig.spec.pool = Some(crate::snapshot::Pool {
        locals: vec![local],
        ports: 2000..=2001,
        proxy: false,
        is_rehearsal: false,
    });
    rig.publish();
    let mut locals = BTreeSet::new();
    for port in [80, 443] {
        for flags in [SYN, ACK, ACK] {
            let mut request = packet(Protocol::Tcp, WAN_MAC, CLIENT, &at(VIRTUAL, port), flags);
            assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
            let local = at("10.0.0.100", u16::from_be_bytes([request[34], request[35]]));
            let (macs, server) = ((server_mac(1), LAN_MAC), at("10.0.0.1", port));
            assert_eq!(request, expect(Protocol::Tcp, macs, &local, &server, flags));
            let mut reply = packet(Protocol::Tcp, LAN_MAC, &server, &local, flags | ACK);
            assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
            let macs = (CLIENT_MAC, WAN_MAC);
            assert_eq!(reply, expect(Protocol::Tcp, macs, &at(VIRTUAL, port), CLIENT, flags | ACK));
            locals.insert(local);
        }
    }
    assert_eq!(locals.len(), 2);
}

#[test]
fn by_full_nat_a_server_answers_from_the_port_that_was_asked_alone() {
    let ports = [(80, Verdict::Forward(WAN)), (81, Verdict::Punt(Punt::NoService))];
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut rig = rig(protocol, Mode::Fullnat, &[1]);
        rig.spec.pool = fullnat::pool("10.0.0.100:2000", 1);
        rig.publish();
        assert_eq!(
            rig.push(WAN, &mut packet(protocol, WAN_MAC, CLIENT, &at(VIRTUAL, 80), SYN)),
            Verdict::Forward(LAN)
        );
        for (port, expected) in ports {
            let mut reply = packet(protocol, LAN_MAC, &at("10.0.0.1", port), "10.0.0.100:2000", SYN | ACK);
            assert_eq!(rig.push(LAN, &mut reply), expected, "{protocol} {port}");
        }

        let mut rig = fullnat::rig6(protocol);
        rig.spec.address.set_port(0);
        rig.spec.dests[0].address.set_port(0);
        publish6(&mut rig);
        let packet6 = |from: ([u8; 6], &str), to: ([u8; 6], &str), flags| {
            packet6(protocol, (to.0, from.0), (from.1, to.1), (flags, 64), &[])
        };
        let mut request = packet6((CLIENT_MAC, CLIENT6), (WAN_MAC, "[2001:db8::10]:80"), SYN);
        assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
        for (port, expected) in ports {
            let server = (server_mac(1), &*server6(1, port));
            let mut reply = packet6(server, (LAN_MAC, fullnat::LOCAL6), SYN | ACK);
            assert_eq!(rig.push(LAN, &mut reply), expected, "{protocol} {port} of IPv6");
        }
    }
}

#[test]
fn full_nat_of_a_datagram_in_fragments() {
    let mut rig = rig(Protocol::Udp, Mode::Fullnat, &[1]);
    rig.spec.pool = fullnat::pool("10.0.0.100:2000", 2);
    rig.publish();
    // The client's port has two connections, which later fragments have to be told apart by.
    for virtual_port in [53, 5353] {
        let [virtual_, server] = [VIRTUAL, "10.0.0.1"].map(|address| at(address, virtual_port));
        let mut request = packet(Protocol::Udp, WAN_MAC, CLIENT, &virtual_, 0);
        assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
        let local = at("10.0.0.100", u16::from_be_bytes([request[34], request[35]]));
        let sent = large(&packet(Protocol::Udp, WAN_MAC, CLIENT, &virtual_, 0), 3000);
        let got = large(&expect(Protocol::Udp, (server_mac(1), LAN_MAC), &local, &server, 0), 3000);
        in_every_order(&rig, WAN, &sent, 1024, &got, LAN);
        let sent = large(&packet(Protocol::Udp, LAN_MAC, &server, &local, 0), 3000);
        let got = large(&expect(Protocol::Udp, (CLIENT_MAC, WAN_MAC), &virtual_, CLIENT, 0), 3000);
        in_every_order(&rig, LAN, &sent, 1024, &got, WAN);
        // Until the same identifications are other datagrams'.
        rig.wait(31);
    }
}

#[test]
fn direct_routing_changes_no_port_either() {
    let rig = rig(Protocol::Tcp, Mode::Dr, &[1]);
    for port in [80, 443] {
        for flags in [SYN, ACK, ACK] {
            let mut frame = packet(Protocol::Tcp, WAN_MAC, CLIENT, &at(VIRTUAL, port), flags);
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
            let macs = (server_mac(1), LAN_MAC);
            assert_eq!(frame, expect(Protocol::Tcp, macs, CLIENT, &at(VIRTUAL, port), flags));
        }
    }
    assert_eq!(rig.connections().len(), 2);
}

#[test]
fn a_service_of_the_very_port_goes_first_and_the_other_protocol_is_nobodys() {
    let mut rig = rig(Protocol::Tcp, Mode::Nat, &[1]);
    beside(&mut rig, VIP, (5, "10.0.0.5:80"));
    assert_eq!(to(&rig, Protocol::Tcp, 80, SYN), Some(5));
    assert_eq!(to(&rig, Protocol::Tcp, 81, SYN), Some(1));
    let mut udp = packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0);
    assert_eq!(rig.push(WAN, &mut udp), Verdict::Punt(Punt::NoService));
    let mut other = packet(Protocol::Tcp, WAN_MAC, CLIENT, "192.0.2.12:81", SYN);
    assert_eq!(rig.push(WAN, &mut other), Verdict::Punt(Punt::NoService));
}

/// The queue to Linux has room of its own for what may answer a check, and a server sends more than that.
#[test]
fn only_what_a_server_sends_to_the_router_itself_may_answer_a_check() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rig = rig(protocol, Mode::Nat, &[1]);
        for (to, reason) in [(ROUTER, Punt::ServerReply), (CLIENT, Punt::NoService)] {
            let mut frame = packet(protocol, LAN_MAC, "10.0.0.1:50000", to, SYN);
            assert_eq!(rig.push(LAN, &mut frame), Verdict::Punt(reason), "{protocol} {to}");
        }
    }
}

#[test]
fn a_server_may_be_that_of_another_service_at_the_very_port() {
    let mut rig = rig(Protocol::Tcp, Mode::Nat, &[1]);
    beside(&mut rig, OTHER, (5, "10.0.0.1:80"));
    assert_eq!(to(&rig, Protocol::Tcp, 80, SYN), Some(1));
    from(&rig, Protocol::Tcp, 1, 80, &at(VIRTUAL, 80));
    // The client's other port, through the other service.
    let client = "198.51.100.7:40113";
    let mut syn = packet(Protocol::Tcp, WAN_MAC, client, OTHER, SYN);
    assert_eq!(rig.push(WAN, &mut syn), Verdict::Forward(LAN));
    let mut reply = packet(Protocol::Tcp, LAN_MAC, "10.0.0.1:80", client, SYN | ACK);
    assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
    assert_eq!(reply, expect(Protocol::Tcp, (CLIENT_MAC, WAN_MAC), OTHER, client, SYN | ACK));
    // Nobody's: of neither.
    let mut stray = packet(Protocol::Tcp, LAN_MAC, "10.0.0.1:80", "198.51.100.7:40114", ACK);
    assert_eq!(rig.push(LAN, &mut stray), Verdict::Punt(Punt::NoService));
    // And what is explained is what happens.
    let reply = packet(Protocol::Tcp, LAN_MAC, "10.0.0.1:80", CLIENT, ACK);
    let explained = explain(&rig.snapshot, &rig.engine.table, rig.now, LAN, &reply).unwrap();
    assert_eq!(explained.connection.map(|connection| connection.dest), DestId::new(1));
    assert_eq!(explained.verdict, Verdict::Forward(WAN));
}

#[test]
fn a_persistent_client_has_one_server_for_all_ports() {
    let mut rig = rig(Protocol::Tcp, Mode::Nat, &[1, 1]);
    rig.spec.persistence = Some(Persistence { seconds: 300, prefix: 32, expire_quiescent: false });
    rig.publish();
    let server = to(&rig, Protocol::Tcp, 80, SYN);
    for port in 81..90 {
        assert_eq!(to(&rig, Protocol::Tcp, port, SYN), server);
    }
    let templates = rig.connections().iter().filter(|(.., state)| *state == State::Template).count();
    assert_eq!(templates, 1);
}

#[test]
fn an_icmp_error_is_translated_with_the_port_that_it_quotes() {
    let rig = rig(Protocol::Udp, Mode::Nat, &[1]);
    for port in [53, 5353] {
        assert_eq!(to(&rig, Protocol::Udp, port, 0), Some(1));
        let got = packet(Protocol::Udp, LAN_MAC, CLIENT, &at("10.0.0.1", port), 0);
        let mut error = related::error(LAN_MAC, "10.0.0.1:0", CLIENT, 3, &got[14..]);
        assert_eq!(rig.push(LAN, &mut error), Verdict::Forward(WAN));
        let message = related::message(&error, &at(VIRTUAL, port), CLIENT);
        assert_eq!(message[8 + 16..8 + 20], [192, 0, 2, 10]);
        assert_eq!(message[8 + 22..8 + 24], port.to_be_bytes());
    }
}

#[test]
fn a_connection_of_a_removed_server_is_reset_at_its_port() {
    let mut rig = rig(Protocol::Tcp, Mode::Nat, &[1]);
    for flags in [SYN, ACK] {
        to(&rig, Protocol::Tcp, 8443, flags);
    }
    rig.spec.dests[0].reset = true;
    rig.publish();
    let virtual_ = at(VIRTUAL, 8443);
    let mut frame = packet(Protocol::Tcp, WAN_MAC, CLIENT, &virtual_, ACK);
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::Reset));
    let resets = reset::reset(&rig.engine.table, &rig.snapshot, &frame[14..]);
    let ports: Vec<&[u8]> = resets.iter().map(|packet| &packet[20..24]).collect();
    let [client, port] = [40112u16, 8443].map(u16::to_be_bytes);
    assert_eq!(ports, [[port, client].concat(), [client, port].concat()]);
    assert_eq!(rig.connections(), []);
}

#[test]
fn what_a_peer_tells_goes_on_at_its_port() {
    let (old, new) = (rig(Protocol::Tcp, Mode::Nat, &[0, 1]), rig(Protocol::Tcp, Mode::Nat, &[1, 0]));
    for flags in [SYN, ACK] {
        assert_eq!(to(&old, Protocol::Tcp, 443, flags), Some(2));
    }
    let table = &old.engine.table;
    for (slot, word) in table.entries(0..table.buckets()) {
        let news = News {
            client: old.snapshot.client_of(table, slot, word).unwrap(),
            dest: DestId::new(word.dest_number() as u32).unwrap(),
            virtual_port: old.snapshot.virtual_of(table, slot, word).unwrap().port(),
            state: word.state(),
            flags: word.flags(),
            age: 0,
            local: None,
            slack: 0,
        };
        let told = || adopt(&new.engine.table, &new.snapshot, new.now, &news);
        assert_eq!([told(), told()], [Adopted::New, Adopted::Known]);
    }
    assert_eq!(to(&new, Protocol::Tcp, 443, ACK), Some(2));
    from(&new, Protocol::Tcp, 2, 443, &at(VIRTUAL, 443));
}

#[test]
fn of_some_ports_the_others_are_linux_and_a_client_has_one_server_for_its_own() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut rig = rig(protocol, Mode::Nat, &[1, 1]);
        rig.spec.ports = vec![21..=21, 10_000..=20_000];
        rig.spec.persistence = Some(Persistence { seconds: 300, prefix: 32, expire_quiescent: false });
        rig.publish();
        let server = to(&rig, protocol, 21, SYN).unwrap();
        for port in [10_000, 15_000, 20_000] {
            assert_eq!(to(&rig, protocol, port, SYN), Some(server), "port {port}");
            from(&rig, protocol, server, port, &at(VIRTUAL, port));
        }
        for port in [1, 20, 22, 9999, 20_001, 65_535] {
            let mut frame = packet(protocol, WAN_MAC, CLIENT, &at(VIRTUAL, port), SYN);
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::NoService), "port {port}");
        }
        // Connections stay as they are known, but what a port that has gone brings concerns the service no more.
        rig.spec.ports = vec![21..=21];
        rig.publish();
        assert_eq!(to(&rig, protocol, 21, ACK), Some(server));
        let mut frame = packet(protocol, WAN_MAC, CLIENT, &at(VIRTUAL, 15_000), ACK);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::NoService));
    }
}

#[test]
fn of_some_ports_of_ipv6_the_others_are_linux() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    rig.spec.address = socket6("[2001:db8::10]:0").into();
    rig.spec.ports = vec![21..=21, 10_000..=20_000];
    rig.spec.dests[0].address = socket6(&server6(1, 0)).into();
    publish6(&mut rig);
    let none = Verdict::Punt(Punt::NoService);
    for (port, expected) in [
        (20, none),
        (21, Verdict::Forward(LAN)),
        (22, none),
        (9999, none),
        (10_000, Verdict::Forward(LAN)),
        (20_000, Verdict::Forward(LAN)),
        (20_001, none),
    ] {
        let virtual_ = format!("[2001:db8::10]:{port}");
        let mut frame = packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), (CLIENT6, &virtual_), (SYN, 64), &[]);
        assert_eq!(rig.push(WAN, &mut frame), expected, "port {port}");
    }
    // Once it is gone, its connections go on, and all else is Linux', whatever its ports were.
    (rig.spec.live, rig.spec.ports) = (false, Vec::new());
    publish6(&mut rig);
    for (port, flags, expected) in [
        (21, ACK, Verdict::Forward(LAN)),
        (21, SYN | ACK, Verdict::Forward(LAN)),
        (80, SYN, none),
        (80, ACK, none),
    ] {
        let virtual_ = format!("[2001:db8::10]:{port}");
        let mut frame = packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), (CLIENT6, &virtual_), (flags, 64), &[]);
        assert_eq!(rig.push(WAN, &mut frame), expected, "port {port}");
    }
}

#[test]
fn of_ipv6_the_virtual_port_is_part_of_the_hash() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 1]);
    rig.spec.address = socket6("[2001:db8::10]:0").into();
    for (dest, n) in rig.spec.dests.iter_mut().zip(1..) {
        dest.address = socket6(&server6(n, 0)).into();
    }
    publish6(&mut rig);
    for (port, n) in [(80, 2), (443, 1)] {
        let virtual_ = format!("[2001:db8::10]:{port}");
        for flags in [SYN, ACK, ACK] {
            let macs = (WAN_MAC, CLIENT_MAC);
            let mut frame = packet6(Protocol::Tcp, macs, (CLIENT6, &virtual_), (flags, 64), &[]);
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
            let (macs, server) = ((server_mac(n), LAN_MAC), server6(n, port));
            assert_eq!(frame, packet6(Protocol::Tcp, macs, (CLIENT6, &server), (flags, 63), &[]));

            let macs = (LAN_MAC, server_mac(n));
            let mut reply = packet6(Protocol::Tcp, macs, (&server, CLIENT6), (flags | ACK, 64), &[]);
            assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
            let macs = (CLIENT_MAC, WAN_MAC);
            assert_eq!(reply, packet6(Protocol::Tcp, macs, (&virtual_, CLIENT6), (flags | ACK, 63), &[]));
        }
    }
    let table = &rig.engine.table;
    let shown = |(slot, word)| {
        let client = rig.snapshot.client_of(table, slot, word).unwrap();
        (client.to_string(), rig.snapshot.virtual_of(table, slot, word).unwrap().port())
    };
    let shown: BTreeSet<(String, u16)> = table.entries(0..table.buckets()).map(shown).collect();
    assert_eq!(shown, [80, 443].map(|port| (CLIENT6.to_owned(), port)).into());
}

#[test]
fn a_datagram_in_fragments_goes_both_ways_beside_another_service_of_its_endpoint() {
    let mut rig = rig(Protocol::Udp, Mode::Nat, &[1]);
    beside(&mut rig, OTHER, (5, "10.0.0.1:5353"));
    let virtual_ = at(VIRTUAL, 5353);
    let macs = (server_mac(1), LAN_MAC);
    let sent = large(&packet(Protocol::Udp, WAN_MAC, CLIENT, &virtual_, 0), 3000);
    let got = large(&expect(Protocol::Udp, macs, CLIENT, "10.0.0.1:5353", 0), 3000);
    in_every_order(&rig, WAN, &sent, 1024, &got, LAN);
    let macs = (CLIENT_MAC, WAN_MAC);
    let sent = large(&packet(Protocol::Udp, LAN_MAC, "10.0.0.1:5353", CLIENT, 0), 3000);
    let got = large(&expect(Protocol::Udp, macs, &virtual_, CLIENT, 0), 3000);
    in_every_order(&rig, LAN, &sent, 1024, &got, WAN);
}

#[test]
fn a_servers_first_fragment_from_another_port_contradicts_the_one_before() {
    let rig = rig(Protocol::Udp, Mode::Nat, &[1]);
    assert_eq!(to(&rig, Protocol::Udp, 443, 0), Some(1));
    let first = |port| {
        let reply = packet(Protocol::Udp, LAN_MAC, &at("10.0.0.1", port), CLIENT, 0);
        split(&large(&reply, 1200), 800).remove(0)
    };
    assert_eq!(rig.push(LAN, &mut first(443)), Verdict::Forward(WAN));
    assert_eq!(rig.push(LAN, &mut first(8080)), Verdict::Drop(Drop::FragmentOverlap));
    assert_eq!(rig.push(LAN, &mut first(443)), Verdict::Forward(WAN), "a copy is none");
}

#[test]
fn a_connection_goes_before_a_service_that_answers_for_want_of_one() {
    let mut rig = rig(Protocol::Udp, Mode::Nat, &[1]);
    let dest = DestSpec::new(DestId::new(9).unwrap(), socket("10.0.0.1:8053"));
    let spec = ServiceSpec::new(socket("192.0.2.10:53"), Protocol::Udp, Mode::Nat);
    let spec = ServiceSpec { scheduler: Scheduler::Rr, one_packet: true, dests: vec![dest], ..spec };
    rig.generation += 1;
    rig.snapshot = compile(rig.generation, &[spec, rig.spec.clone()], []);
    // Nobody knows of it, so it is the other service's answer.
    from(&rig, Protocol::Udp, 1, 8053, "192.0.2.10:53");
    assert_eq!(to(&rig, Protocol::Udp, 8053, 0), Some(1));
    let reply = packet(Protocol::Udp, LAN_MAC, "10.0.0.1:8053", CLIENT, 0);
    let explained = explain(&rig.snapshot, &rig.engine.table, rig.now, LAN, &reply).unwrap();
    from(&rig, Protocol::Udp, 1, 8053, "192.0.2.10:8053");
    assert_eq!(explained.frame, expect(Protocol::Udp, (CLIENT_MAC, WAN_MAC), "192.0.2.10:8053", CLIENT, 0));
}
