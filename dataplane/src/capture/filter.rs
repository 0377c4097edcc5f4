//! Which packets are wanted, in a few words: `host 198.51.100.7 and tcp and dropped`.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::engine::Verdict;
use crate::service::Protocol;
use crate::wire::ethernet;
use crate::wire::version::Version;

/// What a packet has to be; all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    terms: Vec<Term>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Term {
    /// From or to this address, as it came or as it was sent on: so a client's as well as a server's.
    Host(IpAddr),
    /// The same with a port.
    Port(u16),
    /// Of this protocol.
    Protocol(Protocol),
    /// To this service, or a reply in its name.
    Service(SocketAddr),
    /// Dropped.
    Dropped,
}

pub(super) const EXPECTED: &str =
    "expected host A, port P, tcp, udp, sctp, service V:P or dropped, joined by \"and\"";

impl FromStr for Filter {
    type Err = String;

    /// No word at all is every packet.
    fn from_str(text: &str) -> Result<Filter, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() {
            return Ok(Filter::default());
        }
        let term = |words: &[&str]| {
            let wrong = |_| format!("filter: {:?} is none; {EXPECTED}", words.join(" "));
            match *words {
                ["host", address] => address.parse().map(Term::Host).map_err(|_| wrong(())),
                ["port", port] => port.parse().map(Term::Port).map_err(|_| wrong(())),
                ["service", address] => address.parse().map(Term::Service).map_err(|_| wrong(())),
                ["dropped"] => Ok(Term::Dropped),
                [name] => Protocol::from_name(name).map(Term::Protocol).ok_or_else(|| wrong(())),
                _ => Err(wrong(())),
            }
        };
        words.split(|word| *word == "and").map(term).collect::<Result<_, _>>().map(|terms| Filter { terms })
    }
}

impl Filter {
    /// Whether every packet passes.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether a packet passes that came with some headers, was left with others, and met this fate.
    #[inline]
    pub(super) fn matches(
        &self,
        before: Option<Headers>,
        after: impl Fn() -> Option<Headers>,
        verdict: Verdict,
    ) -> bool {
        let either = |is: &dyn Fn(&Headers) -> bool| {
            before.as_ref().is_some_and(is) || after().as_ref().is_some_and(is)
        };
        self.terms.iter().all(|term| match *term {
            Term::Host(host) => either(&|headers| headers.hosts.contains(&host)),
            Term::Port(port) => either(&|headers| headers.ports.is_some_and(|ports| ports.contains(&port))),
            Term::Protocol(protocol) => before.is_some_and(|headers| headers.protocol == protocol.number()),
            Term::Service(service) => {
                let is = |headers: &Headers, side: usize| {
                    headers.hosts[side] == service.ip()
                        && headers.ports.is_some_and(|ports| ports[side] == service.port())
                };
                before.is_some_and(|headers| is(&headers, 1))
                    || after().is_some_and(|headers| is(&headers, 0))
            }
            Term::Dropped => matches!(verdict, Verdict::Drop(_)),
        })
    }
}

/// What a filter looks at: source, then destination. Unlike the data path it takes what it gets, also from packets that
/// are cut off or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Headers {
    hosts: [IpAddr; 2],
    ports: Option<[u16; 2]>,
    protocol: u8,
}

impl Headers {
    /// Those of an untagged IP frame.
    pub fn of(frame: &[u8]) -> Option<Headers> {
        let (ethernet, packet) = frame.split_first_chunk::<{ ethernet::HEADER }>()?;
        match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
            ethernet::IPV4 => Headers::of_packet::<u32>(packet),
            ethernet::IPV6 => Headers::of_packet::<u128>(packet),
            _ => None,
        }
    }

    fn of_packet<A: Version>(packet: &[u8]) -> Option<Headers> {
        let ip = A::quoted(packet)?;
        let is_later = ip.fragment.is_some_and(|fragment| fragment.offset > 0);
        let ports = packet.get(ip.header_length..).and_then(|segment| segment.first_chunk::<4>());
        let ports = ports.filter(|_| !is_later && Protocol::from_number(ip.protocol).is_some());
        Some(Headers {
            hosts: [ip.source, ip.destination].map(A::ip),
            ports: ports.map(|[a, b, c, d]| [u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])]),
            protocol: ip.protocol,
        })
    }
}
