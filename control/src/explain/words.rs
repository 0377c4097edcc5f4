//! The sentences of an explanation.

use std::net::SocketAddr;

use dataplane::counters::{Drop, Punt};
use dataplane::engine::Verdict;
use dataplane::scheduler::Reason;
use dataplane::service::{Protocol, Scheduler, SchedulerFlag, Track};
use dataplane::table::DestId;
use dataplane::wire::made::{Made, Piece};
use itertools::Itertools;

use crate::config::{Port, Service, value};
use crate::ids::ServiceKey;

/// Names that a sentence lists at the most.
const FEW: usize = 5;

/// Why a scheduler chooses this server, or none.
pub fn why(
    service: &Service,
    reason: &Reason,
    chosen: Option<SocketAddr>,
    server: impl Fn(DestId) -> Option<SocketAddr>,
) -> String {
    let scheduler = service.scheduler;
    match *reason {
        Reason::Nobody => "no real server takes new connections".to_owned(),
        Reason::Template => "persistence: it has the client's last connections".to_owned(),
        Reason::Turn { position, period } => {
            format!(
                "{scheduler}: its turn, connection {} of {period}; all workers share the turns",
                position + 1
            )
        }
        Reason::Load { active, inactive, weight, of } => {
            let measure = match scheduler {
                Scheduler::Lc => "the fewest connections",
                Scheduler::Sed => "the shortest expected delay",
                Scheduler::Lblc | Scheduler::Lblcr => {
                    "where its virtual address goes, or if that is nowhere or overloaded, the fewest connections for its weight"
                }
                Scheduler::Fo => "the highest weight",
                Scheduler::Ovf => "the highest weight that is not full",
                Scheduler::Nq if active == 0 => "the first idle one",
                Scheduler::Nq => "nobody is idle, and it has the shortest expected delay",
                _ => "the fewest connections for its weight",
            };
            format!("{scheduler}: {measure} of {of} ({active} active, {inactive} inactive, weight {weight})")
        }
        Reason::Row { row, rows, owner } => {
            let has = |flag| service.flags.contains(&flag);
            let hashed = match scheduler {
                Scheduler::Dh => "virtual address",
                Scheduler::Maglev => "5-tuple",
                _ if has(SchedulerFlag::ShPort) || has(SchedulerFlag::MhPort) => "client address and port",
                _ => "client address",
            };
            let row = format!("{scheduler}: the {hashed} hashes to row {row} of {rows}");
            // Whom a packet has gone to is not known where nothing is remembered.
            let is_forgotten = service.one_packet || service.track == Track::AtRisk;
            match server(owner) {
                owner if owner == chosen || chosen.is_none() && is_forgotten => row,
                Some(owner) if scheduler == Scheduler::Maglev => {
                    let others = match chosen {
                        Some(_) => "; of the others the best score decides",
                        None => ", as are all others",
                    };
                    format!("{row}, that of {owner}, which is full{others}")
                }
                Some(owner) if chosen.is_some() => {
                    format!("{row}, that of {owner}, which takes no new connections; the fallback hashes on")
                }
                Some(owner) => {
                    format!("{row}, that of {owner}, which takes no new connections; no fallback is set")
                }
                None => row,
            }
        }
        Reason::Score { weight, of } => {
            format!("{scheduler}: the best score of {of} for this 5-tuple (weight {weight})")
        }
    }
}

/// Whether a connection has an entry of whose kind only those at risk have one.
pub fn tracking(is_kept: bool, server: SocketAddr) -> String {
    match is_kept {
        true => "at risk of another server, so it has an entry".to_owned(),
        false => format!("with {server} by hash, not at risk: it has no entry and needs none"),
    }
}

/// Why a packet is nobody's: what there is at its addresses instead.
pub fn unmatched(services: &[Service], ports: &[Port], made: &Made) -> String {
    let Made { protocol, source, destination, .. } = *made;
    let at: Vec<String> = services
        .iter()
        .flat_map(|service| {
            let marked = service.mark.iter().flat_map(|marked| &marked.faces);
            let marked = marked.flat_map(|(face, own)| {
                let parts = own.parts(ports.len()).into_iter();
                parts.map(|part| (face.protocol, SocketAddr::new(face.address, 0), part))
            });
            let own = service
                .mark
                .is_none()
                .then(|| (service.protocol, service.address, (Vec::new(), service.ports.clone())));
            marked.chain(own)
        })
        .filter(|(_, address, _)| address.ip() == destination.ip())
        .map(|(protocol, address, (incoming, own))| {
            let has = match address.port() {
                0 if own.is_empty() => format!("{protocol} on all ports"),
                0 => format!("{protocol} on the ports {}", own.iter().map(value::shown_ports).join(", ")),
                port => format!("{protocol} {port}"),
            };
            match incoming.as_slice() {
                [] => has,
                by => format!(
                    "{has} by {}",
                    by.iter().map(|&port| &ports[usize::from(port)].name).join(" and ")
                ),
            }
        })
        .collect();
    let servers = services.iter().filter(|service| !service.mode.is_one_way());
    let mut from: Vec<String> = servers
        .flat_map(|service| {
            let protocols = Protocol::ALL.iter().filter(|&&protocol| service.has_protocol(protocol));
            protocols
                .flat_map(|&protocol| service.servers.iter().map(move |server| (protocol, server.address)))
        })
        .filter(|(_, server)| server.ip() == source.ip())
        .map(|(protocol, server)| match server.port() {
            0 => format!("{protocol} on all ports"),
            port => format!("{protocol} {port}"),
        })
        .collect();
    from.sort();
    from.dedup();
    let wanted = ServiceKey { address: destination, protocol };
    let to = match at.as_slice() {
        [] => format!("there is no service {wanted}, nor another one at {}", destination.ip()),
        at => format!("there is no service {wanted}; those at {} are {}", destination.ip(), few(at)),
    };
    match from.as_slice() {
        [] => format!("{to}; and {} is no real server's address", source.ip()),
        from => format!(
            "{to}; and the real server {} has {}, not {protocol} {}",
            source.ip(),
            few(from),
            source.port()
        ),
    }
}

/// What it means for a packet's way that it is a fragment. `first` is the real server that the first of its datagram has gone to.
pub fn fragment(piece: Piece, verdict: Verdict, first: Option<SocketAddr>) -> String {
    let Piece { is_first, identification } = piece;
    if is_first {
        return format!(
            "the first of datagram {identification}: it goes as a whole packet does, and the others follow it for 30 s"
        );
    }
    let what = match (verdict, first) {
        (Verdict::Hold, _) => "which has not come in the last 30 s".to_owned(),
        (Verdict::Punt(Punt::Fragment), _) => "which went to Linux, or it concerns no service".to_owned(),
        (Verdict::Route(_), _) => "which was routed, or it concerns no service".to_owned(),
        (Verdict::Drop(Drop::FragmentOrphan), _) => "which went nowhere".to_owned(),
        (_, Some(server)) => format!("which went with a connection of {server}"),
        (_, None) => "which nobody has asked for".to_owned(),
    };
    format!("a later one of datagram {identification}: it has no ports, and follows the first, {what}")
}

fn few(names: &[String]) -> String {
    let shown = names[..names.len().min(FEW)].join(", ");
    if names.len() > FEW { format!("{shown} and {} more", names.len() - FEW) } else { shown }
}
