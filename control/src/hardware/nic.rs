//! A NIC in sysfs.

use crate::root::Root;

/// PCI class of what has to do with networks.
const NETWORK: u32 = 0x02;
/// PCI class and subclass of bridges to another bus of PCI, which forward and do not belong to anybody.
const BRIDGE: u32 = 0x0604;

/// A device on the PCI bus; a NIC, if its class says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nic {
    /// In full, `0000:01:00.0`.
    pub address: String,
    /// Who has made it.
    pub vendor: u16,
    /// Which of the vendor's devices it is.
    pub device: u16,
    /// Class, subclass and programming interface.
    pub class: u32,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The NUMA node that it is plugged into; none on a machine with one, or that does not say.
    pub node: Option<usize>,
    /// Its interfaces in Linux, in this network namespace.
    pub interfaces: Vec<Interface>,
    /// What the IOMMU cannot keep apart from it; none without an IOMMU.
    pub group: Option<Group>,
}

/// An interface of Linux.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    /// E.g. `enp1s0`.
    pub name: String,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it has a link; not known while it is down.
    pub link: Option<bool>,
    /// Mbit/s, with a link.
    pub speed: Option<u32>,
    /// As text.
    pub mac: Option<String>,
}

/// An IOMMU group: it goes to one owner as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// As in `/sys/kernel/iommu_groups` and `/dev/vfio`.
    pub number: String,
    /// The other devices in it that have a driver of Linux, by address, with that driver.
    pub others: Vec<(String, String)>,
}

/// All NICs, by address.
pub(crate) fn nics(root: &Root) -> Vec<Nic> {
    let devices = root.list("/sys/bus/pci/devices").into_iter();
    devices.filter_map(|address| Nic::read(root, &address)).filter(Nic::is_nic).collect()
}

impl Nic {
    /// The device at an address; none if there is none.
    pub fn read(root: &Root, address: &str) -> Option<Nic> {
        let path = directory(address);
        root.exists(&path).then(|| Nic {
            address: address.to_owned(),
            vendor: root.hex(&format!("{path}/vendor")).unwrap_or(0) as u16,
            device: root.hex(&format!("{path}/device")).unwrap_or(0) as u16,
            class: root.hex(&format!("{path}/class")).unwrap_or(0),
            driver: root.target(&format!("{path}/driver")),
            node: root.number(&format!("{path}/numa_node")),
            interfaces: interfaces(root, &path),
            group: group(root, address),
        })
    }

    /// Whether it is one.
    pub fn is_nic(&self) -> bool {
        self.class >> 16 == NETWORK
    }
}

/// Where sysfs has a device.
pub(crate) fn directory(address: &str) -> String {
    format!("/sys/bus/pci/devices/{address}")
}

fn interfaces(root: &Root, path: &str) -> Vec<Interface> {
    // Those of virtio belong to a device of its own bus below the one on PCI.
    let virtio = root.list(path).into_iter().filter(|name| name.starts_with("virtio"));
    let places = [format!("{path}/net")].into_iter().chain(virtio.map(|name| format!("{path}/{name}/net")));
    let read = |place: String| {
        let names = root.list(&place).into_iter();
        names.map(|name| interface(root, &format!("{place}/{name}"), name)).collect::<Vec<_>>()
    };
    places.flat_map(read).collect()
}

fn interface(root: &Root, path: &str, name: String) -> Interface {
    let link: Option<u8> = root.number(&format!("{path}/carrier"));
    Interface {
        name,
        // IFF_UP.
        up: root.hex(&format!("{path}/flags")).unwrap_or(0) & 1 != 0,
        link: link.map(|link| link == 1),
        // -1 if it is not known.
        speed: root.number(&format!("{path}/speed")),
        mac: root.read(&format!("{path}/address")),
    }
}

fn group(root: &Root, address: &str) -> Option<Group> {
    let number = root.target(&format!("{}/iommu_group", directory(address)))?;
    let others = root.list(&format!("/sys/kernel/iommu_groups/{number}/devices")).into_iter();
    let others = others.filter(|other| other != address).filter_map(|other| {
        let path = directory(&other);
        // Bridges of PCI may stay with their driver, which VFIO knows of; others may not.
        let is_bridge = root.hex(&format!("{path}/class")).is_some_and(|class| class >> 8 == BRIDGE);
        let driver = root.target(&format!("{path}/driver")).filter(|_| !is_bridge)?;
        (!matches!(driver.as_str(), "vfio-pci" | "pci-stub")).then_some((other, driver))
    });
    Some(Group { others: others.collect(), number })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Card, tree};
    use super::*;
    use crate::root::testing::put;

    #[test]
    fn a_nic_of_linux() {
        let (_directory, root) = tree(&[
            Card {
                driver: Some("e1000e"),
                group: Some("7"),
                node: 1,
                interface: Some("eth1"),
                ..Card::at("0000:01:00.0")
            },
            Card { driver: Some("ahci"), group: Some("7"), class: "0x010601", ..Card::at("0000:01:00.1") },
            Card {
                driver: Some("pcieport"),
                group: Some("7"),
                class: "0x060400",
                ..Card::at("0000:00:01.0")
            },
            Card { driver: Some("lpc_ich"), group: Some("7"), class: "0x060100", ..Card::at("0000:00:1f.0") },
        ]);
        let nics = nics(&root);
        let [nic] = &nics[..] else { panic!("{nics:?}") };
        assert_eq!((nic.address.as_str(), nic.vendor, nic.device), ("0000:01:00.0", 0x8086, 0x10d3));
        assert_eq!((nic.driver.as_deref(), nic.node), (Some("e1000e"), Some(1)));
        let group = nic.group.as_ref().unwrap();
        assert_eq!(group.number, "7");
        let other = |address: &str, driver: &str| (address.to_owned(), driver.to_owned());
        assert_eq!(group.others, [other("0000:00:1f.0", "lpc_ich"), other("0000:01:00.1", "ahci")]);
        let [interface] = &nic.interfaces[..] else { panic!("{nic:?}") };
        assert_eq!((interface.name.as_str(), interface.up), ("eth1", true));
        assert_eq!((interface.link, interface.speed), (Some(true), Some(1000)));
    }

    #[test]
    fn the_interface_of_a_virtio_nic_is_a_step_further_down() {
        let (_directory, root) = tree(&[Card { driver: Some("virtio-pci"), ..Card::at("0000:00:03.0") }]);
        put(&root, "/sys/bus/pci/devices/0000:00:03.0/virtio0/net/ens3/flags", "0x1002");
        let nic = Nic::read(&root, "0000:00:03.0").unwrap();
        assert_eq!(nic.interfaces[0].name, "ens3");
        assert_eq!((nic.interfaces[0].up, nic.interfaces[0].link, nic.node), (false, None, None));
        assert_eq!(Nic::read(&root, "0000:00:04.0"), None);
    }
}
