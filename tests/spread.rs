//! How connections are spread over the real servers, by scheduler.

use std::net::TcpStream;

use anyhow::{Result, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout, vip},
    config::Service,
    router::Router,
    servers::Server,
    with_cluster,
};

fn weighted(service: Service, weights: [u32; 3]) -> Service {
    let servers = service.servers.iter().zip(weights);
    let servers = servers.map(|(server, weight)| harness::config::Server { weight, ..*server }).collect();
    Service { servers, ..service }
}

/// What the router says that it gave to each server of the service on this port.
fn listed(router: &harness::router::Router, port: u16) -> Result<Vec<u64>> {
    let services = router.services()?;
    let service =
        services.into_iter().find(|service| service.address == vip(port).into()).expect("it is configured");
    let mut servers = service.servers;
    servers.sort_by_key(|server| server.address);
    Ok(servers.iter().map(|server| server.stats.connections).collect())
}

fn exact_spread(layout: Layout) -> Result<()> {
    with_cluster(layout, |cluster| {
        let _nginx = cluster.start_web()?;
        // Each service has its own port on the real servers, which listen on both. With one for both a client port that
        // the second happens to use again meets what the server still has of the first (TIME_WAIT); it may refuse that,
        // the client begins anew, and that takes another turn. Once in fifty runs the spread was not exact for that.
        let config = cluster
            .config()
            .service(cluster.web_on(80, 80).scheduler("rr"))
            .service(weighted(cluster.web_on(8080, 8080).scheduler("wrr"), [4, 3, 2]));
        let router = cluster.start_router(&config)?;
        for _ in 0..2 {
            ensure!(client::get(&cluster.client, vip(80), 90)?.counts()? == [30, 30, 30]);
            let counts = client::get(&cluster.client, vip(8080), 90)?.counts()?;
            ensure!(counts == [40, 30, 20], "wrr 4:3:2 gave {counts:?}");
        }
        ensure!(listed(&router, 80)? == [60, 60, 60]);
        ensure!(listed(&router, 8080)? == [80, 60, 40]);
        router.finish()
    })
}

#[test]
fn spread_exact_for_rr_and_wrr_4_3_2_over_90_connections_nat() -> Result<()> {
    exact_spread(Layout::TwoArmed)
}

#[test]
fn spread_exact_for_rr_and_wrr_4_3_2_over_90_connections_dr() -> Result<()> {
    exact_spread(Layout::OneArmed)
}

/// Opens `count` connections one after the other and keeps them open.
fn hold(cluster: &Cluster, port: u16, count: usize) -> Result<Vec<TcpStream>> {
    (0..count).map(|_| client::connect(&cluster.client, vip(port))).collect()
}

#[test]
fn every_scheduler_keeps_its_promise() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let web = |port, scheduler| cluster.web_on(port, 8080).scheduler(scheduler);
        let config = cluster
            .config()
            .service(web(81, "lc"))
            .service(weighted(web(82, "wlc"), [4, 3, 2]))
            .service(weighted(web(83, "sed"), [4, 3, 2]))
            .service(weighted(web(84, "nq"), [4, 3, 2]))
            .service(web(85, "sh"))
            .service(web(86, "sh").flag("sh-port"))
            .service(web(87, "dh"))
            .service(web(88, "mh"))
            .service(web(89, "mh").flag("mh-port"))
            .service(web(90, "maglev"))
            .service(web(91, "rendezvous"))
            .service(web(92, "p2c"))
            .service(web(93, "twos"))
            .service(web(94, "lblc"))
            .service(web(95, "lblcr"));
        let router = cluster.start_router(&config)?;

        // By load: as long as connections stay, every new one goes where the formula says.
        let _held: Vec<_> = [(81, 9), (82, 9), (83, 9), (84, 3)]
            .into_iter()
            .map(|(port, count)| hold(cluster, port, count))
            .collect::<Result<_>>()?;
        ensure!(listed(&router, 81)? == [3, 3, 3], "lc: {:?}", listed(&router, 81)?);
        ensure!(listed(&router, 82)? == [4, 3, 2], "wlc: {:?}", listed(&router, 82)?);
        ensure!(listed(&router, 83)? == [4, 3, 2], "sed: {:?}", listed(&router, 83)?);
        ensure!(listed(&router, 84)? == [1, 1, 1], "nq: {:?}", listed(&router, 84)?);

        // By hash: one client sticks to one server, unless its port counts too. So does a destination of lblc and lblcr, of which
        // each service has one, until too much is there.
        for port in [85, 87, 88, 94, 95] {
            let answers = client::get(&cluster.client, vip(port), 30)?;
            ensure!(answers.counts()?.contains(&30), "service {port}: {answers:?}");
        }
        for port in [86, 89, 90, 91, 92, 93] {
            let counts = client::get(&cluster.client, vip(port), 150)?.counts()?;
            ensure!(counts.iter().all(|count| *count > 0), "service {port}: {counts:?}");
        }
        router.finish()
    })
}

