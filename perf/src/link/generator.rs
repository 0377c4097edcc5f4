//! Sends at a rate, counts what comes back, and measures how long it took: on one core, in turns.
//!
//! The time-stamp counter paces bursts, which are small at low rates (what goes in a microsecond and a half), so that
//! the last packet of a burst does not wait long for the others. When something takes the core away, what should
//! have been sent meanwhile is left out, not sent in a heap: a heap would overrun the router's queue, and that would
//! be the generator's loss. The longest time without a look tells that it happened.
//!
//! One packet a burst carries its time of departure and, behind it, the same inverted: by that it is known, and the
//! checksum stays what it is.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dpdk::{Batch, Eal, Lcore, Mbuf, Mempool, Port, RxQueue, Settings, Started, TxQueue, clock};
use harness::wait;
use hdrhistogram::Histogram;

use super::traffic::{Marks, Traffic};
use super::wire::{DESCRIPTORS, Link};

/// Packets sent at once at the most, and received at once.
const BURST: usize = 64;
/// Bursts that may be sent late.
const CATCH_UP: f64 = 4.0;
/// Seconds late at once that are not due to the generator itself.
const AWAY: f64 = 20e-6;
const PACKETS: u32 = 16_383;
const POOL_CACHE: u32 = 512;
/// After so long without a packet nothing is on its way any more.
const QUIET: Duration = Duration::from_millis(5);

/// One end of a link: EAL, a pool, a port, and the thread that polls, which is the one that makes it.
pub struct Generator {
    rx: RxQueue,
    tx: TxQueue,
    pool: &'static Mempool,
    lcore: Lcore,
    _port: Port<Started>,
    _eal: Eal,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Packets a second; infinite for all that the generator can.
    pub rate: f64,
    /// How long.
    pub duration: Duration,
}

/// What became of it.
pub struct Trial {
    /// Packets sent, and those that the full ring did not take: in a wire they would have been lost at its end.
    pub sent: u64,
    /// Packets that came back.
    pub received: u64,
    /// How long sending took, without the time in which something else had the core.
    pub took: Duration,
    /// The longest time in which the generator looked at nothing.
    pub gap: Duration,
    /// How long packets took, in cycles of the time-stamp counter.
    pub latency: Histogram<u64>,
}

impl Trial {
    /// Packets sent a second.
    pub fn offered(&self) -> f64 {
        self.sent as f64 / self.took.as_secs_f64()
    }

    /// Packets received a second.
    pub fn passed(&self) -> f64 {
        self.received as f64 / self.took.as_secs_f64()
    }

    /// Share of the packets that did not come back.
    pub fn loss(&self) -> f64 {
        self.sent.saturating_sub(self.received) as f64 / self.sent.max(1) as f64
    }
}

impl Generator {
    /// Starts EAL on this thread, which must be pinned to this core already, and connects to a router that waits behind
    /// the socket.
    ///
    /// A process can do so once: memif, when a client's port is closed, also closes the files of EAL's own memory.
    pub fn connect(core: usize, hugepages: bool, link: Link, socket: &Path) -> Result<Generator> {
        let eal = Eal::init(&arguments(core, hugepages)).context("cannot start DPDK")?;
        let pool = Mempool::new(&eal, "generator", PACKETS, POOL_CACHE, dpdk::data_room(1500))?;
        let (name, devargs) = link.generator(socket);
        eal.probe(&devargs)?;
        let settings = Settings {
            queues: 1,
            descriptors: DESCRIPTORS,
            mtu: 1500,
            rss: None,
            pool,
            mac: None,
            promiscuous: true,
        };
        let (port, mut queues) = Port::by_name(&eal, name)?.configure(settings)?;
        let (rx, tx) = queues.pop().context("a port has queues")?;
        wait::until("the link is up", wait::PATIENCE, || {
            ensure!(port.link()?.up, "the router's end is not there");
            Ok(())
        })?;
        Ok(Generator { rx, tx, pool, lcore: eal.main_lcore()?, _port: port, _eal: eal })
    }

