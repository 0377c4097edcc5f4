//! Packets with ports, between a client and a service's server.

use std::net::SocketAddr;

use dataplane::service::{Mode, Protocol};

use super::connections::{Connection, client_side};
use super::fragments::{Went, is_unsummable};
use super::headers::{ends, flow_of};
use super::local::readdress;
use super::sending::{has_gone_on, send, send_to};
use super::{Fate, Frame, Model};
use crate::packet::{End, RST};
use crate::tcp;
use crate::world::{self, Flow};

impl Model {
    /// A packet to a virtual address.
    pub(super) fn client_sends(&mut self, frame: &Frame<'_>, protocol: Protocol) -> Fate {
        let packet = &frame.packet;
        let flow = flow_of(packet, protocol);
        let flags = packet.says();
        if packet.hops() <= 1 && !self.may_be_for_here(frame, flow) {
            return Fate::Drop("ttl_expired");
        }
        let named = self.service_at(flow.destination, protocol, frame.port);
        let named = named.and_then(|service| Some((service, self.named(packet, service)?)));
        let is_its = |one: &Connection| named.is_none_or(|named| (one.service, one.server) == named);
        let known = loop {
            let known = self.find(|one| one.flow == flow && is_its(one));
            if let Some(Connection { service, server, .. }) = known.map(|index| &self.connections[index])
                && let Err(fate) = self.arrives(packet, *service, *server)
            {
                return fate;
            }
            match known {
                // What is over, or its server dead, is forgotten, be there another server or not.
                Some(index) if self.begins_anew(index, flags) => {
                    self.connections.remove(index);
                    self.note_limits();
                }
                known => break known,
            }
        };
        let (service, server) = match known {
            Some(index) if self.is_to_end(index) && flags & RST == 0 => {
                return self.reset(index, packet.fragment.is_some());
            }
            Some(index) => {
                // That with which it has begun, wherever it comes in by now.
                let Connection { service, server, .. } = self.connections[index];
                self.follow(index, client_side(&self.services[service], server), flags);
                (service, server)
            }
            None => {
                let Some(service) = self.service_at(flow.destination, protocol, frame.port) else {
                    return Fate::Punt("no_service");
                };
                let begun = match self.let_in(frame, service, flow, flags) {
                    Ok(None) => self.begin(frame, service, flow, flags),
                    Ok(Some(server)) => self.arrives(packet, service, server).map(|()| server),
                    Err(fate) => Err(fate),
                };
                match begun {
                    Ok(server) => (service, server),
                    Err(fate) => return fate,
                }
            }
        };
        self.placed = Went::With(service, server, End::Destination, flow);
        if is_unsummable(packet, &self.services[service], server) {
            return Fate::Drop("sctp_fragment");
        }
        let address = world::server_at(&self.services[service], server, flow.destination.port());
        let mut packet = frame.packet.clone();
        let length = packet.bytes.len();
        match self.services[service].mode {
            Mode::Dr | Mode::Tunnel => {}
            Mode::Nat => packet.readdress(End::Destination, address.ip(), Some(address.port())),
            Mode::Fullnat => {
                let index =
                    self.find(|one| one.flow == flow && (one.service, one.server) == (service, server));
                let local = index.and_then(|index| Some((index, self.connections[index].local?)));
                let Some((index, local)) = local else { return Fate::Drop("no_local_port") };
                if let Err(why) = self.introduce(&mut packet, index) {
                    return Fate::Drop(why);
                }
                readdress(&mut packet, local, address, true);
            }
        }
        packet.spend_hop();
        let fate = send_to(&self.services, frame, packet, service, server);
        if has_gone_on(&fate) {
            self.count(service, server, 0, length);
        }
        fate
    }

    /// A client's connection.
    pub(super) fn find_by_client(&self, flow: Flow) -> Option<usize> {
        self.find(|one| one.flow == flow)
    }

    /// As whom this server knows a client, as long as the connection lives.
    pub(super) fn local_of(&self, server: usize, flow: Flow) -> Option<SocketAddr> {
        let index = self.find(|one| one.flow == flow && one.server == server)?;
        self.connections[index].local
    }

    /// The connection by NAT of a client with a real server's address and port; one at the very port goes before one of a service of all ports.
    pub(super) fn find_by_server(
        &self,
        server: SocketAddr,
        client: SocketAddr,
        protocol: Protocol,
    ) -> Option<usize> {
        let find = |is_of_all_ports| {
            self.find(|one| {
                let service = &self.services[one.service];
                service.translates(one.server)
                    && service.is_of_all_ports() == is_of_all_ports
                    && (one.flow.protocol, one.flow.client) == (protocol, client)
                    && world::server_at(service, one.server, one.flow.destination.port()) == server
            })
        };
        find(false).or_else(|| find(true))
    }

    /// A packet from a real server's address and port.
    pub(super) fn server_sends(&mut self, frame: &Frame<'_>, protocol: Protocol) -> Fate {
        let packet = &frame.packet;
        // The client, or as whom the server knows it.
        let (endpoint, client) = ends(packet);
        let by_local = self.find_by_local(endpoint, client, protocol);
        let known = by_local.or_else(|| self.find_by_server(endpoint, client, protocol));
        let is_ours = world::is_own(client.ip());
        // A client that is known by a local address is farther on.
        // What is for a service that has it elsewhere is Linux' here, however many hops it has left.
        let is_for_elsewhere = self.services_at(client, protocol).next().is_some();
        if packet.hops() <= 1 && !is_for_elsewhere && (self.is_local(client.ip()) || !is_ours) {
            return Fate::Drop("ttl_expired");
        }
        let known = match known {
            Some(index) if self.is_to_end(index) && packet.flags() & RST == 0 => {
                return self.reset(index, packet.fragment.is_some());
            }
            Some(index) => {
                self.follow(index, tcp::Seen::FromServer, packet.says());
                let Connection { service, server, flow, .. } = self.connections[index];
                Some((service, server, flow))
            }
            // What is for the router itself is the answer to a check.
            None if is_ours => None,
            None => {
                let unremembered = self.unremembered_service_of(frame, endpoint, client, protocol);
                unremembered.or_else(|| self.begin_active(frame, endpoint, client))
            }
        };
        let nobodys = if is_ours { "server_reply" } else { "no_service" };
        let Some((service, server, flow)) = known else { return Fate::Punt(nobodys) };
        self.placed = Went::With(service, server, End::Source, flow);
        if is_unsummable(packet, &self.services[service], server) {
            return Fate::Drop("sctp_fragment");
        }
        let mut packet = frame.packet.clone();
        let length = packet.bytes.len();
        if let Some(index) = by_local {
            self.conceal(&mut packet, index);
        }
        let unchanged_replies = self.unchanged_replies;
        self.announce(&mut packet, service, flow.destination.ip());
        readdress(&mut packet, flow.destination, flow.client, true);
        packet.spend_hop();
        let fate = send(&self.services, frame, &packet, flow.client.ip());
        if has_gone_on(&fate) {
            self.count(service, server, 1, length);
        } else {
            self.unchanged_replies = unchanged_replies;
        }
        fate
    }
}
