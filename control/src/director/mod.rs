//! The control thread's main loop: everything that changes what the workers do goes through here, one thing
//! at a time.
//!
//! ```text
//!   SIGHUP, POST /v1/reload --> the file is read --+
//!   health verdicts -------------------------------+--> compile --> publish --> workers
//!   links, addresses, routes, neighbours ----------+
//!   every two seconds: rates, freed ids, neighbours in use
//!   admin requests: answered from here
//! ```
//!
//! What it has Linux do (addresses, neighbours) is in `linux`, what it tells the admin API in `answers`, what takes the
//! configuration file in `errands`, and how often it publishes in `pace`.
//!
//! Nothing here may take long, since everybody else waits meanwhile: with ten thousand servers that go down together
//! an answer takes some milliseconds, and a reload of as many services reads its file in another thread.

mod announce;
mod answers;
mod errands;
mod in_force;
mod leaving;
mod linux;
mod live;
mod metrics;
mod overload;
mod pace;
mod peers;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataplane::capture;
use dataplane::counters::WorkerCounters;
use dataplane::fib::{Fibs, PortIndex};
use dataplane::snapshot::{Publisher, Snapshot};
use dataplane::snat::Snats;
use dataplane::table::Table;
use dataplane::worker::now;
use tokio::signal::unix::Signal;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

pub use self::answers::Handle;
use self::answers::Request;
use self::errands::{Errand, Errands};
use self::leaving::Departure;
use self::metrics::Metrics;
use self::overload::Overload;
use self::pace::Pace;
use self::peers::Peers;
use crate::addresses::{Orders, Standings};
use crate::admin::tcp;
use crate::compile::{self, PortLink, targets};
use crate::config::{Config, Server, Service};
use crate::effects::{self, Effects, Happening};
use crate::events::{Events, Kind};
use crate::health::{Health, News, Verdict};
use crate::hooks::Hooks;
use crate::ids::{Ids, ServerKey, ServiceKey};
use crate::keep::{Keep, Pools};
use crate::net::{Change, Watcher};
use crate::rates;
use crate::rivals::Rivals;
use crate::services::live::service_of;
use crate::services::{List, Services};
use crate::sync;
use crate::systemd;
use crate::upgrade::{Desk, Knowledge};

/// Linux is told this often, in periods of the estimator, which neighbours are in use.
const NEIGHBOUR_PERIODS: u64 = 5;

/// How long news of health are told, one after the other, before others have a turn: each is a line in the log.
const NEWS_AT_ONCE: Duration = Duration::from_millis(2);

/// How long the first snapshot waits for Linux to find the next hops.
const SETTLE: Duration = Duration::from_secs(1);

/// What the director is made of.
pub struct Parts {
    /// The configuration in force, but for its services.
    pub config: Config,
    /// Its services, and those of an earlier process.
    pub services: Services,
    /// What a reload renews of the admin API on TCP, if it is there.
    pub remote: Option<tcp::Settings>,
    /// Linux' state.
    pub watcher: Watcher,
    /// What the snapshots say of the ports.
    pub ports: Vec<PortLink>,
    /// The connections.
    pub table: Arc<Table>,
    /// Who they are about.
    pub ids: Ids,
    /// Source NAT, with its mappings.
    pub pools: Pools,
    /// Where all are kept for the next process, if they are.
    pub keep: Option<Keep>,
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
    /// How it stands with peers, if there are any.
    pub peers: Option<Arc<sync::Shared>>,
    /// Virtual addresses that a predecessor has put on twins: (interface, address).
    pub placed: HashSet<(u32, IpAddr)>,
    /// What a predecessor knew.
    pub knowledge: Knowledge,
    /// Who is asked for an upgrade.
    pub desk: Desk,
    /// Notified when RVS is to end, because somebody has asked for it by the admin API.
    pub stop: Arc<Notify>,
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
    pace: Pace,
    watcher: Watcher,
    ports: Vec<PortLink>,
    table: Arc<Table>,
    workers: Vec<Arc<WorkerCounters>>,
    capture: Arc<capture::Switch>,
    peers: Peers,
    rivals: Arc<Rivals>,
    /// Whether this router still learns what its peers know, and takes no virtual address before.
    learning: bool,
    /// Whether it is known how things stand: checks are made, and next hops have been asked for.
    is_settled: bool,
    desk: Desk,
    ids: Ids,
    /// Source NAT, with its mappings.
    pools: Pools,
    keep: Option<Keep>,
    health: Health,
    news: mpsc::UnboundedReceiver<News>,
    requests: mpsc::Receiver<Request>,
    errands: Errands,
    publisher: Publisher,
    generation: u64,
    /// The services that the current snapshot was compiled from.
    published: List,
    /// Linux' routes and neighbours, compiled, unless they have changed since.
    fibs: Option<Fibs>,
    hooks: Hooks,
    /// A round of asking Linux for neighbours, if one is under way.
    asking: JoinSet<()>,
    /// Virtual addresses that somebody else has put on a twin, if services follow them.
    live: HashSet<IpAddr>,
    /// Virtual addresses that RVS has put on twins: (interface, address).
    placed: HashSet<(u32, IpAddr)>,
    /// Whether one is still to be put on its twin or taken away, because that has just been decided, or Linux has refused.
    misplaced: bool,
    /// What of the virtual addresses is withdrawn by order, and how all of them stand.
    orders: Orders,
    standings: Standings,
    /// The end that loses nothing, if it is under way, and what was said of it last.
    departure: Option<Departure>,
    leaving: Option<String>,
    stop: Arc<Notify>,
    /// Whether it has been said that somebody else has taken one away.
    missed: bool,
    manager: systemd::Manager,
    /// Those of which it has been said that Linux refuses to change them.
    refused: HashSet<IpAddr>,
    events: Events,
    metrics: Metrics,
    overload: Overload,
}

