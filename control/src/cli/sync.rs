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
    match sync.peers[..] {
        [] => writeln!(out, "no peers; the configuration has no [sync]")?,
        _ => write_peers(out, sync)?,
    }
    sync.ipvs.as_ref().map_or(Ok(()), |ipvs| write_ipvs(out, ipvs))
}

fn write_ipvs(out: &mut impl Write, ipvs: &api::Ipvs) -> io::Result<()> {
    let directors: Vec<String> = ipvs.directors.iter().map(ToString::to_string).collect();
    let heard = if directors.is_empty() { "none heard".to_owned() } else { directors.join(", ") };
    writeln!(out, "IPVS {} on {}, syncid {}; directors: {heard}", ipvs.role, ipvs.interface, ipvs.syncid)?;
    let api::IpvsCounts { received, malformed, other_syncid, sent, .. } = ipvs.counts;
    writeln!(
        out,
        "Messages: {received} received, {malformed} malformed, {other_syncid} of another syncid, {sent} sent"
    )?;
    let api::IpvsCounts { connections_received, unknown, fwmarks, ipv6, unsupported, .. } = ipvs.counts;
    let api::Adopted { new, changed, known, stale, no_room } = ipvs.adopted;
    writeln!(
        out,
        "Connections of directors: {connections_received}: {new} new, {changed} changed, {known} known, {stale} stale, {no_room} without room"
    )?;
    writeln!(
        out,
        "Not taken over: {unknown} of other services or servers, {fwmarks} of marks, {ipv6} of IPv6, {unsupported} unsupported"
    )?;
    writeln!(out, "Connections told to directors: {}", ipvs.counts.connections_sent)
}

fn write_peers(out: &mut impl Write, sync: &api::Sync) -> io::Result<()> {
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
            peer.counts.connections_sent,
            peer.counts.connections_received,
            peer.counts.lost,
            peer.counts.forged,
            peer.counts.replayed,
            peer.counts.bulks,
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
    )?;
    writeln!(out, "Connections forgotten since they were flushed at a peer: {}", sync.flushed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directors_of_linux() {
        let ipvs = serde_json::json!({
            "role": "backup", "interface": "eth2", "syncid": 5, "directors": ["10.9.0.3"], "received": 9, "malformed": 1,
            "other_syncid": 2, "connections_received": 12, "unknown": 3, "fwmarks": 5, "ipv6": 6,
            "adopted": { "new": 11, "changed": 0, "known": 0, "stale": 0, "no_room": 0 },
            "unsupported": 7, "sent": 0, "connections_sent": 0,
        });
        let ipvs = Some(serde_json::from_value(ipvs).unwrap());
        let mut out = Vec::new();
        write(&mut out, &api::Sync { ready: true, ipvs, ..api::Sync::default() }).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "ready\n\
             no peers; the configuration has no [sync]\n\
             IPVS backup on eth2, syncid 5; directors: 10.9.0.3\n\
             Messages: 9 received, 1 malformed, 2 of another syncid, 0 sent\n\
             Connections of directors: 12: 11 new, 0 changed, 0 known, 0 stale, 0 without room\n\
             Not taken over: 3 of other services or servers, 5 of marks, 6 of IPv6, 7 unsupported\n\
             Connections told to directors: 0\n"
        );
    }

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
            counts: api::PeerCounts {
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
                bulks: 1,
                ..api::PeerCounts::default()
            },
        };
        let other = api::Peer { standing: "away".into(), version: 1, bulk: None, ..peer.clone() };
        let sync = api::Sync { ready: true, peers: vec![peer, other], flushed: 13, ..api::Sync::default() };
        let mut out = Vec::new();
        write(&mut out, &sync).unwrap();
        let text = String::from_utf8(out).unwrap();
        let words = |n: usize| text.lines().nth(n).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(0), "ready");
        assert_eq!(words(2), "10.9.0.2:8848 together 3 1.2 ms 11 12 40 60 7 8 9 1");
        assert!(text.lines().skip(1).take(3).all(|line| line.len() == 22 + 11 * 11), "{text}");
        assert_eq!(words(4), "10.9.0.2:8848 is being sent all connections: 25 %");
        assert!(words(5).starts_with("10.9.0.2:8848 speaks version 1 of the protocol"), "{text}");
        assert_eq!(words(7), "Connections forgotten since they were flushed at a peer: 13");
    }
}
