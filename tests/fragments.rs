//! Datagrams in fragments, through the built program: whatever their order, all of them arrive.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    config::Service,
    listing::Counters,
    netns::Namespace,
    packet::{Craft, fragments, mac_of},
    pieces::{LARGE, data, shuffled},
    raw::RawSender,
    router::Router,
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};

const ECHO: u16 = 7;
/// What a packet of 1500 bytes holds.
const IN_A_PACKET: usize = 1480;

fn me() -> SocketAddrV4 {
    SocketAddrV4::new(CLIENT, 5000)
}

/// Where a real server's echo answers: under direct routing it has the virtual address itself.
fn echoes(cluster: &Cluster) -> Result<Vec<Server>> {
    let address = |index| match cluster.layout() {
        Layout::TwoArmed => cluster.endpoint(index, ECHO),
        Layout::OneArmed => vip(ECHO),
    };
    cluster
        .real_servers
        .iter()
        .enumerate()
        .map(|(index, server)| Server::udp_echo(server, address(index)))
        .collect()
}

fn echo_service(cluster: &Cluster, servers: usize) -> Service {
    (0..servers).fold(Service::udp(cluster.layout().mode(), vip(ECHO)).scheduler("rr"), |service, index| {
        service.server(cluster.endpoint(index, ECHO), 1)
    })
}

/// The fragments of a large datagram to the echo service, in an order that the seed decides.
fn request(cluster: &Cluster, seed: usize) -> Vec<Vec<u8>> {
    let craft = Craft::udp(me(), vip(ECHO), &data(LARGE, seed)).between(mac_of(CLIENT), cluster.router_mac());
    shuffled(fragments(&craft.build(), IN_A_PACKET, 1000 + seed as u16), seed)
}

fn receive(socket: &UdpSocket, expected: &[u8], what: &str) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).with_context(|| format!("{what} did not come"))?;
    ensure!(buffer[..length] == *expected, "{what} is another one");
    Ok(())
}

fn shuffled_datagrams(layout: Layout) -> Result<()> {
    with_cluster(layout, |cluster| {
        const DATAGRAMS: usize = 100;
        let servers = echoes(cluster)?;
        let config = cluster.config().with_fragments().service(echo_service(cluster, 3));
        let router = cluster.start_router(&config)?;
        let socket = client::heard(&cluster.client, me(), vip(ECHO))?;
        let before = router.quiet()?;
        let served = servers.iter().map(Server::served).collect::<Vec<_>>();
        let sender = RawSender::open(&cluster.client, "eth0")?;
        for seed in 0..DATAGRAMS {
            let request = request(cluster, seed);
            ensure!(request.len() == 6);
            request.iter().try_for_each(|fragment| sender.send(fragment))?;
            receive(&socket, &data(LARGE, seed), &format!("the echo of datagram {seed}"))?;
        }
        // And as Linux makes fragments of what a program sends.
        for seed in 0..DATAGRAMS {
            socket.send(&data(LARGE, seed))?;
            receive(&socket, &data(LARGE, seed), &format!("the echo of Linux' datagram {seed}"))?;
        }
        let met: Vec<u64> =
            servers.iter().zip(served).map(|(server, before)| server.served() - before).collect();
        ensure!(
            met.iter().filter(|count| **count == 2 * DATAGRAMS as u64).count() == 1,
            "one gets all: {met:?}"
        );

        let after = router.quiet()?;
        // The echo comes back in six fragments, too, in the order of its making.
        let each_way = if layout == Layout::TwoArmed { 2 } else { 1 };
        let forwarded = after.fates()["forwarded"] - before.fates()["forwarded"];
        ensure!(forwarded == 2 * 6 * DATAGRAMS as u64 * each_way, "{forwarded} forwarded");
        let held = held(&after) - held(&before);
        ensure!(held > DATAGRAMS as u64, "only {held} had to wait: they came in order");
        ensure!(waiting(&after) == 0 && fragments_dropped(&after) == 0, "{after:?}");
        router.finish()
    })
}

fn held(counters: &Counters) -> u64 {
    counters.workers.iter().map(|worker| worker.held).sum()
}

fn waiting(counters: &Counters) -> u64 {
    counters.workers.iter().map(|worker| worker.waiting).sum()
}

fn fragments_dropped(counters: &Counters) -> u64 {
    let fates = counters.fates();
    fates
        .iter()
        .filter(|(name, _)| name.contains("fragment") && name.starts_with("dropped"))
        .map(|(_, n)| n)
        .sum()
}

#[test]
fn eight_kilobytes_in_six_fragments_shuffled_nat() -> Result<()> {
    shuffled_datagrams(Layout::TwoArmed)
}

#[test]
fn eight_kilobytes_in_six_fragments_shuffled_dr() -> Result<()> {
    shuffled_datagrams(Layout::OneArmed)
}

