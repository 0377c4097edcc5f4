//! What is measured: services, a table full of their connections, and workers on synthetic queues.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crossbeam::queue::ArrayQueue;
use dataplane::capture::Switch;
use dataplane::changes::Changes;
use dataplane::clock::Tick;
use dataplane::counters::{Drop, TrafficCounters, WorkerCounters};
use dataplane::engine::Probe;
use dataplane::engine::{BURST, Engine, Verdict};
use dataplane::exchange::Exchange;
use dataplane::fib::{Adjacency, Fib, Route, Via};
use dataplane::service::{Mode, Protocol, Scheduler, Timeouts};
use dataplane::snapshot::{DestSpec, PortSpec, Publisher, ServiceSpec, Snapshot, Subscriber, TunnelSpec};
use dataplane::table::{DestId, HashKey, Table};
use dataplane::worker::{self, Idle, SlowPath, Worker};
use dpdk::synthetic::{self, Source};
use dpdk::{Lcore, Mempool};

use crate::cpu;
use crate::frame::{Flags, Frames, ROUTER_MAC, SHORTEST};
use crate::slot::{Roomy, Slot};
use crate::source::{Handshakes, Order, Packets, Way, Ways};

/// The router's own address, which the packets of tunnels are from.
const OWN: u32 = 0x0AFF_FFFE;

/// What there is to balance.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Forwarding mode of all services.
    pub mode: Mode,
    /// Their protocol.
    pub protocol: Protocol,
    /// Their scheduler. Connections in the table were spread by `rr` in any case.
    pub scheduler: Scheduler,
    /// Services, each at an address of its own.
    pub services: u32,
    /// Real servers of each service.
    pub servers: u32,
    /// Connections, all established, at half load of the table unless `room` says more.
    pub flows: u32,
    /// Connections that the table is made for.
    pub room: u32,
    /// Workers.
    pub workers: usize,
    /// Of all services.
    pub timeouts: Timeouts,
}

impl Setting {
    /// One service with one real server.
    pub fn plain(mode: Mode, protocol: Protocol, flows: u32) -> Self {
        let scheduler = Scheduler::Rr;
        Setting {
            mode,
            protocol,
            scheduler,
            services: 1,
            servers: 1,
            flows,
            room: flows,
            workers: 1,
            timeouts: Timeouts::default(),
        }
    }
}

/// Packets that are taken through the engine and nothing else.
#[derive(Clone, Copy, Debug)]
pub enum Bare {
    /// Of connections that are in the table, one after the other.
    Established(Way),
    /// The first of as many flows as the table has room for.
    Opening,
}

/// A router without devices.
pub struct Rig {
    /// What it is made for.
    pub setting: Setting,
    /// The connections.
    pub table: Arc<Table>,
    /// Publishes snapshots to the workers.
    publisher: RefCell<Publisher>,
    /// One set a worker.
    pub counters: Vec<Arc<WorkerCounters>>,
    /// Where a capture of their packets is switched on and off.
    pub capture: Arc<Switch>,
    /// Where its one worker notes connections that change, if peers are told of them.
    pub changes: Option<Arc<Changes>>,
    specs: Vec<ServiceSpec>,
}

impl Rig {
    /// Compiles the services and opens the connections, one by one, through the data path.
    pub fn new(setting: &Setting) -> Result<Rig> {
        let key = HashKey { blind: 0x243F_6A88_85A3_08D3, factor: 0x1319_8A2E_0370_7345 };
        let table = Arc::new(Table::new(setting.room.max(1) as usize, key));
        let mut specs = services(setting, Scheduler::Rr);
        let opening = snapshot(1, &specs);
        open(Opener::new(Engine::new(0, table.clone(), Arc::default()), Arc::new(opening), setting))?;
        for spec in &mut specs {
            spec.scheduler = setting.scheduler;
        }
        let publisher = RefCell::new(Publisher::new(snapshot(2, &specs)));
        let counters = (0..setting.workers).map(|_| Arc::default()).collect();
        let setting = setting.clone();
        Ok(Rig { setting, table, publisher, counters, capture: Arc::default(), changes: None, specs })
    }

    /// A source of packets of the rig's connections.
    pub fn packets(&self, ways: Ways, order: Order, size: u16, seed: u64) -> Packets {
        Packets::new(frames(&self.setting, Flags::Ack, size), self.setting.flows, ways, order, seed)
    }

    /// A source of clients' first packets, one for each of so many flows.
    pub fn openings(&self, flows: u32) -> Packets {
        let frames = frames(&self.setting, Flags::Syn, SHORTEST);
        Packets::new(frames, flows, Ways::All(Way::In), Order::Sequential, 0)
    }

    /// A source of all packets that open connections, one connection after the other.
    pub fn handshakes(&self) -> Handshakes {
        let [syn, ack] = [Flags::Syn, Flags::Ack].map(|flags| frames(&self.setting, flags, SHORTEST));
        Handshakes::new(syn, ack)
    }

