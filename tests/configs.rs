//! Every file in `configs/` is checked; those that need no hardware are run, and do what they are for.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    netns::Namespace,
    process::Command,
    router::{self, Router},
    servers::Server,
    state::State,
    with_cluster,
};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

#[test]
fn every_file_is_checked() -> Result<()> {
    if !harness::privileged()? {
        return Ok(());
    }
    let state = State::unique()?;
    let mut seen = BTreeSet::new();
    let files = |directory: PathBuf| {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()
    };
    // Directories are for what other programs read.
    let examples: Vec<PathBuf> = files(directory())?.into_iter().filter(|path| path.is_file()).collect();
    let odd = examples.iter().find(|path| path.extension().is_none_or(|extension| extension != "toml"));
    ensure!(odd.is_none(), "{odd:?} is no example");
    let pktgen = files(directory().join("../perf/pktgen"))?;
    let routers =
        pktgen.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let dual_stack = [directory().join("ipv6/rvs.toml")];
    for path in examples.into_iter().chain(routers).chain(dual_stack) {
        let output =
            Command::new(&state, router::program()?).words("check --no-machine -c").arg(&path).run()?;
        ensure!(output.contains(": ok ("), "{output}");
        seen.insert(path.file_name().context("a name")?.to_string_lossy().into_owned());
    }
    for expected in [
        "nat.toml",
        "dr.toml",
        "tunnel.toml",
        "fullnat.toml",
        "snat.toml",
        "af_packet.toml",
        "af_xdp.toml",
        "dns.toml",
        "marks.toml",
        "from-lvs.toml",
        "rvs.toml",
        "rvs-dr.toml",
    ] {
        ensure!(seen.contains(expected), "{expected} is missing: {seen:?}");
    }
    state.remove()
}

#[test]
fn the_routers_of_a_pair_differ_in_what_is_their_own_only() -> Result<()> {
    // What else is in these files `pair.rs` shows.
    for (name, own) in [
        ("rvs-*.toml", &["listen", "peers", "addresses", "addresses"][..]),
        ("keepalived-*.conf", &["router_id", "priority", "priority"][..]),
    ] {
        let read = |number| fs::read_to_string(directory().join("pair").join(name.replace('*', number)));
        let (first, second) = (read("1")?, read("2")?);
        ensure!(first.lines().count() == second.lines().count(), "{name}");
        // After the first line, which says which one it is.
        let differing = first.lines().zip(second.lines()).skip(1).filter(|(ours, theirs)| ours != theirs);
        let keys: Vec<&str> =
            differing.filter_map(|(line, _)| line.split_ascii_whitespace().next()).collect();
        ensure!(keys == own, "{name}: {keys:?}");
    }
    Ok(())
}

/// Runs an example as it is, but for the socket, and the core if there is only one.
fn start(cluster: &Cluster, name: &str) -> Result<Router> {
    let socket = cluster.config().socket;
    let mut text = fs::read_to_string(directory().join(name))?;
    text = match text.contains("socket = \"/run/rvs/rvs.sock\"") {
        true => text.replace("/run/rvs/rvs.sock", &socket),
        false => format!("{text}\n[admin]\nsocket = {socket:?}\n"),
    };
    if !harness::cores().contains(&1) {
        text = text.replace("cores = [1]", "cores = [0]");
    }
    Router::start_text(cluster, &text, &cluster.config())
}

#[test]
fn af_packet_runs() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = start(cluster, "af_packet.toml")?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        router.finish()
    })
}

#[test]
fn af_xdp_runs() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = start(cluster, "af_xdp.toml")?;
        let answers = client::get(&cluster.client, vip(80), 30)?;
        ensure!(answers.counts()?.iter().sum::<u64>() == 30, "{answers:?}");
        router.finish()
    })
}

#[test]
fn dns_runs() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut servers = Vec::new();
        for (index, namespace) in cluster.real_servers.iter().enumerate() {
            let address = cluster.endpoint(index, 53);
            servers.push(Server::dns(namespace, address, &format!("rs{}", index + 1))?);
            servers.push(Server::tcp_echo(namespace, address, "")?);
        }
        let router = start(cluster, "dns.toml")?;
        let names: BTreeSet<String> =
            (6000..6006).map(|port| client::dig(&cluster.client, port, vip(53))).collect::<Result<_>>()?;
        ensure!(names.len() == 3, "{names:?}");
        let mut stream = client::connect(&cluster.client, vip(53))?;
        client::echo(&mut stream, b"over tcp")?;
        client::close(stream)?;
        router.finish()
    })
}

#[test]
fn marks_runs() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut servers = Vec::new();
        for (index, (namespace, name)) in cluster.real_servers.iter().zip(["rs1", "rs2", "rs3"]).enumerate() {
            for port in [80, 443] {
                servers.push(Server::tcp_echo(namespace, cluster.endpoint(index, port), name)?);
            }
            servers.push(Server::udp_name(namespace, cluster.endpoint(index, 443), name)?);
        }
        let router = start(cluster, "marks.toml")?;
        router.wait_for_macs(CLIENT.into(), vip(443).into(), "tcp")?;
        let ask = |client: &Namespace, address: IpAddr, to: SocketAddr| -> Result<String> {
            let (stream, name) = client::named(client, SocketAddr::new(address, 0), to)?;
            client::close(stream)?;
            Ok(name)
        };
        let names = [("192.0.2.10", 80), ("192.0.2.11", 443), ("192.0.2.10", 443)].map(|(address, port)| {
            ask(&cluster.client, CLIENT.into(), SocketAddr::new(address.parse()?, port))
        });
        let names = names.into_iter().collect::<Result<BTreeSet<String>>>()?;
        ensure!(names.len() == 1, "one server for all of it: {names:?}");
        let inside = &cluster.real_servers[0];
        ask(inside, (*cluster.endpoint(0, 0).ip()).into(), vip(443).into())?;
        let list = router.list()?;
        ensure!(list.contains("FWM  10 wlc persistent 300") && list.contains("FWM  20 maglev"), "{list}");
        router.finish()
    })
}
