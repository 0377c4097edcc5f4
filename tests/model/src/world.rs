//! What the router is told: its ports, the hosts around it, and the services of one sequence.
//!
//! ```text
//!   198.51.100.0/24 --- gateway ---+ wan                        lan +--- 10.0.S.1 to .4, servers of service S
//!   203.0.113.0/24  ---------------+ port 0    192.0.2.10+S  port 1
//! ```
//!
//! S is the place of a service, which two can have in common. The service of a firewall mark may have 192.0.2.13+S as well.
//!
//! The same in IPv6: 2001:db8:c::/64, 2001:db8:d::/64, 2001:db8::10+S and 2001:db8:a:S::/64. Of the neighbours on 203.0.113.0/24 the MAC of .3
//! is not known, the link to .2 takes 100 bytes (1280 of IPv6), and there is no way to .240/28. That to a server's .2 takes 200 (1300). The router
//! is 10.0.0.254 itself, 2001:db8:a::fe, and 10.0.0.252 and .253, ::fc and ::fd, for the servers of full NAT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use dataplane::service::{Helper, Mode, Persistence, Protocol, Scheduler, SchedulerFlag};
use dataplane::snapshot::MssClamp;
use dataplane::snat::SnatTimeouts;
use dataplane::wire::tunnel::Encapsulation;

use crate::quic::Config;
use crate::roster::Rosters;

/// The MACs of the ports. Of networks on one wire they would be the same; here a network keeps its own, so that one taken for the other is seen.
pub(crate) const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// The port where clients are.
pub(crate) const WAN: u16 = 0;
/// The port where real servers are.
pub(crate) const LAN: u16 = 1;
/// Real servers of a service.
pub(crate) const SERVERS: usize = 4;

/// A service of a sequence; its number among them gives it its addresses.
#[derive(Clone, Debug)]
pub struct Service {
    /// Whether it is of IPv6.
    pub is_six: bool,
    /// The number of its servers' addresses, its own or that of the service before it, with which it has them in common then.
    pub place: usize,
    /// What is to it: one address by one protocol, or if a firewall mark says so, several.
    pub faces: Vec<Face>,
    /// Whether it is the service of a firewall mark.
    pub is_marked: bool,
    /// How packets reach its servers.
    pub mode: Mode,
    /// How a connection's server is chosen.
    pub scheduler: Scheduler,
    /// The scheduler's flags.
    pub flags: Vec<SchedulerFlag>,
    /// Of ESTABLISHED or UDP, in seconds; the others are those of LVS.
    pub timeout: u32,
    /// Whether any packet but a RST or ABORT begins a connection of TCP or SCTP.
    pub sloppy: bool,
    /// Whether each datagram is on its own.
    pub one_packet: bool,
    /// Whether clients come back to their servers.
    pub persistence: Option<Persistence>,
    /// What ties its connections together.
    pub helper: Option<Helper>,
    /// How packets are put into others.
    pub tunnel: Tunnel,
    /// The ports of the local addresses as which its servers know clients, by [`Mode::Fullnat`].
    pub local_ports: RangeInclusive<u16>,
    /// Whether they are told who the clients are, by [`Mode::Fullnat`].
    pub proxy: bool,
    /// Who may begin connections, if not everybody.
    pub sources: Option<Sources>,
    /// How many may begin.
    pub limit: Option<Limit>,
    /// Whether only those of its connections are to have an entry that are at risk.
    pub is_at_risk: bool,
    /// If that is so, or has been so a while ago: by which servers the others go.
    pub rosters: Option<Rosters>,
    /// How its servers write themselves into the connection ids of QUIC, if they do.
    pub quic: Vec<Config>,
    /// How many servers it has, and what is said of each.
    pub servers: Vec<Server>,
}

