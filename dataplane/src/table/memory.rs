//! The table's memory: huge pages, all of it there from the start.
//!
//! A large table is met at random, so with pages of 4 kB nearly every packet waits for a page walk besides the
//! line itself (measured in turn by `rvs-perf compare`: huge pages save 3 % of a packet's cycles at 1 M flows, 5 % at 10 M).
//! Linux is asked for huge pages and to provide the memory now: what a worker touched first would cost it a fault
//! and 2 MB of zeros in the middle of a burst. Where Linux refuses, the table works all the same, slower.

use std::ops::Deref;

use super::Bucket;

/// So many empty buckets.
pub(super) struct Buckets {
    memory: Memory,
    count: usize,
}

#[cfg(not(any(loom, miri)))]
type Memory = memmap2::MmapMut;

/// loom's atomics are no plain memory, and miri knows no huge pages.
#[cfg(any(loom, miri))]
type Memory = Box<[Bucket]>;

impl Buckets {
    /// Makes them. Panics if there is no room for them in the address space, as every allocation does.
    #[cfg(not(any(loom, miri)))]
    pub fn new(count: usize) -> Self {
        use memmap2::{Advice, MmapMut};

        let memory = MmapMut::map_anon(count * size_of::<Bucket>());
        let memory = memory.unwrap_or_else(|error| panic!("no memory for {count} buckets: {error}"));
        // Advice; Linux before 5.14 does not know the second.
        let _ = memory.advise(Advice::HugePage);
        let _ = memory.advise(Advice::PopulateWrite);
        Buckets { memory, count }
    }

    /// Makes them.
    #[cfg(any(loom, miri))]
    pub fn new(count: usize) -> Self {
        Buckets { memory: (0..count).map(|_| Bucket::default()).collect(), count }
    }
}

impl Deref for Buckets {
    type Target = [Bucket];

    #[inline(always)]
    fn deref(&self) -> &[Bucket] {
        // SAFETY: the memory is ours alone, lives as long as `self`, is aligned (a mapping: to pages) and `count`
        // buckets long; the zeros of a new mapping are empty buckets, and nobody accesses it but through here.
        // Measured reason: see the module.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.count) }
    }
}
