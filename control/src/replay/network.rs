//! What surrounds the router, which Linux knows of a running one: MACs of ports, routes, neighbours.
//!
//! Unless something else is given:
//!
//! * the port number N, from 1, has the MAC `02:00:00:00:00:N`, if the configuration says no other;
//! * the networks of ports' addresses are on these ports, and everything else is behind a gateway on the first port;
//! * a neighbour A.B.C.D has the MAC `02:00:A:B:C:D`, one of IPv6 `02:06` and the last four bytes of its address, and is known to the
//!   router; the gateway is `0.0.0.254` and `fe80::fe`, and so has `02:00:00:00:00:fe` and `02:06:00:00:00:fe`.
//!
//! Given are routes and neighbours as Linux writes them: `ip -j route`, `ip -j -6 route`, `ip -j neigh`. What is given is all there is, of
//! both families.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use dataplane::fib::{Adjacency, Fib, Fibs, PortIndex, Route, Via};
use dataplane::snapshot::PortSpec;
use dataplane::wire::ethernet::{self, Ethernet, Mac};
use foldhash::HashSet;
use serde::Deserialize;

use super::family::Family;
use crate::config::{Config, Prefix, Service, value};

/// What a user says of the surroundings.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// MACs of ports, by their names.
    pub macs: Vec<(String, Mac)>,
    /// What `ip -j route` and `ip -j -6 route` have printed; none: the usual ones.
    pub routes: Vec<PathBuf>,
    /// What `ip -j neigh` has printed; none: everybody is known.
    pub neighbours: Vec<PathBuf>,
}

/// What surrounds the router.
#[derive(Debug)]
pub struct Network {
    ports: Vec<Port>,
    four: Surroundings<u32>,
    six: Surroundings<u128>,
}

#[derive(Clone, Copy, Debug)]
struct Port {
    mac: Mac,
    mtu: u16,
}

/// What there is of a family.
#[derive(Debug)]
struct Surroundings<A: Family> {
    routes: Vec<Route<A>>,
    /// Routes alone, to learn who has to be asked for.
    ways: Fib<A>,
    neighbours: Neighbours<A>,
    /// The router's addresses on its ports, with the lengths of their networks.
    own: Vec<(PortIndex, A, u8)>,
}

#[derive(Debug)]
enum Neighbours<A> {
    /// Whoever has been met answers.
    Met(HashSet<(PortIndex, A)>),
    /// These, and nobody else.
    Given(Vec<(PortIndex, A, Mac)>),
}

impl Network {
    /// The surroundings of a router with this configuration.
    pub fn new(config: &Config, given: &Given) -> Result<Network> {
        let ports = ports(config, &given.macs)?;
        let routes = from_files(&given.routes, "ip -j route")?;
        let neighbours = from_files(&given.neighbours, "ip -j neigh")?;
        let four = Surroundings::new(config, routes.as_deref(), neighbours.as_deref())?;
        let six = Surroundings::new(config, routes.as_deref(), neighbours.as_deref())?;
        Ok(Network { ports, four, six })
    }

    /// Whoever a packet may be forwarded to becomes known.
    pub fn meet_all(&mut self, frame: &[u8]) {
        let Some(ethernet) = Ethernet::parse(frame) else { return };
        let mut packet = &frame[ethernet::HEADER..];
        let mut ethertype = ethernet.ethertype;
        if let (ethernet::VLAN, Some((tag, rest))) =
            (ethertype, packet.split_first_chunk::<{ ethernet::TAG }>())
        {
            (ethertype, packet) = (u16::from_be_bytes([tag[2], tag[3]]), rest);
        }
        match ethertype {
            ethernet::IPV4 => self.four.meet_ends(packet),
            ethernet::IPV6 => self.six.meet_ends(packet),
            _ => {}
        }
    }

    /// The ports, as the packet path has to know them.
    pub fn ports(&self) -> Vec<PortSpec> {
        self.ports.iter().map(|port| PortSpec { mac: port.mac }).collect()
    }

    /// Routes, and the neighbours that are known now.
    pub fn fibs(&self) -> Fibs {
        Fibs { four: self.four.fib(&self.ports), six: self.six.fib(&self.ports) }
    }
}

