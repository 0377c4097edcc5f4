//! `rvs completions`.

use std::io;

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, Exit};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "rvs", &mut script);
        // Not by `generate` itself, which panics when nobody reads.
        io::Write::write_all(&mut io::stdout(), &script)?;
        Ok(Exit::Ok)
    }
}