/// With ovf until it has more than its weight, and then the next one. Each service has its own port on the servers, to which
/// connections of the other from the same port of the client would be the same.
#[test]
fn the_heaviest_server_takes_all() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut servers = Vec::new();
        for (index, machine) in cluster.real_servers.iter().enumerate() {
            for port in [7, 8] {
                servers.push(Server::tcp_echo(machine, cluster.endpoint(index, port), "")?);
            }
        }
        let config = cluster
            .config()
            .service(weighted(cluster.web_on(7, 7).scheduler("fo"), [1, 3, 2]))
            .service(weighted(cluster.web_on(8, 8).scheduler("ovf"), [4, 3, 2]));
        let router = cluster.start_router(&config)?;
        let _by_fo = hold(cluster, 7, 9)?;
        ensure!(listed(&router, 7)? == [0, 9, 0], "fo: {:?}", listed(&router, 7)?);
        let _by_ovf = hold(cluster, 8, 5)?;
        ensure!(listed(&router, 8)? == [5, 0, 0], "ovf: {:?}", listed(&router, 8)?);
        let _more = hold(cluster, 8, 7)?;
        ensure!(listed(&router, 8)? == [5, 4, 3], "ovf: {:?}", listed(&router, 8)?);
        let error = client::connect(&cluster.client, vip(8)).expect_err("all are full");
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        router.finish()
    })
}

#[test]
fn quiesce_weight_0_takes_no_new_connection_and_keeps_the_old() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let echoes: Vec<_> = (0..3)
            .map(|index| {
                let greeting = format!("rs{}", index + 1);
                harness::servers::Server::tcp_echo(
                    &cluster.real_servers[index],
                    cluster.endpoint(index, 7777),
                    &greeting,
                )
            })
            .collect::<Result<_>>()?;
        let mut config = cluster
            .config()
            .service(cluster.web().scheduler("wrr"))
            .service(cluster.web_on(7777, 7777).scheduler("rr"));
        let router = cluster.start_router(&config)?;
        let mut held = hold(cluster, 7777, 3)?;
        for stream in &mut held {
            let mut greeting = [0; 3];
            std::io::Read::read_exact(stream, &mut greeting)?;
            client::echo(stream, b"before")?;
        }

        for service in &mut config.services {
            service.servers[1].weight = 0;
        }
        router.apply(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 60)?.counts()? == [30, 0, 30]);
        for stream in &mut held {
            client::echo(stream, b"meanwhile")?;
        }
        let server = router.server(1)?;
        ensure!(server.weight == 0 && server.up, "{server:?}");

        for service in &mut config.services {
            service.servers[1].weight = 1;
        }
        router.apply(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 60)?.counts()? == [20, 20, 20]);
        for stream in &mut held {
            client::echo(stream, b"after")?;
        }
        ensure!(echoes.iter().map(|echo| echo.served()).collect::<Vec<_>>() == [1, 1, 1]);
        router.finish()
    })
}

#[test]
fn a_server_is_given_as_many_connections_as_its_threshold_says() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let echoes: Vec<Server> = (0..3)
            .map(|index| Server::tcp_echo(&cluster.real_servers[index], cluster.endpoint(index, 7), ""))
            .collect::<Result<_>>()?;
        let config = cluster.config().service(cluster.web_on(7, 7).scheduler("rr"));
        let limited = config.to_string().replacen("weight = 1\n", "weight = 1\nupper_threshold = 2\n", 1);
        let router = Router::start_text(cluster, &limited, &config)?;
        let mut held = hold(cluster, 7, 10)?;
        for stream in &mut held {
            client::echo(stream, b"all are served")?;
        }
        let counts = listed(&router, 7)?;
        ensure!(counts[0] == 2 && counts[1..].iter().all(|count| *count == 4), "{counts:?}");
        let list = router.rvs("list --thresholds").run()?;
        let line = ["->", &cluster.endpoint(0, 7).to_string(), "2", "2", "2", "0"].join(" ");
        let lines: Vec<String> =
            list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        ensure!(lines.contains(&line), "{list}");
        ensure!(echoes.iter().map(Server::served).sum::<u64>() == 10);
        router.finish()
    })
}
