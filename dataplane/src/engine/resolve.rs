//! Stage 4: which connection's a packet is.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use super::classify::{classify, further};
use super::express::{self, Tally};
use super::gate::Gated;
use super::look_up::{self, Order};
use super::packet::{Direction, Found, Owner, Packet, Search, Side, Work};
use super::persist::Person;
use super::rewrite::rewrite;
use super::six::{self, Addresses};
use super::{BURST, Engine, Frame, Verdict, persist, route};
use crate::admission::Sources;
use crate::clock::Tick;
use crate::counters::{Drop, Punt};
use crate::fib::PortIndex;
use crate::scheduler::Flow;
use crate::service::{Protocol, State};
use crate::snapshot::{Dest, EndpointIndex, Family, Service, ServiceIndex, Snapshot};
use crate::table::{
    Client, DestId, FLAG_REPLIED, Fate, Inserted, Judge, Local, Slot, Stream, Table, Word, Worth,
};
use crate::wire::sctp::Event;
use crate::wire::transport::{self, RST, SYN};
use crate::{sctp, tcp};

/// What has come of a burst so far.
#[derive(Default)]
struct Progress {
    /// Whether a packet of this burst may have changed what stage 3 saw.
    stale: bool,
    tally: Tally,
    common: Common,
}

/// A burst's surroundings: the engine, the snapshot and the moment.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    pub engine: &'a Engine,
    pub snapshot: &'a Snapshot,
    pub now: Tick,
    /// The port that it came in on, where that is known.
    pub port: Option<PortIndex>,
    /// The addresses of its packets, by their places, if they are of IPv6.
    pub addresses: Option<&'a [Addresses]>,
    /// The server that the packet in hand names itself.
    pub named: Option<DestId>,
}

impl<'a> Path<'a> {
    /// For packets of IPv4.
    pub fn new(engine: &'a Engine, snapshot: &'a Snapshot, now: Tick) -> Self {
        Path { engine, snapshot, now, port: None, addresses: None, named: None }
    }

