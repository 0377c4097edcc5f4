//! What must not be taken from Linux: the way out of this machine, and the way of whoever is just logged in.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nameindex};

use super::Nic;
use crate::net::Linux;
use crate::root::Root;

/// What interfaces of Linux are needed for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lifelines {
    /// Interfaces with a default route.
    pub default_routes: BTreeSet<String>,
    /// Where the SSH session of the caller comes from, and the interface that answers leave by.
    pub ssh: Option<(IpAddr, String)>,
    /// Addresses of interfaces that are up, but those that an interface has by itself.
    pub addresses: Vec<(String, IpAddr)>,
}

/// Why Linux needs a NIC. Shown, it follows "the NIC".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    /// What it is needed for.
    need: Need,
    /// Its interface, which `by` is or stands on.
    interface: String,
    /// The interface that is needed.
    by: String,
}

/// What a NIC is needed for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    /// Without it this machine is alone.
    DefaultRoute,
    /// Without it the operator is out.
    Ssh(IpAddr),
    /// One of both, if what has it is on this NIC, which Linux does not tell.
    Perhaps,
    /// Somebody uses it, perhaps.
    Address(IpAddr),
    /// A bridge, a bond or the like has it, and with it virtual machines, perhaps.
    Part,
    /// Another network namespace has its interface, perhaps.
    Elsewhere,
}

impl Lifelines {
    /// Those of this network namespace and of the process that asks.
    pub async fn read(root: &Root) -> Result<Lifelines> {
        let linux = Linux::open()?;
        let interfaces = if_nameindex().context("cannot list the network interfaces")?;
        let name = |index: u32| {
            let interface = interfaces.iter().find(|interface| interface.index() == index)?;
            Some(interface.name().to_string_lossy().into_owned())
        };
        let ssh = match ssh_client(root, std::process::id()) {
            None => None,
            Some((client, Some(scope))) => Some((client, scope)),
            Some((client, None)) => {
                let way = linux.way_to(client).await?.and_then(name);
                Some(client).zip(way)
            }
        };
        let default_routes = linux.default_routes().await?.into_iter().filter_map(name).collect();
        Ok(Lifelines { default_routes, ssh, addresses: addresses()? })
    }

    /// What Linux needs a NIC for, the worst first. The least is an address that it has, or that an interface above it has; that
    /// there is an interface above it; and that its own cannot be seen.
    pub fn of(&self, root: &Root, nic: &Nic) -> Option<Hold> {
        let stacks = nic.interfaces.iter().map(|interface| (&interface.name, above(root, &interface.name)));
        let stacks: Vec<(&String, BTreeSet<String>)> = stacks.collect();
        let hold = |needed: &String, need: Need| {
            let (interface, _) = stacks.iter().find(|(_, stack)| stack.contains(needed))?;
            Some(Hold { need, interface: (*interface).clone(), by: needed.clone() })
        };
        let default_route = self.default_routes.iter().find_map(|by| hold(by, Need::DefaultRoute));
        let ssh = || self.ssh.as_ref().and_then(|(client, by)| hold(by, Need::Ssh(*client)));
        let address = || self.addresses.iter().find_map(|(by, address)| hold(by, Need::Address(*address)));
        let perhaps = || {
            let ways = self.default_routes.iter().chain(self.ssh.iter().map(|(_, by)| by));
            let mut ways = ways.filter(|by| is_loose(root, by));
            ways.find_map(|by| {
                let mut stacks = nic.interfaces.iter().zip(&stacks);
                let (interface, _) = stacks.find(|(interface, (_, stack))| {
                    interface.up && is_ppp(by) || stack.contains("ovs-system")
                })?;
                Some(Hold { need: Need::Perhaps, interface: interface.name.clone(), by: by.clone() })
            })
        };
        let part = || {
            stacks.iter().find_map(|(interface, stack)| {
                let by = stack.iter().find(|name| name != interface)?;
                Some(Hold { need: Need::Part, interface: (*interface).clone(), by: by.clone() })
            })
        };
        let elsewhere = || {
            let driver = nic.driver_of_linux().filter(|_| nic.interfaces.is_empty())?.to_owned();
            Some(Hold { need: Need::Elsewhere, interface: driver.clone(), by: driver })
        };
        default_route.or_else(ssh).or_else(perhaps).or_else(address).or_else(part).or_else(elsewhere)
    }
}

