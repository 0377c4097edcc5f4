//! Which connections need a word in the table, if not all do: those that are at risk.
//!
//! A service's *roster* is all of its servers with the weights that are meant for them, whether they are up or down, drained or growing. The
//! roster's scheduler hashes a flow to one of them, its server by the roster, and does so as long as the roster stays what it is: health,
//! drains and slow starts do not change it. So a connection that is with its server by the roster needs no word to be found again. One
//! that is not, because that server took none when it began, has a word. Which connections these are is what one has to know:
//!
//! ```text
//!   begins          goes to the scheduler's choice among those that take connections    a word, if it is at risk
//!   goes on         goes by its word, or else to its server by the roster               a word, if it is at risk
//!   is at risk      if the choice now, the one by the roster, and the one by the next roster are not all the same
//! ```
//!
//! The third choice is for a change of the roster itself: a server that nobody knew, one that is removed, another weight. Control then has the
//! next roster beside the old one for as long as a connection may be silent, in which each that would move shows itself and gets a word. So
//! nothing that was decided before has to be remembered, and none that is established moves while its server is there: whatever
//! the scheduler, and whatever changes how often. A scheduler whose flows stay when others' servers come and go has few at risk.
//!
//! This is JET (Mendelson et al., "Load Balancing with JET: Just Enough Tracking for Connection Consistency", CoNEXT 2021), with who is out
//! of service for its horizon, and the previous table of Google's Maglev and of Beamer for what no horizon foresees.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Candidate, Flow, Kept, Picker};
use crate::service::Scheduler;
use crate::table::DestId;

/// Where a server of a roster is that is not there any more. Nobody has this id before there are 16 million others.
const GONE: DestId = DestId::new(DestId::MAX).expect("it is the last one");

/// A roster, as control describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterSpec {
    /// By what its flows are spread.
    pub scheduler: Scheduler,
    /// The key by which they are hashed.
    pub key: u64,
    /// Its servers in the order of the configuration. None of weight 0: those have no flows.
    pub members: Vec<RosterMember>,
}

/// A server of a roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RosterMember {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its weight when nothing is the matter with it.
    pub weight: u32,
    /// Its id; none if it has been removed. Its flows are nobody's then, and those of the others stay where they are.
    pub dest: Option<DestId>,
}

/// What comes after a roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextRoster<R> {
    /// It stays.
    Same,
    /// This one, once each connection that goes on has shown itself.
    Other(R),
    /// None: from then on each connection has a word.
    Nothing,
}

/// A roster and what comes after it, as control describes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rosters {
    /// By which connections without a word go.
    pub current: RosterSpec,
    /// What comes after it.
    pub next: NextRoster<RosterSpec>,
}

/// The same, compiled.
#[derive(Debug)]
pub struct AtRisk {
    current: Picker,
    next: NextRoster<Picker>,
}

impl AtRisk {
    /// Compiles rosters; see [`Picker::new`].
    pub fn new(rosters: &Rosters, kept: &Kept) -> Self {
        let picker = |spec: &RosterSpec| spec.picker(kept);
        let next = match &rosters.next {
            NextRoster::Same => NextRoster::Same,
            NextRoster::Other(spec) => NextRoster::Other(picker(spec)),
            NextRoster::Nothing => NextRoster::Nothing,
        };
        AtRisk { current: picker(&rosters.current), next }
    }

    /// Whom a flow is with of which there is no word.
    pub fn server(&self, flow: &Flow) -> Option<DestId> {
        self.current.pick(flow)
    }

    /// Whether a flow needs a word that without one is with `known` ([`Self::server`]), and would go to `now`, were it to begin.
    pub fn concerns(&self, flow: &Flow, known: Option<DestId>, now: Option<DestId>) -> bool {
        let stays = match &self.next {
            NextRoster::Same => true,
            NextRoster::Other(next) => next.pick(flow) == known,
            NextRoster::Nothing => false,
        };
        known.is_none() || known != now || !stays
    }
}

impl RosterSpec {
    fn picker(&self, kept: &Kept) -> Picker {
        let candidate = |&RosterMember { address, weight, dest }: &RosterMember| Candidate {
            dest: dest.unwrap_or(GONE),
            address,
            weight,
            last_weight: weight,
            gauge: Arc::default(),
        };
        let candidates: Vec<Candidate> = self.members.iter().map(candidate).collect();
        Picker::new(self.scheduler, &[], &candidates, kept, self.key)
    }
}
