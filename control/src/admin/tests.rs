//! The server and its client over a real socket, with an invented router behind it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::client::Client;
use super::*;
use crate::events::Kind;

/// A router with any number of connections, that counts how many have been read.
#[derive(Clone)]
struct Fake {
    connections: u64,
    read: Arc<AtomicU64>,
    /// How many iterators there are.
    readers: Arc<AtomicU64>,
    events: Events,
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
        protocol: "tcp".to_owned(),
        client: std::net::SocketAddrV4::new(client, 40112),
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
            scheduler: "wlc".to_owned(),
            flags: Vec::new(),
            mode: "nat".to_owned(),
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

    async fn metrics(&self, format: Format) -> anyhow::Result<String> {
        Ok(format!("{format:?}\n"))
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
            service: None,
            endpoint: None,
            unmatched: None,
            direction: None,
            connection: None,
            decision: None,
            afterwards: None,
            rewritten: None,
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
    let (service, server) = ("tcp/192.0.2.10:80".to_owned(), Some("10.0.0.11:8080".parse().unwrap()));
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
    let backend =
        Fake { connections, read: Arc::default(), readers: Arc::default(), events: Events::with_capacity(4) };
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

async fn refused(path: &Path) -> String {
    match bind(path, None).await {
        Ok(_) => panic!("{} was bound", path.display()),
        Err(error) => format!("{error:#}").replace(&path.display().to_string(), "PATH"),
    }
}

#[tokio::test]
async fn answers_come_back_as_they_were_given() {
    let router = router(3).await;
    let services = router.client().services().await.unwrap();
    assert_eq!(services, router.backend.services().await.unwrap());
    for dry_run in [false, true] {
        let reloaded = router.client().reload(dry_run).await.unwrap();
        assert_eq!(reloaded, router.backend.reload(dry_run).await.unwrap());
    }
    let error = router.client().counters().await.unwrap_err();
    assert_eq!(error.to_string(), "the director is gone");
}

#[tokio::test]
async fn orders_arrive_as_they_were_given() {
    let router = router(3).await;
    let client = router.client();
    let service: ServiceKey = "udp/192.0.2.10:53".parse().unwrap();
    let server: SocketAddrV4 = "10.0.0.11:8080".parse().unwrap();
    let patch = api::ServerPatch { weight: Some(3), state: Some("drained".to_owned()), deadline: Some(60) };
    let new = api::NewServer { address: server, weight: None };
    let settings = serde_json::json!({ "address": "192.0.2.20:443", "mode": "nat" });
    let (answers, orders) = (
        [
            client.patch(service, server, &patch).await,
            client.add_server(service, &new).await,
            client.remove_server(service, server).await,
            client.add_service(&settings).await,
            client.remove_service(service).await,
        ],
        [
            Order::Patch { service, server, patch },
            Order::AddServer { service, server: new },
            Order::RemoveServer { service, server },
            Order::AddService(settings),
            Order::RemoveService(service),
        ],
    );
    for (answer, order) in answers.into_iter().zip(orders) {
        assert_eq!(answer.unwrap().holds, format!("{order:?}"));
    }
    assert_eq!(client.diff().await.unwrap(), [change()]);
    assert_eq!(client.save().await.unwrap(), router.backend.save().await.unwrap());
    let filter = api::Filter { service: Some("tcp/192.0.2.10:80".to_owned()), ..api::Filter::default() };
    assert_eq!(client.flush(&filter).await.unwrap().connections, 3);
    assert_eq!(client.flush(&api::Filter::default()).await.unwrap_err().to_string(), "expected a service");
}

#[tokio::test]
async fn every_connection_comes_once_and_in_order() {
    for count in [0, 1, 12_345] {
        let router = router(count).await;
        let mut seen = Vec::new();
        let each = |connection| {
            seen.push(connection);
            Ok(())
        };
        router.client().connections(each).await.unwrap();
        assert_eq!(seen, (0..count).map(connection).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_refused_reload_says_why() {
    let router = router(0).await;
    let error = router.client().reload(false).await.unwrap_err();
    assert_eq!(error.to_string(), "rvs.toml:1:1: port: missing; expected at least one [[port]]");
    let (status, body) = router.raw("POST /v1/reload HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status, "HTTP/1.1 422 Unprocessable Entity");
    assert_eq!(body, r#"{"error":"rvs.toml:1:1: port: missing; expected at least one [[port]]"}"#);
}

/// What is asked arrives as it was asked, also a name that is no good in a URL.
#[tokio::test]
async fn a_question_arrives_whole() {
    let router = router(1).await;
    let mut question = explain::Question {
        source: "198.51.100.7:40112".parse().unwrap(),
        destination: "192.0.2.10:80".parse().unwrap(),
        protocol: Some("tcp".to_owned()),
        flags: Some("SA".to_owned()),
        port: None,
        length: Some(1500),
    };
    let explanation = router.client().explain(&question).await.unwrap();
    let explain::Packet { source, destination, flags, length, .. } = explanation.packet;
    assert_eq!((source, destination), (question.source, question.destination));
    assert_eq!((flags.as_str(), length), ("SA", 1500));
    question.port = Some("a&b=%20 c".to_owned());
    let error = router.client().explain(&question).await.unwrap_err();
    assert_eq!(error.to_string(), "port: there is no Some(\"a&b=%20 c\"); expected wan");
    for query in [
        "",
        "?source=1.2.3.4:5",
        "?source=1.2.3.4:5&destination=x",
        "?source=1.2.3.4:5&destination=1.2.3.4:6&x=1",
    ] {
        let request = format!("GET /v1/explain{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let (status, body) = router.raw(&request).await;
        assert_eq!(status, "HTTP/1.1 400 Bad Request", "{query}");
        assert!(body.contains("; expected source=A:P and destination=V:P, "), "{body}");
    }
}

#[tokio::test]
async fn a_capture_comes_in_pieces() {
    let router = router(1).await;
    let filter = "host 198.51.100.7 and dropped".to_owned();
    let mut question = capture::Question { filter, one_in: Some(10), ..capture::Question::default() };
    let mut bytes = Vec::new();
    let take = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    router.client().capture(&question, take).await.unwrap();
    assert_eq!(bytes, [format!("{question:?}").into_bytes(), vec![7; 100_000]].concat());
    question.filter = "x".to_owned();
    let error = router.client().capture(&question, |_| Ok(())).await.unwrap_err();
    assert_eq!(error.to_string(), "filter: \"x\" is none");
}

#[tokio::test]
async fn wrong_requests_are_answered_in_json() {
    let router = router(1).await;
    for (request, body, status, error) in [
        (
            "GET /v2/services",
            "",
            "404 Not Found",
            "no such path: /v2/services; expected one of /v1/services, /v1/services/{protocol}/{service}, \
             /v1/services/{protocol}/{service}/servers, /v1/services/{protocol}/{service}/servers/{server}, \
             /v1/connections, /v1/counters, /v1/events, /v1/capture, /v1/explain, /metrics, /v1/reload, /v1/diff, /v1/save, \
             /v1/openapi.json",
        ),
        ("GET /v1/reload", "", "405 Method Not Allowed", "/v1/reload does not answer to GET"),
        ("DELETE /v1/services", "", "405 Method Not Allowed", "/v1/services does not answer to DELETE"),
        (
            "POST /v1/reload?dry_run=maybe",
            "",
            "400 Bad Request",
            "Failed to deserialize query string: dry_run: provided string was not `true` or `false`",
        ),
        (
            "DELETE /v1/services/sctp/192.0.2.10:80",
            "",
            "400 Bad Request",
            "\"sctp/192.0.2.10:80\" is no service; expected PROTOCOL/ADDRESS:PORT, e.g. tcp/192.0.2.10:80",
        ),
        (
            "DELETE /v1/services/tcp/192.0.2.10:80/servers/x",
            "",
            "400 Bad Request",
            "\"x\" is no server; expected ADDRESS:PORT, e.g. 10.0.0.11:8080",
        ),
        (
            "PATCH /v1/services/tcp/192.0.2.10:80/servers/10.0.0.11:80",
            "{\"wait\": 3}",
            "400 Bad Request",
            "the body is not what is expected: unknown field `wait`, expected one of `weight`, `state`, \
             `deadline` at line 1 column 7",
        ),
        (
            "POST /v1/services",
            "",
            "400 Bad Request",
            "the body is not what is expected: EOF while parsing a value at line 1 column 0",
        ),
        ("POST /v1/reload", "{}", "400 Bad Request", "the request has a body; expected none"),
        ("GET /v1/counters", "", "500 Internal Server Error", "the director is gone"),
    ] {
        let length = body.len();
        let request = format!(
            "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let (line, body) = router.raw(&request).await;
        assert_eq!(line, format!("HTTP/1.1 {status}"));
        assert_eq!(serde_json::from_str::<api::Failure>(&body).unwrap().error, error);
    }
}

/// Reading stops where the client stopped taking, and is given up when it hangs up.
#[tokio::test]
async fn a_client_that_hangs_up_ends_the_reading() {
    let router = router(100_000_000).await;
    let mut stream = UnixStream::connect(&router.path).await.unwrap();
    stream.write_all(b"GET /v1/connections HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    stream.read_exact(&mut [0; 1000]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let read = router.backend.read.load(Ordering::Relaxed);
    assert!((1..100_000).contains(&read), "read {read} connections ahead of the client");

    drop(stream);
    let start = std::time::Instant::now();
    while router.backend.readers.load(Ordering::Relaxed) > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "the reader goes on without a client");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(router.backend.read.load(Ordering::Relaxed) < 200_000);
    router.client().services().await.unwrap();
}

#[tokio::test]
async fn a_stuck_client_does_not_hold_up_another() {
    let router = router(1).await;
    let mut stuck = UnixStream::connect(&router.path).await.unwrap();
    stuck.write_all(b"POST /v1/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n").await.unwrap();
    router.client().services().await.unwrap();
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_server() {
    let router = router(1).await;
    let mode = std::fs::metadata(&router.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    router.server.abort();
    assert!(router.server.await.unwrap_err().is_cancelled());
    assert!(!router.path.exists());
}

#[tokio::test]
async fn the_socket_belongs_to_a_group() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rvs.sock");
    let Err(error) = bind(&path, Some("no-such-group")).await else { panic!("bound") };
    let expected =
        "admin.group: this machine has no group \"no-such-group\"; expected one that `getent group` lists";
    assert_eq!(error.to_string(), expected);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root gives a socket to another group");
        return;
    }
    let _socket = bind(&path, Some("daemon")).await.unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    let group = nix::unistd::Group::from_name("daemon").unwrap().unwrap();
    assert_eq!((metadata.gid(), metadata.mode() & 0o777), (group.gid.as_raw(), 0o660));
}

#[tokio::test]
async fn a_live_socket_is_left_alone() {
    let router = router(1).await;
    assert_eq!(
        refused(&router.path).await,
        "another rvs answers at PATH; stop it first, or give this one another admin.socket"
    );
    router.client().services().await.unwrap();
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rvs.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let socket = bind(&path, None).await.unwrap();
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rvs.sock");
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(
        refused(&path).await,
        "PATH exists and is not a socket; expected none, or that of an earlier rvs"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn a_successor_keeps_its_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rvs.sock");
    let first = bind(&path, None).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = bind(&path, None).await.unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[tokio::test]
async fn nobody_there() {
    let error = Client::new(Path::new("/nowhere/rvs.sock")).services().await.unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "cannot reach rvs at /nowhere/rvs.sock (is it running? -s names another socket): \
         No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let router = router(1).await;
    for (accept, body) in
        [("", "Text\n"), ("accept: application/openmetrics-text;version=1.0.0\r\n", "OpenMetrics\n")]
    {
        let request = format!("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{accept}\r\n");
        assert_eq!(router.raw(&request).await, ("HTTP/1.1 200 OK".to_owned(), body.to_owned()));
    }
}

fn down(n: u8) -> Kind {
    Kind::ServerDown {
        service: "tcp/192.0.2.10:80".to_owned(),
        server: std::net::SocketAddrV4::new([10, 0, 0, n].into(), 80),
        checks: 3,
        reason: "connection refused".to_owned(),
    }
}

#[tokio::test]
async fn events_come_as_they_were_published() {
    let router = router(1).await;
    (1..=6).for_each(|n| router.backend.events.publish(down(n)));
    let read = async |since| {
        let mut seen = Vec::new();
        let each = |event| {
            seen.push(event);
            Ok(())
        };
        router.client().events(since, false, each).await.unwrap();
        seen
    };
    let seen = read(Some(5)).await;
    assert_eq!(seen.len(), 1);
    let expected = serde_json::json!({
        "sequence": 6, "time": seen[0].time, "event": "server_down",
        "text": "tcp/192.0.2.10:80: 10.0.0.6:80 is down: connection refused (checks failed in a row: 3)",
        "service": "tcp/192.0.2.10:80", "server": "10.0.0.6:80", "checks": 3, "reason": "connection refused",
    });
    assert_eq!(serde_json::to_value(&seen[0]).unwrap(), expected);
    let numbers = |seen: Vec<api::Event>| seen.iter().map(|event| event.sequence).collect::<Vec<_>>();
    assert_eq!(numbers(read(None).await), [3, 4, 5, 6]);
    // The first says that two are missing.
    assert_eq!(numbers(read(Some(0)).await), [2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn a_follower_gets_each_event_when_it_happens_and_the_end() {
    let router = router(1).await;
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let client = router.client();
    let follower = tokio::spawn(async move {
        let each =
            |event: api::Event| sender.send(event.event).map_err(|_| std::io::ErrorKind::BrokenPipe.into());
        client.events(None, true, each).await
    });
    for n in 1..=3 {
        router.backend.events.publish(down(n));
        assert_eq!(receiver.recv().await.unwrap(), "server_down");
    }
    router.backend.events.stop("SIGTERM").await;
    assert_eq!(receiver.recv().await.unwrap(), "stopping");
    follower.await.unwrap().unwrap();
}

/// Whoever does not read costs what fits into a socket, and hears what it has missed when it reads again.
#[tokio::test]
async fn a_follower_that_does_not_read_misses_events() {
    let router = router(1).await;
    router.backend.events.publish(down(0));
    let mut stream = UnixStream::connect(&router.path).await.unwrap();
    stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    while !answer.contains("10.0.0.0:80") {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.unwrap();
        answer.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    // More than the ring and all buffers together: the server has the chance to send each.
    for _ in 0..20_000 {
        router.backend.events.publish(down(1));
        tokio::task::yield_now().await;
    }
    router.backend.events.stop("SIGTERM").await;
    let mut rest = Vec::new();
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, async {
        let mut bytes = vec![0; 1 << 16];
        while !String::from_utf8_lossy(&rest).ends_with("0\r\n\r\n") {
            let read = stream.read(&mut bytes).await.unwrap();
            rest.extend_from_slice(&bytes[..read]);
        }
    })
    .await
    .expect("the stream ends");
    let text = String::from_utf8(rest).unwrap();
    let missed = text.lines().filter_map(|line| serde_json::from_str::<api::Event>(line).ok());
    let missed: u64 = missed.filter_map(|event| event.details.get("events")?.as_u64()).sum();
    assert!(missed > 1_000, "missed {missed}");
    assert!(text.contains("\"stopping\""));
}

#[tokio::test]
async fn what_is_asked_of_events_is_checked() {
    let router = router(1).await;
    for query in ["since=-1", "since=soon", "follow=maybe", "sinse=3"] {
        let request = format!("GET /v1/events?{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let (status, body) = router.raw(&request).await;
        assert_eq!(status, "HTTP/1.1 400 Bad Request", "{query}");
        let error = serde_json::from_str::<api::Failure>(&body).unwrap().error;
        assert!(error.ends_with("; expected since=N, a number, and follow=true or false"), "{error}");
    }
}
