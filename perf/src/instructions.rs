//! `rvs-perf instructions`: instructions a packet, which are the same on every machine.
//!
//! Cycles depend on the machine and its neighbours; instructions only on the program. valgrind's callgrind counts
//! them while the engine takes packets of 1 000 established flows, or the first packets of flows, from parse to rewrite,
//! for two numbers of packets; the difference is what the packets took, and setting up falls out. `--check` compares with recorded figures: that
//! is the gate which keeps the path fast. A deliberate change of more than the bound changes the record, in a
//! commit that says why.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use dataplane::service::{Mode, Protocol, Scheduler};
use serde::{Deserialize, Serialize};

use crate::report::{Figure, Outputs, Promise, Report, progress};
use crate::rig::{Bare, Rig, Setting};
use crate::source::Way;

/// What to count.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Recorded figures, TOML: fail if one is exceeded by more than the bound.
    #[arg(long, value_name = "FILE.toml")]
    check: Option<PathBuf>,
    /// Write the figures there, as the new record.
    #[arg(long, value_name = "FILE.toml", conflicts_with = "check")]
    record: Option<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
    /// Run a path without counting; what valgrind runs.
    #[arg(long, hide = true, value_name = "PATH")]
    bare: Option<String>,
    /// Packets of the shorter run.
    #[arg(long, default_value_t = 64_000, hide = true)]
    packets: usize,
    /// Flows that can be opened: as many for the longer run, so that both begin alike.
    #[arg(long, default_value_t = 0, hide = true)]
    room: u32,
}

/// The recorded figures.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    /// How much more than recorded passes, in percent.
    bound: f64,
    /// Instructions a packet, by path.
    instructions: std::collections::BTreeMap<String, f64>,
}

/// How much more passes if nothing is recorded.
const BOUND: f64 = 5.0;
const FLOWS: u32 = 1_000;

/// What is counted, by name.
const PATHS: [(&str, Mode, Bare); 7] = [
    ("nat-in", Mode::Nat, Bare::Established(Way::In)),
    ("nat-out", Mode::Nat, Bare::Established(Way::Out)),
    ("dr-in", Mode::Dr, Bare::Established(Way::In)),
    ("nat-new", Mode::Nat, Bare::Opening),
    ("dr-new", Mode::Dr, Bare::Opening),
    ("tunnel-in", Mode::Tunnel, Bare::Established(Way::In)),
    ("tunnel-new", Mode::Tunnel, Bare::Opening),
];

/// Counts and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(path) = &arguments.bare {
        return bare(path, arguments.packets, arguments.room);
    }
    let record: Option<Record> = match &arguments.check {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(toml::from_str(&text).with_context(|| format!("{} is no record", path.display()))?)
        }
        None => None,
    };
    let mut figures = Vec::new();
    let bar = progress(2 * PATHS.len());
    for (name, _, _) in PATHS {
        let mut figure = Figure::new("instructions/packet", vec![("path", name.to_owned())]);
        let mut counts = [0; 2];
        let longer = 2 * arguments.packets;
        for (count, packets) in counts.iter_mut().zip([arguments.packets, longer]) {
            *count = callgrind(name, packets, longer)?;
            bar.inc(1);
        }
        figure.samples.push((counts[1] - counts[0]) as f64 / arguments.packets as f64);
        if let Some(record) = &record {
            let known = record.instructions.get(name);
            let known = known.with_context(|| format!("the record has no figure for {name:?}"))?;
            figure.promise = Some(Promise::AtMost((known * (1.0 + record.bound / 100.0)).round()));
        }
        figures.push(figure);
    }
    bar.finish_and_clear();
    if let Some(path) = &arguments.record {
        let instructions = figures.iter().map(|figure| (figure.name(), figure.median().round())).collect();
        let text = toml::to_string(&Record { bound: BOUND, instructions })?;
        fs::write(path, format!("{HEADING}{text}"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let exceeded =
        figures.iter().find(|figure| figure.promise.is_some_and(|promise| !promise.holds(figure.median())));
    let exceeded = exceeded.map(Figure::name);
    let about =
        format!("the engine, TCP, {FLOWS} established flows, or new ones by mh; counted by callgrind");
    Report::new(about, figures).publish(&arguments.outputs)?;
    if let Some(name) = exceeded {
        bail!(
            "{name} takes more instructions than recorded allows; if that is right, record it anew and say why"
        );
    }
    Ok(())
}

const HEADING: &str = "\
# Instructions a packet of the engine, and how much more passes, in percent. `make gate` checks it; a commit that
# changes it says why. Written by: rvs-perf instructions --record perf/instructions.toml
";

/// All instructions of a run with so many packets, which could be as many as `room`.
fn callgrind(path: &str, packets: usize, room: usize) -> Result<u64> {
    let program = env::current_exe().context("cannot find this program's own file")?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([
            "instructions",
            "--bare",
            path,
            "--packets",
            &packets.to_string(),
            "--room",
            &room.to_string(),
        ])
        .output()
        .context("cannot run valgrind; install it: apt-get install valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed: {}", text.trim());
    let collected =
        text.lines().find_map(|line| line.split_once("Collected :")).map(|(_, count)| count.trim());
    collected
        .and_then(|count| count.parse().ok())
        .with_context(|| format!("valgrind says no count: {}", text.trim()))
}

fn bare(name: &str, packets: usize, room: u32) -> Result<()> {
    let known = PATHS.iter().find(|(path, _, _)| *path == name);
    let (_, mode, bare) = known.with_context(|| format!("there is no path {name:?}"))?;
    let setting = match bare {
        Bare::Established(_) => Setting::plain(*mode, Protocol::Tcp, FLOWS),
        // The table is half full after the longer run.
        Bare::Opening => {
            Setting { scheduler: Scheduler::Mh, servers: 10, room, ..Setting::plain(*mode, Protocol::Tcp, 0) }
        }
    };
    let rig = Rig::new(&setting)?;
    ensure!(rig.run_bare(*bare, packets) == packets, "not every packet was forwarded");
    Ok(())
}
