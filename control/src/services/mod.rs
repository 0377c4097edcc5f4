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
mod inherit;
pub mod live;
mod roster;
pub mod save;
pub mod settings;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use dataplane::service::{Mode, Protocol};
use foldhash::HashMap;
use tokio::time::Instant;

pub use self::inherit::Changes;
use self::roster::{Rosters, Standing};
use crate::config::{OnRemove, Server, ServerState, Service};
use crate::ids::{ServerKey, ServiceKey};
use live::{Live, server_of, service_of};

/// Services that are not changed any more. Mostly the file's are those that are running and present, and then all three
/// are one list: a hundred thousand servers are not copied without need.
pub type List = Arc<Vec<Service>>;

/// The services of the running program.
#[derive(Debug, Default)]
pub struct Services {
    file: List,
    live: Live,
    running: List,
    leaving: BTreeMap<(ServiceKey, SocketAddr), Leaving>,
    /// When drained servers are to be disabled.
    deadlines: BTreeMap<(ServiceKey, SocketAddr), Instant>,
    present: List,
    rosters: Rosters,
    /// What live services were added with.
    texts: BTreeMap<ServiceKey, String>,
}

/// What a file would make of the services; nothing has changed yet.
#[derive(Debug)]
pub struct Plan {
    file: List,
    live: Live,
    running: List,
    overruled: Vec<String>,
    /// What is running as it was when this was planned.
    basis: List,
}

/// What a plan depends on besides the file, for another thread to make it.
#[derive(Clone, Debug)]
pub struct Basis {
    live: Live,
    running: List,
}

impl Basis {
    /// What would come of it if the file were this.
    pub fn plan(self, file: List) -> Plan {
        let Basis { mut live, running: basis } = self;
        let overruled = live.outlive(&file);
        let running = live.apply(&file);
        Plan { file, live, running, overruled, basis }
    }
}

impl Plan {
    /// The services that would be wanted.
    pub fn running(&self) -> &[Service] {
        &self.running
    }

    /// Those that were wanted when this was planned.
    pub fn before(&self) -> &[Service] {
        &self.basis
    }

    /// The file's, for another plan.
    pub fn into_file(self) -> List {
        self.file
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
        let mut services = Services { file: Arc::new(file), ..Services::default() };
        services.running = services.file.clone();
        services.present = without_disabled(&services.running);
        services
    }

    /// The same with another key by which schedulers hash flows.
    pub fn with_flow_key(self, key: u64, now: Instant) -> Services {
        let mut services = Services { rosters: Rosters::new(key), ..self };
        services.rosters.settle(&services.running, now);
        services
    }

    /// Schedulers are to hash flows by this key from now on.
    pub fn hash_flows_by(&mut self, key: u64) {
        self.rosters.key = key;
    }

    /// The key by which schedulers hash flows.
    pub fn flow_key(&self) -> u64 {
        self.rosters.key
    }

