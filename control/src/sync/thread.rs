//! The thread that speaks to the peers: a socket, the workers' notes, a clock.
//!
//! A thread of its own, so that a reload of ten thousand services does not keep a peer waiting until it believes that
//! this router is away, and a bulk of millions of connections does not keep an operator waiting. It lives on the cores
//! of control. What it tells others of itself stands in [`Shared`].

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dataplane::changes::Changes;
use dataplane::service::State;
use dataplane::snapshot::Subscriber;
use dataplane::table::Table;
use dataplane::worker;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use nix::time::{ClockId, clock_gettime};
use socket2::{Domain, Socket, Type};

use super::flushes::Flushes;
use super::ipvs::{self, Ipvs};
use super::peer::{Peer, Standing};
use super::status::{Flush, PeerStatus, Rates, Shared, Status};
use super::store::{Adoptions, Numbers, View};
use crate::config::{Config, ConfigErrors, Sync};

/// The thread looks at the notes this often, if nothing comes in before.
const PERIOD: Duration = Duration::from_millis(3);
/// Datagrams sent to a peer in one go, and read in one: an acknowledgement follows, which knows of 128.
const AT_ONCE: usize = 256;
const READ_AT_ONCE: usize = 64;
/// Notes taken from a worker in one go.
const NOTES_AT_ONCE: usize = 1 << 14;
/// Bytes that wait in the socket: a window of the peer's datagrams with all that the kernel adds to each.
const SOCKET_BYTES: usize = 4 << 20;
/// How long a router that starts waits for peers to answer before it believes that it is alone: several calls.
const ALONE_AFTER: Duration = Duration::from_secs(3);
/// How long it waits for a peer that answers and does not come to an end: a bulk of all connections takes seconds. A router
/// that serves with what it knows is better than one that waits for ever.
const READY_AFTER: Duration = Duration::from_secs(60);
/// How often a status is shown, and a complaint repeated.
const SHOW_EVERY: Duration = Duration::from_millis(20);
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// The thread; it ends when this is dropped.
pub struct Synchroniser {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Synchroniser {
    /// Begins to speak to the peers at `socket`, and to directors of Linux over `link`.
    pub fn start(
        config: &Config,
        socket: Option<UdpSocket>,
        link: Option<ipvs::Link>,
        shared: Arc<Shared>,
        table: Arc<Table>,
        snapshots: Subscriber,
        changes: Vec<Arc<Changes>>,
    ) -> Result<Synchroniser> {
        let stop = Arc::<AtomicBool>::default();
        let peers = |sync: &Sync| -> Vec<Link> {
            let peer = |&address| {
                // Of two, the one with the lower address calls.
                let peer = Peer::new(sync.key.clone(), sync.listen < address, random());
                Link { address, peer, rates: Rates::default() }
            };
            sync.peers.iter().map(peer).collect()
        };
        let peers = config.sync.as_ref().map(peers).unwrap_or_default();
        let ipvs = config.ipvs_sync.as_ref().zip(link).map(|(ipvs, link)| Ipvs::new(ipvs, link));
        let thread = Thread {
            socket,
            states: config.sync.as_ref().map(|sync| sync.states.clone()).unwrap_or_default(),
            // Linux has no way to ask for all connections, so there is nothing to wait for.
            is_ready: peers.is_empty() || shared.is_ready(),
            peers,
            ipvs,
            table,
            snapshots,
            changes,
            numbers: Numbers::default(),
            adoptions: Adoptions::default(),
            flushes: Flushes::default(),
            flushed: 0,
            overflows: 0,
            strangers: 0,
            began: Instant::now(),
            shown: None,
            standings: Vec::new(),
            complained: None,
            shared,
        };
        let stopped = stop.clone();
        let run = move || thread.run(&stopped);
        let thread = std::thread::Builder::new().name("rvs-sync".into()).spawn(run);
        let thread = thread.context("cannot start the thread that speaks to peers")?;
        Ok(Synchroniser { stop, thread: Some(thread) })
    }
}

impl Drop for Synchroniser {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it has panicked, that has been said on stderr.
            let _ = thread.join();
        }
    }
}

