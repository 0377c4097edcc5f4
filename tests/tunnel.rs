//! Tunnels: packets reach real servers inside of others, which answer clients directly.

use std::{
    net::{SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    capture::Capture,
    client,
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    config::Service,
    netns::Namespace,
    packet::Frame,
    servers::Server,
    shm::Place,
    tunnel::{End, Kind, path_mtu, through},
    wait::{self, PATIENCE},
    with_cluster,
};

/// How much is sent through a tunnel, and comes back beside it.
const MUCH: usize = 2 << 20;

fn pages_and_files_both_ways(kind: Kind) -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let mut ends = End::of_all(cluster, kind)?;
        let _mirror = Server::tcp_mirror(&cluster.real_servers[0], vip(9000))?;
        let files =
            Service::tcp("tunnel", vip(9000)).setting(&kind.setting()).server(cluster.endpoint(0, 9000), 1);
        let web = through(cluster.web().scheduler("rr"), kind);
        let router = cluster.start_router(&cluster.config().service(web).service(files))?;

        // On the router's wire: what it sends are outer packets, and nobody's answers come by.
        let wire = Capture::start(&cluster.lan, "router", "ip")?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        let is_sent = |frame: &&Frame| frame.source_mac() == cluster.router_mac();
        let frames = wire.finish("requests", |frames| frames.iter().filter(is_sent).count() >= 120)?;
        let sent: Vec<_> = frames.iter().filter(is_sent).filter_map(Frame::ipv4).collect();
        let protocol = match kind {
            Kind::Ipip => 4,
            Kind::Gre => 47,
            Kind::Gue(_) => 17,
        };
        for outer in &sent {
            ensure!(
                outer.protocol() == protocol && outer.ttl() == 64 && outer.checksums_are_right(),
                "{outer:?}"
            );
            ensure!(outer.source() == cluster.layout().router(), "from {}", outer.source());
        }
        ensure!(!frames.iter().filter_map(|frame| frame.tcp()).any(|tcp| *tcp.source().ip() == VIP));

        // Up through the tunnel, whose MTU the client is told; down beside it.
        client::there_and_back(&cluster.client, vip(9000), MUCH)?;
        ensure!(path_mtu(&cluster.client, "192.0.2.10")? == Some(1500 - kind.overhead() as u64));
        ensure!(router.count("too_big")? > 0);
        let posted = cluster
            .client
            .command("curl")
            .words("--silent --show-error --fail --max-time 15 --data-binary @- http://192.0.2.10/")
            .input(vec![b'x'; 8192])
            .run()?;
        ensure!(posted.starts_with("rs"), "{posted}");
        let mut download = client::start_download(&cluster.client, vip(80), "100m", "download")?;
        ensure!(download.wait(PATIENCE)?.success(), "{}", download.log());
        ensure!(std::fs::read(cluster.state().file("download"))? == harness::nginx::big_file());

        router.quiet()?;
        let listed = router.list()?;
        let line = listed.lines().find(|line| line.contains("192.0.2.11:80 ")).context(listed.clone())?;
        ensure!(line.contains(" Tunnel  1 "), "{listed}");
        let json: serde_json::Value = serde_json::from_str(&router.rvs("list --json").run()?)?;
        ensure!(json[0]["tunnel"] == kind.listed(), "{json:#}");
        let stats = router.service()?.stats;
        ensure!(stats.connections == 32 && stats.packets_out == 0, "{stats:?}");
        let told = router.rvs("explain --src 192.0.2.100:6000 --dst 192.0.2.10:80").run()?;
        ensure!(told.contains(&format!("inside of    {} 192.0.2.1 -> 192.0.2.1", kind.listed())), "{told}");
        ends.iter_mut().try_for_each(End::check)?;
        router.finish()
    })
}

#[test]
fn pages_and_files_both_ways_ipip() -> Result<()> {
    pages_and_files_both_ways(Kind::Ipip)
}

#[test]
fn pages_and_files_both_ways_gre() -> Result<()> {
    pages_and_files_both_ways(Kind::Gre)
}

#[test]
fn pages_and_files_both_ways_gue() -> Result<()> {
    pages_and_files_both_ways(Kind::Gue(5555))
}

