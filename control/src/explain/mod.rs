//! `rvs explain`: a question in an operator's words, put to the data path, and its answer in theirs.
//!
//! What would happen is found by the data path itself ([`dataplane::engine::explain()`]); here a packet is made of the
//! question, and numbers of the snapshot get their names. The sentences are in `words.rs`.

mod words;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use dataplane::clock::{TICKS_PER_SECOND, Tick};
use dataplane::counters::{Drop, Punt};
use dataplane::engine::{self, Side, Verdict};
use dataplane::fib::{NextHop, PortIndex};
use dataplane::service::Protocol;
use dataplane::snapshot::{Dest, Snapshot, Tunnel};
use dataplane::table::{DestId, Table};
use dataplane::wire::ethernet::{self, Ethernet, Mac};
use dataplane::wire::made::{self, Made, Piece};
use dataplane::wire::sctp::Event;
use dataplane::wire::transport::{SYN, Transport};
use dataplane::wire::tunnel::Outer;
use dataplane::wire::version::Version;

pub use self::words::why;
use crate::admin::explain as api;
use crate::config::{Marks, Port, Server, Service};
use crate::ids::Face;
use crate::ports::mac_text;

/// The fragments that can be asked about.
const FIRST: &str = "first";
const LATER: &str = "later";

/// The port of IKE, at both ends.
const IKE: u16 = 500;

/// Hops of the packet that is asked about, which are those that most hosts give theirs.
const TTL: u8 = 64;

/// All that an explanation is made of.
pub struct Explainer<'a> {
    /// The services that the snapshot was compiled from.
    pub services: &'a [Service],
    /// The ports.
    pub ports: &'a [Port],
    /// The rules by which packets have marks.
    pub marks: &'a Marks,
    /// What the workers go by.
    pub snapshot: &'a Snapshot,
    /// The connections.
    pub table: &'a Table,
    /// The moment.
    pub now: Tick,
    /// Why a server is down, if it is.
    pub down: &'a dyn Fn(&Service, &Server) -> Option<String>,
}