    /// The addresses of a packet, if they are of IPv6.
    #[inline(always)]
    pub fn addresses_of(&self, packet: &Packet) -> Option<&'a Addresses> {
        self.addresses?.get(usize::from(packet.index))
    }

    /// Stage 2 for one packet: whose it is.
    pub fn classify(&self, packet: &mut Packet) -> Result<(), Verdict> {
        let &Path { engine, snapshot, port, .. } = self;
        match self.addresses_of(packet) {
            None => classify(packet, (packet.source, packet.destination), port, snapshot, &engine.table),
            Some(six) => classify(packet, (six.source, six.destination), port, snapshot, &engine.table),
        }
    }

    /// A packet from an endpoint that knows no such connection, as one of somebody else: the other end of a connection with full NAT, or of
    /// a service of all ports, may have the very address and port of the endpoint of another service.
    #[inline(never)]
    pub fn further(&self, packet: &Packet) -> Option<Packet> {
        let &Path { snapshot, port, .. } = self;
        let table = &self.engine.table;
        let hit = match self.addresses_of(packet) {
            None => further(packet, (packet.source, packet.destination), port, snapshot, table),
            Some(six) => further(packet, (six.source, six.destination), port, snapshot, table),
        };
        let (direction, owner, client) =
            hit.filter(|&hit| hit.0 != packet.direction || hit.1 != packet.owner)?;
        let (hash, search) = (table.hash(client, packet.protocol), Search::Done);
        Some(Packet { direction, owner, client, hash, search, ..*packet })
    }

    /// Stage 5 for one packet of a connection with this dest.
    pub fn rewrite(&self, packet: &Packet, dest: &Dest, frame: &mut impl Frame) -> Verdict {
        match self.addresses_of(packet) {
            None => rewrite(self, packet, dest, frame),
            Some(_) => six::send(self, packet, dest, frame),
        }
    }

    /// The address of a packet's client, if it is of IPv6, and in the packet: with full NAT a reply has a local one in its place.
    #[inline]
    pub fn client_address(&self, packet: &Packet) -> Option<u128> {
        let &Addresses { source, destination } = self.addresses_of(packet)?;
        match packet.direction {
            Direction::In => Some(source),
            Direction::Out => {
                let client = destination.client(packet.client.port(), &self.engine.table);
                let is_clients =
                    client == packet.client || client.towards(packet.source_port) == packet.client;
                is_clients.then_some(destination)
            }
        }
    }

    /// A packet's client, if that has this port.
    pub fn client(&self, packet: &Packet, port: u16) -> Client {
        match (self.addresses_of(packet), packet.direction) {
            (Some(six), Direction::In) => six.source.client(port, &self.engine.table),
            (Some(six), Direction::Out) => six.destination.client(port, &self.engine.table),
            (None, Direction::In) => Client::new(packet.source, port),
            (None, Direction::Out) => Client::new(packet.destination, port),
        }
    }

    /// What a scheduler may look at.
    #[inline(always)]
    pub(super) fn flow(&self, packet: &Packet) -> Flow {
        let &Packet { source, source_port, destination, destination_port, protocol, .. } = packet;
        let wide = self.addresses_of(packet).map(|addresses| [addresses.source, addresses.destination]);
        Flow { source, source_port, destination, destination_port, protocol, wide, now: self.now }
    }

    /// What others may know of a packet.
    pub fn found(&self, packet: &Packet) -> Found {
        let &Packet { protocol, client, .. } = packet;
        let owner = Owner { side: packet.side(), protocol, client, wide: self.client_address(packet) };
        Found { index: usize::from(packet.index), owner, flow: self.flow(packet) }
    }

    /// Stages 4 and 5: every packet that is left. If all of the burst go out of one port, that is the answer. `SIX` is whether they are
    /// of IPv6.
    pub fn finish_all<const SIX: bool, F: Frame>(
        &self,
        order: &Order,
        work: &mut Work,
        burst: &mut [F],
        verdicts: &mut [Verdict; BURST],
    ) -> Option<PortIndex> {
        let mut progress = Progress::default();
        self.finish::<SIX, false, _>(order, 0..order.hits, work, burst, verdicts, &mut progress);
        if order.hits < work.count {
            look_up::look_further(self.snapshot, &self.engine.table, order, work);
            self.finish::<SIX, true, _>(order, order.hits..work.count, work, burst, verdicts, &mut progress);
        }
        progress.tally.count(&self.engine.counters);
        progress.common.of_all(burst.len())
    }

    /// Stages 4 and 5 for the packets whose turn it is. `REST` is whether they were not found in their home buckets; what
    /// may begin a connection then goes the long way at once.
    #[inline(never)]
    fn finish<const SIX: bool, const REST: bool, F: Frame>(
        &self,
        order: &Order,
        turns: Range<usize>,
        work: &mut Work,
        burst: &mut [F],
        verdicts: &mut [Verdict; BURST],
        progress: &mut Progress,
    ) {
        if self.snapshot.is_large() {
            turns.clone().for_each(|turn| express::prefetch_counters(self, &work.packets[order.turn(turn)]));
        }
        for turn in turns {
            let packet = &mut work.packets[order.turn(turn)];
            let is_known = !(REST && packet.search == Search::Due);
            if progress.stale && is_known {
                packet.look_again(&self.engine.table);
            }
            let Some(frame) = burst.get_mut(usize::from(packet.index)) else { continue };
            let verdict = &mut verdicts[usize::from(packet.index) % BURST];
            if is_known && let Some(port) = self.pass::<SIX>(packet, frame, &mut progress.tally) {
                progress.common.add(port);
                *verdict = Verdict::Forward(port);
                continue;
            }
            progress.stale = true;
            *verdict = self.long_way::<SIX>(packet, frame, &mut progress.tally);
            if let Verdict::Forward(port) = *verdict {
                progress.common.add(port);
            }
        }
    }

    /// The short way, if the packet can take it.
    #[inline(always)]
    fn pass<const SIX: bool>(
        &self,
        packet: &Packet,
        frame: &mut impl Frame,
        tally: &mut Tally,
    ) -> Option<PortIndex> {
        if SIX { six::pass(self, packet, frame, tally) } else { express::pass(self, packet, frame, tally) }
    }

    /// Stages 4 and 5 for any packet.
    #[inline(never)]
    fn long_way<const SIX: bool>(
        &self,
        packet: &mut Packet,
        frame: &mut impl Frame,
        tally: &mut Tally,
    ) -> Verdict {
        if let Some(port) = express::pass_tunnel(self, packet, frame) {
            return Verdict::Forward(port);
        }
        if packet.search == Search::Due {
            look_up::search(&self.engine.table, packet);
            if !packet.word.is_empty()
                && let Some(port) = self.pass::<SIX>(packet, frame, tally)
            {
                return Verdict::Forward(port);
            }
        }
        let mut found = match self.named(packet, frame) {
            None => self.resolve(packet),
            named => Path { named, ..*self }.find_or_begin(packet),
        };
        self.or_further(packet, &mut found);
        let dest = match found {
            Ok(dest) => dest,
            Err(verdict) => return route::instead(self, frame, verdict),
        };
        if SIX {
            return six::send(self, packet, dest, frame);
        }
        if packet.plain {
            let transform = self.snapshot.transform(dest.id);
            if let Some(way) = express::way(self, packet, transform, frame) {
                return Verdict::Forward(way.go(packet, transform, tally));
            }
        }
        rewrite(self, packet, dest, frame)
    }

    /// The server that a packet names itself ([`crate::quic`]); one that is down is as good as none.
    #[inline(always)]
    fn named(&self, packet: &Packet, frame: &impl Frame) -> Option<DestId> {
        let Side::Service(index) = packet.side() else { return None };
        let ids = self.snapshot.services[index as usize].quic.as_ref()?;
        let segment = frame.bytes().get(usize::from(packet.transport)..)?;
        let dest = self.snapshot.dest(ids.route(transport::payload(segment)?)?)?;
        dest.up.then_some(dest.id)
    }

    /// Stage 4: the dest of the packet's connection, which is found or begun and whose state follows.
    #[inline]
    fn resolve(&self, packet: &Packet) -> Result<&'a Dest, Verdict> {
        if packet.search == Search::Vacancy
            && let Some(dest) = self.begin(packet, Some(packet.slot))?
        {
            return Ok(dest);
        }
        self.find_or_begin(packet)
    }

    /// The same without what stages 2 and 3 have seen.
    #[inline(never)]
    pub fn find_or_begin(&self, packet: &Packet) -> Result<&'a Dest, Verdict> {
        let Packet { client, hash, .. } = *packet;
        let known = Judgement::of_known(self.snapshot, self.now, packet.side(), client);
        let judge = Judgement { named: self.named, ..known };
        // Another worker may change the word between our look and our swap; then look again. Each round
        // that fails is one in which another worker got on.
        loop {
            match self.engine.table.find(hash, client, &judge) {
                Some((slot, word)) => {
                    if let Some(dest) = self.advance(slot, word, packet)? {
                        return Ok(dest);
                    }
                }
                None => {
                    if let Some(dest) = self.begin(packet, None)? {
                        return Ok(dest);
                    }
                }
            }
        }
    }

    /// What was found becomes what [`Self::anothers`] says of the packet, if it was nothing. In its place: a result that is moved is read
    /// as a whole sooner than its halves are written, which are 15 cycles.
    #[inline(always)]
    pub fn or_further(&self, packet: &mut Packet, found: &mut Result<&'a Dest, Verdict>) {
        if matches!(found, Err(Verdict::Punt(Punt::ServerReply))) {
            *found = self.anothers(packet);
        }
    }

    /// A packet from an endpoint that knows no such connection: somebody else's ([`Self::further`]), which it is then, or of no service.
    /// Only what is to the router itself may answer a check, for which the queue to Linux has room of its own.
    #[inline(never)]
    fn anothers(&self, packet: &mut Packet) -> Result<&'a Dest, Verdict> {
        if let Some(further) = self.further(packet) {
            *packet = further;
            let found = self.find_or_begin(packet);
            if !matches!(found, Err(Verdict::Punt(Punt::ServerReply))) {
                return found;
            }
        }
        let reason = if self.is_to_router(packet) { Punt::ServerReply } else { Punt::NoService };
        Err(Verdict::Punt(reason))
    }

    /// Whether a packet is to an address of the router's own.
    fn is_to_router(&self, packet: &Packet) -> bool {
        match self.addresses_of(packet) {
            None => self.snapshot.fibs.four.is_own(packet.destination),
            Some(six) => self.snapshot.fibs.six.is_own(six.destination),
        }
    }

    /// A packet of a connection; `None` if the connection has changed meanwhile.
    #[inline]
    pub(super) fn advance(
        &self,
        slot: Slot,
        word: Word,
        packet: &Packet,
    ) -> Result<Option<&'a Dest>, Verdict> {
        let Some(dest) = self.snapshot.dest_of(word) else { return Ok(None) };
        arrives(packet, dest)?;
        let inward = packet.direction == Direction::In;
        let old = word.state();
        if packet.may_begin() && is_over(old, dest) {
            // The client opens again on a port whose connection is over: make room for the new one at once.
            // (Linux had users wait a second here for years, see kubernetes#90854.)
            if self.engine.table.replace(slot, word, Word::EMPTY).is_ok() {
                self.snapshot.left(word);
            }
            return Ok(None);
        }
        if dest.reset && packet.protocol == Protocol::Tcp && packet.flags & RST == 0 {
            return Err(Verdict::Punt(Punt::Reset));
        }
        let service = &self.snapshot.services[dest.service as usize];
        let mut flags = word.flags();
        let state = match packet.protocol {
            Protocol::Udp => {
                // Where replies are not seen, a client that goes on says as much: a flood of single datagrams is nothing that
                // peers should know.
                let goes_on =
                    dest.is_one_way() && word.age(self.now) >= service.timeout(State::Udp).renew_after();
                if !inward || goes_on {
                    flags |= FLAG_REPLIED;
                }
                State::Udp
            }
            Protocol::Tcp => tcp::next(tcp::Direction::of(inward, dest.is_one_way()), old, packet.flags),
            Protocol::Sctp => {
                let event = Event::of_flags(packet.flags);
                sctp::next(tcp::Direction::of(inward, dest.is_one_way()), old, event)
            }
        };
        let timeout = service.timeout(state);
        if state == old && flags == word.flags() && word.age(self.now) < timeout.renew_after() {
            return Ok(Some(dest));
        }
        let new = word.with_state(state).with_flags(flags).seen(self.now, timeout.is_coarse());
        if self.engine.table.replace(slot, word, new).is_err() {
            return Ok(None);
        }
        self.note_address(slot, packet);
        if state.is_active() != old.is_active() {
            dest.gauge.change(state.is_active());
        }
        if state != old || flags != word.flags() {
            self.note(slot, new);
            if let Some(limiter) = &service.limiter
                && old.is_embryonic()
                && state == State::Established
            {
                limiter.completed(self.now);
            }
            let goes_on = matches!(state, State::Established | State::Udp);
            if goes_on && let Some(prefix) = service.persistent {
                let known = || {
                    self.addresses_of(packet)
                        .and_then(|_| self.engine.table.address_of(slot, new, dest.is_of_all_ports()))
                };
                let wide = self.client_address(packet).or_else(known);
                self.confirm(dest, prefix, Person { client: packet.client, wide });
            }
        }
        Ok(Some(dest))
    }

    /// Notes whose connection is in a slot, if the packet is of IPv6.
    #[inline(always)]
    pub(super) fn note_address(&self, slot: Slot, packet: &Packet) {
        if self.addresses.is_some()
            && let Some(address) = self.client_address(packet)
        {
            self.engine.table.note_address(slot, address);
        }
    }

    /// A word has become this one: peers may have to know.
    #[inline]
    pub(super) fn note(&self, slot: Slot, word: Word) {
        if let Some(changes) = &self.engine.changes {
            changes.note(slot, word);
        }
    }

    /// A packet of no connection, for which there may be a vacancy; `None` if another worker has just begun one.
    fn begin(&self, packet: &Packet, vacancy: Option<Slot>) -> Result<Option<&'a Dest>, Verdict> {
        let Side::Service(index) = packet.side() else { return self.begin_from_server(packet) };
        let service = &self.snapshot.services[index as usize];
        if !(service.is_open && packet.may_begin()) {
            return self.begin_if_allowed(index, service, packet, vacancy);
        }
        if self.is_from_martian(packet) {
            return Err(Verdict::Drop(Drop::Martian));
        }
        let picked = self.pick_any(service, packet);
        let dest = picked.and_then(|id| self.snapshot.dest(id)).ok_or(Verdict::Drop(Drop::NoServer))?;
        arrives(packet, dest)?;
        let word = self.first_word(service, dest, packet);
        dest.gauge.enter(word.state());
        if !self.insert(dest, packet, word, None, vacancy)? {
            return Ok(None);
        }
        self.count_connection(dest);
        Ok(Some(dest))
    }

    /// A packet from a real server that belongs to no connection.
    #[inline(never)]
    fn begin_from_server(&self, packet: &Packet) -> Result<Option<&'a Dest>, Verdict> {
        // A connection of all ports goes before who answers for want of one.
        let answering = self.answering(packet).filter(|_| !self.is_known_further(&self.engine.table, packet));
        match answering.or_else(|| self.begin_active(packet)) {
            Some(dest) => Ok(Some(dest)),
            None => Err(Verdict::Punt(Punt::ServerReply)),
        }
    }

    /// As [`Self::begin`], for what asks more of a connection that begins than which server is its.
    #[inline(never)]
    fn begin_if_allowed(
        &self,
        index: ServiceIndex,
        service: &Service,
        packet: &Packet,
        vacancy: Option<Slot>,
    ) -> Result<Option<&'a Dest>, Verdict> {
        let is_late = !(packet.may_begin() || service.sloppy && packet.may_begin_late());
        // Of a connection that needs no word nobody knows that it is not known.
        let may_go_on = is_late && service.at_risk.is_some();
        let may_begin = service.live && service.has_port(packet.destination_port, self.port);
        if !may_begin && !may_go_on {
            return Err(Verdict::Punt(Punt::NoService));
        }
        if is_late {
            match self.after_handshake(index, service, packet)? {
                Gated::Begins => {}
                Gated::Passes(dest) => return arrives(packet, dest).map(|()| Some(dest)),
                Gated::GoesOn(dest) => return self.catch_up(service, dest, packet, vacancy),
            }
        }
        self.admit(service, packet, is_late)?;
        if service.limiter.is_some()
            && let Gated::Passes(dest) = self.knock(index, service, packet)?
        {
            return arrives(packet, dest).map(|()| Some(dest));
        }
        let dest = self.schedule(index, service, packet)?;
        arrives(packet, dest)?;
        if !service.keeps_all && !self.is_kept(service, dest, packet) {
            self.count_connection(dest);
            return Ok(Some(dest));
        }
        if !self.enter(service, dest, packet, self.first_word(service, dest, packet), vacancy)? {
            return Ok(None);
        }
        self.count_connection(dest);
        if service.is_limited {
            // Whether it is full now has to be noticed now.
            dest.is_full();
        }
        Ok(Some(dest))
    }

    /// Inserts a connection's word and what it needs besides; `false` if another worker has just done so.
    pub(super) fn enter(
        &self,
        service: &Service,
        dest: &Dest,
        packet: &Packet,
        word: Word,
        vacancy: Option<Slot>,
    ) -> Result<bool, Verdict> {
        // Counted before it can be seen: another worker may end it at once, and the gauge is not signed.
        dest.gauge.enter(word.state());
        let (word, local) = match (&service.limiter, &service.pool) {
            (None, None) => (word, None),
            _ => self.reserve(service, dest, packet, word)?,
        };
        self.insert(dest, packet, word, local, vacancy)
    }

    /// Inserts a word that is counted, and is not any more if it finds no place; `false` if another worker has just inserted one.
    #[inline(always)]
    fn insert(
        &self,
        dest: &Dest,
        packet: &Packet,
        word: Word,
        local: Option<Local>,
        vacancy: Option<Slot>,
    ) -> Result<bool, Verdict> {
        let (table, worker) = (&self.engine.table, self.engine.worker as u8);
        let slot = match vacancy {
            Some(slot) if table.occupy(packet.hash, slot, word, worker) => slot,
            _ => match self.insert_anywhere(dest, packet, word) {
                Inserted::New(slot) => slot,
                Inserted::Existing(..) => return Ok(false),
                Inserted::Full => return Err(Verdict::Drop(Drop::TableFull)),
            },
        };
        self.note_address(slot, packet);
        if let Some(local) = local {
            table.note_local(slot, word.identity(), local);
        }
        Ok(true)
    }

    /// The same without a vacancy, or in spite of it.
    #[inline(never)]
    fn insert_anywhere(&self, dest: &Dest, packet: &Packet, word: Word) -> Inserted {
        let Packet { client, hash, .. } = *packet;
        let wanted = Wanted::Connection(dest.endpoint);
        let side = packet.side();
        let judge =
            Judgement { snapshot: self.snapshot, now: self.now, side, client, wanted, named: self.named };
        let inserted = self.engine.table.insert(hash, word, self.engine.worker as u8, &judge);
        if !matches!(inserted, Inserted::New(_)) {
            self.snapshot.left(word);
        }
        inserted
    }

    /// What a connection needs before it is inserted besides a slot: a place among its source's, a local port. It has been counted, and is not any
    /// more if there is none.
    #[inline(never)]
    fn reserve(
        &self,
        service: &Service,
        dest: &Dest,
        packet: &Packet,
        word: Word,
    ) -> Result<(Word, Option<Local>), Verdict> {
        let entered = service.limiter.as_ref().map_or(Ok(word), |limiter| limiter.enter(word));
        let word = entered.map_err(|full| {
            dest.gauge.leave(word.state());
            Verdict::Drop(full)
        })?;
        let Some(pool) = &service.pool else { return Ok((word, None)) };
        // A stream that is met in its middle has had its beginning.
        let stream = (pool.proxy && packet.flags & SYN != 0).then(Stream::default);
        let client = self.client_address(packet);
        match pool.claim(packet.protocol, word.identity(), packet.hash, stream, client) {
            Some(local) => Ok((word, Some(local))),
            None => {
                self.snapshot.left(word);
                Err(Verdict::Drop(Drop::NoLocalPort))
            }
        }
    }

    /// Whether a packet's client may begin a connection, or why not; `is_late` if its SYN was let in and has left no word.
    pub(super) fn admit(&self, service: &Service, packet: &Packet, is_late: bool) -> Result<(), Verdict> {
        let admitted = match self.addresses_of(packet) {
            None => self.admit_from(service, packet.source, is_late),
            Some(six) => self.admit_from(service, six.source, is_late),
        };
        admitted.map_err(Verdict::Drop)
    }

    fn admit_from<A: Family>(&self, service: &Service, source: A, is_late: bool) -> Result<(), Drop> {
        if self.is_martian(source) {
            return Err(Drop::Martian);
        }
        let allows = |list: &Option<Arc<Sources>>| list.as_ref().is_none_or(|list| list.allows(source));
        if !(allows(&self.snapshot.sources) && allows(&service.sources)) {
            return Err(Drop::SourceDenied);
        }
        match &service.limiter {
            Some(limiter) if is_late => limiter.admit_late(self.now),
            Some(limiter) => limiter.admit(source, self.now),
            None => Ok(()),
        }
    }

    /// The dest of a packet from an endpoint that answers what nobody remembers. What it answers to the router itself is Linux': checks.
    pub fn answering(&self, packet: &Packet) -> Option<&'a Dest> {
        let Side::Endpoint(endpoint) = packet.side() else { return None };
        let is_one_packet = |dest: &Dest| self.snapshot.services[dest.service as usize].one_packet;
        // Of several the first: nothing else tells them apart.
        let mut dests = self.snapshot.answered_by(endpoint).filter(|&dest| self.was_asked(dest, packet));
        dests
            .find(|&dest| is_one_packet(dest) || self.answers(dest, packet))
            .filter(|_| !self.is_to_router(packet))
    }

    /// Whether what comes to where an endpoint's packet would leave from is for the dest's service. A mark's addresses have the server in common, and
    /// are told apart by their ports; and the port of one that answers from any may be another service's.
    fn was_asked(&self, dest: &Dest, packet: &Packet) -> bool {
        let (port, protocol) = (dest.virtual_port(packet.source_port), packet.protocol);
        let asked = match dest.virtual_address.ip() {
            IpAddr::V4(four) => self.snapshot.service_for(u32::from(four), port, protocol),
            IpAddr::V6(six) => self.snapshot.service_for(u128::from(six), port, protocol),
        };
        asked.is_some_and(|(index, _)| self.snapshot.may_meet(index, dest))
    }

    /// Whether a packet from an endpoint is of a connection in a table that somebody else has ([`Self::further`]).
    pub fn is_known_further(&self, table: &Table, packet: &Packet) -> bool {
        self.further(packet).is_some_and(|further| {
            let judge = Judgement::of_known(self.snapshot, self.now, further.side(), further.client);
            table.find(further.hash, further.client, &judge).is_some()
        })
    }

    /// Whether nobody can be a packet's client.
    #[inline(always)]
    fn is_from_martian(&self, packet: &Packet) -> bool {
        match self.addresses_of(packet) {
            None => self.is_martian(packet.source),
            Some(six) => self.is_martian(six.source),
        }
    }

    /// Whether nobody can be a client with this address: it stands for no single host, or is a service's (RFC 1812, section 5.3.7; RFC 4291,
    /// sections 2.5.2 and 2.7).
    #[inline(always)]
    fn is_martian<A: Family>(&self, source: A) -> bool {
        !source.is_somebody() || self.snapshot.is_virtual(source)
    }

    #[inline(always)]
    pub(super) fn count_connection(&self, dest: &Dest) {
        dest.traffic[self.engine.worker].connections.add(1);
        self.engine.counters.traffic.connections.add(1);
    }

    /// Counts a packet of so many bytes that is forwarded.
    #[inline]
    pub fn count(&self, dest: &Dest, direction: Direction, length: u16) {
        let (direction, bytes) = (direction as usize, u64::from(length));
        dest.traffic[self.engine.worker].add(direction, 1, bytes);
        self.engine.counters.traffic.add(direction, 1, bytes);
    }

    /// The server of a connection that begins.
    fn schedule(&self, index: ServiceIndex, service: &Service, packet: &Packet) -> Result<&'a Dest, Verdict> {
        let picked = match (self.named, service.persistent) {
            (Some(named), _) => self.snapshot.dest(named),
            (None, None) => self.pick(service, packet),
            (None, Some(prefix)) => self.persist(index, service, prefix, packet)?,
        };
        picked.ok_or(Verdict::Drop(Drop::NoServer))
    }

    /// The word of a connection that begins.
    #[inline(always)]
    fn first_word(&self, service: &Service, dest: &Dest, packet: &Packet) -> Word {
        let state = match packet.protocol {
            Protocol::Udp => State::Udp,
            Protocol::Tcp => match tcp::next(tcp::Direction::In, State::None, packet.flags) {
                // From its middle on. A flood of acknowledgements is no more than one of SYNs: what does not go on makes
                // room for others, and what was established never would.
                State::Established => State::SynRecv,
                state => state,
            },
            Protocol::Sctp => {
                // A cookie that comes back is the end of a handshake where nothing else is seen of it.
                let direction = tcp::Direction::of(true, dest.is_one_way());
                match sctp::next(direction, State::None, Event::of_flags(packet.flags)) {
                    // From its middle on: the next packet, of whichever end, establishes it.
                    State::Established => State::None,
                    state => state,
                }
            }
        };
        let coarse = service.timeout(state).is_coarse();
        Word::new(packet.client, dest.id).with_state(state).seen(self.now, coarse)
    }

    /// The scheduler's choice where all servers are free. Inside of [`Self::begin`] all that it holds would be in memory meanwhile.
    #[inline(never)]
    fn pick_any(&self, service: &Service, packet: &Packet) -> Option<DestId> {
        service.picker.pick_free(|| self.flow(packet), &|_| true)
    }

    /// The scheduler's choice.
    pub(super) fn pick(&self, service: &Service, packet: &Packet) -> Option<&'a Dest> {
        let (flow, home) = (self.flow(packet), self.snapshot.home(service));
        let picked = match service.is_limited {
            // The end of a handshake.
            _ if service.by_hash.is_some() && packet.flags & SYN == 0 => home.hashed(&flow),
            true => home.picker.pick_free(|| flow, &|id| self.snapshot.is_free(id)),
            false => home.picker.pick(&flow),
        };
        self.snapshot.dest_in(service, picked?)
    }
}

