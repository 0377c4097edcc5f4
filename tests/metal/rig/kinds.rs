//! NICs and drivers of other kinds than the page's.

use std::{
    io::{Read, Write},
    net::SocketAddrV4,
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, vip},
    listing::Counters,
    wait,
};

use super::{PATIENCE, Rig, SERVERS};
use crate::nics::{E1000E, Kind, VIRTIO};

impl Rig<'_> {
    /// A NIC with several queues.
    pub(super) fn queues(&mut self) -> Result<()> {
        let counters = self.use_nics(VIRTIO, "cores = [1, 1, 2, 2]\nidle = \"adaptive\"")?;
        let received: Vec<u64> = counters.workers.iter().map(|worker| worker.received).collect();
        ensure!(
            received.len() == VIRTIO.queues && received.iter().all(|packets| *packets > 0),
            "a queue without packets: {received:?}"
        );
        self.tell(&format!("virtio-net, vfio-pci: RSS over four queues, packets by worker {received:?}"));
        Ok(())
    }

    /// The machine without its IOMMU.
    pub(super) fn without_iommu(&mut self) -> Result<()> {
        self.use_nics(E1000E, "cores = [1]")?;
        self.reboot(
            "sed -i s/intel_iommu=on/intel_iommu=off/ /etc/default/grub.d/rvs.cfg\nupdate-grub\nsystemctl reboot\n",
        )?;
        wait::until("it balances", PATIENCE, || self.ask_from_ports())?;
        self.have_driver(E1000E, "uio_pci_generic")?;
        self.guest.run("journalctl --boot --unit rvs | grep 'can write to all of the memory'")?;
        self.tell("e1000e, uio_pci_generic: booted without the IOMMU");
        Ok(())
    }

    /// Has RVS run with other NICs, and asks.
    pub(super) fn use_nics(&mut self, kind: Kind, workers: &str) -> Result<Counters> {
        self.guest.write("/etc/rvs/rvs.toml", &configuration(kind, workers, 512))?;
        let said = self.guest.run("rvs setup -c /etc/rvs/rvs.toml && systemctl restart rvs && rvs ports")?;
        self.transcript.write_all(said.as_bytes())?;
        self.have_driver(kind, "vfio-pci")?;
        // Another NIC has another MAC, and RVS does not announce it.
        for neighbour in [&self.cluster.client, &self.cluster.real_servers[SERVERS]] {
            neighbour.ip("neighbour flush all")?;
        }
        self.ask_from_ports()?;
        let text = self.guest.run("rvs list --counters --json")?;
        serde_json::from_str(&text).context(text)
    }

    /// Both NICs of this kind have this driver.
    pub(super) fn have_driver(&mut self, kind: Kind, wanted: &str) -> Result<()> {
        for address in kind.addresses {
            let link = format!("/sys/bus/pci/devices/{address}/driver");
            let driver = self.guest.run(&format!("basename $(readlink {link})"))?;
            ensure!(driver.trim() == wanted, "{address} has {driver}");
        }
        Ok(())
    }

    /// Asks for a page from each of forty ports, which are the same in each run, since a NIC spreads by them, and others each
    /// time, since the connections before linger.
    pub(super) fn ask_from_ports(&mut self) -> Result<()> {
        let ports = self.port..self.port + 40;
        self.port = ports.end;
        self.cluster.client.enter(|| {
            for port in ports {
                let socket = client::bound(SocketAddrV4::new(CLIENT, port))?;
                socket.connect(&vip(80).into()).with_context(|| format!("from port {port}"))?;
                let mut stream = std::net::TcpStream::from(socket);
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                ensure!(answer.ends_with("rs3\n"), "from port {port}: {answer}");
            }
            Ok(())
        })
    }
}

/// A configuration of the page's kind with other NICs, so much memory in MB, and the third real server alone.
pub(super) fn configuration(kind: Kind, workers: &str, memory: u32) -> String {
    let [wan, lan] = kind.addresses;
    format!(
        r#"eal.memory = {memory}
table.connections = 100_000

[workers]
{workers}

[[port]]
name = "wan"
device = "{wan}"
addresses = ["192.0.2.1/24"]

[[port]]
name = "lan"
device = "{lan}"
addresses = ["10.0.0.1/24"]

[[service]]
address = "192.0.2.10:80"
mode = "nat"

[[service.server]]
address = "10.0.0.13:8080"
"#
    )
}
