//! What the data path would do with a packet now, and why.
//!
//! No second implementation of the rules: the engine itself takes the packet, on a stage. The stage is a copy of all
//! that it might change: the buckets of the packet's flow, and the snapshot with gauges and positions of its own. What
//! cannot be seen from outside of the engine (whose packet it is, which connection's) is found by its own stages and by
//! its own judgement. So this agrees with the data path as long as nothing changes meanwhile; `tests/explain.rs` compares
//! a million packets.

use std::sync::Arc;

use super::packet::{Found, Owner, Side, Work};
use super::persist::Place;
use super::resolve::{Judgement, Path};
use super::{BURST, Engine, Verdict, classify, parse};
use crate::clock::Tick;
use crate::counters::Drop;
use crate::fib::PortIndex;
use crate::scheduler::Reason;
use crate::service::State;
use crate::snapshot::Snapshot;
use crate::table::{DestId, Table};

/// What the data path would do with a packet, and why.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The service or the endpoint that it is for or from; `None` if it leaves the path before, by its verdict.
    pub hit: Option<Side>,
    /// Its connection, as it is now.
    pub connection: Option<Connection>,
    /// Its connection, as it would be afterwards. Of another real server, if the packet begins a new one in the place of one that is
    /// over.
    pub afterwards: Option<Connection>,
    /// If a scheduler would be asked: what decides. What it decides is in `afterwards`.
    pub reason: Option<Reason>,
    /// What happens to the packet.
    pub verdict: Verdict,
    /// The frame as the path leaves it: rewritten, if it is forwarded, or sent by Linux.
    pub frame: Vec<u8>,
}

/// A connection of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its real server.
    pub dest: DestId,
    /// Its state.
    pub state: State,
    /// Ticks since a packet was noted. That is not done for each packet, but once a second, under long timeouts once a minute.
    pub age: u32,
    /// Seconds until it is forgotten unless something passes.
    pub expires: u32,
}

/// Explains what would happen to a frame that comes in on a port of the snapshot now. Changes nothing; takes as long as
/// it takes to copy the list of real servers.
pub fn explain(snapshot: &Snapshot, table: &Table, now: Tick, port: PortIndex, frame: &[u8]) -> Explanation {
    let engine = Engine {
        templates: Arc::new(table.for_one_flow()),
        ..Engine::new(0, Arc::new(table.for_one_flow()), Arc::default())
    };
    let mut burst = [frame.to_vec()];
    let mut verdicts = [Verdict::Drop(Drop::Runt); BURST];

    // Whose packet it is: the first two stages, which change nothing.
    let mut work = Work::new();
    let mac = &snapshot.ports[usize::from(port)].mac;
    parse::parse_all(&Path { engine: &engine, snapshot, now }, mac, &mut burst, &mut work, &mut verdicts);
    classify::classify_all(snapshot, false, &engine.table, &mut work, &mut verdicts);
    let ([packet], [frame]) = (&work.packets[..work.count], &mut burst) else {
        let (verdict, [frame]) = (verdicts[0], burst);
        return Explanation { hit: None, connection: None, afterwards: None, reason: None, verdict, frame };
    };

    // The stage.
    let found = packet.found();
    let Found { owner, .. } = found;
    let hit = owner.side;
    let service = match hit {
        Side::Service(service) => Some(service),
        Side::Endpoint(_) => None,
    };
    table.copy_flow(packet.hash, &engine.table);
    let stage = snapshot.rehearsal(service);
    if let Some(place) = engine.template(&stage, &owner) {
        table.copy_flow(place.hash, &engine.templates);
    }
    let connection = engine.connection(&stage, now, &owner);
    let reason = engine.reason(&stage, now, &found);

    // The engine.
    engine.process(&stage, now, port, std::slice::from_mut(frame), &mut verdicts, &mut ());
    let verdict = verdicts[0];
    let asked = engine.counters.traffic.connections.get() > 0 || verdict == Verdict::Drop(Drop::NoServer);
    let afterwards = engine.connection(&stage, now, &owner);
    let [frame] = burst;
    Explanation { hit: Some(hit), connection, afterwards, reason: reason.filter(|_| asked), verdict, frame }
}

impl Engine {
    /// The connection that a packet concerns, as the table has it now.
    pub fn connection(&self, snapshot: &Snapshot, now: Tick, owner: &Owner) -> Option<Connection> {
        let Owner { client, protocol, side } = *owner;
        let judge = Judgement::of_known(snapshot, now, side, client);
        let (_, word) = self.table.find(self.table.hash(client, protocol), client, &judge)?;
        let dest = snapshot.dest_of(word)?;
        let (state, age) = (word.state(), word.age(now));
        let expires = snapshot.timeout(dest, state).remaining(age);
        Some(Connection { dest: dest.id, state, age, expires })
    }

    /// What would decide now, if a packet began a connection; none if it is none to a service.
    pub fn reason(&self, snapshot: &Snapshot, now: Tick, found: &Found) -> Option<Reason> {
        let Found { owner, flow, .. } = found;
        let Side::Service(service) = owner.side else { return None };
        let template =
            self.template(snapshot, owner).and_then(|place| place.find(&self.templates, snapshot, now));
        let server = template.and_then(|(_, word)| snapshot.dest_of(word));
        Some(match server {
            // It takes its client back.
            Some(dest) if dest.returning => Reason::Template,
            _ => snapshot.services[service as usize].picker.reason(flow, &|id| snapshot.is_free(id)),
        })
    }

    /// Where the template of a packet's client is, if its service has persistence.
    fn template(&self, snapshot: &Snapshot, owner: &Owner) -> Option<Place> {
        let Side::Service(index) = owner.side else { return None };
        let service = &snapshot.services[index as usize];
        Some(Place::new(&self.templates, index, service.protocol, service.persistent?, owner.client))
    }
}
