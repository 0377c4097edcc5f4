//! Which services there are now: what the file says, what was changed live, and what is on its way out.
//!
//! ```text
//!   file --------+
//!   live changes +--> running ---+
//!   leaving servers -------------+--> present --> compile
//! ```
//!
//! Pure: the time is an argument, and whoever changes something publishes it.

pub mod diff;
pub mod live;
pub mod save;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddrV4;

use dataplane::service::{Mode, Protocol};
use tokio::time::Instant;

use crate::config::{OnRemove, Server, ServerState, Service};
use crate::ids::{ServerKey, ServiceKey};
use live::{Live, server_of, service_of};

/// The services of the running program.
#[derive(Debug, Default)]
pub struct Services {
    file: Vec<Service>,
    live: Live,
    running: Vec<Service>,
    leaving: BTreeMap<(ServiceKey, SocketAddrV4), Leaving>,
    /// When drained servers are to be disabled.
    deadlines: BTreeMap<(ServiceKey, SocketAddrV4), Instant>,
    present: Vec<Service>,
    /// What live services were added with.
    texts: BTreeMap<ServiceKey, String>,
}

/// What a file would make of the services; nothing has changed yet.
#[derive(Debug)]
pub struct Plan {
    file: Vec<Service>,
    live: Live,
    running: Vec<Service>,
    overruled: Vec<String>,
}

impl Plan {
    /// The services that would be wanted.
    pub fn running(&self) -> &[Service] {
        &self.running
    }
}

/// A server that is no longer wanted and still has connections.
#[derive(Clone, Debug)]
struct Leaving {
    /// Its service, without servers.
    service: Service,
    server: Server,
    until: Instant,
    how: OnRemove,
}

impl Services {
    /// Those of a file.
    pub fn new(file: Vec<Service>) -> Services {
        Services { running: file.clone(), present: file.clone(), file, ..Services::default() }
    }

    /// As the file had them when it was read.
    pub fn file(&self) -> &[Service] {
        &self.file
    }

    /// As they are wanted now: the file with all live changes.
    pub fn running(&self) -> &[Service] {
        &self.running
    }

    /// All that packets have to be forwarded for: those that are wanted, but for disabled servers, and those that are
    /// leaving, which have the weight 0.
    pub fn present(&self) -> &[Service] {
        &self.present
    }

    /// All that an operator may ask about: those that are wanted, and those that are leaving.
    pub fn listed(&self) -> Vec<Service> {
        self.with_leaving(self.running.clone())
    }

    /// Whether a server is not wanted any more.
    pub fn is_leaving(&self, service: ServiceKey, server: SocketAddrV4) -> bool {
        self.leaving.contains_key(&(service, server))
    }

    /// Whether connections of this server are to be reset.
    pub fn is_resetting(&self, service: ServiceKey, server: SocketAddrV4) -> bool {
        self.leaving.get(&(service, server)).is_some_and(|leaving| leaving.how == OnRemove::Reset)
    }

    /// Until when a server may keep its connections, if it is on its way out.
    pub fn deadline(&self, service: ServiceKey, server: SocketAddrV4) -> Option<Instant> {
        let key = (service, server);
        self.deadlines.get(&key).copied().or_else(|| self.leaving.get(&key).map(|leaving| leaving.until))
    }

    /// What would come of it if the file were this.
    pub fn plan(&self, file: Vec<Service>) -> Plan {
        let mut live = self.live.clone();
        let overruled = live.outlive(&file);
        let running = live.apply(&file);
        Plan { file, live, running, overruled }
    }

    /// Puts a plan in force; which live changes the file has overruled.
    pub fn carry_out(&mut self, plan: Plan, now: Instant) -> Vec<String> {
        let Plan { file, live, running, overruled } = plan;
        (self.file, self.live) = (file, live);
        let live = &self.live;
        self.texts.retain(|key, _| live.names(key));
        self.adopt(running, now);
        overruled
    }

    /// The text that a service was added with, if it was added live.
    pub fn text_of(&self, key: ServiceKey) -> Option<String> {
        self.texts.get(&key).cloned()
    }

    /// The file now says what is running.
    pub fn saved(&mut self, file: Vec<Service>, now: Instant) {
        self.live.clear();
        self.texts.clear();
        self.file = file;
        self.rebuild(now);
    }

    /// Sets or removes a server; see [`Live::set_server`]. With a deadline it is disabled then.
    pub fn set_server(
        &mut self,
        service: ServiceKey,
        address: SocketAddrV4,
        server: Option<Server>,
        deadline: Option<Instant>,
        now: Instant,
    ) {
        self.live.set_server(&self.file, service, address, server);
        match deadline {
            Some(deadline) => self.deadlines.insert((service, address), deadline),
            None => self.deadlines.remove(&(service, address)),
        };
        self.rebuild(now);
    }

