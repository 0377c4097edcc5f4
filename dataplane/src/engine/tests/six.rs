//! IPv6: what goes in and what comes out.

use std::net::SocketAddrV6;

use super::*;
use crate::fib::Fibs;
use crate::service::Persistence;
use crate::wire::ipv6::Ipv6;

pub(super) const CLIENT6: &str = "[2001:db8:c::7]:40112";
pub(super) const VIP6: &str = "[2001:db8::10]:80";
const GATEWAY: u128 = 0xFE80_0000_0000_0000_0000_0000_0000_0001;
const SERVERS: u128 = 0x2001_0DB8_000A_0000_0000_0000_0000_0000;

pub(super) fn socket6(text: &str) -> SocketAddrV6 {
    text.parse().unwrap()
}

pub(super) fn server(n: u32, port: u16) -> String {
    format!("[2001:db8:a::{n}]:{port}")
}

pub(super) fn fibs() -> Fibs {
    let routes = [
        Route { prefix: 0, length: 0, via: Via::Gateway(WAN, GATEWAY) },
        Route { prefix: SERVERS, length: 64, via: Via::OnLink(LAN) },
        Route { prefix: SERVERS + 0xFE, length: 128, via: Via::Own },
    ];
    let mut neighbours = vec![((WAN, GATEWAY), Adjacency::new(WAN, 1500, CLIENT_MAC, WAN_MAC))];
    for n in 1..=9 {
        neighbours.push(((LAN, SERVERS + n), Adjacency::new(LAN, 1500, server_mac(n as u32), LAN_MAC)));
    }
    Fibs { four: Fib::default(), six: Fib::new(routes, neighbours) }
}

/// The rig of IPv4, with a service of IPv6.
pub(super) fn rig(protocol: Protocol, mode: Mode, weights: &[u32]) -> Rig {
    let mut rig = Rig::new(protocol, mode, weights);
    rig.spec.address = socket6(VIP6).into();
    let port = if mode == Mode::Nat { 8080 } else { 80 };
    for (dest, n) in rig.spec.dests.iter_mut().zip(1..) {
        dest.address = socket6(&server(n, port)).into();
    }
    publish(&mut rig);
    rig
}

pub(super) fn publish(rig: &mut Rig) {
    rig.generation += 1;
    let ports = vec![PortSpec { mac: WAN_MAC }, PortSpec { mac: LAN_MAC }];
    rig.snapshot = Snapshot::new(rig.generation, ports, std::slice::from_ref(&rig.spec), [], fibs());
}

/// A good packet with payload "payload", behind these extension headers; the first one's number is in front of them, and each says
/// the next.
pub(super) fn packet6(
    protocol: Protocol,
    macs: ([u8; 6], [u8; 6]),
    (from, to): (&str, &str),
    (flags, hops): (u8, u8),
    extensions: &[u8],
) -> Vec<u8> {
    let (from, to) = (socket6(from), socket6(to));
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    match protocol {
        Protocol::Tcp => segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0x20, 0, 0, 0, 0, 0]),
        Protocol::Udp => segment.extend([0, 15, 0, 0]),
        Protocol::Sctp => unreachable!("has a file of its own"),
    }
    segment.extend(b"payload");
    let checksum_at = if protocol == Protocol::Tcp { 16 } else { 6 };
    let mut pseudo: Vec<u8> = [from.ip().octets(), to.ip().octets()].concat();
    pseudo.extend([0, 0, 0, segment.len() as u8, 0, 0, 0, protocol.number()]);
    let sum = checksum::sum(&[pseudo, segment.clone()].concat());
    segment[checksum_at..checksum_at + 2].copy_from_slice(&(!sum).to_be_bytes());

    let (first, rest) = extensions.split_first().unwrap_or((&0, &[]));
    let next = if extensions.is_empty() { protocol.number() } else { *first };
    let mut ip = vec![0x61, 2, 3, 4, 0, (rest.len() + segment.len()) as u8, next, hops];
    ip.extend(from.ip().octets());
    ip.extend(to.ip().octets());
    ip.extend(rest);
    [&macs.0[..], &macs.1, &[0x86, 0xDD], &ip, &segment].concat()
}

fn request(protocol: Protocol, flags: u8) -> Vec<u8> {
    packet6(protocol, (WAN_MAC, CLIENT_MAC), (CLIENT6, VIP6), (flags, 64), &[])
}

