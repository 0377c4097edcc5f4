//! The data path on bytes: what goes in, what comes out, and which counter moves.

mod adopt;
mod all_ports;
mod at_risk;
mod families;
mod fragments;
mod ftp;
mod fullnat;
mod fullnat_proxy;
mod gate;
mod incoming;
mod ipsec;
mod limits;
mod local;
mod marks;
mod persist;
mod quic;
mod related;
mod route;
mod sctp;
mod six;
mod snat;
mod tell;
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use super::*;
use crate::admission::Sources;
use crate::fib::{Adjacency, Fib, Route, Via};
use crate::service::{Limits, Mode, Persistence, Protocol, Scheduler, SchedulerFlag, State};
use crate::snapshot::{DestSpec, PortSpec, Removed, ServiceSpec, TunnelSpec};
use crate::table::{DestId, HashKey};
use crate::told::Adopted;
use crate::wire::checksum;
use crate::wire::transport::{ACK, FIN, RST, SYN};
use crate::wire::version::Version;

const WAN: PortIndex = 0;
const LAN: PortIndex = 1;
const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const CLIENT: &str = "198.51.100.7:40112";
const ROUTER: &str = "10.0.0.254:40112";
const VIP: &str = "192.0.2.10:80";

/// A router with one service, and the means to push packets through it.
struct Rig {
    engine: Engine,
    snapshot: Snapshot,
    spec: ServiceSpec,
    now: Tick,
    generation: u64,
}

fn socket(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn server_mac(n: u32) -> [u8; 6] {
    [2, 0, 0, 0, 2, n as u8]
}

impl Rig {
    fn new(protocol: Protocol, mode: Mode, weights: &[u32]) -> Self {
        let port = if mode == Mode::Nat { 8080 } else { 80 };
        let dests = weights.iter().zip(1..).map(|(&weight, n)| DestSpec {
            weight,
            last_weight: weight,
            ..DestSpec::new(DestId::new(n).unwrap(), socket(&format!("10.0.0.{n}:{port}")))
        });
        let spec = ServiceSpec {
            scheduler: Scheduler::Rr,
            dests: dests.collect(),
            ..ServiceSpec::new(socket(VIP), protocol, mode)
        };
        let table = Arc::new(Table::new(64, HashKey { blind: 1, factor: 3 }));
        let engine = Engine::new(0, table, Arc::default());
        let mut rig = Rig {
            engine,
            snapshot: compile(1, std::slice::from_ref(&spec), []),
            spec,
            now: Tick(1000),
            generation: 1,
        };
        rig.publish();
        rig
    }

    fn publish(&mut self) {
        self.generation += 1;
        self.snapshot = compile(self.generation, std::slice::from_ref(&self.spec), []);
    }

    /// One packet in on a port; what came of it.
    fn push(&self, port: PortIndex, packet: &mut Vec<u8>) -> Verdict {
        let mut verdicts = [Verdict::Drop(Drop::Runt); BURST];
        self.engine.process(
            &self.snapshot,
            self.now,
            port,
            std::slice::from_mut(packet),
            &mut verdicts,
            &mut (),
        );
        verdicts[0]
    }

    fn connections(&self) -> Vec<(SocketAddrV4, usize, State)> {
        let table = &self.engine.table;
        table.words(0..table.buckets()).map(|w| (w.client().socket(), w.dest_number(), w.state())).collect()
    }

    /// (active, inactive) of the n-th server.
    fn live(&self, n: usize) -> (u32, u32) {
        self.spec.dests[n - 1].gauge.get()
    }

    fn wait(&mut self, seconds: u64) {
        self.now.0 += seconds * 4;
    }
}

fn compile(
    generation: u64,
    specs: &[ServiceSpec],
    removed: impl IntoIterator<Item = (DestId, Removed)>,
) -> Snapshot {
    let ports = vec![PortSpec { mac: WAN_MAC }, PortSpec { mac: LAN_MAC }];
    let gateway = u32::from(*socket("192.0.2.254:0").ip());
    let routes = [
        Route { prefix: 0, length: 0, via: Via::Gateway(WAN, gateway) },
        Route { prefix: 0x0A00_0000, length: 24, via: Via::OnLink(LAN) },
        Route { prefix: 0x0A00_00FE, length: 32, via: Via::Own },
        Route { prefix: 0xC000_0232, length: 32, via: Via::Own },
    ];
    let mut neighbours = vec![((WAN, gateway), Adjacency::new(WAN, 1500, CLIENT_MAC, WAN_MAC))];
    for n in 1..=9 {
        neighbours.push(((LAN, 0x0A00_0000 + n), Adjacency::new(LAN, 1500, server_mac(n), LAN_MAC)));
    }
    Snapshot::new(generation, ports, specs, removed, Fib::new(routes, neighbours))
}

/// A good packet with payload "payload".
fn packet(protocol: Protocol, mac: [u8; 6], from: &str, to: &str, flags: u8) -> Vec<u8> {
    let (from, to) = (socket(from), socket(to));
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    match protocol {
        Protocol::Tcp => segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0x20, 0, 0, 0, 0, 0]),
        Protocol::Udp => segment.extend([0, 15, 0, 0]),
        Protocol::Sctp => unreachable!("has a file of its own"),
    }
    segment.extend(b"payload");
    let checksum_at = if protocol == Protocol::Tcp { 16 } else { 6 };
    let mut pseudo: Vec<u8> = [from.ip().octets(), to.ip().octets()].concat();
    pseudo.extend([0, protocol.number(), 0, segment.len() as u8]);
    let sum = checksum::sum(&[pseudo, segment.clone()].concat());
    segment[checksum_at..checksum_at + 2].copy_from_slice(&(!sum).to_be_bytes());

    let mut ip = vec![0x45, 0, 0, 20 + segment.len() as u8, 0, 7, 0x40, 0, 64, protocol.number(), 0, 0];
    ip.extend(from.ip().octets());
    ip.extend(to.ip().octets());
    let sum = checksum::sum(&ip);
    ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    [&mac[..], &CLIENT_MAC, &[0x08, 0x00], &ip, &segment].concat()
}

