//! Connections that an operator wants forgotten.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use dataplane::snapshot::Snapshot;
use dataplane::table::{Fate, Slot, Table, Word};

use crate::ids::ServiceKey;

/// Which ones; all conditions that are given must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this service.
    pub service: Option<ServiceKey>,
    /// With this real server.
    pub server: Option<SocketAddr>,
    /// Of this client.
    pub client: Option<IpAddr>,
}

impl Filter {
    /// Whether a connection is one of them.
    pub fn matches(&self, service: ServiceKey, server: SocketAddr, client: IpAddr) -> bool {
        self.service.is_none_or(|wanted| wanted == service)
            && self.server.is_none_or(|wanted| wanted == server)
            && self.client.is_none_or(|wanted| wanted == client)
    }

    /// Whether a word in a slot of the table is one of them. Those of nobody in this snapshot are not; nor is one of IPv6 whose client is
    /// not known, if there is a condition on it.
    pub fn matches_word(&self, table: &Table, snapshot: &Snapshot, slot: Slot, word: Word) -> bool {
        snapshot.dest_of(word).is_some_and(|dest| {
            let service = ServiceKey {
                address: dest.virtual_address,
                protocol: snapshot.services[dest.service as usize].protocol,
            };
            match snapshot.client_of(table, slot, word) {
                Some(client) => self.matches(service, dest.address, client.ip()),
                None => self.client.is_none() && self.matches(service, dest.address, dest.address.ip()),
            }
        })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut part = |what: &str, value: Option<&dyn fmt::Display>| {
            let Some(value) = value else { return Ok(()) };
            write!(f, "{separator}{what} {value}")?;
            separator = ", ";
            Ok(())
        };
        part("service", self.service.as_ref().map(|service| service as _))?;
        part("server", self.server.as_ref().map(|server| server as _))?;
        part("client", self.client.as_ref().map(|client| client as _))?;
        if separator.is_empty() { f.write_str("all") } else { Ok(()) }
    }
}

/// Removes connections from some buckets, and says how many.
pub fn remove(
    table: &Table,
    snapshot: &Snapshot,
    buckets: Range<usize>,
    is_to_go: impl Fn(Slot, Word) -> bool,
) -> u64 {
    let mut removed = 0;
    let decide = |slot, word| if is_to_go(slot, word) { Fate::Remove } else { Fate::Keep };
    table.sweep(buckets, decide, |word| {
        removed += 1;
        snapshot.left(word);
    });
    removed
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn all_conditions_that_are_given_must_hold() {
        let service: ServiceKey = "tcp/192.0.2.10:80".parse().unwrap();
        let server: SocketAddr = "10.0.0.11:8080".parse().unwrap();
        let client = IpAddr::from([198, 51, 100, 7]);
        let all = Filter { service: Some(service), server: Some(server), client: Some(client) };
        assert!(Filter::default().matches(service, server, client));
        assert!(all.matches(service, server, client));
        let udp = "udp/192.0.2.10:80".parse().unwrap();
        assert!(!all.matches(udp, server, client));
        assert!(!all.matches(service, "10.0.0.11:8081".parse().unwrap(), client));
        assert!(!all.matches(service, server, IpAddr::from([198, 51, 100, 8])));
        let six: ServiceKey = "tcp/[2001:db8::10]:80".parse().unwrap();
        let filter = Filter { client: Some("2001:db8:2::7".parse().unwrap()), ..Filter::default() };
        let server = SocketAddr::from((Ipv6Addr::LOCALHOST, 8080));
        assert!(filter.matches(six, server, "2001:db8:2::7".parse().unwrap()));
        assert!(!filter.matches(six, server, client));
        let shown = "service tcp/192.0.2.10:80, server 10.0.0.11:8080, client 198.51.100.7";
        assert_eq!((all.to_string().as_str(), Filter::default().to_string().as_str()), (shown, "all"));
    }
}