/// An INIT arrives as one that was made for the real server, and the answer as one that was made for the client.
#[test]
fn sctp_with_another_port() {
    let rig = rig(Protocol::Sctp, Mode::Nat, &[1]);
    let made = |(source, destination): (&str, &str), mac: &[u8; 6]| {
        let (source, destination) = (socket6(source).into(), socket6(destination).into());
        let (protocol, flags, ttl, length) = (Protocol::Sctp, 0, 64, 0);
        crate::wire::made::Made { protocol, source, destination, flags, ttl, length }.frame(&CLIENT_MAC, mac)
    };
    let server = server(1, 8080);
    for (port, to, sent, arrives) in [
        (WAN, LAN, (CLIENT6, VIP6), (CLIENT6, server.as_str())),
        (LAN, WAN, (server.as_str(), CLIENT6), (VIP6, CLIENT6)),
    ] {
        let mut packet = made(sent, if port == WAN { &WAN_MAC } else { &LAN_MAC });
        assert_eq!(rig.push(port, &mut packet), Verdict::Forward(to));
        assert_eq!(packet[22..], made(arrives, &WAN_MAC)[22..]);
    }
    assert_eq!(rig.connections()[0].2, State::CookieWait, "the server's was an INIT, too");
}

#[test]
fn nat_rewrites_both_directions_to_the_byte() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rig = rig(protocol, Mode::Nat, &[1]);
        // The second time by the short way.
        for flags in [SYN, ACK, ACK] {
            let mut packet = request(protocol, flags);
            assert_eq!(rig.push(WAN, &mut packet), Verdict::Forward(LAN));
            let to = (CLIENT6, server(1, 8080));
            let macs = (server_mac(1), LAN_MAC);
            assert_eq!(packet, packet6(protocol, macs, (to.0, &to.1), (flags, 63), &[]));

            let flags = flags | ACK;
            let ends = (&*server(1, 8080), CLIENT6);
            let mut reply = packet6(protocol, (LAN_MAC, server_mac(1)), ends, (flags, 64), &[]);
            assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
            let macs = (CLIENT_MAC, WAN_MAC);
            assert_eq!(reply, packet6(protocol, macs, (VIP6, CLIENT6), (flags, 63), &[]));
        }
        assert_eq!(rig.live(1), if protocol == Protocol::Tcp { (1, 0) } else { (0, 1) });
        assert_eq!(rig.engine.counters.traffic.get().packets_in, 3);
    }
}

#[test]
fn direct_routing_changes_macs_and_hop_limit_only() {
    let rig = rig(Protocol::Tcp, Mode::Dr, &[1]);
    for flags in [SYN, ACK, ACK] {
        let mut packet = request(Protocol::Tcp, flags);
        assert_eq!(rig.push(WAN, &mut packet), Verdict::Forward(LAN));
        let macs = (server_mac(1), LAN_MAC);
        assert_eq!(packet, packet6(Protocol::Tcp, macs, (CLIENT6, VIP6), (flags, 63), &[]));
    }
}

#[test]
fn extension_headers_go_along() {
    // Hop-by-hop options, then destination options.
    let mut extensions = vec![0, 60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0];
    let rig = rig(Protocol::Tcp, Mode::Nat, &[1]);
    let ends = (WAN_MAC, CLIENT_MAC);
    let mut packet = packet6(Protocol::Tcp, ends, (CLIENT6, VIP6), (SYN, 64), &extensions);
    assert_eq!(rig.push(WAN, &mut packet), Verdict::Forward(LAN));
    let to = server(1, 8080);
    let expected = packet6(Protocol::Tcp, (server_mac(1), LAN_MAC), (CLIENT6, &to), (SYN, 63), &extensions);
    assert_eq!(packet, expected);
    // A routing header with a segment left: it is to go by another host.
    (extensions[0], extensions[4]) = (43, 1);
    let mut packet = packet6(Protocol::Tcp, ends, (CLIENT6, VIP6), (SYN, 64), &extensions);
    assert_eq!(rig.push(WAN, &mut packet), Verdict::Punt(Punt::OtherProtocol));
}

#[test]
fn clients_are_told_apart_by_all_of_their_addresses() {
    let rig = rig(Protocol::Tcp, Mode::Nat, &[1, 1, 1]);
    let clients = ["[2001:db8:c::7]:1", "[2001:db8:c::8]:1", "[2001:db8:d::7]:1", "[2001:db8:c:1::7]:1"];
    let mut places = BTreeSet::new();
    for client in clients {
        for flags in [SYN, ACK] {
            let mut packet = packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), (client, VIP6), (flags, 64), &[]);
            assert_eq!(rig.push(WAN, &mut packet), Verdict::Forward(LAN));
            places.insert((client, Ipv6::parse(&packet[14..]).unwrap().destination - SERVERS));
        }
    }
    // Round robin, and each stays where it was.
    assert_eq!(places.iter().map(|place| place.1).collect::<BTreeSet<_>>(), BTreeSet::from([1, 2, 3]));
    assert_eq!(places.len(), clients.len());
    let table = &rig.engine.table;
    let known: BTreeSet<_> = table
        .entries(0..table.buckets())
        .map(|(slot, word)| (table.address_of(slot, word, false).unwrap(), word.client().port()))
        .collect();
    assert_eq!(known, clients.iter().map(|client| (u128::from(*socket6(client).ip()), 1)).collect());
}

