//! The configuration: a TOML file, read completely and checked completely before anything acts on it.
//!
//! A file passes three gates. [`raw`] reads what was typed: tables, keys and values with their places;
//! unknown keys and wrong types end here. [`check`] gives it meaning: defaults, ranges, references,
//! duplicates. What comes out is a [`Config`], of which every part is valid by itself and in the whole.
//! [`machine`] then asks whether this machine has what the file names (cores, devices, memory); it is
//! apart, because a file may be checked on another machine, and because a reload cannot change any of it.
//!
//! An operator repairs a file in an editor, so an error names file, line, column, key, what is wrong and
//! what is expected, shows the line, and comes together with the other errors of the file
//! ([`ConfigErrors`]). Errors that only show later, as a device with too few queues does, are raised in
//! the same form through [`Config::error`], which finds the key's place again.

pub mod availability;
pub mod bond;
pub mod check;
pub mod checks;
mod compare;
pub mod error;
pub mod file;
pub mod format;
mod fullnat;
pub mod ipvs;
mod limit;
pub mod machine;
mod mark;
mod quic_lb;
pub mod raw;
pub mod schema;
mod service;
mod snat;
mod sources;
pub mod sync;
pub mod tcp;
mod tunnel;
mod user;
pub mod value;

use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dataplane::admission::{Limit, Sources};
use dataplane::quic;
use dataplane::service::{
    Helper, Limits, Mode, Persistence, Protocol, Scheduler, SchedulerFlag, Timeouts, Track,
};
use dataplane::snapshot::TunnelSpec;
use dataplane::snat::SnatSpec;
use dataplane::vlan::{Tag, Vlans};
use dataplane::wire::ipv4;

pub use availability::{Availability, Damping, Hooks, OnDown, OnRemove, Refuse};
pub use bond::Bond;
pub use checks::{Authorities, Check, CheckKind, Grpc, Http, Pattern, Start, Statuses, Tls, Trust};
pub use compare::Own;
use error::Report;
pub use error::{ConfigError, ConfigErrors, Source};
pub use fullnat::Fullnat;
pub use ipvs::IpvsSync;
pub use machine::Machine;
pub use mark::{Marked, Marks, Share};
pub use sync::Sync;
pub use tcp::AdminTcp;
pub use user::User;

/// Where the admin socket is unless the file or the command line says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/rvs/rvs.sock";

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// Its text, to show the line of an error that is found later.
    pub source: Source,
    /// `[eal]`: how DPDK is started.
    pub eal: Eal,
    /// `[run]`: how the process runs.
    pub run: Run,
    /// `[workers]`: who polls.
    pub workers: Workers,
    /// `[table]`: the connection table.
    pub table: Table,
    /// `[routing]` and `[[snat]]`: what becomes of packets that concern no service.
    pub routing: Routing,
    /// `[scheduling]`: what all services' schedulers have in common.
    pub scheduling: Scheduling,
    /// `[admin]`: the admin API.
    pub admin: Admin,
    /// `[sync]`: peer routers, if there are any.
    pub sync: Option<Sync>,
    /// `[ipvs_sync]`: directors of Linux, if there are any.
    pub ipvs_sync: Option<IpvsSync>,
    /// `[sources]`: whose connections may begin at any service, if not everybody's.
    pub sources: Option<Arc<Sources>>,
    /// `[[port]]`, at least one; and behind these `[[vlan]]`.
    pub ports: Vec<Port>,
    /// `[[mark]]`: which packets have firewall marks.
    pub marks: Marks,
    /// `[[service]]`: possibly none.
    pub services: Vec<Service>,
}

/// What all services' schedulers have in common.
#[derive(Clone, PartialEq, Eq)]
pub struct Scheduling {
    /// The key by which flows are hashed.
    pub flow_key: u64,
}

impl fmt::Debug for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scheduling")
    }
}

/// A larger file is not a configuration.
const MAX_FILE: u64 = 64 << 20;

/// Reads and checks a file. What the machine lacks is not asked here, but in [`Config::check_machine`].
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    parse(path, read(path)?)
}

