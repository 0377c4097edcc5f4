//! A client whose packets come now by one port of the router, now by the other.

use proptest::prelude::*;
use proptest::sample::select;

use super::sent::sent;
use super::{ITS, Odd, Sent, Step};
use crate::packet::{ACK, FIN, SYN};

/// The beginning of a connection, and some packets more.
pub(super) fn crossing() -> impl Strategy<Value = Vec<Step>> {
    let turn = (sent(), prop::bool::weighted(0.3), any::<bool>(), select(vec![SYN, ACK, ACK, FIN | ACK]));
    (sent(), any::<bool>(), prop::collection::vec(turn, 1..=4)).prop_map(|(first, is_wrong, turns)| {
        let first =
            Sent { from: None, flags: SYN, hops: 64, odd: is_wrong.then_some(Odd::WrongPort), ..first };
        let turns = turns.into_iter().map(|(turn, is_reply, is_wrong, flags)| Sent {
            service: first.service,
            face: first.face,
            client: first.client,
            client_port: first.client_port,
            virtual_port: first.virtual_port,
            from: is_reply.then_some(ITS),
            flags,
            odd: if is_wrong { Some(Odd::WrongPort) } else { turn.odd },
            ..turn
        });
        let turns: Vec<Sent> = turns.collect();
        [first].into_iter().chain(turns).map(Step::Packet).collect()
    })
}
