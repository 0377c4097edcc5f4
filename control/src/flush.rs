//! Connections that an operator wants forgotten.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use dataplane::snapshot::{Snapshot, Subscriber};
use dataplane::table::{Fate, Slot, Table, Word};

use crate::ids::ServiceKey;
use crate::sync::identity;

/// Buckets that are flushed at a time.
const CHUNK: usize = 4096;

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
            let service = identity(snapshot, dest).service;
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

/// Removes connections from the whole table, and says how many. Each is judged, and counted as gone, by the snapshot of that moment: what
/// workers count now they may have counted elsewhere when this began.
pub fn remove_all(
    table: &Table,
    mut snapshots: Subscriber,
    is_to_go: impl Fn(&Snapshot, Slot, Word) -> bool,
) -> u64 {
    let starts = (0..table.buckets()).step_by(CHUNK);
    let chunks = starts.map(|start| start..(start + CHUNK).min(table.buckets()));
    let remove = |buckets| {
        let snapshot = snapshots.latest();
        remove(table, snapshot, buckets, |slot, word| is_to_go(snapshot, slot, word))
    };
    chunks.map(remove).sum()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::net::Ipv6Addr;

    use dataplane::clock::Tick;
    use dataplane::fib::Fibs;
    use dataplane::service::{Protocol, State};
    use dataplane::snapshot::Publisher;
    use dataplane::table::{Client, DestId, HashKey, Inserted, Judge, Worth};

    use super::*;

    /// Nobody has a place yet.
    struct Newcomers;

    impl Judge for Newcomers {
        fn is_mine(&self, _: Word) -> bool {
            false
        }

        fn worth(&self, _: Word) -> Worth {
            Worth::Keep
        }

        fn removed(&self, _: Word) {}
    }

    #[test]
    fn what_is_published_under_way_counts_for_the_rest() {
        let table = Table::new(1 << 16, HashKey { blind: 1, factor: 3 });
        assert!(table.buckets() > CHUNK);
        let id = DestId::new(1).unwrap();
        for port in 1..=100 {
            let client = Client::new(7, port);
            let word = Word::new(client, id).with_state(State::Established).seen(Tick(1000), false);
            let hash = table.hash(client, Protocol::Tcp);
            assert!(matches!(table.insert(hash, word, 0, &Newcomers), Inserted::New(..)));
        }
        let snapshot = |generation| Snapshot::new(generation, Vec::new(), &[], [], Fibs::default());
        let publisher = RefCell::new(Publisher::new(snapshot(1)));
        let next = RefCell::new(Some(snapshot(2)));
        let seen = RefCell::new(Vec::new());
        let subscriber = publisher.borrow().subscribe();
        let removed = remove_all(&table, subscriber, |snapshot, _, _| {
            if let Some(next) = next.take() {
                publisher.borrow_mut().publish(next);
            }
            seen.borrow_mut().push(snapshot.generation);
            true
        });
        let seen = seen.into_inner();
        assert_eq!((removed, seen.len(), seen.first(), seen.last()), (100, 100, Some(&1), Some(&2)));
    }

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
