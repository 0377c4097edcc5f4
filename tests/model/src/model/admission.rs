//! Who may begin a connection, and how many.

use std::net::IpAddr;

use dataplane::service::{Mode, Protocol};

use super::at_risk::is_without;
use super::connections::{Connection, is_ftp_data, may_begin};
use super::persistence::network;
use super::{Fate, Frame, Model, TICKS_PER_SECOND};
use crate::packet::{RST, SYN};
use crate::sctp;
use crate::world::{Flow, Limit, Sources};

/// A connection that has begun and counts, by a service or by one of its sources.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passed {
    service: usize,
    source: Option<IpAddr>,
    at: u64,
}

impl Model {
    /// What becomes of a packet of no connection: why it begins none, or the server that it goes on to without one.
    pub(super) fn let_in(
        &mut self,
        frame: &Frame<'_>,
        number: usize,
        flow: Flow,
        flags: u8,
    ) -> Result<Option<usize>, Fate> {
        let service = &self.services[number];
        let Flow { protocol, client, destination } = flow;
        let is_without = is_without(service, protocol);
        let may_begin = match protocol {
            Protocol::Udp => true,
            Protocol::Sctp => flags == sctp::INIT || service.sloppy && flags != sctp::ABORT,
            Protocol::Tcp => {
                let may_be_late = service.sloppy && !is_without && flags & RST == 0;
                may_begin(flow, flags) || may_be_late && !is_ftp_data(flow)
            }
        };
        let is_late = !may_begin;
        // What is known goes on wherever the address is, and of such a connection nobody knows that it is not known.
        if is_late && is_without {
            if is_ftp_data(flow) {
                return Err(Fate::Punt("no_connection"));
            }
            return self.go_on(frame, number, flow, flags).map(Some);
        }
        if !service.is_at(destination.ip()) {
            return Err(Fate::Punt("no_service"));
        }
        if is_ftp_data(flow) || is_late && !self.has_been_shut(number, protocol) {
            return Err(Fate::Punt("no_connection"));
        }
        if is_late && flags & RST != 0 {
            let server = self.without_connection(frame, number, flow);
            return server.map(Some).ok_or(Fate::Punt("no_connection"));
        }
        if self.is_martian(client.ip()) {
            return Err(Fate::Drop("martian"));
        }
        self.admit(number, flow, is_late).map_err(Fate::Drop)?;
        let is_shut = flags & SYN != 0 && self.meets_shut_gate(number, flow);
        if !is_shut {
            return Ok(None);
        }
        if self.services[number].mode == Mode::Fullnat {
            return Err(Fate::Drop("syn_flood"));
        }
        let server = self.without_connection(frame, number, flow);
        let is_full = |&server: &usize| {
            self.loads[number][server].is_full && self.services[number].servers[server].limits.is_some()
        };
        server.filter(|server| !is_full(server)).map(Some).ok_or(Fate::Drop("no_server"))
    }

    /// Whether a client may begin a connection with a service, or why not. Once it may, that counts.
    pub(super) fn admit(&mut self, number: usize, flow: Flow, is_late: bool) -> Result<(), &'static str> {
        let (service, client) = (&self.services[number], flow.client.ip());
        if service.sources.as_ref().is_some_and(|sources| !allows(sources, client)) {
            return Err("source_denied");
        }
        if is_late {
            return if self.may_be_late(number, flow) { Ok(()) } else { Err("syn_flood") };
        }
        let (rate, burst, of_source) = match service.limit {
            Some(Limit::Rate { rate, burst, of_source }) => (rate, burst, of_source),
            Some(Limit::Open(_) | Limit::HalfOpen { .. }) | None => return Ok(()),
        };
        let source = of_source.then_some(client);
        let is_its = |one: &&Passed| (one.service, one.source) == (number, source);
        let passed: Vec<u64> = self.passed.iter().filter(is_its).map(|one| one.at).collect();
        if tokens((rate, burst), &passed, self.now) < TICKS_PER_SECOND {
            return Err(if of_source { "source_limited" } else { "rate_limited" });
        }
        self.passed.push(Passed { service: number, source, at: self.now });
        Ok(())
    }

    /// Whether a client may have another connection with a service, once there is a server for it.
    pub(super) fn may_have_another(&self, number: usize, client: IpAddr) -> Result<(), Fate> {
        let Some(Limit::Open(most)) = self.services[number].limit else { return Ok(()) };
        let is_its = |one: &&Connection| one.service == number && one.flow.client.ip() == client;
        let open = self.connections.iter().filter(is_its).count();
        if open < most as usize { Ok(()) } else { Err(Fate::Drop("source_limited")) }
    }
}

/// What is left of a bucket, in quarters of a connection: it was full once, each connection took one, and each tick brings a quarter of
/// the rate. A tick's connections fit into it in any case.
fn tokens((rate, burst): (u32, u32), passed: &[u64], now: u64) -> u64 {
    let full = TICKS_PER_SECOND * u64::from(burst.max(rate.div_ceil(4)));
    let (mut left, mut last) = (full, now);
    for &at in passed {
        let ticks = at.saturating_sub(last);
        left = (left + ticks * u64::from(rate)).min(full) - TICKS_PER_SECOND;
        last = at;
    }
    if passed.is_empty() { full } else { (left + (now - last) * u64::from(rate)).min(full) }
}

/// The longest prefix decides; of two equal ones that which denies.
fn allows(sources: &Sources, client: IpAddr) -> bool {
    let longest = |list: &[(IpAddr, u8)]| {
        let of_client = |&&(address, length): &&(IpAddr, u8)| {
            address.is_ipv4() == client.is_ipv4() && network(client, length) == network(address, length)
        };
        list.iter().filter(of_client).map(|one| i32::from(one.1)).max().unwrap_or(-1)
    };
    let denied = longest(&sources.deny);
    match &sources.allow {
        Some(allow) => longest(allow) > denied,
        None => denied < 0,
    }
}