/// Reads a file that can be a configuration.
pub fn read(path: &Path) -> Result<Vec<u8>, ConfigErrors> {
    let of_file = |message: &dyn fmt::Display| ConfigErrors::of_file(path, message);
    let file = std::fs::File::open(path)
        .map_err(|error| of_file(&format_args!("cannot be opened: {error}; expected a TOML file")))?;
    let cannot_read = |error| of_file(&format_args!("cannot be read: {error}; expected a TOML file"));
    let kind = file.metadata().map_err(cannot_read)?;
    if kind.is_dir() {
        return Err(of_file(&"is a directory; expected a TOML file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(cannot_read)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(of_file(&format_args!("is larger than {} MB; expected a TOML file", MAX_FILE >> 20)));
    }
    Ok(bytes)
}

/// Checks the contents of a file.
pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Config, ConfigErrors> {
    check::check(path.to_owned(), text(path, bytes)?)
}

/// The contents of a file as text.
pub fn text(path: &Path, bytes: Vec<u8>) -> Result<Source, ConfigErrors> {
    let text = String::from_utf8(bytes).map_err(|error| {
        // What precedes the first wrong byte is text, and enough to find the line and to show it.
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..valid + 1]).into_owned();
        let report = Report::new(Source::new(path, text));
        report.error(valid..valid + 1, "encoding", "is not UTF-8; expected a TOML file");
        report.finish().expect_err("an error has been reported")
    })?;
    Ok(Source::new(path, text))
}

/// Checks a text of `[[service]]` and nothing else, for services that are added without the file.
pub fn parse_services(text: &str) -> Result<Vec<Service>, ConfigErrors> {
    check::services(Source::new(Path::new("service"), text.to_owned()))
}

/// See [`Config::port_of`]. None if there is none of the name, or no port at all.
fn port_of<'p>(
    service: &Service,
    address: IpAddr,
    ports: impl Iterator<Item = &'p Port> + Clone,
) -> Option<&'p Port> {
    match &service.port {
        Some(name) => ports.clone().find(|port| port.name == *name),
        None => ports.clone().find(|port| port.is_near(address)).or_else(|| ports.clone().next()),
    }
}

impl Config {
    /// An error in the value of a key, e.g. `port[0].device`, that was found after the check.
    pub fn error(&self, key: &str, message: impl fmt::Display) -> ConfigErrors {
        let span = raw::Document::parse(&self.source).map_or(0..0, |document| document.find(key));
        let report = Report::new(self.source.clone());
        report.error(span, key, message);
        report.finish().expect_err("an error has been reported")
    }

    /// The port whose twin carries a virtual address of a service: the one that is named, else the one with
    /// an address in the same network, else the first.
    pub fn port_of(&self, service: &Service, address: IpAddr) -> &Port {
        port_of(service, address, self.ports.iter()).unwrap_or(&self.ports[0])
    }

    /// The port whose twin carries a local address of a service: the one with an address in the same network, else that of the virtual
    /// address.
    pub fn port_of_local(&self, service: &Service, local: IpAddr) -> &Port {
        let virtual_address = || service.virtual_addresses().next().unwrap_or(local);
        self.ports
            .iter()
            .find(|port| port.is_near(local))
            .unwrap_or_else(|| self.port_of(service, virtual_address()))
    }

    /// The ports with devices, which come first.
    pub fn wires(&self) -> &[Port] {
        &self.ports[..self.ports.iter().position(|port| port.tag.is_some()).unwrap_or(self.ports.len())]
    }

    /// Their devices, members of bonds among them: each with the number of its port and with its key.
    pub fn devices(&self) -> impl Iterator<Item = (usize, String, &str)> {
        self.wires().iter().enumerate().flat_map(|(index, port)| {
            let devices = port.devices.iter().enumerate();
            devices.map(move |(place, device)| (index, port.key_of_device(index, place), device.as_str()))
        })
    }

    /// The tagged networks on these.
    pub fn vlans(&self) -> Vlans {
        Vlans::new(self.wires().len(), self.ports.iter().filter_map(|port| port.tag))
    }

