//! The threads that EAL knows.

use std::marker::PhantomData;

use crate::eal::tenants;
use crate::error::{Errno, Error};

/// The proof that this thread is one that EAL knows, and so has its own cache in every pool.
///
/// It stays on its thread. A thread that EAL does not know works, but each packet that it allocates or
/// frees goes through the pool's shared ring: 3.2 times slower, measured. So whatever touches pools per
/// packet wants an `&Lcore`.
#[derive(Debug)]
pub struct Lcore {
    id: u32,
    registered: bool,
    not_send: PhantomData<*mut ()>,
}

impl Lcore {
    /// Makes the calling thread known to EAL, until this is dropped. Set its affinity first: EAL
    /// allocates for it on the memory of the processors that it runs on now.
    ///
    /// EAL with a `--proc-type` other than primary refuses.
    pub fn register() -> Result<Lcore, Error> {
        let mut tenants = tenants();
        if !tenants.running {
            return Err(Error::NotRunning);
        }
        if let Some(id) = this_thread() {
            return Err(Error::Registered(id));
        }
        // SAFETY: EAL runs, and this thread is not known to it.
        if unsafe { dpdk_sys::rte_thread_register() } < 0 {
            return Err(Error::Register(Errno::last()));
        }
        tenants.lcores += 1;
        Ok(Lcore { id: this_thread().unwrap_or_default(), registered: true, not_send: PhantomData })
    }

    /// The token of the thread that started EAL.
    pub(crate) fn main() -> Result<Lcore, Error> {
        let mut tenants = tenants();
        if !tenants.running {
            return Err(Error::NotRunning);
        }
        // SAFETY: reads an integer that EAL wrote when it started.
        let main = unsafe { dpdk_sys::rte_get_main_lcore() };
        if this_thread() != Some(main) {
            return Err(Error::NotMain);
        }
        tenants.lcores += 1;
        Ok(Lcore { id: main, registered: false, not_send: PhantomData })
    }

    /// EAL's number for the thread; not that of a processor.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Lcore {
    fn drop(&mut self) {
        let mut tenants = tenants();
        if self.registered {
            // SAFETY: `register` made this thread known, and the token never left it. EAL runs still:
            // `cleanup` waits for the count below.
            unsafe { dpdk_sys::rte_thread_unregister() };
        }
        tenants.lcores -= 1;
    }
}

/// EAL's number for this thread, if it has one.
fn this_thread() -> Option<u32> {
    // SAFETY: reads a thread-local integer, which every thread has.
    let id = unsafe { dpdk_sys::rvs_lcore_id() };
    (id != dpdk_sys::RVS_LCORE_ID_ANY).then_some(id)
}
