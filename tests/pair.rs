//! Two routers and keepalived: when one is killed the other goes on, with all connections.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout, VIP, vip},
    config::Config,
    netns::Namespace,
    peers::{self, wait_together},
    process::Daemon,
    router::{Router, program},
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};
use nix::sys::signal::Signal;

/// As tests with counted connections need it: of no other service.
const PORT: u16 = 7;
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
const NAMES: [&str; 2] = ["lb1", "lb2"];

/// Two routers on one segment, by direct routing.
struct Pair {
    namespaces: [Namespace; 2],
    configs: [Config; 2],
    key: String,
}

impl Pair {
    fn new(cluster: &Cluster) -> Result<Pair> {
        let second = cluster.second_router(ADDRESSES[1])?;
        let key = peers::key(cluster.state(), "sync.key", "0123456789abcdef")?;
        let config = cluster.config().service(cluster.web_on(PORT, PORT).scheduler("rr"));
        let mut other = config.clone();
        other.socket += ".second";
        other.ports[0].address = format!("{}/24", ADDRESSES[1]);
        Ok(Pair { namespaces: [cluster.router.clone(), second], configs: [config, other], key })
    }

    fn start(&self, index: usize) -> Result<Router> {
        let (own, peer) = (ADDRESSES[index], ADDRESSES[1 - index]);
        let text = format!(
            "{}\n[run]\nvirtual_addresses = \"follow\"\n{}",
            self.configs[index],
            peers::section(own, peer, &self.key)
        );
        Router::start_in(&self.namespaces[index], NAMES[index], &text, &self.configs[index])
    }

    /// Real keepalived, which gives the virtual address to one that is ready.
    fn start_keepalived(&self, index: usize) -> Result<Daemon> {
        let (namespace, name) = (&self.namespaces[index], format!("keepalived-{}", NAMES[index]));
        let state = namespace.state();
        let file = state.file(&format!("{name}.conf"));
        let socket = &self.configs[index].socket;
        let (rvs, priority) = (program()?, 150 - 50 * index);
        fs::write(
            &file,
            format!(
                "global_defs {{
                     router_id {name}
                     vrrp_version 3
                     script_user root
                     enable_script_security
                 }}
                 vrrp_script ready {{
                     script \"{} sync --ready -s {socket}\"
                     interval 1
                     rise 1
                     fall 1
                 }}
                 vrrp_instance wan {{
                     state BACKUP
                     nopreempt
                     interface wan
                     virtual_router_id 10
                     priority {priority}
                     advert_int 0.2
                     virtual_ipaddress {{ {VIP}/32 dev wan }}
                     track_script {{ ready }}
                 }}\n",
                rvs.display()
            ),
        )?;
        let pid = |what: &str| state.file(&format!("{name}.{what}.pid"));
        let command =
            namespace.command("keepalived").words("--dont-fork --log-console --log-detail --vrrp -f");
        let command = command.arg(&file).arg("-p").arg(pid("main")).arg("-r").arg(pid("vrrp"));
        command.spawn(&name)
    }
}

fn end(mut keepalived: Daemon) -> Result<()> {
    keepalived.signal(Signal::SIGTERM)?;
    keepalived.wait(PATIENCE).map(drop)
}

fn wait_live(router: &Router, times: usize) -> Result<()> {
    wait::until("the virtual address is there", PATIENCE, || {
        let events = router.rvs("events").run()?;
        let gained = events.matches(&format!("{VIP} is here: its services are live")).count();
        ensure!(gained == times, "{events}");
        Ok(())
    })
}

fn holds(namespace: &Namespace) -> Result<bool> {
    Ok(namespace.addresses("wan")?.contains(&format!("{VIP}/32")))
}

fn established(router: &Router) -> Result<usize> {
    Ok(router.rvs("list -c --json").run()?.lines().filter(|line| line.contains("ESTABLISHED")).count())
}

fn wait_established(router: &Router, count: usize) -> Result<()> {
    wait::until("all connections are known", PATIENCE, || {
        let known = established(router)?;
        ensure!(known == count, "{known} of {count}");
        Ok(())
    })
}

/// All say something and hear it; how long until the last has.
fn all_go_on(streams: &mut [TcpStream], word: &[u8]) -> Result<Duration> {
    let began = Instant::now();
    for (number, stream) in streams.iter_mut().enumerate() {
        client::echo(stream, word)
            .with_context(|| format!("connection {number} of {}", word.escape_ascii()))?;
    }
    Ok(began.elapsed())
}

#[test]
fn a_killed_router_is_followed_by_its_peer_with_every_connection() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let servers = cluster.real_servers.iter();
        let _echo: Vec<Server> =
            servers.map(|server| Server::tcp_echo(server, vip(PORT), "")).collect::<Result<_>>()?;
        let pair = Pair::new(cluster)?;
        let (first, second) = (pair.start(0)?, pair.start(1)?);
        wait_together(&first)?;
        wait_together(&second)?;
        let keepalived = [pair.start_keepalived(0)?, pair.start_keepalived(1)?];
        wait_live(&first, 1)?;
        ensure!(!holds(&pair.namespaces[1])?, "both hold the virtual address");

        let connect = |_| client::connect(&cluster.client, vip(PORT));
        let mut streams = (0..100).map(connect).collect::<Result<Vec<_>>>()?;
        all_go_on(&mut streams, b"before")?;
        wait_established(&second, 100)?;

        first.kill()?;
        let gap = all_go_on(&mut streams, b"by the second")?;
        println!("the first was killed: all 100 connections went on after {gap:?}");
        wait_live(&second, 1)?;

        // It returns, learns, and does not take the address back. With its twin went keepalived, as systemd has it with
        // `BindsTo=rvs.service`: 2.2.7 says that it is back on a twin that is made anew, and hears nothing there.
        let [of_first, of_second] = keepalived;
        end(of_first)?;
        let first = pair.start(0)?;
        let of_first = pair.start_keepalived(0)?;
        wait_together(&first)?;
        wait_established(&first, 100)?;
        ensure!(holds(&pair.namespaces[1])? && !holds(&pair.namespaces[0])?, "nopreempt");
        all_go_on(&mut streams, b"still by the second")?;

        // Taken out of service the orderly way.
        end(of_second)?;
        wait_live(&first, 1)?;
        let gap = all_go_on(&mut streams, b"by the first again")?;
        println!("the second gave the address away: all went on after {gap:?}");
        end(of_first)?;
        second.stop()?;
        first.stop()
    })
}
