//! Ends a connection whose server has been removed: a RST to both ends, made from any packet of either. And refuses one for which there is none.
//!
//! Control does this, with packets that a worker has handed over as [`Punt::Reset`](crate::counters::Punt::Reset); it is
//! not the packet path. The packet tells what each end expects next, so both accept the RST without a challenge (RFC
//! 9293, 3.10.7.4; RFC 5961, 3.2). A connection that is silent is not told anything: nobody knows its numbers.

use super::{fullnat, fullnat_proxy};
use crate::service::{Mode, Protocol};
use crate::snapshot::{Dest, Family, Snapshot};
use crate::table::{Judge, Table, Word, Worth};
use crate::wire::checksum;
use crate::wire::transport::{ACK, FIN, RST, SYN, Transport};
use crate::wire::version::{Ip, Version};

const TCP: u8 = Protocol::Tcp.number();

/// The RSTs to send for this packet: to the packet's sender, then to the other end, if replies come this way. Its
/// connection is removed from the table. None if it is of no connection that is to be reset.
pub fn reset(table: &Table, snapshot: &Snapshot, packet: &[u8]) -> Vec<Vec<u8>> {
    let resets = match packet.first().map(|first| first >> 4) {
        Some(4) => resets::<u32>(table, snapshot, packet),
        Some(6) => resets::<u128>(table, snapshot, packet),
        _ => None,
    };
    resets.unwrap_or_default()
}

fn resets<A: Family>(table: &Table, snapshot: &Snapshot, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let ip = A::parse(packet).filter(|ip| ip.protocol == TCP && ip.fragment.is_none())?;
    let heard = Heard::of(&ip, packet)?;
    let Heard { source, destination, sequence, .. } = heard;

    let inward = snapshot.service_for(destination.address, destination.port, Protocol::Tcp).is_some();
    let (side, client) = if inward { (destination, source) } else { (source, destination) };
    let judge = Resetting { snapshot, inward, side };
    let find = |client| table.find(table.hash(client, Protocol::Tcp), client, &judge);
    let ends = ((source.address, source.port), (destination.address, destination.port));
    let found = match fullnat::reply(snapshot, table, ends.0, ends.1, Protocol::Tcp) {
        Some((_, client)) if !inward => find(client),
        _ => {
            let client = client.address.client(client.port, table);
            // Of a service of this port, or else of one of all ports.
            find(client).or_else(|| find(client.towards(side.port)))
        }
    };
    let (slot, word) = found?;
    let dest = snapshot.dest_of(word)?;
    let mode = snapshot.services[dest.service as usize].mode;
    // The client, and whom the server takes for it.
    let (client, near) = match mode {
        Mode::Fullnat => {
            let end = |(address, port)| End { address, port };
            let client = end(fullnat::client_end(table, snapshot, slot, word)?);
            (client, end(fullnat::local_end(table, snapshot, slot, word)?))
        }
        Mode::Nat | Mode::Dr | Mode::Tunnel => (client, client),
    };
    if table.replace(slot, word, Word::EMPTY).is_err() {
        return None;
    }
    snapshot.left(word);

    let (service, server) = (End::of_service(dest, side.port), End::of_server(dest, side.port));
    // To the sender: from whom it believes to talk to, with what it expects.
    let told = heard.answer();
    // The server has what follows the header of a stream farther on.
    let stream = snapshot.local_at(near.address).and_then(|local| local.stream(Protocol::Tcp, near.port));
    let onward = match stream.filter(|_| inward) {
        Some(stream) => fullnat_proxy::moved::<A>(stream, sequence),
        None => sequence,
    };
    let onward = Told { sequence: onward, acknowledged: None };
    Some(if inward && dest.is_one_way() {
        // The server has the virtual address, and no packet of ours to it goes by a route.
        vec![segment_of(service, client, told)]
    } else if inward {
        vec![segment_of(service, client, told), segment_of(near, server, onward)]
    } else {
        vec![segment_of(near, server, told), segment_of(service, client, onward)]
    })
}

