//! The way between the workers and the twins.
//!
//! Workers put packets for Linux into one queue and ring; control writes them to the twin of the port that
//! they came in on. What Linux sends on a twin goes into the inject queue of a worker, which transmits it.
//!
//! One kind of packet Linux does not receive but sends: those that the data path has rewritten and whose next
//! hop it does not know yet, for instance the first reply to a client on the router's own network. A raw
//! socket gives them to Linux, which asks for the neighbour, holds them meanwhile, and sends them on the twin.
//! By then the neighbour is news on netlink, and the next packets take the fast path. (Dropping the first
//! packet instead would cost each such client a second, the first retransmission of TCP.)
//!
//! Another kind starts others ([`Answers`]): of a connection whose server has been removed, whose ends are to be told so by a
//! RST; one that was dropped, whose sender is told why by an ICMP error, or of which a router beyond has said that it was, in a tunnel; or
//! one that has to go in fragments. They leave by the raw socket, too.
//!
//! Control is one thread, and these pumps are tasks on it, each bounded in what it does before it lets the
//! others run. What does not fit into the queue is dropped by the worker, under a name; the worker keeps room
//! for ARP and for the answers to health checks.

use std::net::{SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam::queue::ArrayQueue;
use dataplane::counters::Punt;
use dataplane::engine::Verdict;
use dataplane::fib::PortIndex;
use dataplane::wire::ethernet;
use dataplane::wire::version::Version;
use dataplane::worker::{Punted, SlowPath};
use dpdk::{Lcore, Mbuf, Mempool};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, sendto,
    socket,
};
use tokio::sync::Notify;

use crate::net::Twin;
use crate::rivals::Rivals;

/// Packets that wait for control, over all workers.
pub const PUNTS: usize = 4096;
/// Packets that wait for a worker.
pub const INJECTS: usize = 1024;
/// Packets written to twins before others on the control thread get their turn.
const SLICE: usize = 64;
/// How long to wait when a worker has not taken its packets, or the pool is empty. Linux' own queue on the
/// twin fills meanwhile, and what it drops it counts on the interface.
const BACKOFF: Duration = Duration::from_millis(1);

/// The packets to send for one that has met this verdict.
pub type Answers = Box<dyn Fn(Verdict, &[u8]) -> Vec<Vec<u8>>>;

/// Control's ends of the queues.
pub struct Pumps {
    bell: Arc<Notify>,
    punts: Arc<ArrayQueue<Punted>>,
    sender: Sender,
    answers: Answers,
    rivals: Arc<Rivals>,
    injects: Vec<Arc<ArrayQueue<(PortIndex, Mbuf)>>>,
}

/// Makes the queues: control's ends, and those of each worker.
pub fn queues(workers: usize, answers: Answers, rivals: Arc<Rivals>) -> Result<(Pumps, Vec<SlowPath>)> {
    let bell = Arc::new(Notify::new());
    let punts = Arc::new(ArrayQueue::new(PUNTS));
    let injects: Vec<_> = (0..workers).map(|_| Arc::new(ArrayQueue::new(INJECTS))).collect();
    let ends = injects.iter().map(|injects| {
        let bell = bell.clone();
        SlowPath {
            punts: punts.clone(),
            injects: injects.clone(),
            // Wakes control by a system call if it sleeps, else it is one atomic operation.
            doorbell: Arc::new(move || bell.notify_one()),
        }
    });
    let ends = ends.collect();
    Ok((Pumps { bell, punts, sender: Sender::open()?, answers, rivals, injects }, ends))
}

impl Pumps {
    /// Gives punted packets to Linux, for ever.
    pub async fn to_linux(&self, twins: &[Rc<Twin>]) {
        loop {
            self.bell.notified().await;
            self.empty(twins);
            // Rung again for what came meanwhile; yield so that a flood is not all that control sees.
            if !self.punts.is_empty() {
                self.bell.notify_one();
            }
            tokio::task::yield_now().await;
        }
    }

    fn empty(&self, twins: &[Rc<Twin>]) {
        for _ in 0..SLICE {
            let Some(Punted { port, verdict, mbuf }) = self.punts.pop() else { return };
            let result = match (verdict, twins.get(usize::from(port))) {
                (Verdict::Punt(Punt::Unresolved), _) => self.sender.send_frame(&frame(&mbuf)),
                (Verdict::Punt(Punt::Reset | Punt::TunnelError | Punt::ToFragment) | Verdict::Drop(_), _) => {
                    self.answer(verdict, &frame(&mbuf))
                }
                (_, Some(twin)) => {
                    let frame = frame(&mbuf);
                    self.rivals.listen(&frame);
                    twin.try_send(&frame).map(drop)
                }
                (_, None) => continue,
            };
            if let Err(error) = result {
                tracing::debug!(port, ?verdict, %error, "Linux did not take a packet");
            }
        }
    }

    fn answer(&self, verdict: Verdict, frame: &[u8]) -> std::io::Result<()> {
        let packet = frame.get(ethernet::HEADER..).unwrap_or_default();
        (self.answers)(verdict, packet).iter().try_for_each(|answer| self.sender.send(answer))
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

/// Sends ready IP packets through Linux.
struct Sender {
    four: OwnedFd,
    /// Where Linux has IPv6.
    six: Option<OwnedFd>,
}

impl Sender {
    fn open() -> Result<Self> {
        // IPPROTO_RAW: what is sent brings its own IP header.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let raw = |family| socket(family, SockType::Raw, flags, SockProtocol::Raw);
        let six = match raw(AddressFamily::Inet6) {
            Err(Errno::EAFNOSUPPORT) => Ok(None),
            socket => socket.map(Some),
        };
        let both = raw(AddressFamily::Inet).and_then(|four| Ok(Sender { four, six: six? }));
        both.context("cannot open a raw socket; it takes root, or CAP_NET_RAW")
    }

    fn send_frame(&self, frame: &[u8]) -> std::io::Result<()> {
        self.send(frame.get(ethernet::HEADER..).unwrap_or_default())
    }

    /// Sends a packet, which may have the padding of a short frame behind it.
    fn send(&self, packet: &[u8]) -> std::io::Result<()> {
        if let Some(ip) = u32::parse(packet) {
            let to = SockaddrIn::from(SocketAddrV4::new(ip.destination.into(), 0));
            send(&self.four, packet, ip.total_length, &to)
        } else if let Some(ip) = u128::parse(packet) {
            let six = self.six.as_ref().ok_or(Errno::EAFNOSUPPORT)?;
            let to = SockaddrIn6::from(SocketAddrV6::new(ip.destination.into(), 0, 0, 0));
            send(six, packet, ip.total_length, &to)
        } else {
            Ok(())
        }
    }
}

/// Sends so much of a packet: Linux takes all that it is given for it.
fn send(socket: &OwnedFd, packet: &[u8], length: u16, to: &dyn SockaddrLike) -> std::io::Result<()> {
    sendto(socket.as_raw_fd(), &packet[..usize::from(length)], to, MsgFlags::empty())?;
    Ok(())
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
