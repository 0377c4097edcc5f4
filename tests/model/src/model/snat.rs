//! Source NAT: hosts inside leave from a pool of addresses (RFC 4787, 5382, 5508, 7857; docs/operating.md).
//!
//! Which port of the pool a mapping has is the router's choice, so the model is told, and sees to it that the port is one of the pool's and of
//! its host's blocks, nobody else's and of the right parity. When exactly a mapping ends it is told as well, within what the timeouts leave open.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::connections::grain;
use super::headers::{ends, has_sound_header};
use super::routing::Onward;
use super::{Fate, Frame, Model, TICKS_PER_SECOND};
use crate::packet::{self, ACK, End, FIN, ICMP, PSH, Packet, RST, SYN, TCP, UDP};
use crate::world::{self, LAN, Snat, Way};

/// A mapping: an inside address and port (of ICMP, the identifier), and what they become.
pub type Mapped = (Class, SocketAddr, SocketAddr);

/// What has ports of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Tcp,
    Udp,
    Echo,
}

/// A mapping that there is, or was.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    class: Class,
    inside: SocketAddr,
    outside: SocketAddr,
    state: State,
    /// It lives until then in any case,
    sure_until: u64,
    /// and no longer than until then: its last packet may not have been noted.
    maybe_until: u64,
}

/// How far a mapping is; only TCP goes anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Opening,
    Established,
    Closing,
    Stateless,
}

/// What a packet is, as far as it can be translated.
pub(super) enum What {
    Ports(Class, u16, u16),
    /// A later fragment of a datagram, whose first has these; of a ping, its identifier in the place of whose it is.
    Later(Class, u16, u16),
    Request(u16),
    Reply(u16),
    /// About a packet that had these ends.
    Error(Class, SocketAddr, SocketAddr),
    Other,
}

impl Model {
    /// What becomes of a packet if source NAT has to do with it.
    pub(super) fn translated(&mut self, frame: &Frame<'_>) -> Option<Fate> {
        let packet = &frame.packet;
        let snat = self.snat.clone().filter(|_| !packet.is_six())?;
        let (is_out, is_back) = (world::is_inside(packet.source), world::is_of_pool(packet.destination));
        let is_outward =
            is_out && !world::is_inside(packet.destination) && self.is_others(packet.destination);
        if !is_back && !is_outward || packet.is_for_routers() || !self.is_others(packet.source) {
            return None;
        }
        let has_parts = class_of(packet.protocol).is_some();
        match packet.fragment {
            Some(_) if has_parts => self.translated_fragment(frame, &snat),
            _ => self.translate(frame, &snat, &what(packet)),
        }
    }

    /// What becomes of a packet that is this: to whom is it really, does it get there, and from whom is it really.
    pub(super) fn translate(&mut self, frame: &Frame<'_>, snat: &Snat, what: &What) -> Option<Fate> {
        let packet = &frame.packet;
        let (is_out, is_back) = (world::is_inside(packet.source), world::is_of_pool(packet.destination));
        let inward = match *what {
            _ if !is_back => None,
            What::Ports(class, _, port) | What::Later(class, _, port) => {
                Some(self.behind(frame, class, (packet.destination, port).into())?)
            }
            What::Reply(id) => Some(self.behind(frame, Class::Echo, (packet.destination, id).into())?),
            What::Error(class, source, _) if source.ip() == packet.destination => {
                Some(self.behind(frame, class, source)?)
            }
            // Whoever pings the pool, and all else, is answered by Linux.
            What::Request(_) | What::Error(..) | What::Other => return None,
        };
        let destination = inward.map_or(packet.destination, |inside| inside.ip());
        // What goes nowhere begins nothing.
        match self.onward(packet, destination) {
            Onward::Linux => return None,
            Onward::Stopped(why) => return Some(Fate::Drop(why)),
            Onward::Fragments | Onward::Goes => {}
        }
        let outward = if is_out {
            if frame.port != LAN || world::way(&self.services, packet.source) == Way::None {
                return Some(Fate::Drop("snat_none"));
            }
            let leaves = match *what {
                What::Ports(class, port, _) => self.leave(frame, snat, class, (packet.source, port).into()),
                What::Request(id) => self.leave(frame, snat, Class::Echo, (packet.source, id).into()),
                What::Later(class, port, _) => {
                    self.outside_of(frame, class, (packet.source, port).into()).ok_or("snat_none")
                }
                // Whoever reports may be a router inside.
                What::Error(class, _, inside) => self.outside_of(frame, class, inside).ok_or("snat_none"),
                What::Reply(_) | What::Other => Err("snat_none"),
            };
            match leaves {
                Ok(outside) => Some(outside),
                Err(why) => return Some(Fate::Drop(why)),
            }
        } else {
            None
        };
        let sent = readdressed(packet, what, inward, outward)?;
        Some(self.route_on(frame, sent, destination))
    }

