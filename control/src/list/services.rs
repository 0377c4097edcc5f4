//! `ipvsadm -Ln`, `-Ln --stats`, `-Ln --rate`.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};

use dataplane::service::{Mode, Protocol};
use dataplane::wire::ipv4;

use super::title;
use crate::admin::api::{HERE, Persistence, Rates, Server, Service, Stats, Table};

/// Which of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Scheduler, forwarding method, weight, connections.
    State,
    /// Weight, connections, and clients that come back.
    Persistent,
    /// Connections, and how many a server is given.
    Thresholds,
    /// What has passed since the start.
    Stats,
    /// What passes a second.
    Rates,
}

/// How large numbers are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// From 100 million on in K, M, G or T (powers of 1000).
    Scaled,
    /// To the last digit.
    Exact,
}

/// Writes the services, those of marks and then those of IPv4 first, sorted by protocol number, address and port, each with its real servers sorted
/// by address and port.
pub fn services(
    out: &mut impl Write,
    table: &Table,
    services: &[Service],
    columns: Columns,
    numbers: Numbers,
) -> io::Result<()> {
    writeln!(out, "{}", title(table))?;
    match columns {
        Columns::State => {
            writeln!(out, "Prot LocalAddress:Port Scheduler Flags")?;
            writeln!(out, "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn")?;
        }
        Columns::Persistent => wide(out, ["Weight", "PersistConn", "ActiveConn", "InActConn"])?,
        Columns::Thresholds => wide(out, ["Uthreshold", "Lthreshold", "ActiveConn", "InActConn"])?,
        Columns::Stats => heading(out, ["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"])?,
        Columns::Rates => heading(out, ["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"])?,
    }
    let mut services: Vec<&Service> = services.iter().collect();
    services.sort_by_key(|service| {
        let is_marked = service.mark.is_none();
        (is_marked, service.address.is_ipv6(), protocol_number(&service.protocol), service.address)
    });
    for service in services {
        let name = name(service);
        match columns {
            Columns::State => {
                let withdrawn = service.withdrawn.as_ref();
                let withdrawn = withdrawn.map(|reason| format!("  withdrawn: {reason}")).unwrap_or_default();
                let (scheduler, flags) = (&service.scheduler, flags(&service.flags));
                let persistent =
                    service.persistence.map(|how| persistent(how, service.address)).unwrap_or_default();
                let ops = if service.one_packet { " ops" } else { "" };
                let helper =
                    service.helper.as_ref().map(|helper| format!(" helper {helper}")).unwrap_or_default();
                let at_risk = if service.at_risk { " at-risk" } else { "" };
                let shut = service.syn_flood.is_some_and(|flood| flood.shut);
                let flood = if shut { "  SYN flood" } else { "" };
                let ports = match service.ports.as_slice() {
                    [] => String::new(),
                    ports => format!(" ports {}", ports.join(",")),
                };
                writeln!(
                    out,
                    "{name} {scheduler}{flags}{persistent}{ops}{helper}{at_risk}{ports}{withdrawn}{flood}"
                )?;
            }
            Columns::Persistent | Columns::Thresholds => writeln!(out, "{name} {}", service.scheduler)?,
            Columns::Stats => numbered(out, &name, &stats(&service.stats, numbers))?,
            Columns::Rates => numbered(out, &name, &rates(&service.rates).map(|n| number(n, numbers)))?,
        }
        let mut servers: Vec<&Server> = service.servers.iter().collect();
        servers.sort_by_key(|server| server.address);
        for server in servers {
            server_line(out, server, columns, numbers)?;
        }
    }
    Ok(())
}

fn name(service: &Service) -> String {
    match &service.mark {
        Some(mark) => format!("FWM  {}{}", mark.number, if service.address.is_ipv6() { " IPv6" } else { "" }),
        None => format!("{:<4} {}", service.protocol.to_uppercase(), service.address),
    }
}

