//! A burst's way through the data path.
//!
//! Each stage is a loop over the burst, so that the memory that one packet waits for is loaded while the
//! others are worked on. A packet leaves the path as soon as its verdict is known; every packet gets
//! exactly one.

mod express;
mod packet;
mod parse;
mod resolve;
mod rewrite;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use self::express::Tally;
use self::packet::Packet;
use crate::clock::Tick;
use crate::counters::{Drop, Punt, WorkerCounters};
use crate::fib::PortIndex;
use crate::snapshot::Snapshot;
use crate::table::Table;
use crate::wire;
use crate::wire::plain::MacPattern;
use crate::wire::transport::SYN;

/// Packets in a burst, at the most.
pub const BURST: usize = 64;

/// Packets whose counters are loaded while one is worked on.
const AHEAD: usize = 6;

/// Bursts after which a new snapshot is in this core's caches, as far as it matters.
const FRESH_BURSTS: u32 = 1_000;

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
    express: bool,
    /// The latest snapshot's generation, and for how many bursts more it counts as fresh.
    fresh: Cell<(u64, u32)>,
    worker: usize,
    table: Arc<Table>,
    counters: Arc<WorkerCounters>,
}

impl Engine {
    /// The data path of the worker with this number.
    pub fn new(worker: usize, table: Arc<Table>, counters: Arc<WorkerCounters>) -> Self {
        Engine { express: true, fresh: Cell::new((0, 0)), worker, table, counters }
    }

    /// The same data path without the short way for packets of undisturbed connections. For tests, and to
    /// measure what the short way gains.
    pub fn without_express(self) -> Self {
        Engine { express: false, ..self }
    }

    /// Takes a burst that came in on a port through the data path:
    ///
    /// 1. parse: Ethernet, IPv4, TCP/UDP; what is odd leaves under a name;
    /// 2. classify: to a service, or from an endpoint; hash the client, prefetch its bucket;
    /// 3. look up: a glance at the bucket; prefetch what it leads to;
    /// 4. resolve: check the connection, or schedule and insert one; follow its state;
    /// 5. rewrite: addresses, ports, TTL, MACs, checksums. For most packets 4 and 5 are one short step.
    ///
    /// `verdicts[i]` becomes the verdict on `burst[i]`; a burst has at most [`BURST`] packets. If all of them go
    /// out of one port, the answer is that port.
    pub fn process<F: Frame, P: Probe>(
        &self,
        snapshot: &Snapshot,
        now: Tick,
        port: PortIndex,
        burst: &mut [F],
        verdicts: &mut [Verdict; BURST],
        probe: &mut P,
    ) -> Option<PortIndex> {
        let burst_length = burst.len().min(BURST);
        // Those without a verdict yet, from the front.
        let mut packets = [Packet::default(); BURST];
        let mut count = 0;
        let mac = &snapshot.ports[usize::from(port)].mac;
        let pattern = MacPattern::new(mac);

        // 1. parse
        for index in 0..burst_length {
            if let Some(ahead) = burst.get(index + 4) {
                ahead.prefetch();
            }
            let (frame, packet) = (&burst[index], &mut packets[count]);
            if !(self.express && parse::parse_plain(frame, pattern, packet)) {
                match parse::parse(frame, mac, snapshot) {
                    Ok(parsed) => *packet = parsed,
                    Err(verdict) => {
                        verdicts[index] = verdict;
                        continue;
                    }
                }
            }
            packet.index = index as u8;
            count += 1;
        }
        if self.is_fresh(snapshot) {
            for packet in &packets[..count] {
                let Packet { source, source_port, destination, destination_port, protocol, .. } = *packet;
                snapshot.prefetch((source, source_port), (destination, destination_port), protocol);
            }
        }
        probe.done(Stage::Parse);

        // 2. classify
        let parsed = std::mem::take(&mut count);
        for index in 0..parsed {
            let packet = &mut packets[index];
            match resolve::classify(packet, snapshot, &self.table) {
                Ok(()) => {
                    self.table.prefetch(packet.hash);
                    if count < index {
                        packets[count] = packets[index];
                    }
                    count += 1;
                }
                Err(verdict) => verdicts[usize::from(packet.index)] = verdict,
            }
        }
        probe.done(Stage::Classify);

        // 3. look up
        let (order, hits) = self.look_up(snapshot, &mut packets[..count]);
        probe.done(Stage::LookUp);

        // 4. resolve, 5. rewrite
        let path = resolve::Path { engine: self, snapshot, now };
        let mut tally = Tally::default();
        let mut common = Common::default();
        let large = snapshot.is_large();
        // Whether a packet of this burst may have changed what stage 3 saw.
        let mut stale = false;
        for (turn, &index) in order[..count].iter().enumerate() {
            if large && let Some(&ahead) = order[..count].get(turn + AHEAD) {
                express::prefetch_counters(&path, &packets[usize::from(ahead)]);
            }
            if turn == hits {
                self.look_further(snapshot, &mut packets, &order[hits..count]);
            }
            let packet = &mut packets[usize::from(index)];
            if stale {
                packet.word = self.table.at(packet.slot);
            }
            let Some(frame) = burst.get_mut(usize::from(packet.index)) else { continue };
            let passed = if self.express { express::pass(&path, packet, frame, &mut tally) } else { None };
            let verdict = match passed {
                Some(port) => Verdict::Forward(port),
                None => {
                    stale = true;
                    path.long_way(packet, frame, &mut tally)
                }
            };
            if let Verdict::Forward(port) = verdict {
                common.add(port);
            }
            verdicts[usize::from(packet.index) % BURST] = verdict;
        }
        tally.count(&self.counters);
        probe.done(Stage::Rewrite);
        common.of_all(burst_length)
    }

