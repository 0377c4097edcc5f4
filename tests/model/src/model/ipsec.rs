//! IPsec: what two hosts protect goes with the connection by which they have agreed on keys (RFC 7296, 4303, 4302; docs/operating.md).

use std::net::{IpAddr, SocketAddr};

use dataplane::service::{Helper, Mode, Protocol};

use super::connections::{Connection, client_side};
use super::sending::{has_gone_on, send, send_to};
use super::{Fate, Frame, Model};
use crate::packet::{AH, ESP, End, Packet};
use crate::tcp::Seen;
use crate::world::{self, Flow};

/// The port of IKE, at both ends.
const IKE: u16 = 500;

impl Model {
    /// Whether it is a packet of ESP or AH that may go with a connection.
    pub(super) fn is_secured(&self, packet: &Packet) -> bool {
        let has_helper = self.services.iter().any(|service| service.helper == Some(Helper::Ipsec));
        has_helper && matches!(packet.protocol, ESP | AH) && !packet.is_source_routed
    }

    /// What becomes of such a packet by the connection from port 500 to port 500 of the same two, if there is one. Each fragment is one by itself.
    pub(super) fn goes_with_ike(&mut self, frame: &Frame<'_>) -> Option<Fate> {
        let packet = &frame.packet;
        let at_ike = |address: IpAddr| SocketAddr::new(address, IKE);
        let (source, destination) = (at_ike(packet.source), at_ike(packet.destination));
        let is_to_service = self.services_at(destination, Protocol::Udp).next().is_some();
        let index = match is_to_service {
            true => self.find_by_client(Flow { protocol: Protocol::Udp, client: source, destination }),
            false => self.find_by_server(source, destination, Protocol::Udp),
        }?;
        let Connection { service, server, flow, .. } = self.connections[index];
        let its = &self.services[service];
        // AH protects the addresses.
        if its.helper != Some(Helper::Ipsec) || packet.protocol == AH && its.translates(server) {
            return None;
        }
        if let Err(fate) = self.arrives(packet, service, server) {
            return Some(fate);
        }
        if is_to_service && self.begins_anew(index, 0) {
            self.connections.remove(index);
            self.note_limits();
            return None;
        }
        let mut packet = packet.clone();
        let length = packet.bytes.len();
        let (seen, end, address) = match is_to_service {
            true => (client_side(its, server), End::Destination, world::server_address(its, server).ip()),
            false => (Seen::FromServer, End::Source, flow.destination.ip()),
        };
        if its.mode == Mode::Nat {
            packet.readdress(end, address, None);
        }
        packet.spend_hop();
        self.follow(index, seen, 0);
        let fate = match is_to_service {
            true => send_to(&self.services, frame, packet, service, server),
            false => send(&self.services, frame, &packet, flow.client.ip()),
        };
        if has_gone_on(&fate) {
            self.count(service, server, usize::from(!is_to_service), length);
        }
        Some(fate)
    }
}
