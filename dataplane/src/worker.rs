//! The polling loop of a worker core.
//!
//! A worker owns one queue pair of every port and touches no other. It shares with the rest of the program
//! only what is made for it: the connection table, the published snapshot, its counters (which others
//! read), and the two queues of the slow path.
//!
//! ```text
//!   for each port:  rx burst -> engine -> output batches -> tx        (the fast path)
//!                                 |
//!                                 +--> punt queue ---> control ---> the port's twin in Linux
//!                                 +--> waiting fragments ---> engine again
//!   injected packets  <--- inject queue <--- control <--- twin
//!   a slice of the sweep over this worker's share of the table
//!   idle: spin, or sleep a little
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use dpdk::{Batch, Lcore, Mbuf, RxQueue, TxQueue, clock};

use crate::capture::{Switch, Tap};
use crate::changes::Changes;
use crate::clock::{TICKS_PER_SECOND, Tick};
use crate::counters::{Drop, Punt, WorkerCounters};
use crate::engine::tell::Allowance;
use crate::engine::{BURST, Engine, Frame, Probe, Stage, Verdict};
use crate::exchange::Exchange;
use crate::fib::PortIndex;
use crate::fragments::Waiting;
use crate::snapshot::{Snapshot, Subscriber};
use crate::table::Table;
use crate::vlan::{self, Vlans};

/// How long a sweep over the whole table takes.
pub(crate) const SWEEP_SECONDS: u64 = 4;

/// Buckets swept in one go at the most: some microseconds.
const SWEEP_SLICE: usize = 128;

/// Packets of Linux transmitted in one go, so that a flood from there cannot starve the fast path.
const INJECT_SLICE: usize = BURST;

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Polls on: the lowest latency, and all of a core.
    Busy,
    /// Polls on for a while, then sleeps a little, longer the longer nothing comes.
    Adaptive,
}

/// The way between the workers and Linux.
#[derive(Clone)]
pub struct SlowPath {
    /// Packets for Linux.
    pub punts: Arc<ArrayQueue<Punted>>,
    /// Packets of Linux for this worker, with the port that they go out of.
    pub injects: Arc<ArrayQueue<(PortIndex, Mbuf)>>,
    /// Wakes control after something was put into `punts`. It has to be cheap when control is awake already.
    pub doorbell: Arc<dyn Fn() + Send + Sync>,
}

/// A packet for control.
#[derive(Debug)]
pub struct Punted {
    /// The port that it came in on.
    pub port: PortIndex,
    /// What has become of it. Punted, it is for Linux: to be received, and with [`Punt::Unresolved`] to be sent. Dropped, its
    /// sender is to be told ([`crate::engine::tell`]).
    pub verdict: Verdict,
    /// The packet.
    pub mbuf: Mbuf,
}

/// All that a worker is made of.
pub struct Worker<P = ()> {
    /// Its number.
    pub index: usize,
    /// How many workers there are.
    pub count: usize,
    /// Its queue pair of each port with a device, in the order of the snapshot's ports.
    pub queues: Vec<(RxQueue, TxQueue)>,
    /// Those of these ports whose drivers want to be asked to send ten times a second, if only nothing: bonds with LACP.
    pub attended: Vec<PortIndex>,
    /// The tagged networks on these, which are the snapshot's other ports.
    pub vlans: Arc<Vlans>,
    /// The connections.
    pub table: Arc<Table>,
    /// The configuration.
    pub snapshots: Subscriber,
    /// Its counters.
    pub counters: Arc<WorkerCounters>,
    /// The way to Linux.
    pub slow_path: SlowPath,
    /// What to do when idle.
    pub idle: Idle,
    /// Whether somebody captures packets.
    pub capture: Arc<Switch>,
    /// Where it notes connections that change, if peers are to be told of them.
    pub changes: Option<Arc<Changes>>,
    /// Where it gets other queues for a port whose device is taken out or comes back.
    pub exchange: Arc<Exchange>,
    /// Whoever measures it; `()` in a router.
    pub probe: P,
}

