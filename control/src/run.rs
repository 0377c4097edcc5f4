//! `rvs run`: builds everything up in order, runs until told to stop, and takes everything down again.
//!
//! Up: admin socket and port, EAL, pool, ports, twins, table, director with the first snapshot, workers. Down, in
//! reverse: workers first, so that nobody holds a queue or a packet; twins, and with them their addresses;
//! ports; EAL. A failure on the way up takes down what is up. For an upgrade the twins stay, and this process becomes
//! another program ([`upgrade`]).

use std::cell::RefCell;
use std::iter;
use std::net::UdpSocket;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use dataplane::capture::Switch;
use dataplane::changes::Changes;
use dataplane::counters::{Punt, WorkerCounters};
use dataplane::engine::reset::reset;
use dataplane::engine::{Verdict, fragments, tell, tunnel_errors};
use dataplane::exchange::Exchange;
use dataplane::fib::PortIndex;
use dataplane::table::Table;
use dataplane::worker::{self, Worker};
use dpdk::{Eal, Queues};
use futures_util::FutureExt;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal::{SIGINT, SIGTERM};
use nix::sys::signal::raise;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::admin;
use crate::capabilities;
use crate::claim::Claim;
use crate::compile::PortLink;
use crate::config::value::identity;
use crate::config::{self, Config, Idle, Machine, VirtualAddresses};
use crate::crew::{Crew, control_cores, pin};
use crate::devices::{self, Device};
use crate::director::{Director, Parts};
use crate::doctor;
use crate::events::{Events, Kind};
use crate::health::checks_at_once;
use crate::keep;
use crate::memory;
use crate::net::{Linux, Twin, Watcher};
use crate::ports::{self, Open, Pools, Slot, Watch};
use crate::root::Root;
use crate::services::Services;
use crate::slowpath;
use crate::stages::Stopwatch;
use crate::sync::{self, Synchroniser};
use crate::systemd;
use crate::upgrade::{self, Desk, HandOver, Inheritance, Item, Order};

/// Steps of health checks before the director, the admin socket and the pumps have a turn, and Linux is asked what is
/// ready. A step with a connect(2) takes some 20 us, and ten thousand may be due.
const CHECKS_AT_A_TIME: u32 = 16;

/// Between the answer that an upgrade begins and its beginning.
const BEFORE_UPGRADE: Duration = Duration::from_millis(100);

/// Runs RVS with this configuration until SIGTERM or SIGINT. After an upgrade this process is another program, so that is no
/// end.
pub fn run(config: Config) -> Result<()> {
    // First of all, since it lies where programs read what is typed.
    let inheritance = Inheritance::take();
    let mut way_back = inheritance.as_ref().and_then(HandOver::back);
    match (run_once(config, inheritance, &mut way_back), way_back) {
        (Ok(None), _) => Ok(()),
        (Ok(Some(hand_over)), _) => Err(hand_over.carry_out()),
        (Err(error), Some(way_back)) => Err(way_back.go_back(error)),
        (Err(error), None) => Err(error),
    }
}

/// Until its end, or until another program is to go on. There is no way back any more from the moment when it forwards.
fn run_once(
    config: Config,
    inheritance: Option<Inheritance>,
    way_back: &mut Option<HandOver>,
) -> Result<Option<HandOver>> {
    lock_any_memory();
    let machine = Machine::read().context("cannot find out what this machine has")?.awaiting(&config);
    config.check_machine(&machine)?;
    config.check_prepared(&machine)?;
    for finding in doctor::at_start(Path::new("/"), &config) {
        tracing::warn!(remedy = finding.remedy, "{}: {}", finding.subject, finding.problem);
    }
    let control_cores = control_cores(&config, &machine);
    pin(&control_cores)?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.event_interval(CHECKS_AT_A_TIME);
    if config.run.drop_capabilities {
        // Threads for blocking calls may be older than the moment when the control thread gives up.
        let needed = capabilities::needed(&config);
        runtime.on_thread_start(move || {
            if let Err(error) = capabilities::keep(&needed) {
                tracing::warn!(error = format!("{error:#}"), "a thread keeps its capabilities");
            }
        });
    }
    let runtime = runtime.enable_all().build().context("cannot start the control thread's runtime")?;
    let start = start(config, &machine, &control_cores, inheritance, way_back);
    let result = LocalSet::new().block_on(&runtime, start);
    runtime.shutdown_background();
    result
}

