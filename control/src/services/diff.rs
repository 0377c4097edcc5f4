//! What is different between two lists of services, as an operator would say it.
//!
//! ```text
//! + service tcp/192.0.2.20:443 nat maglev
//! ~ service tcp/192.0.2.10:80 scheduler maglev -> rr, check
//! + server tcp/192.0.2.10:80 10.0.0.14:8080 weight 1
//! ~ server tcp/192.0.2.10:80 10.0.0.11:8080 weight 1 -> 3
//! - server tcp/192.0.2.10:80 10.0.0.12:8080
//! ```

use std::net::SocketAddr;

use foldhash::HashMap;
use itertools::Itertools;

use crate::admin::api::{Change, Sign};
use crate::config::{Server, Service, value};
use crate::ids::ServiceKey;

/// What has to change for `old` to become `new`: in the order of `new`, then what is gone in the order of `old`.
pub fn diff(old: &[Service], new: &[Service]) -> Vec<Change> {
    let before: HashMap<ServiceKey, &Service> = by_key(old);
    let after: HashMap<ServiceKey, &Service> = by_key(new);
    let mut changes = Vec::new();
    for service in new {
        let key = ServiceKey::of(service);
        let name = key.to_string();
        match before.get(&key) {
            None => {
                changes.push(change(Sign::Added, &name, None, summary(service)));
                changes.extend(service.servers.iter().map(|server| added(&name, server)));
            }
            Some(was) => {
                let what = settings(was, service);
                if !what.is_empty() {
                    changes.push(change(Sign::Changed, &name, None, what.join(", ")));
                }
                servers(&name, &was.servers, &service.servers, &mut changes);
            }
        }
    }
    for service in old {
        let key = ServiceKey::of(service);
        if !after.contains_key(&key) {
            changes.push(change(Sign::Removed, &key.to_string(), None, String::new()));
        }
    }
    changes
}

fn by_key(services: &[Service]) -> HashMap<ServiceKey, &Service> {
    services.iter().map(|service| (ServiceKey::of(service), service)).collect()
}

fn servers(service: &str, old: &[Server], new: &[Server], changes: &mut Vec<Change>) {
    // The usual case: another weight, or nothing at all.
    if old.iter().map(|server| server.address).eq(new.iter().map(|server| server.address)) {
        changes.extend(old.iter().zip(new).filter_map(|(was, is)| changed(service, was, is)));
        return;
    }
    // The order of servers matters to some schedulers, but nobody calls it a change.
    let before: HashMap<SocketAddr, &Server> = old.iter().map(|server| (server.address, server)).collect();
    let after: HashMap<SocketAddr, &Server> = new.iter().map(|server| (server.address, server)).collect();
    for server in new {
        match before.get(&server.address) {
            None => changes.push(added(service, server)),
            Some(was) => changes.extend(changed(service, was, server)),
        }
    }
    let gone = old.iter().filter(|server| !after.contains_key(&server.address));
    changes.extend(gone.map(|server| change(Sign::Removed, service, Some(server.address), String::new())));
}

fn changed(service: &str, was: &Server, is: &Server) -> Option<Change> {
    if was == is {
        return None;
    }
    let what = [
        differs("weight", was.weight, is.weight),
        differs("thresholds", thresholds(was), thresholds(is)),
        differs("quic_id", quic_id(was), quic_id(is)),
        differs("state", was.state.name(), is.state.name()),
        differs("check", was.check, is.check),
    ];
    let mut what = what.into_iter().flatten();
    let first = what.next()?;
    Some(change(Sign::Changed, service, Some(is.address), what.fold(first, |all, one| all + ", " + &one)))
}

fn quic_id(server: &Server) -> String {
    server.quic_id.map_or_else(|| "none".to_owned(), |id| id.to_string())
}

/// The upper and the lower one.
fn thresholds(server: &Server) -> String {
    server.limits.map_or_else(|| "none".to_owned(), |limits| format!("{}/{}", limits.upper, limits.lower))
}

/// The settings of a service that differ, with both values where they are short.
fn settings(old: &Service, new: &Service) -> Vec<String> {
    let names = |service: &Service| service.flags.iter().map(|flag| flag.name()).join("+");
    let ports = |service: &Service| match service.ports.as_slice() {
        [] => "all".to_owned(),
        ports => ports.iter().map(value::shown_ports).join("+"),
    };
    let port = |service: &Service| service.port.clone().unwrap_or_else(|| "any".to_owned());
    let (was, is) = (&old.availability, &new.availability);
    let without_values = [
        ("mark", old.mark != new.mark),
        ("tunnel", old.tunnel != new.tunnel),
        ("fullnat", old.fullnat != new.fullnat),
        ("check", old.checks != new.checks),
        ("timeouts", old.timeouts != new.timeouts),
        ("persistence", old.persistence != new.persistence),
        ("helper", old.helper != new.helper),
        ("sources", old.sources != new.sources),
        ("limit", old.limit != new.limit),
        ("quic_lb", old.quic_lb != new.quic_lb),
        ("on_down", was.on_down != is.on_down),
        ("on_remove", was.on_remove != is.on_remove),
        ("drain", was.drain != is.drain),
        ("slow_start", was.slow_start != is.slow_start),
        ("damping", was.damping != is.damping),
        ("sorry_server", was.sorry_server != is.sorry_server),
        ("refuse", was.refuse != is.refuse),
        ("hooks", was.hooks != is.hooks),
    ];
    let with_values = [
        differs("ports", ports(old), ports(new)),
        differs("mode", old.mode, new.mode),
        differs("scheduler", old.scheduler, new.scheduler),
        differs("flags", names(old), names(new)),
        differs("port", port(old), port(new)),
        differs("sloppy_tcp", old.sloppy.tcp, new.sloppy.tcp),
        differs("sloppy_sctp", old.sloppy.sctp, new.sloppy.sctp),
        differs("one_packet", old.one_packet, new.one_packet),
        differs("track", old.track, new.track),
        differs("quorum", was.quorum, is.quorum),
        differs("hysteresis", was.hysteresis, is.hysteresis),
    ];
    let without_values = without_values.into_iter().filter(|(_, differs)| *differs);
    with_values.into_iter().flatten().chain(without_values.map(|(name, _)| name.to_owned())).collect()
}

