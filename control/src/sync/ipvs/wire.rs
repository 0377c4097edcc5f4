//! Messages of the sync protocol of Linux IPVS: a message a datagram, big end first.
//!
//! ```text
//! version 1          0 (1)  syncid (1)  bytes of the message (2)  connections (1)  1 (1)  0 (2)
//!   connection       type (1)  protocol (1)  version 0 (4 bits), bytes (12 bits)  flags (4)  state (2)
//!                    ports of client, service, server (2 each)  fwmark (4)  timeout in seconds (4)
//!                    addresses of client, service, server (4 each, 16 if bit 0 of the type says IPv6)
//!                    options: kind (1)  length (1)  data; then nothing up to a multiple of four bytes
//!
//! version 0          connections (1)  syncid (1)  bytes of the message (2)
//!   connection       0 (1)  protocol (1)  ports (2 each)  addresses (4 each)  flags (2)  state (2)
//!                    sequence numbers (24) if the flags say so
//! ```
//!
//! Version 1 is written, both are read: `net.ipv4.vs.sync_version = 0` is rare, but a few lines. As in Linux a message that
//! does not begin with a zero is of version 0. Unlike in Linux, a message with an error anywhere is refused as a whole:
//! nobody knows what else is wrong with it.

use std::net::{Ipv4Addr, SocketAddrV4};

/// The most connections of a message.
const MOST: usize = u8::MAX as usize;
const HEADER: usize = 8;
const HEADER_V0: usize = 4;
/// Bytes of a connection without options, of IPv4, of IPv6, and of version 0.
const V4: usize = 36;
const V6: usize = 72;
const V0: usize = 24;

/// Bits of a connection's flags. The forwarding method is a number in the lowest three.
pub const METHOD: u32 = 0x0007;
/// No packets of the real server are seen.
pub const NO_OUTPUT: u32 = 0x0080;
/// It counts as inactive.
pub const INACTIVE: u32 = 0x0100;
/// Sequence numbers are adjusted, in one or the other direction.
const SEQUENCES: u32 = 0x0600;
/// The client's port is not known yet.
pub const NO_CLIENT_PORT: u32 = 0x0800;
/// Not a connection, but where a client's next ones are to go.
pub const TEMPLATE: u32 = 0x1000;
/// It is over with its first packet.
pub const ONE_PACKET: u32 = 0x2000;

/// An option's kind: sequence numbers, data and name of a persistence engine; with the last bit, one that may be passed over.
const SEQUENCE_DATA: u8 = 1;
const ENGINE_DATA: u8 = 2;
const ENGINE_NAME: u8 = 3;
const OPTIONAL: u8 = 0x40;
/// Bytes of sequence numbers: first, delta and delta before, in each direction.
const SEQUENCE_BYTES: usize = 24;

/// A connection over IPv4, as it is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of IP.
    pub protocol: u8,
    /// Of IPVS.
    pub flags: u32,
    /// Of IPVS, as the protocol has them.
    pub state: u16,
    /// The client.
    pub client: SocketAddrV4,
    /// The service.
    pub service: SocketAddrV4,
    /// The real server.
    pub server: SocketAddrV4,
    /// The mark of the firewall that makes it the service's; 0 if its address does.
    pub fwmark: u32,
    /// Seconds until it ends if nothing comes; 0 if that is not said.
    pub timeout: u32,
    /// Whether the bytes of its stream are counted otherwise on both sides.
    pub is_adjusted: bool,
}

/// What a message tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A connection over IPv4.
    V4(Entry),
    /// One over IPv6.
    V6,
    /// One that cannot be understood without an option that we do not know.
    UnknownOption,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who belongs together.
    pub syncid: u8,
    /// What it tells of.
    pub told: Vec<Told>,
}

/// How many connections a message of so many bytes has room for.
pub fn room(bytes: u16) -> usize {
    ((usize::from(bytes) - HEADER) / V4).min(MOST)
}

/// Writes a message of version 1 with these connections, of which there must be no more than a message has room for.
pub fn encode(syncid: u8, entries: &[Entry]) -> Vec<u8> {
    debug_assert!(entries.len() <= MOST);
    let bytes = HEADER + V4 * entries.len();
    let mut out = Vec::with_capacity(bytes);
    out.extend([0, syncid]);
    out.extend((bytes as u16).to_be_bytes());
    out.extend([entries.len() as u8, 1, 0, 0]);
    for entry in entries {
        let ends = [entry.client, entry.service, entry.server];
        out.extend([0, entry.protocol]);
        out.extend((V4 as u16).to_be_bytes());
        out.extend(entry.flags.to_be_bytes());
        out.extend(entry.state.to_be_bytes());
        ends.iter().for_each(|end| out.extend(end.port().to_be_bytes()));
        out.extend(entry.fwmark.to_be_bytes());
        out.extend(entry.timeout.to_be_bytes());
        ends.iter().for_each(|end| out.extend(end.ip().octets()));
    }
    out
}

