//! Changes that are made without editing the file: what they are, and how long they hold.
//!
//! A change names a service or a server, and remembers what the file said of it at the time. It holds until somebody
//! takes it back, until a reload finds another entry in the file (whoever edits the entry has the last word), or
//! until RVS ends, which an upgrade is not; `rvs save` writes it into the file.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use itertools::Itertools;

use super::List;
use crate::config::{Own, Server, Service, value};
use crate::ids::{Face, ServiceKey};

/// All live changes.
#[derive(Clone, Debug, Default)]
pub struct Live {
    pub(super) services: BTreeMap<ServiceKey, ServiceChange>,
    pub(super) servers: BTreeMap<(ServiceKey, SocketAddr), ServerChange>,
}

/// What the file says of a service, and what is to be instead.
#[derive(Clone, Debug)]
pub(super) struct ServiceChange {
    pub was: Option<Service>,
    pub now: Option<Service>,
}

/// What the file says of a server, and what is to be instead.
#[derive(Clone, Debug)]
pub(super) struct ServerChange {
    pub was: Option<Server>,
    pub now: Option<Server>,
}

impl Live {
    /// The services with all changes made to them.
    pub fn apply(&self, file: &List) -> List {
        if self.services.is_empty() && self.servers.is_empty() {
            return file.clone();
        }
        let stays = |service: &&Service| !self.services.contains_key(&ServiceKey::of(service));
        let added = self.services.values().filter_map(|change| change.now.as_ref());
        let mut services: Vec<Service> = file.iter().filter(stays).chain(added).cloned().collect();
        for service in &mut services {
            let key = ServiceKey::of(service);
            let changed = |server: &Server| self.servers.get(&(key, server.address));
            service.servers.retain_mut(|server| match changed(server).map(|change| &change.now) {
                Some(None) => false,
                Some(Some(now)) => {
                    *server = *now;
                    true
                }
                None => true,
            });
            let own = self.servers.range((key, FIRST)..).take_while(|((service, _), _)| *service == key);
            let added = own.filter(|(_, change)| change.was.is_none());
            service.servers.extend(added.filter_map(|(_, change)| change.now));
        }
        Arc::new(services)
    }

    /// Puts a server in the place of what the file has under its address, or takes it away.
    pub fn set_server(
        &mut self,
        file: &[Service],
        service: ServiceKey,
        address: SocketAddr,
        now: Option<Server>,
    ) {
        let was = match self.servers.remove(&(service, address)) {
            Some(change) => change.was,
            None => self.find(file, service).and_then(|known| server_of(&known, address).copied()),
        };
        if was != now {
            self.servers.insert((service, address), ServerChange { was, now });
        }
    }

    /// Adds a service that the file does not have, or takes one away.
    pub fn set_service(&mut self, file: &[Service], key: ServiceKey, now: Option<Service>) {
        // Changes of its servers were made to another service than the one that comes after.
        self.servers.retain(|(service, _), _| *service != key);
        let was = match self.services.remove(&key) {
            Some(change) => change.was,
            None => service_of(file, key).cloned(),
        };
        if was != now {
            self.services.insert(key, ServiceChange { was, now });
        }
    }

    /// Drops the changes whose entries are others in the new file; which these were.
    pub fn outlive(&mut self, new: &[Service]) -> Vec<String> {
        let mut dropped = Vec::new();
        self.services.retain(|key, change| {
            let stays = service_of(new, *key) == change.was.as_ref();
            if !stays {
                dropped.push(format!("service {key}"));
            }
            stays
        });
        let services = &self.services;
        self.servers.retain(|(key, address), change| {
            let by_hand = services.get(key).and_then(|change| change.now.as_ref());
            let known = by_hand.or_else(|| service_of(new, *key));
            let stays = known.is_some_and(|service| server_of(service, *address) == change.was.as_ref());
            if !stays {
                dropped.push(format!("server {key} {address}"));
            }
            stays
        });
        dropped
    }

    /// Whether a service was added or removed.
    pub fn names(&self, service: &ServiceKey) -> bool {
        self.services.contains_key(service)
    }

    /// Forgets all changes: the file says the same now.
    pub fn clear(&mut self) {
        *self = Live::default();
    }

    /// The service as far as the file and changes of services go, without changes of servers.
    fn find(&self, file: &[Service], key: ServiceKey) -> Option<Service> {
        match self.services.get(&key) {
            Some(change) => change.now.clone(),
            None => service_of(file, key).cloned(),
        }
    }
}

/// No other address comes before it.
const FIRST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The service of this key.
pub fn service_of(services: &[Service], key: ServiceKey) -> Option<&Service> {
    services.iter().find(|service| ServiceKey::of(service) == key)
}

/// The server of this address.
pub fn server_of(service: &Service, address: SocketAddr) -> Option<&Server> {
    service.servers.iter().find(|server| server.address == address)
}

