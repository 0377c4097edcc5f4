//! What is shown of what was answered, and what keys do to it.

use super::model::Pane;
use super::rows::scaled;
use super::*;
use crate::admin::api::{Counters, Rates, Server, Service, Stats, Table, Worker};

fn server(n: u8, up: bool, rate: u64) -> Server {
    Server {
        address: std::net::SocketAddr::new([10, 0, 0, n].into(), 8080),
        mode: "nat".to_owned(),
        weight: u32::from(n),
        effective_weight: u32::from(n),
        state: "enabled".to_owned(),
        remaining: None,
        up,
        reason: (!up).then(|| "connection refused".to_owned()),
        active: u64::from(n) * 100,
        inactive: 7,
        upper_threshold: None,
        lower_threshold: None,
        persistent: 0,
        stats: Stats::default(),
        rates: Rates {
            connections: rate / 10,
            packets_in: rate,
            packets_out: 2 * rate,
            bytes_in: 100 * rate,
            bytes_out: 1_000 * rate,
        },
    }
}

fn service(protocol: &str, address: &str, servers: Vec<Server>) -> Service {
    let mut rates = Rates::default();
    for server in &servers {
        rates.connections += server.rates.connections;
        rates.packets_in += server.rates.packets_in;
        rates.packets_out += server.rates.packets_out;
        rates.bytes_in += server.rates.bytes_in;
        rates.bytes_out += server.rates.bytes_out;
    }
    Service {
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
        withdrawn: None,
        syn_flood: None,
        stats: Stats::default(),
        rates,
        servers,
    }
}

/// What a router says that has run for so long: worker 0 is busy to three quarters, worker 1 has little to do.
fn at(seconds: u64) -> Sample {
    let reasons = |reasons: &[(&str, u64)]| reasons.iter().map(|(r, n)| ((*r).to_owned(), *n)).collect();
    let worker = |index: u32, busy: u64| Worker {
        index,
        core: index + 2,
        polls: 1_000 * seconds,
        empty_polls: (1_000 - busy) * seconds,
        bursts: busy * seconds,
        received: 12_000 * seconds,
        forwarded: 11_890 * seconds,
        punted: reasons(&[("icmp", 10 * seconds), ("vlan", 0)]),
        dropped: reasons(&[("no_server", 100 * seconds), ("runt", 3), ("martian", 0)]),
        ..Worker::default()
    };
    Sample {
        seconds: seconds as f64,
        services: vec![
            service(
                "tcp",
                "192.0.2.10:443",
                vec![server(2, false, 0), server(10, true, 9_000), server(1, true, 700)],
            ),
            service("udp", "192.0.2.9:53", vec![server(3, true, 20_000)]),
            service("tcp", "192.0.2.10:80", vec![]),
        ],
        counters: Counters {
            generation: 12,
            mappings: 4,
            table: Table { slots: 20_971_520, connections: 1_234_567 },
            workers: vec![worker(0, 750), worker(1, 12)],
            ports: Vec::new(),
        },
        events: vec![api_event(seconds)],
    }
}

fn api_event(sequence: u64) -> crate::admin::api::Event {
    crate::admin::api::Event {
        sequence,
        time: format!("2026-11-26T01:30:{sequence:02}.123Z"),
        event: "server_down".to_owned(),
        text: format!("tcp/192.0.2.10:443: 10.0.0.2:8080 is down: refused, {sequence}"),
        details: Default::default(),
    }
}

/// After two looks.
fn model() -> Model {
    let mut model = Model::new("/run/rvs.sock");
    model.take(at(10));
    model.take(at(11));
    model
}

fn press(model: &mut Model, keys: &str) {
    for key in keys.chars() {
        let key = match key {
            '\t' => Key::Tab,
            '\n' => Key::Enter,
            '\x1b' => Key::Escape,
            '\x08' => Key::Backspace,
            key => Key::Char(key),
        };
        assert_eq!(model.press(key), Flow::Continue);
    }
}

/// The first cells of a pane's rows.
fn first(model: &Model, pane: Pane) -> Vec<String> {
    model.shown(pane).into_iter().map(|row| row.cells[0].text.clone()).collect()
}

fn cells(model: &Model, pane: Pane) -> Vec<String> {
    let cells =
        |row: rows::Row| row.cells.iter().map(|cell| cell.text.clone()).collect::<Vec<_>>().join(" | ");
    model.shown(pane).into_iter().map(cells).collect()
}

#[test]
fn a_frame() {
    let mut model = model();
    press(&mut model, "jj");
    assert_eq!(format!("\n{}", text(&model, 130, 26).unwrap()), FRAME);
}

const FRAME: &str = "
RVS at /run/rvs.sock  generation 12  connections 1.2M of 21.0M slots (5.9 %)  servers up 3/4
 ▶ Services ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
service▾                  sched       up  active  inactive  conn/s  in pkt/s  out pkt/s  in bit/s  out bit/s
udp/192.0.2.9:53          wlc        1/1     300         7    2000     20.0k      40.0k     16.0M     160.0M
tcp/192.0.2.10:80         wlc        0/0       0         0       0         0          0         0          0
tcp/192.0.2.10:443        wlc        2/3    1300        21     970      9700      19.4k      7.8M      77.6M
 Real servers of tcp/192.0.2.10:443 ──────────────────────────────────────────────────────────────────────────────────────────────
