//! EAL, DPDK's ground floor: memory, devices and the threads it knows.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Errno, Error};
use crate::lcore::Lcore;
use crate::pool::Mempool;
use crate::port::{Port, Queues, Settings, Started};

/// EAL, running. There is one in a process; whoever has it may make pools and ports.
#[derive(Debug)]
pub struct Eal {
    _private: (),
}

/// EAL keeps run-once state of its own: after the first attempt, good or bad, it refuses the next.
static TRIED: AtomicBool = AtomicBool::new(false);

/// What stands on EAL's memory. All of it must be gone before [`Eal::cleanup`] takes the memory away.
/// Packets are found through their pools.
static TENANTS: Mutex<Tenants> =
    Mutex::new(Tenants { running: false, lcores: 0, ports: Vec::new(), pools: Vec::new() });

pub(crate) struct Tenants {
    pub(crate) running: bool,
    pub(crate) lcores: usize,
    /// The ids of the ports that somebody holds.
    pub(crate) ports: Vec<u16>,
    pub(crate) pools: Vec<&'static Mempool>,
}

pub(crate) fn tenants() -> MutexGuard<'static, Tenants> {
    // Nothing panics while it holds the lock; if it ever did, the lists would still be whole.
    TENANTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Eal {
    /// Starts EAL with these arguments, without a program's name in front. The calling thread becomes
    /// the main lcore.
    ///
    /// EAL pins the calling thread to the main lcore's processor, and every thread started from it
    /// would inherit that: a whole control plane on one processor. Here the thread keeps the affinity
    /// that it had. Whoever wants it pinned does that before or afterwards, as for any other thread;
    /// what the processors given by `-l` or `--lcores` still decide is where EAL puts its own threads
    /// (interrupts, telemetry), namely elsewhere. `--lcores 0@(0-3)` is one lcore that floats over four.
    ///
    /// With hugepages, take `--in-memory`; 22.11 refuses that beside `--no-huge`, where `--no-shconf`
    /// does. Left to itself EAL takes every PCI device that one of its drivers knows: name those that it
    /// may have (`-a`), or take `--no-pci`.
    ///
    /// EAL reads its arguments as a program would: `--help` among them ends the process. It writes its
    /// log to stderr; `--log-level` says how much.
    pub fn init(args: &[String]) -> Result<Eal, Error> {
        let words = [c"rvs".to_owned()].into_iter().map(Ok).chain(args.iter().map(|arg| c_string(arg)));
        let words = words.collect::<Result<Vec<CString>, Error>>()?;
        if TRIED.swap(true, Ordering::Relaxed) {
            return Err(Error::AlreadyInitialised);
        }
        let affinity = Affinity::of_this_thread();
        // EAL permutes the vector and keeps pointers into it and its words: neither is ever freed.
        let mut argv: Vec<*mut c_char> = words.into_iter().map(CString::into_raw).collect();
        let argc = argv.len() as c_int;
        argv.push(std::ptr::null_mut());
        let argv = argv.leak();
        // SAFETY: argc words and a null pointer, all of which live as long as the process.
        let taken = unsafe { dpdk_sys::rte_eal_init(argc, argv.as_mut_ptr()) };
        let errno = Errno::last();
        affinity.restore();
        if taken < 0 {
            return Err(Error::Init { errno, args: args.join(" ") });
        }
        tenants().running = true;
        let eal = Eal { _private: () };
        // EAL moved the words that it did not take to the end, and the program's name before them.
        let left: Vec<String> =
            argv[..argc as usize].iter().skip(taken as usize + 1).map(|&word| lossy(word)).collect();
        if !left.is_empty() {
            eal.cleanup()?;
            return Err(Error::LeftOver(left.join(" ")));
        }
        Ok(eal)
    }

    /// The main lcore, for the thread that started EAL.
    pub fn main_lcore(&self) -> Result<Lcore, Error> {
        Lcore::main()
    }

    /// Adds a device: a PCI address, or a virtual one as for `--vdev` ("net_tap0,iface=x").
    ///
    /// The ports that it brings are found by [`Port::by_name`](crate::Port::by_name).
    pub fn probe(&self, devargs: &str) -> Result<(), Error> {
        probe(&tenants(), devargs)
    }

    /// Who adds devices in another thread: drivers may take their time.
    pub fn prober(&self) -> Prober {
        Prober { _private: () }
    }

    /// The socket (the NUMA node) that the calling thread runs on; none if it may run on several.
    pub fn socket(&self) -> Option<u32> {
        // SAFETY: reads a thread-local integer, which every thread has.
        let socket = unsafe { dpdk_sys::rte_socket_id() };
        (socket != u32::MAX).then_some(socket)
    }

    /// The ports that there are, by id; not those that belong to another port, as those of a bond do.
    pub fn ports(&self) -> Vec<u16> {
        let next = |from: u16| {
            // SAFETY: any number is a valid place to start from; EAL runs, as `self` shows.
            let port = unsafe { dpdk_sys::rte_eth_find_next_owned_by(from, dpdk_sys::RVS_NO_OWNER) };
            (port < u64::from(dpdk_sys::RVS_MAX_PORTS)).then_some(port as u16)
        };
        std::iter::successors(next(0), |&port| next(port + 1)).collect()
    }

    /// Has EAL's interrupt thread call a function, and waits for what it returns: what a thread has of its
    /// own, such as its capabilities, can be changed by nobody else.
    ///
    /// The thread is busy at most with an interrupt of a device. If it does not come round to it in five
    /// seconds, that is an error, though it may yet call the function.
    pub fn on_interrupt_thread<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, returned) = mpsc::sync_channel(1);
        let task: Task = Box::new(move || {
            // Whoever asked may have given up.
            let _ = sender.send(call());
        });
        let argument = Box::into_raw(Box::new(task)).cast::<c_void>();
        // SAFETY: `run_task` gets the argument once, and takes it back into a box of the same type.
        let set = unsafe { dpdk_sys::rte_eal_alarm_set(1, Some(run_task), argument) };
        if let Err(errno) = Errno::check(set) {
            // SAFETY: the alarm was refused, so nobody else has the pointer.
            drop(unsafe { Box::from_raw(argument.cast::<Task>()) });
            return Err(Error::Interrupt(errno));
        }
        returned.recv_timeout(Duration::from_secs(5)).map_err(|_| Error::Interrupt(Errno(libc::ETIMEDOUT)))
    }

    /// DPDK's name and version.
    pub fn version() -> String {
        // SAFETY: returns a terminated string that is never changed.
        unsafe { CStr::from_ptr(dpdk_sys::rte_version()) }.to_string_lossy().into_owned()
    }

    /// Closes all devices and gives the memory back.
    ///
    /// Refused while an [`Lcore`], a [`Port`], a queue or a packet is left: they would
    /// point to memory that is no more. To end the process without it is harmless: the kernel takes
    /// away what a process had, and only files of hugepages without `--in-memory` remain.
    pub fn cleanup(self) -> Result<(), Error> {
        let mut tenants = tenants();
        if tenants.lcores > 0 {
            return Err(Error::InUse(format!("{} threads are registered", tenants.lcores)));
        }
        if !tenants.ports.is_empty() {
            return Err(Error::InUse(format!("{} ports are in use", tenants.ports.len())));
        }
        if let Some(pool) = tenants.pools.iter().find(|pool| pool.count_in_use() > 0) {
            let packets = pool.count_in_use();
            return Err(Error::InUse(format!("{packets} packets of pool {:?} are in use", pool.name())));
        }
        tenants.running = false;
        // SAFETY: EAL runs, and nothing of its memory is in use: no thread may allocate (no lcore), no
        // queue is left (no port), no packet either. Pools look at `running` before they look at EAL.
        let returned = unsafe { dpdk_sys::rte_eal_cleanup() };
        match Errno::check(returned) {
            Ok(_) => Ok(()),
            Err(errno) => Err(Error::InUse(errno.to_string())),
        }
    }
}