/// Addresses that IPVS folds into the same 32 bits.
#[test]
fn the_hash_of_a_flow_is_of_whole_addresses() {
    let places = |scheduler| -> BTreeSet<u128> {
        let mut rig = rig(Protocol::Tcp, Mode::Nat, &[1, 1, 1]);
        (rig.spec.scheduler, rig.spec.flags) = (scheduler, vec![SchedulerFlag::MhPort]);
        publish(&mut rig);
        let place = |n: u32| {
            let client = format!("[2001:db8:c:{n:x}::{n:x}]:1");
            let mut packet = packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), (&client, VIP6), (SYN, 64), &[]);
            assert_eq!(rig.push(WAN, &mut packet), Verdict::Forward(LAN));
            Ipv6::parse(&packet[14..]).unwrap().destination - SERVERS
        };
        (0x100..0x110).map(place).collect()
    };
    assert_eq!(places(Scheduler::Mh).len(), 1);
    assert_eq!(places(Scheduler::Maglev), BTreeSet::from([1, 2, 3]));
    assert_eq!(places(Scheduler::Rendezvous), BTreeSet::from([1, 2, 3]));
}

#[test]
fn a_burst_of_both_families_goes_its_ways() {
    let mut rig = rig(Protocol::Tcp, Mode::Nat, &[1]);
    let four = Rig::new(Protocol::Tcp, Mode::Nat, &[]).spec;
    let dest = DestSpec::new(DestId::new(9).unwrap(), socket("10.0.0.9:8080"));
    let four = ServiceSpec { dests: vec![dest], ..four };
    let routes = [Route { prefix: 0x0A00_0000, length: 24, via: Via::OnLink(LAN) }];
    let neighbour = ((LAN, 0x0A00_0009), Adjacency::new(LAN, 1500, server_mac(9), LAN_MAC));
    let fibs = Fibs { four: Fib::new(routes, [neighbour]), ..fibs() };
    let ports = rig.snapshot.ports.clone();
    rig.snapshot = Snapshot::new(9, ports, &[rig.spec.clone(), four], [], fibs);
    let mut burst = [
        request(Protocol::Tcp, SYN),
        from_client(SYN),
        request(Protocol::Udp, 0),
        request(Protocol::Tcp, ACK),
        from_client(ACK),
    ];
    let mut verdicts = [Verdict::Hold; BURST];
    let mut process = |burst: &mut [Vec<u8>]| {
        let common = rig.engine.process(&rig.snapshot, rig.now, WAN, burst, &mut verdicts, &mut ());
        (common, verdicts[..burst.len()].to_vec())
    };
    let lan = Verdict::Forward(LAN);
    let mixed = [lan, lan, Verdict::Punt(Punt::NoService), lan, lan];
    assert_eq!(process(&mut burst), (None, mixed.to_vec()));
    let mut burst = [request(Protocol::Tcp, ACK), from_client(ACK), request(Protocol::Tcp, ACK)];
    assert_eq!(process(&mut burst), (Some(LAN), vec![lan; 3]));
    assert_eq!(rig.live(1), (1, 0));
}

