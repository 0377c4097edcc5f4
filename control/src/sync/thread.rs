//! The thread that speaks to the peers: a socket, the workers' notes, a clock.
//!
//! A thread of its own, so that a reload of ten thousand services does not keep a peer waiting until it believes that
//! this router is away, and a bulk of millions of connections does not keep an operator waiting. It lives on the cores
//! of control. What it tells others of itself stands in [`Shared`].

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dataplane::changes::Changes;
use dataplane::snapshot::Subscriber;
use dataplane::table::Table;
use dataplane::worker;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::peer::{Peer, Standing};
use super::status::{PeerStatus, Shared, Status};
use super::store::{Adoptions, Numbers, View};
use crate::config::{Config, ConfigErrors, Sync};

/// The thread looks at the notes this often, if nothing comes in before.
const PERIOD: Duration = Duration::from_millis(3);
/// Datagrams read, and sent to a peer, in one go.
const AT_ONCE: usize = 256;
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
const SHOW_EVERY: Duration = Duration::from_millis(100);
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// The thread; it ends when this is dropped.
pub struct Synchroniser {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Synchroniser {
    /// Begins to speak to the peers.
    pub fn start(
        config: &Sync,
        socket: UdpSocket,
        shared: Arc<Shared>,
        table: Arc<Table>,
        snapshots: Subscriber,
        changes: Vec<Arc<Changes>>,
    ) -> Result<Synchroniser> {
        let stop = Arc::<AtomicBool>::default();
        let peer = |&address| {
            // Of two, the one with the lower address calls.
            let peer = Peer::new(config.key.clone(), config.listen < address, random());
            (address, peer)
        };
        let peers = config.peers.iter().map(peer).collect();
        let thread = Thread {
            socket,
            peers,
            table,
            snapshots,
            changes,
            numbers: Numbers::default(),
            adoptions: Adoptions::default(),
            overflows: 0,
            began: Instant::now(),
            is_ready: shared.is_ready(),
            shown: None,
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
    let open = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        // As much as Linux allows; with less a bulk is slower.
        socket.set_recv_buffer_size(SOCKET_BYTES)?;
        socket.set_nonblocking(true)?;
        // The address of a twin is not there yet.
        socket.set_freebind_v4(true)?;
        socket.bind(&SocketAddr::V4(listen).into())?;
        Ok(socket.into())
    };
    open().map(Some).map_err(|error| {
        let message = format_args!(
            "cannot listen at {listen}: {error}; expected an address that no other program listens at"
        );
        config.error("sync.listen", message)
    })
}

/// A number that nobody can foretell.
fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

struct Thread {
    socket: UdpSocket,
    peers: Vec<(SocketAddrV4, Peer)>,
    table: Arc<Table>,
    snapshots: Subscriber,
    changes: Vec<Arc<Changes>>,
    numbers: Numbers,
    adoptions: Adoptions,
    overflows: u64,
    began: Instant,
    is_ready: bool,
    shown: Option<Instant>,
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
    }

    /// Until something comes in, but not for long.
    fn wait(&self) {
        let timeout = PollTimeout::try_from(PERIOD).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            // It would fail again at once.
            Err(_) => std::thread::sleep(PERIOD),
        }
    }

    fn turn(&mut self) -> Result<()> {
        let snapshot = self.snapshots.latest();
        self.numbers.follow(snapshot);
        let mut view = View {
            table: &self.table,
            snapshot,
            now: worker::now(),
            numbers: &self.numbers,
            adoptions: &mut self.adoptions,
        };
        let now = self.began.elapsed();
        let mut datagram = [0; 2048];
        for _ in 0..AT_ONCE {
            let (length, from) = match self.socket.recv_from(&mut datagram) {
                Ok((length, SocketAddr::V4(from))) => (length, from),
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // A peer that is not there lets Linux say so with the next call.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error).context("cannot receive from peers"),
            };
            if let Some((_, peer)) = self.peers.iter_mut().find(|(address, _)| *address == from) {
                peer.receive(now, &datagram[..length], &mut view)?;
            }
        }
        for changes in &self.changes {
            for slot in (0..NOTES_AT_ONCE).map_while(|_| changes.take()) {
                self.peers.iter_mut().for_each(|(_, peer)| peer.note(slot));
            }
        }
        let overflows = self.changes.iter().map(|changes| changes.lost()).sum();
        if std::mem::replace(&mut self.overflows, overflows) != overflows {
            self.peers.iter_mut().for_each(|(_, peer)| peer.missed());
        }
        let mut result = Ok(());
        for (address, peer) in &mut self.peers {
            for _ in 0..AT_ONCE {
                let Some(datagram) = peer.send(now, &view)? else { break };
                match self.socket.send_to(&datagram, *address) {
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
        if self.shown.is_some_and(|at| at.elapsed() < SHOW_EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        let now = self.began.elapsed();
        let peer = |(address, peer): &mut (SocketAddrV4, Peer)| {
            if let Some(version) = peer.other_version() {
                let ours = super::session::VERSION;
                tracing::warn!(peer = %address, version, ours, "a peer speaks another version; update one of the two");
            }
            let (waiting, on_the_way) = peer.lag(now);
            PeerStatus {
                address: *address,
                standing: peer.standing(),
                counts: peer.counts(),
                waiting,
                on_the_way,
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
        let (adoptions, overflows) = (self.adoptions, self.overflows);
        self.shared.show(Status { is_ready: self.is_ready, peers, adoptions, overflows });
    }
}
