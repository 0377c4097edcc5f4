//! What concerns no service, where it is to be routed.

use super::fragments::{Poller, large, mend, split};
use super::six::{self, CLIENT6, VIP6, packet6};
use super::*;
use crate::engine::tell::error;

/// A rig that routes.
fn rig(protocol: Protocol) -> Rig {
    let mut rig = Rig::new(protocol, Mode::Nat, &[1]);
    rig.snapshot.routing = true;
    rig
}

/// A host behind the router, and one that nobody knows the MAC of.
const INSIDE: &str = "10.0.0.5:9000";
const UNKNOWN: &str = "10.0.0.77:9000";

fn inwards(to: &str) -> Vec<u8> {
    packet(Protocol::Udp, WAN_MAC, CLIENT, to, 0)
}

/// The same with another protocol's number.
fn of_protocol(mut frame: Vec<u8>, number: u8) -> Vec<u8> {
    frame[23] = number;
    mend(frame)
}

fn with_ttl(mut frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    frame[22] = ttl;
    mend(frame)
}

#[test]
fn it_goes_on_with_a_hop_less_and_nothing_else_changed() {
    let rig = rig(Protocol::Tcp);
    let mut bytes = 0;
    // UDP, TCP, ICMP (an echo), GRE, ESP, and what nobody has heard of.
    for (count, protocol) in [17, 6, 1, 47, 50, 253].into_iter().enumerate() {
        let mut frame = of_protocol(inwards(INSIDE), protocol);
        if protocol == 6 {
            frame = packet(Protocol::Tcp, WAN_MAC, CLIENT, INSIDE, ACK);
        } else if protocol == 1 {
            frame[34] = 8;
        }
        let mut expected = with_ttl(frame.clone(), 63);
        expected[..12].copy_from_slice(&[server_mac(5), LAN_MAC].concat());
        bytes += frame.len() as u64 - 14;
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Route(LAN), "{protocol}");
        assert_eq!(frame, expected);
        let counters = &rig.engine.counters;
        assert_eq!((counters.routed.get(), counters.routed_bytes.get()), (count as u64 + 1, bytes));
    }
    assert!(rig.connections().is_empty() && rig.engine.counters.traffic.get() == Default::default());
}

#[test]
fn what_a_real_server_begins_is_routed_and_what_it_answers_is_translated() {
    let rig = rig(Protocol::Tcp);
    // From the port of its service, to somebody who has no connection.
    let mut begins = from_server(1, SYN);
    assert_eq!(rig.push(LAN, &mut begins), Verdict::Route(WAN));
    let source = |frame: &[u8]| frame[26..30].to_vec();
    assert_eq!(source(&begins), [10, 0, 0, 1]);
    rig.push(WAN, &mut from_client(SYN));
    let mut answers = from_server(1, SYN | ACK);
    assert_eq!(rig.push(LAN, &mut answers), Verdict::Forward(WAN));
    assert_eq!(source(&answers), [192, 0, 2, 10]);
    // To the router itself: a check.
    let mut check = packet(Protocol::Tcp, LAN_MAC, "10.0.0.1:8080", ROUTER, SYN | ACK);
    assert_eq!(rig.push(LAN, &mut check), Verdict::Punt(Punt::ServerReply));
}