impl Explainer<'_> {
    /// Explains; an error says what is wrong with the question.
    pub fn explain(&self, question: &api::Question) -> Result<api::Explanation> {
        let (made, port, why) = self.understand(question)?;
        let (piece, sealed) = (piece(question)?, sealed(question));
        let mut frame =
            made.frame(&self.mac_towards(made.source.ip()), &self.snapshot.ports[usize::from(port)].mac);
        if let Some(protocol) = sealed {
            made::seal(&mut frame, protocol);
        }
        if let Some(piece) = piece {
            piece.apply(&mut frame);
        }
        let explained = engine::explain(self.snapshot, self.table, self.now, port, &frame)
            .context("no room for a stage to try the packet on")?;
        let engine::Explanation {
            hit,
            connection,
            afterwards,
            is_kept,
            reason,
            follows,
            verdict,
            frame: after,
        } = explained;

        let id = afterwards.or(connection).map(|connection| connection.dest).or(follows);
        let dest = id.and_then(|id| self.snapshot.dest(id));
        // A connection goes on with the service that it began with, whichever port it comes by.
        let service = dest.map(|dest| dest.service).or(match hit {
            Some(Side::Service(index)) => Some(index),
            Some(Side::Endpoint(_)) | None => None,
        });
        let service = service.and_then(|index| self.services.get(self.snapshot.home_of(index).0 as usize));
        let inward = match hit {
            Some(side) => matches!(side, Side::Service(_)),
            None => dest.is_some_and(|dest| made.destination.ip() == dest.virtual_address.ip()),
        };
        let is_rewritten = matches!(
            verdict,
            Verdict::Forward(_) | Verdict::Route(_) | Verdict::Punt(Punt::Unresolved | Punt::ToFragment)
        );
        let through = dest.filter(|_| is_rewritten).and_then(|dest| dest.tunnel);
        let (outer, after) = match through {
            Some(tunnel) => taken_out(&tunnel, &after),
            None => (None, after),
        };
        let chosen = afterwards.and_then(|connection| self.server(connection.dest));
        let decision = service.zip(reason).map(|(service, reason)| api::Decision {
            server: chosen,
            why: words::why(service, &reason, chosen, |id| self.server(id)),
            unusable: self.unusable(service),
        });
        let at_risk = match hit {
            Some(Side::Service(index)) => self.snapshot.services[index as usize].at_risk.as_ref(),
            _ => None,
        };
        let with =
            afterwards.filter(|_| at_risk.is_some()).and_then(|connection| self.server(connection.dest));
        // Where a connection goes that needs no entry is none.
        let afterwards = afterwards.filter(|_| is_kept || at_risk.is_none());
        // A later fragment has no ports to be asked for.
        let is_asked_for = piece.is_none_or(|piece| piece.is_first);
        let is_unmatched = hit.is_none()
            && is_asked_for
            && (verdict == Verdict::Punt(Punt::NoService) || asks_for_way(verdict));
        let (verdict_name, reason, meaning) = match verdict {
            Verdict::Forward(_) => ("forward", None, None),
            Verdict::Route(_) => ("route", None, Some(Verdict::ROUTE)),
            Verdict::Punt(punt) => ("punt", Some(punt.name()), Some(punt.meaning())),
            Verdict::Drop(drop) => ("drop", Some(drop.name()), Some(drop.meaning())),
            Verdict::Hold => ("hold", None, Some(Verdict::HOLD)),
        };
        Ok(api::Explanation {
            generation: self.snapshot.generation,
            packet: headers(&frame).context("the packet that was made is none")?,
            port: api::Port { name: self.port_name(port), why },
            fragment: piece
                .map(|piece| words::fragment(piece, verdict, follows.and_then(|id| self.server(id)))),
            service: service.map(|service| {
                let rule = self.rule(service, &made, port, dest.filter(|_| !inward));
                api::Service { rule, ..describe(service) }
            }),
            endpoint: matches!(hit, Some(Side::Endpoint(_))).then_some(made.source),
            unmatched: is_unmatched.then(|| words::unmatched(self.services, self.ports, &made)),
            direction: hit
                .filter(|_| !matches!(verdict, Verdict::Route(_)))
                .map(|_| if inward { "in" } else { "out" }.to_owned()),
            connection: connection.and_then(|connection| self.connection(&connection)),
            decision,
            tracking: with.map(|server| words::tracking(is_kept, server)),
            afterwards: afterwards.and_then(|connection| self.connection(&connection)),
            rewritten: if is_rewritten { headers(&after) } else { None },
            tunnel: outer,
            next_hop: asks_for_way(verdict).then(|| match dest {
                Some(dest) if inward => self.next_hop(dest.address.ip()),
                _ => self.next_hop(made.destination.ip()),
            }),
            verdict: verdict_name.to_owned(),
            output: match verdict {
                Verdict::Forward(port) | Verdict::Route(port) => Some(self.port_name(port)),
                Verdict::Punt(_) | Verdict::Drop(_) | Verdict::Hold => None,
            },
            reason: reason.map(str::to_owned),
            meaning: meaning.map(str::to_owned),
        })
    }

    /// The line of the rule that gives a service's mark to a packet, or to what it answers if it is from a real server.
    fn rule(
        &self,
        service: &Service,
        made: &Made,
        incoming: PortIndex,
        from: Option<&Dest>,
    ) -> Option<usize> {
        let marked = service.mark.as_ref()?;
        // Its port is the virtual one: a mark's stay as they are.
        let end = from.map_or(made.destination, |server| {
            SocketAddr::new(server.virtual_address.ip(), made.source.port())
        });
        let face = Face { address: end.ip(), protocol: made.protocol };
        // Where a connection began that has come here by another port, nobody remembers.
        let here = self.marks.at(face, end.port(), Some(incoming)).filter(|_| from.is_none());
        let anywhere = self.marks.anywhere(face, end.port());
        let (_, line) = here.into_iter().chain(anywhere).find(|(mark, _)| *mark == marked.number)?;
        Some(line)
    }

    /// The packet, the port that it comes in on, and why that one.
    fn understand(&self, question: &api::Question) -> Result<(Made, PortIndex, String)> {
        let &api::Question { mut source, mut destination, length, .. } = question;
        let name = question.protocol.as_deref().unwrap_or(Protocol::Tcp.name());
        let protocol = match sealed(question) {
            None => Protocol::from_name(name).with_context(|| {
                format!("protocol: there is no {name:?} here; expected tcp, udp, sctp, esp or ah")
            })?,
            // It goes with the connection of IKE.
            Some(_) => {
                source.set_port(IKE);
                destination.set_port(IKE);
                Protocol::Udp
            }
        };
        let flags = match (protocol, question.flags.as_deref()) {
            (Protocol::Tcp, None) => SYN,
            (Protocol::Tcp, Some(letters)) => made::flags(letters).with_context(|| {
                format!("flags: {letters:?} are none; expected some of FSRPAUEC, e.g. SA")
            })?,
            (Protocol::Udp, None) => 0,
            (Protocol::Sctp, None) => Event::Init.flags(),
            (Protocol::Sctp, Some(_)) => {
                bail!("flags: a packet of SCTP has none, and is an INIT here; expected them with tcp only")
            }
            (Protocol::Udp, Some(_)) => {
                bail!("flags: a packet of {} has none; expected them with tcp only", name.to_uppercase())
            }
        };
        ensure!(
            source.is_ipv4() == destination.is_ipv4(),
            "source and destination: {source} and {destination} are of two families; expected two of one"
        );
        let shortest = Made { protocol, source, destination, flags, ttl: TTL, length: 0 };
        let header = shortest.ip_header();
        let is_first = question.fragment.as_deref() == Some(FIRST);
        let least = if is_first {
            (shortest.least_length() - header).next_multiple_of(8) + header
        } else {
            shortest.least_length()
        };
        let length = length.unwrap_or(least);
        ensure!(length >= least, "length: {length} bytes are no {name} packet; expected {least} at least");
        ensure!(
            !is_first || (length - header).is_multiple_of(8),
            "length: a first fragment has a multiple of 8 bytes behind its header, not {}; expected e.g. {least}",
            length - header
        );
        let made = Made { length, ..shortest };
        let (port, why) = self.incoming(question)?;
        Ok((made, port, why))
    }

    fn incoming(&self, question: &api::Question) -> Result<(PortIndex, String)> {
        let ports = self.ports;
        if let Some(name) = &question.port {
            let index = ports.iter().position(|port| port.name == *name).with_context(|| {
                let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
                format!("port: there is no {name:?}; expected {}", names.join(" or "))
            })?;
            return Ok((index as PortIndex, "as asked".to_owned()));
        }
        let source = question.source.ip();
        Ok(match self.snapshot.fibs.neighbour_of(source) {
            Some((port, _)) => (port, format!("{source} is reached through it")),
            None => (0, format!("the first one; no route leads to {source}")),
        })
    }

    fn port_name(&self, port: PortIndex) -> String {
        self.ports.get(usize::from(port)).map_or_else(|| port.to_string(), |port| port.name.clone())
    }

    /// The MAC of the neighbour through which an address is reached; zeros if it is not known.
    fn mac_towards(&self, address: IpAddr) -> Mac {
        match self.snapshot.fibs.look_up(address) {
            NextHop::Ready(adjacency) => *adjacency.addresses.first_chunk().expect("six of twelve"),
            NextHop::Unresolved(_) | NextHop::NoRoute => Mac::default(),
        }
    }

    fn server(&self, id: DestId) -> Option<SocketAddr> {
        self.snapshot.dest(id).map(|dest| dest.address)
    }

    fn connection(&self, connection: &engine::Connection) -> Option<api::Connection> {
        Some(api::Connection {
            server: self.server(connection.dest)?,
            state: connection.state.name().to_owned(),
            idle: connection.age / TICKS_PER_SECOND,
            expires: connection.expires,
        })
    }

    /// The servers of a service that no scheduler may choose.
    fn unusable(&self, service: &Service) -> Vec<api::Unusable> {
        let here = self.snapshot.dests().filter(|dest| dest.is_here);
        let here: Vec<SocketAddr> = here.map(|dest| dest.address).collect();
        let why = |server: &Server| {
            let address = server.address.ip();
            match ((self.down)(service, server), self.snapshot.fibs.look_up(address)) {
                (Some(reason), _) => Some(format!("down: {reason}")),
                _ if server.weight == 0 => Some("weight 0".to_owned()),
                _ if here.contains(&server.address) => None,
                (_, NextHop::Unresolved(_)) => {
                    let neighbour = self.snapshot.fibs.neighbour_of(address);
                    neighbour.map(|(_, neighbour)| format!("the MAC of {neighbour} is not known"))
                }
                (_, NextHop::NoRoute) => Some("no route over a port leads to it".to_owned()),
                (None, NextHop::Ready(_)) => None,
            }
        };
        let unusable = |server: &Server| Some(api::Unusable { server: server.address, why: why(server)? });
        service.servers.iter().filter_map(unusable).collect()
    }

    fn next_hop(&self, towards: IpAddr) -> api::NextHop {
        let neighbour = self.snapshot.fibs.neighbour_of(towards);
        let mac = self.mac_towards(towards);
        api::NextHop {
            address: neighbour.map(|(_, address)| address),
            port: neighbour.map(|(port, _)| self.port_name(port)),
            mac: (mac != Mac::default()).then(|| mac_text(mac)),
        }
    }
}

