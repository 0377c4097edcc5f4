//! Followers, and routers that break off, stop and come back at the same socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::client::{Client, Place};
use super::events::RUN;
use super::follow::{Until, follow};
use super::tests::Fake;
use super::tests::events::down;
use super::{Backend, bind, serve};
use crate::events::Events;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// A router at this socket, and a way to cut its connections as a crash does.
struct Router {
    server: JoinHandle<()>,
    wires: JoinHandle<()>,
    backend: Fake,
}

/// Clients reach the router over wires that can be cut: `path` is passed on to the router's own socket.
async fn router(path: &Path, backend: Fake) -> Router {
    let own = path.with_extension("own");
    let server = tokio::spawn(serve(bind(&own, None).await.unwrap(), backend.clone(), |connection| {
        drop(tokio::spawn(connection));
    }));
    let listener = UnixListener::bind(path).unwrap();
    let wires = tokio::spawn(async move {
        let mut wires = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let own = own.clone();
            wires.spawn(async move {
                let mut router = UnixStream::connect(own).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut router).await;
            });
        }
    });
    Router { server, wires, backend }
}

impl Router {
    fn publish(&self, n: u8) {
        self.backend.events().publish(down(n));
    }

    /// Connections break off in the middle, and nobody answers any more.
    async fn cut(self, path: &Path) -> Fake {
        self.wires.abort();
        let _ = self.wires.await;
        self.server.abort();
        let _ = self.server.await;
        std::fs::remove_file(path).unwrap();
        self.backend
    }
}

/// What a follower has printed: events by number and kind, notes by their beginnings.
struct Follower {
    lines: mpsc::UnboundedReceiver<String>,
    end: JoinHandle<anyhow::Result<()>>,
}

fn start(path: &Path, place: Place, until: Until) -> Follower {
    let (sender, lines) = mpsc::unbounded_channel();
    let path = path.to_owned();
    let end = tokio::spawn(async move {
        let event = |event: super::api::Event| {
            let server = event.details.get("server").and_then(|server| server.as_str()).unwrap_or_default();
            let line = format!("{} {} {server}", event.sequence, event.event);
            sender.send(line.trim().to_owned()).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
        };
        let note =
            |note: &str| drop(sender.send(format!("note: {}", note.split([':', ';']).next().unwrap())));
        follow(&Client::new(&path), place, until, event, note).await
    });
    Follower { lines, end }
}

impl Follower {
    async fn hears(&mut self, expected: &[&str]) {
        for &expected in expected {
            let line =
                timeout(LONG, self.lines.recv()).await.unwrap_or_else(|_| panic!("{expected}: not heard"));
            assert_eq!(line.as_deref(), Some(expected));
        }
    }

    async fn ends(mut self) -> anyhow::Result<()> {
        let end = timeout(LONG, self.end).await.expect("it ends").unwrap();
        assert_eq!(self.lines.recv().await, None, "and has nothing to say any more");
        end
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rvs.sock");
    (directory, path)
}

#[tokio::test]
async fn a_broken_connection_is_made_again_and_nothing_comes_twice() {
    let (_directory, path) = place();
    let mut running = router(&path, Fake::new(1)).await;
    let mut follower = start(&path, Place::default(), Until::Stopped);
    running.publish(1);
    follower.hears(&["1 server_down 10.0.0.1:80"]).await;
    for round in 0..3 {
        let backend = running.cut(&path).await;
        follower.hears(&["note: rvs broke off its answer"]).await;
        // What happens meanwhile.
        backend.events().publish(down(2));
        running = router(&path, backend).await;
        // While nobody answered it may have said that, too.
        let next = format!("{} server_down 10.0.0.2:80", round + 2);
        loop {
            let line = timeout(LONG, follower.lines.recv()).await.unwrap().unwrap();
            if line.starts_with("note: cannot reach") {
                continue;
            }
            assert_eq!(line, "note: connected again");
            break;
        }
        follower.hears(&[&next]).await;
    }
    running.backend.events().stop("SIGTERM").await;
    follower.hears(&["5 stopping"]).await;
    follower.ends().await.unwrap();
}

#[tokio::test]
async fn what_has_been_overwritten_meanwhile_is_told() {
    let (_directory, path) = place();
    let running = router(&path, Fake::new(1)).await;
    let mut follower = start(&path, Place::default(), Until::Broken);
    running.publish(1);
    follower.hears(&["1 server_down 10.0.0.1:80"]).await;
    let backend = running.cut(&path).await;
    let mut broken = follower;
    let error = timeout(LONG, &mut broken.end).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "rvs broke off its answer");