/// A real server behind another router, by a link of 1280 bytes.
fn behind_a_narrow_link(cluster: &Cluster) -> Result<Namespace> {
    let between = &cluster.real_servers[1];
    let far = Namespace::create(cluster.state(), "far")?;
    between.ip(&format!("link add far0 mtu 1280 type veth peer name eth0 netns {}", far.name()))?;
    // It is no real server: the virtual address is none of its own, and it may not take its source for a fake.
    between
        .ip(&format!("address del {VIP}/32 dev lo\nlink set far0 up\naddress add 10.1.0.1/24 dev far0"))?;
    // It does not know that its segments come by a tunnel, and asks for as long ones as usual.
    far.ip(&format!(
        "link set eth0 mtu 1280 up\naddress add 10.1.0.11/24 dev eth0\n\
         route add default via 10.1.0.1 advmss 1460\naddress add {VIP}/32 dev lo"
    ))?;
    between.plain_wire("far0")?;
    far.plain_wire("eth0")?;
    between.sysctl("net/ipv4/ip_forward", 1)?;
    Ok(far)
}

/// "Don't fragment" all the way: the router between says so of the outer packet, and the client has to hear it of its own.
fn the_mtu_beyond_the_router_is_found(kind: Kind) -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let far = behind_a_narrow_link(cluster)?;
        let mut end = End::start(&far, kind)?;
        let _mirror = Server::tcp_mirror(&far, vip(9000))?;
        let server: SocketAddrV4 = "10.1.0.11:9000".parse()?;
        let service = Service::tcp("tunnel", vip(9000)).setting(&kind.setting()).server(server, 1);
        let router = cluster.start_router(&cluster.config().service(service))?;
        cluster.router.ip("route add 10.1.0.0/24 via 192.0.2.12")?;
        wait::until("the way to the far server", PATIENCE, || {
            client::there_and_back(&cluster.client, vip(9000), 10)
        })?;
        client::there_and_back(&cluster.client, vip(9000), MUCH)?;
        let known = path_mtu(&cluster.client, "192.0.2.10")?;
        ensure!(known == Some(1280 - kind.overhead() as u64), "the client believes {known:?}");
        ensure!(router.count("tunnel_error")? > 0);
        end.check()?;
        router.finish()
    })
}

#[test]
fn the_mtu_beyond_the_router_is_found_ipip() -> Result<()> {
    the_mtu_beyond_the_router_is_found(Kind::Ipip)
}

#[test]
fn the_mtu_beyond_the_router_is_found_gre() -> Result<()> {
    the_mtu_beyond_the_router_is_found(Kind::Gre)
}

#[test]
fn the_mtu_beyond_the_router_is_found_gue() -> Result<()> {
    the_mtu_beyond_the_router_is_found(Kind::Gue(6080))
}

/// Nobody takes packets out there any more: Linux says that it does not know the protocol, and the client hears that there is no way to
/// the host.
#[test]
fn a_server_without_a_tunnel_is_unreachable() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        cluster.real_servers[0].sysctl("net/ipv4/icmp_ratelimit", 0)?;
        let service = Service::tcp("tunnel", vip(80)).server(cluster.endpoint(0, 80), 1);
        let router = cluster.start_router(&cluster.config().service(service))?;
        let error = client::connect(&cluster.client, vip(80)).expect_err("nobody is there");
        ensure!(format!("{error:#}").contains("No route to host"), "{error:#}");
        ensure!(router.count("tunnel_error")? > 0);
        router.finish()
    })
}

/// What may be fragmented and does not fit arrives in fragments.
#[test]
fn datagrams_that_may_be_fragmented_are() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let kind = Kind::Ipip;
        let mut ends = End::of_all(cluster, kind)?;
        let _echo = Server::udp_echo(&cluster.real_servers[0], vip(7))?;
        let service =
            Service::udp("tunnel", vip(7)).setting(&kind.setting()).server(cluster.endpoint(0, 7), 1);
        let router = cluster.start_router(&cluster.config().service(service))?;
        // Sockets that are made from now on leave "don't fragment" out.
        cluster.client.sysctl("net/ipv4/ip_no_pmtu_disc", 1)?;
        let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, 5000))?))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(vip(7))?;
        let mut buffer = [0; 2048];
        for length in [1452, 1453, 1472] {
            let before = router.count("to_fragment")?;
            let message = vec![length as u8; length];
            socket.send(&message)?;
            let received = socket.recv(&mut buffer).with_context(|| format!("no echo of {length}"))?;
            ensure!(buffer[..received] == message);
            // 1452 bytes are 1480 with their headers, and 1500 in the tunnel.
            ensure!(router.count("to_fragment")? - before == u64::from(length > 1452), "{length} bytes");
        }
        ends.iter_mut().try_for_each(End::check)?;
        router.finish()
    })
}

