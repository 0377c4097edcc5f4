//! Fragments: whatever their order, what arrives is the datagram that was sent.

use std::collections::HashSet;

use super::*;
use crate::engine::tell::error;
use crate::fragments::Waiting;

/// A worker with its room for fragments that wait, and what has left it.
pub(super) struct Poller<'a> {
    rig: &'a Rig,
    engine: &'a Engine,
    waiting: Waiting<Vec<u8>>,
    pub out: Vec<(Verdict, Vec<u8>)>,
}

impl<'a> Poller<'a> {
    pub fn new(rig: &'a Rig) -> Self {
        Poller::of(rig, &rig.engine)
    }

    fn of(rig: &'a Rig, engine: &'a Engine) -> Self {
        Poller { rig, engine, waiting: Waiting::default(), out: Vec::new() }
    }

    /// A packet comes in, as a burst of its own.
    pub fn push(&mut self, now: Tick, port: PortIndex, frame: &[u8]) {
        let (mut burst, mut verdicts) = ([frame.to_vec()], [Verdict::Drop(Drop::Runt); BURST]);
        self.engine.process(&self.rig.snapshot, now, port, &mut burst, &mut verdicts, &mut ());
        let [frame] = burst;
        match verdicts[0] {
            Verdict::Hold => {
                let gone = self.engine.hold(&mut self.waiting, now, port, frame);
                self.out.extend(gone.map(|(frame, drop)| (Verdict::Drop(drop), frame)));
            }
            verdict => self.out.push((verdict, frame)),
        }
        self.settle(now, true);
    }

    fn settle(&mut self, now: Tick, is_busy: bool) {
        let out = &mut self.out;
        let done = |_, frame, verdict| out.push((verdict, frame));
        self.engine.settle(&self.rig.snapshot, now, &mut self.waiting, is_busy, done);
    }

    pub fn push_all(&mut self, port: PortIndex, frames: &[Vec<u8>]) {
        frames.iter().for_each(|frame| self.push(self.rig.now, port, frame));
    }

    pub fn verdicts(&self) -> Vec<Verdict> {
        self.out.iter().map(|&(verdict, _)| verdict).collect()
    }
}

/// A packet with so much data, its length and checksums mended; may be fragmented.
pub(super) fn large(frame: &[u8], data: usize) -> Vec<u8> {
    let protocol = frame[23];
    let header = if protocol == 6 { 20 } else { 8 };
    let mut frame = frame[..34 + header].to_vec();
    frame.extend((0..data).map(|n| (n * 7 + n / 256) as u8));
    let (total, segment) = (frame.len() as u16 - 14, frame.len() as u16 - 34);
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[20] = 0;
    let at = if protocol == 6 { 50 } else { 40 };
    if protocol == 17 {
        frame[38..40].copy_from_slice(&segment.to_be_bytes());
    }
    frame[at..at + 2].fill(0);
    let pseudo = [&frame[26..34], &[0, protocol], &segment.to_be_bytes(), &frame[34..]].concat();
    let sum = !checksum::sum(&pseudo);
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    mend(frame)
}

