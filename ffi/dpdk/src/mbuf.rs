//! One packet.

use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::fmt;
use std::ptr::NonNull;
use std::slice;

use dpdk_sys::{rte_mbuf, rvs_mbuf};

use crate::pool::free_bulk;

/// A packet, owned. Dropped, it goes back to its pool; many are better dropped in a
/// [`Batch`](crate::Batch).
///
/// ```text
///   buf_addr          data_off                    data_off + data_len                  buf_len
///      |   headroom      |            data               |           tailroom             |
///      +-----------------+-------------------------------+--------------------------------+
///                          data(), data_mut()               append() takes from here
/// ```
///
/// A packet longer than its buffer is a chain of segments. RVS sizes its pools and ports so that there
/// are none ([`Settings`](crate::Settings)); a device may still hand one over, so ask
/// [`is_contiguous`](Mbuf::is_contiguous) before taking `data` for all of it.
///
/// Nothing here makes a second reference to the data of a packet (DPDK's clones), so `&mut Mbuf` is alone
/// with it.
#[repr(transparent)]
pub struct Mbuf(NonNull<rvs_mbuf>);

// SAFETY: a packet is plain memory with one owner, and pools take packets back from any thread.
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// # Safety
    ///
    /// `raw` is a packet that the caller owns, and owns no more afterwards.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(raw: NonNull<rte_mbuf>) -> Mbuf {
        Mbuf(raw.cast())
    }

    #[inline(always)]
    fn fields(&self) -> &rvs_mbuf {
        // SAFETY: the packet is ours, and rvs_mbuf has the layout of rte_mbuf (asserted in shim.c).
        unsafe { self.0.as_ref() }
    }

    #[inline(always)]
    fn fields_mut(&mut self) -> &mut rvs_mbuf {
        // SAFETY: as in `fields`, and `&mut self` makes us the only one who looks.
        unsafe { self.0.as_mut() }
    }

    #[inline(always)]
    fn data_ptr(&self) -> *mut u8 {
        let fields = self.fields();
        // SAFETY: DPDK keeps data_off <= buf_len, and so do `append` and its like.
        unsafe { fields.buf_addr.cast::<u8>().add(usize::from(fields.data_off)) }
    }

    /// The bytes of the first segment: the whole packet, if it [is contiguous](Mbuf::is_contiguous).
    #[inline(always)]
    pub fn data(&self) -> &[u8] {
        // SAFETY: data_len bytes from data_off on are inside the buffer, which is ours. What is in them
        // was written by the device, by us, or by whoever had the memory before: bytes in any case.
        unsafe { slice::from_raw_parts(self.data_ptr(), usize::from(self.fields().data_len)) }
    }

    /// As [`data`](Mbuf::data), to be changed.
    #[inline(always)]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`, and there is one reference to the buffer: ours.
        unsafe { slice::from_raw_parts_mut(self.data_ptr(), usize::from(self.fields().data_len)) }
    }

    /// The length of the packet, over all its segments.
    #[inline(always)]
    pub fn packet_len(&self) -> u32 {
        self.fields().pkt_len
    }

    /// Whether the packet is in one piece.
    #[inline(always)]
    pub fn is_contiguous(&self) -> bool {
        self.fields().nb_segs == 1
    }

    /// The id of the port that it came in by; only of meaning for a received packet.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        self.fields().port
    }

    /// Whether the device took a VLAN tag off: then it is not in the data but in
    /// [`vlan_tci`](Mbuf::vlan_tci).
    #[inline(always)]
    pub fn is_vlan_stripped(&self) -> bool {
        self.fields().ol_flags & dpdk_sys::RVS_MBUF_RX_VLAN_STRIPPED != 0
    }

    /// The tag that the device took off, in the order of this machine.
    #[inline(always)]
    pub fn vlan_tci(&self) -> Option<u16> {
        let fields = self.fields();
        (fields.ol_flags & dpdk_sys::RVS_MBUF_RX_VLAN != 0).then_some(fields.vlan_tci)
    }

    /// The same, which is forgotten then.
    pub fn take_vlan(&mut self) -> Option<u16> {
        let tag = self.vlan_tci().filter(|_| self.is_vlan_stripped())?;
        self.fields_mut().ol_flags &= !(dpdk_sys::RVS_MBUF_RX_VLAN | dpdk_sys::RVS_MBUF_RX_VLAN_STRIPPED);
        Some(tag)
    }

    /// The hash by which the device chose the queue, if it tells.
    #[inline(always)]
    pub fn rss_hash(&self) -> Option<u32> {
        let fields = self.fields();
        (fields.ol_flags & dpdk_sys::RVS_MBUF_RX_RSS_HASH != 0).then_some(fields.rss)
    }

    /// Makes a contiguous packet longer by `count` bytes, and returns these: whatever was in them.
    /// Nothing happens if there is not so much room behind the data.
    pub fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        let fields = self.fields_mut();
        let end = usize::from(fields.data_off) + usize::from(fields.data_len);
        if fields.nb_segs != 1 || count > usize::from(fields.buf_len).saturating_sub(end) {
            return None;
        }
        // What fits into the buffer fits into 16 bits.
        fields.data_len += count as u16;
        fields.pkt_len += count as u32;
        let old = self.data().len() - count;
        Some(&mut self.data_mut()[old..])
    }

    /// Makes a contiguous packet longer by `count` bytes in front, and returns these: whatever was in
    /// them. Nothing happens if there is not so much headroom.
    pub fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        let fields = self.fields_mut();
        if fields.nb_segs != 1 || count > usize::from(fields.data_off) {
            return None;
        }
        let sum = usize::from(fields.data_len) + count;
        fields.data_len = u16::try_from(sum).ok()?;
        fields.data_off -= count as u16;
        fields.pkt_len += count as u32;
        Some(&mut self.data_mut()[..count])
    }

    /// Cuts `count` bytes off the front of a contiguous packet. Nothing happens to one that has not so many, or a chain; then the
    /// answer is false.
    pub fn advance(&mut self, count: usize) -> bool {
        let fields = self.fields_mut();
        if fields.nb_segs != 1 || count > usize::from(fields.data_len) {
            return false;
        }
        // It is no more than data_len.
        fields.data_off += count as u16;
        fields.data_len -= count as u16;
        fields.pkt_len -= count as u32;
        true
    }

    /// Cuts a contiguous packet off after `length` bytes, as the padding of a short frame is cut off.
    /// Nothing happens to one that is shorter, or a chain.
    pub fn truncate(&mut self, length: usize) {
        let fields = self.fields_mut();
        if fields.nb_segs == 1 && length < usize::from(fields.data_len) {
            fields.data_len = length as u16;
            fields.pkt_len = length as u32;
        }
    }

    /// Copies the packet, chain or not, to the front of `to`, as far as that reaches, and says how many
    /// bytes it copied. For slow paths.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        let mut segment = Some(self.0);
        while let Some(raw) = segment {
            // SAFETY: `next` leads through segments that all belong to this packet, and ends with null;
            // each has data_len bytes from data_off on.
            let (bytes, next) = unsafe {
                let fields = raw.as_ref();
                let first = fields.buf_addr.cast::<u8>().add(usize::from(fields.data_off));
                (slice::from_raw_parts(first, usize::from(fields.data_len)), NonNull::new(fields.next))
            };
            let room = &mut to[done..];
            let count = bytes.len().min(room.len());
            room[..count].copy_from_slice(&bytes[..count]);
            done += count;
            segment = next;
        }
        done
    }

    /// Fetches the first line of the packet's description, which holds the fields above, into the cache.
    #[inline(always)]
    pub fn prefetch_header(&self) {
        prefetch(self.0.as_ptr().cast());
    }

    /// Fetches the first line of the packet's data into the cache; reads the description.
    #[inline(always)]
    pub fn prefetch_data(&self) {
        prefetch(self.data_ptr());
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        let mut raw = self.0.as_ptr().cast();
        // SAFETY: one packet, ours, and gone with us.
        unsafe { free_bulk(&mut raw, 1) };
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mbuf").field("packet_len", &self.packet_len()).field("data", &self.data()).finish()
    }
}

#[inline(always)]
fn prefetch(at: *const u8) {
    // SAFETY: a hint to the cache; no address is wrong for it.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}
