//! The reference model: what a router with these services does with a packet, said as plainly as possible.
//!
//! It follows RFC 791, 792, 768, 9293, 1624, 8200 and 4443, the semantics of LVS, and the documentation of RVS. Connections are a list that is
//! searched from its beginning to its end, checksums are summed over the whole packet, and nothing is shared with the data path but the names in
//! which services are configured.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dataplane::counters::Traffic;
use dataplane::service::{Mode, Protocol, Scheduler, SchedulerFlag};
use dataplane::snapshot::MssClamp;

use crate::packet::{self, End, Fragment, ICMP, ICMPV6, Malformed, Packet, RST, SYN, TCP, UDP};
use crate::scheduler::{self, Candidate, Choice, Flow};
use crate::tcp::{self, State};
use crate::tunnel;
use crate::world::{self, Leaving, MACS, SERVERS, Service, Tunnel, Way};

const TICKS_PER_SECOND: u64 = 4;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes out of a port as these bytes.
    Forward(u16, Vec<u8>),
    /// Linux gets it as it came.
    Punt(&'static str),
    /// Linux sends this packet in fragments.
    ToFragment(Vec<u8>),
    /// Linux sends this packet, once it has found the next hop.
    Unresolved(Vec<u8>),
    /// It goes nowhere.
    Drop(&'static str),
    /// It waits for the first fragment of its datagram.
    Hold,
}

/// Which datagram a fragment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

/// What is known of a datagram's first fragment.
#[derive(Clone, Copy, Debug)]
struct Note {
    datagram: Datagram,
    /// When it came.
    seen: u64,
    /// Its ports.
    ports: (u16, u16),
    went: Went,
}

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Went {
    /// With a connection of this service and server, in this direction.
    With(usize, usize, End),
    ToLinux,
    Nowhere,
}

/// A fragment that waits.
struct Held {
    since: u64,
    port: u16,
    frame: Vec<u8>,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Connection {
    pub client: SocketAddr,
    pub service: usize,
    pub server: usize,
    pub state: State,
    /// When it was last noted to have a packet.
    seen: u64,
    /// Whether its real server has answered (UDP).
    is_answered: bool,
    /// Among all, for the newer one of two.
    number: u64,
}

/// Where a client, or a network of them, comes back to.
#[derive(Clone, Debug)]
struct Template {
    service: usize,
    /// Its first address.
    network: IpAddr,
    server: usize,
    /// It lives until then in any case,
    sure_until: u64,
    /// and no longer than until then: a sweep holds it while one of its connections lives, and a minute more.
    maybe_until: u64,
}

/// What a scheduler that hashes by a secret has chosen by: as long as it is the same, so is the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hashed {
    service: usize,
    client: IpAddr,
    /// The client's port, if that counts.
    port: Option<u16>,
    /// The servers, newest first: number, weight, and whether it is full.
    servers: Vec<(usize, u32, bool)>,
}

/// What the model knows of a server beside its configuration.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    traffic: Traffic,
    is_full: bool,
}

/// The router.
pub struct Model {
    services: Vec<Service>,
    connections: Vec<Connection>,
    templates: Vec<Template>,
    hashed: Vec<(Hashed, Option<usize>)>,
    loads: Vec<[Load; SERVERS]>,
    /// Where round robin is, if that is known.
    turns: Vec<Option<u64>>,
    /// Where the last packet has gone that had ports.
    placed: Went,
    notes: Vec<Note>,
    held: Vec<Held>,
    total: Traffic,
    begun: u64,
    now: u64,
}

/// A frame on its way through the model.
struct Frame<'a> {
    bytes: &'a [u8],
    packet: Packet,
    observed: &'a Observed,
}

/// What of the data path the model has to know, as nobody says how it is: what lot or a secret has decided, and whether a template is still there that a
/// sweep may have held.
#[derive(Default)]
pub struct Observed {
    /// The server of the connection that begins with the packet.
    pub begun: Option<usize>,
    /// Before it: service, client and server.
    pub templates: Vec<(usize, IpAddr, usize)>,
}

impl Model {
    pub fn new(services: &[Service]) -> Model {
        Model {
            services: services.to_vec(),
            connections: Vec::new(),
            templates: Vec::new(),
            hashed: Vec::new(),
            loads: vec![Default::default(); services.len()],
            turns: vec![Some(0); services.len()],
            placed: Went::Nowhere,
            notes: Vec::new(),
            held: Vec::new(),
            total: Traffic::default(),
            begun: 0,
            now: 0,
        }
    }

    /// A service is configured as this one from now on.
    pub fn change(&mut self, number: usize, service: &Service) {
        self.services[number] = service.clone();
    }

    /// What becomes of a frame that comes in on a port.
    pub fn take(&mut self, now: u64, port: u16, frame: &[u8], observed: &Observed) -> Fate {
        self.now = now;
        let fate = self.look_at(port, frame, observed);
        if fate == Fate::Hold {
            self.held.push(Held { since: now, port, frame: frame.to_vec() });
        }
        fate
    }

