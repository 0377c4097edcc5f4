//! What the admin API says, as JSON: shared by server and clients, so that they cannot disagree.
//!
//! Names are strings here, not the enums of the data path: a listing shows whatever a server of another
//! version sends. Fields may be added; none is renamed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::ids::ServiceKey;

/// What has passed since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients to real servers.
    pub packets_in: u64,
    /// Packets from real servers to clients; always 0 unless the mode is `nat`, as replies take another way.
    pub packets_out: u64,
    /// Bytes (of IP packets) from clients to real servers.
    pub bytes_in: u64,
    /// Bytes (of IP packets) from real servers to clients.
    pub bytes_out: u64,
}

/// What passes, each a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients to real servers.
    pub packets_in: u64,
    /// Packets from real servers to clients.
    pub packets_out: u64,
    /// Bytes from clients to real servers.
    pub bytes_in: u64,
    /// Bytes from real servers to clients.
    pub bytes_out: u64,
}

/// A firewall mark, and what has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The mark.
    pub number: u32,
    /// Its virtual addresses, once for each protocol; several times if it makes a difference where packets come in.
    pub addresses: Vec<Face>,
}

/// What has a mark at one address by one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Face {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The virtual address.
    pub address: IpAddr,
    /// Ports and ranges of them, as `80` and `8080-8090`; none if it is all of them.
    pub ports: Vec<String>,
    /// The ports of the router by which that comes in; none if it is all of them.
    #[serde(default, rename = "in")]
    pub incoming: Vec<String>,
    /// Why the address is withdrawn from the twin; null while it is not.
    #[serde(default)]
    pub withdrawn: Option<String>,
}

impl Service {
    /// As it is shown and typed: `tcp/192.0.2.10:80`, or `mark/10`.
    pub fn name(&self) -> String {
        match &self.mark {
            Some(mark) => ServiceKey::of_mark(mark.number, self.address.is_ipv6()).to_string(),
            None => format!("{}/{}", self.protocol, self.address),
        }
    }
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Virtual address and port. Of a mark, the mark as an address, as IPVS shows it: 0.0.0.10:0 for 10.
    pub address: SocketAddr,
    /// Of the service of a firewall mark: the mark, and what has it.
    #[serde(default)]
    pub mark: Option<Mark>,
    /// Of a service of some ports (`address` has port 0): ports and ranges of them, as `21` and `10000-20000`. Else there are none.
    #[serde(default)]
    pub ports: Vec<String>,
    /// As in the configuration, e.g. `wlc`.
    pub scheduler: String,
    /// Options of the scheduler, e.g. `sh-port`.
    pub flags: Vec<String>,
    /// `nat`, `dr`, `tunnel` or `fullnat`.
    pub mode: String,
    /// Whether each datagram is scheduled on its own.
    #[serde(default)]
    pub one_packet: bool,
    /// How clients come back to their servers, if they do.
    #[serde(default)]
    pub persistence: Option<Persistence>,
    /// The protocol whose further connections are let through, if there is one: `ftp`.
    #[serde(default)]
    pub helper: Option<String>,
    /// Whether only connections at risk have an entry, so that active and inactive ones are these.
    #[serde(default)]
    pub at_risk: bool,
    /// How packets are put into others with mode `tunnel`, as `ipvsadm --tun-info` shows it: `ipip`, `gre:-c`, `gue:6080:+c`.
    #[serde(default)]
    pub tunnel: Option<String>,
    /// Why its virtual address is withdrawn from the twin; null while it is not.
    #[serde(default)]
    pub withdrawn: Option<String>,
    /// What its gate against floods of SYNs does, if it has one.
    #[serde(default)]
    pub syn_flood: Option<SynFlood>,
    /// Sum over its real servers, including those that have been removed.
    pub stats: Stats,
    /// Sum over its real servers.
    pub rates: Rates,
    /// Its real servers.
    pub servers: Vec<Server>,
}

/// What a gate against floods of SYNs does (`half_open_rate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SynFlood {
    /// Whether it is shut: SYNs leave nothing in the table.
    pub shut: bool,
    /// How many SYNs have met it shut.
    pub syns: u64,
}

/// How clients come back to the server that their last connections went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persistence {
    /// For so many seconds.
    pub timeout: u32,
    /// Clients whose addresses are equal in so many bits are one.
    pub prefix: u8,
}

/// The [`Server::mode`] of one that is the router itself, whatever its service's.
pub const HERE: &str = "local";

