//! Tagged networks (IEEE 802.1Q; docs/operating.md): where the two ports of [`crate::world`] are, if one or both share a wire with others.
//!
//! The networks of clients and of servers may be on two wires or on one, each with a tag of its own or without one. What comes in on a wire and is of
//! neither is the wire's own.

use crate::packet;
use crate::world::{LAN, WAN};

/// What says that a tag follows, and that of a provider (IEEE 802.1ad), which is nobody's here.
const TAG: [u8; 2] = [0x81, 0];
const SERVICE_TAG: [u8; 2] = [0x88, 0xA8];
/// A number that no network has.
const NOBODYS: u16 = 300;
/// The MACs in front of a tag.
const ADDRESSES: usize = 12;

/// Where the networks of clients and of servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wires(pub [Network; 2]);

/// Where one of them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The number of the wire.
    pub wire: u16,
    /// That of its tag, if it has one.
    pub tag: Option<u16>,
}

/// How a frame's tag is not the one that is expected.
#[derive(Clone, Copy, Debug)]
pub enum Tagged {
    /// It has the other bits as well, which tell a priority; without a network's number, if there is none.
    Priority(u8),
    /// It is another network's.
    Unknown,
    /// There is none, or if none is expected, one.
    Not,
    /// It is there twice.
    Twice,
    /// It is a provider's.
    Service,
}

impl Wires {
    /// Each has a wire to itself.
    pub const PLAIN: Wires = Wires([Network { wire: 0, tag: None }, Network { wire: 1, tag: None }]);

    /// Some ways to share them.
    pub const SHARED: [Wires; 4] = [
        Wires([Network { wire: 0, tag: Some(100) }, Network { wire: 1, tag: Some(100) }]),
        Wires([Network { wire: 0, tag: Some(100) }, Network { wire: 0, tag: Some(200) }]),
        Wires([Network { wire: 0, tag: None }, Network { wire: 0, tag: Some(200) }]),
        Wires([Network { wire: 1, tag: Some(4094) }, Network { wire: 0, tag: None }]),
    ];

    /// The network of a port.
    pub fn network(self, port: u16) -> Network {
        self.0[usize::from(port)]
    }

    /// The port of what comes in on a wire and has this tag, or none; that of the wire itself is behind those with networks.
    pub fn port(self, wire: u16, tag: Option<u16>) -> Option<u16> {
        let its = [WAN, LAN].into_iter().find(|&port| self.network(port) == Network { wire, tag });
        its.or(tag.is_none().then_some(2 + wire))
    }

    /// A frame for a port as it comes in, and the wire.
    pub fn sent(self, port: u16, frame: &[u8], tagged: Option<Tagged>) -> (u16, Vec<u8>) {
        let Network { wire, tag } = self.network(port);
        let with = |kind: [u8; 2], number: u16| insert(frame, &[kind, number.to_be_bytes()].concat());
        let own = || tag.map_or(frame.to_vec(), |tag| with(TAG, tag));
        let frame = match tagged {
            None => own(),
            Some(Tagged::Priority(bits)) => with(TAG, u16::from(bits) << 12 | tag.unwrap_or(0)),
            Some(Tagged::Unknown) => with(TAG, NOBODYS),
            Some(Tagged::Not) if tag.is_some() => frame.to_vec(),
            Some(Tagged::Not) => with(TAG, 100),
            Some(Tagged::Twice) => insert(&own(), &[TAG, tag.unwrap_or(100).to_be_bytes()].concat()),
            Some(Tagged::Service) => with(SERVICE_TAG, tag.unwrap_or(100)),
        };
        (wire, frame)
    }

    /// The port that a frame has come in on by this wire, and the frame without its tag, if that is a network's.
    pub fn arrives(self, wire: u16, frame: &[u8]) -> (u16, Vec<u8>) {
        let untagged = (self.port(wire, None).expect("it has one"), frame.to_vec());
        let carries_networks = self.0.iter().any(|network| network.wire == wire && network.tag.is_some());
        let has_tag = frame.len() >= ADDRESSES + 6 && frame[ADDRESSES..ADDRESSES + 2] == TAG;
        if !carries_networks || !has_tag {
            return untagged;
        }
        // Without a number it tells no more than a priority.
        let tag = Some(packet::word(frame, ADDRESSES + 2) & 0xFFF).filter(|&number| number > 0);
        match self.port(wire, tag) {
            Some(port) => (port, [&frame[..ADDRESSES], &frame[ADDRESSES + 4..]].concat()),
            None => untagged,
        }
    }

    /// A frame as it leaves by a port, and the wire.
    pub fn leaves(self, port: u16, frame: &[u8]) -> (u16, Vec<u8>) {
        self.sent(port, frame, None)
    }
}

/// Puts a tag behind the MACs, as far as there are any.
fn insert(frame: &[u8], tag: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(ADDRESSES.min(frame.len()));
    [addresses, tag, rest].concat()
}
