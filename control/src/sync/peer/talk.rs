//! A conversation with a peer: what is said when, and what is under way.
//!
//! Dests have numbers of their own in each router. A datagram says what the numbers in it stand for until the peer is
//! known to have heard it.
//!
//! Changes go at once, acknowledgements wait for something to go with: each datagram has 49 bytes of headers and tag. An
//! acknowledgement goes at once when a datagram asks for it, which it does when its sender could not go on without, when one is
//! missing, or when many have come.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use dataplane::clock::TICKS_PER_SECOND;
use dataplane::table::Slot;
use foldhash::HashMap;

use super::notes::{Kind, Note, Notes};
use super::{Counts, Order, Store};
use crate::sync::flight::Flight;
use crate::sync::session::{OVERHEAD, Session};
use crate::sync::wire::{self, Frame, Identity, LONGEST, LONGEST_ACK, Record};

/// Bytes of a datagram, which fits into an Ethernet frame with room for a tunnel's headers.
pub(super) const DATAGRAM: usize = 1400;
/// Something is said at least this often, so that the peer knows that we are there and what has come.
pub(super) const SPEAK_EVERY: Duration = Duration::from_millis(300);
/// By then an acknowledgement has come that nobody has asked for, if the peer's machine is not very busy.
const PATIENCE: Duration = Duration::from_millis(350);
/// Datagrams of which so many may come before they are acknowledged.
const ACK_AFTER: u32 = 16;

/// A conversation.
pub(super) struct Talk {
    session: Session,
    heard: Duration,
    spoken: Duration,
    flight: Flight<Cargo>,
    notes: Notes,
    controls: VecDeque<Control>,
    /// What the peer knows our numbers to stand for.
    known: HashMap<u32, Identity>,
    /// What the peer's numbers stand for, and which datagram said so.
    names: HashMap<u32, (Identity, u64)>,
    owed: Owed,
    /// One more than the largest number that has come.
    expected: u64,
    /// Orders that we have given and the peer has not carried out. It is told of no connections until then.
    given: Vec<u32>,
    /// Orders of the peer that it does not know to be carried out.
    taken: Vec<u32>,
    /// The datagram that said last of an order that it is given, or carried out.
    ordered: u64,
    /// Something was lost: what is said next does not wait for anything.
    is_hurried: bool,
    /// This router ends: nothing waits for anything.
    is_ending: bool,
    is_joined: bool,
}

/// What a datagram carries, beside its acknowledgement.
#[derive(Debug, Default)]
struct Cargo {
    notes: Vec<Note>,
    names: Vec<(u32, Identity)>,
    controls: Vec<Control>,
}

/// What is said beside connections.
#[derive(Clone, Copy, Debug)]
enum Control {
    Ask,
    Done,
    Forget(Order),
    Swept(u32),
}

/// Datagrams of the peer that are not acknowledged yet.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    datagrams: u32,
    /// The peer waits, or something is missing.
    is_urgent: bool,
}

