//! Certificates of all kinds, and what is no TLS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::Outcome;
use super::fixture::{Ca, LONG, NOW, check, check_in_vain, head, loopbacks, serve, serve_at};

/// What a server has seen of a connection.
#[derive(Debug, PartialEq)]
struct Seen {
    name: Option<String>,
    protocol: Option<String>,
    kind: Option<HandshakeKind>,
    /// Whether the client took leave, if it did not ask anything.
    leave: bool,
}

/// Answers HTTP, and `tls` with silence.
async fn server(config: ServerConfig) -> (SocketAddr, UnboundedReceiver<Seen>) {
    server_at(Ipv4Addr::LOCALHOST.into(), config).await
}

async fn server_at(host: IpAddr, config: ServerConfig) -> (SocketAddr, UnboundedReceiver<Seen>) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (tell, seen) = unbounded_channel();
    let address = serve_at(host, move |stream| {
        let (acceptor, tell) = (acceptor.clone(), tell.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut first = [0];
            let asked = stream.read(&mut first).await;
            let connection = stream.get_ref().1;
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let _ = tell.send(Seen {
                name: connection.server_name().map(str::to_owned),
                protocol: connection.alpn_protocol().map(text),
                kind: connection.handshake_kind(),
                leave: matches!(asked, Ok(0)),
            });
            if matches!(asked, Ok(1)) {
                head(&mut stream).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                let _ = stream.shutdown().await;
            }
        }
    })
    .await;
    (address, seen)
}

fn passed(what: &str) -> Outcome {
    Outcome::passed(what.to_owned())
}

fn failed(why: &str) -> Outcome {
    Outcome::failed(why.to_owned())
}

#[tokio::test]
async fn certificates() {
    let (ours, namesake, stranger) = (Ca::new(), Ca::new(), Ca::named("somebody"));
    let ca = ours.key();
    let same_name =
        "certificate has a wrong signature; expected that of its issuer (another CA of the same name?)";
    let www = "sni = \"www.example.com\"";
    let wrong = failed("certificate is not for www.example.com");
    for (names, years, keys, expected) in [
        (&["www.example.com"][..], NOW, format!("{ca}\n{www}"), Ok(())),
        (&["*.example.com"], NOW, format!("{ca}\n{www}"), Ok(())),
        (&["127.0.0.1"], NOW, ca.clone(), Ok(())),
        (&["127.0.0.1"], NOW, format!("{ca}\n{www}"), Err(wrong.clone())),
        (&["example.com"], NOW, format!("{ca}\n{www}"), Err(wrong)),
        (&["www.example.com"], NOW, ca.clone(), Err(failed("certificate is not for 127.0.0.1"))),
        (&["127.0.0.1"], (2000, 2001), ca.clone(), Err(failed("certificate has expired"))),
        (&["127.0.0.1"], (2999, 3000), ca, Err(failed("certificate is not valid yet"))),
        (&["127.0.0.1"], NOW, stranger.key(), Err(failed("certificate has an unknown issuer"))),
        (&["127.0.0.1"], NOW, namesake.key(), Err(failed(same_name))),
        (&["example.org"], (2000, 2001), "skip_verify = true".to_owned(), Ok(())),
    ] {
        let (server, _seen) = server(ours.server(names, years)).await;
        for (kind, good) in [("tls", "TLS handshake"), ("https", "status 200")] {
            let outcome = check(&format!("kind = \"{kind}\"\n{keys}"), server).await;
            let expected = expected.clone().map_or_else(|failed| failed, |()| passed(good));
            assert_eq!(outcome, expected, "{kind} {names:?} {years:?} {keys}");
        }
    }
}

/// Without a name, the certificate must be for the address (RFC 2818, 3.1), of whichever family.
#[tokio::test]
async fn certificates_for_addresses() {
    let ca = Ca::new();
    for host in loopbacks() {
        for (name, expected) in [
            (host.to_string(), Ok(())),
            ("192.0.2.1".to_owned(), Err(format!("certificate is not for {host}"))),
            ("2001:db8::1".to_owned(), Err(format!("certificate is not for {host}"))),
        ] {
            let (server, _seen) = server_at(host, ca.server(&[&name], NOW)).await;
            for (kind, good) in [("tls", "TLS handshake"), ("https", "status 200")] {
                let outcome = check(&format!("kind = \"{kind}\"\n{}", ca.key()), server).await;
                let expected = expected.as_ref().map_or_else(|why| failed(why), |()| passed(good));
                assert_eq!(outcome, expected, "{kind} at {host}, for {name}");
            }
        }
    }
}

