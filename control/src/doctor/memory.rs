//! Memory for packets: hugepages.

use super::{Finding, Root, Severity};
use crate::config::Config;
use crate::config::value::pci_address;

const SUBJECT: &str = "memory";

/// What DPDK takes when the file does not say how much, in MB: enough for two ports.
const USUAL: u64 = 512;

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Of each size of hugepages: its size in bytes, how many are reserved, how many of them are free.
    pools: Vec<(u64, u64, u64)>,
    /// Whether a hugetlbfs is mounted.
    mounted: bool,
    /// Whether RVS runs, and has taken its part of them.
    runs: bool,
}

impl Facts {
    pub(super) fn collect(root: &Root, config: &Config) -> Facts {
        let directory = "/sys/kernel/mm/hugepages";
        let pool = |name: String| {
            let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count = |what: &str| root.number(&format!("{directory}/{name}/{what}"));
            Some((kilobytes << 10, count("nr_hugepages")?, count("free_hugepages")?))
        };
        let mounts = root.read("/proc/mounts").unwrap_or_default();
        Facts {
            pools: root.list(directory).into_iter().filter_map(pool).collect(),
            mounted: mounts.lines().any(|line| line.split(' ').nth(2) == Some("hugetlbfs")),
            runs: root.runs(config),
        }
    }
}

/// How many MB of hugepages DPDK wants.
pub(super) fn wanted(config: &Config) -> u64 {
    if config.eal.hugepages { config.eal.memory_mb.map_or(USUAL, u64::from) } else { 0 }
}

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    if !config.eal.hugepages {
        let nics = config.ports.iter().any(|port| pci_address(&port.device).is_some());
        return Vec::from_iter(nics.then(|| {
            Finding::new(
                Severity::Warning,
                SUBJECT,
                "eal.hugepages = false with a NIC: slow, and most NICs' drivers refuse it",
                "reserve hugepages and remove the line",
            )
        }));
    }
    let mut findings = Vec::new();
    let sum = |count: fn(&(u64, u64, u64)) -> u64| {
        facts.pools.iter().map(|pool| pool.0 * count(pool)).sum::<u64>() >> 20
    };
    let (reserved, free) = (sum(|pool| pool.1), sum(|pool| pool.2));
    let wanted = wanted(config);
    let reserve = format!(
        "echo {} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages, and vm.nr_hugepages in /etc/sysctl.d to have \
         them after a boot; or hugepages = false under [eal], if speed does not matter",
        (wanted + (reserved - free.min(reserved))).div_ceil(2)
    );
    if reserved == 0 {
        findings.push(Finding::new(Severity::Error, SUBJECT, "no hugepages are reserved", reserve));
    } else if free < wanted && !facts.runs {
        let problem = format!("{free} MB of hugepages are free (of {reserved} MB), {wanted} MB are wanted");
        let severity = if config.eal.memory_mb.is_some() { Severity::Error } else { Severity::Warning };
        findings.push(Finding::new(severity, SUBJECT, problem, reserve));
    }
    if config.eal.file_prefix.is_some() && !facts.mounted && reserved > 0 {
        findings.push(Finding::new(
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
}
