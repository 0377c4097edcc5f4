//! What peers say to each other, once it is deciphered: frames, one after the other, until the datagram ends.
//!
//! ```text
//! ack     1  largest (v)  which of the 128 before it are missing: the nearer 64 (v), the others (v)
//! ping    2
//! ask     3
//! done    4
//! name    5  number (v)  protocol (1)  mode, + 0x80 if of IPv6, + 0x40 if the server is of the other family (1)  virtual address, port (6)  server's address, port (6)
//! face   12  a name as above, then protocol (1), address (4): of a mark's service, by what connections come
//! record  0x40 + 0x80 if of IPv6 + 0x20 if it has just changed + 0x10 if replied + its state, or 15 and then its state (1)
//!            number (v)  client's address, port (6)  ticks since it was seen (v)
//! forget  8  number (v)  ticks since the order (v)  1 + 2 + 4 for what follows, + 8, 16, 32 for what of it is of IPv6 (1)
//!            a service: protocol (1), address, port (6); a server's address, port (6); a client's address (4)
//! swept   9  the order's number (v)
//! local  10  a record as above, then the local address, port (6) that its connection has with full NAT
//! mapping 13 its state, + 0x80 if it has just changed, + 0x40 if it goes on (1)  inside address, port (6)  outside address, port (6)
//!            ticks since it was seen (v): of source NAT
//! at     11  virtual port (2), then a record as above, or with a local address: of a service of all ports
//! ```
//!
//! (v) is seven bits a byte, the lowest first, the eighth says that more follow. An address of IPv6 has sixteen bytes, not four. A
//! connection takes 9 to 13 bytes, one of IPv6 12 more, an acknowledgement four or five if nothing was lost. A datagram without frames says that its sender is there.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use dataplane::service::{Mode, Protocol, State};
pub use dataplane::snat::Told as Mapping;

use crate::flush::Filter;
use crate::ids::{Face, ServerKey, ServiceKey};

/// A real server in a service, whatever its number is here or there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The service.
    pub service: ServiceKey,
    /// The real server.
    pub server: ServerKey,
    /// In the service of a mark: by which address and protocol connections come; none for templates.
    pub face: Option<Face>,
}

/// A connection, as its router knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its dest's number there.
    pub dest: u32,
    /// Its client.
    pub client: SocketAddr,
    /// The virtual port, if its service is of all ports and it is no template; else 0.
    pub virtual_port: u16,
    /// Its state.
    pub state: State,
    /// Whether a reply was seen (UDP).
    pub replied: bool,
    /// Ticks of a quarter of a second since a packet was noted.
    pub age: u32,
    /// Its local address and port, with full NAT; of the client's family.
    pub local: Option<SocketAddr>,
}

/// What a peer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Which datagrams have come: the largest number, and of the 128 before it those whose bit is set, the lowest for
    /// the one just before.
    Ack { largest: u64, before: u128 },
    /// It wants to hear at once what has come of this and all before.
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
    /// A mapping of source NAT, and whether it has just changed.
    Mapping { mapping: Mapping, is_live: bool },
    /// An operator has had connections forgotten, so many ticks ago. Those that were seen since are others.
    Forget { number: u32, age: u32, filter: Filter },
    /// The order with this number is carried out.
    Swept(u32),
}

const NAME: u8 = 5;
const FACE: u8 = 12;
const MAPPING: u8 = 13;

