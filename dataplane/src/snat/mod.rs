//! Source NAT: what hosts inside begin goes out from a pool of addresses (RFC 4787, 5382, 5508).
//!
//! A mapping is of an inside address and port, whoever is at the other end (endpoint-independent mapping), and so is who may answer
//! (endpoint-independent filtering). It stands in two places:
//!
//! * a word of a [`Table`] of its own, found by the inside address and port; in the place of a real server's id there is the port of the pool,
//!   and its state and time are those of a connection;
//! * the word of the port (`ports.rs`), which says who is behind it.
//!
//! Only packets from inside move a mapping's state and its time. Whoever is outside may write to its port, so none of them must keep it (RFC 4787,
//! REQ-6), and no reset or FIN of theirs must end it; of a real one, whoever is inside tells by what it does next.
//!
//! The first decides: a port whose word is not there, or is another one's, leads to nobody. Who removes the word gives the port back, once.

mod ports;
mod told;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use self::ports::Ports;
pub use self::ports::{Outside, Share};
pub use self::told::{Placed, Told, left};
use crate::changes::is_shared;
use crate::clock::{Tick, Timeout};
use crate::service::{Protocol, State};
use crate::table::{
    Client, DestId, FLAG_REPLIED, Fate, Hash, HashKey, Inserted, Judge, Slot, Table, Word, Worth,
};
use crate::wire::ipv4;
use crate::wire::transport::{ACK, FIN, PSH, RST, SYN};
use crate::wire::version::Version;

/// Source NAT, as control describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnatSpec {
    /// Who is inside: addresses and lengths of prefixes.
    pub inside: Vec<(u32, u8)>,
    /// The pool: at most 255 addresses.
    pub outside: Vec<u32>,
    /// Its ports, of which those are used that make whole blocks.
    pub ports: RangeInclusive<u16>,
    /// Ports that a host is given at a time, of each class.
    pub block: u16,
    /// Ports of a host at the most, of each class.
    pub limit: u16,
    /// How many mappings there may be: at half load, as connections in the table.
    pub mappings: usize,
    /// Seconds until a mapping is forgotten.
    pub timeouts: SnatTimeouts,
}

/// Seconds until a mapping is forgotten that is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatTimeouts {
    /// UDP (RFC 4787, REQ-5).
    pub udp: u32,
    /// An established TCP connection (RFC 5382, REQ-5).
    pub established: u32,
    /// One that is not yet, or not any more.
    pub transitory: u32,
    /// ICMP echo (RFC 5508, REQ-2).
    pub icmp: u32,
}

impl Default for SnatTimeouts {
    fn default() -> Self {
        SnatTimeouts { udp: 300, established: 7440, transitory: 240, icmp: 60 }
    }
}

/// What has ports of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo, whose identifier is its port.
    Icmp,
}

impl Class {
    /// How many there are.
    pub(self) const COUNT: usize = 3;

    /// All of them.
    #[cfg(test)]
    pub(self) const ALL: [Class; Self::COUNT] = [Class::Tcp, Class::Udp, Class::Icmp];

    /// That of a mapping in this state; of ICMP it is none of a connection's.
    fn of(state: State) -> Class {
        match state {
            State::Udp => Class::Udp,
            State::None => Class::Icmp,
            _ => Class::Tcp,
        }
    }

    /// The class of a protocol's packets. SCTP has none: its ends tell each other their addresses.
    pub fn of_protocol(protocol: Protocol) -> Option<Class> {
        match protocol {
            Protocol::Tcp => Some(Class::Tcp),
            Protocol::Udp => Some(Class::Udp),
            Protocol::Sctp => None,
        }
    }

    /// The class of the packets with this protocol number of IPv4.
    pub fn of_number(number: u8) -> Option<Class> {
        match Protocol::from_number(number) {
            Some(protocol) => Class::of_protocol(protocol),
            None => (number == u32::ICMP).then_some(Class::Icmp),
        }
    }
}

/// Why there is no mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The packet begins none.
    None,
    /// No port is left for the host, or no room.
    Full,
}

/// What a host inside has of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its address.
    pub inside: u32,
    /// The address of the pool that others see.
    pub outside: u32,
    /// Blocks of ports that are its own, of all classes.
    pub blocks: u32,
    /// Ports in use, which are its mappings: of TCP, of UDP, and identifiers of ICMP.
    pub ports: [u32; Class::COUNT],
}

