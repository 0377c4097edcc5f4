//! New connections at a steady rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use dataplane::engine::{BURST, Probe, Stage};
use dpdk::clock;

use crate::cpu;
use crate::eal::Environment;
use crate::path::checked;
use crate::rig::Rig;

/// Packets by which a connection is opened.
const PACKETS: u64 = 3;

/// How a worker has opened connections.
pub struct Opened {
    /// Connections, and so many in a second.
    pub connections: u64,
    pub a_second: f64,
    /// How long all of them took.
    pub lasted: Duration,
    /// Cycles a connection, without waiting for the next one's time.
    pub cycles: f64,
}

/// Lets a worker open so many connections a second, until it has opened all.
pub fn open(
    environment: &Environment,
    core: usize,
    rig: &Rig,
    a_second: u32,
    connections: u32,
    meanwhile: impl FnOnce(&AtomicBool),
) -> Result<Opened> {
    let bursts = (u64::from(connections) * PACKETS).div_ceil(BURST as u64);
    let cycles = clock::tsc_hz() as f64 * BURST as f64 / PACKETS as f64 / f64::from(a_second);
    let pace = |stop: &Arc<AtomicBool>| Pace {
        a_burst: cycles as u64,
        bursts,
        done: 0,
        began: 0,
        lasted: 0,
        waited: Duration::ZERO,
        stop: stop.clone(),
    };
    let runs = rig.run(environment.pool, &[core], |_| rig.handshakes(), pace, meanwhile)?;
    let run = checked(&runs[0])?;
    let connections = run.packets / PACKETS;
    let hz = clock::tsc_hz() as f64;
    let lasted = run.probe.lasted as f64 / hz;
    Ok(Opened {
        connections,
        a_second: connections as f64 / lasted,
        lasted: Duration::from_secs_f64(lasted),
        cycles: run.spent.saturating_sub(run.probe.waited).as_secs_f64() * hz / connections as f64,
    })
}

/// Holds a worker after each burst until the next one is due, and stops it after the last.
struct Pace {
    /// Cycles that a burst may take.
    a_burst: u64,
    /// All bursts, and those that are done.
    bursts: u64,
    done: u64,
    /// When the first burst came.
    began: u64,
    /// Cycles from then to the last.
    lasted: u64,
    /// CPU time that it was held.
    waited: Duration,
    stop: Arc<AtomicBool>,
}

impl Probe for Pace {
    #[inline]
    fn done(&mut self, stage: Stage) {
        if stage == Stage::Receive && self.began == 0 {
            self.began = clock::tsc();
        }
        if stage != Stage::Transmit {
            return;
        }
        self.done += 1;
        let (due, before) = (self.began + self.done * self.a_burst, cpu::time());
        while clock::tsc() < due {
            std::hint::spin_loop();
        }
        self.waited += cpu::time() - before;
        self.lasted = clock::tsc() - self.began;
        if self.done >= self.bursts {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}
