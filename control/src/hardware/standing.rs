//! Whether DPDK can have a NIC as things are, and if not, why: in the words that every command has for it.

use std::collections::BTreeMap;
use std::fmt;

use super::Nic;
use super::nic::directory;
use crate::root::Root;

/// The driver that hands a device to a program, behind an IOMMU.
pub(crate) const VFIO: &str = "vfio-pci";
/// The driver that does so without one.
pub(crate) const UIO: &str = "uio_pci_generic";

/// Drivers of Linux beside which DPDK works: the NIC stays with them, and DPDK has queues of it.
const SHARED: [&str; 3] = ["mlx5_core", "mlx4_core", "mana"];
/// Drivers that hand a device to a program and leave it alone.
const HANDING: [&str; 3] = [VFIO, UIO, "igb_uio"];

/// What keeps devices from the memory of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Iommu {
    /// Whether there is one, and Linux uses it.
    pub on: bool,
    /// Whether vfio-pci works without one, since somebody has said so.
    pub waived: bool,
}

impl Iommu {
    /// That of this machine.
    pub fn read(root: &Root) -> Iommu {
        let mode = root.read("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode");
        let groups = root.list("/sys/kernel/iommu_groups");
        Iommu {
            on: groups.iter().any(|group| !is_pretended(root, group)),
            waived: mode.is_some_and(|mode| mode == "Y"),
        }
    }
}

/// Whether vfio-pci has made a group where there is no IOMMU.
fn is_pretended(root: &Root, group: &str) -> bool {
    let name = root.read(&format!("/sys/kernel/iommu_groups/{group}/name"));
    name.is_some_and(|name| name == "vfio-noiommu")
}

impl Nic {
    /// Whether it sees only the memory that it is shown, by an IOMMU or by its driver, so that who opens it needs no physical
    /// addresses.
    pub fn is_confined(&self, root: &Root) -> bool {
        match self.driver.as_deref() {
            Some(VFIO) => self.group.as_ref().is_some_and(|group| !is_pretended(root, &group.number)),
            Some(driver) => SHARED.contains(&driver),
            None => false,
        }
    }

    /// The driver by which Linux uses it.
    pub fn driver_of_linux(&self) -> Option<&str> {
        self.driver.as_deref().filter(|driver| !HANDING.contains(driver))
    }
}

/// How it stands with a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// DPDK can have it.
    Ready,
    /// DPDK works beside this driver of Linux.
    Shared(String),
    /// DPDK can have it by this driver, and it can write to all of the memory.
    Unprotected(String),
    /// DPDK cannot have it.
    Hindered(Obstacle),
}

/// Why DPDK cannot have a NIC. Shown, it is a sentence that begins with the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// There is none.
    Absent(String),
    /// It is something else, of this class.
    NoNic(String, u32),
    /// It belongs to this driver of Linux.
    Linux(String, String),
    /// It has no driver.
    Unbound(String),
    /// It is bound to vfio-pci, which does not work without an IOMMU.
    NoIommu(String),
    /// It shares its IOMMU group with devices that Linux uses.
    Group {
        /// Its address.
        address: String,
        /// The group's number.
        number: String,
        /// Addresses and drivers of the others.
        others: Vec<(String, String)>,
    },
    /// A process has it open.
    InUse {
        /// Its address.
        address: String,
        /// The process.
        pid: u32,
        /// What the process is called.
        program: String,
    },
}

impl Standing {
    /// That of the device at an address, of which `nic` is what there is.
    pub fn of(root: &Root, address: &str, nic: Option<&Nic>) -> Standing {
        let own = || address.to_owned();
        let Some(nic) = nic else { return Standing::Hindered(Obstacle::Absent(own())) };
        if !nic.is_nic() {
            return Standing::Hindered(Obstacle::NoNic(own(), nic.class));
        }
        let iommu = Iommu::read(root);
        match nic.driver.as_deref() {
            None => Standing::Hindered(Obstacle::Unbound(own())),
            Some(driver) if SHARED.contains(&driver) => Standing::Shared(driver.to_owned()),
            Some(VFIO) => match &nic.group {
                None if !iommu.waived => Standing::Hindered(Obstacle::NoIommu(own())),
                Some(group) if !group.others.is_empty() => {
                    Standing::Hindered(Obstacle::of_group(nic, group.others.clone()))
                }
                _ => Standing::used(root, nic).unwrap_or(match iommu.on {
                    true => Standing::Ready,
                    false => Standing::Unprotected("vfio-pci without an IOMMU".to_owned()),
                }),
            },
            Some(driver @ (UIO | "igb_uio")) => {
                Standing::used(root, nic).unwrap_or_else(|| Standing::Unprotected(driver.to_owned()))
            }
            Some(driver) => Standing::Hindered(Obstacle::Linux(own(), driver.to_owned())),
        }
    }

