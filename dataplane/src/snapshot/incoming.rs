//! What a service of all ports has of them depends on where packets come in.
//!
//! As with `iptables -i`, by which a firewall mark is given: of one address and port each port of the router may have another service.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::fib::PortIndex;

/// The ports of its address that a service has of what comes in by each port of the router. In ascending order, without touching each
/// other; here none are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    /// By port of the router.
    pub by: BTreeMap<PortIndex, Vec<RangeInclusive<u16>>>,
    /// By any that is not among these.
    pub others: Vec<RangeInclusive<u16>>,
}

impl Incoming {
    /// Whether a packet to this port that comes in here is the service's.
    pub fn has(&self, port: u16, incoming: PortIndex) -> bool {
        covers(self.by.get(&incoming).unwrap_or(&self.others), port)
    }
}

/// Whether a port is in one of these ranges, which ascend and do not overlap.
pub fn covers(ranges: &[RangeInclusive<u16>], port: u16) -> bool {
    let before = ranges.partition_point(|range| *range.end() < port);
    ranges.get(before).is_some_and(|range| range.contains(&port))
}
