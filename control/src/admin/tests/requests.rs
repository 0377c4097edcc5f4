//! Requests and their answers.

use super::*;

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
    let server: SocketAddr = "10.0.0.11:8080".parse().unwrap();
    let address = "192.0.2.10".parse().unwrap();
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
            client.withdraw(None).await,
            client.announce(Some(address)).await,
        ],
        [
            Order::Patch { service, server, patch },
            Order::AddServer { service, server: new },
            Order::RemoveServer { service, server },
            Order::AddService(settings),
            Order::RemoveService(service),
            Order::Withdraw(None),
            Order::Announce(Some(address)),
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
async fn whoever_has_it_stop_hears_how_far_it_is() {
    let (router, mut heard) = (router(0).await, Vec::new());
    let each = |leaving: api::Leaving| {
        heard.push((leaving.state, leaving.text));
        Ok(())
    };
    router.client().stop(true, 7, each).await.unwrap();
    assert_eq!(heard, ["draining", "stopping"].map(|state| (state.to_owned(), "Gracefully(7s)".to_owned())));
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
        fragment: None,
        id: None,
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
             /v1/connections, /v1/counters, /v1/snat, /v1/events, /v1/capture, /v1/explain, /metrics, /v1/reload, /v1/diff, /v1/save, \
             /v1/withdraw, /v1/announce, /v1/stop, /v1/sync, /v1/upgrade, /v1/openapi.json",
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
            "DELETE /v1/services/dccp/192.0.2.10:80",
            "",
            "400 Bad Request",
            "\"dccp/192.0.2.10:80\" is no service; expected PROTOCOL/ADDRESS:PORT, e.g. tcp/192.0.2.10:80 or tcp/[2001:db8::10]:80",
        ),
        (
            "DELETE /v1/services/tcp/192.0.2.10:80/servers/x",
            "",
            "400 Bad Request",
            "\"x\" is not an IPv4 address; expected ADDRESS:PORT, e.g. \"192.0.2.10:80\" or \"[2001:db8::10]:80\", with port 0 if it is of all ports",
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
async fn metrics_come_in_the_format_that_is_asked_for() {
    let router = router(1).await;
    for (accept, body) in
        [("", "Text\n"), ("accept: application/openmetrics-text;version=1.0.0\r\n", "OpenMetrics\n")]
    {
        let request = format!("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{accept}\r\n");
        assert_eq!(router.raw(&request).await, ("HTTP/1.1 200 OK".to_owned(), body.to_owned()));
    }
}
