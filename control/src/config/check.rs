//! From what was typed to what it means: defaults, ranges, references, duplicates.
//!
//! A reader returns `None` after it has reported an error, and its caller goes on with the rest, so that a
//! file shows all its errors at once. Nothing is judged twice: what fails by itself takes no part in the
//! comparisons between parts.

use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use dataplane::service::{
    MAX_TIMEOUT_SECONDS, MAX_WEIGHT, Mode, Protocol, Scheduler, SchedulerFlag, State, Timeouts,
};

use foldhash::{HashMap, HashSet};

use super::error::{ConfigErrors, Report, Source, quoted};
use super::raw::{Document, Field, Section};
use super::value::{self, DEVICE, ENDPOINT, MAC, PORT_NAME, PREFIX, SERVER};
use super::{
    Admin, Config, DEFAULT_SOCKET, Eal, Idle, Port, Run, Server, ServerState, Service, TableSize, Workers,
    availability, checks,
};

/// Cores that Linux can be built for on x86-64.
const MAX_CORE: u64 = 8191;

/// The path of a Unix socket has 108 bytes with the closing NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

const SECOND: Duration = Duration::from_secs(1);

/// The meaning of a text, or all that is wrong with it.
pub fn check(path: PathBuf, source: Source) -> Result<Config, ConfigErrors> {
    let document = Document::parse(&source)?;
    let report = Report::new(source.clone());
    let parts = parts(&document.root(&report));
    report.finish()?;
    let (eal, run, workers, table, admin, ports, services) =
        parts.expect("what is missing has been reported");
    Ok(Config { path, source: source.clone(), eal, run, workers, table, admin, ports, services })
}

