//! ICMP errors about packets of connections (RFC 792, 4443, 5508).

use dataplane::service::{Mode, Protocol};

use super::connections::Connection;
use super::headers::ends;
use super::local::readdress;
use super::sending::{has_gone_on, send, send_to};
use super::{Fate, Frame, Model, proxy};
use crate::packet::{self, End};
use crate::tcp::State;
use crate::world::{self, Flow};

impl Model {
    /// An ICMP error goes where the connection goes whose packet it quotes, translated inside and out; whatever else is Linux'.
    pub(super) fn message(&mut self, frame: &Frame<'_>) -> Fate {
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
        let about_reply = self.services_at(source, protocol).next();
        let is_astray = packet.destination != quote.source;
        // As whom a server knows a client nobody else is: what is to another address is about something else.
        let is_claimed = !is_astray && self.claim_at(destination, source, protocol).is_some();
        // A check of the router's own may wait for it.
        let is_about_request = self.is_endpoint(destination, protocol) && !world::is_own(packet.destination);
        if about_reply.is_none() && !is_about_request && !is_claimed {
            return Fate::Punt("icmp");
        }
        let nobodys = match about_reply {
            Some(_) => Fate::Punt("icmp"),
            // It would show the real server's address.
            None => Fate::Drop("icmp_error"),
        };
        if is_redirect || is_astray || packet.fragment.is_some() {
            return nobodys;
        }
        let of_client = Flow { protocol, client: destination, destination: source };
        let known = match about_reply {
            Some(_) => self.find_by_client(of_client),
            None if is_claimed => self.find_by_local(destination, source, protocol),
            None => self.find_by_server(destination, source, protocol),
        };
        let known = match (known, about_reply) {
            (Some(index), _) => Some(self.connections[index].clone()),
            // One that has no entry.
            (None, Some(service)) => {
                let server = self.by_roster(service, of_client);
                server.map(|server| Connection::new(of_client, service, server, State::None, self.now))
            }
            (None, None) => None,
        };
        let Some(Connection { service, server, flow, local, .. }) = known else {
            // A client may know the server by its own address, if there is a way to it.
            return match self.routed_instead(frame, Fate::Punt("icmp")) {
                Fate::Punt(_) => nobodys,
                routed => routed,
            };
        };
        if let Err(fate) = self.arrives(packet, service, server) {
            return fate;
        }
        let its = &self.services[service];
        let (client, virtual_address) = (flow.client, flow.destination);
        let real = world::server_at(its, server, virtual_address.port());
        let (mut sent, mut quote) = (packet.clone(), quote);
        match (its.mode, about_reply) {
            (Mode::Dr | Mode::Tunnel, _) => {}
            (Mode::Nat, Some(_)) => {
                quote.readdress(End::Source, real.ip(), Some(real.port()));
                sent.readdress(End::Destination, real.ip(), None);
            }
            (Mode::Nat, None) => {
                quote.readdress(End::Destination, virtual_address.ip(), Some(virtual_address.port()));
                sent.readdress(End::Source, virtual_address.ip(), None);
            }
            // The server need not have a way back to whoever reports.
            (Mode::Fullnat, Some(_)) => {
                let Some(local) = local else { unreachable!("it has one") };
                readdress(&mut quote, real, local, true);
                readdress(&mut sent, local, real, false);
            }
            (Mode::Fullnat, None) => {
                readdress(&mut quote, client, virtual_address, true);
                readdress(&mut sent, virtual_address, client, false);
            }
        }
        let at = sent.at + 8;
        sent.bytes[at..].copy_from_slice(&quote.bytes);
        if about_reply.is_none() && proxy::has_header(its, protocol) {
            proxy::lower_mtu(&mut sent.bytes[at - 8..], is_six);
        }
        sent.sum_message(packet.message_defect());
        sent.spend_hop();
        let length = sent.bytes.len();
        let fate = match about_reply {
            Some(_) => send_to(&self.services, frame, sent, service, server),
            None => send(&self.services, frame, &sent, client.ip()),
        };
        if has_gone_on(&fate) {
            self.count(service, server, usize::from(about_reply.is_none()), length);
        }
        fate
    }
}