    // Four are kept.
    (2..=9).for_each(|n| backend.events().publish(down(n)));
    let running = router(&path, backend).await;
    let mut follower = start(&path, Place::after(Some(1)), Until::Stopped);
    follower.hears(&["5 missed", "6 server_down 10.0.0.6:80"]).await;
    drop(follower.lines);
    running.publish(10);
    let error = timeout(LONG, follower.end).await.unwrap().unwrap().unwrap_err();
    assert!(error.is::<std::io::Error>(), "nobody reads any more: {error:#}");
}

/// A new router has the same numbers again, and may have given more of them than the old one.
#[tokio::test]
async fn another_router_is_told_and_read_from_its_beginning() {
    let (_directory, path) = place();
    let running = router(&path, Fake::new(1)).await;
    let mut follower = start(&path, Place::default(), Until::Interrupted);
    running.publish(1);
    running.publish(2);
    follower.hears(&["1 server_down 10.0.0.1:80", "2 server_down 10.0.0.2:80"]).await;
    running.backend.events().stop("SIGTERM").await;
    follower.hears(&["3 stopping", "note: rvs has stopped"]).await;
    running.cut(&path).await;

    let another = Fake::new(1);
    (11..=14).for_each(|n| another.events().publish(down(n)));
    let running = router(&path, another).await;
    loop {
        let line = timeout(LONG, follower.lines.recv()).await.unwrap().unwrap();
        if line == "note: another rvs answers" {
            break;
        }
        assert!(line.starts_with("note: "), "{line}");
    }
    let numbers = (1..=4).map(|n| format!("{n} server_down 10.0.0.{}:80", n + 10)).collect::<Vec<_>>();
    follower.hears(&numbers.iter().map(String::as_str).collect::<Vec<_>>()).await;
    running.publish(15);
    follower.hears(&["5 server_down 10.0.0.15:80"]).await;
    follower.end.abort();
}

/// That the first events of another router are gone is told as well.
#[tokio::test]
async fn a_number_of_another_run_counts_for_nothing() {
    let (_directory, path) = place();
    let backend = Fake::new(1);
    (1..=6).for_each(|n| backend.events().publish(down(n)));
    let _running = router(&path, backend.clone()).await;
    for (run, expected) in [(backend.events().run(), "5,6"), ("another", "2,3,4,5,6")] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let request = format!("GET /v1/events?since=4&run={run} HTTP/1.0\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
        assert!(answer.contains(&format!("{RUN}: {}\r\n", backend.events().run())), "{answer}");
        let events = answer.lines().filter_map(|line| serde_json::from_str::<super::api::Event>(line).ok());
        let numbers: Vec<String> = events.map(|event| event.sequence.to_string()).collect();
        assert_eq!(numbers.join(","), expected);
    }
    assert_ne!(Events::default().run(), Events::default().run());
}

#[tokio::test]
async fn nobody_there_at_the_beginning_is_an_error() {
    let (_directory, path) = place();
    for until in [Until::Broken, Until::Stopped, Until::Interrupted] {
        let error = start(&path, Place::default(), until).ends().await.unwrap_err();
        assert!(error.to_string().starts_with("cannot reach rvs at "), "{error:#}");
    }
}
