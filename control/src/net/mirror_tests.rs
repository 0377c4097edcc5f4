//! What each message does to a mirror, with messages made by hand.

use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteLwEnCapType, RouteNextHop, RouteVia};
use rtnetlink::packet_core::NLM_F_CREATE;

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const NOTHING: Effect = Effect::NOTHING;
const OTHER: Effect = Effect { change: Some(Change::Other), stale: false };
const OTHER_STALE: Effect = Effect { change: Some(Change::Other), stale: true };
const STALE: Effect = Effect { change: None, stale: true };
const NEIGHBOURS: Effect = Effect { change: Some(Change::Neighbours), stale: false };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(index: u32, up: bool, attributes: &[LinkAttribute]) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message.attributes = attributes.to_vec();
    message
}

fn wan(up: bool) -> LinkMessage {
    use LinkAttribute::{Address, IfName, Mtu};
    link(3, up, &[IfName("wan".into()), Mtu(1500), Address(MAC.to_vec())])
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address(local: &str, length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(ip(local));
    message.header.index = 3;
    message.header.prefix_len = length;
    message.attributes = vec![AddressAttribute::Local(ip(local))];
    message
}

/// A unicast route of the main table; none of the attributes is "a default route over nothing".
fn route(to: &str, length: u8, attributes: &[RouteAttribute]) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip(to));
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.header.destination_prefix_length = length;
    message.attributes = attributes.to_vec();
    if length > 0 {
        message.attributes.push(RouteAttribute::Destination(ip(to).into()));
    }
    message
}

fn via(gateway: &str) -> RouteAttribute {
    RouteAttribute::Gateway(ip(gateway).into())
}

fn hop(ifindex: u32, gateway: &str, flags: RouteNextHopFlags) -> RouteNextHop {
    let mut hop = RouteNextHop::default();
    hop.interface_index = ifindex;
    hop.flags = flags;
    hop.attributes = vec![via(gateway)];
    hop
}

fn neighbour(state: NeighbourState, mac: Option<[u8; 6]>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = 3;
    message.header.state = state;
    message.attributes = vec![NeighbourAttribute::Destination(ip("192.0.2.9").into())];
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
    message
}

impl Mirror {
    fn new_link_event(&mut self, message: LinkMessage) -> Effect {
        self.apply(0, &RouteNetlinkMessage::NewLink(message))
    }

    fn add(&mut self, message: &RouteMessage) -> Effect {
        self.apply(NLM_F_CREATE, &RouteNetlinkMessage::NewRoute(message.clone()))
    }

    fn replace(&mut self, message: &RouteMessage) -> Effect {
        self.apply(NLM_F_REPLACE, &RouteNetlinkMessage::NewRoute(message.clone()))
    }

    fn delete(&mut self, message: &RouteMessage) -> Effect {
        self.apply(0, &RouteNetlinkMessage::DelRoute(message.clone()))
    }

    fn new_neighbour(&mut self, state: NeighbourState, mac: Option<[u8; 6]>) -> Effect {
        self.apply(0, &RouteNetlinkMessage::NewNeighbour(neighbour(state, mac)))
    }

    fn only_route(&self) -> Route {
        assert_eq!(self.routes.len(), 1, "{:?}", self.routes);
        *self.routes.first().unwrap()
    }
}

#[test]
fn a_link_comes_changes_and_goes() {
    let mut mirror = Mirror::default();
    assert_eq!(mirror.new_link_event(wan(true)), OTHER);
    let learnt = Link { name: "wan".into(), up: true, mac: Some(MAC), mtu: 1500 };
    assert_eq!(mirror.links[&3], learnt);
    assert_eq!(mirror.new_link_event(wan(true)), NOTHING);
    // Attributes that an event leaves out have not changed.
    assert_eq!(mirror.new_link_event(link(3, true, &[])), NOTHING);
    assert_eq!(mirror.new_link_event(link(3, true, &[LinkAttribute::Mtu(9000)])), OTHER);
    assert_eq!(mirror.links[&3].mtu, 9000);
    // Down and up: routes went, next hops revived, without a word.
    assert_eq!(mirror.new_link_event(wan(false)), OTHER_STALE);
    assert_eq!(mirror.new_link_event(wan(true)), OTHER_STALE);
    let gone = RouteNetlinkMessage::DelLink(wan(true));
    assert_eq!(mirror.apply(0, &gone), OTHER_STALE);
    assert_eq!(mirror.apply(0, &gone), NOTHING);
    assert_eq!(mirror, Mirror::default());
}

