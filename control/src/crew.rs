//! Which thread runs on which core: the workers, each on its own, and control beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use dataplane::worker::Worker;
use dpdk::Lcore;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::capabilities;
use crate::config::{Config, Machine};

/// The worker threads.
pub struct Crew {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Crew {
    /// Starts them, each on its core.
    pub fn start(workers: Vec<Worker>, cores: &[usize], drop_capabilities: bool) -> Result<Crew> {
        let mut crew = Crew { stop: Arc::default(), threads: Vec::new() };
        for (worker, &core) in workers.into_iter().zip(cores) {
            let stop = crew.stop.clone();
            let run = move || -> Result<()> {
                pin(&[core])?;
                if drop_capabilities {
                    // A worker opens nothing.
                    capabilities::keep(&Default::default())?;
                }
                let lcore = Lcore::register()?;
                worker.run(&lcore, &stop);
                Ok(())
            };
            let name = format!("rvs-worker-{}", crew.threads.len());
            let thread = std::thread::Builder::new().name(name).spawn(run);
            crew.threads.push(thread.context("cannot start a worker's thread")?);
        }
        Ok(crew)
    }

    /// Returns when a worker has ended by itself, which none should.
    pub async fn lost_worker(&self) -> Result<()> {
        let mut look = tokio::time::interval(std::time::Duration::from_millis(500));
        loop {
            look.tick().await;
            if self.threads.iter().any(JoinHandle::is_finished) {
                bail!("a worker has ended; see the log above");
            }
        }
    }
}

/// Stops the workers and waits for them.
impl Drop for Crew {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(error = format!("{error:#}"), "a worker could not run"),
                Err(_) => tracing::error!("a worker panicked"),
            }
        }
    }
}

/// The cores of everything that does not poll.
pub fn control_cores(config: &Config, machine: &Machine) -> Vec<usize> {
    if let Some(cores) = &config.workers.control_cores {
        return cores.clone();
    }
    let online = machine.online_cores.iter().copied();
    let free: Vec<usize> = online.clone().filter(|core| !config.workers.cores.contains(core)).collect();
    if free.is_empty() {
        tracing::warn!("every core is a worker's: control shares one with a worker");
        return online.collect();
    }
    free
}

/// Binds the calling thread, and those that it will start, to some cores.
pub fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core).with_context(|| format!("core {core} is more than Linux can number"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on cores {cores:?}"))
}
