//! The mirror, and what a netlink message does to it: a pure function.
//!
//! Linux does not announce everything that it forgets. These it leaves to the listener to know
//! (`net/ipv4/fib_frontend.c`, `fib_semantics.c`), and the mirror answers by asking for a dump:
//!
//! * a link goes down or away: its routes are flushed without a word, next hops of multipath routes die;
//! * a link comes up: such next hops live again;
//! * an address goes: routes that prefer it as source are flushed, with the last one of a link all of its routes;
//! * a route is replaced: the event names the new one only. As long as the old one is the only one of its prefix
//!   and metric it is clear which it was.
//!
//! A multipath route of IPv4 is one thing: it comes, is replaced and goes as a whole. That of IPv6 is a flock of routes of one
//! prefix and metric (`net/ipv6/ip6_fib.c`): each next hop may come and go alone, so each is a route of the mirror.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::NLM_F_REPLACE;

/// What Linux knows that the data path needs: of both families, and of the main routing table.
///
/// Link-local addresses of IPv6, and routes to them, are left out: no client's packet is to or from them. Neighbours with such
/// addresses are here, since gateways have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses: index of the interface, address, prefix length.
    pub addresses: BTreeSet<(u32, IpAddr, u8)>,
    /// Unicast routes.
    pub routes: BTreeSet<Route>,
    /// Neighbours that can be sent to, by interface and address. Whether Linux has confirmed one lately or is
    /// about to (REACHABLE, STALE, DELAY, PROBE) is its own affair: the MAC holds until it says otherwise.
    pub neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
    /// Those of them that need no resolving (permanent ones, as an operator adds, and those of links without
    /// ARP or ND). To ask Linux for one would make it an ordinary one.
    pub fixed: BTreeSet<(u32, IpAddr)>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Set up by the administrator (`IFF_UP`). Carrier does not count: routes stay without it, and for a twin it
    /// says nothing about the port.
    pub up: bool,
    /// Its MAC, where it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its MTU.
    pub mtu: u32,
}

/// A unicast route of the main table.
///
/// Of a multipath route of IPv4 this is the first next hop that is not dead, of IPv6 one of those: the data path does not
/// spread over several. A route that the data path cannot follow (blackhole, unreachable and prohibit; by an encapsulation, or
/// through a gateway of the other family) is kept with the interface 0, lest a less specific one be followed instead. Left out
/// are routes for a type of service or, of IPv6, for some sources only (`ip -6 route add ... from`), and `throw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Network.
    pub destination: IpAddr,
    /// Its prefix length.
    pub length: u8,
    /// The lower of two routes to one network wins.
    pub metric: u32,
    /// Interface it leads out of; 0: none.
    pub ifindex: u32,
    /// Next hop; none: the destination itself is on the link.
    pub gateway: Option<IpAddr>,
}

/// What kind of thing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Neighbours, and nothing else.
    Neighbours,
    /// Links, addresses or routes, and perhaps neighbours.
    Other,
}

/// What a message did to the mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// Something in the mirror is not what it was.
    pub(super) change: Option<Change>,
    /// Linux forgot more than it said: only a dump tells.
    pub(super) stale: bool,
}

impl Effect {
    const NOTHING: Effect = Effect { change: None, stale: false };

    fn other_if(changed: bool) -> Effect {
        Effect { change: changed.then_some(Change::Other), stale: false }
    }
}

impl Mirror {
    /// Applies one event, or one message of a dump. `flags` are those of the netlink header.
    ///
    /// Idempotent, and whatever a message is about it replaces as a whole: events older than a dump may be applied
    /// after it, in order, and the outcome is that of the last.
    pub(super) fn apply(&mut self, flags: u16, message: &RouteNetlinkMessage) -> Effect {
        match message {
            RouteNetlinkMessage::NewLink(link) => self.new_link(link),
            RouteNetlinkMessage::DelLink(link) => self.del_link(link),
            RouteNetlinkMessage::NewAddress(address) => match parse_address(address) {
                Some(key) => Effect::other_if(self.addresses.insert(key)),
                None => Effect::NOTHING,
            },
            RouteNetlinkMessage::DelAddress(address) => match parse_address(address) {
                Some(key) if self.addresses.remove(&key) => {
                    Effect { change: Some(Change::Other), stale: true }
                }
                _ => Effect::NOTHING,
            },
            RouteNetlinkMessage::NewRoute(route) => self.new_route(flags, route),
            RouteNetlinkMessage::DelRoute(route) => self.del_route(route),
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.neighbour(neighbour, false),
            RouteNetlinkMessage::DelNeighbour(neighbour) => self.neighbour(neighbour, true),
            _ => Effect::NOTHING,
        }
    }

