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
mod live;
mod metrics;
mod overload;

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataplane::capture;
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
use self::metrics::Metrics;
use self::overload::Overload;
use crate::admin::{api, tcp};
use crate::compile::{self, Compiled, PortLink, targets};
use crate::config::{self, Check, Config, Server, Service};
use crate::effects::{self, Effects, Happening};
use crate::events::{Events, Kind};
use crate::health::{Health, News, Verdict};
use crate::hooks::Hooks;
use crate::ids::{Ids, ServerKey, ServiceKey};
use crate::net::Watcher;
use crate::rates;
use crate::services::Services;
use crate::services::diff::diff;
use crate::services::live::service_of;
use crate::systemd;

/// Linux is told this often, in periods of the estimator, which neighbours are in use.
const NEIGHBOUR_PERIODS: u64 = 5;

/// News of health that one snapshot takes in.
const NEWS_AT_ONCE: usize = 256;

/// How long the first snapshot waits for Linux to find the next hops.
const SETTLE: Duration = Duration::from_secs(1);

/// What the director is made of.
pub struct Parts {
    /// The configuration in force.
    pub config: Config,
    /// What a reload renews of the admin API on TCP, if it is there.
    pub remote: Option<tcp::Settings>,
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
    /// Where it says what happens.
    pub events: Events,
    /// Where the workers are told to capture.
    pub capture: Arc<capture::Switch>,
}

/// The control thread's state.
pub struct Director {
    /// Without its services, which are in `services`.
    config: Config,
    remote: Option<tcp::Settings>,
    services: Services,
    effects: Effects,
    /// When effects are to be judged again.
    wake: Option<Instant>,
    watcher: Watcher,
    ports: Vec<PortLink>,
    table: Arc<Table>,
    workers: Vec<Arc<WorkerCounters>>,
    capture: Arc<capture::Switch>,
    ids: Ids,
    health: Health,
    news: mpsc::UnboundedReceiver<News>,
    requests: mpsc::Receiver<Request>,
    publisher: Publisher,
    generation: u64,
    next_hops: BTreeSet<(PortIndex, Ipv4Addr)>,
    hooks: Hooks,
    /// A round of asking Linux for neighbours, if one is under way.
    asking: JoinSet<()>,
    /// Virtual addresses that RVS has put on twins: (interface, address).
    placed: HashSet<(u32, Ipv4Addr)>,
    /// Whether Linux has refused to change one.
    misplaced: bool,
    /// Whether it has been said that somebody else has taken one away.
    missed: bool,
    manager: systemd::Manager,
    /// Those of which it has been said that Linux refuses to change them.
    refused: HashSet<Ipv4Addr>,
    events: Events,
    metrics: Metrics,
    overload: Overload,
}

impl Director {
    /// Compiles the first snapshot.
    pub fn new(parts: Parts) -> Result<(Director, Handle)> {
        let Parts {
            mut config,
            remote,
            watcher,
            ports,
            table,
            workers,
            checks_at_once,
            manager,
            events,
            capture,
        } = parts;
        let (sender, news) = mpsc::unbounded_channel();
        let (requester, requests) = mpsc::channel(64);
        let empty = Snapshot::new(0, ports.iter().map(PortLink::spec).collect(), &[], [], Default::default());
        let mut director = Director {
            ids: Ids::new(workers.len()),
            services: Services::new(std::mem::take(&mut config.services)),
            effects: Effects::default(),
            wake: None,
            config,
            remote,
            watcher,
            ports,
            table,
            workers,
            capture,
            health: Health::new(sender, checks_at_once),
            news,
            requests,
            publisher: Publisher::new(empty),
            generation: 0,
            next_hops: BTreeSet::new(),
            hooks: Hooks::new(events.clone()),
            asking: JoinSet::new(),
            placed: HashSet::new(),
            misplaced: false,
            missed: false,
            manager,
            refused: HashSet::new(),
            events: events.clone(),
            metrics: Metrics::default(),
            overload: Overload::default(),
        };
        director.check_room(director.services.running())?;
        director.publish();
        Ok((director, Handle(requester, events)))
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
                Some(news) = self.news.recv() => {
                    self.heed(&news);
                    // Ten thousand servers that went down at once kept everybody who asked waiting for 35 s, with a
                    // snapshot for each. So there is one for many, and then a turn for others.
                    for _ in 1..NEWS_AT_ONCE {
                        let Ok(news) = self.news.try_recv() else { break };
                        self.heed(&news);
                    }
                    self.publish();
                    tokio::task::yield_now().await;
                }
                change = self.watcher.changed() => match change {
                    Ok(_) => self.publish(),
                    Err(error) => self.watch_anew(error).await?,
                },
                Some(request) = self.requests.recv() => self.answer(request).await,
                () = watchdog.tick() => {}
                () = until(self.wake) => self.publish(),
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
        self.let_go();
        self.publisher.reclaim();
        if self.misplaced {
            self.place_virtual_addresses().await;
        }
        self.miss_addresses();
        if self.manager.listens() {
            self.manager.status(&self.status());
        }
        self.notice_overload();
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
        self.events.publish(Kind::LinuxLost { error: format!("{error:#}") });
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.watcher = Watcher::start().await?;
        self.publish();
        Ok(())
    }

