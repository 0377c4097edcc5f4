//! ICMP errors about balanced connections: they reach whoever has sent the packet, and name nobody whom that one cannot know.

use std::io::ErrorKind;
use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use harness::{
    client,
    cluster::{CLIENT, Layout, vip},
    config::Service,
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

/// A client whose firewall lets no ICMP in (as many clouds' do) is refused all the same, at once.
#[test]
fn a_service_without_a_server_resets_if_it_is_told_to() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let idle =
            Service::tcp("nat", vip(80)).setting("refuse = \"reset\"").server(cluster.endpoint(0, 80), 0);
        let router = cluster.start_router(&cluster.config().service(idle))?;
        cluster.client.nft(
            "table ip quiet { chain input { type filter hook input priority 0; icmp type destination-unreachable drop; }; }",
        )?;
        let error = client::connect(&cluster.client, vip(80)).expect_err("nobody takes connections");
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        router.finish()
    })
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