/// Ends when one of these comes; before it exists, signals end the process as they always do.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    /// Somebody has asked for it by the admin API.
    asked: Arc<Notify>,
}

impl StopSignals {
    fn listen() -> Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        Ok(StopSignals { terminate, interrupt, asked: Arc::default() })
    }

    /// The signal's name, or the command's.
    async fn received(&mut self) -> &'static str {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = self.asked.notified() => "rvs stop",
        };
        tracing::info!(signal = name, "stopping");
        name
    }

    /// Another signal, after the first.
    async fn hurried(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Those that came at the last moment, when nobody waited here any more, come once more: to be called when they are held.
    async fn hand_on(&mut self) {
        // So that the runtime hears of them.
        tokio::task::yield_now().await;
        for (came, which) in [(&mut self.terminate, SIGTERM), (&mut self.interrupt, SIGINT)] {
            if came.recv().now_or_never().is_some()
                && let Err(error) = raise(which)
            {
                tracing::warn!(%error, %which, "a signal is lost");
            }
        }
    }
}

async fn start(
    config: Config,
    machine: &Machine,
    control_cores: &[usize],
    mut inheritance: Option<Inheritance>,
    way_back: &mut Option<HandOver>,
) -> Result<Option<HandOver>> {
    let mut stopwatch = Stopwatch::start();
    // From here on signals wait until there is somebody to heed them.
    let stop = StopSignals::listen()?;
    let manager = systemd::Manager::from_environment();
    let hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let upgrade = signal(SignalKind::user_defined2()).context("cannot listen for SIGUSR2")?;
    upgrade::heed_signals()?;
    if let Some(inheritance) = &mut inheritance {
        inheritance.estate.gap.pass("program");
    }
    // Before all else, since it tells whether another RVS runs here.
    let (socket, remote, heirlooms) = upgrade::listen(&config, &mut inheritance).await?;
    let _claims = claims(&config)?;
    let kept = keep::claim(&config)?;
    let speaker = sync::bind(&config)?;
    let devices: Vec<Device> = (0..config.wires().len()).map(|index| Device::of(&config, index)).collect();
    let nodes = memory::nodes_of_nics(&Root::new(Path::new("/")), &config);
    let eal = Eal::init(&devices::eal_arguments(&config, &devices, control_cores, &nodes));
    let eal =
        eal.map_err(|error| anyhow!("{error}; `rvs doctor -c {}` may know why", config.path.display()))?;
    let doors = Doors { socket, remote, speaker };
    let signals = Signals { stop, hangup, upgrade };
    stopwatch.lap(|stages| &mut stages.eal);
    let setting = Setting { eal: &eal, machine, devices: &devices, control_cores, kept, way_back };
    let mut result = with_eal(config, setting, doors, signals, manager, stopwatch, inheritance).await;
    if let Err(error) = eal.cleanup() {
        tracing::warn!(%error, "EAL was not taken down cleanly");
    }
    if let Ok(Some(hand_over)) = &mut result {
        hand_over.pass("EAL down");
        heirlooms.hand_on(hand_over);
    }
    result
}

/// What comes from outside.
struct Signals {
    stop: StopSignals,
    hangup: Signal,
    upgrade: Signal,
}

/// What it is built upon.
struct Setting<'a> {
    eal: &'a Eal,
    machine: &'a Machine,
    devices: &'a [Device],
    control_cores: &'a [usize],
    /// Where the connections of the process before are.
    kept: Option<keep::Directory>,
    /// To the program before this one.
    way_back: &'a mut Option<HandOver>,
}