    /// Reads the file again and, if it is good, puts it in force; if not, nothing changes.
    async fn reload(&mut self) -> Result<api::Reloaded> {
        self.manager.reloading();
        let result = self.try_reload().await;
        self.events.publish(Kind::of_reload(&result, self.generation));
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
        let mut new = self.read_file()?;
        let services = std::mem::take(&mut new.services);
        let plan = self.services.plan(services);
        self.check_room(plan.running())?;
        let changes = diff(self.services.running(), plan.running());
        // From here on nothing can fail.
        if let Some((remote, tcp)) = self.remote.as_ref().zip(new.admin.tcp.as_ref()) {
            remote.renew(tcp);
        }
        self.config = new;
        let overruled = self.services.carry_out(plan, Instant::now());
        self.expire();
        self.put_in_force().await;
        Ok(self.reloaded(changes, overruled, false))
    }

    /// What a reload would do.
    fn try_reload_dry(&self) -> Result<api::Reloaded> {
        let new = self.read_file()?;
        let plan = self.services.plan(new.services);
        self.check_room(plan.running())?;
        let changes = diff(self.services.running(), plan.running());
        Ok(self.reloaded(changes, Vec::new(), true))
    }

    /// The file as it is now, if it could be put in force.
    fn read_file(&self) -> Result<Config> {
        let new = config::load(&self.config.path)?;
        match self.config.needs_restart(&new) {
            None => Ok(new),
            Some(key) => {
                let message = "cannot change while RVS runs; restart it, or put the old value back";
                Err(new.error(&key, message).into())
            }
        }
    }

    fn reloaded(&self, changes: Vec<api::Change>, overruled: Vec<String>, dry_run: bool) -> api::Reloaded {
        let running = self.services.running();
        let servers = running.iter().map(|service| service.servers.len() as u64).sum();
        let services = running.len() as u64;
        api::Reloaded { generation: self.generation, services, servers, changes, overruled, dry_run }
    }

    /// After the services have changed: everything that depends on them.
    async fn put_in_force(&mut self) {
        self.watch_health();
        self.forget_unconfigured();
        self.publish();
        if let Err(error) = self.place_router_addresses().await {
            tracing::error!(error = format!("{error:#}"), "an address is not on its twin");
        }
        self.place_virtual_addresses().await;
        self.ask_for_missing_neighbours();
    }

    fn check_room(&self, services: &[Service]) -> Result<()> {
        let servers: usize = services.iter().map(|service| service.servers.len() + 1).sum();
        ensure!(
            servers <= self.ids.room(),
            "{servers} real servers are more than can be told apart now; try again in ten seconds"
        );
        Ok(())
    }

    /// Lets go of servers that were leaving and have left, and of drained ones that are due.
    fn let_go(&mut self) {
        if self.expire() {
            self.watch_health();
            self.forget_unconfigured();
            self.publish();
            // A service may have been the last at its address.
            self.misplaced = true;
        }
    }

    /// Whether servers have left.
    fn expire(&mut self) -> bool {
        let ids = &self.ids;
        let connections = |service, server| {
            let known = ids.service(&service).and_then(|record| record.servers.get(&server));
            known.map_or(0, |known| {
                let (active, inactive) = known.gauge.get();
                u64::from(active) + u64::from(inactive)
            })
        };
        self.services.expire(Instant::now(), connections)
    }

