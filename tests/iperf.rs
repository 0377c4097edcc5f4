//! Ten seconds of iperf3 through NAT.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Layout, vip},
    config::Service,
    tally::{self, Tally},
    wait::{self, PATIENCE},
    with_cluster,
};

const PORT: u16 = 5201;

fn iperf(extra: &str) -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let service = Service::tcp("nat", vip(PORT)).server(cluster.endpoint(0, PORT), 1);
        let server = &cluster.real_servers[0];
        let near = Tally::of_client(&cluster.client, "192.0.2.10", "tcp", PORT)?;
        let far = Tally::of_server(server, "tcp", PORT)?;
        let mut daemon = server.command("iperf3").words("--server --one-off --forceflush").spawn("iperf3")?;
        wait::until("iperf3 listens", PATIENCE, || {
            daemon.check_running()?;
            ensure!(daemon.log().contains("Server listening"));
            Ok(())
        })?;
        let router = cluster.start_router(&cluster.config().service(service))?;

        // A window of 256 KiB is fewer packets than the driver's ring has slots, so that nothing is lost for
        // want of room before the router has seen it, however long the machine does something else.
        let output = cluster
            .client
            .command("iperf3")
            .args(["--client", "192.0.2.10", "--json"])
            .words("--time 10 --window 256K")
            .words(extra)
            .limit(Duration::from_secs(40))
            .run()?;
        daemon.wait(PATIENCE)?;
        let report: serde_json::Value = serde_json::from_str(&output)?;
        let bytes = |side: &str| report["end"][side]["bytes"].as_u64().with_context(|| output.clone());
        let (sent, received) = (bytes("sum_sent")?, bytes("sum_received")?);
        // What is under way when the time is over is not received any more; it fits into both sockets' buffers.
        ensure!(received > 1_000_000 && received <= sent && sent - received <= 4 << 20, "{sent}, {received}");

        let traffic = tally::wait_equal(&near, std::slice::from_ref(&far))?;
        router.quiet()?;
        let stats = router.service()?.stats;
        ensure!(stats.connections == 2, "one to control, one for data: {stats:?}");
        ensure!(
            (stats.packets_in, stats.bytes_in) == (traffic.sent.packets, traffic.sent.bytes),
            "{stats:?} but {traffic:?}"
        );
        ensure!(
            (stats.packets_out, stats.bytes_out) == (traffic.received.packets, traffic.received.bytes),
            "{stats:?} but {traffic:?}"
        );
        ensure!(client::ping(&cluster.client, harness::cluster::VIP).is_ok());
        eprintln!("iperf3 {extra}: {} Mbit/s", received * 8 / 10 / 1_000_000);
        router.finish()
    })
}

#[test]
fn iperf3_through_nat_for_10_s_with_byte_counts_equal_on_both_sides() -> Result<()> {
    iperf("")
}

#[test]
fn iperf3_through_nat_for_10_s_in_the_other_direction() -> Result<()> {
    iperf("--reverse")
}
