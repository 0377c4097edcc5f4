//! A connection table that outlives its process: `[table] keep`.
//!
//! The table is a file in memory, and beside it lies an index of who its words are about (`index`). A process that
//! starts takes both over, if it finds them as they should be, and no client notices more than a pause. Otherwise it
//! says why and begins with an empty table: to forget connections is bad, to send them to the wrong server is worse.
//!
//! What lies there at any moment is good for the next process, because the order is right:
//!
//! * the index names the file of its table, and is replaced as a whole. A table of another size is filled from the old
//!   one beside it, and only the index that names it puts it in the place of the old one;
//! * the index is written *before* workers get a snapshot with new members ([`Keep::record`]), so that no word can have a
//!   number that it does not know, or knows as somebody else;
//! * the ports of local addresses (full NAT) are in files of their own (`locals`), made before a connection can have one of them;
//! * the mappings of source NAT are as well (`pools`), one a pool, which the index names;
//! * the number of a member that has gone is not given away before no word has it ([`crate::ids`]), so it is the next
//!   process that finds out whose words are left.
//!
//! A member that is not wanted any more, because it was leaving, had been added live or is not in the file of the next
//! process, leaves there with the connections that it has ([`Services::come_back`]). Words of all others are removed at the start.

mod directory;
mod index;
mod locals;
mod pools;

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dataplane::counters::{Gauge, Live};
use dataplane::service::Mode;
use dataplane::snat::Told;
use dataplane::table::{Census, HashKey, Known, Table, Threads};
use dataplane::worker::{Ticks, now};

pub use self::directory::Directory;
use self::index::Index;
pub use self::locals::Locals;
use self::pools::KeptPool;
pub use self::pools::Pools;
use crate::config::{Config, ConfigErrors};
use crate::crew::pin;
use crate::events::{Events, Kind};
use crate::ids::{Ids, Member};
use crate::services::Services;

/// The name of the index.
const INDEX: &str = "index";

/// How the names of tables begin.
const TABLE: &str = "table-";

/// What changes whenever the machine starts.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The connections with which a process begins.
pub struct Start {
    /// The table.
    pub table: Arc<Table>,
    /// Who its words are about.
    pub ids: Ids,
    /// Source NAT, with its mappings.
    pub pools: Pools,
    /// Where all are kept for the next process, if they are.
    pub keep: Option<Keep>,
    /// Where they are from.
    pub origin: Origin,
}

/// Where the connections are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There are none: they are not kept, or nobody has kept any yet.
    New,
    /// The process before.
    Adopted {
        /// How many go on.
        kept: u64,
        /// How many do not, since their server is not configured, or they were not there yet.
        removed: u64,
        /// How many found no room, if the table is smaller than before.
        no_room: u64,
        /// How long it took.
        took: Duration,
    },
    /// There are none, because what was there does not do.
    Refused(String),
}

impl Origin {
    /// Says so, if there is something to say.
    pub fn tell(&self, events: &Events) {
        match self {
            Origin::New => {}
            Origin::Adopted { kept, removed, no_room, took } => {
                tracing::info!(kept, removed, no_room, ?took, "connections that were there before go on");
                events.publish(Kind::TableAdopted {
                    connections: *kept,
                    removed: removed + no_room,
                    milliseconds: took.as_millis() as u64,
                });
            }
            Origin::Refused(reason) => {
                tracing::warn!(reason, "connections that were there before are forgotten");
                events.publish(Kind::TableRefused { reason: reason.clone() });
            }
        }
    }
}

/// How long a table may lie without a process: the stamps of its words turn round, and a word that has not been swept for
/// longer than this might seem young again ([`dataplane::clock::FINE_LIMIT`], with room).
const LONGEST: Duration = Duration::from_secs(2 * 3600);

/// Takes the directory, if connections are to be kept. An error if it does not do, or another process has it.
pub fn claim(config: &Config) -> Result<Option<Directory>, ConfigErrors> {
    let taken = config.table.keep.as_deref().map(Directory::open).transpose();
    taken.map_err(|error| of_key(config, &error))
}

fn of_key(config: &Config, error: &anyhow::Error) -> ConfigErrors {
    config.error("table.keep", format!("{error:#}"))
}

