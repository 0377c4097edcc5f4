//! `[[mark]]`: which packets have a firewall mark, and so belong to the service of that mark.
//!
//! The rules are asked in order, and the first that fits a packet gives it its mark, as those of `iptables -t mangle` would with `-j MARK` and
//! `-j ACCEPT`. All that they look at (protocol, virtual address, port, and the port of the router, as `-i`) is known before there is a packet.
//! So they are worked out here: a service has of each address, by each protocol, a set of ports ([`Marked`]), if need be one for each port of the
//! router, and no two services have one port of it.
//!
//! As in IPVS the mark goes before the service of an address and a port, and a mark of which there is no service is none: its rules take ports out of those
//! behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use dataplane::fib::PortIndex;
use dataplane::service::Protocol;
use dataplane::snapshot::{Incoming, covers};
use itertools::Itertools;

use super::check::{names, narrow, one_of};
use super::raw::{Field, Section};
use super::service;
use super::value::{self, NETWORK};
use super::{Port, Prefix};
use crate::ids::{Face, MAX_MARK, ServiceKey};

/// Ports in ascending order, without touching each other. All of them are one range from 0 on.
type Ports = Vec<RangeInclusive<u16>>;

const ALL: RangeInclusive<u16> = 0..=u16::MAX;

/// Addresses that one rule may have.
const MOST: usize = 1024;

/// What a service of a mark has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The mark.
    pub number: u32,
    /// What it has of each address, by each protocol.
    pub faces: BTreeMap<Face, Share>,
}

/// The ports of an address that a service has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Those that it has of what comes in anywhere; none are all of them, as in a service of all ports.
    pub ports: Ports,
    /// Which of them it has of what comes in where, if that makes a difference.
    pub incoming: Option<Incoming>,
}

/// Where packets come in: a port of the router that a rule names, or any other one.
type Place = Option<PortIndex>;

impl Marked {
    /// Its virtual addresses, each once.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let addresses: BTreeSet<IpAddr> = self.faces.keys().map(|face| face.address).collect();
        addresses.into_iter()
    }

    /// Whether anything of it comes by this protocol.
    pub fn has(&self, protocol: Protocol) -> bool {
        self.faces.keys().any(|face| face.protocol == protocol)
    }

    /// The protocols by which something of it comes.
    pub fn protocols(&self) -> impl Iterator<Item = Protocol> {
        Protocol::ALL.iter().copied().filter(|&protocol| self.has(protocol))
    }

    /// Whether some port is that of two of its addresses, by this protocol.
    pub fn has_twice(&self, protocol: Protocol) -> bool {
        let all: Ports = vec![ALL];
        let faces = self.faces.iter().filter(|(face, _)| face.protocol == protocol);
        let mut before = Ports::new();
        faces.map(|(_, share)| if share.ports.is_empty() { &all } else { &share.ports }).any(|ports| {
            let new = without(ports, &before);
            before = union(&before, &new);
            new != *ports
        })
    }

    /// The first of them.
    pub fn protocol(&self) -> Protocol {
        self.protocols().next().unwrap_or(Protocol::Tcp)
    }

    /// Who its service is.
    pub fn key(&self) -> ServiceKey {
        let is_wide = self.faces.keys().next().is_some_and(|face| face.address.is_ipv6());
        ServiceKey::of_mark(self.number, is_wide)
    }

    /// Whether it has a port, of what comes in wherever.
    pub fn has_port(&self, face: Face, port: u16) -> bool {
        self.faces.get(&face).is_some_and(|Share { ports, .. }| ports.is_empty() || covers(ports, port))
    }
}

/// All rules, worked out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    marked: BTreeMap<u32, Marked>,
    rules: Vec<Rule>,
    /// All there are.
    places: Vec<Place>,
}

/// A rule as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    mark: u32,
    faces: BTreeSet<Face>,
    ports: Ports,
    /// The ports of the router that packets come in on; none are all.
    incoming: BTreeSet<PortIndex>,
    line: usize,
}

impl Rule {
    fn fits(&self, face: Face, port: u16, place: Place) -> bool {
        self.faces.contains(&face) && covers(&self.ports, port) && self.is_at(place)
    }

