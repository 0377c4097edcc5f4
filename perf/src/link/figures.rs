//! What was found out, as figures and as text.

use comfy_table::Table;
use itertools::iproduct;

use super::Case;
use super::job::{Findings, QUANTILES, Trials};
use crate::report::Figure;

/// Rates of every case, with ratios of RVS to its peer, then latencies.
pub fn figures(trials: &Trials, cases: &[Case], findings: &[Vec<Findings>]) -> Vec<Figure> {
    let figure = |case: &Case, router: String, unit, more: Vec<(&'static str, String)>, samples: Vec<f64>| {
        let labels = vec![("link", case.link.name().to_owned()), ("router", router)];
        Figure { samples, ..Figure::new(unit, labels.into_iter().chain(more).collect()) }
    };
    let loss = |percent: &f64| vec![("loss", format!("<= {percent} %"))];
    let mut figures = Vec::new();
    // RVS and its peer.
    for (cases, findings) in cases.chunks(2).zip(findings.chunks(2)) {
        for (case, findings) in cases.iter().zip(findings) {
            let mut rate = |more, of: &dyn Fn(&Findings) -> f64| {
                let samples = findings.iter().map(|found| of(found) / 1e6).collect();
                figures.push(figure(case, case.name(), "Mpps", more, samples));
            };
            for (index, percent) in trials.tolerances.iter().enumerate() {
                rate(loss(percent), &|found| found.throughput[index]);
            }
            rate(vec![("loss", "overload".to_owned())], &|found| found.overload);
        }
        let ([rvs, peer], [of_rvs, of_peer]) = (cases, findings) else { continue };
        for (index, percent) in trials.tolerances.iter().enumerate() {
            let pairs = of_rvs.iter().zip(of_peer).map(|(a, b)| (a.throughput[index], b.throughput[index]));
            let samples = pairs.filter(|(_, peer)| *peer > 0.0).map(|(rvs, peer)| rvs / peer).collect();
            let name = format!("{} / {}", rvs.name(), peer.name());
            figures.push(figure(rvs, name, "ratio", loss(percent), samples));
        }
    }
    for (case, findings) in cases.iter().zip(findings) {
        for (load, (quantile, name)) in
            iproduct!(0..trials.loads.len(), QUANTILES.iter().map(|q| q.0).enumerate())
        {
            let labels = vec![("load", format!("{} %", trials.loads[load])), ("latency", name.to_owned())];
            let samples = findings.iter().map(|found| found.latency[load][quantile]).collect();
            figures.push(figure(case, case.name(), "us", labels, samples));
        }
    }
    figures
}

/// Medians over the rounds; a line each router and load.
pub fn latencies(figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(["link", "router", "load"].into_iter().chain(QUANTILES.iter().map(|(name, _)| *name)));
    for row in figures.chunks(QUANTILES.len()) {
        let labels = ["link", "router", "load"].map(|name| row[0].label(name).to_owned());
        table.add_row(labels.into_iter().chain(row.iter().map(|figure| format!("{:.1}", figure.median()))));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    format!("latency in microseconds, medians of the rounds\n\n{}\n", lines.join("\n"))
}
