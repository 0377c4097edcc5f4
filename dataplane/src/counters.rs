//! What is counted, and by whom.
//!
//! Every counter has one writer: a worker. A writer adds with a plain load and store, no locked
//! instruction; readers sum over the workers whenever they like and disturb nobody. The exception are
//! the gauges of live connections, which least-connection schedulers of all workers read and change:
//! one atomic per real server, touched only when a connection begins, ends or changes between active and
//! inactive.
//!
//! Every packet that a worker receives is counted under exactly one name: forwarded, one of [`Punt`], or
//! one of [`Drop`].

use std::sync::atomic::{AtomicU64, Ordering};

use crate::service::named;

named! {
    /// Why a packet was handed to Linux.
    Punt {
        /// Not IPv4: ARP, IPv6, LLDP and the like.
        NotIpv4 = "not_ipv4",
        /// 802.1Q or 802.1ad tagged.
        Vlan = "vlan",
        /// To a multicast or broadcast MAC.
        Multicast = "multicast",
        /// ICMP.
        Icmp = "icmp",
        /// Another IP protocol than TCP, UDP and ICMP.
        OtherProtocol = "other_protocol",
        /// A fragment that concerns no service.
        Fragment = "fragment",
        /// No service and no real server's reply.
        NoService = "no_service",
        /// To a service, but of no connection, and does not begin one.
        NoConnection = "no_connection",
        /// From a real server's service, but of no connection: the answer to a health check, or a late packet.
        ServerReply = "server_reply",
        /// Rewritten, but the next hop's MAC is not known yet: Linux finds it and sends the packet.
        Unresolved = "unresolved",
        /// Of a connection whose server has been removed: both ends are told by a RST.
        Reset = "reset",
    }
}

named! {
    /// Why a packet was dropped.
    Drop {
        /// Shorter than an Ethernet header.
        Runt = "runt",
        /// To another host's MAC.
        OtherHost = "other_host",
        /// IPv4 version or lengths contradict each other or the frame.
        BadIpHeader = "bad_ip_header",
        /// The IPv4 header's checksum is wrong.
        BadIpChecksum = "bad_ip_checksum",
        /// The TCP or UDP header is cut off or contradicts itself.
        BadTransportHeader = "bad_transport_header",
        /// An ICMP error about a packet to a real server that is of no connection: it shows the server's address.
        IcmpError = "icmp_error",
        /// A fragment to or from a service.
        ServiceFragment = "service_fragment",
        /// The TTL is used up.
        TtlExpired = "ttl_expired",
        /// The service has no usable real server.
        NoServer = "no_server",
        /// The connection table has no room.
        TableFull = "table_full",
        /// Spread over several buffers: longer than the device should let through.
        Scattered = "scattered",
        /// From a virtual address to a service.
        Martian = "martian",
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

/// Live connections of a real server, active and inactive, changed by whoever wins a transition.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    const ACTIVE: u64 = 1;
    const INACTIVE: u64 = 1 << 32;

    /// One that shows so many connections.
    pub fn of(active: u32, inactive: u32) -> Gauge {
        Gauge(AtomicU64::new(u64::from(active) * Self::ACTIVE + u64::from(inactive) * Self::INACTIVE))
    }

    /// A connection begins.
    #[inline]
    pub fn enter(&self, active: bool) {
        // Relaxed: the count stands for itself; schedulers may read it a moment late.
        self.0.fetch_add(if active { Self::ACTIVE } else { Self::INACTIVE }, Ordering::Relaxed);
    }

    /// A connection ends.
    #[inline]
    pub fn leave(&self, active: bool) {
        self.0.fetch_sub(if active { Self::ACTIVE } else { Self::INACTIVE }, Ordering::Relaxed);
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
        self.0.fetch_add(step, Ordering::Relaxed);
    }

    /// Another gauge that shows the same now.
    pub fn copy(&self) -> Gauge {
        Gauge(AtomicU64::new(self.0.load(Ordering::Relaxed)))
    }

    /// Active and inactive connections.
    #[inline]
    pub fn get(&self) -> (u32, u32) {
        let both = self.0.load(Ordering::Relaxed);
        (both as u32, (both >> 32) as u32)
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
    /// Packets transmitted for services.
    pub forwarded: Counter,
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
        gauge.enter(true);
        gauge.enter(false);
        gauge.change(false);
        assert_eq!(gauge.get(), (0, 2));
        gauge.change(true);
        gauge.change(true);
        gauge.leave(true);
        assert_eq!(gauge.get(), (1, 0));
        assert_eq!(Gauge::of(u32::MAX, 7).get(), (u32::MAX, 7));
    }

    #[test]
    fn reasons_have_distinct_names() {
        let mut names: Vec<_> = Punt::ALL.iter().map(|r| r.name()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Punt::ALL.len());
    }
}
