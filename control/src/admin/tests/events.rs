//! The stream of events.

use super::*;
use crate::events::Kind;

pub(in crate::admin) fn down(n: u8) -> Kind {
    Kind::ServerDown {
        service: "tcp/192.0.2.10:80".to_owned(),
        server: std::net::SocketAddr::new([10, 0, 0, n].into(), 80),
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
        let each = |heard| {
            if let Heard::Event(event) = heard {
                seen.push(event);
            }
            Ok(())
        };
        router.client().events(&mut Place::after(since), false, each).await.unwrap();
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
        let each = |heard| match heard {
            Heard::Begin { .. } => Ok(()),
            Heard::Event(event) => {
                sender.send(event.event).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
            }
        };
        client.events(&mut Place::default(), true, each).await
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
        assert!(error.ends_with("; expected since=N, a number, run=R, and follow=true or false"), "{error}");
    }
}
