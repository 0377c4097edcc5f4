//! How NICs are asked to spread packets over the workers (RSS).
//!
//! A client's packets carry its address and port as source, and a real server's replies as destination. A NIC that hashes only
//! that side, where clients' packets come in and where replies do, gives both directions of a connection to one worker, if all
//! ports have one key. That is worth something, as the connection then stays in one core's cache, but nothing depends on it:
//! any worker may handle any packet. Where it is not clear which side a port is on, or the NIC cannot, addresses and ports of both
//! sides are hashed.
//!
//! The key is another one at each start: with a driver's own, which can be read in its source, somebody could choose source
//! ports so that one worker gets all of his packets.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use dpdk::{LONGEST_KEY, Side};
use ring::rand::{SecureRandom, SystemRandom};

use crate::config::{Config, Service};

/// The key of all ports of this process.
pub(super) fn key() -> Result<&'static [u8; LONGEST_KEY]> {
    static KEY: OnceLock<[u8; LONGEST_KEY]> = OnceLock::new();
    let mut random = [0; LONGEST_KEY];
    SystemRandom::new().fill(&mut random).map_err(|_| anyhow!("Linux gives no random numbers"))?;
    Ok(KEY.get_or_init(|| random))
}

/// The side of a packet on which clients are, when it comes in by this port.
pub(super) fn side(config: &Config, index: usize) -> Side {
    // It, or a tagged network on its wire.
    let is_here = |(place, port): (usize, &crate::config::Port)| {
        place == index || port.tag.is_some_and(|tag| usize::from(tag.port) == index)
    };
    let is_near = |address| {
        config.ports.iter().enumerate().any(|(place, port)| is_here((place, port)) && port.is_near(address))
    };
    let replies = config.services.iter().filter(|service| !service.mode.is_one_way());
    let mut replies = replies.flat_map(|service| &service.servers);
    let replies = replies.any(|server| is_near(server.address.ip()));
    let mut requests = config.services.iter().flat_map(Service::virtual_addresses);
    let requests = requests.any(|address| {
        // One in nobody's network comes by a route, and hardly from where the servers are.
        is_near(address) || !replies && !config.ports.iter().any(|port| port.is_near(address))
    });
    match (requests, replies) {
        (true, false) => Side::Source,
        (false, true) => Side::Destination,
        _ => Side::Both,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn sides(mode: &str, address: &str, lan: &str) -> Vec<Side> {
        let text = format!(
            "[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"01:00.0\"\naddresses = [\"192.0.2.1/24\"]\n\
             [[port]]\nname = \"lan\"\ndevice = \"01:00.1\"\naddresses = [\"{lan}\"]\n\
             [[service]]\naddress = \"{address}\"\nmode = \"{mode}\"\n[[service.server]]\naddress = \"10.0.0.11:80\"\n"
        );
        let config = crate::config::parse(Path::new("f"), text.into()).unwrap();
        (0..2).map(|index| side(&config, index)).collect()
    }

    #[test]
    fn the_side_of_the_clients() {
        assert_eq!(sides("nat", "192.0.2.10:80", "10.0.0.1/24"), [Side::Source, Side::Destination]);
        // By a route.
        assert_eq!(sides("nat", "203.0.113.10:80", "10.0.0.1/24"), [Side::Source, Side::Destination]);
        // Servers answer directly.
        assert_eq!(sides("dr", "192.0.2.10:80", "10.0.0.1/24"), [Side::Source, Side::Both]);
        // One arm for both.
        assert_eq!(sides("nat", "10.0.0.10:80", "10.0.0.1/24"), [Side::Both, Side::Both]);
    }

    #[test]
    fn one_key_for_all() {
        assert_eq!(key().unwrap(), key().unwrap());
        assert_ne!(*key().unwrap(), [0; LONGEST_KEY]);
    }
}
