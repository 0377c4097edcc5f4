//! The exposition as a whole, by promtool, and against the dashboard.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::*;

/// A router with so many servers in its first service of two.
fn scrape(servers: u32) -> Scrape {
    let stats = |n: u64| api::Stats {
        connections: n,
        packets_in: 10 * n,
        packets_out: 9 * n,
        bytes_in: 1_000 * n,
        bytes_out: 20_000 * n,
    };
    let server = |n: u32| api::Server {
        address: SocketAddr::from((std::net::Ipv4Addr::from(0x0A00_0000 + n), 8080)),
        mode: "nat".to_owned(),
        weight: n,
        effective_weight: if n == 2 { 0 } else { n },
        state: "enabled".to_owned(),
        remaining: None,
        up: n != 2,
        reason: (n == 2).then(|| "connection refused".to_owned()),
        active: 3,
        inactive: 4,
        upper_threshold: None,
        lower_threshold: None,
        persistent: 5,
        stats: stats(n.into()),
        rates: api::Rates::default(),
    };
    let service = |protocol: &str, address: &str, servers: Vec<api::Server>| api::Service {
        protocol: protocol.to_owned(),
        address: address.parse().unwrap(),
        mark: None,
        ports: Vec::new(),
        scheduler: "wlc".to_owned(),
        flags: Vec::new(),
        mode: "nat".to_owned(),
        one_packet: false,
        helper: None,
        at_risk: false,
        persistence: None,
        tunnel: None,
        withdrawn: (protocol == "udp").then(|| "rvs stops".to_owned()),
        syn_flood: (protocol == "tcp").then_some(api::SynFlood { shut: true, syns: 12 }),
        stats: stats(100),
        rates: api::Rates::default(),
        servers,
    };
    let peer = |address: &str, standing: &str| api::Peer {
        address: address.parse().unwrap(),
        standing: standing.to_owned(),
        version: 2,
        waiting: 10,
        lag_us: 12_500,
        sent_a_second: 11,
        received_a_second: 12,
        bulk: (standing == "away").then_some(0.25),
        counts: api::PeerCounts {
            sent: 13,
            sent_bytes: 14,
            connections_sent: 15,
            connections_confirmed: 16,
            connections_retold: 17,
            received: 18,
            received_bytes: 19,
            connections_received: 20,
            lost: 21,
            forged: 22,
            replayed: 23,
            hasty: 24,
            other_version: 25,
            not_understood: 26,
            bulks: 27,
        },
    };
    let reasons = |reasons: &[(&str, u64)]| reasons.iter().map(|(r, n)| ((*r).to_owned(), *n)).collect();
    let worker = |index| api::Worker {
        index,
        core: index + 2,
        polls: 1_000,
        empty_polls: 900,
        bursts: 100,
        received: 3_200,
        forwarded: 3_000,
        punted: reasons(&[("icmp", 50), ("no_service", 50)]),
        dropped: reasons(&[("runt", 1), ("table_full", 99)]),
        waiting: 5,
        held: 6,
        ftp_unchanged: 10,
        routed: 8,
        routed_bytes: 9,
        injected: 7,
        inject_dropped: 1,
        ..api::Worker::default()
    };
    let mut checks =
        Checks { kind: "tcp", seconds: 0.25, failed: 3, timed_out: 2, unknown: 1, ..Checks::default() };
    checks.passed[3] = 40;
    checks.passed[16] = 2;
    let start = UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
    let tally = |count, seconds| Tally { count, last: start + Duration::from_secs(seconds) };
    Scrape {
        dpdk: "DPDK 22.11.5".to_owned(),
        start,
        counters: api::Counters {
            generation: 12,
            mappings: 4,
            table: api::Table { slots: 2_048, connections: 77 },
            workers: vec![worker(0), worker(1)],
            ports: vec![port("wan", true, Some(10_000)), port("lan", false, None)],
        },
        services: vec![
            service("tcp", "192.0.2.10:80", (1..=servers).map(server).collect()),
            service("udp", "192.0.2.10:53", vec![server(1)]),
        ],
        checks: vec![checks],
        sync: Some(api::Sync {
            ready: true,
            withdrawn: false,
            peers: vec![peer("10.9.0.2:8848", "together"), peer("10.9.0.3:8848", "away")],
            adopted: api::Adopted { new: 1, changed: 2, known: 3, stale: 4, no_room: 5 },
            flushed: 8,
            overflows: 6,
            strangers: 7,
            cpu_seconds: 1.5,
            ipvs: None,
        }),
        events: [("reload_applied", tally(4, 100)), ("reload_refused", tally(1, 200))].into(),
        states: std::array::from_fn(|state| state as u64),
        local_ports: vec![LocalPorts { address: "10.0.0.100".parse().unwrap(), protocol: "tcp", taken: 7 }],
        snat_blocks: vec![SnatBlocks {
            address: "192.0.2.50".parse().unwrap(),
            protocol: "udp",
            used: 5,
            free: 121,
        }],
    }
}

