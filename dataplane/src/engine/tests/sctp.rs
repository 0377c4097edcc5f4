//! SCTP through the engine: packets are made here, with checksums bit by bit.

use proptest::prelude::*;

use super::*;
use crate::wire::sctp::Event;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const DATA: u8 = 0;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// The CRC of RFC 9260, appendix A, as simply as it can be said.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}

/// A packet with one chunk, in a frame that is padded as Ethernet has it.
fn sctp(macs: ([u8; 6], [u8; 6]), from: &str, to: &str, ttl: u8, chunk: u8) -> Vec<u8> {
    let (from, to) = (socket(from), socket(to));
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend([0xAB, 0xCD, 0xEF, 1, 0, 0, 0, 0, chunk, 0, 0, 4]);
    let sum = crc32c(&segment);
    segment[8..12].copy_from_slice(&sum.to_le_bytes());
    let mut ip = vec![0x45, 0, 0, 20 + segment.len() as u8, 0, 7, 0x40, 0, ttl, 132, 0, 0];
    ip.extend(from.ip().octets());
    ip.extend(to.ip().octets());
    let sum = checksum::sum(&ip);
    ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    let mut frame = [&macs.0[..], &macs.1, &[0x08, 0x00], &ip, &segment].concat();
    frame.resize(60, 0x5A);
    frame
}

fn from_client(chunk: u8) -> Vec<u8> {
    sctp((WAN_MAC, CLIENT_MAC), CLIENT, VIP, 64, chunk)
}

fn from_server(chunk: u8) -> Vec<u8> {
    sctp((LAN_MAC, CLIENT_MAC), "10.0.0.1:8080", CLIENT, 64, chunk)
}

/// Each packet arrives with the checksum of a packet that was made so, and moves the state.
#[test]
fn an_association_by_nat_with_another_port() {
    let rig = Rig::new(Protocol::Sctp, Mode::Nat, &[1]);
    let steps = [
        (true, INIT, State::Init1, (0, 1)),
        (false, INIT_ACK, State::CookieSent, (0, 1)),
        (true, COOKIE_ECHO, State::CookieReplied, (0, 1)),
        (false, COOKIE_ACK, State::Established, (1, 0)),
        (true, DATA, State::Established, (1, 0)),
        (false, DATA, State::Established, (1, 0)),
        (true, SHUTDOWN, State::ShutdownReceived, (0, 1)),
        (false, SHUTDOWN_ACK, State::ShutdownAckSent, (0, 1)),
        (true, SHUTDOWN_COMPLETE, State::Closed, (0, 1)),
        (true, INIT, State::Init1, (0, 1)),
    ];
    for (inward, chunk, state, live) in steps {
        let (port, to, mut frame, expected) = if inward {
            let expected = sctp((server_mac(1), LAN_MAC), CLIENT, "10.0.0.1:8080", 63, chunk);
            (WAN, LAN, from_client(chunk), expected)
        } else {
            let expected = sctp((CLIENT_MAC, WAN_MAC), VIP, CLIENT, 63, chunk);
            (LAN, WAN, from_server(chunk), expected)
        };
        assert_eq!(rig.push(port, &mut frame), Verdict::Forward(to), "{state}");
        // The IP header's checksum may come out as another one of the two zeros only; it does not here.
        assert_eq!(frame, expected, "{state}");
        assert_eq!((rig.connections()[0].2, rig.live(1)), (state, live));
    }
}

#[test]
fn an_association_by_direct_routing() {
    let rig = Rig::new(Protocol::Sctp, Mode::Dr, &[1]);
    for (chunk, state) in [
        (INIT, State::Init1),
        (COOKIE_ECHO, State::Established),
        (DATA, State::Established),
        (SHUTDOWN, State::ShutdownReceived),
        (SHUTDOWN_COMPLETE, State::Closed),
    ] {
        let mut frame = from_client(chunk);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
        assert_eq!(frame, sctp((server_mac(1), LAN_MAC), CLIENT, VIP, 63, chunk));
        assert_eq!(rig.connections()[0].2, state);
    }
}

