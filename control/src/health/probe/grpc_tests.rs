//! gRPC as servers speak it, and what else may be there.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use h2::server;
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::Outcome;
use super::fixture::{Ca, LONG, NOW, check, check_in_vain, loopbacks, serve, serve_at};

/// What a server answers.
#[derive(Clone)]
struct Answer {
    http: u16,
    kind: &'static str,
    head: &'static [(&'static str, &'static str)],
    message: Option<&'static [u8]>,
    trailers: &'static [(&'static str, &'static str)],
}

const SERVING: Answer = Answer {
    http: 200,
    kind: "application/grpc",
    head: &[],
    message: Some(b"\x00\x00\x00\x00\x02\x08\x01"),
    trailers: &[("grpc-status", "0")],
};

/// An answer without a message, as servers give it to a call that fails.
const NOTHING: Answer = Answer { message: None, trailers: &[], ..SERVING };

/// The last request, and its body.
type Asked = Arc<Mutex<Option<(Request<()>, Vec<u8>)>>>;

/// Answers one request after another.
async fn answer<S>(stream: S, answer: Answer, asked: Asked)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(mut connection) = server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (answer, asked) = (answer.clone(), Arc::clone(&asked));
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut question = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                question.extend_from_slice(&data);
            }
            *asked.lock().unwrap() = Some((Request::from_parts(head, ()), question));
            let mut response = Response::builder().status(answer.http).header("content-type", answer.kind);
            for (name, value) in answer.head {
                response = response.header(*name, *value);
            }
            let Some(message) = answer.message else {
                respond.send_response(response.body(()).unwrap(), true).unwrap();
                return;
            };
            let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
            stream.send_data(Bytes::from_static(message), answer.trailers.is_empty()).unwrap();
            if !answer.trailers.is_empty() {
                let trailers: HeaderMap = answer
                    .trailers
                    .iter()
                    .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                    .collect();
                stream.send_trailers(trailers).unwrap();
            }
        });
    }
}

async fn answering(with: Answer) -> SocketAddr {
    serve(move |stream| answer(stream, with.clone(), Arc::default())).await
}

fn passed(what: &str) -> Outcome {
    Outcome::passed(what.to_owned())
}

fn failed(why: &str) -> Outcome {
    Outcome::failed(why.to_owned())
}

#[tokio::test]
async fn answers() {
    let with = |message: &'static [u8]| Answer { message: Some(message), ..SERVING };
    let status = |head| Answer { head, ..NOTHING };
    for (given, expected) in [
        (SERVING, passed("SERVING")),
        (with(b"\0\0\0\0\0"), failed("server is UNKNOWN; expected SERVING")),
        (with(b"\0\0\0\0\x02\x08\x02"), failed("server is NOT_SERVING; expected SERVING")),
        (with(b"\0\0\0\0\x02\x08\x03"), failed("server is SERVICE_UNKNOWN; expected SERVING")),
        (with(b"\0\0\0\0\x02\x08\x09"), failed("server is something unheard of; expected SERVING")),
        (with(b"\0\0\0\0\x09\x08\x01"), failed("answer is no HealthCheckResponse")),
        (with(&[b'x'; 5000]), failed("answer of more than 4096 bytes")),
        (status(&[("grpc-status", "5")]), failed("server is unknown to the health service (NOT_FOUND)")),
        (
            status(&[("grpc-status", "12"), ("grpc-message", "unknown service")]),
            failed("server has no service grpc.health.v1.Health (UNIMPLEMENTED)"),
        ),
        (status(&[("grpc-status", "14")]), failed("gRPC status 14 (UNAVAILABLE)")),
        (status(&[("grpc-status", "99")]), failed("gRPC status 99 (no status of gRPC)")),
        (
            Answer { trailers: &[("grpc-status", "8"), ("grpc-message", "too many")], ..SERVING },
            failed("gRPC status 8 (RESOURCE_EXHAUSTED): \"too many\""),
        ),
        (
            Answer { trailers: &[], ..SERVING },
            failed("no grpc-status; expected one at the end of the answer"),
        ),
        (Answer { http: 404, ..NOTHING }, failed("HTTP status 404; expected gRPC, and 200")),
        (
            Answer { kind: "text/html", ..SERVING },
            failed("content-type \"text/html\"; expected application/grpc"),
        ),
    ] {
        let server = answering(given).await;
        assert_eq!(check("kind = \"grpc\"", server).await, expected);
    }
}

