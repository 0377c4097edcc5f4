//! The other end of the admin API, for the command line.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::remote::Remote;
use super::{api, capture, events, explain, upgrade};
use crate::ids::ServiceKey;

/// How long rvs may take to begin its answer. A reload compiles the whole configuration first.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks a running `rvs`.
pub struct Client(Target);

enum Target {
    Socket(PathBuf),
    Remote(Remote),
}

/// What the router has answered instead of what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// How far somebody has read events: up to this number of this run.
#[derive(Clone, Debug, Default)]
pub struct Place {
    run: Option<String>,
    last: Option<u64>,
}

impl Place {
    /// After the event with this number, of whatever run; without one before all that are kept.
    pub fn after(last: Option<u64>) -> Place {
        Place { run: None, last }
    }

    /// Whether a router has answered.
    pub(super) fn has_begun(&self) -> bool {
        self.run.is_some()
    }
}

/// What comes of events.
#[derive(Debug)]
pub enum Heard {
    /// They begin.
    Begin {
        /// It is not the run that the last ones were of: numbers begin anew, too.
        another: bool,
    },
    /// One of them.
    Event(api::Event),
}

impl Client {
    /// Asks the `rvs` behind this socket. Each question opens a connection of its own.
    pub fn new(socket: &Path) -> Client {
        Client(Target::Socket(socket.to_owned()))
    }

    /// Asks one on another machine.
    pub fn remote(remote: Remote) -> Client {
        Client(Target::Remote(remote))
    }

    /// Who is asked, for a person.
    pub fn shown(&self) -> String {
        match &self.0 {
            Target::Socket(path) => path.display().to_string(),
            Target::Remote(remote) => remote.url.clone(),
        }
    }

    /// All services with their real servers.
    pub async fn services(&self) -> anyhow::Result<Vec<api::Service>> {
        self.json(Method::GET, "/v1/services").await
    }

    /// What the workers count.
    pub async fn counters(&self) -> anyhow::Result<api::Counters> {
        self.json(Method::GET, "/v1/counters").await
    }

    /// Pools of source NAT, and who has ports of them.
    pub async fn snat(&self) -> anyhow::Result<Vec<api::SnatPool>> {
        self.json(Method::GET, "/v1/snat").await
    }

    /// Has the configuration file read again, or asks what that would do.
    pub async fn reload(&self, dry_run: bool) -> anyhow::Result<api::Reloaded> {
        self.json(Method::POST, if dry_run { "/v1/reload?dry_run=true" } else { "/v1/reload" }).await
    }

    /// What is running and the file does not say.
    pub async fn diff(&self) -> anyhow::Result<Vec<api::Change>> {
        self.json(Method::GET, "/v1/diff").await
    }

    /// Asks how things stand with peer routers.
    pub async fn sync(&self) -> anyhow::Result<api::Sync> {
        self.json(Method::GET, "/v1/sync").await
    }

    /// Has it hand over to another program.
    pub async fn upgrade(&self, question: &upgrade::Question) -> anyhow::Result<api::Upgrading> {
        let query = serde_urlencoded::to_string(question).context("cannot make the request")?;
        self.json(Method::POST, &format!("/v1/upgrade?{query}")).await
    }

    /// What has become of an upgrade.
    pub async fn upgraded(&self) -> anyhow::Result<api::Upgrades> {
        self.json(Method::GET, "/v1/upgrade").await
    }

    /// Has what is running written into the file.
    pub async fn save(&self) -> anyhow::Result<api::Saved> {
        self.json(Method::POST, "/v1/save").await
    }

    /// Takes the router, or one of its virtual addresses, out of service.
    pub async fn withdraw(&self, address: Option<IpAddr>) -> anyhow::Result<api::Changed> {
        self.json(Method::POST, &of_address("/v1/withdraw", address)).await
    }

    /// Takes that back.
    pub async fn announce(&self, address: Option<IpAddr>) -> anyhow::Result<api::Changed> {
        self.json(Method::POST, &of_address("/v1/announce", address)).await
    }

