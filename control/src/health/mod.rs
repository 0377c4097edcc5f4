//! Health checks: one prober a target, and a verdict when one goes down or comes back.
//!
//! A server is up until it has failed `fall` checks in a row, and then down until `rise` in a row have succeeded, as
//! with keepalived: a director that starts serves at once and does not wait for its first checks. Checks are
//! ordinary sockets of the Linux host, so they go out through the twins, by Linux' routes and neighbours.
//!
//! What a check does is in `probe`, a file a kind. Rise, fall, interval, timeout and the limit on sockets are here and
//! the same for all.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::{Discriminant, discriminant};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use foldhash::HashMap;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::{Check, CheckKind};
use crate::ids::ServiceKey;

mod counted;
mod probe;
mod standing;
#[cfg(test)]
mod tests;

pub use counted::{BOUNDS, Checks};
use counted::{Counted, Counts};
pub(crate) use probe::tls;
use probe::{Outcome, Probe, Stage};
use standing::Standing;

/// Checks at one time, and so sockets, for a process that may have so many files open: half of them. A check
/// that cannot begin waits, so too few would let the dead servers of one service delay the checks of all others.
pub fn checks_at_once(open_files: u64) -> usize {
    usize::try_from(open_files / 2).unwrap_or(usize::MAX).clamp(512, 65_536)
}

/// That checks are late is said once.
static LATE: Once = Once::new();

/// One thing to check: all servers with an equal address and check share one prober.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// How it is checked, and when it counts as down and up.
    pub check: Check,
}

/// Who has a target checked: a server of a service.
pub type User = (ServiceKey, SocketAddr);

/// What a target's checks have to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It is up or down, and was not before.
    Verdict(Verdict),
    /// It asks for another weight than before.
    Weight(Target, u32),
}

/// A target has gone down or come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which one.
    pub target: Target,
    /// Whether it is up now.
    pub up: bool,
    /// What the last check said: "connected", "connection refused", "timed out after 1s while waiting for an answer".
    pub reason: String,
    /// How many checks in a row said so: `fall` or `rise`.
    pub checks: u32,
}

/// Checks a set of targets. Dropping it ends all checks.
pub struct Health {
    probers: HashMap<Target, Prober>,
    tasks: JoinSet<()>,
    news: UnboundedSender<News>,
    sockets: Arc<Semaphore>,
    /// Kept when a kind is not used any more: counts never go back.
    counts: BTreeMap<&'static str, Arc<Counts>>,
    /// What a predecessor has found out, until [`Self::watch`] knows of whom.
    inherited: Vec<Known>,
}

/// What the checks of an address have found out, for the program that this one becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    address: SocketAddr,
    /// The kind of check.
    kind: String,
    up: bool,
    reason: String,
    weight: Option<u32>,
}

struct Prober {
    standing: Arc<Mutex<Standing>>,
    task: AbortHandle,
    /// So that a verdict finds whom it concerns without a look at all servers: ten thousand may come at once.
    users: Vec<User>,
}

impl Health {
    /// At most so many checks are made at one time. News are sent at a change only. What was sent before [`Self::watch`]
    /// dropped its target may still arrive after.
    pub fn new(news: UnboundedSender<News>, at_once: usize) -> Health {
        Health {
            probers: HashMap::default(),
            tasks: JoinSet::new(),
            news,
            sockets: Arc::new(Semaphore::new(at_once)),
            counts: BTreeMap::new(),
            inherited: Vec::new(),
        }
    }

    /// The first targets begin as what a predecessor has found out about them.
    pub fn inherit(&mut self, known: Vec<Known>) {
        self.inherited = known;
    }

    /// What a successor begins with.
    pub fn known(&self) -> Vec<Known> {
        let known = |(target, prober): (&Target, &Prober)| {
            let (address, kind, standing) = (target.address, target.check.kind.name(), prober.standing());
            let (up, reason, weight) = (standing.is_up(), standing.reason().to_owned(), standing.weight());
            Known { address, kind: kind.to_owned(), up, reason, weight }
        };
        self.probers.iter().map(known).collect()
    }

    /// Starts what is new, stops what is gone; what stays keeps its state and its rhythm.
    ///
    /// A target whose check is of the same kind as before starts as what it was, up or down, without a verdict: a
    /// reload that makes the interval longer, or asks for another page, must not send clients to a dead server.
    pub fn watch(&mut self, targets: impl IntoIterator<Item = (Target, User)>) {
        let mut wanted: HashMap<Target, Vec<User>> = HashMap::default();
        for (target, user) in targets {
            let users = wanted.entry(target).or_default();
            // Of two equal checks of a server one is made.
            if users.last() != Some(&user) {
                users.push(user);
            }
        }
        let predecessors = std::mem::take(&mut self.inherited);
        let predecessors: HashMap<_, _> =
            predecessors.iter().map(|known| ((known.address, known.kind.as_str()), known)).collect();
        let mut inherited: HashMap<Identity, Standing> = HashMap::default();
        for (target, prober) in self.probers.extract_if(|target, _| !wanted.contains_key(target)) {
            prober.task.abort();
            inherited.insert(target.identity(), prober.standing().heir());
        }
        for (target, users) in wanted {
            if let Some(prober) = self.probers.get_mut(&target) {
                prober.users = users;
                continue;
            }
            let standing = inherited.get(&target.identity()).cloned().or_else(|| {
                let known = predecessors.get(&(target.address, target.check.kind.name()))?;
                Some(Standing::of(known.up, known.reason.clone(), known.weight))
            });
            let standing = standing.unwrap_or_else(|| Standing::new(target.check.start));
            self.start(target, standing, users);
        }
        // Reap what has ended, so that the set does not grow with every reload.
        while self.tasks.try_join_next().is_some() {}
    }

