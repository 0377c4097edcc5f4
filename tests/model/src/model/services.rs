//! Whose an address is.

use std::net::{IpAddr, SocketAddr};

use dataplane::service::{Mode, Protocol};

use super::Model;
use crate::packet::Packet;
use crate::world;

impl Model {
    pub(super) fn service_at(&self, address: SocketAddr, protocol: Protocol) -> Option<usize> {
        (0..self.services.len()).find(|&number| {
            let service = &self.services[number];
            service.protocol == protocol && world::virtual_address(number, service) == address
        })
    }

    pub(super) fn is_endpoint(&self, address: SocketAddr, protocol: Protocol) -> bool {
        self.services.iter().enumerate().any(|(number, service)| {
            service.protocol == protocol
                && service.mode == Mode::Nat
                && (0..service.servers.len())
                    .any(|server| world::server_address(number, service, server) == address)
        })
    }

    /// Of datagrams that nobody remembers, the service whose server has this address, and which one that is.
    pub(super) fn one_packet_service_of(
        &self,
        address: SocketAddr,
        protocol: Protocol,
    ) -> Option<(usize, usize)> {
        let nat = self.services.iter().enumerate().filter(|(_, service)| {
            service.one_packet && service.mode == Mode::Nat && service.protocol == protocol
        });
        let mut servers =
            nat.flat_map(|(number, service)| (0..service.servers.len()).map(move |server| (number, server)));
        servers.find(|&(number, server)| {
            world::server_address(number, &self.services[number], server) == address
        })
    }

    /// Whether it goes to a virtual address or comes from a real server's.
    pub(super) fn concerns(&self, packet: &Packet) -> bool {
        self.services.iter().enumerate().any(|(number, service)| {
            service.live && world::virtual_address(number, service).ip() == packet.destination
                || service.mode == Mode::Fullnat
                    && world::local_addresses(service.is_six).contains(&packet.destination)
                || service.mode == Mode::Nat
                    && (0..service.servers.len())
                        .any(|server| world::server_address(number, service, server).ip() == packet.source)
        })
    }

    /// Whether no client has this address.
    pub(super) fn is_martian(&self, address: IpAddr) -> bool {
        is_nobodys(address) || self.is_virtual(address)
    }

    pub(super) fn is_virtual(&self, address: IpAddr) -> bool {
        self.services
            .iter()
            .enumerate()
            .any(|(number, service)| service.live && world::virtual_address(number, service).ip() == address)
    }
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
