//! `rvs prove`: what an rvs that is to be replaced asks of its successor. Nobody types it.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::Exit;
use crate::config::{self, Machine};
use crate::upgrade::Proof;

#[derive(Debug, Args)]
pub(super) struct Prove {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
}

impl Prove {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        // What the running one has taken will be free.
        let machine = Machine { available_memory: u64::MAX, ..Machine::read()? };
        let config = config::load(&self.config)?;
        config.check_machine(&machine)?;
        writeln!(io::stdout(), "{}", serde_json::to_string(&Proof::own(&config))?)?;
        Ok(Exit::Ok)
    }
}
