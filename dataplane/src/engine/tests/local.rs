//! Real servers that are this router itself.

use super::fragments::{Poller, large, split};
use super::gate::{flood, gated};
use super::related::{error, hop};
use super::six::{VIP6, packet6, publish as publish6, rig as rig6};
use super::*;
use crate::service::Persistence;

const LOCAL: Verdict = Verdict::Punt(Punt::Local);
const EXPIRED: Verdict = Verdict::Drop(Drop::TtlExpired);

/// The usual router, whose last server is at the virtual address.
fn rig(protocol: Protocol, mode: Mode, servers: usize) -> Rig {
    let mut rig = Rig::new(protocol, mode, &vec![1; servers]);
    rig.spec.dests[servers - 1].address = socket(VIP).into();
    rig.publish();
    rig
}

pub(super) fn with_ttl(mut frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    frame[22] = ttl;
    frame[24..26].fill(0);
    let sum = checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
    frame
}

/// What becomes of a packet, which stays as it is.
fn untouched(rig: &Rig, frame: &[u8]) -> Verdict {
    let mut pushed = frame.to_vec();
    let verdict = rig.push(WAN, &mut pushed);
    assert_eq!(pushed, frame);
    verdict
}

#[test]
fn its_packets_are_linuxs_as_they_are_and_followed_one_way() {
    for mode in [Mode::Nat, Mode::Dr, Mode::Tunnel] {
        let rig = rig(Protocol::Tcp, mode, 1);
        let state = || rig.connections()[0].2;
        for (flags, expected) in [
            (SYN, State::SynRecv),
            (ACK, State::Established),
            (ACK, State::Established),
            (FIN | ACK, State::FinWait),
        ] {
            // As with direct routing: by the client's packets alone.
            assert_eq!(untouched(&rig, &from_client(flags)), LOCAL, "{mode}");
            let direct = tcp_state(Mode::Dr, flags, &rig);
            assert_eq!((state(), direct), (expected, expected), "{mode}");
        }
        let traffic = rig.spec.dests[0].traffic[0].get();
        let bytes = u64::from(from_client(ACK).len() as u16 - 14) * 4;
        assert_eq!((traffic.connections, traffic.packets_in, traffic.bytes_in), (1, 4, bytes));
        assert_eq!((traffic.packets_out, rig.live(1)), (0, (0, 1)));
    }
}

/// The state to which a connection by this mode would have come, too.
fn tcp_state(mode: Mode, flags: u8, so_far: &Rig) -> State {
    let before = match flags {
        SYN => vec![SYN],
        ACK => vec![SYN, ACK],
        _ => vec![SYN, ACK, flags],
    };
    let other = Rig { now: so_far.now, ..Rig::new(Protocol::Tcp, mode, &[1]) };
    for flags in before {
        other.push(WAN, &mut from_client(flags));
    }
    other.connections()[0].2
}

#[test]
fn it_takes_turns_with_others() {
    let rig = rig(Protocol::Udp, Mode::Nat, 3);
    let mut seen = BTreeMap::new();
    for port in 1..=30 {
        let mut frame = packet(Protocol::Udp, WAN_MAC, &format!("198.51.100.7:{port}"), VIP, 0);
        *seen.entry(format!("{:?}", rig.push(WAN, &mut frame))).or_insert(0) += 1;
    }
    let expected = [(format!("{:?}", Verdict::Forward(LAN)), 20), (format!("{LOCAL:?}"), 10)];
    assert_eq!(seen, expected.into());
    // Whoever listens there answers by itself: nothing that comes in from the virtual address is a reply.
    let mut reply = packet(Protocol::Udp, LAN_MAC, VIP, CLIENT, 0);
    assert_eq!(rig.push(LAN, &mut reply), Verdict::Punt(Punt::NoService));
}

#[test]
fn an_address_of_the_routers_own_is_as_good_but_no_other_port() {
    let mut rig = rig(Protocol::Tcp, Mode::Dr, 1);
    for (mode, address, expected) in [
        (Mode::Dr, "10.0.0.254:80", LOCAL),
        (Mode::Nat, "10.0.0.254:80", LOCAL),
        (Mode::Nat, "10.0.0.254:8080", Verdict::Drop(Drop::NoServer)),
        (Mode::Nat, "192.0.2.10:8080", Verdict::Drop(Drop::NoServer)),
        (Mode::Fullnat, "192.0.2.10:80", Verdict::Drop(Drop::NoServer)),
    ] {
        rig.spec.mode = mode;
        rig.spec.dests[0].address = socket(address).into();
        rig.publish();
        rig.engine = Rig::new(Protocol::Tcp, mode, &[1]).engine;
        assert_eq!(untouched(&rig, &from_client(SYN)), expected, "{mode} {address}");
    }
}

