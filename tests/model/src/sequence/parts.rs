//! A client's datagram in parts: in whatever order, some of them with no hop left.

use proptest::prelude::*;

use super::sent::sent;
use super::{Odd, Sent, Step};
use crate::packet::SYN;

/// Two parts or more, maybe one of them twice.
pub(super) fn parts() -> impl Strategy<Value = Vec<Step>> {
    let part = (0..3u8, prop_oneof![4 => Just(64u8), 1 => 0..3u8]);
    (sent(), prop::collection::vec(part, 2..=5)).prop_map(|(datagram, parts)| {
        let datagram = Sent { from: None, flags: SYN, ..datagram };
        let part = |(part, hops)| Sent { hops, odd: Some(Odd::Part(1, part)), ..datagram.clone() };
        parts.into_iter().map(part).map(Step::Packet).collect()
    })
}
