//! What the director has Linux do on the twins: carry addresses, and keep neighbours fresh.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anyhow::{Context, Result};
use dataplane::fib::PortIndex;
use dataplane::service::Protocol;

use super::Director;
use crate::config::{Service, VirtualAddresses};
use crate::events::Kind;
use crate::net::{Mirror, alone};
use crate::ports;
use crate::rivals::exclusive;

/// Neighbours that Linux is asked for.
#[derive(Clone, Copy, PartialEq)]
enum Which {
    All,
    Missing,
}

impl Director {
    /// Puts the ports' own addresses on the twins.
    pub(super) async fn place_router_addresses(&mut self) -> Result<()> {
        let linux = self.watcher.handle();
        for (port, link) in self.config.ports.iter().zip(&self.ports) {
            for prefix in &port.addresses {
                linux
                    .add_address(link.ifindex, prefix.address, prefix.length)
                    .await
                    .with_context(|| format!("cannot put {prefix} on {}", port.name))?;
            }
        }
        Ok(())
    }

    /// Gives twins that have another MAC that of their port, without which nothing that is sent to the router arrives: udev
    /// gives a new interface one of its own choice (`MACAddressPolicy=persistent`), and may do so after RVS has set it up.
    pub(super) async fn restore_macs(&self) {
        let linux = self.watcher.handle();
        for (port, link) in self.config.ports.iter().zip(&self.ports) {
            let known = self.watcher.mirror().links.get(&link.ifindex);
            if known.is_none_or(|known| known.mac == Some(link.mac)) {
                continue;
            }
            match linux.restore_mac(link.ifindex, link.mac).await {
                Ok(true) => {
                    tracing::info!(port = port.name, "the twin had got another MAC; it has its port's again")
                }
                Ok(false) => {}
                Err(error) => tracing::error!(
                    port = port.name,
                    error = format!("{error:#}"),
                    "the twin has got another MAC, and not its port's again; what is sent to the router is lost"
                ),
            }
        }
    }

    /// A port has another device: it and its twin show the MAC of that one.
    pub(super) async fn has_device(&mut self, port: usize, mac: [u8; 6]) {
        let Some(link) = self.ports.get_mut(port).filter(|link| link.mac != mac) else { return };
        link.mac = mac;
        let ifindex = link.ifindex;
        // What is on its wire shows the same MAC.
        let mut twins = vec![ifindex];
        for (other, link) in self.config.ports.iter().zip(&mut self.ports) {
            if other.tag.is_some_and(|tag| usize::from(tag.port) == port) {
                link.mac = mac;
                twins.push(link.ifindex);
            }
        }
        self.rivals.know(self.ports.iter().map(|link| link.mac).collect());
        for ifindex in twins {
            if let Err(error) = self.watcher.handle().restore_mac(ifindex, mac).await {
                let (port, error) = (&self.config.ports[port].name, format!("{error:#}"));
                tracing::error!(port, error, "the twin has not got the MAC of its port's device");
            }
        }
        self.fibs = None;
        self.publish();
    }

    /// Puts right what has not been done yet.
    pub(super) async fn mend_addresses(&mut self) {
        if self.misplaced {
            self.place_virtual_addresses().await;
        }
    }