/// The number of a protocol without ports, if one is asked about.
fn sealed(question: &api::Question) -> Option<u8> {
    let name = question.protocol.as_deref()?;
    made::SEALED.iter().find(|(known, _)| *known == name).map(|&(_, number)| number)
}

/// Which fragment is asked about, if one is.
fn piece(question: &api::Question) -> Result<Option<Piece>> {
    let is_first = match question.fragment.as_deref() {
        None => return Ok(None),
        Some(FIRST) => true,
        Some(LATER) => false,
        Some(other) => bail!("fragment: there is no {other:?}; expected {FIRST} or {LATER}"),
    };
    let identification = question.id.unwrap_or(0);
    ensure!(
        question.destination.is_ipv6() || identification <= u16::MAX.into(),
        "id: {identification} is more than a datagram of IPv4 has; expected up to {}",
        u16::MAX
    );
    Ok(Some(Piece { is_first, identification }))
}

/// Whether the path has got so far that it has looked for the way.
fn asks_for_way(verdict: Verdict) -> bool {
    matches!(
        verdict,
        Verdict::Forward(_)
            | Verdict::Route(_)
            | Verdict::Punt(Punt::Unresolved | Punt::ToFragment)
            | Verdict::Drop(Drop::NoNeighbour | Drop::NoRoute | Drop::TooBig)
    )
}