impl<P: Probe> Worker<P> {
    /// Polls until told to stop, and gives its probe back. To be called on the worker's own thread, which is
    /// pinned to its core.
    #[inline(never)]
    pub fn run(self, lcore: &Lcore, stop: &AtomicBool) -> P {
        let Worker {
            index,
            count,
            queues,
            attended,
            vlans,
            table,
            mut snapshots,
            counters,
            slow_path,
            idle,
            capture,
            changes,
            exchange,
            mut probe,
        } = self;
        let engine = Engine::new(index, table.clone(), counters.clone()).noting(changes);
        let (mut receivers, transmitters): (Vec<RxQueue>, Vec<TxQueue>) = queues.into_iter().unzip();
        let mut output = Output::new(transmitters, vlans, counters.clone(), slow_path, Tap::new(capture));
        let mut sweeper = Sweeper::new(share(table.buckets(), index, count), clock::tsc(), clock::tsc_hz());
        let mut waiting = Waiting::default();
        let mut rest = Rest::new(idle);
        let ticks = Ticks::ours();

        while !stop.load(Ordering::Relaxed) {
            let snapshot = snapshots.latest();
            let tsc = clock::tsc();
            let now = ticks.at(tsc);

            if exchange.is_due() {
                exchange.take(&mut receivers, &mut output.transmitters);
            }
            let path = Path { lcore, engine: &engine, snapshot, now };
            let received = forward(&path, &mut receivers, &mut output, &mut waiting, &mut probe);
            let injected = output.inject(lcore);
            let swept = sweeper.due(tsc).map_or(0, |buckets| {
                let count = buckets.len();
                engine.sweep(snapshot, now, buckets);
                // Here, since a slice is due every some milliseconds, whatever comes in.
                for &port in &attended {
                    output.transmitters[usize::from(port)].attend(lcore);
                }
                count
            });
            if sweeper.finished(tsc) {
                counters.sweeps.add(1);
            }
            // Reported after the snapshot's last use in this round.
            counters.generation.set(snapshot.generation);
            // A sweep that is behind its time is work too.
            rest.after(received + injected + usize::from(swept == SWEEP_SLICE));
        }
        probe
    }
}

/// A round's surroundings.
struct Path<'a> {
    lcore: &'a Lcore,
    engine: &'a Engine,
    snapshot: &'a Snapshot,
    now: Tick,
}

/// One look at every port; how many packets there were.
#[inline(always)]
fn forward(
    path: &Path<'_>,
    receivers: &mut [RxQueue],
    output: &mut Output,
    waiting: &mut Waiting<Mbuf>,
    probe: &mut impl Probe,
) -> usize {
    let lcore = path.lcore;
    let mut received = 0;
    let mut burst: Batch<BURST> = Batch::new();
    let mut verdicts = [Verdict::Drop(Drop::Runt); BURST];
    for (port, receiver) in receivers.iter_mut().enumerate() {
        let port = port as PortIndex;
        let length = receiver.recv(lcore, &mut burst);
        let counters = &output.counters;
        counters.polls.add(1);
        if length == 0 {
            counters.empty_polls.add(1);
            continue;
        }
        probe.done(Stage::Receive);
        received += length;
        counters.bursts.add(1);
        counters.received.add(length as u64);
        if output.carriers[usize::from(port)] {
            take_sorted(path, port, &mut burst, output, waiting, &mut verdicts, probe);
        } else {
            take(path, port, &mut burst, output, waiting, &mut verdicts, probe);
        }
        if !waiting.is_empty() {
            output.settle(path, waiting, true);
        }
    }
    if received == 0 && !waiting.is_empty() {
        output.settle(path, waiting, false);
    }
    output.flush(lcore);
    probe.done(Stage::Transmit);
    received
}

