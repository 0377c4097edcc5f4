//! Tables made of what the router has answered.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::model::{Pane, Sample};
use crate::admin::api::{Rates, Server, Service, Worker};

/// A column: its heading, and whether it has numbers.
pub(super) type Column = (&'static str, bool);

const SERVICES: [Column; 10] = [
    ("service", false),
    ("sched", false),
    ("up", true),
    ("active", true),
    ("inactive", true),
    ("conn/s", true),
    ("in pkt/s", true),
    ("out pkt/s", true),
    ("in bit/s", true),
    ("out bit/s", true),
];

const SERVERS: [Column; 11] = [
    ("server", false),
    ("state", false),
    ("weight", true),
    ("active", true),
    ("inactive", true),
    ("conn/s", true),
    ("in pkt/s", true),
    ("out pkt/s", true),
    ("in bit/s", true),
    ("out bit/s", true),
    ("reason", false),
];

const WORKERS: [Column; 6] = [
    ("worker", false),
    ("load", true),
    ("recv/s", true),
    ("fwd/s", true),
    ("Linux/s", true),
    ("drop/s", true),
];

const FATES: [Column; 4] = [("fate", false), ("reason", false), ("pkt/s", true), ("in all", true)];

/// The column of [`Pane::Fates`] that matters most.
pub(super) const FATES_RATE: usize = 2;

/// A pane's columns.
pub(super) fn columns(pane: Pane) -> &'static [Column] {
    match pane {
        Pane::Services => &SERVICES,
        Pane::Servers => &SERVERS,
        Pane::Workers => &WORKERS,
        Pane::Fates => &FATES,
    }
}

/// A row: a cell a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// What it is about; the same at every look.
    pub(super) key: String,
    pub(super) cells: Vec<Cell>,
    /// Whether something is wrong.
    pub(super) alarm: bool,
    /// What its history is of: packets a second, or load in percent.
    pub(super) level: u64,
}

/// A text, and its place among others.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cell {
    pub(super) text: String,
    order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    /// As the text.
    Text,
    /// Addresses: the lowest first, those of IPv4 before those of IPv6.
    Address(SocketAddr),
    /// Numbers of things: the lowest first.
    Up(f64),
    /// Amounts: the largest first.
    Down(f64),
}

impl Cell {
    /// Which comes first.
    pub(super) fn compare(&self, other: &Cell) -> Ordering {
        match (self.order, other.order) {
            (Order::Address(one), Order::Address(other)) => one.cmp(&other),
            (Order::Up(one), Order::Up(other)) => one.total_cmp(&other),
            (Order::Down(one), Order::Down(other)) => other.total_cmp(&one),
            _ => self.text.cmp(&other.text),
        }
    }
}

/// As the logs name it.
pub(super) fn name(service: &Service) -> String {
    service.name()
}

pub(super) fn services(services: &[Service]) -> Vec<Row> {
    let row = |service: &Service| {
        let sum = |value: fn(&Server) -> u64| service.servers.iter().map(value).sum::<u64>();
        let (up, all) = (sum(|server| server.up.into()), service.servers.len() as u64);
        let share = Cell { text: format!("{up}/{all}"), order: Order::Down((all - up) as f64) };
        let mut cells = vec![
            address(name(service), service.address),
            text(service.scheduler.clone()),
            share,
            amount(sum(|server| server.active) as f64),
            amount(sum(|server| server.inactive) as f64),
        ];
        cells.extend(rates(&service.rates));
        Row { key: name(service), cells, alarm: up == 0, level: packets(&service.rates) }
    };
    services.iter().map(row).collect()
}

pub(super) fn servers(service: &Service) -> Vec<Row> {
    let name = name(service);
    let row = |server: &Server| {
        let mut cells = vec![
            address(server.address.to_string(), server.address),
            text(state(server)),
            amount(server.effective_weight.into()),
            amount(server.active as f64),
            amount(server.inactive as f64),
        ];
        cells.extend(rates(&server.rates));
        cells.push(text(server.reason.clone().unwrap_or_default()));
        let key = format!("{name} {}", server.address);
        Row { key, cells, alarm: !server.up, level: packets(&server.rates) }
    };
    service.servers.iter().map(row).collect()
}

fn state(server: &Server) -> String {
    match server.state.as_str() {
        _ if !server.up => "down".to_owned(),
        "enabled" | "" => "up".to_owned(),
        other => other.to_owned(),
    }
}

