//! Packets with ports, between a client and a service's server.

use dataplane::service::{Mode, Protocol};

use super::fragments::Went;
use super::headers::ends;
use super::sending::{has_gone_on, send, send_to};
use super::{Fate, Frame, Model};
use crate::packet::{End, RST};
use crate::tcp;
use crate::world;

impl Model {
    /// A packet to a virtual address.
    pub(super) fn client_sends(&mut self, frame: Frame<'_>, service: usize) -> Fate {
        let packet = &frame.packet;
        let (client, _) = ends(packet);
        let is_tcp = self.services[service].protocol == Protocol::Tcp;
        let flags = if is_tcp { packet.flags() } else { 0 };
        if packet.hops() <= 1 {
            return Fate::Drop("ttl_expired");
        }
        let known = self.find(|connection| connection.service == service && connection.client == client);
        let known = match known {
            // What is over, or its server dead, is forgotten, be there another server or not.
            Some(index) if self.begins_anew(index, flags) => {
                self.connections.remove(index);
                self.note_limits();
                None
            }
            known => known,
        };
        let mode = self.services[service].mode;
        let server = match known {
            Some(index) if self.is_to_end(index) && flags & RST == 0 => {
                return self.reset(index, packet.fragment.is_some());
            }
            Some(index) => {
                let seen = if mode == Mode::Nat { tcp::Seen::FromClient } else { tcp::Seen::OnlyFromClient };
                self.follow(index, seen, flags);
                self.connections[index].server
            }
            None => match self.begin(&frame, service, client, flags) {
                Ok(server) => server,
                Err(fate) => return fate,
            },
        };
        self.placed = Went::With(service, server, End::Destination);
        let address = world::server_address(service, &self.services[service], server);
        let mut packet = frame.packet.clone();
        let length = packet.bytes.len();
        if mode == Mode::Nat {
            packet.readdress(End::Destination, address.ip(), Some(address.port()));
        }
        packet.spend_hop();
        let fate = send_to(&self.services, &frame, packet, service, server);
        if has_gone_on(&fate) {
            self.count(service, server, 0, length);
        }
        fate
    }

    /// A packet from a real server's address and port.
    pub(super) fn server_sends(&mut self, frame: Frame<'_>, protocol: Protocol) -> Fate {
        let packet = &frame.packet;
        let (server, client) = ends(packet);
        let known = self.find(|connection| {
            let service = &self.services[connection.service];
            service.mode == Mode::Nat
                && service.protocol == protocol
                && connection.client == client
                && world::server_address(connection.service, service, connection.server) == server
        });
        if packet.hops() <= 1 && client.ip() != world::ROUTER {
            return Fate::Drop("ttl_expired");
        }
        let known = match known {
            Some(index) if self.is_to_end(index) && packet.flags() & RST == 0 => {
                return self.reset(index, packet.fragment.is_some());
            }
            Some(index) => {
                let flags = if protocol == Protocol::Tcp { packet.flags() } else { 0 };
                self.follow(index, tcp::Seen::FromServer, flags);
                Some((self.connections[index].service, self.connections[index].server))
            }
            // What is for the router itself is the answer to a check.
            None if client.ip() == world::ROUTER => None,
            None => self.one_packet_service_of(server, protocol),
        };
        let nobodys = if client.ip() == world::ROUTER { "server_reply" } else { "no_service" };
        let Some((service, server)) = known else { return Fate::Punt(nobodys) };
        self.placed = Went::With(service, server, End::Source);
        let virtual_address = world::virtual_address(service, &self.services[service]);
        let mut packet = frame.packet.clone();
        let length = packet.bytes.len();
        packet.readdress(End::Source, virtual_address.ip(), Some(virtual_address.port()));
        packet.spend_hop();
        let fate = send(&self.services, &frame, &packet, client.ip());
        if has_gone_on(&fate) {
            self.count(service, server, 1, length);
        }
        fate
    }
}