/// A virtual address, and what of it is a service's.
#[derive(Clone, Debug)]
pub struct Face {
    /// The number of the address.
    pub place: usize,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Its port, if it is of one.
    pub port: u16,
    /// If it is of all ports that no other service has: which of them, or if none stands here, any.
    pub all_ports: Option<Vec<RangeInclusive<u16>>>,
    /// The port of the router that packets come in on which are its own, if not all are.
    pub incoming: Option<u16>,
    /// Whether the virtual address is here.
    pub live: bool,
}

/// What a connection is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The virtual address and port.
    pub destination: SocketAddr,
}

/// Prefixes whose clients may begin connections, or may not. The longest decides.
#[derive(Clone, Debug)]
pub struct Sources {
    /// If there are any, nobody else may.
    pub allow: Option<Vec<(IpAddr, u8)>>,
    /// Who may not.
    pub deny: Vec<(IpAddr, u8)>,
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// That begin.
    Rate {
        /// In a second.
        rate: u32,
        /// At once.
        burst: u32,
        /// Whether this is for each source, and not for all of them together.
        of_source: bool,
    },
    /// That a source has.
    Open(u32),
    /// Handshakes that are left half done, before SYNs leave nothing behind.
    HalfOpen {
        /// In a second.
        rate: u32,
        /// At once.
        burst: u32,
    },
}

impl Service {
    /// Whether its connections can do without an entry: they are of TCP and one way, with one of two schedulers, and nothing has to be remembered.
    pub(crate) fn may_be_at_risk(&self) -> bool {
        self.faces[0].protocol == Protocol::Tcp
            && !self.is_marked
            && self.mode.is_one_way()
            && matches!(self.scheduler, Scheduler::Maglev | Scheduler::Rendezvous)
            && self.persistence.is_none()
            && self.limit.is_none()
            && self.servers.iter().all(|server| server.limits.is_none())
    }

    /// Whether a real server is the router itself.
    pub(crate) fn is_here(&self, server: usize) -> bool {
        self.servers[server].here.is_some()
    }

    /// Whether one of them is.
    pub(crate) fn has_here(&self) -> bool {
        (0..self.servers.len()).any(|server| self.is_here(server))
    }

    /// Whether what a real server answers does not come by here: it goes its own way, or Linux says it.
    pub(crate) fn is_one_way(&self, server: usize) -> bool {
        self.mode.is_one_way() || self.is_here(server)
    }

    /// Whether what comes from a real server's address is its answer by NAT.
    pub(crate) fn translates(&self, server: usize) -> bool {
        self.mode == Mode::Nat && !self.is_here(server)
    }

    /// Whether it has ports that it does not change.
    pub(crate) fn is_of_all_ports(&self) -> bool {
        self.faces[0].all_ports.is_some()
    }

    /// Whether packets of this protocol are its own.
    pub(crate) fn has(&self, protocol: Protocol) -> bool {
        self.faces.iter().any(|face| face.protocol == protocol)
    }

    /// Whether this is one of its virtual addresses, and here.
    pub(crate) fn is_at(&self, address: IpAddr) -> bool {
        self.faces.iter().any(|face| face.live && virtual_address(self.is_six, face).ip() == address)
    }
}

impl Face {
    /// Whether it is one of all ports and has this one.
    pub(crate) fn takes(&self, port: u16) -> bool {
        let ports = self.all_ports.as_ref();
        ports.is_some_and(|ports| ports.is_empty() || ports.iter().any(|range| range.contains(&port)))
    }
}

/// How packets are put into others, by [`Mode::Tunnel`].
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    /// The headers around them.
    pub encapsulation: Encapsulation,
    /// What the segment size is lowered to that a client tells.
    pub mss_clamp: Option<MssClamp>,
}

/// A real server of a service; its place gives it its address.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its weight.
    pub weight: u32,
    /// Whether its checks pass.
    pub up: bool,
    /// Whether it has been removed from the configuration, and its TCP connections are to end or to go on.
    pub leaving: Option<Leaving>,
    /// Whether its address is of the other family than the service, as it can be at the end of a tunnel.
    pub is_across: bool,
    /// If it is the router itself: as whom.
    pub here: Option<Here>,
    /// Whether the router knows its MAC.
    pub is_known: bool,
    /// As whom datagrams name it.
    pub quic_id: Option<Vec<u8>>,
    /// The upper and lower threshold.
    pub limits: Option<(u32, u32)>,
}

