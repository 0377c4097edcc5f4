//! The built `rvs` with many services and servers.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::process::Daemon;
use harness::wait;
use nix::sys::signal::Signal;

use super::bench::Bench;
use super::{rvs, until};

/// What it is configured with.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// Connections that the table is made for.
    pub connections: u32,
    /// Services.
    pub services: u32,
    /// Real servers of each.
    pub servers: u32,
    /// The weight of each.
    pub weight: u32,
    /// The keys of each service's health check, if they have one.
    pub check: Option<String>,
    /// DPDK's device.
    pub device: &'static str,
}

/// One server on a device without packets.
impl Default for Crowd {
    fn default() -> Crowd {
        let device = "net_null0,no-rx=1";
        Crowd { connections: 1024, services: 1, servers: 1, weight: 1, check: None, device }
    }
}

/// A running `rvs`.
pub struct Running {
    /// The process.
    pub daemon: Daemon,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its admin socket.
    pub socket: PathBuf,
}

impl Crowd {
    /// Starts it, and waits until it answers.
    pub fn start(&self, bench: &Bench, program: &Path) -> Result<Running> {
        let (config, socket) = (bench.file("rvs.toml"), bench.file("rvs.sock"));
        fs::write(&config, self.config(bench))?;
        let mut daemon =
            bench.command(program).args(["run", "--log=warn", "-c"]).arg(&config).spawn("rvs")?;
        until("rvs is ready", &mut daemon, || rvs::ask(&socket))?;
        Ok(Running { daemon, config, socket })
    }

    /// The file.
    pub fn config(&self, bench: &Bench) -> String {
        let Crowd { connections, services, servers, weight, ref check, device } = *self;
        let memory = if bench.hugepages { "args = [\"--in-memory\"]" } else { "memory = 128" };
        let mut text = format!(
            "[eal]\nhugepages = {}\n{memory}\n[workers]\ncores = [{}]\ncontrol_cores = [{}]\nidle = \"adaptive\"\n\
             [table]\nconnections = {connections}\n[admin]\nsocket = {:?}\n\
             [[port]]\nname = \"wan\"\ndevice = {device:?}\naddresses = [\"10.255.255.254/8\"]\n",
            bench.hugepages,
            bench.cores.worker,
            bench.cores.other,
            bench.file("rvs.sock"),
        );
        let check = check.as_ref().map(|keys| format!("check = {{ {keys} }}\n")).unwrap_or_default();
        for service in 0..services {
            let address = service_address(service);
            let _ = write!(
                text,
                "[[service]]\naddress = \"{address}:80\"\nprotocol = \"tcp\"\nmode = \"nat\"\n{check}"
            );
            for n in 0..servers {
                let address = server_address(service * servers + n);
                let _ = write!(text, "[[service.server]]\naddress = \"{address}:80\"\nweight = {weight}\n");
            }
        }
        text
    }
}

/// The virtual address of a service; its port is 80.
pub fn service_address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xC612_0000 + n)
}

/// The address of a real server, counted over all services; its port is 80.
pub fn server_address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0A00_0001 + n)
}

impl Running {
    /// Makes all real servers known neighbours, and waits until that has found its way to the worker.
    pub fn know_servers(&self, bench: &Bench, crowd: &Crowd) -> Result<()> {
        let entry = |n| {
            let address = server_address(n);
            format!("neigh replace {address} lladdr 02:00:00:00:00:bb dev wan nud permanent\n")
        };
        bench.namespace().ip(&(0..crowd.services * crowd.servers).map(entry).collect::<String>())?;
        let mut last = (0, Instant::now());
        wait::until("rvs has heard of its servers", Duration::from_secs(60), || {
            let generation = rvs::ask(&self.socket)?.generation;
            if generation != last.0 {
                last = (generation, Instant::now());
            }
            ensure!(last.1.elapsed() > Duration::from_millis(500), "the configuration still changes");
            Ok(())
        })
    }

    /// Ends it, and says if it did not end well.
    pub fn stop(mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGTERM)?;
        let status = self.daemon.wait(wait::PATIENCE)?;
        ensure!(status.success(), "rvs ended with {status}");
        Ok(())
    }
}
