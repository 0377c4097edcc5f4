//! Who else says that it has a virtual address of ours.
//!
//! Two machines that answer for one address are a pair of routers that do not hear each other (split brain), or a router and
//! a real server that answers ARP for what it should only take by direct routing. Half of the clients go wrong, by chance,
//! and neither VRRP nor Linux says why. Both machines announce the address sooner or later, by ARP or, of IPv6, by neighbour
//! discovery; keepalived does when it takes it. What is punted to Linux passes here.
//!
//! Whoever gives an address up and whoever takes it do so at nearly the same moment. So what was heard counts only if the
//! address is still here at the director's next look.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dataplane::wire::ethernet::{Ethernet, HEADER, Mac};

use crate::config::VirtualAddresses;

/// EtherType of ARP.
const ARP: u16 = 0x0806;
/// Hardware Ethernet, protocol IPv4, and the lengths of their addresses (RFC 826).
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// EtherType of IPv6, its header's length, and what its next header says of ICMPv6.
const IPV6: u16 = 0x86DD;
const IPV6_HEADER: usize = 40;
const ICMPV6: u8 = 58;
/// Messages of neighbour discovery, their length up to the options, and their options with a MAC (RFC 4861, section 4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ND_HEADER: usize = 24;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
/// Said again of a machine after it has been silent for so long.
const SILENCE: Duration = Duration::from_secs(60);

/// What is heard of rivals.
#[derive(Debug, Default)]
pub struct Rivals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The virtual addresses that are here, and with which MACs.
    ours: HashSet<IpAddr>,
    macs: Vec<Mac>,
    heard: HashSet<(IpAddr, Mac)>,
    /// Of whom it has been said, and when it was heard last.
    told: HashMap<(IpAddr, Mac), Instant>,
}

impl Rivals {
    /// For ports with these MACs.
    pub fn new(macs: Vec<Mac>) -> Rivals {
        Rivals(Mutex::new(State { macs, ..State::default() }))
    }

    /// The ports have other MACs now.
    pub fn know(&self, macs: Vec<Mac>) {
        self.state().macs = macs;
    }

    /// Looks at a frame from outside.
    pub fn listen(&self, frame: &[u8]) {
        let Some((address, mac)) = sender(frame) else { return };
        let mut state = self.state();
        if state.ours.contains(&address) && !state.macs.contains(&mac) {
            state.heard.insert((address, mac));
        }
    }

