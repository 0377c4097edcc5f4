//! The devices that the file names: whether DPDK can have them, and with as many queues as there are workers.

use super::{Finding, Root, Severity};
use crate::config::Config;
use crate::config::value::{interface, pci_address};

/// Drivers of Linux beside which DPDK works.
const SHARED: [&str; 4] = ["mlx5_core", "mlx4_core", "mana", "cxgb4"];

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Whether the IOMMU is on.
    iommu: bool,
    /// Whether vfio works without one.
    no_iommu_mode: bool,
    /// Of each port.
    ports: Vec<Device>,
}

#[derive(Debug)]
enum Device {
    Pci { address: String, there: bool, driver: Option<String> },
    Interface { name: String, there: bool, up: bool, mtu: Option<u16>, queues: usize },
    Other,
}

impl Facts {
    pub(super) fn collect(root: &Root, config: &Config) -> Facts {
        let device = |port: &crate::config::Port| {
            if let Some(address) = pci_address(&port.device) {
                let path = format!("/sys/bus/pci/devices/{address}");
                let driver = root.target(&format!("{path}/driver"));
                Device::Pci { there: root.exists(&path), driver, address }
            } else if let Some(name) = interface(&port.device) {
                let path = format!("/sys/class/net/{name}");
                let flags = root.read(&format!("{path}/flags")).unwrap_or_default();
                let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
                let queues = root.list(&format!("{path}/queues"));
                Device::Interface {
                    name: name.to_owned(),
                    there: root.exists(&path),
                    // IFF_UP.
                    up: flags & 1 != 0,
                    mtu: root.number(&format!("{path}/mtu")),
                    queues: queues.iter().filter(|queue| queue.starts_with("rx-")).count(),
                }
            } else {
                Device::Other
            }
        };
        Facts {
            iommu: !root.list("/sys/kernel/iommu_groups").is_empty(),
            no_iommu_mode: root
                .read("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
                .is_some_and(|mode| mode == "Y"),
            ports: config.ports.iter().map(device).collect(),
        }
    }
}

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (port, device) in config.ports.iter().zip(&facts.ports) {
        let mut find = |severity, problem: String, remedy: String| {
            findings.push(Finding::new(severity, format_args!("port {}", port.name), problem, remedy));
        };
        match device {
            Device::Pci { address, there: false, .. } => find(
                Severity::Error,
                format!("there is no PCI device {address}"),
                "take an address that `lspci -D` shows".to_owned(),
            ),
            Device::Pci { address, driver, .. } => {
                let bind = format!("modprobe vfio-pci; dpdk-devbind.py --bind=vfio-pci {address}");
                match driver.as_deref() {
                    Some("vfio-pci") if !facts.iommu && !facts.no_iommu_mode => find(
                        Severity::Error,
                        format!("{address} is bound to vfio-pci, and the IOMMU is off"),
                        "switch it on (intel_iommu=on or amd_iommu=on on the kernel's command line, and in the firmware); \
                         in a virtual machine without one: \
                         echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
                            .to_owned(),
                    ),
                    Some("vfio-pci") if !facts.iommu => find(
                        Severity::Note,
                        format!("{address} is used without an IOMMU: it can write to all of the memory"),
                        "switch the IOMMU on, if the machine has one".to_owned(),
                    ),
                    Some("vfio-pci") => {}
                    Some(driver @ ("uio_pci_generic" | "igb_uio")) => find(
                        Severity::Note,
                        format!("{address} is bound to {driver}: it can write to all of the memory"),
                        bind,
                    ),
                    Some(driver) if SHARED.contains(&driver) => {}
                    Some(driver) => find(
                        Severity::Error,
                        format!("{address} is Linux' (driver {driver}), DPDK cannot have it"),
                        bind,
                    ),
                    None => find(Severity::Error, format!("{address} is bound to no driver"), bind),
                }
            }
            Device::Interface { name, there: false, .. } => find(
                Severity::Error,
                format!("there is no interface {name} in this network namespace"),
                "take one that `ip link` shows".to_owned(),
            ),
            Device::Interface { name, up, mtu, queues, .. } => {
                if !up {
                    find(Severity::Error, format!("{name} is down"), format!("ip link set {name} up"));
                }
                if mtu.is_some_and(|mtu| mtu < port.mtu) {
                    let (own, mtu) = (mtu.unwrap_or(0), port.mtu);
                    find(
                        Severity::Error,
                        format!("{name} has an MTU of {own}, the port has {mtu}: larger packets are lost"),
                        format!("ip link set {name} mtu {mtu}, or mtu = {own} for the port"),
                    );
                }
                let workers = config.workers.cores.len();
                if port.device.starts_with("net_af_xdp") && *queues < workers {
                    find(
                        Severity::Error,
                        format!("{name} has {queues} receive queues, {workers} workers want one each"),
                        format!("ethtool -L {name} combined {workers}, or fewer workers.cores"),
                    );
                }
            }
            Device::Other => {}
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::{config, machine, short};
    use super::*;

    fn nic(driver: &str, iommu: bool) -> Vec<String> {
        let driver = format!("-> ../../../drivers/{driver}");
        let mut files = vec![("/sys/bus/pci/devices/0000:01:00.0/driver", driver.as_str())];
        if iommu {
            files.push(("/sys/kernel/iommu_groups/1/type", "DMA"));
        }
        let (_directory, root) = machine(&files);
        let config = config("01:00.0", "");
        short(&judge(&Facts::collect(&root, &config), &config))
    }

    #[test]
    fn drivers_of_a_nic() {
        assert_eq!(nic("vfio-pci", true), [""; 0]);
        assert_eq!(nic("mlx5_core", false), [""; 0]);
        assert_eq!(nic("vfio-pci", false), ["error 0000:01:00.0 is bound to vfio-pci, and the IOMMU is off"]);
        assert_eq!(nic("ixgbe", true), ["error 0000:01:00.0 is Linux' (driver ixgbe), DPDK cannot have it"]);
        assert!(nic("igb_uio", true)[0].starts_with("note "));
    }

    #[test]
    fn nics_that_are_not_there_or_nobodys() {
        let config = config("01:00.0", "");
        let (_directory, root) = machine(&[]);
        let nothing = judge(&Facts::collect(&root, &config), &config);
        assert_eq!(short(&nothing), ["error there is no PCI device 0000:01:00.0"]);
        let (_directory, root) = machine(&[("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x8086")]);
        let unbound = judge(&Facts::collect(&root, &config), &config);
        assert_eq!(short(&unbound), ["error 0000:01:00.0 is bound to no driver"]);
    }

    #[test]
    fn interfaces() {
        let eth = "/sys/class/net/eth1";
        let (flags, mtu, queue) =
            (format!("{eth}/flags"), format!("{eth}/mtu"), format!("{eth}/queues/rx-0/rps"));
        let xdp = config("net_af_xdp,iface=eth1", "");
        let (_directory, root) = machine(&[(&flags, "0x1002"), (&mtu, "1400"), (&queue, "0")]);
        assert_eq!(
            short(&judge(&Facts::collect(&root, &xdp), &xdp)),
            [
                "error eth1 is down",
                "error eth1 has an MTU of 1400, the port has 1500: larger packets are lost",
                "error eth1 has 1 receive queues, 2 workers want one each"
            ]
        );
        let packet = config("net_af_packet,iface=eth1", "");
        let (_directory, root) = machine(&[(&flags, "0x1003"), (&mtu, "1500"), (&queue, "0")]);
        assert_eq!(judge(&Facts::collect(&root, &packet), &packet), []);
        let other = config("net_af_packet,iface=eth2", "");
        assert!(short(&judge(&Facts::collect(&root, &other), &other))[0].contains("no interface eth2"));
    }
}
