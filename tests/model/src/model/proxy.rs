//! The PROXY protocol of full NAT (haproxy.org, proxy-protocol.txt, version 2; docs/operating.md): a stream begins with who its client is.
//!
//! The header stands in front of the client's data in the segment that begins the stream, until the server has acknowledged it. All that
//! the client sends is farther on for the server by its length, and what the server acknowledges is less for the client by that.

use std::net::{IpAddr, SocketAddr};

use dataplane::service::Protocol;

use super::Model;
use super::connections::Connection;
use super::headers::ends;
use crate::packet::{ACK, Packet, RST, SYN};
use crate::tcp::State;
use crate::world::Service;

/// A stream that begins with a header.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stream {
    /// The number of its first byte, which the server's SYN says. Before that nobody has anything to say.
    first: u32,
    /// Whether the server has the header.
    has_passed: bool,
}

/// Bytes of a header.
fn length(is_six: bool) -> u32 {
    if is_six { 52 } else { 28 }
}

/// Whether streams of this protocol begin with one.
pub(super) fn has_header(service: &Service, protocol: Protocol) -> bool {
    service.proxy && protocol == Protocol::Tcp
}

/// What an MTU on the way to a server leaves to its clients. Less than 1280 means nothing to a sender of IPv6 (RFC 8201, section 4), less than 68 to one of IPv4.
pub(super) fn lower_mtu(message: &mut [u8], is_six: bool) {
    if matches!((is_six, message[0], message[1]), (false, 3, 4) | (true, 2, 0)) {
        let (mtu, least) = (u16::from_be_bytes([message[6], message[7]]), if is_six { 1280 } else { 68 });
        if mtu > least {
            let left = least.max(mtu.saturating_sub(length(is_six) as u16));
            message[6..8].copy_from_slice(&left.to_be_bytes());
        }
    }
}

impl Model {
    /// A client's segment of this connection becomes what the server is to get, or goes no further.
    pub(super) fn introduce(&self, packet: &mut Packet, index: usize) -> Result<(), &'static str> {
        let Connection { service, flow, state, stream, .. } = self.connections[index];
        if !has_header(&self.services[service], flow.protocol) {
            return Ok(());
        }
        let (sequence, flags) = (packet.sequence(), packet.flags());
        let added = length(packet.is_six());
        if flags & SYN != 0 {
            // What comes with a SYN would come before the header.
            return if packet.has_data() { Err("bad_transport_header") } else { Ok(()) };
        }
        let Some(Stream { first, has_passed }) = stream else { return Ok(()) };
        let is_first = !has_passed && sequence == first;
        if is_first && flags & RST == 0 {
            if packet.fragment.is_some() {
                return Err("bad_fragment");
            }
            let header = header(ends(packet));
            packet.insert(&header);
            return Ok(());
        }
        // Who resets before the handshake is over resets what the server has sent, which has no header yet.
        if flags & RST != 0 && !has_passed && state == State::SynRecv {
            return Ok(());
        }
        if has_passed || is_first || is_after(sequence, first) {
            packet.set_sequence(sequence.wrapping_add(added));
        }
        Ok(())
    }

    /// A server's segment of this connection becomes what the client is to get.
    pub(super) fn conceal(&mut self, packet: &mut Packet, index: usize) {
        let Some(stream) = &mut self.connections[index].stream else { return };
        let (flags, acknowledged, added) = (packet.flags(), packet.acknowledged(), length(packet.is_six()));
        if flags & SYN != 0 {
            if flags & ACK != 0 && acknowledged != stream.first {
                *stream = Stream { first: acknowledged, has_passed: false };
            }
            packet.change_size(|size| size.saturating_sub(added as u16));
        } else if flags & ACK != 0 {
            let end = stream.first.wrapping_add(added);
            stream.has_passed |= acknowledged == end || is_after(acknowledged, end);
            let Stream { first, has_passed } = *stream;
            packet.acknowledge(|number| match number {
                _ if has_passed || is_after(number, end) => number.wrapping_sub(added),
                // Part of the header.
                _ if is_after(number, first) => first,
                _ => number,
            });
        }
    }
}

/// Whether a number is after another one (RFC 9293, section 3.4).
fn is_after(number: u32, other: u32) -> bool {
    number != other && number.wrapping_sub(other) < 1 << 31
}

fn header((source, destination): (SocketAddr, SocketAddr)) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    };
    let family = if source.is_ipv4() { 0x11 } else { 0x21 };
    let addresses = [octets(source.ip()), octets(destination.ip())].concat();
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let rest = (addresses.len() + ports.len()) as u8;
    [b"\r\n\r\n\0\r\nQUIT\n", &[0x21, family, 0, rest][..], &addresses, &ports].concat()
}
