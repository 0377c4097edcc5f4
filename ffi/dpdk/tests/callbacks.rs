//! Callbacks that others hang on our queues (dpdk-pdump, latencystats) are called. RVS hangs none itself, so
//! the functions for it are declared here.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use dpdk::{Batch, Eal, Mempool, Port, RxQueue, Settings, TxQueue};

type RxCallback = extern "C" fn(u16, u16, *mut *mut c_void, u16, u16, *mut c_void) -> u16;
type TxCallback = extern "C" fn(u16, u16, *mut *mut c_void, u16, *mut c_void) -> u16;

unsafe extern "C" {
    fn rte_eth_add_rx_callback(
        port: u16,
        queue: u16,
        callback: RxCallback,
        user: *mut c_void,
    ) -> *const c_void;
    fn rte_eth_add_tx_callback(
        port: u16,
        queue: u16,
        callback: TxCallback,
        user: *mut c_void,
    ) -> *const c_void;
}

static RECEIVED: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);

extern "C" fn received(_: u16, _: u16, _: *mut *mut c_void, count: u16, room: u16, _: *mut c_void) -> u16 {
    assert!(count <= room);
    RECEIVED.fetch_add(u64::from(count), Ordering::Relaxed);
    count
}

extern "C" fn sent(_: u16, _: u16, _: *mut *mut c_void, count: u16, _: *mut c_void) -> u16 {
    SENT.fetch_add(u64::from(count), Ordering::Relaxed);
    count
}

#[test]
fn callbacks_of_others_see_every_packet() {
    let args = "--no-huge --no-shconf --no-pci --no-telemetry -m 64 -l 0 --log-level=*:error --file-prefix=rvs-test \
                --vdev=net_null0";
    let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
    let eal = Eal::init(&args).expect("EAL starts");
    let pool = Mempool::new(&eal, "pool", 255, 32, dpdk::data_room(1500)).expect("a small pool");
    let settings =
        Settings { queues: 1, descriptors: 64, mtu: 1500, rss: None, pool, mac: None, promiscuous: true };
    let port = Port::by_name(&eal, "net_null0").expect("it is a port");
    let (port, mut queues) = port.configure(settings).expect("it starts");
    let lcore = eal.main_lcore().expect("we started it");
    let mut batch = Batch::<32>::new();
    let mut forward = |(rx, tx): &mut (RxQueue, TxQueue)| {
        assert_eq!(rx.recv(&lcore, &mut batch), 32);
        assert_eq!(tx.send(&lcore, &mut batch), 32);
    };

    forward(&mut queues[0]);
    assert_eq!((RECEIVED.load(Ordering::Relaxed), SENT.load(Ordering::Relaxed)), (0, 0));
    // SAFETY: the port is started and has queue 0; the callbacks live as long as the process.
    unsafe {
        assert!(!rte_eth_add_rx_callback(port.id(), 0, received, ptr::null_mut()).is_null());
        assert!(!rte_eth_add_tx_callback(port.id(), 0, sent, ptr::null_mut()).is_null());
    }
    forward(&mut queues[0]);
    assert_eq!((RECEIVED.load(Ordering::Relaxed), SENT.load(Ordering::Relaxed)), (32, 32));
}