fn from_client(flags: u8) -> Vec<u8> {
    packet(Protocol::Tcp, WAN_MAC, CLIENT, VIP, flags)
}

fn from_server(n: u32, flags: u8) -> Vec<u8> {
    packet(Protocol::Tcp, LAN_MAC, &format!("10.0.0.{n}:8080"), CLIENT, flags)
}

/// What a frame would have to be if it was made, not rewritten: all checksums from scratch.
fn expect(protocol: Protocol, macs: ([u8; 6], [u8; 6]), from: &str, to: &str, flags: u8) -> Vec<u8> {
    let mut frame = packet(protocol, macs.0, from, to, flags);
    frame[6..12].copy_from_slice(&macs.1);
    frame[22] = 63;
    frame[24..26].fill(0);
    let sum = checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
    frame
}

#[test]
fn nat_rewrites_both_directions_to_the_byte() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rig = Rig::new(protocol, Mode::Nat, &[1]);
        let mut request = packet(protocol, WAN_MAC, CLIENT, VIP, SYN);
        assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
        assert_eq!(request, expect(protocol, (server_mac(1), LAN_MAC), CLIENT, "10.0.0.1:8080", SYN));

        let mut reply = packet(protocol, LAN_MAC, "10.0.0.1:8080", CLIENT, SYN | ACK);
        assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
        assert_eq!(reply, expect(protocol, (CLIENT_MAC, WAN_MAC), VIP, CLIENT, SYN | ACK));
    }
}

#[test]
fn direct_routing_changes_macs_and_ttl_only() {
    let rig = Rig::new(Protocol::Tcp, Mode::Dr, &[1]);
    let mut request = from_client(SYN);
    assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
    assert_eq!(request, expect(Protocol::Tcp, (server_mac(1), LAN_MAC), CLIENT, VIP, SYN));
}

#[test]
fn udp_without_checksum_stays_without() {
    let rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    let mut request = packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0);
    request[40..42].fill(0);
    assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
    assert_eq!(request[40..42], [0, 0]);
}

#[test]
fn a_damaged_payload_stays_damaged() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let mut request = from_client(SYN);
    *request.last_mut().unwrap() ^= 1;
    assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
    let mut good = expect(Protocol::Tcp, (server_mac(1), LAN_MAC), CLIENT, "10.0.0.1:8080", SYN);
    *good.last_mut().unwrap() ^= 1;
    assert_eq!(request, good, "the checksum still tells");
}

#[test]
fn a_connections_life_moves_the_gauges_once_each() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let step = |rig: &Rig, port, mut packet: Vec<u8>| {
        assert!(matches!(rig.push(port, &mut packet), Verdict::Forward(_)));
        (rig.connections()[0].2, rig.live(1))
    };
    assert_eq!(step(&rig, WAN, from_client(SYN)), (State::SynRecv, (1, 0)));
    assert_eq!(step(&rig, WAN, from_client(SYN)), (State::SynRecv, (1, 0)), "a retransmission");
    assert_eq!(step(&rig, LAN, from_server(1, SYN | ACK)), (State::SynRecv, (1, 0)));
    assert_eq!(step(&rig, WAN, from_client(ACK)), (State::Established, (1, 0)));
    assert_eq!(step(&rig, LAN, from_server(1, FIN | ACK)), (State::FinWait, (0, 1)));
    assert_eq!(step(&rig, WAN, from_client(FIN | ACK)), (State::TimeWait, (0, 1)));
    let traffic = rig.spec.dests[0].traffic[0].get();
    assert_eq!((traffic.connections, traffic.packets_in, traffic.packets_out), (1, 4, 2));
    assert_eq!((traffic.bytes_in, traffic.bytes_out), (4 * 47, 2 * 47));

    rig.wait(119);
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    assert_eq!(rig.live(1), (0, 1), "not yet");
    rig.wait(3);
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    assert_eq!((rig.connections().len(), rig.live(1)), (0, (0, 0)));
}

