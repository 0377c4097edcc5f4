//! Ends a connection whose server has been removed: a RST to both ends, made from any packet of either.
//!
//! Control does this, with packets that a worker has handed over as [`Punt::Reset`](crate::counters::Punt::Reset); it is
//! not the packet path. The packet tells what each end expects next, so both accept the RST without a challenge (RFC
//! 9293, 3.10.7.4; RFC 5961, 3.2). A connection that is silent is not told anything: nobody knows its numbers.

use crate::service::Protocol;
use crate::snapshot::{Dest, Snapshot};
use crate::table::{Client, Judge, Table, Word, Worth};
use crate::wire::checksum;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::transport::{ACK, RST, Transport};

/// An IPv4 packet without payload: 20 bytes of header, 20 of TCP.
pub type Reset = [u8; 40];

const TCP: u8 = 6;

/// The RSTs to send for this IPv4 packet: to the packet's sender, then to the other end, if replies come this way. Its
/// connection is removed from the table. None if it is of no connection that is to be reset.
pub fn reset(table: &Table, snapshot: &Snapshot, packet: &[u8]) -> Vec<Reset> {
    resets(table, snapshot, packet).unwrap_or_default()
}

fn resets(table: &Table, snapshot: &Snapshot, packet: &[u8]) -> Option<Vec<Reset>> {
    let ip = Ipv4::parse(packet).ok().filter(|ip| ip.protocol == TCP && !ip.is_fragment)?;
    let segment = packet.get(ip.header_length..)?;
    let length = usize::from(ip.total_length) - ip.header_length;
    let tcp = Transport::parse(Protocol::Tcp, segment, length)?;
    let number = |at: usize| {
        segment.get(at..at + 4).and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)))
    };
    let (sequence, acknowledged) = (number(4)?, number(8)?);
    let payload = length.checked_sub(usize::from(segment.get(12)? >> 4) * 4)? as u32;
    let source = End { address: ip.source, port: tcp.source };
    let destination = End { address: ip.destination, port: tcp.destination };

    let (client, service_side) =
        match snapshot.service_at(destination.address, destination.port, Protocol::Tcp) {
            Some(_) => (source, destination),
            None => (destination, source),
        };
    let inward = client == source;
    let word_client = Client::new(client.address, client.port);
    let hash = table.hash(word_client, Protocol::Tcp);
    let judge = Resetting { snapshot, inward, side: service_side };
    let (slot, word) = table.find(hash, word_client, &judge)?;
    let dest = snapshot.dest_of(word)?;
    if table.replace(slot, word, Word::EMPTY).is_err() {
        return None;
    }
    dest.gauge.leave(word.state());

    let service = End { address: dest.four.virtual_address, port: dest.virtual_address.port() };
    let server = End { address: dest.four.address, port: dest.address.port() };
    // To the sender: from whom it believes to talk to, with what it expects.
    let told = if tcp.flags & ACK != 0 {
        Told { sequence: acknowledged, acknowledged: None }
    } else {
        Told { sequence: 0, acknowledged: Some(sequence.wrapping_add(payload.max(1))) }
    };
    let onward = Told { sequence, acknowledged: None };
    let is_one_way = snapshot.services[dest.service as usize].mode.is_one_way();
    Some(if inward && is_one_way {
        // The server has the virtual address, and no packet of ours to it goes by a route.
        vec![segment_of(service, client, told)]
    } else if inward {
        vec![segment_of(service, client, told), segment_of(client, server, onward)]
    } else {
        vec![segment_of(client, server, told), segment_of(service, client, onward)]
    })
}

#[derive(Clone, Copy, PartialEq)]
struct End {
    address: u32,
    port: u16,
}

/// What a RST says.
struct Told {
    sequence: u32,
    acknowledged: Option<u32>,
}

fn segment_of(from: End, to: End, told: Told) -> Reset {
    let mut packet = [0; 40];
    let (ip, tcp) = packet.split_at_mut(ipv4::HEADER);
    ip.copy_from_slice(&ipv4::header(40, TCP, from.address, to.address));
    tcp[0..2].copy_from_slice(&from.port.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port.to_be_bytes());
    tcp[4..8].copy_from_slice(&told.sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&told.acknowledged.unwrap_or(0).to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = if told.acknowledged.is_some() { RST | ACK } else { RST };
    let mut pseudo = [0; 32];
    pseudo[..8].copy_from_slice(&ip[12..20]);
    (pseudo[9], pseudo[11]) = (TCP, 20);
    pseudo[12..].copy_from_slice(tcp);
    let sum = !checksum::sum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Finds connections that are to be reset, and nothing else.
struct Resetting<'a> {
    snapshot: &'a Snapshot,
    inward: bool,
    /// The virtual address, or the real server's.
    side: End,
}

impl Judge for Resetting<'_> {
    fn is_mine(&self, word: Word) -> bool {
        let of = |dest: &Dest| match self.inward {
            true => End { address: dest.four.virtual_address, port: dest.virtual_address.port() },
            false => End { address: dest.four.address, port: dest.address.port() },
        };
        self.snapshot.dest_of(word).is_some_and(|dest| dest.reset && of(dest) == self.side)
    }

    fn worth(&self, _: Word) -> Worth {
        Worth::Keep
    }

    fn removed(&self, _: Word) {}
}