/// Whether a packet that may begin a connection does so in the place of this one: it has ended, or its server
/// is dead or gone.
fn is_over(state: State, dest: &Dest) -> bool {
    state.is_over() || !dest.up || dest.reset
}

fn has_expired(snapshot: &Snapshot, now: Tick, dest: &Dest, word: Word) -> bool {
    snapshot.timeout(dest, word.state()).has_passed(word.age(now))
}

/// Judges the words of the table by the snapshot and the time.
pub(super) struct Judgement<'a> {
    pub snapshot: &'a Snapshot,
    pub now: Tick,
    pub side: Side,
    pub client: Client,
    pub wanted: Wanted,
    /// The server of a connection, if only one of this server counts.
    pub named: Option<DestId>,
}

/// What is looked for, or to be inserted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A connection, and the endpoint of that which is to be inserted. The real server can tell connections of one
    /// client port apart by nothing else, so a connection of the same client with the same endpoint, through
    /// another service, is superseded.
    Connection(Option<EndpointIndex>),
    /// A template.
    Template,
}

impl<'a> Judgement<'a> {
    /// To find a connection that there may be.
    pub fn of_known(snapshot: &'a Snapshot, now: Tick, side: Side, client: Client) -> Self {
        Judgement { snapshot, now, side, client, wanted: Wanted::Connection(None), named: None }
    }
}

