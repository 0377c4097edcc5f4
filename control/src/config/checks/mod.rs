//! `[service.check]`: how the real servers of a service are checked.
//!
//! A service has one check (`check = { ... }` or `[service.check]`) or several (`[[service.check]]`), which then must all
//! pass, as with keepalived. What all kinds have in common is here; what a kind needs besides is a file of its own, with
//! a structure, the keys of its table, and a reader.

mod bytes;
mod command;
mod dns;
#[cfg(test)]
pub(crate) mod fixture;
mod grpc;
mod http;
mod pattern;
mod ping;
mod script;
mod smtp;
mod tls;
mod udp;
#[cfg(test)]
mod web_tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dataplane::service::Protocol;

use super::check::{narrow, one_of};
use super::raw::{Field, Section};
use super::value::{self, ADDRESS};

pub use command::Command;
pub use dns::{Dns, Transport, rcode_name};
pub use grpc::Grpc;
pub use http::{Http, Statuses};
pub use pattern::Pattern;
pub use ping::Ping;
pub use script::{Script, Step};
pub use smtp::Smtp;
pub(crate) use smtp::is_helo;
pub use tls::{Authorities, Tls, Trust};
pub use udp::Udp;

/// A health check.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// What is done.
    pub kind: CheckKind,
    /// Where it is done instead of at the real server's address.
    pub address: Option<IpAddr>,
    /// ... and instead of at its port.
    pub port: Option<u16>,
    /// From the start of one check to that of the next.
    pub interval: Duration,
    /// After which a check without an answer has failed.
    pub timeout: Duration,
    /// Successes in a row that bring a server back.
    pub rise: u32,
    /// Failures in a row that take a server out.
    pub fall: u32,
    /// First checks are spread over this time, or over the interval if that is shorter.
    pub jitter: Duration,
    /// What a server is before its first checks.
    pub start: Start,
}

/// What a server is before its first checks have said what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Start {
    /// It is used until `fall` checks have failed, as with keepalived: who starts does not wait.
    Up,
    /// It is not used until `rise` checks have passed (keepalived's `alpha`).
    Down,
}

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CheckKind {
    /// Opens a TCP connection and closes it.
    Tcp,
    /// Sends a datagram, and may require a reply.
    Udp(Arc<Udp>),
    /// Asks a name server.
    Dns(Arc<Dns>),
    /// Sends an ICMP echo request.
    Ping(Ping),
    /// Greets a mail server.
    Smtp(Arc<Smtp>),
    /// Has a dialogue over TCP.
    Script(Arc<Script>),
    /// Runs a program.
    Command(Arc<Command>),
    /// Asks for a page by HTTP.
    Http(Arc<Http>),
    /// Asks for a page by HTTP over TLS.
    Https(Arc<Http>, Tls),
    /// Makes a TLS handshake.
    Tls(Tls),
    /// Asks by gRPC's health protocol.
    Grpc(Arc<Grpc>),
}

impl Check {
    /// Where a real server is checked.
    pub fn target(&self, server: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.address.unwrap_or(server.ip()), self.port.unwrap_or(server.port()))
    }
}

impl CheckKind {
    /// Whether it needs a port. (A command may; it knows best.)
    fn asks_a_port(&self) -> bool {
        !matches!(self, CheckKind::Ping(_) | CheckKind::Command(_))
    }

    /// Its name, as the configuration has it.
    pub fn name(&self) -> &'static str {
        match self {
            CheckKind::Tcp => "tcp",
            CheckKind::Udp(_) => "udp",
            CheckKind::Dns(_) => "dns",
            CheckKind::Ping(_) => "ping",
            CheckKind::Smtp(_) => "smtp",
            CheckKind::Script(_) => "script",
            CheckKind::Command(_) => "command",
            CheckKind::Http(_) => "http",
            CheckKind::Https(..) => "https",
            CheckKind::Tls(_) => "tls",
            CheckKind::Grpc(_) => "grpc",
        }
    }
}

