//! `rvs capture`: from the workers' samples to a pcapng file.
//!
//! The workers fill the queue of a [`Session`]; here it is emptied a hundred times a second, and what was in it becomes
//! blocks of the file, in pieces that the admin API sends on. An operator forgets a capture, so it ends by itself, and with
//! its reader.

mod file;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use dataplane::capture::{Filter, Session, Switch};

use self::file::File;
use crate::admin::capture::Question;

/// How often samples are fetched: the queue's 4096 are enough for 400 000 a second.
const PAUSE: Duration = Duration::from_millis(10);

/// Samples of a piece, before others on the control thread get their turn.
const PIECE: usize = 256;

/// One packet in so many of each worker if nothing is said, and no filter names those that matter.
const ONE_IN: u32 = 1000;

/// When a capture ends if nothing is said, and at the latest.
const SECONDS: u32 = 60;
const MOST_SECONDS: u32 = 24 * 3600;

/// A capture that is under way; it ends when dropped.
pub struct Capture {
    switch: Arc<Switch>,
    /// Taken when dropped.
    session: Option<Arc<Session>>,
    file: File,
    /// Samples that may come yet.
    left: u64,
    until: tokio::time::Instant,
    seen: u64,
}

impl Capture {
    /// Begins what was asked for, on ports with these names.
    pub fn begin(switch: &Arc<Switch>, ports: &[String], question: &Question) -> Result<Capture> {
        let filter: Filter = question.filter.parse().map_err(anyhow::Error::msg)?;
        let one_in = question.one_in.unwrap_or(if filter.is_empty() { ONE_IN } else { 1 });
        ensure!(one_in > 0, "one_in: 0 is no rate; expected 1 (every packet) or more");
        let seconds = question.seconds.unwrap_or(SECONDS);
        ensure!(
            (1..=MOST_SECONDS).contains(&seconds),
            "seconds: {seconds} is too few or too many; expected 1 to {MOST_SECONDS}"
        );
        let file = File::begin(ports, SystemTime::now(), dpdk::clock::tsc(), dpdk::clock::tsc_hz())?;
        let session = Arc::new(Session::new(one_in, filter));
        ensure!(switch.begin(session.clone()), "another capture is under way; expected one at a time");
        tracing::info!(filter = question.filter, one_in, seconds, "capture begins");
        Ok(Capture {
            switch: switch.clone(),
            session: Some(session),
            file,
            left: question.count.unwrap_or(u64::MAX),
            until: tokio::time::Instant::now() + Duration::from_secs(seconds.into()),
            seen: 0,
        })
    }

    /// The next piece of the file, when there is one; `None` at its end.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let is_over = self.left == 0 || tokio::time::Instant::now() >= self.until;
            if !is_over && let Err(error) = self.fetch() {
                tracing::error!(error = format!("{error:#}"), "capture broken off");
                return None;
            }
            let piece = self.file.take();
            if !piece.is_empty() {
                return Some(piece);
            }
            if is_over {
                return None;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn fetch(&mut self) -> Result<()> {
        let session = self.session.as_ref().context("it has ended")?;
        for _ in 0..self.left.min(PIECE as u64) {
            let Some(sample) = session.pop() else { break };
            self.file.add(&sample, session.missed())?;
            self.seen += 1;
            self.left -= 1;
        }
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.switch.end();
        let Some(session) = self.session.take() else { return };
        tracing::info!(packets = self.seen, missed = session.missed(), "capture ends");
        // A worker may be in the middle of it. The memory is given back here, not there.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                while Session::is_in_use(&session) {
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
    }
}