/// The addresses by which the router itself can be a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// That of the port where real servers are.
    Port,
    /// The virtual address of the service.
    Virtual,
}

/// What becomes of the connections of a server that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// They go on until they end.
    Draining,
    /// Those of TCP are reset.
    Resetting,
}

/// How hosts inside leave that concern no service.
#[derive(Clone, Debug)]
pub struct Snat {
    /// The ports of the pool.
    pub ports: RangeInclusive<u16>,
    /// Those that a host is given at a time, of each class.
    pub block: u16,
    /// Those that it has at the most.
    pub limit: u16,
    /// Seconds until a mapping is forgotten.
    pub timeouts: SnatTimeouts,
}

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Out of a port to a MAC, over a link that takes packets so long.
    Out { port: u16, mac: [u8; 6], mtu: usize },
    /// Out of a port, to somebody who is not known yet.
    Unknown,
    /// There is none.
    None,
}

/// The virtual address of a face; its port is 0 if it is of all ports.
pub(crate) fn virtual_address(is_six: bool, face: &Face) -> SocketAddr {
    let port = if face.all_ports.is_some() { 0 } else { face.port };
    if is_six {
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10 + face.place as u16), port).into()
    } else {
        (Ipv4Addr::new(192, 0, 2, 10 + face.place as u8), port).into()
    }
}

/// The address of a service's real server.
pub(crate) fn server_address(service: &Service, server: usize) -> SocketAddr {
    let own = virtual_address(service.is_six, &service.faces[0]).port();
    let keeps_port = service.is_one_way(server) || service.helper == Some(Helper::Ipsec);
    let port = if keeps_port || own == 0 { own } else { 8000 + own };
    let is_six = service.is_six != service.servers[server].is_across;
    (host_address(service, server, is_six), port).into()
}

/// The address of one family that the host of a server has.
fn host_address(service: &Service, server: usize, is_six: bool) -> IpAddr {
    match (service.servers[server].here, is_six) {
        (Some(Here::Virtual), _) => virtual_address(is_six, &service.faces[0]).ip(),
        (Some(Here::Port), false) => ROUTER.into(),
        (Some(Here::Port), true) => ROUTER_SIX.into(),
        (None, false) => Ipv4Addr::new(10, 0, service.place as u8, 1 + server as u8).into(),
        (None, true) => {
            Ipv6Addr::new(0x2001, 0xdb8, 0xa, service.place as u16, 0, 0, 0, 1 + server as u16).into()
        }
    }
}

/// Whether an address is one of the router's own; virtual ones are another matter.
pub(crate) fn is_own(address: IpAddr) -> bool {
    address == ROUTER
        || address == ROUTER_SIX
        || is_of_pool(address)
        || [false, true].iter().any(|&is_six| local_addresses(is_six).contains(&address))
}

/// The virtual address as which a packet to this port has it.
pub(crate) fn virtual_at(service: &Service, face: &Face, port: u16) -> SocketAddr {
    with_port(virtual_address(service.is_six, face), port)
}

/// A real server's address, as a connection with this virtual port has it.
pub(crate) fn server_at(service: &Service, server: usize, port: u16) -> SocketAddr {
    with_port(server_address(service, server), port)
}

/// What a real server of this connection sends from, and what is sent to it past the service: its address of the clients' family.
pub(crate) fn host_at(service: &Service, server: usize, port: u16) -> SocketAddr {
    let port = server_at(service, server, port).port();
    (host_address(service, server, service.is_six), port).into()
}

fn with_port(address: SocketAddr, port: u16) -> SocketAddr {
    if address.port() == 0 { (address.ip(), port).into() } else { address }
}