#[test]
fn what_is_not_a_services_leaves_by_its_name() {
    let rig = rig(Protocol::Tcp, Mode::Nat, &[1]);
    let with = |at: usize, value: u8| {
        let mut frame = request(Protocol::Tcp, SYN);
        frame[at] = value;
        frame
    };
    let icmp = |kind: u8, mac: u8| {
        let mut frame = with(20, 58);
        (frame[54], frame[0], frame[21]) = (kind, mac, 255);
        frame
    };
    let from_afar = {
        let mut frame = icmp(135, 2);
        frame[21] = 254;
        frame
    };
    let fragment = |to| {
        let extensions = [44, 6, 0, 0, 1, 0, 0, 0, 9];
        packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), (CLIENT6, to), (SYN, 64), &extensions)
    };
    let from = |source| packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), (source, VIP6), (SYN, 64), &[]);
    let from_vip = from(VIP6);
    let cases = [
        ("another host's MAC", with(4, 9), Verdict::Drop(Drop::OtherHost)),
        ("multicast", with(0, 0x33), Verdict::Punt(Punt::Multicast)),
        ("version 5", with(14, 0x50), Verdict::Drop(Drop::BadIpHeader)),
        ("cut off", with(19, 200), Verdict::Drop(Drop::BadIpHeader)),
        ("another protocol", with(20, 33), Verdict::Punt(Punt::OtherProtocol)),
        ("a TCP header of two words", with(66, 0x20), Verdict::Drop(Drop::BadTransportHeader)),
        ("another port", with(57, 81), Verdict::Punt(Punt::NoService)),
        ("the last hop", with(21, 1), Verdict::Drop(Drop::TtlExpired)),
        ("a neighbour's solicitation", icmp(135, 0x33), Verdict::Punt(Punt::Neighbour)),
        ("a neighbour's advertisement", icmp(136, 2), Verdict::Punt(Punt::Neighbour)),
        ("a solicitation from beyond a router", from_afar, Verdict::Punt(Punt::Icmp)),
        ("an echo request", icmp(128, 2), Verdict::Punt(Punt::Icmp)),
        ("a listener's report", icmp(143, 0x33), Verdict::Punt(Punt::Multicast)),
        ("another's fragment", fragment("[2001:db8::11]:80"), Verdict::Punt(Punt::Fragment)),
        ("a fragment of 27 bytes", fragment(VIP6), Verdict::Drop(Drop::BadFragment)),
        ("from the virtual address", from_vip, Verdict::Drop(Drop::Martian)),
        ("from nobody", from("[::]:7"), Verdict::Drop(Drop::Martian)),
        ("from itself", from("[::1]:7"), Verdict::Drop(Drop::Martian)),
        ("from a group", from("[ff02::1]:7"), Verdict::Drop(Drop::Martian)),
        ("from a link", from("[fe80::7]:7"), Verdict::Drop(Drop::Martian)),
    ];
    for (what, mut frame, expected) in cases {
        let before = frame.clone();
        assert_eq!(rig.push(WAN, &mut frame), expected, "{what}");
        assert_eq!(frame, before, "{what}");
    }
    assert!(rig.engine.table.words(0..rig.engine.table.buckets()).next().is_none());
}

#[test]
fn what_a_server_says_to_the_router_itself_is_linux() {
    let rig = rig(Protocol::Tcp, Mode::Nat, &[1]);
    let check = |to: &str| {
        let ends = (&*server(1, 8080), to);
        rig.push(LAN, &mut packet6(Protocol::Tcp, (LAN_MAC, server_mac(1)), ends, (SYN | ACK, 64), &[]))
    };
    assert_eq!(check("[2001:db8:a::fe]:5000"), Verdict::Punt(Punt::ServerReply));
    assert_eq!(check(CLIENT6), Verdict::Punt(Punt::NoService), "to somebody else");
}

#[test]
fn a_client_comes_back_by_its_prefix() {
    let mut rig = rig(Protocol::Tcp, Mode::Nat, &[1, 1, 1]);
    rig.spec.persistence = Some(Persistence { seconds: 300, prefix: 64, expire_quiescent: false });
    publish(&mut rig);
    let goes_to = |rig: &Rig, client: &str, flags| {
        let mut packet = packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), (client, VIP6), (flags, 64), &[]);
        assert_eq!(rig.push(WAN, &mut packet), Verdict::Forward(LAN));
        Ipv6::parse(&packet[14..]).unwrap().destination - SERVERS
    };
    let first = goes_to(&rig, "[2001:db8:c::1]:1", SYN);
    assert_eq!(goes_to(&rig, "[2001:db8:c::2]:1", SYN), first);
    assert_ne!(goes_to(&rig, "[2001:db8:c:1::2]:1", SYN), first);
    let table = rig.engine.table.clone();
    let templates = || {
        let entries = table.entries(0..table.buckets());
        let of_template = |(slot, word): (_, crate::table::Word)| {
            (word.state() == State::Template).then(|| table.address_of(slot, word, false).unwrap())
        };
        entries.filter_map(of_template).collect::<BTreeSet<_>>()
    };
    let prefix = 0x2001_0DB8_000C_0000_0000_0000_0000_0000;
    assert_eq!(templates(), BTreeSet::from([prefix, prefix | 1 << 64]));

    // As long as a connection lives, the template does.
    let ends = (&*format!("[2001:db8:a::{first}]:8080"), "[2001:db8:c::1]:1");
    let mut answer = packet6(Protocol::Tcp, (LAN_MAC, server_mac(first as u32)), ends, (SYN | ACK, 64), &[]);
    assert_eq!(rig.push(LAN, &mut answer), Verdict::Forward(WAN));
    goes_to(&rig, "[2001:db8:c::1]:1", ACK);
    for _ in 0..100 {
        rig.wait(4);
        goes_to(&rig, "[2001:db8:c::1]:1", ACK);
        rig.engine.sweep(&rig.snapshot, rig.now, 0..table.buckets());
    }
    assert_eq!(templates(), BTreeSet::from([prefix]));
}

