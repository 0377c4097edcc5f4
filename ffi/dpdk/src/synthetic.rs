//! Queues without a device: packets that a [`Source`] makes come in, and what is sent goes back to its pool.
//!
//! For measuring what a router costs by itself. A burst takes the same way as on a device: through a table of
//! function pointers (`rte_eth_fp_ops`), out of the pool's cache and back into it, by functions that only a
//! pointer leads to. What is missing is a device's descriptors and the memory traffic of its DMA.

use std::ffi::c_void;
use std::ptr;

use dpdk_sys::{rte_eth_fp_ops as FastPath, rte_mbuf};

use crate::mbuf::Mbuf;
use crate::pool::{Mempool, free_bulk};
use crate::queue::{RxQueue, TxQueue};

/// Makes the packets of a synthetic receive queue.
pub trait Source: Send + 'static {
    /// Bytes of each packet.
    fn frame_length(&self) -> u16;

    /// Writes a burst: each packet is `frame_length` long, and has in it whatever was there before.
    fn fill(&mut self, burst: &mut [Mbuf]);
}

/// What the entry's data pointer leads to.
struct Device<S> {
    pool: &'static Mempool,
    source: S,
}

/// A pair of queues: one receives what the source makes, in packets of this pool; the other frees all.
///
/// What they are made of lives as long as the process, as a device's own structures would.
pub fn queues<S: Source>(pool: &'static Mempool, source: S) -> (RxQueue, TxQueue) {
    let device: *mut c_void = Box::into_raw(Box::new(Device { pool, source })).cast();
    let data = Box::into_raw(Box::new(device));
    let no_callback = Box::into_raw(Box::new(ptr::null_mut::<c_void>()));
    let mut ops =
        FastPath { rx_pkt_burst: Some(receive::<S>), tx_pkt_burst: Some(send), ..Default::default() };
    (ops.rxq.data, ops.rxq.clbk) = (data, no_callback);
    (ops.txq.data, ops.txq.clbk) = (data, no_callback);
    // SAFETY: one queue pair, number 0, of an entry that is never freed or written again, and of which there is
    // no other pair: it was made here. `receive` gets the pointer to its own `Device<S>`.
    unsafe { crate::queue::synthetic_pair(Box::leak(Box::new(ops))) }
}

/// # Safety
///
/// `device` leads to a `Device<S>` that nobody else uses now, and `mbufs` to room for `count` pointers.
unsafe extern "C" fn receive<S: Source>(device: *mut c_void, mbufs: *mut *mut rte_mbuf, count: u16) -> u16 {
    // SAFETY: as the caller promises: one thread polls a queue.
    let device = unsafe { &mut *device.cast::<Device<S>>() };
    let length = device.source.frame_length();
    // SAFETY: room for `count` pointers; the call writes all of them or none, each a packet of ours alone.
    let burst = unsafe {
        let pool = device.pool.as_ptr();
        if dpdk_sys::rvs_pktmbuf_alloc_bulk_sized(pool, mbufs, u32::from(count), length) != 0 {
            return 0;
        }
        std::slice::from_raw_parts_mut(mbufs.cast::<Mbuf>(), usize::from(count))
    };
    device.source.fill(burst);
    count
}

/// # Safety
///
/// `mbufs` leads `count` packets that the caller owns, and owns no more afterwards.
unsafe extern "C" fn send(_: *mut c_void, mbufs: *mut *mut rte_mbuf, count: u16) -> u16 {
    // SAFETY: as the caller promises.
    unsafe { free_bulk(mbufs, usize::from(count)) };
    count
}
