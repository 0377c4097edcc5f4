//! Full NAT: servers see a local address of the router.

use super::fragments::{Poller, large, split};
use super::related::{error, hop, message};
use super::six::{fibs, packet6, server};
use super::*;
use crate::engine::{explain, tell};
use crate::snapshot::Pool;
use crate::table::LocalAddress;

pub(super) const LOCAL: &str = "10.0.0.100:2000";
pub(super) const LOCAL6: &str = "[2001:db8:a::100]:2000";
pub(super) const SERVER: &str = "10.0.0.1:8080";
const CLIENT6: &str = "[2001:db8:c::7]:40112";
const VIP6: &str = "[2001:db8::10]:80";

/// Of so many ports, from 2000 on.
pub(super) fn pool(local: &str, ports: u16) -> Option<Pool> {
    let address = local.parse::<std::net::SocketAddr>().unwrap().ip();
    let local = Arc::new(LocalAddress::new(3, address).unwrap());
    Some(Pool { locals: vec![local], ports: 2000..=1999 + ports, proxy: false, is_rehearsal: false })
}

pub(super) fn rig(protocol: Protocol, ports: u16) -> Rig {
    let mut rig = Rig::new(protocol, Mode::Fullnat, &[1]);
    rig.spec.dests[0].address = socket(SERVER).into();
    rig.spec.pool = pool(LOCAL, ports);
    rig.publish();
    rig
}

pub(super) fn rig6(protocol: Protocol) -> Rig {
    let mut rig = rig(protocol, 1);
    rig.spec.address = VIP6.parse().unwrap();
    rig.spec.dests[0].address = server(1, 8080).parse().unwrap();
    rig.spec.pool = pool(LOCAL6, 1);
    let ports = vec![PortSpec { mac: WAN_MAC }, PortSpec { mac: LAN_MAC }];
    rig.snapshot = Snapshot::new(9, ports, std::slice::from_ref(&rig.spec), [], fibs());
    rig
}

fn from_server(flags: u8) -> Vec<u8> {
    packet(Protocol::Tcp, LAN_MAC, SERVER, LOCAL, flags)
}

fn sweep(rig: &Rig) {
    (0..rig.engine.table.buckets()).for_each(|at| rig.engine.sweep(&rig.snapshot, rig.now, at..at + 1));
}

#[test]
fn both_addresses_are_rewritten_both_ways_to_the_byte() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rig = rig(protocol, 1);
        for flags in [SYN, ACK, ACK] {
            let mut request = packet(protocol, WAN_MAC, CLIENT, VIP, flags);
            assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
            assert_eq!(request, expect(protocol, (server_mac(1), LAN_MAC), LOCAL, SERVER, flags));
            let mut reply = packet(protocol, LAN_MAC, SERVER, LOCAL, flags | ACK);
            assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
            assert_eq!(reply, expect(protocol, (CLIENT_MAC, WAN_MAC), VIP, CLIENT, flags | ACK));
        }
        let traffic = rig.engine.counters.traffic.get();
        assert_eq!((traffic.connections, traffic.packets_in, traffic.packets_out), (1, 3, 3));
        assert_eq!(rig.live(1), if protocol == Protocol::Tcp { (1, 0) } else { (0, 1) });
    }
}

#[test]
fn of_ipv6_as_well() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let (rig, server) = (rig6(protocol), server(1, 8080));
        for flags in [SYN, ACK, ACK] {
            let mut request = packet6(protocol, (WAN_MAC, CLIENT_MAC), (CLIENT6, VIP6), (flags, 64), &[]);
            assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
            let macs = (server_mac(1), LAN_MAC);
            assert_eq!(request, packet6(protocol, macs, (LOCAL6, &server), (flags, 63), &[]));
            let macs = (LAN_MAC, server_mac(1));
            let mut reply = packet6(protocol, macs, (&server, LOCAL6), (flags | ACK, 64), &[]);
            assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
            let macs = (CLIENT_MAC, WAN_MAC);
            assert_eq!(reply, packet6(protocol, macs, (VIP6, CLIENT6), (flags | ACK, 63), &[]));
        }
    }
}