    /// What differs from another mirror.
    pub(super) fn difference(&self, other: &Mirror) -> Option<Change> {
        let same =
            self.links == other.links && self.addresses == other.addresses && self.routes == other.routes;
        match same {
            false => Some(Change::Other),
            true => (self.neighbours != other.neighbours).then_some(Change::Neighbours),
        }
    }

    fn new_link(&mut self, message: &LinkMessage) -> Effect {
        if !is_link(message) {
            return Effect::NOTHING;
        }
        let index = message.header.index;
        let old = self.links.get(&index);
        // An event need not carry every attribute: what is not said stays.
        let mut new = old.cloned().unwrap_or_default();
        new.up = message.header.flags.contains(LinkFlags::Up);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => new.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => new.mtu = *mtu,
                LinkAttribute::Address(mac) => new.mac = mac.as_slice().try_into().ok(),
                _ => {}
            }
        }
        let changed = old != Some(&new);
        let stale = old.is_some_and(|old| old.up != new.up);
        self.links.insert(index, new);
        Effect { change: changed.then_some(Change::Other), stale }
    }

    fn del_link(&mut self, message: &LinkMessage) -> Effect {
        if is_link(message) && self.links.remove(&message.header.index).is_some() {
            return Effect { change: Some(Change::Other), stale: true };
        }
        Effect::NOTHING
    }

    fn new_route(&mut self, flags: u16, message: &RouteMessage) -> Effect {
        let Some(key) = RouteKey::parse(message) else {
            return Effect::NOTHING;
        };
        let mut changed = false;
        let routes = key.routes(message);
        if flags & NLM_F_REPLACE != 0 {
            let rivals: Vec<Route> = self.routes.range(key.range()).copied().collect();
            // What replaces a route of ours need not count itself: its next hops may be dead.
            match rivals.iter().find(|rival| !routes.contains(rival)) {
                None => {}
                Some(old) if rivals.len() == 1 => changed = self.routes.remove(old),
                Some(_) => return Effect { change: None, stale: true },
            }
        }
        for route in routes {
            changed |= self.routes.insert(route);
        }
        Effect::other_if(changed)
    }

    fn del_route(&mut self, message: &RouteMessage) -> Effect {
        let Some(key) = RouteKey::parse(message) else {
            return Effect::NOTHING;
        };
        let removed = key.routes(message).iter().filter(|route| self.routes.remove(route)).count();
        if removed > 0 {
            return Effect::other_if(true);
        }
        // Of a multipath route another next hop may have been the first one alive when it was learnt.
        let multipath = message.attributes.iter().any(|a| matches!(a, RouteAttribute::MultiPath(_)));
        Effect { change: None, stale: multipath && self.routes.range(key.range()).next().is_some() }
    }

    fn neighbour(&mut self, message: &NeighbourMessage, deleted: bool) -> Effect {
        let header = &message.header;
        let is_ip = matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6);
        if !is_ip || header.flags.contains(NeighbourFlags::Proxy) {
            return Effect::NOTHING;
        }
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    address = Some(IpAddr::V4(*ip))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    address = Some(IpAddr::V6(*ip))
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
                _ => {}
            }
        }
        // Linux' own groups, each with the MAC that its address makes, are neighbours of nobody.
        let Some(address) = address.filter(|address| !address.is_multicast()) else {
            return Effect::NOTHING;
        };
        let key = (header.ifindex, address);
        if !deleted && needs_no_resolving(header.state) {
            self.fixed.insert(key);
        } else {
            self.fixed.remove(&key);
        }
        let changed = match mac.filter(|_| !deleted && is_usable(header.state)) {
            Some(mac) => self.neighbours.insert(key, mac) != Some(mac),
            None => self.neighbours.remove(&key).is_some(),
        };
        Effect { change: changed.then_some(Change::Neighbours), stale: false }
    }
}