#[test]
fn a_reply_by_a_neighbour_that_nobody_knows_is_linux_to_send() {
    let rig = rig(Protocol::Udp, Mode::Nat, &[1]);
    assert_eq!(rig.push(WAN, &mut request(Protocol::Udp, 0)), Verdict::Forward(LAN));
    let near = "[2001:db8:a::77]:40112";
    let mut packet = packet6(Protocol::Udp, (LAN_MAC, CLIENT_MAC), (near, VIP6), (0, 64), &[]);
    assert_eq!(rig.push(LAN, &mut packet), Verdict::Forward(LAN));
    let ends = (&*server(1, 8080), near);
    let mut reply = packet6(Protocol::Udp, (LAN_MAC, server_mac(1)), ends, (0, 64), &[]);
    assert_eq!(rig.push(LAN, &mut reply), Verdict::Punt(Punt::Unresolved));
    let ip = Ipv6::parse(&reply[14..]).unwrap();
    assert_eq!((ip.source, ip.hop_limit), (u128::from(*socket6(VIP6).ip()), 63));
}

#[test]
fn it_is_explained_as_it_happens() {
    let rig = rig(Protocol::Tcp, Mode::Nat, &[1, 1]);
    for (flags, known, state) in [(SYN, false, State::SynRecv), (ACK, true, State::Established)] {
        let frame = request(Protocol::Tcp, flags);
        let told = explain(&rig.snapshot, &rig.engine.table, rig.now, WAN, &frame).unwrap();
        let mut packet = frame.clone();
        assert_eq!(rig.push(WAN, &mut packet), told.verdict);
        assert_eq!(told.frame, packet);
        assert_eq!(told.hit, Some(Side::Service(0)));
        assert_eq!(told.connection.is_some(), known);
        assert_eq!(told.afterwards.map(|after| after.state), Some(state));
    }
}

/// Mends the checksum of an ICMPv6 message in a frame.
fn mend(frame: &mut [u8]) {
    frame[56..58].fill(0);
    let length = (frame.len() - 54) as u8;
    let pseudo = [&frame[22..54], &[0, 0, 0, length, 0, 0, 0, 58]].concat();
    let sum = !checksum::sum(&[&pseudo, &frame[54..]].concat());
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
}

/// "Packet too big", MTU 1400, from an address to another, that quotes an IP packet.
fn too_big(mac: [u8; 6], ends: (&str, &str), hops: u8, quote: &[u8]) -> Vec<u8> {
    let mut frame = packet6(Protocol::Udp, (mac, CLIENT_MAC), ends, (0, hops), &[])[..54].to_vec();
    frame.extend([2, 0, 0, 0, 0, 0, 0x05, 0x78]);
    frame.extend(quote);
    let length = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame[20] = 58;
    mend(&mut frame);
    frame
}

#[test]
fn errors_about_connections_are_translated_inside_and_out() {
    const OUTSIDE: &str = "[2001:db8:f::1]:0";
    const INSIDE: &str = "[2001:db8:a::fd]:0";
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rig = rig(protocol, Mode::Nat, &[1]);
        let mut asked = request(protocol, SYN);
        assert_eq!(rig.push(WAN, &mut asked), Verdict::Forward(LAN));
        let to = server(1, 8080);
        let sent = packet6(protocol, (LAN_MAC, server_mac(1)), (&to, CLIENT6), (SYN | ACK, 64), &[]);
        let mut got = sent.clone();
        assert_eq!(rig.push(LAN, &mut got), Verdict::Forward(WAN));
        for quoted in [48, usize::MAX] {
            let quote = |frame: &[u8]| frame[14..frame.len().min(14 + quoted.min(200))].to_vec();
            // About a reply, from a router on the client's side: to the server, as if about what that has sent.
            let mut error = too_big(WAN_MAC, (OUTSIDE, VIP6), 64, &quote(&got));
            assert_eq!(rig.push(WAN, &mut error), Verdict::Forward(LAN));
            // One hop has been taken on the way; of that the quote tells.
            let mut back = quote(&sent);
            back[7] -= 1;
            let expected = too_big(server_mac(1), (OUTSIDE, &to), 63, &back);
            assert_eq!((&error[14..], &error[..6]), (&expected[14..], &server_mac(1)[..]));

            // About a request, from a router on the servers' side: to the client, from the service.
            let mut error = too_big(LAN_MAC, (INSIDE, CLIENT6), 64, &quote(&asked));
            assert_eq!(rig.push(LAN, &mut error), Verdict::Forward(WAN));
            let mut back = quote(&request(protocol, SYN));
            back[7] -= 1;
            let expected = too_big(CLIENT_MAC, ("[2001:db8::10]:0", CLIENT6), 63, &back);
            assert_eq!((&error[14..], &error[..6]), (&expected[14..], &CLIENT_MAC[..]));
        }
        // One that is damaged stays so.
        let mut error = too_big(WAN_MAC, (OUTSIDE, VIP6), 64, &got[14..]);
        error[57] ^= 1;
        assert_eq!(rig.push(WAN, &mut error), Verdict::Forward(LAN));
        let before = error.clone();
        mend(&mut error);
        assert_ne!(error, before);
        // About nobody's connection: a server's address is nobody's business.
        let other = packet6(protocol, (WAN_MAC, CLIENT_MAC), ("[2001:db8:c::9]:9", &to), (ACK, 64), &[]);
        let mut error = too_big(LAN_MAC, (INSIDE, "[2001:db8:c::9]:9"), 64, &other[14..]);
        assert_eq!(rig.push(LAN, &mut error), Verdict::Drop(Drop::IcmpError));
        let mut error = too_big(WAN_MAC, (OUTSIDE, "[2001:db8::11]:0"), 64, &got[14..]);
        assert_eq!(rig.push(WAN, &mut error), Verdict::Punt(Punt::Icmp));
    }
}

