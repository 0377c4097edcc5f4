//! What one table must not share with another: names, devices, addresses.
//!
//! What has failed by itself takes no part.

use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use dataplane::service::Mode;
use dataplane::snat::SnatSpec;
use foldhash::{HashMap, HashSet};

use super::check::{IPV6_MTU, one_of};
use super::mark::Marks;
use super::raw::{Field, Section};
use super::{Port, Server, Service, port_of, value};
use crate::ids::{Face, ServiceKey};

/// What one port must not share with another.
pub(super) fn ports(sections: &[Section<'_>], ports: &[Option<Port>]) {
    if sections.is_empty() {
        return;
    }
    let (mut names, mut devices, mut addresses) = (Firsts::default(), Firsts::default(), Firsts::default());
    for (section, port) in sections.iter().zip(ports) {
        let Some(port) = port else { continue };
        if let Some(field) = section.get("name") {
            names.add(port.name.clone(), field, || format!("name {:?}", port.name), "another name");
        }
        let members = || section.get("bond")?.section()?.get("members")?.elements();
        let fields = section.get("device").map(|field| vec![field]).or_else(members).unwrap_or_default();
        for (field, device) in fields.into_iter().zip(&port.devices) {
            let identity = value::identity(device);
            if let Some(identity) = identity {
                devices.add(
                    identity.clone(),
                    field.clone(),
                    || format!("device {identity}"),
                    "another device",
                );
            }
            if value::interface(device) == Some(&port.name) {
                field.error::<()>(format_args!(
                    "interface {} has the name of the port's twin; expected another interface, or another name",
                    port.name
                ));
            }
        }
        let fields = section.get("addresses").and_then(|field| field.elements()).unwrap_or_default();
        for (field, prefix) in fields.into_iter().zip(&port.addresses) {
            addresses.add(prefix.address, field, || format!("address {}", prefix.address), "another address");
        }
    }
}

/// Each network once on a wire.
pub(super) fn vlans(sections: &[Section<'_>], vlans: &[Option<Port>]) {
    let mut tags = Firsts::default();
    for (section, vlan) in sections.iter().zip(vlans) {
        if let (Some(Port { tag: Some(tag), .. }), Some(field)) = (vlan, section.get("id")) {
            tags.add(*tag, field, || format!("VLAN {} of this port", tag.id), "each once on a port");
        }
    }
}

/// Each real server once in a service.
pub(super) fn servers(sections: &[Section<'_>], servers: &[Option<Server>]) {
    let mut addresses = Firsts::default();
    for (section, server) in sections.iter().zip(servers) {
        if let (Some(server), Some(field)) = (server, section.get("address")) {
            addresses.add(
                server.address,
                field,
                || format!("real server {}", server.address),
                "each real server once in a service",
            );
        }
    }
}

/// The addresses of this router, by what they are for.
#[derive(Debug)]
pub struct Own {
    virtuals: HashSet<IpAddr>,
    ports: HashSet<IpAddr>,
    locals: HashSet<IpAddr>,
}

impl Own {
    /// Those of these services, and of ports.
    pub fn of<'s>(
        services: impl Iterator<Item = &'s Service> + Clone,
        ports: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let fullnats = services.clone().flat_map(|service| &service.fullnat);
        Own {
            virtuals: services.flat_map(Service::virtual_addresses).collect(),
            ports: ports.into_iter().collect(),
            locals: fullnats.flat_map(|fullnat| &fullnat.local).copied().collect(),
        }
    }

    /// Refuses an address of the router as a real server's, unless it stands for the router itself: the service's own, or one of a port.
    /// Its packets stay as they are, so the port has to.
    pub fn check_server(&self, service: &Service, server: SocketAddr) -> Result<(), String> {
        let (address, port) = (server.ip(), service.address.port());
        let is_here = address == service.address.ip() || self.ports.contains(&address);
        match self.whose(address).or_else(|| self.is_local(address)) {
            Some(_) if is_here && service.mode == Mode::Fullnat => Err(format!(
                "{address} is this router itself; expected another machine with mode = \"fullnat\""
            )),
            Some(_) if is_here && server.port() != port => Err(format!(
                "{address} is this router itself, which gets packets as they are; expected \"{}\"",
                SocketAddr::new(address, port)
            )),
            Some(what) if !is_here => Err(format!("{address} is {what}; expected another machine")),
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses an address that the router has for something else as a local one for full NAT.
    pub fn check_local(&self, address: IpAddr) -> Result<(), String> {
        self.whose(address).map_or(Ok(()), |what| Err(for_nothing_else(address, what)))
    }

    /// Refuses a virtual address as the source of a tunnel's packets: real servers have it, too, and take no packet from it; and another
    /// router may have it next.
    pub fn check_tunnel_source(&self, address: IpAddr) -> Result<(), String> {
        match self.virtuals.contains(&address) {
            true => {
                Err(format!("{address} is a virtual address; expected an address of this router for itself"))
            }
            false => Ok(()),
        }
    }

    /// Refuses an address that the router has for something else as one of a pool of source NAT.
    fn check_outside(&self, address: IpAddr) -> Result<(), String> {
        let what = self.whose(address).or_else(|| self.is_local(address));
        what.map_or(Ok(()), |what| Err(for_nothing_else(address, what)))
    }

    fn whose(&self, address: IpAddr) -> Option<&'static str> {
        let is_port = || self.ports.contains(&address).then_some("an address of this router");
        self.virtuals.contains(&address).then_some("a virtual address").or_else(is_port)
    }

    fn is_local(&self, address: IpAddr) -> Option<&'static str> {
        self.locals.contains(&address).then_some("a local address for full NAT")
    }
}

fn for_nothing_else(address: IpAddr, what: &str) -> String {
    format!("{address} is {what}; expected an address for nothing else")
}

/// What services must not share, and what they must not balance to.
pub(super) fn services(
    sections: &[Section<'_>],
    services: &[(Option<Service>, Vec<Section<'_>>)],
    ports: &[Option<Port>],
    marks: &Marks,
) {
    let known = || services.iter().filter_map(|(service, _)| service.as_ref());
    let readable = || ports.iter().flatten();
    let own = Own::of(known(), readable().flat_map(|port| port.addresses.iter().map(|p| p.address)));
    let names: HashSet<&str> = readable().map(|port| port.name.as_str()).collect();

    let mut firsts = Firsts::default();
    for (section, (service, servers)) in sections.iter().zip(services) {
        let Some(service) = service else { continue };
        if let Some(field) = section.get("address") {
            let (protocol, address) = (service.protocol, service.address);
            let face = Face { address: address.ip(), protocol };
            let has_service =
                |mark| known().any(|other| other.mark.as_ref().is_some_and(|marked| marked.number == mark));
            if let Some((mark, line)) =
                marks.anywhere(face, address.port()).find(|&(mark, _)| has_service(mark))
            {
                field.error::<()>(format_args!(
                    "marks go first: the [[mark]] in line {line} gives those to {protocol} {address} to the service of mark {mark}; \
                     expected another address or port, a mark here, too, or a rule before that with a mark of no service"
                ));
            }
            let what = || format!("service {protocol} {address}");
            firsts.add(ServiceKey::of(service), field, what, "each address and protocol once");
        } else if let (Some(marked), Some(field)) = (&service.mark, section.get("mark")) {
            let what = || format!("a service of mark {}", marked.number);
            firsts.add(ServiceKey::of(service), field, what, "each mark once");
        }
        if let (Some(name), Some(field)) = (&service.port, section.get("port"))
            && !names.contains(name.as_str())
            && !ports.is_empty()
            && ports.iter().all(Option::is_some)
        {
            let names: Vec<&str> = readable().map(|port| port.name.as_str()).collect();
            one_of::<()>("port", &names, |_| None, &field);
        }
        if ports.iter().all(Option::is_some)
            && let Some(address) = service.virtual_addresses().next()
            && let Some(port) = port_of(service, address, readable()).filter(|port| port.mtu < IPV6_MTU)
            && let (true, Some(field)) =
                (service.address.is_ipv6(), section.get("address").or_else(|| section.get("mark")))
        {
            field.error::<()>(format_args!(
                "port {:?} has an mtu of {}, too small for IPv6; expected at least {IPV6_MTU} there, or no IPv6 address",
                port.name, port.mtu
            ));
        }
        if let Some(fullnat) = &service.fullnat
            && let Some(field) = section.section("fullnat").and_then(|section| section.get("local"))
        {
            for address in &fullnat.local {
                if let Err(wrong) = own.check_local(*address) {
                    field.error::<()>(wrong);
                }
            }
        }
        if let Some(source) = service.tunnel.source
            && let Some(field) = section.section("tunnel").and_then(|section| section.get("source"))
            && let Err(wrong) = own.check_tunnel_source(source)
        {
            field.error::<()>(wrong);
        }
        // To another service the router would have to balance for ever, or not at all.
        let sorry = service.availability.sorry_server.zip(section.get("sorry_server"));
        let servers = servers.iter().zip(&service.servers);
        let servers = servers.filter_map(|(section, server)| Some((server.address, section.get("address")?)));
        for (address, field) in servers.chain(sorry) {
            if let Err(wrong) = own.check_server(service, address) {
                field.error::<()>(wrong);
            }
        }
    }
}

/// No address is in two pools, or the router's own: Linux has ports of its own there, and so have services.
pub(super) fn snats<'a>(
    sections: &[Section<'_>],
    snats: &[Option<SnatSpec>],
    ports: &[Option<Port>],
    services: impl Iterator<Item = &'a Service> + Clone,
) {
    let own =
        Own::of(services, ports.iter().flatten().flat_map(|port| port.addresses.iter().map(|p| p.address)));
    let mut seen: HashSet<u32> = HashSet::default();
    for (section, snat) in sections.iter().zip(snats) {
        let (Some(snat), Some(field)) = (snat, section.get("outside")) else { continue };
        for &outside in &snat.outside {
            let address = IpAddr::from(Ipv4Addr::from(outside));
            let judged = match own.check_outside(address) {
                Ok(()) if !seen.insert(outside) => Err(for_nothing_else(address, "in another pool")),
                judged => judged,
            };
            if let Err(wrong) = judged {
                field.error::<()>(wrong);
            }
        }
    }
}

/// Remembers where each thing stood first.
struct Firsts<'d, K>(HashMap<K, Field<'d>>);

impl<K> Default for Firsts<'_, K> {
    fn default() -> Self {
        Firsts(HashMap::default())
    }
}

impl<'d, K: Hash + Eq> Firsts<'d, K> {
    /// Reports the thing at this field if it stood somewhere before.
    fn add(&mut self, key: K, field: Field<'d>, what: impl FnOnce() -> String, expected: &str) {
        match self.0.entry(key) {
            Entry::Occupied(first) => {
                let line = first.get().line();
                field.error::<()>(format_args!(
                    "{} stands in line {line} already; expected {expected}",
                    what()
                ));
            }
            Entry::Vacant(free) => {
                free.insert(field);
            }
        }
    }
}

/// The indices of what stands in a list before, each with the index of the first.
pub(super) fn repeated<T: Eq + Hash>(list: &[T]) -> Vec<(usize, usize)> {
    let mut firsts = HashMap::default();
    let first = |(index, value)| Some((index, *firsts.entry(value).or_insert(index)));
    list.iter().enumerate().filter_map(first).filter(|(index, first)| index != first).collect()
}
