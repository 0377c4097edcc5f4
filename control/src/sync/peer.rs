//! A peer router, as a machine without clock and socket: datagrams and the time go in, datagrams come out.
//!
//! What is synchronised is state, not operations. A note says *which slot* of the table has changed; what is sent is what
//! is there when a datagram is made. A lost datagram's slots are noted again. So whatever is lost, doubled or out of
//! order, the latest word about a connection is sent until it has come, and the order in which words come does not
//! matter: of two the fresher counts.
//!
//! A conversation ([`super::session`]) begins with both asking for all connections, and after that each change is sent
//! as it happens, and the whole table once in [`HEAL`], which renews what is idle and heals what nobody noticed. When
//! the peer falls silent, all that was under way is forgotten: the next conversation starts over.
//!
//! Dests have numbers of their own in each router. A datagram says what the numbers in it stand for until the peer is
//! known to have heard it.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use dataplane::table::Slot;
use foldhash::{HashMap, HashSet};

use super::flight::Flight;
use super::session::{self, Call, Key, Letter, OVERHEAD, Opened, Proof, Session};
use super::wire::{self, Frame, Identity, LONGEST, LONGEST_ACK, Record};

/// Bytes of a datagram, which fits into an Ethernet frame with room for a tunnel's headers.
const DATAGRAM: usize = 1400;

/// A call is repeated this often, and after so many times a new one is made.
const CALL_EVERY: Duration = Duration::from_millis(250);
const CALLS: u32 = 8;
/// Calls that are answered at once, and how long each has to wait for the next after that. An answer takes 100 us, and what was
/// recorded of a call can be sent again by anybody.
const CALLS_AT_ONCE: u32 = 16;
const ANSWER_EVERY: Duration = Duration::from_millis(50);
/// Something is said at least this often.
const SPEAK_EVERY: Duration = Duration::from_millis(250);
/// Silence after which a peer is away.
const AWAY_AFTER: Duration = Duration::from_secs(2);
/// How long the whole table takes to be told again.
pub const HEAL: Duration = Duration::from_secs(60);
/// An acknowledgement waits so long for something to go with.
const ACK_AFTER: Duration = Duration::from_millis(5);
/// Conversations that somebody has begun and said nothing in.
const UNPROVEN: usize = 4;
/// Notes that wait for a slow peer. With more, the whole table is sent instead.
const NOTES: usize = 1 << 20;
/// Buckets read for a datagram, at most, when there is little in them.
const BUCKETS_AT_ONCE: usize = 1 << 14;

/// The connections, and who their dests are.
pub trait Store {
    /// The connection in a slot, if peers should know of it.
    fn record(&self, slot: Slot) -> Option<Record>;
    /// What a dest's number stands for.
    fn identity(&self, dest: u32) -> Option<Identity>;
    /// How many buckets there are.
    fn buckets(&self) -> usize;
    /// The slots of a bucket with connections that peers should know of.
    fn slots(&self, bucket: usize) -> Vec<Slot>;
    /// A peer's connection. `live`: it has just changed there.
    fn adopt(&mut self, identity: &Identity, record: &Record, live: bool);
}

/// What has gone between two routers, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams sent, acknowledgements included.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Connections sent.
    pub records_sent: u64,
    /// Of those, how many the peer has confirmed.
    pub records_confirmed: u64,
    /// Connections that were lost on the way and noted again.
    pub records_retold: u64,
    /// Datagrams of the peer.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Connections received.
    pub records_received: u64,
    /// Datagrams that were lost on the way to the peer.
    pub lost: u64,
    /// Datagrams that the peer has not sent.
    pub forged: u64,
    /// Datagrams that have come before.
    pub replayed: u64,
    /// Calls that came faster than they are answered.
    pub hasty: u64,
    /// Datagrams of another version.
    pub other_version: u64,
    /// Datagrams, or parts of them, that mean nothing.
    pub not_understood: u64,
    /// Times that the whole table was asked for by the peer, or had to be sent since too much had changed.
    pub bulks: u64,
}