/// Where others reach this router.
struct Doors {
    /// Whoever is on this machine.
    socket: admin::Socket,
    /// Whoever has a token.
    remote: Option<admin::tcp::Listener>,
    /// Peer routers.
    speaker: Option<UdpSocket>,
}

/// Takes the devices for this process, or says which another RVS has.
fn claims(config: &Config) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for (_, key, device) in config.devices() {
        let Some(identity) = identity(device) else { continue };
        match Claim::take(&identity).with_context(|| format!("cannot claim {identity}"))? {
            Some(claim) => claims.push(claim),
            None => {
                let message =
                    format!("another rvs has {identity}; stop it first, or give this one another device");
                return Err(config.error(&key, message).into());
            }
        }
    }
    Ok(claims)
}

async fn with_eal(
    config: Config,
    Setting { eal, machine, devices, control_cores, kept, way_back }: Setting<'_>,
    Doors { socket, remote, speaker }: Doors,
    Signals { mut stop, hangup, upgrade }: Signals,
    manager: systemd::Manager,
    mut stopwatch: Stopwatch,
    mut inheritance: Option<Inheritance>,
) -> Result<Option<HandOver>> {
    let lcore = Rc::new(eal.main_lcore()?);
    let mut pools = Pools::default();
    let watcher = Watcher::start().await?;
    let linux = watcher.handle();

    let mut ports = Vec::new();
    let mut twins = Vec::new();
    let mut links = Vec::new();
    let mut queues: Vec<Queues> = Vec::new();
    let mut packets = Vec::new();
    let ipv6 = config.first_ipv6().is_some();
    for (index, device) in devices.iter().enumerate() {
        let (name, mtu) = (&config.ports[index].name, config.ports[index].mtu);
        let open = ports::open(&config, index, device, machine, eal, &mut pools)?;
        let Open { port, queues: pairs, pool, known, mac, plug, members } = open;
        let twin = twin(&linux, &mut inheritance, name, mac, mtu, ipv6).await?;
        links.push(PortLink { ifindex: twin.ifindex(), mac, mtu, device: known });
        twins.push(twin);
        ports.push((port, plug, members));
        queues.push(pairs);
        packets.push(pool);
    }
    for port in &config.ports[devices.len()..] {
        let wire = port.tag.map_or(0, |tag| usize::from(tag.port));
        let PortLink { mac, device, .. } = links[wire].clone();
        let twin = twin(&linux, &mut inheritance, &port.name, mac, port.mtu, ipv6).await?;
        links.push(PortLink { ifindex: twin.ifindex(), mac, mtu: port.mtu, device });
        twins.push(twin);
        packets.push(packets[wire]);
    }
    let vlans = Arc::new(config.vlans());
    // On a twin, or on any other interface.
    let link = sync::ipvs::open(&config)?;
    let placed = match &inheritance {
        Some(inheritance) => upgrade::take_over(&inheritance.estate.twins, &config, &links, &linux).await,
        None => Default::default(),
    };
    stopwatch.lap(|stages| &mut stages.ports);
    let flow_key = config.scheduling.flow_key;
    let mut services = Services::new(config.services.clone()).with_flow_key(flow_key, Instant::now());
    let knowledge = inheritance.as_ref().map(|inheritance| inheritance.estate.knowledge.clone());
    let knowledge = knowledge.unwrap_or_default();
    for change in services.inherit(&knowledge.changes, Instant::now()) {
        tracing::warn!(change, "a live change is lost, since the file has another entry by now");
    }
    // Linux takes memory from the node of whoever touches it first.
    pin(&config.workers.cores)?;
    let started = keep::start(&config, &services, kept, control_cores);
    pin(control_cores)?;
    let keep::Start { table, ids, pools, keep, origin } = started?;
    let members = ids.members().map(|member| (member.service, member.server));
    services.come_back(members, &knowledge.changes, Instant::now());
    stopwatch.lap(|stages| &mut stages.table);
    let counters: Vec<Arc<WorkerCounters>> = config.workers.cores.iter().map(|_| Arc::default()).collect();
    if config.run.drop_capabilities {
        give_up_capabilities(&config, eal)?;
    }
    let events = Events::default();
    let watched = config.wires().iter().zip(&links).zip(&twins);
    let watched = watched.enumerate().map(|(index, ((port, link), twin))| {
        let tags = config.ports.iter().map(|port| port.tag).zip(&twins);
        let on_wire = tags.filter(|(tag, _)| tag.is_some_and(|tag| usize::from(tag.port) == index));
        let others = on_wire.map(|(_, twin)| twin.clone());
        (port.name.clone(), link.device.clone(), iter::once(twin.clone()).chain(others).collect())
    });
    let reopen: Rc<Notify> = Rc::default();
    let is_upgrade = inheritance.is_some();
    let is_patient = is_upgrade || config.wires().iter().any(|port| port.bond.is_some());
    let watch = Watch::new(linux.clone(), events.clone(), reopen.clone(), watched.collect(), is_patient);
    let (desk, order) = Desk::open(&config, &events);
    origin.tell(&events);
    let capture: Arc<Switch> = Arc::default();
    let settings = config.admin.tcp.clone().map(admin::tcp::Settings::new);
    let remote = remote.zip(settings.as_ref().map(admin::tcp::Settings::subscribe));
    let farewell = admin::tcp::Farewell::default();
    // It knows what its predecessor knew.
    let was_ready = matches!(origin, keep::Origin::Adopted { .. }) && knowledge.is_ready;
    // Directors of Linux cannot be asked, so there is nothing to wait for without peers.
    let shared = if was_ready || config.sync.is_none() {
        sync::Shared::of_a_ready_one()
    } else {
        sync::Shared::default()
    };
    let speaks = speaker.is_some() || link.is_some();
    let peers: Option<Arc<sync::Shared>> = speaks.then(|| Arc::new(shared));
    // A ring for each worker, if there is somebody to be told.
    let changes: Vec<Arc<Changes>> = peers.iter().flat_map(|_| &counters).map(|_| Arc::default()).collect();
    let parts = Parts {
        config: Config { services: Vec::new(), ..config.clone() },
        services,
        remote: settings,
        watcher,
        ports: links,
        table: table.clone(),
        ids,
        pools,
        keep,
        workers: counters.clone(),
        checks_at_once: checks_at_once(raise_open_files()),
        manager: manager.clone(),
        events: events.clone(),
        capture: capture.clone(),
        peers: peers.clone(),
        placed,
        knowledge,
        desk: desk.clone(),
        stop: stop.asked.clone(),
    };
    let (mut director, handle) = Director::new(parts)?;
    let (pumps, ends) = slowpath::queues(counters.len(), answers(&director, &table), director.rivals())?;

    let exchanges: Vec<_> = counters.iter().map(|_| Arc::new(Exchange::new(ports.len()))).collect();
    let slot = |(index, (port, plug, members))| Slot::new(index, port, plug, members, &exchanges, &handle);
    let slots: Vec<Slot> = ports.into_iter().enumerate().map(slot).collect();

    let wires = (0..).zip(config.wires());
    let attended = wires.filter(|(_, port)| port.bond.is_some_and(|bond| bond.has_lacp()));
    let attended: Vec<PortIndex> = attended.map(|(index, _)| index).collect();
    let workers = ends.into_iter().enumerate().map(|(index, slow_path)| Worker {
        index,
        count: counters.len(),
        queues: queues.iter_mut().map(|pairs| pairs.remove(0)).collect(),
        attended: attended.clone(),
        vlans: vlans.clone(),
        table: table.clone(),
        snapshots: director.subscribe(),
        counters: counters[index].clone(),
        slow_path,
        capture: capture.clone(),
        changes: changes.get(index).cloned(),
        exchange: exchanges[index].clone(),
        probe: (),
        idle: match config.workers.idle {
            Idle::Busy => worker::Idle::Busy,
            Idle::Adaptive => worker::Idle::Adaptive,
        },
    });
    let crew = Crew::start(workers.collect(), &config.workers.cores, config.run.drop_capabilities)?;
    stopwatch.lap(|stages| &mut stages.publish);
    *way_back = None;
    if let Some(inheritance) = inheritance {
        desk.tell(inheritance.settle(), &stopwatch.stages);
    }

    let synchroniser = peers.map(|shared| {
        let (table, snapshots) = (table.clone(), director.subscribe());
        Synchroniser::start(&config, speaker, link, shared, table, snapshots, changes)
    });
    let _synchroniser = synchroniser.transpose()?;

    let result: Result<Option<Order>> = {
        let announces = config.run.virtual_addresses == VirtualAddresses::Announce;
        let leaver = handle.clone();
        let direct = async {
            director.settle().await?;
            stopwatch.lap(|stages| &mut stages.settle);
            let stages = stopwatch.stages;
            let _remote = remote.map(|(listener, settings)| {
                let serve = admin::tcp::serve(listener, settings, farewell.subscribe(), handle.clone());
                Task(tokio::task::spawn_local(serve))
            });
            // Here and not among the runtime's tasks, which are the health checks: who asks goes before them.
            let run = |connection| drop(tokio::task::spawn_local(connection));
            let _admin = Task(tokio::task::spawn_local(admin::serve(socket, handle, run)));
            tracing::info!(
                version = env!("CARGO_PKG_VERSION"),
                dpdk = Eal::version(),
                workers = counters.len(),
                services = config.services.len(),
                eal_ms = stages.eal,
                ports_ms = stages.ports,
                table_ms = stages.table,
                publish_ms = stages.publish,
                settle_ms = stages.settle,
                "ready"
            );
            events.publish(Kind::started(&config, stages));
            director.run(hangup).await.map(|()| None)
        };
        let from_linux = (0..).zip(&twins).zip(&packets);
        let from_linux = from_linux.map(|((port, twin), pool)| pumps.from_linux(port, twin, pool, &lcore));
        tokio::select! {
            () = async {
                let why = stop.received().await;
                desk.close();
                if announces {
                    // Who tells it once more is in a hurry.
                    tokio::select! { () = leaver.leave() => {}, () = stop.hurried() => {} }
                }
                events.stop(why).await;
                farewell.say().await;
            } => Ok(None),
            Some(order) = async {
                let order = order.await.ok()?;
                // Everything goes on until whoever has asked knows that it begins.
                tokio::time::sleep(BEFORE_UPGRADE).await;
                farewell.say().await;
                Some(order)
            } => Ok(Some(order)),
            () = desk.heed(upgrade) => unreachable!("signals do not end"),
            () = async {
                loop {
                    reopen.notified().await;
                    // What speaks against it has been said in the log and as an event.
                    let _ = desk.ask(Default::default()).await;
                }
            } => unreachable!("it never ends"),
            result = direct => result,
            () = pumps.to_linux(&twins) => unreachable!("it never ends"),
            () = watch.run(&slots) => unreachable!("it never ends"),
            () = gone(from_linux) => Err(anyhow!("somebody has removed a twin from Linux; RVS cannot go on without it")),
            result = crew.lost_worker() => result.map(|()| None),
        }
    };

    // Down.
    let (order, result) = match result {
        Ok(order) => (order, Ok(())),
        Err(error) => (None, Err(error)),
    };
    let mut hand_over = match order {
        None => None,
        Some(order) => {
            upgrade::hold_signals();
            stop.hand_on().await;
            Some(HandOver::begin(order, director.knowledge()))
        }
    };
    match hand_over {
        Some(_) => manager.reloading(),
        None => manager.stopping(),
    }
    drop(crew);
    if let Some(hand_over) = &mut hand_over {
        hand_over.pass("workers down");
        for (twin, port) in twins.iter().zip(&config.ports) {
            let placed = director.placed_on(twin.ifindex());
            hand_over.leave_twin(port, placed, twin.heirloom());
        }
    }
    drop((pumps, director, twins, queues, exchanges));
    for slot in slots {
        if let Err(error) = slot.close() {
            tracing::warn!(%error, "a port was not taken down cleanly");
        }
    }
    drop(lcore);
    if let Some(hand_over) = &mut hand_over {
        hand_over.pass("ports down");
    }
    tracing::info!("stopped");
    result.map(|()| hand_over)
}