/// How many blocks of ports one of a pool's addresses has given to hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// The address.
    pub address: u32,
    /// Of TCP, of UDP, and of ICMP.
    pub blocks: [u32; Class::COUNT],
}

/// Source NAT with its mappings.
pub struct Snat {
    spec: SnatSpec,
    table: Arc<Table>,
    ports: Ports,
}

impl std::fmt::Debug for Snat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snat").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Snat {
    /// Without mappings. Takes 1.5 MB for each address of the pool, and 32 bytes for each mapping.
    pub fn new(spec: SnatSpec, key: HashKey, share: Share) -> Snat {
        let table = Table::new(spec.mappings, key);
        Snat::with(spec, table, key, share)
    }

    /// The same, whose mappings are in a file of zeros of [`Self::bytes`] or more, so that the next process finds them ([`left`]). An error if it
    /// cannot be mapped.
    pub fn in_file(spec: SnatSpec, key: HashKey, share: Share, file: &File) -> io::Result<Snat> {
        let table = Table::in_file(file, spec.mappings, key)?;
        Ok(Snat::with(spec, table, key, share))
    }

    fn with(spec: SnatSpec, table: Table, key: HashKey, share: Share) -> Snat {
        let ports = Ports::new(key, spec.outside.len(), &spec.ports, spec.block, spec.limit, share);
        Snat { table: Arc::new(table), ports, spec }
    }

    /// How long the file is in which the mappings of this one are.
    pub fn bytes(spec: &SnatSpec) -> u64 {
        Table::bytes(spec.mappings)
    }

    /// With the same mappings, described in another way; none if those would not fit. Whoever is not inside any more is not reached by
    /// those that it had.
    pub fn described(&self, spec: &SnatSpec) -> Option<Snat> {
        let pool = |spec: &SnatSpec| (spec.outside.clone(), spec.ports.clone(), spec.block, spec.mappings);
        let ports = (pool(spec) == pool(&self.spec)).then(|| self.ports.limited(spec.limit))?;
        Some(Snat { spec: spec.clone(), table: self.table.clone(), ports })
    }

    /// Whether both have the same mappings, however they are described.
    pub fn shares_mappings(&self, other: &Snat) -> bool {
        Arc::ptr_eq(&self.table, &other.table)
    }

    /// What it was made of.
    pub fn spec(&self) -> &SnatSpec {
        &self.spec
    }

    /// Mappings that there are.
    pub fn mappings(&self) -> u64 {
        self.ports.in_use()
    }

    /// Who has ports of the pool, by their addresses. Reads all blocks of the pool, while they change.
    pub fn hosts(&self) -> Vec<Host> {
        let mut hosts: BTreeMap<(u32, u8), Host> = BTreeMap::new();
        for (class, address, inside, in_use) in self.ports.owned() {
            let outside = self.spec.outside.get(usize::from(address)).copied().unwrap_or(0);
            let host = hosts.entry((inside, address)).or_insert(Host {
                inside,
                outside,
                blocks: 0,
                ports: [0; Class::COUNT],
            });
            host.blocks += 1;
            host.ports[class] += in_use;
        }
        hosts.into_values().collect()
    }

    /// Blocks of ports that hosts have, of each address. Reads all blocks of the pool, while they change.
    pub fn given(&self) -> Vec<Given> {
        let of = |&address: &u32| Given { address, blocks: [0; Class::COUNT] };
        let mut given: Vec<Given> = self.spec.outside.iter().map(of).collect();
        for (class, address, ..) in self.ports.owned() {
            given[usize::from(address)].blocks[class] += 1;
        }
        given
    }

    /// Blocks that there are at each address, of each class.
    pub fn blocks(&self) -> u32 {
        self.ports.blocks() as u32
    }

    fn has_inside(&self, address: u32) -> bool {
        self.spec.inside.iter().any(|&(prefix, length)| (address ^ prefix) & ipv4::mask(length) == 0)
    }

    fn index(&self, address: u32) -> Option<u8> {
        self.spec.outside.iter().position(|&own| own == address).map(|index| index as u8)
    }

    fn timeout(&self, state: State) -> Timeout {
        let SnatTimeouts { udp, established, transitory, icmp } = self.spec.timeouts;
        Timeout::from_seconds(match state {
            State::Udp => udp,
            State::None => icmp,
            State::Established => established,
            _ => transitory,
        })
    }

    fn hash(&self, class: Class, inside: Client) -> Hash {
        // The identifiers of ICMP are in other places than the ports of UDP: words of both may be there.
        let turned = Client::new(inside.address(), inside.port().rotate_left(5) ^ 0x5A5A);
        match class {
            Class::Tcp => self.table.hash(inside, Protocol::Tcp),
            Class::Udp => self.table.hash(inside, Protocol::Udp),
            Class::Icmp => self.table.hash(turned, Protocol::Udp),
        }
    }

    fn find(&self, now: Tick, class: Class, inside: Client, at: Option<Outside>) -> Option<(Slot, Word)> {
        let judge = Judgement { snat: self, now, class, at };
        self.table.find(self.hash(class, inside), inside, &judge)
    }

    /// A packet of a mapping goes out, which moves its state and its time. True if peers should hear of that.
    fn advance(&self, now: Tick, (slot, word): (Slot, Word), flags: u8) -> bool {
        let old = word.state();
        let state = if Class::of(old) == Class::Tcp { after(old, flags) } else { old };
        let (timeout, age) = (self.timeout(state), word.age(now));
        if state == old && age < timeout.renew_after() {
            return false;
        }
        // Of UDP most is one question and its answer; who goes on after a second is worth to be told of.
        let goes_on = if state == State::Udp { FLAG_REPLIED } else { 0 };
        let flags = word.flags() | goes_on;
        let new = word.with_state(state).with_flags(flags).seen(now, timeout.is_coarse());
        // Who was faster has noted the same, or the next packet does.
        let is_moved = self.table.replace(slot, word, new).is_ok();
        is_moved && is_shared(new) && new.state_and_flags() != word.state_and_flags()
    }

    fn give_back(&self, word: Word) {
        self.ports.give_back(Class::of(word.state()), outside(word));
    }
}

