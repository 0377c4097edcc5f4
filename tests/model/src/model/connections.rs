//! Connections: a list, searched from its beginning to its end, and what LVS says of how long one lives.

use std::net::SocketAddr;

use dataplane::service::Protocol;

use super::at_risk::is_without;
use super::persistence::{Template, network};
use super::proxy::{self, Stream};
use super::{Fate, Frame, Model, TICKS_PER_SECOND};
use crate::packet::{RST, SYN};
use crate::sctp;
use crate::sequence::Known;
use crate::tcp::{self, State};
use crate::world::{Flow, Leaving, Service};

/// A connection.
#[derive(Clone, Debug)]
pub struct Connection {
    pub flow: Flow,
    pub service: usize,
    pub server: usize,
    pub state: State,
    /// When it was last noted to have a packet.
    pub(super) seen: u64,
    /// Whether its real server has answered (UDP).
    pub(super) is_answered: bool,
    /// Among all, for the newer one of two.
    pub(super) number: u64,
    /// As whom its server knows the client, by full NAT.
    pub(super) local: Option<SocketAddr>,
    /// Its stream, if that begins with a header for the server.
    pub(super) stream: Option<Stream>,
}

impl Connection {
    /// One that is there from now on.
    pub(super) fn new(flow: Flow, service: usize, server: usize, state: State, now: u64) -> Connection {
        Connection {
            flow,
            service,
            server,
            state,
            seen: now,
            is_answered: false,
            number: 0,
            local: None,
            stream: None,
        }
    }
}

impl Model {
    /// A connection with a server, or why there is none.
    pub(super) fn begin(
        &mut self,
        frame: &Frame<'_>,
        number: usize,
        flow: Flow,
        flags: u8,
    ) -> Result<usize, Fate> {
        let client = flow.client;
        let server = self.schedule(frame, number, flow, flags)?;
        self.arrives(&frame.packet, number, server)?;
        if !self.services[number].one_packet {
            self.may_have_another(number, client.ip())?;
        }
        if self.named(&frame.packet, number).is_none() {
            self.note_template(frame, number, client.ip(), server);
        }
        let local = self.take_local(frame, number, server, flow)?;
        self.count_connection(number, server);
        if self.services[number].one_packet
            || is_without(&self.services[number], flow.protocol)
                && !self.is_at_risk(number, flow, Some(server))
        {
            return Ok(server);
        }
        let service = &self.services[number];
        let seen = client_side(service, server);
        let state = match flow.protocol {
            Protocol::Udp => State::Udp,
            Protocol::Sctp => match sctp::next(seen, State::None, flags) {
                State::Established => State::None,
                state => state,
            },
            Protocol::Tcp => match tcp::next(seen, State::None, flags) {
                // Begun in the middle, it is embryonic until its client goes on.
                State::Established => State::SynRecv,
                state => state,
            },
        };
        // A stream that is met in its middle has had its beginning.
        let has_header = proxy::has_header(service, flow.protocol) && flags & SYN != 0;
        let stream = has_header.then(Stream::default);
        self.enter(Connection { local, stream, ..Connection::new(flow, number, server, state, self.now) });
        Ok(server)
    }

    /// A connection is there from now on. What is over of its client's port makes room.
    pub(super) fn enter(&mut self, connection: Connection) {
        let (services, now, flow) = (&self.services, self.now, connection.flow);
        self.connections.retain(|old| {
            (old.flow.client, old.flow.protocol) != (flow.client, flow.protocol)
                || !is_over(old, &services[old.service], now)
        });
        self.begun += 1;
        self.connections.push(Connection { number: self.begun, ..connection });
        self.note_limits();
    }

    /// Whether a packet of a known connection is the first one of another.
    pub(super) fn begins_anew(&self, index: usize, flags: u8) -> bool {
        let connection = &self.connections[index];
        let service = &self.services[connection.service];
        let server = &service.servers[connection.server];
        let (is_dead, is_leaving) = (!server.up, server.leaving == Some(Leaving::Resetting));
        match connection.flow.protocol {
            Protocol::Udp => is_dead,
            Protocol::Sctp => {
                flags == sctp::INIT && (connection.state == State::Closed || is_dead || is_leaving)
            }
            Protocol::Tcp => {
                let is_over = matches!(connection.state, State::TimeWait | State::Close);
                may_begin(connection.flow, flags) && (is_over || is_dead || self.is_to_end(index))
            }
        }
    }

    /// Whether a TCP connection is to be reset, since its server has been removed.
    pub(super) fn is_to_end(&self, index: usize) -> bool {
        let Connection { service, server, .. } = self.connections[index];
        let its = &self.services[service];
        self.connections[index].flow.protocol == Protocol::Tcp
            && its.servers[server].leaving == Some(Leaving::Resetting)
    }

    /// Linux' side tells both ends, and forgets the connection; a fragment does not say how long its segment is, and so not what the ends expect next.
    pub(super) fn reset(&mut self, index: usize, is_fragment: bool) -> Fate {
        if !is_fragment {
            self.connections.remove(index);
            self.note_limits();
        }
        Fate::Punt("reset")
    }

