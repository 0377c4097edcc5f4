//! maglev: Maglev hashing of the 5-tuple, as the paper has it; `mh` is that of IPVS.
//!
//! All routers pick the same server for a connection if they know the same servers with the same weights, whatever their order and
//! their history: the table is filled in the order of the servers' addresses, by fixed keys. One of weight 0 is not in the table, since
//! a router that was started meanwhile could not know which rows it had; what moves because of that is its own share and
//! less than one row in a hundred of the others. A server that is full keeps its rows, and the flows there go to who is the next best for them
//! ([`Rendezvous`]). Walking on from row to row would take long for a SYN when most servers are full.
//!
//! Rows do not depend on the virtual address (the hash of a flow does), take 128 KiB, and some milliseconds to fill: so a service's next
//! snapshot shares them while servers and weights stay the same.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::flow::of_server;
use super::rendezvous::{Rendezvous, eligible};
use super::rows::{Member, Turns, rows};
use super::{Candidate, Flow, Reason};
use crate::table::DestId;

/// Rows of the table: the small size of the paper. With a hundred servers shares are even within 1 %.
pub(super) const ROWS: usize = 65537;

/// A compiled Maglev table.
#[derive(Clone, Debug)]
pub struct Maglev {
    table: Arc<Table>,
    /// In the order of the table.
    servers: Rendezvous,
    key: u64,
}

/// The rows, and what they were made of.
#[derive(Debug)]
pub(super) struct Table {
    members: Vec<Member>,
    rows: Box<[u16]>,
}

/// The tables of a service's last snapshot, as long as that exists: one, or one for each roster as well.
#[derive(Clone, Debug, Default)]
pub(super) struct LastTables(Arc<Mutex<Vec<Weak<Table>>>>);

impl Maglev {
    pub(super) fn new(servers: &[Candidate], last: &LastTables, key: u64) -> Self {
        let servers = eligible(servers);
        let member = |server: &&Candidate| {
            let hash = of_server(server.address);
            let (first, skip) = ((hash >> 32) as u32, hash as u32);
            Member { first, skip, weight: server.weight, last_weight: server.last_weight }
        };
        let table = last.table(servers.iter().map(member).collect());
        Maglev { table, servers: Rendezvous::of(&servers, key), key }
    }

    pub(super) fn pick(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        let hash = flow.hash(self.key);
        let owner = self.owner(row(hash))?;
        if is_free(owner) { Some(owner) } else { self.servers.pick(hash, is_free) }
    }

    pub(super) fn reason(&self, flow: &Flow) -> Option<Reason> {
        let row = row(flow.hash(self.key));
        Some(Reason::Row { row, rows: ROWS, owner: self.owner(row)? })
    }

    fn owner(&self, row: usize) -> Option<DestId> {
        self.servers.dest(usize::from(*self.table.rows.get(row)?))
    }

    /// Whether it has the same table, and not an equal one.
    #[cfg(test)]
    pub(super) fn shares_table(&self, other: &Maglev) -> bool {
        Arc::ptr_eq(&self.table, &other.table)
    }
}

impl LastTables {
    /// The one that is of these members, else a new one.
    fn table(&self, members: Vec<Member>) -> Arc<Table> {
        // Whoever panicked has left the one or the other table there.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|table| table.strong_count() > 0);
        if let Some(table) = last.iter().filter_map(Weak::upgrade).find(|table| table.members == members) {
            return table;
        }
        let table = Arc::new(Table { rows: rows::<ROWS>(&members, Turns::Spread), members });
        last.push(Arc::downgrade(&table));
        table
    }
}

/// The row of a flow's hash.
fn row(hash: u64) -> usize {
    (hash % ROWS as u64) as usize
}
