//! Tunnels of both families and across them: what is inside is of the service's, what is around it of the server's.

use std::net::IpAddr;

use super::six::{CLIENT6, VIP6, fibs, packet6, server as server6, socket6};
use super::*;
use crate::engine::tell;
use crate::fib::Fibs;
use crate::snapshot::MssClamp;
use crate::wire::tunnel::Encapsulation;

/// The router's own addresses, which outer packets are from.
const OWN: [u8; 4] = [10, 0, 0, 254];
const OWN6: &str = "[2001:db8:a::fe]:0";

const ALL: [Encapsulation; 5] = [
    Encapsulation::Ipip,
    Encapsulation::Gre { checksum: false },
    Encapsulation::Gre { checksum: true },
    Encapsulation::Gue { port: 6080, checksum: false },
    Encapsulation::Gue { port: 5555, checksum: true },
];

/// A way for packets: the version of the service's packets, and that of those around them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pair {
    inside: u8,
    outside: u8,
}

pub(super) const FOUR_IN_FOUR: Pair = Pair { inside: 4, outside: 4 };
const PAIRS: [Pair; 4] = [
    FOUR_IN_FOUR,
    Pair { inside: 6, outside: 6 },
    Pair { inside: 6, outside: 4 },
    Pair { inside: 4, outside: 6 },
];

impl Pair {
    fn rig(self, protocol: Protocol, encapsulation: Encapsulation, mss_clamp: Option<MssClamp>) -> Rig {
        let mut rig = Rig::new(protocol, Mode::Tunnel, &[1]);
        rig.spec.tunnel = TunnelSpec { encapsulation, source: None, mss_clamp };
        if self.inside == 6 {
            rig.spec.address = socket6(VIP6).into();
        }
        if self.outside == 6 {
            rig.spec.dests[0].address = socket6(&server6(1, 80)).into();
        }
        rig.publish_both(1500);
        rig
    }

    /// Of the client's, of the service's family.
    fn request(self, protocol: Protocol, flags: u8) -> Vec<u8> {
        match self.inside {
            4 => packet(protocol, WAN_MAC, CLIENT, VIP, flags),
            _ => packet6(protocol, (WAN_MAC, CLIENT_MAC), (CLIENT6, VIP6), (flags, 64), &[]),
        }
    }

    /// An established connection's packet of so many bytes, which must not be fragmented.
    fn segment(self, length: usize) -> Vec<u8> {
        let mut frame = self.request(Protocol::Tcp, ACK);
        frame.resize(14 + length, 0x5A);
        match self.inside {
            4 => frame[16..18].copy_from_slice(&(length as u16).to_be_bytes()),
            _ => frame[18..20].copy_from_slice(&(length as u16 - 40).to_be_bytes()),
        }
        if self.inside == 4 {
            frame[20] = 0x40;
        }
        self.mend(&mut frame);
        frame
    }

