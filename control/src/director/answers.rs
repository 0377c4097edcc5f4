//! What the director tells the admin API: services, counters, connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use anyhow::{Context, Result};
use dataplane::counters::{Drop, Punt, Traffic, WorkerCounters};
use dataplane::fib::PortIndex;
use dataplane::service::{Mode, SchedulerFlag, State, Track};
use dataplane::snapshot::Snapshot;
use dataplane::snat::{Given, Host, Snat};
use dataplane::table::{Slot, Table, Word};
use dataplane::worker;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::errands::Errand;
use super::leaving::{self, Listener};
use super::metrics::Gathered;
use super::{Director, in_force};
use crate::admin::{self, Flush, Order, Stop, api, capture, explain, upgrade};
use crate::capture::Capture;
use crate::compile::targets;
use crate::config::{Marked, Server, Service, Share, value};
use crate::events::Events;
use crate::explain::Explainer;
use crate::ids::{Face, ServerKey, ServiceKey};
use crate::metrics::Format;
use crate::upgrade::Desk;

/// Buckets that a listing reads at a time.
const LISTING_CHUNK: usize = 4096;

/// What somebody asks of the director.
pub(super) enum Request {
    Services(oneshot::Sender<Vec<api::Service>>),
    Counters(oneshot::Sender<api::Counters>),
    Snat(oneshot::Sender<admin::Pools>),
    Sync(oneshot::Sender<api::Sync>),
    Metrics(oneshot::Sender<Gathered>),
    Connections(oneshot::Sender<admin::Connections>),
    Reload {
        dry_run: bool,
        reply: oneshot::Sender<Result<api::Reloaded>>,
    },
    Change {
        order: Order,
        reply: oneshot::Sender<Result<api::Changed>>,
    },
    /// Whoever has changed something knows that it is in force.
    LetGo(oneshot::Sender<()>),
    Diff(oneshot::Sender<Result<Vec<api::Change>>>),
    Save(oneshot::Sender<Result<api::Saved>>),
    Stop(Stop, Listener),
    /// A signal has come, and others may be sending here.
    Leave(Listener),
    Flush {
        filter: api::Filter,
        reply: oneshot::Sender<Result<Flush>>,
    },
    Capture(capture::Question, oneshot::Sender<Result<Capture>>),
    Explain(explain::Question, oneshot::Sender<Result<explain::Explanation>>),
    /// A port, by its number, has another device, with this MAC.
    Device(usize, [u8; 6], oneshot::Sender<()>),
}

/// A handle to ask the director; the admin API's backend.
#[derive(Clone)]
pub struct Handle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) events: Events,
    pub(super) desk: Desk,
    pub(super) workers: Arc<[Arc<WorkerCounters>]>,
}

impl Director {
    /// Whoever asked may have gone meanwhile; then nobody takes the answer.
    pub(super) async fn answer(&mut self, request: Request) {
        match request {
            Request::Services(reply) => {
                let services = self.services.listed().iter().map(|service| self.describe(service)).collect();
                let _ = reply.send(services);
            }
            Request::Counters(reply) => {
                let _ = reply.send(self.counters());
            }
            Request::Snat(reply) => {
                let snats = self.pools.snats();
                let read = move || snats.iter().map(|snat| pool(snat)).collect();
                let _ = reply.send(Box::new(read));
            }
            Request::Sync(reply) => {
                let mut sync = self.peers.describe();
                sync.withdrawn = self.orders.router || self.orders.stopping;
                sync.ready &= !sync.withdrawn;
                let _ = reply.send(sync);
            }
            Request::Metrics(reply) => {
                let _ = reply.send(self.gather());
            }
            Request::Connections(reply) => {
                let _ = reply.send(self.connections());
            }
            Request::Reload { dry_run, reply } => self.begin(Errand::Reload { dry_run, reply: Some(reply) }),
            Request::Change { order, reply } => {
                let _ = reply.send(self.change(order).await);
            }
            Request::Diff(reply) => self.begin(Errand::Diff(reply)),
            Request::Save(reply) => self.begin(Errand::Save(reply)),
            Request::Stop(stop, listener) => self.stop(stop, listener).await,
            Request::Leave(listener) => self.leave(leaving::BRIEF, listener).await,
            Request::Flush { filter, reply } => {
                let _ = reply.send(self.flush(filter));
            }
            Request::Capture(question, reply) => {
                let ports: Vec<String> = self.config.ports.iter().map(|port| port.name.clone()).collect();
                let _ = reply.send(Capture::begin(&self.capture, &ports, &question));
            }
            Request::Explain(question, reply) => {
                let _ = reply.send(self.explain(&question));
            }
            Request::LetGo(reply) => {
                self.let_go();
                self.mend_addresses().await;
                let _ = reply.send(());
            }
            Request::Device(port, mac, reply) => {
                self.has_device(port, mac).await;
                let _ = reply.send(());
            }
        }
    }

