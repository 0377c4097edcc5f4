//! Whether this machine has what a configuration names.
//!
//! The facts are collected apart from the judgement, so that the judgement is tested with machines that
//! nobody owns. Only `rvs run` and `rvs check` ask: a reload cannot change cores, devices or the table,
//! and while RVS runs, its own table is what made the memory scarce.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Context;

use super::error::Report;
use super::raw::Document;
use super::{Config, ConfigErrors, TableSize, value};

/// Facts about a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Cores that Linux uses.
    pub online_cores: BTreeSet<usize>,
    /// Network interfaces in this network namespace.
    pub interfaces: BTreeSet<String>,
    /// PCI addresses, e.g. `0000:01:00.0`.
    pub pci_devices: BTreeSet<String>,
    /// Bytes that programs can have without swapping (`MemAvailable`).
    pub available_memory: u64,
}

impl Machine {
    /// This machine.
    pub fn read() -> anyhow::Result<Machine> {
        let read = |path| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let online = read("/sys/devices/system/cpu/online")?;
        let memory = read("/proc/meminfo")?;
        // By system call and not from /sys/class/net, which shows the namespace in which it was mounted.
        let interfaces = nix::net::if_::if_nameindex().context("cannot list the network interfaces")?;
        let names = interfaces.iter().map(|interface| interface.name().to_string_lossy().into_owned());
        // A machine without PCI has no such directory.
        let pci = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
        Ok(Machine {
            online_cores: core_list(&online).context("cannot understand /sys/devices/system/cpu/online")?,
            interfaces: names.collect(),
            pci_devices: pci.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
            available_memory: available_memory(&memory).context("/proc/meminfo has no MemAvailable")?,
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
        for (index, port) in self.ports.iter().enumerate() {
            let key = format!("port[{index}].device");
            if let Some(address) = value::pci_address(&port.device)
                && !machine.pci_devices.contains(&address)
            {
                wrong(
                    &key,
                    format!("this machine has no PCI device {address}; expected one that `lspci -D` lists"),
                );
            }
            if let Some(interface) = value::interface(&port.device)
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
        if self.table.bytes() > machine.available_memory {
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
}

/// The largest table that fits.
fn most_connections(memory: u64) -> u64 {
    let smaller = |table: &TableSize| {
        Some(TableSize { connections: table.buckets() }).filter(|t| t.connections >= 1024)
    };
    let largest = TableSize { connections: 1 << 29 };
    let fits = |table: &TableSize| table.bytes() <= memory;
    std::iter::successors(Some(largest), smaller).find(fits).map_or(0, |table| table.connections)
}

/// Linux's list format: `0-3,8,10-11`.
fn core_list(text: &str) -> Option<BTreeSet<usize>> {
    let mut cores = BTreeSet::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cores)
}

/// The reverse of [`core_list`].
fn show_cores(cores: &BTreeSet<usize>) -> String {
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

fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}