    /// The key of a port's table.
    pub(crate) fn key_of_port(&self, index: usize) -> String {
        match index.checked_sub(self.wires().len()) {
            None => format!("port[{index}]"),
            Some(index) => format!("vlan[{index}]"),
        }
    }

    /// The users as whom programs of the operator's are to run, each with its key.
    pub fn users(&self) -> impl Iterator<Item = (String, &User)> {
        self.services.iter().enumerate().flat_map(|(index, service)| {
            let of_checks = service.checks.iter().enumerate().filter_map(move |(number, check)| {
                let CheckKind::Command(command) = &check.kind else { return None };
                Some((format!("service[{index}].check[{number}].user"), command.user.as_ref()?))
            });
            let of_hooks = service.availability.hooks.user.as_ref();
            of_checks.chain(of_hooks.map(|user| (format!("service[{index}].hooks.user"), user)))
        })
    }

    /// The key of the first difference that cannot come into force while RVS runs; see [`Config::error`].
    pub fn needs_restart(&self, new: &Config) -> Option<String> {
        let listens = |config: &Config| config.admin.tcp.as_ref().map(|tcp| tcp.listen);
        let same = [
            ("eal", self.eal == new.eal),
            ("run", self.run == new.run),
            ("workers.cores", self.workers.cores == new.workers.cores),
            ("workers.idle", self.workers.idle == new.workers.idle),
            ("workers.control_cores", self.workers.control_cores == new.workers.control_cores),
            ("table.connections", self.table.connections == new.table.connections),
            ("table.keep", self.table.keep == new.table.keep),
            ("admin.socket", self.admin.socket == new.admin.socket),
            ("admin.group", self.admin.group == new.admin.group),
            ("admin.tcp", self.admin.tcp.is_some() == new.admin.tcp.is_some()),
            ("admin.tcp.listen", listens(self) == listens(new)),
            ("sync", self.sync == new.sync),
            ("ipvs_sync", self.ipvs_sync == new.ipvs_sync),
            ("port", self.wires().len() == new.wires().len()),
            ("vlan", self.ports.len() == new.ports.len()),
        ];
        if let Some((key, _)) = same.iter().find(|(_, same)| !same) {
            return Some((*key).to_owned());
        }
        // What it takes to become another user has been given up, unless the file asked for it at the start.
        if self.run.drop_capabilities
            && self.users().next().is_none()
            && let Some((key, _)) = new.users().next()
        {
            return Some(key);
        }
        let keys = new;
        self.ports.iter().zip(&new.ports).enumerate().find_map(|(index, (old, new))| {
            let same = [
                ("name", old.name == new.name),
                ("bond", old.bond == new.bond && (old.bond.is_none() || old.devices == new.devices)),
                ("device", old.devices == new.devices),
                ("id", old.tag.map(|tag| tag.id) == new.tag.map(|tag| tag.id)),
                ("port", old.tag == new.tag),
                ("mtu", old.mtu == new.mtu),
                ("descriptors", old.descriptors == new.descriptors),
                ("addresses", old.addresses == new.addresses),
                ("mac", old.mac == new.mac),
            ];
            same.iter().find(|(_, same)| !same).map(|(key, _)| format!("{}.{key}", keys.key_of_port(index)))
        })
    }
}

/// How DPDK's environment abstraction layer is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eal {
    /// Memory from hugetlbfs; `false` is `--no-huge`.
    pub hugepages: bool,
    /// Memory in MB: `--socket-mem`-like with hugepages, `-m` without.
    pub memory_mb: Option<u32>,
    /// `--file-prefix`.
    pub file_prefix: Option<String>,
    /// Passed through untouched.
    pub args: Vec<String>,
}

/// How the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whether it gives up what it needed only to start; see [`crate::capabilities`].
    pub drop_capabilities: bool,
    /// Who puts virtual addresses on twins.
    pub virtual_addresses: VirtualAddresses,
}

/// Who puts virtual addresses on twins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VirtualAddresses {
    /// RVS does.
    #[default]
    Place,
    /// RVS does while all services at an address have their quorum, for a routing daemon that announces what it finds there.
    Announce,
    /// Somebody else does, such as keepalived, and a service is live while its address is on a twin.
    Follow,
}

