//! What a scheduler may look at, and its hash that is the same on every router.

use std::net::{IpAddr, SocketAddr};

use crate::clock::Tick;
use crate::service::Protocol;

/// The key of flows' hashes if nobody has chosen one. All routers of a fleet have to have the same, and this one is no secret: whoever wants to
/// can find connections that go to one server, as with `mh` and `sh`.
pub const FLOW_KEY: u64 = 0x5256_5320_666C_6F77;
const SERVER_KEY: u64 = 0x7365_7276_6572_2121;

/// What a scheduler may look at in the packet that begins a connection.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Client address; one of IPv6 is folded, as the schedulers of IPVS see it.
    pub source: u32,
    /// Client port.
    pub source_port: u16,
    /// Virtual address, folded likewise.
    pub destination: u32,
    /// Virtual port.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Client and virtual address, if they are of IPv6.
    pub wide: Option<[u128; 2]>,
    /// When that is.
    pub now: Tick,
}

impl Flow {
    /// The hash of the 5-tuple with its whole addresses, by a key. Only the schedulers that want it pay for it.
    pub(super) fn hash(&self, key: u64) -> u64 {
        let ports = u64::from(self.source_port) << 32
            | u64::from(self.destination_port) << 16
            | u64::from(self.protocol.number());
        let addresses =
            self.wide.unwrap_or([self.source, self.destination].map(|address| u128::from(address) << 64));
        hash(key, &addresses, ports)
    }
}

/// The hash of a real server by what all routers call it.
pub(super) fn of_server(address: SocketAddr) -> u64 {
    let bits = match address.ip() {
        IpAddr::V4(four) => u128::from(u32::from(four)) << 64,
        IpAddr::V6(six) => six.into(),
    };
    hash(SERVER_KEY, &[bits], address.port().into())
}

/// Word by word. SipHash would hold out longer against who sees where many connections of his choice go, and is for two addresses of IPv6
/// several times as long.
fn hash(key: u64, addresses: &[u128], ports: u64) -> u64 {
    let words = addresses.iter().flat_map(|&address| [(address >> 64) as u64, address as u64]);
    words.chain([ports]).fold(key, |hash, word| mixed(hash ^ word))
}

/// A number that looks random: the output function of SplitMix64 (Steele, Lea and Flood 2014).
pub(super) fn mixed(number: u64) -> u64 {
    let a = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let b = (a ^ a >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let c = (b ^ b >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    c ^ c >> 31
}

/// Maps a number that looks random onto `0..n`; to 0 if that is empty.
pub(super) const fn scaled(random: u64, n: u64) -> u64 {
    ((random as u128 * n as u128) >> 64) as u64
}
