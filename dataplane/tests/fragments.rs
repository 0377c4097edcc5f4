//! Fragments against a model of them: random orders, copies, losses, overlaps and used-up identifications, at two workers, while
//! time passes.
//!
//! The model is a map of datagrams and a list of what waits, written from what the module's documentation promises; it shares no code
//! with the data path. After each step the packets that have left must be those of the model, with its outcomes, and their bytes
//! those that it writes from scratch.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use dataplane::clock::Tick;
use dataplane::counters::{Drop, Gauge, Punt, TrafficCounters};
use dataplane::engine::{BURST, Engine, Verdict};
use dataplane::fib::{Adjacency, Fib, Route, Via};
use dataplane::fragments::Waiting;
use dataplane::service::{Mode, Protocol, Scheduler, Timeouts};
use dataplane::snapshot::{DestSpec, PortSpec, ServiceSpec, Snapshot, TunnelSpec};
use dataplane::table::{DestId, HashKey, Table};
use proptest::prelude::*;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const PEER: [u8; 6] = [2, 0, 0, 0, 9, 9];
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const NAT_SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 8053);
/// Bytes of a datagram: header and data, in fragments of 16.
const LENGTH: usize = 60;

/// What a datagram is for, by its port.
const NAT: u16 = 53;
const DIRECT: u16 = 54;
const WITHOUT_SERVER: u16 = 55;
const NOBODY: u16 = 56;

fn snapshot() -> Snapshot {
    let service = |port, mode, server: Option<SocketAddrV4>, id| ServiceSpec {
        address: SocketAddrV4::new(VIP, port),
        protocol: Protocol::Udp,
        mode,
        scheduler: Scheduler::Rr,
        flags: Vec::new(),
        cursor: Arc::default(),
        timeouts: Timeouts::default(),
        sloppy_tcp: false,
        persistence: None,
        one_packet: false,
        tunnel: TunnelSpec::default(),
        live: true,
        dests: server
            .into_iter()
            .map(|address| DestSpec {
                id: DestId::new(id).unwrap(),
                address,
                weight: 1,
                last_weight: 1,
                limits: None,
                up: true,
                listed: true,
                reset: false,
                returning: true,
                traffic: Arc::new([TrafficCounters::default()]),
                gauge: Arc::<Gauge>::default(),
            })
            .collect(),
    };
    let direct = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), DIRECT);
    let specs = [
        service(NAT, Mode::Nat, Some(NAT_SERVER), 1),
        service(DIRECT, Mode::Dr, Some(direct), 2),
        service(WITHOUT_SERVER, Mode::Nat, None, 3),
    ];
    let routes = [
        Route { prefix: 0x0A00_0000, length: 24, via: Via::OnLink(1) },
        Route { prefix: 0xC633_6400, length: 24, via: Via::OnLink(0) },
    ];
    let server =
        |n: u8| ((1, 0x0A00_0000 + u32::from(n)), Adjacency::new(1, 1500, [2, 0, 0, 0, 2, n], MACS[1]));
    let ports = MACS.map(|mac| PortSpec { mac }).to_vec();
    Snapshot::new(1, ports, &specs, [], Fib::new(routes, [server(1), server(2)]))
}

/// A fragment that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fragment {
    client: u8,
    identification: u16,
    /// Of the first one only, as on the wire.
    client_port: u16,
    port: u16,
    /// Which of its datagram.
    index: u8,
    /// To tell it from all others: its type of service.
    mark: u8,
}

