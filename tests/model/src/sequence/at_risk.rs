//! Services of which connections have an entry only at risk.

use dataplane::service::{Protocol, Scheduler};
use proptest::prelude::*;

use crate::roster;
use crate::world::Service;

/// Whether a service is to be one, and by which scheduler.
pub(super) fn at_risk() -> impl Strategy<Value = Option<Scheduler>> {
    let scheduler = prop_oneof![8 => Just(Scheduler::Rendezvous), 1 => Just(Scheduler::Maglev)];
    prop::option::weighted(0.35, scheduler)
}

/// The service as it is wished, if it can be.
pub(super) fn with_tracking(mut service: Service, wish: Option<Scheduler>) -> Service {
    let can = service.mode.is_one_way() && !service.is_marked && service.faces[0].protocol == Protocol::Tcp;
    if let Some(scheduler) = wish.filter(|_| can) {
        (service.scheduler, service.flags) = (scheduler, Vec::new());
        (service.persistence, service.limit, service.is_at_risk) = (None, None, true);
        service.servers.iter_mut().for_each(|server| server.limits = None);
        roster::settle(&mut service, 0);
    }
    service
}
