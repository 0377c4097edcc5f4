//! Packets for real servers in other packets, and errors about those.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::families::FOUR_IN_FOUR;
use super::*;
use crate::snapshot::MssClamp;
use crate::wire::tunnel::Encapsulation;

/// The router's own address, which outer packets are from.
const OWN: u32 = 0x0A00_00FE;
const SERVER: u32 = 0x0A00_0001;

const ALL: [Encapsulation; 5] = [
    Encapsulation::Ipip,
    Encapsulation::Gre { checksum: false },
    Encapsulation::Gre { checksum: true },
    Encapsulation::Gue { port: 6080, checksum: false },
    Encapsulation::Gue { port: 5555, checksum: true },
];

fn rig(protocol: Protocol, encapsulation: Encapsulation, mss_clamp: Option<MssClamp>) -> Rig {
    let mut rig = Rig::new(protocol, Mode::Tunnel, &[1]);
    rig.spec.tunnel = TunnelSpec { encapsulation, source: Some(Ipv4Addr::from(OWN).into()), mss_clamp };
    rig.publish();
    rig
}

/// What a real server finds in a frame: a decapsulator of its own, from the RFCs, that refuses what is wrong in any header.
fn taken_out(frame: &[u8], encapsulation: Encapsulation) -> Vec<u8> {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    assert_eq!((&frame[..12], word(12)), (&[server_mac(1), LAN_MAC].concat()[..], 0x0800));
    assert_eq!((frame[14], frame[22], checksum::sum(&frame[14..34])), (0x45, 64, 0xFFFF));
    assert_eq!(frame[26..34], [OWN.to_be_bytes(), SERVER.to_be_bytes()].concat());
    let end = 14 + usize::from(word(16));
    let inside = match (frame[23], encapsulation) {
        (4, Encapsulation::Ipip) => 34,
        (47, Encapsulation::Gre { checksum: false }) => {
            assert_eq!((word(34), word(36)), (0, 0x0800));
            38
        }
        (47, Encapsulation::Gre { checksum: true }) => {
            assert_eq!((word(34), word(36), word(40)), (0x8000, 0x0800, 0));
            assert_eq!(checksum::sum(&frame[34..end]), 0xFFFF);
            42
        }
        (17, Encapsulation::Gue { port, checksum }) => {
            assert!(word(34) >= 0xC000 && word(36) == port && usize::from(word(38)) == end - 34);
            assert_eq!(frame[42..46], [0, 4, 0, 0]);
            if checksum {
                let pseudo = [&frame[26..34], &[0, 17], &frame[38..40], &frame[34..end]].concat();
                assert_eq!(checksum::sum(&pseudo), 0xFFFF);
            } else {
                assert_eq!(word(40), 0);
            }
            46
        }
        other => panic!("{other:?}"),
    };
    // Class and ECN, and whether there may be fragments: as inside.
    assert_eq!((frame[15], word(20)), (frame[inside + 1], word(inside + 6) & 0x4000));
    frame[inside..end].to_vec()
}

/// The IP packet of a frame, one hop later.
fn hop(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    packet[8] -= 1;
    packet[10..12].fill(0);
    let sum = !checksum::sum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Makes the sums of a TCP packet without IP options right.
fn mend(frame: &mut [u8]) {
    let length = (frame.len() - 34) as u16;
    frame[24..26].fill(0);
    let sum = !checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[50..52].fill(0);
    let pseudo = [&frame[26..34], &[0, 6], &length.to_be_bytes(), &frame[34..]].concat();
    let sum = !checksum::sum(&pseudo);
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
}

/// An established connection's packet of so many bytes, and that "don't fragment".
fn segment(length: usize, dont_fragment: bool) -> Vec<u8> {
    let mut frame = from_client(ACK);
    frame.resize(14 + length, 0x5A);
    frame[16..18].copy_from_slice(&(length as u16).to_be_bytes());
    frame[20] = if dont_fragment { 0x40 } else { 0 };
    mend(&mut frame);
    frame
}

#[test]
fn states_are_followed_as_with_direct_routing() {
    let rig = rig(Protocol::Tcp, Encapsulation::Ipip, None);
    for (flags, state, live) in [
        (SYN, State::SynRecv, (1, 0)),
        (ACK, State::Established, (1, 0)),
        (FIN | ACK, State::FinWait, (0, 1)),
        (ACK, State::FinWait, (0, 1)),
    ] {
        assert_eq!(rig.push(WAN, &mut from_client(flags)), Verdict::Forward(LAN));
        assert_eq!((rig.connections()[0].2, rig.live(1)), (state, live));
    }
    // What the server itself sends is none of the service's.
    assert_eq!(
        rig.push(LAN, &mut packet(Protocol::Tcp, LAN_MAC, "10.0.0.1:80", CLIENT, ACK)),
        Verdict::Punt(Punt::NoService)
    );
}

#[test]
fn the_routers_own_address_is_on_the_way_or_there_is_none() {
    let mut rig = rig(Protocol::Tcp, Encapsulation::Ipip, None);
    rig.spec.tunnel.source = None;
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(SYN)), Verdict::Drop(Drop::NoServer), "no address, no way");
    let vip = u32::from(*socket(VIP).ip());
    let fib = rig.snapshot.fibs.four.clone().with_own([(LAN, vip, 0), (LAN, OWN, 24)]);
    rig.snapshot = Snapshot::new(9, rig.snapshot.ports.clone(), std::slice::from_ref(&rig.spec), [], fib);
    let mut frame = from_client(SYN);
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
    taken_out(&frame, Encapsulation::Ipip);
}