    /// The rosters by which those connections of a service go that have no word, if there may be such.
    pub fn rosters(&self, service: ServiceKey) -> Option<&Standing> {
        self.rosters.of(service)
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
    pub fn present(&self) -> &List {
        &self.present
    }

    /// All that an operator may ask about: those that are wanted, and those that are leaving.
    pub fn listed(&self) -> List {
        self.with_leaving(self.running.clone())
    }

    /// Whether a server is not wanted any more.
    pub fn is_leaving(&self, service: ServiceKey, server: SocketAddr) -> bool {
        self.leaving.contains_key(&(service, server))
    }

    /// Whether a service is not wanted any more itself, and only there for servers that are leaving.
    pub fn is_gone(&self, service: &Service) -> bool {
        let key = ServiceKey::of(service);
        !service.servers.is_empty()
            && service.servers.iter().all(|server| self.is_leaving(key, server.address))
            && service_of(&self.running, key).is_none()
    }

    /// Whether connections of this server are to be reset.
    pub fn is_resetting(&self, service: ServiceKey, server: SocketAddr) -> bool {
        self.leaving.get(&(service, server)).is_some_and(|leaving| leaving.how == OnRemove::Reset)
    }

    /// Until when a server may keep its connections, if it is on its way out.
    pub fn deadline(&self, service: ServiceKey, server: SocketAddr) -> Option<Instant> {
        let key = (service, server);
        self.deadlines.get(&key).copied().or_else(|| self.leaving.get(&key).map(|leaving| leaving.until))
    }

    /// What a plan depends on now.
    pub fn basis(&self) -> Basis {
        Basis { live: self.live.clone(), running: self.running.clone() }
    }

    /// Whether nothing has changed since this was planned.
    pub fn fits(&self, plan: &Plan) -> bool {
        Arc::ptr_eq(&plan.basis, &self.running)
    }

    /// Puts a plan in force; which live changes the file has overruled.
    pub fn carry_out(&mut self, plan: Plan, now: Instant) -> Vec<String> {
        let Plan { file, live, running, overruled, .. } = plan;
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
        self.file = Arc::new(file);
        self.rebuild(now);
    }

    /// Sets or removes a server; see [`Live::set_server`]. With a deadline it is disabled then.
    pub fn set_server(
        &mut self,
        service: ServiceKey,
        address: SocketAddr,
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
    pub fn expire(&mut self, now: Instant, has_connections: impl Fn(ServiceKey, ServerKey) -> bool) -> bool {
        let before = self.leaving.len();
        let turns = self.rosters.is_due(now);
        if turns {
            self.rosters.settle(&self.running, now);
        }
        let rosters = &self.rosters;
        self.leaving.retain(|(service, address), leaving| {
            let server = ServerKey::of(&leaving.service, &leaving.server);
            leaving.until > now && (has_connections(*service, server) || rosters.has(*service, *address))
        });
        let due: Vec<_> =
            self.deadlines.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect();
        for &(service, address) in &due {
            self.deadlines.remove(&(service, address));
            let running = service_of(&self.running, service).and_then(|known| server_of(known, address));
            if let Some(server) = running.filter(|server| server.state == ServerState::Drained) {
                let server = Server { state: ServerState::Disabled, ..*server };
                self.live.set_server(&self.file, service, address, Some(server));
            }
        }
        let changed = turns || before != self.leaving.len() || !due.is_empty();
        if changed {
            self.rebuild(now);
        }
        changed
    }

    fn rebuild(&mut self, now: Instant) {
        self.adopt(self.live.apply(&self.file), now);
    }

    fn adopt(&mut self, running: List, now: Instant) {
        self.let_go(&running, now);
        self.settle(running, now);
    }

    /// What follows from what is wanted, and from who is leaving.
    fn settle(&mut self, running: List, now: Instant) {
        self.running = running;
        self.rosters.settle(&self.running, now);
        let running = &self.running;
        self.deadlines.retain(|(service, address), _| {
            let known = service_of(running, *service).and_then(|known| server_of(known, *address));
            known.is_some_and(|server| server.state == ServerState::Drained)
        });
        self.present = self.with_leaving(without_disabled(&self.running));
    }

    fn with_leaving(&self, mut list: List) -> List {
        if self.leaving.is_empty() {
            return list;
        }
        let services = Arc::make_mut(&mut list);
        let mut places: HashMap<ServiceKey, usize> = services.iter().map(ServiceKey::of).zip(0..).collect();
        for ((key, _), leaving) in &self.leaving {
            let at = *places.entry(*key).or_insert_with(|| {
                services.push(leaving.service.clone());
                services.len() - 1
            });
            // One that is disabled and has connections to be reset stands there already, in a listing.
            if server_of(&services[at], leaving.server.address).is_none() {
                services[at].servers.push(leaving.server);
            }
        }
        list
    }

    /// Servers that were wanted and are not any more leave as their service would have it; those that come back stay,
    /// and those that are disabled do not drain.
    fn let_go(&mut self, wanted: &[Service], now: Instant) {
        let wanted: HashMap<ServiceKey, &Service> =
            wanted.iter().map(|service| (ServiceKey::of(service), service)).collect();
        let may_leave = |service: Option<&Wanted>, server: SocketAddr, mode: Mode, how: OnRemove| {
            // Under another mode its connections are of no use.
            let replaced = service.is_some_and(|wanted| wanted.mode != mode);
            match service.and_then(|wanted| wanted.states.get(&server)) {
                _ if replaced => false,
                // Who disables a server, or has drained it until a deadline, wants it to end now.
                Some(ServerState::Disabled) => how == OnRemove::Reset,
                Some(_) => false,
                None => how != OnRemove::Drop,
            }
        };
        let leaving: BTreeSet<ServiceKey> = self.leaving.keys().map(|(service, _)| *service).collect();
        let known = leaving.into_iter().filter_map(|key| Some((key, Wanted::of(wanted.get(&key)?))));
        let known: HashMap<ServiceKey, Wanted> = known.collect();
        self.leaving.retain(|(service, server), leaving| {
            may_leave(known.get(service), *server, leaving.service.mode, leaving.how)
        });
        // UDP flows move on by their next packet.
        for service in self.running.iter().filter(|service| service.protocol == Protocol::Tcp) {
            let (key, how) = (ServiceKey::of(service), service.availability.on_remove);
            let wanted = wanted.get(&key);
            // The usual case: who is there stays.
            if wanted.is_some_and(|wanted| stays(service, wanted)) {
                continue;
            }
            let wanted = wanted.map(|wanted| Wanted::of(wanted));
            let served = |server: &&Server| server.state != ServerState::Disabled;
            for server in service.servers.iter().filter(served) {
                let key = (key, server.address);
                if self.leaving.contains_key(&key)
                    || !may_leave(wanted.as_ref(), server.address, service.mode, how)
                {
                    continue;
                }
                let leaving = Leaving {
                    service: Service { servers: Vec::new(), ..service.clone() },
                    server: Server { weight: 0, check: false, ..*server },
                    until: now + service.availability.drain,
                    how,
                };
                self.leaving.insert(key, leaving);
            }
        }
    }
}

fn without_disabled(running: &List) -> List {
    let is_disabled = |server: &Server| server.state == ServerState::Disabled;
    if !running.iter().any(|service| service.servers.iter().any(is_disabled)) {
        return running.clone();
    }
    let mut present = Vec::clone(running);
    for service in &mut present {
        service.servers.retain(|server| !is_disabled(server));
    }
    Arc::new(present)
}

/// What is wanted of a service, as far as it says which servers leave.
struct Wanted {
    mode: Mode,
    states: HashMap<SocketAddr, ServerState>,
}

impl Wanted {
    fn of(service: &Service) -> Wanted {
        let states = service.servers.iter().map(|server| (server.address, server.state)).collect();
        Wanted { mode: service.mode, states }
    }
}

/// Whether a service keeps all its servers as they are, but for their weights.
fn stays(old: &Service, new: &Service) -> bool {
    old.mode == new.mode
        && old.servers.len() == new.servers.len()
        && old
            .servers
            .iter()
            .zip(&new.servers)
            .all(|(was, is)| was.address == is.address && was.state == is.state)
}
