//! The program under test, running in the router's namespace.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    cluster::Cluster,
    config::Config,
    listing::{Counters, Server, Service},
    netns::Namespace,
    process::{Command, Daemon, Output, tail},
    wait::{self, PATIENCE},
};

/// A running `rvs`.
#[derive(Debug)]
pub struct Router {
    namespace: Namespace,
    daemon: Daemon,
    /// Its configuration file.
    pub file: PathBuf,
    socket: String,
    twins: Vec<&'static str>,
}

/// The built program: `RVS_BIN`, or `rvs` beside or above the running test.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("RVS_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "RVS_BIN={} is not a file", path.display());
        return Ok(path);
    }
    let own = std::env::current_exe()?;
    let near = own.ancestors().skip(1).take(2).map(|directory| directory.join("rvs"));
    near.into_iter()
        .find(|path| path.is_file())
        .context("rvs is not built: run `cargo build -p rvs` first, or say where it is in RVS_BIN")
}

impl Router {
    /// Writes the configuration, starts the program and waits until it answers.
    pub fn start(cluster: &Cluster, config: &Config) -> Result<Router> {
        Router::start_text(cluster, &config.to_string(), config)
    }

    /// As [`Router::start`], with another text for the file; socket and ports are those of `config`.
    pub fn start_text(cluster: &Cluster, text: &str, config: &Config) -> Result<Router> {
        Router::start_in(&cluster.router, "rvs", text, config)
    }

    /// As [`Router::start_text`], in another namespace and under another name than "rvs".
    pub fn start_in(namespace: &Namespace, name: &str, text: &str, config: &Config) -> Result<Router> {
        Router::start_with(namespace, name, text, config, |command| command)
    }

    /// As [`Router::start_in`], with something more said of the command.
    pub fn start_with(
        namespace: &Namespace,
        name: &str,
        text: &str,
        config: &Config,
        more: impl FnOnce(Command) -> Command,
    ) -> Result<Router> {
        let file = namespace.state().file(&format!("{name}.toml"));
        fs::write(&file, text)?;
        let command = namespace.command(program()?).arg("run").arg("-c").arg(&file);
        let daemon = more(command).spawn(name)?;
        let twins = config.ports.iter().map(|port| port.name).collect();
        let namespace = namespace.clone();
        let mut router = Router { namespace, daemon, file, socket: config.socket.clone(), twins };
        wait::until("rvs answers or ends", PATIENCE, || match router.daemon.status()? {
            Some(_) => Ok(()),
            None => router.rvs("list").run().map(drop),
        })?;
        router.daemon.check_running()?;
        Ok(router)
    }

    /// The program's other verbs, asking this router: `router.rvs("list --stats")`.
    pub fn rvs(&self, words: &str) -> Command {
        let program = program().unwrap_or_else(|_| PathBuf::from("rvs"));
        self.namespace.command(program).words(words).args(["-s", &self.socket])
    }

    /// The process number of the program.
    pub fn pid(&self) -> i32 {
        self.daemon.pid()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Writes another configuration; nothing is told to the program yet.
    pub fn write(&self, config: &Config) -> Result<()> {
        Ok(fs::write(&self.file, config.to_string())?)
    }

    /// Runs `rvs reload`.
    pub fn reload(&self) -> Result<Output> {
        self.rvs("reload").output()
    }

    /// Writes another configuration and applies it by `rvs reload`.
    pub fn apply(&self, config: &Config) -> Result<()> {
        self.write(config)?;
        self.reload()?.success().map(drop)
    }

    /// Writes another configuration and applies it by SIGHUP; returns when it is in force.
    pub fn apply_by_signal(&mut self, config: &Config) -> Result<()> {
        let reloads = |log: String| log.matches(" reloaded ").count();
        let before = reloads(self.log());
        self.write(config)?;
        self.hang_up()?;
        wait::until("SIGHUP takes effect", PATIENCE, || {
            self.daemon.check_running()?;
            let log = self.log();
            ensure!(reloads(log.clone()) > before, "{}", tail(&log, 5));
            Ok(())
        })
    }

    /// Sends SIGHUP.
    pub fn hang_up(&mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGHUP)
    }

    /// `rvs list`, as people see it.
    pub fn list(&self) -> Result<String> {
        self.rvs("list").run()
    }

