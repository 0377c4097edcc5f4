//! Handshakes that leave no word in the table, while a service's gate is shut to a flood of SYNs ([`crate::admission::Limiter::knock`]).
//!
//! Three packets have to meet the same server without anybody remembering which: the SYN, the server's answer, and the client's acknowledgement. All
//! are asked for the server of the flow by hash ([`Service::hashed`]), or of the client's template. The answer tells whose it is by that, too: of the
//! services whose server the endpoint is, it is of the one that was shut lately and whose hash names the endpoint for the flow. If two services that
//! share the endpoint are under a flood at once and both name it, the first has it: nothing tells them apart, and the client of the other tries again.
//!
//! The acknowledgement makes the word. That a server has come or gone meanwhile moves some of the handshakes that are under way: the other server resets them, as it would if
//! the first had died. What is made up is reset by the server likewise, and with NAT its word is over then.

use super::Verdict;
use super::packet::Packet;
use super::persist::{Person, Place};
use super::resolve::Path;
use crate::counters::{Drop, Punt};
use crate::scheduler::Flow;
use crate::service::{Mode, Protocol};
use crate::snapshot::{Dest, Service, ServiceIndex, folded};
use crate::wire::transport::{RST, SYN};

/// What a packet without a connection may do at a service with a gate.
pub(super) enum Gated<'a> {
    /// Begin one.
    Begins,
    /// Go on to a server and leave no word.
    Passes(&'a Dest),
    /// Go on to a server, with which it has been before, and from now on have a word.
    GoesOn(&'a Dest),
}

impl<'a> Path<'a> {
    /// What a SYN may do that has been admitted.
    #[inline(never)]
    pub(super) fn knock(
        &self,
        index: ServiceIndex,
        service: &Service,
        packet: &Packet,
    ) -> Result<Gated<'a>, Verdict> {
        let is_shut = service.protocol == Protocol::Tcp
            && packet.flags & SYN != 0
            && service.limiter.as_ref().is_some_and(|limiter| limiter.knock(self.now));
        if !is_shut {
            return Ok(Gated::Begins);
        }
        if service.mode == Mode::Fullnat {
            return Err(Verdict::Drop(Drop::SynFlood));
        }
        let dest = self.without_word(index, service, packet, &self.flow(packet));
        match dest.filter(|dest| !dest.is_full()) {
            Some(dest) => Ok(Gated::Passes(dest)),
            None => Err(Verdict::Drop(Drop::NoServer)),
        }
    }

    /// What a packet may do that begins no connection by itself: the end of a handshake whose SYN has left no word begins it, and a client
    /// that refuses the handshake tells the server.
    #[inline(never)]
    pub(super) fn after_handshake(
        &self,
        index: ServiceIndex,
        service: &Service,
        packet: &Packet,
    ) -> Result<Gated<'a>, Verdict> {
        if packet.is_ftp_data() {
            return Err(Verdict::Punt(Punt::NoConnection));
        }
        if let Some(at_risk) = &service.at_risk {
            return self.go_on(at_risk, service, packet);
        }
        let is_late = service.by_hash.is_some() && self.was_shut(service);
        if !is_late {
            return Err(Verdict::Punt(Punt::NoConnection));
        }
        if packet.flags & RST == 0 {
            return Ok(Gated::Begins);
        }
        let dest = self.without_word(index, service, packet, &self.flow(packet));
        dest.map(Gated::Passes).ok_or(Verdict::Punt(Punt::NoConnection))
    }

    /// Whether a packet from an endpoint of this dest, which belongs to no connection, answers one that has left no word.
    pub(super) fn answers(&self, dest: &Dest, packet: &Packet) -> bool {
        let service = &self.snapshot.services[dest.service as usize];
        if service.by_hash.is_none() || !self.was_shut(service) {
            return false;
        }
        let back = self.flow(packet);
        let wide = back.wide.map(|[_, client]| [client, dest.six.virtual_address]);
        let flow = Flow {
            source: back.destination,
            source_port: back.destination_port,
            destination: folded(dest.virtual_address),
            destination_port: dest.virtual_port(back.source_port),
            wide,
            ..back
        };
        self.without_word(dest.service, service, packet, &flow).is_some_and(|named| named.id == dest.id)
    }

    fn was_shut(&self, service: &Service) -> bool {
        service.limiter.as_ref().is_some_and(|limiter| limiter.was_shut(self.now))
    }

    /// The server of a flow that is in no table.
    fn without_word(
        &self,
        index: ServiceIndex,
        service: &Service,
        packet: &Packet,
        flow: &Flow,
    ) -> Option<&'a Dest> {
        let template = service.persistent.and_then(|prefix| {
            let client = Person { client: packet.client, wide: self.client_address(packet) };
            let place = Place::new(&self.engine.table, self.snapshot.home_of(index), prefix, client);
            let (_, word) = place.find(&self.engine.table, self.snapshot, self.now)?;
            let dest = self.snapshot.dest_of(word).filter(|dest| dest.returning)?;
            self.snapshot.dest_in(service, dest.id)
        });
        template.or_else(|| self.snapshot.dest_in(service, self.snapshot.home(service).hashed(flow)?))
    }
}