    fn explain(&self, question: &explain::Question) -> Result<explain::Explanation> {
        let down = |service: &Service, server: &Server| {
            targets(service, server).find_map(|target| self.health.reason(&target))
        };
        // Of the snapshot: a reload that gives way between its steps may have changed what is present.
        let (services, ports, marks) = (&self.published[..], &self.config.ports[..], &self.config.marks);
        let (snapshot, table) = (self.publisher.current(), &self.table);
        Explainer { services, ports, marks, snapshot: &snapshot, table, now: worker::now(), down: &down }
            .explain(question)
    }

    /// A line for `systemctl status`.
    pub(super) fn status(&self) -> String {
        if self.learning {
            return "learning connections from peers".to_owned();
        }
        if let Some(leaving) = &self.leaving {
            return leaving.clone();
        }
        let of_service = |service: &Service| {
            let is_up = |server: &&_| targets(service, server).all(|target| self.health.is_up(&target));
            (service.servers.len(), service.servers.iter().filter(is_up).count())
        };
        let services = self.services.running();
        let (servers, up) = services
            .iter()
            .map(of_service)
            .fold((0, 0), |sum, of_service| (sum.0 + of_service.0, sum.1 + of_service.1));
        let services = services.len();
        format!("services: {services}; real servers up: {up} of {servers}")
    }

    pub(super) fn describe(&self, service: &Service) -> api::Service {
        let key = ServiceKey::of(service);
        let record = self.ids.service(&key);
        let sorry = ServerKey::of_sorry(service).map(|server| (server, None));
        let servers = service.servers.iter().map(|server| (ServerKey::of(service, server), Some(server)));
        let snapshot = self.publisher.current();
        let servers = servers.chain(sorry).map(|(id, server)| {
            let known = record.and_then(|record| record.servers.get(&id));
            let is_here = known.and_then(|known| snapshot.dest(known.id)).is_some_and(|dest| dest.is_here);
            let reason =
                server.and_then(|server| targets(service, server).find_map(|t| self.health.reason(&t)));
            let (active, inactive) = known.map_or((0, 0), |known| known.gauge.get());
            let duty = self.effects.duty(key, id.address);
            let limits = server.and_then(|server| server.limits);
            let until = self.services.deadline(key, id.address);
            let state = match server {
                None => "sorry",
                Some(_) if self.services.is_leaving(key, id.address) => "leaving",
                Some(server) => server.state.name(),
            };
            let held =
                self.effects.held(key, id.address).map(|_| "held down: it went down too often".to_owned());
            api::Server {
                address: id.address,
                mode: if is_here { api::HERE } else { service.mode.name() }.to_owned(),
                weight: server.map_or(1, |server| server.weight),
                effective_weight: duty.weight.div_ceil(duty.scale),
                state: state.to_owned(),
                remaining: until.map(|until| until.saturating_duration_since(Instant::now()).as_secs()),
                up: server.is_none() || self.effects.is_up(key, id.address),
                reason: reason.or(held),
                active: active.into(),
                inactive: inactive.into(),
                upper_threshold: limits.map(|limits| limits.upper),
                lower_threshold: limits.map(|limits| limits.lower),
                persistent: known.map_or(0, |known| known.gauge.templates()).into(),
                stats: stats(known.map(|known| known.traffic()).unwrap_or_default()),
                rates: rates(known.map(|known| known.meter.rates()).unwrap_or_default()),
            }
        });
        api::Service {
            protocol: key.protocol.name().to_owned(),
            address: service.address,
            mark: service.mark.as_ref().map(|marked| self.mark(marked)),
            ports: service.ports.iter().map(value::shown_ports).collect(),
            scheduler: service.scheduler.name().to_owned(),
            // In ipvsadm's order, whatever the file's.
            flags: SchedulerFlag::ALL
                .iter()
                .filter(|flag| service.flags.contains(flag))
                .map(|flag| flag.name().to_owned())
                .collect(),
            mode: service.mode.name().to_owned(),
            one_packet: service.one_packet,
            persistence: service
                .persistence
                .map(|how| api::Persistence { timeout: how.seconds, prefix: how.prefix }),
            helper: service.helper.map(|helper| helper.name().to_owned()),
            at_risk: service.track == Track::AtRisk,
            tunnel: (service.mode == Mode::Tunnel).then(|| service.tunnel.encapsulation.to_string()),
            withdrawn: service.virtual_addresses().find_map(|address| self.withdrawn_reason(address)),
            syn_flood: record
                .and_then(|record| record.flood(worker::now()))
                .map(|flood| api::SynFlood { shut: flood.shut, syns: flood.syns }),
            stats: stats(record.map(|record| record.traffic()).unwrap_or_default()),
            rates: rates(record.map(|record| record.meter.rates()).unwrap_or_default()),
            servers: servers.collect(),
        }
    }

