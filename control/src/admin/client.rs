//! The other end of the admin socket, for the command line.

use std::net::SocketAddrV4;
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
use tokio::net::UnixStream;

use super::api;
use crate::ids::ServiceKey;

/// How long rvs may take to begin its answer. A reload compiles the whole configuration first.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks a running `rvs`.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Asks the `rvs` behind this socket. Each question opens a connection of its own.
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned() }
    }

    /// All services with their real servers.
    pub async fn services(&self) -> anyhow::Result<Vec<api::Service>> {
        self.json(Method::GET, "/v1/services").await
    }

    /// What the workers count.
    pub async fn counters(&self) -> anyhow::Result<api::Counters> {
        self.json(Method::GET, "/v1/counters").await
    }

    /// Has the configuration file read again, or asks what that would do.
    pub async fn reload(&self, dry_run: bool) -> anyhow::Result<api::Reloaded> {
        self.json(Method::POST, if dry_run { "/v1/reload?dry_run=true" } else { "/v1/reload" }).await
    }

    /// What is running and the file does not say.
    pub async fn diff(&self) -> anyhow::Result<Vec<api::Change>> {
        self.json(Method::GET, "/v1/diff").await
    }

    /// Has what is running written into the file.
    pub async fn save(&self) -> anyhow::Result<api::Saved> {
        self.json(Method::POST, "/v1/save").await
    }

    /// Changes a server.
    pub async fn patch(
        &self,
        service: ServiceKey,
        server: SocketAddrV4,
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
        server: SocketAddrV4,
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
        let mut query = Vec::new();
        query.extend(filter.service.as_ref().map(|service| format!("service={service}")));
        query.extend(filter.server.map(|server| format!("server={server}")));
        query.extend(filter.client.map(|client| format!("client={client}")));
        query.extend(filter.all.then(|| "all=true".to_owned()));
        self.json(Method::DELETE, &format!("/v1/connections?{}", query.join("&"))).await
    }

    /// Hands over each entry of the connection table as it comes; an error of `each` ends it.
    pub async fn connections(
        &self,
        each: impl FnMut(api::Connection) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        self.lines("/v1/connections", each).await
    }

    /// Hands over each event after that number, or each that is still kept; and if it is to follow, all that come until
    /// rvs ends.
    pub async fn events(
        &self,
        since: Option<u64>,
        follow: bool,
        each: impl FnMut(api::Event) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
        self.lines(&format!("/v1/events?follow={follow}{since}"), each).await
    }

    /// What is sent as one JSON object a line.
    async fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        mut each: impl FnMut(T) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        let mut body = self.request(Method::GET, path, Bytes::new()).await?.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.context("rvs broke off its answer")?;
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
        let body = response.into_body().collect().await.context("rvs broke off its answer")?.to_bytes();
        serde_json::from_slice(&body).with_context(|| format!("rvs sent an unexpected answer to {path}"))
    }

    /// A response with status 200, or what the server says is wrong.
    async fn request(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        let shown = self.socket.display();
        let stream = UnixStream::connect(&self.socket).await.with_context(|| {
            format!("cannot reach rvs at {shown} (is it running? -s names another socket)")
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.with_context(|| format!("no HTTP at {shown}"))?;
        // Its errors are those of the response.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "rvs")
            .body(Full::new(body))
            .context("cannot make the request")?;
        let response = tokio::time::timeout(TIMEOUT, sender.send_request(request))
            .await
            .with_context(|| format!("rvs at {shown} has not answered within {} s", TIMEOUT.as_secs()))?
            .with_context(|| format!("rvs at {shown} broke off"))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await.context("rvs broke off its answer")?.to_bytes();
        match serde_json::from_slice(&body) {
            Ok(api::Failure { error }) => bail!(error),
            Err(_) => bail!("rvs at {shown} answered {status}"),
        }
    }
}
