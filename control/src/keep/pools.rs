//! Pools of source NAT, whose mappings are kept beside the table: a file for each, `snat-RANDOM`.
//!
//! A file has the words of a table of its own, in which the pool's addresses have numbers; the index says which these were. The next process reads them
//! all, and takes each over as it takes over what a peer tells ([`dataplane::snat::Told`]): into the pool that its host has by then, if
//! its port is one of that. Whose blocks and ports are whose comes of it. So nothing need be the same in both processes, and what
//! cannot go on is left out. The key should be, by which a host has its address of the pool and its blocks: it is kept as well.
//!
//! A reload that gives a pool other ports does the same: the pool is made anew, and takes over from the one that it replaces. Twice, since for a moment
//! workers still go by that one: what they begin or establish meanwhile follows once all of them go by the new one ([`Pools::settle`]).
//!
//! Peers have one key, made of theirs, so that a host has the same address by all of them, and each its own share of the blocks.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use dataplane::clock::Tick;
use dataplane::snat::{self, Share, Snat, SnatSpec, Snats, Told};
use dataplane::table::{HashKey, Table};
use dataplane::told::Adopted;

use super::directory::Directory;
use super::{random, random_key};
use crate::config::Sync;

/// How the names of the files begin.
const SNAT: &str = "snat-";

/// What the index says of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptPool {
    /// The name of its file.
    pub file: String,
    /// For how many mappings it is made.
    pub mappings: usize,
    /// The hash by which its words have their places, and hosts their ports.
    pub key: HashKey,
    /// The addresses, by the numbers that they have in its words.
    pub addresses: Vec<u32>,
}

impl KeptPool {
    /// The mappings in its file at this moment, by the clock of their stamps.
    pub(super) fn read(&self, directory: &Directory, now: Tick) -> Result<Vec<Told>> {
        ensure!(self.file.starts_with(SNAT) && !self.file.contains('/'), "{} is no pool's file", self.file);
        let file = directory.open_file(&self.file)?;
        let table = Table::in_file(&file, self.mappings, self.key)
            .with_context(|| format!("cannot use {}", self.file))?;
        Ok(snat::left(&table, &self.addresses, now))
    }
}

/// All pools of source NAT in force.
#[derive(Debug)]
pub struct Pools {
    all: Vec<Pool>,
    /// Pools that a reload has replaced, by which workers may still go.
    replaced: Vec<Arc<Snat>>,
    key: HashKey,
    share: Share,
    /// Where mappings are kept, if they are.
    directory: Option<Arc<Directory>>,
    /// Whether others are kept than were last asked for.
    has_changed: bool,
}

#[derive(Clone, Debug)]
struct Pool {
    snat: Arc<Snat>,
    /// The name of its file, if it has one.
    file: Option<Arc<str>>,
}

impl Pools {
    /// None yet, for a router that has them to itself and keeps nothing.
    pub fn new(key: HashKey) -> Pools {
        let (all, replaced) = (Vec::new(), Vec::new());
        Pools { all, replaced, key, share: Share::WHOLE, directory: None, has_changed: false }
    }

    /// None yet, for a router with these peers after a process with these pools.
    pub(super) fn after(
        before: &[KeptPool],
        sync: Option<&Sync>,
        directory: Option<Arc<Directory>>,
    ) -> Pools {
        let own = || before.first().map_or_else(random_key, |pool| pool.key);
        let key = sync.map_or_else(own, |sync| sync.key.for_pools());
        Pools { share: sync.map_or(Share::WHOLE, share), directory, ..Pools::new(key) }
    }

    /// Follows the configuration at this moment: a pool whose ports have not changed keeps its mappings, and those of all others go on where
    /// their port is a pool's still.
    pub fn follow(&mut self, specs: &[SnatSpec], now: Tick) {
        let all = specs.iter().map(|spec| self.known(spec).unwrap_or_else(|| self.make(spec))).collect();
        let before = std::mem::replace(&mut self.all, all);
        self.has_changed |= !before.iter().map(|pool| &pool.file).eq(self.all.iter().map(|pool| &pool.file));
        let goes_on = |old: &Snat| self.all.iter().any(|pool| pool.snat.shares_mappings(old));
        let replaced = before.into_iter().map(|pool| pool.snat).filter(|old| !goes_on(old));
        let replaced: Vec<Arc<Snat>> = replaced.collect();
        let told: Vec<Told> = replaced.iter().flat_map(|old| old.told(now)).collect();
        self.adopt(&told, now);
        self.replaced.extend(replaced);
    }

