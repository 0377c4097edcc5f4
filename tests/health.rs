//! Health checks: a dead server takes no new connection, and comes back by itself.

use anyhow::{Result, ensure};
use harness::{
    client,
    cluster::{Layout, vip},
    listing::Server,
    with_cluster,
};

#[test]
fn kill_and_recovery_of_a_server() -> Result<()> {
    for layout in [Layout::TwoArmed, Layout::OneArmed] {
        with_cluster(layout, |cluster| {
            let mut nginx = cluster.start_web()?;
            let config = cluster.config().service(cluster.web().scheduler("rr").checked());
            let router = cluster.start_router(&config)?;
            ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);

            nginx[1].kill()?;
            router.wait_up(1, false)?;
            let Server { reason, .. } = router.server(1)?;
            ensure!(
                reason.is_some_and(|reason| reason.contains("refused")),
                "the reason: {:?}",
                router.server(1)?
            );
            // No request fails, from the first on.
            ensure!(client::get(&cluster.client, vip(80), 100)?.counts()? == [50, 0, 50]);
            let listed = router.list()?;
            let line = listed
                .lines()
                .find(|line| line.contains(&cluster.endpoint(1, layout.http_port()).to_string()));
            let weight = line.and_then(|line| line.split_ascii_whitespace().nth(3));
            ensure!(weight == Some("0"), "listed with weight 0: {listed}");
            ensure!(router.log().contains("refused"), "logged: {}", router.log());

            nginx[1].start_again()?;
            router.wait_up(1, true)?;
            ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
            router.finish()
        })?;
    }
    Ok(())
}

#[test]
fn a_server_that_has_vanished_is_found_dead_and_found_again() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router =
            cluster.start_router(&cluster.config().service(cluster.web().scheduler("rr").checked()))?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        // No RST, no ICMP, not even ARP: nothing answers.
        cluster.lan.ip("link set rs3 down")?;
        router.wait_up(2, false)?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [15, 15, 0]);
        cluster.lan.ip("link set rs3 up")?;
        router.wait_up(2, true)?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        router.finish()
    })
}

#[test]
fn all_servers_dead_and_back() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut nginx = cluster.start_web()?;
        let router =
            cluster.start_router(&cluster.config().service(cluster.web().scheduler("rr").checked()))?;
        for (index, server) in nginx.iter_mut().enumerate() {
            server.kill()?;
            router.wait_up(index, false)?;
        }
        let answers = client::get(&cluster.client, vip(80), 1)?;
        ensure!(answers.total() == 0, "{answers:?}");
        for (index, server) in nginx.iter_mut().enumerate() {
            server.start_again()?;
            router.wait_up(index, true)?;
        }
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        router.finish()
    })
}

#[test]
fn health_survives_a_reload() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut nginx = cluster.start_web()?;
        let mut config = cluster.config().service(cluster.web().scheduler("wrr").checked());
        let router = cluster.start_router(&config)?;
        nginx[0].kill()?;
        router.wait_up(0, false)?;
        // Were it forgotten, the dead server would be tried again until its check has failed three times.
        for weight in 2..6 {
            config.set_weight(1, weight);
            router.apply(&config)?;
            ensure!(!router.server(0)?.up, "a reload has revived a dead server");
            let counts = client::get(&cluster.client, vip(80), u64::from(weight) + 1)?.counts()?;
            ensure!(counts == [0, u64::from(weight), 1], "{counts:?}");
        }
        router.finish()
    })
}

#[test]
fn a_server_without_a_check_is_never_found_dead() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut nginx = cluster.start_web()?;
        let mut web = cluster.web().scheduler("rr").checked();
        web.servers[0].check = false;
        let router = cluster.start_router(&cluster.config().service(web))?;
        nginx[0].kill()?;
        nginx[1].kill()?;
        router.wait_up(1, false)?;
        ensure!(router.server(0)?.up, "{:?}", router.server(0)?);
        router.finish()
    })
}
