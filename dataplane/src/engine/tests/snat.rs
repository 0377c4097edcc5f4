//! Source NAT on bytes: what leaves, what comes back, and who is told.

use super::fragments::{Poller, join, large, mend, numbered, orders, split};
use super::*;
use crate::snat::{Share, Snat, SnatSpec, SnatTimeouts, Snats};
use crate::wire::icmp;
use crate::wire::transport::PSH;

const POOL: &str = "192.0.2.50";
const INSIDE: &str = "10.0.0.5:40001";
const PEER: &str = "198.51.100.7:53";

fn address(text: &str) -> u32 {
    u32::from(text.parse::<std::net::Ipv4Addr>().unwrap())
}

fn rig() -> Rig {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let spec = SnatSpec {
        inside: vec![(address("10.0.0.0"), 24)],
        outside: vec![address(POOL)],
        ports: 2000..=2063,
        block: 16,
        limit: 32,
        mappings: 1000,
        timeouts: SnatTimeouts::default(),
    };
    rig.snapshot.snats =
        Snats::new(vec![Arc::new(Snat::new(spec, HashKey { blind: 9, factor: 5 }, Share::WHOLE))]);
    rig.snapshot.routing = true;
    rig
}

/// What came of a packet that passes: its ends, when its checksums are found right.
fn pass(rig: &Rig, port: PortIndex, mut frame: Vec<u8>, out: PortIndex) -> (String, String) {
    let ttl = frame[22];
    assert_eq!(rig.push(port, &mut frame), Verdict::Route(out));
    assert_eq!((frame[22], checksum::sum(&frame[14..34])), (ttl - 1, 0xFFFF));
    let (protocol, segment) = (frame[23], &frame[34..]);
    let length = (segment.len() as u16).to_be_bytes();
    let pseudo = [&frame[26..34], &[0, protocol], &length].concat();
    let sum =
        if protocol == 1 { checksum::sum(segment) } else { checksum::sum(&[&pseudo, segment].concat()) };
    assert_eq!(sum, 0xFFFF, "{frame:02x?}");
    let end = |at: usize, port: usize| {
        let ip = std::net::Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
        format!("{ip}:{}", u16::from_be_bytes([frame[port], frame[port + 1]]))
    };
    if protocol == 1 { (end(26, 38), end(30, 38)) } else { (end(26, 34), end(30, 36)) }
}

fn out(protocol: Protocol, from: &str, to: &str, flags: u8) -> Vec<u8> {
    packet(protocol, LAN_MAC, from, to, flags)
}

fn back(protocol: Protocol, from: &str, to: &str, flags: u8) -> Vec<u8> {
    packet(protocol, WAN_MAC, from, to, flags)
}

fn port_of(end: &str) -> u16 {
    socket(end).port()
}

/// An echo, or the reply to one.
fn echo(mac: [u8; 6], kind: u8, from: &str, to: &str, id: u16) -> Vec<u8> {
    let mut frame = packet(Protocol::Udp, mac, &format!("{from}:1"), &format!("{to}:1"), 0);
    frame[23] = 1;
    frame[34..42].copy_from_slice(&[kind, 0, 0, 0, (id >> 8) as u8, id as u8, 0, 9]);
    let sum = !checksum::sum(&frame[34..]);
    frame[36..38].copy_from_slice(&sum.to_be_bytes());
    mend(frame)
}

#[test]
fn what_leaves_has_the_pools_address_and_what_comes_back_its_own() {
    let rig = rig();
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let (from, to) = pass(&rig, LAN, out(protocol, INSIDE, PEER, SYN), WAN);
        assert!(from.starts_with("192.0.2.50:20") && port_of(&from) % 2 == 1 && to == PEER, "{from} {to}");
        // Whoever else is asked, and whoever answers.
        let other = "203.0.113.9:4000";
        assert_eq!(pass(&rig, LAN, out(protocol, INSIDE, other, ACK), WAN), (from.clone(), other.into()));
        for peer in [PEER, other, "203.0.113.77:7"] {
            let ends = pass(&rig, WAN, back(protocol, peer, &from, SYN | ACK), LAN);
            assert_eq!(ends, (peer.to_owned(), INSIDE.to_owned()));
        }
        let second = pass(&rig, LAN, out(protocol, "10.0.0.5:40002", PEER, SYN), WAN).0;
        assert!(port_of(&second).is_multiple_of(2));
    }
    assert!(rig.connections().is_empty());
}

