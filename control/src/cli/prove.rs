//! `rvs prove`: what an rvs that is to be replaced asks of its successor. Nobody types it.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::Exit;
use crate::capabilities;
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
        let config = config::load(&self.config)?;
        config.check_to_take_over(&Machine::read()?.awaiting(&config))?;
        capabilities::enough_to_open(&config)?;
        writeln!(io::stdout(), "{}", serde_json::to_string(&Proof::own(&config))?)?;
        Ok(Exit::Ok)
    }
}
