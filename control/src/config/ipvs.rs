//! `[ipvs_sync]`: the sync protocol of Linux IPVS, for as long as a director of LVS and this router hand over to each
//! other. The keys are what `ipvsadm --start-daemon` takes.

use std::net::Ipv4Addr;

use super::Service;
use super::check::{narrow, one_of};
use super::error::quoted;
use super::raw::Section;
use super::value::{self, PORT_NAME};

/// How the sync protocol of Linux IPVS is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsSync {
    /// What this router does.
    pub role: Role,
    /// The interface of Linux on which it does: a twin, or any other.
    pub interface: String,
    /// Which directors belong together. A backup with 0 listens to all.
    pub syncid: u8,
    /// Where messages are multicast to.
    pub group: Ipv4Addr,
    /// Their UDP port.
    pub port: u16,
    /// How many routers they may pass.
    pub ttl: u8,
    /// The longest message that is sent, in bytes of UDP payload.
    pub maxlen: u16,
}

/// What a router does in the sync protocol of Linux IPVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It listens, and takes over what directors tell of.
    Backup,
    /// It tells of its own connections.
    Master,
    /// Both.
    Both,
}

impl Role {
    const ALL: [Role; 3] = [Role::Backup, Role::Master, Role::Both];

    /// As it stands in the file.
    pub fn name(self) -> &'static str {
        match self {
            Role::Backup => "backup",
            Role::Master => "master",
            Role::Both => "both",
        }
    }

    /// Whether it listens.
    pub fn listens(self) -> bool {
        self != Role::Master
    }

    /// Whether it tells.
    pub fn tells(self) -> bool {
        self != Role::Backup
    }
}

/// The group and the port of Linux.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 81);
const PORT: u16 = 8848;
/// What fits into an Ethernet frame, and what every backup reads: Linux makes room for the interface's MTU, at least 1500
/// in newer versions, without the headers of IP and UDP.
const MAXLEN: u16 = 1472;
/// From one connection to what UDP can carry.
const LENGTHS: std::ops::RangeInclusive<u64> = 44..=65_507;

/// Refuses real servers of another family than their service's, which directors of Linux do not take as long as they tell each other.
pub(super) fn compare(services: &[(Option<Service>, Vec<Section<'_>>)]) {
    let known = services.iter().filter_map(|(service, sections)| Some((service.as_ref()?, sections)));
    for (service, sections) in known {
        for (server, section) in service.servers.iter().zip(sections) {
            if server.address.is_ipv4() != service.address.is_ipv4()
                && let Some(field) = section.get("address")
            {
                field.error::<()>(format_args!(
                    "{} is not of the service's family, which the sync protocol of Linux cannot tell; \
                     expected an address of its family, or no [ipvs_sync]",
                    server.address.ip()
                ));
            }
        }
    }
}

pub(super) fn ipvs_sync(section: &Section<'_>) -> Option<IpvsSync> {
    section.known(&["role", "interface", "syncid", "group", "port", "ttl", "maxlen"]);
    let names = Role::ALL.map(Role::name);
    let role = section.require("role", format_args!("one of {}", names.join(", "))).and_then(|field| {
        one_of("role", &names, |name| Role::ALL.into_iter().find(|role| role.name() == name), &field)
    });
    let interface = section
        .require("interface", "the interface that directors are on, e.g. \"eth2\" or the name of a port")
        .and_then(|field| field.parse(PORT_NAME, value::port_name));
    let syncid = section.or("syncid", 0, |field| narrow(field.integer(0..=255)));
    let group = section.or("group", GROUP, |field| {
        field.parse("an IPv4 multicast address, e.g. \"224.0.0.81\"", |typed| {
            let group = typed.parse().ok().filter(Ipv4Addr::is_multicast);
            group.ok_or_else(|| format!("{} is no group", quoted(typed)))
        })
    });
    let port = section.or("port", PORT, |field| narrow(field.integer(1..=65_535)));
    let ttl = section.or("ttl", 1, |field| narrow(field.integer(1..=255)));
    let maxlen = section.or("maxlen", MAXLEN, |field| narrow(field.integer(LENGTHS)));
    Some(IpvsSync {
        role: role?,
        interface: interface?,
        syncid: syncid?,
        group: group?,
        port: port?,
        ttl: ttl?,
        maxlen: maxlen?,
    })
}