pub(super) fn mend(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let sum = !checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

pub(super) fn numbered(frame: &[u8], identification: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[18..20].copy_from_slice(&identification.to_be_bytes());
    mend(frame)
}

/// The fragments of a packet, each with so many bytes of it at the most.
pub(super) fn split(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    assert!(size.is_multiple_of(8));
    let (headers, data) = frame.split_at(34);
    let pieces = data.chunks(size).enumerate().map(|(index, piece)| {
        let mut fragment = [headers, piece].concat();
        let more = if (index + 1) * size < data.len() { 0x2000 } else { 0 };
        let place = (index * size / 8) as u16 | more;
        fragment[16..18].copy_from_slice(&(20 + piece.len() as u16).to_be_bytes());
        fragment[20..22].copy_from_slice(&place.to_be_bytes());
        mend(fragment)
    });
    pieces.collect()
}

/// Puts fragments together: the plain way, which every byte has to fit.
pub(super) fn join(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = fragments[0][..34].to_vec();
    let mut end = None;
    let mut data: Vec<Option<u8>> = Vec::new();
    for fragment in fragments {
        assert_eq!(checksum::sum(&fragment[14..34]), 0xFFFF);
        assert_eq!((&fragment[..12], &fragment[22..24]), (&whole[..12], &whole[22..24]));
        assert_eq!((&fragment[26..34], &fragment[18..20]), (&whole[26..34], &whole[18..20]));
        let place = u16::from_be_bytes([fragment[20], fragment[21]]);
        let (at, length) = (usize::from(place & 0x1FFF) * 8, fragment.len() - 34);
        assert_eq!(usize::from(u16::from_be_bytes([fragment[16], fragment[17]])), length + 20);
        if place & 0x2000 == 0 {
            assert_eq!(end.replace(at + length), None, "one last fragment");
        }
        data.resize(data.len().max(at + length), None);
        for (byte, &new) in data[at..].iter_mut().zip(&fragment[34..]) {
            assert_eq!(byte.replace(new), None, "no byte twice");
        }
    }
    assert_eq!(end, Some(data.len()), "the last fragment ends the datagram");
    whole.extend(data.into_iter().map(|byte| byte.expect("every byte once")));
    let total = whole.len() as u16 - 14;
    whole[16..18].copy_from_slice(&total.to_be_bytes());
    whole[20..22].fill(0);
    mend(whole)
}

/// All orders of so many.
pub(super) fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![vec![]];
    }
    let shorter = orders(count - 1);
    let insert = |order: &Vec<usize>, at: usize| {
        let mut order = order.clone();
        order.insert(at, count - 1);
        order
    };
    shorter.iter().flat_map(|order| (0..count).map(|at| insert(order, at)).collect::<Vec<_>>()).collect()
}

/// The datagram that `fragments` become, in every order; each time it has a number of its own.
pub(super) fn in_every_order(
    rig: &Rig,
    port: PortIndex,
    whole: &[u8],
    size: usize,
    expected: &[u8],
    out: PortIndex,
) {
    in_every_order_behind(0, rig, port, whole, size, expected, out);
}

/// The same, if each has so many bytes of other headers behind that of Ethernet when it leaves.
fn in_every_order_behind(
    headers: usize,
    rig: &Rig,
    port: PortIndex,
    whole: &[u8],
    size: usize,
    expected: &[u8],
    out: PortIndex,
) {
    let count = split(whole, size).len();
    for (number, order) in orders(count).into_iter().enumerate() {
        let number = number as u16 + 100;
        let fragments = split(&numbered(whole, number), size);
        let mut poller = Poller::new(rig);
        order.iter().for_each(|&index| poller.push(rig.now, port, &fragments[index]));
        assert!(poller.waiting.is_empty(), "{order:?}");
        assert_eq!(poller.verdicts(), vec![Verdict::Forward(out); count], "{order:?}");
        let inside = |frame: Vec<u8>| [&frame[..14], &frame[14 + headers..]].concat();
        let frames: Vec<Vec<u8>> = poller.out.into_iter().map(|(_, frame)| inside(frame)).collect();
        assert_eq!(join(&frames), numbered(expected, number), "{order:?}");
    }
}

#[test]
fn a_datagram_arrives_whole_in_every_order_by_nat() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rig = Rig::new(protocol, Mode::Nat, &[1]);
        let request = large(&packet(protocol, WAN_MAC, CLIENT, VIP, SYN), 101);
        let arrives = expect(protocol, (server_mac(1), LAN_MAC), CLIENT, "10.0.0.1:8080", SYN);
        in_every_order(&rig, WAN, &request, 24, &large(&arrives, 101), LAN);

        let reply = large(&packet(protocol, LAN_MAC, "10.0.0.1:8080", CLIENT, SYN | ACK), 101);
        let arrives = expect(protocol, (CLIENT_MAC, WAN_MAC), VIP, CLIENT, SYN | ACK);
        in_every_order(&rig, LAN, &reply, 24, &large(&arrives, 101), WAN);
        assert_eq!(rig.connections().len(), 1);
    }
}