    /// Opens connections one by one.
    pub fn opener(&self) -> Opener {
        let engine = Engine::new(0, self.table.clone(), self.counters[0].clone());
        Opener::new(engine.noting(self.changes.clone()), self.publisher.borrow().current(), &self.setting)
    }

    /// The configuration, as workers see it.
    pub fn subscribe(&self) -> Subscriber {
        self.publisher.borrow().subscribe()
    }

    /// Runs every worker on packets of its own source as long as `meanwhile` takes, which can tell by the flag that
    /// somebody has stopped them before; what each has spent and done.
    pub fn run<P: Probe + Send, S: Source>(
        &self,
        pool: &'static Mempool,
        cores: &[usize],
        source: impl Fn(usize) -> S,
        probe: impl Fn(&Arc<AtomicBool>) -> P,
        meanwhile: impl FnOnce(&AtomicBool),
    ) -> Result<Vec<Run<P>>> {
        ensure!(!cores.is_empty(), "no core to run a worker on");
        let stop = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            let start = |index| {
                let worker = self.worker(pool, index, source(index), probe(&stop));
                let (core, stop) = (cores[index % cores.len()], &*stop);
                scope.spawn(move || run_one(worker, core, stop))
            };
            let running: Vec<_> = (0..self.setting.workers).map(start).collect();
            meanwhile(&stop);
            stop.store(true, Ordering::Relaxed);
            running.into_iter().map(|thread| thread.join().expect("workers do not panic")).collect()
        })
    }

    /// Takes packets through the engine without worker, queues and EAL, always as many and the same; how many were
    /// forwarded.
    pub fn run_bare(&self, bare: Bare, packets: usize) -> usize {
        match self.setting.mode {
            Mode::Nat | Mode::Dr | Mode::Fullnat => self.run_frames::<Vec<u8>>(bare, packets),
            Mode::Tunnel => self.run_frames::<Roomy>(bare, packets),
        }
    }

    fn run_frames<F: Slot>(&self, bare: Bare, packets: usize) -> usize {
        let (flags, way, flows) = match bare {
            Bare::Established(way) => (Flags::Ack, way, self.setting.flows),
            Bare::Opening => (Flags::Syn, Way::In, self.setting.room),
        };
        let frames = frames(&self.setting, flags, SHORTEST);
        let engine = Engine::new(0, self.table.clone(), self.counters[0].clone());
        let snapshot = self.publisher.borrow().current();
        let templates: Vec<Vec<u8>> =
            (0..flows).map(|number| frames.frame(way, frames.flow(number))).collect();
        let mut burst: Vec<F> = templates.iter().take(BURST).map(|template| F::new(template)).collect();
        let mut verdicts = [Verdict::Forward(0); BURST];
        let time = now();
        let mut forwarded = 0;
        for number in (0..packets).step_by(BURST) {
            for (index, frame) in burst.iter_mut().enumerate() {
                frame.refill(&templates[(number + index) % templates.len()]);
            }
            engine.process(&snapshot, time, 0, &mut burst, &mut verdicts, &mut ());
            forwarded += verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Forward(_))).count();
        }
        forwarded
    }

    /// Compiles a new snapshot of the same services and publishes it; its generation, and how long it took to
    /// compile.
    pub fn reload(&self) -> (u64, Duration) {
        let mut publisher = self.publisher.borrow_mut();
        let generation = publisher.current().generation + 1;
        let began = Instant::now();
        let snapshot = snapshot(generation, &self.specs);
        let took = began.elapsed();
        publisher.publish(snapshot);
        (generation, took)
    }

    fn worker<P>(&self, pool: &'static Mempool, index: usize, source: impl Source, probe: P) -> Worker<P> {
        let slow_path = SlowPath {
            punts: Arc::new(ArrayQueue::new(64)),
            injects: Arc::new(ArrayQueue::new(1)),
            doorbell: Arc::new(|| ()),
        };
        Worker {
            index,
            count: self.setting.workers,
            queues: vec![synthetic::queues(pool, source)],
            attended: Vec::new(),
            vlans: Arc::default(),
            table: self.table.clone(),
            snapshots: self.subscribe(),
            counters: self.counters[index].clone(),
            slow_path,
            idle: Idle::Busy,
            probe,
            capture: self.capture.clone(),
            changes: self.changes.clone(),
            exchange: Arc::new(Exchange::new(1)),
        }
    }
}

/// What a worker has spent and done.
pub struct Run<P> {
    /// Packets received.
    pub packets: u64,
    /// Packets forwarded.
    pub forwarded: u64,
    /// CPU time.
    pub spent: Duration,
    /// What it noticed on the way.
    pub probe: P,
}

impl<P> Run<P> {
    /// TSC cycles a packet, of CPU time.
    pub fn cycles(&self) -> f64 {
        self.spent.as_secs_f64() * dpdk::clock::tsc_hz() as f64 / self.packets.max(1) as f64
    }
}