/// What a file is made of.
pub(super) type Parts = (Eal, Run, Workers, TableSize, Admin, Vec<Port>, Vec<Service>);
/// The services of a text that has nothing else. What refers to other parts of a configuration is not checked.
pub fn services(source: Source) -> Result<Vec<Service>, ConfigErrors> {
    let document = Document::parse(&source)?;
    let report = Report::new(source.clone());
    let services = {
        let root = document.root(&report);
        root.known(&["service"]);
        let sections = root.sections("service");
        let services: Vec<(Option<Service>, Vec<Section<'_>>)> = sections.iter().map(service).collect();
        compare_services(&sections, &services, &[]);
        services.into_iter().filter_map(|(service, _)| service).collect()
    };
    report.finish()?;
    Ok(services)
}

/// Reads everything below the root.
pub(super) fn parts(root: &Section<'_>) -> Option<Parts> {
    root.known(&["eal", "run", "workers", "table", "admin", "port", "service"]);
    let eal = root.optional("eal", |field| eal(&field.section()?));
    let run = root.optional("run", |field| run(&field.section()?));
    let workers =
        root.require("workers", "a table [workers] with cores = [...]").and_then(|f| workers(&f.section()?));
    let table = root.optional("table", |field| table(&field.section()?));
    let admin = root.optional("admin", |field| admin(&field.section()?));

    let port_sections = root.require("port", "at least one [[port]]").map(|_| root.sections("port"))?;
    let ports: Vec<Option<Port>> = port_sections.iter().map(port).collect();
    compare_ports(&port_sections, &ports);

    let service_sections = root.sections("service");
    let services: Vec<(Option<Service>, Vec<Section<'_>>)> = service_sections.iter().map(service).collect();
    compare_services(&service_sections, &services, &ports);

    Some((
        eal?.unwrap_or(Eal { hugepages: true, memory_mb: None, file_prefix: None, args: Vec::new() }),
        run?.unwrap_or(Run { drop_capabilities: true }),
        workers?,
        table?.unwrap_or(TableSize { connections: 1_000_000 }),
        admin?.unwrap_or_else(|| Admin { socket: PathBuf::from(DEFAULT_SOCKET), group: None }),
        ports.into_iter().collect::<Option<_>>()?,
        services.into_iter().map(|(service, _)| service).collect::<Option<_>>()?,
    ))
}

fn eal(section: &Section<'_>) -> Option<Eal> {
    section.known(&["hugepages", "memory", "file_prefix", "args"]);
    let hugepages = section.or("hugepages", true, |field| field.boolean());
    let memory_mb = section.optional("memory", |field| narrow(field.integer(16..=16_777_216)));
    let file_prefix = section.optional("file_prefix", |field| {
        field.parse("1 to 64 letters, digits, '_', '.' or '-'", |typed| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
            let good = (1..=64).contains(&typed.len())
                && typed.chars().all(allowed)
                && !typed.starts_with(['.', '-']);
            if good {
                Ok(typed.to_owned())
            } else {
                Err(format!("{} cannot be part of a file name", quoted(typed)))
            }
        })
    });
    let args = section.or("args", Vec::new(), |field| {
        field.all(|argument| {
            argument.parse("arguments of DPDK's EAL, e.g. \"--vdev=net_null0\"", |typed| match typed {
                "" => Err("\"\" is no argument".to_owned()),
                _ if typed.contains('\0') => Err(format!("{} contains a NUL", quoted(typed))),
                _ => Ok(typed.to_owned()),
            })
        })
    });
    Some(Eal { hugepages: hugepages?, memory_mb: memory_mb?, file_prefix: file_prefix?, args: args? })
}

fn run(section: &Section<'_>) -> Option<Run> {
    section.known(&["drop_capabilities"]);
    let drop_capabilities = section.or("drop_capabilities", true, |field| field.boolean())?;
    Some(Run { drop_capabilities })
}

fn workers(section: &Section<'_>) -> Option<Workers> {
    section.known(&["cores", "idle", "control_cores"]);
    let idle = section.or("idle", Idle::Busy, |field| {
        let named = |name: &str| match name {
            "busy" => Some(Idle::Busy),
            "adaptive" => Some(Idle::Adaptive),
            _ => None,
        };
        one_of("idle mode", &["busy", "adaptive"], named, &field)
    });
    let core = |field: Field<'_>| narrow::<usize>(field.integer(0..=MAX_CORE));
    let list = section.require("cores", "the cores that poll, e.g. [1, 2]");
    let cores = list.clone().and_then(|field| field.all(core));
    let control = section.get("control_cores");
    let control_cores = section.optional("control_cores", |field| field.all(core));

    for (what, field, cores) in [
        ("the cores that poll, e.g. [1, 2]", &list, &cores),
        ("at least one core, or no such key", &control, control_cores.as_ref().unwrap_or(&None)),
    ] {
        if let (Some(field), Some([])) = (field, cores.as_deref()) {
            field.error::<()>(format_args!("is empty; expected {what}"));
        }
    }
    // Two workers that never sleep would take turns on one core, each for a whole time slice.
    if idle == Some(Idle::Busy)
        && let (Some(list), Some(cores)) = (&list, &cores)
    {
        for (index, first) in repeated(cores) {
            let element = list.elements().and_then(|elements| elements.into_iter().nth(index));
            element.and_then(|element| {
                element.error::<()>(format_args!(
                    "core {} has a worker already (cores[{first}]); expected another core, or idle = \"adaptive\"",
                    cores[index]
                ))
            });
        }
        if let (Some(control), Some(Some(chosen))) = (&control, &control_cores) {
            for (element, core) in control.elements().into_iter().flatten().zip(chosen) {
                if cores.contains(core) {
                    element.error::<()>(format_args!(
                        "core {core} is always busy with a worker; expected another core, or idle = \"adaptive\""
                    ));
                }
            }
        }
    }
    Some(Workers { cores: cores?, idle: idle?, control_cores: control_cores? })
}

fn table(section: &Section<'_>) -> Option<TableSize> {
    section.known(&["connections"]);
    let connections = section.or("connections", 1_000_000, |field| field.integer(1024..=500_000_000))?;
    Some(TableSize { connections })
}

fn admin(section: &Section<'_>) -> Option<Admin> {
    section.known(&["socket", "group"]);
    let socket = section.or("socket", PathBuf::from(DEFAULT_SOCKET), |field| {
        let expected = format!("an absolute path of at most {MAX_SOCKET_PATH} bytes");
        field.parse(&expected, |typed| match typed {
            _ if typed.len() > MAX_SOCKET_PATH => Err(format!("has {} bytes", typed.len())),
            _ if typed.contains('\0') => Err(format!("{} contains a NUL", quoted(typed))),
            _ if !typed.starts_with('/') || typed.ends_with('/') => {
                Err(format!("{} is not an absolute path of a file", quoted(typed)))
            }
            _ => Ok(PathBuf::from(typed)),
        })
    });
    let group = section.optional("group", |field| {
        field.parse("the name of a group, e.g. \"adm\"", |typed| match typed {
            "" => Err("is empty".to_owned()),
            _ if typed.contains('\0') => Err(format!("{} contains a NUL", quoted(typed))),
            _ => Ok(typed.to_owned()),
        })
    });
    Some(Admin { socket: socket?, group: group? })
}

fn port(section: &Section<'_>) -> Option<Port> {
    section.known(&["name", "device", "mtu", "descriptors", "addresses", "mac"]);
    let name = section.require("name", PORT_NAME).and_then(|field| field.parse(PORT_NAME, value::port_name));
    let device = section.require("device", DEVICE).and_then(|field| field.parse(DEVICE, value::device));
    let mtu = section.or("mtu", 1500, |field| narrow(field.integer(576..=9000)));
    let descriptors = section.or("descriptors", 1024, |field| narrow(field.integer(64..=32_768)));
    let addresses = section
        .or("addresses", Vec::new(), |field| field.all(|address| address.parse(PREFIX, value::prefix)));
    let mac = section.optional("mac", |field| field.parse(MAC, value::mac));
    Some(Port {
        name: name?,
        device: device?,
        mtu: mtu?,
        descriptors: descriptors?,
        addresses: addresses?,
        mac: mac?,
    })
}

/// What one port must not share with another.
fn compare_ports(sections: &[Section<'_>], ports: &[Option<Port>]) {
    if sections.is_empty() {
        return;
    }
    let (mut names, mut devices, mut addresses) = (Firsts::default(), Firsts::default(), Firsts::default());
    for (section, port) in sections.iter().zip(ports) {
        let Some(port) = port else { continue };
        if let Some(field) = section.get("name") {
            names.add(port.name.clone(), field, || format!("name {:?}", port.name), "another name");
        }
        if let Some(field) = section.get("device") {
            let identity = value::identity(&port.device);
            if let Some(identity) = identity {
                devices.add(
                    identity.clone(),
                    field.clone(),
                    || format!("device {identity}"),
                    "another device",
                );
            }
            if value::interface(&port.device) == Some(&port.name) {
                field.error::<()>(format_args!(
                    "interface {} has the name of the port's twin; expected another interface, or another name",
                    port.name
                ));
            }
        }
        let fields = section.get("addresses").and_then(|field| field.elements()).unwrap_or_default();
        for (field, prefix) in fields.into_iter().zip(&port.addresses) {
            addresses.add(prefix.address, field, || format!("address {}", prefix.address), "another address");
        }
    }
}

/// The keys of `[[service]]` that are read here.
const SERVICE_KEYS: [&str; 9] =
    ["address", "protocol", "mode", "scheduler", "flags", "port", "timeouts", "check", "server"];

/// A service, and the sections of its real servers.
fn service<'d>(section: &Section<'d>) -> (Option<Service>, Vec<Section<'d>>) {
    section.known(&[&SERVICE_KEYS[..], &availability::KEYS[..]].concat());
    let address = section.require("address", ENDPOINT).and_then(|field| {
        field.parse(ENDPOINT, |typed| match value::endpoint(typed)? {
            (address, Some(port)) => Ok(SocketAddrV4::new(address, port)),
            (_, None) => Err(format!("{} has no port", quoted(typed))),
        })
    });
    let protocol = section.or("protocol", Protocol::Tcp, |field| {
        one_of("protocol", &names(Protocol::ALL), Protocol::from_name, &field)
    });
    let modes = names(Mode::ALL);
    let mode = section
        .require("mode", modes.join(" or "))
        .and_then(|field| one_of("mode", &modes, Mode::from_name, &field));
    let scheduler = section.or("scheduler", Scheduler::Wlc, |field| {
        one_of("scheduler", &names(Scheduler::ALL), Scheduler::from_name, &field)
    });
    let flags = section.or("flags", Vec::new(), |field| flags(&field, scheduler));
    let port = section.optional("port", |field| field.string("the name of a port").map(str::to_owned));
    let timeouts =
        section.or("timeouts", Timeouts::default(), |field| timeouts(&field.section()?, protocol?));
    let checks = section.or("check", Vec::new(), |field| checks::read(&field));

    let direct = address.filter(|_| mode == Some(Mode::Dr)).map(|address| address.port());
    let availability = availability::read(section, direct);

    let sections = section.sections("server");
    let checked = section.get("check").is_some();
    let context = ServerContext { address, mode, checked };
    let servers: Vec<Option<Server>> = sections.iter().map(|server| context.server(server)).collect();
    compare_servers(&sections, &servers);
    let sorry = availability.as_ref().and_then(|availability| availability.sorry_server);
    if let Some((sorry, field)) = sorry.zip(section.get("sorry_server"))
        && servers.iter().flatten().any(|server| server.address == sorry)
    {
        field.error::<()>(format_args!("{sorry} is one of the service's real servers; expected another one"));
    }

    let read = || {
        Some(Service {
            address: address?,
            protocol: protocol?,
            mode: mode?,
            scheduler: scheduler?,
            flags: flags?,
            port: port?,
            timeouts: timeouts?,
            checks: checks?,
            availability: availability?,
            servers: servers.into_iter().collect::<Option<_>>()?,
        })
    };
    (read(), sections)
}

fn flags(field: &Field<'_>, scheduler: Option<Scheduler>) -> Option<Vec<SchedulerFlag>> {
    let expected = |scheduler| {
        let of = |flag: &&SchedulerFlag| flag.scheduler() == scheduler;
        let flags: Vec<SchedulerFlag> = SchedulerFlag::ALL.iter().filter(of).copied().collect();
        if flags.is_empty() {
            format!("none for {scheduler}")
        } else {
            format!("one of {}", names(&flags).join(", "))
        }
    };
    let flags = field.all(|element| {
        let flag = one_of("flag", &names(SchedulerFlag::ALL), SchedulerFlag::from_name, &element)?;
        match scheduler {
            Some(scheduler) if flag.scheduler() != scheduler => element.error(format_args!(
                "flag {flag} belongs to {}; expected {}",
                flag.scheduler(),
                expected(scheduler)
            )),
            _ => Some(flag),
        }
    })?;
    for (index, _) in repeated(&flags) {
        let element = field.elements()?.into_iter().nth(index)?;
        element.error::<()>(format_args!("flag {} stands there twice; expected it once", flags[index]));
    }
    Some(flags)
}

fn timeouts(section: &Section<'_>, protocol: Protocol) -> Option<Timeouts> {
    let belongs = |state: &State| (*state == State::Udp) == (protocol == Protocol::Udp);
    let keys: Vec<String> =
        State::ALL.iter().filter(|state| belongs(state)).map(|s| s.timeout_key()).collect();
    section.known(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let mut timeouts = Timeouts::default();
    let mut good = true;
    for &state in State::ALL.iter().filter(|state| belongs(state)) {
        let longest = Duration::from_secs(MAX_TIMEOUT_SECONDS.into());
        let seconds = section.optional(&state.timeout_key(), |field| {
            let time = field.duration(SECOND..=longest)?;
            match time.subsec_nanos() {
                0 => u32::try_from(time.as_secs()).ok(),
                _ => field.error(format_args!(
                    "{} is not a whole number of seconds; expected e.g. \"{}s\"",
                    humantime::format_duration(time),
                    time.as_secs().max(1)
                )),
            }
        });
        match seconds {
            Some(Some(seconds)) => timeouts.0[state as usize] = seconds,
            Some(None) => {}
            None => good = false,
        }
    }
    good.then_some(timeouts)
}

/// What a real server takes from its service.
struct ServerContext {
    address: Option<SocketAddrV4>,
    mode: Option<Mode>,
    checked: bool,
}

impl ServerContext {
    fn server(&self, section: &Section<'_>) -> Option<Server> {
        section.known(&["address", "weight", "check", "state"]);
        let typed = section.require("address", SERVER);
        let endpoint = typed.as_ref().and_then(|field| field.parse(SERVER, value::endpoint));
        let weight = section.or("weight", 1, |field| narrow(field.integer(0..=u64::from(MAX_WEIGHT))));
        let check = section.or("check", self.checked, |field| match field.boolean()? {
            true if !self.checked => {
                field.error("the service has no check; expected false, or a [service.check]")
            }
            check => Some(check),
        });
        let states = ServerState::ALL.map(ServerState::name);
        let state = section.or("state", ServerState::Enabled, |field| {
            one_of("state", &states, ServerState::from_name, &field)
        });
        let ((address, port), service) = (endpoint?, self.address?);
        // Direct routing leaves the packet as it is, so its port is what the real server must listen on.
        if self.mode == Some(Mode::Dr) && port.is_some_and(|port| port != service.port()) {
            return typed?.error(format_args!(
                "direct routing cannot change the port; expected \"{address}:{}\" or \"{address}\"",
                service.port()
            ));
        }
        let address = SocketAddrV4::new(address, port.unwrap_or(service.port()));
        Some(Server { address, weight: weight?, check: check?, state: state? })
    }
}

fn compare_servers(sections: &[Section<'_>], servers: &[Option<Server>]) {
    let mut addresses = Firsts::default();
    for (section, server) in sections.iter().zip(servers) {
        if let (Some(server), Some(field)) = (server, section.get("address")) {
            addresses.add(
                server.address,
                field,
                || format!("real server {}", server.address),
                "each real server once in a service",
            );
        }
    }
}

/// What services must not share, and what they must not balance to.
fn compare_services(
    sections: &[Section<'_>],
    services: &[(Option<Service>, Vec<Section<'_>>)],
    ports: &[Option<Port>],
) {
    let known = || services.iter().filter_map(|(service, _)| service.as_ref());
    let vips: HashSet<Ipv4Addr> = known().map(|service| *service.address.ip()).collect();
    let readable = || ports.iter().flatten();
    let twins: HashSet<Ipv4Addr> =
        readable().flat_map(|port| port.addresses.iter().map(|p| p.address)).collect();
    let names: HashSet<&str> = readable().map(|port| port.name.as_str()).collect();

    let mut firsts = Firsts::default();
    for (section, (service, servers)) in sections.iter().zip(services) {
        let Some(service) = service else { continue };
        if let Some(field) = section.get("address") {
            let (protocol, address) = (service.protocol, service.address);
            let what = || format!("service {protocol} {address}");
            firsts.add((protocol, address), field, what, "each address and protocol once");
        }
        if let (Some(name), Some(field)) = (&service.port, section.get("port"))
            && !names.contains(name.as_str())
            && !ports.is_empty()
            && ports.iter().all(Option::is_some)
        {
            let names: Vec<&str> = readable().map(|port| port.name.as_str()).collect();
            one_of::<()>("port", &names, |_| None, &field);
        }
        // The router would have to balance to itself, for ever or not at all.
        let sorry = service.availability.sorry_server.zip(section.get("sorry_server"));
        let servers = servers.iter().zip(&service.servers);
        let servers = servers.filter_map(|(section, server)| Some((server.address, section.get("address")?)));
        for (address, field) in servers.chain(sorry) {
            let what = match address.ip() {
                ip if vips.contains(ip) => "a virtual address",
                ip if twins.contains(ip) => "an address of this router",
                _ => continue,
            };
            field.error::<()>(format_args!("{} is {what}; expected another machine", address.ip()));
        }
    }
}

/// Remembers where each thing stood first.
struct Firsts<'d, K>(HashMap<K, Field<'d>>);

impl<K> Default for Firsts<'_, K> {
    fn default() -> Self {
        Firsts(HashMap::default())
    }
}

impl<'d, K: Hash + Eq> Firsts<'d, K> {
    /// Reports the thing at this field if it stood somewhere before.
    fn add(&mut self, key: K, field: Field<'d>, what: impl FnOnce() -> String, expected: &str) {
        match self.0.entry(key) {
            Entry::Occupied(first) => {
                let line = first.get().line();
                field.error::<()>(format_args!(
                    "{} stands in line {line} already; expected {expected}",
                    what()
                ));
            }
            Entry::Vacant(free) => {
                free.insert(field);
            }
        }
    }
}

/// The indices of what stands in a list before, each with the index of the first.
fn repeated<T: Eq + Hash>(list: &[T]) -> Vec<(usize, usize)> {
    let mut firsts = HashMap::default();
    let first = |(index, value)| Some((index, *firsts.entry(value).or_insert(index)));
    list.iter().enumerate().filter_map(first).filter(|(index, first)| index != first).collect()
}

/// The value with the name that was typed.
pub(super) fn one_of<T>(
    what: &str,
    names: &[&str],
    named: impl Fn(&str) -> Option<T>,
    field: &Field<'_>,
) -> Option<T> {
    let expected = match names {
        [only] => format!("{only:?}"),
        _ => format!("one of {}", names.join(", ")),
    };
    field.parse(&expected, |typed| named(typed).ok_or_else(|| format!("unknown {what} {}", quoted(typed))))
}

pub(super) fn names<T: Named>(values: &[T]) -> Vec<&'static str> {
    values.iter().map(|value| value.name()).collect()
}

/// What the enums of [`dataplane::service`] have in common.
pub(super) trait Named: Copy {
    fn name(self) -> &'static str;
}

macro_rules! named {
    ($($name:ident),*) => { $(impl Named for $name { fn name(self) -> &'static str { $name::name(self) } })* };
}
named!(Protocol, Mode, Scheduler, SchedulerFlag);

/// A number that its range keeps within the narrower type.
pub(super) fn narrow<T: TryFrom<u64>>(value: Option<u64>) -> Option<T> {
    value.and_then(|value| T::try_from(value).ok())
}