#[test]
fn a_port_reused_in_time_wait_is_rescheduled_at_once() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 1]);
    for round in 0..6 {
        let server = 2 - round % 2; // rr: B, A, B, ...
        assert_eq!(rig.push(WAN, &mut from_client(SYN)), Verdict::Forward(LAN), "round {round}");
        rig.push(LAN, &mut from_server(server, SYN | ACK));
        rig.push(WAN, &mut from_client(ACK));
        rig.push(LAN, &mut from_server(server, FIN | ACK));
        rig.push(WAN, &mut from_client(FIN | ACK));
        assert_eq!(rig.connections(), [(socket(CLIENT), server as usize, State::TimeWait)]);
        let expected = if server == 1 { [(0, 1), (0, 0)] } else { [(0, 0), (0, 1)] };
        assert_eq!([rig.live(1), rig.live(2)], expected);
    }
}

#[test]
fn expiry_is_lazy_and_a_stale_word_is_a_miss() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    rig.push(WAN, &mut from_client(SYN));
    rig.push(WAN, &mut from_client(ACK));
    rig.wait(902);
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Punt(Punt::NoConnection));
    assert_eq!(rig.push(LAN, &mut from_server(1, ACK)), Verdict::Punt(Punt::NoService));
    assert_eq!(rig.push(WAN, &mut from_client(SYN)), Verdict::Forward(LAN));
    assert_eq!((rig.connections().len(), rig.live(1)), (1, (1, 0)));
}

#[test]
fn quiesced_server_keeps_its_connections_and_gets_no_new_ones() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    rig.push(WAN, &mut from_client(SYN));
    rig.push(WAN, &mut from_client(ACK));
    rig.spec.dests[0].weight = 0;
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Forward(LAN));
    let mut other = packet(Protocol::Tcp, WAN_MAC, "198.51.100.8:1", VIP, SYN);
    assert_eq!(rig.push(WAN, &mut other), Verdict::Drop(Drop::NoServer));
}

#[test]
fn a_dead_servers_half_open_connection_moves_on_with_the_next_syn() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 1]);
    rig.push(WAN, &mut from_client(SYN));
    assert_eq!(rig.connections()[0].1, 2);
    rig.spec.dests[1].up = false;
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(SYN)), Verdict::Forward(LAN));
    assert_eq!(rig.connections()[0].1, 1);
    assert_eq!([rig.live(1), rig.live(2)], [(1, 0), (0, 0)]);
}

#[test]
fn a_removed_servers_connections_are_misses_and_are_swept() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 1]);
    rig.push(WAN, &mut from_client(SYN));
    rig.push(WAN, &mut from_client(ACK));
    let removed = rig.spec.dests.pop().unwrap();
    rig.snapshot = compile(9, std::slice::from_ref(&rig.spec), [(removed.id, Removed::default())]);
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Punt(Punt::NoConnection));
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    assert_eq!(rig.connections().len(), 0);
}

/// From, to, sequence number and flags of a RST whose checksums are right.
fn shown(reset: &[u8]) -> (SocketAddrV4, SocketAddrV4, u32, u8) {
    let (ip, tcp) = reset.split_at(20);
    assert_eq!(checksum::sum(ip), 0xFFFF);
    let pseudo = [&ip[12..20], &[0, 6, 0, 20], tcp].concat();
    assert_eq!(checksum::sum(&pseudo), 0xFFFF);
    let end = |address: &[u8], port: &[u8]| {
        let address: [u8; 4] = address.try_into().unwrap();
        SocketAddrV4::new(address.into(), u16::from_be_bytes(port.try_into().unwrap()))
    };
    let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
    (end(&ip[12..16], &tcp[..2]), end(&ip[16..20], &tcp[2..4]), sequence, tcp[13])
}

/// A router that is to reset a connection of its only server, and has established it.
fn resetting(mode: Mode) -> Rig {
    let mut rig = Rig::new(Protocol::Tcp, mode, &[1]);
    rig.push(WAN, &mut from_client(SYN));
    rig.push(WAN, &mut from_client(ACK));
    (rig.spec.dests[0].reset, rig.spec.dests[0].weight) = (true, 0);
    rig.publish();
    rig
}