fn server_line(out: &mut impl Write, server: &Server, columns: Columns, numbers: Numbers) -> io::Result<()> {
    // Formatted first: an address does not pad itself reliably.
    let name = format!("  -> {:<28}", server.address.to_string());
    match columns {
        Columns::State => {
            let weight = server.effective_weight;
            let (forward, active, inactive) = (forward(&server.mode), server.active, server.inactive);
            writeln!(out, "{name} {forward:<7} {weight:<6} {active:<10} {inactive:<10}")
        }
        Columns::Persistent => {
            let (weight, persistent) = (server.effective_weight, server.persistent);
            let (active, inactive) = (server.active, server.inactive);
            writeln!(out, "{name} {weight:<9} {persistent:<11} {active:<10} {inactive:<10}")
        }
        Columns::Thresholds => {
            // No limit is 0 with ipvsadm.
            let [upper, lower] =
                [server.upper_threshold, server.lower_threshold].map(Option::unwrap_or_default);
            let (active, inactive) = (server.active, server.inactive);
            writeln!(out, "{name} {upper:<10} {lower:<10} {active:<10} {inactive:<10}")
        }
        Columns::Stats => numbered(out, &name, &stats(&server.stats, numbers)),
        Columns::Rates => {
            // ipvsadm scales the bytes of a real server here, but not its packets.
            let [connections, packets_in, packets_out, bytes_in, bytes_out] = rates(&server.rates);
            let unscaled = |n| format!(" {n:>8}");
            let [bytes_in, bytes_out] = [bytes_in, bytes_out].map(|n| number(n, numbers));
            let packets = [connections, packets_in, packets_out].map(unscaled);
            numbered(out, &name, &[&packets[..], &[bytes_in, bytes_out]].concat())
        }
    }
}

fn wide(out: &mut impl Write, [a, b, c, d]: [&str; 4]) -> io::Result<()> {
    writeln!(out, "{:<32} {a:<9} {b:<10} {c:<10} {d}", "Prot LocalAddress:Port")?;
    writeln!(out, "  -> RemoteAddress:Port")
}

fn heading(out: &mut impl Write, [a, b, c, d, e]: [&str; 5]) -> io::Result<()> {
    writeln!(out, "{:<33} {a:>8} {b:>8} {c:>8} {d:>8} {e:>8}", "Prot LocalAddress:Port")?;
    writeln!(out, "  -> RemoteAddress:Port")
}

fn numbered(out: &mut impl Write, name: &str, numbers: &[String]) -> io::Result<()> {
    writeln!(out, "{name:<33}{}", numbers.concat())
}

fn stats(stats: &Stats, numbers: Numbers) -> [String; 5] {
    let Stats { connections, packets_in, packets_out, bytes_in, bytes_out } = *stats;
    [connections, packets_in, packets_out, bytes_in, bytes_out].map(|n| number(n, numbers))
}

fn rates(rates: &Rates) -> [u64; 5] {
    let Rates { connections, packets_in, packets_out, bytes_in, bytes_out } = *rates;
    [connections, packets_in, packets_out, bytes_in, bytes_out]
}

/// A number in nine columns; one to the last digit may take more, but leaves a blank before it.
fn number(number: u64, numbers: Numbers) -> String {
    const K: u64 = 1_000;
    const M: u64 = 1_000 * K;
    const G: u64 = 1_000 * M;
    const T: u64 = 1_000 * G;
    let (divisor, unit) = match number {
        _ if numbers == Numbers::Exact => return format!(" {number:>8}"),
        n if n < 100 * M => return format!("{n:>9}"),
        n if n < G => (K, 'K'),
        n if n < 100 * G => (M, 'M'),
        n if n < 100 * T => (G, 'G'),
        _ => (T, 'T'),
    };
    format!("{:>8}{unit}", number / divisor)
}

fn flags(flags: &[String]) -> String {
    if flags.is_empty() { String::new() } else { format!(" ({})", flags.join(",")) }
}

/// As ipvsadm has it: seconds, and the mask unless all of an address counts, of IPv6 by its length.
fn persistent(how: Persistence, service: SocketAddr) -> String {
    let mask = match (service, how.prefix) {
        (SocketAddr::V4(_), 32) | (SocketAddr::V6(_), 128) => String::new(),
        (SocketAddr::V4(_), prefix) => format!(" mask {}", Ipv4Addr::from(ipv4::mask(prefix))),
        (SocketAddr::V6(_), prefix) => format!(" mask {prefix}"),
    };
    format!(" persistent {}{mask}", how.timeout)
}

