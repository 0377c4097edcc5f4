//! When it becomes too much: the table is nearly full, or packets are dropped because something is.
//!
//! It is looked at every two seconds and said at the beginning and at the end, not while it lasts: how much is in the
//! counters. What comes and goes around a limit is one overload, hence the distance between begin and end.

use std::collections::HashMap;

use dataplane::counters::{Drop, WorkerCounters};
use dataplane::worker;

use super::Director;
use crate::admin::api;
use crate::events::Kind;
use crate::ids::ServiceKey;

/// The table is nearly full from here on, in percent of its slots ...
const FULL: u64 = 90;
/// ... and no longer so below this.
const RELIEVED: u64 = 80;

/// An overload is over after so many looks without a dropped packet.
const QUIET: u32 = 5;

/// What is dropped because something is full.
const REASONS: [Drop; 3] = [Drop::TableFull, Drop::TxFull, Drop::PuntFull];

/// What is looked at.
#[derive(Clone, Copy, Debug)]
struct Load {
    connections: u64,
    slots: u64,
    /// Since the start, in the order of [`REASONS`].
    dropped: [u64; REASONS.len()],
}

/// What has been said.
#[derive(Debug, Default)]
pub(super) struct Overload {
    nearly_full: bool,
    drops: [Surge; REASONS.len()],
    floods: HashMap<String, Surge>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Surge {
    /// At the last look.
    count: u64,
    /// How many there had been when what lasts now began.
    before: Option<u64>,
    /// Looks since the last one.
    quiet: u32,
}

/// What a look has found, and how many packets that was.
enum Turn {
    Begins(u64),
    Ends(u64),
}

impl Director {
    pub(super) fn notice_overload(&mut self) {
        let sum = |reason: Drop| self.workers.iter().map(|worker| dropped(worker, reason)).sum();
        let api::Table { slots, connections } = self.counters().table;
        let load = Load { connections, slots, dropped: REASONS.map(sum) };
        let now = worker::now();
        let floods = self.services.present().iter().filter_map(|service| {
            let key = ServiceKey::of(service);
            let flood = self.ids.service(&key)?.flood(now)?;
            Some((key.to_string(), flood.syns))
        });
        let mut news = self.overload.look(&load);
        news.extend(self.overload.look_for_floods(floods.collect()));
        for kind in news {
            tracing::warn!("{kind}");
            self.events.publish(kind);
        }
    }
}

fn dropped(worker: &WorkerCounters, reason: Drop) -> u64 {
    worker.dropped[reason as usize].get()
}

impl Overload {
    fn look(&mut self, load: &Load) -> Vec<Kind> {
        let Load { connections, slots, dropped } = *load;
        let mut news = Vec::new();
        let percent = connections * 100 / slots.max(1);
        if !self.nearly_full && percent >= FULL {
            self.nearly_full = true;
            news.push(Kind::TableNearlyFull { connections, slots });
        } else if self.nearly_full && percent < RELIEVED {
            self.nearly_full = false;
            news.push(Kind::TableRelieved { connections, slots });
        }
        for ((drops, count), reason) in self.drops.iter_mut().zip(dropped).zip(REASONS) {
            let reason = reason.name();
            news.extend(drops.look(count).map(|turn| match turn {
                Turn::Begins(packets) => Kind::OverloadBegins { reason, packets },
                Turn::Ends(packets) => Kind::OverloadEnds { reason, packets },
            }));
        }
        news
    }

    /// By service, how many SYNs have met its gate shut.
    fn look_for_floods(&mut self, syns: HashMap<String, u64>) -> Vec<Kind> {
        self.floods.retain(|service, _| syns.contains_key(service));
        let look = |(service, count): (String, u64)| {
            let turn = self.floods.entry(service.clone()).or_default().look(count)?;
            Some(match turn {
                Turn::Begins(packets) => Kind::SynFloodBegins { service, packets },
                Turn::Ends(packets) => Kind::SynFloodEnds { service, packets },
            })
        };
        syns.into_iter().filter_map(look).collect()
    }
}

impl Surge {
    fn look(&mut self, count: u64) -> Option<Turn> {
        let before = std::mem::replace(&mut self.count, count);
        if count > before {
            self.quiet = 0;
            let begins = self.before.is_none();
            self.before.get_or_insert(before);
            return begins.then(|| Turn::Begins(count - before));
        }
        self.quiet += 1;
        let began = self.before.take_if(|_| self.quiet >= QUIET)?;
        Some(Turn::Ends(count.saturating_sub(began)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(loads: impl IntoIterator<Item = Load>) -> Vec<String> {
        let mut overload = Overload::default();
        let looks = loads.into_iter().map(|load| overload.look(&load));
        let show = |news: Vec<Kind>| news.iter().map(Kind::to_string).collect::<Vec<_>>().join("; ");
        looks.map(show).collect()
    }

    #[test]
    fn a_flood_is_said_once_for_each_service() {
        let mut overload = Overload::default();
        let counts = [0, 7, 9, 9, 9, 9, 9, 9, 9];
        let news = counts.map(|syns| {
            let services = [("tcp/192.0.2.10:80".to_owned(), syns), ("tcp/192.0.2.10:443".to_owned(), 0)];
            overload.look_for_floods(services.into())
        });
        let service = || "tcp/192.0.2.10:80".to_owned();
        assert_eq!(news[1], [Kind::SynFloodBegins { service: service(), packets: 7 }]);
        assert_eq!(news[7], [Kind::SynFloodEnds { service: service(), packets: 9 }]);
        assert_eq!(news.iter().flatten().count(), 2, "{news:?}");
    }

    #[test]
    fn a_nearly_full_table_is_said_once() {
        let load = |connections| Load { connections, slots: 1_000, dropped: [0; 3] };
        assert_eq!(
            said([899, 900, 950, 899, 800, 799, 899, 1_000].map(load)),
            [
                "",
                "the connection table is nearly full: 900 of 1000 slots are taken",
                "",
                "",
                "",
                "the connection table has room again: 799 of 1000 slots are taken",
                "",
                "the connection table is nearly full: 1000 of 1000 slots are taken",
            ]
        );
    }

    #[test]
    fn an_overload_begins_and_ends_once() {
        let load = |table_full| Load { connections: 0, slots: 1_000, dropped: [table_full, 0, 0] };
        let counts = [0, 7, 9, 9, 9, 9, 9, 10, 10, 10, 10, 10, 10, 10, 11];
        let news = said(counts.map(load));
        let news: Vec<_> = (0..).zip(&news).filter(|(_, news)| !news.is_empty()).collect();
        assert_eq!(
            news,
            [
                (1, &"overload: packets dropped as table_full: 7 so far".to_owned()),
                (12, &"no more overload: packets dropped as table_full: 10 in all".to_owned()),
                (14, &"overload: packets dropped as table_full: 1 so far".to_owned()),
            ]
        );
    }
}