    /// All workers go by these pools, and what they have done by others meanwhile can go on as well.
    pub fn settle(&mut self, now: Tick) {
        let (snats, replaced) = (Snats::new(self.snats()), std::mem::take(&mut self.replaced));
        for told in replaced.iter().flat_map(|old| old.told(now)) {
            snats.adopt(now, &told, 0);
        }
    }

    fn known(&self, spec: &SnatSpec) -> Option<Pool> {
        let same = self.all.iter().find(|pool| pool.snat.spec() == spec).cloned();
        same.or_else(|| {
            self.all.iter().find_map(|Pool { snat, file }| {
                Some(Pool { snat: Arc::new(snat.described(spec)?), file: file.clone() })
            })
        })
    }

    fn make(&self, spec: &SnatSpec) -> Pool {
        let kept = self.directory.as_ref().and_then(|directory| {
            // What the process before has left has been read, and there may be no room for two.
            let made = self.make_in_file(directory, spec).or_else(|_| {
                remove_others(directory, |name| self.files().any(|file| file == name));
                self.make_in_file(directory, spec)
            });
            made.inspect_err(|error| {
                tracing::error!(
                    error = format!("{error:#}"),
                    "mappings of source NAT would not outlive this process; connections do"
                );
            })
            .ok()
        });
        kept.unwrap_or_else(|| Pool {
            snat: Arc::new(Snat::new(spec.clone(), self.key, self.share)),
            file: None,
        })
    }

    fn make_in_file(&self, directory: &Directory, spec: &SnatSpec) -> Result<Pool> {
        let name = format!("{SNAT}{:016x}", random());
        let file = directory.create(&name, Snat::bytes(spec))?;
        let snat = Snat::in_file(spec.clone(), self.key, self.share, &file).context("cannot map mappings")?;
        Ok(Pool { snat: Arc::new(snat), file: Some(name.into()) })
    }

    /// Takes over mappings of the process before, or of pools before.
    pub(super) fn adopt(&self, told: &[Told], now: Tick) {
        if told.is_empty() {
            return;
        }
        let (snats, mut kept, mut not_here, mut no_room) = (Snats::new(self.snats()), 0, 0, 0);
        for mapping in told {
            match snats.adopt(now, mapping, 0) {
                Adopted::New | Adopted::Changed | Adopted::Known => kept += 1,
                Adopted::Stale => not_here += 1,
                Adopted::NoRoom => no_room += 1,
            }
        }
        tracing::info!(kept, not_here, no_room, "mappings of source NAT that were there before go on");
    }

    /// All of them, in the order of the file.
    pub fn snats(&self) -> Vec<Arc<Snat>> {
        self.all.iter().map(|pool| pool.snat.clone()).collect()
    }

    /// Whether others are kept than when this was last asked.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// What the index is to say of them.
    pub(super) fn kept(&self) -> Vec<KeptPool> {
        let kept = |Pool { snat, file }: &Pool| {
            let spec = snat.spec();
            let (file, addresses) = (file.as_deref()?.to_owned(), spec.outside.clone());
            Some(KeptPool { file, mappings: spec.mappings, key: self.key, addresses })
        };
        self.all.iter().filter_map(kept).collect()
    }

    fn files(&self) -> impl Iterator<Item = &str> {
        self.all.iter().filter_map(|pool| pool.file.as_deref())
    }
}

/// Which share a router has among its peers: their order is that of their addresses.
fn share(sync: &Sync) -> Share {
    let before = sync.peers.iter().filter(|&&peer| peer < sync.listen).count();
    Share { number: before, of: sync.peers.len() + 1 }
}

