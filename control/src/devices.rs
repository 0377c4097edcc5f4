//! From the devices of a port to what DPDK wants to hear.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::slice;

use crate::config::value::pci_address;
use crate::config::{Config, Port};

/// A device, in DPDK's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// A PCI device: EAL probes it at start, when it is allowed.
    Pci {
        /// Its address, as DPDK spells it.
        name: String,
        /// The address as it was configured, with the driver's arguments.
        devargs: String,
    },
    /// A virtual device that RVS creates.
    Virtual {
        /// What DPDK will call the port.
        name: String,
        /// Name and arguments.
        devargs: String,
    },
    /// A device that the operator's own EAL arguments create.
    Existing(String),
    /// A bond, which RVS creates once its members are there.
    Bond {
        /// What DPDK will call the port.
        name: String,
        /// In the order of the configuration.
        members: Vec<Device>,
    },
}

impl Device {
    /// The device of the configuration's n-th port.
    pub fn of(config: &Config, index: usize) -> Self {
        let port = &config.ports[index];
        let one = |device, number: &str| Self::one(config, port, device, number);
        let members = port.devices.iter().enumerate();
        match port.bond {
            Some(_) => Device::Bond {
                name: format!("net_bonding{index}"),
                members: members.map(|(place, device)| one(device, &format!("{index}_{place}"))).collect(),
            },
            None => one(&port.devices[0], &index.to_string()),
        }
    }

    /// A device of a port; of all virtual ones it has this number.
    fn one(config: &Config, port: &Port, device: &str, number: &str) -> Self {
        if let Some(name) = pci_address(device) {
            Device::Pci { name, devargs: device.strip_prefix("pci:").unwrap_or(device).to_owned() }
        } else if created_by(&config.eal.args, device) {
            Device::Existing(device.to_owned())
        } else {
            Self::virtual_device(device, port.mtu, number, config.workers.cores.len())
        }
    }

    /// The name by which DPDK knows the port.
    pub fn port_name(&self) -> &str {
        match self {
            Device::Pci { name, .. }
            | Device::Virtual { name, .. }
            | Device::Existing(name)
            | Device::Bond { name, .. } => name,
        }
    }

    /// It, or its members.
    fn parts(&self) -> &[Device] {
        match self {
            Device::Bond { members, .. } => members,
            other => slice::from_ref(other),
        }
    }

    fn virtual_device(device: &str, mtu: u16, number: &str, workers: usize) -> Self {
        let (driver, arguments) = device.split_once(',').unwrap_or((device, ""));
        // DPDK finds the driver by the beginning of the name; the rest has to make it unique.
        let numbered = driver.ends_with(|last: char| last.is_ascii_digit());
        let name = if numbered { driver.to_owned() } else { format!("{driver}{number}") };
        let mut devargs = name.clone();
        if !arguments.is_empty() {
            let _ = write!(devargs, ",{arguments}");
        }
        let mut default = |key: &str, value: usize| {
            if !arguments.split(',').any(|argument| argument.split('=').next() == Some(key)) {
                let _ = write!(devargs, ",{key}={value}");
            }
        };
        if driver.starts_with("net_af_packet") {
            default("qpairs", workers);
            // The driver's default of 512 frames is 7 ms of a busy gigabit: less than a worker may be
            // scheduled away on a shared core.
            default("framecnt", 2048);
            if mtu > 1900 {
                default("framesz", 16384);
                default("blocksz", 16384);
            }
        } else if driver.starts_with("net_af_xdp") && workers > 1 {
            default("start_queue", 0);
            default("queue_count", workers);
        }
        Device::Virtual { name, devargs }
    }
}

/// EAL's arguments, the operator's own last. NICs are on these NUMA nodes, as far as that is known.
pub fn eal_arguments(
    config: &Config,
    devices: &[Device],
    control_cores: &[usize],
    nodes: &BTreeSet<usize>,
) -> Vec<String> {
    let own = &config.eal.args;
    let given = |names: &[&str]| {
        own.iter().any(|argument| {
            names.iter().any(|name| argument == name || argument.starts_with(&format!("{name}=")))
        })
    };
    let cores: Vec<String> = control_cores.iter().map(usize::to_string).collect();
    // One lcore, the control thread's; workers are threads that register themselves.
    let mut arguments = vec!["--lcores".to_owned(), format!("0@({})", cores.join(","))];
    arguments.push("--no-telemetry".to_owned());
    if !given(&["--log-level"]) {
        arguments.push("--log-level=*:warning".to_owned());
    }
    match &config.eal.file_prefix {
        Some(prefix) => arguments.extend(["--file-prefix".to_owned(), prefix.clone()]),
        // Nothing left behind, and no clash with another instance. (22.11 refuses both words together.)
        None if given(&["--file-prefix", "--in-memory", "--no-shconf"]) => {}
        None if config.eal.hugepages => arguments.push("--in-memory".to_owned()),
        None => arguments.push("--no-shconf".to_owned()),
    }
    if !config.eal.hugepages {
        arguments.push("--no-huge".to_owned());
    }
    let memory = config.eal.memory_mb.or((!config.eal.hugepages).then_some(256));
    match (memory, nodes.last()) {
        (None, _) => {}
        // Left to itself, EAL takes it from the node of the control thread.
        (Some(megabytes), Some(last)) if config.eal.hugepages && !given(&["--socket-mem"]) => {
            let share = megabytes.div_ceil(nodes.len() as u32);
            let shares = (0..=*last).map(|node| if nodes.contains(&node) { share } else { 0 });
            let shares: Vec<String> = shares.map(|share| share.to_string()).collect();
            arguments.extend(["--socket-mem".to_owned(), shares.join(",")]);
        }
        (Some(megabytes), _) => arguments.extend(["-m".to_owned(), megabytes.to_string()]),
    }
    let mut pci = devices.iter().flat_map(Device::parts).filter_map(|device| match device {
        Device::Pci { devargs, .. } => Some(devargs),
        _ => None,
    });
    match pci.next() {
        Some(first) => {
            for address in std::iter::once(first).chain(pci) {
                arguments.extend(["-a".to_owned(), address.clone()]);
            }
        }
        None if !given(&["-a", "--allow", "-b", "--block", "--no-pci"]) => {
            arguments.push("--no-pci".to_owned())
        }
        None => {}
    }
    arguments.extend(own.iter().cloned());
    arguments
}

