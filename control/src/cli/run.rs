//! `rvs run`.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, complain};
use crate::{config, log, run};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// What to log: error, warn, info (the default), debug or trace, also by module, as in
    /// "info,rvs::health=debug"; without this, the environment variable RVS_LOG
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How a line of the log looks
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: log::Format,
}

impl Run {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        if let Err(error) = log::start(self.log.as_deref(), self.log_format) {
            complain(format_args!("rvs: {error:#}"));
            return Ok(Exit::Usage);
        }
        run::run(config::load(&self.config)?)?;
        Ok(Exit::Ok)
    }
}
