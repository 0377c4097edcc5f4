//! `rvs ports`.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Exit, block_on, pretty};
use crate::admin::client::Client;
use crate::config::{self, DEFAULT_SOCKET};
use crate::list::{self, Ports as Listing};
use crate::root::Root;

#[derive(Debug, Args)]
pub(super) struct Ports {
    /// The configuration: which NICs are its ports
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The admin socket of a running rvs, if it is not that of the configuration or /run/rvs/rvs.sock
    #[arg(short, long, value_name = "SOCKET")]
    socket: Option<PathBuf>,
    /// JSON
    #[arg(long)]
    json: bool,
}

impl Ports {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let config = self.config.as_deref().map(config::load).transpose()?;
        let of_config = config.as_ref().map_or(Path::new(DEFAULT_SOCKET), |config| &config.admin.socket);
        let socket = self.socket.as_deref().unwrap_or(of_config);
        // Nobody there is no error: one looks before the first start.
        let counters = block_on(Client::new(socket).counters());
        let running = counters.map(|counters| counters.ports).unwrap_or_default();
        let listing = Listing::collect(&Root::new(Path::new("/")), config.as_ref(), running);
        let mut out = io::stdout().lock();
        match self.json {
            true => pretty(&mut out, &listing)?,
            false => list::ports(&mut out, &listing)?,
        }
        Ok(Exit::Ok)
    }
}
