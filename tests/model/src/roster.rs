//! What the router is told of a service of which connections have an entry only at risk (docs/operating.md, "Connections without an entry"): the roster by which the
//! others go, and what comes after it.

use crate::world::Service;

/// Seconds until workers go by what has changed.
const SLACK: u32 = 5;
/// How long a connection may be silent in whatever state but ESTABLISHED.
const HALF_DONE: u32 = 120;
const TICKS_PER_SECOND: u64 = 4;

/// Servers by their numbers with the weights that are meant for them, be they up or down.
pub type Roster = Vec<(usize, u32)>;

/// The roster of a service, and what is to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rosters {
    /// By which connections go that have no entry.
    pub current: Roster,
    /// The next one, if each connection is not to have an entry from then on, and when that is.
    pub next: Option<(Option<Roster>, u64)>,
}

/// What follows by now from what is configured. A change waits until each connection has been heard since the last one.
pub(crate) fn settle(service: &mut Service, now: u64) {
    let before = service.rosters.take();
    let wanted = service.is_at_risk.then(|| members(service, before.as_ref()));
    let Some(Rosters { current, next }) = before else {
        // Until now each connection had an entry.
        service.rosters = wanted.map(|current| Rosters { current, next: None });
        return;
    };
    if wanted.as_ref() == Some(&current) {
        service.rosters = Some(Rosters { current, next: None });
        return;
    }
    let patience = u64::from(service.timeout.max(HALF_DONE) + SLACK) * TICKS_PER_SECOND;
    let due = next.filter(|next| next.0 == wanted).map_or(now + patience, |next| next.1);
    service.rosters = match wanted {
        Some(current) if due <= now => Some(Rosters { current, next: None }),
        None if due <= now => None,
        wanted => Some(Rosters { current, next: Some((wanted, due)) }),
    };
}

/// The servers that are configured; one of weight 0 has that which it had, if it had one.
fn members(service: &Service, before: Option<&Rosters>) -> Roster {
    let next = before.and_then(|before| before.next.as_ref()?.0.as_ref());
    let known = [next, before.map(|before| &before.current)];
    let had = |server| known.into_iter().flatten().flatten().find(|one| one.0 == server).map(|one| one.1);
    let servers = service.servers.iter().enumerate().filter(|(_, its)| its.leaving.is_none());
    servers
        .filter_map(|(server, its)| match its.weight {
            0 => Some((server, had(server)?)),
            weight => Some((server, weight)),
        })
        .collect()
}
