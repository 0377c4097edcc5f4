//! Real servers that are the router itself (IPVS' LocalNode; docs/operating.md, "The router itself as a real server").
//!
//! Connections with one begin, are limited and are followed as those by direct routing are, whatever the mode: Linux answers clients without the workers. All that is for
//! it is Linux' as it came. What has no hop left has arrived there, while it goes no further, and leaves nothing behind, if its server is another machine.

use super::{Fate, Frame, Model};
use crate::packet::Packet;
use crate::world::Flow;

/// What becomes of a packet to such a server.
pub(super) const LOCAL: Fate = Fate::Punt("local");

impl Model {
    /// Whether a client's packet may be for the router itself: the service that has what comes in there, else that of its connection, has it among its servers.
    pub(super) fn may_be_for_here(&self, frame: &Frame<'_>, flow: Flow) -> bool {
        let known = || self.find_by_client(flow).map(|index| self.connections[index].service);
        let number = self.service_at(flow.destination, flow.protocol, frame.port).or_else(known);
        number.is_some_and(|number| self.services[number].has_here())
    }

    /// Why a packet does not get as far as a server, if it does not.
    pub(super) fn arrives(&self, packet: &Packet, number: usize, server: usize) -> Result<(), Fate> {
        if packet.hops() <= 1 && !self.services[number].is_here(server) {
            return Err(Fate::Drop("ttl_expired"));
        }
        Ok(())
    }
}
