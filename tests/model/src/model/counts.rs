//! What an operator sees: counters and listings.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::counters::Traffic;

use super::connections::{age, grain, is_over, timeout};
use super::{Mapped, Model};
use crate::subject::{Listed, Seen};

/// What the model knows of a server beside its configuration.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub(super) traffic: Traffic,
    pub(super) is_full: bool,
}

impl Model {
    pub(super) fn count(&mut self, service: usize, server: usize, direction: usize, length: usize) {
        for traffic in [&mut self.total, &mut self.loads[service][server].traffic] {
            let (packets, bytes) = match direction {
                0 => (&mut traffic.packets_in, &mut traffic.bytes_in),
                _ => (&mut traffic.packets_out, &mut traffic.bytes_out),
            };
            *packets += 1;
            *bytes += length as u64;
        }
    }

    /// A connection has begun.
    pub(super) fn count_connection(&mut self, service: usize, server: usize) {
        self.total.connections += 1;
        self.loads[service][server].traffic.connections += 1;
    }

    /// What an operator sees, who sees these templates and mappings.
    pub fn seen(&self, now: u64, seen: &BTreeSet<(usize, IpAddr, usize)>, mapped: &[Mapped]) -> Seen {
        let alive = self.connections.iter().filter(|one| !is_over(one, &self.services[one.service], now));
        let mut connections: Vec<_> = alive
            .map(|one| Listed {
                flow: one.flow,
                service: one.service,
                server: one.server,
                state: one.state.name(),
                local: one.local,
                idle: age(one.seen, now, grain(timeout(&self.services[one.service], one.state))),
            })
            .collect();
        connections.sort();
        let servers = self.services.iter().enumerate().flat_map(|(number, service)| {
            (0..service.servers.len()).map(move |server| {
                let (active, inactive) = self.load_of(number, server);
                (self.loads[number][server].traffic, [active, inactive])
            })
        });
        // Those that may be there or not are there if they are seen.
        let templates = self.templates.iter().map(|one| (one, (one.service, one.network, one.server)));
        let templates = templates
            .filter(|(one, what)| now <= one.sure_until || now <= one.maybe_until && seen.contains(what))
            .map(|(_, what)| what)
            .collect();
        Seen {
            connections,
            templates,
            servers: servers.collect(),
            total: self.total,
            routed: self.routed,
            unchanged_replies: self.unchanged_replies,
            mappings: self.mappings_seen(now, mapped),
        }
    }
}