    /// The services.
    pub fn services(&self) -> Result<Vec<Service>> {
        let text = self.rvs("list --json").run()?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// The first service.
    pub fn service(&self) -> Result<Service> {
        self.services()?.into_iter().next().context("no services")
    }

    /// The `index`th real server of the first service, by address.
    pub fn server(&self, index: usize) -> Result<Server> {
        let mut servers = self.service()?.servers;
        servers.sort_by_key(|server| server.address);
        servers.into_iter().nth(index).with_context(|| format!("no server {index}"))
    }

    /// How many packets have met this fate, e.g. `too_big`.
    pub fn count(&self, fate: &str) -> Result<u64> {
        let counters = self.counters()?;
        Ok(counters.fates().iter().filter(|(name, _)| name.contains(fate)).map(|(_, count)| count).sum())
    }

    /// The workers' counters.
    pub fn counters(&self) -> Result<Counters> {
        let text = self.rvs("list --counters --json").run()?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// Waits until it knows the MAC of each real server to which this client's packets may go: on a machine that is busy with other things
    /// they may not have answered within the second that a start waits for them, and who comes before they do is dropped.
    pub fn wait_for_macs(&self, client: IpAddr, to: SocketAddr, protocol: &str) -> Result<()> {
        let client = SocketAddr::new(client, 9);
        let question = format!("explain --src {client} --dst {to} --proto {protocol} --json");
        wait::until("the real servers' MACs are known", PATIENCE, || {
            let told = self.rvs(&question).run()?;
            ensure!(!told.contains("the MAC of "), "{told}");
            Ok(())
        })
    }

    /// Waits until a health check has changed its mind about the `index`th server.
    pub fn wait_up(&self, index: usize, up: bool) -> Result<()> {
        let what = format!("server {index} is found {}", if up { "alive" } else { "dead" });
        wait::until(&what, PATIENCE, || {
            let server = self.server(index)?;
            ensure!(server.up == up, "{server:?}");
            Ok(())
        })
    }

    /// Fails unless, for each worker, what it received is exactly what it forwarded, punted and dropped.
    ///
    /// A worker that is in the middle of a burst when it is asked may show the burst half counted, so it is
    /// asked until it is between two bursts.
    pub fn assert_accounts(&self) -> Result<Counters> {
        wait::until("received = forwarded + punted + dropped", Duration::from_secs(5), || {
            let counters = self.counters()?;
            let odd = counters.workers.iter().find(|worker| !worker.accounts());
            match odd {
                Some(worker) => bail!("{worker:#?}"),
                None => Ok(counters),
            }
        })
    }

    /// Waits until no counter moves any more.
    pub fn quiet(&self) -> Result<Counters> {
        let mut last: Option<Counters> = None;
        wait::until("the counters come to rest", PATIENCE, || {
            let now = self.assert_accounts()?;
            let seen =
                |counters: &Counters| (counters.received(), counters.table.connections, counters.fates());
            let (before, after) = (last.as_ref().map(seen), seen(&now));
            last = Some(now.clone());
            ensure!(before.as_ref() == Some(&after), "still moving: {before:?}, then {after:?}");
            Ok(now)
        })
    }

    /// Asserts the accounts, ends the program by SIGTERM, and asserts that it took everything of its away.
    pub fn finish(self) -> Result<()> {
        self.assert_accounts()?;
        self.stop()
    }

    /// Ends the program by SIGTERM, and asserts a clean exit: status 0, no twin, no address and no socket left.
    pub fn stop(mut self) -> Result<()> {
        let start = Instant::now();
        self.daemon.signal(Signal::SIGTERM)?;
        let status = self.daemon.wait(PATIENCE)?;
        ensure!(status.success(), "rvs ended by SIGTERM with {status}\n{}", tail(&self.log(), 40));
        let interfaces = self.namespace.interfaces()?;
        for twin in &self.twins {
            ensure!(!interfaces.iter().any(|name| name == twin), "twin {twin} left behind: {interfaces:?}");
        }
        ensure!(!fs::exists(&self.socket)?, "admin socket left behind");
        ensure!(start.elapsed() < PATIENCE, "it took {:?} to stop", start.elapsed());
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.daemon.signal(signal)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<std::process::ExitStatus> {
        self.daemon.wait(PATIENCE)
    }

    /// Kills the program at once.
    pub fn kill(mut self) -> Result<()> {
        self.daemon.kill()
    }
}

/// Runs the program once in the router's namespace, without a running router: `check`, or a `run` that must fail.
pub fn once(cluster: &Cluster, words: &str) -> Result<Command> {
    Ok(cluster.router.command(program()?).words(words))
}
