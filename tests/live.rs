//! Changes without the file, and what becomes of the connections of servers that go.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout, vip},
    config::Service,
    router::Router,
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};

const PORT: u16 = 7777;

/// An echo service whose servers say who they are.
fn echo(cluster: &Cluster) -> Service {
    (0..3).fold(Service::tcp("nat", vip(PORT)).scheduler("rr"), |service, index| {
        service.server(cluster.endpoint(index, PORT), 1)
    })
}

fn start_echo(cluster: &Cluster) -> Result<Vec<Server>> {
    let start =
        |(index, namespace)| Server::tcp_echo(namespace, cluster.endpoint(index, PORT), &index.to_string());
    cluster.real_servers.iter().enumerate().map(start).collect()
}

/// A connection, and the server that it is with.
fn connect(cluster: &Cluster) -> Result<(TcpStream, usize)> {
    let mut stream = client::connect(&cluster.client, vip(PORT))?;
    let mut name = [0];
    stream.read_exact(&mut name)?;
    client::echo(&mut stream, b"hello")?;
    Ok((stream, usize::from(name[0] - b'0')))
}

/// Connections to each server.
fn connect_to_all(cluster: &Cluster) -> Result<Vec<TcpStream>> {
    let mut streams = (0..3).map(|_| connect(cluster)).collect::<Result<Vec<_>>>()?;
    streams.sort_by_key(|(_, server)| *server);
    ensure!(streams.iter().map(|(_, server)| *server).eq(0..3));
    Ok(streams.into_iter().map(|(stream, _)| stream).collect())
}

fn assert_reset(stream: &mut TcpStream) -> Result<()> {
    // The first write may still find the connection open; what comes back is the reset.
    let result = stream.write_all(b"still there?").and_then(|()| stream.read(&mut [0; 16]));
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(()),
        other => bail!("expected a reset, got {other:?}"),
    }
}

/// Established connections that a real server knows of at its service's port.
fn established(cluster: &Cluster, index: usize) -> Result<usize> {
    let text = cluster.real_servers[index]
        .command("ss")
        .words("-Htn state established")
        .arg(format!("sport = :{PORT}"))
        .run()?;
    Ok(text.lines().count())
}

fn of(router: &Router, address: impl Into<SocketAddr>) -> Result<harness::listing::Server> {
    let address = address.into();
    let servers = router.service()?.servers;
    servers.into_iter().find(|server| server.address == address).context("no such server")
}

#[test]
fn a_drained_server_keeps_what_it_has_and_gets_no_more() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers = start_echo(cluster)?;
        let router = cluster.start_router(&cluster.config().service(echo(cluster)))?;
        let mut streams = connect_to_all(cluster)?;
        let drained = cluster.endpoint(1, PORT);
        let said = router.rvs(&format!("drain {} {drained}", vip(PORT))).run()?;
        ensure!(said.contains("state enabled -> drained") && said.contains("rvs save"), "{said}");
        let server = of(&router, drained)?;
        ensure!((server.state.as_str(), server.effective_weight) == ("drained", 0), "{server:?}");
        for _ in 0..6 {
            ensure!(connect(cluster)?.1 != 1);
        }
        streams.iter_mut().try_for_each(|stream| client::echo(stream, b"still here"))?;
        router.rvs(&format!("undrain {} {drained}", vip(PORT))).run()?;
        let again = (0..3).map(|_| connect(cluster)).collect::<Result<Vec<_>>>()?;
        ensure!(again.iter().any(|(_, server)| *server == 1));
        router.finish()
    })
}

#[test]
fn at_its_deadline_a_drained_server_is_disabled() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers = start_echo(cluster)?;
        let router = cluster.start_router(&cluster.config().service(echo(cluster)))?;
        let mut streams = connect_to_all(cluster)?;
        let drained = cluster.endpoint(1, PORT);
        router.rvs(&format!("drain {} {drained} --deadline 1s", vip(PORT))).run()?;
        wait::until("the deadline passes", PATIENCE, || {
            ensure!(of(&router, drained)?.state == "disabled");
            Ok(())
        })?;
        assert_reset(&mut streams[1])?;
        client::echo(&mut streams[0], b"still here")?;
        client::echo(&mut streams[2], b"still here")?;
        router.finish()
    })
}

