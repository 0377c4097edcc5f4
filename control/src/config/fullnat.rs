//! `[service.fullnat]`: the local addresses and ports as which the real servers of a service whose mode is `fullnat` see its clients.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use dataplane::service::{Mode, Protocol};

use super::compare::repeated;
use super::raw::{Field, Section};
use super::value::{self, ADDRESS_RANGE, PORT_RANGE};

/// Addresses of a pool, at the most: sixteen million connections, and half a gigabyte of memory if all ports are in use.
const MOST: usize = 255;

/// What no system gives away by itself (RFC 6335): clients come from ports from here on.
const PORTS: RangeInclusive<u16> = 1024..=65535;

const LOCAL: &str =
    "local addresses of this router, at the most 255, e.g. [\"10.0.0.100\", \"10.0.0.102-10.0.0.105\"]";

/// As whom real servers see the clients of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fullnat {
    /// Addresses of the router.
    pub local: Vec<IpAddr>,
    /// The ports of each of them.
    pub ports: RangeInclusive<u16>,
    /// Whether servers hear by the PROXY protocol who their clients are.
    pub proxy_protocol: bool,
}

/// The pool of a service with this mode and address; of another mode none.
pub(super) fn read(
    service: &Section<'_>,
    mode: Option<Mode>,
    address: Option<SocketAddr>,
    protocol: Option<Protocol>,
) -> Option<Option<Fullnat>> {
    match (service.get("fullnat"), mode) {
        (Some(field), Some(Mode::Nat | Mode::Dr | Mode::Tunnel)) => {
            field.error("the mode is another one; expected mode = \"fullnat\", or no such table")
        }
        (None, Some(Mode::Fullnat)) => {
            service.require("fullnat", "a table [service.fullnat] with local = [...]")?;
            None
        }
        (None, _) => Some(None),
        (Some(field), _) => pool(&field.section()?, address?.ip(), protocol).map(Some),
    }
}

fn pool(section: &Section<'_>, service: IpAddr, protocol: Option<Protocol>) -> Option<Fullnat> {
    section.known(&["local", "ports", "proxy_protocol"]);
    let local = section.require("local", LOCAL).and_then(|field| local(&field, service));
    let ports = section.or("ports", PORTS, |field| field.parse(PORT_RANGE, value::ports));
    let proxy_protocol = section.or("proxy_protocol", false, |field| match field.boolean()? {
        true if protocol.is_some_and(|protocol| protocol != Protocol::Tcp) => field
            .error("its packets are no stream with a beginning; expected it with protocol = \"tcp\" only"),
        proxy_protocol => Some(proxy_protocol),
    });
    Some(Fullnat { local: local?, ports: ports?, proxy_protocol: proxy_protocol? })
}

fn local(field: &Field<'_>, service: IpAddr) -> Option<Vec<IpAddr>> {
    let ranges = field.all(|element| {
        let range = element.parse(ADDRESS_RANGE, |typed| value::addresses(typed, MOST + 1))?;
        match value::same_family(range[0], service, "the service") {
            Ok(()) => Some(range),
            Err(wrong) => element.error(wrong),
        }
    })?;
    let all = ranges.concat();
    if let Some((index, _)) = repeated(&all).first() {
        return field.error(format_args!("{} stands there twice; expected it once", all[*index]));
    }
    match all.len() {
        0 => field.error(format_args!("is empty; expected {LOCAL}")),
        1..=MOST => Some(all),
        many => field.error(format_args!("has {many} addresses; expected {LOCAL}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::with;

    fn read(fullnat: &str, mode: &str) -> Result<Option<Fullnat>, String> {
        let service = format!("[[service]]\naddress = '192.0.2.10:80'\nmode = {mode:?}\n{fullnat}");
        let config = with(&service)?;
        Ok(config.services[0].fullnat.clone())
    }

    #[test]
    fn addresses_and_ports() {
        let local = |numbers: &[u8]| numbers.iter().map(|&n| IpAddr::from([10, 0, 0, n])).collect();
        assert_eq!(
            read("fullnat = { local = [\"10.0.0.100\", \"10.0.0.102-10.0.0.104\"] }", "fullnat"),
            Ok(Some(Fullnat {
                local: local(&[100, 102, 103, 104]),
                ports: 1024..=65535,
                proxy_protocol: false
            }))
        );
        assert_eq!(
            read(
                "[service.fullnat]\nlocal = [\"10.0.0.100\"]\nports = \"2000-2999\"\nproxy_protocol = true",
                "fullnat"
            ),
            Ok(Some(Fullnat { local: local(&[100]), ports: 2000..=2999, proxy_protocol: true }))
        );
        assert_eq!(read("", "nat"), Ok(None));
    }

    #[test]
    fn what_is_refused() {
        for (fullnat, mode, expected) in [
            ("", "fullnat", "missing; expected a table [service.fullnat] with local"),
            ("fullnat = { local = [\"10.0.0.100\"] }", "nat", "expected mode = \"fullnat\""),
            ("fullnat = {}", "fullnat", "missing; expected local addresses of this router"),
            ("fullnat = { local = [] }", "fullnat", "is empty"),
            ("fullnat = { local = [\"10.0.1.0-10.0.2.255\"] }", "fullnat", "has 256 addresses"),
            ("fullnat = { local = [\"10.0.0.9-10.0.0.8\"] }", "fullnat", "ends before it begins"),
            (
                "fullnat = { local = [\"10.0.0.9\", \"10.0.0.8-10.0.0.10\"] }",
                "fullnat",
                "10.0.0.9 stands there twice",
            ),
            ("fullnat = { local = [\"2001:db8::1\"] }", "fullnat", "expected an IPv4 address"),
            ("fullnat = { local = [\"10.0.0.1\"] }", "fullnat", "10.0.0.1 is an address of this router"),
            ("fullnat = { local = [\"192.0.2.10\"] }", "fullnat", "192.0.2.10 is a virtual address"),
            ("fullnat = { local = [\"10.0.0.100\"], ports = \"0-9\" }", "fullnat", "\"0\" is not a port"),
            ("fullnat = { local = [\"10.0.0.100\"], ports = \"9-8\" }", "fullnat", "ends before it begins"),
            (
                "protocol = \"udp\"\nfullnat = { local = [\"10.0.0.100\"], proxy_protocol = true }",
                "fullnat",
                "packets are no stream",
            ),
            (
                "protocol = \"udp\"\none_packet = true\nfullnat = { local = [\"10.0.0.100\"] }",
                "fullnat",
                "nobody would remember",
            ),
            (
                "fullnat = { local = [\"10.0.0.11\"] }\n[[service.server]]\naddress = \"10.0.0.11:80\"",
                "fullnat",
                "10.0.0.11 is a local address",
            ),
        ] {
            let error = read(fullnat, mode).unwrap_err();
            assert!(error.contains(expected), "{fullnat}: {error}");
        }
    }
}