/// How things stand with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing has been heard of it for a while.
    Away,
    /// It is telling us of its connections.
    Joining,
    /// We know all that it knows.
    Together,
}

impl Standing {
    /// All of them.
    pub const ALL: [Standing; 3] = [Standing::Away, Standing::Joining, Standing::Together];

    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Standing::Away => "away",
            Standing::Joining => "joining",
            Standing::Together => "together",
        }
    }
}

/// A peer.
pub struct Peer {
    key: Key,
    proof: Proof,
    /// Whether it is this side that calls.
    calls: bool,
    /// The latest mailbox.
    mailbox: u32,
    call: Option<Calling>,
    /// When as many calls may be answered at once as ever.
    answers: Duration,
    /// Conversations in which the caller has not said anything yet.
    unproven: VecDeque<Session>,
    talk: Option<Talk>,
    /// Datagrams to be sent as they are.
    ready: VecDeque<Vec<u8>>,
    counts: Counts,
    /// The version that the peer speaks, if that is why there is no conversation.
    other_version: Option<u8>,
}

/// A call that is not answered yet.
struct Calling {
    call: Box<Call>,
    /// When it was sent last, and how often.
    at: Duration,
    times: u32,
}

/// A conversation, and what is under way in it.
struct Talk {
    session: Session,
    heard: Duration,
    spoken: Duration,
    flight: Flight<Cargo>,
    /// What is to be sent, in order.
    notes: VecDeque<Note>,
    noted: HashSet<Slot>,
    controls: VecDeque<Frame>,
    /// What the peer knows our numbers to stand for.
    known: HashMap<u32, Identity>,
    /// What the peer's numbers stand for, and which datagram said so.
    names: HashMap<u32, (Identity, u64)>,
    /// The next bucket of the bulk that the peer has asked for.
    bulk: Option<Bulk>,
    heal: Walk,
    /// Datagrams to be acknowledged, since when.
    owing: Option<Duration>,
    is_joined: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It has changed.
    Live,
    /// The bulk with this number.
    Bulk(u32),
    Healing,
}

/// A slot whose connection the peer should hear of.
#[derive(Clone, Copy, Debug)]
struct Note {
    slot: Slot,
    kind: Kind,
    since: Duration,
}

/// A bulk on its way.
#[derive(Debug, Default)]
struct Bulk {
    /// Its number; an earlier one may have been given up.
    number: u32,
    next: usize,
    /// Connections of it that have been noted and have not come.
    open: usize,
    /// Changes have been lost since it began, so that another one has to follow.
    is_short: bool,
}

/// A walk through the table at a steady pace, in [`HEAL`].
#[derive(Debug)]
pub(super) struct Walk {
    /// The next bucket.
    pub(super) next: usize,
    /// When it began.
    pub(super) began: Duration,
}

/// What a datagram carries, beside its acknowledgement.
#[derive(Debug, Default)]
struct Cargo {
    notes: Vec<Note>,
    names: Vec<(u32, Identity)>,
    controls: Vec<Frame>,
}

impl Peer {
    /// One that is not known yet. Of two peers exactly one has to be the one that `calls`. `mailbox` is random.
    pub fn new(key: Key, calls: bool, mailbox: u32) -> Peer {
        Peer {
            proof: Proof::new(&key),
            key,
            calls,
            mailbox,
            call: None,
            answers: Duration::ZERO,
            unproven: VecDeque::new(),
            talk: None,
            ready: VecDeque::new(),
            counts: Counts::default(),
            other_version: None,
        }
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        match &self.talk {
            None => Standing::Away,
            Some(talk) if talk.is_joined => Standing::Together,
            Some(_) => Standing::Joining,
        }
    }

    /// What has gone between us.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The version that the peer speaks, if it is another one than ours.
    pub fn other_version(&self) -> Option<u8> {
        self.other_version
    }