/// The server gets the client's packet in another one, with a hop less.
#[test]
fn an_association_by_a_tunnel() {
    let mut rig = Rig::new(Protocol::Sctp, Mode::Tunnel, &[1]);
    rig.spec.tunnel.source = Some((*socket(ROUTER).ip()).into());
    rig.publish();
    for (chunk, state) in
        [(INIT, State::Init1), (COOKIE_ECHO, State::Established), (SHUTDOWN, State::ShutdownReceived)]
    {
        let mut frame = from_client(chunk);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
        assert_eq!((&frame[..12], frame[23]), (&[server_mac(1), LAN_MAC].concat()[..], 4));
        let inside = sctp((server_mac(1), LAN_MAC), CLIENT, VIP, 63, chunk);
        assert_eq!(frame[34..70], inside[14..50]);
        assert_eq!(rig.connections()[0].2, state);
    }
}

/// Both ports become others, and the checksum with each.
#[test]
fn an_association_by_full_nat() {
    let rig = fullnat::rig(Protocol::Sctp, 1);
    let (local, server) = (fullnat::LOCAL, fullnat::SERVER);
    for (inward, chunk, state) in [
        (true, INIT, State::Init1),
        (false, INIT_ACK, State::CookieSent),
        (true, COOKIE_ECHO, State::CookieReplied),
        (false, COOKIE_ACK, State::Established),
        (true, DATA, State::Established),
    ] {
        let (port, to, mut frame, expected) = if inward {
            (WAN, LAN, from_client(chunk), sctp((server_mac(1), LAN_MAC), local, server, 63, chunk))
        } else {
            let frame = sctp((LAN_MAC, CLIENT_MAC), server, local, 64, chunk);
            (LAN, WAN, frame, sctp((CLIENT_MAC, WAN_MAC), VIP, CLIENT, 63, chunk))
        };
        assert_eq!(rig.push(port, &mut frame), Verdict::Forward(to), "{state}");
        assert_eq!(frame, expected, "{state}");
        assert_eq!(rig.connections()[0].2, state);
    }
}

#[test]
fn a_service_of_all_ports_has_an_association_for_each() {
    let mut rig = Rig::new(Protocol::Sctp, Mode::Nat, &[1]);
    rig.spec.address.set_port(0);
    rig.spec.dests[0].address.set_port(0);
    rig.publish();
    for port in [3868, 5060] {
        let (virtual_, server) = (format!("192.0.2.10:{port}"), format!("10.0.0.1:{port}"));
        for chunk in [INIT, COOKIE_ECHO] {
            let mut frame = sctp((WAN_MAC, CLIENT_MAC), CLIENT, &virtual_, 64, chunk);
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
            assert_eq!(frame, sctp((server_mac(1), LAN_MAC), CLIENT, &server, 63, chunk));
        }
        let mut reply = sctp((LAN_MAC, CLIENT_MAC), &server, CLIENT, 64, COOKIE_ACK);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, sctp((CLIENT_MAC, WAN_MAC), &virtual_, CLIENT, 63, COOKIE_ACK));
    }
    assert_eq!(rig.connections().len(), 2);
    let other = "192.0.2.10:2905";
    let mut data = sctp((WAN_MAC, CLIENT_MAC), CLIENT, other, 64, DATA);
    assert_eq!(rig.push(WAN, &mut data), Verdict::Punt(Punt::NoConnection));
}

