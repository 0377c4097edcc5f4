//! What can happen, as JSON and for a person.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Serialize;

use crate::admin::api;
use crate::config::Config;
use crate::health::Verdict;
use crate::stages::Stages;

/// What can happen. As JSON: the kind under `event`, beside its fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Kind {
    /// RVS balances.
    Started {
        /// Of the program.
        version: &'static str,
        /// How many services there are.
        services: u64,
        /// How many real servers, each counted once a service.
        servers: u64,
        /// How long it took.
        stages: Stages,
    },
    /// The connections of the process before go on.
    TableAdopted {
        /// How many.
        connections: u64,
        /// How many do not.
        removed: u64,
        /// How long it took.
        milliseconds: u64,
    },
    /// The connections of the process before cannot go on, and those that are kept are forgotten.
    TableRefused {
        /// Why.
        reason: String,
    },
    /// RVS has been told to stop.
    Stopping {
        /// By which signal, or `rvs stop`.
        signal: &'static str,
    },
    /// RVS hands over to another program, which has proven itself.
    Upgrading {
        /// Of that program.
        version: String,
    },
    /// RVS has taken over from another program.
    Upgraded {
        /// The version of that program.
        from: String,
        /// Of this program.
        version: &'static str,
        /// How long nothing was forwarded.
        milliseconds: u64,
    },
    /// Another program cannot take over: it has not proven itself, and nothing has changed, or it could not be started, and
    /// this one was started again.
    UpgradeFailed {
        /// Why.
        error: String,
    },
    /// A server has passed enough checks to be used again.
    ServerUp {
        /// "tcp/192.0.2.10:80".
        service: String,
        /// The server's address and port.
        server: SocketAddr,
        /// How many in a row it has passed.
        checks: u32,
    },
    /// A server has failed enough checks to be used no longer.
    ServerDown {
        /// "tcp/192.0.2.10:80".
        service: String,
        /// The server's address and port.
        server: SocketAddr,
        /// How many in a row it has failed.
        checks: u32,
        /// What the last of them said.
        reason: String,
    },
    /// A server's checks pass, but it has gone down too often lately.
    ServerHeld {
        /// "tcp/192.0.2.10:80".
        service: String,
        /// The server's address and port.
        server: SocketAddr,
        /// How long it stays down.
        seconds: u64,
    },
    /// Enough servers of a service are up again.
    QuorumGained {
        /// "tcp/192.0.2.10:80".
        service: String,
        /// The sum of their weights.
        weight: u64,
    },
    /// Too few servers of a service are up.
    QuorumLost {
        /// "tcp/192.0.2.10:80".
        service: String,
        /// The sum of their weights.
        weight: u64,
    },
    /// A hook could not be run, ended with an error, or was killed because it did not end.
    HookFailed {
        /// "tcp/192.0.2.10:80".
        service: String,
        /// The program.
        hook: String,
        /// What it was run for: `up`, `down`, `quorum_up` or `quorum_down`.
        occasion: &'static str,
        /// "exit status 3: no such pager".
        reason: String,
    },
    /// Something was changed without the file.
    ChangedLive {
        /// What, as a line of a diff.
        change: String,
    },
    /// A configuration has been read again and is in force.
    ReloadApplied {
        /// Of the snapshot with it.
        generation: u64,
        /// How many services there are.
        services: u64,
        /// How many real servers, each counted once a service.
        servers: u64,
    },
    /// A configuration has been read again and found wanting; nothing has changed.
    ReloadRefused {
        /// Of the snapshot that stays in force.
        generation: u64,
        /// What is wrong; may have several lines.
        error: String,
    },
    /// The connection table has little room left.
    TableNearlyFull {
        /// How many connections there are.
        connections: u64,
        /// How many it has room for.
        slots: u64,
    },
    /// The connection table has room again.
    TableRelieved {
        /// How many connections there are.
        connections: u64,
        /// How many it has room for.
        slots: u64,
    },
    /// Packets are dropped because something is full.
    OverloadBegins {
        /// The counter that moves: `table_full`, `tx_full` or `punt_full`.
        reason: &'static str,
        /// How many packets in the last two seconds.
        packets: u64,
    },
    /// None have been for a while.
    OverloadEnds {
        /// The counter that moved.
        reason: &'static str,
        /// How many packets it took in all.
        packets: u64,
    },
    /// More handshakes are left half done than `half_open_rate` allows: SYNs leave nothing in the table.
    SynFloodBegins {
        /// "tcp/192.0.2.10:80".
        service: String,
        /// How many SYNs in the last two seconds.
        packets: u64,
    },
    /// There have been no such SYNs for a while.
    SynFloodEnds {
        /// "tcp/192.0.2.10:80".
        service: String,
        /// How many SYNs there were in all.
        packets: u64,
    },
    /// Somebody has taken a virtual address from its twin.
    AddressTaken {
        /// Which one.
        address: IpAddr,
    },
    /// A virtual address is on a twin now, and its services are live.
    AddressGained {
        /// Which one.
        address: IpAddr,
    },
    /// A virtual address is on no twin any more, and its services are Linux'.
    AddressLost {
        /// Which one.
        address: IpAddr,
    },
    /// A virtual address is here, and another machine on the segment says that it has it as well.
    AddressContested {
        /// Which one.
        address: IpAddr,
        /// The other machine's.
        mac: String,
    },
    /// A virtual address goes to its twin, for others to send its packets here.
    AddressAnnounced {
        /// Which one.
        address: IpAddr,
    },
    /// A virtual address is taken from its twin. What comes for it all the same is forwarded.
    AddressWithdrawn {
        /// Which one.
        address: IpAddr,
        /// Why.
        reason: String,
    },
    /// Linux refuses to put a virtual address on its twin, or to take it away.
    AddressRefused {
        /// Which one.
        address: IpAddr,
        /// What Linux says.
        error: String,
    },
    /// A peer router and this one know the same connections.
    PeerJoined {
        /// Where it is reached.
        peer: SocketAddr,
    },
    /// A peer router is not heard any more.
    PeerAway {
        /// Where it was reached.
        peer: SocketAddr,
    },
    /// A peer router speaks another version of the protocol, so that the two do not understand each other.
    PeerVersion {
        /// Where it is reached.
        peer: SocketAddr,
        /// What it speaks.
        theirs: u8,
        /// What this router speaks.
        ours: u8,
    },
    /// A director of Linux has told of connections for the first time.
    IpvsHeard {
        /// Its address.
        director: Ipv4Addr,
    },
    /// A director of Linux tells of connections with another syncid than ours, and is not listened to.
    IpvsOtherSyncid {
        /// Its address.
        director: Ipv4Addr,
        /// Its syncid.
        syncid: u8,
    },
    /// A port has a link again.
    LinkUp {
        /// The port's name.
        port: String,
        /// Mbit/s, if it is known.
        speed: Option<u32>,
    },
    /// A port has no link.
    LinkDown {
        /// The port's name.
        port: String,
    },
    /// A bond can send by this member again.
    MemberUp {
        /// The port's name.
        port: String,
        /// DPDK's name of the member.
        member: String,
    },
    /// A bond cannot send by this member: it has no link, or the other end does not agree (LACP).
    MemberDown {
        /// The port's name.
        port: String,
        /// DPDK's name of the member.
        member: String,
    },
    /// The device of a port has been reset by somebody else, and forwards nothing until it is opened anew.
    PortReset {
        /// The port's name.
        port: String,
    },
    /// The device of a port has been taken out.
    PortRemoved {
        /// The port's name.
        port: String,
    },
    /// The device of a port that had been taken out is back, or another one is in its place, and the port works again.
    PortReturned {
        /// The port's name.
        port: String,
    },
    /// Linux' network configuration cannot be followed for the moment.
    LinuxLost {
        /// Why.
        error: String,
    },
    /// The reader was so slow, or asked for what is so old, that events are gone.
    Missed {
        /// How many.
        events: u64,
    },
}

