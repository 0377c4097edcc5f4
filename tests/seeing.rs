//! What an operator sees of a running router: events, metrics, `rvs top`.

use std::{
    fs,
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout, vip},
    config::Server,
    process::{Command, Daemon},
    wait::{self, PATIENCE},
    with_cluster,
};
use nix::sys::signal::Signal;

/// The metrics, as Prometheus would scrape them.
fn scrape(cluster: &Cluster, socket: &str) -> Result<String> {
    let curl = cluster.router.command("curl").words("-sSf --max-time 20 http://rvs/metrics --unix-socket");
    curl.arg(socket).run()
}

/// The value of the series that begins like this; the sum if there are several.
fn value(metrics: &str, series: &str) -> Result<f64> {
    let values = metrics.lines().filter(|line| line.starts_with(series));
    let values = values.map(|line| Ok(line.rsplit(' ').next().context("a value")?.parse::<f64>()?));
    let values: Vec<f64> = values.collect::<Result<_>>()?;
    ensure!(!values.is_empty(), "no series {series}\n{metrics}");
    Ok(values.iter().sum())
}

#[test]
fn events_and_metrics_say_what_happened() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut nginx = cluster.start_web()?;
        let mut config = cluster.config().service(cluster.web().scheduler("rr").checked());
        let router = cluster.start_router(&config)?;
        let mut follower = router.rvs("events -f").spawn("follower")?;

        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        nginx[1].kill()?;
        router.wait_up(1, false)?;
        config.set_weight(0, 3);
        router.apply(&config)?;
        fs::write(&router.file, "nonsense = 1\n")?;
        ensure!(router.reload()?.code() == Some(1), "nonsense is refused");
        router.quiet()?;

        let metrics = scrape(cluster, &config.socket)?;
        let service = format!("{{service=\"tcp/{}\"", vip(80));
        let all = |family: &str| value(&metrics, &format!("{family}{service}"));
        ensure!(all("rvs_service_connections_total")? == 30.0, "{metrics}");
        ensure!(all("rvs_server_connections_total")? == 30.0, "{metrics}");
        ensure!(all("rvs_server_up")? == 2.0, "{metrics}");
        ensure!(all("rvs_server_weight")? == 5.0, "{metrics}");
        ensure!(value(&metrics, "rvs_reloads_total{result=\"applied\"}")? == 1.0, "{metrics}");
        ensure!(value(&metrics, "rvs_reloads_total{result=\"refused\"}")? == 1.0, "{metrics}");
        ensure!(value(&metrics, "rvs_last_reload_successful")? == 0.0, "{metrics}");
        ensure!(
            value(&metrics, "rvs_health_checks_total{kind=\"tcp\",result=\"failed\"}")? >= 3.0,
            "{metrics}"
        );
        // Thirty connections that have been closed, however far each is with that.
        ensure!(value(&metrics, "rvs_table_state_connections")? == 30.0, "{metrics}");
        ensure!(value(&metrics, "rvs_table_connections")? == 30.0, "{metrics}");
        let sum = ["forwarded_packets", "punted_packets", "dropped_packets"]
            .map(|fate| value(&metrics, &format!("rvs_worker_{fate}_total")));
        let sum: f64 = sum.into_iter().sum::<Result<f64>>()?;
        ensure!(value(&metrics, "rvs_worker_received_packets_total")? == sum, "{metrics}");
        let promtool = Command::new(cluster.state(), "promtool").words("check metrics").input(metrics);
        promtool.run()?;

        let events = router.events()?;
        ensure!(events.len() == 4, "{events:#?}");
        let server = cluster.endpoint(1, Layout::TwoArmed.http_port());
        for (event, expected) in events.iter().zip([
            "services 1, real servers 3".to_owned(),
            format!("tcp/{}: {server} is down: connection refused (checks failed in a row: ", vip(80)),
            "reloaded: generation ".to_owned(),
            "reload refused, nothing has changed: ".to_owned(),
        ]) {
            ensure!(event.contains(&expected), "{event}\nexpected {expected}");
        }

        let frame = router.rvs("top --once").run()?;
        ensure!(frame.contains(&vip(80).to_string()) && frame.contains("connection refused"), "{frame}");

        router.finish()?;
        // The follower has heard the end, and ends.
        ensure!(follower.wait(PATIENCE)?.success(), "{}", follower.log());
        let heard = follower.log();
        ensure!(heard.lines().count() == 5 && heard.contains("RVS stops (SIGTERM)"), "{heard}");
        Ok(())
    })
}

#[test]
fn a_table_that_fills_up_is_an_event() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let mut config = cluster.config().service(cluster.web().scheduler("rr"));
        // The smallest there is has 2048 slots.
        config.connections = 1024;
        let router = cluster.start_router(&config)?;
        client::get_parallel(&cluster.client, vip(80), 3_000, 20)?;
        wait::until("the table is nearly full", PATIENCE, || {
            let events = router.events()?;
            ensure!(
                events.iter().any(|event| event.starts_with("the connection table is nearly full")),
                "{events:#?}"
            );
            Ok(())
        })?;
        let metrics = scrape(cluster, &config.socket)?;
        ensure!(value(&metrics, "rvs_table_slots")? == 2048.0, "{metrics}");
        ensure!(value(&metrics, "rvs_table_connections")? >= 0.9 * 2048.0, "{metrics}");
        router.finish()
    })
}