    fn mark(&self, marked: &Marked) -> api::Mark {
        let routers = &self.config.ports;
        let faces = |(face, own): (&Face, &Share)| {
            let parts = own.parts(routers.len()).into_iter();
            let part = |(incoming, ports): (Vec<PortIndex>, Vec<RangeInclusive<u16>>)| api::Face {
                protocol: face.protocol.name().to_owned(),
                address: face.address,
                ports: ports.iter().map(value::shown_ports).collect(),
                incoming: incoming.iter().map(|&port| routers[usize::from(port)].name.clone()).collect(),
                withdrawn: self.withdrawn_reason(face.address),
            };
            parts.map(part).collect::<Vec<_>>()
        };
        api::Mark { number: marked.number, addresses: marked.faces.iter().flat_map(faces).collect() }
    }

    fn withdrawn_reason(&self, address: IpAddr) -> Option<String> {
        self.standings.get(&address)?.as_ref().map(ToString::to_string)
    }

    pub(super) fn counters(&self) -> api::Counters {
        let workers = self.workers.iter().zip(&self.config.workers.cores).zip(0..);
        let workers = workers.map(|((counters, &core), index)| worker_counters(index, core, counters));
        let connections =
            self.services.present().iter().filter_map(|service| self.ids.service(&ServiceKey::of(service)));
        let connections = connections.flat_map(|record| record.servers.values()).map(|server| {
            let (active, inactive) = server.gauge.get();
            u64::from(active) + u64::from(inactive)
        });
        let queues = self.workers.len() as u32;
        let ports = self.config.ports.iter().zip(&self.ports).map(|(port, link)| api::Port {
            name: port.name.clone(),
            queues,
            hashed: link.device.hashed().map(|dpdk::Hashed { addresses, tcp_ports, udp_ports }| {
                api::Hashed { addresses, tcp_ports, udp_ports }
            }),
            // A network's is the port's that it is on.
            device: port.tag.is_none().then(|| link.device.describe()),
            vlan: port.tag.map(|tag| api::Vlan {
                port: self.config.ports[usize::from(tag.port)].name.clone(),
                id: tag.id,
            }),
        });
        api::Counters {
            generation: self.generation,
            table: api::Table { slots: self.table.slots() as u64, connections: connections.sum() },
            mappings: self.pools.snats().iter().map(|snat| snat.mappings()).sum(),
            workers: workers.collect(),
            ports: ports.collect(),
        }
    }

    /// Reads the table bucket by bucket, when the reader asks for more.
    fn connections(&self) -> admin::Connections {
        let (table, snapshot) = (self.table.clone(), self.publisher.current());
        let chunks = (0..table.buckets()).step_by(LISTING_CHUNK);
        Box::new(chunks.flat_map(move |start| {
            let end = (start + LISTING_CHUNK).min(table.buckets());
            let list = |(slot, word)| connection(&table, &snapshot, slot, word);
            table.entries(start..end).filter_map(list).collect::<Vec<_>>()
        }))
    }
}

