//! DPDK's ports, and the pool that their packets come from: opened, described, looked after.

mod bond;
mod known;
mod slot;
mod spread;
mod watch;

use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;

use anyhow::{Context, Result};
use dataplane::fragments;
use dpdk::{Eal, Mempool, Port, Queues, Rss, Settings, Started};

use crate::config::{Config, ConfigErrors, Machine};
use crate::devices::Device;
use crate::slowpath;

pub use bond::Members;
pub use known::Known;
pub use slot::{Plug, Slot};
pub use watch::Watch;

/// Packets in each core's cache of the pool; at least four bursts.
const POOL_CACHE: u32 = 512;

/// How many packets there can be at a time: full queues, and what workers and control hold.
pub fn packets(config: &Config) -> u32 {
    let workers = config.workers.cores.len() as u32;
    let of_device = |(index, ..): (usize, _, _)| 2 * u32::from(config.ports[index].descriptors) * workers;
    let in_queues: u32 = config.devices().map(of_device).sum();
    let in_slow_path = (slowpath::PUNTS + slowpath::INJECTS * config.workers.cores.len()) as u32;
    // In caches, and in workers' hands.
    let with_threads = 2 * POOL_CACHE * (workers + 1);
    let waiting = fragments::ROOM as u32 * workers;
    let wanted = in_queues + in_slow_path + with_threads + waiting;
    // DPDK's rings are best at one less than a power of two.
    wanted.next_power_of_two() - 1
}

/// The largest MTU of all ports: a packet of one may leave by any other.
pub fn mtu(config: &Config) -> u16 {
    config.ports.iter().map(|port| port.mtu).max().unwrap_or(1500)
}

/// The pools that packets come from: one on each NUMA node that a port is on, each as large as it can be needed.
pub struct Pools<P = &'static Mempool> {
    by_node: BTreeMap<Option<u32>, P>,
    /// For nodes without memory.
    elsewhere: Option<P>,
}

impl<P> Default for Pools<P> {
    fn default() -> Self {
        Pools { by_node: BTreeMap::new(), elsewhere: None }
    }
}

impl<P: Copy> Pools<P> {
    /// The pool on a node, or the one elsewhere, which is the same for all nodes without memory. `make` makes one on a node, or
    /// on any, of this name.
    fn on<E>(
        &mut self,
        node: Option<u32>,
        make: impl Fn(Option<u32>, &str) -> std::result::Result<P, E>,
    ) -> std::result::Result<P, E> {
        if let Some(pool) = self.by_node.get(&node) {
            return Ok(*pool);
        }
        let name = node.map_or("rvs-packets".to_owned(), |node| format!("rvs-packets-{node}"));
        let pool = match (make(node, &name), self.elsewhere) {
            (Ok(pool), _) => pool,
            (Err(_), Some(pool)) => pool,
            (Err(error), None) => {
                let pool = make(None, "rvs-packets-elsewhere").map_err(|_| error)?;
                tracing::warn!(
                    node,
                    "no memory for packets on the NIC's node; they are on another one, which is slower"
                );
                *self.elsewhere.insert(pool)
            }
        };
        self.by_node.insert(node, pool);
        Ok(pool)
    }
}

impl Pools {
    /// The pool on a node; where that has no memory, one on any other.
    fn near(&mut self, node: Option<u32>, config: &Config, eal: &Eal) -> Result<&'static Mempool> {
        let node = node.or(eal.socket());
        let (packets, data_room) = (packets(config), dpdk::data_room(mtu(config)));
        let make = |node, name: &str| Mempool::on(eal, node, name, packets, POOL_CACHE, data_room);
        self.on(node, make).with_context(|| {
            format!(
                "no memory for {packets} packets: reserve more hugepages (`rvs setup -c {}`), or raise eal.memory",
                config.path.display()
            )
        })
    }
}

/// A port that is open.
pub struct Open {
    /// The port; none while its device is not there.
    pub port: Option<Port<Started>>,
    /// A pair for each worker.
    pub queues: Queues,
    /// Where its packets come from.
    pub pool: &'static Mempool,
    /// What is known of it.
    pub known: Arc<Known>,
    /// The MAC that it shows.
    pub mac: [u8; 6],
    /// How its device is opened anew, if it is one that can be taken out.
    pub plug: Option<Plug>,
    /// What it is made of, if it is a bond.
    pub members: Members,
}

