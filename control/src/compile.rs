//! From what was configured and what is known of Linux and of the servers' health, to a snapshot.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dataplane::fib::{Address, Adjacency, Fib, Fibs, PortIndex, Route, Via};
use dataplane::service::Protocol;
use dataplane::snapshot::{DestSpec, Part, Pool, PortSpec, ServiceIndex, ServiceSpec, Snapshot};
use foldhash::HashMap;

use crate::config::{Fullnat, Refuse, Server, Service, Share};
use crate::effects::Effects;
use crate::health::Target;
use crate::ids::{Face, Ids, ServerKey, ServiceKey};
use crate::net::{self, Mirror};
use crate::ports::Known;
use crate::services::Services;

/// A port and its twin, as far as snapshots depend on them.
#[derive(Clone, Debug)]
pub struct PortLink {
    /// The twin's interface.
    pub ifindex: u32,
    /// The port's MAC, which is the twin's.
    pub mac: [u8; 6],
    /// The longest IP packet.
    pub mtu: u16,
    /// What is known of its device.
    pub device: Arc<Known>,
}

impl ServiceKey {
    /// The identity of a configured service.
    pub fn of(service: &Service) -> Self {
        match &service.mark {
            Some(marked) => marked.key(),
            None => ServiceKey { address: service.address, protocol: service.protocol },
        }
    }
}

impl ServerKey {
    /// The identity of a configured server.
    pub fn of(service: &Service, server: &Server) -> Self {
        ServerKey { address: server.address, mode: service.mode }
    }

    /// The identity of the sorry server, if the service has one.
    pub fn of_sorry(service: &Service) -> Option<Self> {
        let address = service.availability.sorry_server?;
        Some(ServerKey { address, mode: service.mode })
    }
}

/// What is to be checked for this server.
pub fn targets(service: &Service, server: &Server) -> impl Iterator<Item = Target> {
    let checks = if server.check { &service.checks[..] } else { &[] };
    let address = server.address;
    checks.iter().map(move |check| Target { address: check.target(address), check: check.clone() })
}

/// Compiles a snapshot, in which a service is live if its virtual address is and it is wanted.
pub fn compile(
    generation: u64,
    services: &Services,
    effects: &Effects,
    ids: &mut Ids,
    is_live: impl Fn(IpAddr) -> bool,
    ports: Vec<PortSpec>,
    fibs: Fibs,
) -> Snapshot {
    let describe = |service: &Service| {
        // A service of all ports that is gone would have what comes to other ports than its connections': which ones were its own,
        // nobody may know any more.
        let is_gone = service.address.port() == 0 && services.is_gone(service);
        let live = is_live(service.address.ip()) && !is_gone;
        describe(service, services, effects, ids, live)
    };
    let mut specs: Vec<ServiceSpec> = services.present().iter().map(describe).collect();
    // Behind all services, each of which has the place that it has among those that are present.
    for (service, home) in services.present().iter().zip(0..) {
        let live = |address| is_live(address) && !services.is_gone(service);
        for (&face, own) in service.mark.iter().flat_map(|marked| &marked.faces) {
            let seen = Seen { face, own, live: live(face.address) };
            let spec = seen.of(service, &specs[home as usize], home, ids);
            specs.push(spec);
        }
    }
    // Connections keep their ports when a pool becomes another one.
    Snapshot::new(generation, ports, &specs, ids.removed(), fibs).with_locals(ids.locals().cloned())
}

/// What comes to the service of a mark at one address by one protocol.
struct Seen<'a> {
    face: Face,
    own: &'a Share,
    live: bool,
}