impl Director {
    /// Compiles the first snapshot.
    pub fn new(parts: Parts) -> Result<(Director, Handle)> {
        let Parts {
            config,
            services,
            remote,
            watcher,
            ports,
            table,
            ids,
            pools,
            keep,
            workers,
            checks_at_once,
            manager,
            events,
            capture,
            peers,
            placed,
            knowledge: Knowledge { orders, checks, .. },
            desk,
            stop,
        } = parts;
        let peers = Peers::new(peers);
        let (sender, news) = mpsc::unbounded_channel();
        let (requester, requests) = mpsc::channel(64);
        let empty = Snapshot::new(0, ports.iter().map(PortLink::spec).collect(), &[], [], Fibs::default());
        let mut director = Director {
            rivals: Arc::new(Rivals::new(ports.iter().map(|link| link.mac).collect())),
            ids,
            pools,
            keep,
            services,
            effects: Effects::default(),
            wake: None,
            pace: Pace::default(),
            config,
            remote,
            watcher,
            ports,
            table,
            workers,
            capture,
            learning: !peers.is_ready(),
            is_settled: false,
            desk: desk.clone(),
            peers,
            health: Health::new(sender, checks_at_once),
            news,
            requests,
            errands: Errands::default(),
            publisher: Publisher::new(empty),
            generation: 0,
            published: List::default(),
            fibs: None,
            hooks: Hooks::new(events.clone()),
            asking: JoinSet::new(),
            live: HashSet::new(),
            placed,
            misplaced: false,
            orders,
            standings: Standings::new(),
            departure: None,
            leaving: None,
            stop,
            missed: false,
            manager,
            refused: HashSet::new(),
            events: events.clone(),
            metrics: Metrics::default(),
            overload: Overload::default(),
        };
        director.check_room(director.services.running())?;
        if !checks.is_empty() {
            // The first snapshot is to know what the last one knew.
            director.health.inherit(checks);
            director.watch_health();
        }
        director.publish();
        let workers = director.workers.clone().into();
        Ok((director, Handle { requests: requester, events, desk, workers }))
    }

    /// Puts the router's addresses on the twins, begins to check health, and lets Linux find the next hops,
    /// though not for ever, since a server may be off; then puts the virtual addresses there, unless peers are still
    /// telling of connections. In this order a client never meets a virtual address without servers: until the
    /// address is there, Linux answers nothing for it. Needs the workers and the pumps to run.
    pub async fn settle(&mut self) -> Result<()> {
        self.place_router_addresses().await?;
        self.restore_macs().await;
        self.watch_health();
        let deadline = Instant::now() + SETTLE;
        self.ask_for_missing_neighbours();
        while !self.knows_next_hops() {
            match tokio::time::timeout_at(deadline, self.watcher.changed()).await {
                Ok(change) => {
                    change.context("cannot follow Linux' network configuration")?;
                    self.restore_macs().await;
                    self.fibs = None;
                    self.publish();
                    self.ask_for_missing_neighbours();
                }
                Err(_) => {
                    tracing::warn!("not every next hop has answered yet; going on without");
                    break;
                }
            }
        }
        self.fibs = None;
        self.is_settled = true;
        self.publish();
        self.place_virtual_addresses().await;
        Ok(())
    }

    /// Who else says that it has our addresses: for whoever sees ARP.
    pub fn rivals(&self) -> Arc<Rivals> {
        self.rivals.clone()
    }

