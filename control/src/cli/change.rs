//! Commands that change something without the file, and `rvs diff` and `rvs save`, which show and keep it.

use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Exit, SocketArg, block_on, changes, counted};
use crate::admin::api;
use crate::config::value;
use crate::ids::ServiceKey;

/// A server of a service.
#[derive(Debug, Args)]
struct ServerArgs {
    #[arg(help = "The service, e.g. tcp/192.0.2.10:80 or tcp/[2001:db8::10]:80")]
    service: ServiceKey,
    /// The real server's address and port
    #[arg(value_name = "SERVER", value_parser = server)]
    server: SocketAddr,
    #[command(flatten)]
    socket: SocketArg,
}

#[derive(Debug, Args)]
pub(super) struct Drain {
    #[command(flatten)]
    server: ServerArgs,
    /// After this time, e.g. 10m, it is disabled; without it, it keeps its connections until they end
    #[arg(long, value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Undrain {
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct Disable {
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct Weight {
    #[command(flatten)]
    server: ServerArgs,
    /// The weight, from 0 to 65535
    weight: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum Add {
    /// Add a service
    Service(AddService),
    /// Add a server to a service
    Server(AddServer),
}

#[derive(Debug, Args)]
pub(super) struct AddService {
    #[arg(help = "Protocol, virtual address and port, e.g. tcp/192.0.2.20:443 or tcp/[2001:db8::20]:443")]
    service: ServiceKey,
    /// nat, dr or tunnel; fullnat needs more than an option can say, so it is for the file
    #[arg(long)]
    mode: String,
    /// E.g. maglev, which is the default
    #[arg(long)]
    scheduler: Option<String>,
    /// A real server, may be repeated
    #[arg(long = "server", value_name = "SERVER")]
    servers: Vec<String>,
    /// More settings: a TOML file with the keys of a service
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    #[command(flatten)]
    socket: SocketArg,
}

#[derive(Debug, Args)]
pub(super) struct AddServer {
    #[command(flatten)]
    server: ServerArgs,
    /// From 0 to 65535
    #[arg(long, default_value_t = 1)]
    weight: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum Remove {
    /// Remove a service
    Service(RemoveService),
    /// Remove a server from a service
    Server(RemoveServer),
}

#[derive(Debug, Args)]
pub(super) struct RemoveService {
    /// E.g. tcp/192.0.2.20:443
    service: ServiceKey,
    #[command(flatten)]
    socket: SocketArg,
}

#[derive(Debug, Args)]
pub(super) struct RemoveServer {
    #[command(flatten)]
    server: ServerArgs,
}

/// Connections for which all that is given holds; peer routers forget them as well
#[derive(Debug, Args)]
pub(super) struct Flush {
    /// Of this service, e.g. tcp/192.0.2.10:80
    #[arg(long)]
    service: Option<ServiceKey>,
    /// With this real server
    #[arg(long, value_parser = server)]
    server: Option<SocketAddr>,
    /// Of this client
    #[arg(long)]
    client: Option<IpAddr>,
    /// All of them
    #[arg(long, conflicts_with_all = ["service", "server", "client"])]
    all: bool,
    #[command(flatten)]
    socket: SocketArg,
}

#[derive(Debug, Args)]
pub(super) struct Diff {
    #[command(flatten)]
    socket: SocketArg,
}

#[derive(Debug, Args)]
pub(super) struct Save {
    #[command(flatten)]
    socket: SocketArg,
}

impl ServerArgs {
    fn patch(&self, patch: &api::ServerPatch) -> Result<Exit> {
        show(block_on(self.socket.client().patch(self.service, self.server, patch))?)
    }

    fn state(&self, state: &str, deadline: Option<Duration>) -> Result<Exit> {
        let deadline = deadline.map(|time| time.as_secs().max(1));
        self.patch(&api::ServerPatch { state: Some(state.to_owned()), deadline, weight: None })
    }
}

impl Drain {
    pub(super) fn execute(self) -> Result<Exit> {
        self.server.state("drained", self.deadline)
    }
}

impl Undrain {
    pub(super) fn execute(self) -> Result<Exit> {
        self.server.state("enabled", None)
    }
}

impl Disable {
    pub(super) fn execute(self) -> Result<Exit> {
        self.server.state("disabled", None)
    }
}

impl Weight {
    pub(super) fn execute(self) -> Result<Exit> {
        self.server.patch(&api::ServerPatch { weight: Some(self.weight), ..api::ServerPatch::default() })
    }
}

impl Add {
    pub(super) fn execute(self) -> Result<Exit> {
        match self {
            Add::Service(service) => {
                let settings = service.settings()?;
                show(block_on(service.socket.client().add_service(&settings))?)
            }
            Add::Server(AddServer { server: ServerArgs { service, server, socket }, weight }) => {
                let new = api::NewServer { address: server, weight: Some(weight) };
                show(block_on(socket.client().add_server(service, &new))?)
            }
        }
    }
}

impl AddService {
    /// Its settings, as in the file.
    fn settings(&self) -> Result<serde_json::Value> {
        let mut settings = match &self.settings {
            None => serde_json::Map::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                toml::from_str(&text).with_context(|| format!("{} is not TOML", path.display()))?
            }
        };
        let mut set = |key: &str, value| drop(settings.insert(key.to_owned(), value));
        set("address", json!(self.service.address.to_string()));
        set("protocol", json!(self.service.protocol.name()));
        set("mode", json!(self.mode));
        if let Some(scheduler) = &self.scheduler {
            set("scheduler", json!(scheduler));
        }
        if !self.servers.is_empty() {
            let servers = self.servers.iter().map(|address| json!({ "address": address }));
            set("server", servers.collect());
        }
        Ok(settings.into())
    }
}

impl Remove {
    pub(super) fn execute(self) -> Result<Exit> {
        match self {
            Remove::Service(RemoveService { service, socket }) => {
                show(block_on(socket.client().remove_service(service))?)
            }
            Remove::Server(RemoveServer { server: ServerArgs { service, server, socket } }) => {
                show(block_on(socket.client().remove_server(service, server))?)
            }
        }
    }
}

impl Flush {
    pub(super) fn execute(self) -> Result<Exit> {
        let service = self.service.map(|service| service.to_string());
        let filter = api::Filter { service, server: self.server, client: self.client, all: self.all };
        let flushed = block_on(self.socket.client().flush(&filter))?;
        writeln!(io::stdout(), "forgot {}", counted(flushed.connections, "connection"))?;
        Ok(Exit::Ok)
    }
}

impl Diff {
    pub(super) fn execute(self) -> Result<Exit> {
        let found = block_on(self.socket.client().diff())?;
        let mut out = BufWriter::new(io::stdout().lock());
        changes(&mut out, &found)?;
        out.flush()?;
        Ok(Exit::Ok)
    }
}

impl Save {
    pub(super) fn execute(self) -> Result<Exit> {
        let saved = block_on(self.socket.client().save())?;
        let mut out = BufWriter::new(io::stdout().lock());
        changes(&mut out, &saved.changes)?;
        let count = counted(saved.changes.len() as u64, "change");
        writeln!(out, "{}: {count} written", saved.path)?;
        out.flush()?;
        Ok(Exit::Ok)
    }
}

/// A real server's address and port, as in the file.
fn server(typed: &str) -> Result<SocketAddr, String> {
    value::socket_of_any_port(typed).map_err(|wrong| format!("{wrong}; expected {}", value::SOCKET))
}

/// What has changed, and until when that holds.
pub(super) fn show(changed: api::Changed) -> Result<Exit> {
    let mut out = BufWriter::new(io::stdout().lock());
    if changed.changes.is_empty() {
        writeln!(out, "it is so already")?;
    } else {
        changes(&mut out, &changed.changes)?;
        writeln!(out, "holds {}", changed.holds)?;
    }
    out.flush()?;
    Ok(Exit::Ok)
}
