//! The prober against a scripted server on a clock of our own, and the whole against real listeners.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{sleep, timeout};

use super::*;
use crate::config::Start;

const DEFAULTS: Check = Check {
    kind: CheckKind::Tcp,
    interval: Duration::from_secs(2),
    timeout: Duration::from_secs(1),
    address: None,
    port: None,
    rise: 2,
    fall: 3,
    jitter: JITTER,
    start: Start::Up,
};
const JITTER: Duration = Duration::from_millis(200);
/// For real sockets.
const FAST: Check = Check { interval: Duration::from_millis(20), ..DEFAULTS };

fn target(address: SocketAddr, check: Check) -> Target {
    Target { address, check }
}

fn server() -> Target {
    target(SocketAddr::from(([10, 0, 0, 11], 80)), DEFAULTS)
}

/// Each target for a server of its own address.
fn watch(health: &mut Health, targets: impl IntoIterator<Item = Target>) {
    health.watch(targets.into_iter().map(|target| {
        let user = (SERVICE, target.address);
        (target, user)
    }));
}

const SERVICE: ServiceKey = ServiceKey {
    address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)), 80),
    protocol: dataplane::service::Protocol::Tcp,
};

// On a clock of our own ---------------------------------------------------------------------------------------------

/// A server that follows a script: how long each check takes it, and what comes of it. When the script ends it
/// never answers again.
struct Script(Mutex<VecDeque<(u64, Outcome)>>);

