//! `[[snat]]`: source NAT for what hosts inside begin.

use std::net::IpAddr;

use dataplane::snat::{SnatSpec, SnatTimeouts};

use super::Prefix;
use super::check::narrow;
use super::raw::{Field, Section};
use super::service::timeout;
use super::value::{self, PORT_RANGE};

/// Addresses of a pool: what a mapping has room for.
const MOST_ADDRESSES: usize = 255;

const NETWORK: &str = "an IPv4 network ADDRESS/LENGTH, e.g. \"10.0.0.0/24\"";
const RANGE: &str = "an IPv4 address or a range of them, e.g. \"192.0.2.52-192.0.2.55\"";

pub(super) fn read(section: &Section<'_>) -> Option<SnatSpec> {
    section.known(&["inside", "outside", "ports", "block", "limit", "mappings", "timeouts"]);
    let inside = section
        .require("inside", "networks, e.g. [\"10.0.0.0/24\"]")
        .and_then(|field| field.all(|network_field| network_field.parse(NETWORK, network)));
    let outside =
        section.require("outside", "addresses, e.g. [\"192.0.2.50\"]").and_then(|field| pool(&field));
    let ports = section.or("ports", 1024..=65535, |field| field.parse(PORT_RANGE, value::ports));
    let block = section.optional("block", |field| narrow::<u16>(field.integer(2..=16_384)));
    let limit = section.optional("limit", |field| narrow::<u16>(field.integer(2..=65_535)));
    let mappings = section.or("mappings", 65_536, |field| narrow(field.integer(1024..=16_777_216)));
    let timeouts = section.or("timeouts", SnatTimeouts::default(), |field| timeouts(&field.section()?));
    let (ports, block, limit) = (ports?, block?, limit?);
    // What is left out agrees with what is not: a limit is one block at least.
    let limit = limit.unwrap_or_else(|| block.unwrap_or(0).max(4096));
    let block = block.unwrap_or_else(|| limit.min(512));
    if usize::from(*ports.end()) + 1 < usize::from(*ports.start()) + usize::from(block) {
        let (first, last) = (ports.start(), ports.end());
        section
            .error(format_args!("no block of {block} ports is in {first}-{last}; expected a smaller block"));
        return None;
    }
    if limit < block {
        section.error(format_args!(
            "a limit of {limit} ports is less than a block of {block}; expected a smaller block, or a higher limit"
        ));
        return None;
    }
    Some(SnatSpec {
        inside: inside?,
        outside: outside?,
        ports,
        block,
        limit,
        mappings: mappings?,
        timeouts: timeouts?,
    })
}

fn network(typed: &str) -> Result<(u32, u8), String> {
    let Prefix { address, length } = value::network(typed)?;
    match address {
        IpAddr::V6(_) => Err(format!("{typed} is of IPv6")),
        IpAddr::V4(_) if length == 0 => Err(format!("{typed} is everybody, and nobody is outside")),
        IpAddr::V4(address) => Ok((address.into(), length)),
    }
}

/// All addresses, those of ranges one by one.
fn pool(field: &Field<'_>) -> Option<Vec<u32>> {
    let ranges = field.all(|range_field| range_field.parse(RANGE, range))?;
    let mut addresses: Vec<u32> = ranges.into_iter().flatten().take(MOST_ADDRESSES + 1).collect();
    if addresses.is_empty() || addresses.len() > MOST_ADDRESSES {
        return field.error(format_args!("no or too many addresses; expected 1 to {MOST_ADDRESSES}"));
    }
    let count = addresses.len();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.len() < count {
        return field.error("an address stands there twice; expected each once");
    }
    Some(addresses)
}

fn range(typed: &str) -> Result<Vec<u32>, String> {
    let four = |address| match address {
        IpAddr::V4(address) => Ok(address.into()),
        IpAddr::V6(_) => Err(format!("{address} is an IPv6 address")),
    };
    value::addresses(typed, MOST_ADDRESSES + 1)?.into_iter().map(four).collect()
}

