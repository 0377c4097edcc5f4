//! What `rvs ports` shows: the NICs of this machine, whether DPDK could have them, and whose they are.

use std::io::{self, Write};

use serde::Serialize;

use crate::admin::api;
use crate::config::Config;
use crate::config::value::pci_address;
use crate::hardware::{Interface, Names, Nic, Standing, nics};
use crate::root::Root;

/// NICs, and ports of a running RVS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Ports {
    /// Each NIC, by address.
    pub nics: Vec<Card>,
    /// Each port of the RVS that runs; none if none does.
    pub running: Vec<api::Port>,
}

/// A NIC as Linux shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Card {
    /// In full, `0000:01:00.0`.
    pub address: String,
    /// Vendor and device, `8086:10d3`.
    pub id: String,
    /// The same in words, if the list of names is installed.
    pub name: Option<String>,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The NUMA node that it is plugged into.
    pub node: Option<usize>,
    /// What it is in Linux.
    pub interfaces: Vec<Linux>,
    /// Its IOMMU group.
    pub iommu_group: Option<String>,
    /// What Linux uses of the same group, with the driver.
    pub shares_group_with: Vec<String>,
    /// Whether RVS can have it as things are, or has it.
    pub usable: bool,
    /// Why not, or what there is to be said of it.
    pub remark: Option<Remark>,
    /// Which port of the configuration it is.
    pub port: Option<String>,
}

/// An interface of Linux.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Linux {
    /// Its name.
    pub name: String,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it has a link; not known while it is down.
    pub link: Option<bool>,
    /// Mbit/s.
    pub speed: Option<u32>,
    /// Its MAC.
    pub mac: Option<String>,
}

/// What `rvs doctor` would say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Remark {
    /// Under this name.
    pub key: Option<&'static str>,
    /// In these words.
    pub text: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Ports {
    /// What there is, by this configuration if there is one, and by the ports of a running RVS.
    pub fn collect(root: &Root, config: Option<&Config>, running: Vec<api::Port>) -> Ports {
        let names = Names::read(root);
        Ports { nics: nics(root).into_iter().map(|nic| card(root, nic, &names, config)).collect(), running }
    }
}

fn card(root: &Root, nic: Nic, names: &Names, config: Option<&Config>) -> Card {
    let is_it = |device: &str| pci_address(device).as_ref() == Some(&nic.address);
    let port = config
        .and_then(|config| config.ports.iter().find(|port| port.devices.iter().any(|device| is_it(device))));
    let file = config.map_or("FILE".into(), |config| config.path.to_string_lossy());
    let standing = Standing::of(root, &nic.address, Some(&nic));
    let remark = match &standing {
        Standing::Ready => None,
        Standing::Shared(driver) => {
            Some(Remark { key: None, text: format!("DPDK works beside {driver}"), remedy: None })
        }
        Standing::Unprotected(how) => Some(Remark {
            key: Some("nic-unprotected"),
            text: format!("by {how} it can write to all of the memory"),
            remedy: None,
        }),
        Standing::Hindered(obstacle) => Some(Remark {
            key: Some(obstacle.key()),
            text: obstacle.to_string(),
            remedy: (!obstacle.is_rvs()).then(|| obstacle.remedy(&file)),
        }),
    };
    let usable = match &standing {
        Standing::Hindered(obstacle) => obstacle.is_rvs(),
        _ => true,
    };
    let (group, others) = nic.group.map_or((None, Vec::new()), |group| (Some(group.number), group.others));
    Card {
        id: format!("{:04x}:{:04x}", nic.vendor, nic.device),
        name: names.of(nic.vendor, nic.device),
        address: nic.address,
        driver: nic.driver,
        node: nic.node,
        interfaces: nic.interfaces.into_iter().map(Linux::from).collect(),
        iommu_group: group,
        shares_group_with: others
            .into_iter()
            .map(|(address, driver)| format!("{address} ({driver})"))
            .collect(),
        usable,
        remark,
        port: port.map(|port| port.name.clone()),
    }
}

impl From<Interface> for Linux {
    fn from(Interface { name, up, link, speed, mac }: Interface) -> Linux {
        Linux { name, up, link, speed, mac }
    }
}