/// Makes the table, or takes over the one that is kept in the directory, on all cores that are ours: no worker needs its
/// own yet, and the calling thread waits. Connections go on with the members of `services` and with those that may leave.
///
/// An error if the directory has no room for the table.
pub fn start(
    config: &Config,
    services: &Services,
    directory: Option<Directory>,
    control_cores: &[usize],
) -> Result<Start> {
    let workers = config.workers.cores.len();
    let connections = config.table.connections as usize;
    let Some(directory) = directory.map(Arc::new) else {
        let table = Arc::new(Table::new(connections, random_key()));
        let mut pools = Pools::after(&[], config.sync.as_ref(), None);
        pools.follow(&config.routing.snats, now());
        return Ok(Start { table, ids: Ids::new(workers), pools, keep: None, origin: Origin::New });
    };
    let pools = |before: &[KeptPool]| {
        let mut pools = Pools::after(before, config.sync.as_ref(), Some(directory.clone()));
        pools.follow(&config.routing.snats, now());
        pools
    };
    let of_key = |error: anyhow::Error| of_key(config, &error);
    let cores: BTreeSet<usize> = config.workers.cores.iter().chain(control_cores).copied().collect();
    let cores = Vec::from_iter(cores);
    let go = |number: usize| {
        if let Err(error) = pin(&cores[number..=number]) {
            tracing::warn!(
                error = format!("{error:#}"),
                "a part of the table is gone through on another core"
            );
        }
    };
    let threads = Threads { count: cores.len(), begin: &go };
    let origin = match adopt(&directory, connections, services, threads) {
        Ok(Some(Adopted { table, index, locals, mappings, census, took })) => {
            let origin =
                Origin::Adopted { kept: census.kept, removed: census.removed, no_room: census.no_room, took };
            let gauge = |member: &Member| (*member, Gauge::of(census.of(member.id)));
            let ids = Ids::inherit(workers, index.members.iter().map(gauge)).with_locals(locals);
            let pools = pools(&index.pools);
            pools.adopt(&mappings, now());
            let keep = Some(Keep { directory, index, is_written: false, is_said: false });
            return Ok(Start { table: Arc::new(table), ids, pools, keep, origin });
        }
        Ok(None) => Origin::New,
        Err(error) => Origin::Refused(format!("{error:#}")),
    };
    // Nobody needs it any more, and there may be no room for two.
    directory.remove(INDEX).map_err(of_key)?;
    remove_tables(&directory, None);
    pools::remove_others(&directory, |_| false);
    let (table, index) = make(&directory, connections, random_key()).map_err(of_key)?;
    let ids = Ids::new(workers).with_locals(Locals::new(directory.clone()));
    let pools = pools(&[]);
    let keep = Some(Keep { directory, index, is_written: false, is_said: false });
    Ok(Start { table: Arc::new(table), ids, pools, keep, origin })
}

/// A table of the process before.
struct Adopted {
    table: Table,
    /// With the members that are wanted, or have connections.
    index: Index,
    /// Whose ports its connections of full NAT have.
    locals: Locals,
    /// Of source NAT; their ages are the same by any clock.
    mappings: Vec<Told>,
    census: Census,
    took: Duration,
}

/// Takes over what is kept; none if nothing is. An error says why it does not do.
fn adopt(
    directory: &Arc<Directory>,
    connections: usize,
    services: &Services,
    threads: Threads<'_>,
) -> Result<Option<Adopted>> {
    let began = Instant::now();
    let Some(bytes) = directory.read(INDEX)? else { return Ok(None) };
    let mut index = Index::parse(&bytes)?;
    ensure!(index.boot == boot()?, "it is of another boot of this machine");
    let lain = directory.untouched(INDEX)?;
    ensure!(
        lain < LONGEST,
        "it was in use {} ago",
        humantime::format_duration(Duration::from_secs(lain.as_secs()))
    );
    // It is a name and nothing else.
    ensure!(index.table.starts_with(TABLE) && !index.table.contains('/'), "the index names no table");
    let (wanted, may_leave) = (services.members(), services.may_leave());
    let is_wanted = |member: &Member| wanted.contains(&(member.service, member.server));
    let has_face = |member: &Member| member.face.is_none_or(|face| services.has_face(member.service, face));
    index
        .members
        .retain(|member| has_face(member) && (is_wanted(member) || may_leave(member.service, member.server)));
    let locals = Locals::inherit(directory.clone()).unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "connections of full NAT are forgotten");
        Locals::new(directory.clone())
    });
    // Without its port a connection is of no use.
    let has_ports = locals.iter().next().is_some();
    let members = index.members.iter().filter(|member| has_ports || member.server.mode != Mode::Fullnat);
    let protocol = |member: &Member| member.face.map_or(member.service.protocol, |face| face.protocol);
    let known: Known = members.map(|member| (member.id, protocol(member))).collect();
    let file = directory.open_file(&index.table)?;
    let old = Table::in_file(&file, index.connections, index.key).context("its table cannot be used")?;

    let (theirs, ours) = (Ticks::with(index.tsc_per_tick), Ticks::ours());
    let same_clock = theirs.per_tick() == ours.per_tick();
    let mappings = index.pools.iter().flat_map(|pool| {
        pool.read(directory, theirs.at(dpdk::clock::tsc())).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "mappings of source NAT are forgotten");
            Vec::new()
        })
    });
    let mappings = mappings.collect();
    let adopted = |table, mut index: Index, census: Census| {
        index.members.retain(|member| is_wanted(member) || census.of(member.id) != Live::default());
        locals.note_in(&table);
        Ok(Some(Adopted { table, index, locals, mappings, census, took: began.elapsed() }))
    };
    if !same_clock || !Table::are_alike(connections, index.connections) {
        match make(directory, connections, index.key) {
            Ok((table, made)) => {
                let tsc = dpdk::clock::tsc();
                let census = table.fill_from(&old, theirs.at(tsc), ours.at(tsc), &known, threads);
                return adopted(table, Index { members: index.members, pools: index.pools, ..made }, census);
            }
            // Better of the size that it was than empty.
            Err(error) if same_clock => tracing::warn!(
                error = format!("{error:#}"),
                connections = index.connections,
                "the connection table keeps its size, since there is no room for two"
            ),
            Err(error) => return Err(error),
        }
    }
    let census = old.inherit(&known, threads);
    adopted(old, index, census)
}