impl Seen<'_> {
    /// Everything but what has a place of its own is as it is at home.
    fn of(&self, service: &Service, spec: &ServiceSpec, home: ServiceIndex, ids: &mut Ids) -> ServiceSpec {
        let Seen { face, own, live } = *self;
        let mut entered = ids.enter(ServiceKey::of(service));
        let dest = |dest: &DestSpec| {
            let server = ServerKey { address: dest.address, mode: service.mode };
            Some(DestSpec { id: entered.face(server, face)?, home: Some(dest.id), ..dest.clone() })
        };
        ServiceSpec {
            address: SocketAddr::new(face.address, 0),
            ports: own.ports.clone(),
            incoming: own.incoming.clone(),
            protocol: face.protocol,
            live,
            sloppy: service.sloppy.of(face.protocol),
            // No other protocol has a stream in front of which a header could stand.
            pool: spec
                .pool
                .clone()
                .map(|pool| Pool { proxy: pool.proxy && face.protocol == Protocol::Tcp, ..pool }),
            part: Some(Part::Face(home)),
            dests: spec.dests.iter().filter_map(dest).collect(),
            ..spec.clone()
        }
    }
}

fn describe(
    service: &Service,
    services: &Services,
    effects: &Effects,
    ids: &mut Ids,
    live: bool,
) -> ServiceSpec {
    let key = ServiceKey::of(service);
    let pool = service.fullnat.as_ref().map(|Fullnat { local, ports, proxy_protocol }| Pool {
        locals: local.iter().filter_map(|&address| ids.local(address)).collect(),
        ports: ports.clone(),
        proxy: *proxy_protocol,
        is_rehearsal: false,
    });
    let (duties, mut entered) = (effects.duties(key), ids.enter(key));
    let dest = |server: &Server| {
        let duty = duties.of(server.address);
        let record = entered.server(ServerKey::of(service, server), server.weight);
        DestSpec {
            id: record.id,
            home: None,
            address: server.address,
            weight: duty.weight,
            last_weight: record.last_weight * duty.scale,
            quic_id: server.quic_id,
            limits: server.limits,
            up: duty.up,
            listed: duty.listed,
            reset: services.is_resetting(key, server.address),
            returning: effects.is_up(key, server.address) && !services.is_leaving(key, server.address),
            traffic: record.counters.clone(),
            gauge: record.gauge.clone(),
        }
    };
    let sorry = service.availability.sorry_server.map(Server::new);
    let dests: Vec<DestSpec> = service.servers.iter().chain(&sorry).map(dest).collect();
    let rosters = services.rosters(key).map(|rosters| {
        let numbers: HashMap<_, _> = dests.iter().map(|dest| (dest.address, dest.id)).collect();
        rosters.specs(|server| numbers.get(&server).copied())
    });
    ServiceSpec {
        address: service.address,
        ports: service.ports.clone(),
        incoming: None,
        protocol: key.protocol,
        mode: service.mode,
        scheduler: service.scheduler,
        flags: service.flags.clone(),
        kept: entered.kept().clone(),
        flow_key: services.flow_key(),
        timeouts: service.timeouts,
        sloppy: service.sloppy.of(key.protocol),
        resets: service.availability.refuse == Refuse::Reset,
        one_packet: service.one_packet,
        rosters,
        helper: service.helper,
        sources: service.sources.clone(),
        limiter: entered.limiter(service.limit),
        quic: service.quic_lb.clone(),
        persistence: service.persistence,
        live,
        tunnel: service.tunnel,
        pool,
        part: service.mark.as_ref().map(|_| Part::Home),
        dests,
    }
}

/// Linux' routes and neighbours, as far as they lead over ports.
pub fn fibs(mirror: &Mirror, ports: &[PortLink]) -> Fibs {
    Fibs { four: fib(mirror, ports), six: fib(mirror, ports) }
}

