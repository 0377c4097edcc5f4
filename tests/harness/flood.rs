//! Very many connections that exist in a router only: by direct routing it sees what the client sends, and no more.
//!
//! A SYN and an ACK each is all that there is of them, from addresses that nobody has (RFC 2544), to real servers that
//! drop them. So a million take no memory but the router's, and no time but the frames'.

use std::{
    fs::File,
    io::{Read, Seek},
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    cluster::{CLIENT, Cluster, VIP},
    netns::Namespace,
    packet::{Craft, Mac, flag, mac_of},
    raw::RawSender,
};

/// Frames on the way at a time: fewer than any queue on it has room for.
const WINDOW: u64 = 384;
/// How often that is looked after, in frames.
const STRIDE: u64 = 64;
/// After so long without a frame, what is on the way has been lost.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// Connections from one address.
const PORTS: u32 = 60_000;

/// A client without sockets, on the one segment of direct routing.
#[derive(Debug)]
pub struct Flood {
    sender: RawSender,
    meter: Meter,
    router: Mac,
    to: SocketAddrV4,
    /// Where the meter stood at the beginning, and frames sent since.
    begin: u64,
    sent: u64,
}

/// The client of a connection.
pub fn client(number: u32) -> SocketAddrV4 {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number / PORTS);
    SocketAddrV4::new(address, 1024 + (number % PORTS) as u16)
}

/// Which connection has this client.
pub fn number(client: SocketAddrV4) -> Option<u32> {
    let address = u32::from(*client.ip()).checked_sub(u32::from(Ipv4Addr::new(198, 18, 0, 0)))?;
    let port = u32::from(client.port()).checked_sub(1024).filter(|&port| port < PORTS)?;
    address.checked_mul(PORTS)?.checked_add(port)
}

impl Flood {
    /// Gets ready to send to a service of the first router of the cluster, and has the real servers drop what comes.
    pub fn open(cluster: &Cluster, to: SocketAddrV4) -> Result<Flood> {
        for server in &cluster.real_servers {
            server.nft(&format!(
                "table netdev flood {{\nchain in {{\n\
                 type filter hook ingress device \"eth0\" priority 0; ip daddr {VIP} drop;\n}}\n}}\n"
            ))?;
        }
        let sender = RawSender::open(&cluster.client, "eth0")?;
        let meter = Meter::open(&cluster.lan, "router")?;
        Ok(Flood { sender, meter, router: cluster.router_mac(), to, begin: 0, sent: 0 })
    }

    /// Establishes these connections, as fast as the router forwards, until it does so no more; how many frames it has not
    /// forwarded.
    pub fn establish(&mut self, numbers: Range<u32>) -> Result<u64> {
        self.begin = self.meter.packets()?;
        self.sent = 0;
        for number in numbers {
            for flags in [flag::SYN, flag::ACK] {
                let craft = Craft { flags, ..Craft::syn(client(number), self.to) };
                self.sender.send(&craft.between(mac_of(CLIENT), self.router).build())?;
                self.sent += 1;
            }
            if self.sent.is_multiple_of(STRIDE) && self.wait_room(WINDOW)? > WINDOW {
                break;
            }
        }
        self.wait_room(0)
    }

    /// Waits until no more than so many frames are on the way, or none of them comes any more; how many they are.
    fn wait_room(&mut self, room: u64) -> Result<u64> {
        let (mut least, mut moved) = (u64::MAX, Instant::now());
        loop {
            let come = self.meter.packets()? - self.begin;
            let on_the_way = self.sent.saturating_sub(come);
            if on_the_way < least {
                (least, moved) = (on_the_way, Instant::now());
            }
            if on_the_way <= room || moved.elapsed() > LOST_AFTER {
                return Ok(on_the_way);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// How many packets an interface has received.
#[derive(Debug)]
struct Meter {
    file: File,
    interface: String,
}

impl Meter {
    fn open(namespace: &Namespace, interface: &str) -> Result<Meter> {
        // Of the namespace in which it was opened, whoever reads it.
        let file = namespace.enter(|| Ok(File::open("/proc/thread-self/net/dev")?))?;
        Ok(Meter { file, interface: format!("{interface}:") })
    }

    fn packets(&mut self) -> Result<u64> {
        let mut text = String::new();
        self.file.rewind()?;
        self.file.read_to_string(&mut text)?;
        // "  name: bytes packets errs drop ..."
        let mut words = text.split_ascii_whitespace().skip_while(|word| *word != self.interface);
        let packets = words.nth(2).context(text.clone())?;
        packets.parse().with_context(|| format!("{packets} of {}", self.interface))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_a_client_of_its_own() {
        for wanted in [0, 1, PORTS - 1, PORTS, 1_000_000, 1_099_999] {
            assert_eq!(number(client(wanted)), Some(wanted));
        }
        assert_eq!(number("198.18.0.0:80".parse().unwrap()), None);
        assert_eq!(number("192.0.2.100:4000".parse().unwrap()), None);
    }
}
