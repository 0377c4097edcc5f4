//! What was before, noted down before anything is changed.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
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
    /// How many were added.
    pub added: u64,
}

impl Record {
    /// What has been noted since this machine was booted; none if nothing was.
    pub fn read(root: &Root) -> Result<Option<Record>> {
        let record: Option<Record> = noted(root, FILE)?;
        Ok(record.filter(|record| record.boot == boot(root)))
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
                Change::Reserve { file, from, to } => {
                    record.pages.push(Pages { file: file.clone(), count: *from, added: to - from });
                }
            }
        }
        record
    }

    /// With what another one notes: of what was before the oldest word counts, what was added is added up.
    pub fn and(mut self, later: Record) -> Record {
        self.boot = later.boot;
        let is_new = |nic: &Nic| self.nics.iter().all(|known| known.address != nic.address);
        let nics: Vec<Nic> = later.nics.into_iter().filter(is_new).collect();
        self.nics.extend(nics);
        for pages in later.pages {
            match self.pages.iter_mut().find(|known| known.file == pages.file) {
                Some(known) => known.added += pages.added,
                None => self.pages.push(pages),
            }
        }
        self
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.nics.is_empty() && self.pages.is_empty()
    }

    /// Notes it down; nothing in it means no file.
    pub fn write(&self, root: &Root) -> Result<()> {
        if self.is_empty() { forget(root, FILE) } else { note(root, FILE, self) }
    }
}

/// What a file of notes says, if there is one.
pub(super) fn noted<T: DeserializeOwned>(root: &Root, file: &str) -> Result<Option<T>> {
    let shown = || format!("cannot read {file}, the notes of rvs setup");
    match fs::read(root.path(file)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => Ok(Some(serde_json::from_slice(&read.with_context(shown)?).with_context(shown)?)),
    }
}

/// Notes down, in one piece.
pub(super) fn note(root: &Root, file: &str, value: &impl Serialize) -> Result<()> {
    let (path, shown) =
        (root.path(file), || format!("cannot write {file}, the notes of rvs setup; it takes root"));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(shown)?;
    }
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec_pretty(value)?).with_context(shown)?;
    fs::rename(new, path).with_context(shown)
}

/// Removes a file of notes, if there is one.
pub(super) fn forget(root: &Root, file: &str) -> Result<()> {
    match fs::remove_file(root.path(file)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {file}, the notes of rvs setup; it takes root"))
        }
        _ => Ok(()),
    }
}

fn boot(root: &Root) -> String {
    root.read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
