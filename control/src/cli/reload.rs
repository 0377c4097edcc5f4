//! `rvs reload`.

use std::io::{self, BufWriter, Write};

use clap::Args;

use super::{Exit, SocketArg, block_on, changes, counted};

#[derive(Debug, Args)]
pub(super) struct Reload {
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    socket: SocketArg,
}

impl Reload {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let reloaded = block_on(async { self.socket.client().reload(self.dry_run).await })?;
        let mut out = BufWriter::new(io::stdout().lock());
        changes(&mut out, &reloaded.changes)?;
        for overruled in &reloaded.overruled {
            writeln!(out, "! {overruled}: the file has been edited, what was changed live is gone")?;
        }
        if self.dry_run {
            writeln!(out, "would change {}", counted(reloaded.changes.len() as u64, "thing"))?;
            return Ok(out.flush().map(|()| Exit::Ok)?);
        }
        let (services, servers) =
            (counted(reloaded.services, "service"), counted(reloaded.servers, "real server"));
        writeln!(out, "reloaded: generation {}, {services}, {servers}", reloaded.generation)?;
        out.flush()?;
        Ok(Exit::Ok)
    }
}
