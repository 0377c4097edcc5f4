//! `rvs reload`.

use std::io::{self, Write};

use clap::Args;

use super::{Exit, SocketArg, block_on, counted};

#[derive(Debug, Args)]
pub(super) struct Reload {
    #[command(flatten)]
    socket: SocketArg,
}

impl Reload {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let reloaded = block_on(async { self.socket.client().reload().await })?;
        let (services, servers) =
            (counted(reloaded.services, "service"), counted(reloaded.servers, "real server"));
        writeln!(io::stdout(), "reloaded: generation {}, {services}, {servers}", reloaded.generation)?;
        Ok(Exit::Ok)
    }
}
