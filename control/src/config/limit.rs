//! `[service.limit]`: how many connections may begin, in all and from each source.

use std::net::SocketAddr;

use dataplane::admission::{Limit, Rate};

use super::check::narrow;
use super::raw::{Field, Section};
use dataplane::service::Protocol;

const KEYS: [&str; 8] = [
    "rate",
    "burst",
    "source_rate",
    "source_burst",
    "source_connections",
    "source_prefix",
    "half_open_rate",
    "half_open_burst",
];

/// The table `limit` of a service of this protocol at this address, which remembers its connections or not.
pub(super) fn limit(
    section: &Section<'_>,
    service: Option<SocketAddr>,
    protocol: Option<Protocol>,
    one_packet: Option<bool>,
) -> Option<Option<Limit>> {
    section.optional("limit", |field| read(&field.section()?, service, protocol?, one_packet?))
}

fn read(
    section: &Section<'_>,
    service: Option<SocketAddr>,
    protocol: Protocol,
    one_packet: bool,
) -> Option<Limit> {
    section.known(&KEYS);
    let rate = rate(section, "rate", "burst");
    let source_rate = self::rate(section, "source_rate", "source_burst");
    let half_open = self::rate(section, "half_open_rate", "half_open_burst");
    if protocol != Protocol::Tcp
        && let Some(field) = section.get("half_open_rate")
    {
        field.error::<()>("has no handshakes to count; expected it with protocol = \"tcp\" only");
        return None;
    }
    let connections = section.optional("source_connections", |field| match one_packet {
        true => field.error("there are none with one_packet; expected source_rate"),
        false => narrow(field.integer(1..=u64::from(u32::MAX >> 1))),
    });
    let longest = if service.is_some_and(|service| service.is_ipv4()) { 32 } else { 128 };
    let prefix = section.or("source_prefix", longest, |field| narrow(field.integer(1..=u64::from(longest))));
    let (rate, source_rate, half_open) = (rate?, source_rate?, half_open?);
    let (source_connections, source_prefix) = (connections?, prefix?);
    let by_source = source_rate.is_some() || source_connections.is_some();
    if rate.is_none() && half_open.is_none() && !by_source {
        section.error("limits nothing; expected rate, source_rate, source_connections or half_open_rate");
        return None;
    }
    match section.get("source_prefix") {
        Some(field) if !by_source => {
            field.error("has nothing to go with; expected source_rate or source_connections as well")
        }
        // What the table knows of an IPv6 client is a hash of its whole address.
        Some(field) if source_connections.is_some() && longest == 128 && source_prefix < longest => field
            .error(
                "connections of IPv6 are counted for single addresses; expected 128, or source_rate alone",
            ),
        _ => Some(Limit { rate, source_rate, source_connections, half_open, source_prefix }),
    }
}

/// A rate and its burst, which is a second's connections by default.
fn rate(section: &Section<'_>, key: &str, burst_key: &str) -> Option<Option<Rate>> {
    let number = |field: Field<'_>| narrow::<u32>(field.integer(1..=u64::from(Rate::MOST)));
    let per_second = section.optional(key, number);
    let burst = section.optional(burst_key, number);
    match (per_second?, section.get(burst_key)) {
        (None, Some(field)) => field.error(format_args!("has nothing to go with; expected {key} as well")),
        (per_second, _) => {
            let burst = burst?;
            Some(per_second.map(|per_second| Rate::new(per_second, burst.unwrap_or(per_second))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::with;

    fn read(address: &str, protocol: &str, table: &str) -> Result<Limit, String> {
        let service =
            format!("[[service]]\naddress = '{address}'\nmode = 'nat'\n{protocol}\nlimit = {table}");
        let config = with(&service)?;
        Ok(config.services[0].limit.unwrap())
    }

    #[test]
    fn defaults() {
        let four = |table| read("192.0.2.10:80", "", table);
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        let all = Limit {
            rate: rate(1000, 1000),
            source_rate: None,
            source_connections: None,
            half_open: None,
            source_prefix: 32,
        };
        assert_eq!(four("{ rate = 1000 }"), Ok(all));
        let source = Limit {
            rate: None,
            source_rate: rate(10, 3),
            source_connections: Some(100),
            source_prefix: 24,
            ..all
        };
        let half_open = Limit { rate: None, half_open: rate(500, 2000), ..all };
        assert_eq!(four("{ half_open_rate = 500, half_open_burst = 2000 }"), Ok(half_open));
        let text = "{ source_rate = 10, source_burst = 1, source_connections = 100, source_prefix = 24 }";
        assert_eq!(four(text), Ok(source), "a burst is what begins in a tick at the least");
        let six = read("[2001:db8::10]:80", "", "{ source_rate = 10, source_prefix = 64 }").unwrap();
        assert_eq!(six.source_prefix, 64);
        assert_eq!(read("[2001:db8::10]:80", "", "{ source_connections = 9 }").unwrap().source_prefix, 128);
    }

    #[test]
    fn what_contradicts_itself() {
        for (address, protocol, table, expected) in [
            (
                "192.0.2.10:80",
                "",
                "{}",
                "limit: limits nothing; expected rate, source_rate, source_connections or half_open_rate",
            ),
            (
                "192.0.2.10:80",
                "",
                "{ rate = 0 }",
                "limit.rate: 0 is out of range; expected an integer from 1 to",
            ),
            (
                "192.0.2.10:80",
                "",
                "{ burst = 9 }",
                "limit.burst: has nothing to go with; expected rate as well",
            ),
            (
                "192.0.2.10:80",
                "",
                "{ rate = 9, source_prefix = 24 }",
                "limit.source_prefix: has nothing to go with",
            ),
            (
                "192.0.2.10:80",
                "",
                "{ source_rate = 9, source_prefix = 33 }",
                "expected an integer from 1 to 32",
            ),
            (
                "[2001:db8::10]:80",
                "",
                "{ source_connections = 9, source_prefix = 64 }",
                "limit.source_prefix: connections of IPv6 are counted for single addresses; expected 128",
            ),
            (
                "192.0.2.10:53",
                "protocol = 'udp'",
                "{ half_open_rate = 9 }",
                "limit.half_open_rate: has no handshakes to count; expected it with protocol = \"tcp\" only",
            ),
            (
                "192.0.2.10:53",
                "protocol = 'udp'\none_packet = true",
                "{ source_connections = 9 }",
                "limit.source_connections: there are none with one_packet; expected source_rate",
            ),
        ] {
            let error = read(address, protocol, table).unwrap_err();
            assert!(error.contains(expected), "{table}: {error}");
        }
    }
}