fn connection(table: &Table, snapshot: &Snapshot, slot: Slot, word: Word) -> Option<api::Connection> {
    let dest = snapshot.dest_of(word)?;
    let service = &snapshot.services[dest.service as usize];
    let (state, age) = (word.state(), word.age(worker::now()));
    let timeout = service.timeout(state);
    if timeout.has_passed(age) {
        return None;
    }
    Some(api::Connection {
        protocol: service.protocol.name().to_owned(),
        // After a restart the address of an IPv6 client that is silent is not known. (Of a template the port is none.)
        client: snapshot.client_of(table, slot, word).unwrap_or_else(|| {
            let port = if state == State::Template { 0 } else { word.client().port() };
            (Ipv6Addr::UNSPECIFIED, port).into()
        }),
        virtual_: snapshot.virtual_of(table, slot, word)?,
        local: snapshot.local_port_of(table, slot, word),
        server: dest.address,
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
        routed: counters.routed.get(),
        routed_bytes: counters.routed_bytes.get(),
        punted: Punt::ALL.iter().map(|&r| (r.name().to_owned(), counters.punted[r as usize].get())).collect(),
        dropped: Drop::ALL
            .iter()
            .map(|&r| (r.name().to_owned(), counters.dropped[r as usize].get()))
            .collect(),
        waiting: counters.waiting.get(),
        held: counters.held.get(),
        ftp_unchanged: counters.ftp_unchanged.get(),
        injected: counters.injected.get(),
        inject_dropped: counters.inject_dropped.get(),
        connections,
        packets_in,
        packets_out,
        bytes_in,
        bytes_out,
    }
}

/// A pool of source NAT, which is read while it changes.
fn pool(snat: &Snat) -> api::SnatPool {
    let spec = snat.spec();
    let network = |&(address, length): &(u32, u8)| format!("{}/{length}", Ipv4Addr::from(address));
    let hosts = snat.hosts().into_iter().map(|Host { inside, outside, blocks, ports: [tcp, udp, icmp] }| {
        api::SnatHost { inside: inside.into(), outside: outside.into(), blocks, tcp, udp, icmp }
    });
    api::SnatPool {
        inside: spec.inside.iter().map(network).collect(),
        outside: spec.outside.iter().map(|&address| address.into()).collect(),
        mappings: snat.mappings(),
        room: spec.mappings as u64,
        blocks: blocks(snat),
        hosts: hosts.collect(),
    }
}

fn blocks(snat: &Snat) -> api::SnatBlocks {
    let all = snat.blocks() * snat.spec().outside.len() as u32;
    let of_all =
        |so_far: [u32; 3], given: Given| std::array::from_fn(|class| so_far[class] + given.blocks[class]);
    let [tcp, udp, icmp] = snat.given().into_iter().fold([0; 3], of_all);
    api::SnatBlocks { all, tcp, udp, icmp }
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
        self.requests.send(request(sender)).await.ok().context("RVS is stopping")?;
        receiver.await.context("RVS is stopping")
    }

    /// Waits until the workers go by what has been changed, and servers that have left with it are gone.
    async fn settle(&self, generation: u64) -> Result<()> {
        in_force::wait(&self.workers, generation).await;
        self.ask(Request::LetGo).await
    }

    /// A port, by its number, has another device, with this MAC: it is in force when this returns.
    pub async fn has_device(&self, port: usize, mac: [u8; 6]) -> Result<()> {
        self.ask(|reply| Request::Device(port, mac, reply)).await
    }

    /// Shows others, for a moment, that this router goes, before it does. For when it has been told to end.
    pub async fn leave(&self) {
        let (listener, mut heard) = mpsc::unbounded_channel();
        if self.requests.send(Request::Leave(listener)).await.is_ok() {
            while heard.recv().await.is_some_and(|leaving| leaving.state != "stopping") {}
        }
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

    async fn snat(&self) -> Result<admin::Pools> {
        self.ask(Request::Snat).await
    }

    async fn reload(&self, dry_run: bool) -> Result<api::Reloaded> {
        let reloaded = self.ask(|reply| Request::Reload { dry_run, reply }).await??;
        if !dry_run {
            self.settle(reloaded.generation).await?;
        }
        Ok(reloaded)
    }

    async fn change(&self, order: Order) -> Result<api::Changed> {
        let changed = self.ask(|reply| Request::Change { order, reply }).await??;
        self.settle(changed.generation).await?;
        Ok(changed)
    }

    async fn diff(&self) -> Result<Vec<api::Change>> {
        self.ask(Request::Diff).await?
    }

    async fn sync(&self) -> Result<api::Sync> {
        self.ask(Request::Sync).await
    }

    async fn upgrade(&self, question: upgrade::Question) -> Result<api::Upgrading> {
        self.desk.ask(question).await
    }

    fn upgraded(&self) -> api::Upgrades {
        self.desk.last()
    }

    async fn stop(&self, stop: Stop) -> Result<admin::Departure> {
        let (listener, heard) = mpsc::unbounded_channel();
        self.requests.send(Request::Stop(stop, listener)).await.ok().context("RVS is stopping")?;
        // Never ends by itself: the process does, once nobody listens any more. Who asks for more than the last line has
        // sent that.
        let lines = futures_util::stream::unfold((heard, false), |(mut heard, was_last)| async move {
            if was_last {
                drop(heard);
                return std::future::pending().await;
            }
            match heard.recv().await {
                Some(leaving) => {
                    let is_last = leaving.state == "stopping";
                    Some((leaving, (heard, is_last)))
                }
                None => std::future::pending().await,
            }
        });
        Ok(Box::pin(lines))
    }

    async fn save(&self) -> Result<api::Saved> {
        self.ask(Request::Save).await?
    }

    async fn flush(&self, filter: api::Filter) -> Result<Flush> {
        self.ask(|reply| Request::Flush { filter, reply }).await?
    }

    async fn metrics(&self, format: Format) -> Result<String> {
        self.ask(Request::Metrics).await?.render(format).await
    }

    fn events(&self) -> &Events {
        &self.events
    }

    async fn capture(&self, question: capture::Question) -> Result<capture::Pieces> {
        let capture = self.ask(|reply| Request::Capture(question, reply)).await??;
        Ok(Box::pin(futures_util::stream::unfold(capture, |mut capture| async {
            let piece = capture.next().await?;
            Some((piece, capture))
        })))
    }

    async fn explain(&self, question: explain::Question) -> Result<explain::Explanation> {
        self.ask(|reply| Request::Explain(question, reply)).await?
    }
}
