//! What surrounds the router, which Linux knows of a running one: MACs of ports, routes, neighbours.
//!
//! Unless something else is given:
//!
//! * the port number N, from 1, has the MAC `02:00:00:00:00:N`, if the configuration says no other;
//! * the networks of ports' addresses are on these ports, and everything else is behind a gateway on the first port;
//! * a neighbour A.B.C.D has the MAC `02:00:A:B:C:D`, and is known to the router; the gateway is `0.0.0.254` and so has
//!   `02:00:00:00:00:fe`.
//!
//! Given are routes and neighbours as Linux writes them: `ip -j route`, `ip -j neigh`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use dataplane::fib::{Adjacency, Fib, PortIndex, Route, Via};
use dataplane::snapshot::PortSpec;
use dataplane::wire::ethernet::{self, Mac};
use dataplane::wire::ipv4::{self, Ipv4};
use foldhash::HashSet;
use serde::Deserialize;

use crate::config::{Config, Service, value};

/// The gateway to all that is in no port's network.
const GATEWAY: u32 = 254;

/// What a user says of the surroundings.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// MACs of ports, by their names.
    pub macs: Vec<(String, Mac)>,
    /// What `ip -j route` has printed.
    pub routes: Option<PathBuf>,
    /// What `ip -j neigh` has printed.
    pub neighbours: Option<PathBuf>,
}

/// What surrounds the router.
#[derive(Debug)]
pub struct Network {
    ports: Vec<Port>,
    routes: Vec<Route<u32>>,
    /// Routes alone, to learn who has to be asked for.
    ways: Fib<u32>,
    neighbours: Neighbours,
    /// The router's addresses on its ports, with the lengths of their networks.
    own: Vec<(PortIndex, u32, u8)>,
}

#[derive(Clone, Copy, Debug)]
struct Port {
    mac: Mac,
    mtu: u16,
}

#[derive(Debug)]
enum Neighbours {
    /// Whoever has been met answers.
    Met(HashSet<(PortIndex, u32)>),
    /// These, and nobody else.
    Given(Vec<(PortIndex, u32, Mac)>),
}

impl Network {
    /// The surroundings of a router with this configuration.
    pub fn new(config: &Config, given: &Given) -> Result<Network> {
        let ports = ports(config, &given.macs)?;
        let mut routes = own(config);
        match &given.routes {
            Some(path) => routes.extend(given_routes(config, path)?),
            None => routes.extend(usual_routes(config)),
        }
        let ways = Fib::new(routes.iter().copied(), []);
        let neighbours = match &given.neighbours {
            Some(path) => Neighbours::Given(given_neighbours(config, path)?),
            None => Neighbours::Met(HashSet::default()),
        };
        let own = (0..).zip(&config.ports).flat_map(|(index, port)| {
            port.addresses.iter().filter_map(move |prefix| match prefix.address {
                IpAddr::V4(address) => Some((index, address.into(), prefix.length)),
                IpAddr::V6(_) => None,
            })
        });
        let mut network = Network { ports, routes, ways, neighbours, own: own.collect() };
        let servers = config.services.iter().flat_map(|service| {
            let servers = service.servers.iter().map(|server| server.address);
            servers.chain(service.availability.sorry_server)
        });
        // There is nothing of IPv6 in it yet.
        let servers = servers.filter_map(|server| match server {
            SocketAddr::V4(server) => Some(*server.ip()),
            SocketAddr::V6(_) => None,
        });
        servers.for_each(|server| network.meet(server.into()));
        Ok(network)
    }

    /// Whoever is at this address, or the gateway to it, becomes known.
    fn meet(&mut self, address: u32) {
        if let Neighbours::Met(met) = &mut self.neighbours
            && let Some(neighbour) = self.ways.neighbour_of(address)
        {
            met.insert(neighbour);
        }
    }

    /// Whoever a packet may be forwarded to becomes known.
    pub fn meet_all(&mut self, frame: &[u8]) {
        if let Some(ethernet) = ethernet::Ethernet::parse(frame)
            && ethernet.ethertype == ethernet::IPV4
            && let Ok(ip) = Ipv4::parse(&frame[ethernet::HEADER..])
        {
            self.meet(ip.source);
            self.meet(ip.destination);
        }
    }

    /// The ports, as the packet path has to know them.
    pub fn ports(&self) -> Vec<PortSpec> {
        self.ports.iter().map(|port| PortSpec { mac: port.mac }).collect()
    }