/// A real server of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Address and port.
    pub address: SocketAddr,
    /// `nat`, `dr`, `tunnel` or `fullnat`; `local` if it is the router itself.
    pub mode: String,
    /// As configured, also while it is down.
    pub weight: u32,
    /// What it has now: 0 while it is down or drained, less while it starts slowly, or what its check asks for.
    #[serde(default)]
    pub effective_weight: u32,
    /// `enabled`, `drained`, `disabled`; `leaving`: it is not configured any more, but has connections; `sorry`: it
    /// serves while there is no quorum.
    #[serde(default)]
    pub state: String,
    /// Seconds that it may keep its connections, if there is a limit.
    #[serde(default)]
    pub remaining: Option<u64>,
    /// Whether it takes new connections, as far as its health check goes.
    pub up: bool,
    /// Why it is down, or what changed last.
    pub reason: Option<String>,
    /// Connections in a state that counts as active.
    pub active: u64,
    /// The other connections.
    pub inactive: u64,
    /// With so many connections it gets no new ones; null if there is no limit.
    #[serde(default)]
    pub upper_threshold: Option<u32>,
    /// It gets new ones again with fewer than so many.
    #[serde(default)]
    pub lower_threshold: Option<u32>,
    /// Clients that come back to it, in a persistent service: its templates.
    #[serde(default)]
    pub persistent: u64,
    /// What has passed since the start.
    pub stats: Stats,
    /// What passes now.
    pub rates: Rates,
}

/// An entry of the connection table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The service's address and port.
    #[serde(rename = "virtual")]
    pub virtual_: SocketAddr,
    /// As whom the real server sees the client, with mode `fullnat`.
    #[serde(default)]
    pub local: Option<SocketAddr>,
    /// The real server's address and port.
    pub server: SocketAddr,
    /// E.g. `ESTABLISHED`.
    pub state: String,
    /// Seconds until it is forgotten unless something passes.
    pub expires: u32,
}

/// How things stand with peer routers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sync {
    /// Whether this router may take virtual addresses: it knows what its peers know, as far as they can be reached, and
    /// nobody has withdrawn it.
    pub ready: bool,
    /// Whether an operator has taken this router out of service.
    #[serde(default)]
    pub withdrawn: bool,
    /// Each peer.
    pub peers: Vec<Peer>,
    /// What has become of the connections that they told of.
    pub adopted: Adopted,
    /// Connections that were forgotten because an operator has flushed them at a peer.
    #[serde(default)]
    pub flushed: u64,
    /// Changes for which there was no room, so that everything was sent again.
    pub overflows: u64,
    /// Datagrams from addresses that are no peer's.
    pub strangers: u64,
    /// CPU time of the thread that speaks to peers.
    pub cpu_seconds: f64,
    /// How things stand with directors of Linux, if there are any.
    #[serde(default)]
    pub ipvs: Option<Ipvs>,
}

/// How things stand with directors of Linux, by the sync protocol of IPVS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipvs {
    /// `backup`, `master` or `both`.
    pub role: String,
    /// The interface that they are on.
    pub interface: String,
    /// Which of them are listened to; 0: all.
    pub syncid: u8,
    /// Those that have told of connections; the first eight.
    pub directors: Vec<Ipv4Addr>,
    /// What has become of the connections that they told of, if those are of a service and a server of ours.
    pub adopted: Adopted,
    /// What has been received and sent.
    #[serde(flatten)]
    pub counts: IpvsCounts,
}

/// What has been received from directors of Linux and sent to them, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsCounts {
    /// Messages received.
    pub received: u64,
    /// Of them, those that are none, or contradict themselves.
    pub malformed: u64,
    /// Of them, those with another syncid.
    pub other_syncid: u64,
    /// Connections received.
    pub connections_received: u64,
    /// Of them, those of another service, server or mode.
    pub unknown: u64,
    /// Of them, those of a mark of the firewall.
    pub fwmarks: u64,
    /// Of them, those of IPv6.
    pub ipv6: u64,
    /// Of them, those of a protocol, a mode or a state that RVS does not have, not established, or with adjusted sequence
    /// numbers.
    pub unsupported: u64,
    /// Messages sent.
    pub sent: u64,
    /// Connections sent.
    pub connections_sent: u64,
}