/// Both values of a setting, if they differ.
pub(super) fn differs<T: PartialEq + std::fmt::Display>(name: &str, old: T, new: T) -> Option<String> {
    (old != new).then(|| format!("{name} {old} -> {new}"))
}

fn summary(service: &Service) -> String {
    format!("{} {}", service.mode, service.scheduler)
}

fn added(service: &str, server: &Server) -> Change {
    change(Sign::Added, service, Some(server.address), format!("weight {}", server.weight))
}

fn change(sign: Sign, service: &str, server: Option<SocketAddr>, what: String) -> Change {
    Change { sign, service: Some(service.to_owned()), server, what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::services;

    fn shown(old: &str, new: &str) -> Vec<String> {
        diff(&services(old), &services(new)).iter().map(Change::to_string).collect()
    }

    const WEB: &str = "[[service]]\naddress = '192.0.2.10:80'\nmode = 'nat'\n\
        [[service.server]]\naddress = '10.0.0.11:8080'\n\
        [[service.server]]\naddress = '10.0.0.12:8080'\n";

    #[test]
    fn nothing() {
        assert_eq!(shown(WEB, &format!("\n\n{WEB}")), [""; 0]);
    }

    #[test]
    fn a_service_comes_and_goes() {
        assert_eq!(
            shown("", WEB),
            [
                "+ service tcp/192.0.2.10:80 nat maglev",
                "+ server tcp/192.0.2.10:80 10.0.0.11:8080 weight 1",
                "+ server tcp/192.0.2.10:80 10.0.0.12:8080 weight 1",
            ]
        );
        assert_eq!(shown(WEB, ""), ["- service tcp/192.0.2.10:80"]);
    }

    #[test]
    fn a_server_comes_changes_and_goes() {
        let new = WEB.replace("10.0.0.11:8080'", "10.0.0.11:8080'\nweight = 3\nstate = 'drained'");
        let new = new.replace("10.0.0.12", "10.0.0.13");
        assert_eq!(
            shown(WEB, &new),
            [
                "~ server tcp/192.0.2.10:80 10.0.0.11:8080 weight 1 -> 3, state enabled -> drained",
                "+ server tcp/192.0.2.10:80 10.0.0.13:8080 weight 1",
                "- server tcp/192.0.2.10:80 10.0.0.12:8080",
            ]
        );
    }

    #[test]
    fn the_tunnel_of_a_service() {
        let old = WEB.replace("'nat'", "'tunnel'").replace(":8080", "");
        let new = old.replace("mode", "tunnel = { encapsulation = 'gre' }\nmode");
        assert_eq!(shown(&old, &new), ["~ service tcp/192.0.2.10:80 tunnel"]);
    }

    #[test]
    fn a_service_of_ipv6() {
        let old = WEB.replace("192.0.2.10", "[2001:db8::10]").replace("10.0.0", "[2001:db8:1::");
        let old = old.replace("::.11:", "::11]:").replace("::.12:", "::12]:");
        let new = old.replace("2001:db8:1::12", "2001:DB8:1::13");
        assert_eq!(
            shown(&old, &new),
            [
                "+ server tcp/[2001:db8::10]:80 [2001:db8:1::13]:8080 weight 1",
                "- server tcp/[2001:db8::10]:80 [2001:db8:1::12]:8080",
            ]
        );
    }

    #[test]
    fn settings_of_a_service() {
        let new =
            WEB.replace("mode", "scheduler = 'rr'\nquorum = 2\ntimeouts = { established = '1m' }\nmode");
        assert_eq!(
            shown(WEB, &new),
            ["~ service tcp/192.0.2.10:80 scheduler maglev -> rr, quorum 1 -> 2, timeouts"]
        );
        let old = WEB.replace("'nat'", "'dr'").replace(":8080", "");
        let new = old.replace("mode", "track = 'at-risk'\nmode");
        assert_eq!(shown(&old, &new), ["~ service tcp/192.0.2.10:80 track all -> at-risk"]);
    }
}
