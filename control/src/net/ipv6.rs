//! How Linux does IPv6 on a twin: as a router's interface, on which nothing happens that nobody has configured.
//!
//! Whoever wants it otherwise sets it while the twin is there, e.g. `sysctl net.ipv6.conf.wan.accept_ra=2` to have the default
//! route of a router that announces itself. An upgrade leaves it at that.

use std::path::Path;
use std::{fs, io};

use crate::root::Root;

/// Why a twin cannot have an address of IPv6, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIpv6 {
    /// Linux was started without it, or made without it.
    #[error(
        "this Linux has no IPv6; expected one that was started without ipv6.disable=1, or no IPv6 address"
    )]
    Anywhere,
    /// It is switched off on new interfaces.
    #[error(
        "IPv6 is switched off on the twin; expected sysctl net.ipv6.conf.default.disable_ipv6 = 0 before rvs starts, \
         or no IPv6 address"
    )]
    OnTwins,
}

impl NoIpv6 {
    /// What keeps a twin that is made now from having one.
    pub(crate) fn of(root: &Root) -> Option<NoIpv6> {
        if root.exists("/proc/sys/net/ipv4") && !root.exists("/proc/sys/net/ipv6") {
            return Some(NoIpv6::Anywhere);
        }
        let off: Option<u8> = root.number("/proc/sys/net/ipv6/conf/default/disable_ipv6");
        off.filter(|off| *off != 0).map(|_| NoIpv6::OnTwins)
    }
}

/// Settings of `net.ipv6.conf.TWIN`, and what they are to be.
const SETTINGS: [(&str, &str); 5] = [
    // Addresses and routes are those that are configured: whoever can send a router advertisement could have the way out.
    ("accept_ra", "0"),
    // A link-local address, without which Linux asks no neighbour for RVS. It is made from the MAC, and so stays the same.
    ("addr_gen_mode", "0"),
    // Virtual addresses and the link-local one are there in a moment, also without a carrier, as those of IPv4 are. Duplicates are
    // heard of (`rivals`). By this and not by a flag of the address, with which Linux would not announce it. Where the setting is
    // made for `all` interfaces, they are checked all the same, which takes a second.
    ("accept_dad", "0"),
    // Linux tells the segment of each virtual address that it gets, as nobody does for IPv4 but keepalived.
    ("ndisc_notify", "1"),
    // An operator who sets the twin down and up finds its addresses there, as those of IPv4.
    ("keep_addr_on_down", "1"),
];

/// Before it is up. Where Linux has no IPv6, there is nothing to set up. What cannot be set is no news where nothing of IPv6
/// `is_configured`.
pub(super) fn set_up(twin: &str, is_configured: bool) {
    let settings = Path::new("/proc/sys/net/ipv6/conf").join(twin);
    if !settings.exists() {
        return;
    }
    let Some((unset, error)) = set(&settings) else { return };
    let (settings, unset) = (settings.display(), unset.join(", "));
    let message = "IPv6 on the twin is not as it should be";
    match is_configured {
        true => tracing::warn!(%settings, unset, %error, message),
        false => tracing::debug!(%settings, unset, %error, message),
    }
}

/// What could not be set in this directory, with the values that were wanted, and why the last of them could not.
fn set(settings: &Path) -> Option<(Vec<String>, io::Error)> {
    let (mut unset, mut last) = (Vec::new(), None);
    for (name, wanted) in SETTINGS {
        let path = settings.join(name);
        // In a container they may be for reading only.
        let is_so = fs::read_to_string(&path).is_ok_and(|value| value.trim() == wanted);
        if !is_so && let Err(error) = fs::write(&path, wanted) {
            unset.push(format!("{name} = {wanted}"));
            last = Some(error);
        }
    }
    Some((unset, last?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::testing::machine;

    #[test]
    fn what_a_machine_lacks() {
        let of = |files: &[(&str, &str)]| NoIpv6::of(&machine(files).1);
        let default = |value| ("/proc/sys/net/ipv6/conf/default/disable_ipv6", value);
        let four = ("/proc/sys/net/ipv4/ip_forward", "0");
        assert_eq!(of(&[four, default("0")]), None);
        assert_eq!(of(&[four, default("1")]), Some(NoIpv6::OnTwins));
        assert_eq!(of(&[four]), Some(NoIpv6::Anywhere));
        assert_eq!(of(&[]), None, "nothing is known");
    }

    #[test]
    fn what_cannot_be_set_is_told_at_once() {
        let (directory, _) = machine(&[("/accept_ra", "1"), ("/accept_dad", "0")]);
        assert!(set(directory.path()).is_none());
        let value = |name| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(["accept_ra", "accept_dad", "ndisc_notify"].map(value), ["0", "0\n", "1"]);
        // What nobody can write to, not even root.
        for name in ["addr_gen_mode", "ndisc_notify"] {
            fs::remove_file(directory.path().join(name)).unwrap();
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let (unset, error) = set(directory.path()).unwrap();
        assert_eq!(unset, ["addr_gen_mode = 0", "ndisc_notify = 1"]);
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }
}
