//! A network namespace: a machine of the test cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::{process::Command, state::State};

/// A network namespace, made for one cluster and deleted with it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    state: State,
}

impl Namespace {
    /// Makes the namespace `rvs-ID-ROLE`: loopback up, no IPv6, no reverse path filter, nothing clever.
    pub fn create(state: &State, role: &str) -> Result<Namespace> {
        let namespace = Namespace { name: format!("rvs-{}-{role}", state.id()), state: state.clone() };
        state.record_namespace(&namespace.name);
        Command::new(state, "ip").args(["netns", "add", &namespace.name]).run()?;
        for which in ["all", "default"] {
            // IPv6 would send packets of its own, which nobody counts on.
            namespace.sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), 1)?;
            namespace.sysctl(&format!("net/ipv4/conf/{which}/rp_filter"), 0)?;
            namespace.sysctl(&format!("net/ipv4/conf/{which}/send_redirects"), 0)?;
            namespace.sysctl(&format!("net/ipv4/conf/{which}/accept_redirects"), 0)?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The state directory of its cluster.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// A program to run in it.
    ///
    /// `ip netns exec` and not a bare setns(2): it also gives the program a `/sys` that shows the namespace's
    /// own interfaces, which is where a router looks for its devices.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        Command::new(&self.state, "ip").args(["netns", "exec", &self.name]).arg(program)
    }

    /// Runs `body` on a thread that is in the namespace; sockets that it opens stay there wherever they go.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope.spawn(|| self.move_thread().and_then(|()| body())).join().unwrap_or_else(|panic| {
                std::panic::resume_unwind(panic);
            })
        })
    }

    /// Starts a thread in the namespace that goes on beside the test.
    pub fn spawn<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        let namespace = self.clone();
        thread::spawn(move || namespace.move_thread().and_then(|()| body()))
    }

    fn move_thread(&self) -> Result<()> {
        let file = fs::File::open(self.path()).with_context(|| format!("namespace {}", self.name))?;
        Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs commands of `ip`, one a line, in it.
    pub fn ip(&self, commands: &str) -> Result<()> {
        Command::new(&self.state, "ip")
            .args(["-n", &self.name, "-batch", "-"])
            .input(commands)
            .run()
            .with_context(|| format!("in {}: {commands}", self.name))?;
        Ok(())
    }

    /// What `ip -j ARGUMENTS` says in it.
    pub fn ip_json(&self, arguments: &str) -> Result<serde_json::Value> {
        let text = Command::new(&self.state, "ip").args(["-n", &self.name, "-j"]).words(arguments).run()?;
        Ok(if text.trim().is_empty() {
            serde_json::Value::Array(vec![])
        } else {
            serde_json::from_str(&text)?
        })
    }

    /// The names of its interfaces.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let links = self.ip_json("link show")?;
        let links = links.as_array().ok_or_else(|| anyhow!("not a list: {links}"))?;
        Ok(links.iter().filter_map(|link| Some(link["ifname"].as_str()?.to_owned())).collect())
    }

    /// The IPv4 addresses of an interface, with their prefix lengths; none if there is no such interface.
    pub fn addresses(&self, interface: &str) -> Result<Vec<String>> {
        let all = self.ip_json("-4 address show")?;
        let of_interface = all.as_array().into_iter().flatten().filter(|link| link["ifname"] == interface);
        Ok(of_interface
            .flat_map(|link| link["addr_info"].as_array().into_iter().flatten())
            .filter_map(|address| Some(format!("{}/{}", address["local"].as_str()?, address["prefixlen"])))
            .collect())
    }

    /// Sets a `net/...` sysctl of it.
    pub fn sysctl(&self, key: &str, value: u32) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.enter(|| match fs::write(&path, value.to_string()) {
            // A kernel without it is as good as one where it is switched off.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && optional(key) => Ok(()),
            result => result.with_context(|| path.clone()),
        })
    }

    /// Loads an nftables ruleset.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.command("nft").args(["-f", "-"]).input(rules).run().with_context(|| rules.to_owned())?;
        Ok(())
    }

    /// Keeps Linux from seeing what arrives on an interface beside those that it does not see already.
    pub(crate) fn deafen(&self, interface: &str) -> Result<()> {
        self.nft(&format!("table netdev rvs {{\n{}}}\n", crate::cluster::deaf(interface)))
    }

    /// Switches off everything by which a virtual interface hands over what no wire would carry.
    ///
    /// Linux leaves checksums unfinished and segments unsplit between the ends of a veth pair, and merges
    /// segments on arrival.  A router that updates checksums incrementally would pass rubbish on.  TCP still
    /// builds bundles of segments that are split at the device; one segment a bundle, so that what netfilter
    /// counts is what passes the wire.
    pub fn plain_wire(&self, interface: &str) -> Result<()> {
        self.command("ethtool")
            .args(["-K", interface])
            .words("rx off tx off sg off tso off gso off gro off rxvlan off txvlan off")
            .run()?;
        self.ip(&format!("link set {interface} gso_max_segs 1"))
    }
}

fn optional(key: &str) -> bool {
    key.starts_with("net/ipv6/") || key.starts_with("net/bridge/")
}
