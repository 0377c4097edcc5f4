//! Who else says that it has a virtual address of ours.
//!
//! Two machines that answer for one address are a pair of routers that do not hear each other (split brain), or a router and
//! a real server that answers ARP for what it should only take by direct routing. Half of the clients go wrong, by chance,
//! and neither VRRP nor Linux says why. Both machines announce the address by ARP sooner or later, keepalived when it takes
//! it; what is punted to Linux passes here.
//!
//! Whoever gives an address up and whoever takes it do so at nearly the same moment. So what was heard counts only if the
//! address is still here at the director's next look.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dataplane::wire::ethernet::{Ethernet, HEADER, Mac};

use crate::config::VirtualAddresses;

/// EtherType of ARP.
const ARP: u16 = 0x0806;
/// Hardware Ethernet, protocol IPv4, and the lengths of their addresses (RFC 826).
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Said again of a machine after it has been silent for so long.
const SILENCE: Duration = Duration::from_secs(60);

/// What is heard of rivals.
#[derive(Debug, Default)]
pub struct Rivals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The virtual addresses that are here, and with which MACs.
    ours: HashSet<Ipv4Addr>,
    macs: Vec<Mac>,
    heard: HashSet<(Ipv4Addr, Mac)>,
    /// Of whom it has been said, and when it was heard last.
    told: HashMap<(Ipv4Addr, Mac), Instant>,
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
    pub fn review(&self, ours: HashSet<Ipv4Addr>, now: Instant) -> Vec<(Ipv4Addr, Mac)> {
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
pub fn exclusive(placed_by: VirtualAddresses, here: HashSet<Ipv4Addr>) -> HashSet<Ipv4Addr> {
    if placed_by == VirtualAddresses::Announce { HashSet::new() } else { here }
}

/// Who an ARP packet comes from, whether it asks, answers or announces.
fn sender(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    if Ethernet::parse(frame)?.ethertype != ARP {
        return None;
    }
    let body = frame.get(HEADER..).filter(|body| body.starts_with(&ETHERNET_IPV4))?;
    let mac = body.get(8..14)?.try_into().ok()?;
    let address: [u8; 4] = body.get(14..18)?.try_into().ok()?;
    Some((address.into(), mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

    /// Gratuitous ARP.
    fn announcement(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(mac);
        frame.extend([8, 6]);
        frame.extend(ETHERNET_IPV4);
        frame.extend([0, 1]);
        frame.extend(mac);
        frame.extend(address.octets());
        frame.extend([0xff; 6]);
        frame.extend(address.octets());
        frame
    }

    fn ours() -> HashSet<Ipv4Addr> {
        HashSet::from([ADDRESS])
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
        let rivals = Rivals::new(vec![OWN]);
        rivals.review(ours(), Instant::now());
        rivals.listen(&announcement(ADDRESS, OWN));
        rivals.listen(&announcement(Ipv4Addr::new(192, 0, 2, 2), OTHER));
        let whole = announcement(ADDRESS, OTHER);
        (0..HEADER + 18).for_each(|length| rivals.listen(&whole[..length]));
        rivals.listen(&[&whole[..12], &[8, 0], &whole[14..]].concat());
        rivals.listen(&[&whole[..14], &[0, 6], &whole[16..]].concat());
        assert_eq!(rivals.review(ours(), Instant::now()), []);
    }
}