#[test]
fn a_reset_tells_both_ends_what_they_expect() {
    let (client, vip, server) = (socket(CLIENT), socket(VIP), socket("10.0.0.1:8080"));
    // Each packet has the sequence number 1 and acknowledges 2.
    for (port, mut frame, expected) in [
        (WAN, from_client(ACK), [(vip, client, 2, RST), (client, server, 1, RST)]),
        (LAN, from_server(1, ACK), [(client, server, 2, RST), (vip, client, 1, RST)]),
    ] {
        let rig = resetting(Mode::Nat);
        assert_eq!(rig.push(port, &mut frame), Verdict::Punt(Punt::Reset));
        let resets = reset::reset(&rig.engine.table, &rig.snapshot, &frame[14..]);
        assert_eq!(resets.iter().map(|reset| shown(reset)).collect::<Vec<_>>(), expected);
        assert_eq!((rig.connections().len(), rig.live(1)), (0, (0, 0)));
        assert_eq!(reset::reset(&rig.engine.table, &rig.snapshot, &frame[14..]), [[0; 40]; 0], "once");
    }
}

#[test]
fn with_direct_routing_a_reset_tells_the_client() {
    let rig = resetting(Mode::Dr);
    let mut frame = from_client(ACK);
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Punt(Punt::Reset));
    let resets = reset::reset(&rig.engine.table, &rig.snapshot, &frame[14..]);
    assert_eq!(
        resets.iter().map(|reset| shown(reset)).collect::<Vec<_>>(),
        [(socket(VIP), socket(CLIENT), 2, RST)]
    );
}

#[test]
fn a_connection_to_be_reset_may_end_or_begin_anew() {
    let rig = resetting(Mode::Nat);
    assert_eq!(rig.push(WAN, &mut from_client(RST)), Verdict::Forward(LAN));
    let mut rig = resetting(Mode::Nat);
    let other = DestSpec {
        id: DestId::new(2).unwrap(),
        address: socket("10.0.0.2:8080").into(),
        weight: 1,
        listed: true,
        reset: false,
        ..rig.spec.dests[0].clone()
    };
    rig.spec.dests.push(other);
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(SYN)), Verdict::Forward(LAN));
    assert_eq!(rig.connections(), [(socket(CLIENT), 2, State::SynRecv)]);
}

#[test]
fn nothing_else_is_reset() {
    let rig = resetting(Mode::Nat);
    for frame in [
        packet(Protocol::Tcp, WAN_MAC, "198.51.100.8:1", VIP, ACK),
        packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0),
        vec![0; 60],
        from_client(ACK)[..40].to_vec(),
    ] {
        assert_eq!(reset::reset(&rig.engine.table, &rig.snapshot, &frame[14..]), [[0; 40]; 0]);
    }
    assert_eq!(rig.connections().len(), 1);
}

#[test]
fn a_full_table_gives_up_what_ended_then_what_never_began_but_never_the_established() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    rig.engine.table = Arc::new(Table::new(8, HashKey { blind: 1, factor: 3 })); // 16 slots
    let client = |n: u32| format!("198.51.100.{}:{}", n % 250, 1000 + n);
    let send =
        |rig: &Rig, n, flags| rig.push(WAN, &mut packet(Protocol::Tcp, WAN_MAC, &client(n), VIP, flags));
    let mut established = Vec::new();
    for n in 0..200 {
        if send(&rig, n, SYN) == Verdict::Forward(LAN)
            && n < 10
            && send(&rig, n, ACK) == Verdict::Forward(LAN)
        {
            established.push(n);
        }
    }
    assert!(established.len() >= 8);
    for n in established {
        assert_eq!(send(&rig, n, ACK), Verdict::Forward(LAN), "connection {n} was established");
    }
    let live = rig.connections().len() as u32;
    assert_eq!(rig.live(1), (live, 0), "evictions are accounted");
}

#[test]
fn only_a_syn_begins_a_connection() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    for flags in [ACK, FIN | ACK, RST, SYN | RST, 0] {
        assert_eq!(rig.push(WAN, &mut from_client(flags)), Verdict::Punt(Punt::NoConnection));
    }
    assert_eq!(rig.push(LAN, &mut from_server(1, SYN | ACK)), Verdict::Punt(Punt::NoService));
    assert_eq!(rig.connections(), []);
}

#[test]
fn what_matches_no_service_is_linuxs() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let mut other_port = packet(Protocol::Tcp, WAN_MAC, CLIENT, "192.0.2.10:22", SYN);
    assert_eq!(rig.push(WAN, &mut other_port), Verdict::Punt(Punt::NoService));
    let mut other_protocol = packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0);
    assert_eq!(rig.push(WAN, &mut other_protocol), Verdict::Punt(Punt::NoService));
}

#[test]
fn the_answer_to_a_check_has_arrived_whatever_hops_it_has_left() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let from = |to: &str| {
        let mut frame = packet(Protocol::Tcp, LAN_MAC, "10.0.0.1:8080", to, SYN | ACK);
        u32::set_ttl(&mut frame[14..34], 1);
        frame
    };
    assert_eq!(rig.push(LAN, &mut from("10.0.0.254:40000")), Verdict::Punt(Punt::ServerReply));
    assert_eq!(rig.push(LAN, &mut from(CLIENT)), Verdict::Drop(Drop::TtlExpired));
}