impl Probe for Script {
    fn probe(&self, _: SocketAddr) -> BoxFuture<'_, Outcome> {
        let next = self.0.lock().unwrap().pop_front();
        async {
            match next {
                Some((millis, outcome)) => {
                    sleep(Duration::from_millis(millis)).await;
                    outcome
                }
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

/// A server that counts how many ask at one time.
struct Counting {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Probe for &'static Counting {
    fn probe(&self, _: SocketAddr) -> BoxFuture<'_, Outcome> {
        async {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(Duration::from_millis(900)).await;
            self.now.fetch_sub(1, Ordering::Relaxed);
            passed()
        }
        .boxed()
    }
}

fn fresh() -> Arc<Mutex<Standing>> {
    Arc::new(Mutex::new(Standing::new(Start::Up)))
}

fn passed() -> Outcome {
    Outcome::passed("connected")
}

fn refused() -> Outcome {
    Outcome::Failed("connection refused".into())
}

/// Plays a script and says which verdicts came, and how long after the first check they did.
async fn play(target: Target, script: Vec<(u64, Outcome)>, verdicts: usize) -> Vec<(u64, bool, String, u32)> {
    let (sender, mut receiver) = unbounded_channel();
    let start = Instant::now() + target.jitter();
    let script = Box::new(Script(Mutex::new(script.into())));
    let prober = run(target, fresh(), sender, Arc::new(Semaphore::new(1)), script);
    let prober = tokio::spawn(prober);
    let mut seen = Vec::new();
    for _ in 0..verdicts {
        let news = timeout(Duration::from_secs(600), receiver.recv()).await.expect("a verdict").unwrap();
        let News::Verdict(verdict) = news else { panic!("{news:?}") };
        let at = (Instant::now() - start).as_millis() as u64;
        seen.push((at, verdict.up, verdict.reason, verdict.checks));
    }
    let more = timeout(Duration::from_millis(1), receiver.recv()).await;
    assert!(more.is_err(), "{more:?}");
    prober.abort();
    seen
}

#[tokio::test(start_paused = true)]
async fn a_check_an_interval_and_a_verdict_at_the_change() {
    let script =
        [passed(), refused(), refused(), refused(), refused(), passed(), refused(), passed(), passed()];
    let verdicts = play(server(), script.map(|outcome| (0, outcome)).to_vec(), 2).await;
    let expected =
        [(6000, false, "connection refused".to_owned(), 3), (16_000, true, "connected".to_owned(), 2)];
    assert_eq!(verdicts, expected);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_down_when_the_last_timeout_is_over() {
    let verdicts = play(server(), vec![], 1).await;
    assert_eq!(verdicts, [(5000, false, "timed out after 1s".to_owned(), 3)]);
}

#[tokio::test(start_paused = true)]
async fn a_check_longer_than_the_interval_is_not_overtaken() {
    let slow = Check { timeout: Duration::from_secs(10), ..DEFAULTS };
    let script = vec![(3000, refused()), (5000, refused()), (100, refused()), (0, passed()), (0, passed())];
    let verdicts = play(target(server().address, slow), script, 2).await;
    // 0..3, 3..8, 8..8.1, then one each interval after the start of that: 10, 12.
    let times: Vec<u64> = verdicts.iter().map(|verdict| verdict.0).collect();
    assert_eq!(times, [8100, 12_000]);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_could_not_be_made_counts_neither_way() {
    let unknown = || Outcome::Unknown("Too many open files".into());
    let script = [refused(), unknown(), refused(), unknown(), unknown(), refused()];
    let verdicts = play(server(), script.map(|outcome| (0, outcome)).to_vec(), 1).await;
    assert_eq!(verdicts, [(10_000, false, "connection refused".to_owned(), 3)]);
}

#[tokio::test(start_paused = true)]
async fn no_more_sockets_at_one_time_than_allowed_and_waiting_is_no_failure() {
    static SERVER: Counting = Counting { now: AtomicUsize::new(0), most: AtomicUsize::new(0) };
    let (sender, mut receiver) = unbounded_channel();
    let sockets = Arc::new(Semaphore::new(512));
    let mut probers = JoinSet::new();
    for host in 0..1000u32 {
        let target = target(SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + host), 80)), DEFAULTS);
        probers.spawn(run(target, fresh(), sender.clone(), Arc::clone(&sockets), Box::new(&SERVER)));
    }
    assert!(timeout(Duration::from_secs(60), receiver.recv()).await.is_err());
    assert_eq!(SERVER.most.load(Ordering::Relaxed), 512);
}

#[test]
fn first_checks_are_spread_over_the_jitter_and_no_longer_than_the_interval() {
    let jitters: HashSet<Duration> = (0..1000)
        .map(|port| target(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), DEFAULTS).jitter())
        .collect();
    assert!(jitters.len() > 900 && jitters.iter().all(|jitter| *jitter < JITTER));
    let often = Check { interval: Duration::from_millis(10), ..DEFAULTS };
    for port in 0..1000 {
        assert!(
            target(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), often.clone()).jitter() < often.interval
        );
    }
    assert_eq!(server().jitter(), server().jitter());
}

// Against real listeners --------------------------------------------------------------------------------------------

/// An address in 127.0.0.0/8 of this test's own, so that no other test takes its port while it is down.
async fn listen(host: Ipv4Addr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, SocketAddr::from((host, port)))
}

async fn verdict(receiver: &mut UnboundedReceiver<News>) -> Verdict {
    match timeout(Duration::from_secs(20), receiver.recv()).await.expect("a verdict").unwrap() {
        News::Verdict(verdict) => verdict,
        other => panic!("{other:?}"),
    }
}

async fn assert_silent(receiver: &mut UnboundedReceiver<News>) {
    let verdict = timeout(Duration::from_millis(200), receiver.recv()).await;
    assert!(verdict.is_err(), "{verdict:?}");
}

