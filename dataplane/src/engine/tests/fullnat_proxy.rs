//! Full NAT with a header in front of the stream, where something comes between.

use super::fullnat::{LOCAL, SERVER, rig as fullnat, segment, told};
use super::related::{error, message};
use super::*;
use crate::engine::tell;

const ISN: u32 = 1000;
const FIRST: u32 = ISN + 1;
const HEADER: u32 = 28;
/// The server's next number.
const NEXT: u32 = 501;

/// With a header, or without.
fn rig(proxy: bool) -> Rig {
    let mut rig = fullnat(Protocol::Tcp, 1);
    rig.reload(proxy);
    rig
}

impl Rig {
    fn reload(&mut self, proxy: bool) {
        self.spec.pool.as_mut().unwrap().proxy = proxy;
        self.publish();
    }

    /// A client's segment, as the server gets it.
    fn client(&self, flags: u8, numbers: [u32; 2], data: &[u8]) -> (u32, u32, Vec<u8>) {
        self.passed(WAN, segment(WAN_MAC, CLIENT, VIP, flags, numbers, (&[], data)))
    }

    /// A server's segment, as the client gets it.
    fn server(&self, flags: u8, numbers: [u32; 2]) -> (u32, u32, Vec<u8>) {
        self.passed(LAN, segment(LAN_MAC, SERVER, LOCAL, flags, numbers, (&[], &[])))
    }

    fn passed(&self, port: PortIndex, mut frame: Vec<u8>) -> (u32, u32, Vec<u8>) {
        assert_eq!(self.push(port, &mut frame), Verdict::Forward(if port == WAN { LAN } else { WAN }));
        let (sequence, acknowledged, data) = told(&frame);
        (sequence, acknowledged, data.to_vec())
    }

    /// A handshake, up to the server's SYN.
    fn begin(&self) {
        self.client(SYN, [ISN, 0], b"");
        self.server(SYN | ACK, [NEXT - 1, FIRST]);
    }

    /// A connection whose header has come to the server, if it has one.
    fn talk(&self, header: u32) {
        self.begin();
        assert_eq!(self.client(ACK, [FIRST, NEXT], b"").2.len() as u32, header);
        self.moves_by(header);
    }

    /// What both say is moved by so much.
    fn moves_by(&self, header: u32) {
        assert_eq!(self.server(ACK, [NEXT, FIRST + header]).1, FIRST);
        assert_eq!(self.client(ACK, [FIRST, NEXT], b"hello"), (FIRST + header, NEXT, b"hello".to_vec()));
        assert_eq!(self.server(ACK, [NEXT, FIRST + header + 5]).1, FIRST + 5);
    }

    fn told_of(&self, local: &str, state: State, age: u32) -> Adopted {
        let (client, dest) = (socket(CLIENT).into(), DestId::new(1).unwrap());
        let local = Some(socket(local).into());
        let news = News { client, dest, virtual_port: 0, state, flags: 0, age, slack: 0, local };
        adopt(&self.engine.table, &self.snapshot, self.now, &news)
    }

    fn owns(&self, port: u16) -> bool {
        self.spec.pool.as_ref().unwrap().locals[0].owner(Protocol::Tcp, port).is_some()
    }
}

#[test]
fn a_reload_is_for_connections_that_begin() {
    for (before, after, header) in [(true, false, HEADER), (false, true, 0)] {
        let mut rig = rig(before);
        rig.talk(header);
        rig.reload(after);
        rig.moves_by(header);
        // Over, and begun anew from the same port.
        rig.client(RST, [FIRST + 5, 0], b"");
        rig.talk(HEADER - header);
    }
}

#[test]
fn a_stream_that_is_met_in_its_middle_has_no_header() {
    let mut rig = rig(true);
    rig.spec.sloppy = true;
    rig.publish();
    assert_eq!(rig.client(ACK, [FIRST, NEXT], b"hello"), (FIRST, NEXT, b"hello".to_vec()));
    rig.moves_by(0);
}

#[test]
fn a_syn_that_is_made_up_changes_no_stream() {
    // Before the header has passed, and when the server has closed its end.
    let rig = rig(true);
    rig.begin();
    rig.client(SYN, [77, 0], b"");
    assert_eq!(rig.client(ACK, [FIRST, NEXT], b"").2.len() as u32, HEADER);
    rig.moves_by(HEADER);
    rig.server(FIN | ACK, [NEXT, FIRST + HEADER + 5]);
    rig.client(SYN, [77, 0], b"");
    assert_eq!(rig.connections()[0].2, State::SynRecv);
    rig.moves_by(HEADER);
}