/// Writes it for a person: a NIC a paragraph.
pub(crate) fn ports(out: &mut impl Write, ports: &Ports) -> io::Result<()> {
    if ports.nics.is_empty() {
        writeln!(out, "this machine has no NIC on PCI")?;
    }
    let of = |card: &Card| {
        let is_it =
            |port: &&api::Port| port.device.as_ref().is_some_and(|device| device.name == card.address);
        ports.running.iter().find(is_it)
    };
    let with_vlans = |out: &mut dyn Write, port: &api::Port| {
        running(out, port)?;
        ports.running.iter().try_for_each(|other| match &other.vlan {
            Some(vlan) if vlan.port == port.name => {
                writeln!(out, "    port {} runs: VLAN {} of {}", other.name, vlan.id, port.name)
            }
            _ => Ok(()),
        })
    };
    for card in &ports.nics {
        paragraph(out, card)?;
        of(card).map_or(Ok(()), |port| with_vlans(out, port))?;
    }
    // Those of virtual devices.
    let is_shown =
        |port: &&api::Port| port.vlan.is_some() || ports.nics.iter().any(|card| of(card) == Some(*port));
    for port in ports.running.iter().filter(|port| !is_shown(port)) {
        writeln!(out, "{}", port.device.as_ref().map_or("an unknown device", |device| &device.name))?;
        with_vlans(out, port)?;
    }
    Ok(())
}

/// What a port runs with, of what it could.
fn running(out: &mut dyn Write, port: &api::Port) -> io::Result<()> {
    let Some(device) = &port.device else { return writeln!(out, "    port {} runs", port.name) };
    let api::Device { driver, mac, mtu, max_queues, rx_descriptors, tx_descriptors, .. } = device;
    let link = api::LinkText { up: device.link_up, speed: device.link_speed };
    writeln!(out, "    port {} runs: {driver}, link {link}, MTU {mtu}, {mac}", port.name)?;
    if let Some(trouble) = &device.trouble {
        writeln!(out, "      it has been {trouble}, and forwards nothing")?;
    }
    for member in &device.members {
        let link = api::LinkText { up: member.link_up, speed: member.link_speed };
        let standing = match (member.up, member.sends) {
            (_, true) => ", sends",
            (true, false) => ", stands by",
            (false, false) if member.link_up => ", the other end has not agreed",
            (false, false) => "",
        };
        writeln!(out, "      member {}: link {link}{standing}", member.name)?;
    }
    let queues = port.queues;
    writeln!(
        out,
        "      queues {queues} of {max_queues}, descriptors {rx_descriptors} to receive, {tx_descriptors} to send"
    )?;
    let spread = match &port.hashed {
        None if queues == 1 => "nothing, with one queue".to_owned(),
        None => "the device's own rules".to_owned(),
        Some(hashed) => {
            let side = if device.hashed_side == "both" {
                String::new()
            } else {
                format!(", of the {}", device.hashed_side)
            };
            let api::Hashed { addresses, tcp_ports, udp_ports } = *hashed;
            format!("{}{side}", dpdk::Hashed { addresses, tcp_ports, udp_ports })
        }
    };
    writeln!(out, "      spread by {spread}; it could hash {}", listed(&device.rss))?;
    writeln!(
        out,
        "      offloads that are not used: {} / {}",
        listed(&device.rx_offloads),
        listed(&device.tx_offloads)
    )
}

fn listed(words: &[String]) -> String {
    if words.is_empty() { "nothing".to_owned() } else { words.join(" ") }
}

fn paragraph(out: &mut impl Write, card: &Card) -> io::Result<()> {
    write!(out, "{}  {}", card.address, card.id)?;
    card.name.iter().try_for_each(|name| write!(out, "  {name}"))?;
    writeln!(out)?;
    write!(
        out,
        "    {}",
        card.driver.as_ref().map_or("no driver".to_owned(), |driver| format!("driver {driver}"))
    )?;
    card.node.iter().try_for_each(|node| write!(out, ", NUMA node {node}"))?;
    match &card.iommu_group {
        None => write!(out, ", behind no IOMMU")?,
        Some(group) => write!(out, ", IOMMU group {group}")?,
    }
    if !card.shares_group_with.is_empty() {
        write!(out, " with {}", card.shares_group_with.join(", "))?;
    }
    writeln!(out)?;
    for interface in &card.interfaces {
        writeln!(out, "    {interface}")?;
    }
    if let Some(port) = &card.port {
        writeln!(out, "    port {port}")?;
    }
    match &card.remark {
        None => writeln!(out, "    DPDK can have it"),
        Some(Remark { key, text, remedy }) => {
            write!(out, "    {text}")?;
            key.iter().try_for_each(|key| write!(out, " [{key}]"))?;
            writeln!(out)?;
            remedy.iter().try_for_each(|remedy| writeln!(out, "    -> {remedy}"))
        }
    }
}

