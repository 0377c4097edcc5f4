//! From control to the workers: one pointer, swapped.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Snapshot;

/// Publishes snapshots to workers.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    retired: Vec<Arc<Snapshot>>,
}

impl Publisher {
    /// Begins with a first snapshot.
    pub fn new(first: Snapshot) -> Self {
        Publisher { current: Arc::new(ArcSwap::from_pointee(first)), retired: Vec::new() }
    }

    /// Makes a snapshot the one that workers use from their next burst on.
    pub fn publish(&mut self, snapshot: Snapshot) {
        self.retired.push(self.current.swap(Arc::new(snapshot)));
        self.reclaim();
    }

    /// Frees the snapshots that no worker uses any more; tells how many are still in use.
    pub fn reclaim(&mut self) -> usize {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        self.retired.len()
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// A worker's view, see [`Subscriber::latest`].
    pub fn subscribe(&self) -> Subscriber {
        Subscriber { cache: arc_swap::Cache::new(self.current.clone()) }
    }
}

/// A worker's view of the published snapshot.
#[derive(Debug)]
pub struct Subscriber {
    cache: arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
}

impl Subscriber {
    /// The latest snapshot: one atomic load, unless it has changed. The publisher holds on to the old one,
    /// so nothing is freed here.
    #[inline]
    pub fn latest(&mut self) -> &Snapshot {
        self.cache.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::Fib;

    fn empty(generation: u64) -> Snapshot {
        Snapshot::new(generation, Vec::new(), &[], [], Fib::default())
    }

    #[test]
    fn old_snapshots_are_freed_by_the_publisher_once_all_workers_have_moved_on() {
        let mut publisher = Publisher::new(empty(1));
        let mut worker = publisher.subscribe();
        assert_eq!(worker.latest().generation, 1);
        publisher.publish(empty(2));
        publisher.publish(empty(3));
        assert_eq!(publisher.reclaim(), 1, "the worker still holds the first; nobody ever held the second");
        assert_eq!(worker.latest().generation, 3);
        assert_eq!(publisher.reclaim(), 0);
    }
}
