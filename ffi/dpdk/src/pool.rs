//! Pools of packets.

use std::ptr::{self, NonNull};

use dpdk_sys::{rte_mbuf, rte_mempool};

use crate::batch::Batch;
use crate::eal::{Eal, c_string, tenants};
use crate::error::{Errno, Error};
use crate::lcore::Lcore;
use crate::mbuf::Mbuf;

/// A pool of packets of one size. It lives as long as the process.
#[derive(Debug)]
pub struct Mempool {
    raw: NonNull<rte_mempool>,
    name: String,
    size: u32,
    data_room: u16,
    /// Where it is, as DPDK says it.
    socket: i32,
}

// SAFETY: a pool is made for many threads: its ring is multi-producer and multi-consumer, and each known
// thread has a cache of its own; counting reads integers.
unsafe impl Send for Mempool {}
// SAFETY: as above.
unsafe impl Sync for Mempool {}

impl Mempool {
    /// Makes a pool in memory that is near the calling thread, as [`on`](Mempool::on) does.
    pub fn new(
        eal: &Eal,
        name: &str,
        mbufs: u32,
        cache: u32,
        data_room: u16,
    ) -> Result<&'static Mempool, Error> {
        Mempool::on(eal, eal.socket(), name, mbufs, cache, data_room)
    }

    /// Makes a pool on a socket (a NUMA node), or wherever there is room. It holds `mbufs` packets (best: a power of two, minus one) with room for `data_room` bytes
    /// each, of which the first [`HEADROOM`](crate::HEADROOM) stay free; see [`data_room`](crate::data_room).
    ///
    /// `cache` packets stay with each thread. Take at least four bursts, 512 at most: with a cache that
    /// a burst overflows, every burst goes to the shared ring, which was measured at 2.5 times the cost.
    pub fn on(
        eal: &Eal,
        socket: Option<u32>,
        name: &str,
        mbufs: u32,
        cache: u32,
        data_room: u16,
    ) -> Result<&'static Mempool, Error> {
        let _ = eal;
        // -1 stands for any.
        let socket = socket.map_or(-1, |socket| socket as i32);
        let c_name = c_string(name)?;
        // SAFETY: EAL runs, as `eal` shows; the name is terminated, and copied.
        let raw =
            unsafe { dpdk_sys::rte_pktmbuf_pool_create(c_name.as_ptr(), mbufs, cache, 0, data_room, socket) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(Error::Pool { name: name.to_owned(), mbufs, data_room, errno: Errno::last() });
        };
        let pool: &'static Mempool =
            Box::leak(Box::new(Mempool { raw, name: name.to_owned(), size: mbufs, data_room, socket }));
        tenants().pools.push(pool);
        Ok(pool)
    }

    /// Where it was asked to be, as DPDK says it.
    pub(crate) fn socket(&self) -> u32 {
        self.socket as u32
    }

    /// An empty packet, unless the pool is exhausted.
    #[inline]
    pub fn alloc(&self, lcore: &Lcore) -> Option<Mbuf> {
        let _ = lcore;
        // SAFETY: while there is an lcore EAL runs, and so the pool's memory is there.
        let raw = unsafe { dpdk_sys::rvs_pktmbuf_alloc(self.raw.as_ptr()) };
        // SAFETY: a packet fresh from the pool has no other owner.
        NonNull::new(raw).map(|raw| unsafe { Mbuf::from_raw(raw) })
    }

    /// Appends `count` empty packets to the batch: all of them, or none if the pool or the batch has
    /// too little left.
    pub fn alloc_bulk<const N: usize>(&self, lcore: &Lcore, batch: &mut Batch<N>, count: usize) -> bool {
        let _ = lcore;
        let (room, free) = batch.room();
        if count > free {
            return false;
        }
        // SAFETY: as in `alloc`; `room` has place for `free` pointers. The call writes all or none.
        let returned = unsafe { dpdk_sys::rvs_pktmbuf_alloc_bulk(self.raw.as_ptr(), room, count as u32) };
        if returned == 0 {
            // SAFETY: it wrote `count` packets that nobody else owns.
            unsafe { batch.extend_len(count) };
        }
        returned == 0
    }

    /// Packets that are in the pool or in the threads' caches: an exact number only while nobody works.
    pub fn available(&self) -> u32 {
        let tenants = tenants();
        if !tenants.running {
            return self.size;
        }
        // SAFETY: the pool is there as long as EAL runs, which the lock holds fast.
        unsafe { dpdk_sys::rte_mempool_avail_count(self.raw.as_ptr()) }
    }

    /// Packets that somebody holds: a device, a batch, a queue.
    pub fn in_use(&self) -> u32 {
        self.size.saturating_sub(self.available())
    }

    /// `in_use` for a caller that holds the tenants' lock and has seen EAL running.
    pub(crate) fn count_in_use(&self) -> u32 {
        // SAFETY: the pool is there as long as EAL runs.
        unsafe { dpdk_sys::rte_mempool_in_use_count(self.raw.as_ptr()) }
    }

    /// All of its packets.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Bytes a packet, headroom included.
    pub fn data_room(&self) -> u16 {
        self.data_room
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn as_ptr(&self) -> *mut rte_mempool {
        self.raw.as_ptr()
    }
}

/// Gives packets back to their pools, all at once.
///
/// # Safety
///
/// `first` leads `count` packets that the caller owns, and owns no more afterwards.
#[inline]
pub(crate) unsafe fn free_bulk(first: *mut *mut rte_mbuf, count: usize) {
    debug_assert!(!ptr::eq(first, ptr::null()));
    if count > 0 {
        // SAFETY: as the caller promises. EAL runs: `cleanup` refuses while a packet is out.
        unsafe { dpdk_sys::rte_pktmbuf_free_bulk(first, count as u32) };
    }
}