/// A port's twin: the predecessor's, if there is one.
async fn twin(
    linux: &Linux,
    inheritance: &mut Option<Inheritance>,
    name: &str,
    mac: [u8; 6],
    mtu: u16,
    ipv6: bool,
) -> Result<Rc<Twin>> {
    let tap = inheritance.as_mut().and_then(|old| old.item(&Item::Twin(name.to_owned())));
    Ok(Rc::new(match tap {
        Some(tap) => Twin::inherit(linux, tap, name, mac, mtu, ipv6).await?,
        None => Twin::create(linux, name, mac, mtu, ipv6).await?,
    }))
}

/// Everything is open: what only the start needed is given up, by this thread and EAL's.
fn give_up_capabilities(config: &Config, eal: &Eal) -> Result<()> {
    let needed = capabilities::needed(config);
    let kept = capabilities::keep(&needed)?;
    // It handles interrupts of devices that are open already.
    eal.on_interrupt_thread(|| capabilities::keep(&Default::default()))??;
    for thread in capabilities::keepers(&kept)? {
        tracing::warn!(thread, "a thread of a driver keeps its capabilities");
    }
    tracing::info!(
        kept = capabilities::show(&kept),
        "capabilities dropped; programs that are started get none"
    );
    // A file that only CAP_DAC_OVERRIDE could read, or a key that it names: better heard now than at the next reload.
    if let Err(error) = config::load(&config.path) {
        tracing::warn!(
            error = format!("{error:#}"),
            "the configuration cannot be read any more, so that a reload will be refused; \
             give it, and the files that it names, to the user that rvs runs as, or set run.drop_capabilities = false"
        );
    }
    Ok(())
}