    /// Has rvs stop, and hands over how far it has come, until it has ended; an error of `each` ends that.
    pub async fn stop(
        &self,
        graceful: bool,
        deadline: u32,
        mut each: impl FnMut(api::Leaving) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let path = format!("/v1/stop?graceful={graceful}&deadline={deadline}");
        let mut stops = false;
        let each = |leaving: api::Leaving| {
            stops |= leaving.state == "stopping";
            each(leaving)
        };
        let result = lines(self.request(Method::POST, &path, Bytes::new()).await?, &path, each).await;
        // The answer breaks off with the program, which is what was asked for.
        if stops { Ok(()) } else { result }
    }

    /// Changes a server.
    pub async fn patch(
        &self,
        service: ServiceKey,
        server: SocketAddr,
        patch: &api::ServerPatch,
    ) -> anyhow::Result<api::Changed> {
        self.send(Method::PATCH, &format!("/v1/services/{service}/servers/{server}"), patch).await
    }

    /// Adds a server.
    pub async fn add_server(
        &self,
        service: ServiceKey,
        server: &api::NewServer,
    ) -> anyhow::Result<api::Changed> {
        self.send(Method::POST, &format!("/v1/services/{service}/servers"), server).await
    }

    /// Removes a server.
    pub async fn remove_server(
        &self,
        service: ServiceKey,
        server: SocketAddr,
    ) -> anyhow::Result<api::Changed> {
        self.json(Method::DELETE, &format!("/v1/services/{service}/servers/{server}")).await
    }

    /// Adds a service, by its settings as in the file.
    pub async fn add_service(&self, settings: &serde_json::Value) -> anyhow::Result<api::Changed> {
        self.send(Method::POST, "/v1/services", settings).await
    }

    /// Removes a service.
    pub async fn remove_service(&self, service: ServiceKey) -> anyhow::Result<api::Changed> {
        self.json(Method::DELETE, &format!("/v1/services/{service}")).await
    }

    /// Has connections forgotten.
    pub async fn flush(&self, filter: &api::Filter) -> anyhow::Result<api::Flushed> {
        let query = serde_urlencoded::to_string(filter).context("cannot make the request")?;
        self.json(Method::DELETE, &format!("/v1/connections?{query}")).await
    }

    /// What would become of a packet.
    pub async fn explain(&self, question: &explain::Question) -> anyhow::Result<explain::Explanation> {
        let query = serde_urlencoded::to_string(question).context("cannot make the request")?;
        self.json(Method::GET, &format!("/v1/explain?{query}")).await
    }