server▾               state   weight  active  inactive  conn/s  in pkt/s  out pkt/s  in bit/s  out bit/s reason
10.0.0.1:8080         up           1     100         7      70       700       1400    560.0k       5.6M
10.0.0.2:8080         down         2     200         7       0         0          0         0          0 connection refused
10.0.0.10:8080        up          10    1000         7     900      9000      18.0k      7.2M      72.0M





 Workers ───────────────────────────────────────────────────────   Not forwarded ─────────────────────────────────────────────────
worker▾         load  recv/s   fwd/s  Linux/s  drop/s             fate     reason                                   pkt/s▾  in all
0 (core 2)    75.0 %   12.0k   11.9k       10     100             drop     no_server                                   200    2200
1 (core 3)     1.2 %   12.0k   11.9k       10     100             to Linux icmp                                         20     220
                                                                  drop     runt                                          0       6
 Events ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
01:30:10  tcp/192.0.2.10:443: 10.0.0.2:8080 is down: refused, 10
01:30:11  tcp/192.0.2.10:443: 10.0.0.2:8080 is down: refused, 11

q quit  Tab pane  ↑↓ select  s sort by next column  r reverse  / filter  h history
";

#[test]
fn before_the_first_answer() {
    let frame = text(&Model::new("/run/rvs.sock"), 110, 29).unwrap();
    assert!(frame.starts_with("RVS at /run/rvs.sock"), "{frame}");
}

#[test]
fn a_small_screen_and_a_history_are_no_trouble() {
    let mut model = model();
    press(&mut model, "h");
    for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
        text(&model, width, height).unwrap();
    }
}

#[test]
fn rates_are_of_the_time_between_two_looks() {
    let mut model = Model::new("");
    model.take(at(10));
    assert_eq!(cells(&model, Pane::Workers)[1], "1 (core 3) | - | - | - | - | -");
    model.take(at(14));
    assert_eq!(
        cells(&model, Pane::Workers),
        ["0 (core 2) | 75.0 % | 12.0k | 11.9k | 10 | 100", "1 (core 3) | 1.2 % | 12.0k | 11.9k | 10 | 100"]
    );
    // The largest rate first; what has never happened is not there.
    assert_eq!(
        cells(&model, Pane::Fates),
        ["drop | no_server | 200 | 2800", "to Linux | icmp | 20 | 280", "drop | runt | 0 | 6"]
    );
    // rvs has been started anew.
    model.take(Sample { seconds: 15.0, ..at(2) });
    assert_eq!(cells(&model, Pane::Workers)[0], "0 (core 2) | - | - | - | - | -");
}

#[test]
fn services_and_their_servers() {
    let mut model = model();
    assert_eq!(
        first(&model, Pane::Services),
        ["udp/192.0.2.9:53", "tcp/192.0.2.10:80", "tcp/192.0.2.10:443"],
        "by address, not by letters"
    );
    assert_eq!(first(&model, Pane::Servers), ["10.0.0.3:8080"]);
    press(&mut model, "jj");
    assert_eq!(
        cells(&model, Pane::Servers),
        [
            "10.0.0.1:8080 | up | 1 | 100 | 7 | 70 | 700 | 1400 | 560.0k | 5.6M | ",
            "10.0.0.2:8080 | down | 2 | 200 | 7 | 0 | 0 | 0 | 0 | 0 | connection refused",
            "10.0.0.10:8080 | up | 10 | 1000 | 7 | 900 | 9000 | 18.0k | 7.2M | 72.0M | ",
        ]
    );
    let alarms: Vec<bool> = model.shown(Pane::Servers).iter().map(|row| row.alarm).collect();
    assert_eq!(alarms, [false, true, false]);
    assert_eq!(cells(&model, Pane::Services)[2].split(" | ").nth(2), Some("2/3"));
    // At the end it stays.
    press(&mut model, "jjj");
    assert_eq!(model.service().unwrap().address.port(), 443);
}

#[test]
fn a_selection_stays_with_its_row() {
    let mut model = model();
    press(&mut model, "jj");
    let mut next = at(12);
    next.services.reverse();
    next.services.push(service("tcp", "192.0.2.1:80", vec![]));
    model.take(next.clone());
    assert_eq!(model.service().unwrap().address.port(), 443);
    next.services.retain(|service| service.address.port() != 443);
    model.take(next);
    assert_eq!(model.service().unwrap().address.to_string(), "192.0.2.1:80", "gone: the first");
}

#[test]
fn sorting() {
    let mut model = model();
    press(&mut model, "jj\tssssss");
    assert_eq!(
        first(&model, Pane::Servers),
        ["10.0.0.10:8080", "10.0.0.1:8080", "10.0.0.2:8080"],
        "by in pkt/s"
    );
    press(&mut model, "r");
    assert_eq!(first(&model, Pane::Servers), ["10.0.0.2:8080", "10.0.0.1:8080", "10.0.0.10:8080"]);
    press(&mut model, "sssss");
    assert_eq!(first(&model, Pane::Servers)[0], "10.0.0.1:8080", "around, by address");
    press(&mut model, "s");
    assert_eq!(first(&model, Pane::Servers)[0], "10.0.0.2:8080", "by state: down before up");
}