fn port(name: &str, link_up: bool, link_speed: Option<u32>) -> api::Port {
    let device = api::Device {
        name: "0000:01:00.0".to_owned(),
        driver: "net_ixgbe".to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        node: None,
        mtu: 1500,
        max_queues: 16,
        rx_descriptors: 1024,
        tx_descriptors: 1024,
        hashed_side: "both".to_owned(),
        rss: Vec::new(),
        rx_offloads: Vec::new(),
        tx_offloads: Vec::new(),
        promiscuous: Some(true),
        link_up,
        link_speed,
        trouble: None,
        members: vec![api::Member {
            name: "0000:01:00.0".to_owned(),
            up: link_up,
            sends: link_up,
            link_up,
            link_speed,
        }],
    };
    api::Port { name: name.to_owned(), queues: 2, hashed: None, device: Some(device), vlan: None }
}

fn text(servers: u32) -> String {
    scrape(servers).render(Format::Text).unwrap()
}

/// Names of all series.
fn names(exposition: &str) -> BTreeSet<&str> {
    let series = exposition.lines().filter(|line| !line.starts_with('#'));
    series.filter_map(|line| line.split(['{', ' ']).next()).collect()
}

#[test]
fn every_value_is_where_it_belongs() {
    let text = text(2);
    for line in [
        concat!("rvs_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\",dpdk=\"DPDK 22.11.5\"} 1"),
        "rvs_start_time_seconds 1700000000.5",
        "rvs_snapshot_generation 12",
        "rvs_reloads_total{result=\"applied\"} 4",
        "rvs_reloads_total{result=\"refused\"} 1",
        "rvs_last_reload_successful 0",
        "rvs_last_reload_success_timestamp_seconds 1700000100.5",
        "rvs_address_announced{address=\"192.0.2.10\"} 0",
        "rvs_service_connections_total{service=\"tcp/192.0.2.10:80\"} 100",
        "rvs_service_outgoing_bytes_total{service=\"udp/192.0.2.10:53\"} 2000000",
        "rvs_server_up{service=\"tcp/192.0.2.10:80\",server=\"10.0.0.1:8080\"} 1",
        "rvs_server_up{service=\"tcp/192.0.2.10:80\",server=\"10.0.0.2:8080\"} 0",
        "rvs_server_weight{service=\"tcp/192.0.2.10:80\",server=\"10.0.0.2:8080\"} 2",
        "rvs_server_active_connections{service=\"tcp/192.0.2.10:80\",server=\"10.0.0.2:8080\"} 3",
        "rvs_server_inactive_connections{service=\"tcp/192.0.2.10:80\",server=\"10.0.0.2:8080\"} 4",
        "rvs_server_persistent_clients{service=\"tcp/192.0.2.10:80\",server=\"10.0.0.2:8080\"} 5",
        "rvs_server_incoming_packets_total{service=\"tcp/192.0.2.10:80\",server=\"10.0.0.2:8080\"} 20",
        "rvs_health_checks_total{kind=\"tcp\",result=\"passed\"} 42",
        "rvs_health_checks_total{kind=\"tcp\",result=\"timed_out\"} 2",
        "rvs_health_check_duration_seconds_bucket{kind=\"tcp\",le=\"0.0005\"} 0",
        "rvs_health_check_duration_seconds_bucket{kind=\"tcp\",le=\"0.001\"} 40",
        "rvs_health_check_duration_seconds_bucket{kind=\"tcp\",le=\"10\"} 40",
        "rvs_health_check_duration_seconds_bucket{kind=\"tcp\",le=\"+Inf\"} 42",
        "rvs_health_check_duration_seconds_count{kind=\"tcp\"} 42",
        "rvs_worker_empty_polls_total{worker=\"1\",core=\"3\"} 900",
        "rvs_worker_punted_packets_total{worker=\"0\",core=\"2\",reason=\"no_service\"} 50",
        "rvs_worker_dropped_packets_total{worker=\"1\",core=\"3\",reason=\"table_full\"} 99",
        "rvs_worker_inject_dropped_packets_total{worker=\"0\",core=\"2\"} 1",
        "rvs_worker_waiting_fragments{worker=\"1\",core=\"3\"} 5",
        "rvs_worker_held_fragments_total{worker=\"0\",core=\"2\"} 6",
        "rvs_worker_ftp_unchanged_replies_total{worker=\"0\",core=\"2\"} 10",
        "rvs_worker_routed_packets_total{worker=\"0\",core=\"2\"} 8",
        "rvs_worker_routed_bytes_total{worker=\"1\",core=\"3\"} 9",
        "rvs_port_link_up{port=\"wan\"} 1",
        "rvs_port_link_up{port=\"lan\"} 0",
        "rvs_port_member_up{port=\"lan\",member=\"0000:01:00.0\"} 0",
        "rvs_port_link_speed{port=\"wan\"} 10000000000",
        "rvs_table_slots 2048",
        "rvs_snat_mappings 4",
        "rvs_snat_blocks_used{address=\"192.0.2.50\",protocol=\"udp\"} 5",
        "rvs_snat_blocks_free{address=\"192.0.2.50\",protocol=\"udp\"} 121",
        "rvs_table_connections 77",
        "rvs_table_state_connections{state=\"ESTABLISHED\"} 1",
        "rvs_table_state_connections{state=\"UDP\"} 11",
        "rvs_sync_ready 1",
        "rvs_peer_standing{peer=\"10.9.0.2:8848\",standing=\"together\"} 1",
        "rvs_peer_standing{peer=\"10.9.0.2:8848\",standing=\"away\"} 0",
        "rvs_peer_lag_seconds{peer=\"10.9.0.2:8848\"} 0.0125",
        "rvs_peer_waiting_connections{peer=\"10.9.0.2:8848\"} 10.0",
        "rvs_peer_bulk_progress_ratio{peer=\"10.9.0.2:8848\"} 1.0",
        "rvs_peer_bulk_progress_ratio{peer=\"10.9.0.3:8848\"} 0.25",
        "rvs_peer_sent_datagrams_total{peer=\"10.9.0.2:8848\"} 13",
        "rvs_peer_confirmed_connections_total{peer=\"10.9.0.2:8848\"} 16",
        "rvs_peer_retold_connections_total{peer=\"10.9.0.2:8848\"} 17",
        "rvs_peer_lost_datagrams_total{peer=\"10.9.0.2:8848\"} 21",
        "rvs_peer_refused_datagrams_total{peer=\"10.9.0.2:8848\",reason=\"forged\"} 22",
        "rvs_peer_refused_datagrams_total{peer=\"10.9.0.2:8848\",reason=\"replayed\"} 23",
        "rvs_peer_refused_datagrams_total{peer=\"10.9.0.2:8848\",reason=\"hasty\"} 24",
        "rvs_peer_refused_datagrams_total{peer=\"10.9.0.2:8848\",reason=\"version\"} 25",
        "rvs_peer_refused_datagrams_total{peer=\"10.9.0.2:8848\",reason=\"unknown\"} 26",
        "rvs_peer_bulks_total{peer=\"10.9.0.2:8848\"} 27",
        "rvs_sync_adoptions_total{result=\"no_room\"} 5",
        "rvs_sync_flushed_connections_total 8",
        "rvs_sync_overflows_total 6",
        "rvs_sync_stranger_datagrams_total 7",
        "rvs_sync_cpu_seconds_total 1.5",
    ] {
        assert!(text.lines().any(|is| is == line), "not there: {line}\n{text}");
    }
}

