//! The last that a program does: to become another one.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use super::estate::{Estate, Inheritance, Item, Knowledge, OldTwin, VARIABLE, leave};
use super::{Gap, Order};
use crate::capabilities;
use crate::config::Port;

/// Those that a router heeds. Before it does, they would end the process.
const SIGNALS: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR2];

/// This program, whatever is by now where it was started from.
const OWN: &str = "/proc/self/exe";

/// Everything has ended here, and another program goes on.
#[derive(Debug)]
pub struct HandOver {
    binary: PathBuf,
    /// How it is to be called, if not by its file.
    name: Option<PathBuf>,
    estate: Estate,
    items: Vec<(Item, OwnedFd)>,
}

impl HandOver {
    /// The gap begins.
    pub fn begin(order: Order, knowledge: Knowledge) -> HandOver {
        let Order { id, binary } = order;
        let from = env!("CARGO_PKG_VERSION").to_owned();
        let program = std::env::args_os().next().unwrap_or_default().into();
        let gap = Gap::begin();
        let estate = Estate { id, from, program, gap, knowledge, twins: Vec::new(), error: None };
        let mut hand_over = HandOver { binary, name: None, estate, items: Vec::new() };
        hand_over.leave(Item::Program, File::open(OWN).map(OwnedFd::from));
        hand_over
    }

    /// The same back to the program before this one, in case this one cannot start; none if there is none, or if it is that
    /// one already.
    pub fn back(inheritance: &Inheritance) -> Option<HandOver> {
        let estate = inheritance.estate.clone();
        let items = inheritance.copies().ok().filter(|_| estate.error.is_none())?;
        let (_, program) = items.iter().find(|(item, _)| *item == Item::Program)?;
        let binary = format!("/proc/self/fd/{}", program.as_raw_fd()).into();
        let name = Some(estate.program.clone());
        Some(HandOver { binary, name, estate, items })
    }

    /// This program cannot start, for this reason: the one before goes on. Comes back only if not even that is possible.
    pub fn go_back(mut self, error: anyhow::Error) -> anyhow::Error {
        let reason = format!("the new program could not start: {error:#}");
        tracing::error!(error = reason, "going back to the old program");
        hold_signals();
        self.estate.error = Some(reason);
        match self.become_other() {
            Ok(never) => match never {},
            Err(failed) => {
                tracing::error!(error = format!("{failed:#}"), "cannot go back");
                error
            }
        }
    }

    /// A stage has ended.
    pub fn pass(&mut self, stage: &str) {
        self.estate.gap.pass(stage);
    }

    /// What is left to the other program, which goes on without what there is no descriptor of.
    pub fn leave(&mut self, item: Item, descriptor: io::Result<OwnedFd>) {
        match descriptor {
            Ok(descriptor) => self.items.push((item, descriptor)),
            Err(error) => tracing::error!(?item, %error, "this cannot be handed on"),
        }
    }

    /// The twin of a port, and what RVS has put on it.
    pub fn leave_twin(&mut self, port: &Port, placed: Vec<IpAddr>, descriptor: io::Result<OwnedFd>) {
        let addresses = port.addresses.iter().map(|prefix| (prefix.address, prefix.length)).collect();
        let name = port.name.clone();
        self.estate.twins.push(OldTwin { name: name.clone(), addresses, placed });
        self.leave(Item::Twin(name), descriptor);
    }

    /// Becomes the other program; if that cannot be, this one once more. Comes back only if not even that is possible.
    pub fn carry_out(mut self) -> anyhow::Error {
        let error = match self.become_other() {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let error = format!("{error:#}");
        tracing::error!(error, "cannot hand over; starting this program again");
        self.estate.error = Some(error);
        match self.become_again() {
            Ok(never) => match never {},
            Err(error) => error.context("cannot start this program again"),
        }
    }

    fn become_other(&self) -> Result<std::convert::Infallible> {
        capabilities::hand_on().context("cannot hand on what this program may do")?;
        dpdk::close_on_exec().context("cannot close what DPDK has opened")?;
        let mut command = Command::new(&self.binary);
        if let Some(name) = &self.name {
            command.arg0(name);
        }
        let error = self.command(command)?.exec();
        Err(error).with_context(|| format!("cannot start {}", self.binary.display()))
    }

    fn become_again(&self) -> Result<std::convert::Infallible> {
        let program = || {
            let mut command = Command::new(OWN);
            if let Some(name) = std::env::args_os().next() {
                command.arg0(name);
            }
            command
        };
        let mut command = self.command(program()).unwrap_or_else(|error| {
            // As after a crash, which is more than to end.
            tracing::error!(error = format!("{error:#}"), "starting afresh");
            let mut command = program();
            command.args(std::env::args_os().skip(1));
            command
        });
        Err(command.exec().into())
    }

    /// With this program's arguments, and the estate on standard input.
    fn command(&self, mut command: Command) -> Result<Command> {
        let socket = leave(&self.estate, &self.items).context("cannot leave what is to be left")?;
        rustix::stdio::dup2_stdin(&socket).context("cannot use standard input")?;
        command.args(std::env::args_os().skip(1)).env(VARIABLE, std::process::id().to_string());
        Ok(command)
    }
}

/// From here on signals wait until somebody heeds them, in this program or in the one that it becomes.
pub fn hold_signals() {
    if let Err(error) = dpdk::hold_signals(&SIGNALS.map(|signal| signal as i32)) {
        tracing::warn!(%error, "a signal that comes before the new program listens is lost, or ends it");
    }
}

/// From here on signals are heeded, and those that have waited come.
pub fn heed_signals() -> Result<()> {
    SIGNALS.into_iter().collect::<SigSet>().thread_unblock().context("cannot listen for signals")
}
