//! FTP's control and data connections.

use super::local::with_ttl;
use super::six::{CLIENT6, packet6, publish as publish6, rig as rig6};
use super::*;
use crate::service::{Helper, Limits, Persistence};

const VIRTUAL: &str = "192.0.2.10";

/// The usual router, whose service is of FTP, with two servers.
fn ftp(mut rig: Rig, publish: impl Fn(&mut Rig)) -> Rig {
    rig.spec.address.set_port(0);
    rig.spec.dests.iter_mut().for_each(|dest| dest.address.set_port(0));
    rig.spec.persistence =
        Some(Persistence { seconds: 300, prefix: rig_prefix(&rig), expire_quiescent: false });
    rig.spec.helper = Some(Helper::Ftp);
    publish(&mut rig);
    rig
}

fn rig_prefix(rig: &Rig) -> u8 {
    if rig.spec.address.is_ipv6() { 128 } else { 32 }
}

fn rig() -> Rig {
    ftp(Rig::new(Protocol::Tcp, Mode::Nat, &[1, 1]), Rig::publish)
}

fn to(rig: &Rig, port: u16, flags: u8) -> (Verdict, Vec<u8>) {
    let mut frame = packet(Protocol::Tcp, WAN_MAC, CLIENT, &format!("{VIRTUAL}:{port}"), flags);
    (rig.push(WAN, &mut frame), frame)
}

fn from(rig: &Rig, server: usize, port: u16, to: &str, flags: u8) -> (Verdict, Vec<u8>) {
    let mut frame = packet(Protocol::Tcp, LAN_MAC, &format!("10.0.0.{server}:{port}"), to, flags);
    (rig.push(LAN, &mut frame), frame)
}

/// A control connection, established; its server.
fn control(rig: &Rig) -> usize {
    assert_eq!(to(rig, 21, SYN).0, Verdict::Forward(LAN));
    let server = rig.connections().iter().find(|(.., state)| *state == State::SynRecv).unwrap().1;
    assert_eq!(from(rig, server, 21, CLIENT, SYN | ACK).0, Verdict::Forward(WAN));
    assert_eq!(to(rig, 21, ACK).0, Verdict::Forward(LAN));
    server
}

#[test]
fn a_clients_data_connections_go_where_its_control_connection_went() {
    let mut rig = rig();
    let server = control(&rig);
    for port in [1024, 30_000, 30_001, 65_535] {
        let (verdict, frame) = to(&rig, port, SYN);
        assert_eq!(verdict, Verdict::Forward(LAN));
        let there = format!("10.0.0.{server}:{port}");
        assert_eq!(frame, expect(Protocol::Tcp, (server_mac(server as u32), LAN_MAC), CLIENT, &there, SYN));
        let (_, back) = from(&rig, server, port, CLIENT, SYN | ACK);
        let said = format!("{VIRTUAL}:{port}");
        assert_eq!(back, expect(Protocol::Tcp, (CLIENT_MAC, WAN_MAC), &said, CLIENT, SYN | ACK));
    }
    // Also while its server gets no new clients.
    rig.spec.dests[server - 1].returning = false;
    rig.spec.dests[server - 1].weight = 0;
    rig.publish();
    assert_eq!(to(&rig, 40_000, SYN).0, Verdict::Forward(LAN));
    rig.spec.dests[server - 1].up = false;
    rig.publish();
    assert_eq!(to(&rig, 40_001, SYN).0, Verdict::Punt(Punt::NoService));
}

#[test]
fn without_a_control_connection_there_is_nothing_but_its_port() {
    let rig = rig();
    for port in [20, 22, 80, 1024, 30_000] {
        assert_eq!(to(&rig, port, SYN).0, Verdict::Punt(Punt::NoService), "{port}");
    }
    assert_eq!(to(&rig, 21, SYN).0, Verdict::Forward(LAN));
    assert_eq!(to(&rig, 30_000, SYN).0, Verdict::Punt(Punt::NoService), "no server has answered");
    control(&rig);
    for port in [20, 22, 80, 1023] {
        assert_eq!(to(&rig, port, SYN).0, Verdict::Punt(Punt::NoService), "{port}");
    }
}

