//! The words of a configuration that are more than a string: addresses, prefixes, names, devices.
//!
//! Each reader gets what was typed and returns its meaning, or what is wrong with it; what would have been
//! expected stands in the constant beside it, and the caller joins the two.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use dataplane::service::Mode;
use dataplane::wire::ipv4;

use super::Prefix;
use super::error::quoted;

/// What [`endpoint`] reads with a port.
pub const ENDPOINT: &str = "ADDRESS:PORT, 1 to 65535, e.g. \"192.0.2.10:80\" or \"[2001:db8::10]:80\"";
/// What [`endpoint`] reads with or without one.
pub const SERVER: &str =
    "ADDRESS:PORT or ADDRESS, 1 to 65535, e.g. \"10.0.0.11:8080\" or \"[2001:db8::11]:8080\"";
/// What [`socket_of_any_port`] reads.
pub const SOCKET: &str =
    "ADDRESS:PORT, e.g. \"192.0.2.10:80\" or \"[2001:db8::10]:80\", with port 0 if it is of all ports";
/// What [`address`] reads.
pub const ADDRESS: &str = "an address, e.g. \"10.0.0.11\" or \"2001:db8::11\"";
/// What [`prefix`] reads.
pub const PREFIX: &str = "ADDRESS/LENGTH, e.g. \"192.0.2.1/24\" or \"2001:db8::1/64\"";
/// What [`network`] reads.
pub const NETWORK: &str =
    "ADDRESS/LENGTH, or a single address, e.g. \"198.51.100.0/24\" or \"2001:db8::/32\"";
/// What [`addresses`] reads.
pub const ADDRESS_RANGE: &str = "ADDRESS or ADDRESS-ADDRESS, e.g. \"10.0.0.102-10.0.0.105\"";
/// What [`ports`] reads.
pub const PORTS: &str = "a port or a range of them, e.g. 80 or \"8080-8090\"";
/// What [`ports`] reads, of more than one.
pub const PORT_RANGE: &str = "FIRST-LAST, e.g. \"1024-65535\"";
/// What [`port_name`] reads.
pub const PORT_NAME: &str = "1 to 15 letters, digits, '_', '.' or '-'";
/// What [`device`] reads.
pub const DEVICE: &str =
    "a PCI address such as \"0000:01:00.0\" or a DPDK device such as \"net_af_packet,iface=eth1\"";
/// What [`mac`] reads.
pub const MAC: &str = "a unicast MAC address, e.g. \"02:00:00:00:00:01\"";

/// `ADDRESS[:PORT]`, where an IPv6 address with a port stands in brackets (RFC 3986, 3.2.2). The address is one that a
/// single host can have.
pub fn endpoint(typed: &str) -> Result<(IpAddr, Option<u16>), String> {
    split(typed, 1)
}

/// The same where port 0 stands for all ports.
pub fn endpoint_of_any_port(typed: &str) -> Result<(IpAddr, Option<u16>), String> {
    split(typed, 0)
}

fn split(typed: &str, least_port: u16) -> Result<(IpAddr, Option<u16>), String> {
    let (address, port) = match typed.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) if address.contains(':') => (address, None),
        Some((address, rest)) if address.contains(':') => match rest.strip_prefix(':') {
            Some(port) => (address, Some(port)),
            None => return Err(format!("{} is not a port", quoted(rest))),
        },
        _ if typed.matches(':').count() > 1 => (typed, None),
        _ => match typed.split_once(':') {
            Some((address, port)) => (address, Some(port)),
            None => (typed, None),
        },
    };
    Ok((host(address)?, port.map(|port| port_number(port, least_port)).transpose()?))
}

/// `ADDRESS:PORT`.
pub fn socket(typed: &str) -> Result<SocketAddr, String> {
    joined(typed, endpoint(typed)?)
}

/// The same where port 0 stands for all ports.
pub fn socket_of_any_port(typed: &str) -> Result<SocketAddr, String> {
    joined(typed, endpoint_of_any_port(typed)?)
}

fn joined(typed: &str, parts: (IpAddr, Option<u16>)) -> Result<SocketAddr, String> {
    match parts {
        (address, Some(port)) => Ok(SocketAddr::new(address, port)),
        (_, None) => Err(format!("{} has no port", quoted(typed))),
    }
}

