//! Very many connections of one client at a time: most ask for something short again and again, some are long downloads.
//!
//! Ten thousand connections are tasks of one thread at either end, not ten thousand threads.

use std::{
    future::pending,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    time::{MissedTickBehavior, interval, interval_at},
};

use crate::{
    background::Background,
    cluster::Cluster,
    netns::Namespace,
    wait::{self, PATIENCE},
};

/// Each connection asks once in this time.
const PERIOD: Duration = Duration::from_secs(4);
/// Bytes of a request and of its answer, which is the same.
const REQUEST: usize = 16;
/// One connection in so many is a download.
const DOWNLOADS: usize = 100;
/// Asks for one.
const DOWNLOAD: u8 = 0xd0;
/// What a download brings at once, and how often.
const CHUNK: usize = 1024;
const CHUNK_EVERY: Duration = Duration::from_millis(50);
/// A download has gone on when so many have come: more than could have waited in the client's socket.
const ENOUGH: usize = 20;
/// Connections that are opened at a time: fewer than a device's queue has room for.
const OPENING: usize = 100;

/// Has every real server answer any number of connections at this port: with what comes, or with downloads.
pub fn serve(cluster: &Cluster, port: u16) -> Result<Vec<Background>> {
    let servers = cluster.real_servers.iter().enumerate();
    servers.map(|(index, server)| serve_at(server, cluster.endpoint(index, port))).collect()
}

fn serve_at(namespace: &Namespace, address: SocketAddrV4) -> Result<Background> {
    let listen = move || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        Ok(std::net::TcpListener::from(socket))
    };
    Background::start(namespace, listen, |listener| async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            // How it ends is the client's business.
            tokio::spawn(answer(stream));
        }
    })
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; REQUEST];
    loop {
        let length = stream.read(&mut buffer).await?;
        match buffer[..length].first() {
            None => return Ok(()),
            Some(&DOWNLOAD) => return send(stream).await,
            Some(_) => stream.write_all(&buffer[..length]).await?,
        }
    }
}