    fn used(root: &Root, nic: &Nic) -> Option<Standing> {
        let (pid, program) = user(root, nic)?;
        Some(Standing::Hindered(Obstacle::InUse { address: nic.address.clone(), pid, program }))
    }
}

impl Obstacle {
    /// Whether all that is wrong is that an RVS has it already.
    pub fn is_rvs(&self) -> bool {
        matches!(self, Obstacle::InUse { program, .. } if program.starts_with("rvs"))
    }

    /// What others in its group are in the way.
    pub fn of_group(nic: &Nic, others: Vec<(String, String)>) -> Obstacle {
        let number = nic.group.as_ref().map(|group| group.number.clone()).unwrap_or_default();
        Obstacle::Group { address: nic.address.clone(), number, others }
    }

    /// Its name in `rvs doctor --json` and in the manual.
    pub fn key(&self) -> &'static str {
        match self {
            Obstacle::Absent(..) => "nic-absent",
            Obstacle::NoNic(..) => "nic-none",
            Obstacle::Linux(..) => "nic-linux",
            Obstacle::Unbound(..) => "nic-unbound",
            Obstacle::NoIommu(..) => "nic-no-iommu",
            Obstacle::Group { .. } => "nic-group",
            Obstacle::InUse { .. } => "nic-in-use",
        }
    }

    /// What to do about it; `file` is the configuration that names the NIC.
    pub fn remedy(&self, file: &str) -> String {
        match self {
            Obstacle::Absent(..) | Obstacle::NoNic(..) => "take an address that `rvs ports` shows".to_owned(),
            Obstacle::Linux(..) | Obstacle::Unbound(..) => format!("rvs setup -c {file}"),
            Obstacle::NoIommu(..) => format!(
                "switch it on (in the firmware, and intel_iommu=on on the kernel's command line), or `rvs setup -c {file}`, \
                 which takes {UIO} instead"
            ),
            Obstacle::Group { .. } => {
                "take a NIC in another slot or another port of the card; they go to one owner together"
                    .to_owned()
            }
            Obstacle::InUse { pid, .. } => format!("end process {pid}, or take another NIC"),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Absent(address) => write!(f, "there is no PCI device {address}"),
            Obstacle::NoNic(address, class) => write!(f, "{address} is no NIC (PCI class {class:#08x})"),
            Obstacle::Linux(address, driver) => {
                write!(f, "{address} is Linux' (driver {driver}), DPDK cannot have it")
            }
            Obstacle::Unbound(address) => write!(f, "{address} is bound to no driver"),
            Obstacle::NoIommu(address) => {
                write!(f, "{address} is bound to {VFIO}, and there is no IOMMU, or it is off")
            }
            Obstacle::Group { address, number, others } => {
                write!(f, "{address} shares its IOMMU group {number} with what stays with Linux:")?;
                others.iter().enumerate().try_for_each(|(index, (other, driver))| {
                    write!(f, "{} {other} ({driver})", if index == 0 { "" } else { "," })
                })
            }
            Obstacle::InUse { address, pid, program } => {
                write!(f, "{address} is in use by process {pid} ({program})")
            }
        }
    }
}

/// Of all PCI devices, by address: why DPDK cannot have it, if it cannot.
pub(crate) fn obstacles(root: &Root) -> BTreeMap<String, Option<Obstacle>> {
    let devices = root.list("/sys/bus/pci/devices").into_iter();
    let obstacle = |address: String| {
        let nic = Nic::read(root, &address);
        let obstacle = match Standing::of(root, &address, nic.as_ref()) {
            Standing::Hindered(obstacle) => Some(obstacle),
            _ => None,
        };
        (address, obstacle)
    };
    devices.map(obstacle).collect()
}

