//! ICMP errors about connections.

use proptest::prelude::*;

use super::*;

const SERVER: &str = "10.0.0.1:8080";
/// Routers on either side, which have no part in the connection.
const OUTSIDE: &str = "203.0.113.1:0";
const INSIDE: &str = "10.0.0.253:0";
const UNREACHABLE: u8 = 3;
const REDIRECT: u8 = 5;
const TIME_EXCEEDED: u8 = 11;

/// An error of this type from an address to another, that quotes an IP packet.
pub(super) fn error(mac: [u8; 6], from: &str, to: &str, kind: u8, quote: &[u8]) -> Vec<u8> {
    let mut frame = packet(Protocol::Udp, mac, from, to, 0)[..34].to_vec();
    // Fragmentation needed, MTU 1400.
    frame.extend([kind, 4, 0, 0, 0, 0, 0x05, 0x78]);
    frame.extend(quote);
    let length = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame[23] = 1;
    mend(&mut frame, 24, 14..34);
    let end = frame.len();
    mend(&mut frame, 36, 34..end);
    frame
}

fn mend(frame: &mut [u8], at: usize, range: std::ops::Range<usize>) {
    frame[at..at + 2].fill(0);
    let sum = !checksum::sum(&frame[range]);
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The IP packet of a frame, one router later.
pub(super) fn hop(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    packet[8] -= 1;
    mend(&mut packet, 10, 0..20);
    packet
}

fn address(packet: &[u8], at: usize) -> std::net::Ipv4Addr {
    <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap().into()
}

/// The message of an error that is right in every sum, from and to these.
pub(super) fn message<'a>(frame: &'a [u8], from: &str, to: &str) -> &'a [u8] {
    assert_eq!(address(frame, 26), *socket(from).ip());
    assert_eq!(address(frame, 30), *socket(to).ip());
    assert_eq!((checksum::sum(&frame[14..34]), checksum::sum(&frame[34..])), (0xFFFF, 0xFFFF));
    &frame[34..]
}

/// A router with a connection: the client's packet as it was sent and as the server got it, and the reply as it was
/// sent and as the client got it.
struct Talk {
    rig: Rig,
    request: [Vec<u8>; 2],
    reply: [Vec<u8>; 2],
}

fn talk(protocol: Protocol, mode: Mode) -> Talk {
    let rig = Rig::new(protocol, mode, &[1]);
    let server = if mode == Mode::Nat { SERVER } else { VIP };
    let forwarded = |port, frame: Vec<u8>, expected| {
        let mut passed = frame.clone();
        assert_eq!(rig.push(port, &mut passed), expected);
        [frame, passed]
    };
    let request = forwarded(WAN, packet(protocol, WAN_MAC, CLIENT, VIP, SYN), Verdict::Forward(LAN));
    let sent = packet(protocol, LAN_MAC, server, CLIENT, SYN | ACK);
    let reply = match mode {
        Mode::Nat => forwarded(LAN, sent, Verdict::Forward(WAN)),
        Mode::Dr | Mode::Tunnel | Mode::Fullnat => [sent.clone(), sent],
    };
    Talk { rig, request, reply }
}

/// As much as RFC 792 wants, and all.
fn quotes(packet: &[u8]) -> [&[u8]; 2] {
    [&packet[..28], packet]
}

#[test]
fn an_error_about_a_request_reaches_the_client_as_one_about_what_it_has_sent() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (reporter, Talk { rig, request: [sent, got], .. }) in
            [SERVER, INSIDE].map(|reporter| (reporter, talk(protocol, Mode::Nat)))
        {
            let before = (rig.connections(), rig.live(1));
            for (quote, expected) in quotes(&got[14..]).into_iter().zip(quotes(&hop(&sent))) {
                let mut frame = error(LAN_MAC, reporter, CLIENT, UNREACHABLE, quote);
                assert_eq!(rig.push(LAN, &mut frame), Verdict::Forward(WAN));
                assert_eq!(message(&frame, VIP, CLIENT)[8..], *expected, "{protocol}, {}", quote.len());
                assert_eq!((&frame[..6], &frame[6..12], frame[22]), (&CLIENT_MAC[..], &WAN_MAC[..], 63));
                assert_eq!(frame[34..36], [UNREACHABLE, 4]);
                assert_eq!(frame[40..42], [0x05, 0x78], "the MTU");
            }
            assert_eq!((rig.connections(), rig.live(1)), before);
        }
    }
}