/// The RST for a segment that nobody takes, as from whom it was for.
pub(super) fn refusal<A: Version>(ip: &Ip<A>, packet: &[u8]) -> Option<Vec<u8>> {
    let heard = Heard::of(ip, packet)?;
    (heard.flags & RST == 0).then(|| segment_of(heard.destination, heard.source, heard.answer()))
}

/// What a RST for a segment needs of it.
#[derive(Clone, Copy)]
struct Heard<A> {
    source: End<A>,
    destination: End<A>,
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    payload: u32,
}

impl<A: Version> Heard<A> {
    fn of(ip: &Ip<A>, packet: &[u8]) -> Option<Self> {
        let segment = packet.get(ip.header_length..)?;
        let length = usize::from(ip.total_length) - ip.header_length;
        let tcp = Transport::parse(Protocol::Tcp, segment, length)?;
        let number = |at: usize| {
            segment.get(at..at + 4).and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)))
        };
        Some(Heard {
            source: End { address: ip.source, port: tcp.source },
            destination: End { address: ip.destination, port: tcp.destination },
            flags: tcp.flags,
            sequence: number(4)?,
            acknowledged: number(8)?,
            payload: length.checked_sub(usize::from(segment.get(12)? >> 4) * 4)? as u32,
        })
    }

    /// What its sender has to be told, so that it believes it (RFC 9293, 3.10.7.1).
    fn answer(&self) -> Told {
        if self.flags & ACK != 0 {
            return Told { sequence: self.acknowledged, acknowledged: None };
        }
        let length =
            [SYN, FIN].map(|flag| u32::from(self.flags & flag != 0)).iter().sum::<u32>() + self.payload;
        Told { sequence: 0, acknowledged: Some(self.sequence.wrapping_add(length)) }
    }
}

#[derive(Clone, Copy, PartialEq)]
struct End<A> {
    address: A,
    port: u16,
}

impl<A: Family> End<A> {
    /// The virtual end of a dest; at this port, if it is of all.
    fn of_service(dest: &Dest, port: u16) -> Self {
        End { address: A::ends(dest).virtual_address, port: dest.virtual_port(port) }
    }

    /// The server's end of a dest; at this port, if it is of all.
    fn of_server(dest: &Dest, port: u16) -> Self {
        End { address: A::ends(dest).address, port: dest.server_port(port) }
    }
}

/// What a RST says.
struct Told {
    sequence: u32,
    acknowledged: Option<u32>,
}

/// A packet without payload.
fn segment_of<A: Version>(from: End<A>, to: End<A>, told: Told) -> Vec<u8> {
    const LENGTH: u16 = 20;
    let mut packet = A::header(A::HEADER as u16 + LENGTH, TCP, from.address, to.address);
    let mut tcp = [0; LENGTH as usize];
    tcp[0..2].copy_from_slice(&from.port.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port.to_be_bytes());
    tcp[4..8].copy_from_slice(&told.sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&told.acknowledged.unwrap_or(0).to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = if told.acknowledged.is_some() { RST | ACK } else { RST };
    let sum =
        u32::from(A::pseudo_sum(from.address, to.address, TCP, LENGTH)) + u32::from(checksum::sum(&tcp));
    tcp[16..18].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
    packet.extend(tcp);
    packet
}

/// Finds connections that are to be reset, and nothing else.
struct Resetting<'a, A> {
    snapshot: &'a Snapshot,
    inward: bool,
    /// The virtual address, or the real server's.
    side: End<A>,
}

impl<A: Family> Judge for Resetting<'_, A> {
    fn is_mine(&self, word: Word) -> bool {
        let of = if self.inward { End::of_service } else { End::of_server };
        self.snapshot.dest_of(word).is_some_and(|dest| dest.reset && of(dest, self.side.port) == self.side)
    }

    fn worth(&self, _: Word) -> Worth {
        Worth::Keep
    }

    fn removed(&self, _: Word) {}
}
