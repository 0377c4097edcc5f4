//! What senders are told of packets that go no further.

use super::*;
use crate::engine::tell::error;

const ANOTHER: &str = "198.51.100.8:1";

/// An error: source, destination, type and code, MTU, quote.
type Told = (u32, u32, [u8; 2], u16, Vec<u8>);

/// The error about a packet that is dropped.
fn told(rig: &Rig, port: PortIndex, frame: &[u8]) -> Option<Told> {
    let Verdict::Drop(reason) = rig.push(port, &mut frame.to_vec()) else { panic!("it was not dropped") };
    let error = error(&rig.engine.table, &rig.snapshot, rig.now, reason, &frame[14..])?;
    assert_eq!((checksum::sum(&error[..20]), checksum::sum(&error[20..])), (0xFFFF, 0xFFFF));
    assert_eq!((usize::from(error[2]) << 8 | usize::from(error[3]), error[9]), (error.len(), 1));
    let address = |at: usize| u32::from_be_bytes(error[at..at + 4].try_into().unwrap());
    let mtu = u16::from_be_bytes([error[26], error[27]]);
    Some((address(12), address(16), [error[20], error[21]], mtu, error[28..].to_vec()))
}

fn number(text: &str) -> u32 {
    u32::from(*socket(text).ip())
}

/// A frame with so many bytes of IP packet, and that field of the header.
fn changed(mut frame: Vec<u8>, length: usize, at: usize, value: u8) -> Vec<u8> {
    frame.resize(14 + length, 0);
    frame[16..18].copy_from_slice(&(length as u16).to_be_bytes());
    frame[at] = value;
    frame[24..26].fill(0);
    let sum = !checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn a_service_without_server_is_unreachable() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut rig = Rig::new(protocol, Mode::Nat, &[1]);
        rig.spec.dests[0].up = false;
        rig.publish();
        let frame = packet(protocol, WAN_MAC, CLIENT, VIP, SYN);
        let expected = (number(VIP), number(CLIENT), [3, 3], 0, frame[14..].to_vec());
        assert_eq!(told(&rig, WAN, &frame), Some(expected));
    }
}

/// What a RST says: from whom, to whom (with ports), its number, what it acknowledges, and its flags.
fn refused(rig: &Rig, frame: &[u8]) -> Option<([u8; 12], u32, u32, u8)> {
    let Verdict::Drop(reason) = rig.push(WAN, &mut frame.to_vec()) else { panic!("it was not dropped") };
    let rst = error(&rig.engine.table, &rig.snapshot, rig.now, reason, &frame[14..])?;
    let pseudo = [&rst[12..20], &[0, 6, 0, 20], &rst[20..]].concat();
    assert_eq!(
        (rst.len(), rst[9], checksum::sum(&rst[..20]), checksum::sum(&pseudo)),
        (40, 6, 0xFFFF, 0xFFFF)
    );
    let number = |at: usize| u32::from_be_bytes(rst[at..at + 4].try_into().unwrap());
    Some((rst[12..24].try_into().unwrap(), number(24), number(28), rst[33]))
}

#[test]
fn who_finds_no_server_may_be_reset() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    rig.spec.dests[0].up = false;
    (rig.spec.resets, rig.spec.sloppy) = (true, true);
    rig.publish();
    let frame = |flags, payload: usize| {
        let mut frame = changed(packet(Protocol::Tcp, WAN_MAC, CLIENT, VIP, flags), 40 + payload, 22, 64);
        frame[38..46].copy_from_slice(&[0, 0, 1, 0, 0, 0, 2, 0]);
        frame
    };
    let ends = {
        let (vip, client) = (socket(VIP), socket(CLIENT));
        let ports = [vip.port().to_be_bytes(), client.port().to_be_bytes()].concat();
        <[u8; 12]>::try_from([&vip.ip().octets()[..], &client.ip().octets(), &ports].concat()).unwrap()
    };
    for (flags, payload, expected) in [
        (SYN, 0, (ends, 0, 0x101, RST | ACK)),
        (SYN, 7, (ends, 0, 0x108, RST | ACK)),
        (SYN | FIN, 0, (ends, 0, 0x102, RST | ACK)),
        (ACK, 7, (ends, 0x200, 0, RST)),
    ] {
        assert_eq!(refused(&rig, &frame(flags, payload)), Some(expected), "{flags}, {payload}");
    }
    // What is too long or has lived too long is another matter, and so is a datagram.
    assert_eq!(told(&rig, WAN, &changed(from_client(SYN), 47, 22, 1)).map(|told| told.2), Some([11, 0]));
    rig.spec.protocol = Protocol::Udp;
    rig.publish();
    let datagram = packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0);
    assert_eq!(told(&rig, WAN, &datagram).map(|told| told.2), Some([3, 3]));
}