#[test]
fn the_last_hop_is_no_hop_too_many() {
    let mut rig = rig(Protocol::Tcp, Mode::Dr, 2);
    let last = |port: u16, flags, ttl| {
        with_ttl(packet(Protocol::Tcp, WAN_MAC, &format!("198.51.100.7:{port}"), VIP, flags), ttl)
    };
    let states = |rig: &Rig| rig.connections().iter().map(|c| (c.0.port(), c.2)).collect::<BTreeMap<_, _>>();
    // In turn: the second and the fourth would go to another machine, and leave nothing behind.
    let verdicts = [1, 2, 3, 4].map(|port| untouched(&rig, &last(port, SYN, 1)));
    assert_eq!(verdicts, [LOCAL, EXPIRED, LOCAL, EXPIRED]);
    assert_eq!(states(&rig), [(1, State::SynRecv), (3, State::SynRecv)].into());
    assert_eq!(rig.push(WAN, &mut last(5, SYN, 64)), LOCAL);
    // Nor does it move the state of another machine's connection, be it on the short way.
    assert_eq!(rig.push(WAN, &mut last(6, SYN, 64)), Verdict::Forward(LAN));
    assert_eq!(rig.push(WAN, &mut last(6, ACK, 64)), Verdict::Forward(LAN));
    for flags in [ACK, FIN | ACK, RST] {
        assert_eq!(untouched(&rig, &last(6, flags, 1)), EXPIRED);
        assert_eq!(states(&rig)[&6], State::Established);
    }
    assert_eq!(untouched(&rig, &last(1, ACK, 1)), LOCAL);
    assert_eq!(states(&rig)[&1], State::Established);
    // Without a server here nobody is asked.
    rig.spec.dests[1].address = socket("10.0.0.2:80").into();
    rig.publish();
    assert_eq!(untouched(&rig, &last(7, SYN, 1)), EXPIRED);
}

#[test]
fn a_packet_that_goes_no_further_brings_no_client_back() {
    let mut rig = rig(Protocol::Tcp, Mode::Dr, 2);
    rig.spec.persistence = Some(Persistence { seconds: 300, prefix: 32, expire_quiescent: false });
    rig.publish();
    let syn = |rig: &Rig, client: u8, port, ttl| {
        let client = format!("198.51.100.{client}:{port}");
        untouched_or_sent(rig, &with_ttl(packet(Protocol::Tcp, WAN_MAC, &client, VIP, SYN), ttl))
    };
    let ages = |rig: &Rig| {
        let templates = rig.engine.table.words(0..rig.engine.table.buckets());
        let templates = templates.filter(|word| word.state() == State::Template);
        templates.map(|word| (word.dest_number(), word.age(rig.now) / 4)).collect::<BTreeMap<_, _>>()
    };
    // In turn: the second would go to another machine.
    assert_eq!([syn(&rig, 1, 1, 1), syn(&rig, 2, 1, 1)], [LOCAL, EXPIRED]);
    assert_eq!(ages(&rig), [(2, 0)].into());
    // Nor does it keep a client there.
    assert_eq!([syn(&rig, 3, 1, 64), syn(&rig, 2, 1, 64)], [LOCAL, Verdict::Forward(LAN)]);
    rig.wait(100);
    assert_eq!(syn(&rig, 2, 2, 1), EXPIRED);
    assert_eq!(ages(&rig)[&1], 100);
    assert_eq!(syn(&rig, 2, 2, 64), Verdict::Forward(LAN));
    assert_eq!(ages(&rig)[&1], 0);
    // Nor does it move one.
    rig.spec.dests[1].returning = false;
    rig.publish();
    let before = ages(&rig);
    let verdicts = [syn(&rig, 1, 2, 1), syn(&rig, 1, 3, 1)];
    assert!(verdicts.contains(&EXPIRED) && verdicts.contains(&LOCAL), "{verdicts:?}");
    assert_eq!(ages(&rig).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
}

/// What becomes of a packet, which is sent on or stays as it is.
fn untouched_or_sent(rig: &Rig, frame: &[u8]) -> Verdict {
    let mut pushed = frame.to_vec();
    let verdict = rig.push(WAN, &mut pushed);
    assert!(verdict == Verdict::Forward(LAN) || pushed == frame);
    verdict
}

#[test]
fn under_a_flood_of_syns_it_is_no_further_away() {
    for mode in [Mode::Nat, Mode::Dr] {
        let (mut rig, _kept) = gated(mode, Scheduler::Rr);
        rig.spec.dests[2].address = socket(VIP).into();
        rig.publish();
        flood(&rig, 200);
        let before = rig.connections().len();
        let mut seen = BTreeSet::new();
        for port in 1001..=1060 {
            let syn = packet(Protocol::Tcp, WAN_MAC, &format!("198.51.100.7:{port}"), VIP, SYN);
            let rst = packet(Protocol::Tcp, WAN_MAC, &format!("198.51.100.7:{port}"), VIP, RST);
            for frame in [syn, rst] {
                let whole = untouched_or_sent(&rig, &frame);
                let spent = untouched_or_sent(&rig, &with_ttl(frame, 1));
                assert_eq!(spent, if whole == LOCAL { LOCAL } else { EXPIRED }, "{mode} {port}");
                seen.insert(format!("{whole:?}"));
            }
        }
        assert_eq!(seen.len(), 2, "{mode}: {seen:?}");
        assert_eq!(rig.connections().len(), before);
    }
}

#[test]
fn as_sorry_server_it_serves_while_nobody_else_does() {
    let mut rig = rig(Protocol::Tcp, Mode::Nat, 2);
    rig.spec.dests[1].listed = false;
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(SYN)), Verdict::Forward(LAN));
    (rig.spec.dests[0].listed, rig.spec.dests[1].listed) = (false, true);
    rig.publish();
    let mut other = packet(Protocol::Tcp, WAN_MAC, "198.51.100.8:1", VIP, SYN);
    assert_eq!(rig.push(WAN, &mut other), LOCAL);
}

