//! Linux as the slow path: ARP, ping, ssh and tcpdump work as on any router, and what is no service's reaches it.

use std::{
    io::Read,
    net::{SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    capture::Capture,
    client,
    cluster::{CLIENT, Layout, VIP, vip},
    packet::{Craft, Frame, mac_of},
    raw::RawSender,
    servers::Server,
    with_cluster,
};

#[test]
fn ping_of_router_and_vip() -> Result<()> {
    for layout in [Layout::TwoArmed, Layout::OneArmed] {
        with_cluster(layout, |cluster| {
            let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
            client::ping(&cluster.client, layout.router())?;
            client::ping(&cluster.client, VIP)?;
            client::ping(&cluster.real_servers[0], layout.gateway())?;
            client::ping(&cluster.router, layout.real_server(2))?;
            router.finish()
        })?;
    }
    Ok(())
}

#[test]
fn arp_for_router_and_vip_is_answered_with_the_ports_mac() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        let wire = Capture::start(&cluster.client, "eth0", "arp")?;
        let addresses = [VIP, cluster.layout().router()];
        for address in addresses {
            client::ping(&cluster.client, address)?;
        }
        let replies = |frames: &[Frame], address| {
            let replies = frames.iter().filter_map(Frame::arp);
            replies.filter(|arp| arp.operation == 2 && arp.sender == address).collect::<Vec<_>>()
        };
        let frames = wire.finish("a reply for each address", |frames| {
            addresses.iter().all(|address| !replies(frames, *address).is_empty())
        })?;
        for address in addresses {
            // One answer, not two: Linux does not answer on the raw wire beside its twin.
            let answers = replies(&frames, address);
            ensure!(answers.len() == 1 && answers[0].sender_mac == cluster.router_mac(), "{answers:?}");
        }
        router.finish()
    })
}

#[test]
fn ssh_like_connections_to_the_router_itself_work_and_tcpdump_on_the_twin_sees_them() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        let here = SocketAddrV4::new(cluster.layout().router(), 22);
        let _ssh = Server::tcp_echo(&cluster.router, here, "SSH-2.0-test")?;
        let twin = Capture::start(&cluster.router, "wan", "tcp port 22")?;
        let mut stream = client::connect(&cluster.client, here)?;
        let mut banner = [0; 12];
        stream.read_exact(&mut banner)?;
        ensure!(&banner == b"SSH-2.0-test");
        for length in [1, 100, 1448, 30_000] {
            client::echo(&mut stream, &vec![b'x'; length]).with_context(|| format!("{length} bytes"))?;
        }
        client::close(stream)?;
        let frames = twin.finish("packets of both directions", |frames| {
            let from = |source| frames.iter().filter_map(Frame::tcp).any(|tcp| *tcp.source().ip() == source);
            from(CLIENT) && from(*here.ip())
        })?;
        ensure!(frames.iter().filter_map(Frame::tcp).all(|tcp| tcp.ip().checksums_are_right()));
        // And out: the router's own connections to real servers, which is how it checks them.
        let answer =
            cluster.router.command("curl").words("--silent --max-time 5 http://10.0.0.12:8080/").run()?;
        ensure!(answer == "rs2\n", "{answer}");
        router.finish()
    })
}

#[test]
fn a_packet_that_matches_no_service_reaches_linux() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        // A port of the virtual address without a service: a program on the router may listen there.
        let _echoes =
            [Server::udp_echo(&cluster.router, vip(9))?, Server::tcp_echo(&cluster.router, vip(8022), "")?];
        let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, 0))?))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.connect(vip(9))?;
        // Not one is lost on the way.
        for number in 0..200_u32 {
            socket.send(&number.to_be_bytes())?;
            let mut buffer = [0; 8];
            let length = socket.recv(&mut buffer).with_context(|| format!("datagram {number}"))?;
            ensure!(buffer[..length] == number.to_be_bytes());
        }
        let mut stream = client::connect(&cluster.client, vip(8022))?;
        client::echo(&mut stream, &[b'y'; 10_000])?;
        client::close(stream)?;
        // A port where nobody listens: Linux refuses, as it would without RVS.
        let refused = client::connect(&cluster.client, vip(8023)).expect_err("nobody listens");
        ensure!(format!("{refused:#}").contains("refused"), "{refused:#}");
        // And Linux routes what is for others: the client asks a real server by its own address.
        cluster.client.ip(&format!("route add 10.0.0.0/24 via {}", cluster.layout().router()))?;
        let answer =
            cluster.client.command("curl").words("--silent --max-time 5 http://10.0.0.13:8080/").run()?;
        ensure!(answer == "rs3\n", "{answer}");
        client::ping(&cluster.client, cluster.layout().real_server(0))?;
        router.finish()
    })
}

