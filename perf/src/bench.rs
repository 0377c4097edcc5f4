//! `rvs-perf bench`: every promise that one machine can keep, in a few minutes and one table.

use anyhow::Result;
use clap::Parser;

use crate::eal::Environment;
use crate::report::{Figure, Outputs, Report};
use crate::{adopt, connect, device, path, program, reload, scale};

/// How long, and where to.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Rounds of each measurement.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds that each figure takes in a round.
    #[arg(long, default_value_t = 200)]
    time: u64,
    /// Only the smallest sizes, to see that it works.
    #[arg(long)]
    smoke: bool,
    #[command(flatten)]
    outputs: Outputs,
}

/// The options of a subcommand, read from a line as from the shell: so every row names the command that shows it.
#[derive(Parser)]
struct Options<A: clap::Args> {
    #[command(flatten)]
    options: A,
}

fn options<A: clap::Args>(arguments: &Arguments, line: &str) -> A {
    options_of(&format!("{line} --rounds {} --time {}", arguments.rounds, arguments.time))
}

fn options_of<A: clap::Args>(line: &str) -> A {
    Options::parse_from(format!("rvs-perf {line}").split_whitespace()).options
}

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let environment = Environment::start()?;
    let smoke = arguments.smoke;
    let mut figures = Vec::new();
    let mut add = |what: &str, measured: Vec<Figure>| {
        figures.extend(measured.into_iter().map(|figure| figure.gathered(what)));
    };

    let flows = if smoke { "--flows 1000" } else { "--flows 1000,100000,1000000,10000000" };
    add("path", path::measure(&environment, &options(arguments, flows))?.0);
    let services = if smoke { "10" } else { "10,10000" };
    let services = format!("--modes nat --ways in --flows 100000 --services {services}");
    add("services", against_the_first(path::measure(&environment, &options(arguments, &services))?.0));
    let captures =
        path::measure(&environment, &options(arguments, "--flows 1000 --ways in --capture 1000"))?.0;
    add("capture", captures.into_iter().filter(|figure| figure.unit == "%").collect());
    let room = if smoke { "--room 10000" } else { "" };
    add("connect", connect::measure(&environment, &options(arguments, &format!("--protocols tcp {room}")))?);
    let flows = if smoke { "--flows 1000" } else { "" };
    add("scale", scale::measure(&environment, &options(arguments, flows))?);
    let size = if smoke { "--services 10 --flows 1000 --reloads 2" } else { "" };
    add("reload", reload::measure(&environment, &options(arguments, size))?);
    let size = if smoke { "--connections 10000" } else { "" };
    add("adopt", adopt::measure(&options_of(&format!("{size} --rounds {}", arguments.rounds)))?);

    // Those start the built program in a namespace of its own.
    if nix::unistd::geteuid().is_root() {
        let size = if smoke { "--connections 1000000 --services 10" } else { "" };
        add("program", program::measure(&options_of(&format!("{size} --rounds {}", arguments.rounds)))?);
        let device = options(arguments, "--devices pcap --flows 1000");
        add("device", device::measure(&device)?.figures);
    } else {
        eprintln!("rvs-perf: program and device are left out: they need root");
    }

    let about = format!("what PROMISES.md promises; {}", environment.memory());
    Report::new(about, figures).publish(&arguments.outputs)
}

/// How much more the last figure is than the first that forwards: what many services cost.
fn against_the_first(figures: Vec<Figure>) -> Vec<Figure> {
    let routed: Vec<&Figure> = figures.iter().filter(|figure| !figure.label("services").is_empty()).collect();
    let (Some(few), Some(many)) = (routed.first(), routed.last()) else { return Vec::new() };
    let what = format!("{} services, more than {}", many.label("services"), few.label("services"));
    let mut more = Figure::new("cycles/packet", vec![("services", what)]);
    more.samples = many.samples.iter().zip(&few.samples).map(|(many, few)| many - few).collect();
    more.promise = Some(crate::report::Promise::AtMost(15.0));
    vec![more]
}
