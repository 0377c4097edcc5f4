//! The side that hears directors.

use std::net::Ipv4Addr;

use super::translate::{Refusal, read};
use super::{Counts, Heard, Router, wire};

/// Directors that are remembered by name.
const DIRECTORS: usize = 8;

/// Takes over what directors tell of.
#[derive(Debug)]
pub struct Backup {
    syncid: u8,
    heard: Heard,
}

impl Backup {
    /// One that listens to directors with this syncid; with 0, to all.
    pub fn new(syncid: u8) -> Backup {
        Backup { syncid, heard: Heard::default() }
    }

    /// Who was heard.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// A datagram has come.
    pub fn hear(&mut self, from: Ipv4Addr, datagram: &[u8], router: &mut impl Router, counts: &mut Counts) {
        counts.received += 1;
        let Some(message) = wire::decode(datagram) else {
            counts.malformed += 1;
            return;
        };
        if self.syncid != 0 && message.syncid != self.syncid {
            counts.other_syncid += 1;
            self.heard.stranger.get_or_insert((from, message.syncid));
            return;
        }
        if self.heard.directors.len() < DIRECTORS && !self.heard.directors.contains(&from) {
            self.heard.directors.push(from);
        }
        for told in &message.told {
            counts.connections_received += 1;
            let count = match read(told) {
                Ok(connection) if router.take_over(&connection) => continue,
                Ok(_) => &mut counts.unknown,
                Err(Refusal::Fwmark) => &mut counts.fwmarks,
                Err(Refusal::V6) => &mut counts.ipv6,
                Err(Refusal::Unsupported) => &mut counts.unsupported,
            };
            *count += 1;
        }
    }
}
