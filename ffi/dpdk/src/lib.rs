//! Safe Rust over the part of DPDK that RVS uses.
//!
//! ```text
//!   Eal ----- probe("net_af_packet0,iface=wan") -----> Port<Stopped>
//!    |                                                    | configure(Settings)
//!    +-- Mempool::new  ---> &'static Mempool -------------+
//!    |                                                    v
//!    +-- main_lcore / Lcore::register                  Port<Started>  +  [(RxQueue, TxQueue)]
//!               |                                                             | moved into a worker
//!               +------------> rx.recv(&lcore, &mut batch) -> [Mbuf] -> tx.send(&lcore, &mut batch)
//! ```
//!
//! What would go wrong in C does not compile here, or is an error at start-up:
//!
//! * a thread that DPDK does not know has no per-core cache in the pools and is three times slower,
//!   silently. `recv`, `send` and `alloc` want an [`Lcore`], which only a known thread has, and which
//!   cannot leave it;
//! * a queue is polled by one thread: [`RxQueue`] and [`TxQueue`] are made once, move, and are neither
//!   `Clone` nor `Sync`;
//! * a packet has one owner: [`Mbuf`] frees itself when dropped, a [`Batch`] frees all of its own at once
//!   (per packet, freeing one by one costs 4.5 cycles more);
//! * a device is not stopped under a running worker, and EAL's memory is not unmapped under a packet:
//!   [`Port::stop`] and [`Eal::cleanup`] refuse while somebody still holds queues, lcores or packets.
//!
//! ```compile_fail,E0277
//! fn elsewhere(lcore: dpdk::Lcore) {
//!     std::thread::spawn(move || lcore.id()); // an lcore stays on its thread
//! }
//! ```
//!
//! ```compile_fail,E0277
//! fn together(rx: &dpdk::RxQueue) {
//!     std::thread::scope(|scope| drop(scope.spawn(|| rx.queue()))); // a queue has one thread
//! }
//! ```
//!
//! ```compile_fail,E0382
//! fn twice(mbuf: dpdk::Mbuf, batch: &mut dpdk::Batch<32>) {
//!     let _ = batch.push(mbuf);
//!     let _ = batch.push(mbuf); // a packet has one owner
//! }
//! ```
//!
//! Pools live as long as the process, so that nothing on the packet path carries a lifetime.

mod batch;
pub mod bond;
pub mod clock;
mod descriptors;
mod eal;
mod error;
mod lcore;
mod mbuf;
mod notice;
mod pool;
mod port;
mod queue;
mod reta;
mod rss;
mod signals;
pub mod synthetic;

pub use batch::{Batch, Drain};
pub use descriptors::close_on_exec;
pub use eal::{Eal, Prober};
pub use error::{Errno, Error};
pub use lcore::Lcore;
pub use mbuf::Mbuf;
pub use notice::Notice;
pub use pool::Mempool;
pub use port::{Link, Port, PortInfo, PortStats, Queues, Settings, Started, Stopped, Terms};
pub use queue::{RxQueue, TxQueue, unconnected};
pub use rss::{Hashed, LONGEST_KEY, Rss, Side};
pub use signals::hold_signals;

/// The longest frame that a port with a given MTU may receive: Ethernet header, one VLAN tag and FCS.
pub const FRAME_OVERHEAD: u16 = 14 + 4 + 4;

/// Free room in front of every received packet, for headers to be pushed.
pub const HEADROOM: u16 = dpdk_sys::RVS_HEADROOM;

/// The data room of a pool whose packets shall hold a frame of this MTU in one piece.
pub const fn data_room(mtu: u16) -> u16 {
    let needed = mtu.saturating_add(FRAME_OVERHEAD).saturating_add(HEADROOM);
    // Several drivers round the room down to a multiple of 1 kB, and then find 1500 too long.
    let usual = 2048 + HEADROOM;
    if needed > usual { needed } else { usual }
}
