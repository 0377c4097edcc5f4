//! What is counted, and by whom.
//!
//! Every counter has one writer: a worker. A writer adds with a plain load and store, no locked
//! instruction; readers sum over the workers whenever they like and disturb nobody. The exception are
//! the gauges of live connections, which least-connection schedulers of all workers read and change:
//! one atomic per real server, touched only when a connection begins, ends or changes between active and
//! inactive.
//!
//! Every packet that a worker receives is counted under exactly one name: forwarded, one of [`Punt`], or
//! one of [`Drop`]; but for fragments that wait, which will be.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::service::{Limits, State, named};

named! {
    /// Why a packet was handed to Linux.
    Punt {
        /// Neither IPv4 nor IPv6: ARP, LLDP and the like.
        NotIp = "not_ip",
        /// ICMPv6 by which neighbours and routers find each other.
        Neighbour = "neighbour",
        /// 802.1Q or 802.1ad tagged.
        Vlan = "vlan",
        /// To a multicast or broadcast MAC.
        Multicast = "multicast",
        /// ICMP or ICMPv6, but no error about a connection.
        Icmp = "icmp",
        /// Another IP protocol than TCP, UDP and ICMP; or to be routed by its sender's list (IPv6).
        OtherProtocol = "other_protocol",
        /// A fragment that concerns no service, or whose first has been handed to Linux.
        Fragment = "fragment",
        /// No service, and no reply of a connection that is known.
        NoService = "no_service",
        /// To a service, but of no connection, and does not begin one.
        NoConnection = "no_connection",
        /// From a real server's service to the router itself, and of no connection: the answer to a health check.
        ServerReply = "server_reply",
        /// Rewritten, but the next hop's MAC is not known yet: Linux finds it and sends the packet.
        Unresolved = "unresolved",
        /// Of a connection whose server has been removed: both ends are told by a RST.
        Reset = "reset",
        /// Too long for the way, in the tunnel to its server or routed, and may be fragmented: Linux sends the fragments.
        ToFragment = "to_fragment",
        /// An ICMP error about a tunnel's packet: the client whose packet was in it is told.
        TunnelError = "tunnel_error",
        /// To a real server that is this router itself, and counted as its connection's.
        Local = "local",
    }
}