impl<A: Family> Surroundings<A> {
    fn new(
        config: &Config,
        given_routes: Option<&[(&Path, GivenRoute)]>,
        given_neighbours: Option<&[(&Path, GivenNeighbour)]>,
    ) -> Result<Surroundings<A>> {
        let own: Vec<_> = of_ports(config, |prefix| prefix.address).collect();
        let mut routes = own_routes(config, &own);
        match given_routes {
            Some(given) => routes.extend(routes_of(config, given)?),
            None => routes.extend(usual_routes(config)),
        }
        let ways = Fib::new(routes.iter().copied(), []);
        let neighbours = match given_neighbours {
            Some(given) => Neighbours::Given(neighbours_of(config, given)?),
            None => Neighbours::Met(HashSet::default()),
        };
        let mut surroundings = Surroundings { routes, ways, neighbours, own };
        let servers = config.services.iter().flat_map(|service| {
            let servers = service.servers.iter().map(|server| server.address);
            servers.chain(service.availability.sorry_server)
        });
        servers.filter_map(|server| A::of(server.ip())).for_each(|server| surroundings.meet(server));
        Ok(surroundings)
    }

    /// Whoever is at this address, or the gateway to it, becomes known.
    fn meet(&mut self, address: A) {
        if let Neighbours::Met(met) = &mut self.neighbours
            && let Some(neighbour) = self.ways.neighbour_of(address)
        {
            met.insert(neighbour);
        }
    }

    /// Both ends of a packet.
    fn meet_ends(&mut self, packet: &[u8]) {
        if let Some(ip) = A::parse(packet) {
            self.meet(ip.source);
            self.meet(ip.destination);
        }
    }

    fn fib(&self, ports: &[Port]) -> Fib<A> {
        let adjacency = |port: PortIndex, address: A, mac: Mac| {
            let Port { mac: source, mtu } = *ports.get(usize::from(port))?;
            Some(((port, address), Adjacency::new(port, mtu, mac, source)))
        };
        let neighbours: Vec<_> = match &self.neighbours {
            Neighbours::Met(met) => {
                met.iter().filter_map(|&(port, address)| adjacency(port, address, address.mac())).collect()
            }
            Neighbours::Given(given) => {
                given.iter().filter_map(|&(port, address, mac)| adjacency(port, address, mac)).collect()
            }
        };
        Fib::new(self.routes.iter().copied(), neighbours).with_own(self.own.iter().copied())
    }
}

fn ports(config: &Config, macs: &[(String, Mac)]) -> Result<Vec<Port>> {
    for (name, _) in macs {
        index(config, name).map_err(|error| anyhow!("--mac: {error}"))?;
    }
    let port = |(number, port): (u32, &crate::config::Port)| {
        let given = macs.iter().rev().find(|(name, _)| *name == port.name).map(|(_, mac)| *mac);
        Port { mac: given.or(port.mac).unwrap_or_else(|| number.mac()), mtu: port.mtu }
    };
    let mut ports: Vec<Port> = (1..).zip(&config.ports).map(port).collect();
    // A network shows the MAC of the port that it is on.
    for (index, port) in config.ports.iter().enumerate() {
        if let Some(tag) = port.tag {
            ports[index].mac = ports[usize::from(tag.port)].mac;
        }
    }
    Ok(ports)
}

/// The number of the port with this name; the error says which there are.
pub fn index(config: &Config, name: &str) -> Result<PortIndex, String> {
    let found = (0..).zip(&config.ports).find(|(_, port)| port.name == name);
    found.map(|(index, _)| index).ok_or_else(|| {
        let names: Vec<&str> = config.ports.iter().map(|port| port.name.as_str()).collect();
        format!("there is no port {name:?}; expected {}", names.join(" or "))
    })
}

/// Something of each of the ports' prefixes of a family, with the port and the prefix' length.
fn of_ports<A: Family>(
    config: &Config,
    what: impl Fn(&Prefix) -> IpAddr,
) -> impl Iterator<Item = (PortIndex, A, u8)> {
    let ports = (0..).zip(&config.ports);
    let prefixes = ports.flat_map(|(index, port)| port.addresses.iter().map(move |prefix| (index, prefix)));
    prefixes.filter_map(move |(index, prefix)| Some((index, A::of(what(prefix))?, prefix.length)))
}

/// The router's own addresses: virtual ones, and those of full NAT and source NAT, are among them, for `rvs run` has these on the twins, too. They
/// come first: of two routes with an equal prefix the first counts.
fn own_routes<A: Family>(config: &Config, own: &[(PortIndex, A, u8)]) -> Vec<Route<A>> {
    let services = config.services.iter().flat_map(Service::virtual_addresses);
    let locals =
        config.services.iter().flat_map(|service| &service.fullnat).flat_map(|fullnat| &fullnat.local);
    let pools = config
        .routing
        .snats
        .iter()
        .flat_map(|snat| snat.outside.iter().map(|&outside| Ipv4Addr::from(outside).into()));
    let placed = services.chain(locals.copied()).chain(pools).filter_map(A::of);
    let addresses = own.iter().map(|&(_, address, _)| address).chain(placed);
    addresses.map(|address| Route { prefix: address, length: A::BITS, via: Via::Own }).collect()
}