/// Reads a message; `None` if it is none.
pub fn decode(bytes: &[u8]) -> Option<Message> {
    let &[first, syncid, high, low, ..] = bytes else { return None };
    if usize::from(u16::from_be_bytes([high, low])) != bytes.len() {
        return None;
    }
    let told = match (first, bytes.get(4..HEADER)) {
        (0, Some(&[count, 1, 0, 0])) => decode_v1(bytes.get(HEADER..)?, count)?,
        (0, _) => return None,
        (count, _) => decode_v0(bytes.get(HEADER_V0..)?, count)?,
    };
    Some(Message { syncid, told })
}

fn decode_v1(mut rest: &[u8], count: u8) -> Option<Vec<Told>> {
    let mut told = Vec::with_capacity(count.into());
    for _ in 0..count {
        let size = rest.get(2..4).map(|size| u16::from_be_bytes([size[0], size[1]]))?;
        // Of more than twelve bits: a version that is not known.
        let entry = rest.get(..usize::from(size)).filter(|_| size < 1 << 12)?;
        told.push(decode_entry(entry)?);
        // The last one may, but need not be filled up.
        rest = rest.get(usize::from(size).next_multiple_of(4)..).unwrap_or_default();
    }
    rest.is_empty().then_some(told)
}

fn decode_entry(mut bytes: &[u8]) -> Option<Told> {
    let whole = &mut bytes;
    let [kind, protocol] = take(whole)?;
    let _size: [u8; 2] = take(whole)?;
    let flags = u32::from_be_bytes(take(whole)?);
    let state = u16::from_be_bytes(take(whole)?);
    let ports = [take(whole)?, take(whole)?, take(whole)?].map(u16::from_be_bytes);
    let fwmark = u32::from_be_bytes(take(whole)?);
    let timeout = u32::from_be_bytes(take(whole)?);
    match kind {
        0 => {
            let addresses: [[u8; 4]; 3] = [take(whole)?, take(whole)?, take(whole)?];
            let Options { is_adjusted, is_understood } = decode_options(whole)?;
            if !is_understood {
                return Some(Told::UnknownOption);
            }
            let [client, service, server] = sockets(addresses, ports);
            let entry =
                Entry { protocol, flags, state, client, service, server, fwmark, timeout, is_adjusted };
            Some(Told::V4(entry))
        }
        1 => {
            let _addresses: [u8; V6 - V4 + 12] = take(whole)?;
            decode_options(whole).map(|_| Told::V6)
        }
        _ => None,
    }
}

struct Options {
    is_adjusted: bool,
    is_understood: bool,
}

fn decode_options(mut bytes: &[u8]) -> Option<Options> {
    let mut options = Options { is_adjusted: false, is_understood: true };
    let mut seen = 0u8;
    while !bytes.is_empty() {
        let [kind, length] = take(&mut bytes)?;
        let data = bytes.split_off(..usize::from(length)).filter(|data| !data.is_empty())?;
        let known = kind & !OPTIONAL;
        match known {
            SEQUENCE_DATA | ENGINE_DATA | ENGINE_NAME => {
                if seen & 1 << known != 0 || known == SEQUENCE_DATA && data.len() != SEQUENCE_BYTES {
                    return None;
                }
                seen |= 1 << known;
                if known == SEQUENCE_DATA {
                    options.is_adjusted = is_adjusted(data);
                }
            }
            _ => options.is_understood &= kind & OPTIONAL != 0,
        }
    }
    Some(options)
}

/// Whether one of the deltas is not zero.
fn is_adjusted(sequences: &[u8]) -> bool {
    sequences.chunks(SEQUENCE_BYTES / 2).any(|direction| direction[4..].iter().any(|&byte| byte != 0))
}

fn decode_v0(mut rest: &[u8], count: u8) -> Option<Vec<Told>> {
    let mut told = Vec::with_capacity(count.into());
    for _ in 0..count {
        let mut bytes = rest.split_off(..V0)?;
        let whole = &mut bytes;
        let [_, protocol] = take(whole)?;
        let ports = [take(whole)?, take(whole)?, take(whole)?].map(u16::from_be_bytes);
        let [client, service, server] = sockets([take(whole)?, take(whole)?, take(whole)?], ports);
        let flags = u16::from_be_bytes(take(whole)?).into();
        let state = u16::from_be_bytes(take(whole)?);
        // In the order of bytes of whoever sends it; a zero is one in any.
        let is_adjusted = flags & SEQUENCES != 0 && is_adjusted(rest.split_off(..SEQUENCE_BYTES)?);
        told.push(Told::V4(Entry {
            protocol,
            flags,
            state,
            client,
            service,
            server,
            fwmark: 0,
            timeout: 0,
            is_adjusted,
        }));
    }
    rest.is_empty().then_some(told)
}

fn sockets(addresses: [[u8; 4]; 3], ports: [u16; 3]) -> [SocketAddrV4; 3] {
    std::array::from_fn(|end| SocketAddrV4::new(Ipv4Addr::from(addresses[end]), ports[end]))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

#[cfg(test)]
pub(super) mod tests;