impl Fragment {
    /// As it is sent; or as it leaves the router, towards these MACs and this address and port, if there are any.
    fn frame(&self, becomes: Option<(u8, SocketAddrV4)>) -> Vec<u8> {
        let client = Ipv4Addr::new(198, 51, 100, self.client);
        let to = becomes.map_or(SocketAddrV4::new(VIP, self.port), |(_, to)| to);
        let mut datagram = [self.client_port.to_be_bytes(), to.port().to_be_bytes()].concat();
        datagram.extend((LENGTH as u16).to_be_bytes());
        datagram.extend([0, 0]); // without checksum: the first fragment's is another test's
        datagram.extend((8..LENGTH).map(|n| n as u8));
        let at = usize::from(self.index) * 16;
        let data = &datagram[at..LENGTH.min(at + 16)];
        let more = if at + 16 < LENGTH { 0x2000 } else { 0 };

        let (to_mac, from_mac, ttl) = match becomes {
            Some((server, _)) => ([2, 0, 0, 0, 2, server], MACS[1], 63),
            None => (MACS[0], PEER, 64),
        };
        let mut ip = vec![0x45, self.mark];
        ip.extend((20 + data.len() as u16).to_be_bytes());
        ip.extend(self.identification.to_be_bytes());
        let place = at as u16 / 8;
        ip.extend((place | more).to_be_bytes());
        ip.extend([ttl, 17, 0, 0]);
        ip.extend(client.octets());
        ip.extend(to.ip().octets());
        let mut sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        ip[10..12].copy_from_slice(&(!sum as u16).to_be_bytes());
        [&to_mac[..], &from_mac, &[8, 0], &ip, data].concat()
    }
}

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    ByNat,
    Directly,
    Is(Verdict),
}

impl Outcome {
    fn verdict(self) -> Verdict {
        match self {
            Outcome::ByNat | Outcome::Directly => Verdict::Forward(1),
            Outcome::Is(verdict) => verdict,
        }
    }

    fn frame(self, fragment: &Fragment) -> Vec<u8> {
        fragment.frame(match self {
            Outcome::ByNat => Some((1, NAT_SERVER)),
            Outcome::Directly => Some((2, SocketAddrV4::new(VIP, fragment.port))),
            Outcome::Is(_) => None,
        })
    }
}

type Key = (u8, u16);

/// What the documentation says.
#[derive(Default)]
struct Model {
    /// Of each datagram the first fragment's ports, what becomes of the others, and when that was noted.
    notes: HashMap<Key, ((u16, u16), Outcome, u64)>,
    /// By worker, in the order in which they came.
    waiting: [Vec<(Fragment, u64)>; 2],
}

impl Model {
    fn come(&mut self, worker: usize, fragment: Fragment, now: u64) -> Vec<(Fragment, Outcome)> {
        let key = (fragment.client, fragment.identification);
        let mut out = Vec::new();
        if fragment.index > 0 {
            self.waiting[worker].push((fragment, now));
        } else {
            let ports = (fragment.client_port, fragment.port);
            let forwarded = |outcome: &Outcome| matches!(outcome, Outcome::ByNat | Outcome::Directly);
            let young = self.notes.get(&key).filter(|(_, rest, since)| forwarded(rest) && now - since <= 1);
            let is_other = young.is_some_and(|(others, ..)| *others != ports);
            let (outcome, rest) = match fragment.port {
                _ if is_other => (Outcome::Is(Verdict::Drop(Drop::FragmentOverlap)), None),
                NAT => (Outcome::ByNat, Some(Outcome::ByNat)),
                DIRECT => (Outcome::Directly, Some(Outcome::Directly)),
                WITHOUT_SERVER => (
                    Outcome::Is(Verdict::Drop(Drop::NoServer)),
                    Some(Outcome::Is(Verdict::Drop(Drop::FragmentOrphan))),
                ),
                _ => (
                    Outcome::Is(Verdict::Punt(Punt::NoService)),
                    Some(Outcome::Is(Verdict::Punt(Punt::Fragment))),
                ),
            };
            if let (Some(rest), None) = (rest, young) {
                self.notes.insert(key, (ports, rest, now));
            }
            out.push((fragment, outcome));
        }
        out.extend(self.look(worker, now));
        out
    }

    /// Who waits no more.
    fn look(&mut self, worker: usize, now: u64) -> Vec<(Fragment, Outcome)> {
        let mut out = Vec::new();
        self.waiting[worker].retain(|&(fragment, since)| {
            let note = self.notes.get(&(fragment.client, fragment.identification));
            let outcome = match note {
                // It was there already when the fragment came, or came in time.
                _ if now - since > 4 => Outcome::Is(Verdict::Drop(Drop::FragmentExpired)),
                Some(&(_, rest, noted)) if now - noted <= 120 => rest,
                _ => return true,
            };
            out.push((fragment, outcome));
            false
        });
        out
    }
}

