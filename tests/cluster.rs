//! The cluster itself, with Linux as the router: what the other tests rely on works without RVS.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use harness::{
    capture::Capture,
    client::{self, bound},
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    packet::{Craft, flag, mac_of},
    raw::RawSender,
    servers::Server,
    tally::{self, Tally},
    with_cluster,
};

/// Makes Linux balance port 80 over the real servers, round robin, in place of RVS.
fn linux_as_router(cluster: &Cluster) -> Result<()> {
    let layout = cluster.layout();
    cluster.router.nft(&format!(
        "delete table netdev rvs\n\
         table ip lb {{\n\
         chain pre {{ type nat hook prerouting priority -100; ip daddr {VIP} tcp dport 80 \
         dnat to numgen inc mod 3 map {{ 0 : {}, 1 : {}, 2 : {} }} : 8080; }}\n\
         chain pre2 {{ type nat hook prerouting priority -99; ip daddr {VIP} udp dport 53 dnat to {} : 53; }}\n}}\n",
        layout.real_server(0),
        layout.real_server(1),
        layout.real_server(2),
        layout.real_server(0),
    ))?;
    cluster.router.ip(&format!(
        "address add {}/24 dev wan0\naddress add {VIP}/32 dev wan0\naddress add {}/24 dev lan0",
        layout.router(),
        layout.gateway()
    ))
}

#[test]
fn requests_captures_and_tallies_agree() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        linux_as_router(cluster)?;
        let nginx = cluster.start_web()?;
        let wan = Capture::start(&cluster.client, "eth0", "tcp")?;
        let near = Tally::of_client(&cluster.client, "192.0.2.10", "tcp", 80)?;
        let far: Vec<_> = cluster
            .real_servers
            .iter()
            .map(|server| Tally::of_server(server, "tcp", 8080))
            .collect::<Result<_>>()?;

        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        ensure!(client::get_parallel(&cluster.client, vip(80), 300, 20)?.counts()? == [100, 100, 100]);

        let traffic = tally::wait_equal(&near, &far)?;
        let frames = wan.finish("all packets", |frames| {
            frames.iter().filter(|frame| frame.tcp().is_some()).count() as u64
                >= traffic.sent.packets + traffic.received.packets
        })?;
        ensure!(frames.iter().all(|frame| frame.ipv4().is_none_or(|ip| ip.checksums_are_right())));
        let opened =
            |flags| frames.iter().filter(move |frame| frame.tcp().is_some_and(|tcp| tcp.flags() == flags));
        ensure!(opened(flag::SYN).count() == 330);
        ensure!(opened(flag::SYN).all(|frame| frame.destination_mac() == cluster.router_mac()));
        ensure!(!frames.iter().any(|frame| frame.mentions(cluster.layout().real_server(0))));
        for server in &nginx {
            ensure!(server.wait_logged(110)?.iter().all(|client| *client == CLIENT.to_string()));
        }
        Ok(())
    })
}

#[test]
fn echo_ping_dig_and_raw_frames_work() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        linux_as_router(cluster)?;
        let _echoes: Vec<_> = (0..3)
            .map(|index| Server::tcp_echo(&cluster.real_servers[index], cluster.endpoint(index, 8080), ""))
            .collect::<Result<_>>()?;
        let dns = Server::dns(&cluster.real_servers[0], cluster.endpoint(0, 53), "rs1")?;
        let mut stream = client::connect(&cluster.client, vip(80))?;
        client::echo(&mut stream, b"hello")?;
        client::close(stream)?;
        client::ping(&cluster.client, VIP)?;
        ensure!(client::dig(&cluster.client, 6000, vip(53))? == "rs1");
        ensure!(dns.served() == 1);

        // A crafted SYN is answered, so its checksums are right; Linux resets what it did not open.
        let wan = Capture::start(&cluster.client, "eth0", "tcp")?;
        let from = SocketAddrV4::new(CLIENT, 40_000);
        let syn = Craft::syn(from, vip(80)).between(mac_of(CLIENT), cluster.router_mac());
        RawSender::open(&cluster.client, "eth0")?.send(&syn.build())?;
        wan.finish("the answer to a crafted SYN", |frames| {
            frames.iter().filter_map(|frame| frame.tcp()).any(|tcp| {
                tcp.destination() == from
                    && tcp.flags() == flag::SYN | flag::ACK
                    && tcp.ip().checksums_are_right()
            })
        })?;
        Ok(())
    })
}

#[test]
fn real_servers_of_a_one_armed_cluster_keep_the_virtual_address_to_themselves() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let wan = Capture::start(&cluster.client, "eth0", "arp")?;
        // Nobody answers for the virtual address while there is no router ...
        let refused = cluster.client.enter(|| {
            let socket = bound(SocketAddrV4::new(CLIENT, 0))?;
            Ok(socket.connect_timeout(&vip(80).into(), std::time::Duration::from_millis(1500)).is_err())
        })?;
        ensure!(refused);
        // ... but a real server does if it is addressed by its MAC.
        cluster.client.ip(&format!(
            "neigh replace {VIP} dev eth0 lladdr {}",
            harness::packet::show_mac(mac_of(cluster.layout().real_server(1)))
        ))?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [0, 3, 0]);
        let frames = wan.finish("a question for the virtual address", |frames| {
            frames.iter().filter_map(|frame| frame.arp()).any(|arp| arp.operation == 1 && arp.target == VIP)
        })?;
        ensure!(
            !frames.iter().filter_map(|frame| frame.arp()).any(|arp| arp.operation == 2 && arp.sender == VIP)
        );
        Ok(())
    })
}

#[test]
fn a_cluster_whose_owner_is_gone_is_removed_by_the_next() -> Result<()> {
    if !harness::privileged()? {
        return Ok(());
    }
    let id = format!("orphan-{}", std::process::id());
    let state = harness::state::State::named(&id)?;
    let namespace = harness::netns::Namespace::create(&state, "client")?;
    let daemon = namespace.command("sleep").arg("300").spawn("sleep")?;
    let identity = harness::process::Identity::of(daemon.pid()).expect("it runs");
    // Number 1 has not started when this says it has.
    std::fs::write(state.file("owner"), "1 999999999999\n")?;
    let another = harness::state::State::unique()?;
    ensure!(!identity.is_alive(), "its process is ended");
    ensure!(!std::path::Path::new("/run/netns").join(namespace.name()).exists(), "its namespace is deleted");
    ensure!(harness::state::State::existing(&id).is_none(), "its directory is removed");
    another.remove()
}