pub(super) fn workers(last: &Sample, before: Option<&Sample>) -> Vec<Row> {
    let row = |worker: &Worker| {
        let then =
            before.and_then(|before| before.counters.workers.iter().find(|then| then.index == worker.index));
        let rate =
            |value: fn(&Worker) -> u64| grown(value(then?), value(worker), last.seconds - before?.seconds);
        let load = match (rate(|worker| worker.polls), rate(|worker| worker.empty_polls)) {
            (Some(polls), Some(empty)) if polls > 0.0 => Some(100.0 * (1.0 - empty / polls).clamp(0.0, 1.0)),
            _ => None,
        };
        let or_unknown = |value: Option<f64>| value.map_or_else(unknown, amount);
        let cells = vec![
            Cell {
                text: format!("{} (core {})", worker.index, worker.core),
                order: Order::Up(worker.index.into()),
            },
            load.map_or_else(unknown, |load| Cell { text: format!("{load:.1} %"), order: Order::Down(load) }),
            or_unknown(rate(|worker| worker.received)),
            or_unknown(rate(|worker| worker.forwarded)),
            or_unknown(rate(|worker| worker.punted.values().sum())),
            or_unknown(rate(|worker| worker.dropped.values().sum())),
        ];
        let alarm = load.is_some_and(|load| load > 95.0);
        Row {
            key: format!("worker {}", worker.index),
            cells,
            alarm,
            level: load.unwrap_or(0.0).round() as u64,
        }
    };
    last.counters.workers.iter().map(row).collect()
}

/// Counts by reason.
type Reasons = fn(&Worker) -> &BTreeMap<String, u64>;

/// Where packets went that were not forwarded, over all workers; what has never happened is left out.
pub(super) fn fates(last: &Sample, before: Option<&Sample>) -> Vec<Row> {
    let mut rows = Vec::new();
    let fates: [(&str, Reasons); 2] =
        [("drop", |worker| &worker.dropped), ("to Linux", |worker| &worker.punted)];
    for (fate, reasons) in fates {
        let sums = |sample: &Sample| {
            let mut sums = BTreeMap::<String, u64>::new();
            let all = sample.counters.workers.iter().flat_map(reasons);
            all.for_each(|(reason, count)| *sums.entry(reason.clone()).or_default() += count);
            sums
        };
        let then = before.map(|before| (before.seconds, sums(before)));
        for (reason, count) in sums(last).into_iter().filter(|(_, count)| *count > 0) {
            let rate = then
                .as_ref()
                .and_then(|(seconds, then)| grown(*then.get(&reason)?, count, last.seconds - seconds));
            let cells = vec![
                text(fate.to_owned()),
                text(reason.clone()),
                rate.map_or_else(unknown, amount),
                amount(count as f64),
            ];
            let level = rate.unwrap_or(0.0).round() as u64;
            rows.push(Row {
                key: format!("{fate} {reason}"),
                cells,
                alarm: fate == "drop" && level > 0,
                level,
            });
        }
    }
    rows
}

/// Growth a second; `None` if it has gone back, as it does when rvs starts anew.
fn grown(then: u64, now: u64, seconds: f64) -> Option<f64> {
    (seconds > 0.0).then_some(now.checked_sub(then)? as f64 / seconds)
}

fn packets(rates: &Rates) -> u64 {
    rates.packets_in + rates.packets_out
}

fn rates(rates: &Rates) -> [Cell; 5] {
    let Rates { connections, packets_in, packets_out, bytes_in, bytes_out } = *rates;
    [connections, packets_in, packets_out, 8 * bytes_in, 8 * bytes_out].map(|rate| amount(rate as f64))
}

fn text(text: String) -> Cell {
    Cell { text, order: Order::Text }
}

fn address(text: String, address: SocketAddr) -> Cell {
    Cell { text, order: Order::Address(address) }
}

fn amount(value: f64) -> Cell {
    Cell { text: scaled(value), order: Order::Down(value) }
}

fn unknown() -> Cell {
    Cell { text: "-".to_owned(), order: Order::Down(-1.0) }
}

/// At most six columns: whole numbers below ten thousand, then in powers of a thousand.
pub(super) fn scaled(value: f64) -> String {
    const UNITS: [&str; 5] = ["k", "M", "G", "T", "P"];
    if value < 9_999.5 {
        return format!("{value:.0}");
    }
    let mut scaled = value / 1_000.0;
    let mut unit = 0;
    while scaled >= 999.95 && unit + 1 < UNITS.len() {
        scaled /= 1_000.0;
        unit += 1;
    }
    format!("{scaled:.1}{}", UNITS[unit])
}