/// Which process has opened a NIC by VFIO or UIO: number and name. Only whoever may look into other processes sees it.
pub(crate) fn user(root: &Root, nic: &Nic) -> Option<(u32, String)> {
    let uio = root.list(&format!("{}/uio", directory(&nic.address)));
    let vfio = nic
        .group
        .iter()
        .flat_map(|group| ["vfio/", "vfio/noiommu-"].map(|begin| format!("{begin}{}", group.number)));
    let devices: Vec<String> = uio.into_iter().chain(vfio).map(|name| format!("/dev/{name}")).collect();
    let mut processes = root.list("/proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
    let has_open = |pid: &u32| {
        let directory = format!("/proc/{pid}/fd");
        let mut open = root.list(&directory).into_iter();
        open.any(|fd| {
            let target = root.link(&format!("{directory}/{fd}"));
            target.is_some_and(|target| devices.iter().any(|device| target.as_os_str() == device.as_str()))
        })
    };
    if devices.is_empty() {
        return None;
    }
    let pid = processes.find(has_open)?;
    Some((pid, root.read(&format!("/proc/{pid}/comm")).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Card, tree};
    use super::*;
    use crate::root::testing::put;

    const NIC: &str = "0000:01:00.0";

    fn standing(root: &Root) -> Standing {
        Standing::of(root, NIC, Nic::read(root, NIC).as_ref())
    }

    fn said(root: &Root) -> (&'static str, String) {
        match standing(root) {
            Standing::Hindered(obstacle) => (obstacle.key(), obstacle.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nics_that_dpdk_can_have() {
        let with = |driver, group| {
            let (_directory, root) = tree(&[Card { driver: Some(driver), group, ..Card::at(NIC) }]);
            standing(&root)
        };
        assert_eq!(with("vfio-pci", Some("3")), Standing::Ready);
        assert_eq!(with("mlx5_core", None), Standing::Shared("mlx5_core".to_owned()));
        // DPDK's driver for it wants it to itself.
        let linux = Obstacle::Linux(NIC.to_owned(), "cxgb4".to_owned());
        assert_eq!(with("cxgb4", Some("3")), Standing::Hindered(linux));
        assert_eq!(with("uio_pci_generic", None), Standing::Unprotected("uio_pci_generic".to_owned()));
        let (_directory, root) = tree(&[Card { driver: Some("vfio-pci"), ..Card::at(NIC) }]);
        put(&root, "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y");
        assert_eq!(standing(&root), Standing::Unprotected("vfio-pci without an IOMMU".to_owned()));
    }

    #[test]
    fn nics_that_it_cannot_have() {
        let with = |card: Card| {
            let (_directory, root) = tree(&[card]);
            said(&root)
        };
        let none = |text: &str| text.to_owned();
        assert_eq!(
            with(Card::at("0000:02:00.0")),
            ("nic-absent", none("there is no PCI device 0000:01:00.0"))
        );
        assert_eq!(
            with(Card { class: "0x010802", ..Card::at(NIC) }),
            ("nic-none", none("0000:01:00.0 is no NIC (PCI class 0x010802)"))
        );
        assert_eq!(
            with(Card { driver: Some("ixgbe"), ..Card::at(NIC) }),
            ("nic-linux", none("0000:01:00.0 is Linux' (driver ixgbe), DPDK cannot have it"))
        );
        assert_eq!(with(Card::at(NIC)), ("nic-unbound", none("0000:01:00.0 is bound to no driver")));
        assert_eq!(
            with(Card { driver: Some("vfio-pci"), ..Card::at(NIC) }),
            ("nic-no-iommu", none("0000:01:00.0 is bound to vfio-pci, and there is no IOMMU, or it is off"))
        );
    }

    #[test]
    fn a_group_goes_to_one_owner() {
        let other = |driver| Card { driver, group: Some("3"), ..Card::at("0000:01:00.1") };
        let own = Card { driver: Some("vfio-pci"), group: Some("3"), ..Card::at(NIC) };
        let (_directory, root) = tree(&[own.clone(), other(Some("ixgbe"))]);
        let expected =
            "0000:01:00.0 shares its IOMMU group 3 with what stays with Linux: 0000:01:00.1 (ixgbe)";
        assert_eq!(said(&root), ("nic-group", expected.to_owned()));
        for harmless in [None, Some("vfio-pci")] {
            let (_directory, root) = tree(&[own.clone(), other(harmless)]);
            assert_eq!(standing(&root), Standing::Ready);
        }
    }

    #[test]
    fn who_has_it_open() {
        let (_directory, root) =
            tree(&[Card { driver: Some("vfio-pci"), group: Some("3"), ..Card::at(NIC) }]);
        put(&root, "/proc/17/fd/4", "-> /dev/vfio/31");
        assert_eq!(standing(&root), Standing::Ready);
        put(&root, "/proc/4711/fd/9", "-> /dev/vfio/3");
        put(&root, "/proc/4711/comm", "dpdk-testpmd");
        let expected = "0000:01:00.0 is in use by process 4711 (dpdk-testpmd)";
        assert_eq!(said(&root), ("nic-in-use", expected.to_owned()));

        let (_directory, root) = tree(&[Card { driver: Some(UIO), ..Card::at(NIC) }]);
        put(&root, "/sys/bus/pci/devices/0000:01:00.0/uio/uio2/name", "uio_pci_generic");
        put(&root, "/proc/12/fd/3", "-> /dev/uio2");
        assert_eq!(said(&root).0, "nic-in-use");
    }
}