    /// Whether this snapshot has been in use for a short time only. All of it is in the caches of the core that
    /// compiled it then: a worker's first burst on a snapshot of 10 000 real servers took 15 us when it waited for each
    /// line in turn, and takes 4.
    #[inline]
    fn is_fresh(&self, snapshot: &Snapshot) -> bool {
        let (generation, bursts) = self.fresh.get();
        if generation != snapshot.generation {
            self.fresh.set((snapshot.generation, FRESH_BURSTS));
            return true;
        }
        if bursts > 0 {
            self.fresh.set((generation, bursts - 1));
        }
        bursts > 0
    }

    /// Looks into each packet's home bucket, and prefetches what it leads to: the dest, or the other buckets.
    ///
    /// Answers the order in which the packets are to be worked on, and how many of them were found: these come
    /// first, so that the others' buckets are there when it is their turn. Packets of one flow keep their order.
    /// Found or not is no branch: it is one in ten, and nobody could predict which.
    #[inline(always)]
    fn look_up(&self, snapshot: &Snapshot, packets: &mut [Packet]) -> ([u8; BURST], usize) {
        let (mut order, mut missed) = ([0; BURST], [0; BURST]);
        let (mut hits, mut misses) = (0, 0);
        for (index, packet) in packets.iter_mut().enumerate().take(BURST) {
            packet.slot = self.table.glance(packet.hash, packet.client);
            packet.word = self.table.at(packet.slot);
            wire::prefetch(snapshot.transform_of(packet.word));
            let found = packet.word.client() == packet.client;
            order[hits % BURST] = index as u8;
            missed[misses % BURST] = index as u8;
            hits += usize::from(found);
            misses += usize::from(!found);
        }
        for (turn, &index) in (hits..BURST).zip(&missed[..misses]) {
            self.table.prefetch_rest(packets[usize::from(index)].hash);
            order[turn] = index;
        }
        (order, hits)
    }

    /// Looks into the other buckets of these packets.
    fn look_further(&self, snapshot: &Snapshot, packets: &mut [Packet; BURST], missed: &[u8]) {
        for &index in missed {
            let packet = &mut packets[usize::from(index) % BURST];
            if packet.flags & SYN != 0 {
                continue; // begins a connection, and looks for a vacancy itself
            }
            if let Some(slot) = self.table.glance_at_rest(packet.hash, packet.client) {
                packet.slot = slot;
                packet.word = self.table.at(slot);
                wire::prefetch(snapshot.transform_of(packet.word));
            }
        }
    }

    /// Removes expired connections, and those of removed dests, from some buckets of the table.
    pub fn sweep(&self, snapshot: &Snapshot, now: Tick, buckets: Range<usize>) {
        resolve::sweep(&self.table, snapshot, now, buckets);
    }
}

/// The port that all packets of a burst go out of, if there is one.
#[derive(Default)]
struct Common {
    count: usize,
    first: PortIndex,
    differ: PortIndex,
}

impl Common {
    #[inline]
    fn add(&mut self, port: PortIndex) {
        self.first = if self.count == 0 { port } else { self.first };
        self.differ |= port ^ self.first;
        self.count += 1;
    }

    fn of_all(&self, packets: usize) -> Option<PortIndex> {
        (self.count == packets && self.differ == 0).then_some(self.first)
    }
}