/// A peer router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Where it is reached.
    pub address: SocketAddr,
    /// `away`, `joining` (it is telling of its connections) or `together`.
    pub standing: String,
    /// The version of the protocol that it speaks, as far as it is known; if it is not this router's, they do not understand each
    /// other.
    pub version: u8,
    /// Connections that are still to be sent.
    pub waiting: u64,
    /// Microseconds for which the oldest change that it has not confirmed has been waiting.
    pub lag_us: u64,
    /// Connections sent in a second.
    pub sent_a_second: u64,
    /// Connections received in a second.
    pub received_a_second: u64,
    /// How much of all connections it has been sent, from 0 to 1, while it is sent all.
    pub bulk: Option<f64>,
    /// What has gone between the two.
    #[serde(flatten)]
    pub counts: PeerCounts,
}

/// What has gone between two routers, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCounts {
    /// Datagrams sent, acknowledgements included.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Connections sent.
    pub connections_sent: u64,
    /// Of those, how many the peer has confirmed.
    pub connections_confirmed: u64,
    /// Connections that were lost on the way and sent again.
    pub connections_retold: u64,
    /// Datagrams received from the peer's address.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Connections received.
    pub connections_received: u64,
    /// Datagrams that were lost on the way to the peer.
    pub lost: u64,
    /// Datagrams from its address that it has not made.
    pub forged: u64,
    /// Datagrams from its address that have come before.
    pub replayed: u64,
    /// Calls from its address that came faster than they are answered.
    pub hasty: u64,
    /// Datagrams from its address that are of another version.
    pub other_version: u64,
    /// Datagrams from its address, or parts of them, that mean nothing.
    pub not_understood: u64,
    /// Times that all connections were sent: the peer asked for them, or too much had changed.
    pub bulks: u64,
}

/// What has become of connections that peers told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// They were not known.
    pub new: u64,
    /// They were known otherwise.
    pub changed: u64,
    /// They were known as well or better.
    pub known: u64,
    /// They had expired or been flushed, or their service or server is not here.
    pub stale: u64,
    /// The table had no room.
    pub no_room: u64,
}

/// An upgrade that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrading {
    /// What it is called.
    pub id: String,
    /// The version that hands over.
    pub from: String,
    /// The version of the program that it hands over to.
    pub to: String,
    /// That program.
    pub binary: String,
}

/// What has become of upgrades.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrades {
    /// The one that the running program has come from, if it has.
    pub last: Option<Upgrade>,
}

/// An upgrade that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// What it was called when it began.
    pub id: String,
    /// The version that has handed over.
    pub from: String,
    /// The version that runs now.
    pub to: String,
    /// Microseconds during which nothing was forwarded: from the last worker of the old program to the first of the new one.
    pub gap_us: u64,
    /// What they were spent on, in order.
    pub stages: Vec<Stage>,
    /// Why the old program runs again instead of the new one.
    pub error: Option<String>,
}

/// A stage of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// Microseconds that it took.
    pub us: u64,
}

/// What the workers count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// How many snapshots have been published.
    pub generation: u64,
    /// The connection table.
    pub table: Table,
    /// Mappings of source NAT that there are, of all pools.
    #[serde(default)]
    pub mappings: u64,
    /// Each worker's own counters.
    pub workers: Vec<Worker>,
    /// The ports, each with a queue for each worker.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// A pool of source NAT, and who has ports of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnatPool {
    /// Networks inside, as `10.0.0.0/24`.
    pub inside: Vec<String>,
    /// Addresses of the pool.
    pub outside: Vec<Ipv4Addr>,
    /// Mappings that there are.
    pub mappings: u64,
    /// Mappings that there is room for.
    pub room: u64,
    /// Blocks of ports.
    #[serde(default)]
    pub blocks: SnatBlocks,
    /// Hosts with mappings, by their addresses.
    pub hosts: Vec<SnatHost>,
}

/// Blocks of ports of a pool: without a free one, who needs another port gets none (`snat_full`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnatBlocks {
    /// How many there are, of each protocol.
    pub all: u32,
    /// How many of TCP hosts have.
    pub tcp: u32,
    /// Of UDP.
    pub udp: u32,
    /// Of pings.
    pub icmp: u32,
}

/// A host inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnatHost {
    /// Its address.
    pub inside: Ipv4Addr,
    /// The address of the pool that others see.
    pub outside: Ipv4Addr,
    /// Blocks of ports that are its own.
    pub blocks: u32,
    /// Mappings of TCP.
    pub tcp: u32,
    /// Mappings of UDP.
    pub udp: u32,
    /// Mappings of pings.
    pub icmp: u32,
}