    /// Routes, and the neighbours that are known now.
    pub fn fib(&self) -> Fib<u32> {
        let adjacency = |port: PortIndex, address: u32, mac: Mac| {
            let Port { mac: source, mtu } = *self.ports.get(usize::from(port))?;
            Some(((port, address), Adjacency::new(port, mtu, mac, source)))
        };
        let neighbours: Vec<_> = match &self.neighbours {
            Neighbours::Met(met) => {
                met.iter().filter_map(|&(port, address)| adjacency(port, address, mac_of(address))).collect()
            }
            Neighbours::Given(given) => {
                given.iter().filter_map(|&(port, address, mac)| adjacency(port, address, mac)).collect()
            }
        };
        Fib::new(self.routes.iter().copied(), neighbours).with_own(self.own.iter().copied())
    }
}

/// `02:00:A:B:C:D`.
fn mac_of(address: u32) -> Mac {
    let [a, b, c, d] = address.to_be_bytes();
    [2, 0, a, b, c, d]
}

fn ports(config: &Config, macs: &[(String, Mac)]) -> Result<Vec<Port>> {
    for (name, _) in macs {
        index(config, name).map_err(|error| anyhow!("--mac: {error}"))?;
    }
    let port = |(number, port): (u32, &crate::config::Port)| {
        let given = macs.iter().rev().find(|(name, _)| *name == port.name).map(|(_, mac)| *mac);
        Port { mac: given.or(port.mac).unwrap_or_else(|| mac_of(number)), mtu: port.mtu }
    };
    Ok((1..).zip(&config.ports).map(port).collect())
}

/// The number of the port with this name; the error says which there are.
pub fn index(config: &Config, name: &str) -> Result<PortIndex, String> {
    let found = (0..).zip(&config.ports).find(|(_, port)| port.name == name);
    found.map(|(index, _)| index).ok_or_else(|| {
        let names: Vec<&str> = config.ports.iter().map(|port| port.name.as_str()).collect();
        format!("there is no port {name:?}; expected {}", names.join(" or "))
    })
}