    /// Connections that are still to be sent, and how long the oldest change that the peer has not confirmed has waited.
    pub fn lag(&self, now: Duration) -> (usize, Duration) {
        let Some(talk) = &self.talk else { return (0, Duration::ZERO) };
        let live = |note: &&Note| note.kind == Kind::Live;
        let under_way = talk.flight.cargo().find_map(|cargo| cargo.notes.iter().find(live));
        let oldest = under_way.into_iter().chain(talk.notes.iter().find(live)).map(|note| note.since).min();
        (talk.notes.len(), oldest.map_or(Duration::ZERO, |oldest| now.saturating_sub(oldest)))
    }

    /// How much of a table with so many buckets has been sent of the bulk that is on its way, if one is; from 0 to 1.
    pub fn bulk(&self, buckets: usize) -> Option<f64> {
        let bulk = self.talk.as_ref()?.bulk.as_ref()?;
        Some(bulk.next as f64 / buckets.max(1) as f64)
    }

    /// A connection has changed.
    pub fn note(&mut self, now: Duration, slot: Slot) {
        if let Some(talk) = &mut self.talk {
            talk.note(Note { slot, kind: Kind::Live, since: now }, &mut self.counts);
        }
    }

    /// Changes have been missed: the peer hears of everything again.
    pub fn missed(&mut self) {
        if let Some(talk) = &mut self.talk {
            talk.miss(&mut self.counts);
        }
    }

    /// A datagram from the peer's address has come.
    pub fn receive(&mut self, now: Duration, datagram: &[u8], store: &mut impl Store) -> Result<()> {
        self.counts.received += 1;
        self.counts.received_bytes += datagram.len() as u64;
        match session::read(&self.proof, datagram) {
            Letter::Call(message) => self.be_called(now, message)?,
            Letter::Answer { to, message } => self.be_answered(now, to, message),
            Letter::Data { to, number, sealed } => self.hear(now, to, number, sealed, store),
            Letter::Forged => self.counts.forged += 1,
            Letter::OtherVersion(version) => {
                self.counts.other_version += 1;
                self.other_version = Some(version);
            }
            Letter::Nonsense => self.counts.not_understood += 1,
        }
        Ok(())
    }

    /// The next datagram to send, if there is one now. To be asked again until there is none, and every few
    /// milliseconds.
    pub fn send(&mut self, now: Duration, store: &impl Store) -> Result<Option<Vec<u8>>> {
        if self.talk.as_ref().is_some_and(|talk| now >= talk.heard + AWAY_AFTER) {
            self.talk = None;
        }
        self.call_if_due(now)?;
        let datagram = match (self.ready.pop_front(), &mut self.talk) {
            (Some(datagram), _) => Some(datagram),
            (None, Some(talk)) => talk.speak(now, store, &mut self.counts)?,
            (None, None) => None,
        };
        if let Some(datagram) = &datagram {
            self.counts.sent += 1;
            self.counts.sent_bytes += datagram.len() as u64;
        }
        Ok(datagram)
    }

    fn call_if_due(&mut self, now: Duration) -> Result<()> {
        if !self.calls || self.talk.is_some() {
            return Ok(());
        }
        if self.call.as_ref().is_none_or(|calling| calling.times >= CALLS) {
            let mailbox = self.next_mailbox();
            let call = Box::new(Call::new(&self.key, &self.proof, mailbox)?);
            self.call = Some(Calling { call, at: now.saturating_sub(CALL_EVERY), times: 0 });
        }
        if let Some(calling) = &mut self.call
            && now >= calling.at + CALL_EVERY
        {
            calling.at = now;
            calling.times += 1;
            self.ready.push_back(calling.call.datagram.clone());
        }
        Ok(())
    }

    fn next_mailbox(&mut self) -> u32 {
        self.mailbox = self.mailbox.wrapping_add(1);
        self.mailbox
    }