    /// Who has been heard of since the last look and not been told of, among these addresses, which are here now.
    pub fn review(&self, ours: HashSet<IpAddr>, now: Instant) -> Vec<(IpAddr, Mac)> {
        let mut state = self.state();
        state.ours = ours;
        let state = &mut *state;
        state.told.retain(|_, at| now < *at + SILENCE);
        let heard = state.heard.drain().filter(|(address, _)| state.ours.contains(address));
        heard.filter(|&rival| state.told.insert(rival, now).is_none()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of the virtual addresses that are here, those that no other machine may have. Where addresses are announced, several routers
/// have each by design.
pub fn exclusive(placed_by: VirtualAddresses, here: HashSet<IpAddr>) -> HashSet<IpAddr> {
    if placed_by == VirtualAddresses::Announce { HashSet::new() } else { here }
}

/// Who says that it has an address: whoever sends ARP or neighbour discovery, whether it asks, answers or announces.
pub fn sender(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let packet = frame.get(HEADER..)?;
    match Ethernet::parse(frame)?.ethertype {
        ARP => arp_sender(packet),
        IPV6 => nd_sender(packet),
        _ => None,
    }
}

fn arp_sender(packet: &[u8]) -> Option<(IpAddr, Mac)> {
    let body = packet.strip_prefix(&ETHERNET_IPV4)?;
    let mac = *body.get(2..)?.first_chunk()?;
    let address: [u8; 4] = *body.get(8..)?.first_chunk()?;
    Some((Ipv4Addr::from(address).into(), mac))
}

/// Of an advertisement the target, with the MAC that it has; of a solicitation the source. Without such a MAC it tells nobody anything.
fn nd_sender(packet: &[u8]) -> Option<(IpAddr, Mac)> {
    let (header, body) =
        packet.split_first_chunk::<IPV6_HEADER>().filter(|(header, _)| header[0] >> 4 == 6)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    // What has passed a router would have another hop limit (RFC 4861, section 7.1).
    let (ICMPV6, 255) = (header[6], header[7]) else { return None };
    let (message, options) = body.get(..length)?.split_first_chunk::<ND_HEADER>()?;
    let (address, kind) = match message[..2] {
        [ADVERTISEMENT, 0] => (&message[8..], TARGET_MAC),
        [SOLICITATION, 0] => (&header[8..24], SOURCE_MAC),
        _ => return None,
    };
    let address: [u8; 16] = *address.first_chunk()?;
    Some((Ipv6Addr::from(address).into(), *option(options, kind)?.first_chunk()?))
}

/// The content of the first option of a kind. Each says its length, in units of eight bytes with kind and length.
fn option(mut options: &[u8], kind: u8) -> Option<&[u8]> {
    loop {
        let (&[found, units], _) = options.split_first_chunk()?;
        let (option, others) = options.split_at_checked(usize::from(units) * 8)?;
        if found == kind {
            return option.get(2..);
        }
        // One without a length would be there for ever.
        options = Some(others).filter(|_| units > 0)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
    const ADDRESS6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10));

    /// Gratuitous ARP, or an unsolicited neighbour advertisement.
    fn announcement(address: IpAddr, mac: Mac) -> Vec<u8> {
        match address {
            IpAddr::V4(address) => {
                let ip = address.octets();
                [&[0xff; 6], &mac[..], &[8, 6], &ETHERNET_IPV4, &[0, 1], &mac, &ip, &[0xff; 6], &ip].concat()
            }
            IpAddr::V6(address) => {
                nd(ADVERTISEMENT, address, address, &[&[TARGET_MAC, 1], &mac[..]].concat())
            }
        }
    }

    fn nd(kind: u8, source: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        let ethernet = [&[0x33, 0x33, 0, 0, 0, 1], &OTHER[..], &[0x86, 0xDD]].concat();
        let header = [0x60, 0, 0, 0, 0, (ND_HEADER + options.len()) as u8, ICMPV6, 255];
        let (source, target) = (source.octets(), target.octets());
        // To all nodes; the checksum nobody looks at.
        let destination = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
        [&ethernet, &header[..], &source, &destination, &[kind, 0, 0, 0, 0x20, 0, 0, 0], &target, options]
            .concat()
    }

    fn ours() -> HashSet<IpAddr> {
        HashSet::from([ADDRESS, ADDRESS6])
    }

    /// Who is heard of by one frame.
    fn heard(frame: &[u8]) -> Vec<(IpAddr, Mac)> {
        let rivals = Rivals::new(vec![OWN]);
        rivals.review(ours(), Instant::now());
        rivals.listen(frame);
        rivals.review(ours(), Instant::now())
    }

    #[test]
    fn a_rival_is_told_of_once_until_it_has_been_silent() {
        let (rivals, began) = (Rivals::new(vec![OWN]), Instant::now());
        let hear_at = |seconds| {
            rivals.listen(&announcement(ADDRESS, OTHER));
            rivals.review(ours(), began + Duration::from_secs(seconds))
        };
        assert_eq!(hear_at(0), [], "the address was not here yet");
        assert_eq!(hear_at(2), [(ADDRESS, OTHER)]);
        assert_eq!(hear_at(4), []);
        assert_eq!(hear_at(60), []);
        assert_eq!(hear_at(121), [(ADDRESS, OTHER)], "after a minute of silence");
        assert_eq!(rivals.review(ours(), began + Duration::from_secs(300)), []);
    }

    #[test]
    fn who_takes_an_address_that_has_left_is_no_rival() {
        let rivals = Rivals::new(vec![OWN]);
        rivals.review(ours(), Instant::now());
        rivals.listen(&announcement(ADDRESS, OTHER));
        assert_eq!(rivals.review(HashSet::new(), Instant::now()), []);
        assert_eq!(rivals.review(ours(), Instant::now()), []);
    }

    #[test]
    fn several_routers_that_announce_an_address_are_no_rivals() {
        for (placed_by, contested) in [
            (VirtualAddresses::Place, &[(ADDRESS, OTHER)][..]),
            (VirtualAddresses::Follow, &[(ADDRESS, OTHER)]),
            (VirtualAddresses::Announce, &[]),
        ] {
            let rivals = Rivals::new(vec![OWN]);
            rivals.review(exclusive(placed_by, ours()), Instant::now());
            rivals.listen(&announcement(ADDRESS, OTHER));
            assert_eq!(rivals.review(exclusive(placed_by, ours()), Instant::now()), contested);
        }
    }

    #[test]
    fn neither_we_ourselves_nor_other_addresses_nor_rubbish_are_rivals() {
        for (address, another) in [(ADDRESS, "192.0.2.2"), (ADDRESS6, "2001:db8::2")] {
            let whole = announcement(address, OTHER);
            assert_eq!(heard(&whole), [(address, OTHER)]);
            assert_eq!(heard(&announcement(address, OWN)), []);
            assert_eq!(heard(&announcement(another.parse().unwrap(), OTHER)), []);
            // Of ARP the last bytes, which are the target's, are not looked at.
            let needed = if address.is_ipv4() { HEADER + 18 } else { whole.len() };
            (0..needed).for_each(|length| assert_eq!(heard(&whole[..length]), [], "{length} bytes"));
            assert_eq!(heard(&[&whole[..12], &[8, 0], &whole[14..]].concat()), [], "another EtherType");
            assert_eq!(heard(&[&whole[..14], &[0, 6], &whole[16..]].concat()), [], "another kind of network");
        }
    }

    #[test]
    fn of_neighbour_discovery_what_has_come_from_the_segment_and_tells_a_mac() {
        let IpAddr::V6(ours) = ADDRESS6 else { unreachable!() };
        let others = "2001:db8::2".parse().unwrap();
        let mac = |kind| [&[kind, 1], &OTHER[..]].concat();
        let is_heard = |frame: &[u8]| heard(frame) == [(ADDRESS6, OTHER)];
        // After a nonce (RFC 3971), which is nobody's MAC.
        let nonce = [14, 1, 9, 9, 9, 9, 9, 9];
        assert!(is_heard(&nd(ADVERTISEMENT, others, ours, &[&nonce[..], &mac(TARGET_MAC)].concat())));
        // Who asks as this address has it; who is asked for need not.
        assert!(is_heard(&nd(SOLICITATION, ours, others, &mac(SOURCE_MAC))));
        for (kind, source, target, options) in [
            (SOLICITATION, others, ours, mac(SOURCE_MAC)),
            (SOLICITATION, Ipv6Addr::UNSPECIFIED, ours, Vec::new()),
            (ADVERTISEMENT, ours, others, mac(TARGET_MAC)),
            (ADVERTISEMENT, ours, ours, mac(SOURCE_MAC)),
            (ADVERTISEMENT, ours, ours, Vec::new()),
            (ADVERTISEMENT, ours, ours, vec![TARGET_MAC, 2, 0, 0, 0, 0, 0, 0]),
            (ADVERTISEMENT, ours, ours, [&[14, 0, 9, 9, 9, 9, 9, 9], &mac(TARGET_MAC)[..]].concat()),
            (ADVERTISEMENT, ours, ours, [&[TARGET_MAC, 0], &OTHER[..]].concat()),
            (134, ours, ours, mac(SOURCE_MAC)),
        ] {
            let frame = nd(kind, source, target, &options);
            assert_eq!(heard(&frame), [], "{frame:02x?}");
        }
        let mut routed = announcement(ADDRESS6, OTHER);
        routed[HEADER + 7] = 64;
        assert_eq!(heard(&routed), []);
    }
}
