//! How many connections a service and each of its clients may begin and have.

use std::sync::Arc;

use super::bucket::{Bucket, Rate};
use super::gate::{Flood, Gate};
use super::sketch::{Cells, Key, Open, Rates};
use crate::clock::Tick;
use crate::counters::Drop;
use crate::fib::Address;
use crate::snapshot::Family;
use crate::table::{Client, Word};

/// What an operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How many connections may begin in all.
    pub rate: Option<Rate>,
    /// How many may begin from each source.
    pub source_rate: Option<Rate>,
    /// How many each source may have.
    pub source_connections: Option<u32>,
    /// How many handshakes may be left half done. Beyond that SYNs leave no word in the table.
    pub half_open: Option<Rate>,
    /// Clients whose addresses are equal in so many bits are one source.
    pub source_prefix: u8,
}

/// A limit with what has been counted for it.
#[derive(Clone, Debug)]
pub struct Limiter {
    limit: Limit,
    meters: Arc<Meters>,
}

/// What outlives a snapshot.
#[derive(Debug)]
struct Meters {
    key: Key,
    /// What stands in the words that are counted in `open`, and in no others.
    mark: u8,
    all: Bucket,
    gate: Gate,
    rates: Option<Rates>,
    open: Option<Open>,
}

/// What control keeps of a service's limiter from one snapshot to the next.
#[derive(Debug, Default)]
pub struct Kept {
    last: Option<Limiter>,
    mark: u8,
}

impl Kept {
    /// The limiter for a limit. It goes on counting if it is about the same sources; else it begins anew, and connections that exist are
    /// counted anew by the next sweep, in some seconds.
    pub fn limiter(&mut self, limit: Option<Limit>, key: Key) -> Option<Limiter> {
        let needs = |limit: &Limit| {
            (limit.source_prefix, limit.source_rate.is_some(), limit.source_connections.is_some())
        };
        self.last = limit.map(|limit| match self.last.take() {
            Some(last) if needs(&last.limit) == needs(&limit) => Limiter { limit, ..last },
            _ => {
                // 0 is in words that nobody has counted. A mark comes again after 255 changes, long after a sweep has replaced it.
                self.mark = self.mark.checked_add(1).unwrap_or(1);
                Limiter::new(limit, key, self.mark)
            }
        });
        self.last.clone()
    }

    /// The limiter that was asked for last.
    pub fn last(&self) -> Option<&Limiter> {
        self.last.as_ref()
    }
}

impl Limiter {
    fn new(limit: Limit, key: Key, mark: u8) -> Self {
        let meters = Meters {
            key,
            mark,
            all: Bucket::default(),
            gate: Gate::default(),
            rates: limit.source_rate.map(|_| Rates::default()),
            open: limit.source_connections.map(|_| Open::default()),
        };
        Limiter { limit, meters: Arc::new(meters) }
    }

    /// Whether a connection of a client with this address may begin now, which is noted; or why not. The source is asked first: what it is
    /// refused does not count against others.
    pub fn admit<A: Family>(&self, client: A, now: Tick) -> Result<(), Drop> {
        let Limiter { limit, meters } = self;
        if let (Some(rate), Some(rates)) = (limit.source_rate, &meters.rates) {
            let source = client.first(limit.source_prefix).into();
            if !rates.take(Cells::of(meters.key, source), rate, now) {
                return Err(Drop::SourceLimited);
            }
        }
        match limit.rate {
            Some(rate) if !meters.all.take(rate, now) => Err(Drop::RateLimited),
            _ => Ok(()),
        }
    }

    /// A SYN would begin a connection: whether it is to leave no word in the table, because too many handshakes are left half done.
    #[inline]
    pub fn knock(&self, now: Tick) -> bool {
        self.limit.half_open.is_some_and(|rate| self.meters.gate.knock(rate, now))
    }

    /// Whether handshakes that are half done are limited.
    pub fn has_gate(&self) -> bool {
        self.limit.half_open.is_some()
    }

    /// A handshake has been completed.
    #[inline]
    pub fn completed(&self, now: Tick) {
        if let Some(rate) = self.limit.half_open {
            self.meters.gate.completed(rate, now);
        }
    }

    /// Whether a packet that belongs to no connection may be of one whose SYN has left no word.
    pub fn was_shut(&self, now: Tick) -> bool {
        self.has_gate() && self.meters.gate.was_shut(now)
    }

    /// Whether such a connection may begin now by its client's acknowledgement, or why not. Its SYN has been admitted.
    pub fn admit_late(&self, now: Tick) -> Result<(), Drop> {
        match self.limit.half_open {
            Some(rate) if !self.meters.gate.take_late(rate, now) => Err(Drop::SynFlood),
            _ => Ok(()),
        }
    }

    /// What there is to say of floods of SYNs, if the service has a gate against them.
    pub fn flood(&self, now: Tick) -> Option<Flood> {
        Some(self.meters.gate.flood(self.limit.half_open?, now))
    }

    /// Counts a connection that is to be inserted, if its source may have another one; as the word that will be found to be counted.
    pub fn enter(&self, word: Word) -> Result<Word, Drop> {
        let Limiter { limit, meters } = self;
        match (limit.source_connections, &meters.open) {
            (Some(most), Some(open)) if !open.enter(self.cells(word.client()), most) => {
                Err(Drop::SourceLimited)
            }
            (Some(_), Some(_)) => Ok(word.with_mark(meters.mark)),
            _ => Ok(word),
        }
    }

    /// A connection has ended, or has not been inserted after all.
    pub fn leave(&self, word: Word) {
        if let Some(open) = &self.meters.open
            && word.mark() == self.meters.mark
        {
            open.leave(self.cells(word.client()));
        }
    }

