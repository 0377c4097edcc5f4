//! Queues: where a worker gets its packets and leaves them.
//!
//! What DPDK does in its inline functions `rte_eth_rx_burst` and `rte_eth_tx_burst` is done here in Rust,
//! over the same table (`rte_eth_fp_ops`). Per burst a call of the C shim would cost nothing that can be
//! measured (145 against 127 to 147 Mpps, within the noise); it is inline so that a release needs no
//! cross-language LTO to be as good as C. Callbacks that somebody hung on the queue (dpdk-pdump,
//! latencystats) are looked for as C does, which is free, and sent through the shim.

use std::cell::Cell;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, LazyLock};

use dpdk_sys::rte_eth_fp_ops as FastPath;

use crate::batch::Batch;
use crate::lcore::Lcore;
use crate::pool::free_bulk;
use crate::port::Claim;

/// One receive queue of a started port. It moves to its worker, and nobody else has it.
pub struct RxQueue(Queue);

/// One transmit queue of a started port. It moves to its worker, and nobody else has it.
pub struct TxQueue(Queue);

struct Queue {
    /// The port's entry in DPDK's table, which is a static.
    ops: *const FastPath,
    port: u16,
    queue: u16,
    /// While it lives the port is not stopped; synthetic queues have no port.
    claim: Option<Arc<Claim>>,
    not_sync: PhantomData<Cell<()>>,
}

// SAFETY: DPDK lets any one thread poll a queue. That it is one is seen to by `&mut self` and by there
// being no copies; `ops` points to a static that is written only while the port starts and stops.
unsafe impl Send for Queue {}

impl Queue {
    /// # Safety
    ///
    /// The port is started and has this queue, and no other `Queue` is made for it while the claim lives.
    unsafe fn new(claim: &Arc<Claim>, queue: u16) -> Queue {
        let port = claim.id();
        // SAFETY: a valid port id is an index of the table; only its address is taken.
        let ops = unsafe { (&raw const dpdk_sys::rte_eth_fp_ops).cast::<FastPath>().add(usize::from(port)) };
        Queue { ops, port, queue, claim: Some(Arc::clone(claim)), not_sync: PhantomData }
    }

    fn name(&self) -> &str {
        self.claim.as_ref().map_or("no device", |claim| claim.name())
    }
}

/// # Safety
///
/// The port is started and has this pair, and no other queue is made for it while the claim lives.
pub(crate) unsafe fn pair(claim: &Arc<Claim>, queue: u16) -> (RxQueue, TxQueue) {
    // SAFETY: as the caller promises, for both directions.
    unsafe { (RxQueue(Queue::new(claim, queue)), TxQueue(Queue::new(claim, queue))) }
}

/// A pair over an entry that is not DPDK's own.
///
/// # Safety
///
/// The entry's functions keep the contract of a driver's for queue 0, and this is its only pair.
pub(crate) unsafe fn synthetic_pair(ops: &'static FastPath) -> (RxQueue, TxQueue) {
    let queue = || Queue { ops, port: u16::MAX, queue: 0, claim: None, not_sync: PhantomData };
    (RxQueue(queue()), TxQueue(queue()))
}

/// A pair that leads nowhere: nothing comes in, and what is sent is dropped. A worker has it in the place of a device that is
/// away.
pub fn unconnected() -> (RxQueue, TxQueue) {
    /// An entry of a table as DPDK's.
    struct Nowhere(FastPath);
    // SAFETY: nobody writes it or what it points to.
    unsafe impl Send for Nowhere {}
    // SAFETY: as above.
    unsafe impl Sync for Nowhere {}
    static NO_CALLBACK: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    static NOWHERE: LazyLock<Nowhere> = LazyLock::new(|| {
        let mut ops = FastPath::default();
        (ops.rxq.clbk, ops.txq.clbk) = (NO_CALLBACK.as_ptr(), NO_CALLBACK.as_ptr());
        Nowhere(ops)
    });
    // SAFETY: it has no functions, so that any number of pairs may share it.
    unsafe { synthetic_pair(&NOWHERE.0) }
}