#[test]
fn a_service_whose_server_is_still_looked_for_says_nothing() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    rig.spec.dests[0].address = socket("10.0.0.77:8080").into(); // whose MAC nobody knows
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(SYN)), Verdict::Drop(Drop::NoServer));
    assert_eq!(told(&rig, WAN, &from_client(SYN)), None);
    rig.spec.dests[0].weight = 0;
    rig.publish();
    assert!(told(&rig, WAN, &from_client(SYN)).is_some(), "it would take none");
}

#[test]
fn the_end_of_the_time_to_live_is_the_routers_to_tell() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let frame = changed(from_client(SYN), 47, 22, 1);
    assert_eq!(told(&rig, WAN, &frame), Some((0, number(CLIENT), [11, 0], 0, frame[14..].to_vec())));
    let reply = changed(from_server(1, ACK), 47, 22, 1);
    assert_eq!(told(&rig, LAN, &reply), Some((0, number("10.0.0.1:0"), [11, 0], 0, reply[14..].to_vec())));
}

#[test]
fn what_is_too_long_is_told_the_mtu_and_quoted_as_far_as_there_is_room() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    rig.push(WAN, &mut from_client(SYN));
    for (port, frame, to) in [(WAN, from_client(ACK), CLIENT), (LAN, from_server(1, ACK), "10.0.0.1:0")] {
        let long = changed(frame.clone(), 1501, 20, 0x40);
        let quote = long[14..14 + 548].to_vec();
        assert_eq!(told(&rig, port, &long), Some((0, number(to), [3, 4], 1500, quote)));
        assert_eq!(told(&rig, port, &changed(frame, 1501, 20, 0)), None, "it may be fragmented");
    }
}

#[test]
fn of_datagrams_that_nobody_remembers_the_narrowest_way_is_told() {
    let mut rig = Rig::new(Protocol::Udp, Mode::Nat, &[1, 1]);
    rig.spec.one_packet = true;
    rig.publish();
    let request = packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0);
    let long = changed(request, 1501, 20, 0x40);
    let quote = long[14..14 + 548].to_vec();
    assert_eq!(told(&rig, WAN, &long), Some((0, number(CLIENT), [3, 4], 1500, quote)));
}

#[test]
fn nobody_is_told_who_is_no_host_or_of_what_has_other_reasons() {
    let mut rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    rig.spec.dests[0].up = false;
    rig.publish();
    for (from, is_told) in [
        (ANOTHER, true),
        ("0.0.0.0:1", false),
        ("127.0.0.1:1", false),
        ("224.0.0.1:1", false),
        ("255.255.255.255:1", false),
        (ROUTER, false),
    ] {
        let frame = packet(Protocol::Udp, WAN_MAC, from, VIP, 0);
        assert_eq!(told(&rig, WAN, &frame).is_some(), is_told, "{from}");
    }
    let frame = packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0);
    let about = |reason, packet: &[u8]| error(&rig.engine.table, &rig.snapshot, rig.now, reason, packet);
    assert_eq!(about(Drop::TableFull, &frame[14..]), None);
    for length in 0..35 {
        assert_eq!(about(Drop::NoServer, &frame[14..14 + length]), None, "{length} bytes");
    }
}