#[test]
fn without_a_free_port_nothing_begins_and_what_has_ended_gives_its_port_back() {
    let mut rig = rig(Protocol::Tcp, 2);
    let from = |n: u16| packet(Protocol::Tcp, WAN_MAC, &format!("198.51.100.7:{}", 40_000 + n), VIP, SYN);
    for n in [1, 2, 1, 2] {
        assert_eq!(rig.push(WAN, &mut from(n)), Verdict::Forward(LAN));
    }
    assert_eq!(rig.push(WAN, &mut from(3)), Verdict::Drop(Drop::NoLocalPort));
    assert_eq!((rig.connections().len(), rig.live(1)), (2, (2, 0)));
    sweep(&rig);
    assert_eq!(rig.push(WAN, &mut from(3)), Verdict::Drop(Drop::NoLocalPort));
    rig.wait(62);
    sweep(&rig);
    sweep(&rig);
    assert_eq!((rig.connections().len(), rig.live(1)), (0, (0, 0)));
    assert_eq!(rig.push(WAN, &mut from(3)), Verdict::Forward(LAN));
}

#[test]
fn what_comes_to_a_local_port_from_somebody_else_is_linuxs() {
    let rig = rig(Protocol::Tcp, 2);
    rig.push(WAN, &mut from_client(SYN));
    for (from, to) in [(SERVER, "10.0.0.100:1999"), ("10.0.0.1:8081", LOCAL), ("10.0.0.2:8080", LOCAL)] {
        let mut frame = packet(Protocol::Tcp, LAN_MAC, from, to, ACK);
        assert_eq!(rig.push(LAN, &mut frame), Verdict::Punt(Punt::NoService));
    }
}

#[test]
fn a_reply_at_the_end_of_its_hops_has_not_arrived() {
    let own = "10.0.0.254:2000";
    let mut rig = rig(Protocol::Tcp, 1);
    rig.spec.pool = pool(own, 1);
    rig.publish();
    rig.push(WAN, &mut from_client(SYN));
    let mut reply = packet(Protocol::Tcp, LAN_MAC, SERVER, own, SYN | ACK);
    u32::set_ttl(&mut reply[14..34], 1);
    assert_eq!(
        rig.push(LAN, &mut reply),
        Verdict::Drop(Drop::TtlExpired),
        "though the address is the router's"
    );
}

#[test]
fn another_pool_leaves_connections_their_ports() {
    let mut rig = rig(Protocol::Tcp, 1);
    rig.push(WAN, &mut from_client(SYN));
    let old = rig.spec.pool.take().unwrap();
    let new = Arc::new(LocalAddress::new(4, [10, 0, 0, 101].into()).unwrap());
    rig.spec.pool = Some(Pool { locals: vec![new], ports: 3000..=3000, proxy: false, is_rehearsal: false });
    rig.publish();
    rig.snapshot = rig.snapshot.with_locals(old.locals);
    let mut request = from_client(ACK);
    assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
    assert_eq!(request, expect(Protocol::Tcp, (server_mac(1), LAN_MAC), LOCAL, SERVER, ACK));
    assert_eq!(rig.push(LAN, &mut from_server(ACK)), Verdict::Forward(WAN));
    let mut other = packet(Protocol::Tcp, WAN_MAC, "198.51.100.8:40112", VIP, SYN);
    assert_eq!(rig.push(WAN, &mut other), Verdict::Forward(LAN));
    assert_eq!(other, expect(Protocol::Tcp, (server_mac(1), LAN_MAC), "10.0.0.101:3000", SERVER, SYN));
}

#[test]
fn a_place_that_somebody_has_written_over_is_found_again() {
    let rig = rig(Protocol::Tcp, 1);
    rig.push(WAN, &mut from_client(SYN));
    let table = &rig.engine.table;
    let (slot, word) = table.entries(0..table.buckets()).next().unwrap();
    let local = table.local_of(slot, word.identity()).unwrap();
    let other = crate::table::Word::new(crate::table::Client::new(7, 7), DestId::new(1).unwrap()).identity();
    table.note_local(slot, other, local);
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Forward(LAN));
    assert_eq!(table.local_of(slot, word.identity()), Some(local));
}