fn timeouts(section: &Section<'_>) -> Option<SnatTimeouts> {
    section.known(&["udp", "established", "transitory", "icmp"]);
    let SnatTimeouts { udp, established, transitory, icmp } = SnatTimeouts::default();
    let [udp, established, transitory, icmp] =
        [("udp", udp), ("established", established), ("transitory", transitory), ("icmp", icmp)]
            .map(|(key, default)| section.or(key, default, timeout));
    Some(SnatTimeouts { udp: udp?, established: established?, transitory: transitory?, icmp: icmp? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::with;

    fn read(snat: &str) -> Result<SnatSpec, String> {
        let config = with(&format!("[[snat]]\n{snat}"))?;
        Ok(config.routing.snats[0].clone())
    }

    #[test]
    fn what_is_left_out() {
        let snat = read("inside = [\"10.0.0.0/24\"]\noutside = [\"192.0.2.50\", \"192.0.2.52-192.0.2.53\"]")
            .unwrap();
        assert_eq!(snat.inside, [(0x0A00_0000, 24)]);
        assert_eq!(snat.outside, [0xC000_0232, 0xC000_0234, 0xC000_0235]);
        assert_eq!((snat.ports, snat.block, snat.limit, snat.mappings), (1024..=65535, 512, 4096, 65_536));
        assert_eq!(snat.timeouts, SnatTimeouts { udp: 300, established: 7440, transitory: 240, icmp: 60 });
    }

    #[test]
    fn a_limit_is_one_block_at_least() {
        let of = |more: &str| {
            let snat =
                read(&format!("inside = [\"10.0.0.0/24\"]\noutside = [\"192.0.2.50\"]\n{more}")).unwrap();
            (snat.block, snat.limit)
        };
        assert_eq!(
            [of("limit = 64"), of("block = 8192"), of("block = 64\nlimit = 64")],
            [(64, 64), (8192, 8192), (64, 64)]
        );
    }

    #[test]
    fn what_is_wrong_says_what_is_expected() {
        let both = |inside: &str, outside: &str| format!("inside = [{inside:?}]\noutside = [{outside:?}]\n");
        let good = both("10.0.0.0/24", "192.0.2.50");
        let service = |address: &str, more: &str| {
            let mode = if more.is_empty() { "nat" } else { "fullnat" };
            format!("[[service]]\naddress = {address:?}\nmode = {mode:?}\nscheduler = \"rr\"\n{more}\n")
        };
        for (text, expected) in [
            (
                both("10.0.0.1/24", "192.0.2.50"),
                "10.0.0.1/24 has more than 24 bits; expected an IPv4 network",
            ),
            (both("2001:db8::/32", "192.0.2.50"), "is of IPv6; expected an IPv4 network"),
            (both("10.0.0.0/24", "2001:db8::1"), "is an IPv6 address; expected an IPv4 address"),
            (
                both("10.0.0.0/24", "192.0.2.55-192.0.2.50"),
                "ends before it begins; expected an IPv4 address or",
            ),
            (both("10.0.0.0/24", "192.0.2.1-192.0.3.255"), "expected 1 to 255"),
            (
                both("10.0.0.0/24", "192.0.2.1"),
                "is an address of this router; expected an address for nothing",
            ),
            (
                both("0.0.0.0/0", "192.0.2.50"),
                "is everybody, and nobody is outside; expected an IPv4 network",
            ),
            (format!("{good}block = 512\nlimit = 2"), "a limit of 2 ports is less than a block of 512"),
            (format!("{good}{}", service("192.0.2.50:80", "")), "192.0.2.50 is a virtual address; expected"),
            (
                format!("{good}{}", service("192.0.2.10:80", "fullnat = { local = [\"192.0.2.50\"] }")),
                "192.0.2.50 is a local address for full NAT; expected",
            ),
            (format!("{good}ports = \"70-60\""), "ends before it begins; expected FIRST-LAST"),
            (format!("{good}ports = \"1024-1100\""), "no block of 512 ports is in 1024-1100"),
            (format!("{good}timeouts = {{ udp = \"1.5s\" }}"), "is not a whole number of seconds"),
            (format!("{good}[[snat]]\n{good}"), "192.0.2.50 is in another pool"),
        ] {
            let wrong = read(&text).unwrap_err();
            assert!(wrong.contains(expected), "{wrong}");
        }
    }
}
