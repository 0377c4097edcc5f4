//! The control thread's main loop: everything that changes what the workers do goes through here, one thing
//! at a time.
//!
//! ```text
//!   SIGHUP, POST /v1/reload --> reload --+
//!   health verdicts ---------------------+--> compile --> publish --> workers
//!   links, addresses, routes, neighbours +
//!   every two seconds: rates, freed ids, neighbours in use
//!   admin requests: answered from here
//! ```

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataplane::counters::{Drop, Punt, Traffic, WorkerCounters};
use dataplane::fib::PortIndex;
use dataplane::snapshot::{Publisher, Snapshot};
use dataplane::table::{Table, Word};
use dataplane::worker;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use crate::admin::{self, api};
use crate::compile::{self, Compiled, PortLink, service_name, target};
use crate::config::{self, Config, Service};
use crate::health::{Health, Verdict};
use crate::ids::{Ids, ServerKey, ServiceKey};
use crate::net::{Twin, Watcher};
use crate::rates;
use crate::slowpath;

/// Linux is told this often, in periods of the estimator, which neighbours are in use.
const NEIGHBOUR_PERIODS: u64 = 5;

/// How long the first snapshot waits for Linux to find the next hops.
const SETTLE: Duration = Duration::from_secs(1);

/// How long every worker is waited for to use a new snapshot; some milliseconds are usual.
const ACKNOWLEDGE: Duration = Duration::from_secs(1);

/// Buckets that a listing reads at a time.
const LISTING_CHUNK: usize = 4096;

/// What somebody asks of the director.
enum Request {
    Services(oneshot::Sender<Vec<api::Service>>),
    Counters(oneshot::Sender<api::Counters>),
    Connections(oneshot::Sender<admin::Connections>),
    Reload(oneshot::Sender<Result<api::Reloaded>>),
}

/// A handle to ask the director; the admin API's backend.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Request>);

/// What the director is made of.
pub struct Parts {
    /// The configuration in force.
    pub config: Config,
    /// Linux' state.
    pub watcher: Watcher,
    /// The twins, in the order of the ports.
    pub twins: Vec<Rc<Twin>>,
    /// What the snapshots say of the ports.
    pub ports: Vec<PortLink>,
    /// The connections.
    pub table: Arc<Table>,
    /// The workers' counters.
    pub workers: Vec<Arc<WorkerCounters>>,
}

/// The control thread's state.
pub struct Director {
    config: Config,
    watcher: Watcher,
    twins: Vec<Rc<Twin>>,
    ports: Vec<PortLink>,
    table: Arc<Table>,
    workers: Vec<Arc<WorkerCounters>>,
    ids: Ids,
    health: Health,
    verdicts: mpsc::UnboundedReceiver<Verdict>,
    requests: mpsc::Receiver<Request>,
    publisher: Publisher,
    generation: u64,
    next_hops: BTreeSet<(PortIndex, Ipv4Addr)>,
    /// Whether there are servers that not every worker knew when the last snapshot was compiled.
    introduces: bool,
    /// Virtual addresses that RVS has put on twins: (interface, address).
    placed: HashSet<(u32, Ipv4Addr)>,
    /// Whether Linux has refused to change one.
    misplaced: bool,
}

impl Director {
    /// Compiles the first snapshot.
    pub fn new(parts: Parts) -> Result<(Director, Handle)> {
        let Parts { config, watcher, twins, ports, table, workers } = parts;
        let (sender, verdicts) = mpsc::unbounded_channel();
        let (requester, requests) = mpsc::channel(64);
        let empty = Snapshot::new(0, ports.iter().map(PortLink::spec).collect(), &[], Default::default());
        let mut director = Director {
            ids: Ids::new(workers.len()),
            config,
            watcher,
            twins,
            ports,
            table,
            workers,
            health: Health::new(sender),
            verdicts,
            requests,
            publisher: Publisher::new(empty),
            generation: 0,
            next_hops: BTreeSet::new(),
            introduces: false,
            placed: HashSet::new(),
            misplaced: false,
        };
        director.check_room(&director.config)?;
        director.publish();
        Ok((director, Handle(requester)))
    }