#[test]
fn a_server_may_serve_by_nat_as_well() {
    let rig = rig(Protocol::Tcp, 1);
    let mut by_nat = ServiceSpec::new(socket("192.0.2.11:80"), Protocol::Tcp, Mode::Nat);
    by_nat.dests.push(DestSpec::new(DestId::new(2).unwrap(), socket(SERVER)));
    let rig = Rig { snapshot: compile(9, &[rig.spec.clone(), by_nat], []), ..rig };
    rig.push(WAN, &mut from_client(SYN));
    rig.push(WAN, &mut packet(Protocol::Tcp, WAN_MAC, CLIENT, "192.0.2.11:80", SYN));
    for (to, service) in [(LOCAL, VIP), (CLIENT, "192.0.2.11:80")] {
        let mut reply = packet(Protocol::Tcp, LAN_MAC, SERVER, to, SYN | ACK);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, expect(Protocol::Tcp, (CLIENT_MAC, WAN_MAC), service, CLIENT, SYN | ACK));
    }
    let mut to_check = packet(Protocol::Tcp, LAN_MAC, SERVER, ROUTER, ACK);
    assert_eq!(rig.push(LAN, &mut to_check), Verdict::Punt(Punt::ServerReply));
}

#[test]
fn errors_are_about_what_their_receiver_has_sent() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rig = rig(protocol, 1);
        let sent = packet(protocol, WAN_MAC, CLIENT, VIP, SYN);
        let mut got = sent.clone();
        rig.push(WAN, &mut got);
        for reporter in [SERVER, "10.0.0.253:0"] {
            let mut frame = error(LAN_MAC, reporter, LOCAL, 3, &got[14..]);
            assert_eq!(rig.push(LAN, &mut frame), Verdict::Forward(WAN));
            assert_eq!(message(&frame, VIP, CLIENT)[8..], hop(&sent));
            assert_eq!((&frame[..6], &frame[6..12], frame[22]), (&CLIENT_MAC[..], &WAN_MAC[..], 63));
        }
        let sent = packet(protocol, LAN_MAC, SERVER, LOCAL, SYN | ACK);
        let mut got = sent.clone();
        rig.push(LAN, &mut got);
        let mut frame = error(WAN_MAC, "203.0.113.1:0", VIP, 3, &got[14..]);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
        assert_eq!(message(&frame, LOCAL, SERVER)[8..], hop(&sent));
    }
}

#[test]
fn fragments_follow_their_first_both_ways() {
    let rig = rig(Protocol::Udp, 1);
    for (port, from, to, out, expected) in
        [(WAN, CLIENT, VIP, LAN, (LOCAL, SERVER)), (LAN, SERVER, LOCAL, WAN, (VIP, CLIENT))]
    {
        let mac = if port == WAN { WAN_MAC } else { LAN_MAC };
        let datagram = large(&packet(Protocol::Udp, mac, from, to, 0), 3000);
        let mut poller = Poller::new(&rig);
        poller.push_all(port, &split(&datagram, 1480));
        assert_eq!(poller.verdicts(), [Verdict::Forward(out); 3]);
        for (_, frame) in &poller.out {
            let [from, to] = [expected.0, expected.1].map(|end| socket(end).ip().octets());
            assert_eq!(frame[26..34], [from, to].concat());
            assert_eq!(checksum::sum(&frame[14..34]), 0xFFFF);
        }
        let first = &poller.out[0].1;
        assert_eq!(first[34..36], socket(expected.0).port().to_be_bytes());
        assert_eq!(first[36..38], socket(expected.1).port().to_be_bytes());
    }
}

#[test]
fn a_reply_that_is_too_long_for_the_clients_link_is_told_its_mtu() {
    let rig = rig(Protocol::Tcp, 1);
    rig.push(WAN, &mut from_client(SYN));
    let mut reply = large(&from_server(ACK), 1500);
    reply[20] = 0x40;
    reply[24..26].fill(0);
    let sum = !checksum::sum(&reply[14..34]);
    reply[24..26].copy_from_slice(&sum.to_be_bytes());
    let told = reply[14..].to_vec();
    assert_eq!(rig.push(LAN, &mut reply), Verdict::Drop(Drop::TooBig));
    let error = tell::error(&rig.engine.table, &rig.snapshot, rig.now, Drop::TooBig, &told).unwrap();
    assert_eq!((&error[16..20], &error[26..28]), (&[10, 0, 0, 1][..], &1500_u16.to_be_bytes()[..]));
}

