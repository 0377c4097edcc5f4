//! Which roster each service goes by of whose connections only those at risk have words, and which comes after it
//! ([`dataplane::scheduler::AtRisk`] has the why).
//!
//! A roster is what is configured: all servers of a service with their weights, whatever their health. One that is drained, disabled or of weight 0 stays
//! in it with the weight that it had. When the configuration gives another one, the old one goes on for as long as a connection may be
//! silent, and then for as long again after each further change, since who was silent during one may speak after the next.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use dataplane::scheduler::{FLOW_KEY, NextRoster, RosterMember, RosterSpec, Rosters as Specs};
use dataplane::service::{Protocol, Scheduler, State, Track};
use dataplane::table::DestId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::config::Service;
use crate::ids::ServiceKey;

/// Until the workers go by a snapshot, and for what stamps in words do not say.
const SLACK: Duration = Duration::from_secs(5);

/// Those of all services.
#[derive(Clone, Debug)]
pub(super) struct Rosters {
    /// By which flows are hashed.
    pub key: u64,
    services: BTreeMap<ServiceKey, Standing>,
}

/// A service's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    current: Roster,
    next: Option<Next>,
    /// How long a connection may be silent.
    patience: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Next {
    /// None if each connection is to have a word.
    roster: Option<Roster>,
    due: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Roster {
    scheduler: String,
    key: u64,
    servers: Vec<(SocketAddr, u32)>,
}

/// A service's, for another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    service: ServiceKey,
    current: Roster,
}

impl Default for Rosters {
    fn default() -> Self {
        Rosters::new(FLOW_KEY)
    }
}

impl Rosters {
    /// None yet, and flows hashed by this key.
    pub fn new(key: u64) -> Self {
        Rosters { key, services: BTreeMap::new() }
    }

    /// What follows from what is wanted now.
    pub fn settle(&mut self, wanted: &[Service], now: Instant) {
        let mut known = std::mem::take(&mut self.services);
        for service in wanted {
            let key = ServiceKey::of(service);
            let before = known.remove(&key);
            if before.is_none() && service.track == Track::All {
                continue;
            }
            // What goes another way is no connection of before.
            let before = before.filter(|_| service.mode.is_one_way());
            let wanted = Roster::of(service, self.key, before.as_ref());
            self.services.extend(Standing::after(before, wanted, patience(service), now).map(|is| (key, is)));
        }
        for (key, before) in known {
            let patience = before.patience;
            self.services.extend(Standing::after(Some(before), None, patience, now).map(|is| (key, is)));
        }
    }

    /// Whether the time of one has come.
    pub fn is_due(&self, now: Instant) -> bool {
        self.services.values().filter_map(|is| is.next.as_ref()).any(|next| next.due <= now)
    }

    /// A service's, if it has one.
    pub fn of(&self, service: ServiceKey) -> Option<&Standing> {
        self.services.get(&service)
    }

    /// Whether a server may have connections of which nothing is known.
    pub fn has(&self, service: ServiceKey, server: SocketAddr) -> bool {
        self.of(service).is_some_and(|is| is.current.weight_of(server).is_some())
    }

    /// What the program that this one becomes has to know.
    pub fn told(&self) -> Vec<Told> {
        let told = |(&service, is): (&ServiceKey, &Standing)| Told { service, current: is.current.clone() };
        self.services.iter().map(told).collect()
    }

    /// Begins with those of a predecessor: what has changed since is a change, for which the time is taken anew.
    pub fn inherit(&mut self, told: &[Told]) {
        let standing = |Told { service, current }: &Told| {
            let is = Standing { current: current.clone(), next: None, patience: Duration::ZERO };
            (*service, is)
        };
        self.services = told.iter().map(standing).collect();
    }
}