/// The same for a port that carries tagged networks: what is of one of them is a burst of its own.
#[cold]
#[inline(never)]
fn take_sorted(
    path: &Path<'_>,
    wire: PortIndex,
    burst: &mut Batch<BURST>,
    output: &mut Output,
    waiting: &mut Waiting<Mbuf>,
    verdicts: &mut [Verdict; BURST],
    probe: &mut impl Probe,
) {
    let mut ports = [wire; BURST];
    for (mbuf, port) in burst.iter_mut().zip(&mut ports) {
        *port = output.vlans.receive(wire, mbuf);
    }
    // In order of what came first. What is of another network waits for the next pass.
    let mut left = 0..burst.len();
    while let Some(first) = left.next() {
        let port = ports[first];
        let (mut same, mut others) = (Batch::<BURST>::new(), Batch::<BURST>::new());
        let mut kept = 0;
        for (place, mbuf) in burst.drain().enumerate() {
            // There is room for a whole burst in each.
            if ports[place] == port {
                let _ = same.push(mbuf);
            } else {
                let _ = others.push(mbuf);
                ports[kept] = ports[place];
                kept += 1;
            }
        }
        take(path, port, &mut same, output, waiting, verdicts, probe);
        std::mem::swap(burst, &mut others);
        left = 0..kept;
    }
}

/// Takes what came in on a port through the data path, and gives it where it is to go.
#[inline(always)]
fn take(
    path: &Path<'_>,
    port: PortIndex,
    burst: &mut Batch<BURST>,
    output: &mut Output,
    waiting: &mut Waiting<Mbuf>,
    verdicts: &mut [Verdict; BURST],
    probe: &mut impl Probe,
) {
    let is_tapped = output.tap.before(burst.as_slice());
    let common = path.engine.process(path.snapshot, path.now, port, burst.as_mut_slice(), verdicts, probe);
    if is_tapped {
        output.tap.after(port, burst.as_slice(), verdicts, clock::tsc());
    }
    match common {
        Some(to) => output.send(path.lcore, to, burst),
        None => output.distribute(path, port, burst, verdicts, waiting),
    }
}

/// Where packets go: a batch and a queue for each port, Linux, back to the pool; and samples of them to who captures.
struct Output {
    transmitters: Vec<TxQueue>,
    /// Of each port, tagged networks among them.
    batches: Vec<Batch<BURST>>,
    vlans: Arc<Vlans>,
    /// Whether a port's wire has tagged networks.
    carriers: Vec<bool>,
    dropped: Batch<BURST>,
    counters: Arc<WorkerCounters>,
    slow_path: SlowPath,
    allowance: Allowance,
    tap: Tap,
}

impl Output {
    fn new(
        transmitters: Vec<TxQueue>,
        vlans: Arc<Vlans>,
        counters: Arc<WorkerCounters>,
        slow_path: SlowPath,
        tap: Tap,
    ) -> Self {
        let carriers: Vec<bool> = (0..).zip(&transmitters).map(|(port, _)| vlans.are_on(port)).collect();
        let batches = (0..carriers.len() + vlans.len()).map(|_| Batch::new()).collect();
        let (dropped, allowance) = (Batch::new(), Allowance::default());
        Output { transmitters, batches, vlans, carriers, dropped, counters, slow_path, allowance, tap }
    }

    /// Sends a whole burst out of one port, behind what waits for it already.
    fn send(&mut self, lcore: &Lcore, port: PortIndex, burst: &mut Batch<BURST>) {
        let port = usize::from(port);
        if !self.batches[port].is_empty() {
            self.flush_port(lcore, port);
        }
        match self.transmitters.get_mut(port) {
            Some(transmitter) => transmit(transmitter, lcore, burst, &self.counters),
            None => self.send_tagged(lcore, port, burst),
        }
    }

    /// Sends a whole burst to a tagged network.
    #[cold]
    #[inline(never)]
    fn send_tagged(&mut self, lcore: &Lcore, port: usize, burst: &mut Batch<BURST>) {
        let Some(tag) = self.vlans.tag(port as PortIndex) else { return burst.clear() };
        let mut tagged: Batch<BURST> = Batch::new();
        for mut mbuf in burst.drain() {
            // The headroom of a packet is far larger than all headers that are put in front of one.
            if vlan::put(&mut mbuf, tag.id) {
                let _ = tagged.push(mbuf);
            } else {
                self.counters.dropped(Drop::TxFull, 1);
            }
        }
        transmit(&mut self.transmitters[usize::from(tag.port)], lcore, &mut tagged, &self.counters);
    }