#[test]
fn a_removed_servers_connections_go_on_are_reset_or_are_forgotten() -> Result<()> {
    for how in ["drain", "reset", "drop"] {
        with_cluster(Layout::TwoArmed, |cluster| {
            let _servers = start_echo(cluster)?;
            let service = echo(cluster).setting(&format!("on_remove = {how:?}"));
            let mut config = cluster.config().service(service);
            let router = cluster.start_router(&config)?;
            let mut streams = connect_to_all(cluster)?;
            let removed = config.services[0].servers.remove(1);
            router.apply(&config)?;
            let state = of(&router, removed.address).map(|server| server.state).ok();
            ensure!(state.as_deref() == (how != "drop").then_some("leaving"), "{how}: {state:?}");
            match how {
                "drain" => client::echo(&mut streams[1], b"still here")?,
                _ => assert_reset(&mut streams[1]).context(how)?,
            }
            // Of a reset the server hears, too.
            let left = if how == "reset" { 0 } else { 1 };
            wait::until("the server has heard of it", PATIENCE, || {
                ensure!(established(cluster, 1)? == left, "{how}");
                Ok(())
            })?;
            client::echo(&mut streams[0], b"still here")?;
            client::echo(&mut streams[2], b"still here")?;
            if how == "drain" {
                client::close(streams.remove(1))?;
            }
            router.finish()
        })?;
    }
    Ok(())
}

#[test]
fn live_changes_outlive_a_reload_are_shown_and_saved() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let mut config = cluster.config().service(cluster.web().scheduler("wrr"));
        let router = cluster.start_router(&config)?;
        let server = |index| cluster.endpoint(index, cluster.layout().http_port());
        router.rvs(&format!("weight {} {} 3", vip(80), server(0))).run()?;
        router.rvs(&format!("remove server {} {}", vip(80), server(2))).run()?;
        let expected = format!(
            "~ server tcp/{0} {1} weight 1 -> 3\n- server tcp/{0} {2}\n",
            vip(80),
            server(0),
            server(2)
        );
        ensure!(router.rvs("diff").run()? == expected);
        ensure!(client::get(&cluster.client, vip(80), 40)?.counts()? == [30, 10, 0]);

        // A reload that says nothing of them leaves them alone; a dry one changes nothing at all.
        config.services[0].scheduler = "rr".to_owned();
        router.write(&config)?;
        let said = router.rvs("reload --dry-run").run()?;
        ensure!(said == format!("~ service tcp/{} scheduler wrr -> rr\nwould change 1 thing\n", vip(80)));
        ensure!(router.service()?.scheduler == "wrr");
        // The file was edited: it is not overwritten.
        let refused = router.rvs("save").output()?;
        ensure!(refused.stderr.contains("has been edited since it was read"), "{refused:?}");
        router.apply(&config)?;
        ensure!(router.service()?.scheduler == "rr");
        ensure!(router.rvs("diff").run()? == expected);

        let said = router.rvs("save").run()?;
        ensure!(said.starts_with(&expected) && said.ends_with("2 changes written\n"), "{said}");
        ensure!(router.rvs("diff").run()?.is_empty());
        ensure!(router.rvs("reload --dry-run").run()? == "would change 0 things\n");
        // Whoever edits the file has the last word.
        router.rvs(&format!("weight {} {} 9", vip(80), server(1))).run()?;
        config.services[0].servers.remove(2);
        config.set_weight(0, 3);
        config.set_weight(1, 5);
        router.write(&config)?;
        let said = router.rvs("reload").run()?;
        ensure!(said.contains(&format!("! server tcp/{} {}: ", vip(80), server(1))), "{said}");
        ensure!(of(&router, server(1))?.weight == 5);
        router.finish()
    })
}

