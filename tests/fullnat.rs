//! Full NAT: real servers that have no way back to the clients answer to the router.

use std::{
    io::ErrorKind,
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    config::Service,
    ipv6,
    nginx::{Nginx, big_file},
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};

const POOL: &str = "fullnat = { local = [\"10.0.0.100-10.0.0.101\"] }";

fn of_fullnat(service: Service, pool: &str) -> Service {
    Service { mode: "fullnat", ..service }.scheduler("rr").setting(pool)
}

/// Nobody but the router's network can be reached from the real servers.
fn cut_off(cluster: &Cluster, gateway: impl Into<IpAddr>) -> Result<()> {
    let order = format!("route del default via {}", gateway.into());
    cluster.real_servers.iter().try_for_each(|server| server.ip(&order))
}

/// Who a server's requests have come from, but for the harness itself.
fn seen(web: &[Nginx], count: usize) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for nginx in web {
        all.extend(nginx.wait_logged(count)?.into_iter().filter(|client| !client.starts_with("127.")));
    }
    Ok(all)
}

#[test]
fn pages_files_and_datagrams_of_servers_without_a_way_back() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let web = cluster.start_web()?;
        cut_off(cluster, cluster.layout().gateway())?;
        let server = &cluster.real_servers[0];
        let _echo = Server::tcp_echo(server, cluster.endpoint(0, 7), "")?;
        let _datagrams = Server::udp_echo(server, cluster.endpoint(0, 7))?;
        let tcp = of_fullnat(Service::tcp("fullnat", vip(7)).server(cluster.endpoint(0, 7), 1), POOL);
        let udp = Service { protocol: "udp", ..tcp.clone() };
        let closed = Service { address: vip(9).into(), ..udp.clone() };
        let closed = Service { servers: Vec::new(), ..closed }.server(cluster.endpoint(0, 9), 1);
        let mut config = cluster
            .config()
            .service(of_fullnat(cluster.web(), POOL))
            .service(tcp)
            .service(udp)
            .service(closed);
        // Narrower than what servers send by themselves: they have to be told.
        config.ports[0].mtu = Some(1400);
        let router = cluster.start_router(&config)?;

        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        let seen = seen(&web, 10)?;
        let is_local = |client: &String| ["10.0.0.100", "10.0.0.101"].contains(&client.as_str());
        ensure!(seen.len() == 30 && seen.iter().all(is_local), "{seen:?}");
        let mut download = client::start_download(&cluster.client, vip(80), "100m", "download")?;
        ensure!(download.wait(PATIENCE)?.success(), "{}", download.log());
        ensure!(std::fs::read(cluster.state().file("download"))? == big_file());
        ensure!(router.counters()?.fates().get("dropped too_big").is_some_and(|&count| count > 0));

        let socket = cluster.client.enter(|| Ok(UdpSocket::bind((CLIENT, 5353))?))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(b"there and back", vip(7))?;
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer)?;
        ensure!(from == vip(7).into() && buffer[..length] == *b"there and back");
        // Port unreachable, of the server.
        socket.connect(vip(9))?;
        wait::until("the client is told that the port is closed", PATIENCE, || {
            let _ = socket.send(b"anybody?");
            match socket.recv(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => anyhow::bail!("{other:?}"),
            }
        })?;

        // A connection keeps its port while the pool becomes another one.
        let mut stream = client::connect(&cluster.client, vip(7))?;
        client::echo(&mut stream, b"before")?;
        let listed = router.rvs("list --connections").run()?;
        let of_echo = |line: &&str| line.starts_with("TCP") && line.contains(" 192.0.2.10:7 ");
        let line = listed.lines().find(of_echo).context(listed.clone())?.to_owned();
        ensure!(line.contains(" 10.0.0.10") && line.ends_with(" 10.0.0.11:7"), "{line}");
        for service in &mut config.services {
            service.settings =
                vec!["fullnat = { local = [\"10.0.0.102\"], ports = \"2000-2999\" }".to_owned()];
        }
        router.apply(&config)?;
        client::echo(&mut stream, b"after")?;
        let again = router.rvs("list --connections").run()?;
        ensure!(
            again.contains(&line[line.find(CLIENT.to_string().as_str()).context("a client")?..]),
            "{again}"
        );
        client::close(stream)?;
        let mut other = client::connect(&cluster.client, vip(7))?;
        client::echo(&mut other, b"from another address")?;
        let listed = router.rvs("list --connections").run()?;
        ensure!(listed.contains(" 10.0.0.102:2"), "{listed}");
        let told = router.rvs("explain --src 192.0.2.100:6000 --dst 192.0.2.10:80").run()?;
        ensure!(told.contains("10.0.0.102:2"), "{told}");
        router.finish()
    })
}