/// Those of one family.
fn fib<A: Address>(mirror: &Mirror, ports: &[PortLink]) -> Fib<A> {
    let port_of = |ifindex| (0..).zip(ports).find(|(_, port)| port.ifindex == ifindex);
    // The router's own addresses first: of two routes with an equal prefix the first counts.
    let own = mirror.addresses.iter().filter_map(|&(_, address, _)| {
        Some(Route { prefix: A::of(address)?, length: A::BITS, via: Via::Own })
    });
    // Nobody's, though in a network on a port: to all of it, or to any of its routers (RFC 2644; RFC 4291, section 2.6.1).
    let groups = mirror.addresses.iter().filter_map(|&(_, address, length)| {
        let address = A::of(address).filter(|_| length + 1 < A::BITS)?;
        let prefix = if address.ip().is_ipv4() { address.last(length) } else { address.first(length) };
        Some(Route { prefix, length: A::BITS, via: Via::Nowhere })
    });
    // In order of the metric within a prefix. Of next hops of one route of IPv6, which are routes of their own, one out of a port
    // serves better than one that is not.
    let mut routes: Vec<&net::Route> = mirror.routes.iter().collect();
    routes.sort_by_key(|route| {
        (route.destination, route.length, route.metric, port_of(route.ifindex).is_none())
    });
    let routes = routes.into_iter().filter_map(|route| {
        let via = match (port_of(route.ifindex), route.gateway) {
            (Some((index, _)), Some(gateway)) => Via::Gateway(index, A::of(gateway)?),
            (Some((index, _)), None) => Via::OnLink(index),
            (None, _) => Via::Nowhere,
        };
        Some(Route { prefix: A::of(route.destination)?, length: route.length, via })
    });
    let neighbours = mirror.neighbours.iter().filter_map(|(&(ifindex, address), &mac)| {
        let (index, port) = port_of(ifindex)?;
        Some(((index, A::of(address)?), Adjacency::new(index, port.mtu, mac, port.mac)))
    });
    let addresses = mirror
        .addresses
        .iter()
        .filter_map(|&(ifindex, address, length)| Some((port_of(ifindex)?.0, A::of(address)?, length)));
    Fib::new(own.chain(groups).chain(routes), neighbours).with_own(addresses)
}

/// The neighbours that servers and gateways are reached through, known or not. Linux does not see the data
/// path's packets, so it has to be told that these are in use.
pub fn next_hops(
    services: &[Service],
    mirror: &Mirror,
    ports: &[PortLink],
    fibs: &Fibs,
) -> BTreeSet<(PortIndex, IpAddr)> {
    let gateways = mirror.routes.iter().filter_map(|route| {
        let port = ports.iter().position(|port| port.ifindex == route.ifindex)?;
        Some((port as PortIndex, route.gateway?))
    });
    let servers = services.iter().flat_map(|service| {
        let own = service.servers.iter().map(|server| server.address);
        // This router itself is no neighbour, wherever the virtual address is now.
        let is_another = |server: &SocketAddr| server.ip() != service.address.ip();
        own.chain(service.availability.sorry_server).filter(is_another)
    });
    gateways.chain(servers.filter_map(|server| fibs.neighbour_of(server.ip()))).collect()
}

/// The neighbours on ports that are known.
pub fn neighbours(mirror: &Mirror, ports: &[PortLink]) -> impl Iterator<Item = (PortIndex, IpAddr)> {
    mirror.neighbours.keys().filter_map(|&(ifindex, address)| {
        let port = ports.iter().position(|port| port.ifindex == ifindex)?;
        Some((port as PortIndex, address))
    })
}