#[test]
fn the_end_of_the_time_to_live_is_told_by_the_router() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        client::ping(&cluster.client, VIP)?;
        let wire = Capture::start(&cluster.client, "eth0", "icmp")?;
        let lan = Capture::start(&cluster.lan, "router", "ip")?;
        let before = router.quiet()?.fates();
        let expiring = Craft { ttl: 1, ..Craft::syn(SocketAddrV4::new(CLIENT, 4000), vip(80)) }
            .between(mac_of(CLIENT), cluster.router_mac());
        RawSender::open(&cluster.client, "eth0")?.send(&expiring.build())?;
        harness::wait::until("it is counted under a name", harness::wait::PATIENCE, || {
            let after = router.counters()?.fates();
            let moved: Vec<_> =
                after.iter().filter(|(name, count)| before.get(*name) != Some(count)).collect();
            ensure!(moved.iter().any(|(name, _)| name.to_lowercase().contains("ttl")), "{moved:?}");
            Ok(())
        })?;
        let errors = wire.finish("the error", |frames| {
            frames.iter().filter_map(Frame::ipv4).any(|ip| !matches!(ip.payload()[0], 0 | 8))
        })?;
        let errors: Vec<_> =
            errors.iter().filter_map(Frame::ipv4).filter(|ip| !matches!(ip.payload()[0], 0 | 8)).collect();
        // Time exceeded in transit (RFC 792), and from the router, whom a traceroute is to show.
        ensure!(errors.len() == 1 && errors[0].payload()[..2] == [11, 0], "{errors:?}");
        ensure!(errors[0].source() == cluster.layout().router(), "{errors:?}");
        ensure!(!lan.frames()?.iter().any(|frame| frame.mentions(CLIENT)), "it was sent on");
        router.finish()
    })
}

#[test]
fn a_neighbour_that_changes_its_mac_is_followed() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router =
            cluster.start_router(&cluster.config().service(cluster.web().scheduler("rr").checked()))?;
        ensure!(client::get(&cluster.client, vip(80), 9)?.counts()? == [3, 3, 3]);
        cluster.real_servers[1].ip("link set eth0 address 02:00:0a:00:00:99")?;
        // The server says so (gratuitous ARP), as a machine that takes over an address does.
        client::ping(&cluster.real_servers[1], cluster.layout().gateway())?;
        harness::wait::until("requests reach it at its new place", Duration::from_secs(60), || {
            let counts = client::get(&cluster.client, vip(80), 9)?.counts()?;
            ensure!(counts == [3, 3, 3], "{counts:?}");
            Ok(())
        })?;
        router.finish()
    })
}

#[test]
fn the_first_connection_ever_is_not_lost() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        // No health check: nobody has talked to the real servers yet, and nobody knows their MACs.
        let router = cluster.start_router(&cluster.config().service(cluster.web().scheduler("rr")))?;
        let wire = Capture::start(&cluster.client, "eth0", "tcp[tcpflags] & tcp-syn != 0")?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        let frames = wire.finish("three answers", |frames| {
            frames.iter().filter(|frame| frame.tcp().is_some()).count() >= 6
        })?;
        // A second SYN for one connection would mean that the first was lost while ARP was asking.
        let syns = frames
            .iter()
            .filter_map(Frame::tcp)
            .filter(|tcp| *tcp.ip().source().octets().last().unwrap_or(&0) == 100);
        ensure!(syns.count() == 3, "a SYN was lost: {frames:?}");
        router.finish()
    })
}

#[test]
fn a_neighbour_that_the_operator_has_fixed_stays_fixed() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web().scheduler("rr")))?;
        let address = cluster.layout().real_server(0);
        let mac = harness::packet::show_mac(mac_of(address));
        cluster.router.ip(&format!("neigh replace {address} dev lan lladdr {mac} nud permanent"))?;
        let lan = Capture::start(&cluster.lan, "router", "arp")?;
        // Long enough for whatever refreshes neighbours: the others are asked for meanwhile.
        let deadline = std::time::Instant::now() + Duration::from_secs(12);
        while std::time::Instant::now() < deadline {
            ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
            let neighbours = cluster.router.ip_json(&format!("neigh show {address} dev lan"))?;
            ensure!(neighbours[0]["state"][0] == "PERMANENT", "it became {neighbours}");
        }
        let asked = lan
            .frames()?
            .iter()
            .filter_map(Frame::arp)
            .any(|arp| arp.operation == 1 && arp.target == address);
        ensure!(!asked, "it is known, and was asked for");
        router.finish()
    })
}