/// Takes the files away of pools that are not among these.
pub(super) fn remove_others(directory: &Directory, is_used: impl Fn(&str) -> bool) {
    for name in directory.names(SNAT).iter().filter(|name| !is_used(name)) {
        if let Err(error) = directory.remove(name) {
            tracing::warn!(error = format!("{error:#}"), "old mappings of source NAT stay");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use dataplane::snat::{Class, SnatTimeouts};
    use dataplane::table::Client;

    use super::super::directory::tests::on_tmpfs;
    use super::*;

    const KEY: HashKey = HashKey { blind: 1, factor: 3 };
    const HOST: u32 = 0x0A00_0005;

    fn spec(outside: u32) -> SnatSpec {
        SnatSpec {
            inside: vec![(0x0A00_0000, 24)],
            outside: vec![outside],
            ports: 2000..=2099,
            block: 10,
            limit: 20,
            mappings: 1024,
            timeouts: SnatTimeouts::default(),
        }
    }

    /// A mapping of UDP from this port of the host; the port of the pool.
    fn leaves(pools: &Pools, port: u16) -> u16 {
        let snats = Snats::new(pools.snats());
        snats.leaves(Tick(1), Class::Udp, Client::new(HOST, port), 0, 0).unwrap().0.port
    }

    fn mappings(pools: &Pools) -> Vec<u64> {
        Snats::new(pools.snats()).mappings()
    }

    #[test]
    fn a_pool_that_has_not_changed_keeps_its_mappings_over_a_reload() {
        let mut pools = Pools::new(KEY);
        pools.follow(&[spec(1), spec(2)], Tick(1));
        let port = leaves(&pools, 4000);
        let second = pools.snats().remove(1);
        pools.follow(&[spec(1), spec(2), spec(3)], Tick(1));
        assert!(Arc::ptr_eq(&pools.snats()[1], &second));
        assert_eq!(mappings(&pools), [1, 0, 0]);

        let patient = SnatSpec { limit: 30, inside: vec![(0x0A00_0000, 8)], ..spec(1) };
        let patient = SnatSpec { timeouts: SnatTimeouts { udp: 600, ..patient.timeouts }, ..patient };
        pools.follow(std::slice::from_ref(&patient), Tick(1));
        assert_eq!((mappings(&pools), leaves(&pools, 4000)), (vec![1], port), "the pool is the same");
        pools.follow(&[SnatSpec { inside: vec![(0x0A01_0000, 16)], ..patient.clone() }], Tick(1));
        let elsewhere = Snats::new(pools.snats());
        assert_eq!(elsewhere.from_outside(Tick(1), Class::Udp, 1, port), None, "it is not inside any more");
    }

    #[test]
    fn a_pool_with_other_ports_takes_over_those_that_it_still_has() {
        let mut pools = Pools::new(KEY);
        pools.follow(&[spec(5), spec(6)], Tick(1));
        let ports = [4000, 4001, 4002].map(|port| leaves(&pools, port));
        let workers = Snats::new(pools.snats());

        // Other blocks, more room, and an address before its own.
        let larger = SnatSpec { outside: vec![4, 5], block: 20, mappings: 5000, ..spec(5) };
        pools.follow(&[larger.clone(), spec(6)], Tick(1));
        assert_eq!(ports.map(|port| inside(&pools, 5, port)), [Some(4000), Some(4001), Some(4002)]);
        assert_eq!(mappings(&pools), [3, 0]);
        assert_eq!((leaves(&pools, 4001), mappings(&pools)), (ports[1], vec![3, 0]));

        // A worker still goes by the pool before.
        let late = workers.leaves(Tick(2), Class::Udp, Client::new(HOST, 4003), 0, 0).unwrap().0.port;
        assert_eq!(inside(&pools, 5, late), None);
        pools.settle(Tick(3));
        assert_eq!((inside(&pools, 5, late), mappings(&pools)), (Some(4003), vec![4, 0]));
        workers.leaves(Tick(4), Class::Udp, Client::new(HOST, 4004), 0, 0).unwrap();
        pools.settle(Tick(4));
        assert_eq!(mappings(&pools), [4, 0], "of what is settled nothing is asked again");

        let fewer = SnatSpec { ports: ports[2]..=ports[2] + 20, ..larger.clone() };
        pools.follow(&[fewer.clone(), spec(6)], Tick(5));
        assert_eq!(ports.map(|port| inside(&pools, 5, port)), [None, None, Some(4002)]);
        pools.follow(&[SnatSpec { inside: vec![(0x0A01_0000, 16)], block: 10, ..fewer }], Tick(5));
        assert_eq!(mappings(&pools), [0]);
    }

    /// What the next process makes of what this one has left, with these pools.
    fn next(directory: &Arc<Directory>, before: &Pools, specs: &[SnatSpec]) -> Pools {
        let kept = before.kept();
        let told: Vec<Told> = kept.iter().flat_map(|pool| pool.read(directory, Tick(5)).unwrap()).collect();
        let mut pools = Pools::after(&kept, None, Some(directory.clone()));
        pools.follow(specs, Tick(1));
        pools.adopt(&told, Tick(5));
        pools
    }

    fn inside(pools: &Pools, outside: u32, port: u16) -> Option<u16> {
        let snats = Snats::new(pools.snats());
        Some(snats.from_outside(Tick(5), Class::Udp, outside, port)?.inside.port())
    }

    #[test]
    fn mappings_go_on_in_the_next_process_where_their_port_is_a_pools_still() {
        let parent = on_tmpfs();
        let directory = Arc::new(Directory::open(parent.path()).unwrap());
        let mut first = Pools::after(&[], None, Some(directory.clone()));
        first.follow(&[spec(5), spec(6)], Tick(1));
        assert!(first.take_changed());
        let ports = [4000, 4001, 4002].map(|port| leaves(&first, port));
        let names = directory.names(SNAT);
        assert_eq!(names.len(), 2);

        // The address has another number now, and there is more room.
        let larger = SnatSpec { outside: vec![4, 5], mappings: 5000, ..spec(5) };
        let second = next(&directory, &first, std::slice::from_ref(&larger));
        assert_eq!(ports.map(|port| inside(&second, 5, port)), [Some(4000), Some(4001), Some(4002)]);
        assert!(second.files().all(|file| !names.iter().any(|name| name == file)), "in a file of its own");
        assert_eq!((leaves(&second, 4001), mappings(&second)), (ports[1], vec![3]));
        // What begins now has none of their ports.
        assert!(!ports.contains(&leaves(&second, 4003)));

        let fewer = SnatSpec { ports: ports[2]..=ports[2] + 20, ..larger.clone() };
        let third = next(&directory, &second, &[fewer]);
        assert_eq!(ports.map(|port| inside(&third, 5, port)), [None, None, Some(4002)]);
        let elsewhere = SnatSpec { inside: vec![(0x0A01_0000, 16)], ..larger };
        assert_eq!(mappings(&next(&directory, &second, &[elsewhere])), [0]);
        assert_eq!(mappings(&next(&directory, &second, &[])), [0; 0]);
        remove_others(&directory, |name| second.files().any(|file| file == name));
        assert!(directory.names(SNAT).iter().map(String::as_str).eq(second.files()));
    }

    #[test]
    fn a_host_has_the_address_that_it_had() {
        let parent = on_tmpfs();
        let directory = Arc::new(Directory::open(parent.path()).unwrap());
        let of_many = SnatSpec { outside: (1..=200).collect(), ..spec(0) };
        let mut first = Pools::after(&[], None, Some(directory.clone()));
        first.follow(std::slice::from_ref(&of_many), Tick(1));
        leaves(&first, 4000);
        let second = next(&directory, &first, &[of_many]);
        leaves(&second, 4001);
        let hosts = second.snats()[0].hosts();
        assert_eq!((hosts.len(), hosts[0].ports), (1, [0, 2, 0]));
    }

    #[test]
    fn where_there_is_no_room_none_is_kept_and_all_work() {
        let parent = on_tmpfs();
        let path = parent.path().join("kept");
        let mut pools = Pools::after(&[], None, Some(Arc::new(Directory::open(&path).unwrap())));
        std::fs::remove_dir(&path).unwrap();
        pools.follow(&[spec(1)], Tick(1));
        leaves(&pools, 4000);
        assert_eq!((mappings(&pools), pools.kept()), (vec![1], vec![]));
    }

    #[test]
    fn a_file_that_is_none_is_said() {
        let parent = on_tmpfs();
        let directory = Directory::open(parent.path()).unwrap();
        let of =
            |file: &str| KeptPool { file: file.to_owned(), mappings: 1024, key: KEY, addresses: vec![1] };
        std::fs::write(Path::new(parent.path()).join("snat-0"), "short").unwrap();
        let said = |file: &str| format!("{:#}", of(file).read(&directory, Tick(1)).unwrap_err());
        assert_eq!(said("snat-0"), "cannot use snat-0: it has 5 bytes; expected 512 buckets of 64");
        assert_eq!(said("/etc/snat-0"), "/etc/snat-0 is no pool's file");
    }

    #[test]
    fn peers_have_one_key_and_each_its_share() {
        let listen = |n: u8| std::net::SocketAddr::from(([10, 9, 0, n], 8848));
        let pools = [1, 2, 3].map(|n| {
            let peers = [1, 2, 3].into_iter().filter(|&peer| peer != n).map(listen).collect();
            let key = crate::sync::session::Key([7; 32]);
            Pools::after(&[], Some(&Sync { listen: listen(n), peers, key, states: Vec::new() }), None)
        });
        assert_eq!(
            pools.each_ref().map(|pools| pools.share),
            [0, 1, 2].map(|number| Share { number, of: 3 })
        );
        assert!(pools.iter().all(|other| other.key == pools[0].key && other.key != KEY));
    }
}