/// The local addresses of full NAT, which all its services share.
pub(crate) fn local_addresses(is_six: bool) -> [IpAddr; 2] {
    [0xFC, 0xFD].map(|host| match is_six {
        false => Ipv4Addr::new(10, 0, 0, host).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, host.into()).into(),
    })
}

/// A client's address: the first eight are behind the gateway, the others neighbours.
pub(crate) fn client_address(is_six: bool, client: u8) -> IpAddr {
    let (is_near, host) = (client >= 8, client % 8);
    match (is_six, is_near) {
        (false, false) => Ipv4Addr::new(198, 51, 100, host).into(),
        (false, true) => Ipv4Addr::new(203, 0, 113, if host == 7 { 241 } else { host }).into(),
        (true, false) => Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, host.into()).into(),
        (true, true) => {
            let host = if host == 7 { 0xF1 } else { host };
            Ipv6Addr::new(0x2001, 0xdb8, 0xd, 0, 0, 0, 0, host.into()).into()
        }
    }
}

/// The gateway and the router's own addresses on its ports.
pub(crate) const GATEWAYS: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 254), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xfe));
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
pub(crate) const ROUTER_SIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0xfe);

/// The hosts that leave by source NAT, and the pool.
pub(crate) const INSIDE: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 0), 16);
pub(crate) const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 50), Ipv4Addr::new(192, 0, 2, 51)];

pub(crate) fn is_inside(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(four) if four.octets()[..2] == INSIDE.0.octets()[..2])
}

pub(crate) fn is_of_pool(address: IpAddr) -> bool {
    POOL.iter().any(|&own| own == address)
}

const GATEWAY: Way = Way::Out { port: WAN, mac: [2, 0, 0, 0, 9, 9], mtu: 1500 };

/// The way to an address, as a person would read it from the picture.
pub(crate) fn way(services: &[Service], address: IpAddr) -> Way {
    let is_unknown = services.iter().any(|service| {
        let mut servers = service.servers.iter().enumerate();
        servers.any(|(server, its)| {
            !its.is_known && its.here.is_none() && server_address(service, server).ip() == address
        })
    });
    match address {
        _ if is_unknown => Way::Unknown,
        IpAddr::V4(four) => match four.octets() {
            [203, 0, 113, 240..=255] => Way::None,
            [203, 0, 113, host] => near(host.into(), 100),
            [10, 0, 0, 0xFC..=0xFE] | [192, 0, 2, 50 | 51] => Way::None,
            [10, 0, place @ 0..8, host @ 1..=4] => server(place.into(), host.into(), 200),
            [10, ..] => Way::Unknown,
            _ => GATEWAY,
        },
        IpAddr::V6(six) => match six.segments() {
            [0x2001, 0xdb8, 0xd, 0, 0, 0, 0, 0xF0..=0xFF] => Way::None,
            [0x2001, 0xdb8, 0xd, 0, 0, 0, 0, host] => near(host, 1280),
            [0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0xFC..=0xFE] => Way::None,
            [0x2001, 0xdb8, 0xa, place @ 0..8, 0, 0, 0, host @ 1..=4] => server(place, host, 1300),
            [0x2001, 0xdb8, 0xa, ..] | [0x2001, 0xdb8, 0xd, 0, ..] => Way::Unknown,
            _ => GATEWAY,
        },
    }
}

fn near(host: u16, short: usize) -> Way {
    match host {
        0..=2 | 4..=6 => Way::Out {
            port: WAN,
            mac: [2, 0, 0, 1, 0, host as u8],
            mtu: if host == 2 { short } else { 1500 },
        },
        _ => Way::Unknown,
    }
}

fn server(place: u16, host: u16, short: usize) -> Way {
    let mtu = if host == 2 { short } else { 1500 };
    Way::Out { port: LAN, mac: [2, 0, 0, 2, place as u8, host as u8], mtu }
}
