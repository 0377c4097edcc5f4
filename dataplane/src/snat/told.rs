//! Mappings that somebody else has begun: the process before, or a peer router ([`crate::told`]).
//!
//! Their ports are chosen already, so each is taken as it is, if it is still one of the pool's, whoever's block it is in. Where a peer has
//! begun something else with the same port, or for the same host's port, one of the two has to go. Both routers judge by the same: what
//! is over goes first, then what has been silent for longer, and of what is busy in both the one with the higher address. A
//! connection is lost by that. So it must be rare, and is: routers with the same pool give ports of different blocks ([`super::Share`]).

use std::net::SocketAddrV4;

use super::{Class, Judgement, Outside, Snat, Snats, outside};
use crate::changes::is_shared;
use crate::clock::{TICKS_PER_SECOND, Tick, Timeout};
use crate::service::State;
use crate::table::{Client, DestId, FLAG_REPLIED, Inserted, Slot, Table, Word};
use crate::told::{ADOPTER, Adopted, is_news, progress, same_moment, seen_ago};

/// Who has been silent for no longer than that is busy: packets are noted once a second, and news takes a moment.
const BUSY: u32 = 3 * TICKS_PER_SECOND;

/// A mapping, as somebody else knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The address and port inside.
    pub inside: SocketAddrV4,
    /// Those that others see.
    pub outside: SocketAddrV4,
    /// Its state, which says of which class it is, too.
    pub state: State,
    /// Of UDP: whether the host has gone on to send.
    pub goes_on: bool,
    /// Ticks since a packet from inside was noted.
    pub age: u32,
}

impl Told {
    /// What a word says, in a pool of these addresses; none if it is no mapping there.
    fn of(word: Word, pool: &[u32], now: Tick) -> Option<Told> {
        let Outside { address, port } = outside(word);
        let address = *pool.get(usize::from(address))?;
        Some(Told {
            inside: word.client().socket(),
            outside: SocketAddrV4::new(address.into(), port),
            // Memory that was damaged may say anything.
            state: State::from_number(word.state_number())?,
            goes_on: word.flags() & FLAG_REPLIED != 0,
            age: word.age(now),
        })
    }
}

/// The mappings that a process before has left in a table, of a pool of these addresses.
pub fn left(table: &Table, pool: &[u32], now: Tick) -> Vec<Told> {
    table.words(0..table.buckets()).filter_map(|word| Told::of(word, pool, now)).collect()
}

/// A mapping of which peers should know, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its place ([`Snats::at`]).
    pub place: usize,
    /// What is to be told.
    pub told: Told,
    /// How long it may be silent.
    pub timeout: Timeout,
}

impl Snats {
    /// The mapping at a place, if peers should know of it. The places of all pools are numbered one after the other, so a reload may give one
    /// another number.
    pub fn at(&self, mut place: usize, now: Tick) -> Option<Told> {
        for Snat { table, spec, .. } in self.all.iter().map(|snat| &**snat) {
            if place < table.slots() {
                let word =
                    table.connection(Slot::from_number(place as u32)).filter(|&word| is_shared(word))?;
                return Told::of(word, &spec.outside, now);
            }
            place -= table.slots();
        }
        None
    }

    /// The place of a slot of a pool.
    pub(super) fn place(&self, index: usize, slot: Slot) -> usize {
        let before: usize = self.all[..index].iter().map(|snat| snat.table.slots()).sum();
        before + slot.number() as usize
    }

    /// Buckets of all pools.
    pub fn buckets(&self) -> usize {
        self.all.iter().map(|snat| snat.table.buckets()).sum()
    }

    /// The mappings in a bucket of which peers should know.
    pub fn in_bucket(&self, mut bucket: usize, now: Tick) -> Vec<Placed> {
        for (index, snat) in self.all.iter().enumerate() {
            if bucket < snat.table.buckets() {
                let entries = snat.table.entries(bucket..bucket + 1).filter(|&(_, word)| is_shared(word));
                let placed = |(slot, word)| {
                    let told = Told::of(word, &snat.spec.outside, now)?;
                    Some(Placed { place: self.place(index, slot), told, timeout: snat.timeout(told.state) })
                };
                return entries.filter_map(placed).collect();
            }
            bucket -= snat.table.buckets();
        }
        Vec::new()
    }

    /// How long mappings may be silent of which peers know.
    pub fn timeouts(&self) -> impl Iterator<Item = Timeout> {
        let told = [State::Established, State::Udp];
        self.all.iter().flat_map(move |snat| told.map(|state| snat.timeout(state)))
    }