#[test]
fn linux_has_what_is_to_it_and_what_no_router_passes_on() {
    let mut rig = rig(Protocol::Tcp);
    let mut options = inwards(INSIDE);
    (options[14], options[17]) = (0x46, options[17] + 4);
    options.splice(34..34, [1, 1, 1, 0]);
    options[24..26].fill(0);
    let sum = !checksum::sum(&options[14..38]);
    options[24..26].copy_from_slice(&sum.to_be_bytes());
    let from = |source: &str| packet(Protocol::Udp, WAN_MAC, source, INSIDE, 0);
    let other = [
        (inwards("10.0.0.254:9000"), Punt::NoService, "the router's own"),
        (inwards("192.0.2.10:9000"), Punt::NoService, "a virtual address"),
        (of_protocol(inwards("192.0.2.10:9000"), 47), Punt::OtherProtocol, "a virtual address"),
        (inwards("224.0.0.18:9000"), Punt::NoService, "multicast"),
        (inwards("255.255.255.255:9000"), Punt::NoService, "broadcast"),
        (inwards("127.0.0.1:9000"), Punt::NoService, "loopback"),
        (inwards("169.254.1.2:9000"), Punt::NoService, "of a link"),
        (from("169.254.1.2:9000"), Punt::NoService, "from a link"),
        (from("0.0.0.0:68"), Punt::NoService, "from nobody"),
        (from("192.0.2.10:9000"), Punt::NoService, "from a virtual address"),
        (from("10.0.0.254:9000"), Punt::NoService, "from the router's own"),
        (options, Punt::NoService, "with options"),
    ];
    for (mut frame, reason, what) in other {
        let before = frame.clone();
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(reason), "{what}");
        assert_eq!(frame, before, "{what}");
    }
    let mut to_all = inwards(INSIDE);
    to_all[..6].fill(0xFF);
    assert_eq!(rig.push(WAN, &mut to_all), Verdict::Punt(Punt::Multicast));
    assert_eq!(rig.engine.counters.routed.get(), 0);

    rig.publish();
    let routable = [inwards(INSIDE), of_protocol(inwards(INSIDE), 47), inwards(UNKNOWN)];
    let verdicts = routable.map(|mut frame| rig.push(WAN, &mut frame));
    let expected = [Punt::NoService, Punt::OtherProtocol, Punt::NoService].map(Verdict::Punt);
    assert_eq!(verdicts, expected, "it does not route any more");
}

#[test]
fn a_neighbour_that_is_not_known_is_linux_to_find() {
    let rig = rig(Protocol::Tcp);
    let mut frame = inwards(UNKNOWN);
    let expected = with_ttl(frame.clone(), 63);
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::Unresolved));
    assert_eq!((frame, rig.engine.counters.routed.get()), (expected, 0));
}

/// Type, code and MTU of the error about a packet that was dropped.
fn told(rig: &Rig, port: PortIndex, frame: &[u8], expected: Drop) -> Option<(u8, u8, u16)> {
    assert_eq!(rig.push(port, &mut frame.to_vec()), Verdict::Drop(expected));
    let error = error(&rig.engine.table, &rig.snapshot, rig.now, expected, &frame[14..])?;
    Some((error[20], error[21], u16::from_be_bytes([error[26], error[27]])))
}

#[test]
fn whose_hops_are_used_up_is_told_so_whatever_the_protocol() {
    let rig = rig(Protocol::Tcp);
    let last_hop = |protocol, kind| {
        let mut frame = with_ttl(of_protocol(inwards(INSIDE), protocol), 1);
        if protocol == 1 {
            frame[34] = kind;
        }
        frame
    };
    let exceeded = Some((11, 0, 0));
    assert_eq!(told(&rig, WAN, &last_hop(17, 0), Drop::TtlExpired), exceeded);
    assert_eq!(told(&rig, WAN, &last_hop(1, 8), Drop::TtlExpired), exceeded, "an echo");
    assert_eq!(told(&rig, WAN, &last_hop(132, 0), Drop::TtlExpired), exceeded, "SCTP");
    assert_eq!(told(&rig, WAN, &last_hop(1, 3), Drop::TtlExpired), None, "an error");
    let mut own = with_ttl(inwards("10.0.0.254:9000"), 1);
    assert_eq!(rig.push(WAN, &mut own), Verdict::Punt(Punt::NoService), "Linux takes it with its last hop");
}

#[test]
fn what_is_too_long_is_told_or_fragmented() {
    let rig = rig(Protocol::Tcp);
    let mut whole = large(&inwards(INSIDE), 1600);
    assert_eq!(rig.push(WAN, &mut whole.clone()), Verdict::Punt(Punt::ToFragment));
    let mut fragment = whole.clone();
    fragment[20] = 0x20;
    // As one of its length can be.
    fragment.truncate(14 + 20 + 1600);
    fragment[16..18].copy_from_slice(&1620u16.to_be_bytes());
    assert_eq!(rig.push(WAN, &mut mend(fragment)), Verdict::Punt(Punt::ToFragment), "once more");
    whole[20] = 0x40;
    let whole = mend(whole);
    assert_eq!(told(&rig, WAN, &whole, Drop::TooBig), Some((3, 4, 1500)));
    let echo = of_protocol(whole, 1);
    let echo = [&echo[..34], &[8], &echo[35..]].concat();
    assert_eq!(told(&rig, WAN, &echo, Drop::TooBig), Some((3, 4, 1500)), "of a ping -M do");
}

