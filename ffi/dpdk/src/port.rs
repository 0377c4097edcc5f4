//! Ports: network devices, from found to started.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::mem;
use std::ptr;
use std::sync::Arc;

use dpdk_sys::{rte_eth_conf, rte_eth_dev_info, rte_eth_rss_conf, rte_eth_stats, rte_ether_addr};

use crate::eal::{Eal, Tenants, c_string, tenants};
use crate::error::{Errno, Error};
use crate::notice::{self, Notice};
use crate::pool::Mempool;
use crate::queue::{RxQueue, TxQueue, pair};
use crate::reta;
use crate::rss::{self, Ask, Hashed, Rss, Side};
use crate::{FRAME_OVERHEAD, HEADROOM};

/// A network device: [`Stopped`], until [`configure`](Port::configure) makes queues of it, then
/// [`Started`].
///
/// Somebody has it alone: a second `Port` of the same device is refused until the first is dropped.
/// A started device is stopped and closed when its `Port` and all of its queues are dropped.
pub struct Port<S = Stopped> {
    state: S,
}

/// A port that does nothing yet.
pub struct Stopped {
    claim: Claim,
}

/// A port that receives and sends.
pub struct Started {
    claim: Arc<Claim>,
    terms: Terms,
}

/// The queues of a started port, in order: number 0 first.
pub type Queues = Vec<(RxQueue, TxQueue)>;

/// How a port is to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Pairs of queues: one receive and one transmit queue each.
    pub queues: u16,
    /// Descriptors a queue; brought into the device's limits.
    pub descriptors: u16,
    /// The largest IP packet.
    pub mtu: u16,
    /// How the device is to spread IP packets over the queues by a hash of addresses and ports. Without
    /// effect on one queue, and on a device that cannot (virtual ones spread in their own way).
    pub rss: Option<Rss>,
    /// Where received packets are put. Its packets must have room for a frame of the MTU in one piece.
    pub pool: &'static Mempool,
    /// Another MAC than the device's own.
    pub mac: Option<[u8; 6]>,
    /// Whether to receive what is for other MACs too.
    pub promiscuous: bool,
}

/// What a started port runs with: what was asked for, as far as the device has it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Terms {
    /// Pairs of queues.
    pub queues: u16,
    /// Descriptors of a receive queue.
    pub rx_descriptors: u16,
    /// Descriptors of a transmit queue.
    pub tx_descriptors: u16,
    /// The largest IP packet.
    pub mtu: u16,
    /// By what it spreads packets over its queues, if it does.
    pub hashed: Option<Hashed>,
    /// Which side of that counts.
    pub side: Side,
    /// Whether its table of queues had to be laid out anew; none if it does not tell, or has no use for it.
    pub relaid: Option<bool>,
    /// Whether it receives what is for other MACs too; none if it has no switch for that.
    pub promiscuous: Option<bool>,
    /// Whether it takes VLAN tags out of received packets, which is not asked for.
    pub strips_vlan: bool,
}

/// What a device can do, and what it is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PortInfo {
    /// The driver's name.
    pub driver: String,
    /// The MAC that it has now.
    pub mac: [u8; 6],
    /// The most receive queues.
    pub max_rx_queues: u16,
    /// The most transmit queues.
    pub max_tx_queues: u16,
    /// The smallest MTU.
    pub min_mtu: u16,
    /// The largest MTU.
    pub max_mtu: u16,
    /// The Linux interface under it, if there is one.
    pub if_index: Option<u32>,
    /// The socket (the NUMA node) whose memory is near.
    pub socket: Option<u32>,
    /// `RTE_ETH_RX_OFFLOAD_*`.
    pub rx_offloads: u64,
    /// `RTE_ETH_TX_OFFLOAD_*`.
    pub tx_offloads: u64,
    /// `RTE_ETH_RSS_*`: what it can hash; 0 if it cannot.
    pub rss: u64,
}