    /// Sends by plan until the time is over, then waits for the last to come back.
    pub fn run(&mut self, traffic: &mut Traffic, plan: Plan) -> Result<Trial> {
        let hz = clock::tsc_hz() as f64;
        let burst = (plan.rate * 1.5e-6).ceil().clamp(1.0, BURST as f64) as usize;
        let interval = hz * burst as f64 / plan.rate;
        let length = (plan.duration.as_secs_f64() * hz) as u64;
        let mut tally = Tally { received: 0, latency: Histogram::new_with_max(hz as u64 * 100, 3)? };
        let (mut sent, mut gap, mut due, mut away) = (0, 0, 0.0, 0.0);
        let start = clock::tsc();
        let mut last = start;
        let end = loop {
            let now = clock::tsc();
            gap = gap.max(now - last);
            last = now;
            if now - start >= length {
                break now;
            }
            let elapsed = (now - start) as f64;
            if elapsed >= due {
                sent += self.send(traffic, burst)?;
                due += interval;
                let late = elapsed - CATCH_UP * interval - due;
                if late > 0.0 {
                    due += late;
                    // Less is the generator being slow.
                    if late > hz * AWAY {
                        away += late;
                    }
                }
            }
            self.receive(traffic, &mut tally);
        };
        let quiet = (QUIET.as_secs_f64() * hz) as u64;
        let mut seen = clock::tsc();
        // A second in which it never was quiet: somebody sends who should not.
        while clock::tsc() - seen < quiet && clock::tsc() - end < hz as u64 {
            if self.receive(traffic, &mut tally) > 0 {
                seen = clock::tsc();
            }
        }
        let seconds = |cycles: u64| Duration::from_secs_f64(cycles as f64 / hz);
        let Tally { received, latency } = tally;
        let took = seconds(end - start - away as u64);
        Ok(Trial { sent, received, took, gap: seconds(gap), latency })
    }

    /// How many were sent, taken or not.
    #[inline]
    fn send(&mut self, traffic: &mut Traffic, count: usize) -> Result<u64> {
        let lcore = &self.lcore;
        let mut batch: Batch<BURST> = Batch::new();
        let allocated = self.pool.alloc_bulk(lcore, &mut batch, count);
        ensure!(allocated, "the generator's pool is empty: {} packets are out", self.pool.in_use());
        for mbuf in batch.iter_mut() {
            traffic.write(mbuf);
        }
        if let Some(last) = batch.as_mut_slice().last_mut() {
            last.mark(clock::tsc());
        }
        self.tx.send(lcore, &mut batch);
        Ok(count as u64)
    }

    #[inline]
    fn receive(&mut self, traffic: &Traffic, tally: &mut Tally) -> usize {
        let mut batch: Batch<BURST> = Batch::new();
        let count = self.rx.recv(&self.lcore, &mut batch);
        if count > 0 {
            let now = clock::tsc();
            for mbuf in batch.iter() {
                tally.count(traffic, mbuf, now);
            }
        }
        count
    }
}

fn arguments(core: usize, hugepages: bool) -> Vec<String> {
    let memory: &[&str] =
        if hugepages { &["--in-memory", "-m", "64"] } else { &["--no-shconf", "--no-huge", "-m", "128"] };
    // Both kinds of link share memory by file; packed rings are read by vectors only of this width.
    let others = ["--no-pci", "--no-telemetry", "--single-file-segments", "--force-max-simd-bitwidth=512"];
    let own = ["--log-level=*:error".to_owned(), "--file-prefix=generator".to_owned()];
    let core = ["-l".to_owned(), core.to_string()];
    memory.iter().chain(&others).map(|&word| word.to_owned()).chain(own).chain(core).collect()
}

/// What came back.
struct Tally {
    received: u64,
    latency: Histogram<u64>,
}

impl Tally {
    #[inline]
    fn count(&mut self, traffic: &Traffic, mbuf: &Mbuf, now: u64) {
        if !traffic.is_own(mbuf.data()) {
            return;
        }
        self.received += 1;
        if let Some(departed) = mbuf.marked() {
            self.latency.saturating_record(now.saturating_sub(departed));
        }
    }
}
