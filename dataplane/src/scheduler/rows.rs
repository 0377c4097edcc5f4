//! The table of Maglev hashing: which server owns each row.
//!
//! When a server goes, few rows of the others change hands.
//! A server whose weight grows (slow start) gets the rows that it will have one after the other. The table is that
//! without it meanwhile, so that no flow moves but to it.
//! ("Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.)

use super::gcd;

/// A row that is nobody's yet. So a table knows 65535 servers, which is all that have rows of their own to speak of.
const FREE: u16 = u16::MAX;

/// A server, as far as a table depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Hash that chooses its most preferred row.
    pub first: u32,
    /// Hash that chooses how far it is to the next one.
    pub skip: u32,
    /// Its weight.
    pub weight: u32,
    /// Its weight before it became 0 or began to grow. It owns no rows if this is 0.
    pub last_weight: u32,
}

/// How often servers get a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turns {
    /// As in IPVS: each takes so many in a row as its weight says, after weights have been scaled down to about the root of all rows.
    /// The lighter ones of very different weights get less or more than their share.
    Bunched,
    /// The heaviest takes a row each round, and the others in fewer rounds: shares are exact.
    Spread,
}

/// Who owns each of so many rows, by index; a prime, so that every server comes by all of them. No rows if there are no servers.
pub(super) fn rows<const ROWS: usize>(members: &[Member], turns: Turns) -> Box<[u16]> {
    let grows = |member: &Member| (1..member.last_weight).contains(&member.weight);
    let everybody = fill::<ROWS>(members, turns, |_| true);
    // Whoever grows alone has nobody to leave rows to.
    if !members.iter().any(grows) || !members.iter().any(|member| member.weight > 0 && !grows(member)) {
        return everybody;
    }
    let mut rows = fill::<ROWS>(members, turns, |member| !grows(member));
    for (member, index) in members.iter().zip(0..FREE).filter(|(member, _)| grows(member)) {
        let owned = everybody.iter().filter(|owner| **owner == index).count() as u64;
        let used = (owned * u64::from(member.weight)).div_ceil(u64::from(member.last_weight));
        let its = rows.iter_mut().zip(&everybody).filter(|(_, owner)| **owner == index);
        its.take(used as usize).for_each(|(row, _)| *row = index);
    }
    rows
}

/// The servers that take part take their preferred rows in turn, by their weights.
fn fill<const ROWS: usize>(
    members: &[Member],
    turns: Turns,
    takes_part: impl Fn(&Member) -> bool,
) -> Box<[u16]> {
    struct Preference {
        server: u16,
        next: usize,
        skip: usize,
        /// What it earns a round.
        income: u64,
        savings: u64,
    }

    let taking_part =
        || members.iter().zip(0..FREE).filter(|(member, _)| member.last_weight > 0 && takes_part(member));
    let weights = || taking_part().map(|(member, _)| member.last_weight);
    let divisor = weights().fold(0, gcd).max(1);
    let greatest = weights().map(|weight| weight / divisor).max().unwrap_or(0);
    let shift = (u32::BITS - greatest.leading_zeros()).saturating_sub(ROWS.ilog2().div_ceil(2));
    let price = if turns == Turns::Spread { u64::from(greatest) } else { 1 };
    let income = |weight: u32| match turns {
        Turns::Bunched => (weight >> shift).max(1),
        Turns::Spread => weight,
    };
    let mut preferences: Vec<Preference> = taking_part()
        .map(|(member, index)| Preference {
            server: index,
            next: member.first as usize % ROWS,
            skip: member.skip as usize % (ROWS - 1) + 1,
            income: income(member.last_weight / divisor).into(),
            savings: 0,
        })
        .collect();
    if preferences.is_empty() {
        return Box::default();
    }
    let mut rows = vec![FREE; ROWS].into_boxed_slice();
    let mut left = ROWS;
    loop {
        for preference in &mut preferences {
            preference.savings += preference.income;
            while preference.savings >= price {
                preference.savings -= price;
                while rows[preference.next] != FREE {
                    preference.next = (preference.next + preference.skip) % ROWS;
                }
                rows[preference.next] = preference.server;
                left -= 1;
                if left == 0 {
                    return rows;
                }
            }
        }
    }
}