    /// What becomes of the fragments that wait: those that wait no more.
    pub fn settle(&mut self, now: u64) -> Vec<Fate> {
        self.now = now;
        let mut settled = Vec::new();
        for held in std::mem::take(&mut self.held) {
            if now > held.since + TICKS_PER_SECOND {
                settled.push(Fate::Drop("fragment_expired"));
                continue;
            }
            match self.look_at(held.port, &held.frame, &Observed::default()) {
                Fate::Hold => self.held.push(held),
                fate => settled.push(fate),
            }
        }
        settled
    }

    fn look_at(&mut self, port: u16, frame: &[u8], observed: &Observed) -> Fate {
        if frame.len() < 14 {
            return Fate::Drop("runt");
        }
        if frame[..6] != MACS[usize::from(port)] {
            return if frame[0] & 1 == 1 { Fate::Punt("multicast") } else { Fate::Drop("other_host") };
        }
        let is_six = match packet::word(frame, 12) {
            0x0800 => false,
            0x86DD => true,
            0x8100 | 0x88A8 => return Fate::Punt("vlan"),
            _ => return Fate::Punt("not_ip"),
        };
        match packet::parse(&frame[14..], is_six) {
            Ok(packet) => self.route(Frame { bytes: frame, packet, observed }),
            Err(Malformed::Header) => Fate::Drop("bad_ip_header"),
            Err(Malformed::Checksum) => Fate::Drop("bad_ip_checksum"),
        }
    }

