//! A client, a router and three real servers, each in a network namespace of its own.
//!
//! ```text
//!   Layout::TwoArmed (NAT)                        Layout::OneArmed (direct routing)
//!
//!   client          router            bridge        client   router   rs1  rs2  rs3
//!   eth0 ======== wan0  lan0 ======== router        eth0     wan0     eth0 eth0 eth0
//!   192.0.2.100      |   |            rs1 rs2 rs3     |        |        |    |    |
//!                  (wan)(lan)          |   |   |      +--------+-bridge-+----+----+
//!                   .2.1 10.0.0.1     eth0 eth0 eth0        192.0.2.0/24
//!                                     10.0.0.11 .12 .13     real servers .11 .12 .13
//! ```
//!
//! `wan0` and `lan0` are the raw wires that the router's DPDK ports take over.  They have no address, and the
//! copies of their frames that Linux would see are dropped at ingress, as a NIC bound to vfio-pci would leave
//! nothing for Linux either; `wan` and `lan` are the twins that the router makes when it starts.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    config::{Config, Service},
    netns::Namespace,
    nginx::Nginx,
    packet::{Mac, mac_of, show_mac},
    router::Router,
    state::State,
};

/// The virtual address of every layout.
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

/// How the machines are wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The router stands between the clients' segment and the real servers': NAT.
    TwoArmed,
    /// Everybody is on one segment, and real servers answer clients directly: direct routing.
    OneArmed,
}

impl Layout {
    /// The router's address towards the clients.
    pub fn router(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, 1)
    }

    /// The router's address towards the real servers.
    pub fn gateway(self) -> Ipv4Addr {
        match self {
            Layout::TwoArmed => Ipv4Addr::new(10, 0, 0, 1),
            Layout::OneArmed => self.router(),
        }
    }

    /// The address of the `index`th real server.
    pub fn real_server(self, index: usize) -> Ipv4Addr {
        let host = 11 + index as u8;
        match self {
            Layout::TwoArmed => Ipv4Addr::new(10, 0, 0, host),
            Layout::OneArmed => Ipv4Addr::new(192, 0, 2, host),
        }
    }

    /// The mode that the layout is for.
    pub fn mode(self) -> &'static str {
        match self {
            Layout::TwoArmed => "nat",
            Layout::OneArmed => "dr",
        }
    }

    /// The port on which real servers are asked for what clients ask at 80: another one under NAT.
    pub fn http_port(self) -> u16 {
        match self {
            Layout::TwoArmed => 8080,
            Layout::OneArmed => 80,
        }
    }
}

/// The machines of one test, wired up; taken down when dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The machine of the users.
    pub client: Namespace,
    /// The machine of the program under test.
    pub router: Namespace,
    /// The bridge that joins the real servers (and, one-armed, everybody); no machine of its own.
    pub lan: Namespace,
    /// The real servers.
    pub real_servers: Vec<Namespace>,
    layout: Layout,
    state: State,
    kept: bool,
}

impl Cluster {
    /// Builds a cluster with a name of its own; `None`, loudly, where the tests cannot run.
    pub fn build(layout: Layout) -> Result<Option<Cluster>> {
        if !crate::privileged()? {
            return Ok(None);
        }
        Cluster::build_in(State::unique()?, layout).map(Some)
    }

    /// Builds a cluster that owns `state`.
    pub fn build_in(state: State, layout: Layout) -> Result<Cluster> {
        // Before anything is made: if something below fails, its drop takes down what has been made.
        let unwind = Unwind(Some(state.clone()));
        let role = |role| Namespace::create(&state, role);
        let (client, router, lan) = (role("client")?, role("router")?, role("lan")?);
        let real_servers: Vec<_> = ["rs1", "rs2", "rs3"].into_iter().map(role).collect::<Result<_>>()?;
        std::mem::forget(unwind);
        let cluster = Cluster { client, router, lan, real_servers, layout, state, kept: false };
        cluster.wire()?;
        Ok(cluster)
    }

