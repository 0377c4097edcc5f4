//! HTTP as servers speak it, and as they should not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Duration, sleep, timeout};

use super::Outcome;
use super::fixture::{LONG, check, check_in_vain, head, loopbacks, serve, serve_at};

fn passed(what: &str) -> Outcome {
    Outcome::passed(what.to_owned())
}

fn failed(why: &str) -> Outcome {
    Outcome::failed(why.to_owned())
}

/// A server that gives this answer to whatever it is asked, and closes.
async fn answering(answer: impl Into<Vec<u8>>) -> SocketAddr {
    recording(answer).await.0
}

/// ... and tells what it was asked.
async fn recording(answer: impl Into<Vec<u8>>) -> (SocketAddr, UnboundedReceiver<String>) {
    recording_at(Ipv4Addr::LOCALHOST.into(), answer).await
}

async fn recording_at(host: IpAddr, answer: impl Into<Vec<u8>>) -> (SocketAddr, UnboundedReceiver<String>) {
    let answer: Arc<[u8]> = answer.into().into();
    let (tell, heads) = unbounded_channel();
    let server = serve_at(host, move |mut stream| {
        let (answer, tell) = (Arc::clone(&answer), tell.clone());
        async move {
            let _ = tell.send(head(&mut stream).await);
            // Whoever has heard enough may close before the end.
            let _ = stream.write_all(&answer).await;
        }
    })
    .await;
    (server, heads)
}

/// The keys of a check besides its kind, the answer, and what comes of it.
type Case = (&'static str, &'static [u8], Outcome);

async fn assert_outcomes(cases: Vec<Case>) {
    for (keys, answer, expected) in cases {
        let outcome = check(&format!("kind = \"http\"\n{keys}"), answering(answer).await).await;
        assert_eq!(outcome, expected, "{keys}: {}", answer.escape_ascii());
    }
}

