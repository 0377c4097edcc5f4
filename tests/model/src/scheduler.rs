//! Which real server gets a new connection, as LVS has it. Lists are newest first: the last server of the configuration comes first.

use std::net::IpAddr;

use dataplane::service::{Scheduler, SchedulerFlag};

use crate::world::Flow;

/// A real server that the scheduler knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub server: usize,
    pub weight: u32,
    pub active: u32,
    pub inactive: u32,
    /// Beyond its upper threshold.
    pub is_full: bool,
}

/// What a scheduler may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one and no other.
    Server(usize),
    /// By lot: one of these.
    AnyOf(Vec<usize>),
    /// By a hash: whom that comes to ([`crate::hashes`]).
    ByHash,
    /// There is none.
    Nobody,
}

impl Candidate {
    /// Whether it may have a new connection.
    pub fn is_usable(&self) -> bool {
        self.weight > 0 && !self.is_full
    }

    /// 256 for each active connection, and one for each of all.
    fn overhead(&self) -> u64 {
        256 * u64::from(self.active) + u64::from(self.active + self.inactive)
    }
}

/// The choice among servers, newest first; `turn` counts for round robin.
pub fn choose(
    kind: Scheduler,
    flags: &[SchedulerFlag],
    candidates: &[Candidate],
    turn: &mut Option<u64>,
    flow: &Flow,
) -> Choice {
    let least = |cost: &dyn Fn(&Candidate) -> (u64, u64)| {
        let usable = candidates.iter().filter(|candidate| candidate.is_usable());
        let best = usable.reduce(|best, other| {
            let ((cost, weight), (other_cost, other_weight)) = (cost(best), cost(other));
            if other_cost * weight < cost * other_weight { other } else { best }
        });
        best.map_or(Choice::Nobody, |best| Choice::Server(best.server))
    };
    let delay = |candidate: &Candidate| (u64::from(candidate.active) + 1, candidate.weight.into());
    match kind {
        Scheduler::Rr => {
            let ring = candidates.iter().filter(|candidate| candidate.weight > 0).collect();
            in_turn(ring, turn)
        }
        Scheduler::Wrr => in_turn(passes(candidates), turn),
        Scheduler::Lc => least(&|candidate| (candidate.overhead(), 1)),
        Scheduler::Wlc => least(&|candidate| (candidate.overhead(), candidate.weight.into())),
        Scheduler::Sed => least(&delay),
        Scheduler::Nq => {
            match candidates.iter().find(|candidate| candidate.is_usable() && candidate.active == 0) {
                Some(idle) => Choice::Server(idle.server),
                None => least(&delay),
            }
        }
        Scheduler::Fo => heaviest(candidates, |_| true),
        Scheduler::Ovf => heaviest(candidates, |candidate| candidate.active <= candidate.weight),
        Scheduler::Sh => {
            let port = if flags.contains(&SchedulerFlag::ShPort) { flow.client.port() } else { 0 };
            let walk = flags.contains(&SchedulerFlag::ShFallback);
            by_source(candidates, hash(flow.client.ip(), port), walk)
        }
        Scheduler::Dh => {
            let bucket = hash(flow.destination.ip(), 0);
            if candidates.is_empty() {
                return Choice::Nobody;
            }
            let owner = &candidates[usize::from(bucket) % candidates.len()];
            if owner.is_usable() { Choice::Server(owner.server) } else { Choice::Nobody }
        }
        Scheduler::Mh | Scheduler::Maglev | Scheduler::Rendezvous => Choice::ByHash,
        Scheduler::Twos | Scheduler::Lblc | Scheduler::Lblcr | Scheduler::P2c => any_of(candidates.iter()),
    }
}

/// By lot.
fn any_of<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Choice {
    let usable: Vec<usize> = candidates.filter(|one| one.is_usable()).map(|one| one.server).collect();
    if usable.is_empty() { Choice::Nobody } else { Choice::AnyOf(usable) }
}

/// The next of a ring that may take a connection. Where it goes on after nobody could, nobody says.
fn in_turn(ring: Vec<&Candidate>, turn: &mut Option<u64>) -> Choice {
    let Some(mut position) = *turn else {
        return any_of(ring.into_iter());
    };
    for _ in 0..ring.len() {
        let candidate = ring[(position % ring.len() as u64) as usize];
        position += 1;
        *turn = Some(position);
        if candidate.is_usable() {
            return Choice::Server(candidate.server);
        }
    }
    if !ring.is_empty() {
        *turn = None;
    }
    Choice::Nobody
}

/// A period of wrr: passes over the list with a threshold that falls from the greatest weight by their greatest common divisor; the first is the one
/// with the least threshold, as servers were added one after the other.
fn passes(candidates: &[Candidate]) -> Vec<&Candidate> {
    let step = candidates.iter().fold(0, |a, candidate| gcd(a, candidate.weight));
    let heaviest = candidates.iter().map(|candidate| candidate.weight).max().unwrap_or(0);
    let steps = heaviest.checked_div(step).unwrap_or(0);
    let thresholds = (1..=1).chain((2..=steps).rev()).map(|times| times * step);
    let pass = |threshold| candidates.iter().filter(move |it| it.weight > 0 && it.weight >= threshold);
    thresholds.flat_map(pass).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn heaviest(candidates: &[Candidate], may: impl Fn(&Candidate) -> bool) -> Choice {
    let able = candidates.iter().filter(|candidate| candidate.is_usable() && may(candidate));
    let best = able.reduce(|best, other| if other.weight > best.weight { other } else { best });
    best.map_or(Choice::Nobody, |best| Choice::Server(best.server))
}

/// sh: 256 buckets are dealt to the servers in turn, `weight` in a row.
fn by_source(candidates: &[Candidate], hash: u8, walk: bool) -> Choice {
    let hands = candidates.iter().cycle().flat_map(|server| vec![server; server.weight.max(1) as usize]);
    let buckets: Vec<&Candidate> = hands.take(256).collect();
    if buckets.is_empty() {
        return Choice::Nobody;
    }
    let steps = if walk { 0..=256 } else { 0..=0 };
    // Linux adds the hash to where it begins to walk, and once more to each step.
    let visited = steps.map(|step: u16| match step {
        0 => hash,
        step => hash.wrapping_add(hash).wrapping_add((step - 1) as u8),
    });
    let owner = visited.map(|bucket| buckets[usize::from(bucket)]).find(|owner| owner.is_usable());
    owner.map_or(Choice::Nobody, |owner| Choice::Server(owner.server))
}

/// The multiplicative hash of Linux, 8 bits of it.
fn hash(address: IpAddr, port: u16) -> u8 {
    let folded = match address {
        IpAddr::V4(four) => u32::from(four),
        IpAddr::V6(six) => {
            six.segments().chunks(2).fold(0, |sum, pair| sum ^ u32::from(pair[0]) << 16 ^ u32::from(pair[1]))
        }
    };
    (folded.wrapping_add(port.into()).wrapping_mul(0x61C8_8647) >> 24) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_linux() {
        let of = |address: &str| hash(address.parse().unwrap(), 0);
        assert_eq!(
            ["198.51.100.7", "198.51.100.8", "198.51.100.9", "203.0.113.1"].map(of),
            [171, 12, 110, 50]
        );
    }
}
