//! Connections that need no word: with whom they are, and which of them get one all the same ([`crate::scheduler::AtRisk`]).
//!
//! They come here as misses, the long way. Who may begin a connection is asked of each packet, since nobody knows what has begun before: whoever is
//! put on a list of sources loses what he has without a word.

use std::net::SocketAddr;

use super::Verdict;
use super::fullnat::End;
use super::gate::Gated;
use super::packet::Packet;
use super::resolve::{Path, arrives};
use crate::clock::Tick;
use crate::counters::Punt;
use crate::fib::Address;
use crate::scheduler::{AtRisk, Flow};
use crate::service::State;
use crate::snapshot::{Dest, Family, Service, ServiceIndex, Snapshot, folded};
use crate::table::{Slot, Word};
use crate::wire::transport::{FIN, RST};

/// With whom a connection of a service is that needs no word, between this client and this virtual address; `None` if all of its connections have one.
pub(super) fn without_word<A: Family>(
    snapshot: &Snapshot,
    now: Tick,
    index: ServiceIndex,
    client: End<A>,
    virtual_: End<A>,
) -> Option<&Dest> {
    let service = &snapshot.services[index as usize];
    let at_risk = service.at_risk.as_ref()?;
    let [client, virtual_] = [client, virtual_].map(|(address, port)| SocketAddr::new(address.ip(), port));
    let flow = Flow {
        source: folded(client),
        source_port: client.port(),
        destination: folded(virtual_),
        destination_port: virtual_.port(),
        protocol: service.protocol,
        wide: u128::of(client.ip()).zip(u128::of(virtual_.ip())).map(<[u128; 2]>::from),
        now,
    };
    snapshot.dest(at_risk.server(&flow)?)
}

impl<'a> Path<'a> {
    /// What a packet may do that has no word and begins no connection.
    pub(super) fn go_on(
        &self,
        at_risk: &AtRisk,
        service: &Service,
        packet: &Packet,
    ) -> Result<Gated<'a>, Verdict> {
        let flow = self.flow(packet);
        let dest = self.without_word_with(at_risk, &flow).ok_or(Verdict::Punt(Punt::NoConnection))?;
        self.admit(service, packet, true)?;
        arrives(packet, dest)?;
        let ends = packet.flags & (FIN | RST) != 0;
        let is_at_risk = !ends && at_risk.concerns(&flow, Some(dest.id), service.picker.pick(&flow));
        Ok(if is_at_risk { Gated::GoesOn(dest) } else { Gated::Passes(dest) })
    }

    /// Whether a connection that begins with this server has a word.
    #[inline(never)]
    pub(super) fn is_kept(&self, service: &Service, dest: &Dest, packet: &Packet) -> bool {
        let Some(at_risk) = &service.at_risk else { return false };
        let flow = self.flow(packet);
        at_risk.concerns(&flow, at_risk.server(&flow), Some(dest.id))
    }

    /// Gives a connection a word that has begun without; `None` if another worker has just done so. In no state until it goes on, it makes
    /// room for others if there is none: what is made up never does, and is a flood at the worst.
    #[inline(never)]
    pub(super) fn catch_up(
        &self,
        service: &Service,
        dest: &'a Dest,
        packet: &Packet,
        vacancy: Option<Slot>,
    ) -> Result<Option<&'a Dest>, Verdict> {
        let coarse = service.timeout(State::None).is_coarse();
        let word = Word::new(packet.client, dest.id).with_state(State::None).seen(self.now, coarse);
        match self.enter(service, dest, packet, word, vacancy) {
            Ok(is_new) => Ok(is_new.then_some(dest)),
            // Where there is no room it goes on without, as long as the roster stays.
            Err(_) => Ok(Some(dest)),
        }
    }

    /// With whom a flow is of which there is no word.
    pub(super) fn without_word_with(&self, at_risk: &AtRisk, flow: &Flow) -> Option<&'a Dest> {
        self.snapshot.dest(at_risk.server(flow)?)
    }
}
