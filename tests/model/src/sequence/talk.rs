//! A client and its server who talk to each other, as far as that a stream has begun: what comes once in a thousand packets that know nothing
//! of each other.

use proptest::prelude::*;
use proptest::sample::select;

use super::sent::sent;
use super::{ITS, Odd, Sent, Step};
use crate::packet::{ACK, FIN, RST, SYN};

/// A handshake, and some packets more.
pub(super) fn talk() -> impl Strategy<Value = Vec<Step>> {
    (sent(), odd(), prop::collection::vec(turn(), 1..=5)).prop_map(|(first, odd, turns)| {
        let first =
            Sent { from: None, flags: SYN, numbers: (1, 1), payload: 0, hops: 64, odd: None, ..first };
        let answer = Sent { from: Some(ITS), flags: SYN | ACK, odd, ..first.clone() };
        let turns = turns.into_iter().map(|turn| Sent {
            service: first.service,
            face: first.face,
            client: first.client,
            client_port: first.client_port,
            virtual_port: first.virtual_port,
            ..turn
        });
        let turns: Vec<Sent> = turns.collect();
        [first, answer].into_iter().chain(turns).map(Step::Packet).collect()
    })
}

/// What one of them says next. The server acknowledges something around the end of a header that may stand before the stream.
fn turn() -> impl Strategy<Value = Sent> {
    let flags = prop_oneof![8 => Just(ACK), 1 => Just(SYN | ACK), 1 => Just(FIN | ACK), 1 => Just(RST), 1 => Just(RST | ACK)];
    let sequence = prop_oneof![3 => Just(1u32), 1 => select(vec![0, 2, 20])];
    let acknowledged = select(vec![1u32, 15, 28, 29, 30, 52, 53, 54]);
    (sent(), prop::option::of(Just(ITS)), flags, (sequence, acknowledged), 0..20usize, odd()).prop_map(
        |(sent, from, flags, numbers, payload, odd)| Sent {
            from,
            flags,
            numbers,
            payload,
            hops: 64,
            odd,
            ..sent
        },
    )
}

fn odd() -> impl Strategy<Value = Option<Odd>> {
    let sack = (select(vec![1u32, 20, 29, 300]), select(vec![2u32, 53, 54, u32::MAX]));
    let odd = prop_oneof![
        select(vec![20, 400, 500, 536, 1300, 1460]).prop_map(Odd::Mss),
        sack.prop_map(|(from, to)| Odd::Sack(from, to)),
    ];
    prop::option::weighted(0.3, odd)
}