#[test]
fn pings_go_by_their_identifier() {
    let rig = rig();
    let (from, _) = pass(&rig, LAN, echo(LAN_MAC, 8, "10.0.0.5", "198.51.100.7", 77), WAN);
    let reply = echo(WAN_MAC, 0, "198.51.100.7", POOL, port_of(&from));
    assert_eq!(pass(&rig, WAN, reply, LAN).1, "10.0.0.5:77");
    let mut ping = echo(WAN_MAC, 8, "198.51.100.7", POOL, port_of(&from));
    assert_eq!(
        rig.push(WAN, &mut ping),
        Verdict::Punt(Punt::Icmp),
        "whoever pings the pool's address is answered by Linux"
    );
}

#[test]
fn who_shares_the_pool_may_meet_at_its_addresses() {
    let rig = rig();
    let one = pass(&rig, LAN, out(Protocol::Udp, INSIDE, PEER, 0), WAN).0;
    let (from, to) = pass(&rig, LAN, out(Protocol::Udp, "10.0.0.7:9", &one, 0), LAN);
    assert_eq!(to, INSIDE);
    assert!(from.starts_with(POOL), "as everybody sees it: {from}");
    assert_eq!(pass(&rig, LAN, out(Protocol::Udp, INSIDE, &from, 0), LAN), (one, "10.0.0.7:9".to_owned()));
}

/// RFC 5508, REQ-7: each of two who have met is told of its own packet, and by whom it has sent it to.
#[test]
fn who_has_met_there_is_told_of_errors() {
    let rig = rig();
    for (protocol, flags) in [(Protocol::Udp, 0), (Protocol::Tcp, SYN)] {
        let to = pass(&rig, LAN, out(protocol, INSIDE, PEER, flags), WAN).0;
        let mut sent = out(protocol, "10.0.0.7:9", &to, flags);
        let as_sent = quoted(&[&[0; 28][..], &sent].concat());
        assert_eq!(rig.push(LAN, &mut sent), Verdict::Route(LAN));
        let outside = quoted(&[&[0; 28][..], &sent].concat()).0;
        for says in ["10.0.0.5", "10.0.0.9"] {
            let mut about = error(LAN_MAC, says, POOL, &sent);
            assert_eq!(rig.push(LAN, &mut about), Verdict::Route(LAN));
            assert_eq!(
                (&about[26..34], quoted(&about)),
                (&[192, 0, 2, 50, 10, 0, 0, 7][..], as_sent.clone())
            );
            assert_eq!(checksum::sum(&about[34..]), 0xFFFF);
        }
        // About a packet that nobody has sent there.
        let never = out(protocol, &outside, "10.0.0.8:7", flags);
        let mut about = error(LAN_MAC, "10.0.0.8", POOL, &never);
        assert_eq!(rig.push(LAN, &mut about), Verdict::Drop(Drop::SnatNone));
    }
}

#[test]
fn a_real_server_may_begin_from_its_services_port() {
    let rig = rig();
    let from = pass(&rig, LAN, out(Protocol::Tcp, "10.0.0.1:8080", PEER, SYN), WAN).0;
    assert!(from.starts_with(POOL));
    // A client's connection is the service's all the same.
    rig.push(WAN, &mut from_client(SYN));
    let mut reply = from_server(1, SYN | ACK);
    assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
    assert_eq!(reply[26..30], [192, 0, 2, 10]);
}

