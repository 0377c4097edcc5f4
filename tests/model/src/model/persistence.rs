//! Where the clients of a persistent service come back to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Frame, Model, TICKS_PER_SECOND};

/// Where a client, or a network of them, comes back to.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) service: usize,
    /// Its first address.
    pub(super) network: IpAddr,
    pub(super) server: usize,
    /// Whether a connection that it is of has been established.
    pub(super) is_confirmed: bool,
    /// It lives until then in any case,
    pub(super) sure_until: u64,
    /// and no longer than until then: a sweep holds it while one of its connections lives, and a minute more.
    pub(super) maybe_until: u64,
}

impl Model {
    /// The server that a client comes back to.
    pub(super) fn comes_back(&self, frame: &Frame<'_>, number: usize, client: IpAddr) -> Option<usize> {
        let service = &self.services[number];
        let persistence = service.persistence?;
        let network = network(client, persistence.prefix);
        let template = self.templates.iter().find(|one| one.service == number && one.network == network)?;
        let server = &service.servers[template.server];
        let is_quiescent = server.weight == 0 && persistence.expire_quiescent;
        let may = server.up && server.leaving.is_none() && !is_quiescent;
        (self.is_there(frame, template) && may).then_some(template.server)
    }

    /// Whether a template still lives.
    pub(super) fn is_there(&self, frame: &Frame<'_>, template: &Template) -> bool {
        let &Template { service, network, server, .. } = template;
        self.now <= template.sure_until
            || self.now <= template.maybe_until
                && frame.observed.templates.contains(&(service, network, server))
    }

    /// A client of a persistent service has a connection with this server.
    pub(super) fn note_template(&mut self, frame: &Frame<'_>, number: usize, client: IpAddr, server: usize) {
        let Some(persistence) = self.services[number].persistence else { return };
        let network = network(client, persistence.prefix);
        let ticks = u64::from(persistence.seconds) * TICKS_PER_SECOND;
        let old = self.templates.iter().position(|one| one.service == number && one.network == network);
        let old = old.map(|index| self.templates.remove(index)).filter(|old| old.server == server);
        let is_confirmed = old.as_ref().is_some_and(|old| old.is_confirmed && self.is_there(frame, old));
        let sure_until = self.now + ticks;
        // Of the last second it may not have been noted.
        let least = sure_until + 2 * TICKS_PER_SECOND;
        let maybe_until = old.map_or(least, |old| old.maybe_until.max(least));
        self.templates.push(Template {
            service: number,
            network,
            server,
            is_confirmed,
            sure_until,
            maybe_until,
        });
    }
}

/// The first address of a client's network.
pub(super) fn network(client: IpAddr, prefix: u8) -> IpAddr {
    match client {
        IpAddr::V4(four) => {
            Ipv4Addr::from_bits(four.to_bits() & !(u32::MAX.checked_shr(prefix.into()).unwrap_or(0))).into()
        }
        IpAddr::V6(six) => {
            Ipv6Addr::from_bits(six.to_bits() & !(u128::MAX.checked_shr(prefix.into()).unwrap_or(0))).into()
        }
    }
}