named! {
    /// Why a packet was dropped.
    Drop {
        /// Shorter than an Ethernet header.
        Runt = "runt",
        /// To another host's MAC.
        OtherHost = "other_host",
        /// IP version or lengths contradict each other or the frame.
        BadIpHeader = "bad_ip_header",
        /// The IPv4 header's checksum is wrong.
        BadIpChecksum = "bad_ip_checksum",
        /// The TCP or UDP header is cut off or contradicts itself.
        BadTransportHeader = "bad_transport_header",
        /// An ICMP error about a packet to a real server that is of no connection, and not routed: it shows the server's address.
        IcmpError = "icmp_error",
        /// A fragment whose length or place in its datagram cannot be.
        BadFragment = "bad_fragment",
        /// A first fragment without a whole TCP or UDP header, or a later one that would be written over it.
        FragmentTiny = "fragment_tiny",
        /// A second first fragment of a datagram, with other ports.
        FragmentOverlap = "fragment_overlap",
        /// A fragment of a datagram whose first has been dropped.
        FragmentOrphan = "fragment_orphan",
        /// A first fragment of SCTP whose port would change: the checksum covers the whole datagram, whose length nobody knows yet. Keep the port, or
        /// have the ends send shorter packets, as SCTP does by itself.
        SctpFragment = "sctp_fragment",
        /// A fragment that has waited a second for the first of its datagram.
        FragmentExpired = "fragment_expired",
        /// A fragment that waited for the first of its datagram, and had to make room for later ones.
        FragmentNoRoom = "fragment_no_room",
        /// The TTL is used up.
        TtlExpired = "ttl_expired",
        /// The service has no usable real server.
        NoServer = "no_server",
        /// The connection table has no room.
        TableFull = "table_full",
        /// Spread over several buffers: longer than the device should let through.
        Scattered = "scattered",
        /// It would begin a connection, but is from a virtual address, or from one that no host has for all: 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/3, `::`, `::1`, fe80::/10, ff00::/8.
        Martian = "martian",
        /// To a service, from a source that a list keeps out (`[sources]`): it may begin no connection.
        SourceDenied = "source_denied",
        /// The service has begun as many connections as `rate` allows.
        RateLimited = "rate_limited",
        /// Its source has begun as many connections as `source_rate` allows, or has as many as `source_connections` does.
        SourceLimited = "source_limited",
        /// More handshakes are left half done than `half_open_rate` allows: a SYN for full NAT, which needs a local port, or an acknowledgement beyond as
        /// many a second.
        SynFlood = "syn_flood",
        /// The MAC of a direct routing server is not known; control asks Linux for it.
        NoNeighbour = "no_neighbour",
        /// No route to the destination.
        NoRoute = "no_route",
        /// Longer than the MTU of the output port.
        TooBig = "too_big",
        /// The output port's queue was full, or its device is taken out.
        TxFull = "tx_full",
        /// Linux did not fetch its packets fast enough.
        PuntFull = "punt_full",
        /// The device has left no room in front of the packet for a tunnel's headers.
        NoHeadroom = "no_headroom",
        /// From a host that source NAT hides, of no mapping, and begins none: TCP without SYN, SCTP, a protocol without ports, the answer to a ping; or on another port than leads back to it.
        SnatNone = "snat_none",
        /// From a host that source NAT hides: it has all ports that it may have, or the pool has none left.
        SnatFull = "snat_full",
        /// With full NAT: no local port is free for another connection, or that of this one is lost.
        NoLocalPort = "no_local_port",
    }
}

/// A counter with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds. Only the owner may: two writers would lose counts.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets a value that is not a count.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Traffic of a real server, or of anything else with two directions. "In" is towards the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections begun.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients, IP header included.
    pub bytes_in: u64,
    /// Bytes to clients, IP header included.
    pub bytes_out: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        self.connections += other.connections;
        self.packets_in += other.packets_in;
        self.packets_out += other.packets_out;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }
}

/// One worker's counts of one real server's traffic; a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct TrafficCounters {
    /// See [`Traffic::connections`].
    pub connections: Counter,
    /// By direction: towards the server, towards the client.
    packets: [Counter; 2],
    bytes: [Counter; 2],
}

impl TrafficCounters {
    /// Counts packets from clients (direction 0) or to clients (1).
    #[inline]
    pub fn add(&self, direction: usize, packets: u64, bytes: u64) {
        self.packets[direction & 1].add(packets);
        self.bytes[direction & 1].add(bytes);
    }

    /// The counts so far.
    pub fn get(&self) -> Traffic {
        Traffic {
            connections: self.connections.get(),
            packets_in: self.packets[0].get(),
            packets_out: self.packets[1].get(),
            bytes_in: self.bytes[0].get(),
            bytes_out: self.bytes[1].get(),
        }
    }
}

/// What the table has of a real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Active connections.
    pub active: u32,
    /// Inactive ones.
    pub inactive: u32,
    /// Clients whose next connections go to it ([`State::Template`]); IPVS' `PersistConn`.
    pub templates: u32,
}

impl Live {
    /// Adds a word in this state.
    pub fn add(&mut self, state: State) {
        let count = match state {
            State::Template => &mut self.templates,
            state if state.is_active() => &mut self.active,
            _ => &mut self.inactive,
        };
        *count += 1;
    }
}

impl AddAssign for Live {
    fn add_assign(&mut self, other: Live) {
        self.active += other.active;
        self.inactive += other.inactive;
        self.templates += other.templates;
    }
}

