//! How the NICs of a running RVS spread packets over its workers.
//!
//! A device says that only to who has opened it, so the running RVS is asked; and it says so in its log when it starts.

use dataplane::service::Protocol;

use super::{Finding, Severity};
use crate::admin::api;
use crate::config::Config;
use crate::config::value::{interface, pci_address};

/// What is to be said of these ports of a running RVS with this configuration.
pub fn judge(config: &Config, ports: &[api::Port]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for port in ports.iter().filter(|port| port.queues > 1) {
        let Some(known) = config.ports.iter().find(|known| known.name == port.name) else { continue };
        // A bond spreads as its members do.
        let device = known.devices.first().map_or("", String::as_str);
        let mut find = |key, severity, problem: String, remedy: &str| {
            findings.push(Finding::new(key, severity, format_args!("port {}", port.name), problem, remedy));
        };
        let Some(hashed) = port.hashed else {
            match interface(device).filter(|_| device.starts_with("net_af_xdp")) {
                Some(name) => find(
                    "rss-linux",
                    Severity::Note,
                    format!(
                        "Linux' driver of {name} spreads packets over {} queues, in its own way",
                        port.queues
                    ),
                    &format!(
                        "`ethtool -n {name} rx-flow-hash tcp4` should name the ports (L4 bytes); \
                         if not, ethtool -N {name} rx-flow-hash tcp4 sdfn, and the same with udp4"
                    ),
                ),
                // Others that are virtual hash addresses and ports by themselves, or have no way to.
                None if pci_address(device).is_none() => {}
                None => find(
                    "rss-none",
                    Severity::Warning,
                    format!(
                        "the NIC does not spread packets over its {} queues: one worker gets all",
                        port.queues
                    ),
                    "have one worker (workers.cores), or take a NIC with RSS",
                ),
            }
            continue;
        };
        for (protocol, has_ports) in [(Protocol::Tcp, hashed.tcp_ports), (Protocol::Udp, hashed.udp_ports)] {
            if has_ports || !config.services.iter().any(|service| service.has_protocol(protocol)) {
                continue;
            }
            let name = protocol.name().to_uppercase();
            let how = if hashed.addresses {
                format!(
                    "hashes addresses and no ports of {name}: all connections of a client meet one worker"
                )
            } else {
                format!("hashes nothing of {name} over IPv4: one worker gets all of it")
            };
            find(
                "rss-ports",
                Severity::Warning,
                format!("the NIC {how}"),
                "look for a driver or firmware of the NIC that hashes ports, or take another NIC; \
                 where clients are many, addresses spread them as well",
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::{config, short};
    use super::*;

    fn found(device: &str, queues: u32, hashed: Option<[bool; 3]>) -> Vec<String> {
        let hashed =
            hashed.map(|[addresses, tcp_ports, udp_ports]| api::Hashed { addresses, tcp_ports, udp_ports });
        let port = |name: &str| api::Port { name: name.to_owned(), queues, hashed, device: None, vlan: None };
        let findings = judge(&config(device, ""), &[port("wan"), port("unknown")]);
        assert!(findings.iter().all(|finding| finding.subject == "port wan"));
        short(&findings)
    }

    #[test]
    fn nics() {
        let nic = "0000:01:00.0";
        assert_eq!(found(nic, 2, Some([true, true, true])), [""; 0]);
        // No service has UDP.
        assert_eq!(found(nic, 2, Some([true, true, false])), [""; 0]);
        assert_eq!(found(nic, 1, None), [""; 0]);
        assert_eq!(
            found(nic, 2, Some([true, false, true])),
            [
                "warning the NIC hashes addresses and no ports of TCP: all connections of a client meet one worker"
            ]
        );
        assert_eq!(
            found(nic, 2, Some([false; 3])),
            ["warning the NIC hashes nothing of TCP over IPv4: one worker gets all of it"]
        );
        assert_eq!(
            found(nic, 4, None),
            ["warning the NIC does not spread packets over its 4 queues: one worker gets all"]
        );
    }

    #[test]
    fn devices_that_are_virtual() {
        assert_eq!(found("net_af_packet,iface=eth1", 2, None), [""; 0]);
        assert_eq!(
            found("net_af_xdp,iface=eth1", 2, None),
            ["note Linux' driver of eth1 spreads packets over 2 queues, in its own way"]
        );
    }
}