#[test]
fn a_mac_of_another_length_is_none() {
    let mut mirror = Mirror::default();
    mirror.new_link_event(link(4, true, &[LinkAttribute::Address(vec![10, 0, 0, 1])]));
    assert_eq!(mirror.links[&4].mac, None);
}

#[test]
fn a_port_that_leaves_a_bridge_is_not_gone() {
    let mut mirror = Mirror::default();
    mirror.new_link_event(wan(true));
    let mut left = wan(true);
    left.header.interface_family = AddressFamily::Bridge;
    assert_eq!(mirror.apply(0, &RouteNetlinkMessage::DelLink(left.clone())), NOTHING);
    assert_eq!(mirror.new_link_event(left), NOTHING);
    assert!(mirror.links.contains_key(&3));
}

#[test]
fn addresses() {
    let mut mirror = Mirror::default();
    let (new, del) = (RouteNetlinkMessage::NewAddress, RouteNetlinkMessage::DelAddress);
    assert_eq!(mirror.apply(0, &new(address("192.0.2.1", 24))), OTHER);
    assert_eq!(mirror.apply(0, &new(address("192.0.2.1", 24))), NOTHING);
    assert_eq!(mirror.apply(0, &new(address("192.0.2.1", 32))), OTHER);
    // Of a point-to-point link, the local one.
    let mut peer = address("10.0.0.1", 32);
    peer.attributes.insert(0, AddressAttribute::Address(ip("10.0.0.2")));
    assert_eq!(mirror.apply(0, &new(peer)), OTHER);
    assert!(mirror.addresses.contains(&(3, ip("10.0.0.1"), 32)));
    // Its going may take routes with it.
    assert_eq!(mirror.apply(0, &del(address("192.0.2.1", 24))), OTHER_STALE);
    assert_eq!(mirror.apply(0, &del(address("192.0.2.1", 24))), NOTHING);
    assert_eq!(mirror.addresses.len(), 2);
}

#[test]
fn addresses_of_ipv6() {
    let mut mirror = Mirror::default();
    let (new, del) = (RouteNetlinkMessage::NewAddress, RouteNetlinkMessage::DelAddress);
    // As Linux says it, which of IPv6 has no local one without a peer.
    let mut own = address("2001:db8::1", 64);
    own.attributes = vec![AddressAttribute::Address(ip("2001:db8::1"))];
    assert_eq!(mirror.apply(0, &new(own.clone())), OTHER);
    // When it has turned out that nobody else has it.
    assert_eq!(mirror.apply(0, &new(own.clone())), NOTHING);
    // Every interface has one.
    assert_eq!(mirror.apply(0, &new(address("fe80::1", 64))), NOTHING);
    assert_eq!(mirror.addresses, BTreeSet::from([(3, ip("2001:db8::1"), 64)]));
    assert_eq!(mirror.apply(0, &del(own)), OTHER_STALE);
}

#[test]
fn routes_with_and_without_gateway() {
    let mut mirror = Mirror::default();
    let default = route("0.0.0.0", 0, &[via("192.0.2.254"), RouteAttribute::Oif(3)]);
    let connected = route("192.0.2.0", 24, &[RouteAttribute::Oif(3), RouteAttribute::Priority(100)]);
    assert_eq!(mirror.add(&default), OTHER);
    assert_eq!(mirror.add(&default), NOTHING);
    assert_eq!(mirror.add(&connected), OTHER);
    let expected = [
        Route {
            destination: ip("0.0.0.0"),
            length: 0,
            metric: 0,
            ifindex: 3,
            gateway: Some(ip("192.0.2.254")),
        },
        Route { destination: ip("192.0.2.0"), length: 24, metric: 100, ifindex: 3, gateway: None },
    ];
    assert_eq!(mirror.routes, BTreeSet::from(expected));
    assert_eq!(mirror.delete(&default), OTHER);
    assert_eq!(mirror.delete(&default), NOTHING);
    assert_eq!(mirror.delete(&connected), OTHER);
    assert!(mirror.routes.is_empty());
}