    /// Who has this target checked, in the order in which [`Self::watch`] was told; nobody any more if it is gone.
    pub fn users(&self, target: &Target) -> &[User] {
        self.probers.get(target).map_or(&[], |prober| &prober.users)
    }

    /// Whether servers of this target may have new connections. One that is not watched has never failed.
    pub fn is_up(&self, target: &Target) -> bool {
        self.probers.get(target).is_none_or(|prober| prober.standing().is_up())
    }

    /// Why the target is down: what its last check said. None if it is up.
    pub fn reason(&self, target: &Target) -> Option<String> {
        let standing = self.probers.get(target)?.standing();
        (!standing.is_up()).then(|| standing.reason().to_owned())
    }

    /// Whether servers of this target may have new connections, and the weight that its checks ask for, if they do.
    pub fn says(&self, target: &Target) -> (bool, Option<u32>) {
        self.probers.get(target).map_or((true, None), |prober| {
            let standing = prober.standing();
            (standing.is_up(), standing.weight())
        })
    }

    /// What has come of the checks so far, by kind.
    pub fn checks(&self) -> Vec<Checks> {
        self.counts.iter().map(|(kind, counts)| counts.get(kind)).collect()
    }

    fn start(&mut self, target: Target, standing: Standing, users: Vec<User>) {
        let standing = Arc::new(Mutex::new(standing));
        let kind = &target.check.kind;
        let counted = Counted {
            probe: probe::ready(&target.check),
            timeout: target.check.timeout,
            counts: Arc::clone(self.counts.entry(kind.name()).or_default()),
        };
        let task = self.tasks.spawn(run(
            target.clone(),
            Arc::clone(&standing),
            self.news.clone(),
            Arc::clone(&self.sockets),
            Box::new(counted),
        ));
        self.probers.insert(target, Prober { standing, task, users });
    }
}

impl Prober {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        lock(&self.standing)
    }
}

/// What a target and its successor after a reload have in common.
type Identity = (SocketAddr, Discriminant<CheckKind>);

impl Target {
    fn identity(&self) -> Identity {
        (self.address, discriminant(&self.check.kind))
    }

    /// The same at every start, so that a target's checks do not move about; different for different targets, so
    /// that a thousand of them do not start in one instant.
    fn jitter(&self) -> Duration {
        let mut hasher = DefaultHasher::new();
        self.address.hash(&mut hasher);
        let span = self.check.interval.min(self.check.jitter).as_micros().max(1) as u64;
        Duration::from_micros(hasher.finish() % span)
    }
}

/// Checks a target for ever. From the start of a check to that of the next is an interval, or as long as the check
/// takes if that is more.
async fn run(
    target: Target,
    standing: Arc<Mutex<Standing>>,
    news: UnboundedSender<News>,
    sockets: Arc<Semaphore>,
    probe: Box<dyn Probe>,
) {
    let Check { interval, timeout, rise, fall, .. } = target.check;
    let mut ticks = tokio::time::interval_at(Instant::now() + target.jitter(), interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // The time spent waiting for a socket is not the server's.
        if sockets.available_permits() == 0 {
            LATE.call_once(|| {
                tracing::warn!("health checks wait for each other and are late: raise the limit of open files (ulimit -n)");
            });
        }
        let Ok(permit) = sockets.acquire().await else { return };
        let stage = Stage::default();
        let outcome = tokio::time::timeout(timeout, stage.of(probe.probe(target.address))).await;
        let outcome = outcome.unwrap_or_else(|_| stage.late(timeout));
        drop(permit);
        let (up, reason, weight) = match outcome {
            Outcome::Passed { what, weight } => (true, what, weight),
            Outcome::Failed(reason) => (false, reason, None),
            Outcome::Unknown(reason) => {
                tracing::warn!(server = %target.address, %reason, "could not check");
                continue;
            }
        };
        let (changed, reweighed) = {
            let mut standing = lock(&standing);
            (standing.judge(up, &reason, rise, fall), weight.filter(|weight| standing.weigh(*weight)))
        };
        let verdict = changed.map(|checks| {
            News::Verdict(Verdict { target: target.clone(), up, reason: reason.into_owned(), checks })
        });
        let weight = reweighed.map(|weight| News::Weight(target.clone(), weight));
        for news_item in verdict.into_iter().chain(weight) {
            // Nobody listens any longer: the program is ending.
            if news.send(news_item).is_err() {
                return;
            }
        }
    }
}

/// Nothing that holds the lock can panic.
fn lock(standing: &Mutex<Standing>) -> MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}