#[test]
fn of_ipv6_as_well() -> Result<()> {
    ipv6::with_cluster(Layout::TwoArmed, |cluster| {
        let web = cluster.start_web()?;
        cut_off(cluster, ipv6::gateway(cluster.layout()))?;
        let pool = "fullnat = { local = [\"2001:db8:a::100\"] }";
        let _datagrams = Server::udp_echo(&cluster.real_servers[0], ipv6::endpoint(cluster, 0, 7))?;
        let udp = ipv6::service(cluster, "udp", 7).server(ipv6::endpoint(cluster, 0, 7), 1);
        let config = ipv6::config(cluster)
            .service(of_fullnat(ipv6::web(cluster), pool))
            .service(of_fullnat(udp, pool));
        let router = cluster.start_router(&config)?;
        ensure!(client::get(&cluster.client, ipv6::vip(80), 30)?.counts()? == [10, 10, 10]);
        let seen = seen(&web, 10)?;
        ensure!(seen.len() == 30 && seen.iter().all(|client| client == "2001:db8:a::100"), "{seen:?}");
        let mut download = client::start_download(&cluster.client, ipv6::vip(80), "100m", "download")?;
        ensure!(download.wait(PATIENCE)?.success(), "{}", download.log());
        ensure!(std::fs::read(cluster.state().file("download"))? == big_file());
        let socket = cluster.client.enter(|| Ok(UdpSocket::bind((ipv6::CLIENT, 5353))?))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(b"there and back", ipv6::vip(7))?;
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer)?;
        ensure!(from == ipv6::vip(7) && buffer[..length] == *b"there and back");
        router.finish()
    })
}

#[test]
fn servers_hear_by_the_proxy_protocol_who_their_clients_are() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let site = "server {\nlisten 8080;\nreturn 200 ready;\n}\n\
                    server {\nlisten 8081 proxy_protocol;\nset_real_ip_from 10.0.0.0/24;\nreal_ip_header proxy_protocol;\n\
                    client_max_body_size 8m;\nlocation / {\nreturn 200 $proxy_protocol_addr:$proxy_protocol_port:$proxy_protocol_server_addr:$content_length;\n}\n}\n";
        let _nginx = Nginx::start_with(cluster, 0, "proxied", 8080, site)?;
        cut_off(cluster, cluster.layout().gateway())?;
        let pool = "fullnat = { local = [\"10.0.0.100\"], proxy_protocol = true }";
        let service = Service::tcp("fullnat", vip(80)).server(cluster.endpoint(0, 8081), 1);
        let router = cluster.start_router(&cluster.config().service(of_fullnat(service, pool)))?;
        // The first segments are as long as they may be, and many follow.
        for (port, length) in [(40_001, 10), (40_002, 1 << 20)] {
            let told = cluster
                .client
                .command("curl")
                .words("--silent --show-error --fail --max-time 15 --data-binary @- http://192.0.2.10/")
                .args(["--local-port".to_owned(), port.to_string()])
                .input(vec![b'x'; length])
                .run()?;
            ensure!(told == format!("{CLIENT}:{port}:192.0.2.10:{length}"), "{told}");
        }
        router.finish()
    })
}
