//! What the hashes come to of `maglev`, `rendezvous` and `mh`: numbers that no document has, so the data path's schedulers are asked, apart
//! from it.
//!
//! The model says of which servers, with which weights, and of which flow; and that nothing else counts. Filling a table takes a millisecond, so those
//! that have been asked for are kept.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use dataplane::clock::Tick;
use dataplane::scheduler::{Candidate, FLOW_KEY, Flow, Kept, Picker};
use dataplane::service::{Scheduler, SchedulerFlag};
use dataplane::snapshot::folded;
use dataplane::table::DestId;

use crate::world;

/// A server that a hash may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// Whether it is beyond its upper threshold.
    pub is_full: bool,
}

/// What a table is made of: scheduler and flags by their names, servers with their weights.
type Key = (&'static str, Vec<&'static str>, Vec<(SocketAddr, u32)>);

/// Tables that are kept.
const MOST: usize = 500;

thread_local! {
    static KEPT: Kept = Kept::default();
    static PICKERS: RefCell<HashMap<Key, Picker>> = RefCell::default();
}

/// What services of `maglev` keep, all of them the same: so a table is filled once, and not for each sequence.
pub fn kept() -> Kept {
    KEPT.with(Kept::clone)
}

/// Which one of these servers, in the order of the configuration, a flow comes to.
pub fn choose(
    kind: Scheduler,
    flags: &[SchedulerFlag],
    members: &[Member],
    flow: &world::Flow,
) -> Option<usize> {
    let id = |place: usize| DestId::new(1 + place as u32).expect("a small number");
    let table = members.iter().map(|one| (one.address, one.weight)).collect();
    let key = (kind.name(), flags.iter().map(|flag| flag.name()).collect(), table);
    let candidates = || -> Vec<Candidate> {
        let candidate = |(place, &Member { address, weight, .. }): (usize, &Member)| Candidate {
            dest: id(place),
            address,
            weight,
            last_weight: weight,
            gauge: Default::default(),
        };
        members.iter().enumerate().map(candidate).collect()
    };
    let is_free = |id: DestId| !members[id.index() - 1].is_full;
    PICKERS.with_borrow_mut(|pickers| {
        if pickers.len() >= MOST {
            pickers.clear();
        }
        let picker =
            pickers.entry(key).or_insert_with(|| Picker::new(kind, flags, &candidates(), &kept(), FLOW_KEY));
        picker.pick_free(|| seen(flow), &is_free).map(|id| id.index() - 1)
    })
}

/// A flow, as the schedulers see it.
fn seen(&world::Flow { protocol, client, destination }: &world::Flow) -> Flow {
    let wide = match (client.ip(), destination.ip()) {
        (IpAddr::V6(client), IpAddr::V6(destination)) => Some([client.to_bits(), destination.to_bits()]),
        _ => None,
    };
    Flow {
        source: folded(client),
        source_port: client.port(),
        destination: folded(destination),
        destination_port: destination.port(),
        protocol,
        wide,
        now: Tick(0),
    }
}
