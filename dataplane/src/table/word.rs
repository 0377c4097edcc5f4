//! A connection, as one 128-bit word.
//!
//! ```text
//!  127       112 111   104 103    96 95     88 87        64 63    48 47    32 31             0
//! +-------------+---------+---------+---------+------------+--------+--------+----------------+
//! |  last seen  |  flags  |  state  |   aux   |  dest id   |  more  |  port  | client address |
//! +-------------+---------+---------+---------+------------+--------+--------+----------------+
//! ```
//!
//! The client's address and port come first because both directions of a connection carry them and
//! because they are compared first. An IPv6 address does not fit: of it there are 48 bits of a keyed hash, in the place of the
//! address and in `more`. No packet is rewritten with its client's address, so nothing else is missed on
//! the packet path ([`super::wide`] is for whoever wants to show it). Two clients of one port whose hashes are equal would be taken for
//! one: that is one pair of 2^48, and nobody who does not know the key can look for it. In `more` is the virtual port, too, if the service is of all ports: of IPv4 that alone, of IPv6 both by xor;
//! otherwise it is 0, and one client port to two virtual ones would be one connection. Everything else a packet needs (virtual address, real server, MACs,
//! timeouts) belongs to the dest and lives in the snapshot. The word 0 is an empty slot; no connection
//! is 0 because no dest has id 0.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::clock::Tick;
use crate::service::State;

/// A client's address and port: what both directions of a connection have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client(u64);

impl Client {
    /// From host-order IPv4 address and port.
    pub const fn new(address: u32, port: u16) -> Self {
        Client(address as u64 | (port as u64) << 32)
    }

    /// From the hash of an IPv6 address, of which 48 bits are taken, and port.
    pub(super) const fn wide(hash: u64, port: u16) -> Self {
        Client(hash as u32 as u64 | (port as u64) << 32 | hash >> 32 << 48)
    }

    /// The same client of a service of all ports, at this one.
    #[inline]
    pub const fn towards(self, virtual_port: u16) -> Self {
        Client(self.0 ^ (virtual_port as u64) << 48)
    }

    /// The virtual port, if the client is one of IPv4, or else known without it ([`Self::towards`]).
    pub const fn virtual_port(self, without: Client) -> u16 {
        ((self.0 ^ without.0) >> 48) as u16
    }

    /// The IPv4 address in host order; of an IPv6 one, a part of its hash.
    pub const fn address(self) -> u32 {
        self.0 as u32
    }

    /// The port.
    pub const fn port(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The client as a socket address, if that is of IPv4.
    pub fn socket(self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(self.address()), self.port())
    }

    /// All of it.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 48 {
            0 => write!(f, "{}", self.socket()),
            more => write!(f, "#{more:04x}{:08x}:{}", self.address(), self.port()),
        }
    }
}

/// A real server in a service. Stable across reloads; 0 is nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestId(u32);

impl DestId {
    /// The largest id: 24 bits.
    pub const MAX: u32 = (1 << 24) - 1;

    /// The id with this number, unless it is 0 or does not fit in 24 bits.
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 || number > Self::MAX { None } else { Some(DestId(number)) }
    }

    /// Its number, for indexing the snapshot's dests.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

const DEST_SHIFT: u32 = 64;
const AUX_SHIFT: u32 = 88;
const STATE_SHIFT: u32 = 96;
const FLAGS_SHIFT: u32 = 104;
const SEEN_SHIFT: u32 = 112;

/// Flag: a reply has been seen (UDP; TCP has states for it). With direct routing, where none is: the client has gone on for a
/// while. Of a template: one of its connections was established or answered.
pub const FLAG_REPLIED: u8 = 0x01;
/// Flag: "last seen" is in the coarse unit of [`crate::clock::COARSE_SHIFT`].
pub const FLAG_COARSE: u8 = 0x02;
/// Flag: being inserted; not a connection yet (see [`super::Table::insert`]).
pub const FLAG_TENTATIVE: u8 = 0x80;

/// A connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word(pub(super) u128);

impl Word {
    /// The empty slot.
    pub const EMPTY: Word = Word(0);

    /// A connection of a client with a dest.
    pub const fn new(client: Client, dest: DestId) -> Self {
        Word(client.0 as u128 | (dest.0 as u128) << DEST_SHIFT)
    }

    /// Whether this is an empty slot rather than a connection.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The client.
    pub const fn client(self) -> Client {
        Client(self.0 as u64)
    }

    /// The dest's number; 0 for an empty slot.
    pub const fn dest_number(self) -> usize {
        ((self.0 >> DEST_SHIFT) as u32 & DestId::MAX) as usize
    }

    /// The state's number.
    pub const fn state_number(self) -> u8 {
        (self.0 >> STATE_SHIFT) as u8
    }

    /// The state. Words are only made by [`Self::with_state`], so the number is always one.
    pub fn state(self) -> State {
        State::from_number(self.state_number()).unwrap_or(State::None)
    }

