//! The kernel, and its clocks.

use super::{Finding, Root, Severity};
use crate::config::Config;

/// The first kernel with what AF_XDP needs.
const XDP_KERNEL: (u32, u32) = (5, 4);

/// What a time service leaves when it has begun.
const TIME_SERVICES: [&str; 5] = [
    "/run/systemd/timesync/synchronized",
    "/run/chrony/chronyd.pid",
    "/run/chronyd.pid",
    "/run/ntpd.pid",
    "/run/ptp4l",
];

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Its first two numbers.
    kernel: Option<(u32, u32)>,
    /// What Linux reads the time from.
    source: Option<String>,
    /// Whether something keeps the time right.
    synchronised: bool,
}

impl Facts {
    pub(super) fn collect(root: &Root) -> Facts {
        let release = root.read("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(['.', '-']).map(|part| part.parse().ok());
        Facts {
            kernel: numbers.next().flatten().zip(numbers.next().flatten()),
            source: root.read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            synchronised: TIME_SERVICES.iter().any(|path| root.exists(path)),
        }
    }
}

pub(super) fn judge(facts: &Facts, config: Option<&Config>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_xdp = |(_, _, device): (usize, String, &str)| device.starts_with("net_af_xdp");
    let xdp = config.is_some_and(|config| config.devices().any(is_xdp));
    if let Some((major, minor)) = facts.kernel.filter(|kernel| *kernel < XDP_KERNEL) {
        findings.push(Finding::new("kernel-old", 
            if xdp { Severity::Error } else { Severity::Warning },
            "kernel",
            format_args!("Linux {major}.{minor} is older than what RVS is tried with, and has no AF_XDP as DPDK wants it"),
            "run Linux 5.4 or newer",
        ));
    }
    // A virtual machine's own clock (kvm-clock, hyperv) is as fast.
    if let Some(source @ ("hpet" | "acpi_pm" | "jiffies" | "xen")) = facts.source.as_deref() {
        findings.push(Finding::new("clock-source", 
            Severity::Warning,
            "clock",
            format_args!("Linux reads the time from {source}, which takes a microsecond each time, or more"),
            "find out why it does not trust the TSC (dmesg | grep -i tsc); tsc=reliable on the kernel's command line, if it may",
        ));
    }
    if !facts.synchronised {
        findings.push(Finding::new(
            "clock-alone",
            Severity::Note,
            "clock",
            "no time service is seen: logs of several machines will not fit together",
            "run chrony or systemd-timesyncd",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::{config, machine, short};
    use super::*;

    fn facts(release: &str, source: &str, synchronised: bool) -> Facts {
        let mut files = vec![
            ("/proc/sys/kernel/osrelease", release),
            ("/sys/devices/system/clocksource/clocksource0/current_clocksource", source),
        ];
        if synchronised {
            files.push((TIME_SERVICES[0], ""));
        }
        let (_directory, root) = machine(&files);
        Facts::collect(&root)
    }

    #[test]
    fn kernels() {
        let xdp = config("net_af_xdp,iface=eth1", "");
        let judge = |release: &str| judge(&facts(release, "tsc", true), Some(&xdp));
        assert_eq!(judge("6.1.0-28-amd64"), []);
        assert_eq!(judge("5.4.0"), []);
        assert_eq!(judge("5.3.18-lp152")[0].severity, Severity::Error);
        assert_eq!(judge("strange"), []);
        assert_eq!(super::judge(&facts("4.19.0", "tsc", true), None)[0].severity, Severity::Warning);
    }

    #[test]
    fn clocks() {
        assert_eq!(judge(&facts("6.1.0", "kvm-clock", true), None), []);
        let found = short(&judge(&facts("6.1.0", "hpet", false), None));
        assert!(
            found[0].starts_with("warning Linux reads the time from hpet") && found.len() == 2,
            "{found:?}"
        );
    }
}