impl PortInfo {
    /// What it can hash, as far as that matters to a router.
    pub fn rss_names(&self) -> Vec<&'static str> {
        rss::names(self.rss)
    }

    /// What it can do with received packets, in DPDK's words.
    pub fn rx_offload_names(&self) -> Vec<String> {
        // SAFETY: any number is a valid question.
        named(self.rx_offloads, |bit| unsafe { dpdk_sys::rte_eth_dev_rx_offload_name(bit) })
    }

    /// What it can do with packets to send, in DPDK's words.
    pub fn tx_offload_names(&self) -> Vec<String> {
        // SAFETY: any number is a valid question.
        named(self.tx_offloads, |bit| unsafe { dpdk_sys::rte_eth_dev_tx_offload_name(bit) })
    }
}

/// The names of the bits that are set.
fn named(bits: u64, name: impl Fn(u64) -> *const c_char) -> Vec<String> {
    let set = (0..u64::BITS).map(|bit| 1u64 << bit).filter(|bit| bits & bit != 0);
    // SAFETY: DPDK answers with terminated strings that are never changed.
    set.map(|bit| unsafe { CStr::from_ptr(name(bit)) }.to_string_lossy().into_owned()).collect()
}

/// The device's own counters, from its start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PortStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets that the device dropped, as nobody fetched the earlier ones in time.
    pub rx_missed: u64,
    /// Packets that came in broken.
    pub rx_errors: u64,
    /// Packets lost as the pool was empty.
    pub rx_no_mbuf: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that the device failed to send.
    pub tx_errors: u64,
}

/// The state of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Whether it is up.
    pub up: bool,
    /// Its speed in Mbit/s, if the device knows.
    pub speed: Option<u32>,
}

impl Port<Stopped> {
    /// Takes the port of this name: a PCI address, or the name of a virtual device ("net_ring0").
    pub fn by_name(eal: &Eal, name: &str) -> Result<Port<Stopped>, Error> {
        let _ = eal;
        Self::known_as(&mut tenants(), name)
    }