    /// Makes the sums of a TCP packet right.
    fn mend(self, frame: &mut [u8]) {
        let (transport, addresses) = if self.inside == 4 { (34, 26) } else { (54, 22) };
        if self.inside == 4 {
            frame[24..26].fill(0);
            let sum = !checksum::sum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame[transport + 16..transport + 18].fill(0);
        let length = (frame.len() - transport) as u16;
        let pseudo = [&frame[addresses..transport], &[0, 6], &length.to_be_bytes(), &frame[transport..]];
        let sum = !checksum::sum(&pseudo.concat());
        frame[transport + 16..transport + 18].copy_from_slice(&sum.to_be_bytes());
    }

    /// The IP packet of a frame, one hop later.
    fn hop(self, frame: &[u8]) -> Vec<u8> {
        let mut packet = frame[14..].to_vec();
        if self.inside == 6 {
            packet[7] -= 1;
            return packet;
        }
        packet[8] -= 1;
        packet[10..12].fill(0);
        let sum = !checksum::sum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn overhead(self, encapsulation: Encapsulation) -> usize {
        let between = match encapsulation {
            Encapsulation::Ipip => 0,
            Encapsulation::Gre { checksum } => 4 + 4 * usize::from(checksum),
            Encapsulation::Gue { .. } => 12,
        };
        between + if self.outside == 4 { 20 } else { 40 }
    }

    /// What a real server finds in a frame: a decapsulator of its own, from the RFCs, that refuses what is wrong in any header.
    fn taken_out(self, frame: &[u8], encapsulation: Encapsulation) -> Vec<u8> {
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        assert_eq!(frame[..12], [server_mac(1), LAN_MAC].concat());
        let inside = 14 + self.overhead(encapsulation);
        let (class, length, may_be_split) = match self.inside {
            4 => (frame[inside + 1], word(inside + 2), word(inside + 6) & 0x4000 == 0),
            _ => {
                let length = word(inside + 4) + 40;
                (frame[inside] << 4 | frame[inside + 1] >> 4, length, length <= 1280)
            }
        };
        let end = inside + usize::from(length);
        let number = if self.inside == 4 { 4 } else { 41 };
        let wanted = match encapsulation {
            Encapsulation::Ipip => number,
            Encapsulation::Gre { .. } => 47,
            Encapsulation::Gue { .. } => 17,
        };
        let (between, addresses) = if self.outside == 4 {
            assert_eq!(
                (word(12), frame[14], frame[15], frame[22], frame[23]),
                (0x0800, 0x45, class, 64, wanted)
            );
            assert_eq!((checksum::sum(&frame[14..34]), usize::from(word(16))), (0xFFFF, end - 14));
            assert_eq!(word(20), if may_be_split { 0 } else { 0x4000 });
            assert_ne!(word(18), 0);
            assert_eq!(frame[26..34], [OWN, [10, 0, 0, 1]].concat());
            (34, &frame[26..34])
        } else {
            let label = u32::from_be_bytes([frame[14], frame[15], frame[16], frame[17]]);
            assert_eq!((word(12), label >> 20), (0x86DD, 0x600 | u32::from(class)));
            assert_ne!(label & 0xF_FFFF, 0);
            assert_eq!((usize::from(word(18)), frame[20], frame[21]), (end - 54, wanted, 64));
            let ends = [OWN6, &server6(1, 80)].map(|end| socket6(end).ip().octets());
            assert_eq!(frame[22..54], ends.concat());
            (54, &frame[22..54])
        };
        let ethertype = if self.inside == 4 { 0x0800 } else { 0x86DD };
        match encapsulation {
            Encapsulation::Ipip => {}
            Encapsulation::Gre { checksum: false } => {
                assert_eq!((word(between), word(between + 2)), (0, ethertype));
            }
            Encapsulation::Gre { checksum: true } => {
                assert_eq!((word(between), word(between + 2), word(between + 6)), (0x8000, ethertype, 0));
                assert_eq!(checksum::sum(&frame[between..end]), 0xFFFF);
            }
            Encapsulation::Gue { port, checksum } => {
                assert!(word(between) >= 0xC000 && word(between + 2) == port);
                assert_eq!(usize::from(word(between + 4)), end - between);
                assert_eq!(frame[between + 8..between + 12], [0, number, 0, 0]);
                if checksum {
                    let pseudo =
                        [addresses, &[0, 17], &frame[between + 4..between + 6], &frame[between..end]];
                    assert_eq!(checksum::sum(&pseudo.concat()), 0xFFFF);
                } else {
                    assert_eq!(word(between + 6), 0);
                }
            }
        }
        frame[inside..end].to_vec()
    }

    /// An ICMP error from between here and the server, about this much of an outer packet.
    pub(super) fn error_about(self, kind: [u8; 2], mtu: u16, quote: &[u8]) -> Vec<u8> {
        let mut message = [&kind[..], &[0; 4], &mtu.to_be_bytes(), quote].concat();
        let length = message.len() as u16;
        let (ip, pseudo) = if self.outside == 4 {
            let mut ip = [&[0x45, 0][..], &(20 + length).to_be_bytes(), &[0, 9, 0, 0, 60, 1, 0, 0]].concat();
            ip.extend([[10, 0, 0, 253], OWN].concat());
            let sum = !checksum::sum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            (ip, Vec::new())
        } else {
            let ends = ["[2001:db8:a::fd]:0", OWN6].map(|end| socket6(end).ip().octets()).concat();
            let ip = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[58, 60], &ends].concat();
            (ip, [&ends[..], &[0, 58], &length.to_be_bytes()].concat())
        };
        let sum = !checksum::sum(&[&pseudo[..], &message].concat());
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let ethertype: [u8; 2] = if self.outside == 4 { [8, 0] } else { [0x86, 0xDD] };
        [&LAN_MAC[..], &server_mac(1), &ethertype, &ip, &message].concat()
    }

    /// What a client is told: type and code, MTU, and its packet, as far as it is quoted.
    pub(super) fn told(self, rig: &Rig, mut frame: Vec<u8>) -> Option<([u8; 2], u16, Vec<u8>)> {
        let before = frame.clone();
        match rig.push(LAN, &mut frame) {
            Verdict::Punt(Punt::Icmp) => return None,
            verdict => assert_eq!(verdict, Verdict::Punt(Punt::TunnelError)),
        }
        assert_eq!(frame, before, "control has to read it");
        let error = tunnel_errors::error(&rig.engine.table, &rig.snapshot, rig.now, &frame[14..]).unwrap();
        let message = if self.inside == 4 {
            assert_eq!((checksum::sum(&error[..20]), checksum::sum(&error[20..])), (0xFFFF, 0xFFFF));
            assert_eq!(error[12..20], [&[0; 4][..], &socket(CLIENT).ip().octets()].concat());
            &error[20..]
        } else {
            let pseudo = [&error[8..40], &[0, 58], &(error.len() as u16 - 40).to_be_bytes(), &error[40..]];
            assert_eq!((error[6], checksum::sum(&pseudo.concat())), (58, 0xFFFF));
            let ends = [OWN6, CLIENT6].map(|end| socket6(end).ip().octets());
            assert_eq!(error[8..40], ends.concat());
            &error[40..]
        };
        Some(([message[0], message[1]], u16::from_be_bytes([message[6], message[7]]), message[8..].to_vec()))
    }
}

impl Rig {
    /// With routes of both families, addresses of the router's own, and so many bytes of a packet on the way to servers.
    fn publish_both(&mut self, mtu: u16) {
        self.generation += 1;
        let own6 = u128::from(*socket6(OWN6).ip());
        let mut fibs = Fibs { four: four(mtu), ..fibs() };
        if mtu < 1500 {
            let way = Adjacency::new(LAN, mtu, server_mac(1), LAN_MAC);
            let prefix = u128::from(*socket6(&server6(0, 0)).ip());
            let routes = [Route { prefix, length: 64, via: Via::OnLink(LAN) }];
            fibs.six = Fib::new(routes, [((LAN, prefix + 1), way)]);
        }
        // A virtual address, which no tunnel begins at.
        let is_six = self.spec.address.is_ipv6();
        let virtual6 = is_six.then(|| (LAN, u128::from(*socket6(VIP6).ip()), 0));
        let own6 = [(LAN, own6, 64), (WAN, own6, 64)];
        fibs.six = fibs.six.with_own(virtual6.into_iter().chain(own6));
        let ports = vec![PortSpec { mac: WAN_MAC }, PortSpec { mac: LAN_MAC }];
        self.snapshot = Snapshot::new(self.generation, ports, std::slice::from_ref(&self.spec), [], fibs);
    }
}

fn four(mtu: u16) -> Fib<u32> {
    let gateway = u32::from_be_bytes([192, 0, 2, 254]);
    let routes = [
        Route { prefix: 0, length: 0, via: Via::Gateway(WAN, gateway) },
        Route { prefix: 0x0A00_0000, length: 24, via: Via::OnLink(LAN) },
    ];
    let neighbours = [
        ((WAN, gateway), Adjacency::new(WAN, 1500, CLIENT_MAC, WAN_MAC)),
        ((LAN, 0x0A00_0001), Adjacency::new(LAN, mtu, server_mac(1), LAN_MAC)),
    ];
    Fib::new(routes, neighbours).with_own([(LAN, u32::from_be_bytes(OWN), 24)])
}

fn each(mut test: impl FnMut(Pair, Encapsulation)) {
    PAIRS.into_iter().for_each(|pair| ALL.into_iter().for_each(|encapsulation| test(pair, encapsulation)));
}

#[test]
fn the_packet_inside_is_the_clients_with_one_hop_less() {
    each(|pair, encapsulation| {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let rig = pair.rig(protocol, encapsulation, None);
            for flags in [SYN, ACK, ACK, FIN | ACK] {
                let mut frame = pair.request(protocol, flags);
                let expected = pair.hop(&frame);
                assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN), "{pair:?} {encapsulation}");
                assert_eq!(pair.taken_out(&frame, encapsulation), expected, "{pair:?} {encapsulation}");
            }
            let traffic = rig.spec.dests[0].traffic[0].get();
            let length = pair.request(protocol, ACK).len() as u64 - 14;
            assert_eq!((traffic.connections, traffic.packets_in, traffic.bytes_in), (1, 4, 4 * length));
            assert_eq!(rig.engine.counters.traffic.get(), traffic);
        }
    });
}