    /// Who is behind a port of the pool.
    fn behind(&self, frame: &Frame<'_>, class: Class, outside: SocketAddr) -> Option<SocketAddr> {
        let mut mappings = self.mappings.iter().filter(|one| (one.class, one.outside) == (class, outside));
        Some(mappings.find(|one| self.is_alive(frame, one))?.inside)
    }

    /// What an inside address and port is outside.
    fn outside_of(&self, frame: &Frame<'_>, class: Class, inside: SocketAddr) -> Option<SocketAddr> {
        let mut mappings = self.mappings.iter().filter(|one| (one.class, one.inside) == (class, inside));
        Some(mappings.find(|one| self.is_alive(frame, one))?.outside)
    }

    fn is_alive(&self, frame: &Frame<'_>, one: &Mapping) -> bool {
        let is_seen = || frame.observed.mapped.0.contains(&(one.class, one.inside, one.outside));
        self.now <= one.sure_until || self.now <= one.maybe_until && is_seen()
    }

    /// As whom a packet from inside leaves, whose mapping follows it; begun, if there is none.
    fn leave(
        &mut self,
        frame: &Frame<'_>,
        snat: &Snat,
        class: Class,
        inside: SocketAddr,
    ) -> Result<SocketAddr, &'static str> {
        let flags = if class == Class::Tcp { frame.packet.flags() } else { 0 };
        let (outside, state) = match self.outside_of(frame, class, inside) {
            Some(outside) => {
                let its = |one: &&Mapping| (one.class, one.inside, one.outside) == (class, inside, outside);
                let old = self.mappings.iter().find(its).map_or(State::Stateless, |one| one.state);
                (outside, next(old, flags))
            }
            None if class == Class::Tcp && flags & (SYN | ACK | RST) != SYN => return Err("snat_none"),
            None => {
                let state = if class == Class::Tcp { State::Opening } else { State::Stateless };
                (self.begin_mapping(frame, snat, class, inside)?, state)
            }
        };
        let seconds = match (class, state) {
            (Class::Udp, _) => snat.timeouts.udp,
            (Class::Echo, _) => snat.timeouts.icmp,
            (Class::Tcp, State::Established) => snat.timeouts.established,
            (Class::Tcp, _) => snat.timeouts.transitory,
        };
        let sure_until = self.now + u64::from(seconds) * TICKS_PER_SECOND;
        let maybe_until = sure_until + 3 * grain(seconds);
        let is_this = |one: &Mapping| one.class == class && (one.inside == inside || one.outside == outside);
        self.mappings.retain(|one| !is_this(one));
        self.mappings.push(Mapping { class, inside, outside, state, sure_until, maybe_until });
        Ok(outside)
    }

    /// The port that a mapping is given, if that is one that it may have; why there is none, if there may be none.
    fn begin_mapping(
        &self,
        frame: &Frame<'_>,
        snat: &Snat,
        class: Class,
        inside: SocketAddr,
    ) -> Result<SocketAddr, &'static str> {
        let block_of =
            |outside: SocketAddr| (outside.ip(), (outside.port() - snat.ports.start()) / snat.block);
        // Those that are over may still have their ports until somebody looks.
        let of_class = || self.mappings.iter().filter(|one| one.class == class);
        let own = || of_class().filter(|one| one.inside.ip() == inside.ip());
        let in_block = |block| of_class().filter(move |one| block_of(one.outside) == block);
        let after = frame.observed.mapped.1.iter().find(|one| (one.0, one.1) == (class, inside));
        let Some(&(.., outside)) = after else {
            let own_blocks: BTreeSet<_> = own().map(|one| block_of(one.outside)).collect();
            let is_full = own_blocks.iter().all(|&block| in_block(block).count() == usize::from(snat.block));
            let has_all = own_blocks.len() >= usize::from(snat.limit / snat.block);
            let blocks = (snat.ports.len() / usize::from(snat.block)) as u16;
            let is_used_up =
                |&address: &IpAddr| (0..blocks).all(|block| in_block((address, block)).next().is_some());
            let mut addresses = world::POOL.into_iter().map(IpAddr::from);
            let may_refuse = is_full && (has_all || addresses.any(|address| is_used_up(&address)));
            return Err(if may_refuse { "snat_full" } else { "nothing: there are ports in the pool" });
        };
        if !world::is_of_pool(outside.ip()) || !snat.ports.contains(&outside.port()) {
            return Err("nothing: the port is none of the pool's");
        }
        let alive = |one: &&Mapping| self.now <= one.sure_until;
        if of_class().filter(alive).any(|one| one.outside == outside) {
            return Err("nothing: the port is another mapping's");
        }
        let is_anothers = |one: &Mapping| one.inside.ip() != inside.ip();
        if in_block(block_of(outside)).filter(alive).any(is_anothers) {
            return Err("nothing: the port is in another host's block");
        }
        let mut of_host = self.mappings.iter().filter(|one| one.inside.ip() == inside.ip());
        // Whatever the class: a host is one to others (RFC 4787, REQ-2; RFC 7857, section 4).
        if of_host.any(|one| alive(&one) && one.outside.ip() != outside.ip()) {
            return Err("nothing: the host has another address of the pool");
        }
        let own_blocks: BTreeSet<_> =
            own().filter(alive).map(|one| block_of(one.outside)).chain([block_of(outside)]).collect();
        if own_blocks.len() > usize::from(snat.limit / snat.block) {
            return Err("nothing: the host has more blocks than it may");
        }
        let is_odd = |port: u16| port % 2 == 1;
        if is_odd(outside.port()) != is_odd(inside.port()) {
            let same =
                in_block(block_of(outside)).filter(|one| is_odd(one.outside.port()) == is_odd(inside.port()));
            if same.count() < usize::from(snat.block / 2) {
                return Err("nothing: the port is of another parity, and one of the same is free");
            }
        }
        Ok(outside)
    }

    /// Everything that is surely over goes.
    pub(super) fn sweep_mappings(&mut self, now: u64) {
        self.mappings.retain(|one| now <= one.maybe_until);
    }

    /// The inside addresses and ports of whose mappings the model has to know with this frame.
    pub fn inside_ends(&self, frame: &[u8]) -> Vec<(Class, SocketAddr)> {
        let known = self.mappings.iter().map(|one| (one.class, one.inside));
        let parsed = (frame.len() >= 14 && packet::word(frame, 12) == 0x0800)
            .then(|| packet::parse(&frame[14..], false).ok());
        let its = parsed.flatten().and_then(|packet| match what(&packet) {
            What::Ports(class, port, _) => Some((class, (packet.source, port).into())),
            What::Request(id) => Some((Class::Echo, (packet.source, id).into())),
            What::Later(..) | What::Reply(_) | What::Error(..) | What::Other => None,
        });
        known.chain(its).collect()
    }

    /// What an operator would see of mappings who sees these.
    pub(super) fn mappings_seen(&self, now: u64, seen: &[Mapped]) -> Vec<Mapped> {
        let all = self.mappings.iter().map(|one| (one, (one.class, one.inside, one.outside)));
        let there =
            all.filter(|(one, what)| now <= one.sure_until || now <= one.maybe_until && seen.contains(what));
        let mut there: Vec<Mapped> = there.map(|(_, what)| what).collect();
        there.sort();
        there
    }
}

