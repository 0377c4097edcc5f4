//! What peers say to each other, once it is deciphered: frames, one after the other, until the datagram ends.
//!
//! ```text
//! ack     1  largest (v)  which of the 128 before it are missing: the nearer 64 (v), the others (v)
//! ping    2
//! ask     3
//! done    4
//! name    5  number (v)  protocol (1)  mode (1)  virtual address, port (6)  server's address, port (6)
//! live    6  number (v)  client's address, port (6)  state, 0x80 if replied (1)  ticks since it was seen (v)
//! told    7  the same
//! ```
//!
//! (v) is seven bits a byte, the lowest first, the eighth says that more follow. A connection takes 10 to 14 bytes, an
//! acknowledgement four or five if nothing was lost.

use std::net::{Ipv4Addr, SocketAddrV4};

use dataplane::service::{Mode, Protocol, State};

use crate::ids::{ServerKey, ServiceKey};

/// A real server in a service, whatever its number is here or there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The service.
    pub service: ServiceKey,
    /// The real server.
    pub server: ServerKey,
}

/// A connection, as its router knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its dest's number there.
    pub dest: u32,
    /// Its client.
    pub client: SocketAddrV4,
    /// Its state.
    pub state: State,
    /// Whether a reply was seen (UDP).
    pub replied: bool,
    /// Ticks of a quarter of a second since a packet was noted.
    pub age: u32,
}

/// What a peer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Which datagrams have come: the largest number, and of the 128 before it those whose bit is set, the lowest for
    /// the one just before.
    Ack { largest: u64, before: u128 },
    /// Nothing, but it wants to hear that it is heard.
    Ping,
    /// It wants to hear of all connections.
    Ask,
    /// It has been told of all connections.
    Done,
    /// What a number stands for.
    Name { number: u32, identity: Identity },
    /// A connection that has just changed.
    Live(Record),
    /// A connection as it is.
    Told(Record),
}

/// The longest frame that is no acknowledgement.
pub const LONGEST: usize = 1 + 5 + 14;
/// The longest acknowledgement.
pub const LONGEST_ACK: usize = 1 + 10 + 10 + 10;

impl Frame {
    /// Writes it.
    pub fn put(&self, out: &mut Vec<u8>) {
        match *self {
            Frame::Ack { largest, before } => {
                out.push(1);
                put_number(out, largest);
                let missing = !before;
                put_number(out, missing as u64);
                put_number(out, (missing >> 64) as u64);
            }
            Frame::Ping => out.push(2),
            Frame::Ask => out.push(3),
            Frame::Done => out.push(4),
            Frame::Name { number, identity: Identity { service, server } } => {
                out.push(5);
                put_number(out, number.into());
                out.extend([service.protocol.number(), server.mode as u8]);
                put_socket(out, service.address);
                put_socket(out, server.address);
            }
            Frame::Live(record) => put_record(out, 6, &record),
            Frame::Told(record) => put_record(out, 7, &record),
        }
    }

    /// Reads one from the front of the bytes; `None` if they are no frame.
    pub fn take(bytes: &mut &[u8]) -> Option<Frame> {
        let [kind] = take_array(bytes)?;
        Some(match kind {
            1 => {
                let [largest, near, far] = [take_number(bytes)?, take_number(bytes)?, take_number(bytes)?];
                Frame::Ack { largest, before: !(u128::from(far) << 64 | u128::from(near)) }
            }
            2 => Frame::Ping,
            3 => Frame::Ask,
            4 => Frame::Done,
            5 => {
                let number = take_u32(bytes)?;
                let [protocol, mode] = take_array(bytes)?;
                let protocol = Protocol::from_number(protocol)?;
                let mode = *Mode::ALL.get(usize::from(mode))?;
                let service = ServiceKey { address: take_socket(bytes)?, protocol };
                let server = ServerKey { address: take_socket(bytes)?, mode };
                Frame::Name { number, identity: Identity { service, server } }
            }
            6 => Frame::Live(take_record(bytes)?),
            7 => Frame::Told(take_record(bytes)?),
            _ => return None,
        })
    }
}