/// The state of a mapping of TCP after a packet from inside.
///
/// It may serve several connections, so the end of one is not that of the mapping: whoever goes on to send data has another one, and it is
/// established again (RFC 5382, REQ-5). A bare ACK does not show that: it is also the last packet of a connection that ends.
fn after(old: State, flags: u8) -> State {
    match old {
        _ if flags & (FIN | RST) != 0 => State::Close,
        State::Established => old,
        _ if flags & SYN != 0 => State::SynRecv,
        State::SynRecv if flags & ACK != 0 => State::Established,
        _ if flags & PSH != 0 => State::Established,
        _ => old,
    }
}

/// The port of a mapping.
fn outside(word: Word) -> Outside {
    Outside { address: (word.dest_number() >> 16) as u8, port: word.dest_number() as u16 }
}

struct Judgement<'a> {
    snat: &'a Snat,
    now: Tick,
    class: Class,
    /// The port that it must have.
    at: Option<Outside>,
}

impl Judgement<'_> {
    fn has_expired(&self, word: Word) -> bool {
        self.snat.timeout(word.state()).has_passed(word.age(self.now))
    }
}

impl Judge for Judgement<'_> {
    fn is_mine(&self, word: Word) -> bool {
        Class::of(word.state()) == self.class
            && self.at.is_none_or(|at| at == outside(word))
            && !self.has_expired(word)
    }

    fn worth(&self, word: Word) -> Worth {
        if self.has_expired(word) { Worth::Free } else { Worth::Keep }
    }

    fn removed(&self, word: Word) {
        self.snat.give_back(word);
    }
}

/// All the source NAT of a snapshot, whose mappings outlive it.
#[derive(Clone, Debug, Default)]
pub struct Snats {
    all: Vec<Arc<Snat>>,
    /// Whether nothing must change: a packet is tried out.
    is_rehearsal: bool,
}

/// A mapping, as a packet of it needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Inside.
    pub inside: Client,
    /// The address of the pool.
    pub address: u32,
    /// Its port.
    pub port: u16,
}

impl Snats {
    /// These, of which the first counts that has an address inside.
    pub fn new(all: Vec<Arc<Snat>>) -> Snats {
        Snats { all, is_rehearsal: false }
    }

    /// The same, of which nothing changes.
    pub fn rehearsal(&self) -> Snats {
        Snats { all: self.all.clone(), is_rehearsal: true }
    }

