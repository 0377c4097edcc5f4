//! What the data path would do with a packet now, and why.
//!
//! No second implementation of the rules: the engine itself takes the packet, on a stage. The stage is a copy of all
//! that it might change: the buckets of the packet's flow and of its client's template, and the snapshot with gauges and positions of its own. What
//! cannot be seen from outside of the engine (whose packet it is, which connection's) is found by its own stages and by
//! its own judgement. So this agrees with the data path as long as nothing changes meanwhile; `tests/explain.rs` compares
//! a million packets.

use std::io;
use std::sync::Arc;

use super::packet::{Direction, Found, Owner, Packet, Piece, Side};
use super::persist::{Person, Place};
use super::resolve::{Judgement, Path};
use super::{BURST, Engine, Verdict, fragments, ipsec, parse, six};
use crate::clock::Tick;
use crate::counters::{Drop, Punt};
use crate::fib::PortIndex;
use crate::fragments::Fate;
use crate::scheduler::Reason;
use crate::service::{Protocol, State};
use crate::snapshot::{ServiceIndex, Snapshot};
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
    /// Whether that is in the table then, or no more than where the packet goes, of which nothing is remembered.
    pub is_kept: bool,
    /// If a scheduler would be asked: what decides. What it decides is in `afterwards`.
    pub reason: Option<Reason>,
    /// If it is a fragment without ports, which goes where the first of its datagram has gone: that one's real server.
    pub follows: Option<DestId>,
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
/// it takes to copy the list of real servers. An error if there is no address space for the stage.
pub fn explain(
    snapshot: &Snapshot,
    table: &Table,
    now: Tick,
    port: PortIndex,
    frame: &[u8],
) -> io::Result<Explanation> {
    let engine = Engine::new(0, Arc::new(table.stage()?), Arc::default());
    let mut burst = [frame.to_vec()];
    let mut verdicts = [Verdict::Drop(Drop::Runt); BURST];

    // Whose packet it is: the first two stages, as far as they change nothing.
    let mac = &snapshot.ports[usize::from(port)].mac;
    let parsed = if six::is_six(&burst[0]) {
        let parsed = six::parse(&burst[0], mac, snapshot);
        parsed.ok().map(|(packet, addresses)| (packet, Some(addresses)))
    } else {
        parse::parse(&burst[0], mac, snapshot).ok().map(|packet| (packet, None))
    };
    let is_later = parsed.is_some_and(|(packet, _)| packet.piece == Piece::Later);
    let addresses = parsed.and_then(|(_, addresses)| addresses);
    let addresses = addresses.as_ref().map(std::slice::from_ref);
    let path = Path { port: Some(port), addresses, ..Path::new(&engine, snapshot, now) };
    let packet = parsed.filter(|_| !is_later).and_then(|(mut packet, _)| {
        path.classify(&mut packet).ok()?;
        let is_known = || {
            let judge = Judgement::of_known(snapshot, now, packet.side(), packet.client);
            table.find(packet.hash, packet.client, &judge).is_some()
                || path.answering(&packet).is_some() && !path.is_known_further(table, &packet)
        };
        let is_anothers = packet.direction == Direction::Out && !is_known();
        Some(path.further(&packet).filter(|_| is_anothers).unwrap_or(packet))
    });

    // ESP and AH go with a connection, and have none of their own.
    let followed = ipsec::place(&path, &burst[0]).filter(|_| packet.is_none()).and_then(|place| {
        table.copy_flow(place, &engine.table);
        engine.related(snapshot, now, &burst[0])
    });

    // The stage.
    let hit = packet.as_ref().map(Packet::side).or(followed.map(|owner| owner.side));
    let service = match hit {
        Some(Side::Service(service)) => Some(service),
        Some(Side::Endpoint(_)) => {
            packet.as_ref().and_then(|packet| path.answering(packet)).map(|dest| dest.service)
        }
        None => None,
    };
    if let Some(packet) = &packet {
        table.copy_flow(packet.hash, &engine.table);
    }
    let tag = fragments::tag(&engine, &burst[0]);
    if let Some(tag) = tag {
        table.fragments().copy(tag, engine.table.fragments());
    }
    let stage = snapshot.rehearsal(service);
    let found = packet.as_ref().map(|packet| path.found(packet));
    if let Some(place) = found.and_then(|found| engine.template(&stage, &found.owner)) {
        table.copy_flow(place.hash, &engine.table);
    }
    let owner = found.map(|found| found.owner).or(followed);
    let connection = owner.and_then(|owner| engine.connection(&stage, now, &owner));
    let reason = found.and_then(|found| engine.reason(&stage, now, &found));

    // The engine.
    engine.process(&stage, now, port, &mut burst, &mut verdicts, &mut ());
    let verdict = verdicts[0];
    let asked = engine.counters.traffic.connections.get() > 0 || verdict == Verdict::Drop(Drop::NoServer);
    let reason = reason.filter(|_| asked);
    // Of what comes in here the service has only what belongs to its connections.
    let has_it_here = |service: ServiceIndex| {
        let has_it = |packet: Packet| {
            snapshot.services[service as usize].has_port(packet.destination_port, Some(port))
        };
        packet.is_none_or(has_it)
    };
    let hit = hit.filter(|hit| match *hit {
        Side::Service(service) => connection.is_some() || has_it_here(service),
        Side::Endpoint(_) => true,
    });
    let goes_on = matches!(
        verdict,
        Verdict::Forward(_) | Verdict::Punt(Punt::Unresolved | Punt::ToFragment | Punt::Local)
    );
    let alone = || alone(&engine, &stage, snapshot, now, &found?).filter(|_| goes_on);
    let kept = owner.and_then(|owner| engine.connection(&stage, now, &owner));
    let afterwards = kept.or_else(alone);
    let note = tag.filter(|_| is_later).and_then(|tag| table.fragments().find(tag, now));
    let follows = match note.map(|note| note.fate) {
        Some(Fate::With(flow)) => Some(flow.dest),
        _ => None,
    };
    let [frame] = burst;
    Ok(Explanation { hit, connection, afterwards, is_kept: kept.is_some(), reason, follows, verdict, frame })
}