/// The service of this key, or an error that names those that there are.
pub fn require_service(services: &[Service], key: ServiceKey) -> Result<&Service> {
    const SHOWN: usize = 10;
    service_of(services, key).with_context(|| {
        let known = services.iter().take(SHOWN).map(|service| ServiceKey::of(service).to_string()).join(", ");
        let more = if services.len() > SHOWN { ", ..." } else { "" };
        format!("no service {key}; expected one of {known}{more}")
    })
}

/// The server of this address in this service, or an error that names those that there are.
pub fn require_server(services: &[Service], key: ServiceKey, address: SocketAddr) -> Result<&Server> {
    const SHOWN: usize = 10;
    let service = require_service(services, key)?;
    server_of(service, address).with_context(|| {
        let known = service.servers.iter().take(SHOWN).map(|server| server.address.to_string()).join(", ");
        let more = if service.servers.len() > SHOWN { ", ..." } else { "" };
        format!("no server {address} in {key}; expected one of {known}{more}")
    })
}

/// Refuses a server that is there already, that this router is itself, or that no service at this address can have. `ports` are the
/// addresses of ports.
pub fn check_new_server(
    services: &[Service],
    ports: &[IpAddr],
    key: ServiceKey,
    server: &Server,
) -> Result<()> {
    let service = require_service(services, key)?;
    let address = server.address;
    if key.address.port() == 0 {
        let expected = SocketAddr::new(address.ip(), 0);
        ensure!(
            address == expected,
            "a service of all ports leaves a packet's as it is; expected {expected}, not {address}"
        );
    } else {
        value::socket(&address.to_string())
            .map_err(|wrong| anyhow!("{wrong}; expected {}", value::ENDPOINT))?;
    }
    value::server_family(address.ip(), key.address.ip(), Some(service.mode)).map_err(Error::msg)?;
    ensure!(
        server_of(service, address).is_none(),
        "{key} has a server {address}; expected another one, or `rvs weight` to change it"
    );
    Own::of(services.iter(), ports.iter().copied()).check_server(service, address).map_err(Error::msg)
}

/// Refuses a service that is there already, or that shares an address with others which must be for one thing only. `ports` are the
/// addresses of ports.
pub fn check_new_service(services: &[Service], ports: &[IpAddr], new: &Service) -> Result<()> {
    let key = ServiceKey::of(new);
    ensure!(service_of(services, key).is_none(), "{key} is there already; expected another service");
    let own = Own::of(services.iter().chain([new]), ports.iter().copied());
    machines(new).try_for_each(|address| own.check_server(new, address)).map_err(Error::msg)?;
    locals(new).try_for_each(|address| own.check_local(address)).map_err(Error::msg)?;
    let mut sources = services.iter().chain([new]).filter_map(|service| service.tunnel.source);
    sources.try_for_each(|source| own.check_tunnel_source(source)).map_err(Error::msg)?;
    let face = Face { address: key.address.ip(), protocol: key.protocol };
    let mut marked = services.iter().filter_map(|service| service.mark.as_ref());
    if let Some(marked) = marked.find(|marked| marked.has_port(face, key.address.port())) {
        bail!(
            "the service of mark {} has what comes to {key}; expected another address or port",
            marked.number
        );
    }
    let virtual_address = key.address.ip();
    for service in services {
        let other = ServiceKey::of(service);
        for address in locals(new).chain([virtual_address]) {
            ensure!(
                address == service.address.ip() || !machines(service).any(|server| server.ip() == address),
                "{address} is a real server of {other}; expected another address"
            );
        }
        ensure!(
            !locals(service).contains(&virtual_address),
            "{virtual_address} is a local address of {other}; expected another address"
        );
    }
    Ok(())
}

/// To where a service sends.
fn machines(service: &Service) -> impl Iterator<Item = SocketAddr> {
    let servers = service.servers.iter().map(|server| server.address);
    servers.chain(service.availability.sorry_server)
}