/// What a worker does when its queues are empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Polls on: the lowest latency, and a core that is always at 100 %.
    Busy,
    /// Sleeps for longer and longer, up to a fraction of a millisecond.
    Adaptive,
}

/// Which cores do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers {
    /// One worker on each; a core stands here twice only with [`Idle::Adaptive`].
    pub cores: Vec<usize>,
    /// What a worker does when its queues are empty.
    pub idle: Idle,
    /// Where the control thread runs; `None`: on all online cores that are not workers'.
    pub control_cores: Option<Vec<usize>>,
}

/// The connection table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// How many connections it holds at half load.
    pub connections: u64,
    /// The directory where it outlives the process, if it does.
    pub keep: Option<PathBuf>,
}

impl Table {
    /// One of so many connections that ends with the process.
    pub fn of(connections: u64) -> Table {
        Table { connections, keep: None }
    }

    /// How many bytes its buckets take: two slots of a word for each connection, in whole cache lines.
    pub fn bytes(&self) -> u64 {
        self.connections.div_ceil(4) * 2 * 64
    }
}

/// What becomes of packets that concern no service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Whether workers route them; if not, Linux has them.
    pub forward: bool,
    /// `[[snat]]`: source NAT for what hosts inside begin.
    pub snats: Vec<SnatSpec>,
}

/// Where the admin API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// The group whose members may ask, besides the owner; that of the process if there is none.
    pub group: Option<String>,
    /// `[admin.tcp]`: where other machines may ask, if they may.
    pub tcp: Option<AdminTcp>,
}

/// A DPDK port and its twin in Linux.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name of the twin.
    pub name: String,
    /// PCI address, vdev string without index, or the name of a device that `eal.args` creates. Several are a bond's members;
    /// none is for a tagged network.
    pub devices: Vec<String>,
    /// How it uses its devices, if it is a bond.
    pub bond: Option<Bond>,
    /// Whose wire it is on, and as which, if it is a tagged network.
    pub tag: Option<Tag>,
    /// Largest IP packet.
    pub mtu: u16,
    /// Descriptors of each receive and transmit ring.
    pub descriptors: u16,
    /// Addresses that the twin has while RVS runs.
    pub addresses: Vec<Prefix>,
    /// Instead of the device's own MAC address.
    pub mac: Option<[u8; 6]>,
}

impl Port {
    /// The key of its device with this number, if it is the port with that one.
    pub(crate) fn key_of_device(&self, index: usize, place: usize) -> String {
        match self.bond {
            Some(_) => format!("port[{index}].bond.members[{place}]"),
            None => format!("port[{index}].device"),
        }
    }

    /// Whether an address is in a network that the port is in.
    pub fn is_near(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|prefix| prefix.contains(address))
    }
}

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// 1 to 32, or to 128 of IPv6.
    pub length: u8,
}

