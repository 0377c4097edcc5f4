//! What concerns no service, where the data path routes it: Linux, which is told to forward nothing, sees none of it.

use std::fs;
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    ipv6,
    netns::Namespace,
    router::Router,
    servers::Server,
    shm::Place,
    wait::{self, PATIENCE},
    with_cluster,
};

/// A machine behind a real server, and what it is called there. The way to it takes 1280 bytes.
const FAR: [&str; 2] = ["198.51.100.2", "2001:db8:f::2"];

fn far(cluster: &Cluster) -> Result<Namespace> {
    let (near, far) = (&cluster.real_servers[0], Namespace::create(cluster.state(), "far")?);
    near.ip(&format!("link add far0 mtu 1280 type veth peer name eth0 mtu 1280 netns {}", far.name()))?;
    ipv6::switch_on(near, "far0")?;
    ipv6::switch_on(&far, "eth0")?;
    near.ip(
        "link set far0 up\naddress add 198.51.100.1/24 dev far0\naddress add 2001:db8:f::1/64 dev far0 nodad",
    )?;
    far.ip(
        "link set eth0 up\naddress add 198.51.100.2/24 dev eth0\naddress add 2001:db8:f::2/64 dev eth0 nodad",
    )?;
    far.ip("route add default via 198.51.100.1\nroute add default via 2001:db8:f::1")?;
    near.plain_wire("far0")?;
    far.plain_wire("eth0")?;
    near.sysctl("net/ipv4/ip_forward", 1)?;
    near.sysctl("net/ipv6/conf/all/forwarding", 1)?;
    Ok(far)
}

/// The ways from the client to the far machine and back, by the router.
fn routes(cluster: &Cluster) -> Result<()> {
    let Cluster { client, router, .. } = cluster;
    client.ip("route add default via 192.0.2.1\nroute add default via 2001:db8:2::1")?;
    router.ip("route add 198.51.100.0/24 via 10.0.0.11\nroute add 2001:db8:f::/64 via 2001:db8:a::11")?;
    router.sysctl("net/ipv4/ip_forward", 0)?;
    router.sysctl("net/ipv6/conf/all/forwarding", 0)
}

/// What a program says, in this many seconds.
fn say(machine: &Namespace, program: &str, words: &str) -> Result<String> {
    machine.command(program).words(words).limit(Duration::from_secs(30)).run()
}

/// The router and the real server are hops on the way, the far machine is its end.
fn hops(client: &Namespace, family: usize) -> Result<()> {
    let (option, near) =
        [("-4", ["192.0.2.1", "10.0.0.11"]), ("-6", ["2001:db8:2::1", "2001:db8:a::11"])][family];
    let way = say(client, "traceroute", &format!("{option} -n -q 2 -w 3 {}", FAR[family]))?;
    let lines: Vec<&str> = way.lines().skip(1).collect();
    let passes = |(line, hop): (&&str, &str)| line.split_whitespace().nth(1) == Some(hop);
    let expected = near.into_iter().chain([FAR[family]]);
    ensure!(lines.len() == 3 && lines.iter().zip(expected).all(passes), "{way}");
    let path = say(client, "tracepath", &format!("{option} -n {}", FAR[family]))?;
    let is_hop = |hop: &str| path.lines().any(|line| line.split_whitespace().nth(1) == Some(hop));
    ensure!(near.into_iter().all(is_hop), "{path}");
    ensure!(path.contains("Resume: pmtu 1280 hops 3 back 3"), "{path}");
    Ok(())
}

/// As much as is told to go on from the path's MTU.
fn transfer(client: &Namespace, far: &Namespace, address: &str) -> Result<()> {
    // With a log of its own: what an earlier one said is none of this one's.
    let name = format!("iperf3-{address}");
    let mut server = far.command("iperf3").words("--server --one-off --forceflush").spawn(&name)?;
    wait::until("iperf3 listens", PATIENCE, || {
        server.check_running()?;
        ensure!(server.log().contains("Server listening"));
        Ok(())
    })?;
    say(client, "iperf3", &format!("--client {address} --bytes 8M --window 128K"))?;
    server.wait(PATIENCE).map(drop)
}

/// Source NAT of the real servers, as the file has it.
const SNAT: &str = "[[snat]]\ninside = [\"10.0.0.0/24\"]\noutside = [\"192.0.2.50\"]\n";

