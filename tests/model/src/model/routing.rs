//! What concerns no service, if the workers route it (RFC 1812, section 5.2; docs/operating.md).

use std::net::IpAddr;

use super::sending::send;
use super::services::is_nobodys;
use super::{Fate, Frame, Model};
use crate::packet::Packet;
use crate::world::{self, Way};

/// How far a packet gets.
pub(super) enum Onward {
    /// Where it goes is Linux' to say.
    Linux,
    /// No further.
    Stopped(&'static str),
    /// Linux sends it in fragments.
    Fragments,
    Goes,
}

impl Model {
    /// What would be Linux' because it concerns no service is routed, if it is from one host to another and there is a way.
    pub(super) fn routed_instead(&mut self, frame: &Frame<'_>, fate: Fate) -> Fate {
        let is_open = matches!(
            fate,
            Fate::Punt("no_service" | "server_reply" | "icmp" | "other_protocol" | "fragment")
        );
        if is_open && let Some(translated) = self.translated(frame) {
            return translated;
        }
        let packet = &frame.packet;
        let is_between_others = self.is_others(packet.source) && self.is_others(packet.destination);
        if !is_open || !self.is_routing || packet.is_for_routers() || !is_between_others {
            return fate;
        }
        match self.onward(packet, packet.destination) {
            Onward::Linux => fate,
            Onward::Stopped(why) => Fate::Drop(why),
            // Linux makes fragments of fragments, too.
            Onward::Fragments if packet.fragment.is_some() => fate,
            Onward::Fragments | Onward::Goes => self.route_on(frame, packet.clone(), packet.destination),
        }
    }

    /// How far a packet gets on the way to an address.
    pub(super) fn onward(&self, packet: &Packet, destination: IpAddr) -> Onward {
        match world::way(&self.services, destination) {
            Way::None => Onward::Linux,
            _ if packet.hops() <= 1 => Onward::Stopped("ttl_expired"),
            Way::Out { mtu, .. } if packet.bytes.len() > mtu => match packet.may_be_fragmented() {
                true => Onward::Fragments,
                false => Onward::Stopped("too_big"),
            },
            Way::Out { .. } | Way::Unknown => Onward::Goes,
        }
    }

    /// Routes a packet that gets there, once it has the addresses that it is to have.
    pub(super) fn route_on(&mut self, frame: &Frame<'_>, mut packet: Packet, destination: IpAddr) -> Fate {
        let is_too_long = matches!(self.onward(&packet, destination), Onward::Fragments);
        packet.spend_hop();
        if is_too_long {
            return Fate::ToFragment(packet.bytes);
        }
        match send(&self.services, frame, &packet, destination) {
            Fate::Forward(port, bytes) => {
                self.routed.0 += 1;
                self.routed.1 += packet.bytes.len() as u64;
                Fate::Route(port, bytes)
            }
            other => other,
        }
    }

    /// Whether an address is one host's, but not the router's, and not on one link alone.
    pub(super) fn is_others(&self, address: IpAddr) -> bool {
        let is_of_link = matches!(address, IpAddr::V4(four) if four.is_link_local());
        !is_nobodys(address) && !is_of_link && !world::is_own(address) && !self.is_virtual(address)
    }
}
