//! Packets of IPsec: IKE, and what two hosts protect.

use dataplane::service::Helper;
use proptest::prelude::*;
use proptest::sample::select;

use super::sent::sent;
use super::{Known, Sent, Step};
use crate::packet::{AH, ESP};
use crate::world::{Flow, Service};

/// A packet between a client and a service that has the helper for IPsec.
#[derive(Clone, Debug)]
pub struct Secured {
    /// All that is to be said of it but its protocol. The service has the number that this one says among those with the helper, modulo how many there are.
    pub sent: Sent,
    /// What it is of.
    pub by: Security,
}

/// A protocol of IPsec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// That by which the ends agree on keys, over UDP.
    Ike,
    /// Encapsulating Security Payload.
    Esp,
    /// Authentication Header.
    Ah,
}

/// A client agrees with a server, and they go on.
pub(super) fn ike() -> impl Strategy<Value = Vec<Step>> {
    let turn = prop_oneof![
        8 => secured().prop_map(Step::Secured),
        1 => select(vec![5u64, 17, 70, 250]).prop_map(Step::Wait),
    ];
    (secured(), prop::collection::vec(turn, 1..=6)).prop_map(|(first, turns)| {
        let Secured { sent, .. } = first;
        let sent = Sent { from: None, hops: 64, odd: None, ..sent };
        let mut steps = vec![Step::Secured(Secured { sent, by: Security::Ike })];
        steps.extend(turns);
        steps
    })
}

fn secured() -> impl Strategy<Value = Secured> {
    let client = prop_oneof![6 => Just(1u8), 1 => Just(2), 1 => Just(9)];
    let port = || prop_oneof![12 => Just(500u16), 1 => Just(4500)];
    let by = prop_oneof![1 => Just(Security::Ike), 5 => Just(Security::Esp), 3 => Just(Security::Ah)];
    (sent(), client, port(), port(), by).prop_map(|(sent, client, client_port, virtual_port, by)| Secured {
        sent: Sent { client, client_port, virtual_port, ..sent },
        by,
    })
}

impl Secured {
    /// The number of its service.
    pub(crate) fn service(&self, services: &[Service]) -> usize {
        let has_helper = |&number: &usize| services[number].helper == Some(Helper::Ipsec);
        let helped: Vec<usize> = (0..services.len()).filter(has_helper).collect();
        helped[self.sent.service % helped.len()]
    }

    /// The port that it comes in on, and the frame.
    pub(crate) fn frame(
        &self,
        services: &[Service],
        known: impl Fn(Flow) -> Option<Known>,
    ) -> (u16, Vec<u8>) {
        let service = &services[self.service(services)];
        let (port, source, destination) = self.sent.ends(service, known);
        let protocol = self.sent.flow(service).protocol;
        let ip = match self.by {
            Security::Ike => self.sent.packet(source, destination, protocol),
            // What is in it would be written over if anybody took it for ports and a checksum.
            Security::Esp => self.sent.packet_of(ESP, source, destination, protocol),
            Security::Ah => self.sent.packet_of(AH, source, destination, protocol),
        };
        self.sent.framed(port, service.is_six, ip)
    }
}
