//! From what the checks say of servers to what the workers do with them: damping, slow start, quorum, sorry server.
//!
//! ```text
//!   checks -> [damping] -> up, down -> [quorum] -> servers, or the sorry server -> [slow start] -> weights
//! ```
//!
//! Pure: the time is an argument, and what it leads to is told, not done.

mod damping;
mod quorum;
mod slow_start;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::net::SocketAddr;

use foldhash::{HashMap, HashSet};
use tokio::time::Instant;

use dataplane::service::Scheduler;

use crate::config::{OnDown, Server, ServerState, Service};
use crate::ids::ServiceKey;
use damping::Flaps;
use slow_start::Ramp;

/// What a server is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duty {
    /// Its share of new connections.
    pub weight: u32,
    /// By how much all weights of its service are multiplied, so that a fraction of one can be told.
    pub scale: u32,
    /// Whether connections that could begin anew may stay with it.
    pub up: bool,
    /// Whether it is one of those among whom new connections are spread: the servers, or in their place the sorry server.
    pub listed: bool,
}

/// What the checks say of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether all have passed.
    pub up: bool,
    /// The weight that one of them asks for.
    pub weight: Option<u32>,
}

/// Something that hooks and followers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A server has come up or gone down.
    Server {
        /// Its service.
        service: ServiceKey,
        /// Its address.
        server: SocketAddr,
        /// Which of the two.
        up: bool,
    },
    /// Its checks pass, but it has gone down too often lately.
    Held {
        /// Its service.
        service: ServiceKey,
        /// Its address.
        server: SocketAddr,
        /// Until when it stays out.
        until: Instant,
    },
    /// A service has gained or lost its quorum.
    Quorum {
        /// The service.
        service: ServiceKey,
        /// Which of the two.
        up: bool,
        /// The sum of the weights of the servers that are up.
        weight: u64,
    },
}

/// What all servers are to do.
#[derive(Debug, Default)]
pub struct Effects {
    services: HashMap<ServiceKey, ServiceEffects>,
}

#[derive(Debug, Default)]
struct ServiceEffects {
    /// None before it was judged for the first time.
    quorum: Option<bool>,
    servers: HashMap<SocketAddr, ServerEffects>,
}

#[derive(Debug)]
struct ServerEffects {
    up: bool,
    flaps: Flaps,
    ramp: Option<Ramp>,
    duty: Duty,
}

impl Effects {
    /// Judges all servers of these services anew; what has happened, and when to judge again, if nothing happens until
    /// then.
    pub fn judge(
        &mut self,
        services: &[Service],
        health: impl Fn(&Service, &Server) -> Health,
        now: Instant,
    ) -> (Vec<Happening>, Option<Instant>) {
        let mut happenings = Vec::new();
        let mut next = None;
        let mut known = std::mem::take(&mut self.services);
        for service in services {
            let key = ServiceKey::of(service);
            let mut effects = known.remove(&key).unwrap_or_default();
            let again = effects.judge(key, service, &health, now, &mut happenings);
            next = next.into_iter().chain(again).min();
            self.services.insert(key, effects);
        }
        (happenings, next)
    }

    /// What a server is to do.
    pub fn duty(&self, service: ServiceKey, server: SocketAddr) -> Duty {
        self.duties(service).of(server)
    }

    /// What the servers of a service are to do.
    pub fn duties(&self, service: ServiceKey) -> Duties<'_> {
        Duties(self.services.get(&service))
    }

    /// Whether a server takes part, as far as its checks and damping go.
    pub fn is_up(&self, service: ServiceKey, server: SocketAddr) -> bool {
        let known = self.services.get(&service).and_then(|effects| effects.servers.get(&server));
        known.is_some_and(|known| known.up)
    }

    /// Whether the servers of a service that are up are enough.
    pub fn has_quorum(&self, service: ServiceKey) -> bool {
        self.services.get(&service).is_some_and(|effects| effects.quorum == Some(true))
    }

    /// Until when a server is held down for having gone down too often.
    pub fn held(&self, service: ServiceKey, server: SocketAddr) -> Option<Instant> {
        self.services.get(&service)?.servers.get(&server)?.flaps.held()
    }
}

/// What the servers of a service are to do.
#[derive(Clone, Copy, Debug)]
pub struct Duties<'a>(Option<&'a ServiceEffects>);