#[test]
fn services_and_servers_come_and_go_without_the_file_and_connections_are_flushed() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers = start_echo(cluster)?;
        let _nginx = cluster.start_web()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        let service = format!("tcp/{}", vip(PORT));
        let (first, second) = (cluster.endpoint(0, PORT), cluster.endpoint(1, PORT));
        router.rvs(&format!("add service {service} --mode nat --scheduler rr --server {first}")).run()?;
        router.rvs(&format!("add server {service} {second}")).run()?;
        let refused = router.rvs(&format!("add server {service} {second}")).output()?;
        ensure!(refused.stderr.contains(&format!("has a server {second}")), "{refused:?}");
        wait::until("both servers are reached", PATIENCE, || {
            let mut names = [connect(cluster)?.1, connect(cluster)?.1];
            names.sort();
            ensure!(names == [0, 1]);
            Ok(())
        })?;

        let (mut stream, _) = connect(cluster)?;
        let flushed = router.rvs(&format!("flush --service {service}")).run()?;
        ensure!(flushed.starts_with("forgot ") && !flushed.starts_with("forgot 0"), "{flushed}");
        assert_reset(&mut stream)?;
        let said = router.rvs("save").run()?;
        ensure!(said.contains(&format!("+ service {service} nat rr")), "{said}");
        router.rvs(&format!("remove service {service}")).run()?;
        ensure!(router.rvs("diff").run()? == format!("- service {service}\n"));
        router.finish()
    })
}

#[test]
fn the_sorry_server_serves_while_there_is_no_quorum() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut nginx = cluster.start_web()?;
        let mut web = cluster.web().scheduler("rr").checked().setting("quorum = 2");
        let sorry = web.servers.pop().context("three servers")?;
        let web = web.setting(&format!("sorry_server = \"{}\"", sorry.address));
        let router = cluster.start_router(&cluster.config().service(web))?;
        ensure!(client::get(&cluster.client, vip(80), 20)?.counts()? == [10, 10, 0]);
        nginx[0].kill()?;
        router.wait_up(0, false)?;
        ensure!(client::get(&cluster.client, vip(80), 20)?.counts()? == [0, 0, 20]);
        ensure!(router.log().contains("quorum lost"), "{}", router.log());
        nginx[0].start_again()?;
        router.wait_up(0, true)?;
        ensure!(client::get(&cluster.client, vip(80), 20)?.counts()? == [10, 10, 0]);
        ensure!(router.log().contains("quorum gained"), "{}", router.log());
        router.finish()
    })
}

/// As a client that is killed while it asks.
#[test]
fn a_client_that_breaks_off_at_any_byte_changes_nothing() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let config = cluster.config().service(cluster.web());
        let router = cluster.start_router(&config)?;
        // If one of these did something, it would be seen.
        router.write(&cluster.config())?;
        let address = cluster.endpoint(0, cluster.layout().http_port());
        let body = "{\"weight\": 7}";
        let requests = [
            "POST /v1/reload HTTP/1.1\r\nhost: rvs\r\ncontent-length: 0\r\n\r\n".to_owned(),
            format!(
                "PATCH /v1/services/tcp/{}/servers/{address} HTTP/1.1\r\nhost: rvs\r\ncontent-length: {}\r\n\r\n{body}",
                vip(80),
                body.len()
            ),
        ];
        for request in &requests {
            for end in 0..request.len() {
                let mut stream = UnixStream::connect(&config.socket)?;
                stream.write_all(&request.as_bytes()[..end])?;
            }
        }
        let service = router.service()?;
        ensure!(service.servers.len() == 3 && service.servers.iter().all(|server| server.weight == 1));
        ensure!(fs::metadata(&config.socket).is_ok() && router.counters().is_ok());
        // The whole of it does what it says.
        let mut stream = UnixStream::connect(&config.socket)?;
        stream.write_all(requests[1].as_bytes())?;
        wait::until("the weight has changed", PATIENCE, || {
            ensure!(of(&router, address)?.weight == 7);
            Ok(())
        })?;
        router.finish()
    })
}