    /// Hands over each piece of a capture as it comes; an error of `each` ends it.
    pub async fn capture(
        &self,
        question: &capture::Question,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let query = serde_urlencoded::to_string(question).context("cannot make the request")?;
        let mut body =
            self.request(Method::GET, &format!("/v1/capture?{query}"), Bytes::new()).await?.into_body();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.map_err(broke_off)?.data_ref() {
                each(data)?;
            }
        }
        Ok(())
    }

    /// Hands over each entry of the connection table as it comes; an error of `each` ends it.
    pub async fn connections(
        &self,
        each: impl FnMut(api::Connection) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let path = "/v1/connections";
        lines(self.request(Method::GET, path, Bytes::new()).await?, path, each).await
    }

    /// Hands over each event after `place`, which goes along; and if it is to follow, all that come until rvs ends. An error
    /// of `each` ends it.
    pub async fn events(
        &self,
        place: &mut Place,
        follow: bool,
        mut each: impl FnMut(Heard) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let since = place.last.map(|last| format!("&since={last}")).unwrap_or_default();
        let run = place.run.as_ref().map(|run| format!("&run={run}")).unwrap_or_default();
        let path = format!("/v1/events?follow={follow}{since}{run}");
        let response = self.request(Method::GET, &path, Bytes::new()).await?;
        let run = response.headers().get(events::RUN).and_then(|run| run.to_str().ok());
        let run = run.with_context(|| format!("{} does not say whose events it sends", self.shown()))?;
        let another = place.run.as_ref().is_some_and(|known| known != run);
        if another {
            place.last = None;
        }
        place.run = Some(run.to_owned());
        each(Heard::Begin { another })?;
        let each = |event: api::Event| {
            let number = event.sequence;
            each(Heard::Event(event))?;
            place.last = Some(number);
            Ok(())
        };
        lines(response, &path, each).await
    }

    async fn json<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<T> {
        self.answer(method, path, Bytes::new()).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.answer(method, path, serde_json::to_vec(body)?.into()).await
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let response = self.request(method, path, body).await?;
        let body = response.into_body().collect().await.map_err(broke_off)?.to_bytes();
        serde_json::from_slice(&body).with_context(|| format!("rvs sent an unexpected answer to {path}"))
    }

    /// A response with status 200, or what the server says is wrong.
    async fn request(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        let shown = self.shown();
        let request = Request::builder().method(method).uri(path);
        let (sender, request) = match &self.0 {
            Target::Socket(socket) => {
                let stream = UnixStream::connect(socket).await.with_context(|| {
                    format!("cannot reach rvs at {shown} (is it running? -s names another socket)")
                })?;
                (begin(stream).await, request.header("host", "rvs"))
            }
            Target::Remote(remote) => {
                let token = format!("Bearer {}", remote.token()?.secret());
                let request =
                    request.header("host", remote.authority()?.as_str()).header("authorization", token);
                (begin(remote.connect().await?).await, request)
            }
        };
        let mut sender = sender.with_context(|| format!("no HTTP at {shown}"))?;
        let request = request.body(Full::new(body)).context("cannot make the request")?;
        let response = tokio::time::timeout(TIMEOUT, sender.send_request(request))
            .await
            .with_context(|| format!("rvs at {shown} has not answered within {} s", TIMEOUT.as_secs()))?
            .with_context(|| format!("rvs at {shown} broke off"))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await.map_err(broke_off)?.to_bytes();
        let error = match serde_json::from_slice(&body) {
            Ok(api::Failure { error }) => error,
            Err(_) => format!("rvs at {shown} answered {status}"),
        };
        let token_file = match &self.0 {
            Target::Remote(Remote { token_file: Some(file), .. }) if status == StatusCode::UNAUTHORIZED => {
                file
            }
            _ => bail!(Refused(error)),
        };
        bail!(Refused(format!("{error} (what was shown is from {})", token_file.display())))
    }
}

fn of_address(path: &str, address: Option<IpAddr>) -> String {
    address.map_or_else(|| path.to_owned(), |address| format!("{path}?address={address}"))
}

/// Speaks HTTP over a stream.
async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> hyper::Result<http1::SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors are those of the response.
    tokio::spawn(connection);
    Ok(sender)
}

/// The answer is not whole. That it just ends has no cause worth telling.
fn broke_off(error: hyper::Error) -> anyhow::Error {
    let ends = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
    };
    let mut causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    match error.is_incomplete_message() || causes.any(ends) {
        true => anyhow::anyhow!("rvs broke off its answer"),
        false => anyhow::Error::new(error).context("rvs broke off its answer"),
    }
}

/// What is sent as one JSON object a line.
async fn lines<T: DeserializeOwned>(
    response: Response<Incoming>,
    path: &str,
    mut each: impl FnMut(T) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut body = response.into_body();
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(broke_off)?;
        let Some(data) = frame.data_ref() else { continue };
        rest.extend_from_slice(data);
        let mut lines = rest.split_inclusive(|byte| *byte == b'\n').peekable();
        let mut taken = 0;
        while let Some(line) = lines.next_if(|line| line.ends_with(b"\n")) {
            taken += line.len();
            each(
                serde_json::from_slice(line)
                    .with_context(|| format!("rvs sent an unexpected line to {path}"))?,
            )?;
        }
        rest.drain(..taken);
    }
    if rest.is_empty() { Ok(()) } else { bail!("rvs broke off its answer") }
}
