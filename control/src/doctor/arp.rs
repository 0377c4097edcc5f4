//! Who answers ARP, or neighbour discovery, for the virtual addresses: nobody but RVS should.
//!
//! A probe as of RFC 5227, or of RFC 4862 (section 5.4): its sender has no address, so that nobody learns anything from it. It goes
//! out of the port's twin if RVS runs, or out of the interface that the port will take over. A NIC that DPDK has, while RVS
//! does not run, is out of reach. What the twin itself would answer does not come back to it, so that
//! whoever answers is somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dataplane::wire::checksum;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::{Finding, Severity};
use crate::config::value::interface;
use crate::config::{Config, VirtualAddresses};
use crate::rivals;

/// How long answers are waited for, twice: a machine that sleeps may miss the first question.
const PATIENCE: Duration = Duration::from_millis(500);

type Mac = [u8; 6];

/// Asks for every virtual address of the file, and for no other, and judges the answers. Takes a second for each port.
pub fn probe(config: &Config) -> Result<Vec<Finding>> {
    let mut asked: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
    let links = links()?;
    let mut findings = Vec::new();
    let all = config.services.iter();
    for (service, address) in all.flat_map(|one| one.virtual_addresses().map(move |address| (one, address))) {
        let port = config.port_of(service, address);
        let interfaces = port.devices.iter().filter_map(|device| interface(device));
        match std::iter::once(port.name.as_str()).chain(interfaces).find(|name| links.contains_key(*name)) {
            Some(name) => drop(asked.entry(name).or_default().insert(address)),
            None => findings.push(Finding::new(
                "arp-unasked",
                Severity::Note,
                format_args!("port {}", port.name),
                format_args!("nobody can be asked about {address}: Linux has no interface there"),
                "ask again while RVS runs",
            )),
        }
    }
    findings.dedup();
    for (name, addresses) in asked {
        let answers =
            ask(&links[name], &addresses).with_context(|| format!("cannot ask the segment of {name}"))?;
        findings.extend(judge(&answers, config));
    }
    Ok(findings)
}

/// What whoever answers means.
fn judge(answers: &BTreeMap<IpAddr, BTreeSet<Mac>>, config: &Config) -> Vec<Finding> {
    let finding = |(address, macs): (&IpAddr, &BTreeSet<Mac>)| {
        let macs: Vec<String> = macs.iter().map(show).collect();
        let direct = config.services.iter().any(|service| {
            service.mode.is_one_way() && service.virtual_addresses().any(|own| own == *address)
        });
        let remedy = match (direct, address) {
            (true, IpAddr::V4(_)) => {
                "if it is a real server: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 there; \
                 else take the address away from it"
            }
            // Of IPv6 Linux answers for the addresses of the interface that is asked, whatever the sysctls.
            (true, IpAddr::V6(_)) => {
                "if it is a real server: the address on its lo only; else take the address away from it"
            }
            (false, _) => "take the address away from it, or another virtual address",
        };
        let by = if address.is_ipv4() { "ARP" } else { "neighbour discovery" };
        let subject = format_args!("address {address}");
        let macs = macs.join(" and ");
        if config.run.virtual_addresses != VirtualAddresses::Place {
            let what = format_args!("{macs} answers {by} for it, as another router may that has it");
            return Finding::new("arp-shared", Severity::Note, subject, what, remedy);
        }
        let what = format_args!("{macs} answers {by} for it: clients go there, not to RVS");
        Finding::new("arp-answered", Severity::Error, subject, what, remedy)
    };
    answers.iter().map(finding).collect()
}

