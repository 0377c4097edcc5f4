//! Memory for packets: hugepages.

use std::collections::BTreeSet;

use super::{Finding, Root, Severity};
use crate::config::Config;
use crate::config::value::pci_address;
use crate::memory::{self, Pages};

const SUBJECT: &str = "memory";

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// What there is.
    pages: Vec<Pages>,
    /// The NUMA nodes where it is wanted: those of the NICs.
    nodes: BTreeSet<usize>,
    /// Whether a hugetlbfs is mounted.
    mounted: bool,
    /// Whether RVS runs, and has taken its part of them.
    runs: bool,
}

impl Facts {
    pub(super) fn collect(root: &Root, config: &Config) -> Facts {
        let mounts = root.read("/proc/mounts").unwrap_or_default();
        Facts {
            pages: memory::pages(root),
            nodes: memory::nodes(root, config),
            mounted: mounts.lines().any(|line| line.split(' ').nth(2) == Some("hugetlbfs")),
            runs: root.runs(config),
        }
    }
}

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    if !config.eal.hugepages {
        let nics = config.devices().any(|(_, _, device)| pci_address(device).is_some());
        return Vec::from_iter(nics.then(|| {
            Finding::new(
                "hugepages-off",
                Severity::Warning,
                SUBJECT,
                "eal.hugepages = false with a NIC: slow, and most NICs' drivers refuse it",
                "reserve hugepages and remove the line",
            )
        }));
    }
    let mut findings = Vec::new();
    let sum = |count: fn(&Pages) -> u64, node: Option<usize>| {
        let here = facts.pages.iter().filter(|pages| node.is_none() || pages.node == node);
        here.map(|pages| pages.size * count(pages)).sum::<u64>() >> 20
    };
    let (reserved, free) = (sum(|pages| pages.reserved, None), sum(|pages| pages.free, None));
    let share = memory::wanted(config, facts.nodes.len());
    let wanted = share * facts.nodes.len() as u64;
    let remedy = format!(
        "rvs setup -c {}, and the unit rvs-setup to have them after a boot; or hugepages = false under [eal], if speed does not matter",
        config.path.display()
    );
    let severity = if config.eal.memory_mb.is_some() { Severity::Error } else { Severity::Warning };
    if reserved == 0 {
        findings.push(Finding::new(
            "hugepages-none",
            Severity::Error,
            SUBJECT,
            "no hugepages are reserved",
            remedy,
        ));
    } else if free < wanted && !facts.runs {
        let problem = format!("{free} MB of hugepages are free (of {reserved} MB), {wanted} MB are wanted");
        findings.push(Finding::new("hugepages-few", severity, SUBJECT, problem, remedy));
    } else if !facts.runs {
        let is_known = |node: &&usize| facts.pages.iter().any(|pages| pages.node == Some(**node));
        for &node in facts.nodes.iter().filter(is_known) {
            let free = sum(|pages| pages.free, Some(node));
            if free < share {
                let problem = format!(
                    "{free} MB of hugepages are free on node {node}, where NICs are; {share} MB are wanted there"
                );
                findings.push(Finding::new("hugepages-node", Severity::Warning, SUBJECT, problem, &remedy));
            }
        }
    }
    if config.eal.file_prefix.is_some() && !facts.mounted && reserved > 0 {
        findings.push(Finding::new(
            "hugepages-unmounted",
            Severity::Error,
            SUBJECT,
            "no hugetlbfs is mounted, which eal.file_prefix needs",
            "mount -t hugetlbfs nodev /dev/hugepages, or remove eal.file_prefix",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::{config, machine, short};
    use super::*;
    use crate::hardware::testing::{Card, plug};

    fn facts(reserved: &str, free: &str) -> Facts {
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let (reserved_at, free_at) = (format!("{pool}/nr_hugepages"), format!("{pool}/free_hugepages"));
        let mounts = "proc /proc proc rw 0 0\nnodev /dev/hugepages hugetlbfs rw 0 0";
        let (_directory, root) =
            machine(&[(&reserved_at, reserved), (&free_at, free), ("/proc/mounts", mounts)]);
        Facts::collect(&root, &config("0000:01:00.0", ""))
    }

    #[test]
    fn enough_or_not() {
        let config = config("0000:01:00.0", "[eal]\nmemory = 1024\nfile_prefix = \"a\"");
        assert_eq!(short(&judge(&facts("1024", "600"), &config)), [""; 0]);
        assert_eq!(
            short(&judge(&facts("1024", "100"), &config)),
            ["error 200 MB of hugepages are free (of 2048 MB), 1024 MB are wanted"]
        );
        assert_eq!(short(&judge(&facts("0", "0"), &config)), ["error no hugepages are reserved"]);
        let unmounted = Facts { mounted: false, ..facts("1024", "600") };
        assert_eq!(short(&judge(&unmounted, &config)).len(), 1);
        // It has them itself.
        assert_eq!(short(&judge(&Facts { runs: true, ..facts("1024", "0") }, &config)), [""; 0]);
    }

    #[test]
    fn ordinary_memory_is_for_virtual_devices() {
        assert_eq!(judge(&facts("0", "0"), &config("net_null", "[eal]\nhugepages = false")), []);
        let nic = config("0000:01:00.0", "[eal]\nhugepages = false");
        assert_eq!(judge(&facts("0", "0"), &nic)[0].severity, Severity::Warning);
    }

    #[test]
    fn enough_and_on_the_wrong_node() {
        let node = |n| format!("/sys/devices/system/node/node{n}/hugepages/hugepages-2048kB");
        let files: Vec<(String, &str)> = [(0, "1024"), (1, "10")]
            .into_iter()
            .flat_map(|(n, count)| {
                ["nr_hugepages", "free_hugepages"].map(|file| (format!("{}/{file}", node(n)), count))
            })
            .collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(path, count)| (path.as_str(), *count)).collect();
        let (_directory, root) = machine(&files);
        plug(&root, &Card { driver: Some("vfio-pci"), node: 1, ..Card::at("0000:01:00.0") });
        let config = config("0000:01:00.0", "");
        assert_eq!(
            short(&judge(&Facts::collect(&root, &config), &config)),
            ["warning 20 MB of hugepages are free on node 1, where NICs are; 512 MB are wanted there"]
        );
        plug(&root, &Card { driver: Some("vfio-pci"), node: 0, ..Card::at("0000:01:00.0") });
        assert_eq!(short(&judge(&Facts::collect(&root, &config), &config)), [""; 0]);
    }
}