/// An empty table in a file, and what there is to say of it.
fn make(directory: &Directory, connections: usize, key: HashKey) -> Result<(Table, Index)> {
    let name = format!("{TABLE}{:016x}", random());
    let file = directory.create(&name, Table::bytes(connections))?;
    let table = Table::in_file(&file, connections, key).context("cannot map the table")?;
    let tsc_per_tick = Ticks::ours().per_tick();
    let (pools, members) = (Vec::new(), Vec::new());
    Ok((table, Index { boot: boot()?, table: name, connections, key, tsc_per_tick, pools, members }))
}

/// Takes away the tables that are not this one.
fn remove_tables(directory: &Directory, but: Option<&str>) {
    for name in directory.names(TABLE).iter().filter(|name| Some(name.as_str()) != but) {
        if let Err(error) = directory.remove(name) {
            tracing::warn!(error = format!("{error:#}"), "an old connection table stays");
        }
    }
}

/// What keeps the table for the next process.
#[derive(Debug)]
pub struct Keep {
    directory: Arc<Directory>,
    index: Index,
    /// Whether the index is there and true.
    is_written: bool,
    /// Whether it has been said that it is not.
    is_said: bool,
}

impl Keep {
    /// Remembers who the ids are and where the pools' mappings are, if that has changed. To be called before workers get a snapshot with them, and every few
    /// seconds, so that the next process knows how long the table has lain.
    ///
    /// If that fails, there is no index at all: better none than one by which connections go to the wrong servers. To be
    /// called again then.
    pub fn record(&mut self, ids: &mut Ids, pools: &mut Pools) {
        let has_changed = ids.take_changed() | pools.take_changed();
        if !has_changed && self.is_written {
            if let Err(error) = self.directory.touch(INDEX) {
                tracing::warn!(error = format!("{error:#}"), "the next process may find its table too old");
            }
            return;
        }
        self.index.members = ids.members().collect();
        self.index.pools = pools.kept();
        let text = self.index.to_string();
        let write = || self.directory.replace(INDEX, text.as_bytes());
        // On hugetlbfs there may be no page for two.
        match write().or_else(|_| self.directory.remove(INDEX).and_then(|()| write())) {
            Ok(()) => {
                if self.is_said {
                    tracing::info!("connections are kept again");
                }
                if !self.is_written {
                    remove_tables(&self.directory, Some(&self.index.table));
                }
                let is_used = |name: &str| self.index.pools.iter().any(|pool| pool.file == name);
                pools::remove_others(&self.directory, is_used);
                (self.is_written, self.is_said) = (true, false);
            }
            Err(error) => {
                if !self.is_said {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "connections would not outlive this process; trying again"
                    );
                }
                (self.is_written, self.is_said) = (false, true);
                if let Err(error) = self.directory.remove(INDEX) {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "the next process may send connections astray"
                    );
                }
            }
        }
    }
}

/// Whether the table in this directory is of use to the next process, as far as the one that runs knows.
pub fn is_kept(directory: &Path) -> bool {
    directory.join(INDEX).exists()
}

/// Which start of the machine this is.
fn boot() -> Result<String> {
    let boot = fs::read_to_string(BOOT).with_context(|| format!("cannot read {BOOT}"))?;
    Ok(boot.trim().to_owned())
}

/// A key that nobody can guess.
pub fn random_key() -> HashKey {
    HashKey { blind: random(), factor: random() }
}

/// The standard library's hasher is seeded by the kernel.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests;
