//! Changes without the file: drain, weigh, add and remove, flush, and writing them into the file.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dataplane::service::{Helper, MAX_WEIGHT};
use tokio::time::Instant;

use super::Director;
use crate::admin::{Flush, Order, api};
use crate::config::{self, Config, Server, ServerState};
use crate::events::Kind;
use crate::flush::{self, Filter};
use crate::ids::ServiceKey;
use crate::services::diff::diff;
use crate::services::live::{check_new_server, check_new_service, require_server, require_service};
use crate::services::save;

/// What is said of how long a live change holds.
const HOLDS: &str = "until it is taken back, the file's entry is edited and reloaded, or rvs ends (an upgrade is no end); `rvs save` keeps it";

impl Director {
    /// Carries out a live change, or changes nothing.
    pub(super) async fn change(&mut self, order: Order) -> Result<api::Changed> {
        let before = self.services.running().to_vec();
        let now = Instant::now();
        match order {
            Order::Withdraw(address) => return self.order(self.withdrawn(address)?).await,
            Order::Announce(address) => return self.order(self.announced(address)?).await,
            Order::Patch { service, server, patch } => self.patch(service, server, &patch, now)?,
            Order::AddServer { service, server } => self.add_server(service, &server, now)?,
            Order::RemoveServer { service, server } => {
                require_server(&before, service, server)?;
                self.services.set_server(service, server, None, None, now);
            }
            Order::AddService(settings) => self.add_service(&settings, now)?,
            Order::RemoveService(service) => {
                require_service(&before, service)?;
                self.services.set_service(service, None, now);
            }
        }
        let changes = diff(&before, self.services.running());
        for change in &changes {
            tracing::info!(%change, "changed live");
            self.events.publish(Kind::ChangedLive { change: change.to_string() });
        }
        self.put_in_force().await;
        Ok(api::Changed { generation: self.generation, changes, holds: HOLDS.to_owned() })
    }

    fn patch(
        &mut self,
        service: ServiceKey,
        address: SocketAddr,
        patch: &api::ServerPatch,
        now: Instant,
    ) -> Result<()> {
        let mut server = *require_server(self.services.running(), service, address)?;
        if let Some(weight) = patch.weight {
            ensure!(weight <= MAX_WEIGHT, "weight {weight} is out of range; expected 0 to {MAX_WEIGHT}");
            server.weight = weight;
        }
        if let Some(state) = &patch.state {
            server.state = ServerState::from_name(state).with_context(|| {
                let names = ServerState::ALL.map(ServerState::name).join(", ");
                format!("unknown state {state:?}; expected one of {names}")
            })?;
        }
        let given = patch.deadline.map(|seconds| now + Duration::from_secs(seconds.min(31 * 24 * 3600)));
        // Who only weighs a drained server does not take its deadline away.
        let kept = patch.state.is_none().then(|| self.services.deadline(service, address)).flatten();
        let deadline = given.or(kept);
        ensure!(
            deadline.is_none() || server.state == ServerState::Drained,
            "a deadline is for a drained server; expected state \"drained\""
        );
        self.services.set_server(service, address, Some(server), deadline, now);
        Ok(())
    }

    fn add_server(&mut self, service: ServiceKey, new: &api::NewServer, now: Instant) -> Result<()> {
        let running = self.services.running();
        let known = require_service(running, service)?;
        let weight = new.weight.unwrap_or(1);
        ensure!(weight <= MAX_WEIGHT, "weight {weight} is out of range; expected 0 to {MAX_WEIGHT}");
        let port = new.address.port();
        let keeps_port = known.mode.is_one_way() || known.helper == Some(Helper::Ipsec);
        ensure!(
            known.address.port() == 0 || !keeps_port || port == known.address.port(),
            "{service} cannot change the port; expected {}",
            SocketAddr::new(new.address.ip(), known.address.port())
        );
        let server = Server { weight, check: !known.checks.is_empty(), ..Server::new(new.address) };
        check_new_server(running, &self.own_addresses(), service, &server)?;
        let numbers = 1 + known.mark.as_ref().map_or(0, |marked| marked.faces.len());
        ensure!(self.ids.room() >= numbers, "no more real servers can be told apart now");
        self.services.set_server(service, new.address, Some(server), None, now);
        Ok(())
    }