    /// Gives every packet of a burst where its verdict says.
    fn distribute(
        &mut self,
        path: &Path<'_>,
        from: PortIndex,
        burst: &mut Batch<BURST>,
        verdicts: &[Verdict; BURST],
        waiting: &mut Waiting<Mbuf>,
    ) {
        let mut punted = false;
        for (mbuf, &verdict) in burst.drain().zip(verdicts) {
            if verdict != Verdict::Hold {
                punted |= self.place(path, from, mbuf, verdict);
            } else if let Some((mbuf, reason)) = path.engine.hold(waiting, path.now, from, mbuf) {
                punted |= self.place(path, from, mbuf, Verdict::Drop(reason));
            }
        }
        self.done(punted);
    }

    /// Gives fragments that wait no more where their verdicts say.
    #[cold]
    fn settle(&mut self, path: &Path<'_>, waiting: &mut Waiting<Mbuf>, is_busy: bool) {
        let mut punted = false;
        path.engine.settle(path.snapshot, path.now, waiting, is_busy, |from, mbuf, verdict| {
            punted |= self.place(path, from, mbuf, verdict);
        });
        self.done(punted);
        self.counters.waiting.set(waiting.len() as u64);
    }

    /// Gives a packet where its verdict says; whether control has to be woken for it.
    #[inline(always)]
    fn place(&mut self, path: &Path<'_>, from: PortIndex, mbuf: Mbuf, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Forward(port) | Verdict::Route(port) => {
                let port = usize::from(port);
                if let Err(mbuf) = self.batches[port].push(mbuf) {
                    self.flush_port(path.lcore, port);
                    // The batch is empty now, so this cannot fail; if it did, dropping frees the packet.
                    let _ = self.batches[port].push(mbuf);
                }
                false
            }
            Verdict::Punt(reason) => self.punt(from, mbuf, reason),
            Verdict::Drop(reason) => {
                self.counters.dropped(reason, 1);
                if self.allowance.take(reason, path.now) {
                    return self.hand_over(Punted { port: from, verdict, mbuf });
                }
                let _ = self.dropped.push(mbuf);
                false
            }
            // Whoever waits has been taken aside.
            Verdict::Hold => false,
        }
    }

    /// Gives what was dropped back to its pool, and wakes control if something was put there for it.
    fn done(&mut self, punted: bool) {
        self.dropped.clear();
        if punted {
            (self.slow_path.doorbell)();
        }
    }

    fn flush(&mut self, lcore: &Lcore) {
        for port in 0..self.batches.len() {
            if !self.batches[port].is_empty() {
                self.flush_port(lcore, port);
            }
        }
    }

    fn flush_port(&mut self, lcore: &Lcore, port: usize) {
        match self.transmitters.get_mut(port) {
            Some(transmitter) => transmit(transmitter, lcore, &mut self.batches[port], &self.counters),
            None => {
                let mut burst = std::mem::take(&mut self.batches[port]);
                self.send_tagged(lcore, port, &mut burst);
            }
        }
    }

    /// Hands a packet to Linux; whether there was room.
    ///
    /// The last quarter of the queue is kept for ARP, neighbour discovery and for what real servers answer to health checks, so that a
    /// flood of packets for Linux does not make all servers look dead.
    fn punt(&self, from: PortIndex, mbuf: Mbuf, reason: Punt) -> bool {
        let vital = matches!(reason, Punt::NotIp | Punt::Neighbour | Punt::ServerReply);
        let punted = Punted { port: from, verdict: Verdict::Punt(reason), mbuf };
        let taken = if vital { self.slow_path.punts.push(punted).is_ok() } else { self.hand_over(punted) };
        if taken {
            self.counters.punted(reason, 1);
        } else {
            self.counters.dropped(Drop::PuntFull, 1);
        }
        taken
    }

    /// Hands a packet to control, if the queue has room for what is not vital.
    fn hand_over(&self, punted: Punted) -> bool {
        let punts = &self.slow_path.punts;
        punts.len() < punts.capacity() / 4 * 3 && punts.push(punted).is_ok()
    }

    /// Transmits what Linux has sent on the twins; how many packets that were.
    fn inject(&mut self, lcore: &Lcore) -> usize {
        let injects = &self.slow_path.injects;
        let mut taken = 0;
        // `is_empty` costs two loads; `pop` on an empty queue costs a fence.
        while taken < INJECT_SLICE && !injects.is_empty() {
            let Some((port, mut mbuf)) = injects.pop() else { break };
            taken += 1;
            let port = match self.vlans.tag(port) {
                Some(tag) if vlan::put(&mut mbuf, tag.id) => tag.port,
                Some(_) => {
                    self.counters.inject_dropped.add(1);
                    continue;
                }
                None => port,
            };
            let mut one: Batch<1> = Batch::new();
            let _ = one.push(mbuf);
            let sent = self.transmitters[usize::from(port)].send(lcore, &mut one);
            self.counters.injected.add(sent as u64);
            self.counters.inject_dropped.add(1 - sent as u64);
        }
        taken
    }
}

