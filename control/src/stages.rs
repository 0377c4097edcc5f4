//! How long the start takes, stage by stage: what clients notice of a process that dies and comes back.

use std::fmt;
use std::time::Instant;

use serde::Serialize;

/// Milliseconds of each stage of a start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stages {
    /// Sockets, and DPDK's environment.
    pub eal: u64,
    /// Memory for packets, devices and their twins.
    pub ports: u64,
    /// The connection table, new or from before.
    pub table: u64,
    /// The first snapshot, and workers: packets of connections are forwarded from here on.
    pub publish: u64,
    /// Next hops and virtual addresses: clients are served from here on.
    pub settle: u64,
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stages { eal, ports, table, publish, settle } = self;
        write!(f, "ms: eal {eal}, ports {ports}, table {table}, publish {publish}, settle {settle}")
    }
}

/// Takes the times.
#[derive(Debug)]
pub struct Stopwatch {
    /// When the last stage ended.
    last: Instant,
    /// Of the stages that have ended.
    pub stages: Stages,
}

impl Stopwatch {
    /// The first stage begins.
    pub fn start() -> Self {
        Stopwatch { last: Instant::now(), stages: Stages::default() }
    }

    /// A stage has ended, and the next one begins.
    pub fn lap(&mut self, stage: impl FnOnce(&mut Stages) -> &mut u64) {
        let now = Instant::now();
        *stage(&mut self.stages) = (now - self.last).as_millis() as u64;
        self.last = now;
    }
}
