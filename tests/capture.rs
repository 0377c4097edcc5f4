//! `rvs capture` while a client talks to a service: each packet as it came and as it went, and none of others.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Layout, vip},
    servers::Server,
    wait, with_cluster,
};

#[test]
fn capture_shows_packets_before_and_after() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let servers: Vec<Server> = (0..3)
            .map(|index| Server::tcp_echo(&cluster.real_servers[index], cluster.endpoint(index, 8080), ""))
            .collect::<Result<_>>()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        let file = cluster.state().file("x.pcapng");
        let capture = |words: &str| router.rvs(&format!("capture {words}")).arg("-w").arg(&file);
        let mut capturing =
            capture(&format!("service {} and tcp --count 6 --seconds 60", vip(80))).spawn("capture")?;
        wait::until("the capture has begun", wait::PATIENCE, || {
            ensure!(router.log().contains("capture begins"));
            Ok(())
        })?;
        let refused = router.rvs("capture -w /nowhere/x").output()?;
        ensure!(refused.stderr.contains("another capture is under way"), "{refused:?}");

        // The sixth packet comes at the latest with the end of the connection.
        let mut stream = client::connect(&cluster.client, vip(80))?;
        client::echo(&mut stream, b"hello")?;
        client::close(stream)?;
        ensure!(capturing.wait(wait::PATIENCE)?.success(), "{}", capturing.log());

        let times = cluster.router.command("tcpdump").args(["-tt", "-n", "-r"]).arg(&file).run()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let first: f64 = times.split_ascii_whitespace().next().context("a first time")?.parse()?;
        ensure!((now - 120.0..=now).contains(&first), "{first} is not just now, {now}");
        let text = cluster.router.command("tcpdump").args(["-n", "-r"]).arg(&file).run()?;
        let lines: Vec<&str> = text.lines().collect();
        ensure!(lines.len() == 12, "six packets, each before and after:\n{text}");
        let syn = lines.first().context("a first packet")?;
        ensure!(
            syn.contains(&format!(" IP {CLIENT}.")) && syn.contains("> 192.0.2.10.80: Flags [S]"),
            "{text}"
        );
        let sent = lines.get(1).context("a second packet")?;
        ensure!(sent.contains("> 10.0.0.1") && sent.contains(".8080: Flags [S]"), "{text}");
        // A first reply may go by Linux, which finds the client's MAC; the others, and all requests, do not.
        let bytes = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
        ensure!(bytes.contains("forward, out of lan") && bytes.matches("rewritten").count() >= 6);
        drop(servers);
        router.finish()
    })
}