#[test]
fn a_datagram_arrives_whole_in_every_order_by_direct_routing() {
    let rig = Rig::new(Protocol::Udp, Mode::Dr, &[1]);
    let request = large(&packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0), 90);
    let arrives = expect(Protocol::Udp, (server_mac(1), LAN_MAC), CLIENT, VIP, 0);
    in_every_order(&rig, WAN, &request, 24, &large(&arrives, 90), LAN);
    let orders = 120; // of five fragments
    let traffic = rig.spec.dests[0].traffic[0].get();
    assert_eq!((traffic.connections, traffic.packets_in), (1, 5 * orders));
    assert_eq!(traffic.bytes_in, orders * (98 + 5 * 20));
}

#[test]
fn a_datagram_arrives_whole_in_every_order_by_a_tunnel() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut rig = Rig::new(protocol, Mode::Tunnel, &[1]);
        rig.spec.tunnel.source = Some((*socket("10.0.0.254:0").ip()).into());
        rig.publish();
        let request = large(&packet(protocol, WAN_MAC, CLIENT, VIP, SYN), 90);
        let arrives = expect(protocol, (server_mac(1), LAN_MAC), CLIENT, VIP, SYN);
        in_every_order_behind(20, &rig, WAN, &request, 24, &large(&arrives, 90), LAN);
        assert_eq!(rig.connections().len(), 1);

        let mut poller = Poller::new(&rig);
        poller.push_all(WAN, &split(&request, 24));
        let numbers: HashSet<[u8; 2]> = poller.out.iter().map(|(_, frame)| [frame[18], frame[19]]).collect();
        assert_eq!(numbers.len(), poller.out.len(), "packets of their own outside");
    }
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    let rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let mut request = large(&packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0), 40);
    request[40..42].fill(0);
    let mut poller = Poller::new(&rig);
    poller.push_all(WAN, &split(&request, 24));
    assert_eq!(poller.out[0].1[40..42], [0, 0]);
}

fn datagram(data: usize) -> Vec<u8> {
    large(&packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0), data)
}

/// The same fragments with another client's port.
fn from_port(mut frame: Vec<u8>, port: u16) -> Vec<u8> {
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame
}

#[test]
fn what_must_not_be_believed_has_its_names() {
    let rig = |protocol| Rig::new(protocol, Mode::Nat, &[1]);
    let syn = large(&from_client(SYN), 40);
    let tcp = split(&syn, 8);
    for (index, name) in [(0, "cut in its header"), (1, "over the flags"), (2, "over the checksum")] {
        let mut frame = tcp[index].clone();
        assert_eq!(
            rig(Protocol::Tcp).push(WAN, &mut frame),
            Verdict::Drop(Drop::FragmentTiny),
            "a fragment {name}"
        );
    }
    let udp = split(&datagram(40), 8);
    assert_eq!(
        rig(Protocol::Udp).push(WAN, &mut udp[0].clone()),
        Verdict::Forward(LAN),
        "a header, and no more"
    );
    let mut short = udp[0].clone();
    short[38..40].copy_from_slice(&7u16.to_be_bytes());
    let bad = Verdict::Drop(Drop::BadTransportHeader);
    assert_eq!(rig(Protocol::Udp).push(WAN, &mut short), bad, "a datagram of seven bytes");
}

#[test]
fn a_second_first_fragment_with_other_ports_is_no_part_of_it_and_later_another_datagram() {
    let rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let fragments = split(&datagram(40), 24);
    let mut poller = Poller::new(&rig);
    let mut other_service = fragments[0].clone();
    other_service[37] = 81;
    poller.push_all(WAN, &[fragments[0].clone(), from_port(fragments[0].clone(), 1), other_service]);
    poller.push_all(WAN, &[fragments[0].clone(), fragments[1].clone()]);
    let overlap = Verdict::Drop(Drop::FragmentOverlap);
    let goes = Verdict::Forward(LAN);
    assert_eq!(poller.verdicts(), [goes, overlap, overlap, goes, goes], "a copy may pass");
    assert_eq!(rig.connections().len(), 1);

    let soon = Tick(rig.now.0 + 2);
    poller.push(soon, WAN, &from_port(fragments[0].clone(), 1));
    assert_eq!(poller.verdicts()[5..], [goes]);
    assert_eq!(rig.connections().len(), 2);
}