#[test]
fn a_reset_tells_both_ends_what_they_know() {
    let [client, vip, server, local] = [CLIENT, VIP, SERVER, LOCAL].map(socket);
    for (port, mut frame, expected) in [
        (WAN, from_client(ACK), [(vip, client, 2, RST), (local, server, 1, RST)]),
        (LAN, from_server(ACK), [(local, server, 2, RST), (vip, client, 1, RST)]),
    ] {
        let mut rig = rig(Protocol::Tcp, 1);
        rig.push(WAN, &mut from_client(SYN));
        rig.push(WAN, &mut from_client(ACK));
        (rig.spec.dests[0].reset, rig.spec.dests[0].weight) = (true, 0);
        rig.publish();
        assert_eq!(rig.push(port, &mut frame), Verdict::Punt(Punt::Reset));
        let resets = reset::reset(&rig.engine.table, &rig.snapshot, &frame[14..]);
        assert_eq!(resets.iter().map(|reset| shown(reset)).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn explaining_takes_no_port() {
    let rig = rig(Protocol::Tcp, 1);
    let explained =
        |port, frame: &[u8]| explain(&rig.snapshot, &rig.engine.table, rig.now, port, frame).unwrap();
    let told = explained(WAN, &from_client(SYN));
    assert_eq!(told.frame, expect(Protocol::Tcp, (server_mac(1), LAN_MAC), LOCAL, SERVER, SYN));
    assert_eq!(rig.spec.pool.as_ref().unwrap().locals[0].taken(Protocol::Tcp), 0);
    rig.push(WAN, &mut from_client(SYN));
    for (port, frame) in [(WAN, from_client(ACK)), (LAN, from_server(SYN | ACK))] {
        let told = explained(port, &frame);
        let mut pushed = frame.clone();
        assert_eq!((told.verdict, told.frame), (rig.push(port, &mut pushed), pushed));
        assert!(told.connection.is_some() && told.hit.is_some());
    }
}

#[test]
fn a_peers_connection_has_the_port_that_it_has_there() {
    let rig = rig(Protocol::Tcp, 2);
    let news = |client: &str, local: Option<&str>| News {
        virtual_port: 0,
        client: socket(client).into(),
        dest: DestId::new(1).unwrap(),
        state: State::Established,
        flags: 0,
        age: 0,
        slack: 0,
        local: local.map(|local| socket(local).into()),
    };
    let adopted =
        |client: &str, local| adopt(&rig.engine.table, &rig.snapshot, rig.now, &news(client, local));
    assert_eq!(adopted(CLIENT, None), Adopted::Stale);
    assert_eq!(adopted(CLIENT, Some("10.0.0.101:2000")), Adopted::Stale, "of no pool here");
    assert_eq!(adopted(CLIENT, Some("10.0.0.100:2001")), Adopted::New);
    assert_eq!(adopted("198.51.100.8:1", Some("10.0.0.100:2001")), Adopted::NoRoom, "it is taken");
    let mut request = from_client(ACK);
    assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
    assert_eq!(request, expect(Protocol::Tcp, (server_mac(1), LAN_MAC), "10.0.0.100:2001", SERVER, ACK));
}

/// A TCP segment without the payload of [`packet`].
pub(super) fn segment(
    mac: [u8; 6],
    from: &str,
    to: &str,
    flags: u8,
    numbers: [u32; 2],
    rest: (&[u8], &[u8]),
) -> Vec<u8> {
    let mut frame = packet(Protocol::Tcp, mac, from, to, flags)[..54].to_vec();
    frame.extend([rest.0, rest.1].concat());
    let [sequence, acknowledged] = numbers.map(u32::to_be_bytes);
    frame[38..42].copy_from_slice(&sequence);
    frame[42..46].copy_from_slice(&acknowledged);
    frame[46] = ((5 + rest.0.len() / 4) as u8) << 4;
    let length = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame[24..26].fill(0);
    let sum = !checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[50..52].fill(0);
    let sum = !tcp_sum(&frame);
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn tcp_sum(frame: &[u8]) -> u16 {
    let length = (frame.len() - 34) as u16;
    checksum::sum(&[&frame[26..34], &[0, 6], &length.to_be_bytes(), &frame[34..]].concat())
}

/// Sequence number, acknowledgement, and what is behind the header of a segment whose sums are right.
pub(super) fn told(frame: &[u8]) -> (u32, u32, &[u8]) {
    assert_eq!((checksum::sum(&frame[14..34]), tcp_sum(frame)), (0xFFFF, 0xFFFF));
    assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
    let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    (number(38), number(42), &frame[34 + usize::from(frame[46] >> 4) * 4..])
}

#[test]
fn a_server_hears_whose_the_stream_is_and_the_numbers_fit() {
    // The client's numbers turn round within the header.
    const ISN: u32 = u32::MAX - 10;
    let mut rig = rig(Protocol::Tcp, 1);
    rig.spec.pool.as_mut().unwrap().proxy = true;
    rig.publish();
    let header =
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C"[..], &[198, 51, 100, 7, 192, 0, 2, 10, 0x9C, 0xB0, 0, 80]]
            .concat();
    let first = ISN.wrapping_add(1);
    let push = |inward: bool, flags, numbers, options: &[u8], data: &[u8]| {
        let (port, mac, from, to) =
            if inward { (WAN, WAN_MAC, CLIENT, VIP) } else { (LAN, LAN_MAC, SERVER, LOCAL) };
        let mut frame = segment(mac, from, to, flags, numbers, (options, data));
        (rig.push(port, &mut frame), frame)
    };
    let passed = |inward: bool, flags, numbers, options: &[u8], data: &[u8]| {
        let (verdict, frame) = push(inward, flags, numbers, options, data);
        assert_eq!(verdict, Verdict::Forward(if inward { LAN } else { WAN }));
        frame
    };
    assert_eq!(push(true, SYN, [ISN, 0], &[], b"early").0, Verdict::Drop(Drop::BadTransportHeader));
    assert_eq!(told(&passed(true, SYN, [ISN, 0], &[], b"")), (ISN, 0, &b""[..]));
    let opening = passed(false, SYN | ACK, [500, first], &[2, 4, 0x05, 0xB4], b"");
    assert_eq!((told(&opening), &opening[54..58]), ((500, first, &b""[..]), &[2, 4, 0x05, 0x98][..]));
    // The header, and again with the data, until it is acknowledged.
    assert_eq!(told(&passed(true, ACK, [first, 501], &[], b"")), (first, 501, &header[..]));
    let with_data = [&header[..], b"hello"].concat();
    assert_eq!(told(&passed(true, ACK, [first, 501], &[], b"hello")), (first, 501, &with_data[..]));
    // Acknowledged in part, and then more: of the header the client knows nothing.
    assert_eq!(told(&passed(false, ACK, [501, first.wrapping_add(20)], &[], b"")).1, first);
    let next = first.wrapping_add(5);
    assert_eq!(
        told(&passed(true, ACK, [next, 501], &[], b"world")),
        (next.wrapping_add(28), 501, &b"world"[..])
    );
    assert_eq!(
        told(&passed(false, ACK, [501, next.wrapping_add(28)], &[], b"yes")),
        (501, next, &b"yes"[..])
    );
    // From now on what begins like the stream is only late.
    assert_eq!(
        told(&passed(true, ACK, [first, 504], &[], b"hello")),
        (first.wrapping_add(28), 504, &b"hello"[..])
    );
    // SACK: the edges are of the same stream.
    let [left, right] = [5_u32, 10].map(|n| next.wrapping_add(28 + n).to_be_bytes());
    let sack = [&[1, 1, 5, 10][..], &left, &right].concat();
    let frame = passed(false, ACK, [504, next.wrapping_add(28)], &sack, b"");
    let [left, right] = [5_u32, 10].map(|n| next.wrapping_add(n).to_be_bytes());
    assert_eq!((told(&frame).1, &frame[58..66]), (next, &[left, right].concat()[..]));
    // A SYN that somebody has made up changes nothing, and the end is where the server expects it.
    passed(true, SYN, [77, 0], &[], b"");
    assert_eq!(told(&passed(true, FIN | ACK, [next, 504], &[], b"")).0, next.wrapping_add(28));
}