    pub(crate) fn known_as(tenants: &mut Tenants, name: &str) -> Result<Port<Stopped>, Error> {
        let c_name = c_string(name)?;
        if !tenants.running {
            return Err(Error::NotRunning);
        }
        let mut id = 0;
        // SAFETY: EAL runs, and goes on while the tenants' lock is held; a terminated string, and a place for the answer.
        let returned = unsafe { dpdk_sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &mut id) };
        if returned != 0 || id >= dpdk_sys::RVS_MAX_PORTS {
            return Err(Error::NoPort(name.to_owned()));
        }
        Ok(Port { state: Stopped { claim: Claim::new(tenants, id, name)? } })
    }

    /// Takes the port of this id, one of [`Eal::ports`].
    pub fn by_id(eal: &Eal, id: u16) -> Result<Port<Stopped>, Error> {
        let _ = eal;
        let mut tenants = tenants();
        let mut name = [0 as c_char; dpdk_sys::RTE_ETH_NAME_MAX_LEN as usize];
        // SAFETY: EAL runs, as `eal` shows; names are shorter than the place for them.
        let returned = unsafe { dpdk_sys::rte_eth_dev_get_name_by_port(id, name.as_mut_ptr()) };
        if returned != 0 {
            return Err(Error::NoPort(id.to_string()));
        }
        // SAFETY: the call left a terminated string.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy();
        Ok(Port { state: Stopped { claim: Claim::new(&mut tenants, id, &name)? } })
    }

    /// Sets the port up, starts it, and hands out its queues.
    ///
    /// No offload is asked for. Checksums are updated, not made; and the one that would make sending
    /// cheaper, MBUF_FAST_FREE, promises that a queue sees packets of one pool with one owner each,
    /// which a sender between ports with different pools, or of clones, would break silently.
    ///
    /// A device that has no switch for `promiscuous` receives everything anyway: no error.
    pub fn configure(self, settings: Settings) -> Result<(Port<Started>, Queues), Error> {
        let claim = &self.state.claim;
        let id = claim.id;
        let raw = claim.raw_info()?;
        claim.check(&settings, &raw)?;

        let ask = claim.configure(&settings, &raw)?;
        let (mut rx_descriptors, mut tx_descriptors) = (settings.descriptors, settings.descriptors);
        // SAFETY: here and below: the port is valid, stopped and ours alone; each structure lives
        // through the call that reads or writes it; the pool lives as long as the process.
        claim.ask("have so many descriptors", unsafe {
            dpdk_sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &mut rx_descriptors, &mut tx_descriptors)
        })?;
        // Rings are where packets are: on the device's own socket, if there was room.
        let socket = settings.pool.socket();
        for queue in 0..settings.queues {
            // SAFETY: see above; null asks for the driver's own defaults.
            claim.ask("set up a receive queue", unsafe {
                let pool = settings.pool.as_ptr();
                dpdk_sys::rte_eth_rx_queue_setup(id, queue, rx_descriptors, socket, ptr::null(), pool)
            })?;
            // SAFETY: see above.
            claim.ask("set up a transmit queue", unsafe {
                dpdk_sys::rte_eth_tx_queue_setup(id, queue, tx_descriptors, socket, ptr::null())
            })?;
        }
        if let Some(mac) = settings.mac {
            let mut address = rte_ether_addr { addr_bytes: mac };
            // SAFETY: see above.
            claim.ask("change its MAC", unsafe {
                dpdk_sys::rte_eth_dev_default_mac_addr_set(id, &mut address)
            })?;
        }
        notice::listen(id, &claim.name);
        // SAFETY: see above.
        claim.ask("start it", unsafe { dpdk_sys::rte_eth_dev_start(id) })?;
        let mut claim = self.state.claim;
        claim.started = true;
        let claim = Arc::new(claim);
        if settings.promiscuous {
            // SAFETY: see above.
            let returned = unsafe { dpdk_sys::rte_eth_promiscuous_enable(id) };
            if returned != -libc::ENOTSUP {
                claim.ask("make it promiscuous", returned)?;
            }
        }
        // SAFETY: the port is started with these queues, and still ours alone.
        let relaid = ask.as_ref().and_then(|_| unsafe { reta::spread(id, settings.queues, raw.reta_size) });
        // SAFETY: a valid port.
        let promiscuous = unsafe { dpdk_sys::rte_eth_promiscuous_get(id) };
        // SAFETY: a valid port.
        let vlan = unsafe { dpdk_sys::rte_eth_dev_get_vlan_offload(id) };
        let terms = Terms {
            queues: settings.queues,
            rx_descriptors,
            tx_descriptors,
            mtu: claim.mtu().unwrap_or(settings.mtu),
            hashed: ask.as_ref().map(|ask| claim.hashed(ask.hash)),
            side: ask.map_or(Side::Both, |ask| ask.side),
            // A driver that refuses keeps what it has.
            relaid: relaid.map(|relaid| relaid == Ok(true)),
            promiscuous: (promiscuous >= 0).then_some(promiscuous == 1),
            strips_vlan: vlan >= 0 && vlan & dpdk_sys::RVS_VLAN_STRIP != 0,
        };
        // SAFETY: the port is started with these queues, and a claim is configured once.
        let queues = (0..settings.queues).map(|queue| unsafe { pair(&claim, queue) }).collect();
        Ok((Port { state: Started { claim, terms } }, queues))
    }

    /// Whether it could run so; [`configure`](Port::configure) asks by itself.
    pub fn check(&self, settings: &Settings) -> Result<(), Error> {
        let claim = &self.state.claim;
        claim.check(settings, &claim.raw_info()?)
    }

    pub(crate) fn claim(&self) -> &Claim {
        &self.state.claim
    }

    /// Takes the device away from DPDK, which remembers where it was.
    pub fn close(self) -> Result<(), Error> {
        self.state.claim.close()
    }

    /// Takes the device away from DPDK, and DPDK's hands off it, so that Linux can let it be unplugged. [`Prober::open`] brings it
    /// back.
    ///
    /// Refused, with the port closed, if the device has another port that somebody has: both would go.
    ///
    /// [`Prober::open`]: crate::Prober::open
    pub fn release(self) -> Result<(), Error> {
        let mut claim = self.state.claim;
        let device = claim.raw_info()?.device;
        claim.give_up(true)?;
        claim.let_go(device)
    }

    /// Configures it, or lets go of its device.
    pub(crate) fn configure_or_release(self, settings: Settings) -> Result<(Port<Started>, Queues), Error> {
        let (id, name) = (self.id(), self.name().to_owned());
        let device = self.state.claim.raw_info()?.device;
        self.configure(settings).inspect_err(|_| {
            // Nobody has the port any more, and what has gone wrong is known.
            let closed = Claim { id, name, started: false, given_up: true };
            let _ = closed.let_go(device);
        })
    }
}