    /// A connection has a packet.
    pub(super) fn follow(&mut self, index: usize, seen: tcp::Seen, flags: u8) {
        let now = self.now;
        let connection = &mut self.connections[index];
        let service = &self.services[connection.service];
        let protocol = connection.flow.protocol;
        let state = match protocol {
            Protocol::Udp => State::Udp,
            Protocol::Sctp => sctp::next(seen, connection.state, flags),
            Protocol::Tcp => tcp::next(seen, connection.state, flags),
        };
        let grain = grain(timeout(service, state));
        let is_answer = protocol == Protocol::Udp && seen == tcp::Seen::FromServer;
        let is_first = is_answer && !connection.is_answered;
        connection.is_answered |= is_answer;
        let is_complete = state == State::Established && is_half_done(connection.state);
        let number = connection.service;
        let flow = connection.flow;
        let is_changed = state != connection.state || is_first;
        if is_changed || age(connection.seen, now, grain) >= grain {
            (connection.state, connection.seen) = (state, now);
        }
        if is_changed && state == State::Established {
            self.confirm(index);
        }
        if is_complete {
            self.complete(number, flow);
        }
    }

    /// The newest connection that is alive and of which this holds.
    pub(super) fn find(&self, is_it: impl Fn(&Connection) -> bool) -> Option<usize> {
        let alive = self.connections.iter().enumerate().filter(|(_, connection)| {
            !is_over(connection, &self.services[connection.service], self.now) && is_it(connection)
        });
        alive.max_by_key(|(_, connection)| connection.number).map(|(index, _)| index)
    }

    /// A client's connection, if there is one.
    pub fn known(&self, now: u64, flow: Flow) -> Option<Known> {
        let its = |one: &&Connection| one.flow == flow;
        let alive = |one: &&Connection| !is_over(one, &self.services[one.service], now);
        let one = self.connections.iter().filter(its).find(alive)?;
        Some(Known { server: one.server, local: one.local })
    }

    /// Whether there are connections that are over and not yet swept, of the other protocol than this service's, or if there is a service of all
    /// ports, whichever a packet turns out to be for. The table may or may not forget them on the way when a connection of the same client port begins.
    pub fn has_stale_beside(&self, now: u64, service: usize) -> bool {
        let protocol = self.services[service].faces[0].protocol;
        let is_any_port = self.services.iter().any(Service::is_of_all_ports);
        self.connections.iter().any(|one| {
            let is_apart = is_any_port || one.flow.protocol != protocol;
            is_apart && is_over(one, &self.services[one.service], now)
        })
    }

    /// Everything that is over goes.
    pub fn sweep(&mut self, now: u64) {
        for connection in &self.connections {
            let service = &self.services[connection.service];
            let Some(persistence) = service.persistence else { continue };
            let network = network(connection.flow.client.ip(), persistence.prefix);
            let its = |one: &&mut Template| one.service == connection.service && one.network == network;
            if let Some(template) = self.templates.iter_mut().find(its) {
                template.maybe_until = template.maybe_until.max(now + 80 * TICKS_PER_SECOND);
            }
        }
        let services = &self.services;
        self.connections.retain(|connection| !is_over(connection, &services[connection.service], now));
        self.sweep_locals();
        self.sweep_mappings(now);
        self.note_limits();
    }
}

/// Whether a packet of TCP begins a connection.
pub(super) fn may_begin(flow: Flow, flags: u8) -> bool {
    flags & (SYN | RST) == SYN && !is_ftp_data(flow)
}

/// Data connections of active FTP come from port 20, and are not for a server to take.
pub(super) fn is_ftp_data(flow: Flow) -> bool {
    flow.protocol == Protocol::Tcp && flow.client.port() == 20
}

/// Whether a handshake of TCP has begun, and not come to its end.
fn is_half_done(state: State) -> bool {
    matches!(state, State::None | State::SynSent | State::SynRecv | State::SynAck)
}

/// What is seen when a client speaks: answers come by here, or not.
pub(super) fn client_side(service: &Service, server: usize) -> tcp::Seen {
    if service.is_one_way(server) { tcp::Seen::OnlyFromClient } else { tcp::Seen::FromClient }
}

pub(super) fn timeout(service: &Service, state: State) -> u32 {
    match state {
        State::Established | State::Udp => service.timeout,
        // Met in its middle, it may be established for long.
        State::None if service.rosters.is_some() => service.timeout,
        state => state.timeout(),
    }
}

/// How exactly it is noted when a connection had a packet, in ticks: a second, or a tick if its timeout is short, or 64 seconds if that is more
/// than two hours and a quarter.
pub(super) fn grain(seconds: u32) -> u64 {
    match u64::from(seconds) * TICKS_PER_SECOND {
        0..64 => 1,
        64..=32_768 => TICKS_PER_SECOND,
        _ => 64 * TICKS_PER_SECOND,
    }
}

/// Ticks that have surely passed.
pub(super) fn age(seen: u64, now: u64, grain: u64) -> u64 {
    if grain < 64 { now - seen } else { ((now / grain - seen / grain) * grain).saturating_sub(grain - 1) }
}

/// A connection is over when it has been silent for its timeout, and for what its last packet may not have been noted.
pub(super) fn is_over(connection: &Connection, service: &Service, now: u64) -> bool {
    let seconds = timeout(service, connection.state);
    let grain = grain(seconds);
    age(connection.seen, now, grain) > u64::from(seconds) * TICKS_PER_SECOND + grain
}
