//! The other end of the admin socket, for `rvs list` and `rvs reload`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{api, capture, explain};

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

    /// What would become of a packet.
    pub async fn explain(&self, question: &explain::Question) -> anyhow::Result<explain::Explanation> {
        let query = serde_urlencoded::to_string(question).context("cannot make the request")?;
        self.json(Method::GET, &format!("/v1/explain?{query}")).await
    }

    /// Hands over each piece of a capture as it comes; an error of `each` ends it.
    pub async fn capture(
        &self,
        question: &capture::Question,
        mut each: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        let query = serde_urlencoded::to_string(question).context("cannot make the request")?;
        let mut body = self.request(Method::GET, &format!("/v1/capture?{query}")).await?.into_body();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.context("rvs broke off its answer")?.data_ref() {
                each(data)?;
            }
        }
        Ok(())
    }

    /// Has the configuration file read again.
    pub async fn reload(&self) -> anyhow::Result<api::Reloaded> {
        self.json(Method::POST, "/v1/reload").await
    }

    /// Hands over each entry of the connection table as it comes; an error of `each` ends it.
    pub async fn connections(
        &self,
        mut each: impl FnMut(api::Connection) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        let mut body = self.request(Method::GET, "/v1/connections").await?.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.context("rvs broke off its answer")?;
            let Some(data) = frame.data_ref() else { continue };
            rest.extend_from_slice(data);
            let mut lines = rest.split_inclusive(|byte| *byte == b'\n').peekable();
            let mut taken = 0;
            while let Some(line) = lines.next_if(|line| line.ends_with(b"\n")) {
                taken += line.len();
                each(serde_json::from_slice(line).context("rvs sent what is no connection")?)?;
            }
            rest.drain(..taken);
        }
        if rest.is_empty() { Ok(()) } else { bail!("rvs broke off its answer") }
    }

    async fn json<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<T> {
        let response = self.request(method, path).await?;
        let body = response.into_body().collect().await.context("rvs broke off its answer")?.to_bytes();
        serde_json::from_slice(&body).with_context(|| format!("rvs sent an unexpected answer to {path}"))
    }

    /// A response with status 200, or what the server says is wrong.
    async fn request(&self, method: Method, path: &str) -> anyhow::Result<Response<Incoming>> {
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
            .body(Empty::<Bytes>::new())
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