impl Port<Started> {
    /// Stops the port, so that it can be configured anew. Its queues must have been dropped; if not it
    /// is left running, and is closed with the last of them.
    pub fn stop(self) -> Result<Port<Stopped>, Error> {
        let name = self.name().to_owned();
        let mut claim = Arc::try_unwrap(self.state.claim).map_err(|_| Error::QueuesInUse(name))?;
        claim.stop()?;
        Ok(Port { state: Stopped { claim } })
    }

    /// Stops the port and takes the device away from DPDK; as [`stop`](Port::stop) otherwise.
    pub fn close(self) -> Result<(), Error> {
        self.stop()?.close()
    }

    /// Stops the port and lets go of its device, as a stopped one does; as [`stop`](Port::stop) otherwise.
    pub fn release(self) -> Result<(), Error> {
        self.stop()?.release()
    }

    /// What it runs with.
    pub fn terms(&self) -> Terms {
        self.state.terms
    }

    /// What the device has said of itself since it was started, if it has.
    pub fn notice(&self) -> Option<Notice> {
        notice::of(self.id())
    }
}

#[expect(private_bounds, reason = "the two states are all that there are")]
impl<S: State> Port<S> {
    /// Its number in this process.
    pub fn id(&self) -> u16 {
        self.state.claim().id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.state.claim().name
    }

    /// What the device can do.
    pub fn info(&self) -> Result<PortInfo, Error> {
        self.state.claim().info()
    }

    /// Its MAC.
    pub fn mac(&self) -> Result<[u8; 6], Error> {
        self.state.claim().mac()
    }

    /// Its own counters.
    pub fn stats(&self) -> Result<PortStats, Error> {
        let mut raw = rte_eth_stats::default();
        let claim = self.state.claim();
        // SAFETY: a valid port, and a place for the answer.
        claim.ask("tell its counters", unsafe { dpdk_sys::rte_eth_stats_get(claim.id, &mut raw) })?;
        Ok(PortStats {
            rx_packets: raw.ipackets,
            rx_bytes: raw.ibytes,
            rx_missed: raw.imissed,
            rx_errors: raw.ierrors,
            rx_no_mbuf: raw.rx_nombuf,
            tx_packets: raw.opackets,
            tx_bytes: raw.obytes,
            tx_errors: raw.oerrors,
        })
    }

    /// The state of its link, as far as the device knows it now.
    pub fn link(&self) -> Result<Link, Error> {
        let claim = self.state.claim();
        let mut speed = 0;
        // SAFETY: a valid port, and a place for the answer.
        let up = claim.ask("tell its link", unsafe { dpdk_sys::rvs_eth_link(claim.id, &mut speed) })?;
        Ok(Link { up: up == 1, speed: (speed != 0 && speed != u32::MAX).then_some(speed) })
    }
}

impl<S: State> fmt::Debug for Port<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({}, {})", self.id(), self.name())
    }
}

/// What both states have.
trait State {
    fn claim(&self) -> &Claim;
}

impl State for Stopped {
    fn claim(&self) -> &Claim {
        &self.claim
    }
}

impl State for Started {
    fn claim(&self) -> &Claim {
        &self.claim
    }
}

/// The right to configure a port: one a port, as DPDK does not look after that itself. A started port
/// shares it with its queues; the last of them stops and closes the device.
pub(crate) struct Claim {
    id: u16,
    name: String,
    started: bool,
    given_up: bool,
}

impl Claim {
    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// With the tenants' lock held since the port was looked up: ids are used again.
    fn new(tenants: &mut Tenants, id: u16, name: &str) -> Result<Claim, Error> {
        if !tenants.running {
            return Err(Error::NotRunning);
        }
        if tenants.ports.contains(&id) {
            return Err(Error::Claimed(name.to_owned()));
        }
        tenants.ports.push(id);
        Ok(Claim { id, name: name.to_owned(), started: false, given_up: false })
    }

    pub(crate) fn ask(&self, what: &'static str, returned: c_int) -> Result<c_int, Error> {
        Errno::check(returned).map_err(|errno| Error::Port { port: self.name.clone(), what, errno })
    }