#[tokio::test]
async fn a_server_dies_and_comes_back() {
    let (listener, address) = listen(Ipv4Addr::new(127, 82, 0, 1)).await;
    let (sender, mut receiver) = unbounded_channel();
    let mut health = Health::new(sender, 512);
    let server = target(address, FAST);
    watch(&mut health, [server.clone()]);
    assert!(health.is_up(&server));
    assert_silent(&mut receiver).await;

    drop(listener);
    let down = Verdict { target: server.clone(), up: false, reason: "connection refused".into(), checks: 3 };
    assert_eq!(verdict(&mut receiver).await, down);
    assert!(!health.is_up(&server));
    assert_eq!(health.reason(&server).as_deref(), Some("connection refused"));
    assert_silent(&mut receiver).await;

    let _listener = TcpListener::bind(address).await.unwrap();
    let up = Verdict { target: server.clone(), up: true, reason: "connected".into(), checks: 2 };
    assert_eq!(verdict(&mut receiver).await, up);
    assert!(health.is_up(&server));
    assert_eq!(health.reason(&server), None);
    assert_silent(&mut receiver).await;
}

#[tokio::test]
async fn equal_targets_are_checked_once_and_a_gone_one_no_more() {
    let (listener, address) = listen(Ipv4Addr::new(127, 82, 0, 2)).await;
    let (sender, _receiver) = unbounded_channel();
    let mut health = Health::new(sender, 512);
    let slow = Check { interval: Duration::from_secs(3600), ..FAST };
    watch(&mut health, [target(address, slow.clone()), target(address, slow.clone())]);
    listener.accept().await.unwrap();
    assert!(timeout(Duration::from_millis(400), listener.accept()).await.is_err(), "checked twice");
    // What stays is not checked anew either.
    watch(&mut health, [target(address, slow.clone())]);
    assert!(timeout(Duration::from_millis(400), listener.accept()).await.is_err(), "checked anew");

    watch(&mut health, [target(address, FAST)]);
    for _ in 0..3 {
        listener.accept().await.unwrap();
    }
    watch(&mut health, []);
    while timeout(Duration::from_millis(100), listener.accept()).await.is_ok() {}
    assert!(timeout(Duration::from_millis(100), listener.accept()).await.is_err());
    assert!(health.is_up(&target(address, FAST)));
    watch(&mut health, []);
    assert_eq!(health.tasks.len(), 0, "ended tasks are reaped");
}

#[tokio::test]
async fn a_successor_begins_with_what_has_been_found_out() {
    let slow = |start| Check {
        interval: Duration::from_secs(3600),
        jitter: Duration::from_secs(3600),
        start,
        ..FAST
    };
    let (up, down) = (target(nobody(3), slow(Start::Up)), target(nobody(4), slow(Start::Down)));
    let health = || Health::new(unbounded_channel().0, 512);
    let mut before = health();
    watch(&mut before, [up.clone(), down.clone()]);
    assert!(before.is_up(&up) && !before.is_up(&down));
    let known = before.known();

    // Even if it would begin otherwise; what its predecessor did not know begins as ever.
    let mut after = health();
    after.inherit(known);
    let (was_up, was_down) = (target(nobody(3), slow(Start::Down)), target(nobody(4), slow(Start::Up)));
    let new = target(nobody(5), slow(Start::Down));
    watch(&mut after, [was_up.clone(), was_down.clone(), new.clone()]);
    assert!(after.is_up(&was_up) && !after.is_up(&was_down) && !after.is_up(&new));
    assert_eq!(after.reason(&was_down).as_deref(), Some("not checked yet"));
    // It is not told again of what comes later.
    watch(&mut after, []);
    watch(&mut after, [was_up.clone()]);
    assert!(!after.is_up(&was_up));
}

/// Somewhere that nobody is checked in this test.
fn nobody(host: u8) -> SocketAddr {
    SocketAddr::from(([127, 82, 0, host], 9))
}