fn usual_routes<A: Family>(config: &Config) -> impl Iterator<Item = Route<A>> {
    let on_link = of_ports(config, Prefix::network).map(|(port, prefix, length)| Route {
        prefix,
        length,
        via: Via::OnLink(port),
    });
    // Where networks are tagged, a wire may have no address of its own.
    let outside = config.ports.iter().position(|port| !port.addresses.is_empty()).unwrap_or(0) as PortIndex;
    on_link.chain([Route { prefix: A::from(0), length: 0, via: Via::Gateway(outside, A::GATEWAY) }])
}

/// A route, as `ip -j route` prints it.
#[derive(Deserialize)]
struct GivenRoute {
    dst: String,
    #[serde(flatten)]
    hop: Hop,
    #[serde(default)]
    metric: u32,
    /// All routes of IPv6 have a preference, and none of IPv4 has.
    pref: Option<serde_json::Value>,
    /// Of several the first that is not dead counts, as in a running router.
    #[serde(default)]
    nexthops: Vec<Hop>,
}

#[derive(Deserialize)]
struct Hop {
    gateway: Option<IpAddr>,
    dev: Option<String>,
    /// A gateway of another family, which the packet path cannot follow.
    via: Option<serde_json::Value>,
    #[serde(default)]
    flags: Vec<String>,
}

