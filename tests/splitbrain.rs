//! Two NAT routers that do not hear each other, so that both are active: they agree again when they do.

use std::{
    collections::BTreeMap,
    net::{SocketAddrV4, TcpStream},
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    crowd,
    packet::show_mac,
    pair::{GATEWAY, Pair, end, macs, wait_live},
    peers::{WIRE, wait_established, wait_together},
    router::Router,
    wait::{self, PATIENCE},
    with_cluster,
};
use serde_json::Value;

/// How long both routers are active.
const SPLIT: Duration = Duration::from_secs(10);
/// Within which both know the same again: a healing pass, and room.
const HEALING: Duration = Duration::from_secs(75);

/// Between both routers, everywhere: VRRP, and what they tell each other of connections.
fn cut(cluster: &Cluster, pair: &Pair) -> Result<()> {
    let chain = |port: &str, what: &str| {
        format!("chain {port} {{ type filter hook ingress device \"{port}\" priority 0; {what} drop; }}\n")
    };
    let segments: String =
        ["wan", "wan2", "router", "router2"].iter().map(|port| chain(port, "ip protocol 112")).collect();
    cluster.lan.nft(&format!("table netdev cut {{\n{segments}}}\n"))?;
    let wire = format!("table netdev cut {{\n{}}}\n", chain(WIRE, "udp dport 8848"));
    pair.namespaces.iter().try_for_each(|router| router.nft(&wire))
}

fn mend(cluster: &Cluster, pair: &Pair) -> Result<()> {
    let mut all = pair.namespaces.iter().chain([&cluster.lan]);
    all.try_for_each(|namespace| namespace.nft("delete table netdev cut\n"))
}

/// Client and real servers believe that this router has the floating addresses, whatever ARP says.
fn believe(cluster: &Cluster, index: usize) -> Result<()> {
    let [wan, lan] = macs(index).map(show_mac);
    cluster.client.ip(&format!("neighbour replace {VIP} lladdr {wan} dev eth0 nud permanent"))?;
    let command = format!("neighbour replace {GATEWAY} lladdr {lan} dev eth0 nud permanent");
    cluster.real_servers.iter().try_for_each(|server| server.ip(&command))
}

/// Client and real servers ask who has the floating addresses.
fn ask_again(cluster: &Cluster) -> Result<()> {
    cluster.client.ip(&format!("neighbour del {VIP} dev eth0"))?;
    let command = format!("neighbour del {GATEWAY} dev eth0");
    cluster.real_servers.iter().try_for_each(|server| server.ip(&command))
}

/// Opens connections from these ports, each of which has been answered.
fn open(cluster: &Cluster, ports: Range<u16>) -> Result<Vec<TcpStream>> {
    let open = |port| {
        let socket = client::bound(SocketAddrV4::new(CLIENT, port))?;
        socket.connect(&vip(80).into()).with_context(|| format!("from port {port}"))?;
        let mut stream = TcpStream::from(socket);
        client::echo(&mut stream, b"first")?;
        Ok(stream)
    };
    cluster.client.enter(|| ports.map(open).collect())
}

