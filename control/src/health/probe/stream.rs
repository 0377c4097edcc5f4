//! What the checks that talk over a TCP connection have in common.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;

use futures_util::future::{Either, select};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::stage::note;
use super::tls::Connector;
use super::{Outcome, tls};

/// Opens a connection.
pub(super) async fn connect(address: SocketAddr) -> Result<TcpStream, Outcome> {
    note("connecting");
    let stream = TcpStream::connect(address).await.map_err(|error| Outcome::of_error(&error))?;
    // TLS and HTTP/2 end a handshake and begin a request in two writes. The second one would wait for the first one's
    // acknowledgement, which a server may delay by 40 ms.
    stream.set_nodelay(true).map_err(|error| Outcome::of_error(&error))?;
    Ok(stream)
}

/// A connection of whichever kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Opens a connection, over TLS if there is something to make it with.
pub(super) async fn open(address: SocketAddr, tls: Option<&Connector>) -> Result<Box<dyn Stream>, Outcome> {
    let stream = connect(address).await?;
    Ok(match tls {
        None => Box::new(stream),
        Some(tls) => Box::new(tls.connect(address, stream).await?),
    })
}

/// Drives a connection for as long as an exchange over it takes.
///
/// One would spawn the connection. Here it must end with the probe, also when that is dropped at its timeout, so both
/// are one future.
pub(super) async fn drive<T>(connection: impl Future, exchange: impl Future<Output = T>) -> T {
    match select(pin!(exchange), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        // The exchange still has to read what came before, or learns from it why there is nothing.
        Either::Right((_, exchange)) => exchange.await,
    }
}

/// What it says of the server that reading from it or writing to it has failed.
pub(super) fn broken(error: &io::Error) -> Outcome {
    match tls::cause(error) {
        Some(cause) => Outcome::failed(tls::reason(cause)),
        // By the end of what could be read, or by that of what could be written, which is how h2 says both.
        None if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe) => {
            Outcome::failed(CUT)
        }
        None => Outcome::of_error(error),
    }
}

/// Of an answer that breaks off.
pub(super) const CUT: &str = "closed before a complete answer";
