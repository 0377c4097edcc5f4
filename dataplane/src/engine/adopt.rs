//! Connections that a peer router tells of.

use super::packet::Side;
use super::resolve::{Judgement, leave};
use crate::clock::Tick;
use crate::snapshot::Snapshot;
use crate::table::{Inserted, Table, Word};

/// Tells the tentative words of whoever adopts from those of workers.
const ADOPTER: u8 = u8::MAX;

/// What has become of a connection that was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// It was not known.
    New,
    /// It was known otherwise.
    Changed,
    /// What is known is as new, or newer.
    Known,
    /// It has expired, or its dest is not in the snapshot.
    Stale,
    /// The table has no room.
    NoRoom,
}

/// Takes over a connection of a dest of this snapshot, as a peer knows it: last seen `age` ticks ago. `slack` is how many
/// ticks older than ours its news may be: what has just been seen there takes a moment to come here.
pub fn adopt(table: &Table, snapshot: &Snapshot, now: Tick, word: Word, age: u32, slack: u32) -> Adopted {
    let Some(dest) = snapshot.dest_of(word) else { return Adopted::Stale };
    let service = &snapshot.services[dest.service as usize];
    let (state, timeout) = (word.state(), service.timeout(word.state()));
    if timeout.has_passed(age) {
        return Adopted::Stale;
    }
    let word = word.seen(Tick(now.0.saturating_sub(u64::from(age))), timeout.is_coarse());
    let client = word.client();
    let hash = table.hash(client, service.protocol);
    let side = Side::Service(dest.service);
    let judge = Judgement { snapshot, now, side, client, taking: dest.endpoint };
    // Counted before it can be seen, as workers do.
    dest.gauge.enter(state.is_active());
    let adopted = loop {
        match table.find(hash, client, &judge) {
            Some((_, ours)) if !is_news(ours, word, now, slack) => break Adopted::Known,
            Some((slot, ours)) => {
                if table.replace(slot, ours, word).is_ok() {
                    leave(snapshot, ours);
                    break Adopted::Changed;
                }
            }
            None => match table.insert(hash, word, ADOPTER, &judge, None) {
                Inserted::New => break Adopted::New,
                Inserted::Existing(..) => {}
                Inserted::Full => break Adopted::NoRoom,
            },
        }
    };
    if matches!(adopted, Adopted::Known | Adopted::NoRoom) {
        dest.gauge.leave(state.is_active());
    }
    adopted
}

/// Whether their word says more than ours. Of two routers that both carry a connection, the one that has seen it last
/// knows best.
fn is_news(ours: Word, theirs: Word, now: Tick, slack: u32) -> bool {
    let (ours_age, theirs_age) = (ours.age(now), theirs.age(now));
    let is_other = ours.dest_number() != theirs.dest_number() || ours.state() != theirs.state();
    theirs_age < ours_age || is_other && theirs_age <= ours_age + slack
}
