//! The families of peer routers. Labels are bounded: a peer is in the configuration.

use std::fmt::Error;

use super::families::{Families, Family, alone};
use crate::admin::api::{Adopted, Peer, Sync};
use crate::sync::Standing;

impl Families<'_> {
    pub(super) fn peers(&mut self, sync: &Sync) -> Result<(), Error> {
        let named: Vec<(String, &Peer)> =
            sync.peers.iter().map(|peer| (peer.address.to_string(), peer)).collect();
        let help = "Whether this router knows what its peers know, or that it is alone (1)";
        self.gauges("sync_ready", help, alone(u64::from(sync.ready)))?;
        let standings = named.iter().flat_map(|(name, peer)| {
            Standing::ALL.map(|standing| {
                let labels = [("peer", name.as_str()), ("standing", standing.name())];
                (labels, u64::from(peer.standing == standing.name()))
            })
        });
        self.gauges(
            "peer_standing",
            "How things stand with the peer: 1 for that, 0 for the others",
            standings,
        )?;
        let of_each = |value: fn(&Peer) -> f64| {
            named.iter().map(move |(name, peer)| ([("peer", name.as_str())], value(peer)))
        };
        let help = "How long the oldest change that the peer has not confirmed has been waiting";
        self.gauges("peer_lag_seconds", help, of_each(|peer| peer.lag_us as f64 / 1e6))?;
        let help = "Connections that are still to be sent to the peer";
        self.gauges("peer_waiting_connections", help, of_each(|peer| peer.waiting as f64))?;
        let help = "How much of all connections the peer has been sent; 1 unless it is sent all just now";
        self.gauges("peer_bulk_progress_ratio", help, of_each(|peer| peer.bulk.unwrap_or(1.0)))?;
        for (family, help, value) in COUNTS {
            let samples = named.iter().map(|(name, peer)| ([("peer", name.as_str())], value(peer)));
            self.counters(family, help, samples)?;
        }
        let refused = named.iter().flat_map(|(name, peer)| {
            let reasons = [
                ("forged", peer.counts.forged),
                ("replayed", peer.counts.replayed),
                ("hasty", peer.counts.hasty),
                ("version", peer.counts.other_version),
                ("unknown", peer.counts.not_understood),
            ];
            reasons.map(|(reason, count)| ([("peer", name.as_str()), ("reason", reason)], count))
        });
        let help = "Datagrams from the peer's address that count for nothing, by reason; hasty: calls faster than they are answered";
        self.counters("peer_refused_datagrams", help, refused)?;
        let Adopted { new, changed, known, stale, no_room } = sync.adopted;
        let results =
            [("new", new), ("changed", changed), ("known", known), ("stale", stale), ("no_room", no_room)];
        let results = results.map(|(result, count)| ([("result", result)], count));
        let help = "Connections that peers told of, by what became of them";
        self.counters("sync_adoptions", help, results)?;
        let help = "Connections forgotten because they were flushed at a peer";
        self.counters("sync_flushed_connections", help, alone(sync.flushed))?;
        let help = "Changes of connections for which there was no room, so that everything was sent again";
        self.counters("sync_overflows", help, alone(sync.overflows))?;
        let help = "Datagrams from addresses that are no peer's";
        self.counters("sync_stranger_datagrams", help, alone(sync.strangers))?;
        let help = "CPU time of the thread that speaks to peers";
        self.counters("sync_cpu_seconds", help, alone(sync.cpu_seconds))
    }
}

const COUNTS: [Family<Peer>; 10] = [
    ("peer_sent_datagrams", "Datagrams sent to the peer", |peer| peer.counts.sent),
    ("peer_sent_bytes", "Bytes of datagrams sent to the peer", |peer| peer.counts.sent_bytes),
    ("peer_sent_connections", "Connections sent to the peer", |peer| peer.counts.connections_sent),
    ("peer_confirmed_connections", "Connections sent of which the peer has said that they came", |peer| {
        peer.counts.connections_confirmed
    }),
    ("peer_retold_connections", "Connections that were lost on the way to the peer and sent again", |peer| {
        peer.counts.connections_retold
    }),
    ("peer_lost_datagrams", "Datagrams that were lost on the way to the peer", |peer| peer.counts.lost),
    ("peer_received_datagrams", "Datagrams received from the peer's address", |peer| peer.counts.received),
    ("peer_received_bytes", "Bytes of datagrams received from the peer's address", |peer| {
        peer.counts.received_bytes
    }),
    ("peer_received_connections", "Connections that the peer has told of", |peer| {
        peer.counts.connections_received
    }),
    ("peer_bulks", "Times that the peer was sent all connections", |peer| peer.counts.bulks),
];