/// The longest frame that is no acknowledgement.
pub const LONGEST: usize = 1 + 5 + 5 + 1 + 19 + 18 + 16;
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
            Frame::Name { number, identity: Identity { service, server, face } } => {
                out.push(if face.is_some() { FACE } else { NAME });
                put_number(out, number.into());
                let wide = if service.address.is_ipv6() { WIDE } else { 0 };
                let is_mixed = service.address.is_ipv6() != server.address.is_ipv6();
                let mixed = if is_mixed { MIXED } else { 0 };
                out.extend([service.protocol.number(), server.mode as u8 | wide | mixed]);
                put_socket(out, service.address);
                put_socket(out, server.address);
                if let Some(face) = face {
                    out.push(face.protocol.number());
                    put_address(out, face.address);
                }
            }
            Frame::Live(record) => put_record(out, LIVE, &record),
            Frame::Told(record) => put_record(out, 0, &record),
            Frame::Mapping { mapping: Mapping { inside, outside, state, goes_on, age }, is_live } => {
                let live = if is_live { MAPPING_LIVE } else { 0 };
                out.extend([MAPPING, state as u8 | live | if goes_on { MAPPING_GOES_ON } else { 0 }]);
                put_socket(out, inside.into());
                put_socket(out, outside.into());
                put_number(out, age.into());
            }
            Frame::Forget { number, age, filter } => {
                out.push(8);
                put_number(out, number.into());
                put_number(out, age.into());
                put_filter(out, &filter);
            }
            Frame::Swept(number) => {
                out.push(9);
                put_number(out, number.into());
            }
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
            NAME | FACE => {
                let number = take_u32(bytes)?;
                let [protocol, mode] = take_array(bytes)?;
                let protocol = Protocol::from_number(protocol)?;
                let (is_wide, is_mixed) = (mode & WIDE != 0, mode & MIXED != 0);
                let mode = *Mode::ALL.get(usize::from(mode & !(WIDE | MIXED)))?;
                let service = ServiceKey { address: take_socket(bytes, is_wide)?, protocol };
                let server = ServerKey { address: take_socket(bytes, is_wide != is_mixed)?, mode };
                let face = match kind {
                    FACE => {
                        let [protocol] = take_array(bytes)?;
                        let protocol = Protocol::from_number(protocol)?;
                        Some(Face { address: take_address(bytes, is_wide)?, protocol })
                    }
                    _ => None,
                };
                Frame::Name { number, identity: Identity { service, server, face } }
            }
            8 => {
                let [number, age] = [take_u32(bytes)?, take_u32(bytes)?];
                Frame::Forget { number, age, filter: take_filter(bytes)? }
            }
            9 => Frame::Swept(take_u32(bytes)?),
            MAPPING => {
                let [state] = take_array(bytes)?;
                let (is_live, goes_on) = (state & MAPPING_LIVE != 0, state & MAPPING_GOES_ON != 0);
                let state = State::from_number(state & !(MAPPING_LIVE | MAPPING_GOES_ON))?;
                let (inside, outside) = (take_socket_v4(bytes)?, take_socket_v4(bytes)?);
                let mapping = Mapping { inside, outside, state, goes_on, age: take_u32(bytes)? };
                Frame::Mapping { mapping, is_live }
            }
            kind => {
                let (record, is_live) = take_record(bytes, kind)?;
                if is_live { Frame::Live(record) } else { Frame::Told(record) }
            }
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

/// Bits beside a mapping's state.
const MAPPING_LIVE: u8 = 0x80;
const MAPPING_GOES_ON: u8 = 0x40;
/// What is in front of a record that has a virtual port of its own.
const AT: u8 = 11;
/// What is in front of one that has a local address.
const LOCAL: u8 = 10;
/// Bits of a record's kind. A connection is what is told most, so all of this is in one byte.
const WIDE: u8 = 0x80;
/// Of a name: its server is at the end of a tunnel of the other family.
const MIXED: u8 = 0x40;
const RECORD: u8 = 0x40;
const LIVE: u8 = 0x20;
const REPLIED: u8 = 0x10;
const STATE: u8 = 0x0F;
/// In the place of a state: it is in the next byte.
const FURTHER: u8 = STATE;

fn put_record(out: &mut Vec<u8>, live: u8, record: &Record) {
    if record.virtual_port != 0 {
        out.push(AT);
        out.extend(record.virtual_port.to_be_bytes());
    }
    let wide = if record.client.is_ipv6() { WIDE } else { 0 };
    if record.local.is_some() {
        out.push(LOCAL);
    }
    let state = record.state as u8;
    out.push(RECORD | wide | live | if record.replied { REPLIED } else { 0 } | state.min(FURTHER));
    if state >= FURTHER {
        out.push(state);
    }
    put_number(out, record.dest.into());
    put_socket(out, record.client);
    put_number(out, record.age.into());
    if let Some(local) = record.local {
        put_socket(out, local);
    }
}

/// One of this kind, and whether it has just changed.
fn take_record(bytes: &mut &[u8], kind: u8) -> Option<(Record, bool)> {
    let (virtual_port, kind) = match kind {
        AT => (u16::from_be_bytes(take_array(bytes)?), take_array::<1>(bytes)?[0]),
        kind => (0, kind),
    };
    let (has_local, kind) = match kind {
        LOCAL => (true, take_array::<1>(bytes)?[0]),
        kind => (false, kind),
    };
    if kind & !(WIDE | LIVE | REPLIED | STATE) != RECORD {
        return None;
    }
    let state = match kind & STATE {
        FURTHER => take_array::<1>(bytes)?[0],
        state => state,
    };
    let (state, replied) = (State::from_number(state)?, kind & REPLIED != 0);
    let (dest, client, age) = (take_u32(bytes)?, take_socket(bytes, kind & WIDE != 0)?, take_u32(bytes)?);
    let local = if has_local { Some(take_socket(bytes, kind & WIDE != 0)?) } else { None };
    Some((Record { dest, client, virtual_port, state, replied, age, local }, kind & LIVE != 0))
}

const SERVICE: u8 = 1;
const SERVER: u8 = 2;
const CLIENT: u8 = 4;
/// By how much the bits are shifted that say what is of IPv6.
const WIDE_SHIFT: u32 = 3;

