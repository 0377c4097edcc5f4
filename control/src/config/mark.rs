//! `[[mark]]`: which packets have a firewall mark, and so belong to the service of that mark.
//!
//! The rules are asked in order, and the first that fits a packet gives it its mark, as those of `iptables -t mangle` would with `-j MARK` and
//! `-j ACCEPT`. All that they look at (protocol, virtual address, port) is known before there is a packet. So they are worked out here: a
//! service has of each address, by each protocol, a set of ports ([`Marked`]), and no two services have one port of it.
//!
//! As in IPVS the mark goes before the service of an address and a port, and a mark of which there is no service is none: its rules take ports out of those
//! behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use dataplane::service::Protocol;

use super::Prefix;
use super::check::{narrow, one_of};
use super::raw::{Field, Section};
use super::service;
use super::value::{self, NETWORK};
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
    /// The ports that it has of each address, by each protocol; none are all of them, as in a service of all ports.
    pub faces: BTreeMap<Face, Ports>,
}

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

    /// The first of them.
    pub fn protocol(&self) -> Protocol {
        self.protocols().next().unwrap_or(Protocol::Tcp)
    }

    /// Who its service is.
    pub fn key(&self) -> ServiceKey {
        let is_wide = self.faces.keys().next().is_some_and(|face| face.address.is_ipv6());
        ServiceKey::of_mark(self.number, is_wide)
    }

    /// Whether it has a port.
    pub fn has_port(&self, face: Face, port: u16) -> bool {
        self.faces.get(&face).is_some_and(|ports| ports.is_empty() || covers(ports, port))
    }
}

/// All rules, worked out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    marked: BTreeMap<u32, Marked>,
    rules: Vec<Rule>,
}

/// A rule as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    mark: u32,
    faces: BTreeSet<Face>,
    ports: Ports,
    line: usize,
}

impl Marks {
    /// Reads the rules.
    pub(super) fn read(sections: &[Section<'_>]) -> Marks {
        let mut marks = Marks::default();
        let mut taken: BTreeMap<Face, Ports> = BTreeMap::new();
        for section in sections {
            let (Some(rule), Some(field)) = (rule(section), section.get("mark")) else { continue };
            let marked = marks
                .marked
                .entry(rule.mark)
                .or_insert_with(|| Marked { number: rule.mark, faces: BTreeMap::new() });
            let is_wide = |face: &Face| face.address.is_ipv6();
            if marked
                .faces
                .keys()
                .next()
                .is_some_and(|one| rule.faces.iter().any(|other| is_wide(one) != is_wide(other)))
            {
                field.error::<()>(format_args!("mark {} has addresses of the other family, and a service's are all of one; expected another mark", rule.mark));
                continue;
            }
            let mut gets_any = false;
            for &face in &rule.faces {
                let taken = taken.entry(face).or_default();
                let own = without(&rule.ports, taken);
                if !own.is_empty() {
                    gets_any = true;
                    *taken = union(taken, &own);
                    let known = marked.faces.entry(face).or_default();
                    *known = union(known, &own);
                }
            }
            if !gets_any {
                field.error::<()>(
                    "no packet comes as far as this rule, those before it have all of its ports; expected it before them",
                );
            }
            marks.rules.push(rule);
        }
        for ports in marks.marked.values_mut().flat_map(|marked| marked.faces.values_mut()) {
            if *ports == [ALL] {
                ports.clear();
            }
        }
        marks
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

    /// The mark of packets to a port, and the line of the rule that gives it.
    pub fn at(&self, face: Face, port: u16) -> Option<(u32, usize)> {
        let fits = |rule: &&Rule| rule.faces.contains(&face) && covers(&rule.ports, port);
        self.rules.iter().find(fits).map(|rule| (rule.mark, rule.line))
    }
}

fn rule(section: &Section<'_>) -> Option<Rule> {
    const MARK: &str = "the mark that packets get, 1 to 16777215";
    const ADDRESS: &str = "a virtual address, a list of them, or a prefix whose addresses are all virtual";
    section.known(&["mark", "protocol", "address", "ports"]);
    let mark = section.require("mark", MARK).and_then(|field| narrow(field.integer(1..=MAX_MARK.into())));
    let protocols = section.or("protocol", vec![Protocol::Tcp, Protocol::Udp], |field| {
        let named = |name: &str| Protocol::from_name(name).filter(|&protocol| protocol != Protocol::Sctp);
        one_of("protocol of a mark", &["tcp", "udp"], named, &field).map(|protocol| vec![protocol])
    });
    let addresses = section.require("address", ADDRESS).and_then(|field| addresses(&field));
    let ports = section.or("ports", vec![ALL], |field| service::ranges(&field));
    let (protocols, addresses) = (protocols?, addresses?);
    let faces = addresses
        .iter()
        .flat_map(|&address| protocols.iter().map(move |&protocol| Face { address, protocol }));
    Some(Rule { mark: mark?, faces: faces.collect(), ports: ports?, line: section.get("mark")?.line() })
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

fn covers(ports: &[RangeInclusive<u16>], port: u16) -> bool {
    ports.iter().any(|range| range.contains(&port))
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
        let face = |(face, ports): (&Face, &Ports)| {
            let ports: Vec<String> = ports.iter().map(value::shown_ports).collect();
            format!("{face} {}", ports.join(","))
        };
        let of = |service: &crate::config::Service| {
            service.mark.iter().flat_map(|marked| &marked.faces).map(face).collect()
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
            (rules(&["mark = 10\naddress = '192.0.2.10'\nprotocol = 'sctp'"]), "unknown protocol of a mark"),
            (rules(&["mark = 10\naddress = '127.0.0.1'"]), "127.0.0.1"),
            (rules(&["address = '192.0.2.10'"]), "mark[0].mark: missing"),
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
            (rules(&[one]) + &service(10).replace("mode", "one_packet = true\nmode"), "a connection of TCP"),
        ] {
            let error = wrong(&text);
            assert!(error.contains(says), "{error}\nexpected {says}");
        }
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
