//! Who gets a connection that begins, and who is full.

use std::net::{IpAddr, SocketAddr};

use dataplane::service::{Mode, Protocol, Scheduler, SchedulerFlag};

use super::{Fate, Frame, Model};
use crate::packet::{RST, SYN};
use crate::scheduler::{self, Candidate, Choice};
use crate::sctp;
use crate::world::{self, Flow, Limit, Way};

/// What a scheduler that hashes by a secret has chosen by: as long as it is the same, so is the choice.
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
        let Flow { protocol, client, destination } = flow;
        let is_syn = flags & (SYN | RST) == SYN;
        let may_begin = match protocol {
            Protocol::Udp => true,
            Protocol::Sctp => flags == sctp::INIT || service.sloppy && flags != sctp::ABORT,
            Protocol::Tcp => is_syn || service.sloppy && flags & RST == 0,
        };
        if !service.is_at(destination.ip()) {
            return Err(Fate::Punt("no_service"));
        }
        // Data connections of active FTP come from port 20, and are not for a server to take.
        let is_ftp_data = protocol == Protocol::Tcp && client.port() == 20;
        if !may_begin || is_ftp_data {
            return Err(Fate::Punt("no_connection"));
        }
        if self.is_martian(client.ip()) {
            return Err(Fate::Drop("martian"));
        }
        self.admit(number, client.ip()).map_err(Fate::Drop)?;
        let is_known = |server: usize| {
            let address = world::server_address(service, server);
            matches!(world::way(&self.services, address.ip()), Way::Out { .. })
        };
        let healthy = || {
            (0..service.servers.len())
                .rev()
                .filter(|&server| service.servers[server].up && service.servers[server].leaving.is_none())
        };
        if let Some(server) = self.comes_back(frame, number, client.ip()) {
            return Ok(server);
        }
        let candidates: Vec<Candidate> = healthy()
            .filter(|&server| is_known(server))
            .map(|server| {
                let (active, inactive) = self.load_of(number, server);
                let is_full = self.loads[number][server].is_full && service.servers[server].limits.is_some();
                Candidate { server, weight: service.servers[server].weight, active, inactive, is_full }
            })
            .collect();
        let turn = &mut self.turns[number];
        let choice = scheduler::choose(service.scheduler, &service.flags, &candidates, turn, &flow);
        let server = match choice {
            Choice::Server(server) => Some(server),
            Choice::AnyOf(servers, may_refuse) => {
                let drawn = match frame.observed.begun {
                    Some(drawn) => servers.into_iter().find(|&server| server == drawn),
                    None if may_refuse => None,
                    // One for which there was no local port, or no place among the client's connections.
                    None => {
                        let has_local = |server| self.has_local(number, server, flow);
                        let mut without = servers.iter().copied().filter(|&server| !has_local(server));
                        without.next().or(servers.first().copied())
                    }
                };
                // Who was drawn in vain, nobody can see.
                let its = &self.services[number];
                let is_in_vain = its.mode == Mode::Fullnat || matches!(its.limit, Some(Limit::Open(_)));
                let is_seen = frame.observed.begun.is_some() || !is_in_vain;
                if is_seen { self.as_before(number, flow, &candidates, drawn) } else { drawn }
            }
            Choice::Nobody => None,
        };
        server.ok_or(Fate::Drop("no_server"))
    }

    /// What a hash has chosen once it chooses again; so does it, if it is asked for the first time.
    pub(super) fn as_before(
        &mut self,
        number: usize,
        Flow { protocol, client, destination }: Flow,
        candidates: &[Candidate],
        drawn: Option<usize>,
    ) -> Option<usize> {
        let service = &self.services[number];
        let port = match service.scheduler {
            Scheduler::Mh => service.flags.contains(&SchedulerFlag::MhPort).then(|| client.port()),
            Scheduler::Rendezvous | Scheduler::Maglev => Some(client.port()),
            _ => return drawn,
        };
        let servers = candidates.iter().map(|one| (one.server, one.weight, one.is_full)).collect();
        let by = (service.scheduler != Scheduler::Mh).then_some((destination, protocol));
        let by = Hashed { service: number, client: client.ip(), port, by, servers };
        match self.hashed.iter().find(|(other, _)| *other == by) {
            Some(&(_, before)) => before,
            None => {
                self.hashed.push((by, drawn));
                drawn
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
