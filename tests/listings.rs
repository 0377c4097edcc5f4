//! The command line: tables in the layout of ipvsadm, JSON, help, and exit codes.

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout, vip},
    config::Service,
    router::{self, Router},
    servers::Server,
    with_cluster,
};

/// Two services that have seen exactly known traffic: a held and six closed connections, and three datagrams.
fn prepared(cluster: &Cluster) -> Result<(Router, Vec<Server>, std::net::TcpStream)> {
    let mut servers = Vec::new();
    for (index, namespace) in cluster.real_servers.iter().enumerate() {
        servers.push(Server::tcp_echo(namespace, cluster.endpoint(index, 8080), "")?);
        servers.push(Server::udp_echo(namespace, cluster.endpoint(index, 7))?);
    }
    let mut web = cluster.web().scheduler("wrr");
    web.servers[0].weight = 3;
    let udp = (0..3)
        .fold(Service::udp("nat", vip(7)).scheduler("sh").flag("sh-port").flag("sh-fallback"), |s, i| {
            s.server(cluster.endpoint(i, 7), 1)
        });
    let router = cluster.start_router(&cluster.config().service(udp).service(web))?;
    for _ in 0..6 {
        let mut stream = client::connect(&cluster.client, vip(80))?;
        client::echo(&mut stream, b"hello")?;
        client::close(stream)?;
    }
    let held = client::connect(&cluster.client, vip(80))?;
    router.quiet()?;
    Ok((router, servers, held))
}

#[test]
fn list_has_the_layout_of_ipvsadm() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let (router, _servers, _held) = prepared(cluster)?;
        let text = router.list()?;
        let mut lines = text.lines();
        let title = lines.next().context("a title")?;
        ensure!(title.starts_with("RVS version ") && title.contains("(size="), "{title}");
        ensure!(lines.next() == Some("Prot LocalAddress:Port Scheduler Flags"), "{text}");
        ensure!(
            lines.next() == Some("  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn"),
            "{text}"
        );
        // "  -> %-28s %-7s %-6d %-10u %-10u"; TCP before UDP; servers by address.  wrr 3:1:1 over 7 connections.
        ensure!(lines.next() == Some("TCP  192.0.2.10:80 wrr"), "{text}");
        let (mut active, mut inactive) = (0, 0);
        for (index, weight) in [3, 1, 1].into_iter().enumerate() {
            let server = {
                let services = router.services()?;
                let web =
                    services.into_iter().find(|service| service.address == vip(80).into()).context("web")?;
                web.servers
                    .into_iter()
                    .find(|server| server.address == cluster.endpoint(index, 8080).into())
                    .context("rs")?
            };
            let expected = format!(
                "  -> {:<28} {:<7} {weight:<6} {:<10} {:<10}",
                format!("10.0.0.1{}:8080", index + 1),
                "Masq",
                server.active,
                server.inactive
            );
            let line = lines.next();
            ensure!(line == Some(expected.as_str()), "{line:?} is not {expected:?}");
            (active, inactive) = (active + server.active, inactive + server.inactive);
        }
        ensure!((active, inactive) == (1, 6), "{text}");
        ensure!(lines.next() == Some("UDP  192.0.2.10:7 sh (sh-fallback,sh-port)"), "{text}");
        ensure!(
            lines.next() == Some("  -> 10.0.0.11:7                  Masq    1      0          0         "),
            "{text}"
        );
        ensure!(router.rvs("list -n").run()? == text, "-n is accepted, and is always on");
        router.finish()
    })
}

#[test]
fn list_stats_and_rate_have_the_layout_of_ipvsadm() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let (router, _servers, _held) = prepared(cluster)?;
        for (option, header) in [
            ("--stats", "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes"),
            ("--rate", "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS"),
        ] {
            let text = router.rvs(&format!("list {option}")).run()?;
            ensure!(text.lines().nth(1) == Some(header), "{text}");
            ensure!(text.lines().nth(2) == Some("  -> RemoteAddress:Port"), "{text}");
            // A name in 33 columns, five numbers in 9 each.
            for line in text.lines().skip(3) {
                ensure!(line.len() == 33 + 5 * 9 && line.is_ascii(), "{line:?}");
                let (name, numbers) = line.split_at(33);
                ensure!(
                    name.starts_with("TCP  ") || name.starts_with("UDP  ") || name.starts_with("  -> "),
                    "{line}"
                );
                ensure!(
                    numbers.split_ascii_whitespace().all(|number| number.parse::<u64>().is_ok()),
                    "{line}"
                );
            }
        }
        let services = router.services()?;
        let stats = services.iter().find(|service| service.address == vip(80).into()).context("web")?.stats;
        ensure!(stats.connections == 7, "{stats:?}");
        let expected = format!(
            "{:<33}{:>9}{:>9}{:>9}{:>9}{:>9}",
            "TCP  192.0.2.10:80", 7, stats.packets_in, stats.packets_out, stats.bytes_in, stats.bytes_out
        );
        for words in ["list --stats", "list --stats --exact"] {
            let text = router.rvs(words).run()?;
            ensure!(text.lines().any(|line| line == expected), "no {expected:?} in:\n{text}");
        }
        router.finish()
    })
}

