//! `rvs-perf`: what the packet path of RVS costs.

mod path;

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
    /// Cycles per packet of the data path on made-up packets, without a device.
    Path(path::Arguments),
}

fn main() {
    match Arguments::parse().command {
        Command::Path(arguments) => path::run(&arguments),
    }
}