impl Hold {
    /// Whether it is nothing that this machine is reached by, so that somebody may have forgotten it there.
    pub fn is_mere(&self) -> bool {
        matches!(self.need, Need::Address(_) | Need::Part | Need::Elsewhere)
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self.need {
            Need::DefaultRoute | Need::Ssh(_) => {
                "it stays with Linux; take another NIC, or another way in".to_owned()
            }
            Need::Perhaps if is_ppp(&self.by) => {
                format!("if it does not, `ip link set {} down`", self.interface)
            }
            Need::Perhaps => "if it does not, take it out of Open vSwitch".to_owned(),
            Need::Address(_) => "remove it, or `rvs setup --take` takes the NIC all the same".to_owned(),
            Need::Part | Need::Elsewhere => {
                "free it, or `rvs setup --take` takes the NIC all the same".to_owned()
            }
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.need {
            Need::DefaultRoute => write!(f, "carries the default route")?,
            Need::Ssh(client) => write!(f, "carries your SSH session from {client}")?,
            Need::Perhaps => {
                return write!(
                    f,
                    "may carry {}, which has the default route or your SSH session and does not tell what it is on",
                    self.by
                );
            }
            Need::Address(address) => write!(f, "has the address {address}")?,
            Need::Part => write!(f, "is in use")?,
            Need::Elsewhere => {
                return write!(
                    f,
                    "has the driver {} and no interface here: perhaps another network namespace has it",
                    self.by
                );
            }
        }
        match self.by == self.interface {
            true => write!(f, " ({})", self.by),
            false => write!(f, " ({}, which is on {})", self.by, self.interface),
        }
    }
}

/// Whether an interface is on another one, if any, that sysfs does not tell: PPP over Ethernet, a bridge of Open vSwitch.
fn is_loose(root: &Root, interface: &str) -> bool {
    let files = root.list(&format!("/sys/class/net/{interface}"));
    !files.iter().any(|file| file == "device" || file.starts_with("lower_"))
}

fn is_ppp(interface: &str) -> bool {
    interface.starts_with("ppp")
}

/// An interface, and all that stand on it: bonds, bridges, VLANs.
fn above(root: &Root, interface: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![interface.to_owned()];
    while let Some(name) = open.pop() {
        let files = root.list(&format!("/sys/class/net/{name}"));
        open.extend(
            files
                .iter()
                .filter_map(|file| file.strip_prefix("upper_"))
                .map(str::to_owned)
                .filter(|upper| !found.contains(upper)),
        );
        found.insert(name);
    }
    found
}

/// From where a process or one of its ancestors is logged in, and by which interface if that is part of the address. It is
/// often an ancestor that knows: sudo passes nothing on.
fn ssh_client(root: &Root, pid: u32) -> Option<(IpAddr, Option<String>)> {
    let mut pid = pid;
    while pid > 1 {
        let environment = root.read(&format!("/proc/{pid}/environ")).unwrap_or_default();
        let connection =
            environment.split('\0').find_map(|variable| variable.strip_prefix("SSH_CONNECTION="));
        if let Some(client) = connection.and_then(|words| words.split(' ').next()) {
            let (client, scope) =
                client.split_once('%').map_or((client, None), |(client, scope)| (client, Some(scope)));
            return Some((client.parse().ok()?, scope.map(str::to_owned)));
        }
        let status = root.read(&format!("/proc/{pid}/status"))?;
        pid = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    }
    None
}

fn addresses() -> Result<Vec<(String, IpAddr)>> {
    let all = getifaddrs().context("cannot list the addresses of the network interfaces")?;
    let up = all.filter(|entry| {
        entry.flags.contains(InterfaceFlags::IFF_UP) && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    let address = up.filter_map(|entry| {
        let storage = entry.address?;
        let address = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) if !v6.ip().is_unicast_link_local() => IpAddr::V6(v6.ip()),
            _ => return None,
        };
        Some((entry.interface_name, address))
    });
    Ok(address.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Card, tree};
    use super::*;
    use crate::root::testing::{machine, put};

    const NIC: &str = "0000:01:00.0";

    fn held(root: &Root, lifelines: &Lifelines) -> Option<String> {
        lifelines.of(root, &Nic::read(root, NIC).unwrap()).map(|hold| hold.to_string())
    }

    #[test]
    fn what_a_nic_is_needed_for() {
        let (_directory, root) =
            tree(&[Card { driver: Some("e1000e"), interface: Some("eth1"), ..Card::at(NIC) }]);
        // A VLAN on a bond, on a bridge beside it.
        put(&root, "/sys/class/net/eth1/upper_bond0", "-> ../bond0");
        put(&root, "/sys/class/net/bond0/upper_bond0.7", "-> ../bond0.7");
        put(&root, "/sys/class/net/bond0.7/flags", "0x1003");
        put(&root, "/sys/class/net/eth2/upper_br0", "-> ../br0");
        let mut lines = Lifelines::default();
        let part = Some("is in use (bond0, which is on eth1)");
        assert_eq!(held(&root, &lines).as_deref(), part);
        let address = |name: &str, address: &str| (name.to_owned(), address.parse().unwrap());
        lines.addresses = vec![address("br0", "10.0.0.2"), address("eth2", "10.0.0.1")];
        assert_eq!(held(&root, &lines).as_deref(), part);
        lines.addresses.push(address("bond0", "192.0.2.1"));
        assert_eq!(
            held(&root, &lines).as_deref(),
            Some("has the address 192.0.2.1 (bond0, which is on eth1)")
        );
        lines.ssh = Some(("2001:db8::7".parse().unwrap(), "eth1".to_owned()));
        assert_eq!(held(&root, &lines).as_deref(), Some("carries your SSH session from 2001:db8::7 (eth1)"));
        lines.default_routes.insert("bond0.7".to_owned());
        assert_eq!(
            held(&root, &lines).as_deref(),
            Some("carries the default route (bond0.7, which is on eth1)")
        );
        lines.default_routes = ["eth2".to_owned()].into();
        lines.ssh = None;
        lines.addresses.clear();
        assert_eq!(held(&root, &lines).as_deref(), part);
        std::fs::remove_file(root.path("/sys/class/net/eth1/upper_bond0")).unwrap();
        assert_eq!(held(&root, &lines), None);
    }

    #[test]
    fn what_does_not_tell_that_it_is_on_a_nic() {
        let card = Card { driver: Some("e1000e"), interface: Some("eth1"), ..Card::at(NIC) };
        let (_directory, root) = tree(std::slice::from_ref(&card));
        put(&root, "/sys/class/net/ppp0/flags", "0x1091");
        put(&root, "/sys/class/net/br-ex/flags", "0x1003");
        let mut lines = Lifelines { default_routes: ["ppp0".to_owned()].into(), ..Lifelines::default() };
        let hold = |lines: &Lifelines| lines.of(&root, &Nic::read(&root, NIC).unwrap());
        let perhaps = hold(&lines).unwrap();
        let told = perhaps.to_string();
        assert!(
            told.starts_with("may carry ppp0, which has the default route") && !perhaps.is_mere(),
            "{told}"
        );
        assert_eq!(perhaps.remedy(), "if it does not, `ip link set eth1 down`");
        put(&root, &format!("/sys/bus/pci/devices/{NIC}/net/eth1/flags"), "0x1002");
        assert_eq!(hold(&lines), None);

        lines.default_routes = ["br-ex".to_owned()].into();
        assert_eq!(hold(&lines), None);
        put(&root, "/sys/class/net/eth1/upper_ovs-system", "-> ../ovs-system");
        assert!(!hold(&lines).unwrap().is_mere());
        // Another NIC carries it, for certain.
        put(&root, "/sys/class/net/br-ex/lower_eth2", "-> ../eth2");
        assert!(hold(&lines).unwrap().is_mere());
    }

    #[test]
    fn a_nic_whose_interface_is_in_another_namespace() {
        let held_with = |driver| {
            let (_directory, root) = tree(&[Card { driver, ..Card::at(NIC) }]);
            held(&root, &Lifelines::default())
        };
        let expected =
            "has the driver e1000e and no interface here: perhaps another network namespace has it";
        assert_eq!(held_with(Some("e1000e")).as_deref(), Some(expected));
        assert_eq!(held_with(Some("vfio-pci")), None);
        assert_eq!(held_with(None), None);
    }

    #[test]
    fn sudo_hides_where_one_is_logged_in() {
        let (_directory, root) = machine(&[
            ("/proc/30/environ", "HOME=/root\0SUDO_USER=a\0"),
            ("/proc/30/status", "Name:\trvs\nPPid:\t20\n"),
            ("/proc/20/environ", "TERM=x\0SSH_CONNECTION=198.51.100.7 50000 192.0.2.1 22\0"),
            ("/proc/40/environ", "SSH_CONNECTION=fe80::1%eth0 50000 fe80::2%eth0 22\0"),
            ("/proc/50/status", "PPid:\t1\n"),
        ]);
        assert_eq!(ssh_client(&root, 30), Some(("198.51.100.7".parse().unwrap(), None)));
        assert_eq!(ssh_client(&root, 40), Some(("fe80::1".parse().unwrap(), Some("eth0".to_owned()))));
        assert_eq!(ssh_client(&root, 50), None);
        assert_eq!(ssh_client(&root, 60), None);
    }

    #[tokio::test]
    async fn this_machine_can_be_asked() {
        let lines = Lifelines::read(&Root::new(std::path::Path::new("/"))).await.unwrap();
        assert!(lines.addresses.iter().all(|(_, address)| !address.is_loopback()), "{lines:?}");
    }
}
