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
use tokio::time::{Instant, Interval, MissedTickBehavior};

use self::file::File;
use crate::admin::capture::Question;

/// How often samples are fetched.
const PAUSE: Duration = Duration::from_millis(10);

/// Samples that are fetched at a time: a hundred thousand a second at the most, which leave the control thread to others.
const PIECE: u64 = 1000;

/// One packet in so many of each worker if nothing is said, and no filter names those that matter.
const ONE_IN: u32 = 1000;

/// When a capture ends if nothing is said, and at the latest.
const SECONDS: u32 = 60;
const MOST_SECONDS: u32 = 24 * 3600;

/// Packets after which it ends if nothing is said: some hundred megabytes.
const PACKETS: u64 = 1_000_000;

/// A capture that is under way; it ends when dropped.
pub struct Capture {
    switch: Arc<Switch>,
    /// Taken when dropped.
    session: Option<Arc<Session>>,
    file: File,
    /// Samples that may come yet.
    left: u64,
    until: Instant,
    pace: Interval,
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
        let mut pace = tokio::time::interval(PAUSE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tracing::info!(filter = question.filter, one_in, seconds, "capture begins");
        Ok(Capture {
            switch: switch.clone(),
            session: Some(session),
            file,
            left: question.count.unwrap_or(PACKETS),
            until: Instant::now() + Duration::from_secs(seconds.into()),
            pace,
            seen: 0,
        })
    }

    /// The next piece of the file, when there is one; `None` at its end.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            self.pace.tick().await;
            let is_over = self.left == 0 || Instant::now() >= self.until;
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
        }
    }

    fn fetch(&mut self) -> Result<()> {
        let session = self.session.as_ref().context("it has ended")?;
        for _ in 0..self.left.min(PIECE) {
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

#[cfg(test)]
mod tests {
    use dataplane::capture::Tap;
    use dataplane::counters::Drop;
    use dataplane::engine::{BURST, Verdict};

    use super::*;

    fn question(filter: &str) -> Question {
        Question { filter: filter.to_owned(), one_in: Some(1), ..Question::default() }
    }

    fn refused(switch: &Arc<Switch>, question: &Question) -> String {
        Capture::begin(switch, &["wan".to_owned()], question).err().expect("it is refused").to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_by_count_and_by_time_and_makes_room_for_the_next() {
        let switch = Arc::<Switch>::default();
        let ports = ["wan".to_owned()];
        let mut tap = Tap::new(switch.clone());
        let burst = vec![vec![0; 60]; 10];
        for (count, expected) in [(Some(4), 4), (None, 10)] {
            let asked = Question { count, seconds: Some(5), ..question("") };
            let began = Instant::now();
            let mut capture = Capture::begin(&switch, &ports, &asked).unwrap();
            let another = "another capture is under way; expected one at a time";
            assert_eq!(refused(&switch, &asked), another);
            assert!(tap.before(&burst));
            tap.after(0, &burst, &[Verdict::Drop(Drop::Runt); BURST], 0);
            while capture.next().await.is_some() {}
            assert_eq!(capture.seen, expected);
            let took = began.elapsed().as_secs();
            assert_eq!(took, if count.is_some() { 0 } else { 5 });
        }
        assert!(!tap.before(&burst), "it is off");
    }

    #[tokio::test]
    async fn what_is_wrong_is_refused_and_leaves_it_off() {
        let switch = Arc::<Switch>::default();
        assert!(
            refused(&switch, &question("from x"))
                .starts_with("filter: \"from x\" is none; expected host A, ")
        );
        let none = Question { one_in: Some(0), ..question("") };
        assert_eq!(refused(&switch, &none), "one_in: 0 is no rate; expected 1 (every packet) or more");
        let never = Question { seconds: Some(0), ..question("") };
        assert_eq!(refused(&switch, &never), "seconds: 0 is too few or too many; expected 1 to 86400");
        assert!(Capture::begin(&switch, &[], &question("")).is_ok());
    }
}
