//! Datagrams that name their servers, and services that know what they say.

use dataplane::service::Protocol;
use proptest::prelude::*;
use proptest::sample::select;

use super::sent::sent;
use super::{Odd, Sent};
use crate::quic::{self, Config};
use crate::world::Service;

/// A datagram to a connection id.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// The configuration by which the id is written, modulo how many there are; or none, which is 7.
    pub config: Option<usize>,
    /// The number of the server that it names. Some have no id, and there are more numbers than servers.
    pub server: usize,
    /// Each byte of the nonce.
    pub nonce: u8,
    /// If the header is a long one: by how many bytes the id is longer than that says.
    pub long: Option<usize>,
    /// Bytes of the payload that are missing.
    pub cut: usize,
    /// Bytes behind the packet.
    pub behind: usize,
}

/// A packet of a client, with such a payload if it is one to a service that reads it.
pub(super) fn datagram() -> impl Strategy<Value = Sent> {
    let config = prop::option::weighted(0.95, 0..2usize);
    let long = prop::option::of(prop_oneof![6 => Just(0usize), 1 => 1..9usize]);
    let cut = prop_oneof![6 => Just(0usize), 1 => 1..24usize];
    let behind = prop_oneof![3 => Just(0usize), 1 => 1..24usize];
    let datagram = (config, 0..5usize, any::<u8>(), long, (cut, behind)).prop_map(
        |(config, server, nonce, long, (cut, behind))| Datagram { config, server, nonce, long, cut, behind },
    );
    (sent(), datagram).prop_map(|(sent, datagram)| Sent {
        from: None,
        odd: Some(Odd::Quic(datagram)),
        ..sent
    })
}

impl Datagram {
    /// What stands behind the header of UDP, if the service is one of QUIC.
    pub(super) fn payload(&self, service: &Service) -> Option<Vec<u8>> {
        let first = service.quic.first()?;
        let config = self.config.map_or(first, |number| &service.quic[number % service.quic.len()]);
        let server_id = server_id(self.server, first.server_id);
        let mut id = config.write(&server_id, &vec![self.nonce; config.nonce], self.nonce);
        if self.config.is_none() {
            id[0] |= 0xE0;
        }
        let said = self.long.map(|less| id.len().saturating_sub(less));
        let mut payload = quic::payload(&id, said);
        payload.truncate(payload.len().saturating_sub(self.cut));
        Some(payload)
    }
}

/// What a server is called: as what other datagrams have at that place, as what may stand behind one in its frame, and as they like.
fn server_id(server: usize, length: usize) -> Vec<u8> {
    let at = |place: usize| match server {
        0 => 2 + place as u8,
        1 => 0xEE,
        _ => 0x10 + server as u8,
    };
    (0..length).map(at).collect()
}

/// How the servers of a service write their ids, if they do.
pub(super) fn configs() -> impl Strategy<Value = Vec<Config>> {
    let key = prop::option::of(Just(*b"of the servers.."));
    let config = (select(vec![4usize, 5, 9, 16]), key);
    let configs = (select(vec![1usize, 2, 3, 7, 8, 12, 15]), prop::collection::vec(config, 1..=2));
    let configs = configs.prop_map(|(server_id, configs)| {
        let nonce = |nonce: usize| nonce.min(19 - server_id);
        let numbered = [0u8, 3].into_iter().zip(configs);
        numbered
            .map(|(number, (wished, key))| Config { number, server_id, nonce: nonce(wished), key })
            .collect()
    });
    prop_oneof![2 => Just(Vec::new()), 1 => configs]
}

/// The service as it is wished, if it can be.
pub(super) fn with_ids(mut service: Service, configs: Vec<Config>) -> Service {
    let can = !service.is_marked && service.helper.is_none() && service.faces[0].protocol == Protocol::Udp;
    service.quic = if can { configs } else { Vec::new() };
    if let Some(first) = service.quic.first() {
        // The last of many has none.
        for (number, server) in service.servers.iter_mut().enumerate().take(3) {
            server.quic_id = Some(server_id(number, first.server_id));
        }
    }
    service
}