    fn wire(&self) -> Result<()> {
        let Cluster { client, router, lan, layout, .. } = self;
        lan.ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up")?;
        // Where the machine filters bridged packets, it also drops those that are not sound IPv4: not our bridge.
        lan.sysctl("net/bridge/bridge-nf-call-iptables", 0)?;
        match layout {
            Layout::TwoArmed => {
                link(router, "wan0", layout.router(), client, "eth0", CLIENT)?;
                join(lan, "router", router, "lan0", layout.gateway())?;
            }
            Layout::OneArmed => {
                join(lan, "client", client, "eth0", CLIENT)?;
                join(lan, "router", router, "wan0", layout.router())?;
            }
        }
        client.ip(&format!("address add {CLIENT}/24 dev eth0"))?;
        for (index, server) in self.real_servers.iter().enumerate() {
            let address = layout.real_server(index);
            if *layout == Layout::OneArmed {
                // Holds the virtual address, but neither answers ARP for it nor asks with it.
                server.sysctl("net/ipv4/conf/all/arp_ignore", 1)?;
                server.sysctl("net/ipv4/conf/all/arp_announce", 2)?;
                server.ip(&format!("address add {VIP}/32 dev lo"))?;
            }
            join(lan, &format!("rs{}", index + 1), server, "eth0", address)?;
            server.ip(&format!(
                "address add {address}/24 dev eth0\nroute add default via {}",
                layout.gateway()
            ))?;
        }
        router.sysctl("net/ipv4/ip_forward", 1)?;
        let chains: String = self.wires().into_iter().map(deaf).collect();
        router.nft(&format!("table netdev rvs {{\n{chains}}}\n"))
    }

    /// The namespace of a second router beside the first, with this host part in all its addresses: 192.0.2.HOST and, two-armed,
    /// 10.0.0.HOST.
    pub fn second_router(&self, host: u8) -> Result<Namespace> {
        let beside = |first: Ipv4Addr| {
            let [a, b, c, _] = first.octets();
            Ipv4Addr::new(a, b, c, host)
        };
        if self.layout == Layout::OneArmed {
            return self.further_router("router2", beside(self.layout.router()));
        }
        let second = Namespace::create(&self.state, "router2")?;
        self.splice_wan()?;
        join_to(&self.lan, "br1", "wan2", &second, "wan0", beside(self.layout.router()))?;
        join(&self.lan, "router2", &second, "lan0", beside(self.layout.gateway()))?;
        second.sysctl("net/ipv4/ip_forward", 1)?;
        let chains: String = self.wires().into_iter().map(deaf).collect();
        second.nft(&format!("table netdev rvs {{\n{chains}}}\n"))?;
        Ok(second)
    }

    /// The namespace of one more router on the one segment of [`Layout::OneArmed`], with this address.
    pub fn further_router(&self, role: &str, address: Ipv4Addr) -> Result<Namespace> {
        let router = self.machine(role, "wan0", address)?;
        router.sysctl("net/ipv4/ip_forward", 1)?;
        router.deafen("wan0")?;
        Ok(router)
    }

    /// One more machine on the one segment of [`Layout::OneArmed`]; the interface has the address's MAC, and no address.
    pub(crate) fn machine(&self, role: &str, interface: &str, address: Ipv4Addr) -> Result<Namespace> {
        anyhow::ensure!(self.layout == Layout::OneArmed, "there is no segment that all could be on");
        let machine = Namespace::create(&self.state, role)?;
        join(&self.lan, role, &machine, interface, address)?;
        Ok(machine)
    }

    /// Puts a bridge, `br1`, into the wire between client and router, so that others can join; its ports are `client` and `wan`.
    fn splice_wan(&self) -> Result<()> {
        let Cluster { client, lan, layout, .. } = self;
        let mac = show_mac(mac_of(of_nobody(layout.router())));
        lan.ip("link add br1 type bridge mcast_snooping 0\nlink set br1 up")?;
        client
            .ip(&format!("link set eth0 down\nlink set eth0 name wan address {mac} netns {}", lan.name()))?;
        lan.ip("link set wan master br1 up")?;
        lan.plain_wire("wan")?;
        join_to(lan, "br1", "client", client, "eth0", CLIENT)?;
        client.ip(&format!("address add {CLIENT}/24 dev eth0"))
    }