impl Prefix {
    /// Whether the address lies in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && Prefix { address, ..*self }.network() == self.network()
    }

    /// The network's first address.
    pub fn network(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => IpAddr::V4(address & Ipv4Addr::from_bits(ipv4::mask(self.length))),
            IpAddr::V6(address) => {
                let host = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
                IpAddr::V6(address & Ipv6Addr::from_bits(!host))
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Virtual address and port; port 0 if it is of all ports that no other service has. Its servers' ports are 0 then, too.
    pub address: SocketAddr,
    /// What it has in place of an address, if it is of a mark. The address is the mark as a number then, as IPVS shows it, and the port 0.
    pub mark: Option<Marked>,
    /// Of a service of all ports: those that it has of them, if not all. In ascending order, without touching each other.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Transport protocol. Of a mark: TCP, if anything of it comes by TCP.
    pub protocol: Protocol,
    /// How packets reach the real servers.
    pub mode: Mode,
    /// How packets get there with [`Mode::Tunnel`].
    pub tunnel: TunnelSpec,
    /// As whom servers see clients, with [`Mode::Fullnat`].
    pub fullnat: Option<Fullnat>,
    /// How a real server is chosen.
    pub scheduler: Scheduler,
    /// Options of the scheduler.
    pub flags: Vec<SchedulerFlag>,
    /// The port whose twin carries the virtual address; see [`Config::port_of`].
    pub port: Option<String>,
    /// Seconds of silence after which a connection is forgotten.
    pub timeouts: Timeouts,
    /// Which connections may begin in their middle.
    pub sloppy: Sloppy,
    /// Whether each datagram is scheduled on its own, and no connection remembered.
    pub one_packet: bool,
    /// What ties its connections together, if something does.
    pub helper: Option<Helper>,
    /// Which of its connections have a word in the table.
    pub track: Track,
    /// Whose connections may begin, if not everybody's.
    pub sources: Option<Arc<Sources>>,
    /// How many connections may begin, if there is a limit.
    pub limit: Option<Limit>,
    /// How its real servers write into QUIC's connection ids which of them it is.
    pub quic_lb: Vec<quic::Config>,
    /// Whether clients come back to their real servers, and for how long.
    pub persistence: Option<Persistence>,
    /// How the real servers are checked; all of these must pass.
    pub checks: Vec<Check>,
    /// What it does when its real servers come and go.
    pub availability: Availability,
    /// The real servers, possibly none.
    pub servers: Vec<Server>,
}

/// Whether a TCP connection may begin with any packet but a RST, and an SCTP association with any but an ABORT, as with IPVS' sysctls
/// `sloppy_tcp` and `sloppy_sctp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sloppy {
    /// `sloppy_tcp`.
    pub tcp: bool,
    /// `sloppy_sctp`.
    pub sctp: bool,
}

impl Sloppy {
    /// What is said of this protocol.
    pub fn of(self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => self.tcp,
            Protocol::Sctp => self.sctp,
            Protocol::Udp => false,
        }
    }
}

impl Service {
    /// Its virtual addresses, each once: one, but of a mark.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.mark.is_none().then(|| self.address.ip());
        self.mark.iter().flat_map(Marked::addresses).chain(own)
    }

    /// Whether anything of it comes by this protocol.
    pub fn has_protocol(&self, protocol: Protocol) -> bool {
        self.mark.as_ref().map_or(self.protocol == protocol, |marked| marked.has(protocol))
    }

    /// How many real servers it takes to tell the connections of its own apart: each once, and of a mark once more for what comes to each
    /// address by each protocol.
    pub fn numbers(&self) -> usize {
        let servers = self.servers.len() + usize::from(self.availability.sorry_server.is_some());
        servers * (1 + self.mark.as_ref().map_or(0, |marked| marked.faces.len()))
    }
}

/// A real server of a service. Small and without memory of its own, since lists of a hundred thousand are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Address and port; the port is the service's unless the mode is NAT.
    pub address: SocketAddr,
    /// 0 takes no new connections.
    pub weight: u32,
    /// How many connections it is given.
    pub limits: Option<Limits>,
    /// Its id in connection ids ([`Service::quic_lb`]).
    pub quic_id: Option<quic::ServerId>,
    /// Whether the service's checks apply to it.
    pub check: bool,
    /// What the operator wants of it.
    pub state: ServerState,
}

impl Server {
    /// One of which nothing else is said, with checks.
    pub fn new(address: SocketAddr) -> Server {
        Server { address, weight: 1, limits: None, quic_id: None, check: true, state: ServerState::Enabled }
    }
}

/// What the operator wants of a real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerState {
    /// It serves.
    #[default]
    Enabled,
    /// It keeps its connections and gets no new ones.
    Drained,
    /// It is left out, as if it did not stand there.
    Disabled,
}

impl ServerState {
    /// All of them.
    pub const ALL: [ServerState; 3] = [ServerState::Enabled, ServerState::Drained, ServerState::Disabled];

    /// As it stands in the file.
    pub fn name(self) -> &'static str {
        match self {
            ServerState::Enabled => "enabled",
            ServerState::Drained => "drained",
            ServerState::Disabled => "disabled",
        }
    }

    /// The reverse of [`Self::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        ServerState::ALL.into_iter().find(|state| state.name() == name)
    }
}

#[cfg(test)]
mod tests;
