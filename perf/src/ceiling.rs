//! What cannot be beaten on the synthetic port: a loop that looks at nothing, and one that swaps addresses.
//!
//! They are what `dpdk-testpmd --forward-mode=io` and `5tswap` do. testpmd itself cannot have a port without a
//! driver; `rvs-perf device` compares with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use dataplane::engine::BURST;
use dpdk::{Batch, Lcore, Mempool, synthetic};

use crate::cpu;
use crate::frame::HEADERS;
use crate::source::Packets;

/// What is done to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Nothing.
    Nothing,
    /// MACs, addresses and ports are swapped.
    Swap,
}

/// TSC cycles a packet, of CPU time.
pub fn cycles(
    pool: &'static Mempool,
    core: usize,
    source: Packets,
    touch: Touch,
    duration: Duration,
) -> Result<f64> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| forward(pool, core, source, touch, &stop));
        std::thread::sleep(duration);
        stop.store(true, Ordering::Relaxed);
        running.join().expect("the loop does not panic")
    })
}

fn forward(
    pool: &'static Mempool,
    core: usize,
    source: Packets,
    touch: Touch,
    stop: &AtomicBool,
) -> Result<f64> {
    cpu::pin(core)?;
    let lcore = Lcore::register()?;
    let (mut receiver, mut transmitter) = synthetic::queues(pool, source);
    let mut burst: Batch<BURST> = Batch::new();
    let mut packets = 0;
    let began = cpu::time();
    while !stop.load(Ordering::Relaxed) {
        packets += receiver.recv(&lcore, &mut burst);
        if touch == Touch::Swap {
            burst.iter_mut().filter_map(|mbuf| mbuf.data_mut().first_chunk_mut()).for_each(swap);
        }
        transmitter.send(&lcore, &mut burst);
    }
    let spent = cpu::time() - began;
    Ok(spent.as_secs_f64() * dpdk::clock::tsc_hz() as f64 / packets.max(1) as f64)
}

fn swap(headers: &mut [u8; HEADERS]) {
    let old = *headers;
    for (to, from, length) in [(0, 6, 6), (6, 0, 6), (26, 30, 4), (30, 26, 4), (34, 36, 2), (36, 34, 2)] {
        headers[to..to + length].copy_from_slice(&old[from..from + length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapping_twice_is_nothing() {
        let mut headers: [u8; HEADERS] = std::array::from_fn(|index| index as u8);
        swap(&mut headers);
        assert_eq!((headers[0], headers[26], headers[34]), (6, 30, 36));
        swap(&mut headers);
        assert_eq!(headers, std::array::from_fn(|index| index as u8));
    }
}