#[test]
fn senders_are_told_what_goes_no_further() {
    let mut rig = rig(Protocol::Tcp, Mode::Nat, &[1]);
    let told = |rig: &Rig, frame: &[u8], from: u128, kind: [u8; 2], mtu: u16| {
        let Verdict::Drop(reason) = rig.push(WAN, &mut frame.to_vec()) else { panic!("it was not dropped") };
        let error =
            crate::engine::tell::error(&rig.engine.table, &rig.snapshot, rig.now, reason, &frame[14..])
                .unwrap();
        let mut whole = [&[0; 14], &error[..]].concat();
        let ip = Ipv6::parse(&error).unwrap();
        assert_eq!((ip.source, ip.destination), (from, u128::from(*socket6(CLIENT6).ip())));
        assert_eq!((&error[40..42], &error[44..48]), (&kind[..], &u32::from(mtu).to_be_bytes()[..]));
        assert_eq!(error[48..], frame[14..frame.len().min(14 + 1280 - 48)]);
        assert!(error.len() <= 1280);
        let before = whole.clone();
        mend_long(&mut whole);
        assert_eq!(whole, before, "its checksum");
    };
    let own = SERVERS + 0xFE;
    rig.snapshot.fibs.six = rig.snapshot.fibs.six.clone().with_own([(WAN, own, 64)]);
    let mut last_hop = request(Protocol::Tcp, SYN);
    last_hop[21] = 1;
    told(&rig, &last_hop, own, [3, 0], 0);
    assert_eq!(rig.push(WAN, &mut request(Protocol::Tcp, SYN)), Verdict::Forward(LAN));
    let mut long = request(Protocol::Tcp, ACK);
    long.resize(14 + 1501, 0);
    long[18..20].copy_from_slice(&1461u16.to_be_bytes());
    told(&rig, &long, own, [2, 0], 1500);
    rig.spec.dests[0].up = false;
    publish(&mut rig);
    let vip = u128::from(*socket6(VIP6).ip());
    let other = packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), (CLIENT6, VIP6), (SYN, 64), &[]);
    told(&rig, &other, vip, [1, 4], 0);
}

/// The same for one of any length.
fn mend_long(frame: &mut [u8]) {
    frame[56..58].fill(0);
    let length = (frame.len() as u32 - 54).to_be_bytes();
    let pseudo = [&frame[22..54], &length, &[0, 0, 0, 58]].concat();
    let sum = !checksum::sum(&[&pseudo, &frame[54..]].concat());
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
}

/// A datagram of so many bytes in fragments of so many, as packets of these ends.
fn fragmented(
    macs: ([u8; 6], [u8; 6]),
    ends: (&str, &str),
    hops: u8,
    length: u16,
    each: u16,
) -> Vec<Vec<u8>> {
    let (from, to) = (socket6(ends.0), socket6(ends.1));
    let mut datagram = [from.port(), to.port(), length, 0].map(u16::to_be_bytes).concat();
    datagram.extend((8..length).map(|byte| (byte % 251) as u8));
    let pseudo = [&from.ip().octets()[..], &to.ip().octets(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0, 17]];
    let sum = !checksum::sum(&[&pseudo.concat(), &datagram[..]].concat());
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    let parts = datagram.chunks(each.into());
    let last = parts.len() - 1;
    let frame = |(index, part): (usize, &[u8])| {
        let mut frame = packet6(Protocol::Udp, macs, ends, (0, hops), &[])[..54].to_vec();
        frame[18..20].copy_from_slice(&(part.len() as u16 + 8).to_be_bytes());
        frame[20] = 44;
        let place = (index as u16 * each) | u16::from(index < last);
        frame.extend([17, 0]);
        frame.extend(place.to_be_bytes());
        frame.extend([0, 0, 0, 9]);
        frame.extend(part);
        frame
    };
    parts.enumerate().map(frame).collect()
}

