//! The connect check: a server is well if it accepts a TCP connection.
//!
//! The connection is closed at once, with a FIN, as keepalived does it: a reset (linger 0) would save this machine a
//! TIME_WAIT, but some servers log every reset as an error. What it costs is one socket in TIME_WAIT a check for
//! 60 s, 30 a server at the default interval, and they hold no file descriptor: 1000 servers make 30 000 of them, and
//! a server can be checked every 3 ms before its local ports run out.

use std::net::SocketAddr;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use super::{Outcome, Probe};

/// Opens a connection and closes it.
pub(super) struct Tcp;

impl Probe for Tcp {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        async move {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    drop(stream);
                    Outcome::passed("connected")
                }
                Err(error) => Outcome::of_error(&error),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use tokio::net::TcpListener;

    use super::super::fixture::{check, kind, loopbacks, outcome_in_namespace};
    use super::*;

    #[tokio::test]
    async fn over_either_family() {
        for host in loopbacks() {
            let listener = TcpListener::bind((host, 0)).await.unwrap();
            let server = listener.local_addr().unwrap();
            assert_eq!(check("kind = \"tcp\"", server).await, Outcome::passed("connected"));
        }
    }

    /// At an address, or in a namespace, of the test's own, so that nobody else takes the port.
    #[tokio::test]
    async fn refused_over_either_family() {
        let refused = Outcome::failed("connection refused");
        let server = SocketAddr::from(([127, 84, 0, 7], 9));
        assert_eq!(check("kind = \"tcp\"", server).await, refused);
        let server = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        let Some(outcome) = outcome_in_namespace("ip link set lo up", &kind("kind = \"tcp\""), server) else {
            return;
        };
        assert_eq!(outcome, refused);
    }
}