#[test]
fn an_onlink_route_is_like_any_with_a_gateway() {
    let mut mirror = Mirror::default();
    let mut onlink = route("198.51.100.0", 24, &[via("203.0.113.1"), RouteAttribute::Oif(3)]);
    onlink.header.flags = RouteFlags::Onlink;
    assert_eq!(mirror.add(&onlink), OTHER);
    assert_eq!(mirror.only_route().gateway, Some(ip("203.0.113.1")));
}

#[test]
fn what_is_not_ours_is_left_out_and_what_cannot_be_followed_leads_nowhere() {
    let hop = [via("192.0.2.254"), RouteAttribute::Oif(3)];
    let plain = || route("198.51.100.0", 24, &hop);
    let with = |change: fn(&mut RouteMessage)| {
        let mut message = plain();
        change(&mut message);
        message
    };
    assert_eq!(Mirror::default().add(&plain()), OTHER);
    for left_out in [
        with(|m| m.header.address_family = AddressFamily::Mpls),
        with(|m| m.header.table = 255),
        // A table above 255 is in the attribute; the header says 252 (compat) or whatever else.
        with(|m| m.attributes.push(RouteAttribute::Table(1000))),
        with(|m| m.header.tos = 8),
        with(|m| m.header.source_prefix_length = 64),
        with(|m| m.header.kind = RouteType::Local),
        with(|m| m.header.kind = RouteType::Throw),
        with(|m| m.header.flags = RouteFlags::Cloned),
        with(|m| m.header.flags = RouteFlags::Dead),
        with(|m| m.attributes.retain(|a| !matches!(a, RouteAttribute::Oif(_)))),
    ] {
        assert_eq!(Mirror::default().add(&left_out), NOTHING, "{left_out:?}");
    }
    for nowhere in [
        with(|m| m.header.kind = RouteType::BlackHole),
        with(|m| m.header.kind = RouteType::Unreachable),
        with(|m| m.header.kind = RouteType::Prohibit),
        with(|m| m.attributes.push(RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap())))),
        with(|m| m.attributes.push(RouteAttribute::EncapType(RouteLwEnCapType::Mpls))),
    ] {
        let mut mirror = Mirror::default();
        assert_eq!(mirror.add(&nowhere), OTHER);
        assert_eq!((mirror.only_route().ifindex, mirror.only_route().gateway), (0, None), "{nowhere:?}");
        assert_eq!(mirror.delete(&nowhere), OTHER);
    }
    let mut in_main = plain();
    in_main.header.table = 0;
    in_main.attributes.push(RouteAttribute::Table(254));
    assert_eq!(Mirror::default().add(&in_main), OTHER);
}

#[test]
fn a_replaced_route_is_gone_though_linux_does_not_say_so() {
    let mut mirror = Mirror::default();
    let by = |gateway| route("198.51.100.0", 24, &[via(gateway), RouteAttribute::Oif(3)]);
    mirror.add(&by("192.0.2.1"));
    assert_eq!(mirror.replace(&by("192.0.2.2")), OTHER);
    assert_eq!(mirror.only_route().gateway, Some(ip("192.0.2.2")));
    assert_eq!(mirror.replace(&by("192.0.2.2")), NOTHING);
    // Another metric is another route.
    let mut backup = by("192.0.2.3");
    backup.attributes.push(RouteAttribute::Priority(10));
    assert_eq!(mirror.replace(&backup), OTHER);
    assert_eq!(mirror.routes.len(), 2);
    assert_eq!(mirror.delete(&backup), OTHER);
    // By one that leads nowhere.
    let mut blackhole = route("198.51.100.0", 24, &[]);
    blackhole.header.kind = RouteType::BlackHole;
    assert_eq!(mirror.replace(&blackhole), OTHER);
    assert_eq!(mirror.only_route().ifindex, 0);
    assert_eq!(mirror.replace(&by("192.0.2.1")), OTHER);
    // One of several (`ip route append`): which one, only a dump tells.
    assert_eq!(mirror.add(&by("192.0.2.4")), OTHER);
    assert_eq!(mirror.replace(&by("192.0.2.5")), STALE);
}

