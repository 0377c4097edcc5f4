//! Services of one address and port that only the port of the router tells apart, by which packets come in.

use super::fragments::{Poller, large, mend, split};
use super::marks::marked;
use super::related::{error, hop, message};
use super::*;
use crate::scheduler::{FLOW_KEY, NextRoster, RosterMember, RosterSpec, Rosters};
use crate::snapshot::{Incoming, Part};

const END: &str = "192.0.2.10:80";
const OTHER: &str = "198.51.100.8:40112";

/// Port 80 of the address is one mark's of what comes in on the WAN, with the servers 1 and 2, and another's of all else, with server 4; all
/// that no mark has is a service's of all ports, with server 3. Port 443 is the first one's on the WAN alone.
fn rig(protocol: Protocol) -> Rig {
    let mut rig = Rig::new(protocol, Mode::Nat, &[1, 1]);
    let dests = |id, address: &str| vec![DestSpec::new(DestId::new(id).unwrap(), socket(address))];
    let service = |end: &str| ServiceSpec::new(socket(end), protocol, Mode::Nat);
    let mut specs = marked(&rig, &[(protocol, "192.0.2.10", 80..=443)]);
    specs[1].ports = vec![80..=80, 443..=443];
    specs[1].incoming =
        Some(Incoming { by: [(WAN, vec![80..=80, 443..=443])].into(), ..Incoming::default() });
    let rest = ServiceSpec { dests: dests(30, "10.0.0.3:0"), ..service("192.0.2.10:0") };
    let other =
        ServiceSpec { part: Some(Part::Home), dests: dests(40, "10.0.0.4:0"), ..service("0.0.0.20:0") };
    let mut face = dests(41, "10.0.0.4:0");
    face[0].home = DestId::new(40);
    let face = ServiceSpec {
        address: socket("192.0.2.10:0").into(),
        ports: vec![80..=80],
        incoming: Some(Incoming { by: [(WAN, Vec::new())].into(), others: vec![80..=80] }),
        part: Some(Part::Face(3)),
        dests: face,
        ..other.clone()
    };
    specs.extend([rest, other, face]);
    rig.snapshot = compile(3, &specs, []);
    rig
}

fn mac(port: PortIndex) -> [u8; 6] {
    if port == WAN { WAN_MAC } else { LAN_MAC }
}

/// The server that a client's packet to a port goes to which comes in here.
fn to(rig: &Rig, incoming: PortIndex, (client, port): (&str, u16), flags: u8) -> u8 {
    let end = format!("192.0.2.10:{port}");
    let mut frame = packet(Protocol::Tcp, mac(incoming), client, &end, flags);
    assert_eq!(rig.push(incoming, &mut frame), Verdict::Forward(LAN), "{client} {port} by {incoming}");
    frame[5]
}

#[test]
fn the_port_that_a_packet_comes_in_on_decides_who_has_it() {
    let rig = rig(Protocol::Tcp);
    let by_wan = to(&rig, WAN, (CLIENT, 80), SYN);
    assert!([1, 2].contains(&by_wan));
    assert_eq!(to(&rig, LAN, (OTHER, 80), SYN), 4);
    assert!([1, 2].contains(&to(&rig, WAN, (CLIENT, 443), SYN)));
    assert_eq!(to(&rig, LAN, (OTHER, 443), SYN), 3, "what no mark has");
    for (incoming, port, server) in [(WAN, 22, 3), (LAN, 22, 3)] {
        assert_eq!(to(&rig, incoming, ("198.51.100.9:1", port), SYN), server);
    }
    for (client, server) in [(CLIENT, by_wan), (OTHER, 4)] {
        let mut reply = packet(Protocol::Tcp, LAN_MAC, &format!("10.0.0.{server}:80"), client, SYN | ACK);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, expect(Protocol::Tcp, (CLIENT_MAC, WAN_MAC), END, client, SYN | ACK));
    }
}

#[test]
fn a_connection_goes_on_with_whom_it_has_begun_whichever_port_it_comes_by() {
    let rig = rig(Protocol::Tcp);
    for (client, port, begins, goes_on) in
        [(CLIENT, 80, WAN, LAN), (OTHER, 80, LAN, WAN), (CLIENT, 443, WAN, LAN), (OTHER, 443, LAN, WAN)]
    {
        let server = to(&rig, begins, (client, port), SYN);
        let known = rig.connections().len();
        for (incoming, flags) in [(goes_on, SYN), (goes_on, ACK), (begins, ACK)] {
            let end = format!("192.0.2.10:{port}");
            let frame = packet(Protocol::Tcp, mac(incoming), client, &end, flags);
            let explained = explain(&rig.snapshot, &rig.engine.table, rig.now, incoming, &frame).unwrap();
            assert_eq!(explained.frame[5], server, "{client} {port}");
            assert!(explained.connection.is_some() && explained.reason.is_none());
            assert_eq!(to(&rig, incoming, (client, port), flags), server);
        }
        assert_eq!(rig.connections().len(), known);
    }
    let mut stray = packet(Protocol::Tcp, LAN_MAC, "198.51.100.9:1", END, ACK);
    assert_eq!(rig.push(LAN, &mut stray), Verdict::Punt(Punt::NoConnection));
}

