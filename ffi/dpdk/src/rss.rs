//! What a device hashes to choose the queue of a packet (receive side scaling, RSS).

use std::fmt;

/// The longest key that a device has.
pub const LONGEST_KEY: usize = 64;

/// How a device is to spread IP packets over its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rss {
    /// What of a packet's addresses and ports counts, if the device lets itself be told; else both sides do.
    pub side: Side,
    /// The key of the hash, of which a device takes as much as it has room for. The driver's own, which everybody knows, if it
    /// is none. Drivers keep the pointer and read it again at each start.
    pub key: Option<&'static [u8; LONGEST_KEY]>,
}

/// Which of a packet's addresses and ports count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Side {
    /// All of them.
    #[default]
    Both,
    /// Those that it comes from.
    Source,
    /// Those that it goes to.
    Destination,
}

/// Something that a device may be asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// `RTE_ETH_RSS_*`.
    pub hash: u64,
    /// What that stands for.
    pub side: Side,
    /// As long as the device wants it.
    pub key: Option<&'static [u8]>,
}

impl Rss {
    /// What to ask a device for that can hash this and has a key so long, the best first: a driver may refuse what it says
    /// that it can do. Nothing, if it cannot hash.
    pub(crate) fn asks(&self, can: u64, key_length: u8) -> Vec<Ask> {
        let plain = (dpdk_sys::RVS_RSS_IP | dpdk_sys::RVS_RSS_TCP | dpdk_sys::RVS_RSS_UDP) & can;
        let side = match self.side {
            Side::Both => 0,
            Side::Source => dpdk_sys::RVS_RSS_SOURCE,
            Side::Destination => dpdk_sys::RVS_RSS_DESTINATION,
        };
        let key = self.key.and_then(|key| key.get(..usize::from(key_length))).filter(|key| !key.is_empty());
        let mut asks = Vec::new();
        // Half of it, addresses of one side and ports of both, would bring nothing together.
        let one_sided = (side != 0 && can & side == side).then_some((plain | side, self.side));
        for (hash, side) in one_sided.into_iter().chain([(plain, Side::Both)]) {
            asks.extend(key.map(|key| Ask { hash, side, key: Some(key) }));
            asks.push(Ask { hash, side, key: None });
        }
        if plain == 0 { Vec::new() } else { asks }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Both => "both sides",
            Side::Source => "the source",
            Side::Destination => "the destination",
        })
    }
}

/// The names of these `RTE_ETH_RSS_*`, as far as they matter to a router.
pub(crate) fn names(flow_types: u64) -> Vec<&'static str> {
    let known = [
        (dpdk_sys::RVS_RSS_IPV4, "ipv4"),
        (dpdk_sys::RVS_RSS_IPV4_TCP, "ipv4-tcp"),
        (dpdk_sys::RVS_RSS_IPV4_UDP, "ipv4-udp"),
        (dpdk_sys::RVS_RSS_IPV6, "ipv6"),
        (dpdk_sys::RVS_RSS_IPV6_TCP, "ipv6-tcp"),
        (dpdk_sys::RVS_RSS_IPV6_UDP, "ipv6-udp"),
        (dpdk_sys::RVS_RSS_SOURCE, "source-only"),
        (dpdk_sys::RVS_RSS_DESTINATION, "destination-only"),
    ];
    known.into_iter().filter(|(bits, _)| flow_types & bits != 0).map(|(_, name)| name).collect()
}

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
    fn what_a_device_is_asked_for() {
        let (source, ipv4, tcp) =
            (dpdk_sys::RVS_RSS_SOURCE, dpdk_sys::RVS_RSS_IPV4, dpdk_sys::RVS_RSS_IPV4_TCP);
        let rss = |side, key| Rss { side, key };
        let plain = |key| Ask { hash: ipv4 | tcp, side: Side::Both, key };
        assert_eq!(rss(Side::Source, None).asks(0, 40), []);
        assert_eq!(rss(Side::Both, None).asks(ipv4 | tcp | source, 40), [plain(None)]);
        assert_eq!(rss(Side::Destination, None).asks(ipv4 | tcp | source, 40), [plain(None)]);
        let sided = |key| Ask { hash: ipv4 | tcp | source, side: Side::Source, key };
        let short = Some(&[7; 40][..]);
        assert_eq!(
            rss(Side::Source, Some(&[7; LONGEST_KEY])).asks(ipv4 | tcp | source, 40),
            [sided(short), sided(None), plain(short), plain(None)]
        );
        // A device without a key, and one with a longer one than we have.
        for length in [0, 65] {
            assert_eq!(rss(Side::Both, Some(&[7; LONGEST_KEY])).asks(ipv4 | tcp, length), [plain(None)]);
        }
        assert_eq!(names(ipv4 | tcp | source), ["ipv4", "ipv4-tcp", "source-only"]);
    }

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