#[test]
fn what_begins_nothing_does_not_leave() {
    let rig = rig();
    let drops = |mut frame: Vec<u8>, reason| assert_eq!(rig.push(LAN, &mut frame), Verdict::Drop(reason));
    drops(out(Protocol::Tcp, INSIDE, PEER, ACK), Drop::SnatNone);
    drops(out(Protocol::Tcp, INSIDE, PEER, SYN | RST), Drop::SnatNone);
    drops(out(Protocol::Tcp, INSIDE, PEER, SYN | ACK), Drop::SnatNone);
    drops(echo(LAN_MAC, 0, "10.0.0.5", "198.51.100.7", 77), Drop::SnatNone);
    assert_eq!(rig.snapshot.snats.mappings(), [0]);
    let mut gre = out(Protocol::Udp, INSIDE, PEER, 0);
    gre[23] = 47;
    drops(mend(gre), Drop::SnatNone);
    for n in 0..32 {
        pass(&rig, LAN, out(Protocol::Udp, &format!("10.0.0.5:{}", 40_000 + n), PEER, 0), WAN);
    }
    drops(out(Protocol::Udp, "10.0.0.5:9", PEER, 0), Drop::SnatFull);
    pass(&rig, LAN, echo(LAN_MAC, 8, "10.0.0.5", "198.51.100.7", 77), WAN);
    let (inside, outside) = (address("10.0.0.5"), address(POOL));
    let host = crate::snat::Host { inside, outside, blocks: 3, ports: [0, 32, 1] };
    let snat = &rig.snapshot.snats.all()[0];
    assert_eq!(snat.hosts(), [host]);
    assert_eq!(snat.given(), [crate::snat::Given { address: outside, blocks: [0, 2, 1] }]);
    // Others, inside and outside, are none of its affair.
    let mut within = packet(Protocol::Udp, LAN_MAC, INSIDE, "10.0.0.7:9", 0);
    assert_eq!(rig.push(LAN, &mut within), Verdict::Route(LAN));
    assert_eq!(within[26..30], [10, 0, 0, 5]);
    let mut nobodys = back(Protocol::Tcp, PEER, "192.0.2.50:2001", SYN);
    assert_eq!(rig.push(WAN, &mut nobodys), Verdict::Punt(Punt::NoService), "Linux answers with a reset");
    let mut own = out(Protocol::Tcp, INSIDE, "10.0.0.254:22", SYN);
    assert_eq!(rig.push(LAN, &mut own), Verdict::Punt(Punt::NoService));
}

#[test]
fn an_inside_address_from_outside_begins_nothing() {
    let rig = rig();
    for to in [PEER, "203.0.113.9:4000"] {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let mut spoofed = back(protocol, INSIDE, to, SYN);
            assert_eq!(rig.push(WAN, &mut spoofed), Verdict::Drop(Drop::SnatNone));
        }
    }
    assert_eq!(rig.snapshot.snats.mappings(), [0]);
    // Nor does it meet who is inside, as one of them.
    let from = pass(&rig, LAN, out(Protocol::Udp, INSIDE, PEER, 0), WAN).0;
    let mut spoofed = back(Protocol::Udp, "10.0.0.7:9", &from, 0);
    assert_eq!(rig.push(WAN, &mut spoofed), Verdict::Drop(Drop::SnatNone));
    // Whose MAC is not known yet comes from inside all the same.
    pass(&rig, LAN, out(Protocol::Udp, "10.0.0.77:9", PEER, 0), WAN);
    assert_eq!(rig.snapshot.snats.mappings(), [2]);
}

