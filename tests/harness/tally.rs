//! An independent count of packets and bytes, by nftables on the machines at both ends.

use anyhow::{Context, Result, ensure};

use crate::{
    netns::Namespace,
    wait::{self, PATIENCE},
};

/// Packets, and bytes from the IP header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl std::ops::Add for Count {
    type Output = Count;

    fn add(self, other: Count) -> Count {
        Count { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// What one machine sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent.
    pub sent: Count,
    /// Received.
    pub received: Count,
}

/// Counters in one namespace for one port of one peer or of its own.
#[derive(Clone, Debug)]
pub struct Tally {
    namespace: Namespace,
}

impl Tally {
    /// Counts what a client exchanges with `address`, e.g. `192.0.2.10` or `2001:db8::10`, on its `protocol` port.
    pub fn of_client(client: &Namespace, address: &str, protocol: &str, port: u16) -> Result<Tally> {
        let ip = if address.contains(':') { "ip6" } else { "ip" };
        Tally::start(
            client,
            &format!("{ip} daddr {address} {protocol} dport {port}"),
            &format!("{ip} saddr {address} {protocol} sport {port}"),
        )
    }

    /// Counts what a server exchanges with everybody on its `protocol` port.
    pub fn of_server(server: &Namespace, protocol: &str, port: u16) -> Result<Tally> {
        Tally::start(server, &format!("{protocol} sport {port}"), &format!("{protocol} dport {port}"))
    }

    fn start(namespace: &Namespace, sent: &str, received: &str) -> Result<Tally> {
        namespace.nft(&format!(
            "table inet tally {{\n\
             counter sent {{ }}\ncounter received {{ }}\n\
             chain sent {{ type filter hook output priority 0; {sent} counter name sent; }}\n\
             chain received {{ type filter hook input priority 0; {received} counter name received; }}\n}}\n"
        ))?;
        Ok(Tally { namespace: namespace.clone() })
    }

    /// What it has counted so far.
    pub fn read(&self) -> Result<Traffic> {
        let text = self.namespace.command("nft").words("-j list counters table inet tally").run()?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let count = |name: &str| {
            let all = json["nftables"].as_array().into_iter().flatten();
            let counter = all.map(|object| &object["counter"]).find(|counter| counter["name"] == name);
            let counter = counter.with_context(|| format!("no counter {name}: {text}"))?;
            let number = |key: &str| counter[key].as_u64().with_context(|| format!("no {key}: {text}"));
            Ok::<_, anyhow::Error>(Count { packets: number("packets")?, bytes: number("bytes")? })
        };
        Ok(Traffic { sent: count("sent")?, received: count("received")? })
    }
}

/// Waits until what the client sent has all arrived at the servers and the other way round; the client's count.
pub fn wait_equal(client: &Tally, servers: &[Tally]) -> Result<Traffic> {
    wait::until("both ends count the same", PATIENCE, || {
        let near = client.read()?;
        let mut far = Traffic::default();
        for server in servers {
            let one = server.read()?;
            far = Traffic { sent: far.sent + one.sent, received: far.received + one.received };
        }
        ensure!(
            near.sent == far.received && near.received == far.sent,
            "the client {near:?}, the servers {far:?}"
        );
        Ok(near)
    })
}
