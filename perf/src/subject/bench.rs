//! Where subjects run: a network namespace, a directory, a core to poll on and one for all the rest.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{self, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use harness::netns::Namespace;
use harness::process::{Command, start_no_more};
use harness::state::State;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cpu;
use crate::eal::Hugepages;

/// The place of a measurement; taken down when dropped.
#[derive(Debug)]
pub struct Bench {
    /// The cores.
    pub cores: Cores,
    /// Whether subjects have their memory in hugepages; without them every packet costs much more.
    pub hugepages: bool,
    namespace: Namespace,
    remains: Arc<Remains>,
}

/// What has to be taken down.
#[derive(Debug)]
struct Remains {
    state: State,
    hugepages: Mutex<Option<Hugepages>>,
}

/// Who runs where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The polling thread of the subject, and nothing else.
    pub worker: usize,
    /// Everything else: the subject's other threads, and this program.
    pub other: usize,
}

impl Cores {
    /// A core to poll on, and the first of the others.
    pub fn new(worker: usize) -> Result<Cores> {
        let online = harness::cores();
        ensure!(online.contains(&worker), "there is no core {worker}; expected one of {online:?}");
        let other = online.iter().copied().find(|core| *core != worker);
        let other =
            other.context("this takes two cores: a router polls on one, and all the rest needs another")?;
        Ok(Cores { worker, other })
    }
}

impl Bench {
    /// Makes the place, after removing what a killed run has left, and moves this thread off the worker's core.
    /// Subjects may take so many megabytes.
    pub fn new(worker: usize, megabytes: u64) -> Result<Bench> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this needs root: it makes a network namespace and reserves hugepages"
        );
        let cores = Cores::new(worker)?;
        let reserved = Hugepages::reserve(megabytes / 2 + 1);
        let hugepages = Hugepages::free() > megabytes / 2;
        let state = State::unique().context("cannot make a directory for this run")?;
        let remains = Arc::new(Remains { state, hugepages: Mutex::new(Some(reserved)) });
        take_down_on_signals(&remains)?;
        let namespace = match Namespace::create(&remains.state, "perf") {
            Ok(namespace) => namespace,
            Err(error) => {
                remains.remove()?;
                return Err(error.context("cannot make a network namespace"));
            }
        };
        cpu::pin(cores.other)?;
        Ok(Bench { cores, hugepages, namespace, remains })
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The path of a file that goes with the place.
    pub fn file(&self, name: &str) -> PathBuf {
        self.namespace.state().file(name)
    }

    /// A program to run here. It ends when the thread that starts it does, whatever way that ends, and what DPDK
    /// puts into a directory of run-time files goes with the place.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let command = self.namespace.command("setpriv").args(["--pdeathsig", "KILL", "--"]);
        command.arg(program).env("RUNTIME_DIRECTORY", &self.file("").to_string_lossy())
    }

    /// Runs this program itself with other arguments, beside a subject, and returns what it wrote.
    ///
    /// Not as a [`Command`] of the harness, which looks every millisecond whether it has ended, and would take the core
    /// on which the generator polls a thousand times a second.
    pub fn run_own(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
        let own = std::env::current_exe().context("cannot find out where this program is")?;
        let mut command = process::Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(own).args(arguments);
        command.env("RUNTIME_DIRECTORY", self.file(""));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start this program again")?;
        self.namespace.state().record(child.id());
        child.stdin.take().context("it was piped")?.write_all(input)?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", output.status, said.trim());
        Ok(output.stdout)
    }

    /// What the memory means for figures taken here.
    pub fn memory(&self) -> &'static str {
        if self.hugepages {
            "packets in hugepages"
        } else {
            "NO HUGEPAGES: packets cost up to three times as much"
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = self.remains.remove() {
            eprintln!("cannot take down {}: {error:#}; the next run tries again", self.namespace.name());
        }
    }
}

impl Remains {
    fn remove(&self) -> Result<()> {
        let result = self.state.remove();
        drop(self.hugepages.lock().unwrap_or_else(PoisonError::into_inner).take());
        result
    }
}

/// Measurements take minutes, and people lose patience. The thread sleeps until then.
fn take_down_on_signals(remains: &Arc<Remains>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for signals")?;
    let remains = remains.clone();
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            start_no_more();
            eprintln!("rvs-perf: ended by signal {signal}, takes everything down");
            if let Err(error) = remains.remove() {
                eprintln!("rvs-perf: cannot take everything down: {error:#}; the next run tries again");
            }
            process::exit(128 + signal);
        }
    });
    Ok(())
}