#[test]
fn nobody_outside_ends_a_mapping_and_the_end_of_one_connection_is_not_that_of_another() {
    let mut rig = rig();
    let other = "203.0.113.9:4000";
    let sends = |rig: &Rig, to: &str, flags| pass(rig, LAN, out(Protocol::Tcp, INSIDE, to, flags), WAN).0;
    let from = sends(&rig, PEER, SYN);
    sends(&rig, PEER, ACK);
    for flags in [RST, FIN | ACK, SYN] {
        pass(&rig, WAN, back(Protocol::Tcp, "203.0.113.66:6", &from, flags), LAN);
    }
    let has = |rig: &Rig| rig.push(WAN, &mut back(Protocol::Tcp, PEER, &from, ACK)) == Verdict::Route(LAN);
    rig.wait(7000);
    assert!(has(&rig));
    // A second connection from there comes and goes; the first goes on.
    for flags in [SYN, ACK, FIN | ACK, ACK] {
        sends(&rig, other, flags);
    }
    sends(&rig, PEER, PSH | ACK);
    rig.wait(7000);
    assert!(has(&rig));
    // It ends as well, with an ACK of the other one's FIN.
    for flags in [FIN | ACK, ACK] {
        sends(&rig, PEER, flags);
    }
    rig.wait(239);
    assert!(has(&rig));
    rig.wait(65);
    assert!(!has(&rig));
}

#[test]
fn a_mapping_lasts_while_somebody_inside_goes_on() {
    let mut rig = rig();
    let from = pass(&rig, LAN, out(Protocol::Udp, INSIDE, PEER, 0), WAN).0;
    for _ in 0..3 {
        rig.wait(290);
        pass(&rig, LAN, out(Protocol::Udp, INSIDE, PEER, 0), WAN);
    }
    rig.wait(290);
    pass(&rig, WAN, back(Protocol::Udp, PEER, &from, 0), LAN);
    rig.wait(20);
    let mut late = back(Protocol::Udp, PEER, &from, 0);
    assert!(!matches!(rig.push(WAN, &mut late), Verdict::Route(LAN)), "answers alone keep nothing alive");
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    assert_eq!(rig.snapshot.snats.mappings(), [0]);
    // An established connection for two hours, one that has ended for four minutes.
    let from = pass(&rig, LAN, out(Protocol::Tcp, INSIDE, PEER, SYN), WAN).0;
    pass(&rig, WAN, back(Protocol::Tcp, PEER, &from, SYN | ACK), LAN);
    pass(&rig, LAN, out(Protocol::Tcp, INSIDE, PEER, ACK), WAN);
    rig.wait(7400);
    pass(&rig, WAN, back(Protocol::Tcp, PEER, &from, FIN | ACK), LAN);
    pass(&rig, LAN, out(Protocol::Tcp, INSIDE, PEER, FIN | ACK), WAN);
    rig.wait(239);
    pass(&rig, WAN, back(Protocol::Tcp, PEER, &from, ACK), LAN);
    rig.wait(300);
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    assert_eq!(rig.snapshot.snats.mappings(), [0]);
}

/// An error from somebody about a packet.
fn error(mac: [u8; 6], from: &str, to: &str, about: &[u8]) -> Vec<u8> {
    let packet = icmp::error(address(from), address(to), (3, 4), 1400, &about[14..]);
    [&mac[..], &CLIENT_MAC, &[0x08, 0x00], &packet].concat()
}

/// The quoted packet, whose checksums must be right: those of the quoted header, and of what is behind it.
fn quoted(frame: &[u8]) -> (String, String) {
    let quote = &frame[42..];
    assert_eq!(checksum::sum(&quote[..20]), 0xFFFF);
    let pseudo = [&quote[12..20], &[0, quote[9]], &((quote.len() - 20) as u16).to_be_bytes()].concat();
    let segment = &quote[20..];
    let sum =
        if quote[9] == 1 { checksum::sum(segment) } else { checksum::sum(&[&pseudo, segment].concat()) };
    assert_eq!(sum, 0xFFFF);
    let ports = if quote[9] == 1 { (24, 24) } else { (20, 22) };
    let end = |at: usize, port: usize| {
        let ip = std::net::Ipv4Addr::from(<[u8; 4]>::try_from(&quote[at..at + 4]).unwrap());
        format!("{ip}:{}", u16::from_be_bytes([quote[port], quote[port + 1]]))
    };
    (end(12, ports.0), end(16, ports.1))
}

