//! The ways on which packets reach a server, and machines that have them all.

use std::{
    fmt::{self, Display, Formatter},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use harness::{
    cluster::{self, Cluster, Layout},
    config::{Config, Service},
    ipv6,
    netns::Namespace,
    router::Router,
    tunnel::{End, Kind},
};

/// What a router does with a packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// The destination is translated.
    Nat,
    /// And the source, to an address of the router's.
    FullNat,
    /// The next hop is the server.
    Direct,
    /// It goes inside of another one.
    Tunnel(Kind),
    /// It is for the router itself.
    Local,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
    /// IPv4.
    Four,
    /// IPv6.
    Six,
}

/// How packets of clients reach a server.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// How the router sends them there.
    pub mode: Mode,
    /// The clients' family, and that of the virtual address.
    pub clients: Family,
    /// The server's.
    pub servers: Family,
}

use Family::{Four, Six};

/// One kind of tunnel for each real server: the end of one is no end of another.
const KINDS: [Kind; 3] = [Kind::Ipip, Kind::Gre, Kind::Gue(6080)];

impl Way {
    /// All for which machines are wired like this.
    pub fn all(layout: Layout) -> Vec<Way> {
        let within = |mode| [Four, Six].map(|family| Way { mode, clients: family, servers: family });
        match layout {
            Layout::TwoArmed => [Mode::Nat, Mode::FullNat].into_iter().flat_map(within).collect(),
            Layout::OneArmed => {
                let pairs = [(Four, Four), (Six, Six), (Six, Four), (Four, Six)];
                let through =
                    |kind| pairs.map(|(clients, servers)| Way { mode: Mode::Tunnel(kind), clients, servers });
                let simple = [Mode::Direct, Mode::Local].into_iter().flat_map(within);
                simple.chain(KINDS.into_iter().flat_map(through)).collect()
            }
        }
    }

    /// The client's address.
    pub fn client(self) -> IpAddr {
        match self.clients {
            Four => cluster::CLIENT.into(),
            Six => ipv6::CLIENT.into(),
        }
    }

    /// The router's address towards the client.
    pub fn router(self) -> IpAddr {
        match self.clients {
            Four => Layout::OneArmed.router().into(),
            Six => ipv6::ROUTER.into(),
        }
    }

    /// A port of the virtual address.
    pub fn vip(self, port: u16) -> SocketAddr {
        match self.clients {
            Four => cluster::vip(port).into(),
            Six => ipv6::vip(port),
        }
    }

    /// As it is said to programs: `-4` or `-6`.
    pub fn option(self) -> &'static str {
        match self.clients {
            Four => "-4",
            Six => "-6",
        }
    }

    /// From which address full NAT has the server hear.
    pub fn pool(self) -> &'static str {
        match self.servers {
            Four => "10.0.0.100",
            Six => "2001:db8:a::100",
        }
    }

    /// What a packet is longer when it leaves the router.
    pub fn overhead(self) -> usize {
        match (self.mode, self.servers) {
            (Mode::Tunnel(kind), Four) => kind.overhead(),
            (Mode::Tunnel(kind), Six) => kind.overhead_over_ipv6(),
            _ => 0,
        }
    }

    /// The machine of the server.
    pub fn machine(self, cluster: &Cluster) -> &Namespace {
        if self.mode == Mode::Local { &cluster.router } else { &cluster.real_servers[self.index()] }
    }

    /// Where its server listens: only NAT gives packets another destination.
    pub fn listens(self, cluster: &Cluster, port: u16) -> SocketAddr {
        match self.mode {
            Mode::Nat | Mode::FullNat => self.server(cluster, port),
            Mode::Direct | Mode::Tunnel(_) | Mode::Local => self.vip(port),
        }
    }

    /// The service on a port, by this protocol.
    pub fn service(self, cluster: &Cluster, protocol: &'static str, port: u16) -> Service {
        Service { protocol, ..self.to(cluster, Service::tcp("nat", self.vip(port)), port) }
    }

    /// All ports from this one on, as many as `count`, by both protocols: a rule, and its mark's service.
    pub fn marked(self, cluster: &Cluster, config: Config, port: u16, count: u16) -> Config {
        let (address, last) = (self.vip(0).ip(), port + count - 1);
        let rule = format!("mark = {port}\naddress = \"{address}\"\nports = [\"{port}-{last}\"]");
        config.mark(&rule).service(self.to(cluster, Service::marked("nat", port.into()), 0))
    }

    /// A service that takes this way to this port of the server.
    fn to(self, cluster: &Cluster, service: Service, port: u16) -> Service {
        let mode = match self.mode {
            Mode::Nat => "nat",
            Mode::FullNat => "fullnat",
            Mode::Direct | Mode::Local => "dr",
            Mode::Tunnel(_) => "tunnel",
        };
        let service = Service { mode, ..service }.server(self.server(cluster, port), 1);
        match self.mode {
            Mode::FullNat => service.setting(&format!("fullnat = {{ local = [\"{}\"] }}", self.pool())),
            Mode::Tunnel(kind) => service.setting(&kind.setting()),
            Mode::Nat | Mode::Direct | Mode::Local => service,
        }
    }

    /// The server, as the service names it.
    fn server(self, cluster: &Cluster, port: u16) -> SocketAddr {
        match (self.mode, self.servers) {
            (Mode::Local, _) => self.vip(port),
            (_, Four) => cluster.endpoint(self.index(), port).into(),
            (_, Six) => ipv6::endpoint(cluster, self.index(), port),
        }
    }

    /// Which of the real servers it is.
    fn index(self) -> usize {
        match self.mode {
            Mode::Tunnel(kind) => KINDS.iter().position(|known| *known == kind).unwrap_or(0),
            _ => 0,
        }
    }
}

impl Display for Way {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} from {:?} to {:?}", self.mode, self.clients, self.servers)
    }
}

/// A way, and the first of the ports that a test has for it.
pub type Numbered = (Way, u16);

/// What is known of ports between one way's and the next one's.
pub const STEP: u16 = 100;

/// Runs the body of a test with machines that have all ways of this layout.
pub fn with_ways(layout: Layout, body: impl FnOnce(&Cluster, &[Numbered]) -> Result<()>) -> Result<()> {
    ipv6::with_cluster(layout, |cluster| {
        let mut ends = Vec::new();
        if layout == Layout::OneArmed {
            for (machine, kind) in cluster.real_servers.iter().zip(KINDS) {
                ends.push(End::start(machine, kind)?);
                ipv6::switch_on(machine, "untun0")?;
            }
        }
        let ports = (0..).map(|number| 10_000 + number * STEP);
        body(cluster, &Way::all(layout).into_iter().zip(ports).collect::<Vec<_>>())?;
        ends.iter_mut().try_for_each(End::check)
    })
}

/// Starts the router, and waits until it knows the MAC of each real server.
pub fn start(cluster: &Cluster, ways: &[Numbered], config: &Config, protocol: &str) -> Result<Router> {
    let router = cluster.start_router(config)?;
    for (way, port) in ways {
        router.wait_for_macs(way.client(), way.vip(*port), protocol).with_context(|| way.to_string())?;
    }
    Ok(router)
}

/// Does it on each of these ways; an error says on which.
pub fn on_each(ways: &[Numbered], mut body: impl FnMut(Way, u16) -> Result<()>) -> Result<()> {
    ways.iter().try_for_each(|&(way, port)| body(way, port).with_context(|| way.to_string()))
}