impl PortLink {
    /// What the packet path has to know of it.
    pub fn spec(&self) -> PortSpec {
        PortSpec { mac: self.mac }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use dataplane::fib::NextHop;

    use super::*;
    use tokio::time::Instant;

    use crate::services::Changes;
    use crate::services::tests::{reload, services};

    const TWIN: u32 = 7;
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A twin with a gateway for each family, that of IPv6 by its link-local address; beside it an interface that is no twin.
    fn mirror() -> Mirror {
        let route = |destination, length, ifindex, gateway: Option<&str>| net::Route {
            destination: ip(destination),
            length,
            metric: 0,
            ifindex,
            gateway: gateway.map(ip),
        };
        Mirror {
            addresses: [(TWIN, ip("192.0.2.1"), 24), (TWIN, ip("2001:db8::1"), 64)].into(),
            routes: [
                route("0.0.0.0", 0, TWIN, Some("192.0.2.254")),
                route("192.0.2.0", 24, TWIN, None),
                route("::", 0, TWIN, Some("fe80::1")),
                route("2001:db8::", 64, TWIN, None),
                route("2001:db8:9::", 48, 1, None),
            ]
            .into(),
            neighbours: [((TWIN, ip("192.0.2.254")), GATEWAY), ((TWIN, ip("fe80::1")), GATEWAY)].into(),
            ..Mirror::default()
        }
    }

    fn ports() -> [PortLink; 1] {
        [PortLink { ifindex: TWIN, mac: MAC, mtu: 1500, device: Arc::new(Known::made_up()) }]
    }

    /// The services of a whole file.
    fn services_of(text: &str) -> Vec<Service> {
        crate::config::parse(std::path::Path::new("f"), text.as_bytes().to_vec()).unwrap().services
    }

    #[test]
    fn a_service_of_all_ports_that_is_gone_begins_no_connections() {
        let file = |ports| {
            services(&format!(
                "[[service]]\naddress = '192.0.2.10:{ports}\nmode = 'nat'\n\
                 [[service.server]]\naddress = '10.0.0.11'\n"
            ))
        };
        let lives = |services: &Services| {
            let (effects, mut ids) = (Effects::default(), Ids::new(1));
            let fibs = Fibs { four: fib(&mirror(), &ports()), six: fib(&mirror(), &ports()) };
            let snapshot = compile(1, services, &effects, &mut ids, |_| true, Vec::new(), fibs);
            snapshot.services.iter().map(|service| service.live).collect::<Vec<_>>()
        };
        let now = Instant::now();
        let mut reloaded = Services::new(file("0'\nports = [21]"));
        let members = reloaded.members();
        // With other ports it is the same.
        reload(&mut reloaded, file("0'\nports = [22]"), now);
        assert_eq!(lives(&reloaded), [true]);
        reload(&mut reloaded, Vec::new(), now);
        assert_eq!(
            (reloaded.present()[0].ports.as_slice(), lives(&reloaded)),
            ([22..=22].as_slice(), vec![false])
        );
        // The next program knows by its connections only that there was one.
        let mut restarted = Services::new(Vec::new());
        restarted.come_back(members.clone(), &Changes::default(), now);
        assert_eq!(lives(&restarted), [false]);
        // One that has lost its servers is still there.
        let mut without = file("0'\nports = [21]");
        without[0].servers.clear();
        let mut restarted = Services::new(without);
        restarted.come_back(members, &Changes::default(), now);
        assert_eq!(lives(&restarted), [true]);
    }

    #[test]
    fn a_service_of_a_mark_is_one_in_many_places() {
        let read = |rest: &str| {
            services_of(&format!(
                "[workers]\ncores = [1]\n[[port]]\nname = 'wan'\ndevice = '01:00.0'\n{rest}"
            ))
        };
        let marks = "[[mark]]\nmark = 10\naddress = ['192.0.2.10', '192.0.2.11']\nports = [80]\n\
            [[mark]]\nmark = 20\nprotocol = 'tcp'\naddress = '192.0.2.10'\nports = [443]\n";
        let of = |mark| {
            format!(
                "[[service]]\nmark = {mark}\nmode = 'nat'\npersistence = {{}}\n[[service.server]]\naddress = '10.0.0.11'\n"
            )
        };
        let mut services = Services::new(read(&format!("{marks}{}{}", of(20), of(10))));
        let (effects, mut ids) = (Effects::default(), Ids::new(1));
        let mut compile = |services: &Services| {
            let fibs = Fibs { four: fib(&mirror(), &ports()), six: fib(&mirror(), &ports()) };
            compile(1, services, &effects, &mut ids, |_| true, Vec::new(), fibs)
        };
        let place = |snapshot: &Snapshot, address: [u8; 4], port, protocol| {
            let (index, _) = snapshot.service_for(u32::from(Ipv4Addr::from(address)), port, protocol)?;
            Some((snapshot.home_of(index).0, snapshot.services[index as usize].live))
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let ends = [
            ([192, 0, 2, 10], 443, tcp, Some(0)),
            ([192, 0, 2, 10], 80, tcp, Some(1)),
            ([192, 0, 2, 11], 80, udp, Some(1)),
            ([192, 0, 2, 11], 443, tcp, None),
            ([0, 0, 0, 10], 80, tcp, None),
        ];
        let snapshot = compile(&services);
        for (address, port, protocol, home) in ends {
            assert_eq!(
                place(&snapshot, address, port, protocol),
                home.map(|home| (home, true)),
                "{address:?} {port}"
            );
        }
        let who: Vec<String> = snapshot
            .dests()
            .map(|dest| {
                let identity = crate::sync::identity(&snapshot, dest);
                format!(
                    "{} {}",
                    identity.service,
                    identity.face.map_or_else(String::new, |face| face.to_string())
                )
            })
            .collect();
        let (of_mark, all) = (|mark: &str| who.iter().filter(|who| who.starts_with(mark)).count(), who.len());
        assert_eq!((of_mark("mark/10 "), of_mark("mark/20 "), all), (5, 2, 7), "{who:?}");
        // One that is gone begins nothing, and what is there still goes on.
        reload(&mut services, read(&format!("{marks}{}", of(20))), Instant::now());
        let snapshot = compile(&services);
        assert_eq!(place(&snapshot, [192, 0, 2, 11], 80, udp), Some((1, false)));
        assert_eq!(place(&snapshot, [192, 0, 2, 10], 443, tcp), Some((0, true)));
    }

    #[test]
    fn what_comes_in_by_another_port_is_another_marks() {
        let text = "[workers]\ncores = [1]\n[[port]]\nname = 'wan'\ndevice = '01:00.0'\n[[port]]\nname = 'lan'\ndevice = '02:00.0'\n\
            [[mark]]\nmark = 10\naddress = '192.0.2.10'\nports = [80]\nin = 'lan'\n\
            [[mark]]\nmark = 20\nprotocol = 'tcp'\naddress = '192.0.2.10'\nports = ['80-81']\n\
            [[service]]\nmark = 10\nmode = 'nat'\n[[service]]\nmark = 20\nmode = 'nat'\n";
        let (effects, mut ids, services) =
            (Effects::default(), Ids::new(1), Services::new(services_of(text)));
        let fibs = Fibs { four: fib(&mirror(), &ports()), six: fib(&mirror(), &ports()) };
        let snapshot = compile(1, &services, &effects, &mut ids, |_| true, Vec::new(), fibs);
        let home = |port, protocol, incoming| {
            let address = u32::from(Ipv4Addr::new(192, 0, 2, 10));
            let index = snapshot.service_of_all_ports(address, port, protocol, Some(incoming))?;
            Some(snapshot.home_of(index).0)
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        assert_eq!([0, 1].map(|incoming| home(80, tcp, incoming)), [Some(1), Some(0)]);
        assert_eq!([0, 1].map(|incoming| home(81, tcp, incoming)), [Some(1), Some(1)]);
        assert_eq!([0, 1].map(|incoming| home(80, udp, incoming)), [None, Some(0)]);
    }

    #[test]
    fn what_is_of_one_protocol_is_not_of_a_marks_others() {
        let text = "[workers]\ncores = [1]\n[[port]]\nname = 'wan'\ndevice = '01:00.0'\n\
            [[mark]]\nmark = 10\naddress = '192.0.2.10'\n[[mark]]\nmark = 10\nprotocol = 'sctp'\naddress = '192.0.2.10'\n\
            [[service]]\nmark = 10\nmode = 'fullnat'\nsloppy_sctp = true\n\
            fullnat = { local = ['10.0.0.100'], proxy_protocol = true }\n";
        let services = Services::new(services_of(text));
        let fibs = Fibs { four: fib(&mirror(), &ports()), six: fib(&mirror(), &ports()) };
        let (effects, mut ids) = (Effects::default(), Ids::new(1));
        let snapshot = compile(1, &services, &effects, &mut ids, |_| true, Vec::new(), fibs);
        let of = |protocol| {
            let index = snapshot.service_at(0xC000_020A_u32, 0, protocol).unwrap();
            let service = &snapshot.services[index as usize];
            (service.protocol, service.sloppy, service.has_header())
        };
        assert_eq!(
            Protocol::ALL.iter().map(|&protocol| of(protocol)).collect::<Vec<_>>(),
            [(Protocol::Tcp, false, true), (Protocol::Udp, false, false), (Protocol::Sctp, true, false)]
        );
    }

    #[test]
    fn routes_and_neighbours_of_each_family() {
        let Fibs { four, six } = fibs(&mirror(), &ports());
        let gateway = NextHop::Ready(Adjacency::new(0, 1500, GATEWAY, MAC));
        let four_of = |text: &str| four.look_up(text.parse::<Ipv4Addr>().unwrap().into());
        let six_of = |text: &str| six.look_up(text.parse::<Ipv6Addr>().unwrap().into());
        assert_eq!((four_of("198.51.100.7"), six_of("2001:db8:1::7")), (gateway, gateway));
        let asked = NextHop::Unresolved(0);
        assert_eq!((four_of("192.0.2.7"), six_of("2001:db8::7")), (asked, asked));
        let none = NextHop::NoRoute;
        assert_eq!((four_of("192.0.2.1"), six_of("2001:db8::1")), (none, none), "our own");
        assert_eq!(six_of("2001:db8:9::7"), none, "by no port");
        let towards = |text: &str| six.source_among(text.parse::<Ipv6Addr>().unwrap().into(), |_| true);
        assert_eq!(towards("2001:db8:1::7"), Some("2001:db8::1".parse::<Ipv6Addr>().unwrap().into()));
    }

    #[test]
    fn what_is_to_all_of_a_network_is_linux() {
        let Fibs { four, six } = fibs(&mirror(), &ports());
        let broadcast = four.look_up("192.0.2.255".parse::<Ipv4Addr>().unwrap().into());
        let anycast = six.look_up(u128::from("2001:db8::".parse::<Ipv6Addr>().unwrap()));
        assert_eq!((broadcast, anycast), (NextHop::NoRoute, NextHop::NoRoute));
        assert_eq!(neighbours(&mirror(), &ports()).count(), 2);
    }

    #[test]
    fn of_several_next_hops_one_out_of_a_port() {
        let hop = |ifindex, metric, gateway| net::Route {
            destination: ip("2001:db8:7::"),
            length: 48,
            metric,
            ifindex,
            gateway: Some(ip(gateway)),
        };
        let found = |other| {
            let mut mirror = mirror();
            mirror.routes.extend([hop(TWIN, 1024, "fe80::1"), other]);
            fibs(&mirror, &ports()).six.look_up("2001:db8:7::7".parse::<Ipv6Addr>().unwrap().into())
        };
        let by_port = NextHop::Ready(Adjacency::new(0, 1500, GATEWAY, MAC));
        assert_eq!(found(hop(TWIN - 1, 1024, "fe80::2")), by_port);
        assert_eq!(found(hop(TWIN - 1, 1025, "fe80::2")), by_port);
        assert_eq!(found(hop(TWIN - 1, 1023, "fe80::2")), NextHop::NoRoute, "that one is preferred");
    }

    #[test]
    fn next_hops_of_each_family() {
        let text = "[[service]]\naddress = '[2001:db8::10]:80'\nmode = 'nat'\n\
                    server = [{ address = '2001:db8::11' }, { address = '2001:db8:1::12' }]\n";
        let (mirror, ports) = (mirror(), ports());
        let found = next_hops(&services(text), &mirror, &ports, &fibs(&mirror, &ports));
        let expected = ["192.0.2.254", "2001:db8::11", "fe80::1"].map(|address| (0, ip(address)));
        assert_eq!(found, expected.into());
    }
}
