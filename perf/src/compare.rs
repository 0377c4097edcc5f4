//! `rvs-perf compare`: two builds of the benchmark, in turn.
//!
//! A figure taken today and one taken yesterday differ by what the machine did meanwhile. Here both builds take turns,
//! one round each, so that whatever disturbs the machine disturbs both.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::report::{Figure, Outputs, Report, progress};

/// What to compare.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// A commit (built in `target/compare`), or another build of this program.
    #[arg(long)]
    base: String,
    /// Another commit or build; this program itself if it is left out.
    #[arg(long)]
    with: Option<String>,
    /// Rounds of each.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    #[command(flatten)]
    outputs: Outputs,
    /// What both are to measure, e.g. `-- path --flows 1000`.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Builds what has to be built, lets both measure, and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let base = program(&arguments.base)?;
    let new = match &arguments.with {
        Some(name) => program(name)?,
        None => env::current_exe().context("cannot find this program's own file")?,
    };
    let mut samples: BTreeMap<Name, [Vec<f64>; 2]> = BTreeMap::new();
    let bar = progress(2 * arguments.rounds);
    for round in 0..arguments.rounds.max(1) {
        // Who comes first changes, too.
        let turns = if round % 2 == 0 { [(0, &base), (1, &new)] } else { [(1, &new), (0, &base)] };
        for (side, program) in turns {
            for (name, sample) in measure(program, &arguments.command)? {
                samples.entry(name).or_default()[side].push(sample);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let mut figures = Vec::new();
    for (name, [base, new]) in samples {
        ensure!(base.len() == new.len(), "the two builds do not measure the same figures: {:?}", name.labels);
        let labels = |what: &str| [vec![("build", what.to_owned())], name.labels()].concat();
        let mut ratio = Figure::new("new/base", labels("ratio"));
        ratio.samples = new.iter().zip(&base).map(|(new, base)| new / base).collect();
        for (what, samples) in [("base", base), ("new", new)] {
            let mut figure = Figure::new("", labels(what));
            figure.samples = samples;
            figures.push(figure);
        }
        figures.push(ratio);
    }
    let about =
        format!("{} against {}, in turn: {}", new.display(), base.display(), arguments.command.join(" "));
    Report::new(about, figures).publish(&arguments.outputs)
}

/// What another build's JSON says of a figure.
#[derive(Deserialize)]
struct Measured {
    labels: Vec<(String, String)>,
    samples: Vec<f64>,
}

#[derive(Deserialize)]
struct Measurement {
    figures: Vec<Measured>,
}

/// What distinguishes a figure: the values of its labels, in one column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    labels: String,
}

impl Name {
    fn labels(&self) -> Vec<(&'static str, String)> {
        vec![("figure", self.labels.clone())]
    }
}

/// One round of one build.
fn measure(program: &Path, command: &[String]) -> Result<Vec<(Name, f64)>> {
    let output = Command::new(program).args(command).args(["--rounds", "1", "--json", "-"]).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!("{} failed: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let measurement: Measurement = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{} does not write JSON that this one reads", program.display()))?;
    let mut figures = Vec::new();
    for Measured { labels, samples } in measurement.figures {
        let values: Vec<String> = labels.into_iter().map(|(_, value)| value).collect();
        let sample = *samples.first().context("a figure without a sample")?;
        figures.push((Name { labels: values.join(" ") }, sample));
    }
    Ok(figures)
}

/// A program as it is, or one that is built from a commit.
fn program(name: &str) -> Result<PathBuf> {
    if Path::new(name).is_file() {
        return Ok(PathBuf::from(name));
    }
    let commit = output("git", &["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")])
        .with_context(|| format!("{name} is neither a program nor a commit of the repository here"))?;
    let root = PathBuf::from(output("git", &["rev-parse", "--show-toplevel"])?);
    let directory = root.join("target/compare").join(&commit[..12]);
    if !directory.join("Cargo.toml").is_file() {
        let path = directory.to_str().context("the repository's path is not UTF-8")?;
        output("git", &["worktree", "add", "--detach", "--force", path, &commit])?;
    }
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "-p", "rvs-perf", "--features", "static"])
        .current_dir(&directory)
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "commit {commit} does not build, see above");
    Ok(directory.join("target/release/rvs-perf"))
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