/// A packet with the ends that it is to have: to whom it is really, and from whom.
fn readdressed(
    packet: &Packet,
    what: &What,
    inward: Option<SocketAddr>,
    outward: Option<SocketAddr>,
) -> Option<Packet> {
    let mut sent = packet.clone();
    match *what {
        What::Ports(..) => {
            if let Some(inside) = inward {
                sent.readdress(End::Destination, inside.ip(), Some(inside.port()));
            }
            if let Some(outside) = outward {
                sent.readdress(End::Source, outside.ip(), Some(outside.port()));
            }
        }
        What::Later(..) => {
            for (end, to) in [(End::Destination, inward), (End::Source, outward)] {
                let Some(to) = to else { continue };
                sent.readdress(end, to.ip(), None);
            }
        }
        What::Request(_) | What::Reply(_) => {
            for (end, to) in [(End::Destination, inward), (End::Source, outward)] {
                let Some(to) = to else { continue };
                sent.readdress(end, to.ip(), None);
                if (end == End::Source) == matches!(what, What::Request(_)) {
                    sent.identify(to.port());
                }
            }
        }
        What::Error(class, ..) => {
            let mut quote = packet::parse_start(&packet.segment()[8..], false)?;
            // What a host sent is quoted with it as the source, what it got with it as the destination.
            for (outer, inner, to) in
                [(End::Destination, End::Source, inward), (End::Source, End::Destination, outward)]
            {
                let Some(to) = to else { continue };
                sent.readdress(outer, to.ip(), None);
                let port = (class != Class::Echo).then_some(to.port());
                quote.readdress(inner, to.ip(), port);
                if class == Class::Echo {
                    quote.identify(to.port());
                }
            }
            let at = sent.at + 8;
            sent.bytes[at..].copy_from_slice(&quote.bytes);
            sent.sum_message(packet.message_defect());
        }
        What::Other => {}
    }
    Some(sent)
}

