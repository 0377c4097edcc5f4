//! The table's memory: huge pages, all of it there from the start.
//!
//! A large table is met at random, so with pages of 4 kB nearly every packet waits for a page walk besides the
//! line itself (measured in turn by `rvs-perf compare`: huge pages save 3 % of a packet's cycles at 1 M flows, 5 % at 10 M).
//! Linux is asked for huge pages and to provide the memory now: what a worker touched first would cost it a fault
//! and 2 MB of zeros in the middle of a burst. Where Linux refuses, the table works all the same, slower.
//!
//! The memory is the process' own, or that of a file on hugetlbfs or tmpfs, which is there when the process has died. For
//! whoever uses it there is no difference.

use std::fs::File;
use std::io;
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
        let memory = memmap2::MmapMut::map_anon(count * size_of::<Bucket>());
        let memory = memory.unwrap_or_else(|error| panic!("no memory for {count} buckets: {error}"));
        Buckets { memory: provided(memory), count }
    }

    /// Makes them.
    #[cfg(any(loom, miri))]
    pub fn new(count: usize) -> Self {
        Buckets { memory: (0..count).map(|_| Bucket::default()).collect(), count }
    }

    /// Makes them, of memory that is not there before it is touched. An error if there is no room for them in the address space.
    #[cfg(not(any(loom, miri)))]
    pub fn untouched(count: usize) -> io::Result<Self> {
        let memory =
            memmap2::MmapOptions::new().len(count * size_of::<Bucket>()).no_reserve_swap().map_anon()?;
        // Advice: a huge page would be two megabytes of zeros.
        let _ = memory.advise(memmap2::Advice::NoHugePage);
        Ok(Buckets { memory, count })
    }

    /// Makes them.
    #[cfg(any(loom, miri))]
    pub fn untouched(count: usize) -> io::Result<Self> {
        Ok(Buckets::new(count))
    }

    /// Those at the beginning of a file; an error if it is shorter.
    #[cfg(not(any(loom, miri)))]
    pub fn in_file(file: &File, count: usize) -> io::Result<Self> {
        let memory = mapped(file)?;
        if memory.len() < count * size_of::<Bucket>() {
            let message =
                format!("it has {} bytes; expected {count} buckets of {}", memory.len(), size_of::<Bucket>());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Buckets { memory: provided(memory), count })
    }

    /// Those at the beginning of a file.
    #[cfg(any(loom, miri))]
    pub fn in_file(_: &File, _: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writes into the beginning of a file that is as long already, as hugetlbfs wants it, which knows no write(2).
#[cfg(not(any(loom, miri)))]
pub fn write_mapped(file: &File, contents: &[u8]) -> io::Result<()> {
    let mut memory = mapped(file)?;
    let place = memory.get_mut(..contents.len()).ok_or(io::ErrorKind::InvalidInput)?;
    place.copy_from_slice(contents);
    Ok(())
}

/// The whole of a file, shared with it: munmap(2) of a part would not do on hugetlbfs.
#[cfg(not(any(loom, miri)))]
fn mapped(file: &File) -> io::Result<memmap2::MmapMut> {
    // SAFETY: who else maps or writes the file at the same time would break what a slice promises. It is in a directory
    // that only its owner can write and that this process has locked; here it is either new, or the table's and met as
    // atomics only. Who cuts it short ends the process by SIGBUS. Reason: there is no other way to have memory that
    // outlives the process, nor to write on hugetlbfs.
    unsafe { memmap2::MmapMut::map_mut(file) }
}

#[cfg(not(any(loom, miri)))]
fn provided(memory: memmap2::MmapMut) -> memmap2::MmapMut {
    use memmap2::Advice;

    // Advice; Linux before 5.14 does not know the second.
    let _ = memory.advise(Advice::HugePage);
    let _ = memory.advise(Advice::PopulateWrite);
    memory
}

impl Deref for Buckets {
    type Target = [Bucket];

    #[inline(always)]
    fn deref(&self) -> &[Bucket] {
        // SAFETY: the memory is ours alone (of a file: see `mapped`), lives as long as `self`, is aligned (a mapping: to
        // pages) and `count` buckets long or longer; the zeros of a new mapping are empty buckets, any other bytes are
        // words, too, and nobody accesses it but through here. Measured reason: see the module.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.count) }
    }
}
