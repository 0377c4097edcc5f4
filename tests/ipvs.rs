//! Coming from LVS: connections that go from a director of Linux to RVS and back, by the sync protocol of IPVS.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    config::Config,
    ipvs::{Director, THEIRS, WIRE, section, status, wait_count},
    router::{self, Router},
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};
use serde_json::{Value, json};

/// As tests with counted connections need it: of no other service.
const PORT: u16 = 7;

/// TCP states of IPVS.
const ESTABLISHED: u64 = 1;
const TIME_WAIT: u64 = 5;

fn config(cluster: &Cluster) -> Config {
    cluster.config().service(cluster.web_on(PORT, PORT).scheduler("rr"))
}

fn echo(cluster: &Cluster) -> Result<Vec<Server>> {
    let servers = cluster.real_servers.iter().enumerate();
    servers.map(|(index, server)| Server::tcp_echo(server, cluster.endpoint(index, PORT), "")).collect()
}

/// A connection of the client from this port.
fn connect(cluster: &Cluster, port: u16) -> Result<TcpStream> {
    cluster.client.enter(|| {
        let socket = client::bound(SocketAddrV4::new(CLIENT, port))?;
        socket.connect(&vip(PORT).into()).with_context(|| format!("from port {port}"))?;
        Ok(socket.into())
    })
}

/// An entry of IPVS' table by NAT, as a director tells of it.
fn entry(client: u16, server: SocketAddrV4) -> Value {
    json!({ "client": format!("{CLIENT}:{client}"), "service": vip(PORT).to_string(), "server": server.to_string() })
}

fn message(syncid: u8, connections: &[Value]) -> Value {
    json!({ "syncid": syncid, "connections": connections })
}

/// The client's port of each connection, with its server and its state.
fn connections(router: &Router) -> Result<BTreeMap<String, [String; 2]>> {
    let text = router.rvs("list -c --json").run()?;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let connection: Value = serde_json::from_str(line).context(line.to_owned())?;
        let [client, server, state] = ["client", "server", "state"]
            .map(|name| connection[name].as_str().unwrap_or_default().to_owned());
        found.insert(client, [server, state]);
    }
    Ok(found)
}

/// A director by NAT of Linux' own, without IPVS: the gateway of the real servers has the virtual address, too. Which
/// server a connection gets is decided by the client's port.
struct LinuxNat;

impl LinuxNat {
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    /// Puts it beside the router, between the client and the real servers.
    fn start(cluster: &Cluster, director: &Director) -> Result<LinuxNat> {
        let (client, old, lan) = (&cluster.client, &director.namespace, &cluster.lan);
        let there = old.name();
        client.ip(&format!("link add eth1 type veth peer name wan netns {there}\nlink set eth1 up"))?;
        lan.ip(&format!(
            "link add old type veth peer name lan netns {there}\nlink set old up\nlink set old master br0"
        ))?;
        old.ip(&format!(
            "link set wan up\naddress add {VIP}/24 dev wan\nlink set lan up\naddress add {}/24 dev lan",
            LinuxNat::GATEWAY
        ))?;
        client.plain_wire("eth1")?;
        lan.plain_wire("old")?;
        old.plain_wire("wan")?;
        old.plain_wire("lan")?;
        old.sysctl("net/ipv4/ip_forward", 1)?;
        old.nft(&format!(
            "table ip director {{
                 chain pre {{
                     type nat hook prerouting priority dstnat
                     ip daddr {VIP} tcp dport {PORT} dnat to tcp sport map {{ \
                         40000-40009 : 10.0.0.11, 40010-40019 : 10.0.0.12, 40020-40029 : 10.0.0.13 }}
                 }}
             }}\n"
        ))?;
        client.ip(&format!("route add {VIP}/32 dev eth1 src {CLIENT}"))?;
        Ok(LinuxNat)
    }

    /// The virtual address and the gateway go to the router's twins, as by VRRP, whose gratuitous ARP tells the others.
    fn hand_over(self, cluster: &Cluster, director: &Director) -> Result<()> {
        director.namespace.ip("link set wan down\nlink set lan down")?;
        cluster.client.ip(&format!("route del {VIP}/32 dev eth1"))?;
        cluster
            .router
            .ip(&format!("address add {VIP}/32 dev wan\naddress add {}/24 dev lan", LinuxNat::GATEWAY))?;
        cluster.real_servers.iter().try_for_each(|server| server.ip("neigh flush dev eth0"))
    }
}