    fn is_at(&self, place: Place) -> bool {
        self.incoming.is_empty() || place.is_some_and(|port| self.incoming.contains(&port))
    }
}

impl Marks {
    /// Reads the rules of a router with these ports.
    pub(super) fn read(sections: &[Section<'_>], ports: &[Option<Port>]) -> Marks {
        let rules = sections.iter().filter_map(|section| Some((rule(section, ports)?, section.get("mark")?)));
        let rules: Vec<(Rule, Field<'_>)> = rules.collect();
        let named: BTreeSet<PortIndex> = rules.iter().flat_map(|(rule, _)| &rule.incoming).copied().collect();
        let others = (named.len() < ports.len()).then_some(None);
        let places: Vec<Place> = named.into_iter().map(Some).chain(others).collect();

        let mut families: BTreeMap<u32, bool> = BTreeMap::new();
        let mut taken: BTreeMap<(Face, Place), Ports> = BTreeMap::new();
        let mut own: BTreeMap<(u32, Face), BTreeMap<Place, Ports>> = BTreeMap::new();
        for (rule, field) in &rules {
            let is_wide = rule.faces.first().is_some_and(|face| face.address.is_ipv6());
            if *families.entry(rule.mark).or_insert(is_wide) != is_wide {
                field.error::<()>(format_args!("mark {} has addresses of the other family, and a service's are all of one; expected another mark", rule.mark));
                continue;
            }
            let mut gets_any = false;
            for (&face, &place) in rule.faces.iter().cartesian_product(&places) {
                let taken = taken.entry((face, place)).or_default();
                let gets = if rule.is_at(place) { without(&rule.ports, taken) } else { Ports::new() };
                if !gets.is_empty() {
                    gets_any = true;
                    *taken = union(taken, &gets);
                    let known = own.entry((rule.mark, face)).or_default().entry(place).or_default();
                    *known = union(known, &gets);
                }
            }
            if !gets_any {
                field.error::<()>(
                    "no packet comes as far as this rule, those before it have all of its ports; expected it before them",
                );
            }
        }
        let mut marked: BTreeMap<u32, Marked> = BTreeMap::new();
        for ((number, face), by) in own {
            let marked = marked.entry(number).or_insert_with(|| Marked { number, faces: BTreeMap::new() });
            marked.faces.insert(face, Share::of(by, &places));
        }
        Marks { marked, rules: rules.into_iter().map(|(rule, _)| rule).collect(), places }
    }

    /// What the service of a mark has.
    pub(super) fn of(&self, field: &Field<'_>) -> Option<Marked> {
        let number: u32 = narrow(field.integer(1..=MAX_MARK.into()))?;
        match self.marked.get(&number) {
            Some(marked) if !marked.faces.is_empty() => Some(marked.clone()),
            _ => field.error(format_args!(
                "no [[mark]] gives mark {number}; expected a rule for it, with `address` and perhaps `protocol` and `ports`"
            )),
        }
    }

    /// The mark of packets to a port that come in here, and the line of the rule that gives it.
    pub fn at(&self, face: Face, port: u16, place: Place) -> Option<(u32, usize)> {
        let rule = self.rules.iter().find(|rule| rule.fits(face, port, place))?;
        Some((rule.mark, rule.line))
    }

    /// The same wherever they come in.
    pub fn anywhere(&self, face: Face, port: u16) -> impl Iterator<Item = (u32, usize)> {
        self.places.iter().filter_map(move |&place| self.at(face, port, place))
    }
}

impl Share {
    fn of(by: BTreeMap<Place, Ports>, places: &[Place]) -> Share {
        let all = by.values().fold(Ports::new(), |all, one| union(&all, &without(one, &all)));
        let is_alike = by.len() == places.len() && by.values().all_equal();
        let incoming = (!is_alike).then(|| {
            let at = |place: Place| by.get(&place).cloned().unwrap_or_default();
            let named = places.iter().copied().flatten();
            Incoming { by: named.map(|port| (port, at(Some(port)))).collect(), others: at(None) }
        });
        Share { ports: if all == [ALL] { Ports::new() } else { all }, incoming }
    }

    /// By where it comes in what it has: ports of the router, of which there are so many, and ports of the address; none are all, of either.
    pub fn parts(&self, count: usize) -> Vec<(Vec<PortIndex>, Ports)> {
        let Some(incoming) = &self.incoming else { return vec![(Vec::new(), self.ports.clone())] };
        let has = |port: &PortIndex| incoming.by.get(port).unwrap_or(&incoming.others);
        let by = (0..count as PortIndex).into_group_map_by(has).into_iter();
        let some = by.filter(|(ports, _)| !ports.is_empty());
        let parts = some.map(|(ports, by)| (by, if *ports == [ALL] { Ports::new() } else { ports.clone() }));
        parts.sorted_by_key(|(by, _)| by[0]).collect()
    }
}

fn rule(section: &Section<'_>, ports: &[Option<Port>]) -> Option<Rule> {
    const MARK: &str = "the mark that packets get, 1 to 16777215";
    const ADDRESS: &str = "a virtual address, a list of them, or a prefix whose addresses are all virtual";
    section.known(&["mark", "protocol", "address", "ports", "in"]);
    let mark = section.require("mark", MARK).and_then(|field| narrow(field.integer(1..=MAX_MARK.into())));
    let protocols = section.or("protocol", vec![Protocol::Tcp, Protocol::Udp], |field| {
        one_of("protocol", &names(Protocol::ALL), Protocol::from_name, &field).map(|protocol| vec![protocol])
    });
    let addresses = section.require("address", ADDRESS).and_then(|field| addresses(&field));
    let all = section.or("ports", vec![ALL], |field| service::ranges(&field));
    let incoming = section.or("in", BTreeSet::new(), |field| incoming(&field, ports));
    let (protocols, addresses) = (protocols?, addresses?);
    let faces = addresses
        .iter()
        .flat_map(|&address| protocols.iter().map(move |&protocol| Face { address, protocol }));
    let (mark, line) = (mark?, section.get("mark")?.line());
    Some(Rule { mark, faces: faces.collect(), ports: all?, incoming: incoming?, line })
}

/// One port of the router, or several.
fn incoming(field: &Field<'_>, ports: &[Option<Port>]) -> Option<BTreeSet<PortIndex>> {
    let names: Vec<&str> = ports.iter().flatten().map(|port| port.name.as_str()).collect();
    let index = |name: &str| {
        let named = |port: &Option<Port>| port.as_ref().is_some_and(|port| port.name == name);
        ports.iter().position(named).map(|index| index as PortIndex)
    };
    let one = |field: Field<'_>| one_of("port", &names, index, &field);
    let all = if field.is_array() { field.all(one)? } else { vec![one(field.clone())?] };
    if all.is_empty() {
        return field.error("is empty; expected at least one port, or no such key for all of them");
    }
    Some(all.into_iter().collect())
}

/// One, or several, one by one.
fn addresses(field: &Field<'_>) -> Option<Vec<IpAddr>> {
    let one = |field: Field<'_>| {
        let prefix = field.parse(NETWORK, value::network)?;
        let all = within(&prefix);
        match all.first() {
            None => field.error(format_args!(
                "{prefix} has more than {MOST} addresses; expected a longer prefix, or several rules"
            )),
            Some(first) => match value::address(&first.to_string()) {
                Err(wrong) => field.error(format_args!("{wrong}; expected {NETWORK}")),
                Ok(_) => Some(all),
            },
        }
    };
    let all = if field.is_array() { field.all(one)?.concat() } else { one(field.clone())? };
    match all.first() {
        None => field.error("is empty; expected at least one address"),
        Some(first) if all.iter().any(|other| other.is_ipv6() != first.is_ipv6()) => {
            field.error("has addresses of two families; expected a mark for each")
        }
        Some(_) if all.len() > MOST => {
            field.error(format_args!("has {} addresses; expected {MOST} at the most", all.len()))
        }
        Some(_) => Some(all),
    }
}

/// The addresses of a prefix; none if they are too many.
fn within(prefix: &Prefix) -> Vec<IpAddr> {
    let bits = if prefix.address.is_ipv4() { 32 } else { 128 };
    let count = 1u128.checked_shl(u32::from(bits - prefix.length)).filter(|&count| count <= MOST as u128);
    let count = count.unwrap_or(0);
    (0..count)
        .map(|offset| match prefix.address {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first) + offset as u32).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) + offset).into(),
        })
        .collect()
}

