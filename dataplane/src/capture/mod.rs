//! Samples of packets for operators, as they came and as the data path left them.
//!
//! ```text
//!   worker: one packet in so many --> filter --> queue of a session --> control: a file
//! ```
//!
//! Nobody captures nearly always, so that must cost nothing: a worker loads one flag a burst. While somebody does, it
//! counts to the next packet of the sample, keeps its headers aside, and after the engine copies what is left of them: no
//! allocation, no lock, and if control does not keep up a sample is missed and counted. A packet's payload is not
//! changed on its way, so it is copied once; with a tunnel's headers before it, it only stands further back.
//!
//! What happens after the verdict is not seen: a queue to Linux or of a device that is full.

mod filter;
mod tap;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use crossbeam::queue::ArrayQueue;

pub use self::filter::Filter;
pub use self::tap::Tap;
use crate::engine::Verdict;
use crate::fib::PortIndex;

/// Bytes of a frame that are captured at the most.
pub const SNAP: usize = 256;

/// Bytes of a frame that the data path may change: Ethernet, IPv6, and of an ICMPv6 error the quoted IPv6 header and what TCP's begins with
/// up to its checksum: 120, and room for an extension header or two.
const HEAD: usize = 160;

/// Samples that wait for control.
const WAITING: usize = 4096;

/// Where control switches capturing on and off for all workers.
#[derive(Debug, Default)]
pub struct Switch {
    /// The number of the session that is under way, or 0.
    on: AtomicU64,
    /// How many sessions have begun.
    begun: AtomicU64,
    session: ArcSwapOption<Session>,
}

impl Switch {
    /// Begins a session, unless another one is under way.
    ///
    /// Whoever began it ends it, and keeps a reference until [`Session::is_in_use`] says no, so that its memory is
    /// not given back by a worker.
    pub fn begin(&self, session: Arc<Session>) -> bool {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let began = self.on.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if began {
            self.session.store(Some(session));
        }
        began
    }

    /// Ends the session.
    pub fn end(&self) {
        self.session.store(None);
        self.on.store(0, Ordering::Relaxed);
    }

    /// The number of the session, or 0.
    ///
    /// Relaxed: a worker may learn of it a moment late, and finds the session, or none, behind an ordering of its own.
    #[inline(always)]
    fn number(&self) -> u64 {
        self.on.load(Ordering::Relaxed)
    }
}

/// A capture: what is wanted, and what has been caught.
#[derive(Debug)]
pub struct Session {
    one_in: u32,
    filter: Filter,
    samples: ArrayQueue<Sample>,
    missed: AtomicU64,
}

impl Session {
    /// Of one packet in so many of each worker, those that pass the filter.
    pub fn new(one_in: u32, filter: Filter) -> Session {
        Session {
            one_in: one_in.max(1),
            filter,
            samples: ArrayQueue::new(WAITING),
            missed: AtomicU64::new(0),
        }
    }

    /// The next sample, if there is one.
    pub fn pop(&self) -> Option<Sample> {
        self.samples.pop()
    }

    /// How many were missed, since control did not take them fast enough.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Whether anybody but the caller, who has a reference, holds on to it.
    pub fn is_in_use(session: &Arc<Session>) -> bool {
        Arc::strong_count(session) > 1
    }

    fn push(&self, sample: Sample) {
        if self.samples.push(sample).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A packet that was caught.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When, by the time-stamp counter.
    pub tsc: u64,
    /// The port that it came in on.
    pub port: PortIndex,
    /// What the data path decided.
    pub verdict: Verdict,
    /// The frame's length as it was left, of which not all may be here.
    pub length: u32,
    /// By how much it has grown in front: the headers of a tunnel.
    pub grown: u16,
    captured: u16,
    head: [u8; HEAD],
    data: [u8; SNAP],
}

impl Sample {
    /// The frame's beginning as it came.
    pub fn before(&self) -> Vec<u8> {
        let (after, grown) = (self.after(), usize::from(self.grown));
        let mut bytes = self.head[..HEAD.min(after.len().saturating_sub(grown))].to_vec();
        bytes.extend(after.get(HEAD + grown..).unwrap_or_default());
        bytes
    }

    /// The frame's length as it came.
    pub fn length_before(&self) -> u32 {
        self.length - u32::from(self.grown)
    }

    /// The frame's beginning as the data path left it.
    pub fn after(&self) -> &[u8] {
        &self.data[..usize::from(self.captured)]
    }
}
