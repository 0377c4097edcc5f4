//! Hugepages: how many a configuration takes, and how many there are, on which NUMA node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::snat::Snat;
use dataplane::table::LocalAddress;

use crate::config::Config;
use crate::config::value::pci_address;
use crate::hardware::Nic;
use crate::ports;
use crate::root::Root;

/// The least that is taken for enough, in MB.
const LEAST: u64 = 512;

/// What drivers and EAL take beside packets, in MB.
const BESIDE: u64 = 128;

/// What a packet takes beside its data, in bytes: its header, and what the pool puts around it.
const AROUND: u64 = 256;

/// The hugepages of one size, on a NUMA node or on a machine that has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    /// Where they are; none if the machine does not say.
    pub node: Option<usize>,
    /// Of one, in bytes.
    pub size: u64,
    /// How many are reserved.
    pub reserved: u64,
    /// How many of them nobody has.
    pub free: u64,
    /// The file by which they are reserved.
    pub file: String,
}

/// How many MB of hugepages DPDK wants on each node, of so many where NICs are.
pub(crate) fn wanted(config: &Config, nodes: usize) -> u64 {
    if !config.eal.hugepages {
        return 0;
    }
    let packet = u64::from(dpdk::data_room(ports::mtu(config))) + AROUND;
    let packets = u64::from(ports::packets(config)) * packet;
    let share = |memory: u32| u64::from(memory).div_ceil(nodes as u64);
    config.eal.memory_mb.map_or_else(|| LEAST.max((packets >> 20) + BESIDE), share)
}

/// How many MB of hugepages a table takes that is kept there: with its index, and the next one while that is written, with the ports
/// of each local address of full NAT, and with the mappings of each pool of source NAT.
pub(crate) fn of_kept_table(config: &Config) -> u64 {
    let pools = config.services.iter().filter_map(|service| service.fullnat.as_ref());
    let locals: BTreeSet<IpAddr> = pools.flat_map(|fullnat| fullnat.local.iter().copied()).collect();
    let of_locals = locals.into_iter().map(LocalAddress::bytes);
    let of_pools = config.routing.snats.iter().map(Snat::bytes);
    let beside = of_locals.chain(of_pools).map(|bytes| bytes.next_multiple_of(2 << 20) >> 20);
    config.table.bytes().div_ceil(1 << 20) + 4 + beside.sum::<u64>()
}

/// The NUMA nodes with memory that the NICs of a configuration are on; none on a machine that does not say.
pub(crate) fn nodes_of_nics(root: &Root, config: &Config) -> BTreeSet<usize> {
    let node = |(_, _, device): (usize, String, &str)| Nic::read(root, &pci_address(device)?)?.node;
    let has_memory = |node: &usize| root.exists(&format!("/sys/devices/system/node/node{node}/hugepages"));
    config.devices().filter_map(node).filter(has_memory).collect()
}

/// Where memory is wanted: on those nodes, or on the first.
pub(crate) fn nodes(root: &Root, config: &Config) -> BTreeSet<usize> {
    let nodes = nodes_of_nics(root, config);
    if nodes.is_empty() { BTreeSet::from([0]) } else { nodes }
}

/// What is there: by node if Linux tells them apart, smallest pages first.
pub(crate) fn pages(root: &Root) -> Vec<Pages> {
    let of = |node: Option<usize>, directory: String| {
        let read = |name: String| {
            let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count = |what: &str| root.number(&format!("{directory}/{name}/{what}"));
            let (reserved, free) = (count("nr_hugepages")?, count("free_hugepages")?);
            let file = format!("{directory}/{name}/nr_hugepages");
            Some(Pages { node, size: kilobytes << 10, reserved, free, file })
        };
        let mut pages: Vec<Pages> = root.list(&directory).into_iter().filter_map(read).collect();
        pages.sort_by_key(|pages| pages.size);
        pages
    };
    let nodes = root.list("/sys/devices/system/node").into_iter();
    let mut nodes: Vec<usize> = nodes.filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
    nodes.sort_unstable();
    let by_node = nodes
        .into_iter()
        .flat_map(|node| of(Some(node), format!("/sys/devices/system/node/node{node}/hugepages")));
    let by_node: Vec<Pages> = by_node.collect();
    if by_node.is_empty() { of(None, "/sys/kernel/mm/hugepages".to_owned()) } else { by_node }
}

/// Whether there are any, or may be when somebody wants them; none if Linux does not say.
pub(crate) fn has_pages(root: &Root) -> Option<bool> {
    let directory = "/sys/kernel/mm/hugepages";
    let counts = root.list(directory).into_iter().filter_map(|name| {
        let count = |file: &str| root.number::<u64>(&format!("{directory}/{name}/{file}"));
        Some(count("nr_hugepages")? + count("nr_overcommit_hugepages").unwrap_or(0))
    });
    counts.reduce(|sum, count| sum + count).map(|sum| sum > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::testing::machine;

    fn config(rest: &str) -> Config {
        let text = format!("{rest}\n[[port]]\nname = \"wan\"\ndevice = \"0000:01:00.0\"\n");
        crate::config::parse(std::path::Path::new("f"), text.into()).unwrap()
    }

    #[test]
    fn what_a_configuration_takes() {
        assert_eq!(wanted(&config("[workers]\ncores = [1]"), 1), 512);
        assert_eq!(wanted(&config("[eal]\nmemory = 301\n[workers]\ncores = [1]"), 2), 151);
        assert_eq!(
            wanted(&config("[eal]\nhugepages = false\n[workers]\ncores = [1]\nidle = \"adaptive\""), 1),
            0
        );
        // 2^19 - 1 packets of 2048 + 128 + 256 bytes, and what is beside.
        let mut many = config("[workers]\ncores = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]");
        many.ports[0].descriptors = 8192;
        assert_eq!(wanted(&many, 1), ((((1 << 19) - 1) * (2048 + 128 + 256)) >> 20) + 128);
    }

    #[test]
    fn pages_or_none_at_all() {
        let all = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let (count, more) = (format!("{all}/nr_hugepages"), format!("{all}/nr_overcommit_hugepages"));
        let has = |files: &[(&str, &str)]| has_pages(&machine(files).1);
        assert_eq!(has(&[]), None);
        assert_eq!(has(&[(&count, "0"), (&more, "0")]), Some(false));
        assert_eq!(has(&[(&count, "0"), (&more, "9")]), Some(true));
        assert_eq!(has(&[(&count, "1")]), Some(true));
    }

    #[test]
    fn pages_by_node_or_of_the_machine() {
        let all = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let (count, free) = (format!("{all}/nr_hugepages"), format!("{all}/free_hugepages"));
        let (_directory, root) = machine(&[(&count, "8"), (&free, "5")]);
        assert_eq!(
            pages(&root),
            [Pages { node: None, size: 2 << 20, reserved: 8, free: 5, file: count.clone() }]
        );
        let on_node = "/sys/devices/system/node/node1/hugepages/hugepages-1048576kB";
        let (count1, free1) = (format!("{on_node}/nr_hugepages"), format!("{on_node}/free_hugepages"));
        let (_directory, root) = machine(&[(&count, "8"), (&free, "5"), (&count1, "2"), (&free1, "1")]);
        assert_eq!(
            pages(&root),
            [Pages { node: Some(1), size: 1 << 30, reserved: 2, free: 1, file: count1 }]
        );
        assert_eq!(nodes(&root, &config("[workers]\ncores = [1]")), BTreeSet::from([0]));
    }
}
