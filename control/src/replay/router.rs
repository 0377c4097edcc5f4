//! A router without machine: the packet path of `rvs run`, fed by hand.
//!
//! The engine, the table, the compiler of snapshots and the judgement of servers are those of a running router. What differs: a packet is a
//! burst of its own, so that what becomes of it does not depend on what came beside it; there is one worker; time is an argument; and
//! what is random in a running router comes from a seed.

use std::fmt;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Result, ensure};
use dataplane::clock::{TICKS_PER_SECOND, Tick};
use dataplane::counters::{Drop, WorkerCounters};
use dataplane::engine::{BURST, Connection, Engine, Found, Frame, Owner, Probe, Side, Stage, Verdict};
use dataplane::fib::PortIndex;
use dataplane::fragments::Waiting;
use dataplane::scheduler::Reason;
use dataplane::snapshot::Snapshot;
use dataplane::snat::Snats;
use dataplane::table::{DestId, HashKey, Table};
use dataplane::worker::Sweeper;
use siphasher::sip::SipHasher13;
use tokio::time::Instant;

use super::network::Network;
use crate::compile;
use crate::config::{Config, Server, Service};
use crate::effects::{Effects, Health};
use crate::ids::{Ids, ServerKey, ServiceKey};
use crate::keep::Pools;
use crate::services::Services;

/// The counter that time is given by: nanoseconds.
const HZ: u64 = 1_000_000_000;

/// The tick in which the first packet comes: some days after the machine was switched on.
const BEGIN: u64 = 1 << 20;

/// A router without machine, for frames of some kind.
pub struct Router<F> {
    services: Services,
    ids: Ids,
    snapshot: Snapshot,
    engine: Engine,
    counters: Arc<WorkerCounters>,
    sweeper: Sweeper,
    waiting: Waiting<F>,
}

/// A real server that is to be taken for dead, at one port or at all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Down {
    /// Its address.
    pub address: IpAddr,
    /// Its port; none: all.
    pub port: Option<u16>,
}

/// What has become of a packet, and why.
#[derive(Clone, Debug)]
pub struct Fate {
    /// What has become of it.
    pub verdict: Verdict,
    /// Whose it is, or whose connection an ICMP error is about; none if it left the path before that was asked.
    pub side: Option<Side>,
    /// Its connection, as it was before.
    pub before: Option<Connection>,
    /// Its connection, as it is now.
    pub after: Option<Connection>,
    /// What the scheduler went by, if it was asked.
    pub reason: Option<Reason>,
}

impl Fate {
    /// Without its reasons.
    pub fn of(verdict: Verdict) -> Fate {
        Fate { verdict, side: None, before: None, after: None, reason: None }
    }
}

impl<F: Frame> Router<F> {
    /// A router with this configuration, in which all real servers but these are alive.
    pub fn new(config: &Config, network: &Network, down: &[Down], seed: u64) -> Result<Router<F>> {
        for down in down {
            let is_known = config.services.iter().any(|service| {
                let servers = service.servers.iter().map(|server| server.address);
                servers.chain(service.availability.sorry_server).any(|server| down.is(server))
            });
            ensure!(is_known, "--down: {down} is no real server; expected one of the configuration's");
        }
        let services =
            Services::new(config.services.clone()).with_flow_key(config.scheduling.flow_key, Instant::now());
        let health = |_: &Service, server: &Server| {
            let up = !down.iter().any(|down| down.is(server.address));
            Health { up, weight: None }
        };
        let mut effects = Effects::default();
        // Only how long servers have been there depends on the moment, and all of them have just come.
        effects.judge(services.present(), health, Instant::now());
        let random = |which| SipHasher13::new_with_keys(seed, which).finish();
        let mut ids = Ids::new(1).with_key([random(2), random(3)]);
        let (ports, fibs) = (network.ports(), network.fibs());
        let snapshot = compile::compile(1, &services, &effects, &mut ids, |_| true, ports, fibs)
            .with_sources(config.sources.clone())
            .with_routing(config.routing.forward);

        let key = HashKey { blind: random(0), factor: random(1) };
        let mut pools = Pools::new(key);
        pools.follow(&config.routing.snats, tick(0));
        let snapshot = snapshot.with_snats(Snats::new(pools.snats()));
        let table = Arc::new(Table::new(config.table.connections as usize, key));
        let sweeper = Sweeper::new(0..table.buckets(), 0, HZ);
        let counters: Arc<WorkerCounters> = Arc::default();
        let engine = Engine::new(0, table, counters.clone());
        let waiting = Waiting::default();
        Ok(Router { services, ids, snapshot, engine, counters, sweeper, waiting })
    }

    /// Takes a packet that comes in on a port, so many nanoseconds after the first one, and rewrites it. Time must not go back.
    pub fn take(&mut self, now: u64, port: PortIndex, frame: &mut F) -> Verdict {
        self.advance(now);
        self.process(tick(now), port, frame, &mut ())
    }