fn transmit(queue: &mut TxQueue, lcore: &Lcore, batch: &mut Batch<BURST>, counters: &WorkerCounters) {
    let length = batch.len();
    let sent = queue.send(lcore, batch);
    counters.forwarded.add(sent as u64);
    if sent < length {
        counters.dropped(Drop::TxFull, (length - sent) as u64);
    }
}

impl Frame for Mbuf {
    fn bytes(&self) -> &[u8] {
        self.data()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.data_mut()
    }

    fn length(&self) -> usize {
        self.packet_len() as usize
    }

    fn is_vlan_stripped(&self) -> bool {
        Mbuf::is_vlan_stripped(self)
    }

    fn vlan(&self) -> Option<u16> {
        self.vlan_tci()
    }

    fn take_vlan(&mut self) -> Option<u16> {
        Mbuf::take_vlan(self)
    }

    fn advance(&mut self, count: usize) -> bool {
        Mbuf::advance(self, count)
    }

    fn prepend(&mut self, count: usize) -> bool {
        Mbuf::prepend(self, count).is_some()
    }

    fn prefetch(&self) {
        self.prefetch_data();
    }
}

/// This worker's share of the table.
fn share(buckets: usize, index: usize, count: usize) -> Range<usize> {
    buckets * index / count..buckets * (index + 1) / count
}

/// Turns the time stamp counter into ticks. The counter goes on over the end of a process; how much of it is a tick is
/// what EAL has measured, which may be a little else in the next one.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    per_tick: u64,
}

impl Ticks {
    fn new(tsc_hz: u64) -> Self {
        Ticks::with(tsc_hz / u64::from(TICKS_PER_SECOND))
    }

    /// Those of this process.
    pub fn ours() -> Self {
        Ticks::new(clock::tsc_hz())
    }

    /// Ticks of so much of the counter each.
    pub fn with(per_tick: u64) -> Self {
        Ticks { per_tick: per_tick.max(1) }
    }

    /// How much of the counter one is.
    pub fn per_tick(&self) -> u64 {
        self.per_tick
    }

    /// The tick at which the counter shows this.
    pub fn at(&self, tsc: u64) -> Tick {
        Tick(tsc / self.per_tick)
    }
}

/// The current tick, for readers of the table that are not workers.
pub fn now() -> Tick {
    Ticks::ours().at(clock::tsc())
}

/// Paces the sweep: a slice now and then, the whole share in four seconds of a counter.
pub struct Sweeper {
    share: Range<usize>,
    next: usize,
    began: u64,
    tsc_per_sweep: u64,
}