#[test]
fn a_server_opens_data_connections_to_its_own_clients_alone_and_from_one_port() {
    let mut rig = rig();
    assert_eq!(from(&rig, 1, 20, CLIENT, SYN).0, Verdict::Punt(Punt::NoService));
    let server = control(&rig);
    let other = 3 - server;
    for (server, port, to, flags) in [
        (other, 20, CLIENT, SYN),
        (server, 21, "198.51.100.7:5000", SYN),
        (server, 2020, CLIENT, SYN),
        (server, 20, CLIENT, SYN | ACK),
        (server, 20, CLIENT, ACK),
        (server, 20, "198.51.100.8:40112", SYN),
    ] {
        assert_eq!(
            from(&rig, server, port, to, flags).0,
            Verdict::Punt(Punt::NoService),
            "{server} {port} {to}"
        );
    }
    let before = rig.connections().len();
    for flags in [SYN, SYN] {
        let (verdict, frame) = from(&rig, server, 20, CLIENT, flags);
        assert_eq!(verdict, Verdict::Forward(WAN));
        let virtual_ = format!("{VIRTUAL}:20");
        assert_eq!(frame, expect(Protocol::Tcp, (CLIENT_MAC, WAN_MAC), &virtual_, CLIENT, flags));
    }
    assert_eq!(rig.connections().len(), before + 1, "sent again it is the same");
    let (verdict, frame) = to(&rig, 20, SYN | ACK);
    assert_eq!(verdict, Verdict::Forward(LAN));
    let there = format!("10.0.0.{server}:20");
    assert_eq!(frame, expect(Protocol::Tcp, (server_mac(server as u32), LAN_MAC), CLIENT, &there, SYN | ACK));
    assert_eq!(from(&rig, server, 20, CLIENT, ACK).0, Verdict::Forward(WAN));
    assert_eq!(rig.live(server), (2, 0), "established, like the control connection");
    rig.wait(1000);
    assert_eq!(
        from(&rig, server, 20, "198.51.100.7:5000", SYN).0,
        Verdict::Punt(Punt::NoService),
        "long ago"
    );
}

#[test]
fn one_that_does_not_get_to_its_server_is_none_after_which_a_client_may_come_back() {
    let mut rig = rig();
    let server = control(&rig);
    // The other one is the router itself, where what has no hop left may have arrived.
    rig.spec.dests[2 - server].address = socket("192.0.2.10:0").into();
    rig.publish();
    rig.wait(200);
    let virtual_ = format!("{VIRTUAL}:30000");
    let mut spent = with_ttl(packet(Protocol::Tcp, WAN_MAC, CLIENT, &virtual_, SYN), 1);
    assert_eq!(rig.push(WAN, &mut spent), Verdict::Drop(Drop::TtlExpired));
    rig.wait(200);
    assert_eq!(to(&rig, 30_000, SYN).0, Verdict::Punt(Punt::NoService));
}

#[test]
fn a_data_connection_from_either_side_is_one_after_which_a_client_may_come_back() {
    for opens in
        [|rig: &Rig, _| to(rig, 30_000, SYN).0, |rig: &Rig, server| from(rig, server, 20, CLIENT, SYN).0]
    {
        let mut rig = rig();
        let server = control(&rig);
        rig.wait(200);
        assert!(matches!(opens(&rig, server), Verdict::Forward(_)));
        rig.wait(200);
        assert_eq!(to(&rig, 30_001, SYN).0, Verdict::Forward(LAN));
        rig.wait(400);
        assert_eq!(to(&rig, 30_002, SYN).0, Verdict::Punt(Punt::NoService));
    }
}

#[test]
fn a_server_may_be_full_of_what_it_opens_itself() {
    let limits = Some(Limits { upper: 3, lower: 2 });
    let limited = |rig: &mut Rig| {
        rig.spec.dests[0].limits = limits;
        rig.publish();
    };
    let mut rig = ftp(Rig::new(Protocol::Tcp, Mode::Nat, &[1]), limited);
    let sweep = |rig: &Rig| rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    let another = |rig: &Rig| {
        let mut frame = packet(Protocol::Tcp, WAN_MAC, "198.51.100.8:1", "192.0.2.10:21", SYN);
        rig.push(WAN, &mut frame)
    };
    let server = control(&rig);
    assert_eq!(to(&rig, 30_000, SYN).0, Verdict::Forward(LAN));
    assert_eq!(from(&rig, server, 20, CLIENT, SYN).0, Verdict::Forward(WAN));
    // Of three the one that has not been answered is over first; until then there are as many as it takes to be full still.
    rig.wait(70);
    sweep(&rig);
    assert_eq!(another(&rig), Verdict::Drop(Drop::NoServer));
    rig.wait(70);
    sweep(&rig);
    assert_eq!(another(&rig), Verdict::Forward(LAN));
}

