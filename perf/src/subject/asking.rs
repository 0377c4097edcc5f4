//! Somebody who asks the admin socket all the time.
//!
//! Every few milliseconds, each time over a connection of its own as `rvs list` does, for the workers' counters and
//! sometimes for what would become of a packet. An answer that takes long keeps the next questions from being asked,
//! which counts as if they had been asked in time (hdrhistogram's correction).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;

use super::crowd::service_address;
use super::rvs;

/// From one question to the next.
pub const EVERY: Duration = Duration::from_millis(5);
/// One question in so many is for a packet.
const EXPLAINED: u32 = 10;

/// How long answers took, milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answers {
    /// Of those with the counters.
    pub median: f64,
    /// 99 of 100 of them took no longer.
    pub p99: f64,
    /// The longest of them.
    pub longest: f64,
    /// The longest with what becomes of a packet.
    pub explain: f64,
}

/// Asks while something else is done.
pub fn meanwhile<T>(socket: &Path, other: impl FnOnce() -> Result<T>) -> Result<(Answers, T)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let asker = scope.spawn(|| ask(socket, &stop));
        let result = other();
        stop.store(true, Relaxed);
        let answers = asker.join().map_err(|_| anyhow!("whoever asks panicked"))??;
        Ok((answers, result?))
    })
}

fn ask(socket: &Path, stop: &AtomicBool) -> Result<Answers> {
    // Microseconds, up to a minute.
    let histogram = || Histogram::<u64>::new_with_bounds(1, 60_000_000, 3);
    let (mut counters, mut explained) = (histogram()?, histogram()?);
    let packet = format!("/v1/explain?source=192.0.2.77:1024&destination={}:80", service_address(0));
    let time = |path: &str| -> Result<u64> {
        let began = Instant::now();
        rvs::get(socket, path)?;
        Ok(began.elapsed().as_micros() as u64)
    };
    for question in 0.. {
        if stop.load(Relaxed) && question > EXPLAINED {
            break;
        }
        if question % EXPLAINED == 0 {
            explained.record(time(&packet)?)?;
        } else {
            counters.record_correct(time("/v1/counters")?, EVERY.as_micros() as u64)?;
        }
        thread::sleep(EVERY);
    }
    let millis = |micros: u64| micros as f64 / 1e3;
    Ok(Answers {
        median: millis(counters.value_at_quantile(0.5)),
        p99: millis(counters.value_at_quantile(0.99)),
        longest: millis(counters.max()),
        explain: millis(explained.max()),
    })
}
