//! What a device hashes to choose the queue of a packet (receive side scaling).

use std::fmt;

/// What of an IPv4 packet decides about its queue.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hashed {
    /// The addresses.
    pub addresses: bool,
    /// The ports too, if it is TCP.
    pub tcp_ports: bool,
    /// The ports too, if it is UDP.
    pub udp_ports: bool,
}

impl Hashed {
    /// What these `RTE_ETH_RSS_*` stand for.
    pub fn of(flow_types: u64) -> Hashed {
        let has = |flow_type| flow_types & flow_type != 0;
        let (tcp_ports, udp_ports) = (has(dpdk_sys::RVS_RSS_IPV4_TCP), has(dpdk_sys::RVS_RSS_IPV4_UDP));
        Hashed { addresses: tcp_ports || udp_ports || has(dpdk_sys::RVS_RSS_IPV4), tcp_ports, udp_ports }
    }
}

/// For a log: "addresses, ports of TCP and UDP".
impl fmt::Display for Hashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.addresses, self.tcp_ports, self.udp_ports) {
            (false, ..) => "nothing of IPv4",
            (true, false, false) => "addresses",
            (true, true, false) => "addresses, ports of TCP",
            (true, false, true) => "addresses, ports of UDP",
            (true, true, true) => "addresses, ports of TCP and UDP",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_flow_types_stand_for() {
        for (flow_types, shown) in [
            (0, "nothing of IPv4"),
            (dpdk_sys::RVS_RSS_IPV4, "addresses"),
            (dpdk_sys::RVS_RSS_IPV4_TCP, "addresses, ports of TCP"),
            (dpdk_sys::RVS_RSS_IPV4 | dpdk_sys::RVS_RSS_IPV4_UDP, "addresses, ports of UDP"),
            (u64::MAX, "addresses, ports of TCP and UDP"),
        ] {
            assert_eq!(Hashed::of(flow_types).to_string(), shown);
        }
    }
}