    /// Puts the router's addresses on the twins, begins to check health, and lets Linux find the next hops,
    /// though not for ever, since a server may be off; then puts the virtual addresses there. In this order a
    /// client never meets a virtual address without servers: until the address is there, Linux answers nothing
    /// for it. Needs the workers and the pumps to run.
    pub async fn settle(&mut self) -> Result<()> {
        self.place_router_addresses().await?;
        self.watch_health();
        let deadline = Instant::now() + SETTLE;
        self.ask_for_missing_neighbours().await;
        while !self.knows_next_hops() {
            match tokio::time::timeout_at(deadline, self.watcher.changed()).await {
                Ok(change) => {
                    change.context("cannot follow Linux' network configuration")?;
                    self.publish();
                    self.ask_for_missing_neighbours().await;
                }
                Err(_) => {
                    tracing::warn!("not every next hop has answered yet; going on without");
                    break;
                }
            }
        }
        self.introduce().await;
        self.place_virtual_addresses().await;
        Ok(())
    }

    fn knows_next_hops(&self) -> bool {
        let known = &self.watcher.mirror().neighbours;
        // The routes themselves may be news: without one there is no next hop to wait for.
        let routed = self.watcher.mirror().routes.iter().any(|route| self.is_twin(route.ifindex));
        routed
            && self
                .next_hops
                .iter()
                .all(|&(port, address)| known.contains_key(&(self.ifindex(port), address)))
    }

    fn is_twin(&self, ifindex: u32) -> bool {
        self.ports.iter().any(|port| port.ifindex == ifindex)
    }

    fn ifindex(&self, port: PortIndex) -> u32 {
        self.ports[usize::from(port)].ifindex
    }

    /// A worker's view of the snapshots.
    pub fn subscribe(&self) -> dataplane::snapshot::Subscriber {
        self.publisher.subscribe()
    }

    /// Runs for ever; `hangup` is SIGHUP.
    pub async fn run(&mut self, mut hangup: Signal) -> Result<()> {
        let mut period = tokio::time::interval(Duration::from_secs_f64(rates::PERIOD));
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut periods = 0u64;
        loop {
            tokio::select! {
                Some(()) = hangup.recv() => {
                    // The error has been logged; what was in force stays in force.
                    let _ = self.reload().await;
                }
                Some(verdict) = self.verdicts.recv() => self.heed(&verdict),
                change = self.watcher.changed() => match change {
                    Ok(_) => self.publish(),
                    Err(error) => self.watch_anew(error).await?,
                },
                Some(request) = self.requests.recv() => self.answer(request).await,
                _ = period.tick() => {
                    periods += 1;
                    self.every_period(periods).await;
                }
            }
        }
    }

    async fn every_period(&mut self, periods: u64) {
        for service in self.ids.services_mut() {
            service.sample();
        }
        self.ids.release(&self.workers);
        self.publisher.reclaim();
        if self.introduces {
            self.publish();
        }
        if self.misplaced {
            self.place_virtual_addresses().await;
        }
        if periods.is_multiple_of(NEIGHBOUR_PERIODS) {
            self.refresh_neighbours().await;
        } else {
            self.ask_for_missing_neighbours().await;
        }
    }

