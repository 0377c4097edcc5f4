//! A burst's way through the data path.
//!
//! Each stage is a loop over the burst, so that the memory that one packet waits for is loaded while the
//! others are worked on. A packet leaves the path as soon as its verdict is known; every packet gets
//! exactly one.

mod adopt;
mod at_risk;
mod classify;
mod explain;
mod express;
mod fragments;
mod ftp;
mod fullnat;
mod fullnat_proxy;
mod gate;
mod ipsec;
mod look_up;
mod packet;
mod parse;
mod persist;
mod related;
pub mod reset;
mod resolve;
mod rewrite;
mod route;
mod six;
mod snat;
mod split;
pub mod tell;
#[cfg(test)]
mod tests;
mod tunnel;
pub mod tunnel_errors;

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

pub use self::adopt::{News, adopt};
pub use self::explain::{Connection, Explanation, explain};
use self::fragments::Begun;
use self::packet::Work;
pub use self::packet::{Found, Owner, Side};
use self::resolve::Path;
pub use self::split::fragments;
use crate::changes::Changes;
use crate::clock::Tick;
use crate::counters::{Drop, Punt, WorkerCounters};
use crate::fib::PortIndex;
use crate::snapshot::Snapshot;
use crate::table::Table;

/// Packets in a burst, at the most.
pub const BURST: usize = 64;

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
    /// The VLAN tag that the device has taken out of it.
    fn vlan(&self) -> Option<u16> {
        None
    }
    /// The same, which is forgotten then.
    fn take_vlan(&mut self) -> Option<u16> {
        None
    }
    /// Makes it shorter by so many bytes in front; false, and it stays as it is, if there are not so many in one piece.
    fn advance(&mut self, count: usize) -> bool;
    /// Makes it longer by so many bytes in front, whatever is in them; false, and it stays as it is, if there is no room.
    fn prepend(&mut self, count: usize) -> bool;
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

    fn advance(&mut self, count: usize) -> bool {
        let is_long = count <= self.len();
        self.drain(..if is_long { count } else { 0 });
        is_long
    }

    fn prepend(&mut self, count: usize) -> bool {
        self.splice(0..0, std::iter::repeat_n(0, count));
        true
    }
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has been rewritten and goes out of a port.
    Forward(PortIndex),
    /// It concerns no service, and goes on out of a port, with a hop less.
    Route(PortIndex),
    /// It goes to Linux: as it came, or with [`Punt::Unresolved`] rewritten and to be sent.
    Punt(Punt),
    /// It goes nowhere.
    Drop(Drop),
    /// It waits: a fragment that has come before the first of its datagram ([`Engine::hold`]).
    Hold,
}

impl Verdict {
    /// What it means that a packet waits, for operators.
    pub const HOLD: &str = "It waits for the first fragment of its datagram, a second at the most.";
    /// What it means that a packet is routed.
    pub const ROUTE: &str = "It concerns no service, and goes on as a router passes it on.";
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
        /// The connection follows, and the packet is rewritten; and all that is done for IPv6.
        Rewrite = "rewrite",
        /// Given to the device that it goes out of, to Linux, or back to the pool.
        Transmit = "transmit",
    }
}

/// Somebody who wants to know when a stage of a burst is done, to measure it. `()` does not, and costs nothing.
pub trait Probe {
    /// Whether it wants to be told what packets are.
    const WATCHES: bool = false;

    /// All packets of the burst have gone through this stage.
    fn done(&mut self, stage: Stage);

    /// A packet of the burst is for a service or from an endpoint; nothing has been done for it yet.
    fn found(&mut self, _: &Found) {}
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
    changes: Option<Arc<Changes>>,
    /// Datagrams whose first fragment was in the last burst.
    begun: Begun,
}

impl Engine {
    /// The data path of the worker with this number.
    pub fn new(worker: usize, table: Arc<Table>, counters: Arc<WorkerCounters>) -> Self {
        let (fresh, begun) = (Cell::new((0, 0)), Begun::default());
        Engine { express: true, fresh, worker, table, counters, changes: None, begun }
    }

    /// The same data path, which notes the connections that it changes, if there is where.
    pub fn noting(self, changes: Option<Arc<Changes>>) -> Self {
        Engine { changes, ..self }
    }

    /// The same data path without the short way for packets of undisturbed connections. For tests, and to
    /// measure what the short way gains.
    pub fn without_express(self) -> Self {
        Engine { express: false, ..self }
    }

    /// Takes a burst that came in on a port through the data path:
    ///
    /// 1. parse: Ethernet, IPv4, TCP/UDP; what is odd leaves under a name, and IPv6 waits until all others are done;
    /// 2. classify: to a service, or from an endpoint; hash the client, prefetch its bucket;
    /// 3. look up: a glance at the bucket; prefetch what it leads to;
    /// 4. resolve: check the connection, or schedule and insert one; follow its state;
    /// 5. rewrite: addresses, ports, TTL (hop limit), MACs, checksums. For most packets 4 and 5 are one short step.
    ///
    /// `verdicts[i]` becomes the verdict on `burst[i]`; a burst has at most [`BURST`] packets. If all of them go
    /// out of one port, the answer is that port, but for bursts of IPv4 with fragments or ICMP errors, which do not go the whole way.
    pub fn process<F: Frame, P: Probe>(
        &self,
        snapshot: &Snapshot,
        now: Tick,
        port: PortIndex,
        burst: &mut [F],
        verdicts: &mut [Verdict; BURST],
        probe: &mut P,
    ) -> Option<PortIndex> {
        self.begun.clear();
        let mut work = Work::new();
        let mac = &snapshot.ports[usize::from(port)].mac;

        let path = Path { port: Some(port), ..Path::new(self, snapshot, now) };

        // 1. parse
        let six = parse::parse_all(&path, mac, burst, &mut work, verdicts);
        probe.done(Stage::Parse);

        // 2. classify
        classify::classify_all(&path, self.is_fresh(snapshot), &mut work, burst, verdicts);
        if P::WATCHES {
            work.packets[..work.count].iter().for_each(|packet| probe.found(&path.found(packet)));
        }
        probe.done(Stage::Classify);

        // 3. look up
        let order = look_up::look_up_all(snapshot, &self.table, &mut work);
        probe.done(Stage::LookUp);

        // 4. resolve, 5. rewrite
        let mut common = path.finish_all::<false, F>(&order, &mut work, burst, verdicts);
        if !six.is_empty() {
            six::process(&path, mac, &six, burst, verdicts, probe);
            common = common_port(&verdicts[..burst.len().min(BURST)]);
        }
        probe.done(Stage::Rewrite);
        common
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

    /// Removes expired connections, and those of removed dests, from some buckets of the table; frees local ports without one, as
    /// large a part of them; and forgets expired mappings of source NAT, again as large a part.
    pub fn sweep(&self, snapshot: &Snapshot, now: Tick, buckets: Range<usize>) {
        resolve::sweep(&self.table, snapshot, now, buckets.clone());
        snapshot.snats.sweep(now, buckets.clone(), self.table.buckets());
        for local in snapshot.locals() {
            local.sweep(&self.table, buckets.clone(), self.table.buckets());
        }
    }
}

/// The port that all packets go out of, if there is one.
fn common_port(verdicts: &[Verdict]) -> Option<PortIndex> {
    let Some(&Verdict::Forward(port)) = verdicts.first() else { return None };
    verdicts.iter().all(|&verdict| verdict == Verdict::Forward(port)).then_some(port)
}