    /// The word under which a connection that nobody has counted yet is to be counted: it was there before its service had this limit, a peer has told of
    /// it, or an earlier process has begun it. Whoever puts it into the table calls [`Self::leave`] if that fails.
    pub fn count(&self, word: Word) -> Option<Word> {
        let open = self.meters.open.as_ref().filter(|_| word.mark() != self.meters.mark)?;
        open.enter(self.cells(word.client()), u32::MAX);
        Some(word.with_mark(self.meters.mark))
    }

    /// The cells of a word's source. What a word knows of an IPv6 address is a hash of the whole, so of IPv6 each address is a source: by
    /// 32 bits, about as many as tell cells apart. Further bits have the virtual port in them, where a service is of all ports.
    fn cells(&self, client: Client) -> Cells {
        Cells::of(self.meters.key, client.address().first(self.limit.source_prefix).into())
    }

    /// Another one that has counted the same.
    pub fn rehearsal(&self) -> Limiter {
        let Meters { key, mark, all, gate, rates, open } = &*self.meters;
        let meters = Meters {
            key: *key,
            mark: *mark,
            all: all.copy(),
            gate: gate.copy(),
            rates: rates.as_ref().map(Rates::copy),
            open: open.as_ref().map(Open::copy),
        };
        Limiter { limit: self.limit, meters: Arc::new(meters) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::State;
    use crate::table::DestId;

    const LIMIT: Limit = Limit {
        rate: None,
        source_rate: None,
        source_connections: Some(2),
        half_open: None,
        source_prefix: 24,
    };

    fn word(address: u32, port: u16) -> Word {
        Word::new(Client::new(address, port), DestId::new(1).unwrap()).with_state(State::SynRecv)
    }

    #[test]
    fn rates_of_sources_and_of_all() {
        let rate = |per_second| Some(Rate { per_second, burst: per_second });
        let limit = Limit { rate: rate(5), source_rate: rate(2), source_connections: None, ..LIMIT };
        let limiter = Kept::default().limiter(Some(limit), [1, 2]).unwrap();
        let admit = |client: u32, now| limiter.admit(client, Tick(now));
        let (source, neighbour) = (0x0A00_0001, 0x0A00_00FF);
        assert_eq!([admit(source, 0), admit(neighbour, 0)], [Ok(()); 2]);
        assert_eq!(admit(source, 0), Err(Drop::SourceLimited), "they are one");
        let others: Vec<_> = (1..=4).map(|n| admit(source + (n << 8), 0)).collect();
        assert_eq!(others, [Ok(()), Ok(()), Ok(()), Err(Drop::RateLimited)]);
        assert_eq!(admit(source, 1), Err(Drop::SourceLimited), "half a connection");
        assert_eq!(admit(source, 2), Ok(()));
        assert_eq!(limiter.rehearsal().admit(source + 256, Tick(2)), Ok(()));
        assert_eq!(
            limiter.admit(0x2001_0DB8_u128 << 96, Tick(2)),
            Ok(()),
            "another family, and another source"
        );
        assert_eq!(limiter.admit(0x2001_0DB8_u128 << 96 | 1, Tick(2)), Err(Drop::RateLimited));
    }

    #[test]
    fn connections_of_a_source_are_counted_once_whoever_counts_them() {
        let mut kept = Kept::default();
        let limiter = kept.limiter(Some(LIMIT), [1, 2]).unwrap();
        let first = limiter.enter(word(0x0A00_0001, 1)).unwrap();
        assert_eq!(limiter.count(first), None, "it is counted");
        let second = limiter.count(word(0x0A00_0002, 1)).unwrap();
        assert_eq!(limiter.enter(word(0x0A00_0003, 1)), Err(Drop::SourceLimited));
        limiter.leave(word(0x0A00_0001, 2)); // nobody has counted it
        assert_eq!(limiter.enter(word(0x0A00_0003, 1)), Err(Drop::SourceLimited));
        limiter.leave(second.with_state(State::Close));
        assert!(limiter.enter(word(0x0A00_0003, 1)).is_ok());

        // The number may change; other sources are another count.
        let raised = kept.limiter(Some(Limit { source_connections: Some(3), ..LIMIT }), [1, 2]).unwrap();
        assert!(raised.enter(word(0x0A00_0004, 1)).is_ok() && raised.enter(word(0x0A00_0005, 1)).is_err());
        let wider = kept.limiter(Some(Limit { source_prefix: 16, ..LIMIT }), [1, 2]).unwrap();
        wider.leave(first);
        let again = wider.count(first).unwrap();
        assert_ne!(again.mark(), first.mark());
        assert!(wider.enter(word(0x0A00_FF00, 1)).is_ok() && wider.enter(word(0x0A00_EE00, 1)).is_err());
        assert!(kept.limiter(None, [1, 2]).is_none());
        let later = kept.limiter(Some(Limit { source_prefix: 16, ..LIMIT }), [1, 2]).unwrap();
        assert!(later.count(again).is_some(), "it was not counted while there was no limit");
    }

    #[test]
    fn a_source_is_one_at_all_ports_of_a_service() {
        for source_prefix in [32, 128] {
            let limiter = Kept::default().limiter(Some(Limit { source_prefix, ..LIMIT }), [1, 2]).unwrap();
            let at = |virtual_port| {
                let client = Client::new(0x0A00_0001, 1).towards(virtual_port);
                Word::new(client, DestId::new(1).unwrap()).with_state(State::SynRecv)
            };
            assert!(limiter.enter(at(80)).is_ok() && limiter.enter(at(443)).is_ok());
            assert_eq!(limiter.enter(at(8080)), Err(Drop::SourceLimited), "{source_prefix}");
        }
    }
}