impl Judge for Judgement<'_> {
    #[inline]
    fn is_mine(&self, word: Word) -> bool {
        self.snapshot.dest_of(word).is_some_and(|dest| {
            let on_this_side = match self.side {
                Side::Service(service) => self.snapshot.may_meet(service, dest),
                Side::Endpoint(endpoint) => dest.endpoint == Some(endpoint),
            };
            let is_of_kind = (word.state() == State::Template) == (self.wanted == Wanted::Template);
            let is_named = self.named.is_none_or(|named| named == dest.id);
            on_this_side && is_of_kind && is_named && !has_expired(self.snapshot, self.now, dest, word)
        })
    }

    /// What ended goes first, then what never began; of equals, the longest silent.
    fn worth(&self, word: Word) -> Worth {
        let Some(dest) = self.snapshot.dest_of(word) else {
            return if self.snapshot.has_removed(word) { Worth::Free } else { Worth::Keep };
        };
        let superseded = word.client() == self.client
            && dest.endpoint.is_some()
            && self.wanted == Wanted::Connection(dest.endpoint)
            && word.state() != State::Template;
        if superseded || has_expired(self.snapshot, self.now, dest, word) {
            return Worth::Free;
        }
        let class = match word.state() {
            State::TimeWait | State::Close | State::LastAck => 0,
            State::Closed | State::Rejected | State::ShutdownAckSent => 0,
            state if state.is_embryonic() => 1,
            State::Udp if dest.endpoint.is_none() => 2, // nobody can say: replies are not seen
            State::Udp | State::Template if word.flags() & FLAG_REPLIED == 0 => 1,
            _ => return Worth::Keep,
        };
        const OLDEST: u32 = (1 << 24) - 1;
        Worth::Expendable(class << 24 | (OLDEST - word.age(self.now).min(OLDEST)))
    }

    fn removed(&self, word: Word) {
        self.snapshot.left(word);
    }
}

