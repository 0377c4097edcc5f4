//! UDP services: names looked up by dig, and datagrams echoed.

use std::{
    fs::{self, Permissions},
    net::{SocketAddrV4, UdpSocket},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    config::Service,
    servers::Server,
    wait::PATIENCE,
    with_cluster,
};

/// The address on which a real server answers: its own under NAT, the virtual one under direct routing, since a
/// UDP socket on the wildcard address would answer from whatever address the route prefers.
fn answering(cluster: &Cluster, index: usize, port: u16) -> SocketAddrV4 {
    match cluster.layout() {
        Layout::TwoArmed => cluster.endpoint(index, port),
        Layout::OneArmed => SocketAddrV4::new(VIP, port),
    }
}

fn service(cluster: &Cluster, port: u16) -> Service {
    (0..3).fold(Service::udp(cluster.layout().mode(), vip(port)).scheduler("rr"), |service, index| {
        service.server(cluster.endpoint(index, port), 1)
    })
}

fn dig_and_echo(layout: Layout) -> Result<()> {
    with_cluster(layout, |cluster| {
        let mut servers = Vec::new();
        for (index, namespace) in cluster.real_servers.iter().enumerate() {
            servers.push(Server::dns(namespace, answering(cluster, index, 53), &format!("rs{}", index + 1))?);
            servers.push(Server::udp_echo(namespace, answering(cluster, index, 7))?);
        }
        let config = cluster.config().service(service(cluster, 53)).service(service(cluster, 7));
        let router = cluster.start_router(&config)?;

        // Every dig has a port of its own and is a connection of its own.
        let mut counts = [0; 3];
        for port in 6000..6030 {
            let name = client::dig(&cluster.client, port, vip(53))?;
            let index = ["rs1", "rs2", "rs3"].iter().position(|known| *known == name).context(name)?;
            counts[index] += 1;
        }
        ensure!(counts == [10, 10, 10], "{counts:?}");

        // One port is one connection: all its datagrams meet the same server, and all come back.
        let before: Vec<u64> = servers.iter().map(Server::served).collect();
        let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, 5000))?))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(vip(7))?;
        for length in 1..=100 {
            let message = vec![length as u8; length * 14];
            socket.send(&message)?;
            let mut buffer = [0; 2048];
            let received = socket.recv(&mut buffer).with_context(|| format!("no echo of {length}"))?;
            ensure!(buffer[..received] == message);
        }
        let met: Vec<u64> =
            servers.iter().zip(before).map(|(server, before)| server.served() - before).collect();
        ensure!(met.iter().filter(|count| **count == 100).count() == 1, "one server gets all: {met:?}");

        router.quiet()?;
        let services = router.services()?;
        let stats = |port| {
            services.iter().find(|service| service.address == vip(port).into()).map(|found| found.stats)
        };
        let (dns, echo) = (stats(53).context("no dns")?, stats(7).context("no echo")?);
        ensure!((dns.connections, dns.packets_in) == (30, 30), "{dns:?}");
        ensure!((echo.connections, echo.packets_in) == (1, 100), "{echo:?}");
        let bytes: u64 = (1..=100).map(|length| 28 + length * 14).sum();
        ensure!(echo.bytes_in == bytes, "{echo:?}, expected {bytes}");
        let (packets_out, bytes_out) = if layout == Layout::TwoArmed { (100, bytes) } else { (0, 0) };
        ensure!((echo.packets_out, echo.bytes_out) == (packets_out, bytes_out), "{echo:?}");
        let connections = router.rvs("list -c").run()?;
        let udp = connections.lines().filter(|line| line.starts_with("UDP ") && line.contains(" UDP "));
        ensure!(udp.count() == 31, "{connections}");
        router.finish()
    })
}

#[test]
fn udp_by_dig_nat() -> Result<()> {
    dig_and_echo(Layout::TwoArmed)
}