async fn send(mut stream: TcpStream) -> io::Result<()> {
    let mut turns = interval(CHUNK_EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    loop {
        turns.tick().await;
        stream.write_all(&chunk(number)).await?;
        number += 1;
    }
}

/// The number, over and over.
fn chunk(number: u64) -> [u8; CHUNK] {
    std::array::from_fn(|at| number.to_be_bytes()[at % 8])
}

/// The client's connections, until it is dropped.
#[derive(Debug)]
pub struct Crowd {
    count: usize,
    tally: Arc<Tally>,
    _users: Background,
}

/// What became of a crowd since it was last marked.
#[derive(Clone, Debug, Default)]
pub struct Toll {
    /// Connections that went on.
    pub went_on: usize,
    /// Connections that broke, since the start, and what the first of them said.
    pub broken: usize,
    /// See `broken`.
    pub reason: Option<String>,
    /// The longest time in which nobody heard anything.
    pub silence: Duration,
}

impl Crowd {
    /// Opens a connection from each of these ports of the client, and waits until all have been answered.
    pub fn connect(
        namespace: &Namespace,
        client: Ipv4Addr,
        ports: Range<u16>,
        to: SocketAddrV4,
    ) -> Result<Crowd> {
        let (count, tally) = (ports.len(), Arc::new(Tally::new()));
        let users = {
            let tally = tally.clone();
            move |()| async move {
                let opening = Arc::new(Semaphore::new(OPENING));
                for (index, port) in ports.enumerate() {
                    let (tally, opening) = (tally.clone(), opening.clone());
                    let from = SocketAddrV4::new(client, port);
                    tokio::spawn(async move {
                        let result =
                            User { index, count, tally: &tally, counted: 0 }.live(from, to, &opening).await;
                        if let Err(error) = result {
                            tally.broke(&error.context(format!("connection from {from}")));
                        }
                    });
                }
                pending().await
            }
        };
        let crowd = Crowd { count, tally, _users: Background::start(namespace, || Ok(()), users)? };
        wait::until("all are connected", 3 * PATIENCE, || crowd.toll_of_all().map(drop))?;
        Ok(crowd)
    }

    /// From now on it counts who goes on, and how long nobody hears anything.
    pub fn mark(&self) {
        let mut state = self.tally.lock();
        state.round += 1;
        state.heard = Instant::now();
        state.toll = Toll { broken: state.toll.broken, reason: state.toll.reason.take(), ..Toll::default() };
    }

    /// Waits until all have gone on since [`Crowd::mark`], or all but one in ten thousand.
    pub fn go_on(&self) -> Result<Toll> {
        let all = wait::until("all connections go on", 2 * PATIENCE, || self.toll_of_all());
        all.or_else(|error| {
            let toll = self.tally.lock().toll.clone();
            if toll.went_on + self.count / 10_000 >= self.count { Ok(toll) } else { Err(error) }
        })
    }

    fn toll_of_all(&self) -> Result<Toll> {
        let toll = self.tally.lock().toll.clone();
        ensure!(toll.went_on == self.count, "of {}: {toll:?}", self.count);
        Ok(toll)
    }
}

/// What all users write down, and the test reads.
#[derive(Debug)]
struct Tally(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Counts the marks. The first round is to be connected.
    round: u64,
    /// When somebody heard something.
    heard: Instant,
    toll: Toll,
}

impl Tally {
    fn new() -> Tally {
        Tally(Mutex::new(State { round: 1, heard: Instant::now(), toll: Toll::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn round(&self) -> u64 {
        self.lock().round
    }

    fn broke(&self, error: &anyhow::Error) {
        let toll = &mut self.lock().toll;
        toll.broken += 1;
        toll.reason.get_or_insert_with(|| format!("{error:#}"));
    }
}

/// A user at a connection.
struct User<'a> {
    index: usize,
    count: usize,
    tally: &'a Tally,
    /// The last round in which it has been counted.
    counted: u64,
}

impl User<'_> {
    async fn live(mut self, from: SocketAddrV4, to: SocketAddrV4, opening: &Semaphore) -> Result<()> {
        let stream = {
            let _place = opening.acquire().await?;
            let mut stream = connect(from, to).await?;
            self.ask(&mut stream, 0).await?;
            stream
        };
        if self.index.is_multiple_of(DOWNLOADS) {
            self.download(stream).await
        } else {
            self.keep_asking(stream).await
        }
    }

    async fn keep_asking(&mut self, mut stream: TcpStream) -> Result<()> {
        // Each at a moment of its own, so that somebody always asks.
        let share = PERIOD * self.index as u32 / self.count as u32;
        let mut turns = interval_at(tokio::time::Instant::now() + share, PERIOD);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 1.. {
            turns.tick().await;
            self.ask(&mut stream, number).await?;
        }
        Ok(())
    }

    async fn ask(&mut self, stream: &mut TcpStream, number: u64) -> Result<()> {
        let round = self.tally.round();
        let mut request = [b'?'; REQUEST];
        request[8..].copy_from_slice(&number.to_be_bytes());
        stream.write_all(&request).await.context("asking")?;
        let mut answer = [0; REQUEST];
        stream.read_exact(&mut answer).await.context("waiting for an answer")?;
        ensure!(answer == request, "another answer: {answer:?}");
        self.hear(round, true);
        Ok(())
    }

    async fn download(&mut self, mut stream: TcpStream) -> Result<()> {
        stream.write_all(&[DOWNLOAD; REQUEST]).await.context("asking for a download")?;
        let (mut round, mut chunks) = (0, 0);
        for number in 0.. {
            let mut bytes = [0; CHUNK];
            stream.read_exact(&mut bytes).await.context("downloading")?;
            ensure!(bytes == chunk(number), "chunk {number} is another: {:?}...", &bytes[..8]);
            let current = self.tally.round();
            chunks = if current == round { chunks + 1 } else { 1 };
            round = current;
            self.hear(round, chunks >= ENOUGH);
        }
        Ok(())
    }

    /// Something has come that was asked for in this round; whether it shows that the connection goes on.
    fn hear(&mut self, round: u64, goes_on: bool) {
        let mut state = self.tally.lock();
        let now = Instant::now();
        state.toll.silence = state.toll.silence.max(now - state.heard);
        state.heard = now;
        if goes_on && round == state.round && self.counted < round {
            self.counted = round;
            state.toll.went_on += 1;
        }
    }
}

async fn connect(from: SocketAddrV4, to: SocketAddrV4) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(from.into())?;
    let stream = socket.connect(to.into()).await.context("connecting")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
