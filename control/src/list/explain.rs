//! An explanation, a line a step, in the order in which the data path takes them.

use std::io::{self, Write};

use crate::admin::explain::{Connection, Explanation, NextHop, Packet, Tunnel};

/// Columns of a line's name.
const NAME: usize = 12;

/// Writes an explanation.
pub fn explanation(out: &mut impl Write, explanation: &Explanation) -> io::Result<()> {
    let mut line = |name: &str, text: String| writeln!(out, "{name:<NAME$} {text}");
    let Explanation { packet, port, connection, decision, afterwards, .. } = explanation;

    let flags = if packet.flags.is_empty() { String::new() } else { format!(" [{}]", packet.flags) };
    let Packet { protocol, source, destination, length, .. } = packet;
    line("packet", format!("{protocol} {source} -> {destination}{flags}, {length} bytes"))?;
    line("comes in on", format!("{} ({})", port.name, port.why))?;
    if let Some(fragment) = &explanation.fragment {
        line("fragment", fragment.clone())?;
    }
    match (&explanation.direction, explanation.endpoint) {
        (Some(_), Some(endpoint)) => line("from server", format!("{protocol} {endpoint}"))?,
        (Some(_), None) => {}
        // It has no ports to be asked for.
        (None, _) if explanation.fragment.is_some() && explanation.unmatched.is_none() => {}
        (None, _) => {
            line("service", explanation.unmatched.clone().unwrap_or_else(|| "not asked for".to_owned()))?
        }
    }
    if let Some(service) = &explanation.service {
        let name = match service.mark {
            Some(mark) => {
                let by = service.rule.map(|line| format!(" by the [[mark]] in line {line}"));
                format!("mark {mark}{}", by.unwrap_or_default())
            }
            None => format!("{} {}", service.protocol, service.address),
        };
        line("service", format!("{name}, {}, {}", service.mode, service.scheduler))?;
    }
    if let Some(direction) = &explanation.direction {
        let whither = if direction == "in" { "to a real server" } else { "to a client" };
        line("direction", format!("{direction}, {whither}"))?;
        let idle = |c: &Connection| format!("{}, silent for {} s", entry(c), c.idle);
        line("connection", connection.as_ref().map_or_else(|| "none".to_owned(), idle))?;
    }
    if let Some(decision) = decision {
        let server = decision.server.map_or_else(|| "nobody".to_owned(), |server| server.to_string());
        line("scheduler", format!("{server}; {}", decision.why))?;
        for unusable in &decision.unusable {
            line("", format!("not {}: {}", unusable.server, unusable.why))?;
        }
    }
    if let Some(tracking) = &explanation.tracking {
        line("tracking", tracking.clone())?;
    }
    if let Some(connection) = afterwards {
        line("afterwards", entry(connection))?;
    }
    if let Some(after) = &explanation.rewritten {
        line("source", change(packet.source, after.source))?;
        line("destination", change(packet.destination, after.destination))?;
        line("ttl", change(packet.ttl, after.ttl))?;
        line("source mac", change(&packet.source_mac, &after.source_mac))?;
        line("dest. mac", change(&packet.destination_mac, &after.destination_mac))?;
    }
    if let Some(Tunnel { encapsulation, source, destination, length }) = &explanation.tunnel {
        line("inside of", format!("{encapsulation} {source} -> {destination}, {length} bytes"))?;
    }
    if let Some(next_hop) = &explanation.next_hop {
        line("next hop", way(next_hop))?;
    }
    match (&explanation.output, &explanation.reason, &explanation.meaning) {
        (Some(port), _, None) => line("verdict", format!("{}, out of {port}", explanation.verdict)),
        (Some(port), _, Some(meaning)) => {
            line("verdict", format!("{}, out of {port}: {meaning}", explanation.verdict))
        }
        (None, Some(reason), meaning) => {
            let what = if explanation.verdict == "punt" { "punt to Linux" } else { &explanation.verdict };
            line("verdict", format!("{what}, {reason}: {}", meaning.as_deref().unwrap_or_default()))
        }
        (None, None, Some(meaning)) => line("verdict", format!("{}: {meaning}", explanation.verdict)),
        (None, None, None) => line("verdict", explanation.verdict.clone()),
    }
}

fn entry(connection: &Connection) -> String {
    let Connection { server, state, expires, .. } = connection;
    format!("{state} with {server}, forgotten in {expires} s")
}

fn change<T: PartialEq + std::fmt::Display>(old: T, new: T) -> String {
    if old == new { old.to_string() } else { format!("{old} -> {new}") }
}

fn way(next_hop: &NextHop) -> String {
    match next_hop {
        NextHop { address: None, .. } => "none: no route over a port".to_owned(),
        NextHop { address: Some(address), port, mac } => {
            let port = port.as_deref().unwrap_or("?");
            let mac = mac.as_deref().unwrap_or("MAC not known yet");
            format!("{address} on {port}, {mac}")
        }
    }
}
