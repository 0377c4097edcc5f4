//! Whether this machine has what a configuration names.
//!
//! The facts are collected apart from the judgement, so that the judgement is tested with machines that
//! nobody owns. Only `rvs run` and `rvs check` ask: a reload cannot change cores, devices or the table,
//! and while RVS runs, its own table is what made the memory scarce.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::error::Report;
use super::raw::Document;
use super::{Config, ConfigErrors, Table, value};
use crate::hardware::{self, Obstacle};
use crate::memory;
use crate::net::NoIpv6;
use crate::root::Root;
use crate::setup::Permit;

/// Facts about a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Cores that Linux uses.
    pub online_cores: BTreeSet<usize>,
    /// Network interfaces in this network namespace.
    pub interfaces: BTreeSet<String>,
    /// By PCI address, e.g. `0000:01:00.0`: why DPDK cannot have the device, if it cannot.
    pub(crate) pci_devices: BTreeMap<String, Option<Obstacle>>,
    /// NICs, by PCI address, that RVS starts without if they are not there, since they have been.
    pub awaited: BTreeSet<String>,
    /// Whether there are hugepages, as far as Linux says.
    pub has_hugepages: Option<bool>,
    /// Why twins cannot have addresses of IPv6, if they cannot.
    pub no_ipv6: Option<NoIpv6>,
    /// Bytes that programs can have without swapping (`MemAvailable`).
    pub available_memory: u64,
}

impl Machine {
    /// This machine.
    pub fn read() -> anyhow::Result<Machine> {
        let read = |path| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let root = Root::new(Path::new("/"));
        let online = read("/sys/devices/system/cpu/online")?;
        let meminfo = read("/proc/meminfo")?;
        // By system call and not from /sys/class/net, which shows the namespace in which it was mounted.
        let interfaces = nix::net::if_::if_nameindex().context("cannot list the network interfaces")?;
        let names = interfaces.iter().map(|interface| interface.name().to_string_lossy().into_owned());
        Ok(Machine {
            online_cores: core_list(&online).context("cannot understand /sys/devices/system/cpu/online")?,
            interfaces: names.collect(),
            pci_devices: hardware::obstacles(&root),
            awaited: BTreeSet::new(),
            has_hugepages: memory::has_pages(&root),
            no_ipv6: NoIpv6::of(&root),
            available_memory: available_memory(&meminfo).context("/proc/meminfo has no MemAvailable")?,
        })
    }
}

impl Config {
    /// Whether the machine has the cores, devices and memory that are configured.
    pub fn check_machine(&self, machine: &Machine) -> Result<(), ConfigErrors> {
        let document = Document::parse(&self.source)?;
        let report = Report::new(self.source.clone());
        let wrong = |key: &str, message: String| report.error(document.find(key), key, message);

        let cores =
            self.workers.cores.iter().enumerate().map(|(i, core)| (format!("workers.cores[{i}]"), core));
        let control = self.workers.control_cores.iter().flatten().enumerate();
        let control = control.map(|(i, core)| (format!("workers.control_cores[{i}]"), core));
        for (key, core) in cores.chain(control) {
            if !machine.online_cores.contains(core) {
                let online = show_cores(&machine.online_cores);
                wrong(&key, format!("this machine has no core {core} online; expected one of {online}"));
            }
        }
        for (_, key, device) in self.devices() {
            if let Some(obstacle @ (Obstacle::Absent(_) | Obstacle::NoNic(..))) = machine.obstacle(device) {
                wrong(&key, self.with_remedy(&obstacle));
            }
            if let Some(interface) = value::interface(device)
                && !machine.interfaces.contains(interface)
            {
                let there: Vec<&str> = machine.interfaces.iter().map(String::as_str).take(20).collect();
                wrong(
                    &key,
                    format!(
                        "this machine has no interface {interface:?}; expected one of {}",
                        there.join(", ")
                    ),
                );
            }
        }
        // One that is kept may be there already, or in hugepages; whoever makes it finds out.
        if self.table.keep.is_none() && self.table.bytes() > machine.available_memory {
            wrong(
                "table.connections",
                format!(
                    "{} connections take {} MB, of which {} MB are available; expected at most {}",
                    self.table.connections,
                    self.table.bytes() >> 20,
                    machine.available_memory >> 20,
                    most_connections(machine.available_memory)
                ),
            );
        }
        report.finish()
    }

