//! Bonds: ports made of several, by DPDK's own driver `net_bonding`.
//!
//! A bond is a virtual device. It is told its mode when it is made, and takes its members when it is configured first
//! ([`Port::gather`]); from then on it answers for them: as many queues as each of them has, what all of them can hash. It
//! starts and stops them, too. Whoever has the bond keeps the members' [`Port`]s beside it, so that nobody else takes one, and
//! to ask them for their links.

use std::fmt::Write;

use dpdk_sys::rte_eth_conf;

use crate::error::{Errno, Error};
use crate::port::{Port, Started, Stopped};

/// How a bond uses its members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// One at a time, and the next one when its link goes.
    ActiveBackup,
    /// All that have a link, each packet by a hash.
    Balance(Hash),
    /// All upon which both ends have agreed by LACP (IEEE 802.1AX, once 802.3ad), each packet by a hash.
    Lacp(Hash),
}

/// What decides by which member a packet leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hash {
    /// MACs.
    Layer2,
    /// MACs and addresses.
    Layer23,
    /// Addresses and ports.
    Layer34,
}

/// The arguments by which a bond of this name, which begins with `net_bonding`, is made of the ports with these names.
pub fn bond<'a>(
    name: &str,
    mode: Mode,
    members: impl IntoIterator<Item = &'a str>,
    primary: Option<&str>,
) -> String {
    let member = if dpdk_sys::RVS_BOND_SAYS_SLAVE == 1 { "slave" } else { "member" };
    let (number, hash) = match mode {
        Mode::ActiveBackup => (1, None),
        Mode::Balance(hash) => (2, Some(hash)),
        Mode::Lacp(hash) => (4, Some(hash)),
    };
    let mut text = format!("{name},mode={number}");
    if let Some(hash) = hash {
        text.push_str(match hash {
            Hash::Layer2 => ",xmit_policy=l2",
            Hash::Layer23 => ",xmit_policy=l23",
            Hash::Layer34 => ",xmit_policy=l34",
        });
    }
    for port in members {
        let _ = write!(text, ",{member}={port}");
    }
    if let Some(primary) = primary {
        let _ = write!(text, ",primary={primary}");
    }
    text
}

impl Port<Stopped> {
    /// Has a bond take its members, so that it says what it can do with them.
    pub fn gather(&self) -> Result<(), Error> {
        let claim = self.claim();
        // Nothing is asked for, which every device takes; what is wanted of it is said when it is configured again.
        let conf = rte_eth_conf::default();
        // SAFETY: the port is valid, stopped and ours alone; the structure lives through the call.
        claim
            .ask("take its members", unsafe { dpdk_sys::rte_eth_dev_configure(claim.id(), 1, 1, &conf) })
            .map(drop)
    }
}

impl Port<Started> {
    /// Whether this port, a bond, sends by this member. With LACP that is more than a link: both ends have agreed upon it.
    pub fn sends_by(&self, member: &Port<Stopped>) -> Result<bool, Errno> {
        // SAFETY: valid ports; DPDK looks for itself whether the first is a bond, and the other one a member.
        let returned = unsafe { dpdk_sys::rvs_bond_sends_by(self.id(), member.id()) };
        Errno::check(returned).map(|sends| sends == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let members = ["0000:01:00.0", "net_null1"];
        // As DPDK 22.11 has it, and from 23.11 on.
        let told = |mode, primary| bond("net_bonding0", mode, members, primary).replace("slave", "member");
        assert_eq!(
            told(Mode::ActiveBackup, Some("net_null1")),
            "net_bonding0,mode=1,member=0000:01:00.0,member=net_null1,primary=net_null1"
        );
        assert_eq!(
            told(Mode::Lacp(Hash::Layer34), None),
            "net_bonding0,mode=4,xmit_policy=l34,member=0000:01:00.0,member=net_null1"
        );
        assert!(told(Mode::Balance(Hash::Layer23), None).starts_with("net_bonding0,mode=2,xmit_policy=l23,"));
    }
}