#[test]
fn connections_of_a_linux_director_go_on_when_rvs_has_its_addresses() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let servers = echo(cluster)?;
        let director = Director::beside(cluster)?;
        let old = LinuxNat::start(cluster, &director)?;
        let mut config = config(cluster);
        config.ports[1].addresses = vec!["10.0.0.2/24".to_owned()];
        let text = format!("{config}\n[run]\nvirtual_addresses = \"follow\"\n{}", section("backup", 5));
        let router = Router::start_text(cluster, &text, &config)?;
        ensure!(router.rvs("sync --ready").output()?.code() == Some(0), "there is nothing to wait for");

        let mut streams = (40000..40030).map(|port| connect(cluster, port)).collect::<Result<Vec<_>>>()?;
        for stream in &mut streams {
            client::echo(stream, b"by linux")?;
        }
        ensure!(connections(&router)?.is_empty(), "rvs has no part in it");

        let server = |index: usize| cluster.endpoint(index / 10, PORT);
        let told: Vec<Value> = (0..30).map(|index| entry(40000 + index as u16, server(index))).collect();
        let with = |key: &str, value: Value| {
            let mut entry = entry(1, server(0));
            entry[key] = value;
            entry
        };
        let of_no_use = [
            with("flags", json!(0x1000)),
            with("fwmark", json!(9)),
            json!({ "ipv6": true }),
            with("protocol", json!(132)),
            with("flags", json!(1)),
            with("state", json!(3)),
            with("service", json!(format!("{VIP}:8"))),
            with("server", json!("10.0.0.99:7")),
            // By direct routing, which is another server.
            with("flags", json!(3)),
        ];
        let options = with("options", json!("030373697002020102"));
        director.tell(&[
            message(5, &told[..20]),
            message(5, &[&of_no_use[..], &[options], &told[20..]].concat()),
            message(7, &told),
        ])?;
        wait_count(&router, "received", 3)?;
        let status = status(&router)?;
        let counts = ["malformed", "other_syncid", "connections_received", "fwmarks", "ipv6"];
        ensure!(counts.map(|name| status[name].as_u64()) == [0, 1, 40, 1, 1].map(Some), "{status:#}");
        ensure!(status["unsupported"] == 4 && status["unknown"] == 3, "{status:#}");
        ensure!(status["adopted"]["new"] == 31 && status["directors"] == json!([THEIRS]), "{status:#}");
        let known = connections(&router)?;
        ensure!(known.len() == 31, "{known:?}");
        for index in 0..30 {
            let expected = [server(index).to_string(), "ESTABLISHED".to_owned()];
            ensure!(known.get(&format!("{CLIENT}:{}", 40000 + index)) == Some(&expected), "{known:?}");
        }

        old.hand_over(cluster, &director)?;
        wait::until("the virtual address is there", PATIENCE, || {
            let events = router.rvs("events").run()?;
            ensure!(events.contains(&format!("{VIP} is here: its services are live")), "{events}");
            Ok(())
        })?;
        for (number, stream) in streams.iter_mut().enumerate() {
            client::echo(stream, b"by rvs").with_context(|| format!("connection {number}"))?;
        }
        let served: u64 = servers.iter().map(Server::served).sum();
        ensure!(served == 30, "{served}: nobody has connected anew");
        streams.into_iter().try_for_each(client::close)?;
        wait::until("it is said who was heard", PATIENCE, || {
            let text = router.rvs("events").run()?;
            let heard = format!("IPVS director {THEIRS} tells of its connections");
            ensure!(text.contains(&heard) && text.contains("its syncid is 7, not ours"), "{text}");
            Ok(())
        })?;
        let text = router.rvs("sync").run()?;
        ensure!(text.contains("Connections of directors: 40: 31 new"), "{text}");
        router.finish()
    })
}

#[test]
fn a_backup_hears_of_exactly_the_connections_that_there_are() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let director = Director::beside(cluster)?;
        let mut ears = director.hear()?;
        let config = config(cluster);
        let text = format!("{config}{}", section("master", 9));
        let router = Router::start_text(cluster, &text, &config)?;
        let mut streams = (41000..41006).map(|port| connect(cluster, port)).collect::<Result<Vec<_>>>()?;
        for stream in &mut streams {
            client::echo(stream, b"hello")?;
        }
        let known = connections(&router)?;
        let expected = |states: [(u64, u64); 6]| -> BTreeMap<String, Value> {
            let each = known.iter().zip(states).map(|((client, [server, _]), (state, flags))| {
                let told = json!({
                    "protocol": 6, "flags": flags, "state": state, "fwmark": 0, "client": client,
                    "service": vip(PORT).to_string(), "server": server,
                });
                (client.clone(), told)
            });
            each.collect()
        };
        let mut wait_for = |what: &str, expected: &BTreeMap<String, Value>, longest: u64| {
            wait::until(what, PATIENCE, || {
                let mut latest = BTreeMap::new();
                for message in ears.messages()? {
                    ensure!(message["syncid"] == 9, "{message}");
                    for told in message["connections"].as_array().into_iter().flatten() {
                        let mut told = told.clone();
                        let timeout = told.as_object_mut().and_then(|told| told.remove("timeout"));
                        let timeout = timeout.and_then(|timeout| timeout.as_u64());
                        latest
                            .insert(told["client"].as_str().unwrap_or_default().to_owned(), (told, timeout));
                    }
                }
                let (told, timeouts): (Vec<_>, Vec<_>) =
                    latest.into_iter().map(|(client, (told, timeout))| ((client, told), timeout)).unzip();
                let told: BTreeMap<String, Value> = told.into_iter().collect();
                ensure!(told == *expected, "{told:#?}\n{expected:#?}");
                // What is left of it, on a machine that may be slow.
                let is_possible =
                    |timeout: &Option<u64>| timeout.is_some_and(|timeout| 1 <= timeout && timeout <= longest);
                ensure!(timeouts.iter().all(is_possible), "{timeouts:?}");
                Ok(())
            })
        };
        wait_for("all are told of", &expected([(ESTABLISHED, 0); 6]), 900)?;
        // Another one's words are nothing to who only tells.
        director.tell(&[message(9, &[entry(1, cluster.endpoint(0, PORT))])])?;

        client::close(streams.remove(0))?;
        let mut states = [(ESTABLISHED, 0); 6];
        states[0] = (TIME_WAIT, 0x100);
        wait_for("its end is told of", &expected(states), 900)?;
        wait::until("it is counted", PATIENCE, || {
            let status = status(&router)?;
            ensure!(status["connections_sent"].as_u64() >= Some(7) && status["received"] == 0, "{status:#}");
            Ok(())
        })?;
        ensure!(connections(&router)?.len() == 6, "{:?}", connections(&router)?);
        router.finish()
    })
}

