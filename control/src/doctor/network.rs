//! What Linux does with the twins, and who else answers ARP for their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Finding, Root, Severity};
use crate::config::{Config, Service};
use crate::net::NoIpv6;

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Whether RVS runs, so that the twins should be there.
    runs: bool,
    /// `net.ipv4.ip_forward`, and `net.ipv6.conf.all.forwarding`.
    forwards: Option<u8>,
    forwards_ipv6: Option<u8>,
    /// Why twins cannot have addresses of IPv6, if they cannot.
    no_ipv6: Option<NoIpv6>,
    /// By interface (`all` among them): rp_filter, arp_ignore.
    settings: BTreeMap<String, (u8, u8)>,
    /// The MTU of each interface that has a port's name.
    twins: BTreeMap<String, u16>,
}

impl Facts {
    pub(super) fn collect(root: &Root, config: &Config) -> Facts {
        let directory = "/proc/sys/net/ipv4/conf";
        let setting = |name: String| {
            let value = |key: &str| root.number(&format!("{directory}/{name}/{key}"));
            let values = (value("rp_filter")?, value("arp_ignore")?);
            Some((name, values))
        };
        let twin = |port: &crate::config::Port| {
            Some((port.name.clone(), root.number(&format!("/sys/class/net/{}/mtu", port.name))?))
        };
        Facts {
            runs: root.runs(config),
            forwards: root.number("/proc/sys/net/ipv4/ip_forward"),
            forwards_ipv6: root.number("/proc/sys/net/ipv6/conf/all/forwarding"),
            no_ipv6: NoIpv6::of(root),
            settings: root.list(directory).into_iter().filter_map(setting).collect(),
            twins: config.ports.iter().filter_map(twin).collect(),
        }
    }

    fn all(&self) -> (u8, u8) {
        self.settings.get("all").copied().unwrap_or_default()
    }
}

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let all = facts.all();
    for port in &config.ports {
        let mut find = |key, severity, problem: String, remedy: String| {
            findings.push(Finding::new(key, severity, format_args!("port {}", port.name), problem, remedy));
        };
        let name = &port.name;
        let Some(&mtu) = facts.twins.get(name) else { continue };
        if !facts.runs {
            find(
                "twin-name",
                Severity::Error,
                format!("an interface {name} exists, and RVS does not run: its twin cannot have this name"),
                format!("rename the interface, or the port (port.name, e.g. \"rvs-{name}\")"),
            );
            continue;
        }
        if mtu != port.mtu {
            let wanted = port.mtu;
            find(
                "twin-mtu",
                Severity::Warning,
                format!("the twin has an MTU of {mtu}, the port has {wanted}"),
                format!("ip link set {name} mtu {wanted}, or mtu = {mtu} for the port and a restart"),
            );
        }
        // Linux takes the stricter of the two; 2 is loose.
        let own = facts.settings.get(name).copied().unwrap_or_default();
        if own.0.max(all.0) == 1 {
            find("rp-filter", 
                Severity::Warning,
                "rp_filter is strict: Linux drops what it gets from a client whose way back is another interface".to_owned(),
                format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2"),
            );
        }
    }
    let has = |is_of: fn(&IpAddr) -> bool| {
        let own = config.ports.iter().flat_map(|port| &port.addresses).map(|prefix| prefix.address);
        let mut all = own.chain(config.services.iter().flat_map(Service::virtual_addresses));
        all.any(|address| is_of(&address))
    };
    for (forwards, concerns, family, setting) in [
        (facts.forwards, !has(IpAddr::is_ipv6) || has(IpAddr::is_ipv4), "IPv4", "net.ipv4.ip_forward"),
        (facts.forwards_ipv6, has(IpAddr::is_ipv6), "IPv6", "net.ipv6.conf.all.forwarding"),
    ] {
        if forwards == Some(0) && concerns && config.ports.len() > 1 {
            findings.push(Finding::new(
                "ip-forward",
                Severity::Warning,
                "routing",
                format_args!(
                    "Linux does not forward {family}: what is no service's ends here, as do real servers' own connections"
                ),
                format_args!("sysctl -w {setting}=1, if this router is their gateway"),
            ));
        }
    }
    findings.extend(facts.no_ipv6.filter(|_| has(IpAddr::is_ipv6)).map(without_ipv6));
    findings.extend(arp(facts, config));
    findings
}