#[test]
fn list_connections_has_the_layout_of_ipvsadm() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let (router, _servers, held) = prepared(cluster)?;
        let text = router.rvs("list -c").run()?;
        ensure!(text.lines().next().is_some_and(|title| title.ends_with(" connection entries")), "{text}");
        let header = "pro expire state       source             virtual            destination";
        ensure!(text.lines().nth(1) == Some(header), "{text}");
        let entries: Vec<&str> = text.lines().skip(2).collect();
        ensure!(entries.len() == 7, "{text}");
        let source = held.local_addr()?.to_string();
        let line = entries.iter().find(|line| line.contains(&source)).context(text.clone())?;
        // "%-3s %-6s %-11s %-18s %-18s %s", MM:SS.
        let expires = line.get(4..9).context("expire")?;
        ensure!(["14:5", "15:0"].iter().any(|start| expires.starts_with(start)), "{line}");
        let server = line.rsplit(' ').next().context("destination")?;
        ensure!((0..3).any(|index| server == cluster.endpoint(index, 8080).to_string()), "{line}");
        let expected =
            format!("TCP {expires:<6} {:<11} {source:<18} {:<18} {server}", "ESTABLISHED", "192.0.2.10:80");
        ensure!(**line == expected, "{line:?} is not {expected:?}");
        let closed = entries.iter().filter(|line| line.contains(" TIME_WAIT ")).count();
        ensure!(closed == 6, "{text}");
        router.finish()
    })
}

#[test]
fn list_json_and_counters() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let (router, _servers, _held) = prepared(cluster)?;
        let counters = router.assert_accounts()?;
        ensure!(counters.table.connections == 7 && counters.table.slots >= 65_536, "{:?}", counters.table);
        let text = router.rvs("list --counters").run()?;
        for word in ["polls", "empty", "bursts", "received", "forwarded", "punted", "dropped"] {
            ensure!(text.contains(word), "no {word} in:\n{text}");
        }
        let json = router.rvs("list -c --json").run()?;
        // One document or one a line: seven connections, and every one with its state.
        ensure!(json.matches("\"state\"").count() == 7, "{json}");
        router.finish()
    })
}

#[test]
fn a_rate_is_seen_while_there_is_load_and_gone_after_it() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let (router, _servers, mut held) = prepared(cluster)?;
        let in_pps = || -> Result<u64> {
            let text = router.rvs("list --rate").run()?;
            let line =
                text.lines().find(|line| line.starts_with("TCP  192.0.2.10:80")).context("web")?.to_owned();
            Ok(line.split_ascii_whitespace().nth(3).context("InPPS")?.parse()?)
        };
        harness::wait::until("a rate is seen", harness::wait::PATIENCE, || {
            (0..50).try_for_each(|_| client::echo(&mut held, b"load"))?;
            ensure!(in_pps()? > 0);
            Ok(())
        })?;
        harness::wait::until("the rate falls to nothing", std::time::Duration::from_secs(60), || {
            ensure!(in_pps()? == 0);
            Ok(())
        })?;
        router.finish()
    })
}

#[test]
fn help_version_and_exit_codes() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let run = |words: &str| router::once(cluster, words)?.output();
        let help = run("--help")?;
        ensure!(help.code() == Some(0) && help.stdout.contains("Examples"), "{help:?}");
        ensure!(["run", "check", "reload", "list"].iter().all(|verb| help.stdout.contains(verb)), "{help:?}");
        let version = run("--version")?;
        ensure!(version.code() == Some(0) && version.stdout.starts_with("rvs "), "{version:?}");
        for wrong in ["", "fly", "run", "list --fast", "check"] {
            let output = run(wrong)?;
            ensure!(output.code() == Some(2), "`rvs {wrong}`: {output:?}");
        }
        let nobody = cluster.state().file("nobody.sock");
        for verb in ["list", "reload"] {
            let output = router::once(cluster, verb)?.arg("-s").arg(&nobody).output()?;
            ensure!(output.code() == Some(1) && output.stderr.contains("nobody.sock"), "{output:?}");
        }
        Ok(())
    })
}