    fn raw_info(&self) -> Result<rte_eth_dev_info, Error> {
        let mut raw = rte_eth_dev_info::default();
        // SAFETY: a valid port, and a place for the answer.
        self.ask("say what it can do", unsafe { dpdk_sys::rte_eth_dev_info_get(self.id, &mut raw) })?;
        Ok(raw)
    }

    fn info(&self) -> Result<PortInfo, Error> {
        let raw = self.raw_info()?;
        let driver = match raw.driver_name.is_null() {
            true => String::new(),
            // SAFETY: the driver's name is a terminated string that lives as long as the driver.
            false => unsafe { CStr::from_ptr(raw.driver_name) }.to_string_lossy().into_owned(),
        };
        // SAFETY: a valid port.
        let socket = unsafe { dpdk_sys::rte_eth_dev_socket_id(self.id) };
        Ok(PortInfo {
            driver,
            mac: self.mac()?,
            max_rx_queues: raw.max_rx_queues,
            max_tx_queues: raw.max_tx_queues,
            min_mtu: raw.min_mtu,
            max_mtu: raw.max_mtu,
            if_index: (raw.if_index != 0).then_some(raw.if_index),
            socket: u32::try_from(socket).ok(),
            rx_offloads: raw.rx_offload_capa,
            tx_offloads: raw.tx_offload_capa,
            rss: raw.flow_type_rss_offloads,
        })
    }

    /// Configures the device with the best spreading that it takes; what that is, if there is any.
    fn configure(&self, settings: &Settings, device: &rte_eth_dev_info) -> Result<Option<Ask>, Error> {
        let rss = settings.rss.filter(|_| settings.queues > 1);
        let asks =
            rss.map(|rss| rss.asks(device.flow_type_rss_offloads, device.hash_key_size)).unwrap_or_default();
        let mut ways: Vec<Option<Ask>> = asks.into_iter().map(Some).collect();
        if ways.is_empty() {
            ways.push(None);
        }
        let mut refused = Ok(None);
        // SAFETY: the flags are those of the device, which is there as long as the port.
        let flags = unsafe { device.dev_flags.as_ref() }.copied().unwrap_or(0);
        for way in ways {
            let mut conf = rte_eth_conf::default();
            conf.rxmode.mtu = u32::from(settings.mtu);
            // Who asks a driver for it that has none is refused.
            conf.intr_conf.set_rmv(u32::from(flags & dpdk_sys::RVS_DEV_INTR_RMV != 0));
            if let Some(ask) = &way {
                conf.rxmode.mq_mode = dpdk_sys::rte_eth_rx_mq_mode_RTE_ETH_MQ_RX_RSS;
                conf.rx_adv_conf.rss_conf.rss_hf = ask.hash;
                if let Some(key) = ask.key {
                    // A pointer that could be written by only in its type, as it is in C.
                    conf.rx_adv_conf.rss_conf.rss_key = key.as_ptr().cast_mut();
                    conf.rx_adv_conf.rss_conf.rss_key_len = key.len() as _;
                }
            }
            // SAFETY: the port is valid, stopped and ours alone; the structure lives through the call, and the key, which
            // drivers read at each start, for ever.
            let returned =
                unsafe { dpdk_sys::rte_eth_dev_configure(self.id, settings.queues, settings.queues, &conf) };
            match self.ask("configure it", returned) {
                Ok(_) => return Ok(way),
                Err(error) => refused = Err(error),
            }
        }
        refused
    }

    fn mtu(&self) -> Option<u16> {
        let mut mtu = 0;
        // SAFETY: a valid port, and a place for the answer.
        let returned = unsafe { dpdk_sys::rte_eth_dev_get_mtu(self.id, &mut mtu) };
        (returned == 0).then_some(mtu)
    }

    /// What decides about a packet's queue, of a device that was asked to hash this.
    fn hashed(&self, asked: u64) -> Hashed {
        // Without a place for the key, which nobody wants.
        let mut in_force = rte_eth_rss_conf::default();
        // SAFETY: a valid port, and a place for the answer.
        let returned = unsafe { dpdk_sys::rte_eth_dev_rss_hash_conf_get(self.id, &mut in_force) };
        // A driver that cannot say it has taken what it was asked.
        Hashed::of(if returned == 0 { in_force.rss_hf } else { asked })
    }