    fn route(&mut self, frame: Frame<'_>) -> Fate {
        let packet = &frame.packet;
        // Of an IPv6 fragment only the first says the protocol (RFC 8200, section 4.5).
        if packet.is_six() && packet.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return self.fragment(frame);
        }
        let protocol = match packet.protocol {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            ICMP if !packet.is_six() => return self.message(&frame),
            ICMPV6 if packet.is_six() => return self.message(&frame),
            _ => return Fate::Punt("other_protocol"),
        };
        if packet.is_source_routed {
            return Fate::Punt("other_protocol");
        }
        match packet.fragment {
            Some(_) => self.fragment(frame),
            None if !has_sound_header(packet) => Fate::Drop("bad_transport_header"),
            None => self.classify(frame, protocol),
        }
    }

    /// A packet with ports.
    fn classify(&mut self, frame: Frame<'_>, protocol: Protocol) -> Fate {
        let packet = &frame.packet;
        let (source, destination) = ends(packet);
        if let Some(service) = self.service_at(destination, protocol) {
            self.client_sends(frame, service)
        } else if self.is_endpoint(source, protocol) {
            self.server_sends(frame, protocol)
        } else {
            Fate::Punt("no_service")
        }
    }

    /// An ICMP error goes where the connection goes whose packet it quotes, translated inside and out; whatever else is Linux'.
    fn message(&mut self, frame: &Frame<'_>) -> Fate {
        let packet = &frame.packet;
        let message = packet.segment();
        let kind = message.first().copied().unwrap_or(0);
        let is_six = packet.is_six();
        // What has come through a router is none of it (RFC 4861).
        if is_six && (133..=137).contains(&kind) && packet.hops() == 255 {
            return Fate::Punt("neighbour");
        }
        let is_error = if is_six { kind < 128 } else { matches!(kind, 3 | 4 | 5 | 11 | 12) };
        let quote = message.get(8..).and_then(|quote| packet::parse_start(quote, is_six));
        let (Some(quote), true) = (quote, is_error) else { return Fate::Punt("icmp") };
        let Some(protocol) = Protocol::from_number(quote.protocol) else { return Fate::Punt("icmp") };
        if quote.segment().len() < 8 || quote.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return Fate::Punt("icmp");
        }
        let is_redirect = !is_six && kind == 5;
        let (source, destination) = ends(&quote);
        let about_reply = self.service_at(source, protocol);
        if about_reply.is_none() && !self.is_endpoint(destination, protocol) {
            return Fate::Punt("icmp");
        }
        let nobodys = match about_reply {
            Some(_) => Fate::Punt("icmp"),
            // It would show the real server's address.
            None => Fate::Drop("icmp_error"),
        };
        let is_astray = packet.destination != quote.source;
        if is_redirect || is_astray || packet.fragment.is_some() {
            return nobodys;
        }
        let known = self.find(|one| {
            let service = &self.services[one.service];
            match about_reply {
                Some(number) => one.service == number && one.client == destination,
                None => {
                    service.mode == Mode::Nat
                        && service.protocol == protocol
                        && one.client == source
                        && world::server_address(one.service, service, one.server) == destination
                }
            }
        });
        let Some(index) = known else { return nobodys };
        if packet.hops() <= 1 {
            return Fate::Drop("ttl_expired");
        }
        let Connection { service, server, .. } = self.connections[index];
        let its = &self.services[service];
        let (virtual_address, real) =
            (world::virtual_address(service, its), world::server_address(service, its, server));
        let (mut sent, mut quote) = (packet.clone(), quote);
        match about_reply {
            Some(_) if its.mode == Mode::Nat => {
                quote.readdress(End::Source, real.ip(), Some(real.port()));
                sent.readdress(End::Destination, real.ip(), None);
            }
            Some(_) => {}
            None => {
                quote.readdress(End::Destination, virtual_address.ip(), Some(virtual_address.port()));
                sent.readdress(End::Source, virtual_address.ip(), None);
            }
        }
        let at = sent.at + 8;
        sent.bytes[at..].copy_from_slice(&quote.bytes);
        sent.sum_message(packet.message_defect());
        sent.spend_hop();
        let length = sent.bytes.len();
        let fate = match about_reply {
            Some(_) => send_to(&self.services, frame, sent, service, server),
            None => send(&self.services, frame, &sent, source.ip()),
        };
        if has_gone_on(&fate) {
            self.count(service, server, usize::from(about_reply.is_none()), length);
        }
        fate
    }

    /// A part of a datagram. The first has the ports and goes as any packet does; the others go where it has gone.
    fn fragment(&mut self, frame: Frame<'_>) -> Fate {
        let packet = &frame.packet;
        let Some(fragment) = packet.fragment else { unreachable!("it is one") };
        let length = packet.segment().len();
        // The header of the datagram is part of its length, which that of an IPv6 packet and of a fragment is not.
        let header = packet.at - if packet.is_six() { 48 } else { 0 };
        if !self.concerns(packet) {
            return Fate::Punt("fragment");
        }
        if fragment.more && !length.is_multiple_of(8) || header + fragment.offset + length > 65_535 {
            return Fate::Drop("bad_fragment");
        }
        if fragment.offset > 0 {
            return self.later_fragment(&frame);
        }
        let Some(protocol) = Protocol::from_number(packet.protocol) else { unreachable!("it has a header") };
        if length < header_of(packet.protocol) || !has_whole_header(packet) {
            return Fate::Drop("fragment_tiny");
        }
        if !has_sound_header(packet) {
            return Fate::Drop("bad_transport_header");
        }
        let (source, destination) = ends(packet);
        let ports = (source.port(), destination.port());
        let (datagram, note) = self.note_of(packet, fragment);
        let young = note.filter(|note| self.now - note.seen <= 1 && matches!(note.went, Went::With(..)));
        if let Some(note) = young {
            let is_ours =
                self.service_at(destination, protocol).is_some() || self.is_endpoint(source, protocol);
            let runs_out = is_ours && packet.hops() <= 1;
            if note.ports != ports && !runs_out {
                return Fate::Drop("fragment_overlap");
            }
        }
        let fate = self.classify(frame, protocol);
        if young.is_some() {
            return fate;
        }
        let went = match fate {
            Fate::Forward(..) | Fate::Unresolved(_) | Fate::ToFragment(_) => self.placed,
            Fate::Punt(_) => Went::ToLinux,
            Fate::Drop(_) | Fate::Hold => Went::Nowhere,
        };
        self.notes.retain(|note| note.datagram != datagram);
        self.notes.push(Note { datagram, seen: self.now, ports, went });
        fate
    }

    /// The datagram of a fragment, and what is known of its first.
    fn note_of(&self, packet: &Packet, fragment: Fragment) -> (Datagram, Option<Note>) {
        let (source, destination) = (packet.source, packet.destination);
        let protocol = if packet.is_six() { 0 } else { packet.protocol };
        let datagram = Datagram { source, destination, protocol, id: fragment.id };
        let young = |note: &&Note| self.now - note.seen <= 30 * TICKS_PER_SECOND;
        (datagram, self.notes.iter().filter(young).find(|note| note.datagram == datagram).copied())
    }

    fn later_fragment(&mut self, frame: &Frame<'_>) -> Fate {
        let packet = &frame.packet;
        let Some(fragment) = packet.fragment else { unreachable!("it is one") };
        if fragment.offset < header_of(packet.protocol) {
            return Fate::Drop("fragment_tiny");
        }
        let (_, note) = self.note_of(packet, fragment);
        let (service, server, end) = match note.map(|note| note.went) {
            None => return Fate::Hold,
            Some(Went::ToLinux) => return Fate::Punt("fragment"),
            Some(Went::Nowhere) => return Fate::Drop("fragment_orphan"),
            Some(Went::With(service, server, end)) => (service, server, end),
        };
        if packet.hops() <= 1 {
            return Fate::Drop("ttl_expired");
        }
        let its = &self.services[service];
        let address = match end {
            End::Destination => world::server_address(service, its, server).ip(),
            End::Source => world::virtual_address(service, its).ip(),
        };
        let mut sent = packet.clone();
        if its.mode == Mode::Nat {
            sent.readdress(end, address, None);
        }
        sent.spend_hop();
        let length = sent.bytes.len();
        let fate = match end {
            End::Destination => send_to(&self.services, frame, sent, service, server),
            End::Source => send(&self.services, frame, &sent, packet.destination),
        };
        if has_gone_on(&fate) {
            self.count(service, server, usize::from(end == End::Source), length);
        }
        fate
    }

    /// Whether it goes to a virtual address or comes from a real server's.
    fn concerns(&self, packet: &Packet) -> bool {
        self.services.iter().enumerate().any(|(number, service)| {
            service.live && world::virtual_address(number, service).ip() == packet.destination
                || service.mode == Mode::Nat
                    && (0..service.servers.len())
                        .any(|server| world::server_address(number, service, server).ip() == packet.source)
        })
    }

    /// A packet to a virtual address.
    fn client_sends(&mut self, frame: Frame<'_>, service: usize) -> Fate {
        let packet = &frame.packet;
        let (client, _) = ends(packet);
        let is_tcp = self.services[service].protocol == Protocol::Tcp;
        let flags = if is_tcp { packet.flags() } else { 0 };
        if packet.hops() <= 1 {
            return Fate::Drop("ttl_expired");
        }
        let known = self.find(|connection| connection.service == service && connection.client == client);
        let known = match known {
            // What is over, or its server dead, is forgotten, be there another server or not.
            Some(index) if self.begins_anew(index, flags) => {
                self.connections.remove(index);
                self.note_limits();
                None
            }
            known => known,
        };
        let mode = self.services[service].mode;
        let server = match known {
            Some(index) if self.is_to_end(index) && flags & RST == 0 => {
                return self.reset(index, packet.fragment.is_some());
            }
            Some(index) => {
                let seen = if mode == Mode::Nat { tcp::Seen::FromClient } else { tcp::Seen::OnlyFromClient };
                self.follow(index, seen, flags);
                self.connections[index].server
            }
            None => match self.begin(&frame, service, client, flags) {
                Ok(server) => server,
                Err(fate) => return fate,
            },
        };
        self.placed = Went::With(service, server, End::Destination);
        let address = world::server_address(service, &self.services[service], server);
        let mut packet = frame.packet.clone();
        let length = packet.bytes.len();
        if mode == Mode::Nat {
            packet.readdress(End::Destination, address.ip(), Some(address.port()));
        }
        packet.spend_hop();
        let fate = send_to(&self.services, &frame, packet, service, server);
        if has_gone_on(&fate) {
            self.count(service, server, 0, length);
        }
        fate
    }

    /// A packet from a real server's address and port.
    fn server_sends(&mut self, frame: Frame<'_>, protocol: Protocol) -> Fate {
        let packet = &frame.packet;
        let (server, client) = ends(packet);
        let known = self.find(|connection| {
            let service = &self.services[connection.service];
            service.mode == Mode::Nat
                && service.protocol == protocol
                && connection.client == client
                && world::server_address(connection.service, service, connection.server) == server
        });
        if packet.hops() <= 1 && client.ip() != world::ROUTER {
            return Fate::Drop("ttl_expired");
        }
        let known = match known {
            Some(index) if self.is_to_end(index) && packet.flags() & RST == 0 => {
                return self.reset(index, packet.fragment.is_some());
            }
            Some(index) => {
                let flags = if protocol == Protocol::Tcp { packet.flags() } else { 0 };
                self.follow(index, tcp::Seen::FromServer, flags);
                Some((self.connections[index].service, self.connections[index].server))
            }
            // What is for the router itself is the answer to a check.
            None if client.ip() == world::ROUTER => None,
            None => self.one_packet_service_of(server, protocol),
        };
        let nobodys = if client.ip() == world::ROUTER { "server_reply" } else { "no_service" };
        let Some((service, server)) = known else { return Fate::Punt(nobodys) };
        self.placed = Went::With(service, server, End::Source);
        let virtual_address = world::virtual_address(service, &self.services[service]);
        let mut packet = frame.packet.clone();
        let length = packet.bytes.len();
        packet.readdress(End::Source, virtual_address.ip(), Some(virtual_address.port()));
        packet.spend_hop();
        let fate = send(&self.services, &frame, &packet, client.ip());
        if has_gone_on(&fate) {
            self.count(service, server, 1, length);
        }
        fate
    }

    /// Of datagrams that nobody remembers, the service whose server has this address, and which one that is.
    fn one_packet_service_of(&self, address: SocketAddr, protocol: Protocol) -> Option<(usize, usize)> {
        let nat = self.services.iter().enumerate().filter(|(_, service)| {
            service.one_packet && service.mode == Mode::Nat && service.protocol == protocol
        });
        let mut servers =
            nat.flat_map(|(number, service)| (0..service.servers.len()).map(move |server| (number, server)));
        servers.find(|&(number, server)| {
            world::server_address(number, &self.services[number], server) == address
        })
    }

    /// Linux' side tells both ends, and forgets the connection; a fragment does not say how long its segment is, and so not what the ends expect next.
    fn reset(&mut self, index: usize, is_fragment: bool) -> Fate {
        if !is_fragment {
            self.connections.remove(index);
            self.note_limits();
        }
        Fate::Punt("reset")
    }

    /// Whether a TCP connection is to be reset, since its server has been removed.
    fn is_to_end(&self, index: usize) -> bool {
        let Connection { service, server, .. } = self.connections[index];
        let its = &self.services[service];
        its.protocol == Protocol::Tcp && its.servers[server].leaving == Some(Leaving::Resetting)
    }

    /// Whether a packet of a known connection is the first one of another.
    fn begins_anew(&self, index: usize, flags: u8) -> bool {
        let connection = &self.connections[index];
        let service = &self.services[connection.service];
        let is_dead = !service.servers[connection.server].up;
        match service.protocol {
            Protocol::Udp => is_dead,
            Protocol::Sctp => unreachable!("it is left out"),
            Protocol::Tcp => {
                let is_over = matches!(connection.state, State::TimeWait | State::Close);
                flags & (SYN | RST) == SYN && (is_over || is_dead || self.is_to_end(index))
            }
        }
    }

    /// A connection with a server, or why there is none.
    fn begin(
        &mut self,
        frame: &Frame<'_>,
        number: usize,
        client: SocketAddr,
        flags: u8,
    ) -> Result<usize, Fate> {
        let server = self.schedule(frame, number, client, flags)?;
        self.note_template(number, client.ip(), server);
        self.loads[number][server].traffic.connections += 1;
        self.total.connections += 1;
        let service = &self.services[number];
        if service.one_packet {
            return Ok(server);
        }
        let seen = if service.mode == Mode::Nat { tcp::Seen::FromClient } else { tcp::Seen::OnlyFromClient };
        let state = match service.protocol {
            Protocol::Udp => State::Udp,
            Protocol::Sctp => unreachable!("it is left out"),
            Protocol::Tcp => match tcp::next(seen, State::None, flags) {
                // Begun in the middle, it is embryonic until its client goes on.
                State::Established => State::SynRecv,
                state => state,
            },
        };
        let protocol = service.protocol;
        // What is over of this client's port makes room.
        let (services, now) = (&self.services, self.now);
        self.connections.retain(|old| {
            let is_this = old.service == number && old.client == client;
            let is_stale = old.client == client
                && services[old.service].protocol == protocol
                && is_over(old, &services[old.service], now);
            !is_this && !is_stale
        });
        self.begun += 1;
        self.connections.push(Connection {
            client,
            service: number,
            server,
            state,
            seen: self.now,
            is_answered: false,
            number: self.begun,
        });
        self.note_limits();
        Ok(server)
    }

    /// The server for a connection, or why there is none.
    fn schedule(
        &mut self,
        frame: &Frame<'_>,
        number: usize,
        client: SocketAddr,
        flags: u8,
    ) -> Result<usize, Fate> {
        let service = &self.services[number];
        let is_syn = flags & (SYN | RST) == SYN;
        let may_begin = match service.protocol {
            Protocol::Udp => true,
            Protocol::Sctp => unreachable!("it is left out"),
            Protocol::Tcp => is_syn || service.sloppy_tcp && flags & RST == 0,
        };
        if !service.live {
            return Err(Fate::Punt("no_service"));
        }
        // Data connections of active FTP come from port 20, and are not for a server to take.
        let is_ftp_data = service.protocol == Protocol::Tcp && client.port() == 20;
        if !may_begin || is_ftp_data {
            return Err(Fate::Punt("no_connection"));
        }
        if self.is_martian(client.ip()) {
            return Err(Fate::Drop("martian"));
        }
        let is_known = |server: usize| {
            let address = world::server_address(number, service, server);
            matches!(world::way(&self.services, address.ip()), Way::Out { .. })
        };
        let healthy = || {
            (0..service.servers.len())
                .rev()
                .filter(|&server| service.servers[server].up && service.servers[server].leaving.is_none())
        };
        if let Some(server) = self.comes_back(frame, number, client.ip()) {
            return Ok(server);
        }
        let candidates: Vec<Candidate> = healthy()
            .filter(|&server| is_known(server))
            .map(|server| {
                let (active, inactive) = self.load_of(number, server);
                let is_full = self.loads[number][server].is_full && service.servers[server].limits.is_some();
                Candidate { server, weight: service.servers[server].weight, active, inactive, is_full }
            })
            .collect();
        let virtual_address = world::virtual_address(number, service).ip();
        let flow = Flow { client: client.ip(), port: client.port(), virtual_address };
        let turn = &mut self.turns[number];
        let choice = scheduler::choose(service.scheduler, &service.flags, &candidates, turn, &flow);
        let server = match choice {
            Choice::Server(server) => Some(server),
            Choice::AnyOf(servers, may_refuse) => {
                let drawn = match frame.observed.begun {
                    Some(drawn) => servers.into_iter().find(|&server| server == drawn),
                    None if may_refuse => None,
                    None => servers.first().copied(),
                };
                self.as_before(number, client, &candidates, drawn)
            }
            Choice::Nobody => None,
        };
        server.ok_or(Fate::Drop("no_server"))
    }

    /// What a hash has chosen once it chooses again; so does it, if it is asked for the first time.
    fn as_before(
        &mut self,
        number: usize,
        client: SocketAddr,
        candidates: &[Candidate],
        drawn: Option<usize>,
    ) -> Option<usize> {
        let service = &self.services[number];
        let port = match service.scheduler {
            Scheduler::Mh => service.flags.contains(&SchedulerFlag::MhPort).then(|| client.port()),
            Scheduler::Rendezvous | Scheduler::Maglev => Some(client.port()),
            _ => return drawn,
        };
        let servers = candidates.iter().map(|one| (one.server, one.weight, one.is_full)).collect();
        let by = Hashed { service: number, client: client.ip(), port, servers };
        match self.hashed.iter().find(|(other, _)| *other == by) {
            Some(&(_, before)) => before,
            None => {
                self.hashed.push((by, drawn));
                drawn
            }
        }
    }

    /// The server that a client comes back to.
    fn comes_back(&self, frame: &Frame<'_>, number: usize, client: IpAddr) -> Option<usize> {
        let service = &self.services[number];
        let persistence = service.persistence?;
        let network = network(client, persistence.prefix);
        let template = self.templates.iter().find(|one| one.service == number && one.network == network)?;
        let is_there = self.now <= template.sure_until
            || self.now <= template.maybe_until
                && frame.observed.templates.contains(&(number, network, template.server));
        let server = &service.servers[template.server];
        let is_quiescent = server.weight == 0 && persistence.expire_quiescent;
        let may = server.up && server.leaving.is_none() && !is_quiescent;
        (is_there && may).then_some(template.server)
    }

    /// A client of a persistent service has a connection with this server.
    fn note_template(&mut self, number: usize, client: IpAddr, server: usize) {
        let Some(persistence) = self.services[number].persistence else { return };
        let network = network(client, persistence.prefix);
        let ticks = u64::from(persistence.seconds) * TICKS_PER_SECOND;
        let old = self.templates.iter().position(|one| one.service == number && one.network == network);
        let old = old.map(|index| self.templates.remove(index)).filter(|old| old.server == server);
        let sure_until = self.now + ticks;
        // Of the last second it may not have been noted.
        let least = sure_until + 2 * TICKS_PER_SECOND;
        let maybe_until = old.map_or(least, |old| old.maybe_until.max(least));
        self.templates.push(Template { service: number, network, server, sure_until, maybe_until });
    }

    /// The newest connection that is alive and of which this holds.
    fn find(&self, is_it: impl Fn(&Connection) -> bool) -> Option<usize> {
        let alive = self.connections.iter().enumerate().filter(|(_, connection)| {
            !is_over(connection, &self.services[connection.service], self.now) && is_it(connection)
        });
        alive.max_by_key(|(_, connection)| connection.number).map(|(index, _)| index)
    }

    /// A connection has a packet.
    fn follow(&mut self, index: usize, seen: tcp::Seen, flags: u8) {
        let now = self.now;
        let connection = &mut self.connections[index];
        let service = &self.services[connection.service];
        let state = match service.protocol {
            Protocol::Udp => State::Udp,
            Protocol::Sctp => unreachable!("it is left out"),
            Protocol::Tcp => tcp::next(seen, connection.state, flags),
        };
        let grain = grain(timeout(service, state));
        let is_answer = service.protocol == Protocol::Udp && seen == tcp::Seen::FromServer;
        let is_first = is_answer && !connection.is_answered;
        connection.is_answered |= is_answer;
        if state != connection.state || is_first || age(connection.seen, now, grain) >= grain {
            (connection.state, connection.seen) = (state, now);
        }
    }

    /// The server that a client's connection with a service has.
    pub fn server_of(&self, now: u64, service: usize, client: SocketAddr) -> Option<usize> {
        let its = |one: &&Connection| one.service == service && one.client == client;
        let alive = |one: &&Connection| !is_over(one, &self.services[one.service], now);
        self.connections.iter().filter(its).find(alive).map(|one| one.server)
    }

    /// Whether there are connections of the other protocol that are over and not yet swept. The table may or may not forget them on the way when a
    /// connection of the same client port begins.
    pub fn has_stale_beside(&self, now: u64, protocol: Protocol) -> bool {
        self.connections.iter().any(|one| {
            let service = &self.services[one.service];
            service.protocol != protocol && is_over(one, service, now)
        })
    }

    /// Everything that is over goes.
    pub fn sweep(&mut self, now: u64) {
        for connection in &self.connections {
            let service = &self.services[connection.service];
            let Some(persistence) = service.persistence else { continue };
            let network = network(connection.client.ip(), persistence.prefix);
            let its = |one: &&mut Template| one.service == connection.service && one.network == network;
            if let Some(template) = self.templates.iter_mut().find(its) {
                template.maybe_until = template.maybe_until.max(now + 80 * TICKS_PER_SECOND);
            }
        }
        let services = &self.services;
        self.connections.retain(|connection| !is_over(connection, &services[connection.service], now));
        self.note_limits();
    }

    /// Who has reached the upper threshold is full until it is below the lower one.
    fn note_limits(&mut self) {
        for (number, service) in self.services.iter().enumerate() {
            for (server, configured) in service.servers.iter().enumerate() {
                let Some((upper, lower)) = configured.limits else { continue };
                let (active, inactive) = self.load_of(number, server);
                let was = self.loads[number][server].is_full;
                self.loads[number][server].is_full =
                    active + inactive >= upper || was && active + inactive >= lower;
            }
        }
    }

    fn load_of(&self, service: usize, server: usize) -> (u32, u32) {
        let own = self.connections.iter().filter(|one| one.service == service && one.server == server);
        let (active, inactive): (Vec<_>, Vec<_>) = own.partition(|connection| connection.state.is_active());
        (active.len() as u32, inactive.len() as u32)
    }

    fn count(&mut self, service: usize, server: usize, direction: usize, length: usize) {
        for traffic in [&mut self.total, &mut self.loads[service][server].traffic] {
            let (packets, bytes) = match direction {
                0 => (&mut traffic.packets_in, &mut traffic.bytes_in),
                _ => (&mut traffic.packets_out, &mut traffic.bytes_out),
            };
            *packets += 1;
            *bytes += length as u64;
        }
    }

    fn service_at(&self, address: SocketAddr, protocol: Protocol) -> Option<usize> {
        (0..self.services.len()).find(|&number| {
            let service = &self.services[number];
            service.protocol == protocol && world::virtual_address(number, service) == address
        })
    }

    fn is_endpoint(&self, address: SocketAddr, protocol: Protocol) -> bool {
        self.services.iter().enumerate().any(|(number, service)| {
            service.protocol == protocol
                && service.mode == Mode::Nat
                && (0..service.servers.len())
                    .any(|server| world::server_address(number, service, server) == address)
        })
    }

    /// Whether no client has this address.
    fn is_martian(&self, address: IpAddr) -> bool {
        let is_nobodys = match address {
            // Multicast, and what is reserved behind it, is no source (RFC 6890).
            IpAddr::V4(four) => matches!(four.octets()[0], 0 | 127 | 224..),
            IpAddr::V6(six) => {
                six.is_unspecified() || six.is_loopback() || six.is_unicast_link_local() || six.is_multicast()
            }
        };
        is_nobodys
            || self.services.iter().enumerate().any(|(number, service)| {
                service.live && world::virtual_address(number, service).ip() == address
            })
    }

    /// What an operator sees, who sees these templates.
    pub fn seen(&self, now: u64, seen: &BTreeSet<(usize, IpAddr, usize)>) -> crate::subject::Seen {
        let alive = self.connections.iter().filter(|one| !is_over(one, &self.services[one.service], now));
        let mut connections: Vec<_> = alive
            .map(|one| crate::subject::Listed {
                client: one.client,
                service: one.service,
                server: one.server,
                state: one.state.name(),
                idle: age(one.seen, now, grain(timeout(&self.services[one.service], one.state))),
            })
            .collect();
        connections.sort();
        let servers = self.services.iter().enumerate().flat_map(|(number, service)| {
            (0..service.servers.len()).map(move |server| {
                let (active, inactive) = self.load_of(number, server);
                (self.loads[number][server].traffic, [active, inactive])
            })
        });
        // Those that may be there or not are there if they are seen.
        let templates = self.templates.iter().map(|one| (one, (one.service, one.network, one.server)));
        let templates = templates
            .filter(|(one, what)| now <= one.sure_until || now <= one.maybe_until && seen.contains(what))
            .map(|(_, what)| what)
            .collect();
        crate::subject::Seen { connections, templates, servers: servers.collect(), total: self.total }
    }
}