#[test]
fn udp_by_dig_dr() -> Result<()> {
    dig_and_echo(Layout::OneArmed)
}

#[test]
fn udp_connections_expire_after_their_timeout() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers: Vec<_> = (0..3)
            .map(|index| Server::dns(&cluster.real_servers[index], cluster.endpoint(index, 53), "rs"))
            .collect::<Result<_>>()?;
        let config = cluster.config().service(service(cluster, 53).timeout("udp", "2s"));
        let router = cluster.start_router(&config)?;
        client::dig(&cluster.client, 6000, vip(53))?;
        ensure!(router.counters()?.table.connections == 1);
        harness::wait::until("the connection expires", harness::wait::PATIENCE, || {
            let left = router.counters()?.table.connections;
            ensure!(left == 0, "{left} left");
            Ok(())
        })?;
        let services = router.services()?;
        ensure!(
            services[0].servers.iter().all(|server| server.active + server.inactive == 0),
            "{services:?}"
        );
        router.finish()
    })
}

#[test]
fn each_datagram_of_one_client_port_may_go_to_another_server() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers: Vec<Server> = (0..3)
            .map(|index| Server::udp_echo(&cluster.real_servers[index], cluster.endpoint(index, 7)))
            .collect::<Result<_>>()?;
        let service = service(cluster, 7).setting("one_packet = true");
        let router = cluster.start_router(&cluster.config().service(service))?;
        let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, 40_000))?))?;
        socket.connect(vip(7))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        for number in 0..30u8 {
            socket.send(&[number])?;
            let mut answer = [0; 8];
            ensure!(socket.recv(&mut answer)? == 1 && answer[0] == number, "{answer:?}, not {number}");
        }
        let servers = router.service()?.servers;
        ensure!(servers.iter().all(|server| server.stats.connections == 10), "{servers:?}");
        ensure!(router.list()?.contains("rr ops\n"), "{}", router.list()?);
        let connections = router.rvs("list -c").run()?;
        ensure!(connections.lines().count() == 2, "nothing is remembered: {connections}");
        router.finish()
    })
}

/// The draft's own example, with the key that it encrypts its ids by: the id of `ed793a`, as a server has given it out.
const QUIC_KEY: &str = "8f95f09245765f80256934e50c66207f";
const QUIC_ID: [u8; 8] = [0x07, 0x20, 0xB1, 0xD0, 0x7B, 0x35, 0x9D, 0x3C];

#[test]
fn a_quic_client_that_changes_its_address_stays_with_its_server() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let servers: Vec<Server> = (0..3)
            .map(|index| Server::udp_echo(&cluster.real_servers[index], cluster.endpoint(index, 443)))
            .collect::<Result<_>>()?;
        let key = cluster.state().file("quic.key");
        fs::write(&key, QUIC_KEY)?;
        fs::set_permissions(&key, Permissions::from_mode(0o600))?;
        let ids = (0..3).zip(["000001", "ed793a", "000003"]).map(|(index, id)| {
            format!("{{ address = \"{}\", quic_id = {id:?} }}", cluster.endpoint(index, 443))
        });
        let service = Service::udp(cluster.layout().mode(), vip(443))
            .scheduler("rr")
            .setting(&format!("quic_lb = [{{ nonce_length = 4, key_file = {key:?} }}]"))
            .setting(&format!("server = [{}]", ids.collect::<Vec<_>>().join(", ")));
        let router = cluster.start_router(&cluster.config().service(service))?;
        let datagram = [&[0x40], &QUIC_ID[..], b"1-RTT"].concat();
        for port in 40_000..40_030 {
            let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, port))?))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(vip(443))?;
            socket.send(&datagram)?;
            let mut answer = [0; 64];
            ensure!(socket.recv(&mut answer)? == datagram.len(), "an answer of another length");
        }
        let met: Vec<u64> = servers.iter().map(Server::served).collect();
        ensure!(met == [0, 30, 0], "{met:?}");
        router.finish()
    })
}