#[test]
fn a_server_announces_the_virtual_address_on_its_control_connection() {
    let rig = rig();
    let server = control(&rig);
    let line = format!("227 Entering Passive Mode (10,0,0,{server},117,48).\r\n");
    let said = "227 Entering Passive Mod(192,0,2,10,117,48).\r\n";
    assert_eq!(line.len(), said.len());
    let with = |frame: Vec<u8>, data: &str| {
        let mut frame = frame;
        frame.truncate(54);
        frame.extend(data.as_bytes());
        frame[17] = (frame.len() - 14) as u8;
        for at in [24, 50] {
            frame[at..at + 2].fill(0);
        }
        let sum = checksum::sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
        let pseudo = [&frame[26..34], &[0, 6, 0, frame.len() as u8 - 34], &frame[34..]].concat();
        let sum = checksum::sum(&pseudo);
        frame[50..52].copy_from_slice(&(!sum).to_be_bytes());
        frame
    };
    for (port, expected) in [(21, said), (30_000, &*line)] {
        if port != 21 {
            to(&rig, port, SYN);
        }
        let from = format!("10.0.0.{server}:{port}");
        let mut frame = with(packet(Protocol::Tcp, LAN_MAC, &from, CLIENT, ACK), &line);
        assert_eq!(rig.push(LAN, &mut frame), Verdict::Forward(WAN));
        let macs = (CLIENT_MAC, WAN_MAC);
        let got = expect(Protocol::Tcp, macs, &format!("{VIRTUAL}:{port}"), CLIENT, ACK);
        assert_eq!(frame, with(got, expected), "port {port}");
    }
    assert_eq!(rig.engine.counters.ftp_unchanged.get(), 0);
    let short = with(
        packet(Protocol::Tcp, LAN_MAC, &format!("10.0.0.{server}:21"), CLIENT, ACK),
        "227 (10,0,0,1,4,1)\r\n",
    );
    assert_eq!(rig.push(LAN, &mut short.clone()), Verdict::Forward(WAN));
    assert_eq!(rig.engine.counters.ftp_unchanged.get(), 1, "without prose there is no room");
}

#[test]
fn the_same_by_ipv6() {
    let rig = ftp(rig6(Protocol::Tcp, Mode::Nat, &[1]), publish6);
    let (vip, server) = (|port| format!("[2001:db8::10]:{port}"), |port| super::six::server(1, port));
    let inward = |port, flags| {
        let mut frame =
            packet6(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), (CLIENT6, &vip(port)), (flags, 64), &[]);
        let verdict = rig.push(WAN, &mut frame);
        let got =
            packet6(Protocol::Tcp, (server_mac(1), LAN_MAC), (CLIENT6, &server(port)), (flags, 63), &[]);
        assert_eq!(frame == got, verdict == Verdict::Forward(LAN));
        verdict
    };
    let outward = |port, flags| {
        let mut frame =
            packet6(Protocol::Tcp, (LAN_MAC, CLIENT_MAC), (&server(port), CLIENT6), (flags, 64), &[]);
        let verdict = rig.push(LAN, &mut frame);
        let got = packet6(Protocol::Tcp, (CLIENT_MAC, WAN_MAC), (&vip(port), CLIENT6), (flags, 63), &[]);
        assert_eq!(frame == got, verdict == Verdict::Forward(WAN));
        verdict
    };
    assert_eq!(inward(30_000, SYN), Verdict::Punt(Punt::NoService));
    assert_eq!(outward(20, SYN), Verdict::Punt(Punt::NoService));
    assert_eq!(inward(21, SYN), Verdict::Forward(LAN));
    assert_eq!(outward(21, SYN | ACK), Verdict::Forward(WAN));
    assert_eq!(inward(21, ACK), Verdict::Forward(LAN));
    assert_eq!(inward(30_000, SYN), Verdict::Forward(LAN));
    assert_eq!(outward(30_000, SYN | ACK), Verdict::Forward(WAN));
    assert_eq!(outward(20, SYN), Verdict::Forward(WAN));
    assert_eq!(inward(20, SYN | ACK), Verdict::Forward(LAN));
}