#[test]
fn of_several_next_hops_the_first_that_lives() {
    let (alive, dead) = (RouteNextHopFlags::empty(), RouteNextHopFlags::Dead);
    let multipath = |first| {
        let hops = vec![hop(3, "192.0.2.1", first), hop(4, "192.0.2.2", alive)];
        route("198.51.100.0", 24, &[RouteAttribute::MultiPath(hops)])
    };
    let mut mirror = Mirror::default();
    assert_eq!(mirror.add(&multipath(alive)), OTHER);
    assert_eq!(mirror.only_route().ifindex, 3);
    assert_eq!(mirror.replace(&multipath(dead)), OTHER);
    assert_eq!((mirror.only_route().ifindex, mirror.only_route().gateway), (4, Some(ip("192.0.2.2"))));
    // Deleted while the first one lived again: not the route that we know, but one like it.
    assert_eq!(mirror.delete(&multipath(alive)), STALE);
    assert_eq!(mirror.delete(&multipath(dead)), OTHER);
    assert_eq!(mirror.delete(&multipath(dead)), NOTHING);
}

#[test]
fn routes_of_ipv6_and_not_those_that_linux_makes_for_itself() {
    let mut mirror = Mirror::default();
    let default = route("::", 0, &[via("fe80::1"), RouteAttribute::Oif(3), RouteAttribute::Priority(1024)]);
    assert_eq!(mirror.add(&default), OTHER);
    let by_router =
        Route { destination: ip("::"), length: 0, metric: 1024, ifindex: 3, gateway: Some(ip("fe80::1")) };
    assert_eq!(mirror.only_route(), by_router);
    for own in [("fe80::", 64), ("ff00::", 8), ("ff02::1", 128)] {
        assert_eq!(mirror.add(&route(own.0, own.1, &[RouteAttribute::Oif(3)])), NOTHING, "{own:?}");
    }
    // A default route of the other family is another one.
    let four = route("0.0.0.0", 0, &[via("192.0.2.254"), RouteAttribute::Oif(3)]);
    assert_eq!(mirror.replace(&four), OTHER);
    assert_eq!(mirror.routes.len(), 2);
    assert_eq!(mirror.delete(&default), OTHER);
    assert_eq!(mirror.only_route().gateway, Some(ip("192.0.2.254")));
    // What leads by a gateway of the other family leads nowhere.
    let mixed = route("2001:db8::", 32, &[via("192.0.2.1"), RouteAttribute::Oif(3)]);
    assert_eq!(mirror.add(&mixed), OTHER);
    assert!(mirror.routes.iter().any(|route| route.ifindex == 0 && route.destination == ip("2001:db8::")));
}

/// Each next hop comes and goes by itself, which for IPv4 would be a change of the whole route.
#[test]
fn of_several_next_hops_of_ipv6_each_is_a_route() {
    let alive = RouteNextHopFlags::empty();
    let by = |gateway| route("2001:db8:1::", 48, &[via(gateway), RouteAttribute::Oif(3)]);
    let multipath = |flags| {
        let hops = vec![hop(3, "fe80::1", flags), hop(3, "fe80::2", alive)];
        route("2001:db8:1::", 48, &[RouteAttribute::MultiPath(hops)])
    };
    let gateways = |mirror: &Mirror| -> Vec<String> {
        mirror.routes.iter().map(|route| route.gateway.unwrap().to_string()).collect()
    };
    let mut mirror = Mirror::default();
    assert_eq!(mirror.add(&multipath(alive)), OTHER);
    assert_eq!(gateways(&mirror), ["fe80::1", "fe80::2"]);
    assert_eq!(mirror.delete(&by("fe80::1")), OTHER);
    assert_eq!(gateways(&mirror), ["fe80::2"]);
    assert_eq!(mirror.add(&by("fe80::3")), OTHER);
    assert_eq!(mirror.delete(&multipath(alive)), OTHER);
    assert_eq!(gateways(&mirror), ["fe80::3"]);
    assert_eq!(mirror.replace(&multipath(RouteNextHopFlags::Dead)), OTHER);
    assert_eq!(gateways(&mirror), ["fe80::2"], "the other one is dead");
    // All of the flock: which of them are gone, only a dump tells.
    assert_eq!(mirror.add(&by("fe80::4")), OTHER);
    assert_eq!(mirror.replace(&by("fe80::2")), STALE);
}

