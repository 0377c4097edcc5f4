//! Another device for a port, while the workers run.
//!
//! A NIC can be taken out of a running machine, and be put back. Nobody may poll it while it is closed, and a worker's queues
//! are its own: so control gives a worker other queues for the port, which lead nowhere or to the device that is back, and gets
//! the old ones when the worker has let go of them. The worker looks once a round, which costs it two loads.

use std::mem;

use crossbeam::queue::ArrayQueue;
use dpdk::{RxQueue, TxQueue};

use crate::fib::PortIndex;

/// A worker's pair of queues of a port.
pub type Pair = (PortIndex, RxQueue, TxQueue);

/// Between control and one worker.
#[derive(Debug)]
pub struct Exchange {
    /// For the worker.
    given: ArrayQueue<Pair>,
    /// What it has had before.
    returned: ArrayQueue<Pair>,
}

impl Exchange {
    /// For a worker with so many ports, of which each is exchanged at most once at a time.
    pub fn new(ports: usize) -> Exchange {
        let queue = || ArrayQueue::new(ports.max(1));
        Exchange { given: queue(), returned: queue() }
    }

    /// Gives the worker other queues for a port. Refused, they come back: there is an exchange of each port already.
    pub fn give(&self, pair: Pair) -> Result<(), Pair> {
        self.given.push(pair)
    }

    /// Queues that the worker does not use any more.
    pub fn returned(&self) -> Option<Pair> {
        self.returned.pop()
    }

    /// Whether there is something for the worker.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        !self.given.is_empty()
    }

    /// The worker takes what there is. It holds no packets for these ports now.
    #[cold]
    pub(crate) fn take(&self, receivers: &mut [RxQueue], transmitters: &mut [TxQueue]) {
        while let Some((port, receiver, transmitter)) = self.given.pop() {
            let index = usize::from(port);
            let (Some(rx), Some(tx)) = (receivers.get_mut(index), transmitters.get_mut(index)) else {
                continue;
            };
            let old = (port, mem::replace(rx, receiver), mem::replace(tx, transmitter));
            // Control takes back what it has exchanged before it exchanges that again, so there is room.
            let _ = self.returned.push(old);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_takes_what_it_is_given_and_returns_what_it_had() {
        let exchange = Exchange::new(2);
        let (mut receivers, mut transmitters): (Vec<_>, Vec<_>) = (0..2).map(|_| dpdk::unconnected()).unzip();
        assert!(!exchange.is_due() && exchange.returned().is_none());
        for port in [1, 0] {
            let (receiver, transmitter) = dpdk::unconnected();
            exchange.give((port, receiver, transmitter)).unwrap();
        }
        let (receiver, transmitter) = dpdk::unconnected();
        assert!(exchange.give((0, receiver, transmitter)).is_err(), "one of each port at a time");
        assert!(exchange.is_due() && exchange.returned().is_none());
        exchange.take(&mut receivers, &mut transmitters);
        assert!(!exchange.is_due());
        let returned = || exchange.returned().map(|(port, ..)| port);
        assert_eq!([returned(), returned(), returned()], [Some(1), Some(0), None]);
        assert_eq!((receivers.len(), transmitters.len()), (2, 2));
    }
}
