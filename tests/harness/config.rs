//! A router's configuration as a test thinks of it, written out as the TOML that an operator would write.

use std::{
    fmt::{self, Display, Formatter},
    net::{Ipv4Addr, SocketAddr},
};

use crate::cluster::Layout;

/// A configuration file under construction.
#[derive(Clone, Debug)]
pub struct Config {
    /// The workers' cores.
    pub cores: Vec<usize>,
    /// How many connections the table is asked to hold.
    pub connections: u64,
    /// Where connections outlive the program, if they do.
    pub keep: Option<String>,
    /// The ports.
    pub ports: Vec<Port>,
    /// Rules that give packets marks: the lines of a `[[mark]]` each.
    pub marks: Vec<String>,
    /// The services, in the order of the file.
    pub services: Vec<Service>,
    /// The admin socket.
    pub socket: String,
    /// DPDK's name for what belongs to this instance, unless the program shall choose one.
    pub file_prefix: Option<String>,
}

/// A `[[port]]`.
#[derive(Clone, Debug)]
pub struct Port {
    /// Name of the twin.
    pub name: &'static str,
    /// DPDK's device string.
    pub device: String,
    /// Addresses of the twin with their prefix lengths.
    pub addresses: Vec<String>,
    /// The longest IP packet, if it is not that of Ethernet.
    pub mtu: Option<u16>,
}

/// A `[[service]]`.
#[derive(Clone, Debug)]
pub struct Service {
    /// Virtual address and port.
    pub address: SocketAddr,
    /// The mark that it has in place of an address and a protocol.
    pub mark: Option<u32>,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// `nat` or `dr`.
    pub mode: &'static str,
    /// A scheduler's name.
    pub scheduler: String,
    /// Flags of the scheduler.
    pub flags: Vec<&'static str>,
    /// Overridden timeouts: key and value as in the file.
    pub timeouts: Vec<(&'static str, String)>,
    /// Other settings: lines of TOML.
    pub settings: Vec<String>,
    /// The health check's keys and values, if there is one.
    pub check: Option<String>,
    /// The real servers.
    pub servers: Vec<Server>,
}

/// A `[[service.server]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its address.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// Whether the service's check applies to it.
    pub check: bool,
}

/// A health check that finds a server dead, or alive again, within a second.
pub const QUICK_CHECK: &str = "kind = \"tcp\", interval = \"150ms\", timeout = \"300ms\", rise = 2, fall = 3";

/// The pace of checks of other kinds: quick, but for their timeout, since a busy machine is no broken server.
const PACE: [(&str, &str); 5] =
    [("interval", "\"100ms\""), ("timeout", "\"3s\""), ("rise", "2"), ("fall", "2"), ("jitter", "\"50ms\"")];

impl Config {
    /// The configuration that fits a cluster of this layout: its ports, and no services yet.
    pub fn for_layout(layout: Layout, socket: String) -> Config {
        let port = |name, interface: &str, address: Ipv4Addr| Port {
            name,
            device: format!("net_af_packet,iface={interface}"),
            addresses: vec![format!("{address}/24")],
            mtu: None,
        };
        let mut ports = vec![port("wan", "wan0", layout.router())];
        if layout == Layout::TwoArmed {
            ports.push(port("lan", "lan0", layout.gateway()));
        }
        let last = *crate::cores().last().unwrap_or(&0);
        Config {
            cores: vec![last],
            connections: 65_536,
            keep: None,
            ports,
            marks: vec![],
            services: vec![],
            socket,
            file_prefix: None,
        }
    }

    /// With this service too.
    pub fn service(mut self, service: Service) -> Config {
        self.services.push(service);
        self
    }

    /// With this `[[mark]]`, lines of TOML.
    pub fn mark(mut self, rule: &str) -> Config {
        self.marks.push(rule.to_owned());
        self
    }

    /// With ports that see each fragment: the socket driver has Linux put them together.
    pub fn with_fragments(mut self) -> Config {
        for port in &mut self.ports {
            if let Some(interface) = port.device.strip_prefix("net_af_packet,iface=") {
                port.device = format!("net_pcap,iface={interface},phy_mac=1");
            }
        }
        self
    }

    /// With as many workers, on different cores as far as there are.
    pub fn workers(mut self, count: usize) -> Config {
        let cores = crate::cores();
        self.cores = (0..count).map(|worker| cores[worker % cores.len()]).collect();
        self
    }

    /// Sets the weight of the `server`th real server of the first service.
    pub fn set_weight(&mut self, server: usize, weight: u32) {
        self.services[0].servers[server].weight = weight;
    }
}

