//! A burst's way through the data path.
//!
//! Each stage is a loop over the burst, so that the memory that one packet waits for is loaded while the
//! others are worked on. A packet leaves the path as soon as its verdict is known; every packet gets
//! exactly one.

mod packet;
mod parse;
mod resolve;
mod rewrite;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use self::packet::Packet;
use crate::clock::Tick;
use crate::counters::{Drop, Punt, WorkerCounters};
use crate::fib::PortIndex;
use crate::snapshot::Snapshot;
use crate::table::Table;

/// Packets in a burst, at the most.
pub const BURST: usize = 32;

/// A packet in memory that may be changed.
pub trait Frame {
    /// The first part of the frame: all of it, unless it is spread over several buffers.
    fn bytes(&self) -> &[u8];
    /// The same, to be changed.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Length of the whole frame.
    fn length(&self) -> usize {
        self.bytes().len()
    }
    /// Whether the device has taken a VLAN tag out of it.
    fn is_vlan_stripped(&self) -> bool {
        false
    }
    /// Starts to load its first bytes.
    fn prefetch(&self) {}
}

impl Frame for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has been rewritten and goes out of a port.
    Forward(PortIndex),
    /// It goes to Linux: as it came, or with [`Punt::Unresolved`] rewritten and to be sent.
    Punt(Punt),
    /// It goes nowhere.
    Drop(Drop),
}

crate::service::named! {
    /// The stages of a burst, in their order.
    Stage {
        /// Received from the device.
        Receive = "receive",
        /// Taken apart.
        Parse = "parse",
        /// Whose it is.
        Classify = "classify",
        /// Which connection's it is.
        LookUp = "look up",
        /// The connection follows, and the packet is rewritten.
        Rewrite = "rewrite",
        /// Given to the device that it goes out of, to Linux, or back to the pool.
        Transmit = "transmit",
    }
}

/// Somebody who wants to know when a stage of a burst is done, to measure it. `()` does not, and costs nothing.
pub trait Probe {
    /// All packets of the burst have gone through this stage.
    fn done(&mut self, stage: Stage);
}

impl Probe for () {
    #[inline(always)]
    fn done(&mut self, _: Stage) {}
}

/// A worker's data path.
pub struct Engine {
    worker: usize,
    table: Arc<Table>,
    counters: Arc<WorkerCounters>,
}

impl Engine {
    /// The data path of the worker with this number.
    pub fn new(worker: usize, table: Arc<Table>, counters: Arc<WorkerCounters>) -> Self {
        Engine { worker, table, counters }
    }

    /// Takes a burst that came in on a port through the data path:
    ///
    /// 1. parse: Ethernet, IPv4, TCP/UDP; what is odd leaves under a name;
    /// 2. classify: to a service, or from an endpoint; hash the client, prefetch its bucket;
    /// 3. resolve: find the connection, or schedule and insert it; follow its state;
    /// 4. rewrite: addresses, ports, TTL, MACs, checksums.
    ///
    /// `verdicts[i]` becomes the verdict on `burst[i]`; a burst has at most [`BURST`] packets.
    pub fn process<F: Frame, P: Probe>(
        &self,
        snapshot: &Snapshot,
        now: Tick,
        port: PortIndex,
        burst: &mut [F],
        verdicts: &mut [Verdict; BURST],
        probe: &mut P,
    ) {
        let burst_length = burst.len().min(BURST);
        let mut packets = [Packet::default(); BURST];
        let mut live = Live::new();
        let mac = snapshot.ports[usize::from(port)].mac;

        // 1. parse
        for index in 0..burst_length {
            if let Some(ahead) = burst.get(index + 4) {
                ahead.prefetch();
            }
            match parse::parse(&burst[index], &mac, snapshot) {
                Ok(packet) => {
                    packets[index] = packet;
                    live.push(index);
                }
                Err(verdict) => verdicts[index] = verdict,
            }
        }
        probe.done(Stage::Parse);

        // 2. classify
        live.retain(|index| match resolve::classify(&packets[index], snapshot, &self.table) {
            Ok(lookup) => {
                self.table.prefetch(lookup.hash);
                packets[index].lookup = lookup;
                true
            }
            Err(verdict) => {
                verdicts[index] = verdict;
                false
            }
        });
        probe.done(Stage::Classify);

        // 3. resolve, 4. rewrite
        let path = resolve::Path { engine: self, snapshot, now };
        for index in live {
            let packet = &packets[index];
            verdicts[index] = path.resolve(packet).map_or_else(std::convert::identity, |dest| {
                rewrite::rewrite(&path, packet, dest, &mut burst[index])
            });
        }
        probe.done(Stage::Rewrite);
    }

    /// Removes expired connections, and those of removed dests, from some buckets of the table.
    pub fn sweep(&self, snapshot: &Snapshot, now: Tick, buckets: Range<usize>) {
        resolve::sweep(&self.table, snapshot, now, buckets);
    }
}

/// The packets of a burst that have no verdict yet.
#[derive(Clone, Copy)]
struct Live {
    indices: [u8; BURST],
    length: usize,
}

impl Live {
    fn new() -> Self {
        Live { indices: [0; BURST], length: 0 }
    }

    fn push(&mut self, index: usize) {
        self.indices[self.length] = index as u8;
        self.length += 1;
    }

    fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let before = std::mem::replace(self, Live::new());
        for index in before {
            if keep(index) {
                self.push(index);
            }
        }
    }
}

impl IntoIterator for Live {
    type Item = usize;
    type IntoIter = std::iter::Map<std::iter::Take<std::array::IntoIter<u8, BURST>>, fn(u8) -> usize>;

    fn into_iter(self) -> Self::IntoIter {
        self.indices.into_iter().take(self.length).map(usize::from)
    }
}