/// Live connections of a real server, active and inactive, and its templates, changed by whoever wins a transition.
#[derive(Debug, Default)]
pub struct Gauge {
    connections: AtomicU64,
    templates: AtomicU32,
    /// The upper limit that it has reached, if it has not come below the lower one since; else 0. Who raises the limit has it try again.
    full_at: AtomicU32,
}

impl Gauge {
    const ACTIVE: u64 = 1;
    const INACTIVE: u64 = 1 << 32;

    /// One that shows so many.
    pub fn of(live: Live) -> Gauge {
        let connections = u64::from(live.active) * Self::ACTIVE + u64::from(live.inactive) * Self::INACTIVE;
        Gauge {
            connections: AtomicU64::new(connections),
            templates: AtomicU32::new(live.templates),
            full_at: AtomicU32::new(0),
        }
    }

    /// A word in this state begins.
    #[inline]
    pub fn enter(&self, state: State) {
        // Relaxed: the count stands for itself; schedulers may read it a moment late.
        match state {
            State::Template => self.templates.fetch_add(1, Ordering::Relaxed).into(),
            state => self.connections.fetch_add(Self::one(state), Ordering::Relaxed),
        };
    }

    /// A word in this state ends.
    #[inline]
    pub fn leave(&self, state: State) {
        match state {
            State::Template => self.templates.fetch_sub(1, Ordering::Relaxed).into(),
            state => self.connections.fetch_sub(Self::one(state), Ordering::Relaxed),
        };
    }

    const fn one(state: State) -> u64 {
        if state.is_active() { Self::ACTIVE } else { Self::INACTIVE }
    }

    /// A connection changes between active and inactive.
    #[inline]
    pub fn change(&self, to_active: bool) {
        // One addition, so that no reader sees the connection in both or in neither.
        let step = if to_active {
            Self::ACTIVE.wrapping_sub(Self::INACTIVE)
        } else {
            Self::INACTIVE.wrapping_sub(Self::ACTIVE)
        };
        self.connections.fetch_add(step, Ordering::Relaxed);
    }

    /// Shows what another one shows, too.
    pub fn add(&self, other: &Gauge) {
        self.connections.fetch_add(other.connections.load(Ordering::Relaxed), Ordering::Relaxed);
        self.templates.fetch_add(other.templates(), Ordering::Relaxed);
    }

    /// Another gauge that shows the same now.
    pub fn copy(&self) -> Gauge {
        let (active, inactive) = self.get();
        let full_at = AtomicU32::new(self.full_at.load(Ordering::Relaxed));
        Gauge { full_at, ..Gauge::of(Live { active, inactive, templates: self.templates() }) }
    }

    /// Active and inactive connections.
    #[inline]
    pub fn get(&self) -> (u32, u32) {
        let both = self.connections.load(Ordering::Relaxed);
        (both as u32, (both >> 32) as u32)
    }

    /// Whether a server with these limits gets no new connections. To be asked when one has begun, too: between the limits
    /// it depends on where it comes from. Workers that ask at the same moment may each add one beyond the limit.
    pub fn is_full(&self, limits: Limits) -> bool {
        let (active, inactive) = self.get();
        let connections = active.saturating_add(inactive);
        let full_at = self.full_at.load(Ordering::Relaxed);
        let was = full_at >= limits.upper;
        let is = connections >= limits.upper || was && connections >= limits.lower;
        if is != was {
            self.full_at.store(if is { limits.upper } else { 0 }, Ordering::Relaxed);
        }
        is
    }

    /// Templates.
    pub fn templates(&self) -> u32 {
        self.templates.load(Ordering::Relaxed)
    }
}

