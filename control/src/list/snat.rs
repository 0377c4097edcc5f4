//! `rvs list --snat`: pools of source NAT, and who has ports of them.

use std::io::{self, Write};

use crate::admin::api::{SnatBlocks, SnatPool};

/// Writes the pools, each with its hosts.
pub fn snat(out: &mut impl Write, pools: &[SnatPool]) -> io::Result<()> {
    if pools.is_empty() {
        writeln!(out, "There is no source NAT")?;
    }
    for pool in pools {
        let (inside, mappings, room) = (pool.inside.join(", "), pool.mappings, pool.room);
        let addresses = match pool.outside.len() {
            1 => "1 address".to_owned(),
            count => format!("{count} addresses"),
        };
        let SnatBlocks { all, tcp, udp, icmp } = pool.blocks;
        writeln!(out, "From {inside} by {addresses}: {mappings} of {room} mappings")?;
        writeln!(
            out,
            "  blocks of ports in use: {tcp} of {all} TCP, {udp} of {all} UDP, {icmp} of {all} ping"
        )?;
        if pool.hosts.is_empty() {
            continue;
        }
        writeln!(
            out,
            "  {:<16} {:<16} {:>8} {:>8} {:>8} {:>8}",
            "Inside", "Outside", "Blocks", "TCP", "UDP", "Ping"
        )?;
        for host in &pool.hosts {
            // Formatted first: an address does not pad itself reliably.
            let (inside, outside) = (host.inside.to_string(), host.outside.to_string());
            let (blocks, tcp, udp, icmp) = (host.blocks, host.tcp, host.udp, host.icmp);
            writeln!(out, "  {inside:<16} {outside:<16} {blocks:>8} {tcp:>8} {udp:>8} {icmp:>8}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::SnatHost;

    #[test]
    fn pools_with_hosts_and_without() {
        let host = |inside: &str, blocks, tcp| {
            let (inside, outside) = (inside.parse().unwrap(), "192.0.2.50".parse().unwrap());
            SnatHost { inside, outside, blocks, tcp, udp: 700, icmp: 1 }
        };
        let busy = SnatPool {
            inside: vec!["10.0.0.0/24".to_owned(), "10.1.0.0/16".to_owned()],
            outside: vec!["192.0.2.50".parse().unwrap()],
            mappings: 1425,
            room: 65_536,
            blocks: SnatBlocks { all: 126, tcp: 2, udp: 2, icmp: 1 },
            hosts: vec![host("10.0.0.11", 3, 12), host("10.1.200.100", 2, 11)],
        };
        let idle = SnatPool {
            outside: vec!["192.0.2.60".parse().unwrap(); 2],
            hosts: Vec::new(),
            mappings: 0,
            blocks: SnatBlocks { all: 252, ..SnatBlocks::default() },
            ..busy.clone()
        };
        let shown = |pools: &[SnatPool]| {
            let mut out = Vec::new();
            snat(&mut out, pools).unwrap();
            String::from_utf8(out).unwrap()
        };
        let expected = "\
From 10.0.0.0/24, 10.1.0.0/16 by 1 address: 1425 of 65536 mappings
  blocks of ports in use: 2 of 126 TCP, 2 of 126 UDP, 1 of 126 ping
  Inside           Outside            Blocks      TCP      UDP     Ping
  10.0.0.11        192.0.2.50              3       12      700        1
  10.1.200.100     192.0.2.50              2       11      700        1
From 10.0.0.0/24, 10.1.0.0/16 by 2 addresses: 0 of 65536 mappings
  blocks of ports in use: 0 of 252 TCP, 0 of 252 UDP, 0 of 252 ping
";
        assert_eq!(shown(&[busy, idle]), expected);
        assert_eq!(shown(&[]), "There is no source NAT\n");
    }
}
