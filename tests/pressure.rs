//! Who may begin a connection: lists of sources.

use std::{
    fmt::Write,
    net::{SocketAddr, SocketAddrV4, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    router::Router,
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};

const PORT: u16 = 7;

fn start_echo(cluster: &Cluster) -> Result<Vec<Server>> {
    let servers = cluster.real_servers.iter().enumerate();
    servers.map(|(index, server)| Server::tcp_echo(server, cluster.endpoint(index, PORT), "")).collect()
}

/// Whether the client's SYN is answered, if it asks once.
fn is_let_in(cluster: &Cluster, address: SocketAddrV4) -> bool {
    let connect =
        || Ok(TcpStream::connect_timeout(&SocketAddr::V4(address), Duration::from_millis(500)).is_ok());
    cluster.client.enter(connect).unwrap_or(false)
}

fn dropped(router: &Router, name: &str) -> Result<u64> {
    Ok(router.counters()?.fates().get(&format!("dropped {name}")).copied().unwrap_or(0))
}

#[test]
fn a_list_of_sources_is_read_anew_by_a_reload() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = start_echo(cluster)?;
        let file = cluster.state().file("deny");
        let mut list = String::from("# whoever has bothered us\n");
        for number in 0..50_000 {
            writeln!(list, "198.18.{}.{}", number / 200, number % 200)?;
        }
        std::fs::write(&file, &list)?;
        let setting = format!("sources = {{ deny_file = {file:?} }}");
        let config = cluster.config().service(cluster.web_on(PORT, PORT).setting(&setting));
        let mut router = cluster.start_router(&config)?;
        let mut held = client::connect(&cluster.client, vip(PORT))?;
        client::echo(&mut held, b"in")?;

        std::fs::write(&file, format!("{list}{CLIENT} # and now this one\n"))?;
        router.apply_by_signal(&config)?;
        ensure!(!is_let_in(cluster, vip(PORT)));
        ensure!(dropped(&router, "source_denied")? >= 1, "{:?}", router.counters()?.fates());
        client::echo(&mut held, b"it goes on")?;

        // A bad list changes nothing.
        std::fs::write(&file, format!("{list}198.18.300.1\n"))?;
        let refused = router.reload()?;
        let place = format!("{}:50002:1 is no prefix", file.display());
        ensure!(refused.stderr.contains(&place), "{refused:?}");
        ensure!(!is_let_in(cluster, vip(PORT)));

        std::fs::write(&file, &list)?;
        router.apply_by_signal(&config)?;
        let mut again = client::connect(&cluster.client, vip(PORT))?;
        client::echo(&mut again, b"back")?;
        wait::until("all is forwarded", PATIENCE, || {
            let services = router.services()?;
            ensure!(services[0].stats.connections == 2, "{services:?}");
            Ok(())
        })?;
        router.finish()
    })
}
