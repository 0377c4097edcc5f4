//! What a peer router tells, or a process before has left: whose word counts.
//!
//! Connections ([`crate::engine::adopt()`]) and mappings of source NAT ([`crate::snat`]) are words with a state and a stamp, and are judged alike. Of two
//! routers that both carry one, the one that has seen it last knows best; what both have seen at one moment is decided by an order
//! that is the same in both.

use crate::clock::{COARSE_SHIFT, Tick, Timeout};
use crate::service::State;
use crate::table::Word;

/// Tells the tentative words of whoever adopts from those of workers.
pub(crate) const ADOPTER: u8 = u8::MAX;

/// What has become of something that was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// It was not known.
    New,
    /// It was known otherwise.
    Changed,
    /// What is known is as new, or newer.
    Known,
    /// It has expired, or nobody here has anything to do with it: no dest of the snapshot, no pool.
    Stale,
    /// There is no room, or its port is another's here.
    NoRoom,
}

/// Ages are told in whole units of the stamp, whose ends are not the same moment in two routers.
pub(crate) const fn same_moment(is_coarse: bool) -> u32 {
    if is_coarse { 1 << COARSE_SHIFT } else { 1 }
}

/// The word as it was last seen so many ticks ago, under this timeout.
///
/// A coarse age is one that has certainly passed, up to a unit too little; the stamp has to be the one that it came from. Else a
/// connection would be younger with each telling, and two routers would keep it for ever.
pub(crate) fn seen_ago(word: Word, now: Tick, age: u32, timeout: Timeout) -> Word {
    let rounded_off = if timeout.is_coarse() && age > 0 { same_moment(true) - 1 } else { 0 };
    word.seen(Tick(now.0.saturating_sub(u64::from(age + rounded_off))), timeout.is_coarse())
}

/// Whether their word of a connection says more than ours. `slack` is how many ticks older the news of its state may be; `rank` is the order
/// of two words of one moment.
pub(crate) fn is_news<R: PartialOrd>(
    ours: Word,
    theirs: Word,
    now: Tick,
    slack: u32,
    rank: impl Fn(Word) -> R,
) -> bool {
    let (ours_age, theirs_age) = (ours.age(now), theirs.age(now));
    let is_other = ours.dest_number() != theirs.dest_number() || ours.state() != theirs.state();
    let moment = same_moment(ours.is_coarse() || theirs.is_coarse());
    if is_other && slack == 0 && ours_age.abs_diff(theirs_age) <= moment {
        // A coarse moment is a minute, in which a client may have begun anew what had ended here. To end that would cost it
        // its connection; to keep what is over costs a slot.
        let (ours_is_over, theirs_is_over) = (ours.state().is_over(), theirs.state().is_over());
        if moment > 1 && ours_is_over != theirs_is_over {
            return ours_is_over;
        }
        // Both may hear the other's word at this moment, and would change places for ever.
        return rank(theirs) > rank(ours);
    }
    // In fine units a tick too much in a minute of healing does no harm; a coarse unit is longer than that minute.
    let margin = if moment > 1 { moment } else { 0 };
    theirs_age + margin < ours_age || is_other && theirs_age <= ours_age + slack
}

/// How near a connection in this state is to its end.
pub(crate) fn progress(state: State) -> u8 {
    match state {
        State::Established | State::Udp | State::Template => 1,
        State::FinWait | State::ShutdownSent => 2,
        State::CloseWait | State::ShutdownReceived => 3,
        State::LastAck | State::ShutdownAckSent => 4,
        State::TimeWait => 5,
        State::Close | State::Closed => 6,
        // Its handshake is not done.
        _ => 0,
    }
}