    /// Whether one more call is answered now.
    fn has_time(&mut self, now: Duration) -> bool {
        let earliest = self.answers.max(now);
        let has_time = earliest - now < CALLS_AT_ONCE * ANSWER_EVERY;
        if has_time {
            self.answers = earliest + ANSWER_EVERY;
        }
        has_time
    }

    fn be_called(&mut self, now: Duration, message: &[u8]) -> Result<()> {
        if self.calls {
            // Both believe that they have to call: one has the other's address wrong.
            self.counts.not_understood += 1;
            return Ok(());
        }
        if !self.has_time(now) {
            self.counts.hasty += 1;
            return Ok(());
        }
        let mailbox = self.next_mailbox();
        let answer = session::answer(&self.key, &self.proof, message, mailbox)?;
        let Some((datagram, session)) = answer else {
            self.counts.forged += 1;
            return Ok(());
        };
        // It may be a recording of an old call. Only who knows the new keys can go on.
        self.unproven.truncate(UNPROVEN - 1);
        self.unproven.push_front(session);
        self.ready.push_back(datagram);
        Ok(())
    }

    fn be_answered(&mut self, now: Duration, to: u32, message: &[u8]) {
        match self.call.take() {
            Some(calling) if calling.call.mailbox == to => match calling.call.answered(message) {
                Ok(session) => self.begin(session, now),
                Err(call) => {
                    self.counts.forged += 1;
                    self.call = Some(Calling { call, ..calling });
                }
            },
            call => {
                // The answer to a call that was answered before, or given up.
                self.counts.replayed += 1;
                self.call = call;
            }
        }
    }

    fn hear(&mut self, now: Duration, to: u32, number: u64, sealed: &[u8], store: &mut impl Store) {
        let is_current = self.talk.as_ref().is_some_and(|talk| talk.session.mailbox == to);
        let unproven = self.unproven.iter().position(|session| session.mailbox == to);
        let session = match (&mut self.talk, unproven) {
            (Some(talk), _) if is_current => &mut talk.session,
            (_, Some(at)) => &mut self.unproven[at],
            // Of a conversation that is over.
            _ => return self.counts.replayed += 1,
        };
        let frames = match session.open(number, sealed) {
            Opened::Frames(frames) => frames,
            Opened::Again => return self.counts.replayed += 1,
            Opened::Forged => return self.counts.forged += 1,
        };
        if !is_current && let Some(session) = unproven.and_then(|at| self.unproven.remove(at)) {
            // The caller has begun anew, and is no recording.
            self.begin(session, now);
            self.unproven.clear();
        }
        if let Some(talk) = &mut self.talk {
            talk.listen(now, number, &frames, store, &mut self.counts);
        }
    }

    fn begin(&mut self, session: Session, now: Duration) {
        self.talk = Some(Talk::new(session, now));
        self.other_version = None;
    }
}

impl Talk {
    fn new(session: Session, now: Duration) -> Talk {
        Talk {
            session,
            heard: now,
            // Something is due at once.
            spoken: now.saturating_sub(SPEAK_EVERY),
            flight: Flight::default(),
            notes: VecDeque::new(),
            noted: HashSet::default(),
            controls: [Frame::Ask].into(),
            known: HashMap::default(),
            names: HashMap::default(),
            bulk: None,
            heal: Walk { next: 0, began: now },
            owing: None,
            is_joined: false,
        }
    }

    fn note(&mut self, note: Note, counts: &mut Counts) {
        if self.notes.len() >= NOTES {
            return self.miss(counts);
        }
        if self.noted.insert(note.slot) {
            self.notes.push_back(note);
            if let Some(bulk) = self.bulk_of(note.kind) {
                bulk.open += 1;
            }
        }
    }

    /// Changes are lost. A bulk that is under way comes to its end first: begun anew each time, it might never, and the peer
    /// would wait for it.
    fn miss(&mut self, counts: &mut Counts) {
        match &mut self.bulk {
            Some(bulk) => bulk.is_short = true,
            None => self.begin_bulk(counts),
        }
    }