impl Standing {
    /// What becomes of one, or of none, if this roster is wanted.
    fn after(
        before: Option<Standing>,
        wanted: Option<Roster>,
        patience: Duration,
        now: Instant,
    ) -> Option<Standing> {
        let Some(Standing { current, next, .. }) = before else {
            // Until now each connection had a word.
            return Some(Standing { current: wanted?, next: None, patience });
        };
        if wanted.as_ref() == Some(&current) {
            return Some(Standing { current, next: None, patience });
        }
        match next.filter(|next| next.roster == wanted) {
            Some(next) if next.due <= now => Some(Standing { current: wanted?, next: None, patience }),
            Some(next) => Some(Standing { current, next: Some(next), patience }),
            None => {
                let next = Next { roster: wanted, due: now + patience + SLACK };
                Some(Standing { current, next: Some(next), patience })
            }
        }
    }

    /// For the packet path, where servers are numbers.
    pub fn specs(&self, number: impl Fn(SocketAddr) -> Option<DestId>) -> Specs {
        let next = match &self.next {
            None => NextRoster::Same,
            Some(Next { roster: Some(roster), .. }) => NextRoster::Other(roster.spec(&number)),
            Some(Next { roster: None, .. }) => NextRoster::Nothing,
        };
        Specs { current: self.current.spec(&number), next }
    }
}

impl Roster {
    /// A service's, if it has one; `before` knows the weights that it does not say.
    fn of(service: &Service, key: u64, before: Option<&Standing>) -> Option<Roster> {
        if service.track == Track::All {
            return None;
        }
        let next = before.and_then(|before| before.next.as_ref()?.roster.as_ref());
        let known = [next, before.map(|before| &before.current)];
        let had = |server| known.into_iter().flatten().find_map(|roster: &Roster| roster.weight_of(server));
        let servers = service.servers.iter().filter_map(|server| match server.weight {
            0 => Some((server.address, had(server.address)?)),
            weight => Some((server.address, weight)),
        });
        let mut servers: Vec<_> = servers.collect();
        // Their order is nothing that flows depend on.
        servers.sort_unstable();
        Some(Roster { scheduler: service.scheduler.name().to_owned(), key, servers })
    }

    fn weight_of(&self, server: SocketAddr) -> Option<u32> {
        let place = self.servers.binary_search_by_key(&server, |&(address, _)| address).ok()?;
        Some(self.servers[place].1)
    }

    fn spec(&self, number: impl Fn(SocketAddr) -> Option<DestId>) -> RosterSpec {
        let member =
            |&(address, weight): &(SocketAddr, u32)| RosterMember { address, weight, dest: number(address) };
        RosterSpec {
            scheduler: Scheduler::from_name(&self.scheduler).unwrap_or(Scheduler::Maglev),
            key: self.key,
            members: self.servers.iter().map(member).collect(),
        }
    }
}

