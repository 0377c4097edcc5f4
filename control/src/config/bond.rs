//! `[port.bond]`: a port of several devices, by DPDK's own bonding driver.
//!
//! Modes and hashes have the names that Linux gives them (its `bonding.rst`), since that is what an operator writes at the
//! switch's other customers. Linux' other modes are left out: round robin reorders a connection's packets, broadcast doubles
//! them, and the two that balance without the switch rewrite ARP, which is the twin's.

use dpdk::bond::{Hash, Mode};

use super::check::one_of;
use super::error::quoted;
use super::raw::Section;
use super::value::{self, DEVICE};

/// How a port uses its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bond {
    /// Which of them it sends by.
    pub mode: Mode,
    /// Which of them, by number, is to be used while it has a link, with [`Mode::ActiveBackup`]; none is the first.
    pub primary: Option<usize>,
}

impl Bond {
    /// Whether members are agreed upon with the other end, by LACP.
    pub fn has_lacp(&self) -> bool {
        matches!(self.mode, Mode::Lacp(_))
    }
}

/// The modes, in the order in which `read` makes them.
pub const MODES: [&str; 3] = ["active-backup", "balance-xor", "802.3ad"];

/// What decides by which member a packet leaves.
pub const HASHES: [&str; 3] = ["layer2", "layer2+3", "layer3+4"];

/// More would be a mistake: a link aggregation group of a switch hardly has as many.
const MOST: usize = 8;

/// A bond, and its members.
pub(super) fn read(section: &Section<'_>) -> Option<(Bond, Vec<String>)> {
    const MEMBERS: &str = "the devices, e.g. [\"0000:01:00.0\", \"0000:01:00.1\"]";
    section.known(&["mode", "members", "primary", "transmit_hash"]);
    let mode = section.require("mode", format_args!("one of {}", MODES.join(", ")));
    let mode = mode.and_then(|field| {
        let place = |typed: &str| MODES.iter().position(|name| *name == typed);
        one_of("mode of a bond", &MODES, place, &field)
    });
    let members = section.require("members", MEMBERS).and_then(|field| {
        let members = field.all(|member| member.parse(DEVICE, value::device))?;
        match members.len() {
            2..=MOST => Some(members),
            count => field.error(format_args!("has {count} members; expected 2 to {MOST}")),
        }
    });
    let hash = section.or("transmit_hash", Hash::Layer34, |field| {
        let hash = |typed: &str| match typed {
            "layer2" => Some(Hash::Layer2),
            "layer2+3" => Some(Hash::Layer23),
            "layer3+4" => Some(Hash::Layer34),
            _ => None,
        };
        one_of("hash", &HASHES, hash, &field)
    });
    let (mode, members, hash) = (mode?, members?, hash?);
    let mode = [Mode::ActiveBackup, Mode::Balance(hash), Mode::Lacp(hash)][mode];
    let misplaced = |key: &str, of: &str| match section.get(key) {
        Some(field) => field.error(format_args!("says nothing here; expected only with {of}")),
        None => Some(()),
    };
    match mode {
        Mode::ActiveBackup => misplaced("transmit_hash", "mode = \"balance-xor\" or \"802.3ad\"")?,
        _ => misplaced("primary", "mode = \"active-backup\"")?,
    }
    let primary = section.optional("primary", |field| {
        field.parse("one of the members, as it stands there", |typed| {
            let place = members.iter().position(|member| member == typed);
            place.ok_or_else(|| format!("{} is none of them", quoted(typed)))
        })
    })?;
    Some((Bond { mode, primary }, members))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn port(keys: &str) -> Result<Config, String> {
        let text = format!("[workers]\ncores = [1]\n[[port]]\nname = 'wan'\n{keys}\n");
        crate::config::parse(Path::new("f"), text.into()).map_err(|errors| errors.to_string())
    }

    fn bond(keys: &str) -> Result<Config, String> {
        port(&format!("bond = {{ members = ['01:00.0', '01:00.1'], {keys} }}"))
    }

    #[test]
    fn modes_and_hashes() {
        for (keys, mode, primary) in [
            ("mode = 'active-backup'", Mode::ActiveBackup, None),
            ("mode = 'active-backup', primary = '01:00.1'", Mode::ActiveBackup, Some(1)),
            ("mode = 'balance-xor'", Mode::Balance(Hash::Layer34), None),
            ("mode = 'balance-xor', transmit_hash = 'layer2'", Mode::Balance(Hash::Layer2), None),
            ("mode = '802.3ad', transmit_hash = 'layer2+3'", Mode::Lacp(Hash::Layer23), None),
        ] {
            let config = bond(keys).unwrap();
            assert_eq!(config.ports[0].bond, Some(Bond { mode, primary }), "{keys}");
            assert_eq!(config.ports[0].devices, ["01:00.0", "01:00.1"]);
        }
    }

    #[test]
    fn what_is_refused() {
        let members = |list: &str| port(&format!("bond = {{ mode = '802.3ad', members = [{list}] }}"));
        for (refused, expected) in [
            (bond(""), "port[0].bond.mode: missing; expected one of active-backup, balance-xor, 802.3ad"),
            (bond("mode = 'lacp'"), "port[0].bond.mode: unknown mode of a bond \"lacp\"; expected one of"),
            (bond("mode = '802.3ad', transmit_hash = 'l34'"), "port[0].bond.transmit_hash: unknown hash"),
            (
                bond("mode = '802.3ad', primary = '01:00.0'"),
                "port[0].bond.primary: says nothing here; expected only with mode = \"active-backup\"",
            ),
            (bond("mode = 'active-backup', transmit_hash = 'layer2'"), "port[0].bond.transmit_hash: says"),
            (
                bond("mode = 'active-backup', primary = '02:00.0'"),
                "port[0].bond.primary: \"02:00.0\" is none of them; expected one of the members",
            ),
            (members("'01:00.0'"), "port[0].bond.members: has 1 members; expected 2 to 8"),
            (members("'01:00.0', ''"), "port[0].bond.members[1]: \"\" names no device"),
            (members("'01:00.0', '1:00.0', '01:00.0'"), "members[2]: device 0000:01:00.0 stands in line 5"),
            (
                members("'01:00.0', 'net_af_packet,iface=wan'"),
                "port[0].bond.members[1]: interface wan has the name of the port's twin",
            ),
            (port(""), "port[0].device: missing; expected a PCI address"),
            (
                port("device = '02:00.0'\nbond = { mode = '802.3ad', members = ['01:00.0', '01:00.1'] }"),
                "port[0].bond: a port has a device or is a bond; expected one of device and bond",
            ),
        ] {
            let error = refused.unwrap_err();
            assert!(error.contains(expected), "{expected}\n{error}");
        }
    }

    #[test]
    fn what_needs_a_restart() {
        let old = bond("mode = '802.3ad'").unwrap();
        let key = |new: &Config| old.needs_restart(new);
        assert_eq!(key(&old), None);
        assert_eq!(key(&bond("mode = 'balance-xor'").unwrap()).as_deref(), Some("port[0].bond"));
        let members = port("bond = { mode = '802.3ad', members = ['01:00.0', '02:00.1'] }").unwrap();
        assert_eq!(key(&members).as_deref(), Some("port[0].bond"));
        assert_eq!(key(&port("device = '01:00.0'").unwrap()).as_deref(), Some("port[0].bond"));
    }
}