/// What one worker counts.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct WorkerCounters {
    /// Looks at a receive queue.
    pub polls: Counter,
    /// Looks that found nothing.
    pub empty_polls: Counter,
    /// Looks that found packets.
    pub bursts: Counter,
    /// Packets received.
    pub received: Counter,
    /// Packets transmitted: for services, and what was routed.
    pub forwarded: Counter,
    /// Packets that concern no service and were routed ([`crate::snapshot::Snapshot::routing`]). Each is counted elsewhere as well: forwarded,
    /// unless the port did not take it.
    pub routed: Counter,
    /// Their bytes, IP header included.
    pub routed_bytes: Counter,
    /// Fragments that had to wait for the first of their datagram. Each is counted elsewhere as well, when it waits no more.
    pub held: Counter,
    /// How many wait now: what of the received is not counted elsewhere yet.
    pub waiting: Counter,
    /// Replies 227 of FTP servers that name neither the virtual address nor could be made to. Each is counted elsewhere as well.
    pub ftp_unchanged: Counter,
    /// Packets handed to Linux, by [`Punt`].
    pub punted: [Counter; Punt::ALL.len()],
    /// Packets dropped, by [`Drop`].
    pub dropped: [Counter; Drop::ALL.len()],
    /// Packets of Linux transmitted. Not received, so not part of the sum.
    pub injected: Counter,
    /// Packets of Linux that the port did not take.
    pub inject_dropped: Counter,
    /// Traffic of all services.
    pub traffic: TrafficCounters,
    /// Complete sweeps over this worker's share of the table.
    pub sweeps: Counter,
    /// The newest snapshot generation that this worker has used.
    pub generation: Counter,
}

impl WorkerCounters {
    /// Counts packets handed to Linux.
    #[inline]
    pub fn punted(&self, reason: Punt, n: u64) {
        self.punted[reason as usize].add(n);
    }

    /// Counts dropped packets.
    #[inline]
    pub fn dropped(&self, reason: Drop, n: u64) {
        self.dropped[reason as usize].add(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_keeps_its_halves_apart() {
        let gauge = Gauge::default();
        gauge.enter(State::Established);
        gauge.enter(State::TimeWait);
        gauge.enter(State::Template);
        gauge.change(false);
        assert_eq!(gauge.get(), (0, 2));
        gauge.change(true);
        gauge.change(true);
        gauge.leave(State::SynRecv);
        assert_eq!((gauge.get(), gauge.templates()), ((1, 0), 1));
        let copy = Gauge::of(Live { active: u32::MAX, inactive: 7, templates: 3 }).copy();
        assert_eq!((copy.get(), copy.templates()), ((u32::MAX, 7), 3));
    }

    #[test]
    fn between_the_limits_it_is_as_it_was() {
        let (gauge, limits) = (Gauge::default(), Limits { upper: 4, lower: 2 });
        let mut seen = Vec::new();
        for step in [1, 1, 1, 1, -1, -1, 1, -1, -1, 1, 1, 1i32] {
            if step > 0 {
                gauge.enter(State::Established)
            } else {
                gauge.leave(State::Established)
            }
            seen.push((gauge.get().0, gauge.is_full(limits)));
        }
        let full = [(4, true), (3, true), (2, true), (3, true), (2, true)];
        assert_eq!(seen[..3], [(1, false), (2, false), (3, false)]);
        assert_eq!(seen[3..8], full);
        assert_eq!(seen[8..], [(1, false), (2, false), (3, false), (4, true)]);
        assert!(gauge.copy().is_full(limits));
        assert!(!gauge.is_full(Limits { upper: 5, lower: 2 }), "it has been raised");
        assert!(gauge.is_full(Limits { upper: 3, lower: 2 }), "it has been lowered");
        assert_eq!([1, 2, 3, 4, 5, 100].map(|upper| Limits::new(upper, None).lower), [1, 2, 3, 3, 4, 75]);
        assert_eq!(Limits::new(100, Some(10)).lower, 10);
    }

    #[test]
    fn reasons_have_distinct_names() {
        let mut names: Vec<_> = Punt::ALL.iter().map(|r| r.name()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Punt::ALL.len());
    }
}
