//! What can go wrong, in words fit for an operator.

use std::ffi::{CStr, c_int};
use std::fmt;

/// Why DPDK did not do what it was asked to. The doc of each is its message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// EAL was started before in this process
    #[error("EAL can be started once in a process, and was started before")]
    AlreadyInitialised,
    /// EAL did not start
    #[error("EAL did not start: {errno}; its arguments were: {args}")]
    Init {
        /// What EAL said; it explains itself on stderr too.
        errno: Errno,
        /// The arguments, separated by blanks.
        args: String,
    },
    /// EAL left arguments over
    #[error("EAL does not know what to do with: {0}")]
    LeftOver(String),
    /// a text for DPDK has a zero byte in it
    #[error("{0:?} contains a zero byte")]
    ZeroByte(String),
    /// EAL's memory is still used
    #[error("EAL cannot be cleaned up: {0}")]
    InUse(String),
    /// EAL was not started, or was cleaned up
    #[error("EAL is not running")]
    NotRunning,
    /// EAL's interrupt thread does not do what it is asked to
    #[error("EAL's interrupt thread does not answer: {0}")]
    Interrupt(Errno),
    /// this thread is not EAL's main lcore
    #[error("this thread is not EAL's main lcore")]
    NotMain,
    /// this thread has an lcore id already
    #[error("this thread is registered with EAL already, as lcore {0}")]
    Registered(u32),
    /// EAL does not take another thread
    #[error("EAL does not register this thread: {0}")]
    Register(Errno),
    /// no bus has such a device, and no driver makes one of this name
    #[error("device {0:?}: no driver knows a device of this name")]
    UnknownDevice(String),
    /// a driver refuses the device
    #[error("device {devargs:?}: {errno}")]
    Probe {
        /// The device as it was asked for.
        devargs: String,
        /// What the driver said.
        errno: Errno,
    },
    /// a pool does not come about
    #[error("pool {name:?} of {mbufs} packets, {data_room} bytes each: {errno}")]
    Pool {
        /// The pool's name.
        name: String,
        /// How many packets it was to hold.
        mbufs: u32,
        /// How many bytes each of them was to hold, headroom included.
        data_room: u16,
        /// What DPDK said.
        errno: Errno,
    },
    /// there is no port of this name
    #[error("no port is called {0:?}")]
    NoPort(String),
    /// somebody has this port already
    #[error("port {0:?} is taken already")]
    Claimed(String),
    /// the port's device has another port that is in use
    #[error("port {0:?}: its device has another port, which is in use, and cannot be let go of")]
    Shared(String),
    /// the port has too few queues
    #[error(
        "port {port:?} has {max_rx} receive and {max_tx} transmit queues, but {wanted} of each are wanted"
    )]
    TooManyQueues {
        /// The port's name.
        port: String,
        /// Pairs of queues that were asked for.
        wanted: u16,
        /// Receive queues that the device has.
        max_rx: u16,
        /// Transmit queues that the device has.
        max_tx: u16,
    },
    /// a port without queues is of no use
    #[error("port {0:?} is to have no queues")]
    NoQueues(String),
    /// the device cannot have this MTU
    #[error("port {port:?} takes an MTU of {min} to {max}, not {wanted}")]
    Mtu {
        /// The port's name.
        port: String,
        /// The MTU that was asked for.
        wanted: u16,
        /// The smallest one that the device takes.
        min: u16,
        /// The largest one that the device takes.
        max: u16,
    },
    /// the pool's packets are too small
    #[error("port {port:?}: an MTU of {mtu} needs {needed} bytes a packet, the pool has {data_room}")]
    DataRoom {
        /// The port's name.
        port: String,
        /// The MTU that was asked for.
        mtu: u16,
        /// What a packet of it needs, headroom included.
        needed: u16,
        /// What the pool gives.
        data_room: u16,
    },
    /// the device refuses
    #[error("port {port:?}: cannot {what}: {errno}")]
    Port {
        /// The port's name.
        port: String,
        /// What it was asked to do.
        what: &'static str,
        /// What the driver said.
        errno: Errno,
    },
    /// workers still hold queues of the port
    #[error("port {0:?} goes on: some of its queues are still in use")]
    QueuesInUse(String),
}

/// An error number of DPDK: its own, or one of the C library.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl Errno {
    /// What the last failed call of this thread left behind.
    pub(crate) fn last() -> Errno {
        // SAFETY: reads a thread-local integer, which every thread has.
        Errno(unsafe { dpdk_sys::rvs_errno() })
    }

    /// Most of DPDK returns 0 or more if all is well, else the negative error number.
    pub(crate) fn check(returned: c_int) -> Result<c_int, Errno> {
        if returned < 0 { Err(Errno(returned.saturating_neg())) } else { Ok(returned) }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: rte_strerror returns a terminated string for every number, in a buffer of this
        // thread that lives until its next call here.
        let text = unsafe { CStr::from_ptr(dpdk_sys::rte_strerror(self.0)) };
        write!(f, "{} (rte_errno {})", text.to_string_lossy(), self.0)
    }
}
