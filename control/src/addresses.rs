//! Which virtual addresses this router shows to others, and why not the rest.
//!
//! A virtual address is *withdrawn* when it must not be on its twin: an operator says so, or RVS ends, or this router does not know
//! yet what its peers know, so that clients would meet one that does not know their connections; or, if a routing
//! daemon announces what is there, its services could not serve. What comes for it all the same is forwarded; only
//! where somebody else places addresses is one that is not here Linux' own.
//!
//! Pure: what it leads to is the director's.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::{Service, VirtualAddresses};
use crate::ids::ServiceKey;

/// Why a virtual address is withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// RVS ends.
    Stopping,
    /// An operator has taken the router out of service.
    Router,
    /// An operator has taken the address out of service.
    Address,
    /// Peers know connections that this router does not know yet.
    Learning,
    /// Too few servers of a service at this address are live.
    Quorum(ServiceKey),
    /// All services at this address are removed, and only their connections are left.
    Removed,
    /// Somebody else places it, and has not placed it here.
    Elsewhere,
}

/// For a person, after "withdrawn: ".
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Stopping => f.write_str("rvs stops"),
            Reason::Router => f.write_str("this router is out of service (rvs withdraw)"),
            Reason::Address => f.write_str("out of service (rvs withdraw)"),
            Reason::Learning => f.write_str("still learning what peers know"),
            Reason::Quorum(service) => write!(f, "too few live servers of {service}"),
            Reason::Removed => f.write_str("its services are removed"),
            Reason::Elsewhere => f.write_str("nobody has put it on a twin here"),
        }
    }
}

/// Each virtual address, and why it is withdrawn if it is.
pub type Standings = BTreeMap<IpAddr, Option<Reason>>;

/// How an address stands, for a person.
pub fn shown(standing: Option<Reason>) -> String {
    standing.map_or_else(|| "announced".to_owned(), |reason| format!("withdrawn ({reason})"))
}

/// What has been ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// RVS is to end.
    pub stopping: bool,
    /// The whole router is out of service.
    pub router: bool,
    /// These addresses are.
    pub addresses: BTreeSet<IpAddr>,
}

/// What decides besides.
pub struct Situation<'a, Q> {
    /// Who places addresses.
    pub placed_by: VirtualAddresses,
    /// All services that packets are forwarded for.
    pub present: &'a [Service],
    /// Those that are wanted.
    pub running: &'a [Service],
    /// Whether enough servers of a service are live.
    pub has_quorum: Q,
    /// Whether this router knows what its peers know.
    pub is_ready: bool,
    /// The virtual addresses that are on a twin, if somebody else places them.
    pub held: &'a HashSet<IpAddr>,
}

impl Orders {
    /// How all virtual addresses stand.
    pub fn judge(&self, situation: &Situation<'_, impl Fn(ServiceKey) -> bool>) -> Standings {
        let &Situation { placed_by, present, running, is_ready, held, .. } = situation;
        let here = |address| (address, None);
        let mut standings: Standings =
            present.iter().flat_map(Service::virtual_addresses).map(here).collect();
        match placed_by {
            VirtualAddresses::Place => {}
            VirtualAddresses::Follow => {
                let elsewhere = standings.iter_mut().filter(|(address, _)| !held.contains(address));
                elsewhere.for_each(|(_, standing)| *standing = Some(Reason::Elsewhere));
            }
            VirtualAddresses::Announce => {
                standings.values_mut().for_each(|standing| *standing = Some(Reason::Removed));
                standings.extend(running.iter().flat_map(Service::virtual_addresses).map(here));
                // The first one in the file is named.
                for service in running.iter().rev() {
                    let key = ServiceKey::of(service);
                    if !(situation.has_quorum)(key) {
                        let lacks = |address| (address, Some(Reason::Quorum(key)));
                        standings.extend(service.virtual_addresses().map(lacks));
                    }
                }
            }
        }
        // Whoever places them asks whether this router is ready.
        if !is_ready && placed_by != VirtualAddresses::Follow {
            standings.values_mut().for_each(|standing| *standing = Some(Reason::Learning));
        }
        for (address, standing) in &mut standings {
            *standing = self.order(*address).or(*standing);
        }
        standings
    }

    fn order(&self, address: IpAddr) -> Option<Reason> {
        if self.stopping {
            Some(Reason::Stopping)
        } else if self.router {
            Some(Reason::Router)
        } else {
            self.addresses.contains(&address).then_some(Reason::Address)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::services::tests::services;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
    const B: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x20));

    /// Two services at A and one at B.
    fn three() -> Vec<Service> {
        let service = |address: &str| format!("[[service]]\naddress = '{address}'\nmode = 'nat'\n");
        services(&["192.0.2.10:80", "192.0.2.10:443", "[2001:db8::20]:80"].map(service).concat())
    }

    /// How A and B stand if these services are running, with the quorum of all but these ports' services.
    fn judged(
        orders: &Orders,
        placed_by: VirtualAddresses,
        running: &[Service],
        lost: &[u16],
        is_ready: bool,
    ) -> [String; 2] {
        let situation = Situation {
            placed_by,
            present: &three(),
            running,
            has_quorum: |key: ServiceKey| !lost.contains(&key.address.port()),
            is_ready,
            held: &[B].into(),
        };
        let standings = orders.judge(&situation);
        assert_eq!(standings.len(), 2);
        [A, B].map(|address| {
            standings[&address].map_or_else(|| "announced".to_owned(), |reason| reason.to_string())
        })
    }

    #[test]
    fn placed_unless_an_operator_or_the_end_says_otherwise() {
        let none = Orders::default();
        let place = |orders: &Orders| judged(orders, VirtualAddresses::Place, &[], &[80, 443], true);
        assert_eq!(place(&none), ["announced", "announced"]);
        let learning = judged(&none, VirtualAddresses::Place, &[], &[], false);
        assert_eq!(learning, ["still learning what peers know"; 2]);
        let one = Orders { addresses: [A].into(), ..none.clone() };
        assert_eq!(place(&one), ["out of service (rvs withdraw)", "announced"]);
        let router = Orders { router: true, ..one };
        assert_eq!(place(&router), ["this router is out of service (rvs withdraw)"; 2]);
        assert_eq!(place(&Orders { stopping: true, ..router }), ["rvs stops"; 2]);
    }

    #[test]
    fn announced_while_all_services_have_their_quorum() {
        let (none, all) = (Orders::default(), three());
        let announce = |running: &[Service], lost: &[u16], is_ready| {
            judged(&none, VirtualAddresses::Announce, running, lost, is_ready)
        };
        assert_eq!(announce(&all, &[], true), ["announced", "announced"]);
        assert_eq!(
            announce(&all, &[443], true),
            ["too few live servers of tcp/192.0.2.10:443", "announced"],
            "one of two is enough to lose it"
        );
        let lost =
            ["too few live servers of tcp/192.0.2.10:80", "too few live servers of tcp/[2001:db8::20]:80"];
        assert_eq!(announce(&all, &[80, 443], true), lost);
        assert_eq!(announce(&all[..2], &[], true), ["announced", "its services are removed"]);
        assert_eq!(announce(&all, &[80], false), ["still learning what peers know"; 2]);
    }

    #[test]
    fn followed_where_somebody_else_has_put_it() {
        let follow = |orders: &Orders| judged(orders, VirtualAddresses::Follow, &three(), &[80], true);
        assert_eq!(follow(&Orders::default()), ["nobody has put it on a twin here", "announced"]);
        let router = Orders { router: true, ..Orders::default() };
        assert_eq!(follow(&router), ["this router is out of service (rvs withdraw)"; 2]);
    }
}