#[test]
fn a_server_whose_mac_is_lost_is_sent_to_by_linux() {
    let mut rig = rig(Protocol::Tcp, Encapsulation::Ipip, None);
    rig.push(WAN, &mut from_client(SYN));
    let routes = [Route { prefix: 0x0A00_0000, length: 24, via: Via::OnLink(LAN) }];
    let fib = Fib::new(routes, []);
    rig.snapshot = Snapshot::new(9, rig.snapshot.ports.clone(), std::slice::from_ref(&rig.spec), [], fib);
    let mut frame = from_client(ACK);
    let expected = hop(&frame);
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::Unresolved));
    assert_eq!(frame[..14], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]);
    assert_eq!(frame[34..], expected);
}

#[test]
fn a_forged_error_is_told_to_nobody() {
    let gue = Encapsulation::Gue { port: 6080, checksum: false };
    let mut rig = rig(Protocol::Tcp, gue, None);
    rig.push(WAN, &mut from_client(SYN));
    let mut outer = segment(200, true);
    rig.push(WAN, &mut outer);
    let good = outer[14..].to_vec();
    let about = |rig: &Rig, quote: &[u8]| {
        FOUR_IN_FOUR.told(rig, FOUR_IN_FOUR.error_about([3, 4], 900, quote)).is_some()
    };
    assert!(about(&rig, &good));
    for (at, what) in [
        (9, "the protocol"),
        (15, "the router"),
        (19, "the server"),
        (23, "the port"),
        (29, "what is inside"),
        (32 + 15, "the client"),
        (32 + 19, "the service"),
        (32 + 21, "the client's port"),
        (32 + 23, "the service's port"),
    ] {
        let mut quote = good.clone();
        quote[at] ^= 1;
        assert!(!about(&rig, &quote), "{what} is another one");
    }
    let mut damaged = FOUR_IN_FOUR.error_about([3, 4], 900, &good);
    damaged[60] ^= 1;
    assert_eq!(FOUR_IN_FOUR.told(&rig, damaged), None);
    rig.wait(1000);
    assert!(!about(&rig, &good), "its connection is over");
}

proptest! {
    /// Whatever the client's header says, it arrives, and the outer one says the same where it should.
    #[test]
    fn any_header_arrives(
        which in 0..ALL.len(), class in any::<u8>(), id in any::<u16>(), dont_fragment in any::<bool>(), ttl in 2u8..,
        payload in prop::collection::vec(any::<u8>(), 0..1400), options in any::<bool>(), established in any::<bool>(),
    ) {
        let encapsulation = ALL[which];
        let rig = rig(Protocol::Tcp, encapsulation, None);
        rig.push(WAN, &mut from_client(SYN));
        if established {
            rig.push(WAN, &mut from_client(ACK));
        }
        let mut frame = from_client(ACK);
        frame.truncate(54);
        frame.extend(&payload);
        frame[15] = class;
        frame[16..18].copy_from_slice(&(40 + payload.len() as u16).to_be_bytes());
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[20] = if dont_fragment { 0x40 } else { 0 };
        frame[22] = ttl;
        mend(&mut frame);
        if options {
            frame.splice(34..34, [1, 1, 1, 0]);
            frame[14] = 0x46;
            frame[16..18].copy_from_slice(&(44 + payload.len() as u16).to_be_bytes());
            frame[24..26].fill(0);
            let sum = !checksum::sum(&frame[14..38]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let mut expected = frame[14..].to_vec();
        let header = if options { 24 } else { 20 };
        expected[8] -= 1;
        expected[10..12].fill(0);
        let sum = !checksum::sum(&expected[..header]);
        expected[10..12].copy_from_slice(&sum.to_be_bytes());
        prop_assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
        prop_assert_eq!(taken_out(&frame, encapsulation), expected);
    }
}
