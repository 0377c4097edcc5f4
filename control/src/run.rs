//! `rvs run`: builds everything up in order, runs until told to stop, and takes everything down again.
//!
//! Up: admin socket and port, EAL, pool, ports, twins, table, director with the first snapshot, workers. Down, in
//! reverse: workers first, so that nobody holds a queue or a packet; twins, and with them their addresses;
//! ports; EAL. A failure on the way up takes down what is up.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::UdpSocket;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use dataplane::capture::Switch;
use dataplane::changes::Changes;
use dataplane::counters::WorkerCounters;
use dataplane::engine::reset::reset;
use dataplane::table::{HashKey, Table};
use dataplane::worker::{self, Worker};
use dpdk::{Eal, Queues};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::admin;
use crate::capabilities;
use crate::claim::Claim;
use crate::compile::PortLink;
use crate::config::value::identity;
use crate::config::{self, Config, Idle, Machine, VirtualAddresses};
use crate::crew::{Crew, control_cores, pin};
use crate::devices::{self, Device};
use crate::director::{Director, Parts};
use crate::events::{Events, Kind};
use crate::health::checks_at_once;
use crate::net::{Twin, Watcher};
use crate::ports;
use crate::slowpath;
use crate::sync::{self, Synchroniser};
use crate::systemd;

/// Steps of health checks before the director, the admin socket and the pumps have a turn, and Linux is asked what is
/// ready. A step with a connect(2) takes some 20 us, and ten thousand may be due.
const CHECKS_AT_A_TIME: u32 = 16;

/// Runs RVS with this configuration until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<()> {
    let machine = Machine::read().context("cannot find out what this machine has")?;
    config.check_machine(&machine)?;
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
    LocalSet::new().block_on(&runtime, start(config, &control_cores))
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
}

async fn start(config: Config, control_cores: &[usize]) -> Result<()> {
    // From here on signals wait until there is somebody to heed them.
    let stop = StopSignals::listen()?;
    let manager = systemd::Manager::from_environment();
    let hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    // First of all, since it tells whether another RVS runs here.
    let socket = admin::bind(&config.admin.socket, config.admin.group.as_deref()).await?;
    let remote = admin::tcp::bind(&config)?;
    let _claims = claims(&config)?;
    let speaker = sync::bind(&config)?;
    let devices: Vec<Device> = (0..config.ports.len()).map(|index| Device::of(&config, index)).collect();
    let eal = Eal::init(&devices::eal_arguments(&config, &devices, control_cores))?;
    let doors = Doors { socket, remote, speaker };
    let result = with_eal(config, &eal, &devices, doors, stop, hangup, manager).await;
    if let Err(error) = eal.cleanup() {
        tracing::warn!(%error, "EAL was not taken down cleanly");
    }
    result
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
    for (index, port) in config.ports.iter().enumerate() {
        let Some(identity) = identity(&port.device) else { continue };
        match Claim::take(&identity).with_context(|| format!("cannot claim {identity}"))? {
            Some(claim) => claims.push(claim),
            None => {
                let message =
                    format!("another rvs has {identity}; stop it first, or give this one another device");
                return Err(config.error(&format!("port[{index}].device"), message).into());
            }
        }
    }
    Ok(claims)
}

