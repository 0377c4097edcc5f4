//! The admin API for other machines: HTTP over TLS 1.2 or 1.3, each request with a token.
//!
//! It listens as any program of this machine does, on Linux' sockets; nothing of it goes through DPDK but the packets that
//! come in on a port, which Linux gets as it gets all that is for the router itself. What is served is what the socket
//! serves, `token::guard` in front of it. Who may be connected, and for how long, is in `visitor`.
//!
//! Certificate and tokens are taken anew for every connection and every request, so a reload brings them into force while
//! the listener and the connections stay.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::visitor::{PATIENCE, Pace, Places, Visitor};
use super::{Backend, api, router, token};
use crate::config::{AdminTcp, Config, ConfigErrors};

/// Connections that wait to be accepted, as Linux counts them.
const BACKLOG: i32 = 128;

/// How long a client that is known may say nothing, or take for the head of its next request.
const IDLE: Duration = Duration::from_secs(75);

/// After which it is asked whether a peer that says nothing is still there, and how often.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 3);

/// How long [`Farewell::say`] waits.
const FAREWELL: Duration = Duration::from_millis(300);

/// A listener that nobody serves yet; who connects waits.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// What whoever follows needs to listen on.
    pub fn heirloom(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }
}

/// Goes on listening as a predecessor did, if `admin.tcp.listen` is still where that was.
pub fn inherit(listener: OwnedFd, config: &Config) -> io::Result<Option<Listener>> {
    let listener = std::net::TcpListener::from(listener);
    let address = listener.local_addr()?;
    if config.admin.tcp.as_ref().is_none_or(|tcp| tcp.listen != address) {
        return Ok(None);
    }
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).map(|listener| Some(Listener(listener)))
}

/// Binds `admin.tcp.listen`, if there is one. What is in the way is an error of that key.
///
/// The address need not be there yet: that of a twin comes later, and at boot RVS is earlier than the network.
pub fn bind(config: &Config) -> Result<Option<Listener>, ConfigErrors> {
    let Some(tcp) = &config.admin.tcp else { return Ok(None) };
    let address = tcp.listen;
    let listener = listen(address).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there (`ss -ltnp` shows which); stop it, or expected another address or port"
            }
            io::ErrorKind::PermissionDenied => {
                "expected a port from 1024 on, or the capability CAP_NET_BIND_SERVICE"
            }
            _ => "expected an address and a port at which this machine can listen",
        };
        config.error("admin.tcp.listen", format_args!("cannot listen at {address}: {}; {remedy}", reason(&error)))
    })?;
    let comes_later = config.ports.iter().flat_map(|port| &port.addresses);
    if UdpSocket::bind((address.ip(), 0)).is_err()
        && !comes_later.into_iter().any(|prefix| prefix.address == address.ip())
    {
        tracing::warn!(%address, "this machine does not have the address of admin.tcp.listen yet, nor is it one of a [[port]]");
    }
    Ok(Some(Listener(listener)))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A predecessor's connections may still be dying; a predecessor that listens is still in the way.
    socket.set_reuse_address(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    // Connections inherit both.
    socket.set_tcp_nodelay(true)?;
    keep_alive(&SockRef::from(&socket))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Notices a peer that is gone without a word, which a stream of events would wait for for ever.
pub(super) fn keep_alive(socket: &SockRef<'_>) -> io::Result<()> {
    let (after, interval, retries) = KEEPALIVE;
    let settings = TcpKeepalive::new().with_time(after).with_interval(interval).with_retries(retries);
    socket.set_tcp_keepalive(&settings)
}

/// What Linux says, without its number.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

/// What can be renewed while it listens.
#[derive(Debug)]
pub struct Settings(watch::Sender<AdminTcp>);

impl Settings {
    /// Those to begin with.
    pub fn new(tcp: AdminTcp) -> Settings {
        warn(&tcp);
        Settings(watch::Sender::new(tcp))
    }

    /// For [`serve`].
    pub fn subscribe(&self) -> watch::Receiver<AdminTcp> {
        self.0.subscribe()
    }

    /// From now on these hold.
    pub fn renew(&self, tcp: &AdminTcp) {
        let renewed = self.0.send_if_modified(|old| {
            let differs = old != tcp;
            old.clone_from(tcp);
            differs
        });
        if renewed {
            tracing::info!(address = %tcp.listen, "the admin API has another certificate or other tokens now");
        }
        warn(tcp);
    }
}

fn warn(tcp: &AdminTcp) {
    if let Some(flaw) = tcp.identity.flaw(Duration::ZERO) {
        tracing::warn!(
            "the certificate of admin.tcp.certificate {flaw}; clients will refuse it until it is renewed"
        );
    }
}

/// Takes leave of those who are connected.
///
/// What they are sent at the end, that RVS stops for one, has to get through the twins and the workers, which therefore
/// must not go before it has; whoever follows has it when it hangs up.
#[derive(Debug)]
pub struct Farewell(watch::Sender<bool>);

impl Default for Farewell {
    fn default() -> Self {
        Farewell(watch::Sender::new(false))
    }
}

impl Farewell {
    /// For [`serve`].
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }

    /// Nobody is let in any more. Waits until all have gone, though not long: whoever stays connected without a reason is
    /// hung up on when the program ends.
    pub async fn say(&self) {
        self.0.send_replace(true);
        let _ = timeout(FAREWELL, self.0.closed()).await;
    }
}