    /// Takes over a mapping, unless what is known of it is fresher. `slack` is how many ticks older the news of its state may be.
    pub fn adopt(&self, now: Tick, told: &Told, slack: u32) -> Adopted {
        let snat = self.all.iter().find(|snat| snat.has_inside((*told.inside.ip()).into()));
        snat.map_or(Adopted::Stale, |snat| snat.adopt(now, told, slack))
    }
}

impl Snat {
    /// All mappings, as whoever has these ports next is to know them.
    pub fn told(&self, now: Tick) -> Vec<Told> {
        left(&self.table, &self.spec.outside, now)
    }

    fn adopt(&self, now: Tick, told: &Told, slack: u32) -> Adopted {
        let Some(word) = self.word_of(now, told) else { return Adopted::Stale };
        let (class, inside) = (Class::of(told.state), word.client());
        let ours = self.find(now, class, inside, None);
        match ours {
            Some((slot, ours)) if ours.identity() == word.identity() => {
                let is_news = is_news(ours, word, now, slack, |word| progress(word.state()));
                let has_changed = is_news && self.table.replace(slot, ours, word).is_ok();
                return if has_changed { Adopted::Changed } else { Adopted::Known };
            }
            Some((_, ours)) if !goes_before(word, ours, now) => return Adopted::Known,
            _ => {}
        }
        let take = || self.ports.take_this(class, inside, outside(word));
        let is_taken = take() || self.drop_rival(now, class, word) && take();
        if !is_taken {
            return Adopted::NoRoom;
        }
        if let Some((slot, ours)) = ours {
            // Whoever has changed it meanwhile knows better.
            let has_changed = self.table.replace(slot, ours, word).is_ok();
            self.give_back(if has_changed { ours } else { word });
            return if has_changed { Adopted::Changed } else { Adopted::Known };
        }
        let judge = Judgement { snat: self, now, class, at: None };
        let adopted = match self.table.insert(self.hash(class, inside), word, ADOPTER, &judge) {
            Inserted::New(_) => return Adopted::New,
            Inserted::Existing(..) => Adopted::Known,
            Inserted::Full => Adopted::NoRoom,
        };
        self.give_back(word);
        adopted
    }

    /// The word of a mapping here; none if it has expired, or its port is not of this pool.
    fn word_of(&self, now: Tick, told: &Told) -> Option<Word> {
        let outside =
            Outside { address: self.index((*told.outside.ip()).into())?, port: told.outside.port() };
        let timeout = self.timeout(told.state);
        if timeout.has_passed(told.age) || !self.ports.has(outside) {
            return None;
        }
        let inside = Client::new((*told.inside.ip()).into(), told.inside.port());
        let flags = if told.goes_on { FLAG_REPLIED } else { 0 };
        let word = Word::new(inside, DestId::new(outside.number())?).with_state(told.state).with_flags(flags);
        Some(seen_ago(word, now, told.age, timeout))
    }

    /// Removes who is behind the port of this mapping, if the mapping goes before that one.
    fn drop_rival(&self, now: Tick, class: Class, word: Word) -> bool {
        let at = outside(word);
        let rival = self.ports.behind(class, at).and_then(|inside| self.find(now, class, inside, Some(at)));
        let Some((slot, rival)) = rival.filter(|&(_, rival)| goes_before(word, rival, now)) else {
            return false;
        };
        let is_removed = self.table.replace(slot, rival, Word::EMPTY).is_ok();
        if is_removed {
            self.give_back(rival);
        }
        is_removed
    }
}