#[test]
fn linux_sends_what_has_no_known_neighbour() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    rig.push(WAN, &mut from_client(SYN));
    rig.spec.dests[0].address = socket("10.0.0.77:8080").into(); // as if its neighbour entry had gone
    rig.publish();
    let mut again = from_client(SYN);
    assert_eq!(rig.push(WAN, &mut again), Verdict::Punt(Punt::Unresolved));
    let ready = expect(Protocol::Tcp, (WAN_MAC, CLIENT_MAC), CLIENT, "10.0.0.77:8080", SYN);
    assert_eq!(again, ready, "rewritten but for the MACs");
    let mut other = packet(Protocol::Tcp, WAN_MAC, "198.51.100.8:1", VIP, SYN);
    assert_eq!(rig.push(WAN, &mut other), Verdict::Drop(Drop::NoServer), "nobody can be reached");
}

#[test]
fn an_unresolved_direct_routing_server_is_not_linuxs_to_send_to() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Dr, &[1]);
    rig.push(WAN, &mut from_client(SYN));
    rig.spec.dests[0].address = socket("10.0.0.77:80").into();
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Drop(Drop::NoNeighbour));
}

#[test]
fn of_two_services_with_one_server_the_newer_connection_of_a_client_port_counts() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let mut other = rig.spec.clone();
    other.address = socket("192.0.2.11:80").into();
    other.dests[0].id = DestId::new(2).unwrap();
    other.dests[0].gauge = Arc::default();
    rig.snapshot = compile(9, &[rig.spec.clone(), other.clone()], []);
    rig.push(WAN, &mut from_client(SYN));
    rig.push(WAN, &mut packet(Protocol::Tcp, WAN_MAC, CLIENT, "192.0.2.11:80", SYN));
    let mut reply = from_server(1, SYN | ACK);
    assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
    assert_eq!(reply[26..30], [192, 0, 2, 11], "from the address that the client asked last");
    assert_eq!((rig.live(1), other.dests[0].gauge.get()), ((0, 0), (1, 0)));
}

#[test]
fn a_dead_servers_udp_flow_moves_on() {
    let mut rig = Rig::new(Protocol::Udp, Mode::Nat, &[1, 1]);
    let query = || packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0);
    rig.push(WAN, &mut query());
    assert_eq!(rig.connections()[0].1, 2);
    rig.spec.dests[1].up = false;
    rig.publish();
    assert_eq!(rig.push(WAN, &mut query()), Verdict::Forward(LAN));
    assert_eq!(rig.connections()[0].1, 1);
}

#[test]
fn a_connection_of_a_server_newer_than_the_snapshot_is_left_alone() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 1]);
    rig.push(WAN, &mut from_client(SYN)); // by a worker that knows the second server
    assert_eq!(rig.connections()[0].1, 2);
    rig.snapshot =
        compile(1, &[ServiceSpec { dests: vec![rig.spec.dests[0].clone()], ..rig.spec.clone() }], []);
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    assert_eq!((rig.connections().len(), rig.live(2)), (1, (1, 0)));
}

#[test]
fn a_packet_from_a_virtual_address_or_from_nobody_begins_nothing() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    for source in [VIP, "0.0.0.0:1", "127.0.0.1:80", "224.0.0.1:9", "255.255.255.255:9"] {
        let mut frame = packet(Protocol::Tcp, WAN_MAC, source, VIP, SYN);
        assert_eq!(rig.push(WAN, &mut frame), Verdict::Drop(Drop::Martian), "{source}");
    }
}

#[test]
fn a_source_that_a_list_keeps_out_begins_nothing_but_goes_on() {
    let ip = |text: &str| text.parse().unwrap();
    let deny = |prefixes: &[_]| Some(Arc::new(Sources::new(None, prefixes)));
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    assert_eq!(rig.push(WAN, &mut from_client(SYN)), Verdict::Forward(LAN));
    rig.spec.sources = deny(&[(ip("198.51.100.0"), 24)]);
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Forward(LAN), "it has begun before");
    let from = |source| packet(Protocol::Tcp, WAN_MAC, source, VIP, SYN);
    let denied = Verdict::Drop(Drop::SourceDenied);
    assert_eq!(rig.push(WAN, &mut from("198.51.100.7:40113")), denied);
    assert_eq!(rig.push(WAN, &mut from("198.51.99.7:40113")), Verdict::Forward(LAN));
    // The router's own list and the service's have to agree.
    rig.snapshot = rig.snapshot.with_sources(deny(&[(ip("198.51.99.0"), 24)]));
    assert_eq!(rig.push(WAN, &mut from("198.51.99.7:40114")), denied);
    assert_eq!(rig.push(WAN, &mut from("198.51.100.7:40114")), denied);
    assert_eq!(rig.push(WAN, &mut from("198.51.98.7:40114")), Verdict::Forward(LAN));
    assert_eq!(rig.connections().len(), 3);
}