impl Service {
    /// A TCP service on `address`, by `wlc`.
    pub fn tcp(mode: &'static str, address: impl Into<SocketAddr>) -> Service {
        Service {
            address: address.into(),
            mark: None,
            protocol: "tcp",
            mode,
            scheduler: "wlc".to_owned(),
            flags: vec![],
            timeouts: vec![],
            settings: vec![],
            check: None,
            servers: vec![],
        }
    }

    /// A UDP service on `address`, by `wlc`.
    pub fn udp(mode: &'static str, address: impl Into<SocketAddr>) -> Service {
        Service { protocol: "udp", ..Service::tcp(mode, address) }
    }

    /// The service of a mark, by `wlc`.
    pub fn marked(mode: &'static str, mark: u32) -> Service {
        Service { mark: Some(mark), ..Service::tcp(mode, ([0, 0, 0, 0], 0)) }
    }

    /// With this scheduler.
    pub fn scheduler(mut self, scheduler: &str) -> Service {
        self.scheduler = scheduler.to_owned();
        self
    }

    /// With this flag of its scheduler.
    pub fn flag(mut self, flag: &'static str) -> Service {
        self.flags.push(flag);
        self
    }

    /// With this timeout.
    pub fn timeout(mut self, state: &'static str, value: &str) -> Service {
        self.timeouts.push((state, value.to_owned()));
        self
    }

    /// With this setting, a line of TOML.
    pub fn setting(mut self, line: &str) -> Service {
        self.settings.push(line.to_owned());
        self
    }

    /// With a quick health check ([`QUICK_CHECK`]).
    pub fn checked(mut self) -> Service {
        self.check = Some(QUICK_CHECK.to_owned());
        self
    }

    /// With this health check, by the keys of its kind; how often and how long is added unless they say so.
    pub fn check(mut self, keys: &str) -> Service {
        let mut check = keys.to_owned();
        for (key, value) in PACE {
            if !keys.contains(&format!("{key} =")) {
                check += &format!(", {key} = {value}");
            }
        }
        self.check = Some(check);
        self
    }

    /// With this real server.
    pub fn server(mut self, address: impl Into<SocketAddr>, weight: u32) -> Service {
        self.servers.push(Server { address: address.into(), weight, check: true });
        self
    }
}

impl Display for Config {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "[eal]\nhugepages = false\nmemory = 256")?;
        if let Some(prefix) = &self.file_prefix {
            writeln!(f, "file_prefix = {prefix:?}")?;
        }
        writeln!(f, "\n[workers]\ncores = {:?}\nidle = \"adaptive\"\n", self.cores)?;
        writeln!(f, "[table]\nconnections = {}", self.connections)?;
        if let Some(directory) = &self.keep {
            writeln!(f, "keep = {directory:?}")?;
        }
        writeln!(f, "\n[admin]\nsocket = {:?}", self.socket)?;
        for port in &self.ports {
            writeln!(f, "\n[[port]]\nname = {:?}\ndevice = {:?}", port.name, port.device)?;
            writeln!(f, "addresses = {:?}", port.addresses)?;
            if let Some(mtu) = port.mtu {
                writeln!(f, "mtu = {mtu}")?;
            }
        }
        self.marks.iter().try_for_each(|rule| writeln!(f, "\n[[mark]]\n{rule}"))?;
        self.services.iter().try_for_each(|service| write!(f, "\n{service}"))
    }
}

impl Display for Service {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.mark {
            None => {
                writeln!(f, "[[service]]\naddress = \"{}\"\nprotocol = {:?}", self.address, self.protocol)?
            }
            Some(mark) => writeln!(f, "[[service]]\nmark = {mark}")?,
        }
        writeln!(f, "mode = {:?}\nscheduler = {:?}", self.mode, self.scheduler)?;
        if !self.flags.is_empty() {
            writeln!(f, "flags = {:?}", self.flags)?;
        }
        if !self.timeouts.is_empty() {
            let pairs: Vec<String> =
                self.timeouts.iter().map(|(state, value)| format!("{state} = {value:?}")).collect();
            writeln!(f, "timeouts = {{ {} }}", pairs.join(", "))?;
        }
        self.settings.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        if let Some(check) = &self.check {
            writeln!(f, "check = {{ {check} }}")?;
        }
        for server in &self.servers {
            writeln!(
                f,
                "\n[[service.server]]\naddress = \"{}\"\nweight = {}",
                server.address, server.weight
            )?;
            if !server.check {
                writeln!(f, "check = false")?;
            }
        }
        Ok(())
    }
}
