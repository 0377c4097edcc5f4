//! What is different in the router's own settings, as far as a reload puts it in force.
//!
//! ```text
//! ~ routing.forward false -> true
//! + snat 10.0.1.0/24
//! ~ snat 10.0.0.0/24 outside, limit 1024 -> 2048
//! ~ sources
//! ```

use std::net::Ipv4Addr;

use dataplane::snat::SnatSpec;
use itertools::Itertools;

use super::diff::differs;
use crate::admin::api::{Change, Sign};
use crate::config::{Config, value};

/// What has to change for `old` to become `new`, besides the services.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let forward = differs("routing.forward", old.routing.forward, new.routing.forward);
    let without_values = [
        ("sources", old.sources != new.sources),
        ("scheduling", old.scheduling != new.scheduling),
        ("admin.tcp", old.admin.tcp != new.admin.tcp),
    ];
    let without_values = without_values.into_iter().filter(|(_, differs)| *differs);
    let settings = forward.into_iter().chain(without_values.map(|(name, _)| name.to_owned()));
    let mut changes: Vec<Change> = settings.map(|what| change(Sign::Changed, what)).collect();
    snats(&old.routing.snats, &new.routing.snats, &mut changes);
    changes
}

/// Pools are known by who is inside.
fn snats(old: &[SnatSpec], new: &[SnatSpec], changes: &mut Vec<Change>) {
    for snat in new {
        match old.iter().find(|was| was.inside == snat.inside) {
            None => changes.push(change(Sign::Added, name(snat))),
            Some(was) => {
                let what = settings(was, snat);
                if !what.is_empty() {
                    changes.push(change(Sign::Changed, format!("{} {}", name(snat), what.join(", "))));
                }
            }
        }
    }
    let gone = old.iter().filter(|was| new.iter().all(|snat| snat.inside != was.inside));
    changes.extend(gone.map(|snat| change(Sign::Removed, name(snat))));
}

fn name(snat: &SnatSpec) -> String {
    let inside = snat.inside.iter().map(|&(address, length)| format!("{}/{length}", Ipv4Addr::from(address)));
    format!("snat {}", inside.format(", "))
}

fn settings(old: &SnatSpec, new: &SnatSpec) -> Vec<String> {
    let ports = |snat: &SnatSpec| value::shown_ports(&snat.ports);
    [
        (old.outside != new.outside).then(|| "outside".to_owned()),
        differs("ports", ports(old), ports(new)),
        differs("block", old.block, new.block),
        differs("limit", old.limit, new.limit),
        differs("mappings", old.mappings, new.mappings),
        (old.timeouts != new.timeouts).then(|| "timeouts".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn change(sign: Sign, what: String) -> Change {
    Change { sign, service: None, server: None, what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::config;

    fn shown(old: &str, new: &str) -> Vec<String> {
        diff(&config(old), &config(new)).iter().map(Change::to_string).collect()
    }

    const POOL: &str = "[routing]\nforward = true\n[[snat]]\ninside = ['10.0.0.0/24', '10.0.2.0/24']\n\
        outside = ['192.0.2.50']\n";

    #[test]
    fn nothing() {
        assert_eq!(shown(POOL, &format!("\n\n{POOL}")), [""; 0]);
        let service = "[[service]]\naddress = '192.0.2.10:80'\nmode = 'nat'\n";
        assert_eq!(shown(POOL, &format!("{POOL}{service}")), [""; 0], "services are told elsewhere");
    }

    #[test]
    fn a_pool_comes_changes_and_goes() {
        let come = ["~ routing.forward false -> true", "+ snat 10.0.0.0/24, 10.0.2.0/24"];
        assert_eq!(shown("", POOL), come);
        let more = format!("{POOL}block = 64\nlimit = 640\ntimeouts = {{ udp = '10m' }}\n");
        let changes = shown(POOL, &more.replace("192.0.2.50", "192.0.2.51"));
        let [change] = changes.as_slice() else { panic!("{changes:?}") };
        assert!(change.starts_with("~ snat 10.0.0.0/24, 10.0.2.0/24 outside, block "), "{change}");
        assert!(change.contains(" -> 64, limit ") && change.ends_with(" -> 640, timeouts"), "{change}");
        let other = shown(POOL, &POOL.replace("10.0.2", "10.0.3"));
        assert_eq!(other, ["+ snat 10.0.0.0/24, 10.0.3.0/24", "- snat 10.0.0.0/24, 10.0.2.0/24"]);
    }

    #[test]
    fn who_may_come() {
        let sources = "[sources]\ndeny = ['203.0.113.0/24']\n";
        assert_eq!(shown("", sources), ["~ sources"]);
        assert_eq!(shown(sources, &sources.replace("/24", "/25")), ["~ sources"]);
    }
}
