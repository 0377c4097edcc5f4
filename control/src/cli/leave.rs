//! `rvs withdraw`, `rvs announce`, `rvs stop`: to take a router out of service, to put it back, and to end it.

use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use clap::Args;

use super::change::show;
use super::{Exit, SocketArg, block_on};
use crate::admin::api::Leaving;

#[derive(Debug, Args)]
pub(super) struct Withdraw {
    /// Only this virtual address; without it, the whole router
    address: Option<IpAddr>,
    #[command(flatten)]
    socket: SocketArg,
}

#[derive(Debug, Args)]
pub(super) struct Announce {
    /// Only this virtual address; without it, the whole router
    address: Option<IpAddr>,
    #[command(flatten)]
    socket: SocketArg,
}

#[derive(Debug, Args)]
pub(super) struct Stop {
    /// Withdraw first, forward until no packet has come for a second, and then end
    #[arg(long)]
    graceful: bool,
    /// After this time it ends whatever comes
    #[arg(long, requires = "graceful", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    deadline: Duration,
    #[command(flatten)]
    socket: SocketArg,
}

impl Withdraw {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        show(block_on(self.socket.client().withdraw(self.address))?)
    }
}

impl Announce {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        show(block_on(self.socket.client().announce(self.address))?)
    }
}

impl Stop {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let deadline = self.deadline.as_secs_f64().ceil() as u32;
        // Whoever waits wants each line when it is said.
        let each = |leaving: Leaving| writeln!(io::stdout(), "{}", leaving.text);
        block_on(self.socket.client().stop(self.graceful, deadline, each))?;
        Ok(Exit::Ok)
    }
}
