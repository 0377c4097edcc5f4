//! The admin API over TCP: a real listener on loopback, our own client and clients that behave badly.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{Client, Heard, Place};
use super::remote::Remote;
use super::tcp::{Farewell, Listener, Settings, bind, serve};
use super::tests::Fake;
use super::visitor::{NEWCOMERS_OF_ONE, PATIENCE};
use super::{Backend, api};
use crate::config::tcp::fixture::{Files, READ_TOKEN, TOKEN};
use crate::config::{Authorities, Config, Trust};
use crate::health::tls;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

struct Router {
    files: Files,
    settings: Settings,
    farewell: Farewell,
    backend: Fake,
    listen: String,
}

fn config(files: &Files, listen: &str) -> Config {
    files.read(&files.table(listen)).unwrap()
}

/// A router that serves a port of its own.
async fn router() -> Router {
    let files = Files::new();
    // A port that was free a moment ago; if somebody else has taken it, another one.
    let (listen, listener) = loop {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        if let Ok(listener) = bind(&config(&files, &free)) {
            break (free, listener.unwrap());
        }
    };
    serving(files, listen, listener)
}

fn serving(files: Files, listen: String, listener: Listener) -> Router {
    let settings = Settings::new(config(&files, &listen).admin.tcp.unwrap());
    let (farewell, backend) = (Farewell::default(), Fake::new(3));
    tokio::spawn(serve(listener, settings.subscribe(), farewell.subscribe(), backend.clone()));
    Router { files, settings, farewell, backend, listen }
}

impl Router {
    /// What a reload does.
    fn reload(&self) {
        self.settings.renew(&config(&self.files, &self.listen).admin.tcp.unwrap());
    }

    fn remote(&self, token_file: &str) -> Remote {
        let file = |name| Some(self.files.path(name));
        Remote { url: format!("https://{}", self.listen), ca: file("ca.pem"), token_file: file(token_file) }
    }

    fn client(&self) -> Client {
        Client::remote(self.remote("admin.token"))
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(&self.listen).await.unwrap()
    }

    async fn tls(&self) -> TlsStream<TcpStream> {
        let trust = Trust::Authorities(Authorities::load(&self.files.path("ca.pem")).unwrap());
        let connector = TlsConnector::from(Arc::new(tls::client_config(&trust)));
        let name = ServerName::try_from("localhost").unwrap();
        connector.connect(name, self.tcp().await).await.unwrap()
    }

    /// Status line, head and body of the answer to a request with these headers.
    async fn ask(&self, request: &str, headers: &str) -> (String, String, String) {
        let mut stream = self.tls().await;
        let request = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let (status, head) = head.split_once("\r\n").unwrap();
        (status.trim_start_matches("HTTP/1.1 ").to_owned(), head.to_lowercase(), body.to_owned())
    }
}

/// The server has closed.
async fn closed(stream: &mut TcpStream) -> bool {
    let mut rest = [0; 64];
    matches!(timeout(LONG, stream.read(&mut rest)).await.expect("it is closed"), Ok(0) | Err(_))
}

fn error(body: &str) -> String {
    serde_json::from_str::<api::Failure>(body).expect(body).error
}