/// How a port spreads packets over the workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name, e.g. `wan`.
    pub name: String,
    /// How many queues it has.
    pub queues: u32,
    /// What decides about a packet's queue; null with one queue, or if that is the device's own business.
    pub hashed: Option<Hashed>,
    /// What it can do, and what is used of it; null of a tagged network, or if an older RVS answers.
    #[serde(default)]
    pub device: Option<Device>,
    /// Whose wire it is on, and as which, if it is a tagged network.
    #[serde(default)]
    pub vlan: Option<Vlan>,
}

/// What a tagged network is (IEEE 802.1Q).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vlan {
    /// The port with the device.
    pub port: String,
    /// VLAN identifier.
    pub id: u16,
}

/// The device of a port: what it can do, and what is used of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// DPDK's name of it; the address of a NIC, e.g. `0000:01:00.0`.
    pub name: String,
    /// Its driver in DPDK, e.g. `net_ixgbe`.
    pub driver: String,
    /// The MAC of port and twin.
    pub mac: String,
    /// The NUMA node that it is on, if there are several.
    pub node: Option<u32>,
    /// The largest IP packet.
    pub mtu: u16,
    /// How many queues it could have.
    pub max_queues: u16,
    /// Descriptors of each receive queue.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue.
    pub tx_descriptors: u16,
    /// Whose address and port are hashed: `both`, `source` or `destination`.
    pub hashed_side: String,
    /// What it could hash, e.g. `ipv4-tcp`.
    pub rss: Vec<String>,
    /// What it could do with received packets, in DPDK's words; RVS uses none of it.
    pub rx_offloads: Vec<String>,
    /// What it could do with packets to send, in DPDK's words; RVS uses none of it.
    pub tx_offloads: Vec<String>,
    /// Whether it receives what is for other MACs; null if it has no switch for that.
    pub promiscuous: Option<bool>,
    /// Whether it has a link.
    pub link_up: bool,
    /// Mbit/s, if it is known.
    pub link_speed: Option<u32>,
    /// `reset` or `removed`: it has said so of itself, and forwards nothing.
    pub trouble: Option<String>,
    /// What it is made of, if it is a bond.
    pub members: Vec<Member>,
}

/// A device that is a member of a bond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// DPDK's name of it, as [`Device::name`].
    pub name: String,
    /// Whether the bond can send by it: it has a link, and with LACP both ends have agreed upon it.
    pub up: bool,
    /// Whether the bond does.
    pub sends: bool,
    /// Whether it has a link.
    pub link_up: bool,
    /// Mbit/s, if it is known.
    pub link_speed: Option<u32>,
}

/// A link for a person: `up 10 Gbit/s`.
#[derive(Clone, Copy, Debug)]
pub struct LinkText {
    /// Whether it is up.
    pub up: bool,
    /// Mbit/s, if it is known.
    pub speed: Option<u32>,
}

impl fmt::Display for LinkText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.up, self.speed) {
            (false, _) => f.write_str("down"),
            (true, None) => f.write_str("up"),
            (true, Some(speed)) if speed >= 1000 && speed.is_multiple_of(100) => {
                write!(f, "up {} Gbit/s", f64::from(speed) / 1000.0)
            }
            (true, Some(speed)) => write!(f, "up {speed} Mbit/s"),
        }
    }
}

/// What a device hashes of an IPv4 packet to choose its queue (RSS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashed {
    /// The addresses.
    pub addresses: bool,
    /// The ports too, if it is TCP.
    pub tcp_ports: bool,
    /// The ports too, if it is UDP.
    pub udp_ports: bool,
}

/// The connection table as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// How many entries it has room for.
    pub slots: u64,
    /// How many are in use.
    pub connections: u64,
}

