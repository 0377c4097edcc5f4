//! Up to N packets, in place.

use std::fmt;
use std::mem::{self, MaybeUninit};
use std::slice;

use dpdk_sys::rte_mbuf;

use crate::mbuf::Mbuf;
use crate::pool::free_bulk;

/// Up to `N` packets, owned, in one array: what a queue fills and empties. No allocation, and what is
/// left in it when it is dropped or cleared goes back to the pools in one call.
///
/// The array is one of pointers, as DPDK's bursts want it: `Mbuf` is `repr(transparent)` over one.
pub struct Batch<const N: usize> {
    /// The first `len` are packets.
    mbufs: [MaybeUninit<Mbuf>; N],
    len: usize,
}

impl<const N: usize> Batch<N> {
    /// A batch without packets.
    pub const fn new() -> Batch<N> {
        const { assert!(N > 0 && N <= u16::MAX as usize, "a burst counts in 16 bits") };
        Batch { mbufs: [const { MaybeUninit::uninit() }; N], len: 0 }
    }

    /// How many packets there are.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether none can be added.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.len == N
    }

    /// The packets.
    #[inline(always)]
    pub fn as_slice(&self) -> &[Mbuf] {
        // SAFETY: the first `len` are packets.
        unsafe { slice::from_raw_parts(self.mbufs.as_ptr().cast(), self.len) }
    }

    /// The packets, to be changed in place.
    #[inline(always)]
    pub fn as_mut_slice(&mut self) -> &mut [Mbuf] {
        // SAFETY: the first `len` are packets.
        unsafe { slice::from_raw_parts_mut(self.mbufs.as_mut_ptr().cast(), self.len) }
    }

    /// The packets, one by one.
    #[inline(always)]
    pub fn iter(&self) -> slice::Iter<'_, Mbuf> {
        self.as_slice().iter()
    }

    /// The packets, one by one, to be changed.
    #[inline(always)]
    pub fn iter_mut(&mut self) -> slice::IterMut<'_, Mbuf> {
        self.as_mut_slice().iter_mut()
    }

    /// Adds a packet behind the others, or gives it back if there is no room.
    #[inline(always)]
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        match self.mbufs.get_mut(self.len) {
            Some(place) => {
                place.write(mbuf);
                self.len += 1;
                Ok(())
            }
            None => Err(mbuf),
        }
    }

    /// Takes the last packet.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<Mbuf> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: it was the last of the packets, and counts no more.
        Some(unsafe { self.mbufs[self.len].assume_init_read() })
    }

    /// Takes all packets, in order: the way to share them out to other batches. The batch is empty
    /// afterwards; what the iterator still has when it is dropped goes back to the pools in one call.
    #[inline(always)]
    pub fn drain(&mut self) -> Drain<'_> {
        let len = mem::take(&mut self.len);
        // SAFETY: the first `len` were packets, and count no more: the iterator owns them.
        Drain { left: unsafe { slice::from_raw_parts_mut(self.mbufs.as_mut_ptr(), len) } }
    }

    /// Gives all packets back to their pools, in one call.
    #[inline]
    pub fn clear(&mut self) {
        let len = mem::take(&mut self.len);
        // SAFETY: the first `len` were packets of ours, and count no more.
        unsafe { free_bulk(self.pointers(), len) };
    }

    /// The array as DPDK sees it.
    #[inline(always)]
    pub(crate) fn pointers(&mut self) -> *mut *mut rte_mbuf {
        self.mbufs.as_mut_ptr().cast()
    }

    /// Where the next packets go, and how many of them have room.
    #[inline(always)]
    pub(crate) fn room(&mut self) -> (*mut *mut rte_mbuf, usize) {
        let free = N - self.len;
        // SAFETY: `len` is at most N, so this points into the array or just behind it.
        (unsafe { self.pointers().add(self.len) }, free)
    }

    /// # Safety
    ///
    /// `count` packets that nobody else owns were written to `room`.
    #[inline(always)]
    pub(crate) unsafe fn extend_len(&mut self, count: usize) {
        debug_assert!(self.len + count <= N);
        self.len += count;
    }

    /// Forgets the packets without giving them back, and says how many there were.
    #[inline(always)]
    pub(crate) fn disown(&mut self) -> usize {
        mem::take(&mut self.len)
    }
}

impl<const N: usize> Default for Batch<N> {
    fn default() -> Self {
        Batch::new()
    }
}

impl<const N: usize> Drop for Batch<N> {
    fn drop(&mut self) {
        self.clear();
    }
}

impl<const N: usize> fmt::Debug for Batch<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Takes the packets of a batch one by one: [`Batch::drain`].
#[derive(Debug)]
pub struct Drain<'a> {
    /// All of these are packets, and ours.
    left: &'a mut [MaybeUninit<Mbuf>],
}

impl Iterator for Drain<'_> {
    type Item = Mbuf;

    #[inline(always)]
    fn next(&mut self) -> Option<Mbuf> {
        let (first, rest) = mem::take(&mut self.left).split_first_mut()?;
        self.left = rest;
        // SAFETY: it was one of the packets left, and is none of them any more.
        Some(unsafe { first.assume_init_read() })
    }

    #[inline(always)]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left.len(), Some(self.left.len()))
    }
}

impl ExactSizeIterator for Drain<'_> {}

impl Drop for Drain<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the packets left are ours, and gone with us.
        unsafe { free_bulk(self.left.as_mut_ptr().cast(), self.left.len()) };
    }
}
