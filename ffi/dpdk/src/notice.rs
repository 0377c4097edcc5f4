//! What a device says of itself while it runs: it has lost its settings, or it is being pulled out.
//!
//! DPDK tells it from its interrupt thread, in the middle of a driver's interrupt, when nothing may be asked of the device. So it
//! is only noted, and whoever looks after the port reads it when its turn comes.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

use dpdk_sys::rte_dev_event_type_RTE_DEV_EVENT_REMOVE as UNPLUGGED;
use dpdk_sys::rte_eth_event_type_RTE_ETH_EVENT_INTR_RESET as RESET;
use dpdk_sys::rte_eth_event_type_RTE_ETH_EVENT_INTR_RMV as REMOVED;
use dpdk_sys::{rte_dev_event_type, rte_eth_event_type};

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

/// Forgets what was said, and listens to the port of this id and name. One that has nothing to say is no error.
pub(crate) fn listen(port: u16, name: &str) {
    ignore(port, name);
    if let Some(notice) = NOTICES.get(usize::from(port)) {
        notice.store(0, Ordering::Relaxed);
    }
    for event in EVENTS {
        // SAFETY: a function that lives as long as the process, and no argument. DPDK looks at the id.
        unsafe { dpdk_sys::rte_eth_dev_callback_register(port, event, Some(note), ptr::null_mut()) };
    }
    if let Ok(name) = CString::new(name) {
        // SAFETY: a terminated string, which DPDK copies; a function that lives as long as the process, and an argument that
        // is a number and nothing else.
        unsafe {
            dpdk_sys::rte_dev_event_callback_register(name.as_ptr(), Some(note_of_bus), argument(port))
        };
    }
}

/// Listens no longer.
pub(crate) fn ignore(port: u16, name: &str) {
    for event in EVENTS {
        // SAFETY: as above. What was not registered, or is being called right now, stays: it does no harm.
        unsafe { dpdk_sys::rte_eth_dev_callback_unregister(port, event, Some(note), ptr::null_mut()) };
    }
    if let Ok(name) = CString::new(name) {
        // SAFETY: as above.
        unsafe {
            dpdk_sys::rte_dev_event_callback_unregister(name.as_ptr(), Some(note_of_bus), argument(port))
        };
    }
}

/// A port's id where DPDK has a pointer.
fn argument(port: u16) -> *mut c_void {
    ptr::without_provenance_mut(usize::from(port))
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
    take_down(usize::from(port), notice);
    0
}

/// Called by DPDK when Linux wants a device of vfio-pci back; it waits until that is closed.
extern "C" fn note_of_bus(_: *const c_char, event: rte_dev_event_type, port: *mut c_void) {
    if event == UNPLUGGED {
        take_down(port.addr(), Notice::Removed);
    }
}

fn take_down(port: usize, notice: Notice) {
    if let Some(noted) = NOTICES.get(port) {
        noted.fetch_max(notice as u8, Ordering::Relaxed);
    }
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
        let other = port - 1;
        note_of_bus(ptr::null(), UNPLUGGED + 1, argument(other));
        assert_eq!(of(other), None);
        note_of_bus(ptr::null(), UNPLUGGED, argument(other));
        assert_eq!(of(other), Some(Notice::Removed));
    }
}