#[test]
fn the_associations_of_a_mark_have_one_turn_with_its_connections() {
    let mut rig = Rig::new(Protocol::Sctp, Mode::Nat, &[1, 1]);
    let faces = [
        (Protocol::Sctp, "192.0.2.10", 3868..=3868),
        (Protocol::Sctp, "192.0.2.11", 5060..=5061),
        (Protocol::Tcp, "192.0.2.11", 5060..=5060),
    ];
    rig.snapshot = compile(3, &marks::marked(&rig, &faces), []);
    let mut servers = Vec::new();
    for virtual_ in ["192.0.2.10:3868", "192.0.2.11:5061"] {
        let mut frame = sctp((WAN_MAC, CLIENT_MAC), CLIENT, virtual_, 64, INIT);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
        let n = frame[5];
        let server = format!("10.0.0.{n}:{}", socket(virtual_).port());
        assert_eq!(frame, sctp((server_mac(n.into()), LAN_MAC), CLIENT, &server, 63, INIT));
        let mut reply = sctp((LAN_MAC, CLIENT_MAC), &server, CLIENT, 64, INIT_ACK);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, sctp((CLIENT_MAC, WAN_MAC), virtual_, CLIENT, 63, INIT_ACK));
        servers.push(n);
    }
    let mut syn = packet(Protocol::Tcp, WAN_MAC, CLIENT, "192.0.2.11:5060", SYN);
    assert_eq!(rig.push(WAN, &mut syn), Verdict::Forward(LAN));
    servers.push(syn[5]);
    assert_eq!(servers, [2, 1, 2]);
    let mut other = sctp((WAN_MAC, CLIENT_MAC), CLIENT, "192.0.2.10:5060", 64, INIT);
    assert_eq!(rig.push(WAN, &mut other), Verdict::Punt(Punt::NoService));
}

/// Has a client begin an association; its server, if there is one.
fn begin(rig: &Rig, client: &str) -> Option<usize> {
    match rig.push(WAN, &mut sctp((WAN_MAC, CLIENT_MAC), client, VIP, 64, INIT)) {
        Verdict::Forward(_) => {}
        Verdict::Drop(Drop::NoServer) => return None,
        other => panic!("{client}: {other:?}"),
    }
    let of_client = |&(known, _, state): &(SocketAddrV4, usize, State)| {
        known == socket(client) && state != State::Template
    };
    rig.connections().into_iter().find(of_client).map(|(_, server, _)| server)
}

#[test]
fn a_client_comes_back_to_its_server() {
    let mut rig = Rig::new(Protocol::Sctp, Mode::Nat, &[1, 1]);
    rig.spec.persistence = Some(Persistence { seconds: 300, prefix: 32, expire_quiescent: false });
    rig.publish();
    let server = begin(&rig, "198.51.100.7:40000");
    for port in 40001..40010 {
        assert_eq!(begin(&rig, &format!("198.51.100.7:{port}")), server);
    }
    assert_eq!(begin(&rig, "198.51.100.8:40000"), server.map(|server| 3 - server), "round robin");
    let templates: u32 = rig.spec.dests.iter().map(|dest| dest.gauge.templates()).sum();
    assert_eq!(templates, 2);
}

/// An association counts from its INIT on, as long as it is known.
#[test]
fn a_full_server_gets_no_association() {
    let mut rig = Rig::new(Protocol::Sctp, Mode::Nat, &[1, 1]);
    for dest in &mut rig.spec.dests {
        dest.limits = Some(Limits { upper: 2, lower: 2 });
    }
    rig.publish();
    for port in 0..4 {
        assert!(begin(&rig, &format!("198.51.100.7:{}", 40_000 + port)).is_some());
    }
    assert_eq!([rig.live(1), rig.live(2)], [(0, 2), (0, 2)]);
    assert_eq!(begin(&rig, "198.51.100.7:50000"), None);
    // One is refused by its server, and forgotten.
    let (client, server, _) = rig.connections()[0];
    let from = format!("10.0.0.{server}:8080");
    let mut abort = sctp((LAN_MAC, CLIENT_MAC), &from, &client.to_string(), 64, ABORT);
    assert_eq!(rig.push(LAN, &mut abort), Verdict::Forward(WAN));
    rig.wait(65);
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    assert!(begin(&rig, "198.51.100.7:50000").is_some());
}

proptest! {
    /// Whatever the two say, in whatever order, each gets what the other has sent it, as if it had been sent to it.
    #[test]
    fn whatever_is_said_arrives_as_it_was_made(
        said in prop::collection::vec((any::<bool>(), 0u8..=15), 1..40),
        full in any::<bool>(),
    ) {
        let rig = if full { fullnat::rig(Protocol::Sctp, 1) } else { Rig::new(Protocol::Sctp, Mode::Nat, &[1]) };
        let (near, server) = (if full { fullnat::LOCAL } else { CLIENT }, "10.0.0.1:8080");
        rig.push(WAN, &mut from_client(INIT));
        for (inward, chunk) in said {
            let (port, to, mut frame, expected) = if inward {
                (WAN, LAN, from_client(chunk), sctp((server_mac(1), LAN_MAC), near, server, 63, chunk))
            } else {
                let frame = sctp((LAN_MAC, CLIENT_MAC), server, near, 64, chunk);
                (LAN, WAN, frame, sctp((CLIENT_MAC, WAN_MAC), VIP, CLIENT, 63, chunk))
            };
            prop_assert_eq!(rig.push(port, &mut frame), Verdict::Forward(to));
            prop_assert_eq!(frame, expected);
            prop_assert_eq!(rig.connections().len(), 1);
        }
    }
}