    fn knows_next_hops(&self) -> bool {
        let known = &self.watcher.mirror().neighbours;
        // The routes themselves may be news: without one there is no next hop to wait for.
        let routed = self.watcher.mirror().routes.iter().any(|route| self.is_twin(route.ifindex));
        routed
            && self
                .next_hops()
                .iter()
                .all(|&(port, address)| known.contains_key(&(self.ifindex(port), address)))
    }

    /// The neighbours that servers and gateways are reached through; and all that are known, if packets are routed to whomever.
    fn next_hops(&self) -> BTreeSet<(PortIndex, IpAddr)> {
        let (mirror, ports) = (self.watcher.mirror(), &self.ports);
        let fibs = &self.publisher.current().fibs;
        let mut hops = compile::next_hops(self.services.present(), mirror, ports, fibs);
        if self.config.routing.forward {
            hops.extend(compile::neighbours(mirror, ports));
        }
        hops
    }

    fn is_twin(&self, ifindex: u32) -> bool {
        self.ports.iter().any(|port| port.ifindex == ifindex)
    }

    fn ifindex(&self, port: PortIndex) -> u32 {
        self.ports[usize::from(port)].ifindex
    }

    /// What a successor has to know.
    pub fn knowledge(&self) -> Knowledge {
        Knowledge {
            is_ready: !self.learning,
            orders: self.orders.clone(),
            checks: self.health.known(),
            changes: self.services.changes(Instant::now()),
        }
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
        if self.learning {
            tracing::info!(
                "learning connections from peers; virtual addresses and readiness come after that"
            );
        }
        self.say_ready();
        let mut watchdog = self.manager.watchdog();
        loop {
            tokio::select! {
                Some(()) = hangup.recv() => self.begin(Errand::Reload { dry_run: false, reply: None }),
                Some(news) = self.news.recv() => {
                    self.heed(news);
                    // Whoever asks comes in between, also when there are news without end.
                    if let Ok(request) = self.requests.try_recv() {
                        self.answer(request).await;
                    }
                    tokio::task::yield_now().await;
                }
                change = self.watcher.changed() => match change {
                    Ok(change) => {
                        if change == Change::Other {
                            self.restore_macs().await;
                        }
                        self.fibs = None;
                        self.pace.ask(Instant::now());
                    }
                    Err(error) => self.watch_anew(error).await?,
                },
                Some(request) = self.requests.recv() => self.answer(request).await,
                (errand, file) = self.errands.read() => self.finish(errand, file).await,
                () = self.peers.until_ready(), if self.learning => self.have_learned().await,
                () = watchdog.tick() => {}
                () = until(self.wake) => {
                    self.wake = None;
                    self.pace.ask(Instant::now());
                }
                () = until(self.pace.due()) => {
                    self.publish();
                    self.mend_addresses().await;
                }
                () = until(self.departure.as_ref().map(Departure::due)) => self.look_at_departure(),
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
        self.ids.release(&self.workers, self.peers.generation());
        self.record_ids();
        self.peers.notice(&self.events);
        self.let_go();
        self.publisher.reclaim();
        // Before addresses are put there, since the mirror hears of them a moment later.
        self.miss_addresses();
        self.judge_addresses();
        self.mend_addresses().await;
        self.notice_rivals();
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

    /// What peers know is known here: from now on this router may be asked for it.
    async fn have_learned(&mut self) {
        self.learning = false;
        tracing::info!("the connections of peers are known");
        self.judge_addresses();
        self.place_virtual_addresses().await;
        self.say_ready();
    }

    /// Tells the service manager that all is up; while it is not, why.
    fn say_ready(&mut self) {
        let status = self.status();
        if self.learning {
            self.manager.status(&status);
        } else {
            self.manager.ready(&status);
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
        self.restore_macs().await;
        self.fibs = None;
        self.publish();
        Ok(())
    }

    /// After the services have changed: everything that depends on them.
    async fn put_in_force(&mut self) {
        self.prepare();
        self.publish();
        self.place().await;
    }

    /// What comes before a snapshot with other services.
    fn prepare(&mut self) {
        self.watch_health();
        self.forget_unconfigured();
    }

    /// What Linux has to do for them.
    async fn place(&mut self) {
        if let Err(error) = self.place_router_addresses().await {
            tracing::error!(error = format!("{error:#}"), "an address is not on its twin");
        }
        self.place_virtual_addresses().await;
        self.ask_for_missing_neighbours();
    }

    /// Answers whoever has asked, in the middle of something long.
    async fn give_way(&mut self) {
        // To be accepted, to be read and to be asked is a turn each.
        for _ in 0..4 {
            tokio::task::yield_now().await;
            while let Ok(request) = self.requests.try_recv() {
                self.answer(request).await;
            }
        }
    }

    fn check_room(&self, services: &[Service]) -> Result<()> {
        let servers: usize = services.iter().map(Service::numbers).sum();
        ensure!(
            servers <= self.ids.room(),
            "{servers} real servers are more than can be told apart now; try again in ten seconds"
        );
        Ok(())
    }

    /// Lets go of servers that were leaving and have left, and of drained ones that are due. Who begins to leave has left in a later
    /// snapshot at the earliest: a worker with an older one may be about to begin a connection with a server that has none. And of pools
    /// of source NAT that were replaced.
    fn let_go(&mut self) {
        if in_force::is_used(&self.workers, self.generation) {
            self.pools.settle(now());
        }
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
        let is_in_force = in_force::is_used(&self.workers, self.generation);
        self.services.expire(Instant::now(), in_force::may_have_connections(&self.ids, is_in_force))
    }

    /// From the next snapshot on, what is not present any more is gone.
    fn forget_unconfigured(&mut self) {
        let present = self.services.present().iter();
        let present: HashMap<ServiceKey, &Service> =
            present.map(|service| (ServiceKey::of(service), service)).collect();
        self.ids.retain(self.generation + 1, |key| {
            let service = present.get(key)?;
            let own = service.servers.iter().map(|server| ServerKey::of(service, server));
            Some(own.chain(ServerKey::of_sorry(service)).collect())
        });
        self.ids.retain_faces(self.generation + 1, |key, face| {
            let marked = present.get(key).and_then(|service| service.mark.as_ref());
            marked.is_some_and(|marked| marked.faces.contains_key(face))
        });
        self.hooks.retain(|service| present.contains_key(service));
    }

    fn watch_health(&mut self) {
        let targets = self.services.present().iter().flat_map(|service| {
            let key = ServiceKey::of(service);
            service.servers.iter().flat_map(move |server| {
                targets(service, server).map(move |target| (target, (key, server.address)))
            })
        });
        self.health.watch(targets);
    }

    /// Tells what the checks say, this and what else has come, for a while. In force it is with the next snapshot.
    fn heed(&mut self, first: News) {
        let began = Instant::now();
        let mut next = Some(first);
        while let Some(news) = next {
            match news {
                News::Verdict(verdict) => self.tell(&verdict),
                News::Weight(target, weight) => {
                    tracing::info!(server = %target.address, weight, "server asks for a weight");
                }
            }
            next = if began.elapsed() < NEWS_AT_ONCE { self.news.try_recv().ok() } else { None };
        }
        self.pace.ask(Instant::now());
    }

    fn tell(&self, verdict: &Verdict) {
        let Verdict { target, up, checks, reason } = verdict;
        for (service, server) in self.health.users(target) {
            let name = service.to_string();
            self.events.publish(Kind::of_verdict(verdict, &name, *server));
            if *up {
                tracing::info!(service = name, %server, checks, "server up");
            } else {
                tracing::warn!(service = name, %server, checks, reason, "server down");
            }
        }
    }

    /// Judges and compiles what is known now, and makes it the workers'.
    fn publish(&mut self) {
        let began = Instant::now();
        let health = &self.health;
        let of = |service: &Service, server: &Server| {
            let begin = effects::Health { up: true, weight: None };
            targets(service, server).fold(begin, |so_far, target| {
                let (up, weight) = health.says(&target);
                effects::Health { up: so_far.up && up, weight: so_far.weight.or(weight) }
            })
        };
        let (happenings, wake) = self.effects.judge(self.services.present(), of, Instant::now());
        self.wake = wake;
        for happening in &happenings {
            self.tell_happening(happening);
        }
        self.follow_addresses();
        self.judge_addresses();
        let follows = self.follows();
        let generation = self.generation + 1;
        self.pools.follow(&self.config.routing.snats, now());
        let (mirror, ports) = (self.watcher.mirror(), &self.ports);
        let fibs = self.fibs.get_or_insert_with(|| compile::fibs(mirror, ports)).clone();
        let (services, effects, ids) = (&self.services, &self.effects, &mut self.ids);
        let is_live = |address| !follows || self.live.contains(&address);
        let ports = ports.iter().map(PortLink::spec).collect();
        let snapshot = compile::compile(generation, services, effects, ids, is_live, ports, fibs);
        let snapshot =
            snapshot.with_sources(self.config.sources.clone()).with_routing(self.config.routing.forward);
        let snapshot = snapshot.with_snats(Snats::new(self.pools.snats()));
        self.record_ids();
        self.publisher.publish(snapshot);
        self.generation = generation;
        self.published = self.services.present().clone();
        self.pace.made(began, Instant::now());
        tracing::debug!(generation, took = ?began.elapsed(), "published");
    }

    /// Remembers for the next process who the ids are and where mappings are, before workers use new ones.
    fn record_ids(&mut self) {
        if let Some(keep) = &mut self.keep {
            keep.record(&mut self.ids, &mut self.pools);
        }
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
