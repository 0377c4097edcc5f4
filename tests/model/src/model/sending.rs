//! How a packet leaves, once it has the addresses that it is to have.

use std::net::IpAddr;

use dataplane::service::Mode;
use dataplane::snapshot::MssClamp;

use super::here::LOCAL;
use super::{Fate, Frame};
use crate::packet::{Packet, SYN, TCP};
use crate::tunnel;
use crate::world::{self, MACS, Service, Tunnel, Way};

/// Sends a packet to a real server of a service, in the service's way; by NAT it has its addresses already. To the router itself none is sent.
pub(super) fn send_to(
    services: &[Service],
    frame: &Frame<'_>,
    packet: Packet,
    number: usize,
    server: usize,
) -> Fate {
    let service = &services[number];
    if service.is_here(server) {
        return LOCAL;
    }
    let address = world::server_address(service, server).ip();
    match service.mode {
        Mode::Nat | Mode::Fullnat => send(services, frame, &packet, address),
        Mode::Dr => match send(services, frame, &packet, address) {
            // Linux would deliver it to itself: the virtual address is its own.
            Fate::Unresolved(_) => Fate::Drop("no_neighbour"),
            fate => fate,
        },
        Mode::Tunnel => send_through(services, frame, packet, service, address),
    }
}

/// Sends a packet through the tunnel to a server.
pub(super) fn send_through(
    services: &[Service],
    frame: &Frame<'_>,
    mut packet: Packet,
    service: &Service,
    address: IpAddr,
) -> Fate {
    let Tunnel { encapsulation, mss_clamp } = service.tunnel;
    let way = world::way(services, address);
    let most = match (mss_clamp, way) {
        (Some(MssClamp::To(most)), _) => Some(most),
        (Some(MssClamp::Fit), Way::Out { mtu, .. }) => {
            let headers = if packet.is_six() { 60 } else { 40 };
            Some((mtu - tunnel::overhead(encapsulation, address) - headers) as u16)
        }
        _ => None,
    };
    let has_header = packet.fragment.is_none_or(|fragment| fragment.offset == 0);
    if let (Some(most), TCP, true) = (most, packet.protocol, has_header)
        && packet.flags() & SYN != 0
    {
        packet.change_size(|size| size.min(most));
    }
    let whole = tunnel::around(encapsulation, &packet.bytes, address);
    let may_fragment = tunnel::may_be_split(&packet.bytes);
    let outer = Packet { bytes: whole, ..packet };
    match way {
        Way::Out { mtu, .. } if outer.bytes.len() > mtu && may_fragment => {
            Fate::ToFragment([&outer.bytes, behind(frame)].concat())
        }
        _ => send(services, frame, &outer, address),
    }
}

/// Sends a packet towards an address, as what the frame becomes.
pub(super) fn send(services: &[Service], frame: &Frame<'_>, packet: &Packet, towards: IpAddr) -> Fate {
    let behind = behind(frame);
    match world::way(services, towards) {
        Way::None => Fate::Drop("no_route"),
        Way::Unknown => Fate::Unresolved([&packet.bytes, behind].concat()),
        Way::Out { mtu, .. } if packet.bytes.len() > mtu => Fate::Drop("too_big"),
        Way::Out { port, mac, .. } => {
            let ether_type = if packet.bytes[0] >> 4 == 6 { [0x86, 0xDD] } else { [8, 0] };
            let header = [&mac[..], &MACS[usize::from(port)], &ether_type].concat();
            Fate::Forward(port, [&header, &packet.bytes[..], behind].concat())
        }
    }
}

/// What stood behind the packet, and does so still.
fn behind<'a>(frame: &Frame<'a>) -> &'a [u8] {
    &frame.bytes[14 + frame.packet.bytes.len()..]
}

/// Whether a packet has gone on to its server or its client, and is counted.
pub(super) fn has_gone_on(fate: &Fate) -> bool {
    matches!(fate, Fate::Forward(..) | Fate::Unresolved(_) | Fate::ToFragment(_)) || *fate == LOCAL
}
