//! When a snapshot is in force.
//!
//! A worker looks for a new snapshot once a round, which takes it microseconds. But Linux may take it off its core in the middle of one,
//! and what it has received by then it still does by the snapshot before: connections begin with servers that a reload has removed
//! milliseconds ago. So whoever has changed something is answered when no worker uses an older snapshot any more, and may go by that.

use std::sync::Arc;
use std::time::Duration;

use dataplane::counters::WorkerCounters;
use tokio::time::{sleep, timeout};

use crate::ids::{Ids, ServerKey, ServiceKey};

/// How long somebody who has changed something waits. A worker that takes longer has stopped, or has no core.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long between two looks at the workers.
const PERIOD: Duration = Duration::from_millis(1);

/// Whether every worker uses the snapshot of this generation, or a newer one.
pub(super) fn is_used(workers: &[Arc<WorkerCounters>], generation: u64) -> bool {
    behind(workers, generation).is_none()
}

fn behind(workers: &[Arc<WorkerCounters>], generation: u64) -> Option<usize> {
    workers.iter().position(|worker| worker.generation.get() < generation)
}

/// Whether a server that leaves may have connections: those that it has; and before the snapshot in which it leaves is in force, one that begins.
pub(super) fn may_have_connections(ids: &Ids, is_in_force: bool) -> impl Fn(ServiceKey, ServerKey) -> bool {
    move |service, server| {
        let known = ids.service(&service).and_then(|record| record.servers.get(&server));
        !is_in_force || known.is_some_and(|known| known.gauge.get() != (0, 0))
    }
}

/// Waits until every worker uses the snapshot of this generation, or a newer one; not for one that does not get there.
pub(super) async fn wait(workers: &[Arc<WorkerCounters>], generation: u64) {
    let all_use = async {
        while !is_used(workers, generation) {
            sleep(PERIOD).await;
        }
    };
    if timeout(PATIENCE, all_use).await.is_err()
        && let Some(worker) = behind(workers, generation)
    {
        tracing::warn!(worker, generation, "after {PATIENCE:?} it still goes by an older snapshot");
    }
}

#[cfg(test)]
mod tests {
    use dataplane::service::{Mode, State};
    use tokio::time::Instant;

    use super::*;
    use crate::services::Services;
    use crate::services::tests::{WEB, address, key, reload, server, services};

    /// How long a wait for generation 2 takes, with a second worker that gets there after so long.
    async fn waited(behind: Duration) -> Duration {
        let workers: [Arc<WorkerCounters>; 2] = Default::default();
        workers[0].generation.set(3);
        let begun = Instant::now();
        let slow = async {
            sleep(behind).await;
            workers[1].generation.set(2);
        };
        tokio::select! {
            () = wait(&workers, 2) => {}
            () = async { slow.await; std::future::pending().await } => {}
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn is_when_the_last_worker_uses_it() {
        let takes = |millis| waited(Duration::from_millis(millis));
        assert!((300..=301).contains(&takes(300).await.as_millis()));
        assert_eq!(takes(5000).await, PATIENCE, "nobody waits for a worker that has stopped");
        let workers = [Arc::<WorkerCounters>::default()];
        assert_eq!(timeout(Duration::ZERO, wait(&workers, 0)).await, Ok(()));
    }

    #[test]
    fn a_server_that_leaves_stays_while_it_has_connections_or_a_worker_may_begin_one() {
        let mut all = Services::new(services(WEB));
        let mut ids = Ids::new(1);
        let leaving = ServerKey { address: address(12), mode: Mode::Nat };
        let gauge = ids.enter(key()).server(leaving, 1).gauge.clone();
        let now = Instant::now();
        reload(&mut all, services(&WEB.replace("[[service.server]]\naddress = '10.0.0.12:8080'\n", "")), now);
        let mut has_left = |is_in_force| {
            let any = all.expire(now, may_have_connections(&ids, is_in_force));
            assert_eq!(server(all.present(), 12).is_none(), any);
            any
        };
        assert!(!has_left(false), "a worker goes by the snapshot before");
        gauge.enter(State::SynRecv);
        assert!(!has_left(true), "which has begun a connection");
        gauge.leave(State::SynRecv);
        assert!(!has_left(false));
        assert!(has_left(true));
    }
}
