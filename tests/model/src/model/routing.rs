//! What concerns no service, if the workers route it (RFC 1812, section 5.2; docs/operating.md).

use std::net::IpAddr;

use super::sending::send;
use super::services::is_nobodys;
use super::{Fate, Frame, Model};
use crate::world::{self, Way};

impl Model {
    /// What would be Linux' because it concerns no service is routed, if it is from one host to another and there is a way.
    pub(super) fn routed_instead(&mut self, frame: &Frame<'_>, fate: Fate) -> Fate {
        let is_open = matches!(
            fate,
            Fate::Punt("no_service" | "server_reply" | "icmp" | "other_protocol" | "fragment")
        );
        let packet = &frame.packet;
        let is_between_others = self.is_others(packet.source) && self.is_others(packet.destination);
        if !is_open || !self.is_routing || packet.is_for_routers() || !is_between_others {
            return fate;
        }
        let way = world::way(&self.services, packet.destination);
        if way == Way::None {
            return fate;
        }
        if packet.hops() <= 1 {
            return Fate::Drop("ttl_expired");
        }
        let mut sent = packet.clone();
        sent.spend_hop();
        if let Way::Out { mtu, .. } = way
            && sent.bytes.len() > mtu
            && packet.may_be_fragmented()
        {
            // Linux makes fragments of fragments, too.
            return if packet.fragment.is_some() { fate } else { Fate::ToFragment(sent.bytes) };
        }
        match send(&self.services, frame, &sent, packet.destination) {
            Fate::Forward(port, bytes) => {
                self.routed.0 += 1;
                self.routed.1 += packet.bytes.len() as u64;
                Fate::Route(port, bytes)
            }
            other => other,
        }
    }

    /// Whether an address is one host's, but not the router's, and not on one link alone.
    fn is_others(&self, address: IpAddr) -> bool {
        let is_of_link = matches!(address, IpAddr::V4(four) if four.is_link_local());
        !is_nobodys(address) && !is_of_link && !world::is_own(address) && !self.is_virtual(address)
    }
}