/// What DPDK has refused of the device with this key, in words fit for an operator.
fn refused(config: &Config, key: &str, error: dpdk::Error) -> ConfigErrors {
    let remedy = match error {
        dpdk::Error::TooManyQueues { .. } => {
            "expected one for each of workers.cores: have fewer of them, or another NIC"
        }
        _ => "expected a device that DPDK can open; what its driver says is above",
    };
    config.error(key, format_args!("{error}; {remedy}"))
}

/// Opens a port with a pair of queues for each worker, and says in the log what has become of it. One that waits for its device
/// ([`Machine::awaited`]) is open without.
///
/// [`Machine::awaited`]: crate::config::Machine::awaited
pub fn open(
    config: &Config,
    index: usize,
    device: &Device,
    machine: &Machine,
    eal: &Eal,
    pools: &mut Pools,
) -> Result<Open> {
    let port = &config.ports[index];
    let key = if port.bond.is_some() { format!("port[{index}].bond") } else { port.key_of_device(index, 0) };
    let failed = |error| refused(config, &key, error);
    if let Device::Virtual { devargs, .. } = device {
        eal.probe(devargs).map_err(failed)?;
    }
    let (stopped, members) = match (device, port.bond) {
        (Device::Bond { name, members }, Some(bond)) => {
            let (bond, members) = bond::make(config, index, (name, bond), members, machine, eal)?;
            (Some(bond), members)
        }
        _ => match Port::by_name(eal, device.port_name()) {
            Err(dpdk::Error::NoPort(_)) if machine.lacks(&port.devices[0]) => (None, Members::default()),
            stopped => (Some(stopped.map_err(failed)?), Members::default()),
        },
    };
    let own = stopped.as_ref().map(Port::info).transpose().map_err(failed)?.and_then(|info| info.socket);
    let node = members.node().or(own);
    let pool = pools.near(node, config, eal)?;
    let workers = config.workers.cores.len();
    let settings = Settings {
        queues: workers as u16,
        descriptors: port.descriptors,
        mtu: port.mtu,
        rss: Some(Rss { side: spread::side(config, index), key: Some(spread::key()?) }),
        pool,
        mac: port.mac,
        promiscuous: true,
    };
    members.check(config, index, &settings)?;
    let plug = match device {
        Device::Pci { name, devargs } => Some(Plug {
            address: name.clone(),
            devargs: devargs.clone(),
            settings: settings.clone(),
            index,
            name: port.name.clone(),
            prober: eal.prober(),
        }),
        _ => None,
    };
    let Some(stopped) = stopped else {
        let (mac, name) = (usable_mac(port.mac.unwrap_or_default(), index), device.port_name());
        tracing::error!("port {}: there is no PCI device {name}; it has no link until there is", port.name);
        let (queues, known) = (iter::repeat_with(dpdk::unconnected), Known::absent(name, mac, port.mtu));
        let (queues, known) = (queues.take(workers).collect(), Arc::new(known));
        return Ok(Open { port: None, queues, pool, known, mac, plug, members });
    };
    let (started, queues) = stopped.configure(settings).map_err(failed)?;
    let mac = usable_mac(started.mac().map_err(failed)?, index);
    let known = Known::of(&started, mac).map_err(failed)?;
    tracing::info!("port {}: {}", port.name, known.told(port.descriptors));
    Ok(Open { port: Some(started), queues, pool, known: Arc::new(known), mac, plug, members })
}

/// The device's MAC; one of our own (locally administered) for a device that has none, as rings have.
pub fn usable_mac(mac: [u8; 6], index: usize) -> [u8; 6] {
    if mac == [0; 6] { [2, 0, 0, 0, 0, index as u8 + 1] } else { mac }
}

/// As people write a MAC.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn nodes_without_memory_have_one_pool_together() {
        // Numbers stand for pools; as with DPDK, a name is there once.
        let made = RefCell::new(Vec::new());
        let make = |node: Option<u32>, name: &str| {
            if node.is_some_and(|node| node > 0) || made.borrow().iter().any(|known| known == name) {
                return Err(());
            }
            made.borrow_mut().push(name.to_owned());
            Ok(made.borrow().len())
        };
        let mut pools = Pools::<usize>::default();
        let nodes = [Some(0), Some(1), Some(2), Some(0), Some(1)];
        assert_eq!(nodes.map(|node| pools.on(node, make)), [Ok(1), Ok(2), Ok(2), Ok(1), Ok(2)]);
        assert_eq!(*made.borrow(), ["rvs-packets-0", "rvs-packets-elsewhere"]);
    }
}