/// The client has no way to the real servers' network, so whatever is answered here came from the pool.
#[test]
fn real_servers_reach_the_outside_from_a_pool_of_addresses() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Cluster { client, real_servers, router: machine, .. } = cluster;
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web());
        let router = Router::start_text(cluster, &format!("{SNAT}{config}"), &config)?;
        machine.sysctl("net/ipv4/ip_forward", 0)?;
        let (from, outside) = (&real_servers[0], SocketAddrV4::new(CLIENT, 7000));
        let (_tcp, _udp) = (Server::tcp_echo(client, outside, "")?, Server::udp_echo(client, outside)?);
        say(from, "ping", &format!("-n -c 3 -i 0.1 -W 5 {CLIENT}"))?;
        let mut stream = client::connect(from, outside)?;
        client::echo(&mut stream, b"by the pool")?;
        transfer(from, client, &CLIENT.to_string())?;
        let socket = from.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"?", outside)?;
        ensure!(socket.recv_from(&mut [0; 16])? == (1, outside.into()));
        // What the router and the client say of it finds the way back.
        let way = say(from, "traceroute", &format!("-n -q 2 -w 3 {CLIENT}"))?;
        let hops: Vec<_> = way.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        ensure!(hops == ["10.0.0.1", "192.0.2.100"], "{way}");
        // Of two behind one address each gets its own answers.
        let others = real_servers[1..].iter().map(|server| client::connect(server, outside));
        let others = others.collect::<Result<Vec<_>>>()?;
        for (mut stream, text) in others.into_iter().zip(["second", "third"]) {
            client::echo(&mut stream, text.as_bytes())?;
        }
        client::echo(&mut stream, b"still there")?;
        // Services go on as they do.
        ensure!(client::get(client, vip(80), 6)?.total() == 6);
        let text = router.rvs("list --counters").run()?;
        ensure!(text.contains(" mappings of source NAT"), "{text}");
        let text = router.rvs("list --snat").run()?;
        for server in ["10.0.0.11 ", "10.0.0.12 ", "10.0.0.13 "] {
            let has = |line: &str| line.trim_start().starts_with(server) && line.contains(" 192.0.2.50 ");
            ensure!(text.lines().any(has), "{text}");
        }
        ensure!(
            machine.addresses("wan")?.contains(&"192.0.2.50/32".to_owned()),
            "{:?}",
            machine.addresses("wan")
        );

        // Without it nobody gets out; the address is gone with it.
        router.apply(&config)?;
        ensure!(say(from, "ping", &format!("-n -c 1 -W 1 {CLIENT}")).is_err());
        ensure!(!machine.addresses("wan")?.contains(&"192.0.2.50/32".to_owned()));
        router.finish()
    })
}

/// Each says something of its own and hears it.
fn all_go_on(streams: &mut [TcpStream], word: &str) -> Result<()> {
    let mut streams = streams.iter_mut().enumerate();
    streams.try_for_each(|(number, stream)| {
        client::echo(stream, format!("{word} {number}").as_bytes())
            .with_context(|| format!("connection {number}, {word}"))
    })
}

#[test]
fn what_real_servers_have_begun_goes_on_after_their_router_was_killed_and_after_an_upgrade() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Cluster { client, real_servers, router: machine, .. } = cluster;
        let (place, outside) = (Place::new(cluster)?, SocketAddrV4::new(CLIENT, 7000));
        let _tcp = Server::tcp_echo(client, outside, "")?;
        let mut config = cluster.config().service(cluster.web());
        config.keep = place.keep();
        let text = format!("{SNAT}{config}");
        let router = Router::start_text(cluster, &text, &config)?;
        machine.sysctl("net/ipv4/ip_forward", 0)?;
        // From ports whose place in a block is the same, so that what begins later would have that of the pool if it was free.
        let connect = |port: u16| -> Result<Vec<TcpStream>> {
            let connect = |(index, server): (usize, &Namespace)| {
                server.enter(|| {
                    let socket = client::bound(cluster.endpoint(index, port))?;
                    socket.connect(&outside.into())?;
                    Ok(socket.into())
                })
            };
            real_servers.iter().enumerate().map(connect).collect()
        };
        let mut streams = connect(40_000)?;
        all_go_on(&mut streams, "before")?;

        router.kill()?;
        let router = Router::start_text(cluster, &text, &config)?;
        all_go_on(&mut streams, "by the second")?;
        streams.extend(connect(40_000 + 512)?);
        all_go_on(&mut streams, "with others")?;
        router.rvs("upgrade").run()?;
        all_go_on(&mut streams, "by the third")?;
        streams.extend(connect(40_000 + 1024)?);
        all_go_on(&mut streams, "all")?;
        let (list, log) = (router.rvs("list --snat").run()?, router.log());
        ensure!(list.contains(": 9 of 65536 mappings"), "{list}");
        ensure!(log.contains("mappings of source NAT that were there before go on"), "{log}");
        router.finish()
    })
}