/// Whoever has the connection by its word finds the client in the service's family: a listing, a peer, a template.
#[test]
fn a_client_is_of_the_services_family() {
    for pair in PAIRS {
        let rig = pair.rig(Protocol::Tcp, Encapsulation::Ipip, None);
        rig.push(WAN, &mut pair.request(Protocol::Tcp, SYN));
        let table = &rig.engine.table;
        let (slot, word) = table.entries(0..table.buckets()).next().unwrap();
        let client: std::net::SocketAddr = match pair.inside {
            4 => socket(CLIENT).into(),
            _ => socket6(CLIENT6).into(),
        };
        assert_eq!(rig.snapshot.client_of(table, slot, word), Some(client));

        let next = pair.rig(Protocol::Tcp, Encapsulation::Ipip, None);
        let dest = DestId::new(1).unwrap();
        let state = State::Established;
        let news = News { client, dest, virtual_port: 0, state, flags: 0, age: 1, slack: 0, local: None };
        assert_eq!(adopt(&next.engine.table, &next.snapshot, next.now, &news), Adopted::New);
        let mut frame = pair.request(Protocol::Tcp, ACK);
        assert_eq!(next.push(WAN, &mut frame), Verdict::Forward(LAN), "it goes on with the next router");
        let other = if pair.inside == 4 { socket6(CLIENT6).into() } else { socket(CLIENT).into() };
        let news = News { client: other, ..news };
        assert_eq!(adopt(&next.engine.table, &next.snapshot, next.now, &news), Adopted::Stale);
    }
}