#[test]
fn fragments_follow_the_first_in_any_order() {
    use crate::fragments::Waiting;
    let rig = rig(Protocol::Udp, Mode::Nat, &[1]);
    let requests = fragmented((WAN_MAC, CLIENT_MAC), (CLIENT6, VIP6), 64, 8000, 1448);
    let expected = fragmented((server_mac(1), LAN_MAC), (CLIENT6, &server(1, 8080)), 63, 8000, 1448);
    for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]] {
        let mut waiting = Waiting::default();
        let mut sent = BTreeMap::new();
        for number in order {
            let mut frame = requests[number].clone();
            match rig.push(WAN, &mut frame) {
                Verdict::Forward(LAN) => drop(sent.insert(frame[54..62].to_vec(), frame)),
                Verdict::Hold => assert!(rig.engine.hold(&mut waiting, rig.now, WAN, frame).is_none()),
                verdict => panic!("{number}: {verdict:?}"),
            }
            rig.engine.settle(&rig.snapshot, rig.now, &mut waiting, false, |_, frame: Vec<u8>, verdict| {
                assert_eq!(verdict, Verdict::Forward(LAN));
                sent.insert(frame[54..62].to_vec(), frame);
            });
        }
        assert!(sent.into_values().collect::<Vec<_>>() == expected, "{order:?}");
    }
    // Replies, too.
    let ends = (&*server(1, 8080), CLIENT6);
    for (mut frame, expected) in fragmented((LAN_MAC, server_mac(1)), ends, 64, 3000, 1448)
        .into_iter()
        .zip(fragmented((CLIENT_MAC, WAN_MAC), (VIP6, CLIENT6), 63, 3000, 1448))
    {
        assert_eq!(rig.push(LAN, &mut frame), Verdict::Forward(WAN));
        assert!(frame == expected, "a reply");
    }
    // A second first one, with other ports, or of a protocol without.
    let other = "[2001:db8:c::7]:9";
    let mut frame = fragmented((WAN_MAC, CLIENT_MAC), (other, VIP6), 64, 8000, 1448).swap_remove(0);
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Drop(Drop::FragmentOverlap));
    assert_eq!(
        rig.push(WAN, &mut of_protocol(requests[0].clone(), 50)),
        Verdict::Drop(Drop::FragmentOverlap)
    );
}

/// The same fragment of another protocol, or with another header behind that of the fragment.
fn of_protocol(mut frame: Vec<u8>, protocol: u8) -> Vec<u8> {
    frame[54] = protocol;
    frame
}

#[test]
fn fragments_of_protocols_without_ports_are_linuxs_in_any_order() {
    use super::fragments::Poller;
    let mut rig = rig(Protocol::Udp, Mode::Nat, &[1]);
    let to_service = (WAN, fragmented((WAN_MAC, CLIENT_MAC), (CLIENT6, VIP6), 64, 3000, 1448));
    let server = server(1, 8080);
    let from_server = (LAN, fragmented((LAN_MAC, server_mac(1)), (&server, CLIENT6), 64, 3000, 1448));
    // ESP, GRE, and ICMPv6 (an echo) behind destination options.
    let protocols = [(50, Punt::OtherProtocol), (47, Punt::OtherProtocol), (60, Punt::Icmp)];
    for (number, is_routed) in [false, true].into_iter().enumerate() {
        rig.snapshot.routing = is_routed;
        for (protocol, reason) in protocols {
            for (port, parts) in [&to_service, &from_server] {
                let mut parts: Vec<_> =
                    parts.iter().map(|part| of_protocol(part.clone(), protocol)).collect();
                parts.iter_mut().for_each(|part| part[60..62].copy_from_slice(&[number as u8, protocol]));
                if protocol == 60 {
                    parts[0][62..71].copy_from_slice(&[58, 0, 1, 4, 0, 0, 0, 0, 128]);
                }
                let mut poller = Poller::new(&rig);
                poller.push_all(*port, &parts[1..]);
                assert_eq!(poller.verdicts(), [], "they wait for the first");
                poller.push_all(*port, &parts[..1]);
                let expected = match is_routed && *port == LAN {
                    true => [Verdict::Route(WAN); 3],
                    false => [reason, Punt::Fragment, Punt::Fragment].map(Verdict::Punt),
                };
                assert_eq!(poller.verdicts(), expected, "{protocol} {port}");
            }
        }
    }
}

