//! Local addresses, as whose ports real servers see their clients ([`Mode::Fullnat`](crate::service::Mode::Fullnat)): which connection
//! has which port.
//!
//! For each port of an address and protocol there is a word, the *claim* of a connection: its client and its dest, as in the
//! connection's own word. A reply to the port is of that connection. Taking a free port is one compare-and-swap, so workers have
//! nothing else to agree on, and no shares of their own.
//!
//! A claim is made before its connection can be seen, and is worth something only while the connection is in the table. Nobody gives it
//! back: connections leave a table in many ways, and with the process that has died last time. Who sweeps the table sweeps the claims as well, and
//! takes away those without a connection, seconds later. A young claim, whose connection may be under way, is left alone once.
//!
//! The other way, from a connection to its port, is written beside the table, in the place of the connection's slot, as the addresses of
//! IPv6 clients are ([`super::wide`]): without any agreement, since what is there says whose it is. From the claims it can be written
//! anew, so they are all that the next process has to find; of IPv6 with the client's address, which is beside the claim for that.
//!
//! ```text
//!   claim:   | 32 first | 5 unused | 1 header | 1 passed | 1 young | 24 dest id | 64 client |
//!   place:   | 8 unused  | 16 port  | 16 address's number | 24 dest id | 64 client |
//! ```

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::ops::Range;

use super::memory::Buckets;
use super::{Bucket, Client, Hash, SLOTS, Slot, Table, Word};
use crate::service::Protocol;
use crate::sync::{AtomicU128, Ordering};

/// Ports of an address and protocol.
const PORTS: usize = 1 << 16;

/// Set by whoever takes a port, removed by the next sweep: from the one after that on the port is free without a connection.
const YOUNG: u128 = 1 << Identity::BITS;

/// [`Stream::has_passed`].
const PASSED: u128 = YOUNG << 1;
/// There is a [`Stream`].
const HEADER: u128 = PASSED << 1;
const FIRST_SHIFT: u32 = 96;

const NUMBER_SHIFT: u32 = Identity::BITS;
const PORT_SHIFT: u32 = NUMBER_SHIFT + 16;

/// What tells a connection from all others of its protocol: its client and its dest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(u128);

impl Identity {
    const BITS: u32 = 88;
    const MASK: u128 = (1 << Self::BITS) - 1;

    /// A connection with nothing but client and dest.
    pub const fn word(self) -> Word {
        Word(self.0)
    }
}

impl Word {
    /// Who it is.
    pub const fn identity(self) -> Identity {
        Identity(self.0 & Identity::MASK)
    }
}

/// A port of a local address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Local {
    /// The address's number.
    pub number: u16,
    /// The port.
    pub port: u16,
}

/// Where the stream of a TCP connection stands that begins with a header for the server ([`crate::wire::proxy`]). Whether it does is
/// settled when the connection begins, whatever its service is told later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The sequence number of the client's first byte.
    pub first: u32,
    /// Whether the server has acknowledged the header.
    pub has_passed: bool,
}

impl Stream {
    /// As it stands in a claim.
    fn bits(self) -> u128 {
        HEADER | if self.has_passed { PASSED } else { 0 } | u128::from(self.first) << FIRST_SHIFT
    }
}

/// A local address, and who has its ports. A megabyte a protocol, of IPv6 two, of which only what is used is there.
pub struct LocalAddress {
    /// Its number in the places beside the table: the same as long as a connection has one of its ports.
    pub number: u16,
    /// The address.
    pub address: IpAddr,
    /// By protocol and port; behind them, of IPv6, their clients' addresses.
    claims: Buckets,
}

impl std::fmt::Debug for LocalAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (number {})", self.address, self.number)
    }
}

impl LocalAddress {
    /// One whose ports are free. An error if there is no room in the address space.
    pub fn new(number: u16, address: IpAddr) -> io::Result<Self> {
        Ok(LocalAddress { number, address, claims: Buckets::untouched(words(address) / SLOTS)? })
    }

    /// One whose ports are whose this file says, of [`Self::bytes`] or more: nobody's if they are zeros. An error if it is shorter.
    pub fn in_file(number: u16, address: IpAddr, file: &File) -> io::Result<Self> {
        Ok(LocalAddress { number, address, claims: Buckets::in_file(file, words(address) / SLOTS)? })
    }

    /// How long a file with the claims of this address is.
    pub fn bytes(address: IpAddr) -> u64 {
        (words(address) / SLOTS * size_of::<Bucket>()) as u64
    }

    /// Whose a port is.
    #[inline]
    pub fn owner(&self, protocol: Protocol, port: u16) -> Option<Identity> {
        let claim = self.claim(protocol, port).load(Ordering::Acquire);
        (claim != 0).then_some(Identity(claim & Identity::MASK))
    }

