//! Which virtual addresses are announced: told when it changes, and changed when an operator says so.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use itertools::Itertools;

use super::Director;
use crate::addresses::{Orders, Situation, shown};
use crate::admin::api;
use crate::config::{Service, VirtualAddresses};
use crate::events::Kind;
use crate::ids::ServiceKey;

/// What is said of how long a withdrawal holds.
const HOLDS: &str = "until `rvs announce`, or rvs ends";

impl Director {
    /// Judges anew how the virtual addresses stand, and tells what has changed. On twins it is with
    /// [`Director::place_virtual_addresses`].
    pub(super) fn judge_addresses(&mut self) {
        if !self.is_settled {
            return;
        }
        self.peers.withdraw(self.orders.router || self.orders.stopping);
        let placed_by = self.config.run.virtual_addresses;
        let situation = Situation {
            placed_by,
            present: self.services.present(),
            running: self.services.running(),
            has_quorum: |service| self.effects.has_quorum(service),
            // As it has been acted upon: peers may have told everything a moment ago.
            is_ready: !self.learning,
            held: &self.live,
        };
        let mut standings = self.orders.judge(&situation);
        // The router's own stay whatever comes.
        let own = self.own_addresses();
        standings.retain(|address, _| !own.contains(address));
        if standings == self.standings {
            return;
        }
        let before = std::mem::replace(&mut self.standings, standings);
        // Where others place them, it is told when they come and go.
        if placed_by == VirtualAddresses::Follow {
            return;
        }
        self.misplaced = true;
        // One that is placed from the beginning is no news.
        let expected = (placed_by == VirtualAddresses::Place).then_some(&None);
        for (&address, standing) in &self.standings {
            if before.get(&address).or(expected) == Some(standing) {
                continue;
            }
            let kind = match standing {
                None => Kind::AddressAnnounced { address },
                Some(reason) => Kind::AddressWithdrawn { address, reason: reason.to_string() },
            };
            tracing::info!("{kind}");
            self.events.publish(kind);
        }
    }

    /// Takes the router or an address out of service, or takes that back.
    pub(super) async fn order(&mut self, orders: Orders) -> Result<api::Changed> {
        ensure!(!self.orders.stopping, "rvs is stopping");
        let before = self.standings.clone();
        self.orders = orders;
        self.put_in_force().await;
        let standing = |address: &IpAddr| self.standings.get(address).copied().flatten();
        let change = |service: &Service| {
            let both = |address| (before.get(&address).copied().flatten(), standing(&address));
            // Of a mark the first of its addresses of which there is something to say.
            let (was, is) = service.virtual_addresses().map(both).find(|(was, is)| was != is)?;
            Some(api::Change {
                sign: api::Sign::Changed,
                service: Some(ServiceKey::of(service).to_string()),
                server: None,
                what: format!("{} -> {}", shown(was), shown(is)),
            })
        };
        let changes: Vec<api::Change> = self.services.running().iter().filter_map(change).collect();
        for change in &changes {
            tracing::info!(%change, "changed live");
            if self.follows() {
                self.events.publish(Kind::ChangedLive { change: change.to_string() });
            }
        }
        Ok(api::Changed { generation: self.generation, changes, holds: HOLDS.to_owned() })
    }

    /// The orders with an address, or all of the router, taken out of service.
    pub(super) fn withdrawn(&self, address: Option<IpAddr>) -> Result<Orders> {
        let mut orders = self.orders.clone();
        match address {
            None => orders.router = true,
            Some(address) => {
                self.require_address(address)?;
                orders.addresses.insert(address);
            }
        }
        Ok(orders)
    }

    /// The orders with an address, or everything, put back into service.
    pub(super) fn announced(&self, address: Option<IpAddr>) -> Result<Orders> {
        let Some(address) = address else { return Ok(Orders::default()) };
        self.require_address(address)?;
        ensure!(
            !self.orders.router,
            "the whole router is out of service; expected `rvs announce` without an address"
        );
        let mut orders = self.orders.clone();
        orders.addresses.remove(&address);
        Ok(orders)
    }

    fn require_address(&self, address: IpAddr) -> Result<()> {
        ensure!(
            !self.follows(),
            "run.virtual_addresses is \"follow\": whoever places addresses decides about each; expected no address, \
             for the whole router"
        );
        const SHOWN: usize = 10;
        let known = self.standings.keys().take(SHOWN).join(", ");
        let more = if self.standings.len() > SHOWN { ", ..." } else { "" };
        ensure!(
            self.standings.contains_key(&address),
            "no virtual address {address}; expected one of {known}{more}"
        );
        Ok(())
    }
}