#[tokio::test]
async fn reasons_name_the_service() {
    for (given, expected) in [
        (
            Answer { head: &[("grpc-status", "5")], ..NOTHING },
            "service \"shop.Cart\" is unknown to the health service (NOT_FOUND)",
        ),
        (
            Answer { message: Some(b"\0\0\0\0\x02\x08\x02"), ..SERVING },
            "service \"shop.Cart\" is NOT_SERVING; expected SERVING",
        ),
    ] {
        let server = answering(given).await;
        assert_eq!(check("kind = \"grpc\"\nservice = \"shop.Cart\"", server).await, failed(expected));
    }
}

#[tokio::test]
async fn what_is_asked() {
    for host in loopbacks() {
        assert_asked(host).await;
    }
}

async fn assert_asked(host: IpAddr) {
    let asked = Arc::new(Mutex::new(None));
    let record = Arc::clone(&asked);
    let server = serve_at(host, move |stream| answer(stream, SERVING, Arc::clone(&record))).await;
    for (keys, host, question) in [
        ("", server.to_string(), &b"\0\0\0\0\0"[..]),
        (
            "service = \"shop\"\nhost = \"grpc.example.com\"",
            "grpc.example.com".into(),
            b"\0\0\0\0\x06\x0a\x04shop",
        ),
    ] {
        assert_eq!(check(&format!("kind = \"grpc\"\n{keys}"), server).await, passed("SERVING"));
        let (request, body) = asked.lock().unwrap().take().unwrap();
        assert_eq!(request.uri().to_string(), format!("http://{host}/grpc.health.v1.Health/Check"));
        assert_eq!((request.method().as_str(), &body[..]), ("POST", question));
        let header = |name: &str| request.headers()[name].to_str().unwrap();
        assert_eq!(header("content-type"), "application/grpc");
        assert_eq!(header("te"), "trailers");
        assert_eq!(header("user-agent"), "rvs");
    }
}

#[tokio::test]
async fn over_tls() {
    let ca = Ca::new();
    for (protocols, expected) in [
        (&["h2"][..], passed("SERVING")),
        (&[], passed("SERVING")),
        (&["http/1.1"], failed("TLS without the protocol of the check (ALPN)")),
    ] {
        let mut config = ca.server(&["grpc.example.com"], NOW);
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = serve(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer(stream, SERVING, Arc::default()).await;
                }
            }
        })
        .await;
        let keys = format!("kind = \"grpc\"\ntls = true\nhost = \"grpc.example.com\"\n{}", ca.key());
        assert_eq!(check(&keys, server).await, expected, "{protocols:?}");
    }
}

#[tokio::test]
async fn what_is_no_grpc() {
    let web = serve(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    assert_eq!(check("kind = \"grpc\"", web).await, failed("not an answer by HTTP/2"));
    let closing = serve(|stream| async move {
        // Its end of the connection, without an unread byte, so that it is no reset.
        let stream = stream.into_std().unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    assert_eq!(check("kind = \"grpc\"", closing).await, failed("closed before a complete answer"));
    let leaving = serve(|stream| async move {
        let mut connection = server::handshake(stream).await.unwrap();
        connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
        while connection.accept().await.is_some() {}
    })
    .await;
    let expected = "server ends HTTP/2: detected excessive load generating behavior";
    assert_eq!(check("kind = \"grpc\"", leaving).await, failed(expected));
}

#[tokio::test]
async fn silence_runs_into_the_timeout_and_nothing_remains() {
    let (tell, mut gone) = unbounded_channel();
    let silent = serve(move |stream| {
        let tell = tell.clone();
        async move {
            // It takes the question and never answers; the end of the connection is that of the loop.
            let mut connection = server::handshake(stream).await.unwrap();
            let mut kept = Vec::new();
            while let Some(Ok(request)) = connection.accept().await {
                kept.push(request);
            }
            let _ = tell.send(());
        }
    })
    .await;
    check_in_vain("kind = \"grpc\"", silent).await;
    timeout(LONG, gone.recv()).await.expect("the socket is closed").unwrap();
}
