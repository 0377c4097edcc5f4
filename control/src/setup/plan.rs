//! What is to be done for a configuration, or why it is not.

use std::collections::BTreeMap;

use super::change::Change;
use super::permit::Permit;
use crate::config::Config;
use crate::config::machine::available_memory;
use crate::config::value::pci_address;
use crate::hardware::{Iommu, Lifelines, Nic, Obstacle, Standing, UIO, VFIO};
use crate::memory::{self, Pages};
use crate::root::Root;

/// What `rvs setup` would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Why nothing is done at all.
    pub refusals: Vec<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// What is done, in this order.
    pub changes: Vec<Change>,
}

/// Which NICs may be taken from Linux; never one that this machine is reached by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Consent {
    /// Those that Linux does not use.
    Unused,
    /// Those that it uses, too.
    Used,
    /// Those of this permit, at a boot.
    Permitted(Permit),
}

impl Consent {
    /// Whether a NIC was there when the permit was given.
    fn knows(&self, address: &str, config: &Config) -> bool {
        matches!(self, Consent::Permitted(permit) if permit.knows(address, config))
    }
}

/// What this machine lacks for a configuration.
pub(crate) fn plan(root: &Root, config: &Config, lifelines: &Lifelines, consent: &Consent) -> Plan {
    let mut plan = Plan::default();
    let own: Vec<String> = config.devices().filter_map(|(_, _, device)| pci_address(device)).collect();
    for (index, _, device) in config.devices() {
        let (port, Some(address)) = (&config.ports[index], pci_address(device)) else { continue };
        let nic = Nic::read(root, &address);
        let wanted = match Standing::of(root, &address, nic.as_ref()) {
            Standing::Ready | Standing::Unprotected(_) => continue,
            Standing::Shared(driver) => {
                // DPDK gets all that comes to it.
                let taken = nic.iter().try_for_each(|nic| may_take(root, nic, config, lifelines, consent));
                plan.refusals.extend(taken.err().map(|refusal| format!("port {}: {refusal}", port.name)));
                plan.notes.push(format!(
                    "port {}: {address} stays with {driver}, beside which DPDK works",
                    port.name
                ));
                continue;
            }
            // The router itself, as it should be.
            Standing::Hindered(obstacle) if obstacle.is_rvs() && root.runs(config) => continue,
            Standing::Hindered(Obstacle::Linux(..) | Obstacle::Unbound(_) | Obstacle::NoIommu(_)) => nic,
            // Those that are there only because this one's neighbour is not bound yet are no reason.
            Standing::Hindered(Obstacle::Group { .. }) if with_others(nic.as_ref(), &own).is_none() => {
                continue;
            }
            // At a boot. RVS starts without it.
            Standing::Hindered(obstacle @ Obstacle::Absent(_)) if consent.knows(&address, config) => {
                plan.notes
                    .push(format!("port {}: {obstacle}; it is to have no link until there is", port.name));
                continue;
            }
            Standing::Hindered(obstacle) => {
                let remedy = obstacle.remedy(&config.path.to_string_lossy());
                plan.refusals.push(format!("port {}: {obstacle}; {remedy}", port.name));
                continue;
            }
        };
        let Some(nic) = wanted else { continue };
        let may = may_take(root, &nic, config, lifelines, consent);
        match may.and_then(|()| driver_for(root, &nic, &own)) {
            Ok(driver) => plan.bind(root, &port.name, nic, driver),
            Err(refusal) => plan.refusals.push(format!("port {}: {refusal}", port.name)),
        }
    }
    match reserve(root, config) {
        // First, since it is what fails most easily, and can be taken back without a trace.
        Ok(changes) => drop(plan.changes.splice(0..0, changes)),
        Err(refusal) => plan.refusals.push(format!("memory: {refusal}")),
    }
    plan
}

impl Plan {
    fn bind(&mut self, root: &Root, port: &str, nic: Nic, driver: &'static str) {
        let loaded = root.exists(&format!("/sys/bus/pci/drivers/{driver}"));
        if !loaded && !self.changes.contains(&Change::Load(driver)) {
            self.changes.push(Change::Load(driver));
        }
        if nic.group.is_none() {
            self.notes.push(format!(
                "port {port}: there is no IOMMU, or it is off: by {driver} {} can write to all of the memory",
                nic.address
            ));
        }
        self.changes.push(Change::Bind { address: nic.address, from: nic.driver, to: driver });
    }
}

/// Whether Linux can do without a NIC, or why not.
fn may_take(
    root: &Root,
    nic: &Nic,
    config: &Config,
    lifelines: &Lifelines,
    consent: &Consent,
) -> Result<(), String> {
    if let Consent::Permitted(permit) = consent {
        permit.check(nic, config)?;
    }
    match lifelines.of(root, nic) {
        Some(hold) if *consent == Consent::Unused || !hold.is_mere() => {
            Err(format!("{} {hold}; {}", nic.address, hold.remedy()))
        }
        _ => Ok(()),
    }
}

