//! `rvs top`.

use std::io::{self, Write};

use clap::Args;

use super::{Exit, SocketArg, block_on};
use crate::top;

#[derive(Debug, Args)]
pub(super) struct Top {
    #[command(flatten)]
    socket: SocketArg,
    /// Print one frame as text after a second, and end
    #[arg(long)]
    once: bool,
}

impl Top {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let client = self.socket.client();
        let socket = client.shown();
        if self.once {
            let frame = block_on(top::once(client, &socket))?;
            io::stdout().write_all(frame.as_bytes())?;
        } else {
            block_on(top::watch(client, &socket))?;
        }
        Ok(Exit::Ok)
    }
}