    fn add_service(&mut self, settings: &serde_json::Value, now: Instant) -> Result<()> {
        let text = save::text_of(settings)?;
        let mut services = config::parse_services(&text)?;
        let (Some(service), true) = (services.pop(), services.is_empty()) else {
            bail!("expected the settings of one service")
        };
        let key = ServiceKey::of(&service);
        check_new_service(self.services.running(), &self.own_addresses(), &service)?;
        if let Some(name) = &service.port {
            let names: Vec<&str> = self.config.ports.iter().map(|port| port.name.as_str()).collect();
            ensure!(names.contains(&name.as_str()), "no port {name:?}; expected one of {}", names.join(", "));
        }
        let servers = service.numbers();
        ensure!(servers <= self.ids.room(), "{servers} real servers are more than can be told apart now");
        self.services.set_service(key, Some((service, text)), now);
        Ok(())
    }

    pub(super) fn own_addresses(&self) -> Vec<IpAddr> {
        let ports = self.config.ports.iter();
        ports.flat_map(|port| port.addresses.iter().map(|prefix| prefix.address)).collect()
    }

    /// Writes what is running into the file.
    pub(super) fn save(&mut self, on_disk: &Config) -> Result<api::Saved> {
        let path = self.config.path.clone();
        let shown = path.display();
        let edited = diff(self.services.file(), &on_disk.services);
        ensure!(
            edited.is_empty(),
            "{shown} has been edited since it was read ({} and {} more); reload it first, or put it back",
            edited[0],
            edited.len() - 1
        );
        let running = self.services.running();
        let changes = diff(&on_disk.services, running);
        if changes.is_empty() {
            return Ok(api::Saved { path: shown.to_string(), changes });
        }
        let texts = |key| self.services.text_of(key);
        let text = save::save(on_disk.source.text(), &on_disk.services, running, texts)?;
        let saved = config::parse(&path, text.clone().into_bytes())?;
        let wrong = diff(&saved.services, running);
        ensure!(wrong.is_empty(), "{shown} would not say what is running: {}", wrong[0]);
        replace(&path, &text).with_context(|| format!("cannot write {shown}"))?;
        self.services.saved(saved.services, Instant::now());
        tracing::info!(file = %shown, changes = changes.len(), "saved");
        Ok(api::Saved { path: shown.to_string(), changes })
    }

    /// Prepares to forget connections, here and at the peers.
    pub(super) fn flush(&self, filter: api::Filter) -> Result<Flush> {
        let service = match &filter.service {
            None => None,
            Some(typed) => {
                let key: ServiceKey = typed.parse().map_err(anyhow::Error::msg)?;
                require_service(&self.services.listed(), key)?;
                Some(key)
            }
        };
        let chosen = service.is_some() || filter.server.is_some() || filter.client.is_some();
        ensure!(
            chosen != filter.all,
            "expected a service, a server or a client whose connections are to be forgotten, or all"
        );
        let filter = Filter { service, server: filter.server, client: filter.client };
        let (table, snapshots, peers) = (self.table.clone(), self.publisher.subscribe(), self.peers.shared());
        Ok(Box::new(move || {
            let _under_way = peers.map(|peers| peers.flush(filter));
            flush::remove_all(&table, snapshots, |snapshot, slot, word| {
                filter.matches_word(&table, snapshot, slot, word)
            })
        }))
    }
}

/// Puts a text in the place of a file, all of it or nothing, with the file's mode.
fn replace(path: &std::path::Path, text: &str) -> Result<()> {
    // What a link leads to is the file.
    let path = fs::canonicalize(path)?;
    let mut name = path.file_name().context("it has no name")?.to_owned();
    name.push(".rvs-save");
    let new = path.with_file_name(name);
    let mut file = fs::File::create(&new)?;
    file.set_permissions(fs::metadata(&path)?.permissions())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    Ok(())
}
