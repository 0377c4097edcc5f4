//! Fragments of what source NAT has to do with (RFC 4787, REQ-14; docs/operating.md, "Source NAT" and "Fragments").

use super::fragments::{Note, Went};
use super::headers::header_of;
use super::snat::What;
use super::{Fate, Frame, Model, snat};
use crate::packet::ICMP;
use crate::world::{self, LAN, Snat, Way};

/// What stands at the beginning of a ping.
const PING: usize = 8;

impl Model {
    /// What becomes of a part of a datagram: the first goes as a packet does, the others follow it, and wait for it if they are earlier.
    pub(super) fn translated_fragment(&mut self, frame: &Frame<'_>, snat: &Snat) -> Option<Fate> {
        let packet = &frame.packet;
        let fragment = packet.fragment?;
        // Whose datagrams these are not leaves no note about them.
        let is_out = world::is_inside(packet.source);
        if is_out && (frame.port != LAN || world::way(&self.services, packet.source) == Way::None) {
            return Some(Fate::Drop("snat_none"));
        }
        let length = packet.segment().len();
        if fragment.more && !length.is_multiple_of(8) || packet.at + fragment.offset + length > 65_535 {
            return Some(Fate::Drop("bad_fragment"));
        }
        let header = if packet.protocol == ICMP { PING } else { header_of(packet.protocol) };
        if fragment.offset > 0 && fragment.offset < header || fragment.offset == 0 && length < header {
            return Some(Fate::Drop("fragment_tiny"));
        }
        let (datagram, note) = self.note_of(packet, fragment);
        if fragment.offset > 0 {
            return match note.map(|note| (note.went, note.ports)) {
                Some((Went::Translated, ports)) => {
                    let class = snat::class_of(packet.protocol)?;
                    self.translate(frame, snat, &What::Later(class, ports.0, ports.1))
                }
                Some((Went::Nowhere, _)) => Some(Fate::Drop("fragment_orphan")),
                Some((Went::ToLinux, _)) if world::is_of_pool(packet.destination) => None,
                _ => Some(Fate::Hold),
            };
        }
        let what = snat::what(packet);
        let ports = match what {
            What::Ports(_, source, destination) => Some((source, destination)),
            What::Request(id) => Some((id, 0)),
            What::Reply(id) => Some((0, id)),
            // Of an error in fragments nobody sees all that it quotes.
            What::Error(..) | What::Later(..) | What::Other => None,
        };
        let is_another = |note: Note| {
            note.went == Went::Translated && self.now - note.seen <= 1 && Some(note.ports) != ports
        };
        if note.is_some_and(is_another) {
            return Some(Fate::Drop("fragment_overlap"));
        }
        let fate = self.translate(frame, snat, if ports.is_some() { &what } else { &What::Other });
        let went = match (&fate, ports) {
            (None, _) => Went::ToLinux,
            (Some(Fate::Drop(_)), _) | (_, None) => Went::Nowhere,
            (Some(_), Some(_)) => Went::Translated,
        };
        self.notes.retain(|note| note.datagram != datagram);
        self.notes.push(Note { datagram, seen: self.now, ports: ports.unwrap_or_default(), went });
        fate
    }
}