impl RxQueue {
    /// Appends what has come in to the batch, as far as that has room, and says how many.
    ///
    /// Give it room for a burst: vector drivers take fours or eights, and none into less.
    #[inline(always)]
    pub fn recv<const N: usize>(&mut self, lcore: &Lcore, batch: &mut Batch<N>) -> usize {
        let _ = lcore;
        let (room, free) = batch.room();
        let free = free as u16;
        // SAFETY: the claim keeps the port started, so its entry is valid and not being written;
        // `room` has place for `free` pointers, of which the driver fills as many as it returns.
        unsafe {
            let ops = &*self.0.ops;
            let index = usize::from(self.0.queue);
            let received = if callbacks(ops.rxq.clbk, index) {
                recv_slow(&self.0, room, free)
            } else {
                match ops.rx_pkt_burst {
                    Some(burst) => burst(*ops.rxq.data.add(index), room, free),
                    None => 0,
                }
            };
            let received = usize::from(received);
            batch.extend_len(received);
            received
        }
    }

    /// The id of its port.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// Its number in the port.
    pub fn queue(&self) -> u16 {
        self.0.queue
    }
}

impl TxQueue {
    /// Sends all packets of the batch, which is empty afterwards. What the device does not take now is
    /// dropped: a router that waits for one slow port is slow on all. Says how many it took.
    ///
    /// Packets must be contiguous: the port is not set up to gather chains.
    #[inline(always)]
    pub fn send<const N: usize>(&mut self, lcore: &Lcore, batch: &mut Batch<N>) -> usize {
        let _ = lcore;
        let count = batch.disown();
        let mbufs = batch.pointers();
        // SAFETY: the claim keeps the port started, so its entry is valid and not being written. The
        // first `count` are packets that are ours alone since `disown`: the driver owns those that it
        // takes, from the front, and the rest is freed.
        unsafe {
            let ops = &*self.0.ops;
            let index = usize::from(self.0.queue);
            let sent = if callbacks(ops.txq.clbk, index) {
                send_slow(&self.0, mbufs, count as u16)
            } else {
                match ops.tx_pkt_burst {
                    Some(burst) => burst(*ops.txq.data.add(index), mbufs, count as u16),
                    None => 0,
                }
            };
            let sent = usize::from(sent);
            if sent < count {
                free_tail(mbufs.add(sent), count - sent);
            }
            sent
        }
    }

    /// Has the driver do what it does beside sending: a bond sends its part of LACP when it is asked to send, if only nothing.
    pub fn attend(&mut self, lcore: &Lcore) {
        self.send(lcore, &mut Batch::<1>::new());
    }

    /// The id of its port.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// Its number in the port.
    pub fn queue(&self) -> u16 {
        self.0.queue
    }
}

/// Whether somebody hung callbacks on the queue; another process may be doing it right now.
///
/// # Safety
///
/// `table` is one of a valid entry, and the queue is one of its port.
#[inline(always)]
unsafe fn callbacks(table: *mut *mut c_void, queue: usize) -> bool {
    // SAFETY: the table has a place for every queue. Relaxed, as in C: the shim loads it again and
    // follows it from there.
    let first = unsafe { AtomicPtr::from_ptr(table.add(queue)) }.load(Ordering::Relaxed);
    !ptr::eq(first, ptr::null())
}

/// # Safety
///
/// As for the driver's own function.
#[cold]
unsafe fn recv_slow(queue: &Queue, room: *mut *mut dpdk_sys::rte_mbuf, free: u16) -> u16 {
    // SAFETY: as the caller promises.
    unsafe { dpdk_sys::rvs_rx_burst(queue.port, queue.queue, room, free) }
}

/// # Safety
///
/// As for the driver's own function.
#[cold]
unsafe fn send_slow(queue: &Queue, mbufs: *mut *mut dpdk_sys::rte_mbuf, count: u16) -> u16 {
    // SAFETY: as the caller promises.
    unsafe { dpdk_sys::rvs_tx_burst(queue.port, queue.queue, mbufs, count) }
}

/// # Safety
///
/// As for `free_bulk`.
#[cold]
unsafe fn free_tail(mbufs: *mut *mut dpdk_sys::rte_mbuf, count: usize) {
    // SAFETY: as the caller promises.
    unsafe { free_bulk(mbufs, count) }
}

impl fmt::Debug for RxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RxQueue({}, {})", self.0.name(), self.0.queue)
    }
}

impl fmt::Debug for TxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxQueue({}, {})", self.0.name(), self.0.queue)
    }
}