    /// Whether RVS could start on it now: whether DPDK can have the NICs, and there are hugepages and IPv6. What a machine lacks that
    /// nobody has prepared yet, and no fault of the file.
    pub fn check_prepared(&self, machine: &Machine) -> Result<(), ConfigErrors> {
        let document = Document::parse(&self.source)?;
        let report = Report::new(self.source.clone());
        let wrong = |key: &str, message: String| report.error(document.find(key), key, message);
        for (_, key, device) in self.devices() {
            // That another RVS has it is told by its claim.
            if let Some(obstacle) = machine.obstacle(device).filter(|obstacle| !obstacle.is_rvs()) {
                wrong(&key, self.with_remedy(&obstacle));
            }
        }
        if self.eal.hugepages && machine.has_hugepages == Some(false) {
            let file = self.path.display();
            wrong(
                "eal",
                format!("no hugepages are reserved; rvs setup -c {file}, or hugepages = false under [eal]"),
            );
        }
        if let (Some(lack), Some(key)) = (machine.no_ipv6, self.first_ipv6()) {
            wrong(&key, lack.to_string());
        }
        report.finish()
    }

    /// Whether a program that takes over from a running one could start. What that one has taken of memory will be free, and
    /// its NICs will be; those that nobody has prepared yet would end both.
    pub fn check_to_take_over(&self, machine: &Machine) -> Result<(), ConfigErrors> {
        self.check_machine(&Machine { available_memory: u64::MAX, ..machine.clone() })?;
        self.check_prepared(machine)
    }

    /// The key of the first address of IPv6 that a twin is to have.
    pub(crate) fn first_ipv6(&self) -> Option<String> {
        let ports = self.ports.iter().enumerate().find_map(|(index, port)| {
            let place = port.addresses.iter().position(|prefix| prefix.address.is_ipv6())?;
            Some(format!("{}.addresses[{place}]", self.key_of_port(index)))
        });
        ports.or_else(|| {
            let index = self.services.iter().position(|service| service.address.is_ipv6())?;
            Some(format!("service[{index}].address"))
        })
    }

    fn with_remedy(&self, obstacle: &Obstacle) -> String {
        format!("{obstacle}; {}", obstacle.remedy(&self.path.to_string_lossy()))
    }
}

impl Machine {
    /// With those of a configuration's NICs awaited that `rvs setup` has taken for it.
    pub fn awaiting(mut self, config: &Config) -> Machine {
        let root = Root::new(Path::new("/"));
        let permit = Permit::read(&root).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "it is not known which NICs rvs setup has taken");
            Permit::default()
        });
        let addresses = config.devices().filter_map(|(_, _, device)| value::pci_address(device));
        self.awaited = addresses.filter(|address| permit.knows(address, config)).collect();
        self
    }

    /// Whether RVS starts without this device, which is not there.
    pub fn lacks(&self, device: &str) -> bool {
        let address = value::pci_address(device);
        address.is_some_and(|address| {
            self.awaited.contains(&address) && !self.pci_devices.contains_key(&address)
        })
    }

    /// Why DPDK cannot have a device, if it is on PCI and cannot be had.
    fn obstacle(&self, device: &str) -> Option<Obstacle> {
        let address = value::pci_address(device)?;
        let known = self.pci_devices.get(&address).cloned();
        known.unwrap_or_else(|| (!self.lacks(device)).then_some(Obstacle::Absent(address)))
    }
}

/// The largest table that fits.
fn most_connections(memory: u64) -> u64 {
    let four = Table::of(4).bytes();
    memory / four * 4
}

/// Linux's list format: `0-3,8,10-11`.
pub(crate) fn core_list(text: &str) -> Option<BTreeSet<usize>> {
    let mut cores = BTreeSet::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cores)
}