impl Engine {
    /// The connection that a packet concerns, as the table has it now.
    pub fn connection(&self, snapshot: &Snapshot, now: Tick, owner: &Owner) -> Option<Connection> {
        let Owner { client, protocol, side, .. } = *owner;
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
            self.template(snapshot, owner).and_then(|place| place.find(&self.table, snapshot, now));
        let server = template.and_then(|(_, word)| snapshot.dest_of(word));
        Some(match server {
            // It takes its client back.
            Some(dest) if dest.returning => Reason::Template,
            _ => snapshot.home_of(service).1.picker.reason(flow, &|id| snapshot.is_free(id)),
        })
    }

    /// Where the template of a packet's client is, if its service has persistence.
    fn template(&self, snapshot: &Snapshot, owner: &Owner) -> Option<Place> {
        let Side::Service(index) = owner.side else { return None };
        let home = snapshot.home_of(index);
        let person = Person { client: owner.client, wide: owner.wide };
        Some(Place::new(&self.table, home, home.1.persistent?, person))
    }
}

/// What a packet is a part of that nobody remembers ([`crate::snapshot::Service::keeps_all`]): by the template that the engine
/// has gone by on the stage, or the same turn, taken once more.
fn alone(
    engine: &Engine,
    stage: &Snapshot,
    snapshot: &Snapshot,
    now: Tick,
    Found { owner, flow, .. }: &Found,
) -> Option<Connection> {
    let dest = match owner.side {
        Side::Service(index) => {
            let service = stage.services.get(index as usize)?;
            if service.keeps_all && service.by_hash.is_none() {
                return None;
            }
            let place = engine.template(stage, owner);
            let template = place.and_then(|place| place.find(&engine.table, stage, now));
            let chosen = match template.and_then(|(_, word)| stage.dest_of(word)) {
                Some(dest) => dest.id,
                None if let Some(at_risk) = &service.at_risk => at_risk.server(flow)?,
                None if !service.one_packet => stage.home(service).hashed(flow)?,
                None => {
                    let again = snapshot.rehearsal(Some(index));
                    again.home_of(index).1.picker.pick_free(|| *flow, &|id| again.is_free(id))?
                }
            };
            stage.dest_in(service, chosen)?.id
        }
        Side::Endpoint(endpoint) => {
            snapshot
                .answered_by(endpoint)
                .find(|dest| snapshot.services[dest.service as usize].one_packet)?
                .id
        }
    };
    let state = match owner.protocol {
        Protocol::Tcp => State::SynRecv,
        Protocol::Sctp => State::Init1,
        Protocol::Udp => State::Udp,
    };
    Some(Connection { dest, state, age: 0, expires: 0 })
}