fn run_one<P: Probe>(worker: Worker<P>, core: usize, stop: &AtomicBool) -> Result<Run<P>> {
    cpu::pin(core)?;
    let lcore = Lcore::register()?;
    let counters = worker.counters.clone();
    let (packets, forwarded) = (counters.received.get(), counters.forwarded.get());
    let began = cpu::time();
    let probe = worker.run(&lcore, stop);
    let spent = cpu::time() - began;
    Ok(Run {
        packets: counters.received.get() - packets,
        forwarded: counters.forwarded.get() - forwarded,
        spent,
        probe,
    })
}

/// Opens connections through the data path, without worker and queues.
pub struct Opener {
    engine: Engine,
    snapshot: Arc<Snapshot>,
    setting: Setting,
    syn: Frames,
    ack: Frames,
}

impl Opener {
    fn new(engine: Engine, snapshot: Arc<Snapshot>, setting: &Setting) -> Opener {
        let [syn, ack] = [Flags::Syn, Flags::Ack].map(|flags| frames(setting, flags, SHORTEST));
        Opener { engine, snapshot, setting: setting.clone(), syn, ack }
    }

    /// A SYN and an ACK (or one datagram), and a reply where replies are seen; whether there was room. In order, as
    /// the servers' turns are known by it.
    pub fn open(&self, number: u32) -> Result<bool> {
        let forwarded = |verdict: Verdict| {
            ensure!(verdict == Verdict::Forward(0), "flow {number} was not forwarded: {verdict:?}");
            Ok(())
        };
        let verdict = self.send(&self.syn, Way::In, number);
        if verdict == Verdict::Drop(Drop::TableFull) {
            return Ok(false);
        }
        forwarded(verdict)?;
        if self.setting.protocol == Protocol::Tcp {
            forwarded(self.send(&self.ack, Way::In, number))?;
        }
        if self.setting.mode == Mode::Nat {
            forwarded(self.send(&self.ack, Way::Out, number))?;
        }
        Ok(true)
    }

    fn send(&self, frames: &Frames, way: Way, number: u32) -> Verdict {
        let mut frame = [frames.frame(way, frames.flow(number))];
        let mut verdicts = [Verdict::Forward(0); BURST];
        self.engine.process(&self.snapshot, now(), 0, &mut frame, &mut verdicts, &mut ());
        verdicts[0]
    }
}

/// Opens all connections of a setting.
///
/// At half load one flow in millions may find all of its sixteen slots taken: that is how the table is, and what is
/// measured is not changed by it.
fn open(opener: Opener) -> Result<()> {
    let flows = opener.setting.flows;
    let mut homeless = 0;
    for number in 0..flows {
        if !opener.open(number)? {
            homeless += 1;
            ensure!(homeless <= flows / 1_000_000, "flow {number} has found no room");
        }
    }
    Ok(())
}

fn frames(setting: &Setting, flags: Flags, size: u16) -> Frames {
    Frames::new(setting.mode, setting.protocol, flags, setting.services, setting.servers, size)
}

fn services(setting: &Setting, scheduler: Scheduler) -> Vec<ServiceSpec> {
    let frames = frames(setting, Flags::Ack, SHORTEST);
    let dest = |service, n| DestSpec {
        traffic: (0..setting.workers).map(|_| TrafficCounters::default()).collect(),
        ..DestSpec::new(
            DestId::new(1 + service * setting.servers + n).expect("not zero, and not so many"),
            frames.server(service, n),
        )
    };
    let service = |service| ServiceSpec {
        scheduler,
        timeouts: setting.timeouts,
        tunnel: TunnelSpec { source: Some(Ipv4Addr::from(OWN).into()), ..TunnelSpec::default() },
        dests: (0..setting.servers).map(|n| dest(service, n)).collect(),
        ..ServiceSpec::new(frames.service(service), setting.protocol, setting.mode)
    };
    (0..setting.services).map(service).collect()
}

/// One port; the servers are neighbours on it, the clients behind a gateway.
fn snapshot(generation: u64, specs: &[ServiceSpec]) -> Snapshot {
    const PORT: u16 = 0;
    const GATEWAY: u32 = 0xC613_00FE;
    let routes = [
        Route { prefix: 0, length: 0, via: Via::Gateway(PORT, GATEWAY) },
        Route { prefix: 0x0A00_0000, length: 8, via: Via::OnLink(PORT) },
    ];
    let servers = specs.iter().flat_map(|spec| &spec.dests).filter_map(|dest| match dest.address {
        SocketAddr::V4(four) => Some(u32::from(*four.ip())),
        SocketAddr::V6(_) => None,
    });
    let neighbours = servers.chain([GATEWAY]).map(|address| {
        let [_, a, b, c] = address.to_be_bytes();
        ((PORT, address), Adjacency::new(PORT, 1500, [2, 0, 1, a, b, c], ROUTER_MAC))
    });
    let fib = Fib::new(routes, neighbours);
    Snapshot::new(generation, vec![PortSpec { mac: ROUTER_MAC }], specs, [], fib)
}

/// The workers' time; without EAL nobody knows the clock's rate, and time stands still.
fn now() -> Tick {
    if dpdk::clock::tsc_hz() == 0 { Tick(1 << 20) } else { worker::now() }
}
