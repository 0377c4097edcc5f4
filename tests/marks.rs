//! Services of firewall marks: several addresses, ports and protocols are one service.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, VIP},
    config::Service,
    ipv6,
    servers::Server,
    shm::Place,
    tunnel::{End, Kind, through},
};

const NAMES: [&str; 3] = ["rs1", "rs2", "rs3"];
/// Another virtual address beside the layouts'.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x20);

/// The service of mark 10 in turn with the three real servers, whose clients come back to them.
fn service(cluster: &Cluster) -> Service {
    let servers = (0..3).map(|index| SocketAddr::from(cluster.endpoint(index, 0)));
    let service = Service::marked(cluster.layout().mode(), 10).scheduler("rr").setting("persistence = {}");
    servers.fold(service, |service, server| service.server(server, 1))
}

/// Clients at so many addresses beside the usual one.
fn neighbours(cluster: &Cluster, count: u8) -> Result<Vec<Ipv4Addr>> {
    let all: Vec<Ipv4Addr> = (101..101 + count).map(|host| Ipv4Addr::new(192, 0, 2, host)).collect();
    for address in &all {
        cluster.client.ip(&format!("address add {address}/24 dev eth0"))?;
    }
    Ok(all)
}

/// The name that the server of a connection from a client to a virtual address and port says.
fn ask(cluster: &Cluster, client: impl Into<IpAddr>, to: impl Into<SocketAddr>) -> Result<String> {
    let (stream, name) = client::named(&cluster.client, SocketAddr::new(client.into(), 0), to.into())?;
    client::close(stream)?;
    Ok(name)
}