/// The driver that a NIC is to have, or why it cannot have it.
fn driver_for(root: &Root, nic: &Nic, own: &[String]) -> Result<&'static str, String> {
    let address = &nic.address;
    let functions = format!("/sys/bus/pci/devices/{address}/sriov_numvfs");
    let count: u32 = root.number(&functions).unwrap_or(0);
    if count > 0 {
        return Err(format!(
            "{address} has {count} virtual functions, which would be lost with its driver; take one of them, or another \
             NIC, or give them up (echo 0 > {functions})"
        ));
    }
    if let Some(obstacle) = with_others(Some(nic), own) {
        return Err(format!("{obstacle}; {}", obstacle.remedy("")));
    }
    let driver = if nic.group.is_some() || Iommu::read(root).waived { VFIO } else { UIO };
    match has_module(root, driver) {
        true => Ok(driver),
        false if driver == VFIO => Err(format!("{address}: this kernel has no module {VFIO}; {KERNEL}")),
        false => Err(format!(
            "{address} is behind no IOMMU, and this kernel has no module {UIO}; switch the IOMMU on (in the firmware, and \
             intel_iommu=on on the kernel's command line), or {KERNEL}"
        )),
    }
}

const KERNEL: &str = "run a kernel that has it (Debian's linux-image-amd64, not -cloud-amd64)";

/// What else is in a NIC's IOMMU group and stays with Linux, as it is no port's.
fn with_others(nic: Option<&Nic>, own: &[String]) -> Option<Obstacle> {
    let nic = nic?;
    let others = nic.group.as_ref()?.others.iter().filter(|(address, _)| !own.contains(address));
    let others: Vec<_> = others.cloned().collect();
    (!others.is_empty()).then(|| Obstacle::of_group(nic, others))
}

/// Whether a driver is there, or could be loaded.
fn has_module(root: &Root, module: &str) -> bool {
    let release = root.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let listed = |list: &str| {
        let file = module.replace('-', "_");
        let list = root.read(&format!("/lib/modules/{release}/{list}")).unwrap_or_default();
        let is_it = |line: &str| {
            let path = line.split(':').next().unwrap_or_default();
            let name = path.rsplit('/').next().unwrap_or_default();
            name.split(".ko").next().is_some_and(|name| name.replace('-', "_") == file)
        };
        list.lines().any(is_it)
    };
    root.exists(&format!("/sys/bus/pci/drivers/{module}"))
        || listed("modules.dep")
        || listed("modules.builtin")
}

/// The hugepages that are missing, on each node where ports are.
fn reserve(root: &Root, config: &Config) -> Result<Vec<Change>, String> {
    let nodes = memory::nodes(root, config);
    let pages = memory::pages(root);
    let mut wanted: BTreeMap<usize, u64> = BTreeMap::new();
    for (index, &node) in nodes.iter().enumerate() {
        // A table that is kept in hugepages is on one of them.
        let table = if index == 0 { kept_table(root, config) } else { 0 };
        wanted.insert(node, memory::wanted(config, nodes.len()) + table);
    }
    let runs = root.runs(config);
    let mut changes = Vec::new();
    let mut sum = 0;
    for (node, megabytes) in wanted.into_iter().filter(|(_, megabytes)| *megabytes > 0) {
        let here: Vec<&Pages> =
            pages.iter().filter(|pages| pages.node.is_none_or(|own| own == node)).collect();
        // What a running router has is not free, and is what it needs.
        let count = |pages: &&Pages| pages.size * if runs { pages.reserved } else { pages.free };
        let there: u64 = here.iter().map(count).sum();
        let missing = (megabytes << 20).saturating_sub(there);
        // The smallest: larger ones are rarely to be had on a machine that has run for a while.
        let Some(smallest) = here.first() else {
            return Err(format!(
                "this kernel has no hugepages on node {node}; set eal.hugepages = false, or run another one"
            ));
        };
        let more = missing.div_ceil(smallest.size);
        if more > 0 {
            sum += more * smallest.size;
            let (from, to) = (smallest.reserved, smallest.reserved + more);
            changes.push(Change::Reserve { file: smallest.file.clone(), from, to });
        }
    }
    match root.read("/proc/meminfo").and_then(|meminfo| available_memory(&meminfo)) {
        Some(available) if sum > available => Err(format!(
            "{} MB of hugepages are missing, and {} MB of memory are available; lower eal.memory or table.connections, or add memory",
            sum >> 20,
            available >> 20
        )),
        _ => Ok(changes),
    }
}

/// MB that a table which is to be kept will take of hugepages, if it is to be there and has not been made yet.
fn kept_table(root: &Root, config: &Config) -> u64 {
    let Some(directory) = &config.table.keep else { return 0 };
    let made = root.exists(&directory.join("index").to_string_lossy());
    match root.file_system(directory) {
        Some((system, _)) if system == "hugetlbfs" && !made => memory::of_kept_table(config),
        _ => 0,
    }
}
