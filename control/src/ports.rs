//! Opens DPDK's ports, and the pool that their packets come from.

use anyhow::{Context, Result};
use dpdk::{Eal, Mempool, Port, Queues, Settings, Started};

use crate::config::Config;
use crate::devices::Device;
use crate::slowpath;

/// Packets in each core's cache of the pool; at least four bursts.
const POOL_CACHE: u32 = 512;

/// The pool of all packets, as large as it can be needed: full queues, and what workers and control hold.
pub fn pool(config: &Config, eal: &Eal) -> Result<&'static Mempool> {
    let workers = config.workers.cores.len() as u32;
    let in_queues: u32 = config.ports.iter().map(|port| 2 * u32::from(port.descriptors) * workers).sum();
    let in_slow_path = (slowpath::PUNTS + slowpath::INJECTS * config.workers.cores.len()) as u32;
    // In caches, and in workers' hands.
    let with_threads = 2 * POOL_CACHE * (workers + 1);
    let wanted = in_queues + in_slow_path + with_threads;
    // DPDK's rings are best at one less than a power of two.
    let packets = wanted.next_power_of_two() - 1;
    let mtu = config.ports.iter().map(|port| port.mtu).max().unwrap_or(1500);
    Mempool::new(eal, "rvs-packets", packets, POOL_CACHE, dpdk::data_room(mtu)).with_context(|| {
        format!("no memory for {packets} packets: reserve more hugepages, or raise eal.memory")
    })
}

/// Opens a port with a pair of queues for each worker.
pub fn open(
    config: &Config,
    index: usize,
    device: &Device,
    eal: &Eal,
    pool: &'static Mempool,
) -> Result<(Port<Started>, Queues)> {
    let port = &config.ports[index];
    let failed = |error: dpdk::Error| {
        let remedy = match error {
            dpdk::Error::TooManyQueues { .. } => "expected one for each of workers.cores",
            _ => "expected a device that DPDK can open; what its driver says is above",
        };
        config.error(&format!("port[{index}].device"), format_args!("{error}; {remedy}"))
    };
    if let Device::Virtual { devargs, .. } = device {
        eal.probe(devargs).map_err(failed)?;
    }
    let stopped = Port::by_name(eal, device.port_name()).map_err(failed)?;
    let settings = Settings {
        queues: config.workers.cores.len() as u16,
        descriptors: port.descriptors,
        mtu: port.mtu,
        rss: true,
        pool,
        mac: port.mac,
        promiscuous: true,
    };
    Ok(stopped.configure(settings).map_err(failed)?)
}

/// The device's MAC; one of our own (locally administered) for a device that has none, as rings have.
pub fn usable_mac(mac: [u8; 6], index: usize) -> [u8; 6] {
    if mac == [0; 6] { [2, 0, 0, 0, 0, index as u8 + 1] } else { mac }
}

/// As people write a MAC.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
