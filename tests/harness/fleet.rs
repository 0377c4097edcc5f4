//! Three routers behind one that spreads packets over them, as `configs/fleet` has it.
//!
//! ```text
//!   users ======== upstream ---+------ lb1 .1   lb2 .2   lb3 .3      BIRD on all but lb3, which has FRR
//!   198.51.100.100    .254     |
//!                              +------ rs1 .11  rs2 .12  rs3 .13     192.0.2.0/24
//! ```

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::unix::fs::chown,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::unistd::User;

use crate::{
    client,
    cluster::{Cluster, link},
    config::Config,
    netns::Namespace,
    packet::{mac_of, show_mac},
    peers,
    process::Daemon,
    router::Router,
    wait::{self, PATIENCE},
};

/// The virtual service.
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), 80);
const USER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 100);
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const NAMES: [&str; 3] = ["lb1", "lb2", "lb3"];

/// The machines of a fleet, and its routing daemons.
pub struct Fleet<'a> {
    cluster: &'a Cluster,
    /// Where users are.
    pub users: Namespace,
    /// What is in front of the routers.
    pub upstream: Namespace,
    /// Where the routers run.
    pub routers: [Namespace; 3],
    key: String,
    daemons: Vec<Daemon>,
}

impl<'a> Fleet<'a> {
    /// Wires it up on a one-armed cluster, and starts the daemons; for direct routing.
    pub fn new(cluster: &'a Cluster) -> Result<Fleet<'a>> {
        Fleet::build(cluster, |text| text.to_owned())
    }

    /// The same for NAT: replies go by the router that the request has come by, or by another one if that is dead.
    pub fn under_nat(cluster: &'a Cluster) -> Result<Fleet<'a>> {
        let lines =
            [("  # neighbor", "  neighbor"), ("!peer", "peer"), ("! profile", " profile"), ("!exit", "exit")];
        let with_real_servers = |text: &str| {
            lines.iter().fold(text.to_owned(), |text, (comment, line)| text.replace(comment, line))
        };
        let mut fleet = Fleet::build(cluster, with_real_servers)?;
        let mut marks = example("realserver.nft")?;
        for index in 0..3 {
            let mac = show_mac(mac_of(address(index)));
            marks = marks.replace(&format!("02:00:00:00:00:0{}", index + 1), &mac);
        }
        for (index, server) in cluster.real_servers.iter().enumerate() {
            server.nft(&marks)?;
            server.ip(&(1..=3)
                .map(|mark| format!("rule add fwmark {mark} table {mark}\n"))
                .collect::<String>())?;
            // BIRD knows the way out.
            server.ip("route del default")?;
            let own = format!("id {};", cluster.layout().real_server(index));
            let text = example("realserver.conf")?.replace("id 192.0.2.11;", &own);
            fleet.daemons.push(bird(server, &format!("rs{}", index + 1), &text)?);
        }
        // Of all ports that a test may use.
        let rules = example("router.nft")?.replace("sport 80", "sport 80-89");
        fleet.routers.iter().try_for_each(|router| router.nft(&rules))?;
        Ok(fleet)
    }

    fn build(cluster: &'a Cluster, adapted: impl Fn(&str) -> String) -> Result<Fleet<'a>> {
        let upstream = cluster.machine("upstream", "eth0", UPSTREAM)?;
        let users = Namespace::create(cluster.state(), "users")?;
        link(&upstream, "users0", Ipv4Addr::new(198, 51, 100, 1), &users, "eth0", USER)?;
        upstream
            .ip(&format!("address add {UPSTREAM}/24 dev eth0\naddress add 198.51.100.1/24 dev users0"))?;
        upstream.sysctl("net/ipv4/ip_forward", 1)?;
        upstream.sysctl("net/ipv4/fib_multipath_hash_policy", 1)?;
        // When nobody announces the address for a moment, packets are lost, and not refused at once.
        upstream.ip("route add blackhole 203.0.113.0/24")?;
        users.ip(&format!("address add {USER}/24 dev eth0\nroute add default via 198.51.100.1"))?;
        for server in &cluster.real_servers {
            server.ip(&format!(
                "address add {}/32 dev lo\nroute replace default via {UPSTREAM}",
                SERVICE.ip()
            ))?;
        }
        let further = |index: usize| cluster.further_router(NAMES[index], address(index));
        let routers = [cluster.router.clone(), further(1)?, further(2)?];
        let key = peers::key(cluster.state(), "sync.key", "0123456789abcdef")?;
        let mut daemons = vec![bird(&upstream, "upstream", &example("upstream.conf")?)?];
        for (index, router) in routers.iter().enumerate().take(2) {
            let own = adapted(&example("bird.conf")?).replace("192.0.2.1;", &format!("{};", address(index)));
            let own = own.replace("local 192.0.2.1 ", &format!("local {} ", address(index)));
            daemons.push(bird(router, NAMES[index], &own)?);
        }
        daemons.extend(frr(
            &routers[2],
            &adapted(&example("frr.conf")?).replace("id 192.0.2.1\n", "id 192.0.2.3\n"),
        )?);
        Ok(Fleet { cluster, users, upstream, routers, key, daemons })
    }

    /// The example's configuration of a router, for these machines.
    pub fn text(&self, index: usize) -> Result<String> {
        let [own, a, b] = [0, 1, 2].map(|offset| address((index + offset) % 3));
        let socket = self.config(index).socket;
        let core = crate::cores().last().copied().unwrap_or(0);
        let mut text = example("rvs.toml")?;
        for (there, here) in [
            ("cores = [1]", format!("cores = [{core}]\nidle = \"adaptive\"")),
            ("connections = 1_000_000", "connections = 65_536".into()),
            ("listen = \"192.0.2.1:8848\"", format!("listen = \"{own}:8848\"")),
            (
                r#"peers = ["192.0.2.2:8848", "192.0.2.3:8848"]"#,
                format!("peers = [\"{a}:8848\", \"{b}:8848\"]"),
            ),
            ("/etc/rvs/sync.key", self.key.clone()),
            ("0000:03:00.0", "net_af_packet,iface=wan0".into()),
            ("192.0.2.1/24", format!("{own}/24")),
            (r#"interval = "1s", timeout = "500ms""#, r#"interval = "200ms", timeout = "3s""#.into()),
        ] {
            ensure!(text.matches(there).count() == 1, "{there} is to stand there once\n{text}");
            text = text.replace(there, &here);
        }
        Ok(format!("[eal]\nhugepages = false\nmemory = 256\n\n[admin]\nsocket = {socket:?}\n\n{text}"))
    }

    /// Starts a router with this configuration.
    pub fn start(&self, index: usize, text: &str) -> Result<Router> {
        Router::start_in(&self.routers[index], NAMES[index], text, &self.config(index))
    }

    fn config(&self, index: usize) -> Config {
        let mut config = self.cluster.config();
        config.socket += &format!(".{}", NAMES[index]);
        config
    }

    /// Waits until packets for the virtual address are spread over these routers and no others, for two seconds already: a BFD
    /// session that has just come up may go down once more.
    pub fn wait_spread(&self, over: &[usize]) -> Result<()> {
        let expected: Vec<String> = over.iter().map(|&index| address(index).to_string()).collect();
        let mut since = None;
        wait::until("packets go to those that announce", PATIENCE, || {
            let routes = self.upstream.ip_json(&format!("route show {}", SERVICE.ip()))?;
            let route = &routes[0];
            let single = route["gateway"].as_str();
            let several = route["nexthops"].as_array().into_iter().flatten();
            let mut hops: Vec<&str> =
                single.into_iter().chain(several.filter_map(|hop| hop["gateway"].as_str())).collect();
            hops.sort();
            if hops != expected {
                since = None;
            }
            ensure!(hops == expected, "{hops:?}, expected {expected:?}");
            let lasts = since.get_or_insert_with(Instant::now).elapsed();
            ensure!(lasts >= Duration::from_secs(2), "{hops:?} for {lasts:?} only");
            Ok(())
        })
    }

    /// Connections of users with a service, from these ports.
    pub fn connect(&self, ports: std::ops::Range<u16>, service: SocketAddrV4) -> Result<Vec<TcpStream>> {
        self.users.enter(|| {
            ports.map(|port| connect(port, service).with_context(|| format!("port {port}"))).collect()
        })
    }

    /// Begins to make short requests of a service, one after the other, from ports from this one on.
    pub fn ask_all_the_time(&self, port: u16, service: SocketAddrV4) -> Requests {
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let thread = self.users.spawn(move || {
            let mut asked = Asked::default();
            for port in port..u16::MAX {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let began = Instant::now();
                if let Err(error) =
                    connect(port, service).and_then(|mut stream| client::echo(&mut stream, b"short"))
                {
                    asked.failed.push(format!("from port {port}, {asked:?}: {error:#}"));
                }
                asked.count += 1;
                asked.longest = asked.longest.max(began.elapsed());
                // A user, not a flood: the machine has other things to do.
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(asked)
        });
        Requests { stop, thread }
    }
}

/// The address of a router.
pub fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 1 + index as u8)
}

/// Short requests that are being made.
pub struct Requests {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Asked>>,
}

/// What has become of short requests.
#[derive(Debug, Default)]
pub struct Asked {
    /// How many there were.
    pub count: u32,
    /// Those that were not answered.
    pub failed: Vec<String>,
    /// How long the slowest took.
    pub longest: Duration,
}

impl Requests {
    /// Ends them.
    pub fn finish(self) -> Result<Asked> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that asks has panicked"))?
    }
}

fn connect(port: u16, service: SocketAddrV4) -> Result<TcpStream> {
    let socket = client::bound(SocketAddrV4::new(USER, port))?;
    socket.connect_timeout(&SocketAddr::from(service).into(), Duration::from_secs(20))?;
    Ok(socket.into())
}

/// A file of the example.
fn example(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/fleet").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Starts BIRD with a configuration, but for a machine that is busy.
fn bird(namespace: &Namespace, name: &str, text: &str) -> Result<Daemon> {
    let state = namespace.state();
    let file = |what: &str| state.file(&format!("bird-{name}.{what}"));
    fs::write(file("conf"), text.replace("multiplier 3;", "multiplier 8;"))?;
    let bird = namespace.command("bird").arg("-f").arg("-c").arg(file("conf"));
    bird.arg("-s").arg(file("ctl")).arg("-P").arg(file("pid")).spawn(&format!("bird-{name}"))
}

/// Starts FRR with a configuration, but for a machine that is busy.
fn frr(namespace: &Namespace, text: &str) -> Result<Vec<Daemon>> {
    let directory = namespace.state().file("frr");
    fs::create_dir(&directory)?;
    let file = |name: &str| directory.join(name).display().to_string();
    for (name, text) in [("frr.conf", text), ("vtysh.conf", ""), ("empty", "")] {
        fs::write(file(name), text.replace("detect-multiplier 3", "detect-multiplier 8"))?;
    }
    // Its daemons give up root's rights.
    let user = User::from_name("frr")?.context("FRR's user is missing")?;
    chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    let start = |name: &str| {
        let daemon = namespace.command(format!("/usr/lib/frr/{name}")).words("-A 127.0.0.1 --log stdout");
        let daemon = daemon.args(["--vty_socket", &file(""), "-f", &file("empty"), "-i", &file(name)]);
        let daemon = daemon.args(["-z", &file("zserv.api")]);
        let daemon = if name == "bfdd" { daemon.args(["--bfdctl", &file("bfdd.sock")]) } else { daemon };
        let daemon = daemon.spawn(name)?;
        wait::until(name, PATIENCE, || {
            ensure!(fs::exists(file(&format!("{name}.vty")))?, "{}", daemon.log());
            Ok(())
        })?;
        Ok(daemon)
    };
    let daemons = ["zebra", "bfdd", "bgpd"].into_iter().map(start).collect::<Result<_>>()?;
    let vtysh = namespace.command("vtysh").args(["--vty_socket", &file(""), "--config_dir", &file("")]);
    vtysh.args(["-f", &file("frr.conf")]).run()?;
    Ok(daemons)
}
