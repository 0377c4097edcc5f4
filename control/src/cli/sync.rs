//! `rvs sync`.

use std::io::{self, BufWriter, Write};

use clap::Args;

use super::{Exit, SocketArg, block_on, pretty};
use crate::admin::api;
use crate::sync::session::VERSION;

#[derive(Debug, Args)]
pub(super) struct Sync {
    #[command(flatten)]
    socket: SocketArg,
    /// Say nothing; succeed if this router knows what its peers know, or that it is alone
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
    writeln!(out, "{}", if sync.ready { "ready" } else { "not ready: still learning what peers know" })?;
    if sync.peers.is_empty() {
        return writeln!(out, "no peers; the configuration has no [sync]");
    }
    let columns = [
        "Peer", "Standing", "Waiting", "Lag", "Sent/s", "Recv/s", "Sent", "Received", "Lost", "Forged",
        "Replayed", "Bulks",
    ];
    for (index, column) in columns.iter().enumerate() {
        let width = if index == 0 { 22 } else { 11 };
        if index < 2 { write!(out, "{column:<width$}")? } else { write!(out, "{column:>width$}")? }
    }
    writeln!(out)?;
    for peer in &sync.peers {
        let lag = format!("{:.1} ms", peer.lag_us as f64 / 1e3);
        write!(out, "{:<22}{:<11}{:>11}{lag:>11}", peer.address.to_string(), peer.standing, peer.waiting)?;
        let counts = [
            peer.sent_a_second,
            peer.received_a_second,
            peer.connections_sent,
            peer.connections_received,
            peer.lost,
            peer.forged,
            peer.replayed,
            peer.bulks,
        ];
        counts.iter().try_for_each(|count| write!(out, "{count:>11}"))?;
        writeln!(out)?;
    }
    for peer in &sync.peers {
        let address = peer.address;
        if let Some(bulk) = peer.bulk {
            writeln!(out, "{address} is being sent all connections: {:.0} %", bulk * 100.0)?;
        }
        if peer.version != VERSION {
            writeln!(
                out,
                "{address} speaks version {} of the protocol; expected {VERSION}, as this router: update one of the two",
                peer.version
            )?;
        }
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
            version: VERSION,
            waiting: 3,
            lag_us: 1_250,
            sent_a_second: 11,
            received_a_second: 12,
            bulk: Some(0.25),
            sent: 1,
            sent_bytes: 2,
            connections_sent: 40,
            connections_confirmed: 39,
            connections_retold: 1,
            received: 5,
            received_bytes: 6,
            connections_received: 60,
            lost: 7,
            forged: 8,
            replayed: 9,
            hasty: 0,
            other_version: 0,
            not_understood: 0,
            bulks: 1,
        };
        let other = api::Peer { standing: "away".into(), version: 1, bulk: None, ..peer.clone() };
        let sync = api::Sync { ready: true, peers: vec![peer, other], ..api::Sync::default() };
        let mut out = Vec::new();
        write(&mut out, &sync).unwrap();
        let text = String::from_utf8(out).unwrap();
        let words = |n: usize| text.lines().nth(n).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(0), "ready");
        assert_eq!(words(2), "10.9.0.2:8848 together 3 1.2 ms 11 12 40 60 7 8 9 1");
        assert!(text.lines().skip(1).take(3).all(|line| line.len() == 22 + 11 * 11), "{text}");
        assert_eq!(words(4), "10.9.0.2:8848 is being sent all connections: 25 %");
        assert!(words(5).starts_with("10.9.0.2:8848 speaks version 1 of the protocol"), "{text}");
    }
}
