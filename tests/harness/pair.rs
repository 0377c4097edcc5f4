//! Two NAT routers under real keepalived, by the files of `configs/pair`: as an operator puts them up, but for paths and
//! devices.

use std::{env, fs, net::Ipv4Addr, path::Path};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    cluster::{Cluster, VIP},
    config::Config,
    netns::Namespace,
    packet::{Mac, mac_of},
    peers,
    process::Daemon,
    router::{Router, program},
    wait::{self, PATIENCE},
};

/// The real servers' default gateway, which is one router's or the other's.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const NAMES: [&str; 2] = ["lb1", "lb2"];

/// Two routers between the clients' segment and the real servers', with a wire of their own.
#[derive(Debug)]
pub struct Pair {
    /// Where they run.
    pub namespaces: [Namespace; 2],
    configs: [Config; 2],
    key: String,
    /// The address from which both routers have what real servers begin leave, if they do.
    pool: Option<Ipv4Addr>,
}

impl Pair {
    /// Puts a second router beside that of a two-armed cluster, and has the real servers use [`GATEWAY`].
    pub fn new(cluster: &Cluster) -> Result<Pair> {
        let namespaces = [cluster.router.clone(), cluster.second_router(2)?];
        peers::wire([&namespaces[0], &namespaces[1]])?;
        for namespace in &namespaces {
            apply_sysctls(namespace)?;
        }
        for server in &cluster.real_servers {
            server.ip(&format!("route replace default via {GATEWAY}"))?;
        }
        let key = peers::key(cluster.state(), "sync.key", "0123456789abcdef")?;
        let config = cluster.config();
        let mut other = config.clone();
        other.socket += ".second";
        Ok(Pair { namespaces, configs: [config, other], key, pool: None })
    }

    /// The same with source NAT, from this address.
    pub fn with_pool(self, pool: Ipv4Addr) -> Pair {
        Pair { pool: Some(pool), ..self }
    }

    /// Starts one of the two routers.
    pub fn start(&self, index: usize) -> Result<Router> {
        let config = &self.configs[index];
        let workers = format!("cores = {:?}\nidle = \"adaptive\"", config.cores);
        let text = example(
            &format!("rvs-{}.toml", index + 1),
            &[
                ("memory = 1024", "hugepages = false\nmemory = 256"),
                ("cores = [2, 3]\ncontrol_cores = [1]", &workers),
                ("/run/rvs/rvs.sock", &config.socket),
                ("/etc/rvs/sync.key", &self.key),
                ("0000:01:00.0", "net_af_packet,iface=wan0"),
                ("0000:01:00.1", "net_af_packet,iface=lan0"),
            ],
        )?;
        let pool = |pool| format!("\n[[snat]]\ninside = [\"10.0.0.0/24\"]\noutside = [\"{pool}\"]\n");
        let text = text + &self.pool.map(pool).unwrap_or_default();
        Router::start_in(&self.namespaces[index], NAMES[index], &text, config)
    }

    /// Starts keepalived beside one of the two, which has to run.
    pub fn start_keepalived(&self, index: usize) -> Result<Daemon> {
        let (namespace, name) = (&self.namespaces[index], format!("keepalived-{}", NAMES[index]));
        let ready = format!("{} sync --ready -s {}", program()?.display(), self.configs[index].socket);
        let text =
            example(&format!("keepalived-{}.conf", index + 1), &[("/usr/sbin/rvs sync --ready", &ready)])?;
        // After three of the 0.2 s of the files a backup takes over, and this machine may stand still for longer.
        let interval = env::var("RVS_ADVERT_INT").unwrap_or_else(|_| "1".to_owned());
        ensure!(text.matches("advert_int 0.2").count() == 2, "an interval for each instance");
        let text = text.replace("advert_int 0.2", &format!("advert_int {interval}"));
        let address = |address: Ipv4Addr| format!("{address}/32 dev wan");
        let both = self.pool.map(|pool| format!("{}\n{}", address(VIP), address(pool)));
        let text = text.replace(&address(VIP), &both.unwrap_or(address(VIP)));
        let state = namespace.state();
        let file = state.file(&format!("{name}.conf"));
        fs::write(&file, text)?;
        let pid = |what: &str| state.file(&format!("{name}.{what}.pid"));
        let command =
            namespace.command("keepalived").words("--dont-fork --log-console --log-detail --vrrp -f");
        let command = command.arg(&file).arg("-p").arg(pid("main")).arg("-r").arg(pid("vrrp"));
        command.spawn(&name)
    }

    /// Starts both, waits until they know the same, and has keepalived give the addresses to the first.
    pub fn start_both(&self) -> Result<([Router; 2], [Daemon; 2])> {
        let routers = [self.start(0)?, self.start(1)?];
        routers.iter().try_for_each(peers::wait_together)?;
        let first = self.start_keepalived(0)?;
        wait_live(&routers[0], 1)?;
        let second = self.start_keepalived(1)?;
        ensure!(!self.holds(1)?, "both hold the addresses");
        Ok((routers, [first, second]))
    }

    /// Whether one of the two has the floating addresses: both or, an error, one of them.
    pub fn holds(&self, index: usize) -> Result<bool> {
        let namespace = &self.namespaces[index];
        let wan = namespace.addresses("wan")?.contains(&format!("{VIP}/32"));
        let lan = namespace.addresses("lan")?.contains(&format!("{GATEWAY}/32"));
        ensure!(wan == lan, "{} has one address of two: wan {wan}, lan {lan}", NAMES[index]);
        Ok(wan)
    }

    /// Waits until this is the one that has the floating addresses.
    pub fn wait_active(&self, index: usize) -> Result<()> {
        wait::until(&format!("{} is the active router", NAMES[index]), PATIENCE, || {
            let holds = [self.holds(0)?, self.holds(1)?];
            ensure!(holds[index] && !holds[1 - index], "addresses on both routers: {holds:?}");
            Ok(())
        })
    }
}

/// The MACs of a router's ports: towards the clients, and towards the real servers.
pub fn macs(index: usize) -> [Mac; 2] {
    let host = 1 + index as u8;
    [mac_of(Ipv4Addr::new(192, 0, 2, host)), mac_of(Ipv4Addr::new(10, 0, 0, host))]
}

/// Ends keepalived the orderly way.
pub fn end(mut keepalived: Daemon) -> Result<()> {
    keepalived.signal(Signal::SIGTERM)?;
    keepalived.wait(PATIENCE).map(drop)
}

/// Waits until a router has said so many times, or more often, that it has the virtual address.
pub fn wait_live(router: &Router, times: usize) -> Result<()> {
    wait::until("the virtual address is there", PATIENCE, || {
        let events = router.rvs("events").run()?;
        let gained = events.matches(&format!("{VIP} is here: its services are live")).count();
        ensure!(gained >= times, "{events}");
        Ok(())
    })
}

/// A file of `configs/pair` with what a test needs in its place. What is replaced must be there, once.
fn example(name: &str, changes: &[(&str, &str)]) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/pair").join(name);
    let mut text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for (from, to) in changes {
        ensure!(text.matches(from).count() == 1, "{name}: expected {from:?} once");
        text = text.replace(from, to);
    }
    Ok(text)
}

fn apply_sysctls(namespace: &Namespace) -> Result<()> {
    let text = example("sysctl.conf", &[])?;
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (key, value) = line.split_once(" = ").with_context(|| line.to_owned())?;
        namespace.sysctl(&key.replace('.', "/"), value.parse()?)?;
    }
    Ok(())
}