    /// The watcher has lost Linux: what it knew stays in force while another one starts.
    async fn watch_anew(&mut self, error: anyhow::Error) -> Result<()> {
        tracing::error!(
            error = format!("{error:#}"),
            "cannot follow Linux' network configuration; trying again"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.watcher = Watcher::start().await?;
        self.publish();
        Ok(())
    }

    /// Reads the file again and, if it is good, puts it in force; if not, nothing changes.
    async fn reload(&mut self) -> Result<api::Reloaded> {
        let result = self.try_reload().await;
        match &result {
            Ok(reloaded) => tracing::info!(
                generation = reloaded.generation,
                services = reloaded.services,
                servers = reloaded.servers,
                "reloaded"
            ),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "reload refused, nothing has changed")
            }
        }
        result
    }

    async fn try_reload(&mut self) -> Result<api::Reloaded> {
        let new = config::load(&self.config.path)?;
        if let Some(key) = self.config.needs_restart(&new) {
            return Err(new
                .error(&key, "cannot change while RVS runs; restart it, or put the old value back")
                .into());
        }
        self.check_room(&new)?;
        // From here on nothing can fail.
        self.config = new;
        self.watch_health();
        self.introduce().await;
        self.forget_unconfigured();
        self.place_virtual_addresses().await;
        self.ask_for_missing_neighbours().await;
        let servers = self.config.services.iter().map(|service| service.servers.len() as u64).sum();
        Ok(api::Reloaded {
            generation: self.generation,
            services: self.config.services.len() as u64,
            servers,
        })
    }

    fn check_room(&self, config: &Config) -> Result<()> {
        let servers: usize = config.services.iter().map(|service| service.servers.len()).sum();
        ensure!(
            servers <= self.ids.room(),
            "{servers} real servers are more than can be told apart now; try again in ten seconds"
        );
        Ok(())
    }

    fn forget_unconfigured(&mut self) {
        let services: HashSet<ServiceKey> = self.config.services.iter().map(ServiceKey::of).collect();
        let servers: HashSet<(ServiceKey, ServerKey)> = self
            .config
            .services
            .iter()
            .flat_map(|service| {
                let key = ServiceKey::of(service);
                service.servers.iter().map(move |server| (key, ServerKey::of(service, server)))
            })
            .collect();
        self.ids.retain(self.generation, |service, server| servers.contains(&(*service, *server)));
        self.ids.retain_services(|service| services.contains(service));
    }

    fn watch_health(&mut self) {
        let targets = self
            .config
            .services
            .iter()
            .flat_map(|service| service.servers.iter().filter_map(move |server| target(service, server)));
        self.health.watch(targets.collect::<Vec<_>>());
    }

    fn heed(&mut self, verdict: &Verdict) {
        for service in &self.config.services {
            let concerned = service
                .servers
                .iter()
                .any(|server| target(service, server).as_ref() == Some(&verdict.target));
            if !concerned {
                continue;
            }
            let name = service_name(service.protocol, service.address);
            let server = verdict.target.address;
            if verdict.up {
                tracing::info!(service = name, %server, checks = verdict.checks, "server up");
            } else {
                tracing::warn!(service = name, %server, checks = verdict.checks, reason = verdict.reason, "server down");
            }
        }
        self.publish();
    }

    /// Compiles what is known now and makes it the workers'.
    fn publish(&mut self) {
        let generation = self.generation + 1;
        let Compiled { snapshot, next_hops, introduces } = compile::compile(
            generation,
            self.seen(),
            &self.config,
            &mut self.ids,
            &self.health,
            self.watcher.mirror(),
            &self.ports,
        );
        self.publisher.publish(snapshot);
        self.generation = generation;
        self.next_hops = next_hops;
        self.introduces = introduces;
        tracing::debug!(generation, "published");
    }

    /// Publishes, and once every worker has seen that publishes again, so that new servers may be picked. In
    /// between some workers know a new server and some do not; if it was picked already, the latter would take
    /// its connections for those of a removed server. Milliseconds; a worker that takes longer is not waited
    /// for, the next period goes on.
    async fn introduce(&mut self) {
        self.publish();
        let deadline = Instant::now() + ACKNOWLEDGE;
        while self.introduces && self.seen() < self.generation && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if self.introduces {
            self.publish();
        }
    }

    /// The oldest generation that a worker may still be using.
    fn seen(&self) -> u64 {
        self.workers.iter().map(|worker| worker.generation.get()).min().unwrap_or(0)
    }

    /// Puts the ports' own addresses on the twins.
    async fn place_router_addresses(&mut self) -> Result<()> {
        let linux = self.watcher.handle();
        for (port, link) in self.config.ports.iter().zip(&self.ports) {
            for prefix in &port.addresses {
                linux
                    .add_address(link.ifindex, prefix.address, prefix.length)
                    .await
                    .with_context(|| format!("cannot put {prefix} on {}", port.name))?;
            }
        }
        Ok(())
    }

    /// Puts the virtual addresses on their twins, and takes away those that RVS had put there and that are
    /// not configured any more. What Linux refuses is tried again in the next period.
    async fn place_virtual_addresses(&mut self) {
        let linux = self.watcher.handle();
        let wanted = self.virtual_addresses();
        self.misplaced = false;
        for &(ifindex, address) in wanted.difference(&self.placed.clone()) {
            match linux.add_address(ifindex, address, 32).await {
                Ok(true) => drop(self.placed.insert((ifindex, address))),
                // What somebody else has put there is not ours to take away.
                Ok(false) => {}
                Err(error) => self.misplace(address, &error),
            }
        }
        for (ifindex, address) in self.placed.clone().difference(&wanted) {
            match linux.remove_address(*ifindex, *address, 32).await {
                Ok(()) => drop(self.placed.remove(&(*ifindex, *address))),
                Err(error) => self.misplace(*address, &error),
            }
        }
    }

    fn misplace(&mut self, address: Ipv4Addr, error: &anyhow::Error) {
        self.misplaced = true;
        let error = format!("{error:#}");
        tracing::error!(%address, error, "a virtual address is not on, or still on, its twin; trying again");
    }

    /// The virtual addresses, each with the interface that is to have it.
    fn virtual_addresses(&self) -> HashSet<(u32, Ipv4Addr)> {
        let place = |service: &Service| {
            let port = self.config.port_of(service);
            let own = port.addresses.iter().any(|prefix| prefix.address == *service.address.ip());
            let index = self.config.ports.iter().position(|other| other.name == port.name)?;
            (!own).then_some((self.ports[index].ifindex, *service.address.ip()))
        };
        self.config.services.iter().filter_map(place).collect()
    }

    /// Tells Linux that the next hops are in use, so that it keeps them fresh and notices a new MAC.
    async fn refresh_neighbours(&self) {
        self.ask_for(|_| true).await;
    }

    async fn ask_for_missing_neighbours(&self) {
        let known = &self.watcher.mirror().neighbours;
        self.ask_for(|key| !known.contains_key(key)).await;
    }

    async fn ask_for(&self, which: impl Fn(&(u32, Ipv4Addr)) -> bool) {
        let linux = self.watcher.handle();
        for &(port, address) in &self.next_hops {
            if which(&(self.ifindex(port), address)) {
                slowpath::ask(&linux, &self.twins, port, address).await;
            }
        }
    }

    /// Whoever asked may have gone meanwhile; then nobody takes the answer.
    async fn answer(&mut self, request: Request) {
        match request {
            Request::Services(reply) => {
                let services = self.config.services.iter().map(|service| self.describe(service)).collect();
                let _ = reply.send(services);
            }
            Request::Counters(reply) => {
                let _ = reply.send(self.counters());
            }
            Request::Connections(reply) => {
                let _ = reply.send(self.connections());
            }
            Request::Reload(reply) => {
                let _ = reply.send(self.reload().await);
            }
        }
    }

    fn describe(&self, service: &Service) -> api::Service {
        let record = self.ids.service(&ServiceKey::of(service));
        let servers = service.servers.iter().map(|server| {
            let known = record.and_then(|record| record.servers.get(&ServerKey::of(service, server)));
            let target = target(service, server);
            let (active, inactive) = known.map_or((0, 0), |known| known.gauge.get());
            api::Server {
                address: server.address,
                mode: service.mode.name().to_owned(),
                weight: server.weight,
                up: target.as_ref().is_none_or(|target| self.health.is_up(target)),
                reason: target.and_then(|target| self.health.reason(&target)),
                active: active.into(),
                inactive: inactive.into(),
                stats: stats(known.map(|known| known.traffic()).unwrap_or_default()),
                rates: rates(known.map(|known| known.meter.rates()).unwrap_or_default()),
            }
        });
        api::Service {
            protocol: service.protocol.name().to_owned(),
            address: service.address,
            scheduler: service.scheduler.name().to_owned(),
            flags: service.flags.iter().map(|flag| flag.name().to_owned()).collect(),
            mode: service.mode.name().to_owned(),
            stats: stats(record.map(|record| record.traffic()).unwrap_or_default()),
            rates: rates(record.map(|record| record.meter.rates()).unwrap_or_default()),
            servers: servers.collect(),
        }
    }

    fn counters(&self) -> api::Counters {
        let workers = self.workers.iter().zip(&self.config.workers.cores).zip(0..);
        let workers = workers.map(|((counters, &core), index)| worker_counters(index, core, counters));
        let connections =
            self.config.services.iter().filter_map(|service| self.ids.service(&ServiceKey::of(service)));
        let connections = connections.flat_map(|record| record.servers.values()).map(|server| {
            let (active, inactive) = server.gauge.get();
            u64::from(active) + u64::from(inactive)
        });
        api::Counters {
            generation: self.generation,
            table: api::Table { slots: self.table.slots() as u64, connections: connections.sum() },
            workers: workers.collect(),
        }
    }

    /// Reads the table bucket by bucket, when the reader asks for more.
    fn connections(&self) -> admin::Connections {
        let (table, snapshot) = (self.table.clone(), self.publisher.current());
        let chunks = (0..table.buckets()).step_by(LISTING_CHUNK);
        Box::new(chunks.flat_map(move |start| {
            let end = (start + LISTING_CHUNK).min(table.buckets());
            let list = |word| connection(&snapshot, word);
            table.words(start..end).filter_map(list).collect::<Vec<_>>()
        }))
    }
}