impl Sweeper {
    /// Begins now, as the counter shows it, which makes `tsc_hz` steps a second.
    pub fn new(share: Range<usize>, tsc: u64, tsc_hz: u64) -> Self {
        Sweeper { next: share.start, share, began: tsc, tsc_per_sweep: (tsc_hz * SWEEP_SECONDS).max(1) }
    }

    /// The buckets to sweep now, if any are due.
    pub fn due(&mut self, tsc: u64) -> Option<Range<usize>> {
        let elapsed = u128::from(tsc.saturating_sub(self.began).min(self.tsc_per_sweep));
        let position = elapsed * self.share.len() as u128 / u128::from(self.tsc_per_sweep);
        let due = self.share.start + position as usize;
        if due <= self.next {
            return None;
        }
        let slice = self.next..due.min(self.next + SWEEP_SLICE);
        self.next = slice.end;
        Some(slice)
    }

    /// Whether the last slice completed a sweep; then the next one begins.
    pub fn finished(&mut self, tsc: u64) -> bool {
        let finished = self.next >= self.share.end;
        if finished {
            self.next = self.share.start;
            // From the end of the period, not from now, so that a worker that was kept from sweeping catches
            // up; but not more than one period, or a night of sleep would be a day of sweeping.
            self.began = (self.began + self.tsc_per_sweep).max(tsc.saturating_sub(self.tsc_per_sweep));
        }
        finished
    }
}

/// What to do between looks.
struct Rest {
    idle: Idle,
    empty_rounds: u32,
}

impl Rest {
    /// Empty rounds before the first sleep, and between two lengths of sleep.
    const PATIENCE: u32 = 64;
    const SHORTEST: Duration = Duration::from_micros(20);
    /// The longest sleep is the latency that the first packet after a pause may meet.
    const LONGEST: Duration = Duration::from_micros(500);

    fn new(idle: Idle) -> Self {
        Rest { idle, empty_rounds: 0 }
    }

    fn after(&mut self, packets: usize) {
        if packets > 0 {
            self.empty_rounds = 0;
            return;
        }
        if self.idle == Idle::Busy {
            std::hint::spin_loop();
            return;
        }
        self.empty_rounds = self.empty_rounds.saturating_add(1);
        match Self::nap(self.empty_rounds) {
            Some(nap) => std::thread::sleep(nap),
            None => std::hint::spin_loop(),
        }
    }

    /// How long to sleep after so many empty rounds.
    fn nap(empty_rounds: u32) -> Option<Duration> {
        let step = (empty_rounds / Self::PATIENCE).checked_sub(1)?;
        Some(Self::SHORTEST.saturating_mul(1 << step.min(8)).min(Self::LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_visits_every_bucket_of_the_share_once_and_in_time() {
        let mut sweeper = Sweeper::new(share(1000, 1, 3), 0, 1000);
        let mut visited = Vec::new();
        let mut tsc = 0;
        while !sweeper.finished(tsc) {
            tsc += 7;
            visited.extend(sweeper.due(tsc).into_iter().flatten());
        }
        assert_eq!(visited, (333..666).collect::<Vec<_>>());
        assert!((4000..4020).contains(&tsc), "a sweep takes {SWEEP_SECONDS} s of 1000 cycles, not {tsc}");
        assert_eq!(sweeper.due(tsc), None, "the next one has just begun");
    }

    #[test]
    fn shares_cover_the_table() {
        let shares: Vec<_> = (0..7).map(|index| share(100, index, 7)).collect();
        assert_eq!(shares.iter().map(|share| share.len()).sum::<usize>(), 100);
        assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
    }

    #[test]
    fn naps_grow_and_stay_short() {
        assert_eq!(Rest::nap(1), None);
        assert_eq!(Rest::nap(64), Some(Duration::from_micros(20)));
        assert_eq!(Rest::nap(128), Some(Duration::from_micros(40)));
        assert_eq!(Rest::nap(u32::MAX), Some(Rest::LONGEST));
    }
}