/// A receiver that waits in vain for the others says so of the first fragment.
#[test]
fn an_error_about_a_first_fragment_reaches_who_has_sent_it() {
    let Talk { rig, request: [sent, got], .. } = talk(Protocol::Udp, Mode::Nat);
    let first = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        packet[6] = 0x20;
        mend(&mut packet, 10, 0..20);
        packet
    };
    let mut frame = error(LAN_MAC, SERVER, CLIENT, TIME_EXCEEDED, &first(&got[14..]));
    assert_eq!(rig.push(LAN, &mut frame), Verdict::Forward(WAN));
    assert_eq!(message(&frame, VIP, CLIENT)[8..], first(&hop(&sent)));
}

#[test]
fn an_error_about_a_reply_reaches_the_server_as_one_about_what_it_has_sent() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (reporter, Talk { rig, reply: [sent, got], .. }) in
            [CLIENT, OUTSIDE].map(|reporter| (reporter, talk(protocol, Mode::Nat)))
        {
            for (quote, expected) in quotes(&got[14..]).into_iter().zip(quotes(&hop(&sent))) {
                let mut frame = error(WAN_MAC, reporter, VIP, UNREACHABLE, quote);
                assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
                assert_eq!(message(&frame, reporter, SERVER)[8..], *expected, "{protocol}, {}", quote.len());
                assert_eq!((&frame[..6], &frame[6..12]), (&server_mac(1)[..], &LAN_MAC[..]));
            }
        }
    }
}

#[test]
fn with_direct_routing_an_error_about_a_reply_goes_to_the_server_as_it_is() {
    let Talk { rig, reply: [sent, _], .. } = talk(Protocol::Tcp, Mode::Dr);
    let mut frame = error(WAN_MAC, OUTSIDE, VIP, UNREACHABLE, &hop(&sent));
    let before = message(&frame, OUTSIDE, VIP).to_vec();
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
    assert_eq!(message(&frame, OUTSIDE, VIP), before);
    assert_eq!((&frame[..6], frame[22]), (&server_mac(1)[..], 63));
    // With the server in the client's place it is about nothing that went through here.
    let request = packet(Protocol::Tcp, LAN_MAC, CLIENT, VIP, SYN);
    let mut frame = error(LAN_MAC, INSIDE, CLIENT, UNREACHABLE, &request[14..]);
    assert_eq!(rig.push(LAN, &mut frame), Verdict::Punt(Punt::Icmp));
}

#[test]
fn errors_are_counted_and_keep_nothing_alive() {
    let Talk { mut rig, request: [_, got], .. } = talk(Protocol::Udp, Mode::Nat);
    let push = |rig: &Rig| rig.push(LAN, &mut error(LAN_MAC, SERVER, CLIENT, UNREACHABLE, &got[14..]));
    rig.wait(290);
    assert_eq!(push(&rig), Verdict::Forward(WAN));
    let traffic = rig.spec.dests[0].traffic[0].get();
    assert_eq!((traffic.packets_in, traffic.packets_out), (1, 2), "a request, a reply and the error");
    assert_eq!(rig.engine.counters.traffic.get(), traffic);
    rig.wait(15);
    assert_eq!(push(&rig), Verdict::Drop(Drop::IcmpError), "305 seconds after the last packet");
}

