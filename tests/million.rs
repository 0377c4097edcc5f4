//! A million connections: when their router dies, its peer knows each of them.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use harness::{
    cluster::{Cluster, Layout, VIP, vip},
    config::Config,
    flood::{self, Flood},
    netns::Namespace,
    pair::wait_live,
    peers::{self, ADDRESSES, established, wait_established, wait_together},
    router::Router,
    wait::{self, PATIENCE},
    with_cluster,
};

const PORT: u16 = 7;
const CONNECTIONS: u32 = 1_000_000;
/// Those that are being made while the router dies.
const MORE: u32 = 100_000;
/// What may be missing.
const MISSING: usize = CONNECTIONS as usize / 10_000;

/// Starts a router that has a peer, and follows whoever moves the virtual address.
fn start(cluster: &Cluster, namespace: &Namespace, index: usize, key: &str) -> Result<Router> {
    let mut config = cluster.config().service(cluster.web_on(PORT, PORT).scheduler("rr"));
    config.connections = u64::from(CONNECTIONS + MORE);
    config.ports[0].addresses = vec![format!("{}/24", Ipv4Addr::new(192, 0, 2, 1 + index as u8))];
    config.socket += &index.to_string();
    let text = text(&config, index, key);
    Router::start_in(namespace, ["lb1", "lb2"][index], &text, &config)
}

fn text(config: &Config, index: usize, key: &str) -> String {
    let peers = peers::section(ADDRESSES[index], ADDRESSES[1 - index], key);
    format!("{config}\n[run]\nvirtual_addresses = \"follow\"\n{peers}")
}

/// The established connections, by number: which server each has.
fn listing(router: &Router) -> Result<Vec<Option<SocketAddrV4>>> {
    let text = router.rvs("list -c").run()?;
    let mut servers = vec![None; (CONNECTIONS + MORE) as usize];
    for line in text.lines().filter(|line| line.contains(" ESTABLISHED ")) {
        // TCP 14:57  ESTABLISHED CLIENT VIRTUAL SERVER
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, _, client, _, server] = words[..] else { anyhow::bail!("{line}") };
        let number = flood::number(client.parse()?).with_context(|| line.to_owned())?;
        let place = servers.get_mut(number as usize).with_context(|| format!("nobody's: {line}"))?;
        ensure!(place.replace(server.parse()?).is_none(), "twice: {line}");
    }
    Ok(servers)
}

#[test]
fn a_million_connections_are_known_to_the_peer_when_their_router_dies() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let beside = cluster.second_router(2)?;
        peers::wire([&cluster.router, &beside])?;
        let key = peers::key(cluster.state(), "sync.key", "0123456789abcdef")?;
        let first = start(cluster, &cluster.router, 0, &key)?;
        let second = start(cluster, &beside, 1, &key)?;
        wait_together(&first)?;
        wait_together(&second)?;
        cluster.router.ip(&format!("address add {VIP}/32 dev wan"))?;
        wait_live(&first, 1)?;

        let began = Instant::now();
        let mut flood = Flood::open(cluster, vip(PORT))?;
        let lost = flood.establish(0..CONNECTIONS)?;
        println!("{CONNECTIONS} established after {:?}", began.elapsed());
        wait_established(&first, CONNECTIONS.into()).with_context(|| format!("frames lost {lost}"))?;
        let began = Instant::now();
        wait_established(&second, CONNECTIONS.into())?;
        println!("the peer knows them {:?} later", began.elapsed());
        let of_first = listing(&first)?;
        println!("listed after {:?}", began.elapsed());

        // It dies while more are coming.
        std::thread::scope(|scope| {
            let more = scope.spawn(|| flood.establish(CONNECTIONS..CONNECTIONS + MORE));
            wait::until("some more have come", PATIENCE, || {
                ensure!(established(&first)? > u64::from(CONNECTIONS), "none");
                Ok(())
            })?;
            first.kill()?;
            more.join().expect("it does not panic")
        })?;

        let began = Instant::now();
        let of_second = listing(&second)?;
        println!("listed in {:?}", began.elapsed());
        let pairs = of_first.iter().zip(&of_second).take(CONNECTIONS as usize);
        let missing = pairs.filter(|(ours, theirs)| ours != theirs).count();
        let more = of_second.iter().skip(CONNECTIONS as usize).flatten().count();
        println!("missing or other: {missing} of {CONNECTIONS}; of those that were coming {more} are known");
        ensure!(missing <= MISSING, "{missing}");
        // A router that returns learns them all: how long the bulk takes.
        let began = Instant::now();
        let first = start(cluster, &cluster.router, 0, &key)?;
        wait_together(&first)?;
        println!("a router that returns is together with its peer after {:?}", began.elapsed());
        let (ours, theirs) = (established(&first)?, established(&second)?);
        ensure!(ours == theirs, "{ours} and {theirs}");
        first.stop()?;
        second.stop()
    })
}