    /// Adds a service, with the text that says so in a file, or removes one.
    pub fn set_service(&mut self, key: ServiceKey, service: Option<(Service, String)>, now: Instant) {
        let (service, text) = service.unzip();
        match text {
            Some(text) => self.texts.insert(key, text),
            None => self.texts.remove(&key),
        };
        self.live.set_service(&self.file, key, service);
        self.rebuild(now);
    }

    /// Lets go of servers whose time has come, or whose connections have ended; whether there were any.
    pub fn expire(&mut self, now: Instant, connections: impl Fn(ServiceKey, ServerKey) -> u64) -> bool {
        let before = self.leaving.len();
        self.leaving.retain(|(service, _), leaving| {
            leaving.until > now && connections(*service, ServerKey::of(&leaving.service, &leaving.server)) > 0
        });
        let due: Vec<_> =
            self.deadlines.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect();
        for &(service, address) in &due {
            self.deadlines.remove(&(service, address));
            let running = service_of(&self.running, service).and_then(|known| server_of(known, address));
            if let Some(server) = running.filter(|server| server.state == ServerState::Drained) {
                let server = Server { state: ServerState::Disabled, ..server.clone() };
                self.live.set_server(&self.file, service, address, Some(server));
            }
        }
        let changed = before != self.leaving.len() || !due.is_empty();
        if changed {
            self.rebuild(now);
        }
        changed
    }

    fn rebuild(&mut self, now: Instant) {
        self.adopt(self.live.apply(&self.file), now);
    }

    fn adopt(&mut self, running: Vec<Service>, now: Instant) {
        self.let_go(&running, now);
        self.running = running;
        let running = &self.running;
        self.deadlines.retain(|(service, address), _| {
            let known = service_of(running, *service).and_then(|known| server_of(known, *address));
            known.is_some_and(|server| server.state == ServerState::Drained)
        });
        let mut present = self.running.clone();
        for service in &mut present {
            service.servers.retain(|server| server.state != ServerState::Disabled);
        }
        self.present = self.with_leaving(present);
    }

    fn with_leaving(&self, mut services: Vec<Service>) -> Vec<Service> {
        for ((key, _), leaving) in &self.leaving {
            let at = match services.iter().position(|service| ServiceKey::of(service) == *key) {
                Some(at) => at,
                None => {
                    services.push(leaving.service.clone());
                    services.len() - 1
                }
            };
            // One that is disabled and has connections to be reset stands there already, in a listing.
            if server_of(&services[at], leaving.server.address).is_none() {
                services[at].servers.push(leaving.server.clone());
            }
        }
        services
    }

    /// Servers that were wanted and are not any more leave as their service would have it; those that come back stay,
    /// and those that are disabled do not drain.
    fn let_go(&mut self, wanted: &[Service], now: Instant) {
        let modes: HashMap<ServiceKey, Mode> =
            wanted.iter().map(|service| (ServiceKey::of(service), service.mode)).collect();
        let named = |service: &Service| {
            let key = ServiceKey::of(service);
            let name = |server: &Server| ((key, server.address), server.state);
            service.servers.iter().map(name).collect::<Vec<_>>()
        };
        let states: HashMap<(ServiceKey, SocketAddrV4), ServerState> =
            wanted.iter().flat_map(named).collect();
        let may_leave = |key: (ServiceKey, SocketAddrV4), mode: Mode, how: OnRemove| {
            // Under another mode its connections are of no use.
            let replaced = modes.get(&key.0).is_some_and(|wanted| *wanted != mode);
            match states.get(&key) {
                _ if replaced => false,
                // Who disables a server, or has drained it until a deadline, wants it to end now.
                Some(ServerState::Disabled) => how == OnRemove::Reset,
                Some(_) => false,
                None => how != OnRemove::Drop,
            }
        };
        self.leaving.retain(|key, leaving| may_leave(*key, leaving.service.mode, leaving.how));
        // UDP flows move on by their next packet.
        for service in self.running.iter().filter(|service| service.protocol == Protocol::Tcp) {
            let (key, how) = (ServiceKey::of(service), service.availability.on_remove);
            let served = |server: &&Server| server.state != ServerState::Disabled;
            for server in service.servers.iter().filter(served) {
                let key = (key, server.address);
                if self.leaving.contains_key(&key) || !may_leave(key, service.mode, how) {
                    continue;
                }
                let leaving = Leaving {
                    service: Service { servers: Vec::new(), ..service.clone() },
                    server: Server { weight: 0, check: false, ..server.clone() },
                    until: now + service.availability.drain,
                    how,
                };
                self.leaving.insert(key, leaving);
            }
        }
    }
}