#[test]
fn what_is_about_no_connection_shows_no_server() {
    let Talk { rig, request: [_, got], reply: [_, seen] } = talk(Protocol::Udp, Mode::Nat);
    let (request, reply) = (&got[14..], &seen[14..]);
    let to_client = |kind, to, quote: &[u8]| rig.push(LAN, &mut error(LAN_MAC, INSIDE, to, kind, quote));
    let to_server = |kind, to, quote: &[u8]| rig.push(WAN, &mut error(WAN_MAC, OUTSIDE, to, kind, quote));
    let (dropped, linux) = (Verdict::Drop(Drop::IcmpError), Verdict::Punt(Punt::Icmp));
    let other = |packet: &[u8], at: usize| {
        let mut packet = packet.to_vec();
        packet[at] ^= 1;
        packet
    };

    assert_eq!(to_client(UNREACHABLE, CLIENT, &other(request, 21)), dropped, "another client's port");
    assert_eq!(to_client(UNREACHABLE, "198.51.100.9:0", request), dropped, "to somebody else");
    assert_eq!(to_client(REDIRECT, CLIENT, request), dropped, "for this router, if for anybody");
    assert_eq!(to_client(UNREACHABLE, CLIENT, &other(request, 23)), linux, "another port of the server");
    assert_eq!(to_client(UNREACHABLE, ROUTER, request), linux, "about a packet of the router's own");
    assert_eq!(to_client(UNREACHABLE, CLIENT, &request[..27]), linux, "too little is quoted to tell");

    assert_eq!(to_server(UNREACHABLE, VIP, &other(reply, 23)), linux, "another client's port");
    assert_eq!(to_server(UNREACHABLE, "192.0.2.11:0", reply), linux, "to somebody else");
    assert_eq!(to_server(REDIRECT, VIP, reply), linux);
    assert_eq!(to_server(0, VIP, reply), linux, "no error");

    for (at, expected) in [(20, dropped), (22, Verdict::Drop(Drop::TtlExpired))] {
        let mut frame = error(LAN_MAC, INSIDE, CLIENT, UNREACHABLE, request);
        frame[at] = if at == 20 { 0x20 } else { 1 };
        mend(&mut frame, 24, 14..34);
        assert_eq!(rig.push(LAN, &mut frame), expected, "a fragment, or at the end of its way");
    }
}

/// With a way to the server's own address its users need the path's MTU as others do.
#[test]
fn what_is_about_a_routed_packet_is_routed() {
    for port in [8080, 22] {
        let Talk { mut rig, request: [_, got], .. } = talk(Protocol::Tcp, Mode::Nat);
        let mut other = got[14..].to_vec();
        other[20] ^= 1;
        other[22..24].copy_from_slice(&u16::to_be_bytes(port));
        rig.snapshot.routing = true;
        let push = |quote: &[u8]| {
            let mut frame = error(LAN_MAC, INSIDE, CLIENT, UNREACHABLE, quote);
            let verdict = rig.push(LAN, &mut frame);
            (
                verdict,
                message(&frame, if verdict == Verdict::Forward(WAN) { VIP } else { INSIDE }, CLIENT).to_vec(),
            )
        };
        let (verdict, message) = push(&other);
        assert_eq!((verdict, &message[8..]), (Verdict::Route(WAN), &other[..]), "as it came");
        assert_eq!(push(&got[14..]).0, Verdict::Forward(WAN), "about a connection");
    }
}

proptest! {
    /// No length, type or bit in it is a panic, and a right sum comes out right, a wrong one wrong.
    #[test]
    fn damaged_errors_stay_damaged(
        inward in any::<bool>(), tcp in any::<bool>(), cut in 0usize..41, at in 34usize..74, bit in 0u8..8, hurt in any::<bool>(),
    ) {
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let Talk { rig, request: [_, request], reply: [_, reply] } = talk(protocol, Mode::Nat);
        let (port, mut frame) = if inward {
            (WAN, error(WAN_MAC, OUTSIDE, VIP, UNREACHABLE, &reply[14..][..cut.min(reply.len() - 14)]))
        } else {
            (LAN, error(LAN_MAC, INSIDE, CLIENT, UNREACHABLE, &request[14..][..cut.min(request.len() - 14)]))
        };
        if hurt && let Some(byte) = frame.get_mut(at) {
            *byte ^= 1 << bit;
        }
        let sum = checksum::sum(&frame[34..]);
        let verdict = rig.push(port, &mut frame);
        if matches!(verdict, Verdict::Forward(_)) {
            prop_assert_eq!(checksum::sum(&frame[34..]) == 0xFFFF, sum == 0xFFFF);
        }
        prop_assert!(cut < 28 || hurt || matches!(verdict, Verdict::Forward(_)));
    }
}
