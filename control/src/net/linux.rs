//! Requests to Linux: what RVS sets up on its twins, and the dump that a mirror is made of.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, CacheInfo};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::{AddressAddRequest, AddressMessageBuilder, LinkMessageBuilder, LinkUnspec};

use super::mirror::needs_no_resolving;
use super::{Link, Mirror, NoIpv6};

/// A dump that the table's changes keep interrupting is taken as it is after so many attempts: the events will say
/// what it lacks.
const DUMP_ATTEMPTS: usize = 10;

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// The length of a network of one address, as which a virtual one is on its twin.
pub fn alone(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// A handle to Linux' network configuration. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Linux(rtnetlink::Handle);

impl Linux {
    /// Opens a netlink socket in the namespace of this thread. It is closed with the last clone.
    pub fn open() -> Result<Linux> {
        let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Linux(handle))
    }

    /// Puts an address on an interface, from which Linux can send at once; false if it was there.
    pub async fn add_address(&self, ifindex: u32, address: IpAddr, length: u8) -> Result<bool> {
        let mut request = self.0.address().add(ifindex, address, length);
        if address.is_ipv6() {
            // Else it is not there before Linux has looked for duplicates, be it only to find that it need not: a check or a program
            // that binds to it would fail.
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        }
        self.add(ifindex, address, length, request).await
    }

    /// Puts a virtual address on an interface, as a network of its own; false if it was there.
    ///
    /// One of IPv6 is "deprecated": of an interface's addresses Linux sends from the one that is most like the destination (RFC 6724,
    /// section 5), and a health check is not to come from an address that its server may have itself. (Of IPv4 it is the first one in
    /// the destination's network.) And it is announced, which with the flag of [`Self::add_address`] it would not be.
    pub async fn add_virtual_address(&self, ifindex: u32, address: IpAddr) -> Result<bool> {
        let mut request = self.0.address().add(ifindex, address, alone(address));
        if address.is_ipv6() {
            let mut lifetime = CacheInfo::default();
            (lifetime.ifa_valid, lifetime.ifa_preferred) = (u32::MAX, 0);
            request.message_mut().attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        self.add(ifindex, address, alone(address), request).await
    }

    async fn add(
        &self,
        ifindex: u32,
        address: IpAddr,
        length: u8,
        request: AddressAddRequest,
    ) -> Result<bool> {
        let error = match request.execute().await {
            Ok(()) => return Ok(true),
            Err(error) => error,
        };
        let error = match errno(&error) {
            Some(Errno::EEXIST) => return Ok(false),
            // What Linux calls a lack of permission, or of support.
            Some(Errno::EACCES) if address.is_ipv6() => NoIpv6::OnTwins.into(),
            Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) if address.is_ipv6() => NoIpv6::Anywhere.into(),
            _ => explain(error),
        };
        Err(error).with_context(|| format!("add {address}/{length} to interface {ifindex}"))
    }

    /// Takes an address off an interface; that it is not there, or that the interface is gone, is no error.
    ///
    /// With the first address of a subnet Linux removes the others of that subnet on the interface, unless
    /// `net.ipv4.conf.*.promote_secondaries` is set. A virtual address is alone in its subnet, which is all of its length. IPv6
    /// knows no such thing.
    pub async fn remove_address(&self, ifindex: u32, address: IpAddr, length: u8) -> Result<()> {
        let message = match address {
            IpAddr::V4(address) => {
                AddressMessageBuilder::<Ipv4Addr>::new().index(ifindex).address(address, length).build()
            }
            IpAddr::V6(address) => {
                AddressMessageBuilder::<Ipv6Addr>::new().index(ifindex).address(address, length).build()
            }
        };
        match self.0.address().del(message).execute().await {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(errno(&error), Some(Errno::EADDRNOTAVAIL | Errno::ENODEV | Errno::ENXIO)) =>
            {
                Ok(())
            }
            Err(error) => Err(explain(error))
                .with_context(|| format!("remove {address}/{length} from interface {ifindex}")),
        }
    }

    /// Sets an interface up or down, its MAC and its MTU.
    pub async fn set_link(
        &self,
        ifindex: u32,
        up: bool,
        mac: Option<[u8; 6]>,
        mtu: Option<u32>,
    ) -> Result<()> {
        let mut builder = LinkMessageBuilder::<LinkUnspec>::new().index(ifindex);
        if let Some(mac) = mac {
            builder = builder.address(mac.to_vec());
        }
        if let Some(mtu) = mtu {
            builder = builder.mtu(mtu);
        }
        let message = if up { builder.up() } else { builder.down() }.build();
        let done = self.0.link().change(message).execute().await;
        done.map_err(explain).with_context(|| format!("set up interface {ifindex}"))
    }

    /// Gives an interface its MAC back, should it have another one; whether it had. Linux is asked, since the mirror may lag
    /// behind, and a MAC that is set costs the interface its neighbours, even if it is the same. The flags stay as they are.
    pub async fn restore_mac(&self, ifindex: u32, mac: [u8; 6]) -> Result<bool> {
        let found = self.0.link().get().match_index(ifindex).execute().try_next().await;
        let link = found.map_err(explain).with_context(|| format!("look for interface {ifindex}"))?;
        let has_it = |attribute: &LinkAttribute| *attribute == LinkAttribute::Address(mac.to_vec());
        if link.is_none_or(|link| link.attributes.iter().any(has_it)) {
            return Ok(false);
        }
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(ifindex).address(mac.to_vec()).build();
        let done = self.0.link().change(message).execute().await;
        done.map_err(explain).with_context(|| format!("set the MAC of interface {ifindex}"))?;
        Ok(true)
    }

    /// Gives an interface that has no cable the appearance of one that is plugged in or not.
    pub async fn set_carrier(&self, ifindex: u32, up: bool) -> Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(ifindex).carrier(up).build();
        let done = self.0.link().change(message).execute().await;
        done.map_err(explain).with_context(|| format!("set the carrier of interface {ifindex}"))
    }

    /// Index of the interface of that name, if there is one.
    pub async fn index_of(&self, name: &str) -> Result<Option<u32>> {
        match self.0.link().get().match_name(name).execute().try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(explain(error)).with_context(|| format!("look for interface {name}")),
        }
    }

    /// The interface of that name with its index, if there is one.
    pub async fn link_of(&self, name: &str) -> Result<Option<(u32, Link)>> {
        Ok(self.dump_of(&[links()]).await?.links.into_iter().find(|(_, link)| link.name == name))
    }

    /// Asks Linux to resolve or confirm a neighbour as if it had a packet for it (`NTF_USE`): an unknown one is
    /// asked for at once, a stale one is asked after a grace period (5 s), one that was confirmed lately is left.
    ///
    /// A permanent one is left, too: `NTF_USE` would make it an ordinary one, which on a link where nobody answers is
    /// one that is lost. Linux is asked what it is, since the mirror may lag behind an operator who adds thousands.
    pub async fn use_neighbour(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        if self.neighbour_state(ifindex, address).await?.is_some_and(needs_no_resolving) {
            return Ok(());
        }
        let request = self
            .0
            .neighbours()
            .add(ifindex, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        let done = request.execute().await;
        done.map_err(explain).with_context(|| format!("resolve {address} on interface {ifindex}"))
    }

    /// What Linux thinks of a neighbour now; none if it does not know it.
    async fn neighbour_state(&self, ifindex: u32, address: IpAddr) -> Result<Option<NeighbourState>> {
        let mut wanted = NeighbourMessage::default();
        wanted.header.family = family(address);
        wanted.header.ifindex = ifindex;
        wanted.attributes.push(NeighbourAttribute::Destination(address.into()));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(wanted));
        message.header.flags = NLM_F_REQUEST;
        let mut answers = self.0.clone().request(message).map_err(explain)?;
        match answers.next().await.map(|answer| answer.payload) {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(known))) => {
                Ok(Some(known.header.state))
            }
            Some(NetlinkPayload::Error(error)) if error.raw_code() == -(Errno::ENOENT as i32) => Ok(None),
            Some(NetlinkPayload::Error(error)) => {
                Err(error.to_io()).with_context(|| format!("look for {address} on interface {ifindex}"))
            }
            other => bail!("look for {address} on interface {ifindex}: unexpected answer {other:?}"),
        }
    }

    /// The addresses of all interfaces, but for link-local ones, with interface and prefix length, as of now.
    pub async fn addresses(&self) -> Result<HashSet<(u32, IpAddr, u8)>> {
        Ok(self.dump_of(&FAMILIES.map(addresses)).await?.addresses.into_iter().collect())
    }

    /// The interfaces that carry a default route of whatever table, IPv4 or IPv6.
    pub async fn default_routes(&self) -> Result<HashSet<u32>> {
        let mut interfaces = HashSet::new();
        for family in FAMILIES {
            let routes = self.routes(all_routes(family), NLM_F_DUMP).await.context("list the routes")?;
            let default = |route: &&RouteMessage| {
                route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
            };
            interfaces.extend(routes.iter().filter(default).flat_map(leaves_by));
        }
        Ok(interfaces)
    }

    /// The interface by which a packet for an address would leave; none if it could not.
    pub async fn way_to(&self, address: IpAddr) -> Result<Option<u32>> {
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = family(address);
        wanted.header.destination_prefix_length = alone(address);
        wanted.attributes.push(RouteAttribute::Destination(address.into()));
        match self.routes(wanted, 0).await {
            Ok(routes) => Ok(routes.iter().flat_map(leaves_by).next()),
            Err(error) if error.raw_os_error() == Some(Errno::ENETUNREACH as i32) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("look for the way to {address}")),
        }
    }

    async fn routes(&self, wanted: RouteMessage, flags: u16) -> io::Result<Vec<RouteMessage>> {
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(wanted));
        message.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.0.clone().request(message).map_err(io::Error::other)?;
        let mut routes = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => routes.push(route),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(routes)
    }

    /// All that Linux knows, as of now.
    pub(super) async fn dump(&self) -> Result<Mirror> {
        // Links first. Their dump waits for Linux' configuration lock, and so for the end of the very operation
        // whose event made us ask: the events come from its middle.
        let mut requests = vec![links()];
        requests.extend(FAMILIES.map(addresses));
        requests.extend(FAMILIES.map(|family| RouteNetlinkMessage::GetRoute(all_routes(family))));
        requests.extend(FAMILIES.map(neighbours));
        self.dump_of(&requests).await
    }

    async fn dump_of(&self, requests: &[RouteNetlinkMessage]) -> Result<Mirror> {
        for _ in 1..DUMP_ATTEMPTS {
            if let (mirror, true) = self.attempt_dump(requests).await? {
                return Ok(mirror);
            }
        }
        Ok(self.attempt_dump(requests).await?.0)
    }

    /// False: the tables changed while they were read, and something may have been skipped.
    async fn attempt_dump(&self, requests: &[RouteNetlinkMessage]) -> Result<(Mirror, bool)> {
        let mut mirror = Mirror::default();
        let mut consistent = true;
        for request in requests {
            let mut message = NetlinkMessage::from(request.clone());
            message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut answers = self.0.clone().request(message).map_err(explain)?;
            while let Some(answer) = answers.next().await {
                consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => {
                        mirror.apply(0, &message);
                    }
                    NetlinkPayload::Error(error) => return Err(error.to_io()).context("dump of netlink"),
                    // Linux takes its time with a dump until it is read, so it does not overrun; but should it.
                    NetlinkPayload::Overrun(_) => consistent = false,
                    other => bail!("dump of netlink: unexpected answer {other:?}"),
                }
            }
        }
        Ok((mirror, consistent))
    }
}

/// The interfaces that a route leads out of.
fn leaves_by(route: &RouteMessage) -> Vec<u32> {
    let interfaces = route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    });
    interfaces.collect()
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

fn addresses(family: AddressFamily) -> RouteNetlinkMessage {
    let mut all = AddressMessage::default();
    all.header.family = family;
    RouteNetlinkMessage::GetAddress(all)
}

fn all_routes(family: AddressFamily) -> RouteMessage {
    let mut all = RouteMessage::default();
    all.header.address_family = family;
    all
}

fn neighbours(family: AddressFamily) -> RouteNetlinkMessage {
    let mut all = NeighbourMessage::default();
    all.header.family = family;
    RouteNetlinkMessage::GetNeighbour(all)
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(Errno::from_raw(message.raw_code().abs())),
        _ => None,
    }
}

/// "Operation not permitted (os error 1)" says more than the netlink message around it.
fn explain(error: rtnetlink::Error) -> anyhow::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().into(),
        other => other.into(),
    }
}
