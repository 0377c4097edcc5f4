//! The redirection table (RETA) of a device: the queue for each value of a packet's hash.
//!
//! Drivers are free in what it has after a start. Most spread its entries over the queues in turn, some leave all of them with
//! queue 0, and some keep those of the start before, with other queues.

use dpdk_sys::{RVS_RETA_GROUP, rte_eth_rss_reta_entry64};

use crate::error::Errno;

/// Entries that are passed on together.
const GROUP: usize = RVS_RETA_GROUP as usize;

/// Has the entries in turn with all queues, if they are not.
///
/// None if the device cannot tell what it has: then it is the driver's affair. Else whether there was something to change, or
/// why the device refuses.
///
/// # Safety
///
/// The port is valid and started, with so many queues, and nobody configures it at the same time.
pub(crate) unsafe fn spread(port: u16, queues: u16, size: u16) -> Option<Result<bool, Errno>> {
    let mut table = vec![rte_eth_rss_reta_entry64 { mask: u64::MAX, ..Default::default() }; groups(size)];
    // SAFETY: a valid port, as the caller promises, and a table of as many entries as the device has.
    let returned = unsafe { dpdk_sys::rte_eth_dev_rss_reta_query(port, table.as_mut_ptr(), size) };
    if size == 0 || returned != 0 {
        return None;
    }
    let queue_of = |entry: u16| table[usize::from(entry) / GROUP].reta[usize::from(entry) % GROUP];
    if is_even((0..size).map(queue_of), queues) {
        return Some(Ok(false));
    }
    for entry in 0..size {
        table[usize::from(entry) / GROUP].reta[usize::from(entry) % GROUP] = entry % queues;
    }
    // SAFETY: as above.
    let returned = unsafe { dpdk_sys::rte_eth_dev_rss_reta_update(port, table.as_mut_ptr(), size) };
    Some(Errno::check(returned).map(|_| true))
}

fn groups(size: u16) -> usize {
    usize::from(size).div_ceil(GROUP)
}

/// Whether each of so many queues has about its share of the entries, and nobody else has one.
fn is_even(entries: impl Iterator<Item = u16>, queues: u16) -> bool {
    let mut counts = vec![0u32; usize::from(queues)];
    for queue in entries {
        match counts.get_mut(usize::from(queue)) {
            Some(count) => *count += 1,
            None => return false,
        }
    }
    let (least, most) = (counts.iter().min(), counts.iter().max());
    least.zip(most).is_some_and(|(least, most)| *least > 0 && most - least <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_even() {
        for (entries, queues, even) in [
            (&[0, 1, 2, 0, 1, 2, 0, 1][..], 3, true),
            (&[0, 0, 0, 0], 1, true),
            (&[0, 0, 0, 0], 2, false),
            (&[0, 1, 1, 1], 2, false),
            (&[0, 1, 2, 3], 2, false),
            (&[], 1, false),
        ] {
            assert_eq!(is_even(entries.iter().copied(), queues), even, "{entries:?} {queues}");
        }
        assert_eq!((groups(0), groups(64), groups(65), groups(128)), (0, 1, 2, 2));
    }
}