/// What all kinds understand.
const COMMON: [&str; 9] =
    ["kind", "address", "port", "interval", "timeout", "rise", "fall", "jitter", "start"];

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// The kinds by name: the keys of each besides the common ones, and how it is read.
const KINDS: &[Kind] = &[
    Kind { name: "tcp", keys: &[], read: |_| Some(CheckKind::Tcp) },
    Kind { name: "udp", keys: udp::KEYS, read: udp::read },
    Kind { name: "dns", keys: dns::KEYS, read: dns::read },
    Kind { name: "ping", keys: ping::KEYS, read: ping::read },
    Kind { name: "smtp", keys: smtp::KEYS, read: smtp::read },
    Kind { name: "script", keys: script::KEYS, read: script::read },
    Kind { name: "command", keys: command::KEYS, read: command::read },
    Kind { name: "http", keys: &http::KEYS, read: http::read },
    Kind { name: "https", keys: &http::KEYS_TLS, read: http::read_tls },
    Kind { name: "tls", keys: &tls::KEYS, read: |section| tls::read(section, None).map(CheckKind::Tls) },
    Kind { name: "grpc", keys: &grpc::KEYS, read: grpc::read },
];

struct Kind {
    name: &'static str,
    keys: &'static [&'static str],
    read: fn(&Section<'_>) -> Option<CheckKind>,
}

/// The names of the kinds, the default first.
pub(super) fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|kind| kind.name)
}

/// One table, or an array of them, for the servers of a service with this address and protocol.
pub(super) fn read(
    field: &Field<'_>,
    service: Option<SocketAddr>,
    protocol: Option<Protocol>,
) -> Option<Vec<Check>> {
    let is_of_all_ports = service.is_some_and(|service| service.port() == 0);
    let one = |field: &Field<'_>| {
        let check = check(&field.section()?)?;
        match check.port {
            None if is_of_all_ports && check.kind.asks_a_port() => field.error(format_args!(
                "the servers of a service of all ports have none that check {:?} could ask; expected port = 1 to 65535",
                check.kind.name()
            )),
            None if protocol == Some(Protocol::Sctp) && check.kind.asks_a_port() => field.error(format_args!(
                "check {:?} does not speak SCTP, and knows no other port; expected port = 1 to 65535, or kind = \"ping\" or \"command\"",
                check.kind.name()
            )),
            _ => Some(check),
        }
    };
    if field.is_array() { field.all(|element| one(&element)) } else { Some(vec![one(field)?]) }
}

fn check(section: &Section<'_>) -> Option<Check> {
    let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let named = |name: &str| KINDS.iter().find(|kind| kind.name == name);
    // Without a kind that is known, what keys it has is not known either.
    let kind = section.or("kind", &KINDS[0], |field| one_of("kind of check", &names, named, &field))?;
    let keys: Vec<&str> = COMMON.iter().chain(kind.keys).copied().collect();
    section.known(&keys);

    let address = section.optional("address", |field| {
        field.parse(ADDRESS, |typed| match value::endpoint(typed)? {
            (address, None) => Ok(address),
            (_, Some(_)) => Err(format!("{typed:?} has a port, which is a key of its own")),
        })
    });
    let port = section.optional("port", |field| narrow(field.integer(1..=65_535)));
    let interval = section.or("interval", 2 * SECOND, |field| field.duration(10 * MS..=HOUR));
    let timeout = section.or("timeout", SECOND, |field| field.duration(MS..=HOUR));
    let rise = section.or("rise", 2, |field| narrow(field.integer(1..=1000)));
    let fall = section.or("fall", 3, |field| narrow(field.integer(1..=1000)));
    let jitter = section.or("jitter", 200 * MS, |field| field.duration(Duration::ZERO..=HOUR));
    let states = |name: &str| match name {
        "up" => Some(Start::Up),
        "down" => Some(Start::Down),
        _ => None,
    };
    let start = section.or("start", Start::Up, |field| one_of("state", &["up", "down"], states, &field));
    let kind = (kind.read)(section);
    Some(Check {
        kind: kind?,
        address: address?,
        port: port?,
        interval: interval?,
        timeout: timeout?,
        rise: rise?,
        fall: fall?,
        jitter: jitter?,
        start: start?,
    })
}