fn ask_by_udp(cluster: &Cluster, client: Ipv4Addr, to: (Ipv4Addr, u16)) -> Result<String> {
    let socket = cluster.client.enter(|| Ok(UdpSocket::bind((client, 0))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(to)?;
    socket.send(b"who?")?;
    let mut buffer = [0; 16];
    let length = socket.recv(&mut buffer).with_context(|| format!("from {to:?}"))?;
    Ok(String::from_utf8_lossy(&buffer[..length.min(3)]).into_owned())
}

fn all_same(names: &[String]) -> Result<()> {
    ensure!(names.iter().all(|name| *name == names[0]), "{names:?}");
    Ok(())
}

/// Three clients, one after the other, have a server each, and it for all that each of them asks.
fn a_server_each(cluster: &Cluster, mut ask: impl FnMut(Ipv4Addr) -> Result<Vec<String>>) -> Result<()> {
    let mut servers = Vec::new();
    for client in neighbours(cluster, 3)? {
        let names = ask(client)?;
        all_same(&names)?;
        servers.extend(names.into_iter().next());
    }
    servers.sort();
    ensure!(servers == NAMES, "{servers:?}");
    Ok(())
}

#[test]
fn a_client_has_one_server_over_two_addresses_several_ports_and_both_protocols() -> Result<()> {
    harness::with_cluster(Layout::TwoArmed, |cluster| {
        // It listens on 80 and 8080.
        let _nginx = cluster.start_web()?;
        let mut servers = Vec::new();
        for (index, (machine, name)) in cluster.real_servers.iter().zip(NAMES).enumerate() {
            servers.push(Server::tcp_echo(machine, cluster.endpoint(index, 8090), name)?);
            servers.push(Server::udp_name(machine, cluster.endpoint(index, 5353), name)?);
            // In no rule.
            servers.push(Server::tcp_echo(machine, cluster.endpoint(index, 8091), name)?);
        }
        let config = cluster
            .config()
            .mark(&format!("mark = 10\nprotocol = \"tcp\"\naddress = [\"{VIP}\", \"{OTHER}\"]\nports = [80, \"8080-8090\"]"))
            .mark(&format!("mark = 10\nprotocol = \"udp\"\naddress = \"{OTHER}\"\nports = [5353]"))
            .service(service(cluster));
        let router = cluster.start_router(&config)?;
        router.wait_for_macs(CLIENT.into(), (VIP, 8080).into(), "tcp")?;

        let mut answers = Vec::new();
        for to in [(VIP, 80), (OTHER, 8080), (OTHER, 80), (VIP, 8080)] {
            let counts = client::get(&cluster.client, to, 3)?.counts()?;
            let server = counts.iter().position(|&count| count == 3);
            answers.push(NAMES[server.with_context(|| format!("{to:?}: {counts:?}"))?].to_owned());
        }
        answers.push(ask(cluster, CLIENT, (VIP, 8090))?);
        answers.push(ask_by_udp(cluster, CLIENT, (OTHER, 5353))?);
        all_same(&answers)?;

        // Other clients are others' by the same turn, wherever they begin.
        let mut begins = [OTHER, VIP, OTHER].into_iter().cycle();
        a_server_each(cluster, |client| {
            let begin = begins.next().context("it goes round")?;
            Ok(vec![
                ask(cluster, client, (begin, 8090))?,
                ask(cluster, client, (VIP, 8090))?,
                ask_by_udp(cluster, client, (OTHER, 5353))?,
            ])
        })?;

        let refused = cluster.client.enter(|| {
            let socket = client::bound((CLIENT, 0))?;
            Ok(socket.connect(&SocketAddr::from((VIP, 8091)).into()))
        })?;
        ensure!(refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused));

        let list = router.list()?;
        ensure!(list.contains("\nFWM  10 rr persistent 300\n"), "{list}");
        ensure!(list.matches("  -> ").count() == 4, "each server once: {list}");
        let explained = router.rvs(&format!("explain --src {CLIENT}:50000 --dst {OTHER}:8085")).run()?;
        let rule = explained.lines().find(|line| line.starts_with("service")).context("a service")?;
        let words = ["mark 10 by the [[mark]] in line ", ", nat, rr"];
        ensure!(words.iter().all(|words| rule.contains(words)), "{explained}");

        // An order to a server is one for all of it.
        let server = &answers[0];
        let index = NAMES.iter().position(|name| name == server).context("one of them")?;
        router.rvs(&format!("weight mark/10 {} 0", cluster.endpoint(index, 0))).run()?;
        router.rvs("flush --service mark/10").run()?;
        let moved = ask(cluster, CLIENT, (OTHER, 8090))?;
        ensure!(moved != *server, "{moved} has the weight 0");
        all_same(&[moved, ask(cluster, CLIENT, (VIP, 8090))?])?;
        router.finish()
    })
}

#[test]
fn clients_of_two_ports_of_the_router_have_two_services_of_one_address() -> Result<()> {
    harness::with_cluster(Layout::TwoArmed, |cluster| {
        let mut servers = Vec::new();
        for (index, (machine, name)) in cluster.real_servers.iter().zip(NAMES).enumerate() {
            servers.push(Server::tcp_echo(machine, cluster.endpoint(index, 7), name)?);
        }
        let service = |mode, mark, index| {
            Service::marked(mode, mark).server(SocketAddr::from(cluster.endpoint(index, 0)), 1)
        };
        // Who asks from inside is the servers' neighbour, to whom they would reply past a NAT.
        let inside = service("fullnat", 20, 2).setting("fullnat = { local = [\"10.0.0.100\"] }");
        let rule = |mark, port| {
            format!("mark = {mark}\nprotocol = \"tcp\"\naddress = \"{VIP}\"\nports = [7]\nin = \"{port}\"")
        };
        let config = cluster.config().mark(&rule(10, "wan")).mark(&rule(20, "lan"));
        let router = cluster.start_router(&config.service(service("nat", 10, 1)).service(inside))?;
        router.wait_for_macs(CLIENT.into(), (VIP, 7).into(), "tcp")?;

        ensure!(ask(cluster, CLIENT, (VIP, 7))? == NAMES[1]);
        let asker = &cluster.real_servers[0];
        let from = SocketAddr::from(cluster.endpoint(0, 0));
        let (stream, name) = client::named(asker, from, (VIP, 7).into())?;
        ensure!(name == NAMES[2], "{name}");
        client::close(stream)?;

        let list = router.rvs("list --json").run()?;
        ensure!(list.split_whitespace().collect::<String>().contains("\"in\":[\"lan\"]"), "{list}");
        for (port, mark) in [("wan", 10), ("lan", 20)] {
            let question = format!("explain --src {CLIENT}:50000 --dst {VIP}:7 --port {port}");
            let explained = router.rvs(&question).run()?;
            ensure!(explained.contains(&format!("mark {mark} by the [[mark]] in line ")), "{explained}");
        }
        router.finish()
    })
}

#[test]
fn a_reload_of_rules_keeps_the_connections_of_what_stays() -> Result<()> {
    harness::with_cluster(Layout::TwoArmed, |cluster| {
        let mut servers = Vec::new();
        for (index, (machine, name)) in cluster.real_servers.iter().zip(NAMES).enumerate() {
            servers.push(Server::tcp_echo(machine, cluster.endpoint(index, 7), name)?);
        }
        let rule = |address: Ipv4Addr| {
            format!("mark = 10\nprotocol = \"tcp\"\naddress = \"{address}\"\nports = [7]")
        };
        let config = cluster.config().service(service(cluster));
        let router = cluster.start_router(&config.clone().mark(&rule(VIP)).mark(&rule(OTHER)))?;
        router.wait_for_macs(CLIENT.into(), (VIP, 7).into(), "tcp")?;
        let mut stream = client::connect(&cluster.client, (VIP, 7))?;
        let mut name = [0; 3];
        stream.read_exact(&mut name)?;
        let server = ask(cluster, CLIENT, (OTHER, 7))?;

        router.apply(&config.clone().mark(&rule(VIP)))?;
        client::echo(&mut stream, b"as before")?;
        let gone = cluster.client.enter(|| {
            let socket = client::bound((CLIENT, 0))?;
            Ok(socket.connect_timeout(&SocketAddr::from((OTHER, 7)).into(), Duration::from_secs(1)))
        })?;
        ensure!(gone.is_err(), "{OTHER} is no virtual address any more");

        router.apply(&config.mark(&rule(OTHER)).mark(&rule(VIP)))?;
        client::echo(&mut stream, b"as before")?;
        ensure!(ask(cluster, CLIENT, (OTHER, 7))? == server, "the client's template is the mark's");
        router.finish()
    })
}

#[test]
fn connections_and_who_comes_back_where_outlive_a_router_that_is_killed_and_its_upgrade() -> Result<()> {
    harness::with_cluster(Layout::TwoArmed, |cluster| {
        let place = Place::new(cluster)?;
        let mut servers = Vec::new();
        for (index, (machine, name)) in cluster.real_servers.iter().zip(NAMES).enumerate() {
            servers.push(Server::tcp_echo(machine, cluster.endpoint(index, 7), name)?);
        }
        let mut config = cluster
            .config()
            .mark(&format!("mark = 10\naddress = [\"{VIP}\", \"{OTHER}\"]\nports = [7]\nin = \"wan\""))
            .service(service(cluster));
        config.keep = place.keep();
        let router = cluster.start_router(&config)?;
        router.wait_for_macs(CLIENT.into(), (VIP, 7).into(), "tcp")?;
        let clients = neighbours(cluster, 3)?;
        let firsts =
            clients.iter().map(|&client| ask(cluster, client, (VIP, 7))).collect::<Result<Vec<_>>>()?;
        let mut stream = client::connect(&cluster.client, (OTHER, 7))?;
        stream.read_exact(&mut [0; 3])?;

        router.kill()?;
        let router = cluster.start_router(&config)?;
        router.wait_for_macs(CLIENT.into(), (VIP, 7).into(), "tcp")?;
        let all_is_as_before = |stream: &mut TcpStream| {
            client::echo(stream, b"as before")?;
            // Backwards, so that the turn alone would not do it.
            let mut known = clients.iter().zip(&firsts).rev();
            known.try_for_each(|(&client, first)| {
                all_same(&[first.clone(), ask(cluster, client, (OTHER, 7))?])
            })
        };
        all_is_as_before(&mut stream)?;
        router.rvs("upgrade").run()?;
        all_is_as_before(&mut stream)?;
        router.finish()
    })
}

/// Three clients in turn have a server each, and it over both addresses.
fn clients_have_their_servers(cluster: &Cluster, service: Service) -> Result<()> {
    let rule = format!("mark = 10\naddress = [\"{VIP}\", \"{OTHER}\"]\nports = [\"7-9\"]");
    let router = cluster.start_router(&cluster.config().mark(&rule).service(service))?;
    router.wait_for_macs(CLIENT.into(), (VIP, 7).into(), "tcp")?;
    a_server_each(cluster, |client| {
        [(VIP, 7), (OTHER, 7), (OTHER, 8)].into_iter().map(|to| ask(cluster, client, to)).collect()
    })?;
    router.finish()
}

#[test]
fn a_mark_by_full_nat() -> Result<()> {
    harness::with_cluster(Layout::TwoArmed, |cluster| {
        let mut servers = Vec::new();
        for (index, (machine, name)) in cluster.real_servers.iter().zip(NAMES).enumerate() {
            for port in [7, 8] {
                servers.push(Server::tcp_echo(machine, cluster.endpoint(index, port), name)?);
            }
        }
        let service = Service { mode: "fullnat", ..service(cluster) };
        clients_have_their_servers(cluster, service.setting("fullnat = { local = [\"10.0.0.100\"] }"))
    })
}

#[test]
fn a_mark_by_tunnels() -> Result<()> {
    harness::with_cluster(Layout::OneArmed, |cluster| {
        let mut ends = End::of_all(cluster, Kind::Ipip)?;
        let mut servers = Vec::new();
        for (machine, name) in cluster.real_servers.iter().zip(NAMES) {
            machine.ip(&format!("address add {OTHER}/32 dev lo"))?;
            for (address, port) in [(VIP, 7), (OTHER, 7), (OTHER, 8)] {
                servers.push(Server::tcp_echo(machine, SocketAddr::from((address, port)), name)?);
            }
        }
        clients_have_their_servers(cluster, through(service(cluster), Kind::Ipip))?;
        ends.iter_mut().try_for_each(End::check)
    })
}

#[test]
fn one_server_over_two_addresses_of_ipv6() -> Result<()> {
    ipv6::with_cluster(Layout::TwoArmed, |cluster| {
        let mut servers = Vec::new();
        for (index, (machine, name)) in cluster.real_servers.iter().zip(NAMES).enumerate() {
            for port in [80, 8085] {
                servers.push(Server::tcp_echo(machine, ipv6::endpoint(cluster, index, port), name)?);
            }
        }
        let all = (0..3).map(|index| ipv6::endpoint(cluster, index, 0));
        let service = Service::marked("nat", 10).scheduler("rr").setting("persistence = {}");
        let service = all.fold(service, |service, server| service.server(server, 1));
        let rule =
            format!("mark = 10\naddress = [\"{}\", \"{OTHER6}\"]\nports = [80, \"8080-8090\"]", ipv6::VIP);
        let router = cluster.start_router(&ipv6::config(cluster).mark(&rule).service(service))?;
        router.wait_for_macs(ipv6::CLIENT.into(), (ipv6::VIP, 80).into(), "tcp")?;
        let mut names = Vec::new();
        for to in [(ipv6::VIP, 80), (OTHER6, 8085), (OTHER6, 80), (ipv6::VIP, 8085)] {
            names.push(ask(cluster, ipv6::CLIENT, to)?);
        }
        all_same(&names)?;
        let list = router.list()?;
        ensure!(list.contains("\nFWM  10 IPv6 rr persistent 300\n"), "{list}");
        router.finish()
    })
}

#[test]
fn the_ports_of_ftp_by_direct_routing() -> Result<()> {
    harness::with_cluster(Layout::OneArmed, |cluster| {
        let mut servers = Vec::new();
        for (machine, name) in cluster.real_servers.iter().zip(NAMES) {
            for port in [21, 10_000, 20_000] {
                servers.push(Server::tcp_echo(machine, SocketAddr::from((VIP, port)), name)?);
            }
        }
        let rule =
            format!("mark = 10\nprotocol = \"tcp\"\naddress = \"{VIP}\"\nports = [21, \"10000-20000\"]");
        let router = cluster.start_router(&cluster.config().mark(&rule).service(service(cluster)))?;
        router.wait_for_macs(CLIENT.into(), (VIP, 21).into(), "tcp")?;
        a_server_each(cluster, |client| {
            [21, 10_000, 20_000].into_iter().map(|port| ask(cluster, client, (VIP, port))).collect()
        })?;
        router.finish()
    })
}