#[test]
fn a_source_is_for_servers_of_its_family() {
    for pair in PAIRS {
        let mut rig = pair.rig(Protocol::Tcp, Encapsulation::Ipip, None);
        for source in ["10.0.0.77", "2001:db8:a::77"] {
            let source: IpAddr = source.parse().unwrap();
            rig.spec.tunnel.source = Some(source);
            rig.publish_both(1500);
            let mut frame = pair.request(Protocol::Tcp, SYN);
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
            let from: IpAddr = match pair.outside {
                4 => <[u8; 4]>::try_from(&frame[26..30]).unwrap().into(),
                _ => <[u8; 16]>::try_from(&frame[22..38]).unwrap().into(),
            };
            let own: IpAddr = if pair.outside == 4 { OWN.into() } else { (*socket6(OWN6).ip()).into() };
            assert_eq!(from, if source.is_ipv4() == (pair.outside == 4) { source } else { own });
        }
    }
}

#[test]
fn the_mss_of_a_syn_is_lowered_to_what_fits() {
    each(|pair, encapsulation| {
        let header = if pair.inside == 4 { 20 } else { 40 };
        let fits = 1500 - pair.overhead(encapsulation) - header - 20;
        for (clamp, expected) in [
            (Some(MssClamp::Fit), fits),
            (Some(MssClamp::To(1300)), 1300),
            (Some(MssClamp::To(1461)), 1460),
            (None, 1460),
        ] {
            let rig = pair.rig(Protocol::Tcp, encapsulation, clamp);
            let transport = 14 + header;
            let mut frame = pair.request(Protocol::Tcp, SYN);
            frame.truncate(transport + 20);
            frame.extend([2, 4, 0x05, 0xB4]);
            frame[transport + 12] = 6 << 4;
            match pair.inside {
                4 => frame[16..18].copy_from_slice(&44_u16.to_be_bytes()),
                _ => frame[18..20].copy_from_slice(&24_u16.to_be_bytes()),
            }
            pair.mend(&mut frame);
            let mut lowered = frame.clone();
            lowered[transport + 22..].copy_from_slice(&(expected as u16).to_be_bytes());
            pair.mend(&mut lowered);
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
            assert_eq!(pair.taken_out(&frame, encapsulation), pair.hop(&lowered), "{pair:?} {encapsulation}");
            // Of anything else it is not.
            let mut frame = pair.segment(header + 40);
            frame[transport + 12] = 6 << 4;
            frame[transport + 20..transport + 24].copy_from_slice(&[2, 4, 0x05, 0xB4]);
            pair.mend(&mut frame);
            let expected = pair.hop(&frame);
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
            assert_eq!(pair.taken_out(&frame, encapsulation), expected, "{pair:?} {encapsulation}");
        }
    });
}

