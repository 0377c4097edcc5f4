//! What a device says of itself while it runs: it has lost its settings, or it is being pulled out.
//!
//! DPDK tells it from its interrupt thread, in the middle of a driver's interrupt, when nothing may be asked of the device. So it
//! is only noted, and whoever looks after the port reads it when its turn comes.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

use dpdk_sys::{rte_eth_event_type, rte_eth_event_type_RTE_ETH_EVENT_INTR_RESET as RESET};
use dpdk_sys::rte_eth_event_type_RTE_ETH_EVENT_INTR_RMV as REMOVED;

/// What a device has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// It has been reset by somebody else and forwards nothing until it is set up anew. A virtual function says so whose
    /// physical one is reset.
    Reset = 1,
    /// It is gone, or about to go.
    Removed = 2,
}

/// By the port's id.
static NOTICES: [AtomicU8; dpdk_sys::RVS_MAX_PORTS as usize] =
    [const { AtomicU8::new(0) }; dpdk_sys::RVS_MAX_PORTS as usize];

const EVENTS: [rte_eth_event_type; 2] = [RESET, REMOVED];

/// Forgets what was said, and listens to the port of this id. One that has nothing to say is no error.
pub(crate) fn listen(port: u16) {
    ignore(port);
    if let Some(notice) = NOTICES.get(usize::from(port)) {
        notice.store(0, Ordering::Relaxed);
    }
    for event in EVENTS {
        // SAFETY: a function that lives as long as the process, and no argument. DPDK looks at the id.
        unsafe { dpdk_sys::rte_eth_dev_callback_register(port, event, Some(note), ptr::null_mut()) };
    }
}

/// Listens no longer.
pub(crate) fn ignore(port: u16) {
    for event in EVENTS {
        // SAFETY: as above. What was not registered, or is being called right now, stays: it does no harm.
        unsafe { dpdk_sys::rte_eth_dev_callback_unregister(port, event, Some(note), ptr::null_mut()) };
    }
}

/// What the port of this id has said since it was started; the worst counts.
pub(crate) fn of(port: u16) -> Option<Notice> {
    match NOTICES.get(usize::from(port))?.load(Ordering::Relaxed) {
        0 => None,
        1 => Some(Notice::Reset),
        _ => Some(Notice::Removed),
    }
}

/// Called by DPDK.
extern "C" fn note(port: u16, event: rte_eth_event_type, _: *mut c_void, _: *mut c_void) -> c_int {
    let notice = if event == REMOVED { Notice::Removed } else { Notice::Reset };
    if let Some(noted) = NOTICES.get(usize::from(port)) {
        noted.fetch_max(notice as u8, Ordering::Relaxed);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts() {
        let port = dpdk_sys::RVS_MAX_PORTS - 1;
        assert_eq!(of(port), None);
        for (event, noted) in [(RESET, Notice::Reset), (REMOVED, Notice::Removed), (RESET, Notice::Removed)] {
            assert_eq!(note(port, event, ptr::null_mut(), ptr::null_mut()), 0);
            assert_eq!(of(port), Some(noted));
        }
        assert_eq!(of(u16::MAX), None);
    }
}
