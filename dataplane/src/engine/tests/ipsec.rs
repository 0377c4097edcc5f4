//! What is protected follows IKE.

use super::fragments::mend;
use super::related::error as error_of;
use super::six::{packet6, publish as publish6, rig as rig6, server as server6};
use super::*;
use crate::engine::{tell, tunnel_errors};
use crate::service::{Helper, Persistence};

const CLIENT: &str = "198.51.100.7:500";
const VIP: &str = "192.0.2.10:500";
const SERVER: &str = "10.0.0.1:500";
const CLIENT6: &str = "[2001:db8:c::7]:500";
const VIP6: &str = "[2001:db8::10]:500";
const ESP: u8 = 50;
const AH: u8 = 51;
const LINUX: Verdict = Verdict::Punt(Punt::OtherProtocol);

fn helped(mut rig: Rig, port: u16, publish: impl Fn(&mut Rig)) -> Rig {
    rig.spec.helper = Some(Helper::Ipsec);
    rig.spec.address.set_port(port);
    rig.spec.dests.iter_mut().for_each(|dest| dest.address.set_port(port));
    publish(&mut rig);
    rig
}

fn rig(mode: Mode) -> Rig {
    helped(Rig::new(Protocol::Udp, mode, &[1]), 500, Rig::publish)
}

fn ike(rig: &Rig, from: &str) -> Verdict {
    rig.push(WAN, &mut packet(Protocol::Udp, WAN_MAC, from, VIP, 0))
}

/// A packet of another protocol between these; what is in it would be written over if anybody took it for ports and a checksum.
fn made(protocol: u8, mac: [u8; 6], from: &str, to: &str) -> Vec<u8> {
    let mut frame = packet(Protocol::Udp, mac, from, to, 0);
    frame[23] = protocol;
    frame[34..42].copy_from_slice(b"SPI NUMB");
    mend(frame)
}

/// As it goes on.
fn arrives(protocol: u8, macs: ([u8; 6], [u8; 6]), from: &str, to: &str) -> Vec<u8> {
    let mut frame = made(protocol, macs.0, from, to);
    frame[6..12].copy_from_slice(&macs.1);
    frame[22] = 63;
    mend(frame)
}

#[test]
fn esp_follows_in_both_directions_by_nat_and_ah_does_not() {
    let rig = rig(Mode::Nat);
    let mut early = made(ESP, WAN_MAC, CLIENT, VIP);
    assert_eq!(rig.push(WAN, &mut early), LINUX, "never scheduled");
    assert_eq!(ike(&rig, CLIENT), Verdict::Forward(LAN));
    for _ in 0..2 {
        let mut request = made(ESP, WAN_MAC, CLIENT, VIP);
        assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
        assert_eq!(request, arrives(ESP, (server_mac(1), LAN_MAC), CLIENT, SERVER));
        let mut reply = made(ESP, LAN_MAC, SERVER, CLIENT);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, arrives(ESP, (CLIENT_MAC, WAN_MAC), VIP, CLIENT));
    }
    let traffic = rig.spec.dests[0].traffic[0].get();
    assert_eq!((traffic.connections, traffic.packets_in, traffic.packets_out), (1, 3, 2));
    for (protocol, from) in [(AH, CLIENT), (ESP, "198.51.100.8:500"), (47, CLIENT)] {
        let frame = made(protocol, WAN_MAC, from, VIP);
        let mut pushed = frame.clone();
        assert_eq!(rig.push(WAN, &mut pushed), LINUX, "{protocol} {from}");
        assert_eq!(pushed, frame);
    }
    assert_eq!(rig.connections().len(), 1);
}

#[test]
fn what_is_explained_is_what_happens() {
    let rig = rig(Mode::Nat);
    let explained =
        |port, frame: &[u8]| explain(&rig.snapshot, &rig.engine.table, rig.now, port, frame).unwrap();
    let request = made(ESP, WAN_MAC, CLIENT, VIP);
    let early = explained(WAN, &request);
    assert_eq!((early.hit, early.connection, early.verdict), (None, None, LINUX));
    assert_eq!(ike(&rig, CLIENT), Verdict::Forward(LAN));
    let words = rig.connections();
    let reply = made(ESP, LAN_MAC, SERVER, CLIENT);
    for (port, frame, side) in [(WAN, request, Side::Service(0)), (LAN, reply, Side::Endpoint(0))] {
        let told = explained(port, &frame);
        assert_eq!((told.hit, told.reason), (Some(side), None));
        assert_eq!(told.connection.map(|known| (known.dest.index(), known.state)), Some((1, State::Udp)));
        assert_eq!(rig.connections(), words);
        let mut pushed = frame;
        assert_eq!((rig.push(port, &mut pushed), pushed), (told.verdict, told.frame));
    }
    let ah = explained(WAN, &made(AH, WAN_MAC, CLIENT, VIP));
    assert_eq!((ah.hit, ah.verdict), (None, LINUX), "addresses would change");
}