/// The router's own addresses, virtual ones among them. They come first: of two routes with an equal prefix the first counts.
fn own(config: &Config) -> Vec<Route<u32>> {
    let ports =
        config.ports.iter().flat_map(|port| &port.addresses).filter_map(|prefix| match prefix.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
    let services = config.services.iter().filter_map(Service::ipv4);
    ports.chain(services).map(|address| Route { prefix: address.into(), length: 32, via: Via::Own }).collect()
}

fn usual_routes(config: &Config) -> Vec<Route<u32>> {
    let ports = (0..).zip(&config.ports);
    let on_link = ports.flat_map(|(index, port)| {
        port.addresses.iter().filter_map(move |prefix| match prefix.network() {
            IpAddr::V4(network) => {
                Some(Route { prefix: network.into(), length: prefix.length, via: Via::OnLink(index) })
            }
            IpAddr::V6(_) => None,
        })
    });
    on_link.chain([Route { prefix: 0, length: 0, via: Via::Gateway(0, GATEWAY) }]).collect()
}

/// A route, as `ip -j route` prints it.
#[derive(Deserialize)]
struct GivenRoute {
    dst: String,
    #[serde(flatten)]
    hop: Hop,
    #[serde(default)]
    metric: u32,
    /// Of several the first that is not dead counts, as in a running router.
    #[serde(default)]
    nexthops: Vec<Hop>,
}

#[derive(Deserialize)]
struct Hop {
    gateway: Option<Ipv4Addr>,
    dev: Option<String>,
    /// A gateway of another family, which the packet path cannot follow.
    via: Option<serde_json::Value>,
    #[serde(default)]
    flags: Vec<String>,
}

fn given_routes(config: &Config, path: &Path) -> Result<Vec<Route<u32>>> {
    let mut given: Vec<GivenRoute> = from_json(path, "ip -4 -j route")?;
    given.sort_by_key(|route| route.metric);
    let route = |route: &GivenRoute| {
        let hops = if route.nexthops.is_empty() { std::slice::from_ref(&route.hop) } else { &route.nexthops };
        let hop = hops.iter().find(|hop| !hop.flags.iter().any(|flag| flag == "dead"))?;
        let port = hop.dev.as_deref().and_then(|name| index(config, name).ok());
        let via = match (port, hop.gateway) {
            (Some(port), Some(gateway)) => Via::Gateway(port, gateway.into()),
            (Some(port), None) if hop.via.is_none() => Via::OnLink(port),
            _ => Via::Nowhere,
        };
        Some(network(&route.dst).map(|(prefix, length)| Route { prefix, length, via }))
    };
    given.iter().filter_map(route).collect::<Result<_>>().with_context(|| path.display().to_string())
}

/// The first address and the length of a prefix.
fn network(text: &str) -> Result<(u32, u8)> {
    if text == "default" {
        return Ok((0, 0));
    }
    let (address, length) = text.split_once('/').unwrap_or((text, "32"));
    match (address.parse::<Ipv4Addr>(), length.parse::<u8>()) {
        (Ok(address), Ok(length @ 0..=32)) => {
            let mask = ipv4::mask(length);
            Ok((u32::from(address) & mask, length))
        }
        _ => bail!("dst: {text:?} is no network; expected default, or an IPv4 prefix such as 10.0.0.0/24"),
    }
}

/// A neighbour, as `ip -j neigh` prints it.
#[derive(Deserialize)]
struct GivenNeighbour {
    dst: IpAddr,
    dev: String,
    lladdr: Option<String>,
    #[serde(default)]
    state: Vec<String>,
}

/// Those of other interfaces, of IPv6, and those whose MAC is not known, are left out.
fn given_neighbours(config: &Config, path: &Path) -> Result<Vec<(PortIndex, u32, Mac)>> {
    let given: Vec<GivenNeighbour> = from_json(path, "ip -4 -j neigh")?;
    let mut neighbours = Vec::new();
    for GivenNeighbour { dst, dev, lladdr, state } in given {
        let is_lost = state.iter().any(|state| state == "FAILED" || state == "INCOMPLETE");
        let (Ok(port), IpAddr::V4(address), Some(lladdr), false) =
            (index(config, &dev), dst, lladdr, is_lost)
        else {
            continue;
        };
        let mac = value::mac(&lladdr)
            .map_err(|error| anyhow!("{}: lladdr: {error}; expected {}", path.display(), value::MAC))?;
        neighbours.push((port, address.into(), mac));
    }
    Ok(neighbours)
}

fn from_json<T: for<'a> Deserialize<'a>>(path: &Path, command: &str) -> Result<T> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text)
        .map_err(|error| anyhow!("{}: {error}; expected what `{command}` prints", path.display()))
}

#[cfg(test)]
mod tests {
    use dataplane::fib::NextHop;

    use super::*;
    use crate::config;

    const CONFIG: &str = r#"
[workers]
cores = [1]
[[port]]
name = "wan"
device = "net_null"
addresses = ["192.0.2.1/24"]
[[port]]
name = "lan"
device = "net_null"
addresses = ["10.0.0.1/24"]
mtu = 1400
[[service]]
address = "192.0.2.10:80"
mode = "nat"
[[service.server]]
address = "10.0.0.11:80"
"#;

    fn network(given: &Given) -> Result<Network> {
        Network::new(&config::parse(Path::new("x"), CONFIG.as_bytes().to_vec()).unwrap(), given)
    }

    fn way(fib: &Fib<u32>, address: &str) -> NextHop {
        fib.look_up(address.parse::<Ipv4Addr>().unwrap().into())
    }

