//! What has happened: a server went down, a reload was refused, the table is nearly full.
//!
//! A log is for reading afterwards; this is for whoever has to know now, and for `rvs events` on a machine whose log is
//! elsewhere. The newest [`CAPACITY`] events are kept, each with a number that grows by one. A follower has a place in
//! that ring, not a queue of its own: however slow it is, it costs no memory, and when the ring has overtaken it, the next
//! thing that it reads is how many events it has missed. So what was before and what comes now are read in one way,
//! without a gap or an overlap between the two.
//!
//! What changes all the time, a weight that a server asks for as its load goes, is in the log and not here: it would push
//! out what matters.
//!
//! Numbers start at 1 with the program. Who asks for what came after a number that has not been given yet has that number
//! from an earlier run, and gets everything. A number that has been given may also be from an earlier run, so each run has
//! a name, which whoever wants to go on where it stopped shows beside its number.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

mod kind;

pub use kind::Kind;

/// Events that are kept: some megabytes, and more than a night of ordinary trouble.
pub const CAPACITY: usize = 10_000;

/// Events that a follower takes at a time.
const BATCH: usize = 256;

/// How long [`Events::stop`] waits for followers to hear it.
pub const FAREWELL: Duration = Duration::from_millis(200);

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number: one more than that of the event before.
    pub sequence: u64,
    /// When.
    pub time: SystemTime,
    /// What.
    pub kind: Kind,
}

/// A handle to publish and to read; clones share what they hold.
#[derive(Clone, Debug)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    run: String,
    ring: Mutex<Ring>,
    /// The newest number, so that followers wake.
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Ring {
    capacity: usize,
    events: VecDeque<Arc<Event>>,
    /// How many there have been; the newest has this number.
    count: u64,
    tally: BTreeMap<&'static str, Tally>,
}

/// How often a kind of event has come, for metrics: who counts has no counter beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// The last time.
    pub last: SystemTime,
}

impl Default for Events {
    fn default() -> Self {
        Events::with_capacity(CAPACITY)
    }
}

impl Events {
    /// Keeps so many.
    pub fn with_capacity(capacity: usize) -> Events {
        let ring = Ring { capacity, events: VecDeque::new(), count: 0, tally: BTreeMap::new() };
        // The standard library's hasher is seeded by the kernel.
        let run = format!("{:016x}", RandomState::new().build_hasher().finish());
        Events(Arc::new(Shared { run, ring: Mutex::new(ring), newest: watch::Sender::new(0) }))
    }

    /// The name of this run, which no other has.
    pub fn run(&self) -> &str {
        &self.0.run
    }

    /// Something has happened. Never waits for a reader.
    pub fn publish(&self, kind: Kind) {
        let sequence = self.ring().push(kind, SystemTime::now());
        // Outside of the lock, so that who wakes does not wait for it. Two at once may come here in either order.
        self.0.newest.send_modify(|newest| *newest = sequence.max(*newest));
    }

    /// RVS stops: followers hear it, for which they have a moment, and their streams end.
    pub async fn stop(&self, signal: &'static str) {
        self.publish(Kind::Stopping { signal });
        // A follower that does not read cannot delay the end for longer.
        let _ = tokio::time::timeout(FAREWELL, self.0.newest.closed()).await;
    }

    /// How often each kind has come, by its name; a kind that has never come is not there.
    pub fn tally(&self) -> BTreeMap<&'static str, Tally> {
        self.ring().tally.clone()
    }

    /// Reads what came after this number, and goes on to wait for more if it is to follow; without a number from the
    /// oldest that is kept.
    pub fn read(&self, since: Option<u64>, follow: bool) -> Reader {
        let ring = self.ring();
        let next = match since {
            Some(since) if since <= ring.count => since + 1,
            Some(_) => 1,
            None => ring.oldest(),
        };
        drop(ring);
        Reader { newest: follow.then(|| self.0.newest.subscribe()), events: self.clone(), next, ended: false }
    }

    /// Nothing that holds the lock can panic.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn push(&mut self, kind: Kind, time: SystemTime) -> u64 {
        self.count += 1;
        let tally = self.tally.entry(kind.name()).or_insert(Tally { count: 0, last: time });
        *tally = Tally { count: tally.count + 1, last: time };
        if self.events.len() == self.capacity {
            self.events.pop_front();
        }
        self.events.push_back(Arc::new(Event { sequence: self.count, time, kind }));
        self.count
    }

    /// The number of the oldest that is kept; if none is, of the one that comes next.
    fn oldest(&self) -> u64 {
        self.count + 1 - self.events.len() as u64
    }
}

/// A place in the ring.
#[derive(Debug)]
pub struct Reader {
    events: Events,
    /// The number of the event that it has not read yet.
    next: u64,
    /// There if it waits for more.
    newest: Option<watch::Receiver<u64>>,
    ended: bool,
}

