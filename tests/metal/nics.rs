//! The guest's NICs, their PCI addresses and their wires.
//!
//! ```text
//!   client ==== wan0  router's namespace  lan0 ==== real servers
//!                 |                        |
//!              bridge wan ............. bridge lan        each NIC's wire is a TAP in here
//!               |  |  |                  |  |  |
//!              e1000e, virtio, vmxnet3: two of each, each behind a root port of its own
//! ```

use anyhow::Result;
use harness::{cluster::Cluster, netns::Namespace};

/// Queue pairs of a virtio NIC.
pub const VIRTIO_QUEUES: usize = 4;

/// A kind of NIC, of which the guest has two: towards the clients, and towards the real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// As QEMU knows it.
    pub model: &'static str,
    /// Where the two are.
    pub addresses: [&'static str; 2],
    /// How many queues it has.
    pub queues: usize,
    /// What is to be said of it to QEMU besides.
    settings: &'static str,
}

/// Intel's 82574: one queue for DPDK.
pub const E1000E: Kind =
    Kind { model: "e1000e", addresses: ["0000:01:00.0", "0000:02:00.0"], queues: 1, settings: "" };

/// A modern virtio NIC that is subject to the IOMMU, as a real one is, and spreads by its hash.
pub const VIRTIO: Kind = Kind {
    model: "virtio-net-pci",
    addresses: ["0000:03:00.0", "0000:04:00.0"],
    queues: VIRTIO_QUEUES,
    settings: ",disable-legacy=on,iommu_platform=on,mq=on,vectors=10,rss=on,hash=on",
};

/// VMware's; QEMU's has no RSS.
pub const VMXNET3: Kind =
    Kind { model: "vmxnet3", addresses: ["0000:05:00.0", "0000:06:00.0"], queues: 1, settings: "" };

/// The NIC that one logs in by.
pub const LOGIN: &str = "0000:00:1e.0";

const KINDS: [Kind; 3] = [E1000E, VIRTIO, VMXNET3];
const SIDES: [&str; 2] = ["wan", "lan"];

impl Kind {
    /// The name of one of its NICs and of that one's wire, by side: 0 is the clients', 1 the real servers'.
    pub fn name(self, side: usize) -> String {
        format!("{}-{}", SIDES[side], self.model.split('-').next().unwrap_or(self.model))
    }

    /// The name of the device itself, to QEMU.
    pub fn id(self, side: usize) -> String {
        format!("{}-nic", self.name(side))
    }

    /// One of its NICs, as QEMU wants to hear of it: always in the same slot, where it is one of several cards, the first of
    /// which is 0.
    pub fn device(self, side: usize, card: u8) -> String {
        let (slot, id, wire, mac) = (self.slot(side), self.id(side), self.name(side), self.mac(side, card));
        let Kind { model, settings, .. } = self;
        format!("{model},id={id},romfile=,bus=slot{slot},netdev={wire},mac={mac}{settings}")
    }

    /// The MAC of one of its NICs.
    pub fn mac(self, side: usize, card: u8) -> String {
        format!("52:54:00:00:{:02x}:{:02x}", card * 16, self.slot(side))
    }

    /// The number of the slot of one of its NICs, by which its bus is numbered, too.
    fn slot(self, side: usize) -> usize {
        KINDS.iter().position(|kind| *kind == self).unwrap_or_default() * 2 + side + 1
    }
}

/// QEMU's arguments for all NICs, and the one that the guest logs in by, which leads nowhere.
pub fn arguments() -> Vec<String> {
    let mut words = vec!["-netdev".to_owned(), "user,id=login,restrict=on".to_owned()];
    for kind in KINDS {
        for side in 0..2 {
            let (name, queues, slot) = (kind.name(side), kind.queues, kind.slot(side));
            words.extend([
                "-netdev".into(),
                format!("tap,id={name},ifname={name},script=no,downscript=no,queues={queues}"),
                "-device".into(),
                format!("pcie-root-port,id=slot{slot},chassis={slot}"),
                "-device".into(),
                kind.device(side, 0),
            ]);
        }
    }
    words.extend(["-device".into(), "e1000e,romfile=,netdev=login,addr=1e.0,mac=52:54:00:00:01:00".into()]);
    words
}

/// Makes the wires in the router's namespace, where the guest takes the place of the program.
pub fn wire(cluster: &Cluster) -> Result<()> {
    let router = &cluster.router;
    // What arrives is for the guest; with a program instead, Linux must not see it.
    router.nft("delete table netdev rvs")?;
    router.sysctl("net/bridge/bridge-nf-call-iptables", 0)?;
    for (side, name) in SIDES.into_iter().enumerate() {
        router.ip(&format!(
            "link add {name} type bridge mcast_snooping 0\nlink set {name} up\nlink set {name}0 master {name}"
        ))?;
        for kind in KINDS {
            tap(router, &kind.name(side), name, kind.queues)?;
        }
    }
    Ok(())
}

/// Moves a real server from the router's side to the clients', where its address has the same end.
pub fn move_to_clients(cluster: &Cluster, index: usize) -> Result<()> {
    let (router, server, port) = (&cluster.router, &cluster.real_servers[index], format!("rs{}", index + 1));
    server.ip("link del eth0")?;
    router.ip(&format!(
        "link add {port} type veth peer name eth0 netns {}\nlink set {port} master wan\nlink set {port} up",
        server.name()
    ))?;
    server.ip(&format!("link set eth0 up\naddress add 192.0.2.{}/24 dev eth0", 11 + index))?;
    router.plain_wire(&port)?;
    server.plain_wire("eth0")
}

fn tap(router: &Namespace, name: &str, bridge: &str, queues: usize) -> Result<()> {
    let queues = if queues > 1 { " multi_queue" } else { "" };
    router.ip(&format!(
        "tuntap add dev {name} mode tap{queues} vnet_hdr\nlink set {name} master {bridge}\nlink set {name} up"
    ))
}
