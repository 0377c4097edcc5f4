//! The workers' cores: near their NICs, left alone by Linux, and at full speed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Root, Severity};
use crate::config::machine::{core_list, show_cores};
use crate::config::value::pci_address;
use crate::config::{Config, Idle};
use crate::cpu;

const SUBJECT: &str = "cores";

type Cores = BTreeSet<usize>;

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// What the CPU lacks of x86-64-v3.
    lacks: Vec<&'static str>,
    /// Cores that Linux leaves alone (`isolcpus=`).
    isolated: Cores,
    /// Cores without a tick while one thread runs there (`nohz_full=`).
    tickless: Cores,
    /// By core, how its clock is governed.
    governors: BTreeMap<usize, String>,
    /// By core, the hyperthreads that share it, itself among them.
    siblings: BTreeMap<usize, Cores>,
    /// By name of the port, the NUMA node of its NIC and the cores of that node.
    near: BTreeMap<String, (usize, Cores)>,
}

impl Facts {
    pub(super) fn collect(root: &Root, config: &Config) -> Facts {
        let cpu = "/sys/devices/system/cpu";
        let list = |path: &str| root.read(path).and_then(|text| core_list(&text));
        let node = |(index, _, device): (usize, String, &str)| {
            let address = pci_address(device)?;
            // -1: a machine with one node, or one that does not say.
            let node: usize = root.number(&format!("/sys/bus/pci/devices/{address}/numa_node"))?;
            let cores = list(&format!("/sys/devices/system/node/node{node}/cpulist"))?;
            Some((config.ports[index].name.clone(), (node, cores)))
        };
        let workers = || config.workers.cores.iter().copied();
        Facts {
            lacks: cpu::lacking(&root.read("/proc/cpuinfo").unwrap_or_default()),
            isolated: list(&format!("{cpu}/isolated")).unwrap_or_default(),
            // "(null)" where there are none.
            tickless: list(&format!("{cpu}/nohz_full")).unwrap_or_default(),
            governors: workers()
                .filter_map(|core| {
                    Some((core, root.read(&format!("{cpu}/cpu{core}/cpufreq/scaling_governor"))?))
                })
                .collect(),
            siblings: workers()
                .filter_map(|core| {
                    Some((core, list(&format!("{cpu}/cpu{core}/topology/thread_siblings_list"))?))
                })
                .collect(),
            near: config.devices().filter_map(node).collect(),
        }
    }
}

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |key, severity, problem: String, remedy: String| {
        findings.push(Finding::new(key, severity, SUBJECT, problem, remedy));
    };
    let workers: Cores = config.workers.cores.iter().copied().collect();
    if !facts.lacks.is_empty() {
        find(
            "cpu-old",
            Severity::Error,
            format!("the CPU lacks {}", facts.lacks.join(", ")),
            "take one with x86-64-v3 (Intel Haswell, AMD Zen or newer)".to_owned(),
        );
    }
    for (port, (node, near)) in &facts.near {
        let far: Cores = workers.difference(near).copied().collect();
        if !far.is_empty() {
            find(
                "numa-workers",
                Severity::Warning,
                format!(
                    "workers on cores {} are not on node {node}, where the NIC of {port} is",
                    show_cores(&far)
                ),
                format!("take workers.cores among {}", show_cores(near)),
            );
        }
    }
    let slow = |core: &&usize| facts.governors.get(core).is_some_and(|governor| governor != "performance");
    let slow: Cores = workers.iter().filter(slow).copied().collect();
    if !slow.is_empty() {
        find(
            "cores-clock",
            Severity::Warning,
            format!("the clock of cores {} is not governed by `performance`", show_cores(&slow)),
            format!("cpupower -c {} frequency-set -g performance", show_cores(&slow)),
        );
    }
    // A worker that rests leaves time for others, and wants none of the rest.
    if config.workers.idle == Idle::Adaptive {
        return findings;
    }
    let shown = show_cores(&workers);
    if !workers.is_subset(&facts.isolated) {
        find(
            "cores-shared",
            Severity::Warning,
            format!("Linux runs other threads on the workers' cores {shown}"),
            format!("isolcpus={shown} on the kernel's command line, or a cpuset"),
        );
    }
    if !workers.is_subset(&facts.tickless) {
        find(
            "cores-tick",
            Severity::Note,
            format!("Linux' clock interrupts the workers' cores {shown} hundreds of times a second"),
            format!("nohz_full={shown} rcu_nocbs={shown} on the kernel's command line"),
        );
    }
    for (core, siblings) in &facts.siblings {
        let other = siblings.iter().find(|sibling| *sibling > core && workers.contains(sibling));
        if let Some(other) = other {
            find(
                "cores-siblings",
                Severity::Note,
                format!("workers on {core} and {other} share a core, as its two hyperthreads"),
                "take one of them, where there are enough cores".to_owned(),
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::{config, machine, short};
    use super::*;

    const CPU: &str = "/sys/devices/system/cpu";

    #[test]
    fn a_machine_that_nobody_has_prepared() {
        let at = |rest: &str| format!("{CPU}/{rest}");
        let (isolated, governor, siblings) =
            (at("isolated"), at("cpu2/cpufreq/scaling_governor"), at("cpu2/topology/thread_siblings_list"));
        let (_directory, root) = machine(&[
            (&isolated, ""),
            (&governor, "powersave"),
            (&siblings, "2-3"),
            ("/sys/bus/pci/devices/0000:01:00.0/numa_node", "1"),
            ("/sys/devices/system/node/node1/cpulist", "3-5"),
            ("/proc/cpuinfo", "flags : sse2"),
        ]);
        let busy = config("0000:01:00.0", "");
        let found = short(&judge(&Facts::collect(&root, &busy), &busy));
        assert!(found[0].starts_with("error the CPU lacks cx16"), "{found:?}");
        assert_eq!(
            found[1..],
            [
                "warning workers on cores 2 are not on node 1, where the NIC of wan is",
                "warning the clock of cores 2 is not governed by `performance`",
                "warning Linux runs other threads on the workers' cores 2-3",
                "note Linux' clock interrupts the workers' cores 2-3 hundreds of times a second",
                "note workers on 2 and 3 share a core, as its two hyperthreads",
            ]
        );
    }

    #[test]
    fn a_machine_that_is_prepared() {
        let facts = Facts {
            isolated: Cores::from([2, 3]),
            tickless: Cores::from([1, 2, 3]),
            governors: [(2, "performance".to_owned())].into(),
            siblings: [(2, Cores::from([2, 10]))].into(),
            near: [("wan".to_owned(), (0, Cores::from([0, 1, 2, 3])))].into(),
            lacks: Vec::new(),
        };
        assert_eq!(judge(&facts, &config("0000:01:00.0", "")), []);
    }

    #[test]
    fn workers_that_rest_ask_for_less() {
        let text =
            "[workers]\ncores = [2]\nidle = \"adaptive\"\n[[port]]\nname = \"wan\"\ndevice = \"net_null\"\n";
        let adaptive = crate::config::parse(std::path::Path::new("f"), text.into()).unwrap();
        assert_eq!(judge(&Facts::default(), &adaptive), []);
    }
}