/// Cuts, lengths, checksums, options, TTL: each has its name, and none a panic.
#[test]
fn odd_packets_have_their_names() {
    let good = || from_client(SYN);
    let mend = |mut frame: Vec<u8>| {
        frame[24..26].fill(0);
        let end = 14 + usize::from(frame[14] & 15) * 4;
        let sum = checksum::sum(&frame[14..end]);
        frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
        frame
    };
    let with = |at: usize, value: u8| {
        let mut frame = good();
        frame[at] = value;
        mend(frame)
    };
    let unmended = |at: usize, value: u8| {
        let mut frame = good();
        frame[at] = value;
        frame
    };
    let mut beyond = with(20, 0x1F);
    beyond[21] = 0xFF;
    let beyond = mend(beyond);
    let cases = [
        ("another host's MAC", unmended(0, 4), Verdict::Drop(Drop::OtherHost)),
        ("multicast MAC", unmended(0, 3), Verdict::Punt(Punt::Multicast)),
        ("no IP", unmended(12, 0x86), Verdict::Punt(Punt::NotIp)),
        ("VLAN", unmended(12, 0x81), Verdict::Punt(Punt::Vlan)),
        ("version 5", with(14, 0x55), Verdict::Drop(Drop::BadIpHeader)),
        ("header length 16", unmended(14, 0x44), Verdict::Drop(Drop::BadIpHeader)),
        ("header longer than the packet", unmended(14, 0x4F), Verdict::Drop(Drop::BadIpHeader)),
        ("total length too long", with(17, 200), Verdict::Drop(Drop::BadIpHeader)),
        ("total length shorter than the header", with(17, 19), Verdict::Drop(Drop::BadIpHeader)),
        ("total length cuts TCP", with(17, 39), Verdict::Drop(Drop::BadTransportHeader)),
        ("bad checksum", unmended(24, 0x12), Verdict::Drop(Drop::BadIpChecksum)),
        ("more fragments, but an odd length", with(20, 0x20), Verdict::Drop(Drop::BadFragment)),
        ("a fragment beyond the end of the longest datagram", beyond, Verdict::Drop(Drop::BadFragment)),
        ("a fragment over the header", with(21, 1), Verdict::Drop(Drop::FragmentTiny)),
        ("a later fragment", with(21, 3), Verdict::Hold),
        ("TTL 1", with(22, 1), Verdict::Drop(Drop::TtlExpired)),
        ("TTL 0", with(22, 0), Verdict::Drop(Drop::TtlExpired)),
        ("ICMP", with(23, 1), Verdict::Punt(Punt::Icmp)),
        ("DCCP", with(23, 33), Verdict::Punt(Punt::OtherProtocol)),
        ("SCTP to a service of TCP", with(23, 132), Verdict::Punt(Punt::NoService)),
        ("TCP offset 16", unmended(46, 0x40), Verdict::Drop(Drop::BadTransportHeader)),
        ("TCP offset past the end", unmended(46, 0xF0), Verdict::Drop(Drop::BadTransportHeader)),
    ];
    for (name, mut frame, expected) in cases {
        let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
        let before = frame.clone();
        assert_eq!(rig.push(WAN, &mut frame), expected, "{name}");
        assert_eq!(frame, before, "{name}: only forwarded packets change");
    }
}

#[test]
fn a_packet_cut_anywhere_has_a_name() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let whole = from_client(SYN);
    for length in 0..whole.len() {
        let expected = if length < 14 { Drop::Runt } else { Drop::BadIpHeader };
        assert_eq!(rig.push(WAN, &mut whole[..length].to_vec()), Verdict::Drop(expected), "{length} bytes");
    }
}

#[test]
fn options_are_carried_along() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    let mut frame = from_client(SYN);
    frame.splice(34..34, [1, 1, 1, 0]);
    frame[14] = 0x46;
    frame[17] += 4;
    frame[24..26].fill(0);
    let sum = checksum::sum(&frame[14..38]);
    frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
    assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN));
    assert_eq!(checksum::sum(&frame[14..38]), 0xFFFF);
    assert_eq!(frame[30..34], [10, 0, 0, 1]);
    assert_eq!(frame[40..42], 8080u16.to_be_bytes());
}

#[test]
fn a_long_timeout_after_a_reload_changes_the_unit_of_the_stamp() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    rig.push(WAN, &mut from_client(SYN));
    rig.push(WAN, &mut from_client(ACK));
    rig.spec.timeouts.0[State::Established as usize] = 30 * 24 * 3600;
    rig.publish();
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    rig.wait(29 * 24 * 3600);
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Forward(LAN));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes in, it gets one verdict and nothing panics.
        #[test]
        fn any_bytes_get_a_verdict(mut frame in prop::collection::vec(any::<u8>(), 0..200), mac in any::<bool>()) {
            let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
            if mac && frame.len() >= 15 {
                frame[..6].copy_from_slice(&WAN_MAC);
                frame[12..15].copy_from_slice(&[8, 0, 0x45]);
            }
            rig.push(WAN, &mut frame);
        }

        /// Any few bytes of a good packet changed.
        #[test]
        fn damaged_packets_get_a_verdict(changes in prop::collection::vec((0usize..61, any::<u8>()), 1..6)) {
            let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
            let mut frame = from_client(SYN);
            for (at, value) in changes {
                frame[at] = value;
            }
            rig.push(WAN, &mut frame);
        }
    }
}