    /// Takes a port for a connection that begins, if it is free or the connection's own already; the stream is this one, whatever was
    /// there before.
    pub fn take(&self, protocol: Protocol, port: u16, owner: Identity, stream: Option<Stream>) -> bool {
        let young = owner.0 | YOUNG | stream.map_or(0, Stream::bits);
        self.exchange(protocol, port, owner, |_| young)
    }

    /// Takes a port for a connection that has begun elsewhere, if it is free or the connection's own already. Of its own, what is known
    /// of the stream here stays.
    pub fn take_over(&self, protocol: Protocol, port: u16, owner: Identity, stream: Option<Stream>) -> bool {
        let young = owner.0 | YOUNG | stream.map_or(0, Stream::bits);
        self.exchange(protocol, port, owner, |old| if old == 0 { young } else { old | YOUNG })
    }

    /// Whatever is taken is young, also what is its own: a sweep may be about to take it away.
    fn exchange(&self, protocol: Protocol, port: u16, owner: Identity, young: impl Fn(u128) -> u128) -> bool {
        let claim = self.claim(protocol, port);
        let mut old = claim.load(Ordering::Acquire);
        while old == 0 || old & Identity::MASK == owner.0 {
            let new = young(old);
            if new == old {
                return true;
            }
            match claim.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
        }
        false
    }

    /// Where the stream of a port's connection stands, if it begins with a header.
    pub fn stream(&self, protocol: Protocol, port: u16) -> Option<Stream> {
        let claim = self.claim(protocol, port).load(Ordering::Acquire);
        let stream = Stream { first: (claim >> FIRST_SHIFT) as u32, has_passed: claim & PASSED != 0 };
        (claim & HEADER != 0).then_some(stream)
    }

    /// Notes where the stream of a connection stands, if that has the port.
    pub fn note_stream(&self, protocol: Protocol, port: u16, owner: Identity, stream: Stream) {
        let claim = self.claim(protocol, port);
        let mut old = claim.load(Ordering::Acquire);
        while old & Identity::MASK == owner.0 {
            let new = old & (Identity::MASK | YOUNG) | stream.bits();
            match claim.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// How many ports are taken.
    pub fn taken(&self, protocol: Protocol) -> usize {
        let is_taken = |&port: &u16| self.claim(protocol, port).load(Ordering::Relaxed) != 0;
        (0..=u16::MAX).filter(is_taken).count()
    }

    /// Notes the client's address of a port's connection, if that is of IPv6.
    pub fn note_client(&self, protocol: Protocol, port: u16, address: u128) {
        if let Some(place) = self.client_place(protocol, port) {
            place.store(address, Ordering::Relaxed);
        }
    }

    /// What has been noted, whoever it was: a claim's client says by its hash whether it is its own.
    pub(super) fn noted_client(&self, protocol: Protocol, port: u16) -> Option<u128> {
        Some(self.client_place(protocol, port)?.load(Ordering::Relaxed))
    }

    /// The virtual port of the connection that has a port, of a service of all ports. `None` if the connection is of IPv6 and its client's address
    /// has not been noted: to whom its packets go is not known then either.
    pub fn virtual_port(&self, table: &Table, protocol: Protocol, port: u16, owner: Identity) -> Option<u16> {
        let client = owner.word().client();
        let without = match self.noted_client(protocol, port) {
            None => Client::new(client.address(), client.port()),
            Some(address) => table.wide_client(address, client.port()),
        };
        let virtual_port = client.virtual_port(without);
        (without.towards(virtual_port) == client).then_some(virtual_port)
    }

    /// Notes the ports, and the clients' addresses, of the connections in a table that a process before has left together with the claims.
    pub fn note_all(&self, table: &Table) {
        for &protocol in Protocol::ALL {
            for port in 0..=u16::MAX {
                let Some(owner) = self.owner(protocol, port) else { continue };
                let hash = table.hash(owner.word().client(), protocol);
                let local = Local { number: self.number, port };
                for slot in table.slots_of(hash, owner) {
                    table.note_local(slot, owner, local);
                    if let Some(address) = self.noted_client(protocol, port) {
                        table.note_address(slot, address);
                    }
                }
            }
        }
    }

    /// Visits a part of the ports: `numerators` of `denominator`. Those without a connection become free, unless they are young; so does
    /// one whose connection has another port by now.
    pub fn sweep(&self, table: &Table, numerators: Range<usize>, denominator: usize) {
        let at = |numerator: usize| (numerator * PORTS).checked_div(denominator).unwrap_or(0);
        for &protocol in Protocol::ALL {
            for port in at(numerators.start)..at(numerators.end) {
                let claim = self.claim(protocol, port as u16);
                let old = claim.load(Ordering::Relaxed);
                if old == 0 {
                    continue;
                }
                let identity = Identity(old & Identity::MASK);
                let local = Local { number: self.number, port: port as u16 };
                let is_held = table.holds(table.hash(identity.word().client(), protocol), identity, local);
                let new = if is_held || old & YOUNG != 0 { old & !YOUNG } else { 0 };
                if new != old {
                    // Whoever changes it meanwhile is its connection.
                    let _ = claim.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst);
                }
            }
        }
    }

    #[inline]
    fn claim(&self, protocol: Protocol, port: u16) -> &AtomicU128 {
        self.word(protocol as usize * PORTS + usize::from(port))
    }

    fn client_place(&self, protocol: Protocol, port: u16) -> Option<&AtomicU128> {
        let number = (Protocol::ALL.len() + protocol as usize) * PORTS + usize::from(port);
        self.address.is_ipv6().then(|| self.word(number))
    }

    #[inline]
    fn word(&self, number: usize) -> &AtomicU128 {
        &self.claims[number / SLOTS].0[number % SLOTS]
    }
}

/// How many there are of an address.
fn words(address: IpAddr) -> usize {
    Protocol::ALL.len() * PORTS * if address.is_ipv6() { 2 } else { 1 }
}

impl Table {
    /// Notes the local port of the connection in a slot.
    pub fn note_local(&self, slot: Slot, owner: Identity, Local { number, port }: Local) {
        let place = owner.0 | u128::from(number) << NUMBER_SHIFT | u128::from(port) << PORT_SHIFT;
        self.locals[slot.bucket()].0[slot.index()].store(place, Ordering::Relaxed);
    }