impl GivenRoute {
    /// Its first address and its length; none if it is of the other family.
    fn prefix<A: Family>(&self) -> Result<Option<(A, u8)>> {
        if self.dst == "default" {
            let gateway = self.hops().iter().find_map(|hop| hop.gateway);
            let is_six = gateway.map_or(self.pref.is_some(), |gateway| gateway.is_ipv6());
            return Ok((is_six == A::GATEWAY.ip().is_ipv6()).then_some((A::from(0), 0)));
        }
        let (address, length) = self.dst.split_once('/').unwrap_or((&self.dst, ""));
        let wrong = || {
            anyhow!("dst: {:?} is no network; expected default, or a prefix such as 10.0.0.0/24", self.dst)
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = if length.is_empty() { longest } else { length.parse().map_err(|_| wrong())? };
        if length > longest {
            bail!(wrong());
        }
        Ok(A::of(address).map(|address| (address.first(length), length)))
    }

    fn hops(&self) -> &[Hop] {
        if self.nexthops.is_empty() { std::slice::from_ref(&self.hop) } else { &self.nexthops }
    }

    /// Where it leads; none if it is dead.
    fn via<A: Family>(&self, config: &Config) -> Option<Via<A>> {
        let hop = self.hops().iter().find(|hop| !hop.flags.iter().any(|flag| flag == "dead"))?;
        let port = hop.dev.as_deref().and_then(|name| index(config, name).ok());
        Some(match (port, hop.gateway) {
            (Some(port), Some(gateway)) => {
                A::of(gateway).map_or(Via::Nowhere, |gateway| Via::Gateway(port, gateway))
            }
            (Some(port), None) if hop.via.is_none() => Via::OnLink(port),
            _ => Via::Nowhere,
        })
    }
}

/// The given routes of a family, the best ones first.
fn routes_of<A: Family>(config: &Config, given: &[(&Path, GivenRoute)]) -> Result<Vec<Route<A>>> {
    let mut routes = Vec::new();
    for (path, route) in given {
        let prefix = route.prefix().with_context(|| path.display().to_string())?;
        if let (Some((prefix, length)), Some(via)) = (prefix, route.via(config)) {
            routes.push((route.metric, Route { prefix, length, via }));
        }
    }
    routes.sort_by_key(|(metric, _)| *metric);
    Ok(routes.into_iter().map(|(_, route)| route).collect())
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

/// Those of a family; without those of other interfaces, and those whose MAC is not known.
fn neighbours_of<A: Family>(
    config: &Config,
    given: &[(&Path, GivenNeighbour)],
) -> Result<Vec<(PortIndex, A, Mac)>> {
    let mut neighbours = Vec::new();
    for (path, GivenNeighbour { dst, dev, lladdr, state }) in given {
        let is_lost = state.iter().any(|state| state == "FAILED" || state == "INCOMPLETE");
        let (Ok(port), Some(address), Some(lladdr), false) =
            (index(config, dev), A::of(*dst), lladdr, is_lost)
        else {
            continue;
        };
        let mac = value::mac(lladdr)
            .map_err(|error| anyhow!("{}: lladdr: {error}; expected {}", path.display(), value::MAC))?;
        neighbours.push((port, address, mac));
    }
    Ok(neighbours)
}

/// All that is in these files, with the file that each is in; none if there are no files.
fn from_files<'a, T: for<'de> Deserialize<'de>>(
    paths: &'a [PathBuf],
    command: &str,
) -> Result<Option<Vec<(&'a Path, T)>>> {
    let mut all = Vec::new();
    for path in paths {
        let text = fs::read(path).with_context(|| path.display().to_string())?;
        let some: Vec<T> = serde_json::from_slice(&text)
            .map_err(|error| anyhow!("{}: {error}; expected what `{command}` prints", path.display()))?;
        all.extend(some.into_iter().map(|one| (path.as_path(), one)));
    }
    Ok((!paths.is_empty()).then_some(all))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use dataplane::fib::NextHop;

    use super::*;
    use crate::config;

    const CONFIG: &str = r#"
[workers]
cores = [1]
[[port]]
name = "wan"
device = "net_null"
addresses = ["192.0.2.1/24", "2001:db8::1/64"]
[[port]]
name = "lan"
device = "net_null"
addresses = ["10.0.0.1/24", "2001:db8:a::1/64"]
mtu = 1400
[[service]]
address = "192.0.2.10:80"
mode = "nat"
[[service.server]]
address = "10.0.0.11:80"
[[service]]
address = "[2001:db8::10]:80"
mode = "nat"
[[service.server]]
address = "[2001:db8:a::11]:80"
"#;

    fn network(given: &Given) -> Result<Network> {
        Network::new(&config::parse(Path::new("x"), CONFIG.as_bytes().to_vec()).unwrap(), given)
    }

    fn way(fibs: &Fibs, address: &str) -> NextHop {
        fibs.look_up(address.parse().unwrap())
    }

    #[test]
    fn without_a_word_everybody_is_there_under_a_made_up_mac() {
        let mut network = network(&Given::default()).unwrap();
        let frame = |source: &str, destination: &str| {
            let made = dataplane::wire::made::Made {
                protocol: dataplane::service::Protocol::Tcp,
                source: SocketAddr::new(source.parse().unwrap(), 1),
                destination: SocketAddr::new(destination.parse().unwrap(), 1),
                flags: 0,
                ttl: 1,
                length: 0,
            };
            made.frame(&[2; 6], &[4; 6])
        };
        network.meet_all(&frame("198.51.100.7", "10.0.0.12"));
        network.meet_all(&frame("2001:db8:c::7", "2001:db8:a::12"));
        network.meet_all(&[1, 2, 3]);
        let macs: Vec<Mac> = network.ports().iter().map(|port| port.mac).collect();
        assert_eq!(macs, [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]]);
        let fib = network.fibs();
        let lan = |last| NextHop::Ready(Adjacency::new(1, 1400, [2, 0, 10, 0, 0, last], macs[1]));
        assert_eq!((way(&fib, "10.0.0.11"), way(&fib, "10.0.0.12")), (lan(11), lan(12)));
        let gateway = NextHop::Ready(Adjacency::new(0, 1500, [2, 0, 0, 0, 0, 254], macs[0]));
        assert_eq!((way(&fib, "198.51.100.7"), way(&fib, "203.0.113.1")), (gateway, gateway));
        assert_eq!((way(&fib, "192.0.2.10"), way(&fib, "10.0.0.1")), (NextHop::NoRoute, NextHop::NoRoute));
        assert_eq!(way(&fib, "10.0.0.13"), NextHop::Unresolved(1), "nobody has met it");
        let lan = |last| NextHop::Ready(Adjacency::new(1, 1400, [2, 6, 0, 0, 0, last], macs[1]));
        assert_eq!((way(&fib, "2001:db8:a::11"), way(&fib, "2001:db8:a::12")), (lan(0x11), lan(0x12)));
        let gateway = NextHop::Ready(Adjacency::new(0, 1500, [2, 6, 0, 0, 0, 254], macs[0]));
        assert_eq!((way(&fib, "2001:db8:c::7"), way(&fib, "2001:db8:f::1")), (gateway, gateway));
        assert_eq!(
            (way(&fib, "2001:db8::10"), way(&fib, "2001:db8:a::1")),
            (NextHop::NoRoute, NextHop::NoRoute)
        );
        assert_eq!(way(&fib, "2001:db8:a::13"), NextHop::Unresolved(1));
    }

