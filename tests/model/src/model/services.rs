//! Whose an address is.

use std::net::{IpAddr, SocketAddr};

use dataplane::service::{Mode, Protocol};

use super::headers::flow_of;
use super::{Frame, Model};
use crate::packet::Packet;
use crate::world::{self, Face, LAN, Service, WAN};

impl Model {
    /// The service at a virtual address of what comes in on a port of the router: that of a mark or of the very port, which are never both, goes before one of
    /// all ports.
    pub(super) fn service_at(&self, address: SocketAddr, protocol: Protocol, incoming: u16) -> Option<usize> {
        let find = |is_it: &dyn Fn(&Service, &Face) -> bool| {
            self.services.iter().position(|service| {
                service.faces.iter().any(|face| face.protocol == protocol && is_it(service, face))
            })
        };
        let has_port = |service: &Service, face: &Face| {
            let its = world::virtual_address(service.is_six, face);
            let comes_here = face.incoming.is_none_or(|its| its == incoming);
            comes_here && (its == address || its.ip() == address.ip() && face.takes(address.port()))
        };
        let is_first = |service: &Service| service.is_marked || !service.is_of_all_ports();
        find(&|service, face| is_first(service) && has_port(service, face)).or_else(|| find(&has_port))
    }

    /// The services there, wherever packets come in.
    pub(super) fn services_at(&self, address: SocketAddr, protocol: Protocol) -> impl Iterator<Item = usize> {
        [WAN, LAN].into_iter().filter_map(move |port| self.service_at(address, protocol, port))
    }

    /// Whether a packet is a client's: there is a service for what comes in where it does, or it has a connection, which goes on wherever it comes in.
    pub(super) fn is_clients(&self, frame: &Frame<'_>, protocol: Protocol) -> bool {
        let flow = flow_of(&frame.packet, protocol);
        let service = self.service_at(flow.destination, protocol, frame.port);
        service.is_some() || self.find_by_client(flow).is_some()
    }

    pub(super) fn is_endpoint(&self, address: SocketAddr, protocol: Protocol) -> bool {
        self.services.iter().any(|service| {
            service.has(protocol)
                && translated(service)
                    .any(|server| world::server_at(service, server, address.port()) == address)
        })
    }

    /// Whether it goes to a virtual address, or comes from one or from a real server's.
    pub(super) fn concerns(&self, packet: &Packet) -> bool {
        let is_virtual = self.is_virtual(packet.destination) || self.is_virtual(packet.source);
        is_virtual
            || self.is_local(packet.destination)
            || self.services.iter().any(|service| {
                translated(service).any(|server| world::server_address(service, server).ip() == packet.source)
            })
    }

    /// Whether it is one of the local addresses of full NAT.
    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        let mut services = self.services.iter().filter(|service| service.mode == Mode::Fullnat);
        services.any(|service| world::local_addresses(service.is_six).contains(&address))
    }

    /// Whether no client has this address.
    pub(super) fn is_martian(&self, address: IpAddr) -> bool {
        is_nobodys(address) || self.is_virtual(address)
    }

    pub(super) fn is_virtual(&self, address: IpAddr) -> bool {
        self.services.iter().any(|service| service.is_at(address))
    }
}

/// The servers of a service that answer by NAT.
pub(super) fn translated(service: &Service) -> impl Iterator<Item = usize> {
    (0..service.servers.len()).filter(|&server| service.translates(server))
}

/// Whether an address stands for no single host, or only for one on this link (RFC 6890; RFC 4291).
pub(super) fn is_nobodys(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => matches!(four.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(six) => {
            six.is_unspecified() || six.is_loopback() || six.is_unicast_link_local() || six.is_multicast()
        }
    }
}