/// A worker: what [`dataplane::worker`] does, without its device.
struct Worker {
    engine: Engine,
    waiting: Waiting<Vec<u8>>,
}

impl Worker {
    fn come(&mut self, snapshot: &Snapshot, now: Tick, frame: Vec<u8>) -> Vec<(Verdict, Vec<u8>)> {
        let (mut burst, mut verdicts) = ([frame], [Verdict::Drop(Drop::Runt); BURST]);
        self.engine.process(snapshot, now, 0, &mut burst, &mut verdicts, &mut ());
        let [frame] = burst;
        let mut out = Vec::new();
        if verdicts[0] == Verdict::Hold {
            assert!(self.engine.hold(&mut self.waiting, now, 0, frame).is_none(), "there is room");
        } else {
            out.push((verdicts[0], frame));
        }
        out.extend(self.look(snapshot, now));
        out
    }

    fn look(&mut self, snapshot: &Snapshot, now: Tick) -> Vec<(Verdict, Vec<u8>)> {
        let mut out = Vec::new();
        self.engine
            .settle(snapshot, now, &mut self.waiting, false, |_, frame, verdict| out.push((verdict, frame)));
        out
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Come { worker: usize, client: u8, identification: u16, client_port: u16, port: u16, index: u8 },
    Wait(u64),
    Look(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop_oneof![4 => Just(NAT), 2 => Just(DIRECT), 1 => Just(WITHOUT_SERVER), 1 => Just(NOBODY)];
    let come = (0usize..2, 1u8..4, 0u16..3, prop_oneof![5 => Just(4000u16), 1 => Just(4001)], port, 0u8..4);
    let come = come.prop_map(|(worker, client, identification, client_port, port, index)| Step::Come {
        worker,
        client,
        identification,
        client_port,
        port,
        index,
    });
    let time = prop_oneof![6 => Just(1u64), 3 => Just(2), 2 => Just(5), 1 => Just(119), 1 => Just(122)];
    prop_oneof![12 => come, 2 => time.prop_map(Step::Wait), 1 => (0usize..2).prop_map(Step::Look)]
}

/// In any order: who waits is asked after who has just come, and those of several datagrams in no order.
fn sorted(mut out: Vec<(Verdict, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    out.sort_by(|(_, one), (_, other)| one.cmp(other));
    out.into_iter().map(|(verdict, frame)| (format!("{verdict:?}"), frame)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn fragments_go_as_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let snapshot = snapshot();
        let table = Arc::new(Table::new(64, HashKey { blind: 5, factor: 0x9E37_79B9_7F4A_7C15 }));
        let worker = || Worker { engine: Engine::new(0, table.clone(), Arc::default()), waiting: Waiting::default() };
        let (mut workers, mut model) = ([worker(), worker()], Model::default());
        let mut now = 1 << 20;
        let expected = |out: Vec<(Fragment, Outcome)>| -> Vec<(Verdict, Vec<u8>)> {
            out.into_iter().map(|(fragment, outcome)| (outcome.verdict(), outcome.frame(&fragment))).collect()
        };
        for (mark, step) in (0..).zip(steps) {
            let (seen, said) = match step {
                Step::Come { worker, client, identification, client_port, port, index } => {
                    let fragment = Fragment { client, identification, client_port, port, index, mark };
                    let seen = workers[worker].come(&snapshot, Tick(now), fragment.frame(None));
                    (seen, expected(model.come(worker, fragment, now)))
                }
                Step::Wait(ticks) => {
                    now += ticks;
                    continue;
                }
                Step::Look(worker) => {
                    (workers[worker].look(&snapshot, Tick(now)), expected(model.look(worker, now)))
                }
            };
            prop_assert_eq!(sorted(seen), sorted(said));
        }
        for (worker, model) in workers.iter().zip(&model.waiting) {
            prop_assert_eq!(worker.waiting.len(), model.len());
        }
    }
}
