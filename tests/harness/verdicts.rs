//! What a router's health checks say of a service's servers, and what it tells of them.

use std::net::SocketAddrV4;

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cluster::vip,
    listing::{Server, Service},
    router::Router,
    wait::{self, PATIENCE},
};

impl Router {
    /// The service on this port of the virtual address.
    pub fn service_on(&self, port: u16) -> Result<Service> {
        let services = self.services()?;
        services
            .into_iter()
            .find(|service| service.address == vip(port).into())
            .with_context(|| format!("no {port}"))
    }

    /// A server of the service on this port of the virtual address.
    pub fn server_on(&self, port: u16, server: SocketAddrV4) -> Result<Server> {
        let servers = self.service_on(port)?.servers;
        servers
            .into_iter()
            .find(|known| known.address == server.into())
            .with_context(|| format!("no {server}"))
    }

    /// Waits until a server of a service is up, or is not.
    pub fn wait_up_on(&self, port: u16, server: SocketAddrV4, up: bool) -> Result<()> {
        wait::until(&format!("{server} of service {port} is up: {up}"), PATIENCE, || {
            let server = self.server_on(port, server)?;
            ensure!(server.up == up, "{server:?}");
            Ok(())
        })
    }

    /// Waits until exactly these servers, told by their service's port, are down, each for a reason with these words.
    pub fn wait_exactly_down(&self, down: &[(u16, SocketAddrV4, &str)]) -> Result<()> {
        wait::until(&format!("exactly these are down: {down:?}"), PATIENCE, || {
            for service in self.services()? {
                for server in service.servers {
                    let at = (service.address.port(), server.address);
                    let expected = down.iter().find(|(port, address, _)| (*port, (*address).into()) == at);
                    match (expected, server.up, server.reason.as_deref().unwrap_or_default()) {
                        (None, true, _) => {}
                        (Some((.., words)), false, reason) if reason.contains(words) => {}
                        (_, up, reason) => {
                            bail!("{at:?}: up: {up}, reason: {reason:?}, expected {expected:?}")
                        }
                    }
                }
            }
            Ok(())
        })
    }

    /// What has happened, as `rvs events` says it, without time and number.
    pub fn events(&self) -> Result<Vec<String>> {
        let text = self.rvs("events").run()?;
        let line = |line: &str| Some(line.trim().split_once("  ")?.1.split_once("  ")?.1.to_owned());
        Ok(text.lines().filter_map(line).collect())
    }

    /// Waits for an event with these words.
    pub fn wait_event(&self, words: &str) -> Result<()> {
        wait::until(&format!("an event says {words:?}"), PATIENCE, || {
            let events = self.events()?;
            ensure!(events.iter().any(|event| event.contains(words)), "{events:#?}");
            Ok(())
        })
    }
}
