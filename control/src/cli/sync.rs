//! `rvs sync`.

use std::io::{self, BufWriter, Write};

use clap::Args;

use super::{Exit, SocketArg, block_on, pretty};
use crate::admin::api;

#[derive(Debug, Args)]
pub(super) struct Sync {
    #[command(flatten)]
    socket: SocketArg,
    /// Say nothing; succeed if this router is in service, and knows what its peers know or that it is alone
    ///
    /// For keepalived's track_script and the like: a router that is not ready must not take virtual addresses.
    #[arg(long, conflicts_with = "json")]
    ready: bool,
    /// JSON, as the admin API has it
    #[arg(long)]
    json: bool,
}

impl Sync {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let sync = block_on(async { self.socket.client().sync().await })?;
        if self.ready {
            return Ok(if sync.ready { Exit::Ok } else { Exit::Failed });
        }
        let mut out = BufWriter::new(io::stdout().lock());
        if self.json {
            pretty(&mut out, &sync)?;
        } else {
            write(&mut out, &sync)?;
        }
        out.flush()?;
        Ok(Exit::Ok)
    }
}

fn write(out: &mut impl Write, sync: &api::Sync) -> io::Result<()> {
    let standing = match (sync.ready, sync.withdrawn) {
        (true, _) => "ready",
        (false, true) => "not ready: out of service",
        (false, false) => "not ready: still learning what peers know",
    };
    writeln!(out, "{standing}")?;
    if sync.peers.is_empty() {
        return writeln!(out, "no peers; the configuration has no [sync]");
    }
    let columns = [
        "Peer",
        "Standing",
        "Waiting",
        "Lag",
        "Conns sent",
        "received",
        "Lost",
        "Forged",
        "Replayed",
        "Bulks",
    ];
    let width = |index| if index == 0 { 22 } else { 12 };
    for (index, column) in columns.iter().enumerate() {
        let width = width(index);
        if index < 2 { write!(out, "{column:<width$}")? } else { write!(out, "{column:>width$}")? }
    }
    writeln!(out)?;
    for peer in &sync.peers {
        let lag = format!("{:.1} ms", peer.lag_us as f64 / 1e3);
        write!(out, "{:<22}{:<12}{:>12}{lag:>12}", peer.address.to_string(), peer.standing, peer.waiting)?;
        let counts = [
            peer.connections_sent,
            peer.connections_received,
            peer.lost,
            peer.forged,
            peer.replayed,
            peer.bulks,
        ];
        counts.iter().try_for_each(|count| write!(out, "{count:>12}"))?;
        writeln!(out)?;
    }
    let api::Adopted { new, changed, known, stale, no_room } = sync.adopted;
    writeln!(
        out,
        "Connections of peers: {new} new, {changed} changed, {known} known, {stale} stale, {no_room} without room"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_peer() {
        let peer = api::Peer {
            address: "10.9.0.2:8848".parse().unwrap(),
            standing: "together".into(),
            waiting: 3,
            lag_us: 1_250,
            sent: 1,
            sent_bytes: 2,
            connections_sent: 40,
            received: 5,
            connections_received: 60,
            lost: 7,
            forged: 8,
            replayed: 9,
            not_understood: 0,
            bulks: 1,
        };
        let sync = api::Sync { ready: true, peers: vec![peer], ..api::Sync::default() };
        let mut out = Vec::new();
        write(&mut out, &sync).unwrap();
        let text = String::from_utf8(out).unwrap();
        let words = |n: usize| text.lines().nth(n).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(0), "ready");
        assert_eq!(words(2), "10.9.0.2:8848 together 3 1.2 ms 40 60 7 8 9 1");
        assert!(text.lines().skip(1).take(2).all(|line| line.len() == 22 + 9 * 12), "{text}");
    }
}