fn show(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The Ethernet interfaces by name.
fn links() -> Result<BTreeMap<String, LinkAddr>> {
    let interfaces = getifaddrs().context("cannot list the interfaces")?;
    let link = |interface: nix::ifaddrs::InterfaceAddress| {
        let link = *interface.address?.as_link_addr()?;
        Some((interface.interface_name, link))
    };
    Ok(interfaces.filter_map(link).collect())
}

/// Who answers for these addresses.
fn ask(link: &LinkAddr, addresses: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, BTreeSet<Mac>>> {
    let own = link.addr().context("it has no MAC address")?;
    let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .context("no raw socket (it takes CAP_NET_RAW)")?;
    bind(raw.as_raw_fd(), link)?;
    setsockopt(&raw, ReceiveTimeout, &TimeVal::milliseconds(20))?;
    let mut answers: BTreeMap<IpAddr, BTreeSet<Mac>> = BTreeMap::new();
    for _ in 0..2 {
        for &address in addresses {
            send(raw.as_raw_fd(), &question(own, address), MsgFlags::empty())?;
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some((address, mac)) = heard(&raw)?
                && addresses.contains(&address)
                && mac != own
            {
                answers.entry(address).or_default().insert(mac);
            }
        }
    }
    Ok(answers)
}

/// Who says with the next frame that it has an address, if anybody does.
fn heard(raw: &OwnedFd) -> Result<Option<(IpAddr, Mac)>> {
    let mut frame = [0; 256];
    match recv(raw.as_raw_fd(), &mut frame, MsgFlags::empty()) {
        Ok(length) => Ok(rivals::sender(&frame[..length.min(frame.len())])),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Ethernet and IPv4 in ARP (RFC 826).
const ARP: [u8; 8] = [0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4];
/// A neighbour solicitation without options (RFC 4861, section 4.3) in IPv6 from nobody: up to the destination, and up to the target.
const IPV6: [u8; 26] =
    [0x86, 0xDD, 0x60, 0, 0, 0, 0, 24, 58, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const SOLICITATION: [u8; 8] = [135, 0, 0, 0, 0, 0, 0, 0];

fn question(own: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => {
            let parts: [&[u8]; 8] =
                [&[0xff; 6], &own, &ARP, &[0, 1], &own, &[0; 4], &[0; 6], &address.octets()];
            let mut frame = parts.concat();
            frame.resize(60, 0);
            frame
        }
        IpAddr::V6(address) => {
            let [.., a, b, c] = address.octets();
            // Those whose addresses end like this one (RFC 4291, section 2.7.1), and the MAC of their group (RFC 2464, section 7).
            let group =
                Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
            let mut message = [&SOLICITATION, &address.octets()[..]].concat();
            // With the pseudo-header: destination, length and next header; the source is nothing.
            let sum = !checksum::sum(&[&group.octets()[..], &[0, 24, 0, 58], &message].concat());
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            [&[0x33, 0x33, 0xff, a, b, c], &own[..], &IPV6, &group.octets(), &message].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::testing::config;
    use super::*;
    use crate::net::tests::in_namespace;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
    const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456));

    #[test]
    fn a_question_tells_nobody_anything() {
        let frame = question(OWN, VIP);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[38..42], [192, 0, 2, 10]);
        assert_eq!(rivals::sender(&frame), Some((IpAddr::V4(Ipv4Addr::UNSPECIFIED), OWN)));
        let frame = question(OWN, VIP6);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!(rivals::sender(&frame), None);
    }

    /// Linux does, to whom the question is new, and so has to find it right.
    #[test]
    fn who_has_an_address_answers_the_question() {
        in_namespace(|| async {
            let ip = "ip link add va type veth peer name vb; ip link set va up; ip link set vb up;
                ip address add 192.0.2.10/24 dev vb; ip address add 2001:db8::12:3456/64 dev vb nodad";
            assert!(std::process::Command::new("sh").args(["-c", ip]).status().unwrap().success());
            let links = links().unwrap();
            let other = links["vb"].addr().unwrap();
            let absent = "2001:db8::12:3457".parse().unwrap();
            let answers = ask(&links["va"], &[VIP, VIP6, absent].into()).unwrap();
            assert_eq!(answers, [(VIP, [other].into()), (VIP6, [other].into())].into());
        });
    }

    #[test]
    fn whoever_answers_is_wrong() {
        let config = config("net_null", "");
        assert_eq!(judge(&BTreeMap::new(), &config), []);
        let found = judge(&[(VIP, BTreeSet::from([OWN]))].into(), &config);
        assert_eq!(found[0].severity, Severity::Error);
        assert!(found[0].problem.starts_with("02:00:00:00:00:01 answers ARP"), "{found:?}");
        assert!(found[0].remedy.contains("arp_ignore=1"), "direct routing: {found:?}");
        let found = judge(&[(VIP6, BTreeSet::from([OWN]))].into(), &config);
        assert!(found[0].problem.starts_with("02:00:00:00:00:01 answers neighbour discovery"), "{found:?}");
    }

    #[test]
    fn a_port_that_linux_does_not_see() {
        let found = probe(&config("0000:01:00.0", "")).unwrap();
        assert_eq!(found[0].severity, Severity::Note);
    }
}