#[test]
fn what_real_servers_have_begun_goes_on_after_a_reload_with_another_pool_that_has_its_ports() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Cluster { client, real_servers, router: machine, .. } = cluster;
        let outside = SocketAddrV4::new(CLIENT, 7000);
        let _tcp = Server::tcp_echo(client, outside, "")?;
        let config = cluster.config().service(cluster.web());
        let router = Router::start_text(cluster, &format!("{SNAT}{config}"), &config)?;
        machine.sysctl("net/ipv4/ip_forward", 0)?;
        let streams = real_servers.iter().map(|server| client::connect(server, outside));
        let mut streams = streams.collect::<Result<Vec<_>>>()?;
        all_go_on(&mut streams, "before")?;

        let larger = SNAT.replace("\"192.0.2.50\"", "\"192.0.2.49-192.0.2.51\"");
        fs::write(&router.file, format!("{larger}block = 64\n{config}"))?;
        let said = router.rvs("reload --dry-run").run()?;
        ensure!(said.starts_with("~ snat ") && said.contains(" outside, block "), "{said}");
        ensure!(router.rvs("reload").run()?.starts_with(said.lines().next().context("a line")?));
        all_go_on(&mut streams, "after")?;
        let list = router.rvs("list --snat").run()?;
        ensure!(list.contains(": 3 of 65536 mappings"), "{list}");
        router.finish()
    })
}

fn routed(router: &Router) -> Result<u64> {
    Ok(router.counters()?.workers.iter().map(|worker| worker.routed).sum())
}

#[test]
fn what_concerns_no_service_is_routed() -> Result<()> {
    ipv6::with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let far = far(cluster)?;
        let config = ipv6::config(cluster).service(cluster.web());
        let text = format!("[routing]\nforward = true\n{config}");
        let router = Router::start_text(cluster, &text, &config)?;
        routes(cluster)?;
        let Cluster { client, .. } = cluster;
        for address in FAR {
            wait::until("the far machine answers", PATIENCE, || {
                say(client, "ping", &format!("-n -c 1 -W 1 {address}")).map(drop)
            })?;
        }
        // RVS has heard of all routes.
        let before = router.counters()?.fates();
        for (family, address) in FAR.into_iter().enumerate() {
            say(client, "ping", &format!("-n -c 5 -i 0.1 -W 5 {address}"))?;
            hops(client, family)?;
            transfer(client, &far, address)?;
        }
        let report = say(client, "mtr", &format!("-n -r -c 2 -i 0.2 {}", FAR[0]))?;
        ensure!(report.contains("192.0.2.1 ") && report.contains("198.51.100.2 "), "{report}");
        // A real server itself, on the port that its service has: its answers are no replies of the service.
        ensure!(client::get(client, cluster.endpoint(1, 8080), 3)?.total() == 3);
        // And one that begins something from there.
        say(&cluster.real_servers[2], "ping", &format!("-n -c 3 -i 0.1 -W 5 {CLIENT}"))?;

        // 16 MB in packets of 1280 bytes, and what acknowledges them.
        ensure!(routed(&router)? > 13_000, "{}", routed(&router)?);
        let fates = router.counters()?.fates();
        for reason in ["no_service", "icmp", "other_protocol", "fragment", "server_reply"] {
            let reason = format!("punted {reason}");
            ensure!(fates.get(&reason) == before.get(&reason), "{reason}: {before:?} {fates:?}");
        }
        let why = router.rvs("explain --proto udp --src 192.0.2.100:5000 --dst 198.51.100.2:53").run()?;
        ensure!(why.contains("route, out of lan") && why.contains("64 -> 63"), "{why}");

        // Not any more: Linux has it all, and forwards nothing.
        router.apply(&config)?;
        let before = routed(&router)?;
        ensure!(say(client, "ping", &format!("-n -c 1 -W 1 {}", FAR[0])).is_err());
        ensure!(routed(&router)? == before);
        router.finish()
    })
}
