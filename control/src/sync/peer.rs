//! A peer router, as a machine without clock and socket: datagrams and the time go in, datagrams come out.
//!
//! What is synchronised is state, not operations. A note says *which slot* of the table has changed; what is sent is what
//! is there when a datagram is made. A lost datagram's slots are noted again. So whatever is lost, doubled or out of
//! order, the latest word about a connection is sent until it has come, and the order in which words come does not
//! matter: of two the fresher counts. (A flush is the exception: [`super::flushes`].)
//!
//! A conversation ([`super::session`]) begins with both asking for all connections, and after that each change is sent
//! as it happens, and what does not change now and then ([`super::walk`]). When the peer falls silent, all that was under
//! way is forgotten: the next conversation starts over.
//!
//! This file is who is spoken with; [`talk`] is what is said, and [`notes`] what there is to say.

mod notes;
mod talk;

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use dataplane::table::Slot;

use self::talk::Talk;
use super::flushes::{HOURS, REMEMBERED};
use super::session::{self, Call, Key, Letter, Opened, Proof, Session};
use super::walk::{Pace, Turn};
use super::wire::{Identity, Mapping, Record};
pub use crate::admin::api::PeerCounts as Counts;
use crate::flush::Filter;

/// A call is repeated this often, and after so many times a new one is made.
const CALL_EVERY: Duration = Duration::from_millis(250);
const CALLS: u32 = 8;
/// Calls that are answered at once, and how long each has to wait for the next after that. An answer takes 100 us, and what was
/// recorded of a call can be sent again by anybody.
const CALLS_AT_ONCE: u32 = 16;
const ANSWER_EVERY: Duration = Duration::from_millis(50);
/// Silence after which a peer is away.
const AWAY_AFTER: Duration = Duration::from_secs(2);
/// Conversations that somebody has begun and said nothing in.
const UNPROVEN: usize = 4;

/// The connections, and who their dests are.
pub trait Store {
    /// The connection in a slot, if peers should know of it.
    fn record(&self, slot: Slot) -> Option<Record>;
    /// What a dest's number stands for.
    fn identity(&self, dest: u32) -> Option<Identity>;
    /// The mapping of source NAT in a slot, if peers should know of it.
    fn mapping(&self, slot: Slot) -> Option<Mapping>;
    /// How many buckets there are.
    fn buckets(&self) -> usize;
    /// The slots of a bucket with connections or mappings that peers should know of.
    fn slots(&self, bucket: usize) -> Vec<Slot>;
    /// How fast the walk has to be that tells of them again.
    fn pace(&self) -> Pace;
    /// Those of them whose turn it is.
    fn due(&self, turn: Turn) -> Vec<Slot>;
    /// A peer's connection. `live`: it has just changed there. `has_swept`: the peer has carried out all orders between us before it
    /// told of it.
    fn adopt(&mut self, identity: &Identity, record: &Record, live: bool, has_swept: bool);
    /// A peer's mapping of source NAT. `live`: it has just changed there.
    fn adopt_mapping(&mut self, mapping: &Mapping, live: bool);
    /// The peer's operator has had connections forgotten, so many ticks ago.
    fn forget(&mut self, number: u32, filter: &Filter, age: u32);
    /// Whether that is done, or nothing is known of an order with this number.
    fn has_forgotten(&self, number: u32) -> bool;
    /// Whether connections are just being removed that have been flushed here.
    fn is_flushing(&self) -> bool;
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
    mailbox: u16,
    call: Option<Calling>,
    /// When as many calls may be answered at once as ever.
    answers: Duration,
    /// Conversations in which the caller has not said anything yet.
    unproven: VecDeque<Session>,
    talk: Option<Talk>,
    /// What has been flushed here: the next conversation begins with it.
    flushed: VecDeque<Order>,
    /// The number of the next order.
    orders: u32,
    /// Datagrams to be sent as they are.
    ready: VecDeque<Vec<u8>>,
    counts: Counts,
    /// The version that the peer speaks, if that is why there is no conversation.
    other_version: Option<u8>,
}

/// An order to forget connections.
#[derive(Clone, Copy, Debug)]
struct Order {
    number: u32,
    filter: Filter,
    at: Duration,
}

/// A call that is not answered yet.
struct Calling {
    call: Box<Call>,
    /// When it was sent last, and how often.
    at: Duration,
    times: u32,
}

impl Peer {
    /// One that is not known yet. Of two peers exactly one has to be the one that `calls`. `mailbox` is random.
    pub fn new(key: Key, calls: bool, mailbox: u16) -> Peer {
        Peer {
            proof: Proof::new(&key),
            key,
            calls,
            mailbox,
            call: None,
            answers: Duration::ZERO,
            unproven: VecDeque::new(),
            talk: None,
            flushed: VecDeque::new(),
            orders: 0,
            ready: VecDeque::new(),
            counts: Counts::default(),
            other_version: None,
        }
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        match &self.talk {
            None => Standing::Away,
            Some(talk) if talk.is_joined() => Standing::Together,
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
        self.talk.as_ref().map_or((0, Duration::ZERO), |talk| talk.lag(now))
    }

    /// How much of a table with so many buckets has been sent of the bulk that is on its way, if one is; from 0 to 1.
    pub fn bulk(&self, buckets: usize) -> Option<f64> {
        self.talk.as_ref()?.bulk(buckets)
    }

    /// A connection has changed.
    pub fn note(&mut self, now: Duration, slot: Slot) {
        if let Some(talk) = &mut self.talk {
            talk.note(now, slot, &mut self.counts);
        }
    }

    /// An operator has had connections forgotten here, and the peer is to forget them as well.
    pub fn forget(&mut self, now: Duration, filter: Filter) {
        if self.flushed.len() >= REMEMBERED {
            self.flushed.pop_front();
        }
        let order = Order { number: self.orders, filter, at: now };
        self.orders = self.orders.wrapping_add(1);
        self.flushed.push_back(order);
        if let Some(talk) = &mut self.talk {
            talk.forget(order);
        }
    }

    /// This router ends: what waits for others to go with goes now.
    pub fn hurry(&mut self) {
        if let Some(talk) = &mut self.talk {
            talk.hurry();
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
        if self.talk.as_ref().is_some_and(|talk| now >= talk.heard() + AWAY_AFTER) {
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

    fn next_mailbox(&mut self) -> u16 {
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

    fn be_answered(&mut self, now: Duration, to: u16, message: &[u8]) {
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

    fn hear(&mut self, now: Duration, to: u16, number: u16, sealed: &[u8], store: &mut impl Store) {
        let is_current = self.talk.as_ref().is_some_and(|talk| talk.session().mailbox == to);
        let unproven = self.unproven.iter().position(|session| session.mailbox == to);
        let session = match (&mut self.talk, unproven) {
            (Some(talk), _) if is_current => talk.session_mut(),
            (_, Some(at)) => &mut self.unproven[at],
            // Of a conversation that is over.
            _ => return self.counts.replayed += 1,
        };
        let (number, frames) = match session.open(number, sealed) {
            Opened::Frames(number, frames) => (number, frames),
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
        self.flushed.retain(|order| now < order.at + Duration::from_secs(3600 * HOURS));
        self.talk = Some(Talk::new(session, now, self.flushed.iter().copied()));
        self.other_version = None;
    }
}

#[cfg(test)]
mod tests;
