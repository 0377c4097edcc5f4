//! What a program that follows this one by exec(2) does not get.

use std::io;

/// Has every descriptor but standard input, output and error closed at exec(2).
///
/// Rust opens its own that way, but DPDK does not: sockets, rings, eventfds and devices of its drivers would be open in
/// the next program, which does not know of them and would hold the devices that it wants to open. Needs Linux 5.11.
pub fn close_on_exec() -> io::Result<()> {
    let (first, last, flags) = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int);
    // SAFETY: it marks descriptors and closes none, so whoever owns one in this process goes on owning it.
    match unsafe { libc::close_range(first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
