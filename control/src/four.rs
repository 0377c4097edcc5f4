//! The step before IPv6 services: what the data path knows as any address, control still knows as one of IPv4.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// The address of a dest. There are no others yet.
pub fn four(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(four) => four,
        SocketAddr::V6(six) => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, six.port()),
    }
}
