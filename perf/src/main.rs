//! `rvs-perf`: what the packet path of RVS costs, and what its peers cost beside it.

mod adopt;
mod bench;
mod ceiling;
mod compare;
mod connect;
mod control;
mod cpu;
mod device;
mod eal;
mod frame;
mod instructions;
mod link;
mod machine;
mod path;
mod plot;
mod program;
mod reload;
mod report;
mod rig;
mod scale;
mod slot;
mod source;
mod subject;
mod sync;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures the packet path of RVS.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All that is promised, in a few minutes and one table
    Bench(bench::Arguments),
    /// Cycles a packet of the worker loop, on made-up packets
    Path(path::Arguments),
    /// What a new connection costs, as the table fills
    Connect(connect::Arguments),
    /// What more workers bring, well steered and badly
    Scale(scale::Arguments),
    /// What a worker notices of a reload
    Reload(reload::Arguments),
    /// What it costs that a peer router knows all connections
    Sync(sync::Arguments),
    /// The built program as a whole: its memory, and a reload end to end
    Program(program::Arguments),
    /// How long a new process takes to take over the connections of the one before
    Adopt(adopt::Arguments),
    /// The control thread while ten thousand servers answer, go down and come back together
    Control(control::Arguments),
    /// Instructions a packet, and whether they are no more than recorded
    Instructions(instructions::Arguments),
    /// Two commits or builds, in turn
    Compare(compare::Arguments),
    /// The built rvs beside dpdk-testpmd on the same device
    Device(device::Arguments),
    /// Throughput and latency of the built rvs beside dpdk-testpmd over a link between two processes
    Link(link::Arguments),
    /// The generator of `link`, which starts it
    #[command(hide = true)]
    Generate,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Path(arguments) => path::run(&arguments),
        Command::Connect(arguments) => connect::run(&arguments),
        Command::Scale(arguments) => scale::run(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::Sync(arguments) => sync::run(&arguments),
        Command::Program(arguments) => program::run(&arguments),
        Command::Adopt(arguments) => adopt::run(&arguments),
        Command::Control(arguments) => control::run(&arguments),
        Command::Instructions(arguments) => instructions::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Device(arguments) => device::run(&arguments),
        Command::Link(arguments) => link::run(&arguments),
        Command::Generate => link::generate(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rvs-perf: {error:#}");
            ExitCode::FAILURE
        }
    }
}