#[test]
fn only_an_init_begins_one_unless_the_service_is_sloppy() {
    let mut rig = Rig::new(Protocol::Sctp, Mode::Nat, &[1]);
    for chunk in (DATA..=SHUTDOWN_COMPLETE).filter(|&chunk| chunk != INIT) {
        assert_eq!(rig.push(WAN, &mut from_client(chunk)), Verdict::Punt(Punt::NoConnection), "{chunk}");
    }
    rig.spec.sloppy = true;
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(ABORT)), Verdict::Punt(Punt::NoConnection));
    assert_eq!(rig.push(WAN, &mut from_client(DATA)), Verdict::Forward(LAN));
    assert_eq!(rig.connections()[0].2, State::None, "it may have been a flood's");
    assert_eq!(rig.push(LAN, &mut from_server(DATA)), Verdict::Forward(WAN));
    assert_eq!(rig.connections()[0].2, State::Established);
}

/// Where a client's packets are all that is seen, its cookie is the last of a handshake that another router has seen begin.
#[test]
fn begun_by_its_cookie_by_direct_routing_it_is_established_by_what_follows() {
    let mut rig = Rig::new(Protocol::Sctp, Mode::Dr, &[1]);
    rig.spec.sloppy = true;
    rig.publish();
    for (chunk, expected) in [(COOKIE_ECHO, State::None), (DATA, State::Established)] {
        assert_eq!(rig.push(WAN, &mut from_client(chunk)), Verdict::Forward(LAN));
        assert_eq!(rig.connections()[0].2, expected);
    }
}

#[test]
fn a_header_that_is_cut_off_is_dropped() {
    let rig = Rig::new(Protocol::Sctp, Mode::Nat, &[1]);
    let mut frame = from_client(INIT);
    frame[17] = 31;
    frame[24..26].fill(0);
    let sum = checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Drop(Drop::BadTransportHeader));
    assert_eq!(Event::of_packet(&[0; 12]), Event::Data);
}

/// A first fragment keeps its checksum where no port changes, and cannot where one does.
#[test]
fn a_first_fragment_goes_only_where_its_port_stays() {
    for (mode, expected) in
        [(Mode::Nat, Verdict::Drop(Drop::SctpFragment)), (Mode::Dr, Verdict::Forward(LAN))]
    {
        let rig = Rig::new(Protocol::Sctp, mode, &[1]);
        let mut frame = from_client(INIT);
        frame[20] = 0x20;
        frame[24..26].fill(0);
        let sum = checksum::sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
        assert_eq!(rig.push(WAN, &mut frame), expected, "{mode}");
    }
}

/// An ICMP error about a packet to the real server is told to the client as one about the packet that he has sent, checksum
/// included, also if no more than its header is quoted.
#[test]
fn an_error_about_an_association_quotes_what_the_client_has_sent() {
    let rig = Rig::new(Protocol::Sctp, Mode::Nat, &[1]);
    let sent = from_client(INIT);
    let mut arrived = sent.clone();
    assert_eq!(rig.push(WAN, &mut arrived), Verdict::Forward(LAN));
    let quoted = crate::wire::icmp::error::<u32>(0x0A00_0001, 0xC633_6407, (3, 2), 0, &arrived[14..46]);
    let mut error = [&LAN_MAC[..], &server_mac(1), &[0x08, 0x00], &quoted].concat();
    assert_eq!(rig.push(LAN, &mut error), Verdict::Forward(WAN));
    let quote = &error[14 + 20 + 8..];
    assert_eq!(quote[12..32], sent[14 + 12..46], "addresses, ports and checksum");
}