    fn begin_bulk(&mut self, counts: &mut Counts) {
        counts.bulks += 1;
        self.notes.clear();
        self.noted.clear();
        self.bulk = Some(Bulk { number: counts.bulks as u32, ..Bulk::default() });
    }

    /// The bulk that a note is of, if it is still under way.
    fn bulk_of(&mut self, kind: Kind) -> Option<&mut Bulk> {
        self.bulk.as_mut().filter(|bulk| kind == Kind::Bulk(bulk.number))
    }

    /// A note of a bulk needs no more doing.
    fn settle(&mut self, kind: Kind) {
        if let Some(bulk) = self.bulk_of(kind) {
            bulk.open -= 1;
        }
    }

    fn listen(
        &mut self,
        now: Duration,
        number: u64,
        frames: &[u8],
        store: &mut impl Store,
        counts: &mut Counts,
    ) {
        self.heard = now;
        for frame in wire::frames(frames) {
            let Some(frame) = frame else {
                counts.not_understood += 1;
                return;
            };
            if !matches!(frame, Frame::Ack { .. }) {
                self.owing.get_or_insert(now);
            }
            match frame {
                Frame::Ack { largest, before } => self.acknowledged(now, largest, before, counts),
                Frame::Ping => {}
                Frame::Ask => self.begin_bulk(counts),
                Frame::Done => self.is_joined = true,
                Frame::Name { number: dest, identity } => {
                    let named = self.names.entry(dest).or_insert((identity, number));
                    // What a later datagram said stands.
                    if number >= named.1 {
                        *named = (identity, number);
                    }
                }
                Frame::Live(record) => self.adopt(&record, true, store, counts),
                Frame::Told(record) => self.adopt(&record, false, store, counts),
            }
        }
    }

    fn adopt(&mut self, record: &Record, live: bool, store: &mut impl Store, counts: &mut Counts) {
        counts.records_received += 1;
        match self.names.get(&record.dest) {
            Some((identity, _)) => store.adopt(identity, record, live),
            // It always names them first.
            None => counts.not_understood += 1,
        }
    }

    fn acknowledged(&mut self, now: Duration, largest: u64, before: u128, counts: &mut Counts) {
        let landed = self.flight.acknowledge(now, largest, before);
        for cargo in landed.come {
            self.known.extend(cargo.names);
            counts.records_confirmed += cargo.notes.len() as u64;
            cargo.notes.iter().for_each(|note| self.settle(note.kind));
        }
        landed.lost.into_iter().for_each(|cargo| self.lose(cargo, counts));
    }

    /// What was lost is sent again, before anything else.
    fn lose(&mut self, cargo: Cargo, counts: &mut Counts) {
        counts.lost += 1;
        for note in cargo.notes {
            if self.noted.insert(note.slot) {
                counts.records_retold += 1;
                self.notes.push_front(note);
            } else {
                // It has been noted again meanwhile.
                self.settle(note.kind);
            }
        }
        self.controls.extend(cargo.controls.into_iter().filter(|control| *control != Frame::Ping));
    }

    /// The next datagram, if there is something to say.
    fn speak(&mut self, now: Duration, store: &impl Store, counts: &mut Counts) -> Result<Option<Vec<u8>>> {
        for cargo in self.flight.time_out(now) {
            self.lose(cargo, counts);
        }
        if self.flight.has_room() {
            self.fill_notes(now, store, counts);
        }
        let mut frames = Vec::with_capacity(DATAGRAM);
        let mut cargo = Cargo::default();
        if self.flight.has_room() {
            self.load(store, counts, &mut frames, &mut cargo);
        }
        let is_due = now >= self.spoken + SPEAK_EVERY;
        if is_due && cargo.is_empty() && self.flight.has_room() {
            // So that the peer hears us, and says that it does.
            cargo.controls.push(Frame::Ping);
            Frame::Ping.put(&mut frames);
        }
        let owes = self.owing.is_some_and(|since| now >= since + ACK_AFTER) || is_due;
        if cargo.is_empty() && !owes {
            return Ok(None);
        }
        if let Some((largest, before)) = self.session.received() {
            Frame::Ack { largest, before }.put(&mut frames);
        }
        self.owing = None;
        self.spoken = now;
        let (number, datagram) = self.session.seal(&frames)?;
        if !cargo.is_empty() {
            self.flight.depart(number, now, cargo);
        }
        Ok(Some(datagram))
    }