async fn with_eal(
    config: Config,
    eal: &Eal,
    devices: &[Device],
    Doors { socket, remote, speaker }: Doors,
    mut stop: StopSignals,
    hangup: Signal,
    manager: systemd::Manager,
) -> Result<()> {
    let lcore = Rc::new(eal.main_lcore()?);
    let pool = ports::pool(&config, eal)?;
    let watcher = Watcher::start().await?;
    let linux = watcher.handle();

    let mut ports = Vec::new();
    let mut twins = Vec::new();
    let mut links = Vec::new();
    let mut queues: Vec<Queues> = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let (port, pairs) = ports::open(&config, index, device, eal, pool)?;
        let (name, mac) = (&config.ports[index].name, ports::usable_mac(port.mac()?, index));
        let twin = Rc::new(Twin::create(&linux, name, mac, config.ports[index].mtu).await?);
        let (mtu, hashed) = (config.ports[index].mtu, port.hashed());
        links.push(PortLink { ifindex: twin.ifindex(), mac, mtu, hashed });
        let spread_by = match hashed {
            Some(hashed) => hashed.to_string(),
            None if pairs.len() == 1 => "one queue".to_owned(),
            None => "the device's own way".to_owned(),
        };
        tracing::info!(
            port = name,
            device = device.port_name(),
            mac = ports::mac_text(mac),
            queues = pairs.len(),
            spread_by,
            "port up"
        );
        twins.push(twin);
        ports.push(port);
        queues.push(pairs);
    }
    let table = Arc::new(Table::new(config.table.connections as usize, random_key()));
    let counters: Vec<Arc<WorkerCounters>> = config.workers.cores.iter().map(|_| Arc::default()).collect();
    if config.run.drop_capabilities {
        give_up_capabilities(&config, eal)?;
    }
    let events = Events::default();
    let capture: Arc<Switch> = Arc::default();
    let settings = config.admin.tcp.clone().map(admin::tcp::Settings::new);
    let remote = remote.zip(settings.as_ref().map(admin::tcp::Settings::subscribe));
    let farewell = admin::tcp::Farewell::default();
    let peers: Option<Arc<sync::Shared>> = speaker.as_ref().map(|_| Arc::default());
    // A ring for each worker, if there is somebody to be told.
    let changes: Vec<Arc<Changes>> = peers.iter().flat_map(|_| &counters).map(|_| Arc::default()).collect();
    let parts = Parts {
        config: config.clone(),
        remote: settings,
        watcher,
        ports: links,
        table: table.clone(),
        workers: counters.clone(),
        checks_at_once: checks_at_once(raise_open_files()),
        manager: manager.clone(),
        events: events.clone(),
        capture: capture.clone(),
        peers: peers.clone(),
        stop: stop.asked.clone(),
    };
    let (mut director, handle) = Director::new(parts)?;
    let (pumps, ends) = slowpath::queues(counters.len(), resets(&director, &table))?;

    let workers = ends.into_iter().enumerate().map(|(index, slow_path)| Worker {
        index,
        count: counters.len(),
        queues: queues.iter_mut().map(|pairs| pairs.remove(0)).collect(),
        table: table.clone(),
        snapshots: director.subscribe(),
        counters: counters[index].clone(),
        slow_path,
        capture: capture.clone(),
        changes: changes.get(index).cloned(),
        probe: (),
        idle: match config.workers.idle {
            Idle::Busy => worker::Idle::Busy,
            Idle::Adaptive => worker::Idle::Adaptive,
        },
    });
    let crew = Crew::start(workers.collect(), &config.workers.cores, config.run.drop_capabilities)?;

    let _synchroniser = match (&config.sync, speaker, peers) {
        (Some(sync), Some(socket), Some(shared)) => {
            let (table, snapshots) = (table.clone(), director.subscribe());
            Some(Synchroniser::start(sync, socket, shared, table, snapshots, changes)?)
        }
        _ => None,
    };

    let result = {
        let announces = config.run.virtual_addresses == VirtualAddresses::Announce;
        let leaver = handle.clone();
        let direct = async {
            director.settle().await?;
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
                "ready"
            );
            events.publish(Kind::started(&config));
            director.run(hangup).await
        };
        let from_linux = (0..).zip(&twins).map(|(port, twin)| pumps.from_linux(port, twin, pool, &lcore));
        tokio::select! {
            () = async {
                let why = stop.received().await;
                if announces {
                    // Who tells it once more is in a hurry.
                    tokio::select! { () = leaver.leave() => {}, () = stop.hurried() => {} }
                }
                events.stop(why).await;
                farewell.say().await;
            } => Ok(()),
            result = direct => result,
            () = pumps.to_linux(&twins) => unreachable!("it never ends"),
            () = gone(from_linux) => Err(anyhow!("somebody has removed a twin from Linux; RVS cannot go on without it")),
            result = crew.lost_worker() => result,
        }
    };

    // Down.
    manager.stopping();
    drop(crew);
    drop((pumps, director, twins, queues));
    for port in ports {
        if let Err(error) = port.close() {
            tracing::warn!(%error, "a port was not taken down cleanly");
        }
    }
    drop(lcore);
    tracing::info!("stopped");
    result
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

/// Control's view of what workers see when they hand over a connection to be reset.
fn resets(director: &Director, table: &Arc<Table>) -> slowpath::Resets {
    let (snapshots, table) = (RefCell::new(director.subscribe()), table.clone());
    Box::new(move |packet| reset(&table, snapshots.borrow_mut().latest(), packet))
}

/// Lets this process have as many files open as it may allow itself, for health checks; how many that is.
fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// A key that nobody can guess; the standard library's hasher is seeded by the kernel.
fn random_key() -> HashKey {
    let random = || RandomState::new().build_hasher().finish();
    HashKey { blind: random(), factor: random() }
}
