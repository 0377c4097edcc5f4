//! EAL and memory for measuring: hugepages if there are any to be had, no devices, no files.

use std::fs;

use anyhow::{Context, Result};
use dpdk::{Eal, Mempool};

/// Packets in the pool: more than all caches and bursts hold, few enough to stay in the processor's cache.
const PACKETS: u32 = 8191;
const POOL_CACHE: u32 = 512;
/// Megabytes for EAL.
const MEMORY: u64 = 64;
const RESERVED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// A running EAL with a pool.
pub struct Environment {
    /// Packets for all workers.
    pub pool: &'static Mempool,
    /// Whether the packets are in hugepages; without them every figure is much too high.
    pub hugepages: bool,
    _eal: Eal,
    _reserved: Hugepages,
}

impl Environment {
    /// Starts EAL.
    pub fn start() -> Result<Environment> {
        let reserved = Hugepages::reserve(MEMORY / 2 + 16);
        let hugepages = Hugepages::free() >= MEMORY / 2;
        let memory = if hugepages { MEMORY.to_string() } else { "256".into() };
        let mut arguments: Vec<&str> = vec!["--no-pci", "--no-telemetry", "--log-level=error", "-m", &memory];
        // No files in either case, so there is no prefix to tell them apart by; DPDK would leave a directory a run.
        arguments.extend(if hugepages { &["--in-memory"][..] } else { &["--no-huge", "--no-shconf"] });
        // The workers are threads of their own; EAL wants a core, and the first is there always.
        arguments.extend(["-l", "0"]);
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let eal = Eal::init(&arguments).context("cannot start DPDK")?;
        let pool = Mempool::new(&eal, "rvs-perf", PACKETS, POOL_CACHE, dpdk::data_room(1500))?;
        Ok(Environment { pool, hugepages, _eal: eal, _reserved: reserved })
    }

    /// What the memory means for figures taken in it.
    pub fn memory(&self) -> &'static str {
        if self.hugepages {
            "packets in hugepages"
        } else {
            "NO HUGEPAGES: figures are more than twice too high"
        }
    }
}

/// Hugepages that were reserved for a measurement, and are given back after it.
#[derive(Debug)]
pub struct Hugepages {
    added: u64,
}

impl Hugepages {
    /// How many nobody uses.
    pub fn free() -> u64 {
        read(FREE)
    }

    /// Reserves what is missing, if Linux lets us.
    pub fn reserve(wanted: u64) -> Hugepages {
        let (missing, before) = (wanted.saturating_sub(read(FREE)), read(RESERVED));
        if missing == 0 || fs::write(RESERVED, (before + missing).to_string()).is_err() {
            return Hugepages { added: 0 };
        }
        // Linux may have found fewer.
        Hugepages { added: read(RESERVED).saturating_sub(before) }
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if self.added > 0 {
            // Not what there was before: somebody else may have reserved or given back some meanwhile. Those still in
            // use go when the process ends.
            let _ = fs::write(RESERVED, read(RESERVED).saturating_sub(self.added).to_string());
        }
    }
}

fn read(path: &str) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
