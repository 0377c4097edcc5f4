//! Signals that wait for the program that follows this one by exec(2).

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use libc::c_int;

/// From now on these signals wait for the program that this process becomes, which finds them pending and blocked. To be
/// called by the main thread, which must be the one that calls exec(2).
///
/// What is pending stays so over exec(2) for the process and for the thread that calls it. But a signal that the main thread
/// blocks goes to any other that does not, and there are some of libraries and drivers, which nobody can ask. So whoever
/// gets one passes it on to the main thread, where it waits.
pub fn hold_signals(signals: &[c_int]) -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is ours, and made by the first call before the others use it. A number that is no signal is refused.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            succeeded(libc::sigaddset(set.as_mut_ptr(), signal))?;
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
    // SAFETY: all zeros is an action without flags and with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = pass_on as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    for &signal in signals {
        // SAFETY: the handler does nothing but system calls, which any thread may make at any moment.
        succeeded(unsafe { libc::sigaction(signal, &action, ptr::null_mut()) })?;
    }
    Ok(())
}

/// Passes a signal on to the main thread, whose number is the process'.
extern "C" fn pass_on(signal: c_int) {
    // SAFETY: system calls and the calling thread's own `errno`, which whoever was interrupted finds as it was.
    unsafe {
        let (error, process) = (*libc::__errno_location(), libc::getpid());
        libc::syscall(libc::SYS_tgkill, process, process, signal);
        *libc::__errno_location() = error;
    }
}

fn succeeded(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
