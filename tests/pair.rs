//! Two NAT routers and keepalived, by `configs/pair`: when one is killed the other goes on, with all connections.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    capture::Capture,
    client,
    cluster::{CLIENT, Layout, VIP, vip},
    crowd::{self, Crowd, Toll},
    packet::{Frame, Mac},
    pair::{GATEWAY, Pair, end, macs, wait_live},
    peers::{wait_established, wait_together},
    router::Router,
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};

const CONNECTIONS: u16 = 10_000;

/// Asserted, with room for a machine that is busy with other things. What is promised is a second with an advert each 0.2 s:
/// `RVS_ADVERT_INT=0.2` shows it.
const LONGEST_GAP: Duration = Duration::from_secs(15);

/// What everybody on a segment is told: that this address has this MAC now.
fn is_gratuitous(frame: &Frame, address: Ipv4Addr, mac: Mac) -> bool {
    let broadcast = frame.destination_mac() == [0xff; 6] && frame.source_mac() == mac;
    broadcast
        && frame.arp().is_some_and(|arp| (arp.sender, arp.target, arp.sender_mac) == (address, address, mac))
}

fn check(what: &str, toll: &Toll) -> Result<()> {
    println!(
        "{what}: {} of {CONNECTIONS} went on; nobody heard anything for {:?}",
        toll.went_on, toll.silence
    );
    ensure!(toll.silence < LONGEST_GAP, "{what}: {toll:?}");
    Ok(())
}

#[test]
fn ten_thousand_nat_connections_outlive_their_router() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers = crowd::serve(cluster, 8080)?;
        let pair = Pair::new(cluster)?;
        let ([first, second], [of_first, of_second]) = pair.start_both()?;

        let crowd = Crowd::connect(&cluster.client, CLIENT, 20_000..20_000 + CONNECTIONS, vip(80))?;
        wait_established(&second, CONNECTIONS.into())?;
        // What is promised is promised of connections that are a second old.
        thread::sleep(Duration::from_secs(1));
        crowd.mark();
        check("in peace", &crowd.go_on()?)?;

        let (wan, lan) = (
            Capture::start(&cluster.client, "eth0", "arp")?,
            Capture::start(&cluster.lan, "router2", "arp")?,
        );
        crowd.mark();
        first.kill()?;
        check("the first was killed", &crowd.go_on()?)?;
        wait_live(&second, 1)?;
        // keepalived speaks on the twins, and everybody hears it.
        let [wan_mac, lan_mac] = macs(1);
        for (capture, address, mac) in [(wan, VIP, wan_mac), (lan, GATEWAY, lan_mac)] {
            capture.finish(&format!("gratuitous ARP of {address}"), |frames| {
                frames.iter().any(|frame| is_gratuitous(frame, address, mac))
            })?;
        }

        // It returns, learns, and does not take the addresses back. With its twins went keepalived, as systemd has it with
        // `BindsTo=rvs.service`: 2.2.7 says that it is back on a twin that is made anew, and hears nothing there.
        end(of_first)?;
        let first = pair.start(0)?;
        let of_first = pair.start_keepalived(0)?;
        wait_together(&first)?;
        wait_established(&first, CONNECTIONS.into())?;
        crowd.mark();
        check("the first has returned", &crowd.go_on()?)?;
        pair.wait_active(1).context("nopreempt")?;

        // Taken out of service the orderly way.
        crowd.mark();
        end(of_second)?;
        wait_live(&first, 1)?;
        check("the second gave the addresses away", &crowd.go_on()?)?;
        drop(crowd);
        end(of_first)?;
        second.stop()?;
        first.stop()
    })
}

/// From where real servers' own connections leave.
const POOL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);

/// Waits until a router knows of so many mappings of source NAT.
fn wait_mappings(router: &Router, count: usize) -> Result<()> {
    wait::until("all mappings are known", PATIENCE, || {
        let list = router.rvs("list --snat").run()?;
        ensure!(list.contains(&format!(": {count} of 65536 mappings")), "{list}");
        Ok(())
    })
}

#[test]
fn what_real_servers_have_begun_outlives_its_router() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let pair = Pair::new(cluster)?.with_pool(POOL);
        let ([first, second], [of_first, of_second]) = pair.start_both()?;
        let outside = SocketAddrV4::new(CLIENT, 7000);
        let _tcp = Server::tcp_echo(&cluster.client, outside, "")?;
        let connect = |count: usize| -> Result<Vec<TcpStream>> {
            let servers = cluster.real_servers.iter().cycle().take(count);
            let connect = |server| {
                let stream = client::connect(server, outside)?;
                // A backup takes over after some seconds, and TCP asks ever more seldom.
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(stream)
            };
            servers.map(connect).collect()
        };
        let all_go_on = |streams: &mut [TcpStream], word: &str| {
            let mut streams = streams.iter_mut().enumerate();
            streams.try_for_each(|(number, stream)| {
                client::echo(stream, format!("{word} {number}").as_bytes())
                    .with_context(|| format!("connection {number}, {word}"))
            })
        };
        let mut streams = connect(12)?;
        all_go_on(&mut streams, "by the first")?;
        wait_mappings(&second, 12)?;

        first.kill()?;
        all_go_on(&mut streams, "by the second")?;
        pair.wait_active(1)?;
        streams.extend(connect(12)?);
        all_go_on(&mut streams, "with others")?;
        end(of_first)?;
        let first = pair.start(0)?;
        wait_together(&first)?;
        wait_mappings(&first, 24)?;
        let of_first = pair.start_keepalived(0)?;
        end(of_second)?;
        all_go_on(&mut streams, "by the first again")?;
        pair.wait_active(0)?;
        end(of_first)?;
        second.stop()?;
        first.stop()
    })
}