/// `ADDRESS`.
pub fn address(typed: &str) -> Result<IpAddr, String> {
    match endpoint(typed)? {
        (address, None) => Ok(address),
        (address, Some(_)) => Err(format!("{address} stands there with a port")),
    }
}

/// What is wrong with a server's address for a service at this one with this mode, and what is expected: tunnels alone mix families.
pub fn server_family(server: IpAddr, service: IpAddr, mode: Option<Mode>) -> Result<(), String> {
    match mode {
        Some(Mode::Tunnel) => Ok(()),
        Some(Mode::Nat | Mode::Dr | Mode::Fullnat) | None => same_family(server, service, "the service"),
    }
}

/// What is wrong with an address that has to be of the family of another, which is whose, and what is expected.
pub fn same_family(address: IpAddr, other: IpAddr, whose: &str) -> Result<(), String> {
    let [is, expected] = [address, other].map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" });
    match is == expected {
        true => Ok(()),
        false => Err(format!("{address} is an {is} address; expected an {expected} address, as {whose}'s")),
    }
}

/// `ADDRESS/LENGTH`.
pub fn prefix(typed: &str) -> Result<Prefix, String> {
    let (address, length) =
        typed.split_once('/').ok_or_else(|| format!("{} has no prefix length", quoted(typed)))?;
    let address = host(address)?;
    let digits = length.bytes().all(|byte| byte.is_ascii_digit());
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = match length.parse::<u8>() {
        Ok(length) if digits && (1..=most).contains(&length) => length,
        _ => return Err(format!("{} is not a prefix length", quoted(length))),
    };
    let prefix = Prefix { address, length };
    // Two addresses are a point-to-point link's, or the only one (RFC 3021, RFC 6164).
    if length >= most - 1 {
        return Ok(prefix);
    }
    match (prefix.network(), address) {
        // Of IPv6 it is that of all its routers (RFC 4291, section 2.6.1).
        (network, _) if network == address => Err(format!("{typed} is the address of the network itself")),
        (IpAddr::V4(network), IpAddr::V4(v4)) if v4 == network | Ipv4Addr::from_bits(!ipv4::mask(length)) => {
            Err(format!("{typed} is the broadcast address of its network"))
        }
        _ => Ok(prefix),
    }
}

/// `ADDRESS/LENGTH`, the address being the network's first; or an address, which is a network by itself.
pub fn network(typed: &str) -> Result<Prefix, String> {
    let (address, length) =
        typed.split_once('/').map_or((typed, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().map_err(|_| format!("{} is not an address", quoted(address)))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => most,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length = digits.parse().ok().filter(|length| (0..=most).contains(length));
            length.ok_or_else(|| format!("{} is not a prefix length", quoted(digits)))?
        }
        Some(other) => return Err(format!("{} is not a prefix length", quoted(other))),
    };
    let prefix = Prefix { address, length };
    match prefix.network() == address {
        true => Ok(prefix),
        false => Err(format!("{typed} has more than {length} bits")),
    }
}

/// `ADDRESS` or `ADDRESS-ADDRESS`, one by one, and no more than `most`; never none.
pub fn addresses(typed: &str, most: usize) -> Result<Vec<IpAddr>, String> {
    let (first, last) = typed.split_once('-').unwrap_or((typed, typed));
    let range = match (address(first)?, address(last)?) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let all = u32::from(first)..=u32::from(last);
            all.take(most).map(|address| Ipv4Addr::from(address).into()).collect::<Vec<_>>()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let all = u128::from(first)..=u128::from(last);
            all.take(most).map(|address| Ipv6Addr::from(address).into()).collect()
        }
        _ => return Err(format!("{} begins and ends in two families", quoted(typed))),
    };
    if range.is_empty() { Err(format!("{} ends before it begins", quoted(typed))) } else { Ok(range) }
}

/// `FIRST-LAST`, or one.
pub fn ports(typed: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = typed.split_once('-').unwrap_or((typed, typed));
    let [first, last] = [first, last].map(|port| match port.parse::<u16>() {
        Ok(number) if number > 0 && port.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
        _ => Err(format!("{} is not a port", quoted(port))),
    });
    let ports = first?..=last?;
    if ports.is_empty() { Err(format!("{} ends before it begins", quoted(typed))) } else { Ok(ports) }
}

