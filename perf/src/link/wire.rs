//! Links between two processes without hardware: which device each end is.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// A kind of link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Link {
    /// virtio: the generator is virtio_user, the router net_vhost, which copies out of and into the generator's memory.
    Vhost,
    /// Shared memory: the generator is the client, which hands over its packets where they are; the router copies.
    Memif,
}

/// Descriptors of a queue: a power of two.
pub const DESCRIPTORS: u16 = 1024;

/// Of the generator's end; the same that the router has for its neighbours.
const MAC: &str = "02:00:00:00:00:bb";

impl Link {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Link::Vhost => "vhost",
            Link::Memif => "memif",
        }
    }

    /// The router's end, which makes the socket and waits.
    pub fn router(self, socket: &Path) -> String {
        let socket = socket.display();
        match self {
            Link::Vhost => format!("net_vhost0,iface={socket},queues=1"),
            Link::Memif => format!("net_memif0,role=server,{},socket={socket}", memif()),
        }
    }

    /// The generator's end, which connects, by name and with arguments. As fast as either can be: a packed ring that is
    /// used in order, as it is by default, can be read by vectors, and a client of memif needs no copies. DPDK 24.11 refuses
    /// what is longer than 127 bytes.
    pub fn generator(self, socket: &Path) -> (&'static str, String) {
        let socket = socket.display();
        match self {
            Link::Vhost => (
                "net_virtio_user0",
                format!(
                    "net_virtio_user0,path={socket},queue_size={DESCRIPTORS},packed_vq=1,mrg_rxbuf=0,vectorized=1,\
                     mac={MAC}"
                ),
            ),
            Link::Memif => {
                ("net_memif0", format!("net_memif0,role=client,zero-copy=yes,{},socket={socket}", memif()))
            }
        }
    }
}

/// Not an abstract socket: such a one is found only in its own network namespace.
fn memif() -> String {
    format!("rsize={},bsize=2048,socket-abstract=no", DESCRIPTORS.ilog2())
}
