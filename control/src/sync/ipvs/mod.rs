//! The sync protocol of Linux IPVS: to take over from a director of LVS, and to hand back to one, without breaking
//! connections.
//!
//! ```text
//!   directors -- multicast --> link --> backup --> wire, translate --> table
//!   directors <-- multicast -- link <-- master <-- wire, translate <-- slots that have changed, a walk
//! ```
//!
//! Linux knows neither acknowledgements nor a way to ask for all connections, and anybody on the wire may tell anything.
//! So this is for a migration; routers of RVS among themselves have `[sync]`.
//!
//! `backup` and `master` have neither clock nor socket; `Router` is what they see of the rest.

mod backup;
mod link;
mod master;
mod translate;
mod view;
mod wire;

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use dataplane::service::State;
use dataplane::table::Slot;

use self::backup::Backup;
pub use self::link::{Link, open};
use self::master::Master;
use self::translate::Connection;
use super::flushes::Flushes;
use super::store::{Adoptions, View};
use super::walk::{Pace, Turn};
pub use crate::admin::api::IpvsCounts as Counts;
use crate::config::IpvsSync;

/// Datagrams received and sent in one go. As many as wait in a director's socket with Linux' own buffer, so that a
/// director is not drowned.
const AT_ONCE: usize = 64;

/// The connections of this router.
trait Router {
    /// The connection in a slot, if backups should know of it.
    fn connection(&self, slot: Slot) -> Option<Connection>;
    /// How many buckets there are.
    fn buckets(&self) -> usize;
    /// How fast the walk has to be by which backups hear again of connections.
    fn pace(&self) -> Pace;
    /// The slots of a bucket with connections whose turn it is.
    fn due(&self, turn: Turn) -> Vec<Slot>;
    /// Takes over a director's connection; false if its service or server is not here.
    fn take_over(&mut self, connection: &Connection) -> bool;
}

/// Who was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The first directors that have told of connections.
    pub directors: Vec<Ipv4Addr>,
    /// The first that had another syncid, and which.
    pub stranger: Option<(Ipv4Addr, u8)>,
}

/// How things stand.
#[derive(Clone, Debug)]
pub struct Status {
    /// What was asked for.
    pub config: IpvsSync,
    /// What has been received and sent.
    pub counts: Counts,
    /// What has become of connections that were received, if they are of a service and a server of ours.
    pub adoptions: Adoptions,
    /// Who was heard.
    pub heard: Heard,
}

/// A router that speaks it.
pub struct Ipvs {
    config: IpvsSync,
    link: Link,
    backup: Option<Backup>,
    master: Option<Master>,
    counts: Counts,
    adoptions: Adoptions,
}

impl Ipvs {
    /// Begins to.
    pub fn new(config: &IpvsSync, link: Link) -> Ipvs {
        Ipvs {
            config: config.clone(),
            link,
            backup: config.role.listens().then(|| Backup::new(config.syncid)),
            master: config.role.tells().then(|| Master::new(config.syncid, config.maxlen)),
            counts: Counts::default(),
            adoptions: Adoptions::default(),
        }
    }

    /// Where messages come in, if they do.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_fd()
    }

    /// A connection has changed.
    pub fn note(&mut self, now: Duration, slot: Slot) {
        if let Some(master) = &mut self.master {
            master.note(now, slot);
        }
    }

    /// Hears what has come in and says what is due, unless this router is out of service.
    pub fn turn(&mut self, now: Duration, view: &View<'_>, is_withdrawn: bool) -> Result<()> {
        // What the peers of RVS are told of is their affair. So is what they are told to forget: Linux goes on to tell of what has a
        // packet there, as if it had just begun.
        let flushes = &mut Flushes::default();
        let mut view = View { adoptions: &mut self.adoptions, flushes, states: State::ALL, ..*view };
        if let Some(backup) = &mut self.backup {
            for _ in 0..AT_ONCE {
                let Some((from, message)) = self.link.receive().context("cannot hear directors")? else {
                    break;
                };
                backup.hear(from, message, &mut view, &mut self.counts);
            }
        }
        if let Some(master) = &mut self.master {
            for _ in 0..AT_ONCE {
                let Some(message) = master.speak(now, &view, is_withdrawn, &mut self.counts) else { break };
                // What is not sent is lost, until everything is told again.
                self.link
                    .send(&message)
                    .with_context(|| format!("cannot tell directors on {}", self.config.interface))?;
            }
        }
        Ok(())
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        Status {
            config: self.config.clone(),
            counts: self.counts,
            adoptions: self.adoptions,
            heard: self.backup.as_ref().map(|backup| backup.heard().clone()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