#[test]
fn fragments_go_in_any_order() {
    let rig = rig(Protocol::Udp);
    // Of nobody's datagram, and of one that a real server begins, whose first fragment says so.
    for (from, waits) in [("10.0.0.7:9", false), ("10.0.0.1:8080", true)] {
        let datagram = packet(Protocol::Udp, LAN_MAC, from, CLIENT, 0);
        let mut parts = split(&large(&datagram, 3000), 1480);
        parts.reverse();
        let mut poller = Poller::new(&rig);
        poller.push_all(LAN, &parts[..2]);
        assert_eq!(poller.verdicts().len(), if waits { 0 } else { 2 });
        poller.push_all(LAN, &parts[2..]);
        assert_eq!(poller.verdicts(), [Verdict::Route(WAN); 3]);
        assert!(poller.out.iter().all(|(_, frame)| frame[22] == 63 && frame[..6] == CLIENT_MAC));
    }
}

const INSIDE6: &str = "[2001:db8:a::5]:9000";

fn inwards6(to: &str, hops: u8, extensions: &[u8]) -> Vec<u8> {
    packet6(Protocol::Udp, (WAN_MAC, CLIENT_MAC), (CLIENT6, to), (0, hops), extensions)
}

#[test]
fn the_same_with_ipv6() {
    let mut rig = six::rig(Protocol::Tcp, Mode::Nat, &[1]);
    assert_eq!(rig.push(WAN, &mut inwards6(INSIDE6, 64, &[])), Verdict::Punt(Punt::NoService));
    rig.snapshot.routing = true;
    let destination_options = [60, 17, 0, 1, 4, 0, 0, 0, 0];
    let routing_header = [43, 17, 0, 4, 1, 0, 0, 0, 0];
    let fragment = [44, 17, 0, 0, 8, 0, 0, 0, 9];
    for extensions in [&[][..], &destination_options, &routing_header, &fragment] {
        let mut frame = inwards6(INSIDE6, 64, extensions);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Route(LAN), "{extensions:?}");
        let expected = inwards6(INSIDE6, 63, extensions);
        assert_eq!(frame, [&server_mac(5)[..], &LAN_MAC, &expected[12..]].concat());
    }
    // A ping; Linux' are what is to it, to a virtual address, to or from a link, and what routers have to read.
    let mut echo = inwards6(INSIDE6, 64, &[]);
    (echo[20], echo[54]) = (58, 128);
    assert_eq!(rig.push(WAN, &mut echo), Verdict::Route(LAN));
    let from_link = ("[fe80::7]:1", INSIDE6);
    let linux = [
        inwards6("[2001:db8:a::fe]:9", 64, &[]),
        inwards6(&VIP6.replace(":80", ":9"), 64, &[]),
        inwards6("[fe80::9]:9", 64, &[]),
        packet6(Protocol::Udp, (WAN_MAC, CLIENT_MAC), from_link, (0, 64), &[]),
        inwards6(INSIDE6, 64, &[0, 17, 0, 1, 4, 0, 0, 0, 0]),
    ];
    for mut frame in linux {
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::NoService));
    }
    let unknown = inwards6("[2001:db8:a::77]:9", 64, &[]);
    assert_eq!(rig.push(WAN, &mut unknown.clone()), Verdict::Punt(Punt::Unresolved));
    // Told with 1280 bytes at the most, from any address of the router's own.
    let own = [(LAN, u128::from(*"[2001:db8:a::fe]:0".parse::<std::net::SocketAddrV6>().unwrap().ip()), 64)];
    rig.snapshot.fibs.six = rig.snapshot.fibs.six.clone().with_own(own);
    let told = |frame: Vec<u8>, expected| {
        assert_eq!(rig.push(WAN, &mut frame.clone()), Verdict::Drop(expected));
        let error = error(&rig.engine.table, &rig.snapshot, rig.now, expected, &frame[14..]).unwrap();
        (error[40], error[41], u16::from_be_bytes([error[46], error[47]]), error.len())
    };
    assert_eq!(told(inwards6(INSIDE6, 1, &[]), Drop::TtlExpired), (3, 0, 0, 48 + 55));
    let mut long = inwards6(INSIDE6, 64, &[]);
    long.resize(14 + 1501, 0);
    long[18..20].copy_from_slice(&1461u16.to_be_bytes());
    long[20] = 50;
    assert_eq!(told(long, Drop::TooBig), (2, 0, 1500, 1280));
    assert_eq!(rig.engine.counters.routed.get(), 5);
}