#[test]
fn where_packets_stay_as_they_are_both_follow() {
    for protocol in [ESP, AH] {
        let direct = rig(Mode::Dr);
        assert_eq!(ike(&direct, CLIENT), Verdict::Forward(LAN));
        let mut request = made(protocol, WAN_MAC, CLIENT, VIP);
        assert_eq!(direct.push(WAN, &mut request), Verdict::Forward(LAN));
        assert_eq!(request, arrives(protocol, (server_mac(1), LAN_MAC), CLIENT, VIP));

        let mut tunnel = rig(Mode::Tunnel);
        tunnel.spec.tunnel.source = Some("10.0.0.254".parse().unwrap());
        tunnel.publish();
        assert_eq!(ike(&tunnel, CLIENT), Verdict::Forward(LAN));
        let mut request = made(protocol, WAN_MAC, CLIENT, VIP);
        assert_eq!(tunnel.push(WAN, &mut request), Verdict::Forward(LAN));
        assert_eq!(request[34..], arrives(protocol, (server_mac(1), LAN_MAC), CLIENT, VIP)[14..]);
    }
    let mut here = rig(Mode::Nat);
    here.spec.dests[0].address = socket(VIP).into();
    here.publish();
    assert_eq!(ike(&here, CLIENT), Verdict::Punt(Punt::Local));
    assert_eq!(here.push(WAN, &mut made(AH, WAN_MAC, CLIENT, VIP)), Verdict::Punt(Punt::Local));
}

#[test]
fn who_sends_what_is_too_long_is_told() {
    let mtu = |error: &[u8]| (error[20..22].to_vec(), u16::from_be_bytes([error[26], error[27]]));
    let of = |mtu: u16| (vec![3, 4], mtu);
    for (mode, room) in [(Mode::Nat, 1500), (Mode::Dr, 1500), (Mode::Tunnel, 1480)] {
        let mut rig = rig(mode);
        rig.spec.tunnel.source = Some("10.0.0.254".parse().unwrap());
        rig.publish();
        assert_eq!(ike(&rig, CLIENT), Verdict::Forward(LAN));
        let mut long = made(ESP, WAN_MAC, CLIENT, VIP);
        long.resize(14 + 1600, 7);
        long[16..18].copy_from_slice(&1600_u16.to_be_bytes());
        long[20] = 0x40;
        let mut long = mend(long);
        assert_eq!(rig.push(WAN, &mut long), Verdict::Drop(Drop::TooBig));
        let error = tell::error(&rig.engine.table, &rig.snapshot, rig.now, Drop::TooBig, &long[14..]);
        assert_eq!(mtu(&error.unwrap()), of(room), "{mode:?}");
        if mode == Mode::Tunnel {
            let mut request = made(ESP, WAN_MAC, CLIENT, VIP);
            rig.push(WAN, &mut request);
            let mut narrow = error_of(LAN_MAC, "10.0.0.253:0", "10.0.0.254:0", 3, &request[14..]);
            assert_eq!(rig.push(LAN, &mut narrow), Verdict::Punt(Punt::TunnelError));
            let error = tunnel_errors::error(&rig.engine.table, &rig.snapshot, rig.now, &narrow[14..]);
            assert_eq!(mtu(&error.unwrap()), of(1380));
        }
    }
}

#[test]
fn only_with_the_helper_and_only_ike_between_its_ports() {
    let mut other = rig(Mode::Nat);
    other.spec.helper = None;
    other.publish();
    assert_eq!(ike(&other, CLIENT), Verdict::Forward(LAN));
    assert_eq!(other.push(WAN, &mut made(ESP, WAN_MAC, CLIENT, VIP)), LINUX);

    let translated = rig(Mode::Nat);
    assert_eq!(ike(&translated, "198.51.100.7:1500"), Verdict::Forward(LAN));
    assert_eq!(translated.push(WAN, &mut made(ESP, WAN_MAC, CLIENT, VIP)), LINUX, "by UDP then, port 4500");
}