/// A failed switch: while ten thousand verdicts come in, whoever asks is answered.
#[test]
fn ten_thousand_servers_that_go_down_at_once_keep_nobody_waiting() -> Result<()> {
    // Nobody has their addresses, and Linux says so at once.
    ten_thousand_go_down(harness::config::QUICK_CHECK, " is down: ", |_| Ok(()))
}

/// The same by silence: ten thousand checks wait until their time is up.
#[test]
fn ten_thousand_servers_that_fall_silent_at_once_keep_nobody_waiting() -> Result<()> {
    let check = "interval = \"1s\", timeout = \"500ms\", fall = 2";
    ten_thousand_go_down(check, " is down: timed out after 500ms", |cluster| {
        cluster.router.ip("route add local 10.200.0.0/16 dev lo")?;
        let rule = "ip daddr 10.200.0.0/16 drop";
        cluster.router.nft(&format!(
            "table inet silence {{\nchain input {{\ntype filter hook input priority 0\n{rule}\n}}\n}}\n"
        ))
    })
}

fn ten_thousand_go_down(check: &str, told: &str, prepare: impl Fn(&Cluster) -> Result<()>) -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        prepare(cluster)?;
        let mut web = cluster.web().scheduler("rr");
        web.check = Some(check.to_owned());
        let prototype = web.servers[0];
        let addresses = (0..10_000).map(|n| SocketAddrV4::new((0x0AC8_0000 + n).into(), 80));
        web.servers = addresses.map(|address| Server { address: address.into(), ..prototype }).collect();
        let config = cluster.config().service(web);
        let router = cluster.start_router(&config)?;
        let mut longest = Duration::ZERO;
        wait::until("all servers are down", Duration::from_secs(120), || {
            let start = Instant::now();
            let metrics = scrape(cluster, &config.socket)?;
            longest = longest.max(start.elapsed());
            let up = value(&metrics, "rvs_server_up")?;
            ensure!(up == 0.0, "{up} are up");
            Ok(())
        })?;
        // It was 1 s, of all metrics and in a build for tests; with a snapshot for each verdict it was 35 s.
        ensure!(longest < Duration::from_secs(8), "an answer took {longest:?}");
        println!("the longest answer took {longest:?}");
        let metrics = scrape(cluster, &config.socket)?;
        ensure!(metrics.lines().count() > 90_000);
        // Told one after the other, which may end after the last is out of use. The oldest event makes room for the
        // loss of the quorum.
        wait::until("all are told", PATIENCE, || {
            let down = router.events()?.iter().filter(|event| event.contains(told)).count();
            ensure!(down >= 9_990, "{down} events say that a server is down");
            Ok(())
        })?;
        // Each in a snapshot of its own would be ten thousand.
        let generation = router.counters()?.generation;
        ensure!(generation < 2_000, "{generation} snapshots");
        router.stop()
    })
}

/// A terminal is as it was after `rvs top`, whatever ended it; and rvs may go and come back meanwhile.
#[test]
fn top_outlives_the_router_and_leaves_the_terminal_as_it_was() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let router = cluster.start_router(&config)?;
        // `script` gives it a terminal, and writes what is shown to its log; then `stty` says how the terminal is left.
        let program = harness::router::program()?;
        let shell = format!(
            "stty rows 40 cols 120; stty -g; sh -c 'echo pid $$; exec {} top -s {}'; status=$?; echo; echo ended $status; stty -g",
            program.display(),
            config.socket
        );
        let script = cluster.router.command("script").args(["-qefc", &shell, "/dev/null"]);
        let mut top = script.spawn("top")?;
        let shows = |what: &str, top: &Daemon| {
            wait::until_true(&format!("top shows {what}"), PATIENCE, || top.log().contains(what))
        };
        shows(&vip(80).to_string(), &top)?;
        router.stop()?;
        shows("is not reachable", &top)?;
        let router = cluster.start_router(&config)?;
        let log = top.log();
        let pid = log.lines().find_map(|line| line.trim().strip_prefix("pid ")).context("a pid")?;
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse()?);
        nix::sys::signal::kill(pid, Signal::SIGTERM)?;
        ensure!(top.wait(Duration::from_secs(10))?.success(), "{}", top.log());
        let log = top.log();
        ensure!(log.contains("ended 0"), "{log}");
        let modes: Vec<&str> =
            log.lines().map(str::trim).filter(|line| line.split(':').count() > 20).collect();
        ensure!(modes.len() == 2 && modes[0] == modes[1], "{modes:?}\n{log}");
        router.finish()
    })
}
