//! What has become of a packet, in a line: as text, or as JSON.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;

use dataplane::counters::Punt;
use dataplane::engine::{Frame, Side, Verdict};
use dataplane::service::{Protocol, State};
use dataplane::wire::ethernet::{self, Ethernet};
use dataplane::wire::made;
use dataplane::wire::transport::Transport;
use serde::{Serialize, Serializer};

use super::family::Family;
use super::fields::{Change, changes};
use super::router::{Fate, Router};
use crate::explain::why;
use crate::ids::ServiceKey;

/// What has become of a packet.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// Its number among all that came in, from 1.
    pub number: u64,
    /// When it came in: seconds since 1970, with nine decimals.
    pub time: Time,
    /// The port that it came in on.
    pub port: &'a str,
    /// How many bytes it had.
    pub length: usize,
    /// What it is.
    #[serde(flatten)]
    pub headers: Headers,
    /// `forward`, `route` (of no service), `punt` (to Linux), `drop`; `hold`, for a fragment that waits and has another line later; or `skip`, if not all of it was
    /// captured.
    pub verdict: &'static str,
    /// The port that it goes out of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<&'a str>,
    /// Why it is punted or dropped, by the name of the counter; or how much of it was captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// `in`, to a real server, or `out`, to a client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<&'static str>,
    /// The service that it is for, or its connection's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceKey>,
    /// The real server of its connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<SocketAddr>,
    /// Its connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// Why this server, if the scheduler was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What was changed in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rewrite: Vec<Change>,
}

/// A moment, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Time(pub u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

impl Serialize for Time {
    /// As text, since a number of JSON would lose the nanoseconds.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a packet is.
#[derive(Debug, Default, Serialize)]
pub struct Headers {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or another name of what is in the frame or the packet.
    pub protocol: Option<Cow<'static, str>>,
    /// From whom; with a port, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// To whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// TCP flags by their letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
}

/// The connection of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// Its state before the packet; none, if the packet begins it.
    #[serde(serialize_with = "state")]
    pub before: Option<State>,
    /// Its state after it; none, if it is over.
    #[serde(serialize_with = "state")]
    pub after: Option<State>,
}

impl Headers {
    /// Of a frame, before it is rewritten.
    pub fn of(frame: &[u8]) -> Headers {
        let Some(ethernet) = Ethernet::parse(frame) else { return Headers::default() };
        let name = match ethernet.ethertype {
            ethernet::IPV4 => return Headers::of_ip::<u32>(&frame[ethernet::HEADER..]),
            ethernet::IPV6 => return Headers::of_ip::<u128>(&frame[ethernet::HEADER..]),
            ethernet::VLAN | ethernet::SERVICE_VLAN => "vlan".into(),
            0x0806 => "arp".into(),
            other => format!("ethertype {other:#06x}").into(),
        };
        Headers { protocol: Some(name), ..Headers::default() }
    }

    fn of_ip<A: Family>(packet: &[u8]) -> Headers {
        let Some(ip) = A::parse(packet) else {
            return Headers { protocol: Some(A::IP.into()), ..Headers::default() };
        };
        let length = usize::from(ip.total_length) - ip.header_length;
        let protocol = Protocol::from_number(ip.protocol);
        let transport = protocol
            .filter(|_| ip.fragment.is_none())
            .and_then(|protocol| Transport::parse(protocol, &packet[ip.header_length..], length));
        let name = match (protocol, ip.protocol) {
            (Some(protocol), _) => protocol.name().into(),
            (None, number) if number == A::ICMP => A::ICMP_NAME.into(),
            (None, other) => format!("protocol {other}").into(),
        };
        let (source, destination) = (ip.source.ip(), ip.destination.ip());
        match transport {
            Some(transport) => Headers {
                protocol: Some(name),
                source: Some(SocketAddr::new(source, transport.source).to_string()),
                destination: Some(SocketAddr::new(destination, transport.destination).to_string()),
                flags: (protocol == Some(Protocol::Tcp)).then(|| made::letters(transport.flags)),
            },
            None => Headers {
                protocol: Some(name),
                source: Some(source.to_string()),
                destination: Some(destination.to_string()),
                flags: None,
            },
        }
    }
}

