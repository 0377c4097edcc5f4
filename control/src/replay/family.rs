//! What differs between the families in what is said of addresses, and in what is made up around the router.

use std::hash::Hash;

use dataplane::wire::ethernet::Mac;
use dataplane::wire::version::Version;

/// An address of a family.
pub trait Family: Version + Hash {
    /// What packets of it are called.
    const IP: &str;
    /// What its ICMP is called.
    const ICMP_NAME: &str;
    /// The gateway to all that is in no port's network, unless routes are given.
    const GATEWAY: Self;

    /// The MAC that a neighbour with this address has, unless neighbours are given.
    fn mac(self) -> Mac;
}

impl Family for u32 {
    const IP: &str = "ipv4";
    const ICMP_NAME: &str = "icmp";
    /// 0.0.0.254.
    const GATEWAY: u32 = 254;

    fn mac(self) -> Mac {
        let [a, b, c, d] = self.to_be_bytes();
        [2, 0, a, b, c, d]
    }
}

impl Family for u128 {
    const IP: &str = "ipv6";
    const ICMP_NAME: &str = "icmpv6";
    /// fe80::fe.
    const GATEWAY: u128 = 0xFE80 << 112 | 0xFE;

    /// Not with the beginning of IPv4's: addresses that end with `::1` are common, and ports have the MACs of such numbers.
    fn mac(self) -> Mac {
        let [.., a, b, c, d] = self.to_be_bytes();
        [2, 6, a, b, c, d]
    }
}
