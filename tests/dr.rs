//! Direct routing, one-armed: the router sees requests only, and changes nothing but MACs and time to live.

use anyhow::{Context, Result, ensure};
use harness::{
    capture::Capture,
    client,
    cluster::{CLIENT, Layout, VIP, vip},
    packet::{ARP, ETHERNET, Frame, flag, mac_of},
    with_cluster,
};

#[test]
fn dr_changes_only_macs_and_ttl() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let nginx = cluster.start_web()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web().scheduler("rr")))?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        router.quiet()?;

        // On the router's own wire: what it receives, and what it sends.
        let wire = Capture::start(&cluster.lan, "router", "tcp")?;
        ensure!(client::get(&cluster.client, vip(80), 1)?.total() == 1);
        let is = |frame: &Frame, bit| frame.tcp().is_some_and(|tcp| tcp.flags() & bit != 0);
        let to_router = |frame: &&Frame| frame.destination_mac() == cluster.router_mac();
        let frames = wire.finish("both sides of the client's FIN and of what follows", |frames| {
            let received = frames.iter().filter(to_router).count();
            frames.iter().filter(|frame| is(frame, flag::FIN)).count() == 2 && received * 2 == frames.len()
        })?;

        let received: Vec<_> = frames.iter().filter(to_router).collect();
        let sent: Vec<_> = frames.iter().filter(|frame| frame.source_mac() == cluster.router_mac()).collect();
        ensure!(
            received.len() == sent.len() && received.len() >= 5,
            "{} in, {} out",
            received.len(),
            sent.len()
        );
        for (before, after) in received.iter().zip(&sent) {
            let server = after.destination_mac();
            ensure!(
                (0..3).any(|index| server == mac_of(cluster.layout().real_server(index))),
                "to {server:02x?}"
            );
            // All bytes as they were, but the MACs, the time to live, and the header checksum that covers it.
            let mut expected = before.bytes.clone();
            expected[..ETHERNET - 2].copy_from_slice(&after.bytes[..ETHERNET - 2]);
            expected[ETHERNET + 8] -= 1;
            expected[ETHERNET + 10..ETHERNET + 12]
                .copy_from_slice(&after.bytes[ETHERNET + 10..ETHERNET + 12]);
            ensure!(after.bytes == expected, "{before:02x?} became {after:02x?}");
            ensure!(after.ipv4().is_some_and(|ip| ip.checksums_are_right()), "{after:02x?}");
        }
        // Answers go to the client directly.
        ensure!(!frames.iter().any(|frame| frame.tcp().is_some_and(|tcp| *tcp.source().ip() == VIP)));
        for server in &nginx {
            ensure!(server.wait_logged(1)?.iter().all(|address| *address == CLIENT.to_string()));
        }
        router.finish()
    })
}

#[test]
fn the_router_alone_answers_arp_for_the_virtual_address() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        let wire = Capture::start(&cluster.client, "eth0", "arp")?;
        cluster.client.ip("neigh flush dev eth0")?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        let answers = |frames: &[Frame]| {
            let arps = frames.iter().filter(|frame| frame.ethertype() == ARP).filter_map(Frame::arp);
            arps.filter(|arp| arp.operation == 2 && arp.sender == VIP)
                .map(|arp| arp.sender_mac)
                .collect::<Vec<_>>()
        };
        let frames = wire.finish("an ARP reply", |frames| !answers(frames).is_empty())?;
        ensure!(answers(&frames).iter().all(|mac| *mac == cluster.router_mac()), "{:02x?}", answers(&frames));
        router.finish()
    })
}

#[test]
fn dr_counts_one_direction_and_follows_its_states() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let nginx = cluster.start_web()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web().scheduler("rr")))?;
        ensure!(client::get(&cluster.client, vip(80), 90)?.counts()? == [30, 30, 30]);
        router.quiet()?;
        let service = router.service()?;
        ensure!(service.stats.connections == 90, "{service:?}");
        ensure!(service.stats.packets_out == 0 && service.stats.bytes_out == 0, "{service:?}");
        for server in &service.servers {
            ensure!(server.stats.connections == 30, "{server:?}");
            // All closed: inactive, as LVS infers it from the client's packets alone.
            ensure!(server.active == 0 && server.inactive == 30, "{server:?}");
        }
        let listed = router.list()?;
        let line = listed.lines().find(|line| line.contains("192.0.2.11:80")).context(listed.clone())?;
        ensure!(line.contains("Route   1      0          30"), "{listed}");
        ensure!(nginx.iter().all(|server| server.wait_logged(30).is_ok()));
        router.finish()
    })
}