/// One worker's counters. `received` = `forwarded` + all `punted` + all `dropped` + `waiting`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Counted from 0, in the order of `workers.cores`.
    pub index: u32,
    /// The core it runs on.
    pub core: u32,
    /// How often it has looked at its queues.
    pub polls: u64,
    /// How often it found nothing there.
    pub empty_polls: u64,
    /// How often it found something.
    pub bursts: u64,
    /// Packets taken from queues.
    pub received: u64,
    /// Packets sent on: to a real server or a client, or routed.
    pub forwarded: u64,
    /// Packets that concern no service, and were routed: of the forwarded, unless a port did not take them.
    pub routed: u64,
    /// Bytes of these.
    pub routed_bytes: u64,
    /// Packets handed to Linux, by reason.
    pub punted: BTreeMap<String, u64>,
    /// Packets dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Fragments that wait now for the first of their datagram.
    pub waiting: u64,
    /// Fragments that have had to wait.
    pub held: u64,
    /// Replies 227 of FTP servers that name neither the virtual address nor could be made to.
    #[serde(default)]
    pub ftp_unchanged: u64,
    /// Packets from Linux sent out of a port.
    pub injected: u64,
    /// Packets from Linux that a port did not take.
    pub inject_dropped: u64,
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients to real servers.
    pub packets_in: u64,
    /// Packets from real servers to clients.
    pub packets_out: u64,
    /// Bytes from clients to real servers.
    pub bytes_in: u64,
    /// Bytes from real servers to clients.
    pub bytes_out: u64,
}

/// A change of what is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What happened to it.
    pub sign: Sign,
    /// The service, e.g. `tcp/192.0.2.10:80`; none if a setting of the router itself has changed.
    pub service: Option<String>,
    /// The server; none if the service itself has changed.
    pub server: Option<SocketAddr>,
    /// What of it, e.g. `weight 1 -> 3`; may be empty.
    pub what: String,
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: one more than that of the event before. Starts at 1 with the program.
    pub sequence: u64,
    /// When, in UTC as of RFC 3339: `2026-11-26T01:30:40.123Z`.
    pub time: String,
    /// What, e.g. `server_down`.
    pub event: String,
    /// The same for a person.
    pub text: String,
    /// What belongs to it: `service`, `server`, `reason`, ...
    #[serde(flatten)]
    pub details: BTreeMap<String, serde_json::Value>,
}

/// What happened to a service or a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sign {
    /// It is new.
    #[serde(rename = "+")]
    Added,
    /// It is gone.
    #[serde(rename = "-")]
    Removed,
    /// It is another than before.
    #[serde(rename = "~")]
    Changed,
}

/// As a line of a diff.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.sign {
            Sign::Added => '+',
            Sign::Removed => '-',
            Sign::Changed => '~',
        };
        match (&self.service, &self.server) {
            (None, _) => write!(f, "{sign}")?,
            (Some(service), None) => write!(f, "{sign} service {service}")?,
            (Some(service), Some(server)) => write!(f, "{sign} server {service} {server}")?,
        }
        if self.what.is_empty() { Ok(()) } else { write!(f, " {}", self.what) }
    }
}

/// A reload that succeeded, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Of the snapshot now in force.
    pub generation: u64,
    /// How many services it has.
    pub services: u64,
    /// How many real servers it has, each counted once a service.
    pub servers: u64,
    /// What has changed, or would.
    pub changes: Vec<Change>,
    /// Live changes that the file has overruled, e.g. `server tcp/192.0.2.10:80 10.0.0.11:8080`.
    pub overruled: Vec<String>,
    /// Nothing has been put in force: it was asked what would change.
    pub dry_run: bool,
}

/// What is to become of a server, without the file. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerPatch {
    /// Its weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// `enabled`, `drained` or `disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Seconds after which a drained server is disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
}

/// A server that is added without the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewServer {
    /// Address and port.
    pub address: SocketAddr,
    /// 1 if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// A live change that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Of the snapshot now in force.
    pub generation: u64,
    /// What has changed; nothing if it was so before.
    pub changes: Vec<Change>,
    /// Until when that holds, for a person to read.
    pub holds: String,
}

/// How far a router that has been told to stop has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// `withdrawing`: virtual addresses are still on twins; `draining`: packets still come; `stopping`: it ends now.
    pub state: String,
    /// Packets of services since the last line.
    pub packets: u64,
    /// Seconds until it ends whatever comes.
    pub remaining: u64,
    /// The same for a person.
    pub text: String,
}

/// The running state is in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The file.
    pub path: String,
    /// What was written into it.
    pub changes: Vec<Change>,
}

/// Which connections; all conditions that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Of this service, e.g. `tcp/192.0.2.10:80`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// With this real server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<SocketAddr>,
    /// Of this client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// Of all clients, servers and services; must be said when nothing else is.
    #[serde(default)]
    pub all: bool,
}

/// Connections have been forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// How many.
    pub connections: u64,
}

/// What went wrong, with any status but 200.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For a person to read; may have several lines.
    pub error: String,
}