/// Source and destination with their ports.
fn ends(packet: &Packet) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(packet.source, packet.source_port()),
        SocketAddr::new(packet.destination, packet.destination_port()),
    )
}

/// The least length of a header.
fn header_of(protocol: u8) -> usize {
    if protocol == TCP { 20 } else { 8 }
}

/// Whether the first fragment has all of a TCP header's options.
fn has_whole_header(packet: &Packet) -> bool {
    packet.protocol != TCP || usize::from(packet.segment()[12] >> 4) * 4 <= packet.segment().len()
}

/// Whether a header of TCP or UDP is all there and agrees with the packet's length.
fn has_sound_header(packet: &Packet) -> bool {
    let segment = packet.segment();
    match packet.protocol {
        TCP if segment.len() >= 20 => {
            let header = usize::from(segment[12] >> 4) * 4;
            header >= 20 && header <= segment.len()
        }
        UDP if segment.len() >= 8 => {
            let length = usize::from(packet::word(segment, 4));
            length >= 8 && (length <= segment.len() || packet.fragment.is_some())
        }
        _ => false,
    }
}

/// Whether a packet has gone on, and is counted.
fn has_gone_on(fate: &Fate) -> bool {
    matches!(fate, Fate::Forward(..) | Fate::Unresolved(_) | Fate::ToFragment(_))
}

