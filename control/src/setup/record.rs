//! What was before, noted down before anything is changed.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::change::{Change, driver_of, forced_driver};
use crate::root::Root;

/// Where it is noted. Not in /run/rvs, which goes when the service is stopped.
const FILE: &str = "/var/lib/rvs/setup.json";

/// What was before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Linux' name for the time since it was booted: what was before that is no more.
    boot: String,
    /// NICs that have been given to another driver.
    pub nics: Vec<Nic>,
    /// Hugepages that have been reserved.
    pub pages: Vec<Pages>,
}

/// A NIC before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Nic {
    /// Its address.
    pub address: String,
    /// Its driver.
    pub driver: Option<String>,
    /// The driver that somebody had said it was to have.
    pub driver_override: Option<String>,
}

/// Hugepages before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pages {
    /// The file that reserves them.
    pub file: String,
    /// How many there were.
    pub count: u64,
}

impl Record {
    /// What has been noted since this machine was booted; none if nothing was.
    pub fn read(root: &Root) -> Result<Option<Record>> {
        let shown = || format!("cannot read {FILE}, where rvs setup has noted what was before");
        let record: Record = match fs::read(root.path(FILE)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => serde_json::from_slice(&read.with_context(shown)?).with_context(shown)?,
        };
        Ok((record.boot == boot(root)).then_some(record))
    }

    /// What is now, as far as these changes touch it.
    pub fn of(root: &Root, changes: &[Change]) -> Record {
        let mut record = Record { boot: boot(root), ..Record::default() };
        for change in changes {
            match change {
                Change::Load(_) => {}
                Change::Bind { address, .. } => record.nics.push(Nic {
                    driver: driver_of(root, address),
                    driver_override: forced_driver(root, address),
                    address: address.clone(),
                }),
                Change::Reserve { file, from, .. } => {
                    record.pages.push(Pages { file: file.clone(), count: *from });
                }
            }
        }
        record
    }

    /// With what another one notes and this does not: the oldest word counts.
    pub fn and(mut self, later: Record) -> Record {
        self.boot = later.boot;
        let is_new = |nic: &Nic| self.nics.iter().all(|known| known.address != nic.address);
        let nics: Vec<Nic> = later.nics.into_iter().filter(is_new).collect();
        self.nics.extend(nics);
        let is_new = |pages: &Pages| self.pages.iter().all(|known| known.file != pages.file);
        let pages: Vec<Pages> = later.pages.into_iter().filter(is_new).collect();
        self.pages.extend(pages);
        self
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.nics.is_empty() && self.pages.is_empty()
    }

    /// Notes it down, in one piece; nothing in it means no file.
    pub fn write(&self, root: &Root) -> Result<()> {
        let (path, shown) =
            (root.path(FILE), || format!("cannot note down in {FILE} what was before; it takes root"));
        if self.is_empty() {
            return match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(shown),
                _ => Ok(()),
            };
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(shown)?;
        }
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?).with_context(shown)?;
        fs::rename(new, path).with_context(shown)
    }
}

fn boot(root: &Root) -> String {
    root.read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