impl<'a> Line<'a> {
    /// Of a packet whose fate is not known.
    pub fn of(number: u64, time: Time, port: &'a str, headers: Headers, length: usize) -> Line<'a> {
        Line {
            number,
            time,
            port,
            length,
            headers,
            verdict: "skip",
            output: None,
            reason: None,
            direction: None,
            service: None,
            server: None,
            connection: None,
            why: None,
            rewrite: Vec::new(),
        }
    }

    /// Of a packet of which only so many bytes were captured.
    pub fn skipped(number: u64, time: Time, port: &'a str, length: usize, captured: usize) -> Line<'a> {
        let reason = Some(format!("{captured} of its {length} bytes were captured").into());
        Line { reason, ..Line::of(number, time, port, Headers::default(), length) }
    }

    /// Fills in what has become of a packet.
    pub fn tell<F: Frame>(
        self,
        router: &Router<F>,
        ports: &'a [String],
        fate: &Fate,
        before: &[u8],
        after: &[u8],
    ) -> Line<'a> {
        let Fate { verdict, side, before: old, after: new, reason } = fate;
        let (name, output, why_not) = match *verdict {
            Verdict::Forward(port) => ("forward", ports.get(usize::from(port)).map(String::as_str), None),
            Verdict::Route(port) => ("route", ports.get(usize::from(port)).map(String::as_str), None),
            Verdict::Punt(punt) => ("punt", None, Some(punt.name())),
            Verdict::Drop(drop) => ("drop", None, Some(drop.name())),
            Verdict::Hold => ("hold", None, None),
        };
        let server = new.or(*old).and_then(|connection| router.server(connection.dest));
        let service = match *side {
            Some(Side::Service(index)) => router.service(index),
            _ => server.map(|(service, _)| service),
        };
        let address_of = |id| router.server(id).map(|(_, address)| address);
        let why = service.zip(reason.as_ref()).map(|(service, reason)| {
            why(service, reason, new.and_then(|connection| address_of(connection.dest)), address_of)
        });
        // What was there before it was begun anew was another one.
        let is_new = reason.is_some() && new.is_some();
        let is_rewritten = matches!(
            verdict,
            Verdict::Forward(_) | Verdict::Route(_) | Verdict::Punt(Punt::Unresolved | Punt::ToFragment)
        );
        Line {
            verdict: name,
            output,
            reason: why_not.map(Cow::Borrowed),
            direction: side.map(|side| if matches!(side, Side::Service(_)) { "in" } else { "out" }),
            service: service.map(ServiceKey::of),
            server: server.map(|(_, address)| address),
            connection: (old.is_some() || new.is_some()).then(|| Connection {
                before: old.filter(|_| !is_new).map(|connection| connection.state),
                after: new.map(|connection| connection.state),
            }),
            why,
            rewrite: if is_rewritten { changes(before, after) } else { Vec::new() },
            ..self
        }
    }

    /// Writes it for people, with seconds since the first packet as time.
    pub fn text(&self, out: &mut impl Write, since: Time) -> io::Result<()> {
        let Line { number, port, length, headers, verdict, .. } = self;
        write!(out, "{number} {since} {port}: ")?;
        let Headers { protocol, source, destination, flags } = headers;
        if let Some(protocol) = protocol {
            write!(out, "{protocol} ")?;
        }
        if let (Some(source), Some(destination)) = (source, destination) {
            write!(out, "{source} > {destination} ")?;
        }
        if let Some(flags) = flags {
            write!(out, "[{flags}] ")?;
        }
        write!(out, "{length} bytes; {verdict}")?;
        match (self.output, &self.reason) {
            (Some(output), _) => write!(out, ", out of {output}")?,
            (None, Some(reason)) => write!(out, ", {reason}")?,
            (None, None) => {}
        }
        if let Some(service) = &self.service {
            write!(out, "; {service}")?;
            match (self.direction, self.server) {
                (Some("in"), Some(server)) => write!(out, " to {server}")?,
                (_, Some(server)) => write!(out, " from {server}")?,
                (_, None) => {}
            }
        }
        match self.connection {
            Some(Connection { before: None, after: Some(after) }) => write!(out, "; new, {after}")?,
            Some(Connection { before: Some(before), after: Some(after) }) if before == after => {
                write!(out, "; {after}")?;
            }
            Some(Connection { before: Some(before), after: Some(after) }) => {
                write!(out, "; {before} -> {after}")?
            }
            Some(Connection { before: Some(before), after: None }) => write!(out, "; {before} -> gone")?,
            Some(Connection { before: None, after: None }) | None => {}
        }
        if let Some(why) = &self.why {
            write!(out, "; {why}")?;
        }
        for (index, Change { field, from, to, .. }) in self.rewrite.iter().enumerate() {
            write!(out, "{}{field} {from} -> {to}", if index == 0 { "; " } else { ", " })?;
        }
        writeln!(out)
    }
}

fn state<S: Serializer>(state: &Option<State>, serializer: S) -> Result<S::Ok, S::Error> {
    state.map(State::name).serialize(serializer)
}