    #[test]
    fn without_a_word_everybody_is_there_under_a_made_up_mac() {
        let mut network = network(&Given::default()).unwrap();
        let frame = |source, destination| {
            let made = dataplane::wire::made::Made {
                protocol: dataplane::service::Protocol::Tcp,
                source: format!("{source}:1").parse().unwrap(),
                destination: format!("{destination}:1").parse().unwrap(),
                flags: 0,
                ttl: 1,
                length: 0,
            };
            made.frame(&[2; 6], &[4; 6])
        };
        network.meet_all(&frame("198.51.100.7", "10.0.0.12"));
        network.meet_all(&[1, 2, 3]);
        let macs: Vec<Mac> = network.ports().iter().map(|port| port.mac).collect();
        assert_eq!(macs, [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]]);
        let fib = network.fib();
        let lan = |last| NextHop::Ready(Adjacency::new(1, 1400, [2, 0, 10, 0, 0, last], macs[1]));
        assert_eq!((way(&fib, "10.0.0.11"), way(&fib, "10.0.0.12")), (lan(11), lan(12)));
        let gateway = NextHop::Ready(Adjacency::new(0, 1500, [2, 0, 0, 0, 0, 254], macs[0]));
        assert_eq!((way(&fib, "198.51.100.7"), way(&fib, "203.0.113.1")), (gateway, gateway));
        assert_eq!((way(&fib, "192.0.2.10"), way(&fib, "10.0.0.1")), (NextHop::NoRoute, NextHop::NoRoute));
        assert_eq!(way(&fib, "10.0.0.13"), NextHop::Unresolved(1), "nobody has met it");
    }

    #[test]
    fn routes_and_neighbours_of_a_router() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        };
        let routes = r#"[
            {"dst":"default","gateway":"192.0.2.254","dev":"wan","metric":50,"flags":[]},
            {"dst":"default","gateway":"192.0.2.253","dev":"wan","flags":[]},
            {"dst":"10.0.0.0/24","dev":"lan","protocol":"kernel","scope":"link","prefsrc":"10.0.0.1","flags":[]},
            {"dst":"10.1.0.0/16","flags":[],"nexthops":[
                {"gateway":"10.0.0.2","dev":"lan","weight":1,"flags":["dead","linkdown"]},
                {"gateway":"10.0.0.3","dev":"lan","weight":1,"flags":[]}]},
            {"dst":"10.2.0.1","via":{"family":"inet6","host":"fe80::1"},"dev":"lan","flags":[]},
            {"type":"blackhole","dst":"10.3.0.0/16","flags":[]},
            {"dst":"10.4.0.0/16","dev":"eth9","flags":[]}]"#;
        let neighbours = r#"[
            {"dst":"192.0.2.253","dev":"wan","lladdr":"02:00:00:00:09:09","state":["STALE"]},
            {"dst":"10.0.0.11","dev":"lan","state":["FAILED"]},
            {"dst":"10.0.0.12","dev":"lan","lladdr":"02:00:00:00:09:0a","state":["FAILED"]},
            {"dst":"fe80::1","dev":"wan","lladdr":"02:00:00:00:09:0b","state":["STALE"]},
            {"dst":"10.9.9.9","dev":"eth9","lladdr":"02:00:00:00:09:0c","state":["STALE"]}]"#;
        let given = Given {
            macs: vec![("wan".to_owned(), [2, 0, 0, 0, 7, 7])],
            routes: file("routes", routes),
            neighbours: file("neighbours", neighbours),
        };
        let fib = network(&given).unwrap().fib();
        let gateway = Adjacency::new(0, 1500, [2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 7, 7]);
        assert_eq!(way(&fib, "198.51.100.7"), NextHop::Ready(gateway));
        assert_eq!(way(&fib, "10.0.0.11"), NextHop::Unresolved(1));
        assert_eq!(way(&fib, "10.0.0.12"), NextHop::Unresolved(1));
        assert_eq!(way(&fib, "10.1.2.3"), NextHop::Unresolved(1));
        for nowhere in ["10.2.0.1", "10.3.0.1", "10.4.0.1"] {
            assert_eq!(way(&fib, nowhere), NextHop::NoRoute, "{nowhere}");
        }

        let refused = |given: Given| format!("{:#}", network(&given).unwrap_err());
        let only = |routes: &str| Given { routes: file("r", routes), ..Given::default() };
        assert!(refused(only("[]x")).ends_with("expected what `ip -4 -j route` prints"));
        let wrong = refused(only(r#"[{"dst":"10.0.0.0/33","dev":"lan"}]"#));
        assert!(
            wrong.ends_with(
                "dst: \"10.0.0.0/33\" is no network; expected default, or an IPv4 prefix such as 10.0.0.0/24"
            ),
            "{wrong}"
        );
        let neighbours = r#"[{"dst":"10.0.0.11","dev":"lan","lladdr":"02"}]"#;
        let wrong = refused(Given { neighbours: file("n", neighbours), ..Given::default() });
        assert!(wrong.contains("lladdr: \"02\" is not a MAC address; expected a unicast"), "{wrong}");
        let macs = vec![("x".to_owned(), [2; 6])];
        let wrong = refused(Given { macs, ..Given::default() });
        assert_eq!(wrong, "--mac: there is no port \"x\"; expected wan or lan");
    }
}
