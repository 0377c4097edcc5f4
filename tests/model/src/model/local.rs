//! Full NAT: as whom a real server knows a client.
//!
//! Which port of the pool a connection has is the router's choice, so the model is told, and sees to it that the port is one of the pool's and
//! nobody else's. It stays taken until the connection has left the table and a sweep has found that out; a port that has been taken since the
//! last sweep stays one more.

use std::net::SocketAddr;

use dataplane::service::{Mode, Protocol};

use super::connections::Connection;
use super::{Fate, Frame, Model};
use crate::packet::{End, Packet};
use crate::world::{self, Flow};

/// A local port that is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    local: SocketAddr,
    /// Whose it is.
    service: usize,
    server: usize,
    flow: Flow,
    /// Taken since the last sweep.
    is_young: bool,
}

impl Claim {
    fn is_of(&self, one: &Connection) -> bool {
        self.is_for(one.service, one.server, one.flow)
    }

    fn is_for(&self, service: usize, server: usize, flow: Flow) -> bool {
        (self.service, self.server, self.flow) == (service, server, flow)
    }
}

impl Model {
    /// The local port of a connection that begins, if its service is one by full NAT.
    pub(super) fn take_local(
        &mut self,
        frame: &Frame<'_>,
        number: usize,
        server: usize,
        flow: Flow,
    ) -> Result<Option<SocketAddr>, Fate> {
        let service = &self.services[number];
        if service.mode != Mode::Fullnat {
            return Ok(None);
        }
        let (addresses, ports) = (world::local_addresses(service.is_six), &service.local_ports);
        let is_its = |one: &Claim| one.is_for(number, server, flow);
        let others = || self.claims.iter().filter(|one| one.flow.protocol == flow.protocol && !is_its(one));
        let local = frame.observed.locals.iter().find(|one| (one.0, one.1) == (flow, server));
        let Some(&(.., local)) = local else {
            let of_pool = others()
                .filter(|one| addresses.contains(&one.local.ip()) && ports.contains(&one.local.port()));
            let is_full = of_pool.count() == addresses.len() * ports.len();
            return Err(Fate::Drop(if is_full { "no_local_port" } else { "nothing: there are local ports" }));
        };
        if !addresses.contains(&local.ip()) || !ports.contains(&local.port()) {
            return Err(Fate::Drop("nothing: the local port is none of the pool's"));
        }
        if others().any(|one| one.local == local) {
            return Err(Fate::Drop("nothing: the local port is another connection's"));
        }
        self.claims.retain(|one| (one.local, one.flow.protocol) != (local, flow.protocol));
        self.claims.push(Claim { local, service: number, server, flow, is_young: true });
        Ok(Some(local))
    }

    /// Whether a client still has a local port for a connection with this server.
    pub(super) fn has_local(&self, number: usize, server: usize, flow: Flow) -> bool {
        self.claims.iter().any(|one| one.is_for(number, server, flow))
    }

    /// After connections have been swept.
    pub(super) fn sweep_locals(&mut self) {
        let connections = &self.connections;
        let is_held =
            |claim: &Claim| connections.iter().any(|one| claim.is_of(one) && one.local == Some(claim.local));
        self.claims.retain_mut(|claim| std::mem::take(&mut claim.is_young) || is_held(claim));
    }

    /// Whose local port a real server sends to.
    pub(super) fn claim_at(
        &self,
        server: SocketAddr,
        local: SocketAddr,
        protocol: Protocol,
    ) -> Option<&Claim> {
        let mut claims = self.claims.iter();
        claims.find(|one| {
            let address =
                || world::server_at(&self.services[one.service], one.server, one.flow.destination.port());
            (one.local, one.flow.protocol) == (local, protocol) && address() == server
        })
    }

    /// The connection that is alive and has this local port.
    pub(super) fn find_by_local(
        &self,
        server: SocketAddr,
        local: SocketAddr,
        protocol: Protocol,
    ) -> Option<usize> {
        let claim = self.claim_at(server, local, protocol)?;
        self.find(|one| claim.is_of(one))
    }
}

/// Both ends of a packet become others; ports are `None` where there are none in it.
pub(super) fn readdress(packet: &mut Packet, source: SocketAddr, destination: SocketAddr, has_ports: bool) {
    packet.readdress(End::Source, source.ip(), has_ports.then_some(source.port()));
    packet.readdress(End::Destination, destination.ip(), has_ports.then_some(destination.port()));
}