    #[test]
    fn routes_and_neighbours_of_a_router() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            vec![path]
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
        let fib = network(&given).unwrap().fibs();
        let gateway = Adjacency::new(0, 1500, [2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 7, 7]);
        assert_eq!(way(&fib, "198.51.100.7"), NextHop::Ready(gateway));
        assert_eq!(way(&fib, "10.0.0.11"), NextHop::Unresolved(1));
        assert_eq!(way(&fib, "10.0.0.12"), NextHop::Unresolved(1));
        assert_eq!(way(&fib, "10.1.2.3"), NextHop::Unresolved(1));
        for nowhere in ["10.2.0.1", "10.3.0.1", "10.4.0.1"] {
            assert_eq!(way(&fib, nowhere), NextHop::NoRoute, "{nowhere}");
        }

        // Nothing of IPv6 was given, but a neighbour.
        assert_eq!(way(&fib, "2001:db8:a::11"), NextHop::NoRoute);

        let refused = |given: Given| format!("{:#}", network(&given).unwrap_err());
        let only = |routes: &str| Given { routes: file("r", routes), ..Given::default() };
        assert!(refused(only("[]x")).ends_with("expected what `ip -j route` prints"));
        let wrong = refused(only(r#"[{"dst":"10.0.0.0/33","dev":"lan"}]"#));
        assert!(
            wrong.ends_with(
                "dst: \"10.0.0.0/33\" is no network; expected default, or a prefix such as 10.0.0.0/24"
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
    #[test]
    fn routes_and_neighbours_of_both_families() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let four = r#"[{"dst":"default","dev":"wan","scope":"link","flags":[]}]"#;
        let six = r#"[
            {"dst":"2001:db8:a::/64","dev":"lan","protocol":"kernel","metric":256,"flags":[],"pref":"medium"},
            {"dst":"2001:db8:b::9","gateway":"fe80::9","dev":"lan","metric":1024,"flags":[],"pref":"medium"},
            {"dst":"2001:db8:b::/64","metric":9,"flags":[],"pref":"medium","nexthops":[
                {"gateway":"fe80::1","dev":"lan","weight":1,"flags":["dead"]},
                {"gateway":"fe80::fe","dev":"wan","weight":1,"flags":[]}]},
            {"dst":"2001:db8:d::/64","dev":"lan","metric":9,"flags":[],"pref":"medium"},
            {"dst":"2001:db8:d::/64","dev":"wan","metric":8,"flags":[],"pref":"medium"},
            {"type":"unreachable","dst":"default","dev":"lo","metric":4294967295,"flags":[],"pref":"medium"}]"#;
        let neighbours = r#"[
            {"dst":"198.51.100.7","dev":"wan","lladdr":"02:00:00:00:09:07","state":["STALE"]},
            {"dst":"2001:db8:a::11","dev":"lan","lladdr":"02:00:00:00:09:11","state":["REACHABLE"]},
            {"dst":"fe80::fe","dev":"wan","lladdr":"02:00:00:00:09:fe","router":null,"state":["STALE"]},
            {"dst":"fe80::9","dev":"wan","lladdr":"02:00:00:00:09:09","state":["STALE"]}]"#;
        let given = Given {
            routes: vec![file("four", four), file("six", six)],
            neighbours: vec![file("neighbours", neighbours)],
            ..Given::default()
        };
        let fib = network(&given).unwrap().fibs();
        let wan = |last| NextHop::Ready(Adjacency::new(0, 1500, [2, 0, 0, 0, 9, last], [2, 0, 0, 0, 0, 1]));
        let lan = |last| NextHop::Ready(Adjacency::new(1, 1400, [2, 0, 0, 0, 9, last], [2, 0, 0, 0, 0, 2]));
        assert_eq!(way(&fib, "198.51.100.7"), wan(7));
        assert_eq!(way(&fib, "2001:db8:a::11"), lan(0x11));
        assert_eq!(way(&fib, "2001:db8:a::12"), NextHop::Unresolved(1));
        assert_eq!(way(&fib, "2001:db8:b::7"), wan(0xFE));
        assert_eq!(
            way(&fib, "2001:db8:b::9"),
            NextHop::Unresolved(1),
            "another port's neighbour has the address"
        );
        assert_eq!(way(&fib, "2001:db8:d::7"), NextHop::Unresolved(0), "the lower metric");
        assert_eq!(way(&fib, "2001:db8:c::7"), NextHop::NoRoute);

        let wrong = Given { routes: vec![file("r", r#"[{"dst":"2001:db8::/129","dev":"lan"}]"#)], ..given };
        let wrong = format!("{:#}", network(&wrong).unwrap_err());
        assert!(
            wrong.contains("dst: \"2001:db8::/129\" is no network; expected default, or a prefix"),
            "{wrong}"
        );
    }
}
