//! IPv6: the packets of a burst that are of it, after all others.
//!
//! They go through the same stages, over the same table and by the same rules, with work of their own, so that an IPv4 packet has
//! nothing to ask. What is different is here: how they are taken apart, whose addresses are whose ([`Family`](crate::snapshot::Family)), and what is
//! written. An IPv6 address does not fit into a [`Packet`]'s cache line, so the addresses of the packets of a burst stand
//! beside ([`Addresses`]); what a packet calls its source and destination are these, folded, as the schedulers of IPVS see them.

mod parse;
mod rewrite;

use std::slice::from_ref;

pub(super) use self::parse::{packet, parse};
pub(super) use self::rewrite::{pass, send};
use super::packet::{Packet, Piece, Work};
use super::resolve::Path;
use super::{BURST, Frame, Probe, Verdict, fragments, ipsec, look_up, related, route, tunnel_errors};
use crate::counters::Punt;
use crate::wire::ethernet::{self, Mac};

/// The IPv6 packets of a burst, by their places.
pub(super) struct Places {
    places: [u8; BURST],
    count: usize,
}

impl Places {
    pub const NONE: Places = Places { places: [0; BURST], count: 0 };

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes a frame of IPv6 aside; false if it is something else.
    #[inline(always)]
    pub fn take(&mut self, frame: &impl Frame, index: usize) -> bool {
        let is_six = is_six(frame);
        if is_six {
            self.places[self.count % BURST] = index as u8;
            self.count += 1;
        }
        is_six
    }
}

/// Whether a frame is one of IPv6, without a tag.
#[inline(always)]
pub(super) fn is_six(frame: &impl Frame) -> bool {
    frame.bytes().get(12..14).is_some_and(|bytes| bytes == ethernet::IPV6.to_be_bytes())
}

/// The addresses of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub source: u128,
    pub destination: u128,
}

/// All stages for these packets of a burst that came in on a port with this MAC.
#[inline(never)]
pub(super) fn process<F: Frame, P: Probe>(
    path: &Path<'_>,
    mac: &Mac,
    places: &Places,
    burst: &mut [F],
    verdicts: &mut [Verdict; BURST],
    probe: &mut P,
) {
    let mut work = Work::new();
    let mut addresses = [Addresses::default(); BURST];
    for &place in &places.places[..places.count.min(BURST)] {
        let index = usize::from(place) % BURST;
        match begin(path, mac, &mut burst[index]) {
            Ok((packet, of_packet)) => {
                work.packets[work.count % BURST] = Packet { index: place, ..packet };
                addresses[index] = of_packet;
                work.count += 1;
            }
            Err(verdict) => verdicts[index] = route::instead(path, &mut burst[index], verdict),
        }
    }
    let path = Path { addresses: Some(&addresses), ..*path };
    if P::WATCHES {
        work.packets[..work.count].iter().for_each(|packet| probe.found(&path.found(packet)));
    }
    let order = look_up::look_up_all(path.snapshot, &path.engine.table, &mut work);
    path.finish_all::<true, F>(&order, &mut work, burst, verdicts);
}

/// Stages 1 and 2: what it is and whose; its home bucket begins to be loaded. Fragments and ICMP errors leave here.
fn begin(path: &Path<'_>, mac: &Mac, frame: &mut impl Frame) -> Result<(Packet, Addresses), Verdict> {
    let (mut packet, addresses) = match parse(frame, mac, path.snapshot) {
        Ok(parsed) => parsed,
        Err(verdict @ Verdict::Punt(Punt::Icmp | Punt::OtherProtocol)) => {
            if let Some(followed) = ipsec::follow_six(path, frame) {
                return Err(followed);
            }
            fragments::without_ports(path, frame)?;
            return Err(match verdict {
                Verdict::Punt(Punt::Icmp) if tunnel_errors::is_told::<u128>(path, frame.bytes()) => {
                    Verdict::Punt(Punt::TunnelError)
                }
                Verdict::Punt(Punt::Icmp) => related::follow::<u128>(path, frame),
                verdict => verdict,
            });
        }
        Err(verdict) => return Err(verdict),
    };
    let path = Path { addresses: Some(from_ref(&addresses)), ..*path };
    if packet.piece != Piece::Whole {
        return Err(fragments::follow(&path, frame, packet));
    }
    path.classify(&mut packet)?;
    path.engine.table.prefetch(packet.hash);
    Ok((packet, addresses))
}