#[tokio::test]
async fn statuses() {
    assert_outcomes(vec![
        ("", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", passed("status 200")),
        ("", b"HTTP/1.0 200 OK\r\n\r\nok", passed("status 200")),
        ("", b"HTTP/1.1 204 No Content\r\n\r\n", passed("status 204")),
        ("", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\n\r\n", passed("status 201")),
        ("", b"HTTP/1.1 503 Busy\r\n\r\n", failed("status 503; expected 200-299")),
        ("status = [503]", b"HTTP/1.1 503 Busy\r\n\r\n", passed("status 503")),
        (
            "status = [204, \"400-499\", \"301\"]",
            b"HTTP/1.1 200 OK\r\n\r\n",
            failed("status 200; expected 204, 400-499, 301"),
        ),
        ("method = \"HEAD\"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", passed("status 200")),
    ])
    .await;
}

#[tokio::test]
async fn redirects_are_not_followed() {
    const MOVED: &[u8] = b"HTTP/1.1 301 Moved\r\nLocation: https://www.example.com/\r\n\r\n";
    assert_outcomes(vec![
        ("", MOVED, failed("status 301 to \"https://www.example.com/\"; expected 200-299")),
        ("status = [\"200-399\"]", MOVED, passed("status 301")),
        ("", b"HTTP/1.1 302 Found\r\n\r\n", failed("status 302; expected 200-299")),
        // What a server writes goes into logs and onto terminals.
        (
            "",
            b"HTTP/1.1 302 Found\r\nLocation: \x9b1m\r\n\r\n",
            failed("status 302 to \"\u{fffd}1m\"; expected 200-299"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn bodies() {
    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
        3\r\nall\r\n8;x=y\r\n is well\r\n0\r\nTrailer: t\r\n\r\n";
    const BINARY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\xfe\x00a";
    assert_outcomes(vec![
        ("body = \"^all is well$\"", CHUNKED, passed("status 200")),
        ("body = \"well|fine\"\nbody_not = \"error\"", CHUNKED, passed("status 200")),
        ("body = \"ill\"", CHUNKED, failed("body does not match; expected \"ill\"")),
        ("body_not = \"w[a-e]ll\"", CHUNKED, failed("body matches \"w[a-e]ll\"; expected not to")),
        (r"body = '(?-u)\xff\xfe\x00a'", BINARY, passed("status 200")),
        ("body = \"x\"", b"HTTP/1.1 204 No Content\r\n\r\n", failed("body does not match; expected \"x\"")),
        // The status is judged before the body.
        ("body = \"x\"", b"HTTP/1.1 500 Oh\r\n\r\nx", failed("status 500; expected 200-299")),
    ])
    .await;
}

#[tokio::test]
async fn what_is_no_answer() {
    let cut = || failed("closed before a complete answer");
    assert_outcomes(vec![
        ("", b"", cut()),
        ("", b"HTTP/1.1 200", cut()),
        ("", b"HTTP/1.1 200 OK\r\nContent-Le", cut()),
        ("", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", cut()),
        ("", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", cut()),
        ("", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", cut()),
        ("", b"SSH-2.0-OpenSSH_9.6\r\n", failed("not an answer by HTTP/1")),
        ("", b"HTTP/1.1 2x0 OK\r\n\r\n", failed("not an answer by HTTP/1")),
    ])
    .await;
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    assert_eq!(
        check("kind = \"http\"", answering(long).await).await,
        failed("head of more than 64 KiB or a hundred headers")
    );
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(101));
    assert_eq!(
        check("kind = \"http\"", answering(many).await).await,
        failed("head of more than 64 KiB or a hundred headers")
    );
}

#[tokio::test]
async fn no_server() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(check("kind = \"http\"", nobody).await, failed("connection refused"));
    // With something unread, Linux closes by a reset.
    let resetting = serve(|mut stream| async move {
        stream.read_u8().await.unwrap();
    })
    .await;
    assert_eq!(check("kind = \"http\"", resetting).await, failed("connection reset"));
}

#[tokio::test]
async fn what_is_asked() {
    for host in loopbacks() {
        let (server, mut heads) = recording_at(host, "HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(check("kind = \"http\"", server).await, passed("status 200"));
        let plain =
            format!("GET / HTTP/1.1\r\nhost: {server}\r\nconnection: close\r\nuser-agent: rvs\r\n\r\n");
        assert_eq!(heads.recv().await.unwrap(), plain);
    }
    let (server, mut heads) = recording("HTTP/1.1 200 OK\r\n\r\n").await;
    let keys = r#"
        kind = "http"
        method = "POST"
        path = "/health?full=1&x=%20"
        host = "www.example.com:8080"
        headers = { X-Checked-By = "rvs at home", user-agent = "curl/8" }
    "#;
    check(keys, server).await;
    let mut lines: Vec<String> = heads.recv().await.unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.remove(0), "POST /health?full=1&x=%20 HTTP/1.1");
    lines.sort();
    let expected = [
        "",
        "connection: close",
        "content-length: 0",
        "host: www.example.com:8080",
        "user-agent: curl/8",
        "x-checked-by: rvs at home",
    ];
    assert_eq!(lines, expected);
}

/// Gives the head of an answer of a gigabyte, then its body for as long as anybody listens; counts what it could send.
async fn flood(mut stream: TcpStream, sent: Arc<AtomicUsize>) {
    head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\nbegin").await.unwrap();
    let block = vec![b'x'; 64 << 10];
    for _ in 0..(1 << 30) / block.len() {
        if stream.write_all(&block).await.is_err() {
            return;
        }
        sent.fetch_add(block.len(), Ordering::Relaxed);
    }
}

#[tokio::test]
async fn of_a_gigabyte_the_first_part_counts() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let server = serve(move |stream| flood(stream, Arc::clone(&counter))).await;
    for (keys, expected) in [
        ("", passed("status 200")),
        ("body = \"^begin\"", passed("status 200")),
        ("body_not = \"end\"", passed("status 200")),
        ("body_not = \"beg\"", failed("body matches \"beg\"; expected not to")),
        ("body = \"end\"", failed("body does not match in its first 256 KiB; expected \"end\"")),
    ] {
        assert_eq!(check(&format!("kind = \"http\"\n{keys}"), server).await, expected, "{keys}");
    }
    // Both sockets of each check may hold some megabytes.
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 5 * (16 << 20), "{sent} bytes");
}

#[tokio::test]
async fn a_body_of_just_what_is_read_is_whole() {
    let body = |size: usize| {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + size - 3, b'x');
        answer.extend_from_slice(b"end");
        answer
    };
    for (size, expected) in [
        (100 << 10, passed("status 200")),
        (256 << 10, passed("status 200")),
        ((256 << 10) + 1, failed("body does not match in its first 256 KiB; expected \"end$\"")),
    ] {
        let server = answering(body(size)).await;
        assert_eq!(check("kind = \"http\"\nbody = \"end$\"", server).await, expected, "{size}");
    }
    let server = answering(body(256 << 10)).await;
    assert_eq!(
        check("kind = \"http\"\nbody = \"begin\"", server).await,
        failed("body does not match; expected \"begin\"")
    );
}

#[tokio::test]
async fn a_slow_answer_runs_into_the_timeout_and_nothing_remains() {
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"] {
        let (tell, mut gone) = unbounded_channel();
        let server = serve(move |mut stream| {
            let tell = tell.clone();
            async move {
                head(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
                let slowly = "HTTP/1.1 200 OK\r\nX: ".bytes().chain(std::iter::repeat(b'x'));
                for byte in slowly {
                    if stream.write_u8(byte).await.is_err() {
                        break;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
                let _ = tell.send(());
            }
        })
        .await;
        check_in_vain("kind = \"http\"", server).await;
        // The server's writing fails only once the check's socket is closed.
        timeout(LONG, gone.recv()).await.expect("the socket is closed").unwrap();
    }
}