fn without_ipv6(lack: NoIpv6) -> Finding {
    let (problem, remedy) = match lack {
        NoIpv6::Anywhere => {
            ("this Linux has no IPv6, of which the file has addresses", "start it without ipv6.disable=1")
        }
        NoIpv6::OnTwins => (
            "IPv6, of which the file has addresses, is switched off on new interfaces, as twins are",
            "sysctl -w net.ipv6.conf.default.disable_ipv6=0",
        ),
    };
    Finding::new("ipv6-off", Severity::Error, "IPv6", problem, remedy)
}

/// Linux answers ARP for any address of its own on every interface, unless told otherwise: a virtual address then has the
/// MAC of whichever interface answers first.
fn arp(facts: &Facts, config: &Config) -> Option<Finding> {
    let ports: BTreeSet<&str> = config.ports.iter().map(|port| port.name.as_str()).collect();
    let is_other =
        |name: &&String| !ports.contains(name.as_str()) && !matches!(name.as_str(), "all" | "default" | "lo");
    let answers = |name: &&String| facts.settings[*name].1.max(facts.all().1) == 0;
    let others: Vec<&str> =
        facts.settings.keys().filter(is_other).filter(answers).map(String::as_str).collect();
    let is_direct = |service: &Service| service.address.is_ipv4() && service.mode.is_one_way();
    let direct = config.services.iter().any(is_direct);
    (direct && !others.is_empty()).then(|| {
        Finding::new("arp-others", 
            Severity::Warning,
            "arp",
            format_args!(
                "{} answers ARP for the virtual addresses too; where it shares a segment with a port, clients pass RVS by",
                others.iter().take(8).copied().collect::<Vec<_>>().join(", ")
            ),
            "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 (on the real servers, too)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{config, machine, short};
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let conf = "/proc/sys/net/ipv4/conf";
        let base = [("all", "0"), ("wan", "0")].map(|(name, value)| {
            [(format!("{conf}/{name}/rp_filter"), value), (format!("{conf}/{name}/arp_ignore"), value)]
        });
        let base: Vec<(&str, &str)> =
            base.iter().flatten().map(|(path, value)| (path.as_str(), *value)).collect();
        let given = |path: &str| files.iter().any(|(given, _)| *given == path);
        let base = base.into_iter().filter(|(path, _)| !given(path));
        let files: Vec<(&str, &str)> = base.chain(files.iter().copied()).collect();
        let (_directory, root) = machine(&files);
        let config = config("net_null", "");
        short(&judge(&Facts::collect(&root, &config), &config))
    }

    const SOCKET: (&str, &str) = ("/run/rvs/rvs.sock", "");
    const TWIN: (&str, &str) = ("/sys/class/net/wan/mtu", "1500");

    #[test]
    fn twins() {
        assert_eq!(found(&[]), [""; 0]);
        assert_eq!(found(&[SOCKET, TWIN]), [""; 0]);
        assert!(found(&[TWIN])[0].starts_with("error an interface wan exists"));
        let wrong =
            [SOCKET, ("/sys/class/net/wan/mtu", "1400"), ("/proc/sys/net/ipv4/conf/all/rp_filter", "1")];
        let found = found(&wrong);
        assert!(found[0].starts_with("warning the twin has an MTU of 1400, the port has 1500"), "{found:?}");
        assert!(found[1].starts_with("warning rp_filter is strict"), "{found:?}");
    }

    #[test]
    fn loose_wins_over_strict() {
        let loose =
            [("/proc/sys/net/ipv4/conf/all/rp_filter", "1"), ("/proc/sys/net/ipv4/conf/wan/rp_filter", "2")];
        assert_eq!(found(&[loose[0], loose[1], SOCKET, TWIN]), [""; 0]);
    }

    #[test]
    fn another_interface_that_answers() {
        let other = [
            ("/proc/sys/net/ipv4/conf/eth0/rp_filter", "0"),
            ("/proc/sys/net/ipv4/conf/eth0/arp_ignore", "0"),
        ];
        assert!(found(&other)[0].starts_with("warning eth0 answers ARP"));
        let quiet = [other[0], other[1], ("/proc/sys/net/ipv4/conf/all/arp_ignore", "1")];
        assert_eq!(found(&quiet), [""; 0]);
        // Nobody is asked for addresses of IPv6 by ARP.
        let facts = Facts { settings: [("eth0".to_owned(), (0, 0))].into(), ..Facts::default() };
        assert_eq!(judge(&facts, &config("net_null", "")).len(), 1);
        assert_eq!(judge(&facts, &of_service("[2001:db8::10]:80")), []);
    }

    /// One port, and a service there by direct routing.
    fn of_service(address: &str) -> Config {
        let text = format!(
            "[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"net_null\"\n\
             [[service]]\naddress = \"{address}\"\nmode = \"dr\"\n"
        );
        crate::config::parse(std::path::Path::new("f"), text.into()).unwrap()
    }

    #[test]
    fn ipv6_is_off_and_somebody_wants_it() {
        for (lack, problem) in
            [(NoIpv6::Anywhere, "error this Linux has no IPv6"), (NoIpv6::OnTwins, "error IPv6, of which")]
        {
            let facts = Facts { no_ipv6: Some(lack), ..Facts::default() };
            assert_eq!(judge(&facts, &of_service("192.0.2.10:80")), []);
            let found = short(&judge(&facts, &of_service("[2001:db8::10]:80")));
            assert!(found.len() == 1 && found[0].starts_with(problem), "{found:?}");
        }
        let off = [("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")];
        let (_directory, root) = machine(&off);
        let config = of_service("[2001:db8::10]:80");
        assert_eq!(judge(&Facts::collect(&root, &config), &config)[0].key, "ipv6-off");
    }

    #[test]
    fn a_router_with_two_ports_forwards() {
        let found_with = |forwards, forwards_ipv6, addresses: &str, service: &str| {
            let text = format!(
                "[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"net_null\"\naddresses = [{addresses}]\n\
                 [[port]]\nname = \"lan\"\ndevice = \"net_ring\"\n{service}"
            );
            let config = crate::config::parse(std::path::Path::new("f"), text.into()).unwrap();
            let facts =
                Facts { forwards: Some(forwards), forwards_ipv6: Some(forwards_ipv6), ..Facts::default() };
            let remedies = judge(&facts, &config).into_iter().map(|finding| finding.remedy);
            remedies.map(|remedy| remedy.split_once(',').unwrap().0.to_owned()).collect::<Vec<_>>()
        };
        let found = |forwards, forwards_ipv6, addresses| found_with(forwards, forwards_ipv6, addresses, "");
        let (four, six) = ("sysctl -w net.ipv4.ip_forward=1", "sysctl -w net.ipv6.conf.all.forwarding=1");
        assert_eq!(found(0, 0, ""), [four]);
        assert_eq!(found(1, 0, ""), [""; 0]);
        assert_eq!(found(0, 0, "'192.0.2.1/24', '2001:db8::1/64'"), [four, six]);
        assert_eq!(found(0, 0, "'2001:db8::1/64'"), [six]);
        assert_eq!(found(0, 1, "'2001:db8::1/64'"), [""; 0]);
        let service = "[[service]]\naddress = '[2001:db8::10]:80'\nmode = 'nat'\n";
        assert_eq!(found_with(0, 0, "", service), [six]);
    }
}