#[test]
fn the_rest_goes_where_the_first_has_gone() {
    let mut rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let mut elsewhere = split(&datagram(40), 24);
    elsewhere[0][37] = 81;
    let mut poller = Poller::new(&rig);
    poller.push_all(WAN, &[elsewhere[1].clone(), elsewhere[0].clone(), elsewhere[1].clone()]);
    let rest = Verdict::Punt(Punt::Fragment);
    assert_eq!(poller.verdicts(), [Verdict::Punt(Punt::NoService), rest, rest], "to Linux");

    rig.spec.dests[0].up = false;
    rig.publish();
    let fragments = split(&numbered(&datagram(40), 8), 24);
    let mut poller = Poller::new(&rig);
    poller.push_all(WAN, &[fragments[1].clone(), fragments[0].clone(), fragments[1].clone()]);
    let rest = Verdict::Drop(Drop::FragmentOrphan);
    assert_eq!(poller.verdicts(), [Verdict::Drop(Drop::NoServer), rest, rest], "nowhere");
    let told = error(&rig.engine.table, &rig.snapshot, rig.now, Drop::NoServer, &fragments[0][14..]);
    assert_eq!(told.map(|error| (error[20], error[21])), Some((3, 3)), "port unreachable");

    rig.spec.dests[0].up = true;
    rig.publish();
    let mut poller = Poller::new(&rig);
    poller.push_all(WAN, &fragments);
    assert_eq!(poller.verdicts(), [Verdict::Forward(LAN); 2], "sent again, it may pass");
}

#[test]
fn a_real_servers_other_datagrams_are_linux() {
    let rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let reply = large(&packet(Protocol::Udp, LAN_MAC, "10.0.0.1:8080", ROUTER, 0), 40);
    let fragments = split(&reply, 24);
    let mut poller = Poller::new(&rig);
    poller.push_all(LAN, &[fragments[1].clone(), fragments[0].clone()]);
    assert_eq!(poller.verdicts(), [Verdict::Punt(Punt::ServerReply), Verdict::Punt(Punt::Fragment)]);
}

#[test]
fn who_waits_in_vain_goes_after_a_second() {
    let rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let fragments = split(&datagram(40), 24);
    let mut poller = Poller::new(&rig);
    poller.push_all(WAN, &fragments[1..]);
    assert_eq!((poller.waiting.len(), poller.verdicts()), (1, vec![]));
    poller.settle(Tick(rig.now.0 + 4), false);
    assert_eq!(poller.waiting.len(), 1);
    poller.settle(Tick(rig.now.0 + 5), false);
    assert_eq!(poller.verdicts(), [Verdict::Drop(Drop::FragmentExpired)]);
    assert_eq!(poller.out[0].1, fragments[1], "as it came");
    assert_eq!(rig.engine.counters.held.get(), 1);
}

#[test]
fn who_waits_longest_makes_room() {
    let rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let fragments = split(&datagram(2000), 8);
    let mut poller = Poller::new(&rig);
    poller.push_all(WAN, &fragments[1..68]);
    assert_eq!(poller.verdicts(), [Verdict::Drop(Drop::FragmentNoRoom); 3]);
    assert_eq!(poller.out.iter().map(|(_, frame)| frame.clone()).collect::<Vec<_>>(), fragments[1..4]);
    poller.push_all(WAN, &fragments[..1]);
    assert_eq!(poller.verdicts()[3..], [Verdict::Forward(LAN); 65]);
}

#[test]
fn fragments_that_came_to_another_worker_find_the_note() {
    let rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let other = Engine::new(0, rig.engine.table.clone(), Arc::default());
    let fragments = split(&datagram(60), 24);
    let (mut one, mut two) = (Poller::new(&rig), Poller::of(&rig, &other));
    two.push_all(WAN, &fragments[1..2]);
    one.push_all(WAN, &fragments[..1]);
    assert_eq!((one.verdicts(), two.verdicts()), (vec![Verdict::Forward(LAN)], vec![]));
    two.push_all(WAN, &fragments[2..]);
    two.settle(rig.now, false);
    assert_eq!(two.verdicts(), [Verdict::Forward(LAN); 2]);
    let frames = one.out.into_iter().chain(two.out).map(|(_, frame)| frame);
    assert_eq!(join(&frames.collect::<Vec<_>>()).len(), 14 + 28 + 60);
}

