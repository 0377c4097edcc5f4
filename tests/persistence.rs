//! Clients that come back to their servers.

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
};

use anyhow::{Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    config::Config,
    servers::Server,
    shm::Place,
    wait::{self, PATIENCE},
    with_cluster,
};

const PORT: u16 = 7;

/// A neighbour of the client: one of the same sixteen addresses, and one of others.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 101);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 150);

/// A persistent service, whose servers say who they are.
struct Stage<'a> {
    cluster: &'a Cluster,
    config: Config,
    /// For the next client.
    port: u16,
    _echo: Vec<Server>,
}

impl<'a> Stage<'a> {
    fn new(cluster: &'a Cluster, persistence: &str) -> Result<Stage<'a>> {
        for address in [NEIGHBOUR, OTHER] {
            cluster.client.ip(&format!("address add {address}/24 dev eth0"))?;
        }
        let servers = cluster.real_servers.iter().enumerate();
        let echo = servers.map(|(index, server)| {
            Server::tcp_echo(server, cluster.endpoint(index, PORT), &format!("rs{}", index + 1))
        });
        let service = cluster.web_on(PORT, PORT).scheduler("rr").checked().setting(persistence);
        let config = cluster.config().service(service);
        Ok(Stage { cluster, config, port: 40_000, _echo: echo.collect::<Result<_>>()? })
    }

    /// A new connection of a client, and its server.
    fn open(&mut self, from: Ipv4Addr) -> Result<(TcpStream, usize)> {
        self.port += 1;
        let mut stream = self.cluster.client.enter(|| {
            let socket = client::bound(SocketAddrV4::new(from, self.port))?;
            socket.connect(&vip(PORT).into())?;
            Ok(TcpStream::from(socket))
        })?;
        let mut name = [0; 3];
        stream.read_exact(&mut name)?;
        ensure!(name.starts_with(b"rs"), "{name:?}");
        Ok((stream, usize::from(name[2] - b'1')))
    }

    /// Its server.
    fn server(&mut self, from: Ipv4Addr) -> Result<usize> {
        let (stream, server) = self.open(from)?;
        client::close(stream)?;
        Ok(server)
    }
}

#[test]
fn a_client_comes_back_to_its_server_until_that_fails() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut stage = Stage::new(cluster, "persistence = {}")?;
        let router = cluster.start_router(&stage.config)?;
        let (mut held, server) = stage.open(CLIENT)?;
        for _ in 0..20 {
            ensure!(stage.server(CLIENT)? == server);
        }
        let neighbour = stage.server(NEIGHBOUR)?;
        ensure!(neighbour != server, "in turn");

        let list = router.list()?;
        ensure!(list.contains(" rr persistent 300\n"), "{list}");
        let list = router.rvs("list --persistent-conn").run()?;
        let address = cluster.endpoint(server, PORT);
        let is_line =
            |line: &str| line.split_whitespace().eq(["->", &address.to_string(), "1", "1", "1", "20"]);
        ensure!(list.lines().any(is_line), "{list}");
        let connections = router.rvs("list -c").run()?;
        let template = |line: &str| line.contains("TEMPLATE") && line.contains(&format!(" {CLIENT}:0 "));
        ensure!(connections.lines().filter(|line| template(line)).count() == 1, "{connections}");
        let explained = router.rvs(&format!("explain --src {CLIENT}:50000 --dst {}", vip(PORT))).run()?;
        ensure!(explained.contains("persistence: it has the client's last connections"), "{explained}");

        // Weight 0: those who know it come back.
        stage.config.set_weight(server, 0);
        router.apply(&stage.config)?;
        ensure!(stage.server(CLIENT)? == server && stage.server(OTHER)? != server);
        // Unless it is to lose them.
        stage.config.services[0].settings = vec!["persistence = { expire_quiescent = true }".to_owned()];
        router.apply(&stage.config)?;
        let next = stage.server(CLIENT)?;
        ensure!(next != server && stage.server(CLIENT)? == next);
        client::echo(&mut held, b"it keeps what it has")?;

        // One that is dead loses them in any case.
        stage._echo.remove(next);
        router.wait_up(next, false)?;
        let last = stage.server(CLIENT)?;
        ensure!(last != next && last != server, "{last}: neither the dead one nor that of weight 0");
        router.finish()
    })
}

#[test]
fn clients_of_a_network_are_one_and_a_killed_router_is_followed_by_one_that_knows_them() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let place = Place::new(cluster)?;
        let mut stage = Stage::new(cluster, "persistence = { timeout = \"10m\", prefix = 28 }")?;
        stage.config.keep = place.keep();
        let router = cluster.start_router(&stage.config)?;
        let server = stage.server(CLIENT)?;
        ensure!(stage.server(NEIGHBOUR)? == server);
        let other = stage.server(OTHER)?;
        ensure!(other != server);
        let list = router.list()?;
        ensure!(list.contains(" rr persistent 600 mask 255.255.255.240\n"), "{list}");

        router.kill()?;
        let router = cluster.start_router(&stage.config)?;
        // The first has had two turns, and a third server's would be next.
        ensure!(stage.server(NEIGHBOUR)? == server && stage.server(OTHER)? == other);
        ensure!(stage.server(CLIENT)? == server);

        let flushed = router.rvs(&format!("flush --server {}", cluster.endpoint(server, PORT))).run()?;
        wait::until("its templates are gone", PATIENCE, || {
            let connections = router.rvs("list -c").run()?;
            let templates = connections.lines().filter(|line| line.contains("TEMPLATE")).count();
            ensure!(templates == 1, "{flushed}{connections}");
            Ok(())
        })?;
        router.finish()
    })
}