/// Whether of two mappings that cannot both be, since they have the same host's port or the same port of the pool, theirs stays.
fn goes_before(theirs: Word, ours: Word, now: Tick) -> bool {
    let (theirs_is_over, ours_is_over) = (theirs.state().is_over(), ours.state().is_over());
    if theirs_is_over != ours_is_over {
        return ours_is_over;
    }
    let (theirs_age, ours_age) = (theirs.age(now), ours.age(now));
    let moment = BUSY + same_moment(theirs.is_coarse() || ours.is_coarse());
    if theirs_age.abs_diff(ours_age) > moment {
        return theirs_age < ours_age;
    }
    let order = |word: Word| (word.client().address(), word.client().port(), word.dest_number());
    order(theirs) < order(ours)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Share, SnatSpec, SnatTimeouts};
    use super::*;
    use crate::table::HashKey;
    use crate::wire::transport::{ACK, FIN, SYN};

    const NOW: Tick = Tick(1000);
    const POOL: u32 = 0xC000_0232;
    const HOST: u32 = 0x0A00_0005;

    /// One of so many routers with the same pool.
    fn router(number: usize, of: usize) -> Snats {
        let spec = SnatSpec {
            inside: vec![(0x0A00_0000, 24)],
            outside: vec![POOL],
            ports: 2000..=2099,
            block: 10,
            limit: 20,
            mappings: 1000,
            timeouts: SnatTimeouts::default(),
        };
        let key = HashKey { blind: 7, factor: 0x9E37_79B9_7F4A_7C15 };
        Snats::new(vec![std::sync::Arc::new(Snat::new(spec, key, Share { number, of }))])
    }

    /// Begins an established connection, or goes on with it; the port of the pool.
    fn connect(snats: &Snats, now: Tick, host: u32, port: u16) -> u16 {
        let leaves = |flags| snats.leaves(now, Class::Tcp, Client::new(host, port), flags, 0);
        leaves(SYN).unwrap();
        leaves(ACK).unwrap().0.port
    }

    /// All mappings, as this router tells them.
    fn told(snats: &Snats, now: Tick) -> Vec<Told> {
        let mut told: Vec<Told> = snats.all.iter().flat_map(|snat| snat.told(now)).collect();
        told.sort_by_key(|told| (told.inside, told.outside));
        told
    }

    fn mapping(host: u32, port: u16, outside: u16, age: u32) -> Told {
        let inside = SocketAddrV4::new(host.into(), port);
        let outside = SocketAddrV4::new(POOL.into(), outside);
        Told { inside, outside, state: State::Established, goes_on: false, age }
    }

    fn behind(snats: &Snats, port: u16) -> Option<(u32, u16)> {
        let inside = snats.from_outside(NOW, Class::Tcp, POOL, port)?.inside;
        Some((inside.address(), inside.port()))
    }

    #[test]
    fn a_mapping_goes_on_elsewhere_with_its_port_and_state() {
        let (one, other) = (router(0, 2), router(1, 2));
        let port = connect(&one, NOW, HOST, 4000);
        let news = told(&one, Tick(NOW.0 + 8)).remove(0);
        assert_eq!((news.state, news.age), (State::Established, 8));
        assert_eq!(other.adopt(NOW, &news, 0), Adopted::New);
        assert_eq!(other.adopt(NOW, &news, 0), Adopted::Known);
        assert_eq!((behind(&other, port), told(&other, NOW)), (Some((HOST, 4000)), vec![news]));
        // Its host's packets go out by it, and nobody else has its port.
        let inside = Client::new(HOST, 4000);
        assert_eq!(other.leaves(NOW, Class::Tcp, inside, ACK, 0).unwrap().0.port, port);
        let others: Vec<u16> = (0..20).map(|n| connect(&other, NOW, HOST + 1, 4000 + n)).collect();
        assert!(!others.contains(&port));
        // Its end is heard of, however soon after.
        let _ = one.leaves(NOW, Class::Tcp, inside, FIN | ACK, 0);
        let news = told(&one, NOW).remove(0);
        assert_eq!(news.state, State::Close);
        assert_eq!(other.adopt(NOW, &news, 8), Adopted::Changed);
        assert_eq!(told(&other, NOW)[0].state, State::Close);
    }

    #[test]
    fn what_is_not_of_this_pool_or_over_is_not_taken() {
        let snats = router(0, 1);
        let good = mapping(HOST, 4000, 2050, 0);
        let not = |told: Told| assert_eq!(snats.adopt(NOW, &told, 0), Adopted::Stale, "{told:?}");
        not(mapping(0x0B00_0005, 4000, 2050, 0));
        not(mapping(HOST, 4000, 1999, 0));
        not(mapping(HOST, 4000, 2100, 0));
        not(Told { outside: SocketAddrV4::new((POOL + 1).into(), 2050), ..good });
        not(mapping(HOST, 4000, 2050, 7442 * TICKS_PER_SECOND));
        not(Told { state: State::Close, age: 242 * TICKS_PER_SECOND, ..good });
        assert_eq!((snats.mappings(), snats.adopt(NOW, &good, 0)), (vec![0], Adopted::New));
    }

    #[test]
    fn a_port_in_the_block_of_another_host_is_one_of_that() {
        let snats = router(0, 1);
        let port = connect(&snats, NOW, HOST, 4000);
        let free = if port % 10 == 9 { port - 1 } else { port + 1 };
        assert_eq!(snats.adopt(NOW, &mapping(HOST + 1, 5000, free, 0), 0), Adopted::New);
        assert_eq!(behind(&snats, free), Some((HOST + 1, 5000)));
        let more: Vec<u16> = (0..8).map(|n| connect(&snats, NOW, HOST, 4001 + n)).collect();
        assert!(!more.contains(&free) && snats.mappings() == [10]);
        snats.sweep(Tick(NOW.0 + 40_000), 0..1, 1);
        assert_eq!(snats.mappings(), [0]);
    }

    #[test]
    fn routers_with_one_pool_give_ports_of_different_blocks() {
        let (one, other) = (router(0, 2), router(1, 2));
        let ports =
            |snats: &Snats| -> Vec<u16> { (0..12).map(|n| connect(snats, NOW, HOST, 4000 + n)).collect() };
        let (ours, theirs) = (ports(&one), ports(&other));
        assert!(ours.iter().all(|port| !theirs.contains(port)));
        // Also if each knows of the other's blocks, which the host may not have beyond its limit.
        let (one, other) = (router(0, 2), router(1, 2));
        connect(&one, NOW, HOST, 4000);
        other.adopt(NOW, &told(&one, NOW)[0], 0);
        let theirs = connect(&other, NOW, HOST, 5000);
        assert_ne!(theirs / 10, told(&one, NOW)[0].outside.port() / 10);
        for n in 0..18 {
            connect(&other, NOW, HOST, 5001 + n);
        }
        assert_eq!(
            other.leaves(NOW, Class::Tcp, Client::new(HOST, 6000), SYN, 0),
            Err(super::super::Refused::Full),
            "the blocks of both routers are its"
        );
    }

    #[test]
    fn of_two_with_one_port_the_same_stays_in_both() {
        let of = |told: Told| {
            let snats = router(0, 1);
            assert_eq!(snats.adopt(NOW, &told, 0), Adopted::New);
            snats
        };
        // Two hosts with one port, or two ports of one host's: who is over goes, then who was silent for longer, then any.
        let over = |told: Told| Told { state: State::Close, ..told };
        for (stays, goes) in [
            (mapping(HOST, 4000, 2050, 4), mapping(HOST + 1, 4000, 2050, 0)),
            (mapping(HOST + 1, 4000, 2050, 0), mapping(HOST, 4000, 2050, 20)),
            (mapping(HOST + 1, 4000, 2050, 200), over(mapping(HOST, 4000, 2050, 0))),
            (mapping(HOST, 4000, 2050, 4), mapping(HOST, 4000, 2051, 0)),
            (mapping(HOST, 4000, 2051, 0), mapping(HOST, 4000, 2050, 20)),
        ] {
            let (has_it, hears_it) = (of(stays), of(goes));
            assert!(matches!(has_it.adopt(NOW, &goes, 8), Adopted::Known | Adopted::NoRoom));
            assert!(matches!(hears_it.adopt(NOW, &stays, 8), Adopted::New | Adopted::Changed));
            for snats in [has_it, hears_it] {
                assert_eq!((told(&snats, NOW), snats.mappings()), (vec![stays], vec![1]));
                let other = if goes.outside == stays.outside { None } else { Some(goes.outside.port()) };
                assert_eq!(other.and_then(|port| behind(&snats, port)), None);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Two routers with one pool, whatever begins where and whenever it is told: a port has one host, a host's port has one, what is
        /// counted is there, and once all is told both ways both know the same.
        #[test]
        fn two_routers_agree(steps in prop::collection::vec((0usize..2, 0u32..4, 0u16..12, 0u64..30, any::<bool>()), 1..60)) {
            let routers = [router(0, 2), router(1, 2)];
            let mut now = NOW;
            let tell = |from: usize, now: Tick| {
                for news in told(&routers[from], now) {
                    routers[1 - from].adopt(now, &news, 0);
                }
            };
            for (router, host, port, pause, tells) in steps {
                now = Tick(now.0 + pause);
                let leaves = |flags| routers[router].leaves(now, Class::Tcp, Client::new(HOST + host, 4000 + port), flags, 0);
                if leaves(SYN).is_ok() {
                    leaves(ACK).unwrap();
                }
                if tells {
                    tell(router, now);
                }
                for snats in &routers {
                    let known = told(snats, now);
                    prop_assert_eq!(snats.mappings(), [known.len() as u64]);
                    for mapping in &known {
                        let at = mapping.outside.port();
                        let inside = snats.from_outside(now, Class::Tcp, POOL, at).map(|found| found.inside.socket());
                        prop_assert_eq!(inside, Some(mapping.inside));
                    }
                }
            }
            for _ in 0..3 {
                tell(0, now);
                tell(1, now);
            }
            let ends = |snats: &Snats| told(snats, now).iter().map(|told| (told.inside, told.outside)).collect::<Vec<_>>();
            prop_assert_eq!(ends(&routers[0]), ends(&routers[1]));
        }
    }
}
