//! `rvs list`.

use std::io::{self, BufWriter, Write};

use clap::Args;

use super::{Exit, SocketArg, block_on, pretty};
use crate::list::{self, Columns, Numbers};

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    socket: SocketArg,
    /// The connections instead of the services
    #[arg(short = 'c', long, visible_alias = "connection", conflicts_with_all = ["stats", "rate", "counters", "exact"])]
    connections: bool,
    /// Connections, packets and bytes since the start
    #[arg(long, conflicts_with_all = ["rate", "counters"])]
    stats: bool,
    /// Clients that come back, in persistent services
    #[arg(long, conflicts_with_all = ["stats", "rate", "counters", "connections"])]
    persistent_conn: bool,
    /// How many connections servers are given
    #[arg(long, conflicts_with_all = ["stats", "rate", "counters", "connections", "persistent_conn"])]
    thresholds: bool,
    /// Connections, packets and bytes a second
    #[arg(long, conflicts_with = "counters")]
    rate: bool,
    /// Counters of the workers: packets received, forwarded, punted and dropped, by reason
    #[arg(long)]
    counters: bool,
    /// Mappings of source NAT, by the hosts inside
    #[arg(long, conflicts_with_all = ["stats", "rate", "counters", "connections", "persistent_conn", "thresholds"])]
    snat: bool,
    /// Numbers to the last digit instead of K, M, G, T
    #[arg(long)]
    exact: bool,
    /// JSON, as the admin API has it; of connections one a line
    #[arg(long)]
    json: bool,
    /// Addresses and ports as numbers; they always are
    #[arg(short, long)]
    numeric: bool,
}

impl List {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        block_on(list(&self))?;
        Ok(Exit::Ok)
    }
}

async fn list(args: &List) -> anyhow::Result<()> {
    let client = args.socket.client();
    let mut out = BufWriter::new(io::stdout().lock());
    if args.connections {
        if !args.json {
            list::connections_header(&mut out)?;
        }
        let each = |connection| match args.json {
            true => {
                serde_json::to_writer(&mut out, &connection)?;
                out.write_all(b"\n")
            }
            false => list::connection(&mut out, &connection),
        };
        client.connections(each).await?;
        return Ok(out.flush()?);
    }
    if args.counters {
        let counters = client.counters().await?;
        match args.json {
            true => pretty(&mut out, &counters)?,
            false => list::counters(&mut out, &counters)?,
        }
        return Ok(out.flush()?);
    }
    if args.snat {
        let pools = client.snat().await?;
        match args.json {
            true => pretty(&mut out, &pools)?,
            false => list::snat(&mut out, &pools)?,
        }
        return Ok(out.flush()?);
    }
    let services = client.services().await?;
    if args.json {
        pretty(&mut out, &services)?;
    } else {
        let table = client.counters().await?.table;
        let columns = match args {
            List { stats: true, .. } => Columns::Stats,
            List { rate: true, .. } => Columns::Rates,
            List { persistent_conn: true, .. } => Columns::Persistent,
            List { thresholds: true, .. } => Columns::Thresholds,
            _ => Columns::State,
        };
        let numbers = if args.exact { Numbers::Exact } else { Numbers::Scaled };
        list::services(&mut out, &table, &services, columns, numbers)?;
    }
    Ok(out.flush()?)
}