fn describe(service: &Service) -> api::Service {
    api::Service {
        protocol: service.protocol.name().to_owned(),
        address: service.address,
        mark: service.mark.as_ref().map(|marked| marked.number),
        rule: None,
        mode: service.mode.name().to_owned(),
        scheduler: service.scheduler.name().to_owned(),
    }
}

/// The outer packet of a frame, and the frame with the packet inside in its place.
fn taken_out(tunnel: &Tunnel, frame: &[u8]) -> (Option<api::Tunnel>, Vec<u8>) {
    let (ethernet, packet) = frame.split_at(frame.len().min(ethernet::HEADER));
    let inside = packet.get(usize::from(tunnel.overhead)..).unwrap_or_default();
    let outer = match tunnel.outer {
        Outer::Four { .. } => around::<u32>(tunnel, packet),
        Outer::Six { .. } => around::<u128>(tunnel, packet),
    };
    // What is inside may be of the other family.
    let is_six = inside.first().is_some_and(|first| first >> 4 == 6);
    let ethertype = if is_six { ethernet::IPV6 } else { ethernet::IPV4 };
    let addresses = ethernet.first_chunk().copied().unwrap_or_default();
    (outer, [&ethernet::header(ethertype, &addresses), inside].concat())
}

fn around<A: Version>(tunnel: &Tunnel, packet: &[u8]) -> Option<api::Tunnel> {
    let ip = A::parse(packet)?;
    Some(api::Tunnel {
        encapsulation: tunnel.encapsulation.to_string(),
        source: ip.source.ip(),
        destination: ip.destination.ip(),
        length: ip.total_length,
    })
}

/// What the headers of a frame say.
fn headers(frame: &[u8]) -> Option<api::Packet> {
    match Ethernet::parse(frame)?.ethertype {
        ethernet::IPV6 => headers_of::<u128>(frame),
        _ => headers_of::<u32>(frame),
    }
}

fn headers_of<A: Version>(frame: &[u8]) -> Option<api::Packet> {
    let ethernet = Ethernet::parse(frame)?;
    let packet = &frame[ethernet::HEADER..];
    let ip = A::parse(packet)?;
    let protocol = Protocol::from_number(ip.protocol);
    let rest = usize::from(ip.total_length) - ip.header_length;
    let is_later = ip.fragment.is_some_and(|fragment| fragment.offset > 0);
    let transport = match protocol {
        Some(protocol) if !is_later => Transport::parse(protocol, &packet[ip.header_length..], rest)?,
        _ => Transport { source: 0, destination: 0, flags: 0 },
    };
    let sealed = || made::SEALED.iter().find(|(_, number)| *number == ip.protocol).map(|(name, _)| *name);
    Some(api::Packet {
        protocol: protocol.map(Protocol::name).or_else(sealed)?.to_owned(),
        source: SocketAddr::new(ip.source.ip(), transport.source),
        destination: SocketAddr::new(ip.destination.ip(), transport.destination),
        flags: made::letters(transport.flags),
        ttl: ip.ttl,
        length: ip.total_length,
        source_mac: mac_text(ethernet.source),
        destination_mac: mac_text(ethernet.destination),
    })
}
