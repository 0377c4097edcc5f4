//! How things stand with the peers, for everybody but the thread that speaks to them.

use std::net::SocketAddrV4;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::peer::{Counts, Standing};
use super::store::Adoptions;
use crate::admin::api;

/// What others see of the thread.
#[derive(Debug, Default)]
pub struct Shared {
    /// The newest snapshot that it has used, as workers report theirs.
    pub generation: AtomicU64,
    status: Mutex<Status>,
}

impl Shared {
    /// How things stand.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn show(&self, status: Status) {
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
    /// Notes of workers that found no room, each of which has everything sent again.
    pub overflows: u64,
}

/// How things stand with a peer.
#[derive(Clone, Copy, Debug)]
pub struct PeerStatus {
    /// Its address.
    pub address: SocketAddrV4,
    /// How things stand.
    pub standing: Standing,
    /// What has gone between us.
    pub counts: Counts,
    /// Connections that are still to be sent.
    pub waiting: usize,
    /// How long the oldest datagram has been on its way.
    pub on_the_way: Duration,
}

impl Status {
    /// For the admin API.
    pub fn describe(&self) -> api::Sync {
        let Adoptions { new, changed, known, stale, no_room } = self.adoptions;
        api::Sync {
            ready: self.is_ready,
            // That is for the director to say.
            withdrawn: false,
            peers: self.peers.iter().map(PeerStatus::describe).collect(),
            adopted: api::Adopted { new, changed, known, stale, no_room },
            overflows: self.overflows,
        }
    }
}

impl PeerStatus {
    fn describe(&self) -> api::Peer {
        let Counts {
            sent,
            sent_bytes,
            records_sent,
            received,
            records_received,
            lost,
            forged,
            replayed,
            not_understood,
            bulks,
        } = self.counts;
        api::Peer {
            address: self.address,
            standing: self.standing.name().to_owned(),
            waiting: self.waiting as u64,
            lag_us: self.on_the_way.as_micros() as u64,
            sent,
            sent_bytes,
            connections_sent: records_sent,
            received,
            connections_received: records_received,
            lost,
            forged,
            replayed,
            not_understood,
            bulks,
        }
    }
}