/// Sends a packet to a real server of a service, in the service's way; by NAT it has its address already.
fn send_to(services: &[Service], frame: &Frame<'_>, packet: Packet, number: usize, server: usize) -> Fate {
    let service = &services[number];
    let address = world::server_address(number, service, server).ip();
    match (service.mode, address) {
        (Mode::Nat, _) | (Mode::Tunnel, IpAddr::V6(_)) => send(services, frame, &packet, address),
        (Mode::Dr, _) => match send(services, frame, &packet, address) {
            // Linux would deliver it to itself: the virtual address is its own.
            Fate::Unresolved(_) => Fate::Drop("no_neighbour"),
            fate => fate,
        },
        (Mode::Tunnel, IpAddr::V4(address)) => send_through(services, frame, packet, service, address),
        (Mode::Fullnat, _) => unreachable!("no sequence has it"),
    }
}

/// Sends a packet through the tunnel to a server.
fn send_through(
    services: &[Service],
    frame: &Frame<'_>,
    mut packet: Packet,
    service: &Service,
    address: Ipv4Addr,
) -> Fate {
    let Tunnel { encapsulation, mss_clamp } = service.tunnel;
    let way = world::way(services, address.into());
    let most = match (mss_clamp, way) {
        (Some(MssClamp::To(most)), _) => Some(most),
        (Some(MssClamp::Fit), Way::Out { mtu, .. }) => {
            Some((mtu - tunnel::overhead(encapsulation) - 40) as u16)
        }
        _ => None,
    };
    let has_header = packet.fragment.is_none_or(|fragment| fragment.offset == 0);
    if let (Some(most), TCP, true) = (most, packet.protocol, has_header)
        && packet.flags() & SYN != 0
    {
        packet.clamp(most);
    }
    let whole = tunnel::around(encapsulation, &packet.bytes, address);
    let may_fragment = packet.bytes[6] & 0x40 == 0;
    let outer = Packet { bytes: whole, ..packet };
    match way {
        Way::Out { mtu, .. } if outer.bytes.len() > mtu && may_fragment => Fate::ToFragment(outer.bytes),
        _ => send(services, frame, &outer, address.into()),
    }
}