/// Its local addresses for full NAT.
fn locals(service: &Service) -> impl Iterator<Item = IpAddr> {
    service.fullnat.iter().flat_map(|fullnat| &fullnat.local).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::services;

    const SIX: &str = "[[service]]\naddress = '[2001:db8::10]:80'\nmode = 'nat'\n\
        [[service.server]]\naddress = '[2001:db8:1::11]:8080'\n\
        [[service]]\naddress = '[2001:db8::20]:80'\nmode = 'nat'\n";

    fn server(address: &str) -> Server {
        let file = services(SIX);
        Server { address: address.parse().unwrap(), ..file[0].servers[0] }
    }

    #[test]
    fn a_server_of_ipv6_comes_and_another_goes() {
        let file: List = Arc::new(services(SIX));
        let key: ServiceKey = "tcp/[2001:db8::10]:80".parse().unwrap();
        let mut live = Live::default();
        let new = server("[2001:db8:1::12]:8080");
        live.set_server(&file, key, new.address, Some(new));
        live.set_server(&file, key, file[0].servers[0].address, None);
        let running = live.apply(&file);
        assert_eq!(running[0].servers, [new]);
        assert_eq!(running[1], file[1], "what is another service's is not its");
    }

    #[test]
    fn new_services_and_servers_whose_addresses_are_for_something_else() {
        let full = |vip: &str, server: &str, local: &str| {
            let text = format!(
                "[[service]]\naddress = '{vip}:80'\nmode = 'fullnat'\nfullnat.local = ['{local}']\n\
                 [[service.server]]\naddress = '{server}:80'\n"
            );
            services(&text).remove(0)
        };
        let running = [full("192.0.2.10", "10.0.0.11", "10.0.0.100")];
        let ports = ["10.0.0.1".parse().unwrap()];
        for (vip, server, local, wrong) in [
            ("192.0.2.20", "10.0.0.11", "10.0.0.100", ""),
            ("192.0.2.10", "10.0.0.12", "10.0.0.101", "tcp/192.0.2.10:80 is there already"),
            (
                "192.0.2.20",
                "10.0.0.1",
                "10.0.0.101",
                "10.0.0.1 is this router itself; expected another machine with mode",
            ),
            ("192.0.2.20", "192.0.2.10", "10.0.0.101", "192.0.2.10 is a virtual address; expected another"),
            (
                "192.0.2.20",
                "10.0.0.100",
                "10.0.0.101",
                "10.0.0.100 is a local address for full NAT; expected",
            ),
            (
                "192.0.2.20",
                "10.0.0.12",
                "10.0.0.1",
                "10.0.0.1 is an address of this router; expected an address",
            ),
            ("192.0.2.20", "10.0.0.12", "192.0.2.10", "192.0.2.10 is a virtual address; expected an address"),
            ("192.0.2.20", "10.0.0.12", "10.0.0.11", "10.0.0.11 is a real server of tcp/192.0.2.10:80; "),
            ("10.0.0.11", "10.0.0.12", "10.0.0.101", "10.0.0.11 is a real server of tcp/192.0.2.10:80; "),
            ("10.0.0.100", "10.0.0.12", "10.0.0.101", "10.0.0.100 is a local address of tcp/192.0.2.10:80; "),
        ] {
            let judged = check_new_service(&running, &ports, &full(vip, server, local));
            let said = judged.map_err(|error| error.to_string()).err().unwrap_or_default();
            assert!(said.starts_with(wrong) && said.is_empty() == wrong.is_empty(), "{wrong}: {said}");
        }
        let local = Server { address: "10.0.0.100:80".parse().unwrap(), ..running[0].servers[0] };
        let error = check_new_server(&running, &ports, ServiceKey::of(&running[0]), &local).unwrap_err();
        assert_eq!(error.to_string(), "10.0.0.100 is a local address for full NAT; expected another machine");
    }

    #[test]
    fn a_new_service_is_not_where_a_tunnel_begins() {
        let of = |address: &str, source: &str| {
            services(&format!(
                "[[service]]\naddress = '{address}:80'\nmode = 'tunnel'\ntunnel = {{ source = '{source}' }}\n"
            ))
        };
        let running = of("192.0.2.10", "10.0.0.1");
        for (new, wrong) in [
            (of("192.0.2.20", "10.0.0.1"), None),
            (of("10.0.0.1", "10.0.0.2"), Some("10.0.0.1")),
            (of("192.0.2.20", "192.0.2.10"), Some("192.0.2.10")),
        ] {
            let judged = check_new_service(&running, &[], &new[0]).map_err(|error| error.to_string());
            let wrong = wrong.map(|address| {
                format!("{address} is a virtual address; expected an address of this router for itself")
            });
            assert_eq!(judged.err(), wrong);
        }
    }

    #[test]
    fn new_servers_that_a_service_cannot_have() {
        let file = services(SIX);
        let key = ServiceKey::of(&file[0]);
        let own = ["2001:db8:1::1".parse().unwrap()];
        let judged =
            |address| check_new_server(&file, &own, key, &server(address)).map_err(|e| e.to_string());
        assert_eq!([judged("[2001:db8:1::12]:8080"), judged("[2001:db8:1::1]:80")], [Ok(()), Ok(())]);
        for (address, wrong) in [
            ("[2001:db8:1::11]:8080", "has a server [2001:db8:1::11]:8080; expected another one"),
            (
                "[2001:db8:1::1]:8080",
                "2001:db8:1::1 is this router itself, which gets packets as they are; expected \"[2001:db8:1::1]:80\"",
            ),
            ("[2001:db8::20]:80", "2001:db8::20 is a virtual address; expected another machine"),
            ("10.0.0.11:80", "10.0.0.11 is an IPv4 address; expected an IPv6 address, as the service's"),
            ("[::1]:80", "::1 is a loopback address; expected ADDRESS:PORT"),
            (
                "[::ffff:10.0.0.11]:80",
                "::ffff:10.0.0.11 is an IPv4 address, to be written 10.0.0.11; expected",
            ),
            ("[2001:db8:1::12%3]:80", "\"2001:db8:1::12%3\" is not an IPv6 address; expected"),
            ("[2001:db8:1::12]:0", "port 0 is out of range; expected"),
        ] {
            let error = judged(address).unwrap_err();
            assert!(error.contains(wrong), "{address}: {error}");
        }
    }
}