/// A packet whose time to live is over comes so far only where it may have arrived ([`Service::ends_here`]).
#[inline]
pub(super) fn arrives(packet: &Packet, dest: &Dest) -> Result<(), Verdict> {
    if packet.ttl <= 1 && !dest.is_here {
        return Err(Verdict::Drop(Drop::TtlExpired));
    }
    Ok(())
}

/// Removes expired connections and those of removed dests. A live connection whose timeout has become too
/// long for the fine unit of its stamp (by a reload) changes to the coarse one.
pub(super) fn sweep(table: &Table, snapshot: &Snapshot, now: Tick, buckets: Range<usize>) {
    let decide = |slot: Slot, word: Word| match snapshot.dest_of(word) {
        None if snapshot.has_removed(word) => Fate::Remove,
        None => Fate::Keep,
        Some(dest) => {
            let timeout = snapshot.timeout(dest, word.state());
            if timeout.has_passed(word.age(now)) {
                return Fate::Remove;
            }
            persist::hold(table, snapshot, now, dest, slot, word);
            let word = count(table, snapshot, dest, slot, word);
            if timeout.is_coarse() && !word.is_coarse() {
                let last_seen = Tick(now.0.saturating_sub(u64::from(word.age(now))));
                Fate::Become(word.seen(last_seen, true))
            } else {
                Fate::Keep
            }
        }
    };
    table.sweep(buckets, decide, |word| snapshot.left(word));
}

/// Counts a connection of a limited source that nobody has counted yet; the word that stands there then.
fn count(table: &Table, snapshot: &Snapshot, dest: &Dest, slot: Slot, word: Word) -> Word {
    let limiter = snapshot.services[dest.service as usize].limiter.as_ref();
    let Some(limiter) = limiter.filter(|_| word.state() != State::Template) else { return word };
    let Some(counted) = limiter.count(word) else { return word };
    if table.replace(slot, word, counted).is_err() {
        limiter.leave(counted);
        return word;
    }
    counted
}

/// The port that all packets of a burst go out of, if there is one.
struct Common {
    count: usize,
    /// All ports, by `or` and by `and`: equal if there was one.
    any: PortIndex,
    all: PortIndex,
}

impl Default for Common {
    fn default() -> Self {
        Common { count: 0, any: 0, all: PortIndex::MAX }
    }
}

impl Common {
    #[inline(always)]
    fn add(&mut self, port: PortIndex) {
        self.count += 1;
        self.any |= port;
        self.all &= port;
    }

    fn of_all(&self, packets: usize) -> Option<PortIndex> {
        (self.count == packets && self.any == self.all).then_some(self.all)
    }
}
