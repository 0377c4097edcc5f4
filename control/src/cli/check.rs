//! `rvs check`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::{Exit, counted};
use crate::config::{self, Config, Machine};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Do not ask whether this machine has the cores, devices and memory
    #[arg(long)]
    no_machine: bool,
}

impl Check {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let config = config::load(&self.config)?;
        if !self.no_machine {
            config.check_machine(&Machine::read()?)?;
        }
        writeln!(io::stdout(), "{}: ok ({})", self.config.display(), summary(&config))?;
        Ok(Exit::Ok)
    }
}

fn summary(config: &Config) -> String {
    let servers: usize = config.services.iter().map(|service| service.servers.len()).sum();
    [
        (config.ports.len(), "port"),
        (config.workers.cores.len(), "worker"),
        (config.services.len(), "service"),
        (servers, "real server"),
    ]
    .map(|(count, what)| counted(count as u64, what))
    .join(", ")
}
