//! Where a port's device is plugged in: taken out while RVS runs, and put back.
//!
//! Linux does not take a device out of the machine that somebody has open. So when it wants to, or has done it, the workers give
//! up the port's queues one after the other, the device is closed, and the port goes on without one: nothing comes in, and what
//! is sent is dropped. When there is a device at the same address again that DPDK can have (`rvs setup` sees to that), it is
//! opened as the first one was, and the workers get its queues. The other ports notice nothing of either.
//!
//! Drivers take their time for it, so it is done in a thread of its own.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use dataplane::exchange::Exchange;
use dataplane::fib::PortIndex;
use dpdk::{Link, Notice, Port, Prober, Queues, Settings, Started};

use super::watch::Watched;
use super::{Known, Members, usable_mac};
use crate::admin::api;
use crate::director::Handle;
use crate::hardware::{Nic, Standing};
use crate::root::Root;

/// Between two looks at what a worker has returned, which takes it a burst, or half a millisecond of sleep.
const A_MOMENT: Duration = Duration::from_millis(1);

/// How a PCI device is opened.
#[derive(Clone)]
pub struct Plug {
    /// Its address.
    pub(super) address: String,
    /// The same, with the driver's arguments.
    pub(super) devargs: String,
    /// How it is to run.
    pub(super) settings: Settings,
    /// The port's number, and its name.
    pub(super) index: usize,
    pub(super) name: String,
    /// Who adds it to DPDK's.
    pub(super) prober: Prober,
}

impl Plug {
    /// What tells the driver's hold on the device that is there from every other: none while there is no device, or no driver.
    fn binding(&self) -> Option<u64> {
        let link = format!("/sys/bus/pci/devices/{}/driver", self.address);
        // Linux makes the link anew each time, and gives no number twice.
        fs::symlink_metadata(link).ok().map(|link| link.ino())
    }

    /// Whether DPDK could have what is there.
    fn is_ready(&self) -> bool {
        let root = Root::new(Path::new("/"));
        let nic = Nic::read(&root, &self.address);
        match Standing::of(&root, &self.address, nic.as_ref()) {
            // Its IOMMU group is open already, for another port of the same card.
            Standing::Hindered(obstacle) => obstacle.is_rvs(),
            _ => true,
        }
    }

    fn open(&self) -> Result<(Port<Started>, Queues, Known, [u8; 6]), dpdk::Error> {
        let (port, queues) = self.prober.open(&self.devargs, &self.address, self.settings.clone())?;
        let mac = usable_mac(port.mac()?, self.index);
        let known = Known::of(&port, mac)?;
        tracing::info!("port {}: {}", self.name, known.told(self.settings.descriptors));
        Ok((port, queues, known, mac))
    }
}

/// A port, with its device or without.
pub struct Slot {
    index: PortIndex,
    port: RefCell<Option<Port<Started>>>,
    /// How its device is opened anew; none of one that cannot be taken out.
    plug: Option<Plug>,
    /// What it is made of, if it is a bond.
    members: Members,
    /// The binding of the device that was let go of, which may be there for a moment yet.
    left: Cell<Option<u64>>,
    exchanges: Vec<Arc<Exchange>>,
    director: Handle,
}

impl Slot {
    /// Of the port of this number, whose workers have these exchanges.
    pub fn new(
        index: usize,
        port: Option<Port<Started>>,
        plug: Option<Plug>,
        members: Members,
        exchanges: &[Arc<Exchange>],
        director: &Handle,
    ) -> Slot {
        Slot {
            index: index as PortIndex,
            left: Cell::new(None),
            port: RefCell::new(port),
            plug,
            members,
            exchanges: exchanges.to_vec(),
            director: director.clone(),
        }
    }

    /// Closes the port, when the workers have ended.
    pub fn close(self) -> Result<(), dpdk::Error> {
        let Slot { port, members, exchanges, .. } = self;
        // They may have queues yet.
        drop(exchanges);
        port.into_inner().map_or(Ok(()), Port::<Started>::close)?;
        members.close()
    }

    /// Gives each worker a pair; those that they had.
    async fn exchange(&self, pairs: Queues) -> Result<Queues> {
        for (exchange, (receiver, transmitter)) in self.exchanges.iter().zip(pairs) {
            let given = exchange.give((self.index, receiver, transmitter));
            given.map_err(|_| anyhow!("a worker has not taken the queues before"))?;
        }
        let mut had = Queues::new();
        for exchange in &self.exchanges {
            let (_, receiver, transmitter) = loop {
                match exchange.returned() {
                    Some(pair) => break pair,
                    None => tokio::time::sleep(A_MOMENT).await,
                }
            };
            had.push((receiver, transmitter));
        }
        Ok(had)
    }
}

impl Watched for Slot {
    fn link(&self) -> Option<Link> {
        let port = self.port.borrow();
        let port = port.as_ref()?;
        let link = port.link().ok()?;
        // DPDK's bond has one as soon as a member has, though LACP may have agreed upon none: then nothing leaves.
        let members = self.members.describe(port);
        Some(Link {
            up: link.up && (members.is_empty() || members.iter().any(|member| member.sends)),
            ..link
        })
    }

    fn members(&self) -> Vec<api::Member> {
        self.port.borrow().as_ref().map_or_else(Vec::new, |bond| self.members.describe(bond))
    }

    fn notice(&self) -> Option<Notice> {
        let port = self.port.borrow();
        let Some(port) = port.as_ref() else { return Some(Notice::Removed) };
        // Not every driver says it.
        let is_out = self.plug.as_ref().is_some_and(|plug| plug.binding().is_none());
        if is_out { Some(Notice::Removed) } else { port.notice() }
    }

    fn can_be_let_go(&self) -> bool {
        self.plug.is_some() && self.port.borrow().is_some()
    }

    async fn let_go(&self) -> Result<()> {
        let Some(port) = self.port.take() else { return Ok(()) };
        self.left.set(self.plug.as_ref().and_then(Plug::binding));
        let had = self.exchange(self.exchanges.iter().map(|_| dpdk::unconnected()).collect()).await?;
        let release = move || {
            drop(had);
            port.release()
        };
        Ok(tokio::task::spawn_blocking(release).await??)
    }

    fn is_back(&self) -> bool {
        let Some(plug) = self.plug.as_ref().filter(|_| self.port.borrow().is_none()) else { return false };
        let binding = plug.binding();
        binding.is_some() && binding != self.left.get() && plug.is_ready()
    }

    async fn bring_back(&self) -> Result<Known> {
        let plug = self.plug.clone().context("it cannot be opened anew")?;
        let opened = tokio::task::spawn_blocking(move || plug.open()).await?;
        let (port, queues, known, mac) = opened?;
        *self.port.borrow_mut() = Some(port);
        // Before a packet comes in for the new one.
        self.director.has_device(usize::from(self.index), mac).await?;
        self.exchange(queues).await?;
        Ok(known)
    }
}