#[test]
fn a_server_that_is_not_listed_has_no_clients_with_a_hashing_scheduler() {
    for scheduler in [Scheduler::Sh, Scheduler::Mh] {
        let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 0]);
        rig.spec.scheduler = scheduler;
        rig.spec.dests[1].last_weight = 1;
        for (listed, expected) in [(true, false), (false, true)] {
            rig.spec.dests[1].listed = listed;
            rig.publish();
            let all = (0..64u16).all(|n| {
                let from = format!("198.51.{n}.7:{}", 2000 + n + 100 * u16::from(listed));
                rig.push(WAN, &mut packet(Protocol::Tcp, WAN_MAC, &from, VIP, SYN)) == Verdict::Forward(LAN)
            });
            assert_eq!(all, expected, "{scheduler} {listed}");
        }
    }
}

#[test]
fn a_service_that_is_not_live_begins_nothing_and_its_connections_go_on() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    rig.push(WAN, &mut from_client(SYN));
    rig.push(WAN, &mut from_client(ACK));
    rig.spec.live = false;
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Forward(LAN));
    assert_eq!(rig.push(LAN, &mut from_server(1, ACK)), Verdict::Forward(WAN));
    for flags in [SYN, ACK, RST] {
        let mut other = packet(Protocol::Tcp, WAN_MAC, "198.51.100.9:2000", VIP, flags);
        assert_eq!(rig.push(WAN, &mut other), Verdict::Punt(Punt::NoService), "{flags:#x}");
    }
    assert_eq!((rig.connections().len(), rig.live(1)), (1, (1, 0)));
    rig.spec.live = true;
    rig.publish();
    let mut other = packet(Protocol::Tcp, WAN_MAC, "198.51.100.9:2000", VIP, SYN);
    assert_eq!(rig.push(WAN, &mut other), Verdict::Forward(LAN));
}

#[test]
fn a_sloppy_service_takes_connections_from_the_middle_on() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Dr, &[1]);
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Punt(Punt::NoConnection));
    rig.spec.sloppy = true;
    rig.publish();
    assert_eq!(rig.push(WAN, &mut from_client(RST)), Verdict::Punt(Punt::NoConnection));
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Forward(LAN));
    assert_eq!(rig.connections()[0].2, State::SynRecv, "it may have been a flood's");
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Forward(LAN));
    assert_eq!((rig.connections()[0].2, rig.live(1)), (State::Established, (1, 0)));
}

#[test]
fn a_connection_that_comes_by_another_router_goes_to_the_same_server() {
    let hashing = [
        (Scheduler::Mh, vec![SchedulerFlag::MhPort]),
        (Scheduler::Maglev, vec![]),
        (Scheduler::Rendezvous, vec![]),
    ];
    for (mode, (scheduler, flags)) in
        [Mode::Dr, Mode::Tunnel].iter().flat_map(|mode| hashing.iter().map(move |how| (*mode, how)))
    {
        let router = || {
            let mut rig = Rig::new(Protocol::Tcp, mode, &[1, 1, 1]);
            (rig.spec.scheduler, rig.spec.flags) = (*scheduler, flags.clone());
            rig.spec.tunnel.source = Some((*socket(ROUTER).ip()).into());
            rig.spec.sloppy = true;
            rig.publish();
            rig
        };
        let (one, other) = (router(), router());
        for port in 1000..1060 {
            for (rig, flags) in [(&one, SYN), (&one, ACK), (&other, ACK)] {
                let mut frame = packet(Protocol::Tcp, WAN_MAC, &format!("198.51.100.7:{port}"), VIP, flags);
                assert_eq!(rig.push(WAN, &mut frame), Verdict::Forward(LAN), "{scheduler} {mode} {port}");
            }
        }
        let servers = |rig: &Rig| -> BTreeMap<SocketAddrV4, usize> {
            rig.connections().into_iter().map(|(client, dest, _)| (client, dest)).collect()
        };
        assert_eq!(servers(&one), servers(&other), "{scheduler} {mode}");
        assert_eq!((servers(&one).len(), BTreeSet::from_iter(servers(&one).into_values()).len()), (60, 3));
    }
}