#[test]
fn both_ends_are_told_that_a_server_has_been_removed() {
    let mut rig = rig(Protocol::Tcp, Mode::Nat, &[1]);
    for flags in [SYN, ACK] {
        assert_eq!(rig.push(WAN, &mut request(Protocol::Tcp, flags)), Verdict::Forward(LAN));
    }
    rig.spec.dests[0].reset = true;
    publish(&mut rig);
    let mut frame = request(Protocol::Tcp, ACK);
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::Reset));
    let resets = reset::reset(&rig.engine.table, &rig.snapshot, &frame[14..]);
    let expected = |from: &str, to: &str, sequence: u8| {
        let mut packet = packet6(Protocol::Tcp, (WAN_MAC, LAN_MAC), (from, to), (RST, 64), &[]).split_off(14);
        packet.truncate(60);
        packet[..6].copy_from_slice(&[0x60, 0, 0, 0, 0, 20]);
        packet[40 + 4..40 + 12].copy_from_slice(&[0, 0, 0, sequence, 0, 0, 0, 0]);
        packet[40 + 14..40 + 18].fill(0);
        let pseudo = [&packet[8..40], &[0, 0, 0, 20, 0, 0, 0, 6]].concat();
        let sum = !checksum::sum(&[&pseudo, &packet[40..]].concat());
        packet[56..58].copy_from_slice(&sum.to_be_bytes());
        packet
    };
    assert_eq!(resets, [expected(VIP6, CLIENT6, 2), expected(CLIENT6, &server(1, 8080), 1)]);
    assert_eq!(rig.live(1), (0, 0));
}

#[test]
fn a_connection_goes_on_in_a_router_that_has_only_been_told_of_it() {
    let old = rig(Protocol::Tcp, Mode::Nat, &[1, 0]);
    let new = {
        let mut new = rig(Protocol::Tcp, Mode::Nat, &[0, 1]);
        // Its hash is by another key.
        let table = Arc::new(Table::new(64, HashKey { blind: 7, factor: 9 }));
        new.engine = Engine::new(0, table, Arc::default());
        new
    };
    for flags in [SYN, ACK] {
        assert_eq!(old.push(WAN, &mut request(Protocol::Tcp, flags)), Verdict::Forward(LAN));
    }
    let table = &old.engine.table;
    let (slot, word) = table.entries(0..table.buckets()).next().unwrap();
    let client = old.snapshot.client_of(table, slot, word).unwrap();
    assert_eq!(client, socket6(CLIENT6).into());
    let news = News {
        client,
        dest: DestId::new(1).unwrap(),
        virtual_port: 0,
        state: word.state(),
        flags: word.flags(),
        age: 0,
        slack: 0,
        local: None,
    };
    let told = |news: News| adopt(&new.engine.table, &new.snapshot, new.now, &news);
    assert_eq!([told(news), told(news)], [Adopted::New, Adopted::Known]);
    let of_four = News { client: socket(CLIENT).into(), ..news };
    assert_eq!(told(of_four), Adopted::Stale, "the dest is of another family");
    let mut packet = request(Protocol::Tcp, ACK);
    assert_eq!(new.push(WAN, &mut packet), Verdict::Forward(LAN));
    assert_eq!(Ipv6::parse(&packet[14..]).unwrap().destination, SERVERS + 1);
    let table = &new.engine.table;
    let (slot, word) = table.entries(0..table.buckets()).next().unwrap();
    assert_eq!(new.snapshot.client_of(table, slot, word), Some(client));
}

#[test]
fn a_table_that_has_forgotten_the_addresses_learns_them_from_who_goes_on() {
    let mut rig = rig(Protocol::Tcp, Mode::Nat, &[1]);
    for flags in [SYN, ACK] {
        assert_eq!(rig.push(WAN, &mut request(Protocol::Tcp, flags)), Verdict::Forward(LAN));
    }
    let table = rig.engine.table.clone();
    let (slot, word) = table.entries(0..table.buckets()).next().unwrap();
    table.note_address(slot, 0);
    assert_eq!(rig.snapshot.client_of(&table, slot, word), None);
    rig.wait(2);
    assert_eq!(rig.push(WAN, &mut request(Protocol::Tcp, ACK)), Verdict::Forward(LAN));
    assert_eq!(rig.snapshot.client_of(&table, slot, table.at(slot)), Some(socket6(CLIENT6).into()));
}