#[test]
fn errors_are_translated_with_what_they_quote() {
    let rig = rig();
    let ping = echo(LAN_MAC, 8, "10.0.0.5", "198.51.100.7", 77);
    for sent in [out(Protocol::Udp, INSIDE, PEER, 0), out(Protocol::Tcp, INSIDE, PEER, SYN), ping] {
        let (mut left, ends) = (sent.clone(), quoted(&[&[0; 28][..], &sent].concat()));
        assert_eq!(rig.push(LAN, &mut left), Verdict::Route(WAN));
        let outside = quoted(&[&[0; 28][..], &left].concat()).0;
        // From a router on the way: about what has left.
        let mut about = error(WAN_MAC, "203.0.113.1", POOL, &left);
        assert_eq!(rig.push(WAN, &mut about), Verdict::Route(LAN));
        assert_eq!((&about[26..34], quoted(&about)), (&[203, 0, 113, 1, 10, 0, 0, 5][..], ends.clone()));
        assert_eq!(checksum::sum(&about[34..]), 0xFFFF);
        // From inside: about what has come.
        let mut came = match sent[23] {
            1 => echo(WAN_MAC, 0, "198.51.100.7", POOL, port_of(&outside)),
            17 => back(Protocol::Udp, PEER, &outside, 0),
            _ => back(Protocol::Tcp, PEER, &outside, SYN | ACK),
        };
        let as_sent = quoted(&[&[0; 28][..], &came].concat());
        assert_eq!(rig.push(WAN, &mut came), Verdict::Route(LAN));
        for says in ["10.0.0.5", "10.0.0.9"] {
            let mut about = error(LAN_MAC, says, "198.51.100.7", &came);
            assert_eq!(rig.push(LAN, &mut about), Verdict::Route(WAN));
            assert_eq!((&about[26..30], quoted(&about)), (&[192, 0, 2, 50][..], as_sent.clone()));
            assert_eq!(checksum::sum(&about[34..]), 0xFFFF);
        }
    }
    // From a service's port, about what has come there without a connection of it.
    let mut sent = out(Protocol::Tcp, "10.0.0.1:8080", PEER, SYN);
    assert_eq!(rig.push(LAN, &mut sent), Verdict::Route(WAN));
    let outside = quoted(&[&[0; 28][..], &sent].concat()).0;
    let mut came = back(Protocol::Tcp, PEER, &outside, SYN | ACK);
    assert_eq!(rig.push(WAN, &mut came), Verdict::Route(LAN));
    let mut about = error(LAN_MAC, "10.0.0.9", "198.51.100.7", &came);
    assert_eq!(rig.push(LAN, &mut about), Verdict::Route(WAN));
    assert_eq!((&about[26..30], quoted(&about).1), (&[192, 0, 2, 50][..], outside));
    // About a packet that nobody has sent.
    let never = out(Protocol::Udp, "10.0.0.8:7", "198.51.100.7:8", 0);
    let mut about = error(LAN_MAC, "10.0.0.8", "198.51.100.7", &never);
    assert_eq!(rig.push(LAN, &mut about), Verdict::Drop(Drop::SnatNone));
}

#[test]
fn what_is_too_long_for_the_way_inside_is_told() {
    let rig = rig();
    let from = pass(&rig, LAN, out(Protocol::Udp, INSIDE, PEER, 0), WAN).0;
    let mut long = large(&back(Protocol::Udp, PEER, &from, 0), 1600);
    assert_eq!(rig.push(WAN, &mut long.clone()), Verdict::Punt(Punt::ToFragment));
    long[20] = 0x40;
    let long = mend(long);
    assert_eq!(rig.push(WAN, &mut long.clone()), Verdict::Drop(Drop::TooBig));
    let told =
        crate::engine::tell::error(&rig.engine.table, &rig.snapshot, rig.now, Drop::TooBig, &long[14..])
            .unwrap();
    assert_eq!((&told[20..22], &told[26..28]), (&[3, 4][..], &1500u16.to_be_bytes()[..]));
}

