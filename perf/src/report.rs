//! Figures with their noise, as a table, as JSON and as a picture.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::machine::Machine;
use crate::plot;

/// Where a report goes besides the terminal.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Outputs {
    /// Also write the figures as JSON; "-" instead of the table.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Also draw the figures as SVG.
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// What was measured, how often, and what is promised of it.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What distinguishes it from the others of its report: names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The unit of the samples.
    pub unit: &'static str,
    /// One of each round, in order.
    pub samples: Vec<f64>,
    /// What RVS promises.
    pub promise: Option<Promise>,
    /// Peers' figures, taken on another machine: a 2.6 GHz Xeon (`PROMISES.md`).
    pub peer: Option<String>,
}

/// A promised bound of a median.
#[derive(Clone, Copy, Debug, Serialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// Not more than this.
    AtMost(f64),
    /// Not less than this.
    AtLeast(f64),
}

impl Promise {
    /// Whether a value keeps it.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Promise::AtMost(bound) => value <= bound,
            Promise::AtLeast(bound) => value >= bound,
        }
    }
}

impl Figure {
    /// A figure without samples yet.
    pub fn new(unit: &'static str, labels: Vec<(&'static str, String)>) -> Figure {
        Figure { labels, unit, samples: Vec::new(), promise: None, peer: None }
    }

    /// Least, median and greatest sample; zeros if there is none.
    pub fn spread(&self) -> (f64, f64, f64) {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        (at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1)))
    }

    /// The median sample.
    pub fn median(&self) -> f64 {
        self.spread().1
    }
}

/// Figures of one command.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The command that shows them.
    pub command: String,
    /// What is the same for all of them.
    pub about: String,
    /// Where they were taken.
    pub machine: Machine,
    /// The figures.
    pub figures: Vec<Figure>,
}

impl Report {
    /// A report of this command line.
    pub fn new(about: String, figures: Vec<Figure>) -> Report {
        let command = std::iter::once("rvs-perf".to_owned()).chain(std::env::args().skip(1));
        let command = command.collect::<Vec<_>>().join(" ");
        Report { command, about, machine: Machine::read(), figures }
    }

    /// Prints the table, and writes what was asked for.
    pub fn publish(&self, outputs: &Outputs) -> Result<()> {
        self.publish_as(&self.table(), outputs)
    }

    /// As [`publish`](Report::publish), with another text for people.
    pub fn publish_as(&self, text: &str, outputs: &Outputs) -> Result<()> {
        match &outputs.json {
            Some(path) if path == Path::new("-") => {
                println!("{}", serde_json::to_string_pretty(self)?);
            }
            Some(path) => {
                print!("{text}");
                let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
                serde_json::to_writer_pretty(file, self)?;
            }
            None => print!("{text}"),
        }
        if let Some(path) = &outputs.plot {
            plot::bars(self, path).with_context(|| format!("cannot draw {}", path.display()))?;
        }
        Ok(())
    }

    /// The figures as text.
    pub fn table(&self) -> String {
        let Machine { cpu, cores, linux, dpdk, rustc, commit, linked } = &self.machine;
        let rounds = self.figures.iter().map(|figure| figure.samples.len()).max().unwrap_or(0);
        let names = self.labels();
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        let heading = ["median", "range", "unit", "promise", "", "peers, on a 2.6 GHz Xeon"];
        table.set_header(names.iter().copied().chain(heading));
        for figure in &self.figures {
            let labels = names.iter().map(|name| figure.label(name).to_owned());
            table.add_row(labels.chain(figure.cells()));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            let numbers = names.len()..names.len() + 2;
            let right = numbers.contains(&index) || names.get(index).is_some_and(|name| *name == "flows");
            column.set_cell_alignment(if right { CellAlignment::Right } else { CellAlignment::Left });
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        format!(
            "{}\n{cpu}, {cores} cores, Linux {linux}; {dpdk} ({linked}); {rustc}; commit {commit}\n\
             median and range of {rounds} rounds\n\n{}\n",
            self.about,
            lines.join("\n")
        )
    }

    fn labels(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (name, _) in self.figures.iter().flat_map(|figure| &figure.labels) {
            if !names.contains(name) {
                names.push(*name);
            }
        }
        names
    }
}

impl Figure {
    /// The value of a label, or nothing.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// The figure among those of other measurements: what it was measured with, and all of its labels in one.
    pub fn gathered(self, command: &str) -> Figure {
        let labels = vec![("command", command.to_owned()), ("figure", self.name())];
        Figure { labels, ..self }
    }

    /// All labels in one line.
    pub fn name(&self) -> String {
        self.labels.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(" ")
    }

    fn cells(&self) -> [String; 6] {
        let (least, median, greatest) = self.spread();
        let promise = match self.promise {
            Some(Promise::AtMost(bound)) => format!("<= {bound}"),
            Some(Promise::AtLeast(bound)) => format!(">= {bound}"),
            None => String::new(),
        };
        let kept = self.promise.map_or("", |promise| if promise.holds(median) { "holds" } else { "FAILS" });
        let range = if self.samples.len() > 1 {
            format!("{}-{}", short(least), short(greatest))
        } else {
            String::new()
        };
        let peer = self.peer.clone().unwrap_or_default();
        [short(median), range, self.unit.to_owned(), promise, kept.to_owned(), peer]
    }
}

/// Three digits, or all before the point.
fn short(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

/// Shows how far a long measurement is; nothing where nobody looks.
pub fn progress(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} (still {eta})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ranges_and_promises() {
        let mut figure = Figure::new("cycles", vec![("path", "nat in".into()), ("flows", "1000".into())]);
        figure.samples = vec![91.0, 88.0, 89.5];
        figure.promise = Some(Promise::AtMost(90.0));
        assert_eq!(figure.spread(), (88.0, 89.5, 91.0));
        let report = Report::new("about".into(), vec![figure.clone()]);
        let table = report.table();
        assert!(table.contains("89.5") && table.contains("88.0-91.0") && table.contains("holds"), "{table}");
        figure.promise = Some(Promise::AtMost(89.0));
        assert!(Report::new(String::new(), vec![figure]).table().contains("FAILS"));
    }
}