#[test]
fn a_servers_answers_in_shuffled_fragments() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers = echoes(cluster)?;
        let config = cluster.config().with_fragments().service(echo_service(cluster, 1));
        let router = cluster.start_router(&config)?;
        let socket = client::heard(&cluster.client, me(), vip(ECHO))?;
        let sender = RawSender::open(&cluster.real_servers[0], "eth0")?;
        let (server, gateway) = (cluster.endpoint(0, ECHO), cluster.layout().gateway());
        for seed in 0..100 {
            let craft =
                Craft::udp(server, me(), &data(LARGE, seed)).between(mac_of(*server.ip()), mac_of(gateway));
            let answer = shuffled(fragments(&craft.build(), IN_A_PACKET, seed as u16), seed);
            answer.iter().try_for_each(|fragment| sender.send(fragment))?;
            receive(&socket, &data(LARGE, seed), &format!("answer {seed}"))?;
        }
        router.finish()
    })
}

/// What a real server begins: the client has no way to its network, and knows an address of the pool.
#[test]
fn real_servers_large_datagrams_and_pings_by_source_nat() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        const DATAGRAMS: usize = 100;
        let Cluster { client, real_servers, .. } = cluster;
        let config = cluster.config().with_fragments().service(echo_service(cluster, 1));
        let snat = "[[snat]]\ninside = [\"10.0.0.0/24\"]\noutside = [\"192.0.2.50\"]\n";
        let router = Router::start_text(cluster, &format!("{snat}{config}"), &config)?;
        // On the service's port, and on another one.
        for port in [ECHO, 6000] {
            let inside = cluster.endpoint(0, port);
            let open = |machine: &Namespace, address: SocketAddrV4| {
                let socket = machine.enter(|| Ok(UdpSocket::bind(address)?))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                anyhow::Ok(socket)
            };
            let (near, far) = (open(&real_servers[0], inside)?, open(client, me())?);
            near.send_to(b"first", me())?;
            let (_, outside) = far.recv_from(&mut [0; 16])?;
            let SocketAddr::V4(outside) = outside else { anyhow::bail!("{outside}") };
            ensure!(*outside.ip() == Ipv4Addr::new(192, 0, 2, 50), "{outside}");
            near.connect(me())?;
            far.connect(outside)?;

            let (there, back) =
                (RawSender::open(&real_servers[0], "eth0")?, RawSender::open(client, "eth0")?);
            let lan = (mac_of(*inside.ip()), mac_of(cluster.layout().gateway()));
            let wan = (mac_of(CLIENT), cluster.router_mac());
            let before = router.quiet()?;
            for seed in 0..DATAGRAMS {
                for (sender, from, to, macs, receiver) in
                    [(&there, inside, me(), lan, &far), (&back, me(), outside, wan, &near)]
                {
                    let whole = Craft::udp(from, to, &data(LARGE, seed)).between(macs.0, macs.1).build();
                    // No number twice within the time that a note lasts.
                    let parts = shuffled(fragments(&whole, IN_A_PACKET, 10 * port + seed as u16), seed);
                    parts.iter().try_for_each(|fragment| sender.send(fragment))?;
                    receive(receiver, &data(LARGE, seed), &format!("datagram {seed} from {from}"))?;
                }
                // And as Linux makes fragments.
                near.send(&data(LARGE, seed))?;
                receive(&far, &data(LARGE, seed), &format!("Linux' datagram {seed}"))?;
                far.send(&data(LARGE, seed))?;
                receive(&near, &data(LARGE, seed), &format!("Linux' answer {seed}"))?;
            }
            let after = router.quiet()?;
            let held = held(&after) - held(&before);
            ensure!(held > 2 * DATAGRAMS as u64, "only {held} had to wait: they came in order");
            ensure!(waiting(&after) == 0 && fragments_dropped(&after) == 0, "{after:?}");
        }
        let said = real_servers[0]
            .command("ping")
            .words("-n -c 5 -i 0.1 -W 5 -s 4000")
            .arg(CLIENT.to_string())
            .run()?;
        ensure!(said.contains("5 received"), "{said}");
        router.finish()
    })
}

/// A machine behind the client, which sends packets of 1500 bytes and lets them be fragmented; from the client on there is room
/// for 1000 only.
fn behind_a_narrow_way(cluster: &Cluster) -> Result<Namespace> {
    let Cluster { client, router, .. } = cluster;
    let far = Namespace::create(cluster.state(), "far")?;
    client.ip(&format!("link add far0 type veth peer name eth0 netns {}", far.name()))?;
    client.ip("link set far0 up\naddress add 198.51.100.1/24 dev far0")?;
    client.ip(&format!("route add {VIP} dev eth0 mtu 1000"))?;
    far.ip("link set eth0 up\naddress add 198.51.100.2/24 dev eth0\nroute add default via 198.51.100.1")?;
    client.plain_wire("far0")?;
    far.plain_wire("eth0")?;
    far.sysctl("net/ipv4/ip_no_pmtu_disc", 1)?;
    client.sysctl("net/ipv4/ip_forward", 1)?;
    router.ip(&format!("route add 198.51.100.0/24 via {CLIENT}"))?;
    Ok(far)
}