impl Kind {
    /// RVS balances by this configuration.
    pub fn started(config: &Config, stages: Stages) -> Kind {
        let servers = config.services.iter().map(|service| service.servers.len() as u64).sum();
        let services = config.services.len() as u64;
        Kind::Started { version: env!("CARGO_PKG_VERSION"), services, servers, stages }
    }

    /// What came of a reload; `generation` is what is in force after it.
    pub fn of_reload(result: &anyhow::Result<api::Reloaded>, generation: u64) -> Kind {
        match result {
            Ok(api::Reloaded { generation, services, servers, .. }) => {
                Kind::ReloadApplied { generation: *generation, services: *services, servers: *servers }
            }
            Err(error) => Kind::ReloadRefused { generation, error: format!("{error:#}") },
        }
    }

    /// What a verdict means for a server of a service.
    pub fn of_verdict(verdict: &Verdict, service: &str, server: SocketAddr) -> Kind {
        let (service, checks) = (service.to_owned(), verdict.checks);
        if verdict.up {
            Kind::ServerUp { service, server, checks }
        } else {
            Kind::ServerDown { service, server, checks, reason: verdict.reason.clone() }
        }
    }

    /// As it stands in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Started { .. } => "started",
            Kind::TableAdopted { .. } => "table_adopted",
            Kind::TableRefused { .. } => "table_refused",
            Kind::Stopping { .. } => "stopping",
            Kind::Upgrading { .. } => "upgrading",
            Kind::Upgraded { .. } => "upgraded",
            Kind::UpgradeFailed { .. } => "upgrade_failed",
            Kind::ServerUp { .. } => "server_up",
            Kind::ServerDown { .. } => "server_down",
            Kind::ServerHeld { .. } => "server_held",
            Kind::QuorumGained { .. } => "quorum_gained",
            Kind::QuorumLost { .. } => "quorum_lost",
            Kind::HookFailed { .. } => "hook_failed",
            Kind::ChangedLive { .. } => "changed_live",
            Kind::ReloadApplied { .. } => "reload_applied",
            Kind::ReloadRefused { .. } => "reload_refused",
            Kind::TableNearlyFull { .. } => "table_nearly_full",
            Kind::TableRelieved { .. } => "table_relieved",
            Kind::OverloadBegins { .. } => "overload_begins",
            Kind::OverloadEnds { .. } => "overload_ends",
            Kind::SynFloodBegins { .. } => "syn_flood_begins",
            Kind::SynFloodEnds { .. } => "syn_flood_ends",
            Kind::AddressTaken { .. } => "address_taken",
            Kind::AddressGained { .. } => "address_gained",
            Kind::AddressLost { .. } => "address_lost",
            Kind::AddressContested { .. } => "address_contested",
            Kind::AddressAnnounced { .. } => "address_announced",
            Kind::AddressWithdrawn { .. } => "address_withdrawn",
            Kind::AddressRefused { .. } => "address_refused",
            Kind::PeerJoined { .. } => "peer_joined",
            Kind::PeerAway { .. } => "peer_away",
            Kind::PeerVersion { .. } => "peer_version",
            Kind::IpvsHeard { .. } => "ipvs_heard",
            Kind::IpvsOtherSyncid { .. } => "ipvs_other_syncid",
            Kind::LinkUp { .. } => "link_up",
            Kind::LinkDown { .. } => "link_down",
            Kind::MemberUp { .. } => "member_up",
            Kind::MemberDown { .. } => "member_down",
            Kind::PortReset { .. } => "port_reset",
            Kind::PortRemoved { .. } => "port_removed",
            Kind::PortReturned { .. } => "port_returned",
            Kind::LinuxLost { .. } => "linux_lost",
            Kind::Missed { .. } => "missed",
        }
    }
}