/// Those that are not among the others.
fn without(ports: &[RangeInclusive<u16>], others: &[RangeInclusive<u16>]) -> Ports {
    let mut left = ports.to_vec();
    for other in others {
        let before = |range: &RangeInclusive<u16>| {
            let end = other.start().checked_sub(1).map(|end| end.min(*range.end()));
            end.map(|end| *range.start()..=end)
        };
        let behind = |range: &RangeInclusive<u16>| {
            let start = other.end().checked_add(1).map(|start| start.max(*range.start()));
            start.map(|start| start..=*range.end())
        };
        left = left.iter().flat_map(|range| [before(range), behind(range)]).flatten().collect();
        left.retain(|range| !range.is_empty());
    }
    left
}

/// Both, in order, of which neither has a port of the other.
fn union(one: &[RangeInclusive<u16>], other: &[RangeInclusive<u16>]) -> Ports {
    let mut all = [one, other].concat();
    all.sort_by_key(|range| *range.start());
    service::touching(all)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Config, ConfigErrors};

    const START: &str =
        "[workers]\ncores = [1]\n[[port]]\nname = 'wan'\ndevice = '01:00.0'\naddresses = ['192.0.2.1/24']\n";

    fn read(rest: &str) -> Result<Config, ConfigErrors> {
        crate::config::parse(Path::new("f"), format!("{START}{rest}").into_bytes())
    }

    fn rules(rules: &[&str]) -> String {
        rules.iter().map(|rule| format!("[[mark]]\n{rule}\n")).collect()
    }

    fn service(mark: u32) -> String {
        format!("[[service]]\nmark = {mark}\nmode = 'nat'\n[[service.server]]\naddress = '10.0.0.11'\n")
    }

    /// What each service has: `tcp/192.0.2.10 80,8080-8090`.
    fn shown(text: &str) -> Vec<Vec<String>> {
        let config = read(text).unwrap_or_else(|errors| panic!("{errors}"));
        let face = |(face, share): (&Face, &Share)| {
            let shown = |(by, ports): (Vec<PortIndex>, Ports)| {
                let by = by.iter().map(|&port| format!(" {}", config.ports[usize::from(port)].name));
                format!("{face} {}{}", ports.iter().map(value::shown_ports).join(","), by.format(""))
            };
            share.parts(config.ports.len()).into_iter().map(shown).collect::<Vec<_>>()
        };
        let of = |service: &crate::config::Service| {
            service.mark.iter().flat_map(|marked| &marked.faces).flat_map(face).collect()
        };
        config.services.iter().map(of).collect()
    }

    fn wrong(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn a_service_has_what_its_rules_say_and_the_first_that_fits_counts() {
        let text = rules(&[
            "mark = 10\nprotocol = 'tcp'\naddress = ['192.0.2.10', '192.0.2.11']\nports = [80, '8080-8090']",
            "mark = 99\nprotocol = 'tcp'\naddress = '192.0.2.10'\nports = [8095]",
            "mark = 20\naddress = '192.0.2.10'",
            "mark = 10\nprotocol = 'tcp'\naddress = '192.0.2.12/31'",
        ]) + &service(10)
            + &service(20);
        assert_eq!(
            shown(&text),
            [
                vec![
                    "tcp/192.0.2.10 80,8080-8090",
                    "tcp/192.0.2.11 80,8080-8090",
                    "tcp/192.0.2.12 ",
                    "tcp/192.0.2.13 "
                ],
                vec!["tcp/192.0.2.10 0-79,81-8079,8091-8094,8096-65535", "udp/192.0.2.10 "],
            ]
        );
    }

    #[test]
    fn the_port_that_packets_come_in_on_decides_where_rules_name_it() {
        const LAN: &str =
            "[[port]]\nname = 'lan'\ndevice = '02:00.0'\n[[vlan]]\nname = 'dmz'\nport = 'lan'\nid = 7\n";
        let text = LAN.to_owned()
            + &rules(&[
                "mark = 10\nprotocol = 'tcp'\naddress = '192.0.2.10'\nports = [80]\nin = 'wan'",
                "mark = 20\nprotocol = 'tcp'\naddress = '192.0.2.10'\nports = [80, 443]",
                "mark = 10\nprotocol = 'tcp'\naddress = '192.0.2.10'\nin = ['dmz', 'wan']",
                "mark = 30\nprotocol = 'udp'\naddress = '192.0.2.10'\nports = [53]\nin = ['wan', 'lan', 'dmz']",
            ])
            + &service(10)
            + &service(20)
            + &service(30);
        assert_eq!(
            shown(&text),
            [
                vec!["tcp/192.0.2.10 0-442,444-65535 wan", "tcp/192.0.2.10 0-79,81-442,444-65535 dmz"],
                vec!["tcp/192.0.2.10 443 wan", "tcp/192.0.2.10 80,443 lan dmz"],
                vec!["udp/192.0.2.10 53"],
            ]
        );
        let config = read(&text).unwrap();
        let face = Face { address: "192.0.2.10".parse().unwrap(), protocol: Protocol::Tcp };
        let mark = |port, place| config.marks.at(face, port, Some(place)).map(|(mark, _)| mark);
        assert_eq!([0, 1, 2].map(|place| mark(80, place)), [Some(10), Some(20), Some(20)]);
        assert_eq!([0, 1, 2].map(|place| mark(22, place)), [Some(10), None, Some(10)]);
    }

    #[test]
    fn the_virtual_addresses_of_a_mark_and_who_it_is() {
        let six = "mark = 7\naddress = ['2001:db8::10', '2001:db8::11']\nports = [443]\nprotocol = 'udp'";
        let text = rules(&[six]) + &service(7).replace("10.0.0.11", "2001:db8:1::11");
        let config = read(&text).unwrap();
        let service = &config.services[0];
        assert_eq!(ServiceKey::of(service).to_string(), "mark6/7");
        assert_eq!(service.virtual_addresses().count(), 2);
        assert_eq!((service.protocol, service.numbers()), (Protocol::Udp, 3));
    }

    #[test]
    fn errors_say_where_and_what_to_do() {
        let one = "mark = 10\naddress = '192.0.2.10'\nports = [80]";
        for (text, says) in [
            (service(10), "no [[mark]] gives mark 10; expected a rule for it"),
            (
                rules(&[one]) + &service(10).replace("mode", "address = '192.0.2.10:80'\nmode"),
                "is in the rules of the service's mark",
            ),
            (
                rules(&[one]) + &service(10) + &service(10),
                "a service of mark 10 stands in line 12 already; expected each mark once",
            ),
            (
                rules(&[one]) + &service(10) + "[[service]]\naddress = '192.0.2.10:80'\nmode = 'nat'\n",
                "the [[mark]] in line 8 gives those to tcp 192.0.2.10:80 to the service of mark 10",
            ),
            (
                rules(&[one, "mark = 11\naddress = '192.0.2.10'\nports = [80]"]),
                "those before it have all of its ports",
            ),
            (rules(&["mark = 10\naddress = '10.0.0.0/8'"]), "10.0.0.0/8 has more than 1024 addresses"),
            (rules(&["mark = 10\naddress = ['192.0.2.10', '2001:db8::1']"]), "has addresses of two families"),
            (
                rules(&[one, "mark = 10\naddress = '2001:db8::1'"]),
                "mark 10 has addresses of the other family",
            ),
            (
                rules(&["mark = 0\naddress = '192.0.2.10'"]),
                "0 is out of range; expected an integer from 1 to 16777215",
            ),
            (
                rules(&["mark = 10\naddress = '192.0.2.10'\nprotocol = 'icmp'"]),
                "unknown protocol \"icmp\"; expected one of tcp, udp, sctp",
            ),
            (
                rules(&[
                    "mark = 10\naddress = '192.0.2.10'\nprotocol = 'udp'",
                    "mark = 10\naddress = '192.0.2.10'\nprotocol = 'sctp'",
                ]) + &service(10).replace("mode", "one_packet = true\nmode"),
                "a connection of TCP or SCTP",
            ),
            (rules(&["mark = 10\naddress = '127.0.0.1'"]), "127.0.0.1"),
            (rules(&["address = '192.0.2.10'"]), "mark[0].mark: missing"),
            (
                rules(&["mark = 10\naddress = ['192.0.2.10', '192.0.2.11']\nports = ['80-90']"])
                    + &service(10).replace("mode = ", "limit = { half_open_rate = 10 }\nmode = "),
                "service[0].limit.half_open_rate: some port of the mark is that of two addresses",
            ),
            (
                rules(&["mark = 10\naddress = '192.0.2.10'\nin = 'lan'"]),
                "unknown port \"lan\"; expected \"wan\"",
            ),
            (rules(&["mark = 10\naddress = '192.0.2.10'\nin = []"]), "mark[0].in: is empty"),
            (
                rules(&[&format!("{one}\nin = 'wan'"), "mark = 11\naddress = '192.0.2.10'\nports = [80]"]),
                "those before it have all of its ports",
            ),
            (
                "[[port]]\nname = 'lan'\ndevice = '02:00.0'\n".to_owned()
                    + &rules(&["mark = 9\naddress = '192.0.2.10'\nin = 'lan'", one])
                    + &service(10)
                    + "[[service]]\naddress = '192.0.2.10:80'\nmode = 'nat'\n",
                "the [[mark]] in line 15 gives those to tcp 192.0.2.10:80 to the service of mark 10",
            ),
            (
                rules(&[one]) + &service(10).replace("10.0.0.11", "10.0.0.11:80"),
                "a service of all ports leaves a packet's as it is",
            ),
            (
                rules(&[one]) + &service(10).replace("10.0.0.11", "192.0.2.10"),
                "192.0.2.10 is a virtual address",
            ),
            (
                rules(&[one]) + &service(10).replace("mode", "helper = 'ftp'\npersistence = {}\nmode"),
                "is for one address",
            ),
            (
                rules(&[one]) + &service(10).replace("mode", "one_packet = true\nmode"),
                "a connection of TCP or SCTP",
            ),
        ] {
            let error = wrong(&text);
            assert!(error.contains(says), "{error}\nexpected {says}");
        }
        let apart = rules(&[one, "mark = 10\naddress = '192.0.2.11'\nports = [81]"]) + &service(10);
        let text = apart.replace("mode = ", "limit = { half_open_rate = 10 }\nmode = ");
        assert!(read(&text).is_ok(), "answers tell by their ports");
        let carved =
            rules(&["mark = 9\naddress = '192.0.2.10'\nports = [80]", "mark = 10\naddress = '192.0.2.10'"]);
        let text = carved + &service(10) + "[[service]]\naddress = '192.0.2.10:80'\nmode = 'nat'\n";
        assert!(read(&text).is_ok(), "a mark of no service leaves it what it is");
    }

    fn some() -> impl Strategy<Value = Ports> {
        let range = (any::<u16>(), 0..2000u16).prop_map(|(first, more)| first..=first.saturating_add(more));
        prop::collection::vec(range, 0..6).prop_map(|ranges| {
            ranges
                .iter()
                .fold(Ports::new(), |all, one| union(&all, &without(std::slice::from_ref(one), &all)))
        })
    }

    proptest! {
        #[test]
        fn sets_of_ports(one in some(), other in some(), port: u16) {
            let (has, has_other) = (covers(&one, port), covers(&other, port));
            let left = without(&one, &other);
            prop_assert_eq!(covers(&left, port), has && !has_other);
            let all = union(&left, &other);
            prop_assert_eq!(covers(&all, port), has || has_other);
            prop_assert!(all.windows(2).all(|two| u32::from(*two[0].end()) + 1 < u32::from(*two[1].start())));
        }
    }
}
