//! Services whose datagrams name their servers (docs/operating.md, "QUIC").

use dataplane::service::Protocol;

use super::Model;
use super::connections::is_over;
use crate::packet::{self, Packet, UDP};
use crate::quic;
use crate::world::Flow;

impl Model {
    /// The server that a datagram to a service names itself, unless that is down. Fragments go by address and port.
    pub(super) fn named(&self, packet: &Packet, number: usize) -> Option<usize> {
        let service = &self.services[number];
        if packet.protocol != UDP || packet.fragment.is_some() {
            return None;
        }
        let segment = packet.segment();
        let payload = segment.get(8..usize::from(packet::word(segment, 4)))?;
        let id = quic::destination(payload)?;
        let server_id = service.quic.iter().find_map(|config| config.read(id))?;
        let server = service.servers.iter().position(|one| one.quic_id.as_ref() == Some(&server_id))?;
        service.servers[server].up.then_some(server)
    }

    /// Whether a frame goes by a flow that has a connection with each of several servers: nobody says to which of them.
    pub fn is_unclear(&self, now: u64, flow: Flow, (port, frame): (u16, &[u8])) -> bool {
        let alive = |one: &&super::Connection| !is_over(one, &self.services[one.service], now);
        if self.connections.iter().filter(|one| one.flow == flow).filter(alive).count() < 2 {
            return false;
        }
        let is_six = flow.client.is_ipv6();
        let packet = frame.get(14..).and_then(|packet| packet::parse(packet, is_six).ok());
        packet.is_some_and(|packet| match self.service_at(flow.destination, Protocol::Udp, port) {
            Some(number) if packet.protocol == UDP => {
                packet.destination == flow.destination.ip() && self.named(&packet, number).is_none()
            }
            _ => true,
        })
    }
}