/// For a person, in one line unless an error has more.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Started { version, services, servers, stages } => {
                write!(f, "RVS {version} has started: services {services}, real servers {servers} ({stages})")
            }
            Kind::TableAdopted { connections, removed, milliseconds } => {
                write!(
                    f,
                    "connections go on that were there before: {connections} (not: {removed}; {milliseconds} ms)"
                )
            }
            Kind::TableRefused { reason } => {
                write!(f, "connections that were there before are forgotten: {reason}")
            }
            Kind::Stopping { signal } => write!(f, "RVS stops ({signal})"),
            Kind::Upgrading { version } => write!(f, "RVS hands over to version {version}"),
            Kind::Upgraded { from, version, milliseconds } => {
                write!(
                    f,
                    "RVS {version} has taken over from {from}; nothing was forwarded for {milliseconds} ms"
                )
            }
            Kind::UpgradeFailed { error } => write!(f, "upgrade failed: {error}"),
            Kind::ServerUp { service, server, checks } => {
                write!(f, "{service}: {server} is up (checks passed in a row: {checks})")
            }
            Kind::ServerDown { service, server, checks, reason } => {
                write!(f, "{service}: {server} is down: {reason} (checks failed in a row: {checks})")
            }
            Kind::ServerHeld { service, server, seconds } => {
                write!(f, "{service}: {server} has gone down too often and is held down for {seconds} s")
            }
            Kind::QuorumGained { service, weight } => {
                write!(f, "{service}: quorum gained (weight of the servers that are up: {weight})")
            }
            Kind::QuorumLost { service, weight } => {
                write!(f, "{service}: quorum lost (weight of the servers that are up: {weight})")
            }
            Kind::HookFailed { service, hook, occasion, reason } => {
                write!(f, "{service}: hook {hook} ({occasion}) has failed: {reason}")
            }
            Kind::ChangedLive { change } => write!(f, "changed without the file: {change}"),
            Kind::ReloadApplied { generation, services, servers } => {
                write!(f, "reloaded: generation {generation}, services {services}, real servers {servers}")
            }
            Kind::ReloadRefused { error, .. } => write!(f, "reload refused, nothing has changed: {error}"),
            Kind::TableNearlyFull { connections, slots } => {
                write!(f, "the connection table is nearly full: {connections} of {slots} slots are taken")
            }
            Kind::TableRelieved { connections, slots } => {
                write!(f, "the connection table has room again: {connections} of {slots} slots are taken")
            }
            Kind::OverloadBegins { reason, packets } => {
                write!(f, "overload: packets dropped as {reason}: {packets} so far")
            }
            Kind::OverloadEnds { reason, packets } => {
                write!(f, "no more overload: packets dropped as {reason}: {packets} in all")
            }
            Kind::SynFloodBegins { service, packets } => {
                write!(f, "{service}: a flood of SYNs, which leave nothing in the table: {packets} so far")
            }
            Kind::SynFloodEnds { service, packets } => {
                write!(f, "{service}: no more flood of SYNs: {packets} in all")
            }
            Kind::AddressTaken { address } => {
                write!(f, "somebody has taken {address} from its twin; a reload puts it back")
            }
            Kind::AddressGained { address } => write!(f, "{address} is here: its services are live"),
            Kind::AddressLost { address } => {
                write!(f, "{address} is not here any more: its services are not live")
            }
            Kind::AddressContested { address, mac } => {
                write!(
                    f,
                    "{address} is here, and {mac} has it as well: two routers are active, or a real server answers for it"
                )
            }
            Kind::AddressAnnounced { address } => write!(f, "{address} is announced"),
            Kind::AddressWithdrawn { address, reason } => write!(f, "{address} is withdrawn: {reason}"),
            Kind::AddressRefused { address, error } => {
                write!(f, "{address} is not on, or still on, its twin; trying again: {error}")
            }
            Kind::PeerJoined { peer } => write!(f, "peer {peer} knows our connections, and we know its"),
            Kind::PeerAway { peer } => {
                write!(
                    f,
                    "peer {peer} is not heard any more; connections that change now die with this router"
                )
            }
            Kind::PeerVersion { peer, theirs, ours } => {
                write!(
                    f,
                    "peer {peer} speaks version {theirs} of the protocol, and this router version {ours}; expected the \
                     same RVS on both: until then connections are not synchronised"
                )
            }
            Kind::IpvsHeard { director } => write!(f, "IPVS director {director} tells of its connections"),
            Kind::IpvsOtherSyncid { director, syncid } => {
                write!(f, "IPVS director {director} is not listened to: its syncid is {syncid}, not ours")
            }
            Kind::LinkUp { port, speed } => {
                write!(f, "port {port}: link {}", api::LinkText { up: true, speed: *speed })
            }
            Kind::LinkDown { port } => write!(f, "port {port}: link down"),
            Kind::MemberUp { port, member } => write!(f, "port {port}: member {member} up"),
            Kind::MemberDown { port, member } => write!(f, "port {port}: member {member} down"),
            Kind::PortReset { port } => write!(
                f,
                "port {port}: its device has been reset and forwards nothing until it is opened anew"
            ),
            Kind::PortRemoved { port } => write!(f, "port {port}: its device has been taken out"),
            Kind::PortReturned { port } => write!(f, "port {port}: its device is back"),
            Kind::LinuxLost { error } => {
                write!(f, "cannot follow Linux' network configuration; trying again: {error}")
            }
            Kind::Missed { events } => write!(f, "events that are no longer kept: {events}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_json() {
        let kinds = [
            Kind::AddressTaken { address: "192.0.2.10".parse().unwrap() },
            Kind::Stopping { signal: "SIGTERM" },
            Kind::ReloadRefused { generation: 1, error: String::new() },
            Kind::TableNearlyFull { connections: 1, slots: 1 },
            Kind::OverloadBegins { reason: "tx_full", packets: 1 },
            Kind::Missed { events: 1 },
        ];
        for kind in kinds {
            assert_eq!(serde_json::to_value(&kind).unwrap()["event"], kind.name());
        }
    }
}
