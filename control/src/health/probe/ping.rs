//! The ping check: a host is well if it answers an ICMP echo request (RFC 792; RFC 4443, 4 for IPv6).
//!
//! Linux has a socket for it that needs no privilege, if `net.ipv4.ping_group_range` allows it, for IPv6 as well; it is a
//! datagram socket whose port is the identifier, and Linux hands it its own replies only. If not, a raw socket does the same
//! for a program that may have one, with every ICMP message from the server among them, and of IPv4 with the IP header
//! before each message.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::errno::Errno;
use socket2::{Protocol, Type};

use super::datagram::{self, Datagrams};
use super::{Outcome, Probe};
use crate::config::checks;

/// Sends an echo request.
pub(super) struct Ping {
    size: usize,
}

const HEADER: usize = 8;

/// What the families do not have in common.
struct Family {
    protocol: Protocol,
    request: u8,
    reply: u8,
    /// Whether Linux compares and sets checksums whatever the socket. Those of ICMPv6 are over the addresses as well
    /// (RFC 3542, 3.1).
    sums: bool,
}

const V4: Family = Family { protocol: Protocol::ICMPV4, request: 8, reply: 0, sums: false };
const V6: Family = Family { protocol: Protocol::ICMPV6, request: 128, reply: 129, sums: true };

impl Ping {
    pub(super) fn new(check: &checks::Ping) -> Ping {
        Ping { size: usize::from(check.size) }
    }

    async fn ask(&self, server: SocketAddr) -> io::Result<Outcome> {
        let family = if server.is_ipv4() { &V4 } else { &V6 };
        let host = SocketAddr::new(server.ip(), 0);
        let (socket, raw) = match Datagrams::connect(Type::DGRAM, family.protocol, host) {
            Ok(socket) => (socket, false),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                match Datagrams::connect(Type::RAW, family.protocol, host) {
                    Ok(socket) => (socket, true),
                    Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => {
                        let why = "no permission to ping; expected CAP_NET_RAW, or a wider net.ipv4.ping_group_range";
                        return Ok(Outcome::Unknown(why.into()));
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        let request = Echo::random(self.size);
        socket.send(&request.message(family.request))?;
        loop {
            let datagram = socket.receive().await?;
            let message = match server {
                SocketAddr::V4(_) if raw => after_ip_header(&datagram),
                _ => Some(&datagram[..]),
            };
            // The identifier of a datagram socket is its port, and Linux has compared it.
            if message.is_some_and(|message| request.is_answered_by(message, family, raw)) {
                return Ok(Outcome::passed("replied"));
            }
        }
    }
}

impl Probe for Ping {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        async move { self.ask(address).await.unwrap_or_else(|error| datagram::of_error(&error)) }.boxed()
    }
}

/// What a raw socket of IPv4 receives begins with the IP header, whose length is in its first byte in words.
fn after_ip_header(datagram: &[u8]) -> Option<&[u8]> {
    let length = usize::from(datagram.first()? & 0xf) * 4;
    datagram.get(length..)
}

/// What a reply must bring back. All of it is random, so that no check takes another's reply for its own, nor one that a
/// stranger has made up.
struct Echo {
    identifier: u16,
    sequence: u16,
    payload: Vec<u8>,
}

impl Echo {
    fn random(size: usize) -> Echo {
        // The keys of a new state are random, which is all that is asked of it here.
        let random = RandomState::new();
        let [a, b, c, d, ..] = random.hash_one(0).to_be_bytes();
        let blocks = (1..=size.div_ceil(8)).flat_map(|block| random.hash_one(block).to_be_bytes());
        Echo {
            identifier: u16::from_be_bytes([a, b]),
            sequence: u16::from_be_bytes([c, d]),
            payload: blocks.take(size).collect(),
        }
    }

    fn message(&self, kind: u8) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.identifier.to_be_bytes());
        message.extend(self.sequence.to_be_bytes());
        message.extend(&self.payload);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    }