/// As [`ports`] reads it.
pub fn shown_ports(ports: &RangeInclusive<u16>) -> String {
    match ports.start() == ports.end() {
        true => ports.start().to_string(),
        false => format!("{}-{}", ports.start(), ports.end()),
    }
}

/// The name of a Linux interface.
pub fn port_name(typed: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if typed.is_empty() || typed.len() > 15 || !typed.chars().all(allowed) {
        return Err(format!("{} cannot name an interface", quoted(typed)));
    }
    match typed {
        "." | ".." | "lo" | "all" | "default" => Err(format!("{typed:?} is reserved by Linux")),
        _ => Ok(typed.to_owned()),
    }
}

/// A device in DPDK's terms. Whether it exists is asked later.
pub fn device(typed: &str) -> Result<String, String> {
    match typed {
        "" => Err("\"\" names no device".to_owned()),
        _ if typed.len() > 1024 => Err(format!("{} is too long", quoted(typed))),
        _ if typed.contains(|c: char| c.is_whitespace() || c.is_control()) => {
            Err(format!("{} contains blanks", quoted(typed)))
        }
        _ => Ok(typed.to_owned()),
    }
}

/// Six pairs of hexadecimal digits.
pub fn mac(typed: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("{} is not a MAC address", quoted(typed));
    let mut mac = [0; 6];
    let mut parts = typed.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
        *byte = u8::from_str_radix(part.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
    }
    match mac {
        _ if parts.next().is_some() => Err(wrong()),
        [0, 0, 0, 0, 0, 0] => Err("is all zeros".to_owned()),
        [first, ..] if first & 1 == 1 => Err(format!("{typed:?} is a group address")),
        _ => Ok(mac),
    }
}

/// The PCI address with which a device string begins, in full (`0000:01:00.0`), if it does.
pub fn pci_address(device: &str) -> Option<String> {
    let address = device.strip_prefix("pci:").unwrap_or(device).split(',').next()?;
    let hex = |text: &str, digits| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    let (rest, function) = address.rsplit_once('.')?;
    let parts: Vec<&str> = rest.split(':').collect();
    let (domain, bus, slot) = match parts[..] {
        [bus, slot] => ("0000", bus, slot),
        [domain, bus, slot] => (domain, bus, slot),
        _ => return None,
    };
    let valid = hex(domain, 4) && hex(bus, 2) && hex(slot, 2) && matches!(function.as_bytes(), [b'0'..=b'7']);
    valid.then(|| format!("{domain}:{bus}:{slot}.{function}").to_lowercase())
}

/// What a device string takes for itself on this machine, if that can be told from it.
pub fn identity(device: &str) -> Option<String> {
    pci_address(device).or_else(|| interface(device).map(|interface| format!("interface {interface}")))
}

/// The Linux interface that a device string takes over (`iface=`), if it does.
pub fn interface(device: &str) -> Option<&str> {
    let driver = device.split(',').next().unwrap_or_default();
    let takes = ["net_af_packet", "net_af_xdp", "eth_af_packet"].iter().any(|name| driver.starts_with(name));
    device.split(',').skip(1).find_map(|argument| argument.strip_prefix("iface=")).filter(|_| takes)
}

/// An address that a single host can have, and that says by itself where it is.
fn host(typed: &str) -> Result<IpAddr, String> {
    let address: IpAddr = typed.parse().map_err(|_| {
        let family = if typed.contains(':') { "IPv6" } else { "IPv4" };
        format!("{} is not an {family} address", quoted(typed))
    })?;
    let kind = match address {
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(address) if address.octets()[0] == 0 => "unspecified",
        IpAddr::V4(address) if address.is_broadcast() => "the broadcast address",
        IpAddr::V6(address) if address.is_unspecified() => "unspecified",
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            "a link-local address, which means nothing without an interface"
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => return Err(format!("{v6} is an IPv4 address, to be written {v4}")),
            None => return Ok(address),
        },
        IpAddr::V4(_) => return Ok(address),
    };
    Err(format!("{address} is {kind}"))
}

