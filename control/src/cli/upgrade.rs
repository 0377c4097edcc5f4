//! `rvs upgrade`.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::time::{Instant, sleep};

use super::{Exit, SocketArg, block_on};
use crate::admin::api;
use crate::admin::client::Client;
use crate::admin::upgrade::Question;

/// How long the new program may take until it answers: a table of gigabytes is read at the start.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long nobody may be there to ask. Who connects meanwhile waits, so that there is somebody as long as the process lives.
const ABSENCE: Duration = Duration::from_secs(5);

/// Between two attempts to ask it.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct Upgrade {
    /// The new program; without this what is now where the running one was started from
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Go on if the new program will not know the connections
    #[arg(long)]
    lose_connections: bool,
    #[command(flatten)]
    socket: SocketArg,
}

impl Upgrade {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let binary = self.binary.map(std::path::absolute).transpose().context("--binary")?;
        let question = Question { binary, lose_connections: self.lose_connections };
        let client = self.socket.client();
        block_on(async {
            let begun = client.upgrade(&question).await?;
            writeln!(io::stdout(), "rvs {} hands over to {} ({})", begun.from, begun.to, begun.binary)?;
            let ended = end_of(&client, &begun.id).await?;
            let mut out = BufWriter::new(io::stdout().lock());
            write(&mut out, &ended)?;
            out.flush()?;
            Ok(if ended.error.is_none() { Exit::Ok } else { Exit::Failed })
        })
    }
}

/// Asks until the program that follows tells of it.
async fn end_of(client: &Client, id: &str) -> anyhow::Result<api::Upgrade> {
    let deadline = Instant::now() + PATIENCE;
    let mut heard = Instant::now();
    loop {
        let asked = Instant::now();
        match client.upgraded().await {
            Ok(api::Upgrades { last: Some(last) }) if last.id == id => return Ok(last),
            Ok(_) => heard = Instant::now(),
            // Whoever lets us wait is there.
            Err(_) if asked.elapsed() > ABSENCE => heard = Instant::now(),
            Err(error) if heard.elapsed() > ABSENCE => {
                return Err(error.context("the new program does not answer; the log says why"));
            }
            Err(_) => {}
        }
        if Instant::now() > deadline {
            bail!("the new program does not answer; the log says why");
        }
        sleep(PAUSE).await;
    }
}

fn write(out: &mut impl Write, upgrade: &api::Upgrade) -> io::Result<()> {
    let api::Upgrade { from, to, gap_us, stages, error, .. } = upgrade;
    let milliseconds = |us: u64| us as f64 / 1e3;
    match error {
        None => writeln!(out, "rvs {to} has taken over from {from}")?,
        Some(error) => writeln!(out, "rvs {to} runs again: {error}")?,
    }
    for stage in stages {
        writeln!(out, "  {:<14}{:>10.1} ms", stage.name, milliseconds(stage.us))?;
    }
    writeln!(out, "nothing was forwarded for {:.1} ms", milliseconds(*gap_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_stage() {
        let stage = |name: &str, us| api::Stage { name: name.to_owned(), us };
        let mut upgrade = api::Upgrade {
            id: "7".to_owned(),
            from: "0.1.0".to_owned(),
            to: "0.2.0".to_owned(),
            gap_us: 212_300,
            stages: vec![stage("workers down", 2_300), stage("EAL", 210_000)],
            error: None,
        };
        let shown = |upgrade: &api::Upgrade| {
            let mut out = Vec::new();
            write(&mut out, upgrade).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            shown(&upgrade),
            "rvs 0.2.0 has taken over from 0.1.0\n  workers down         2.3 ms\n  EAL                210.0 ms\n\
             nothing was forwarded for 212.3 ms\n"
        );
        upgrade.error = Some("cannot start /x".to_owned());
        assert!(shown(&upgrade).starts_with("rvs 0.2.0 runs again: cannot start /x\n"));
    }
}