    /// Puts the virtual addresses on their twins, and takes away those that RVS had put there and that are
    /// withdrawn, or not configured any more. What Linux refuses is tried again in the next period.
    pub(super) async fn place_virtual_addresses(&mut self) {
        if self.follows() && self.placed.is_empty() {
            return;
        }
        let linux = self.watcher.handle();
        let wanted = if self.follows() { HashSet::new() } else { self.virtual_addresses() };
        self.misplaced = false;
        // Also those that were there before: somebody may have taken them away. Linux is asked what it has, since the
        // mirror may be a moment behind. (To add a thousand again took 6 ms; to ask takes one.)
        let held = linux.addresses().await.unwrap_or_default();
        let is_missing =
            |&&(ifindex, address): &&(u32, IpAddr)| !held.contains(&(ifindex, address, alone(address)));
        for &(ifindex, address) in wanted.iter().filter(is_missing) {
            // Before it is there, since whoever ends this here, for an upgrade, has to know.
            let is_new = self.placed.insert((ifindex, address));
            let added = linux.add_virtual_address(ifindex, address).await;
            if is_new && !matches!(added, Ok(true)) {
                // It is there, and what somebody else has put there is not ours to take away; or it is refused.
                self.placed.remove(&(ifindex, address));
            }
            if let Err(error) = added {
                self.misplace(address, &error);
            }
        }
        for (ifindex, address) in self.placed.clone().difference(&wanted) {
            match linux.remove_address(*ifindex, *address, alone(*address)).await {
                Ok(()) => drop(self.placed.remove(&(*ifindex, *address))),
                Err(error) => self.misplace(*address, &error),
            }
        }
        if !self.misplaced {
            self.refused.clear();
        }
    }

    /// Says when somebody has taken a virtual address away. It is not put back by itself: that may be how an
    /// operator takes this router out of service. A reload puts it back.
    pub(super) fn miss_addresses(&mut self) {
        if self.follows() || self.learning {
            return;
        }
        let held = &self.watcher.mirror().addresses;
        let is_held = |&(ifindex, address): &(u32, IpAddr)| {
            held.range((ifindex, address, 0)..=(ifindex, address, u8::MAX)).next().is_some()
        };
        let missing = self.virtual_addresses().into_iter().find(|place| !is_held(place));
        if let Some((_, address)) = missing
            && !self.missed
        {
            tracing::warn!(%address, "somebody has taken a virtual address from its twin; a reload puts it back");
            self.events.publish(Kind::AddressTaken { address });
        }
        self.missed = missing.is_some();
    }

    /// Virtual addresses that RVS has put on an interface, for whoever follows.
    pub fn placed_on(&self, ifindex: u32) -> Vec<IpAddr> {
        self.placed.iter().filter(|place| place.0 == ifindex).map(|place| place.1).collect()
    }

    pub(super) fn follows(&self) -> bool {
        self.config.run.virtual_addresses == VirtualAddresses::Follow
    }

    /// Learns which virtual addresses Linux has on a twin, if services follow them.
    pub(super) fn follow_addresses(&mut self) {
        if !self.follows() {
            return;
        }
        let live = self.addresses_here();
        for &address in live.difference(&self.live) {
            tracing::info!(%address, "virtual address gained");
            self.events.publish(Kind::AddressGained { address });
        }
        for &address in self.live.difference(&live) {
            tracing::info!(%address, "virtual address lost");
            self.events.publish(Kind::AddressLost { address });
        }
        self.live = live;
    }

    /// The virtual addresses that Linux has on a twin, whoever has put them there.
    fn addresses_here(&self) -> HashSet<IpAddr> {
        let all: HashSet<IpAddr> =
            self.services.present().iter().flat_map(Service::virtual_addresses).collect();
        let held = self.watcher.mirror().addresses.iter();
        let held = held.filter(|(ifindex, ..)| self.is_twin(*ifindex)).map(|&(_, address, _)| address);
        held.filter(|address| all.contains(address)).collect()
    }

    /// Says who else has a virtual address that is here.
    pub(super) fn notice_rivals(&mut self) {
        let ours = exclusive(self.config.run.virtual_addresses, self.addresses_here());
        for (address, mac) in self.rivals.review(ours, Instant::now()) {
            let mac = ports::mac_text(mac);
            tracing::warn!(%address, mac, "a virtual address that is here is held by another machine as well");
            self.events.publish(Kind::AddressContested { address, mac });
        }
    }

    fn misplace(&mut self, address: IpAddr, error: &anyhow::Error) {
        self.misplaced = true;
        let error = format!("{error:#}");
        tracing::error!(%address, error, "a virtual address is not on, or still on, its twin; trying again");
        // Tried every two seconds, and said once.
        if self.refused.insert(address) {
            self.events.publish(Kind::AddressRefused { address, error });
        }
    }