#[test]
fn a_router_without_the_address_begins_nothing_but_knows_whose_packets_they_are() {
    let mut rig = rig(Protocol::Tcp, Mode::Dr, 1);
    assert_eq!(rig.push(WAN, &mut from_client(SYN)), LOCAL);
    rig.spec.live = false;
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), LOCAL);
    let mut other = packet(Protocol::Tcp, WAN_MAC, "198.51.100.8:1", VIP, SYN);
    assert_eq!(rig.push(WAN, &mut other), Verdict::Punt(Punt::NoService));
}

#[test]
fn fragments_and_icmp_errors_go_with_it() {
    let rig = rig(Protocol::Udp, Mode::Nat, 1);
    let datagram = large(&packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0), 2000);
    let mut poller = Poller::new(&rig);
    let mut fragments: Vec<_> = split(&datagram, 800).into_iter().map(|f| with_ttl(f, 1)).collect();
    fragments.reverse();
    poller.push_all(WAN, &fragments);
    assert_eq!(poller.verdicts(), [LOCAL; 3]);
    assert!(poller.out.iter().all(|(_, frame)| fragments.contains(frame)));

    // About what the server has said, which is Linux' to hear.
    let said = hop(&packet(Protocol::Udp, WAN_MAC, VIP, CLIENT, 0));
    for ttl in [1, 64] {
        let frame = with_ttl(error(WAN_MAC, "203.0.113.1:0", VIP, 3, &said), ttl);
        assert_eq!(untouched(&rig, &frame), LOCAL);
    }
}

#[test]
fn the_same_with_ipv6() {
    for mode in [Mode::Nat, Mode::Dr] {
        let mut rig = rig6(Protocol::Tcp, mode, &[1, 1]);
        for address in [VIP6, "[2001:db8:a::fe]:80"] {
            rig.spec.dests[1].address = super::six::socket6(address).into();
            publish6(&mut rig);
            rig.engine = Rig::new(Protocol::Tcp, mode, &[1]).engine;
            let request = |port: u16, flags, hops| {
                let client = format!("[2001:db8:c::7]:{port}");
                let ends = (&*client, VIP6);
                let frame = packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), ends, (flags, hops), &[]);
                let mut pushed = frame.clone();
                let verdict = rig.push(WAN, &mut pushed);
                assert!(matches!(verdict, Verdict::Forward(_)) || pushed == frame);
                verdict
            };
            let begun = [1, 2].map(|port| request(port, SYN, 64));
            let (here, there) = if begun[0] == LOCAL { (1, 2) } else { (2, 1) };
            assert_eq!(BTreeSet::from(begun.map(|v| format!("{v:?}"))).len(), 2, "{begun:?}");
            assert_eq!([request(here, ACK, 1), request(here, ACK, 64)], [LOCAL; 2]);
            assert_eq!(request(there, ACK, 64), Verdict::Forward(LAN));
            assert_eq!(request(there, ACK, 1), EXPIRED);
        }
    }
}

#[test]
fn it_is_explained() {
    let rig = rig(Protocol::Udp, Mode::Nat, 1);
    let table = &rig.engine.table;
    let frame = with_ttl(packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0), 1);
    let explained = explain(&rig.snapshot, table, rig.now, WAN, &frame).unwrap();
    assert_eq!((explained.verdict, explained.frame), (LOCAL, frame));
    assert_eq!(explained.afterwards.map(|connection| connection.dest), DestId::new(1));
    assert!(explained.hit.is_some() && explained.reason.is_some() && rig.connections().is_empty());
}
