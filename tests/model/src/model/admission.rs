//! Who may begin a connection, and how many.

use std::net::IpAddr;

use super::connections::Connection;
use super::persistence::network;
use super::{Fate, Model, TICKS_PER_SECOND};
use crate::world::{Limit, Sources};

/// A connection that has begun and counts, by a service or by one of its sources.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passed {
    service: usize,
    source: Option<IpAddr>,
    at: u64,
}

impl Model {
    /// Whether a client may begin a connection with a service, or why not. Once it may, that counts.
    pub(super) fn admit(&mut self, number: usize, client: IpAddr) -> Result<(), &'static str> {
        let service = &self.services[number];
        if service.sources.as_ref().is_some_and(|sources| !allows(sources, client)) {
            return Err("source_denied");
        }
        let (rate, burst, of_source) = match service.limit {
            Some(Limit::Rate { rate, burst, of_source }) => (rate, burst, of_source),
            Some(Limit::Open(_)) | None => return Ok(()),
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
