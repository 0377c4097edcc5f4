//! Who gets a connection that begins, and who is full.

use std::net::{IpAddr, SocketAddr};

use dataplane::service::{Protocol, Scheduler, SchedulerFlag};

use super::{Fate, Frame, Model, ftp, gate};
use crate::hashes::{self, Member};
use crate::packet::SYN;
use crate::scheduler::{self, Candidate, Choice};
use crate::world::{self, Flow, Server, Way};

/// What a scheduler that hashes has chosen by: as long as it is the same, so is the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hashed {
    pub(super) service: usize,
    pub(super) client: IpAddr,
    /// The client's port, if that counts.
    pub(super) port: Option<u16>,
    /// The virtual address and port and the protocol, if these do.
    pub(super) by: Option<(SocketAddr, Protocol)>,
    /// The servers, newest first: number, weight, and whether it is full.
    pub(super) servers: Vec<(usize, u32, bool)>,
}

impl Model {
    /// The server for a connection, or why there is none.
    pub(super) fn schedule(
        &mut self,
        frame: &Frame<'_>,
        number: usize,
        flow: Flow,
        flags: u8,
    ) -> Result<usize, Fate> {
        let service = &self.services[number].clone();
        let Flow { client, destination, .. } = flow;
        if let Some(server) = self.named(&frame.packet, number) {
            return Ok(server);
        }
        if ftp::is_of_data(service, destination.port()) {
            // To all others the port is nobody's.
            return self.controlled(frame, number, flow).ok_or(Fate::Punt("no_service"));
        }
        if let Some(server) = self.comes_back(frame, number, client.ip()) {
            return Ok(server);
        }
        // The end of a handshake goes where its beginning went, be it full or not.
        if gate::is_gated(service, flow.protocol) && flags & SYN == 0 {
            return self.hashed_to(number, flow).ok_or(Fate::Drop("no_server"));
        }
        let candidates = self.candidates(number);
        let turn = &mut self.turns[number];
        let choice = scheduler::choose(service.scheduler, &service.flags, &candidates, turn, &flow);
        let server = match choice {
            Choice::Server(server) => Some(server),
            Choice::ByHash => self.by_hash(number, service.scheduler, &candidates, flow),
            Choice::AnyOf(servers) => match frame.observed.begun {
                Some(drawn) => servers.into_iter().find(|&server| server == drawn),
                // One that the packet does not get as far as, for which there was no local port, or no place among the client's connections.
                None => {
                    let is_no_further = |server| self.arrives(&frame.packet, number, server).is_err();
                    let has_local = |server| self.has_local(number, server, flow);
                    let all = || servers.iter().copied();
                    let no_further = all().find(|&server| is_no_further(server));
                    no_further.or_else(|| all().find(|&server| !has_local(server))).or(all().next())
                }
            },
            Choice::Nobody => None,
        };
        server.ok_or(Fate::Drop("no_server"))
    }

    /// The servers that connections may begin with, newest first.
    fn candidates(&self, number: usize) -> Vec<Candidate> {
        let service = &self.services[number];
        let is_known = |server: usize| {
            let address = world::server_address(service, server);
            service.is_here(server) || matches!(world::way(&self.services, address.ip()), Way::Out { .. })
        };
        let servers = service.servers.iter().enumerate().rev();
        let healthy = servers.filter(|(_, its)| its.up && its.leaving.is_none());
        let known = healthy.filter(|&(server, _)| is_known(server));
        let candidate = |(server, its): (usize, &Server)| {
            let (active, inactive) = self.load_of(number, server);
            let is_full = self.loads[number][server].is_full && its.limits.is_some();
            Candidate { server, weight: its.weight, active, inactive, is_full }
        };
        known.map(candidate).collect()
    }

    /// The server of a flow by its hash alone, full or not. A scheduler that looks at something else has rendezvous hashing beside it.
    pub(super) fn hashed_to(&mut self, number: usize, flow: Flow) -> Option<usize> {
        use Scheduler::{Dh, Maglev, Mh, Rendezvous, Sh};
        let service = &self.services[number];
        let kind = match service.scheduler {
            kind @ (Sh | Dh | Mh | Maglev | Rendezvous) => kind,
            _ => Rendezvous,
        };
        let mut candidates = self.candidates(number);
        candidates.iter_mut().for_each(|one| one.is_full = false);
        match scheduler::choose(kind, &service.flags, &candidates, &mut None, &flow) {
            Choice::Server(server) => Some(server),
            Choice::ByHash => self.by_hash(number, kind, &candidates, flow),
            Choice::AnyOf(_) | Choice::Nobody => None,
        }
    }

    /// Whom a hash comes to: what it has chosen once it chooses again, and nobody who may not be chosen.
    pub(super) fn by_hash(
        &mut self,
        number: usize,
        kind: Scheduler,
        candidates: &[Candidate],
        flow: Flow,
    ) -> Option<usize> {
        let Flow { protocol, client, destination } = flow;
        let service = &self.services[number];
        let is_mh = kind == Scheduler::Mh;
        let (counts, walks) = [SchedulerFlag::MhPort, SchedulerFlag::MhFallback]
            .map(|flag| !is_mh || service.flags.contains(&flag))
            .into();
        let member = |one: &Candidate| Member {
            address: world::server_address(service, one.server),
            weight: one.weight,
            is_full: one.is_full,
        };
        let members: Vec<Member> = candidates.iter().rev().map(member).collect();
        let flags = if is_mh { &service.flags[..] } else { &[] };
        let place = hashes::choose(kind, flags, &members, &flow);
        let chosen = place.map(|place| &candidates[candidates.len() - 1 - place]);
        let may_be = match chosen {
            Some(chosen) => chosen.is_usable(),
            None if walks => !candidates.iter().any(Candidate::is_usable),
            None => candidates.is_empty() || !candidates.iter().all(Candidate::is_usable),
        };
        assert!(may_be, "{kind} has chosen {chosen:?} of {candidates:?}");
        let chosen = chosen.map(|chosen| chosen.server);
        let servers = candidates.iter().map(|one| (one.server, one.weight, one.is_full)).collect();
        let by = (!is_mh).then_some((destination, protocol));
        let port = counts.then(|| client.port());
        let by = Hashed { service: number, client: client.ip(), port, by, servers };
        match self.hashed.iter().find(|(other, _)| *other == by) {
            Some(&(_, before)) => before,
            None => {
                self.hashed.push((by, chosen));
                chosen
            }
        }
    }

    /// Who has reached the upper threshold is full until it is below the lower one.
    pub(super) fn note_limits(&mut self) {
        for (number, service) in self.services.iter().enumerate() {
            for (server, configured) in service.servers.iter().enumerate() {
                let Some((upper, lower)) = configured.limits else { continue };
                let (active, inactive) = self.load_of(number, server);
                let was = self.loads[number][server].is_full;
                self.loads[number][server].is_full =
                    active + inactive >= upper || was && active + inactive >= lower;
            }
        }
    }

    pub(super) fn load_of(&self, service: usize, server: usize) -> (u32, u32) {
        let own = self.connections.iter().filter(|one| one.service == service && one.server == server);
        let (active, inactive): (Vec<_>, Vec<_>) = own.partition(|connection| connection.state.is_active());
        (active.len() as u32, inactive.len() as u32)
    }
}
