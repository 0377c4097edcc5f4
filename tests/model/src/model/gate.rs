//! The gate against floods of SYNs (docs/operating.md, "Floods of SYNs"): under one, handshakes leave no connection behind.
//!
//! The three packets of such a handshake meet the same server by a hash of the flow alone, and the last of them begins the connection.

use std::net::SocketAddr;

use dataplane::service::{Mode, Protocol};

use super::services::translated;
use super::{Frame, Model, TICKS_PER_SECOND};
use crate::world::{self, Flow, Limit, Service};

/// How long after the last SYN that met it shut, a handshake may end.
const LATE: u64 = 16 * TICKS_PER_SECOND;

/// The gate of a service.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gate {
    /// Handshakes that are left half done,
    half_open: Spent,
    /// and connections that have begun by their ends.
    late: Spent,
    is_shut: bool,
    /// When a SYN has met it shut.
    last: Option<u64>,
}

/// What is gone from a bucket, in quarters of a connection, and when that was so.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    quarters: u64,
    at: u64,
}

/// Connections a second, and what a bucket has room for.
type Rate = (u32, u32);

fn room((rate, burst): Rate) -> u64 {
    TICKS_PER_SECOND * u64::from(burst.max(rate.div_ceil(4)))
}

impl Spent {
    fn settle(&mut self, (rate, _): Rate, now: u64) {
        self.quarters = self.quarters.saturating_sub((now - self.at) * u64::from(rate));
        self.at = now;
    }

    fn take(&mut self, rate: Rate, now: u64) -> bool {
        self.settle(rate, now);
        let fits = self.quarters + TICKS_PER_SECOND <= room(rate);
        if fits {
            self.quarters += TICKS_PER_SECOND;
        }
        fits
    }
}

impl Gate {
    /// A SYN that would begin a connection; whether it meets the gate shut.
    fn knock(&mut self, rate: Rate, now: u64) -> bool {
        if !self.half_open.take(rate, now) {
            // What is left does not suffice, and is gone.
            self.half_open.quarters = room(rate);
            self.is_shut = true;
        } else if self.half_open.quarters <= room(rate) / 2 {
            self.is_shut = false;
        }
        if self.is_shut {
            self.last = Some(now);
        }
        self.is_shut
    }
}

/// The rate of a service's gate for connections of this protocol, if it has one.
fn rate_of(service: &Service, protocol: Protocol) -> Option<Rate> {
    match service.limit {
        Some(Limit::HalfOpen { rate, burst }) if protocol == Protocol::Tcp => Some((rate, burst)),
        _ => None,
    }
}

/// Whether a handshake can leave no connection behind: a local port would be one.
pub(super) fn is_gated(service: &Service, protocol: Protocol) -> bool {
    rate_of(service, protocol).is_some() && service.mode != Mode::Fullnat
}

impl Model {
    /// A SYN that would begin a connection; whether it meets a gate that is shut.
    pub(super) fn meets_shut_gate(&mut self, number: usize, flow: Flow) -> bool {
        let rate = rate_of(&self.services[number], flow.protocol);
        rate.is_some_and(|rate| self.gates[number].knock(rate, self.now))
    }

    /// Whether handshakes may be under way that have left no connection.
    pub(super) fn has_been_shut(&self, number: usize, protocol: Protocol) -> bool {
        let is_late = |last| self.now - last <= LATE;
        is_gated(&self.services[number], protocol) && self.gates[number].last.is_some_and(is_late)
    }

    /// Whether a connection may begin by the end of a handshake.
    pub(super) fn may_be_late(&mut self, number: usize, flow: Flow) -> bool {
        let rate = rate_of(&self.services[number], flow.protocol);
        rate.is_none_or(|rate| self.gates[number].late.take(rate, self.now))
    }

    /// A handshake has been completed.
    pub(super) fn complete(&mut self, number: usize, flow: Flow) {
        let Some(rate) = rate_of(&self.services[number], flow.protocol) else { return };
        let half_open = &mut self.gates[number].half_open;
        half_open.settle(rate, self.now);
        half_open.quarters = half_open.quarters.saturating_sub(TICKS_PER_SECOND);
    }

    /// The server of a flow that has left nothing behind.
    pub(super) fn without_connection(
        &mut self,
        frame: &Frame<'_>,
        number: usize,
        flow: Flow,
    ) -> Option<usize> {
        self.comes_back(frame, number, flow.client.ip()).or_else(|| self.hashed_to(number, flow))
    }

    /// Of packets that nobody remembers, the service whose server has this address, which one that is, and what was to the client: of
    /// datagrams on their own, and of handshakes at a gate. If they could be of several, they are of the first.
    pub(super) fn unremembered_service_of(
        &mut self,
        frame: &Frame<'_>,
        address: SocketAddr,
        client: SocketAddr,
        protocol: Protocol,
    ) -> Option<(usize, usize, Flow)> {
        let mut places = Vec::new();
        for (number, service) in self.services.iter().enumerate() {
            let faces = service.faces.iter().filter(|face| face.protocol == protocol);
            for (face, server) in faces.flat_map(|face| translated(service).map(move |server| (face, server)))
            {
                let destination = world::virtual_at(service, face, address.port());
                if world::server_at(service, server, address.port()) == address {
                    places.push((number, server, Flow { protocol, client, destination }));
                }
            }
        }
        // Of the very port before those of all ports.
        places.sort_by_key(|&(number, ..)| self.services[number].is_of_all_ports());
        places.into_iter().find(|&(number, server, flow)| {
            let is_its = self.services_at(flow.destination, protocol).any(|one| one == number);
            self.services[number].one_packet
                || is_its
                    && self.has_been_shut(number, protocol)
                    && self.without_connection(frame, number, flow) == Some(server)
        })
    }
}