/// The frames of a datagram; `None` for what is none, after which nothing comes.
pub fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Option<Frame>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let frame = Frame::take(&mut bytes);
        if frame.is_none() {
            bytes = &[];
        }
        Some(frame)
    })
}

const REPLIED: u8 = 0x80;

fn put_record(out: &mut Vec<u8>, kind: u8, record: &Record) {
    out.push(kind);
    put_number(out, record.dest.into());
    put_socket(out, record.client);
    out.push(record.state as u8 | if record.replied { REPLIED } else { 0 });
    put_number(out, record.age.into());
}

fn take_record(bytes: &mut &[u8]) -> Option<Record> {
    let dest = take_u32(bytes)?;
    let client = take_socket(bytes)?;
    let [state] = take_array(bytes)?;
    let age = take_u32(bytes)?;
    let replied = state & REPLIED != 0;
    Some(Record { dest, client, state: State::from_number(state & !REPLIED)?, replied, age })
}

fn put_socket(out: &mut Vec<u8>, socket: SocketAddrV4) {
    out.extend(socket.ip().octets());
    out.extend(socket.port().to_be_bytes());
}

fn take_socket(bytes: &mut &[u8]) -> Option<SocketAddrV4> {
    let address: [u8; 4] = take_array(bytes)?;
    Some(SocketAddrV4::new(Ipv4Addr::from(address), u16::from_be_bytes(take_array(bytes)?)))
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let [byte] = take_array(bytes)?;
        let bits = u64::from(byte & 0x7F);
        number |= bits << shift;
        if byte < 0x80 {
            // Of the tenth byte only one bit counts.
            return (bits << shift >> shift == bits).then_some(number);
        }
    }
    None
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take_number(bytes).and_then(|number| number.try_into().ok())
}

fn take_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn socket() -> impl Strategy<Value = SocketAddrV4> {
        any::<(u32, u16)>().prop_map(|(address, port)| SocketAddrV4::new(address.into(), port))
    }

    fn record() -> impl Strategy<Value = Record> {
        let state = prop::sample::select(State::ALL);
        (any::<u32>(), socket(), state, any::<bool>(), any::<u32>())
            .prop_map(|(dest, client, state, replied, age)| Record { dest, client, state, replied, age })
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let protocol = prop::sample::select(Protocol::ALL);
        let mode = prop::sample::select(Mode::ALL);
        let name = (any::<u32>(), socket(), protocol, socket(), mode).prop_map(
            |(number, virtual_address, protocol, server, mode)| Frame::Name {
                number,
                identity: Identity {
                    service: ServiceKey { address: virtual_address, protocol },
                    server: ServerKey { address: server, mode },
                },
            },
        );
        prop_oneof![
            any::<(u64, u128)>().prop_map(|(largest, before)| Frame::Ack { largest, before }),
            Just(Frame::Ping),
            Just(Frame::Ask),
            Just(Frame::Done),
            name,
            record().prop_map(Frame::Live),
            record().prop_map(Frame::Told),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(sent in prop::collection::vec(frame(), 0..20)) {
            let mut bytes = Vec::new();
            sent.iter().for_each(|frame| frame.put(&mut bytes));
            prop_assert_eq!(frames(&bytes).collect::<Option<Vec<_>>>(), Some(sent));
        }

        #[test]
        fn a_frame_is_no_longer_than_the_longest(frame in frame()) {
            let mut bytes = Vec::new();
            frame.put(&mut bytes);
            let longest = if let Frame::Ack { .. } = frame { LONGEST_ACK } else { LONGEST };
            prop_assert!(bytes.len() <= longest);
        }

        #[test]
        fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let read: Vec<_> = frames(&bytes).collect();
            prop_assert!(read.len() <= bytes.len());
        }
    }
}