#[test]
fn a_reset_is_where_the_server_expects_it() {
    for (has_passed, expected) in [(true, FIRST + HEADER), (false, FIRST)] {
        let mut rig = rig(true);
        if has_passed {
            rig.talk(HEADER)
        } else {
            rig.begin()
        }
        (rig.spec.dests[0].reset, rig.spec.dests[0].weight) = (true, 0);
        rig.publish();
        let mut frame = segment(WAN_MAC, CLIENT, VIP, ACK, [FIRST, NEXT], (&[], &[]));
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::Reset));
        let resets = reset::reset(&rig.engine.table, &rig.snapshot, &frame[14..]);
        let sequences: Vec<&[u8]> = resets.iter().map(|reset| &reset[24..28]).collect();
        assert_eq!(sequences, [NEXT.to_be_bytes(), expected.to_be_bytes()]);
    }
}

#[test]
fn what_a_peer_tells_changes_no_stream_of_ours() {
    // Old news and new.
    for (age, adopted) in [(40, Adopted::Known), (0, Adopted::Changed)] {
        let mut rig = rig(true);
        rig.begin();
        rig.wait(5);
        assert_eq!(rig.told_of(LOCAL, State::Established, age), adopted);
        assert_eq!(rig.client(ACK, [FIRST, NEXT], b"").2.len() as u32, HEADER);
        rig.moves_by(HEADER);
    }
    let rig = rig(true);
    assert_eq!(rig.told_of(LOCAL, State::Established, 0), Adopted::New);
    assert_eq!(rig.client(ACK, [FIRST, NEXT], b"x").0, FIRST + HEADER);
}

#[test]
fn what_is_known_takes_no_port() {
    let rig = rig(false);
    rig.talk(0);
    assert_eq!(rig.told_of("10.0.0.100:2001", State::Established, 40), Adopted::Known);
    assert_eq!([2000, 2001].map(|port| rig.owns(port)), [true, false]);
    assert_eq!(rig.told_of("10.0.0.100:2001", State::CloseWait, 0), Adopted::Changed);
    assert_eq!([2000, 2001].map(|port| rig.owns(port)), [true, true]);
}

#[test]
fn clients_hear_of_an_mtu_that_leaves_room_for_the_header() {
    let told_mtu = |proxy: bool| {
        let rig = rig(proxy);
        rig.begin();
        let mut long = segment(WAN_MAC, CLIENT, VIP, ACK, [FIRST + 1, NEXT], (&[], &[7; 1600]));
        long[20] = 0x40;
        long[24..26].fill(0);
        let sum = !checksum::sum(&long[14..34]);
        long[24..26].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(rig.push(WAN, &mut long), Verdict::Drop(Drop::TooBig));
        let told = tell::error(&rig.engine.table, &rig.snapshot, rig.now, Drop::TooBig, &long[14..]).unwrap();
        // By a router behind ours.
        let mut got = segment(WAN_MAC, CLIENT, VIP, ACK, [FIRST + 1, NEXT], (&[], &[]));
        rig.push(WAN, &mut got);
        let mut frame = error(LAN_MAC, "10.0.0.253:0", LOCAL, 3, &got[14..]);
        assert_eq!(rig.push(LAN, &mut frame), Verdict::Forward(WAN));
        [&told[26..28], &message(&frame, VIP, CLIENT)[6..8]].map(|mtu| u16::from_be_bytes([mtu[0], mtu[1]]))
    };
    assert_eq!(told_mtu(false), [1500, 1400]);
    assert_eq!(told_mtu(true), [1472, 1372]);
}

#[test]
fn datagrams_of_the_same_mark_are_as_long_as_they_were() {
    let mut rig = fullnat(Protocol::Udp, 1);
    rig.reload(true);
    let mut got = packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0);
    assert_eq!(rig.push(WAN, &mut got), Verdict::Forward(LAN));
    let mut frame = error(LAN_MAC, "10.0.0.253:0", LOCAL, 3, &got[14..]);
    assert_eq!(rig.push(LAN, &mut frame), Verdict::Forward(WAN));
    assert_eq!(message(&frame, VIP, CLIENT)[6..8], 1400u16.to_be_bytes());
}
