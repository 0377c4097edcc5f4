//! The devices that the file names: whether DPDK can have them, and with as many queues as there are workers.

use super::{Finding, Root, Severity};
use crate::config::Config;
use crate::config::value::{interface, pci_address};
use crate::hardware::{Nic, Standing};

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Whether RVS runs, and has NICs open itself.
    runs: bool,
    /// Each, in the order of [`Config::devices`].
    devices: Vec<Device>,
}

#[derive(Debug)]
enum Device {
    Pci { address: String, standing: Standing },
    Interface { name: String, there: bool, up: bool, mtu: Option<u16>, queues: usize },
    Other,
}

impl Facts {
    pub(super) fn collect(root: &Root, config: &Config) -> Facts {
        let device = |(_, _, device): (usize, String, &str)| {
            if let Some(address) = pci_address(device) {
                let nic = Nic::read(root, &address);
                Device::Pci { standing: Standing::of(root, &address, nic.as_ref()), address }
            } else if let Some(name) = interface(device) {
                let path = format!("/sys/class/net/{name}");
                let queues = root.list(&format!("{path}/queues"));
                Device::Interface {
                    name: name.to_owned(),
                    there: root.exists(&path),
                    // IFF_UP.
                    up: root.hex(&format!("{path}/flags")).unwrap_or(0) & 1 != 0,
                    mtu: root.number(&format!("{path}/mtu")),
                    queues: queues.iter().filter(|queue| queue.starts_with("rx-")).count(),
                }
            } else {
                Device::Other
            }
        };
        Facts { runs: root.runs(config), devices: config.devices().map(device).collect() }
    }
}

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for ((index, _, typed), device) in config.devices().zip(&facts.devices) {
        let port = &config.ports[index];
        let mut find = |key, severity, problem: String, remedy: String| {
            findings.push(Finding::new(key, severity, format_args!("port {}", port.name), problem, remedy));
        };
        match device {
            Device::Pci { standing: Standing::Ready | Standing::Shared(_), .. } => {}
            Device::Pci { address, standing: Standing::Unprotected(how) } => find(
                "nic-unprotected",
                Severity::Note,
                format!("{address} is bound to {how}: it can write to all of the memory"),
                "switch the IOMMU on, if the machine has one; then `rvs setup` takes vfio-pci after the next boot".to_owned(),
            ),
            Device::Pci { standing: Standing::Hindered(obstacle), .. } if facts.runs && obstacle.is_rvs() => {}
            Device::Pci { standing: Standing::Hindered(obstacle), .. } => find(
                obstacle.key(),
                Severity::Error,
                obstacle.to_string(),
                obstacle.remedy(&config.path.to_string_lossy()),
            ),
            Device::Interface { name, there: false, .. } => find(
                "interface-absent",
                Severity::Error,
                format!("there is no interface {name} in this network namespace"),
                "take one that `ip link` shows".to_owned(),
            ),
            Device::Interface { name, up, mtu, queues, .. } => {
                if port.bond.is_some_and(|bond| !bond.has_lacp()) {
                    find(
                        "bond-blind",
                        Severity::Warning,
                        format!("{name} is a member of a bond, but its driver in DPDK says that it has a link, always"),
                        "have Linux bond the interfaces, and give RVS the bond; or mode = \"802.3ad\", which tells by itself".to_owned(),
                    );
                }
                if !up {
                    find("interface-down", Severity::Error, format!("{name} is down"), format!("ip link set {name} up"));
                }
                if mtu.is_some_and(|mtu| mtu < port.mtu) {
                    let (own, mtu) = (mtu.unwrap_or(0), port.mtu);
                    find(
                        "interface-mtu",
                        Severity::Error,
                        format!("{name} has an MTU of {own}, the port has {mtu}: larger packets are lost"),
                        format!("ip link set {name} mtu {mtu}, or mtu = {own} for the port"),
                    );
                }
                let workers = config.workers.cores.len();
                if typed.starts_with("net_af_xdp") && *queues < workers {
                    find(
                        "interface-queues",
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
    use crate::hardware::testing::{Card, tree};
    use crate::root::testing::put;

    const NIC: &str = "0000:01:00.0";

    fn found(root: &Root) -> Vec<(&'static str, String)> {
        let config = config("01:00.0", "");
        let findings = judge(&Facts::collect(root, &config), &config);
        assert!(findings.iter().all(|finding| finding.subject == "port wan"));
        findings.iter().map(|finding| (finding.key, finding.to_string())).collect()
    }

    fn nic(driver: Option<&str>, group: Option<&str>) -> Vec<(&'static str, String)> {
        let (_directory, root) = tree(&[Card { driver, group, ..Card::at(NIC) }]);
        found(&root)
    }

    #[test]
    fn drivers_of_a_nic() {
        assert_eq!(nic(Some("vfio-pci"), Some("1")), []);
        assert_eq!(nic(Some("mlx5_core"), None), []);
        assert_eq!(nic(Some("vfio-pci"), None)[0].0, "nic-no-iommu");
        assert_eq!(nic(Some("igb_uio"), Some("1"))[0].0, "nic-unprotected");
        assert_eq!(nic(None, None)[0].0, "nic-unbound");
        let text = "error    port wan: 0000:01:00.0 is Linux' (driver ixgbe), DPDK cannot have it [nic-linux]\n         \
                    -> rvs setup -c f";
        assert_eq!(nic(Some("ixgbe"), Some("1")), [("nic-linux", text.to_owned())]);
    }

    #[test]
    fn nics_that_are_not_there_or_somebody_elses() {
        let (_directory, root) = machine(&[]);
        assert_eq!(found(&root)[0].0, "nic-absent");
        let (_directory, root) =
            tree(&[Card { driver: Some("vfio-pci"), group: Some("1"), ..Card::at(NIC) }]);
        put(&root, "/proc/7/fd/3", "-> /dev/vfio/1");
        put(&root, "/proc/7/comm", "rvs");
        assert_eq!(found(&root)[0].0, "nic-in-use");
        // It is the one that is asked about.
        put(&root, "/run/rvs/rvs.sock", "");
        assert_eq!(found(&root), []);
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
        // Whose links nobody can tell. With LACP that is told.
        for (mode, findings) in [("active-backup", 1), ("802.3ad", 0)] {
            let text = format!(
                "[workers]\ncores = [1]\n[[port]]\nname = 'wan'\n\
                 bond = {{ mode = '{mode}', members = ['net_af_packet,iface=eth1', '01:00.0'] }}\n"
            );
            let bond = crate::config::parse(std::path::Path::new("f"), text.into()).unwrap();
            let found = judge(&Facts::collect(&root, &bond), &bond);
            let blind = found.iter().filter(|finding| finding.key == "bond-blind").count();
            assert_eq!(blind, findings, "{mode}: {found:?}");
        }
        let other = config("net_af_packet,iface=eth2", "");
        assert!(short(&judge(&Facts::collect(&root, &other), &other))[0].contains("no interface eth2"));
    }
}