    /// The local port of the connection in a slot, if it has been noted.
    #[inline]
    pub fn local_of(&self, slot: Slot, owner: Identity) -> Option<Local> {
        let place = self.locals[slot.bucket()].0[slot.index()].load(Ordering::Relaxed);
        let local = Local { number: (place >> NUMBER_SHIFT) as u16, port: (place >> PORT_SHIFT) as u16 };
        (place & Identity::MASK == owner.0).then_some(local)
    }

    /// Whether there is a connection with this identity, and no other port has been noted for it.
    fn holds(&self, hash: Hash, identity: Identity, local: Local) -> bool {
        let is_its = |slot| self.local_of(slot, identity).is_none_or(|noted| noted == local);
        self.slots_of(hash, identity).any(is_its)
    }

    /// Where the connection with this identity is.
    fn slots_of(&self, hash: Hash, identity: Identity) -> impl Iterator<Item = Slot> {
        self.candidates(hash).into_iter().flat_map(move |bucket| {
            let words = self.load(bucket).into_iter().enumerate();
            let its = words.filter(move |(_, word)| word.identity() == identity);
            its.map(move |(index, _)| Slot::new(bucket, index))
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::table::{DestId, HashKey};

    fn owner(n: u32) -> Identity {
        Word::new(Client::new(0x0A00_0000 + n, 1000), DestId::new(1 + n % 3).unwrap()).identity()
    }

    fn address() -> LocalAddress {
        LocalAddress::new(7, [10, 0, 0, 100].into()).unwrap()
    }

    #[test]
    fn a_port_is_one_connections() {
        let address = address();
        assert_eq!(address.owner(Protocol::Tcp, 65535), None);
        assert!(address.take(Protocol::Tcp, 65535, owner(1), None));
        assert!(address.take(Protocol::Tcp, 65535, owner(1), None), "it is its own");
        assert!(!address.take(Protocol::Tcp, 65535, owner(2), None));
        assert!(address.take(Protocol::Udp, 65535, owner(2), None), "which is another port");
        assert_eq!(address.owner(Protocol::Tcp, 65535), Some(owner(1)));
        assert_eq!((address.taken(Protocol::Tcp), address.taken(Protocol::Udp)), (1, 1));
    }

    #[test]
    fn a_port_is_free_when_its_connection_has_left() {
        let table = Table::new(100, HashKey { blind: 3, factor: 5 });
        let address = address();
        let connection = owner(1).word().with_state(crate::service::State::Established);
        let slot =
            table.vacancy(table.hash(connection.client(), Protocol::Tcp), connection.client()).unwrap();
        let sweep = || (0..100).for_each(|part| address.sweep(&table, part..part + 1, 100));
        for (port, owner) in [(1, owner(1)), (30_000, owner(2)), (65535, owner(3))] {
            assert!(address.take(Protocol::Tcp, port, owner, None));
        }
        sweep();
        assert_eq!(address.taken(Protocol::Tcp), 3, "they may be under way");
        table.replace(slot, Word::EMPTY, connection).unwrap();
        assert!(address.take(Protocol::Tcp, 65535, owner(3), None), "and one is again");
        sweep();
        assert_eq!(
            [1, 30_000, 65535].map(|port| address.owner(Protocol::Tcp, port)),
            [Some(owner(1)), None, Some(owner(3))]
        );
        table.replace(slot, connection, Word::EMPTY).unwrap();
        sweep();
        sweep();
        assert_eq!(address.taken(Protocol::Tcp), 0);
    }

    #[test]
    fn a_connection_with_another_port_by_now_gives_back_the_one_before() {
        let table = Table::new(100, HashKey { blind: 3, factor: 5 });
        let address = address();
        let connection = owner(1).word().with_state(crate::service::State::Established);
        let slot =
            table.vacancy(table.hash(connection.client(), Protocol::Tcp), connection.client()).unwrap();
        table.replace(slot, Word::EMPTY, connection).unwrap();
        for port in [1, 2] {
            assert!(address.take(Protocol::Tcp, port, owner(1), None));
            table.note_local(slot, owner(1), Local { number: 7, port });
        }
        (0..2).for_each(|_| address.sweep(&table, 0..1, 1));
        assert_eq!([1, 2].map(|port| address.owner(Protocol::Tcp, port)), [None, Some(owner(1))]);
    }

    #[test]
    fn a_stream_is_new_with_its_connection_and_stays_with_one_that_is_taken_over() {
        let address = address();
        let stream = || address.stream(Protocol::Tcp, 80);
        let passed = Stream { first: u32::MAX, has_passed: true };
        assert!(address.take_over(Protocol::Tcp, 80, owner(1), Some(passed)));
        assert_eq!(stream(), Some(passed));
        for known in [Some(Stream::default()), None] {
            assert!(address.take(Protocol::Tcp, 80, owner(1), known));
            assert!(address.take_over(Protocol::Tcp, 80, owner(1), Some(passed)));
            assert_eq!(stream(), known);
        }
        address.note_stream(Protocol::Tcp, 80, owner(2), passed);
        assert_eq!((stream(), address.owner(Protocol::Tcp, 80)), (None, Some(owner(1))));
        assert!(!address.take_over(Protocol::Tcp, 80, owner(2), None));
    }

    #[test]
    #[cfg(not(miri))]
    fn what_is_in_the_file_of_an_address_is_all_that_the_next_process_needs() {
        let key = HashKey { blind: 3, factor: 5 };
        for address in ["10.0.0.100", "2001:db8::100"] {
            let address: IpAddr = address.parse().unwrap();
            let file = tempfile::tempfile().unwrap();
            assert!(LocalAddress::in_file(0, address, &file).is_err(), "it is too short");
            file.set_len(LocalAddress::bytes(address)).unwrap();
            let six = 0x2001_0DB8_u128 << 96 | 7;
            let client = match address {
                IpAddr::V4(_) => Client::new(7, 1000),
                IpAddr::V6(_) => Table::new(100, key).wide_client(six, 1000),
            };
            let word = Word::new(client, DestId::new(1).unwrap());
            let stream = Stream { first: 77, has_passed: true };
            {
                let before = LocalAddress::in_file(7, address, &file).unwrap();
                assert!(before.take(Protocol::Tcp, 65535, word.identity(), Some(stream)));
                before.note_client(Protocol::Tcp, 65535, six);
                before.note_client(Protocol::Udp, 65535, six + 1);
                assert!(before.take(Protocol::Tcp, 0, owner(3), None), "whose connection is not kept");
            }
            let (table, after) = (Table::new(100, key), LocalAddress::in_file(2, address, &file).unwrap());
            let slot = table.vacancy(table.hash(client, Protocol::Tcp), client).unwrap();
            table.replace(slot, Word::EMPTY, word).unwrap();
            after.note_all(&table);
            assert_eq!(
                table.local_of(slot, word.identity()),
                Some(Local { number: 2, port: 65535 }),
                "{address}"
            );
            assert_eq!(after.stream(Protocol::Tcp, 65535), Some(stream));
            assert_eq!(table.address_of(slot, word, false), address.is_ipv6().then_some(six));
            (0..2).for_each(|_| after.sweep(&table, 0..1, 1));
            assert_eq!(after.taken(Protocol::Tcp), 1);
        }
    }

    #[test]
    fn a_place_says_whose_it_is() {
        let table = Table::new(100, HashKey { blind: 3, factor: 5 });
        let slot = Slot::from_number(11);
        assert_eq!(table.local_of(slot, owner(1)), None);
        let local = Local { number: 254, port: 65535 };
        table.note_local(slot, owner(1), local);
        assert_eq!((table.local_of(slot, owner(1)), table.local_of(slot, owner(2))), (Some(local), None));
    }
}
