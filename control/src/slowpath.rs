//! The way between the workers and the twins.
//!
//! Workers put packets for Linux into one queue and ring; control writes them to the twin of the port that
//! they came in on. What Linux sends on a twin goes into the inject queue of a worker, which transmits it.
//!
//! Control is one thread, and these pumps are tasks on it, each bounded in what it does before it lets the
//! others run: a flood of punts delays neither a health check nor a reload by more than a slice, and what
//! does not fit into the queue is dropped by the worker, under a name.

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use dataplane::engine::Wanted;
use dataplane::fib::PortIndex;
use dataplane::worker::SlowPath;
use dpdk::{Lcore, Mbuf, Mempool};
use tokio::sync::Notify;

use crate::net::{Linux, Twin};

/// Packets that wait for control, over all workers.
const PUNTS: usize = 4096;
/// Packets that wait for a worker.
const INJECTS: usize = 1024;
/// Neighbours that wait to be asked for.
const WANTED: usize = 256;
/// Packets written to twins before others on the control thread get their turn.
const SLICE: usize = 64;
/// How long to wait when a worker has not taken its packets, or the pool is empty. Linux' own queue on the
/// twin fills meanwhile, and what it drops it counts on the interface.
const BACKOFF: Duration = Duration::from_micros(200);

/// Control's ends of the queues.
pub struct Pumps {
    bell: Arc<Notify>,
    punts: Arc<ArrayQueue<(PortIndex, Mbuf)>>,
    wanted: Arc<Wanted>,
    injects: Vec<Arc<ArrayQueue<(PortIndex, Mbuf)>>>,
}

/// Makes the queues: control's ends, and those of each worker.
pub fn queues(workers: usize) -> (Pumps, Vec<SlowPath>) {
    let bell = Arc::new(Notify::new());
    let punts = Arc::new(ArrayQueue::new(PUNTS));
    let wanted = Arc::new(ArrayQueue::new(WANTED));
    let injects: Vec<_> = (0..workers).map(|_| Arc::new(ArrayQueue::new(INJECTS))).collect();
    let ends = injects.iter().map(|injects| {
        let bell = bell.clone();
        SlowPath {
            punts: punts.clone(),
            injects: injects.clone(),
            wanted: wanted.clone(),
            // Wakes control by a system call if it sleeps, else it is one atomic operation.
            doorbell: Arc::new(move || bell.notify_one()),
        }
    });
    let ends = ends.collect();
    (Pumps { bell, punts, wanted, injects }, ends)
}

impl Pumps {
    /// Writes punted packets to the twins and asks Linux for wanted neighbours, for ever.
    pub async fn to_linux(&self, twins: &[Rc<Twin>], linux: &Linux) {
        loop {
            self.bell.notified().await;
            self.empty(twins);
            while let Some((port, address)) = self.wanted.pop() {
                ask(linux, twins, port, address).await;
                self.empty(twins);
            }
            // Rung again for what came meanwhile; yield so that a flood is not all that control sees.
            if !self.punts.is_empty() {
                self.bell.notify_one();
            }
            tokio::task::yield_now().await;
        }
    }

    fn empty(&self, twins: &[Rc<Twin>]) {
        for _ in 0..SLICE {
            let Some((port, mbuf)) = self.punts.pop() else { return };
            if let Some(twin) = twins.get(usize::from(port))
                && let Err(error) = twin.try_send(&frame(&mbuf))
            {
                tracing::debug!(port, %error, "Linux did not take a packet");
            }
        }
    }

    /// Hands what Linux sends on a port's twin to a worker, until the twin is gone.
    pub async fn from_linux(&self, port: PortIndex, twin: &Twin, pool: &Mempool, lcore: &Lcore) {
        // One worker for all packets of a port, so that they keep their order.
        let injects = &self.injects[usize::from(port) % self.injects.len()];
        let mut buffer = vec![0; usize::from(pool.data_room())];
        loop {
            let length = match twin.recv(&mut buffer).await {
                Ok(length) => length,
                Err(error) => {
                    tracing::error!(port, %error, "the twin is gone");
                    return;
                }
            };
            let mut mbuf = loop {
                match pool.alloc(lcore) {
                    Some(mbuf) => break mbuf,
                    None => tokio::time::sleep(BACKOFF).await,
                }
            };
            let Some(room) = mbuf.append(length) else { continue };
            room.copy_from_slice(&buffer[..length]);
            let mut packet = (port, mbuf);
            while let Err(refused) = injects.push(packet) {
                packet = refused;
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

/// Asks Linux to resolve a neighbour on a port.
pub async fn ask(linux: &Linux, twins: &[Rc<Twin>], port: PortIndex, address: Ipv4Addr) {
    let Some(twin) = twins.get(usize::from(port)) else { return };
    if let Err(error) = linux.use_neighbour(twin.ifindex(), address).await {
        tracing::debug!(%address, %error, "could not ask for a neighbour");
    }
}

/// The frame as it was on the wire: with the VLAN tag that the device may have taken out.
fn frame(mbuf: &Mbuf) -> Vec<u8> {
    let mut bytes = vec![0; mbuf.packet_len() as usize];
    mbuf.copy_to(&mut bytes);
    if let Some(tag) = mbuf.vlan_tci()
        && mbuf.is_vlan_stripped()
        && bytes.len() >= 12
    {
        let [high, low] = tag.to_be_bytes();
        bytes.splice(12..12, [0x81, 0x00, high, low]);
    }
    bytes
}
