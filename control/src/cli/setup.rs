//! `rvs setup`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, block_on, complain};
use crate::config;
use crate::hardware::Lifelines;
use crate::root::Root;
use crate::setup::{self, Consent, Linux, Mode, Permit};

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  everything is as it should be
  1  it was refused, or a step failed; what was done is taken back
  2  the command line or the configuration is wrong";

#[derive(Debug, Args)]
pub(super) struct Setup {
    /// The configuration
    #[arg(short, long, value_name = "FILE", required_unless_present = "undo")]
    config: Option<PathBuf>,
    /// Print the steps, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Take NICs that Linux uses, too; never the one with the default route or your SSH session
    #[arg(long, conflicts_with = "undo")]
    take: bool,
    /// For a unit at boot: take the NICs that a run by hand has taken, and no others; say nothing if nothing is to be done
    #[arg(long, conflicts_with_all = ["undo", "take"])]
    boot: bool,
    /// Give back what has been taken since this machine was booted: NICs to their drivers, hugepages to Linux; and a boot takes
    /// nothing any more
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
        let consent = match (self.boot, self.take) {
            (true, _) => Consent::Permitted(Permit::read(&linux.0)?),
            (false, true) => Consent::Used,
            (false, false) => Consent::Unused,
        };
        let plan = setup::plan(&linux.0, &config, &lifelines, &consent);
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
        // A session that breaks leaves nothing half done; the handler stays when this is over.
        drop(block_on(async { Ok(signal(SignalKind::hangup())?) })?);
        setup::apply(&mut linux, &plan.changes, mode, &mut out)?;
        if mode == Mode::Do && !self.boot {
            Permit::give(&linux.0, &config)?;
        }
        Ok(Exit::Ok)
    }
}
