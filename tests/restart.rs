//! Starting and stopping: cleanly, again and again, and after a crash.

use anyhow::{Result, ensure};
use harness::{
    client,
    cluster::{Layout, vip},
    router, with_cluster,
};

#[test]
fn router_restarted_cleanly_10_times_in_a_row() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr").checked());
        let files = |directory: &str| -> Vec<String> {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let mut names: Vec<_> =
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.retain(|name| name.starts_with("rvs"));
            names
        };
        let before = cluster.router.interfaces()?;
        for start in 0..10 {
            let router = cluster.start_router(&config)?;
            let counts = client::get(&cluster.client, vip(80), 9)?.counts()?;
            ensure!(counts == [3, 3, 3], "start {start}: {counts:?}");
            let pid = router.pid().to_string();
            // As a whole number: "313" is also a part of somebody else's "19313".
            let of_router =
                |name: &String| name.split(|c: char| !c.is_ascii_digit()).any(|number| number == pid);
            // Asserts the exit status, and that twins, their addresses and the socket are gone.
            router.finish()?;
            let after = cluster.router.interfaces()?;
            for directory in ["/run/dpdk", "/dev/hugepages", "/run/rvs"] {
                let left = files(directory).into_iter().find(&of_router);
                ensure!(left.is_none(), "start {start} left {left:?} in {directory}");
            }
            ensure!(before == after, "start {start} left something: {before:?} became {after:?}");
        }
        Ok(())
    })
}

#[test]
fn a_killed_router_is_followed_by_one_that_works() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        for _ in 0..3 {
            let router = cluster.start_router(&config)?;
            ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
            router.kill()?;
            ensure!(std::fs::exists(&config.socket)?, "the socket of a killed router stays behind, stale");
        }
        let router = cluster.start_router(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        router.finish()
    })
}

#[test]
fn a_second_router_on_the_same_interface_is_refused_and_the_first_goes_on() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let router = cluster.start_router(&config)?;
        let mut other = config.clone();
        other.socket += ".other";
        other.ports.iter_mut().for_each(|port| port.name = if port.name == "wan" { "wan9" } else { "lan9" });
        let file = cluster.state().file("other.toml");
        std::fs::write(&file, other.to_string())?;
        let second = router::once(cluster, &format!("run -c {}", file.display()))?.output()?;
        ensure!(second.code() == Some(2), "{second:?}");
        let expected = "port[0].device: another rvs has interface wan0; stop it first";
        ensure!(second.stderr.contains(expected), "{}", second.stderr);
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        router.finish()
    })
}

#[test]
fn a_second_router_on_the_same_socket_is_refused_and_the_first_goes_on() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let running = cluster.start_router(&cluster.config().service(cluster.web().scheduler("rr")))?;
        let file = running.file.to_string_lossy().into_owned();
        let second = router::once(cluster, &format!("run -c {file}"))?.output()?;
        ensure!(second.code().is_some_and(|code| code == 1 || code == 2), "{second:?}");
        ensure!(second.stderr.contains("rvs.sock"), "says what is in the way: {}", second.stderr);
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        running.finish()
    })
}

#[test]
fn a_port_that_goes_down_and_up_works_again() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router =
            cluster.start_router(&cluster.config().service(cluster.web().scheduler("rr").checked()))?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        cluster.lan.ip("link set router down")?;
        router.wait_up(0, false)?;
        cluster.lan.ip("link set router up")?;
        (0..3).try_for_each(|server| router.wait_up(server, true))?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        router.finish()
    })
}