    /// All of it.
    pub fn all(&self) -> &[Arc<Snat>] {
        &self.all
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many mappings each has.
    pub fn mappings(&self) -> Vec<u64> {
        self.all.iter().map(|snat| snat.mappings()).collect()
    }

    /// Whether an address is inside.
    pub fn has_inside(&self, address: u32) -> bool {
        self.all.iter().any(|snat| snat.has_inside(address))
    }

    /// Whether an address is one of the pools'.
    pub fn has_outside(&self, address: u32) -> bool {
        self.all.iter().any(|snat| snat.index(address).is_some())
    }

    /// The mapping of an inside address and port, if there is one.
    pub fn from_inside(&self, now: Tick, class: Class, inside: Client) -> Option<Mapping> {
        let snat = self.all.iter().find(|snat| snat.has_inside(inside.address()))?;
        let (_, word) = snat.find(now, class, inside, None)?;
        Some(snat.mapping(word))
    }

    /// The mapping of a port of a pool, if there is one.
    pub fn from_outside(&self, now: Tick, class: Class, address: u32, port: u16) -> Option<Mapping> {
        let (snat, index) = self.all.iter().find_map(|snat| Some((snat, snat.index(address)?)))?;
        let at = Outside { address: index, port };
        let inside = snat.ports.behind(class, at).filter(|inside| snat.has_inside(inside.address()))?;
        let (_, word) = snat.find(now, class, inside, Some(at))?;
        Some(snat.mapping(word))
    }

    /// The mapping of a packet that goes out from an inside address and port, with these TCP flags; begun, if there is none. And its place
    /// ([`Self::at`]), if peers should hear of what has changed by that.
    pub fn leaves(
        &self,
        now: Tick,
        class: Class,
        inside: Client,
        flags: u8,
        worker: u8,
    ) -> Result<(Mapping, Option<usize>), Refused> {
        let index =
            self.all.iter().position(|snat| snat.has_inside(inside.address())).ok_or(Refused::None)?;
        let snat = &self.all[index];
        if let Some(found) = snat.find(now, class, inside, None) {
            let is_news = !self.is_rehearsal && snat.advance(now, found, flags);
            return Ok((snat.mapping(found.1), is_news.then(|| self.place(index, found.0))));
        }
        let begun = self.begin(snat, now, class, inside, flags, worker)?;
        // Nothing is lost with what is not established.
        Ok((begun, None))
    }

    fn begin(
        &self,
        snat: &Snat,
        now: Tick,
        class: Class,
        inside: Client,
        flags: u8,
        worker: u8,
    ) -> Result<Mapping, Refused> {
        let state = match class {
            // A SYN with an ACK answers somebody who was never let in.
            Class::Tcp if flags & (SYN | ACK | RST) != SYN => return Err(Refused::None),
            Class::Tcp => State::SynRecv,
            Class::Udp => State::Udp,
            Class::Icmp => State::None,
        };
        let taken = snat.ports.take(class, inside, self.is_rehearsal).ok_or(Refused::Full)?;
        let id = DestId::new(taken.number()).ok_or(Refused::Full)?;
        let timeout = snat.timeout(state);
        let word = Word::new(inside, id).with_state(state).seen(now, timeout.is_coarse());
        if self.is_rehearsal {
            return Ok(snat.mapping(word));
        }
        let judge = Judgement { snat, now, class, at: None };
        match snat.table.insert(snat.hash(class, inside), word, worker, &judge) {
            Inserted::New(_) => Ok(snat.mapping(word)),
            Inserted::Existing(_, theirs) => {
                snat.give_back(word);
                Ok(snat.mapping(theirs))
            }
            Inserted::Full => {
                snat.give_back(word);
                Err(Refused::Full)
            }
        }
    }

    /// Forgets what has expired, in a part of all mappings: from so much to so much of the whole.
    pub fn sweep(&self, now: Tick, part: Range<usize>, whole: usize) {
        for snat in self.all.iter().filter(|_| !self.is_rehearsal) {
            let at = |position: usize| {
                (position as u128 * snat.table.buckets() as u128 / whole.max(1) as u128) as usize
            };
            let decide = |_: Slot, word: Word| {
                if snat.timeout(word.state()).has_passed(word.age(now)) { Fate::Remove } else { Fate::Keep }
            };
            snat.table.sweep(at(part.start)..at(part.end), decide, |word| snat.give_back(word));
        }
    }
}

impl Snat {
    fn mapping(&self, word: Word) -> Mapping {
        let Outside { address, port } = outside(word);
        let address = self.spec.outside.get(usize::from(address)).copied().unwrap_or(0);
        Mapping { inside: word.client(), address, port }
    }
}