    fn is_answered_by(&self, message: &[u8], family: &Family, compare_identifier: bool) -> bool {
        let Some((header, payload)) = message.split_at_checked(HEADER) else { return false };
        header[..2] == [family.reply, 0]
            && (family.sums || checksum(message) == 0)
            && (!compare_identifier || header[4..6] == self.identifier.to_be_bytes())
            && header[6..] == self.sequence.to_be_bytes()
            && payload == self.payload
    }
}

/// The Internet checksum (RFC 1071); 0 over a message that bears the right one.
fn checksum(message: &[u8]) -> u16 {
    let word = |word: &[u8]| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
    let mut sum: u32 = message.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{kind, loopbacks, outcome, outcome_in_namespace};
    use super::*;

    #[tokio::test]
    async fn this_machine_answers() {
        for host in loopbacks() {
            for check in ["kind = \"ping\"", "kind = \"ping\"\nsize = 0", "kind = \"ping\"\nsize = 9001"] {
                match outcome(&kind(check), SocketAddr::new(host, 80)).await {
                    Outcome::Unknown(why) => eprintln!("SKIPPED: {why}"),
                    outcome => assert_eq!(outcome, Outcome::passed("replied"), "{host} {check}"),
                }
            }
        }
    }

    /// Once with the socket that needs no privilege, and once with the other.
    #[test]
    fn with_either_socket() {
        for groups in ["0 0", "1 0"] {
            let furnish = format!("ip link set lo up; echo {groups} >/proc/sys/net/ipv4/ping_group_range");
            for host in loopbacks() {
                for check in ["kind = \"ping\"", "kind = \"ping\"\nsize = 65507"] {
                    let server = SocketAddr::new(host, 80);
                    let Some(outcome) = outcome_in_namespace(&furnish, &kind(check), server) else { return };
                    assert_eq!(outcome, Outcome::passed("replied"), "{groups}: {host} {check}");
                }
            }
        }
    }

    #[test]
    fn only_its_own_reply_answers() {
        let echo = Echo { identifier: 0x1234, sequence: 7, payload: b"abc".to_vec() };
        for (family, other_family) in [(&V4, &V6), (&V6, &V4)] {
            let is_answered = |message: &[u8], compare| echo.is_answered_by(message, family, compare);
            assert!(is_answered(&echo.message(family.reply), true));
            assert!(!is_answered(&echo.message(family.request), true));
            assert!(!is_answered(&echo.message(other_family.reply), true));
            for (identifier, sequence, payload) in
                [(0x1235, 7, &b"abc"[..]), (0x1234, 8, b"abc"), (0x1234, 7, b"abd"), (0x1234, 7, b"ab")]
            {
                let other = Echo { identifier, sequence, payload: payload.to_vec() };
                assert!(!is_answered(&other.message(family.reply), true));
            }
            let translated = Echo { identifier: 1, sequence: 7, payload: b"abc".to_vec() };
            assert!(is_answered(&translated.message(family.reply), false));
            let mut damaged = echo.message(family.reply);
            damaged[2] ^= 1;
            assert_eq!(is_answered(&damaged, true), family.sums, "Linux has dropped it if it compares them");
            assert!(!is_answered(&damaged[..7], true));
        }
    }

    #[test]
    fn payloads_are_random_and_as_long_as_asked() {
        let (one, other) = (Echo::random(57), Echo::random(57));
        assert_eq!(one.payload.len(), 57);
        assert_ne!(one.payload, other.payload);
        assert!(Echo::random(0).payload.is_empty());
    }

    #[test]
    fn messages_begin_after_the_ip_header() {
        assert_eq!(after_ip_header(&[0x46; 30]), Some(&[0x46; 6][..]));
        assert_eq!(after_ip_header(&[0x45; 19]), None);
        assert_eq!(after_ip_header(&[]), None);
    }
}