#[tokio::test]
async fn our_client_is_answered() {
    let router = router().await;
    assert_eq!(router.client().services().await.unwrap(), router.backend.services().await.unwrap());
    let service = "tcp/192.0.2.10:80".parse().unwrap();
    router.client().remove_service(service).await.unwrap();
    let mut count = 0;
    router
        .client()
        .connections(|_| {
            count += 1;
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(count, 3);
}

#[tokio::test]
async fn without_a_token_nothing_is_told() {
    let router = router().await;
    let basic = "authorization: Basic cnZzOnJ2cw==\r\n";
    for (headers, challenge) in [
        (String::new(), "bearer realm=\"rvs\""),
        (basic.to_owned(), "bearer realm=\"rvs\""),
        ("authorization: Bearer\r\n".to_owned(), "bearer realm=\"rvs\""),
        ("authorization: Bearer \r\n".to_owned(), "bearer realm=\"rvs\""),
        (
            "authorization: Bearer 0123456789abcdef-none\r\n".to_owned(),
            "bearer realm=\"rvs\", error=\"invalid_token\"",
        ),
        (format!("authorization: Bearer {TOKEN}x\r\n"), "bearer realm=\"rvs\", error=\"invalid_token\""),
    ] {
        // Not even whether there is such a path.
        for request in
            ["GET /v1/services", "GET /metrics", "GET /nowhere", "TRACE /v1/services", "POST /v1/reload"]
        {
            let (status, head, body) = router.ask(request, &headers).await;
            assert_eq!(status, "401 Unauthorized", "{request} {headers}");
            assert!(head.contains(&format!("www-authenticate: {challenge}\r\n")), "{head}");
            assert!(head.contains("content-type: application/json"), "{head}");
            assert!(error(&body).contains("; expected "), "{body}");
        }
    }
    let (status, ..) = router.ask("GET /v1/services", &format!("authorization: bEARER {TOKEN}\r\n")).await;
    assert_eq!(status, "200 OK");
}

#[tokio::test]
async fn whoever_may_only_look_only_looks() {
    let router = router().await;
    let token = format!("authorization: Bearer {READ_TOKEN}\r\n");
    for request in
        ["GET /v1/services", "HEAD /v1/services", "GET /metrics", "GET /v1/diff", "GET /v1/openapi.json"]
    {
        assert_eq!(router.ask(request, &token).await.0, "200 OK", "{request}");
    }
    for request in [
        "POST /v1/reload?dry_run=true",
        "DELETE /v1/services/tcp/192.0.2.10:80",
        "PATCH /v1/services/tcp/192.0.2.10:80/servers/10.0.0.1:80",
        "DELETE /v1/connections?all=true",
        "GET /v1/capture",
        "GET /v1/capture?seconds=1",
    ] {
        let (status, head, body) = router.ask(request, &token).await;
        assert_eq!(status, "403 Forbidden", "{request}");
        assert!(head.contains("error=\"insufficient_scope\""), "{head}");
        assert_eq!(
            error(&body),
            "this token may only look, and not at packets; expected one of admin.tcp.token_file"
        );
    }
    // What is wrong besides is said as it is to everybody.
    assert_eq!(router.ask("GET /nowhere", &token).await.0, "404 Not Found");
}

#[tokio::test]
async fn our_client_says_what_to_do() {
    let router = router().await;
    let (remote, url) = (router.remote("admin.token"), format!("https://{}", router.listen));
    let wrong = async |remote: Remote| {
        let error = format!("{:#}", Client::remote(remote).services().await.unwrap_err());
        error.replace(&url, "URL").replace(&router.files.path("").display().to_string(), "/d/")
    };
    assert_eq!(
        wrong(Remote { token_file: None, ..remote.clone() }).await,
        "URL wants a token; pass the file that has it by --token-file FILE (RVS_TOKEN_FILE)"
    );
    router.files.write("other.token", "0123456789abcdef-none", 0o600);
    assert_eq!(
        wrong(router.remote("other.token")).await,
        "nobody knows this token; expected one of admin.tcp.token_file or, to look, of admin.tcp.read_token_file, as they \
         were at the last reload (what was shown is from /d/other.token)"
    );
    assert_eq!(
        wrong(router.remote("no.token")).await,
        "\"/d/no.token\" cannot be read: No such file or directory (os error 2); expected a file with a token"
    );
    let other = Files::new();
    let unknown = wrong(Remote { ca: Some(other.path("ca.pem")), ..remote.clone() }).await;
    assert!(unknown.ends_with("ca.pem; expected the certificate of its CA there"), "{unknown}");
    assert_eq!(
        wrong(Remote { url: "http://x".to_owned(), ..remote.clone() }).await,
        "\"http://x\" is not where an admin API is; expected https://HOST:PORT"
    );
    let elsewhere = Remote { url: url.replace("127.0.0.1", "127.0.0.2"), ..remote.clone() };
    let refused = format!("{:#}", Client::remote(elsewhere).services().await.unwrap_err());
    let expected = "(is it running, and is this its admin.tcp.listen?): Connection refused (os error 111)";
    assert!(refused.ends_with(expected), "{refused}");
    router.files.renew(2000, 2001);
    router.reload();
    assert_eq!(wrong(remote).await, "cannot speak TLS with rvs at URL: certificate has expired");
}

#[tokio::test]
async fn plain_http_is_told_what_is_missing() {
    let router = router().await;
    let mut stream = router.tcp().await;
    stream.write_all(b"GET /v1/services HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"), "{head}");
    assert_eq!(error(body), "this port speaks HTTP over TLS only; expected https:// in the URL");
}

#[tokio::test]
async fn what_is_neither_is_hung_up_on() {
    let router = router().await;
    for noise in [&b"\x00\x01\x02\x03"[..], b"\x16\x03\x01\xff\xff\x00", b"SSH-2.0-x\r\n"] {
        let mut stream = router.tcp().await;
        stream.write_all(noise).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // An alert, an answer in plain HTTP, or nothing; then the end.
        let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap();
    }
    router.client().services().await.unwrap();
}

/// Clients that connect and say nothing keep each other out, but nobody who comes from elsewhere, and not for long.
#[tokio::test]
async fn silent_clients_keep_nobody_else_out() {
    let router = router().await;
    let mut silent = Vec::new();
    for _ in 0..NEWCOMERS_OF_ONE {
        silent.push(router.tcp().await);
    }
    // Accepted after all of them, so the places of this address are taken.
    assert!(closed(&mut router.tcp().await).await);
    let from_elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
    from_elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut elsewhere = from_elsewhere.connect(router.listen.parse().unwrap()).await.unwrap();
    elsewhere.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(!closed(&mut elsewhere).await, "somebody else is answered");

    // Nor do those that drip: the time is for all that comes before a token.
    silent[0].write_all(b"\x16\x03").await.unwrap();
    let mut drips = silent.pop().unwrap();
    drop(silent.pop());
    let mut half = tls_of(&router, silent.pop().unwrap()).await;
    half.write_all(b"GET /v1/services HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    tokio::time::pause();
    tokio::time::advance(PATIENCE + Duration::from_secs(1)).await;
    tokio::time::resume();
    assert!(closed(&mut drips).await);
    let mut rest = Vec::new();
    let _ = timeout(LONG, half.read_to_end(&mut rest)).await.expect("it is closed");
    for stream in &mut silent {
        assert!(closed(stream).await);
    }
    router.client().services().await.unwrap();
}

async fn tls_of(router: &Router, stream: TcpStream) -> TlsStream<TcpStream> {
    let trust = Trust::Authorities(Authorities::load(&router.files.path("ca.pem")).unwrap());
    let connector = TlsConnector::from(Arc::new(tls::client_config(&trust)));
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
}

/// Whoever has shown a token stays beyond the time of a newcomer, and takes no newcomer's place.
#[tokio::test]
async fn whoever_is_known_stays() {
    let router = router().await;
    let mut streams = Vec::new();
    for _ in 0..NEWCOMERS_OF_ONE + 3 {
        let mut stream = router.tls().await;
        let request = format!(
            "GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {READ_TOKEN}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 15];
        timeout(LONG, stream.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        streams.push(stream);
    }
    tokio::time::pause();
    tokio::time::advance(PATIENCE * 10).await;
    tokio::time::resume();
    router.backend.events().publish(crate::events::Kind::Stopping { signal: "SIGTERM" });
    for stream in &mut streams {
        let mut rest = String::new();
        timeout(LONG, stream.read_to_string(&mut rest)).await.expect("the stream ends").ok();
        assert!(rest.contains("\"stopping\""), "{rest}");
    }
}

/// The listener and the connections stay; what is new holds for the next connection, and tokens for the next request.
#[tokio::test]
async fn a_reload_renews_certificate_and_tokens() {
    let router = router().await;
    let shown = async || {
        let stream = router.tls().await;
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let first = shown().await;
    let mut old = router.tls().await;
    let request = format!("GET /v1/diff HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    let mut ask = async || {
        old.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(LONG, old.read_u8()).await.unwrap().unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        timeout(LONG, old.read_exact(&mut body)).await.unwrap().unwrap();
        head
    };
    assert!(ask().await.starts_with("HTTP/1.1 200 OK"));

    router.files.renew(2000, 3001);
    router.files.write("admin.token", "another-token-0123456789", 0o600);
    assert_eq!(shown().await, first, "nothing changes without a reload");
    router.client().services().await.unwrap_err();
    router.reload();
    assert_ne!(shown().await, first);
    router.client().services().await.unwrap();
    assert!(ask().await.starts_with("HTTP/1.1 401 Unauthorized"), "the old token counts no longer");
}

/// The farewell is over when the last follower has hung up, or after a while.
#[tokio::test]
async fn followers_hear_the_end_and_the_stuck_do_not_delay_it() {
    let router = router().await;
    let mut place = Place::default();
    let client = router.client();
    let (sender, begun) = tokio::sync::oneshot::channel();
    let mut sender = Some(sender);
    let follower = tokio::spawn(async move {
        let mut heard = Vec::new();
        let each = |one| {
            match one {
                Heard::Begin { .. } => drop(sender.take().map(|sender| sender.send(()))),
                Heard::Event(event) => heard.push(event.event),
            }
            Ok(())
        };
        client.events(&mut place, true, each).await.map(|()| heard)
    });
    begun.await.unwrap();
    router.backend.events().stop("SIGTERM").await;
    router.farewell.say().await;
    assert_eq!(follower.await.unwrap().unwrap(), ["stopping"]);
    assert!(TcpStream::connect(&router.listen).await.is_err(), "nobody is let in any more");

    let another = self::router().await;
    let _stuck = another.tls().await;
    timeout(LONG, another.farewell.say()).await.unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken() {
    let router = router().await;
    let error = bind(&config(&router.files, &router.listen)).unwrap_err();
    let message = format!("{error:#}");
    let expected = format!(
        "f:2:10: admin.tcp.listen: cannot listen at {}: Address already in use; another program listens there \
         (`ss -ltnp` shows which); stop it, or expected another address or port",
        router.listen
    );
    assert_eq!(message, expected);
    router.client().services().await.unwrap();
}

/// A twin's address is there only when RVS runs.
#[tokio::test]
async fn an_address_that_comes_later() {
    let files = Files::new();
    assert!(bind(&config(&files, "192.0.2.1:29443")).unwrap().is_some());
    assert!(bind(&files.read("").unwrap()).unwrap().is_none());
}