#[test]
fn it_does_so_where_nothing_can_begin_as_well() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let mut specs = marked(&rig, &[(Protocol::Tcp, "192.0.2.10", 80..=80)]);
    specs[1].incoming = Some(Incoming { by: [(WAN, vec![80..=80])].into(), others: Vec::new() });
    rig.snapshot = compile(3, &specs, []);
    let sent = |incoming, flags| packet(Protocol::Tcp, mac(incoming), CLIENT, END, flags);
    let ended = |incoming| {
        let mut frame = sent(incoming, ACK);
        frame[22] = 1;
        rig.push(incoming, &mut mend(frame))
    };
    let nobodys = Verdict::Punt(Punt::NoService);
    assert_eq!((rig.push(LAN, &mut sent(LAN, SYN)), ended(LAN)), (nobodys, nobodys));
    let early = explain(&rig.snapshot, &rig.engine.table, rig.now, LAN, &sent(LAN, SYN)).unwrap();
    assert_eq!((early.hit, early.verdict), (None, nobodys));
    to(&rig, WAN, (CLIENT, 80), SYN);
    to(&rig, LAN, (CLIENT, 80), ACK);
    assert_eq!(ended(LAN), Verdict::Drop(Drop::TtlExpired));
    let known = explain(&rig.snapshot, &rig.engine.table, rig.now, LAN, &sent(LAN, ACK)).unwrap();
    assert!(known.hit.is_some() && known.connection.is_some());
    // Once it is over another one begins where it may, and not here.
    to(&rig, LAN, (CLIENT, 80), RST);
    assert_eq!(rig.push(LAN, &mut sent(LAN, SYN)), nobodys);
    assert_eq!(rig.connections(), []);
    to(&rig, WAN, (CLIENT, 80), SYN);
}

#[test]
fn errors_find_a_connection_by_whichever_port_they_come() {
    let rig = rig(Protocol::Tcp);
    for (client, begins) in [(CLIENT, WAN), (OTHER, LAN)] {
        let request = packet(Protocol::Tcp, mac(begins), client, END, SYN);
        let mut got = request.clone();
        assert_eq!(rig.push(begins, &mut got), Verdict::Forward(LAN));
        let server = format!("10.0.0.{}:80", got[5]);
        let sent = packet(Protocol::Tcp, LAN_MAC, &server, client, SYN | ACK);
        let mut reply = sent.clone();
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        for incoming in [WAN, LAN] {
            let mut about_reply = error(mac(incoming), "203.0.113.1:0", END, 3, &reply[14..]);
            assert_eq!(rig.push(incoming, &mut about_reply), Verdict::Forward(LAN), "{client}");
            assert_eq!(message(&about_reply, "203.0.113.1:0", &server)[8..], hop(&sent));
            let mut about_request = error(mac(incoming), "10.0.0.253:0", client, 3, &got[14..]);
            assert_eq!(rig.push(incoming, &mut about_request), Verdict::Forward(WAN), "{client}");
            assert_eq!(message(&about_request, END, client)[8..], hop(&request));
        }
    }
}

/// What has no entry since its scheduler finds it again has begun where the error comes in.
#[test]
fn errors_find_what_has_no_word() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let mut specs = marked(&rig, &[(Protocol::Tcp, "192.0.2.10", 80..=80)]);
    specs[1].incoming = Some(Incoming { by: [(LAN, vec![80..=80])].into(), others: Vec::new() });
    let (dest, address) = (DestId::new(30).unwrap(), socket("10.0.0.3:0"));
    let members = vec![RosterMember { address: address.into(), weight: 1, dest: Some(dest) }];
    let current = RosterSpec { scheduler: Scheduler::Rendezvous, key: FLOW_KEY, members };
    specs.push(ServiceSpec {
        scheduler: Scheduler::Rendezvous,
        rosters: Some(Rosters { current, next: NextRoster::Same }),
        dests: vec![DestSpec::new(dest, address)],
        ..ServiceSpec::new(socket("192.0.2.10:0"), Protocol::Tcp, Mode::Dr)
    });
    rig.snapshot = compile(3, &specs, []);
    assert_eq!((to(&rig, WAN, (CLIENT, 80), SYN), rig.connections()), (3, Vec::new()));
    let reply = packet(Protocol::Tcp, LAN_MAC, END, CLIENT, SYN | ACK);
    let mut about_reply = error(WAN_MAC, "203.0.113.1:0", END, 3, &hop(&reply));
    assert_eq!((rig.push(WAN, &mut about_reply), about_reply[5]), (Verdict::Forward(LAN), 3));
}

#[test]
fn fragments_follow_their_first_by_whichever_port_they_come() {
    let rig = rig(Protocol::Udp);
    for (client, begins, server) in [(CLIENT, WAN, 2), (OTHER, LAN, 4)] {
        let datagram = |incoming| large(&packet(Protocol::Udp, mac(incoming), client, END, 0), 2000);
        let begun = split(&datagram(begins), 800);
        let elsewhere = split(&datagram(WAN + LAN - begins), 800);
        let mut poller = Poller::new(&rig);
        // The last first, by the other port; then all of it in order, and the first once more by the other port.
        poller.push(rig.now, WAN + LAN - begins, &elsewhere[2]);
        poller.push(rig.now, begins, &begun[0]);
        poller.push(rig.now, WAN + LAN - begins, &elsewhere[1]);
        poller.push(rig.now, WAN + LAN - begins, &elsewhere[0]);
        assert_eq!(poller.verdicts(), [Verdict::Forward(LAN); 4], "{client}");
        assert!(poller.out.iter().all(|(_, frame)| frame[5] == server), "{client}");
    }
}
