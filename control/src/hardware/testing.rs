//! A made-up sysfs of PCI devices, as Linux lays it out.

use tempfile::TempDir;

use crate::root::Root;
use crate::root::testing::{machine, put};

/// A device, from what a test says of it.
#[derive(Clone, Debug)]
pub(crate) struct Card<'a> {
    pub address: &'a str,
    pub class: &'a str,
    pub driver: Option<&'a str>,
    /// IOMMU group.
    pub group: Option<&'a str>,
    pub node: i32,
    /// Its interface in Linux, up and with a link.
    pub interface: Option<&'a str>,
}

impl<'a> Card<'a> {
    /// An Intel 82574L that nobody has, on a machine that says nothing of nodes and has no IOMMU.
    pub fn at(address: &'a str) -> Card<'a> {
        Card { address, class: "0x020000", driver: None, group: None, node: -1, interface: None }
    }
}

/// A machine with these devices, and the drivers that they have.
pub(crate) fn tree(cards: &[Card<'_>]) -> (TempDir, Root) {
    let (directory, root) = machine(&[]);
    cards.iter().for_each(|card| plug(&root, card));
    (directory, root)
}

/// Plugs a device in.
pub(crate) fn plug(root: &Root, card: &Card<'_>) {
    let at = |file: &str| format!("/sys/bus/pci/devices/{}/{file}", card.address);
    put(root, &at("vendor"), "0x8086");
    put(root, &at("device"), "0x10d3");
    put(root, &at("class"), card.class);
    put(root, &at("numa_node"), &card.node.to_string());
    put(root, &at("driver_override"), "(null)");
    if let Some(driver) = card.driver {
        put(root, &at("driver"), &format!("-> ../../../../bus/pci/drivers/{driver}"));
        put(root, &format!("/sys/bus/pci/drivers/{driver}/bind"), "");
    }
    if let Some(group) = card.group {
        put(root, &at("iommu_group"), &format!("-> ../../../kernel/iommu_groups/{group}"));
        put(root, &format!("/sys/kernel/iommu_groups/{group}/devices/{}", card.address), "-> nowhere");
    }
    if let Some(interface) = card.interface {
        for (file, contents) in
            [("flags", "0x1003"), ("carrier", "1"), ("speed", "1000"), ("address", "52:54:00:00:00:01")]
        {
            put(root, &at(&format!("net/{interface}/{file}")), contents);
        }
        put(root, &format!("/sys/class/net/{interface}/flags"), "0x1003");
    }
}
