//! Local addresses of full NAT, whose ports are kept beside the table: a file for each, `ports-ADDRESS`.
//!
//! A connection of full NAT is worth nothing without its port, so either all addresses are kept or none: if there is no room for one, the
//! files go, and the next process finds out by that, and begins without connections of full NAT.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use dataplane::service::Protocol;
use dataplane::table::{LocalAddress, Table};

use super::directory::Directory;

/// How the names of the files begin.
const PORTS: &str = "ports-";

/// All local addresses that there have been. None ever goes: it takes address space, and memory only for what is in use.
#[derive(Debug, Default)]
pub struct Locals {
    /// By their numbers.
    all: Vec<Arc<LocalAddress>>,
    /// Where their ports are kept, if they are.
    directory: Option<Arc<Directory>>,
}

impl Locals {
    /// None yet, in a directory that has no connections.
    pub(super) fn new(directory: Arc<Directory>) -> Self {
        remove_all(&directory);
        Locals { all: Vec::new(), directory: Some(directory) }
    }

    /// Those of the process before that have a port which is taken. An error if one cannot be used.
    pub(super) fn inherit(directory: Arc<Directory>) -> Result<Self> {
        let mut all = Vec::new();
        for name in directory.names(PORTS) {
            let address = name[PORTS.len()..].parse();
            let address: IpAddr = address.with_context(|| format!("{name} is the file of no address"))?;
            let number = all.len().try_into().context("there are more local addresses than numbers")?;
            let local = LocalAddress::in_file(number, address, &directory.open_file(&name)?)
                .with_context(|| format!("cannot use {name}"))?;
            if Protocol::ALL.iter().any(|&protocol| local.taken(protocol) > 0) {
                all.push(Arc::new(local));
            } else {
                directory.remove(&name)?;
            }
        }
        Ok(Locals { all, directory: Some(directory) })
    }

    /// Notes in the table which port each connection has.
    pub(super) fn note_in(&self, table: &Table) {
        self.all.iter().for_each(|local| local.note_all(table));
    }

    /// A local address, made if it is not known. `None` if there is no address space for it, which is logged.
    pub fn enter(&mut self, address: IpAddr) -> Option<Arc<LocalAddress>> {
        if let Some(known) = self.iter().find(|local| local.address == address) {
            return Some(known.clone());
        }
        let number = self.all.len().try_into().ok()?;
        let made = self.make_in_file(number, address).map_or_else(|| LocalAddress::new(number, address), Ok);
        match made {
            Ok(local) => {
                self.all.push(Arc::new(local));
                self.all.last().cloned()
            }
            Err(error) => {
                tracing::error!(%address, %error, "no address space for the ports of a local address");
                None
            }
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<LocalAddress>> {
        self.all.iter()
    }

    /// One that is kept, if they are and there is room for it.
    fn make_in_file(&mut self, number: u16, address: IpAddr) -> Option<LocalAddress> {
        let directory = self.directory.as_ref()?;
        let make = || {
            let file = directory.create(&format!("{PORTS}{address}"), LocalAddress::bytes(address))?;
            anyhow::Ok(LocalAddress::in_file(number, address, &file)?)
        };
        match make() {
            Ok(local) => Some(local),
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "connections of full NAT would not outlive this process; those of other services do"
                );
                remove_all(directory);
                self.directory = None;
                None
            }
        }
    }
}

/// Takes the files away. Whoever has one mapped goes on with it.
pub(super) fn remove_all(directory: &Directory) {
    for name in directory.names(PORTS) {
        if let Err(error) = directory.remove(&name) {
            tracing::warn!(error = format!("{error:#}"), "the ports of a local address stay");
        }
    }
}

#[cfg(test)]
mod tests {
    use dataplane::table::{Client, DestId, Identity, Word};

    use super::super::directory::tests::on_tmpfs;
    use super::*;

    fn owner(n: u32) -> Identity {
        Word::new(Client::new(n, 1000), DestId::new(1).unwrap()).identity()
    }

    fn files(directory: &Directory) -> Vec<String> {
        let mut names = directory.names(PORTS);
        names.sort();
        names
    }

    #[test]
    fn ports_that_are_taken_are_found_by_the_next_process() {
        let parent = on_tmpfs();
        let directory = Arc::new(Directory::open(parent.path()).unwrap());
        let addresses = ["10.0.0.100", "2001:db8::100", "10.0.0.101"].map(|text| text.parse().unwrap());
        let mut before = Locals::new(directory.clone());
        let locals = addresses.map(|address| before.enter(address).unwrap());
        assert_eq!(before.enter(addresses[1]).unwrap().number, 1);
        assert!(locals[1].take(Protocol::Udp, 7, owner(7), None));
        assert!(locals[2].take(Protocol::Tcp, 65535, owner(8), None));
        drop((before, locals));

        let mut after = Locals::inherit(directory.clone()).unwrap();
        assert_eq!(
            files(&directory),
            ["ports-10.0.0.101", "ports-2001:db8::100"],
            "of one nobody has a port"
        );
        assert_eq!(after.enter(addresses[1]).unwrap().owner(Protocol::Udp, 7), Some(owner(7)));
        assert_eq!(after.enter(addresses[2]).unwrap().owner(Protocol::Tcp, 65535), Some(owner(8)));
        assert_eq!(after.enter(addresses[0]).unwrap().number, 2);
        assert_eq!((files(&directory).len(), after.iter().count()), (3, 3));

        assert_eq!(Locals::new(directory.clone()).iter().count(), 0, "without connections");
        assert_eq!(files(&directory), [""; 0]);
    }

    #[test]
    fn without_room_for_all_none_is_kept_and_all_work() {
        let parent = on_tmpfs();
        let directory = Arc::new(Directory::open(parent.path()).unwrap());
        let mut locals = Locals::new(directory.clone());
        let first = locals.enter("10.0.0.100".parse().unwrap()).unwrap();
        // Where the second one's file is to be.
        std::fs::create_dir(parent.path().join("ports-10.0.0.101")).unwrap();
        let second = locals.enter("10.0.0.101".parse().unwrap()).unwrap();
        for local in [first, second] {
            assert!(local.take(Protocol::Tcp, 1, owner(1), None));
        }
        assert!(!parent.path().join("ports-10.0.0.100").exists());
    }

    #[test]
    fn a_file_that_is_none_is_said() {
        let parent = on_tmpfs();
        let directory = Arc::new(Directory::open(parent.path()).unwrap());
        std::fs::write(parent.path().join("ports-10.0.0.100"), "short").unwrap();
        let error = format!("{:#}", Locals::inherit(directory.clone()).unwrap_err());
        assert!(error.starts_with("cannot use ports-10.0.0.100: it has 5 bytes"), "{error}");
        std::fs::rename(parent.path().join("ports-10.0.0.100"), parent.path().join("ports-x")).unwrap();
        assert_eq!(Locals::inherit(directory).unwrap_err().to_string(), "ports-x is the file of no address");
    }
}
