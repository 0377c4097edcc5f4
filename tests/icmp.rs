//! ICMP errors about balanced connections: they reach whoever has sent the packet, and name nobody whom that one cannot know.

use std::io::ErrorKind;
use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    config::Service,
    netns::Namespace,
    tunnel::{End, Kind, through},
    wait::{self, PATIENCE},
    with_cluster,
};

#[test]
fn a_client_learns_at_once_that_no_server_listens() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        cluster.real_servers[0].sysctl("net/ipv4/icmp_ratelimit", 0)?;
        let service = Service::udp("nat", vip(53)).server(cluster.endpoint(0, 53), 1);
        let router = cluster.start_router(&cluster.config().service(service))?;
        let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, 5000))?))?;
        socket.connect(vip(53))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        // A socket hears of errors only that quote what it has sent itself.
        wait::until("the server's refusal", PATIENCE, || {
            socket.send(b"?")?;
            match socket.recv(&mut [0; 16]) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => bail!("{other:?}"),
            }
        })?;
        router.finish()
    })
}

#[test]
fn a_service_without_a_server_says_so() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let idle = |service: Service| service.server(cluster.endpoint(0, 80), 0);
        let config = cluster.config().service(idle(Service::tcp("nat", vip(80))));
        let router = cluster.start_router(&config.service(idle(Service::udp("nat", vip(53)))))?;
        // Refused by the service itself: nobody else knows that there is none behind it.
        let error = client::connect(&cluster.client, vip(80)).expect_err("nobody takes connections");
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        let error = client::dig(&cluster.client, 6000, vip(53)).expect_err("nobody takes queries");
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        ensure!(
            router.counters()?.fates().iter().any(|(name, count)| name.contains("no_server") && *count > 0)
        );
        router.finish()
    })
}

/// A machine behind the client, and the address that it has there. The way to it is narrower than all before.
fn behind_the_client(cluster: &Cluster) -> Result<Namespace> {
    let Cluster { client, router, real_servers, .. } = cluster;
    let far = Namespace::create(cluster.state(), "far")?;
    client.ip(&format!("link add far0 mtu 1300 type veth peer name eth0 netns {}", far.name()))?;
    client.ip("link set far0 up\naddress add 198.51.100.1/24 dev far0")?;
    far.ip("link set eth0 up\naddress add 198.51.100.2/24 dev eth0\nroute add default via 198.51.100.1")?;
    client.plain_wire("far0")?;
    far.plain_wire("eth0")?;
    client.sysctl("net/ipv4/ip_forward", 1)?;
    let route = format!("route add 198.51.100.0/24 via {CLIENT}");
    match cluster.layout() {
        Layout::TwoArmed => router.ip(&route)?,
        Layout::OneArmed => real_servers.iter().try_for_each(|server| server.ip(&route))?,
    }
    Ok(far)
}

/// The far machine says that it takes 1460 bytes a segment; 1260 get through, which the server has to be told.
fn path_mtu_is_found(layout: Layout, tunnel: Option<Kind>) -> Result<()> {
    with_cluster(layout, |cluster| {
        let _nginx = cluster.start_web()?;
        let _ends = tunnel.map(|kind| End::of_all(cluster, kind)).transpose()?;
        let web = cluster.web();
        let web = if let Some(kind) = tunnel { through(web, kind) } else { web };
        let router = cluster.start_router(&cluster.config().service(web))?;
        let far = behind_the_client(cluster)?;
        let mut download = client::start_download(&far, vip(80), "100m", "download")?;
        ensure!(download.wait(PATIENCE)?.success(), "{}", download.log());
        let bytes = std::fs::read(far.state().file("download"))?;
        ensure!(bytes == harness::nginx::big_file(), "{} bytes came", bytes.len());
        let known = |server: &Namespace| -> Result<bool> {
            Ok(server.ip_json("route get 198.51.100.2")?.to_string().contains("\"mtu\":1300"))
        };
        let servers = &cluster.real_servers;
        let told = servers.iter().map(known).collect::<Result<Vec<_>>>()?;
        ensure!(told.iter().filter(|known| **known).count() == 1, "who knows of the path's MTU: {told:?}");
        router.finish()
    })
}

#[test]
fn path_mtu_is_found_nat() -> Result<()> {
    path_mtu_is_found(Layout::TwoArmed, None)
}

#[test]
fn path_mtu_is_found_dr() -> Result<()> {
    path_mtu_is_found(Layout::OneArmed, None)
}

/// The error goes to the server through the tunnel, as the packets of its connection do.
#[test]
fn path_mtu_is_found_tunnel() -> Result<()> {
    path_mtu_is_found(Layout::OneArmed, Some(Kind::Ipip))
}

/// Here it is the router itself who cannot send what servers send.
#[test]
fn the_mtu_of_a_port_is_found() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let mut config = cluster.config().service(cluster.web());
        config.ports[0].mtu = Some(1300);
        let router = cluster.start_router(&config)?;
        let mut download = client::start_download(&cluster.client, vip(80), "100m", "download")?;
        ensure!(download.wait(PATIENCE)?.success(), "{}", download.log());
        let bytes = std::fs::read(cluster.state().file("download"))?;
        ensure!(bytes == harness::nginx::big_file(), "{} bytes came", bytes.len());
        router.finish()
    })
}