    /// The router's raw interfaces.
    pub fn wires(&self) -> Vec<&'static str> {
        match self.layout {
            Layout::TwoArmed => vec!["wan0", "lan0"],
            Layout::OneArmed => vec!["wan0"],
        }
    }

    /// How it is wired.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Its state directory.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// A configuration with the cluster's ports and no services.
    pub fn config(&self) -> Config {
        let socket = self.state.file("rvs.sock").to_string_lossy().into_owned();
        Config::for_layout(self.layout, socket)
    }

    /// The web service: port 80 of the virtual address, the three nginx behind it, equal weights.
    pub fn web(&self) -> Service {
        self.web_on(80, self.layout.http_port())
    }

    /// A web service on another port.
    pub fn web_on(&self, port: u16, server_port: u16) -> Service {
        (0..self.real_servers.len())
            .map(|index| self.endpoint(index, server_port))
            .fold(Service::tcp(self.layout.mode(), vip(port)), |service, server| service.server(server, 1))
    }

    /// A port of the `index`th real server.
    pub fn endpoint(&self, index: usize, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.layout.real_server(index), port)
    }

    /// Starts nginx on every real server.
    pub fn start_web(&self) -> Result<Vec<Nginx>> {
        (0..self.real_servers.len()).map(|index| Nginx::start(self, index)).collect()
    }

    /// Starts the router.
    pub fn start_router(&self, config: &Config) -> Result<Router> {
        Router::start(self, config)
    }

    /// The MAC of the router's port towards the clients.
    pub fn router_mac(&self) -> Mac {
        mac_of(self.layout.router())
    }

    /// Leaves it up when dropped, until somebody removes it by name.
    pub fn keep(&mut self) -> Result<()> {
        self.kept = true;
        self.state.keep()
    }
}

/// A port of the virtual address.
pub fn vip(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(VIP, port)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        crate::process::stop_here_if_stopping();
        let start = Instant::now();
        let failing = std::thread::panicking() || crate::failing();
        let result = if failing {
            // The directory stays for whoever looks into the failure; the next run removes it.
            eprintln!("{}", self.state.logs());
            self.state.dismantle()
        } else {
            self.state.remove()
        };
        if let Err(error) = result {
            eprintln!("cannot take down cluster {}: {error:#}", self.state.id());
        } else if start.elapsed() > Duration::from_secs(5) {
            eprintln!("taking down cluster {} took {:?}", self.state.id(), start.elapsed());
        }
    }
}

/// Takes down what has been made so far if building fails.
struct Unwind(Option<State>);

impl Drop for Unwind {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|state| state.remove()) {
            eprintln!("{error:#}");
        }
    }
}

/// Wires two machines together.
pub(crate) fn link(
    a: &Namespace,
    a_name: &str,
    a_ip: Ipv4Addr,
    b: &Namespace,
    b_name: &str,
    b_ip: Ipv4Addr,
) -> Result<()> {
    let (a_mac, b_mac) = (show_mac(mac_of(a_ip)), show_mac(mac_of(b_ip)));
    a.ip(&format!(
        "link add name {a_name} address {a_mac} type veth peer name {b_name} address {b_mac} netns {}\n\
         link set {a_name} up",
        b.name()
    ))?;
    b.ip(&format!("link set {b_name} up"))?;
    a.plain_wire(a_name)?;
    b.plain_wire(b_name)
}

/// Wires a machine to a port of the bridge.
fn join(lan: &Namespace, port: &str, machine: &Namespace, interface: &str, address: Ipv4Addr) -> Result<()> {
    join_to(lan, "br0", port, machine, interface, address)
}

/// Wires a machine to a port of a bridge.
fn join_to(
    lan: &Namespace,
    bridge: &str,
    port: &str,
    machine: &Namespace,
    interface: &str,
    address: Ipv4Addr,
) -> Result<()> {
    link(lan, port, of_nobody(address), machine, interface, address)?;
    lan.ip(&format!("link set {port} master {bridge}"))
}

/// An address that nobody has, and so its MAC: for a bridge's end of a wire.
fn of_nobody(address: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, d] = address.octets();
    Ipv4Addr::new(a ^ 0x80, b, c, d)
}

/// A chain that keeps Linux from seeing what arrives on an interface; packet sockets look before it.
pub(crate) fn deaf(interface: &str) -> String {
    format!(
        "chain {interface} {{\ntype filter hook ingress device \"{interface}\" priority 0; policy drop;\n}}\n"
    )
}
