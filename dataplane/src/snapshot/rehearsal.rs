//! A snapshot to try a packet on: the same configuration, nothing of which the workers would notice a change.

use std::sync::Arc;

use super::{ByHash, Dest, Pool, Removed, Service, ServiceIndex, Snapshot};
use crate::admission::Limiter;
use crate::counters::TrafficCounters;
use crate::scheduler::Picker;

impl Snapshot {
    /// A copy for one worker whose gauges, counters and round-robin positions are its own; gauges and positions begin
    /// as they are now. A packet needs one scheduler at the most, so only that of one service is copied: the tables of mh of
    /// a thousand services would be 8 MB.
    pub fn rehearsal(&self, service: Option<ServiceIndex>) -> Snapshot {
        let scheduler = service.map(|service| self.home_of(service).0);
        let traffic: Arc<[TrafficCounters]> = Arc::new([TrafficCounters::default()]);
        let dest = |dest: &Dest| Dest {
            traffic: traffic.clone(),
            gauge: Arc::new(dest.gauge.copy()),
            ..dest.clone()
        };
        let mut copy = Snapshot {
            generation: self.generation,
            ports: self.ports.clone(),
            services: Vec::with_capacity(self.services.len()),
            fibs: self.fibs.clone(),
            sources: self.sources.clone(),
            routing: self.routing,
            snats: self.snats.rehearsal(),
            has_ipsec: self.has_ipsec,
            dests: self.dests.iter().map(|known| known.as_ref().map(dest)).collect(),
            transforms: Vec::new(),
            removed: self.removed.keys().map(|&id| (id, Removed::default())).collect(),
            four: self.four.clone(),
            six: self.six.clone(),
            endpoints: self.endpoints,
            locals: self.locals.clone(),
            answering: self.answering.clone(),
            helped: self.helped.clone(),
        };
        for (original, index) in self.services.iter().zip(0..) {
            let picker = if scheduler == Some(index) {
                original.picker.rehearsal(|id| copy.dest(id).map(|dest| dest.gauge.clone()))
            } else {
                Picker::nobody()
            };
            let Service {
                protocol,
                mode,
                live,
                is_open,
                sloppy,
                resets,
                one_packet,
                keeps_all,
                helper,
                is_limited,
                ends_here,
                persistent,
                mark,
                waits,
                beside,
                crossing,
                timeouts,
                ref home,
                ref ports,
                ref incoming,
                ref sources,
                ref limiter,
                ref quic,
                ref pool,
                ref by_hash,
                ref at_risk,
                picker: _,
            } = *original;
            let pool = pool.clone().map(|pool| Pool { is_rehearsal: true, ..pool });
            let by_hash = by_hash.as_ref().map(|by_hash| match by_hash {
                ByHash::Scheduler => ByHash::Scheduler,
                ByHash::Own(picker) => ByHash::Own(picker.rehearsal(|_| None)),
            });
            copy.services.push(Service {
                ports: ports.clone(),
                incoming: incoming.clone(),
                protocol,
                mode,
                live,
                is_open,
                picker,
                by_hash,
                sloppy,
                resets,
                one_packet,
                at_risk: at_risk.clone(),
                keeps_all,
                helper,
                sources: sources.clone(),
                limiter: limiter.as_ref().filter(|_| service == Some(index)).map(Limiter::rehearsal),
                quic: quic.clone(),
                is_limited,
                ends_here,
                persistent,
                mark,
                waits,
                pool,
                home: home.clone(),
                beside,
                crossing,
                timeouts,
            });
        }
        copy.transforms = copy.transforms();
        copy
    }
}