fn put_filter(out: &mut Vec<u8>, filter: &Filter) {
    let Filter { service, server, client } = filter;
    let addresses = [
        (service.map(|service| service.address.ip()), SERVICE),
        (server.map(|server| server.ip()), SERVER),
        (*client, CLIENT),
    ];
    let bits = addresses.into_iter().map(|(address, bit)| match address {
        None => 0,
        Some(IpAddr::V4(_)) => bit,
        Some(IpAddr::V6(_)) => bit | bit << WIDE_SHIFT,
    });
    out.push(bits.sum());
    if let Some(service) = service {
        out.push(service.protocol.number());
        put_socket(out, service.address);
    }
    if let Some(server) = server {
        put_socket(out, *server);
    }
    if let Some(client) = client {
        put_address(out, *client);
    }
}

/// A condition that we do not know would make the order mean less than what is meant.
fn take_filter(bytes: &mut &[u8]) -> Option<Filter> {
    let [given] = take_array(bytes)?;
    let mut filter = Filter::default();
    let (wide, given) = (given >> WIDE_SHIFT, given & (SERVICE | SERVER | CLIENT));
    if wide & !given != 0 {
        return None;
    }
    if given & SERVICE != 0 {
        let [protocol] = take_array(bytes)?;
        let protocol = Protocol::from_number(protocol)?;
        filter.service = Some(ServiceKey { address: take_socket(bytes, wide & SERVICE != 0)?, protocol });
    }
    if given & SERVER != 0 {
        filter.server = Some(take_socket(bytes, wide & SERVER != 0)?);
    }
    if given & CLIENT != 0 {
        filter.client = Some(take_address(bytes, wide & CLIENT != 0)?);
    }
    Some(filter)
}

fn put_socket(out: &mut Vec<u8>, socket: SocketAddr) {
    put_address(out, socket.ip());
    out.extend(socket.port().to_be_bytes());
}

fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => out.extend(address.octets()),
        IpAddr::V6(address) => out.extend(address.octets()),
    }
}

fn take_socket(bytes: &mut &[u8], is_wide: bool) -> Option<SocketAddr> {
    Some(SocketAddr::new(take_address(bytes, is_wide)?, u16::from_be_bytes(take_array(bytes)?)))
}

fn take_socket_v4(bytes: &mut &[u8]) -> Option<SocketAddrV4> {
    let address = take_array::<4>(bytes)?.into();
    Some(SocketAddrV4::new(address, u16::from_be_bytes(take_array(bytes)?)))
}

fn take_address(bytes: &mut &[u8], is_wide: bool) -> Option<IpAddr> {
    Some(if is_wide { take_array::<16>(bytes)?.into() } else { take_array::<4>(bytes)?.into() })
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
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn socket() -> impl Strategy<Value = SocketAddr> {
        any::<(IpAddr, u16)>().prop_map(SocketAddr::from)
    }

    /// Two of one family.
    fn sockets() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        (socket(), socket()).prop_filter("of one family", |(one, other)| one.is_ipv4() == other.is_ipv4())
    }

    fn record() -> impl Strategy<Value = Record> {
        let state = prop::sample::select(State::ALL);
        let virtual_port = prop_oneof![Just(0), any::<u16>()];
        (any::<u32>(), sockets(), virtual_port, state, any::<bool>(), any::<u32>(), any::<bool>()).prop_map(
            |(dest, (client, local), virtual_port, state, replied, age, has_local)| {
                let local = has_local.then_some(local);
                Record { dest, client, virtual_port, state, replied, age, local }
            },
        )
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let protocol = prop::sample::select(Protocol::ALL);
        let mode = prop::sample::select(Mode::ALL);
        let of_mark = any::<bool>();
        let name = (any::<u32>(), socket(), socket(), protocol, mode, of_mark).prop_map(
            |(number, virtual_address, server, protocol, mode, of_mark)| Frame::Name {
                number,
                identity: Identity {
                    face: of_mark.then_some(Face { address: virtual_address.ip(), protocol }),
                    service: ServiceKey { address: virtual_address, protocol },
                    server: ServerKey { address: server, mode },
                },
            },
        );
        let service = (socket(), prop::sample::select(Protocol::ALL))
            .prop_map(|(address, protocol)| ServiceKey { address, protocol });
        let (service, server) = (prop::option::of(service), prop::option::of(socket()));
        let client = prop::option::of(any::<IpAddr>());
        let filter = (service, server, client).prop_map(|(service, server, client)| Filter {
            service,
            server,
            client,
        });
        let forget = (any::<u32>(), any::<u32>(), filter).prop_map(|(number, age, filter)| Frame::Forget {
            number,
            age,
            filter,
        });
        let four = || any::<(Ipv4Addr, u16)>().prop_map(|(address, port)| SocketAddrV4::new(address, port));
        let state = prop::sample::select(State::ALL);
        let mapping = (four(), four(), state, any::<bool>(), any::<u32>(), any::<bool>()).prop_map(
            |(inside, outside, state, goes_on, age, is_live)| {
                let mapping = Mapping { inside, outside, state, goes_on, age };
                Frame::Mapping { mapping, is_live }
            },
        );
        prop_oneof![
            mapping,
            forget,
            any::<u32>().prop_map(Frame::Swept),
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