fn port_number(typed: &str, least: u16) -> Result<u16, String> {
    let digits = !typed.is_empty() && typed.bytes().all(|byte| byte.is_ascii_digit());
    match typed.parse::<u16>() {
        Ok(port) if digits && port >= least => Ok(port),
        _ if digits => Err(format!("port {} is out of range", super::error::shortened(typed))),
        _ => Err(format!("{} is not a port", quoted(typed))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (typed, address, port) in [
            ("10.0.0.1:80", "10.0.0.1", Some(80)),
            ("10.0.0.1", "10.0.0.1", None),
            ("[2001:DB8:0::1]:80", "2001:db8::1", Some(80)),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("2001:db8::1", "2001:db8::1", None),
            // What looks like a port is a part of the address.
            ("2001:db8::1:80", "2001:db8::1:80", None),
            // What leads to IPv4 is an address of IPv6 (RFC 6052).
            ("[64:ff9b::192.0.2.1]:443", "64:ff9b::c000:201", Some(443)),
        ] {
            assert_eq!(endpoint(typed), Ok((address.parse().unwrap(), port)), "{typed}");
        }
        for (typed, wrong) in [
            ("10.0.0.1:0", "port 0 is out of range"),
            ("10.0.0.1:70000", "port 70000 is out of range"),
            ("10.0.0.1:+80", "\"+80\" is not a port"),
            ("10.0.0.1:", "\"\" is not a port"),
            ("10.0.0:80", "\"10.0.0\" is not an IPv4 address"),
            ("010.0.0.1:80", "\"010.0.0.1\" is not an IPv4 address"),
            ("web:80", "\"web\" is not an IPv4 address"),
            ("[10.0.0.1]:80", "\"[10.0.0.1]\" is not an IPv4 address"),
            ("0.0.0.0:80", "0.0.0.0 is unspecified"),
            ("127.0.0.1:80", "127.0.0.1 is a loopback address"),
            ("224.0.0.1:80", "224.0.0.1 is a multicast address"),
            ("255.255.255.255:80", "255.255.255.255 is the broadcast address"),
            ("[2001:db8::1]:0", "port 0 is out of range"),
            ("[2001:db8::1]:", "\"\" is not a port"),
            ("[2001:db8::1]80", "\"80\" is not a port"),
            ("[2001:db8::1", "\"[2001:db8::1\" is not an IPv6 address"),
            ("2001:db8::1]:80", "\"2001:db8::1]:80\" is not an IPv6 address"),
            ("[2001:db8:::1]:80", "\"2001:db8:::1\" is not an IPv6 address"),
            ("[2001:db8::1%2]:80", "\"2001:db8::1%2\" is not an IPv6 address"),
            ("[::]:80", ":: is unspecified"),
            ("[::1]:80", "::1 is a loopback address"),
            ("[ff02::1]:80", "ff02::1 is a multicast address"),
            ("fe80::1", "fe80::1 is a link-local address, which means nothing without an interface"),
            ("[::ffff:10.0.0.1]:80", "::ffff:10.0.0.1 is an IPv4 address, to be written 10.0.0.1"),
        ] {
            assert_eq!(endpoint(typed), Err(wrong.to_owned()));
        }
    }

    #[test]
    fn with_a_port_without_one_and_of_one_family() {
        let text = |read: Result<SocketAddr, String>| read.map(|address| address.to_string());
        assert_eq!(text(socket("[2001:db8:0:0::1]:80")), Ok("[2001:db8::1]:80".to_owned()));
        assert_eq!(text(socket("2001:db8::1")), Err("\"2001:db8::1\" has no port".to_owned()));
        assert_eq!(address("[2001:db8::1]:80"), Err("2001:db8::1 stands there with a port".to_owned()));
        assert_eq!(text(socket("10.0.0.1:0")), Err("port 0 is out of range".to_owned()));
        assert_eq!(text(socket_of_any_port("10.0.0.1:0")), Ok("10.0.0.1:0".to_owned()));
        assert_eq!(text(socket_of_any_port("[2001:db8::1]:0")), Ok("[2001:db8::1]:0".to_owned()));
        assert_eq!(
            text(socket_of_any_port("2001:db8::1:0")),
            Err("\"2001:db8::1:0\" has no port".to_owned())
        );
    }

    #[test]
    fn families() {
        let [four, six] = ["10.0.0.1", "2001:db8::1"].map(|typed| address(typed).unwrap());
        let same_family = |address, other| same_family(address, other, "the service");
        assert_eq!((same_family(four, four), same_family(six, six)), (Ok(()), Ok(())));
        let wrong = "10.0.0.1 is an IPv4 address; expected an IPv6 address, as the service's";
        assert_eq!(same_family(four, six), Err(wrong.to_owned()));
        let wrong = "2001:db8::1 is an IPv6 address; expected an IPv4 address, as the service's";
        assert_eq!(same_family(six, four), Err(wrong.to_owned()));
    }

    #[test]
    fn prefixes() {
        assert_eq!(prefix("192.0.2.1/24").unwrap().to_string(), "192.0.2.1/24");
        for typed in [
            "192.0.2.0/31",
            "192.0.2.1/31",
            "192.0.2.1/32",
            "2001:db8::1/64",
            "2001:db8::ffff:ffff:ffff:ffff/64",
            "2001:db8::/127",
            "2001:db8::/128",
            "2001:db8::1/1",
        ] {
            assert_eq!(prefix(typed).map(|prefix| prefix.to_string()).as_deref(), Ok(typed));
        }
        for (typed, wrong) in [
            ("192.0.2.1", "\"192.0.2.1\" has no prefix length"),
            ("192.0.2.1/0", "\"0\" is not a prefix length"),
            ("192.0.2.1/33", "\"33\" is not a prefix length"),
            ("192.0.2.1/+24", "\"+24\" is not a prefix length"),
            ("192.0.2.0/24", "192.0.2.0/24 is the address of the network itself"),
            ("192.0.2.255/24", "192.0.2.255/24 is the broadcast address of its network"),
            ("192.0.2/24", "\"192.0.2\" is not an IPv4 address"),
            ("2001:db8::1", "\"2001:db8::1\" has no prefix length"),
            ("2001:db8::1/0", "\"0\" is not a prefix length"),
            ("2001:db8::1/129", "\"129\" is not a prefix length"),
            ("2001:db8::/64", "2001:db8::/64 is the address of the network itself"),
            ("[2001:db8::1]/64", "\"[2001:db8::1]\" is not an IPv6 address"),
            ("ff02::1/64", "ff02::1 is a multicast address"),
            ("fe80::1/64", "fe80::1 is a link-local address, which means nothing without an interface"),
        ] {
            assert_eq!(prefix(typed), Err(wrong.to_owned()));
        }
    }

    #[test]
    fn names_of_interfaces() {
        assert_eq!(port_name("wan-0.100_x").as_deref(), Ok("wan-0.100_x"));
        for typed in ["", "a/b", "sixteen-letters-", "wän", "lo", ".."] {
            assert!(port_name(typed).is_err(), "{typed}");
        }
    }

    #[test]
    fn macs() {
        assert_eq!(mac("02:00:00:00:aB:01"), Ok([2, 0, 0, 0, 0xab, 1]));
        for typed in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "+2:00:00:00:00:01",
        ] {
            assert!(mac(typed).is_err(), "{typed}");
        }
    }

    #[test]
    fn devices() {
        assert_eq!(pci_address("0000:3B:00.1").as_deref(), Some("0000:3b:00.1"));
        assert_eq!(pci_address("3b:00.1,rxq_cqe_comp_en=0").as_deref(), Some("0000:3b:00.1"));
        assert_eq!(pci_address("net_null"), None);
        assert_eq!(pci_address("net_pcap,rx_pcap=01:00.0"), None);
        assert_eq!(interface("net_af_packet,blocksz=4096,iface=eth1"), Some("eth1"));
        assert_eq!(interface("net_af_xdp0,iface=eth1,start_queue=0"), Some("eth1"));
        assert_eq!(interface("net_tap,iface=tap0"), None);
        assert!(device("").is_err() && device("a b").is_err() && device("net_null").is_ok());
    }
}