#[test]
fn a_note_of_a_server_that_is_gone_leads_to_nobody() {
    let mut rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let fragments = split(&datagram(40), 24);
    Poller::new(&rig).push_all(WAN, &fragments[..1]);
    let gone = rig.spec.dests.pop().unwrap();
    rig.publish();
    let mut poller = Poller::new(&rig);
    poller.push_all(WAN, &fragments[1..]);
    assert_eq!(poller.waiting.len(), 1, "it may be a server of the next snapshot");

    // Its number is another one's, of a service that has another address.
    rig.spec.address = socket("192.0.2.11:80").into();
    rig.spec.dests.push(gone);
    rig.publish();
    rig.snapshot = compile(
        9,
        &[rig.spec.clone(), ServiceSpec { address: socket(VIP).into(), dests: vec![], ..rig.spec.clone() }],
        [],
    );
    let mut frame = fragments[1].clone();
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Drop(Drop::FragmentOrphan));
}

#[test]
fn each_fragment_needs_hops_and_has_to_fit() {
    let mut rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let whole = datagram(3000);
    let fragments = split(&whole, 1480);
    Poller::new(&rig).push_all(WAN, &fragments[..1]);
    let mut last = fragments[1].clone();
    last[22] = 1;
    assert_eq!(rig.push(WAN, &mut mend(last)), Verdict::Drop(Drop::TtlExpired));

    // Longer than the link of 1500 bytes; the first says so, if it must not be fragmented further.
    rig.wait(1);
    let mut fragments = split(&whole, 1488);
    fragments[0][20] |= 0x40;
    let first = mend(fragments[0].clone());
    assert_eq!(rig.push(WAN, &mut first.clone()), Verdict::Drop(Drop::TooBig));
    assert_eq!(rig.push(WAN, &mut fragments[1].clone()), Verdict::Drop(Drop::FragmentOrphan));
    let told = |frame: &[u8]| {
        let error = error(&rig.engine.table, &rig.snapshot, rig.now, Drop::TooBig, &frame[14..])?;
        Some((error[20], error[21], u16::from_be_bytes([error[26], error[27]])))
    };
    assert_eq!(told(&first), Some((3, 4, 1500)));
    fragments[1][20] |= 0x40;
    assert_eq!(told(&mend(fragments[1].clone())), None, "nothing is said of the others");
}

#[test]
fn fragmented_pings_are_linux() {
    let rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let mut ping = datagram(100);
    ping[23] = 1;
    ping[34..36].copy_from_slice(&[8, 0]);
    for fragment in split(&ping, 24) {
        assert_eq!(rig.push(WAN, &mut fragment.clone()), Verdict::Punt(Punt::Icmp));
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any field of a fragment may be anything: it gets a verdict, nothing panics, and only what goes on is changed.
        #[test]
        fn any_fragment_gets_a_verdict(
            index in 0usize..3,
            changes in prop::collection::vec((14usize..54, any::<u8>()), 1..6),
            cut in 34usize..60,
        ) {
            let rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
            let fragments = split(&datagram(60), 24);
            let mut poller = Poller::new(&rig);
            let mut frame = fragments[index].clone();
            for (at, value) in changes {
                frame[at] = value;
            }
            frame.truncate(cut);
            if frame.len() > 34 {
                frame = mend(frame);
            }
            poller.push_all(WAN, &fragments[..1]);
            poller.push_all(WAN, &[frame.clone()]);
            poller.push_all(WAN, &fragments[1..]);
            prop_assert!(poller.out.len() + poller.waiting.len() == 4);
            for (verdict, after) in &poller.out {
                let goes_on = matches!(verdict, Verdict::Forward(_) | Verdict::Punt(Punt::Unresolved));
                prop_assert!(goes_on || *after == frame || fragments.contains(after));
            }
        }
    }
}