#[test]
fn what_is_too_long_with_the_headers_is_told_what_would_fit() {
    each(|pair, encapsulation| {
        let rig = pair.rig(Protocol::Tcp, encapsulation, None);
        rig.push(WAN, &mut pair.request(Protocol::Tcp, SYN));
        let fits = 1500 - pair.overhead(encapsulation);
        for known in [SYN, ACK] {
            // On the long way at first, then on the short one.
            assert_eq!(rig.push(WAN, &mut pair.request(Protocol::Tcp, known)), Verdict::Forward(LAN));
            let mut frame = pair.segment(fits);
            let expected = pair.hop(&frame);
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
            assert_eq!(pair.taken_out(&frame, encapsulation), expected);
            let long = pair.segment(fits + 1);
            let mut frame = long.clone();
            assert_eq!(rig.push(WAN, &mut frame), Verdict::Drop(Drop::TooBig));
            assert_eq!(frame, long, "it is told as it came");
            let error =
                tell::error(&rig.engine.table, &rig.snapshot, rig.now, Drop::TooBig, &frame[14..]).unwrap();
            let (message, kind) = if pair.inside == 4 { (20, [3, 4]) } else { (40, [2, 0]) };
            assert_eq!(error[message..message + 2], kind);
            let mtu = u16::from_be_bytes([error[message + 6], error[message + 7]]);
            assert_eq!(usize::from(mtu), fits, "{pair:?} {encapsulation}");
        }
        assert_eq!(rig.push(WAN, &mut pair.segment(65_520)), Verdict::Drop(Drop::TooBig));
    });
}

