//! CPU time, and where threads run.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// CPU time of the calling thread. Machines are shared: wall-clock time measures the neighbours, too.
pub fn time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into()
}

/// Binds the calling thread to a core.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).with_context(|| format!("core {core} is more than Linux can number"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on core {core}"))
}

/// How often the time-stamp counter counts in a second, for programs without EAL, which measures the same.
pub fn tsc_hz() -> f64 {
    let (began, first) = (Instant::now(), dpdk::clock::tsc());
    thread::sleep(Duration::from_millis(100));
    let (elapsed, last) = (began.elapsed(), dpdk::clock::tsc());
    (last - first) as f64 / elapsed.as_secs_f64()
}
