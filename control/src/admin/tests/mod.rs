//! The server and its client over a real socket, with an invented router behind it.

pub(super) mod events;
mod requests;
mod socket;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::client::{Client, Heard, Place};
use super::*;

/// A router with any number of connections, that counts how many have been read.
#[derive(Clone)]
pub(super) struct Fake {
    connections: u64,
    read: Arc<AtomicU64>,
    /// How many iterators there are.
    readers: Arc<AtomicU64>,
    events: Events,
}

impl Fake {
    pub(super) fn new(connections: u64) -> Fake {
        Fake { connections, read: Arc::default(), readers: Arc::default(), events: Events::with_capacity(4) }
    }
}

struct Reader(Arc<AtomicU64>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn connection(index: u64) -> api::Connection {
    let client = std::net::Ipv4Addr::from_bits(index as u32);
    api::Connection {
        local: None,
        protocol: "tcp".to_owned(),
        client: std::net::SocketAddr::from((client, 40112)),
        virtual_: "192.0.2.10:80".parse().unwrap(),
        server: "10.0.0.11:8080".parse().unwrap(),
        state: "ESTABLISHED".to_owned(),
        expires: 900,
    }
}

impl Backend for Fake {
    async fn services(&self) -> anyhow::Result<Vec<api::Service>> {
        Ok(vec![api::Service {
            protocol: "tcp".to_owned(),
            address: "192.0.2.10:80".parse()?,
            mark: None,
            ports: Vec::new(),
            scheduler: "wlc".to_owned(),
            flags: Vec::new(),
            mode: "nat".to_owned(),
            one_packet: false,
            helper: None,
            at_risk: false,
            persistence: None,
            tunnel: None,
            withdrawn: None,
            syn_flood: None,
            stats: api::Stats { connections: 7, ..api::Stats::default() },
            rates: api::Rates::default(),
            servers: Vec::new(),
        }])
    }

    async fn connections(&self) -> anyhow::Result<Connections> {
        self.readers.fetch_add(1, Ordering::Relaxed);
        let (read, reader) = (self.read.clone(), Reader(self.readers.clone()));
        Ok(Box::new((0..self.connections).map(move |index| {
            let _ = &reader;
            read.fetch_add(1, Ordering::Relaxed);
            connection(index)
        })))
    }

    async fn counters(&self) -> anyhow::Result<api::Counters> {
        anyhow::bail!("the director is gone")
    }

    async fn snat(&self) -> anyhow::Result<super::Pools> {
        anyhow::bail!("the director is gone")
    }

    async fn metrics(&self, format: Format) -> anyhow::Result<String> {
        Ok(format!("{format:?}\n"))
    }

    async fn upgrade(&self, question: upgrade::Question) -> anyhow::Result<api::Upgrading> {
        anyhow::bail!("{question:?} has not proven itself")
    }

    fn upgraded(&self) -> api::Upgrades {
        api::Upgrades::default()
    }

    fn events(&self) -> &Events {
        &self.events
    }

    async fn capture(&self, question: capture::Question) -> anyhow::Result<capture::Pieces> {
        anyhow::ensure!(question.filter != "x", "filter: \"x\" is none");
        let pieces = vec![format!("{question:?}").into_bytes(), vec![7; 100_000]];
        Ok(Box::pin(futures_util::stream::iter(pieces)))
    }

    async fn explain(&self, question: explain::Question) -> anyhow::Result<explain::Explanation> {
        anyhow::ensure!(question.port.is_none(), "port: there is no {:?}; expected wan", question.port);
        let packet = explain::Packet {
            protocol: question.protocol.unwrap_or_default(),
            source: question.source,
            destination: question.destination,
            flags: question.flags.unwrap_or_default(),
            ttl: 64,
            length: question.length.unwrap_or_default(),
            source_mac: String::new(),
            destination_mac: String::new(),
        };
        Ok(explain::Explanation {
            generation: 1,
            packet,
            port: explain::Port { name: "wan".to_owned(), why: "as asked".to_owned() },
            fragment: None,
            service: None,
            endpoint: None,
            unmatched: None,
            direction: None,
            connection: None,
            decision: None,
            tracking: None,
            afterwards: None,
            rewritten: None,
            tunnel: None,
            next_hop: None,
            verdict: "drop".to_owned(),
            output: None,
            reason: None,
            meaning: None,
        })
    }

    async fn reload(&self, dry_run: bool) -> anyhow::Result<api::Reloaded> {
        if self.connections == 0 {
            anyhow::bail!("rvs.toml:1:1: port: missing; expected at least one [[port]]");
        }
        let (changes, overruled) = (vec![change()], Vec::new());
        Ok(api::Reloaded { generation: 2, services: 1, servers: 3, changes, overruled, dry_run })
    }

    /// Says what it has understood.
    async fn change(&self, order: Order) -> anyhow::Result<api::Changed> {
        if self.connections == 0 {
            anyhow::bail!("no service tcp/192.0.2.10:80");
        }
        Ok(api::Changed { generation: 3, changes: vec![change()], holds: format!("{order:?}") })
    }

    async fn diff(&self) -> anyhow::Result<Vec<api::Change>> {
        Ok(vec![change()])
    }

    async fn sync(&self) -> anyhow::Result<api::Sync> {
        Ok(api::Sync { ready: true, ..api::Sync::default() })
    }

    /// Says what it has understood.
    async fn stop(&self, stop: Stop) -> anyhow::Result<Departure> {
        let leaving = |state: &str| {
            let (state, text) = (state.to_owned(), format!("{stop:?}"));
            api::Leaving { state, packets: 0, remaining: 1, text }
        };
        let lines = [leaving("draining"), leaving("stopping")];
        Ok(Box::pin(futures_util::stream::iter(lines)))
    }

    async fn save(&self) -> anyhow::Result<api::Saved> {
        Ok(api::Saved { path: "/etc/rvs/rvs.toml".to_owned(), changes: vec![change()] })
    }

    async fn flush(&self, filter: api::Filter) -> anyhow::Result<Flush> {
        anyhow::ensure!(filter != api::Filter::default(), "expected a service");
        let connections = self.connections;
        Ok(Box::new(move || connections))
    }
}

fn change() -> api::Change {
    let (service, server) = (Some("tcp/192.0.2.10:80".to_owned()), Some("10.0.0.11:8080".parse().unwrap()));
    api::Change { sign: api::Sign::Changed, service, server, what: "weight 1 -> 3".to_owned() }
}

struct Router {
    _directory: tempfile::TempDir,
    path: PathBuf,
    backend: Fake,
    server: JoinHandle<()>,
}

/// A router that serves a socket in a directory that it had to make.
async fn router(connections: u64) -> Router {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/rvs.sock");
    let backend = Fake::new(connections);
    let socket = bind(&path, None).await.unwrap();
    let server = tokio::spawn(serve(socket, backend.clone(), |connection| drop(tokio::spawn(connection))));
    Router { _directory: directory, path, backend, server }
}

impl Router {
    fn client(&self) -> Client {
        Client::new(&self.path)
    }

    /// Status line and body of the answer to a request as it is typed.
    async fn raw(&self, request: &str) -> (String, String) {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}