impl Talk {
    /// Begins with what has been flushed here, so that the peer does not tell it back.
    pub(super) fn new(session: Session, now: Duration, flushed: impl Iterator<Item = Order> + Clone) -> Talk {
        Talk {
            session,
            heard: now,
            // Something is due at once.
            spoken: now.saturating_sub(SPEAK_EVERY),
            flight: Flight::new(PATIENCE),
            notes: Notes::new(now),
            controls: flushed.clone().map(Control::Forget).chain([Control::Ask]).collect(),
            known: HashMap::default(),
            names: HashMap::default(),
            owed: Owed::default(),
            expected: 0,
            given: flushed.map(|order| order.number).collect(),
            taken: Vec::new(),
            ordered: 0,
            is_hurried: false,
            is_ending: false,
            is_joined: false,
        }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// When the peer was heard last.
    pub(super) fn heard(&self) -> Duration {
        self.heard
    }

    /// Whether the peer has told all that it knows.
    pub(super) fn is_joined(&self) -> bool {
        self.is_joined
    }

    /// Notes that wait, and for how long the oldest change has not been confirmed.
    pub(super) fn lag(&self, now: Duration) -> (usize, Duration) {
        let live = |note: &&Note| note.kind == Kind::Live;
        let under_way = self.flight.cargo().find_map(|cargo| cargo.notes.iter().find(live));
        let oldest = under_way.into_iter().chain(self.notes.oldest()).map(|note| note.since).min();
        (self.notes.len(), oldest.map_or(Duration::ZERO, |oldest| now.saturating_sub(oldest)))
    }

    /// How much of all buckets has been sent of the bulk that is on its way, from 0 to 1.
    pub(super) fn bulk(&self, buckets: usize) -> Option<f64> {
        self.notes.progress(buckets)
    }

    /// A connection has changed.
    pub(super) fn note(&mut self, now: Duration, slot: Slot, counts: &mut Counts) {
        self.notes.add(Note::new(slot, Kind::Live, now), counts);
    }

    /// Changes are lost.
    pub(super) fn miss(&mut self, counts: &mut Counts) {
        self.notes.miss(counts);
    }

    /// Connections have been flushed.
    pub(super) fn forget(&mut self, order: Order) {
        self.given.push(order.number);
        self.controls.push_back(Control::Forget(order));
    }

    /// Do not wait for anything from now on.
    pub(super) fn hurry(&mut self) {
        self.is_ending = true;
    }

    /// The frames of a datagram of the peer.
    pub(super) fn listen(
        &mut self,
        now: Duration,
        number: u64,
        frames: &[u8],
        store: &mut impl Store,
        counts: &mut Counts,
    ) {
        self.heard = now;
        let mut is_owed = false;
        for frame in wire::frames(frames) {
            let Some(frame) = frame else {
                counts.not_understood += 1;
                break;
            };
            is_owed |= !matches!(frame, Frame::Ack { .. });
            match frame {
                Frame::Ack { largest, before } => self.acknowledged(now, largest, before, counts),
                Frame::Ping => self.owed.is_urgent = true,
                Frame::Ask => self.notes.begin_bulk(counts),
                Frame::Done => self.is_joined = true,
                Frame::Name { number: dest, identity } => {
                    let named = self.names.entry(dest).or_insert((identity, number));
                    // What a later datagram said stands.
                    if number >= named.1 {
                        *named = (identity, number);
                    }
                }
                Frame::Live(record) => self.adopt(number, &record, true, store, counts),
                Frame::Told(record) => self.adopt(number, &record, false, store, counts),
                Frame::Mapping { mapping, is_live } => {
                    counts.connections_received += 1;
                    store.adopt_mapping(&mapping, is_live);
                }
                Frame::Forget { number: order, age, filter } => {
                    store.forget(order, &filter, age);
                    self.taken.push(order);
                    self.ordered = self.ordered.max(number);
                }
                Frame::Swept(order) => {
                    self.given.retain(|&given| given != order);
                    self.ordered = self.ordered.max(number);
                }
            }
        }
        if is_owed {
            self.owed.datagrams += 1;
            self.owed.is_urgent |= self.owed.datagrams >= ACK_AFTER || number != self.expected;
        }
        // Also if it is one without anything that shows that one is missing.
        self.owed.is_urgent |= number > self.expected;
        self.expected = self.expected.max(number + 1);
    }

    fn adopt(
        &mut self,
        number: u64,
        record: &Record,
        live: bool,
        store: &mut impl Store,
        counts: &mut Counts,
    ) {
        counts.connections_received += 1;
        let has_swept = self.given.is_empty() && number >= self.ordered;
        match self.names.get(&record.dest) {
            Some((identity, _)) => store.adopt(identity, record, live, has_swept),
            // It always names them first.
            None => counts.not_understood += 1,
        }
    }

    fn acknowledged(&mut self, now: Duration, largest: u64, before: u128, counts: &mut Counts) {
        let landed = self.flight.acknowledge(now, largest, before);
        for cargo in landed.come {
            self.known.extend(cargo.names);
            counts.connections_confirmed += cargo.notes.len() as u64;
            cargo.notes.iter().for_each(|note| self.notes.settle(note.kind));
        }
        landed.lost.into_iter().for_each(|cargo| self.lose(cargo, counts));
    }

    /// What was lost is sent again, and whether it comes is asked at once.
    fn lose(&mut self, cargo: Cargo, counts: &mut Counts) {
        counts.lost += 1;
        for note in cargo.notes {
            counts.connections_retold += u64::from(self.notes.add_again(note));
        }
        self.controls.extend(cargo.controls);
        self.is_hurried = true;
    }

    /// The next datagram, if there is something to say.
    pub(super) fn speak(
        &mut self,
        now: Duration,
        store: &impl Store,
        counts: &mut Counts,
    ) -> Result<Option<Vec<u8>>> {
        for cargo in self.flight.time_out(now) {
            self.lose(cargo, counts);
        }
        let done = self.taken.extract_if(.., |order| store.has_forgotten(*order));
        self.controls.extend(done.map(Control::Swept));
        let is_due = now >= self.spoken + SPEAK_EVERY || self.owed.is_urgent;
        let mut frames = Vec::with_capacity(DATAGRAM);
        let mut cargo = Cargo::default();
        if self.flight.has_room() {
            if self.notes.fill(now, DATAGRAM / 10, store, counts) {
                self.controls.push_back(Control::Done);
            }
            // What goes anyway takes along what waits.
            let is_hurried = self.is_hurried || self.is_ending;
            if is_due || is_hurried || !self.controls.is_empty() || self.notes.are_due() {
                self.load(now, store, counts, &mut frames, &mut cargo);
            }
        }
        if cargo.is_empty() && !is_due {
            return Ok(None);
        }
        let asks = !cargo.is_empty() && self.is_waited_for(&cargo);
        if asks {
            Frame::Ping.put(&mut frames);
            self.is_hurried = false;
        }
        if (self.owed.datagrams > 0 || self.owed.is_urgent || cargo.is_empty())
            && let Some((largest, before)) = self.session.received()
        {
            Frame::Ack { largest, before }.put(&mut frames);
        }
        self.owed = Owed::default();
        self.spoken = now;
        let (number, datagram) = self.session.seal(&frames)?;
        if !cargo.is_empty() {
            self.flight.depart(number, now, asks, cargo);
        }
        Ok(Some(datagram))
    }

    /// Whether something waits for what a datagram carries to be acknowledged.
    fn is_waited_for(&self, cargo: &Cargo) -> bool {
        let ends_bulk = self.notes.has_bulk() && self.notes.len() == 0;
        self.is_hurried || ends_bulk || !cargo.controls.is_empty() || self.flight.is_nearly_full()
    }

    /// Loads what waits into a datagram, as much as there is room.
    fn load(
        &mut self,
        now: Duration,
        store: &impl Store,
        counts: &mut Counts,
        frames: &mut Vec<u8>,
        cargo: &mut Cargo,
    ) {
        // A ping and an acknowledgement may follow.
        let room = DATAGRAM - OVERHEAD - 1 - LONGEST_ACK;
        while frames.len() + LONGEST <= room
            && let Some(control) = self.controls.pop_front()
        {
            control.frame(now).put(frames);
            cargo.controls.push(control);
        }
        // What has been flushed may still be here, and the peer would forget what has begun since with the rest.
        let may_tell = self.given.is_empty() && !store.is_flushing();
        while may_tell
            && frames.len() + 2 * LONGEST <= room
            && let Some(note) = self.notes.take()
        {
            if let Some(mapping) = store.mapping(note.slot) {
                Frame::Mapping { mapping, is_live: note.is_change() }.put(frames);
                counts.connections_sent += 1;
                cargo.notes.push(note);
                continue;
            }
            let record = store.record(note.slot);
            let identity = record.and_then(|record| store.identity(record.dest));
            let (Some(record), Some(identity)) = (record, identity) else {
                // Nothing is there any more that a peer should know.
                self.notes.settle(note.kind);
                continue;
            };
            let is_known = self.known.get(&record.dest) == Some(&identity)
                || cargo.names.contains(&(record.dest, identity));
            if !is_known {
                Frame::Name { number: record.dest, identity }.put(frames);
                cargo.names.push((record.dest, identity));
            }
            let frame = if note.is_change() { Frame::Live(record) } else { Frame::Told(record) };
            frame.put(frames);
            counts.connections_sent += 1;
            cargo.notes.push(note);
        }
    }
}

impl Control {
    /// As it is said now.
    fn frame(self, now: Duration) -> Frame {
        match self {
            Control::Ask => Frame::Ask,
            Control::Done => Frame::Done,
            Control::Forget(Order { number, filter, at }) => {
                let age = now.saturating_sub(at).as_millis() * u128::from(TICKS_PER_SECOND) / 1000;
                Frame::Forget { number, filter, age: age.try_into().unwrap_or(u32::MAX) }
            }
            Control::Swept(number) => Frame::Swept(number),
        }
    }
}

impl Cargo {
    fn is_empty(&self) -> bool {
        self.notes.is_empty() && self.controls.is_empty()
    }
}
