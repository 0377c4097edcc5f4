//! `rvs doctor`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Exit, block_on, counted, pretty};
use crate::admin::client::Client;
use crate::config;
use crate::doctor::{self, Severity};

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  nothing keeps rvs from working; there may be warnings
  1  there are errors, or the machine could not be examined
  2  the command line or the configuration is wrong";

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The configuration; without it, only what every one needs is looked at
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask by ARP and neighbour discovery who has the virtual addresses: RVS sends a question for each address of the file
    #[arg(long, requires = "config")]
    probe: bool,
    /// JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let config = self.config.as_deref().map(config::load).transpose()?;
        let mut findings = doctor::examine(Path::new("/"), config.as_ref());
        if let Some(config) = config.as_ref().filter(|_| self.probe) {
            findings.extend(doctor::arp::probe(config)?);
        }
        // Nobody there is no finding: it is examined before it starts.
        if let Some(config) = &config
            && let Ok(counters) = block_on(Client::new(&config.admin.socket).counters())
        {
            findings.extend(doctor::spread::judge(config, &counters.ports));
        }
        findings.sort_by_key(|finding| finding.severity);
        let mut out = io::stdout().lock();
        if self.json {
            pretty(&mut out, &findings)?;
        } else {
            for finding in &findings {
                writeln!(out, "{finding}")?;
            }
            let count =
                |severity| findings.iter().filter(|finding| finding.severity == severity).count() as u64;
            let counts =
                [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Note, "note")]
                    .map(|(severity, what)| counted(count(severity), what));
            writeln!(out, "{}", counts.join(", "))?;
        }
        let fails = findings.iter().any(|finding| finding.severity == Severity::Error);
        Ok(if fails { Exit::Failed } else { Exit::Ok })
    }
}