#[test]
fn labels_of_ipv6() {
    let mut scrape = scrape(2);
    scrape.services[0].address = "[2001:db8::10]:80".parse().unwrap();
    scrape.services[0].servers[0].address = "[2001:db8:1::11]:8080".parse().unwrap();
    let text = scrape.render(Format::Text).unwrap();
    for series in [
        "rvs_server_up{service=\"tcp/[2001:db8::10]:80\",server=\"[2001:db8:1::11]:8080\"} 1",
        "rvs_address_announced{address=\"2001:db8::10\"} 1",
    ] {
        assert!(text.lines().any(|line| line == series), "{series}: {text}");
    }
}

#[test]
fn no_series_stands_there_twice_and_each_family_has_help() {
    let text = text(20);
    let series: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap().0)
        .collect();
    assert_eq!(series.iter().collect::<BTreeSet<_>>().len(), series.len());
    let described = |what: &str| -> Vec<&str> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(what));
        lines.map(|line| line.split_once(' ').expect("a text").0).collect()
    };
    assert_eq!(described("# HELP "), described("# TYPE "));
    let families: BTreeSet<&str> = described("# HELP ").into_iter().collect();
    assert_eq!(families.len(), described("# HELP ").len());
}

#[test]
fn both_formats_have_the_same_series() {
    let open = scrape(2).render(Format::OpenMetrics).unwrap();
    assert!(open.ends_with("# EOF\n"));
    assert_eq!(names(&open), names(&text(2)));
    assert_eq!(
        Format::accepted("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
        Format::OpenMetrics
    );
    assert_eq!(Format::accepted("*/*"), Format::Text);
}

#[test]
fn without_a_reload_the_start_is_what_was_applied() {
    let text = Scrape { events: BTreeMap::new(), ..scrape(0) }.render(Format::Text).unwrap();
    for line in [
        "rvs_reloads_total{result=\"applied\"} 0",
        "rvs_last_reload_successful 1",
        "rvs_last_reload_success_timestamp_seconds 1700000000.5",
    ] {
        assert!(text.lines().any(|is| is == line), "not there: {line}\n{text}");
    }
}

/// What promtool says to it; `None` without promtool.
fn promtool(exposition: &str) -> Option<String> {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = match command.spawn() {
        Ok(promtool) => promtool,
        Err(error) => {
            eprintln!("SKIPPED: no promtool ({error}); it is in Debian's package prometheus");
            return None;
        }
    };
    promtool.stdin.take().unwrap().write_all(exposition.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some(format!("{}{}", String::from_utf8(said).unwrap(), output.status))
}

#[test]
fn promtool_has_no_complaint() {
    if let Some(said) = promtool(&text(3)) {
        assert_eq!(said, "exit status: 0");
    }
    if let Some(said) = promtool("rvs_polls 1\n") {
        assert_ne!(said, "exit status: 0", "promtool lets everything pass");
    }
}

/// Prometheus' own parser of OpenMetrics takes each line; it is in the importer, which wants times as well.
#[test]
fn prometheus_reads_open_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("metrics");
    let import = |exposition: &str| {
        let timed = exposition.lines().map(|line| match line.starts_with('#') {
            true => format!("{line}\n"),
            false => format!("{line} 1700000200\n"),
        });
        std::fs::write(&file, timed.collect::<String>()).unwrap();
        let mut promtool = Command::new("promtool");
        let promtool = promtool.args(["tsdb", "create-blocks-from", "openmetrics"]).arg(&file);
        promtool.arg(directory.path().join("blocks")).output()
    };
    let open = scrape(2).render(Format::OpenMetrics).unwrap();
    match import(&open) {
        Ok(output) => {
            assert!(output.status.success(), "{}\n{open}", String::from_utf8_lossy(&output.stderr));
            assert!(
                !import("rvs_polls{ 1\n# EOF\n").unwrap().status.success(),
                "promtool lets everything pass"
            );
        }
        Err(error) => eprintln!("SKIPPED: no promtool ({error}); it is in Debian's package prometheus"),
    }
}

#[test]
fn ten_thousand_servers_are_no_burden() {
    let large = scrape(10_000);
    let start = Instant::now();
    let text = large.render(Format::Text).unwrap();
    let took = start.elapsed();
    println!("{} lines, {} bytes in {took:?}", text.lines().count(), text.len());
    assert!(text.lines().count() > 90_000);
    // Measured: 15 ms. Prometheus gives a scrape ten seconds.
    assert!(took < Duration::from_secs(3), "{took:?}");
}

// The dashboard -----------------------------------------------------------------------------------------------------

const DASHBOARD: &str = include_str!("../../../configs/grafana/rvs.json");

/// Every text under a key, wherever it is.
fn texts<'a>(value: &'a serde_json::Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if name == key => found.push(text),
                    _ => texts(value, key, found),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| texts(value, key, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut asked = Vec::new();
    texts(&dashboard, "expr", &mut asked);
    texts(&dashboard, "query", &mut asked);
    assert!(asked.len() > 20, "{asked:?}");
    let words = asked.iter().flat_map(|expr| expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let wanted: BTreeSet<&str> = words.filter(|word| word.starts_with("rvs_")).collect();
    let text = text(2);
    let there = names(&text);
    let unknown: Vec<_> = wanted.difference(&there).collect();
    assert!(unknown.is_empty(), "no such metrics: {unknown:?}");
    // And the other way round: what nobody looks at need not be there.
    let unseen: Vec<_> = there
        .difference(&wanted)
        .filter(|name| !name.ends_with("_duration_seconds_count") && !name.ends_with("_duration_seconds_sum"))
        .collect();
    assert!(unseen.is_empty(), "on no panel: {unseen:?}");
}

/// Labels by which the dashboard chooses and groups have to be those of the metrics.
#[test]
fn the_dashboard_groups_by_labels_that_there_are() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut asked = Vec::new();
    texts(&dashboard, "expr", &mut asked);
    let groups = asked.iter().flat_map(|expr| expr.split("by (").skip(1));
    let labels = groups.flat_map(|rest| rest.split(')').next().unwrap().split(',').map(str::trim));
    let text = text(2);
    for label in labels {
        assert!(text.contains(&format!("{label}=\"")), "no such label: {label}");
    }
}