#[test]
fn each_datagram_may_be_scheduled_on_its_own() {
    for mode in [Mode::Nat, Mode::Dr] {
        let mut rig = Rig::new(Protocol::Udp, mode, &[1, 1]);
        rig.spec.one_packet = true;
        rig.publish();
        for n in 0..10 {
            let mut request = packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0);
            assert_eq!(rig.push(WAN, &mut request), Verdict::Forward(LAN));
            let server = 2 - n % 2;
            let to = if mode == Mode::Nat { format!("10.0.0.{server}:8080") } else { VIP.to_owned() };
            assert_eq!(request, expect(Protocol::Udp, (server_mac(server), LAN_MAC), CLIENT, &to, 0), "{n}");
            if mode == Mode::Nat {
                let from = format!("10.0.0.{server}:8080");
                let mut reply = packet(Protocol::Udp, LAN_MAC, &from, CLIENT, 0);
                assert_eq!(rig.push(LAN, &mut reply), Verdict::Forward(WAN));
                assert_eq!(reply, expect(Protocol::Udp, (CLIENT_MAC, WAN_MAC), VIP, CLIENT, 0));
            }
        }
        if mode == Mode::Nat {
            let mut answer = packet(Protocol::Udp, LAN_MAC, "10.0.0.1:8080", ROUTER, 0);
            assert_eq!(
                rig.push(LAN, &mut answer),
                Verdict::Punt(Punt::ServerReply),
                "to a check of the router's"
            );
        }
        assert_eq!(rig.connections(), [], "nothing is remembered");
        let replies = if mode == Mode::Nat { 5 } else { 0 };
        for dest in &rig.spec.dests {
            let traffic = dest.traffic[0].get();
            assert_eq!((traffic.connections, traffic.packets_in, traffic.packets_out), (5, 5, replies));
            assert_eq!(dest.gauge.get(), (0, 0));
        }
    }
}

#[test]
fn a_server_that_had_room_is_not_full_when_clients_come_back_to_it() {
    let mut rig = Rig::new(Protocol::Udp, Mode::Nat, &[1]);
    rig.spec.dests[0].limits = Some(Limits { upper: 3, lower: 2 });
    rig.spec.persistence = Some(Persistence { seconds: 3600, prefix: 32, expire_quiescent: false });
    rig.publish();
    let send = |rig: &Rig, from: &str| rig.push(WAN, &mut packet(Protocol::Udp, WAN_MAC, from, VIP, 0));
    for client in ["198.51.100.1:1", "198.51.100.2:1", "198.51.100.3:1"] {
        assert_eq!(send(&rig, client), Verdict::Forward(LAN));
    }
    assert_eq!(send(&rig, "198.51.100.4:1"), Verdict::Drop(Drop::NoServer), "it is full");
    rig.wait(200);
    assert_eq!(send(&rig, "198.51.100.3:1"), Verdict::Forward(LAN));
    rig.wait(110);
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
    assert_eq!(rig.live(1), (0, 1));
    // It comes back: no scheduler has asked the server while it had only one.
    assert_eq!(send(&rig, "198.51.100.1:2"), Verdict::Forward(LAN));
    assert_eq!(send(&rig, "198.51.100.4:1"), Verdict::Forward(LAN), "it had fewer than two");
}

#[test]
fn a_full_server_gets_no_new_connection_until_it_has_room_for_several() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 1]);
    rig.spec.dests[0].limits = Some(Limits { upper: 4, lower: 2 });
    rig.publish();
    let send = |rig: &Rig, port: u16, flags| {
        let mut packet = packet(Protocol::Tcp, WAN_MAC, &format!("198.51.100.7:{port}"), VIP, flags);
        rig.push(WAN, &mut packet)
    };
    let open = |rig: &Rig, port| {
        let verdict = send(rig, port, SYN);
        send(rig, port, ACK);
        verdict
    };
    let total = |rig: &Rig, n: usize| {
        let (active, inactive) = rig.live(n);
        active + inactive
    };
    for port in 1000..1010 {
        assert_eq!(open(&rig, port), Verdict::Forward(LAN));
    }
    assert_eq!((total(&rig, 1), total(&rig, 2)), (4, 6));

    // What it has goes on, and what has ended counts until it is forgotten.
    let of_first = |rig: &Rig| -> Vec<u16> {
        rig.connections().iter().filter(|(_, dest, _)| *dest == 1).map(|(client, ..)| client.port()).collect()
    };
    let ports = of_first(&rig);
    for (index, &port) in ports.iter().take(3).enumerate() {
        send(&rig, port, RST);
        rig.wait(15);
        rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
        assert_eq!(total(&rig, 1), 3 - index as u32);
        let other = total(&rig, 2);
        assert_eq!(open(&rig, 2000 + index as u16), Verdict::Forward(LAN));
        let has_room = index == 2;
        if has_room {
            assert_eq!(open(&rig, 2010), Verdict::Forward(LAN));
        }
        assert_eq!(total(&rig, 2), other + 1, "after {index}");
    }
    assert_eq!(total(&rig, 1), 2, "one of the last two");

    rig.spec.dests[1].limits = Some(Limits { upper: 1, lower: 1 });
    rig.spec.dests[0].limits = Some(Limits { upper: 1, lower: 1 });
    rig.publish();
    assert_eq!(open(&rig, 3000), Verdict::Drop(Drop::NoServer), "all are full");
}