/// Adds devices while EAL runs; when it does not any more, an error.
#[derive(Clone, Copy, Debug)]
pub struct Prober {
    _private: (),
}

impl Prober {
    /// Adds a device as [`Eal::probe`] does, and starts its port of this name. If that cannot be started, the device is let go
    /// of again.
    pub fn open(
        &self,
        devargs: &str,
        name: &str,
        settings: Settings,
    ) -> Result<(Port<Started>, Queues), Error> {
        let port = {
            // So that nobody takes EAL down meanwhile.
            let mut tenants = tenants();
            probe(&tenants, devargs)?;
            Port::known_as(&mut tenants, name)?
        };
        port.configure_or_release(settings)
    }
}

/// With the lock held, and with it EAL.
fn probe(tenants: &Tenants, devargs: &str) -> Result<(), Error> {
    if !tenants.running {
        return Err(Error::NotRunning);
    }
    let text = c_string(devargs)?;
    // SAFETY: a terminated string that is only read during the call; EAL runs.
    let returned = unsafe { dpdk_sys::rte_dev_probe(text.as_ptr()) };
    match Errno::check(returned) {
        Ok(_) => Ok(()),
        // What looks like a slip of a pointer is how EAL says that no bus took the name.
        Err(Errno(libc::EFAULT)) => Err(Error::UnknownDevice(devargs.to_owned())),
        Err(errno) => Err(Error::Probe { devargs: devargs.to_owned(), errno }),
    }
}

type Task = Box<dyn FnOnce() + Send>;

/// What EAL's interrupt thread calls. A panic in it ends the process, as it must at C's border.
extern "C" fn run_task(argument: *mut c_void) {
    // SAFETY: `on_interrupt_thread` made this pointer of a box of this type, for one call of this function.
    let task = unsafe { Box::from_raw(argument.cast::<Task>()) };
    task();
}

/// A word for C.
pub(crate) fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::ZeroByte(text.to_owned()))
}

fn lossy(word: *const c_char) -> String {
    // SAFETY: the words of argv are terminated strings that we leaked; EAL only changes their order.
    unsafe { CStr::from_ptr(word) }.to_string_lossy().into_owned()
}

/// The processors that a thread may run on.
struct Affinity(Option<libc::cpu_set_t>);

impl Affinity {
    fn of_this_thread() -> Affinity {
        // SAFETY: a set of bits, for which zeros are a value.
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        // SAFETY: the kernel writes at most the size given; 0 is the calling thread.
        let returned = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
        Affinity((returned == 0).then_some(set))
    }

    /// Best effort: a processor may have gone offline meanwhile, and then the pinning stays.
    fn restore(&self) {
        if let Some(set) = &self.0 {
            // SAFETY: the kernel reads the size given; 0 is the calling thread.
            unsafe { libc::sched_setaffinity(0, size_of_val(set), set) };
        }
    }
}
