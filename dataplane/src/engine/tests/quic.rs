//! Datagrams that name their server.

use super::*;
use crate::quic::{Config, ServerId};

/// A service whose n-th server has the id n.
fn rig(mode: Mode, one_packet: bool) -> Rig {
    let mut rig = Rig::new(Protocol::Udp, mode, &[1, 1, 1]);
    rig.spec.quic = vec![Config { number: 0, server_id: 1, nonce: 4, key: None }];
    rig.spec.one_packet = one_packet;
    rig.spec.pool = (mode == Mode::Fullnat).then(|| fullnat::pool("10.0.0.100:2000", 6)).flatten();
    for (dest, n) in rig.spec.dests.iter_mut().zip(1..) {
        dest.quic_id = ServerId::new(&[n]);
    }
    rig.publish();
    rig
}

/// A datagram of a connection whose id says `server`; of no server with 0.
fn datagram(client: &str, server: u8) -> Vec<u8> {
    // The payload of `packet` is seven bytes: a short header, an id of configuration 0, a nonce.
    let mut frame = packet(Protocol::Udp, WAN_MAC, client, VIP, 0);
    let start = frame.len() - 7;
    frame[start..].copy_from_slice(&[0x40, 0x00, server, 1, 2, 3, 4]);
    frame
}

/// Which server it goes to.
fn sent(rig: &Rig, client: &str, server: u8) -> u8 {
    let mut frame = datagram(client, server);
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN), "{client} {server}");
    frame[5]
}

const MOVED: &str = "203.0.113.9:50000";

#[test]
fn a_client_that_moves_stays_with_its_server() {
    let remembered = [Mode::Nat, Mode::Dr, Mode::Fullnat].map(|mode| (mode, false));
    for (mode, one_packet) in remembered.into_iter().chain([(Mode::Nat, true), (Mode::Dr, true)]) {
        let rig = rig(mode, one_packet);
        for client in [CLIENT, MOVED] {
            for server in [3, 1, 2, 3, 3, 2] {
                assert_eq!(sent(&rig, client, server), server, "{mode} {one_packet} {client}");
            }
        }
    }
}

#[test]
fn what_stands_behind_a_datagram_is_none_of_it() {
    let scheduled = sent(&rig(Mode::Nat, false), CLIENT, 0);
    for server in 1..=3 {
        let mut frame = datagram(CLIENT, server);
        // Its last byte is padding, without which the id is too short.
        frame[39] -= 1;
        assert_eq!(rig(Mode::Nat, false).push(WAN, &mut frame), Verdict::Forward(LAN));
        assert_eq!(frame[5], scheduled, "{server}");
    }
}

#[test]
fn replies_of_each_server_are_the_services() {
    let rig = rig(Mode::Nat, false);
    for n in [1, 3] {
        assert_eq!(sent(&rig, CLIENT, n), n);
        let server = format!("10.0.0.{n}:8080");
        let mut reply = packet(Protocol::Udp, LAN_MAC, &server, CLIENT, 0);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, expect(Protocol::Udp, (CLIENT_MAC, WAN_MAC), VIP, CLIENT, 0));
    }
    let servers: BTreeSet<usize> = rig.connections().into_iter().map(|(_, dest, _)| dest).collect();
    assert_eq!(servers, BTreeSet::from([1, 3]), "one for each server, of one client and port");
}

#[test]
fn with_full_nat_each_server_answers_to_a_port_of_its_own() {
    let rig = rig(Mode::Fullnat, false);
    let mut frames = [1, 3].map(|n| (n, datagram(CLIENT, n)));
    for (n, frame) in &mut frames {
        assert_eq!((rig.push(WAN, frame), frame[5]), (Verdict::Forward(LAN), *n));
    }
    for (n, frame) in &frames {
        let local = format!("10.0.0.100:{}", u16::from_be_bytes([frame[34], frame[35]]));
        let mut reply = packet(Protocol::Udp, LAN_MAC, &format!("10.0.0.{n}:80"), &local, 0);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, expect(Protocol::Udp, (CLIENT_MAC, WAN_MAC), VIP, CLIENT, 0));
    }
}

#[test]
fn an_id_of_nobody_goes_where_its_clients_last_ones_went() {
    let mut rig = rig(Mode::Nat, false);
    assert_eq!(sent(&rig, CLIENT, 2), 2);
    assert_eq!(sent(&rig, CLIENT, 0), 2, "by the connection");
    let scheduled = sent(&rig, MOVED, 0);
    assert_eq!(sent(&rig, MOVED, 9), scheduled);

    rig.spec.dests[1].up = false;
    rig.publish();
    let other = sent(&rig, CLIENT, 2);
    assert_ne!(other, 2, "the server is down");
    assert_eq!(sent(&rig, CLIENT, 2), other);
    rig.spec.dests[1].up = true;
    rig.spec.dests[1].weight = 0;
    rig.publish();
    assert_eq!(sent(&rig, MOVED, 2), 2, "one of weight 0 keeps its connections");
}
