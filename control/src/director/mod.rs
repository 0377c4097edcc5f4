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
//!
//! What it has Linux do (addresses, neighbours) is in `linux`, what it tells the admin API in `answers`.

mod answers;
mod linux;

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataplane::counters::WorkerCounters;
use dataplane::fib::PortIndex;
use dataplane::snapshot::{Publisher, Snapshot};
use dataplane::table::Table;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

pub use self::answers::Handle;
use self::answers::Request;
use crate::admin::api;
use crate::compile::{self, Compiled, PortLink, service_name, targets};
use crate::config::{self, Config};
use crate::health::{Health, News, Verdict};
use crate::ids::{Ids, ServerKey, ServiceKey};
use crate::net::Watcher;
use crate::rates;
use crate::systemd;

/// Linux is told this often, in periods of the estimator, which neighbours are in use.
const NEIGHBOUR_PERIODS: u64 = 5;

/// How long the first snapshot waits for Linux to find the next hops.
const SETTLE: Duration = Duration::from_secs(1);

/// What the director is made of.
pub struct Parts {
    /// The configuration in force.
    pub config: Config,
    /// Linux' state.
    pub watcher: Watcher,
    /// What the snapshots say of the ports.
    pub ports: Vec<PortLink>,
    /// The connections.
    pub table: Arc<Table>,
    /// The workers' counters.
    pub workers: Vec<Arc<WorkerCounters>>,
    /// Health checks at one time.
    pub checks_at_once: usize,
    /// Who has started RVS, and is told how it does.
    pub manager: systemd::Manager,
}

/// The control thread's state.
pub struct Director {
    config: Config,
    watcher: Watcher,
    ports: Vec<PortLink>,
    table: Arc<Table>,
    workers: Vec<Arc<WorkerCounters>>,
    ids: Ids,
    health: Health,
    news: mpsc::UnboundedReceiver<News>,
    requests: mpsc::Receiver<Request>,
    publisher: Publisher,
    generation: u64,
    next_hops: BTreeSet<(PortIndex, Ipv4Addr)>,
    /// A round of asking Linux for neighbours, if one is under way.
    asking: JoinSet<()>,
    /// Virtual addresses that RVS has put on twins: (interface, address).
    placed: HashSet<(u32, Ipv4Addr)>,
    /// Whether Linux has refused to change one.
    misplaced: bool,
    /// Whether it has been said that somebody else has taken one away.
    missed: bool,
    manager: systemd::Manager,
}

impl Director {
    /// Compiles the first snapshot.
    pub fn new(parts: Parts) -> Result<(Director, Handle)> {
        let Parts { config, watcher, ports, table, workers, checks_at_once, manager } = parts;
        let (sender, news) = mpsc::unbounded_channel();
        let (requester, requests) = mpsc::channel(64);
        let empty = Snapshot::new(0, ports.iter().map(PortLink::spec).collect(), &[], [], Default::default());
        let mut director = Director {
            ids: Ids::new(workers.len()),
            config,
            watcher,
            ports,
            table,
            workers,
            health: Health::new(sender, checks_at_once),
            news,
            requests,
            publisher: Publisher::new(empty),
            generation: 0,
            next_hops: BTreeSet::new(),
            asking: JoinSet::new(),
            placed: HashSet::new(),
            misplaced: false,
            missed: false,
            manager,
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
        self.ask_for_missing_neighbours();
        while !self.knows_next_hops() {
            match tokio::time::timeout_at(deadline, self.watcher.changed()).await {
                Ok(change) => {
                    change.context("cannot follow Linux' network configuration")?;
                    self.publish();
                    self.ask_for_missing_neighbours();
                }
                Err(_) => {
                    tracing::warn!("not every next hop has answered yet; going on without");
                    break;
                }
            }
        }
        self.publish();
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
        self.manager.ready(&self.status());
        let mut watchdog = self.manager.watchdog();
        loop {
            tokio::select! {
                Some(()) = hangup.recv() => {
                    // The error has been logged; what was in force stays in force.
                    let _ = self.reload().await;
                }
                Some(news) = self.news.recv() => self.heed(&news),
                change = self.watcher.changed() => match change {
                    Ok(_) => self.publish(),
                    Err(error) => self.watch_anew(error).await?,
                },
                Some(request) = self.requests.recv() => self.answer(request).await,
                () = watchdog.tick() => {}
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
        if self.misplaced {
            self.place_virtual_addresses().await;
        }
        self.miss_addresses();
        if self.manager.listens() {
            self.manager.status(&self.status());
        }
        if periods.is_multiple_of(NEIGHBOUR_PERIODS) {
            self.refresh_neighbours();
        } else {
            self.ask_for_missing_neighbours();
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
        self.manager.reloading();
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
        self.manager.ready(&self.status());
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
        self.forget_unconfigured();
        self.publish();
        if let Err(error) = self.place_router_addresses().await {
            tracing::error!(error = format!("{error:#}"), "an address is not on its twin");
        }
        self.place_virtual_addresses().await;
        self.ask_for_missing_neighbours();
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

    /// From the next snapshot on, what the configuration does not name is gone.
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
        self.ids.retain(self.generation + 1, |service, server| servers.contains(&(*service, *server)));
        self.ids.retain_services(|service| services.contains(service));
    }

    fn watch_health(&mut self) {
        let targets = self
            .config
            .services
            .iter()
            .flat_map(|service| service.servers.iter().flat_map(move |server| targets(service, server)));
        self.health.watch(targets.collect::<Vec<_>>());
    }

    fn heed(&mut self, news: &News) {
        match news {
            News::Verdict(verdict) => self.tell(verdict),
            News::Weight(target, weight) => {
                tracing::info!(server = %target.address, weight, "server asks for a weight");
            }
        }
        self.publish();
    }

    fn tell(&self, verdict: &Verdict) {
        for service in &self.config.services {
            for server in &service.servers {
                if !targets(service, server).any(|target| target == verdict.target) {
                    continue;
                }
                let (name, server) = (service_name(service.protocol, service.address), server.address);
                let Verdict { checks, reason, .. } = verdict;
                if verdict.up {
                    tracing::info!(service = name, %server, checks, "server up");
                } else {
                    tracing::warn!(service = name, %server, checks, reason, "server down");
                }
            }
        }
    }

    /// Compiles what is known now and makes it the workers'.
    fn publish(&mut self) {
        let generation = self.generation + 1;
        let Compiled { snapshot, next_hops } = compile::compile(
            generation,
            &self.config,
            &mut self.ids,
            &self.health,
            self.watcher.mirror(),
            &self.ports,
        );
        self.publisher.publish(snapshot);
        self.generation = generation;
        self.next_hops = next_hops;
        tracing::debug!(generation, "published");
    }
}