    /// The virtual addresses that are not withdrawn, each with the interface that is to have it.
    fn virtual_addresses(&self) -> HashSet<(u32, IpAddr)> {
        let place = |(service, address): (&Service, IpAddr)| {
            let port = self.config.port_of(service, address);
            let own = port.addresses.iter().any(|prefix| prefix.address == address);
            let index = self.config.ports.iter().position(|other| other.name == port.name)?;
            let withdrawn = self.standings.get(&address).is_some_and(Option::is_some);
            (!own && !withdrawn).then_some((self.ports[index].ifindex, address))
        };
        let services = self.services.present().iter();
        let all = services.flat_map(|one| one.virtual_addresses().map(move |address| (one, address)));
        let mut places: HashSet<(u32, IpAddr)> = all.filter_map(place).collect();
        places.extend(self.local_addresses());
        places.extend(self.outside_addresses());
        places
    }

    /// The addresses of pools of source NAT, each with the interface that is to have it. They have no standing: they are here until the end.
    fn outside_addresses(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        let snats = self.config.routing.snats.iter().filter(|_| !self.orders.stopping);
        snats.flat_map(|snat| &snat.outside).map(|&address| {
            let address = Ipv4Addr::from(address).into();
            let index = self.config.ports.iter().position(|port| port.is_near(address)).unwrap_or(0);
            (self.ports[index].ifindex, address)
        })
    }

    /// The local addresses of services with full NAT whose virtual address is not withdrawn, and those of which connections have ports
    /// that began with another pool; each with the interface that is to have it.
    fn local_addresses(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        let mut wanted = HashMap::new();
        let (mut named, first) = (HashSet::new(), self.services.present().first());
        for service in self.services.present().iter() {
            let is_withdrawn = |address| self.standings.get(&address).is_some_and(Option::is_some);
            let withdrawn = service.virtual_addresses().all(is_withdrawn);
            for &local in service.fullnat.iter().flat_map(|fullnat| &fullnat.local) {
                named.insert(local);
                if !withdrawn {
                    wanted.insert(local, self.config.port_of_local(service, local));
                }
            }
        }
        for local in self.ids.locals().filter(|local| !named.contains(&local.address)) {
            let is_used = Protocol::ALL.iter().any(|&protocol| local.taken(protocol) > 0);
            if let Some(service) = first.filter(|_| is_used) {
                wanted.insert(local.address, self.config.port_of_local(service, local.address));
            }
        }
        let index = |name: &str| self.config.ports.iter().position(|port| port.name == name);
        wanted
            .into_iter()
            .filter_map(move |(local, port)| Some((self.ports[index(&port.name)?].ifindex, local)))
    }

    /// Tells Linux that the next hops are in use, so that it keeps them fresh and notices a new MAC.
    pub(super) fn refresh_neighbours(&mut self) {
        self.ask_for(Which::All);
    }

    pub(super) fn ask_for_missing_neighbours(&mut self) {
        self.ask_for(Which::Missing);
    }

    /// Asks in a task of its own, since ten thousand take a tenth of a second. A round that has not ended by the next
    /// one goes on instead of it.
    fn ask_for(&mut self, which: Which) {
        while self.asking.try_join_next().is_some() {}
        if !self.asking.is_empty() {
            return;
        }
        let Mirror { neighbours, fixed, .. } = self.watcher.mirror();
        let key = |&(port, address): &(PortIndex, IpAddr)| (self.ifindex(port), address);
        let is_wanted =
            |key: &_| !fixed.contains(key) && (which == Which::All || !neighbours.contains_key(key));
        let wanted: Vec<(u32, IpAddr)> = self.next_hops().iter().map(key).filter(is_wanted).collect();
        let linux = self.watcher.handle();
        self.asking.spawn(async move {
            for (ifindex, address) in wanted {
                if let Err(error) = linux.use_neighbour(ifindex, address).await {
                    tracing::debug!(%address, %error, "could not ask for a neighbour");
                }
            }
        });
    }
}