/// The reverse of [`core_list`].
pub(crate) fn show_cores(cores: &BTreeSet<usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => ranges.push((core, core)),
        }
    }
    let show = |(first, last): &(usize, usize)| {
        if first == last { format!("{first}") } else { format!("{first}-{last}") }
    };
    ranges.iter().map(show).collect::<Vec<_>>().join(",")
}

/// Bytes that programs can have without swapping, by `/proc/meminfo`.
pub(crate) fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const FILE: &str = r#"[workers]
cores = [1, 9]
control_cores = [8]
[table]
connections = 500_000_000
[[port]]
name = "wan"
device = "net_af_packet,iface=eth7"
[[port]]
name = "lan"
device = "3b:00.0"
[[port]]
name = "null"
device = "net_null"
"#;

    fn machine() -> Machine {
        Machine {
            online_cores: BTreeSet::from([0, 1, 2, 3, 8]),
            interfaces: ["eth7", "lo"].map(str::to_owned).into(),
            pci_devices: [("0000:3b:00.0".to_owned(), None)].into(),
            awaited: BTreeSet::new(),
            has_hugepages: Some(true),
            no_ipv6: None,
            available_memory: 64 << 30,
        }
    }

    fn judge(file: &str, machine: &Machine) -> Result<(), ConfigErrors> {
        super::super::parse(Path::new("f"), file.into()).unwrap().check_machine(machine)
    }

    #[test]
    fn a_machine_that_has_everything() {
        judge(&FILE.replace("9", "2"), &machine()).unwrap();
    }

    #[test]
    fn a_machine_that_lacks_everything() {
        let poor = Machine {
            online_cores: BTreeSet::from([0, 1, 2, 3, 5]),
            interfaces: ["eth0", "lo"].map(str::to_owned).into(),
            pci_devices: BTreeMap::new(),
            awaited: BTreeSet::new(),
            has_hugepages: None,
            no_ipv6: None,
            available_memory: 2 << 30,
        };
        let expected = r#"
f:2:13: workers.cores[1]: this machine has no core 9 online; expected one of 0-3,5
    2 | cores = [1, 9]
      |             ^
f:3:18: workers.control_cores[0]: this machine has no core 8 online; expected one of 0-3,5
    3 | control_cores = [8]
      |                  ^
f:5:15: table.connections: 500000000 connections take 15258 MB, of which 2048 MB are available; expected at most 67108864
    5 | connections = 500_000_000
      |               ^^^^^^^^^^^
f:8:10: port[0].device: this machine has no interface "eth7"; expected one of eth0, lo
    8 | device = "net_af_packet,iface=eth7"
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^
f:11:10: port[1].device: there is no PCI device 0000:3b:00.0; take an address that `rvs ports` shows
   11 | device = "3b:00.0"
      |          ^^^^^^^^^"#;
        assert_eq!(judge(FILE, &poor).unwrap_err().to_string(), expected.trim_start());
    }

    fn prepared(machine: &Machine) -> Result<(), ConfigErrors> {
        super::super::parse(Path::new("f"), FILE.into()).unwrap().check_prepared(machine)
    }

    #[test]
    fn a_machine_without_hugepages() {
        prepared(&machine()).unwrap();
        prepared(&Machine { has_hugepages: None, ..machine() }).unwrap();
        let refused = prepared(&Machine { has_hugepages: Some(false), ..machine() }).unwrap_err().to_string();
        assert!(
            refused.contains("eal: no hugepages are reserved; rvs setup -c f, or hugepages = false"),
            "{refused}"
        );
    }

    #[test]
    fn a_machine_without_ipv6() {
        let refused = |more: &str| {
            let machine = Machine { no_ipv6: Some(NoIpv6::OnTwins), ..machine() };
            let config = super::super::parse(Path::new("f"), format!("{FILE}{more}").into()).unwrap();
            config.check_prepared(&machine).map_err(|errors| errors.to_string())
        };
        refused("addresses = ['192.0.2.1/24']").unwrap();
        let address = refused("addresses = ['192.0.2.1/24', '2001:db8::1/64']").unwrap_err();
        assert!(
            address.contains("port[2].addresses[1]: IPv6 is switched off on the twin; expected"),
            "{address}"
        );
        let service = refused("[[service]]\naddress = '[2001:db8::10]:80'\nmode = 'nat'\n").unwrap_err();
        assert!(service.contains("service[0].address: IPv6 is switched off"), "{service}");
    }

    #[test]
    fn a_nic_that_somebody_else_has() {
        let address = || "0000:3b:00.0".to_owned();
        let with = |obstacle| {
            let machine = Machine { pci_devices: [(address(), Some(obstacle))].into(), ..machine() };
            // It is no fault of the file.
            judge(&FILE.replace("9", "2"), &machine).unwrap();
            prepared(&machine)
        };
        let refused = with(Obstacle::Linux(address(), "ixgbe".to_owned())).unwrap_err().to_string();
        let expected =
            "port[1].device: 0000:3b:00.0 is Linux' (driver ixgbe), DPDK cannot have it; rvs setup -c f";
        assert!(refused.contains(expected), "{refused}");
        let used =
            |program: &str| Obstacle::InUse { address: address(), pid: 7, program: program.to_owned() };
        assert!(with(used("dpdk-testpmd")).is_err());
        // Its claim is what tells.
        with(used("rvs")).unwrap();
    }

    #[test]
    fn a_nic_that_has_been_there_is_awaited() {
        let absent = Machine { pci_devices: BTreeMap::new(), ..machine() };
        let file = FILE.replace("9", "2");
        assert!(!absent.lacks("3b:00.0") && judge(&file, &absent).is_err() && prepared(&absent).is_err());
        let awaiting = |machine| Machine { awaited: ["0000:3b:00.0".to_owned()].into(), ..machine };
        let awaited = awaiting(absent);
        assert!(awaited.lacks("3b:00.0") && !awaited.lacks("3b:00.1") && !awaited.lacks("net_null"));
        judge(&file, &awaited).unwrap();
        prepared(&awaited).unwrap();
        // One that is there must be one that DPDK can have.
        let linux = Obstacle::Linux("0000:3b:00.0".to_owned(), "ixgbe".to_owned());
        let there = Machine { pci_devices: [("0000:3b:00.0".to_owned(), Some(linux))].into(), ..machine() };
        let there = awaiting(there);
        assert!(!there.lacks("3b:00.0") && prepared(&there).is_err());
    }

    #[test]
    fn who_takes_over_needs_nics_that_are_prepared() {
        let address = "0000:3b:00.0".to_owned();
        let take_over = |obstacle, hugepages| {
            let machine = Machine {
                pci_devices: [(address.clone(), obstacle)].into(),
                has_hugepages: Some(hugepages),
                available_memory: 1 << 20,
                ..machine()
            };
            let file = FILE.replace("9", "2").into();
            super::super::parse(Path::new("f"), file).unwrap().check_to_take_over(&machine)
        };
        take_over(None, true).unwrap();
        // The running one's.
        let used = Obstacle::InUse { address: address.clone(), pid: 7, program: "rvs".to_owned() };
        take_over(Some(used), true).unwrap();
        let linux = Obstacle::Linux(address.clone(), "ixgbe".to_owned());
        let refused = take_over(Some(linux), true).unwrap_err().to_string();
        assert!(refused.contains("(driver ixgbe), DPDK cannot have it; rvs setup -c f"), "{refused}");
        assert!(take_over(None, false).unwrap_err().to_string().contains("no hugepages are reserved"));
    }

    #[test]
    fn the_largest_table_that_fits_does_fit() {
        for memory in [1 << 20, 100 << 20, 2 << 30] {
            let most = Table::of(most_connections(memory));
            assert!(most.bytes() <= memory, "{memory}");
            assert!(Table::of(most.connections + 1).bytes() > memory, "{memory}");
        }
    }

    #[test]
    fn lists_of_cores() {
        let cores = core_list("0-3,8,10-11\n").unwrap();
        assert_eq!(cores, BTreeSet::from([0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(show_cores(&cores), "0-3,8,10-11");
        assert_eq!(core_list("0-x"), None);
    }

    #[test]
    fn this_machine_is_readable() {
        let machine = Machine::read().unwrap();
        assert!(!machine.online_cores.is_empty() && machine.interfaces.contains("lo"));
        assert!(machine.available_memory > 0);
    }
}