/// Ends the client's side of connections, as a client that loses power does: nobody hears of it.
fn abandon(cluster: &Cluster, streams: Vec<TcpStream>) -> Result<()> {
    cluster.client.nft(
        "table inet abandon {\nchain out { type filter hook output priority 0; tcp flags & (fin | rst) != 0 drop; }\n}\n",
    )?;
    for stream in streams {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    cluster.client.nft("delete table inet abandon\n")
}

/// Server and state by the client's port.
type Known = BTreeMap<u16, [String; 2]>;

fn known(router: &Router) -> Result<Known> {
    let text = router.rvs("list -c --json").run()?;
    let mut known = Known::new();
    for line in text.lines() {
        let connection: Value = serde_json::from_str(line).context(line.to_owned())?;
        let client: SocketAddrV4 = connection["client"].as_str().context("a client")?.parse()?;
        let rest = ["server", "state"].map(|name| connection[name].to_string());
        ensure!(known.insert(client.port(), rest).is_none(), "twice: {line}");
    }
    Ok(known)
}

/// Waits until connections from these ports have not been seen for two seconds: nobody can take them for the fresher ones.
fn wait_old(router: &Router, ports: Range<u16>) -> Result<()> {
    wait::until("connections grow old", PATIENCE, || {
        let text = router.rvs("list -c --json").run()?;
        for line in text.lines() {
            let connection: Value = serde_json::from_str(line)?;
            let client: SocketAddrV4 = connection["client"].as_str().context("a client")?.parse()?;
            // They expire after 900 seconds.
            let is_old = connection["expires"].as_u64() < Some(898);
            ensure!(is_old || !ports.contains(&client.port()), "{line}");
        }
        Ok(())
    })
}

fn wait_event(router: &Router, text: &str) -> Result<()> {
    wait::until(&format!("it is said: {text}"), PATIENCE, || {
        let events = router.rvs("events").run()?;
        ensure!(events.contains(text), "{events}");
        Ok(())
    })
}

#[test]
fn two_routers_that_both_were_active_agree_again() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers = crowd::serve(cluster, 8080)?;
        let pair = Pair::new(cluster)?;
        let ([first, second], keepalived) = pair.start_both()?;
        let mut streams = open(cluster, 20_000..20_050)?;
        wait_established(&second, 50)?;
        // New connections go to one server of the first router, and to the two others of the second.
        first.rvs("drain tcp/192.0.2.10:80 10.0.0.12:8080").run()?;
        first.rvs("drain tcp/192.0.2.10:80 10.0.0.13:8080").run()?;
        second.rvs("drain tcp/192.0.2.10:80 10.0.0.11:8080").run()?;

        cut(cluster, &pair)?;
        wait_live(&second, 1)?;
        let began = Instant::now();
        wait::until("both are active", PATIENCE, || {
            ensure!(pair.holds(0)? && pair.holds(1)?);
            Ok(())
        })?;
        wait_event(&first, "192.0.2.10 is here, and 02:00:c0:00:02:02 has it as well")?;
        wait_event(&first, "peer 10.9.0.2:8848 is not heard any more")?;
        wait_event(&second, "peer 10.9.0.1:8848 is not heard any more")?;

        // Connections through either, and some that the two give to different servers: their clients lost power and came
        // back by the other router, and it is their second connection that counts.
        believe(cluster, 0)?;
        all_go_on(&mut streams)?;
        streams.extend(open(cluster, 20_050..20_070)?);
        abandon(cluster, open(cluster, 30_000..30_010)?)?;
        wait_old(&first, 30_000..30_010)?;
        believe(cluster, 1)?;
        streams.extend(open(cluster, 20_070..20_090)?);
        streams.extend(open(cluster, 30_000..30_010)?);
        abandon(cluster, open(cluster, 31_000..31_010)?)?;
        wait_old(&second, 31_000..31_010)?;
        believe(cluster, 0)?;
        streams.extend(open(cluster, 31_000..31_010)?);
        wait::until_true("both have been active for long", 2 * SPLIT, || began.elapsed() >= SPLIT)?;

        let (of_first, of_second) = (known(&first)?, known(&second)?);
        let mut expected: Known = of_first.clone().into_iter().chain(of_second.clone()).collect();
        for (port, theirs) in expected.iter_mut().filter(|(port, _)| **port >= 30_000) {
            let [ours, other] = [&of_first, &of_second].map(|known| known[port].clone());
            ensure!(ours != other, "{port} has the same server on both: {ours:?}");
            *theirs = if *port < 31_000 { other } else { ours };
        }
        ensure!(expected.len() == 110, "{expected:?}");

        // Everybody believes in the router that will give up.
        believe(cluster, 1)?;
        mend(cluster, &pair)?;
        let mended = Instant::now();
        pair.wait_active(0)?;
        wait_together(&first)?;
        wait_together(&second)?;
        wait::until("both know the same", HEALING, || {
            for router in [&first, &second] {
                let known = known(router)?;
                let odd: Vec<_> =
                    known.iter().filter(|(port, rest)| expected.get(*port) != Some(*rest)).collect();
                ensure!(
                    odd.is_empty() && known.len() == expected.len(),
                    "{} known, odd: {odd:?}",
                    known.len()
                );
            }
            Ok(())
        })?;
        println!("both knew the same {:?} after the cut was mended", mended.elapsed());
        // Who has not heard yet that it has given up loses nothing, nor does who hears it.
        all_go_on(&mut streams)?;
        ask_again(cluster)?;
        all_go_on(&mut streams)?;
        wait_event(&second, "192.0.2.10 is not here any more")?;
        wait_event(&first, "peer 10.9.0.2:8848 knows our connections")?;
        keepalived.into_iter().try_for_each(end)?;
        second.stop()?;
        first.stop()
    })
}

/// All say something and hear it.
fn all_go_on(streams: &mut [TcpStream]) -> Result<()> {
    for stream in streams {
        let from = stream.local_addr()?;
        client::echo(stream, b"still there").with_context(|| format!("connection from {from}"))?;
    }
    Ok(())
}
