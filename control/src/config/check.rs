//! From what was typed to what it means: defaults, ranges, references, duplicates.
//!
//! A reader returns `None` after it has reported an error, and its caller goes on with the rest, so that a
//! file shows all its errors at once. Nothing is judged twice: what fails by itself takes no part in the
//! comparisons between parts (`compare`).
//!
//! Here is what a router has once; `service` and [`checks`](super::checks) are what it has often.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dataplane::admission::Sources;
use dataplane::scheduler::FLOW_KEY;
use dataplane::service::{Helper, Mode, Protocol, Scheduler, SchedulerFlag, Track};
use dataplane::snat::SnatSpec;
use dataplane::vlan::Tag;

use super::compare::{self, repeated};
use super::error::{ConfigErrors, Report, Source, quoted};
use super::ipvs::{self, ipvs_sync};
use super::mark::Marks;
use super::raw::{Document, Field, Section};
use super::sources::sources;
use super::sync::sync;
use super::value::{self, DEVICE, MAC, PORT_NAME, PREFIX};
use super::{
    Admin, Bond, Config, DEFAULT_SOCKET, Eal, Idle, IpvsSync, Port, Prefix, Routing, Run, Scheduling,
    Service, Sync, Table, VirtualAddresses, Workers, bond, file, service, snat, tcp,
};

/// Cores that Linux can be built for on x86-64.
const MAX_CORE: u64 = 8191;

/// The path of a Unix socket has 108 bytes with the closing NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// The meaning of a text, or all that is wrong with it.
pub fn check(path: PathBuf, source: Source) -> Result<Config, ConfigErrors> {
    let document = Document::parse(&source)?;
    let report = Report::new(source.clone());
    let parts = parts(&document.root(&report));
    report.finish()?;
    let parts = parts.expect("what is missing has been reported");
    Ok(parts.of(path, source))
}

/// What a file is made of.
#[derive(Debug, PartialEq)]
pub(super) struct Parts {
    eal: Eal,
    run: Run,
    workers: Workers,
    table: Table,
    routing: Routing,
    scheduling: Scheduling,
    admin: Admin,
    sync: Option<Sync>,
    ipvs_sync: Option<IpvsSync>,
    sources: Option<Arc<Sources>>,
    ports: Vec<Port>,
    marks: Marks,
    services: Vec<Service>,
}

impl Parts {
    /// The configuration in this file, whose text is this.
    fn of(self, path: PathBuf, source: Source) -> Config {
        let Parts { eal, run, workers, table, routing, scheduling, admin, .. } = self;
        let Parts { sync, ipvs_sync, sources, ports, marks, services, .. } = self;
        Config {
            path,
            source,
            eal,
            run,
            workers,
            table,
            routing,
            scheduling,
            admin,
            sync,
            ipvs_sync,
            sources,
            ports,
            marks,
            services,
        }
    }
}