impl Duties<'_> {
    /// One that nobody has judged does nothing.
    pub fn of(&self, server: SocketAddr) -> Duty {
        let known = self.0.and_then(|effects| effects.servers.get(&server));
        known.map_or(Duty { weight: 0, scale: 1, up: false, listed: false }, |known| known.duty)
    }
}

impl ServiceEffects {
    fn judge(
        &mut self,
        key: ServiceKey,
        service: &Service,
        health: &impl Fn(&Service, &Server) -> Health,
        now: Instant,
        happenings: &mut Vec<Happening>,
    ) -> Option<Instant> {
        let rules = &service.availability;
        let mut next: Option<Instant> = None;
        let mut wake = |at: Option<Instant>| next = next.into_iter().chain(at).min();
        // A service that is new begins with all its servers at once.
        let begins = self.quorum.is_none();
        let mut weights = Vec::with_capacity(service.servers.len());
        let mut live = 0;
        let mut ramps = false;
        for server in &service.servers {
            let said = health(service, server);
            let (effects, new) = match self.servers.entry(server.address) {
                Entry::Occupied(known) => (known.into_mut(), false),
                Entry::Vacant(free) => (free.insert(ServerEffects::new(said.up)), true),
            };
            let was = effects.up;
            let held_before = effects.flaps.held();
            effects.up = effects.flaps.judge(said.up, was, rules.damping.as_ref(), now);
            if effects.up != was {
                let (service, server) = (key, server.address);
                happenings.push(Happening::Server { service, server, up: effects.up });
            }
            if let Some(until) = effects.flaps.held() {
                wake(Some(until));
                if held_before.is_none() {
                    happenings.push(Happening::Held { service: key, server: server.address, until });
                }
            }
            let comes = effects.up && (!was || new) && !begins;
            let slowly = !rules.slow_start.is_zero() && grows(service.scheduler);
            if comes && slowly {
                effects.ramp = Some(Ramp::new(now, rules.slow_start));
            }
            effects.ramp = effects.ramp.filter(|ramp| effects.up && slowly && !ramp.is_over(now));
            let weight = said.weight.unwrap_or(server.weight);
            let weight = if server.state == ServerState::Enabled { weight } else { 0 };
            live += if effects.up { u64::from(weight) } else { 0 };
            ramps |= effects.ramp.is_some();
            weights.push(weight);
        }
        let has = quorum::judge(self.quorum, live, rules.quorum, rules.hysteresis);
        if self.quorum.is_some_and(|had| had != has) {
            happenings.push(Happening::Quorum { service: key, up: has, weight: live });
        }
        self.quorum = Some(has);
        // Without a server to be sorry, those that are left do what they can.
        let sorry = !has && rules.sorry_server.is_some();
        let scale = if ramps { slow_start::scale(&weights) } else { 1 };
        for (server, weight) in service.servers.iter().zip(weights) {
            let Some(effects) = self.servers.get_mut(&server.address) else { continue };
            wake(effects.ramp.map(|ramp| ramp.next(now)));
            let share = effects.ramp.map_or(weight * scale, |ramp| ramp.weight(weight * scale, now));
            let quiesces = rules.on_down == OnDown::Quiesce;
            effects.duty = Duty {
                weight: if effects.up && !sorry { share } else { 0 },
                scale,
                up: effects.up || quiesces,
                listed: !sorry,
            };
        }
        if let Some(address) = rules.sorry_server {
            let mut effects = ServerEffects::new(true);
            (effects.duty.weight, effects.duty.listed) = (u32::from(sorry), sorry);
            self.servers.insert(address, effects);
        }
        if self.servers.len() > service.servers.len() + usize::from(rules.sorry_server.is_some()) {
            let servers = service.servers.iter().map(|server| server.address);
            let present: HashSet<SocketAddr> = servers.chain(rules.sorry_server).collect();
            self.servers.retain(|address, _| present.contains(address));
        }
        next
    }
}

/// Whether a server's weight can grow with this scheduler. With sh and dh every change of a weight deals the clients of all
/// servers anew, so with them who comes up gets its clients back at once.
fn grows(scheduler: Scheduler) -> bool {
    !matches!(scheduler, Scheduler::Sh | Scheduler::Dh)
}

impl ServerEffects {
    fn new(up: bool) -> Self {
        let duty = Duty { weight: 0, scale: 1, up, listed: true };
        ServerEffects { up, flaps: Flaps::default(), ramp: None, duty }
    }
}