/// The forwarding method as ipvsadm names it.
fn forward(mode: &str) -> &str {
    match Mode::from_name(mode) {
        Some(Mode::Nat) => "Masq",
        Some(Mode::Dr) => "Route",
        Some(Mode::Tunnel) => "Tunnel",
        Some(Mode::Fullnat) => "FullNat",
        None if mode == HERE => "Local",
        None => mode,
    }
}

/// What a newer server may know and we do not comes last.
fn protocol_number(name: &str) -> u8 {
    Protocol::from_name(name).map_or(u8::MAX, Protocol::number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Table = Table { slots: 4096, connections: 0 };

    fn server(address: &str, mode: &str, weight: u32, active: u64, inactive: u64) -> Server {
        Server {
            address: address.parse().unwrap(),
            mode: mode.to_owned(),
            weight,
            effective_weight: weight,
            state: "enabled".to_owned(),
            remaining: None,
            up: true,
            reason: None,
            active,
            inactive,
            upper_threshold: None,
            lower_threshold: None,
            persistent: 0,
            stats: Stats::default(),
            rates: Rates::default(),
        }
    }

    fn service(
        protocol: &str,
        address: &str,
        scheduler: &str,
        flags: &[&str],
        servers: Vec<Server>,
    ) -> Service {
        Service {
            protocol: protocol.to_owned(),
            address: address.parse().unwrap(),
            mark: None,
            ports: Vec::new(),
            scheduler: scheduler.to_owned(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            mode: "nat".to_owned(),
            one_packet: false,
            helper: None,
            at_risk: false,
            persistence: None,
            tunnel: None,
            withdrawn: None,
            syn_flood: None,
            stats: Stats::default(),
            rates: Rates::default(),
            servers,
        }
    }

    /// The listing without its first line, and with `·` for a blank at the end of a line.
    fn listed(list: &[Service], columns: Columns, numbers: Numbers) -> String {
        let mut out = Vec::new();
        services(&mut out, &TABLE, list, columns, numbers).unwrap();
        let text = String::from_utf8(out).unwrap();
        let title = concat!("RVS version ", env!("CARGO_PKG_VERSION"), " (size=4096)\n");
        let show = |line: &str| {
            let end = line.trim_end_matches(' ');
            format!("{end}{}\n", "·".repeat(line.len() - end.len()))
        };
        text.strip_prefix(title).unwrap().lines().map(show).collect()
    }

    #[test]
    fn state() {
        let mut down = server("10.0.0.9:80", "nat", 7, 0, 3);
        (down.up, down.effective_weight) = (false, 0);
        let list = [
            service("udp", "192.0.2.10:53", "rr", &[], vec![server("10.0.0.3:53", "tunnel", 1, 0, 0)]),
            service("tcp", "192.0.2.10:443", "sh", &["sh-fallback", "sh-port"], vec![]),
            service(
                "tcp",
                "192.0.2.10:80",
                "wlc",
                &[],
                vec![
                    server("10.0.0.10:80", "nat", 65535, 4_294_967_296, 1),
                    down,
                    server("10.0.0.2:80", "dr", 1, 0, 0),
                    server("10.0.0.1:80", "nat", 3, 12, 40),
                    server("192.0.2.10:80", "local", 1, 2, 1),
                ],
            ),
            service("tcp", "9.255.255.255:65535", "mh", &["mh-port"], vec![]),
            service(
                "tcp",
                "[2001:db8::80]:80",
                "mh",
                &["mh-port"],
                vec![
                    server("[2001:db8:1:0:a:b:c:d]:8080", "nat", 1, 0, 0),
                    server("[2001:db8:1::a]:80", "nat", 1, 0, 0),
                ],
            ),
        ];
        let expected = "
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  9.255.255.255:65535 mh (mh-port)
TCP  192.0.2.10:80 wlc
  -> 10.0.0.1:80                  Masq    3      12         40········
  -> 10.0.0.2:80                  Route   1      0          0·········
  -> 10.0.0.9:80                  Masq    0      0          3·········
  -> 10.0.0.10:80                 Masq    65535  4294967296 1·········
  -> 192.0.2.10:80                Local   1      2          1·········
TCP  192.0.2.10:443 sh (sh-fallback,sh-port)
UDP  192.0.2.10:53 rr
  -> 10.0.0.3:53                  Tunnel  1      0          0·········
TCP  [2001:db8::80]:80 mh (mh-port)
  -> [2001:db8:1::a]:80           Masq    1      0          0·········
  -> [2001:db8:1:0:a:b:c:d]:8080  Masq    1      0          0·········
";
        assert_eq!(listed(&list, Columns::State, Numbers::Scaled), &expected[1..]);
    }

    #[test]
    fn a_withdrawn_address_says_why() {
        let mut web = service("tcp", "192.0.2.10:80", "mh", &["mh-port"], vec![]);
        web.withdrawn = Some("rvs stops".to_owned());
        let text = listed(&[web], Columns::State, Numbers::Scaled);
        assert!(text.ends_with("TCP  192.0.2.10:80 mh (mh-port)  withdrawn: rvs stops\n"), "{text}");
    }

    #[test]
    fn a_service_of_some_ports_says_which() {
        let mut ftp = service("tcp", "192.0.2.10:0", "wlc", &[], vec![]);
        ftp.ports = ["21", "10000-20000"].map(str::to_owned).to_vec();
        ftp.withdrawn = Some("rvs stops".to_owned());
        let text = listed(&[ftp], Columns::State, Numbers::Scaled);
        assert!(text.ends_with("192.0.2.10:0 wlc ports 21,10000-20000  withdrawn: rvs stops\n"), "{text}");
    }

    #[test]
    fn clients_that_come_back() {
        let mut server = server("10.0.0.1:80", "nat", 3, 12, 40);
        server.persistent = 7;
        let mut web = service("tcp", "192.0.2.10:80", "wlc", &[], vec![server]);
        let shown = |web: &Service| listed(std::slice::from_ref(web), Columns::State, Numbers::Scaled);
        web.persistence = Some(Persistence { timeout: 300, prefix: 32 });
        assert!(shown(&web).contains("80 wlc persistent 300\n"), "{}", shown(&web));
        web.persistence = Some(Persistence { timeout: 60, prefix: 24 });
        assert!(shown(&web).contains("80 wlc persistent 60 mask 255.255.255.0\n"), "{}", shown(&web));
        web.one_packet = true;
        assert!(shown(&web).contains("80 wlc persistent 60 mask 255.255.255.0 ops\n"), "{}", shown(&web));
        web.helper = Some("ftp".to_owned());
        assert!(shown(&web).contains(" mask 255.255.255.0 ops helper ftp\n"), "{}", shown(&web));
        web.helper = None;
        web.at_risk = true;
        assert!(shown(&web).contains(" ops at-risk\n"), "{}", shown(&web));
        web.at_risk = false;
        let address = std::mem::replace(&mut web.address, "[2001:db8::10]:80".parse().unwrap());
        for (prefix, mask) in [(128, ""), (64, " mask 64"), (32, " mask 32")] {
            web.persistence = Some(Persistence { timeout: 60, prefix });
            let expected = format!("]:80 wlc persistent 60{mask} ops\n");
            assert!(shown(&web).contains(&expected), "{}", shown(&web));
        }
        web.address = address;
        let expected = "
Prot LocalAddress:Port           Weight    PersistConn ActiveConn InActConn
  -> RemoteAddress:Port
TCP  192.0.2.10:80 wlc
  -> 10.0.0.1:80                  3         7           12         40········
";
        assert_eq!(listed(&[web], Columns::Persistent, Numbers::Scaled), &expected[1..]);
    }

    #[test]
    fn thresholds() {
        let mut limited = server("10.0.0.1:80", "nat", 3, 12, 40);
        (limited.upper_threshold, limited.lower_threshold) = (Some(4_000_000_000), Some(3_000_000));
        let servers = vec![limited, server("10.0.0.2:80", "nat", 3, 1, 0)];
        let web = service("tcp", "192.0.2.10:80", "wlc", &[], servers);
        let expected = "
Prot LocalAddress:Port           Uthreshold Lthreshold ActiveConn InActConn
  -> RemoteAddress:Port
TCP  192.0.2.10:80 wlc
  -> 10.0.0.1:80                  4000000000 3000000    12         40········
  -> 10.0.0.2:80                  0          0          1          0·········
";
        assert_eq!(listed(&[web], Columns::Thresholds, Numbers::Scaled), &expected[1..]);
    }

    fn busy() -> [Service; 1] {
        let mut web =
            service("tcp", "192.0.2.10:80", "wlc", &[], vec![server("10.0.0.1:80", "nat", 3, 12, 40)]);
        web.stats = Stats {
            connections: 1200,
            packets_in: 10000,
            packets_out: 9800,
            bytes_in: 123_456_789,
            bytes_out: 4_567_890_123,
        };
        web.servers[0].stats = Stats {
            connections: 900,
            packets_in: 7500,
            packets_out: 7350,
            bytes_in: 99_999_999,
            bytes_out: 100_000_000,
        };
        web.rates =
            Rates { connections: 15, packets_in: 310, packets_out: 300, bytes_in: 41200, bytes_out: 90000 };
        web.servers[0].rates =
            Rates { connections: 11, packets_in: 230, packets_out: 222, bytes_in: 30000, bytes_out: 66000 };
        [web]
    }

    #[test]
    fn stats_and_rates() {
        let expected = "
Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes
  -> RemoteAddress:Port
TCP  192.0.2.10:80                    1200    10000     9800  123456K    4567M
  -> 10.0.0.1:80                       900     7500     7350 99999999  100000K
";
        assert_eq!(listed(&busy(), Columns::Stats, Numbers::Scaled), &expected[1..]);
        let expected = "
Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes
  -> RemoteAddress:Port
TCP  192.0.2.10:80                    1200    10000     9800 123456789 4567890123
  -> 10.0.0.1:80                       900     7500     7350 99999999 100000000
";
        assert_eq!(listed(&busy(), Columns::Stats, Numbers::Exact), &expected[1..]);
        let expected = "
Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS
  -> RemoteAddress:Port
TCP  192.0.2.10:80                      15      310      300    41200    90000
  -> 10.0.0.1:80                        11      230      222    30000    66000
";
        assert_eq!(listed(&busy(), Columns::Rates, Numbers::Scaled), &expected[1..]);
    }

    #[test]
    fn a_server_s_packet_rates_are_not_scaled() {
        let mut busy = busy();
        let all = Rates {
            connections: 100_000_000,
            packets_in: 100_000_000,
            packets_out: 100_000_000,
            bytes_in: 100_000_000,
            bytes_out: 100_000_000,
        };
        (busy[0].rates, busy[0].servers[0].rates) = (all, all);
        let expected = "
TCP  192.0.2.10:80                 100000K  100000K  100000K  100000K  100000K
  -> 10.0.0.1:80                  100000000 100000000 100000000  100000K  100000K
";
        assert!(listed(&busy, Columns::Rates, Numbers::Scaled).ends_with(&expected[1..]));
    }

    #[test]
    fn scaling() {
        for (n, expected) in [
            (0, "        0"),
            (99_999_999, " 99999999"),
            (100_000_000, "  100000K"),
            (999_999_999, "  999999K"),
            (1_000_000_000, "    1000M"),
            (99_999_999_999, "   99999M"),
            (100_000_000_000, "     100G"),
            (99_999_999_999_999, "   99999G"),
            (100_000_000_000_000, "     100T"),
            (u64::MAX, "18446744T"),
        ] {
            assert_eq!(number(n, Numbers::Scaled), expected);
        }
        assert_eq!(number(12_345_678, Numbers::Exact), " 12345678");
        assert_eq!(number(123_456_789, Numbers::Exact), " 123456789");
    }
}