/// The outer packet that such parts make: of IPv4 by offset, of IPv6 behind a fragment header.
fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    let is_four = parts[0][0] == 0x45;
    let mut whole = parts[0][..if is_four { 20 } else { 40 }].to_vec();
    let mut at = 0;
    for (part, next) in parts.iter().zip(parts.iter().skip(1).map(Some).chain([None])) {
        let (place, more, data) = match is_four {
            true => {
                let word = u16::from_be_bytes([part[6], part[7]]);
                (usize::from(word & 0x1FFF) * 8, word & 0x2000 != 0, &part[20..])
            }
            false => {
                assert_eq!((part[6], part[41], &part[44..48]), (44, 0, &parts[0][44..48]));
                assert_eq!(usize::from(u16::from_be_bytes([part[4], part[5]])), part.len() - 40);
                let word = u16::from_be_bytes([part[42], part[43]]);
                whole[6] = part[40];
                (usize::from(word & 0xFFF8), word & 1 != 0, &part[48..])
            }
        };
        assert_eq!((place, more), (at, next.is_some()));
        at += data.len();
        whole.extend(data);
    }
    let length = (whole.len() - if is_four { 0 } else { 40 }) as u16;
    match is_four {
        true => {
            whole[2..4].copy_from_slice(&length.to_be_bytes());
            whole[6..8].fill(0);
            whole[10..12].fill(0);
            let sum = !checksum::sum(&whole[..20]);
            whole[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        false => whole[4..6].copy_from_slice(&length.to_be_bytes()),
    }
    whole
}

/// Of IPv4 what may be fragmented; of IPv6 what no sender can make shorter. On a narrow way that one is told 1280, and no less.
#[test]
fn what_may_be_split_goes_in_fragments_of_the_outer_packet() {
    each(|pair, encapsulation| {
        let mut rig = pair.rig(Protocol::Tcp, encapsulation, None);
        rig.push(WAN, &mut pair.request(Protocol::Tcp, SYN));
        let mut frame = if pair.inside == 4 {
            let mut frame = pair.segment(1500);
            frame[20] = 0;
            pair.mend(&mut frame);
            frame
        } else {
            rig.publish_both(1290);
            let mut long = pair.segment(1281);
            assert_eq!(rig.push(WAN, &mut long), Verdict::Drop(Drop::TooBig));
            let error =
                tell::error(&rig.engine.table, &rig.snapshot, rig.now, Drop::TooBig, &long[14..]).unwrap();
            assert_eq!((&error[40..42], &error[46..48]), (&[2, 0][..], &1280_u16.to_be_bytes()[..]));
            pair.segment(1280)
        };
        let expected = pair.hop(&frame);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::ToFragment), "{pair:?} {encapsulation}");
        let parts = fragments(&rig.snapshot, &frame[14..]);
        assert_eq!(parts.len(), 2);
        let mtu = if pair.inside == 4 { 1500 } else { 1290 };
        assert!(parts.iter().all(|part| part.len() <= mtu));
        let macs = [server_mac(1), LAN_MAC].concat();
        let whole = [&macs[..], &frame[12..14], &joined(&parts)].concat();
        assert_eq!(pair.taken_out(&whole, encapsulation), expected);
        if pair.inside == 4 {
            let whole = &pair.segment(1500)[14..];
            assert_eq!(fragments(&rig.snapshot, whole), Vec::<Vec<u8>>::new(), "which must not be");
        }
    });
}

#[test]
fn an_error_about_the_outer_packet_is_told_as_one_about_the_clients() {
    each(|pair, encapsulation| {
        let rig = pair.rig(Protocol::Tcp, encapsulation, None);
        rig.push(WAN, &mut pair.request(Protocol::Tcp, SYN));
        let sent = pair.segment(1400);
        let mut outer = sent.clone();
        rig.push(WAN, &mut outer);
        let overhead = pair.overhead(encapsulation);
        let (inside, before) = (pair.hop(&sent), (rig.connections(), rig.live(1)));
        let header = if pair.inside == 4 { 20 } else { 40 };
        for length in [overhead + header + 8, 548, 1232] {
            let quote = &outer[14..14 + length];
            let longest = if pair.inside == 4 { 548 } else { 1232 };
            let expected = inside[..(length - overhead).min(longest)].to_vec();
            let told = |kind, mtu| pair.told(&rig, pair.error_about(kind, mtu, quote));
            let least = if pair.inside == 4 { 68 } else { 1280 };
            let too_big = if pair.inside == 4 { [3, 4] } else { [2, 0] };
            let no_route = if pair.inside == 4 { [3, 0] } else { [1, 0] };
            let unreachable = if pair.inside == 4 { [3, 1] } else { [1, 3] };
            let of_outer = if pair.outside == 4 { [3, 4] } else { [2, 0] };
            for (mtu, room) in [(1400, 1400), (0, if pair.outside == 4 { 576 } else { 1280 }), (30, 30)] {
                let room = (room as u16).saturating_sub(overhead as u16).max(least);
                assert_eq!(told(of_outer, mtu), Some((too_big, room, expected.clone())), "{pair:?}");
            }
            let (kinds, nothing): (&[_], &[_]) = if pair.outside == 4 {
                let unreachable = [[3, 1], [3, 2], [3, 3], [3, 13], [11, 0]].map(|kind| (kind, unreachable));
                (
                    &[&[([3, 0], no_route)][..], &unreachable].concat(),
                    &[[3, 5], [4, 0], [5, 1], [11, 1], [12, 0], [0, 0], [8, 0]],
                )
            } else {
                let unreachable =
                    [[1, 1], [1, 3], [1, 4], [1, 5], [3, 0], [4, 1]].map(|kind| (kind, unreachable));
                (&[&[([1, 0], no_route)][..], &unreachable].concat(), &[[3, 1], [4, 0], [4, 2], [128, 0]])
            };
            for &(kind, becomes) in kinds {
                assert_eq!(told(kind, 0), Some((becomes, 0, expected.clone())), "{pair:?} {kind:?}");
            }
            for &kind in nothing {
                assert_eq!(told(kind, 0), None, "{pair:?} {kind:?} is nothing to the client");
            }
        }
        let of_outer = if pair.outside == 4 { [3, 4] } else { [2, 0] };
        let short = &outer[14..14 + overhead + header + 7];
        assert_eq!(pair.told(&rig, pair.error_about(of_outer, 1300, short)), None, "too little is quoted");
        let good = pair.error_about(of_outer, 1300, &outer[14..514]);
        for at in (14 + 8..good.len()).step_by(7) {
            let mut forged = good.clone();
            forged[at] ^= 1;
            // A hop limit or the class of another packet's is no forgery: the sum is.
            let is_told = rig.push(LAN, &mut forged) == Verdict::Punt(Punt::TunnelError);
            let is_uncovered = pair.outside == 6 && at == 21;
            assert!(!is_told || is_uncovered, "{pair:?} {encapsulation} {at}");
        }
        assert_eq!((rig.connections(), rig.live(1)), before, "an error changes nothing");
    });
}