/// A task that ends with its owner.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until one of the pumps has ended; for ever if there is none that can.
async fn gone(pumps: impl Iterator<Item = impl Future<Output = ()>>) {
    let pumps: Vec<_> = pumps.map(Box::pin).collect();
    futures_util::future::select_all(pumps).await;
}

/// Control's view of what workers see when they hand over a connection to be reset, an error about a tunnel, what is to be sent in
/// fragments, or what they have dropped.
fn answers(director: &Director, table: &Arc<Table>) -> slowpath::Answers {
    let (snapshots, table) = (RefCell::new(director.subscribe()), table.clone());
    Box::new(move |verdict, packet| {
        let mut snapshots = snapshots.borrow_mut();
        match verdict {
            Verdict::Punt(Punt::TunnelError) => {
                tunnel_errors::error(&table, snapshots.latest(), worker::now(), packet).into_iter().collect()
            }
            Verdict::Punt(Punt::ToFragment) => fragments(snapshots.latest(), packet),
            Verdict::Punt(_) => reset(&table, snapshots.latest(), packet),
            Verdict::Drop(reason) => {
                tell::error(&table, snapshots.latest(), worker::now(), reason, packet).into_iter().collect()
            }
            Verdict::Forward(_) | Verdict::Route(_) | Verdict::Hold => Vec::new(),
        }
    })
}

/// Lets this process have as many files open as it may allow itself, for health checks; how many that is.
fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// Devices are used by way of memory that stays where it is. Root may lock as much as it likes; a program that follows with
/// less rights, after an upgrade, keeps this limit.
fn lock_any_memory() {
    // Who may not do this does not have those rights at the start either.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}