/// The next router knows the connection of the one that was killed; and by what tunnel it goes, the latest configuration says.
#[test]
fn a_connection_outlives_its_router_and_its_encapsulation() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let (place, server) = (Place::new(cluster)?, &cluster.real_servers[0]);
        let _echo = Server::tcp_echo(server, vip(7), "")?;
        let config = |kind: Kind| {
            let service = Service::tcp("tunnel", vip(7)).setting(&kind.setting());
            let mut config = cluster.config().service(service.server(cluster.endpoint(0, 7), 1));
            config.keep = place.keep();
            config
        };
        let end = End::start(server, Kind::Ipip)?;
        let router = cluster.start_router(&config(Kind::Ipip))?;
        let mut stream = client::connect(&cluster.client, vip(7))?;
        client::echo(&mut stream, b"at first")?;
        router.kill()?;
        let router = cluster.start_router(&config(Kind::Ipip))?;
        client::echo(&mut stream, b"with the next router")?;

        drop(end);
        let mut end = End::start(server, Kind::Gue(6080))?;
        router.apply(&config(Kind::Gue(6080)))?;
        client::echo(&mut stream, b"through another tunnel")?;
        ensure!(router.service()?.stats.connections == 0, "it is the same connection");
        end.check()?;
        router.finish()
    })
}

/// Many small segments, and a clamp that the server obeys.
#[test]
fn iperf3_with_small_segments() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let kind = Kind::Gue(6080);
        let server = &cluster.real_servers[0];
        let mut end = End::start(server, kind)?;
        let mut daemon = server.command("iperf3").words("--server --one-off --forceflush").spawn("iperf3")?;
        wait::until("iperf3 listens", PATIENCE, || {
            daemon.check_running()?;
            ensure!(daemon.log().contains("Server listening"));
            Ok(())
        })?;
        let setting = "tunnel = { encapsulation = \"gue\", mss_clamp = true }";
        let service = Service::tcp("tunnel", vip(5201)).setting(setting).server(cluster.endpoint(0, 5201), 1);
        let router = cluster.start_router(&cluster.config().service(service))?;
        let output = cluster
            .client
            .command("iperf3")
            .args(["--client", "192.0.2.10", "--json"])
            .words("--time 3 --window 64K --set-mss 400")
            .limit(Duration::from_secs(40))
            .run()?;
        daemon.wait(PATIENCE)?;
        let report: serde_json::Value = serde_json::from_str(&output)?;
        let received = report["end"]["sum_received"]["bytes"].as_u64().with_context(|| output.clone())?;
        ensure!(received > 100_000, "{received} bytes");
        router.quiet()?;
        let stats = router.service()?.stats;
        ensure!(stats.connections == 2 && stats.bytes_in > received, "{stats:?}");
        ensure!(stats.bytes_in / stats.packets_in < 460, "segments of 400 bytes: {stats:?}");
        end.check()?;
        router.finish()
    })
}

/// The server hears the clamp: what it sends, beside the tunnel, is no longer than that.
#[test]
fn a_server_obeys_the_clamp() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let mut end = End::start(&cluster.real_servers[0], Kind::Ipip)?;
        let _mirror = Server::tcp_mirror(&cluster.real_servers[0], vip(9000))?;
        let setting = "tunnel = { mss_clamp = 1000 }";
        let service = Service::tcp("tunnel", vip(9000)).setting(setting).server(cluster.endpoint(0, 9000), 1);
        let router = cluster.start_router(&cluster.config().service(service))?;
        let wire = Capture::start(&cluster.lan, "rs1", "tcp src port 9000")?;
        client::there_and_back(&cluster.client, vip(9000), 50_000)?;
        let lengths = |frames: &[Frame]| -> Vec<usize> {
            frames.iter().filter_map(|frame| Some(frame.ipv4()?.total_length())).collect()
        };
        let frames = wire.finish("the answer", |frames| lengths(frames).iter().sum::<usize>() > 50_000)?;
        ensure!(lengths(&frames).into_iter().max() == Some(1040), "{:?}", lengths(&frames));
        end.check()?;
        router.finish()
    })
}