    /// From the next snapshot on, what is not present any more is gone.
    fn forget_unconfigured(&mut self) {
        let present = self.services.present();
        let services: HashSet<ServiceKey> = present.iter().map(ServiceKey::of).collect();
        let servers = present.iter().flat_map(|service| {
            let own = service.servers.iter().map(|server| ServerKey::of(service, server));
            own.chain(ServerKey::of_sorry(service)).map(|server| (ServiceKey::of(service), server))
        });
        let servers: HashSet<(ServiceKey, ServerKey)> = servers.collect();
        self.ids.retain(self.generation + 1, |service, server| servers.contains(&(*service, *server)));
        self.ids.retain_services(|service| services.contains(service));
        self.hooks.retain(|service| services.contains(service));
    }

    fn watch_health(&mut self) {
        let services = self.services.present().iter();
        let targets =
            services.flat_map(|service| service.servers.iter().flat_map(|server| targets(service, server)));
        self.health.watch(targets.collect::<Vec<_>>());
    }

    fn heed(&self, news: &News) {
        match news {
            News::Verdict(verdict) => self.tell(verdict),
            News::Weight(target, weight) => {
                tracing::info!(server = %target.address, weight, "server asks for a weight");
            }
        }
    }

    fn tell(&self, verdict: &Verdict) {
        for service in self.services.present() {
            for server in &service.servers {
                // By address first: a target is made of copies, and there may be ten thousand of each.
                let at = |check: &Check| check.target(server.address) == verdict.target.address;
                if !service.checks.iter().any(at)
                    || !targets(service, server).any(|target| target == verdict.target)
                {
                    continue;
                }
                let (name, server) = (ServiceKey::of(service).to_string(), server.address);
                let Verdict { checks, reason, .. } = verdict;
                self.events.publish(Kind::of_verdict(verdict, &name, server));
                if verdict.up {
                    tracing::info!(service = name, %server, checks, "server up");
                } else {
                    tracing::warn!(service = name, %server, checks, reason, "server down");
                }
            }
        }
    }

    /// Judges and compiles what is known now, and makes it the workers'.
    fn publish(&mut self) {
        let health = &self.health;
        let of = |service: &Service, server: &Server| {
            let begin = effects::Health { up: true, weight: None };
            targets(service, server).fold(begin, |so_far, target| effects::Health {
                up: so_far.up && health.is_up(&target),
                weight: so_far.weight.or_else(|| health.weight(&target)),
            })
        };
        let (happenings, wake) = self.effects.judge(self.services.present(), of, Instant::now());
        self.wake = wake;
        for happening in &happenings {
            self.tell_happening(happening);
        }
        let generation = self.generation + 1;
        let Compiled { snapshot, next_hops } = compile::compile(
            generation,
            &self.services,
            &self.effects,
            &mut self.ids,
            self.watcher.mirror(),
            &self.ports,
        );
        self.publisher.publish(snapshot);
        self.generation = generation;
        self.next_hops = next_hops;
        tracing::debug!(generation, "published");
    }

    fn tell_happening(&mut self, happening: &Happening) {
        let service = match happening {
            // Its checks have been heard already.
            Happening::Server { service, .. } => service,
            Happening::Held { service, server, until } => {
                // To the nearest: a moment of them has passed already.
                let seconds = (*until - Instant::now()).as_secs_f64().round() as u64;
                tracing::warn!(%service, %server, seconds, "server has gone down too often and is held down");
                let (service_name, server) = (service.to_string(), *server);
                self.events.publish(Kind::ServerHeld { service: service_name, server, seconds });
                service
            }
            Happening::Quorum { service, up: true, weight } => {
                tracing::info!(%service, weight, "quorum gained");
                self.events.publish(Kind::QuorumGained { service: service.to_string(), weight: *weight });
                service
            }
            Happening::Quorum { service, up: false, weight } => {
                tracing::warn!(%service, weight, "quorum lost");
                self.events.publish(Kind::QuorumLost { service: service.to_string(), weight: *weight });
                service
            }
        };
        if let Some(known) = service_of(self.services.present(), *service) {
            self.hooks.run(&known.availability.hooks, happening);
        }
    }
}

/// Waits until then; for ever if there is no then.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}
