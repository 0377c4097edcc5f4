//! Who answers ARP for the virtual addresses: nobody but RVS should.
//!
//! A probe as of RFC 5227: sender 0.0.0.0, so that nobody learns anything from it. It goes out of the port's
//! twin if RVS runs, or out of the interface that the port will take over. A NIC that DPDK has, while RVS
//! does not run, is out of reach. What the twin itself would answer does not come back to it, so that
//! whoever answers is somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::{Finding, Severity};
use crate::config::value::interface;
use crate::config::{Config, VirtualAddresses};

/// How long answers are waited for, twice: a machine that sleeps may miss the first question.
const PATIENCE: Duration = Duration::from_millis(500);

type Mac = [u8; 6];

/// Asks for every virtual address of the file, and for no other, and judges the answers. Takes a second for each port.
pub fn probe(config: &Config) -> Result<Vec<Finding>> {
    let mut asked: BTreeMap<&str, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    let links = links()?;
    let mut findings = Vec::new();
    // Addresses of IPv6 are not asked for by ARP.
    for (service, address) in config.services.iter().filter_map(|service| Some((service, service.ipv4()?))) {
        let port = config.port_of(service);
        let candidates = [Some(port.name.as_str()), interface(&port.device)];
        match candidates.into_iter().flatten().find(|name| links.contains_key(*name)) {
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
            ask(&links[name], &addresses).with_context(|| format!("cannot ask by ARP on {name}"))?;
        findings.extend(judge(&answers, config));
    }
    Ok(findings)
}

/// What whoever answers means.
fn judge(answers: &BTreeMap<Ipv4Addr, BTreeSet<Mac>>, config: &Config) -> Vec<Finding> {
    let finding = |(address, macs): (&Ipv4Addr, &BTreeSet<Mac>)| {
        let macs: Vec<String> = macs.iter().map(show).collect();
        let direct = config
            .services
            .iter()
            .any(|service| service.address.ip() == *address && service.mode.is_one_way());
        let remedy = match direct {
            true => {
                "if it is a real server: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 there; \
                 else take the address away from it"
            }
            false => "take the address away from it, or another virtual address",
        };
        let subject = format_args!("address {address}");
        let macs = macs.join(" and ");
        if config.run.virtual_addresses != VirtualAddresses::Place {
            let what = format_args!("{macs} answers ARP for it, as another router may that has it");
            return Finding::new("arp-shared", Severity::Note, subject, what, remedy);
        }
        let what = format_args!("{macs} answers ARP for it: clients go there, not to RVS");
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
fn ask(link: &LinkAddr, addresses: &BTreeSet<Ipv4Addr>) -> Result<BTreeMap<Ipv4Addr, BTreeSet<Mac>>> {
    let own = link.addr().context("it has no MAC address")?;
    let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .context("no raw socket (it takes CAP_NET_RAW)")?;
    bind(raw.as_raw_fd(), link)?;
    setsockopt(&raw, ReceiveTimeout, &TimeVal::milliseconds(20))?;
    let mut answers: BTreeMap<Ipv4Addr, BTreeSet<Mac>> = BTreeMap::new();
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

/// The next frame, if it is an answer.
fn heard(raw: &OwnedFd) -> Result<Option<(Ipv4Addr, Mac)>> {
    let mut frame = [0; 128];
    match recv(raw.as_raw_fd(), &mut frame, MsgFlags::empty()) {
        Ok(length) => Ok(answer(&frame[..length.min(frame.len())])),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Ethernet and IPv4 in ARP (RFC 826).
const ARP: [u8; 8] = [0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4];

fn question(own: Mac, address: Ipv4Addr) -> Vec<u8> {
    let parts: [&[u8]; 8] = [&[0xff; 6], &own, &ARP, &[0, 1], &own, &[0; 4], &[0; 6], &address.octets()];
    let mut frame = parts.concat();
    frame.resize(60, 0);
    frame
}

fn answer(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    if frame.len() < 42 || frame[12..20] != ARP || frame[20..22] != [0, 2] {
        return None;
    }
    let address: [u8; 4] = frame[28..32].try_into().ok()?;
    Some((address.into(), frame[22..28].try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::testing::config;
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

    #[test]
    fn a_question_is_no_answer_and_an_answer_is_read() {
        let mut frame = question(OWN, VIP);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[38..42], VIP.octets());
        assert_eq!(answer(&frame), None);
        // As the neighbour would send it back.
        frame[21] = 2;
        frame[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        frame[28..32].copy_from_slice(&VIP.octets());
        assert_eq!(answer(&frame), Some((VIP, [2, 0, 0, 0, 0, 9])));
        assert_eq!(answer(&frame[..41]), None);
        frame[13] = 0;
        assert_eq!(answer(&frame), None);
    }

    #[test]
    fn whoever_answers_is_wrong() {
        let config = config("net_null", "");
        assert_eq!(judge(&BTreeMap::new(), &config), []);
        let found = judge(&[(VIP, BTreeSet::from([OWN]))].into(), &config);
        assert_eq!(found[0].severity, Severity::Error);
        assert!(found[0].problem.starts_with("02:00:00:00:00:01 answers ARP"), "{found:?}");
        assert!(found[0].remedy.contains("arp_ignore=1"), "direct routing: {found:?}");
    }

    #[test]
    fn a_port_that_linux_does_not_see() {
        let found = probe(&config("0000:01:00.0", "")).unwrap();
        assert_eq!(found[0].severity, Severity::Note);
    }
}
