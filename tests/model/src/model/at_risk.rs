//! Services of which connections have an entry only at risk (docs/operating.md, "Connections without an entry").
//!
//! Where the scheduler's choices among all servers of the roster, of the next one, and among those that take connections now are one, there is no entry.

use dataplane::service::Protocol;

use super::connections::Connection;
use super::{Fate, Frame, Model};
use crate::packet::{FIN, RST};
use crate::roster::Roster;
use crate::scheduler::Candidate;
use crate::tcp::State;
use crate::world::{Flow, Service};

/// Whether connections of this service can do without an entry.
pub(super) fn is_without(service: &Service, protocol: Protocol) -> bool {
    service.rosters.is_some() && protocol == Protocol::Tcp
}

impl Model {
    /// The server that a packet goes to which begins no connection and has none, or why it goes nowhere. Once it has gone, there may be an entry.
    pub(super) fn go_on(
        &mut self,
        frame: &Frame<'_>,
        number: usize,
        flow: Flow,
        flags: u8,
    ) -> Result<usize, Fate> {
        let server = self.by_roster(number, flow).ok_or(Fate::Punt("no_connection"))?;
        if self.is_martian(flow.client.ip()) {
            return Err(Fate::Drop("martian"));
        }
        // Whose connections may begin is asked of every packet without an entry.
        self.admit(number, flow, true).map_err(Fate::Drop)?;
        self.arrives(&frame.packet, number, server)?;
        let now = self.hashed_to(number, flow);
        if flags & (FIN | RST) == 0 && self.is_at_risk(number, flow, now) {
            // It has not begun now, and is not counted.
            self.enter(Connection::new(flow, number, server, State::None, self.now));
        }
        Ok(server)
    }

    /// Whether a connection needs an entry that would go to this server if it began.
    pub(super) fn is_at_risk(&mut self, number: usize, flow: Flow, now: Option<usize>) -> bool {
        let Some(rosters) = self.services[number].rosters.clone() else { return true };
        let known = self.by_roster(number, flow);
        let is_to_move = match &rosters.next {
            None => false,
            Some((None, _)) => true,
            Some((Some(next), _)) => self.among(number, next, flow) != known,
        };
        known.is_none() || known != now || is_to_move
    }

    /// The server of a connection without an entry.
    pub(super) fn by_roster(&mut self, number: usize, flow: Flow) -> Option<usize> {
        let current = self.services[number].rosters.as_ref()?.current.clone();
        self.among(number, &current, flow)
    }

    fn among(&mut self, number: usize, roster: &Roster, flow: Flow) -> Option<usize> {
        let candidate = |&(server, weight): &(usize, u32)| Candidate {
            server,
            weight,
            active: 0,
            inactive: 0,
            is_full: false,
        };
        let candidates: Vec<Candidate> = roster.iter().rev().map(candidate).collect();
        self.by_hash(number, self.services[number].scheduler, &candidates, flow)
    }
}
