//! `GET /v1/explain`: a question about a packet, and the answer.
//!
//! A GET, since it changes nothing: neither the connection table nor a scheduler's position nor a counter.

use std::net::{IpAddr, SocketAddr};

use anyhow::anyhow;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Backend, Failed};

/// The packet that is asked about; the query of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// From whom.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// `tcp` (the default), `udp` or `sctp`; or `esp` or `ah`, to which the ports are nothing.
    pub protocol: Option<String>,
    /// TCP flags by their letters, FSRPAUEC; `S` is the default.
    pub flags: Option<String>,
    /// The port that it comes in on; by default that which the source is reached through.
    pub port: Option<String>,
    /// Length of the IP packet in bytes; by default that of its headers.
    pub length: Option<u16>,
    /// `first` or `later`, if it is a fragment: the first of its datagram, or one without ports.
    pub fragment: Option<String>,
    /// The identification of the fragment's datagram, 16 bits of IPv4; 0 by default.
    pub id: Option<u32>,
}

/// What would become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Of the snapshot that decides.
    pub generation: u64,
    /// The packet as it comes in.
    pub packet: Packet,
    /// Where it comes in.
    pub port: Port,
    /// If it is a fragment: what that means for its way.
    pub fragment: Option<String>,
    /// The service that it is for, or that its connection belongs to.
    pub service: Option<Service>,
    /// The real server that it comes from, if it comes from one.
    pub endpoint: Option<SocketAddr>,
    /// Why it is neither for a service nor from a real server.
    pub unmatched: Option<String>,
    /// `in`, to a real server, or `out`, to a client.
    pub direction: Option<String>,
    /// Its entry of the connection table, as it is now.
    pub connection: Option<Connection>,
    /// What the scheduler decides, if it is asked.
    pub decision: Option<Decision>,
    /// Whether it has an entry then, and why, if its service has `track = "at-risk"`.
    #[serde(default)]
    pub tracking: Option<String>,
    /// Its entry of the connection table, as it would be afterwards.
    pub afterwards: Option<Connection>,
    /// What it goes out as, if it does; the packet inside, if it goes through a tunnel.
    pub rewritten: Option<Packet>,
    /// The packet that it is put into, if it goes through a tunnel.
    #[serde(default)]
    pub tunnel: Option<Tunnel>,
    /// Whom it is sent to.
    pub next_hop: Option<NextHop>,
    /// `forward`, `punt` (to Linux), `drop`, or `hold` (a fragment that waits).
    pub verdict: String,
    /// The port that it goes out of, if it is forwarded.
    pub output: Option<String>,
    /// Why it is punted or dropped: the name of the counter.
    pub reason: Option<String>,
    /// The same in a sentence.
    pub meaning: Option<String>,
}

/// A packet's headers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// `tcp`, `udp`, `sctp`, `esp` or `ah`.
    pub protocol: String,
    /// From whom.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// TCP flags by their letters.
    pub flags: String,
    /// Time to live.
    pub ttl: u8,
    /// Length of the IP packet in bytes.
    pub length: u16,
    /// MAC that it comes from.
    pub source_mac: String,
    /// MAC that it goes to.
    pub destination_mac: String,
}

/// Where a packet comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The port's name.
    pub name: String,
    /// Why this one.
    pub why: String,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Virtual address and port. Of a mark, the mark as an address.
    pub address: SocketAddr,
    /// The firewall mark, if it is the service of one.
    #[serde(default)]
    pub mark: Option<u32>,
    /// The line of the `[[mark]]` in the file that gives it to the packet, or to what the packet answers.
    #[serde(default)]
    pub rule: Option<usize>,
    /// `nat`, `dr`, `tunnel` or `fullnat`.
    pub mode: String,
    /// E.g. `wlc`.
    pub scheduler: String,
}

/// An entry of the connection table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Its real server.
    pub server: SocketAddr,
    /// E.g. `ESTABLISHED`.
    pub state: String,
    /// Whole seconds since a packet was noted; that is done once a second, under long timeouts once a minute.
    pub idle: u32,
    /// Seconds until it is forgotten unless something passes.
    pub expires: u32,
}

/// What a scheduler decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whom it chooses.
    pub server: Option<SocketAddr>,
    /// Why.
    pub why: String,
    /// The real servers that it cannot choose, each with its reason.
    pub unusable: Vec<Unusable>,
}

/// A real server that takes no connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// Which.
    pub server: SocketAddr,
    /// Why not.
    pub why: String,
}

/// A packet with another one inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// How, as `ipvsadm --tun-info` shows it, e.g. `ipip`.
    pub encapsulation: String,
    /// From whom.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// Length of the outer IP packet in bytes.
    pub length: u16,
}

/// Whom a packet is sent to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// The neighbour; `None` if no route over a port leads to the packet's destination.
    pub address: Option<IpAddr>,
    /// The port that it is behind.
    pub port: Option<String>,
    /// Its MAC, if that is known.
    pub mac: Option<String>,
}

const EXPECTED: &str =
    "expected source=A:P and destination=V:P, and if need be protocol, flags, port, length, fragment and id";

pub(super) async fn answer<B: Backend>(
    State(backend): State<B>,
    question: Result<Query<Question>, QueryRejection>,
) -> Result<Json<Explanation>, Failed> {
    let refused = |rejection: QueryRejection| {
        Failed(StatusCode::BAD_REQUEST, anyhow!("{}; {EXPECTED}", rejection.body_text()))
    };
    let Query(question) = question.map_err(refused)?;
    backend.explain(question).await.map(Json).map_err(|error| Failed(StatusCode::UNPROCESSABLE_ENTITY, error))
}