/// Opens the socket at `sync.listen`, if there is one. What is in the way is an error of that key.
pub fn bind(config: &Config) -> Result<Option<UdpSocket>, ConfigErrors> {
    let Some(Sync { listen, .. }) = config.sync else { return Ok(None) };
    open(listen).map(Some).map_err(|error| {
        let message = format_args!(
            "cannot listen at {listen}: {error}; expected an address that no other program listens at"
        );
        config.error("sync.listen", message)
    })
}

fn open(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, None)?;
    // Who may administer the network gets more than net.core.rmem_max; with less a bulk is slower.
    if setsockopt(&socket, RcvBufForce, &SOCKET_BYTES).is_err() {
        socket.set_recv_buffer_size(SOCKET_BYTES)?;
    }
    socket.set_nonblocking(true)?;
    // The address of a twin is not there yet.
    match listen {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// A number that nobody can foretell.
fn random() -> u16 {
    RandomState::new().build_hasher().finish() as u16
}

/// A peer, and where it is.
struct Link {
    address: SocketAddr,
    peer: Peer,
    rates: Rates,
}

struct Thread {
    socket: Option<UdpSocket>,
    states: Vec<State>,
    peers: Vec<Link>,
    ipvs: Option<Ipvs>,
    table: Arc<Table>,
    snapshots: Subscriber,
    changes: Vec<Arc<Changes>>,
    numbers: Numbers,
    adoptions: Adoptions,
    flushes: Flushes,
    /// Connections that were removed because a peer has flushed them.
    flushed: u64,
    overflows: u64,
    /// Datagrams of nobody who is a peer.
    strangers: u64,
    began: Instant,
    is_ready: bool,
    shown: Option<Instant>,
    /// What was shown of the peers.
    standings: Vec<Standing>,
    complained: Option<Instant>,
    shared: Arc<Shared>,
}

impl Thread {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.wait();
            if let Err(error) = self.turn() {
                self.complain(&error);
            }
            self.show();
        }
        // What waits for others to go with must not be lost.
        self.peers.iter_mut().for_each(|link| link.peer.hurry());
        if let Err(error) = self.turn() {
            self.complain(&error);
        }
    }

    /// Until something comes in, but not for long.
    fn wait(&self) {
        let timeout = PollTimeout::try_from(PERIOD).unwrap_or(PollTimeout::ZERO);
        let of_peers = self.socket.iter().map(|socket| socket.as_fd());
        let sockets = of_peers.chain(self.ipvs.iter().filter_map(Ipvs::socket));
        let mut waiting: Vec<PollFd> = sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)).collect();
        match poll(&mut waiting, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            // It would fail again at once.
            Err(_) => std::thread::sleep(PERIOD),
        }
    }

    fn turn(&mut self) -> Result<()> {
        let snapshot = self.snapshots.latest();
        self.numbers.follow(snapshot);
        let (now, tick) = (self.began.elapsed(), worker::now());
        for Flush { filter, under_way, known } in self.shared.flushes() {
            self.flushes.remember(filter, tick, under_way);
            self.peers.iter_mut().for_each(|link| link.peer.forget(now, filter));
            // Who waits may have lost patience.
            let _ = known.send(());
        }
        self.flushed += self.flushes.go_on(&self.table, snapshot, tick);
        let mut view = View {
            table: &self.table,
            snapshot,
            now: tick,
            numbers: &self.numbers,
            states: &self.states,
            peer: 0,
            flushes: &mut self.flushes,
            adoptions: &mut self.adoptions,
        };
        let mut datagram = [0; 2048];
        for _ in 0..READ_AT_ONCE {
            let Some(socket) = &self.socket else { break };
            let (length, from) = match socket.recv_from(&mut datagram) {
                Ok(heard) => heard,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // A peer that is not there lets Linux say so with the next call.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error).context("cannot receive from peers"),
            };
            let Some(index) = self.peers.iter().position(|link| link.address == from) else {
                self.strangers += 1;
                continue;
            };
            view.peer = index;
            self.peers[index].peer.receive(now, &datagram[..length], &mut view)?;
        }
        for changes in &self.changes {
            for slot in (0..NOTES_AT_ONCE).map_while(|_| changes.take()) {
                self.peers.iter_mut().for_each(|link| link.peer.note(now, slot));
                self.ipvs.iter_mut().for_each(|ipvs| ipvs.note(now, slot));
            }
        }
        let overflows = self.changes.iter().map(|changes| changes.lost()).sum();
        if std::mem::replace(&mut self.overflows, overflows) != overflows {
            self.peers.iter_mut().for_each(|link| link.peer.missed());
        }
        let mut result = Ok(());
        if let Some(ipvs) = &mut self.ipvs {
            result = ipvs.turn(now, &view, self.shared.is_withdrawn.load(Ordering::Relaxed));
        }
        for (index, Link { address, peer, .. }) in self.peers.iter_mut().enumerate() {
            view.peer = index;
            for _ in 0..AT_ONCE {
                let (Some(socket), Some(datagram)) = (&self.socket, peer.send(now, &view)?) else { break };
                match socket.send_to(&datagram, *address) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    // What is not sent is lost, which the protocol knows how to bear. The other peers go on.
                    Err(error) => {
                        result = Err(error).with_context(|| format!("cannot send to peer {address}"));
                        break;
                    }
                }
            }
        }
        self.shared.generation.store(snapshot.generation, Ordering::Release);
        result
    }

    fn complain(&mut self, error: &anyhow::Error) {
        if self.complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            tracing::warn!(error = format!("{error:#}"), "connections are not synchronised");
        }
    }

    fn show(&mut self) {
        let standings = self.peers.iter().map(|link| link.peer.standing());
        let is_due = self.shown.is_none_or(|at| at.elapsed() >= SHOW_EVERY);
        if !is_due && standings.clone().eq(self.standings.iter().copied()) {
            return;
        }
        self.standings = standings.collect();
        self.shown = Some(Instant::now());
        let buckets = self.table.buckets() + self.snapshots.latest().snats.buckets();
        let now = self.began.elapsed();
        let peer = |Link { address, peer, rates }: &mut Link| {
            let counts = peer.counts();
            rates.follow(now, &counts);
            let (waiting, lag) = peer.lag(now);
            PeerStatus {
                address: *address,
                standing: peer.standing(),
                other_version: peer.other_version(),
                counts,
                sent_a_second: rates.sent,
                received_a_second: rates.received,
                waiting,
                lag,
                bulk: peer.bulk(buckets),
            }
        };
        let peers: Vec<PeerStatus> = self.peers.iter_mut().map(peer).collect();
        let is_alone = now > ALONE_AFTER && peers.iter().all(|peer| peer.standing == Standing::Away);
        // Once it knows what one peer knew it is ready, and what it may miss while others join is told to it soon.
        self.is_ready |= is_alone || peers.iter().any(|peer| peer.standing == Standing::Together);
        if !self.is_ready && now > READY_AFTER {
            self.is_ready = true;
            tracing::warn!(
                "no peer has told all that it knows in {} s; going on without",
                READY_AFTER.as_secs()
            );
        }
        self.shared.show(Status {
            is_ready: self.is_ready,
            peers,
            adoptions: self.adoptions,
            flushed: self.flushed,
            overflows: self.overflows,
            strangers: self.strangers,
            cpu: cpu_time(),
            ipvs: self.ipvs.as_ref().map(Ipvs::status),
        });
    }
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