/// How long a connection of a service may be silent.
fn patience(service: &Service) -> Duration {
    let states = State::of_protocol(Protocol::Tcp);
    let longest = states.map(|state| service.timeouts.0[state as usize]).max().unwrap_or(0);
    Duration::from_secs(longest.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::services;

    const MINUTE: Duration = Duration::from_secs(60);

    fn file(servers: &[(u8, u32)], keys: &str) -> Vec<Service> {
        let servers: String = servers
            .iter()
            .map(|(n, weight)| format!("[[service.server]]\naddress = '10.0.0.{n}'\nweight = {weight}\n"))
            .collect();
        services(&format!("[[service]]\naddress = '192.0.2.10:80'\nmode = 'dr'\n{keys}\n{servers}"))
    }

    const AT_RISK: &str = "track = 'at-risk'";

    /// Weights by the current roster, and by the next one, if there is one.
    fn shown(rosters: &Rosters) -> (Vec<u32>, Option<Vec<u32>>) {
        let weights = |spec: &RosterSpec| spec.members.iter().map(|member| member.weight).collect();
        let key = "tcp/192.0.2.10:80".parse().unwrap();
        let specs = rosters.of(key).unwrap().specs(|_| None);
        let next = match &specs.next {
            NextRoster::Same => None,
            NextRoster::Other(next) => Some(weights(next)),
            NextRoster::Nothing => Some(Vec::new()),
        };
        (weights(&specs.current), next)
    }

    #[test]
    fn what_is_no_change_of_the_roster_and_what_is() {
        let (mut rosters, now) = (Rosters::default(), Instant::now());
        let mut settle = |servers: &[(u8, u32)]| {
            rosters.settle(&file(servers, AT_RISK), now);
            shown(&rosters)
        };
        assert_eq!(settle(&[(1, 1), (2, 3)]), (vec![1, 3], None));
        assert_eq!(settle(&[(2, 0), (1, 1)]), (vec![1, 3], None), "drained, and in another order");
        assert_eq!(settle(&[(1, 1), (2, 3), (3, 0)]), (vec![1, 3], None), "it never had any");
        assert_eq!(settle(&[(1, 1), (2, 4)]), (vec![1, 3], Some(vec![1, 4])));
        assert_eq!(settle(&[(1, 1), (2, 0)]), (vec![1, 3], Some(vec![1, 4])));
        assert_eq!(settle(&[(1, 1)]), (vec![1, 3], Some(vec![1])));
        assert_eq!(settle(&[(1, 1), (2, 3)]), (vec![1, 3], None), "as it was");
    }

    #[test]
    fn the_old_one_goes_on_until_everybody_has_been_heard_since_the_last_change() {
        let (mut rosters, start) = (Rosters::default(), Instant::now());
        let mut settle = |servers: &[(u8, u32)], minutes| {
            rosters.settle(&file(servers, AT_RISK), start + minutes * MINUTE);
            shown(&rosters)
        };
        settle(&[(1, 1)], 0);
        let (two, three) = ([(1, 1), (2, 1)], [(1, 1), (2, 1), (3, 1)]);
        assert_eq!(settle(&two, 1), (vec![1], Some(vec![1, 1])));
        assert_eq!(settle(&two, 15), (vec![1], Some(vec![1, 1])));
        assert_eq!(settle(&three, 15), (vec![1], Some(vec![1, 1, 1])));
        assert_eq!(settle(&three, 29), (vec![1], Some(vec![1, 1, 1])));
        assert_eq!(settle(&three, 31), (vec![1, 1, 1], None));
    }

    #[test]
    fn a_service_comes_to_have_one_at_once_and_to_have_none_after_a_while() {
        let (mut rosters, start) = (Rosters::default(), Instant::now());
        let key = "tcp/192.0.2.10:80".parse().unwrap();
        let (all, at_risk) = (file(&[(1, 1)], ""), file(&[(1, 1)], AT_RISK));
        rosters.settle(&all, start);
        assert!(rosters.of(key).is_none());
        rosters.settle(&at_risk, start);
        assert_eq!(shown(&rosters), (vec![1], None));
        rosters.settle(&all, start);
        assert_eq!(shown(&rosters), (vec![1], Some(Vec::new())));
        assert!(!rosters.is_due(start + 15 * MINUTE) && rosters.is_due(start + 16 * MINUTE));
        rosters.settle(&all, start + 16 * MINUTE);
        assert!(rosters.of(key).is_none());

        rosters.settle(&at_risk, start);
        rosters.settle(&[], start);
        let server = "10.0.0.1:80".parse().unwrap();
        assert!(rosters.has(key, server));
        rosters.settle(&[], start + 16 * MINUTE);
        assert!(!rosters.has(key, server));
    }

    #[test]
    fn the_next_program_goes_on_with_it() {
        let (mut rosters, now) = (Rosters::default(), Instant::now());
        rosters.settle(&file(&[(1, 1), (2, 1)], AT_RISK), now);
        rosters.settle(&file(&[(1, 1), (2, 0), (3, 1)], AT_RISK), now);
        let told = serde_json::to_string(&rosters.told()).unwrap();
        let mut next = Rosters::default();
        next.inherit(&serde_json::from_str::<Vec<Told>>(&told).unwrap());
        next.settle(&file(&[(1, 1), (2, 0), (3, 1)], AT_RISK), now);
        assert_eq!(shown(&next), (vec![1, 1], Some(vec![1, 1, 1])));
    }
}