/// The services of a text that has nothing else. What refers to other parts of a configuration is not checked.
pub fn services(source: Source) -> Result<Vec<Service>, ConfigErrors> {
    let document = Document::parse(&source)?;
    let report = Report::new(source.clone());
    let services = {
        let root = document.root(&report);
        root.known(&["service"]);
        let sections = root.sections("service");
        let marks = Marks::default();
        let services: Vec<(Option<Service>, Vec<Section<'_>>)> =
            sections.iter().map(|section| service::read(section, &marks)).collect();
        compare::services(&sections, &services, &[], &marks);
        services.into_iter().filter_map(|(service, _)| service).collect()
    };
    report.finish()?;
    Ok(services)
}

/// Reads everything below the root.
pub(super) fn parts(root: &Section<'_>) -> Option<Parts> {
    root.known(&[
        "eal",
        "run",
        "workers",
        "table",
        "routing",
        "scheduling",
        "snat",
        "admin",
        "sync",
        "ipvs_sync",
        "sources",
        "port",
        "vlan",
        "mark",
        "service",
    ]);
    let eal = root.optional("eal", |field| eal(&field.section()?));
    let run = root.optional("run", |field| run(&field.section()?));
    let workers =
        root.require("workers", "a table [workers] with cores = [...]").and_then(|f| workers(&f.section()?));
    let table = root.optional("table", |field| table(&field.section()?));
    let forward = root.or("routing", false, |field| forward(&field.section()?));
    let scheduling = root.optional("scheduling", |field| scheduling(&field.section()?));
    let admin = root.optional("admin", |field| admin(&field.section()?));
    let sync = root.optional("sync", |field| sync(&field.section()?));
    let ipvs_sync = root.optional("ipvs_sync", |field| ipvs_sync(&field.section()?));
    let sources = sources(root);

    let mut port_sections = root.require("port", "at least one [[port]]").map(|_| root.sections("port"))?;
    let mut ports: Vec<Option<Port>> = port_sections.iter().map(port).collect();
    let vlan_sections = root.sections("vlan");
    let vlans: Vec<Option<Port>> = vlan_sections.iter().map(|section| vlan(section, &ports)).collect();
    compare::vlans(&vlan_sections, &vlans);
    port_sections.extend(vlan_sections);
    ports.extend(vlans);
    compare::ports(&port_sections, &ports);

    let snat_sections = root.sections("snat");
    let snats: Vec<Option<SnatSpec>> = snat_sections.iter().map(snat::read).collect();

    let marks = Marks::read(&root.sections("mark"), &ports);
    let service_sections = root.sections("service");
    let services: Vec<(Option<Service>, Vec<Section<'_>>)> =
        service_sections.iter().map(|section| service::read(section, &marks)).collect();
    compare::services(&service_sections, &services, &ports, &marks);
    compare::snats(
        &snat_sections,
        &snats,
        &ports,
        services.iter().filter_map(|(service, _)| service.as_ref()),
    );
    if ipvs_sync.as_ref().is_some_and(Option::is_some) {
        ipvs::compare(&services);
    }
    let remote = admin.as_ref().and_then(|admin| admin.as_ref()?.tcp.as_ref());
    if let Some((tcp, section)) = remote.zip(root.section("admin").and_then(|admin| admin.section("tcp"))) {
        tcp::compare(tcp, &section, services.iter().filter_map(|(service, _)| service.as_ref()));
    }

    Some(Parts {
        eal: eal?.unwrap_or(Eal { hugepages: true, memory_mb: None, file_prefix: None, args: Vec::new() }),
        run: run?.unwrap_or(Run { drop_capabilities: true, virtual_addresses: VirtualAddresses::default() }),
        workers: workers?,
        table: table?.unwrap_or(Table::of(1_000_000)),
        routing: Routing { forward: forward?, snats: snats.into_iter().collect::<Option<_>>()? },
        scheduling: scheduling?.unwrap_or(Scheduling { flow_key: FLOW_KEY }),
        admin: admin?.unwrap_or_else(|| Admin {
            socket: PathBuf::from(DEFAULT_SOCKET),
            group: None,
            tcp: None,
        }),
        sync: sync?,
        ipvs_sync: ipvs_sync?,
        sources: sources?,
        ports: ports.into_iter().collect::<Option<_>>()?,
        marks,
        services: services.into_iter().map(|(service, _)| service).collect::<Option<_>>()?,
    })
}

fn scheduling(section: &Section<'_>) -> Option<Scheduling> {
    const KEY: &str = "the absolute path of a file with 16 hexadecimal digits, e.g. from `openssl rand -hex 8`, the \
        same on all routers";
    section.known(&["key_file"]);
    let flow_key = section.or("key_file", FLOW_KEY, |field| {
        field.parse(KEY, |typed| file::key(Path::new(typed)).map(u64::from_be_bytes))
    });
    Some(Scheduling { flow_key: flow_key? })
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

fn forward(section: &Section<'_>) -> Option<bool> {
    section.known(&["forward"]);
    section.or("forward", false, |field| field.boolean())
}

fn run(section: &Section<'_>) -> Option<Run> {
    section.known(&["drop_capabilities", "virtual_addresses"]);
    let drop_capabilities = section.or("drop_capabilities", true, |field| field.boolean());
    let virtual_addresses = section.or("virtual_addresses", VirtualAddresses::default(), |field| {
        let named = |name: &str| match name {
            "place" => Some(VirtualAddresses::Place),
            "announce" => Some(VirtualAddresses::Announce),
            "follow" => Some(VirtualAddresses::Follow),
            _ => None,
        };
        one_of("way with virtual addresses", &["place", "announce", "follow"], named, &field)
    });
    Some(Run { drop_capabilities: drop_capabilities?, virtual_addresses: virtual_addresses? })
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

fn table(section: &Section<'_>) -> Option<Table> {
    section.known(&["connections", "keep"]);
    let connections = section.or("connections", 1_000_000, |field| field.integer(1024..=500_000_000));
    let keep = section.optional("keep", |field| {
        field.parse("an absolute path, e.g. \"/dev/hugepages/rvs\"", |typed| absolute(typed, "directory"))
    });
    Some(Table { connections: connections?, keep: keep? })
}

fn admin(section: &Section<'_>) -> Option<Admin> {
    section.known(&["socket", "group", "tcp"]);
    let socket = section.or("socket", PathBuf::from(DEFAULT_SOCKET), |field| {
        let expected = format!("an absolute path of at most {MAX_SOCKET_PATH} bytes");
        field.parse(&expected, |typed| match typed {
            _ if typed.len() > MAX_SOCKET_PATH => Err(format!("has {} bytes", typed.len())),
            _ => absolute(typed, "file"),
        })
    });
    let group = section.optional("group", |field| {
        field.parse("the name of a group, e.g. \"adm\"", |typed| match typed {
            "" => Err("is empty".to_owned()),
            _ if typed.contains('\0') => Err(format!("{} contains a NUL", quoted(typed))),
            _ => Ok(typed.to_owned()),
        })
    });
    let tcp = section.optional("tcp", |field| tcp::read(&field.section()?));
    Some(Admin { socket: socket?, group: group?, tcp: tcp? })
}

/// What every link has that IPv6 is on (RFC 8200, section 5).
pub(super) const IPV6_MTU: u16 = 1280;

fn port(section: &Section<'_>) -> Option<Port> {
    section.known(&["name", "device", "bond", "mtu", "descriptors", "addresses", "mac"]);
    let name = section.require("name", PORT_NAME).and_then(|field| field.parse(PORT_NAME, value::port_name));
    let devices = devices(section);
    let mtu: Option<u16> = section.or("mtu", 1500, |field| narrow(field.integer(576..=9000)));
    let descriptors = section.or("descriptors", 1024, |field| narrow(field.integer(64..=32_768)));
    let addresses = addresses(section, mtu);
    let mac = section.optional("mac", |field| field.parse(MAC, value::mac));
    Some(Port {
        name: name?,
        devices: devices.as_ref()?.0.clone(),
        bond: devices?.1,
        tag: None,
        mtu: mtu?,
        descriptors: descriptors?,
        addresses: addresses?,
        mac: mac?,
    })
}

/// The device of a port, or those of a bond.
fn devices(section: &Section<'_>) -> Option<(Vec<String>, Option<Bond>)> {
    match section.get("bond") {
        Some(field) if section.get("device").is_some() => {
            field.error("a port has a device or is a bond; expected one of device and bond")
        }
        Some(field) => bond::read(&field.section()?).map(|(bond, members)| (members, Some(bond))),
        None => {
            let device = section.require("device", format_args!("{DEVICE}, or bond = {{ ... }}"))?;
            Some((vec![device.parse(DEVICE, value::device)?], None))
        }
    }
}

/// A tagged network on the wire of one of these ports.
fn vlan(section: &Section<'_>, ports: &[Option<Port>]) -> Option<Port> {
    const ID: &str = "the network's number, 1 to 4094";
    const WIRE: &str = "the name of the [[port]] whose wire it is on";
    section.known(&["name", "port", "id", "mtu", "addresses"]);
    let id = section.require("id", ID).and_then(|field| narrow::<u16>(field.integer(1..=4094)));
    let place = section.require("port", WIRE).and_then(|field| {
        field.parse(WIRE, |typed| {
            let is_it = |port: &Option<Port>| port.as_ref().is_some_and(|port| port.name == typed);
            ports.iter().position(is_it).ok_or_else(|| format!("there is no port {}", quoted(typed)))
        })
    });
    let port = place.and_then(|place| ports[place].as_ref());
    let name = match section.get("name") {
        Some(field) => field.parse(PORT_NAME, value::port_name),
        None => port.zip(id).and_then(|(port, id)| {
            value::port_name(&format!("{}.{id}", port.name))
                .map_err(|error| section.error(format_args!("{error}; expected {PORT_NAME}")))
                .ok()
        }),
    };
    let most = port.map_or(9000, |port| port.mtu);
    let mtu: Option<u16> = section.or("mtu", most, |field| narrow(field.integer(576..=most.into())));
    let addresses = addresses(section, mtu);
    let (port, place) = (port?, place? as u16);
    Some(Port {
        name: name?,
        devices: Vec::new(),
        bond: None,
        tag: Some(Tag { port: place, id: id? }),
        mtu: mtu?,
        descriptors: port.descriptors,
        addresses: addresses?,
        mac: port.mac,
    })
}

/// The addresses of a twin with this MTU.
fn addresses(section: &Section<'_>, mtu: Option<u16>) -> Option<Vec<Prefix>> {
    section.or("addresses", Vec::new(), |field| {
        field.all(|address| {
            let prefix = address.parse(PREFIX, value::prefix)?;
            match mtu {
                // Linux has no IPv6 on such an interface.
                Some(mtu @ ..IPV6_MTU) if prefix.address.is_ipv6() => address.error(format_args!(
                    "an mtu of {mtu} is too small for IPv6; expected at least {IPV6_MTU}, or no IPv6 address"
                )),
                _ => Some(prefix),
            }
        })
    })
}

/// The path of a file or directory, wherever the program is started.
fn absolute(typed: &str, of: &str) -> Result<PathBuf, String> {
    match typed {
        _ if typed.contains('\0') => Err(format!("{} contains a NUL", quoted(typed))),
        _ if !typed.starts_with('/') || typed.ends_with('/') => {
            Err(format!("{} is not an absolute path of a {of}", quoted(typed)))
        }
        _ => Ok(PathBuf::from(typed)),
    }
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
named!(Helper, Mode, Protocol, Scheduler, SchedulerFlag, Track);

/// A number that its range keeps within the narrower type.
pub(super) fn narrow<T: TryFrom<u64>>(value: Option<u64>) -> Option<T> {
    value.and_then(|value| T::try_from(value).ok())
}