/// Whether the operator's arguments create a device of this name.
fn created_by(arguments: &[String], name: &str) -> bool {
    let with_value = arguments.windows(2).filter(|pair| pair[0] == "--vdev").map(|pair| pair[1].as_str());
    let joined = arguments.iter().filter_map(|argument| argument.strip_prefix("--vdev="));
    with_value.chain(joined).any(|device| device.split(',').next() == Some(name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(device: &str, workers: &str, args: &str) -> Config {
        let text = format!(
            "[eal]\nhugepages = false\nargs = {args}\n[workers]\ncores = {workers}\nidle = \"adaptive\"\n\
             [[port]]\nname = \"wan\"\ndevice = \"{device}\"\n"
        );
        crate::config::parse(Path::new("x.toml"), text.into_bytes()).unwrap()
    }

    fn devargs(device: &str, workers: &str) -> String {
        match Device::of(&config(device, workers, "[]"), 0) {
            Device::Virtual { devargs, .. } => devargs,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_and_queues_of_virtual_devices() {
        assert_eq!(
            devargs("net_af_packet,iface=eth1", "[1, 1]"),
            "net_af_packet0,iface=eth1,qpairs=2,framecnt=2048"
        );
        assert_eq!(
            devargs("net_af_packet7,iface=a,qpairs=4,framecnt=9", "[1]"),
            "net_af_packet7,iface=a,qpairs=4,framecnt=9"
        );
        assert_eq!(
            devargs("net_af_xdp,iface=eth1", "[0, 1]"),
            "net_af_xdp0,iface=eth1,start_queue=0,queue_count=2"
        );
        assert_eq!(devargs("net_null", "[1]"), "net_null0");
    }

    #[test]
    fn a_bond_and_its_members() {
        let bond = r#"bond = { mode = "802.3ad", members = ["01:00.1,x=1", "net_null", "net_null"] }"#;
        let text = format!("[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\n{bond}\n");
        let config = crate::config::parse(Path::new("x.toml"), text.into_bytes()).unwrap();
        let device = Device::of(&config, 0);
        let names: Vec<&str> = device.parts().iter().map(Device::port_name).collect();
        assert_eq!(names, ["0000:01:00.1", "net_null0_1", "net_null0_2"]);
        assert_eq!(device.port_name(), "net_bonding0");
        let arguments = eal_arguments(&config, &[device], &[0], &BTreeSet::new()).join(" ");
        assert!(arguments.contains("-a 01:00.1,x=1") && !arguments.contains("--no-pci"), "{arguments}");
    }

    #[test]
    fn pci_addresses_are_allowed_and_nothing_else_is_probed() {
        let config = config("3B:00.1,x=1", "[1]", "[]");
        let device = Device::of(&config, 0);
        assert_eq!(device.port_name(), "0000:3b:00.1");
        let arguments = eal_arguments(&config, &[device], &[0, 2], &BTreeSet::new()).join(" ");
        assert!(arguments.contains("-a 3B:00.1,x=1") && !arguments.contains("--no-pci"), "{arguments}");
        assert!(arguments.contains("--lcores 0@(0,2)"), "{arguments}");
    }

    #[test]
    fn memory_is_where_nics_are() {
        let text =
            "[eal]\nmemory = 1001\n[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"3b:00.0\"\n";
        let config = crate::config::parse(Path::new("x.toml"), text.into()).unwrap();
        let with =
            |nodes: &[usize]| eal_arguments(&config, &[], &[0], &nodes.iter().copied().collect()).join(" ");
        assert!(with(&[]).contains("-m 1001"), "{}", with(&[]));
        assert!(with(&[1]).contains("--socket-mem 0,1001"), "{}", with(&[1]));
        assert!(with(&[0, 2]).contains("--socket-mem 501,0,501"), "{}", with(&[0, 2]));
    }

    #[test]
    fn the_operators_arguments_come_last_and_untouched() {
        let args = r#"["-d", "x.so", "--vdev=foo0,a=b", "--no-shconf"]"#;
        let config = config("foo0", "[1]", args);
        let device = Device::of(&config, 0);
        assert_eq!(device, Device::Existing("foo0".into()));
        let arguments = eal_arguments(&config, &[device], &[0], &BTreeSet::new());
        assert_eq!(arguments[arguments.len() - 4..], ["-d", "x.so", "--vdev=foo0,a=b", "--no-shconf"]);
        assert_eq!(arguments.iter().filter(|argument| *argument == "--no-shconf").count(), 1);
    }
}
