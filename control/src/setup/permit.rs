//! Which NICs a boot may take: those that a run by hand has taken. At a boot nobody sees by which NIC this machine is reached,
//! since the network comes later, and nobody reads what is refused; so no NIC is taken there for the first time.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::record::{forget, note, noted};
use crate::config::Config;
use crate::config::value::pci_address;
use crate::hardware::Nic;
use crate::root::Root;

/// Where it is noted.
const FILE: &str = "/var/lib/rvs/permit.json";

/// By the file that names them: NICs that may be taken, by address, and what they are, since addresses change when a card is
/// plugged in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Permit(BTreeMap<PathBuf, BTreeMap<String, String>>);

impl Permit {
    /// What has been permitted on this machine.
    pub fn read(root: &Root) -> Result<Permit> {
        Ok(noted(root, FILE)?.unwrap_or_default())
    }

    /// Permits the NICs of a configuration, and of this file no others.
    pub fn give(root: &Root, config: &Config) -> Result<()> {
        let before = Permit::read(root)?;
        let addresses = config.devices().filter_map(|(_, _, device)| pci_address(device));
        let nics = addresses.filter_map(|address| Nic::read(root, &address));
        let nics: BTreeMap<_, _> = nics.map(|nic| (nic.address.clone(), kind(&nic))).collect();
        let mut permit = before.clone();
        match nics.is_empty() {
            true => permit.0.remove(&file(config)),
            false => permit.0.insert(file(config), nics),
        };
        // Who only looks whether all is well need not be root.
        if permit == before { Ok(()) } else { note(root, FILE, &permit) }
    }

    /// Permits nothing any more.
    pub fn forget(root: &Root) -> Result<()> {
        forget(root, FILE)
    }

    /// Whether a NIC has been taken for a configuration, which may be gone by now.
    pub fn knows(&self, address: &str, config: &Config) -> bool {
        self.0.get(&file(config)).is_some_and(|nics| nics.contains_key(address))
    }

    /// Whether a NIC may be taken for a configuration.
    pub fn check(&self, nic: &Nic, config: &Config) -> Result<(), String> {
        let known = self.0.get(&file(config)).and_then(|nics| nics.get(&nic.address));
        let shown = config.path.display();
        match known {
            Some(known) if *known == kind(nic) => Ok(()),
            Some(known) => Err(format!(
                "{} is a {} now and was a {known} when it was taken by hand; a boot takes only what is the same, \
                 look at `rvs ports` and run `rvs setup -c {shown}`",
                nic.address,
                kind(nic)
            )),
            None => Err(format!(
                "{} has not been taken by hand yet, and a boot takes no others; run `rvs setup -c {shown}`",
                nic.address
            )),
        }
    }
}

/// As in lspci -n.
fn kind(nic: &Nic) -> String {
    format!("{:04x}:{:04x}", nic.vendor, nic.device)
}

/// The same, from wherever it is named.
fn file(config: &Config) -> PathBuf {
    std::path::absolute(&config.path).unwrap_or_else(|_| config.path.clone())
}