#[tokio::test]
async fn a_target_knows_whom_it_concerns() {
    let address = |last| SocketAddr::from(([127, 82, 0, last], 9));
    let (sender, _receiver) = unbounded_channel();
    let mut health = Health::new(sender, 512);
    let shared = target(address(6), DEFAULTS);
    let other = target(address(7), DEFAULTS);
    // Two services share a server; the first has it checked twice in the same way.
    let second = ServiceKey { protocol: dataplane::service::Protocol::Udp, ..SERVICE };
    let users = [(SERVICE, address(6)), (SERVICE, address(6)), (second, address(6))];
    health.watch(users.map(|user| (shared.clone(), user)));
    assert_eq!(health.users(&shared), [users[0], users[2]]);
    assert_eq!(health.users(&other), []);
    health.watch([(shared.clone(), users[2])]);
    assert_eq!(health.users(&shared), [users[2]], "what stays has the users of the last time");
    health.watch([]);
    assert_eq!(health.users(&shared), []);
}

/// The check closes as a client does: the server reads an end, not a reset.
#[tokio::test]
async fn the_connection_ends_with_a_fin() {
    let (listener, address) = listen(Ipv4Addr::new(127, 82, 0, 3)).await;
    let (sender, _receiver) = unbounded_channel();
    let mut health = Health::new(sender, 512);
    watch(&mut health, [target(address, FAST)]);
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_reload_keeps_what_stays_and_a_dead_server_dead() {
    let (listener, alive) = listen(Ipv4Addr::new(127, 82, 0, 4)).await;
    let (closed, dead) = listen(Ipv4Addr::new(127, 82, 0, 5)).await;
    drop(closed);
    let (sender, mut receiver) = unbounded_channel();
    let mut health = Health::new(sender, 512);
    watch(&mut health, [target(alive, FAST), target(dead, FAST)]);
    assert!(!verdict(&mut receiver).await.up);

    watch(&mut health, [target(dead, FAST)]);
    assert!(!health.is_up(&target(dead, FAST)), "what stays keeps its state");
    let longer = Check { interval: Duration::from_millis(40), ..FAST };
    watch(&mut health, [target(alive, longer.clone()), target(dead, longer.clone())]);
    assert!(!health.is_up(&target(dead, longer.clone())), "other figures, same server");
    assert!(health.is_up(&target(alive, longer.clone())));
    assert_silent(&mut receiver).await;
    drop(listener);

    let _listener = TcpListener::bind(dead).await.unwrap();
    let (mut down, mut up) = (0, 0);
    for _ in 0..2 {
        match verdict(&mut receiver).await {
            Verdict { up: true, target, .. } if target.address == dead => up += 1,
            Verdict { up: false, target, .. } if target.address == alive => down += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((down, up), (1, 1));
}

/// On all addresses of the loopback interface at once: a thousand servers in 127.83.0.0/16.
fn listen_on_all(port: u16) -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind_device(Some(b"lo")).unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind((Ipv4Addr::UNSPECIFIED, port).into()).unwrap();
    socket.listen(1024).unwrap()
}

#[tokio::test]
async fn a_thousand_servers() {
    let listener = listen_on_all(0);
    let port = listener.local_addr().unwrap().port();
    let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let (sender, mut receiver) = unbounded_channel();
    let mut health = Health::new(sender, 512);
    let check = Check { interval: Duration::from_millis(500), timeout: Duration::from_secs(5), ..DEFAULTS };
    let targets: Vec<Target> = (1..=1000u32)
        .map(|host| target(SocketAddr::from((Ipv4Addr::from(0x7f53_0000 + host), port)), check.clone()))
        .collect();
    watch(&mut health, targets.clone());
    let silent = timeout(Duration::from_millis(1200), receiver.recv()).await;
    assert!(silent.is_err(), "{silent:?}");

    accepting.abort();
    for _ in 0..targets.len() {
        let verdict = verdict(&mut receiver).await;
        assert!(!verdict.up && verdict.reason == "connection refused", "{verdict:?}");
    }
    assert!(targets.iter().all(|target| !health.is_up(target)));
    let listener = listen_on_all(port);
    let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    for _ in 0..targets.len() {
        assert!(verdict(&mut receiver).await.up);
    }
    assert!(targets.iter().all(|target| health.is_up(target)));
    accepting.abort();
}
