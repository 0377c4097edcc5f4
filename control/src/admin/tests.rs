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

/// A router with any number of connections, that counts how many have been read.
#[derive(Clone)]
struct Fake {
    connections: u64,
    read: Arc<AtomicU64>,
    /// How many iterators there are.
    readers: Arc<AtomicU64>,
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

    async fn reload(&self) -> anyhow::Result<api::Reloaded> {
        if self.connections == 0 {
            anyhow::bail!("rvs.toml:1:1: port: missing; expected at least one [[port]]");
        }
        Ok(api::Reloaded { generation: 2, services: 1, servers: 3 })
    }
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
    let backend = Fake { connections, read: Arc::default(), readers: Arc::default() };
    let socket = bind(&path).await.unwrap();
    let server = tokio::spawn(serve(socket, backend.clone()));
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
    match bind(path).await {
        Ok(_) => panic!("{} was bound", path.display()),
        Err(error) => format!("{error:#}").replace(&path.display().to_string(), "PATH"),
    }
}

#[tokio::test]
async fn answers_come_back_as_they_were_given() {
    let router = router(3).await;
    let services = router.client().services().await.unwrap();
    assert_eq!(services, router.backend.services().await.unwrap());
    let reloaded = router.client().reload().await.unwrap();
    assert_eq!(reloaded, api::Reloaded { generation: 2, services: 1, servers: 3 });
    let error = router.client().counters().await.unwrap_err();
    assert_eq!(error.to_string(), "the director is gone");
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
    let error = router.client().reload().await.unwrap_err();
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
            "no such path: /v2/services; expected /v1/services, /v1/connections, /v1/counters, /v1/capture, /v1/explain or /v1/reload",
        ),
        ("GET /v1/reload", "", "405 Method Not Allowed", "/v1/reload does not answer to GET; expected POST"),
        (
            "DELETE /v1/services",
            "",
            "405 Method Not Allowed",
            "/v1/services does not answer to DELETE; expected GET",
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
    let socket = bind(&path).await.unwrap();
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
    let first = bind(&path).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = bind(&path).await.unwrap();
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
