//! The time-stamp counter, which is the data path's clock.

/// The counter, as it is now: about 20 cycles, no system call. Not ordered against the loads around it.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 has the instruction, and Linux leaves it to user space.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// How often it counts in a second, as EAL measured it when it started; 0 before that.
pub fn tsc_hz() -> u64 {
    // SAFETY: reads an integer that EAL writes once, while it starts.
    unsafe { dpdk_sys::rte_get_tsc_hz() }
}