#[test]
fn a_neighbour_that_is_confirmed_again_and_again_wakes_nobody() {
    use NeighbourState::{Delay, Failed, Incomplete, Noarp, Permanent, Probe, Reachable, Stale};
    let mut mirror = Mirror::default();
    assert_eq!(mirror.new_neighbour(Incomplete, None), NOTHING);
    assert_eq!(mirror.new_neighbour(Reachable, Some(MAC)), NEIGHBOURS);
    for state in [Stale, Delay, Probe, Reachable, Permanent, Noarp, Stale] {
        assert_eq!(mirror.new_neighbour(state, Some(MAC)), NOTHING, "{state}");
    }
    assert_eq!(mirror.new_neighbour(Reachable, Some(OTHER_MAC)), NEIGHBOURS);
    assert_eq!(mirror.neighbours, BTreeMap::from([((3, ip("192.0.2.9")), OTHER_MAC)]));
    for unusable in [Failed, Incomplete, NeighbourState::None] {
        mirror.new_neighbour(Reachable, Some(MAC));
        assert_eq!(mirror.new_neighbour(unusable, Some(MAC)), NEIGHBOURS, "{unusable}");
        assert_eq!(mirror.new_neighbour(unusable, None), NOTHING, "{unusable}");
        assert!(mirror.neighbours.is_empty());
    }
    mirror.new_neighbour(Stale, Some(MAC));
    let deleted = RouteNetlinkMessage::DelNeighbour(neighbour(Stale, Some(MAC)));
    assert_eq!(mirror.apply(0, &deleted), NEIGHBOURS);
    assert_eq!(mirror.apply(0, &deleted), NOTHING);
}

#[test]
fn neighbours_of_other_kinds_are_ignored() {
    let mut mirror = Mirror::default();
    let mut bridge = neighbour(NeighbourState::Reachable, Some(MAC));
    bridge.header.family = AddressFamily::Bridge;
    assert_eq!(mirror.apply(0, &RouteNetlinkMessage::NewNeighbour(bridge)), NOTHING);
    // Linux knows the MAC of every group.
    let mut group = neighbour(NeighbourState::Noarp, Some(MAC));
    group.header.family = AddressFamily::Inet6;
    group.attributes[0] = NeighbourAttribute::Destination(ip("ff02::16").into());
    assert_eq!(mirror.apply(0, &RouteNetlinkMessage::NewNeighbour(group.clone())), NOTHING);
    group.attributes[0] = NeighbourAttribute::Destination(ip("fe80::1").into());
    assert_eq!(mirror.apply(0, &RouteNetlinkMessage::NewNeighbour(group)), NEIGHBOURS);
    let mut proxy = neighbour(NeighbourState::Permanent, Some(MAC));
    proxy.header.flags = NeighbourFlags::Proxy;
    assert_eq!(mirror.apply(0, &RouteNetlinkMessage::NewNeighbour(proxy)), NOTHING);
}

#[test]
fn what_differs_after_a_dump() {
    let empty = Mirror::default();
    let mut neighbours = empty.clone();
    neighbours.new_neighbour(NeighbourState::Stale, Some(MAC));
    let mut more = neighbours.clone();
    more.new_link_event(wan(true));
    assert_eq!(empty.difference(&empty.clone()), None);
    assert_eq!(empty.difference(&neighbours), Some(Change::Neighbours));
    assert_eq!(neighbours.difference(&more), Some(Change::Other));
    assert_eq!(empty.difference(&more), Some(Change::Other));
}