#[test]
fn it_keeps_the_connection_alive_and_ends_with_it() {
    let mut rig = rig(Mode::Nat);
    assert_eq!(ike(&rig, CLIENT), Verdict::Forward(LAN));
    for _ in 0..10 {
        rig.wait(200);
        assert_eq!(rig.push(WAN, &mut made(ESP, WAN_MAC, CLIENT, VIP)), Verdict::Forward(LAN));
    }
    // What is left is more than the timeout by what a stamp may be old.
    rig.wait(360);
    assert_eq!(rig.push(WAN, &mut made(ESP, WAN_MAC, CLIENT, VIP)), LINUX);
    // A server that is down: with the next packet of IKE its clients go to another one.
    assert_eq!(ike(&rig, CLIENT), Verdict::Forward(LAN));
    rig.spec.dests[0].up = false;
    rig.publish();
    assert_eq!(rig.push(WAN, &mut made(ESP, WAN_MAC, CLIENT, VIP)), LINUX);
}

#[test]
fn each_fragment_finds_its_way_alone_and_none_without_hops() {
    let rig = rig(Mode::Nat);
    assert_eq!(ike(&rig, CLIENT), Verdict::Forward(LAN));
    for place in [0x2000u16, 0x2003, 0x0006] {
        let mut frame = made(ESP, WAN_MAC, CLIENT, VIP);
        frame[20..22].copy_from_slice(&place.to_be_bytes());
        let mut expected = arrives(ESP, (server_mac(1), LAN_MAC), CLIENT, SERVER);
        expected[20..22].copy_from_slice(&place.to_be_bytes());
        let mut frame = mend(frame);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
        assert_eq!(frame, mend(expected));
    }
    let mut last = made(ESP, WAN_MAC, CLIENT, VIP);
    last[22] = 1;
    assert_eq!(rig.push(WAN, &mut mend(last)), Verdict::Drop(Drop::TtlExpired));
}

#[test]
fn of_all_ports() {
    let mut rig = helped(Rig::new(Protocol::Udp, Mode::Nat, &[1, 1]), 0, Rig::publish);
    rig.spec.persistence = Some(Persistence { seconds: 300, prefix: 32, expire_quiescent: false });
    rig.publish();
    let mut first = packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0);
    assert_eq!(rig.push(WAN, &mut first), Verdict::Forward(LAN));
    let server = format!("10.0.0.{}:500", first[33]);
    let mut request = made(ESP, WAN_MAC, CLIENT, VIP);
    assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
    assert_eq!(request[33], first[33]);
    let mut reply = made(ESP, LAN_MAC, &server, CLIENT);
    assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
    assert_eq!(reply, arrives(ESP, (CLIENT_MAC, WAN_MAC), VIP, CLIENT));
}

/// A packet of ESP, or a fragment of one, behind a fragment header.
fn made6(fragment: Option<u16>, macs: ([u8; 6], [u8; 6]), ends: (&str, &str), hops: u8) -> Vec<u8> {
    let mut frame = packet6(Protocol::Udp, macs, ends, (0, hops), &[]);
    frame[20] = ESP;
    frame[54..62].copy_from_slice(b"SPI NUMB");
    if let Some(place) = fragment {
        frame[20] = 44;
        let [high, low] = place.to_be_bytes();
        frame.splice(54..54, [ESP, 0, high, low, 0, 0, 0, 7]);
        frame[19] += 8;
    }
    frame
}

#[test]
fn the_same_with_ipv6() {
    let rig = helped(rig6(Protocol::Udp, Mode::Nat, &[1]), 500, publish6);
    let inward = (WAN_MAC, CLIENT_MAC);
    let sent = |fragment| made6(fragment, inward, (CLIENT6, VIP6), 64);
    assert_eq!(rig.push(WAN, &mut sent(None)), LINUX);
    let mut ike = packet6(Protocol::Udp, inward, (CLIENT6, VIP6), (0, 64), &[]);
    assert_eq!(rig.push(WAN, &mut ike), Verdict::Forward(LAN));
    let server = server6(1, 500);
    // The last of a datagram before the first: none waits.
    for fragment in [None, Some(0x0018), Some(0x0001)] {
        let mut request = sent(fragment);
        assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
        assert_eq!(request, made6(fragment, (server_mac(1), LAN_MAC), (CLIENT6, &server), 63));
        let mut reply = made6(fragment, (LAN_MAC, server_mac(1)), (&server, CLIENT6), 64);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, made6(fragment, (CLIENT_MAC, WAN_MAC), (VIP6, CLIENT6), 63));
    }
}