#[test]
fn rubbish_changes_nothing_and_is_counted() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let director = Director::beside(cluster)?;
        let config = config(cluster);
        let text = format!("{config}{}", section("both", 0));
        let router = Router::start_text(cluster, &text, &config)?;
        let good = message(1, &[entry(1, cluster.endpoint(0, PORT)), entry(2, cluster.endpoint(1, PORT))]);
        let cut = |length: usize| {
            let mut cut = good.clone();
            cut["cut"] = json!(length);
            cut
        };
        // Each shorter one, and options that contradict themselves.
        let mut messages: Vec<Value> = (0..8 + 2 * 36).map(cut).collect();
        for options in ["01", "0100", "02ff00", "010100"] {
            let mut wrong = entry(3, cluster.endpoint(2, PORT));
            wrong["options"] = json!(options);
            messages.push(message(1, &[entry(4, cluster.endpoint(0, PORT)), wrong]));
        }
        director.tell(&messages)?;
        let count = messages.len() as u64;
        wait_count(&router, "received", count)?;
        wait_count(&router, "malformed", count)?;
        let status = status(&router)?;
        ensure!(status["connections_received"] == 0 && status["directors"] == json!([]), "{status:#}");
        ensure!(connections(&router)?.is_empty(), "{:?}", connections(&router)?);
        // And it hears what is none.
        director.tell(&[good])?;
        wait_count(&router, "connections_received", 2)?;
        ensure!(connections(&router)?.len() == 2, "{:?}", connections(&router)?);
        router.finish()
    })
}

#[test]
fn two_routers_of_rvs_understand_each_other() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let director = Director::beside(cluster)?;
        let config = config(cluster);
        let mut other = config.clone();
        other.socket += ".backup";
        for (index, port) in other.ports.iter_mut().enumerate() {
            port.device = format!("net_null{index},no-rx=1");
        }
        let backup = format!("{other}{}", section("backup", 3));
        let backup = Router::start_in(&director.namespace, "rvs-backup", &backup, &other)?;
        let router = Router::start_text(cluster, &format!("{config}{}", section("master", 3)), &config)?;
        let mut streams = (42000..42010).map(|port| connect(cluster, port)).collect::<Result<Vec<_>>>()?;
        for stream in &mut streams {
            client::echo(stream, b"hello")?;
        }
        streams.drain(..3).try_for_each(client::close)?;
        wait::until("both know the same connections", PATIENCE, || {
            let (ours, theirs) = (connections(&router)?, connections(&backup)?);
            let over = ours.values().filter(|[_, state]| state == "TIME_WAIT").count();
            ensure!(ours.len() == 10 && over == 3 && ours == theirs, "{ours:?}\n{theirs:?}");
            Ok(())
        })?;
        backup.stop()?;
        router.finish()
    })
}

#[test]
fn an_interface_that_is_not_there_is_an_error_of_its_line() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let file = cluster.state().file("rvs.toml");
        let text = format!("{}{}", config(cluster), section("backup", 0));
        std::fs::write(&file, &text)?;
        let line =
            1 + text.lines().position(|line| line.starts_with("interface = ")).context("it is there")?;
        let refused = router::once(cluster, &format!("run -c {}", file.display()))?.output()?;
        let expected = format!("rvs.toml:{line}:13: ipvs_sync.interface: cannot reach directors on {WIRE}: ");
        ensure!(refused.code() == Some(2) && refused.stderr.contains(&expected), "{refused:?}");
        Ok(())
    })
}