    /// The same, and says why.
    pub fn explain(&mut self, now: u64, port: PortIndex, frame: &mut F) -> Fate {
        self.advance(now);
        let now = tick(now);
        let begun = self.counters.traffic.connections.get();
        let related = self.engine.related(&self.snapshot, now, frame.bytes());
        let (engine, snapshot) = (&self.engine, &self.snapshot);
        let mut witness = Witness { engine, snapshot, now, seen: None };
        let verdict = self.process(now, port, frame, &mut witness);
        let Some(Seen { owner, before, reason }) = witness.seen else {
            // It may be about a connection all the same, which it does not change.
            let connection = related.and_then(|owner| self.engine.connection(&self.snapshot, now, &owner));
            let side = related.map(|owner| owner.side);
            return Fate { verdict, side, before: connection, after: connection, reason: None };
        };
        let is_asked =
            self.counters.traffic.connections.get() > begun || verdict == Verdict::Drop(Drop::NoServer);
        let after = self.engine.connection(&self.snapshot, now, &owner);
        Fate { verdict, side: Some(owner.side), before, after, reason: reason.filter(|_| is_asked) }
    }

    /// Keeps a fragment that is to wait ([`Verdict::Hold`]). Gives back one for which there is no room any more, this one or another.
    pub fn hold(&mut self, now: u64, port: PortIndex, frame: F) -> Option<(F, Verdict)> {
        let (frame, reason) = self.engine.hold(&mut self.waiting, tick(now), port, frame)?;
        count(&self.counters, Verdict::Drop(reason));
        Some((frame, Verdict::Drop(reason)))
    }

    /// The fragments that wait no more, after a packet or after some time: where they came in, rewritten if they are forwarded, and
    /// what has become of them.
    pub fn settle(&mut self, now: u64) -> Vec<(PortIndex, F, Verdict)> {
        let mut settled = Vec::new();
        if !self.waiting.is_empty() {
            let Router { engine, snapshot, waiting, .. } = self;
            engine.settle(snapshot, tick(now), waiting, false, |port, frame, verdict| {
                settled.push((port, frame, verdict));
            });
        }
        settled.iter().for_each(|(_, _, verdict)| count(&self.counters, *verdict));
        settled
    }

    /// What has been counted.
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// The service with this index in the snapshot.
    pub fn service(&self, index: u32) -> Option<&Service> {
        self.services.present().get(self.snapshot.home_of(index).0 as usize)
    }

    /// The service and the address of a connection's real server.
    pub fn server(&self, id: DestId) -> Option<(&Service, SocketAddr)> {
        let dest = self.snapshot.dest(id)?;
        Some((self.service(dest.service)?, dest.address))
    }

    /// Each real server with its service, in the order of the configuration, and what it has had.
    pub fn servers(
        &self,
    ) -> impl Iterator<Item = (ServiceKey, SocketAddr, dataplane::counters::Traffic)> + '_ {
        self.services.present().iter().flat_map(move |service| {
            let key = ServiceKey::of(service);
            let record = self.ids.service(&key);
            let own = service.servers.iter().map(|server| ServerKey::of(service, server));
            own.chain(ServerKey::of_sorry(service)).filter_map(move |server| {
                let traffic = record?.servers.get(&server)?.traffic();
                Some((key, server.address, traffic))
            })
        })
    }

    /// What has expired until now goes, as it does in a running router: all of the table once in four seconds.
    fn advance(&mut self, now: u64) {
        loop {
            while let Some(buckets) = self.sweeper.due(now) {
                self.engine.sweep(&self.snapshot, tick(now), buckets);
            }
            if !self.sweeper.finished(now) {
                return;
            }
        }
    }

    fn process(&self, now: Tick, port: PortIndex, frame: &mut F, probe: &mut impl Probe) -> Verdict {
        let mut verdicts = [Verdict::Drop(Drop::Runt); BURST];
        let burst = std::slice::from_mut(frame);
        self.engine.process(&self.snapshot, now, port, burst, &mut verdicts, probe);
        self.counters.received.add(1);
        count(&self.counters, verdicts[0]);
        verdicts[0]
    }
}

/// Counts a packet under the one name that it has.
fn count(counters: &WorkerCounters, verdict: Verdict) {
    match verdict {
        Verdict::Forward(_) | Verdict::Route(_) => counters.forwarded.add(1),
        Verdict::Punt(reason) => counters.punted(reason, 1),
        Verdict::Drop(reason) => counters.dropped(reason, 1),
        // When it waits no more.
        Verdict::Hold => {}
    }
}

impl Down {
    fn is(&self, server: SocketAddr) -> bool {
        server.ip() == self.address && self.port.is_none_or(|port| port == server.port())
    }
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

/// Looks at the connection table and at the scheduler before the engine acts on a packet.
struct Witness<'a> {
    engine: &'a Engine,
    snapshot: &'a Snapshot,
    now: Tick,
    seen: Option<Seen>,
}

struct Seen {
    owner: Owner,
    before: Option<Connection>,
    reason: Option<Reason>,
}

impl Probe for Witness<'_> {
    const WATCHES: bool = true;

    fn done(&mut self, _: Stage) {}

    fn found(&mut self, found: &Found) {
        let (engine, snapshot, owner) = (self.engine, self.snapshot, found.owner);
        let reason = engine.reason(snapshot, self.now, found);
        let before = engine.connection(snapshot, self.now, &owner);
        self.seen = Some(Seen { owner, before, reason });
    }
}

/// Not from 0 on, where a running router's clock never is.
fn tick(now: u64) -> Tick {
    Tick(BEGIN + now / (HZ / u64::from(TICKS_PER_SECOND)))
}