fn connection(snapshot: &Snapshot, word: Word) -> Option<api::Connection> {
    let dest = snapshot.dest_of(word)?;
    let service = &snapshot.services[dest.service as usize];
    let (state, age) = (word.state(), word.age(worker::now()));
    let timeout = service.timeout(state);
    if timeout.has_passed(age) {
        return None;
    }
    let socket = |address: u32, port| std::net::SocketAddrV4::new(address.into(), port);
    Some(api::Connection {
        protocol: service.protocol.name().to_owned(),
        client: word.client().socket(),
        virtual_: socket(dest.virtual_address, dest.virtual_port),
        server: socket(dest.address, dest.port),
        state: state.name().to_owned(),
        expires: timeout.remaining(age),
    })
}

fn worker_counters(index: u32, core: usize, counters: &WorkerCounters) -> api::Worker {
    let Traffic { connections, packets_in, packets_out, bytes_in, bytes_out } = counters.traffic.get();
    api::Worker {
        index,
        core: core as u32,
        polls: counters.polls.get(),
        empty_polls: counters.empty_polls.get(),
        bursts: counters.bursts.get(),
        received: counters.received.get(),
        forwarded: counters.forwarded.get(),
        punted: Punt::ALL.iter().map(|&r| (r.name().to_owned(), counters.punted[r as usize].get())).collect(),
        dropped: Drop::ALL
            .iter()
            .map(|&r| (r.name().to_owned(), counters.dropped[r as usize].get()))
            .collect(),
        injected: counters.injected.get(),
        inject_dropped: counters.inject_dropped.get(),
        connections,
        packets_in,
        packets_out,
        bytes_in,
        bytes_out,
    }
}

fn stats(traffic: Traffic) -> api::Stats {
    let Traffic { connections, packets_in, packets_out, bytes_in, bytes_out } = traffic;
    api::Stats { connections, packets_in, packets_out, bytes_in, bytes_out }
}

fn rates(traffic: Traffic) -> api::Rates {
    let Traffic { connections, packets_in, packets_out, bytes_in, bytes_out } = traffic;
    api::Rates { connections, packets_in, packets_out, bytes_in, bytes_out }
}

impl Handle {
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        self.0.send(request(sender)).await.ok().context("RVS is stopping")?;
        receiver.await.context("RVS is stopping")
    }
}

impl admin::Backend for Handle {
    async fn services(&self) -> Result<Vec<api::Service>> {
        self.ask(Request::Services).await
    }

    async fn connections(&self) -> Result<admin::Connections> {
        self.ask(Request::Connections).await
    }

    async fn counters(&self) -> Result<api::Counters> {
        self.ask(Request::Counters).await
    }

    async fn reload(&self) -> Result<api::Reloaded> {
        self.ask(Request::Reload).await?
    }
}