/// A bridge says `RTM_NEWLINK` and `RTM_DELLINK` of its ports too, in its own family: a port that leaves the bridge
/// is not a link that is gone.
fn is_link(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

/// Whether a neighbour is what it is without Linux asking for it.
pub(super) fn needs_no_resolving(state: NeighbourState) -> bool {
    matches!(state, NeighbourState::Permanent | NeighbourState::Noarp)
}

fn is_usable(state: NeighbourState) -> bool {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    matches!(state, Reachable | Stale | Delay | Probe | Permanent | Noarp)
}

/// On a point-to-point link `IFA_ADDRESS` is the peer's; one's own is always `IFA_LOCAL`. (IPv6 has that one there only.)
fn parse_address(message: &AddressMessage) -> Option<(u32, IpAddr, u8)> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => address = Some(*ip),
            AddressAttribute::Address(ip) => address = address.or(Some(*ip)),
            _ => {}
        }
    }
    let address = address.filter(|address| !is_link_local(*address))?;
    Some((message.header.index, address, message.header.prefix_len))
}

/// Of IPv6, where every interface has such an address, and it is no use without the interface.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// What makes two routes rivals. (Linux adds the type of service, which is zero for all of ours.)
struct RouteKey {
    destination: IpAddr,
    length: u8,
    metric: u32,
}

impl RouteKey {
    /// None for what is not a route of the main table to where packets of clients go.
    fn parse(message: &RouteMessage) -> Option<RouteKey> {
        let header = &message.header;
        let unspecified = match header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut key =
            RouteKey { destination: unspecified, length: header.destination_prefix_length, metric: 0 };
        let mut table = u32::from(header.table);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(id) => table = *id,
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => key.destination = IpAddr::V4(*ip),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => key.destination = IpAddr::V6(*ip),
                RouteAttribute::Priority(metric) => key.metric = *metric,
                _ => {}
            }
        }
        let ours = table == u32::from(RouteHeader::RT_TABLE_MAIN)
            && header.tos == 0
            && header.source_prefix_length == 0
            && !header.flags.contains(RouteFlags::Cloned)
            && !key.destination.is_multicast()
            && !is_link_local(key.destination);
        ours.then_some(key)
    }

    fn range(&self) -> std::ops::RangeInclusive<Route> {
        let last = match self.destination {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::BROADCAST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
        };
        self.by(0, None)..=self.by(u32::MAX, Some(last))
    }

    /// None for what does not count now (see [`Route`]), as a route whose next hops are all dead.
    fn routes(&self, message: &RouteMessage) -> Vec<Route> {
        match message.header.kind {
            RouteType::Unicast => {}
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => {
                return vec![self.by(0, None)];
            }
            _ => return Vec::new(),
        }
        let multipath = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        });
        let Some(hops) = multipath else {
            let ifindex = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            let is_dead = message.header.flags.contains(RouteFlags::Dead);
            let hop = (!is_dead).then(|| self.hop(ifindex, &message.attributes)).flatten();
            return hop.into_iter().collect();
        };
        let alive = hops.iter().filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead));
        let most = if self.destination.is_ipv4() { 1 } else { usize::MAX };
        alive.take(most).filter_map(|hop| self.hop(Some(hop.interface_index), &hop.attributes)).collect()
    }

    fn hop(&self, ifindex: Option<u32>, attributes: &[RouteAttribute]) -> Option<Route> {
        match self.gateway(attributes) {
            Some(gateway) => Some(self.by(ifindex?, gateway)),
            None => Some(self.by(0, None)),
        }
    }

    /// `Some(None)`: on the link; `None`: a next hop that we cannot follow.
    fn gateway(&self, attributes: &[RouteAttribute]) -> Option<Option<IpAddr>> {
        let mut gateway = None;
        for attribute in attributes {
            match (attribute, self.destination) {
                (RouteAttribute::Gateway(RouteAddress::Inet(ip)), IpAddr::V4(_)) => {
                    gateway = Some(IpAddr::V4(*ip))
                }
                (RouteAttribute::Gateway(RouteAddress::Inet6(ip)), IpAddr::V6(_)) => {
                    gateway = Some(IpAddr::V6(*ip))
                }
                (
                    RouteAttribute::Gateway(_)
                    | RouteAttribute::Via(_)
                    | RouteAttribute::Encap(_)
                    | RouteAttribute::EncapType(_),
                    _,
                ) => return None,
                _ => {}
            }
        }
        Some(gateway)
    }

    fn by(&self, ifindex: u32, gateway: Option<IpAddr>) -> Route {
        let RouteKey { destination, length, metric } = *self;
        Route { destination, length, metric, ifindex, gateway }
    }
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod mirror_tests;