impl std::fmt::Display for Linux {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "interface {}: {}", self.name, if self.up { "up" } else { "down" })?;
        match (self.link, self.speed) {
            (Some(true), Some(speed)) => write!(f, ", link {speed} Mbit/s")?,
            (Some(true), None) => f.write_str(", link")?,
            (Some(false), _) => f.write_str(", no link")?,
            (None, _) => {}
        }
        self.mac.iter().try_for_each(|mac| write!(f, ", {mac}"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::hardware::testing::{Card, tree};
    use crate::root::testing::put;

    #[test]
    fn a_machine_with_four_nics() {
        let (_directory, root) = tree(&[
            Card { driver: Some("e1000e"), interface: Some("eth0"), ..Card::at("0000:00:02.0") },
            Card { driver: Some("vfio-pci"), group: Some("7"), node: 0, ..Card::at("0000:03:00.0") },
            Card { driver: Some("e1000e"), group: Some("8"), node: 0, ..Card::at("0000:03:00.1") },
            Card { driver: Some("vfio-pci"), group: Some("9"), node: 1, ..Card::at("0000:83:00.0") },
            Card { driver: Some("ahci"), group: Some("8"), class: "0x010601", ..Card::at("0000:03:00.2") },
        ]);
        put(&root, "/usr/share/misc/pci.ids", "8086  Intel Corporation\n\t10d3  82574L");
        put(&root, "/proc/8/fd/3", "-> /dev/vfio/9");
        put(&root, "/proc/8/comm", "rvs");
        let text = "[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"03:00.0\"\n";
        let config = crate::config::parse(Path::new("/etc/rvs.toml"), text.into()).unwrap();
        let device = |name: &str, side: &str| api::Device {
            name: name.to_owned(),
            driver: "net_e1000_em".to_owned(),
            mac: "52:54:00:00:00:02".to_owned(),
            node: Some(1),
            mtu: 1500,
            max_queues: 8,
            rx_descriptors: 1024,
            tx_descriptors: 512,
            hashed_side: side.to_owned(),
            rss: ["ipv4", "ipv4-tcp"].map(str::to_owned).into(),
            rx_offloads: vec!["VLAN_STRIP".to_owned()],
            tx_offloads: Vec::new(),
            promiscuous: Some(true),
            link_up: true,
            link_speed: Some(2500),
            trouble: None,
            members: Vec::new(),
        };
        let hashed = api::Hashed { addresses: true, tcp_ports: true, udp_ports: false };
        let running = vec![
            api::Port {
                name: "lan".to_owned(),
                queues: 1,
                hashed: None,
                device: Some(device("net_tap1", "both")),
                vlan: None,
            },
            api::Port {
                name: "old".to_owned(),
                queues: 2,
                hashed: Some(hashed),
                device: Some(device("0000:83:00.0", "source")),
                vlan: None,
            },
            api::Port {
                name: "lan.7".to_owned(),
                queues: 1,
                hashed: None,
                device: None,
                vlan: Some(api::Vlan { port: "lan".to_owned(), id: 7 }),
            },
        ];
        let found = Ports::collect(&root, Some(&config), running);
        let mut out = Vec::new();
        ports(&mut out, &found).unwrap();
        let expected = "\
0000:00:02.0  8086:10d3  Intel Corporation 82574L
    driver e1000e, behind no IOMMU
    interface eth0: up, link 1000 Mbit/s, 52:54:00:00:00:01
    0000:00:02.0 is Linux' (driver e1000e), DPDK cannot have it [nic-linux]
    -> rvs setup -c /etc/rvs.toml
0000:03:00.0  8086:10d3  Intel Corporation 82574L
    driver vfio-pci, NUMA node 0, IOMMU group 7
    port wan
    DPDK can have it
0000:03:00.1  8086:10d3  Intel Corporation 82574L
    driver e1000e, NUMA node 0, IOMMU group 8 with 0000:03:00.2 (ahci)
    0000:03:00.1 is Linux' (driver e1000e), DPDK cannot have it [nic-linux]
    -> rvs setup -c /etc/rvs.toml
0000:83:00.0  8086:10d3  Intel Corporation 82574L
    driver vfio-pci, NUMA node 1, IOMMU group 9
    0000:83:00.0 is in use by process 8 (rvs) [nic-in-use]
    port old runs: net_e1000_em, link up 2.5 Gbit/s, MTU 1500, 52:54:00:00:00:02
      queues 2 of 8, descriptors 1024 to receive, 512 to send
      spread by addresses, ports of TCP, of the source; it could hash ipv4 ipv4-tcp
      offloads that are not used: VLAN_STRIP / nothing
net_tap1
    port lan runs: net_e1000_em, link up 2.5 Gbit/s, MTU 1500, 52:54:00:00:00:02
      queues 1 of 8, descriptors 1024 to receive, 512 to send
      spread by nothing, with one queue; it could hash ipv4 ipv4-tcp
      offloads that are not used: VLAN_STRIP / nothing
    port lan.7 runs: VLAN 7 of lan
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["nics"][1]["port"], "wan");
        assert_eq!(json["nics"][2]["remark"]["key"], "nic-linux");
        assert_eq!(
            (json["nics"][0]["usable"].clone(), json["nics"][3]["usable"].clone()),
            (false.into(), true.into())
        );
    }
}
