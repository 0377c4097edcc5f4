//! Services of all ports of their address.

use std::{
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Layout, VIP, vip},
    config::Service,
    ipv6,
    servers::Server,
};

const NAMES: [&str; 3] = ["rs1", "rs2", "rs3"];

/// A service of all ports, of these servers.
fn service(service: Service, servers: impl IntoIterator<Item = SocketAddr>) -> Service {
    servers.into_iter().fold(service.scheduler("rr"), |service, server| service.server(server, 1))
}

#[test]
fn every_port_that_no_other_service_has_leads_to_the_same_port_of_a_server_by_nat() -> Result<()> {
    ipv6::with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let mut servers = Vec::new();
        for (index, (machine, name)) in cluster.real_servers.iter().zip(NAMES).enumerate() {
            for port in [7, 4443] {
                servers.push(Server::tcp_echo(machine, cluster.endpoint(index, port), name)?);
                servers.push(Server::tcp_echo(machine, ipv6::endpoint(cluster, index, port), name)?);
            }
            servers.push(Server::udp_name(machine, cluster.endpoint(index, 5353), name)?);
        }
        let four = |index| SocketAddr::from(cluster.endpoint(index, 0));
        let six = |index| ipv6::endpoint(cluster, index, 0);
        let config = ipv6::config(cluster)
            .service(cluster.web().scheduler("rr"))
            .service(service(Service::tcp("nat", vip(0)), (0..3).map(four)))
            .service(service(Service::udp("nat", vip(0)), (0..3).map(four)))
            .service(service(Service::tcp("nat", ipv6::vip(0)), (0..3).map(six)));
        let router = cluster.start_router(&config)?;
        router.wait_for_macs(ipv6::CLIENT.into(), ipv6::vip(7), "tcp")?;

        // One port of the client, two virtual ones: two connections, to servers in turn, in both families.
        let (client4, client6) = ((CLIENT, 40_000).into(), (ipv6::CLIENT, 40_000).into());
        let of_four = (client4, [vip(7), vip(4443)].map(SocketAddr::from));
        for (client, ends) in [of_four, (client6, [ipv6::vip(7), ipv6::vip(4443)])] {
            let [(_first, one), (_second, other)] = [
                client::named(&cluster.client, client, ends[0])?,
                client::named(&cluster.client, client, ends[1])?,
            ];
            ensure!(one != other, "{one} twice");
            let list = router.rvs("list -c").run()?;
            for virtual_ in ends {
                let shows = format!("{client} {virtual_} ");
                let lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
                ensure!(lines.filter(|line| line.contains(&shows)).count() == 1, "{shows}: {list}");
            }
        }

        // The very port goes first.
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, 5000))?))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(vip(5353))?;
        socket.send(b"who?")?;
        let mut buffer = [0; 16];
        let length = socket.recv(&mut buffer)?;
        ensure!(buffer[..length].starts_with(b"rs"), "{buffer:?}");

        // Nobody listens there: the server says so, and its refusal comes back.
        let refused = cluster.client.enter(|| {
            let socket = client::bound((CLIENT, 40_001))?;
            Ok(socket.connect(&SocketAddr::from(vip(9)).into()))
        })?;
        ensure!(refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused));

        let list = router.list()?;
        ensure!(list.contains(&format!("TCP  {VIP}:0 rr\n")), "{list}");
        let explained = router.rvs(&format!("explain --src {CLIENT}:50000 --dst {}", vip(4443))).run()?;
        ensure!(explained.contains(&format!("tcp {VIP}:0")), "{explained}");
        router.finish()
    })
}

#[test]
fn a_client_of_a_service_of_some_ports_has_one_server_for_them_and_linux_for_the_others() -> Result<()> {
    harness::with_cluster(Layout::TwoArmed, |cluster| {
        let mut servers = Vec::new();
        for (index, (machine, name)) in cluster.real_servers.iter().zip(NAMES).enumerate() {
            for port in [21, 10_007, 9] {
                servers.push(Server::tcp_echo(machine, cluster.endpoint(index, port), name)?);
            }
        }
        let all = (0..3).map(|index| SocketAddr::from(cluster.endpoint(index, 0)));
        let service = service(Service::tcp("nat", vip(0)), all);
        let service = service.setting("ports = [21, \"10000-20000\"]").setting("persistence = {}");
        let router = cluster.start_router(&cluster.config().service(service))?;
        let mut names = Vec::new();
        for (port, from) in [21, 10_007, 21].into_iter().zip(40_000..) {
            let (stream, name) = client::named(&cluster.client, (CLIENT, from).into(), vip(port).into())?;
            client::close(stream)?;
            names.push(name);
        }
        ensure!(names.iter().all(|name| *name == names[0]), "{names:?}");

        // The servers listen there, the router does not.
        let refused = cluster.client.enter(|| {
            let socket = client::bound((CLIENT, 40_100))?;
            Ok(socket.connect(&SocketAddr::from(vip(9)).into()))
        })?;
        ensure!(refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused));

        let list = router.list()?;
        ensure!(list.contains(&format!("TCP  {VIP}:0 rr persistent 300 ports 21,10000-20000\n")), "{list}");
        router.finish()
    })
}

#[test]
fn a_client_of_a_persistent_service_of_all_ports_has_one_server_by_direct_routing() -> Result<()> {
    harness::with_cluster(Layout::OneArmed, |cluster| {
        let mut servers = Vec::new();
        for (machine, name) in cluster.real_servers.iter().zip(NAMES) {
            for port in [7, 4443, 8080] {
                servers.push(Server::tcp_echo(machine, SocketAddrV4::new(VIP, port), name)?);
            }
        }
        let service = service(
            Service::tcp("dr", vip(0)),
            (0..3).map(|index| SocketAddr::from((cluster.layout().real_server(index), 0))),
        );
        let config = cluster.config().service(service.setting("persistence = {}"));
        let router = cluster.start_router(&config)?;
        let mut names = Vec::new();
        for (port, from) in [7, 4443, 8080, 7].into_iter().zip(40_000..) {
            let (stream, name) = client::named(&cluster.client, (CLIENT, from).into(), vip(port).into())?;
            client::close(stream)?;
            names.push(name);
        }
        ensure!(names.iter().all(|name| *name == names[0]), "{names:?}");
        let other = Layout::OneArmed.real_server(9);
        cluster.client.ip(&format!("address add {other}/24 dev eth0"))?;
        let (_stream, name) = client::named(&cluster.client, (other, 40_000).into(), vip(7).into())?;
        ensure!(name != names[0], "{name} for another client, too");
        router.finish()
    })
}
