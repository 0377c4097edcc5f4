//! Every way we know to get a configuration wrong, with the whole message that it earns.

use dataplane::service::State;
use nix::time::{ClockId, clock_gettime};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use std::time::Duration;

use super::*;

/// A file that is right: the others are made from it.
const GOOD: &str = r#"
[eal]
hugepages = false
memory = 512
args = ["--vdev=net_null7"]

[workers]
cores = [1, 1]
idle = "adaptive"
control_cores = [0]

[table]
connections = 1_000_000

[admin]
socket = "/tmp/rvs.sock"

[[port]]
name = "wan"
device = "net_af_packet,iface=eth1"
addresses = ["192.0.2.1/24"]

[[port]]
name = "lan"
device = "0000:01:00.0"
addresses = ["10.0.0.1/24"]
mac = "02:00:00:00:00:01"
mtu = 9000

[[service]]
address = "192.0.2.10:80"
mode = "nat"
scheduler = "sh"
flags = ["sh-port"]
port = "wan"
timeouts = { established = "15m", fin_wait = 60 }
[service.check]
interval = "500ms"
[[service.server]]
address = "10.0.0.11:8080"
weight = 3
[[service.server]]
address = "10.0.0.12"
check = false

[[service]]
address = "192.0.2.10:53"
protocol = "udp"
mode = "dr"
[[service.server]]
address = "10.0.0.11"
"#;

/// The least that a file must have, and this behind it.
pub(super) fn with(rest: &str) -> Result<Config, String> {
    let text = format!(
        "[workers]\ncores = [1]\n[[port]]\nname = 'wan'\ndevice = 'net_null0'\n\
         addresses = ['192.0.2.1/24', '10.0.0.1/24']\n{rest}\n"
    );
    parse(Path::new("f"), text.into()).map_err(|errors| errors.to_string())
}

fn read(text: &str) -> Result<Config, ConfigErrors> {
    parse(Path::new("rvs.toml"), text.as_bytes().to_vec())
}