/// An error about a reply, which the server has sent beside the tunnel, goes to it through the tunnel.
#[test]
fn an_error_about_a_reply_goes_to_the_server_through_the_tunnel() {
    each(|pair, encapsulation| {
        let rig = pair.rig(Protocol::Tcp, encapsulation, None);
        rig.push(WAN, &mut pair.request(Protocol::Tcp, SYN));
        // Between client and router the message is of the service's family, like what it quotes.
        let beside = Pair { outside: pair.inside, ..pair };
        let (reply, kind) = match pair.inside {
            4 => (packet(Protocol::Tcp, LAN_MAC, VIP, CLIENT, SYN | ACK), [3, 4]),
            _ => {
                let macs = (LAN_MAC, server_mac(1));
                (packet6(Protocol::Tcp, macs, (VIP6, CLIENT6), (SYN | ACK, 64), &[]), [2, 0])
            }
        };
        let mut frame = beside.error_about(kind, 1400, &reply[14..]);
        frame[..6].copy_from_slice(&WAN_MAC);
        // To the service, whose reply it was; the message's own sum goes along as it is.
        match pair.inside {
            4 => {
                frame[30..34].copy_from_slice(&socket(VIP).ip().octets());
                frame[24..26].fill(0);
                let sum = !checksum::sum(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            _ => frame[38..54].copy_from_slice(&socket6(VIP6).ip().octets()),
        }
        let expected = pair.hop(&frame);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN), "{pair:?} {encapsulation}");
        assert_eq!(pair.taken_out(&frame, encapsulation), expected, "{pair:?} {encapsulation}");
    });
}

/// A server that is reached by IPv6 only from an address that is virtual has no tunnel, and gets no clients.
#[test]
fn without_an_address_of_its_own_there_is_no_way() {
    let pair = Pair { inside: 4, outside: 6 };
    let mut rig = pair.rig(Protocol::Tcp, Encapsulation::Ipip, None);
    rig.spec.dests.push(DestSpec::new(DestId::new(2).unwrap(), socket("10.0.0.1:80")));
    rig.publish_both(1500);
    let mut fibs = rig.snapshot.fibs.clone();
    fibs.six = fibs.six.with_own([(LAN, u128::from(*socket6(VIP6).ip()), 0)]);
    let six =
        ServiceSpec { dests: Vec::new(), ..ServiceSpec::new(socket6(VIP6), Protocol::Tcp, Mode::Tunnel) };
    rig.snapshot = Snapshot::new(9, rig.snapshot.ports.clone(), &[rig.spec.clone(), six], [], fibs);
    for n in 1..5 {
        let mut frame = packet(Protocol::Tcp, WAN_MAC, &format!("198.51.100.7:{n}"), VIP, SYN);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
        assert_eq!(frame[12..14], [8, 0], "all go to the server of IPv4");
    }
}