/// `openssl req -x509` makes certificates that are their own CA's. They can sign others, but not stand for a server.
#[tokio::test]
async fn a_ca_is_no_server() {
    let ca = Ca::new();
    let (server, _seen) = server(ca.itself()).await;
    let expected = "certificate is a CA's own (CA:TRUE); expected one of a server, or skip_verify = true";
    assert_eq!(check(&format!("kind = \"tls\"\n{}", ca.key()), server).await, failed(expected));
    assert_eq!(check("kind = \"tls\"\nskip_verify = true", server).await, passed("TLS handshake"));
}

#[tokio::test]
async fn each_check_is_a_whole_handshake_with_the_right_names_and_a_leave() {
    let ca = Ca::new();
    let mut config = ca.server(&["www.example.com", "127.0.0.1"], NOW);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (server, mut seen) = server(config).await;
    let key = ca.key();
    for (keys, name, protocol, leave) in [
        ("kind = \"tls\"", None, None, true),
        ("kind = \"tls\"\nsni = \"www.example.com\"", Some("www.example.com"), None, true),
        ("kind = \"https\"", None, Some("http/1.1"), false),
        ("kind = \"https\"\nhost = \"127.0.0.1:9\"", None, Some("http/1.1"), false),
        ("kind = \"https\"\nhost = \"www.example.com:9\"", Some("www.example.com"), Some("http/1.1"), false),
        (
            "kind = \"https\"\nhost = \"else.example.com\"\nsni = \"www.example.com\"",
            Some("www.example.com"),
            Some("http/1.1"),
            false,
        ),
    ] {
        // The same probe twice: the second time it could resume.
        let probe = super::ready(&super::fixture::kind(&format!("{keys}\n{key}")));
        for _ in 0..2 {
            let outcome = timeout(LONG, probe.probe(server)).await.unwrap();
            assert!(matches!(outcome, Outcome::Passed { .. }), "{keys}: {outcome:?}");
            let expected = Seen {
                name: name.map(str::to_owned),
                protocol: protocol.map(str::to_owned),
                kind: Some(HandshakeKind::Full),
                leave,
            };
            assert_eq!(seen.recv().await.unwrap(), expected, "{keys}");
        }
    }
}

#[tokio::test]
async fn what_is_no_tls() {
    let smtp = serve(|mut stream| async move {
        stream.write_all(b"220 mail.example.com ESMTP\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let closing = serve(|mut stream| async move {
        // All of the greeting, so that the end is no reset.
        let mut record = [0; 5];
        stream.read_exact(&mut record).await.unwrap();
        let mut greeting = vec![0; usize::from(u16::from_be_bytes([record[3], record[4]]))];
        stream.read_exact(&mut greeting).await.unwrap();
    })
    .await;
    for kind in ["tls", "https", "grpc"] {
        let tls = if kind == "grpc" { "tls = true" } else { "" };
        let keys = format!("kind = \"{kind}\"\nskip_verify = true\n{tls}");
        assert_eq!(check(&keys, smtp).await, failed("not TLS"), "{kind}");
        assert_eq!(check(&keys, closing).await, failed("closed during the TLS handshake"), "{kind}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_says_why() {
    let ca = Ca::new();
    let mut strange = ca.server(&["127.0.0.1"], NOW);
    strange.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let (server, _seen) = server(strange).await;
    let https = format!("kind = \"https\"\n{}", ca.key());
    assert_eq!(check(&https, server).await, failed("TLS without the protocol of the check (ALPN)"));
    // Whoever asks for nothing by name gets on.
    assert_eq!(check(&format!("kind = \"tls\"\n{}", ca.key()), server).await, passed("TLS handshake"));
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_of_the_client() {
    let ca = Ca::new();
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let (server, _seen) = server(ca.strict_server(&["127.0.0.1"], NOW, Some(clients))).await;
    let https = format!("kind = \"https\"\n{}", ca.key());
    assert_eq!(check(&https, server).await, failed("server asks for a certificate of the client"));
}

#[tokio::test]
async fn silence_runs_into_the_timeout_and_nothing_remains() {
    let (tell, mut gone) = unbounded_channel();
    let silent = serve(move |mut stream| {
        let tell = tell.clone();
        async move {
            // Ends when the other end is closed.
            let _ = stream.read_to_end(&mut Vec::new()).await;
            let _ = tell.send(());
        }
    })
    .await;
    for kind in ["tls", "https", "grpc"] {
        let tls = if kind == "grpc" { "tls = true" } else { "" };
        check_in_vain(&format!("kind = \"{kind}\"\nskip_verify = true\n{tls}"), silent).await;
        timeout(LONG, gone.recv()).await.expect("the socket is closed").unwrap();
    }
}
