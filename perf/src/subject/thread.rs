//! The CPU time of another process's thread.
//!
//! Linux tells it in `/proc/PID/task/TID/schedstat`: nanoseconds on a processor, and nanoseconds that the thread was
//! ready to run and did not. The first is brought up to date when the thread leaves its processor and at every
//! tick; a thread that polls never leaves, so that what is read is up to 4 ms old (250 Hz). A clock of the thread
//! would be exact, but only its own process may read that (clock_getcpuclockid(3) is as old as schedstat for
//! others). So whoever wants an exact figure waits for the tick: the moment at which the value changes.

use std::fs::{self, File};
use std::ops::Sub;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Ticks come every 1 to 10 ms; what has not changed after a few does not run.
const LONGEST_TICK: Duration = Duration::from_millis(25);

/// A thread, by the file that tells its times.
#[derive(Debug)]
pub struct Thread {
    process: i32,
    schedstat: File,
    status: File,
}

/// How a thread has spent its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When that was.
    pub at: Instant,
    /// On a processor.
    pub on_cpu: Duration,
    /// Ready to run, while something else had its processor.
    pub waited: Duration,
    /// How often something else took its processor.
    pub preempted: u64,
}

impl Thread {
    /// The polling thread of a process: the one with "worker" in its name, as RVS and EAL call theirs. An error
    /// while there is none yet.
    pub fn polling(pid: i32) -> Result<Thread> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
        let is_worker = |name: &str| name.contains("worker");
        let mut workers = tasks
            .map(|task| task.path())
            .filter(|path| fs::read_to_string(path.join("comm")).is_ok_and(|name| is_worker(&name)));
        Thread::at(pid, &workers.next().context("there is none yet")?)
    }

    /// The first thread of a process: RVS's control thread.
    pub fn main(pid: i32) -> Result<Thread> {
        Thread::at(pid, Path::new(&format!("/proc/{pid}/task/{pid}")))
    }

    fn at(process: i32, path: &Path) -> Result<Thread> {
        Ok(Thread {
            process,
            schedstat: File::open(path.join("schedstat"))?,
            status: File::open(path.join("status"))?,
        })
    }

    /// Its process.
    pub fn process(&self) -> i32 {
        self.process
    }

    /// Its times now; of a running thread, those of the last tick.
    pub fn times(&self) -> Result<Times> {
        let (on_cpu, waited) = parse(&text(&self.schedstat)?).context("schedstat is not as expected")?;
        let preempted = text(&self.status)?
            .lines()
            .find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:")?.trim().parse().ok())
            .unwrap_or_default();
        Ok(Times { at: Instant::now(), on_cpu, waited, preempted })
    }

    /// Its times at the next tick, or those at rest: exact in either case.
    pub fn fresh_times(&self) -> Result<Times> {
        let began = Instant::now();
        let stale = text(&self.schedstat)?;
        while text(&self.schedstat)? == stale && began.elapsed() < LONGEST_TICK {
            std::hint::spin_loop();
        }
        self.times()
    }
}

impl Sub for Times {
    type Output = Times;

    fn sub(self, before: Times) -> Times {
        Times {
            at: self.at,
            on_cpu: self.on_cpu.saturating_sub(before.on_cpu),
            waited: self.waited.saturating_sub(before.waited),
            preempted: self.preempted.saturating_sub(before.preempted),
        }
    }
}

fn text(file: &File) -> Result<String> {
    let mut buffer = [0; 4096];
    let length = file.read_at(&mut buffer, 0).context("the thread has ended")?;
    ensure!(length > 0, "the thread has ended");
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn parse(schedstat: &str) -> Option<(Duration, Duration)> {
    let mut fields = schedstat.split_ascii_whitespace().map(|field| field.parse().ok());
    Some((Duration::from_nanos(fields.next()??), Duration::from_nanos(fields.next()??)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::wait;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_busy_thread_is_seen_working_and_an_idle_one_resting() {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let worker = std::thread::Builder::new().name("a-worker".into());
            let busy = || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            };
            worker.spawn_scoped(scope, busy).unwrap();
            let own = std::process::id() as i32;
            let named = || Thread::polling(own);
            let thread = wait::until("the thread has its name", wait::PATIENCE, named).unwrap();
            let before = thread.fresh_times().unwrap();
            std::thread::sleep(Duration::from_millis(100));
            let spent = thread.fresh_times().unwrap() - before;
            stop.store(true, Ordering::Relaxed);
            let all = spent.on_cpu + spent.waited;
            assert!(all > Duration::from_millis(60) && spent.on_cpu > Duration::ZERO, "{spent:?}");
        });
    }

    #[test]
    fn what_linux_writes() {
        let read = parse("457383532 1105196628 125\n");
        assert_eq!(read, Some((Duration::from_nanos(457383532), Duration::from_nanos(1105196628))));
        assert_eq!(parse(""), None);
    }
}