    /// Notes what is due of the bulk and of the healing.
    fn fill_notes(&mut self, now: Duration, store: &impl Store, counts: &mut Counts) {
        let buckets = store.buckets();
        let enough = DATAGRAM / 10;
        let mut read = 0;
        while self.notes.len() < enough && read < BUCKETS_AT_ONCE {
            let Some(bulk) = self.bulk.as_mut().filter(|bulk| bulk.next < buckets) else { break };
            let slots = store.slots(bulk.next);
            bulk.next += 1;
            let kind = Kind::Bulk(bulk.number);
            read += 1;
            slots.into_iter().for_each(|slot| self.note(Note { slot, kind, since: now }, counts));
        }
        if let Some(bulk) = &self.bulk {
            if bulk.next >= buckets && bulk.open == 0 {
                let is_short = bulk.is_short;
                self.controls.push_back(Frame::Done);
                self.bulk = None;
                self.heal = Walk { next: 0, began: now };
                if is_short {
                    self.begin_bulk(counts);
                }
            }
            return;
        }
        let due = self.heal.due(now, buckets);
        while self.notes.len() < enough && self.heal.next < due && read < BUCKETS_AT_ONCE {
            let slots = store.slots(self.heal.next);
            self.heal.next += 1;
            read += 1;
            let kind = Kind::Healing;
            slots.into_iter().for_each(|slot| self.note(Note { slot, kind, since: now }, counts));
        }
        if self.heal.next >= buckets {
            self.heal = Walk { next: 0, began: now };
        }
    }

    /// Loads what waits into a datagram, as much as there is room.
    fn load(&mut self, store: &impl Store, counts: &mut Counts, frames: &mut Vec<u8>, cargo: &mut Cargo) {
        let room = DATAGRAM - OVERHEAD - LONGEST_ACK;
        while frames.len() + LONGEST <= room
            && let Some(control) = self.controls.pop_front()
        {
            control.put(frames);
            cargo.controls.push(control);
        }
        while frames.len() + 2 * LONGEST <= room
            && let Some(note) = self.notes.pop_front()
        {
            let Note { slot, kind, .. } = note;
            self.noted.remove(&slot);
            let record = store.record(slot);
            let identity = record.and_then(|record| store.identity(record.dest));
            let (Some(record), Some(identity)) = (record, identity) else {
                // Nothing is there any more that a peer should know.
                self.settle(kind);
                continue;
            };
            let is_known = self.known.get(&record.dest) == Some(&identity)
                || cargo.names.contains(&(record.dest, identity));
            if !is_known {
                Frame::Name { number: record.dest, identity }.put(frames);
                cargo.names.push((record.dest, identity));
            }
            let frame = if kind == Kind::Live { Frame::Live(record) } else { Frame::Told(record) };
            frame.put(frames);
            counts.records_sent += 1;
            cargo.notes.push(note);
        }
    }
}

impl Walk {
    /// The bucket before which all should have been told of by now.
    pub(super) fn due(&self, now: Duration, buckets: usize) -> usize {
        let elapsed = now.saturating_sub(self.began).min(HEAL);
        (buckets as u128 * elapsed.as_micros() / HEAL.as_micros()) as usize
    }
}

impl Cargo {
    fn is_empty(&self) -> bool {
        self.notes.is_empty() && self.controls.is_empty()
    }
}

#[cfg(test)]
mod tests;