#[test]
fn tcp_of_a_client_that_lets_its_packets_be_fragmented() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers: Vec<_> = (0..3)
            .map(|index| Server::tcp_echo(&cluster.real_servers[index], cluster.endpoint(index, 7777), ""))
            .collect::<Result<_>>()?;
        let config = cluster.config().with_fragments().service(cluster.web_on(7777, 7777));
        let router = cluster.start_router(&config)?;
        let far = behind_a_narrow_way(cluster)?;
        let before = router.quiet()?;
        let mut stream = client::connect(&far, vip(7777))?;
        for seed in 0..10 {
            client::echo(&mut stream, &data(30_000, seed))?;
        }
        client::close(stream)?;
        let after = router.quiet()?;
        let packets = after.workers.iter().map(|worker| worker.stats.packets_in).sum::<u64>();
        // 300 kB in segments of 1448 bytes, each in two fragments.
        ensure!(packets > 400, "{packets} packets are no fragments");
        ensure!(fragments_dropped(&after) == fragments_dropped(&before), "{after:?}");
        router.finish()
    })
}

#[test]
fn the_router_answers_fragmented_pings() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let config = cluster.config().with_fragments().service(echo_service(cluster, 1));
        let router = cluster.start_router(&config)?;
        wait::until("an answer to a long ping", PATIENCE, || {
            cluster.client.command("ping").words("-c 1 -W 1 -s 4000").arg(VIP.to_string()).run().map(drop)
        })?;
        router.finish()
    })
}

/// Later fragments of datagrams that nobody has begun, each from another address (RFC 2544).
fn orphans(cluster: &Cluster, count: u32, round: u32) -> impl Iterator<Item = Vec<u8>> {
    let between = (mac_of(CLIENT), cluster.router_mac());
    (0..count).map(move |number| {
        let host = Ipv4Addr::from(0xC612_0000 + round * count + number);
        let source = SocketAddrV4::new(host, 4000);
        Craft { fragment: 0x2010, ..Craft::udp(source, vip(ECHO), &[5; 64]) }
            .between(between.0, between.1)
            .build()
    })
}

/// Waits until the router has received so many packets in all.
fn wait_received(router: &Router, received: u64) -> Result<()> {
    wait::until("the flood is received", PATIENCE, || {
        let counters = router.counters()?;
        ensure!(counters.received() >= received, "{} of {received}", counters.received());
        Ok(())
    })
}

#[test]
fn a_flood_of_fragments_harms_nobody() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        const IN_A_ROUND: u32 = 250;
        const ROUNDS: u32 = 40;
        let _nginx = cluster.start_web()?;
        let _servers = echoes(cluster)?;
        let config =
            cluster.config().with_fragments().service(cluster.web()).service(echo_service(cluster, 3));
        let router = cluster.start_router(&config)?;
        let socket = client::heard(&cluster.client, me(), vip(ECHO))?;
        let sender = RawSender::open(&cluster.client, "eth0")?;
        for round in 0..ROUNDS {
            // Never more than the driver's ring has room for.
            let before = router.counters()?.received();
            orphans(cluster, IN_A_ROUND, round).try_for_each(|frame| sender.send(&frame))?;
            wait_received(&router, before + u64::from(IN_A_ROUND))?;
            let seed = round as usize;
            request(cluster, seed).iter().try_for_each(|fragment| sender.send(fragment))?;
            receive(&socket, &data(LARGE, seed), &format!("the echo of datagram {seed}"))?;
            if round % 8 == 0 {
                ensure!(client::get(&cluster.client, vip(80), 6)?.counts()?.iter().sum::<u64>() == 6);
            }
        }
        let after = wait::until("nothing waits any more", PATIENCE, || {
            let counters = router.counters()?;
            ensure!(waiting(&counters) == 0, "{counters:?}");
            Ok(counters)
        })?;
        let fates = after.fates();
        let (expired, pushed) = (fates["dropped fragment_expired"], fates["dropped fragment_no_room"]);
        ensure!(expired + pushed == u64::from(IN_A_ROUND * ROUNDS), "{expired} + {pushed}: {after:?}");
        let listing = router.rvs("list --counters").run()?;
        ensure!(
            listing.contains("    fragment_expired") && listing.contains("fragments that had to wait"),
            "{listing}"
        );
        router.finish()
    })
}
