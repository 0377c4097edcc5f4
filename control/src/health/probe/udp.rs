//! The UDP check: a datagram goes out, and the server is well if its host does not say that nobody listens, or, if a
//! reply is required, if one comes that matches.
//!
//! Without a required reply the check waits half of its timeout for an ICMP error, and silence is a success, as with
//! keepalived, which waits the whole of it: an error comes within a round trip, and no longer wait would tell a dead host
//! from a silent one. (Only for a server in the same network, Linux says after three seconds that it has no neighbour.)

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::datagram::{self, Datagrams};
use super::{Outcome, Probe};
use crate::config::checks;
use crate::text::quoted;

/// Sends a datagram and waits for what comes of it.
pub(super) struct Udp {
    check: Arc<checks::Udp>,
    /// How long silence is listened to before it counts as a success; none if a reply is required.
    patience: Option<Duration>,
}

impl Udp {
    pub(super) fn new(check: &Arc<checks::Udp>, timeout: Duration) -> Udp {
        let patience = (!check.require_reply).then_some(timeout / 2);
        Udp { check: Arc::clone(check), patience }
    }

    async fn ask(&self, server: SocketAddr) -> io::Result<Outcome> {
        let socket = Datagrams::udp(server)?;
        socket.send(&self.check.payload)?;
        let reply = match self.patience {
            None => socket.receive().await?,
            Some(patience) => match tokio::time::timeout(patience, socket.receive()).await {
                Ok(reply) => reply?,
                Err(_) => return Ok(Outcome::passed("no ICMP error")),
            },
        };
        Ok(match &self.check.reply {
            Some(pattern) if pattern.find(&reply).is_none() => Outcome::failed(format!(
                "replied {}; expected a match of {}",
                quoted(&reply),
                quoted(pattern.as_str().as_bytes())
            )),
            _ => Outcome::passed("replied"),
        })
    }
}

impl Probe for Udp {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        async move { self.ask(address).await.unwrap_or_else(|error| datagram::of_error(&error)) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::net::UdpSocket;

    use super::super::fixture::{kind, loopbacks, outcome};
    use super::*;

    /// A server that sends this back for every datagram that is the payload, and nothing for any other.
    async fn serve(host: impl Into<IpAddr>, payload: &'static [u8], reply: &'static [u8]) -> SocketAddr {
        let socket = UdpSocket::bind((host.into(), 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut datagram = [0; 100];
            while let Ok((length, client)) = socket.recv_from(&mut datagram).await {
                if &datagram[..length] == payload {
                    socket.send_to(reply, client).await.unwrap();
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn a_reply_must_match() {
        for host in loopbacks() {
            let server = serve(host, b"ping\xff", b"\x81PONG\r\n").await;
            let check = kind("kind = \"udp\"\npayload = 'ping\\xff'\nreply = '^\\x81PONG'");
            assert_eq!(outcome(&check, server).await, Outcome::passed("replied"), "{host}");
        }
        let server = serve([127, 84, 0, 1], b"ping\xff", b"\x81PONG\r\n").await;
        let check = kind("kind = \"udp\"\npayload = 'ping\\xff'\nreply = '^PONG'");
        let why = r#"replied "\x81PONG\r\n"; expected a match of "^PONG""#;
        assert_eq!(outcome(&check, server).await, Outcome::failed(why));
        // It heeds this payload only.
        let check = kind("kind = \"udp\"\npayload = 'ping'\nreply = '^\\x81PONG'\ntimeout = \"200ms\"");
        assert_eq!(outcome(&check, server).await, Outcome::failed("timed out after 200ms"));
    }

    #[tokio::test]
    async fn silence_passes_unless_a_reply_is_required() {
        let server = serve([127, 84, 0, 2], b"never", b"").await;
        let check = kind("kind = \"udp\"\ntimeout = \"400ms\"");
        assert_eq!(outcome(&check, server).await, Outcome::passed("no ICMP error"));
        let check = kind("kind = \"udp\"\ntimeout = \"400ms\"\nrequire_reply = true");
        assert_eq!(outcome(&check, server).await, Outcome::failed("timed out after 400ms"));
    }

    #[tokio::test]
    async fn an_empty_reply_is_one() {
        let server = serve([127, 84, 0, 3], b"", b"").await;
        let check = kind("kind = \"udp\"\npayload = \"\"\nrequire_reply = true");
        assert_eq!(outcome(&check, server).await, Outcome::passed("replied"));
    }

    #[tokio::test]
    async fn nobody_listens() {
        for host in loopbacks() {
            let server = UdpSocket::bind((host, 0)).await.unwrap().local_addr().unwrap();
            for check in ["kind = \"udp\"", "kind = \"udp\"\nrequire_reply = true"] {
                assert_eq!(
                    outcome(&kind(check), server).await,
                    Outcome::failed("port unreachable"),
                    "{host}"
                );
            }
        }
    }
}
