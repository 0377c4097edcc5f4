//! What the director has Linux do on the twins: carry addresses, and keep neighbours fresh.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::Director;
use crate::config::Service;
use crate::slowpath;

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

    /// Puts the virtual addresses on their twins, and takes away those that RVS had put there and that are
    /// not configured any more. What Linux refuses is tried again in the next period.
    pub(super) async fn place_virtual_addresses(&mut self) {
        let linux = self.watcher.handle();
        let wanted = self.virtual_addresses();
        self.misplaced = false;
        // Also those that were there before: somebody may have taken them away. Linux is asked what it has, since the
        // mirror may be a moment behind. (To add a thousand again took 6 ms; to ask takes one.)
        let held = linux.addresses().await.unwrap_or_default();
        for &(ifindex, address) in
            wanted.iter().filter(|(ifindex, address)| !held.contains(&(*ifindex, *address, 32)))
        {
            match linux.add_address(ifindex, address, 32).await {
                Ok(true) => drop(self.placed.insert((ifindex, address))),
                // It is there. What somebody else has put there is not ours to take away.
                Ok(false) => {}
                Err(error) => self.misplace(address, &error),
            }
        }
        for (ifindex, address) in self.placed.clone().difference(&wanted) {
            match linux.remove_address(*ifindex, *address, 32).await {
                Ok(()) => drop(self.placed.remove(&(*ifindex, *address))),
                Err(error) => self.misplace(*address, &error),
            }
        }
    }

    /// Says when somebody has taken a virtual address away. It is not put back by itself: that may be how an
    /// operator takes this router out of service. A reload puts it back.
    pub(super) fn miss_addresses(&mut self) {
        let held = &self.watcher.mirror().addresses;
        let is_held = |&(ifindex, address): &(u32, Ipv4Addr)| {
            held.iter().any(|&(on, other, _)| (on, other) == (ifindex, address))
        };
        let missing = self.virtual_addresses().into_iter().find(|place| !is_held(place));
        if let Some((_, address)) = missing
            && !self.missed
        {
            tracing::warn!(%address, "somebody has taken a virtual address from its twin; a reload puts it back");
        }
        self.missed = missing.is_some();
    }

    fn misplace(&mut self, address: Ipv4Addr, error: &anyhow::Error) {
        self.misplaced = true;
        let error = format!("{error:#}");
        tracing::error!(%address, error, "a virtual address is not on, or still on, its twin; trying again");
    }

    /// The virtual addresses, each with the interface that is to have it.
    fn virtual_addresses(&self) -> HashSet<(u32, Ipv4Addr)> {
        let place = |service: &Service| {
            let port = self.config.port_of(service);
            let own = port.addresses.iter().any(|prefix| prefix.address == *service.address.ip());
            let index = self.config.ports.iter().position(|other| other.name == port.name)?;
            (!own).then_some((self.ports[index].ifindex, *service.address.ip()))
        };
        self.config.services.iter().filter_map(place).collect()
    }

    /// Tells Linux that the next hops are in use, so that it keeps them fresh and notices a new MAC.
    pub(super) async fn refresh_neighbours(&self) {
        self.ask_for(|_| true).await;
    }

    pub(super) async fn ask_for_missing_neighbours(&self) {
        let known = &self.watcher.mirror().neighbours;
        self.ask_for(|key| !known.contains_key(key)).await;
    }

    async fn ask_for(&self, which: impl Fn(&(u32, Ipv4Addr)) -> bool) {
        let linux = self.watcher.handle();
        let fixed = &self.watcher.mirror().fixed;
        for &(port, address) in &self.next_hops {
            let key = (self.ifindex(port), address);
            if !fixed.contains(&key) && which(&key) {
                slowpath::ask(&linux, &self.twins, port, address).await;
            }
        }
    }
}