/// The good file with one piece of text replaced by another.
fn altered(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

/// What is replaced, by what, and the message that follows.
type Case = (&'static str, &'static str, &'static str);

#[track_caller]
fn assert_messages(cases: &[Case]) {
    for (from, to, message) in cases {
        let errors = read(&altered(from, to)).expect_err(to);
        assert_eq!(errors.to_string(), message.trim_start_matches('\n'), "{from} -> {to}");
    }
}

#[test]
fn keys_and_syntax() {
    assert_messages(&[
        (
            r#"scheduler = "sh""#,
            r#"schedular = "sh""#,
            r#"
rvs.toml:33:1: service[0].schedular: unknown key (did you mean scheduler?); expected one of address, mark, ports, protocol, mode, tunnel, fullnat, scheduler, flags, port, timeouts, sloppy_tcp, sloppy_sctp, persistence, one_packet, helper, track, sources, limit, quic_lb, check, server, on_down, on_remove, drain, slow_start, damping, quorum, hysteresis, sorry_server, refuse, hooks
   33 | schedular = "sh"
      | ^^^^^^^^^
rvs.toml:34:10: service[0].flags[0]: flag sh-port belongs to sh; expected none for maglev
   34 | flags = ["sh-port"]
      |          ^^^^^^^^^"#,
        ),
        (
            "[workers]",
            "[worker]",
            r#"
rvs.toml:1:1: workers: missing; expected a table [workers] with cores = [...]
    1 | 
      | ^
rvs.toml:7:2: worker: unknown key (did you mean workers?); expected one of eal, run, workers, table, routing, scheduling, snat, admin, sync, ipvs_sync, sources, port, vlan, mark, service
    7 | [worker]
      |  ^^^^^^"#,
        ),
        (
            r#"mode = "nat""#,
            "",
            r#"
rvs.toml:30:1: service[0].mode: missing; expected one of nat, dr, tunnel, fullnat
   30 | [[service]]
      | ^^^^^^^^^^^"#,
        ),
        (
            r#""nat""#,
            "nat",
            r#"
rvs.toml:32:8: mode: string values must be quoted; expected "nat"
   32 | mode = nat
      |        ^^^"#,
        ),
        (
            "[[port]]",
            "[port]",
            r#"
rvs.toml:23:3: syntax: duplicate key; expected each key once in a table
   23 | [[port]]
      |   ^^^^"#,
        ),
        (
            "[[service.server]]",
            "[service.server]",
            r#"
rvs.toml:42:11: syntax: duplicate key; expected each key once in a table
   42 | [[service.server]]
      |           ^^^^^^"#,
        ),
        (
            "fin_wait",
            "finwait",
            r#"
rvs.toml:36:35: service[0].timeouts.finwait: unknown key (did you mean fin_wait?); expected one of none, established, syn_sent, syn_recv, fin_wait, time_wait, close, close_wait, last_ack, listen, synack
   36 | timeouts = { established = "15m", finwait = 60 }
      |                                   ^^^^^^^"#,
        ),
        (
            "weight = 3",
            "weight = 3\nweight = 4",
            r#"
rvs.toml:42:1: weight: duplicate key; expected each key once in a table
   42 | weight = 4
      | ^^^^^^"#,
        ),
        (
            "weight = 3",
            r#"weight = "3""#,
            r#"
rvs.toml:41:10: service[0].server[0].weight: is a string; expected an integer from 0 to 65535
   41 | weight = "3"
      |          ^^^"#,
        ),
        (
            "weight = 3",
            "[x",
            r#"
rvs.toml:41:3: syntax: unclosed table; expected `]`
   41 | [x
      |   ^"#,
        ),
        (
            "check = false",
            "check = {}",
            r#"
rvs.toml:44:9: service[0].server[1].check: is a table; expected true or false
   44 | check = {}
      |         ^^"#,
        ),
        (
            "[table]",
            "table = 3\n[x]",
            r#"
rvs.toml:12:1: workers.table: unknown key; expected one of cores, idle, control_cores
   12 | table = 3
      | ^^^^^
rvs.toml:13:2: x: unknown key; expected one of eal, run, workers, table, routing, scheduling, snat, admin, sync, ipvs_sync, sources, port, vlan, mark, service
   13 | [x]
      |  ^"#,
        ),
        (
            "[table]",
            "[a.b]",
            r#"
rvs.toml:12:2: a: unknown key; expected one of eal, run, workers, table, routing, scheduling, snat, admin, sync, ipvs_sync, sources, port, vlan, mark, service
   12 | [a.b]
      |  ^"#,
        ),
    ]);
}

#[test]
fn names() {
    assert_messages(&[
        (
            r#""sh""#,
            r#""foo""#,
            r#"
rvs.toml:33:13: service[0].scheduler: unknown scheduler "foo"; expected one of rr, wrr, lc, wlc, sed, nq, sh, dh, mh, fo, ovf, twos, lblc, lblcr, maglev, rendezvous, p2c
   33 | scheduler = "foo"
      |             ^^^^^"#,
        ),
        (
            r#""nat""#,
            r#""tun""#,
            r#"
rvs.toml:32:8: service[0].mode: unknown mode "tun"; expected one of nat, dr, tunnel, fullnat
   32 | mode = "tun"
      |        ^^^^^"#,
        ),
        (
            "sh-port",
            "mh-port",
            r#"
rvs.toml:34:10: service[0].flags[0]: flag mh-port belongs to mh; expected one of sh-fallback, sh-port
   34 | flags = ["mh-port"]
      |          ^^^^^^^^^"#,
        ),
        (
            r#""wan""#,
            r#""eth1""#,
            r#"
rvs.toml:20:10: port[0].device: interface eth1 has the name of the port's twin; expected another interface, or another name
   20 | device = "net_af_packet,iface=eth1"
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^
rvs.toml:35:8: service[0].port: unknown port "wan"; expected one of eth1, lan
   35 | port = "wan"
      |        ^^^^^"#,
        ),
    ]);
}

#[test]
fn ports_of_both_families() {
    let both = altered("\"192.0.2.1/24\"", "\"192.0.2.1/24\", \"2001:db8::1/64\"");
    let config = read(&both).unwrap();
    let shown: Vec<String> = config.ports[0].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["192.0.2.1/24", "2001:db8::1/64"]);
    // A virtual address is put where its network is.
    let six = both.replace("192.0.2.10:80", "[2001:db8::10]:80").replace("\nport = \"wan\"", "");
    let six = six.replace("10.0.0.11:8080", "2001:db8:1::11").replace("10.0.0.12", "2001:db8:1::12");
    for (port, text) in [("wan", six.clone()), ("lan", six.replace("[2001:db8::10]", "[2001:db8:1::10]"))] {
        let text = text.replace("\"10.0.0.1/24\"", "\"10.0.0.1/24\", \"2001:db8:1::1/64\"");
        let config = read(&text).unwrap();
        assert_eq!(config.port_of(&config.services[0], config.services[0].address.ip()).name, port);
    }
    assert_messages(&[
        (
            "\"10.0.0.1/24\"",
            "\"2001:db8::1/64\", \"2001:db8::1/48\"",
            r#"
rvs.toml:26:32: port[1].addresses[1]: address 2001:db8::1 stands in line 26 already; expected another address
   26 | addresses = ["2001:db8::1/64", "2001:db8::1/48"]
      |                                ^^^^^^^^^^^^^^^^"#,
        ),
        (
            "addresses = [\"10.0.0.1/24\"]\nmac = \"02:00:00:00:00:01\"\nmtu = 9000",
            "addresses = [\"2001:db8::1/64\"]\nmtu = 1279",
            r#"
rvs.toml:26:14: port[1].addresses[0]: an mtu of 1279 is too small for IPv6; expected at least 1280, or no IPv6 address
   26 | addresses = ["2001:db8::1/64"]
      |              ^^^^^^^^^^^^^^^^"#,
        ),
    ]);
    // The same where a service has the only address of IPv6.
    let six = GOOD.replace("192.0.2.10:80", "[2001:db8::10]:80");
    let six = six.replace("10.0.0.11:8080", "2001:db8:1::11").replace("10.0.0.12", "2001:db8:1::12");
    let with_mtu = |mtu| read(&six.replace("name = \"wan\"", &format!("name = \"wan\"\nmtu = {mtu}")));
    with_mtu(1280).unwrap();
    let narrow = with_mtu(1279).unwrap_err().to_string();
    assert!(
        narrow.starts_with(
            "rvs.toml:32:11: service[0].address: port \"wan\" has an mtu of 1279, too small for IPv6; \
             expected at least 1280 there, or no IPv6 address\n"
        ),
        "{narrow}"
    );
}

#[test]
fn addresses_and_duplicates() {
    assert_messages(&[
        (
            "192.0.2.10:53\"\nprotocol = \"udp\"",
            "192.0.2.10:80\"\n",
            r#"
rvs.toml:47:11: service[1].address: service tcp 192.0.2.10:80 stands in line 31 already; expected each address and protocol once
   47 | address = "192.0.2.10:80"
      |           ^^^^^^^^^^^^^^^"#,
        ),
        (
            "10.0.0.12",
            "10.0.0.11:8080",
            r#"
rvs.toml:43:11: service[0].server[1].address: real server 10.0.0.11:8080 stands in line 40 already; expected each real server once in a service
   43 | address = "10.0.0.11:8080"
      |           ^^^^^^^^^^^^^^^^"#,
        ),
        (
            "192.0.2.10:80",
            "192.0.2.10",
            r#"
rvs.toml:31:11: service[0].address: "192.0.2.10" has no port; expected ADDRESS:PORT, e.g. "192.0.2.10:80" or "[2001:db8::10]:80", with port 0 if it is of all ports
   31 | address = "192.0.2.10"
      |           ^^^^^^^^^^^^"#,
        ),
        (
            "192.0.2.10:80",
            "192.0.2.10:66000",
            r#"
rvs.toml:31:11: service[0].address: port 66000 is out of range; expected ADDRESS:PORT, e.g. "192.0.2.10:80" or "[2001:db8::10]:80", with port 0 if it is of all ports
   31 | address = "192.0.2.10:66000"
      |           ^^^^^^^^^^^^^^^^^^"#,
        ),
        (
            "10.0.0.11:8080",
            "10.0.0.11:70000",
            r#"
rvs.toml:40:11: service[0].server[0].address: port 70000 is out of range; expected ADDRESS:PORT or ADDRESS, 1 to 65535, e.g. "10.0.0.11:8080" or "[2001:db8::11]:8080"
   40 | address = "10.0.0.11:70000"
      |           ^^^^^^^^^^^^^^^^^"#,
        ),
        (
            "10.0.0.12",
            "192.0.2.10:8080",
            r#"
rvs.toml:43:11: service[0].server[1].address: 192.0.2.10 is this router itself, which gets packets as they are; expected "192.0.2.10:80"
   43 | address = "192.0.2.10:8080"
      |           ^^^^^^^^^^^^^^^^^"#,
        ),
    ]);
}

/// A file with a service of IPv6, whose servers are checked at an address of IPv4.
const SIX: &str = r#"
[workers]
cores = [1]
[[port]]
name = "wan"
device = "net_null"
addresses = ["192.0.2.1/24"]
[[service]]
address = "[2001:DB8:0::10]:80"
mode = "nat"
persistence = {}
sorry_server = "[2001:db8:1::99]:80"
check = { address = "192.0.2.200" }
[[service.server]]
address = "2001:db8:1::11"
[[service.server]]
address = "[2001:db8:1::12]:8080"
[[service]]
address = "[2001:db8::20]:80"
mode = "dr"
"#;

#[test]
fn a_service_of_ipv6_means_what_it_says() {
    let config = read(SIX).unwrap();
    let service = &config.services[0];
    assert_eq!(service.address.to_string(), "[2001:db8::10]:80");
    let servers: Vec<String> = service.servers.iter().map(|server| server.address.to_string()).collect();
    assert_eq!(servers, ["[2001:db8:1::11]:80", "[2001:db8:1::12]:8080"]);
    assert_eq!(service.persistence.map(|how| how.prefix), Some(128));
    assert_eq!(service.availability.sorry_server.map(|server| server.is_ipv6()), Some(true));
    let target = service.checks[0].target(service.servers[1].address);
    assert_eq!(target.to_string(), "192.0.2.200:8080");
}

#[test]
fn what_is_wrong_with_a_service_of_ipv6() {
    for (from, to, message) in [
        (
            "\"2001:db8:1::11\"",
            "\"10.0.0.11\"",
            "service[0].server[0].address: 10.0.0.11 is an IPv4 address; expected an IPv6 address, as the service's\n",
        ),
        (
            "[2001:db8:1::99]:80",
            "10.0.0.99:80",
            "service[0].sorry_server: 10.0.0.99 is an IPv4 address; expected an IPv6 address, as the service's\n",
        ),
        (
            "[2001:DB8:0::10]:80",
            "192.0.2.10:80",
            "service[0].server[1].address: 2001:db8:1::12 is an IPv6 address; expected an IPv4 address, as the service's\n",
        ),
        (
            "\"nat\"",
            "\"dr\"",
            "direct routing cannot change the port; expected \"[2001:db8:1::12]:80\" or \"2001:db8:1::12\"\n",
        ),
        (
            "sorry_server = \"[2001:db8:1::99]:80\"",
            "sorry_server = \"[2001:db8:1::12]:8080\"",
            "service[0].sorry_server: [2001:db8:1::12]:8080 is one of the service's real servers; expected another one",
        ),
        ("persistence = {}", "persistence = { prefix = 129 }", "expected an integer from 1 to 128"),
        ("[2001:DB8:0::10]:80", "2001:db8::10", "service[0].address: \"2001:db8::10\" has no port; expected"),
        (
            "[2001:DB8:0::10]:80",
            "[::ffff:192.0.2.10]:80",
            "service[0].address: ::ffff:192.0.2.10 is an IPv4 address, to be written 192.0.2.10; expected",
        ),
        ("[2001:DB8:0::10]:80", "[fe80::10]:80", "service[0].address: fe80::10 is a link-local address"),
        (
            "\"2001:db8:1::11\"",
            "\"[2001:db8:1:0:0::12]:8080\"",
            "real server [2001:db8:1::12]:8080 stands in line 15 already; expected each real server once",
        ),
        (
            "\"2001:db8:1::11\"",
            "\"2001:db8::20\"",
            "2001:db8::20 is a virtual address; expected another machine",
        ),
        (
            "[2001:db8::20]:80",
            "[2001:db8::10]:80",
            "service tcp [2001:db8::10]:80 stands in line 9 already; expected each address and protocol once",
        ),
        (
            "[workers]",
            "[sync]\nlisten = \"[2001:db8:9::1]:8848\"\npeers = [\"10.9.0.2:8848\"]\nkey_file = \"/k\"\n[workers]",
            "sync.peers[0]: 10.9.0.2 is an IPv4 address; expected an IPv6 address, as sync.listen's",
        ),
    ] {
        assert!(SIX.contains(from), "{from}");
        let error = read(&SIX.replacen(from, to, 1)).expect_err(to).to_string();
        assert!(error.contains(message), "{to}: {error}");
    }
}

#[test]
fn numbers() {
    assert_messages(&[
        (
            "1_000_000",
            "0",
            r#"
rvs.toml:13:15: table.connections: 0 is out of range; expected an integer from 1024 to 500000000
   13 | connections = 0
      |               ^"#,
        ),
        (
            "1_000_000",
            "1_000_000\nkeep = \"run/table\"",
            r#"
rvs.toml:14:8: table.keep: "run/table" is not an absolute path of a directory; expected an absolute path, e.g. "/dev/hugepages/rvs"
   14 | keep = "run/table"
      |        ^^^^^^^^^^^"#,
        ),
        (
            "cores = [1, 1]",
            "cores = []",
            r#"
rvs.toml:8:9: workers.cores: is empty; expected the cores that poll, e.g. [1, 2]
    8 | cores = []
      |         ^^"#,
        ),
        (
            "adaptive",
            "busy",
            r#"
rvs.toml:8:13: workers.cores[1]: core 1 has a worker already (cores[0]); expected another core, or idle = "adaptive"
    8 | cores = [1, 1]
      |             ^"#,
        ),
        (
            "weight = 3",
            "weight = -3",
            r#"
rvs.toml:41:10: service[0].server[0].weight: -3 is out of range; expected an integer from 0 to 65535
   41 | weight = -3
      |          ^^"#,
        ),
        (
            "weight = 3",
            "weight = 0x1_0000",
            r#"
rvs.toml:41:10: service[0].server[0].weight: 0x1_0000 is out of range; expected an integer from 0 to 65535
   41 | weight = 0x1_0000
      |          ^^^^^^^^"#,
        ),
        (
            "weight = 3",
            "weight = 999999999999999999999999999",
            r#"
rvs.toml:41:10: service[0].server[0].weight: 999999999999999999999999999 is out of range; expected an integer from 0 to 65535
   41 | weight = 999999999999999999999999999
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^"#,
        ),
        (
            "500ms",
            "500",
            r#"
rvs.toml:38:12: service[0].check.interval: "500" is not a time; expected a time from 10ms to 1h, e.g. "2s"
   38 | interval = "500"
      |            ^^^^^"#,
        ),
    ]);
}

#[test]
fn a_good_file_means_what_it_says() {
    let config = read(GOOD).unwrap();
    assert_eq!(
        config.workers,
        Workers { cores: vec![1, 1], idle: Idle::Adaptive, control_cores: Some(vec![0]) }
    );
    assert_eq!(config.eal.args, ["--vdev=net_null7"]);
    assert_eq!(config.table.bytes(), 32_000_000);
    assert_eq!(config.ports[1].mac, Some([2, 0, 0, 0, 0, 1]));
    assert_eq!(config.ports[0].mtu, 1500);
    let [web, dns] = &config.services[..] else { panic!("{:?}", config.services) };
    assert_eq!((web.scheduler, &web.flags[..]), (Scheduler::Sh, &[SchedulerFlag::ShPort][..]));
    assert_eq!(web.timeouts.0[State::Established as usize], 900);
    assert_eq!(web.timeouts.0[State::FinWait as usize], 60);
    assert_eq!(web.timeouts.0[State::CloseWait as usize], 60);
    let check = web.checks[0].clone();
    assert_eq!((check.interval, check.timeout), (Duration::from_millis(500), Duration::from_secs(1)));
    assert_eq!((check.rise, check.fall), (2, 3));
    let servers: Vec<_> = web.servers.iter().map(|s| (s.address.to_string(), s.weight, s.check)).collect();
    assert_eq!(servers, [("10.0.0.11:8080".to_owned(), 3, true), ("10.0.0.12:80".to_owned(), 1, false)]);
    assert_eq!((dns.protocol, dns.mode, dns.scheduler), (Protocol::Udp, Mode::Dr, Scheduler::Maglev));
    assert_eq!(dns.servers[0].address.to_string(), "10.0.0.11:53");
    assert!(!dns.servers[0].check);
    assert_eq!(config.port_of(dns, dns.address.ip()).name, "wan");
}

#[test]
fn only_datagrams_are_scheduled_alone() {
    let udp = read(&altered("protocol = \"udp\"", "protocol = \"udp\"\none_packet = true")).unwrap();
    assert_eq!(udp.services.iter().map(|service| service.one_packet).collect::<Vec<_>>(), [false, true]);
    let error =
        read(&altered("port = \"wan\"", "port = \"wan\"\none_packet = true")).unwrap_err().to_string();
    assert!(
        error.contains("service[0].one_packet: a connection of TCP or SCTP is more than a packet"),
        "{error}"
    );

    let of_all_ports = |mode: &str| {
        parse_services(&format!(
            "[[service]]\naddress = \"192.0.2.10:0\"\nprotocol = \"udp\"\none_packet = true\nmode = \"{mode}\""
        ))
        .map_err(|errors| errors.to_string())
    };
    assert!(of_all_ports("dr").unwrap()[0].one_packet);
    let error = of_all_ports("nat").unwrap_err();
    assert!(
        error.contains("service[0].one_packet: nothing would tell replies from what a server begins"),
        "{error}"
    );
}

#[test]
fn a_service_of_all_ports() {
    let service = |keys: &str| {
        let text = format!("[[service]]\naddress = \"192.0.2.10:0\"\nmode = \"nat\"\n{keys}");
        parse_services(&text).map_err(|errors| errors.to_string())
    };
    let services = service(
        "sorry_server = \"10.0.0.99:0\"\ncheck = [{ kind = \"ping\" }, { port = 8080 }]\n\
         server = [{ address = \"10.0.0.11\" }, { address = \"10.0.0.12:0\" }]\n",
    )
    .unwrap();
    assert_eq!(services[0].address.to_string(), "192.0.2.10:0");
    let servers: Vec<String> = services[0].servers.iter().map(|server| server.address.to_string()).collect();
    assert_eq!(servers, ["10.0.0.11:0", "10.0.0.12:0"]);
    assert_eq!(services[0].checks[1].target(services[0].servers[0].address).port(), 8080);
    for (keys, message) in [
        (
            "server = [{ address = \"10.0.0.11:80\" }]",
            "a service of all ports leaves a packet's as it is; expected \"10.0.0.11\"",
        ),
        (
            "sorry_server = \"10.0.0.99:80\"",
            "a service of all ports leaves a packet's as it is; expected \"10.0.0.99:0\"",
        ),
        (
            "check = [{ kind = \"ping\" }, { kind = \"http\" }]",
            "service[0].check[1]: the servers of a service of all ports have none that check \"http\" could ask; \
             expected port = 1 to 65535",
        ),
    ] {
        let errors = service(keys).unwrap_err();
        assert!(errors.contains(message), "{errors}");
    }
}

#[test]
fn a_service_of_some_ports() {
    let service = |port: u16, ports: &str| {
        let text = format!("[[service]]\naddress = \"192.0.2.10:{port}\"\nmode = \"nat\"\nports = {ports}\n");
        let services = parse_services(&text).map_err(|errors| errors.to_string())?;
        Ok::<_, String>(services.into_iter().next().unwrap().ports)
    };
    assert_eq!(service(0, "[21, \"10000-20000\"]"), Ok(vec![21..=21, 10_000..=20_000]));
    assert_eq!(
        service(0, "[\"65000-65535\", 81, 80]"),
        Ok(vec![80..=81, 65_000..=65_535]),
        "what touches is one"
    );
    for (port, ports, message) in [
        (0, "[]", "ports: is empty; expected at least one port, or no such key for all of them"),
        (0, "[0]", "ports[0]: 0 is out of range; expected an integer from 1 to 65535"),
        (0, "[\"90-80\"]", "ports[0]: \"90-80\" ends before it begins; expected a port or a range of them"),
        (0, "[\"80-90\", 85]", "ports: 80-90 and 85 overlap; expected each port once"),
        (0, "[\"80-90\", \"90-95\"]", "ports: 80-90 and 90-95 overlap; expected each port once"),
        (
            80,
            "[81]",
            "ports: the service is of port 80 alone; expected address = \"192.0.2.10:0\" with several ports",
        ),
    ] {
        let errors = service(port, ports).unwrap_err();
        assert!(errors.contains(message), "{ports}: {errors}");
    }
}

#[test]
fn ftp_needs_all_ports_and_persistence_by_nat() {
    let service = |address: &str, mode: &str, keys: &str| {
        let text =
            format!("[[service]]\naddress = \"{address}\"\nmode = \"{mode}\"\nhelper = \"ftp\"\n{keys}");
        parse_services(&text).map(|services| services[0].helper).map_err(|errors| errors.to_string())
    };
    let (all, persistent) = ("192.0.2.10:0", "persistence = {}");
    assert_eq!(service(all, "nat", persistent), Ok(Some(Helper::Ftp)));
    assert_eq!(service("[2001:db8::10]:0", "nat", persistent), Ok(Some(Helper::Ftp)));
    for (address, mode, keys, message) in [
        (
            "192.0.2.10:21",
            "nat",
            persistent,
            "data connections come to any port; expected address = \"192.0.2.10:0\"",
        ),
        (all, "nat", "", "expected persistence, too"),
        (all, "nat", "persistence = {}\nlimit = { half_open_rate = 9 }", "expected one of the two"),
        (all, "dr", persistent, "it is for mode = \"nat\" only"),
        (all, "nat", "persistence = {}\nprotocol = \"udp\"", "FTP is over TCP"),
    ] {
        let errors = service(address, mode, keys).unwrap_err();
        assert!(errors.contains("service[0].helper: ") && errors.contains(message), "{errors}");
    }
}

#[test]
fn ipsec_follows_ike() {
    let service = |address: &str, mode: &str, keys: &str| {
        let text = format!(
            "[[service]]\naddress = \"{address}\"\nmode = \"{mode}\"\nhelper = \"ipsec\"\nprotocol = \"udp\"\n{keys}"
        );
        parse_services(&text).map(|services| services[0].helper).map_err(|errors| errors.to_string())
    };
    let (ike, all) = ("192.0.2.10:500", "192.0.2.10:0");
    for (address, mode, keys) in [
        (ike, "nat", "server = [{ address = '10.0.0.11' }]"),
        ("[2001:db8::10]:500", "dr", ""),
        (all, "tunnel", ""),
        (all, "nat", "ports = [500, 4500]"),
    ] {
        assert_eq!(service(address, mode, keys), Ok(Some(Helper::Ipsec)), "{address} {mode}");
    }
    for (address, mode, keys, message) in [
        ("192.0.2.10:4500", "nat", "", "helper: IKE is at port 500; expected address = \"192.0.2.10:500\""),
        (all, "nat", "ports = [4500]", "helper: IKE is at port 500"),
        (ike, "fullnat", "fullnat = { local = ['10.0.0.100'] }", "helper: a local address is that of many"),
        (ike, "dr", "one_packet = true", "helper: ESP and AH follow a connection"),
        (
            ike,
            "nat",
            "server = [{ address = '10.0.0.11:501' }]",
            "server[0].address: what follows IKE has no port by which it would come back; expected \"10.0.0.11:500\"",
        ),
        (ike, "nat", "sorry_server = '10.0.0.99:501'", "sorry_server: what follows IKE has no port"),
    ] {
        let errors = service(address, mode, keys).unwrap_err();
        assert!(errors.contains(message), "{errors}");
    }
}

#[test]
fn connections_at_risk_alone_may_have_entries() {
    let service = |mode: &str, keys: &str| {
        let text = format!(
            "[[service]]\naddress = \"192.0.2.10:80\"\nmode = \"{mode}\"\ntrack = \"at-risk\"\n{keys}"
        );
        parse_services(&text).map(|services| services[0].track).map_err(|errors| errors.to_string())
    };
    for (mode, keys) in [
        ("dr", ""),
        ("tunnel", "scheduler = 'rendezvous'\nslow_start = '1m'"),
        ("dr", "server = [{ address = '10.0.0.11' }]\nsorry_server = '10.0.0.99:80'"),
    ] {
        assert_eq!(service(mode, keys), Ok(Track::AtRisk), "{mode} {keys}");
    }
    assert_eq!(
        parse_services("[[service]]\naddress = '192.0.2.10:80'\nmode = 'nat'").unwrap()[0].track,
        Track::All
    );
    for (mode, keys, message) in [
        (
            "nat",
            "",
            "4:9: service[0].track: what a server replies is changed by its connection's entry; expected mode = \"dr\" or \"tunnel\"",
        ),
        (
            "dr",
            "scheduler = 'wlc'",
            "service[0].track: wlc does not find a connection's server again when servers come and go",
        ),
        (
            "dr",
            "protocol = 'udp'",
            "service[0].track: only packets of TCP say whether they begin a connection",
        ),
        (
            "dr",
            "persistence = {}",
            "service[0].persistence: a client comes back by what is remembered of it; expected no `persistence` with track = \"at-risk\"",
        ),
        ("dr", "limit = { rate = 9 }", "service[0].limit: what has no entry cannot be counted"),
        (
            "dr",
            "server = [{ address = '10.0.0.11' }, { address = '10.0.0.12', upper_threshold = 9 }]",
            "service[0].server[1].upper_threshold: what has no entry cannot be counted; expected no threshold",
        ),
    ] {
        let errors = service(mode, keys).unwrap_err();
        assert!(errors.contains(message), "{errors}");
    }
}

#[test]
fn a_server_may_have_limits() {
    let with = |text: &str| {
        let config = read(&altered("weight = 3", &format!("weight = 3\n{text}")));
        config.map(|config| config.services[0].servers[0].limits).map_err(|errors| errors.to_string())
    };
    assert_eq!(with("upper_threshold = 100"), Ok(Some(Limits { upper: 100, lower: 75 })));
    let both = "upper_threshold = 100\nlower_threshold = 100";
    assert_eq!(with(both), Ok(Some(Limits { upper: 100, lower: 100 })));
    for (wrong, message) in [
        (
            "upper_threshold = 0",
            "server[0].upper_threshold: 0 is out of range; expected an integer from 1 to",
        ),
        ("upper_threshold = 9\nlower_threshold = 10", "10 is out of range; expected an integer from 1 to 9"),
        ("lower_threshold = 10", "lower_threshold: has nothing to go with; expected upper_threshold as well"),
    ] {
        let error = with(wrong).unwrap_err();
        assert!(error.contains(message), "{wrong}: {error}");
    }
}

#[test]
fn clients_may_come_back() {
    let with = |text: &str| {
        let config = read(&altered("port = \"wan\"", &format!("port = \"wan\"\npersistence = {text}")));
        config.map(|config| config.services[0].persistence).map_err(|errors| errors.to_string())
    };
    assert_eq!(read(GOOD).unwrap().services[0].persistence, None);
    let default = Persistence { seconds: 300, prefix: 32, expire_quiescent: false };
    assert_eq!(with("{}"), Ok(Some(default)));
    let all = "{ timeout = \"1h\", prefix = 24, expire_quiescent = true }";
    assert_eq!(with(all), Ok(Some(Persistence { seconds: 3600, prefix: 24, expire_quiescent: true })));
    for (wrong, message) in [
        ("300", "service[0].persistence: is an integer; expected a table"),
        ("{ timeout = \"500ms\" }", "service[0].persistence.timeout: 500ms is"),
        (
            "{ prefix = 0 }",
            "service[0].persistence.prefix: 0 is out of range; expected an integer from 1 to 32",
        ),
        ("{ mask = 24 }", "persistence.mask: unknown key; expected one of timeout, prefix, expire_quiescent"),
    ] {
        let error = with(wrong).unwrap_err();
        assert!(error.contains(message), "{wrong}: {error}");
    }
}

#[test]
fn defaults() {
    let config = read("[workers]\ncores = [1]\n[[port]]\nname = \"p\"\ndevice = \"net_null\"\n").unwrap();
    assert_eq!(config.eal, Eal { hugepages: true, memory_mb: None, file_prefix: None, args: vec![] });
    assert_eq!(config.workers, Workers { cores: vec![1], idle: Idle::Busy, control_cores: None });
    assert_eq!(config.table.connections, 1_000_000);
    assert_eq!(config.admin.socket, Path::new(DEFAULT_SOCKET));
    assert_eq!((config.ports[0].mtu, config.ports[0].descriptors), (1500, 1024));
    assert!(config.services.is_empty());
}

#[test]
fn an_empty_file_lacks_everything() {
    let expected = "\
rvs.toml:1:1: workers: missing; expected a table [workers] with cores = [...]
    1 | \n      | ^
rvs.toml:1:1: port: missing; expected at least one [[port]]
    1 | \n      | ^";
    assert_eq!(read("").unwrap_err().to_string(), expected);
}

#[test]
fn what_is_no_file_of_text() {
    let directory = tempfile::tempdir().unwrap();
    let shown =
        |path: &Path| load(path).unwrap_err().to_string().replace(&path.display().to_string(), "PATH");
    assert_eq!(shown(directory.path()), "PATH: is a directory; expected a TOML file");
    let path = directory.path().join("rvs.toml");
    assert_eq!(
        shown(&path),
        "PATH: cannot be opened: No such file or directory (os error 2); expected a TOML file"
    );
    std::fs::write(&path, b"[eal]\nfile_prefix = \"r\xffs\"\n").unwrap();
    assert_eq!(
        shown(&path),
        "PATH:2:17: encoding: is not UTF-8; expected a TOML file\n    2 | file_prefix = \"r\u{fffd}\n      |                 ^"
    );
    std::fs::File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
    assert_eq!(shown(&path), "PATH: is larger than 64 MB; expected a TOML file");
}

/// Ten megabytes of what could come in by accident, or of what makes a parser busy.
#[test]
fn noise_is_refused_in_time_and_briefly() {
    let mut seed = 1_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as usize
    };
    let all: String = (' '..='~').chain(['\n', '\t', 'ä']).collect();
    let unique: String = (0..700_000).map(|i| format!("a{i} = {i}\n")).collect();
    let mut noises: Vec<Vec<u8>> = vec![(0..10 << 20).map(|_| random() as u8).collect(), unique.into_bytes()];
    for alphabet in [&all, "[", "a=[{", "\"", "a.", "[[a]]\n", "\n"] {
        let characters: Vec<char> = alphabet.chars().collect();
        let noise: String = (0..10 << 20).map(|_| characters[random() % characters.len()]).collect();
        noises.push(noise.into_bytes());
    }
    for noise in noises {
        // Of this thread's own time, whoever else is busy.
        let clock = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        let start = clock();
        let message = parse(Path::new("noise"), noise).unwrap_err().to_string();
        let spent = clock() - start;
        assert!(spent < Duration::from_secs(20), "{spent:?} {message}");
        assert!(message.len() < 8192 && message.starts_with("noise:"), "{message}");
    }
}

#[test]
fn errors_found_later_have_a_place() {
    let config = read(GOOD).unwrap();
    let errors = config.error("port[1].device", "has 1 queue; expected 2, one for each worker");
    let expected = r#"
rvs.toml:25:10: port[1].device: has 1 queue; expected 2, one for each worker
   25 | device = "0000:01:00.0"
      |          ^^^^^^^^^^^^^^"#;
    assert_eq!(errors.to_string(), expected.trim_start());
    let errors = config.error("service[1].server[0]", "wrong; expected right");
    let expected = "
rvs.toml:50:1: service[1].server[0]: wrong; expected right
   50 | [[service.server]]
      | ^^^^^^^^^^^^^^^^^^";
    assert_eq!(errors.to_string(), expected.trim_start());
}

#[test]
fn what_needs_a_restart() {
    let old = read(GOOD).unwrap();
    for (from, to, expected) in [
        ("\n", "\n\n\n", None),
        ("weight = 3", "weight = 4", None),
        ("[1, 1]", "[1]", Some("workers.cores")),
        ("memory = 512", "memory = 513", Some("eal")),
        ("1_000_000", "2_000_000", Some("table.connections")),
        ("1_000_000", "1_000_000\nkeep = \"/run/rvs/table\"", Some("table.keep")),
        ("/tmp/rvs.sock", "/tmp/rvs2.sock", Some("admin.socket")),
        ("iface=eth1", "iface=eth2", Some("port[0].device")),
        ("mtu = 9000", "mtu = 1500", Some("port[1].mtu")),
    ] {
        assert_eq!(
            old.needs_restart(&read(&altered(from, to)).unwrap()).as_deref(),
            expected,
            "{from} -> {to}"
        );
    }
}

#[test]
fn the_first_user_needs_a_restart() {
    let hooks = |user: &str| {
        altered("port = \"wan\"\n", &format!("port = \"wan\"\nhooks = {{ timeout = \"1s\"{user} }}\n"))
    };
    let [without, with] = ["", ", user = \"root\""].map(|user| read(&hooks(user)).unwrap());
    assert_eq!(without.needs_restart(&with).as_deref(), Some("service[0].hooks.user"));
    assert_eq!(with.needs_restart(&with), None);
    assert_eq!(with.needs_restart(&without), None);
    let free = |mut config: crate::config::Config| {
        config.run.drop_capabilities = false;
        config
    };
    assert_eq!(free(without).needs_restart(&free(with)), None);
}

#[test]
fn a_service_that_only_moved_is_the_same() {
    assert_eq!(read(GOOD).unwrap().services, read(&format!("\n\n{GOOD}")).unwrap().services);
}

/// A piece of the good file goes, comes twice, or gives way to something else.
fn mutations() -> impl Strategy<Value = String> {
    let words: Vec<String> = GOOD.split([' ', '\n']).map(str::to_owned).collect();
    let odd = prop_oneof![
        select(vec![
            "",
            "0",
            "-1",
            "\"\"",
            "[]",
            "{}",
            "{",
            "]",
            "1e9",
            "true",
            "\n",
            "99999999999999999999",
            "[[port]]\n",
            "\"ä\"",
            "="
        ])
        .prop_map(str::to_owned),
        select(words),
        any::<String>(),
    ];
    let mutation = (any::<Index>(), any::<Index>(), odd);
    vec(mutation, 1..6).prop_map(|mutations| {
        let mut pieces: Vec<String> = GOOD.split_inclusive([' ', '\n']).map(str::to_owned).collect();
        for (at, what, odd) in mutations {
            let at = at.index(pieces.len());
            match what.index(3) {
                0 => pieces[at].clear(),
                1 => pieces[at] = pieces[at].repeat(2),
                _ => pieces[at] = format!("{odd}\n"),
            }
        }
        pieces.concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_file_makes_it_panic(text in mutations()) {
        if let Err(errors) = read(&text) {
            prop_assert!(errors.iter().count() > 0);
            prop_assert!(errors.iter().all(|error| error.line > 0 && error.column > 0));
            prop_assert!(!errors.to_string().is_empty());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(Path::new("f"), bytes).is_err());
    }
}

#[test]
fn the_sync_protocol_of_linux() {
    let with = |table: &str| read(&altered("[admin]", &format!("[ipvs_sync]\n{table}\n[admin]")));
    let ipvs_sync = with("role = \"backup\"\ninterface = \"eth2\"").unwrap().ipvs_sync.unwrap();
    assert!(ipvs_sync.role.listens() && !ipvs_sync.role.tells());
    assert_eq!((ipvs_sync.group, ipvs_sync.port), (Ipv4Addr::new(224, 0, 0, 81), 8848));
    assert_eq!((ipvs_sync.syncid, ipvs_sync.ttl, ipvs_sync.maxlen), (0, 1, 1472));
    let wrong = "role = \"slave\"\ninterface = \"eth2\"\nsyncid = 256\ngroup = \"10.0.0.1\"\nmaxlen = 43";
    assert_eq!(
        with(wrong).unwrap_err().to_string(),
        r#"rvs.toml:16:8: ipvs_sync.role: unknown role "slave"; expected one of backup, master, both
   16 | role = "slave"
      |        ^^^^^^^
rvs.toml:18:10: ipvs_sync.syncid: 256 is out of range; expected an integer from 0 to 255
   18 | syncid = 256
      |          ^^^
rvs.toml:19:9: ipvs_sync.group: "10.0.0.1" is no group; expected an IPv4 multicast address, e.g. "224.0.0.81"
   19 | group = "10.0.0.1"
      |         ^^^^^^^^^^
rvs.toml:20:10: ipvs_sync.maxlen: 43 is out of range; expected an integer from 44 to 65507
   20 | maxlen = 43
      |          ^^"#
    );
}

/// Tagged networks on the wire of the port above.
#[test]
fn networks() {
    let of = |more: &str| with(&format!("[[vlan]]\nport = 'wan'\nid = 100\n{more}"));
    let config = of("[[vlan]]\nport = 'wan'\nid = 200\nname = 'lan'\nmtu = 1400\n").unwrap();
    let seen = config
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.tag.map(|tag| (tag.port, tag.id)), port.mtu));
    let expected = [("wan", None, 1500), ("wan.100", Some((0, 100)), 1500), ("lan", Some((0, 200)), 1400)];
    assert!(seen.eq(expected), "{:?}", config.ports);

    let other = |key: &str, line: &str| {
        let table = "[[vlan]]\nport = 'wan'\nid = 100\n";
        let from = table.lines().find(|have| have.starts_with(key)).unwrap();
        with(&table.replace(from, line))
    };
    for (refused, expected) in [
        (
            other("port", "port = 'x'"),
            "vlan[0].port: there is no port \"x\"; expected the name of the [[port]] whose wire it is on",
        ),
        // A network is on no network's wire.
        (of("[[vlan]]\nport = 'wan.100'\nid = 2"), "vlan[1].port: there is no port \"wan.100\""),
        (other("port", ""), "vlan[0].port: missing"),
        (other("id", "id = 0"), "vlan[0].id: "),
        (other("id", "id = 4095"), "vlan[0].id: "),
        (other("id", ""), "vlan[0].id: missing"),
        (
            of("[[vlan]]\nport = 'wan'\nid = 100\nname = 'b'"),
            "vlan[1].id: VLAN 100 of this port stands in line 9 already; expected each once on a port",
        ),
        (of("name = 'wan'"), "vlan[0].name: "),
        (of("name = 'a-name-too-long-'"), "vlan[0].name: \"a-name-too-long-\" cannot name an interface"),
        (of("mtu = 1501"), "vlan[0].mtu: "),
        (of("mtu = 575"), "vlan[0].mtu: "),
        (of("device = 'net_null1'"), "vlan[0].device: unknown key"),
        (of("addresses = ['10.0.0.1/24']"), "vlan[0].addresses[0]: "),
    ] {
        let error = refused.unwrap_err();
        assert!(error.contains(expected), "{expected}\n{error}");
    }
    let long = with(
        "[[port]]\nname = 'a-long-name'\ndevice = 'net_null1'\n[[vlan]]\nport = 'a-long-name'\nid = 4094",
    )
    .unwrap_err();
    assert!(long.contains("vlan[0]: \"a-long-name.4094\" cannot name an interface"), "{long}");
}
