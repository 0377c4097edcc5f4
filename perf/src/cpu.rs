//! CPU time, and where threads run.

use std::sync::atomic::{AtomicU64, Ordering};
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

/// How long a cache line takes from one core to the other, where nothing else may run. On a virtual machine it says
/// where the hypervisor has put the cores: side by side, or far apart.
pub fn hand_over(cores: [usize; 2]) -> Result<Duration> {
    const TURNS: u64 = 20_000;
    let turn = AtomicU64::new(0);
    let play = |core: usize, first: u64| -> Result<Duration> {
        pin(core)?;
        let began = time();
        for own in (first..TURNS).step_by(2) {
            while turn.load(Ordering::Acquire) != own {
                std::hint::spin_loop();
            }
            turn.store(own + 1, Ordering::Release);
        }
        Ok(time() - began)
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| play(cores[1], 1));
        let spent = scope.spawn(|| play(cores[0], 0)).join().expect("it does not panic")?;
        other.join().expect("it does not panic")?;
        Ok(spent / TURNS as u32)
    })
}