/// An echo with 93 bytes behind its header, or the reply to it.
fn large_echo(mac: [u8; 6], kind: u8, from: &str, to: &str, id: u16) -> Vec<u8> {
    let mut frame = echo(mac, kind, from, to, id);
    frame.truncate(42);
    frame.extend(1..94);
    let length = frame.len() as u16 - 14;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame[20] = 0;
    frame[36..38].fill(0);
    let sum = !checksum::sum(&frame[34..]);
    frame[36..38].copy_from_slice(&sum.to_be_bytes());
    mend(frame)
}

/// In whatever order the fragments of a datagram come, they leave as those of what the whole of it becomes.
fn in_every_order(rig: &Rig, port: PortIndex, whole: &[u8], out: PortIndex) {
    let mut expected = whole.to_vec();
    assert_eq!(rig.push(port, &mut expected), Verdict::Route(out));
    let count = split(whole, 40).len();
    for (number, order) in (1..).zip(orders(count)) {
        let fragments = split(&numbered(whole, number), 40);
        let mut poller = Poller::new(rig);
        order.iter().for_each(|&index| poller.push(rig.now, port, &fragments[index]));
        assert_eq!(poller.verdicts(), vec![Verdict::Route(out); count], "{order:?}");
        let left: Vec<Vec<u8>> = poller.out.into_iter().map(|(_, frame)| frame).collect();
        assert_eq!(join(&left), numbered(&expected, number), "{order:?}");
    }
}

#[test]
fn fragments_follow_their_first_both_ways_and_in_every_order() {
    // The second is a real server, at its service's port: its datagrams are asked for a connection before.
    for inside in [INSIDE, "10.0.0.1:8080"] {
        let rig = rig();
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            in_every_order(&rig, LAN, &large(&out(protocol, inside, PEER, SYN), 101), WAN);
            let from = pass(&rig, LAN, out(protocol, inside, PEER, SYN), WAN).0;
            in_every_order(&rig, WAN, &large(&back(protocol, PEER, &from, SYN | ACK), 101), LAN);
            let neighbour = out(protocol, "10.0.0.7:9", &from, SYN);
            in_every_order(&rig, LAN, &large(&neighbour, 101), LAN);
        }
        let (address, peer) = (inside.split(':').next().unwrap(), "198.51.100.7");
        in_every_order(&rig, LAN, &large_echo(LAN_MAC, 8, address, peer, 1), WAN);
        let from = pass(&rig, LAN, echo(LAN_MAC, 8, address, peer, 1), WAN).0;
        in_every_order(&rig, WAN, &large_echo(WAN_MAC, 0, peer, POOL, port_of(&from)), LAN);
        assert_eq!(rig.snapshot.snats.mappings(), [5]);
    }
}

#[test]
fn fragments_that_have_no_mapping_go_where_a_packet_would() {
    let rig = rig();
    let verdicts = |port, whole: &[u8], order: [usize; 3]| {
        let fragments = split(whole, 40);
        let mut poller = Poller::new(&rig);
        order.iter().for_each(|&index| poller.push(rig.now, port, &fragments[index]));
        poller.verdicts()
    };
    let (none, orphan) = (Verdict::Drop(Drop::SnatNone), Verdict::Drop(Drop::FragmentOrphan));
    let begins_nothing = large(&out(Protocol::Tcp, INSIDE, PEER, ACK), 80);
    assert_eq!(verdicts(LAN, &begins_nothing, [1, 0, 2]), [none, orphan, orphan]);
    let answer = large_echo(LAN_MAC, 0, "10.0.0.5", "198.51.100.7", 1);
    assert_eq!(verdicts(LAN, &answer, [0, 1, 2]), [none, orphan, orphan]);
    // To a port of the pool that nobody has: Linux' own.
    let nobodys = large(&back(Protocol::Udp, PEER, "192.0.2.50:2001", 0), 80);
    assert_eq!(verdicts(WAN, &nobodys, [2, 0, 1]), [Verdict::Punt(Punt::Fragment); 3]);
    // Who says to be inside decides nothing about a datagram of who is.
    let datagram = large(&out(Protocol::Udp, INSIDE, PEER, 0), 80);
    assert_eq!(verdicts(WAN, &mend([&WAN_MAC, &datagram[6..]].concat()), [0, 1, 2]), [none; 3]);
    assert_eq!(verdicts(LAN, &datagram, [0, 1, 2]), [Verdict::Route(WAN); 3]);
    assert_eq!(rig.snapshot.snats.mappings(), [1]);
}

