//! The members of a bond: found, joined, asked how they are.

use anyhow::Result;
use dpdk::bond::bond;
use dpdk::{Eal, Link, Port, Settings, Started, Stopped};

use super::refused;
use crate::admin::api;
use crate::config::{Bond, Config, Machine};
use crate::devices::Device;

/// Those of a port, in the order of the configuration. A port that is no bond has none.
#[derive(Default)]
pub struct Members {
    has_lacp: bool,
    all: Vec<Member>,
}

struct Member {
    /// DPDK's name of it.
    name: String,
    /// None of a device that is not there: the bond began without it.
    port: Option<Port<Stopped>>,
}

/// Makes the bond of this name, which has taken its members. It begins without those that are not there, if
/// [they are awaited](Machine::awaited), but not without any.
pub(super) fn make(
    config: &Config,
    index: usize,
    (name, bonding): (&str, Bond),
    devices: &[Device],
    machine: &Machine,
    eal: &Eal,
) -> Result<(Port<Stopped>, Members)> {
    let port = &config.ports[index];
    let mut all = Vec::new();
    for (place, device) in devices.iter().enumerate() {
        let failed = |error| refused(config, &port.key_of_device(index, place), error);
        if let Device::Virtual { devargs, .. } = device {
            eal.probe(devargs).map_err(failed)?;
        }
        let name = device.port_name();
        let found = match Port::by_name(eal, name) {
            Err(dpdk::Error::NoPort(_)) if machine.lacks(&port.devices[place]) => {
                tracing::error!("port {}: there is no PCI device {name}; it begins without", port.name);
                None
            }
            found => Some(found.map_err(failed)?),
        };
        all.push(Member { name: name.to_owned(), port: found });
    }
    let is_there = |member: &&Member| member.port.is_some();
    let there = || all.iter().filter(is_there).map(|member| member.name.as_str());
    let primary = bonding.primary.map(|place| &all[place]).filter(is_there);
    let failed = |error| refused(config, &format!("port[{index}].bond"), error);
    eal.probe(&bond(name, bonding.mode, there(), primary.map(|member| member.name.as_str())))
        .map_err(failed)?;
    let bond = Port::by_name(eal, name).map_err(failed)?;
    bond.gather().map_err(failed)?;
    Ok((bond, Members { has_lacp: bonding.has_lacp(), all }))
}

impl Members {
    /// Whether each could run as the bond is to; what is refused is told by the member's own key.
    pub(super) fn check(&self, config: &Config, index: usize, settings: &Settings) -> Result<()> {
        for (place, member) in self.all.iter().enumerate() {
            let key = config.ports[index].key_of_device(index, place);
            let Some(port) = &member.port else { continue };
            port.check(settings).map_err(|error| refused(config, &key, error))?;
        }
        Ok(())
    }

    /// The NUMA node of the first of them that tells.
    pub(super) fn node(&self) -> Option<u32> {
        self.all.iter().find_map(|member| member.port.as_ref()?.info().ok()?.socket)
    }

    /// How they are in this bond.
    pub(super) fn describe(&self, bond: &Port<Started>) -> Vec<api::Member> {
        let describe = |member: &Member| {
            let port = member.port.as_ref();
            let link = port.and_then(|port| port.link().ok()).unwrap_or(Link { up: false, speed: None });
            let sends = port.is_some_and(|port| bond.sends_by(port).unwrap_or(false));
            api::Member {
                name: member.name.clone(),
                up: link.up && (sends || !self.has_lacp),
                sends,
                link_up: link.up,
                link_speed: link.speed,
            }
        };
        self.all.iter().map(describe).collect()
    }

    /// Closes them, when their bond is closed.
    pub(super) fn close(self) -> Result<(), dpdk::Error> {
        self.all.into_iter().filter_map(|member| member.port).try_for_each(Port::<Stopped>::close)
    }
}