/// The state of a mapping of TCP after a packet from inside: it is established once its host has completed a handshake, and again when it sends
/// data after an end, as a port may serve several connections (RFC 5382, REQ-5).
fn next(old: State, flags: u8) -> State {
    let has = |flag| flags & flag != 0;
    match old {
        State::Stateless => old,
        _ if has(FIN) || has(RST) => State::Closing,
        State::Established => old,
        _ if has(SYN) => State::Opening,
        State::Opening if has(ACK) => State::Established,
        _ if has(PSH) => State::Established,
        _ => old,
    }
}

pub(super) fn what(packet: &Packet) -> What {
    if let Some(class) = class_of(packet.protocol).filter(|&class| class != Class::Echo) {
        let (source, destination) = match has_sound_header(packet) {
            true => ends(packet),
            false => return What::Other,
        };
        return What::Ports(class, source.port(), destination.port());
    }
    let message = packet.segment();
    if packet.protocol != ICMP || message.len() < 8 {
        return What::Other;
    }
    match message[0] {
        8 => What::Request(packet::word(message, 4)),
        0 => What::Reply(packet::word(message, 4)),
        3 | 4 | 11 | 12 => about(&message[8..]).unwrap_or(What::Other),
        _ => What::Other,
    }
}

/// What an error is about that quotes this.
fn about(quote: &[u8]) -> Option<What> {
    let quote = packet::parse_start(quote, false)?;
    if quote.segment().len() < 8 || quote.fragment.is_some_and(|fragment| fragment.offset > 0) {
        return None;
    }
    let (class, (source, destination)) = match class_of(quote.protocol)? {
        Class::Echo if matches!(quote.segment()[0], 0 | 8) => {
            let id = packet::word(quote.segment(), 4);
            (Class::Echo, ((quote.source, id).into(), (quote.destination, id).into()))
        }
        Class::Echo => return None,
        class => (class, ends(&quote)),
    };
    Some(What::Error(class, source, destination))
}

/// SCTP has none: its ends tell each other their addresses.
pub(super) fn class_of(protocol: u8) -> Option<Class> {
    match protocol {
        TCP => Some(Class::Tcp),
        UDP => Some(Class::Udp),
        ICMP => Some(Class::Echo),
        _ => None,
    }
}
