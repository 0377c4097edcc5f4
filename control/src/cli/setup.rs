//! `rvs setup`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Exit, block_on, complain};
use crate::config;
use crate::hardware::Lifelines;
use crate::root::Root;
use crate::setup::{self, Linux, Mode};

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  everything is as it should be
  1  it was refused, or a step failed; nothing is changed
  2  the command line or the configuration is wrong";

#[derive(Debug, Args)]
pub(super) struct Setup {
    /// The configuration
    #[arg(short, long, value_name = "FILE", required_unless_present = "undo")]
    config: Option<PathBuf>,
    /// Print the steps, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Take NICs with addresses of Linux, too; never the one with the default route or your SSH session
    #[arg(long, conflicts_with = "undo")]
    take: bool,
    /// Say nothing if nothing is to be done, for a unit at boot
    #[arg(long, conflicts_with = "undo")]
    boot: bool,
    /// Give back what has been taken since this machine was booted: NICs to their drivers, hugepages to Linux
    #[arg(long, conflicts_with = "config")]
    undo: bool,
}

impl Setup {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let mut linux = Linux(Root::new(Path::new("/")));
        let mode = if self.dry_run { Mode::DryRun } else { Mode::Do };
        let mut out = io::stdout().lock();
        let Some(file) = self.config else {
            if !setup::undo(&mut linux, mode, &mut out)? {
                writeln!(
                    out,
                    "# nothing to be undone: rvs setup has changed nothing since this machine was booted"
                )?;
            }
            return Ok(Exit::Ok);
        };
        let config = config::load(&file)?;
        let lifelines = block_on(Lifelines::read(&linux.0))?;
        let plan = setup::plan(&linux.0, &config, &lifelines, self.take);
        if !plan.refusals.is_empty() {
            plan.refusals.iter().for_each(|refusal| complain(format_args!("{refusal}")));
            complain(format_args!("rvs: refused, and nothing is changed"));
            return Ok(Exit::Failed);
        }
        if !self.boot || !plan.changes.is_empty() {
            plan.notes.iter().try_for_each(|note| writeln!(out, "# {note}"))?;
        }
        if plan.changes.is_empty() && !self.boot {
            writeln!(out, "# nothing to be done: everything is as {} needs it", file.display())?;
        }
        setup::apply(&mut linux, &plan.changes, mode, &mut out)?;
        Ok(Exit::Ok)
    }
}
