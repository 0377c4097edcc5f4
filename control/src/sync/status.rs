//! How things stand with the peers, for everybody but the thread that speaks to them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::Duration;

use tokio::sync::watch;

use super::ipvs;
use super::peer::{Counts, Standing};
use super::session::VERSION;
use super::store::Adoptions;
use crate::admin::api;
use crate::flush::Filter;

/// Longer than the thread ever takes to look up.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// What others see of the thread.
#[derive(Debug, Default)]
pub struct Shared {
    /// The newest snapshot that it has used, as workers report theirs.
    pub generation: AtomicU64,
    /// Whether this router is out of service: somebody else has its connections, and knows better how they are.
    pub is_withdrawn: AtomicBool,
    /// Flushes that the thread does not know of.
    flushes: Mutex<Vec<Flush>>,
    status: Mutex<Status>,
    /// Whether it has been ready; it stays so.
    ready: watch::Sender<bool>,
}

/// A flush that begins.
#[derive(Debug)]
pub(super) struct Flush {
    pub(super) filter: Filter,
    /// Lives until all are removed.
    pub(super) under_way: Weak<()>,
    /// Who waits until the thread knows.
    pub(super) known: mpsc::Sender<()>,
}

impl Shared {
    /// For a router that knows all that its predecessor knew, which was ready.
    pub fn of_a_ready_one() -> Shared {
        let status = Mutex::new(Status { is_ready: true, ..Status::default() });
        Shared { ready: watch::Sender::new(true), status, ..Shared::default() }
    }

    /// Whether this router has known what a peer knows, or that it is alone.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Waits until it is.
    pub async fn until_ready(&self) {
        // The sender lives as long as `self`.
        let _ = self.ready.subscribe().wait_for(|&ready| ready).await;
    }

    /// Connections are about to be flushed here. Returns when peers cannot bring back any more what is older, so that they may be
    /// removed: some milliseconds later. What is returned has to live until they are: nobody is told of any connection before. To
    /// be called where it may block.
    #[must_use]
    pub fn flush(&self, filter: Filter) -> Arc<()> {
        let (known, wait) = mpsc::channel();
        let flush = Arc::new(());
        let told = Flush { filter, under_way: Arc::downgrade(&flush), known };
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        // A thread that has ended brings nothing back either.
        let _ = wait.recv_timeout(LONGEST_TURN);
        flush
    }

    pub(super) fn flushes(&self) -> Vec<Flush> {
        std::mem::take(&mut self.flushes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn show(&self, status: Status) {
        self.ready.send_if_modified(|ready| !std::mem::replace(ready, status.is_ready) && status.is_ready);
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// How things stand with all peers.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Whether this router has known what a peer knows, or that it is alone.
    pub is_ready: bool,
    /// Each peer.
    pub peers: Vec<PeerStatus>,
    /// What has become of what they told.
    pub adoptions: Adoptions,
    /// Connections forgotten because they were flushed at a peer.
    pub flushed: u64,
    /// Notes of workers that found no room, each of which has everything sent again.
    pub overflows: u64,
    /// Datagrams from addresses that are no peer's.
    pub strangers: u64,
    /// CPU time of the thread that speaks to peers.
    pub cpu: Duration,
    /// How things stand with directors of Linux, if there are any.
    pub ipvs: Option<ipvs::Status>,
}

/// How things stand with a peer.
#[derive(Clone, Copy, Debug)]
pub struct PeerStatus {
    /// Its address.
    pub address: SocketAddr,
    /// How things stand.
    pub standing: Standing,
    /// The version that it speaks, if we do not understand it.
    pub other_version: Option<u8>,
    /// What has gone between us.
    pub counts: Counts,
    /// Connections sent in a second.
    pub sent_a_second: u64,
    /// Connections received in a second.
    pub received_a_second: u64,
    /// Connections that are still to be sent.
    pub waiting: usize,
    /// How long the oldest change that it has not confirmed has been waiting.
    pub lag: Duration,
    /// How much of all connections it has been sent, from 0 to 1, while it is sent all.
    pub bulk: Option<f64>,
}

/// How many connections go between us and a peer in a second.
#[derive(Debug, Default)]
pub struct Rates {
    /// To the peer.
    pub sent: u64,
    /// From it.
    pub received: u64,
    /// When that was found, and what had gone by then.
    since: Duration,
    before: Counts,
}

/// Seconds over which a rate is taken.
const RATED_OVER: Duration = Duration::from_secs(1);

impl Rates {
    /// Takes the rates anew, if it is time.
    pub fn follow(&mut self, now: Duration, counts: &Counts) {
        let elapsed = now.saturating_sub(self.since);
        if elapsed < RATED_OVER {
            return;
        }
        let rate = |now: u64, before: u64| ((now - before) as f64 / elapsed.as_secs_f64()).round() as u64;
        self.sent = rate(counts.connections_sent, self.before.connections_sent);
        self.received = rate(counts.connections_received, self.before.connections_received);
        (self.since, self.before) = (now, *counts);
    }
}

impl Status {
    /// For the admin API.
    pub fn describe(&self) -> api::Sync {
        api::Sync {
            ready: self.is_ready,
            // That is for the director to say.
            withdrawn: false,
            peers: self.peers.iter().map(PeerStatus::describe).collect(),
            adopted: self.adoptions,
            flushed: self.flushed,
            overflows: self.overflows,
            strangers: self.strangers,
            cpu_seconds: self.cpu.as_secs_f64(),
            ipvs: self.ipvs.as_ref().map(ipvs::Status::describe),
        }
    }
}

impl ipvs::Status {
    fn describe(&self) -> api::Ipvs {
        api::Ipvs {
            role: self.config.role.name().to_owned(),
            interface: self.config.interface.clone(),
            syncid: self.config.syncid,
            directors: self.heard.directors.clone(),
            adopted: self.adoptions,
            counts: self.counts,
        }
    }
}

impl PeerStatus {
    fn describe(&self) -> api::Peer {
        api::Peer {
            address: self.address,
            standing: self.standing.name().to_owned(),
            version: self.other_version.unwrap_or(VERSION),
            waiting: self.waiting as u64,
            lag_us: self.lag.as_micros() as u64,
            sent_a_second: self.sent_a_second,
            received_a_second: self.received_a_second,
            bulk: self.bulk,
            counts: self.counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_second() {
        let mut rates = Rates::default();
        let counts = |sent| Counts { connections_sent: sent, ..Counts::default() };
        rates.follow(Duration::from_secs(2), &counts(1_000));
        assert_eq!((rates.sent, rates.received), (500, 0));
        rates.follow(Duration::from_millis(2_900), &counts(90_000));
        assert_eq!(rates.sent, 500, "not yet");
        rates.follow(Duration::from_millis(3_000), &counts(101_000));
        assert_eq!(rates.sent, 100_000);
        rates.follow(Duration::from_millis(4_500), &counts(101_000));
        assert_eq!(rates.sent, 0);
    }
}