impl Reader {
    /// Some events, at least one, as soon as there are any; `None` after the last.
    pub async fn batch(&mut self) -> Option<Vec<Arc<Event>>> {
        loop {
            if self.ended {
                return None;
            }
            // Before looking, so that what comes after the look wakes.
            if let Some(newest) = &mut self.newest {
                newest.mark_unchanged();
            }
            let batch = self.take();
            if !batch.is_empty() {
                self.ended = self.newest.is_some()
                    && batch.iter().any(|event| matches!(event.kind, Kind::Stopping { .. }));
                return Some(batch);
            }
            // The sender lives as long as `self.events`.
            self.newest.as_mut()?.changed().await.ok()?;
        }
    }

    fn take(&mut self) -> Vec<Arc<Event>> {
        let ring = self.events.ring();
        let oldest = ring.oldest();
        let mut batch = Vec::new();
        if self.next < oldest {
            let kind = Kind::Missed { events: oldest - self.next };
            // With the number of the last that is missing: `since` that number is what is still there.
            batch.push(Arc::new(Event { sequence: oldest - 1, time: SystemTime::now(), kind }));
            self.next = oldest;
        }
        let skipped = (self.next - oldest) as usize;
        batch.extend(ring.events.iter().skip(skipped).take(BATCH).cloned());
        self.next += batch.iter().filter(|event| event.sequence >= self.next).count() as u64;
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(checks: u32) -> Kind {
        let service = "tcp/192.0.2.10:80".to_owned();
        Kind::ServerUp { service, server: "10.0.0.11:80".parse().unwrap(), checks }
    }

    /// Numbers of a batch; those of missed events with how many.
    fn shown(batch: Option<Vec<Arc<Event>>>) -> Vec<String> {
        let show = |event: &Arc<Event>| match event.kind {
            Kind::Missed { events } => format!("{} (missed {events})", event.sequence),
            _ => event.sequence.to_string(),
        };
        batch.expect("a batch").iter().map(show).collect()
    }

    fn filled(capacity: usize, count: u32) -> Events {
        let events = Events::with_capacity(capacity);
        (1..=count).for_each(|n| events.publish(up(n)));
        events
    }

    #[tokio::test]
    async fn the_past_is_read_and_ends() {
        for (since, expected) in [
            (None, vec!["3", "4", "5"]),
            (Some(0), vec!["2 (missed 2)", "3", "4", "5"]),
            (Some(2), vec!["3", "4", "5"]),
            (Some(4), vec!["5"]),
            // A number from an earlier run.
            (Some(99), vec!["2 (missed 2)", "3", "4", "5"]),
        ] {
            let mut reader = filled(3, 5).read(since, false);
            assert_eq!(shown(reader.batch().await), expected, "since {since:?}");
            assert_eq!(reader.batch().await, None);
        }
        assert_eq!(filled(3, 5).read(Some(5), false).batch().await, None);
        assert_eq!(Events::default().read(None, false).batch().await, None);
    }

    #[tokio::test]
    async fn what_comes_is_followed_without_gap_or_overlap() {
        let events = filled(1_000, 300);
        let mut reader = events.read(None, true);
        let mut seen = shown(reader.batch().await);
        events.publish(up(301));
        seen.extend(shown(reader.batch().await));
        let waiting = tokio::spawn(async move { shown(reader.batch().await) });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        events.publish(up(302));
        seen.extend(waiting.await.unwrap());
        assert_eq!(seen, (1..=302).map(|n| n.to_string()).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_slow_follower_hears_what_it_has_missed() {
        let events = filled(4, 1);
        let mut reader = events.read(None, true);
        assert_eq!(shown(reader.batch().await), ["1"]);
        (0..9).for_each(|n| events.publish(up(n)));
        assert_eq!(shown(reader.batch().await), ["6 (missed 5)", "7", "8", "9", "10"]);
        assert_eq!(events.ring().events.len(), 4);
    }

    #[tokio::test]
    async fn followers_hear_the_end_and_the_stuck_do_not_delay_it() {
        let events = Events::default();
        let mut reader = events.read(None, true);
        let follower = tokio::spawn(async move {
            let last = shown(reader.batch().await);
            (last, reader.batch().await)
        });
        let _stuck = events.read(None, true);
        tokio::time::timeout(Duration::from_secs(10), events.stop("SIGTERM")).await.unwrap();
        assert_eq!(follower.await.unwrap(), (vec!["1".to_owned()], None));
    }

    #[test]
    fn a_tally_outlives_the_ring() {
        let events = filled(2, 7);
        events.publish(Kind::ReloadRefused { generation: 3, error: "no luck".to_owned() });
        let counts: Vec<_> = events.tally().into_iter().map(|(kind, tally)| (kind, tally.count)).collect();
        assert_eq!(counts, [("reload_refused", 1), ("server_up", 7)]);
    }
}