/// Sends a packet towards an address, as what the frame becomes.
fn send(services: &[Service], frame: &Frame<'_>, packet: &Packet, towards: IpAddr) -> Fate {
    // What stood behind the packet is still there.
    let behind = &frame.bytes[14 + frame.packet.bytes.len()..];
    match world::way(services, towards) {
        Way::None => Fate::Drop("no_route"),
        Way::Unknown => Fate::Unresolved([&packet.bytes, behind].concat()),
        Way::Out { mtu, .. } if packet.bytes.len() > mtu => Fate::Drop("too_big"),
        Way::Out { port, mac, .. } => {
            let header = [&mac, &MACS[usize::from(port)], &frame.bytes[12..14]].concat();
            Fate::Forward(port, [&header, &packet.bytes[..], behind].concat())
        }
    }
}

/// The first address of a client's network.
fn network(client: IpAddr, prefix: u8) -> IpAddr {
    match client {
        IpAddr::V4(four) => {
            Ipv4Addr::from_bits(four.to_bits() & !(u32::MAX.checked_shr(prefix.into()).unwrap_or(0))).into()
        }
        IpAddr::V6(six) => {
            Ipv6Addr::from_bits(six.to_bits() & !(u128::MAX.checked_shr(prefix.into()).unwrap_or(0))).into()
        }
    }
}

fn timeout(service: &Service, state: State) -> u32 {
    match state {
        State::Established | State::Udp => service.timeout,
        state => state.timeout(),
    }
}

/// How exactly it is noted when a connection had a packet, in ticks: a second, or a tick if its timeout is short, or 64 seconds if that is more
/// than two hours and a quarter.
fn grain(seconds: u32) -> u64 {
    match u64::from(seconds) * TICKS_PER_SECOND {
        0..64 => 1,
        64..=32_768 => TICKS_PER_SECOND,
        _ => 64 * TICKS_PER_SECOND,
    }
}

/// Ticks that have surely passed.
fn age(seen: u64, now: u64, grain: u64) -> u64 {
    if grain < 64 { now - seen } else { ((now / grain - seen / grain) * grain).saturating_sub(grain - 1) }
}

/// A connection is over when it has been silent for its timeout, and for what its last packet may not have been noted.
fn is_over(connection: &Connection, service: &Service, now: u64) -> bool {
    let seconds = timeout(service, connection.state);
    let grain = grain(seconds);
    age(connection.seen, now, grain) > u64::from(seconds) * TICKS_PER_SECOND + grain
}