    fn mac(&self) -> Result<[u8; 6], Error> {
        let mut address = rte_ether_addr::default();
        // SAFETY: a valid port, and a place for the answer.
        self.ask("tell its MAC", unsafe { dpdk_sys::rte_eth_macaddr_get(self.id, &mut address) })?;
        Ok(address.addr_bytes)
    }

    /// What DPDK would refuse with a number, or (the data room) answer with chains.
    fn check(&self, settings: &Settings, device: &rte_eth_dev_info) -> Result<(), Error> {
        let port = || self.name.clone();
        let (max_rx, max_tx) = (device.max_rx_queues, device.max_tx_queues);
        if settings.queues == 0 {
            return Err(Error::NoQueues(port()));
        }
        if settings.queues > max_rx.min(max_tx) {
            return Err(Error::TooManyQueues { port: port(), wanted: settings.queues, max_rx, max_tx });
        }
        let (mtu, min, max) = (settings.mtu, device.min_mtu, device.max_mtu);
        if mtu < min || mtu > max {
            return Err(Error::Mtu { port: port(), wanted: mtu, min, max });
        }
        let needed = mtu.saturating_add(FRAME_OVERHEAD).saturating_add(HEADROOM);
        let data_room = settings.pool.data_room();
        if needed > data_room {
            return Err(Error::DataRoom { port: port(), mtu, needed, data_room });
        }
        Ok(())
    }

    /// Errors leave it started.
    fn stop(&mut self) -> Result<(), Error> {
        // SAFETY: a valid port, ours alone: `&mut self` shows that no queue shares the claim.
        self.ask("stop it", unsafe { dpdk_sys::rte_eth_dev_stop(self.id) })?;
        self.started = false;
        notice::ignore(self.id, &self.name);
        Ok(())
    }

    fn close(mut self) -> Result<(), Error> {
        self.give_up(true)
    }

    /// Takes the device of a port that is closed out of DPDK.
    fn let_go(&self, device: *mut dpdk_sys::rte_device) -> Result<(), Error> {
        // With the lock, so that EAL goes on, and nobody finds a port of it.
        let tenants = tenants();
        if !tenants.running {
            return Err(Error::NotRunning);
        }
        // The next port of the device from one on is that one itself.
        // SAFETY: EAL runs; the device is only compared.
        let is_of_device = |&id: &u16| unsafe { dpdk_sys::rte_eth_find_next_of(id, device) == id };
        if tenants.ports.iter().any(is_of_device) {
            return Err(Error::Shared(self.name.clone()));
        }
        // SAFETY: EAL runs, and nothing but this removes a device, which is DPDK's until then; none of its ports is anybody's.
        self.ask("let go of it", unsafe { dpdk_sys::rte_dev_remove(device) }).map(drop)
    }

    /// Gives the port up, in one step with closing the device: its id is used again.
    fn give_up(&mut self, close: bool) -> Result<(), Error> {
        let mut tenants = tenants();
        if mem::replace(&mut self.given_up, true) {
            return Ok(());
        }
        let closed = match close {
            // SAFETY: a valid port, stopped, and ours alone.
            true => self.ask("close it", unsafe { dpdk_sys::rte_eth_dev_close(self.id) }),
            false => Ok(0),
        };
        tenants.ports.retain(|&id| id != self.id);
        closed.map(drop)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Nobody is left to hear of an error; a device that would not stop must not be closed.
        let stopped = self.started && self.stop().is_ok();
        let _ = self.give_up(stopped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_have_names() {
        // SAFETY: any number is a valid question.
        let rx = |bit| unsafe { dpdk_sys::rte_eth_dev_rx_offload_name(bit) };
        // SAFETY: as above.
        let tx = |bit| unsafe { dpdk_sys::rte_eth_dev_tx_offload_name(bit) };
        assert_eq!(
            (named(0b11, rx), named(1, tx)),
            (vec!["VLAN_STRIP".to_owned(), "IPV4_CKSUM".to_owned()], vec!["VLAN_INSERT".to_owned()])
        );
        assert_eq!(named(0, rx), [""; 0]);
    }
}
