//! What a replay comes to: the counters of the packet path under their names, and what each port and real server has had.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;

use dataplane::counters::{Counter, Drop, Punt};
use dataplane::engine::Frame;
use serde::Serialize;

use super::router::Router;
use crate::ids::ServiceKey;

/// Columns of a line's name.
const NAME: usize = 26;

/// What a replay comes to.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Packets that were given to the packet path; each is forwarded, punted or dropped.
    pub received: u64,
    /// Packets that left a port.
    pub forwarded: u64,
    /// Those of them that concern no service, and were routed.
    pub routed: u64,
    /// Packets for Linux, by reason.
    pub punted: BTreeMap<&'static str, u64>,
    /// Packets that went nowhere, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Fragments that had to wait for the first of their datagram; each is forwarded, punted or dropped as well.
    pub held: u64,
    /// Packets that were left out, since not all of them was captured.
    pub skipped: u64,
    /// Packets whose time was before that of one before them. For the packet path time stood still meanwhile.
    pub late: u64,
    /// Connections begun.
    pub connections: u64,
    /// What each port has had.
    pub ports: Vec<Port>,
    /// What each real server has had.
    pub servers: Vec<Server>,
}

/// What a port has had.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Packets that came in.
    pub received: u64,
    /// Packets that went out.
    pub sent: u64,
    /// How many of these were not as expected, missing ones among them; none if nothing was expected.
    pub differences: Option<u64>,
}

/// What a real server has had.
#[derive(Debug, Serialize)]
pub struct Server {
    /// Its service.
    pub service: ServiceKey,
    /// Its address.
    pub address: SocketAddr,
    /// Connections begun.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

impl Summary {
    /// Adds what a router has counted.
    pub fn with<F: Frame>(self, router: &Router<F>) -> Summary {
        let counters = router.counters();
        let server =
            |(service, address, traffic): (ServiceKey, SocketAddr, dataplane::counters::Traffic)| Server {
                service,
                address,
                connections: traffic.connections,
                packets_in: traffic.packets_in,
                packets_out: traffic.packets_out,
                bytes_in: traffic.bytes_in,
                bytes_out: traffic.bytes_out,
            };
        Summary {
            received: counters.received.get(),
            forwarded: counters.forwarded.get(),
            routed: counters.routed.get(),
            punted: occurred(Punt::ALL.iter().map(|reason| reason.name()), &counters.punted),
            dropped: occurred(Drop::ALL.iter().map(|reason| reason.name()), &counters.dropped),
            held: counters.held.get(),
            connections: counters.traffic.connections.get(),
            servers: router.servers().map(server).collect(),
            ..self
        }
    }

    /// Writes it for people.
    pub fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let mut line = |name: &str, count: u64| writeln!(out, "{name:<NAME$} {count:>12}");
        line("received", self.received)?;
        line("  forwarded", self.forwarded)?;
        line("    routed", self.routed)?;
        for (name, reasons) in [("  punted", &self.punted), ("  dropped", &self.dropped)] {
            line(name, reasons.values().sum())?;
            reasons.iter().try_for_each(|(reason, count)| line(&format!("    {reason}"), *count))?;
        }
        line("held", self.held)?;
        line("skipped", self.skipped)?;
        line("late", self.late)?;
        line("connections", self.connections)?;
        for Port { name, received, sent, differences } in &self.ports {
            line(&format!("{name}: received"), *received)?;
            line(&format!("{name}: sent"), *sent)?;
            if let Some(differences) = differences {
                line(&format!("{name}: differences"), *differences)?;
            }
        }
        for server in &self.servers {
            let Server { service, address, connections, packets_in, packets_out, bytes_in, bytes_out } =
                server;
            writeln!(
                out,
                "{service} {address}: connections {connections}, packets in {packets_in}, out {packets_out}, \
                 bytes in {bytes_in}, out {bytes_out}"
            )?;
        }
        Ok(())
    }
}

fn occurred(names: impl Iterator<Item = &'static str>, counters: &[Counter]) -> BTreeMap<&'static str, u64> {
    names.zip(counters).map(|(name, count)| (name, count.get())).filter(|(_, count)| *count > 0).collect()
}