    /// The flags, `FLAG_*`.
    pub const fn flags(self) -> u8 {
        (self.0 >> FLAGS_SHIFT) as u8
    }

    /// State and flags in one number, to be compared at once.
    #[inline]
    pub const fn state_and_flags(self) -> u16 {
        (self.0 >> STATE_SHIFT) as u16
    }

    /// Ticks since "last seen", if that is in the fine unit; a large number if it is in the future.
    #[inline]
    pub const fn fine_age(self, now: Tick) -> u16 {
        now.stamp(false).wrapping_sub((self.0 >> SEEN_SHIFT) as u16)
    }

    /// Whether "last seen" counts in the coarse unit.
    pub const fn is_coarse(self) -> bool {
        self.flags() & FLAG_COARSE != 0
    }

    /// Ticks since a packet of this connection was last noted.
    pub const fn age(self, now: Tick) -> u32 {
        now.since((self.0 >> SEEN_SHIFT) as u16, self.is_coarse())
    }

    /// The same connection in another state.
    pub const fn with_state(self, state: State) -> Self {
        self.with_byte::<STATE_SHIFT>(state as u8)
    }

    /// The same connection with exactly these flags.
    pub const fn with_flags(self, flags: u8) -> Self {
        self.with_byte::<FLAGS_SHIFT>(flags)
    }

    /// Whoever counts connections of sources has left this mark; 0 if nobody has.
    pub const fn mark(self) -> u8 {
        (self.0 >> AUX_SHIFT) as u8
    }

    /// The same connection with this mark.
    pub const fn with_mark(self, mark: u8) -> Self {
        self.with_byte::<AUX_SHIFT>(mark)
    }

    /// The same connection, being inserted by a worker.
    pub(super) const fn tentative(self, worker: u8) -> Self {
        self.with_flags(self.flags() | FLAG_TENTATIVE).with_byte::<AUX_SHIFT>(worker)
    }

    /// The same connection, last seen now, in the coarse or the fine unit.
    pub const fn seen(self, now: Tick, coarse: bool) -> Self {
        let flags = if coarse { self.flags() | FLAG_COARSE } else { self.flags() & !FLAG_COARSE };
        let rest = self.with_flags(flags).0 & !(0xFFFF << SEEN_SHIFT);
        Word(rest | (now.stamp(coarse) as u128) << SEEN_SHIFT)
    }

    // The shift is a constant for the compiler's sake: 128 bits shifted by a variable are thirty instructions.
    const fn with_byte<const SHIFT: u32>(self, byte: u8) -> Self {
        Word(self.0 & !(0xFF << SHIFT) | (byte as u128) << SHIFT)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("empty");
        }
        let (client, dest, state) = (self.client(), self.dest_number(), self.state());
        write!(f, "{client:?} -> dest {dest}, {state}, flags {:#04x}", self.flags())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap() {
        let client = Client::new(0xFFFF_FFFF, 0xFFFF);
        let dest = DestId::new(DestId::MAX).unwrap();
        let word = Word::new(client, dest).with_state(State::Udp).with_flags(FLAG_REPLIED);
        let word = word.seen(Tick(0xABCD), false);
        assert_eq!(word.client(), client);
        assert_eq!(word.dest_number(), dest.index());
        assert_eq!(word.state(), State::Udp);
        assert_eq!(word.flags(), FLAG_REPLIED);
        assert_eq!(word.age(Tick(0xABCF)), 2);
        assert_eq!(word.with_state(State::None).with_flags(0).0 >> 88 & 0xFF, 0, "aux stays empty");
        assert_eq!(word.0 >> 48 & 0xFFFF, 0, "nothing more of an IPv4 address");
        let towards = client.towards(0xABCD);
        assert_eq!((towards.address(), towards.port()), (client.address(), client.port()));
        assert_eq!((towards.virtual_port(client), client.virtual_port(client)), (0xABCD, 0));
    }

    #[test]
    fn of_a_hash_48_bits_are_the_clients() {
        let client = Client::wide(0xFEDC_BA98_7654_3210, 0xABCD);
        assert_eq!(client.bits(), 0xBA98_ABCD_7654_3210);
        assert_eq!(client.port(), 0xABCD);
        let word = Word::new(client, DestId::new(DestId::MAX).unwrap()).seen(Tick(1), false);
        assert_eq!((word.client(), word.dest_number()), (client, DestId::MAX as usize));
        assert_eq!(format!("{client:?}"), "#ba9876543210:43981");
    }

    #[test]
    fn a_coarse_word_says_so_itself() {
        let word = Word::new(Client::new(1, 2), DestId::new(3).unwrap()).seen(Tick(1 << 20), true);
        assert!(word.is_coarse());
        assert_eq!(word.age(Tick((1 << 20) + 512)), 512 - 255, "at least");
        assert!(!word.seen(Tick(5), false).is_coarse());
    }
}