#[test]
fn a_second_first_fragment_with_other_ports_goes_nowhere() {
    // The second is a real server, at its service's port: its datagrams are asked for a connection before.
    for inside in [INSIDE, "10.0.0.1:8080"] {
        let rig = rig();
        let datagram = large(&out(Protocol::Udp, inside, PEER, 0), 80);
        let first = split(&numbered(&datagram, 77), 40)[0].clone();
        let mut other_port = first.clone();
        other_port[34] ^= 1;
        let mut poller = Poller::new(&rig);
        poller.push_all(LAN, &[first.clone(), other_port, first]);
        let goes = Verdict::Route(WAN);
        assert_eq!(poller.verdicts(), [goes, Verdict::Drop(Drop::FragmentOverlap), goes], "{inside}");
    }
}

#[test]
fn what_peers_should_know_of_a_mapping_is_noted() {
    let (rig, changes) = (rig(), Arc::new(Changes::default()));
    let mut rig = Rig { engine: rig.engine.noting(Some(changes.clone())), ..rig };
    let noted = |rig: &Rig| -> Vec<(String, State, bool)> {
        let places = std::iter::from_fn(|| changes.take());
        let places = places.map(|slot| slot.number() as usize - rig.engine.table.slots());
        let told = places.filter_map(|place| rig.snapshot.snats.at(place, rig.now));
        told.map(|told| (told.inside.to_string(), told.state, told.goes_on)).collect()
    };
    let of_host = |state, goes_on| vec![(INSIDE.to_owned(), state, goes_on)];
    let leaves = |rig: &Rig, protocol, flags| {
        pass(rig, LAN, out(protocol, INSIDE, PEER, flags), WAN);
        noted(rig)
    };
    assert_eq!(leaves(&rig, Protocol::Tcp, SYN), [], "it may never be established");
    assert_eq!(leaves(&rig, Protocol::Tcp, ACK), of_host(State::Established, false));
    rig.now.0 += 40;
    assert_eq!(leaves(&rig, Protocol::Tcp, ACK), [], "that is told when it is its turn");
    assert_eq!(leaves(&rig, Protocol::Tcp, FIN | ACK), of_host(State::Close, false));
    assert_eq!([(); 2].map(|()| leaves(&rig, Protocol::Udp, 0)), [[], []], "a question, and again");
    rig.now.0 += 8;
    assert_eq!(leaves(&rig, Protocol::Udp, 0), of_host(State::Udp, true));
    rig.now.0 += 8;
    assert_eq!(leaves(&rig, Protocol::Udp, 0), []);
}

#[test]
fn a_packet_that_is_tried_out_changes_nothing() {
    let rig = rig();
    let frame = out(Protocol::Udp, INSIDE, PEER, 0);
    let explained = explain(&rig.snapshot, &rig.engine.table, rig.now, LAN, &frame).unwrap();
    assert_eq!((explained.verdict, rig.snapshot.snats.mappings()), (Verdict::Route(WAN), vec![0]));
    let mut left = frame.clone();
    assert_eq!(rig.push(LAN, &mut left), Verdict::Route(WAN));
    assert_eq!((explained.frame, rig.snapshot.snats.mappings()), (left, vec![1]));
}