/// Answers requests until it is dropped, or the farewell is said.
pub async fn serve<B: Backend>(
    listener: Listener,
    settings: watch::Receiver<AdminTcp>,
    mut farewell: watch::Receiver<bool>,
    backend: B,
) {
    let guard = from_fn_with_state(settings.clone(), token::guard);
    let answers = TowerToHyperService::new(router(backend).layer(guard));
    let (places, mut pace) = (Places::default(), Pace::new(Instant::now()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.0.accept() => accepted,
            _ = farewell.changed() => return,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // No descriptors are left, for one. One that is gone before it was accepted is nothing to wait for.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    tracing::warn!(%error, "the admin API cannot accept a connection; trying again");
                    sleep(Duration::from_secs(1)).await;
                }
                continue;
            }
        };
        let Some(visitor) = places.enter(client.ip()) else {
            tracing::debug!(%client, "too many connections to the admin API that show no token");
            continue;
        };
        let turn = pace.turn(Instant::now());
        let (visitor, acceptor) = (Arc::new(visitor), TlsAcceptor::from(settings.borrow().identity.server()));
        let (connection, answers, farewell) = (visitor.clone(), answers.clone(), farewell.clone());
        tokio::spawn(async move {
            // Until the connection ends.
            let _farewell = farewell;
            let overdue = async {
                if timeout(PATIENCE, visitor.admission()).await.is_ok() {
                    std::future::pending::<()>().await;
                }
            };
            sleep_until(turn).await;
            tokio::select! {
                result = attend(stream, acceptor, answers, connection) => if let Err(error) = result {
                    tracing::debug!(%client, %error, "a connection to the admin API has failed");
                },
                () = overdue => tracing::debug!(%client, "a connection to the admin API that shows no token is closed"),
            }
        });
    }
}

/// One connection, to its end.
async fn attend(
    mut stream: TcpStream,
    acceptor: TlsAcceptor,
    answers: TowerToHyperService<axum::Router>,
    visitor: Arc<Visitor>,
) -> anyhow::Result<()> {
    if speaks_plain_http(&stream).await? {
        return Ok(tell_plain_http(&mut stream).await?);
    }
    let stream = acceptor.accept(stream).await?;
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(visitor.clone());
        answers.call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE);
    Ok(http.serve_connection(TokioIo::new(stream), service).await?)
}

/// Of TLS the first byte is the type of a record, of HTTP a letter.
async fn speaks_plain_http(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(stream.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase())
}

/// Whoever has forgotten the s of https is told so, instead of getting bytes that mean nothing to it.
async fn tell_plain_http(stream: &mut TcpStream) -> io::Result<()> {
    // What has not been read would have Linux reset the connection, and the answer with it.
    let _ = stream.read(&mut [0; 8192]).await?;
    let error = "this port speaks HTTP over TLS only; expected https:// in the URL".to_owned();
    let body = serde_json::to_string(&api::Failure { error })?;
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close";
    stream.write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    stream.shutdown().await
}
