//! A client and its server by FTP: a control connection, and data connections from either side.

use std::net::IpAddr;

use dataplane::service::Helper;
use proptest::prelude::*;
use proptest::sample::select;

use super::sent::sent;
use super::{ITS, Known, Odd, Sent, Step};
use crate::packet::{ACK, FIN, PSH, RST, SYN};
use crate::world::{Flow, Service};

/// Of control connections.
const CONTROL: u16 = 21;

/// A packet between a client and a service that has the helper for FTP.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The service has the number that this one says among those with the helper, modulo how many there are. [`ITS`] is the server of the client's control connection, if
    /// this packet is of none that is known.
    pub sent: Sent,
    /// The client's port of its control connection.
    pub control_port: u16,
}

/// What a server says about where it listens.
#[derive(Clone, Debug)]
pub struct Said {
    /// Before the bracket.
    pub prose: &'static str,
    /// Whose address, if not its own.
    pub of: Option<[u8; 4]>,
    /// Behind the address.
    pub end: &'static str,
}

impl Said {
    /// The same as a server with this address says it.
    pub(super) fn by(&self, server: IpAddr) -> String {
        let own = if let IpAddr::V4(four) = server { four.octets() } else { [10, 0, 0, 1] };
        let [a, b, c, d] = self.of.unwrap_or(own);
        format!("{}({a},{b},{c},{d}{}", self.prose, self.end)
    }
}

/// A handshake at the control port, or the beginning of one, and what follows.
pub(super) fn transfer() -> impl Strategy<Value = Vec<Step>> {
    let turn = prop_oneof![
        4 => passive(),
        4 => active(),
        4 => reply(),
        3 => any_turn(),
    ];
    let turn = prop_oneof![
        12 => turn.prop_map(|sent| Step::Transfer(Transfer { sent, control_port: 0 })),
        1 => select(vec![5u64, 70, 90, 250, 500]).prop_map(Step::Wait),
        1 => Just(Step::Sweep),
    ];
    let handshake = prop_oneof![6 => Just(3), 1 => 1..3usize];
    (sent(), select(vec![1u8, 1, 2, 9]), handshake, prop::collection::vec(turn, 1..=6)).prop_map(
        |(first, client, handshake, turns)| {
            let control_port = first.client_port;
            let step = |sent: Sent| Step::Transfer(Transfer { sent, control_port });
            let first = Sent {
                client,
                virtual_port: CONTROL,
                from: None,
                flags: SYN,
                payload: 0,
                hops: 64,
                odd: None,
                ..first
            };
            let answer = Sent { from: Some(ITS), flags: SYN | ACK, ..first.clone() };
            let last = Sent { flags: ACK, ..first.clone() };
            let turns = turns.into_iter().map(|turn| match turn {
                Step::Transfer(Transfer { sent, .. }) => {
                    step(Sent { service: first.service, client, ..sent })
                }
                other => other,
            });
            let turns: Vec<Step> = turns.collect();
            [first.clone(), answer, last].map(step).into_iter().take(handshake).chain(turns).collect()
        },
    )
}

/// Ports of the service: those of data connections, and some that are not.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![6 => select(vec![1024u16, 8080, 50_000]), 1 => select(vec![20u16, 21, 443, 1023])]
}

/// Of a data connection that the client opens.
fn passive() -> impl Strategy<Value = Sent> {
    let flags = select(vec![SYN, SYN, SYN, ACK, FIN | ACK, RST]);
    let from = prop_oneof![2 => Just(None), 1 => Just(Some(ITS))];
    (sent(), port(), flags, from, select(vec![40_002u16, 40_003])).prop_map(
        |(sent, virtual_port, flags, from, client_port)| Sent {
            virtual_port,
            flags,
            from,
            client_port,
            ..sent
        },
    )
}

/// Of one that the server opens.
fn active() -> impl Strategy<Value = Sent> {
    let turn = prop_oneof![
        4 => Just((Some(ITS), SYN)),
        1 => (0..4usize).prop_map(|server| (Some(server), SYN)),
        2 => Just((None, SYN | ACK)),
        1 => Just((Some(ITS), ACK)),
        1 => Just((Some(ITS), SYN | ACK)),
    ];
    let virtual_port = prop_oneof![8 => Just(20u16), 1 => Just(2020)];
    (sent(), virtual_port, turn, select(vec![40_004u16, 40_005])).prop_map(
        |(sent, virtual_port, (from, flags), client_port)| Sent {
            virtual_port,
            from,
            flags,
            client_port,
            ..sent
        },
    )
}

/// What the server says on the control connection.
fn reply() -> impl Strategy<Value = Sent> {
    let prose = prop_oneof![
        6 => Just("227 Entering Passive Mode "),
        1 => select(vec!["227 ", "227 x", "227 =", "227-Entering ", "229 Entering ", "227 a\r\n227 ", ""]),
    ];
    let of = prop_oneof![6 => Just(None), 1 => select(vec![[192, 0, 2, 10], [192, 0, 2, 11], [10, 0, 0, 9], [1, 2, 3, 4]]).prop_map(Some)];
    let end = prop_oneof![
        6 => Just(",195,80).\r\n"),
        1 => select(vec![",4,1)\r\n", ",4,256).\r\n", ",4).\r\n", ",4,1,1).\r\n", ",4,1).\n", ",4,1", ",4,1).\r\n220 x\r\n", ",004,01) y\r\n"]),
    ];
    let said = (prose, of, end).prop_map(|(prose, of, end)| Said { prose, of, end });
    (sent(), said).prop_map(|(sent, said)| Sent {
        from: Some(ITS),
        client_port: 40_000,
        virtual_port: CONTROL,
        flags: PSH | ACK,
        hops: 64,
        odd: Some(Odd::Said(said)),
        ..sent
    })
}

/// Anything else.
fn any_turn() -> impl Strategy<Value = Sent> {
    (sent(), port()).prop_map(|(sent, virtual_port)| Sent { virtual_port, ..sent })
}

impl Transfer {
    /// The number of its service.
    pub(crate) fn service(&self, services: &[Service]) -> usize {
        let has_helper = |&number: &usize| services[number].helper == Some(Helper::Ftp);
        let helped: Vec<usize> = (0..services.len()).filter(has_helper).collect();
        helped[self.sent.service % helped.len()]
    }

    /// The port that it comes in on, and the frame.
    pub(crate) fn frame(
        &self,
        services: &[Service],
        known: impl Fn(Flow) -> Option<Known>,
    ) -> (u16, Vec<u8>) {
        let sent = Sent { service: self.service(services), ..self.sent.clone() };
        let control = Sent { client_port: self.control_port, virtual_port: CONTROL, ..sent.clone() }
            .flow(&services[sent.service]);
        sent.frame(services, |flow| known(flow).or_else(|| known(control)))
    }
}