#[test]
fn addresses_of_ipv4_come_first() {
    let mut sample = at(10);
    let servers = ["[2001:db8:1::a]:80", "[2001:db8:1::9]:8080", "[2001:db8:1::9]:80", "10.0.0.10:80"];
    let servers = servers.map(|address| Server { address: address.parse().unwrap(), ..server(1, true, 0) });
    sample.services = vec![service("tcp", "[2001:db8::10]:80", servers.into())];
    let mut model = Model::new("");
    model.take(sample);
    press(&mut model, "\t");
    assert_eq!(
        first(&model, Pane::Servers),
        ["10.0.0.10:80", "[2001:db8:1::9]:80", "[2001:db8:1::9]:8080", "[2001:db8:1::a]:80"]
    );
    assert!(text(&model, 110, 29).unwrap().contains("Real servers of tcp/[2001:db8::10]:80"));
}

#[test]
fn filtering() {
    let mut model = model();
    press(&mut model, "jj\t/REFUSEDx\x08\n");
    assert_eq!(first(&model, Pane::Servers), ["10.0.0.2:8080"]);
    assert!(text(&model, 110, 29).unwrap().contains("Real servers of tcp/192.0.2.10:443 with \"REFUSED\""));
    press(&mut model, "\x1b");
    assert_eq!(first(&model, Pane::Servers).len(), 3);
    // While it is typed, a q is a q.
    press(&mut model, "/q");
    assert_eq!(first(&model, Pane::Servers).len(), 0);
    press(&mut model, "\x1b");
    assert_eq!(first(&model, Pane::Servers).len(), 3);
}

#[test]
fn panes_go_around_and_keys_end_it() {
    let mut model = model();
    press(&mut model, "\t\t\t");
    assert_eq!(model.pane, Pane::Fates);
    press(&mut model, "\t");
    assert_eq!(model.pane, Pane::Services);
    model.press(Key::BackTab);
    assert_eq!(model.pane, Pane::Fates);
    assert_eq!(model.press(Key::Char('q')), Flow::Quit);
    press(&mut model, "/");
    assert_eq!(model.press(Key::Interrupt), Flow::Quit);
}

#[test]
fn a_history_of_what_is_selected() {
    let mut model = model();
    press(&mut model, "jjh");
    assert_eq!(model.selected_history(), Some(("tcp/192.0.2.10:443".to_owned(), vec![29_100, 29_100])));
    assert!(
        text(&model, 110, 40).unwrap().contains("packets/s of tcp/192.0.2.10:443: now 29.1k, at most 29.1k")
    );
    press(&mut model, "\t\t");
    assert_eq!(model.selected_history(), Some(("worker 0".to_owned(), vec![0, 75])));
    assert!(text(&model, 110, 40).unwrap().contains("load in percent of worker 0: now 75, at most 75"));
    (12..400).for_each(|seconds| model.take(at(seconds)));
    assert_eq!(model.selected_history().unwrap().1.len(), 300);
}

#[test]
fn a_router_that_is_gone_leaves_what_was_known() {
    let mut model = model();
    model.fail("cannot reach rvs at /run/rvs.sock".to_owned());
    let frame = text(&model, 110, 29).unwrap();
    assert!(
        frame.starts_with("RVS is not reachable, trying again: cannot reach rvs at /run/rvs.sock"),
        "{frame}"
    );
    assert!(frame.contains("tcp/192.0.2.10:443"), "{frame}");
    model.take(at(12));
    assert!(text(&model, 110, 29).unwrap().starts_with("RVS at /run/rvs.sock"));
}

#[test]
fn ten_thousand_servers_are_drawn_in_no_time() {
    let mut sample = at(10);
    let many = (0..10_000).map(|n| Server { weight: n, ..server(1, true, n.into()) });
    let many = many.zip(0..).map(|(server, n)| Server {
        address: std::net::SocketAddr::from((std::net::Ipv4Addr::from(0x0A00_0000 + n), 80)),
        ..server
    });
    sample.services = vec![service("tcp", "192.0.2.10:80", many.collect())];
    let mut model = Model::new("");
    let start = std::time::Instant::now();
    model.take(sample);
    press(&mut model, "\tG");
    let frame = text(&model, 110, 29).unwrap();
    println!("{:?}", start.elapsed());
    assert!(frame.contains("10.0.39.15:80"), "{frame}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn numbers_keep_to_their_column() {
    for (value, text) in [
        (0.0, "0"),
        (0.4, "0"),
        (9_999.4, "9999"),
        (9_999.6, "10.0k"),
        (999_949.0, "999.9k"),
        (999_951.0, "1.0M"),
        (1e10, "10.0G"),
        (u64::MAX as f64, "18446.7P"),
    ] {
        assert_eq!(scaled(value), text);
    }
}
